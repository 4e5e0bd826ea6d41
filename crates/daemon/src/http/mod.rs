//! The one door: HTTPS, with bounds on everything a stranger can make us hold.

mod metrics;
mod ndjson;
mod service;
mod upload;

use std::sync::Arc;
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

/// Accepts connections until told to stop; returns when the last has gone, or was given up.
pub async fn serve(listener: TcpListener, daemon: Arc<Daemon>, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(daemon.config.limits.connections));
    let connections = TaskTracker::new();
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
                let (daemon, stop) = (Arc::clone(&daemon), stop.clone());
                connections.spawn(async move {
                    if let Err(error) = converse(stream, acceptor, daemon, stop).await {
                        tracing::debug!(%peer, error = &*error, "connection ended");
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
    let _ = tokio::time::timeout(FAREWELL, connections.wait()).await;
}

type Error = Box<dyn std::error::Error + Send + Sync>;

async fn converse(stream: TcpStream, acceptor: TlsAcceptor, daemon: Arc<Daemon>, stop: CancellationToken) -> Result<(), Error> {
    // Events are small and wanted now.
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await??;
    let service = hyper::service::service_fn(move |request| {
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
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    Ok(connection.await?)
}
