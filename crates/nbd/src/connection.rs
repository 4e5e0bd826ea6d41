//! One connection in transmission: requests out, replies in, matched by their cookies.
//!
//! A task owns the socket. Readers hand it requests over a channel and wait for their reply, so that dropping a
//! reader in the middle never leaves half a request on the wire or a reply without an owner.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::NbdError;
use crate::handshake::Stream;
use crate::wire::{COMMAND_DISCONNECT, COMMAND_READ, REPLY_SIZE, REQUEST_SIZE, Reply, request};

/// Time given to say goodbye.
const FAREWELL: Duration = Duration::from_secs(5);
/// Requests that leave in one write.
const BATCH: usize = 32;

/// A connection that is being read from.
#[derive(Debug)]
pub(crate) struct Connection {
    requests: mpsc::Sender<Request>,
    permits: Arc<Semaphore>,
    shared: Arc<Shared>,
    closing: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Request {
    offset: u64,
    length: usize,
    reply: oneshot::Sender<Result<Bytes, NbdError>>,
    /// Held until the reply is there, even when nobody waits for it any more: it bounds what is in flight.
    _permit: OwnedSemaphorePermit,
}

/// What requests and replies have in common.
#[derive(Debug)]
struct Shared {
    address: String,
    stall: Duration,
    pending: Mutex<HashMap<u64, (Request, Instant)>>,
    failure: OnceLock<Arc<NbdError>>,
    delivered: AtomicU64,
}

impl Connection {
    /// Takes over an open connection: at most `in_flight` requests at once, `stall` without a byte that is waited for.
    pub fn start(address: String, stream: Stream, in_flight: usize, stall: Duration) -> Self {
        let (requests, receiver) = mpsc::channel(in_flight);
        let (pending, failure, delivered) = Default::default();
        let shared = Arc::new(Shared { address, stall, pending, failure, delivered });
        let closing = CancellationToken::new();
        let task = tokio::spawn(transmit(stream, receiver, Arc::clone(&shared), closing.clone()));
        Self { requests, permits: Arc::new(Semaphore::new(in_flight)), shared, closing, task: Mutex::new(Some(task)) }
    }

    /// Reads; the caller has checked the range.
    pub async fn read(&self, offset: u64, length: usize) -> Result<Bytes, NbdError> {
        // The semaphore is never closed, so this only fails together with everything else.
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| NbdError::Closed)?;
        let (reply, answer) = oneshot::channel();
        if self.requests.send(Request { offset, length, reply, _permit: permit }).await.is_err() {
            return Err(self.shared.lost());
        }
        answer.await.unwrap_or_else(|_| Err(self.shared.lost()))
    }

    /// Whether it can still be read from.
    pub fn is_alive(&self) -> bool {
        self.shared.failure.get().is_none()
    }

    /// Whether any read over it has succeeded.
    pub fn has_delivered(&self) -> bool {
        self.shared.delivered.load(Ordering::Relaxed) > 0
    }

    /// Says goodbye and waits until that is out. Reads still waiting fail with [`NbdError::Closed`].
    pub async fn close(&self) {
        self.closing.cancel();
        let task = locked(&self.task).take();
        if let Some(task) = task {
            // Its only result is that it is over.
            let _ = task.await;
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

/// The life of a connection.
async fn transmit(stream: Stream, mut requests: mpsc::Receiver<Request>, shared: Arc<Shared>, closing: CancellationToken) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let reason = tokio::select! {
        () = closing.cancelled() => {
            // A server that does not even take this much is left to its own timeouts.
            let _ = timeout(FAREWELL, farewell(&mut writer)).await;
            NbdError::Closed
        }
        reason = receive(&mut reader, &shared) => reason,
        source = send(&mut writer, &mut requests, &shared) => NbdError::Io { address: shared.address.clone(), source },
    };
    tracing::debug!(address = %shared.address, %reason, "NBD connection ended");
    shared.fail(reason);
}

async fn farewell(writer: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    writer.write_all(&request(COMMAND_DISCONNECT, 0, 0, 0)).await?;
    writer.flush().await?;
    writer.shutdown().await
}

/// Sends requests until that fails.
async fn send(writer: &mut (impl AsyncWrite + Unpin), requests: &mut mpsc::Receiver<Request>, shared: &Shared) -> io::Error {
    let mut batch = Vec::with_capacity(BATCH);
    let mut bytes = Vec::with_capacity(BATCH * REQUEST_SIZE);
    for cookie in (1_u64..).step_by(BATCH) {
        if requests.recv_many(&mut batch, BATCH).await == 0 {
            // The handle is gone and with it everyone who could ask; the farewell is on its way.
            return std::future::pending().await;
        }
        bytes.clear();
        let now = Instant::now();
        {
            let mut pending = shared.pending();
            for (cookie, wanted) in (cookie..).zip(batch.drain(..)) {
                bytes.extend(request(COMMAND_READ, cookie, wanted.offset, wanted.length as u32));
                pending.insert(cookie, (wanted, now));
            }
        }
        let sent = async {
            writer.write_all(&bytes).await?;
            writer.flush().await
        };
        if let Err(error) = sent.await {
            return error;
        }
    }
    io::Error::other("out of cookies")
}

/// Receives replies until that fails.
async fn receive(reader: &mut (impl AsyncRead + Unpin), shared: &Shared) -> NbdError {
    loop {
        if let Err(error) = receive_one(reader, shared).await {
            return error;
        }
    }
}

async fn receive_one(reader: &mut (impl AsyncRead + Unpin), shared: &Shared) -> Result<(), NbdError> {
    let protocol = |reason| NbdError::Protocol { address: shared.address.clone(), reason };
    let mut head = [0; REPLY_SIZE];
    let mut filled = 0;
    while filled < REPLY_SIZE {
        filled += shared.progress(reader.read(&mut head[filled..])).await?;
    }
    let reply = Reply::parse(&head).ok_or_else(|| protocol("a reply does not begin as one"))?;
    // The request stays among the pending until its reply is complete, so that it fails with them if this does.
    let asked = shared.pending().get(&reply.cookie).map(|(request, _)| (request.offset, request.length));
    let (offset, length) = asked.ok_or_else(|| protocol("a reply to a request that was not made"))?;
    let result = if reply.error == 0 {
        Ok(receive_data(reader, shared, length).await?)
    } else {
        Err(NbdError::Read { address: shared.address.clone(), code: reply.error, offset, length })
    };
    shared.delivered.fetch_add(u64::from(result.is_ok()), Ordering::Relaxed);
    if let Some((request, _)) = shared.pending().remove(&reply.cookie) {
        // Whoever asked may have stopped waiting.
        let _ = request.reply.send(result);
    }
    Ok(())
}

/// Receives data into the buffer that is handed out. Its length is that of our own request: no server decides how much
/// is allocated.
async fn receive_data(reader: &mut (impl AsyncRead + Unpin), shared: &Shared, length: usize) -> Result<Bytes, NbdError> {
    let mut data = BytesMut::with_capacity(length);
    while data.len() < length {
        let missing = length - data.len();
        shared.progress(reader.read_buf(&mut (&mut data).limit(missing))).await?;
    }
    Ok(data.freeze())
}

impl Shared {
    /// Waits for some bytes; for ever while nothing is asked for, for the stall limit otherwise.
    async fn progress(&self, read: impl Future<Output = io::Result<usize>>) -> Result<usize, NbdError> {
        let began = Instant::now();
        tokio::pin!(read);
        loop {
            let asked = self.oldest();
            let deadline = asked.map_or_else(Instant::now, |asked| asked.max(began)) + self.stall;
            match timeout_at(deadline, &mut read).await {
                Ok(Ok(0)) => {
                    let missing = self.pending().len();
                    return Err(NbdError::Disconnected { address: self.address.clone(), missing });
                }
                Ok(Ok(count)) => return Ok(count),
                Ok(Err(source)) => return Err(NbdError::Io { address: self.address.clone(), source }),
                Err(_) if asked.is_some() => return Err(NbdError::Stalled { address: self.address.clone(), limit: self.stall }),
                Err(_) => {}
            }
        }
    }

    /// When the request that waits longest was sent.
    fn oldest(&self) -> Option<Instant> {
        self.pending().values().map(|(_, sent)| *sent).min()
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<u64, (Request, Instant)>> {
        locked(&self.pending)
    }

    /// The end, for everyone who waits.
    fn fail(&self, reason: NbdError) {
        let reason = self.failure.get_or_init(|| Arc::new(reason));
        for (_, (request, _)) in self.pending().drain() {
            let _ = request.reply.send(Err(NbdError::Lost(Arc::clone(reason))));
        }
    }

    fn lost(&self) -> NbdError {
        self.failure.get().map_or(NbdError::Closed, |reason| NbdError::Lost(Arc::clone(reason)))
    }
}

/// No lock here is held across anything that panics, and a poisoned one would still guard sound data.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
