//! The one-shot commands against a proxy that answers what a test wants: shapes, exit codes, and words.

mod support;

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::CommandFactory as _;
use serde_json::{Value, json};
use support::{FakeProxy, Reply, TOKEN, backhaul, stderr, stdout};

fn status(name: &str) -> Reply {
    Reply::Result(json!({
        "name": name, "site": "here", "version": "0.1.0", "startedAt": 0, "running": [], "bytesPerSecond": 0, "fingerprint": ""
    }))
}

fn job(id: &str, name: &str) -> Value {
    json!({
        "id": id, "scheduleId": "s", "name": name, "mode": "delta", "vms": ["vm-1"], "remotes": ["r-1"], "enabled": true,
        "retention": 3, "nextRuns": []
    })
}

fn vm(uuid: &str, name: &str) -> Value {
    json!({
        "pool": "p-1", "uuid": uuid, "name": name, "powerState": "Running", "tags": [],
        "disks": [{ "vdi": "d", "name": "root", "device": "xvda", "bytes": 1_073_741_824_u64, "cbt": true }]
    })
}

fn run(id: &str) -> Value {
    json!({ "id": id, "kind": "backup", "label": "daily", "queuedAt": 0, "cursor": 0 })
}

fn remote(id: &str, name: &str) -> Value {
    json!({ "id": id, "name": name, "url": "file:///srv", "kind": "local", "vhdDirectory": false })
}

fn event(cursor: u64) -> String {
    let base = json!({ "cursor": cursor, "at": 0 });
    let mut event = match cursor {
        1 => json!({ "event": "runQueued", "kind": "backup", "label": "daily" }),
        10 => json!({ "event": "runEnded", "outcome": "success" }),
        _ => json!({ "event": "log", "level": "info", "message": format!("number {cursor}") }),
    };
    event.as_object_mut().unwrap().extend(base.as_object().unwrap().clone());
    event.to_string()
}

/// A run of ten events, whose line breaks after `piece` events each time.
fn broken_watch(piece: u64) -> impl Fn(&str, &Value) -> Option<Reply> {
    move |method, params| match method {
        "proxy.status" => Some(status("a")),
        "job.list" => Some(Reply::Result(json!([job("j-1", "daily")]))),
        "job.run" | "run.get" => {
            let mut run = run("run-1");
            run.as_object_mut().unwrap().extend([("tasks".into(), json!([])), ("log".into(), json!([]))]);
            Some(Reply::Result(run))
        }
        "run.watch" => {
            let after = params["cursor"].as_u64().unwrap();
            // The last known event comes again: a reader must not count on a polite server.
            Some(Reply::Lines((after.max(1)..=(after + piece).min(10)).map(event).collect()))
        }
        _ => None,
    }
}

#[tokio::test]
async fn a_proxy_is_added_only_with_a_confirmed_certificate_and_a_valid_token() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config");
    let proxy = FakeProxy::with(vec![("proxy.status", status("a"))]).await;
    let token = dir.path().join("token");
    std::fs::write(&token, TOKEN).unwrap();
    let (token, url) = (token.to_str().unwrap(), proxy.url.as_str());

    let unconfirmed = backhaul(&config, &["proxy", "add", "a", url, "--token-file", token]).await;
    assert_eq!(unconfirmed.status.code(), Some(4), "{unconfirmed:?}");
    assert!(stderr(&unconfirmed).contains(&proxy.fingerprint));
    let other = "AB".repeat(32);
    let wrong = backhaul(&config, &["proxy", "add", "a", url, "--token-file", token, "--fingerprint", &other]).await;
    assert_eq!(wrong.status.code(), Some(4), "{wrong:?}");
    assert!(proxy.calls().is_empty(), "the token went to a proxy nobody had confirmed");

    let bad = dir.path().join("bad");
    std::fs::write(&bad, "not-the-token-at-all").unwrap();
    let refused =
        backhaul(&config, &["proxy", "add", "a", url, "--token-file", bad.to_str().unwrap(), "--accept-fingerprint"]).await;
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    assert!(!config.join("proxies.toml").exists());

    let added = backhaul(&config, &["proxy", "add", "a", url, "--token-file", token, "--fingerprint", &proxy.fingerprint]).await;
    assert_eq!(added.status.code(), Some(0), "{added:?}");
    let listed = backhaul(&config, &["proxy", "list", "--json"]).await;
    let listed: Value = serde_json::from_str(&stdout(&listed)).unwrap();
    assert_eq!(
        (&listed[0]["name"], &listed[0]["state"], &listed[0]["status"]["site"]),
        (&json!("a"), &json!("live"), &json!("here"))
    );
    for output in [&unconfirmed, &wrong, &refused, &added] {
        assert!(!stdout(output).contains(TOKEN) && !stderr(output).contains(TOKEN));
    }
}

#[tokio::test]
async fn a_proxy_is_called_what_it_calls_itself_unless_told_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let proxy = FakeProxy::with(vec![("proxy.status", status("東京 🗼"))]).await;
    let token = dir.path().join("token");
    std::fs::write(&token, TOKEN).unwrap();
    let add = ["proxy", "add", &proxy.url, "--token-file", token.to_str().unwrap(), "--fingerprint", &proxy.fingerprint];
    assert_eq!(backhaul(dir.path(), &add).await.status.code(), Some(0));
    assert_eq!(backhaul(dir.path(), &["proxy", "show", "東京 🗼"]).await.status.code(), Some(0));
    let twice = backhaul(dir.path(), &add).await;
    assert!(!twice.status.success() && stderr(&twice).contains("already a proxy"), "{twice:?}");
}

#[tokio::test]
async fn a_changed_certificate_is_accepted_only_when_it_is_said_to_be_right() {
    let dir = tempfile::tempdir().unwrap();
    let (former, proxy) = (FakeProxy::with(vec![]).await, FakeProxy::with(vec![("proxy.status", status("a"))]).await);
    proxy.add_to(dir.path(), "a").await;
    let path = dir.path().join("proxies.toml");
    let text = std::fs::read_to_string(&path).unwrap().replace(&proxy.fingerprint, &former.fingerprint);
    std::fs::write(&path, &text).unwrap();
    assert_eq!(backhaul(dir.path(), &["vm", "list"]).await.status.code(), Some(4));

    let asked = proxy.calls().len();
    let unconfirmed = backhaul(dir.path(), &["proxy", "trust", "a"]).await;
    assert_eq!(unconfirmed.status.code(), Some(4), "{unconfirmed:?}");
    for word in [&former.fingerprint, &proxy.fingerprint, "backhauld fingerprint"] {
        assert!(stderr(&unconfirmed).contains(word), "{word}: {unconfirmed:?}");
    }
    let wrong = backhaul(dir.path(), &["proxy", "trust", "a", "--fingerprint", &former.fingerprint]).await;
    assert_eq!(wrong.status.code(), Some(4), "{wrong:?}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    assert_eq!(proxy.calls().len(), asked, "the token went to a proxy nobody had confirmed");

    let trusted = backhaul(dir.path(), &["proxy", "trust", "a", "--fingerprint", &proxy.fingerprint]).await;
    assert_eq!(trusted.status.code(), Some(0), "{trusted:?}");
    assert_eq!(backhaul(dir.path(), &["proxy", "show", "a"]).await.status.code(), Some(0));
    let again = backhaul(dir.path(), &["proxy", "trust", "a"]).await;
    assert!(stdout(&again).contains("trusted already"), "{again:?}");
}

#[tokio::test]
async fn lists_are_one_array_over_all_proxies() {
    let dir = tempfile::tempdir().unwrap();
    let vms = |name: &'static str| vec![("proxy.status", status(name)), ("pool.list", Reply::Result(json!([])))];
    let one = FakeProxy::with(
        [vms("one"), vec![("vm.list", Reply::Result(json!([vm("1", "web\u{1b}[2J"), vm("2", "🗼 \"x\"")])))]].concat(),
    )
    .await;
    let two = FakeProxy::with([vms("two"), vec![("vm.list", Reply::Result(json!([vm("3", "db")])))]].concat()).await;
    one.add_to(dir.path(), "one").await;
    two.add_to(dir.path(), "two").await;
    let listed = backhaul(dir.path(), &["vm", "list", "--json"]).await;
    let array: Vec<Value> = serde_json::from_str(&stdout(&listed)).unwrap();
    let names: Vec<_> = array.iter().map(|vm| (vm["proxy"].as_str().unwrap(), vm["uuid"].as_str().unwrap())).collect();
    assert_eq!(names, [("one", "1"), ("one", "2"), ("two", "3")]);
    let table = stdout(&backhaul(dir.path(), &["vm", "list", "--proxy", "one"]).await);
    assert!(!table.contains('\u{1b}'), "a name moved the cursor: {table:?}");
    insta::assert_snapshot!(table);
}

#[tokio::test]
async fn exit_codes_say_how_it_went() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path();
    let code = |arguments: &'static [&'static str]| async move { backhaul(config, arguments).await.status.code() };
    assert_eq!(code(&["vm", "list"]).await, Some(2), "no proxy is known");
    assert_eq!(code(&["proxy", "list", "--json"]).await, Some(0), "an empty list is an answer");
    let proxy = FakeProxy::with(vec![
        ("proxy.status", status("a")),
        ("job.list", Reply::Result(json!([job("j-1", "daily"), job("j-2", "twice"), job("j-3", "twice")]))),
        ("job.remove", Reply::Error(5, "job daily is running", json!({ "operation": "remove", "reason": "run 7" }))),
        (
            "job.setEnabled",
            Reply::Error(-32000, "the store is broken", json!({ "code": "STORE", "message": "the disk is full" })),
        ),
        ("remote.list", Reply::Result(json!([]))),
        ("job.get", Reply::Result(json!({ "unexpected": true }))),
    ])
    .await;
    proxy.add_to(config, "a").await;
    assert_eq!(code(&["job", "list"]).await, Some(0));
    assert_eq!(code(&["job", "list", "--proxy", "b"]).await, Some(2));
    assert_eq!(code(&["job", "explode"]).await, Some(2));
    assert_eq!(code(&["job", "run", "weekly"]).await, Some(1), "no such job");
    assert_eq!(code(&["job", "run", "twice"]).await, Some(2), "ambiguous");
    assert_eq!(code(&["job", "remove", "daily"]).await, Some(4));
    assert_eq!(code(&["job", "remove", "daily", "--read-only"]).await, Some(4));
    assert_eq!(code(&["job", "enable", "j-2"]).await, Some(1));
    assert_eq!(code(&["job", "show", "daily"]).await, Some(3), "an answer that is none");
    let full = backhaul(config, &["job", "enable", "j-2", "--json"]).await;
    let report: Value = serde_json::from_str(&stderr(&full)).unwrap();
    assert_eq!((&report["code"], &report["message"]), (&json!("STORE"), &json!("the disk is full")));
    let ambiguous = stderr(&backhaul(config, &["job", "run", "twice"]).await);
    assert!(ambiguous.contains("j-2 on a, j-3 on a"), "{ambiguous}");
    assert!(!proxy.calls().iter().any(|(method, _)| method == "job.run"));
}

#[tokio::test]
async fn one_silent_proxy_hides_nothing_and_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let proxy = FakeProxy::with(vec![
        ("proxy.status", status("a")),
        ("job.list", Reply::Result(json!([job("j-1", "daily")]))),
        ("job.run", Reply::Result(run("run-1"))),
    ])
    .await;
    proxy.add_to(dir.path(), "a").await;
    let path = dir.path().join("proxies.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let silent = text.replace("\"a\"", "\"silent\"").replace(&proxy.url, "https://127.0.0.1:1");
    std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(silent.as_bytes()).unwrap();

    let listed = backhaul(dir.path(), &["job", "list", "--json"]).await;
    assert_eq!(listed.status.code(), Some(3), "{listed:?}");
    assert_eq!(serde_json::from_str::<Vec<Value>>(&stdout(&listed)).unwrap().len(), 1);
    assert!(stderr(&listed).contains("127.0.0.1:1"));
    let by_name = backhaul(dir.path(), &["job", "run", "daily"]).await;
    assert_eq!(by_name.status.code(), Some(3), "the silent one may have a job of that name too");
    assert_eq!(backhaul(dir.path(), &["job", "run", "j-1"]).await.status.code(), Some(0), "an id is unique");
    assert_eq!(backhaul(dir.path(), &["job", "run", "daily", "--proxy", "a"]).await.status.code(), Some(0));
}

#[tokio::test]
async fn a_job_goes_to_the_proxy_that_has_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let answers = |vms: Value, remotes: Value| {
        vec![
            ("proxy.status", status("x")),
            ("vm.list", Reply::Result(vms)),
            ("remote.list", Reply::Result(remotes)),
            ("job.create", Reply::Result(job("j-9", "new"))),
        ]
    };
    let one = FakeProxy::with(answers(json!([vm("1", "web"), vm("2", "web")]), json!([remote("r1", "nas")]))).await;
    let two = FakeProxy::with(answers(json!([vm("3", "db 'x' 🗼")]), json!([remote("r2", "nas")]))).await;
    one.add_to(dir.path(), "one").await;
    two.add_to(dir.path(), "two").await;
    let add = |vm: &'static str| ["job", "add", "--name", "new", "--mode", "delta", "--vm", vm, "--remote", "nas", "--json"];
    let ambiguous = backhaul(dir.path(), &add("web")).await;
    assert_eq!(ambiguous.status.code(), Some(1));
    assert!(stderr(&ambiguous).contains("1, 2"), "{ambiguous:?}");
    let created = backhaul(dir.path(), &add("db 'x' 🗼")).await;
    assert_eq!(created.status.code(), Some(0), "{created:?}");
    assert_eq!(serde_json::from_str::<Value>(&stdout(&created)).unwrap()["proxy"], "two");
    let sent = two.calls().into_iter().find(|(method, _)| method == "job.create").unwrap().1;
    assert_eq!((&sent["vms"], &sent["remotes"], &sent["retention"]), (&json!(["3"]), &json!(["r2"]), &json!(7)));
    assert!(sent.get("schedule").is_none());
}

#[tokio::test]
async fn every_event_comes_once_however_often_the_line_is_cut() {
    for piece in [1, 3, 100] {
        let dir = tempfile::tempdir().unwrap();
        let proxy = FakeProxy::start(broken_watch(piece)).await;
        proxy.add_to(dir.path(), "a").await;
        let watched = backhaul(dir.path(), &["job", "run", "daily", "--watch", "--json"]).await;
        assert_eq!(watched.status.code(), Some(0), "{watched:?}");
        let cursors: Vec<u64> = cursors(&stdout(&watched));
        assert_eq!(cursors, (1..=10).collect::<Vec<_>>());
        let resumed = backhaul(dir.path(), &["run", "watch", "run-1", "--from", "7", "--json"]).await;
        assert_eq!(self::cursors(&stdout(&resumed)), [8, 9, 10]);
    }
}

fn cursors(lines: &str) -> Vec<u64> {
    lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["cursor"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn the_exit_code_of_a_watch_is_the_runs() {
    for (outcome, code) in [("success", 0), ("failure", 1), ("cancelled", 1), ("interrupted", 1)] {
        let dir = tempfile::tempdir().unwrap();
        let proxy = FakeProxy::start(move |method, _| match method {
            "run.watch" => Some(Reply::Lines(vec![json!({
                "cursor": 1, "at": 0, "event": "runEnded", "outcome": outcome, "error": { "code": "X", "message": "the remote is full" }
            }).to_string()])),
            _ => broken_watch(1)(method, &json!({ "cursor": 0 })),
        })
        .await;
        proxy.add_to(dir.path(), "a").await;
        let watched = backhaul(dir.path(), &["run", "watch", "run-1"]).await;
        assert_eq!(watched.status.code(), Some(code), "{outcome}");
        assert_eq!(stderr(&watched).contains("the remote is full"), code == 1);
    }
}

#[tokio::test]
async fn a_changed_certificate_is_refused_before_the_token_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let proxy = FakeProxy::with(vec![("proxy.status", status("a"))]).await;
    proxy.add_to(dir.path(), "a").await;
    let impostor = FakeProxy::with(vec![("proxy.status", status("a"))]).await;
    let path = dir.path().join("proxies.toml");
    let text = std::fs::read_to_string(&path).unwrap().replace(&proxy.url, &impostor.url);
    std::fs::write(&path, text).unwrap();
    let refused = backhaul(dir.path(), &["vm", "list"]).await;
    assert_eq!(refused.status.code(), Some(4));
    assert!(stderr(&refused).contains(&impostor.fingerprint) && stderr(&refused).contains(&proxy.fingerprint));
    assert!(impostor.calls().is_empty());
}

#[tokio::test]
async fn garbage_on_the_port_is_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let proxy = FakeProxy::with(vec![("proxy.status", status("a"))]).await;
    proxy.add_to(dir.path(), "a").await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let served = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&served);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::Relaxed);
            let _ = tokio::io::AsyncWriteExt::write_all(&mut socket, b"220 mail ready\r\n").await;
        }
    });
    let path = dir.path().join("proxies.toml");
    let text = std::fs::read_to_string(&path).unwrap().replace(&proxy.url, &format!("https://{address}"));
    std::fs::write(&path, text).unwrap();
    let told = backhaul(dir.path(), &["vm", "list"]).await;
    assert_eq!(told.status.code(), Some(3), "{told:?}");
    assert!(stderr(&told).contains(&address.to_string()), "{told:?}");
    assert!(served.load(Ordering::Relaxed) > 0);
}

#[tokio::test]
async fn a_broken_configuration_is_named_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let proxy = FakeProxy::with(vec![("proxy.status", status("a"))]).await;
    proxy.add_to(dir.path(), "a").await;
    let path = dir.path().join("proxies.toml");
    let text = std::fs::read_to_string(&path).unwrap().replace("fingerprint", "fingerprnt");
    std::fs::write(&path, text).unwrap();
    let told = backhaul(dir.path(), &["vm", "list"]).await;
    assert_eq!(told.status.code(), Some(2));
    assert!(stderr(&told).contains("proxies.toml:5:1: unknown field `fingerprnt`"), "{told:?}");
}

#[test]
fn help_says_what_there_is() {
    let mut command = backhaul::commands::cli::Cli::command();
    command.build();
    let mut pages = String::new();
    render(&mut command, &mut pages);
    insta::assert_snapshot!(pages);
}

fn render(command: &mut clap::Command, pages: &mut String) {
    let help = command.render_help();
    pages.push_str(&format!("# {}\n{help}\n", command.get_bin_name().unwrap_or_default()));
    for sub in command.get_subcommands_mut().filter(|sub| sub.get_name() != "help" && !sub.is_hide_set()) {
        render(sub, pages);
    }
}
