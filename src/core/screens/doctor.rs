//! An examination of one proxy: each checked thing as it comes out, the worst first, with what was measured and what to do.

use std::borrow::Cow;

use api::{DoctorCheck, Verdict};

use super::{absence, error_lines};
use crate::core::format::{count, moment, span};
use crate::core::rich::{Glyph, Line, Role, Span, pair, pair_line};
use crate::core::state::State;
use crate::core::store::Examination;
use crate::core::table::{Column, Rows, SortKey};

/// Rows of the screen; their natural order is that in which they came.
pub struct CheckRows<'a> {
    checks: &'a [DoctorCheck],
    live: bool,
}

const COLUMNS: &[Column] = &[
    Column::new("State", 9, 9, 0),
    Column::new("Check", 11, 11, 0),
    Column::new("Of", 8, 24, 0),
    Column::new("Measured", 30, 60, 0),
    Column::new("Took", 6, 8, 3).right(),
    Column::new("What to do", 40, 200, 4),
];

/// The sort that the screen begins with: the worst first.
pub const WORST: (usize, bool) = (0, true);

impl<'a> CheckRows<'a> {
    /// Rows for a proxy.
    pub fn new(state: &'a State, proxy: &str) -> Self {
        let found = state.proxy(proxy);
        let checks = found.and_then(|proxy| proxy.examination.as_ref()).map_or(&[][..], |examination| &examination.checks);
        Self { checks, live: found.is_some_and(|proxy| proxy.live()) }
    }
}

fn verdict(verdict: Verdict) -> Line {
    match verdict {
        Verdict::Pass => Line::state(Glyph::Ok, Role::Ok, "pass"),
        Verdict::Warning => Line::state(Glyph::Warn, Role::Warn, "warning"),
        Verdict::Fail => Line::state(Glyph::Error, Role::Error, "fail"),
        Verdict::Unknown => Line::state(Glyph::Warn, Role::Warn, "unknown"),
    }
}

/// How much it matters. What cannot be told is no failure.
fn badness(verdict: Verdict) -> i64 {
    match verdict {
        Verdict::Pass => 0,
        Verdict::Unknown => 1,
        Verdict::Warning => 2,
        Verdict::Fail => 3,
    }
}

fn took(check: &DoctorCheck) -> String {
    if check.took < 1000 { format!("{} ms", check.took) } else { format!("{}.{} s", check.took / 1000, check.took % 1000 / 100) }
}

impl Rows for CheckRows<'_> {
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn len(&self) -> usize {
        self.checks.len()
    }

    fn id(&self, row: usize) -> Cow<'_, str> {
        self.checks.get(row).map_or(Cow::Borrowed(""), |check| format!("{}\u{1f}{}", check.check, check.object).into())
    }

    fn cell(&self, row: usize, column: usize) -> Line {
        let Some(check) = self.checks.get(row) else { return Line::new() };
        match column {
            0 => verdict(check.verdict),
            1 => Line::text(&check.check),
            2 => Line::text(&check.object),
            3 => Line::text(&check.measured),
            4 => Line::of(Role::Muted, took(check)),
            _ => Line::of(Role::Hint, check.fix.as_deref().unwrap_or("")),
        }
    }

    fn sort_key(&self, row: usize, column: usize) -> SortKey {
        match self.checks.get(row) {
            Some(check) if column == WORST.0 => SortKey::Number(badness(check.verdict)),
            Some(check) if column == 4 => SortKey::amount(check.took),
            _ => SortKey::text(&self.cell(row, column).plain()),
        }
    }

    fn haystack(&self, row: usize) -> String {
        (0..4).map(|column| self.cell(row, column).plain()).collect::<Vec<_>>().join(" ")
    }

    fn stale(&self, _row: usize) -> bool {
        !self.live
    }
}

/// How many of a verdict.
fn tally(examination: &Examination, verdict: Verdict) -> usize {
    examination.checks.iter().filter(|check| check.verdict == verdict).count()
}

/// The line above the list.
pub fn summary(state: &State, proxy: &str) -> Option<Line> {
    let proxy = state.proxy(proxy)?;
    let examination = proxy.examination.as_ref()?;
    let absent = absence(state, proxy);
    let mut line = match (&examination.ended, absent) {
        // What was found before says nothing about now.
        (Some((at, None)), Some(absent)) => {
            let found = moment(*at, state.now, &state.settings.zone);
            Line::state(Glyph::Warn, Role::Warn, format!("{absent}; found at {found}:"))
        }
        (None, _) => {
            Line::state(Glyph::Running, Role::Running, format!("examining, {}", span(state.now - examination.started_at)))
        }
        (Some((_, Some(error))), _) => return Some(Line::state(Glyph::Error, Role::Error, &error.message)),
        (Some((at, None)), None) => Line::of(Role::Muted, format!("through in {}", span(at - examination.started_at))),
    };
    for (verdict, glyph, role, word) in [
        (Verdict::Fail, Glyph::Error, Role::Error, "fail"),
        (Verdict::Warning, Glyph::Warn, Role::Warn, "warning"),
        (Verdict::Unknown, Glyph::Warn, Role::Warn, "unknown"),
        (Verdict::Pass, Glyph::Ok, Role::Ok, "pass"),
    ] {
        let n = tally(examination, verdict);
        if n > 0 {
            line = line.and(Role::Text, "  ").with(Span::Glyph(glyph, role)).and(role, format!(" {n} {word}"));
        }
    }
    Some(line)
}

/// What to say where no line has come.
pub fn empty(state: &State, proxy: &str) -> Vec<Line> {
    let words = match state.proxy(proxy).and_then(|proxy| proxy.examination.as_ref()).map(|examination| &examination.ended) {
        Some(Some((_, Some(_)))) => "It broke off before its first check.",
        Some(Some((_, None))) => "It ended before its first check.",
        Some(None) => "No line has come yet.",
        None => return Vec::new(),
    };
    vec![Line::of(Role::Muted, words)]
}

/// The selected thing in full, and why the examination broke off if it did.
pub fn details(state: &State, proxy: &str, row: Option<usize>) -> Vec<Line> {
    let Some(examination) = state.proxy(proxy).and_then(|proxy| proxy.examination.as_ref()) else { return Vec::new() };
    let mut lines = Vec::new();
    if let Some(check) = row.and_then(|row| examination.checks.get(row)) {
        lines.extend([
            pair_line("State", verdict(check.verdict)),
            pair("Check", &check.check),
            pair("Of", &check.object),
            pair("Measured", &check.measured),
        ]);
        if let Some(fix) = &check.fix {
            lines.push(pair_line("What to do", Line::of(Role::Hint, fix)));
        }
        lines.push(pair("Took", took(check)));
    }
    if let Some((_, Some(error))) = &examination.ended {
        if !examination.checks.is_empty() {
            lines.push(Line::new());
            lines.push(Line::of(Role::Muted, format!("It broke off after {}", count(examination.checks.len(), "check"))));
        }
        lines.extend(error_lines(error));
    }
    lines
}
