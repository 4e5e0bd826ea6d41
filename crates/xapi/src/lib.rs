//! The XAPI client: sessions, records, events, tasks, export and import streams.
