//! `run.*`: history, journal, cancel.

use std::sync::Arc;

use api::{Event, IdParams, Run, RunDetail, RunListParams, RunWatchParams};
use futures::{Stream, StreamExt};

use super::job;
use crate::daemon::Daemon;
use crate::fault::Fault;

pub async fn list(daemon: Arc<Daemon>, given: RunListParams) -> Result<Vec<Run>, Fault> {
    let limit = given.limit.unwrap_or(100);
    if limit > 1000 {
        return Err(Fault::invalid("limit", format!("limit: {limit} is more than 1000")));
    }
    let job = match given.job {
        // A job that is gone keeps its history, under its id.
        Some(id) => Some(job::find(&daemon, &id).await.map_or(id, |job| job.id)),
        None => None,
    };
    Ok(daemon.store.runs(job.as_deref(), given.before, limit).await?)
}

async fn find(daemon: &Daemon, id: &str) -> Result<Run, Fault> {
    if let Some(found) = daemon.store.run(id).await? {
        return Ok(found.run);
    }
    let several: Vec<String> = daemon.store.runs_beginning(id).await?.into_iter().map(|open| open.run.id).collect();
    if several.is_empty() {
        return Err(Fault::missing("run", id));
    }
    Err(Fault::invalid("id", format!("id: several runs begin with {id:?}: {}", several.join(", "))))
}

pub async fn get(daemon: Arc<Daemon>, given: IdParams) -> Result<RunDetail, Fault> {
    let run = find(&daemon, &given.id).await?;
    let mut detail = daemon.journal.detail(&run.id).await?;
    detail.run.cancelling = run.cancelling;
    Ok(detail)
}

pub async fn watch(
    daemon: Arc<Daemon>,
    given: RunWatchParams,
) -> Result<impl Stream<Item = Result<Event, Fault>> + Send + 'static, Fault> {
    let run = find(&daemon, &given.run).await?;
    if given.cursor > run.cursor {
        return Err(Fault::invalid("cursor", format!("cursor: the journal of run {} ends at {}", run.id, run.cursor)));
    }
    let stopping = daemon.stop.clone();
    let events = daemon.journal.watch(run.id, given.cursor).map(|event| event.map_err(Fault::from));
    // Cut, not ended, when the daemon stops: an end without `runEnded` would be taken for one.
    let cut = async move {
        stopping.cancelled().await;
        // The last words of runs that are cancelled with the daemon still go out.
        tokio::time::sleep(std::time::Duration::from_secs(35)).await;
        Err(Fault::Failed(api::ErrorReport::new("STOPPING", "the daemon is stopping")))
    };
    let cut = futures::stream::once(cut).boxed();
    Ok(until_ended(events.boxed(), cut))
}

/// The events, until they end or `cut` speaks.
fn until_ended<S>(events: S, cut: S) -> impl Stream<Item = S::Item> + Send + 'static
where
    S: Stream + Send + Unpin + 'static,
    S::Item: Send,
{
    futures::stream::unfold(Some((events, cut)), |state| async move {
        let (mut events, mut cut) = state?;
        tokio::select! {
            biased;
            event = events.next() => event.map(|event| (event, Some((events, cut)))),
            cut = cut.next() => cut.map(|cut| (cut, None)),
        }
    })
}

pub async fn cancel(daemon: Arc<Daemon>, given: IdParams) -> Result<Run, Fault> {
    let run = find(&daemon, &given.id).await?;
    if run.outcome.is_some() {
        return Err(Fault::forbidden("run.cancel", format!("run {} has already ended", run.id)));
    }
    daemon.runs.cancel(&run.id).await?;
    find(&daemon, &run.id).await
}
