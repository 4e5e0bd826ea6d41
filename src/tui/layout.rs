//! Where things stand: a pure function of the size.

use ratatui::layout::Rect;

use crate::core::room;

/// The smallest terminal the console is made for, columns and rows.
pub const MINIMUM: (u16, u16) = (40, 12);

/// The parts of the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Areas {
    /// Tabs and state of the fleet, one row.
    pub tabs: Rect,
    /// Where one is, filter, sort, one row.
    pub crumbs: Rect,
    /// The most important thing in words, one row or none.
    pub summary: Rect,
    /// The list, form or page.
    pub body: Rect,
    /// Details of what is selected; empty where there is no room.
    pub details: Rect,
    /// Keys, one row.
    pub footer: Rect,
}

/// What a screen wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wants {
    /// A line of words above the list.
    pub summary: bool,
    /// Details beside the list, or below it, where there is room.
    pub details: bool,
}

/// The areas for a size; none when it is below [`MINIMUM`].
pub fn areas(columns: u16, rows: u16, wants: Wants) -> Option<Areas> {
    if columns < MINIMUM.0 || rows < MINIMUM.1 {
        return None;
    }
    let row = |y: u16, height: u16| Rect { x: 0, y, width: columns, height };
    let top = 2 + u16::from(wants.summary);
    let mut body = row(top, rows - top - 1);
    let mut details = Rect::ZERO;
    let below = room::below(columns, rows, body.height);
    if wants.details && room::beside(columns, rows) {
        let list = columns * 3 / 5;
        details = Rect { x: list + 2, width: columns - list - 2, ..body };
        body.width = list;
    } else if wants.details && below > 0 {
        details = Rect { y: body.y + body.height - below + 1, height: below - 1, ..body };
        body.height -= below;
    }
    Some(Areas {
        tabs: row(0, 1),
        crumbs: row(1, 1),
        summary: row(2, u16::from(wants.summary)),
        body,
        details,
        footer: row(rows - 1, 1),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The areas as a drawing: one letter for each.
    fn drawing(columns: u16, rows: u16, wants: Wants) -> String {
        let Some(areas) = areas(columns, rows, wants) else { return "too small".into() };
        let parts = [
            ('t', areas.tabs),
            ('c', areas.crumbs),
            ('s', areas.summary),
            ('b', areas.body),
            ('d', areas.details),
            ('f', areas.footer),
        ];
        // One letter stands for ten columns.
        (0..rows)
            .map(|y| {
                (0..columns / 10)
                    .map(|x| parts.iter().find(|(_, area)| area.contains((x * 10 + 5, y).into())).map_or('.', |part| part.0))
                    .collect::<String>()
            })
            .collect::<Vec<_>>()
            .join("\n")
    }

    const ALL: Wants = Wants { summary: true, details: true };

    #[test]
    fn sizes_as_drawings() {
        assert_eq!(drawing(39, 12, ALL), "too small");
        assert_eq!(
            drawing(40, 12, ALL),
            ["tttt", "cccc", "ssss"].iter().chain(&["bbbb"; 8]).chain(&["ffff"]).copied().collect::<Vec<_>>().join("\n")
        );
        let wide = drawing(120, 12, ALL);
        assert_eq!(wide.lines().nth(5), Some("bbbbbbbddddd"));
        assert_eq!(drawing(120, 24, ALL).lines().nth(5), Some("bbbbbbbbbbbb"), "a list is not squeezed for its details");
        assert_eq!(drawing(160, 24, ALL).lines().nth(5), Some("bbbbbbbbbbdddddd"));
        let tall = drawing(80, 24, ALL);
        assert_eq!(tall.lines().filter(|line| line.starts_with('d')).count(), 7);
        assert_eq!(tall.lines().filter(|line| line.starts_with('b')).count(), 12);
    }

    proptest! {
        #[test]
        fn parts_never_overlap_and_stay_inside(columns in 0u16..400, rows in 0u16..200, summary: bool, details: bool) {
            if let Some(a) = areas(columns, rows, Wants { summary, details }) {
                let parts = [a.tabs, a.crumbs, a.summary, a.body, a.details, a.footer];
                for (at, part) in parts.iter().enumerate() {
                    prop_assert!(part.right() <= columns && part.bottom() <= rows);
                    for other in &parts[at + 1..] {
                        prop_assert!(part.is_empty() || other.is_empty() || !part.intersects(*other));
                    }
                }
                prop_assert!(a.body.height >= 5);
                if details {
                    prop_assert_eq!(a.body.height - 1, room::list(columns, rows, summary));
                }
            }
        }
    }
}
