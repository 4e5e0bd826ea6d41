//! How much of the terminal a list has: the one rule by which it is drawn and by which its pages are turned.

use super::rich::{Line, Span};
use super::text::{width, wrap};

/// Columns from which a list has the room it needs beside its details, and a form beside what its field offers.
const WIDE: u16 = 160;
/// Columns from which two things can stand side by side at all.
const SPLIT: u16 = 110;
/// Rows from which the details stand below the list where there is no room beside it.
const TALL: u16 = 18;
/// Rows that what a field offers wants below its form.
const OFFER: u16 = 9;
/// Rows of a list and its header that the details below it leave alone.
const LIST: u16 = 9;

/// Whether list and details stand side by side on a terminal of this size.
pub fn beside(columns: u16, rows: u16) -> bool {
    columns >= WIDE || (columns >= SPLIT && rows < TALL)
}

/// Whether what a field offers stands beside the form, which has so many columns and rows for both, and needs `fields`
/// rows for itself.
pub fn form_beside(columns: u16, rows: u16, fields: u16) -> bool {
    columns >= WIDE || (columns >= SPLIT && fields + OFFER > rows)
}

/// Rows that the details below a list take of its body of `body` rows, with the line between them, on a terminal of this
/// size; 0: there are none below.
pub fn below(columns: u16, rows: u16, body: u16) -> u16 {
    if beside(columns, rows) || rows < TALL { 0 } else { (body * 2 / 5).max(6).min(body.saturating_sub(LIST)) }
}

/// Rows of a list that are seen at once on a terminal of this size, without its header.
pub fn list(columns: u16, rows: u16, summary: bool) -> u16 {
    // Tabs, crumbs, keys.
    let body = rows.saturating_sub(3 + u16::from(summary));
    body.saturating_sub(below(columns, rows, body) + 1)
}

/// The first line of a page of text that is scrolled to its end, on a terminal of this size: its last page is full.
pub fn last_start(lines: &[Line], columns: u16, rows: u16, summary: bool) -> usize {
    // Tabs, crumbs, keys.
    let height = usize::from(rows.saturating_sub(3 + u16::from(summary)));
    // A sign may take more than its character: rather a row too many than an end that is not reached.
    let room = usize::from(columns.saturating_sub(6)).max(1);
    let mut used = 0;
    let above = lines.iter().rev().take_while(|line| {
        used += wrapped(line, room);
        used <= height
    });
    // Of a line that is longer than the screen, that line.
    (lines.len() - above.count()).min(lines.len().saturating_sub(1))
}

/// Rows that a line takes at most: its last piece wraps beside the others.
fn wrapped(line: &Line, columns: usize) -> usize {
    let Some((Span::Text(text, _), before)) = line.0.split_last() else { return 1 };
    let whole = width(&line.plain());
    if whole <= columns {
        return 1;
    }
    let indent = width(&Line(before.to_vec()).plain()).min(columns / 2);
    wrap(text, columns - indent).len().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_ends_with_its_last_line_at_the_bottom() {
        let lines = |n: usize| vec![Line::text("x"); n];
        assert_eq!(last_start(&lines(10), 80, 24, false), 0, "it fits");
        assert_eq!(last_start(&lines(21), 80, 24, false), 0);
        assert_eq!(last_start(&lines(30), 80, 24, false), 9);
        assert_eq!(last_start(&lines(30), 80, 24, true), 10);
        let mut long = lines(30);
        long[29] = Line::text("word ".repeat(40));
        assert_eq!(last_start(&long, 80, 24, false), 11, "it takes three rows");
        assert_eq!(last_start(&[Line::text("word ".repeat(4000))], 80, 24, false), 0);
        assert_eq!(last_start(&[], 80, 24, false), 0);
    }

    #[test]
    fn a_list_keeps_enough_to_be_used() {
        for (columns, rows, summary, expected) in [
            (80, 24, false, 12),
            (80, 24, true, 11),
            (80, 18, true, 8),
            (80, 17, true, 12),
            (120, 24, false, 12),
            (120, 17, false, 13),
            (160, 24, false, 20),
            (40, 12, true, 7),
        ] {
            assert_eq!(list(columns, rows, summary), expected, "{columns}x{rows}");
        }
    }
}
