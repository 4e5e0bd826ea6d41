//! What becomes of a deployed proxy when its run has ended: read from the run's journal, so that it comes out the same at
//! the end of the run, after its clean-up, and at the next start of the daemon.

use api::{DeployedState, Topic};
use engine::{Told, Verdict};

use crate::fault::Fault;
use crate::fold::Folded;
use crate::journal::Journal;
use crate::news::News;
use crate::store::{DeploymentRecord, Store};

/// Writes down what a run has made of the proxy it worked on. `cleaned`: a clean-up has dealt with what it left.
pub(crate) async fn settle(store: &Store, journal: &Journal, news: &News, run: &str, cleaned: bool) -> Result<(), Fault> {
    let known = store.deployments().await?;
    let Some(record) = known.into_iter().find(|record| record.run.as_deref() == Some(run)) else { return Ok(()) };
    if record.state == DeployedState::Ready {
        return Ok(());
    }
    let folded = journal.read(run).await?;
    let verdict = verdict(&folded, cleaned);
    tracing::info!(run, proxy = record.name, ?verdict, "a deployment is settled");
    apply(store, record, Some(run), verdict, folded.run().ended_at).await?;
    news.changed(Topic::Deployed);
    news.changed(Topic::Licenses);
    Ok(())
}

/// Writes down what the run of a row has come to, if it has ended; whether it has. One that is not in the journal is about to
/// begin.
pub(crate) async fn settle_ended(
    store: &Store,
    journal: &Journal,
    news: &News,
    record: &DeploymentRecord,
) -> Result<bool, Fault> {
    let Some(run) = record.run.as_deref().filter(|_| record.state != DeployedState::Ready) else { return Ok(false) };
    let ended = store.run(run).await?.is_some_and(|found| found.run.id == run && found.run.outcome.is_some());
    if ended {
        let cleaned = !store.runs_with_leftovers().await?.iter().any(|left| left.id == run);
        settle(store, journal, news, run, cleaned).await?;
    }
    Ok(ended)
}

/// At the start of the daemon, before anything else begins a run: rows whose run has ended, or never began.
pub(crate) async fn settle_all(store: &Store, journal: &Journal, news: &News) -> Result<(), Fault> {
    for mut record in store.deployments().await?.into_iter().filter(|record| record.state != DeployedState::Ready) {
        let begun = match &record.run {
            Some(run) => store.run(run).await?.is_some_and(|found| found.run.id == *run),
            None => false,
        };
        if begun {
            settle_ended(store, journal, news, &record).await?;
        } else {
            tracing::info!(run = record.run.as_deref(), proxy = record.name, "a run on a deployed proxy was never begun");
            let run = record.run.take();
            apply(store, record, run.as_deref(), Verdict::Undone, None).await?;
        }
    }
    Ok(())
}

fn verdict(folded: &Folded, cleaned: bool) -> Verdict {
    let (run, open) = (folded.run(), folded.open_intents());
    let result = folded.detail().tasks.iter().rev().map(|task| &task.result).find(|result| result.fingerprint.is_some());
    Told { kind: run.kind, result, open: &open, condemned: folded.condemned() }.verdict(cleaned)
}

async fn apply(
    store: &Store,
    mut record: DeploymentRecord,
    run: Option<&str>,
    verdict: Verdict,
    at: Option<i64>,
) -> Result<(), Fault> {
    match verdict {
        Verdict::Open => return Ok(()),
        Verdict::Gone => return remove(store, &record).await,
        Verdict::Undone if record.state == DeployedState::Deploying => return remove(store, &record).await,
        Verdict::Undone => {}
        Verdict::Ready(result) => {
            record.vm = result.vm.or(record.vm);
            record.url = result.url.or(record.url);
            record.fingerprint = result.fingerprint.or(record.fingerprint);
            if let Some(wanted) = record.wanted.take() {
                record.spec = wanted;
            }
            if let Some(image) = record.secrets.wanted_image.take() {
                record.secrets.image = image;
            }
            record.ready_at = record.ready_at.or(at);
        }
    }
    (record.wanted, record.secrets.wanted_image) = (None, None);
    record.state = DeployedState::Ready;
    Ok(store.settle_deployment(&record, run).await?)
}

async fn remove(store: &Store, record: &DeploymentRecord) -> Result<(), Fault> {
    store.remove_deployment(&record.id).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use api::{Event, EventKind, Intent, Outcome, RunKind, RunSummary, TaskKind, TaskResult};

    use super::*;

    fn result() -> TaskResult {
        TaskResult { vm: Some("new".into()), fingerprint: Some("F".into()), ..TaskResult::default() }
    }

    /// The step that registers a proxy has ended.
    fn registered() -> EventKind {
        EventKind::TaskEnded { task: 1, outcome: Outcome::Success, error: None, result: result() }
    }

    fn judge(kind: RunKind, middle: Vec<EventKind>, cleaned: bool) -> Verdict {
        let started = EventKind::TaskStarted { task: 1, parent: None, kind: TaskKind::Step, label: String::new(), object: None };
        let mut events = vec![EventKind::RunQueued { kind, job: None, label: String::new() }, started];
        events.extend(middle);
        events.push(EventKind::RunEnded { outcome: Outcome::Interrupted, error: None, summary: RunSummary::default() });
        let mut folded = Folded::new("r");
        for (kind, cursor) in events.into_iter().zip(1..) {
            folded.apply(&Event { cursor, at: 0, kind });
        }
        verdict(&folded, cleaned)
    }

    #[test]
    fn a_journal_tells_what_was_registered_what_is_open_and_what_was_to_go() {
        let new = Intent::DeployedVm { pool: "p".into(), uuid: Some("new".into()), replaces: None, answered: false };
        let held = Intent::DrainedProxy { pool: "p".into(), uuid: "old".into() };
        let old = Intent::ObsoleteVm { pool: "p".into(), uuid: "old".into(), jobs: Vec::new() };
        let intent = |what: &Intent| EventKind::Intent { intent: 1, what: what.clone() };
        let settled = || EventKind::Settled { intent: 1 };
        let deployed = |events| judge(RunKind::Redeploy, events, false);
        assert_eq!(deployed(vec![intent(&new), registered()]), Verdict::Open);
        assert_eq!(deployed(vec![intent(&new), settled()]), Verdict::Undone);
        // A later intent of the same number takes the place of the earlier.
        assert_eq!(deployed(vec![intent(&new), registered(), intent(&old)]), Verdict::Ready(result()));
        assert_eq!(deployed(vec![intent(&new), registered(), settled()]), Verdict::Ready(result()));
        let destroyed = |events, cleaned| judge(RunKind::Destroy, events, cleaned);
        assert_eq!(destroyed(vec![intent(&held), settled()], false), Verdict::Undone);
        assert_eq!(destroyed(vec![intent(&held), intent(&old), settled()], false), Verdict::Gone);
        assert_eq!(destroyed(vec![intent(&held), intent(&old)], true), Verdict::Gone);
    }

    struct House {
        store: Arc<Store>,
        journal: Journal,
        news: Arc<News>,
        _dir: tempfile::TempDir,
    }

    impl House {
        async fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store = Arc::new(Store::open(dir.path()).await.unwrap());
            let news = Arc::<News>::default();
            let clock = Arc::new(crate::clock::SystemClock);
            let journal = Journal::open(Arc::clone(&store), clock, Arc::clone(&news)).await.unwrap();
            Self { store, journal, news, _dir: dir }
        }

        /// A run that has made something of a proxy, and has ended.
        async fn ended(&self, run: &str, kind: RunKind) {
            let new = crate::store::NewRun { id: run.into(), kind, job: None, label: "x".into(), recovers: None };
            self.journal.create(new).await.unwrap();
            let started =
                EventKind::TaskStarted { task: 1, parent: None, kind: TaskKind::Step, label: String::new(), object: None };
            let end = EventKind::RunEnded { outcome: Outcome::Success, error: None, summary: RunSummary::default() };
            for event in [started, registered(), end] {
                self.journal.append(run, event).await.unwrap();
            }
        }

        async fn only(&self) -> DeploymentRecord {
            self.store.deployments().await.unwrap().remove(0)
        }

        async fn settle_ended(&self) -> bool {
            settle_ended(&self.store, &self.journal, &self.news, &self.only().await).await.unwrap()
        }

        async fn settle_all(&self) {
            settle_all(&self.store, &self.journal, &self.news).await.unwrap();
        }
    }

    fn row(state: DeployedState, run: &str) -> DeploymentRecord {
        DeploymentRecord { state, run: Some(run.into()), ..crate::store::example("1", "one") }
    }

    #[tokio::test]
    async fn a_deployment_whose_run_is_about_to_begin_is_left_alone_and_goes_at_the_next_start() {
        let house = House::new().await;
        let license = crate::store::LicenseRecord { id: "l".into(), text: "signed".into() };
        house.store.put_license(&license, 1).await.unwrap();
        let deploying = row(DeployedState::Deploying, "newrun00");
        house.store.add_deployment(&deploying, 1).await.unwrap();
        let binding = crate::store::BindingRecord { proxy: "1".into(), license: "l".into(), name: "one".into() };
        assert!(house.store.bind_license(&binding, 1, 1).await.unwrap());
        assert!(!house.settle_ended().await);
        assert_eq!((house.only().await, house.store.license_bindings().await.unwrap().len()), (deploying, 1));
        house.settle_all().await;
        assert_eq!((house.store.deployments().await.unwrap(), house.store.license_bindings().await.unwrap()), (vec![], vec![]));
    }

    #[tokio::test]
    async fn a_change_whose_run_never_began_is_undone_and_never_judged_by_the_run_before() {
        let house = House::new().await;
        house.ended("former00", RunKind::Redeploy).await;
        let ready = DeploymentRecord { vm: Some("old".into()), ..row(DeployedState::Ready, "former00") };
        house.store.add_deployment(&ready, 1).await.unwrap();
        let mut changing = DeploymentRecord { state: DeployedState::Changing, run: Some("newrun00".into()), ..ready.clone() };
        changing.wanted = Some(api::DeploySpec { vcpus: 8, ..ready.spec.clone() });
        house.store.set_deployment(&changing).await.unwrap();
        assert!(!house.settle_ended().await);
        assert_eq!(house.only().await, changing);
        house.settle_all().await;
        assert_eq!(house.only().await, DeploymentRecord { run: None, ..ready });
    }

    #[tokio::test]
    async fn what_two_find_out_is_written_down_once() {
        let house = House::new().await;
        house.ended("run00001", RunKind::Deploy).await;
        house.store.add_deployment(&row(DeployedState::Deploying, "run00001"), 1).await.unwrap();
        let late = DeploymentRecord { state: DeployedState::Ready, ..house.only().await };
        assert!(house.settle_ended().await);
        let ready = house.only().await;
        assert_eq!((ready.state, ready.vm.as_deref()), (DeployedState::Ready, Some("new")));
        let next = DeploymentRecord { state: DeployedState::Changing, run: Some("run00002".into()), ..ready };
        house.store.set_deployment(&next).await.unwrap();
        house.store.settle_deployment(&late, Some("run00001")).await.unwrap();
        assert_eq!(house.only().await, next);
    }
}
