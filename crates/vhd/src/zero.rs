//! The test every block passes on its way to a repository: zeros are not stored.

/// Whether all bytes are zero. Stops at the first 256 that are not.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Sixteen 128-bit words or-ed together are what the compiler turns into a handful of vector instructions without a
    // branch; an early exit per word would be slower on zeros, which is the case that reads everything.
    let (chunks, rest) = bytes.as_chunks::<256>();
    chunks.iter().all(|chunk| {
        let (words, _) = chunk.as_chunks::<16>();
        words.iter().fold(0, |sum, word| sum | u128::from_ne_bytes(*word)) == 0
    }) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_is_zero() {
        assert!(is_zero(&[]));
        assert!(is_zero(&[0; 2 << 20]));
    }

    proptest! {
        #[test]
        fn one_bit_anywhere_is_seen(length in 1..2000_usize, position: prop::sample::Index, bit in 0..8_u8) {
            let mut bytes = vec![0; length];
            prop_assert!(is_zero(&bytes));
            bytes[position.index(length)] = 1_u8 << bit;
            prop_assert!(!is_zero(&bytes));
        }
    }
}
