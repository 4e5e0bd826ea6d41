//! The words that daemon, engine and console share: records, methods, journal events, error reports.
//!
//! Ground floor of the house: this crate imports no other room and does no I/O. What is here goes over the wire
//! (`POST /api/v1`, JSON-RPC 2.0) or into the run journal, so every change is a change of protocol: fields are only
//! added, with a default, and enumerations have an `unknown` a reader can survive.

mod error;
mod event;
mod method;
mod record;
mod rpc;
mod term;

pub use error::{ErrorCode, ErrorReport};
pub use event::{
    Event, EventKind, Intent, LogLevel, Outcome, Phase, RunSummary, TaskId, TaskKind, TaskResult, TransferMeter, Wait, Waits,
};
pub use method::*;
pub use record::*;
pub use rpc::{RpcError, RpcRequest, RpcResponse, ndjson_header};
pub use term::{format_bytes, format_rate};
