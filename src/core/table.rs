//! The one table behind every list: order, filter, selection. What a row shows is the screen's matter ([`Rows`]).
//!
//! The selection is an id, never a position: when rows come and go, the keys keep acting on the same object. Order
//! and filter are worked out when data, filter or sort change, not when the screen is drawn.

use std::borrow::Cow;
use std::cmp::Reverse;

use super::fuzzy::Query;
use super::input::Field;
use super::rich::Line;

/// A column.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Title.
    pub title: &'static str,
    /// Columns it needs at least.
    pub min: u16,
    /// Columns beyond which it gains nothing; equal to `min`: fixed.
    pub max: u16,
    /// 0 is always shown; higher numbers go first when room is short.
    pub priority: u8,
    /// Whether numbers stand at the right.
    pub right: bool,
}

impl Column {
    /// A column that grows from `min` to `max`.
    pub const fn new(title: &'static str, min: u16, max: u16, priority: u8) -> Self {
        Self { title, min, max, priority, right: false }
    }

    /// Its content stands at the right.
    pub const fn right(mut self) -> Self {
        self.right = true;
        self
    }
}

/// What a row is sorted by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum SortKey {
    /// By number.
    Number(i64),
    /// By text, without regard to case.
    Text(String),
}

impl SortKey {
    /// By text.
    pub fn text(text: &str) -> Self {
        Self::Text(text.to_lowercase())
    }

    /// By an amount.
    pub fn amount(amount: u64) -> Self {
        Self::Number(i64::try_from(amount).unwrap_or(i64::MAX))
    }
}

/// The rows of a list, borrowed from the state, in their natural order.
pub trait Rows {
    /// The columns, the same for every row.
    fn columns(&self) -> &'static [Column];
    /// How many rows.
    fn len(&self) -> usize;
    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Stable identity of a row.
    fn id(&self, row: usize) -> Cow<'_, str>;
    /// What a cell shows.
    fn cell(&self, row: usize, column: usize) -> Line;
    /// What a column sorts by.
    fn sort_key(&self, row: usize, column: usize) -> SortKey;
    /// What the filter looks at.
    fn haystack(&self, row: usize) -> String;
    /// Whether the row is old data of a proxy that is away.
    fn stale(&self, _row: usize) -> bool {
        false
    }
}

/// What the order was worked out from: version of the data, filter, sort.
type Built = (u64, String, Option<(usize, bool)>);

/// The state of a table.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// Filter as typed.
    pub filter: Field,
    /// Whether the filter is being typed.
    pub filtering: bool,
    /// Column and direction (true: descending); none: natural order.
    pub sort: Option<(usize, bool)>,
    /// Rows shown, as indices into the [`Rows`].
    pub order: Vec<u32>,
    /// Position of the selection in `order`.
    pub cursor: usize,
    /// Id of the selected row.
    pub selected: Option<String>,
    /// Rows in all, before the filter.
    pub total: usize,
    /// Whether the selection stays on its object whatever comes: what is shown of it fills the screen.
    pinned: bool,
    /// Whether the object that the selection is pinned to is gone.
    lost: bool,
    haystacks: Vec<String>,
    haystacks_version: Option<u64>,
    built: Option<Built>,
}

impl Table {
    /// Brings order and selection up to date with the rows, whose data is of this version.
    pub fn refresh(&mut self, rows: &dyn Rows, version: u64) {
        // Where the list is not seen, nothing is filtered out of it.
        let filter = if self.pinned { String::new() } else { self.filter.text().to_owned() };
        let wanted = (version, filter, self.sort);
        if self.built.as_ref() == Some(&wanted) {
            return;
        }
        let same_data = self.built.as_ref().is_some_and(|(built, ..)| *built == version);
        let narrowed = same_data
            && self.built.as_ref().is_some_and(|(_, text, sort)| {
                *sort == wanted.2
                    && !text.is_empty()
                    && wanted.1.starts_with(text.as_str())
                    && !wanted.1.contains(['!', '\'', '^', '$'])
            });
        self.total = rows.len();
        let mut query = Query::new(&wanted.1);
        if query.is_empty() {
            self.order = (0..rows.len() as u32).collect();
            self.sort_order(rows);
        } else {
            if self.haystacks_version != Some(version) {
                self.haystacks = (0..rows.len()).map(|row| rows.haystack(row)).collect();
                self.haystacks_version = Some(version);
            }
            let haystacks = &self.haystacks;
            let hit = |query: &mut Query, row: u32| haystacks.get(row as usize).is_some_and(|text| query.score(text).is_some());
            if narrowed {
                self.order.retain(|row| hit(&mut query, *row));
            } else {
                self.order = (0..rows.len() as u32).filter(|row| hit(&mut query, *row)).collect();
                self.sort_order(rows);
            }
        }
        self.built = Some(wanted);
        self.find_selection(rows);
    }

    fn sort_order(&mut self, rows: &dyn Rows) {
        if let Some((column, descending)) = self.sort {
            // The index as second key keeps equal rows in their natural order, whichever way the others go.
            if descending {
                self.order.sort_by_cached_key(|row| (Reverse(rows.sort_key(*row as usize, column)), *row));
            } else {
                self.order.sort_by_cached_key(|row| (rows.sort_key(*row as usize, column), *row));
            }
        }
    }

    fn find_selection(&mut self, rows: &dyn Rows) {
        let Some(id) = self.selected.take() else {
            self.cursor = self.cursor.min(self.order.len().saturating_sub(1));
            if self.cursor > 0 {
                self.select(rows, self.cursor);
            } else {
                self.select(rows, 0);
            }
            return;
        };
        let here = self.order.get(self.cursor).is_some_and(|row| rows.id(*row as usize) == id);
        let found = if here { Some(self.cursor) } else { self.order.iter().position(|row| rows.id(*row as usize) == id) };
        if self.pinned && found.is_none() {
            self.cursor = self.cursor.min(self.order.len().saturating_sub(1));
            self.selected = Some(id);
            self.lost = true;
            return;
        }
        // Gone: the row that took its place is the nearest thing to it.
        let cursor = found.unwrap_or_else(|| self.cursor.min(self.order.len().saturating_sub(1)));
        self.select(rows, cursor);
    }

    /// Selects the row at a position.
    pub fn select(&mut self, rows: &dyn Rows, cursor: usize) {
        self.lost = false;
        self.cursor = cursor.min(self.order.len().saturating_sub(1));
        self.selected = self.order.get(self.cursor).map(|row| rows.id(*row as usize).into_owned());
    }

    /// Selects by id at the next refresh.
    pub fn select_id(&mut self, id: impl Into<String>) {
        self.selected = Some(id.into());
        self.built = None;
    }

    /// Has a selection that stands at the top stay there, whatever row comes to the top.
    pub fn stay_on_top(&mut self) {
        if self.cursor == 0 {
            self.selected = None;
        }
    }

    /// Has the order worked out again at the next refresh: whole objects went, versions say nothing.
    pub fn outdate(&mut self) {
        self.built = None;
        self.haystacks_version = None;
    }

    /// Keeps the selection on its object from now on, or lets a neighbour take its place again when it goes.
    pub fn pin(&mut self, pinned: bool) {
        if self.pinned != pinned {
            self.pinned = pinned;
            self.built = None;
        }
    }

    /// Whether the object that the selection is pinned to is gone.
    pub fn lost(&self) -> bool {
        self.lost
    }

    /// Index into the rows of the selected one.
    pub fn current(&self) -> Option<usize> {
        self.order.get(self.cursor).filter(|_| !self.lost).map(|row| *row as usize)
    }

    /// Moves the selection.
    pub fn step(&mut self, rows: &dyn Rows, by: isize) {
        let last = self.order.len().saturating_sub(1);
        self.select(rows, self.cursor.saturating_add_signed(by).min(last));
    }

    /// What a drawing needs, without the copy of the rows that filtering keeps.
    pub fn view(&self, offset: usize) -> TableView<'_> {
        TableView { order: &self.order, cursor: self.cursor, offset, sort: self.sort }
    }

    /// Forgets filter and its typing; answers whether there was one.
    pub fn clear_filter(&mut self) -> bool {
        let had = self.filtering || !self.filter.is_empty();
        self.filtering = false;
        self.filter.clear();
        had
    }

    /// Sorts by the next column, then by none.
    pub fn next_sort(&mut self, columns: usize) {
        self.sort = match self.sort {
            None => Some((0, false)),
            Some((column, _)) if column + 1 < columns => Some((column + 1, false)),
            Some(_) => None,
        };
    }

    /// Turns the direction of the sort round.
    pub fn reverse_sort(&mut self) {
        self.sort = self.sort.map_or(Some((0, true)), |(column, descending)| Some((column, !descending)));
    }
}

/// A table as it is drawn.
#[derive(Debug, Clone, Copy)]
pub struct TableView<'a> {
    /// Rows shown, as indices into the [`Rows`].
    pub order: &'a [u32],
    /// Position of the selection.
    pub cursor: usize,
    /// First visible position last time, so that the list does not jump.
    pub offset: usize,
    /// Column and direction.
    pub sort: Option<(usize, bool)>,
}

impl TableView<'_> {
    /// The first position to draw when `height` rows fit.
    pub fn first_visible(&self, height: usize) -> usize {
        let last_start = self.order.len().saturating_sub(height);
        let offset = self.offset.min(last_start);
        if self.cursor < offset {
            self.cursor
        } else if height > 0 && self.cursor >= offset + height {
            self.cursor + 1 - height
        } else {
            offset
        }
    }
}

/// Columns shown in `width` columns: index and width of each, one blank between. `needs` says how wide the contents of
/// each column are: none grows beyond that.
pub fn layout(columns: &[Column], needs: &[u16], width: u16) -> Vec<(usize, u16)> {
    let mut shown: Vec<usize> = (0..columns.len()).collect();
    let needed = |shown: &[usize]| shown.iter().map(|i| columns[*i].min + 1).sum::<u16>().saturating_sub(1);
    while shown.len() > 1 && needed(&shown) > width {
        let Some(worst) = shown.iter().copied().max_by_key(|i| (columns[*i].priority, *i)) else { break };
        if columns[worst].priority == 0 {
            break;
        }
        shown.retain(|i| *i != worst);
    }
    let most = |i: usize| columns[i].max.min(needs.get(i).copied().unwrap_or(u16::MAX)).max(columns[i].min);
    let mut widths: Vec<u16> = shown.iter().map(|i| columns[*i].min).collect();
    let mut left = width.saturating_sub(needed(&shown));
    // What is left goes round by round to those that can still grow.
    while left > 0 {
        let growing: Vec<usize> = (0..shown.len()).filter(|at| widths[*at] < most(shown[*at])).collect();
        if growing.is_empty() {
            break;
        }
        let share = (left / growing.len() as u16).max(1);
        for at in growing {
            let more = share.min(most(shown[at]) - widths[at]).min(left);
            widths[at] += more;
            left -= more;
        }
    }
    shown.into_iter().zip(widths).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Names(Vec<String>);

    const COLUMNS: &[Column] =
        &[Column::new("name", 5, 30, 0), Column::new("size", 6, 6, 1).right(), Column::new("note", 10, 99, 2)];

    impl Rows for Names {
        fn columns(&self) -> &'static [Column] {
            COLUMNS
        }
        fn len(&self) -> usize {
            self.0.len()
        }
        fn id(&self, row: usize) -> Cow<'_, str> {
            Cow::Borrowed(&self.0[row])
        }
        fn cell(&self, row: usize, _column: usize) -> Line {
            Line::text(&self.0[row])
        }
        fn sort_key(&self, row: usize, _column: usize) -> SortKey {
            SortKey::text(&self.0[row])
        }
        fn haystack(&self, row: usize) -> String {
            self.0[row].clone()
        }
    }

    fn names(all: &[&str]) -> Names {
        Names(all.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn the_selection_stays_on_its_object_when_rows_come_and_go() {
        let mut table = Table::default();
        table.refresh(&names(&["b", "c", "d"]), 1);
        table.step(&names(&["b", "c", "d"]), 1);
        assert_eq!(table.selected.as_deref(), Some("c"));
        table.refresh(&names(&["a", "b", "bb", "c"]), 2);
        assert_eq!((table.selected.as_deref(), table.cursor), (Some("c"), 3));
        table.refresh(&names(&["a", "b"]), 3);
        assert_eq!(table.selected.as_deref(), Some("b"), "its neighbour");
        table.refresh(&names(&[]), 4);
        assert_eq!((table.selected.as_deref(), table.current()), (None, None));
    }

    #[test]
    fn filter_narrows_and_widens_again() {
        let rows = names(&["web-1", "db-1", "web-2"]);
        let mut table = Table::default();
        for (typed, left) in [("w", 2), ("web2", 1), ("we", 2), ("zzz", 0), ("", 3), ("!web", 1)] {
            table.filter = Field::with(typed);
            table.refresh(&rows, 1);
            assert_eq!(table.order.len(), left, "{typed}");
        }
    }

    #[test]
    fn narrow_screens_lose_the_least_important_column_first() {
        assert_eq!(layout(COLUMNS, &[99; 3], 12).iter().map(|c| c.0).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(layout(COLUMNS, &[99; 3], 8).iter().map(|c| c.0).collect::<Vec<_>>(), [0]);
        assert_eq!(layout(COLUMNS, &[99; 3], 3), [(0, 5)]);
        assert_eq!(layout(COLUMNS, &[7, 2, 99], 60), [(0, 7), (1, 6), (2, 45)], "what needs no room leaves it to others");
    }

    proptest! {
        #[test]
        fn columns_never_exceed_the_width(width in 5u16..300) {
            let shown = layout(COLUMNS, &[99; 3], width);
            let used: u16 = shown.iter().map(|c| c.1).sum::<u16>() + shown.len() as u16 - 1;
            prop_assert!(used <= width);
        }

        #[test]
        fn whatever_happens_the_cursor_is_inside(rows in proptest::collection::vec("[a-c]{1,3}", 0..20), steps in proptest::collection::vec(-5isize..5, 0..20)) {
            let rows = Names(rows);
            let mut table = Table::default();
            for (n, step) in steps.into_iter().enumerate() {
                table.refresh(&rows, n as u64 / 3);
                table.step(&rows, step);
                prop_assert!(table.order.is_empty() || table.cursor < table.order.len());
                prop_assert!(table.view(0).first_visible(3) <= table.cursor);
            }
        }
    }
}
