//! The licences that the proxies hold: whose, until when, and which proxy runs under which.

use std::borrow::Cow;

use api::{Binding, License};

use crate::core::format::{counted, date_time, short};
use crate::core::rich::{Glyph, Line, Role, pair, pair_line};
use crate::core::state::State;
use crate::core::store::Proxy;
use crate::core::table::{Column, Rows, SortKey};

/// A licence, with every proxy that holds it; what each has noted of it may differ.
pub struct Held<'a> {
    /// The holder that the keys act on: one that answers before one that does not, then who has bound it most.
    first: (&'a Proxy, &'a License),
    /// All, in the order of the proxies.
    holders: Vec<(&'a Proxy, &'a License)>,
}

impl<'a> Held<'a> {
    /// The proxies that run under it, as any of its holders has noted.
    fn bound(&self) -> Vec<&'a Binding> {
        let mut bound: Vec<&Binding> = Vec::new();
        for binding in self.holders.iter().flat_map(|(_, license)| &license.bound) {
            if !bound.iter().any(|other| other.proxy == binding.proxy) {
                bound.push(binding);
            }
        }
        bound
    }

    /// The licence as all its holders together know it.
    fn whole(&self) -> License {
        License { bound: self.bound().into_iter().cloned().collect(), ..self.first.1.clone() }
    }

    fn held_by(&self) -> String {
        self.holders.iter().map(|(proxy, _)| proxy.name()).collect::<Vec<_>>().join(", ")
    }
}

/// The licences of all proxies, each once.
fn held(state: &State) -> Vec<Held<'_>> {
    let mut all: Vec<Held<'_>> = Vec::new();
    let copies = state.proxies.iter().flat_map(|proxy| proxy.licenses.items.iter().map(move |license| (proxy, license)));
    for copy @ (proxy, license) in copies {
        let rank = |(proxy, license): (&Proxy, &License)| (proxy.live(), license.bound.len());
        match all.iter_mut().find(|held| held.first.1.id == license.id) {
            Some(held) => {
                if rank((proxy, license)) > rank(held.first) {
                    held.first = copy;
                }
                held.holders.push(copy);
            }
            None => all.push(Held { first: copy, holders: vec![copy] }),
        }
    }
    all
}

/// Rows of the screen.
pub struct LicenseRows<'a> {
    state: &'a State,
    held: Vec<Held<'a>>,
}

impl<'a> LicenseRows<'a> {
    /// The licences of all proxies.
    pub fn new(state: &'a State) -> Self {
        Self { state, held: held(state) }
    }
}

const COLUMNS: &[Column] = &[
    Column::new("State", 14, 14, 0),
    Column::new("Licence", 8, 8, 0),
    Column::new("Holder", 10, 30, 2),
    Column::new("Free", 7, 7, 1).right(),
    Column::new("Serves", 10, 60, 0),
    Column::new("Expires", 16, 16, 1),
    Column::new("Held by", 8, 16, 3),
];

/// The licence at a row, as all its holders together know it, with the one that the keys act on.
pub fn at(state: &State, row: usize) -> Option<(&Proxy, License)> {
    held(state).into_iter().nth(row).map(|held| (held.first.0, held.whole()))
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
        self.held.len()
    }

    fn id(&self, row: usize) -> Cow<'_, str> {
        self.held.get(row).map_or(Cow::Borrowed(""), |held| held.first.1.id.as_str().into())
    }

    fn cell(&self, row: usize, column: usize) -> Line {
        let Some(held) = self.held.get(row) else { return Line::new() };
        let license = &held.whole();
        match column {
            0 => state_of(license),
            1 => Line::text(short(&license.id)),
            2 => Line::text(&license.holder),
            3 => Line::text(format!("{} of {}", license.free(), license.proxies)),
            4 if license.bound.is_empty() => Line::of(Role::Muted, "none"),
            4 => Line::text(license.serves()),
            5 => Line::text(expires(self.state, license)),
            _ => Line::of(Role::Muted, held.held_by()),
        }
    }

    fn sort_key(&self, row: usize, column: usize) -> SortKey {
        let Some(held) = self.held.get(row) else { return SortKey::Number(0) };
        match column {
            3 => SortKey::amount(held.whole().free().into()),
            5 => SortKey::Number(held.first.1.expires_at.unwrap_or(i64::MAX)),
            _ => SortKey::text(&self.cell(row, column).plain()),
        }
    }

    fn haystack(&self, row: usize) -> String {
        self.held.get(row).map_or_else(String::new, |held| {
            let license = held.whole();
            format!("{} {} {} {}", license.id, license.holder, license.serves(), held.held_by())
        })
    }

    fn stale(&self, row: usize) -> bool {
        self.held.get(row).is_some_and(|held| !held.first.0.live())
    }
}

/// The selected licence in full. Its signed text is never shown.
pub fn details(state: &State, row: usize) -> Vec<Line> {
    let Some(held) = held(state).into_iter().nth(row) else { return Vec::new() };
    let license = held.whole();
    let mut lines = vec![pair_line("State", state_of(&license))];
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
        pair("Expires", expires(state, &license)),
        pair("Held by", held.held_by()),
    ]);
    if held.holders.len() > 1 {
        lines.push(pair("Keys act at", held.first.0.name()));
    }
    for (proxy, copy) in held.holders.iter().filter(|(_, copy)| copy.fault.is_some() && copy.fault != license.fault) {
        let fault = copy.fault.as_deref().unwrap_or_default();
        lines.push(Line::state(Glyph::Error, Role::Error, format!("At {}: {fault}", proxy.name())));
    }
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
