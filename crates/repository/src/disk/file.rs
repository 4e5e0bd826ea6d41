//! A disk as one VHD file (backup-repository.md §3.5).

use std::sync::Arc;

use bytes::Bytes;
use storage::{DiskFile, RepoPath, Storage};
use vhd::{BLOCK_SIZE, BlockTable, DynamicHeader, FOOTER_SIZE, Footer, HEADER_SIZE};

use super::{Trust, format};
use crate::{Error, Result};

/// An open VHD file.
#[derive(Debug)]
pub(crate) struct VhdFile {
    pub path: RepoPath,
    pub file: Arc<dyn DiskFile>,
    pub footer: Footer,
    pub header: DynamicHeader,
    pub table: BlockTable,
    /// Where the trailing footer stands, or would: the last sector of the file.
    pub end: u64,
}

impl VhdFile {
    pub async fn open(storage: &Arc<dyn Storage>, path: &RepoPath, trust: Trust) -> Result<Self> {
        let file = match trust {
            Trust::Whole => storage.open(path).await?,
            Trust::Merging => storage.open_write(path).await?,
        };
        Self::read(path, file, trust).await
    }

    pub async fn read(path: &RepoPath, file: Arc<dyn DiskFile>, trust: Trust) -> Result<Self> {
        let length = file.length().await?;
        let end = length.saturating_sub(FOOTER_SIZE as u64);
        let head = file.read_at(0, FOOTER_SIZE + HEADER_SIZE).await?;
        let (leading, header) = head.split_at(FOOTER_SIZE);
        let trailing = file.read_at(end, FOOTER_SIZE).await?;
        let footer = match (Footer::parse(leading), trust) {
            (Ok(footer), Trust::Merging) => footer,
            (Ok(_), Trust::Whole) if leading != &trailing[..] => return Err(format(path)(vhd::FormatError::FootersDiffer)),
            (Ok(footer), Trust::Whole) => footer,
            // A merge writes the trailing one first: it is the new one then.
            (Err(error), Trust::Merging) => Footer::parse(&trailing).map_err(|_| format(path)(error))?,
            (Err(error), Trust::Whole) => return Err(format(path)(error)),
        };
        let header = DynamicHeader::parse(header).map_err(format(path))?;
        // While a merge writes the footer, the header may be behind or ahead of it.
        if trust == Trust::Whole {
            header.check_against(&footer).map_err(format(path))?;
        }
        let bytes = u64::from(header.max_table_entries) * 4;
        if header.table_offset < DynamicHeader::TABLE_OFFSET || header.table_offset.saturating_add(bytes) > end {
            return Err(format(path)(vhd::FormatError::TableOffset(header.table_offset)));
        }
        let table = file.read_at(header.table_offset, bytes as usize).await?;
        let table = BlockTable::parse(&table, header.max_table_entries).map_err(format(path))?;
        table.check(&header, footer.current_size, end).map_err(format(path))?;
        Ok(Self { path: path.clone(), file, footer, header, table, end })
    }

    /// The data of a block the table has; the sector bitmap before it is ignored (H10).
    pub async fn read_block(&self, index: u32) -> Result<Option<Bytes>> {
        let Some(sector) = self.table.sector(index) else { return Ok(None) };
        let data = self.read_at_sector(sector).await?;
        // A merge beside this may have moved the block to make room for a longer table; the entry changes before the old
        // place does, so an entry that is still the same vouches for what was read.
        let entry = self.file.read_at(self.header.table_offset + u64::from(index) * 4, 4).await?;
        let now = u32::from_be_bytes([entry[0], entry[1], entry[2], entry[3]]);
        if now == sector { Ok(Some(data)) } else { self.read_at_sector(now).await.map(Some) }
    }

    async fn read_at_sector(&self, sector: u32) -> Result<Bytes> {
        let offset = (u64::from(sector) + 1) * vhd::SECTOR as u64;
        // The last block of a foreign file may be cut at the disk's end; the file may have grown since it was opened.
        let end = match offset + BLOCK_SIZE as u64 <= self.end {
            true => self.end,
            false => self.file.length().await?.saturating_sub(FOOTER_SIZE as u64),
        };
        let length = end.saturating_sub(offset).min(BLOCK_SIZE as u64) as usize;
        Ok(vhd::pad_block(self.file.read_at(offset, length).await?))
    }

    /// Footer, header, table, blocks and footer (backup-repository.md §2.1, `size`).
    pub fn file_size(&self) -> u64 {
        self.end + FOOTER_SIZE as u64
    }

    /// Writes a block at a sector; the table does not know of it yet.
    pub async fn write_at_sector(&self, sector: u32, data: Bytes) -> Result<()> {
        if data.len() != BLOCK_SIZE {
            return Err(Error::Refused { path: self.path.absolute(), what: format!("a block of {} bytes", data.len()) });
        }
        let offset = u64::from(sector) * vhd::SECTOR as u64;
        Ok(self.file.write_at(offset, vec![full_bitmap(), data]).await?)
    }
}

/// The sector bitmap of a block that is complete.
pub(crate) fn full_bitmap() -> Bytes {
    Bytes::from_static(&vhd::FULL_BITMAP)
}
