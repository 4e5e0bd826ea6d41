//! The daemon's last log lines, kept in memory for the support bundle: whoever asks for help rarely has the log at hand.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing_subscriber::fmt::MakeWriter;

/// Lines kept.
const LINES: usize = 2000;
/// Longest line kept, bytes.
const LONGEST: usize = 2048;

/// The ring of this process: a log belongs to the process, not to a daemon in it.
static RING: Ring = Ring(Mutex::new(VecDeque::new()));

/// Lines, the oldest of which go.
pub(crate) struct Ring(Mutex<VecDeque<String>>);

/// The ring of this process.
pub(crate) fn ring() -> &'static Ring {
    &RING
}

impl Ring {
    fn lines(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a text, line by line.
    fn keep(&self, text: &str) {
        let mut lines = self.lines();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            if lines.len() >= LINES {
                lines.pop_front();
            }
            let end = line.floor_char_boundary(LONGEST);
            let cut = if end < line.len() { format!("{}…", &line[..end]) } else { line.to_owned() };
            lines.push_back(cut);
        }
    }

    /// What is kept, oldest first.
    pub fn text(&self) -> String {
        let lines = self.lines();
        let mut text = String::with_capacity(lines.iter().map(|line| line.len() + 1).sum());
        for line in lines.iter() {
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}

/// One event on its way into the ring.
pub(crate) struct Event(&'static Ring, Vec<u8>);

impl io::Write for Event {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.1.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.0.keep(&String::from_utf8_lossy(&self.1));
    }
}

impl<'a> MakeWriter<'a> for &'static Ring {
    type Writer = Event;

    fn make_writer(&'a self) -> Event {
        Event(self, Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_lines_go_and_long_ones_are_cut() {
        let ring = Ring(Mutex::default());
        for number in 0..LINES + 5 {
            ring.keep(&format!("line {number}\n"));
        }
        ring.keep(&"é".repeat(LONGEST));
        let text = ring.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines.len(), lines[0]), (LINES, "line 6"));
        let last = lines.last().unwrap();
        assert!(last.len() <= LONGEST + 3 && last.ends_with('…'));
    }

    #[test]
    fn what_is_logged_is_kept() {
        use tracing_subscriber::layer::SubscriberExt;
        static OWN: Ring = Ring(Mutex::new(VecDeque::new()));
        let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(&OWN);
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(pool = "lab", "a pool is away");
            tracing::info!("ready");
        });
        let text = OWN.text();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("WARN") && text.contains("a pool is away pool=\"lab\""), "{text}");
    }
}
