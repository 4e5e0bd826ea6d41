//! What can go wrong with a disk of the lab.

use std::io;
use std::path::PathBuf;

use uuid::Uuid;

/// A disk operation that failed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A file of the image could not be used.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The state file is damaged or from a later version.
    #[error("{} is no state of a disk image", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: serde_json::Error,
    },
    /// A file next to the image has not the length its state says.
    #[error("{} has {found} bytes where {expected} were expected", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// Bytes it has.
        found: u64,
        /// Bytes it should have.
        expected: u64,
    },
    /// Somebody else has the image open.
    #[error("{} is in use by another process", path.display())]
    InUse {
        /// Directory of the image.
        path: PathBuf,
    },
    /// Reading or writing past the end.
    #[error("bytes {offset}..{} lie outside a disk of {size} bytes", offset.saturating_add(*length))]
    OutOfRange {
        /// First byte.
        offset: u64,
        /// How many.
        length: u64,
        /// Size of the disk, bytes.
        size: u64,
    },
    /// A disk does not shrink.
    #[error("a disk of {size} bytes cannot shrink to {wanted}")]
    Shrink {
        /// Present size, bytes.
        size: u64,
        /// Size asked for, bytes.
        wanted: u64,
    },
    /// No such snapshot in this image.
    #[error("the image has no snapshot {0}")]
    NoSuchSnapshot(Uuid),
    /// A snapshot of that id exists.
    #[error("the image already has a snapshot {0}")]
    SnapshotExists(Uuid),
    /// The snapshot keeps only its bitmap of changed blocks.
    #[error("the data of snapshot {0} has been destroyed; only its bitmap of changed blocks is left")]
    DataDestroyed(Uuid),
    /// Changed blocks are not known over the whole way between two points.
    #[error("changed blocks are not tracked all the way from {from} to {to}")]
    NotTracked {
        /// Older point.
        from: Uuid,
        /// Newer point.
        to: String,
    },
    /// A VHD stream could not be written or read.
    #[error("the VHD stream is not usable: {message}")]
    Vhd {
        /// What is wrong with it.
        message: String,
    },
    /// The stream being imported broke.
    #[error("the stream being imported broke after {received} bytes")]
    Import {
        /// Bytes received before.
        received: u64,
        /// Cause.
        source: io::Error,
    },
    /// A fault that a test switched on.
    #[error("simulated fault: {0}")]
    Simulated(&'static str),
}

impl DiskError {
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}
