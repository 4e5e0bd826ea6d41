//! A package of Red Hat's kind: a lead, a header of signatures, and the header that says what it is (RPM format, version 3).

use std::io::{Read, Seek, SeekFrom};

use crate::{Fault, Glibc, Inspected, Kind, Needs};

const LEAD: u64 = 96;
const MAGIC: [u8; 4] = [0x8E, 0xAD, 0xE8, 1];
/// Most entries, and most bytes, of a header; real ones are far below.
const MOST: u32 = 1 << 24;
const NAME: u32 = 1000;
const VERSION: u32 = 1001;
const RELEASE: u32 = 1002;
const ARCH: u32 = 1022;
const REQUIRES: u32 = 1049;

/// Reads the headers.
pub(crate) fn package(file: &mut (impl Read + Seek)) -> Result<Inspected, Fault> {
    file.seek(SeekFrom::Start(LEAD))?;
    Header::read(file)?;
    // The first header is filled up to a multiple of eight bytes.
    let at = file.stream_position()?;
    file.seek(SeekFrom::Start(at.next_multiple_of(8)))?;
    let header = Header::read(file)?;
    if header.text(NAME) != "backhaul" {
        return Err(Fault::words(format!("it is the package {:?}", header.text(NAME))));
    }
    let requires = header.texts(REQUIRES);
    let versions =
        requires.iter().filter_map(|name| name.strip_prefix("libc.so.6(GLIBC_")?.split(')').next()?.parse::<Glibc>().ok());
    Ok(Inspected {
        kind: Kind::Rpm { version: format!("{}-{}", header.text(VERSION), header.text(RELEASE)) },
        needs: Needs { machine: header.text(ARCH), glibc: versions.max() },
    })
}

struct Header {
    /// Tag, offset and count of each entry.
    index: Vec<(u32, usize, usize)>,
    store: Vec<u8>,
}

impl Header {
    fn read(file: &mut impl Read) -> Result<Self, Fault> {
        let mut intro = [0; 16];
        file.read_exact(&mut intro)?;
        let number = |bytes: &[u8], at: usize| bytes[at..].first_chunk().map_or(0, |four| u32::from_be_bytes(*four));
        let (entries, size) = (number(&intro, 8), number(&intro, 12));
        if !intro.starts_with(&MAGIC) || entries > MOST / 16 || size > MOST {
            return Err(Fault::words("it is no RPM package of a known kind"));
        }
        let mut index = vec![0; entries as usize * 16];
        file.read_exact(&mut index)?;
        let mut store = vec![0; size as usize];
        file.read_exact(&mut store)?;
        let index = index.chunks_exact(16).map(|entry| (number(entry, 0), number(entry, 8) as usize, number(entry, 12) as usize));
        Ok(Self { index: index.collect(), store })
    }

    fn texts(&self, tag: u32) -> Vec<String> {
        let Some((_, offset, count)) = self.index.iter().find(|(found, ..)| *found == tag) else { return Vec::new() };
        let rest = self.store.get(*offset..).unwrap_or_default();
        rest.split(|byte| *byte == 0).take(*count).map(|text| String::from_utf8_lossy(text).into_owned()).collect()
    }

    fn text(&self, tag: u32) -> String {
        self.texts(tag).into_iter().next().unwrap_or_default()
    }
}
