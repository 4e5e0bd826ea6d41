//! The console's side of a connection: its states, its replies, and runs followed across cuts.

mod support;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use backhaul::config::{Config, Proxy, Token};
use backhaul::core::{
    Answer, Connection, Done, Errand, FleetCommand, FleetEventKind, LicenseSource, Refusal, Request, RequestId,
};
use backhaul::fleet::Fleet;
use serde_json::{Value, json};
use sha2::Digest as _;
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
    site_that(dir, name, move |method, _| answers.iter().find(|(known, _)| *known == method).map(|(_, reply)| reply.clone()))
        .await
}

/// A proxy that is watched for ever, and answers what `handler` says.
async fn site_that(dir: &Path, name: &str, handler: impl Fn(&str, &Value) -> Option<Reply> + Send + Sync + 'static) -> FakeProxy {
    let status =
        json!({ "name": name, "id": format!("id-{name}"), "version": "1", "startedAt": 0, "running": [], "bytesPerSecond": 0 });
    let line = json!({ "status": status, "changed": [] }).to_string();
    let proxy = FakeProxy::start(move |method, params| match method {
        "proxy.watch" => Some(Reply::Open(vec![line.clone()])),
        "proxy.status" => Some(Reply::Result(status.clone())),
        _ => handler(method, params),
    })
    .await;
    proxy.add_to(dir, name).await;
    proxy
}

/// An entry of a proxy that is not there.
fn add_dead(dir: &Path, name: &str) {
    let url = backhaul::config::check_url("https://127.0.0.1:1").unwrap();
    let proxy = Proxy { name: name.into(), url, token: Token::new("x").unwrap(), fingerprint: "CD".repeat(32).parse().unwrap() };
    Config::add_proxy(dir, proxy).unwrap();
}

fn asked(proxy: &FakeProxy, method: &str) -> Option<Value> {
    proxy.calls().into_iter().find(|(known, _)| known == method).map(|(_, params)| params)
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

/// Has an errand of lyon done, which then refuses the connection: both are waited for, whichever comes first.
async fn done_and_refused(fleet: &Fleet, events: &mut Events, errand: Errand) -> Refusal {
    fleet.send(FleetCommand::Errand { proxy: "lyon".into(), id: RequestId(8), errand });
    let (mut done, mut refused) = (false, None);
    loop {
        if let (true, Some(reason)) = (done, refused) {
            return reason;
        }
        match next(events).await {
            FleetEventKind::Reply { id: RequestId(8), result } => done = result.map(|_| true).unwrap(),
            FleetEventKind::Connection(Connection::Refused { reason, .. }) => refused = Some(reason),
            _ => {}
        }
    }
}

fn entry(dir: &Path, name: &str) -> Option<Proxy> {
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
        // The fake goes on with what it had: that it refuses shows that the new one is used.
        assert_eq!(done_and_refused(&fleet, &mut events, errand).await, expected);
        let kept = entry(dir.path(), "lyon").unwrap();
        match expected {
            Refusal::Authentication => assert_eq!(kept.token.secret(), "the-next-token"),
            Refusal::Certificate => assert_eq!(kept.fingerprint, "AB".repeat(32).parse().unwrap()),
        }
    }
}

#[tokio::test]
async fn whoever_deployed_a_proxy_is_told_its_new_token_and_certificate() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let own = Arc::new(OnceLock::<String>::new());
    let (next, shown) = (format!("{}-next", support::TOKEN), Arc::clone(&own));
    let annecy = site_that(dir.path(), "annecy", {
        let next = next.clone();
        move |method, _| match method {
            "token.rotate" => Some(Reply::Result(json!({ "token": next, "formerUntil": 5 }))),
            "certificate.renew" => Some(Reply::Result(json!({ "fingerprint": shown.get().unwrap() }))),
            _ => None,
        }
    })
    .await;
    own.set(annecy.fingerprint.clone()).unwrap();
    let listed = support::deployed("id-annecy", "annecy", &annecy.url, &annecy.fingerprint);
    let answers = vec![("deploy.list", Reply::Result(json!([listed]))), ("deploy.adopt", Reply::Result(listed))];
    let lyon = site(dir.path(), "lyon", answers).await;
    let (fleet, mut events) = start(dir.path());
    let done_with = done(&fleet, &mut events, "annecy", Errand::RotateToken).await.unwrap();
    assert_eq!(done_with, Done::TokenKept { former_until: 5, untold: None });
    let told = asked(&lyon, "deploy.adopt").expect("the deployer is told");
    assert_eq!((&told["id"], &told["token"], &told["name"]), (&json!("id-annecy"), &json!(next), &json!("annecy")));
    done(&fleet, &mut events, "annecy", Errand::RenewCertificate).await.unwrap();
    assert_eq!(lyon.calls().iter().filter(|(method, _)| method == "deploy.adopt").count(), 2);
    assert_eq!(entry(dir.path(), "annecy").unwrap().token.secret(), next);

    // One that is away may be it: that is said, and the change stands.
    let alone =
        site(other.path(), "metz", vec![("token.rotate", Reply::Result(json!({ "token": next, "formerUntil": 5 })))]).await;
    add_dead(other.path(), "nice");
    let (fleet, mut events) = start(other.path());
    let done_with = done(&fleet, &mut events, "metz", Errand::RotateToken).await.unwrap();
    let Done::TokenKept { untold: Some(untold), .. } = done_with else { panic!("{done_with:?}") };
    assert!(untold.contains("nice did not answer") && untold.contains("backhaul proxy adopt \"metz\""), "{untold}");
    assert!(asked(&alone, "token.rotate").is_some());
    assert_eq!(entry(other.path(), "metz").unwrap().token.secret(), next);
}

#[tokio::test]
async fn what_else_changes_while_a_proxy_makes_its_token_or_certificate_is_not_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().to_owned();
    let _lyon = site_that(dir.path(), "lyon", move |method, _| {
        // As another command would, between the question and its answer.
        let change = |change: &dyn Fn(&mut Proxy)| {
            let present = entry(&home, "lyon").unwrap();
            Config::change_proxy(&home, &present, change).unwrap();
        };
        match method {
            "token.rotate" => {
                change(&|entry| entry.fingerprint = "AB".repeat(32).parse().unwrap());
                Some(Reply::Result(json!({ "token": "the-next-token", "formerUntil": 5 })))
            }
            "certificate.renew" => {
                change(&|entry| entry.token = Token::new("anothers-token").unwrap());
                Some(Reply::Result(json!({ "fingerprint": "EF".repeat(32) })))
            }
            _ => None,
        }
    })
    .await;
    let before = entry(dir.path(), "lyon").unwrap();
    let kept = |errand| {
        Config::change_proxy(dir.path(), &entry(dir.path(), "lyon").unwrap(), |entry| *entry = before.clone()).unwrap();
        let (fleet, mut events) = start(dir.path());
        let dir = dir.path();
        async move {
            done(&fleet, &mut events, "lyon", errand).await.unwrap();
            let kept = entry(dir, "lyon").unwrap();
            (kept.token.secret().to_owned(), kept.fingerprint)
        }
    };
    assert_eq!(kept(Errand::RotateToken).await, ("the-next-token".to_owned(), "AB".repeat(32).parse().unwrap()));
    assert_eq!(kept(Errand::RenewCertificate).await, ("anothers-token".to_owned(), "EF".repeat(32).parse().unwrap()));
}

#[tokio::test]
async fn a_file_that_cannot_be_written_is_found_before_a_token_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let lyon = site(dir.path(), "lyon", vec![("token.rotate", Reply::Result(json!({ "token": "t", "formerUntil": 5 })))]).await;
    let (fleet, mut events) = start(dir.path());
    // Not even root writes a folder.
    std::fs::create_dir(dir.path().join("proxies.toml.new")).unwrap();
    let error = done(&fleet, &mut events, "lyon", Errand::RotateToken).await.unwrap_err();
    assert!(error.message.contains("proxies.toml"), "{error}");
    assert_eq!(asked(&lyon, "token.rotate"), None);
}

#[tokio::test]
async fn what_a_deployer_knows_of_old_does_not_take_the_place_of_what_works() {
    for stale in ["token", "fingerprint"] {
        let dir = tempfile::tempdir().unwrap();
        let annecy = site(dir.path(), "annecy", Vec::new()).await;
        let mut claim = json!({
            "id": "id-annecy", "name": "annecy", "url": annecy.url, "token": support::TOKEN, "fingerprint": annecy.fingerprint
        });
        claim[stale] = if stale == "token" { json!("an-old-token") } else { json!("AB".repeat(32)) };
        let _lyon = site(dir.path(), "lyon", vec![("deploy.claim", Reply::Result(claim))]).await;
        let before = entry(dir.path(), "annecy");
        let (fleet, mut events) = start(dir.path());
        let errand = Errand::Adopt { deployed: "id-annecy".into(), known: Some("annecy".into()) };
        let error = done(&fleet, &mut events, "lyon", errand).await.unwrap_err();
        assert_eq!(error.code, "PROXY_ESTRANGED", "{error}");
        assert!(error.next.as_ref().unwrap().contains("backhaul proxy adopt \"annecy\""), "{error}");
        assert!(!format!("{error:?}").contains("an-old-token"));
        assert_eq!(entry(dir.path(), "annecy"), before);
    }
}

#[tokio::test]
async fn runs_are_not_followed_by_a_way_that_was_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let _lyon = site_that(dir.path(), "lyon", |method, params| match method {
        "certificate.renew" => Some(Reply::Result(json!({ "fingerprint": "AB".repeat(32) }))),
        // For ever, and cut after each event.
        "run.watch" => Some(Reply::Lines(vec![log(params["cursor"].as_u64().unwrap() + 1)])),
        _ => None,
    })
    .await;
    let (fleet, mut events) = start(dir.path());
    fleet.send(FleetCommand::WatchRun { proxy: "lyon".into(), run: "r".into(), cursor: 0 });
    until(&mut events, |kind| matches!(kind, FleetEventKind::Run { .. }).then_some(())).await;
    assert_eq!(done_and_refused(&fleet, &mut events, Errand::RenewCertificate).await, Refusal::Certificate);
    let refused = |kind: &FleetEventKind| matches!(kind, FleetEventKind::Connection(Connection::Refused { .. }));
    // The fake goes on with its former certificate, and so would whoever follows by it. A hundred handshakes are time for that.
    for _ in 0..100 {
        fleet.send(FleetCommand::Reconnect { proxy: "lyon".into() });
        loop {
            let kind = next(&mut events).await;
            assert!(!matches!(kind, FleetEventKind::Run { .. } | FleetEventKind::RunWatchEnded { .. }), "{kind:?}");
            if refused(&kind) {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_licence_that_serves_another_proxy_of_the_fleet_starts_no_deployment() {
    let dir = tempfile::tempdir().unwrap();
    let license = |bound: Value| json!({ "id": "8a4f-1", "holder": "x", "proxies": 1, "notBefore": 0, "bound": bound });
    let free = license(json!([]));
    let run = json!({ "id": "run-1", "kind": "deploy", "label": "annecy", "queuedAt": 0, "cursor": 0 });
    let options = json!({ "pools": [], "licensing": { "required": true, "licenses": [free] } });
    let answers = vec![
        ("deploy.options", Reply::Result(options)),
        ("license.list", Reply::Result(json!([free]))),
        ("deploy.start", Reply::Result(run)),
    ];
    let lyon = site(dir.path(), "lyon", answers).await;
    let taken = Arc::new(AtomicBool::new(true));
    let state = Arc::clone(&taken);
    let _nice = site_that(dir.path(), "nice", move |method, _| {
        let bound = json!([{ "proxy": "id-nice", "name": "nice" }]);
        let listed = if state.load(Ordering::Relaxed) { json!([license(bound)]) } else { json!([]) };
        (method == "license.list").then_some(Reply::Result(listed))
    })
    .await;
    let (fleet, mut events) = start(dir.path());
    let spec = support::deployed("x", "annecy", "", "")["spec"].clone();
    let spec: api::DeploySpec = serde_json::from_value(spec).unwrap();
    for blocked in [true, false] {
        taken.store(blocked, Ordering::Relaxed);
        let request = Request::DeployStart(Box::new(spec.clone()));
        fleet.send(FleetCommand::Call { proxy: "lyon".into(), id: RequestId(5), request });
        let result = until(&mut events, |kind| match kind {
            FleetEventKind::Reply { id: RequestId(5), result } => Some(result),
            _ => None,
        })
        .await;
        if blocked {
            let error = result.unwrap_err();
            assert_eq!(error.code, "LICENSE_IN_USE");
            assert!(error.message.contains("already serves nice"), "{error}");
            assert_eq!(asked(&lyon, "deploy.start"), None);
        } else {
            assert!(matches!(result, Ok(Answer::DeployStart(_))), "{result:?}");
            assert_eq!(asked(&lyon, "deploy.start").unwrap()["license"], "8a4f-1");
        }
    }
}

#[tokio::test]
async fn a_licence_is_freed_at_the_proxy_that_runs_under_it_whatever_that_is_called_by_now() {
    let dir = tempfile::tempdir().unwrap();
    let metz = json!({ "proxy": "id-metz", "name": "metz" });
    let license = |bound: Value| json!({ "id": "8a4f", "holder": "x", "proxies": 1, "notBefore": 0, "bound": bound });
    let answers = || {
        vec![
            ("license.list", Reply::Result(json!([license(json!([metz]))]))),
            ("license.unbind", Reply::Result(license(json!([])))),
        ]
    };
    let lyon = site(dir.path(), "lyon", answers()).await;
    // It was called metz when it was bound, and does not answer now.
    add_dead(dir.path(), "nice");
    let errand =
        || Errand::UnbindLicense { license: "8a4f".into(), of: api::Binding { proxy: "id-metz".into(), name: "metz".into() } };
    let (fleet, mut events) = start(dir.path());
    let error = done(&fleet, &mut events, "lyon", errand()).await.unwrap_err();
    assert!(error.next.as_ref().unwrap().contains("nice may be metz"), "{error:?}");
    assert_eq!(asked(&lyon, "license.unbind"), None);
    // Where the very proxy answers, one that does not is another one.
    let other = site(dir.path(), "metz", answers()).await;
    Config::rename_proxy(dir.path(), "metz", "strasbourg").unwrap();
    let (fleet, mut events) = start(dir.path());
    assert!(matches!(done(&fleet, &mut events, "lyon", errand()).await, Ok(Done::LicenseFreed(_))));
    for proxy in [&lyon, &other] {
        assert_eq!(asked(proxy, "license.unbind").unwrap()["proxy"]["proxy"], "id-metz");
    }
}

#[tokio::test]
async fn a_binding_that_fails_at_the_proxy_is_taken_back_where_the_licence_is_held() {
    let dir = tempfile::tempdir().unwrap();
    let license = json!({ "id": "8a4f", "holder": "x", "proxies": 1, "notBefore": 0, "bound": [] });
    let answers = |bound: Reply| {
        vec![
            ("license.list", Reply::Result(json!([license]))),
            ("license.get", Reply::Result(json!({ "license": license, "text": "signed" }))),
            ("license.import", Reply::Result(license.clone())),
            ("license.bind", bound),
            ("license.unbind", Reply::Result(license.clone())),
        ]
    };
    let lyon = site(dir.path(), "lyon", answers(Reply::Result(license.clone()))).await;
    let nice = site(dir.path(), "nice", answers(Reply::Error(-32000, "its clock was set back", json!(null)))).await;
    let (fleet, mut events) = start(dir.path());
    let errand = Errand::BindLicense { license: "8a4f".into(), to: "nice".into() };
    let error = done(&fleet, &mut events, "lyon", errand).await.unwrap_err();
    assert!(error.message.contains("clock was set back"), "{error}");
    assert!(asked(&nice, "license.import").is_some());
    assert_eq!(asked(&lyon, "license.unbind").expect("it is taken back")["proxy"]["proxy"], "id-nice");
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
        if taken {
            assert!(result.unwrap_err().message.contains("already serves metz"));
            assert_eq!(asked(&nice, "license.import"), None);
        } else {
            assert!(matches!(result.unwrap(), Done::LicenseBound(bound) if bound.bound[0].name == "nice"));
            assert_eq!(asked(&nice, "license.import").unwrap()["text"], "signed");
            assert_eq!(asked(&lyon, "license.bind").unwrap()["proxy"]["proxy"], "id-nice");
        }
    }
}

#[tokio::test]
async fn files_are_read_with_a_reason_when_they_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    let asked_once = AtomicBool::new(false);
    let lyon = site_that(dir.path(), "lyon", move |method, params| {
        let state = json!({ "phase": "draining", "from": "1", "to": "2", "since": 0 });
        let here = method == "upgrade.start" && asked_once.swap(true, Ordering::Relaxed);
        match method {
            "upgrade.start" if here => Some(Reply::Result(state)),
            "upgrade.start" => Some(Reply::Error(1, "no such bundle", json!({ "id": params["bundle"], "type": "bundle" }))),
            _ => None,
        }
    })
    .await;
    let (fleet, mut events) = start(dir.path());
    let (bundle, garbage) = (dir.path().join("bundle"), dir.path().join("garbage"));
    let build = ["1.0.0", "testing", "b.1", "x86_64"].map(str::to_owned);
    let [version, channel, name, arch] = build;
    let build = signed::Build { version, channel, build: name, arch };
    let packed = signed::pack_bundle(b"a program", &build, &signed::SecretKey::generate().unwrap()).unwrap();
    std::fs::write(&bundle, &packed).unwrap();
    std::fs::write(&garbage, b"signed bytes").unwrap();
    let errand = |path: &Path| Errand::Upgrade { bundle: path.display().to_string(), wait_seconds: 60, downgrade: false };
    // What is no bundle is not sent anywhere.
    let error = done(&fleet, &mut events, "lyon", errand(&garbage)).await.unwrap_err();
    assert_eq!(error.code, "BUNDLE", "{error}");
    assert_eq!((asked(&lyon, "bundle"), asked(&lyon, "upgrade.start")), (None, None));
    done(&fleet, &mut events, "lyon", errand(&bundle)).await.unwrap();
    assert_eq!(asked(&lyon, "bundle").unwrap(), String::from_utf8_lossy(&packed).into_owned());
    let params = asked(&lyon, "upgrade.start").unwrap();
    let sum: String = sha2::Sha256::digest(&packed).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!((params["bundle"].as_str(), params["waitSeconds"].as_u64()), (Some(sum.as_str()), Some(60)));
    // From the web too, without what may be a secret in its address.
    let error = done(&fleet, &mut events, "lyon", errand(Path::new("http://127.0.0.1:1/x?token=hunter2"))).await.unwrap_err();
    assert_eq!(error.code, "DOWNLOAD", "{error}");
    assert!(!format!("{error:?}").contains("hunter2"));
    let missing = dir.path().join("missing");
    let error = done(&fleet, &mut events, "lyon", errand(&missing)).await.unwrap_err();
    assert!(error.message.contains(missing.to_str().unwrap()), "{error}");
    let source = LicenseSource::File(missing.display().to_string());
    let error = done(&fleet, &mut events, "lyon", Errand::ImportLicense(source)).await.unwrap_err();
    assert_eq!(error.code, "FILE");
}
