//! Following a run: every event exactly once, however often the line is cut.

use std::time::{Duration, Instant};

use api::{Event, EventKind, RunWatch, RunWatchParams};
use client::{CallError, Client, Lines};

use super::backoff::Backoff;

/// A reader of one run's journal that remembers where it stands.
pub struct Follower {
    client: Client,
    run: String,
    cursor: u64,
    lines: Option<Lines<RunWatch>>,
    backoff: Backoff,
    /// Since when nothing has come.
    broken: Option<Instant>,
    /// How long to try again before giving up; none: for ever.
    patience: Option<Duration>,
    ended: bool,
}

impl Follower {
    /// Follows `run` after `cursor`.
    pub fn new(client: Client, run: String, cursor: u64, patience: Option<Duration>) -> Self {
        Self { client, run, cursor, lines: None, backoff: Backoff::quick(), broken: None, patience, ended: false }
    }

    /// Cursor of the last event given.
    pub fn cursor(&self) -> u64 {
        self.cursor
    }

    /// The next event; `None` after the one that ends the run.
    ///
    /// # Errors
    /// What the proxy refuses, and what does not heal within the patience. The run itself goes on.
    pub async fn next(&mut self) -> Result<Option<Event>, CallError> {
        if self.ended {
            return Ok(None);
        }
        loop {
            match self.attempt().await {
                Ok(event) => {
                    self.cursor = event.cursor;
                    self.ended = matches!(event.kind, EventKind::RunEnded { .. });
                    self.backoff.reset();
                    self.broken = None;
                    return Ok(Some(event));
                }
                Err(error) => {
                    self.lines = None;
                    let since = *self.broken.get_or_insert_with(Instant::now);
                    let worn_out = self.patience.is_some_and(|patience| since.elapsed() >= patience);
                    if !error.is_passing() || worn_out {
                        return Err(self.client.explain(error).await);
                    }
                    tokio::time::sleep(self.backoff.next()).await;
                }
            }
        }
    }

    /// One event from the line that is open, or from a new one.
    async fn attempt(&mut self) -> Result<Event, CallError> {
        let lines = match &mut self.lines {
            Some(lines) => lines,
            None => {
                let params = RunWatchParams { run: self.run.clone(), cursor: self.cursor };
                self.lines.insert(self.client.stream::<RunWatch>(&params).await?)
            }
        };
        loop {
            let host = || self.client.host().to_owned();
            match lines.next().await? {
                Some(event) if event.cursor <= self.cursor => {}
                Some(event) if event.cursor == self.cursor + 1 => return Ok(event),
                Some(event) => {
                    let what = format!("event {} of run {} where {} was due", event.cursor, self.run, self.cursor + 1);
                    return Err(CallError::Foreign { host: host(), what });
                }
                None => {
                    return Err(CallError::Cut { host: host(), reason: "it ended the stream before the run had ended".into() });
                }
            }
        }
    }
}
