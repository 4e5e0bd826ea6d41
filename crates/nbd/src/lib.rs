//! An asynchronous NBD client: TLS, pipelined reads, several connections, reconnect.
//!
//! It reads the disks a pool exports (xapi-streams.md §3). Many [`Client::read`]s may run at once; each connection keeps several
//! of them in flight and takes the replies in whatever order they come, straight into the buffer that is handed out. A
//! connection that breaks, stalls or talks nonsense is replaced, at any endpoint that answers, and only the reads that
//! are still missing are asked again.
//!
//! TLS is pinned to the certificate the pool hands out for the host, never skipped, and never dropped silently: a server
//! that refuses it is an error unless the endpoint says [`Tls::Preferred`]. Export names carry a session of the pool and
//! are printed nowhere. Every connection is ended with a disconnect request, since a host serves sixteen at most
//! (§6 T10), and connections are opened one after the other (§6 T17).

mod client;
mod connection;
mod endpoint;
mod error;
mod handshake;
mod wire;

pub use client::{Client, Options};
pub use endpoint::{Endpoint, ExportName, Tls};
pub use error::NbdError;
pub use handshake::probe;
