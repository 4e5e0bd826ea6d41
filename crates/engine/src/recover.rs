//! Cleans what an interrupted run left: everything its open intents announce is removed, finished, or named.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{Intent, Outcome, Phase, TaskKind, TaskResult};
use xapi::{Destroy, Record, Ref, Vdi, Vm};

use crate::backup::{keys, snapshot};
use crate::context::Context;
use crate::deploy;
use crate::error::Error;
use crate::journal::Task;
use crate::plan::RecoverPlan;
use crate::pool::Pool;
use crate::restore;

/// Works through the open intents, newest first: what came last may depend on what came before.
///
/// Doing it twice does no harm: what is gone is gone, what is finished stays.
pub(crate) async fn recover(context: &Arc<Context>, plan: &RecoverPlan) -> Result<(), Error> {
    // A later intent of the same number knows more.
    let intents: BTreeMap<u32, &Intent> = plan.intents.iter().map(|open| (open.intent, &open.what)).collect();
    let mut failed = Vec::new();
    for what in intents.values().rev() {
        context.check()?;
        let (label, object) = describe(context, what);
        let task = context.recorder.task(None, TaskKind::Recover, label.clone(), object);
        task.phase(Phase::Cleaning);
        let result = settle(context, plan, what, &task).await;
        context.recorder.count(result.as_ref().map_or_else(Error::outcome, |()| Outcome::Success));
        match result {
            Ok(()) => task.succeed(TaskResult::default()),
            Err(error) => {
                task.fail(&error);
                failed.push(label);
            }
        }
    }
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Error::Parts { failed: failed.len(), all: intents.len(), names: failed.join(", ") }),
    }
}

fn describe(context: &Context, what: &Intent) -> (String, Option<String>) {
    match what {
        Intent::Snapshot { vm, .. } => (format!("snapshot of VM {vm}"), Some(vm.clone())),
        Intent::BlockedOperations { vm, .. } => (format!("blocked migrations of VM {vm}"), Some(vm.clone())),
        Intent::RestoredVm { uuid, .. } => ("unfinished restore".into(), uuid.clone()),
        Intent::RestorePoint { remote, vm } => {
            (format!("unfinished restore point of VM {vm} on {}", context.remote_name(remote)), Some(vm.clone()))
        }
        Intent::DeployedVm { uuid, .. } => ("unfinished proxy".into(), uuid.clone()),
        Intent::DrainedProxy { uuid, .. } => (format!("proxy on VM {uuid} that holds its runs back"), Some(uuid.clone())),
        Intent::ObsoleteVm { uuid, .. } => (format!("obsolete VM {uuid}"), Some(uuid.clone())),
        Intent::ReconfiguredVm { uuid, .. } => (format!("changed settings of VM {uuid}"), Some(uuid.clone())),
        Intent::XapiTask { task, .. } => ("task on the pool".into(), Some(task.clone())),
    }
}

async fn settle(context: &Arc<Context>, plan: &RecoverPlan, what: &Intent, task: &Task) -> Result<(), Error> {
    match what {
        Intent::Snapshot { pool, vm, snapshot, .. } => {
            let pool = context.pool(pool).await?;
            leftover_snapshot(&pool, vm, snapshot.as_deref(), task).await
        }
        Intent::BlockedOperations { pool, vm, previous } => {
            let pool = context.pool(pool).await?;
            let Some(vm) = find::<Vm>(&pool, vm).await? else { return Ok(()) };
            snapshot::release_operations(&pool, &vm, previous).await
        }
        Intent::RestoredVm { pool, uuid } => {
            let pool = context.pool(pool).await?;
            half_restored(&pool, &plan.run, uuid.as_deref(), task).await
        }
        Intent::RestorePoint { remote, vm } => {
            let remote = context.remote(remote).await?;
            let lock = remote.lock(context, vm, task).await?;
            let cleaned = remote.clean(&lock, &context.cancel, true, task).await;
            remote.release(lock, task).await;
            cleaned
        }
        Intent::DeployedVm { .. } | Intent::DrainedProxy { .. } | Intent::ObsoleteVm { .. } | Intent::ReconfiguredVm { .. } => {
            deploy::settle(context, plan, what, task).await
        }
        Intent::XapiTask { pool, task: reference } => {
            let pool = context.pool(pool).await?;
            let discarded = pool.client.discard_task(&Ref::from(reference.as_str())).await;
            discarded.map_err(pool.failed("cancel a task of the interrupted run"))
        }
    }
}

async fn find<T: xapi::Kind>(pool: &Pool, uuid: &str) -> Result<Option<Record<T>>, Error> {
    match pool.client.by_uuid::<T>(uuid).await {
        Ok(record) => Ok(Some(record)),
        Err(error) if error.is_gone() => Ok(None),
        Err(error) => Err(pool.failed(format!("find the {} {uuid}", T::CLASS))(error)),
    }
}

/// Destroys a snapshot that no restore point was made of. One that was exported is the base of the next delta.
async fn leftover_snapshot(pool: &Pool, vm: &str, known: Option<&str>, task: &Task) -> Result<(), Error> {
    if let Some(known) = known {
        return match find::<Vm>(pool, known).await? {
            Some(snapshot) if snapshot.other_config.contains_key(keys::EXPORTED) => {
                task.info(format!("snapshot {known} was exported completely and stays as base of the next backup"));
                Ok(())
            }
            Some(snapshot) if snapshot.is_a_snapshot => destroy(pool, &snapshot, task).await,
            Some(_) => Err(Error::refused("NOT_A_SNAPSHOT", format!("{known} is no snapshot: it is left alone"))),
            None => Ok(()),
        };
    }
    // Its uuid is recorded before it is tagged, so one without is still called by the temporary name.
    let Some(vm) = find::<Vm>(pool, vm).await? else { return Ok(()) };
    for leftover in snapshot::inventory(pool).await?.leftovers(&vm) {
        destroy(pool, leftover, task).await?;
    }
    Ok(())
}

async fn destroy(pool: &Pool, snapshot: &Record<Vm>, task: &Task) -> Result<(), Error> {
    task.info(format!("destroys snapshot {} of the interrupted run", snapshot.uuid));
    let doing = pool.failed(format!("destroy snapshot {}", snapshot.uuid));
    pool.client.destroy_vm(&snapshot.reference, snapshot::WITH_DISKS).await.map_err(doing)
}

/// Destroys a VM whose restore did not come to its end, and disks that were not attached yet.
pub(crate) async fn half_restored(pool: &Pool, run: &str, uuid: Option<&str>, task: &Task) -> Result<(), Error> {
    let is_marked = |config: &BTreeMap<String, String>| config.get(keys::RESTORE_RUN).is_some_and(|mark| mark == run);
    let vms = pool.client.all::<Vm>().await.map_err(pool.failed("list its VMs"))?;
    let vdis = pool.client.all::<Vdi>().await.map_err(pool.failed("list its disks"))?;
    let how = Destroy { disks: true, bypass_blocked: true };
    let mut found = false;
    // It was blocked against starting: who started it all the same wants to keep it.
    if let Some(vm) = vms.iter().find(|vm| is_marked(&vm.other_config) && vm.power_state != "Halted") {
        let message = format!("VM {} ({}) of an unfinished restore is {}: it stays", vm.name_label, vm.uuid, vm.power_state);
        return Err(Error::Refused { code: "VM_IN_USE", message, next: Some("shut it down to have it removed") });
    }
    for vm in vms.iter().filter(|vm| is_marked(&vm.other_config)) {
        found = true;
        task.info(format!("destroys the half-restored VM {} ({})", vm.name_label, vm.uuid));
        pool.client.destroy_vm(&vm.reference, how).await.map_err(pool.failed(format!("destroy VM {}", vm.uuid)))?;
    }
    for vdi in vdis.iter().filter(|vdi| is_marked(&vdi.other_config)) {
        found = true;
        pool.client.destroy_vdi(&vdi.reference).await.map_err(pool.failed(format!("destroy disk {}", vdi.uuid)))?;
    }
    match uuid {
        // The mark is taken off when all but the permission to start is done: without it the VM is whole.
        Some(uuid) if !found => {
            if let Some(vm) = vms.iter().find(|vm| vm.uuid == uuid) {
                task.info(format!("VM {uuid} was restored completely and stays"));
                restore::allow_start(pool, vm).await?;
            }
        }
        None if !found => task.info(
            "nothing marked by the restore is on the pool; a full backup is imported by the pool itself, which removes \
             what it could not finish",
        ),
        _ => {}
    }
    Ok(())
}
