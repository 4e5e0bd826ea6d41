//! Runs from the request to the last event: journaled first, one worker process each, watched until it is buried.
//!
//! Whatever happens to a worker, its run ends: by its own last event, or by ours that says how the process went. What
//! a run announced and did not settle is given to a Recover run, which waits until the pools it needs answer.

mod holds;
mod locks;
mod recover;
mod request;
mod worker;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use api::{
    ErrorReport, EventKind, Job, LogLevel, Outcome, Phase, Run, RunSummary, TaskId, TaskKind, TaskResult, Topic, TransferMeter,
    Verified,
};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Limits;
use crate::fault::Fault;
use crate::fold::phase_words;
use crate::journal::{Journal, JournalError};
use crate::licensing::Licenses;
use crate::news::News;
use crate::pools::Pools;
use crate::remotes::Remotes;
use crate::store::{NewRun, Store};
use holds::Holds;
use locks::VmLocks;

pub use request::{Point, Request};

/// The daemon's own task in a run: waiting for its turn. Workers number theirs from 1.
const QUEUE: TaskId = 0;

/// How a worker is started.
#[derive(Debug, Clone)]
pub struct WorkerProgram {
    /// The executable: the daemon's own.
    pub path: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
}

/// The runs of this proxy.
pub struct Runs {
    store: Arc<Store>,
    journal: Journal,
    news: Arc<News>,
    pools: Arc<Pools>,
    remotes: Arc<Remotes>,
    licenses: Arc<Licenses>,
    limits: Limits,
    program: WorkerProgram,
    locks: Arc<VmLocks>,
    slots: Semaphore,
    cancels: Mutex<HashMap<String, CancellationToken>>,
    /// Who wants nothing new to start.
    holds: Holds,
    /// Clean-ups after each run that came to nothing in the life of this daemon.
    attempts: Mutex<HashMap<String, u32>>,
    /// Held between the check that a job is not running and the row that says it is.
    starting: tokio::sync::Mutex<()>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What the runs need of the house.
pub struct Parts {
    /// State.
    pub store: Arc<Store>,
    /// Journals.
    pub journal: Journal,
    /// News.
    pub news: Arc<News>,
    /// Pools.
    pub pools: Arc<Pools>,
    /// Remotes.
    pub remotes: Arc<Remotes>,
    /// Licences.
    pub licenses: Arc<Licenses>,
    /// Bounds.
    pub limits: Limits,
    /// How to start a worker.
    pub program: WorkerProgram,
    /// Told when the daemon stops.
    pub stop: CancellationToken,
}

/// How a run ended before or without the word of a worker.
struct End {
    outcome: Outcome,
    error: Option<ErrorReport>,
}

impl End {
    fn failure(report: ErrorReport) -> Self {
        Self { outcome: Outcome::Failure, error: Some(report) }
    }

    fn cancelled() -> Self {
        Self { outcome: Outcome::Cancelled, error: None }
    }
}

impl Runs {
    /// Over the parts of the house.
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts { store, journal, news, pools, remotes, licenses, limits, program, stop } = parts;
        Arc::new(Self {
            store,
            journal,
            news,
            pools,
            remotes,
            licenses,
            limits,
            program,
            locks: Arc::default(),
            slots: Semaphore::new(limits.runs),
            cancels: Mutex::default(),
            holds: Holds::default(),
            attempts: Mutex::default(),
            starting: tokio::sync::Mutex::default(),
            tasks: TaskTracker::new(),
            stop,
        })
    }

    /// Starts a run. When this returns it is in the journal, and it goes on whatever happens to the caller.
    pub async fn start(self: &Arc<Self>, request: Request) -> Result<Run, Fault> {
        self.start_as(run_id(), request).await
    }

    /// Starts a run under an id that was drawn beforehand, so that it could be written down before there is the run.
    pub async fn start_as(self: &Arc<Self>, id: String, request: Request) -> Result<Run, Fault> {
        let _one_at_a_time = self.starting.lock().await;
        if self.stop.is_cancelled() {
            return Err(Fault::forbidden("run", "the daemon is stopping"));
        }
        // Cleaning up is no new work.
        if let Some(why) = self.held_because()
            && request.recovers().is_none()
        {
            return Err(Fault::forbidden("run", why));
        }
        if let Some(job) = request.job()
            && let Some(running) = self.running(job)
        {
            return Err(self.already_running(&request.label(), &running));
        }
        // Jobs alone ask for one: whoever has backups can always list, check and restore them.
        if matches!(request, Request::Backup(_)) {
            self.licenses.permit().await?;
        }
        let run = self.enter(id, &request).await?;
        let cancel = CancellationToken::new();
        self.cancels().insert(run.id.clone(), cancel.clone());
        let (runs, id) = (Arc::clone(self), run.id.clone());
        self.tasks.spawn(async move {
            runs.drive(&id, &request, &cancel).await;
            runs.cancels().remove(&id);
        });
        Ok(run)
    }

    /// Starts a scheduled job; when it cannot, a skipped run says why. While an upgrade alone holds runs back, the start is
    /// kept for [`Runs::start_held`].
    pub async fn start_scheduled(self: &Arc<Self>, job: Job) {
        match self.keep_start(&job).await {
            Ok(false) => {}
            Ok(true) => return tracing::info!(job = job.spec.name, "due while this proxy is upgraded; it starts afterwards"),
            Err(fault) => return self.skip(job, fault.report().message).await,
        }
        match self.start(Request::Backup(Box::new(job.clone()))).await {
            Ok(run) => tracing::info!(job = job.spec.name, run = run.id, "started by its schedule"),
            Err(fault) => self.skip(job, fault.report().message).await,
        }
    }

    /// Puts a run into the history that did not take place, and why.
    pub async fn skip(&self, job: Job, reason: String) {
        tracing::warn!(job = job.spec.name, reason, "a scheduled start was skipped");
        let report = ErrorReport::new("SKIPPED", reason);
        let skipped = async {
            let run = self.enter(run_id(), &Request::Backup(Box::new(job))).await?;
            let kind = EventKind::RunEnded { outcome: Outcome::Skipped, error: Some(report), summary: RunSummary::default() };
            self.journal.append(&run.id, kind).await
        };
        if let Err(error) = skipped.await {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot note a skipped start");
        }
    }

    async fn enter(&self, id: String, request: &Request) -> Result<Run, JournalError> {
        let new = NewRun {
            id,
            kind: request.kind(),
            job: request.job().map(str::to_owned),
            label: request.label(),
            recovers: request.recovers().map(str::to_owned),
        };
        self.journal.create(new).await
    }

    fn cancels(&self) -> std::sync::MutexGuard<'_, HashMap<String, CancellationToken>> {
        self.cancels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The run that executes a job now.
    pub fn running(&self, job: &str) -> Option<Run> {
        let open = self.journal.open_runs().into_iter().map(|(run, _)| run);
        open.into_iter().find(|run| run.job.as_deref() == Some(job))
    }

    fn already_running(&self, label: &str, run: &Run) -> Fault {
        let (phase, (done, total)) = self.journal.look(&run.id, |run| (run.phase(), run.progress())).unwrap_or_default();
        let percent = (total > 0).then(|| (done.min(total) as u128 * 100 / total as u128) as u64);
        let since = jiff::Timestamp::from_millisecond(run.queued_at).unwrap_or_default();
        let share = percent.map(|percent| format!(", {percent} %")).unwrap_or_default();
        let reason = format!("{label} is already running: run {} since {since:.0}, {}{share}", run.id, phase_words(phase));
        let details = json!({ "run": run.id, "startedAt": run.queued_at, "phase": phase, "percent": percent });
        Fault::Forbidden { operation: "job.run", reason, details }
    }

    /// Asks a run to stop.
    pub async fn cancel(&self, id: &str) -> Result<(), Fault> {
        self.cancel_because(id, "somebody asked this run to stop").await
    }

    /// Asks a run to stop, for a reason that stands in its journal.
    pub async fn cancel_because(&self, id: &str, why: &str) -> Result<(), Fault> {
        let Some(cancel) = self.cancels().get(id).cloned() else { return Ok(()) };
        if !cancel.is_cancelled() {
            self.journal.mark_cancelling(id).await?;
            let message = why.to_owned();
            let _ = self.journal.append_soon(id, EventKind::Log { task: None, level: LogLevel::Info, message }).await;
            cancel.cancel();
            self.news.changed(Topic::Runs);
        }
        Ok(())
    }

    /// Takes care of a run that the daemon itself executes: it can be cancelled, and is waited for when the daemon stops.
    pub fn adopt<W>(self: &Arc<Self>, id: &str, work: impl FnOnce(CancellationToken) -> W)
    where
        W: Future<Output = ()> + Send + 'static,
    {
        let cancel = CancellationToken::new();
        self.cancels().insert(id.to_owned(), cancel.clone());
        let (runs, id, work) = (Arc::clone(self), id.to_owned(), work(cancel));
        self.tasks.spawn(async move {
            work.await;
            runs.cancels().remove(&id);
        });
    }

    /// The runs that have not ended, but for one; each with whether it is a clean-up that has not begun.
    pub fn busy(&self, but: &str) -> Vec<(Run, bool)> {
        let open = self.journal.open_runs().into_iter().map(|(run, _)| run).filter(|run| run.id != but);
        open.map(|run| {
            let queued = self.journal.look(&run.id, |run| run.phase() == Phase::Queued).unwrap_or_default();
            let recovery = run.kind == api::RunKind::Recover;
            (run, recovery && queued)
        })
        .collect()
    }

    /// Asks all runs to stop, and waits until they have.
    pub async fn wind_down(&self) {
        for cancel in self.cancels().values() {
            cancel.cancel();
        }
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn drive(self: &Arc<Self>, run: &str, request: &Request, cancel: &CancellationToken) {
        let end = match self.turn(run, request, cancel).await {
            Ok(turn) => {
                let plan = match self.plan(run, request).await {
                    Ok(plan) => plan,
                    Err(fault) => return self.finish(run, request, Some(End::failure(fault.report()))).await,
                };
                let end = self.work(run, plan, cancel).await;
                drop(turn);
                end
            }
            Err(end) => Some(end),
        };
        self.finish(run, request, end).await;
    }

    /// Waits until the run may begin: pools it cannot do without, its VMs, a worker's place.
    async fn turn(&self, run: &str, request: &Request, cancel: &CancellationToken) -> Result<impl Sized, End> {
        let queue = Queue { journal: &self.journal, run, open: false.into() };
        let (vms, exclusive) = request.vms();
        let turn = async {
            self.wait_for_pools(&queue, &request.pools_first()).await;
            let guard = self
                .locks
                .take(run, &vms, exclusive, |conflict| {
                    let label = self.journal.look(&conflict.run, |run| run.run().label.clone()).unwrap_or_default();
                    queue.waits(format!("lock held by run {} ({label}) on VM {}", conflict.run, conflict.vm))
                })
                .await;
            if self.slots.available_permits() == 0 {
                queue.waits(format!("one of {} running workers to end", self.limits.runs)).await;
            }
            (guard, self.slots.acquire().await.ok())
        };
        let result = tokio::select! {
            turn = turn => Ok(turn),
            () = cancel.cancelled() => Err(End::cancelled()),
        };
        queue.ended(if result.is_ok() { Outcome::Success } else { Outcome::Cancelled }).await;
        result
    }

    /// Writes the end, if the worker has not, and does what follows from it.
    async fn finish(self: &Arc<Self>, run: &str, request: &Request, end: Option<End>) {
        if let Some(End { outcome, error }) = end {
            self.end(run, outcome, error).await;
        }
        let Some(ended) = self.look_back(run).await else { return };
        let outcome = ended.outcome.unwrap_or(Outcome::Failure);
        tracing::info!(
            run,
            label = ended.label,
            outcome = crate::store::word(outcome),
            error = ended.error.as_ref().map(|e| e.message.as_str()),
            "run ended"
        );
        match request {
            Request::Verify(point) if matches!(outcome, Outcome::Success | Outcome::Failure) => {
                let verified = Verified { at: ended.ended_at.unwrap_or_default(), outcome };
                if let Err(error) = self.store.note_verification(&point.id, run, &verified).await {
                    tracing::error!(run, error = &error as &dyn std::error::Error, "cannot keep what the verify said");
                }
                self.news.changed(Topic::RestorePoints);
            }
            Request::Backup(_) | Request::Remove(_) => {
                self.news.changed(Topic::RestorePoints);
                self.news.changed(Topic::Remotes);
            }
            Request::Restore { .. } => self.news.changed(Topic::Vms),
            Request::Deploy(_) | Request::Reconfigure(_) | Request::Destroy(_) => {
                self.settle_deployment(run, false).await;
                self.news.changed(Topic::Vms);
            }
            Request::Verify(_) | Request::Recover { .. } => {}
        }
        if let Some(recovered) = request.recovers() {
            self.recovered(recovered, outcome).await;
        } else {
            self.recover(run).await;
        }
    }

    /// Writes down what a run has made of a deployed proxy. What cannot be written now is at the next start.
    async fn settle_deployment(&self, run: &str, cleaned: bool) {
        if let Err(fault) = crate::deploy::settle::settle(&self.store, &self.journal, &self.news, run, cleaned).await {
            tracing::error!(run, error = %fault.report(), "cannot note what became of a deployed proxy; the next start will");
        }
    }

    /// An ended run. Tried until it can be read, because what follows from its end must not be left out; none when the
    /// daemon stops before, and then the next one sees to it.
    async fn look_back(&self, run: &str) -> Option<Run> {
        let mut pause = std::time::Duration::from_secs(1);
        loop {
            match self.store.run(run).await {
                Ok(found) => return found.map(|open| open.run),
                Err(error) => {
                    tracing::error!(run, error = &error as &dyn std::error::Error, "cannot look at an ended run; trying again");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop.cancelled() => return None,
            }
            pause = (pause * 2).min(std::time::Duration::from_secs(60));
        }
    }

    /// Ends a run and every task still open in it. Tried until it stands: a run must not stay running because the
    /// disk was full for a while.
    async fn end(&self, run: &str, outcome: Outcome, error: Option<ErrorReport>) {
        let mut pause = std::time::Duration::from_secs(1);
        while let Err(failure) = self.try_end(run, outcome, error.clone()).await {
            if matches!(failure, JournalError::NotOpen { .. } | JournalError::Closed) {
                return;
            }
            tracing::error!(run, error = &failure as &dyn std::error::Error, "cannot write the end of a run; trying again");
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                // The next start of the daemon ends it.
                () = self.stop.cancelled() => return,
            }
            pause = (pause * 2).min(std::time::Duration::from_secs(60));
        }
    }

    async fn try_end(&self, run: &str, outcome: Outcome, error: Option<ErrorReport>) -> Result<(), JournalError> {
        // Written and waited for first: behind it, everything the worker still said is in the journal too, and no task
        // is overlooked.
        let (level, message) = match &error {
            Some(error) => (LogLevel::Error, error.message.clone()),
            None => (LogLevel::Info, "stopped before its work began".to_owned()),
        };
        self.journal.append(run, EventKind::Log { task: None, level, message }).await?;
        let look = self.journal.look(run, |folded| {
            let open: Vec<TaskId> = folded.open_tasks().map(|task| task.id).collect();
            let (_, written) = folded.moved();
            let warnings = folded.detail().log.iter().filter(|line| line.level >= LogLevel::Warning).count();
            let vms = |wanted: Outcome| {
                let tasks = folded.detail().tasks.iter();
                tasks.filter(|task| task.kind == TaskKind::Vm && task.outcome.unwrap_or(outcome) == wanted).count() as u32
            };
            let failed = vms(Outcome::Failure) + vms(Outcome::Interrupted);
            let summary = RunSummary {
                succeeded: vms(Outcome::Success),
                failed,
                bytes: folded.progress().0,
                bytes_written: written,
                warnings: warnings as u32,
            };
            (open, summary)
        });
        let (open, summary) = look.ok_or_else(|| JournalError::NotOpen { run: run.to_owned() })?;
        for task in open {
            let ended = EventKind::TaskEnded { task, outcome, error: None, result: TaskResult::default() };
            self.journal.append(run, ended).await?;
        }
        self.journal.append(run, EventKind::RunEnded { outcome, error, summary }).await.map(drop)
    }
}

/// The task that shows what a run waits for before it begins; there only if it waits.
struct Queue<'a> {
    journal: &'a Journal,
    run: &'a str,
    open: std::sync::atomic::AtomicBool,
}

impl Queue<'_> {
    async fn waits(&self, what: String) {
        if !self.open.swap(true, std::sync::atomic::Ordering::Relaxed) {
            let started = EventKind::TaskStarted {
                task: QUEUE,
                parent: None,
                kind: TaskKind::Queue,
                label: "waiting for its turn".into(),
                object: None,
            };
            let _ = self.journal.append_soon(self.run, started).await;
        }
        let meter = TransferMeter { phase: Phase::Queued, waiting_for: Some(what), ..TransferMeter::default() };
        let _ = self.journal.append_soon(self.run, EventKind::TaskProgress { task: QUEUE, meter }).await;
    }

    async fn ended(&self, outcome: Outcome) {
        if self.open.load(std::sync::atomic::Ordering::Relaxed) {
            let ended = EventKind::TaskEnded { task: QUEUE, outcome, error: None, result: TaskResult::default() };
            let _ = self.journal.append_soon(self.run, ended).await;
        }
    }
}

/// Eight letters and digits without the ones that look alike: short enough to be typed, 40 bits of chance.
pub(crate) fn run_id() -> String {
    const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let random = uuid::Uuid::new_v4().into_bytes();
    random[..8].iter().map(|byte| char::from(DIGITS[usize::from(byte & 31)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_ids_can_be_typed() {
        let id = run_id();
        assert_eq!(id.len(), 8);
        assert!(id.bytes().all(|byte| byte.is_ascii_alphanumeric() && !matches!(byte, b'i' | b'l' | b'o' | b'u')), "{id}");
        assert_ne!(id, run_id());
    }
}
