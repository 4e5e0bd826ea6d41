//! The forms that take a licence in, bind it, and free it of one of several proxies.

use api::License;

use super::change::fixed;
use super::edit::signed;
use super::{Choice, Form, FormField, FormKind, wanted};
use crate::core::errand::{Errand, LicenseSource};
use crate::core::format::{count, short};
use crate::core::state::State;
use crate::core::text::shell;

/// A form that gives a licence to a proxy to keep.
pub fn open_import(proxy: Option<&str>) -> Form {
    let fields = vec![
        FormField::choice("proxy", "Proxy", "The one that keeps the licence, and can bind it to others", Vec::new(), proxy),
        FormField::text("file", "File", "Path of the signed text on this machine; or paste it below", ""),
        FormField::pasted(
            "text",
            "Text",
            "Paste the signed text here, from its first line to its last; it is not shown, and pasted again it is replaced",
        ),
    ];
    let mut form = Form::new(FormKind::LicenseImport, "Import a licence", fields);
    form.focus_on(if proxy.is_some() { "file" } else { "proxy" });
    form
}

/// A form that binds a licence held by a proxy.
pub fn open_bind(holder: &str, license: &License) -> Form {
    let fields = vec![
        FormField::choice("to", "To", "The proxy that shall run under it", Vec::new(), None),
        fixed("proxy", "Held by", "The proxy that keeps the licence", holder),
    ];
    let title = format!("Bind licence {}", short(&license.id));
    Form::new(FormKind::LicenseBind(Box::new(license.clone())), title, fields)
}

/// A form that frees a licence held by a proxy of one of the proxies it serves.
pub fn open_unbind(holder: &str, license: &License) -> Form {
    let options: Vec<Choice> = license.bound.iter().map(|bound| Choice::new(&bound.proxy, &bound.name, &bound.proxy)).collect();
    let first = license.bound.first().map(|bound| bound.proxy.as_str());
    let fields = vec![
        FormField::choice("of", "Of", "The proxy that shall no longer run under it", options, first),
        fixed("proxy", "Held by", "The proxy that keeps the licence", holder),
    ];
    let title = format!("Free licence {}", short(&license.id));
    Form::new(FormKind::LicenseUnbind(Box::new(license.clone())), title, fields)
}

pub(super) fn sync(form: &mut Form, state: &State) {
    let away = |name: &str| state.proxy(name).filter(|proxy| !proxy.live()).map(|_| "not connected".to_owned());
    let options = |why: &dyn Fn(&str) -> Option<String>| -> Vec<Choice> {
        let judged = |option: Choice| {
            let why = why(&option.id);
            option.unless(why)
        };
        super::proxies(state).into_iter().map(judged).collect()
    };
    match form.kind.clone() {
        FormKind::LicenseImport => {
            let options = options(&away);
            form.offer_target("proxy", options);
            // A text that was pasted answers for the file, and the other way round.
            form.check_touched(state);
        }
        FormKind::LicenseBind(license) => {
            let bound = |name: &str| {
                let id = state.proxy(name)?.status.as_ref()?.id.as_str();
                license.bound.iter().any(|bound| bound.proxy == id).then(|| "it runs under this licence already".to_owned())
            };
            let options = options(&|name: &str| away(name).or_else(|| bound(name)));
            form.offer_target("to", options);
        }
        _ => {}
    }
}

pub(super) fn fault(form: &Form, id: &str) -> Option<String> {
    if let Some(why) = form.option(id).and_then(|option| option.why_not.as_ref()) {
        return Some(why.clone());
    }
    match id {
        "proxy" | "to" | "of" => wanted(form, id, "A proxy"),
        "file" if signed(form.value("file")) => {
            Some("That is the licence itself, not a path: ctrl-u, then paste it into Text".into())
        }
        "file" if form.value("file").is_empty() && form.pasted("text").trim().is_empty() => {
            Some("A file is needed, or the text pasted below".into())
        }
        "text" if form.typed("file").is_some() && !form.pasted("text").is_empty() => {
            Some("Either a file or the text, not both; Backspace empties this".into())
        }
        "text" if !form.pasted(id).is_empty() && !signed(form.pasted(id)) => {
            Some("That is no licence: it begins with -----BEGIN BACKHAUL LICENSE-----".into())
        }
        _ => None,
    }
}

pub(super) fn import(form: &Form) -> Errand {
    let source = match form.typed("file") {
        Some(path) => LicenseSource::File(path),
        None => LicenseSource::Text(form.pasted("text").to_owned()),
    };
    Errand::ImportLicense(source)
}

pub(super) fn bind(form: &Form, license: &License) -> Errand {
    Errand::BindLicense { license: license.id.clone(), to: form.value("to").to_owned() }
}

pub(super) fn unbind(form: &Form, license: &License) -> Option<Errand> {
    let of = license.bound.iter().find(|bound| bound.proxy == form.value("of"))?.clone();
    Some(Errand::UnbindLicense { license: license.id.clone(), of })
}

pub(super) fn import_command(form: &Form) -> String {
    let file = form.typed("file").filter(|file| !signed(file)).unwrap_or_else(|| "FILE".into());
    format!("backhaul license import --proxy {} {}", shell(form.proxy()), shell(&file))
}

pub(super) fn bind_command(form: &Form, verb: &str, license: &License) -> String {
    let proxy = form.option(if verb == "bind" { "to" } else { "of" }).map_or("", |option| option.label.as_str());
    format!("backhaul license {verb} {} {}", shell(&license.id), shell(proxy))
}

/// What stands in a field that is pasted into.
pub fn pasted_words(text: &str) -> String {
    match text.lines().count() {
        0 => "nothing pasted yet".into(),
        lines => format!("pasted, {}", count(lines, "line")),
    }
}
