//! The terminal: guard, loop, theme, widgets, pictures.
//!
//! Entry: [`run`] with [`Options`], a receiver of [`FleetEvent`]s and a [`Performer`] of [`FleetCommand`]s.

mod clipboard;
pub mod drive;
mod events;
mod guard;
pub mod layout;
pub mod paint;
pub mod picture;
pub mod profile;
pub mod theme;
pub mod view;
pub mod widgets;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_small;

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use api::LogLevel;
use futures::StreamExt;
use jiff::tz::TimeZone;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::core::keymap::Keymap;
use crate::core::{FleetCommand, FleetEvent, ProxyEntry, Settings, State};
use drive::{Console, Ended, Surface};
use paint::Painter;
use profile::Profile;
use theme::Theme;
use view::View;

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
    /// What the person should know at the start, for example a fault in the configuration.
    pub notices: Vec<String>,
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
    /// A part of the program panicked; its report stands on standard error.
    #[error("the console ended because a part of it failed; the report stands above")]
    Panicked,
}

/// Shows the console until the person leaves, or the terminal is gone. The first frame is painted before this function
/// first waits, so before any request.
///
/// # Errors
/// [`TuiError`]; proxies that are away are no error.
pub async fn run(options: Options, events: UnboundedReceiver<FleetEvent>, performer: impl Performer) -> Result<(), TuiError> {
    if !rustix::termios::isatty(rustix::stdio::stdin()) || !rustix::termios::isatty(rustix::stdio::stdout()) {
        return Err(TuiError::NoTerminal);
    }
    let environment = |name: &str| std::env::var(name).ok();
    let profile = Profile::decide(options.colors.as_deref(), options.ascii, environment);
    let mut warnings = options.notices;
    let theme = Theme::load(options.theme.as_deref().unwrap_or("default"), profile.depth).unwrap_or_else(|error| {
        warnings.push(error.to_string());
        Theme::default_for(profile.depth)
    });
    let keymap = load_keymap(options.keymap.as_deref(), &mut warnings);
    let zone = TimeZone::system();
    let zone_name = zone.iana_name().unwrap_or("UTC").to_owned();
    let settings = Settings { read_only: options.read_only, zone, zone_name, ..Settings::default() };
    let (sender, outside) = unbounded_channel();
    let mut terminal = guard::RealTerminal::take().map_err(TuiError::Terminal)?;
    guard::restore_on_panic(sender.clone());
    let size = terminal.size().map_err(TuiError::Terminal)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64);
    let mut state = State::new(settings, keymap, options.proxies, now, size);
    for warning in warnings {
        state.tell(LogLevel::Warning, warning);
    }
    guard::pass_on_signals(sender.clone()).map_err(TuiError::Terminal)?;
    guard::watch_for_hang_up(sender).map_err(TuiError::Terminal)?;
    // crossterm's stream remembers only the first waker it is polled with, so a task of its own waits for it, and the
    // loop may look at the queue without waiting.
    let (typed, mut typing) = unbounded_channel();
    tokio::spawn(async move {
        let mut stream = crossterm::event::EventStream::new();
        while let Some(event) = stream.next().await {
            if let Some(message) = event.map(events::message).transpose()
                && typed.send(message).is_err()
            {
                return;
            }
        }
    });
    let input = futures::stream::poll_fn(move |context| typing.poll_recv(context));
    let mut console =
        Console { state, view: View::new(Painter { theme, ascii: profile.ascii }), surface: &mut terminal, performer, frames: 0 };
    match console.drive(input, events, outside).await {
        Ended::Left | Ended::Gone => Ok(()),
        Ended::Panicked => Err(TuiError::Panicked),
    }
}

fn load_keymap(path: Option<&std::path::Path>, warnings: &mut Vec<String>) -> Keymap {
    let name = path.map(|path| path.display().to_string()).unwrap_or_default();
    let text = path.and_then(|path| match std::fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(error) => {
            warnings.push(format!("{name}: {error}; the default keys are used"));
            None
        }
    });
    let (keymap, faults) = Keymap::load(text.as_deref().map(|text| (name.as_str(), text)));
    warnings.extend(faults);
    keymap
}
