//! What the console tells: a toast for a while, a line in the history for good.

use std::collections::VecDeque;

use api::{ErrorReport, LogLevel};

use super::screens::causes;
use super::text::clean;

/// Messages kept.
const KEPT: usize = 500;

/// A message.
#[derive(Debug, Clone, PartialEq)]
pub struct Notice {
    /// Its number, never reused.
    pub id: u64,
    /// When.
    pub at: i64,
    /// How serious.
    pub level: LogLevel,
    /// The sentence.
    pub text: String,
    /// What to do next, and the causes.
    pub more: Vec<String>,
}

/// All messages, and which one is shown.
#[derive(Debug, Clone, Default)]
pub struct Notices {
    /// Newest last.
    pub all: VecDeque<Notice>,
    /// Grows with each message.
    pub count: u64,
    /// The one on the screen.
    shown: Option<u64>,
    dismissed: Option<u64>,
}

impl Notices {
    /// Tells something. An error that is on the screen stays there: whoever has not touched a key may not have seen it.
    pub fn tell(&mut self, now: i64, level: LogLevel, text: impl AsRef<str>, more: Vec<String>) {
        if self.all.len() == KEPT {
            self.all.pop_front();
        }
        self.count += 1;
        self.all.push_back(Notice { id: self.count, at: now, level, text: clean(text.as_ref()).into_owned(), more });
        if level == LogLevel::Error || self.on_screen().is_none_or(|shown| shown.level != LogLevel::Error) {
            self.shown = Some(self.count);
        }
    }

    fn on_screen(&self) -> Option<&Notice> {
        let id = self.shown?;
        self.all.iter().rev().find(|notice| notice.id == id)
    }

    /// Tells an error with what to do next and its causes.
    pub fn tell_error(&mut self, now: i64, what: &str, error: &ErrorReport) {
        let text = if what.is_empty() { error.message.clone() } else { format!("{what}: {}", error.message) };
        let mut more: Vec<String> = error.next.iter().map(|next| format!("Next: {next}")).collect();
        more.extend(causes(error).map(|cause| format!("Cause: {cause}")));
        more.push(format!("Code: {}", error.code));
        self.tell(now, LogLevel::Error, text, more);
    }

    /// When the message on the screen goes by itself; errors stay until a key.
    pub fn expires(&self) -> Option<i64> {
        let shown = self.on_screen()?;
        match shown.level {
            LogLevel::Info => Some(shown.at + 3_000),
            LogLevel::Warning => Some(shown.at + 6_000),
            LogLevel::Error => None,
        }
    }

    /// The message on the screen.
    pub fn toast(&self, now: i64) -> Option<&Notice> {
        let shown = self.on_screen()?;
        self.expires().is_none_or(|at| now < at).then_some(shown)
    }

    /// Takes the message from the screen; it stays in the history.
    pub fn dismiss(&mut self) {
        self.dismissed = self.shown.take();
    }

    /// The message that the last key took from the screen.
    pub fn dismissed(&self) -> Option<u64> {
        self.dismissed
    }
}
