//! The order of things in an archive (xapi-streams.md §4.1, §4.2), checked while its uncompressed bytes pass.

use std::collections::HashSet;
use std::sync::Arc;

use sha1::{Digest, Sha1};
use xxhash_rust::xxh64::Xxh64;

use crate::tar::{self, Header, RECORD};
use crate::{Compression, MAX_CHUNK, MAX_OVA_XML, XvaError};

/// The longest checksum: SHA-1 in hexadecimal, with some room for a newline.
const MAX_CHECKSUM: u64 = 64;

/// What a complete archive was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// How it was compressed.
    pub compression: Compression,
    /// Length as it came, bytes.
    pub length: u64,
    /// Length of the tar archive, bytes.
    pub uncompressed_length: u64,
    /// Length of `ova.xml`, bytes.
    pub ova_xml_length: u64,
    /// How its chunks were protected.
    pub checksums: Checksums,
    /// Its disks, in the order of the archive.
    pub disks: Vec<DiskSummary>,
}

/// How the chunks of an archive are protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksums {
    /// Not at all: a very old archive, or one without disks.
    None,
    /// `.checksum`: SHA-1.
    Sha1,
    /// `.xxhash`: XXH64.
    Xxh64,
}

/// A disk of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSummary {
    /// Its directory, the `id` of its VDI in `ova.xml`: `Ref:12`.
    pub reference: Arc<str>,
    /// Chunks with data.
    pub chunks: u64,
    /// Bytes of all chunks.
    pub data: u64,
    /// Where its last chunk ends, bytes. The last chunk is always present, so this is the size of the disk, at most
    /// rounded up to a whole chunk; less means that something is missing.
    pub end: u64,
}

/// A chunk that begins.
#[derive(Debug, Clone)]
pub(crate) struct ChunkHead {
    pub disk: Arc<str>,
    pub number: u64,
    /// Position in the disk, bytes.
    pub offset: u64,
    pub length: u64,
}

/// Who looks at what passes.
pub(crate) trait Visitor {
    /// A piece of `ova.xml`, of the given length in all; an empty one at its beginning.
    fn ova_xml(&mut self, _piece: &[u8], _length: u64) {}
    /// `ova.xml` is complete.
    fn ova_xml_end(&mut self) {}
    /// A chunk begins.
    fn chunk(&mut self, _head: &ChunkHead) {}
    /// A piece of it.
    fn data(&mut self, _piece: &[u8]) {}
    /// The chunk is complete, and verified if the archive has checksums.
    fn chunk_end(&mut self) {}
}

/// A visitor that does not look.
impl Visitor for () {}

/// The state of an archive whose bytes pass through.
pub(crate) struct Archive {
    state: State,
    record: [u8; RECORD],
    position: u64,
    ova_xml_length: Option<u64>,
    disks: Vec<DiskSummary>,
    seen: HashSet<Arc<str>>,
    checksums: Option<Checksums>,
    first_chunk_length: u64,
    previous_number: Option<u64>,
    /// A chunk whose checksum has not come.
    unverified: Option<Unverified>,
}

enum State {
    /// Bytes of the header record that have come.
    Header {
        filled: usize,
    },
    Body {
        entry: Entry,
        remaining: u64,
        padding: usize,
    },
    Padding {
        entry: Entry,
        remaining: usize,
    },
    /// Records of zeros seen, and bytes of the one that is passing.
    End {
        records: u64,
        filled: usize,
    },
}

enum Entry {
    OvaXml,
    Chunk(Hashers),
    Checksum { kind: Checksums, text: Vec<u8> },
    Ignored,
}

/// The archive says only behind a chunk which checksum it has; the first chunk of an archive is hashed both ways.
struct Hashers {
    xxh64: Option<Xxh64>,
    sha1: Option<Sha1>,
}

struct Unverified {
    name: String,
    xxh64: Option<u64>,
    sha1: Option<[u8; 20]>,
}

impl Archive {
    pub fn new() -> Self {
        Self {
            state: State::Header { filled: 0 },
            record: [0; RECORD],
            position: 0,
            ova_xml_length: None,
            disks: Vec::new(),
            seen: HashSet::new(),
            checksums: None,
            first_chunk_length: 0,
            previous_number: None,
            unverified: None,
        }
    }

    /// Takes bytes of the uncompressed archive.
    pub fn push(&mut self, mut bytes: &[u8], visitor: &mut impl Visitor) -> Result<(), XvaError> {
        while !bytes.is_empty() {
            let taken = self.step(bytes, visitor)?;
            self.position += taken as u64;
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// The end of the bytes, of which `length` have come in, compressed.
    pub fn finish(self, compression: Compression, length: u64) -> Result<Summary, XvaError> {
        let cut = |part: String| Err(XvaError::Truncated { position: length, part });
        match &self.state {
            State::Header { .. } if self.position == 0 => return Err(XvaError::Empty),
            State::Header { .. } => return cut("the entries: the mark of the end is missing".into()),
            State::Body { entry, remaining, .. } => {
                return cut(format!("{}, of which {remaining} bytes are missing", self.describe(entry)));
            }
            State::Padding { entry, .. } => return cut(format!("the padding behind {}", self.describe(entry))),
            State::End { records, filled } if *records < 2 || *filled > 0 => return cut("the mark of the end".into()),
            State::End { .. } => {}
        }
        let Some(ova_xml_length) = self.ova_xml_length else { return Err(XvaError::Empty) };
        Ok(Summary {
            compression,
            length,
            uncompressed_length: self.position,
            ova_xml_length,
            checksums: self.checksums.unwrap_or(Checksums::None),
            disks: self.disks,
        })
    }

    fn describe(&self, entry: &Entry) -> String {
        match entry {
            Entry::OvaXml => "ova.xml".into(),
            Entry::Chunk(_) => {
                let reference = self.disks.last().map_or("", |disk| &disk.reference);
                format!("chunk {} of disk {reference}", self.previous_number.unwrap_or(0))
            }
            Entry::Checksum { .. } => "the checksum of a chunk".into(),
            Entry::Ignored => "checksum.xml".into(),
        }
    }

    /// Takes as many bytes as belong to the present state, at least one.
    fn step(&mut self, bytes: &[u8], visitor: &mut impl Visitor) -> Result<usize, XvaError> {
        match &mut self.state {
            State::Header { filled } => {
                let taken = bytes.len().min(RECORD - *filled);
                self.record[*filled..*filled + taken].copy_from_slice(&bytes[..taken]);
                *filled += taken;
                if *filled == RECORD {
                    let record = self.record;
                    let start = self.position + taken as u64 - RECORD as u64;
                    self.state = self.header(&record, start, visitor)?;
                    self.settle(visitor)?;
                }
                Ok(taken)
            }
            State::Body { entry, remaining, .. } => {
                let taken = bytes.len().min(usize::try_from(*remaining).unwrap_or(usize::MAX));
                let piece = &bytes[..taken];
                match entry {
                    Entry::OvaXml => visitor.ova_xml(piece, self.ova_xml_length.unwrap_or(0)),
                    Entry::Chunk(hashers) => {
                        hashers.update(piece);
                        visitor.data(piece);
                    }
                    Entry::Checksum { text, .. } => text.extend_from_slice(piece),
                    Entry::Ignored => {}
                }
                *remaining -= taken as u64;
                self.settle(visitor)?;
                Ok(taken)
            }
            State::Padding { remaining, .. } => {
                let taken = bytes.len().min(*remaining);
                *remaining -= taken;
                self.settle(visitor)?;
                Ok(taken)
            }
            State::End { records, filled } => {
                let taken = bytes.len().min(RECORD - *filled);
                if let Some(other) = bytes[..taken].iter().position(|byte| *byte != 0) {
                    return Err(XvaError::Trailing { position: self.position + other as u64 });
                }
                *filled += taken;
                *records += u64::from(*filled == RECORD);
                *filled %= RECORD;
                Ok(taken)
            }
        }
    }

    /// Leaves states that have nothing more to come.
    fn settle(&mut self, visitor: &mut impl Visitor) -> Result<(), XvaError> {
        if matches!(self.state, State::Body { remaining: 0, .. }) {
            let State::Body { entry, padding, .. } = std::mem::replace(&mut self.state, State::Header { filled: 0 }) else {
                return Ok(());
            };
            self.state = State::Padding { entry: self.end_of(entry, visitor)?, remaining: padding };
        }
        if matches!(self.state, State::Padding { remaining: 0, .. }) {
            self.state = State::Header { filled: 0 };
        }
        Ok(())
    }

    /// An entry's data are complete.
    fn end_of(&mut self, entry: Entry, visitor: &mut impl Visitor) -> Result<Entry, XvaError> {
        match entry {
            Entry::OvaXml => visitor.ova_xml_end(),
            Entry::Chunk(hashers) => {
                if let Some(unverified) = &mut self.unverified {
                    (unverified.xxh64, unverified.sha1) = hashers.digests();
                    if self.checksums == Some(Checksums::None) {
                        self.unverified = None;
                        visitor.chunk_end();
                    }
                }
                return Ok(Entry::Chunk(Hashers { xxh64: None, sha1: None }));
            }
            Entry::Checksum { kind, ref text } => {
                let Some(chunk) = self.unverified.take() else { return Ok(entry) };
                let stored = String::from_utf8_lossy(text).trim().to_owned();
                let computed = match kind {
                    Checksums::Sha1 => chunk.sha1.iter().flatten().map(|byte| format!("{byte:02x}")).collect(),
                    _ => chunk.xxh64.map(|hash| format!("{hash:016X}")).unwrap_or_default(),
                };
                if !stored.eq_ignore_ascii_case(&computed) {
                    return Err(XvaError::Checksum { chunk: chunk.name, stored, computed });
                }
                visitor.chunk_end();
            }
            Entry::Ignored => {}
        }
        Ok(entry)
    }

    /// A header record is complete: what comes behind it?
    fn header(&mut self, record: &[u8; RECORD], position: u64, visitor: &mut impl Visitor) -> Result<State, XvaError> {
        if vhd::is_zero(record) {
            self.chunk_without_checksum(visitor)?;
            return Ok(State::End { records: 1, filled: 0 });
        }
        let Header { name, size } = Header::parse(record).map_err(|reason| XvaError::TarHeader { position, reason })?;
        let wrong = |reason| XvaError::Entry { name: name.clone(), position, reason };
        let checked = |maximum| match size {
            size if size > maximum => Err(XvaError::TooLarge { name: name.clone(), size, maximum }),
            _ => Ok(()),
        };
        let entry = if self.ova_xml_length.is_none() {
            if name != "ova.xml" {
                return Err(XvaError::OvaXmlNotFirst { found: name });
            }
            checked(MAX_OVA_XML)?;
            self.ova_xml_length = Some(size);
            visitor.ova_xml(&[], size);
            Entry::OvaXml
        } else if name == "checksum.xml" {
            self.chunk_without_checksum(visitor)?;
            checked(MAX_OVA_XML)?;
            Entry::Ignored
        } else {
            match Name::parse(&name).ok_or_else(|| wrong("neither a chunk nor a checksum"))? {
                Name::Checksum { chunk, kind } => {
                    if self.unverified.as_ref().is_none_or(|unverified| unverified.name != chunk) {
                        return Err(wrong("a checksum that does not follow its chunk"));
                    }
                    if *self.checksums.get_or_insert(kind) != kind {
                        return Err(wrong("another kind of checksum than before"));
                    }
                    checked(MAX_CHECKSUM)?;
                    Entry::Checksum { kind, text: Vec::with_capacity(size as usize) }
                }
                Name::Chunk { disk, number } => {
                    self.chunk_without_checksum(visitor)?;
                    checked(MAX_CHUNK)?;
                    let head = self.place(disk, number, size).map_err(wrong)?;
                    visitor.chunk(&head);
                    self.unverified = Some(Unverified { name: name.clone(), xxh64: None, sha1: None });
                    Entry::Chunk(Hashers::new(self.checksums))
                }
            }
        };
        Ok(State::Body { entry, remaining: size, padding: tar::padding(size) })
    }

    /// Something other than a checksum follows: right for an archive without checksums, a fault in others.
    fn chunk_without_checksum(&mut self, visitor: &mut impl Visitor) -> Result<(), XvaError> {
        let Some(chunk) = self.unverified.take() else { return Ok(()) };
        if *self.checksums.get_or_insert(Checksums::None) != Checksums::None {
            return Err(XvaError::ChecksumMissing { chunk: chunk.name });
        }
        visitor.chunk_end();
        Ok(())
    }

    /// Finds the position of a chunk in its disk. Numbers are no positions: a chunk of no bytes, sent to keep the connection
    /// alive, takes a number but no room (xapi-streams.md §4.2).
    fn place(&mut self, disk: &str, number: u64, length: u64) -> Result<ChunkHead, &'static str> {
        if self.disks.last().is_none_or(|last| &*last.reference != disk) {
            let reference: Arc<str> = disk.into();
            if !self.seen.insert(Arc::clone(&reference)) {
                return Err("the disk was finished before");
            }
            self.disks.push(DiskSummary { reference, chunks: 0, data: 0, end: 0 });
            self.previous_number = None;
        }
        let next = self.previous_number.map_or(0, |previous| previous + 1);
        let skipped = number.checked_sub(next).ok_or("its number does not increase")?;
        if self.first_chunk_length == 0 {
            self.first_chunk_length = length;
        }
        let disk = self.disks.last_mut().ok_or("it belongs to no disk")?;
        let offset = skipped.checked_mul(self.first_chunk_length).and_then(|gap| disk.end.checked_add(gap));
        let offset = offset.filter(|offset| *offset <= i64::MAX as u64).ok_or("its number is out of reach")?;
        disk.end = offset + length;
        disk.data += length;
        disk.chunks += u64::from(length > 0);
        self.previous_number = Some(number);
        Ok(ChunkHead { disk: Arc::clone(&disk.reference), number, offset, length })
    }
}

impl Hashers {
    fn new(checksums: Option<Checksums>) -> Self {
        let wanted = |kind| checksums.is_none_or(|known| known == kind);
        Self { xxh64: wanted(Checksums::Xxh64).then(|| Xxh64::new(0)), sha1: wanted(Checksums::Sha1).then(Sha1::new) }
    }

    fn update(&mut self, piece: &[u8]) {
        if let Some(xxh64) = &mut self.xxh64 {
            xxh64.update(piece);
        }
        if let Some(sha1) = &mut self.sha1 {
            sha1.update(piece);
        }
    }

    fn digests(self) -> (Option<u64>, Option<[u8; 20]>) {
        (self.xxh64.map(|hasher| hasher.digest()), self.sha1.map(|hasher| hasher.finalize().into()))
    }
}

/// What the name of an entry says.
#[derive(Debug, PartialEq, Eq)]
enum Name<'a> {
    Chunk { disk: &'a str, number: u64 },
    Checksum { chunk: &'a str, kind: Checksums },
}

impl<'a> Name<'a> {
    fn parse(name: &'a str) -> Option<Self> {
        let checksum = |suffix, kind| name.strip_suffix(suffix).map(|chunk| Self::Checksum { chunk, kind });
        if let Some(checksum) = checksum(".xxhash", Checksums::Xxh64).or_else(|| checksum(".checksum", Checksums::Sha1)) {
            return Some(checksum);
        }
        let (disk, digits) = name.split_once('/')?;
        let numeric = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        (numeric && !disk.is_empty()).then(|| digits.parse().ok()).flatten().map(|number| Self::Chunk { disk, number })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(Name::parse("Ref:3/00000012"), Some(Name::Chunk { disk: "Ref:3", number: 12 }));
        assert_eq!(
            Name::parse("Ref:3/00000012.xxhash"),
            Some(Name::Checksum { chunk: "Ref:3/00000012", kind: Checksums::Xxh64 })
        );
        for name in ["", "/", "Ref:3/", "/00000000", "Ref:3/+1", "Ref:3/1/2", "Ref:3/99999999999999999999999", "manifest"] {
            assert_eq!(Name::parse(name), None, "{name}");
        }
    }
}
