//! Draws pages of lines, wrapped to the width, and one-line fields.

use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};

use crate::core::input::Field;
use crate::core::rich::{Glyph, Line, Role, Span};
use crate::core::text::{width, wrap};
use crate::tui::paint::Painter;

/// Columns that a mark at the right takes.
pub const MARK: u16 = 2;

/// Draws lines from `scroll` on; a text that does not fit goes on in the next line, below its own beginning. Answers the
/// rows used.
pub fn page(painter: &Painter, buffer: &mut Buffer, area: Rect, lines: &[Line], scroll: usize) -> u16 {
    let mut y = area.y;
    for line in lines.iter().skip(scroll) {
        if y >= area.bottom() {
            break;
        }
        y += paragraph(painter, buffer, Rect { y, height: area.bottom() - y, ..area }, line);
    }
    y - area.y
}

/// Like [`page`], with a mark at the right where it goes on above or below.
pub fn scrolled(painter: &Painter, buffer: &mut Buffer, area: Rect, lines: &[Line], scroll: usize) -> u16 {
    let text = Rect { width: area.width.saturating_sub(MARK), ..area };
    let used = page(painter, buffer, text, lines, scroll);
    let below: usize = lines.iter().skip(scroll).map(|line| rows(painter, line, text.width)).sum();
    let marks = [
        (scroll > 0, Glyph::Ascending, area.y),
        (below > usize::from(area.height), Glyph::Descending, area.bottom().saturating_sub(1)),
    ];
    for (more, glyph, y) in marks {
        if more && area.height > 1 {
            let mark = painter.glyph(glyph).to_string();
            painter.text(buffer, area.right() - 1, y, 1, &mark, painter.style(Role::Hint));
        }
    }
    used
}

/// Rows a line takes when it is wrapped.
pub fn rows(painter: &Painter, line: &Line, columns: u16) -> usize {
    let columns = usize::from(columns);
    match line.0.split_last() {
        Some((Span::Text(text, _), before)) if painter.width(line) > columns => {
            let indent = painter.width(&Line(before.to_vec())).min(columns / 2);
            wrap(text, columns - indent).len().max(1)
        }
        _ => 1,
    }
}

/// Draws one line, wrapped; answers the rows used. What does not fit into the last row is cut with a mark.
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
    let parts = wrap(text, columns - indent);
    for at in 0..parts.len() {
        let last = y + 1 >= area.bottom();
        let part = if last { parts[at..].join(" ") } else { parts[at].clone() };
        painter.text(buffer, area.x + indent as u16, y, area.width - indent as u16, &part, painter.style(*role));
        y += 1;
        if last {
            break;
        }
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
