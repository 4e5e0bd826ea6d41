//! Where everything stands in a VHD file written here (backup-repository.md §3.5):
//! footer, header, table, blocks, footer, each at a multiple of a sector.

use crate::{BLOCK_SIZE, DynamicHeader, FOOTER_SIZE, FormatError, SECTOR, STORED_BLOCK};

/// Positions in a file of a given number of table entries. Blocks are counted in the order they are written ("slots"),
/// which need not be the order of their indexes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileLayout {
    table_size: u64,
}

impl FileLayout {
    /// The layout of a file with `max_table_entries` blocks at most.
    pub fn new(max_table_entries: u32) -> Self {
        Self { table_size: (u64::from(max_table_entries) * 4).next_multiple_of(SECTOR as u64) }
    }

    /// Bytes of the table, padding included.
    pub fn table_size(&self) -> u64 {
        self.table_size
    }

    /// Position of the first block's bitmap, bytes.
    pub fn first_block_offset(&self) -> u64 {
        DynamicHeader::TABLE_OFFSET + self.table_size
    }

    /// Position of a slot's bitmap, bytes. Its data follows 512 bytes later.
    pub fn slot_offset(&self, slot: u32) -> u64 {
        self.first_block_offset() + u64::from(slot) * STORED_BLOCK as u64
    }

    /// Sector of a slot's bitmap, as the table names it.
    ///
    /// # Errors
    /// [`FormatError::FileTooLong`] where 32 bits do not suffice, near 2 TiB.
    pub fn slot_sector(&self, slot: u32) -> Result<u32, FormatError> {
        u32::try_from(self.slot_offset(slot) / SECTOR as u64)
            .ok()
            .filter(|sector| *sector != u32::MAX)
            .ok_or(FormatError::FileTooLong { blocks: u64::from(slot) + 1 })
    }

    /// Position of the trailing footer behind `blocks` blocks, bytes.
    pub fn footer_offset(&self, blocks: u32) -> u64 {
        self.slot_offset(blocks)
    }

    /// Bytes of a file with `blocks` blocks.
    pub fn file_size(&self, blocks: u32) -> u64 {
        self.footer_offset(blocks) + FOOTER_SIZE as u64
    }

    /// The most bytes a file of a disk of `virtual_size` bytes can take: all blocks present. For checks of free space.
    pub fn worst_case(virtual_size: u64) -> u64 {
        let blocks = virtual_size.div_ceil(BLOCK_SIZE as u64);
        let table = blocks.saturating_mul(4).next_multiple_of(SECTOR as u64);
        blocks.saturating_mul(STORED_BLOCK as u64).saturating_add(table + DynamicHeader::TABLE_OFFSET + FOOTER_SIZE as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_reference() {
        let layout = FileLayout::new(3);
        assert_eq!(layout.table_size(), 512);
        assert_eq!(layout.slot_sector(0).unwrap(), 0x4);
        assert_eq!(layout.slot_sector(1).unwrap(), 0x1005);
        assert_eq!(layout.file_size(2), 4_197_888);
        assert_eq!(FileLayout::worst_case(5 << 20), layout.file_size(3));
    }

    #[test]
    fn sector_numbers_end() {
        let layout = FileLayout::new(1 << 20);
        let last = (0..1 << 20).rev().find(|slot| layout.slot_sector(*slot).is_ok()).unwrap();
        assert!(layout.slot_offset(last) < 2 << 40);
        assert!(matches!(layout.slot_sector(last + 1), Err(FormatError::FileTooLong { .. })));
        assert_eq!(FileLayout::new(0).table_size(), 0);
        assert_eq!(FileLayout::worst_case(u64::MAX / 2), FileLayout::worst_case(u64::MAX / 2).max(u64::MAX / 2));
    }
}
