//! `deploy.*`: proxies deployed by this one.

use std::sync::Arc;

use api::{
    Credentials, DeployOptions, DeployReview, DeploySpec, Deployed, DestroyParams, IdParams, NoParams, ReconfigureParams,
    RedeployParams, Run,
};

use crate::daemon::Daemon;
use crate::fault::Fault;

pub async fn options(_: Arc<Daemon>, _: NoParams) -> Result<DeployOptions, Fault> {
    Err(Fault::MethodNotFound("deploy.options".into()))
}

pub async fn review(_: Arc<Daemon>, _: DeploySpec) -> Result<DeployReview, Fault> {
    Err(Fault::MethodNotFound("deploy.review".into()))
}

pub async fn start(_: Arc<Daemon>, _: DeploySpec) -> Result<Run, Fault> {
    Err(Fault::MethodNotFound("deploy.start".into()))
}

pub async fn list(_: Arc<Daemon>, _: NoParams) -> Result<Vec<Deployed>, Fault> {
    Err(Fault::MethodNotFound("deploy.list".into()))
}

pub async fn claim(_: Arc<Daemon>, _: IdParams) -> Result<Credentials, Fault> {
    Err(Fault::MethodNotFound("deploy.claim".into()))
}

pub async fn redeploy(_: Arc<Daemon>, _: RedeployParams) -> Result<Run, Fault> {
    Err(Fault::MethodNotFound("deploy.redeploy".into()))
}

pub async fn reconfigure(_: Arc<Daemon>, _: ReconfigureParams) -> Result<Run, Fault> {
    Err(Fault::MethodNotFound("deploy.reconfigure".into()))
}

pub async fn destroy(_: Arc<Daemon>, _: DestroyParams) -> Result<Run, Fault> {
    Err(Fault::MethodNotFound("deploy.destroy".into()))
}

pub async fn forget(_: Arc<Daemon>, _: IdParams) -> Result<bool, Fault> {
    Err(Fault::MethodNotFound("deploy.forget".into()))
}
