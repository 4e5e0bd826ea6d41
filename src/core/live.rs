//! A run as its journal tells it, event by event.

use std::collections::VecDeque;

use api::{ErrorReport, Event, EventKind, LogLine, Outcome, Phase, RunDetail, RunKind, RunSummary, Task, TaskId, TaskKind};

/// Below so many milliseconds a difference of clocks is the way of the event.
const WAY: i64 = 5_000;
/// Samples of speed kept for the sparkline.
const SAMPLES: usize = 60;
/// Lines of log kept.
const LOG: usize = 2_000;
/// After so many milliseconds without a byte a moving task counts as stalled.
pub const STALL: i64 = 60_000;

/// A task with what only a watcher knows.
#[derive(Debug, Clone, PartialEq)]
pub struct LiveTask {
    /// The task.
    pub task: Task,
    /// Bytes per second, oldest first.
    pub samples: VecDeque<u64>,
    /// When news that its meter moved last came, by the console's clock.
    pub moved_at: i64,
}

/// A run being followed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LiveRun {
    /// Cursor of the last event applied.
    pub cursor: u64,
    /// What it does.
    pub kind: Option<RunKind>,
    /// Name of the job or VM.
    pub label: String,
    /// When it was asked for.
    pub queued_at: i64,
    /// When a worker began.
    pub started_at: Option<i64>,
    /// Tasks in the order they began.
    pub tasks: Vec<LiveTask>,
    /// Newest lines of the log.
    pub log: VecDeque<LogLine>,
    /// When it ended.
    pub ended_at: Option<i64>,
    /// How.
    pub outcome: Option<Outcome>,
    /// Why.
    pub error: Option<ErrorReport>,
    /// Totals.
    pub summary: RunSummary,
    /// Sum of speeds, oldest first.
    pub samples: VecDeque<u64>,
    sampled_at: i64,
    /// How far the console's clock is ahead of the daemon's, with the quickest event's way, milliseconds.
    ahead: Option<i64>,
}

/// Sums over the transfers below something.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Totals {
    /// Bytes dealt with.
    pub done: u64,
    /// Bytes to deal with, as far as known.
    pub total: u64,
    /// Whether every part knows its total.
    pub complete: bool,
    /// Bytes per second now.
    pub speed: u64,
}

impl Totals {
    /// Milliseconds to the end at the mean of the last samples; none while unknown.
    pub fn eta(&self, samples: &VecDeque<u64>) -> Option<i64> {
        let recent: Vec<u64> = samples.iter().rev().take(20).copied().filter(|speed| *speed > 0).collect();
        if !self.complete || recent.is_empty() || self.total < self.done {
            return None;
        }
        let mean = recent.iter().map(|speed| u128::from(*speed)).sum::<u128>() / recent.len() as u128;
        i64::try_from(u128::from(self.total - self.done) * 1000 / mean.max(1)).ok()
    }
}

fn push(samples: &mut VecDeque<u64>, value: u64) {
    if samples.len() == SAMPLES {
        samples.pop_front();
    }
    samples.push_back(value);
}

/// Kinds whose bytes count: the others only contain them.
fn moves_bytes(kind: TaskKind) -> bool {
    matches!(kind, TaskKind::Disk | TaskKind::Xva)
}

impl LiveRun {
    /// Whether its end is still to come, of a run something is known of.
    pub fn open(&self) -> bool {
        self.cursor > 0 && self.ended_at.is_none()
    }

    /// A time of the console's clock (milliseconds since the Unix epoch) by the clock of the daemon, as far as its
    /// events betray it: what its times are to be compared with.
    pub fn by_its_clock(&self, now: i64) -> i64 {
        now - self.ahead.filter(|ahead| ahead.abs() >= WAY).unwrap_or(0)
    }

    /// Applies one event that came at `now`; answers false for one already known.
    pub fn apply(&mut self, event: Event, now: i64) -> bool {
        if event.cursor <= self.cursor {
            return false;
        }
        self.cursor = event.cursor;
        let at = event.at;
        // Events of the past come late: the one that took least time tells the clocks' difference best.
        self.ahead = Some(self.ahead.map_or(now.saturating_sub(at), |ahead| ahead.min(now.saturating_sub(at))));
        match event.kind {
            EventKind::RunQueued { kind, label, .. } => {
                self.kind = Some(kind);
                self.label = label;
                self.queued_at = at;
            }
            EventKind::RunStarted { .. } => self.started_at = Some(at),
            EventKind::TaskStarted { task, parent, kind, label, object } => {
                let task = Task {
                    id: task,
                    parent,
                    kind,
                    label,
                    object,
                    started_at: at,
                    ended_at: None,
                    outcome: None,
                    error: None,
                    meter: Default::default(),
                    result: Default::default(),
                };
                self.tasks.push(LiveTask { task, samples: VecDeque::new(), moved_at: now });
            }
            EventKind::TaskProgress { task, meter } => {
                if let Some(live) = self.task_mut(task) {
                    if meter.bytes_done != live.task.meter.bytes_done || meter.phase != live.task.meter.phase {
                        live.moved_at = now;
                    }
                    push(&mut live.samples, meter.bytes_per_second);
                    live.task.meter = meter;
                }
                if at - self.sampled_at >= 900 {
                    self.sampled_at = at;
                    let speed = self.totals().speed;
                    push(&mut self.samples, speed);
                }
            }
            EventKind::Log { task, level, message } => {
                if self.log.len() == LOG {
                    self.log.pop_front();
                }
                self.log.push_back(LogLine { at, task, level, message });
            }
            EventKind::TaskEnded { task, outcome, error, result } => {
                if let Some(LiveTask { task, .. }) = self.task_mut(task) {
                    task.ended_at = Some(at);
                    task.outcome = Some(outcome);
                    task.error = error;
                    task.result = result;
                    task.meter.bytes_per_second = 0;
                    task.meter.phase = Phase::Done;
                    task.meter.waiting_for = None;
                }
            }
            EventKind::RunEnded { outcome, error, summary } => {
                self.ended_at = Some(at);
                self.outcome = Some(outcome);
                self.error = error;
                self.summary = summary;
            }
            EventKind::Intent { .. } | EventKind::Settled { .. } => {}
        }
        true
    }

    /// A run as `run.get` answered it at `now`.
    pub fn from_detail(detail: RunDetail, now: i64) -> Self {
        let run = detail.run;
        Self {
            cursor: run.cursor,
            kind: Some(run.kind),
            label: run.label,
            queued_at: run.queued_at,
            started_at: Some(run.queued_at),
            tasks: detail.tasks.into_iter().map(|task| LiveTask { moved_at: now, samples: VecDeque::new(), task }).collect(),
            log: detail.log.into(),
            ended_at: run.ended_at,
            outcome: run.outcome,
            error: run.error,
            summary: run.summary.unwrap_or_default(),
            ..Self::default()
        }
    }

    fn task_mut(&mut self, id: TaskId) -> Option<&mut LiveTask> {
        self.tasks.iter_mut().rev().find(|live| live.task.id == id)
    }

    /// What the end of a run is told from, without its tasks.
    pub fn head(&self) -> Self {
        Self {
            label: self.label.clone(),
            outcome: self.outcome,
            error: self.error.clone(),
            summary: self.summary.clone(),
            ..Self::default()
        }
    }

    /// Sums over all transfers of the run.
    pub fn totals(&self) -> Totals {
        sum(self.tasks.iter().filter(|live| moves_bytes(live.task.kind)))
    }

    /// Sums over a task and everything below it.
    pub fn totals_of(&self, index: usize) -> Totals {
        let Some(live) = self.tasks.get(index) else { return Totals::default() };
        let mut inside = vec![live.task.id];
        let below: Vec<&LiveTask> = self.tasks[index + 1..]
            .iter()
            .filter(|other| {
                let is_below = other.task.parent.is_some_and(|parent| inside.contains(&parent));
                if is_below {
                    inside.push(other.task.id);
                }
                is_below && moves_bytes(other.task.kind)
            })
            .collect();
        if below.is_empty() { sum(std::iter::once(live)) } else { sum(below.into_iter()) }
    }

    /// Tasks as a tree: index into `tasks` and depth, children below their parents.
    pub fn tree(&self) -> Vec<(usize, u16)> {
        let mut out = Vec::with_capacity(self.tasks.len());
        // Parents come before children in the journal, so one pass from the back groups children by parent.
        let mut children: std::collections::HashMap<Option<TaskId>, Vec<usize>> = std::collections::HashMap::new();
        let known: std::collections::HashSet<TaskId> = self.tasks.iter().map(|live| live.task.id).collect();
        for (index, live) in self.tasks.iter().enumerate().rev() {
            let parent = live.task.parent.filter(|parent| known.contains(parent) && *parent != live.task.id);
            children.entry(parent).or_default().push(index);
        }
        let mut stack: Vec<(usize, u16)> = Vec::new();
        if let Some(roots) = children.remove(&None) {
            stack.extend(roots.into_iter().map(|index| (index, 0)));
        }
        while let Some((index, depth)) = stack.pop() {
            out.push((index, depth));
            if let Some(below) = children.remove(&Some(self.tasks[index].task.id)) {
                stack.extend(below.into_iter().map(|index| (index, depth.saturating_add(1))));
            }
        }
        out
    }

    /// The task in which a run that has ended went wrong: the first that failed, or the innermost of its parts that did.
    pub fn failed_task(&self) -> Option<TaskId> {
        self.ended_at?;
        let mut found: Option<(TaskId, u16, bool)> = None;
        for (index, depth) in self.tree() {
            if found.is_some_and(|(_, above, _)| depth <= above) {
                break;
            }
            let task = &self.tasks[index].task;
            // The whole of a failed part failed too, but only one of them may say why.
            let tells = task.error.is_some() || !found.is_some_and(|(_, _, told)| told);
            if matches!(task.outcome, Some(Outcome::Failure | Outcome::Interrupted)) && tells {
                found = Some((task.id, depth, task.error.is_some()));
            }
        }
        found.map(|(id, ..)| id)
    }

    /// Since when nothing moved, in milliseconds, where something should.
    pub fn stalled(&self, live: &LiveTask, now: i64) -> Option<i64> {
        let idle = now - live.moved_at;
        let moving = matches!(live.task.meter.phase, Phase::Transferring | Phase::Merging | Phase::Verifying);
        (live.task.ended_at.is_none() && moving && idle >= STALL).then_some(idle)
    }
}

fn sum<'a>(tasks: impl Iterator<Item = &'a LiveTask>) -> Totals {
    let mut totals = Totals { complete: true, ..Totals::default() };
    let mut any = false;
    for LiveTask { task, .. } in tasks {
        any = true;
        totals.done = totals.done.saturating_add(task.meter.bytes_done);
        match task.meter.bytes_total {
            Some(bytes) => totals.total = totals.total.saturating_add(bytes),
            None if task.ended_at.is_some() => totals.total = totals.total.saturating_add(task.meter.bytes_done),
            None => totals.complete = false,
        }
        if task.ended_at.is_none() {
            totals.speed = totals.speed.saturating_add(task.meter.bytes_per_second);
        }
    }
    totals.complete &= any;
    totals
}

#[cfg(test)]
mod tests {
    use api::TransferMeter;

    use super::*;

    fn event(cursor: u64, kind: EventKind) -> Event {
        Event { cursor, at: cursor as i64 * 1000, kind }
    }

    fn started(task: TaskId, parent: Option<TaskId>, kind: TaskKind) -> EventKind {
        EventKind::TaskStarted { task, parent, kind, label: format!("t{task}"), object: None }
    }

    #[test]
    fn a_repeated_event_changes_nothing() {
        let mut run = LiveRun::default();
        assert!(run.apply(event(1, started(1, None, TaskKind::Vm)), 0));
        let before = run.clone();
        assert!(!run.apply(event(1, started(2, None, TaskKind::Vm)), 0));
        assert_eq!(run, before);
    }

    #[test]
    fn sums_go_over_disks_and_the_tree_keeps_children_below_parents() {
        let mut run = LiveRun::default();
        for (cursor, kind) in [
            started(1, None, TaskKind::Vm),
            started(2, None, TaskKind::Vm),
            started(3, Some(1), TaskKind::Disk),
            started(4, Some(2), TaskKind::Disk),
            started(5, Some(1), TaskKind::Disk),
        ]
        .into_iter()
        .enumerate()
        {
            run.apply(event(cursor as u64 + 1, kind), 0);
        }
        let meter = |done, total| TransferMeter {
            bytes_done: done,
            bytes_total: Some(total),
            bytes_per_second: 10,
            ..Default::default()
        };
        run.apply(event(6, EventKind::TaskProgress { task: 3, meter: meter(5, 10) }), 0);
        run.apply(event(7, EventKind::TaskProgress { task: 5, meter: meter(1, 30) }), 0);
        let order: Vec<(TaskId, u16)> = run.tree().into_iter().map(|(i, depth)| (run.tasks[i].task.id, depth)).collect();
        assert_eq!(order, [(1, 0), (3, 1), (5, 1), (2, 0), (4, 1)]);
        let totals = run.totals_of(0);
        assert_eq!((totals.done, totals.total, totals.speed, totals.complete), (6, 40, 20, true));
        assert!(!run.totals().complete, "disk 4 does not know its size yet");
        assert_eq!(totals.eta(&[10, 30].into()), Some(1_700));
    }

    #[test]
    fn a_cycle_of_parents_does_not_hang() {
        let mut run = LiveRun::default();
        run.apply(event(1, started(1, Some(2), TaskKind::Vm)), 0);
        run.apply(event(2, started(2, Some(1), TaskKind::Vm)), 0);
        assert!(run.tree().len() <= 2);
    }

    #[test]
    fn a_daemon_with_a_wrong_clock_stalls_nothing_and_ages_nothing() {
        const HOUR: i64 = 3_600_000;
        let mut run = LiveRun::default();
        run.apply(event(1, started(1, None, TaskKind::Disk)), HOUR + 1_500);
        let meter = TransferMeter { phase: Phase::Transferring, bytes_done: 1, ..Default::default() };
        run.apply(event(2, EventKind::TaskProgress { task: 1, meter }), HOUR + 2_000);
        assert_eq!(run.stalled(&run.tasks[0], HOUR + 3_000), None);
        assert_eq!(run.stalled(&run.tasks[0], HOUR + 2_000 + STALL), Some(STALL));
        assert_eq!(run.by_its_clock(HOUR + 3_000), 3_000);
    }
}
