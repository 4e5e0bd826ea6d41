//! Puts lines with meaning into cells: roles become styles, glyphs characters, names fit their columns.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use unicode_width::UnicodeWidthChar;

use super::theme::Theme;
use crate::core::rich::{Glyph, Line, Role, Span};
use crate::core::text::{fit, width};

/// A theme and the characters to draw with.
#[derive(Debug, Clone)]
pub struct Painter {
    /// The theme.
    pub theme: Theme,
    /// Whether to stay within seven bits.
    pub ascii: bool,
}

impl Painter {
    /// The character of a glyph.
    pub fn glyph(&self, glyph: Glyph) -> char {
        let (fine, plain) = match glyph {
            Glyph::Ok => ('●', '+'),
            Glyph::Warn => ('▲', '!'),
            Glyph::Error => ('✖', 'x'),
            Glyph::Running => ('▶', '>'),
            Glyph::Waiting => ('○', 'o'),
            Glyph::Off => ('–', '-'),
            Glyph::Crumb => ('›', '>'),
            Glyph::Branch => ('└', '`'),
            Glyph::Checked => ('■', 'x'),
            Glyph::Unchecked => ('□', '.'),
            Glyph::Ascending => ('↑', '^'),
            Glyph::Descending => ('↓', 'v'),
            Glyph::Dot => ('·', '-'),
        };
        if self.ascii { plain } else { fine }
    }

    /// The mark of a text that was cut.
    pub fn cut_mark(&self) -> char {
        if self.ascii { '~' } else { '…' }
    }

    /// The style of a role.
    pub fn style(&self, role: Role) -> Style {
        self.theme.style(role)
    }

    fn safe<'t>(&self, text: &'t str) -> std::borrow::Cow<'t, str> {
        if !self.ascii || text.is_ascii() {
            return text.into();
        }
        text.chars()
            .flat_map(|c| std::iter::repeat_n(if c.is_ascii() { c } else { '?' }, c.width().unwrap_or(0)))
            .collect::<String>()
            .into()
    }

    /// Columns a line takes when nothing is cut.
    pub fn width(&self, line: &Line) -> usize {
        line.0
            .iter()
            .map(|span| match span {
                Span::Text(text, _) => width(text),
                Span::Glyph(..) => 1,
                Span::Bar(_, width, _) | Span::Spark(_, width, _) => usize::from(*width),
            })
            .sum()
    }

    /// Draws text of one style; answers the columns used.
    pub fn text(&self, buffer: &mut Buffer, x: u16, y: u16, columns: u16, text: &str, style: Style) -> u16 {
        if columns == 0 || !buffer.area.contains((x, y).into()) {
            return 0;
        }
        let columns = columns.min(buffer.area.right() - x);
        let safe = self.safe(text);
        let text = fit(&safe, usize::from(columns), self.cut_mark());
        let (end, _) = buffer.set_stringn(x, y, &text, usize::from(columns), style);
        end - x
    }

    /// Draws a line into `columns` at most; `over` replaces the styles of all its roles. Answers the columns used.
    pub fn line(&self, buffer: &mut Buffer, x: u16, y: u16, columns: u16, line: &Line, over: Option<Style>) -> u16 {
        let mut used = 0;
        let last = line.0.len();
        for (at, span) in line.0.iter().enumerate() {
            let left = columns.saturating_sub(used);
            if left == 0 {
                break;
            }
            let style = |role: Role| over.unwrap_or_else(|| self.style(role));
            used += match span {
                Span::Text(text, role) => {
                    // Something follows: when this piece fills the line to its end, what follows is cut, so say so.
                    let full = at + 1 < last && width(text) == usize::from(left);
                    let text = if full { format!("{text} ") } else { text.clone() };
                    self.text(buffer, x + used, y, left, &text, style(*role))
                }
                Span::Glyph(glyph, role) => self.text(buffer, x + used, y, left, &self.glyph(*glyph).to_string(), style(*role)),
                Span::Bar(share, width, role) => {
                    let width = (*width).min(left);
                    let filled = ((share.clamp(0.0, 1.0) * f64::from(width)).floor() as u16).min(width);
                    let (full, rest) = if self.ascii { ("=", "-") } else { ("━", "─") };
                    self.text(buffer, x + used, y, filled, &full.repeat(usize::from(filled)), style(*role));
                    self.text(
                        buffer,
                        x + used + filled,
                        y,
                        width - filled,
                        &rest.repeat(usize::from(width - filled)),
                        style(Role::Border),
                    );
                    width
                }
                Span::Spark(samples, width, role) => {
                    let width = (*width).min(left);
                    let text = self.spark(samples, usize::from(width));
                    self.text(buffer, x + used, y, width, &text, style(*role));
                    width
                }
            };
        }
        used
    }

    /// Like [`Self::line`], standing at the right of the columns.
    pub fn line_right(&self, buffer: &mut Buffer, x: u16, y: u16, columns: u16, line: &Line, over: Option<Style>) {
        let needed = u16::try_from(self.width(line)).unwrap_or(u16::MAX).min(columns);
        self.line(buffer, x + columns - needed, y, needed, line, over);
    }

    fn spark(&self, samples: &[u64], width: usize) -> String {
        const FINE: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        const PLAIN: [char; 8] = ['_', '.', ',', '-', '=', '+', '*', '#'];
        let steps = if self.ascii { &PLAIN } else { &FINE };
        let shown = &samples[samples.len().saturating_sub(width)..];
        let most = shown.iter().copied().max().unwrap_or(0).max(1);
        shown.iter().map(|sample| steps[(u128::from(*sample) * 7).div_ceil(u128::from(most)).min(7) as usize]).collect()
    }

    /// Draws a frame with a title and empties what is inside.
    pub fn frame(&self, buffer: &mut Buffer, area: Rect, title: &str, role: Role) -> Rect {
        let area = area.intersection(buffer.area);
        if area.width < 2 || area.height < 2 {
            return Rect::ZERO;
        }
        let (h, v, corners) = if self.ascii { ("-", "|", ["+"; 4]) } else { ("─", "│", ["╭", "╮", "╰", "╯"]) };
        let style = self.style(role);
        for y in area.top()..area.bottom() {
            for x in area.left()..area.right() {
                buffer[(x, y)].reset();
            }
        }
        let (right, bottom) = (area.right() - 1, area.bottom() - 1);
        for x in area.left() + 1..right {
            buffer[(x, area.top())].set_symbol(h).set_style(style);
            buffer[(x, bottom)].set_symbol(h).set_style(style);
        }
        for y in area.top() + 1..bottom {
            buffer[(area.left(), y)].set_symbol(v).set_style(style);
            buffer[(right, y)].set_symbol(v).set_style(style);
        }
        for (at, corner) in
            [(area.left(), area.top()), (right, area.top()), (area.left(), bottom), (right, bottom)].into_iter().zip(corners)
        {
            buffer[at].set_symbol(corner).set_style(style);
        }
        if !title.is_empty() && area.width > 6 {
            self.text(buffer, area.left() + 2, area.top(), area.width - 4, &format!(" {title} "), style);
        }
        Rect { x: area.x + 1, y: area.y + 1, width: area.width - 2, height: area.height - 2 }
    }

    /// Draws a vertical rule.
    pub fn rule(&self, buffer: &mut Buffer, x: u16, area: Rect) {
        for y in area.top()..area.bottom() {
            self.text(buffer, x, y, 1, if self.ascii { "|" } else { "│" }, self.style(Role::Border));
        }
    }
}
