//! Who has logged in.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::failure::Failure;
use crate::record;

/// One login.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    uuid: Uuid,
    host: String,
    originator: String,
    since: String,
}

/// The sessions of a pool. They end with the process, as on a host whose toolstack restarts.
#[derive(Default)]
pub(crate) struct Sessions(Mutex<HashMap<String, Session>>);

impl Sessions {
    /// Opens one through a host and gives its reference, which is a credential.
    pub fn open(&self, host: &str, originator: &str) -> String {
        let reference = format!("OpaqueRef:{}", Uuid::new_v4());
        let session =
            Session { uuid: Uuid::new_v4(), host: host.to_owned(), originator: originator.to_owned(), since: record::now() };
        self.lock().insert(reference.clone(), session);
        reference
    }

    /// Whether it is open.
    pub fn check(&self, reference: &str) -> Result<(), Failure> {
        if self.is_open(reference) { Ok(()) } else { Err(Failure::session_invalid(reference)) }
    }

    /// Whether it is open.
    pub fn is_open(&self, reference: &str) -> bool {
        self.lock().contains_key(reference)
    }

    /// Ends one.
    pub fn close(&self, reference: &str) {
        self.lock().remove(reference);
    }

    /// Ends all, as a restart of the toolstack does.
    pub fn close_all(&self) {
        self.lock().clear();
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// The record that `session.get_record` gives.
    pub fn record(&self, reference: &str) -> Result<Value, Failure> {
        let sessions = self.lock();
        let session = sessions.get(reference).ok_or_else(|| Failure::handle_invalid("session", reference))?;
        Ok(json!({
            "uuid": session.uuid.to_string(), "this_host": session.host, "this_user": record::NULL, "last_active": session.since,
            "pool": true, "other_config": {}, "is_local_superuser": true, "subject": record::NULL, "validation_time": session.since,
            "auth_user_sid": "", "auth_user_name": "", "rbac_permissions": [], "tasks": [], "parent": record::NULL,
            "originator": session.originator, "client_certificate": false
        }))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
