//! The interface of a storage, and the guarantees it gives.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{RepoPath, Result};

/// What a storage can do; the rooms above decide on these, never on what sort of storage it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Files can be patched in place: VHD files can be written and merged. Without it only disk directories work.
    pub can_range_write: bool,
    /// [`Storage::replace`] and [`Storage::rename`] swap old for new with no moment between.
    pub has_atomic_replace: bool,
    /// [`Storage::make_lock`] excludes other machines (backup-repository.md §4.11).
    pub has_local_lock: bool,
    /// Largest object, bytes; none: no limit worth knowing.
    pub max_object: Option<u64>,
}

/// When a change must have reached the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Before the call returns.
    Now,
    /// With the next [`Storage::sync`]. The change is visible to every reader at once all the same.
    AtSync,
}

/// What a directory holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// File name, one component.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
}

/// What a directory entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, device, socket or pipe: has no business in a repository and is never opened.
    Other,
}

/// What is known of a file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// What it is.
    pub kind: EntryKind,
    /// Bytes of a file.
    pub len: u64,
    /// Last modification.
    pub modified: SystemTime,
}

/// Room on a storage, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Total.
    pub size: u64,
    /// Used.
    pub used: u64,
    /// Free for us.
    pub available: u64,
}

/// Where a repository is kept.
///
/// Guarantees every implementation gives, and the conformance tests check:
/// - *Read after write*: what a call wrote, every later call sees, in content and in listings.
/// - *Whole or not at all*: [`write_new`](Self::write_new), [`replace`](Self::replace), [`rename`](Self::rename) and
///   [`share`](Self::share) leave the old state or the new one, also after a crash. Temporary names they use begin with
///   `.` and end in `.tmp`.
/// - *Exclusive*: of two [`write_new`](Self::write_new) or [`make_lock`](Self::make_lock) of one name, one succeeds.
/// - *Durable*: with [`Durability::Now`], or after [`sync`](Self::sync), the change survives a power cut.
/// - *Listings are complete or an error*: an unreadable directory never looks empty.
/// - *No links*: symbolic links are not followed inside the repository and special files are not opened.
#[async_trait]
pub trait Storage: Send + Sync + Debug {
    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Its name for messages, without secrets.
    fn describe(&self) -> String;

    /// The whole of a file that may not be longer than `limit` bytes.
    async fn read(&self, path: &RepoPath, limit: u64) -> Result<Bytes>;

    /// Opens a file for reading.
    async fn open(&self, path: &RepoPath) -> Result<Arc<dyn DiskFile>>;

    /// Opens an existing file for reading and patching in place.
    async fn open_write(&self, path: &RepoPath) -> Result<Arc<dyn DiskFile>>;

    /// Creates an empty file for reading and writing, exclusively; nothing is durable before a sync. Missing parent
    /// directories are made.
    async fn create(&self, path: &RepoPath) -> Result<Arc<dyn DiskFile>>;

    /// The entries of a directory, sorted by name.
    async fn list(&self, dir: &RepoPath) -> Result<Vec<Entry>>;

    /// What is known of a file or directory.
    async fn stat(&self, path: &RepoPath) -> Result<Stat>;

    /// Writes a new small file, exclusively and atomically. Missing parent directories are made.
    async fn write_new(&self, path: &RepoPath, data: Bytes, durability: Durability) -> Result<()>;

    /// Writes a small file, atomically replacing one that exists. Missing parent directories are made.
    async fn replace(&self, path: &RepoPath, data: Bytes, durability: Durability) -> Result<()>;

    /// Renames, atomically replacing a file that has the new name.
    async fn rename(&self, from: &RepoPath, to: &RepoPath, durability: Durability) -> Result<()>;

    /// Gives the content of file `from` the name `to` as well, atomically replacing what was there. The two may share
    /// their bytes: neither may be patched in place while both exist. Missing parent directories are made.
    async fn share(&self, from: &RepoPath, to: &RepoPath) -> Result<()>;

    /// Removes a file; a missing one is success.
    async fn remove(&self, path: &RepoPath, durability: Durability) -> Result<()>;

    /// Removes a directory with all it holds; a missing one is success. Links inside are removed, not followed.
    async fn remove_tree(&self, path: &RepoPath) -> Result<()>;

    /// Makes a directory (mode 0700) and its missing parents; an existing one is success.
    async fn make_dir(&self, path: &RepoPath, durability: Durability) -> Result<()>;

    /// Makes one directory, exclusively: a lock.
    async fn make_lock(&self, path: &RepoPath) -> Result<()>;

    /// Removes an empty directory; a missing one is an error.
    async fn remove_lock(&self, path: &RepoPath) -> Result<()>;

    /// Sets the modification time of a file or directory.
    async fn set_modified(&self, path: &RepoPath, time: SystemTime) -> Result<()>;

    /// Makes everything written so far durable, in one go.
    async fn sync(&self) -> Result<()>;

    /// Room on the storage; none when it cannot tell.
    async fn space(&self) -> Result<Option<Space>>;
}

/// An open file of blocks: positioned reads and writes, many at the same time.
#[async_trait]
pub trait DiskFile: Send + Sync + Debug {
    /// Exactly `len` bytes from `offset`.
    ///
    /// # Errors
    /// [`crate::Kind::UnexpectedEnd`] when the file ends earlier.
    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes>;

    /// Writes the parts one after the other from `offset`, without copying them together first.
    async fn write_at(&self, offset: u64, parts: Vec<Bytes>) -> Result<()>;

    /// Length, bytes.
    async fn length(&self) -> Result<u64>;

    /// Makes what was written to this file durable. After an error the file's content is unknown: it is not retried.
    async fn sync(&self) -> Result<()>;
}
