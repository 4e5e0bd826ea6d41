//! A disk as the pool exports it: `export_raw_vdi` in VHD form (xapi-streams.md §2.5).

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;
use vhd::stream::{ReadError, Reader};
use xapi::{Client, DiskFormat, Ref};

use super::{Block, Flow, Source, SourceError};
use crate::error::Cause;

/// What the head of an export tells.
#[derive(Debug, Clone)]
pub struct Head {
    /// Size of the disk, bytes.
    pub virtual_size: u64,
    /// Whether it is a delta. Look here and not at what was asked for (xapi-streams.md §6 T11).
    pub is_delta: bool,
    /// Indexes of the blocks it has, in increasing order.
    pub blocks: Vec<u32>,
}

/// A disk read from an export stream, to its end and to the end of its task.
pub struct StreamSource {
    head: Head,
    blocks: mpsc::Receiver<Result<Option<Block>, SourceError>>,
    what: String,
    start: Option<oneshot::Sender<Flow>>,
    /// Reads ahead by one block; the connection closes and the task of the pool is cancelled when this is dropped.
    reader: AbortOnDropHandle<()>,
}

/// Opens an export of `vdi` and reads its head; with `base`, of what differs from it.
///
/// # Errors
/// When the pool refuses, or what comes is no VHD.
pub async fn open(client: &Client, vdi: &Ref, base: Option<&Ref>, label: &str) -> Result<StreamSource, SourceError> {
    let what = match base {
        Some(_) => format!("differential export of {label}"),
        None => format!("export of {label}"),
    };
    let export = client
        .export_raw_vdi(vdi, base, DiskFormat::Vhd, label)
        .await
        .map_err(|error| SourceError::Failed { what: what.clone(), source: Box::new(error) })?;
    let (head_sender, head) = oneshot::channel();
    let (start, started) = oneshot::channel();
    let (sender, blocks) = mpsc::channel(1);
    let reader = AbortOnDropHandle::new(tokio::spawn(read(export, what.clone(), head_sender, started, sender)));
    let head = head.await.map_err(|_| SourceError::Failed { what: what.clone(), source: "its reader panicked".into() })??;
    Ok(StreamSource { head, blocks, what, start: Some(start), reader })
}

/// Reads the head of an export of `vdi` for its list of blocks, and gives up the rest.
///
/// # Errors
/// As [`open`].
pub async fn head(client: &Client, vdi: &Ref, base: Option<&Ref>, label: &str) -> Result<Head, SourceError> {
    let source = open(client, vdi, base, label).await?;
    let (head, reader) = (source.head, source.reader);
    // The export has the disk plugged in the control domain: let it go before somebody else reads the disk.
    reader.abort();
    let _ = reader.await;
    Ok(head)
}

/// Blocks, then none: a channel that closes without it is a reader that died.
type Blocks = mpsc::Sender<Result<Option<Block>, SourceError>>;

async fn read(
    mut export: xapi::Export,
    what: String,
    head: oneshot::Sender<Result<Head, SourceError>>,
    start: oneshot::Receiver<Flow>,
    blocks: Blocks,
) {
    let opened = Reader::open(export.reader()).await;
    let mut reader = match opened {
        Ok(reader) => reader,
        Err(error) => {
            let source = explain(export, error).await;
            let _ = head.send(Err(SourceError::Failed { what, source }));
            return;
        }
    };
    let facts = Head {
        virtual_size: reader.virtual_size(),
        is_delta: reader.is_differencing(),
        blocks: reader.table().iter().map(|(index, _)| index).collect(),
    };
    if head.send(Ok(facts)).is_err() {
        return;
    }
    let Ok(flow) = start.await else { return };
    let broken = loop {
        let permit = flow.permit().await;
        match flow.from_source(reader.next_block()).await {
            Ok(Ok(Some((index, data)))) => {
                if blocks.send(Ok(Some(Block::new(index, data, permit)))).await.is_err() {
                    return;
                }
            }
            Ok(Ok(None)) => break None,
            Ok(Err(error)) => break Some(error),
            Err(stalled) => {
                let _ = blocks.send(Err(stalled)).await;
                return;
            }
        }
    };
    drop(reader);
    // A complete disk is not yet a success, and a broken one may have a better reason: both stand in the task.
    let end = match broken {
        Some(error) => Err(explain(export, error).await),
        None => match flow.from_source(export.finish()).await {
            Ok(finished) => finished.map_err(Into::into),
            Err(stalled) => Err(stalled.into()),
        },
    };
    let _ = blocks.send(end.map(|()| None).map_err(|source| SourceError::Failed { what, source })).await;
}

/// The pool's reason behind a stream that is no complete disk, where it has one.
async fn explain(export: xapi::Export, error: ReadError) -> Cause {
    match error {
        ReadError::Io { position, source } => match export.explain_io(source).await {
            Ok(error) => error.into(),
            Err(source) => ReadError::Io { position, source }.into(),
        },
        // An end that comes too early is what a failed task looks like from here (xapi-streams.md §2.1).
        ReadError::Truncated { .. } => match export.finish().await {
            Err(error) => error.into(),
            Ok(()) => error.into(),
        },
        ReadError::Format { .. } => error.into(),
    }
}

#[async_trait]
impl Source for StreamSource {
    fn virtual_size(&self) -> u64 {
        self.head.virtual_size
    }

    fn block_count(&self) -> u64 {
        self.head.blocks.len() as u64
    }

    fn is_delta(&self) -> bool {
        self.head.is_delta
    }

    fn path(&self) -> &'static str {
        "stream"
    }

    async fn next(&mut self, flow: &Flow) -> Result<Option<Block>, SourceError> {
        if let Some(start) = self.start.take() {
            let _ = start.send(flow.clone());
        }
        // The reader names its own waits; it tells the end when all is read and the task has succeeded.
        let died = || SourceError::Failed { what: self.what.clone(), source: "its reader ended in the middle".into() };
        self.blocks.recv().await.unwrap_or_else(|| Err(died()))
    }

    async fn close(&mut self) {
        self.blocks.close();
        self.reader.abort();
    }
}
