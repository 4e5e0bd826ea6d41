//! `event.from`: what changed since a token (xapi-streams.md §1.3).

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Client, Ref, Result};

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// It is new, or was there when the subscription began.
    Add,
    /// It changed.
    Mod,
    /// It is gone.
    Del,
}

/// A change of one object.
#[derive(Debug, Clone, Deserialize)]
pub struct Event {
    /// Class, in lower case: `vm`, `task`.
    pub class: String,
    /// What happened.
    pub operation: Operation,
    /// The object.
    #[serde(rename = "ref")]
    pub reference: Ref,
    /// Its whole record; absent when it is gone.
    #[serde(default)]
    pub snapshot: Option<Value>,
}

/// The changes of one call, and where to go on.
#[derive(Debug, Clone, Deserialize)]
pub struct EventBatch {
    /// Oldest first: creations, modifications, deletions; none when the time was over.
    #[serde(default)]
    pub events: Vec<Event>,
    /// To be given to the next call.
    pub token: String,
}

impl Client {
    /// Waits until one of `classes` changes (`vm`, `task/OpaqueRef:…`, `*`) or `wait` is over. The first `token` is
    /// the empty text: everything there is comes as [`Operation::Add`].
    ///
    /// # Errors
    /// `EVENTS_LOST` and `EVENT_FROM_TOKEN_PARSE_FAILURE` ask to begin again with the empty token.
    pub async fn event_from(&self, classes: &[&str], token: &str, wait: Duration) -> Result<EventBatch> {
        // A fraction, because hosts refuse a float that looks like an integer (xapi-streams.md §1.1).
        let seconds = wait.as_secs() as f64 + 0.1;
        self.call_within("event.from", json!([classes, token, seconds]), wait + Duration::from_secs(30)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_read_with_and_without_snapshots() {
        let batch: EventBatch = serde_json::from_value(json!({
            "events": [
                {"id": 1, "timestamp": "20260101T00:00:00Z", "class": "vm", "operation": "add", "ref": "OpaqueRef:1", "snapshot": {"uuid": "u"}},
                {"id": "2", "class": "task", "operation": "del", "ref": "OpaqueRef:2"},
            ],
            "valid_ref_counts": {"vm": 1},
            "token": "12,13",
        }))
        .unwrap();
        assert_eq!(batch.events[0].snapshot, Some(json!({"uuid": "u"})));
        assert_eq!((batch.events[1].operation, &batch.events[1].snapshot), (Operation::Del, &None));
        assert_eq!(batch.token, "12,13");
    }
}
