//! The one place where requests leave. Read-only mode, the state of the connection and the danger of the request are
//! judged here and nowhere else, so that no screen can forget it.

use api::LogLevel;

use super::effect::{Danger, Effect, Request, RequestId};
use super::errand::{Ask, Errand};
use super::input::Field;
use super::message::Connection;
use super::state::{Confirm, Purpose, State, Then};

/// Why nothing that writes leaves.
const READ_ONLY: &str = "this console is read-only (--read-only)";

/// Why a request cannot leave now.
pub fn refusal(state: &State, proxy: &str, writes: bool) -> Option<String> {
    if writes && state.settings.read_only {
        return Some(READ_ONLY.into());
    }
    match state.proxy(proxy).map(|proxy| &proxy.connection) {
        Some(Connection::Live) => None,
        Some(Connection::Connecting) => Some(format!("{proxy} is not connected yet")),
        Some(Connection::Retrying { .. }) => Some(format!("{proxy} is away; nothing was sent")),
        Some(Connection::Refused { .. }) => Some(format!("{proxy} refuses this console; nothing was sent")),
        None => Some(format!("there is no proxy \"{proxy}\"")),
    }
}

/// Sends a request, asks first, or says why not. `name` is the object as the person knows it.
pub fn send(state: &mut State, proxy: &str, ask: impl Into<Ask>, purpose: Purpose, name: &str) -> Option<RequestId> {
    let ask = ask.into();
    if let Some(reason) = refused(state, proxy, &ask) {
        state.tell(LogLevel::Warning, reason);
        return None;
    }
    if ask.danger() == Danger::None {
        return Some(state.post(proxy, ask, purpose));
    }
    state.confirm = Some(question(proxy, ask, purpose, name));
    state.touch();
    None
}

/// Why this cannot leave now.
fn refused(state: &State, proxy: &str, ask: &Ask) -> Option<String> {
    if ask.needs_proxy() {
        return refusal(state, proxy, ask.writes());
    }
    (ask.writes() && state.settings.read_only).then(|| READ_ONLY.to_owned())
}

/// The time in the id of a restore point.
fn stem(id: &str) -> &str {
    let file = id.rsplit('/').next().unwrap_or(id);
    file.strip_suffix(".json").unwrap_or(file)
}

fn question(proxy: &str, ask: Ask, purpose: Purpose, name: &str) -> Confirm {
    let (question, detail, verb) = match &ask {
        Ask::Call(request) => about_call(proxy, request, name),
        Ask::Errand(errand) => about_errand(proxy, errand, name),
    };
    // A name that no keyboard types would lock the person out; blanks at its ends are not seen, and not asked for.
    let bare = name.trim();
    let typeable = !bare.is_empty() && bare.chars().all(|c| c.is_ascii_graphic() || c == ' ');
    let expected = (ask.danger() == Danger::TypeName).then(|| if typeable { bare.to_owned() } else { verb.to_lowercase() });
    Confirm {
        question,
        detail: if detail.is_empty() { Vec::new() } else { vec![detail.to_owned()] },
        verb: verb.to_owned(),
        expected,
        typed: Field::default(),
        yes: false,
        then: Then::Send(proxy.to_owned(), ask, purpose),
    }
}

fn about_call(proxy: &str, request: &Request, name: &str) -> (String, &'static str, &'static str) {
    match request {
        Request::RunCancel(_) => (
            format!("Stop the run {name} on {proxy}?"),
            "It stops within seconds; what is unfinished is removed again. Older restore points stay.",
            "Stop the run",
        ),
        Request::JobRemove(_) => {
            (format!("Remove the job {name} from {proxy}?"), "Its schedule ends. Its restore points stay.", "Remove")
        }
        Request::RemoteRemove(_) => (format!("Forget the remote {name} on {proxy}?"), "Its files stay where they are.", "Forget"),
        Request::RestorePointRemove(params) => (
            format!("Remove the restore point {} of {name} from {proxy}?", stem(&params.id)),
            "It is gone for good. Other restore points of its chain stay restorable.",
            "Remove",
        ),
        Request::Redeploy(_) => (
            format!("Redeploy {name}?"),
            "Its running transfers end first. A new VM takes the place of the present one; jobs, remotes and identity stay, the \
             history of its runs does not.",
            "Redeploy",
        ),
        Request::Reconfigure(_) => (
            format!("Change {name}?"),
            "Its running transfers end first, then its VM is restarted. If it does not answer, it gets back what it had.",
            "Change",
        ),
        Request::Destroy(_) => (
            format!("Destroy the proxy {name}, deployed by {proxy}?"),
            "Its VM and disk go, with its jobs and their snapshots, remotes and history. Backups that lie elsewhere stay. Its \
             licence is free again.",
            "Destroy",
        ),
        Request::Forget(_) => (
            format!("Forget the proxy {name}?"),
            "Its VM stays and runs on; nothing here knows of it any more. Its licence, if it has one, is free again, and without \
             one its jobs do not run.",
            "Forget",
        ),
        Request::Drain(_) => (
            format!("Hold new runs of {name} back?"),
            "Nothing is backed up by it, on schedule or by hand, until o lets runs start again. What runs goes on.",
            "Hold back",
        ),
        Request::LicenseRemove(_) => {
            (format!("Remove licence {name} from {proxy}?"), "Whoever has its signed text can import it again.", "Remove")
        }
        other => (format!("{} on {proxy}?", other.method()), "", "Do it"),
    }
}

fn about_errand(proxy: &str, errand: &Errand, name: &str) -> (String, &'static str, &'static str) {
    match errand {
        Errand::RotateToken => (
            format!("Make a new token for {proxy}?"),
            "This console keeps the new one at once. Others can use the former one for a day, then they need the new one.",
            "Make it",
        ),
        Errand::RenewCertificate => (
            format!("Make a new certificate for {proxy}?"),
            "This console expects the new one at once. Other consoles refuse the proxy until they are told its fingerprint.",
            "Make it",
        ),
        Errand::Upgrade { .. } => (
            format!("Upgrade {proxy}?"),
            "Its running transfers end first, nothing new starts meanwhile. Then its daemon restarts, with the version before if the \
             new one does not work.",
            "Upgrade",
        ),
        Errand::UnbindLicense { of, .. } => (
            format!("Free licence {name} of {}?", of.name),
            "Its jobs do not run until it has another one. It still lists, restores, cancels and upgrades.",
            "Free it",
        ),
        other => (format!("On {proxy}: {}?", other.name()), "", "Do it"),
    }
}

/// Does what was asked about. The connection may have gone in the meantime, so that is judged again.
pub fn confirmed(state: &mut State, then: Then) {
    match then {
        Then::Quit => state.outbox.push(Effect::Quit),
        Then::StartOver => super::act::reset_form(state),
        Then::Send(proxy, ask, purpose) => {
            if let Some(reason) = refused(state, &proxy, &ask) {
                state.tell(LogLevel::Warning, reason);
                return;
            }
            let saves = matches!(purpose, Purpose::Save { .. });
            let id = state.post(&proxy, ask, purpose);
            // What was asked about is what the open form makes.
            if let Some(form) = state.form.as_mut().filter(|_| saves) {
                form.submitting = Some(id);
            }
        }
    }
}
