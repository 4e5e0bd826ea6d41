//! The form for a new remote.

use api::RemoteAddParams;

use super::{Choice, Form, FormField, FormKind, wanted};
use crate::core::effect::Request;
use crate::core::state::State;
use crate::core::text::shell;

/// A form for a new remote on a proxy.
pub fn open(proxy: Option<&str>) -> Form {
    let layouts = vec![
        Choice::new("file", "one file a disk", "VHD file"),
        Choice::new("directory", "one directory a disk", "VHD directory: faster merges, many files"),
    ];
    let fields = vec![
        FormField::choice("proxy", "Proxy", "The daemon that writes to it", Vec::new(), proxy),
        FormField::text("name", "Name", "What you call it", ""),
        FormField::text("url", "Location", "A directory on the proxy, for example /srv/backups, or a file:// URL", ""),
        FormField::choice("layout", "Layout", "How incremental backups store a disk", layouts, Some("file")),
    ];
    let mut form = Form::new(FormKind::Remote, "New remote", fields);
    form.focus_on(if proxy.is_some() { "name" } else { "proxy" });
    form
}

pub(super) fn sync(form: &mut Form, state: &State) {
    form.set_options("proxy", super::proxies(state), true);
}

pub(super) fn fault(form: &Form, id: &str) -> Option<String> {
    match id {
        "proxy" => wanted(form, id, "A proxy"),
        "name" => wanted(form, id, "A name"),
        "url" => wanted(form, id, "A path or URL").or_else(|| {
            let value = form.value("url");
            (!value.starts_with('/') && !value.contains("://"))
                .then(|| "Begin with / for a directory, or with a scheme such as file://".into())
        }),
        _ => None,
    }
}

fn url(form: &Form) -> String {
    let typed = form.value("url");
    let mut url = if typed.starts_with('/') { format!("file://{typed}") } else { typed.to_owned() };
    if form.value("layout") == "directory" && !url.contains("useVhdDirectory") {
        url.push_str(if url.contains('?') { "&" } else { "?" });
        url.push_str("useVhdDirectory=true");
    }
    url
}

pub(super) fn request(form: &Form) -> Request {
    Request::RemoteAdd(RemoteAddParams { name: form.value("name").to_owned(), url: url(form) })
}

/// The URL without a password in it, for the screen.
fn redacted(url: &str) -> String {
    match (url.split_once("://"), url.rfind('@')) {
        (Some((scheme, rest)), Some(at)) if scheme != "file" && at > scheme.len() + 3 => {
            let (login, host) = rest.split_at(at - scheme.len() - 3);
            let user = login.split(':').next().unwrap_or("");
            format!("{scheme}://{user}:***{host}")
        }
        _ => url.to_owned(),
    }
}

pub(super) fn command(form: &Form) -> String {
    format!("backhaul remote add --proxy {} {} {}", shell(form.proxy()), shell(form.value("name")), shell(&redacted(&url(form))))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_password_never_reaches_the_screen() {
        assert_eq!(super::redacted("s3://key:sec/ret@host/bucket"), "s3://key:***@host/bucket");
        assert_eq!(super::redacted("file:///srv/a@b"), "file:///srv/a@b");
        assert_eq!(super::redacted("file:///srv/backups"), "file:///srv/backups");
    }
}
