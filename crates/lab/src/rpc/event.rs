//! `event.from` and its kin: what changed since a token (xapi-streams.md §1.3).

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::Args;
use crate::failure::{Answer, Failure};
use crate::fault::Fault;
use crate::pool::Pool;
use crate::record::CLASSES;
use crate::store::Store;

/// Longest a client may wait, seconds: what a timeout beyond reason is cut to.
const LONGEST: f64 = 3600.0;

/// What a subscriber wants to hear of.
#[derive(Debug, PartialEq, Eq)]
enum Interest {
    All,
    Class(String),
    Object(String, String),
}

impl Interest {
    /// `*`, `vm`, or `vm/OpaqueRef:…`; classes in any case.
    fn parse(text: &str) -> Self {
        match text.split_once('/') {
            _ if text == "*" => Self::All,
            Some((class, reference)) => Self::Object(class.to_lowercase(), reference.to_owned()),
            None => Self::Class(text.to_lowercase()),
        }
    }

    fn covers(&self, class: &str, reference: &str) -> bool {
        match self {
            Self::All => true,
            Self::Class(wanted) => class.eq_ignore_ascii_case(wanted),
            Self::Object(wanted, object) => class.eq_ignore_ascii_case(wanted) && reference == object,
        }
    }

    fn concerns(&self, class: &str) -> bool {
        match self {
            Self::All => true,
            Self::Class(wanted) | Self::Object(wanted, _) => class.eq_ignore_ascii_case(wanted),
        }
    }
}

/// Methods of `event`.
pub(super) async fn call(pool: &Arc<Pool>, method: &str, full: &str, params: Vec<Value>) -> Answer {
    let args = Args::new(full, params);
    match method {
        "from" => {
            args.exactly(3)?;
            let interests: Vec<_> = args.texts(0)?.iter().map(|text| Interest::parse(text)).collect();
            let since = parse_token(args.text(1)?)?;
            let timeout = Duration::from_secs_f64(args.float(2)?.clamp(0.0, LONGEST));
            from(pool, &interests, since, timeout).await
        }
        "inject" => {
            args.exactly(2)?;
            let class = args.text(0)?;
            let class = CLASSES
                .iter()
                .find(|known| known.eq_ignore_ascii_case(class))
                .ok_or_else(|| Failure::handle_invalid(class, args.text(1).unwrap_or_default()))?;
            let generation = pool.db.with(|store| store.touch(class, args.text(1)?).map(|()| store.generation()))?;
            // A client starts from this token: it must not hear of its own injection first.
            Ok(token(generation).into())
        }
        "get_current_id" => Ok(pool.db.with(|store| store.generation()).into()),
        // `register`, `next` and `unregister` are of another age; a client is told so and uses `from`.
        _ => Err(Failure::unknown_method(full)),
    }
}

async fn from(pool: &Arc<Pool>, interests: &[Interest], since: u64, timeout: Duration) -> Answer {
    let deadline = tokio::time::Instant::now() + timeout;
    let mut changes = pool.db.watch();
    loop {
        changes.borrow_and_update();
        if pool.faults.hits(&Fault::EventsLost) {
            return Err(Failure::new("EVENTS_LOST", [""; 0]));
        }
        let (events, batch) = pool.db.with(|store| collect(store, interests, since))?;
        if events > 0 {
            return Ok(batch);
        }
        tokio::select! {
            _ = changes.changed() => {}
            () = tokio::time::sleep_until(deadline) => return Ok(batch),
            () = pool.stop.cancelled() => return Err(Failure::internal("the pool is shutting down")),
        }
    }
}

/// All that happened since, as one batch: creations, then modifications, then deletions, one event an object.
fn collect(store: &mut Store, interests: &[Interest], since: u64) -> Result<(usize, Value), Failure> {
    let wanted = |class: &str, reference: &str| interests.iter().any(|interest| interest.covers(class, reference));
    let (mut created, mut modified) = (Vec::new(), Vec::new());
    for object in store.touched_since(since).filter(|object| wanted(object.class, object.reference)) {
        let is_new = object.created > since;
        let event = json!({
            "id": object.modified, "timestamp": "0.0", "class": object.class.to_lowercase(),
            "operation": if is_new { "add" } else { "mod" }, "ref": object.reference, "snapshot": object.record
        });
        if is_new { created.push((object.modified, event)) } else { modified.push((object.modified, event)) }
    }
    let gone = store.deleted_since(since).ok_or_else(|| Failure::new("EVENTS_LOST", [""; 0]))?;
    let deleted = gone.filter(|gone| wanted(gone.class, &gone.reference)).map(|gone| {
        json!({ "id": gone.deleted, "timestamp": "0.0", "class": gone.class.to_lowercase(), "operation": "del", "ref": gone.reference })
    });
    created.sort_by_key(|(generation, _)| *generation);
    modified.sort_by_key(|(generation, _)| *generation);
    let events: Vec<Value> = created.into_iter().chain(modified).map(|(_, event)| event).chain(deleted).collect();
    let counts: Map<_, _> = store
        .classes()
        .filter(|class| interests.iter().any(|interest| interest.concerns(class)))
        .map(|class| (class.to_lowercase(), store.count(class).into()))
        .collect();
    let count = events.len();
    Ok((count, json!({ "events": events, "valid_ref_counts": counts, "token": token(store.generation()) })))
}

/// Two numbers, as XAPI writes them; only the second means something here.
fn token(generation: u64) -> String {
    format!("{:020},{generation:020}", 0)
}

fn parse_token(text: &str) -> Result<u64, Failure> {
    if text.is_empty() {
        return Ok(0);
    }
    text.split_once(',')
        .and_then(|(messages, generation)| messages.parse::<u64>().ok().and(generation.parse().ok()))
        .ok_or_else(|| Failure::new("EVENT_FROM_TOKEN_PARSE_FAILURE", [text]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interests_are_read_in_any_case() {
        assert!(Interest::parse("vm").covers("VM", "x") && Interest::parse("VM/x").covers("VM", "x"));
        assert!(!Interest::parse("vm/x").covers("VM", "y") && Interest::parse("*").covers("PIF", "y"));
        assert!(!Interest::parse("vm").covers("VM_metrics", "x"));
    }

    #[test]
    fn tokens_read_back() {
        assert_eq!((parse_token(&token(77)).unwrap(), parse_token("").unwrap()), (77, 0));
        for bad in ["x", "1", "1,x", ","] {
            assert_eq!(parse_token(bad).unwrap_err().code, "EVENT_FROM_TOKEN_PARSE_FAILURE");
        }
    }

    #[test]
    fn a_batch_has_additions_before_changes_before_deletions() {
        let mut store = Store::new();
        let (old, dying) = (store.create("VM", json!({})), store.create("VM", json!({})));
        let since = store.generation();
        store.remove("VM", &dying);
        store.set("VM", &old, "name_label", "n").unwrap();
        store.create("VM", json!({}));
        let (count, batch) = collect(&mut store, &[Interest::parse("VM")], since).unwrap();
        let operations: Vec<_> = batch["events"].as_array().unwrap().iter().map(|event| event["operation"].clone()).collect();
        assert_eq!((count, operations), (3, vec![json!("add"), json!("mod"), json!("del")]));
        assert_eq!(batch["valid_ref_counts"], json!({ "vm": 2 }));
        assert!(batch["events"][2].get("snapshot").is_none());
        let (none, _) = collect(&mut store, &[Interest::parse("task")], since).unwrap();
        assert_eq!(none, 0);
    }
}
