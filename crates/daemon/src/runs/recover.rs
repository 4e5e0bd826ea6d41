//! After an interruption: runs without an end get one, and what they left behind is cleaned as soon as the pools it
//! concerns answer.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use api::{EventKind, LogLevel, Outcome};
use futures::future::BoxFuture;

use super::{Queue, Request, Runs};

/// Between two looks at a pool that is away, and between two clean-ups that failed: doubled up to these.
const LOOK_FIRST: Duration = Duration::from_secs(2);
const LOOK_LAST: Duration = Duration::from_secs(300);
const RETRY_FIRST: Duration = Duration::from_secs(30);
const RETRY_LAST: Duration = Duration::from_secs(3600);
/// Clean-ups of one run before it is left to the next start of the daemon.
const ATTEMPTS: u32 = 12;

impl Runs {
    /// At the start of the daemon: ends every run that an earlier process left open, then cleans up after all that
    /// have left something.
    pub async fn take_up(self: &Arc<Self>) -> Result<(), crate::store::StoreError> {
        for (run, _) in self.journal.open_runs() {
            let end = self.interrupted(&run.id, "the daemon went away under it");
            tracing::warn!(run = run.id, label = run.label, "found without an end");
            self.end(&run.id, end.outcome, end.error).await;
        }
        for run in self.store.runs_with_leftovers().await? {
            // A clean-up's own leftovers are those of the run it was for.
            self.recover(&run.id).await;
        }
        Ok(())
    }

    /// Starts a clean-up after an ended run, if it left something and none is going on. Boxed, because the end of a
    /// run may start another one.
    pub(super) fn recover<'a>(self: &'a Arc<Self>, run: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let left = match self.store.runs_with_leftovers().await {
                Ok(runs) => runs.iter().any(|left| left.id == run),
                Err(error) => return tracing::error!(run, error = &error as &dyn Error, "cannot look for leftovers"),
            };
            let going_on = self.journal.open_runs().iter().any(|(_, recovers)| recovers.as_deref() == Some(run));
            if !left || going_on || self.stop.is_cancelled() {
                return;
            }
            let started = match self.journal.read(run).await {
                Ok(folded) => self.start(Request::Recover { run: run.to_owned(), intents: folded.open_intents() }).await,
                Err(error) => Err(error.into()),
            };
            match started {
                Ok(recovery) => tracing::info!(run, recovery = recovery.id, "cleaning up after a run"),
                Err(fault) => tracing::error!(run, error = %fault.report(), "cannot clean up after a run"),
            }
        })
    }

    /// After a clean-up: done, or tried again later.
    pub(super) async fn recovered(self: &Arc<Self>, run: &str, outcome: Outcome) {
        match outcome {
            Outcome::Success => {
                if let Err(error) = self.store.note_cleaned(run).await {
                    tracing::error!(run, error = &error as &dyn Error, "cannot note that a run was cleaned up");
                }
            }
            Outcome::Cancelled => {}
            Outcome::Failure | Outcome::Skipped | Outcome::Interrupted => {
                let attempts = self.store.recoveries(run).await.unwrap_or(ATTEMPTS);
                if attempts >= ATTEMPTS {
                    tracing::error!(run, attempts, "giving up cleaning after a run until the next start of the daemon");
                    return;
                }
                let pause = (RETRY_FIRST * 2u32.saturating_pow(attempts.saturating_sub(1))).min(RETRY_LAST);
                tracing::warn!(run, seconds = pause.as_secs(), "cleaning up after a run failed; trying again later");
                let (runs, run) = (Arc::clone(self), run.to_owned());
                self.tasks.spawn(async move {
                    tokio::select! {
                        () = tokio::time::sleep(pause) => runs.recover(&run).await,
                        () = runs.stop.cancelled() => {}
                    }
                });
            }
        }
    }

    /// Returns when all these pools have answered. The wait shows in the journal, each attempt with its reason.
    pub(super) async fn wait_for_pools(&self, queue: &Queue<'_>, pools: &[String]) {
        let known = self.pools.ids();
        for pool in pools.iter().filter(|pool| known.contains(pool)) {
            let mut pause = LOOK_FIRST;
            let mut last = None;
            while let Err(report) = self.pools.check(pool).await {
                if last.as_ref() != Some(&report.message) {
                    let log = EventKind::Log { task: None, level: LogLevel::Warning, message: report.message.clone() };
                    let _ = self.journal.append_soon(queue.run, log).await;
                }
                queue.waits(format!("{}; next attempt in {} s", report.message, pause.as_secs())).await;
                last = Some(report.message);
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LOOK_LAST);
            }
        }
    }
}
