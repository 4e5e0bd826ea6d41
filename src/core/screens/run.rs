//! One run: its tasks as a tree, its log, what went wrong and what to do about it.

use std::borrow::Cow;

use api::LogLevel;

use super::transfers::{bar, kind, moved, phase, speed_line, task_details};
use super::{absence, error_lines, outcome};
use crate::core::action::{Action, Context};
use crate::core::format::{clock, count, date_time, span};
use crate::core::live::{LiveRun, LiveTask};
use crate::core::rich::{Glyph, Line, Role, Span, pair, pair_line};
use crate::core::state::{Follow, State};
use crate::core::store::Proxy;
use crate::core::table::{Column, Rows, SortKey};

const COLUMNS: &[Column] = &[
    Column::new("State", 14, 16, 0),
    Column::new("Task", 20, 60, 0),
    Column::new("Progress", 15, 15, 1),
    Column::new("Moved", 19, 23, 3).right(),
    Column::new("Speed", 12, 12, 2).right(),
    Column::new("Took", 9, 11, 1).right(),
];

/// Tasks of a run as a tree.
pub struct TaskRows<'a> {
    /// The time the data is of.
    now: i64,
    stale: bool,
    live: Option<&'a LiveRun>,
    tree: Vec<(usize, u16)>,
}

impl<'a> TaskRows<'a> {
    /// Rows for a run of a proxy.
    pub fn new(state: &'a State, proxy: &str, run: &str) -> Self {
        let found = state.proxy(proxy);
        let live = found.and_then(|proxy| proxy.live.get(run));
        let now = found.map_or(state.now, |proxy| proxy.as_of(state.now));
        Self { now, stale: found.is_none_or(|proxy| !proxy.live()), live, tree: live.map(LiveRun::tree).unwrap_or_default() }
    }

    fn at(&self, row: usize) -> Option<(&'a LiveRun, &'a LiveTask, usize, u16)> {
        let (index, depth) = *self.tree.get(row)?;
        let live = self.live?;
        Some((live, live.tasks.get(index)?, index, depth))
    }
}

impl Rows for TaskRows<'_> {
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn len(&self) -> usize {
        self.tree.len()
    }

    fn id(&self, row: usize) -> Cow<'_, str> {
        self.at(row).map_or(Cow::Borrowed(""), |(_, task, ..)| task.task.id.to_string().into())
    }

    fn cell(&self, row: usize, column: usize) -> Line {
        let Some((live, task, index, depth)) = self.at(row) else { return Line::new() };
        match column {
            0 => phase(live, task, self.now),
            1 => {
                let mut line = Line::new();
                if depth > 0 {
                    line = line
                        .and(Role::Muted, " ".repeat(usize::from(depth.min(8) - 1) * 2))
                        .with(Span::Glyph(Glyph::Branch, Role::Border))
                        .and(Role::Muted, " ");
                }
                line.and(Role::Muted, format!("{} ", kind(task.task.kind))).and(Role::Text, &task.task.label)
            }
            2 if task.task.ended_at.is_none() => bar(&live.totals_of(index), 10),
            3 => Line::text(moved(&live.totals_of(index))),
            4 => match live.totals_of(index).speed {
                0 => Line::new(),
                speed => Line::of(Role::Running, api::format_rate(speed)),
            },
            5 => Line::text(span(task.task.ended_at.unwrap_or(live.by_its_clock(self.now)) - task.task.started_at)),
            _ => Line::new(),
        }
    }

    fn sort_key(&self, row: usize, column: usize) -> SortKey {
        let Some((live, task, index, _)) = self.at(row) else { return SortKey::Number(0) };
        match column {
            3 => SortKey::amount(live.totals_of(index).done),
            4 => SortKey::amount(live.totals_of(index).speed),
            5 => SortKey::Number(task.task.ended_at.unwrap_or(live.by_its_clock(self.now)) - task.task.started_at),
            _ => SortKey::text(&self.cell(row, column).plain()),
        }
    }

    fn haystack(&self, row: usize) -> String {
        self.at(row).map_or_else(String::new, |(_, task, ..)| format!("{} {}", kind(task.task.kind), task.task.label))
    }

    fn stale(&self, _row: usize) -> bool {
        self.stale
    }
}

fn log_line(state: &State, line: &api::LogLine) -> Line {
    let (glyph, role) = match line.level {
        LogLevel::Info => (Glyph::Dot, Role::Muted),
        LogLevel::Warning => (Glyph::Warn, Role::Warn),
        LogLevel::Error => (Glyph::Error, Role::Error),
    };
    Line::of(Role::Muted, format!("{} ", clock(line.at, state.now, &state.settings.zone)))
        .with(Span::Glyph(glyph, role))
        .and(Role::Text, " ")
        .and(Role::Text, &line.message)
}

/// The run as a whole, with its log.
pub fn overview(state: &State, proxy: &Proxy, id: &str, live: &LiveRun) -> Vec<Line> {
    let zone = &state.settings.zone;
    let mut lines = vec![pair_line("State", outcome(live.outcome))];
    if let Some(error) = &live.error {
        lines.extend(error_lines(error));
    }
    lines.push(pair("Took", span(live.ended_at.unwrap_or(live.by_its_clock(proxy.as_of(state.now))) - live.queued_at)));
    let totals = live.totals();
    if totals.done > 0 {
        lines.push(pair("Content", moved(&totals)));
    }
    if live.ended_at.is_none() {
        lines.extend(speed_line(totals.speed, &live.samples));
    }
    lines.extend([pair("Run", id), pair("Proxy", proxy.name()), pair("Asked for", date_time(live.queued_at, zone))]);
    if live.ended_at.is_some() {
        lines.extend(super::runs::sums(&live.summary));
    }
    if !live.log.is_empty() {
        lines.push(Line::new());
        lines.push(Line::of(Role::Muted, "Log, newest first"));
        lines.extend(live.log.iter().rev().map(|line| log_line(state, line)));
    }
    lines
}

/// Why the proxy, which answers otherwise, does not tell of this run; none where it does.
fn untold(state: &State, proxy: &Proxy, run: &str) -> Option<Line> {
    let Some(Follow::Failed(error)) = state.follows.get(&(proxy.name().to_owned(), run.to_owned())) else { return None };
    let again = state.keymap.key(&[Context::Run, Context::Global], Action::Refresh);
    let again = again.map_or_else(String::new, |key| format!("; {key} asks again"));
    proxy.live().then(|| Line::state(Glyph::Error, Role::Error, format!("{}{again}", error.message)))
}

/// What to say where it has no task.
pub fn empty(state: &State, proxy: &str, run: &str) -> Vec<Line> {
    let live = state.proxy(proxy).and_then(|proxy| proxy.live.get(run)).filter(|live| live.cursor > 0);
    let words = match live {
        Some(live) if live.ended_at.is_some() => "It ended before its first task.",
        Some(_) => "No task yet.",
        // The line above says why.
        None => return Vec::new(),
    };
    vec![Line::of(Role::Muted, words)]
}

/// The line above the tree.
pub fn summary(state: &State, proxy: &str, run: &str) -> Option<Line> {
    let found = state.proxy(proxy)?;
    let absent = absence(state, found);
    let untold = untold(state, found, run);
    let Some(live) = found.live.get(run) else {
        let waits = || Line::of(Role::Muted, absent.unwrap_or_else(|| "Loading".into()));
        return Some(untold.unwrap_or_else(waits));
    };
    if let Some(untold) = untold.filter(|_| live.ended_at.is_none()) {
        return Some(untold);
    }
    if let Some(absent) = absent.filter(|_| live.ended_at.is_none()) {
        let known = format!("{absent}; last known: running, {} moved", api::format_bytes(live.totals().done));
        return Some(Line::state(Glyph::Warn, Role::Warn, known));
    }
    let mut line = outcome(live.outcome);
    if let Some(error) = &live.error {
        return Some(line.and(Role::Text, "  ").and(Role::Error, &error.message));
    }
    let totals = live.totals();
    if live.ended_at.is_none() {
        if totals.speed > 0 {
            line = line.and(Role::Running, format!("  {}", api::format_rate(totals.speed)));
        }
        if let Some(eta) = totals.eta(&live.samples) {
            line = line.and(Role::Text, format!(", ends in {}", span(eta)));
        }
    }
    line = line.and(Role::Text, format!("  {}", moved(&totals)));
    let warnings = live.log.iter().filter(|line| line.level >= LogLevel::Warning).count();
    if warnings > 0 {
        line = line.and(Role::Warn, format!("  {}", count(warnings, "warning")));
    }
    Some(line)
}

/// The selected task, then the run and its log; where nothing is known of it, why.
pub fn details(state: &State, proxy: &str, run: &str, row: Option<usize>) -> Vec<Line> {
    let Some(found) = state.proxy(proxy) else { return Vec::new() };
    let Some(live) = found.live.get(run) else {
        return match state.follows.get(&(proxy.to_owned(), run.to_owned())) {
            Some(Follow::Failed(error)) => error_lines(error),
            _ => Vec::new(),
        };
    };
    let rows = TaskRows::new(state, proxy, run);
    let mut lines = Vec::new();
    if let Some((_, task, index, _)) = row.and_then(|row| rows.at(row)) {
        lines = task_details(live, index, rows.now);
        let own: Vec<Line> =
            live.log.iter().rev().filter(|line| line.task == Some(task.task.id)).map(|line| log_line(state, line)).collect();
        lines.extend(own);
        lines.push(Line::new());
    }
    lines.extend(overview(state, found, run, live));
    lines
}
