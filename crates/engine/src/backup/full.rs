//! A full backup: the pool's own archive of the VM, one stream to every remote (xapi-streams.md §2.3).

use std::sync::Arc;
use std::time::Duration;

use api::{JobMode, Phase, TaskKind, TaskResult, Wait};
use bytes::Bytes;
use futures::future::join_all;
use repository::{BackupMetadata, FinishedXva, PointId, XvaWriter};
use tokio::time::error::Elapsed;
use xapi::{Compression, Export, Record, Vm};

use super::candidates::Inventory;
use super::records::free_of_ours;
use super::snapshot::{NO_BACKUP, Taken};
use super::vm::Job;
use crate::error::{Cause, Error};
use crate::journal::Task;
use crate::source::Flow;

/// The stream comes in small pieces; they are written when they are as many bytes together.
const PART: usize = 1 << 20;
/// What the removal of an unfinished archive may take: the next clean removes what a hung remote keeps.
const ABORT_PATIENCE: Duration = Duration::from_secs(10);

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
        join_all(writers.into_iter().map(|(_, writer)| abort(writer))).await;
        return Err(error);
    }
    task.phase(Phase::Committing);
    let mut finished = Vec::new();
    for (index, writer) in writers {
        let error = match tokio::time::timeout(flow.stall, writer.finish()).await {
            Ok(Ok(xva)) => {
                finished.push((index, xva));
                continue;
            }
            Ok(Err(error)) => error.into(),
            Err(_) => stalled(&flow),
        };
        job.targets.drop_target(index, "complete the archive".into(), error, task);
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
            write(job, writers, part, flow, task).await
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
        let piece = if export.bytes() == 0 {
            // A pool that compresses may take long to begin; the client knows how long is too long.
            let _waiting = flow.meter.wait(Wait::Source, &flow.source_words);
            Ok(job.context.unless_cancelled(export.next()).await?)
        } else {
            job.context.unless_cancelled(flow.from_source(export.next())).await?
        };
        let Some(piece) = piece.map_err(|stalled| failed(stalled.into()))?.map_err(|error| failed(error.into()))? else { break };
        length += piece.len();
        part.push(piece);
    }
    Ok(part)
}

/// Writes a part everywhere. A remote that takes nothing for too long is dropped like one that fails.
async fn write(job: &Job<'_>, writers: &mut Writers, part: Vec<Bytes>, flow: &Flow, task: &Task) -> Result<(), Error> {
    let writes = writers.iter_mut().map(|(_, writer)| tokio::time::timeout(flow.stall, writer.write(part.clone())));
    let written = job.context.unless_cancelled(join_all(writes)).await?;
    let end = |end: Result<repository::Result<()>, Elapsed>| match end {
        Ok(written) => written.err().map(Cause::from),
        Err(_) => Some(stalled(flow)),
    };
    let mut failed: Vec<_> = written.into_iter().enumerate().filter_map(|(at, ended)| Some((at, end(ended)?))).collect();
    while let Some((at, error)) = failed.pop() {
        let (index, writer) = writers.remove(at);
        job.targets.drop_target(index, "write the archive".into(), error, task);
        abort(writer).await;
    }
    job.targets.check_any()
}

fn stalled(flow: &Flow) -> Cause {
    format!("nothing was accepted for {} s", flow.stall.as_secs()).into()
}

/// Removes an unfinished archive, unless its remote hangs.
async fn abort(writer: XvaWriter) {
    let _ = tokio::time::timeout(ABORT_PATIENCE, writer.abort()).await;
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
        free_of_ours(&mut metadata.vm);
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
