//! The console without a terminal: what it knows, what can happen, what it asks for.
//!
//! Everything goes through [`update`]: a message comes in, the state changes, effects go out. Nothing here imports
//! ratatui, tokio or reqwest, reads a clock or touches a file, so that every screen can be tested by feeding messages.

pub mod effect;
pub mod key;
pub mod message;

pub use effect::{Answer, Effect, FleetCommand, Request, RequestId};
pub use key::{Code, Key};
pub use message::{Connection, FleetEvent, FleetEventKind, Message, ProxyEntry, Refusal};
