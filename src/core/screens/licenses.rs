//! The licences that the proxies hold: whose, until when, and which proxy runs under which.

use std::borrow::Cow;

use api::License;

use super::{fleet_id, locate};
use crate::core::format::{counted, date_time, short};
use crate::core::rich::{Glyph, Line, Role, pair, pair_line};
use crate::core::state::State;
use crate::core::store::Proxy;
use crate::core::table::{Column, Rows, SortKey};

/// Rows of the screen.
pub struct LicenseRows<'a>(pub &'a State);

const COLUMNS: &[Column] = &[
    Column::new("State", 14, 14, 0),
    Column::new("Licence", 8, 8, 0),
    Column::new("Holder", 10, 30, 2),
    Column::new("Free", 7, 7, 1).right(),
    Column::new("Serves", 10, 60, 0),
    Column::new("Expires", 16, 16, 1),
    Column::new("Held by", 8, 16, 3),
];

/// The licence at a row, with its holder.
pub fn at(state: &State, row: usize) -> Option<(&Proxy, &License)> {
    locate(state, row, |proxy| &proxy.licenses.items)
}

fn state_of(license: &License) -> Line {
    match (&license.fault, &license.warning) {
        (Some(_), _) => Line::state(Glyph::Error, Role::Error, "no good"),
        (None, Some(_)) => Line::state(Glyph::Warn, Role::Warn, "expires soon"),
        (None, None) => Line::state(Glyph::Ok, Role::Ok, "good"),
    }
}

fn expires(state: &State, license: &License) -> String {
    license.expires_at.map_or_else(|| "never".to_owned(), |at| date_time(at, &state.settings.zone))
}

impl Rows for LicenseRows<'_> {
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn len(&self) -> usize {
        self.0.proxies.iter().map(|proxy| proxy.licenses.items.len()).sum()
    }

    fn id(&self, row: usize) -> Cow<'_, str> {
        at(self.0, row).map_or(Cow::Borrowed(""), |(proxy, license)| fleet_id(proxy.name(), &license.id).into())
    }

    fn cell(&self, row: usize, column: usize) -> Line {
        let Some((proxy, license)) = at(self.0, row) else { return Line::new() };
        match column {
            0 => state_of(license),
            1 => Line::text(short(&license.id)),
            2 => Line::text(&license.holder),
            3 => Line::text(format!("{} of {}", license.free(), license.proxies)),
            4 if license.bound.is_empty() => Line::of(Role::Muted, "none"),
            4 => Line::text(license.serves()),
            5 => Line::text(expires(self.0, license)),
            _ => Line::of(Role::Muted, proxy.name()),
        }
    }

    fn sort_key(&self, row: usize, column: usize) -> SortKey {
        let Some((_, license)) = at(self.0, row) else { return SortKey::Number(0) };
        match column {
            3 => SortKey::amount(license.free().into()),
            5 => SortKey::Number(license.expires_at.unwrap_or(i64::MAX)),
            _ => SortKey::text(&self.cell(row, column).plain()),
        }
    }

    fn haystack(&self, row: usize) -> String {
        at(self.0, row).map_or_else(String::new, |(proxy, license)| {
            format!("{} {} {} {}", license.id, license.holder, license.serves(), proxy.name())
        })
    }

    fn stale(&self, row: usize) -> bool {
        at(self.0, row).is_some_and(|(proxy, _)| !proxy.live())
    }
}

/// The selected licence in full. Its signed text is never shown.
pub fn details(state: &State, row: usize) -> Vec<Line> {
    let Some((proxy, license)) = at(state, row) else { return Vec::new() };
    let mut lines = vec![pair_line("State", state_of(license))];
    if let Some(fault) = &license.fault {
        lines.push(Line::state(Glyph::Error, Role::Error, fault));
    }
    if let Some(warning) = &license.warning {
        lines.push(Line::state(Glyph::Warn, Role::Warn, warning));
    }
    lines.extend([
        pair("Licence", &license.id),
        pair("Holder", &license.holder),
        pair("Covers", counted(license.proxies as usize, "proxy", "proxies")),
        pair("Free for", license.free().to_string()),
        pair("From", date_time(license.not_before, &state.settings.zone)),
        pair("Expires", expires(state, license)),
        pair("Held by", proxy.name()),
    ]);
    for bound in &license.bound {
        lines.push(pair("Serves", format!("{} ({})", bound.name, bound.proxy)));
    }
    lines
}

/// Whether any of the proxies that answer asks for a licence.
fn asked_for(state: &State) -> bool {
    state.proxies.iter().any(|proxy| proxy.status.as_ref().is_some_and(|status| status.licensing.required))
}

/// The line above the list: whether all this matters.
pub fn summary(state: &State) -> Option<Line> {
    if !asked_for(state) {
        // What is not known yet may ask for one.
        let known = state.proxies.iter().all(|proxy| proxy.status.is_some());
        return known.then(|| Line::of(Role::Muted, "No proxy needs a licence: no issuer's key is configured."));
    }
    let missing: Vec<&str> = state
        .proxies
        .iter()
        .filter(|proxy| proxy.status.as_ref().is_some_and(|status| status.licensing.required && status.licensing.fault.is_some()))
        .map(Proxy::name)
        .collect();
    (!missing.is_empty())
        .then(|| Line::state(Glyph::Error, Role::Error, format!("Without a licence that counts: {}", missing.join(", "))))
}

/// What to say where there is none.
pub fn empty(state: &State) -> Vec<Line> {
    let mut lines = vec![Line::text("No licence is held.")];
    if asked_for(state) {
        lines.push(Line::of(Role::Hint, "i imports one."));
    }
    lines
}
