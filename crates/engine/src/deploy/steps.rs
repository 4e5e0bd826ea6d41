//! The steps of deploying, changing and destroying a proxy: names, time limits, what to do when one fails.

use std::time::Duration;

use api::{StepInfo, TaskKind, TaskResult};
use tokio::time::{Instant, timeout};

use crate::context::Context;
use crate::error::Error;
use crate::journal::Task;
use crate::plan::{DeployTimes, DestroyPlan, ReconfigurePlan};

/// A waiting step is ended this much after its limit, so that whatever waits in it can say itself what it waited for.
const GRACE: Duration = Duration::from_secs(1);
/// Between the first two looks at what is waited for.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Between two looks at what takes long.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A step.
pub(crate) struct Step {
    /// What its task is called.
    pub(crate) name: &'static str,
    /// What to do when it failed and the failure does not know better.
    next: &'static str,
    /// Its time limit, seconds.
    limit: fn(&DeployTimes) -> u64,
}

const AGAIN: &str = "correct what it says, then start it again";

pub(crate) const CHECK: Step = Step { name: "check", next: AGAIN, limit: |times| times.call };
pub(crate) const UPLOAD: Step = Step {
    name: "upload",
    next: "check the line to the pool's master and the space of its storage, then start it again",
    limit: |times| times.upload,
};
pub(crate) const CONFIGURE: Step = Step { name: "configure", next: AGAIN, limit: |times| times.call };
pub(crate) const HAND_OVER: Step = Step { name: "hand over", next: AGAIN, limit: |times| times.call };
pub(crate) const DRAIN: Step = Step {
    name: "drain",
    next: "cancel what runs on the proxy, or wait for its end, then start it again",
    // The last call may begin when the time for the transfers is over.
    limit: |times| times.drain + times.call,
};
pub(crate) const SWITCH_OFF: Step =
    Step { name: "switch off", next: "shut the VM down on the pool, then start it again", limit: |times| 2 * times.start };
pub(crate) const START: Step =
    Step { name: "start", next: "look at the pool's own messages about the VM, then start it again", limit: |times| times.start };
pub(crate) const ADDRESS: Step = Step {
    name: "address",
    next: "check that the network has a DHCP server, or give a static address; the console of the VM shows what it waits for",
    limit: |times| times.address,
};
pub(crate) const DAEMON: Step = Step {
    name: "daemon",
    next: "check that this daemon may reach the address and port over the network; the console of the VM shows its log",
    limit: |times| times.daemon,
};
pub(crate) const TAKE_OVER: Step = Step { name: "take over", next: AGAIN, limit: |times| times.call };
pub(crate) const INTRODUCE: Step = Step {
    name: "introduce",
    next: "check that the pool's master can be reached from the network of the proxy",
    limit: |times| times.call,
};
pub(crate) const REGISTER: Step = Step { name: "register", next: AGAIN, limit: |times| times.call };
pub(crate) const RETIRE: Step = Step {
    name: "retire",
    next: "the next clean-up tries again; nothing else is to do",
    limit: |times| times.start + 2 * times.call,
};
pub(crate) const DESTROY: Step = Step {
    name: "destroy",
    next: "the next clean-up tries again; or destroy the VM on the pool and forget the proxy",
    limit: |times| times.start + times.call,
};

fn infos(steps: &[&Step], times: &DeployTimes) -> Vec<StepInfo> {
    steps.iter().map(|step| StepInfo { name: step.name.into(), limit_seconds: (step.limit)(times) }).collect()
}

/// The steps of a deployment with their limits, in order, as its run will call them.
pub fn deploy_steps(times: &DeployTimes, replaces: bool) -> Vec<StepInfo> {
    let mut steps = vec![&CHECK, &UPLOAD, &CONFIGURE, &HAND_OVER];
    if replaces {
        steps.extend([&DRAIN, &SWITCH_OFF, &START, &ADDRESS, &DAEMON, &TAKE_OVER, &REGISTER, &RETIRE]);
    } else {
        steps.extend([&START, &ADDRESS, &DAEMON, &INTRODUCE, &REGISTER]);
    }
    infos(&steps, times)
}

/// The steps of a change of address or resources with their limits, in order.
pub fn reconfigure_steps(plan: &ReconfigurePlan) -> Vec<StepInfo> {
    infos(&[&CHECK, &DRAIN, &SWITCH_OFF, &CONFIGURE, &START, &ADDRESS, &DAEMON, &REGISTER], &plan.times)
}

/// The steps of a destruction with their limits, in order.
pub fn destroy_steps(plan: &DestroyPlan) -> Vec<StepInfo> {
    infos(&[&CHECK, &DRAIN, &DESTROY], &plan.times)
}

impl Step {
    /// Does the step: a task of its name, within its limit, given up when the run is cancelled.
    pub(crate) async fn run<T>(
        &self,
        context: &Context,
        times: &DeployTimes,
        work: impl AsyncFnOnce(&Task) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.run_into(context, times, work, |_| TaskResult::default()).await
    }

    /// As [`Step::run`], with something to tell about what came out.
    pub(crate) async fn run_into<T>(
        &self,
        context: &Context,
        times: &DeployTimes,
        work: impl AsyncFnOnce(&Task) -> Result<T, Error>,
        result: impl FnOnce(&T) -> TaskResult,
    ) -> Result<T, Error> {
        context.check()?;
        let task = context.recorder.task(None, TaskKind::Step, self.name, None);
        let done = context.unless_cancelled(self.within(times, work(&task))).await.flatten();
        self.end(task, done, result)
    }

    /// As [`Step::run`], for what must come to its end: a cancel does not reach it.
    pub(crate) async fn run_to_end<T>(
        &self,
        context: &Context,
        times: &DeployTimes,
        work: impl AsyncFnOnce(&Task) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let task = context.recorder.task(None, TaskKind::Step, self.name, None);
        let done = self.within(times, work(&task)).await;
        self.end(task, done, |_| TaskResult::default())
    }

    async fn within<T>(&self, times: &DeployTimes, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let seconds = (self.limit)(times);
        match timeout(Duration::from_secs(seconds) + GRACE, work).await {
            Ok(done) => done,
            Err(_) => Err(Error::Late { what: "it did not come to its end".into(), seconds }),
        }
    }

    fn end<T>(&self, task: Task, done: Result<T, Error>, result: impl FnOnce(&T) -> TaskResult) -> Result<T, Error> {
        match done {
            Ok(done) => {
                task.succeed(result(&done));
                Ok(done)
            }
            Err(error) => {
                let error = self.failed(error);
                task.fail(&error);
                Err(error)
            }
        }
    }

    fn failed(&self, error: Error) -> Error {
        match error {
            Error::Cancelled => Error::Cancelled,
            error => Error::Step { step: self.name, undone: "", next: self.next, source: Box::new(error) },
        }
    }
}

/// Tells in the error of a step what has become of what was made.
pub(crate) fn with_undone(error: Error, words: &'static str) -> Error {
    match error {
        Error::Step { step, next, source, .. } => Error::Step { step, undone: words, next, source },
        error => error,
    }
}

/// Looks again and again until there is an answer. `who` `does` something then: that is what the task waits for, and what did not
/// happen if no answer comes in `seconds`; with what the last look said.
pub(crate) async fn until<T>(
    task: &Task,
    seconds: u64,
    (who, does): (&str, &str),
    mut look: impl AsyncFnMut() -> Result<Look<T>, Error>,
) -> Result<T, Error> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let words = format!("{who} to {does}").into();
    let mut pause = FIRST_PAUSE;
    loop {
        let seen = match look().await? {
            Look::There(found) => return Ok(found),
            Look::NotYet(seen) => seen,
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let seen = if seen.is_empty() { String::new() } else { format!(" ({seen})") };
            return Err(Error::Late { what: format!("{who} did not {does}{seen}"), seconds });
        }
        let _waiting = task.meter().wait(api::Wait::XapiTask, &words);
        tokio::time::sleep(pause.min(left)).await;
        pause = (pause * 3 / 2).min(LONGEST_PAUSE);
    }
}

/// What a look has seen.
pub(crate) enum Look<T> {
    /// What was waited for.
    There(T),
    /// Nothing yet; in words, what there is instead.
    NotYet(String),
}
