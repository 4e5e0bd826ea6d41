//! The dynamic header: where the block table is, how long it is, and who the parent is (backup-repository.md §3.2).

use uuid::Uuid;

use crate::footer::{VERSION, array, verify_checksum};
use crate::{BLOCK_SIZE, Footer, FormatError, HEADER_SIZE, MAX_TABLE_ENTRIES, block_count, checksum};

const COOKIE: &[u8; 8] = b"cxsparse";
const CHECKSUM_FIELD: usize = 36;
/// A dynamic header has nothing behind it but its table; the field that could say otherwise is all ones.
const NO_DATA: u64 = u64::MAX;
const NAME: std::ops::Range<usize> = 64..576;
const NAME_UNITS: usize = 256;
const LOCATORS: usize = 576;
const LOCATOR_SIZE: usize = 24;

/// The parent of a differencing disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentLink {
    /// Unique id in the parent's footer; zero for an image that is to be laid over whatever a VDI holds
    /// (xapi-streams.md §2.5).
    pub unique_id: Uuid,
    /// Path of the parent relative to the directory of the disk (of its alias, for a directory).
    pub name: String,
}

/// A pointer to a copy of the parent's path. No longer written; kept when read from old or foreign disks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ParentLocator {
    /// Kind of path, such as `W2ku`; 0 for an unused entry.
    pub platform_code: u32,
    /// Room taken in the file, sectors.
    pub data_space: u32,
    /// Length of the path, bytes.
    pub data_length: u32,
    /// Position of the path in the file, bytes.
    pub data_offset: u64,
}

/// The dynamic header of a disk with blocks of 2 MiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DynamicHeader {
    /// Position of the block table in a file, bytes. Without meaning in a directory.
    pub table_offset: u64,
    /// Entries of the block table.
    pub max_table_entries: u32,
    /// Unique id of the parent; zero without one.
    pub parent_unique_id: Uuid,
    /// Modification time of the parent. Written as 0.
    pub parent_timestamp: u32,
    /// Path of the parent relative to the directory of this disk; empty without one.
    pub parent_name: String,
    /// Parent locators. Written unused.
    pub locators: [ParentLocator; 8],
}

impl DynamicHeader {
    /// Where the block table stands in the files written here: right behind the header, bytes.
    pub const TABLE_OFFSET: u64 = 1536;

    /// The header of a disk with `max_table_entries` blocks, as Xen Orchestra writes it.
    ///
    /// # Errors
    /// [`FormatError::TooManyEntries`], or [`FormatError::ParentName`] for a name that does not fit into the header.
    pub fn new(max_table_entries: u32, parent: Option<ParentLink>) -> Result<Self, FormatError> {
        check_entries(max_table_entries)?;
        let (parent_unique_id, parent_name) = parent.map_or_else(Default::default, |link| (link.unique_id, link.name));
        if parent_name.encode_utf16().count() > NAME_UNITS || parent_name.contains('\0') {
            return Err(FormatError::ParentName(parent_name));
        }
        Ok(Self {
            table_offset: Self::TABLE_OFFSET,
            max_table_entries,
            parent_unique_id,
            parent_timestamp: 0,
            parent_name,
            locators: [ParentLocator::default(); 8],
        })
    }

    /// The header that fits a footer: one entry per block of the disk, no slack.
    ///
    /// # Errors
    /// As [`DynamicHeader::new`].
    pub fn for_disk(footer: &Footer, parent: Option<ParentLink>) -> Result<Self, FormatError> {
        Self::new(block_count(footer.current_size)?, parent)
    }

    /// Reads a header.
    ///
    /// # Errors
    /// Everything but 1024 bytes with the right cookie, version, checksum, blocks of 2 MiB, at most
    /// [`MAX_TABLE_ENTRIES`] entries and a readable parent name.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let bytes: &[u8; HEADER_SIZE] = bytes.try_into().map_err(|_| FormatError::Length {
            structure: "header",
            expected: HEADER_SIZE,
            found: bytes.len(),
        })?;
        let cookie = array(bytes, 0);
        if &cookie != COOKIE {
            return Err(FormatError::Cookie { structure: "header", found: cookie });
        }
        verify_checksum("header", bytes, CHECKSUM_FIELD)?;
        let data_offset = u64::from_be_bytes(array(bytes, 8));
        if data_offset != NO_DATA {
            return Err(FormatError::DataOffset { structure: "header", expected: NO_DATA, found: data_offset });
        }
        let version = u32::from_be_bytes(array(bytes, 24));
        if version != VERSION {
            return Err(FormatError::Version { structure: "header", found: version });
        }
        let block_size = u32::from_be_bytes(array(bytes, 32));
        if block_size != BLOCK_SIZE as u32 {
            return Err(FormatError::BlockSize(block_size));
        }
        let max_table_entries = u32::from_be_bytes(array(bytes, 28));
        check_entries(max_table_entries)?;
        Ok(Self {
            table_offset: u64::from_be_bytes(array(bytes, 16)),
            max_table_entries,
            parent_unique_id: Uuid::from_bytes(array(bytes, 40)),
            parent_timestamp: u32::from_be_bytes(array(bytes, 56)),
            parent_name: parse_name(&bytes[NAME])?,
            locators: std::array::from_fn(|entry| parse_locator(&bytes[LOCATORS + entry * LOCATOR_SIZE..][..LOCATOR_SIZE])),
        })
    }

    /// The 1024 bytes, checksum included. A parent name that does not fit is cut, which only a header changed after
    /// [`DynamicHeader::new`] can have.
    pub fn to_bytes(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        let mut put = |offset: usize, value: &[u8]| bytes[offset..offset + value.len()].copy_from_slice(value);
        put(0, COOKIE);
        put(8, &NO_DATA.to_be_bytes());
        put(16, &self.table_offset.to_be_bytes());
        put(24, &VERSION.to_be_bytes());
        put(28, &self.max_table_entries.to_be_bytes());
        put(32, &(BLOCK_SIZE as u32).to_be_bytes());
        put(40, self.parent_unique_id.as_bytes());
        put(56, &self.parent_timestamp.to_be_bytes());
        for (unit, code) in self.parent_name.encode_utf16().take(NAME_UNITS).enumerate() {
            put(NAME.start + unit * 2, &code.to_be_bytes());
        }
        for (entry, locator) in self.locators.iter().enumerate() {
            let start = LOCATORS + entry * LOCATOR_SIZE;
            put(start, &locator.platform_code.to_be_bytes());
            put(start + 4, &locator.data_space.to_be_bytes());
            put(start + 8, &locator.data_length.to_be_bytes());
            put(start + 16, &locator.data_offset.to_be_bytes());
        }
        let sum = checksum::of(&bytes, CHECKSUM_FIELD);
        bytes[CHECKSUM_FIELD..CHECKSUM_FIELD + 4].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// Whether the table has an entry for every block of the disk; a disk for which it has not is deleted by Xen
    /// Orchestra's clean (backup-repository.md §8 H15).
    ///
    /// # Errors
    /// [`FormatError::TooFewEntries`], [`FormatError::TooManyEntries`].
    pub fn check_against(&self, footer: &Footer) -> Result<(), FormatError> {
        let needed = block_count(footer.current_size)?;
        if self.max_table_entries < needed {
            return Err(FormatError::TooFewEntries { entries: self.max_table_entries, needed, size: footer.current_size });
        }
        Ok(())
    }

    /// Whether `parent` is the footer of the disk this one was made on.
    ///
    /// # Errors
    /// [`FormatError::WrongParent`].
    pub fn check_parent(&self, parent: &Footer) -> Result<(), FormatError> {
        if self.parent_unique_id != parent.unique_id {
            return Err(FormatError::WrongParent { expected: self.parent_unique_id, found: parent.unique_id });
        }
        Ok(())
    }
}

fn check_entries(entries: u32) -> Result<(), FormatError> {
    if entries > MAX_TABLE_ENTRIES {
        return Err(FormatError::TooManyEntries { found: entries.into(), maximum: MAX_TABLE_ENTRIES });
    }
    Ok(())
}

fn parse_name(field: &[u8]) -> Result<String, FormatError> {
    let units = field.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).take_while(|unit| *unit != 0);
    char::decode_utf16(units).collect::<Result<_, _>>().map_err(|_| FormatError::ParentNameEncoding)
}

fn parse_locator(entry: &[u8]) -> ParentLocator {
    ParentLocator {
        platform_code: u32::from_be_bytes(array(entry, 0)),
        data_space: u32::from_be_bytes(array(entry, 4)),
        data_length: u32::from_be_bytes(array(entry, 8)),
        data_offset: u64::from_be_bytes(array(entry, 16)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::DiskType;

    fn any_locator() -> impl Strategy<Value = ParentLocator> {
        any::<(u32, u32, u32, u64)>().prop_map(|(platform_code, data_space, data_length, data_offset)| ParentLocator {
            platform_code,
            data_space,
            data_length,
            data_offset,
        })
    }

    fn any_header() -> impl Strategy<Value = DynamicHeader> {
        let name = "[^\0]{0,128}";
        (any::<u64>(), 0..=MAX_TABLE_ENTRIES, any::<u128>(), any::<u32>(), name, proptest::array::uniform8(any_locator()))
            .prop_map(|(table_offset, max_table_entries, id, parent_timestamp, parent_name, locators)| DynamicHeader {
                table_offset,
                max_table_entries,
                parent_unique_id: Uuid::from_u128(id),
                parent_timestamp,
                parent_name,
                locators,
            })
    }

    fn altered(offset: usize, bytes: &[u8]) -> Result<DynamicHeader, FormatError> {
        let mut sample = DynamicHeader::new(3, None).unwrap().to_bytes();
        sample[offset..offset + bytes.len()].copy_from_slice(bytes);
        let sum = checksum::of(&sample, CHECKSUM_FIELD);
        sample[36..40].copy_from_slice(&sum.to_be_bytes());
        DynamicHeader::parse(&sample)
    }

    #[test]
    fn the_bytes_are_those_of_xen_orchestra() {
        let id = Uuid::new_v4();
        let parent = ParentLink { unique_id: id, name: "20250131T231500Z.vhd".into() };
        let bytes = DynamicHeader::new(3, Some(parent)).unwrap().to_bytes();
        assert_eq!(&bytes[..8], b"cxsparse");
        assert_eq!(bytes[8..16], [0xFF; 8]);
        assert_eq!(bytes[16..36], [0, 0, 0, 0, 0, 0, 6, 0, 0, 1, 0, 0, 0, 0, 0, 3, 0, 0x20, 0, 0]);
        assert_eq!(&bytes[40..56], id.as_bytes());
        assert_eq!(bytes[56..64], [0; 8]);
        assert_eq!(&bytes[64..72], b"\x002\x000\x002\x005");
        assert!(bytes[64 + 40..].iter().all(|byte| *byte == 0), "no locator is written");
    }

    #[test]
    fn an_overlay_image_has_no_parent() {
        let bytes = DynamicHeader::new(3, None).unwrap().to_bytes();
        assert!(bytes[40..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn each_check_names_its_fault() {
        assert!(matches!(DynamicHeader::parse(&[0; 512]), Err(FormatError::Length { found: 512, .. })));
        assert!(matches!(altered(0, b"conectix"), Err(FormatError::Cookie { .. })));
        assert!(matches!(altered(8, &[0; 8]), Err(FormatError::DataOffset { found: 0, .. })));
        assert!(matches!(altered(24, &[0; 4]), Err(FormatError::Version { found: 0, .. })));
        assert!(matches!(altered(28, &[0xFF; 4]), Err(FormatError::TooManyEntries { .. })));
        assert!(matches!(altered(32, &[0, 8, 0, 0]), Err(FormatError::BlockSize(0x80000))));
        assert!(matches!(altered(64, &[0xD8, 0, 0, 1]), Err(FormatError::ParentNameEncoding)));
    }

    #[test]
    fn names_that_do_not_fit_are_refused() {
        let link = |name: String| DynamicHeader::new(1, Some(ParentLink { unique_id: Uuid::nil(), name }));
        assert_eq!(link("é".repeat(256)).unwrap().parent_name.chars().count(), 256);
        assert!(matches!(link("é".repeat(257)), Err(FormatError::ParentName(_))));
        assert!(matches!(link("a\0b".into()), Err(FormatError::ParentName(_))));
    }

    #[test]
    fn a_table_too_small_for_the_disk_is_seen() {
        let footer = Footer::new(5 << 20, Uuid::nil(), DiskType::Dynamic, 0);
        assert_eq!(DynamicHeader::for_disk(&footer, None).unwrap().max_table_entries, 3);
        DynamicHeader::new(4, None).unwrap().check_against(&footer).unwrap();
        let short = DynamicHeader::new(2, None).unwrap().check_against(&footer);
        assert!(matches!(short, Err(FormatError::TooFewEntries { entries: 2, needed: 3, .. })));
    }

    proptest! {
        #[test]
        fn reads_back_what_it_writes(header in any_header()) {
            prop_assert_eq!(DynamicHeader::parse(&header.to_bytes()), Ok(header));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 1000..1048)) {
            let _ = DynamicHeader::parse(&bytes);
        }
    }
}
