//! What can go wrong with the laboratory itself, as opposed to what its pools answer to clients.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// A laboratory that cannot be built, opened or used.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A file or directory of the lab.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A state file that does not read back.
    #[error("{} is damaged or from another version of the lab", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: serde_json::Error,
    },
    /// A disk image.
    #[error("cannot use a disk of pool {pool}")]
    Disk {
        /// Which pool.
        pool: String,
        /// Cause.
        source: disks::DiskError,
    },
    /// The file system maker failed.
    #[error("mkfs.ext4 could not make the file system of {}: {message}", path.display())]
    MakeFileSystem {
        /// The image.
        path: PathBuf,
        /// What it said.
        message: String,
    },
    /// No port to listen on.
    #[error("pool {pool} cannot listen on {address}")]
    Listen {
        /// Which pool.
        pool: String,
        /// Where.
        address: SocketAddr,
        /// Cause.
        source: io::Error,
    },
    /// The pool's certificate.
    #[error("cannot make or read the certificate of pool {pool}")]
    Certificate {
        /// Which pool.
        pool: String,
        /// Cause.
        source: tls::CertificateError,
    },
    /// No VM of that name or UUID, or no such disk.
    #[error("pool {pool} has no {what}")]
    Unknown {
        /// Which pool.
        pool: String,
        /// What was looked for.
        what: String,
    },
    /// A specification that cannot be built.
    #[error("the specification of the lab is not usable: {0}")]
    Spec(String),
}

impl LabError {
    /// For `map_err` on file calls.
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}
