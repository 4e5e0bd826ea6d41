//! The form for what can be changed of a proxy in place: name, site, HTTP proxy.

use api::ConfigureParams;
use api::deploy::Answers;

use super::change::fixed;
use super::deploy::answer_fault;
use super::{Choice, Form, FormField, FormKind};
use crate::core::effect::Request;
use crate::core::store::Proxy;
use crate::core::text::shell;

/// A form for the settings of a proxy.
pub fn open(proxy: &Proxy) -> Form {
    let (name, site) = proxy.status.as_ref().map_or(("", ""), |status| (&status.name, status.site.as_deref().unwrap_or("")));
    let choices = vec![
        Choice::new("keep", "as it is", "it is never shown"),
        Choice::new("none", "none", "downloads go straight"),
        Choice::new("set", "another one", ""),
    ];
    let fields = vec![
        FormField::text("name", "Name", "What the proxy calls itself; in this console it keeps the name it has", "")
            .holding(name),
        FormField::text("site", "Site", "Where it stands; empty: none is told", "").holding(site),
        FormField::choice("http", "HTTP proxy", "For its downloads; left and right to choose", choices, Some("keep")),
        FormField::secret("http-proxy", "Address", "http://[user:password@]host:port; it is never shown again"),
        fixed("proxy", "Proxy", "The one that is changed", proxy.name()),
    ];
    let title = format!("Settings of {}", proxy.name());
    Form::new(FormKind::Settings(proxy.name().to_owned()), title, fields)
}

pub(super) fn sync(form: &mut Form) {
    let set = form.value("http") == "set";
    form.show("http-proxy", set);
}

pub(super) fn fault(form: &Form, id: &str) -> Option<String> {
    if id == "http-proxy" && form.value(id).is_empty() {
        return Some("an address is needed, or choose none".into());
    }
    if id == "name" && changes(form) == ConfigureParams::default() {
        return Some("nothing is changed yet: name, site or HTTP proxy".into());
    }
    let mut answers = Answers::default();
    for (id, value) in [("pool", "x"), ("image", "x"), ("name", form.value("name")), ("site", form.value("site"))] {
        answers.set(id, value);
    }
    answers.set("http-proxy", form.value("http-proxy"));
    answer_fault(&answers, id)
}

fn changes(form: &Form) -> ConfigureParams {
    let touched = |id: &str| form.field(id).is_some_and(|field| field.touched);
    let typed = |id: &str| touched(id).then(|| form.value(id).to_owned());
    let http_proxy = match form.value("http") {
        "none" => Some(String::new()),
        "set" => Some(form.value("http-proxy").to_owned()),
        _ => None,
    };
    ConfigureParams { name: typed("name"), site: typed("site"), http_proxy }
}

pub(super) fn request(form: &Form) -> Request {
    Request::Configure(changes(form))
}

pub(super) fn command(form: &Form, proxy: &str) -> String {
    let mut line = format!("backhaul proxy set {}", shell(proxy));
    let params = changes(form);
    for (flag, value) in [("name", params.name), ("site", params.site)] {
        if let Some(value) = value {
            line.push_str(&format!(" --{flag} {}", shell(&value)));
        }
    }
    match form.value("http") {
        "none" => line.push_str(" --no-http-proxy"),
        "set" => line.push_str(" --http-proxy-file FILE"),
        _ => {}
    }
    line
}
