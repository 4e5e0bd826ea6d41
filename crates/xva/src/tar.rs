//! The headers of a tar archive, as far as an XVA uses them: regular files with short names.

/// Bytes of a record, the unit of a tar archive.
pub(crate) const RECORD: usize = 512;

const NAME: usize = 100;
const SIZE: std::ops::Range<usize> = 124..136;
const CHECKSUM: std::ops::Range<usize> = 148..156;
const KIND: usize = 156;
const MAGIC: std::ops::Range<usize> = 257..263;
const PREFIX: std::ops::Range<usize> = 345..500;

/// Name and size of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub name: String,
    /// Bytes of data.
    pub size: u64,
}

impl Header {
    /// The record of a regular file. Names of an XVA are short; `None` for one that does not fit, or a size that does not.
    pub fn to_record(&self) -> Option<[u8; RECORD]> {
        let mut record = [0; RECORD];
        let mut put = |offset: usize, value: &[u8]| record[offset..offset + value.len()].copy_from_slice(value);
        if self.name.len() >= NAME || self.name.contains('\0') || self.size >= 1 << 33 {
            return None;
        }
        put(0, self.name.as_bytes());
        put(100, b"0000644\0");
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(SIZE.start, format!("{:011o}\0", self.size).as_bytes());
        put(136, b"00000000000\0");
        put(KIND, b"0");
        put(MAGIC.start, b"ustar\x0000");
        let sum = sums(&record).0;
        record[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        Some(record)
    }

    /// Reads a record.
    pub fn parse(record: &[u8; RECORD]) -> Result<Self, &'static str> {
        let stored = octal(&record[CHECKSUM]).ok_or("its checksum is no number")?;
        let (unsigned, signed) = sums(record);
        if stored != unsigned && i64::try_from(stored) != Ok(signed) {
            return Err("its checksum is wrong");
        }
        if !matches!(record[KIND], b'0' | 0) {
            return Err("it is no regular file");
        }
        let mut name = text(&record[..NAME])?;
        if &record[MAGIC] == b"ustar\0" && record[PREFIX.start] != 0 {
            name = format!("{}/{name}", text(&record[PREFIX])?);
        }
        let size = octal(&record[SIZE]).ok_or("its size is no number")?;
        Ok(Self { name, size })
    }
}

/// Bytes that fill the last record behind `size` bytes of data.
pub(crate) fn padding(size: u64) -> usize {
    (size.next_multiple_of(RECORD as u64) - size) as usize
}

fn text(field: &[u8]) -> Result<String, &'static str> {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8(field[..end].to_vec()).map_err(|_| "its name is not UTF-8")
}

/// Octal digits, surrounded by spaces and NULs as each tar program likes.
fn octal(field: &[u8]) -> Option<u64> {
    let padding = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !padding(byte))?;
    let digits = field[start..].split(padding).next()?;
    digits.iter().try_fold(0_u64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// The sum of all bytes with spaces for the checksum, of unsigned and of signed bytes: both are in use.
fn sums(record: &[u8; RECORD]) -> (u64, i64) {
    let bytes = || record.iter().enumerate().map(|(at, byte)| if CHECKSUM.contains(&at) { b' ' } else { *byte });
    (bytes().map(u64::from).sum(), bytes().map(|byte| i64::from(byte.cast_signed())).sum())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_record_is_what_tar_writes() {
        let record = Header { name: "Ref:3/00000000".into(), size: 1 << 20 }.to_record().unwrap();
        assert_eq!(&record[124..136], b"00004000000\0");
        assert_eq!(&record[257..265], b"ustar\x0000");
        assert_eq!(Header { name: "x".repeat(100), size: 0 }.to_record(), None);
    }

    #[test]
    fn other_kinds_of_entries_are_refused() {
        let mut record = Header { name: "link".into(), size: 0 }.to_record().unwrap();
        record[KIND] = b'2';
        assert_eq!(Header::parse(&record), Err("its checksum is wrong"));
        let sum = sums(&record).0;
        record[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        assert_eq!(Header::parse(&record), Err("it is no regular file"));
    }

    proptest! {
        #[test]
        fn reads_back_what_it_writes(name in "[^\0]{1,24}", size in 0..1_u64 << 33) {
            let header = Header { name, size };
            prop_assert_eq!(Header::parse(&header.to_record().unwrap()), Ok(header));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), RECORD)) {
            let mut record: [u8; RECORD] = bytes.try_into().unwrap();
            let _ = Header::parse(&record);
            let sum = sums(&record).0;
            record[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            let _ = Header::parse(&record);
        }
    }
}
