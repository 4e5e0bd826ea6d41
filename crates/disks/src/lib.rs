//! The lab's disks: sparse images with cheap snapshots, changed-block tracking, VHD streams and an NBD server.
//!
//! The live disk of an [`Image`] is a plain sparse file at a stable path, so `cmp`, `qemu-img` and `file` work on it.
//! Everything a pool needs beside it (older contents, bitmaps) lies in files next to it. All of this serves the
//! simulated pool; a real pool has its own storage.
//!
//! Calls that touch files block; from asynchronous code, go through `spawn_blocking`.

mod bitmap;
mod error;
mod image;
mod layer;
mod nbd_server;
mod sparse;
mod state;
mod stream;
mod vhd_stream;

pub use bitmap::Bitmap;
pub use error::DiskError;
pub use image::{Image, SnapshotInfo};
pub use layer::{BlockRead, Layer, View};
pub use nbd_server::{MAX_CONNECTIONS, NbdFaultSwitch, NbdFaults, NbdServer, NbdTls, Resolve};
pub use stream::{ByteStream, export_raw, import_raw};
pub use vhd_stream::{Imported, Shape, VhdExport, export_vhd, import_vhd};

/// Bytes of a tracked block: the grain of snapshots, of changed-block tracking and of `VDI.list_changed_blocks`
/// (xapi-streams.md §3.3).
pub const BLOCK: u64 = 64 * 1024;
