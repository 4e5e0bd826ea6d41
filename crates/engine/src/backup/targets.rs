//! The remotes of one VM's backup. Each can fail without the others; the VM fails when none is left.

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Cause, Error};
use crate::journal::Task;
use crate::remote::{Lock, Remote};

/// A remote that takes part.
pub(super) struct Target {
    pub(super) remote: Arc<Remote>,
    pub(super) lock: Lock,
    /// The journal's number of the restore point that is being written.
    pub(super) intent: u32,
}

/// The remotes of one VM's backup, numbered.
pub(super) struct Targets {
    vm: String,
    targets: Vec<Target>,
    /// Why a remote was dropped, by number.
    failures: Mutex<Vec<Option<String>>>,
    /// Remotes that could not even be opened or locked.
    absent: Vec<String>,
}

impl Targets {
    pub(super) fn new(vm: &str, targets: Vec<Target>, absent: Vec<String>) -> Self {
        let failures = Mutex::new(vec![None; targets.len()]);
        Self { vm: vm.to_owned(), targets, failures, absent }
    }

    pub(super) fn count(&self) -> usize {
        self.targets.len()
    }

    /// The remotes that have not failed, with their numbers.
    pub(super) fn alive(&self) -> impl Iterator<Item = (usize, &Target)> {
        let failures = self.failures().clone();
        self.targets.iter().enumerate().filter(move |(index, _)| failures[*index].is_none())
    }

    pub(super) fn name(&self, index: usize) -> &str {
        &self.targets[index].remote.name
    }

    /// Goes on without a remote.
    pub(super) fn drop_target(&self, index: usize, doing: String, source: Cause, task: &Task) {
        let remote = self.name(index).to_owned();
        let error = Error::Remote { remote, doing, code: "REMOTE_WRITE_FAILED", source };
        self.fail(index, &error, task);
    }

    /// Goes on without a remote that failed with `error`.
    pub(super) fn fail(&self, index: usize, error: &Error, task: &Task) {
        let mut failures = self.failures();
        if failures[index].is_none() {
            task.error(error.sentence());
            failures[index] = Some(error.sentence());
        }
    }

    /// # Errors
    /// [`Error::NoRemoteLeft`].
    pub(super) fn check_any(&self) -> Result<(), Error> {
        if self.alive().next().is_some() {
            return Ok(());
        }
        Err(Error::NoRemoteLeft { vm: self.vm.clone(), reasons: self.reasons().join("; ") })
    }

    /// Whether all remotes asked for have it.
    ///
    /// # Errors
    /// [`Error::Parts`] naming those that do not.
    pub(super) fn check_all(&self) -> Result<(), Error> {
        let reasons = self.reasons();
        let all = self.targets.len() + self.absent.len();
        match reasons.is_empty() {
            true => Ok(()),
            false => Err(Error::Parts { failed: reasons.len(), all, names: reasons.join("; ") }),
        }
    }

    fn reasons(&self) -> Vec<String> {
        self.absent.iter().cloned().chain(self.failures().iter().flatten().cloned()).collect()
    }

    /// All remotes, failed or not: each holds a lock.
    pub(super) fn into_all(self) -> Vec<Target> {
        self.targets
    }

    fn failures(&self) -> std::sync::MutexGuard<'_, Vec<Option<String>>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
