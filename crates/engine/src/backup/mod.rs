//! A backup job: its VMs side by side, each on its own (backup-repository.md §4.2).

mod base;
mod candidates;
mod delta;
mod disk;
mod full;
pub(crate) mod keys;
pub(crate) mod records;
pub(crate) mod snapshot;
mod targets;
mod vm;

use std::sync::Arc;

use api::{Outcome, Phase, TaskKind};
use futures::stream::{self, StreamExt};

use crate::context::Context;
use crate::error::Error;
use crate::plan::{BackupPlan, VmPlan};

/// Backs up all VMs of a plan. A VM that fails does not stop the others.
pub(crate) async fn backup(context: &Arc<Context>, plan: &BackupPlan) -> Result<(), Error> {
    check(plan)?;
    let plan = Arc::new(plan.clone());
    let concurrency = if plan.concurrency == 0 { plan.vms.len() } else { plan.concurrency as usize };
    let ends: Vec<(String, Outcome)> = stream::iter(plan.vms.clone())
        .map(|vm| {
            let (context, plan) = (Arc::clone(context), Arc::clone(&plan));
            async move {
                let name = if vm.name.is_empty() { vm.uuid.clone() } else { vm.name.clone() };
                // A task of its own: VMs run on all processors, and a bug in one is one failed VM.
                let end = tokio::spawn(async move { run_vm(&context, &plan, &vm).await });
                (name, end.await.unwrap_or(Outcome::Failure))
            }
        })
        .buffer_unordered(concurrency)
        .collect()
        .await;
    let failed: Vec<&str> =
        ends.iter().filter(|(_, outcome)| *outcome == Outcome::Failure).map(|(name, _)| name.as_str()).collect();
    if !failed.is_empty() {
        return Err(Error::Parts { failed: failed.len(), all: ends.len(), names: failed.join(", ") });
    }
    if ends.iter().any(|(_, outcome)| *outcome == Outcome::Cancelled) { Err(Error::Cancelled) } else { Ok(()) }
}

/// Refuses what cannot be meant.
fn check(plan: &BackupPlan) -> Result<(), Error> {
    if plan.vms.is_empty() {
        return Err(Error::refused("NO_VMS", format!("job {} has no VM to back up", plan.job_name)));
    }
    if plan.remotes.is_empty() {
        return Err(Error::refused("NO_REMOTES", format!("job {} has no remote to write to", plan.job_name)));
    }
    if plan.retention == 0 {
        return Err(Error::refused("NO_RETENTION", format!("job {} would keep no restore point", plan.job_name)));
    }
    Ok(())
}

async fn run_vm(context: &Arc<Context>, plan: &BackupPlan, vm: &VmPlan) -> Outcome {
    let name = if vm.name.is_empty() { &vm.uuid } else { &vm.name };
    let task = context.recorder.task(None, TaskKind::Vm, name, Some(vm.uuid.clone()));
    let result = match context.check() {
        Ok(()) => {
            task.phase(Phase::Preparing);
            vm::VmRun { context, plan, vm }.run(&task).await
        }
        Err(error) => Err(error),
    };
    let outcome = result.as_ref().map_or_else(Error::outcome, |_| Outcome::Success);
    context.recorder.count(outcome);
    match result {
        Ok(result) => task.succeed(result),
        Err(error) => task.fail(&error),
    }
    outcome
}
