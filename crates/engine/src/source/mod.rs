//! Where the blocks of a disk come from.

pub mod nbd;
pub mod stream;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use api::Wait;
use async_trait::async_trait;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::budget::{Budget, Permit};
use crate::error::Cause;
use crate::limit::Limiter;
use crate::meter::Meter;

pub use nbd::NbdSource;
pub use stream::StreamSource;

/// A block on its way, with the right to be in memory.
pub struct Block {
    /// Position on the disk, in blocks of 2 MiB.
    pub index: u32,
    /// 2 MiB, whatever the size of the disk: the last one is filled up with zeros.
    pub data: Bytes,
    /// Shared by all the targets it goes to.
    pub permit: Arc<Permit>,
}

impl Block {
    /// A block just read.
    pub fn new(index: u32, data: Bytes, mut permit: Permit) -> Self {
        permit.mark_read();
        Self { index, data, permit: Arc::new(permit) }
    }
}

/// Why a source has no next block.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It failed.
    #[error("{what}")]
    Failed {
        /// What was tried, on what.
        what: String,
        /// Why it failed.
        #[source]
        source: Cause,
    },
    /// It gave nothing for too long.
    #[error("nothing came for {seconds} s: {what}")]
    Stalled {
        /// What it was waiting for.
        what: String,
        /// How long.
        seconds: u64,
    },
}

/// A disk that is read from beginning to end, in the order that suits it.
#[async_trait]
pub trait Source: Send {
    /// Size of the disk, bytes.
    fn virtual_size(&self) -> u64;

    /// How many blocks it will give.
    fn block_count(&self) -> u64;

    /// Whether the blocks are only those that differ from the base: what is not given is the base's, not zero.
    fn is_delta(&self) -> bool;

    /// `nbd+cbt`, `nbd` or `stream`.
    fn path(&self) -> &'static str;

    /// The next block; none once all have come *and* the source has proven that it was complete. Opens its own waits on the
    /// meter of `flow`, and takes the permit of each block from it before reading.
    ///
    /// # Errors
    /// When the disk cannot be read to its end. Nothing is to be expected of the source then.
    async fn next(&mut self, flow: &Flow) -> Result<Option<Block>, SourceError>;

    /// Gives back what it holds on the pool, at the end or in the middle.
    async fn close(&mut self);
}

/// What a transfer needs beside its source and its targets.
#[derive(Clone)]
pub struct Flow {
    /// Memory, shared by the run.
    pub budget: Arc<Budget>,
    /// Speed limit, shared by the run.
    pub limiter: Arc<Limiter>,
    /// The disk's meter.
    pub meter: Arc<Meter>,
    /// Stops the transfer at the next block.
    pub cancel: CancellationToken,
    /// This long without a block, and a source or target is given up.
    pub stall: Duration,
    /// What the source waits for, in words: `NBD read of xvda`.
    pub source_words: Arc<str>,
    /// What a full memory waits for, in words.
    pub memory_words: Arc<str>,
}

impl Flow {
    /// A permit for the next block. The time until it is there counts for whoever holds the memory.
    pub async fn permit(&self) -> Permit {
        if let Some(permit) = self.budget.try_permit() {
            return permit;
        }
        let (wait, words) = match self.budget.waits_for_targets() {
            true => (Wait::Target, &self.memory_words),
            false => (Wait::Source, &self.source_words),
        };
        let _waiting = self.meter.wait(wait, words);
        self.budget.permit().await
    }

    /// Waits for the source, by name and not for ever.
    ///
    /// # Errors
    /// [`SourceError::Stalled`].
    pub async fn from_source<T>(&self, read: impl Future<Output = T>) -> Result<T, SourceError> {
        let _waiting = self.meter.wait(Wait::Source, &self.source_words);
        tokio::time::timeout(self.stall, read)
            .await
            .map_err(|_| SourceError::Stalled { what: self.source_words.to_string(), seconds: self.stall.as_secs() })
    }
}
