//! A simulated XCP-ng pool that real clients accept, on real disk images, with faults to switch on.
//!
//! Nothing here is a stub: records, events, tasks, snapshots, changed blocks, exports, imports and NBD are those of a
//! pool, and the disks are sparse files that `cmp` and `qemu-img` can read. Only the hypervisor is missing: a machine
//! that runs is a record that says so, and a writer. What a pool does is told by `reference/xapi-streams.md`; sections
//! are cited where they matter.
//!
//! - [`Lab`] opens pools in a directory and keeps their state there; [`LabSpec`] says what they consist of.
//! - [`PoolHandle`] says how to reach a pool, changes its disks, switches a [`Fault`] on.
//! - The methods `lab.*` on a pool's own port do the same from another process (see `rpc/admin.rs`).
//!
//! Inside: `store` (records, links, changes) under `database` (lock and bell); `shelf` (which image holds which VDI);
//! `rpc` (methods); `http` and `server` (connections); `transfer` (exports and imports); `world` (building).

mod database;
mod dump;
mod error;
mod export_names;
mod failure;
mod fault;
mod guests;
mod http;
mod inventory;
mod lab;
mod pool;
mod record;
mod rng;
mod rpc;
mod server;
mod session;
mod session_access;
mod shelf;
mod spec;
mod store;
mod tally;
mod transfer;
mod world;
mod writer;
mod xmlrpc;

pub use dump::Dump;
pub use error::LabError;
pub use failure::{Answer, Failure};
pub use fault::{Fault, FaultSpec, TaskAfter};
pub use guests::{APPLIANCE, Boot, Guests, Report};
pub use inventory::{DiskInfo, VmInfo};
pub use lab::{Lab, PoolHandle};
pub use spec::{Content, DiskSpec, LabSpec, MIB, NetworkSpec, PoolSpec, SrSpec, VmSpec};
pub use writer::Mutation;
