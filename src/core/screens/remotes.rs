//! Backup repositories of all proxies: usable, and how much room is left.

use std::borrow::Cow;

use api::Remote;

use super::{error_lines, fleet_id, locate};
use crate::core::format::{moment, percent};
use crate::core::rich::{Glyph, Line, Role, Span, pair, pair_line};
use crate::core::state::State;
use crate::core::store::{Proxy, Tested};
use crate::core::table::{Column, Rows, SortKey};

/// Rows of the screen.
pub struct RemoteRows<'a>(pub &'a State);

const COLUMNS: &[Column] = &[
    Column::new("State", 11, 11, 0),
    Column::new("Remote", 18, 32, 0),
    Column::new("Proxy", 8, 16, 1),
    Column::new("Kind", 5, 6, 4),
    Column::new("Used", 14, 20, 2),
    Column::new("Free", 10, 10, 0).right(),
    Column::new("URL", 12, 80, 5),
];

/// What is said of a remote that shares its fate with the proxy.
pub const OWN_DISK: &str = "on the proxy's own disk: goes with its VM";

/// The remote at a row.
pub fn at(state: &State, row: usize) -> Option<(&Proxy, &Remote)> {
    locate(state, row, |proxy| &proxy.remotes.items)
}

fn state_of(proxy: &Proxy, remote: &Remote) -> Line {
    match proxy.tests.get(&remote.id) {
        Some(Tested::Running) => Line::state(Glyph::Running, Role::Running, "testing"),
        // Whatever a test said before.
        _ if remote.error.is_some() => Line::state(Glyph::Error, Role::Error, "unusable"),
        Some(Tested::Done { test, .. }) if test.success => Line::state(Glyph::Ok, Role::Ok, "tested"),
        Some(_) => Line::state(Glyph::Error, Role::Error, "failed"),
        None => Line::state(Glyph::Ok, Role::Ok, "usable"),
    }
}

impl Rows for RemoteRows<'_> {
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn len(&self) -> usize {
        self.0.proxies.iter().map(|proxy| proxy.remotes.items.len()).sum()
    }

    fn id(&self, row: usize) -> Cow<'_, str> {
        at(self.0, row).map_or(Cow::Borrowed(""), |(proxy, remote)| fleet_id(proxy.name(), &remote.id).into())
    }

    fn cell(&self, row: usize, column: usize) -> Line {
        let Some((proxy, remote)) = at(self.0, row) else { return Line::new() };
        match column {
            0 => state_of(proxy, remote),
            1 => Line::text(&remote.name),
            2 => Line::text(proxy.name()),
            3 => Line::of(Role::Muted, &remote.kind),
            4 => match remote.space.filter(|space| space.size > 0) {
                Some(space) => {
                    let share = space.used as f64 / space.size as f64;
                    let role = if share > 0.9 { Role::Warn } else { Role::Accent };
                    Line::new()
                        .with(Span::Bar(share, 9, role))
                        .and(Role::Text, format!(" {:>3}%", percent(space.used, space.size)))
                }
                None => Line::new(),
            },
            5 => Line::text(remote.space.map_or_else(String::new, |space| api::format_bytes(space.available))),
            _ => Line::of(Role::Muted, &remote.url),
        }
    }

    fn sort_key(&self, row: usize, column: usize) -> SortKey {
        let Some((_, remote)) = at(self.0, row) else { return SortKey::Number(0) };
        match column {
            4 => SortKey::amount(remote.space.map_or(0, |space| percent(space.used, space.size))),
            5 => SortKey::amount(remote.space.map_or(0, |space| space.available)),
            _ => SortKey::text(&self.cell(row, column).plain()),
        }
    }

    fn haystack(&self, row: usize) -> String {
        at(self.0, row).map_or_else(String::new, |(proxy, remote)| format!("{} {} {}", remote.name, proxy.name(), remote.url))
    }

    fn stale(&self, row: usize) -> bool {
        at(self.0, row).is_some_and(|(proxy, _)| !proxy.live())
    }
}

/// The selected remote in full.
pub fn details(state: &State, row: usize) -> Vec<Line> {
    let Some((proxy, remote)) = at(state, row) else { return Vec::new() };
    let mut lines = vec![pair_line("State", state_of(proxy, remote)), pair("Remote", &remote.name), pair("Proxy", proxy.name())];
    if let Some(error) = &remote.error {
        lines.extend(error_lines(error));
    }
    test_lines(state, proxy.tests.get(&remote.id), &mut lines);
    if remote.own_disk {
        lines.push(pair_line("Lies", Line::state(Glyph::Warn, Role::Warn, OWN_DISK)));
    }
    lines.push(pair("URL", &remote.url));
    lines.push(pair("Disks as", if remote.vhd_directory { "directories of blocks" } else { "VHD files" }));
    match remote.space {
        Some(space) => {
            lines.push(pair("Size", api::format_bytes(space.size)));
            lines.push(pair("Used", api::format_bytes(space.used)));
            lines.push(pair("Free", api::format_bytes(space.available)));
        }
        None => lines.push(pair("Space", "this storage cannot tell")),
    }
    let jobs: Vec<&str> =
        proxy.jobs.items.iter().filter(|job| job.spec.remotes.contains(&remote.id)).map(|job| job.spec.name.as_str()).collect();
    if !jobs.is_empty() {
        lines.push(pair("Used by", jobs.join(", ")));
    }
    lines
}

/// What the last test said, and when.
fn test_lines(state: &State, tested: Option<&Tested>, lines: &mut Vec<Line>) {
    let when = |at: i64| moment(at, state.now, &state.settings.zone);
    match tested {
        Some(Tested::Running) => lines.push(pair("Test", "writing 10 MiB, reading back, comparing")),
        Some(Tested::Done { at, test }) => {
            let rate = |rate: Option<f64>| rate.map_or_else(|| "?".into(), |rate| api::format_rate(rate as u64));
            let line = match (test.success, &test.step) {
                (true, _) => Line::state(Glyph::Ok, Role::Ok, format!("{}: what was written came back the same", when(*at))),
                (false, None) => Line::state(Glyph::Error, Role::Error, format!("{}: failed", when(*at))),
                (false, Some(step)) => Line::state(Glyph::Error, Role::Error, format!("{}: failed at {step}", when(*at))),
            };
            lines.push(pair_line("Tested", line));
            if let Some(error) = &test.error {
                lines.extend(error_lines(error));
            }
            if test.success || test.write_rate.is_some() {
                lines.push(pair("Write", rate(test.write_rate)));
                lines.push(pair("Read", rate(test.read_rate)));
            }
        }
        Some(Tested::Failed { at, error }) => {
            lines.push(pair_line("Tested", Line::state(Glyph::Error, Role::Error, format!("{}: could not be done", when(*at)))));
            lines.extend(error_lines(error));
        }
        None => lines.push(Line::of(Role::Hint, "t tests it: writes 10 MiB, reads back, compares")),
    }
}
