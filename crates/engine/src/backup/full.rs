//! A full backup: the pool's own archive of the VM, one stream to every remote (xapi-streams.md §2.3).

use std::sync::Arc;

use api::{JobMode, Phase, TaskKind, TaskResult, Wait};
use bytes::Bytes;
use futures::future::join_all;
use repository::{BackupMetadata, FinishedXva, PointId, XvaWriter};
use xapi::{Compression, Export, Record, Vm};

use super::candidates::Inventory;
use super::snapshot::{NO_BACKUP, Taken};
use super::vm::Job;
use crate::error::Error;
use crate::journal::Task;
use crate::source::Flow;

/// The stream comes in small pieces; they are written when they are as many bytes together.
const PART: usize = 1 << 20;

/// Whether a full backup exports a snapshot rather than the VM itself (backup-repository.md §4.2 step 6).
pub(super) fn needs_snapshot(vm: &Record<Vm>, inventory: &Inventory) -> bool {
    let excluded = inventory.disks(vm).iter().any(|vdi| vdi.name_label.contains(NO_BACKUP));
    excluded || matches!(vm.power_state.as_str(), "Running" | "Paused")
}

/// Exports the VM, or its snapshot, and publishes the restore point.
pub(super) async fn run(job: &Job<'_>, taken: Option<&Taken>, parent: &Task) -> Result<TaskResult, Error> {
    let exported = taken.map_or(job.vm, |taken| &taken.vm);
    let task = parent.part(TaskKind::Xva, format!("archive of {}", job.vm.name_label), Some(job.vm.uuid.clone()));
    let result = transfer(job, exported, &task).await;
    let finished = match result {
        Ok(finished) => finished,
        Err(error) => {
            task.fail(&error);
            return Err(error);
        }
    };
    let bytes = task.meter().totals().0;
    task.succeed(TaskResult { path: Some("xva".into()), bytes: Some(bytes), ..TaskResult::default() });
    parent.phase(Phase::Committing);
    let point = commit(job, exported, finished, parent).await?;
    Ok(TaskResult { restore_point: Some(point.to_string()), bytes: Some(bytes), ..TaskResult::default() })
}

/// An archive on each remote that is left, by the remote's index.
type Writers = Vec<(usize, XvaWriter)>;

async fn transfer(job: &Job<'_>, exported: &Record<Vm>, task: &Task) -> Result<Vec<(usize, FinishedXva)>, Error> {
    task.phase(Phase::Preparing);
    let compression = match job.plan.compression {
        api::Compression::None => Compression::None,
        api::Compression::Gzip => Compression::Gzip,
        api::Compression::Zstd => Compression::Zstd,
    };
    let failed =
        |error: xapi::Error| Error::Source { what: format!("the archive of {}", job.vm.name_label), source: error.into() };
    let opening = job.pool.client.export_vm(&exported.reference, compression, &job.vm.name_label);
    let mut export = job.context.unless_cancelled(opening).await?.map_err(failed)?;
    let mut writers = create(job, task).await?;
    task.phase(Phase::Transferring);
    let flow = job.context.flow(task.meter(), format!("export of {} from {}", job.vm.name_label, job.pool.name));
    let moved = copy(job, &mut export, &mut writers, &flow, task).await;
    // The end of the body is no success: only the task of the pool knows (backup-repository.md §8 H19).
    let ended = match moved {
        Ok(()) => {
            let ended = job.context.unless_cancelled(export.finish()).await;
            ended.and_then(|ended| ended.map_err(failed))
        }
        Err(error) => {
            export.abort().await;
            Err(error)
        }
    };
    if let Err(error) = ended {
        join_all(writers.into_iter().map(|(_, writer)| writer.abort())).await;
        return Err(error);
    }
    task.phase(Phase::Committing);
    let mut finished = Vec::new();
    for (index, writer) in writers {
        match writer.finish().await {
            Ok(xva) => finished.push((index, xva)),
            Err(error) => job.targets.drop_target(index, "complete the archive".into(), error.into(), task),
        }
    }
    job.targets.check_any()?;
    Ok(finished)
}

async fn create(job: &Job<'_>, task: &Task) -> Result<Writers, Error> {
    let mut writers = Writers::new();
    for (index, target) in job.targets.alive() {
        match target.remote.repository.create_xva(&target.lock, job.time).await {
            Ok(writer) => writers.push((index, writer)),
            Err(error) => job.targets.drop_target(index, "create the archive".into(), error.into(), task),
        }
    }
    job.targets.check_any()?;
    Ok(writers)
}

/// Reads the stream to its end, and writes it everywhere. A remote that fails is dropped.
///
/// While one part is written and checked, the next one is read: either can take as long as the other.
async fn copy(job: &Job<'_>, export: &mut Export, writers: &mut Writers, flow: &Flow, task: &Task) -> Result<(), Error> {
    let limit_words: Arc<str> = "the configured speed limit".into();
    let write_words: Arc<str> = "write of the archive".into();
    let mut part = read(job, export, flow).await?;
    while !part.is_empty() {
        let bytes = part.iter().map(|piece| piece.len() as u64).sum();
        flow.meter.add_read(bytes);
        if let Some(due) = flow.limiter.reserve(bytes) {
            let _waiting = flow.meter.wait(Wait::Limit, &limit_words);
            job.context.unless_cancelled(tokio::time::sleep_until(due)).await?;
        }
        let writing = async {
            let _waiting = flow.meter.wait(Wait::Target, &write_words);
            write(job, writers, part, task).await
        };
        // A failed write ends the read; a failed read waits for the write, whose file is about to be removed.
        let reading = async { Ok(read(job, export, flow).await) };
        let ((), next) = tokio::try_join!(writing, reading)?;
        flow.meter.add_done(bytes);
        flow.meter.add_written(bytes * writers.len() as u64);
        part = next?;
    }
    Ok(())
}

/// The next part of the stream in the pieces it came in; none at its end.
async fn read(job: &Job<'_>, export: &mut Export, flow: &Flow) -> Result<Vec<Bytes>, Error> {
    let failed = |source| Error::Source { what: format!("the archive of {}", job.vm.name_label), source };
    let (mut part, mut length) = (Vec::new(), 0);
    while length < PART {
        let piece = job.context.unless_cancelled(flow.from_source(export.next())).await?;
        let Some(piece) = piece.map_err(|stalled| failed(stalled.into()))?.map_err(|error| failed(error.into()))? else { break };
        length += piece.len();
        part.push(piece);
    }
    Ok(part)
}

async fn write(job: &Job<'_>, writers: &mut Writers, part: Vec<Bytes>, task: &Task) -> Result<(), Error> {
    let written = join_all(writers.iter_mut().map(|(_, writer)| writer.write(part.clone()))).await;
    let mut failed: Vec<_> = written.into_iter().enumerate().filter_map(|(at, end)| Some((at, end.err()?))).collect();
    while let Some((at, error)) = failed.pop() {
        let (index, writer) = writers.remove(at);
        writer.abort().await;
        job.targets.drop_target(index, "write the archive".into(), error.into(), task);
    }
    job.targets.check_any()
}

async fn commit(
    job: &Job<'_>,
    exported: &Record<Vm>,
    finished: Vec<(usize, FinishedXva)>,
    task: &Task,
) -> Result<PointId, Error> {
    let mut point = None;
    for (index, target) in job.targets.alive() {
        let Some((_, xva)) = finished.iter().find(|(of, _)| *of == index) else { continue };
        let mut metadata = BackupMetadata::new(JobMode::Full, job.time, &job.plan.job, &job.plan.schedule, job.vm.raw.clone());
        metadata.vm_snapshot = Some(exported.raw.clone());
        metadata.xva = Some(xva.relative.clone());
        metadata.size = xva.size;
        match target.remote.repository.commit(&target.lock, &metadata).await {
            Ok(id) => point = Some(id),
            Err(error) => job.targets.fail(index, &target.remote.failed("publish the restore point")(error), task),
        }
    }
    job.targets.check_any()?;
    point.ok_or_else(|| Error::refused("NO_REMOTE_LEFT", "no remote has the restore point"))
}
