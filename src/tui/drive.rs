//! The loop: wait, take in all that came, draw once. Nothing moves, nothing wakes up.

use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use api::LogLevel;
use futures::{Stream, StreamExt};
use ratatui::Frame;
use tokio::sync::mpsc::{UnboundedReceiver, error::TryRecvError};

use super::Performer;
use super::view::View;
use crate::core::state::Dirty;
use crate::core::{Effect, FleetEvent, Message, State, start, update};

/// At least this long between two frames.
const FRAME: Duration = Duration::from_millis(33);
/// At least this long between two frames that only move progress.
const PROGRESS: Duration = Duration::from_millis(250);
/// Messages taken in before a frame is due again, so that a flood cannot stop the screen.
const BATCH: usize = 1_000;

/// What the loop draws on.
pub trait Surface {
    /// Columns and rows.
    ///
    /// # Errors
    /// When the terminal does not tell.
    fn size(&self) -> io::Result<(u16, u16)>;
    /// Draws one frame.
    ///
    /// # Errors
    /// When the terminal is gone.
    fn draw(&mut self, paint: &mut dyn FnMut(&mut Frame<'_>)) -> io::Result<()>;
    /// Forgets what is on the screen, so that the next frame paints every cell.
    ///
    /// # Errors
    /// When the terminal is gone.
    fn repaint(&mut self) -> io::Result<()>;
    /// Copies; answers what to tell.
    ///
    /// # Errors
    /// In words.
    fn copy(&mut self, text: &str) -> Result<String, String>;
    /// Gives the terminal to the shell until continued.
    ///
    /// # Errors
    /// In words.
    fn suspend(&mut self) -> Result<(), String>;
    /// Takes the terminal again after a stop.
    ///
    /// # Errors
    /// When the terminal is gone.
    fn resume(&mut self) -> io::Result<()>;
}

/// What comes from neither person nor fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outside {
    /// A signal asks us to end.
    Leave,
    /// The terminal is gone.
    Gone,
    /// We were stopped and go on.
    Continued,
    /// Something panicked.
    Panicked,
}

/// How the loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The person left, or a signal asked.
    Left,
    /// The terminal went away.
    Gone,
    /// Something panicked; the report is on standard error.
    Panicked,
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// The loop with all it holds.
pub struct Console<'a, S, P> {
    /// The state.
    pub state: State,
    /// Draws it.
    pub view: View,
    /// Draws on this.
    pub surface: &'a mut S,
    /// Performs what is asked of the fleet.
    pub performer: P,
    /// Frames drawn so far.
    pub frames: u64,
}

impl<S: Surface, P: Performer> Console<'_, S, P> {
    /// Runs until the person leaves.
    pub async fn drive(
        &mut self,
        mut input: impl Stream<Item = io::Result<Message>> + Unpin,
        mut events: UnboundedReceiver<FleetEvent>,
        mut outside: UnboundedReceiver<Outside>,
    ) -> Ended {
        start(&mut self.state);
        let mut drawn: Option<Instant> = None;
        let mut events_open = true;
        loop {
            let due = match self.state.dirty {
                Dirty::No => None,
                Dirty::Progress => Some(drawn.map_or(Instant::now(), |at| at + PROGRESS)),
                Dirty::Yes => Some(drawn.map_or(Instant::now(), |at| at + FRAME)),
            };
            if due.is_some_and(|due| due <= Instant::now()) {
                // The clock is read for the frame: a toast may have expired while nothing came.
                self.state.now = self.state.now.max(now());
                if self.draw().is_err() {
                    return Ended::Gone;
                }
                drawn = Some(Instant::now());
                continue;
            }
            let tick = self.state.next_wake().map(|at| {
                let left = u64::try_from(at - now()).unwrap_or(0);
                Instant::now() + Duration::from_millis(left)
            });
            let wake = match (due, tick) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            let message = tokio::select! {
                biased;
                signal = outside.recv() => match signal {
                    Some(Outside::Leave) | None => return Ended::Left,
                    Some(Outside::Gone) => return Ended::Gone,
                    Some(Outside::Panicked) => return Ended::Panicked,
                    Some(Outside::Continued) => {
                        if self.surface.resume().is_err() {
                            return Ended::Gone;
                        }
                        self.state.touch();
                        continue;
                    }
                },
                event = events.recv(), if events_open => match event {
                    Some(event) => Message::Fleet(event),
                    None => {
                        events_open = false;
                        continue;
                    }
                },
                typed = input.next() => match typed {
                    Some(Ok(message)) => message,
                    Some(Err(_)) | None => return Ended::Gone,
                },
                () = sleep_until(wake), if wake.is_some() => {
                    if due.is_some_and(|due| due <= Instant::now()) {
                        continue;
                    }
                    Message::Tick
                }
            };
            let mut next = Some(message);
            for _ in 0..BATCH {
                let Some(message) = next.take() else { break };
                if let Some(ended) = self.take(message) {
                    return ended;
                }
                next = match events.try_recv() {
                    Ok(event) => Some(Message::Fleet(event)),
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => match ready(&mut input).await {
                        Some(Some(Ok(message))) => Some(message),
                        Some(_) => return Ended::Gone,
                        None => None,
                    },
                };
            }
            if let Some(message) = next
                && let Some(ended) = self.take(message)
            {
                return ended;
            }
        }
    }

    fn take(&mut self, message: Message) -> Option<Ended> {
        let effects = update(&mut self.state, now(), message);
        for effect in effects {
            match effect {
                Effect::Fleet(command) => self.performer.perform(command),
                Effect::Quit => return Some(Ended::Left),
                Effect::Copy(text) => {
                    let (level, told) = match self.surface.copy(&text) {
                        Ok(told) => (LogLevel::Info, told),
                        Err(reason) => (LogLevel::Warning, format!("copy: {reason}")),
                    };
                    self.state.tell(level, told);
                }
                Effect::Suspend => {
                    if let Err(reason) = self.surface.suspend() {
                        self.state.tell(LogLevel::Warning, format!("suspend: {reason}"));
                    }
                    self.state.touch();
                }
                Effect::Repaint => {
                    if self.surface.repaint().is_err() {
                        return Some(Ended::Gone);
                    }
                    self.state.touch();
                }
            }
        }
        None
    }

    fn draw(&mut self) -> io::Result<()> {
        let (state, view) = (&self.state, &mut self.view);
        self.surface.draw(&mut |frame| {
            if let Some(cursor) = view.draw(state, frame.buffer_mut()) {
                frame.set_cursor_position(cursor);
            }
        })?;
        self.frames += 1;
        self.state.dirty = Dirty::No;
        Ok(())
    }
}

/// What has been typed already, if anything.
///
/// The stream is asked with the waker of this task, never with a borrowed one: it remembers the waker of the first
/// question that found nothing, and wakes only that.
async fn ready<T>(input: &mut (impl Stream<Item = T> + Unpin)) -> Option<Option<T>> {
    poll_fn(|context| {
        Poll::Ready(match input.poll_next_unpin(context) {
            Poll::Ready(item) => Some(item),
            Poll::Pending => None,
        })
    })
    .await
}

async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at.into()).await;
    }
}
