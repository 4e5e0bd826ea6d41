//! Draws the one table: header, and only the rows that are visible.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

use crate::core::rich::{Glyph, Line, Role};
use crate::core::table::{Rows, TableView, layout};
use crate::tui::paint::Painter;

/// Draws a table; answers the first visible position, to be kept for the next time.
pub fn draw(painter: &Painter, buffer: &mut Buffer, area: Rect, table: &TableView<'_>, rows: &dyn Rows) -> usize {
    if area.is_empty() {
        return table.offset;
    }
    let columns = rows.columns();
    let height = usize::from(area.height - 1);
    let first = table.first_visible(height);
    let visible: Vec<(usize, usize)> = (first..table.order.len())
        .take(height)
        .map(|position| (position, table.order[position] as usize))
        .filter(|(_, row)| *row < rows.len())
        .collect();
    let cells: Vec<Vec<Line>> =
        visible.iter().map(|(_, row)| (0..columns.len()).map(|column| rows.cell(*row, column)).collect()).collect();
    let widest = |column: usize| cells.iter().map(|row| painter.width(&row[column])).max().unwrap_or(0);
    let needs: Vec<u16> = (0..columns.len()).map(|column| u16::try_from(widest(column)).unwrap_or(u16::MAX)).collect();
    let shown = layout(columns, &needs, area.width);
    let head = painter.style(Role::Muted);
    let mut x = area.x;
    for (index, width) in &shown {
        let column = &columns[*index];
        let width = (*width).min(area.right().saturating_sub(x));
        let sorted = table.sort.filter(|(sorted, _)| sorted == index);
        let arrow = sorted.map(|(_, down)| painter.glyph(if down { Glyph::Descending } else { Glyph::Ascending }));
        let title = match arrow {
            Some(arrow) => format!("{}{arrow}", column.title),
            None => column.title.to_owned(),
        };
        let used = (title.chars().count() as u16).min(width);
        let at = if column.right { x + width - used } else { x };
        painter.text(buffer, at, area.y, used, &title, head);
        x = x.saturating_add(width + 1);
    }
    for (line, ((position, row), cells)) in visible.iter().zip(&cells).enumerate() {
        let y = area.y + 1 + line as u16;
        let selected = *position == table.cursor;
        let over: Option<Style> = if selected {
            Some(painter.style(Role::Selected))
        } else if rows.stale(*row) {
            Some(painter.style(Role::Muted))
        } else {
            None
        };
        if selected {
            buffer.set_style(Rect { y, height: 1, ..area }, painter.style(Role::Selected));
        }
        let mut x = area.x;
        for (index, width) in &shown {
            let width = (*width).min(area.right().saturating_sub(x));
            let cell = &cells[*index];
            if columns[*index].right {
                painter.line_right(buffer, x, y, width, cell, over);
            } else {
                painter.line(buffer, x, y, width, cell, over);
            }
            x = x.saturating_add(width + 1);
        }
    }
    first
}
