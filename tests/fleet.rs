//! The console's side of a connection: its states, its replies, and runs followed across cuts.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backhaul::config::Config;
use backhaul::core::{
    Answer, Connection, Done, Errand, FleetCommand, FleetEventKind, LicenseSource, Refusal, Request, RequestId,
};
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
    Fleet::start(&Config::load(dir).proxies.unwrap(), Some(dir))
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

/// A proxy that answers these methods, watched for ever.
async fn site(dir: &Path, name: &str, answers: Vec<(&'static str, Reply)>) -> FakeProxy {
    let status =
        json!({ "name": name, "id": format!("id-{name}"), "version": "1", "startedAt": 0, "running": [], "bytesPerSecond": 0 });
    let line = json!({ "status": status, "changed": [] }).to_string();
    let proxy = FakeProxy::start(move |method, _| match method {
        "proxy.watch" => Some(Reply::Open(vec![line.clone()])),
        "proxy.status" => Some(Reply::Result(status.clone())),
        _ => answers.iter().find(|(known, _)| *known == method).map(|(_, reply)| reply.clone()),
    })
    .await;
    proxy.add_to(dir, name).await;
    proxy
}

/// Has an errand done, and waits for what comes of it.
async fn done(fleet: &Fleet, events: &mut Events, proxy: &str, errand: Errand) -> Result<Done, api::ErrorReport> {
    fleet.send(FleetCommand::Errand { proxy: proxy.into(), id: RequestId(7), errand });
    until(events, |kind| match kind {
        FleetEventKind::Reply { id: RequestId(7), result } => Some(result.map(|answer| match answer {
            Answer::Errand(done) => done,
            other => panic!("{other:?}"),
        })),
        _ => None,
    })
    .await
}

fn entry(dir: &Path, name: &str) -> Option<backhaul::config::Proxy> {
    Config::load(dir).proxies.unwrap().into_iter().find(|proxy| proxy.name == name)
}

#[tokio::test]
async fn a_deployed_proxy_is_claimed_kept_and_connected_to_and_dropped_again() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let annecy = site(other.path(), "annecy", Vec::new()).await;
    let claim = json!({
        "id": "id-annecy", "name": "annecy", "url": annecy.url, "token": support::TOKEN, "fingerprint": annecy.fingerprint
    });
    let _lyon = site(dir.path(), "lyon", vec![("deploy.claim", Reply::Result(claim))]).await;
    let (fleet, mut events) = start(dir.path());
    let adopt = || Errand::Adopt { deployed: "id-annecy".into(), known: None };
    let found = done(&fleet, &mut events, "lyon", adopt()).await.unwrap();
    assert!(matches!(&found, Done::Adopted { entry, .. } if entry.name == "annecy" && entry.url == annecy.url), "{found:?}");
    let live = async {
        loop {
            let event = events.recv().await.unwrap();
            if event.proxy == "annecy" && event.kind == FleetEventKind::Connection(Connection::Live) {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), live).await.expect("it is connected to");
    assert_eq!(entry(dir.path(), "annecy").unwrap().fingerprint.to_string(), annecy.fingerprint);
    // Claimed again under the name a person gave it: by its certificate it is known.
    done(&fleet, &mut events, "lyon", adopt()).await.unwrap();
    assert_eq!(Config::load(dir.path()).proxies.unwrap().len(), 2);
    assert_eq!(done(&fleet, &mut events, "annecy", Errand::Drop).await, Ok(Done::Dropped));
    assert_eq!(entry(dir.path(), "annecy"), None);
}

#[tokio::test]
async fn another_proxy_of_the_name_is_not_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let claim = json!({
        "id": "x", "name": "lyon", "url": "https://127.0.0.1:1", "token": "another-token", "fingerprint": "AB".repeat(32)
    });
    let lyon = site(dir.path(), "lyon", vec![("deploy.claim", Reply::Result(claim))]).await;
    let (fleet, mut events) = start(dir.path());
    let error = done(&fleet, &mut events, "lyon", Errand::Adopt { deployed: "x".into(), known: None }).await.unwrap_err();
    assert_eq!(error.code, "NAME_TAKEN");
    assert!(!error.message.contains("another-token"));
    assert_eq!(entry(dir.path(), "lyon").unwrap().fingerprint.to_string(), lyon.fingerprint);
}

#[tokio::test]
async fn a_new_token_and_a_new_certificate_are_kept_and_used_at_once() {
    for (errand, expected) in [(Errand::RotateToken, Refusal::Authentication), (Errand::RenewCertificate, Refusal::Certificate)] {
        let dir = tempfile::tempdir().unwrap();
        let answers = vec![
            ("token.rotate", Reply::Result(json!({ "token": "the-next-token", "formerUntil": 5 }))),
            ("certificate.renew", Reply::Result(json!({ "fingerprint": "AB".repeat(32) }))),
        ];
        let _proxy = site(dir.path(), "lyon", answers).await;
        let (fleet, mut events) = start(dir.path());
        done(&fleet, &mut events, "lyon", errand).await.unwrap();
        let kept = entry(dir.path(), "lyon").unwrap();
        // The fake goes on with what it had: that it refuses shows that the new one is used.
        let reason = until(&mut events, |kind| match kind {
            FleetEventKind::Connection(Connection::Refused { reason, .. }) => Some(reason),
            _ => None,
        })
        .await;
        assert_eq!(reason, expected);
        match expected {
            Refusal::Authentication => assert_eq!(kept.token.secret(), "the-next-token"),
            Refusal::Certificate => assert_eq!(kept.fingerprint, "AB".repeat(32).parse().unwrap()),
        }
    }
}

#[tokio::test]
async fn the_doctor_is_heard_line_by_line_and_a_broken_examination_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let check =
        |object: &str| json!({ "check": "dns", "object": object, "verdict": "pass", "measured": "3 ms", "took": 3 }).to_string();
    let _lyon = site(dir.path(), "lyon", vec![("doctor.run", Reply::Lines(vec![check("a"), check("b")]))]).await;
    let _nice = site(dir.path(), "nice", Vec::new()).await;
    let (fleet, mut events) = start(dir.path());
    fleet.send(FleetCommand::Errand { proxy: "lyon".into(), id: RequestId(9), errand: Errand::Examine });
    let mut seen = Vec::new();
    loop {
        match next(&mut events).await {
            FleetEventKind::Check { id: RequestId(9), check } => seen.push(check.object),
            FleetEventKind::Reply { id: RequestId(9), result } => break assert_eq!(result, Ok(Answer::Errand(Done::Examined))),
            _ => {}
        }
    }
    assert_eq!(seen, ["a", "b"]);
    let error = done(&fleet, &mut events, "nice", Errand::Examine).await.unwrap_err();
    assert_eq!(error.code, "METHOD_NOT_FOUND");
}

#[tokio::test]
async fn a_licence_is_taken_to_the_proxy_that_shall_run_under_it_unless_it_serves_another() {
    let license = |bound: serde_json::Value| json!({ "id": "8a4f", "holder": "x", "proxies": 1, "notBefore": 0, "bound": bound });
    for taken in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let bound = if taken { json!([{ "proxy": "id-metz", "name": "metz" }]) } else { json!([]) };
        let answers = |listed: serde_json::Value| {
            vec![
                ("license.list", Reply::Result(listed)),
                ("license.get", Reply::Result(json!({ "license": license(json!([])), "text": "signed" }))),
                ("license.import", Reply::Result(license(json!([])))),
                ("license.bind", Reply::Result(license(json!([{ "proxy": "id-nice", "name": "nice" }])))),
            ]
        };
        let lyon = site(dir.path(), "lyon", answers(json!([license(bound)]))).await;
        let nice = site(dir.path(), "nice", answers(json!([]))).await;
        let (fleet, mut events) = start(dir.path());
        let errand = Errand::BindLicense { license: "8a4f".into(), to: "nice".into() };
        let result = done(&fleet, &mut events, "lyon", errand).await;
        let asked = |proxy: &FakeProxy, method: &str| proxy.calls().into_iter().find(|(known, _)| known == method);
        if taken {
            assert!(result.unwrap_err().message.contains("already serves metz"));
            assert_eq!(asked(&nice, "license.import"), None);
        } else {
            assert!(matches!(result.unwrap(), Done::LicenseBound(bound) if bound.bound[0].name == "nice"));
            assert_eq!(asked(&nice, "license.import").unwrap().1["text"], "signed");
            assert_eq!(asked(&lyon, "license.bind").unwrap().1["proxy"]["proxy"], "id-nice");
        }
    }
}

#[tokio::test]
async fn files_are_read_with_a_reason_when_they_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    let state = json!({ "phase": "draining", "from": "1", "to": "2", "since": 0 });
    let lyon = site(dir.path(), "lyon", vec![("upgrade.start", Reply::Result(state))]).await;
    let (fleet, mut events) = start(dir.path());
    let bundle = dir.path().join("bundle");
    std::fs::write(&bundle, b"signed bytes").unwrap();
    let errand = |path: &Path| Errand::Upgrade { bundle: path.display().to_string(), wait_seconds: 60 };
    done(&fleet, &mut events, "lyon", errand(&bundle)).await.unwrap();
    let asked = |method: &str| lyon.calls().into_iter().find(|(known, _)| known == method).unwrap().1;
    assert_eq!(asked("bundle"), "signed bytes");
    let params = asked("upgrade.start");
    assert_eq!((params["bundle"].as_str(), params["waitSeconds"].as_u64()), (Some("its sum"), Some(60)));
    let missing = dir.path().join("missing");
    let error = done(&fleet, &mut events, "lyon", errand(&missing)).await.unwrap_err();
    assert!(error.message.contains(missing.to_str().unwrap()), "{error}");
    let source = LicenseSource::File(missing.display().to_string());
    let error = done(&fleet, &mut events, "lyon", Errand::ImportLicense(source)).await.unwrap_err();
    assert_eq!(error.code, "FILE");
}
