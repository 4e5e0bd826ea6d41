//! The store behind a lock, with a bell that rings at every change.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::store::Store;
use crate::tally;

/// Records shared by everything in a pool.
pub(crate) struct Database {
    store: Mutex<Store>,
    /// For threads.
    changed: Condvar,
    /// For tasks: the generation.
    generation: watch::Sender<u64>,
}

impl Database {
    /// Around a store.
    pub fn new(store: Store) -> Self {
        let generation = watch::Sender::new(store.generation());
        Self { store: Mutex::new(store), changed: Condvar::new(), generation }
    }

    /// Reads or changes records; nothing in `work` may block.
    pub fn with<R>(&self, work: impl FnOnce(&mut Store) -> R) -> R {
        let mut store = self.lock();
        let (before, durable) = (store.generation(), store.durable_generation());
        let result = work(&mut store);
        if store.durable_generation() != durable {
            tally::reckon(&mut store);
        }
        let after = store.generation();
        drop(store);
        if after != before {
            self.changed.notify_all();
            self.generation.send_if_modified(|seen| {
                let newer = after > *seen;
                *seen = (*seen).max(after);
                newer
            });
        }
        result
    }

    /// Blocks until `look` sees what it looks for, or the time is up.
    pub fn wait_for<R>(&self, time: Duration, look: impl Fn(&Store) -> Option<R>) -> Option<R> {
        let deadline = Instant::now() + time;
        let mut store = self.lock();
        loop {
            if let Some(seen) = look(&store) {
                return Some(seen);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            store = self.changed.wait_timeout(store, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Tells of every change from now on.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
