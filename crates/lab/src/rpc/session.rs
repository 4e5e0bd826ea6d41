//! Logging in and out, and what a client asks before it has a session.

use std::sync::Arc;

use serde_json::Value;
use subtle::ConstantTimeEq as _;

use super::{Args, BARE, Context, Name};
use crate::failure::{Answer, Failure};
use crate::fault::Fault;
use crate::pool::Pool;
use crate::record::{self, CLASSES, NULL};

/// Methods listed by `system.listMethods` beside the generic ones.
const METHODS: &[&str] = &[
    "session.login_with_password",
    "session.logout",
    "system.listMethods",
    "event.from",
    "event.inject",
    "task.create",
    "task.destroy",
    "task.cancel",
    "VM.create",
    "VM.destroy",
    "VM.snapshot",
    "VM.checkpoint",
    "VM.clone",
    "VM.copy",
    "VM.start",
    "VM.clean_shutdown",
    "VM.hard_shutdown",
    "VM.suspend",
    "VM.resume",
    "VDI.create",
    "VDI.destroy",
    "VDI.snapshot",
    "VDI.clone",
    "VDI.copy",
    "VDI.resize",
    "VDI.enable_cbt",
    "VDI.disable_cbt",
    "VDI.data_destroy",
    "VDI.list_changed_blocks",
    "VDI.get_nbd_info",
    "VBD.create",
    "VBD.destroy",
    "VBD.plug",
    "VBD.unplug",
    "VBD.unplug_force",
    "VIF.create",
    "VIF.destroy",
    "VIF.plug",
    "VIF.unplug",
    "VTPM.create",
    "VTPM.destroy",
    "VTPM.get_contents",
    "VTPM.set_contents",
    "SR.scan",
    "VM.update_allowed_operations",
    "VM.set_memory_limits",
    "VM.get_allowed_VBD_devices",
    "VM.get_allowed_VIF_devices",
    "host.get_servertime",
];

/// Answers what needs no session; `None` when the method needs one.
pub(super) fn without_session(pool: &Arc<Pool>, host: usize, name: &Name<'_>, params: &[Value]) -> Option<Answer> {
    match (name.class, name.method) {
        ("session", "login_with_password") => Some(login(pool, host, params)),
        // Clients differ in whether they send a session here; XAPI takes both.
        ("system", "listMethods") => Some(Ok(list_methods())),
        _ => None,
    }
}

fn login(pool: &Arc<Pool>, host: usize, params: &[Value]) -> Answer {
    let text = |index: usize| params.get(index).and_then(Value::as_str);
    let (Some(user), Some(password), true) = (text(0), text(1), params.len() <= 4) else {
        return Err(Failure::new(
            "MESSAGE_PARAMETER_COUNT_MISMATCH",
            ["session.login_with_password".to_owned(), "4".to_owned(), params.len().to_string()],
        ));
    };
    let alleged = pool.faults.strike(|fault| match fault {
        Fault::HostIsSlave { master } => Some(master.clone()),
        _ => None,
    });
    if let Some(master) = alleged {
        return Err(Failure::new("HOST_IS_SLAVE", [master]));
    }
    if host != 0 {
        return Err(Failure::new("HOST_IS_SLAVE", [Pool::host_address(0)]));
    }
    if !password_is_right(pool, user, password) {
        return Err(Failure::new("SESSION_AUTHENTICATION_FAILED", [user, "Authentication failure"]));
    }
    Ok(pool.sessions.open(pool.master(), text(3).unwrap_or_default()).into())
}

/// Whether somebody may log in.
pub(crate) fn password_is_right(pool: &Pool, user: &str, password: &str) -> bool {
    user == pool.identity.username && bool::from(password.as_bytes().ct_eq(pool.identity.password.as_bytes()))
}

fn list_methods() -> Value {
    let mut methods: Vec<String> = METHODS.iter().map(|method| (*method).to_owned()).collect();
    for class in CLASSES {
        methods.extend(["get_all", "get_all_records", "get_record", "get_by_uuid"].map(|method| format!("{class}.{method}")));
        let template = record::template(class);
        if template.contains_key("name_label") {
            methods.push(format!("{class}.get_by_name_label"));
        }
        methods.extend(template.keys().map(|field| format!("{class}.get_{field}")));
    }
    debug_assert!(BARE.iter().all(|class| !CLASSES.contains(class)));
    methods.into()
}

/// Methods of a session that exists.
pub(super) fn call(context: &Context<'_>, method: &str, args: &Args<'_>) -> Option<Answer> {
    // A session is asked about itself with its own reference as the second parameter.
    let about = |args: &Args<'_>| args.text(0).map(str::to_owned).unwrap_or_else(|_| context.session.to_owned());
    Some(match method {
        "get_record" => context.pool.sessions.record(&about(args)),
        "get_all" => Ok(Value::Array(Vec::new())),
        "get_this_user" => Ok(NULL.into()),
        "get_uuid"
        | "get_this_host"
        | "get_is_local_superuser"
        | "get_pool"
        | "get_originator"
        | "get_last_active"
        | "get_auth_user_name"
        | "get_subject" => {
            let field = method.strip_prefix("get_").unwrap_or_default();
            context.pool.sessions.record(&about(args)).map(|record| record[field].clone())
        }
        _ => return None,
    })
}
