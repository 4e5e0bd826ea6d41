//! What the daily commands share.

pub mod run;
