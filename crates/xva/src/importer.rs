//! Reads an archive: what is in it, chunk by chunk, each handed out only after its checksum was found true.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::archive::{Archive, ChunkHead, Visitor};
use crate::compression::Decompressor;
use crate::{Summary, XvaError};

/// Bytes read at once. Small enough that even a stream of zeros, compressed as far as gzip goes, swells to few chunks.
const READ: usize = 64 << 10;

/// Something found in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// `ova.xml`, whole. Always the first.
    OvaXml(Bytes),
    /// A chunk of a disk. Not one is given for what is zero, nor for chunks of no bytes.
    Chunk(Chunk),
}

/// A piece of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The disk's directory, the `id` of its VDI in `ova.xml`: `Ref:12`.
    pub disk: Arc<str>,
    /// Number in the archive; no position.
    pub number: u64,
    /// Position in the disk, bytes.
    pub offset: u64,
    /// The data.
    pub data: Bytes,
}

/// An archive being read.
pub struct Importer<R> {
    source: R,
    input: BytesMut,
    decompressor: Decompressor,
    archive: Option<Archive>,
    collector: Collector,
    summary: Option<Summary>,
}

impl<R: AsyncRead + Unpin> Importer<R> {
    /// An importer over the bytes of an archive, compressed or not.
    pub fn new(source: R) -> Self {
        Self {
            source,
            input: BytesMut::with_capacity(READ),
            decompressor: Decompressor::new(),
            archive: Some(Archive::new()),
            collector: Collector::default(),
            summary: None,
        }
    }

    /// The next event; `None` after the end, when the archive has been found whole.
    ///
    /// # Errors
    /// The first fault of the archive. After one there is nothing more to ask for.
    pub async fn next(&mut self) -> Result<Option<Event>, XvaError> {
        loop {
            if let Some(event) = self.collector.events.pop_front() {
                return Ok(Some(event));
            }
            let Some(archive) = &mut self.archive else { return Ok(None) };
            self.input.clear();
            self.input.reserve(READ);
            let position = self.decompressor.position();
            let mut limited = (&mut self.source).take(READ as u64);
            let count = limited.read_buf(&mut self.input).await.map_err(|source| XvaError::Io { position, source })?;
            let collector = &mut self.collector;
            let mut sink = |piece: &[u8]| archive.push(piece, collector);
            if count > 0 {
                self.decompressor.push(&self.input, &mut sink)?;
                continue;
            }
            self.decompressor.finish(&mut sink)?;
            if let Some(archive) = self.archive.take() {
                self.summary = Some(archive.finish(self.decompressor.compression(), self.decompressor.position())?);
            }
        }
    }

    /// What the archive was, once [`Importer::next`] has given `None`.
    pub fn summary(&self) -> Option<&Summary> {
        self.summary.as_ref()
    }

    /// Bytes read so far.
    pub fn position(&self) -> u64 {
        self.decompressor.position()
    }
}

impl<R> std::fmt::Debug for Importer<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Importer").field("stream", &self.decompressor).finish_non_exhaustive()
    }
}

/// Puts pieces together to events.
#[derive(Default)]
struct Collector {
    events: VecDeque<Event>,
    head: Option<ChunkHead>,
    data: BytesMut,
}

impl Visitor for Collector {
    fn ova_xml(&mut self, piece: &[u8], length: u64) {
        // Not reserved in full: the length is only a claim until the bytes are there.
        self.data.reserve(piece.len().max((length as usize).min(READ)));
        self.data.extend_from_slice(piece);
    }

    fn ova_xml_end(&mut self) {
        self.events.push_back(Event::OvaXml(self.data.split().freeze()));
    }

    fn chunk(&mut self, head: &ChunkHead) {
        self.data = BytesMut::with_capacity(head.length as usize);
        self.head = Some(head.clone());
    }

    fn data(&mut self, piece: &[u8]) {
        self.data.extend_from_slice(piece);
    }

    fn chunk_end(&mut self) {
        let Some(head) = self.head.take().filter(|head| head.length > 0) else { return };
        let data = std::mem::take(&mut self.data).freeze();
        self.events.push_back(Event::Chunk(Chunk { disk: head.disk, number: head.number, offset: head.offset, data }));
    }
}
