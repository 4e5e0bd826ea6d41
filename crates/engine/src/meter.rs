//! The meter of a task: bytes, speed, and the name of every wait.
//!
//! Movers add to it from any thread and never wait for it; the recorder looks at it twice a second. What a disk adds
//! also counts for its VM, so that the sum of the disks is the VM's number, always.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::{Phase, TransferMeter, Wait, Waits};
use tokio::time::Instant;

/// Over this time the speed is smoothed: long enough not to jump at every block, short enough to see a stall.
const SMOOTHING: Duration = Duration::from_secs(3);

const WAITS: [Wait; 6] = [Wait::Source, Wait::Cpu, Wait::Target, Wait::Limit, Wait::Lock, Wait::XapiTask];

/// Counts what one task has moved and what it has waited for.
pub struct Meter {
    parent: Option<Arc<Meter>>,
    done: AtomicU64,
    total: AtomicU64,
    total_known: AtomicBool,
    read: AtomicU64,
    written: AtomicU64,
    waited_micros: [AtomicU64; WAITS.len()],
    slow: Mutex<Slow>,
}

/// What changes seldom.
struct Slow {
    phase: Phase,
    waits: Vec<OpenWait>,
    next_wait: u64,
    speed: Speed,
    last: Option<TransferMeter>,
}

struct OpenWait {
    id: u64,
    wait: Wait,
    since: Instant,
    words: Arc<str>,
}

impl Meter {
    /// A meter at zero whose bytes count for `parent` too.
    pub fn new(parent: Option<Arc<Meter>>) -> Self {
        let slow = Slow { phase: Phase::Queued, waits: Vec::new(), next_wait: 0, speed: Speed::new(Instant::now()), last: None };
        Self {
            parent,
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            total_known: AtomicBool::new(false),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            waited_micros: Default::default(),
            slow: Mutex::new(slow),
        }
    }

    /// Bytes of content dealt with: moved, or known to be zero.
    pub fn add_done(&self, bytes: u64) {
        self.chain(|meter| &meter.done, bytes);
    }

    /// Bytes read from the source.
    pub fn add_read(&self, bytes: u64) {
        self.chain(|meter| &meter.read, bytes);
    }

    /// Bytes written to targets.
    pub fn add_written(&self, bytes: u64) {
        self.chain(|meter| &meter.written, bytes);
    }

    /// More content to deal with; from now on the total is known.
    pub fn add_total(&self, bytes: u64) {
        self.total_known.store(true, Ordering::Relaxed);
        self.total.fetch_add(bytes, Ordering::Relaxed);
        if let Some(parent) = &self.parent {
            parent.add_total(bytes);
        }
    }

    /// Takes back what was counted, because the transfer begins anew on another path.
    pub fn restart(&self) {
        let (done, total) = (self.done.swap(0, Ordering::Relaxed), self.total.swap(0, Ordering::Relaxed));
        self.total_known.store(false, Ordering::Relaxed);
        let mut parent = self.parent.as_ref();
        while let Some(meter) = parent {
            meter.done.fetch_sub(done, Ordering::Relaxed);
            meter.total.fetch_sub(total, Ordering::Relaxed);
            parent = meter.parent.as_ref();
        }
        self.slow().speed.forget();
    }

    fn chain(&self, field: impl Fn(&Meter) -> &AtomicU64 + Copy, bytes: u64) {
        field(self).fetch_add(bytes, Ordering::Relaxed);
        let mut parent = self.parent.as_ref();
        while let Some(meter) = parent {
            field(meter).fetch_add(bytes, Ordering::Relaxed);
            parent = meter.parent.as_ref();
        }
    }

    /// Changes the phase; whether it was another.
    pub fn set_phase(&self, phase: Phase) -> bool {
        let mut slow = self.slow();
        std::mem::replace(&mut slow.phase, phase) != phase
    }

    /// Counts the time until the guard is dropped as a wait, for this task and those above it.
    #[must_use]
    pub fn wait(self: &Arc<Self>, wait: Wait, words: &Arc<str>) -> WaitGuard {
        let since = Instant::now();
        let mut slow = self.slow();
        let id = slow.next_wait;
        slow.next_wait += 1;
        slow.waits.push(OpenWait { id, wait, since, words: Arc::clone(words) });
        drop(slow);
        let parent = self.parent.as_ref().map(|parent| Box::new(parent.wait(wait, words)));
        WaitGuard { meter: Arc::clone(self), id, wait, since, _parent: parent }
    }

    /// Bytes done and bytes written.
    pub fn totals(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.written.load(Ordering::Relaxed))
    }

    /// The meter now.
    pub fn read(&self) -> TransferMeter {
        let now = Instant::now();
        let mut slow = self.slow();
        let bytes_done = self.done.load(Ordering::Relaxed);
        slow.speed.sample(bytes_done, now);
        let mut waits = Waits::new();
        for (wait, micros) in WAITS.iter().zip(&self.waited_micros) {
            let open: Duration = slow.waits.iter().filter(|open| open.wait == *wait).map(|open| now - open.since).sum();
            let millis = micros.load(Ordering::Relaxed) / 1000 + open.as_millis() as u64;
            if millis > 0 {
                waits.insert(*wait, millis);
            }
        }
        TransferMeter {
            phase: slow.phase,
            bytes_done,
            bytes_total: self.total_known.load(Ordering::Relaxed).then(|| self.total.load(Ordering::Relaxed)),
            bytes_read: self.read.load(Ordering::Relaxed),
            bytes_written: self.written.load(Ordering::Relaxed),
            bytes_per_second: if slow.phase == Phase::Done { 0 } else { slow.speed.bytes_per_second() },
            // The oldest open wait: what has been holding the task back for longest.
            waiting_for: slow.waits.iter().min_by_key(|open| open.since).map(|open| open.words.to_string()),
            waits,
        }
    }

    /// The meter, if it says anything but what it said last.
    pub(crate) fn take_news(&self) -> Option<TransferMeter> {
        let meter = self.read();
        let mut slow = self.slow();
        // Time alone is no news: a task that only waits for the same thing is written once, and its reader counts.
        let known = slow.last.as_ref().is_some_and(|last| {
            TransferMeter { waits: Waits::new(), ..last.clone() } == TransferMeter { waits: Waits::new(), ..meter.clone() }
        });
        if known || (slow.last.is_none() && meter == TransferMeter::default()) {
            return None;
        }
        slow.last = Some(meter.clone());
        Some(meter)
    }

    fn slow(&self) -> MutexGuard<'_, Slow> {
        self.slow.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A wait that goes on until this is dropped.
pub struct WaitGuard {
    meter: Arc<Meter>,
    id: u64,
    wait: Wait,
    since: Instant,
    _parent: Option<Box<WaitGuard>>,
}

impl Drop for WaitGuard {
    fn drop(&mut self) {
        let index = WAITS.iter().position(|wait| *wait == self.wait).unwrap_or_default();
        let micros = self.since.elapsed().as_micros() as u64;
        self.meter.slow().waits.retain(|open| open.id != self.id);
        self.meter.waited_micros[index].fetch_add(micros, Ordering::Relaxed);
    }
}

/// Bytes per second with exponential forgetting.
struct Speed {
    at: Instant,
    bytes: u64,
    rate: f64,
    /// How much of the smoothing window is filled; corrects the slow start of an average that begins at zero.
    weight: f64,
}

impl Speed {
    fn new(at: Instant) -> Self {
        Self { at, bytes: 0, rate: 0.0, weight: 0.0 }
    }

    fn sample(&mut self, bytes: u64, now: Instant) {
        let seconds = (now - self.at).as_secs_f64();
        if seconds < 0.2 {
            return;
        }
        let keep = (-seconds / SMOOTHING.as_secs_f64()).exp();
        self.rate = keep * self.rate + (1.0 - keep) * (bytes.saturating_sub(self.bytes) as f64 / seconds);
        self.weight = keep * self.weight + (1.0 - keep);
        (self.at, self.bytes) = (now, bytes);
    }

    fn bytes_per_second(&self) -> u64 {
        let rate = if self.weight > 0.0 { self.rate / self.weight } else { 0.0 };
        // Below a byte per second it is the tail of the average, not a movement.
        if rate < 1.0 { 0 } else { rate as u64 }
    }

    fn forget(&mut self) {
        *self = Self::new(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[tokio::test(start_paused = true)]
    async fn a_steady_flow_shows_its_speed_from_the_first_second() {
        let meter = Meter::new(None);
        for _ in 0..2 {
            tokio::time::advance(Duration::from_millis(500)).await;
            meter.add_done(50 * MIB);
            meter.read();
        }
        let speed = meter.read().bytes_per_second;
        assert!(speed.abs_diff(100 * MIB) < MIB, "{speed}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stall_brings_the_speed_down_to_zero() {
        let meter = Meter::new(None);
        tokio::time::advance(Duration::from_secs(1)).await;
        meter.add_done(100 * MIB);
        assert!(meter.read().bytes_per_second > 90 * MIB);
        for _ in 0..120 {
            tokio::time::advance(Duration::from_millis(500)).await;
            meter.read();
        }
        assert_eq!(meter.read().bytes_per_second, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn waits_are_counted_by_name_while_they_last_and_after() {
        let vm = Arc::new(Meter::new(None));
        let disk = Arc::new(Meter::new(Some(Arc::clone(&vm))));
        let guard = disk.wait(Wait::Source, &"NBD read of xvda".into());
        tokio::time::advance(Duration::from_secs(2)).await;
        let open = disk.read();
        assert_eq!(open.waits[&Wait::Source], 2000);
        assert_eq!(open.waiting_for.as_deref(), Some("NBD read of xvda"));
        drop(guard);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(disk.read().waits[&Wait::Source], 2000);
        assert_eq!(vm.read().waits[&Wait::Source], 2000);
        assert_eq!(disk.read().waiting_for, None);
    }

    #[tokio::test]
    async fn disks_add_up_to_their_vm_even_after_a_new_start() {
        let vm = Arc::new(Meter::new(None));
        let disks: Vec<_> = (0..3).map(|_| Meter::new(Some(Arc::clone(&vm)))).collect();
        for (index, disk) in disks.iter().enumerate() {
            disk.add_total(10 * MIB);
            disk.add_done(index as u64 * MIB);
        }
        disks[2].restart();
        disks[2].add_total(4 * MIB);
        disks[2].add_done(MIB);
        let meter = vm.read();
        assert_eq!((meter.bytes_done, meter.bytes_total), (2 * MIB, Some(24 * MIB)));
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_alone_is_no_news() {
        let meter = Arc::new(Meter::new(None));
        let _guard = meter.wait(Wait::Target, &"a slow disk".into());
        assert!(meter.take_news().is_some());
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(meter.take_news().is_none());
        meter.add_done(1);
        assert!(meter.take_news().is_some());
    }
}
