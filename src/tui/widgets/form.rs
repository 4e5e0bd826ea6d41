//! Draws a form: one line a field, the fault under it, and beside or below what the focused field offers.

use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};

use super::text::{MARK, field as input, page, rows as rows_of, scrolled};
use crate::core::format::{count, date_time};
use crate::core::forms::deploy::review_lines;
use crate::core::forms::license::pasted_words;
use crate::core::forms::{Form, FormField, FormKind, Value};
use crate::core::rich::{Glyph, Line, Role, Span, pair};
use crate::core::room;
use crate::core::state::State;
use crate::core::text::{clean, fit, width, wrap};
use crate::tui::paint::Painter;

/// Columns of the mark and the label of a field, with the blanks beside them.
pub const LABEL: u16 = 14;
/// Rows that what is said of a field may take.
const SAID: usize = 3;
/// Rows that what the focused field offers keeps beside a long text.
const OFFERED: usize = 3;

/// A row of the form as drawn.
enum Row {
    /// The field of this position.
    Field(usize),
    /// What is said of it, and whether this is the beginning of it.
    Said(usize, Role, String, bool),
}

/// Draws it; answers where the cursor stands.
pub fn draw(painter: &Painter, buffer: &mut Buffer, area: Rect, state: &State, form: &Form) -> Option<Position> {
    if let Some(review) = &form.review {
        scrolled(painter, buffer, area, &review_lines(form, review), review.scroll);
        return None;
    }
    let command = command_lines(form, usize::from(area.width), area.height);
    let command_height = command.len() as u16;
    let body = Rect { height: area.height.saturating_sub(command_height), ..area };
    let style = painter.style(Role::Muted);
    for (line, text) in command.iter().enumerate() {
        painter.text(buffer, area.x, body.bottom() + line as u16, area.width, text, style);
    }
    let mut rows = rows(form, area.width);
    let wide = room::form_beside(area.width, body.height, u16::try_from(rows.len()).unwrap_or(u16::MAX - 100));
    if wide {
        rows = self::rows(form, area.width / 2 - 1);
    }
    let needed = u16::try_from(rows.len()).unwrap_or(u16::MAX);
    let (fields, pane) = if wide {
        let left = area.width / 2;
        (Rect { width: left - 1, ..body }, Rect { x: body.x + left + 2, width: body.width - left - 2, ..body })
    } else {
        // What the focused field offers gets at least five rows.
        let height = needed.min(body.height.saturating_sub(6)).max(3).min(body.height);
        let top = Rect { height, ..body };
        let rest = body.height.saturating_sub(height + 1);
        (top, Rect { y: body.y + height + 1, height: rest, ..body })
    };
    if wide {
        painter.rule(buffer, pane.x - 2, body);
    }
    let cursor = draw_fields(painter, buffer, fields, form, &rows);
    let pane_cursor = draw_pane(painter, buffer, pane, state, form);
    pane_cursor.or(cursor)
}

fn command_lines(form: &Form, columns: usize, height: u16) -> Vec<String> {
    let most = if height < 14 { 1 } else { 3 };
    let mut lines = wrap(&clean(&form.command()), columns.saturating_sub(2));
    if lines.len() > most {
        lines.truncate(most);
        if let Some(last) = lines.last_mut() {
            last.push_str("...");
        }
    }
    lines.into_iter().enumerate().map(|(at, line)| if at == 0 { format!("$ {line}") } else { format!("  {line}") }).collect()
}

/// The form as rows: each field, and under it what is wrong with it or to be known about it.
fn rows(form: &Form, columns: u16) -> Vec<Row> {
    let mut rows = Vec::new();
    for (at, field) in form.fields.iter().enumerate().filter(|(_, field)| !field.hidden) {
        rows.push(Row::Field(at));
        let said = match (form.trouble(field), &field.note) {
            (Some(trouble), _) => Some((Role::Error, trouble)),
            (None, Some((role, note))) => Some((*role, note.as_str())),
            (None, None) => None,
        };
        if let Some((role, text)) = said {
            let room = usize::from(columns.saturating_sub(LABEL + 2)).max(10);
            let mut lines = wrap(&clean(text), room);
            if lines.len() > SAID {
                // The last row is cut where it is drawn, with a mark.
                let rest = lines.split_off(SAID - 1).join(" ");
                lines.push(rest);
            }
            rows.extend(lines.into_iter().enumerate().map(|(n, line)| Row::Said(at, role, line, n == 0)));
        }
    }
    rows
}

fn draw_fields(painter: &Painter, buffer: &mut Buffer, area: Rect, form: &Form, rows: &[Row]) -> Option<Position> {
    let of = |row: &Row| match row {
        Row::Field(at) | Row::Said(at, ..) => *at,
    };
    let height = usize::from(area.height);
    let focus = rows.iter().rposition(|row| of(row) == form.focus).unwrap_or(0);
    // What is said of the field stands below it, but the field itself is what is typed into.
    let own = rows.iter().position(|row| of(row) == form.focus).unwrap_or(0);
    let first = (focus + 1).saturating_sub(height).min(own);
    let mut cursor = None;
    for (line, row) in rows.iter().skip(first).take(height).enumerate() {
        let y = area.y + line as u16;
        let at = &of(row);
        let field = &form.fields[*at];
        let focused = *at == form.focus;
        if let Row::Said(_, role, text, begins) = row {
            let glyph = match role {
                Role::Error => Glyph::Error,
                _ => Glyph::Warn,
            };
            let said = if *begins { Line::state(glyph, *role, text) } else { Line::of(*role, format!("  {text}")) };
            painter.line(buffer, area.x + LABEL, y, area.width.saturating_sub(LABEL), &said, None);
            continue;
        }
        let mark = if focused { painter.glyph(Glyph::Running).to_string() } else { " ".into() };
        painter.text(buffer, area.x, y, 1, &mark, painter.style(Role::Focus));
        let label = painter.style(if focused { Role::Focus } else { Role::Muted });
        painter.text(buffer, area.x + 2, y, LABEL - 3, field.label, label);
        let value = Rect { x: area.x + LABEL, y, width: area.width.saturating_sub(LABEL), height: 1 };
        if let (true, Value::Text { text, default, secret }) = (focused, &field.value) {
            let place = input(painter, buffer, value, text, *secret);
            if text.is_empty() && !default.is_empty() {
                painter.text(buffer, value.x, y, value.width, default, painter.style(Role::Muted));
            }
            cursor = Some(place);
        } else {
            painter.line(buffer, value.x, y, value.width, &value_line(field), None);
        }
    }
    // More fields than rows: say so where they go on.
    let last = first + height < rows.len();
    for (more, glyph, y) in [(first > 0, Glyph::Ascending, area.y), (last, Glyph::Descending, area.bottom().saturating_sub(1))] {
        if more && area.height > 1 {
            let mark = painter.glyph(glyph).to_string();
            painter.text(buffer, area.x + 1, y, 1, &mark, painter.style(Role::Hint));
        }
    }
    cursor
}

fn value_line(field: &FormField) -> Line {
    match &field.value {
        Value::Text { text, default, .. } if text.is_empty() => Line::of(Role::Muted, default),
        Value::Text { text, secret: true, .. } => Line::text("*".repeat(text.text().chars().count())),
        Value::Text { text, .. } => Line::text(text.text()),
        Value::Choice { options, chosen } => match options.iter().find(|option| Some(&option.id) == chosen.as_ref()) {
            Some(option) => Line::text(&option.label).and(Role::Muted, format!("  {}", option.note)),
            None if options.is_empty() => Line::of(Role::Muted, "nothing to choose from yet"),
            None => Line::of(Role::Muted, "none chosen"),
        },
        Value::Pasted(text) => Line::of(Role::Muted, pasted_words(text)),
        Value::Many { options, chosen, .. } => {
            if chosen.is_empty() {
                return Line::of(Role::Muted, "none chosen");
            }
            let label =
                |id: &String| options.iter().find(|option| option.id == *id).map_or(id.clone(), |option| option.label.clone());
            let labels: Vec<String> = chosen.iter().map(label).collect();
            let line = if labels.len() > 1 { Line::of(Role::Accent, format!("{}: ", labels.len())) } else { Line::new() };
            line.and(Role::Text, labels.join(", "))
        }
    }
}

/// The same with a capital at its beginning.
fn capital(words: &str) -> String {
    let mut rest = words.chars();
    rest.next().map(|first| first.to_uppercase().chain(rest).collect()).unwrap_or_default()
}

fn draw_pane(painter: &Painter, buffer: &mut Buffer, area: Rect, state: &State, form: &Form) -> Option<Position> {
    let field = form.fields.get(form.focus)?;
    if area.height == 0 {
        return None;
    }
    let mut lines = Vec::new();
    if let Some(error) = &form.error {
        lines.extend(crate::core::screens::error_lines(error));
    }
    if let Some(id) = form.submitting {
        let bringing = state.pending.get(&id).and_then(|pending| pending.bringing);
        let words = bringing.map_or_else(|| "Sent, waiting for the proxy".to_owned(), |bringing| capital(&bringing.words()));
        lines.push(Line::state(Glyph::Running, Role::Running, words));
    }
    lines.push(Line::of(Role::Hint, field.help));
    // What is offered keeps some rows to be chosen from; what is said gets the others, the first of them in any case.
    let wanted: usize = match &field.value {
        Value::Many { options, .. } => options.len() + 1,
        Value::Choice { options, .. } => options.len(),
        Value::Text { .. } | Value::Pasted(_) => 0,
    };
    let kept = wanted.min(OFFERED).min(usize::from(area.height / 2)) as u16;
    let said = page(painter, buffer, Rect { height: area.height - kept, ..area }, &lines, 0);
    let rest = Rect { y: area.y + said, height: area.height - said, ..area };
    let schedule = matches!(form.kind, FormKind::Job(_)) && matches!(field.id, "schedule" | "cron" | "timezone");
    match &field.value {
        Value::Many { options, chosen, filter, cursor } => {
            if rest.height == 0 {
                return None;
            }
            let hits = field.value.hits();
            let found = if filter.is_empty() {
                format!("{} of {} chosen", chosen.len(), options.len())
            } else {
                format!("{} found, {} chosen", count(hits.len(), "option"), chosen.len())
            };
            let used = painter.text(buffer, rest.x, rest.y, 6, "Find: ", painter.style(Role::Muted));
            let place = Rect { x: rest.x + used, y: rest.y, width: (rest.width - used).min(24), height: 1 };
            let position = input(painter, buffer, place, filter, false);
            painter.text(
                buffer,
                place.right() + 2,
                rest.y,
                rest.right().saturating_sub(place.right() + 2),
                &found,
                painter.style(Role::Muted),
            );
            let list = Rect { y: rest.y + 1, height: rest.height - 1, ..rest };
            let height = usize::from(list.height);
            let at = (*cursor).min(hits.len().saturating_sub(1));
            let first = (at + 1).saturating_sub(height);
            let label_columns =
                hits.iter().map(|hit| width(&options[*hit].label)).max().unwrap_or(0).min(usize::from(list.width) / 2) as u16;
            for (line, hit) in hits.iter().skip(first).take(height).enumerate() {
                let option = &options[*hit];
                let row = Rect { y: list.y + line as u16, height: 1, ..list };
                let selected = first + line == at;
                let over = selected.then(|| painter.style(Role::Selected));
                if let Some(style) = over {
                    buffer.set_style(row, style);
                }
                let glyph =
                    if chosen.contains(&option.id) { (Glyph::Checked, Role::Accent) } else { (Glyph::Unchecked, Role::Muted) };
                let mut head = Line(vec![Span::Glyph(glyph.0, glyph.1)]);
                head = head.and(Role::Text, format!(" {}", option.label));
                painter.line(buffer, row.x, row.y, label_columns + 2, &head, over);
                let x = row.x + label_columns + 4;
                painter.line(buffer, x, row.y, row.right().saturating_sub(x), &Line::of(Role::Muted, &option.note), over);
            }
            if options.is_empty() {
                let why = empty_reason(state, form, field.id);
                page(painter, buffer, list, &[Line::of(Role::Warn, why)], 0);
            }
            Some(position)
        }
        Value::Choice { options, chosen } => {
            let at = options.iter().position(|option| Some(&option.id) == chosen.as_ref()).unwrap_or(0);
            let reserved = if schedule { 2.min(rest.height) } else { 0 };
            let list = Rect { height: rest.height - reserved, ..rest };
            let columns = list.width.saturating_sub(MARK);
            let lines = options.iter().map(|option| {
                let is = Some(&option.id) == chosen.as_ref();
                let (glyph, mark, role) = match (&option.why_not, is) {
                    (Some(_), _) => (Glyph::Off, Role::Muted, Role::Muted),
                    (None, true) => (Glyph::Ok, Role::Accent, Role::Accent),
                    (None, false) => (Glyph::Waiting, Role::Muted, Role::Text),
                };
                let text = Line(vec![Span::Glyph(glyph, mark)]).and(role, format!(" {}  ", option.label));
                match &option.why_not {
                    // Nobody can go there to read on.
                    Some(why) => text.and(Role::Warn, format!("not now: {why}")),
                    None => match usize::from(columns).saturating_sub(painter.width(&text)) {
                        0 => text,
                        room => text.and(Role::Muted, fit(&clean(&option.note), room, painter.cut_mark())),
                    },
                }
            });
            let lines: Vec<Line> = lines.collect();
            // The chosen one is in sight, whole.
            let tall = |first: usize| lines[first..=at].iter().map(|line| rows_of(painter, line, columns)).sum::<usize>();
            let mut first = 0;
            while first < at && tall(first) > usize::from(list.height) {
                first += 1;
            }
            let used = scrolled(painter, buffer, list, &lines, first);
            if schedule {
                let below = Rect { y: rest.y + used, height: rest.height.saturating_sub(used), ..rest };
                page(painter, buffer, below, &preview(state, form), 0);
            } else if options.is_empty() {
                page(painter, buffer, rest, &[Line::of(Role::Warn, empty_reason(state, form, field.id))], 0);
            }
            None
        }
        Value::Text { .. } | Value::Pasted(_) => {
            if schedule {
                page(painter, buffer, rest, &preview(state, form), 0);
            }
            None
        }
    }
}

/// Why there is nothing to choose from, and what to do about it.
fn empty_reason(state: &State, form: &Form, id: &str) -> String {
    let Some(proxy) = state.proxy(form.proxy()) else { return "Choose a proxy first.".into() };
    if !proxy.live() {
        return format!("{} is not connected: what it has is not known.", proxy.name());
    }
    use crate::core::store::{ListKind, ListState};
    let (kind, nothing) = match id {
        "vms" => (ListKind::Vms, "This proxy knows no VM. Add a pool to it: Esc, 1, a."),
        "remotes" => (ListKind::Remotes, "This proxy has no remote. Add one: Esc, 2, n."),
        _ if matches!(form.kind, FormKind::Deploy | FormKind::Redeploy(_)) => match id {
            "pool" => (ListKind::Options, "This proxy knows no pool. Add one to it: Esc, a."),
            _ => (ListKind::Options, "Choose a pool first."),
        },
        "sr" => (ListKind::Srs, "The pools of this proxy offer no storage repository."),
        _ => (ListKind::Pools, "Nothing to choose from."),
    };
    match proxy.list_state(kind) {
        ListState::Fresh(_) => nothing.into(),
        ListState::Failed(error) => error.message.clone(),
        ListState::Loading | ListState::Stale => "Loading".into(),
    }
}

/// The schedule in words with its next starts.
fn preview(state: &State, form: &Form) -> Vec<Line> {
    match form.preview.as_ref().map(|preview| &preview.answer) {
        None => Vec::new(),
        Some(None) => vec![Line::of(Role::Muted, "Asking the proxy when that is")],
        Some(Some(Err(error))) => vec![Line::state(Glyph::Error, Role::Error, &error.message)],
        Some(Some(Ok(preview))) => {
            let mut lines = vec![Line::state(Glyph::Ok, Role::Ok, &preview.words)];
            let next: Vec<String> = preview.next.iter().map(|at| date_time(*at, &state.settings.zone)).collect();
            lines.push(pair("Next runs", next.join(", ")));
            lines
        }
    }
}
