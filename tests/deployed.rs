//! The commands about deployed proxies, licences and upgrades against proxies that answer what a test wants: whose entry is
//! touched, what is JSON, how they end.

mod support;

use std::path::Path;

use backhaul::config::{Config, Proxy, Token, check_url};
use serde_json::{Value, json};
use support::{FakeProxy, Reply, TOKEN, backhaul, deployed, stderr, stdout};

fn ended() -> Reply {
    let event = json!({ "cursor": 1, "at": 0, "event": "runEnded", "outcome": "success" });
    Reply::Lines(vec![event.to_string()])
}

/// A proxy that has deployed `listed`, and deploys another of any name.
async fn deployer(dir: &Path, listed: Vec<Value>, more: Vec<(&'static str, Reply)>) -> FakeProxy {
    let run = json!({ "id": "run-1", "kind": "deploy", "label": "x", "queuedAt": 0, "cursor": 0 });
    let pool = json!({
        "id": "p-1", "name": "paris", "url": "https://pool", "username": "root", "fingerprint": "", "state": "connected"
    });
    let review = json!({ "faults": [], "warnings": [], "lines": [["Name", "x"]], "steps": [] });
    let mut answers = vec![
        ("pool.list", Reply::Result(json!([pool]))),
        ("deploy.list", Reply::Result(json!(listed))),
        ("deploy.options", Reply::Result(json!({ "pools": [], "licensing": { "required": false } }))),
        ("deploy.review", Reply::Result(review)),
        ("deploy.start", Reply::Result(run.clone())),
        ("deploy.destroy", Reply::Result(run)),
        ("deploy.forget", Reply::Result(json!(true))),
        ("run.watch", ended()),
        ("support.bundle", Reply::Result(json!({ "fileName": "x.txt", "text": "line one\nline \"two\"\n" }))),
    ];
    let status = json!({ "name": "a", "id": "id-a", "version": "1", "startedAt": 0, "running": [], "bytesPerSecond": 0 });
    answers.push(("proxy.status", Reply::Result(status)));
    // The latter count.
    answers.extend(more);
    let proxy = FakeProxy::with(answers).await;
    proxy.add_to(dir, "a").await;
    proxy
}

fn entry(name: &str, address: &str, pin: &str) -> Proxy {
    let (url, token) = (check_url(address).unwrap(), Token::new(&format!("{name}-token")).unwrap());
    Proxy { name: name.into(), url, token, fingerprint: pin.repeat(32).parse().unwrap() }
}

fn entries(dir: &Path) -> Vec<Proxy> {
    Config::load(dir).proxies.unwrap()
}

fn called(proxy: &FakeProxy, method: &str) -> bool {
    proxy.calls().iter().any(|(known, _)| known == method)
}

const DEPLOY: [&str; 8] = ["proxy", "deploy", "--pool", "paris", "--name", "lyon", "--image", "/x.xva"];

#[tokio::test]
async fn a_proxy_that_is_deployed_or_claimed_takes_nobodys_entry() {
    let dir = tempfile::tempdir().unwrap();
    let claim = json!({
        "id": "id-lyon", "name": "lyon", "url": "https://127.0.0.1:2", "token": "new", "fingerprint": "CD".repeat(32)
    });
    let listed = deployed("id-lyon", "lyon", "https://127.0.0.1:2", &"CD".repeat(32));
    let asked = deployer(dir.path(), vec![listed], vec![("deploy.claim", Reply::Result(claim))]).await;
    let lyon = entry("lyon", "https://127.0.0.1:1", "AB");
    Config::add_proxy(dir.path(), lyon.clone()).unwrap();
    let before = entries(dir.path());
    for arguments in [&[&DEPLOY[..], &["--proxy", "a", "--yes"]].concat()[..], &["proxy", "claim", "id-lyon", "--proxy", "a"]] {
        let refused = backhaul(dir.path(), arguments).await;
        let said = stderr(&refused);
        assert!(refused.status.code() == Some(1) && said.contains("already a proxy \"lyon\""), "{refused:?}");
        assert_eq!(entries(dir.path()), before);
    }
    assert!(!called(&asked, "deploy.start"), "a deployment began that could not be got to know");
    // It has its own entry, whatever that is called; with the token that works.
    Config::add_proxy(dir.path(), entry("mine", "https://127.0.0.1:2", "CD")).unwrap();
    let known = entries(dir.path());
    let undecided = backhaul(dir.path(), &["proxy", "claim", "id-lyon", "--proxy", "a"]).await;
    let said = stderr(&undecided);
    assert!(undecided.status.code() == Some(3) && said.contains("another token or certificate of mine"), "{undecided:?}");
    assert_eq!(entries(dir.path()), known);
}

#[tokio::test]
async fn what_is_destroyed_or_forgotten_is_dropped_by_its_certificate_and_not_by_its_name() {
    for command in ["destroy", "forget"] {
        let dir = tempfile::tempdir().unwrap();
        let listed = deployed("id-lyon", "lyon", "https://127.0.0.1:2", &"CD".repeat(32));
        let _deployer = deployer(dir.path(), vec![listed], Vec::new()).await;
        Config::add_proxy(dir.path(), entry("lyon", "https://127.0.0.1:1", "AB")).unwrap();
        Config::add_proxy(dir.path(), entry("mine", "https://127.0.0.1:2", "CD")).unwrap();
        let mut arguments = vec!["proxy", command, "id-lyon", "--proxy", "a", "--json"];
        if command == "destroy" {
            arguments.extend(["--confirm", "lyon"]);
        }
        let done = backhaul(dir.path(), &arguments).await;
        assert!(done.status.success(), "{done:?}");
        let names: Vec<String> = entries(dir.path()).into_iter().map(|entry| entry.name).collect();
        assert_eq!(names, ["a", "lyon"], "{command}");
        if command == "forget" {
            let told: Value = serde_json::from_str(&stdout(&done)).unwrap();
            assert_eq!(told, json!({ "forgotten": "lyon", "vm": "vm-lyon" }));
        }
    }
}

#[tokio::test]
async fn what_a_program_asks_for_is_answered_in_json_and_never_asked_back() {
    let dir = tempfile::tempdir().unwrap();
    let listed = deployed("id-x", "x", "https://127.0.0.1:2", &"CD".repeat(32));
    let asked = deployer(dir.path(), vec![listed], Vec::new()).await;
    let bare = backhaul(dir.path(), &[&DEPLOY[..], &["--json"]].concat()).await;
    assert!(bare.status.code() == Some(2) && stderr(&bare).contains("--yes or --plan"), "{bare:?}");
    let bare = backhaul(dir.path(), &["proxy", "redeploy", "x", "--json"]).await;
    assert!(bare.status.code() == Some(2) && stderr(&bare).contains("say --yes"), "{bare:?}");
    assert!(!called(&asked, "deploy.start") && !called(&asked, "deploy.redeploy"));
    let lines = |output: &std::process::Output| -> Vec<Value> {
        assert!(output.status.success(), "{output:?}");
        stdout(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    // What is done is told first, before it is done.
    let started = lines(&backhaul(dir.path(), &[&DEPLOY[..], &["--json", "--yes", "--no-watch"]].concat()).await);
    assert_eq!((&started[0]["lines"][0], &started[1]["id"]), (&json!(["Name", "x"]), &json!("run-1")));
    let text = lines(&backhaul(dir.path(), &["support", "--output", "-", "--json"]).await);
    assert_eq!(text, [json!({ "proxy": "a", "text": "line one\nline \"two\"\n" })]);
    let key = dir.path().join("issuer.key");
    lines(&backhaul(dir.path(), &["license", "keygen", key.to_str().unwrap(), "--json"]).await);
    let issue = ["license", "issue", "--key", key.to_str().unwrap(), "--holder", "x", "--json"];
    let issued = lines(&backhaul(dir.path(), &issue).await).remove(0);
    let text = issued["text"].as_str().unwrap();
    assert!(text.contains(&format!("Id: {}\n", issued["id"].as_str().unwrap())) && text.ends_with("LICENSE-----\n"), "{issued}");
}

#[tokio::test]
async fn a_refusal_is_one_whoever_finds_it_and_what_is_advised_exists() {
    let dir = tempfile::tempdir().unwrap();
    let listed = deployed("id-x", "x", "https://127.0.0.1:2", &"CD".repeat(32));
    let refusal = json!({ "code": "DEPLOY_REFUSED", "message": "ip: taken" });
    let asked = deployer(dir.path(), vec![listed], vec![("deploy.start", Reply::Error(-32000, "ip: taken", refusal))]).await;
    let here = backhaul(dir.path(), &[&DEPLOY[..], &["--vcpus", "1", "--yes"]].concat()).await;
    assert!(here.status.code() == Some(4) && stderr(&here).contains("at least 2"), "{here:?}");
    let there = backhaul(dir.path(), &[&DEPLOY[..], &["--yes"]].concat()).await;
    assert!(there.status.code() == Some(4) && stderr(&there).contains("ip: taken"), "{there:?}");
    let mistyped = backhaul(dir.path(), &["proxy", "destroy", "x", "--confirm", "y"]).await;
    assert!(mistyped.status.code() == Some(4) && stderr(&mistyped).contains("called \"x\""), "{mistyped:?}");
    assert!(!called(&asked, "deploy.destroy"));
    let nowhere = backhaul(dir.path(), &["proxy", "forget", "y"]).await;
    let (_, next) =
        stderr(&nowhere).split_once("next: backhaul ").map(|(said, next)| (said.to_owned(), next.to_owned())).unwrap();
    let next: Vec<&str> = next.split_whitespace().collect();
    assert_eq!(next, ["proxy", "deployed"]);
    assert!(backhaul(dir.path(), &next).await.status.success());
}

#[tokio::test]
async fn the_proxy_that_an_upgrade_stops_at_is_named() {
    let dir = tempfile::tempdir().unwrap();
    Config::add_proxy(dir.path(), entry("lyon", "https://127.0.0.1:1", "AB")).unwrap();
    let asked = deployer(dir.path(), Vec::new(), Vec::new()).await;
    let [version, channel, build, arch] = ["1.0.0", "testing", "b.1", "x86_64"].map(str::to_owned);
    let build = signed::Build { version, channel, build, arch };
    let bundle = dir.path().join("bundle");
    let packed = signed::pack_bundle(b"a program", &build, &signed::SecretKey::generate().unwrap()).unwrap();
    std::fs::write(&bundle, packed).unwrap();
    let upgrade = ["proxy", "upgrade", "--all", "--bundle", bundle.to_str().unwrap()];
    let told = backhaul(dir.path(), &upgrade).await;
    let said = stderr(&told);
    assert!(
        told.status.code() == Some(3) && said.contains("lyon: cannot reach") && said.contains("a is left as it is"),
        "{said}"
    );
    let told = backhaul(dir.path(), &[&upgrade[..], &["--json"]].concat()).await;
    let lines: Vec<Value> = stdout(&told).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["proxy"], &lines[0]["phase"]), (&json!("lyon"), &json!("failed")));
    assert_eq!(lines[0]["error"]["code"], "PROXY_UNREACHABLE");
    assert_eq!(lines[1], json!({ "proxy": "a", "phase": "untouched" }));
    assert!(!called(&asked, "upgrade.start") && !said.contains(TOKEN));
}
