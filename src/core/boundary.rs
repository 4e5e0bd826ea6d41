//! The one place where requests leave. Read-only mode, the state of the connection and the danger of the request are
//! judged here and nowhere else, so that no screen can forget it.

use api::LogLevel;

use super::effect::{Danger, Effect, Request, RequestId};
use super::input::Field;
use super::message::Connection;
use super::state::{Confirm, Purpose, State, Then};

/// Why a request cannot leave now.
pub fn refusal(state: &State, proxy: &str, writes: bool) -> Option<String> {
    if writes && state.settings.read_only {
        return Some("this console is read-only (--read-only)".into());
    }
    match state.proxy(proxy).map(|proxy| &proxy.connection) {
        Some(Connection::Live) => None,
        Some(Connection::Connecting) => Some(format!("{proxy} is not connected yet")),
        Some(Connection::Retrying { .. }) => Some(format!("{proxy} does not answer; nothing was sent")),
        Some(Connection::Refused { .. }) => Some(format!("{proxy} refuses this console; nothing was sent")),
        None => Some(format!("there is no proxy \"{proxy}\"")),
    }
}

/// Sends a request, asks first, or says why not. `name` is the object as the person knows it.
pub fn send(state: &mut State, proxy: &str, request: Request, purpose: Purpose, name: &str) -> Option<RequestId> {
    if let Some(reason) = refusal(state, proxy, request.writes()) {
        state.tell(LogLevel::Warning, reason);
        return None;
    }
    if request.danger() == Danger::None {
        return Some(state.post(proxy, request, purpose));
    }
    state.confirm = Some(question(proxy, request, purpose, name));
    state.touch();
    None
}

/// The time in the id of a restore point.
fn stem(id: &str) -> &str {
    let file = id.rsplit('/').next().unwrap_or(id);
    file.strip_suffix(".json").unwrap_or(file)
}

fn question(proxy: &str, request: Request, purpose: Purpose, name: &str) -> Confirm {
    let (question, detail, verb) = match &request {
        Request::RunCancel(_) => (
            format!("Cancel the run of {name} on {proxy}?"),
            "Data stops within seconds; temporary snapshots and files are removed. Older restore points stay.",
            "Cancel the run",
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
        other => (format!("{} on {proxy}?", other.method()), "", "Do it"),
    };
    // A name that no keyboard types would lock the person out.
    let typeable = !name.is_empty() && name.chars().all(|c| c.is_ascii_graphic() || c == ' ');
    let expected = (request.danger() == Danger::TypeName).then(|| if typeable { name.to_owned() } else { "remove".to_owned() });
    Confirm {
        question,
        detail: if detail.is_empty() { Vec::new() } else { vec![detail.to_owned()] },
        verb: verb.to_owned(),
        expected,
        typed: Field::default(),
        yes: false,
        then: Then::Send(proxy.to_owned(), request, purpose),
    }
}

/// Does what was asked about. The connection may have gone in the meantime, so that is judged again.
pub fn confirmed(state: &mut State, then: Then) {
    match then {
        Then::Quit => state.outbox.push(Effect::Quit),
        Then::Send(proxy, request, purpose) => {
            if let Some(reason) = refusal(state, &proxy, request.writes()) {
                state.tell(LogLevel::Warning, reason);
            } else {
                state.post(&proxy, request, purpose);
            }
        }
    }
}
