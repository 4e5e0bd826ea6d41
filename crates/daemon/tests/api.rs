//! The door, over a real socket with pinned TLS: what an unmodified xo-server needs (xo-proxy-api.md §1), and what our
//! console needs.

mod common;

use api::*;
use common::{Client, TOKEN, start};
use daemon::store::NewRun;
use reqwest::Method as Verb;
use serde_json::{Value, json};
use tls::{SelfSigned, Trust};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn each_path_and_verb_has_its_status() {
    let dir = tempfile::tempdir().unwrap();
    let (running, client) = start(dir.path()).await;
    let cases = [
        (Verb::GET, "/healthz", 200, None),
        (Verb::HEAD, "/healthz", 200, None),
        (Verb::POST, "/healthz", 405, Some("GET, HEAD")),
        (Verb::GET, "/metrics", 200, None),
        (Verb::GET, "/api/v1", 405, Some("POST")),
        (Verb::PUT, "/api/v1/", 405, Some("POST")),
        (Verb::OPTIONS, "/api/v1", 200, Some("POST")),
        (Verb::POST, "/api/v1/x", 404, None),
        (Verb::POST, "/api/v1", 401, None),
        (Verb::GET, "/", 404, None),
        (Verb::GET, "/../etc/passwd", 404, None),
    ];
    for (verb, path, status, allow) in cases {
        let response = client.request(verb.clone(), path).send().await.unwrap();
        assert_eq!(response.status(), status, "{verb} {path}");
        assert_eq!(response.headers().get("allow").map(|value| value.to_str().unwrap()), allow, "{verb} {path}");
    }
    running.stop().await;
}

#[tokio::test]
async fn only_the_token_opens() {
    let dir = tempfile::tempdir().unwrap();
    let (running, client) = start(dir.path()).await;
    for cookie in [
        "",
        "authenticationToken=",
        "authenticationToken=wrong",
        &format!("token={TOKEN}"),
        &format!("authenticationToken={TOKEN}x"),
    ] {
        let request = client.request(Verb::POST, "/api/v1").header("cookie", cookie).body("{}");
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 401, "{cookie}");
        assert_eq!(response.text().await.unwrap(), "Unauthorized");
    }
    let good = client.authenticated("/api/v1").body(r#"{"id":0,"jsonrpc":"2.0","method":"system.getServerVersion"}"#);
    let response = good.send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(
        response.json::<Value>().await.unwrap(),
        json!({ "id": 0, "jsonrpc": "2.0", "result": env!("CARGO_PKG_VERSION") })
    );
    running.stop().await;
}

#[tokio::test]
async fn a_refusal_has_a_reason_phrase_and_reads_no_body() {
    let dir = tempfile::tempdir().unwrap();
    let (running, _) = start(dir.path()).await;
    let mut socket = connect(&running.address.to_string(), running.daemon.fingerprint()).await;
    // The body is announced and never sent.
    socket.write_all(b"POST /api/v1 HTTP/1.1\r\nhost: x\r\ncontent-length: 50000000\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer).await;
    assert!(answer.starts_with(b"HTTP/1.1 401 Unauthorized\r\n"), "{}", String::from_utf8_lossy(&answer));
    running.stop().await;
}

#[tokio::test]
async fn garbage_on_the_port_hurts_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (running, client) = start(dir.path()).await;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], b"\x16\x03\x01\xff\xff"] {
        let mut socket = TcpStream::connect(running.address).await.unwrap();
        let _ = socket.write_all(garbage).await;
        socket.shutdown().await.ok();
        let _ = socket.read_to_end(&mut Vec::new()).await;
    }
    assert_eq!(client.request(Verb::GET, "/healthz").send().await.unwrap().text().await.unwrap(), "ok");
    // Another certificate is another daemon.
    let other = SelfSigned::generate(&["localhost"]).unwrap().fingerprint().unwrap();
    let stranger = Client::new(&running.address.to_string(), other);
    stranger.request(Verb::GET, "/healthz").send().await.unwrap_err();
    running.stop().await;
}

#[tokio::test]
async fn errors_are_those_of_the_table() {
    let dir = tempfile::tempdir().unwrap();
    let (running, client) = start(dir.path()).await;
    let code = |answer: &Value| answer["error"]["code"].as_i64();
    let answer = client.raw("garbage").await;
    assert_eq!((code(&answer), &answer["id"]), (Some(-32700), &Value::Null));
    assert_eq!(code(&client.raw("[]").await), Some(-32600));
    assert_eq!(code(&client.raw(r#"{"id":1,"jsonrpc":"1.0","method":"proxy.status"}"#).await), Some(-32600));
    let answer = client.call_raw("no.such", json!({})).await;
    assert_eq!((code(&answer), &answer["error"]["data"]), (Some(-32601), &json!("no.such")));
    let answer = client.call_raw("pool.list", json!({ "x": 1 })).await;
    assert_eq!((code(&answer), &answer["error"]["data"]["errors"][0]["keyword"]), (Some(10), &json!("additionalProperties")));
    assert_eq!(code(&client.call_raw("job.get", json!({})).await), Some(10));
    let answer = client.call_raw("job.get", json!({ "id": "x" })).await;
    assert_eq!((code(&answer), &answer["error"]["data"]), (Some(1), &json!({ "id": "x", "type": "job" })));
    for method in ["run.get", "run.cancel", "pool.remove", "remote.remove", "remote.probe", "job.run", "restorePoint.verify"] {
        assert_eq!(code(&client.call_raw(method, json!({ "id": "../nothing" })).await), Some(1), "{method}");
    }
    // An early failure of a stream is a document, without newline.
    let body = r#"{"id":3,"jsonrpc":"2.0","method":"run.watch","params":{"run":"x"}}"#;
    let text = client.authenticated("/api/v1").body(body).send().await.unwrap().text().await.unwrap();
    assert!(!text.ends_with('\n'));
    assert_eq!(code(&serde_json::from_str(&text).unwrap()), Some(1));
    // A notification is executed and answered without id.
    assert!(client.raw(r#"{"method":"pool.list"}"#).await.get("id").is_none());
    running.stop().await;
}

#[tokio::test]
async fn the_state_is_watched_from_the_first_moment() {
    let dir = tempfile::tempdir().unwrap();
    let (running, client) = start(dir.path()).await;
    let mut lines = client.stream("proxy.watch", json!({})).await;
    let first: ProxyNews = serde_json::from_value(lines.next().await.unwrap().unwrap()).unwrap();
    assert_eq!((first.status.name.as_str(), first.status.site.as_deref(), first.changed), ("test", Some("here"), vec![]));
    let url = format!("file://{}", dir.path().join("remote \"quoted\" 🦀").display());
    client.call::<RemoteAdd>(RemoteAddParams { name: "nas".into(), url }).await;
    let mut changed = Vec::new();
    while !changed.contains(&Topic::Remotes) {
        let news: ProxyNews = serde_json::from_value(lines.next().await.unwrap().unwrap()).unwrap();
        changed.extend(news.changed);
    }
    // A daemon that stops ends the stream after a whole line.
    let (_, rest) = tokio::join!(running.stop(), async {
        while lines.next().await?.is_some() {}
        Ok::<_, String>(())
    });
    rest.unwrap();
}

#[tokio::test]
async fn remotes_come_are_tested_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let (running, client) = start(dir.path()).await;
    let add = |name: &str, url: String| RemoteAddParams { name: name.into(), url };
    let url = format!("file://{}", dir.path().join("r").display());
    let remote = client.call::<RemoteAdd>(add("nas", url.clone())).await;
    assert_eq!((remote.kind.as_str(), remote.vhd_directory, remote.space.is_some()), ("local", false, true));
    let test = client.call::<RemoteTestRun>(IdParams { id: "nas".into() }).await;
    assert!(test.success, "{test:?}");
    for (name, url, says) in [
        ("nas", format!("{url}2"), "called"),
        ("other", url.clone(), "already there"),
        ("x", "ftp://x".into(), "file://"),
        ("x", "smb://u:hunter2@d\\\\h".into(), "not supported"),
        ("x", "file:///proc/nope/x".into(), "cannot open"),
        ("", url.clone(), "empty"),
    ] {
        let error = client.try_call::<RemoteAdd>(add(name, url)).await.unwrap_err();
        assert!(error.message.contains(says), "{error}");
        assert!(!serde_json::to_string(&error).unwrap().contains("hunter2"));
    }
    assert_eq!(client.call::<RestorePointList>(Default::default()).await, []);
    // Its folder goes away: said in its record, and the test names the step.
    std::fs::remove_dir_all(dir.path().join("r")).unwrap();
    assert_eq!(client.call::<RemoteList>(NoParams {}).await[0].error.as_ref().unwrap().code, "REMOTE_NOT_FOUND");
    assert_eq!(client.call::<RemoteTestRun>(IdParams { id: remote.id.clone() }).await.step.as_deref(), Some("open"));
    let metrics = client.request(Verb::GET, "/metrics").send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("backhaul_remote_up{remote=\"nas\"} 0\n") && metrics.ends_with("# EOF\n"), "{metrics}");
    assert!(client.call::<RemoteRemove>(IdParams { id: remote.id }).await);
    assert_eq!(client.call::<RemoteList>(NoParams {}).await, []);
    running.stop().await;
}

#[tokio::test]
async fn a_pool_that_is_not_there_is_told_in_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let (running, client) = start(dir.path()).await;
    let add = |url: &str, fingerprint: Option<&str>| PoolAddParams {
        name: None,
        url: url.into(),
        username: "root".into(),
        password: "hunter2".into(),
        fingerprint: fingerprint.map(Into::into),
    };
    // A port that nobody listens on.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = client.try_call::<PoolAdd>(add(&format!("https://{free}"), None)).await.unwrap_err();
    assert!(error.message.contains("127.0.0.1") && error.code == -32000, "{error}");
    assert!(!serde_json::to_string(&error).unwrap().contains("hunter2"));
    let error = client.try_call::<PoolAdd>(add("https://127.0.0.1", Some("xyz"))).await.unwrap_err();
    assert_eq!(error.code, 10);
    assert_eq!(client.call::<PoolList>(NoParams {}).await, []);
    assert_eq!(client.call::<VmList>(PoolFilter::default()).await, []);
    running.stop().await;
}

#[tokio::test]
async fn a_remote_that_a_run_writes_to_is_not_forgotten_and_a_run_is_found_by_its_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let (running, client) = start(dir.path()).await;
    let url = format!("file://{}", dir.path().join("r").display());
    let remote = client.call::<RemoteAdd>(RemoteAddParams { name: "nas".into(), url }).await;
    let journal = &running.daemon.journal;
    for id in ["abcdefg1", "abcdefg2"] {
        let run = NewRun { id: id.into(), kind: RunKind::Backup, job: None, label: "n".into(), recovers: None };
        journal.create(run).await.unwrap();
    }
    let what = Intent::RestorePoint { remote: remote.id.clone(), vm: "v".into() };
    journal.append("abcdefg1", EventKind::Intent { intent: 1, what }).await.unwrap();
    let refused = client.call_raw("remote.remove", json!({ "id": "nas" })).await["error"].to_string();
    assert!(refused.contains("run abcdefg1 is at work on the remote nas"), "{refused}");
    journal.append("abcdefg1", EventKind::Settled { intent: 1 }).await.unwrap();
    assert!(client.call::<RemoteRemove>(IdParams { id: remote.id }).await);

    let ambiguous = client.call_raw("run.get", json!({ "id": "abcd" })).await["error"].to_string();
    assert!(ambiguous.contains("abcdefg1, abcdefg2"), "{ambiguous}");
    let short = client.call_raw("run.get", json!({ "id": "abc" })).await["error"].clone();
    assert_eq!(short["code"], client.call_raw("run.get", json!({ "id": "zzzz" })).await["error"]["code"]);
    assert_eq!(client.call::<RunGet>(IdParams { id: "abcdefg2".into() }).await.run.id, "abcdefg2");
    running.stop().await;
}

#[tokio::test]
async fn a_job_is_checked_before_it_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (running, client) = start(dir.path()).await;
    let wrong = json!({
        "name": " ", "mode": "delta", "vms": ["web"], "remotes": ["nowhere"], "retention": 0, "concurrency": 0,
        "schedule": { "cron": "daily", "timezone": "UTC" },
    });
    let answer = client.call_raw("job.create", wrong).await;
    let named: Vec<&str> =
        answer["error"]["data"]["errors"].as_array().unwrap().iter().map(|e| e["name"].as_str().unwrap()).collect();
    assert_eq!(named, ["name", "retention", "concurrency", "cron", "remotes", "vms"]);
    let vm = "11111111-2222-3333-4444-555555555555";
    let url = format!("file://{}", dir.path().join("r").display());
    let remote = client.call::<RemoteAdd>(RemoteAddParams { name: "nas".into(), url }).await;
    let good = json!({ "name": "n", "mode": "delta", "vms": [vm], "remotes": ["nas"] });
    let answer = client.call_raw("job.create", good).await;
    assert!(answer["error"]["message"].as_str().unwrap().contains("no pool has a VM"), "{answer}");
    assert_eq!(client.call::<JobList>(NoParams {}).await, []);
    let preview = client
        .call::<SchedulePreviewGet>(SchedulePreviewParams {
            schedule: Schedule { cron: "0 3 * * *".into(), timezone: "Europe/Paris".into() },
            count: Some(5),
        })
        .await;
    assert_eq!(preview.next.len(), 5);
    assert!(client.call::<RemoteRemove>(IdParams { id: remote.id }).await);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_stops_leaves_nobody_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let (running, client) = start(dir.path()).await;
    let address = running.address.to_string();
    let fingerprint = running.daemon.fingerprint();
    // One that has said nothing, one that has shaken hands, one that waits for its next request.
    let mut silent = TcpStream::connect(&address).await.unwrap();
    let mut fresh = connect(&address, fingerprint).await;
    let mut kept = connect(&address, fingerprint).await;
    kept.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut head = [0; 15];
    kept.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    let mut news = client.stream("proxy.watch", json!({})).await;
    assert_eq!(news.next().await.unwrap().unwrap()["status"]["name"], "test");
    // The journal of a run that does not end holds nobody up for long.
    let run = NewRun { id: "abcdefg1".into(), kind: RunKind::Backup, job: None, label: "n".into(), recovers: None };
    running.daemon.journal.create(run).await.unwrap();
    let mut events = client.stream("run.watch", json!({ "run": "abcdefg1" })).await;
    assert!(events.next().await.unwrap().is_some());
    running.stop().await;

    let mut rest = Vec::new();
    // Less than any of them would have been waited for.
    let limit = std::time::Duration::from_secs(20);
    for (what, ended) in [
        ("silent", tokio::time::timeout(limit, silent.read_to_end(&mut rest)).await),
        ("fresh", tokio::time::timeout(limit, fresh.read_to_end(&mut rest)).await),
        ("kept", tokio::time::timeout(limit, kept.read_to_end(&mut rest)).await),
    ] {
        // Closed or cut, as long as nobody waits.
        let _ = ended.unwrap_or_else(|_| panic!("{what} is still open"));
    }
    let last = async { while news.next().await.unwrap().is_some() {} };
    tokio::time::timeout(limit, last).await.expect("proxy.watch ends");
    let cut = async { while let Ok(Some(_)) = events.next().await {} };
    tokio::time::timeout(limit, cut).await.expect("run.watch is cut");
}

async fn connect(address: &str, fingerprint: tls::Fingerprint) -> tokio_rustls::client::TlsStream<TcpStream> {
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(tls::client_config(Trust::Pinned(fingerprint))));
    let socket = TcpStream::connect(address).await.unwrap();
    connector.connect("localhost".try_into().unwrap(), socket).await.unwrap()
}
