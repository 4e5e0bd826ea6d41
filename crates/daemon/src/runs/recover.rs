//! After an interruption: runs without an end get one, and what they left behind is cleaned as soon as the pools it
//! concerns answer.

use std::collections::{BTreeSet, HashMap};
use std::error::Error;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use api::{EventKind, Intent, LogLevel, Outcome};
use futures::future::BoxFuture;

use super::request::{pool_of, remote_of};
use super::{Queue, Request, Runs};
use crate::fault::Fault;
use crate::fold::Folded;
use crate::journal::JournalError;
use crate::store::StoreError;

/// Between two looks at a pool that is away, and between two clean-ups that failed: doubled up to these.
const LOOK_FIRST: Duration = Duration::from_secs(2);
const LOOK_LAST: Duration = Duration::from_secs(300);
const RETRY_FIRST: Duration = Duration::from_secs(30);
const RETRY_LAST: Duration = Duration::from_secs(3600);
/// Attempts to clean up after one run before it is left to the next start of the daemon.
const ATTEMPTS: u32 = 12;

impl Runs {
    /// At the start of the daemon: ends every run that an earlier process left open, but for the one that goes on.
    ///
    /// # Errors
    /// The journal cannot be written.
    pub async fn end_open_runs(&self, goes_on: Option<&str>) -> Result<(), JournalError> {
        for (run, _) in self.journal.open_runs().into_iter().filter(|(run, _)| Some(run.id.as_str()) != goes_on) {
            let end = self.interrupted(&run.id, "the daemon went away under it");
            tracing::warn!(run = run.id, label = run.label, "found without an end");
            self.try_end(&run.id, end.outcome, end.error).await?;
        }
        Ok(())
    }

    /// Cleans up after all runs that have left something. Not while the program is on probation: what it would remove is
    /// gone for good, and the state that knows of it may be put back.
    ///
    /// # Errors
    /// The state cannot be read.
    pub async fn clean_up_leftovers(self: &Arc<Self>) -> Result<(), StoreError> {
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
            if let Err(fault) = self.try_recover(run).await {
                tracing::error!(run, error = %fault.report(), "cannot clean up after a run");
                self.recover_later(run);
            }
        })
    }

    async fn try_recover(self: &Arc<Self>, run: &str) -> Result<(), Fault> {
        let left = self.store.runs_with_leftovers().await?.iter().any(|left| left.id == run);
        let going_on = self.journal.open_runs().iter().any(|(_, recovers)| recovers.as_deref() == Some(run));
        if left && !going_on && !self.stop.is_cancelled() {
            let intents = self.journal.read(run).await?.open_intents();
            let recovery = self.start(Request::Recover { run: run.to_owned(), intents }).await?;
            tracing::info!(run, recovery = recovery.id, "cleaning up after a run");
        }
        Ok(())
    }

    /// After a clean-up: done, or tried again later. One that somebody cancelled is no exception: what it would have
    /// cleaned is still there.
    pub(super) async fn recovered(self: &Arc<Self>, run: &str, outcome: Outcome) {
        if outcome != Outcome::Success {
            return self.recover_later(run);
        }
        match self.store.note_cleaned(run).await {
            Ok(()) => {
                self.attempts().remove(run);
                self.settle_deployment(run, true).await;
            }
            Err(error) => {
                tracing::error!(run, error = &error as &dyn Error, "cannot note that a run was cleaned up");
                self.recover_later(run);
            }
        }
    }

    fn recover_later(self: &Arc<Self>, run: &str) {
        if self.stop.is_cancelled() {
            return;
        }
        let attempts = {
            let mut attempts = self.attempts();
            let attempts = attempts.entry(run.to_owned()).or_default();
            *attempts += 1;
            *attempts
        };
        if attempts >= ATTEMPTS {
            tracing::error!(run, attempts, "giving up cleaning after a run until the next start of the daemon");
            return;
        }
        let pause = (RETRY_FIRST * 2u32.saturating_pow(attempts - 1)).min(RETRY_LAST);
        tracing::warn!(run, seconds = pause.as_secs(), "what a run left is not cleaned up; trying again later");
        let (runs, run) = (Arc::clone(self), run.to_owned());
        self.tasks.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(pause) => runs.recover(&run).await,
                () = runs.stop.cancelled() => {}
            }
        });
    }

    fn attempts(&self) -> std::sync::MutexGuard<'_, HashMap<String, u32>> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses to forget a pool that runs still have something on, or have yet to clean up.
    ///
    /// # Errors
    /// Forbidden, with the run; or the state cannot be read.
    pub async fn let_go_of_pool(&self, id: &str, name: &str) -> Result<(), Fault> {
        self.let_go("pool.remove", &format!("pool {name}"), |intent| pool_of(intent) == Some(id)).await
    }

    /// Refuses to forget a remote that runs still write to, or have yet to clean up.
    ///
    /// # Errors
    /// As [`Runs::let_go_of_pool`].
    pub async fn let_go_of_remote(&self, id: &str, name: &str) -> Result<(), Fault> {
        self.let_go("remote.remove", &format!("remote {name}"), |intent| remote_of(intent) == Some(id)).await
    }

    /// What ended runs have left and nobody has cleaned up yet, a sentence each: the run, and what has to answer for it.
    ///
    /// # Errors
    /// The state cannot be read.
    pub async fn leftovers(&self) -> Result<Vec<String>, Fault> {
        let mut left = Vec::new();
        for run in self.store.runs_with_leftovers().await? {
            let open = self.journal.read(&run.id).await?.open_intents();
            let mut places = BTreeSet::new();
            for open in &open {
                if let Some(pool) = pool_of(&open.what) {
                    places.insert(format!("pool {}", self.pools.find(pool).map_or_else(|_| pool.to_owned(), |(_, name)| name)));
                }
                if let Some(remote) = remote_of(&open.what) {
                    let name = self.remotes.find(remote).await.map_or_else(|_| remote.to_owned(), |remote| remote.name);
                    places.insert(format!("remote {name}"));
                }
            }
            if !places.is_empty() {
                let places: Vec<_> = places.into_iter().collect();
                left.push(format!("run {} ({}) left something on {}", run.id, run.label, places.join(" and ")));
            }
        }
        Ok(left)
    }

    async fn let_go(&self, operation: &'static str, what: &str, concerns: impl Fn(&Intent) -> bool) -> Result<(), Fault> {
        let holds = |folded: &Folded| folded.open_intents().iter().any(|open| concerns(&open.what));
        let busy = self.journal.look_at_all(|folded| holds(folded).then(|| folded.run().id.clone())).into_iter().flatten().next();
        if let Some(run) = busy {
            return Err(Fault::forbidden(operation, format!("run {run} is at work on the {what}")));
        }
        for run in self.store.runs_with_leftovers().await? {
            if holds(&self.journal.read(&run.id).await?) {
                let reason = format!("run {} left something on the {what} that is still to be cleaned up", run.id);
                return Err(Fault::forbidden(operation, reason));
            }
        }
        Ok(())
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
