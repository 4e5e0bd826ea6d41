//! One check, one line: its limit, its time, its name while it is under way.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use api::{DoctorCheck, Verdict};
use futures::FutureExt;
use tokio::sync::mpsc;

use super::{Finding, Kind};

/// What a check is about.
#[derive(Debug, Clone)]
pub(crate) struct About {
    kind: Kind,
    object: String,
    /// What is tried, as the beginning of a sentence.
    trying: String,
    /// What to do when it does not come to an end.
    stuck: String,
}

impl About {
    /// `trying` begins the sentence, and `stuck` is what to do, when the check does not end within its limit.
    pub fn new(kind: Kind, object: impl Into<String>, trying: impl Into<String>, stuck: impl Into<String>) -> Self {
        Self { kind, object: object.into(), trying: trying.into(), stuck: stuck.into() }
    }

    fn line(self, finding: Finding, begun: Instant) -> DoctorCheck {
        DoctorCheck {
            check: self.kind.word().to_owned(),
            object: self.object,
            verdict: finding.verdict,
            measured: finding.measured,
            fix: finding.fix,
            took: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }

    fn late(&self, limit: Duration) -> Finding {
        Finding::fail(format!("{}: no answer within the limit of {:?}", self.trying, limit), self.stuck.clone())
    }
}

/// The checks under way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pending(Arc<Mutex<BTreeMap<u64, (About, Instant)>>>);

impl Pending {
    fn enter(&self, number: u64, about: About) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(number, (about, Instant::now()));
    }

    /// Whether it was still there: whoever takes it out tells its line.
    fn leave(&self, number: u64) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&number).is_some()
    }

    /// A line for each check under way, none of which will tell one itself any more.
    pub fn give_up(&self, limit: Duration) -> Vec<DoctorCheck> {
        let pending = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        pending
            .into_values()
            .map(|(about, begun)| {
                let words = format!("{}: given up after {limit:?} for all checks", about.trying);
                let finding = Finding { verdict: Verdict::Fail, measured: words, fix: Some(about.stuck.clone()) };
                about.line(finding, begun)
            })
            .collect()
    }
}

/// Where lines go.
#[derive(Debug, Clone)]
pub(crate) struct Lines {
    sender: mpsc::Sender<DoctorCheck>,
    pending: Pending,
    numbers: Arc<AtomicU64>,
    limit: fn(Kind) -> Duration,
}

impl Lines {
    /// Into a channel.
    pub fn new(sender: mpsc::Sender<DoctorCheck>) -> Self {
        Self { sender, pending: Pending::default(), numbers: Arc::default(), limit: Kind::limit }
    }

    /// With other limits: a test has no three seconds to wait.
    #[cfg(test)]
    pub fn limited(sender: mpsc::Sender<DoctorCheck>, limit: fn(Kind) -> Duration) -> Self {
        Self { limit, ..Self::new(sender) }
    }

    /// The checks under way.
    pub fn pending(&self) -> Pending {
        self.pending.clone()
    }

    /// Runs a check within the limit of its kind and tells its line, if there is something to tell. Gives on what the check
    /// found for those that depend on it; nothing when they need not be tried.
    pub async fn check<T, F>(&self, about: About, work: impl Future<Output = (F, Option<T>)>) -> Option<T>
    where
        F: Into<Option<Finding>>,
    {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (begun, limit) = (Instant::now(), (self.limit)(about.kind));
        self.pending.enter(number, about.clone());
        let done = tokio::time::timeout(limit, AssertUnwindSafe(work).catch_unwind()).await;
        let (finding, value) = match done {
            Ok(Ok((finding, value))) => (finding.into(), value),
            Ok(Err(_)) => {
                let words = format!("{}: the check itself broke down", about.trying);
                let fix = "send the support bundle to whoever made this program: backhaul support";
                (Some(Finding::fail(words, fix)), None)
            }
            Err(_) => (Some(about.late(limit)), None),
        };
        if self.pending.leave(number)
            && let Some(finding) = finding
        {
            // Whoever listened may be gone.
            let _ = self.sender.send(about.line(finding, begun)).await;
        }
        value
    }
}
