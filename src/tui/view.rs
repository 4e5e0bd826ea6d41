//! One frame: the state goes in, cells come out.

use std::collections::HashMap;

use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};

use super::layout::{Areas, MINIMUM, Wants, areas};
use super::paint::Painter;
use super::widgets;
use crate::core::act::availability;
use crate::core::action::{ACTIONS, Action, Context};
use crate::core::deployed;
use crate::core::forms::{Form, Value};
use crate::core::rich::{Glyph, Line, Role, Span};
use crate::core::screens::{self, OVER, Screen, TABS, messages};
use crate::core::store::Proxy;
use crate::core::text::width;
use crate::core::{Connection, State};

/// A key and what it does.
type Hint = (String, &'static str);

/// How the field of a form that has the keys is answered where that is not by typing.
fn choosing(form: &Form) -> Option<(&'static str, &'static str)> {
    match &form.fields.get(form.focus)?.value {
        _ if form.submitting.is_some() => None,
        Value::Choice { options, .. } if options.len() > 1 => Some(("left/right", "choose")),
        Value::Many { options, .. } if options.is_empty() => None,
        Value::Many { filter, .. } if filter.is_empty() => Some(("space", "tick")),
        Value::Many { .. } => Some(("enter", "tick")),
        Value::Choice { .. } | Value::Text { .. } | Value::Pasted(_) => None,
    }
}

/// Draws frames. Remembers only how far each list is scrolled.
#[derive(Debug, Clone)]
pub struct View {
    painter: Painter,
    offsets: HashMap<Context, usize>,
}

impl View {
    /// A view that draws with this painter.
    pub fn new(painter: Painter) -> Self {
        Self { painter, offsets: HashMap::new() }
    }

    /// Draws the state; answers where the cursor stands, if text is being typed.
    pub fn draw(&mut self, state: &State, buffer: &mut Buffer) -> Option<Position> {
        let area = buffer.area;
        let screen = state.screen();
        let plain = state.form.is_some() || state.chooser.is_some();
        let summary = if plain { None } else { screens::summary(state, screen) };
        // Of nothing there are no details.
        let listed = !matches!(screen, Screen::Detail(_)) && !state.table(screen.context()).order.is_empty();
        let wants = Wants { summary: summary.is_some(), details: !plain && listed };
        let Some(areas) = areas(area.width, area.height, wants) else {
            self.too_small(buffer, area);
            return None;
        };
        self.tabs(state, buffer, areas.tabs);
        let mut cursor = self.crumbs(state, buffer, areas.crumbs);
        if let Some(summary) = &summary {
            self.painter.line(buffer, areas.summary.x, areas.summary.y, areas.summary.width, summary, None);
        }
        if state.chooser.is_some() {
            cursor = widgets::chooser::draw(&self.painter, buffer, areas.body, state);
        } else if let Some(form) = &state.form {
            cursor = widgets::form::draw(&self.painter, buffer, areas.body, state, form);
        } else {
            self.body(state, buffer, &areas);
        }
        self.footer(state, buffer, areas.footer);
        self.toast(state, buffer, Rect { y: areas.footer.y.saturating_sub(1), ..areas.footer });
        if let Some(confirm) = &state.confirm {
            cursor = widgets::confirm::draw(&self.painter, buffer, areas.body, confirm);
        }
        cursor
    }

    fn too_small(&self, buffer: &mut Buffer, area: Rect) {
        let text = format!("needed {}x{}, present {}x{}", MINIMUM.0, MINIMUM.1, area.width, area.height);
        let x = area.width.saturating_sub(width(&text) as u16) / 2;
        self.painter.text(buffer, x, area.height / 2, area.width, &text, self.painter.style(Role::Text));
    }

    fn tabs(&self, state: &State, buffer: &mut Buffer, area: Rect) {
        let status = self.status(state, area.width);
        let status_width = self.painter.width(&status) as u16;
        let full: usize = TABS.iter().map(|(_, name)| name.len() + 4).sum();
        let room = area.width.saturating_sub(status_width + 1);
        let short = full as u16 > room;
        let mut x = area.x;
        for (at, (tab, name)) in TABS.iter().enumerate() {
            let current = *tab == state.root;
            let text = if short && !current { format!(" {} ", at + 1) } else { format!(" {} {name} ", at + 1) };
            let style = self.painter.style(if current { Role::OnAccent } else { Role::Text });
            x += self.painter.text(buffer, x, area.y, area.right().saturating_sub(x), &text, style);
        }
        // Those that lie over a tab are named where there is room.
        let others: String = OVER.iter().map(|(key, name)| format!(" {key} {name} ")).collect();
        if x + width(&others) as u16 + status_width < area.right() {
            x += self.painter.text(buffer, x, area.y, area.right() - x, &others, self.painter.style(Role::Muted));
        }
        if x + status_width < area.right() {
            self.painter.line(buffer, area.right() - status_width, area.y, status_width, &status, None);
        }
    }

    /// Runs going on, and proxies in trouble, for every screen.
    fn status(&self, state: &State, columns: u16) -> Line {
        let short = columns < 90;
        let running: usize = state.proxies.iter().filter(|proxy| proxy.live()).map(|proxy| proxy.running().len()).sum();
        let troubled = |proxy: &&Proxy| match proxy.connection {
            Connection::Live | Connection::Connecting => false,
            // What is being changed is away because of that.
            Connection::Retrying { .. } => deployed::change(state, proxy).is_none(),
            Connection::Refused { .. } => true,
        };
        let trouble = state.proxies.iter().filter(troubled).count();
        let mut line = Line::new();
        let mut add = |glyph: Glyph, role: Role, n: usize, word: &str| {
            if n > 0 {
                let text = if short { format!("{n} ") } else { format!(" {n} {word}  ") };
                line.0.push(Span::Glyph(glyph, role));
                line.0.push(Span::Text(text, role));
            }
        };
        add(Glyph::Running, Role::Running, running, "running");
        add(Glyph::Warn, Role::Warn, trouble, "away");
        if state.settings.read_only {
            line = line.and(Role::Hint, if short { "ro " } else { "read-only " });
        }
        line
    }

    fn crumbs(&self, state: &State, buffer: &mut Buffer, area: Rect) -> Option<Position> {
        let mut line = Line::of(Role::Accent, state.root.crumb(state));
        for screen in &state.stack {
            line = line.with(Span::Text(" ".into(), Role::Muted)).with(Span::Glyph(Glyph::Crumb, Role::Muted));
            line = line.and(Role::Accent, format!(" {}", screen.crumb(state)));
        }
        if let Some(form) = &state.form {
            line = line.with(Span::Text(" ".into(), Role::Muted)).with(Span::Glyph(Glyph::Crumb, Role::Muted));
            line = line.and(Role::Accent, format!(" {}", form.title));
            if form.review.is_some() {
                line = line.with(Span::Text(" ".into(), Role::Muted)).with(Span::Glyph(Glyph::Crumb, Role::Muted));
                line = line.and(Role::Accent, " Review");
            } else if form.changed {
                line = line.and(Role::Muted, "  not saved");
            }
            self.painter.line(buffer, area.x, area.y, area.width, &line, None);
            return None;
        }
        let table = state.table(state.screen().context());
        let listed = !matches!(state.screen(), Screen::Detail(_));
        if listed && (table.filtering || !table.filter.is_empty()) {
            line = line.and(Role::Muted, format!("  {} of {}  ", table.order.len(), table.total)).and(Role::Hint, "/");
            let used = self.painter.line(buffer, area.x, area.y, area.width, &line, None);
            let place = Rect { x: area.x + used, width: area.width.saturating_sub(used).clamp(1, 30), ..area };
            if table.filtering {
                return Some(widgets::text::field(&self.painter, buffer, place, &table.filter, false));
            }
            self.painter.text(buffer, place.x, place.y, place.width, table.filter.text(), self.painter.style(Role::Match));
            return None;
        }
        if listed && table.total > 0 {
            line = line.and(Role::Muted, format!("  {}", table.total));
        }
        self.painter.line(buffer, area.x, area.y, area.width, &line, None);
        None
    }

    fn body(&mut self, state: &State, buffer: &mut Buffer, areas: &Areas) {
        let screen = state.screen();
        let Some(rows) = screens::rows(state, screen) else {
            let lines = screens::details(state, screen);
            widgets::text::scrolled(&self.painter, buffer, areas.body, &lines, state.scroll);
            return;
        };
        let context = screen.context();
        let table = state.table(context).view(self.offsets.get(&context).copied().unwrap_or(0));
        let first = widgets::table::draw(&self.painter, buffer, areas.body, &table, &*rows);
        self.offsets.insert(context, first);
        if table.order.is_empty() {
            let lines = screens::empty(state, screen);
            let area = Rect { y: areas.body.y + 1, height: areas.body.height - 1, ..areas.body };
            widgets::text::page(&self.painter, buffer, area, &lines, 0);
        }
        if !areas.details.is_empty() {
            if areas.details.x > 0 {
                self.painter.rule(buffer, areas.details.x - 2, areas.body);
            } else {
                let y = areas.details.y - 1;
                let rule = if self.painter.ascii { "-" } else { "─" }.repeat(usize::from(areas.details.width));
                self.painter.text(buffer, 0, y, areas.details.width, &rule, self.painter.style(Role::Border));
            }
            let lines = screens::details(state, screen);
            widgets::text::scrolled(&self.painter, buffer, areas.details, &lines, 0);
        }
    }

    /// The keys to show: those that are cut where room is short, and those that never are.
    fn hints(&self, state: &State) -> (Vec<Hint>, Vec<Hint>) {
        let own = |key: &str, title: &'static str| (key.to_owned(), title);
        if state.confirm.is_some() {
            return (Vec::new(), Vec::new());
        }
        if state.chooser.is_some() {
            return (vec![own("enter", "do it"), own("esc", "close")], Vec::new());
        }
        let detail = matches!(state.screen(), Screen::Detail(_));
        if state.form.is_none() && !detail && state.table(state.screen().context()).filtering {
            return (vec![own("enter", "keep the filter"), own("esc", "clear it")], Vec::new());
        }
        let contexts = state.contexts();
        let (mut head, mut tail) = (Vec::new(), Vec::new());
        let scroll = state.keymap.key(&contexts, Action::Up).zip(state.keymap.key(&contexts, Action::Down));
        let scroll = scroll.map(|(up, down)| (format!("{up}/{down}"), "scroll"));
        if detail && state.form.is_none() {
            head.push(own("esc", "back"));
            head.extend(scroll.clone());
        }
        let shown = ACTIONS.iter().filter(|info| info.footer && info.contexts.iter().any(|context| contexts.contains(context)));
        for info in shown.filter(|info| availability(state, info.action).is_ok()) {
            let Some(key) = state.keymap.key(&contexts, info.action) else { continue };
            let title = match &state.form {
                Some(form) if info.action == Action::FormSave => form.verb(),
                // There is no form to go back to while it is on its way.
                Some(form) if info.action == Action::ReviewBack && form.submitting.is_some() => "close",
                _ => info.title,
            };
            let hint = (key.to_string(), title);
            match info.action {
                Action::Open | Action::FormClose | Action::Help | Action::Quit => tail.push(hint),
                Action::FormNext => {
                    head.extend(state.form.as_ref().and_then(choosing).map(|(key, title)| own(key, title)));
                    head.push(hint);
                }
                _ => head.push(hint),
            }
        }
        if contexts == [Context::Review] {
            head.extend(scroll);
        }
        // In the table, help stands before what only a form has.
        tail.sort_by_key(|(_, title)| (*title == "quit", *title == "help"));
        (head, tail)
    }

    fn footer(&self, state: &State, buffer: &mut Buffer, area: Rect) {
        let (head, tail) = self.hints(state);
        let needed = |(key, title): &Hint| (width(key) + width(title) + 3) as u16;
        // Of the last one the blanks behind it need not be there.
        let kept = tail.iter().map(needed).sum::<u16>().saturating_sub(2);
        let mut x = area.x;
        for hint in &head {
            if x + needed(hint) + kept > area.right() {
                break;
            }
            x = self.hint(buffer, x, area, &hint.0, hint.1);
        }
        for (key, title) in &tail {
            x = self.hint(buffer, x, area, key, title);
        }
    }

    /// Draws a key and what it does; answers where the next one begins.
    fn hint(&self, buffer: &mut Buffer, x: u16, area: Rect, key: &str, title: &str) -> u16 {
        let mut x = x;
        for (text, role) in [(key.to_owned(), Role::Hint), (format!(" {title}"), Role::Muted)] {
            x += self.painter.text(buffer, x, area.y, area.right().saturating_sub(x), &text, self.painter.style(role));
        }
        x + 2
    }

    fn toast(&self, state: &State, buffer: &mut Buffer, area: Rect) {
        let Some(notice) = state.notices.toast(state.now) else { return };
        let (glyph, role, _) = messages::level(notice.level);
        for x in area.left()..area.right() {
            buffer[(x, area.y)].reset();
        }
        let line = Line::new().with(Span::Glyph(glyph, role)).and(role, format!(" {}", notice.text));
        // Room is kept for where the rest is to be read, and it is said only while a key goes there.
        let more = !notice.more.is_empty() || self.painter.width(&line) > usize::from(area.width);
        let hint = state.key_of(Action::GoMessages).filter(|_| more).map(|key| format!("  {key}: more"));
        let kept = hint.as_deref().map_or(0, width) as u16;
        let used = self.painter.line(buffer, area.x, area.y, area.width.saturating_sub(kept), &line, None);
        if let Some(hint) = hint {
            self.painter.line(buffer, area.x + used, area.y, kept, &Line::of(Role::Hint, hint), None);
        }
    }
}
