//! Themes: what each [`Role`] looks like. TOML files, compiled in and overridable, mapped down once to what the
//! terminal can show.

use std::collections::BTreeMap;

use ratatui::style::{Color, Modifier, Style};
use serde::Deserialize;

use crate::core::rich::{ROLES, Role};

/// How many colours there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// None.
    None,
    /// The terminal's own sixteen.
    Sixteen,
    /// 256.
    Indexed,
    /// 24 bit.
    True,
}

impl Depth {
    /// `none`, `16`, `256`, `true`.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "none" | "never" => Some(Self::None),
            "16" => Some(Self::Sixteen),
            "256" => Some(Self::Indexed),
            "true" | "truecolor" => Some(Self::True),
            _ => None,
        }
    }
}

const BUILT_IN: [(&str, &str); 4] = [
    ("default", include_str!("../../themes/default.toml")),
    ("mono", include_str!("../../themes/mono.toml")),
    ("dark", include_str!("../../themes/dark.toml")),
    ("light", include_str!("../../themes/light.toml")),
];

/// A theme that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ThemeError {
    /// Neither a built-in name nor a file that can be read.
    #[error("there is no theme \"{name}\": built in are {}; a file could not be read: {reason}", names())]
    Unknown {
        /// What was asked for.
        name: String,
        /// Why the file could not be read.
        reason: String,
    },
    /// The file is no theme.
    #[error("{name}: {reason}")]
    Faulty {
        /// The file.
        name: String,
        /// What is wrong, with its place.
        reason: String,
    },
}

fn names() -> String {
    BUILT_IN.map(|(name, _)| name).join(", ")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    #[serde(rename = "name")]
    _name: String,
    roles: BTreeMap<String, Look>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Look {
    fg: Option<Paint>,
    bg: Option<Paint>,
    #[serde(default)]
    style: Vec<Mark>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Paint {
    Number(u8),
    Word(String),
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Mark {
    Bold,
    Dim,
    Italic,
    Underline,
    Reverse,
}

/// A theme, ready to be used on this terminal.
#[derive(Debug, Clone, PartialEq)]
pub struct Theme {
    styles: [Style; ROLES.len()],
}

impl Theme {
    /// A built-in theme by name, or a file by path. Without colours it is always `mono`.
    ///
    /// # Errors
    /// [`ThemeError`], naming the place.
    pub fn load(name: &str, depth: Depth) -> Result<Self, ThemeError> {
        let name = if depth == Depth::None { "mono" } else { name };
        if let Some((_, text)) = BUILT_IN.iter().find(|(built_in, _)| *built_in == name) {
            return Self::parse(name, text, depth);
        }
        match std::fs::read_to_string(name) {
            Ok(text) => Self::parse(name, &text, depth),
            Err(error) => Err(ThemeError::Unknown { name: name.to_owned(), reason: error.to_string() }),
        }
    }

    /// The default theme, or `mono` where there are no colours.
    pub fn default_for(depth: Depth) -> Self {
        // The files are compiled in and every one is parsed by a test.
        Self::load("default", depth).unwrap_or(Self { styles: [Style::new(); ROLES.len()] })
    }

    fn parse(name: &str, text: &str, depth: Depth) -> Result<Self, ThemeError> {
        let faulty = |reason: String| ThemeError::Faulty { name: name.to_owned(), reason };
        let file: File = toml::from_str(text).map_err(|error| faulty(error.to_string()))?;
        let mut styles = [Style::new(); ROLES.len()];
        for (id, look) in &file.roles {
            let Some(at) = ROLES.iter().position(|(_, word)| word == id) else {
                let known = ROLES.map(|(_, word)| word).join(", ");
                return Err(faulty(format!("no role is called \"{id}\"; there are {known}")));
            };
            let mut style = Style::new();
            if let Some(fg) = &look.fg {
                style.fg = color(fg, depth).map_err(faulty)?;
            }
            if let Some(bg) = &look.bg {
                style.bg = color(bg, depth).map_err(faulty)?;
            }
            for mark in &look.style {
                style = style.add_modifier(match mark {
                    Mark::Bold => Modifier::BOLD,
                    Mark::Dim => Modifier::DIM,
                    Mark::Italic => Modifier::ITALIC,
                    Mark::Underline => Modifier::UNDERLINED,
                    Mark::Reverse => Modifier::REVERSED,
                });
            }
            styles[at] = style;
        }
        Ok(Self { styles })
    }

    /// What a role looks like.
    pub fn style(&self, role: Role) -> Style {
        self.styles[role as usize]
    }
}

const SIXTEEN: [(&str, Color, (u8, u8, u8)); 16] = [
    ("black", Color::Black, (0, 0, 0)),
    ("red", Color::Red, (205, 0, 0)),
    ("green", Color::Green, (0, 205, 0)),
    ("yellow", Color::Yellow, (205, 205, 0)),
    ("blue", Color::Blue, (0, 0, 238)),
    ("magenta", Color::Magenta, (205, 0, 205)),
    ("cyan", Color::Cyan, (0, 205, 205)),
    ("white", Color::Gray, (229, 229, 229)),
    ("bright-black", Color::DarkGray, (127, 127, 127)),
    ("bright-red", Color::LightRed, (255, 0, 0)),
    ("bright-green", Color::LightGreen, (0, 255, 0)),
    ("bright-yellow", Color::LightYellow, (255, 255, 0)),
    ("bright-blue", Color::LightBlue, (92, 92, 255)),
    ("bright-magenta", Color::LightMagenta, (255, 0, 255)),
    ("bright-cyan", Color::LightCyan, (0, 255, 255)),
    ("bright-white", Color::White, (255, 255, 255)),
];

fn color(paint: &Paint, depth: Depth) -> Result<Option<Color>, String> {
    let color = match paint {
        Paint::Number(n) => Color::Indexed(*n),
        Paint::Word(word) if word == "default" => return Ok(None),
        Paint::Word(word) => match SIXTEEN.iter().find(|(name, ..)| name == word) {
            Some((_, color, _)) => *color,
            None => hex(word)
                .ok_or_else(|| format!("\"{word}\" is no colour: a name such as bright-red, 0 to 255, or \"#rrggbb\""))?,
        },
    };
    Ok(mapped(color, depth))
}

fn hex(word: &str) -> Option<Color> {
    let digits = word.strip_prefix('#').filter(|digits| digits.len() == 6 && digits.is_ascii())?;
    let part = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).ok();
    Some(Color::Rgb(part(0)?, part(2)?, part(4)?))
}

/// Red, green and blue of one of the 256 colours, as xterm defines them.
pub(super) fn indexed_rgb(n: u8) -> (u8, u8, u8) {
    match n {
        0..16 => SIXTEEN[usize::from(n)].2,
        16..232 => {
            let n = n - 16;
            let level = |v: u8| if v == 0 { 0 } else { 55 + 40 * v };
            (level(n / 36), level(n / 6 % 6), level(n % 6))
        }
        232.. => {
            let v = 8 + 10 * (n - 232);
            (v, v, v)
        }
    }
}

fn distance(a: (u8, u8, u8), b: (u8, u8, u8)) -> u32 {
    let d = |a: u8, b: u8| u32::from(a.abs_diff(b)).pow(2);
    // The eye is most sensitive to green and least to blue.
    3 * d(a.0, b.0) + 6 * d(a.1, b.1) + d(a.2, b.2)
}

fn mapped(color: Color, depth: Depth) -> Option<Color> {
    let rgb = match color {
        Color::Rgb(r, g, b) => (r, g, b),
        Color::Indexed(n) => indexed_rgb(n),
        named => return (depth != Depth::None).then_some(named),
    };
    match (depth, color) {
        (Depth::None, _) => None,
        (Depth::True, _) | (Depth::Indexed, Color::Indexed(_)) => Some(color),
        (Depth::Indexed, _) => (16..=255u8).min_by_key(|n| distance(indexed_rgb(*n), rgb)).map(Color::Indexed),
        (Depth::Sixteen, _) => SIXTEEN.iter().min_by_key(|(.., other)| distance(*other, rgb)).map(|(_, color, _)| *color),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_theme_loads_at_every_depth_and_names_every_role() {
        for (name, text) in BUILT_IN {
            for depth in [Depth::None, Depth::Sixteen, Depth::Indexed, Depth::True] {
                Theme::load(name, depth).unwrap();
            }
            let file: File = toml::from_str(text).unwrap();
            assert_eq!(file.roles.len(), ROLES.len(), "{name}");
        }
    }

    #[test]
    fn without_colours_nothing_is_coloured() {
        let theme = Theme::load("dark", Depth::None).unwrap();
        assert!(theme.styles.iter().all(|style| style.fg.is_none() && style.bg.is_none()));
        assert!(theme.style(Role::Selected).add_modifier.contains(Modifier::REVERSED));
    }

    #[test]
    fn faults_name_the_place() {
        let error = Theme::parse("x.toml", "[roles]\ntext = { fg = \"blurple\" }", Depth::True).unwrap_err().to_string();
        assert!(error.contains("x.toml") && error.contains("blurple"), "{error}");
        let error = Theme::parse("x.toml", "[roles]\nsky = {}", Depth::True).unwrap_err().to_string();
        assert!(error.contains("sky"), "{error}");
        assert!(Theme::load("/nowhere/theme.toml", Depth::True).is_err());
    }

    fn luminance((r, g, b): (u8, u8, u8)) -> f64 {
        let part = |v: u8| {
            let v = f64::from(v) / 255.0;
            if v <= 0.03928 { v / 12.92 } else { ((v + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b)
    }

    #[test]
    fn roles_of_the_coloured_themes_are_legible_on_their_ground() {
        for (name, ground) in [("dark", (13, 17, 23)), ("light", (255, 255, 255))] {
            let theme = Theme::load(name, Depth::True).unwrap();
            for (role, word) in ROLES.iter().filter(|(role, _)| *role != Role::Border) {
                let style = theme.style(*role);
                let rgb = |color: Option<Color>| if let Some(Color::Rgb(r, g, b)) = color { Some((r, g, b)) } else { None };
                let Some(fg) = rgb(style.fg) else { continue };
                let (a, b) = (luminance(fg), luminance(rgb(style.bg).unwrap_or(ground)));
                let contrast = (a.max(b) + 0.05) / (a.min(b) + 0.05);
                assert!(contrast >= 4.5, "{name}: {word} has a contrast of {contrast:.1}");
            }
        }
    }
}
