//! Forms as data: fields with label, help, value and error. One editor works them all; each kind of form says what
//! its fields are, what they can be, and which request they make.

mod change;
pub mod deploy;
mod edit;
mod field;
pub mod job;
pub mod license;
pub mod pool;
pub mod remote;
pub mod restore;
pub mod settings;
pub mod upgrade;

pub use change::{reconfigure, redeploy};
pub use edit::Keyed;
pub use field::{Choice, FormField, Value};

use api::{DeployReview, DeploySpec, Deployed, ErrorReport, FieldFault};

use super::effect::RequestId;
use super::errand::Ask;
use super::input::Field as Text;
use super::state::State;

/// A form being filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Form {
    /// What it makes.
    pub kind: FormKind,
    /// The proxy it was opened for, whichever it says by now: a draft comes back there and nowhere else.
    pub opened_for: String,
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
    /// What the proxy said against single fields, as they are.
    pub refusals: Vec<FieldFault>,
    /// The schedule in words, and what it was asked for.
    pub preview: Option<Preview>,
    /// What would be done, to be accepted or not.
    pub review: Option<Box<Review>>,
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
    /// A proxy.
    Deploy,
    /// A deployed proxy made anew.
    Redeploy(Box<Deployed>),
    /// Another address, other resources of a deployed proxy.
    Reconfigure(Box<Deployed>),
    /// Name, site, HTTP proxy of this proxy of the fleet.
    Settings(String),
    /// Another version of this proxy of the fleet.
    Upgrade(String),
    /// A licence taken in.
    LicenseImport,
    /// A licence bound to a proxy.
    LicenseBind(Box<api::License>),
    /// A licence freed of one of several proxies.
    LicenseUnbind(Box<api::License>),
}

impl FormKind {
    /// Whether two forms are for the same thing, so that a draft fits.
    pub fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Job(None), Self::Job(None))
            | (Self::Remote, Self::Remote)
            | (Self::Pool, Self::Pool)
            | (Self::Deploy, Self::Deploy)
            | (Self::LicenseImport, Self::LicenseImport) => true,
            (Self::Job(Some(a)), Self::Job(Some(b))) => a.id == b.id,
            (Self::Restore(a), Self::Restore(b)) => a.id == b.id,
            (Self::Redeploy(a), Self::Redeploy(b)) | (Self::Reconfigure(a), Self::Reconfigure(b)) => a.id == b.id,
            (Self::Settings(a), Self::Settings(b)) | (Self::Upgrade(a), Self::Upgrade(b)) => a == b,
            (Self::LicenseBind(a), Self::LicenseBind(b)) | (Self::LicenseUnbind(a), Self::LicenseUnbind(b)) => a.id == b.id,
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

/// The last page of a form: what would be done. Nothing has been touched before it is accepted.
#[derive(Debug, Clone, PartialEq)]
pub struct Review {
    /// The proxy that was asked; accepting goes to it and to no other.
    pub proxy: String,
    /// What it was asked about; accepting asks for exactly this.
    pub spec: Box<DeploySpec>,
    /// What the proxy says it would do.
    pub review: DeployReview,
    /// First line shown.
    pub scroll: usize,
}

impl Form {
    /// An empty form.
    pub fn new(kind: FormKind, title: impl Into<String>, fields: Vec<FormField>) -> Self {
        Self {
            kind,
            opened_for: String::new(),
            title: title.into(),
            fields,
            focus: 0,
            changed: false,
            submitting: None,
            error: None,
            refusals: Vec::new(),
            preview: None,
            review: None,
        }
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

    /// What was pasted into a field.
    fn pasted(&self, id: &str) -> &str {
        match self.field(id).map(|field| &field.value) {
            Some(Value::Pasted(text)) => text,
            _ => "",
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
                Value::Text { .. } | Value::Pasted(_) => {}
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
            Value::Text { .. } | Value::Pasted(_) => {}
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

    /// Offers options of which one that can be is chosen, unless a person chose.
    fn offer(&mut self, id: &str, options: Vec<Choice>) {
        let able = |id: &String| options.iter().any(|option| option.id == *id && option.why_not.is_none());
        let first = options.iter().find(|option| option.why_not.is_none()).map(|option| option.id.clone());
        let stays = match self.field(id) {
            Some(FormField { value: Value::Choice { chosen: Some(chosen), .. }, touched, .. }) => *touched || able(chosen),
            _ => false,
        };
        self.set_options(id, options, true);
        if let Some(FormField { value: Value::Choice { chosen, .. }, .. }) = self.field_mut(id)
            && (!stays || chosen.is_none())
        {
            *chosen = first;
        }
    }

    /// Offers what the form is for. What is chosen stays chosen, also while it cannot be: a lost line must not send the form
    /// elsewhere. Why it cannot be is said beside the field.
    fn offer_target(&mut self, id: &str, options: Vec<Choice>) {
        if self.value(id).is_empty() {
            self.offer(id, options);
        } else {
            self.set_options(id, options, true);
        }
        let why = self.option(id).and_then(|option| option.why_not.clone());
        self.note(id, why.map(|why| (super::rich::Role::Warn, why)));
    }

    /// The option chosen in a field.
    fn option(&self, id: &str) -> Option<&Choice> {
        match self.field(id).map(|field| &field.value) {
            Some(Value::Choice { options, chosen: Some(id) }) => options.iter().find(|option| option.id == *id),
            _ => None,
        }
    }

    /// Says something beside a field.
    fn note(&mut self, id: &str, note: Option<(super::rich::Role, String)>) {
        if let Some(field) = self.field_mut(id) {
            field.note = note;
        }
    }

    /// What is wrong with a field, as it is to be shown.
    pub fn trouble<'a>(&'a self, field: &'a FormField) -> Option<&'a str> {
        let refused = || self.refusals.iter().find(|fault| fault.field == field.id).map(|fault| fault.message.as_str());
        field.error.as_deref().or_else(refused)
    }

    /// What sending it does, in one word.
    pub fn verb(&self) -> &'static str {
        match self.kind {
            FormKind::Restore(_) => "restore",
            FormKind::Deploy => "review",
            FormKind::Redeploy(_) => "redeploy",
            FormKind::Reconfigure(_) => "change",
            FormKind::Upgrade(_) => "upgrade",
            FormKind::LicenseImport => "import",
            FormKind::LicenseBind(_) => "bind",
            FormKind::LicenseUnbind(_) => "free",
            _ => "save",
        }
    }

    /// Name of the proxy the form is for.
    pub fn proxy(&self) -> &str {
        self.value("proxy")
    }

    /// Brings options and defaults up to date with what is known. What was sent, and what a review shows, stays as it is:
    /// otherwise something else would be accepted than was read.
    pub fn sync(&mut self, state: &State) {
        if self.review.is_some() || self.submitting.is_some() {
            return;
        }
        match &self.kind {
            FormKind::Job(_) => job::sync(self, state),
            FormKind::Remote => remote::sync(self, state),
            FormKind::Pool => pool::sync(self, state),
            FormKind::Restore(_) => restore::sync(self, state),
            FormKind::Deploy => deploy::sync(self, state),
            FormKind::Redeploy(deployed) => redeploy::sync(self, state, &deployed.clone()),
            FormKind::Reconfigure(_) => reconfigure::sync(self),
            FormKind::Settings(_) => settings::sync(self),
            FormKind::LicenseImport | FormKind::LicenseBind(_) => license::sync(self, state),
            FormKind::Upgrade(_) | FormKind::LicenseUnbind(_) => {}
        }
    }

    /// Checks one field.
    fn fault(&self, state: &State, field: &FormField) -> Option<String> {
        if field.hidden {
            return None;
        }
        match &self.kind {
            FormKind::Job(_) => job::fault(self, state, field.id),
            FormKind::Remote => remote::fault(self, field.id),
            FormKind::Pool => pool::fault(self, field.id),
            FormKind::Restore(_) => restore::fault(self, field.id),
            FormKind::Deploy => deploy::fault(self, state, field.id),
            FormKind::Redeploy(_) => redeploy::fault(self, field.id),
            FormKind::Reconfigure(deployed) => reconfigure::fault(self, deployed, field.id),
            FormKind::Settings(_) => settings::fault(self, field.id),
            FormKind::Upgrade(_) => upgrade::fault(self, field.id),
            FormKind::LicenseImport | FormKind::LicenseBind(_) | FormKind::LicenseUnbind(_) => license::fault(self, field.id),
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

    /// Checks what a person has changed, while it is being typed.
    fn check_touched(&mut self, state: &State) {
        for at in 0..self.fields.len() {
            let field = &self.fields[at];
            if field.touched || field.error.is_some() {
                self.fields[at].error = self.fault(state, field);
            }
        }
    }

    /// What the form asks for, and the proxy it goes to. Only for a form that was checked.
    pub fn request(&self) -> Option<(String, Ask)> {
        let ask: Ask = match &self.kind {
            FormKind::Job(before) => job::request(self, before.as_deref()).into(),
            FormKind::Remote => remote::request(self).into(),
            FormKind::Pool => pool::request(self).into(),
            FormKind::Restore(point) => restore::request(self, point).into(),
            FormKind::Deploy => deploy::request(self)?.into(),
            FormKind::Redeploy(deployed) => redeploy::request(self, deployed).into(),
            FormKind::Reconfigure(deployed) => reconfigure::request(self, deployed)?.into(),
            FormKind::Settings(_) => settings::request(self).into(),
            FormKind::Upgrade(_) => upgrade::request(self).into(),
            FormKind::LicenseImport => license::import(self).into(),
            FormKind::LicenseBind(license) => license::bind(self, license).into(),
            FormKind::LicenseUnbind(license) => license::unbind(self, license)?.into(),
        };
        Some((self.proxy().to_owned(), ask))
    }

    /// The same as one command line, without secrets.
    pub fn command(&self) -> String {
        match &self.kind {
            FormKind::Job(before) => job::command(self, before.as_deref()),
            FormKind::Remote => remote::command(self),
            FormKind::Pool => pool::command(self),
            FormKind::Restore(point) => restore::command(self, point),
            FormKind::Deploy => deploy::command(self),
            FormKind::Redeploy(deployed) => redeploy::command(self, deployed),
            FormKind::Reconfigure(deployed) => reconfigure::command(self, deployed),
            FormKind::Settings(proxy) => settings::command(self, proxy),
            FormKind::Upgrade(proxy) => upgrade::command(self, proxy),
            FormKind::LicenseImport => license::import_command(self),
            FormKind::LicenseBind(license) => license::bind_command(self, "bind", license),
            FormKind::LicenseUnbind(license) => license::bind_command(self, "unbind", license),
        }
    }
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
