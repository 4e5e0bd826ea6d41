//! The terminal console over a fleet of backup proxies, as a library so that tests and `xtask` can drive the real thing.
//!
//! - [`core`]: state, messages, effects, actions, forms, text. Knows no terminal, no runtime, no network.
//! - `tui`: the terminal: guard, loop, theme, widgets, pictures.
//! - `fleet`: connections to the daemons, in both directions by the types of [`core::effect`] and [`core::message`].
//! - `commands`: the same actions without the screen.

pub mod commands;
pub mod config;
pub mod core;
pub mod fleet;
pub mod tui;
