//! Draws a question in a box in the middle.

use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};

use super::text::field;
use crate::core::rich::Role;
use crate::core::state::Confirm;
use crate::core::text::{width, wrap};
use crate::tui::paint::Painter;

/// Draws it; answers where the cursor stands when something is to be typed.
pub fn draw(painter: &Painter, buffer: &mut Buffer, area: Rect, confirm: &Confirm) -> Option<Position> {
    let columns = area.width.saturating_sub(4).clamp(20, 64);
    let inner = usize::from(columns) - 4;
    let mut lines: Vec<(String, Role)> =
        wrap(&crate::core::text::clean(&confirm.question), inner).into_iter().map(|line| (line, Role::Accent)).collect();
    for detail in &confirm.detail {
        lines.extend(wrap(detail, inner).into_iter().map(|line| (line, Role::Text)));
    }
    // What is to be typed stands directly above the place to type it: without it nobody could go on.
    let asked = confirm.expected.as_ref().map(|expected| wrap(&format!("Type {expected} to go on:"), inner)).unwrap_or_default();
    let height = ((lines.len() + asked.len()) as u16 + 5).min(area.height);
    let frame = Rect {
        x: area.x + (area.width - columns.min(area.width)) / 2,
        y: area.y + (area.height - height) / 2,
        width: columns.min(area.width),
        height,
    };
    let inside = painter.frame(buffer, frame, "", Role::Focus);
    let buttons = inside.bottom().saturating_sub(2);
    let own = buttons.saturating_sub(asked.len() as u16).max(inside.y);
    let room = usize::from(own - inside.y);
    if lines.len() > room && room > 0 {
        let rest: Vec<String> = lines.drain(room..).map(|(line, _)| line).collect();
        if let Some((last, _)) = lines.last_mut() {
            *last = format!("{last} {}", rest.join(" "));
        }
    }
    for (y, (line, role)) in (inside.y..own).zip(&lines) {
        painter.text(buffer, inside.x + 1, y, inside.width.saturating_sub(2), line, painter.style(*role));
    }
    for (y, line) in (own..buttons).zip(&asked) {
        painter.text(buffer, inside.x + 1, y, inside.width.saturating_sub(2), line, painter.style(Role::Hint));
    }
    let y = buttons;
    let mut cursor = None;
    if confirm.expected.is_some() {
        let line = Rect { x: inside.x + 1, y, width: inside.width.saturating_sub(2), height: 1 };
        cursor = Some(field(painter, buffer, line, &confirm.typed, false));
        let hint = format!("Enter: {}   Esc: cancel", confirm.verb.to_lowercase());
        painter.text(buffer, inside.x + 1, y + 1, inside.width.saturating_sub(2), &hint, painter.style(Role::Hint));
    } else {
        let selected = painter.style(Role::OnAccent);
        let plain = painter.style(Role::Text);
        let cancel = " Cancel ".to_owned();
        let go = format!(" {} ", confirm.verb);
        painter.text(buffer, inside.x + 1, y, 10, &cancel, if confirm.yes { plain } else { selected });
        let x = inside.x + 3 + width(&cancel) as u16;
        painter.text(buffer, x, y, inside.right().saturating_sub(x), &go, if confirm.yes { selected } else { plain });
        painter.text(
            buffer,
            inside.x + 1,
            y + 1,
            inside.width.saturating_sub(2),
            "y: yes   n, Esc: no",
            painter.style(Role::Hint),
        );
    }
    cursor
}
