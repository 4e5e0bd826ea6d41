//! A program in the Executable and Linkable Format (64 bits, little endian), as far as its needs go.

use std::io::{Read, Seek, SeekFrom};

use crate::{Fault, Glibc, Needs};

/// Type of the section that names versions of libraries (LSB, `.gnu.version_r`).
const VERNEED: u32 = 0x6FFF_FFFE;
/// Most bytes of a section that are read; real ones have a few thousand.
const MOST: u64 = 1 << 22;
/// Size of a section header, bytes.
const SECTION: usize = 64;
/// Size of a program header, bytes.
const SEGMENT: usize = 56;
/// Kind of the segment that names the dynamic linker.
const INTERPRETER: u32 = 3;

/// What a program needs.
pub(crate) fn needs(file: &mut (impl Read + Seek)) -> Result<Needs, Fault> {
    let header = read(file, 0, 64)?;
    if header[4] != 2 || header[5] != 1 {
        return Err(Fault::words("only programs with 64 bits in little endian are known"));
    }
    let machine = match u16_at(&header, 18)? {
        62 => "x86_64",
        183 => "aarch64",
        243 => "riscv64",
        21 => "ppc64le",
        other => return Err(Fault::words(format!("it is for a processor that is not known (ELF machine {other})"))),
    };
    if !matches!(u16_at(&header, 16)?, 2 | 3) {
        return Err(Fault::words("it is not executable"));
    }
    let segments = table(file, u64_at(&header, 32)?, u16_at(&header, 54)?, u16_at(&header, 56)?, SEGMENT)?;
    let dynamic = segments.chunks_exact(SEGMENT).any(|segment| u32_at(segment, 0).is_ok_and(|kind| kind == INTERPRETER));
    let mut needs = Needs { machine: machine.to_owned(), glibc: None };
    if !dynamic {
        return Ok(needs);
    }
    let sections = table(file, u64_at(&header, 40)?, u16_at(&header, 58)?, u16_at(&header, 60)?, SECTION)?;
    let sections: Vec<&[u8]> = sections.chunks_exact(SECTION).collect();
    for section in &sections {
        if u32_at(section, 4)? != VERNEED {
            continue;
        }
        let names =
            sections.get(u32_at(section, 40)? as usize).ok_or_else(|| Fault::words("its sections contradict each other"))?;
        let (versions, names) = (content(file, section)?, content(file, names)?);
        needs.glibc = highest(&versions, &names)?;
    }
    match needs.glibc {
        Some(_) => Ok(needs),
        None => Err(Fault::words("it is linked to a C library that is not the GNU one")),
    }
}

/// The highest version of the C library among those named.
fn highest(versions: &[u8], names: &[u8]) -> Result<Option<Glibc>, Fault> {
    let (mut found, mut entry) = (None, 0);
    loop {
        let mut auxiliary = entry + u32_at(versions, entry + 8)? as usize;
        for _ in 0..u16_at(versions, entry + 2)? {
            let name = text(names, u32_at(versions, auxiliary + 8)? as usize)?;
            let version = match name.strip_prefix("GLIBC_") {
                // A way of relocating that came with this version.
                Some("ABI_DT_RELR") => Some(Glibc { major: 2, minor: 36 }),
                Some(version) => version.parse().ok(),
                None => None,
            };
            found = found.max(version);
            auxiliary += u32_at(versions, auxiliary + 12)? as usize;
        }
        match u32_at(versions, entry + 12)? as usize {
            0 => return Ok(found),
            next => entry += next,
        }
    }
}

fn table(file: &mut (impl Read + Seek), offset: u64, size: u16, count: u16, expected: usize) -> Result<Vec<u8>, Fault> {
    if count > 0 && usize::from(size) != expected {
        return Err(Fault::words("its headers have another size than they must"));
    }
    read(file, offset, usize::from(count) * expected)
}

fn content(file: &mut (impl Read + Seek), section: &[u8]) -> Result<Vec<u8>, Fault> {
    let (offset, size) = (u64_at(section, 24)?, u64_at(section, 32)?);
    if size > MOST {
        return Err(Fault::words("one of its sections is larger than any real one"));
    }
    read(file, offset, size as usize)
}

fn read(file: &mut (impl Read + Seek), offset: u64, length: usize) -> Result<Vec<u8>, Fault> {
    let mut bytes = vec![0; length];
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn text(names: &[u8], offset: usize) -> Result<&str, Fault> {
    let rest = names.get(offset..).ok_or_else(early)?;
    let end = rest.iter().position(|byte| *byte == 0).ok_or_else(early)?;
    std::str::from_utf8(&rest[..end]).map_err(|_| Fault::words("one of its names is no text"))
}

fn early() -> Fault {
    Fault::words("it ends too early")
}

fn bytes<const N: usize>(from: &[u8], offset: usize) -> Result<[u8; N], Fault> {
    from.get(offset..).and_then(|rest| rest.first_chunk()).copied().ok_or_else(early)
}

fn u16_at(from: &[u8], offset: usize) -> Result<u16, Fault> {
    bytes(from, offset).map(u16::from_le_bytes)
}

fn u32_at(from: &[u8], offset: usize) -> Result<u32, Fault> {
    bytes(from, offset).map(u32::from_le_bytes)
}

fn u64_at(from: &[u8], offset: usize) -> Result<u64, Fault> {
    bytes(from, offset).map(u64::from_le_bytes)
}
