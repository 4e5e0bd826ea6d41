//! Plan -> run -> journal: what moves the disks.
//!
//! A [`Plan`] says completely what to do. [`run`] does it and writes everything it does into a [`Journal`], the
//! announcements of what it is about to create durably and beforehand. In production both live in a process of their
//! own per run: [`worker`] is the inside of that process, [`spawn`](spawn()) starts it from the daemon.

mod error;
mod journal;
pub mod limit;
pub mod meter;
pub mod plan;
mod run;
mod spawn;
pub mod worker;

pub use error::Error;
pub use journal::{Journal, JournalError};
pub use plan::Plan;
pub use run::run;
pub use spawn::{WorkerControl, WorkerError, WorkerHandle, spawn};
