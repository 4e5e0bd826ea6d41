//! One restore point read back and checked, or removed: thin over the repository.

use std::sync::Arc;

use api::{Intent, Outcome, Phase, TaskKind, TaskResult};

use crate::context::Context;
use crate::error::Error;
use crate::journal::Task;
use crate::plan::PointPlan;
use crate::remote::Steps;

/// Reads a restore point back, every byte of it.
pub(crate) async fn verify(context: &Arc<Context>, plan: &PointPlan) -> Result<(), Error> {
    let task = context.recorder.task(None, TaskKind::Verify, plan.label(), Some(plan.path.clone()));
    task.phase(Phase::Verifying);
    let result = verify_in(context, plan, &task).await;
    end(context, task, result)
}

async fn verify_in(context: &Arc<Context>, plan: &PointPlan, task: &Task) -> Result<String, Error> {
    let remote = context.remote(&plan.remote).await?;
    let point = remote.point(&plan.path)?;
    let steps = Steps::new(task);
    let verified = remote.repository.verify(&point, &steps, &context.cancel).await;
    let verification = verified.map_err(remote.failed(format!("verify restore point {point}")))?;
    for fault in &verification.faults {
        task.error(fault.clone());
    }
    match verification.faults.first() {
        None => Ok(point.to_string()),
        Some(first) => Err(Error::Refused {
            code: "RESTORE_POINT_DAMAGED",
            message: format!("restore point {point} on {} has {}: {first}", remote.name, counted(verification.faults.len())),
            next: Some("restore another point; the next full backup of the VM begins a new chain"),
        }),
    }
}

fn counted(faults: usize) -> String {
    if faults == 1 { "a fault".into() } else { format!("{faults} faults, the first") }
}

/// Removes a restore point, and what only it needed. Nothing is merged (backup-repository.md §4.7).
pub(crate) async fn remove(context: &Arc<Context>, plan: &PointPlan) -> Result<(), Error> {
    let task = context.recorder.task(None, TaskKind::Retention, plan.label(), Some(plan.path.clone()));
    task.phase(Phase::Cleaning);
    let result = remove_in(context, plan, &task).await;
    end(context, task, result)
}

async fn remove_in(context: &Arc<Context>, plan: &PointPlan, task: &Task) -> Result<String, Error> {
    let remote = context.remote(&plan.remote).await?;
    let point = remote.point(&plan.path)?;
    // A point that does not exist is a mistake of whoever asks, and says so.
    remote.repository.metadata(&point).await.map_err(remote.failed(format!("remove restore point {point}")))?;
    // Killed between the metadata and the disks, a recover run cleans the rest.
    let intent = Intent::RestorePoint { remote: remote.id.clone(), vm: point.vm().to_owned() };
    let intent = context.recorder.intend(intent).await?;
    let lock = match remote.lock(context, point.vm(), task).await {
        Ok(lock) => lock,
        Err(error) => {
            context.recorder.settle(intent);
            return Err(error);
        }
    };
    let removed = remote
        .repository
        .remove(&lock, std::slice::from_ref(&point))
        .await
        .map_err(remote.failed(format!("remove restore point {point}")));
    let cleaned = match removed {
        Ok(()) => remote.clean(&lock, &context.cancel, false, task).await,
        Err(error) => Err(error),
    };
    remote.release(lock, task).await;
    if cleaned.is_ok() {
        context.recorder.settle(intent);
    }
    cleaned.map(|()| point.to_string())
}

fn end(context: &Context, task: Task, result: Result<String, Error>) -> Result<(), Error> {
    context.recorder.count(result.as_ref().map_or_else(Error::outcome, |_| Outcome::Success));
    match result {
        Ok(point) => {
            task.succeed(TaskResult { restore_point: Some(point), ..TaskResult::default() });
            Ok(())
        }
        Err(error) => {
            task.fail(&error);
            Err(error)
        }
    }
}
