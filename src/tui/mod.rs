//! The terminal: guard, loop, theme, widgets, pictures.
//!
//! Entry: [`run`] with [`Options`], a receiver of [`FleetEvent`]s and a [`Performer`] of [`FleetCommand`]s.

use std::path::PathBuf;

use tokio::sync::mpsc::UnboundedReceiver;

use crate::core::{FleetCommand, FleetEvent, ProxyEntry};

/// Does what the core asks of the fleet. `crate::fleet` implements it; tests fake it.
pub trait Performer {
    /// Begins to perform; must not block. Answers come as [`FleetEvent`]s.
    fn perform(&mut self, command: FleetCommand);
}

/// How the console is to be shown.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The fleet, in the order to be listed.
    pub proxies: Vec<ProxyEntry>,
    /// Refuse every request that writes.
    pub read_only: bool,
    /// `none`, `16`, `256`, `true`; none: decided by the environment.
    pub colors: Option<String>,
    /// Seven-bit glyphs only; none: decided by the locale.
    pub ascii: Option<bool>,
    /// Name of a built-in theme, or path of a theme file.
    pub theme: Option<String>,
    /// Path of a key map laid over the default one.
    pub keymap: Option<PathBuf>,
}

/// Why the console ended other than by being asked to.
#[derive(Debug, thiserror::Error)]
pub enum TuiError {
    /// Standard output or input is no terminal.
    #[error("the console needs a terminal on standard input and output; the one-shot commands (backhaul --help) do not")]
    NoTerminal,
    /// The terminal refused.
    #[error("the terminal failed: {0}")]
    Terminal(#[source] std::io::Error),
}

/// Shows the console until the person leaves, or the terminal is gone.
///
/// # Errors
/// [`TuiError`]; proxies that are away are no error.
pub async fn run(_options: Options, _events: UnboundedReceiver<FleetEvent>, _performer: impl Performer) -> Result<(), TuiError> {
    Err(TuiError::NoTerminal)
}
