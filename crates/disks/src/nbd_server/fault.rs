//! What the server does wrong when asked to.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Faults of an NBD server; the default is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NbdFaults {
    /// A connection breaks once it has sent so many bytes of disk content…
    pub cut_after_bytes: Option<u64>,
    /// … this often; then the server behaves.
    pub cuts: u32,
    /// Reads that touch these bytes of the disk are answered with an I/O error…
    pub error_range: Option<Range<u64>>,
    /// … this often.
    pub errors: u32,
    /// Content is sent no faster than so many bytes per second and connection.
    pub bytes_per_second: Option<u64>,
    /// Each reply waits so long first, as over a long line.
    pub latency: Duration,
    /// STARTTLS is refused by policy.
    pub refuse_tls: bool,
    /// New connections are closed before the greeting.
    pub refuse_connections: bool,
    /// So many replies announce their data, send half of it, and then the connection ends.
    pub short_reads: u32,
    /// Replies come in another order than the requests, wherever there are several.
    pub reorder: bool,
}

/// The faults in force, switched from outside while the server runs.
#[derive(Debug, Clone, Default)]
pub struct NbdFaultSwitch(Arc<Mutex<NbdFaults>>);

impl NbdFaultSwitch {
    /// The faults in force, with what is left of those that are counted.
    pub fn get(&self) -> NbdFaults {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts other faults in force.
    pub fn set(&self, faults: NbdFaults) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = faults;
    }

    /// Uses up one of a counted fault.
    pub(super) fn take(&self, count: impl FnOnce(&mut NbdFaults) -> &mut u32) -> bool {
        let mut faults = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let left = count(&mut faults);
        let any = *left > 0;
        *left = left.saturating_sub(1);
        any
    }
}
