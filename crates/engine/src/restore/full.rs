//! A full backup: the pool imports the archive as it is (backup-repository.md §6.1).

use std::sync::Arc;

use api::{Phase, TaskKind, TaskResult, Wait};
use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt};
use storage::DiskFile;
use tokio::sync::mpsc;
use xapi::{Destroy, Ref, Vm};

use super::{Restore, new_vm};
use crate::error::Error;
use crate::journal::Task;
use crate::meter::Meter;

/// An archive is read in pieces of this size, bytes.
const PIECE: u64 = 1 << 20;

impl Restore<'_> {
    /// Uploads the archive and gives the new VM its name.
    pub(super) async fn full(&self, task: &Task) -> Result<String, Error> {
        let part = task.part(TaskKind::Xva, format!("archive of {}", self.stored.vm_name()), Some(self.point.to_string()));
        let intent = self.context.recorder.intend(self.intent(None)).await?;
        let uploaded = self.upload(&part).await;
        let vm = match uploaded {
            Ok(vm) => {
                let bytes = part.meter().totals().0;
                part.succeed(TaskResult { path: Some("xva".into()), bytes: Some(bytes), ..TaskResult::default() });
                vm
            }
            Err(error) => {
                part.fail(&error);
                // The pool removes what it could not import to its end.
                self.context.recorder.settle(intent);
                return Err(error);
            }
        };
        task.phase(Phase::Committing);
        let finished = self.finish_import(&vm, intent).await;
        if finished.is_err() {
            let how = Destroy { disks: true, bypass_blocked: true };
            match self.pool.client.destroy_vm(&vm, how).await {
                Ok(()) => self.context.recorder.settle(intent),
                Err(error) => {
                    task.warn(self.pool.failed(format!("destroy the half-restored VM {}", self.name))(error).sentence());
                }
            }
        }
        finished
    }

    async fn upload(&self, task: &Task) -> Result<Ref, Error> {
        task.phase(Phase::Preparing);
        let doing = format!("open the archive of {}", self.point);
        let opened = self.remote.repository.open_xva(self.point, self.stored).await;
        let (archive, length) = opened.map_err(self.remote.failed(doing))?;
        task.meter().add_total(length);
        task.phase(Phase::Transferring);
        let body = metered(
            pieces(archive, length),
            Arc::clone(task.meter()),
            format!("read from {}", self.remote.name),
            &self.pool.name,
        );
        let import = self.pool.client.import_vm(&self.sr, length, body, self.stored.vm_name());
        let imported = self.context.unless_cancelled(import).await?;
        imported.map_err(self.pool.failed(format!("import {}", self.stored.vm_name())))
    }

    async fn finish_import(&self, vm: &Ref, intent: u32) -> Result<String, Error> {
        let uuid = self.pool.get::<Vm>(vm).await?.uuid.clone();
        self.context.recorder.refine(intent, self.intent(Some(uuid.clone()))).await?;
        self.context.check()?;
        let finish = async {
            new_vm::clear_keys(self.pool, vm).await?;
            new_vm::publish(self.pool, vm, &self.name, &self.description).await
        };
        finish.await.map_err(self.pool.failed(format!("finish VM {}", self.name)))?;
        self.context.recorder.settle(intent);
        Ok(uuid)
    }
}

/// A file from beginning to end.
fn pieces(file: Arc<dyn DiskFile>, length: u64) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    stream::try_unfold((file, 0), move |(file, offset)| async move {
        let size = (length - offset).min(PIECE);
        if size == 0 {
            return Ok(None);
        }
        let piece = file.read_at(offset, size as usize).await.map_err(std::io::Error::other)?;
        Ok(Some((piece, (file, offset + size))))
    })
}

/// The bytes of a repository on their way to a pool, with both waits named: for the read, and for the pool to take them.
pub(crate) fn metered<S>(
    stream: S,
    meter: Arc<Meter>,
    read_words: String,
    pool: &str,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static + use<S>
where
    S: Stream<Item = std::io::Result<Bytes>> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(2);
    let (read_words, write_words): (Arc<str>, Arc<str>) = (read_words.into(), format!("upload to {pool}").into());
    tokio::spawn(async move {
        let mut stream = std::pin::pin!(stream);
        loop {
            let next = {
                let _waiting = meter.wait(Wait::Source, &read_words);
                stream.next().await
            };
            let Some(next) = next else { return };
            let bytes = next.as_ref().map_or(0, Bytes::len) as u64;
            meter.add_read(bytes);
            let _waiting = meter.wait(Wait::Target, &write_words);
            if sender.send(next).await.is_err() {
                return;
            }
            meter.add_done(bytes);
            meter.add_written(bytes);
        }
    });
    stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)))
}
