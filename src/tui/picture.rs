//! A frame as an SVG picture, for the documentation: no browser, no recording, the same cells as on the terminal.
//!
//! Lines and blocks are drawn as shapes, so that no font can leave gaps in them.

use std::fmt::Write as _;

use ratatui::buffer::{Buffer, Cell};
use ratatui::layout::Position;
use ratatui::style::{Color, Modifier};

use super::theme::indexed_rgb;

/// Columns and rows of pixels of a cell.
const CELL: (f64, f64) = (9.0, 20.0);
/// Free pixels around the screen.
const MARGIN: f64 = 12.0;

/// The ground of the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// Light text on dark.
    Dark,
    /// Dark text on light.
    Light,
}

type Rgb = (u8, u8, u8);

impl Ground {
    const fn colors(self) -> (Rgb, Rgb) {
        match self {
            Self::Dark => ((0xd6, 0xde, 0xe6), (0x10, 0x16, 0x1d)),
            Self::Light => ((0x1f, 0x23, 0x28), (0xff, 0xff, 0xff)),
        }
    }

    /// The sixteen colours, chosen to be legible on the ground.
    fn named(self, n: u8) -> Rgb {
        const DARK: [Rgb; 16] = [
            (0x2b, 0x33, 0x3b),
            (0xff, 0x7b, 0x72),
            (0x56, 0xd3, 0x64),
            (0xe3, 0xb3, 0x41),
            (0x79, 0xb8, 0xff),
            (0xd2, 0xa8, 0xff),
            (0x76, 0xe3, 0xea),
            (0xc9, 0xd1, 0xd9),
            (0x6e, 0x76, 0x81),
            (0xff, 0xa1, 0x98),
            (0x7e, 0xe7, 0x87),
            (0xf2, 0xcc, 0x60),
            (0xa5, 0xd6, 0xff),
            (0xe2, 0xc5, 0xff),
            (0xa2, 0xf1, 0xf5),
            (0xff, 0xff, 0xff),
        ];
        const LIGHT: [Rgb; 16] = [
            (0x24, 0x29, 0x2f),
            (0xa4, 0x0e, 0x26),
            (0x11, 0x63, 0x29),
            (0x7d, 0x4e, 0x00),
            (0x05, 0x50, 0xae),
            (0x66, 0x39, 0xba),
            (0x0a, 0x5c, 0x63),
            (0x6e, 0x77, 0x81),
            (0x57, 0x60, 0x6a),
            (0xcf, 0x22, 0x2e),
            (0x1a, 0x7f, 0x37),
            (0x9a, 0x67, 0x00),
            (0x09, 0x69, 0xda),
            (0x82, 0x50, 0xdf),
            (0x1b, 0x7c, 0x83),
            (0x8c, 0x95, 0x9f),
        ];
        let palette = if self == Self::Dark { &DARK } else { &LIGHT };
        palette[usize::from(n.min(15))]
    }

    fn rgb(self, color: Color) -> Option<Rgb> {
        Some(match color {
            Color::Reset => return None,
            Color::Rgb(r, g, b) => (r, g, b),
            Color::Indexed(n @ 0..16) => self.named(n),
            Color::Indexed(n) => indexed_rgb(n),
            Color::Black => self.named(0),
            Color::Red => self.named(1),
            Color::Green => self.named(2),
            Color::Yellow => self.named(3),
            Color::Blue => self.named(4),
            Color::Magenta => self.named(5),
            Color::Cyan => self.named(6),
            Color::Gray => self.named(7),
            Color::DarkGray => self.named(8),
            Color::LightRed => self.named(9),
            Color::LightGreen => self.named(10),
            Color::LightYellow => self.named(11),
            Color::LightBlue => self.named(12),
            Color::LightMagenta => self.named(13),
            Color::LightCyan => self.named(14),
            Color::White => self.named(15),
        })
    }

    /// Colours of a cell: text, ground, and whether the ground differs from the picture's.
    fn of(self, cell: &Cell) -> (Rgb, Rgb, bool) {
        let (text, ground) = self.colors();
        let mut fg = self.rgb(cell.fg).unwrap_or(text);
        let mut bg = self.rgb(cell.bg).unwrap_or(ground);
        if cell.modifier.contains(Modifier::REVERSED) {
            std::mem::swap(&mut fg, &mut bg);
        }
        if cell.modifier.contains(Modifier::DIM) {
            let mix = |a: u8, b: u8| ((u16::from(a) * 62 + u16::from(b) * 38) / 100) as u8;
            fg = (mix(fg.0, bg.0), mix(fg.1, bg.1), mix(fg.2, bg.2));
        }
        (fg, bg, bg != ground)
    }
}

fn hex((r, g, b): Rgb) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

fn escape(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            // XML knows no control characters; none should be in a cell, but a picture must not break on one.
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
}

/// The shapes of a box or block character as rectangles in units of the cell: x, y, width, height.
fn shape(c: char) -> Option<Vec<(f64, f64, f64, f64)>> {
    const T: f64 = 0.11;
    const H: f64 = 0.06;
    let (left, right) = ((0.0, 0.5 - H / 2.0, 0.5 + T / 2.0, H), (0.5 - T / 2.0, 0.5 - H / 2.0, 0.5 + T / 2.0, H));
    let (up, down) = ((0.5 - T / 2.0, 0.0, T, 0.5), (0.5 - T / 2.0, 0.5, T, 0.5));
    Some(match c {
        '─' => vec![(0.0, 0.5 - H / 2.0, 1.0, H)],
        '━' => vec![(0.0, 0.5 - H * 1.5, 1.0, H * 3.0)],
        '│' => vec![(0.5 - T / 2.0, 0.0, T, 1.0)],
        '╭' | '┌' => vec![right, down],
        '╮' | '┐' => vec![left, down],
        '╰' | '└' => vec![right, up],
        '╯' | '┘' => vec![left, up],
        '▁'..='█' => {
            let eighths = f64::from(c as u32 - 0x2580) / 8.0;
            vec![(0.0, 1.0 - eighths, 1.0, eighths)]
        }
        '■' => vec![(0.12, 0.3, 0.76, 0.38)],
        '□' => vec![(0.12, 0.3, 0.76, 0.04), (0.12, 0.64, 0.76, 0.04), (0.12, 0.3, 0.09, 0.38), (0.79, 0.3, 0.09, 0.38)],
        _ => return None,
    })
}

/// The frame as an SVG document.
pub fn svg(buffer: &Buffer, cursor: Option<Position>, ground: Ground) -> String {
    let area = buffer.area;
    let (w, h) = CELL;
    let (columns, rows) = (f64::from(area.width), f64::from(area.height));
    let (width, height) = (columns * w + 2.0 * MARGIN, rows * h + 2.0 * MARGIN);
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"DejaVu Sans Mono, Liberation Mono, Menlo, Consolas, monospace\" font-size=\"15\">\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"{}\"/>\n",
        hex(ground.colors().1)
    );
    for y in 0..area.height {
        let top = MARGIN + f64::from(y) * h;
        let mut x = 0;
        while x < area.width {
            let cell = &buffer[(area.x + x, area.y + y)];
            let here = cursor == Some(Position { x: area.x + x, y: area.y + y });
            let (mut fg, mut bg, mut filled) = ground.of(cell);
            if here {
                (fg, bg, filled) = (ground.colors().1, ground.colors().0, true);
            }
            let left = MARGIN + f64::from(x) * w;
            let symbol = cell.symbol();
            let mut chars = symbol.chars();
            if let (Some(c), None) = (chars.next(), chars.next())
                && let Some(shapes) = shape(c)
            {
                if filled {
                    let _ = writeln!(
                        out,
                        "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" fill=\"{}\"/>",
                        hex(bg)
                    );
                }
                for (sx, sy, sw, sh) in shapes {
                    let _ = writeln!(
                        out,
                        "<rect x=\"{:.2}\" y=\"{:.2}\" width=\"{:.2}\" height=\"{:.2}\" fill=\"{}\"/>",
                        left + sx * w,
                        top + sy * h,
                        sw * w,
                        sh * h,
                        hex(fg)
                    );
                }
                x += 1;
                continue;
            }
            // A run of cells of one look becomes one text, stretched to its cells whatever the font.
            let look = |cell: &Cell| (ground.of(cell), cell.modifier);
            let mut text = String::new();
            let mut end = x;
            while end < area.width {
                let next = &buffer[(area.x + end, area.y + y)];
                let special = next.symbol().chars().next().is_none_or(|c| shape(c).is_some());
                let at_cursor = cursor == Some(Position { x: area.x + end, y: area.y + y });
                if look(next) != look(cell) || special || (at_cursor && end != x) || (here && end != x) {
                    break;
                }
                text.push_str(next.symbol());
                end += (crate::core::text::width(next.symbol()) as u16).max(1);
            }
            let end = end.max(x + 1).min(area.width);
            let span = f64::from(end - x) * w;
            if filled {
                let _ = writeln!(
                    out,
                    "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{span:.1}\" height=\"{h:.1}\" fill=\"{}\"/>",
                    hex(bg)
                );
            }
            let trimmed = text.trim_end();
            if !trimmed.is_empty() {
                let lead = trimmed.chars().take_while(|c| *c == ' ').count();
                let body = &trimmed[lead..];
                let length = crate::core::text::width(body) as f64 * w;
                let mut attributes = String::new();
                if cell.modifier.contains(Modifier::BOLD) {
                    attributes.push_str(" font-weight=\"bold\"");
                }
                if cell.modifier.contains(Modifier::ITALIC) {
                    attributes.push_str(" font-style=\"italic\"");
                }
                let _ = write!(
                    out,
                    "<text x=\"{:.1}\" y=\"{:.1}\" textLength=\"{length:.1}\" lengthAdjust=\"spacingAndGlyphs\" xml:space=\"preserve\" fill=\"{}\"{attributes}>",
                    left + lead as f64 * w,
                    top + h * 0.74,
                    hex(fg)
                );
                escape(&mut out, body);
                out.push_str("</text>\n");
            }
            if cell.modifier.contains(Modifier::UNDERLINED) {
                let _ = writeln!(
                    out,
                    "<rect x=\"{left:.1}\" y=\"{:.1}\" width=\"{span:.1}\" height=\"1\" fill=\"{}\"/>",
                    top + h * 0.86,
                    hex(fg)
                );
            }
            x = end;
        }
    }
    out.push_str("</svg>\n");
    out
}

#[cfg(test)]
mod tests {
    use ratatui::style::Style;

    use super::*;

    #[test]
    fn text_is_escaped_and_blocks_are_shapes() {
        let mut buffer = Buffer::with_lines(["a<b │█ x"]);
        buffer.set_style(buffer.area, Style::new().add_modifier(Modifier::REVERSED));
        let svg = svg(&buffer, None, Ground::Dark);
        assert!(svg.contains("a&lt;b"));
        assert!(!svg.contains('█') && !svg.contains('│'));
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    }
}
