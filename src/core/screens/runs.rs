//! What happened, newest first.

use std::borrow::Cow;

use api::{Run, RunKind, RunSummary};

use super::{error_lines, fleet_id, locate, outcome};
use crate::core::format::{date_time, moment, span};
use crate::core::rich::{Line, Role, pair, pair_line};
use crate::core::state::State;
use crate::core::store::Proxy;
use crate::core::table::{Column, Rows, SortKey};

/// Rows of the screen.
pub struct RunRows<'a>(pub &'a State);

/// The column by which the screen is sorted at first.
pub const STARTED: usize = 3;

const COLUMNS: &[Column] = &[
    Column::new("State", 13, 13, 0),
    Column::new("Run", 18, 40, 0),
    Column::new("Proxy", 8, 16, 2),
    Column::new("Started", 9, 16, 0),
    Column::new("Took", 9, 11, 1).right(),
    Column::new("Moved", 10, 10, 1).right(),
    Column::new("Error", 14, 200, 4),
];

/// The run at a row.
pub fn at(state: &State, row: usize) -> Option<(&Proxy, &Run)> {
    locate(state, row, |proxy| &proxy.runs.items)
}

fn kind(kind: RunKind) -> &'static str {
    match kind {
        RunKind::Backup => "backup",
        RunKind::Restore => "restore",
        RunKind::Verify => "verify",
        RunKind::Remove => "remove",
        RunKind::Recover => "recover",
        RunKind::Deploy => "deploy",
        RunKind::Redeploy => "redeploy",
        RunKind::Reconfigure => "reconfigure",
        RunKind::Destroy => "destroy",
        RunKind::Upgrade => "upgrade",
        RunKind::Unknown => "run",
    }
}

/// A run's name: what it does, on what. A backup is its job, which has a name that says it.
pub fn name_line(does: Option<RunKind>, role: Role, label: &str) -> Line {
    match does {
        None | Some(RunKind::Backup) => Line::of(role, label),
        Some(does) => Line::of(Role::Muted, format!("{} ", kind(does))).and(role, label),
    }
}

/// The same as words.
pub fn name(does: Option<RunKind>, label: &str) -> String {
    name_line(does, Role::Text, label).plain()
}

/// What a run came to, as far as there is anything to count: only a run on VMs counts them.
pub fn sums(summary: &RunSummary) -> Vec<Line> {
    let mut lines = Vec::new();
    if summary.succeeded > 0 || summary.failed > 0 {
        lines.push(pair("Succeeded", summary.succeeded.to_string()));
        lines.push(pair("Failed", summary.failed.to_string()));
    }
    if summary.bytes > 0 || summary.bytes_written > 0 {
        lines.push(pair("Moved", api::format_bytes(summary.bytes)));
        lines.push(pair("Written", api::format_bytes(summary.bytes_written)));
    }
    if summary.warnings > 0 {
        lines.push(pair("Warnings", summary.warnings.to_string()));
    }
    lines
}

impl Rows for RunRows<'_> {
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn len(&self) -> usize {
        self.0.proxies.iter().map(|proxy| proxy.runs.items.len()).sum()
    }

    fn id(&self, row: usize) -> Cow<'_, str> {
        at(self.0, row).map_or(Cow::Borrowed(""), |(proxy, run)| fleet_id(proxy.name(), &run.id).into())
    }

    fn cell(&self, row: usize, column: usize) -> Line {
        let Some((proxy, run)) = at(self.0, row) else { return Line::new() };
        match column {
            0 => outcome(run.outcome),
            1 => name_line(Some(run.kind), Role::Text, &run.label),
            2 => Line::text(proxy.name()),
            3 => Line::text(moment(run.queued_at, self.0.now, &self.0.settings.zone)),
            4 => Line::text(run.ended_at.map_or_else(String::new, |end| span(end - run.queued_at))),
            5 => Line::text(run.summary.as_ref().map_or_else(String::new, |summary| api::format_bytes(summary.bytes))),
            _ => run.error.as_ref().map_or_else(Line::new, |error| Line::of(Role::Error, &error.message)),
        }
    }

    fn sort_key(&self, row: usize, column: usize) -> SortKey {
        let Some((_, run)) = at(self.0, row) else { return SortKey::Number(0) };
        match column {
            3 => SortKey::Number(run.queued_at),
            4 => SortKey::Number(run.ended_at.map_or(i64::MAX, |end| end - run.queued_at)),
            5 => SortKey::amount(run.summary.as_ref().map_or(0, |summary| summary.bytes)),
            _ => SortKey::text(&self.cell(row, column).plain()),
        }
    }

    fn haystack(&self, row: usize) -> String {
        at(self.0, row).map_or_else(String::new, |(proxy, run)| {
            format!("{} {} {}", name(Some(run.kind), &run.label), proxy.name(), outcome(run.outcome).plain())
        })
    }

    fn stale(&self, row: usize) -> bool {
        at(self.0, row).is_some_and(|(proxy, _)| !proxy.live())
    }
}

/// The selected run in short; its tasks are one key away.
pub fn details(state: &State, row: usize) -> Vec<Line> {
    let Some((proxy, run)) = at(state, row) else { return Vec::new() };
    let zone = &state.settings.zone;
    let mut lines =
        vec![pair_line("State", outcome(run.outcome)), pair_line("Run", name_line(Some(run.kind), Role::Text, &run.label))];
    if let Some(error) = &run.error {
        lines.extend(error_lines(error));
    }
    lines.extend([
        pair("Id", &run.id),
        pair("Kind", kind(run.kind)),
        pair("Proxy", proxy.name()),
        pair("Asked for", date_time(run.queued_at, zone)),
    ]);
    if let Some(end) = run.ended_at {
        lines.push(pair("Ended", date_time(end, zone)));
        lines.push(pair("Took", span(end - run.queued_at)));
    }
    if let Some(summary) = &run.summary {
        lines.extend(sums(summary));
    }
    lines.push(Line::of(Role::Hint, "Enter shows its tasks and log"));
    lines
}
