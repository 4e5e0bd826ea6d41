//! Draws pages of lines, wrapped to the width, and one-line fields.

use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};

use crate::core::input::Field;
use crate::core::rich::{Line, Role, Span};
use crate::core::text::{width, wrap};
use crate::tui::paint::Painter;

/// Draws lines from `scroll` on; a text that does not fit goes on in the next line, below its own beginning.
pub fn page(painter: &Painter, buffer: &mut Buffer, area: Rect, lines: &[Line], scroll: usize) {
    let mut y = area.y;
    for line in lines.iter().skip(scroll) {
        if y >= area.bottom() {
            return;
        }
        y += paragraph(painter, buffer, Rect { y, height: area.bottom() - y, ..area }, line);
    }
}

/// Draws one line, wrapped; answers the rows used.
fn paragraph(painter: &Painter, buffer: &mut Buffer, area: Rect, line: &Line) -> u16 {
    let columns = usize::from(area.width);
    if painter.width(line) <= columns {
        painter.line(buffer, area.x, area.y, area.width, line, None);
        return 1;
    }
    // Only the last piece is long: a label, a sign, then a sentence. The sentence wraps beside them.
    let Some((Span::Text(text, role), before)) = line.0.split_last() else {
        painter.line(buffer, area.x, area.y, area.width, line, None);
        return 1;
    };
    let head = Line(before.to_vec());
    let indent = painter.width(&head).min(columns / 2);
    painter.line(buffer, area.x, area.y, indent as u16, &head, None);
    let mut y = area.y;
    for part in wrap(text, columns - indent) {
        if y >= area.bottom() {
            break;
        }
        painter.text(buffer, area.x + indent as u16, y, area.width - indent as u16, &part, painter.style(*role));
        y += 1;
    }
    (y - area.y).max(1)
}

/// Draws a field being typed; answers where the cursor stands. A long text is shown around the cursor.
pub fn field(painter: &Painter, buffer: &mut Buffer, area: Rect, input: &Field, secret: bool) -> Position {
    let text: String = if secret { "*".repeat(input.text().chars().count()) } else { input.text().to_owned() };
    let columns = usize::from(area.width).max(2);
    let before: String = text.chars().take(input.cursor()).collect();
    let mut skipped = 0;
    let mut start = 0;
    // The part before the cursor must leave one column for the cursor itself.
    while width(&before[start..]) >= columns {
        start += before[start..].chars().next().map_or(1, char::len_utf8);
        skipped += 1;
    }
    let shown: String = text.chars().skip(skipped).collect();
    let style = painter.style(Role::Input);
    painter.text(buffer, area.x, area.y, area.width, &" ".repeat(usize::from(area.width)), style);
    // Cut by hand: a mark at the end would stand under the cursor.
    let mut fitting = String::new();
    for c in shown.chars() {
        if width(&fitting) + width(c.encode_utf8(&mut [0; 4])) > columns {
            break;
        }
        fitting.push(c);
    }
    painter.text(buffer, area.x, area.y, area.width, &fitting, style);
    let x = area.x + u16::try_from(width(&before[start..])).unwrap_or(0).min(area.width.saturating_sub(1));
    Position { x, y: area.y }
}
