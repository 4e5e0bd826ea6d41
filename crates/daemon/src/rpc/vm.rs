//! `vm.*` and `sr.*`: what the pools have.

use std::sync::Arc;

use api::{PoolFilter, Sr, Vm};

use crate::daemon::Daemon;
use crate::fault::Fault;

pub async fn list(daemon: Arc<Daemon>, given: PoolFilter) -> Result<Vec<Vm>, Fault> {
    daemon.pools.vms(given.pool.as_deref()).await
}

pub async fn srs(daemon: Arc<Daemon>, given: PoolFilter) -> Result<Vec<Sr>, Fault> {
    daemon.pools.srs(given.pool.as_deref()).await
}
