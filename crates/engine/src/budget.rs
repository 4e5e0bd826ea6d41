//! The memory of a run: who holds a block holds a permit.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use vhd::BLOCK_SIZE;

/// Permits for the blocks that may be in memory at once, over all transfers of a run.
///
/// When it is used up, reads wait until a block has been written everywhere: that is how a slow target slows the
/// source, and why memory does not grow with the number or the size of the disks.
pub struct Budget {
    permits: Arc<Semaphore>,
    blocks: usize,
    writing: Arc<AtomicUsize>,
}

impl Budget {
    /// A budget of `bytes`, at least one block.
    pub fn new(bytes: u64) -> Self {
        let blocks = usize::try_from(bytes / BLOCK_SIZE as u64).unwrap_or(usize::MAX).clamp(1, Semaphore::MAX_PERMITS);
        Self { permits: Arc::new(Semaphore::new(blocks)), blocks, writing: Arc::default() }
    }

    /// A permit for one block, as soon as there is one; in the order of asking.
    pub async fn permit(&self) -> Permit {
        let permit = Arc::clone(&self.permits).acquire_owned().await.expect("the semaphore is never closed");
        self.wrap(permit)
    }

    /// A permit for one block, if there is one now.
    pub fn try_permit(&self) -> Option<Permit> {
        Arc::clone(&self.permits).try_acquire_owned().ok().map(|permit| self.wrap(permit))
    }

    /// Whether most of the memory waits for targets rather than for sources.
    pub fn waits_for_targets(&self) -> bool {
        self.writing.load(Ordering::Relaxed) * 2 > self.blocks
    }

    fn wrap(&self, permit: OwnedSemaphorePermit) -> Permit {
        Permit { _permit: permit, writing: Arc::clone(&self.writing), is_read: false }
    }
}

/// The right to hold one block; given back when dropped.
pub struct Permit {
    _permit: OwnedSemaphorePermit,
    writing: Arc<AtomicUsize>,
    is_read: bool,
}

impl Permit {
    /// The block has been read: from now on it waits for targets.
    pub(crate) fn mark_read(&mut self) {
        if !std::mem::replace(&mut self.is_read, true) {
            self.writing.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.is_read {
            self.writing.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
