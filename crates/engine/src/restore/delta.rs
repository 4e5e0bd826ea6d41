//! An incremental backup: a new VM, and each disk's chain, flattened, uploaded into a new VDI
//! (backup-repository.md §6.2).

use std::sync::Arc;

use api::{Phase, TaskKind, TaskResult};
use futures::stream::{self, FuturesUnordered, StreamExt};
use repository::DiskChain;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use vhd::stream::Writer;
use vhd::{DiskType, DynamicHeader, Footer};
use xapi::{DiskFormat, Ref};

use super::full::metered;
use super::new_vm::{self, NewVm};
use super::{Restore, records};
use crate::error::Error;
use crate::journal::Task;
use crate::recover::half_restored;

/// Blocks read ahead of the upload of a disk.
const READ_AHEAD: usize = 4;

/// A disk on its way back.
struct Upload {
    chain: Arc<DiskChain>,
    vdi: Ref,
    label: String,
    uuid: String,
}

impl Restore<'_> {
    /// Makes the VM, uploads its disks, and gives it its name. On failure nothing of it stays.
    pub(super) async fn delta(&self, task: &Task) -> Result<String, Error> {
        // Before anything is created: a chain that does not open is found here.
        let chains = self.chains().await?;
        self.context.check()?;
        let intent = self.context.recorder.intend(self.intent(None)).await?;
        let mut vm = match NewVm::create(self.pool, self.stored, &self.context.run).await {
            Ok(vm) => vm,
            Err(error) => {
                // The answer may have been lost on its way, and the VM be there.
                match half_restored(self.pool, &self.context.run, None, task).await {
                    Ok(()) => self.context.recorder.settle(intent),
                    Err(undo) => task.warn(undo.sentence()),
                }
                return Err(error);
            }
        };
        let filled = self.fill(&mut vm, chains, intent, task).await;
        match filled {
            Ok(()) => {
                self.context.recorder.settle(intent);
                Ok(vm.uuid)
            }
            Err(error) => {
                task.phase(Phase::Cleaning);
                match vm.undo().await {
                    Ok(()) => self.context.recorder.settle(intent),
                    Err(undo) => task.warn(undo.sentence()),
                }
                Err(error)
            }
        }
    }

    /// Opens every disk: (key in the metadata, chain).
    async fn chains(&self) -> Result<Vec<(String, DiskChain)>, Error> {
        let mut chains = Vec::new();
        for (key, path) in self.stored.disks() {
            let doing = self.remote.failed(format!("open disk {path}"));
            let chain = self.remote.repository.open_disk(self.point, path).await.map_err(doing)?;
            chains.push((key.to_owned(), chain));
        }
        Ok(chains)
    }

    async fn fill(&self, vm: &mut NewVm<'_>, chains: Vec<(String, DiskChain)>, intent: u32, task: &Task) -> Result<(), Error> {
        self.context.recorder.refine(intent, self.intent(Some(vm.uuid.clone()))).await?;
        let mut uploads = Vec::new();
        for (key, chain) in chains {
            self.context.check()?;
            let record = self.stored.vdis.as_ref().and_then(|vdis| vdis.get(&key)).cloned().unwrap_or_default();
            let vdi = vm.add_disk(&key, &record, &self.sr, chain.virtual_size(), &self.context.run).await?;
            let label = match records::text(&record, "name_label") {
                "" => format!("disk {}", uploads.len() + 1),
                name => name.to_owned(),
            };
            let uuid = records::text(&record, "uuid").to_owned();
            uploads.push(Upload { chain: Arc::new(chain), vdi, label, uuid });
        }
        vm.add_interfaces(task).await?;
        vm.add_tpms(task).await;
        task.phase(Phase::Transferring);
        self.upload_all(&uploads, task).await?;
        self.context.check()?;
        task.phase(Phase::Committing);
        vm.finish(&self.name, &self.description).await
    }

    async fn upload_all(&self, uploads: &[Upload], task: &Task) -> Result<(), Error> {
        let stop = self.context.cancel.child_token();
        let concurrency = self.context.limits.disks_per_vm.max(1) as usize;
        let mut waiting = uploads.iter();
        let mut running: FuturesUnordered<_> =
            waiting.by_ref().take(concurrency).map(|upload| self.upload_disk(upload, &stop, task)).collect();
        let mut failure = None;
        while let Some(result) = running.next().await {
            if let Err(error) = result {
                stop.cancel();
                failure.get_or_insert(error);
            } else if let Some(next) = waiting.next() {
                running.push(self.upload_disk(next, &stop, task));
            }
        }
        failure.map_or(Ok(()), Err)
    }

    async fn upload_disk(&self, upload: &Upload, stop: &CancellationToken, parent: &Task) -> Result<(), Error> {
        let task = parent.part(TaskKind::Disk, upload.label.clone(), Some(upload.uuid.clone()));
        let result = tokio::select! {
            biased;
            () = stop.cancelled() => Err(Error::Cancelled),
            result = self.upload_content(upload, &task) => result,
        };
        match &result {
            Ok(()) => {
                let bytes = task.meter().totals().0;
                task.succeed(TaskResult { path: Some("stream".into()), bytes: Some(bytes), ..TaskResult::default() });
            }
            Err(error) => task.fail(error),
        }
        result
    }

    /// Uploads a flattened chain as one dynamic VHD whose length is known beforehand (xapi-streams.md §6 T3).
    async fn upload_content(&self, upload: &Upload, task: &Task) -> Result<(), Error> {
        task.phase(Phase::Preparing);
        let size = new_vm::size_of(self.pool, &upload.vdi).await?;
        if size < upload.chain.virtual_size() {
            let message = format!("the new disk for {} has {size} bytes, fewer than its content", upload.label);
            return Err(Error::refused("DISK_TOO_SMALL", message));
        }
        let unusable = |error: vhd::FormatError| Error::Source { what: format!("disk {}", upload.label), source: error.into() };
        let seconds = u32::try_from(self.stored.timestamp / 1000).unwrap_or(0);
        let footer = Footer::new(upload.chain.virtual_size(), Uuid::new_v4(), DiskType::Dynamic, seconds);
        let header = DynamicHeader::for_disk(&footer, None).map_err(unusable)?;
        let blocks = upload.chain.blocks();
        let writer = Writer::new(&footer, &header, blocks.clone()).map_err(unusable)?;
        let length = writer.length();
        task.meter().add_total(length);
        task.phase(Phase::Transferring);
        let flow = self.context.flow(task.meter(), format!("read of {} from {}", upload.label, self.remote.name));
        let chain = Arc::clone(&upload.chain);
        let reads = stream::iter(blocks)
            .map(move |index| {
                let (chain, flow) = (Arc::clone(&chain), flow.clone());
                async move {
                    // Asked for in order, granted in order: no block waits for one behind it.
                    let _permit = flow.budget.permit().await;
                    let block = chain.read_block(index).await.map_err(std::io::Error::other)?;
                    let block = block.ok_or_else(|| std::io::Error::other(format!("block {index} has vanished")))?;
                    Ok::<_, std::io::Error>((index, block))
                }
            })
            .buffered(READ_AHEAD);
        let pieces = writer.pieces(reads).map(|piece| piece.map_err(std::io::Error::other));
        let read_words = format!("read of {} from {}", upload.label, self.remote.name);
        let body = metered(pieces, Arc::clone(task.meter()), read_words, &self.pool.name);
        self.pool
            .client
            .import_raw_vdi(&upload.vdi, DiskFormat::Vhd, length, body, &upload.label)
            .await
            .map_err(self.pool.failed(format!("upload disk {}", upload.label)))
    }
}
