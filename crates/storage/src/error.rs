//! What a storage operation can fail with: what was tried, on which path, why.

use std::fmt;
use std::io;

use crate::RepoPath;

/// A failed storage operation.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {path}: {kind}")]
pub struct StorageError {
    /// What was tried, as a verb: `read`, `rename`, `sync`…
    pub operation: &'static str,
    /// On what; a path inside the repository, or the root's own name. Holds no secret.
    pub path: String,
    /// Why it failed.
    pub kind: Kind,
    /// The system's own error, when there is one.
    #[source]
    pub source: Option<io::Error>,
}

/// Why a storage operation failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// No such file or directory.
    NotFound,
    /// Something has that name already.
    AlreadyExists,
    /// The storage, or the quota, is full.
    NoSpace {
        /// Bytes still free, when the storage can tell.
        available: Option<u64>,
    },
    /// Not allowed, or the file is immutable.
    PermissionDenied,
    /// The storage is mounted read-only.
    ReadOnly,
    /// A directory was expected.
    NotADirectory,
    /// A directory must be empty for this.
    NotEmpty,
    /// Neither a file nor a directory, or a directory where a file was expected.
    NotAFile,
    /// A symbolic link stands where a file or directory was expected; links are never followed in a repository.
    Symlink,
    /// The file is longer than a file of its sort may be.
    TooLarge {
        /// The limit, bytes.
        limit: u64,
    },
    /// The file ends before the range asked for.
    UnexpectedEnd,
    /// This version does not do that.
    Unsupported(String),
    /// The storage did not answer as a storage should.
    Io,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("it does not exist"),
            Self::AlreadyExists => f.write_str("it exists already"),
            Self::NoSpace { available: Some(bytes) } => write!(f, "the storage is full, {bytes} bytes are free"),
            Self::NoSpace { available: None } => f.write_str("the storage is full"),
            Self::PermissionDenied => f.write_str("permission denied"),
            Self::ReadOnly => f.write_str("the storage is read-only"),
            Self::NotADirectory => f.write_str("a part of the path is not a directory"),
            Self::NotEmpty => f.write_str("the directory is not empty"),
            Self::NotAFile => f.write_str("it is not a regular file"),
            Self::Symlink => f.write_str("a symbolic link is in the way; links are not followed inside a repository"),
            Self::TooLarge { limit } => write!(f, "it is larger than {limit} bytes"),
            Self::UnexpectedEnd => f.write_str("the file ends too early"),
            Self::Unsupported(what) => f.write_str(what),
            Self::Io => f.write_str("input/output error"),
        }
    }
}

impl StorageError {
    /// An error without a system error behind it.
    pub fn new(operation: &'static str, path: impl Into<String>, kind: Kind) -> Self {
        Self { operation, path: path.into(), kind, source: None }
    }

    /// An error of a path in the repository.
    pub fn at(operation: &'static str, path: &RepoPath, kind: Kind) -> Self {
        Self::new(operation, path.absolute(), kind)
    }

    /// Classifies a system error.
    pub(crate) fn from_io(operation: &'static str, path: impl Into<String>, source: io::Error) -> Self {
        use rustix::io::Errno;
        let kind = match Errno::from_io_error(&source) {
            Some(Errno::NOENT) => Kind::NotFound,
            Some(Errno::EXIST) => Kind::AlreadyExists,
            Some(Errno::NOSPC | Errno::DQUOT) => Kind::NoSpace { available: None },
            Some(Errno::ACCESS | Errno::PERM) => Kind::PermissionDenied,
            Some(Errno::ROFS) => Kind::ReadOnly,
            Some(Errno::NOTDIR) => Kind::NotADirectory,
            Some(Errno::NOTEMPTY) => Kind::NotEmpty,
            Some(Errno::ISDIR) => Kind::NotAFile,
            Some(Errno::LOOP | Errno::XDEV) => Kind::Symlink,
            Some(Errno::FBIG) => Kind::TooLarge { limit: i64::MAX as u64 },
            _ if source.kind() == io::ErrorKind::UnexpectedEof => Kind::UnexpectedEnd,
            _ => Kind::Io,
        };
        Self { operation, path: path.into(), kind, source: Some(source) }
    }

    /// Whether the object does not exist.
    pub fn is_not_found(&self) -> bool {
        self.kind == Kind::NotFound
    }

    /// Whether the name was taken.
    pub fn is_already_exists(&self) -> bool {
        self.kind == Kind::AlreadyExists
    }

    /// Whether the storage is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self.kind, Kind::NoSpace { .. })
    }
}
