//! Makes a VHD stream of a disk whose blocks are known in advance: its exact length first, then its bytes, the blocks'
//! data passed through uncopied.

use std::pin::Pin;

use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{Stream, StreamExt};

use crate::{BLOCK_SIZE, BlockTable, DynamicHeader, FULL_BITMAP, FileLayout, Footer, FormatError};

/// A VHD stream in the making.
///
/// Its parts are, in this order: [`Writer::head`]; [`Writer::block`] for each of [`Writer::blocks`]; [`Writer::finish`].
/// [`Writer::pieces`] does all of it over a stream of blocks.
#[derive(Debug)]
pub struct Writer {
    head: Bytes,
    footer: Bytes,
    blocks: Vec<u32>,
    written: usize,
    length: u64,
}

impl Writer {
    /// A stream with exactly these `blocks`, given in increasing order.
    ///
    /// # Errors
    /// [`FormatError::NoSuchBlock`] for an index beyond the table, [`FormatError::BlockOrder`] for one that does not
    /// increase, [`FormatError::FileTooLong`] beyond 2 TiB, [`FormatError::TooFewEntries`] when the header does not fit
    /// the footer.
    pub fn new(footer: &Footer, header: &DynamicHeader, blocks: Vec<u32>) -> Result<Self, FormatError> {
        header.check_against(footer)?;
        if header.table_offset != DynamicHeader::TABLE_OFFSET {
            return Err(FormatError::TableOffset(header.table_offset));
        }
        if let Some(pair) = blocks.windows(2).find(|pair| pair[0] >= pair[1]) {
            return Err(FormatError::BlockOrder { first: pair[0], second: pair[1] });
        }
        let layout = FileLayout::new(header.max_table_entries);
        let mut table = BlockTable::new(header.max_table_entries)?;
        for (slot, index) in (0..).zip(&blocks) {
            table.set(*index, layout.slot_sector(slot)?)?;
        }
        let footer = Bytes::copy_from_slice(&footer.to_bytes());
        let mut head = BytesMut::with_capacity(layout.first_block_offset() as usize);
        head.put_slice(&footer);
        head.put_slice(&header.to_bytes());
        head.put_slice(&table.to_bytes());
        let length = layout.file_size(blocks.len() as u32);
        Ok(Self { head: head.freeze(), footer, blocks, written: 0, length })
    }

    /// Exact length of the whole stream, bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Indexes of the blocks, in the order they must come.
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// The block that must come next; `None` when all have.
    pub fn next_index(&self) -> Option<u32> {
        self.blocks.get(self.written).copied()
    }

    /// Footer, header and table: the beginning of the stream.
    pub fn head(&self) -> Bytes {
        self.head.clone()
    }

    /// The next block: its bitmap, and its data as given.
    ///
    /// # Errors
    /// [`FormatError::UnexpectedBlock`] when `index` is not the next one, [`FormatError::Length`] when `data` is not 2 MiB long
    /// (see [`crate::pad_block`]).
    pub fn block(&mut self, index: u32, data: Bytes) -> Result<[Bytes; 2], FormatError> {
        let (expected, found) = (self.next_index(), Some(index));
        if expected != found {
            return Err(FormatError::UnexpectedBlock { expected, found });
        }
        if data.len() != BLOCK_SIZE {
            return Err(FormatError::Length { structure: "block", expected: BLOCK_SIZE, found: data.len() });
        }
        self.written += 1;
        Ok([Bytes::from_static(&FULL_BITMAP), data])
    }

    /// The footer that ends the stream.
    ///
    /// # Errors
    /// [`FormatError::UnexpectedBlock`] when blocks are missing.
    pub fn finish(self) -> Result<Bytes, FormatError> {
        match self.next_index() {
            expected @ Some(_) => Err(FormatError::UnexpectedBlock { expected, found: None }),
            None => Ok(self.footer),
        }
    }

    /// The whole stream, piece by piece, over `source`, which gives (index, data) in the order of [`Writer::blocks`].
    /// Ends after the first error.
    pub fn pieces<S, E>(self, source: S) -> impl Stream<Item = Result<Bytes, PieceError<E>>>
    where
        S: Stream<Item = Result<(u32, Bytes), E>>,
    {
        let state = Pieces { writer: Some(self), source: Box::pin(source), ready: None, begun: false };
        futures::stream::unfold(state, |mut state| async move {
            let piece = state.next().await?;
            if piece.is_err() {
                state.writer = None;
            }
            Some((piece, state))
        })
    }
}

/// Where [`Writer::pieces`] stands.
struct Pieces<S> {
    /// `None` when everything is said.
    writer: Option<Writer>,
    source: Pin<Box<S>>,
    /// Data whose bitmap is already out.
    ready: Option<Bytes>,
    begun: bool,
}

impl<S, E> Pieces<S>
where
    S: Stream<Item = Result<(u32, Bytes), E>>,
{
    async fn next(&mut self) -> Option<Result<Bytes, PieceError<E>>> {
        let writer = self.writer.as_mut()?;
        if !std::mem::replace(&mut self.begun, true) {
            return Some(Ok(writer.head()));
        }
        if let Some(data) = self.ready.take() {
            return Some(Ok(data));
        }
        match self.source.next().await {
            Some(Ok((index, data))) => Some(writer.block(index, data).map_err(PieceError::Format).map(|[bitmap, data]| {
                self.ready = Some(data);
                bitmap
            })),
            Some(Err(error)) => Some(Err(PieceError::Source(error))),
            None => self.writer.take().map(|writer| writer.finish().map_err(PieceError::Format)),
        }
    }
}

/// A stream of pieces that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum PieceError<E> {
    /// The source failed.
    #[error("cannot read a block for the VHD stream")]
    Source(#[source] E),
    /// The source gave other blocks than announced.
    #[error("the blocks are not those announced in the VHD stream")]
    Format(#[source] FormatError),
}
