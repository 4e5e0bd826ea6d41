//! Makes an archive, piece by piece, without copying the disks' data.

use bytes::Bytes;
use xxhash_rust::xxh64::xxh64;

use crate::CHUNK_SIZE;
use crate::tar::{self, Header, RECORD};

static ZEROS: [u8; 2 * RECORD] = [0; 2 * RECORD];

/// Data that do not come in the order of an archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriterError {
    /// `ova.xml` came twice or not first.
    #[error("ova.xml comes first in an XVA, and once")]
    OvaXml,
    /// Chunks without a disk, or a disk before the previous one was complete.
    #[error("disk {reference} of the XVA is at byte {position} of {size}")]
    DiskIncomplete {
        /// The disk in question.
        reference: String,
        /// Bytes of it that have come.
        position: u64,
        /// Bytes it has.
        size: u64,
    },
    /// A disk whose name does not follow the previous one's.
    #[error("disk \"{}\" of the XVA does not come after \"{}\" in the order of their names", reference.escape_debug(), previous.escape_debug())]
    DiskOrder {
        /// The disk.
        reference: String,
        /// The disk before it.
        previous: String,
    },
    /// A name no directory of an archive has.
    #[error("\"{}\" cannot be the name of a disk in an XVA", .0.escape_debug())]
    Name(String),
    /// A chunk that is not as long as it must be.
    #[error("a chunk of {expected} bytes must come next, not one of {found}")]
    ChunkLength {
        /// Bytes it must have.
        expected: usize,
        /// Bytes it has.
        found: usize,
    },
}

/// An archive in the making: [`Writer::ova_xml`], then for each disk [`Writer::begin_disk`] and all its chunks in order, then
/// [`Writer::finish`]. What the calls return, joined, is the archive.
#[derive(Debug, Default)]
pub struct Writer {
    begun: bool,
    disk: Option<Disk>,
}

#[derive(Debug)]
struct Disk {
    reference: String,
    size: u64,
    /// Bytes of the disk that have come.
    position: u64,
    /// Number of the next chunk; ahead of the position by the keep-alives sent.
    number: u64,
}

impl Writer {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// The first entry.
    ///
    /// # Errors
    /// [`WriterError::OvaXml`] when it is not the first.
    pub fn ova_xml(&mut self, content: Bytes) -> Result<Vec<Bytes>, WriterError> {
        if std::mem::replace(&mut self.begun, true) {
            return Err(WriterError::OvaXml);
        }
        entry("ova.xml".into(), content)
    }

    /// Begins a disk of `size` bytes, whose name must be greater than that of the one before.
    ///
    /// # Errors
    /// [`WriterError`] when the previous disk is not complete, or the name is none or out of order.
    pub fn begin_disk(&mut self, reference: &str, size: u64) -> Result<(), WriterError> {
        self.complete()?;
        if reference.is_empty() || reference.len() > 64 || reference.contains(['/', '\0']) {
            return Err(WriterError::Name(reference.into()));
        }
        if let Some(previous) = self.disk.as_ref().filter(|previous| *previous.reference >= *reference) {
            return Err(WriterError::DiskOrder { reference: reference.into(), previous: previous.reference.clone() });
        }
        self.disk = Some(Disk { reference: reference.into(), size, position: 0, number: 0 });
        Ok(())
    }

    /// Position and length, in bytes, of the chunk of the present disk that must come next; `None` when it is complete.
    pub fn next_chunk(&self) -> Option<(u64, usize)> {
        let disk = self.disk.as_ref()?;
        let length = (disk.size - disk.position).min(CHUNK_SIZE as u64) as usize;
        (length > 0).then_some((disk.position, length))
    }

    /// The next chunk of the disk. Nothing is returned for one that is left out: zeros, neither first nor last.
    ///
    /// # Errors
    /// [`WriterError::ChunkLength`] when it has not the length [`Writer::next_chunk`] tells.
    pub fn chunk(&mut self, data: Bytes) -> Result<Vec<Bytes>, WriterError> {
        let (position, expected) = self.next_chunk().unwrap_or((0, 0));
        let Some(disk) = self.disk.as_mut().filter(|_| data.len() == expected && expected > 0) else {
            return Err(WriterError::ChunkLength { expected, found: data.len() });
        };
        let (number, last) = (disk.number, position + expected as u64 == disk.size);
        disk.number += 1;
        disk.position += expected as u64;
        if position > 0 && !last && vhd::is_zero(&data) {
            return Ok(Vec::new());
        }
        numbered(&disk.reference, number, data)
    }

    /// Leaves out the next chunk, known to be zeros, without its bytes. `false`, and nothing done, where it may not be left out:
    /// the first and the last chunk of a disk are always there.
    pub fn skip_chunk(&mut self) -> bool {
        let Some((position, length)) = self.next_chunk() else { return false };
        let Some(disk) = &mut self.disk else { return false };
        if position == 0 || position + length as u64 == disk.size {
            return false;
        }
        disk.number += 1;
        disk.position += length as u64;
        true
    }

    /// A chunk of no bytes, as a pool sends when it has had nothing to say for some seconds. Takes a number, but no room in
    /// the disk.
    ///
    /// # Errors
    /// [`WriterError::ChunkLength`] outside a disk.
    pub fn keep_alive(&mut self) -> Result<Vec<Bytes>, WriterError> {
        let Some(disk) = &mut self.disk else { return Err(WriterError::ChunkLength { expected: 0, found: 0 }) };
        disk.number += 1;
        numbered(&disk.reference, disk.number - 1, Bytes::new())
    }

    /// The mark of the end.
    ///
    /// # Errors
    /// [`WriterError`] when something is missing.
    pub fn finish(self) -> Result<Bytes, WriterError> {
        self.complete()?;
        Ok(Bytes::from_static(&ZEROS))
    }

    fn complete(&self) -> Result<(), WriterError> {
        if !self.begun {
            return Err(WriterError::OvaXml);
        }
        match &self.disk {
            Some(Disk { reference, size, position, .. }) if position < size => {
                Err(WriterError::DiskIncomplete { reference: reference.clone(), position: *position, size: *size })
            }
            _ => Ok(()),
        }
    }
}

/// The most bytes an archive of disks of these sizes takes, `ova.xml` up to 1 MiB included (xapi-streams.md §4.2).
pub fn upper_bound(sizes: impl IntoIterator<Item = u64>) -> u64 {
    let chunks = sizes.into_iter().map(|size| size.div_ceil(CHUNK_SIZE as u64)).fold(0, u64::saturating_add);
    chunks.saturating_mul(CHUNK_SIZE as u64 + 3 * RECORD as u64).saturating_add(1 << 20)
}

/// A chunk and its checksum.
fn numbered(reference: &str, number: u64, data: Bytes) -> Result<Vec<Bytes>, WriterError> {
    let name = format!("{reference}/{number:08}");
    let checksum = format!("{:016X}", xxh64(&data, 0));
    let mut pieces = entry(name.clone(), data)?;
    pieces.extend(entry(name + ".xxhash", checksum.into())?);
    Ok(pieces)
}

/// Header, data, padding.
fn entry(name: String, data: Bytes) -> Result<Vec<Bytes>, WriterError> {
    let header = Header { name, size: data.len() as u64 };
    let record = header.to_record().ok_or_else(|| WriterError::Name(header.name.clone()))?;
    let padding = Bytes::from_static(&ZEROS).slice(..tar::padding(header.size));
    Ok([Bytes::copy_from_slice(&record), data, padding].into_iter().filter(|piece| !piece.is_empty()).collect())
}
