//! A limit in bytes per second, shared by all transfers of a run.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A token bucket without bucket: it only remembers when the next byte is due.
///
/// Who takes bytes reserves the time they need and sleeps until it has come, so transfers are served in the order in
/// which they ask, and the mean over any long time is the limit whatever their number.
pub struct Limiter {
    bytes_per_second: u64,
    due: Mutex<Option<Instant>>,
}

impl Limiter {
    /// A limit; 0: none.
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, due: Mutex::new(None) }
    }

    /// How long to wait before `bytes` may move; none: not at all. The time is reserved by asking.
    pub fn reserve(&self, bytes: u64) -> Option<Instant> {
        if self.bytes_per_second == 0 {
            return None;
        }
        let now = Instant::now();
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let start = due.map_or(now, |due| due.max(now));
        // A rate of one byte a second and a block of 2 MiB make 24 days: still a time, never an overflow.
        *due = Some(start + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64));
        (start > now).then_some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn take(limiter: &Limiter, bytes: u64) {
        if let Some(due) = limiter.reserve(bytes) {
            tokio::time::sleep_until(due).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_mean_is_the_limit_whatever_the_number_of_takers() {
        let limiter = Limiter::new(10_000);
        let start = Instant::now();
        let takers = (0..4).map(|_| async {
            for _ in 0..25 {
                take(&limiter, 1000).await;
            }
        });
        futures::future::join_all(takers).await;
        // 100 takes of 0.1 s; the first begins at once.
        let elapsed = start.elapsed().as_secs_f64();
        assert!((elapsed - 9.9).abs() < 0.01, "{elapsed}");
    }

    #[tokio::test(start_paused = true)]
    async fn time_not_used_is_not_saved_up() {
        let limiter = Limiter::new(1000);
        take(&limiter, 1000).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let start = Instant::now();
        take(&limiter, 1000).await;
        take(&limiter, 1000).await;
        assert!(start.elapsed() >= Duration::from_millis(999));
    }

    #[tokio::test(start_paused = true)]
    async fn zero_is_no_limit() {
        let limiter = Limiter::new(0);
        assert_eq!(limiter.reserve(u64::MAX), None);
    }
}
