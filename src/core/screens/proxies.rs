//! All daemons: are they up, what do they do, what went wrong last. And those deployed that this console cannot reach yet.

use std::borrow::Cow;
use std::cmp::Ordering;

use api::{AddressSpec, Deployed, DeployedState, ErrorReport, LogLevel, ProxyStatus, UpgradePhase, UpgradeState};

use super::{absence, aged, connection, error_lines, fleet_id, runs};
use crate::core::deployed;
use crate::core::format::{clock, count, moment, span};
use crate::core::message::Connection;
use crate::core::rich::{Glyph, Line, Role, pair, pair_line};
use crate::core::state::State;
use crate::core::store::Proxy;
use crate::core::table::{Column, Rows, SortKey};

/// What stands in a row.
#[derive(Debug, Clone, Copy)]
pub enum Found<'a> {
    /// A proxy of this console.
    Known(&'a Proxy),
    /// One that this proxy deployed, and that this console does not know how to reach.
    Stranger(&'a Proxy, &'a Deployed),
}

impl<'a> Found<'a> {
    /// What it is called here.
    pub fn name(&self) -> &'a str {
        match self {
            Self::Known(proxy) => proxy.name(),
            Self::Stranger(_, deployed) => &deployed.name,
        }
    }

    fn status(&self) -> Option<&'a ProxyStatus> {
        match self {
            Self::Known(proxy) => proxy.status.as_ref(),
            Self::Stranger(..) => None,
        }
    }
}

/// What stands in a row of the screen.
pub fn at(state: &State, row: usize) -> Option<Found<'_>> {
    match state.proxies.get(row) {
        Some(proxy) => Some(Found::Known(proxy)),
        None => {
            let strangers = deployed::strangers(state);
            strangers.get(row - state.proxies.len()).map(|(deployer, deployed)| Found::Stranger(deployer, deployed))
        }
    }
}

/// Rows of the screen.
pub struct ProxyRows<'a> {
    state: &'a State,
    strangers: Vec<(&'a Proxy, &'a Deployed)>,
}

impl<'a> ProxyRows<'a> {
    /// The proxies, then the strangers.
    pub fn new(state: &'a State) -> Self {
        Self { state, strangers: deployed::strangers(state) }
    }

    fn at(&self, row: usize) -> Option<Found<'a>> {
        let count = self.state.proxies.len();
        match self.state.proxies.get(row) {
            Some(proxy) => Some(Found::Known(proxy)),
            None => self.strangers.get(row - count).map(|(deployer, deployed)| Found::Stranger(deployer, deployed)),
        }
    }
}

const COLUMNS: &[Column] = &[
    Column::new("State", 12, 12, 0),
    Column::new("Proxy", 10, 24, 0),
    Column::new("Site", 6, 16, 3),
    Column::new("Version", 13, 24, 1),
    Column::new("Runs", 4, 4, 1).right(),
    Column::new("Speed", 12, 12, 1).right(),
    Column::new("Last error", 12, 200, 2),
];

/// Whether an upgrade goes on.
pub fn under_way(phase: UpgradePhase) -> bool {
    matches!(phase, UpgradePhase::Draining | UpgradePhase::Swapping)
}

/// A phase of an upgrade in words.
fn phase(upgrade: &UpgradeState) -> (Glyph, Role, String) {
    let to = &upgrade.to;
    match upgrade.phase {
        UpgradePhase::Draining => (Glyph::Running, Role::Running, format!("to {to}: waits for running transfers")),
        UpgradePhase::Swapping => (Glyph::Running, Role::Running, format!("to {to}: the new version starts and checks itself")),
        UpgradePhase::Done => (Glyph::Ok, Role::Ok, format!("from {} to {to}: done", upgrade.from)),
        UpgradePhase::RolledBack => (Glyph::Error, Role::Error, format!("to {to}: did not work, {} runs again", upgrade.from)),
        UpgradePhase::Failed => (Glyph::Error, Role::Error, format!("to {to}: given up, {} goes on", upgrade.from)),
        UpgradePhase::Unknown => (Glyph::Warn, Role::Warn, format!("to {to}: in a phase that this console does not know")),
    }
}

/// What to tell when an upgrade has come to its end between two states, and why it did not work.
pub fn upgraded(proxy: &Proxy, now: &ProxyStatus, since: i64) -> Option<(LogLevel, String, Option<ErrorReport>)> {
    let before = proxy.status.as_ref().and_then(|status| status.upgrade.as_ref());
    let upgrade = now.upgrade.as_ref().filter(|upgrade| !under_way(upgrade.phase) && upgrade.since >= since)?;
    if upgrade.phase == UpgradePhase::Unknown {
        return None;
    }
    if before.is_some_and(|before| before.phase == upgrade.phase && before.since == upgrade.since) {
        return None;
    }
    let (_, _, words) = phase(upgrade);
    let level = if upgrade.phase == UpgradePhase::Done { LogLevel::Info } else { LogLevel::Error };
    Some((level, format!("Upgrade of {} {words}", proxy.name()), upgrade.error.clone()))
}

/// The numbers a version begins with.
fn numbers(version: &str) -> Vec<u64> {
    version.split(['.', '-', '+']).map_while(|part| part.parse().ok()).collect()
}

/// How a proxy's version stands to this console's, where they differ.
fn skew(version: &str, console: &str) -> Option<&'static str> {
    match numbers(version).cmp(&numbers(console)) {
        Ordering::Less => Some("older"),
        Ordering::Greater => Some("newer"),
        Ordering::Equal if version != console => Some("differs"),
        Ordering::Equal => None,
    }
}

fn version_cell(status: &ProxyStatus, console: &str) -> Line {
    let channel = status.channel.as_deref().filter(|channel| *channel != "stable").map(|channel| format!(" {channel}"));
    let version = format!("{}{}", status.version, channel.unwrap_or_default());
    match skew(&status.version, console) {
        Some(word) => Line::state(Glyph::Warn, Role::Warn, format!("{word} {version}")),
        None => Line::of(Role::Muted, version),
    }
}

/// Whether it can be reached and what it is at, as symbol and word.
fn state_of(state: &State, found: &Found<'_>) -> Line {
    let changing = |deployed: &Deployed| match deployed.state {
        DeployedState::Ready => None,
        other => Some(Line::state(Glyph::Running, Role::Running, deployed::word(other))),
    };
    match found {
        Found::Stranger(_, deployed) => {
            changing(deployed).unwrap_or_else(|| Line::state(Glyph::Waiting, Role::Warn, "not added"))
        }
        Found::Known(proxy) => {
            // What its deployer said before it went away is no longer so for ever.
            let told = deployed::of(state, proxy).filter(|(deployer, _)| deployer.live());
            if let Some(line) = told.and_then(|(_, deployed)| changing(deployed)) {
                return line;
            }
            // Of one that is away, that is said.
            if let Some(bringing) = state.bringing(proxy.name()).filter(|_| proxy.live()) {
                return Line::state(Glyph::Running, Role::Running, bringing.word());
            }
            let Some(status) = proxy.status.as_ref().filter(|_| proxy.live()) else { return connection(proxy) };
            if status.upgrade.as_ref().is_some_and(|upgrade| under_way(upgrade.phase)) {
                Line::state(Glyph::Running, Role::Running, "upgrading")
            } else if status.draining {
                Line::state(Glyph::Off, Role::Warn, "draining")
            } else {
                connection(proxy)
            }
        }
    }
}

/// The most important thing that is wrong.
fn trouble(state: &State, found: &Found<'_>) -> Line {
    let proxy = match found {
        Found::Known(proxy) => proxy,
        Found::Stranger(deployer, deployed) => {
            if let Some(absent) = absence(state, deployer) {
                return Line::of(Role::Warn, absent);
            }
            let words = match deployed.state {
                DeployedState::Ready => format!("p adds it ({})", deployer.name()),
                _ => format!("by {}; 4 shows how far it is", deployer.name()),
            };
            return Line::of(Role::Hint, words);
        }
    };
    match &proxy.connection {
        Connection::Retrying { error, .. } => {
            let planned = deployed::change(state, proxy).map(|change| Line::of(Role::Hint, change.words(proxy.name())));
            return planned.unwrap_or_else(|| Line::of(Role::Warn, &error.message));
        }
        Connection::Refused { error, .. } => return Line::of(Role::Error, &error.message),
        _ => {}
    }
    let Some(status) = &proxy.status else { return Line::new() };
    if let Some(fault) = status.licensing.fault.as_ref().filter(|_| status.licensing.required) {
        return Line::of(Role::Error, format!("licence: {fault}"));
    }
    match &status.last_error {
        Some(last) => Line::of(Role::Muted, format!("{} ", moment(last.at, state.now, &state.settings.zone)))
            .and(Role::Error, &last.error.message),
        None => Line::new(),
    }
}

impl Rows for ProxyRows<'_> {
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn len(&self) -> usize {
        self.state.proxies.len() + self.strangers.len()
    }

    fn id(&self, row: usize) -> Cow<'_, str> {
        match self.at(row) {
            Some(Found::Known(proxy)) => Cow::Borrowed(proxy.name()),
            // Another proxy may well have its name.
            Some(Found::Stranger(deployer, deployed)) => fleet_id(deployer.name(), &deployed.id).into(),
            None => Cow::Borrowed(""),
        }
    }

    fn cell(&self, row: usize, column: usize) -> Line {
        let Some(found) = self.at(row) else { return Line::new() };
        let status = found.status();
        match (column, &found) {
            (0, _) => state_of(self.state, &found),
            (1, _) => Line::text(found.name()),
            (2, Found::Stranger(_, deployed)) => Line::text(deployed.spec.site.as_deref().unwrap_or(&deployed.pool_name)),
            (2, _) => Line::text(status.and_then(|status| status.site.as_deref()).unwrap_or("")),
            (3, _) => status.map_or_else(Line::new, |status| version_cell(status, &self.state.settings.version)),
            (4, _) => Line::text(status.map_or_else(String::new, |status| status.running.len().to_string())),
            (5, Found::Known(proxy)) => match status.filter(|status| status.bytes_per_second > 0 && proxy.live()) {
                Some(status) => Line::of(Role::Running, api::format_rate(status.bytes_per_second)),
                None => Line::new(),
            },
            (5, _) => Line::new(),
            _ => trouble(self.state, &found),
        }
    }

    fn sort_key(&self, row: usize, column: usize) -> SortKey {
        let status = self.at(row).and_then(|found| found.status());
        match column {
            4 => SortKey::amount(status.map_or(0, |status| status.running.len() as u64)),
            5 => SortKey::amount(status.map_or(0, |status| status.bytes_per_second)),
            _ => SortKey::text(&self.cell(row, column).plain()),
        }
    }

    fn haystack(&self, row: usize) -> String {
        (0..3).map(|column| self.cell(row, column).plain()).collect::<Vec<_>>().join(" ")
    }

    fn stale(&self, row: usize) -> bool {
        match self.at(row) {
            Some(Found::Known(proxy)) => !proxy.live(),
            Some(Found::Stranger(deployer, _)) => !deployer.live(),
            None => false,
        }
    }
}

/// The selected proxy in full.
pub fn details(state: &State, row: usize) -> Vec<Line> {
    match at(state, row) {
        Some(Found::Known(proxy)) => known_details(state, proxy),
        Some(found @ Found::Stranger(deployer, deployed)) => {
            let mut lines = vec![pair_line("State", state_of(state, &found))];
            lines.extend(deployed_details(state, deployer, deployed));
            if deployed.state == DeployedState::Ready && deployer.live() {
                lines.push(Line::of(Role::Hint, "p adds it to this console"));
            }
            lines
        }
        None => Vec::new(),
    }
}

/// What a proxy calls itself, where this console calls it otherwise.
pub fn other_name(proxy: &Proxy) -> Option<&str> {
    let own = proxy.status.as_ref().map(|status| status.name.as_str())?;
    (!own.is_empty() && own != proxy.name()).then_some(own)
}

fn known_details(state: &State, proxy: &Proxy) -> Vec<Line> {
    let zone = &state.settings.zone;
    let mut lines = vec![pair_line("State", state_of(state, &Found::Known(proxy))), pair("Address", &proxy.entry.url)];
    if let Some(own) = other_name(proxy) {
        lines.push(pair("Calls itself", format!("{own}; this console calls it {}", proxy.name())));
    }
    if let Some(bringing) = state.bringing(proxy.name()) {
        lines.push(pair_line("Upgrade", Line::state(Glyph::Running, Role::Running, bringing.words())));
    }
    match &proxy.connection {
        Connection::Retrying { error, next } => {
            lines.push(pair("Next try", clock(*next, state.now, zone)));
            match deployed::change(state, proxy) {
                Some(change) => {
                    lines.push(Line::of(Role::Hint, format!("{}; 4 shows how far it is", change.words(proxy.name()))))
                }
                None => lines.extend(error_lines(error)),
            }
        }
        Connection::Refused { error, .. } => lines.extend(error_lines(error)),
        _ => {}
    }
    if let (false, Some(seen)) = (proxy.live(), proxy.seen) {
        lines.push(pair("Data as of", clock(seen, state.now, zone)));
    }
    if let Some(status) = &proxy.status {
        lines.extend(status_details(state, status));
    }
    if let Some((deployer, deployed)) = deployed::of(state, proxy) {
        lines.push(Line::new());
        lines.extend(aged(state, deployer));
        lines.extend(deployed_details(state, deployer, deployed));
    }
    if !proxy.pools.items.is_empty() {
        lines.push(Line::new());
        lines.push(Line::of(Role::Muted, "Pools"));
        for pool in &proxy.pools.items {
            let state = match pool.state {
                api::PoolState::Connected => "connected",
                api::PoolState::Unknown => "not asked yet",
                api::PoolState::Unreachable => "unreachable",
            };
            lines.push(Line::text(format!("  {}, {state}, {}", pool.name, pool.url)));
            if let Some(error) = &pool.error {
                lines.push(Line::of(Role::Error, format!("  {}", error.message)));
            }
        }
    } else if proxy.live() {
        lines.push(pair("Pools", "none; a adds one"));
    }
    lines
}

fn status_details(state: &State, status: &ProxyStatus) -> Vec<Line> {
    let zone = &state.settings.zone;
    let mut version = status.version.clone();
    if let Some(channel) = &status.channel {
        version.push_str(&format!(", {channel}"));
    }
    if let Some(build) = &status.build {
        version.push_str(&format!(", build {build}"));
    }
    // What is wrong or going on stands first: on a small screen the rest is a key away.
    let mut lines = Vec::new();
    let ill = status.licensing.required && (status.licensing.fault.is_some() || status.licensing.warning.is_some());
    if ill {
        lines.push(pair_line("Licence", licence(&status.licensing)));
        lines.push(Line::of(Role::Hint, "8 shows the licences"));
    }
    if let Some(upgrade) = &status.upgrade {
        let (glyph, role, words) = phase(upgrade);
        lines.push(pair_line("Upgrade", Line::state(glyph, role, words)));
        if let Some(error) = &upgrade.error {
            lines.extend(error_lines(error));
        }
    }
    if status.draining {
        lines.push(pair_line("Draining", Line::of(Role::Warn, "new runs are held back; o lets them start again")));
    }
    // What an upgrade came to is said above.
    let said = |last: &&api::LastError| {
        let upgrade = status.upgrade.as_ref().filter(|upgrade| upgrade.error.is_some());
        upgrade.is_some_and(|upgrade| {
            (upgrade.run.is_some() && upgrade.run == last.run) || upgrade.error.as_ref() == Some(&last.error)
        })
    };
    if let Some(last) = status.last_error.as_ref().filter(|last| !said(last)) {
        lines.push(Line::of(Role::Muted, format!("Last error, {}", moment(last.at, state.now, zone))));
        lines.extend(error_lines(&last.error));
    }
    lines.push(pair("Running", count(status.running.len(), "run")));
    for run in &status.running {
        lines.push(Line::of(Role::Running, format!("  {}", runs::name(Some(run.kind), &run.label))));
    }
    lines.extend([pair("Site", status.site.as_deref().unwrap_or("")), pair("Version", version)]);
    if let Some(word) = skew(&status.version, &state.settings.version) {
        let console = &state.settings.version;
        let words = match word {
            "differs" => format!("not this console's {console}"),
            word => format!("{word} than this console, {console}"),
        };
        lines.push(pair_line("", Line::state(Glyph::Warn, Role::Warn, words)));
    }
    if !ill {
        lines.push(pair_line("Licence", licence(&status.licensing)));
    }
    lines.push(pair("Up", span(state.now - status.started_at)));
    lines.push(pair("Certificate", &status.fingerprint));
    if let Some(until) = status.former_token_until.filter(|until| *until > state.now) {
        lines.push(pair("Token", format!("the former one is accepted until {}", moment(until, state.now, zone))));
    }
    lines
}

/// How a proxy stands with licences, as symbol, word and sentence.
fn licence(licensing: &api::Licensing) -> Line {
    let (glyph, role) = match (licensing.required, &licensing.fault, &licensing.warning) {
        (false, ..) => return Line::of(Role::Muted, licensing.word()),
        (true, Some(_), _) => (Glyph::Error, Role::Error),
        (true, None, Some(_)) => (Glyph::Warn, Role::Warn),
        (true, None, None) => (Glyph::Ok, Role::Ok),
    };
    let mut words = licensing.word().to_owned();
    if let Some(why) = licensing.fault.as_ref().or(licensing.warning.as_ref()) {
        words.push_str(&format!(": {why}"));
    } else if let Some(id) = &licensing.license {
        words.push_str(&format!(": {id}"));
    }
    Line::state(glyph, role, words)
}

fn deployed_details(state: &State, deployer: &Proxy, deployed: &Deployed) -> Vec<Line> {
    let zone = &state.settings.zone;
    let spec = &deployed.spec;
    let when = match (deployed.state, deployed.ready_at) {
        (DeployedState::Ready, Some(at)) => format!("{}, ready since {}", deployer.name(), moment(at, state.now, zone)),
        (other, _) => format!("{}, {}", deployer.name(), deployed::word(other)),
    };
    let address = match &spec.address {
        AddressSpec::Dhcp => "from the network (DHCP)".to_owned(),
        AddressSpec::Static { network, .. } => network.to_string(),
    };
    let mut lines = vec![
        pair("Deployed by", when),
        pair("Pool", &deployed.pool_name),
        pair("VM", deployed.vm.as_deref().unwrap_or("none yet")),
        pair(
            "Resources",
            format!("{} vCPUs, {}, disk {}", spec.vcpus, api::format_bytes(spec.memory), api::format_bytes(spec.disk)),
        ),
        pair("Gets address", address),
    ];
    if let Some(url) = &deployed.url {
        lines.push(pair("Answers at", url));
    }
    if let Some(license) = &deployed.license {
        lines.push(pair("Licence", license));
    }
    if let Some(at) = deployed.copied_at {
        lines.push(pair("State copied", moment(at, state.now, zone)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        for (version, expected) in [
            ("0.1.0", None),
            ("0.2.0", Some("newer")),
            ("0.0.9", Some("older")),
            ("0.10.0", Some("newer")),
            ("0.1.0-rc1", Some("differs")),
        ] {
            assert_eq!(skew(version, "0.1.0"), expected, "{version}");
        }
    }

    #[test]
    fn an_upgrade_is_told_once_when_it_ends() {
        let upgrade = |phase| UpgradeState { phase, from: "1".into(), to: "2".into(), since: 50, run: None, error: None };
        let status = |phase| ProxyStatus { upgrade: Some(Box::new(upgrade(phase))), ..ProxyStatus::default() };
        let mut proxy = Proxy { status: Some(status(UpgradePhase::Swapping)), ..Proxy::default() };
        let done = status(UpgradePhase::RolledBack);
        let (level, text, _) = upgraded(&proxy, &done, 10).unwrap();
        assert!(level == LogLevel::Error && text.contains("1 runs again"), "{text}");
        assert_eq!(upgraded(&proxy, &done, 60), None, "of before this console began");
        proxy.status = Some(done.clone());
        assert_eq!(upgraded(&proxy, &done, 10), None);
    }
}
