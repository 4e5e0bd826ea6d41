//! The footer: what a disk is (backup-repository.md §3.1). It stands at the end of a file and, as a copy, at its beginning.

use uuid::{Uuid, Variant};

use crate::{FOOTER_SIZE, FormatError, Geometry, checksum};

const COOKIE: &[u8; 8] = b"conectix";
const CHECKSUM_FIELD: usize = 64;
pub(crate) const VERSION: u32 = 0x0001_0000;
/// Where the header stands: right behind the leading footer.
const HEADER_OFFSET: u64 = FOOTER_SIZE as u64;

/// Whether a disk stands alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskType {
    /// Type 3: complete in itself; an absent block is zero.
    Dynamic,
    /// Type 4: an absent block is the parent's.
    Differencing,
}

impl DiskType {
    fn code(self) -> u32 {
        match self {
            Self::Dynamic => 3,
            Self::Differencing => 4,
        }
    }
}

/// What a disk is: sizes, type, identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    /// Feature bits; 2 is "reserved, always set".
    pub features: u32,
    /// Seconds since 1970 as Xen Orchestra writes them, since 2000 as others do. Never relied on.
    pub timestamp: u32,
    /// Program that wrote the disk.
    pub creator_application: [u8; 4],
    /// Its version.
    pub creator_version: u32,
    /// The system it ran on.
    pub creator_host_os: u32,
    /// Size at creation, bytes.
    pub original_size: u64,
    /// Size of the disk, bytes, exact.
    pub current_size: u64,
    /// Shape, ignored by readers.
    pub geometry: Geometry,
    /// Dynamic or differencing.
    pub disk_type: DiskType,
    /// Identity of the content: the UUID of the snapshot VDI it was exported from.
    pub unique_id: Uuid,
    /// 1 for a suspended machine's disk; 0 otherwise.
    pub saved_state: u8,
    /// 1 for a disk hidden by the storage manager that made it; 0 otherwise.
    pub hidden: u8,
}

impl Footer {
    /// The footer of a disk of `virtual_size` bytes, as Xen Orchestra writes it. `timestamp` is in seconds since 1970.
    pub fn new(virtual_size: u64, unique_id: Uuid, disk_type: DiskType, timestamp: u32) -> Self {
        Self {
            features: 2,
            timestamp,
            creator_application: *b"xo  ",
            creator_version: 0,
            creator_host_os: u32::from_be_bytes(*b"Wi2k"),
            original_size: virtual_size,
            current_size: virtual_size,
            geometry: Geometry::of(virtual_size),
            disk_type,
            unique_id,
            saved_state: 0,
            hidden: 0,
        }
    }

    /// Reads a footer.
    ///
    /// # Errors
    /// Everything but 512 bytes with the right cookie, version, checksum, header position, a known type and sizes in
    /// order.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let bytes: &[u8; FOOTER_SIZE] = bytes.try_into().map_err(|_| FormatError::Length {
            structure: "footer",
            expected: FOOTER_SIZE,
            found: bytes.len(),
        })?;
        let cookie = array(bytes, 0);
        if &cookie != COOKIE {
            return Err(FormatError::Cookie { structure: "footer", found: cookie });
        }
        verify_checksum("footer", bytes, CHECKSUM_FIELD)?;
        let version = u32::from_be_bytes(array(bytes, 12));
        if version != VERSION {
            return Err(FormatError::Version { structure: "footer", found: version });
        }
        let data_offset = u64::from_be_bytes(array(bytes, 16));
        let disk_type = match u32::from_be_bytes(array(bytes, 60)) {
            3 => DiskType::Dynamic,
            4 => DiskType::Differencing,
            other => return Err(FormatError::DiskType(other)),
        };
        if data_offset != HEADER_OFFSET {
            return Err(FormatError::DataOffset { structure: "footer", expected: HEADER_OFFSET, found: data_offset });
        }
        let footer = Self {
            features: u32::from_be_bytes(array(bytes, 8)),
            timestamp: u32::from_be_bytes(array(bytes, 24)),
            creator_application: array(bytes, 28),
            creator_version: u32::from_be_bytes(array(bytes, 32)),
            creator_host_os: u32::from_be_bytes(array(bytes, 36)),
            original_size: u64::from_be_bytes(array(bytes, 40)),
            current_size: u64::from_be_bytes(array(bytes, 48)),
            geometry: Geometry {
                cylinders: u16::from_be_bytes(array(bytes, 56)),
                heads: bytes[58],
                sectors_per_track: bytes[59],
            },
            disk_type,
            unique_id: Uuid::from_bytes(array(bytes, 68)),
            saved_state: bytes[84],
            hidden: bytes[85],
        };
        if footer.original_size > footer.current_size {
            return Err(FormatError::Shrunk { original: footer.original_size, current: footer.current_size });
        }
        Ok(footer)
    }

    /// The 512 bytes, checksum included.
    pub fn to_bytes(&self) -> [u8; FOOTER_SIZE] {
        let mut bytes = [0; FOOTER_SIZE];
        let mut put = |offset: usize, value: &[u8]| bytes[offset..offset + value.len()].copy_from_slice(value);
        put(0, COOKIE);
        put(8, &self.features.to_be_bytes());
        put(12, &VERSION.to_be_bytes());
        put(16, &HEADER_OFFSET.to_be_bytes());
        put(24, &self.timestamp.to_be_bytes());
        put(28, &self.creator_application);
        put(32, &self.creator_version.to_be_bytes());
        put(36, &self.creator_host_os.to_be_bytes());
        put(40, &self.original_size.to_be_bytes());
        put(48, &self.current_size.to_be_bytes());
        put(56, &self.geometry.cylinders.to_be_bytes());
        put(58, &[self.geometry.heads, self.geometry.sectors_per_track]);
        put(60, &self.disk_type.code().to_be_bytes());
        put(68, self.unique_id.as_bytes());
        put(84, &[self.saved_state, self.hidden]);
        let sum = checksum::of(&bytes, CHECKSUM_FIELD);
        bytes[CHECKSUM_FIELD..CHECKSUM_FIELD + 4].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// Whether the disk needs its parent.
    pub fn is_differencing(&self) -> bool {
        self.disk_type == DiskType::Differencing
    }
}

/// Whether Xen Orchestra can follow a link to a disk of this identity. It knows only RFC 4122 versions 1 to 5, and its
/// clean deletes the parents behind links it cannot read (backup-repository.md §8 H2): write no disk with another id.
pub fn is_linkable_id(id: Uuid) -> bool {
    id.is_nil() || (id.get_variant() == Variant::RFC4122 && (1..=5).contains(&id.get_version_num()))
}

/// `N` bytes at a constant offset of a structure whose length is checked.
pub(crate) fn array<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[offset..offset + N]);
    array
}

pub(crate) fn verify_checksum(structure: &'static str, bytes: &[u8], field: usize) -> Result<(), FormatError> {
    let stored = u32::from_be_bytes(array(bytes, field));
    let computed = checksum::of(bytes, field);
    if stored == computed { Ok(()) } else { Err(FormatError::Checksum { structure, stored, computed }) }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn any_footer() -> impl Strategy<Value = Footer> {
        let disk_type = prop_oneof![Just(DiskType::Dynamic), Just(DiskType::Differencing)];
        (
            any::<[u32; 4]>(),
            any::<[u8; 4]>(),
            any::<(u64, u64)>(),
            any::<(u16, u8, u8)>(),
            disk_type,
            any::<u128>(),
            any::<[u8; 2]>(),
        )
            .prop_map(|(words, creator_application, sizes, shape, disk_type, id, [saved_state, hidden])| Footer {
                features: words[0],
                timestamp: words[1],
                creator_application,
                creator_version: words[2],
                creator_host_os: words[3],
                original_size: sizes.0.min(sizes.1),
                current_size: sizes.0.max(sizes.1),
                geometry: Geometry { cylinders: shape.0, heads: shape.1, sectors_per_track: shape.2 },
                disk_type,
                unique_id: Uuid::from_u128(id),
                saved_state,
                hidden,
            })
    }

    fn sample() -> [u8; FOOTER_SIZE] {
        let id = Uuid::parse_str("5a3b1c2d-0e4f-4a6b-8c7d-9e0f1a2b3c4d").unwrap();
        Footer::new(5 << 20, id, DiskType::Dynamic, 1_700_000_000).to_bytes()
    }

    /// The sample with some bytes changed and the checksum made right again.
    fn altered(offset: usize, bytes: &[u8]) -> Result<Footer, FormatError> {
        let mut sample = sample();
        sample[offset..offset + bytes.len()].copy_from_slice(bytes);
        let sum = checksum::of(&sample, CHECKSUM_FIELD);
        sample[64..68].copy_from_slice(&sum.to_be_bytes());
        Footer::parse(&sample)
    }

    #[test]
    fn the_bytes_are_those_of_xen_orchestra() {
        let bytes = sample();
        assert_eq!(&bytes[..8], b"conectix");
        assert_eq!(bytes[8..24], [0, 0, 0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
        assert_eq!(u32::from_be_bytes(array(&bytes, 24)), 1_700_000_000);
        assert_eq!(&bytes[28..40], b"xo  \0\0\0\0Wi2k");
        assert_eq!(bytes[40..48], bytes[48..56]);
        assert_eq!(u64::from_be_bytes(array(&bytes, 48)), 5 << 20);
        assert_eq!(bytes[60..64], [0, 0, 0, 3]);
        assert_eq!(bytes[68..84], *Uuid::parse_str("5a3b1c2d-0e4f-4a6b-8c7d-9e0f1a2b3c4d").unwrap().as_bytes());
        assert!(bytes[84..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn each_check_names_its_fault() {
        assert!(matches!(Footer::parse(&[0; 511]), Err(FormatError::Length { found: 511, .. })));
        assert!(matches!(altered(0, b"CONECTIX"), Err(FormatError::Cookie { .. })));
        assert!(matches!(altered(12, &[0, 2, 0, 0]), Err(FormatError::Version { found: 0x20000, .. })));
        assert!(matches!(altered(16, &[0xFF; 8]), Err(FormatError::DataOffset { .. })));
        assert!(matches!(altered(60, &[0, 0, 0, 2]), Err(FormatError::DiskType(2))));
        assert!(matches!(altered(40, &[1]), Err(FormatError::Shrunk { .. })));
        let mut flipped = sample();
        flipped[100] ^= 1;
        assert!(matches!(Footer::parse(&flipped), Err(FormatError::Checksum { .. })));
        assert!(altered(86, b"reserved bytes are nobody's business").is_ok());
    }

    #[test]
    fn ids_that_break_links_are_told_apart() {
        assert!(is_linkable_id(Uuid::new_v4()));
        assert!(is_linkable_id(Uuid::nil()));
        assert!(!is_linkable_id(Uuid::parse_str("0190163d-8694-739b-aea5-966c26f8ad91").unwrap()));
        assert!(!is_linkable_id(Uuid::from_u128(0x1234)));
    }

    proptest! {
        #[test]
        fn reads_back_what_it_writes(footer in any_footer()) {
            prop_assert_eq!(Footer::parse(&footer.to_bytes()), Ok(footer));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1024)) {
            let _ = Footer::parse(&bytes);
        }

        #[test]
        fn no_single_bit_flips_unseen(footer in any_footer(), bit in 0..512_usize * 8) {
            let mut bytes = footer.to_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Footer::parse(&bytes).is_err());
        }
    }
}
