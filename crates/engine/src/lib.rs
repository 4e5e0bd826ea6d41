//! Plan, run, journal: sources, block pipeline, sinks; backup, restore, verify.
