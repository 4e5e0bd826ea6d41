//! Where a run writes what it does, and the pen it writes with.
//!
//! [`Journal`] is what the outside implements (the worker's socket, a test's vector). [`Recorder`] is the pen: it
//! numbers tasks and intents, keeps the totals, and every half second writes the meters that moved.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use api::{ErrorReport, EventKind, Intent, LogLevel, Outcome, Phase, RunSummary, TaskId, TaskKind, TaskResult};
use async_trait::async_trait;
use tokio::time::MissedTickBehavior;

use crate::meter::Meter;

/// The journal did not take an event that had to be durable.
#[derive(Debug, thiserror::Error)]
#[error("the journal cannot record: {0}")]
pub struct JournalError(pub String);

/// Takes the events of a run, in the order they are given.
#[async_trait]
pub trait Journal: Send + Sync + 'static {
    /// Records an event; never waits.
    fn record(&self, event: EventKind);

    /// Records an event and returns once it would survive a crash of everything.
    ///
    /// # Errors
    /// When it cannot be made durable: the run must not do what it was about to announce.
    async fn record_durable(&self, event: EventKind) -> Result<(), JournalError>;
}

/// At most this often a meter is written, phase changes apart.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// Numbers and writes the events of one run.
pub(crate) struct Recorder {
    journal: Arc<dyn Journal>,
    next_task: AtomicU32,
    next_intent: AtomicU32,
    meters: Mutex<BTreeMap<TaskId, Arc<Meter>>>,
    succeeded: AtomicU32,
    failed: AtomicU32,
    warnings: AtomicU32,
    bytes: AtomicU64,
    bytes_written: AtomicU64,
}

impl Recorder {
    /// A pen over `journal`. Inside a tokio runtime it also writes the meters, until the last handle is dropped.
    pub(crate) fn new(journal: Arc<dyn Journal>) -> Arc<Self> {
        let recorder = Arc::new(Self {
            journal,
            next_task: AtomicU32::new(1),
            next_intent: AtomicU32::new(1),
            meters: Mutex::default(),
            succeeded: AtomicU32::new(0),
            failed: AtomicU32::new(0),
            warnings: AtomicU32::new(0),
            bytes: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
        });
        tokio::spawn(write_meters(Arc::downgrade(&recorder)));
        recorder
    }

    /// Begins a task.
    pub(crate) fn task(
        self: &Arc<Self>,
        parent: Option<&Task>,
        kind: TaskKind,
        label: impl Into<String>,
        object: Option<String>,
    ) -> Task {
        let id = self.next_task.fetch_add(1, Ordering::Relaxed);
        let meter = Arc::new(Meter::new(parent.map(|parent| Arc::clone(&parent.meter))));
        self.journal.record(EventKind::TaskStarted { task: id, parent: parent.map(Task::id), kind, label: label.into(), object });
        self.lock_meters().insert(id, Arc::clone(&meter));
        Task { id, kind, meter, recorder: Arc::clone(self), open: true }
    }

    /// Writes a line that concerns the whole run.
    pub(crate) fn log(&self, level: LogLevel, message: impl Into<String>) {
        self.write_log(None, level, message.into());
    }

    /// Announces something that is about to exist outside the journal.
    ///
    /// # Errors
    /// See [`Journal::record_durable`]; nothing may be created then.
    pub(crate) async fn intend(&self, what: Intent) -> Result<u32, JournalError> {
        let intent = self.next_intent.fetch_add(1, Ordering::Relaxed);
        self.journal.record_durable(EventKind::Intent { intent, what }).await?;
        Ok(intent)
    }

    /// Says more of an intent: the identifier of what now exists.
    ///
    /// # Errors
    /// See [`Journal::record_durable`].
    pub(crate) async fn refine(&self, intent: u32, what: Intent) -> Result<(), JournalError> {
        self.journal.record_durable(EventKind::Intent { intent, what }).await
    }

    /// Says that nothing is left to clean of an intent.
    pub(crate) fn settle(&self, intent: u32) {
        self.journal.record(EventKind::Settled { intent });
    }

    /// As [`Recorder::settle`], and returns once it would survive a crash: from then on what was announced is finished.
    ///
    /// # Errors
    /// See [`Journal::record_durable`].
    pub(crate) async fn commit(&self, intent: u32) -> Result<(), JournalError> {
        self.journal.record_durable(EventKind::Settled { intent }).await
    }

    /// Records the first event of a run.
    pub(crate) async fn begin(&self) -> Result<(), JournalError> {
        self.journal.record_durable(EventKind::RunStarted { worker: std::process::id() }).await
    }

    /// Records the last event of a run.
    pub(crate) async fn end(&self, outcome: Outcome, error: Option<ErrorReport>) -> Result<(), JournalError> {
        self.journal.record_durable(EventKind::RunEnded { outcome, error, summary: self.summary() }).await
    }

    /// Counts a VM or restore point that is over.
    pub(crate) fn count(&self, outcome: Outcome) {
        match outcome {
            Outcome::Success => self.succeeded.fetch_add(1, Ordering::Relaxed),
            Outcome::Failure | Outcome::Interrupted => self.failed.fetch_add(1, Ordering::Relaxed),
            Outcome::Cancelled | Outcome::Skipped => 0,
        };
    }

    pub(crate) fn summary(&self) -> RunSummary {
        RunSummary {
            succeeded: self.succeeded.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            bytes_written: self.bytes_written.load(Ordering::Relaxed),
            warnings: self.warnings.load(Ordering::Relaxed),
        }
    }

    fn write_log(&self, task: Option<TaskId>, level: LogLevel, message: String) {
        if level >= LogLevel::Warning {
            self.warnings.fetch_add(1, Ordering::Relaxed);
        }
        self.journal.record(EventKind::Log { task, level, message });
    }

    fn write_meter(&self, task: TaskId, meter: &Meter) {
        if let Some(meter) = meter.take_news() {
            self.journal.record(EventKind::TaskProgress { task, meter });
        }
    }

    fn lock_meters(&self) -> std::sync::MutexGuard<'_, BTreeMap<TaskId, Arc<Meter>>> {
        self.meters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn write_meters(recorder: Weak<Recorder>) {
    let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(recorder) = recorder.upgrade() else { return };
        // Held while writing, so that no meter follows the end of its task.
        for (id, meter) in recorder.lock_meters().iter() {
            recorder.write_meter(*id, meter);
        }
    }
}

/// A part of the work, while it goes on. Dropped without [`Task::end`] it ends as a failure, so that no task stays
/// open whatever happens.
pub(crate) struct Task {
    id: TaskId,
    kind: TaskKind,
    meter: Arc<Meter>,
    recorder: Arc<Recorder>,
    open: bool,
}

impl Task {
    pub(crate) fn id(&self) -> TaskId {
        self.id
    }

    pub(crate) fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// Begins a part of this task.
    pub(crate) fn part(&self, kind: TaskKind, label: impl Into<String>, object: Option<String>) -> Task {
        self.recorder.task(Some(self), kind, label, object)
    }

    /// Changes the phase and writes it at once.
    pub(crate) fn phase(&self, phase: Phase) {
        if self.meter.set_phase(phase) {
            self.recorder.write_meter(self.id, &self.meter);
        }
    }

    pub(crate) fn info(&self, message: impl Into<String>) {
        self.recorder.write_log(Some(self.id), LogLevel::Info, message.into());
    }

    pub(crate) fn warn(&self, message: impl Into<String>) {
        self.recorder.write_log(Some(self.id), LogLevel::Warning, message.into());
    }

    pub(crate) fn error(&self, message: impl Into<String>) {
        self.recorder.write_log(Some(self.id), LogLevel::Error, message.into());
    }

    /// Ends the task.
    pub(crate) fn end(mut self, outcome: Outcome, error: Option<ErrorReport>, result: TaskResult) {
        self.close(outcome, error, result);
    }

    /// Ends the task with success.
    pub(crate) fn succeed(self, result: TaskResult) {
        self.end(Outcome::Success, None, result);
    }

    /// Ends the task as its result says.
    pub(crate) fn settle<T>(self, result: &Result<T, crate::Error>) {
        match result {
            Ok(_) => self.succeed(TaskResult::default()),
            Err(error) => self.fail(error),
        }
    }

    /// Ends the task with the outcome an error stands for.
    pub(crate) fn fail(self, error: &crate::Error) {
        match error.outcome() {
            Outcome::Cancelled => self.end(Outcome::Cancelled, None, TaskResult::default()),
            outcome => self.end(outcome, Some(error.report()), TaskResult::default()),
        }
    }

    fn close(&mut self, outcome: Outcome, error: Option<ErrorReport>, result: TaskResult) {
        self.open = false;
        self.meter.set_phase(Phase::Done);
        let mut meters = self.recorder.lock_meters();
        meters.remove(&self.id);
        self.recorder.write_meter(self.id, &self.meter);
        if matches!(self.kind, TaskKind::Disk | TaskKind::Xva) {
            let (done, written) = self.meter.totals();
            self.recorder.bytes.fetch_add(done, Ordering::Relaxed);
            self.recorder.bytes_written.fetch_add(written, Ordering::Relaxed);
        }
        self.recorder.journal.record(EventKind::TaskEnded { task: self.id, outcome, error, result });
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if self.open {
            let error = ErrorReport::new("ABANDONED", "this part of the run was given up when the part around it failed");
            self.close(Outcome::Failure, Some(error), TaskResult::default());
        }
    }
}
