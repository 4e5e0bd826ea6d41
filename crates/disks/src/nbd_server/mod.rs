//! An NBD server as a pool has it: fixed newstyle, STARTTLS, read-only, at most 16 connections, faults on request
//! (xapi-streams.md §3.2, §5.7; the protocol itself is NetworkBlockDevice's `proto.md`).

mod fault;
mod handshake;
mod transmission;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use fault::{NbdFaultSwitch, NbdFaults};

use crate::BlockRead;

/// Whether connections are encrypted.
#[derive(Clone)]
pub enum NbdTls {
    /// They must be; the certificate shown is this one.
    Required(Arc<rustls::ServerConfig>),
    /// They are not; STARTTLS is refused.
    Off,
}

/// Says what an export name stands for. The name is a credential: it is never logged.
pub trait Resolve: Send + Sync {
    /// The disk, or nothing for an unknown name or an invalid session. It is dropped when the connection ends.
    fn resolve(&self, export: &str) -> Option<Arc<dyn BlockRead>>;
}

impl<F: Fn(&str) -> Option<Arc<dyn BlockRead>> + Send + Sync> Resolve for F {
    fn resolve(&self, export: &str) -> Option<Arc<dyn BlockRead>> {
        self(export)
    }
}

/// A server that runs until it is dropped or closed.
pub struct NbdServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

struct Shared {
    resolve: Arc<dyn Resolve>,
    tls: NbdTls,
    faults: NbdFaultSwitch,
    open: AtomicUsize,
    /// Replaced each time all connections are thrown out.
    connections: std::sync::Mutex<CancellationToken>,
}

/// Connections at the same time; more are closed at once (xapi-streams.md §3.1).
pub const MAX_CONNECTIONS: usize = 16;

/// What a connection runs over.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

impl NbdServer {
    /// Starts to listen; port 0 takes a free one.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn bind(address: SocketAddr, tls: NbdTls, resolve: Arc<dyn Resolve>) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            resolve,
            tls,
            faults: NbdFaultSwitch::default(),
            open: AtomicUsize::new(0),
            connections: std::sync::Mutex::new(stop.child_token()),
        });
        let tasks = TaskTracker::new();
        tasks.spawn(accept(listener, Arc::clone(&shared), stop.clone(), tasks.clone()));
        Ok(Self { address, shared, stop, tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The faults, to be switched at any time.
    pub fn faults(&self) -> &NbdFaultSwitch {
        &self.shared.faults
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        self.shared.open.load(Ordering::Relaxed)
    }

    /// Throws out all connections, as a crash of the server would, and goes on listening.
    pub fn disconnect_all(&self) {
        let fresh = self.stop.child_token();
        let old = match self.shared.connections.lock() {
            Ok(mut current) => std::mem::replace(&mut *current, fresh),
            Err(poisoned) => std::mem::replace(&mut *poisoned.into_inner(), fresh),
        };
        old.cancel();
    }

    /// Stops listening, throws out all connections, and waits until they are gone.
    pub async fn close(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken, tasks: TaskTracker) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((socket, _)) = accepted else {
            // Out of descriptors, most likely: let some be closed before trying again.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        if shared.faults.get().refuse_connections || shared.open.load(Ordering::Relaxed) >= MAX_CONNECTIONS {
            continue;
        }
        shared.open.fetch_add(1, Ordering::Relaxed);
        let thrown_out = match shared.connections.lock() {
            Ok(token) => token.clone(),
            Err(poisoned) => poisoned.into_inner().clone(),
        };
        let shared = Arc::clone(&shared);
        tasks.spawn(async move {
            let served = tokio::select! {
                () = thrown_out.cancelled() => Ok(()),
                served = serve(socket, &shared) => served,
            };
            if let Err(error) = served {
                tracing::debug!(%error, "NBD connection ended");
            }
            shared.open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// One connection from greeting to end.
async fn serve(mut socket: TcpStream, shared: &Shared) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let flags = handshake::greet(&mut socket).await?;
    match handshake::options(&mut socket, shared, flags, false).await? {
        handshake::Next::End => Ok(()),
        handshake::Next::Serve(disk) => transmission::run(socket, disk, &shared.faults).await,
        handshake::Next::StartTls(config) => {
            let mut stream = TlsAcceptor::from(config).accept(socket).await?;
            match handshake::options(&mut stream, shared, flags, true).await? {
                handshake::Next::Serve(disk) => transmission::run(stream, disk, &shared.faults).await,
                _ => Ok(()),
            }
        }
    }
}
