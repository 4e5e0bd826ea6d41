//! A repository in a local directory, or in whatever is mounted there.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;

use crate::durable::{self, Root};
use crate::{Capabilities, DiskFile, Durability, Entry, Kind, OpenOptions, RepoPath, Result, Space, Stat, Storage, StorageError};

/// A directory of this machine.
#[derive(Debug, Clone)]
pub struct LocalStorage {
    root: Arc<Root>,
    path: PathBuf,
}

impl LocalStorage {
    /// Opens the directory `path`.
    ///
    /// # Errors
    /// [`Kind::NotFound`] when it does not exist and `options` does not say to make it.
    pub async fn open(path: PathBuf, options: OpenOptions) -> Result<Self> {
        let shown = path.display().to_string();
        let opened = path.clone();
        let root = blocking("open the repository", shown.clone(), None, move || Root::open(&opened, options)).await;
        match root {
            Err(error) if error.is_not_found() => Err(StorageError {
                kind: Kind::Unsupported(
                    "the directory does not exist; is it mounted? A new repository's directory has to be made first".into(),
                ),
                ..error
            }),
            root => Ok(Self { root: Arc::new(root?), path }),
        }
    }

    async fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        path: &RepoPath,
        work: impl FnOnce(&Root, &RepoPath) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let (root, own) = (self.root.clone(), path.clone());
        blocking(operation, path.absolute(), Some(self.root.clone()), move || work(&root, &own)).await
    }

    fn handle(&self, path: &RepoPath, file: File) -> Arc<dyn DiskFile> {
        Arc::new(LocalFile { file: Arc::new(file), path: path.clone(), root: self.root.clone() })
    }
}

/// Runs file system calls where they may block, and puts what failed into words.
async fn blocking<T: Send + 'static>(
    operation: &'static str,
    path: String,
    root: Option<Arc<Root>>,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T> {
    let done = match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => Err(std::io::Error::other(error)),
    };
    done.map_err(|error| {
        let mut error = StorageError::from_io(operation, path, error);
        if let (Kind::NoSpace { available }, Some(root)) = (&mut error.kind, root) {
            *available = root.space().ok().map(|space| space.available);
        }
        error
    })
}

#[async_trait]
impl Storage for LocalStorage {
    fn capabilities(&self) -> Capabilities {
        Capabilities { can_range_write: true, has_atomic_replace: true, has_local_lock: true, max_object: None }
    }

    fn describe(&self) -> String {
        self.path.display().to_string()
    }

    async fn read(&self, path: &RepoPath, limit: u64) -> Result<Bytes> {
        let data = self.run("read", path, move |root, path| root.read(path, limit)).await?;
        data.ok_or_else(|| StorageError::at("read", path, Kind::TooLarge { limit }))
    }

    async fn open(&self, path: &RepoPath) -> Result<Arc<dyn DiskFile>> {
        let file = self.run("open", path, |root, path| root.open_file(path, false)).await?;
        Ok(self.handle(path, file))
    }

    async fn open_write(&self, path: &RepoPath) -> Result<Arc<dyn DiskFile>> {
        let file = self.run("open for writing", path, |root, path| root.open_file(path, true)).await?;
        Ok(self.handle(path, file))
    }

    async fn create(&self, path: &RepoPath) -> Result<Arc<dyn DiskFile>> {
        let file = self.run("create", path, |root, path| root.create(path)).await?;
        Ok(self.handle(path, file))
    }

    async fn list(&self, dir: &RepoPath) -> Result<Vec<Entry>> {
        self.run("list", dir, |root, path| root.list(path)).await
    }

    async fn stat(&self, path: &RepoPath) -> Result<Stat> {
        self.run("look at", path, |root, path| root.stat(path)).await
    }

    async fn write_new(&self, path: &RepoPath, data: Bytes, durability: Durability) -> Result<()> {
        self.run("create", path, move |root, path| root.put(path, &data, true, durability)).await
    }

    async fn replace(&self, path: &RepoPath, data: Bytes, durability: Durability) -> Result<()> {
        self.run("write", path, move |root, path| root.put(path, &data, false, durability)).await
    }

    async fn rename(&self, from: &RepoPath, to: &RepoPath, durability: Durability) -> Result<()> {
        let to = to.clone();
        self.run("rename", from, move |root, from| root.rename(from, &to, durability)).await
    }

    async fn share(&self, from: &RepoPath, to: &RepoPath) -> Result<()> {
        let to = to.clone();
        self.run("link", from, move |root, from| root.share(from, &to)).await
    }

    async fn remove(&self, path: &RepoPath, durability: Durability) -> Result<()> {
        self.run("remove", path, move |root, path| root.remove(path, durability)).await
    }

    async fn remove_tree(&self, path: &RepoPath) -> Result<()> {
        self.run("remove", path, |root, path| root.remove_tree(path)).await
    }

    async fn make_dir(&self, path: &RepoPath, durability: Durability) -> Result<()> {
        self.run("make the directory", path, move |root, path| root.make_dir(path, durability)).await
    }

    async fn make_lock(&self, path: &RepoPath) -> Result<()> {
        self.run("lock", path, |root, path| root.make_lock(path)).await
    }

    async fn remove_lock(&self, path: &RepoPath) -> Result<()> {
        self.run("unlock", path, |root, path| root.remove_lock(path)).await
    }

    async fn set_modified(&self, path: &RepoPath, time: SystemTime) -> Result<()> {
        self.run("touch", path, move |root, path| root.set_modified(path, time)).await
    }

    async fn sync(&self) -> Result<()> {
        self.run("sync", &RepoPath::root(), |root, _| root.sync()).await
    }

    async fn space(&self) -> Result<Option<Space>> {
        self.run("measure", &RepoPath::root(), |root, _| root.space().map(Some)).await
    }
}

#[derive(Debug)]
struct LocalFile {
    file: Arc<File>,
    path: RepoPath,
    root: Arc<Root>,
}

impl LocalFile {
    async fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&File) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let file = self.file.clone();
        blocking(operation, self.path.absolute(), Some(self.root.clone()), move || work(&file)).await
    }
}

#[async_trait]
impl DiskFile for LocalFile {
    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        self.run("read", move |file| durable::read_at(file, offset, len)).await
    }

    async fn write_at(&self, offset: u64, parts: Vec<Bytes>) -> Result<()> {
        self.run("write", move |file| durable::write_at(file, offset, &parts)).await
    }

    async fn length(&self) -> Result<u64> {
        self.run("look at", |file| Ok(file.metadata()?.len())).await
    }

    async fn sync(&self) -> Result<()> {
        self.run("sync", |file| file.sync_data()).await
    }
}
