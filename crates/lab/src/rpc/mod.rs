//! The API: from a method's name and its parameters to an answer.

mod admin;
mod args;
mod device;
mod event;
mod generic;
mod guest;
mod power;
mod session;
mod snapshot;
mod task;
mod vdi;
mod vm;

use std::sync::Arc;

use serde_json::Value;

pub(crate) use args::Args;
pub(crate) use device::{mac, new_mac};
pub(crate) use guest::{Booted, boot_all};
pub(crate) use power::{guest_reports, switch_on};
pub(crate) use session::password_is_right;
pub(crate) use task::{Task, finish as finish_task};
pub(crate) use vdi::{check_not_attached, create_disk, used_bytes};
pub(crate) use vm::{check_not_blocked, check_power, disks, generation_id, new_metrics, update_allowed_operations};

use crate::failure::{Answer, Failure};
use crate::fault::Fault;
use crate::pool::Pool;
use crate::record::CLASSES;
use crate::xmlrpc;

/// Classes that have methods but no records of their own in the store.
const BARE: &[&str] = &["session", "event", "system"];

/// A call on its way: what it may look at.
pub(crate) struct Context<'a> {
    /// The pool.
    pub pool: &'a Arc<Pool>,
    /// Reference of the session.
    pub session: &'a str,
    /// The method as it was called, for error messages.
    pub method: &'a str,
}

/// A method's name taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Name<'a> {
    asynchronous: bool,
    class: &'static str,
    method: &'a str,
}

impl<'a> Name<'a> {
    /// `VM.start`, `VM_start` and `Async.VM.start` are all right (xapi-streams.md §1.1).
    fn parse(full: &'a str) -> Option<Self> {
        let (asynchronous, name) = match full.strip_prefix("Async.").or_else(|| full.strip_prefix("Async_")) {
            Some(rest) => (true, rest),
            None => (false, full),
        };
        let known = || CLASSES.iter().chain(BARE).copied();
        let (class, method) = match name.split_once('.') {
            Some((class, method)) => (known().find(|known| *known == class)?, method),
            // `VM_guest_metrics_get_record` is of the longest class that fits.
            None => known()
                .filter_map(|class| Some((class, name.strip_prefix(class)?.strip_prefix('_')?)))
                .max_by_key(|(class, _)| class.len())?,
        };
        Some(Self { asynchronous, class, method })
    }
}

/// Answers one call to the host at position `host`.
pub(crate) async fn call(pool: &Arc<Pool>, host: usize, full: &str, params: Vec<Value>) -> Answer {
    if let Some(method) = full.strip_prefix("lab.") {
        return admin::call(pool, method, params).await;
    }
    unless_faulty(pool, full, answer(pool, host, full, params)).await
}

/// Makes a call, unless it is one that is to fail; its answer, unless that is to be lost.
async fn unless_faulty(pool: &Pool, name: &str, call: impl Future<Output = Answer>) -> Answer {
    let fault = pool.note_call(name);
    if let Some(fault) = fault.as_ref().filter(|fault| !fault.done) {
        return Err(fault.failure(name));
    }
    let answer = call.await?;
    fault.map_or(Ok(answer), |fault| Err(fault.failure(name)))
}

async fn answer(pool: &Arc<Pool>, host: usize, full: &str, mut params: Vec<Value>) -> Answer {
    let Some(name) = Name::parse(full) else { return Err(Failure::unknown_method(full)) };
    if let Some(answer) = session::without_session(pool, host, &name, &params) {
        return answer;
    }
    if params.is_empty() {
        return Err(Failure::new("MESSAGE_PARAMETER_COUNT_MISMATCH", [full, "1", "0"]));
    }
    let session = match params.remove(0) {
        Value::String(session) => session,
        _ => return Err(Failure::field_type("session_id")),
    };
    if (name.class, name.method) == ("session", "logout") {
        pool.sessions.check(&session)?;
        pool.sessions.close(&session);
        return Ok("".into());
    }
    if pool.faults.session_is_lost() {
        pool.sessions.close(&session);
    }
    pool.sessions.check(&session)?;
    if pool.faults.hits(&Fault::TooManyPendingTasks) {
        return Err(Failure::new("TOO_MANY_PENDING_TASKS", [""; 0]));
    }
    if name.class == "event" {
        return event::call(pool, name.method, full, params).await;
    }
    if name.asynchronous {
        return Ok(start(pool, session, full, params).into());
    }
    run(Arc::clone(pool), session, full.to_owned(), params).await
}

/// Runs a call on a thread of its own, for it may have to wait for disks.
async fn run(pool: Arc<Pool>, session: String, full: String, params: Vec<Value>) -> Answer {
    let work = move || {
        let name = Name::parse(&full).ok_or_else(|| Failure::unknown_method(&full))?;
        let context = Context { pool: &pool, session: &session, method: &full };
        dispatch(&context, name.class, name.method, params)
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(Failure::internal(error.to_string())))
}

/// Starts a call as a task of the pool, whose reference it gives at once.
fn start(pool: &Arc<Pool>, session: String, full: &str, params: Vec<Value>) -> String {
    let task = Task::create(pool, full, "");
    let reference = task.reference().to_owned();
    let (runner, full) = (Arc::clone(pool), full.to_owned());
    pool.tracker.spawn(async move {
        let work = run(Arc::clone(&runner), session, full.clone(), params);
        let name = full.strip_prefix("Async.").unwrap_or(&full);
        let answer = unless_faulty(&runner, name, work).await;
        task.settle(answer.map(|value| xmlrpc::fragment(&value)));
    });
    reference
}

/// Finds who answers: a method of its own first, the accessors of all classes otherwise.
fn dispatch(context: &Context<'_>, class: &'static str, method: &str, params: Vec<Value>) -> Answer {
    let args = Args::new(context.method, params);
    let special = match class {
        "session" => session::call(context, method, &args),
        "system" => None,
        "task" => task::call(context, method, &args),
        "VM" => vm::call(context, method, &args)
            .or_else(|| snapshot::call(context, method, &args))
            .or_else(|| power::call(context, method, &args)),
        "VDI" => vdi::call(context, method, &args),
        _ => device::call(context, class, method, &args),
    };
    special
        .or_else(|| generic::call(context, class, method, &args))
        .unwrap_or_else(|| Err(Failure::unknown_method(context.method)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_have_three_spellings() {
        let name = |asynchronous, class, method| Some(Name { asynchronous, class, method });
        assert_eq!(Name::parse("VM.snapshot"), name(false, "VM", "snapshot"));
        assert_eq!(Name::parse("Async.VM.snapshot"), name(true, "VM", "snapshot"));
        assert_eq!(Name::parse("task_set_status"), name(false, "task", "set_status"));
        assert_eq!(Name::parse("VM_guest_metrics_get_record"), name(false, "VM_guest_metrics", "get_record"));
        assert_eq!(Name::parse("vm.snapshot"), None);
        assert_eq!(Name::parse(""), None);
    }
}
