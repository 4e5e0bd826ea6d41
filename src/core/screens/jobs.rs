//! Jobs of all proxies: what, where to, when, how it went last time.

use std::borrow::Cow;

use api::{Job, JobMode};

use super::{error_lines, fleet_id, locate, outcome};
use crate::core::format::{count, date_time, moment};
use crate::core::rich::{Glyph, Line, Role, pair, pair_line};
use crate::core::state::State;
use crate::core::store::Proxy;
use crate::core::table::{Column, Rows, SortKey};

/// Rows of the screen.
pub struct JobRows<'a>(pub &'a State);

const COLUMNS: &[Column] = &[
    Column::new("State", 10, 10, 0),
    Column::new("Job", 12, 32, 0),
    Column::new("Proxy", 8, 16, 1),
    Column::new("Kind", 11, 11, 4),
    Column::new("VMs", 7, 24, 2),
    Column::new("Remotes", 8, 20, 5),
    Column::new("Next", 9, 16, 1),
    Column::new("Last run", 13, 28, 3),
];

/// The job at a row.
pub fn at(state: &State, row: usize) -> Option<(&Proxy, &Job)> {
    locate(state, row, |proxy| &proxy.jobs.items)
}

/// The run of a job that has not ended.
fn running<'a>(proxy: &'a Proxy, job: &Job) -> Option<&'a api::Run> {
    proxy.running().iter().find(|run| run.job.as_deref() == Some(&job.id))
}

fn state_of(proxy: &Proxy, job: &Job) -> Line {
    if running(proxy, job).is_some() {
        Line::state(Glyph::Running, Role::Running, "running")
    } else if job.spec.schedule.is_none() {
        Line::state(Glyph::Waiting, Role::Text, "by hand")
    } else if job.spec.enabled {
        Line::state(Glyph::Ok, Role::Ok, "on")
    } else {
        Line::state(Glyph::Off, Role::Muted, "off")
    }
}

/// The kind in words.
pub fn kind(mode: JobMode) -> &'static str {
    match mode {
        JobMode::Delta => "incremental",
        JobMode::Full => "full",
    }
}

fn names(names: impl ExactSizeIterator<Item = String>, thing: &str) -> String {
    let n = names.len();
    if n <= 2 { names.collect::<Vec<_>>().join(", ") } else { count(n, thing) }
}

impl Rows for JobRows<'_> {
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn len(&self) -> usize {
        self.0.proxies.iter().map(|proxy| proxy.jobs.items.len()).sum()
    }

    fn id(&self, row: usize) -> Cow<'_, str> {
        at(self.0, row).map_or(Cow::Borrowed(""), |(proxy, job)| fleet_id(proxy.name(), &job.id).into())
    }

    fn cell(&self, row: usize, column: usize) -> Line {
        let Some((proxy, job)) = at(self.0, row) else { return Line::new() };
        let spec = &job.spec;
        match column {
            0 => state_of(proxy, job),
            1 => Line::text(&spec.name),
            2 => Line::text(proxy.name()),
            3 => Line::of(Role::Muted, kind(spec.mode)),
            4 => Line::text(names(spec.vms.iter().map(|vm| proxy.vm_name(vm).to_owned()), "VM")),
            5 => Line::text(names(spec.remotes.iter().map(|remote| proxy.remote_name(remote).to_owned()), "remote")),
            6 => match job.next_runs.first() {
                Some(next) => Line::text(moment(*next, self.0.now, &self.0.settings.zone)),
                None => Line::of(Role::Muted, if spec.schedule.is_some() { "off" } else { "by hand" }),
            },
            _ => match &job.last_run {
                Some(run) => {
                    let mut line = outcome(run.outcome);
                    let at = run.ended_at.unwrap_or(run.queued_at);
                    line = line.and(Role::Muted, format!(" {}", moment(at, self.0.now, &self.0.settings.zone)));
                    line
                }
                None => Line::of(Role::Muted, "never ran"),
            },
        }
    }

    fn sort_key(&self, row: usize, column: usize) -> SortKey {
        let Some((_, job)) = at(self.0, row) else { return SortKey::Number(0) };
        match column {
            4 => SortKey::amount(job.spec.vms.len() as u64),
            6 => SortKey::Number(job.next_runs.first().copied().unwrap_or(i64::MAX)),
            7 => SortKey::Number(job.last_run.as_ref().map_or(0, |run| run.queued_at)),
            _ => SortKey::text(&self.cell(row, column).plain()),
        }
    }

    fn haystack(&self, row: usize) -> String {
        let Some((proxy, job)) = at(self.0, row) else { return String::new() };
        let vms: Vec<&str> = job.spec.vms.iter().map(|vm| proxy.vm_name(vm)).collect();
        format!("{} {} {} {}", job.spec.name, proxy.name(), kind(job.spec.mode), vms.join(" "))
    }

    fn stale(&self, row: usize) -> bool {
        at(self.0, row).is_some_and(|(proxy, _)| !proxy.live())
    }
}

/// The selected job in full.
pub fn details(state: &State, row: usize) -> Vec<Line> {
    let Some((proxy, job)) = at(state, row) else { return Vec::new() };
    let spec = &job.spec;
    let mut lines = vec![pair_line("State", state_of(proxy, job)), pair("Job", &spec.name)];
    // Where it went wrong, that is what one looks for.
    let failed = job.last_run.as_ref().filter(|run| run.error.is_some());
    if let Some(run) = failed {
        lines.extend(last_run(state, run));
    }
    lines.extend([
        pair("Proxy", proxy.name()),
        pair("Kind", kind(spec.mode)),
        pair("Keep", count(spec.retention as usize, "restore point")),
    ]);
    match &spec.schedule {
        Some(schedule) => {
            lines.push(pair("Schedule", &schedule.cron));
            lines.push(pair("Time zone", &schedule.timezone));
            for (n, next) in job.next_runs.iter().enumerate() {
                lines.push(pair(if n == 0 { "Next" } else { "" }, date_time(*next, &state.settings.zone)));
            }
        }
        None => lines.push(pair("Schedule", "by hand only")),
    }
    for (n, remote) in spec.remotes.iter().enumerate() {
        lines.push(pair(if n == 0 { "Remotes" } else { "" }, proxy.remote_name(remote)));
    }
    for (n, vm) in spec.vms.iter().enumerate() {
        lines.push(pair(if n == 0 { "VMs" } else { "" }, proxy.vm_name(vm)));
    }
    if let Some(run) = job.last_run.as_ref().filter(|_| failed.is_none()) {
        lines.push(Line::new());
        lines.extend(last_run(state, run));
    }
    lines
}

/// How the last run went.
fn last_run(state: &State, run: &api::Run) -> Vec<Line> {
    let mut lines = vec![pair_line("Last run", outcome(run.outcome))];
    if let Some(error) = &run.error {
        lines.extend(error_lines(error));
    }
    lines.push(pair("Started", date_time(run.queued_at, &state.settings.zone)));
    if let Some(summary) = &run.summary {
        lines.push(pair("Moved", api::format_bytes(summary.bytes)));
    }
    lines
}
