//! Writing a new disk: blocks in any order, many at a time, visible under its name only when it is whole.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use bytes::Bytes;
use storage::{DiskFile, Durability, RepoPath, Storage};
use uuid::Uuid;
use vhd::{BLOCK_SIZE, BlockBitmap, BlockTable, DiskType, DynamicHeader, FileLayout, Footer, ParentLink};

use super::codec::Filter;
use super::directory::VhdDirectory;
use super::file::{VhdFile, full_bitmap};
use super::{Disk, Trust, format};
use crate::layout::{ALIAS, DATA};
use crate::{BackupTime, DiskLayout, Error, Lineage, Result};

/// What a new delta builds on; found by [`crate::Repository::find_base`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// File name in the lineage directory.
    pub(crate) name: String,
    /// uuid of the snapshot VDI it holds.
    pub(crate) uuid: Uuid,
    /// Disks in its chain.
    pub(crate) length: usize,
}

impl Base {
    /// uuid of the snapshot VDI it holds.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// File name of the disk in its lineage.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Disks in its chain, the key included.
    pub fn chain_length(&self) -> usize {
        self.length
    }
}

/// What is to be written.
#[derive(Debug, Clone)]
pub struct NewDisk {
    /// Where.
    pub lineage: Lineage,
    /// The restore point's time: the disk's name.
    pub time: BackupTime,
    /// Size of the disk, bytes.
    pub virtual_size: u64,
    /// uuid of the snapshot VDI: XAPI's, version 4. Others break XO's links (H2) and are refused.
    pub uuid: Uuid,
    /// What it is a delta to; none for a key.
    pub base: Option<Base>,
}

/// A disk that is whole and has its name. It becomes part of a restore point with [`crate::Repository::commit`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishedDisk {
    /// The disk, or its alias.
    pub path: RepoPath,
    /// The path as metadata holds it (`vhds`): `vdis/<job>/<vdi>/<name>`.
    pub relative: String,
    /// Virtual file size, bytes: what metadata sums up in `size`.
    pub size: u64,
    /// Blocks written.
    pub blocks: u32,
    /// Whether it is a delta.
    pub differencing: bool,
}

/// A disk being written. All-zero blocks are the caller's to leave out of a key, and to write in a delta.
///
/// Each call holds its block until it is written; a directory compresses at most eight blocks at once, process-wide.
/// Nothing else is kept but four bytes (a file) or one bit (a directory) a block.
#[derive(Debug)]
pub struct DiskWriter {
    storage: Arc<dyn Storage>,
    path: RepoPath,
    relative: String,
    footer: Footer,
    header: DynamicHeader,
    failed: AtomicBool,
    form: Form,
}

#[derive(Debug)]
enum Form {
    File { file: Arc<dyn DiskFile>, temporary: RepoPath, layout: FileLayout, slots: AtomicU32, table: Mutex<BlockTable> },
    Directory { dir: RepoPath, filter: Filter, bitmap: Mutex<BlockBitmap> },
}

impl DiskWriter {
    pub(crate) async fn create(storage: Arc<dyn Storage>, layout: DiskLayout, new: NewDisk) -> Result<Self> {
        let lineage = new.lineage.dir()?;
        let stem = new.time.stem();
        let name = match layout {
            DiskLayout::File => format!("{stem}.vhd"),
            DiskLayout::Directory => format!("{stem}{ALIAS}"),
        };
        let path = lineage.join(&name)?;
        let refused = |what: String| Error::Refused { path: path.absolute(), what };
        if !vhd::is_linkable_id(new.uuid) || new.uuid.is_nil() {
            return Err(refused(format!("{} is not a UUID that XO accepts as a disk's identity", new.uuid)));
        }
        if let Some(base) = &new.base
            && base.name >= name
        {
            return Err(refused(format!("its base {} does not sort before it; is the clock right?", base.name)));
        }
        match storage.stat(&path).await {
            Ok(_) => return Err(refused("a disk of that name exists already".into())),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
        let kind = if new.base.is_some() { DiskType::Differencing } else { DiskType::Dynamic };
        let footer = Footer::new(new.virtual_size, new.uuid, kind, new.time.footer_seconds());
        let parent = new.base.map(|base| ParentLink { unique_id: base.uuid, name: base.name });
        let header = DynamicHeader::for_disk(&footer, parent).map_err(format(&path))?;
        storage.make_dir(&lineage, Durability::AtSync).await?;
        let entries = header.max_table_entries;
        let form = match layout {
            DiskLayout::File => {
                let temporary = lineage.join(&format!(".{}.{name}", BackupTime::now().millis()))?;
                let file = storage.create(&temporary).await?;
                let table = Mutex::new(BlockTable::new(entries).map_err(format(&path))?);
                Form::File { file, temporary, layout: FileLayout::new(entries), slots: AtomicU32::new(0), table }
            }
            DiskLayout::Directory => {
                let dir = lineage.join(DATA)?.join(&format!("{stem}.vhd"))?;
                // Nothing claims a directory without alias: what is there is left over.
                storage.remove_tree(&dir).await?;
                storage.make_dir(&dir, Durability::AtSync).await?;
                let bitmap = Mutex::new(BlockBitmap::new(entries).map_err(format(&path))?);
                Form::Directory { dir, filter: Filter::Brotli, bitmap }
            }
        };
        let relative = new.lineage.relative(&name);
        Ok(Self { storage, path, relative, footer, header, failed: AtomicBool::new(false), form })
    }

    /// Blocks the disk has room for.
    pub fn block_count(&self) -> u32 {
        self.header.max_table_entries
    }

    /// Size of the disk, bytes.
    pub fn virtual_size(&self) -> u64 {
        self.footer.current_size
    }

    /// Writes block `index`: 2 MiB, or less for the last one, which is then padded with zeros.
    ///
    /// # Errors
    /// [`Error::Refused`] for a block the disk does not have or of a wrong length; [`Error::Storage`]. After a
    /// failed write the disk can only be aborted.
    pub async fn write_block(&self, index: u32, data: Bytes) -> Result<()> {
        let refused = |what: String| Error::Refused { path: self.path.absolute(), what };
        if index >= self.block_count() {
            return Err(refused(format!("it has no block {index}, only {}", self.block_count())));
        }
        let expected = vhd::block_length(index, self.virtual_size());
        if data.len() != BLOCK_SIZE && data.len() != expected {
            return Err(refused(format!("block {index} has {} bytes instead of {expected}", data.len())));
        }
        let data = vhd::pad_block(data);
        let written = match &self.form {
            Form::File { file, layout, slots, table, .. } => {
                let sector = {
                    let mut table = locked(table);
                    match table.sector(index) {
                        Some(sector) => sector,
                        None => {
                            let sector = layout.slot_sector(slots.fetch_add(1, Ordering::Relaxed)).map_err(format(&self.path))?;
                            table.set(index, sector).map_err(format(&self.path))?;
                            sector
                        }
                    }
                };
                file.write_at(u64::from(sector) * vhd::SECTOR as u64, vec![full_bitmap(), data]).await.map_err(Error::from)
            }
            Form::Directory { dir, filter, bitmap } => {
                let path = dir.resolve(&vhd::directory::block_path(index))?;
                let chunk = filter.encode(&path, vec![full_bitmap(), data]).await?;
                let written = self.storage.replace(&path, chunk, Durability::AtSync).await;
                locked(bitmap).insert(index).map_err(format(&self.path))?;
                written.map_err(Error::from)
            }
        };
        self.failed.fetch_or(written.is_err(), Ordering::Relaxed);
        written
    }

    /// Completes the disk, reads its structures back, and gives it its name. The data becomes durable with the commit of
    /// the restore point, all disks in one go.
    ///
    /// # Errors
    /// Whatever fails; what was written is removed then.
    pub async fn finish(self) -> Result<FinishedDisk> {
        match self.publish().await {
            Ok(finished) => Ok(finished),
            Err(error) => {
                self.clear().await;
                Err(error)
            }
        }
    }

    /// Removes what was written.
    pub async fn abort(self) {
        self.clear().await;
    }

    async fn clear(&self) {
        let removed = match &self.form {
            Form::File { temporary, .. } => self.storage.remove(temporary, Durability::AtSync).await,
            Form::Directory { dir, .. } => match self.storage.remove(&self.path, Durability::AtSync).await {
                Ok(()) => self.storage.remove_tree(dir).await,
                Err(error) => Err(error),
            },
        };
        if let Err(error) = removed {
            tracing::warn!(%error, "a part of a disk stays behind until the next clean");
        }
    }

    async fn publish(&self) -> Result<FinishedDisk> {
        if self.failed.load(Ordering::Relaxed) {
            return Err(Error::Refused { path: self.path.absolute(), what: "one of its blocks could not be written".into() });
        }
        let (footer, header) = (Bytes::copy_from_slice(&self.footer.to_bytes()), Bytes::copy_from_slice(&self.header.to_bytes()));
        let disk = match &self.form {
            Form::File { file, temporary, layout, slots, table } => {
                let blocks = slots.load(Ordering::Relaxed);
                let table = Bytes::from(locked(table).to_bytes());
                file.write_at(layout.footer_offset(blocks), vec![footer.clone()]).await?;
                file.write_at(0, vec![footer, header, table]).await?;
                let disk = VhdFile::open(&self.storage, temporary, Trust::Whole).await?;
                self.storage.rename(temporary, &self.path, Durability::AtSync).await?;
                Disk::File(disk)
            }
            Form::Directory { dir, filter, bitmap } => {
                let bat = Bytes::from(locked(bitmap).to_bytes());
                let put = async |name: &str, data: Bytes| -> Result<()> {
                    let path = dir.join(name)?;
                    let chunk = filter.encode(&path, vec![data]).await?;
                    Ok(self.storage.replace(&path, chunk, Durability::AtSync).await?)
                };
                put(vhd::directory::FOOTER, footer).await?;
                put(vhd::directory::HEADER, header).await?;
                put(vhd::directory::BAT, bat).await?;
                let filters = dir.join(vhd::directory::CHUNK_FILTERS)?;
                self.storage.replace(&filters, Bytes::from_static(filter.declaration().as_bytes()), Durability::AtSync).await?;
                let disk = VhdDirectory::read(&self.storage, &self.path, dir.clone(), Trust::Whole).await?;
                let target = dir.relative_to(&self.path.parent().unwrap_or_default());
                self.storage.write_new(&self.path, target.into(), Durability::AtSync).await?;
                Disk::Directory(disk)
            }
        };
        Ok(FinishedDisk {
            path: self.path.clone(),
            relative: self.relative.clone(),
            size: disk.file_size(),
            blocks: disk.blocks().len() as u32,
            differencing: disk.is_differencing(),
        })
    }
}

/// No panic happens while these are held; a poisoned one would still be whole.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
