//! A restore point into a new VM (backup-repository.md §6.1, §6.2).

mod delta;
mod full;
mod new_vm;
mod records;

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{Intent, JobMode, Outcome, Phase, TaskKind, TaskResult};
use repository::{BackupMetadata, PointId};
use xapi::{Record, Ref, Vm};

use crate::context::Context;
use crate::error::Error;
use crate::journal::Task;
use crate::plan::RestorePlan;
use crate::pool::Pool;
use crate::remote::Remote;

pub(crate) use full::metered;

/// What both kinds of restore work with.
struct Restore<'a> {
    context: &'a Arc<Context>,
    remote: &'a Arc<Remote>,
    pool: &'a Arc<Pool>,
    point: &'a PointId,
    stored: &'a BackupMetadata,
    sr: Ref,
    name: String,
    description: String,
}

/// Restores one point.
pub(crate) async fn restore(context: &Arc<Context>, plan: &RestorePlan) -> Result<(), Error> {
    let task = context.recorder.task(None, TaskKind::Restore, plan.point.label(), Some(plan.point.path.clone()));
    task.phase(Phase::Preparing);
    let result = restore_in(context, plan, &task).await;
    context.recorder.count(result.as_ref().map_or_else(Error::outcome, |_| Outcome::Success));
    match result {
        Ok(result) => {
            task.succeed(result);
            Ok(())
        }
        Err(error) => {
            task.fail(&error);
            Err(error)
        }
    }
}

async fn restore_in(context: &Arc<Context>, plan: &RestorePlan, task: &Task) -> Result<TaskResult, Error> {
    let remote = context.remote(&plan.point.remote).await?;
    let point = remote.point(&plan.point.path)?;
    let stored = remote.repository.metadata(&point).await.map_err(remote.failed(format!("read restore point {point}")))?;
    let pool = context.pool(&plan.pool).await?;
    let restore = Restore {
        context,
        sr: new_vm::storage(&pool, &plan.sr).await?,
        name: new_vm::name(&stored, point.stem(), plan.name.as_deref()),
        description: new_vm::description(&stored, &remote.name),
        remote: &remote,
        pool: &pool,
        point: &point,
        stored: &stored,
    };
    task.info(format!("restores {} of {} into {}", point.stem(), stored.vm_name(), restore.name));
    let vm = match stored.mode {
        JobMode::Delta => restore.delta(task).await?,
        JobMode::Full => restore.full(task).await?,
    };
    Ok(TaskResult {
        restore_point: Some(point.to_string()),
        vm: Some(vm),
        bytes: Some(task.meter().totals().0),
        ..TaskResult::default()
    })
}

/// Takes off a restored VM what kept it from being started, where the restore did not come to that.
pub(crate) async fn allow_start(pool: &Pool, vm: &Record<Vm>) -> Result<(), Error> {
    let ours = |operation: &&str| vm.blocked_operations.get(*operation).is_some_and(|reason| reason == records::REASON);
    let ours: BTreeMap<String, Option<String>> =
        records::BLOCKED.into_iter().filter(ours).map(|operation| (operation.to_owned(), None)).collect();
    if ours.is_empty() {
        return Ok(());
    }
    let doing = pool.failed(format!("allow the start of {}", vm.name_label));
    pool.client.restore_blocked(&vm.reference, &ours).await.map_err(doing)
}

impl Restore<'_> {
    fn intent(&self, uuid: Option<String>) -> Intent {
        Intent::RestoredVm { pool: self.pool.id.clone(), uuid }
    }
}
