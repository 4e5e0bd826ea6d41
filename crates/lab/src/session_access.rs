//! Who may use a data handler: a session in the query or a cookie, or a user with a password (xapi-streams.md §2.1).

use crate::http::Request;
use crate::pool::Pool;
use crate::rpc::password_is_right;

/// Whether the request may go ahead.
pub(crate) fn is_allowed(pool: &Pool, request: &Request) -> bool {
    let session = request.parameter("session_id").or_else(|| request.cookie("session_id").map(str::to_owned));
    match session {
        Some(session) => {
            if pool.faults.session_is_lost() {
                pool.sessions.close(&session);
            }
            pool.sessions.is_open(&session)
        }
        None => request.basic().is_some_and(|(user, password)| password_is_right(pool, &user, &password)),
    }
}
