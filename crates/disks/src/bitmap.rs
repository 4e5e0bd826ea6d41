//! One bit a block, most significant bit first: the form in which XAPI hands out changed blocks.

use std::ops::Range;

use crate::BLOCK;

/// A set of 64 KiB blocks of a disk. Serialises as `VDI.list_changed_blocks` wants it before base64: bit 7 of byte 0
/// is the first block, the length is that of the disk (xapi-streams.md §3.3).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bitmap {
    bits: Vec<u8>,
    blocks: u64,
}

impl Bitmap {
    /// An empty set for a disk of `bytes`.
    pub fn for_size(bytes: u64) -> Self {
        let blocks = bytes.div_ceil(BLOCK);
        Self { bits: vec![0; blocks.div_ceil(8) as usize], blocks }
    }

    /// Takes over serialised bits; `None` when the length does not fit a disk of `bytes`.
    pub fn from_bytes(bytes: u64, bits: Vec<u8>) -> Option<Self> {
        let blocks = bytes.div_ceil(BLOCK);
        (bits.len() as u64 == blocks.div_ceil(8)).then_some(Self { bits, blocks })
    }

    /// How many blocks the disk has.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Whether `block` is in the set; blocks past the end are not.
    pub fn get(&self, block: u64) -> bool {
        block < self.blocks && self.bits[(block / 8) as usize] & (0x80 >> (block % 8)) != 0
    }

    /// Puts `block` into the set and says whether that is new. Blocks past the end are ignored.
    pub fn set(&mut self, block: u64) -> bool {
        if block >= self.blocks || self.get(block) {
            return false;
        }
        self.bits[(block / 8) as usize] |= 0x80 >> (block % 8);
        true
    }

    /// Adds all blocks of `other` that this disk has.
    pub fn union(&mut self, other: &Self) {
        for (mine, theirs) in self.bits.iter_mut().zip(&other.bits) {
            *mine |= theirs;
        }
        let spare = self.bits.len() as u64 * 8 - self.blocks;
        if let Some(last) = self.bits.last_mut() {
            *last &= 0xFF << spare;
        }
    }

    /// The same set for a disk that has grown to `bytes`.
    #[must_use]
    pub fn grown_to(mut self, bytes: u64) -> Self {
        let larger = Self::for_size(bytes);
        if larger.blocks > self.blocks {
            self.bits.resize(larger.bits.len(), 0);
            self.blocks = larger.blocks;
        }
        self
    }

    /// How many blocks are in the set.
    pub fn count(&self) -> u64 {
        self.bits.iter().map(|byte| u64::from(byte.count_ones())).sum()
    }

    /// The serialised bits.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bits
    }

    /// Runs of blocks in the set, in ascending order.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut next = 0;
        std::iter::from_fn(move || {
            while next < self.blocks && !self.get(next) {
                // Whole bytes of nothing are the common case on a sparse disk.
                next += if next % 8 == 0 && self.bits[(next / 8) as usize] == 0 { 8 } else { 1 };
            }
            if next >= self.blocks {
                return None;
            }
            let start = next;
            while self.get(next) {
                next += 1;
            }
            Some(start..next)
        })
    }

    /// The same runs in bytes, cut off at `size`.
    pub fn byte_ranges(&self, size: u64) -> Vec<Range<u64>> {
        self.runs().map(|run| run.start * BLOCK..(run.end * BLOCK).min(size)).filter(|range| !range.is_empty()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_block_is_the_most_significant_bit() {
        let mut bitmap = Bitmap::for_size(9 * BLOCK + 1);
        assert_eq!(bitmap.blocks(), 10);
        assert!(bitmap.set(0) && bitmap.set(8) && !bitmap.set(8) && !bitmap.set(10));
        assert_eq!(bitmap.as_bytes(), [0x80, 0x80]);
        assert_eq!(bitmap.count(), 2);
    }

    #[test]
    fn runs_are_what_was_set() {
        let mut bitmap = Bitmap::for_size(40 * BLOCK - 5);
        for block in [0, 1, 17, 38, 39] {
            bitmap.set(block);
        }
        assert_eq!(bitmap.runs().collect::<Vec<_>>(), [0..2, 17..18, 38..40]);
        assert_eq!(bitmap.byte_ranges(40 * BLOCK - 5).last(), Some(&(38 * BLOCK..40 * BLOCK - 5)));
    }

    #[test]
    fn a_union_with_a_larger_disk_stays_within_this_one() {
        let mut small = Bitmap::for_size(3 * BLOCK);
        let mut large = Bitmap::for_size(8 * BLOCK);
        for block in 0..8 {
            large.set(block);
        }
        small.union(&large);
        assert_eq!((small.count(), small.as_bytes()), (3, &[0xE0][..]));
        assert_eq!(small.grown_to(20 * BLOCK).count(), 3);
    }
}
