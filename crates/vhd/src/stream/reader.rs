//! Reads a VHD from beginning to end, without seeking.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::table::Placed;
use crate::{
    BLOCK_BITMAP, BLOCK_SIZE, BlockTable, DynamicHeader, FOOTER_SIZE, FULL_BITMAP, Footer, FormatError, HEADER_SIZE,
    STORED_BLOCK, block_length,
};

/// Bytes tolerated between header and table (parent locators, alignment).
const MAX_GAP: u64 = 16 << 20;
/// The table is read in pieces of this size, so that a stream that only announces a large one costs little.
const TABLE_PIECE: usize = 1 << 20;
/// End of what 32-bit sector numbers reach, bytes.
const END_OF_SECTORS: u64 = (1 << 41) + STORED_BLOCK as u64;

/// A stream that is no complete VHD.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The source failed.
    #[error("cannot read the VHD stream at byte {position}")]
    Io {
        /// Bytes read until then.
        position: u64,
        /// Cause.
        source: io::Error,
    },
    /// The stream ended before the disk did.
    #[error("the VHD stream is cut: it ends at byte {position}, in {part}")]
    Truncated {
        /// Bytes received.
        position: u64,
        /// What was being read.
        part: Part,
    },
    /// The bytes are not a VHD.
    #[error("the VHD stream is damaged in {part}")]
    Format {
        /// What was being read.
        part: Part,
        /// Cause.
        source: FormatError,
    },
}

/// A part of a VHD stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The footer at the beginning.
    LeadingFooter,
    /// The dynamic header.
    Header,
    /// What stands between header and table.
    Gap,
    /// The block table.
    Table,
    /// A block.
    Block(u32),
    /// The footer at the end.
    TrailingFooter,
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::LeadingFooter => f.write_str("the leading footer"),
            Self::Header => f.write_str("the header"),
            Self::Gap => f.write_str("the gap before the block table"),
            Self::Table => f.write_str("the block table"),
            Self::Block(index) => write!(f, "block {index}"),
            Self::TrailingFooter => f.write_str("the trailing footer"),
        }
    }
}

/// A VHD stream whose head has been read. Blocks come in the order of the stream, which need not be that of their
/// indexes; gaps between them are skipped. A block is given whole whatever its sector bitmap says
/// (backup-repository.md §3.5).
#[derive(Debug)]
pub struct Reader<R> {
    source: Counting<R>,
    footer: Footer,
    header: DynamicHeader,
    table: BlockTable,
    /// Blocks still to come; the nearest is last.
    pending: Vec<Placed>,
    /// What was read behind the last block: the end of the stream, or its beginning.
    tail: Tail,
    sparse_blocks: u64,
}

#[derive(Debug)]
struct Counting<R> {
    inner: R,
    position: u64,
}

#[derive(Debug)]
enum Tail {
    Unread(BytesMut),
    Checked,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// Reads footer, header and block table, and checks that they make sense together.
    ///
    /// # Errors
    /// [`ReadError`]; nothing of the source is worth reading after one.
    pub async fn open(source: R) -> Result<Self, ReadError> {
        let mut source = Counting { inner: source, position: 0 };
        let bad = |part| move |source| ReadError::Format { part, source };
        let footer = source.exactly(FOOTER_SIZE, Part::LeadingFooter).await?;
        let footer = Footer::parse(&footer).map_err(bad(Part::LeadingFooter))?;
        let header = source.exactly(HEADER_SIZE, Part::Header).await?;
        let header = DynamicHeader::parse(&header).map_err(bad(Part::Header))?;
        header.check_against(&footer).map_err(bad(Part::Header))?;
        if !(source.position..=source.position + MAX_GAP).contains(&header.table_offset) {
            return Err(bad(Part::Header)(FormatError::TableOffset(header.table_offset)));
        }
        source.skip_to(header.table_offset, Part::Gap).await?;
        let table = source.table(header.max_table_entries).await?;
        let mut pending = table.placed(&header, footer.current_size, END_OF_SECTORS).map_err(bad(Part::Table))?;
        pending.reverse();
        Ok(Self { source, footer, header, table, pending, tail: Tail::Unread(BytesMut::new()), sparse_blocks: 0 })
    }

    /// The footer.
    pub fn footer(&self) -> &Footer {
        &self.footer
    }

    /// The dynamic header.
    pub fn header(&self) -> &DynamicHeader {
        &self.header
    }

    /// The block table.
    pub fn table(&self) -> &BlockTable {
        &self.table
    }

    /// Size of the disk, bytes.
    pub fn virtual_size(&self) -> u64 {
        self.footer.current_size
    }

    /// Whether the blocks are only those that differ from a parent. Look at this rather than at what was asked for: a
    /// pool may answer a request for a delta with a full disk (xapi-streams.md §6 T11).
    pub fn is_differencing(&self) -> bool {
        self.footer.is_differencing()
    }

    /// Bytes read so far.
    pub fn position(&self) -> u64 {
        self.source.position
    }

    /// Blocks so far whose bitmap was not all ones. In a differencing disk from a foreign writer, their unmarked sectors
    /// may not be those of the disk.
    pub fn sparse_blocks(&self) -> u64 {
        self.sparse_blocks
    }

    /// The next block, always of 2 MiB, as (index, data); `None` at the end, after the trailing footer has been checked.
    ///
    /// # Errors
    /// [`ReadError::Truncated`] when the stream ends early, even behind the last block; [`ReadError::Format`] when it ends
    /// with anything but its footer. After an error, the disk is not complete.
    pub async fn next_block(&mut self) -> Result<Option<(u32, Bytes)>, ReadError> {
        let Some(block) = self.pending.pop() else {
            self.check_tail().await?;
            return Ok(None);
        };
        let part = Part::Block(block.index);
        self.source.skip_to(block.start, part).await?;
        let bitmap = self.source.exactly(BLOCK_BITMAP, part).await?;
        self.sparse_blocks += u64::from(bitmap[..] != FULL_BITMAP);
        let data = if self.pending.is_empty() {
            self.last_data(block.index).await?
        } else {
            self.source.exactly(block.length - BLOCK_BITMAP, part).await?
        };
        Ok(Some((block.index, crate::pad_block(data.freeze()))))
    }

    /// The data of the block that stands last in the stream: when it is also the last of the disk, it may be short, and
    /// only the end of the stream tells.
    async fn last_data(&mut self, index: u32) -> Result<BytesMut, ReadError> {
        let mut data = self.source.at_most(BLOCK_SIZE + FOOTER_SIZE).await?;
        let complete = data.len() == BLOCK_SIZE + FOOTER_SIZE;
        let length = data.len().saturating_sub(FOOTER_SIZE);
        let needed = match block_length(index, self.footer.current_size) {
            0 => BLOCK_SIZE,
            needed => needed,
        };
        if !complete && length < needed {
            let part = if data.len() < needed { Part::Block(index) } else { Part::TrailingFooter };
            return Err(ReadError::Truncated { position: self.source.position, part });
        }
        self.tail = Tail::Unread(data.split_off(length));
        Ok(data)
    }

    /// Reads to the end of the stream, whose last 512 bytes are the footer again.
    async fn check_tail(&mut self) -> Result<(), ReadError> {
        let Tail::Unread(tail) = &mut self.tail else { return Ok(()) };
        let mut last = std::mem::take(tail);
        loop {
            let more = self.source.at_most(TABLE_PIECE).await?;
            if more.is_empty() {
                break;
            }
            last.unsplit(more);
            let _ = last.split_to(last.len().saturating_sub(FOOTER_SIZE));
        }
        if last.len() < FOOTER_SIZE {
            return Err(ReadError::Truncated { position: self.source.position, part: Part::TrailingFooter });
        }
        let bad = |source| ReadError::Format { part: Part::TrailingFooter, source };
        if Footer::parse(&last).map_err(bad)? != self.footer {
            return Err(bad(FormatError::FootersDiffer));
        }
        self.tail = Tail::Checked;
        Ok(())
    }
}

impl<R: AsyncRead + Unpin> Counting<R> {
    /// Reads until `length` bytes are there or the stream ends.
    async fn at_most(&mut self, length: usize) -> Result<BytesMut, ReadError> {
        let mut bytes = BytesMut::with_capacity(length);
        let mut limited = (&mut self.inner).take(length as u64);
        loop {
            match limited.read_buf(&mut bytes).await {
                Ok(0) => break,
                Ok(count) => self.position += count as u64,
                Err(source) => return Err(ReadError::Io { position: self.position, source }),
            }
            if bytes.len() == length {
                break;
            }
        }
        Ok(bytes)
    }

    async fn exactly(&mut self, length: usize, part: Part) -> Result<BytesMut, ReadError> {
        let bytes = self.at_most(length).await?;
        if bytes.len() < length {
            return Err(ReadError::Truncated { position: self.position, part });
        }
        Ok(bytes)
    }

    async fn skip_to(&mut self, position: u64, part: Part) -> Result<(), ReadError> {
        while self.position < position {
            let piece = (position - self.position).min(TABLE_PIECE as u64) as usize;
            self.exactly(piece, part).await?;
        }
        Ok(())
    }

    async fn table(&mut self, entries: u32) -> Result<BlockTable, ReadError> {
        let length = entries as usize * 4;
        let mut bytes = BytesMut::new();
        while bytes.len() < length {
            let piece = (length - bytes.len()).min(TABLE_PIECE);
            bytes.unsplit(self.exactly(piece, Part::Table).await?);
        }
        BlockTable::parse(&bytes, entries).map_err(|source| ReadError::Format { part: Part::Table, source })
    }
}
