//! The time of day behind a trait, so that a test can turn a year in a second.

use futures::future::BoxFuture;
use jiff::Timestamp;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime};
use tokio::net::unix::pipe;

/// Tells the time and waits for it.
pub trait Clock: Send + Sync + 'static {
    /// Now.
    fn now(&self) -> Timestamp;

    /// Waits until that time of day, or until the clock is set: the caller looks again.
    fn sleep_until(&self, at: Timestamp) -> BoxFuture<'static, ()>;
}

/// The clock of the system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn sleep_until(&self, at: Timestamp) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if let Err(error) = wall_clock_sleep(at).await {
                tracing::warn!(%error, "no timer of the system; waiting by the running time instead");
                let left = at.duration_since(Timestamp::now()).unsigned_abs();
                tokio::time::sleep(left).await;
            }
        })
    }
}

/// A timer on the wall clock: right after a suspend, and woken when somebody sets the clock, so that nobody has to
/// wake up every minute to compare.
async fn wall_clock_sleep(at: Timestamp) -> std::io::Result<()> {
    let timer = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    // All zero would disarm it.
    let value = Timespec { tv_sec: at.as_second().max(1), tv_nsec: at.subsec_nanosecond().max(0).into() };
    let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
    timerfd_settime(&timer, flags, &Itimerspec { it_interval: zero, it_value: value })?;
    // Waited for like the end of a pipe: to the runtime both are something that becomes readable.
    let timer = pipe::Receiver::from_owned_fd_unchecked(timer)?;
    loop {
        timer.readable().await?;
        match timer.try_read(&mut [0; 8]) {
            Ok(_) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::CANCELED.raw_os_error()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_time_in_the_past_or_near_future_comes() {
        let clock = SystemClock;
        clock.sleep_until(Timestamp::UNIX_EPOCH).await;
        let soon = clock.now() + std::time::Duration::from_millis(20);
        clock.sleep_until(soon).await;
        assert!(clock.now() >= soon);
    }
}
