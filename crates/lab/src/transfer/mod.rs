//! The data handlers: whole machines and raw disks, out and in (xapi-streams.md §2).
//!
//! What all of them share: who may, under which task, which faults strike, and that the task alone tells how it ended.

mod export;
mod import;
mod outlet;
mod ova;

use std::sync::Arc;

use crate::failure::Failure;
use crate::fault::Fault;
use crate::http::{Connection, HttpError, Request};
use crate::pool::Pool;
use crate::rpc::{Task, finish_task};
use crate::session_access;

use outlet::{Outlet, Stop};

/// A request to a data handler that may go ahead.
pub(crate) struct Transfer<'a> {
    pub pool: &'a Arc<Pool>,
    /// Position of the host that was asked.
    pub host: usize,
    pub request: &'a Request,
}

/// Answers a request to a data handler. Gives the connection back where it can bear another request.
pub(crate) async fn serve(
    pool: &Arc<Pool>,
    host: usize,
    request: &Request,
    mut connection: Connection,
) -> Result<Option<Connection>, HttpError> {
    let transfer = Transfer { pool, host, request };
    let handler = match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/export" | "/export_raw_vdi" | "/pool/xmldbdump") | ("PUT", "/import" | "/import_raw_vdi") => {
            request.path.as_str()
        }
        (_, "/export" | "/export_raw_vdi" | "/pool/xmldbdump" | "/import" | "/import_raw_vdi") => {
            return refuse(&transfer, connection, 405, "this method is not for this path").await;
        }
        _ => return refuse(&transfer, connection, 404, "no such page").await,
    };
    if !session_access::is_allowed(pool, request) {
        transfer.fail_named_task(Failure::new("SESSION_AUTHENTICATION_FAILED", [""; 0]));
        return refuse(&transfer, connection, 401, "a valid session_id is needed").await;
    }
    let name = format!("{} {handler}", request.method);
    if let Some(fault) = pool.note_call(&name) {
        let failure = fault.failure(&name);
        let reason = failure.to_string();
        transfer.fail_named_task(failure);
        return refuse(&transfer, connection, 500, &reason).await;
    }
    if pool.faults.hits(&Fault::Unavailable) {
        return refuse(&transfer, connection, 503, "the host is busy").await;
    }
    if pool.faults.hits(&Fault::Redirect) {
        return redirect(&transfer, connection).await;
    }
    if request.method == "PUT" {
        if request.is_chunked() {
            transfer.fail_named_task(Failure::new("IMPORT_ERROR_CANNOT_HANDLE_CHUNKED", [""; 0]));
            return refuse(&transfer, connection, 403, "chunked uploads are not supported").await;
        }
        let Some(length) = request.length() else {
            return refuse(&transfer, connection, 411, "a Content-Length is needed").await;
        };
        if length == 0 {
            // A client that asks whether it would be redirected (xapi-streams.md §2.2): nothing is meant.
            let keep = connection.answer(request, 200, &[], b"").await?;
            return Ok(if keep { Some(connection) } else { None });
        }
        match handler {
            "/import" => import::machine(&transfer, connection, length).await,
            _ => import::disk(&transfer, connection, length).await,
        }
    } else {
        match handler {
            "/export" => export::machine(&transfer, connection).await,
            "/export_raw_vdi" => export::disk(&transfer, connection).await,
            _ => export::database(&transfer, connection).await,
        }
    }
}

async fn refuse(
    transfer: &Transfer<'_>,
    mut connection: Connection,
    status: u16,
    reason: &str,
) -> Result<Option<Connection>, HttpError> {
    let unread = transfer.request.length().unwrap_or(0) > 0 || transfer.request.is_chunked();
    let keep = connection.answer(transfer.request, status, &[("content-type", "text/plain")], reason.as_bytes()).await?;
    if keep && !unread {
        return Ok(Some(connection));
    }
    connection.close().await;
    Ok(None)
}

async fn redirect(transfer: &Transfer<'_>, mut connection: Connection) -> Result<Option<Connection>, HttpError> {
    let hosts = transfer.pool.identity.hosts.len();
    let address = Pool::host_address((transfer.host + 1) % hosts);
    let port = transfer.pool.listening.get().map_or(443, |(https, _)| https.port());
    let location = format!("https://{address}:{port}{}/?{}", transfer.request.path, transfer.request.query);
    connection.answer(transfer.request, 302, &[("location", &location)], b"").await?;
    connection.close().await;
    Ok(None)
}

impl Transfer<'_> {
    /// The task under which this runs: the one the client named, or one of its own.
    fn task(&self, label: &str) -> Result<Task, Failure> {
        match self.request.parameter("task_id") {
            Some(task) => {
                self.pool.db.with(|store| store.get("task", &task).map(drop))?;
                Ok(Task::adopt(self.pool, &task))
            }
            None => Ok(Task::create(self.pool, label, "")),
        }
    }

    /// Ends the client's task where none was taken over yet.
    fn fail_named_task(&self, failure: Failure) {
        if let Some(task) = self.request.parameter("task_id") {
            finish_task(self.pool, &task, Err(failure));
        }
    }

    /// The object that a parameter names by reference or UUID.
    fn object(&self, class: &str, parameter: &str) -> Result<Option<String>, Failure> {
        let Some(name) = self.request.parameter(parameter) else { return Ok(None) };
        self.pool.db.with(|store| if store.has(class, &name) { Ok(Some(name)) } else { store.by_uuid(class, &name).map(Some) })
    }

    /// Refuses with 500 and ends the task.
    async fn fail(&self, connection: Connection, task: Task, failure: Failure) -> Result<Option<Connection>, HttpError> {
        let reason = failure.to_string();
        task.settle(Err(failure));
        refuse(self, connection, 500, &reason).await
    }
}
