//! One interface over where repositories are kept; local directories first.
//!
//! [`Storage`] states the guarantees the rooms above build on, [`Capabilities`] says as data what differs between
//! storages, [`RepoPath`] is a name that cannot leave the repository, [`RemoteUrl`] reads XO's remote URLs. Everything
//! that creates, renames, syncs or deletes under a local repository stands in one module, `durable`.

mod durable;
mod error;
pub mod fault;
mod local;
mod path;
mod probe;
mod storage;
mod url;

pub use error::{Kind, StorageError};
pub use local::LocalStorage;
pub use path::{PathError, RepoPath};
pub use probe::{PROBE_BYTES, Probe, ProbeError, ProbeStep, probe};
pub use storage::{Capabilities, DiskFile, Durability, Entry, EntryKind, Space, Stat, Storage};
pub use url::{Location, RemoteUrl, UrlError};

use std::sync::Arc;

/// A result of this crate.
pub type Result<T, E = StorageError> = std::result::Result<T, E>;

/// How a storage is opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Create the root of a local repository when it does not exist. Off, a missing root is an error: an empty mount
    /// point or a mistyped path must not silently become a new repository.
    pub make_root: bool,
}

/// Opens the storage a remote URL names.
///
/// # Errors
/// [`Kind::NotFound`] when a local root does not exist, [`Kind::Unsupported`] for storages and options this version
/// does not have. A URL with an encryption key is refused: data is never written in clear where encryption was asked.
pub async fn open(url: &RemoteUrl, options: OpenOptions) -> Result<Arc<dyn Storage>> {
    let unsupported = |what: String| Err(StorageError::new("open", url.redacted(), Kind::Unsupported(what)));
    if url.encryption_key().is_some() {
        return unsupported("encrypted remotes are not supported yet".into());
    }
    match url.location() {
        Location::Local { path } => Ok(Arc::new(LocalStorage::open(path.clone(), options).await?)),
        other => unsupported(format!("{} remotes are not supported yet, only file:// ones", other.kind())),
    }
}
