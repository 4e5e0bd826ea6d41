//! The parent of a merge: what takes the blocks.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use storage::{Durability, Storage};
use vhd::{BlockBitmap, FOOTER_SIZE, FileLayout, Footer, SECTOR, STORED_BLOCK};

use crate::disk::chain::DiskChain;
use crate::disk::directory::VhdDirectory;
use crate::disk::file::{VhdFile, full_bitmap};
use crate::disk::{Disk, format};
use crate::{Error, Result};

pub(super) enum Target {
    File(FileTarget),
    Directory(DirectoryTarget),
}

impl Target {
    pub fn new(storage: Arc<dyn Storage>, parent: Disk, children: &DiskChain) -> Self {
        match parent {
            Disk::File(disk) => Self::File(FileTarget { disk, slots: BTreeMap::new(), storage }),
            Disk::Directory(disk) => {
                // Chunks can be shared as they are when all are compressed alike (H6).
                let share = children.all_directories(disk.filter);
                Self::Directory(DirectoryTarget { disk, share })
            }
        }
    }

    /// Makes room for `entries` blocks, of which `todo` are going to come.
    pub async fn prepare(&mut self, entries: u32, todo: &[u32]) -> Result<()> {
        match self {
            Self::File(file) => file.prepare(entries, todo).await,
            Self::Directory(directory) => directory.prepare(entries).await,
        }
    }

    /// Takes one block from the children. The table does not know of it before the next checkpoint.
    pub async fn take_block(&self, children: &DiskChain, index: u32) -> Result<()> {
        match self {
            Self::File(file) => file.take_block(children, index).await,
            Self::Directory(directory) => directory.take_block(children, index).await,
        }
    }

    /// Makes the blocks durable, then the table that lists them.
    pub async fn checkpoint(&mut self, blocks: &[u32]) -> Result<()> {
        match self {
            Self::File(file) => file.checkpoint(blocks).await,
            Self::Directory(directory) => directory.checkpoint(blocks).await,
        }
    }

    /// Gives the parent the target's identity and size, durably; its own parent stays.
    pub async fn adopt(&mut self, child: &Footer) -> Result<()> {
        let adopted = |own: &Footer| Footer {
            timestamp: child.timestamp,
            original_size: child.original_size,
            current_size: child.current_size,
            geometry: child.geometry,
            unique_id: child.unique_id,
            ..own.clone()
        };
        match self {
            Self::File(file) => {
                let footer = Bytes::copy_from_slice(&adopted(&file.disk.footer).to_bytes());
                // The end first: readers of an interrupted merge go by the beginning.
                file.disk.file.write_at(file.disk.end, vec![footer.clone()]).await?;
                file.disk.file.sync().await?;
                file.disk.file.write_at(0, vec![footer]).await?;
                Ok(file.disk.file.sync().await?)
            }
            Self::Directory(directory) => {
                let footer = adopted(&directory.disk.footer).to_bytes();
                directory.disk.storage.sync().await?;
                directory.put(vhd::directory::FOOTER, &footer).await
            }
        }
    }

    pub fn file_size(&self) -> u64 {
        match self {
            Self::File(file) => file.disk.file_size(),
            Self::Directory(directory) => directory.disk.file_size(),
        }
    }
}

pub(super) struct FileTarget {
    disk: VhdFile,
    /// Sectors given to blocks that are not in the table yet.
    slots: BTreeMap<u32, u32>,
    storage: Arc<dyn Storage>,
}

impl FileTarget {
    async fn prepare(&mut self, entries: u32, todo: &[u32]) -> Result<()> {
        let disk = &mut self.disk;
        let refused = |what: &str| Error::Refused { path: disk.path.absolute(), what: what.to_owned() };
        if !self.storage.capabilities().can_range_write {
            return Err(refused("the storage cannot patch files"));
        }
        let entries = entries.max(disk.header.max_table_entries);
        let table_end = disk.header.table_offset + FileLayout::new(entries).table_size();
        if !table_end.is_multiple_of(SECTOR as u64) {
            return Err(refused("its block table does not begin at a sector"));
        }
        // A longer table may reach into the first blocks: those move to the end.
        let in_the_way: Vec<u32> = match entries > disk.header.max_table_entries {
            true => disk
                .table
                .iter()
                .filter(|(_, sector)| u64::from(*sector) * (SECTOR as u64) < table_end)
                .map(|(index, _)| index)
                .collect(),
            false => Vec::new(),
        };
        let old_end = disk.end;
        let data_end = disk.table.end_of_data(disk.header.table_offset).max(table_end);
        let appended: Vec<u32> =
            in_the_way.iter().copied().chain(todo.iter().copied().filter(|index| disk.table.sector(*index).is_none())).collect();
        let mut sector = data_end / SECTOR as u64;
        let mut slots = BTreeMap::new();
        for index in &appended {
            // The footer needs a sector number too, and all ones mean absence.
            let place = u32::try_from(sector).ok().filter(|place| *place < u32::MAX - (STORED_BLOCK / SECTOR) as u32);
            slots.insert(*index, place.ok_or_else(|| refused("the merged file would be too long for 32-bit sector numbers"))?);
            sector += (STORED_BLOCK / SECTOR) as u64;
        }
        // The file always ends in a footer, so it grows by writing one.
        let end = (sector * SECTOR as u64).max(old_end.next_multiple_of(SECTOR as u64));
        let footer = Bytes::copy_from_slice(&disk.footer.to_bytes());
        disk.file.write_at(end, vec![footer]).await?;
        if old_end < data_end && end > old_end {
            // A foreign file whose last block was cut at its end: the old footer must not become content of it.
            let length = (data_end.min(end) - old_end) as usize;
            disk.file.write_at(old_end, vec![vec![0; length].into()]).await?;
        }
        disk.file.sync().await?;
        disk.end = end;
        for index in &in_the_way {
            let data = disk.read_block(*index).await?.ok_or_else(|| refused("a block disappeared from its table"))?;
            disk.write_at_sector(slots[index], data).await?;
        }
        self.slots = slots;
        if !in_the_way.is_empty() {
            self.checkpoint(&in_the_way).await?;
        }
        self.grow_table(entries).await
    }

    /// The new part of the table is there before the header speaks of it.
    async fn grow_table(&mut self, entries: u32) -> Result<()> {
        let disk = &mut self.disk;
        if entries <= disk.header.max_table_entries {
            return Ok(());
        }
        disk.table.grow(entries).map_err(format(&disk.path))?;
        disk.header.max_table_entries = entries;
        disk.file.write_at(disk.header.table_offset, vec![disk.table.to_bytes().into()]).await?;
        disk.file.sync().await?;
        disk.file.write_at(FOOTER_SIZE as u64, vec![Bytes::copy_from_slice(&disk.header.to_bytes())]).await?;
        Ok(disk.file.sync().await?)
    }

    async fn take_block(&self, children: &DiskChain, index: u32) -> Result<()> {
        let sector = self.slots.get(&index).copied().or_else(|| self.disk.table.sector(index));
        let missing = || Error::Damaged { path: self.disk.path.absolute(), what: format!("block {index} has no place") };
        let data = children.read_block(index).await?.ok_or_else(missing)?;
        self.disk.write_at_sector(sector.ok_or_else(missing)?, data).await
    }

    async fn checkpoint(&mut self, blocks: &[u32]) -> Result<()> {
        let disk = &mut self.disk;
        disk.file.sync().await?;
        let (mut first, mut last) = (u32::MAX, 0);
        for index in blocks {
            if let Some(sector) = self.slots.remove(index) {
                disk.table.set(*index, sector).map_err(format(&disk.path))?;
                (first, last) = (first.min(*index), last.max(*index));
            }
        }
        if first > last {
            return Ok(());
        }
        // Whole sectors of the table, which the medium writes whole or not at all.
        let per_sector = (SECTOR / 4) as u32;
        let range = (first / per_sector) as usize * SECTOR..(last / per_sector + 1) as usize * SECTOR;
        let table = Bytes::from(disk.table.to_bytes());
        let range = range.start..range.end.min(table.len());
        disk.file.write_at(disk.header.table_offset + range.start as u64, vec![table.slice(range)]).await?;
        Ok(disk.file.sync().await?)
    }
}

pub(super) struct DirectoryTarget {
    disk: VhdDirectory,
    share: bool,
}

impl DirectoryTarget {
    /// Unlike XO's, our merge writes a header that fits a disk that grew (H3).
    async fn prepare(&mut self, entries: u32) -> Result<()> {
        if entries <= self.disk.header.max_table_entries {
            return Ok(());
        }
        let mut bitmap = BlockBitmap::new(entries).map_err(format(&self.disk.dir))?;
        for index in self.disk.bitmap.iter() {
            bitmap.insert(index).map_err(format(&self.disk.dir))?;
        }
        self.disk.bitmap = bitmap;
        self.disk.header.max_table_entries = entries;
        let header = self.disk.header.to_bytes();
        self.put(vhd::directory::HEADER, &header).await
    }

    async fn take_block(&self, children: &DiskChain, index: u32) -> Result<()> {
        match self.copy_block(children, index).await {
            Err(missing) if missing.is_not_found() => {
                // XO moves blocks: what a child lost, the parent has, if it can be read.
                self.disk.read_block_file(index).await.map_err(|_| missing)?;
                Ok(())
            }
            copied => copied,
        }
    }

    async fn copy_block(&self, children: &DiskChain, index: u32) -> Result<()> {
        let path = self.disk.block_path(index)?;
        let owner = children.members().iter().find(|disk| disk.has_block(index));
        if let (true, Some(Disk::Directory(child))) = (self.share, owner) {
            return Ok(self.disk.storage.share(&child.block_path(index)?, &path).await?);
        }
        let missing = || Error::Damaged { path: path.absolute(), what: "no child has the block".into() };
        let data = children.read_block(index).await?.ok_or_else(missing)?;
        let chunk = self.disk.filter.encode(&path, vec![full_bitmap(), data]).await?;
        Ok(self.disk.storage.replace(&path, chunk, Durability::AtSync).await?)
    }

    async fn checkpoint(&mut self, blocks: &[u32]) -> Result<()> {
        self.disk.storage.sync().await?;
        for index in blocks {
            self.disk.bitmap.insert(*index).map_err(format(&self.disk.dir))?;
        }
        let bitmap = self.disk.bitmap.to_bytes();
        self.put(vhd::directory::BAT, &bitmap).await
    }

    async fn put(&self, name: &str, data: &[u8]) -> Result<()> {
        let path = self.disk.dir.join(name)?;
        let chunk = self.disk.filter.encode(&path, vec![Bytes::copy_from_slice(data)]).await?;
        Ok(self.disk.storage.replace(&path, chunk, Durability::Now).await?)
    }
}
