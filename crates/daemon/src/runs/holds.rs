//! Runs held back: by a person who drains the proxy, and by an upgrade, each for itself, so that neither lifts what the other
//! wants. Scheduled starts that an upgrade alone holds back are kept, and made up for when it is over.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use api::Job;

use super::Runs;
use crate::fault::Fault;

/// Jobs that fell due while an upgrade held runs back, among the facts of the proxy: their ids in JSON.
const HELD: &str = "held_starts";

/// Who holds runs back.
#[derive(Default)]
pub(super) struct Holds {
    person: AtomicBool,
    upgrade: AtomicBool,
}

impl Runs {
    /// A person holds new runs back, or lets them start again.
    pub fn drain(&self, on: bool) {
        self.holds.person.store(on, Ordering::Relaxed);
    }

    /// An upgrade holds new runs back, or lets them start again.
    pub fn hold(&self, on: bool) {
        self.holds.upgrade.store(on, Ordering::Relaxed);
    }

    /// Whether new runs are held back, by whomever.
    pub fn is_draining(&self) -> bool {
        self.held_because().is_some()
    }

    /// Why new runs are held back.
    pub(super) fn held_because(&self) -> Option<&'static str> {
        match (self.is_drained_by_hand(), self.is_held()) {
            (true, _) => Some("this proxy is being drained: nothing new starts until that is lifted"),
            (false, true) => Some("this proxy is being upgraded: nothing new starts until that is over"),
            (false, false) => None,
        }
    }

    /// Whether a person holds new runs back.
    pub fn is_drained_by_hand(&self) -> bool {
        self.holds.person.load(Ordering::Relaxed)
    }

    fn is_held(&self) -> bool {
        self.holds.upgrade.load(Ordering::Relaxed)
    }

    /// Keeps the start of a job for later; false when nothing but its own reasons holds it back.
    pub(super) async fn keep_start(&self, job: &Job) -> Result<bool, Fault> {
        // Against the end of the upgrade: what is kept after it was looked for would be kept until the next one.
        let _one_at_a_time = self.starting.lock().await;
        if !self.is_held() || self.is_drained_by_hand() {
            return Ok(false);
        }
        let mut held = self.held().await?;
        held.insert(job.id.clone());
        self.store.set_fact(HELD, &serde_json::to_string(&held).unwrap_or_default()).await?;
        Ok(true)
    }

    async fn held(&self) -> Result<BTreeSet<String>, Fault> {
        let text = self.store.fact(HELD).await?;
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
    }

    /// When no upgrade holds runs back any more: starts the jobs that fell due meanwhile, each once however often it did.
    pub async fn start_held(self: &Arc<Self>) {
        match self.take_held().await {
            Ok(jobs) => {
                for job in jobs {
                    self.start_scheduled(job).await;
                }
            }
            Err(fault) => {
                tracing::error!(error = %fault.report(), "cannot read which jobs fell due while this proxy was upgraded");
            }
        }
    }

    async fn take_held(&self) -> Result<Vec<Job>, Fault> {
        let _one_at_a_time = self.starting.lock().await;
        let held = self.held().await?;
        if held.is_empty() {
            return Ok(Vec::new());
        }
        let jobs = self.store.jobs().await?;
        self.store.forget_facts(&[HELD]).await?;
        Ok(jobs.into_iter().filter(|job| held.contains(&job.id) && job.spec.enabled).collect())
    }
}
