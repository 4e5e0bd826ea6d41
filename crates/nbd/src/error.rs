//! What can go wrong between a client and a server.

use std::io;
use std::sync::Arc;
use std::time::Duration;

/// A connection that cannot be made or kept, or a read that fails. `address` is host and port; export names appear nowhere.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// An export name that no server must accept.
    #[error("an NBD export name of {length} bytes is too long")]
    ExportName {
        /// Its length, bytes.
        length: usize,
    },
    /// The certificate of an endpoint is no PEM certificate.
    #[error("the certificate of the NBD server cannot be read")]
    Certificate(#[source] rustls::pki_types::pem::Error),
    /// No endpoint was given.
    #[error("the disk has no NBD endpoint")]
    NoEndpoint,
    /// No endpoint answered as it should.
    #[error("none of {tried} NBD endpoints can be used")]
    Unreachable {
        /// How many were tried.
        tried: usize,
        /// Why the last one failed.
        #[source]
        last: Box<NbdError>,
    },
    /// The TCP connection failed.
    #[error("cannot connect to the NBD server {address}")]
    Connect {
        /// Server.
        address: String,
        /// Cause.
        source: io::Error,
    },
    /// Connection and handshake took too long.
    #[error("the NBD server {address} was not ready within {limit:?}")]
    ConnectTimeout {
        /// Server.
        address: String,
        /// Time given.
        limit: Duration,
    },
    /// The connection broke during the handshake.
    #[error("the NBD server {address} broke off while it was {step}")]
    Handshake {
        /// Server.
        address: String,
        /// What was going on.
        step: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// Something else listens there, or a server of a protocol older than 2011.
    #[error("{address} is no NBD server of the fixed newstyle: {reason}")]
    NotNbd {
        /// Server.
        address: String,
        /// What is missing.
        reason: &'static str,
    },
    /// The server has no TLS, and it is required.
    #[error("the NBD server {address} refuses TLS (reply {reply:#010x}), which is required")]
    TlsRefused {
        /// Server.
        address: String,
        /// Its reply to the request.
        reply: u32,
    },
    /// The TLS handshake failed; with another certificate than expected, for example.
    #[error("cannot secure the connection to the NBD server {address}")]
    Tls {
        /// Server.
        address: String,
        /// Cause.
        source: io::Error,
    },
    /// The server closed the connection on hearing the export name: the disk or the session is unknown, or no connection
    /// is free.
    #[error(
        "the NBD server {address} does not serve the disk: unknown disk, expired session, TLS required or too many connections"
    )]
    ExportRefused {
        /// Server.
        address: String,
    },
    /// The disk has another size than on the connection before.
    #[error("the disk at the NBD server {address} has {now} bytes, and had {before}")]
    SizeChanged {
        /// Server.
        address: String,
        /// Size first seen, bytes.
        before: u64,
        /// Size now, bytes.
        now: u64,
    },
    /// The connection broke.
    #[error("the connection to the NBD server {address} broke")]
    Io {
        /// Server.
        address: String,
        /// Cause.
        source: io::Error,
    },
    /// The server closed the connection.
    #[error("the NBD server {address} closed the connection with {missing} replies missing")]
    Disconnected {
        /// Server.
        address: String,
        /// Requests without a complete reply.
        missing: usize,
    },
    /// No byte came for too long although some should.
    #[error("the NBD server {address} has sent nothing for {limit:?}")]
    Stalled {
        /// Server.
        address: String,
        /// Time given.
        limit: Duration,
    },
    /// The server said something that is not in the protocol.
    #[error("the NBD server {address} does not keep to the protocol: {reason}")]
    Protocol {
        /// Server.
        address: String,
        /// What it said.
        reason: &'static str,
    },
    /// The server could not read.
    #[error("the NBD server {address} cannot read {length} bytes at offset {offset}: error {code} ({})", code_name(*code))]
    Read {
        /// Server.
        address: String,
        /// Its error number.
        code: u32,
        /// Start, bytes.
        offset: u64,
        /// Length, bytes.
        length: usize,
    },
    /// The read lies not in the disk.
    #[error("{length} bytes at offset {offset} are not in a disk of {size} bytes")]
    OutOfRange {
        /// Start, bytes.
        offset: u64,
        /// Length, bytes.
        length: usize,
        /// Size of the disk, bytes.
        size: u64,
    },
    /// The read is longer than allowed.
    #[error("a read of {length} bytes is too long: {maximum} at most")]
    TooLong {
        /// Length, bytes.
        length: usize,
        /// The most allowed, bytes.
        maximum: usize,
    },
    /// The connection a read waited on was lost for this reason, which it shares with others.
    #[error(transparent)]
    Lost(Arc<NbdError>),
    /// The client was closed.
    #[error("the NBD client is closed")]
    Closed,
}

impl NbdError {
    /// Whether the same read may succeed later or over another connection.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Lost(reason) => reason.is_transient(),
            Self::Read { code, .. } => !matches!(*code, EPERM | EINVAL | EOVERFLOW | ENOTSUP),
            Self::Io { .. } | Self::Disconnected { .. } | Self::Stalled { .. } | Self::Protocol { .. } => true,
            _ => false,
        }
    }
}

const EPERM: u32 = 1;
const EIO: u32 = 5;
const ENOMEM: u32 = 12;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;
const ENOTSUP: u32 = 95;
const ESHUTDOWN: u32 = 108;

/// The error numbers of the protocol in words.
fn code_name(code: u32) -> &'static str {
    match code {
        EPERM => "not permitted",
        EIO => "input/output error",
        ENOMEM => "out of memory",
        EINVAL => "invalid argument",
        ENOSPC => "no space left",
        EOVERFLOW => "value too large",
        ENOTSUP => "not supported",
        ESHUTDOWN => "server is shutting down",
        _ => "unknown",
    }
}
