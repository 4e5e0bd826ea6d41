//! An incremental backup: every disk a key or a delta, then the metadata (backup-repository.md §4.5, §4.6).

use std::collections::BTreeMap;

use api::{JobMode, Phase, TaskResult};
use futures::stream::{FuturesUnordered, StreamExt};
use repository::{BackupMetadata, PointId};

use super::base::Bases;
use super::disk::{DiskJob, DiskRun, MovedDisk};
use super::records::{self, Records};
use super::snapshot::{self, Taken};
use super::vm::Job;
use crate::error::Error;
use crate::journal::Task;

/// Moves all disks of a snapshot and publishes the restore point.
pub(super) async fn run(job: &Job<'_>, taken: &Taken, bases: Bases, task: &Task) -> Result<TaskResult, Error> {
    let records = records::read(job.pool, &taken.vm).await?;
    if records.disks.is_empty() {
        return Err(Error::refused(
            "NO_DISKS",
            format!("{} has no disk that an incremental backup could hold", job.vm.name_label),
        ));
    }
    if has_memory(job, taken) {
        task.warn(format!(
            "the memory of {} is NOT part of this backup: the VM is suspended, and an incremental backup holds its disks \
             only, as after a power cut; resume it or use full backups",
            job.vm.name_label
        ));
    }
    let disks: Vec<DiskJob> =
        records.disks.iter().map(|disk| DiskJob { disk: disk.clone(), base: bases.by_disk.get(&disk.live).cloned() }).collect();
    let moved = move_all(job, &disks, task).await?;
    job.context.check()?;
    task.phase(Phase::Committing);
    let point = commit(job, taken, &records, &disks, &moved, task).await?;
    let all_deltas = moved.iter().all(|disk| disk.is_delta);
    let chain_length = if all_deltas { bases.chain_length + 1 } else { 0 };
    let vdis: Vec<_> = disks.iter().map(|disk| disk.disk.record.reference.clone()).collect();
    if let Err(error) = snapshot::mark_exported(job.context, job.pool, taken, &vdis, chain_length).await {
        // The restore point stands; only the next delta has nothing to be computed from.
        task.warn(format!("the next backup of {} will be a full one: {}", job.vm.name_label, error.sentence()));
    }
    Ok(TaskResult {
        restore_point: Some(point.to_string()),
        delta: Some(all_deltas),
        bytes: Some(task.meter().totals().0),
        ..TaskResult::default()
    })
}

/// Whether there is a memory image that a restore will miss.
fn has_memory(job: &Job<'_>, taken: &Taken) -> bool {
    let image = taken.vm.raw.get("suspend_VDI").and_then(serde_json::Value::as_str).unwrap_or_default();
    job.vm.power_state == "Suspended" || !matches!(image, "" | "OpaqueRef:NULL")
}

/// Moves the disks, a few at a time. The first that fails stops the others: without it there is no restore point.
async fn move_all(job: &Job<'_>, disks: &[DiskJob], task: &Task) -> Result<Vec<MovedDisk>, Error> {
    let run = DiskRun {
        context: job.context,
        cancel: job.context.cancel.child_token(),
        pool: job.pool,
        targets: job.targets,
        job: &job.plan.job,
        vm: &job.vm.uuid,
        time: job.time,
        prefer_nbd: job.plan.prefer_nbd,
    };
    let concurrency = job.context.limits.disks_per_vm.max(1) as usize;
    let mut waiting = disks.iter().enumerate();
    let run_one = &run;
    let start = |(index, disk): (usize, _)| async move { (index, run_one.run(disk, task).await) };
    let mut running: FuturesUnordered<_> = waiting.by_ref().take(concurrency).map(start).collect();
    let mut moved: BTreeMap<usize, MovedDisk> = BTreeMap::new();
    let mut failure = None;
    while let Some((index, result)) = running.next().await {
        match result {
            Ok(disk) => {
                moved.insert(index, disk);
            }
            Err(error) => {
                run.cancel.cancel();
                failure.get_or_insert(error);
            }
        }
        if failure.is_none()
            && let Some(next) = waiting.next()
        {
            running.push(start(next));
        }
    }
    match failure {
        Some(error) => Err(error),
        None => Ok(moved.into_values().collect()),
    }
}

/// Publishes the restore point on every remote that has all disks.
async fn commit(
    job: &Job<'_>,
    taken: &Taken,
    records: &Records,
    disks: &[DiskJob],
    moved: &[MovedDisk],
    task: &Task,
) -> Result<PointId, Error> {
    let mut point = None;
    for (index, target) in job.targets.alive() {
        let metadata = metadata(job, taken, records, disks, moved, index);
        let committed = target.remote.repository.commit(&target.lock, &metadata).await;
        match committed {
            Ok(id) => point = Some(id),
            Err(error) => job.targets.fail(index, &target.remote.failed("publish the restore point")(error), task),
        }
    }
    job.targets.check_any()?;
    point.ok_or_else(|| Error::refused("NO_REMOTE_LEFT", "no remote has the restore point"))
}

/// The metadata for one remote (backup-repository.md §2.1).
fn metadata(
    job: &Job<'_>,
    taken: &Taken,
    records: &Records,
    disks: &[DiskJob],
    moved: &[MovedDisk],
    target: usize,
) -> BackupMetadata {
    let mut metadata = BackupMetadata::new(JobMode::Delta, job.time, &job.plan.job, &job.plan.schedule, job.vm.raw.clone());
    let (mut vhds, mut vdis, mut differencing) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for (disk, moved) in disks.iter().zip(moved) {
        let Some(finished) = &moved.finished[target] else { continue };
        let key = disk.disk.record.reference.to_string();
        let base = disk.base.as_ref().filter(|_| moved.is_delta).map(|base| base.uuid.as_str());
        metadata.size += finished.size;
        vhds.insert(key.clone(), finished.relative.clone());
        vdis.insert(key.clone(), disk.disk.stored(base));
        differencing.insert(key, finished.differencing);
    }
    records::free_of_ours(&mut metadata.vm);
    metadata.vm_snapshot = Some(taken.vm.raw.clone());
    metadata.vhds = Some(vhds);
    metadata.vdis = Some(vdis);
    metadata.vbds = Some(records.vbds.clone());
    metadata.vifs = Some(records.vifs.clone());
    metadata.vtpms = Some(records.vtpms.clone());
    metadata.is_vhd_differencing = Some(differencing);
    metadata.include_non_nbd_qcow2_fix = Some(true);
    metadata
}
