//! Restore points: the VMs that have some, and the points of one VM.

use std::borrow::Cow;
use std::collections::BTreeMap;

use api::{JobMode, Outcome, RestorePoint};

use super::fleet_id;
use crate::core::format::{count, date_time, moment, span};
use crate::core::rich::{Glyph, Line, Role, pair, pair_line};
use crate::core::state::State;
use crate::core::store::Proxy;
use crate::core::table::{Column, Rows, SortKey};

/// A VM with its restore points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmGroup {
    /// Position of the proxy.
    pub proxy: usize,
    /// VM uuid.
    pub vm: String,
    /// Its newest name.
    pub name: String,
    /// Positions of its points in the proxy's list, newest first.
    pub points: Vec<u32>,
    /// Bytes moved to write them.
    pub size: u64,
}

/// Groups all restore points by proxy and VM; VMs by name.
pub fn group(proxies: &[Proxy]) -> Vec<VmGroup> {
    let mut groups: Vec<VmGroup> = Vec::new();
    for (index, proxy) in proxies.iter().enumerate() {
        let mut by_vm: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
        for (at, point) in proxy.points.items.iter().enumerate() {
            by_vm.entry(&point.vm).or_default().push(at as u32);
        }
        for (vm, mut points) in by_vm {
            let of = |at: u32| &proxy.points.items[at as usize];
            points.sort_by_key(|at| std::cmp::Reverse(of(*at).timestamp));
            let size = points.iter().fold(0u64, |sum, at| sum.saturating_add(of(*at).size));
            let name = points.first().map_or_else(String::new, |at| of(*at).vm_name.clone());
            groups.push(VmGroup { proxy: index, vm: vm.to_owned(), name, points, size });
        }
    }
    groups.sort_by(|a, b| a.name.cmp(&b.name).then(a.proxy.cmp(&b.proxy)));
    groups
}

/// Rows of the VMs.
pub struct GroupRows<'a>(pub &'a State);

const GROUP_COLUMNS: &[Column] = &[
    Column::new("VM", 14, 40, 0),
    Column::new("Proxy", 8, 16, 1),
    Column::new("Points", 6, 6, 0).right(),
    Column::new("Newest", 9, 16, 0),
    Column::new("Age", 10, 10, 2),
    Column::new("Kind", 11, 11, 4),
    Column::new("Moved", 10, 10, 3).right(),
    Column::new("Verified", 14, 20, 1),
];

fn verified(point: &RestorePoint, state: &State) -> Line {
    match &point.verified {
        None => Line::of(Role::Muted, "never"),
        Some(verified) => {
            let when = moment(verified.at, state.now, &state.settings.zone);
            match verified.outcome {
                Outcome::Success => Line::state(Glyph::Ok, Role::Ok, format!("good {when}")),
                Outcome::Failure => Line::state(Glyph::Error, Role::Error, format!("BAD {when}")),
                _ => Line::state(Glyph::Warn, Role::Warn, format!("not finished {when}")),
            }
        }
    }
}

fn group_points<'a>(state: &'a State, group: &'a VmGroup) -> impl Iterator<Item = &'a RestorePoint> {
    let proxy = state.proxies.get(group.proxy);
    group.points.iter().filter_map(move |at| proxy?.points.items.get(*at as usize))
}

/// The newest restore point of the VM at a row, with its proxy.
pub fn newest(state: &State, row: usize) -> Option<(&Proxy, &RestorePoint)> {
    let group = state.groups.get(row)?;
    Some((state.proxies.get(group.proxy)?, group_points(state, group).next()?))
}

impl Rows for GroupRows<'_> {
    fn columns(&self) -> &'static [Column] {
        GROUP_COLUMNS
    }

    fn len(&self) -> usize {
        self.0.groups.len()
    }

    fn id(&self, row: usize) -> Cow<'_, str> {
        let group = &self.0.groups[row];
        // Not its position: the next one has that when a proxy goes.
        fleet_id(self.0.proxies.get(group.proxy).map_or("", Proxy::name), &group.vm).into()
    }

    fn cell(&self, row: usize, column: usize) -> Line {
        let Some((proxy, newest)) = newest(self.0, row) else { return Line::new() };
        let group = &self.0.groups[row];
        match column {
            0 => Line::text(&group.name),
            1 => Line::text(proxy.name()),
            2 => Line::text(group.points.len().to_string()),
            3 => Line::text(moment(newest.timestamp, self.0.now, &self.0.settings.zone)),
            4 => Line::of(Role::Muted, span(self.0.now - newest.timestamp)),
            5 => Line::of(Role::Muted, super::jobs::kind(newest.mode)),
            6 => Line::text(api::format_bytes(group.size)),
            _ => verified(newest, self.0),
        }
    }

    fn sort_key(&self, row: usize, column: usize) -> SortKey {
        let group = &self.0.groups[row];
        match column {
            2 => SortKey::amount(group.points.len() as u64),
            3 => SortKey::Number(newest(self.0, row).map_or(0, |(_, point)| point.timestamp)),
            4 => SortKey::Number(-newest(self.0, row).map_or(0, |(_, point)| point.timestamp)),
            6 => SortKey::amount(group.size),
            _ => SortKey::text(&self.cell(row, column).plain()),
        }
    }

    fn haystack(&self, row: usize) -> String {
        let group = &self.0.groups[row];
        format!("{} {}", group.name, self.0.proxies.get(group.proxy).map_or("", |proxy| proxy.name()))
    }

    fn stale(&self, row: usize) -> bool {
        self.0.proxies.get(self.0.groups[row].proxy).is_some_and(|proxy| !proxy.live())
    }
}

/// Rows of the points of one VM.
pub struct PointRows<'a> {
    state: &'a State,
    proxy: Option<&'a Proxy>,
    points: &'a [u32],
}

impl<'a> PointRows<'a> {
    /// Rows for a VM on a proxy.
    pub fn new(state: &'a State, proxy: &str, vm: &str) -> Self {
        let index = state.proxies.iter().position(|other| other.name() == proxy);
        let group = state.groups.iter().find(|group| Some(group.proxy) == index && group.vm == vm);
        Self {
            state,
            proxy: index.and_then(|index| state.proxies.get(index)),
            points: group.map_or(&[], |group| group.points.as_slice()),
        }
    }

    fn at(&self, row: usize) -> Option<(&'a Proxy, &'a RestorePoint)> {
        let proxy = self.proxy?;
        Some((proxy, proxy.points.items.get(*self.points.get(row)? as usize)?))
    }
}

/// The restore point at a row of a VM's points.
pub fn point<'a>(state: &'a State, proxy: &str, vm: &str, row: usize) -> Option<(&'a Proxy, &'a RestorePoint)> {
    PointRows::new(state, proxy, vm).at(row)
}

const POINT_COLUMNS: &[Column] = &[
    Column::new("When", 16, 16, 0),
    Column::new("Kind", 11, 11, 1),
    Column::new("Stored as", 9, 9, 2),
    Column::new("Moved", 10, 10, 0).right(),
    Column::new("Disks", 5, 5, 3).right(),
    Column::new("Remote", 8, 20, 1),
    Column::new("Verified", 14, 24, 1),
];

fn stored_as(point: &RestorePoint) -> &'static str {
    match (point.mode, point.disks.iter().any(|disk| disk.delta)) {
        (JobMode::Full, _) => "XVA",
        (JobMode::Delta, true) => "delta",
        (JobMode::Delta, false) => "key",
    }
}

impl Rows for PointRows<'_> {
    fn columns(&self) -> &'static [Column] {
        POINT_COLUMNS
    }

    fn len(&self) -> usize {
        self.points.len()
    }

    fn id(&self, row: usize) -> Cow<'_, str> {
        self.at(row).map_or(Cow::Borrowed(""), |(_, point)| Cow::Borrowed(&point.id))
    }

    fn cell(&self, row: usize, column: usize) -> Line {
        let Some((proxy, point)) = self.at(row) else { return Line::new() };
        match column {
            0 => Line::text(date_time(point.timestamp, &self.state.settings.zone)),
            1 => Line::of(Role::Muted, super::jobs::kind(point.mode)),
            2 => Line::text(stored_as(point)),
            3 => Line::text(api::format_bytes(point.size)),
            4 => Line::text(point.disks.len().to_string()),
            5 => Line::text(proxy.remote_name(&point.remote)),
            _ => verified(point, self.state),
        }
    }

    fn sort_key(&self, row: usize, column: usize) -> SortKey {
        let Some((_, point)) = self.at(row) else { return SortKey::Number(0) };
        match column {
            0 => SortKey::Number(point.timestamp),
            3 => SortKey::amount(point.size),
            4 => SortKey::amount(point.disks.len() as u64),
            _ => SortKey::text(&self.cell(row, column).plain()),
        }
    }

    fn haystack(&self, row: usize) -> String {
        self.at(row).map_or_else(String::new, |(proxy, point)| {
            let when = date_time(point.timestamp, &self.state.settings.zone);
            format!("{when} {} {} {}", proxy.remote_name(&point.remote), super::jobs::kind(point.mode), stored_as(point))
        })
    }

    fn stale(&self, _row: usize) -> bool {
        self.proxy.is_some_and(|proxy| !proxy.live())
    }
}

/// The selected VM in short.
pub fn group_details(state: &State, row: usize) -> Vec<Line> {
    let Some((proxy, newest)) = newest(state, row) else { return Vec::new() };
    let group = &state.groups[row];
    let zone = &state.settings.zone;
    let mut lines = vec![
        pair("VM", &group.name),
        pair("uuid", &group.vm),
        pair("Proxy", proxy.name()),
        pair("Points", group.points.len().to_string()),
        pair("Newest", date_time(newest.timestamp, zone)),
        pair_line("Verified", verified(newest, state)),
        pair("Moved", api::format_bytes(group.size)),
        Line::of(Role::Hint, "Enter shows all points; r restores the newest"),
        Line::new(),
    ];
    for point in group_points(state, group).take(20) {
        lines.push(
            Line::text(date_time(point.timestamp, zone))
                .and(Role::Muted, format!("  {:<5}", stored_as(point)))
                .and(Role::Text, format!("  {:>10}", api::format_bytes(point.size))),
        );
    }
    if group.points.len() > 20 {
        lines.push(Line::of(Role::Muted, format!("and {}", count(group.points.len() - 20, "older point"))));
    }
    lines
}

/// The selected point in full.
pub fn point_details(state: &State, proxy: &str, vm: &str, row: usize) -> Vec<Line> {
    let Some((proxy, point)) = point(state, proxy, vm, row) else { return Vec::new() };
    let zone = &state.settings.zone;
    let job = proxy.jobs.items.iter().find(|job| job.id == point.job).map_or(point.job.as_str(), |job| &job.spec.name);
    let mut lines = vec![
        pair("VM", &point.vm_name),
        pair("When", date_time(point.timestamp, zone)),
        pair_line("Verified", verified(point, state)),
        pair("Kind", super::jobs::kind(point.mode)),
        pair("Stored as", stored_as(point)),
        pair("Moved", api::format_bytes(point.size)),
        pair("Remote", proxy.remote_name(&point.remote)),
        pair("Job", job),
        pair("Id", &point.id),
        Line::new(),
    ];
    for disk in &point.disks {
        let kind = if disk.delta { "delta" } else { "key" };
        lines.push(Line::text(format!("{}, {}, {kind}", disk.name, api::format_bytes(disk.bytes))));
    }
    lines
}
