//! A disk read over NBD: any block, several at a time (xapi-streams.md §3.2).

use std::future::Future;
use std::pin::Pin;

use ::nbd::{Endpoint, ExportName, NbdError, Options, Tls};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use xapi::NbdInfo;

use super::{Block, Flow, Source, SourceError};
use crate::budget::Permit;
use crate::plan::Limits;

/// A read on its way.
type Read = Pin<Box<dyn Future<Output = (u32, Permit, Result<Bytes, NbdError>)> + Send>>;

/// A disk read over NBD.
pub struct NbdSource {
    client: ::nbd::Client,
    label: String,
    virtual_size: u64,
    blocks: std::vec::IntoIter<u32>,
    count: u64,
    reads: FuturesUnordered<Read>,
    depth: usize,
    is_delta: bool,
    path: &'static str,
}

/// Connects to a disk at the addresses the pool gives.
///
/// # Errors
/// When there is no address, or none of them can be used.
pub async fn connect(addresses: Vec<NbdInfo>, limits: &Limits, label: &str) -> Result<::nbd::Client, SourceError> {
    let failed = |source| SourceError::Failed { what: format!("NBD connection to {label}"), source };
    if addresses.is_empty() {
        return Err(failed("the pool offers NBD on no network that its hosts reach".into()));
    }
    let endpoints: Result<_, _> = addresses.into_iter().map(endpoint).collect();
    let endpoints = endpoints.map_err(|error| failed(Box::new(error)))?;
    let options = Options { connections: limits.nbd_connections.max(1) as usize, ..Options::default() };
    ::nbd::Client::connect(endpoints, options).await.map_err(|error| failed(Box::new(error)))
}

/// The pool hands out the certificate where it wants TLS, and it is the only one accepted there.
fn endpoint(info: NbdInfo) -> Result<Endpoint, NbdError> {
    let tls = if info.cert.is_empty() { Tls::Plain } else { Tls::required(&info.cert)? };
    Ok(Endpoint { address: info.address, port: info.port, export_name: ExportName::new(info.export_name)?, tls })
}

impl NbdSource {
    /// A disk whose `blocks` are to be read, over a connection to it.
    pub fn new(
        client: ::nbd::Client,
        blocks: Vec<u32>,
        is_delta: bool,
        path: &'static str,
        limits: &Limits,
        label: &str,
    ) -> Self {
        Self {
            virtual_size: client.size(),
            client,
            label: label.to_owned(),
            count: blocks.len() as u64,
            blocks: blocks.into_iter(),
            reads: FuturesUnordered::new(),
            depth: limits.reads_in_flight.max(1) as usize,
            is_delta,
            path,
        }
    }

    /// Starts the read of the next block, if there is one.
    fn start(&mut self, permit: Permit) -> bool {
        let Some(index) = self.blocks.next() else { return false };
        let (client, offset) = (self.client.clone(), vhd::block_offset(index));
        let length = vhd::block_length(index, self.virtual_size);
        self.reads.push(Box::pin(async move { (index, permit, client.read(offset, length).await) }));
        true
    }
}

#[async_trait]
impl Source for NbdSource {
    fn virtual_size(&self) -> u64 {
        self.virtual_size
    }

    fn block_count(&self) -> u64 {
        self.count
    }

    fn is_delta(&self) -> bool {
        self.is_delta
    }

    fn path(&self) -> &'static str {
        self.path
    }

    async fn next(&mut self, flow: &Flow) -> Result<Option<Block>, SourceError> {
        while self.reads.len() < self.depth && self.blocks.len() > 0 {
            let permit = match flow.budget.try_permit() {
                Some(permit) => permit,
                None if self.reads.is_empty() => flow.permit().await,
                // The reads under way hold permits themselves: waiting for more before giving theirs on could last
                // for ever.
                None => break,
            };
            self.start(permit);
        }
        match flow.from_source(self.reads.next()).await? {
            Some((index, permit, Ok(data))) => Ok(Some(Block::new(index, vhd::pad_block(data), permit))),
            Some((index, _, Err(error))) => Err(SourceError::Failed {
                what: format!("NBD read of {} at {}", self.label, api::format_bytes(vhd::block_offset(index))),
                source: Box::new(error),
            }),
            None => Ok(None),
        }
    }

    async fn close(&mut self) {
        self.reads.clear();
        self.client.close().await;
    }
}
