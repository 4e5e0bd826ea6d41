//! A storage that dies at a chosen moment: for tests that enumerate every point at which a process can be killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Capabilities, DiskFile, Durability, Entry, Kind, RepoPath, Result, Space, Stat, Storage, StorageError};

/// What a medium writes whole or not at all, bytes.
const SECTOR: usize = 512;

/// Counts the changes made through it; the one with the chosen number is cut (a positioned write at a sector in the
/// middle, any other change before it happens), and from then on everything fails, reads included, as after the death of the
/// process.
#[derive(Debug, Clone)]
pub struct CrashPoint {
    inner: Arc<dyn Storage>,
    fuse: Arc<Fuse>,
}

#[derive(Debug)]
struct Fuse {
    crash_at: u64,
    changes: AtomicU64,
    dead: AtomicBool,
}

impl Fuse {
    fn dead(operation: &'static str, path: &RepoPath) -> StorageError {
        StorageError {
            operation,
            path: path.absolute(),
            kind: Kind::Io,
            source: Some(std::io::Error::other("the simulated process is dead")),
        }
    }

    fn alive(&self, operation: &'static str, path: &RepoPath) -> Result<()> {
        if self.dead.load(Ordering::SeqCst) { Err(Self::dead(operation, path)) } else { Ok(()) }
    }

    /// Whether this change is the one that is cut.
    fn change(&self, operation: &'static str, path: &RepoPath) -> Result<bool> {
        self.alive(operation, path)?;
        let number = self.changes.fetch_add(1, Ordering::SeqCst);
        if number >= self.crash_at {
            self.dead.store(true, Ordering::SeqCst);
        }
        Ok(number == self.crash_at)
    }

    fn whole_change(&self, operation: &'static str, path: &RepoPath) -> Result<()> {
        if self.change(operation, path)? { Err(Self::dead(operation, path)) } else { self.alive(operation, path) }
    }
}

impl CrashPoint {
    /// Lets `changes` changes pass and dies at the next one. `u64::MAX`: never; then it only counts.
    pub fn after(inner: Arc<dyn Storage>, changes: u64) -> Self {
        let fuse = Fuse { crash_at: changes, changes: AtomicU64::new(0), dead: AtomicBool::new(false) };
        Self { inner, fuse: Arc::new(fuse) }
    }

    /// How many changes were tried so far.
    pub fn changes(&self) -> u64 {
        self.fuse.changes.load(Ordering::SeqCst)
    }

    /// Whether the crash has happened.
    pub fn is_dead(&self) -> bool {
        self.fuse.dead.load(Ordering::SeqCst)
    }

    fn handle(&self, path: &RepoPath, inner: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(CrashFile { inner, fuse: self.fuse.clone(), path: path.clone() })
    }
}

#[async_trait]
impl Storage for CrashPoint {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    async fn read(&self, path: &RepoPath, limit: u64) -> Result<Bytes> {
        self.fuse.alive("read", path)?;
        self.inner.read(path, limit).await
    }

    async fn open(&self, path: &RepoPath) -> Result<Arc<dyn DiskFile>> {
        self.fuse.alive("open", path)?;
        Ok(self.handle(path, self.inner.open(path).await?))
    }

    async fn open_write(&self, path: &RepoPath) -> Result<Arc<dyn DiskFile>> {
        self.fuse.alive("open for writing", path)?;
        Ok(self.handle(path, self.inner.open_write(path).await?))
    }

    async fn create(&self, path: &RepoPath) -> Result<Arc<dyn DiskFile>> {
        self.fuse.whole_change("create", path)?;
        Ok(self.handle(path, self.inner.create(path).await?))
    }

    async fn list(&self, dir: &RepoPath) -> Result<Vec<Entry>> {
        self.fuse.alive("list", dir)?;
        self.inner.list(dir).await
    }

    async fn stat(&self, path: &RepoPath) -> Result<Stat> {
        self.fuse.alive("look at", path)?;
        self.inner.stat(path).await
    }

    async fn write_new(&self, path: &RepoPath, data: Bytes, durability: Durability) -> Result<()> {
        self.fuse.whole_change("create", path)?;
        self.inner.write_new(path, data, durability).await
    }

    async fn replace(&self, path: &RepoPath, data: Bytes, durability: Durability) -> Result<()> {
        self.fuse.whole_change("write", path)?;
        self.inner.replace(path, data, durability).await
    }

    async fn rename(&self, from: &RepoPath, to: &RepoPath, durability: Durability) -> Result<()> {
        self.fuse.whole_change("rename", from)?;
        self.inner.rename(from, to, durability).await
    }

    async fn share(&self, from: &RepoPath, to: &RepoPath) -> Result<()> {
        self.fuse.whole_change("link", from)?;
        self.inner.share(from, to).await
    }

    async fn remove(&self, path: &RepoPath, durability: Durability) -> Result<()> {
        self.fuse.whole_change("remove", path)?;
        self.inner.remove(path, durability).await
    }

    async fn remove_tree(&self, path: &RepoPath) -> Result<()> {
        // A tree is removed file by file: what a crash leaves of it is a part, here its first entry less.
        if self.fuse.change("remove", path)? {
            if let Ok(entries) = self.inner.list(path).await
                && let Some(first) = entries.first().and_then(|entry| path.join(&entry.name).ok())
            {
                self.inner.remove_tree(&first).await?;
            }
            return Err(Fuse::dead("remove", path));
        }
        self.inner.remove_tree(path).await
    }

    async fn make_dir(&self, path: &RepoPath, durability: Durability) -> Result<()> {
        self.fuse.whole_change("make the directory", path)?;
        self.inner.make_dir(path, durability).await
    }

    async fn make_lock(&self, path: &RepoPath) -> Result<()> {
        self.fuse.alive("lock", path)?;
        self.inner.make_lock(path).await
    }

    async fn remove_lock(&self, path: &RepoPath) -> Result<()> {
        self.fuse.alive("unlock", path)?;
        self.inner.remove_lock(path).await
    }

    async fn set_modified(&self, path: &RepoPath, time: SystemTime) -> Result<()> {
        self.fuse.alive("touch", path)?;
        self.inner.set_modified(path, time).await
    }

    async fn sync(&self) -> Result<()> {
        self.fuse.alive("sync", &RepoPath::root())?;
        self.inner.sync().await
    }

    async fn space(&self) -> Result<Option<Space>> {
        self.inner.space().await
    }
}

#[derive(Debug)]
struct CrashFile {
    inner: Arc<dyn DiskFile>,
    fuse: Arc<Fuse>,
    path: RepoPath,
}

#[async_trait]
impl DiskFile for CrashFile {
    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        self.fuse.alive("read", &self.path)?;
        self.inner.read_at(offset, len).await
    }

    async fn write_at(&self, offset: u64, parts: Vec<Bytes>) -> Result<()> {
        if self.fuse.change("write", &self.path)? {
            // Sectors are written whole or not at all; half of them have made it.
            let whole = Bytes::from(parts.concat());
            let cut = whole.len() / 2 / SECTOR * SECTOR;
            self.inner.write_at(offset, vec![whole.slice(..cut)]).await?;
            return Err(Fuse::dead("write", &self.path));
        }
        self.fuse.alive("write", &self.path)?;
        self.inner.write_at(offset, parts).await
    }

    async fn length(&self) -> Result<u64> {
        self.fuse.alive("look at", &self.path)?;
        self.inner.length().await
    }

    async fn sync(&self) -> Result<()> {
        self.fuse.alive("sync", &self.path)?;
        self.inner.sync().await
    }
}
