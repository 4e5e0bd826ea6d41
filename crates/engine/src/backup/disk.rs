//! One disk from the pool to the remotes: the paths it can come by, tried in order, none of them given up silently
//! (backup-repository.md §4.5).

use std::collections::VecDeque;
use std::sync::Arc;

use api::{Phase, TaskKind, TaskResult};
use async_trait::async_trait;
use bytes::Bytes;
use repository::{BackupTime, Base, DiskWriter, FinishedDisk, Lineage, NewDisk};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use vhd::BLOCK_SIZE;
use xapi::{Ref, Vdi};

use super::records::SnapshotVdi;
use super::targets::Targets;
use crate::context::Context;
use crate::error::{Cause, Error, sentence};
use crate::journal::Task;
use crate::pipeline::{PumpError, Sink, Target, pump};
use crate::pool::Pool;
use crate::source::{Flow, NbdSource, Source, SourceError, nbd, stream};

/// A disk to move.
pub(super) struct DiskJob {
    pub(super) disk: SnapshotVdi,
    /// What a delta can be made on; none: only a key is wanted.
    pub(super) base: Option<DiskBase>,
}

/// The base of a delta, on the pool and on every remote.
#[derive(Clone)]
pub(super) struct DiskBase {
    pub(super) vdi: Ref,
    pub(super) uuid: String,
    /// Size of the live disk when the base was chosen, bytes.
    pub(super) virtual_size: u64,
    /// Its data is destroyed; only CBT can use it (xapi-streams.md §6 T20).
    pub(super) metadata_only: bool,
    /// The base's disk on each remote, in the order of the targets; none where the remote has failed since.
    pub(super) on_targets: Vec<Option<Base>>,
}

/// What became of a disk.
pub(super) struct MovedDisk {
    pub(super) is_delta: bool,
    /// On each remote, in the order of the targets; none where it failed.
    pub(super) finished: Vec<Option<FinishedDisk>>,
}

/// A way to read the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path {
    /// Changed blocks from the pool, data over NBD.
    Cbt,
    /// The list of blocks from the head of an export, data over NBD.
    Nbd { delta: bool },
    /// The export itself.
    Stream { delta: bool },
}

impl Path {
    fn is_delta(self) -> bool {
        match self {
            Self::Cbt => true,
            Self::Nbd { delta } | Self::Stream { delta } => delta,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Cbt => "NBD with changed block tracking",
            Self::Nbd { delta: true } => "NBD with the block list of a differential export",
            Self::Nbd { delta: false } => "NBD",
            Self::Stream { delta: true } => "differential export stream",
            Self::Stream { delta: false } => "export stream of the whole disk",
        }
    }
}

/// The paths to try, in order.
fn paths(prefer_nbd: bool, base: Option<&DiskBase>) -> VecDeque<Path> {
    let mut paths = VecDeque::new();
    if let Some(base) = base {
        if prefer_nbd {
            paths.push_back(Path::Cbt);
        }
        if !base.metadata_only {
            if prefer_nbd {
                paths.push_back(Path::Nbd { delta: true });
            }
            paths.push_back(Path::Stream { delta: true });
        }
    }
    if prefer_nbd {
        paths.push_back(Path::Nbd { delta: false });
    }
    paths.push_back(Path::Stream { delta: false });
    paths
}

/// What all disks of a VM share.
pub(super) struct DiskRun<'a> {
    pub(super) context: &'a Arc<Context>,
    /// Of the run, or of this VM because another of its disks failed.
    pub(super) cancel: CancellationToken,
    pub(super) pool: &'a Arc<Pool>,
    pub(super) targets: &'a Targets,
    pub(super) job: &'a str,
    pub(super) vm: &'a str,
    pub(super) time: BackupTime,
    pub(super) prefer_nbd: bool,
}

impl DiskRun<'_> {
    /// Moves a disk to all remotes that are left.
    pub(super) async fn run(&self, job: &DiskJob, parent: &Task) -> Result<MovedDisk, Error> {
        let label = job.disk.label();
        let task = parent.part(TaskKind::Disk, label.clone(), Some(job.disk.live.clone()));
        let result = self.try_paths(job, &label, &task).await;
        match result {
            Ok((moved, path)) => {
                let bytes = task.meter().totals().0;
                task.succeed(TaskResult {
                    delta: Some(moved.is_delta),
                    path: Some(path.into()),
                    bytes: Some(bytes),
                    ..TaskResult::default()
                });
                Ok(moved)
            }
            Err(error) => {
                task.fail(&error);
                Err(error)
            }
        }
    }

    async fn try_paths(&self, job: &DiskJob, label: &str, task: &Task) -> Result<(MovedDisk, &'static str), Error> {
        let failed = |source: SourceError| Error::Source { what: format!("disk {label}"), source: Box::new(source) };
        let size = job.disk.record.virtual_size;
        let base = job.base.as_ref().filter(|base| base.virtual_size == size);
        if let (Some(chosen), None) = (&job.base, base) {
            let was = chosen.virtual_size;
            task.warn(format!("disk {label} becomes a key although it has a base: it had {was} bytes and has {size} now"));
        }
        let mut paths = paths(self.prefer_nbd, base);
        loop {
            if self.cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let Some(path) = paths.pop_front() else {
                return Err(Error::refused("NO_SOURCE", format!("disk {label} cannot be read in any way the pool offers")));
            };
            task.phase(Phase::Preparing);
            let opened = tokio::select! {
                biased;
                () = self.cancel.cancelled() => return Err(Error::Cancelled),
                opened = self.open(path, job, label) => opened,
            };
            let (error, moved_some) = match opened {
                Err(error) => (error, false),
                Ok(mut source) => {
                    let moved = self.transfer(&mut *source, path, job, label, task).await;
                    source.close().await;
                    match moved {
                        Ok(moved) => return Ok((moved, source.path())),
                        Err(Stop::Error(error)) => return Err(error),
                        Err(Stop::Source(error)) => (error, task.meter().totals().0 > 0),
                    }
                }
            };
            // Data that broke off in the middle is worth another way to the same data, not to the whole disk: that a
            // connection was cut says nothing against the base.
            if moved_some {
                paths.retain(|other| other.is_delta() == path.is_delta());
            }
            let Some(next) = paths.front() else { return Err(failed(error)) };
            task.warn(format!("{} failed, trying {}: {}", path.words(), next.words(), sentence(&error)));
            if path.is_delta() && !next.is_delta() {
                task.warn(format!("disk {label} becomes a key although it has a base: no delta of it can be read"));
            }
            task.meter().restart();
        }
    }

    async fn open(&self, path: Path, job: &DiskJob, label: &str) -> Result<Box<dyn Source>, SourceError> {
        let client = &self.pool.client;
        let limits = &self.context.limits;
        let vdi = &job.disk.record.reference;
        let base = job.base.as_ref().filter(|_| path.is_delta()).map(|base| &base.vdi);
        match path {
            Path::Stream { .. } => Ok(Box::new(stream::open(client, vdi, base, label).await?)),
            Path::Nbd { .. } => {
                let nbd = self.connect(vdi, label).await?;
                let head = match stream::head(client, vdi, base, label).await {
                    Ok(head) => head,
                    Err(error) => {
                        nbd.close().await;
                        return Err(error);
                    }
                };
                Ok(Box::new(NbdSource::new(nbd, head.blocks, head.is_delta, "nbd", limits, label)))
            }
            Path::Cbt => {
                let failed = |what: &str, source: Cause| SourceError::Failed { what: format!("{what} of {label}"), source };
                let changed = self.changed_blocks(job).await.map_err(|source| failed("changed blocks", source))?;
                let nbd = self.connect(vdi, label).await?;
                let blocks =
                    changed.blocks(nbd.size(), BLOCK_SIZE as u64).filter_map(|index| u32::try_from(index).ok()).collect();
                Ok(Box::new(NbdSource::new(nbd, blocks, true, "nbd+cbt", limits, label)))
            }
        }
    }

    async fn connect(&self, vdi: &Ref, label: &str) -> Result<::nbd::Client, SourceError> {
        let addresses = self.pool.client.nbd_info(vdi).await;
        let addresses = addresses
            .map_err(|error| SourceError::Failed { what: format!("NBD addresses of {label}"), source: Box::new(error) })?;
        nbd::connect(addresses, &self.context.limits, label).await
    }

    async fn changed_blocks(&self, job: &DiskJob) -> Result<xapi::ChangedBlocks, Cause> {
        let Some(base) = &job.base else { return Err("there is no base".into()) };
        if !self.pool.client.get::<Vdi>(&job.disk.record.reference).await?.cbt_enabled {
            return Err("change tracking was not on when the snapshot was taken".into());
        }
        let changed = self.pool.client.list_changed_blocks(&base.vdi, &job.disk.record.reference).await?;
        // What a cut list leaves out would be taken for unchanged.
        match changed.covers(job.disk.record.virtual_size) {
            true => Ok(changed),
            false => Err("the list of changed blocks ends before the disk does".into()),
        }
    }

    /// Moves a disk from an open source, and completes it on every remote where that worked.
    async fn transfer(
        &self,
        source: &mut dyn Source,
        path: Path,
        job: &DiskJob,
        label: &str,
        task: &Task,
    ) -> Result<MovedDisk, Stop> {
        let is_delta = source.is_delta();
        if path.is_delta() && !is_delta {
            task.warn(format!("a delta of disk {label} was asked for, but the pool sent the whole disk: it becomes a key"));
        } else if is_delta && !path.is_delta() {
            let reason = "the pool sent a delta where the whole disk was asked for";
            return Err(Stop::Source(SourceError::Failed { what: reason.into(), source: "wrong disk type".into() }));
        }
        task.info(format!("reads {} of {} by {}", counted(source.block_count()), label, path.words()));
        let writers = self.create(source.virtual_size(), is_delta, job, task).await?;
        task.meter().add_total(source.block_count() * BLOCK_SIZE as u64);
        task.phase(Phase::Transferring);
        let flow = self.flow(task, path, label);
        let pumped = pump(source, self.pump_targets(&writers, label), &flow).await;
        let ends = match pumped {
            Ok(ends) => ends,
            Err(error) => {
                for (_, writer) in writers {
                    abort(writer).await;
                }
                return Err(match error {
                    PumpError::Cancelled => Stop::Error(Error::Cancelled),
                    PumpError::Source(error) => Stop::Source(error),
                });
            }
        };
        task.phase(Phase::Committing);
        let mut finished: Vec<Option<FinishedDisk>> = vec![None; self.targets.count()];
        for ((index, writer), end) in writers.into_iter().zip(ends) {
            let result = match end {
                Ok(()) => match Arc::into_inner(writer) {
                    Some(writer) => writer.finish().await.map_err(Cause::from),
                    None => Err("a write of it never came to an end".into()),
                },
                Err(error) => {
                    abort(writer).await;
                    Err(Cause::from(error))
                }
            };
            match result {
                Ok(disk) => finished[index] = Some(disk),
                Err(error) => self.targets.drop_target(index, format!("write disk {label}"), error, task),
            }
        }
        self.targets.check_any().map_err(Stop::Error)?;
        Ok(MovedDisk { is_delta, finished })
    }

    /// Creates the disk on every remote that is left.
    async fn create(&self, virtual_size: u64, is_delta: bool, job: &DiskJob, task: &Task) -> Result<Writers, Stop> {
        let mut writers = Writers::new();
        for (index, target) in self.targets.alive() {
            let base = job.base.as_ref().filter(|_| is_delta).and_then(|base| base.on_targets[index].clone());
            let new = self.new_disk(virtual_size, job, base);
            let created = match new {
                Ok(new) => target.remote.repository.create_disk(&target.lock, new).await.map_err(Cause::from),
                Err(error) => Err(error),
            };
            match created {
                Ok(writer) => writers.push((index, Arc::new(writer))),
                Err(error) => {
                    self.targets.drop_target(index, format!("create disk {}", job.disk.label()), error, task);
                }
            }
        }
        self.targets.check_any().map_err(Stop::Error)?;
        Ok(writers)
    }

    fn new_disk(&self, virtual_size: u64, job: &DiskJob, base: Option<Base>) -> Result<NewDisk, Cause> {
        let lineage = Lineage { vm: self.vm.to_owned(), job: self.job.to_owned(), vdi: job.disk.live.clone() };
        let uuid = Uuid::parse_str(&job.disk.record.uuid)?;
        Ok(NewDisk { lineage, time: self.time, virtual_size, uuid, base })
    }

    fn pump_targets(&self, writers: &[(usize, Arc<DiskWriter>)], label: &str) -> Vec<Target> {
        let target = |(index, writer): &(usize, Arc<DiskWriter>)| Target {
            words: format!("write of {label} to {}", self.targets.name(*index)).into(),
            sink: Arc::new(DiskSink(Arc::clone(writer))),
        };
        writers.iter().map(target).collect()
    }

    fn flow(&self, task: &Task, path: Path, label: &str) -> Flow {
        let words = match path {
            Path::Cbt | Path::Nbd { .. } => format!("NBD read of {label} on {}", self.pool.name),
            Path::Stream { .. } => format!("export of {label} from {}", self.pool.name),
        };
        Flow { cancel: self.cancel.clone(), ..self.context.flow(task.meter(), words) }
    }
}

/// The disk on each remote that is left, by the remote's index.
type Writers = Vec<(usize, Arc<DiskWriter>)>;

/// Why a path led nowhere.
enum Stop {
    /// The source failed: another path may do.
    Source(SourceError),
    /// No other path would do better.
    Error(Error),
}

/// A disk in a repository as the pipeline sees it.
struct DiskSink(Arc<DiskWriter>);

#[async_trait]
impl Sink for DiskSink {
    async fn write(&self, index: u32, data: Bytes) -> Result<(), Cause> {
        Ok(self.0.write_block(index, data).await?)
    }
}

/// Removes what was written of a disk; while a write of it hangs, the next clean has to.
async fn abort(writer: Arc<DiskWriter>) {
    if let Some(writer) = Arc::into_inner(writer) {
        writer.abort().await;
    }
}

fn counted(blocks: u64) -> String {
    format!("{blocks} block{} ({})", if blocks == 1 { "" } else { "s" }, api::format_bytes(blocks * BLOCK_SIZE as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(metadata_only: bool) -> DiskBase {
        DiskBase { vdi: Ref::null(), uuid: String::new(), virtual_size: 0, metadata_only, on_targets: Vec::new() }
    }

    #[test]
    fn the_paths_are_tried_in_the_order_of_the_reference() {
        let (nbd, stream) = (|delta| Path::Nbd { delta }, |delta| Path::Stream { delta });
        assert_eq!(paths(true, Some(&base(false))), [Path::Cbt, nbd(true), stream(true), nbd(false), stream(false)]);
        assert_eq!(paths(true, Some(&base(true))), [Path::Cbt, nbd(false), stream(false)]);
        assert_eq!(paths(true, None), [nbd(false), stream(false)]);
        assert_eq!(paths(false, Some(&base(false))), [stream(true), stream(false)]);
        assert_eq!(paths(false, Some(&base(true))), [stream(false)]);
        assert_eq!(paths(false, None), [stream(false)]);
    }
}
