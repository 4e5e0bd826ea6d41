//! The words that daemon, engine and console share: records, methods, journal events, error reports.
//!
//! Ground floor of the house: this crate imports no other room and does no I/O. What is here goes over the wire
//! (`POST /api/v1`, JSON-RPC 2.0) or into the run journal, so every change is a change of protocol: fields are only
//! added, with a default, and enumerations have an `unknown` a reader can survive.

pub mod deploy;
mod error;
mod event;
mod license;
mod maintenance;
mod method;
mod record;
mod rpc;
mod term;

pub use deploy::{
    AddressSpec, Credentials, DeployOptions, DeployReview, DeploySpec, Deployed, DeployedState, DestroyParams, FieldFault,
    ImageSource, IpNetwork, Login, NetworkOffer, PoolOffer, ReconfigureParams, RedeployParams, SrOffer, StepInfo,
};
pub use error::{ErrorCode, ErrorReport};
pub use event::{
    Event, EventKind, Intent, LogLevel, Outcome, Phase, RunSummary, TaskId, TaskKind, TaskResult, TransferMeter, Wait, Waits,
};
pub use license::*;
pub use maintenance::*;
pub use method::*;
pub use record::*;
pub use rpc::{RpcError, RpcRequest, RpcResponse, ndjson_header};
pub use term::{format_bytes, format_rate};
