//! The restore form: where to, under which name.

use api::{RestoreParams, RestorePoint};

use super::{Choice, Form, FormField, FormKind, wanted};
use crate::core::effect::Request;
use crate::core::format::date_time;
use crate::core::state::State;
use crate::core::store::ListState;
use crate::core::text::shell;

/// A form that restores a restore point of a proxy.
pub fn open(state: &State, proxy: &str, point: &RestorePoint) -> Form {
    let when = date_time(point.timestamp, &state.settings.zone);
    let fields = vec![
        FormField::choice("sr", "To SR", "Storage repository for the disks; left and right to choose", Vec::new(), None),
        FormField::text("name", "Name", "Of the new VM; empty: the old name with the time of the backup", ""),
        FormField::choice(
            "proxy",
            "Proxy",
            "The daemon that holds the restore point",
            vec![Choice::new(proxy, proxy, "")],
            Some(proxy),
        ),
    ];
    Form::new(FormKind::Restore(Box::new(point.clone())), format!("Restore {} of {when}", point.vm_name), fields)
}

pub(super) fn sync(form: &mut Form, state: &State) {
    let Some(proxy) = state.proxy(form.proxy()) else { return };
    let known = matches!(proxy.srs.state, ListState::Fresh(_));
    let several = proxy.pools.items.len() > 1;
    let options: Vec<Choice> = proxy
        .srs
        .items
        .iter()
        .map(|sr| {
            let mut note = format!("{} free of {}", api::format_bytes(sr.free), api::format_bytes(sr.bytes));
            if several {
                note.push_str(&format!(", {}", proxy.pool_name(&sr.pool)));
            }
            Choice::new(&sr.uuid, &sr.name, note)
        })
        .collect();
    let best = proxy.srs.items.iter().find(|sr| sr.default).or(proxy.srs.items.first()).map(|sr| sr.uuid.clone());
    form.set_options("sr", options, known);
    if best.is_some() {
        form.suggest("sr", best);
    }
}

pub(super) fn fault(form: &Form, id: &str) -> Option<String> {
    match id {
        "sr" => wanted(form, id, "A storage repository"),
        _ => None,
    }
}

pub(super) fn request(form: &Form, point: &RestorePoint) -> Request {
    Request::Restore(RestoreParams { id: point.id.clone(), sr: form.value("sr").to_owned(), name: form.typed("name") })
}

pub(super) fn command(form: &Form, point: &RestorePoint) -> String {
    let sr = form.chosen_labels("sr").pop().unwrap_or_default();
    let mut line = format!("backhaul backup restore {} --proxy {} --sr {}", shell(&point.id), shell(form.proxy()), shell(&sr));
    if let Some(name) = form.typed("name") {
        line.push_str(&format!(" --name {}", shell(&name)));
    }
    line
}
