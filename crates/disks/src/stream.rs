//! Contents of a disk as a stream of bytes, made on a thread of its own and held back by whoever reads.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures::Stream;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use crate::layer::{BlockRead, View};
use crate::{DiskError, Image};

/// Bytes of a piece of a raw stream.
pub(crate) const PIECE: usize = 1 << 20;

/// Pieces in a row. Dropping it stops the thread that makes them.
#[derive(Debug)]
pub struct ByteStream {
    pieces: mpsc::Receiver<Result<Bytes, DiskError>>,
}

/// The other end, for the making thread.
pub(crate) struct Sink {
    pieces: mpsc::Sender<Result<Bytes, DiskError>>,
}

/// Nobody reads any more.
pub(crate) struct Gone;

impl ByteStream {
    /// Runs `make` on a blocking thread.
    pub(crate) fn produced_by(make: impl FnOnce(&Sink) -> Result<(), DiskError> + Send + 'static) -> Self {
        let (sender, pieces) = mpsc::channel(2);
        let sink = Sink { pieces: sender };
        drop(spawn_blocking(move || {
            if let Err(error) = make(&sink) {
                let _ = sink.pieces.blocking_send(Err(error));
            }
        }));
        Self { pieces }
    }

    /// The next piece; `None` at the end, which is also reached after an error.
    pub async fn next(&mut self) -> Option<Result<Bytes, DiskError>> {
        self.pieces.recv().await
    }
}

impl Sink {
    pub fn send(&self, piece: Bytes) -> Result<(), Gone> {
        self.pieces.blocking_send(Ok(piece)).map_err(|_| Gone)
    }
}

impl Stream for ByteStream {
    type Item = Result<Bytes, DiskError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.pieces.poll_recv(context)
    }
}

/// The whole content as it is, zeros included: as many bytes as the disk has.
pub fn export_raw(view: &View) -> ByteStream {
    let view = view.clone();
    ByteStream::produced_by(move |sink| {
        let mut at = 0;
        while at < view.size() {
            let mut piece = vec![0; (view.size() - at).min(PIECE as u64) as usize];
            view.read_at(at, &mut piece)?;
            at += piece.len() as u64;
            if sink.send(piece.into()).is_err() {
                break;
            }
        }
        Ok(())
    })
}

/// Fills a disk from a raw stream of `length` bytes; what lies behind them stays. Zeros become holes.
///
/// # Errors
/// [`DiskError::OutOfRange`] when it is longer than the disk, [`DiskError::Import`] when it breaks or ends early.
pub async fn import_raw(image: &Arc<Image>, mut source: impl AsyncRead + Unpin, length: u64) -> Result<(), DiskError> {
    if length > image.size() {
        return Err(DiskError::OutOfRange { offset: 0, length, size: image.size() });
    }
    let mut at = 0;
    while at < length {
        let mut piece = BytesMut::zeroed((length - at).min(PIECE as u64) as usize);
        source.read_exact(&mut piece).await.map_err(|source| DiskError::Import { received: at, source })?;
        let count = piece.len() as u64;
        store(image, at, piece.freeze()).await?;
        at += count;
    }
    Ok(())
}

/// Writes a piece off the asynchronous threads.
pub(crate) async fn store(image: &Arc<Image>, at: u64, piece: Bytes) -> Result<(), DiskError> {
    let image = Arc::clone(image);
    let write = move || {
        if vhd::is_zero(&piece) { image.trim(at, piece.len() as u64) } else { image.write_at(at, &piece) }
    };
    unwrap_join(spawn_blocking(write).await)
}

/// The result of a blocking thread; its panic goes on here.
pub(crate) fn unwrap_join<T>(joined: Result<T, tokio::task::JoinError>) -> T {
    match joined {
        Ok(value) => value,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => unreachable!("blocking threads are not cancelled here"),
    }
}
