//! A small deterministic source of numbers: one seed makes the same world twice.

use uuid::Uuid;

/// SplitMix64: eight good bytes a step, no state worth protecting. Not for secrets.
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// An independent sequence named by a text, so that adding one disk does not change the others.
    pub fn fork(&self, name: &str) -> Self {
        Self(xxhash_rust::xxh64::xxh64(name.as_bytes(), self.0))
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is at least 1.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound.max(1)
    }

    /// Fills a buffer.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            chunk.copy_from_slice(&self.next_u64().to_le_bytes()[..chunk.len()]);
        }
    }

    /// A UUID of version 4, the only one XO accepts as a disk's identity (backup-repository.md H2).
    pub fn uuid(&mut self) -> Uuid {
        let mut bytes = [0; 16];
        self.fill(&mut bytes);
        uuid::Builder::from_random_bytes(bytes).into_uuid()
    }

    /// `count` different numbers below `bound`, ascending; all of them when there are not so many.
    pub fn choose(&mut self, count: u64, bound: u64) -> Vec<u64> {
        // Selection sampling: one pass, no table, already sorted.
        let mut wanted = count.min(bound);
        let mut chosen = Vec::new();
        for index in 0..bound {
            if wanted == 0 {
                break;
            }
            if self.below(bound - index) < wanted {
                chosen.push(index);
                wanted -= 1;
            }
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_makes_one_sequence() {
        let mut buffers = [[0; 21], [0; 21]];
        for buffer in &mut buffers {
            Rng::new(7).fork("disk").fill(buffer);
        }
        assert_eq!(buffers[0], buffers[1]);
        assert_ne!(Rng::new(7).fork("a").next_u64(), Rng::new(7).fork("b").next_u64());
    }

    #[test]
    fn choices_are_exact_ascending_and_in_range() {
        for (count, bound) in [(0, 10), (3, 10), (10, 10), (20, 10), (5, 0)] {
            let chosen = Rng::new(1).choose(count, bound);
            assert_eq!(chosen.len() as u64, count.min(bound));
            assert!(chosen.windows(2).all(|pair| pair[0] < pair[1]) && chosen.iter().all(|n| *n < bound));
        }
    }

    #[test]
    fn uuids_are_version_4() {
        let id = Rng::new(3).uuid();
        assert_eq!((id.get_version_num(), id.get_variant()), (4, uuid::Variant::RFC4122));
    }
}
