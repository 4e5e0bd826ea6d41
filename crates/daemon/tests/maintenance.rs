//! A proxy's settings, tokens, certificate and whole state, changed through its door.

mod common;

use std::path::Path;

use api::*;
use common::{Client, start};
use daemon::store::NewRun;
use serde_json::{Value, json};
use tls::SelfSigned;

const SECRET_PROXY: &str = "http://user:hunter2@proxy.example:3128";

/// The highest time seen, as it is kept.
const HIGHEST: &str = "license_high_water";

/// Every file below a folder that holds a text.
fn holding(dir: &Path, text: &str) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(holding(&path, text));
        } else if std::fs::read(&path).unwrap().windows(text.len()).any(|window| window == text.as_bytes()) {
            found.push(path);
        }
    }
    found
}

#[tokio::test]
async fn settings_change_at_once_and_outlive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (running, client) = start(dir.path()).await;
    let mut lines = client.stream("proxy.watch", json!({})).await;
    assert_eq!(lines.next().await.unwrap().unwrap()["status"]["name"], "test");
    let name = "né \"lyon\" 🦀";
    let given = ConfigureParams { name: Some(name.into()), site: Some(String::new()), http_proxy: Some(SECRET_PROXY.into()) };
    let status = client.call::<ProxyConfigure>(given).await;
    assert_eq!((status.name.as_str(), status.site.as_deref()), (name, None));
    while lines.next().await.unwrap().expect("the change is told")["status"]["name"] != name {}
    assert_eq!(running.daemon.settings.get().http_proxy.unwrap().expose(), SECRET_PROXY);

    let wrong = json!({ "name": "", "site": "x\ny", "httpProxy": "user:hunter2@proxy" });
    let refused = client.call_raw("proxy.configure", wrong).await;
    let errors = refused["error"]["data"]["errors"].as_array().unwrap();
    let named: Vec<&str> = errors.iter().map(|error| error["name"].as_str().unwrap()).collect();
    assert_eq!((refused["error"]["code"].as_i64(), named), (Some(10), vec!["name", "site", "httpProxy"]));
    assert!(!refused.to_string().contains("hunter2"));
    running.stop().await;
    assert_eq!(holding(&dir.path().join("state"), "hunter2"), Vec::<std::path::PathBuf>::new());

    let (running, client) = start(dir.path()).await;
    let status = client.call::<ProxyStatusGet>(NoParams {}).await;
    assert_eq!((status.name.as_str(), status.site.as_deref()), (name, None));
    running.stop().await;
}

#[tokio::test]
async fn a_rotated_token_opens_and_the_former_one_until_it_is_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let (running, old) = start(dir.path()).await;
    let NewToken { token, former_until } = old.call::<TokenRotate>(TokenRotateParams { overlap_seconds: None }).await;
    let new = old.with_token(&token);
    assert!(new.is_let_in().await && old.is_let_in().await && !old.with_token("other").is_let_in().await);
    assert_eq!(new.call::<ProxyStatusGet>(NoParams {}).await.former_token_until, Some(former_until));
    running.stop().await;
    let (running, old) = start(dir.path()).await;
    let new = old.with_token(&token);
    assert!(new.is_let_in().await && old.is_let_in().await);
    assert!(new.call::<TokenRevoke>(NoParams {}).await);
    assert!(new.is_let_in().await && !old.is_let_in().await);
    assert_eq!(new.call::<ProxyStatusGet>(NoParams {}).await.former_token_until, None);
    let at_once = new.call::<TokenRotate>(TokenRotateParams { overlap_seconds: Some(0) }).await.token;
    assert!(!new.is_let_in().await && new.with_token(&at_once).is_let_in().await);
    let refused = new.with_token(&at_once).call_raw("token.rotate", json!({ "overlapSeconds": 2_592_001 })).await;
    assert!(refused["error"]["message"].as_str().unwrap().contains("30 days"), "{refused}");
    running.stop().await;
    for token in [&token, &at_once] {
        assert_eq!(holding(dir.path(), token), Vec::<std::path::PathBuf>::new());
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_seen_by_the_next_connection_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (running, client) = start(dir.path()).await;
    let address = running.address.to_string();
    let mut lines = client.stream("proxy.watch", json!({})).await;
    lines.next().await.unwrap().unwrap();
    let made = client.call::<CertificateRenew>(CertificateRenewParams::default()).await.fingerprint;
    // Who is connected stays so, and hears of it; who comes anew with the former pin does not get in.
    while lines.next().await.unwrap().expect("the change is told")["status"]["fingerprint"] != made.as_str() {}
    let stranger = Client::new(&address, "AB".repeat(32).parse().unwrap());
    stranger.request(reqwest::Method::GET, "/healthz").send().await.unwrap_err();
    let client = Client::new(&address, made.parse().unwrap());
    assert_eq!(client.call::<ProxyStatusGet>(NoParams {}).await.fingerprint, made);

    let given = SelfSigned::generate(&["lyon.example"]).unwrap();
    let other = SelfSigned::generate(&["lyon.example"]).unwrap();
    let params = |key: &SelfSigned| CertificateRenewParams {
        certificate: Some(given.certificate_pem.clone()),
        key: Some(key.key_pem.clone()),
    };
    let refused = client.try_call::<CertificateRenew>(params(&other)).await.unwrap_err();
    assert!(refused.message.contains("not the key of the certificate"), "{refused}");
    assert_eq!(client.call::<ProxyStatusGet>(NoParams {}).await.fingerprint, made);
    let taken = client.call::<CertificateRenew>(params(&given)).await.fingerprint;
    assert_eq!(taken, given.fingerprint().unwrap().to_string());
    running.stop().await;
    let (running, client) = start(dir.path()).await;
    assert_eq!(client.call::<ProxyStatusGet>(NoParams {}).await.fingerprint, taken);
    running.stop().await;
}

async fn with_something(client: &Client, dir: &Path) {
    let url = format!("file://{}", dir.join("r \"x\"").display());
    client.call::<RemoteAdd>(RemoteAddParams { name: "nas".into(), url }).await;
    let given = ConfigureParams { name: Some("lyon".into()), site: None, http_proxy: Some(SECRET_PROXY.into()) };
    client.call::<ProxyConfigure>(given).await;
}

#[tokio::test]
async fn a_state_makes_a_new_proxy_the_former_one_and_twice_is_as_once() {
    let dir = tempfile::tempdir().unwrap();
    let (old_dir, new_dir) = (dir.path().join("old"), dir.path().join("new"));
    for dir in [&old_dir, &new_dir] {
        std::fs::create_dir(dir).unwrap();
    }
    let (old, client) = start(&old_dir).await;
    with_something(&client, dir.path()).await;
    let rotated = client.call::<TokenRotate>(TokenRotateParams { overlap_seconds: Some(0) }).await.token;
    let client = client.with_token(&rotated);
    let remotes = client.call::<RemoteList>(NoParams {}).await;
    let job = {
        let spec = JobSpec {
            name: "nightly".into(),
            mode: JobMode::Delta,
            vms: vec!["11111111-2222-3333-4444-555555555555".into()],
            remotes: vec![remotes[0].id.clone()],
            schedule: Some(Schedule { cron: "0 3 * * *".into(), timezone: "Europe/Paris".into() }),
            enabled: true,
            retention: 3,
            compression: Compression::Zstd,
            prefer_nbd: true,
            concurrency: 2,
            full_interval: 0,
            max_bytes_per_second: 0,
        };
        let (id, schedule_id) = (uuid::Uuid::new_v4().to_string(), uuid::Uuid::new_v4().to_string());
        let job = Job { id, schedule_id, spec, last_run: None, next_runs: Vec::new() };
        old.daemon.store.add_job(&job, 1).await.unwrap();
        client.call::<JobGet>(IdParams { id: job.id }).await
    };
    let pool = daemon::store::PoolRecord {
        id: uuid::Uuid::new_v4().to_string(),
        name: "pool".into(),
        url: "https://127.0.0.1:1".into(),
        username: "root".into(),
        password: "hunter2-pool".into(),
        fingerprint: "AB".repeat(32),
    };
    old.daemon.store.add_pool(&pool, 1).await.unwrap();
    old.daemon.store.set_fact(HIGHEST, "5000").await.unwrap();
    client.call::<ProxyDrain>(DrainParams { on: true }).await;
    let state = client.call::<StateExport>(NoParams {}).await;
    let status = client.call::<ProxyStatusGet>(NoParams {}).await;
    assert!(!format!("{state:?}").contains("hunter2"));
    old.stop().await;

    let (new, client) = start(&new_dir).await;
    let broken = [
        (json!({ "form": 2, "takenAt": 1, "id": state.id, "content": {} }), "form"),
        (json!({ "form": 1, "takenAt": 1, "id": "x", "content": state.content }), "id"),
        (json!({ "form": 1, "takenAt": 1, "id": state.id, "content": { "name": "hunter2-name" } }), "content"),
        (json!({ "form": 1, "takenAt": 1, "id": state.id, "content": changed(&state, "certificate", "x") }), "content"),
        (json!({ "form": 1, "takenAt": 1, "id": state.id, "content": changed(&state, "hologram", "x") }), "content"),
    ];
    for (broken, name) in broken {
        let newer = broken["content"].get("hologram").is_some();
        let refused = client.call_raw("state.import", broken).await;
        assert_eq!(refused.to_string().contains("of a newer version, with parts"), newer, "{refused}");
        assert_eq!(refused["error"]["data"]["errors"][0]["name"], name, "{refused}");
        assert!(!refused.to_string().contains("hunter2"), "{refused}");
    }
    new.daemon.store.set_fact(HIGHEST, "9000").await.unwrap();
    let imported = client.call::<StateImport>(state.clone()).await;
    assert_eq!(new.daemon.store.fact(HIGHEST).await.unwrap().as_deref(), Some("9000"), "the higher one stays");
    assert_eq!((imported.pools, imported.remotes, imported.jobs), (1, 1, 1));
    assert_eq!(imported.fingerprint, status.fingerprint);
    // Its own token and, for a day, the one of who gave it the state; the certificate of the former proxy.
    let former = Client::new(&new.address.to_string(), status.fingerprint.parse().unwrap());
    assert!(former.is_let_in().await && former.with_token(&rotated).is_let_in().await);
    let again = former.call::<StateImport>(state.clone()).await;
    assert_eq!(again, imported);
    let check = async |client: &Client| {
        let now = client.call::<ProxyStatusGet>(NoParams {}).await;
        assert_eq!((now.id, now.name, now.fingerprint), (status.id.clone(), "lyon".into(), status.fingerprint.clone()));
        // Not its free space, which others use too.
        let known = client.call::<RemoteList>(NoParams {}).await;
        assert_eq!((known.len(), &known[0].id, &known[0].name), (1, &remotes[0].id, &remotes[0].name));
        let found = client.call::<JobGet>(IdParams { id: "nightly".into() }).await;
        assert_eq!((&found.id, &found.schedule_id, &found.spec), (&job.id, &job.schedule_id, &job.spec));
        assert_eq!(found.next_runs.len(), 3);
        assert_eq!(client.call::<PoolList>(NoParams {}).await[0].id, pool.id);
    };
    check(&former).await;
    // Its schedules wait for whoever gave it the state.
    assert!(former.call::<ProxyStatusGet>(NoParams {}).await.draining);
    assert_eq!(new.daemon.settings.get().http_proxy.unwrap().expose(), SECRET_PROXY);
    let refused = former.try_call::<StateImport>(ProxyState { taken_at: 5, ..state.clone() }).await.unwrap_err();
    assert!(refused.message.contains("jobs, remotes"), "{refused}");
    new.stop().await;
    let (new, client) = start(&new_dir).await;
    let client = client.with_token(&rotated);
    check(&client).await;
    new.stop().await;
    for secret in ["hunter2", rotated.as_str()] {
        assert_eq!(holding(&new_dir, secret), Vec::<std::path::PathBuf>::new());
    }
}

#[tokio::test]
async fn a_state_is_not_given_away_while_something_is_left_to_clean_up() {
    let dir = tempfile::tempdir().unwrap();
    let (running, client) = start(dir.path()).await;
    with_something(&client, dir.path()).await;
    let remote = client.call::<RemoteList>(NoParams {}).await.remove(0);
    let run = NewRun { id: "abcdefg1".into(), kind: RunKind::Backup, job: None, label: "nightly".into(), recovers: None };
    let journal = &running.daemon.journal;
    journal.create(run).await.unwrap();
    let what = Intent::RestorePoint { remote: remote.id, vm: "v".into() };
    journal.append("abcdefg1", EventKind::Intent { intent: 1, what }).await.unwrap();
    let ended = EventKind::RunEnded { outcome: Outcome::Failure, error: None, summary: RunSummary::default() };
    journal.append("abcdefg1", ended).await.unwrap();

    // A copy for a bad day is always to be had.
    client.call::<StateExport>(NoParams {}).await;
    client.call::<ProxyDrain>(DrainParams { on: true }).await;
    let refused = client.try_call::<StateExport>(NoParams {}).await.unwrap_err();
    assert_eq!(refused.data["code"], "PROXY_HAS_LEFTOVERS", "{refused}");
    assert!(refused.message.contains("run abcdefg1 (nightly) left something on remote nas"), "{refused}");
    running.daemon.store.note_cleaned("abcdefg1").await.unwrap();
    client.call::<StateExport>(NoParams {}).await;
    running.stop().await;
}

fn changed(state: &ProxyState, key: &str, value: &str) -> Value {
    let mut content = state.content.clone();
    content[key] = value.into();
    content
}
