//! One run from its first event to its last.

use std::sync::Arc;

use api::{LogLevel, Outcome};
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::journal::{Journal, Recorder};
use crate::plan::{Plan, Work};

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
    recorder.log(LogLevel::Info, format!("run {} begins", plan.run));
    match &plan.work {
        Work::Backup(_) | Work::Restore(_) | Work::Verify(_) | Work::Remove(_) | Work::Recover(_) => {
            Err(Error::refused("NOT_SUPPORTED", "this build moves no data yet"))
        }
    }
}
