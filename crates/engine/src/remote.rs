//! A remote as a run sees it: the repository, and the name that stands in its errors and waits.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use api::{Phase, TaskKind, TaskResult, Wait};
use repository::{CleanOptions, Cleaned, PointId, Progress, Repository, Step, VmLock, Work};
use storage::RemoteUrl;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::error::{Cause, Error};
use crate::journal::Task;
use crate::plan::RemoteAccess;

/// The lock of a VM's directory on a remote.
pub(crate) type Lock = VmLock;

/// How long a run waits for another one that works on the same VM.
const LOCK_PATIENCE: Duration = Duration::from_secs(600);
/// Between two looks at a lock.
const LOCK_INTERVAL: Duration = Duration::from_secs(1);

/// An open remote.
pub(crate) struct Remote {
    /// Id in the plan; what intents name.
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) repository: Repository,
}

impl Remote {
    pub(crate) async fn open(access: &RemoteAccess) -> Result<Self, Error> {
        if let Some(away) = &access.away {
            return Err(Error::Away(Box::new(away.clone())));
        }
        let failed = |source: Cause| Error::Remote {
            remote: access.name.clone(),
            doing: "open it".into(),
            code: "REMOTE_UNAVAILABLE",
            source,
        };
        let url = RemoteUrl::parse(access.url.expose()).map_err(|error| failed(Box::new(error)))?;
        let repository = Repository::open_url(&url).await.map_err(|error| failed(Box::new(error)))?;
        Ok(Self { id: access.id.clone(), name: access.name.clone(), repository })
    }

    /// What an error of the repository means while `doing` something.
    pub(crate) fn failed(&self, doing: impl Into<String>) -> impl FnOnce(repository::Error) -> Error {
        let (remote, doing) = (self.name.clone(), doing.into());
        move |source| match source {
            repository::Error::Cancelled => Error::Cancelled,
            source => Error::Remote { remote, doing, code: code(&source), source: Box::new(source) },
        }
    }

    /// The identifier of a restore point.
    pub(crate) fn point(&self, text: &str) -> Result<PointId, Error> {
        PointId::parse(text).map_err(|error| Error::refused("NOT_A_RESTORE_POINT", error.to_string()))
    }

    /// Takes the lock of a VM's directory, waiting for whoever has it: another run, XO, or a process that was killed and
    /// whose lock dies within ten seconds.
    pub(crate) async fn lock(&self, context: &Context, vm: &str, task: &Task) -> Result<Lock, Error> {
        let start = tokio::time::Instant::now();
        let mut waiting = None;
        loop {
            match context.unless_cancelled(self.repository.lock(vm)).await? {
                Err(error @ repository::Error::Locked { .. }) if start.elapsed() < LOCK_PATIENCE => {
                    if waiting.is_none() {
                        task.info(format!("waits: {error}"));
                        let words = format!("lock of the backups of VM {vm} on {}", self.name).into();
                        waiting = Some(task.meter().wait(Wait::Lock, &words));
                    }
                    context.unless_cancelled(tokio::time::sleep(LOCK_INTERVAL)).await?;
                }
                result => return result.map_err(self.failed("lock the backups of the VM")),
            }
        }
    }

    /// Gives a lock back.
    pub(crate) async fn release(&self, lock: Lock, task: &Task) {
        if let Err(error) = lock.release().await {
            task.warn(self.failed("unlock the backups of the VM")(error).sentence());
        }
    }

    /// Removes what no restore point needs; with `merge`, also completes interrupted merges and merges what retention
    /// has freed.
    pub(crate) async fn clean(&self, lock: &Lock, cancel: &CancellationToken, merge: bool, parent: &Task) -> Result<(), Error> {
        let task = parent.part(TaskKind::Clean, format!("clean on {}", self.name), Some(self.id.clone()));
        task.phase(Phase::Cleaning);
        let steps = Steps::new(&task);
        let options = CleanOptions { merge, remove: true };
        let cleaned = self.repository.clean(lock, options, &steps, cancel).await;
        let result = cleaned.map(|cleaned| report(&cleaned, &task)).map_err(self.failed("clean the backups of the VM"));
        steps.end(&result);
        task.settle(&result);
        result
    }
}

fn report(cleaned: &Cleaned, task: &Task) {
    for warning in &cleaned.problems {
        task.warn(warning.clone());
    }
    for removed in &cleaned.removed {
        task.info(format!("removed {removed}"));
    }
    for merged in &cleaned.merged {
        task.info(format!("merged {merged}"));
    }
}

/// The stable code of a repository's failure.
fn code(error: &repository::Error) -> &'static str {
    match error {
        repository::Error::Storage(error) if error.is_no_space() => "REMOTE_FULL",
        repository::Error::Storage(error) if error.is_not_found() => "RESTORE_POINT_NOT_FOUND",
        repository::Error::Locked { .. } => "REMOTE_LOCKED",
        repository::Error::LockLost { .. } => "REMOTE_LOCK_LOST",
        repository::Error::Format { .. }
        | repository::Error::Damaged { .. }
        | repository::Error::Xva { .. }
        | repository::Error::Checksum { .. }
        | repository::Error::Unreadable { .. } => "RESTORE_POINT_DAMAGED",
        _ => "REMOTE_FAILED",
    }
}

/// Shows the steps of a repository's work as a task: each merge as one of its own, everything else on the meter of the
/// task it is a part of.
pub(crate) struct Steps<'a> {
    task: &'a Task,
    current: Mutex<Option<Current>>,
}

/// What is being worked on.
struct Current {
    object: String,
    /// A merge; none: the task around it.
    part: Option<Task>,
    bytes: u64,
}

impl<'a> Steps<'a> {
    pub(crate) fn new(task: &'a Task) -> Self {
        Self { task, current: Mutex::default() }
    }

    /// The work is over, this way.
    pub(crate) fn end<T>(self, result: &Result<T, Error>) {
        let current = self.current.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(part) = current.and_then(|current| current.part) {
            part.settle(result);
        }
    }

    fn begin(&self, step: &Step<'_>) -> Current {
        let part = match step.work {
            Work::Merge => Some(self.task.part(TaskKind::Merge, format!("merge {}", step.object), Some(step.object.to_owned()))),
            Work::Verify => None,
        };
        if let Some(part) = &part {
            part.phase(Phase::Merging);
        }
        part.as_ref().unwrap_or(self.task).meter().add_total(step.total * unit(step));
        Current { object: step.object.to_owned(), part, bytes: 0 }
    }
}

impl Progress for Steps<'_> {
    fn step(&self, step: Step<'_>) {
        let mut slot = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.as_ref().is_none_or(|current| current.object != step.object) {
            if let Some(part) = slot.take().and_then(|current| current.part) {
                part.succeed(TaskResult::default());
            }
            *slot = Some(self.begin(&step));
        }
        let Some(current) = slot.as_mut() else { return };
        let bytes = step.done * unit(&step);
        let meter = current.part.as_ref().unwrap_or(self.task).meter();
        meter.add_done(bytes.saturating_sub(current.bytes));
        current.bytes = current.bytes.max(bytes);
    }
}

/// What a step counts, bytes: archives are counted in bytes, disks in blocks.
fn unit(step: &Step<'_>) -> u64 {
    if step.object.ends_with(".xva") { 1 } else { vhd::BLOCK_SIZE as u64 }
}
