//! What can be wrong with bytes that should be a VHD.

use crate::BLOCK_SIZE;

/// Bytes, or a wish, that do not fit the format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// A structure has not the length it must have.
    #[error("a VHD {structure} is {expected} bytes long, not {found}")]
    Length {
        /// `footer`, `header` or `block`.
        structure: &'static str,
        /// Bytes it must have.
        expected: usize,
        /// Bytes it has.
        found: usize,
    },
    /// A structure does not begin with its magic word.
    #[error("not a VHD {structure}: it begins with \"{}\"", found.escape_ascii())]
    Cookie {
        /// `footer` or `header`.
        structure: &'static str,
        /// What stands there.
        found: [u8; 8],
    },
    /// A version other than 1.0.
    #[error("the VHD {structure} has version {found:#010x}, only 0x00010000 is known")]
    Version {
        /// `footer` or `header`.
        structure: &'static str,
        /// Version found.
        found: u32,
    },
    /// The sum of the bytes is not what the structure says.
    #[error("the checksum of the VHD {structure} is wrong: {stored:#010x} is written, {computed:#010x} is true")]
    Checksum {
        /// `footer` or `header`.
        structure: &'static str,
        /// Checksum in the structure.
        stored: u32,
        /// Checksum of its bytes.
        computed: u32,
    },
    /// The next structure is not where it must be.
    #[error("the VHD {structure} points at offset {found:#x}, {expected:#x} is expected")]
    DataOffset {
        /// `footer` or `header`.
        structure: &'static str,
        /// Offset it must name.
        expected: u64,
        /// Offset it names.
        found: u64,
    },
    /// Neither dynamic nor differencing.
    #[error("VHD disk type {0} is not supported: only 3 (dynamic) and 4 (differencing) are")]
    DiskType(u32),
    /// The disk shrank, which no disk does.
    #[error("the original size of the disk, {original} bytes, is above its current size, {current} bytes")]
    Shrunk {
        /// Size at creation, bytes.
        original: u64,
        /// Size now, bytes.
        current: u64,
    },
    /// A block size other than 2 MiB.
    #[error("VHD block size {0} is not supported: only {BLOCK_SIZE} is")]
    BlockSize(u32),
    /// A block table larger than this house handles.
    #[error("a VHD block table of {found} entries is refused: at most {maximum} are supported")]
    TooManyEntries {
        /// Entries announced or needed.
        found: u64,
        /// Entries supported.
        maximum: u32,
    },
    /// A block table too small for the disk.
    #[error("the VHD block table has {entries} entries, a disk of {size} bytes needs {needed}")]
    TooFewEntries {
        /// Entries of the table.
        entries: u32,
        /// Entries the disk needs.
        needed: u32,
        /// Size of the disk, bytes.
        size: u64,
    },
    /// Fewer bytes than the table has entries.
    #[error("the VHD block table is cut: {expected} bytes are needed, {found} are there")]
    TableCut {
        /// Bytes needed.
        expected: u64,
        /// Bytes given.
        found: u64,
    },
    /// The block table lies where it cannot.
    #[error("the VHD block table at offset {0} lies over the header or beyond what is supported")]
    TableOffset(u64),
    /// A block lies over the structures in front of it or beyond the end of the file.
    #[error("block {index} of the VHD lies at sector {sector}, outside the data area (bytes {start} to {end})")]
    BlockOutside {
        /// Index of the block.
        index: u32,
        /// Sector of its bitmap.
        sector: u32,
        /// First byte of the data area.
        start: u64,
        /// Byte after the data area.
        end: u64,
    },
    /// Two blocks share bytes.
    #[error("blocks {first} and {second} of the VHD overlap")]
    BlocksOverlap {
        /// Block in front.
        first: u32,
        /// Block behind.
        second: u32,
    },
    /// A block index the table has no entry for.
    #[error("block {index} does not exist in a VHD of {entries} blocks")]
    NoSuchBlock {
        /// Index asked for.
        index: u32,
        /// Entries of the table.
        entries: u32,
    },
    /// A list of blocks that does not increase.
    #[error("block {second} is listed after block {first}: blocks are listed once each, in increasing order")]
    BlockOrder {
        /// A block.
        first: u32,
        /// The one listed after it.
        second: u32,
    },
    /// Another block than the one announced, or the end before all came.
    #[error("{} came into the VHD stream where {} was announced", block_or_end(*found), block_or_end(*expected))]
    UnexpectedBlock {
        /// What was announced; `None` for the end.
        expected: Option<u32>,
        /// What came.
        found: Option<u32>,
    },
    /// The file would exceed what 32-bit sector numbers reach, 2 TiB, or the room it has.
    #[error("a VHD file has no room for {blocks} blocks: sector numbers end at 2 TiB, or the file before")]
    FileTooLong {
        /// Number of blocks.
        blocks: u64,
    },
    /// A parent name of more than 256 UTF-16 units, or with a NUL.
    #[error("\"{}\" cannot be a VHD parent name: at most 256 UTF-16 units, no NUL", .0.escape_debug())]
    ParentName(String),
    /// The parent name in a header is not UTF-16.
    #[error("the parent name in the VHD header is not valid UTF-16")]
    ParentNameEncoding,
    /// A differencing disk and the disk taken for its parent do not belong together.
    #[error("the VHD has parent {expected}, the disk found under its parent's name is {found}")]
    WrongParent {
        /// Parent id in the child's header.
        expected: uuid::Uuid,
        /// Unique id in the footer of the supposed parent.
        found: uuid::Uuid,
    },
    /// Leading and trailing footer differ.
    #[error("the footer at the end of the VHD is not the one at its beginning")]
    FootersDiffer,
}

fn block_or_end(block: Option<u32>) -> String {
    block.map_or_else(|| "the end".to_owned(), |index| format!("block {index}"))
}
