//! All daemons: are they up, what do they do, what went wrong last.

use std::borrow::Cow;

use super::{connection, error_lines};
use crate::core::format::{clock, count, moment, span};
use crate::core::message::Connection;
use crate::core::rich::{Line, Role, pair, pair_line};
use crate::core::state::State;
use crate::core::table::{Column, Rows, SortKey};

/// Rows of the screen.
pub struct ProxyRows<'a>(pub &'a State);

const COLUMNS: &[Column] = &[
    Column::new("State", 12, 12, 0),
    Column::new("Proxy", 10, 24, 0),
    Column::new("Site", 6, 16, 2),
    Column::new("Version", 7, 10, 3),
    Column::new("Runs", 4, 4, 1).right(),
    Column::new("Speed", 12, 12, 1).right(),
    Column::new("Last error", 12, 200, 2),
];

impl Rows for ProxyRows<'_> {
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn len(&self) -> usize {
        self.0.proxies.len()
    }

    fn id(&self, row: usize) -> Cow<'_, str> {
        Cow::Borrowed(self.0.proxies[row].name())
    }

    fn cell(&self, row: usize, column: usize) -> Line {
        let proxy = &self.0.proxies[row];
        let status = proxy.status.as_ref();
        match column {
            0 => connection(proxy),
            1 => Line::text(proxy.name()),
            2 => Line::text(status.and_then(|status| status.site.as_deref()).unwrap_or("")),
            3 => Line::of(Role::Muted, status.map_or("", |status| &status.version)),
            4 => Line::text(status.map_or_else(String::new, |status| status.running.len().to_string())),
            5 => match status.filter(|status| status.bytes_per_second > 0 && proxy.live()) {
                Some(status) => Line::of(Role::Running, api::format_rate(status.bytes_per_second)),
                None => Line::new(),
            },
            _ => match &proxy.connection {
                Connection::Retrying { error, .. } => Line::of(Role::Warn, &error.message),
                Connection::Refused { error, .. } => Line::of(Role::Error, &error.message),
                _ => match status.and_then(|status| status.last_error.as_ref()) {
                    Some(last) => Line::of(Role::Muted, format!("{} ", moment(last.at, self.0.now, &self.0.settings.zone)))
                        .and(Role::Error, &last.error.message),
                    None => Line::new(),
                },
            },
        }
    }

    fn sort_key(&self, row: usize, column: usize) -> SortKey {
        let proxy = &self.0.proxies[row];
        let status = proxy.status.as_ref();
        match column {
            4 => SortKey::amount(status.map_or(0, |status| status.running.len() as u64)),
            5 => SortKey::amount(status.map_or(0, |status| status.bytes_per_second)),
            _ => SortKey::text(&self.cell(row, column).plain()),
        }
    }

    fn haystack(&self, row: usize) -> String {
        let proxy = &self.0.proxies[row];
        let site = proxy.status.as_ref().and_then(|status| status.site.as_deref()).unwrap_or("");
        format!("{} {site} {}", proxy.name(), connection(proxy).plain())
    }

    fn stale(&self, row: usize) -> bool {
        !self.0.proxies[row].live()
    }
}

/// The selected proxy in full.
pub fn details(state: &State, row: usize) -> Vec<Line> {
    let Some(proxy) = state.proxies.get(row) else { return Vec::new() };
    let zone = &state.settings.zone;
    let mut lines = vec![pair_line("State", connection(proxy)), pair("Address", &proxy.entry.url)];
    match &proxy.connection {
        Connection::Retrying { error, next } => {
            lines.push(pair("Next try", clock(*next, state.now, zone)));
            lines.extend(error_lines(error));
        }
        Connection::Refused { error, .. } => lines.extend(error_lines(error)),
        _ => {}
    }
    if let (false, Some(seen)) = (proxy.live(), proxy.seen) {
        lines.push(pair("Data as of", clock(seen, state.now, zone)));
    }
    if let Some(status) = &proxy.status {
        lines.push(pair("Site", status.site.as_deref().unwrap_or("")));
        lines.push(pair("Version", &status.version));
        lines.push(pair("Up", span(state.now - status.started_at)));
        lines.push(pair("Certificate", &status.fingerprint));
        lines.push(pair("Running", count(status.running.len(), "run")));
        for run in &status.running {
            lines.push(Line::of(Role::Running, format!("  {}", run.label)));
        }
        if let Some(last) = &status.last_error {
            lines.push(Line::new());
            lines.push(Line::of(Role::Muted, format!("Last error, {}", moment(last.at, state.now, zone))));
            lines.extend(error_lines(&last.error));
        }
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
