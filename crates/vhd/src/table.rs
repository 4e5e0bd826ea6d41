//! The block table of a file: where each block's bitmap stands, in sectors (backup-repository.md §3.5).

use std::ops::Range;

use crate::{DynamicHeader, FileLayout, FormatError, MAX_TABLE_ENTRIES, SECTOR, STORED_BLOCK};

/// Table entry of an absent block.
const ABSENT: u32 = u32::MAX;

/// The block table ("BAT") of a VHD file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockTable {
    sectors: Vec<u32>,
}

impl BlockTable {
    /// A table without blocks, of `entries` entries.
    ///
    /// # Errors
    /// [`FormatError::TooManyEntries`] above [`MAX_TABLE_ENTRIES`].
    pub fn new(entries: u32) -> Result<Self, FormatError> {
        if entries > MAX_TABLE_ENTRIES {
            return Err(FormatError::TooManyEntries { found: entries.into(), maximum: MAX_TABLE_ENTRIES });
        }
        Ok(Self { sectors: vec![ABSENT; entries as usize] })
    }

    /// Reads the table of a disk with `entries` entries; padding behind them is ignored. Positions are not judged yet:
    /// see [`BlockTable::check`].
    ///
    /// # Errors
    /// [`FormatError::TableCut`] for too few bytes, [`FormatError::TooManyEntries`].
    pub fn parse(bytes: &[u8], entries: u32) -> Result<Self, FormatError> {
        if entries > MAX_TABLE_ENTRIES {
            return Err(FormatError::TooManyEntries { found: entries.into(), maximum: MAX_TABLE_ENTRIES });
        }
        let length = entries as usize * 4;
        let Some(table) = bytes.get(..length) else {
            return Err(FormatError::TableCut { expected: length as u64, found: bytes.len() as u64 });
        };
        let (words, _) = table.as_chunks::<4>();
        Ok(Self { sectors: words.iter().map(|word| u32::from_be_bytes(*word)).collect() })
    }

    /// The table, padded with ones to a multiple of a sector.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity((self.sectors.len() * 4).next_multiple_of(SECTOR));
        bytes.extend(self.sectors.iter().flat_map(|sector| sector.to_be_bytes()));
        bytes.resize(bytes.len().next_multiple_of(SECTOR), 0xFF);
        bytes
    }

    /// Number of entries.
    pub fn entries(&self) -> u32 {
        self.sectors.len() as u32
    }

    /// Sector of a block's bitmap, if the block is present.
    pub fn sector(&self, index: u32) -> Option<u32> {
        self.sectors.get(index as usize).copied().filter(|sector| *sector != ABSENT)
    }

    /// Position of a block's *data* in the file, bytes, if the block is present.
    pub fn data_offset(&self, index: u32) -> Option<u64> {
        self.sector(index).map(|sector| (u64::from(sector) + 1) * SECTOR as u64)
    }

    /// Says where a block's bitmap stands.
    ///
    /// # Errors
    /// [`FormatError::NoSuchBlock`].
    pub fn set(&mut self, index: u32, sector: u32) -> Result<(), FormatError> {
        let entries = self.entries();
        match self.sectors.get_mut(index as usize) {
            Some(entry) => *entry = sector,
            None => return Err(FormatError::NoSuchBlock { index, entries }),
        }
        Ok(())
    }

    /// Makes room for a disk that grew. Never shrinks. In a file, the table may then need more sectors than there are
    /// between it and the first block: compare [`FileLayout::table_size`].
    ///
    /// # Errors
    /// [`FormatError::TooManyEntries`] above [`MAX_TABLE_ENTRIES`].
    pub fn grow(&mut self, entries: u32) -> Result<(), FormatError> {
        if entries > MAX_TABLE_ENTRIES {
            return Err(FormatError::TooManyEntries { found: entries.into(), maximum: MAX_TABLE_ENTRIES });
        }
        if entries as usize > self.sectors.len() {
            self.sectors.resize(entries as usize, ABSENT);
        }
        Ok(())
    }

    /// Number of blocks present.
    pub fn count(&self) -> u32 {
        self.sectors.iter().filter(|sector| **sector != ABSENT).count() as u32
    }

    /// Blocks present as (index, sector), by increasing index.
    pub fn iter(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        (0..).zip(self.sectors.iter().copied()).filter(|(_, sector)| *sector != ABSENT)
    }

    /// Blocks present as (index, sector), by increasing position.
    pub fn by_position(&self) -> Vec<(u32, u32)> {
        let mut blocks: Vec<_> = self.iter().collect();
        blocks.sort_unstable_by_key(|(_, sector)| *sector);
        blocks
    }

    /// First byte behind the table and all blocks: where the next block goes in a file whose table stands at
    /// `table_offset`. Always a multiple of a sector.
    pub fn end_of_data(&self, table_offset: u64) -> u64 {
        let table_end = table_offset.saturating_add(FileLayout::new(self.entries()).table_size());
        let blocks_end = self.iter().map(|(_, sector)| end_of_block(sector)).max().unwrap_or(0);
        table_end.next_multiple_of(SECTOR as u64).max(blocks_end)
    }

    /// Lowest position of a block's bitmap in the file, bytes; `None` without blocks.
    pub fn first_block_offset(&self) -> Option<u64> {
        self.iter().map(|(_, sector)| u64::from(sector) * SECTOR as u64).min()
    }

    /// Checks that every block lies behind the table of `header` and in front of byte `end` (of the trailing footer),
    /// and that no two share a byte. The block that holds the end of a disk of `virtual_size` bytes may be cut behind that.
    ///
    /// # Errors
    /// [`FormatError::TableOffset`], [`FormatError::FileTooLong`] for more blocks than there is room, [`FormatError::BlockOutside`],
    /// [`FormatError::BlocksOverlap`].
    pub fn check(&self, header: &DynamicHeader, virtual_size: u64, end: u64) -> Result<(), FormatError> {
        self.placed(header, virtual_size, end).map(drop)
    }

    /// The blocks by position with the bytes each takes, bitmap included, under the conditions of [`BlockTable::check`].
    pub(crate) fn placed(&self, header: &DynamicHeader, virtual_size: u64, end: u64) -> Result<Vec<Placed>, FormatError> {
        let area = data_area(header, end)?;
        // Said before anything is allocated for a table that cannot be true.
        let count = u64::from(self.count());
        if count > (area.end - area.start) / STORED_BLOCK as u64 + 1 {
            return Err(FormatError::FileTooLong { blocks: count });
        }
        let blocks = self.by_position();
        let mut placed = Vec::with_capacity(blocks.len());
        for (position, &(index, sector)) in blocks.iter().enumerate() {
            let start = u64::from(sector) * SECTOR as u64;
            let follower = blocks.get(position + 1);
            let limit = follower.map_or(area.end, |(_, sector)| u64::from(*sector) * SECTOR as u64);
            let room = limit.saturating_sub(start).min(STORED_BLOCK as u64);
            let outside = FormatError::BlockOutside { index, sector, start: area.start, end: area.end };
            if start < area.start || start >= area.end {
                return Err(outside);
            }
            let needed = match crate::block_length(index, virtual_size) {
                crate::BLOCK_SIZE | 0 => STORED_BLOCK,
                short => SECTOR + short.next_multiple_of(SECTOR),
            };
            if room < needed as u64 {
                return Err(match follower {
                    Some((second, _)) => FormatError::BlocksOverlap { first: index, second: *second },
                    None => outside,
                });
            }
            placed.push(Placed { index, start, length: room as usize });
        }
        Ok(placed)
    }
}

/// A block's place in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Placed {
    /// Index of the block.
    pub index: u32,
    /// Position of its bitmap, bytes.
    pub start: u64,
    /// Bytes of bitmap and data together.
    pub length: usize,
}

/// The bytes of a file that may hold blocks.
fn data_area(header: &DynamicHeader, end: u64) -> Result<Range<u64>, FormatError> {
    let table_size = u64::from(header.max_table_entries) * 4;
    let start = header
        .table_offset
        .checked_add(table_size)
        .filter(|_| header.table_offset >= DynamicHeader::TABLE_OFFSET)
        .filter(|table_end| *table_end <= end)
        .ok_or(FormatError::TableOffset(header.table_offset))?;
    Ok(start..end)
}

fn end_of_block(sector: u32) -> u64 {
    u64::from(sector) * SECTOR as u64 + STORED_BLOCK as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DISK: u64 = 5 << 20;

    fn table(sectors: &[u32]) -> BlockTable {
        BlockTable { sectors: sectors.to_vec() }
    }

    fn check(sectors: &[u32], end: u64) -> Result<(), FormatError> {
        let header = DynamicHeader::new(sectors.len() as u32, None).unwrap();
        table(sectors).check(&header, DISK, end)
    }

    #[test]
    fn the_example_of_the_reference() {
        let bytes = table(&[4, ABSENT, 0x1005]).to_bytes();
        assert_eq!(bytes.len(), 512);
        assert_eq!(bytes[..12], [0, 0, 0, 4, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0x10, 5]);
        assert!(bytes[12..].iter().all(|byte| *byte == 0xFF));
        check(&[4, ABSENT, 0x1005], 4_197_888 - 512).unwrap();
        assert_eq!(table(&[4, ABSENT, 0x1005]).end_of_data(1536), 4_197_888 - 512);
    }

    #[test]
    fn an_empty_table_takes_no_room() {
        assert!(BlockTable::new(0).unwrap().to_bytes().is_empty());
        assert_eq!(BlockTable::new(3).unwrap().end_of_data(1536), 2048);
    }

    #[test]
    fn misplaced_blocks_are_refused() {
        let end = 1 << 30;
        assert!(matches!(check(&[2, ABSENT, ABSENT], end), Err(FormatError::BlockOutside { index: 0, .. })));
        assert!(matches!(check(&[0xFFFF_FFFE, 4, ABSENT], end), Err(FormatError::BlockOutside { index: 0, .. })));
        assert!(matches!(check(&[4, 5, ABSENT], end), Err(FormatError::BlocksOverlap { first: 0, second: 1 })));
        assert!(matches!(check(&[4, 4, ABSENT], end), Err(FormatError::BlocksOverlap { .. })));
        assert!(matches!(check(&[4, 0x1005, ABSENT], 4_197_375), Err(FormatError::BlockOutside { index: 1, .. })));
        assert!(matches!(check(&[4, 4, 4], 4096), Err(FormatError::FileTooLong { blocks: 3 })));
        assert!(matches!(check(&[ABSENT; 3], 1540), Err(FormatError::TableOffset(1536))));
    }

    #[test]
    fn only_the_last_block_of_the_disk_may_be_short() {
        let short_end = 2048 + 512 + (1 << 20);
        check(&[ABSENT, ABSENT, 4], short_end).unwrap();
        assert!(check(&[ABSENT, ABSENT, 4], short_end - 1).is_err());
        assert!(check(&[ABSENT, 4, ABSENT], short_end).is_err());
    }

    #[test]
    fn a_table_offset_out_of_reach_is_refused() {
        for table_offset in [0, 512, u64::MAX, u64::MAX - 8] {
            let header = DynamicHeader { table_offset, ..DynamicHeader::new(3, None).unwrap() };
            assert_eq!(table(&[ABSENT; 3]).check(&header, DISK, 1 << 20), Err(FormatError::TableOffset(table_offset)));
        }
    }

    proptest! {
        #[test]
        fn reads_back_what_it_writes(sectors in proptest::collection::vec(any::<u32>(), 0..2000)) {
            let table = table(&sectors);
            prop_assert_eq!(BlockTable::parse(&table.to_bytes(), sectors.len() as u32), Ok(table));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..4096), entries: u32, offset: u64, size: u64, end: u64) {
            if let Ok(table) = BlockTable::parse(&bytes, entries) {
                let header = DynamicHeader { table_offset: offset, ..DynamicHeader::new(entries, None).unwrap() };
                let _ = table.check(&header, size, end);
            }
        }
    }
}
