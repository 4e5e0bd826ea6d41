//! The form that upgrades a proxy from a bundle.

use api::deploy::redact_url;

use super::change::fixed;
use super::{Form, FormField, FormKind, wanted};
use crate::core::errand::Errand;
use crate::core::text::shell;

/// A form for upgrading a proxy.
pub fn open(proxy: &str) -> Form {
    let fields = vec![
        FormField::text(
            "bundle",
            "Bundle",
            "Path or URL of the signed bundle; it is fetched here, its signature is checked by the proxy",
            "",
        ),
        FormField::text("wait", "Wait", "Minutes for running transfers to end; nothing new starts meanwhile", "60"),
        fixed("proxy", "Proxy", "The one that is upgraded; it goes back by itself if the new version does not work", proxy),
    ];
    Form::new(FormKind::Upgrade(proxy.to_owned()), format!("Upgrade {proxy}"), fields)
}

pub(super) fn fault(form: &Form, id: &str) -> Option<String> {
    match id {
        "bundle" => wanted(form, id, "A bundle"),
        "wait" => match form.value(id).parse::<u64>() {
            Ok(1..=1440) => None,
            _ => Some("A whole number from 1 to 1440".into()),
        },
        _ => None,
    }
}

pub(super) fn request(form: &Form) -> Errand {
    let minutes: u64 = form.value("wait").parse().unwrap_or(60);
    Errand::Upgrade { bundle: form.value("bundle").to_owned(), wait_seconds: minutes.saturating_mul(60) }
}

pub(super) fn command(form: &Form, proxy: &str) -> String {
    format!(
        "backhaul proxy upgrade {} --bundle {} --wait {}m",
        shell(proxy),
        shell(&redact_url(form.value("bundle"))),
        shell(form.value("wait"))
    )
}
