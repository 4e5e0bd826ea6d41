//! The form that upgrades a proxy from a bundle.

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
            "Path of the signed bundle on this machine; its signature is checked by the proxy",
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
    format!("backhaul proxy upgrade {} --bundle {}", shell(proxy), shell(form.value("bundle")))
}
