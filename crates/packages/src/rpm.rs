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

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// A header of texts.
    fn header(entries: &[(u32, &[&str])]) -> Vec<u8> {
        let (mut index, mut store) = (Vec::new(), Vec::new());
        for (tag, texts) in entries {
            for number in [*tag, 8, store.len() as u32, texts.len() as u32] {
                index.extend_from_slice(&number.to_be_bytes());
            }
            texts.iter().for_each(|text| store.extend_from_slice(&[text.as_bytes(), &[0]].concat()));
        }
        let counts = [[0; 4], (entries.len() as u32).to_be_bytes(), (store.len() as u32).to_be_bytes()].concat();
        [MAGIC.to_vec(), counts, index, store].concat()
    }

    /// A package whose header of signatures has a length that must be filled up.
    fn package_of(entries: &[(u32, &[&str])]) -> Vec<u8> {
        let mut package = vec![0; LEAD as usize];
        package[..4].copy_from_slice(&[0xED, 0xAB, 0xEE, 0xDB]);
        package.extend(header(&[(1004, &["sum"])]));
        package.resize(package.len().next_multiple_of(8), 0);
        package.extend(header(entries));
        package
    }

    #[test]
    fn the_headers_say_machine_and_library() {
        let needed = ["libc.so.6(GLIBC_2.9)(64bit)", "libc.so.6(GLIBC_2.34)(64bit)", "libc.so.6()(64bit)", "systemd"];
        let entries: [(u32, &[&str]); 5] =
            [(NAME, &["backhaul"]), (VERSION, &["0.1.0"]), (RELEASE, &["1"]), (ARCH, &["x86_64"]), (REQUIRES, &needed)];
        let found = package(&mut Cursor::new(package_of(&entries))).unwrap();
        assert_eq!(found.kind, Kind::Rpm { version: "0.1.0-1".into() });
        assert_eq!(found.needs, Needs { machine: "x86_64".into(), glibc: Some(Glibc { major: 2, minor: 34 }) });
        assert_eq!(package(&mut Cursor::new(package_of(&entries[..4]))).unwrap().needs.glibc, None);
    }

    #[test]
    fn what_is_another_package_or_none_is_said() {
        let said = |bytes: Vec<u8>| package(&mut Cursor::new(bytes)).unwrap_err().to_string();
        assert!(said(package_of(&[(NAME, &["nginx"])])).contains("the package \"nginx\""));
        assert!(said(package_of(&[])).contains("the package \"\""));
        let whole = package_of(&[(NAME, &["backhaul"])]);
        for length in [LEAD as usize + 10, whole.len() - 3] {
            let cut = package(&mut Cursor::new(&whole[..length]));
            assert!(matches!(&cut, Err(Fault::Read(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof), "{cut:?}");
        }
        let with = |at: usize, number: u32| {
            let mut package = whole.clone();
            package[at..at + 4].copy_from_slice(&number.to_be_bytes());
            package
        };
        let (entries, size) = (LEAD as usize + 8, LEAD as usize + 12);
        for bad in [with(LEAD as usize, 0), with(entries, u32::MAX), with(size, u32::MAX)] {
            assert_eq!(said(bad), "it is no RPM package of a known kind");
        }
        // A text that begins behind the end of all is none.
        let second = whole.len() - "backhaul\0".len() - 8;
        assert!(said(with(second, u32::MAX)).contains("the package \"\""));
    }
}
