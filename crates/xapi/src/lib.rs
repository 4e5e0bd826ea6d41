//! The XAPI client: sessions, records, events, tasks, export and import streams.
//!
//! A [`Client`] is a cheap handle on one pool: it logs in, follows the pool's master, logs in again when the session
//! expired and waits out a busy master. What a pool does in the background is a [`Task`], which is always destroyed,
//! also when the future that waited for it was dropped. Disks and VMs come and go as streams ([`Export`] and the
//! `import_*` calls) whose success is that of their task, never that of the HTTP status (xapi-streams.md §6 T1, T2).
//!
//! Session references and NBD export names are credentials: they appear in no `Debug`, error or log.

mod devices;
mod error;
mod events;
mod machine;
mod other_config;
mod record;
mod rpc;
mod session;
mod task;
mod transfer;
mod vdi;
mod vm;
mod xml;

pub use error::{Class, Error, Result, XapiError};
pub use events::{Event, EventBatch, Operation};
pub use record::{
    Host, HostMetrics, Kind, Network, Pbd, Pif, Pool, Record, Ref, Sm, Sr, TaskRecord, Vbd, Vdi, Vif, Vm, VmGuestMetrics, Vtpm,
};
pub use session::{Client, Connect, Timing, fingerprint, host_and_port};
pub use task::Task;
pub use transfer::{Compression, DiskFormat, Export};
pub use vdi::{CBT_BLOCK, ChangedBlocks, NbdInfo};
pub use vm::Destroy;
pub use xml::{XmlError, parse_value};
