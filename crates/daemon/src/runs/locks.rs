//! Who works on which VM. A backup, a removal and a clean-up need a VM for themselves; reading its restore points can
//! be done by several at a time. Locks are taken all at once, so nobody holds one while waiting for another.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

#[derive(Default)]
struct Held {
    writer: Option<String>,
    readers: Vec<String>,
}

/// The locks of all VMs.
#[derive(Default)]
pub struct VmLocks {
    held: Mutex<HashMap<String, Held>>,
    released: Notify,
}

/// Held locks; let go when dropped.
pub struct Guard {
    locks: Arc<VmLocks>,
    run: String,
    vms: Vec<String>,
}

/// What is in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The VM.
    pub vm: String,
    /// The run that holds it.
    pub run: String,
}

impl VmLocks {
    /// Takes the locks of all `vms` for a run, or none of them.
    pub fn try_take(self: &Arc<Self>, run: &str, vms: &[String], exclusive: bool) -> Result<Guard, Conflict> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        for vm in vms {
            let Some(lock) = held.get(vm) else { continue };
            let holder = lock.writer.as_ref().or_else(|| lock.readers.first().filter(|_| exclusive));
            if let Some(holder) = holder {
                return Err(Conflict { vm: vm.clone(), run: holder.clone() });
            }
        }
        for vm in vms {
            let lock = held.entry(vm.clone()).or_default();
            if exclusive {
                lock.writer = Some(run.to_owned());
            } else {
                lock.readers.push(run.to_owned());
            }
        }
        Ok(Guard { locks: Arc::clone(self), run: run.to_owned(), vms: vms.to_vec() })
    }

    /// Takes the locks as soon as they are free; `waiting` hears of each conflict on the way.
    pub async fn take<F: Future<Output = ()>>(
        self: &Arc<Self>,
        run: &str,
        vms: &[String],
        exclusive: bool,
        mut waiting: impl FnMut(Conflict) -> F,
    ) -> Guard {
        let mut last = None;
        loop {
            // Listening before trying: a release in between is heard.
            let mut released = std::pin::pin!(self.released.notified());
            released.as_mut().enable();
            match self.try_take(run, vms, exclusive) {
                Ok(guard) => return guard,
                Err(conflict) => {
                    if last.as_ref() != Some(&conflict) {
                        last = Some(conflict.clone());
                        waiting(conflict).await;
                    }
                }
            }
            released.await;
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut held = self.locks.held.lock().unwrap_or_else(PoisonError::into_inner);
        for vm in &self.vms {
            if let Some(lock) = held.get_mut(vm) {
                if lock.writer.as_deref() == Some(&*self.run) {
                    lock.writer = None;
                }
                lock.readers.retain(|reader| *reader != self.run);
                if lock.writer.is_none() && lock.readers.is_empty() {
                    held.remove(vm);
                }
            }
        }
        drop(held);
        self.locks.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vms(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn writers_exclude_and_readers_share() {
        let locks = Arc::new(VmLocks::default());
        let one = locks.try_take("1", &vms(&["a"]), false).ok().unwrap();
        let two = locks.try_take("2", &vms(&["a", "b"]), false).ok().unwrap();
        assert_eq!(locks.try_take("3", &vms(&["b"]), true).err().unwrap().run, "2");
        drop(two);
        let three = locks.try_take("3", &vms(&["b"]), true).ok().unwrap();
        assert_eq!(locks.try_take("4", &vms(&["c", "b"]), false).err().unwrap(), Conflict { vm: "b".into(), run: "3".into() });
        assert!(locks.try_take("5", &vms(&["c"]), true).is_ok(), "a refused run holds nothing");
        drop((one, three));
        assert!(locks.held.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn whoever_waits_is_told_for_whom_and_gets_its_turn() {
        let locks = Arc::new(VmLocks::default());
        let first = locks.try_take("1", &vms(&["a"]), true).ok().unwrap();
        let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let waiter = {
            let locks = Arc::clone(&locks);
            tokio::spawn(async move {
                let guard = locks
                    .take("2", &vms(&["b", "a"]), true, |conflict| {
                        told.send(conflict).unwrap();
                        std::future::ready(())
                    })
                    .await;
                drop(guard);
            })
        };
        assert_eq!(heard.recv().await.unwrap(), Conflict { vm: "a".into(), run: "1".into() });
        drop(first);
        waiter.await.unwrap();
    }
}
