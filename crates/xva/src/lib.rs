//! The XVA container: the tar of a full backup, written and checked as a stream.
//!
//! An XVA is a tar archive (xapi-streams.md §4): `ova.xml` first, then for each disk its chunks of 1 MiB, each followed
//! by a checksum, then two records of zeros; the whole optionally compressed with gzip or zstd. Chunks of zeros are left
//! out. A pool sends it without a length and closes the connection in the same way whether it is complete or not, so
//! the only proof of an archive is the archive itself:
//!
//! - [`Validator`] watches a stream on its way to somewhere else and says at its end whether it was whole;
//! - [`Importer`] reads one and gives what is in it, chunk by chunk, each checked;
//! - [`Writer`] makes one, and [`write_appliance`] that of an appliance;
//! - [`mark()`] marks the VM in one on its way to a pool.
//!
//! Memory is bounded: a chunk or two, whatever the archive claims.

mod appliance;
mod archive;
mod compression;
mod error;
mod importer;
mod mark;
mod tar;
mod validator;
mod writer;

pub use appliance::{APPLIANCE_KEY, Appliance, ApplianceError, write_appliance};
pub use archive::{Checksums, DiskSummary, Summary};
pub use compression::{Compression, Compressor};
pub use error::XvaError;
pub use importer::{Chunk, Event, Importer};
pub use mark::{MarkError, RECORD_SIZE, first_entry, mark};
pub use validator::Validator;
pub use writer::{Writer, WriterError, upper_bound};

/// Bytes of disk in a chunk; the last one of a disk may be shorter.
pub const CHUNK_SIZE: usize = 1 << 20;
/// The longest chunk accepted when reading, bytes. Chunks are 1 MiB everywhere; other tools might choose more.
pub const MAX_CHUNK: u64 = 16 << 20;
/// The longest `ova.xml` accepted, bytes. Real ones take some 100 KiB.
pub const MAX_OVA_XML: u64 = 64 << 20;
