//! The form that upgrades a proxy from a bundle.

use api::deploy::redact_url;

use super::change::fixed;
use super::{Choice, Form, FormField, FormKind, wanted};
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
        FormField::choice(
            "version",
            "Version",
            "An older one may not read the state of the one that runs",
            vec![Choice::new("newer", "only a newer one", ""), Choice::new("any", "an older one too", "")],
            Some("newer"),
        ),
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
    Errand::Upgrade {
        bundle: form.value("bundle").to_owned(),
        wait_seconds: minutes.saturating_mul(60),
        downgrade: form.value("version") == "any",
    }
}

pub(super) fn command(form: &Form, proxy: &str) -> String {
    let downgrade = if form.value("version") == "any" { " --downgrade" } else { "" };
    format!(
        "backhaul proxy upgrade {} --bundle {} --wait {}m{downgrade}",
        shell(proxy),
        shell(&redact_url(form.value("bundle"))),
        shell(form.value("wait"))
    )
}
