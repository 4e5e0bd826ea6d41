//! Draws help and palette: the actions, their keys, and why one cannot be done now.

use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};

use super::text::{field, page};
use crate::core::act::availability;
use crate::core::action::Action;
use crate::core::rich::{Line, Role};
use crate::core::state::State;
use crate::core::text::width;
use crate::tui::paint::Painter;

/// How the fields of a form are answered.
const FIELDS: [&str; 2] = [
    "One of some: left and right choose, or the first letter does.",
    "Any of some: type to find, Enter takes what was found; Space ticks where nothing is typed.",
];

/// The keys of an action, as words.
pub fn keys(state: &State, action: Action, most: usize) -> String {
    let mut keys = state.keymap.keys(&state.contexts(), action);
    if keys.is_empty() {
        keys = state.keymap.keys(action.info().contexts, action);
    }
    keys.iter().take(most).map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// Draws it over the whole body; answers where the cursor stands.
pub fn draw(painter: &Painter, buffer: &mut Buffer, area: Rect, state: &State) -> Option<Position> {
    let chooser = state.chooser.as_ref()?;
    let title = if chooser.palette { "All actions" } else { "What can be done here" };
    let inside = painter.frame(buffer, area, title, Role::Focus);
    if inside.is_empty() {
        return None;
    }
    let choices = state.choices();
    let prompt = if chooser.palette { ": " } else { "/ " };
    let used = painter.text(buffer, inside.x + 1, inside.y, 2, prompt, painter.style(Role::Hint));
    let line = Rect { x: inside.x + 1 + used, y: inside.y, width: inside.width.saturating_sub(4), height: 1 };
    let cursor = field(painter, buffer, line, &chooser.input, false);
    let height = usize::from(inside.height.saturating_sub(1));
    let at = chooser.cursor.min(choices.len().saturating_sub(1));
    let first = at.saturating_sub(height.saturating_sub(1));
    let key_columns = if inside.width > 70 { 18 } else { 10 };
    let name = |action: Action| if chooser.palette { action.info().id } else { action.info().title };
    let name_columns = choices.iter().map(|action| width(name(*action))).max().unwrap_or(0).min(16) as u16;
    for (line, action) in choices.iter().skip(first).take(height).enumerate() {
        let y = inside.y + 1 + line as u16;
        let selected = first + line == at;
        let row = Rect { y, height: 1, ..inside };
        let style = |role: Role| if selected { painter.style(Role::Selected) } else { painter.style(role) };
        buffer.set_style(row, if selected { painter.style(Role::Selected) } else { ratatui::style::Style::new() });
        let mut x = inside.x + 1;
        painter.text(buffer, x, y, key_columns, &keys(state, *action, 3), style(Role::Hint));
        x += key_columns + 1;
        painter.text(buffer, x, y, name_columns, name(*action), style(Role::Text));
        x += name_columns + 2;
        let left = inside.right().saturating_sub(x + 1);
        match availability(state, *action) {
            Ok(()) => painter.text(buffer, x, y, left, action.info().doc, style(Role::Muted)),
            Err(reason) => painter.text(buffer, x, y, left, &format!("not now: {reason}"), style(Role::Warn)),
        };
    }
    // What answers a field is no action: it is said below them.
    let end = inside.y + 2 + choices.len() as u16;
    if state.form.as_ref().is_some_and(|form| form.review.is_none()) && end + 2 < inside.bottom() {
        let area = Rect { x: inside.x + 1, y: end, width: inside.width.saturating_sub(2), height: inside.bottom() - end };
        page(painter, buffer, area, &FIELDS.map(|text| Line::of(Role::Muted, text)), 0);
    }
    if choices.is_empty() && height > 0 {
        painter.text(
            buffer,
            inside.x + 1,
            inside.y + 1,
            inside.width.saturating_sub(2),
            "No action of that name.",
            painter.style(Role::Muted),
        );
    }
    Some(cursor)
}
