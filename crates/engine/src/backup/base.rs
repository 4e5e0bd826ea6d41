//! What each disk can be a delta of: a snapshot on the pool that every remote has too (backup-repository.md §4.4).
//! Why a disk has no base is always said.

use std::collections::BTreeMap;

use repository::{Base, BaseSearch, Lineage};
use uuid::Uuid;

use super::candidates::{self, Inventory, SnapshotDisk};
use super::disk::DiskBase;
use super::vm::Job;
use crate::error::Error;
use crate::journal::Task;

/// The bases of a VM's disks.
pub(super) struct Bases {
    /// By uuid of the live disk.
    pub(super) by_disk: BTreeMap<String, DiskBase>,
    /// Deltas since the last full, the next one not counted.
    pub(super) chain_length: u32,
}

impl Bases {
    pub(super) fn none() -> Self {
        Self { by_disk: BTreeMap::new(), chain_length: 0 }
    }
}

/// Chooses the bases for the next restore point.
pub(super) async fn choose(job: &Job<'_>, inventory: &Inventory, task: &Task) -> Result<Bases, Error> {
    let snapshots = inventory.snapshots(job.vm, &job.plan.job);
    // Only the newest: an older one would make a second branch of the chain.
    let Some(snapshot) = candidates::newest_base(&snapshots) else {
        task.info("all disks become keys: the pool has no snapshot of an earlier backup of this job");
        return Ok(Bases::none());
    };
    let interval = job.plan.full_interval;
    if interval != 0 && interval <= snapshot.chain_length + 1 {
        task.info(format!("all disks become keys: the job wants one every {interval} runs"));
        return Ok(Bases::none());
    }
    let newest = newest_points(job, task).await?;
    let mut by_disk = BTreeMap::new();
    for disk in &snapshot.disks {
        if let Some(base) = base_of(job, inventory, disk, &newest, task).await? {
            by_disk.insert(disk.live.clone(), base);
        }
    }
    Ok(Bases { by_disk, chain_length: snapshot.chain_length })
}

/// The base of one disk, if every remote has it.
async fn base_of(
    job: &Job<'_>,
    inventory: &Inventory,
    disk: &SnapshotDisk,
    newest: &[Option<String>],
    task: &Task,
) -> Result<Option<DiskBase>, Error> {
    let lineage = Lineage { vm: job.vm.uuid.clone(), job: job.plan.job.clone(), vdi: disk.live.clone() };
    let live = inventory.vdis.values().find(|vdi| vdi.uuid == disk.live);
    let (name, size) = live.map_or((disk.live.as_str(), 0), |vdi| (vdi.name_label.as_str(), vdi.virtual_size));
    let Ok(uuid) = Uuid::parse_str(&disk.uuid) else { return Ok(None) };
    let mut on_targets: Vec<Option<Base>> = vec![None; job.targets.count()];
    for (index, target) in job.targets.alive() {
        let search = target.remote.repository.find_base(&lineage, uuid, size, job.time).await;
        let reason = match search {
            Ok(BaseSearch::Found(base)) if newest[index].as_ref().is_none_or(|stem| base.name().starts_with(stem.as_str())) => {
                on_targets[index] = Some(base);
                continue;
            }
            // A second branch of the chain could not be merged any more, and XO would merge it wrongly.
            Ok(BaseSearch::Found(_)) => "the newest backup there was not completed on the pool".into(),
            Ok(BaseSearch::None { reason }) => reason,
            Err(error) => {
                let error = target.remote.failed(format!("look for the base of disk {name}"))(error);
                job.targets.fail(index, &error, task);
                continue;
            }
        };
        task.warn(format!("disk {name} becomes a key: no base of a delta on {}: {reason}", target.remote.name));
        return Ok(None);
    }
    job.targets.check_any()?;
    Ok(Some(DiskBase {
        vdi: disk.vdi.clone(),
        uuid: disk.uuid.clone(),
        virtual_size: size,
        metadata_only: disk.metadata_only,
        on_targets,
    }))
}

/// The name of the job's newest restore point on each remote, by the remote's index.
async fn newest_points(job: &Job<'_>, task: &Task) -> Result<Vec<Option<String>>, Error> {
    let mut newest = vec![None; job.targets.count()];
    for (index, target) in job.targets.alive() {
        match target.remote.repository.list(&job.vm.uuid).await {
            Ok(listing) => {
                let mut points = listing.points.iter().rev();
                let point = points.find(|point| point.metadata.job_id == job.plan.job);
                newest[index] = point.map(|point| point.id.stem().to_owned());
            }
            Err(error) => job.targets.fail(index, &target.remote.failed("list the restore points")(error), task),
        }
    }
    job.targets.check_any()?;
    Ok(newest)
}
