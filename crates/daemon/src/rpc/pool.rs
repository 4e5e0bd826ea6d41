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
    daemon.pools.remove(&given.id).await?;
    Ok(true)
}
