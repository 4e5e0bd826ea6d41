//! A run as its journal tells it: a pure left fold of events, the same for a live run and for one of last year.

use std::collections::BTreeMap;

use api::{Event, EventKind, Intent, LogLine, Outcome, Phase, Run, RunDetail, RunKind, Task, TaskId, TaskKind, TransferMeter};
use engine::plan::OpenIntent;

/// A run with its tasks, its log, and what it has announced and not settled.
#[derive(Debug, Clone, PartialEq)]
pub struct Folded {
    detail: RunDetail,
    intents: BTreeMap<u32, Intent>,
    condemned: bool,
}

impl Folded {
    /// A run of which no event is known yet.
    pub fn new(id: impl Into<String>) -> Self {
        let run = Run {
            id: id.into(),
            kind: RunKind::Backup,
            job: None,
            label: String::new(),
            queued_at: 0,
            ended_at: None,
            outcome: None,
            cancelling: false,
            error: None,
            summary: None,
            cursor: 0,
        };
        Self { detail: RunDetail { run, tasks: Vec::new(), log: Vec::new() }, intents: BTreeMap::new(), condemned: false }
    }

    /// Takes the next event. One that is already in is left alone, so that a reader may hand over too many.
    pub fn apply(&mut self, event: &Event) {
        let run = &mut self.detail.run;
        if event.cursor <= run.cursor {
            return;
        }
        run.cursor = event.cursor;
        match &event.kind {
            EventKind::RunQueued { kind, job, label } => {
                run.kind = *kind;
                run.job.clone_from(job);
                run.label.clone_from(label);
                run.queued_at = event.at;
            }
            EventKind::RunStarted { .. } => {}
            EventKind::TaskStarted { task, parent, kind, label, object } => self.detail.tasks.push(Task {
                id: *task,
                parent: *parent,
                kind: *kind,
                label: label.clone(),
                object: object.clone(),
                started_at: event.at,
                ended_at: None,
                outcome: None,
                error: None,
                meter: TransferMeter::default(),
                result: Default::default(),
            }),
            EventKind::TaskProgress { task, meter } => {
                if let Some(task) = self.task(*task) {
                    task.meter = meter.clone();
                }
            }
            EventKind::Log { task, level, message } => {
                self.detail.log.push(LogLine { at: event.at, task: *task, level: *level, message: message.clone() });
            }
            EventKind::Intent { intent, what } => {
                self.condemned |= matches!(what, Intent::ObsoleteVm { .. });
                self.intents.insert(*intent, what.clone());
            }
            EventKind::Settled { intent } => {
                self.intents.remove(intent);
            }
            EventKind::TaskEnded { task, outcome, error, result } => {
                if let Some(task) = self.task(*task) {
                    close(task, event.at, *outcome);
                    task.error.clone_from(error);
                    task.result = result.clone();
                }
            }
            EventKind::RunEnded { outcome, error, summary } => {
                run.ended_at = Some(event.at);
                run.outcome = Some(*outcome);
                run.error.clone_from(error);
                run.summary = Some(summary.clone());
                // A worker that ends its run may have lost the ends of its tasks on the way.
                for task in self.detail.tasks.iter_mut().filter(|task| task.outcome.is_none()) {
                    close(task, event.at, *outcome);
                }
            }
        }
    }

    fn task(&mut self, id: TaskId) -> Option<&mut Task> {
        // Newest first: that is where progress happens.
        self.detail.tasks.iter_mut().rev().find(|task| task.id == id)
    }

    /// The run.
    pub fn run(&self) -> &Run {
        &self.detail.run
    }

    /// Run, tasks, log.
    pub fn detail(&self) -> &RunDetail {
        &self.detail
    }

    /// What a crash now would leave behind, oldest first.
    pub fn open_intents(&self) -> Vec<OpenIntent> {
        self.intents.iter().map(|(intent, what)| OpenIntent { intent: *intent, what: what.clone() }).collect()
    }

    /// Whether it was announced that a VM is to go, settled or not.
    pub fn condemned(&self) -> bool {
        self.condemned
    }

    /// Tasks that have not ended, children before their parents.
    pub fn open_tasks(&self) -> impl Iterator<Item = &Task> {
        self.detail.tasks.iter().rev().filter(|task| task.outcome.is_none())
    }

    /// Tasks that move data: the leaves, so that a VM and its disks are not counted twice.
    fn transfers(&self) -> impl Iterator<Item = &Task> {
        self.detail.tasks.iter().filter(|task| matches!(task.kind, TaskKind::Disk | TaskKind::Xva))
    }

    /// What the run is busy with: the phase of its newest open task.
    pub fn phase(&self) -> Phase {
        self.open_tasks().next().map_or(Phase::Queued, |task| task.meter.phase)
    }

    /// Transfers going on.
    pub fn running_transfers(&self) -> usize {
        self.transfers().filter(|task| task.outcome.is_none()).count()
    }

    /// Present speed over all its transfers, bytes per second.
    pub fn bytes_per_second(&self) -> u64 {
        self.transfers().filter(|task| task.outcome.is_none()).map(|task| task.meter.bytes_per_second).sum()
    }

    /// Bytes of content dealt with so far, and to deal with as far as known.
    pub fn progress(&self) -> (u64, u64) {
        self.transfers().fold((0, 0), |(done, total), task| {
            (done + task.meter.bytes_done, total + task.meter.bytes_total.unwrap_or(task.meter.bytes_done))
        })
    }

    /// Bytes read from sources and written to targets so far.
    pub fn moved(&self) -> (u64, u64) {
        self.transfers().fold((0, 0), |(read, written), task| (read + task.meter.bytes_read, written + task.meter.bytes_written))
    }
}

fn close(task: &mut Task, at: i64, outcome: Outcome) {
    task.ended_at = Some(at);
    task.outcome = Some(outcome);
    task.meter.bytes_per_second = 0;
    task.meter.waiting_for = None;
    if outcome == Outcome::Success {
        task.meter.phase = Phase::Done;
    }
}

/// A phase in a sentence: `interrupted while transferring`.
pub fn phase_words(phase: Phase) -> &'static str {
    match phase {
        Phase::Queued => "queued",
        Phase::Preparing => "preparing",
        Phase::Transferring => "transferring",
        Phase::Committing => "committing",
        Phase::Merging => "merging",
        Phase::Verifying => "verifying",
        Phase::Cleaning => "cleaning",
        Phase::Done => "ending",
    }
}

#[cfg(test)]
mod tests {
    use api::{LogLevel, RunSummary, TaskResult};
    use proptest::prelude::*;

    use super::*;

    fn kinds() -> impl Strategy<Value = EventKind> {
        let task = 0u32..4;
        prop_oneof![
            (task.clone(), any::<bool>()).prop_map(|(task, disk)| EventKind::TaskStarted {
                task,
                parent: task.checked_sub(1),
                kind: if disk { TaskKind::Disk } else { TaskKind::Vm },
                label: format!("task {task}"),
                object: None,
            }),
            (task.clone(), 0u64..1 << 40, 0u64..1 << 30).prop_map(|(task, bytes_done, bytes_per_second)| {
                let meter = TransferMeter { phase: Phase::Transferring, bytes_done, bytes_per_second, ..Default::default() };
                EventKind::TaskProgress { task, meter }
            }),
            task.clone().prop_map(|task| EventKind::Log { task: Some(task), level: LogLevel::Info, message: "m".into() }),
            task.clone().prop_map(|intent| EventKind::Intent {
                intent,
                what: Intent::XapiTask { pool: "p".into(), task: format!("OpaqueRef:{intent}") },
            }),
            task.clone().prop_map(|intent| EventKind::Settled { intent }),
            task.prop_map(|task| EventKind::TaskEnded {
                task,
                outcome: Outcome::Success,
                error: None,
                result: TaskResult::default(),
            }),
            Just(EventKind::RunEnded { outcome: Outcome::Failure, error: None, summary: RunSummary::default() }),
        ]
    }

    fn journal(kinds: Vec<EventKind>) -> Vec<Event> {
        kinds.into_iter().zip(1..).map(|(kind, cursor)| Event { cursor, at: cursor as i64 * 7, kind }).collect()
    }

    proptest! {
        /// A reader that was cut anywhere, and gets some events twice after it, ends where an uncut one does.
        #[test]
        fn a_cut_changes_nothing(kinds in prop::collection::vec(kinds(), 0..40), cut in 0usize..40, again in 0usize..40) {
            let events = journal(kinds);
            let cut = cut.min(events.len());
            let mut whole = Folded::new("r");
            events.iter().for_each(|event| whole.apply(event));
            let mut parts = Folded::new("r");
            events[..cut].iter().for_each(|event| parts.apply(event));
            events[cut.saturating_sub(again)..].iter().for_each(|event| parts.apply(event));
            prop_assert_eq!(&parts, &whole);
            prop_assert_eq!(whole.run().cursor, events.len() as u64);
        }
    }

    #[test]
    fn an_intent_with_the_same_number_replaces_and_a_settled_one_is_gone() {
        let snapshot = |uuid: Option<&str>| Intent::Snapshot {
            pool: "p".into(),
            vm: "v".into(),
            job: "j".into(),
            snapshot: uuid.map(Into::into),
        };
        let events = journal(vec![
            EventKind::Intent { intent: 1, what: snapshot(None) },
            EventKind::Intent { intent: 2, what: snapshot(None) },
            EventKind::Intent { intent: 1, what: snapshot(Some("s")) },
            EventKind::Settled { intent: 2 },
        ]);
        let mut folded = Folded::new("r");
        events.iter().for_each(|event| folded.apply(event));
        assert_eq!(folded.open_intents(), [OpenIntent { intent: 1, what: snapshot(Some("s")) }]);
    }

    #[test]
    fn no_task_outlives_its_run() {
        let started = EventKind::TaskStarted { task: 1, parent: None, kind: TaskKind::Vm, label: String::new(), object: None };
        let ended = EventKind::RunEnded { outcome: Outcome::Failure, error: None, summary: RunSummary::default() };
        let mut folded = Folded::new("r");
        journal(vec![started, ended]).iter().for_each(|event| folded.apply(event));
        assert_eq!(folded.open_tasks().count(), 0);
        assert_eq!(folded.detail().tasks[0].outcome, Some(Outcome::Failure));
    }

    #[test]
    fn a_vm_and_its_disk_are_not_counted_twice() {
        let started = |task, kind| EventKind::TaskStarted { task, parent: None, kind, label: String::new(), object: None };
        let meter = TransferMeter { bytes_per_second: 10, bytes_done: 5, phase: Phase::Merging, ..Default::default() };
        let events = journal(vec![
            started(1, TaskKind::Vm),
            started(2, TaskKind::Disk),
            EventKind::TaskProgress { task: 1, meter: meter.clone() },
            EventKind::TaskProgress { task: 2, meter },
        ]);
        let mut folded = Folded::new("r");
        events.iter().for_each(|event| folded.apply(event));
        assert_eq!((folded.bytes_per_second(), folded.progress(), folded.phase()), (10, (5, 5), Phase::Merging));
    }
}
