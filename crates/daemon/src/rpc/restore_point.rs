//! `restorePoint.*`.

use std::sync::Arc;

use api::{IdParams, RestoreParams, RestorePoint, RestorePointListParams, Run, Sr};

use super::params;
use crate::daemon::Daemon;
use crate::fault::Fault;
use crate::runs::Request;

pub async fn list(daemon: Arc<Daemon>, given: RestorePointListParams) -> Result<Vec<RestorePoint>, Fault> {
    daemon.points.list(given.vm.as_deref(), given.remote.as_deref()).await
}

pub async fn restore(daemon: Arc<Daemon>, given: RestoreParams) -> Result<Run, Fault> {
    let name = given.name.as_deref().map(params::name).transpose()?;
    let point = daemon.points.find(&given.id).await?;
    let Sr { pool, uuid, .. } = storage_repository(&daemon, &given.sr).await?;
    daemon.runs.start(Request::Restore { point, pool, sr: uuid, name }).await
}

pub async fn verify(daemon: Arc<Daemon>, given: IdParams) -> Result<Run, Fault> {
    let point = daemon.points.find(&given.id).await?;
    daemon.runs.start(Request::Verify(point)).await
}

pub async fn remove(daemon: Arc<Daemon>, given: IdParams) -> Result<Run, Fault> {
    let point = daemon.points.find(&given.id).await?;
    daemon.runs.start(Request::Remove(point)).await
}

/// The storage repository with a uuid, or a name that only one of them has.
async fn storage_repository(daemon: &Daemon, wanted: &str) -> Result<Sr, Fault> {
    let all = daemon.pools.srs(None).await?;
    if let Some(sr) = all.iter().find(|sr| sr.uuid.eq_ignore_ascii_case(wanted)) {
        return Ok(sr.clone());
    }
    let named: Vec<&Sr> = all.iter().filter(|sr| sr.name == wanted).collect();
    match named[..] {
        [sr] => Ok(sr.clone()),
        [] => Err(Fault::missing("sr", wanted)),
        [..] => {
            let uuids: Vec<&str> = named.iter().map(|sr| sr.uuid.as_str()).collect();
            let message =
                format!("sr: {} storage repositories are called {wanted:?}; give one of {}", named.len(), uuids.join(", "));
            Err(Fault::invalid("sr", message))
        }
    }
}
