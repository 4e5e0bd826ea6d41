//! Plan -> run -> journal: what moves the disks.
//!
//! A [`Plan`] says completely what to do. [`run`] does it and writes everything it does into a [`Journal`], the
//! announcements of what it is about to create durably and beforehand. In production both live in a process of their
//! own per run: [`worker`] is the inside of that process, [`spawn`](spawn()) starts it from the daemon.

mod backup;
pub mod budget;
mod context;
mod deploy;
mod error;
mod journal;
pub mod limit;
pub mod meter;
pub mod pipeline;
pub mod plan;
mod points;
mod pool;
mod recover;
mod remote;
mod restore;
mod run;
pub mod source;
mod spawn;
pub mod worker;

pub use deploy::{Told, Verdict, deploy_steps, destroy_steps, guest_addresses, host_address, proxy_url, reconfigure_steps};
pub use error::Error;
pub use journal::{Journal, JournalError};
pub use plan::Plan;
pub use run::run;
pub use spawn::{ALLOCATOR, WorkerControl, WorkerError, WorkerHandle, spawn};
