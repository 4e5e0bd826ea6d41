//! Deploying proxies: the flow, its steps, and how each is undone.

use std::sync::Arc;

use api::{Intent, StepInfo};

use crate::context::Context;
use crate::error::Error;
use crate::journal::Task;
use crate::plan::{DeployPlan, DeployTimes, DestroyPlan, ReconfigurePlan};

/// The steps of a deployment with their limits.
pub fn deploy_steps(_: &DeployTimes, _replaces: bool) -> Vec<StepInfo> {
    Vec::new()
}

fn not_yet() -> Error {
    Error::refused("NOT_YET", "this daemon cannot deploy yet".to_owned())
}

pub(crate) async fn deploy(_: &Arc<Context>, _: &DeployPlan) -> Result<(), Error> {
    Err(not_yet())
}

pub(crate) async fn reconfigure(_: &Arc<Context>, _: &ReconfigurePlan) -> Result<(), Error> {
    Err(not_yet())
}

pub(crate) async fn destroy(_: &Arc<Context>, _: &DestroyPlan) -> Result<(), Error> {
    Err(not_yet())
}

/// Cleans what an interrupted run announced: `run` made it.
pub(crate) async fn settle(_: &Arc<Context>, _run: &str, _: &Intent, _: &Task) -> Result<(), Error> {
    Err(not_yet())
}
