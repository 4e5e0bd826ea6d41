//! From one source to its targets: every block read once, given to each, never copied.
//!
//! Each target has a lane: a short queue and a task that keeps a few writes going. A lane that fails is dropped and
//! the others go on; a lane that is slow fills its queue, then the memory, and so slows the read. Order is not kept:
//! blocks carry their index.

use std::sync::Arc;

use api::Wait;
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::task::JoinHandle;

use crate::error::Cause;
use crate::meter::Meter;
use crate::source::{Block, Flow, Source, SourceError};

/// Blocks that wait in front of a target. Few: memory is counted by the budget, and a long queue only delays a cancel.
const QUEUE: usize = 2;
/// Writes a target has in flight: enough to keep several blocking threads of file work busy.
const WRITES: usize = 4;

/// Where blocks go. What surrounds the writing (creating, finishing, giving up) belongs to whoever made the sink.
#[async_trait]
pub trait Sink: Send + Sync + 'static {
    /// Stores a block. Several may be in flight, in any order.
    async fn write(&self, index: u32, data: Bytes) -> Result<(), Cause>;
}

/// A target of a transfer.
pub struct Target {
    /// What a wait for it is called: `write to nas`.
    pub words: Arc<str>,
    /// Where its blocks go.
    pub sink: Arc<dyn Sink>,
}

/// Why a transfer stopped before its end.
#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    /// Somebody asked for it.
    #[error("cancelled")]
    Cancelled,
    /// The source failed.
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// Why one target was dropped.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// A write failed.
    #[error("a block could not be written")]
    Write(#[source] Cause),
    /// It took nothing for too long.
    #[error("{what}: nothing was accepted for {seconds} s")]
    Stalled {
        /// What it was waiting for.
        what: String,
        /// How long.
        seconds: u64,
    },
    /// A bug: the lane's task panicked.
    #[error("the writer of this target panicked")]
    Panicked,
}

/// Moves all blocks of `source` to each of `targets`, and returns how each target ended, in their order.
///
/// All-zero blocks of a full disk are not given to the targets; those of a delta are, because there an absent block
/// means the base's content. When no target is left the rest of the source is not read.
///
/// # Errors
/// When the source did not come to its end, or on cancel. No write is in flight any more when this returns, save those
/// that hang.
pub async fn pump(source: &mut dyn Source, targets: Vec<Target>, flow: &Flow) -> Result<Vec<Result<(), TargetError>>, PumpError> {
    let mut lanes: Vec<Lane> = targets.into_iter().map(|target| Lane::start(target, Arc::clone(&flow.meter))).collect();
    let moved = tokio::select! {
        biased;
        () = flow.cancel.cancelled() => Err(PumpError::Cancelled),
        moved = feed(source, &mut lanes, flow) => moved.map_err(PumpError::from),
    };
    let mut ends = Vec::with_capacity(lanes.len());
    for lane in lanes {
        ends.push(lane.finish(flow).await);
    }
    moved.map(|()| ends)
}

async fn feed(source: &mut dyn Source, lanes: &mut [Lane], flow: &Flow) -> Result<(), SourceError> {
    let drop_zeros = !source.is_delta();
    let limit_words: Arc<str> = "the configured speed limit".into();
    let (promised, mut came) = (source.block_count(), 0);
    while let Some(block) = source.next(flow).await? {
        came += 1;
        let bytes = block.data.len() as u64;
        flow.meter.add_read(bytes);
        if let Some(due) = flow.limiter.reserve(bytes) {
            let _waiting = flow.meter.wait(Wait::Limit, &limit_words);
            tokio::time::sleep_until(due).await;
        }
        if !(drop_zeros && vhd::is_zero(&block.data)) {
            let mut alive = false;
            for lane in lanes.iter_mut() {
                alive |= lane.give(&block, flow).await;
            }
            if !alive {
                return Ok(());
            }
        }
        flow.meter.add_done(bytes);
    }
    if came != promised {
        let source = format!("{came} blocks came, but it announced {promised}").into();
        return Err(SourceError::Failed { what: flow.source_words.to_string(), source });
    }
    Ok(())
}

/// A target at work.
struct Lane {
    words: Arc<str>,
    /// None once it has failed or all is given.
    queue: Option<mpsc::Sender<Block>>,
    task: JoinHandle<Result<(), TargetError>>,
    stalled: bool,
}

impl Lane {
    fn start(target: Target, meter: Arc<Meter>) -> Self {
        let (queue, blocks) = mpsc::channel(QUEUE);
        let task = tokio::spawn(write_blocks(target.sink, blocks, meter));
        Self { words: target.words, queue: Some(queue), task, stalled: false }
    }

    /// Hands a block over; whether the target is still alive.
    async fn give(&mut self, block: &Block, flow: &Flow) -> bool {
        let Some(queue) = &self.queue else { return false };
        let block = Block { index: block.index, data: block.data.clone(), permit: Arc::clone(&block.permit) };
        let given = match queue.try_send(block) {
            Ok(()) => true,
            Err(TrySendError::Closed(_)) => false,
            Err(TrySendError::Full(block)) => {
                let _waiting = flow.meter.wait(Wait::Target, &self.words);
                match tokio::time::timeout(flow.stall, queue.send(block)).await {
                    Ok(sent) => sent.is_ok(),
                    Err(_) => {
                        self.stalled = true;
                        false
                    }
                }
            }
        };
        if !given {
            self.queue = None;
        }
        given
    }

    /// Waits for the last writes, but not for ever.
    async fn finish(mut self, flow: &Flow) -> Result<(), TargetError> {
        self.queue = None;
        let stalled = || TargetError::Stalled { what: self.words.to_string(), seconds: flow.stall.as_secs() };
        if self.stalled {
            self.task.abort();
            return Err(stalled());
        }
        let _waiting = flow.meter.wait(Wait::Target, &self.words);
        // After a cancel nobody is interested in what hangs.
        let patience = if flow.cancel.is_cancelled() { flow.stall.min(CANCEL_PATIENCE) } else { flow.stall };
        match tokio::time::timeout(patience, &mut self.task).await {
            Ok(Ok(end)) => end,
            Ok(Err(_)) => Err(TargetError::Panicked),
            Err(_) => {
                self.task.abort();
                Err(stalled())
            }
        }
    }
}

/// How long a cancel waits for writes that are already on their way.
const CANCEL_PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);

async fn write_blocks(sink: Arc<dyn Sink>, mut blocks: mpsc::Receiver<Block>, meter: Arc<Meter>) -> Result<(), TargetError> {
    let mut writes = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(written) = writes.next() => written?,
            block = blocks.recv(), if writes.len() < WRITES => match block {
                Some(block) => writes.push(write_block(&*sink, block, &meter)),
                None => break,
            },
        }
    }
    while let Some(written) = writes.next().await {
        written?;
    }
    Ok(())
}

async fn write_block(sink: &dyn Sink, block: Block, meter: &Meter) -> Result<(), TargetError> {
    let bytes = block.data.len() as u64;
    sink.write(block.index, block.data).await.map_err(TargetError::Write)?;
    meter.add_written(bytes);
    // Only now may the memory be used again: the writer is done with it.
    drop(block.permit);
    Ok(())
}

#[cfg(test)]
mod tests;
