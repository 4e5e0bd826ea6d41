//! Which blocks a disk in directory form has: one bit a block (backup-repository.md §3.6).

use crate::{FormatError, MAX_TABLE_ENTRIES};

/// The `bat` object of a directory disk: bit set = block present, most significant bit first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockBitmap {
    bits: Vec<u8>,
    entries: u32,
}

impl BlockBitmap {
    /// No block present, of `entries`.
    ///
    /// # Errors
    /// [`FormatError::TooManyEntries`] above [`MAX_TABLE_ENTRIES`].
    pub fn new(entries: u32) -> Result<Self, FormatError> {
        if entries > MAX_TABLE_ENTRIES {
            return Err(FormatError::TooManyEntries { found: entries.into(), maximum: MAX_TABLE_ENTRIES });
        }
        Ok(Self { bits: vec![0; entries.div_ceil(8) as usize], entries })
    }

    /// Reads the bitmap of a disk with `entries` blocks. Any length is accepted: what is missing is absent, what is too
    /// much is ignored.
    ///
    /// # Errors
    /// [`FormatError::TooManyEntries`] above [`MAX_TABLE_ENTRIES`].
    pub fn parse(bytes: &[u8], entries: u32) -> Result<Self, FormatError> {
        let mut bitmap = Self::new(entries)?;
        let length = bitmap.bits.len().min(bytes.len());
        bitmap.bits[..length].copy_from_slice(&bytes[..length]);
        if let Some(last) = bitmap.bits.last_mut()
            && !entries.is_multiple_of(8)
        {
            *last &= !(0xFF >> (entries % 8));
        }
        Ok(bitmap)
    }

    /// As many *bytes* as there are blocks, eight times what is needed: Xen Orchestra writes this length, and its readers
    /// of any version expect no less.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.entries as usize];
        bytes[..self.bits.len()].copy_from_slice(&self.bits);
        bytes
    }

    /// Blocks the disk can have.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// Whether a block is present; never so beyond the end.
    pub fn contains(&self, index: u32) -> bool {
        index < self.entries && self.bits[(index / 8) as usize] & (0x80 >> (index % 8)) != 0
    }

    /// Marks a block as present.
    ///
    /// # Errors
    /// [`FormatError::NoSuchBlock`].
    pub fn insert(&mut self, index: u32) -> Result<(), FormatError> {
        if index >= self.entries {
            return Err(FormatError::NoSuchBlock { index, entries: self.entries });
        }
        self.bits[(index / 8) as usize] |= 0x80 >> (index % 8);
        Ok(())
    }

    /// Number of blocks present.
    pub fn count(&self) -> u32 {
        self.bits.iter().map(|byte| byte.count_ones()).sum()
    }

    /// Indexes of the blocks present, in increasing order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.bits
            .iter()
            .zip(0_u32..)
            .filter(|(byte, _)| **byte != 0)
            .flat_map(|(byte, position)| (0..8).filter(move |bit| byte & (0x80 >> bit) != 0).map(move |bit| position * 8 + bit))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn first_block_is_the_highest_bit_and_the_length_is_generous() {
        let mut bitmap = BlockBitmap::new(10).unwrap();
        bitmap.insert(0).unwrap();
        bitmap.insert(9).unwrap();
        assert_eq!(bitmap.to_bytes(), [0x80, 0x40, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert!(matches!(bitmap.insert(10), Err(FormatError::NoSuchBlock { index: 10, entries: 10 })));
        assert!(!bitmap.contains(10));
    }

    #[test]
    fn any_length_is_read() {
        let short = BlockBitmap::parse(&[0xFF], 20).unwrap();
        assert_eq!(short.count(), 8);
        let long = BlockBitmap::parse(&[0xFF; 100], 20).unwrap();
        assert_eq!(long.iter().collect::<Vec<_>>(), (0..20).collect::<Vec<_>>());
        assert!(BlockBitmap::parse(&[], u32::MAX).is_err());
    }

    proptest! {
        #[test]
        fn reads_back_what_it_writes(blocks in proptest::collection::btree_set(0..5000_u32, 0..200), slack in 0..9_u32) {
            let entries = blocks.last().map_or(0, |last| last + 1) + slack;
            let mut bitmap = BlockBitmap::new(entries).unwrap();
            for index in &blocks {
                bitmap.insert(*index).unwrap();
            }
            let read = BlockBitmap::parse(&bitmap.to_bytes(), entries).unwrap();
            prop_assert_eq!(read.iter().collect::<BTreeSet<_>>(), blocks);
            prop_assert_eq!(read, bitmap);
        }
    }
}
