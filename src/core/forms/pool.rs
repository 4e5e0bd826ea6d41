//! The form that connects a pool.

use api::PoolAddParams;

use super::{Form, FormField, FormKind, wanted};
use crate::core::effect::Request;
use crate::core::state::State;
use crate::core::text::shell;

/// A form for a new pool on a proxy.
pub fn open(proxy: Option<&str>) -> Form {
    let fields = vec![
        FormField::choice("proxy", "Proxy", "The daemon that reads from the pool", Vec::new(), proxy),
        FormField::text("url", "Address", "Of the pool's master, for example https://10.0.0.2", ""),
        FormField::text("username", "User", "A pool administrator", "root"),
        FormField::secret("password", "Password", "Kept by the proxy; it never comes back"),
        FormField::text("name", "Name", "Empty: the pool's own", ""),
        FormField::text(
            "fingerprint",
            "Fingerprint",
            "SHA-256 of its certificate; empty: what answers now is pinned and shown",
            "",
        ),
    ];
    let mut form = Form::new(FormKind::Pool, "New pool", fields);
    form.focus_on(if proxy.is_some() { "url" } else { "proxy" });
    form
}

pub(super) fn sync(form: &mut Form, state: &State) {
    form.set_options("proxy", super::proxies(state), true);
}

pub(super) fn fault(form: &Form, id: &str) -> Option<String> {
    match id {
        "proxy" => wanted(form, id, "A proxy"),
        "url" => wanted(form, id, "An address"),
        "password" => wanted(form, id, "A password"),
        _ => None,
    }
}

fn url(form: &Form) -> String {
    let typed = form.value("url");
    if typed.contains("://") { typed.to_owned() } else { format!("https://{typed}") }
}

pub(super) fn request(form: &Form) -> Request {
    Request::PoolAdd(PoolAddParams {
        name: form.typed("name"),
        url: url(form),
        username: form.value("username").to_owned(),
        password: form.value("password").to_owned(),
        fingerprint: form.typed("fingerprint"),
    })
}

pub(super) fn command(form: &Form) -> String {
    format!(
        "backhaul pool add --proxy {} {} --username {}",
        shell(form.proxy()),
        shell(&url(form)),
        shell(form.value("username"))
    )
}
