//! Cylinders, heads and sectors, which no reader needs and every writer writes (backup-repository.md §3.3).

use crate::SECTOR;

/// The fiction of a hard disk's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Cylinders.
    pub cylinders: u16,
    /// Heads.
    pub heads: u8,
    /// Sectors of a track.
    pub sectors_per_track: u8,
}

impl Geometry {
    /// The shape of a disk of `virtual_size` bytes. Cylinders are rounded up, where the specification rounds down: the
    /// shape then covers the whole disk.
    pub fn of(virtual_size: u64) -> Self {
        let total = virtual_size.div_ceil(SECTOR as u64).min(65_535 * 16 * 255);
        let (sectors_per_track, heads) = if total >= 65_535 * 16 * 63 {
            (255, 16)
        } else {
            let heads = (total / 17).div_ceil(1024).max(4);
            if heads <= 16 && total / 17 < heads * 1024 {
                (17, heads)
            } else if total / 31 < 16 * 1024 {
                (31, 16)
            } else {
                (63, 16)
            }
        };
        let cylinders = total.div_ceil(sectors_per_track * heads);
        Self { cylinders: cylinders as u16, heads: heads as u8, sectors_per_track: sectors_per_track as u8 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn known_shapes() {
        let cases = [
            (0, (0, 4, 17)),
            (5 * MIB, (151, 4, 17)),
            (100 * MIB, (1004, 12, 17)),
            (1024 * MIB, (2081, 16, 63)),
            (2040 * 1024 * MIB, (65_535, 16, 255)),
        ];
        for (size, (cylinders, heads, sectors_per_track)) in cases {
            assert_eq!(Geometry::of(size), Geometry { cylinders, heads, sectors_per_track }, "{size}");
        }
    }

    proptest! {
        #[test]
        fn it_covers_the_disk_and_no_cylinder_more(size in 0..65_535 * 16 * 255 * 512_u64) {
            let shape = Geometry::of(size);
            let cylinder = u64::from(shape.heads) * u64::from(shape.sectors_per_track);
            let covered = u64::from(shape.cylinders) * cylinder;
            let needed = size.div_ceil(512);
            prop_assert!(covered >= needed && covered < needed + cylinder);
        }
    }
}
