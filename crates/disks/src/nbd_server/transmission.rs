//! Requests and replies: many reads at once, replies as they are ready.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{NbdFaultSwitch, Wire};
use crate::BlockRead;

/// Longest read answered, bytes.
pub(super) const MAX_READ: u32 = 32 << 20;
/// Memory for replies of one connection, in KiB.
const REPLY_KIB: usize = 64 << 10;
/// Replies sent in another order are gathered in lots of this size.
const REORDER_LOT: usize = 4;
/// Content is slowed down in steps of this size.
const SLOW_STEP: usize = 64 << 10;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;

const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;

struct Reply {
    cookie: u64,
    result: Result<Vec<u8>, u32>,
    _room: Option<OwnedSemaphorePermit>,
}

/// Serves a disk until the client says good-bye or the line breaks.
pub(super) async fn run(wire: impl Wire + 'static, disk: Arc<dyn BlockRead>, faults: &NbdFaultSwitch) -> io::Result<()> {
    let (read, write) = tokio::io::split(wire);
    let (replies, ready) = mpsc::channel(64);
    let pending = Arc::new(AtomicUsize::new(0));
    // A good-bye lets the replies under way go out; an error of either side ends both.
    tokio::try_join!(
        receive(BufReader::new(read), disk, faults, replies, Arc::clone(&pending)),
        send(write, ready, faults, &pending)
    )?;
    Ok(())
}

async fn receive(
    mut wire: impl tokio::io::AsyncRead + Unpin,
    disk: Arc<dyn BlockRead>,
    faults: &NbdFaultSwitch,
    replies: mpsc::Sender<Reply>,
    pending: Arc<AtomicUsize>,
) -> io::Result<()> {
    let room = Arc::new(Semaphore::new(REPLY_KIB));
    loop {
        if wire.read_u32().await? != REQUEST_MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a request without its magic"));
        }
        let (_flags, kind) = (wire.read_u16().await?, wire.read_u16().await?);
        let (cookie, offset, length) = (wire.read_u64().await?, wire.read_u64().await?, wire.read_u32().await?);
        let mut refusal = match kind {
            READ => (length > MAX_READ || offset.saturating_add(length.into()) > disk.size()).then_some(EINVAL),
            WRITE => {
                tokio::io::copy(&mut (&mut wire).take(length.into()), &mut tokio::io::sink()).await?;
                Some(EPERM)
            }
            DISCONNECT => return Ok(()),
            FLUSH => Some(0),
            _ => Some(EINVAL),
        };
        let now = faults.get();
        let touched = now.error_range.as_ref().is_some_and(|bad| bad.start < offset + u64::from(length) && offset < bad.end);
        if refusal.is_none() && touched && faults.take(|faults| &mut faults.errors) {
            refusal = Some(EIO);
        }
        pending.fetch_add(1, Ordering::Relaxed);
        if let Some(error) = refusal {
            let result = if error == 0 { Ok(Vec::new()) } else { Err(error) };
            let _ = replies.send(Reply { cookie, result, _room: None }).await;
            continue;
        }
        let kib = length.div_ceil(1024);
        let Ok(permit) = Arc::clone(&room).acquire_many_owned(kib).await else { return Ok(()) };
        let (disk, replies) = (Arc::clone(&disk), replies.clone());
        tokio::spawn(async move {
            if !now.latency.is_zero() {
                tokio::time::sleep(now.latency).await;
            }
            let read = tokio::task::spawn_blocking(move || {
                let mut content = vec![0; length as usize];
                disk.read_at(offset, &mut content).map(|()| content)
            });
            let result = match read.await {
                Ok(Ok(content)) => Ok(content),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "NBD read failed");
                    Err(EIO)
                }
                Err(_) => Err(EIO),
            };
            let _ = replies.send(Reply { cookie, result, _room: Some(permit) }).await;
        });
    }
}

async fn send(
    mut wire: impl AsyncWrite + Unpin,
    mut ready: mpsc::Receiver<Reply>,
    faults: &NbdFaultSwitch,
    pending: &AtomicUsize,
) -> io::Result<()> {
    let mut sent = 0;
    while let Some(first) = ready.recv().await {
        let mut lot = vec![first];
        if faults.get().reorder {
            while lot.len() < REORDER_LOT && lot.len() < pending.load(Ordering::Relaxed) {
                let Some(next) = ready.recv().await else { break };
                lot.push(next);
            }
            lot.reverse();
        }
        for reply in lot {
            pending.fetch_sub(1, Ordering::Relaxed);
            send_one(&mut wire, reply, faults, &mut sent).await?;
        }
        wire.flush().await?;
    }
    wire.shutdown().await
}

/// Sends a reply; `sent` counts bytes of content on this connection.
async fn send_one(wire: &mut (impl AsyncWrite + Unpin), reply: Reply, faults: &NbdFaultSwitch, sent: &mut u64) -> io::Result<()> {
    let now = faults.get();
    let mut header = BytesMut::with_capacity(16);
    header.put_u32(REPLY_MAGIC);
    header.put_u32(reply.result.as_ref().err().copied().unwrap_or(0));
    header.put_u64(reply.cookie);
    wire.write_all(&header).await?;
    let Ok(content) = &reply.result else { return Ok(()) };
    let mut part = &content[..];
    let mut cut = false;
    let left = now.cut_after_bytes.map(|limit| limit.saturating_sub(*sent));
    if let Some(left) = left.filter(|left| *left < part.len() as u64)
        && faults.take(|faults| &mut faults.cuts)
    {
        (part, cut) = (&part[..left as usize], true);
    } else if now.short_reads > 0 && part.len() > 1 && faults.take(|faults| &mut faults.short_reads) {
        (part, cut) = (&part[..part.len() / 2], true);
    }
    match now.bytes_per_second {
        None => wire.write_all(part).await?,
        Some(rate) => {
            for step in part.chunks(SLOW_STEP) {
                tokio::time::sleep(Duration::from_secs_f64(step.len() as f64 / rate.max(1) as f64)).await;
                wire.write_all(step).await?;
                wire.flush().await?;
            }
        }
    }
    *sent += part.len() as u64;
    if cut {
        wire.flush().await?;
        return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "connection cut (simulated fault)"));
    }
    Ok(())
}
