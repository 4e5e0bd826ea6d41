//! A repository, open: the entry to everything in this crate.

use std::sync::Arc;

use api::JobMode;
use storage::{Durability, RemoteUrl, Space, Storage};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::clean::{self, CleanOptions, CleanPlan, Cleaned};
use crate::disk::chain::DiskChain;
use crate::disk::codec::Filter;
use crate::disk::writer::{Base, DiskWriter, NewDisk};
use crate::layout::{BACKUPS, disk_stem, vm_dir};
use crate::merge::MergeSettings;
use crate::verify::{self, Verification};
use crate::xva_file::{CHECKSUM, XvaWriter};
use crate::{
    BackupMetadata, BackupTime, DiskLayout, Error, Lineage, Listing, Point, PointId, Progress, Result, VmLock, cache, listing,
};

/// A backup repository. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Repository {
    storage: Arc<dyn Storage>,
    layout: DiskLayout,
    merges: MergeSettings,
}

/// What a search for the base of a delta found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BaseSearch {
    /// A disk to build on.
    Found(Base),
    /// None: the disk has to be written as a key.
    None {
        /// Why, for the journal.
        reason: String,
    },
}

impl Repository {
    /// A repository on a storage that is open, with disks written in the form `layout`.
    pub fn open(storage: Arc<dyn Storage>, layout: DiskLayout) -> Self {
        Self { storage, layout, merges: MergeSettings::default() }
    }

    /// Opens the storage a remote URL names; the URL's options say how disks are written.
    ///
    /// # Errors
    /// [`Error::Storage`] when the storage cannot be opened, or is of a sort that is not supported.
    pub async fn open_url(url: &RemoteUrl) -> Result<Self> {
        let layout = if url.use_vhd_directory() { DiskLayout::Directory } else { DiskLayout::File };
        Ok(Self::open(storage::open(url, storage::OpenOptions::default()).await?, layout))
    }

    /// The same repository with other settings for merges.
    #[must_use]
    pub fn with_merges(mut self, merges: MergeSettings) -> Self {
        self.merges = merges;
        self
    }

    /// How disks are written.
    pub fn layout(&self) -> DiskLayout {
        self.layout
    }

    /// Where it is kept.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Room, when the storage can tell.
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub async fn space(&self) -> Result<Option<Space>> {
        Ok(self.storage.space().await?)
    }

    /// uuids of the VMs that have a directory, sorted.
    ///
    /// # Errors
    /// [`Error::Storage`]: a listing that fails is an error, never an empty repository.
    pub async fn vm_dirs(&self) -> Result<Vec<String>> {
        listing::vms(&*self.storage).await
    }

    /// The restore points of a VM, oldest first; of an unknown VM none. Exact whatever state XO's cache is in.
    ///
    /// # Errors
    /// [`Error::Storage`] when the directory cannot be listed. A metadata file that cannot be read is no error but a
    /// part of the listing.
    pub async fn list(&self, vm: &str) -> Result<Listing> {
        listing::list(&self.storage, vm, true).await
    }

    /// The metadata of a restore point.
    ///
    /// # Errors
    /// [`Error::Storage`], [`Error::Unreadable`].
    pub async fn metadata(&self, id: &PointId) -> Result<BackupMetadata> {
        listing::read(&*self.storage, id).await
    }

    /// Takes the lock of a VM's directory, which is made when it does not exist.
    ///
    /// # Errors
    /// [`Error::Locked`] when somebody holds it: there is no waiting here.
    pub async fn lock(&self, vm: &str) -> Result<VmLock> {
        let dir = vm_dir(vm)?;
        self.storage.make_dir(&dir, Durability::Now).await?;
        let path = dir.parent().unwrap_or_default().join(&format!("{}.lock", dir.name()))?;
        VmLock::take(self.storage.clone(), vm, path).await
    }

    /// Searches the disk a delta can build on: the one that holds snapshot `snapshot` of the lineage, with a whole chain
    /// in the form this repository writes (backup-repository.md §4.4, H3, H9).
    ///
    /// `time` is that of the new restore point, `virtual_size` that of the disk now, bytes.
    ///
    /// # Errors
    /// [`Error::Storage`] when the lineage cannot be listed. A damaged chain is no error but no base.
    pub async fn find_base(&self, lineage: &Lineage, snapshot: Uuid, virtual_size: u64, time: BackupTime) -> Result<BaseSearch> {
        let none = |reason: String| Ok(BaseSearch::None { reason });
        let dir = lineage.dir()?;
        let entries = match self.storage.list(&dir).await {
            Ok(entries) => entries,
            Err(error) if error.is_not_found() => return none("this disk has no backup of this job yet".into()),
            Err(error) => return Err(error.into()),
        };
        let stem = time.stem();
        let mut why = format!("no backup of this job holds the snapshot {snapshot}");
        // Entries are sorted: the newest first, none that would not sort before the new disk.
        for entry in entries.iter().rev() {
            let visible = entry.name.ends_with(".vhd") && !entry.name.starts_with('.');
            if !visible || disk_stem(&entry.name) >= stem.as_str() {
                continue;
            }
            let path = dir.join(&entry.name)?;
            let chain = match DiskChain::open(&self.storage, &path).await {
                Ok(chain) => chain,
                Err(error) if error.is_doubt() => return Err(error),
                Err(error) => {
                    why = format!("the chain of {} is damaged: {}", entry.name, error.chain());
                    continue;
                }
            };
            if chain.unique_id() != snapshot {
                continue;
            }
            if chain.virtual_size() != virtual_size && self.layout == DiskLayout::Directory {
                return none(format!("the disk had {} bytes and has {virtual_size} now", chain.virtual_size()));
            }
            if chain.virtual_size() > virtual_size {
                return none(format!("the disk shrank from {} to {virtual_size} bytes", chain.virtual_size()));
            }
            let fits = match self.layout {
                DiskLayout::File => chain.all_files(),
                DiskLayout::Directory => chain.all_directories(Filter::Brotli),
            };
            if !fits {
                return none(format!("{} is stored in another form than this remote asks for", entry.name));
            }
            return Ok(BaseSearch::Found(Base { name: entry.name.clone(), uuid: snapshot, length: chain.length() }));
        }
        none(why)
    }

    /// Begins a disk. It is invisible to listings until a metadata file names it, and a leftover to the next clean if
    /// none ever does.
    ///
    /// # Errors
    /// [`Error::Refused`] for identities and times that would break a chain, [`Error::LockLost`], [`Error::Storage`].
    pub async fn create_disk(&self, lock: &VmLock, new: NewDisk) -> Result<DiskWriter> {
        lock.check(&new.lineage.vm)?;
        DiskWriter::create(self.storage.clone(), self.layout, new).await
    }

    /// Opens a disk of a restore point with its ancestors; `relative` as the metadata's `vhds` has it.
    ///
    /// # Errors
    /// See [`Error`]: a missing member, a damaged one, a wrong parent.
    pub async fn open_disk(&self, id: &PointId, relative: &str) -> Result<DiskChain> {
        DiskChain::open(&self.storage, &vm_dir(id.vm())?.resolve(relative)?).await
    }

    /// Begins the archive of a full backup.
    ///
    /// # Errors
    /// [`Error::PointExists`], [`Error::LockLost`], [`Error::Storage`].
    pub async fn create_xva(&self, lock: &VmLock, time: BackupTime) -> Result<XvaWriter> {
        let id = PointId::new(lock.vm(), time)?;
        lock.check(id.vm())?;
        XvaWriter::create(self.storage.clone(), &id).await
    }

    /// Opens the archive of a full backup for reading: the file and its length in bytes.
    ///
    /// # Errors
    /// [`Error::Storage`]; [`Error::Unreadable`] when the metadata names no archive.
    pub async fn open_xva(&self, id: &PointId, metadata: &BackupMetadata) -> Result<(Arc<dyn storage::DiskFile>, u64)> {
        let Some(xva) = &metadata.xva else {
            return Err(Error::Unreadable { path: id.to_string(), reason: "it names no archive".into() });
        };
        let file = self.storage.open(&vm_dir(id.vm())?.resolve(xva)?).await?;
        let length = file.length().await?;
        Ok((file, length))
    }

    /// Publishes a restore point whose disks or archive are finished: everything written so far is made durable, then
    /// the metadata is written, exclusively and durably, then the cache. Before, there is no restore point; after, there
    /// is a whole one.
    ///
    /// # Errors
    /// [`Error::Incomplete`] for metadata that would break a reader, [`Error::PointExists`], [`Error::LockLost`],
    /// [`Error::Storage`].
    pub async fn commit(&self, lock: &VmLock, metadata: &BackupMetadata) -> Result<PointId> {
        metadata.check()?;
        let vm = metadata.vm_uuid().unwrap_or_default();
        lock.check(vm)?;
        let id = PointId::new(vm, BackupTime::from_millis(metadata.timestamp)?)?;
        let bytes = metadata.to_bytes();
        if bytes.len() as u64 > crate::MAX_METADATA {
            return Err(Error::Incomplete(format!("it would be larger than {} bytes", crate::MAX_METADATA)));
        }
        self.check_data(&id, metadata).await?;
        self.storage.sync().await?;
        lock.check(vm)?;
        let entries = self.open_cache(vm).await?;
        self.storage.write_new(&id.path(), bytes.into(), Durability::Now).await.map_err(|error| {
            match error.is_already_exists() {
                true => Error::PointExists(id.to_string()),
                false => error.into(),
            }
        })?;
        self.close_cache(vm, entries, |entries| {
            entries.insert(id.to_string(), cache::entry(&id, metadata));
        })
        .await;
        Ok(id)
    }

    /// Everything the metadata names must open (H15).
    async fn check_data(&self, id: &PointId, metadata: &BackupMetadata) -> Result<()> {
        for (_, relative) in metadata.disks() {
            self.open_disk(id, relative).await?;
        }
        if metadata.mode == JobMode::Full {
            let (_, length) = self.open_xva(id, metadata).await?;
            if length != metadata.size {
                let what = format!("size is {}, the archive has {length} bytes", metadata.size);
                return Err(Error::Incomplete(what));
            }
        }
        Ok(())
    }

    /// Removes restore points of the lock's VM, newest first: metadata, then for full backups archive and checksum.
    /// Disks of delta backups are left to [`Repository::clean`]. One that does not exist is none any more.
    ///
    /// # Errors
    /// [`Error::Unreadable`] for metadata that cannot be read: it is not known what it refers to. [`Error::LockLost`],
    /// [`Error::Storage`].
    pub async fn remove(&self, lock: &VmLock, ids: &[PointId]) -> Result<()> {
        let vm = lock.vm();
        let mut points = Vec::new();
        for id in ids {
            lock.check(id.vm())?;
            match self.metadata(id).await {
                Ok(metadata) => points.push((id, Some(metadata))),
                Err(error) if error.is_not_found() => points.push((id, None)),
                Err(error) => return Err(error),
            }
        }
        points.sort_by(|a, b| b.0.cmp(a.0));
        let entries = self.open_cache(vm).await?;
        for (id, metadata) in &points {
            lock.check(vm)?;
            self.storage.remove(&id.path(), Durability::Now).await?;
            let Some(xva) = metadata.as_ref().and_then(|metadata| metadata.xva.as_deref()) else { continue };
            // Only what stands in the VM's own directory and looks like an archive is this point's to remove.
            let path = vm_dir(vm)?.resolve(xva)?;
            if path.parent() == Some(vm_dir(vm)?) && path.name().ends_with(".xva") {
                self.storage.remove(&path, Durability::AtSync).await?;
                self.storage.remove(&vm_dir(vm)?.join(&format!("{}{CHECKSUM}", path.name()))?, Durability::AtSync).await?;
            }
        }
        self.close_cache(vm, entries, |entries| points.iter().for_each(|(id, _)| drop(entries.remove(&id.to_string())))).await;
        Ok(())
    }

    /// Removes one restore point as a user asks: locked, with its data, without merging (backup-repository.md §4.7).
    ///
    /// # Errors
    /// As [`Repository::lock`], [`Repository::remove`], [`Repository::clean`].
    pub async fn remove_point(&self, id: &PointId) -> Result<Cleaned> {
        self.metadata(id).await?;
        let lock = self.lock(id.vm()).await?;
        let removed = async {
            self.remove(&lock, std::slice::from_ref(id)).await?;
            self.clean(&lock, CleanOptions { merge: false, remove: true }, &(), &CancellationToken::new()).await
        };
        let removed = removed.await;
        lock.release().await?;
        removed
    }

    /// The restore points retention counts together: same VM, mode and schedule (backup-repository.md §4.7).
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub async fn retained(&self, vm: &str, mode: JobMode, schedule_id: &str) -> Result<Vec<Point>> {
        let mut points = self.list(vm).await?.points;
        points.retain(|point| point.metadata.mode == mode && point.metadata.schedule_id == schedule_id);
        Ok(points)
    }

    /// What [`Repository::clean`] would do now.
    ///
    /// # Errors
    /// [`Error::Storage`] when something cannot be listed.
    pub async fn plan_clean(&self, vm: &str) -> Result<CleanPlan> {
        clean::plan(&self.storage, vm).await
    }

    /// Completes interrupted merges, merges what retention freed, removes what nothing refers to, corrects metadata and
    /// cache. Must not run beside a write of the same holder.
    ///
    /// # Errors
    /// [`Error::Cancelled`]; a later clean goes on. [`Error::Storage`] when something cannot be listed: nothing is
    /// removed then.
    pub async fn clean(
        &self,
        lock: &VmLock,
        options: CleanOptions,
        progress: &dyn Progress,
        cancel: &CancellationToken,
    ) -> Result<Cleaned> {
        clean::clean(&self.storage, lock, options, self.merges, progress, cancel).await
    }

    /// Reads a restore point back. Faults are a result; an error means that it could not be looked at.
    ///
    /// # Errors
    /// [`Error::Cancelled`], [`Error::Storage`], [`Error::Unreadable`].
    pub async fn verify(&self, id: &PointId, progress: &dyn Progress, cancel: &CancellationToken) -> Result<Verification> {
        verify::verify(&self.storage, id, &self.metadata(id).await?, progress, cancel).await
    }

    /// The cache's entries, with the cache itself out of the way of the change that follows.
    async fn open_cache(&self, vm: &str) -> Result<Option<cache::Entries>> {
        let entries = cache::read(&*self.storage, vm).await?;
        cache::invalidate(&*self.storage, vm).await?;
        Ok(entries)
    }

    /// Writes the cache as it is after a change. The change has happened: a cache that cannot be written is only missed.
    async fn close_cache(&self, vm: &str, entries: Option<cache::Entries>, change: impl FnOnce(&mut cache::Entries)) {
        let written = async {
            let mut entries = match entries {
                Some(entries) => entries,
                None => {
                    let listing = listing::list(&self.storage, vm, false).await?;
                    if !listing.unreadable.is_empty() {
                        return Ok(());
                    }
                    let points = listing.points.iter();
                    points.map(|point| (point.id.to_string(), cache::entry(&point.id, &point.metadata))).collect()
                }
            };
            change(&mut entries);
            cache::write(&*self.storage, vm, &entries).await
        };
        if let Err(error) = written.await {
            tracing::warn!(directory = format!("/{BACKUPS}/{vm}"), error = error.chain(), "no listing cache is left");
        }
    }
}
