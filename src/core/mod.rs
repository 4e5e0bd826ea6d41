//! The console without a terminal: what it knows, what can happen, what it asks for.
//!
//! Everything goes through [`update`]: a message comes in, the state changes, effects go out. Nothing here imports
//! ratatui, tokio or reqwest, reads a clock or touches a file, so that every screen can be tested by feeding messages.

pub mod act;
pub mod action;
mod answers;
pub mod boundary;
pub mod deployed;
pub mod effect;
pub mod errand;
pub mod fixture;
pub mod format;
pub mod forms;
pub mod fuzzy;
pub mod input;
pub mod key;
pub mod keymap;
pub mod live;
mod manage;
pub mod message;
pub mod notice;
pub mod rich;
pub mod room;
pub mod screens;
pub mod state;
pub mod store;
pub mod table;
pub mod text;
mod update;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_forms;
#[cfg(test)]
mod tests_hands;
#[cfg(test)]
mod tests_manage;
#[cfg(test)]
mod tests_screens;

pub use effect::{Answer, Effect, FleetCommand, Request, RequestId};
pub use errand::{Bringing, Done, Errand, LicenseSource};
pub use key::{Code, Key};
pub use message::{Connection, FleetEvent, FleetEventKind, Message, ProxyEntry, Refusal};
pub use state::{Settings, State};
pub use update::{start, update};
