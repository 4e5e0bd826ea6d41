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
    apply(store, record, verdict, folded.run().ended_at).await?;
    news.changed(Topic::Deployed);
    news.changed(Topic::Licenses);
    Ok(())
}

/// At the start of the daemon: rows whose run has ended, or never began.
pub(crate) async fn settle_all(store: &Store, journal: &Journal, news: &News) -> Result<(), Fault> {
    for record in store.deployments().await? {
        match (&record.run, record.state) {
            (_, DeployedState::Ready) => {}
            (None, DeployedState::Deploying) => remove(store, &record).await?,
            (None, DeployedState::Changing) => apply(store, record, Verdict::Undone, None).await?,
            (Some(run), state) => match store.run(run).await? {
                Some(found) if found.run.outcome.is_some() => {
                    let cleaned = !store.runs_with_leftovers().await?.iter().any(|left| left.id == *run);
                    settle(store, journal, news, run, cleaned).await?;
                }
                Some(_) => {}
                None if state == DeployedState::Deploying => remove(store, &record).await?,
                None => apply(store, record, Verdict::Undone, None).await?,
            },
        }
    }
    Ok(())
}

fn verdict(folded: &Folded, cleaned: bool) -> Verdict {
    let (run, open) = (folded.run(), folded.open_intents());
    let result = folded.detail().tasks.iter().rev().map(|task| &task.result).find(|result| result.fingerprint.is_some());
    Told { kind: run.kind, result, open: &open, condemned: folded.condemned() }.verdict(cleaned)
}

async fn apply(store: &Store, mut record: DeploymentRecord, verdict: Verdict, at: Option<i64>) -> Result<(), Fault> {
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
    Ok(store.set_deployment_with_secrets(&record).await?)
}

async fn remove(store: &Store, record: &DeploymentRecord) -> Result<(), Fault> {
    store.remove_deployment(&record.id).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use api::{Event, EventKind, Intent, Outcome, RunKind, RunSummary, TaskKind, TaskResult};

    use super::*;

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
        let result = TaskResult { vm: Some("new".into()), fingerprint: Some("F".into()), ..TaskResult::default() };
        let registered = || EventKind::TaskEnded { task: 1, outcome: Outcome::Success, error: None, result: result.clone() };
        let new = Intent::DeployedVm { pool: "p".into(), uuid: Some("new".into()), replaces: None, answered: false };
        let held = Intent::DrainedProxy { pool: "p".into(), uuid: "old".into() };
        let old = Intent::ObsoleteVm { pool: "p".into(), uuid: "old".into() };
        let intent = |what: &Intent| EventKind::Intent { intent: 1, what: what.clone() };
        let settled = || EventKind::Settled { intent: 1 };
        let deployed = |events| judge(RunKind::Redeploy, events, false);
        assert_eq!(deployed(vec![intent(&new), registered()]), Verdict::Open);
        assert_eq!(deployed(vec![intent(&new), settled()]), Verdict::Undone);
        // A later intent of the same number takes the place of the earlier.
        assert_eq!(deployed(vec![intent(&new), registered(), intent(&old)]), Verdict::Ready(result.clone()));
        assert_eq!(deployed(vec![intent(&new), registered(), settled()]), Verdict::Ready(result.clone()));
        let destroyed = |events, cleaned| judge(RunKind::Destroy, events, cleaned);
        assert_eq!(destroyed(vec![intent(&held), settled()], false), Verdict::Undone);
        assert_eq!(destroyed(vec![intent(&held), intent(&old), settled()], false), Verdict::Gone);
        assert_eq!(destroyed(vec![intent(&held), intent(&old)], true), Verdict::Gone);
    }
}
