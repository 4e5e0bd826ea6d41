//! The backup repository on a storage: layout, metadata, cache, locks, retention, merge, clean, verify.
//!
//! What XO reads and writes (backup-repository.md), so that either side lists, restores and extends what the other
//! wrote. What is stricter here: data is durable before metadata, nothing is removed on doubt, a merge can be cut at any
//! point.
//!
//! # What may run beside what
//!
//! Everything that changes a VM's directory asks for the [`VmLock`] of that VM, which XO and other proxies respect.
//! Different VMs never meet. Within one VM:
//!
//! | | list, metadata | read a disk, verify | write disks, XVA | commit | remove, retention | clean, merge |
//! | --- | --- | --- | --- | --- | --- | --- |
//! | **list, metadata** (no lock) | yes | yes | yes: what is not committed is not listed | yes: before or after, whole | yes | yes |
//! | **read a disk, verify** (no lock) | | yes | yes | yes | yes: disks stay until clean | until the merge publishes; a disk opened before goes on reading its files, in a directory the read of a removed block fails |
//! | **write disks, XVA** (lock) | | | yes, several at once under one lock | after them | yes, same holder | no: clean takes what is not committed for a leftover |
//! | **commit** (lock) | | | | one at a time | one at a time | no |
//! | **remove, retention** (lock) | | | | | one at a time | no |
//! | **clean, merge** (lock) | | | | | | no |
//!
//! The lock keeps others out; within one holder the "no" of this table is kept by the caller, who awaits one before the
//! next. A lock that was lost makes every later change fail with [`Error::LockLost`] before it happens.

mod cache;
mod clean;
mod disk;
mod error;
mod layout;
mod listing;
mod lock;
mod merge;
mod metadata;
mod progress;
mod repository;
pub mod retention;
mod verify;
mod xva_file;

pub use clean::{CleanOptions, CleanPlan, Cleaned, Merge, Removal};
pub use disk::chain::DiskChain;
pub use disk::codec::Filter;
pub use disk::writer::{Base, DiskWriter, FinishedDisk, NewDisk};
pub use error::{Error, Result};
pub use layout::{BackupTime, DiskLayout, Lineage, PointId};
pub use listing::{Listing, Point, Unreadable};
pub use lock::VmLock;
pub use merge::MergeSettings;
pub use metadata::{BackupMetadata, MAX_METADATA, Record};
pub use progress::{Progress, Step, Work};
pub use repository::{BaseSearch, Repository};
pub use verify::Verification;
pub use xva_file::{FinishedXva, XvaWriter};
