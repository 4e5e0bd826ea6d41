//! The backup repository on a storage: layout, metadata, cache, locks, retention, merge, clean, verify.
