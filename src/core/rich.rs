//! Text with meaning instead of colour. The terminal side decides what a role looks like and how a glyph is drawn.

use super::text::clean;

/// What a piece of text means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Ordinary text.
    Text,
    /// Less important.
    Muted,
    /// Stands out: titles, the current tab.
    Accent,
    /// On a ground of the accent's colour.
    OnAccent,
    /// Good.
    Ok,
    /// Worth a look.
    Warn,
    /// Bad.
    Error,
    /// Under way.
    Running,
    /// The row the keys act on.
    Selected,
    /// Lines between things.
    Border,
    /// Frame of what has the keys.
    Focus,
    /// Text being typed.
    Input,
    /// Keys and advice.
    Hint,
    /// What a filter matched.
    Match,
}

/// Every role, in the order of theme files.
pub const ROLES: [(Role, &str); 14] = [
    (Role::Text, "text"),
    (Role::Muted, "muted"),
    (Role::Accent, "accent"),
    (Role::OnAccent, "on-accent"),
    (Role::Ok, "ok"),
    (Role::Warn, "warn"),
    (Role::Error, "error"),
    (Role::Running, "running"),
    (Role::Selected, "selected"),
    (Role::Border, "border"),
    (Role::Focus, "focus"),
    (Role::Input, "input"),
    (Role::Hint, "hint"),
    (Role::Match, "match"),
];

/// A sign with a seven-bit twin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Glyph {
    /// Good.
    Ok,
    /// Worth a look.
    Warn,
    /// Bad.
    Error,
    /// Under way.
    Running,
    /// Not yet.
    Waiting,
    /// Switched off.
    Off,
    /// Between breadcrumbs.
    Crumb,
    /// A branch of a tree.
    Branch,
    /// A chosen option.
    Checked,
    /// An option not chosen.
    Unchecked,
    /// Sorted upwards.
    Ascending,
    /// Sorted downwards.
    Descending,
    /// Between things on one line.
    Dot,
}

/// A piece of a line.
#[derive(Debug, Clone, PartialEq)]
pub enum Span {
    /// Text, already cleaned.
    Text(String, Role),
    /// A sign.
    Glyph(Glyph, Role),
    /// A bar filled to this share (0 to 1), so many columns wide.
    Bar(f64, u16, Role),
    /// A line of samples, oldest first, so many columns wide.
    Spark(Vec<u64>, u16, Role),
}

/// A line.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Line(pub Vec<Span>);

impl Line {
    /// An empty line.
    pub fn new() -> Self {
        Self::default()
    }

    /// Text of one role.
    pub fn of(role: Role, text: impl AsRef<str>) -> Self {
        Self::new().and(role, text)
    }

    /// Ordinary text.
    pub fn text(text: impl AsRef<str>) -> Self {
        Self::of(Role::Text, text)
    }

    /// A sign and a word, the way every state is written.
    pub fn state(glyph: Glyph, role: Role, word: impl AsRef<str>) -> Self {
        Self(vec![Span::Glyph(glyph, role)]).and(Role::Text, " ").and(role, word)
    }

    /// Adds text.
    #[must_use]
    pub fn and(mut self, role: Role, text: impl AsRef<str>) -> Self {
        self.0.push(Span::Text(clean(text.as_ref()).into_owned(), role));
        self
    }

    /// Adds a piece.
    #[must_use]
    pub fn with(mut self, span: Span) -> Self {
        self.0.push(span);
        self
    }

    /// The words alone, for copying and for tests.
    pub fn plain(&self) -> String {
        self.0.iter().filter_map(|span| if let Span::Text(text, _) = span { Some(text.as_str()) } else { None }).collect()
    }
}

/// `label   value`, the line all detail panes are made of.
pub fn pair(label: &str, value: impl AsRef<str>) -> Line {
    Line::of(Role::Muted, format!("{label:<13}")).and(Role::Text, value)
}

/// Like [`pair`], with a value made of pieces.
pub fn pair_line(label: &str, value: Line) -> Line {
    let mut line = Line::of(Role::Muted, format!("{label:<13}"));
    line.0.extend(value.0);
    line
}
