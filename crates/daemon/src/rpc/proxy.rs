//! `proxy.*`: the state of this proxy, once or as it changes.

use std::sync::Arc;
use std::time::Duration;

use api::{DrainParams, NoParams, ProxyNews, ProxyStatus};
use futures::Stream;
use tokio::time::Instant;

use crate::daemon::Daemon;
use crate::fault::Fault;

/// Between two lines while transfers run.
const PACE: Duration = Duration::from_millis(500);

/// Holds new runs back, or lets them start again. What runs goes on; a restart lifts it.
pub async fn drain(daemon: Arc<Daemon>, given: DrainParams) -> Result<ProxyStatus, Fault> {
    daemon.runs.drain(given.on);
    daemon.news.moved();
    daemon.status().await
}

pub async fn status(daemon: Arc<Daemon>, _: NoParams) -> Result<ProxyStatus, Fault> {
    daemon.status().await
}

/// The state at once, then whenever something changed, at most twice a second. It ends, with a last line, when the
/// daemon stops.
pub async fn watch(
    daemon: Arc<Daemon>,
    _: NoParams,
) -> Result<impl Stream<Item = Result<ProxyNews, Fault>> + Send + 'static, Fault> {
    struct Watching {
        daemon: Arc<Daemon>,
        watcher: crate::news::Watcher,
        last: Option<Instant>,
        over: bool,
    }
    let watcher = daemon.news.watcher();
    let state = Watching { daemon, watcher, last: None, over: false };
    Ok(futures::stream::try_unfold(state, |mut state| async move {
        if state.over {
            return Ok(None);
        }
        if let Some(last) = state.last {
            let stop = state.daemon.stop.clone();
            tokio::select! {
                changed = state.watcher.wait() => {
                    state.over = !changed;
                    tokio::select! {
                        () = tokio::time::sleep_until(last + PACE) => {}
                        () = stop.cancelled() => state.over = true,
                    }
                }
                () = stop.cancelled() => state.over = true,
            }
        }
        state.last = Some(Instant::now());
        let changed = state.watcher.take(&state.daemon.news);
        let status = state.daemon.status().await?;
        Ok(Some((ProxyNews { status, changed }, state)))
    }))
}
