//! What a backup does to the pool beside reading: block, snapshot, tag, mark, destroy (backup-repository.md §4.1-4.3).
//!
//! Nothing is created before its intent is durable, and every intent is settled where what it announced is gone or
//! part of a finished whole.

use std::collections::BTreeMap;
use std::time::Duration;

use api::{Intent, TaskKind};
use jiff::Timestamp;
use xapi::{Destroy, Record, Ref, Vbd, Vdi, Vm};

use super::candidates::{self, Inventory};
use super::keys;
use crate::context::Context;
use crate::error::Error;
use crate::journal::Task;
use crate::pool::Pool;

/// Operations that would move the disks away during a run.
const MIGRATIONS: [&str; 2] = ["pool_migrate", "migrate_send"];
/// The reason a person sees who tries one of them.
pub(crate) const MIGRATION_REASON: &str = "VM migration is blocked during backup";
/// Disks with this in their name are not backed up.
pub(crate) const NO_BACKUP: &str = "[NOBAK]";

/// How long a cancel waits for a snapshot that is being taken.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(45);

/// How snapshots are destroyed: with their disks, whatever is blocked on them, because they are our own.
pub(crate) const WITH_DISKS: Destroy = Destroy { disks: true, bypass_blocked: true };

/// Who takes the snapshot.
pub(crate) struct Owner<'a> {
    pub(crate) job: &'a str,
    pub(crate) job_name: &'a str,
    pub(crate) schedule: &'a str,
}

/// Migrations blocked on a VM for the time of a run.
pub(crate) struct Blocked {
    intent: u32,
    previous: BTreeMap<String, Option<String>>,
}

/// Blocks migrations of `vm`.
pub(crate) async fn block(context: &Context, pool: &Pool, vm: &Record<Vm>) -> Result<Blocked, Error> {
    let doing = || format!("block migrations of {}", vm.name_label);
    let previous = pool.client.blocked(&vm.reference, &MIGRATIONS, MIGRATION_REASON).await.map_err(pool.failed(doing()))?;
    let what = Intent::BlockedOperations { pool: pool.id.clone(), vm: vm.uuid.clone(), previous: previous.clone() };
    let intent = context.recorder.intend(what).await?;
    let blocked = Blocked { intent, previous };
    match pool.client.block(&vm.reference, &MIGRATIONS, MIGRATION_REASON).await {
        Ok(()) => Ok(blocked),
        Err(error) => {
            unblock(context, pool, vm, blocked, None).await;
            Err(pool.failed(doing())(error))
        }
    }
}

/// Gives the operations back the reasons they had. What fails stays open in the journal, for a recover run.
pub(crate) async fn unblock(context: &Context, pool: &Pool, vm: &Record<Vm>, blocked: Blocked, task: Option<&Task>) {
    match pool.client.restore_blocked(&vm.reference, &blocked.previous).await {
        Ok(()) => context.recorder.settle(blocked.intent),
        Err(error) if error.is_gone() => context.recorder.settle(blocked.intent),
        Err(error) => {
            let error = pool.failed(format!("allow migrations of {} again", vm.name_label))(error);
            context.warn(task, error.sentence());
        }
    }
}

/// Gives operations that an interrupted run left blocked their reasons back; those blocked by somebody else since stay.
pub(crate) async fn release_operations(
    pool: &Pool,
    vm: &Record<Vm>,
    previous: &BTreeMap<String, Option<String>>,
) -> Result<(), Error> {
    let ours = |operation: &String| vm.blocked_operations.get(operation).is_some_and(|reason| reason == MIGRATION_REASON);
    let previous = previous.iter().filter(|(operation, _)| ours(operation)).map(|(key, value)| (key.clone(), value.clone()));
    pool.client
        .restore_blocked(&vm.reference, &previous.collect())
        .await
        .map_err(pool.failed(format!("allow migrations of {} again", vm.name_label)))
}

/// Reads what is attached to what.
pub(crate) async fn inventory(pool: &Pool) -> Result<Inventory, Error> {
    let doing = "list its VMs and disks";
    let (vms, vdis, vbds) = tokio::try_join!(pool.client.all::<Vm>(), pool.client.all::<Vdi>(), pool.client.all::<Vbd>())
        .map_err(pool.failed(doing))?;
    fn by_reference<T>(records: Vec<Record<T>>) -> BTreeMap<Ref, Record<T>> {
        records.into_iter().map(|record| (record.reference.clone(), record)).collect()
    }
    Ok(Inventory { vms: by_reference(vms), vdis: by_reference(vdis), vbds: by_reference(vbds) })
}

/// Takes the keys of backups off a live VM and its disks, so that snapshots a person makes do not inherit them.
pub(crate) async fn wipe_keys(pool: &Pool, inventory: &Inventory, vm: &Record<Vm>) -> Result<(), Error> {
    let wipe = async |class: &str, object: &Ref, config: &BTreeMap<String, String>| {
        let present: Vec<_> = keys::WIPED.into_iter().filter(|key| config.contains_key(*key)).collect();
        pool.client.clear_other_config(class, object, &present).await
    };
    let result = async {
        wipe("VM", &vm.reference, &vm.other_config).await?;
        for vdi in inventory.disks(vm) {
            wipe("VDI", &vdi.reference, &vdi.other_config).await?;
        }
        Ok(())
    };
    result.await.map_err(pool.failed(format!("take old backup keys off {}", vm.name_label)))
}

/// Destroys a snapshot of a job, VM and disks, or the disks alone where the VM is gone.
pub(crate) async fn destroy(pool: &Pool, snapshot: &candidates::Snapshot) -> xapi::Result<()> {
    if let Some(vm) = &snapshot.vm {
        pool.client.destroy_vm(vm, WITH_DISKS).await?;
    }
    for disk in &snapshot.disks {
        pool.client.destroy_vdi(&disk.vdi).await?;
    }
    Ok(())
}

/// Destroys snapshots that nobody needs any more. A failure is a warning: the next run tries again.
pub(crate) async fn prune(context: &Context, pool: &Pool, vm: &Record<Vm>, owner: &Owner<'_>, keep_base: bool, task: &Task) {
    let inventory = match inventory(pool).await {
        Ok(inventory) => inventory,
        Err(error) => return context.warn(Some(task), error.sentence()),
    };
    // One that cannot be destroyed must not keep the others.
    for leftover in inventory.leftovers(vm) {
        task.info(format!("destroys snapshot {} that an interrupted run left", leftover.uuid));
        if let Err(error) = pool.client.destroy_vm(&leftover.reference, WITH_DISKS).await {
            let error = pool.failed(format!("destroy leftover snapshot {}", leftover.uuid))(error);
            context.warn(Some(task), error.sentence());
        }
    }
    let snapshots = inventory.snapshots(vm, owner.job);
    for snapshot in candidates::surplus(&snapshots, keep_base) {
        if let Err(error) = destroy(pool, snapshot).await {
            let error = pool.failed(format!("destroy the snapshot of {} taken {}", vm.name_label, snapshot.datetime))(error);
            context.warn(Some(task), error.sentence());
        }
    }
}

/// Destroys all snapshots of jobs that are no more. One that cannot be destroyed does not keep the others.
///
/// # Errors
/// The first failure.
pub(crate) async fn destroy_of_jobs(pool: &Pool, jobs: &[String], task: &Task) -> Result<(), Error> {
    if jobs.is_empty() {
        return Ok(());
    }
    let inventory = inventory(pool).await?;
    let mut result = Ok(());
    for vm in inventory.vms.values().filter(|vm| !vm.is_a_snapshot) {
        for snapshot in jobs.iter().flat_map(|job| inventory.snapshots(vm, job)) {
            task.info(format!("destroys the snapshot of {} taken {}, whose job goes", vm.name_label, snapshot.datetime));
            let doing = format!("destroy the snapshot of {} taken {}", vm.name_label, snapshot.datetime);
            result = result.and(destroy(pool, &snapshot).await.map_err(pool.failed(doing)));
        }
    }
    result
}

/// Why there is no snapshot.
struct NotTaken {
    error: Error,
    /// Whether the pool may have one of this call, or still make it.
    uncertain: bool,
}

/// A snapshot of this run.
pub(crate) struct Taken {
    intent: u32,
    pub(crate) vm: Record<Vm>,
}

/// Takes a snapshot of `vm`, tags it and gives it its name.
pub(crate) async fn take(
    context: &Context,
    pool: &Pool,
    inventory: &Inventory,
    vm: &Record<Vm>,
    owner: &Owner<'_>,
    parent: &Task,
) -> Result<Taken, Error> {
    let task = parent.part(TaskKind::Snapshot, format!("snapshot of {}", vm.name_label), Some(vm.uuid.clone()));
    let what = |snapshot: Option<String>| Intent::Snapshot {
        pool: pool.id.clone(),
        vm: vm.uuid.clone(),
        job: owner.job.to_owned(),
        snapshot,
    };
    let result = async {
        let intent = context.recorder.intend(what(None)).await?;
        match take_and_tag(context, pool, inventory, vm, owner, |uuid| context.recorder.refine(intent, what(Some(uuid)))).await {
            Ok(vm) => Ok(Taken { intent, vm }),
            Err(NotTaken { error, uncertain }) => {
                // What is not there yet may still come: only a recover run can settle that.
                if destroy_untagged(context, pool, vm, &task).await && !uncertain {
                    context.recorder.settle(intent);
                }
                Err(error)
            }
        }
    };
    let result = result.await;
    task.settle(&result);
    result
}

async fn take_and_tag<F>(
    context: &Context,
    pool: &Pool,
    inventory: &Inventory,
    vm: &Record<Vm>,
    owner: &Owner<'_>,
    named: impl FnOnce(String) -> F,
) -> Result<Record<Vm>, NotTaken>
where
    F: Future<Output = Result<(), crate::JournalError>>,
{
    let doing = |what: &str| pool.failed(format!("{what} {}", vm.name_label));
    let ignored: Vec<Ref> = inventory
        .disks(vm)
        .into_iter()
        .filter(|vdi| vdi.name_label.contains(NO_BACKUP))
        .map(|vdi| vdi.reference.clone())
        .collect();
    let taking = pool.client.snapshot_vm(&vm.reference, keys::TEMPORARY_NAME, &ignored);
    let mut taking = std::pin::pin!(taking);
    let (taken, cancelled) = match context.unless_cancelled(&mut taking).await {
        Ok(taken) => (taken, false),
        // A snapshot under way cannot be called back: it has to be there before it can go.
        Err(_) => match tokio::time::timeout(SNAPSHOT_PATIENCE, taking).await {
            Ok(taken) => (taken, true),
            Err(_) => return Err(NotTaken { error: Error::Cancelled, uncertain: true }),
        },
    };
    let reference = taken.map_err(|error| {
        // Only the pool's own word says that there is none; a lost connection or answer does not.
        let uncertain = error.failure().is_none();
        NotTaken { error: doing("snapshot")(error), uncertain }
    })?;
    let finish = async {
        if cancelled {
            return Err(Error::Cancelled);
        }
        let snapshot = pool.get::<Vm>(&reference).await?;
        named(snapshot.uuid.clone()).await?;
        let newest = inventory.snapshots(vm, owner.job).into_iter().map(|snapshot| snapshot.datetime).max();
        tag(pool, &snapshot, vm, owner, newest.as_deref()).await.map_err(doing("tag the snapshot of"))?;
        // Read again: what a restore point stores is the snapshot as it is now.
        pool.get::<Vm>(&reference).await
    };
    let error = match finish.await {
        Ok(snapshot) => return Ok(snapshot),
        Err(error) => error,
    };
    let destroyed = pool.client.destroy_vm(&reference, WITH_DISKS).await;
    let uncertain = destroyed.is_err();
    if let Err(error) = destroyed {
        context.warn(None, pool.failed(format!("destroy the unfinished snapshot of {}", vm.name_label))(error).sentence());
    }
    Err(NotTaken { error, uncertain })
}

async fn tag(pool: &Pool, snapshot: &Record<Vm>, vm: &Record<Vm>, owner: &Owner<'_>, newest: Option<&str>) -> xapi::Result<()> {
    let datetime = keys::datetime_after(Timestamp::now(), newest);
    let tags = [
        (keys::DATETIME, datetime.as_str()),
        (keys::JOB, owner.job),
        (keys::QCOW2_FIX, "true"),
        (keys::SCHEDULE, owner.schedule),
        (keys::VM, vm.uuid.as_str()),
    ];
    let disks = pool.client.disks(&snapshot.reference).await?;
    for (_, vdi) in &disks {
        for (key, value) in tags.into_iter().chain([(keys::CONTENT, vdi.uuid.as_str())]) {
            pool.client.set_other_config("VDI", &vdi.reference, key, value).await?;
        }
    }
    for (key, value) in tags {
        pool.client.set_other_config("VM", &snapshot.reference, key, value).await?;
    }
    // The name comes last: as long as it is the temporary one, the snapshot is a leftover.
    let name = keys::snapshot_name(owner.job_name, &vm.name_label);
    pool.client.set_field("VM", &snapshot.reference, "name_label", name).await
}

/// Destroys what a failed or cancelled snapshot may have left under the temporary name; whether that worked.
async fn destroy_untagged(context: &Context, pool: &Pool, vm: &Record<Vm>, task: &Task) -> bool {
    let result = async {
        for leftover in inventory(pool).await?.leftovers(vm) {
            let doing = pool.failed(format!("destroy the unfinished snapshot of {}", vm.name_label));
            pool.client.destroy_vm(&leftover.reference, WITH_DISKS).await.map_err(doing)?;
        }
        Ok::<_, Error>(())
    };
    let result = result.await;
    if let Err(error) = &result {
        context.warn(Some(task), error.sentence());
    }
    result.is_ok()
}

/// Destroys a snapshot of this run. What fails stays open in the journal, for a recover run.
pub(crate) async fn discard(context: &Context, pool: &Pool, taken: Taken, task: &Task) {
    match pool.client.destroy_vm(&taken.vm.reference, WITH_DISKS).await {
        Ok(()) => context.recorder.settle(taken.intent),
        Err(error) => {
            let error = pool.failed(format!("destroy the snapshot {}", taken.vm.uuid))(error);
            context.warn(Some(task), error.sentence());
        }
    }
}

/// Marks a snapshot as a base for the next delta: everything of it is in a restore point.
pub(crate) async fn mark_exported(
    context: &Context,
    pool: &Pool,
    taken: &Taken,
    disks: &[Ref],
    chain_length: u32,
) -> Result<(), Error> {
    let length = chain_length.to_string();
    let marks = [(keys::CHAIN_LENGTH, length.as_str()), (keys::EXPORTED, "true")];
    let objects = disks.iter().map(|disk| ("VDI", disk)).chain([("VM", &taken.vm.reference)]);
    for (class, object) in objects {
        for (key, value) in marks {
            pool.client
                .set_other_config(class, object, key, value)
                .await
                .map_err(pool.failed("mark the snapshot as exported"))?;
        }
    }
    context.recorder.settle(taken.intent);
    Ok(())
}

/// Turns change tracking on where it is off, so that the next delta knows what to read. A pool that cannot is named.
pub(crate) async fn enable_tracking(pool: &Pool, inventory: &Inventory, vm: &Record<Vm>, task: &Task) {
    for vdi in inventory.disks(vm).into_iter().filter(|vdi| !vdi.cbt_enabled && !vdi.name_label.contains(NO_BACKUP)) {
        if let Err(error) = pool.client.enable_cbt(&vdi.reference).await {
            task.info(format!("changed blocks of {} are not tracked: {}", vdi.name_label, crate::error::sentence(&error)));
        }
    }
}
