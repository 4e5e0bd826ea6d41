//! Everything the console has told, newest first.

use std::borrow::Cow;

use api::LogLevel;

use crate::core::format::clock;
use crate::core::notice::Notice;
use crate::core::rich::{Glyph, Line, Role, pair};
use crate::core::state::State;
use crate::core::table::{Column, Rows, SortKey};

/// Rows of the screen.
pub struct MessageRows<'a>(pub &'a State);

const COLUMNS: &[Column] = &[Column::new("State", 10, 10, 0), Column::new("When", 8, 19, 0), Column::new("Message", 18, 400, 0)];

fn at(state: &State, row: usize) -> Option<&Notice> {
    let all = &state.notices.all;
    all.get(all.len().checked_sub(row + 1)?)
}

/// A level as symbol and word.
pub fn level(level: LogLevel) -> (Glyph, Role, &'static str) {
    match level {
        LogLevel::Info => (Glyph::Dot, Role::Text, "info"),
        LogLevel::Warning => (Glyph::Warn, Role::Warn, "warning"),
        LogLevel::Error => (Glyph::Error, Role::Error, "error"),
    }
}

impl Rows for MessageRows<'_> {
    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }

    fn len(&self) -> usize {
        self.0.notices.all.len()
    }

    fn id(&self, row: usize) -> Cow<'_, str> {
        at(self.0, row).map_or(Cow::Borrowed(""), |notice| notice.id.to_string().into())
    }

    fn cell(&self, row: usize, column: usize) -> Line {
        let Some(notice) = at(self.0, row) else { return Line::new() };
        let (glyph, role, word) = level(notice.level);
        match column {
            0 => Line::state(glyph, role, word),
            1 => Line::of(Role::Muted, clock(notice.at, self.0.now, &self.0.settings.zone)),
            _ => Line::text(&notice.text),
        }
    }

    fn sort_key(&self, row: usize, column: usize) -> SortKey {
        match at(self.0, row) {
            Some(notice) if column == 1 => SortKey::Number(notice.at),
            _ => SortKey::text(&self.cell(row, column).plain()),
        }
    }

    fn haystack(&self, row: usize) -> String {
        at(self.0, row).map_or_else(String::new, |notice| notice.text.clone())
    }
}

/// The selected message in full.
pub fn details(state: &State, row: usize) -> Vec<Line> {
    let Some(notice) = at(state, row) else { return Vec::new() };
    let (glyph, role, _) = level(notice.level);
    let mut lines = vec![pair("When", clock(notice.at, state.now, &state.settings.zone)), Line::state(glyph, role, &notice.text)];
    lines.extend(notice.more.iter().map(Line::text));
    lines
}
