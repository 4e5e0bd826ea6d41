//! What an operation on a repository can fail with.

use storage::{PathError, StorageError};

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed operation on a repository.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The storage failed; the text names operation and path.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A name from outside cannot be a path in a repository.
    #[error("a name is not usable in a repository")]
    Path(#[from] PathError),
    /// The text is not the identifier of a VM's restore point.
    #[error("{0:?} is not the identifier of a restore point (/xo-vm-backups/<VM>/<timestamp>.json)")]
    NotAPoint(String),
    /// A VM directory, job or disk has an identifier that cannot be a directory of its own.
    #[error("{0:?} is not usable as an identifier in a repository")]
    NotAnIdentifier(String),
    /// Somebody else holds the lock of the VM's directory.
    #[error("the backups of VM {vm} are locked by another process: {lock} was refreshed {age_seconds} s ago")]
    Locked {
        /// The VM.
        vm: String,
        /// The lock directory.
        lock: String,
        /// Age of the lock's last sign of life, seconds.
        age_seconds: u64,
    },
    /// The lock was held and is not any more; nothing further is written.
    #[error("the lock of the backups of VM {vm} was lost: {reason}")]
    LockLost {
        /// The VM.
        vm: String,
        /// What was found.
        reason: String,
    },
    /// A lock of one VM was used for another.
    #[error("the lock held is that of VM {held}, not of VM {wanted}")]
    WrongLock {
        /// The lock's VM.
        held: String,
        /// The operation's VM.
        wanted: String,
    },
    /// A metadata file cannot be understood. It is left alone.
    #[error("the metadata {path} cannot be used: {reason}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// Metadata about to be written would break a reader (backup-repository.md §2.2, H20).
    #[error("the metadata of the new restore point is not complete: {0}")]
    Incomplete(String),
    /// A restore point of that second exists already (backup-repository.md §4.6, H11).
    #[error("a restore point {0} exists already")]
    PointExists(String),
    /// A structure of a disk is damaged.
    #[error("the disk {path} is damaged")]
    Format {
        /// The disk or the chunk of it.
        path: String,
        /// What is wrong.
        #[source]
        source: vhd::FormatError,
    },
    /// A disk is damaged in another way than its structures.
    #[error("the disk {path} is damaged: {what}")]
    Damaged {
        /// The disk.
        path: String,
        /// What is wrong.
        what: String,
    },
    /// A disk cannot be written as asked.
    #[error("the disk {path} cannot be written: {what}")]
    Refused {
        /// The disk.
        path: String,
        /// Why.
        what: String,
    },
    /// The stream of a full backup is not a whole XVA.
    #[error("the full backup {path} is not whole")]
    Xva {
        /// The file.
        path: String,
        /// Where it stops making sense.
        #[source]
        source: xva::XvaError,
    },
    /// The restore point's data does not have the checksum written beside it.
    #[error("the checksum of {path} is {found}, {expected} is written beside it")]
    Checksum {
        /// The file.
        path: String,
        /// Computed.
        found: String,
        /// Written.
        expected: String,
    },
    /// The operation was cancelled; what it leaves is found by the next clean.
    #[error("cancelled")]
    Cancelled,
    /// Compression of a block failed.
    #[error("a block of {path} cannot be {verb}")]
    Codec {
        /// The chunk.
        path: String,
        /// `compressed` or `decompressed`.
        verb: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// Whether the thing asked for does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Storage(error) if error.is_not_found())
    }

    /// Whether the storage did not answer properly, so that nothing is known of the object: never a reason to remove it.
    pub fn is_doubt(&self) -> bool {
        match self {
            Self::Storage(error) => !matches!(
                error.kind,
                storage::Kind::NotFound
                    | storage::Kind::UnexpectedEnd
                    | storage::Kind::NotAFile
                    | storage::Kind::NotADirectory
                    | storage::Kind::Symlink
                    | storage::Kind::TooLarge { .. }
            ),
            Self::Cancelled | Self::Locked { .. } | Self::LockLost { .. } => true,
            _ => false,
        }
    }

    /// Itself and all its causes in one line, for lists of problems.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}
