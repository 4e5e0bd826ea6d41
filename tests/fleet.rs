//! The console's side of a connection: its states, its replies, and runs followed across cuts.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backhaul::config::Config;
use backhaul::core::{Answer, Connection, FleetCommand, FleetEventKind, Refusal, Request, RequestId};
use backhaul::fleet::Fleet;
use serde_json::json;
use support::{FakeProxy, Reply};
use tokio::sync::mpsc::UnboundedReceiver;

type Events = UnboundedReceiver<backhaul::core::FleetEvent>;

async fn next(events: &mut Events) -> FleetEventKind {
    tokio::time::timeout(Duration::from_secs(60), events.recv()).await.expect("an event").expect("a fleet").kind
}

/// Waits for an event that `wanted` accepts; others are let pass.
async fn until<T>(events: &mut Events, wanted: impl Fn(FleetEventKind) -> Option<T>) -> T {
    loop {
        if let Some(found) = wanted(next(events).await) {
            return found;
        }
    }
}

fn news(changed: &[&str]) -> String {
    let status = json!({ "name": "a", "version": "1", "startedAt": 0, "running": [], "bytesPerSecond": 7 });
    json!({ "status": status, "changed": changed }).to_string()
}

fn log(cursor: u64) -> String {
    json!({ "cursor": cursor, "at": 0, "event": "log", "level": "info", "message": "x" }).to_string()
}

fn start(dir: &Path) -> (Fleet, Events) {
    Fleet::start(&Config::load(dir).proxies.unwrap())
}

#[tokio::test]
async fn a_connection_tells_every_state_it_passes() {
    let dir = tempfile::tempdir().unwrap();
    let away = Arc::new(AtomicBool::new(false));
    let state = Arc::clone(&away);
    let proxy = FakeProxy::start(move |method, _| match method {
        "proxy.watch" if state.load(Ordering::Relaxed) => Some(Reply::Error(-32000, "starting", json!(null))),
        "proxy.watch" => Some(Reply::Lines(vec![news(&[]), news(&["jobs"])])),
        "proxy.status" => Some(Reply::Result(serde_json::from_str::<serde_json::Value>(&news(&[])).unwrap()["status"].clone())),
        "job.list" => Some(Reply::Result(json!([]))),
        _ => None,
    })
    .await;
    proxy.add_to(dir.path(), "a").await;
    let (fleet, mut events) = start(dir.path());
    assert_eq!(next(&mut events).await, FleetEventKind::Connection(Connection::Connecting));
    assert_eq!(next(&mut events).await, FleetEventKind::Connection(Connection::Live));
    let FleetEventKind::News(first) = next(&mut events).await else { panic!("news first") };
    assert_eq!((first.status.bytes_per_second, first.changed.len()), (7, 0));
    let FleetEventKind::News(second) = next(&mut events).await else { panic!("news again") };
    assert_eq!(second.changed, [api::Topic::Jobs]);
    // The fake closes the stream after two lines.
    away.store(true, Ordering::Relaxed);
    let error = until(&mut events, |kind| match kind {
        FleetEventKind::Connection(Connection::Retrying { error, .. }) => Some(error),
        _ => None,
    })
    .await;
    assert_eq!(error.code, "CONNECTION_CUT");
    // Calls are answered meanwhile, one reply each.
    fleet.send(FleetCommand::Call { proxy: "a".into(), id: RequestId(3), request: Request::Jobs(api::NoParams {}) });
    fleet.send(FleetCommand::Call { proxy: "nobody".into(), id: RequestId(4), request: Request::Jobs(api::NoParams {}) });
    let (mut good, mut bad) = (0, 0);
    while good + bad < 2 {
        match next(&mut events).await {
            FleetEventKind::Reply { id: RequestId(3), result } => {
                assert_eq!(result, Ok(Answer::Jobs(Vec::new())));
                good += 1;
            }
            FleetEventKind::Reply { id: RequestId(4), result } => {
                assert_eq!(result.unwrap_err().code, "NO_SUCH_PROXY");
                bad += 1;
            }
            _ => {}
        }
    }
    away.store(false, Ordering::Relaxed);
    fleet.send(FleetCommand::Reconnect { proxy: "a".into() });
    until(&mut events, |kind| (kind == FleetEventKind::Connection(Connection::Live)).then_some(())).await;
}

#[tokio::test]
async fn a_refusal_waits_for_a_person() {
    let dir = tempfile::tempdir().unwrap();
    let proxy = FakeProxy::with(vec![(
        "proxy.status",
        Reply::Result(json!({ "name": "a", "version": "1", "startedAt": 0, "running": [], "bytesPerSecond": 0 })),
    )])
    .await;
    proxy.add_to(dir.path(), "a").await;
    let path = dir.path().join("proxies.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    for (broken, expected) in [
        (text.replace(support::TOKEN, "another-token"), Refusal::Authentication),
        (text.replace(&proxy.fingerprint, &"AB".repeat(32)), Refusal::Certificate),
    ] {
        std::fs::write(&path, broken).unwrap();
        let (_fleet, mut events) = start(dir.path());
        let reason = until(&mut events, |kind| match kind {
            FleetEventKind::Connection(Connection::Refused { reason, error }) => {
                assert!(reason != Refusal::Certificate || error.next.unwrap().contains(&proxy.fingerprint));
                Some(reason)
            }
            _ => None,
        })
        .await;
        assert_eq!(reason, expected);
    }
}

#[tokio::test]
async fn a_run_is_followed_across_cuts_and_ends_once() {
    let dir = tempfile::tempdir().unwrap();
    let proxy = FakeProxy::start(|method, params| match method {
        "proxy.status" | "proxy.watch" => {
            let status = serde_json::from_str::<serde_json::Value>(&news(&[])).unwrap()["status"].clone();
            Some(if method == "proxy.status" { Reply::Result(status) } else { Reply::Lines(vec![news(&[])]) })
        }
        "run.watch" if params["run"] == "gone" => Some(Reply::Error(1, "no such run", json!({ "id": "gone", "type": "run" }))),
        "run.watch" => {
            let after = params["cursor"].as_u64().unwrap();
            let end = json!({ "cursor": 50, "at": 0, "event": "runEnded", "outcome": "success" }).to_string();
            Some(Reply::Lines(if after == 49 { vec![end] } else { vec![log(after), log(after + 1)] }))
        }
        _ => None,
    })
    .await;
    proxy.add_to(dir.path(), "a").await;
    let (fleet, mut events) = start(dir.path());
    let watch = |run: &str, cursor| FleetCommand::WatchRun { proxy: "a".into(), run: run.into(), cursor };
    fleet.send(watch("r", 44));
    let mut cursors = Vec::new();
    loop {
        match next(&mut events).await {
            FleetEventKind::Run { event, .. } => cursors.push(event.cursor),
            FleetEventKind::RunWatchEnded { error, .. } => break assert_eq!(error, None),
            _ => {}
        }
    }
    assert_eq!(cursors, (45..=50).collect::<Vec<_>>());
    fleet.send(watch("gone", 0));
    let error = until(&mut events, |kind| match kind {
        FleetEventKind::RunWatchEnded { error, .. } => error,
        _ => None,
    })
    .await;
    assert_eq!(error.message, "no such run");
}
