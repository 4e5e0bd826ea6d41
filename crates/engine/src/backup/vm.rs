//! One VM of a backup job, from its locks to its last clean (backup-repository.md §4.2).
//!
//! Whatever is taken on the way in (locks, blocked operations, a snapshot) is given back on the way out, on every
//! way out; what cannot be given back stays as an open intent, for a recover run.

use std::sync::Arc;
use std::time::Duration;

use api::{Intent, JobMode, Phase, TaskKind, TaskResult};
use repository::BackupTime;
use repository::retention;
use tokio_util::sync::CancellationToken;
use xapi::{Record, Vm};

use super::snapshot::{self, Owner, Taken};
use super::targets::{Target, Targets};
use super::{base, delta, full, keys};
use crate::context::Context;
use crate::error::Error;
use crate::journal::Task;
use crate::plan::{BackupPlan, VmPlan};
use crate::pool::Pool;

/// What a cancel or failure may spend on cleaning a remote.
const CLEAN_PATIENCE: Duration = Duration::from_secs(45);

/// The backup of one VM.
pub(super) struct VmRun<'a> {
    pub(super) context: &'a Arc<Context>,
    pub(super) plan: &'a BackupPlan,
    pub(super) vm: &'a VmPlan,
}

/// What a transfer needs to know.
pub(super) struct Job<'a> {
    pub(super) context: &'a Arc<Context>,
    pub(super) plan: &'a BackupPlan,
    pub(super) pool: &'a Arc<Pool>,
    /// The live VM as it was before the run touched it: what the restore point stores.
    pub(super) vm: &'a Record<Vm>,
    pub(super) targets: &'a Targets,
    pub(super) time: BackupTime,
}

impl VmRun<'_> {
    /// Backs the VM up and says what came out.
    pub(super) async fn run(&self, task: &Task) -> Result<TaskResult, Error> {
        let pool = self.context.pool(&self.vm.pool).await?;
        let vm = self.find(&pool).await?;
        let targets = self.targets(task).await?;
        let result = self.run_locked(&pool, &vm, &targets, task).await;
        self.leave(targets, result.is_ok(), task).await;
        result
    }

    async fn find(&self, pool: &Pool) -> Result<Record<Vm>, Error> {
        let found = self.context.unless_cancelled(pool.client.by_uuid::<Vm>(&self.vm.uuid)).await?;
        let vm = match found {
            Err(error) if error.is_gone() => {
                return Err(Error::Refused {
                    code: "VM_NOT_FOUND",
                    message: format!("pool {} has no VM {} ({})", pool.name, self.vm.name, self.vm.uuid),
                    next: Some("take the VM out of the job, or choose it again"),
                });
            }
            found => found.map_err(pool.failed(format!("find VM {}", self.vm.uuid)))?,
        };
        let refused = |reason: &str| Err(Error::refused("VM_REFUSED", format!("{} is not backed up: {reason}", vm.name_label)));
        if vm.is_a_snapshot || vm.is_a_template || vm.is_control_domain {
            return refused("it is a snapshot, a template or a control domain");
        }
        let job = vm.other_config.get(keys::JOB);
        if job == Some(&self.plan.job) && vm.blocked_operations.contains_key("start") {
            return refused("it is a replica made by this very job");
        }
        if vm.current_operations.values().any(|operation| operation == "migrate_send" || operation == "pool_migrate") {
            return refused("it is being migrated");
        }
        Ok(vm)
    }

    /// Locks the VM on every remote, and cleans there what earlier runs left.
    async fn targets(&self, task: &Task) -> Result<Targets, Error> {
        let (mut targets, mut absent) = (Vec::new(), Vec::new());
        for id in &self.plan.remotes {
            match self.target(id, task).await {
                Ok(target) => targets.push(target),
                Err(Error::Cancelled) => {
                    self.leave(Targets::new(&self.vm.name, targets, absent), false, task).await;
                    return Err(Error::Cancelled);
                }
                Err(error) => {
                    task.error(error.sentence());
                    absent.push(error.sentence());
                }
            }
        }
        let targets = Targets::new(&self.vm.name, targets, absent);
        targets.check_any()?;
        Ok(targets)
    }

    async fn target(&self, id: &str, task: &Task) -> Result<Target, Error> {
        let remote = self.context.remote(id).await?;
        let intent = Intent::RestorePoint { remote: remote.id.clone(), vm: self.vm.uuid.clone() };
        let intent = self.context.recorder.intend(intent).await?;
        let lock = match remote.lock(self.context, &self.vm.uuid, task).await {
            Ok(lock) => lock,
            Err(error) => {
                self.context.recorder.settle(intent);
                return Err(error);
            }
        };
        let target = Target { remote, lock, intent };
        if self.plan.mode == JobMode::Delta
            && let Err(error) = target.remote.clean(&target.lock, &self.context.cancel, true, task).await
        {
            target.remote.release(target.lock, task).await;
            self.context.recorder.settle(intent);
            return Err(error);
        }
        Ok(target)
    }

    async fn run_locked(&self, pool: &Arc<Pool>, vm: &Record<Vm>, targets: &Targets, task: &Task) -> Result<TaskResult, Error> {
        self.context.check()?;
        let time = self.time(vm, targets, task).await?;
        let job = Job { context: self.context, plan: self.plan, pool, vm, targets, time };
        let blocked = snapshot::block(self.context, pool, vm).await?;
        let result = job.run(task).await;
        snapshot::unblock(self.context, pool, vm, blocked, Some(task)).await;
        let result = result?;
        self.retention(vm, targets, task).await;
        self.context.check()?;
        targets.check_all()?;
        Ok(result)
    }

    /// The restore point's time: now, but after every earlier one, since names have whole seconds and sort by time.
    async fn time(&self, vm: &Record<Vm>, targets: &Targets, task: &Task) -> Result<BackupTime, Error> {
        let mut millis = BackupTime::now().millis();
        for (index, target) in targets.alive() {
            match target.remote.repository.list(&vm.uuid).await {
                Ok(listing) => {
                    let last = listing.points.last().map(|point| point.metadata.timestamp);
                    millis = millis.max(last.map_or(0, |last| (last / 1000 + 1) * 1000));
                }
                Err(error) => targets.fail(index, &target.remote.failed("list the restore points")(error), task),
            }
        }
        targets.check_any()?;
        let ahead = millis - BackupTime::now().millis();
        if ahead > 86_400_000 {
            return Err(Error::refused("CLOCK", "the newest restore point is more than a day in the future: check the clock"));
        }
        BackupTime::from_millis(millis).map_err(|error| Error::refused("CLOCK", error.to_string()))
    }

    /// Removes the restore points that the job no longer keeps. A failure is an error of that remote only.
    async fn retention(&self, vm: &Record<Vm>, targets: &Targets, parent: &Task) {
        for (index, target) in targets.alive() {
            let task =
                parent.part(TaskKind::Retention, format!("retention on {}", target.remote.name), Some(target.remote.id.clone()));
            let result = self.retain(vm, target, &task).await;
            if let Err(error) = &result {
                targets.fail(index, error, parent);
            }
            task.settle(&result);
        }
    }

    async fn retain(&self, vm: &Record<Vm>, target: &Target, task: &Task) -> Result<(), Error> {
        task.phase(Phase::Cleaning);
        let repository = &target.remote.repository;
        let points = repository.retained(&vm.uuid, self.plan.mode, &self.plan.schedule).await;
        let points = points.map_err(target.remote.failed("list the restore points"))?;
        let entries: Vec<_> =
            points.iter().map(|point| retention::Entry { id: &point.id, timestamp: point.metadata.timestamp }).collect();
        let plan = retention::plan(&entries, self.plan.retention as usize, None);
        // From newest to oldest: interrupted, it leaves chains without holes.
        for id in plan.remove.into_iter().rev() {
            self.context.check()?;
            task.info(format!("removes restore point {id}"));
            repository
                .remove(&target.lock, std::slice::from_ref(id))
                .await
                .map_err(target.remote.failed(format!("remove restore point {id}")))?;
        }
        Ok(())
    }

    /// Leaves the remotes clean and unlocked.
    async fn leave(&self, targets: Targets, succeeded: bool, task: &Task) {
        for target in targets.into_all() {
            let Target { remote, lock, intent } = target;
            // After a failure or cancel only leftovers go, and soon; merging is for when all is well.
            let merge = succeeded && !self.context.cancel.is_cancelled();
            let never = CancellationToken::new();
            let cleaning = async {
                match merge {
                    true => remote.clean(&lock, &self.context.cancel, true, task).await,
                    false => {
                        let clean = remote.clean(&lock, &never, false, task);
                        tokio::time::timeout(CLEAN_PATIENCE, clean).await.unwrap_or(Err(Error::Cancelled))
                    }
                }
            };
            match cleaning.await {
                Ok(()) => self.context.recorder.settle(intent),
                // A merge that was stopped at a block boundary goes on with the next run.
                Err(Error::Cancelled) if merge => self.context.recorder.settle(intent),
                Err(error) => task.warn(error.sentence()),
            }
            remote.release(lock, task).await;
        }
    }
}

impl Job<'_> {
    pub(super) fn owner(&self) -> Owner<'_> {
        Owner { job: &self.plan.job, job_name: &self.plan.job_name, schedule: &self.plan.schedule }
    }

    /// Snapshot, transfer, commit.
    async fn run(&self, task: &Task) -> Result<TaskResult, Error> {
        let incremental = self.plan.mode == JobMode::Delta;
        let inventory = snapshot::inventory(self.pool).await?;
        let bases = if incremental { base::choose(self, &inventory, task).await? } else { base::Bases::none() };
        snapshot::wipe_keys(self.pool, &inventory, self.vm).await?;
        snapshot::prune(self.context, self.pool, self.vm, &self.owner(), incremental, task).await;
        self.context.check()?;
        if incremental && self.plan.prefer_nbd {
            snapshot::enable_tracking(self.pool, &inventory, self.vm, task).await;
        }
        let taken = match incremental || full::needs_snapshot(self.vm, &inventory) {
            true => Some(snapshot::take(self.context, self.pool, &inventory, self.vm, &self.owner(), task).await?),
            false => None,
        };
        task.phase(Phase::Transferring);
        let result = match (&taken, incremental) {
            (Some(taken), true) => delta::run(self, taken, bases, task).await,
            (taken, _) => full::run(self, taken.as_ref(), task).await,
        };
        self.after(taken, &result, incremental, task).await;
        let result = result?;
        if incremental {
            snapshot::prune(self.context, self.pool, self.vm, &self.owner(), true, task).await;
        }
        Ok(result)
    }

    /// A snapshot that is the base of the next delta stays, every other one goes.
    async fn after(&self, taken: Option<Taken>, result: &Result<TaskResult, Error>, incremental: bool, task: &Task) {
        let Some(taken) = taken else { return };
        task.phase(Phase::Cleaning);
        if result.is_ok() && incremental {
            return;
        }
        snapshot::discard(self.context, self.pool, taken, task).await;
    }
}
