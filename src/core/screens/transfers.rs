//! What moves now: per run, VM and disk. Written for the person who must decide: wait, leave, or call.

use std::borrow::Cow;
use std::collections::VecDeque;

use api::{Outcome, Phase, Run, RunKind, TaskKind, Wait};

use super::{error_lines, fleet_id, runs};
use crate::core::format::{count, moment, percent, span};
use crate::core::live::{LiveRun, LiveTask, Totals};
use crate::core::message::Connection;
use crate::core::rich::{Glyph, Line, Role, Span, pair, pair_line};
use crate::core::state::{Follow, State};
use crate::core::store::Proxy;
use crate::core::table::{Column, Rows, SortKey};

const COLUMNS: &[Column] = &[
    Column::new("What", 14, 44, 0),
    Column::new("State", 12, 18, 0),
    Column::new("Progress", 11, 11, 1),
    Column::new("Moved", 19, 23, 4).right(),
    Column::new("Speed", 11, 12, 0).right(),
    Column::new("", 8, 16, 2),
    Column::new("Ends in", 9, 11, 3).right(),
    Column::new("Waits for", 11, 80, 1),
];
/// Columns of a bar in the list.
const BAR: u16 = 6;
/// Columns of a line of speeds.
const SPARK: u16 = 24;
/// Runs shown after their end.
const ENDED: usize = 10;

/// A row: a run, or a task of it.
#[derive(Debug, Clone, Copy)]
struct Row<'a> {
    proxy: &'a Proxy,
    id: &'a str,
    listed: Option<&'a Run>,
    live: Option<&'a LiveRun>,
    task: Option<(usize, u16)>,
}

/// Rows of the screen.
pub struct TransferRows<'a> {
    state: &'a State,
    rows: Vec<Row<'a>>,
}

fn given_up(state: &State, proxy: &Proxy, run: &str) -> bool {
    matches!(state.follows.get(&(proxy.name().to_owned(), run.to_owned())), Some(Follow::Failed(_)))
}

/// Whether a task is worth a line while its run goes on.
fn worth_showing(live: &LiveTask) -> bool {
    let task = &live.task;
    match task.kind {
        TaskKind::Vm | TaskKind::Restore | TaskKind::Verify => true,
        TaskKind::Disk | TaskKind::Xva => task.outcome != Some(Outcome::Success),
        _ => task.ended_at.is_none() || task.outcome == Some(Outcome::Failure),
    }
}

impl<'a> TransferRows<'a> {
    /// Rows of the runs that go on, then of those followed to their end.
    pub fn new(state: &'a State) -> Self {
        let mut rows = Vec::new();
        for proxy in &state.proxies {
            for run in proxy.running() {
                Self::push(&mut rows, proxy, &run.id, Some(run), proxy.live.get(&run.id));
            }
        }
        let mut ended = Vec::new();
        for proxy in &state.proxies {
            for (id, live) in proxy.live.iter().filter(|(id, _)| !proxy.running().iter().any(|run| run.id == **id)) {
                match live.ended_at {
                    Some(at) if at >= state.started_at => ended.push((at, proxy, id, live)),
                    // Its last events are on their way, unless the proxy does not tell them.
                    None if live.open() && !given_up(state, proxy, id) => {
                        Self::push(&mut rows, proxy, id, None, Some(live));
                    }
                    _ => {}
                }
            }
        }
        ended.sort_by_key(|(at, ..)| std::cmp::Reverse(*at));
        for (_, proxy, id, live) in ended.into_iter().take(ENDED) {
            Self::push(&mut rows, proxy, id, None, Some(live));
        }
        Self { state, rows }
    }

    fn push(rows: &mut Vec<Row<'a>>, proxy: &'a Proxy, id: &'a str, listed: Option<&'a Run>, live: Option<&'a LiveRun>) {
        rows.push(Row { proxy, id, listed, live, task: None });
        // A run that ended is one line: its tasks are a key away.
        if let Some(live) = live.filter(|live| live.ended_at.is_none()) {
            for (index, depth) in live.tree() {
                if worth_showing(&live.tasks[index]) {
                    rows.push(Row { proxy, id, listed, live: Some(live), task: Some((index, depth)) });
                }
            }
        }
    }

    fn task(&self, row: &Row<'a>) -> Option<&'a LiveTask> {
        row.live.and_then(|live| live.tasks.get(row.task?.0))
    }

    fn totals(&self, row: &Row<'a>) -> Option<Totals> {
        let live = row.live?;
        Some(row.task.map_or_else(|| live.totals(), |(index, _)| live.totals_of(index)))
    }
}

/// The proxy and run at a row.
pub fn at(state: &State, row: usize) -> Option<(String, String, String)> {
    let rows = TransferRows::new(state);
    let row = rows.rows.get(row)?;
    let (kind, label) = title(row);
    Some((row.proxy.name().to_owned(), row.id.to_owned(), runs::name(kind, label)))
}

/// What a run does and its label, from the freshest source that has them.
fn title<'a>(row: &Row<'a>) -> (Option<RunKind>, &'a str) {
    let followed = row.live.map(|live| (live.kind, live.label.as_str())).filter(|(_, label)| !label.is_empty());
    followed.or(row.listed.map(|run| (Some(run.kind), run.label.as_str()))).unwrap_or((None, row.id))
}

/// The sort of work in words.
pub fn kind(kind: TaskKind) -> &'static str {
    match kind {
        TaskKind::Vm => "VM",
        TaskKind::Snapshot => "snapshot",
        TaskKind::Disk => "disk",
        TaskKind::Xva => "XVA",
        TaskKind::Retention => "retention",
        TaskKind::Merge => "merge",
        TaskKind::Clean => "clean-up",
        TaskKind::Restore => "restore",
        TaskKind::Verify => "verify",
        TaskKind::Recover => "recovery",
        TaskKind::Queue => "turn",
        TaskKind::Step => "step",
        TaskKind::Unknown => "task",
    }
}

/// The phase as symbol and word.
pub fn phase(live: &LiveRun, task: &LiveTask, now: i64) -> Line {
    if let Some(outcome) = task.task.outcome {
        return super::outcome(Some(outcome));
    }
    if let Some(idle) = live.stalled(task, now) {
        return Line::state(Glyph::Warn, Role::Warn, format!("stalled {}", span(idle)));
    }
    let (glyph, role, word) = match task.task.meter.phase {
        Phase::Queued => (Glyph::Waiting, Role::Muted, "queued"),
        Phase::Preparing => (Glyph::Running, Role::Running, "preparing"),
        Phase::Transferring => (Glyph::Running, Role::Running, "moving"),
        Phase::Committing => (Glyph::Running, Role::Running, "committing"),
        Phase::Merging => (Glyph::Running, Role::Running, "merging"),
        Phase::Verifying => (Glyph::Running, Role::Running, "verifying"),
        Phase::Cleaning => (Glyph::Running, Role::Running, "cleaning"),
        Phase::Done => (Glyph::Ok, Role::Ok, "done"),
    };
    Line::state(glyph, role, word)
}

/// Where the time went, in words: `source 71 %, target 20 %`.
pub fn waits(waits: &api::Waits) -> Option<String> {
    let all: u64 = waits.values().sum();
    if all == 0 {
        return None;
    }
    let mut parts: Vec<(&Wait, &u64)> = waits.iter().filter(|(_, ms)| **ms * 100 / all > 0).collect();
    parts.sort_by_key(|(_, ms)| std::cmp::Reverse(**ms));
    let word = |wait: &Wait| match wait {
        Wait::Source => "source",
        Wait::Cpu => "proxy CPU",
        Wait::Target => "target",
        Wait::Limit => "limit",
        Wait::Lock => "lock",
        Wait::XapiTask => "XAPI task",
    };
    Some(parts.iter().map(|(wait, ms)| format!("{} {}%", word(wait), **ms * 100 / all)).collect::<Vec<_>>().join(", "))
}

/// A bar with its percentage.
pub fn bar(totals: &Totals, width: u16) -> Line {
    if totals.total == 0 || !totals.complete {
        return Line::new();
    }
    let share = (totals.done as f64 / totals.total as f64).clamp(0.0, 1.0);
    Line::new()
        .with(Span::Bar(share, width, Role::Running))
        .and(Role::Text, format!(" {:>3}%", percent(totals.done, totals.total)))
}

/// Speeds as a line, oldest first.
pub fn spark(samples: &VecDeque<u64>) -> Line {
    Line(vec![Span::Spark(samples.iter().copied().collect(), SPARK, Role::Accent)])
}

/// `1.2 GiB of 4.0 GiB`.
pub fn moved(totals: &Totals) -> String {
    match (totals.done, totals.total, totals.complete) {
        (0, 0, _) => String::new(),
        (done, total, true) => format!("{} of {}", api::format_bytes(done), api::format_bytes(total)),
        (done, ..) => api::format_bytes(done),
    }
}

impl Rows for TransferRows<'_> {
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn len(&self) -> usize {
        self.rows.len()
    }

    fn id(&self, row: usize) -> Cow<'_, str> {
        let row = &self.rows[row];
        let run = fleet_id(row.proxy.name(), row.id);
        match self.task(row) {
            Some(task) => format!("{run}\u{1f}{}", task.task.id).into(),
            None => run.into(),
        }
    }

    fn cell(&self, row: usize, column: usize) -> Line {
        let row = &self.rows[row];
        let task = self.task(row);
        let ended = row.live.is_some_and(|live| live.ended_at.is_some());
        match column {
            0 => match (task, row.task) {
                (Some(task), Some((_, depth))) => Line::of(Role::Muted, " ".repeat(usize::from(depth.min(6)) * 2))
                    .with(Span::Glyph(Glyph::Branch, Role::Border))
                    .and(Role::Muted, format!(" {} ", kind(task.task.kind)))
                    .and(Role::Text, &task.task.label),
                _ => {
                    let (kind, label) = title(row);
                    runs::name_line(kind, Role::Accent, label).and(Role::Muted, format!(" on {}", row.proxy.name()))
                }
            },
            1 => match (task, row.live) {
                (Some(task), Some(live)) => phase(live, task, row.proxy.as_of(self.state.now)),
                (_, Some(live)) if ended => super::outcome(live.outcome),
                _ if row.listed.is_some_and(|run| run.cancelling) => Line::state(Glyph::Warn, Role::Warn, "cancelling"),
                _ => Line::state(Glyph::Running, Role::Running, "running"),
            },
            2 if !ended => self.totals(row).map_or_else(Line::new, |totals| bar(&totals, BAR)),
            3 => Line::text(match row.live {
                Some(live) if ended && live.summary.bytes > 0 => api::format_bytes(live.summary.bytes),
                _ => self.totals(row).map_or_else(String::new, |totals| moved(&totals)),
            }),
            4 => match self.totals(row).filter(|totals| totals.speed > 0 && !ended) {
                Some(totals) => Line::of(Role::Running, api::format_rate(totals.speed)),
                None => Line::new(),
            },
            5 if !ended => match task.map(|task| &task.samples).or(row.live.map(|live| &live.samples)) {
                Some(samples) if samples.len() > 1 => spark(samples),
                _ => Line::new(),
            },
            6 => Line::text(match (task, row.live) {
                (Some(task), _) if task.task.ended_at.is_some() => String::new(),
                (Some(task), _) => self.totals(row).and_then(|totals| totals.eta(&task.samples)).map_or_else(String::new, span),
                (None, Some(live)) if !ended => live.totals().eta(&live.samples).map_or_else(String::new, span),
                _ => String::new(),
            }),
            7 => match task {
                Some(task) => match (&task.task.error, &task.task.meter.waiting_for) {
                    (Some(error), _) => Line::of(Role::Error, &error.message),
                    (None, Some(wait)) => Line::of(Role::Muted, wait),
                    _ => Line::new(),
                },
                None => match row.live.and_then(|live| live.error.as_ref()) {
                    Some(error) => Line::of(Role::Error, &error.message),
                    None => Line::new(),
                },
            },
            _ => Line::new(),
        }
    }

    fn sort_key(&self, row: usize, column: usize) -> SortKey {
        match column {
            3 => SortKey::amount(self.totals(&self.rows[row]).map_or(0, |totals| totals.done)),
            4 => SortKey::amount(self.totals(&self.rows[row]).map_or(0, |totals| totals.speed)),
            _ => SortKey::text(&self.cell(row, column).plain()),
        }
    }

    fn haystack(&self, row: usize) -> String {
        let row = &self.rows[row];
        let task = self.task(row).map_or("", |task| &task.task.label);
        let (kind, label) = title(row);
        format!("{} {} {task}", runs::name(kind, label), row.proxy.name())
    }

    fn stale(&self, row: usize) -> bool {
        !self.rows[row].proxy.live()
    }
}

/// What a glance must tell: is it moving, how fast, when does it end.
pub fn summary(state: &State) -> Line {
    let mut runs = 0;
    let mut speed: u64 = 0;
    let mut ends: Option<i64> = Some(0);
    let mut stalled = 0;
    for proxy in state.proxies.iter().filter(|proxy| proxy.live()) {
        for run in proxy.running() {
            runs += 1;
            match proxy.live.get(&run.id) {
                Some(live) => {
                    let totals = live.totals();
                    speed = speed.saturating_add(totals.speed);
                    ends = ends.zip(totals.eta(&live.samples)).map(|(a, b)| a.max(b));
                    stalled += live.tasks.iter().filter(|task| live.stalled(task, state.now).is_some()).count();
                }
                None => ends = None,
            }
        }
    }
    let absent: Vec<String> = state.proxies.iter().filter_map(|proxy| last_known(state, proxy)).collect();
    if runs == 0 {
        if absent.is_empty() {
            return Line::state(Glyph::Ok, Role::Muted, "Nothing is moving");
        }
        // What is not known is not said: a proxy that is away may move a lot.
        let connecting = state.proxies.iter().all(|proxy| proxy.live() || proxy.connection == Connection::Connecting);
        let (glyph, role) = if connecting { (Glyph::Waiting, Role::Muted) } else { (Glyph::Warn, Role::Warn) };
        let line = Line::state(glyph, role, absent.join("; "));
        let live: Vec<&str> = state.proxies.iter().filter(|proxy| proxy.live()).map(Proxy::name).collect();
        return if live.is_empty() { line } else { line.and(Role::Muted, format!("; {} idle", live.join(", "))) };
    }
    let mut line = if stalled > 0 {
        Line::state(Glyph::Warn, Role::Warn, format!("STALLED {}", count(stalled, "task")))
    } else if speed > 0 {
        Line::state(Glyph::Running, Role::Running, format!("MOVING {}", api::format_rate(speed)))
    } else {
        Line::state(Glyph::Running, Role::Running, "WORKING")
    };
    line = line.and(Role::Text, format!("  {}", count(runs, "run")));
    if let Some(ends) = ends.filter(|ends| *ends > 0) {
        line = line.and(Role::Text, format!(", ends {}", moment(state.now + ends, state.now, &state.settings.zone)));
        line = line.and(Role::Muted, format!(" (in {})", span(ends)));
    }
    if absent.is_empty() { line } else { line.and(Role::Warn, format!("; {}", absent.join("; "))) }
}

/// What is left to say of a proxy that is not live; none of one that is.
fn last_known(state: &State, proxy: &Proxy) -> Option<String> {
    let absence = super::absence(state, proxy)?;
    Some(match (&proxy.status, proxy.running().len()) {
        (None, _) => absence,
        (Some(_), 0) => format!("{absence}; last known: nothing moving"),
        (Some(_), runs) => format!("{absence}; last known: {} moving", count(runs, "run")),
    })
}

/// Lines about one task of a run, whose data is of `now`.
pub fn task_details(live: &LiveRun, index: usize, now: i64) -> Vec<Line> {
    let Some(task) = live.tasks.get(index) else { return Vec::new() };
    let meter = &task.task.meter;
    let totals = live.totals_of(index);
    let mut lines = vec![pair(kind(task.task.kind), &task.task.label), pair_line("State", phase(live, task, now))];
    // What a small screen must show comes first: what went wrong; how far, how fast, and what holds it up.
    if let Some(error) = &task.task.error {
        lines.extend(error_lines(error));
    }
    if totals.total > 0 || totals.done > 0 {
        lines.push(pair("Moved", moved(&totals)));
    }
    if task.task.ended_at.is_none() {
        lines.extend(speed_line(totals.speed, &task.samples));
    }
    if let Some(wait) = &meter.waiting_for {
        lines.push(pair("Waits for", wait));
    }
    if let Some(eta) = totals.eta(&task.samples).filter(|_| task.task.ended_at.is_none()) {
        lines.push(pair("Ends in", span(eta)));
    }
    if totals.total > 0 || totals.done > 0 {
        lines.push(pair_line("Progress", bar(&totals, 20)));
    }
    let until = task.task.ended_at.unwrap_or(live.by_its_clock(now));
    lines.push(pair("Took", span(until - task.task.started_at)));
    if meter.bytes_read > 0 || meter.bytes_written > 0 {
        lines.push(pair("Read", api::format_bytes(meter.bytes_read)));
        lines.push(pair("Written", api::format_bytes(meter.bytes_written)));
    }
    if let Some(waits) = waits(&meter.waits) {
        lines.push(pair("Time went to", waits));
    }
    let result = &task.task.result;
    if let Some(path) = &result.path {
        lines.push(pair("Data path", path));
    }
    if let Some(delta) = result.delta {
        lines.push(pair("Written as", if delta { "delta" } else { "key (full) disk" }));
    }
    if let Some(point) = &result.restore_point {
        lines.push(pair("Point", point));
    }
    if let Some(vm) = &result.vm {
        lines.push(pair("New VM", vm));
    }
    lines
}

/// The speed now, and how it was; none where nothing moved yet.
pub fn speed_line(speed: u64, samples: &VecDeque<u64>) -> Option<Line> {
    if speed == 0 && samples.len() < 2 {
        return None;
    }
    let mut line = pair("Speed", format!("{:<13}", api::format_rate(speed)));
    line.0.extend(spark(samples).0);
    Some(line)
}

/// The selected run or task in full.
pub fn details(state: &State, row: usize) -> Vec<Line> {
    let rows = TransferRows::new(state);
    let Some(row) = rows.rows.get(row) else { return Vec::new() };
    let Some(live) = row.live else {
        let why = super::absence(state, row.proxy).unwrap_or_else(|| "Loading".into());
        return vec![Line::of(Role::Muted, why)];
    };
    match row.task {
        Some((index, _)) => task_details(live, index, row.proxy.as_of(state.now)),
        None => super::run::overview(state, row.proxy, row.id, live),
    }
}
