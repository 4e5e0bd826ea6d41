//! The VHD format: footers, headers, block tables, parent links, streams.
//!
//! Three forms of one disk are spoken here, all with blocks of 2 MiB (backup-repository.md §3):
//!
//! - a **file** (`.vhd`): footer, header, block table, blocks, footer again ([`FileLayout`], [`BlockTable`]);
//! - a **directory** (`data/<name>.vhd/`): the same structures as small objects, one object per block
//!   ([`directory`], [`BlockBitmap`]);
//! - a **stream**, the file form read from or sent to a pool without seeking ([`stream::Reader`], [`stream::Writer`]).
//!
//! The crate opens no file and knows no network: structures are parsed from and serialised to bytes, and whoever owns
//! the bytes moves them. What is written is what Xen Orchestra writes, to the byte; what is read is more tolerant.
//! Nothing that comes from outside is trusted: sizes are checked before anything is allocated for them.

mod bitmap;
mod checksum;
pub mod directory;
mod error;
mod footer;
mod geometry;
mod header;
mod layout;
pub mod stream;
mod table;
mod zero;

use bytes::{Bytes, BytesMut};

pub use bitmap::BlockBitmap;
pub use error::FormatError;
pub use footer::{DiskType, Footer, is_linkable_id};
pub use geometry::Geometry;
pub use header::{DynamicHeader, ParentLink, ParentLocator};
pub use layout::FileLayout;
pub use table::BlockTable;
pub use zero::is_zero;

/// Bytes of a sector, the unit of positions in a block table.
pub const SECTOR: usize = 512;
/// Bytes of a footer.
pub const FOOTER_SIZE: usize = 512;
/// Bytes of a dynamic header.
pub const HEADER_SIZE: usize = 1024;
/// Bytes of disk in a block. Other block sizes exist in the format, but not in this house (backup-repository.md §3).
pub const BLOCK_SIZE: usize = 2 << 20;
/// Bytes of the sector bitmap in front of each block.
pub const BLOCK_BITMAP: usize = 512;
/// Bytes of a block as stored: bitmap and data.
pub const STORED_BLOCK: usize = BLOCK_BITMAP + BLOCK_SIZE;
/// The most entries a block table may announce: a disk of 64 TiB, a table of 128 MiB. More is refused before a byte
/// of it is read.
pub const MAX_TABLE_ENTRIES: u32 = 1 << 25;

/// The bitmap of a complete block. The only one written: readers of this format ignore it (backup-repository.md §8 H10).
pub static FULL_BITMAP: [u8; BLOCK_BITMAP] = [0xFF; BLOCK_BITMAP];

/// Number of blocks of a disk of `virtual_size` bytes.
///
/// # Errors
/// [`FormatError::TooManyEntries`] above [`MAX_TABLE_ENTRIES`].
pub fn block_count(virtual_size: u64) -> Result<u32, FormatError> {
    let count = virtual_size.div_ceil(BLOCK_SIZE as u64);
    u32::try_from(count)
        .ok()
        .filter(|count| *count <= MAX_TABLE_ENTRIES)
        .ok_or(FormatError::TooManyEntries { found: count, maximum: MAX_TABLE_ENTRIES })
}

/// Position of a block in the disk, in bytes.
pub fn block_offset(index: u32) -> u64 {
    u64::from(index) * BLOCK_SIZE as u64
}

/// Bytes of a block that lie inside a disk of `virtual_size` bytes: 2 MiB, less for the last one, 0 beyond the end.
pub fn block_length(index: u32, virtual_size: u64) -> usize {
    virtual_size.saturating_sub(block_offset(index)).min(BLOCK_SIZE as u64) as usize
}

/// A short last block, lengthened with zeros to 2 MiB as it is stored. Free when it is complete already.
///
/// # Panics
/// When `data` is longer than a block.
pub fn pad_block(data: Bytes) -> Bytes {
    assert!(data.len() <= BLOCK_SIZE, "a block holds {BLOCK_SIZE} bytes, not {}", data.len());
    if data.len() == BLOCK_SIZE {
        return data;
    }
    let mut padded = BytesMut::with_capacity(BLOCK_SIZE);
    padded.extend_from_slice(&data);
    padded.resize(BLOCK_SIZE, 0);
    padded.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_a_disk() {
        let size = 5 << 20;
        assert_eq!(block_count(size).unwrap(), 3);
        assert_eq!(block_count(0).unwrap(), 0);
        assert_eq!((0..4).map(|index| block_length(index, size)).collect::<Vec<_>>(), [2 << 20, 2 << 20, 1 << 20, 0]);
        assert!(block_count(u64::MAX).is_err());
    }

    #[test]
    fn a_short_block_is_padded_with_zeros() {
        let padded = pad_block(Bytes::from_static(b"end"));
        assert_eq!(padded.len(), BLOCK_SIZE);
        assert_eq!(&padded[..3], b"end");
        assert!(is_zero(&padded[3..]));
    }
}
