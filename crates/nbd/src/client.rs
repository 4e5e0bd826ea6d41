//! A disk read over one or several connections that are kept up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::connection::Connection;
use crate::{Endpoint, NbdError, handshake};

/// The longest pause between two attempts.
const MAX_DELAY: Duration = Duration::from_secs(30);
/// A read that sees its connection break over and over, while others over the same connections succeed, is given up after
/// this many times the attempts allowed.
const PATIENCE: u32 = 10;

/// How to connect and how long to wait.
#[derive(Debug, Clone)]
pub struct Options {
    /// Connections wanted. Fewer are used when a server gives no more; one is enough.
    pub connections: usize,
    /// Requests in flight on one connection.
    pub in_flight: usize,
    /// The longest read, bytes.
    pub max_read: usize,
    /// Time for one connection to be ready: TCP, TLS, handshake.
    pub connect_timeout: Duration,
    /// Time without a single byte while a reply is awaited, after which a connection is given up.
    pub stall_timeout: Duration,
    /// How often a read is tried, and a lost connection is made again, before it fails.
    pub attempts: u32,
    /// Pause before the second attempt; it doubles each time, up to 30 seconds.
    pub retry_delay: Duration,
}

impl Default for Options {
    /// One connection with 16 requests, 60 s timeouts, five attempts 1 s apart and more.
    fn default() -> Self {
        Self {
            connections: 1,
            in_flight: 16,
            max_read: 32 << 20,
            connect_timeout: Duration::from_secs(60),
            stall_timeout: Duration::from_secs(60),
            attempts: 5,
            retry_delay: Duration::from_secs(1),
        }
    }
}

/// A disk that can be read. Clones share its connections; when the last one goes, they are ended.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    endpoints: Vec<Endpoint>,
    options: Options,
    size: u64,
    lanes: Vec<Lane>,
    /// Held while a connection is being opened: two at once were seen to race on the server (xapi-streams.md §6 T17).
    opening: Mutex<()>,
    turn: AtomicUsize,
    reconnections: AtomicU64,
    /// Ends every read at once, be it in the middle of a reconnection.
    closed: CancellationToken,
}

/// The place of one connection and of those that replace it.
#[derive(Debug)]
struct Lane {
    slot: Mutex<Slot>,
}

#[derive(Debug, Clone)]
enum Slot {
    Open(Arc<Connection>),
    /// Given up; the others go on.
    Dead(Arc<NbdError>),
}

impl Client {
    /// Connects: the first connection to the first endpoint that can be used, the others to the following ones in turn.
    ///
    /// # Errors
    /// [`NbdError::NoEndpoint`] without endpoints, [`NbdError::Unreachable`] when none can be used.
    pub async fn connect(endpoints: Vec<Endpoint>, options: Options) -> Result<Self, NbdError> {
        let (first, size) = open_any(&endpoints, 0, &options, None).await?;
        let mut lanes = vec![Lane::new(first)];
        for start in 1..options.connections {
            match open_any(&endpoints, start, &options, Some(size)).await {
                Ok((connection, _)) => lanes.push(Lane::new(connection)),
                Err(error) => {
                    tracing::warn!(%error, wanted = options.connections, open = lanes.len(), "reading with fewer NBD connections");
                    break;
                }
            }
        }
        let (opening, turn, reconnections, closed) = Default::default();
        Ok(Self { inner: Arc::new(Inner { endpoints, options, size, lanes, opening, turn, reconnections, closed }) })
    }

    /// Size of the disk, bytes.
    pub fn size(&self) -> u64 {
        self.inner.size
    }

    /// Connections in use at the beginning.
    pub fn connections(&self) -> usize {
        self.inner.lanes.len()
    }

    /// How often a connection had to be made again.
    pub fn reconnections(&self) -> u64 {
        self.inner.reconnections.load(Ordering::Relaxed)
    }

    /// Reads `length` bytes at `offset`. May be called many times at once, and dropped at any moment. Survives what a
    /// reconnection can heal.
    ///
    /// # Errors
    /// [`NbdError::OutOfRange`] and [`NbdError::TooLong`] at once; [`NbdError::Read`] for what the server cannot read, and
    /// the reason of the last loss when no connection can be kept.
    pub async fn read(&self, offset: u64, length: usize) -> Result<Bytes, NbdError> {
        let inner = &*self.inner;
        if offset.checked_add(length as u64).is_none_or(|end| end > inner.size) {
            return Err(NbdError::OutOfRange { offset, length, size: inner.size });
        }
        let maximum = inner.options.max_read.min(u32::MAX as usize);
        if length > maximum {
            return Err(NbdError::TooLong { length, maximum });
        }
        if length == 0 {
            return Ok(Bytes::new());
        }
        tokio::select! {
            biased;
            () = inner.closed.cancelled() => Err(NbdError::Closed),
            result = inner.read(offset, length) => result,
        }
    }

    /// Ends all connections, each with a disconnect request. Reads that are still waiting fail with [`NbdError::Closed`].
    pub async fn close(&self) {
        self.inner.closed.cancel();
        for lane in &self.inner.lanes {
            let slot = std::mem::replace(&mut *lane.slot.lock().await, Slot::Dead(Arc::new(NbdError::Closed)));
            if let Slot::Open(connection) = slot {
                connection.close().await;
            }
        }
    }
}

impl Inner {
    /// Reads, as often as it takes and is allowed.
    async fn read(&self, offset: u64, length: usize) -> Result<Bytes, NbdError> {
        let attempts = self.options.attempts.max(1);
        let (mut failures, mut losses) = (0, 0);
        loop {
            let connection = self.connection().await?;
            let error = match connection.read(offset, length).await {
                Ok(data) => return Ok(data),
                Err(error) => error,
            };
            // A connection that broke after it brought others their data is no failure of this read.
            failures += u32::from(connection.is_alive() || !connection.has_delivered());
            losses += 1;
            if !error.is_transient() || failures >= attempts || losses >= attempts.saturating_mul(PATIENCE) {
                return Err(error);
            }
            tracing::debug!(%error, offset, length, "reading again");
            if connection.is_alive() {
                sleep(delay(&self.options, failures)).await;
            }
        }
    }

    /// A connection that is up, taking turns. A lane that is just being connected again is passed over while another
    /// is free.
    async fn connection(&self) -> Result<Arc<Connection>, NbdError> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let order = (0..self.lanes.len()).map(|step| turn.wrapping_add(step) % self.lanes.len());
        for number in order.clone() {
            if let Ok(slot) = self.lanes[number].slot.try_lock()
                && let Ok(connection) = self.connection_in(slot, number).await
            {
                return Ok(connection);
            }
        }
        let mut last = NbdError::NoEndpoint;
        for number in order {
            match self.connection_in(self.lanes[number].slot.lock().await, number).await {
                Ok(connection) => return Ok(connection),
                Err(reason) => last = NbdError::Lost(reason),
            }
        }
        Err(last)
    }

    /// The connection of a lane, made again if it broke. Whoever comes meanwhile finds the lane locked.
    async fn connection_in(&self, mut slot: MutexGuard<'_, Slot>, number: usize) -> Result<Arc<Connection>, Arc<NbdError>> {
        match &*slot {
            Slot::Open(connection) if connection.is_alive() => return Ok(Arc::clone(connection)),
            Slot::Dead(reason) => return Err(Arc::clone(reason)),
            Slot::Open(_) => {}
        }
        let reopened = self.reopen(number).await.map(Arc::new).map_err(Arc::new);
        *slot = match &reopened {
            Ok(connection) => Slot::Open(Arc::clone(connection)),
            Err(reason) => Slot::Dead(Arc::clone(reason)),
        };
        reopened
    }

    async fn reopen(&self, number: usize) -> Result<Connection, NbdError> {
        let mut last = NbdError::Closed;
        for attempt in 0..self.options.attempts.max(1) {
            if attempt > 0 {
                sleep(delay(&self.options, attempt)).await;
            }
            let _one_at_a_time = self.opening.lock().await;
            match open_any(&self.endpoints, number, &self.options, Some(self.size)).await {
                Ok((connection, _)) => {
                    self.reconnections.fetch_add(1, Ordering::Relaxed);
                    return Ok(connection);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

impl Lane {
    fn new(connection: Connection) -> Self {
        Self { slot: Mutex::new(Slot::Open(Arc::new(connection))) }
    }
}

/// Opens a connection to the first usable endpoint, trying all from `start` on.
async fn open_any(
    endpoints: &[Endpoint],
    start: usize,
    options: &Options,
    size: Option<u64>,
) -> Result<(Connection, u64), NbdError> {
    let mut last = NbdError::NoEndpoint;
    for step in 0..endpoints.len() {
        let endpoint = &endpoints[(start + step) % endpoints.len()];
        match open(endpoint, options, size).await {
            Ok(opened) => return Ok(opened),
            Err(error) => {
                tracing::warn!(%endpoint, %error, "cannot use the NBD endpoint");
                last = error;
            }
        }
    }
    match last {
        NbdError::NoEndpoint => Err(last),
        last => Err(NbdError::Unreachable { tried: endpoints.len(), last: Box::new(last) }),
    }
}

async fn open(endpoint: &Endpoint, options: &Options, expected: Option<u64>) -> Result<(Connection, u64), NbdError> {
    let address = endpoint.to_string();
    let limit = options.connect_timeout;
    let opened = timeout(limit, handshake::open(endpoint)).await;
    let (stream, size) = opened.map_err(|_| NbdError::ConnectTimeout { address: address.clone(), limit })??;
    let connection = Connection::start(address.clone(), stream, options.in_flight.max(1), options.stall_timeout);
    if let Some(before) = expected.filter(|before| *before != size) {
        connection.close().await;
        return Err(NbdError::SizeChanged { address, before, now: size });
    }
    Ok((connection, size))
}

/// The pause before attempt number `attempt`, counted from 0.
fn delay(options: &Options, attempt: u32) -> Duration {
    options.retry_delay.saturating_mul(1 << attempt.saturating_sub(1).min(16)).min(MAX_DELAY)
}
