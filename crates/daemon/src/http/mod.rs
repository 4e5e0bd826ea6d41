//! The one door: HTTPS, with bounds on everything a stranger can make us hold.

mod metrics;
mod ndjson;
mod service;
mod upload;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::daemon::Daemon;

pub use ndjson::KEEP_ALIVE;

/// For a TLS handshake, and for the head of a request (idle connections included).
const PATIENCE: Duration = Duration::from_secs(30);
/// For open answers when the daemon stops.
const FAREWELL: Duration = Duration::from_secs(3);

/// Accepts connections until told to stop; returns when the last has gone.
///
/// Then connections that wait for nothing are closed at once; those to which something is owed get their time, and are cut
/// off after it.
pub async fn serve(listener: TcpListener, daemon: Arc<Daemon>, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(daemon.config.limits.connections));
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    loop {
        // Taken before accepting: what has no room waits in the kernel's queue, not in our memory.
        let place = tokio::select! {
            place = Arc::clone(&room).acquire_owned() => place,
            () = stop.cancelled() => break,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                // The certificate of now: it may have been renewed since the last connection.
                let acceptor = TlsAcceptor::from(daemon.certificates.server());
                let (daemon, stop, cut) = (Arc::clone(&daemon), stop.clone(), cut.clone());
                connections.spawn(async move {
                    tokio::select! {
                        ended = converse(stream, acceptor, daemon, stop) => if let Err(error) = ended {
                            tracing::debug!(%peer, error = &*error, "connection ended");
                        },
                        () = cut.cancelled() => tracing::debug!(%peer, "connection cut off"),
                    }
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors, mostly: going on at once would only spin.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(FAREWELL, connections.wait()).await.is_err() {
        cut.cancel();
        connections.wait().await;
    }
}

type Error = Box<dyn std::error::Error + Send + Sync>;

async fn converse(stream: TcpStream, acceptor: TlsAcceptor, daemon: Arc<Daemon>, stop: CancellationToken) -> Result<(), Error> {
    // Events are small and wanted now.
    stream.set_nodelay(true)?;
    let stream = tokio::select! {
        accepted = tokio::time::timeout(PATIENCE, acceptor.accept(stream)) => accepted??,
        () = stop.cancelled() => return Ok(()),
    };
    let asked = AtomicBool::new(false);
    let service = hyper::service::service_fn(|request| {
        asked.store(true, Ordering::Relaxed);
        let daemon = Arc::clone(&daemon);
        async move { Ok::<_, std::convert::Infallible>(service::answer(daemon, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(64 << 10)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return Ok(ended?),
        () = stop.cancelled() => {}
    }
    // Hyper closes a connection at once that waits for its next request; for the first one it would wait on.
    if !asked.load(Ordering::Relaxed) {
        return Ok(());
    }
    connection.as_mut().graceful_shutdown();
    Ok(connection.await?)
}
