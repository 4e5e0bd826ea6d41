//! `deploy.*`: proxies deployed by this one.

use std::sync::Arc;

use api::{
    Credentials, DeployOptions, DeployReview, DeploySpec, Deployed, DestroyParams, IdParams, NoParams, ReconfigureParams,
    RedeployParams, Run,
};

use crate::daemon::Daemon;
use crate::fault::Fault;

pub async fn options(daemon: Arc<Daemon>, _: NoParams) -> Result<DeployOptions, Fault> {
    daemon.deployments.options().await
}

pub async fn review(daemon: Arc<Daemon>, given: DeploySpec) -> Result<DeployReview, Fault> {
    daemon.deployments.review(&given).await
}

pub async fn start(daemon: Arc<Daemon>, given: DeploySpec) -> Result<Run, Fault> {
    daemon.deployments.start(&given, daemon.now()).await
}

pub async fn list(daemon: Arc<Daemon>, _: NoParams) -> Result<Vec<Deployed>, Fault> {
    daemon.deployments.list().await
}

pub async fn claim(daemon: Arc<Daemon>, given: IdParams) -> Result<Credentials, Fault> {
    daemon.deployments.claim(&given.id).await
}

pub async fn adopt(daemon: Arc<Daemon>, given: Credentials) -> Result<Deployed, Fault> {
    daemon.deployments.adopt(&given).await
}

pub async fn redeploy(daemon: Arc<Daemon>, given: RedeployParams) -> Result<Run, Fault> {
    daemon.deployments.redeploy(&given).await
}

pub async fn reconfigure(daemon: Arc<Daemon>, given: ReconfigureParams) -> Result<Run, Fault> {
    daemon.deployments.reconfigure(&given).await
}

pub async fn destroy(daemon: Arc<Daemon>, given: DestroyParams) -> Result<Run, Fault> {
    daemon.deployments.destroy(&given).await
}

pub async fn forget(daemon: Arc<Daemon>, given: IdParams) -> Result<bool, Fault> {
    daemon.deployments.forget(&given.id).await
}
