//! The checksum of footers and headers (backup-repository.md §3.4).

/// One's complement of the sum of all bytes but the four at `field`, where the checksum itself stands.
pub(crate) fn of(structure: &[u8], field: usize) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    !(sum(&structure[..field]) + sum(&structure[field + 4..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_itself_does_not_count() {
        let mut bytes = [1; 16];
        let checksum = of(&bytes, 8);
        assert_eq!(checksum, !12);
        bytes[8..12].fill(0xEE);
        assert_eq!(of(&bytes, 8), checksum);
        bytes[12] = 2;
        assert_ne!(of(&bytes, 8), checksum);
    }
}
