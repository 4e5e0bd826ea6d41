//! Forms as data: fields with label, help, value and error. One editor works them all; each kind of form says what
//! its fields are, what they can be, and which request they make.

pub mod job;
pub mod pool;
pub mod remote;
pub mod restore;

use api::ErrorReport;

use super::effect::{Request, RequestId};
use super::fuzzy::Query;
use super::input::Field as Text;
use super::key::{Code, Key};
use super::state::State;

/// A form being filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Form {
    /// What it makes.
    pub kind: FormKind,
    /// Its title.
    pub title: String,
    /// Its fields, in order.
    pub fields: Vec<FormField>,
    /// The field that has the keys.
    pub focus: usize,
    /// Whether a person changed anything.
    pub changed: bool,
    /// The request under way.
    pub submitting: Option<RequestId>,
    /// What the proxy said to the last attempt.
    pub error: Option<ErrorReport>,
    /// The schedule in words, and what it was asked for.
    pub preview: Option<Preview>,
}

/// What a form makes.
#[derive(Debug, Clone, PartialEq)]
pub enum FormKind {
    /// A job; with the one being changed.
    Job(Option<Box<api::Job>>),
    /// A remote.
    Remote,
    /// A pool.
    Pool,
    /// A restored VM, from this point.
    Restore(Box<api::RestorePoint>),
}

impl FormKind {
    /// Whether two forms are for the same thing, so that a draft fits.
    pub fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Job(None), Self::Job(None)) | (Self::Remote, Self::Remote) | (Self::Pool, Self::Pool) => true,
            (Self::Job(Some(a)), Self::Job(Some(b))) => a.id == b.id,
            (Self::Restore(a), Self::Restore(b)) => a.id == b.id,
            _ => false,
        }
    }
}

/// An explanation of a schedule.
#[derive(Debug, Clone, PartialEq)]
pub struct Preview {
    /// Proxy and schedule asked.
    pub asked: (String, api::Schedule),
    /// The request.
    pub id: RequestId,
    /// The answer.
    pub answer: Option<Result<api::SchedulePreview, ErrorReport>>,
}

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
    /// Whether a person changed it: then no default replaces it.
    pub touched: bool,
    /// Whether it makes no sense now.
    pub hidden: bool,
}

/// What a field holds.
#[derive(Debug, Clone, PartialEq)]
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
}

impl Choice {
    /// An option.
    pub fn new(id: impl Into<String>, label: impl Into<String>, note: impl Into<String>) -> Self {
        Self { id: id.into(), label: label.into(), note: note.into() }
    }
}

impl FormField {
    fn new(id: &'static str, label: &'static str, help: &'static str, value: Value) -> Self {
        Self { id, label, help, value, error: None, touched: false, hidden: false }
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
}

impl Value {
    /// Positions of the options that match what is typed, best first.
    pub fn hits(&self) -> Vec<usize> {
        match self {
            Self::Text { .. } => Vec::new(),
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

/// What a key did to a form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keyed {
    /// Nothing.
    Ignored,
    /// Something is different.
    Changed,
    /// Only the cursor.
    Moved,
    /// It was Enter on the last field.
    Submit,
}

impl Form {
    /// An empty form.
    pub fn new(kind: FormKind, title: impl Into<String>, fields: Vec<FormField>) -> Self {
        Self { kind, title: title.into(), fields, focus: 0, changed: false, submitting: None, error: None, preview: None }
    }

    fn at(&self, id: &str) -> Option<usize> {
        self.fields.iter().position(|field| field.id == id)
    }

    /// A field by name.
    pub fn field(&self, id: &str) -> Option<&FormField> {
        self.fields.iter().find(|field| field.id == id)
    }

    /// A field by name.
    pub fn field_mut(&mut self, id: &str) -> Option<&mut FormField> {
        self.fields.iter_mut().find(|field| field.id == id)
    }

    /// The text of a field, or its default where nothing is typed; id of the chosen option for a choice.
    pub fn value(&self, id: &str) -> &str {
        match self.field(id).map(|field| &field.value) {
            Some(Value::Text { text, default, .. }) => {
                if text.text().trim().is_empty() {
                    default
                } else {
                    text.text().trim()
                }
            }
            Some(Value::Choice { chosen, .. }) => chosen.as_deref().unwrap_or(""),
            _ => "",
        }
    }

    /// What is typed into a field, without its default.
    pub fn typed(&self, id: &str) -> Option<String> {
        match self.field(id).map(|field| &field.value) {
            Some(Value::Text { text, .. }) if !text.text().trim().is_empty() => Some(text.text().trim().to_owned()),
            _ => None,
        }
    }

    /// Ids chosen in a field.
    pub fn chosen(&self, id: &str) -> &[String] {
        match self.field(id).map(|field| &field.value) {
            Some(Value::Many { chosen, .. }) => chosen,
            _ => &[],
        }
    }

    /// Labels of what is chosen in a field.
    pub fn chosen_labels(&self, id: &str) -> Vec<String> {
        match self.field(id).map(|field| &field.value) {
            Some(Value::Many { options, chosen, .. }) => chosen
                .iter()
                .map(|id| {
                    options.iter().find(|option| option.id == *id).map_or_else(|| id.clone(), |option| option.label.clone())
                })
                .collect(),
            Some(Value::Choice { options, chosen: Some(id) }) => {
                options.iter().filter(|option| option.id == *id).map(|option| option.label.clone()).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Gives a text field its default.
    pub fn set_default(&mut self, id: &str, value: String) {
        if let Some(FormField { value: Value::Text { default, .. }, .. }) = self.field_mut(id) {
            *default = value;
        }
    }

    /// Chooses for a person who has not chosen yet.
    pub fn suggest(&mut self, id: &str, value: Option<String>) {
        if let Some(field) = self.field_mut(id).filter(|field| !field.touched) {
            match &mut field.value {
                Value::Choice { chosen, .. } => *chosen = value,
                Value::Many { chosen, .. } => *chosen = value.into_iter().collect(),
                Value::Text { .. } => {}
            }
        }
    }

    /// Replaces the options of a field; what is chosen and no longer offered is dropped once the offer is known.
    pub fn set_options(&mut self, id: &str, new: Vec<Choice>, complete: bool) {
        let Some(field) = self.field_mut(id) else { return };
        let known = |id: &String| new.iter().any(|option| option.id == *id);
        match &mut field.value {
            Value::Choice { chosen, .. } if complete => *chosen = chosen.take().filter(known),
            Value::Many { chosen, .. } if complete => chosen.retain(known),
            _ => {}
        }
        match &mut field.value {
            Value::Choice { options, .. } | Value::Many { options, .. } => *options = new,
            Value::Text { .. } => {}
        }
    }

    /// Shows or hides a field.
    pub fn show(&mut self, id: &str, shown: bool) {
        if let Some(field) = self.field_mut(id) {
            field.hidden = !shown;
        }
    }

    /// Puts the keys into a field.
    pub fn focus_on(&mut self, id: &str) {
        if let Some(at) = self.at(id) {
            self.focus = at;
        }
    }

    /// Moves the keys to the next or previous field that makes sense; answers whether there was one.
    pub fn step(&mut self, forward: bool) -> bool {
        let mut at = self.focus;
        loop {
            let next = if forward { at + 1 } else { at.wrapping_sub(1) };
            match self.fields.get(next) {
                None => return false,
                Some(field) if field.hidden => at = next,
                Some(_) => {
                    self.focus = next;
                    return true;
                }
            }
        }
    }

    /// Takes a key that is no action of the form.
    pub fn key(&mut self, key: Key) -> Keyed {
        if key.code == Code::Enter && !key.ctrl && !key.alt {
            return self.enter();
        }
        let Some(field) = self.fields.get_mut(self.focus) else { return Keyed::Ignored };
        let keyed = match &mut field.value {
            Value::Text { text, .. } => {
                let before = text.text().to_owned();
                match text.key(key) {
                    true if before != text.text() => Keyed::Changed,
                    true => Keyed::Moved,
                    false => Keyed::Ignored,
                }
            }
            Value::Choice { options, chosen } => choose(options, chosen, key),
            Value::Many { .. } => Self::key_many(&mut field.value, key),
        };
        if keyed == Keyed::Changed {
            field.touched = true;
            field.error = None;
            self.changed = true;
            self.error = None;
        }
        keyed
    }

    fn key_many(value: &mut Value, key: Key) -> Keyed {
        let hits = value.hits();
        let Value::Many { options, chosen, filter, cursor } = value else { return Keyed::Ignored };
        if key.typed() == Some(' ') {
            let Some(option) = hits.get(*cursor).and_then(|at| options.get(*at)) else { return Keyed::Ignored };
            toggle(chosen, &option.id);
            // The cursor stays on what was just chosen when the filter goes.
            *cursor = if filter.is_empty() { *cursor } else { hits[*cursor] };
            filter.clear();
            return Keyed::Changed;
        }
        if filter.key(key) {
            *cursor = 0;
            return Keyed::Moved;
        }
        Keyed::Ignored
    }

    /// Moves inside the options of the focused field; answers false at their end, where the keys go on to the next field.
    pub fn move_option(&mut self, down: bool) -> bool {
        let Some(field) = self.fields.get_mut(self.focus) else { return false };
        let hits = field.value.hits().len();
        let Value::Many { cursor, .. } = &mut field.value else { return false };
        if down && *cursor + 1 < hits {
            *cursor += 1;
            true
        } else if !down && *cursor > 0 {
            *cursor -= 1;
            true
        } else {
            false
        }
    }

    fn enter(&mut self) -> Keyed {
        let Some(field) = self.fields.get_mut(self.focus) else { return Keyed::Ignored };
        let hits = field.value.hits();
        if let Value::Many { options, chosen, filter, cursor } = &mut field.value {
            let pick = !filter.is_empty() || chosen.is_empty();
            if pick && let Some(option) = hits.get(*cursor).and_then(|at| options.get(*at)) {
                let searched = !filter.is_empty();
                if !chosen.contains(&option.id) {
                    chosen.push(option.id.clone());
                }
                if searched {
                    *cursor = hits[*cursor];
                    filter.clear();
                }
                field.touched = true;
                field.error = None;
                self.changed = true;
                if searched {
                    return Keyed::Changed;
                }
                self.step(true);
                return Keyed::Changed;
            }
        }
        if self.step(true) { Keyed::Moved } else { Keyed::Submit }
    }

    /// Takes pasted text.
    pub fn paste(&mut self, pasted: &str) {
        let Some(field) = self.fields.get_mut(self.focus) else { return };
        match &mut field.value {
            Value::Text { text, .. } => {
                text.paste(pasted);
                field.touched = true;
                field.error = None;
                self.changed = true;
            }
            Value::Many { filter, cursor, .. } => {
                filter.paste(pasted);
                *cursor = 0;
            }
            Value::Choice { .. } => {}
        }
    }

    /// What sending it does, in one word.
    pub fn verb(&self) -> &'static str {
        if matches!(self.kind, FormKind::Restore(_)) { "restore" } else { "save" }
    }

    /// Name of the proxy the form is for.
    pub fn proxy(&self) -> &str {
        self.value("proxy")
    }

    /// Brings options and defaults up to date with what is known.
    pub fn sync(&mut self, state: &State) {
        match self.kind {
            FormKind::Job(_) => job::sync(self, state),
            FormKind::Remote => remote::sync(self, state),
            FormKind::Pool => pool::sync(self, state),
            FormKind::Restore(_) => restore::sync(self, state),
        }
    }

    /// Checks one field.
    fn fault(&self, state: &State, field: &FormField) -> Option<String> {
        if field.hidden {
            return None;
        }
        match self.kind {
            FormKind::Job(_) => job::fault(self, state, field.id),
            FormKind::Remote => remote::fault(self, field.id),
            FormKind::Pool => pool::fault(self, field.id),
            FormKind::Restore(_) => restore::fault(self, field.id),
        }
    }

    /// Checks the field that is being left.
    pub fn check_field(&mut self, state: &State, at: usize) {
        if let Some(fault) = self.fields.get(at).filter(|field| field.touched).map(|field| self.fault(state, field)) {
            self.fields[at].error = fault;
        }
    }

    /// Checks all; the keys go to the first fault.
    pub fn check(&mut self, state: &State) -> bool {
        let faults: Vec<Option<String>> = self.fields.iter().map(|field| self.fault(state, field)).collect();
        let first = faults.iter().position(Option::is_some);
        for (field, fault) in self.fields.iter_mut().zip(faults) {
            field.error = fault;
        }
        if let Some(first) = first {
            self.focus = first;
        }
        first.is_none()
    }

    /// The request the form makes, and the proxy it goes to. Only for a form that was checked.
    pub fn request(&self) -> (String, Request) {
        let request = match &self.kind {
            FormKind::Job(before) => job::request(self, before.as_deref()),
            FormKind::Remote => remote::request(self),
            FormKind::Pool => pool::request(self),
            FormKind::Restore(point) => restore::request(self, point),
        };
        (self.proxy().to_owned(), request)
    }

    /// The same as one command line, without secrets.
    pub fn command(&self) -> String {
        match &self.kind {
            FormKind::Job(before) => job::command(self, before.as_deref()),
            FormKind::Remote => remote::command(self),
            FormKind::Pool => pool::command(self),
            FormKind::Restore(point) => restore::command(self, point),
        }
    }
}

fn toggle(chosen: &mut Vec<String>, id: &str) {
    match chosen.iter().position(|other| other == id) {
        Some(at) => {
            chosen.remove(at);
        }
        None => chosen.push(id.to_owned()),
    }
}

fn choose(options: &[Choice], chosen: &mut Option<String>, key: Key) -> Keyed {
    if options.is_empty() {
        return Keyed::Ignored;
    }
    let now = options.iter().position(|option| Some(&option.id) == chosen.as_ref());
    let count = options.len();
    let next = match (key.code, key.typed()) {
        (Code::Right, _) | (_, Some(' ')) => now.map_or(0, |at| (at + 1) % count),
        (Code::Left, _) => now.map_or(count - 1, |at| (at + count - 1) % count),
        (Code::Home, _) => 0,
        (Code::End, _) => count - 1,
        (_, Some(c)) => {
            // A letter goes to the next option that begins with it.
            let from = now.map_or(0, |at| at + 1);
            let begins = |at: &usize| options[*at].label.to_lowercase().starts_with(c.to_ascii_lowercase());
            match (from..count).chain(0..from.min(count)).find(begins) {
                Some(at) => at,
                None => return Keyed::Ignored,
            }
        }
        _ => return Keyed::Ignored,
    };
    *chosen = Some(options[next].id.clone());
    Keyed::Changed
}

/// The proxies as options.
fn proxies(state: &State) -> Vec<Choice> {
    state
        .proxies
        .iter()
        .map(|proxy| {
            let site = proxy.status.as_ref().and_then(|status| status.site.clone()).unwrap_or_default();
            let note = if proxy.live() { site } else { format!("{site} not connected").trim().to_owned() };
            Choice::new(proxy.name(), proxy.name(), note)
        })
        .collect()
}

fn wanted(form: &Form, id: &str, what: &str) -> Option<String> {
    form.value(id).is_empty().then(|| format!("{what} is needed"))
}
