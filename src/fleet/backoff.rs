//! How long to wait before trying again.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Longest wait.
const CAP: Duration = Duration::from_secs(30);

/// Waits that double up to 30 s, each shortened by up to a quarter at random, so that a fleet does not come back in step.
pub(super) struct Backoff {
    first: Duration,
    tries: u32,
    random: RandomState,
}

impl Backoff {
    /// Begins with a second.
    pub fn new() -> Self {
        Self { first: Duration::from_secs(1), tries: 0, random: RandomState::new() }
    }

    /// Begins with a tenth of a second, for a line that was fine a moment ago.
    pub fn quick() -> Self {
        Self { first: Duration::from_millis(100), ..Self::new() }
    }

    /// The next wait.
    pub fn next(&mut self) -> Duration {
        let full = self.first.saturating_mul(1 << self.tries.min(16)).min(CAP);
        // The standard library's hasher is seeded from the system; this is all the randomness jitter needs.
        let part = self.random.hash_one(self.tries) % 256;
        self.tries = self.tries.saturating_add(1);
        full - full * part as u32 / 1024
    }

    /// Begins anew: it worked.
    pub fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_never_beyond() {
        let mut backoff = Backoff::new();
        let waits: Vec<Duration> = (0..100).map(|_| backoff.next()).collect();
        assert!(waits[0] <= Duration::from_secs(1) && waits[0] >= Duration::from_millis(750));
        assert!(waits[5..].iter().all(|wait| *wait <= CAP && *wait >= CAP * 3 / 4), "{waits:?}");
        backoff.reset();
        assert!(backoff.next() <= Duration::from_secs(1));
    }
}
