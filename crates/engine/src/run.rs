//! One run from its first event to its last.

use std::sync::Arc;

use api::Outcome;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::error::Error;
use crate::journal::{Journal, Recorder};
use crate::plan::{Plan, Work};
use crate::{backup, deploy, points, recover, restore};

/// Executes a plan; the journal has everything, the answer is only its last word.
///
/// The first event is `RunStarted`, the last `RunEnded`, both durable. Must run inside a tokio runtime. After a cancel the run still
/// cleans up what it made; dropping the future instead leaves that to a recover run.
pub async fn run(plan: Plan, journal: Arc<dyn Journal>, cancel: CancellationToken) -> Outcome {
    let recorder = Recorder::new(journal);
    if let Err(error) = recorder.begin().await {
        tracing::error!(error = &error as &dyn std::error::Error, run = plan.run, "the journal refuses the run");
        return Outcome::Failure;
    }
    let result = execute(&plan, &recorder, &cancel).await;
    let (outcome, report) = match &result {
        Ok(()) => (Outcome::Success, None),
        Err(Error::Cancelled) => (Outcome::Cancelled, None),
        Err(error) => (error.outcome(), Some(error.report())),
    };
    if let Err(error) = recorder.end(outcome, report).await {
        tracing::error!(error = &error as &dyn std::error::Error, run = plan.run, "the journal lost the end of the run");
    }
    outcome
}

async fn execute(plan: &Plan, recorder: &Arc<Recorder>, cancel: &CancellationToken) -> Result<(), Error> {
    if cancel.is_cancelled() {
        return Err(Error::Cancelled);
    }
    let bytes_per_second = match &plan.work {
        Work::Backup(backup) => backup.max_bytes_per_second,
        _ => 0,
    };
    let context = Context::new(plan, bytes_per_second, Arc::clone(recorder), cancel.clone());
    let result = match &plan.work {
        Work::Backup(backup) => backup::backup(&context, backup).await,
        Work::Restore(restore) => restore::restore(&context, restore).await,
        Work::Verify(point) => points::verify(&context, point).await,
        Work::Remove(point) => points::remove(&context, point).await,
        Work::Recover(recover) => recover::recover(&context, recover).await,
        Work::Deploy(plan) => deploy::deploy(&context, plan).await,
        Work::Reconfigure(plan) => deploy::reconfigure(&context, plan).await,
        Work::Destroy(plan) => deploy::destroy(&context, plan).await,
    };
    context.close().await;
    result
}
