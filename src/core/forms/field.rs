//! What a form is made of: fields, their values, the options of those that offer some.

use crate::core::fuzzy::Query;
use crate::core::input::Field as Text;
use crate::core::rich::Role;

/// A field.
#[derive(Debug, Clone, PartialEq)]
pub struct FormField {
    /// Its name in the program.
    pub id: &'static str,
    /// Its name on the screen.
    pub label: &'static str,
    /// What it is for.
    pub help: &'static str,
    /// What it holds.
    pub value: Value,
    /// What is wrong with it.
    pub error: Option<String>,
    /// What to know about it, and how serious that is; gives way to what is wrong.
    pub note: Option<(Role, String)>,
    /// Whether a person changed it: then no default replaces it.
    pub touched: bool,
    /// Whether it makes no sense now.
    pub hidden: bool,
}

/// What a field holds.
#[derive(Clone, PartialEq)]
pub enum Value {
    /// A line; empty means the default shown.
    Text {
        /// The line.
        text: Text,
        /// What empty means.
        default: String,
        /// Whether it is not to be shown.
        secret: bool,
    },
    /// One of some.
    Choice {
        /// All.
        options: Vec<Choice>,
        /// Id of the chosen one.
        chosen: Option<String>,
    },
    /// Any of some.
    Many {
        /// All.
        options: Vec<Choice>,
        /// Ids of the chosen ones.
        chosen: Vec<String>,
        /// What is typed to find one.
        filter: Text,
        /// Position among those that match.
        cursor: usize,
    },
    /// A text of several lines that is pasted, and never shown.
    Pasted(String),
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text { secret: true, .. } => f.write_str("Secret"),
            Self::Text { text, .. } => write!(f, "Text({:?})", text.text()),
            Self::Choice { chosen, .. } => write!(f, "Choice({chosen:?})"),
            Self::Many { chosen, .. } => write!(f, "Many({chosen:?})"),
            Self::Pasted(_) => f.write_str("Pasted"),
        }
    }
}

/// An option of a field.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Choice {
    /// Its id.
    pub id: String,
    /// Its name.
    pub label: String,
    /// More about it.
    pub note: String,
    /// Why it cannot be chosen; none: it can.
    pub why_not: Option<String>,
}

impl Choice {
    /// An option.
    pub fn new(id: impl Into<String>, label: impl Into<String>, note: impl Into<String>) -> Self {
        Self { id: id.into(), label: label.into(), note: note.into(), why_not: None }
    }

    /// The same, shown but not to be chosen where there is a reason.
    #[must_use]
    pub fn unless(mut self, why_not: Option<String>) -> Self {
        self.why_not = why_not;
        self
    }
}

impl FormField {
    fn new(id: &'static str, label: &'static str, help: &'static str, value: Value) -> Self {
        Self { id, label, help, value, error: None, note: None, touched: false, hidden: false }
    }

    /// A line of text; `default` is what empty means.
    pub fn text(id: &'static str, label: &'static str, help: &'static str, default: &str) -> Self {
        Self::new(id, label, help, Value::Text { text: Text::default(), default: default.into(), secret: false })
    }

    /// A line that is not shown.
    pub fn secret(id: &'static str, label: &'static str, help: &'static str) -> Self {
        Self::new(id, label, help, Value::Text { text: Text::default(), default: String::new(), secret: true })
    }

    /// One of some.
    pub fn choice(id: &'static str, label: &'static str, help: &'static str, options: Vec<Choice>, chosen: Option<&str>) -> Self {
        Self::new(id, label, help, Value::Choice { options, chosen: chosen.map(str::to_owned) })
    }

    /// Any of some.
    pub fn many(id: &'static str, label: &'static str, help: &'static str) -> Self {
        Self::new(id, label, help, Value::Many { options: Vec::new(), chosen: Vec::new(), filter: Text::default(), cursor: 0 })
    }

    /// With a text already in it.
    #[must_use]
    pub fn holding(mut self, value: impl Into<String>) -> Self {
        if let Value::Text { text, .. } = &mut self.value {
            *text = Text::with(value);
        }
        self
    }

    /// A text of several lines to be pasted, never shown.
    pub fn pasted(id: &'static str, label: &'static str, help: &'static str) -> Self {
        Self::new(id, label, help, Value::Pasted(String::new()))
    }
}

impl Value {
    /// Positions of the options that match what is typed, best first.
    pub fn hits(&self) -> Vec<usize> {
        match self {
            Self::Text { .. } | Self::Pasted(_) => Vec::new(),
            Self::Choice { options, .. } => (0..options.len()).collect(),
            Self::Many { options, filter, .. } => {
                let mut query = Query::new(filter.text());
                let mut hits: Vec<(u32, usize)> =
                    options.iter().enumerate().filter_map(|(at, option)| Some((query.score(&option.label)?, at))).collect();
                hits.sort_by_key(|(score, at)| (std::cmp::Reverse(*score), *at));
                hits.into_iter().map(|(_, at)| at).collect()
            }
        }
    }
}
