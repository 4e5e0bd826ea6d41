//! How much of the terminal a list has: the one rule by which it is drawn and by which its pages are turned.

/// Columns from which list and details stand side by side.
pub const WIDE: u16 = 110;
/// Rows from which the details stand below the list where there is no room beside it.
const TALL: u16 = 18;
/// Rows of a list and its header that the details below it leave alone.
const LIST: u16 = 9;

/// Rows that the details below a list take of its body of `body` rows, with the line between them, on a terminal of this
/// size; 0: there are none below.
pub fn below(columns: u16, rows: u16, body: u16) -> u16 {
    if columns >= WIDE || rows < TALL { 0 } else { (body * 2 / 5).max(6).min(body.saturating_sub(LIST)) }
}

/// Rows of a list that are seen at once on a terminal of this size, without its header.
pub fn list(columns: u16, rows: u16, summary: bool) -> u16 {
    // Tabs, crumbs, keys.
    let body = rows.saturating_sub(3 + u16::from(summary));
    body.saturating_sub(below(columns, rows, body) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_keeps_enough_to_be_used() {
        for (columns, rows, summary, expected) in [
            (80, 24, false, 12),
            (80, 24, true, 11),
            (80, 18, true, 8),
            (80, 17, true, 12),
            (120, 24, false, 20),
            (40, 12, true, 7),
        ] {
            assert_eq!(list(columns, rows, summary), expected, "{columns}x{rows}");
        }
    }
}
