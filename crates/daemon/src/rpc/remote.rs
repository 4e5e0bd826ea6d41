//! `remote.*`.

use std::sync::Arc;

use api::{IdParams, NoParams, Remote, RemoteAddParams, RemoteTest};

use super::params;
use crate::daemon::Daemon;
use crate::fault::Fault;
use crate::remotes::PROBE;

pub async fn list(daemon: Arc<Daemon>, _: NoParams) -> Result<Vec<Remote>, Fault> {
    daemon.remotes.list().await
}

pub async fn add(daemon: Arc<Daemon>, given: RemoteAddParams) -> Result<Remote, Fault> {
    let name = params::name(&given.name)?;
    daemon.remotes.add(name, given.url, daemon.now()).await
}

pub async fn probe(daemon: Arc<Daemon>, given: IdParams) -> Result<RemoteTest, Fault> {
    daemon.remotes.probe(&given.id, PROBE).await
}

pub async fn remove(daemon: Arc<Daemon>, given: IdParams) -> Result<bool, Fault> {
    let remote = daemon.remotes.find(&given.id).await?;
    daemon.runs.let_go_of_remote(&remote.id, &remote.name).await?;
    daemon.remotes.remove(&remote.id).await?;
    Ok(true)
}
