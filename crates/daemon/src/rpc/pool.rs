//! `pool.*`.

use std::sync::Arc;

use api::{IdParams, NoParams, Pool, PoolAddParams};

use super::params;
use crate::daemon::Daemon;
use crate::fault::Fault;

pub async fn list(daemon: Arc<Daemon>, _: NoParams) -> Result<Vec<Pool>, Fault> {
    Ok(daemon.pools.list())
}

pub async fn add(daemon: Arc<Daemon>, given: PoolAddParams) -> Result<Pool, Fault> {
    if let Some(name) = given.name.as_deref().filter(|name| !name.trim().is_empty()) {
        params::name(name)?;
    }
    daemon.pools.add(given, daemon.now()).await
}

pub async fn remove(daemon: Arc<Daemon>, given: IdParams) -> Result<bool, Fault> {
    let (id, name) = daemon.pools.find(&given.id)?;
    // Held until the pool is gone: nothing is deployed into it meanwhile.
    let _deciding = daemon.deployments.let_go_of_pool(&id, &name).await?;
    daemon.runs.let_go_of_pool(&id, &name).await?;
    daemon.pools.remove(&id).await?;
    Ok(true)
}
