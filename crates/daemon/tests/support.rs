//! The support bundle: everything somebody far away needs, and no secret, searched for by value.

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

use api::*;
use common::process::{command, write_config};
use common::{Client, TOKEN, config_text};
use lab::Lab;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const PROXY_PASSWORD: &str = "pr\\oxy\"p@ss-é";
const REMOTE_SECRET: &str = "s3/secret+key==";
const ENCRYPTION_KEY: &str = "encryption-key-of-32-characters!";

/// The real binary with a talkative log.
fn spawn(dir: &Path, more: &str) -> (Child, Client) {
    let mut command = command(dir);
    write_config(dir, &format!("{}{more}", config_text(dir)));
    let mut child = command.env("RUST_LOG", "debug").stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
    let client = Client::new(ready["address"].as_str().unwrap(), ready["fingerprint"].as_str().unwrap().parse().unwrap());
    (child, client)
}

fn encoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}

#[tokio::test(flavor = "multi_thread")]
async fn it_tells_all_and_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::single(&dir.path().join("lab")).await.unwrap();
    let issuer = signed::SecretKey::generate().unwrap();
    let proxy_url = format!("http://user:{}@proxy.invalid:3128", encoded(PROXY_PASSWORD));
    let more = format!("http_proxy = {proxy_url:?}\n[license]\nissuer_keys = [\"{}\"]\n", issuer.public());
    let (mut child, client) = spawn(dir.path(), &more);

    let pool = lab.pool();
    let access = PoolAddParams {
        name: None,
        url: pool.url(),
        username: pool.username().into(),
        password: pool.password().into(),
        fingerprint: None,
    };
    client.call::<PoolAdd>(access).await;
    let place = dir.path().join("remote").display().to_string();
    client.call::<RemoteAdd>(RemoteAddParams { name: "nas".into(), url: format!("file://{place}") }).await;
    let now = jiff::Timestamp::now();
    let license = signed::License {
        id: "8a4f3c0e-64f6-4c1c-9d0c-7f4f5d1c0001".into(),
        product: signed::PRODUCT.into(),
        holder: "somebody".into(),
        proxies: 1,
        issued_at: now,
        not_before: now,
        expires_at: None,
        bound_to: None,
    };
    let license_text = license.issue(&issuer).unwrap();
    client.call::<LicenseImport>(LicenseImportParams { text: license_text.clone() }).await;
    client.call::<LicenseBind>(LicenseBindParams { id: license.id.clone(), proxy: None }).await;
    let signature = license_text.lines().find_map(|line| line.strip_prefix("Signature: ")).unwrap().to_owned();

    // The one of before goes on for a day; of neither is anything but a hash known.
    let rotated = client.call::<TokenRotate>(TokenRotateParams { overlap_seconds: None }).await.token;

    let pem = std::fs::read_to_string(dir.path().join("state/certificate.pem")).unwrap();
    let key_line = pem.lines().skip_while(|line| !line.contains("PRIVATE KEY")).nth(1).unwrap().to_owned();
    let secrets: BTreeMap<&str, String> = [
        ("token", TOKEN.to_owned()),
        ("new token", rotated),
        ("pool password", pool.password().to_owned()),
        ("HTTP proxy", PROXY_PASSWORD.to_owned()),
        ("HTTP proxy, encoded", encoded(PROXY_PASSWORD)),
        ("signature", signature),
        ("private key", key_line),
    ]
    .into();
    // They stand where a careless hand may put them: in names, which every section shows, and in the log of a run.
    let alpha = pool.vm("alpha").unwrap().uuid;
    for (what, secret) in &secrets {
        let spec = json!({ "name": format!("{what}: {secret}"), "mode": "delta", "vms": [alpha], "remotes": ["nas"] });
        client.call::<JobCreate>(serde_json::from_value(spec).unwrap()).await;
    }
    pool.set_fault(lab::Fault::SnapshotFails);
    let run = client.call::<JobRun>(IdParams { id: format!("token: {TOKEN}") }).await;
    client.events(&run.id, 0).await;
    let detail = client.call::<RunGet>(IdParams { id: run.id.clone() }).await;
    assert_eq!(detail.run.outcome, Some(Outcome::Failure));

    let bundle = client.call::<SupportBundleGet>(NoParams {}).await;
    for (what, secret) in &secrets {
        assert!(!bundle.text.contains(secret), "{what} is in the bundle");
        let json = serde_json::to_string(secret).unwrap();
        assert!(!bundle.text.contains(json.trim_matches('"')), "{what} is in the bundle, as JSON");
    }
    // What it is for is there all the same.
    for expected in [
        "== status ==",
        "== configuration ==",
        "== pools, remotes, jobs, licences, deployed proxies ==",
        "== doctor ==",
        "== runs ==",
        "== system ==",
        "== log ==",
        "[redacted: token]",
        "[redacted: pool password]",
        "[redacted: HTTP proxy account]",
        "[redacted: licence signature]",
        "[redacted: private key]",
        "memory free",
        "SNAPSHOT",
        "HTTP proxy: ",
        "fix: ",
        &run.id,
        &format!("file://{place}"),
        "ready name=\"test\"",
    ] {
        assert!(bundle.text.contains(expected), "{expected:?} is missing:\n{}", bundle.text);
    }
    let references = bundle.text.match_indices("OpaqueRef:").map(|(at, found)| &bundle.text[at + found.len()..]);
    for after in references {
        assert!(after.starts_with("[redacted") || after.starts_with("NULL"), "{}", after.chars().take(60).collect::<String>());
    }
    assert!(bundle.file_name.starts_with("backhaul-support-test-") && bundle.file_name.ends_with("Z.txt"));

    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    lab.close().await.unwrap();
}

/// Remotes that this version cannot open have secrets too.
#[tokio::test(flavor = "multi_thread")]
async fn the_accounts_of_remotes_are_taken_out() {
    let dir = tempfile::tempdir().unwrap();
    let store = daemon::store::Store::open(&dir.path().join("state")).await.unwrap();
    let urls = [
        format!("s3://AKIA:{}@127.0.0.1:9/bucket", encoded(REMOTE_SECRET)),
        format!("smb://user:{REMOTE_SECRET}@DOM\\\\127.0.0.1\\share\0x"),
        format!("file:///nowhere?encryptionKey=%22{}%22", encoded(ENCRYPTION_KEY)),
    ];
    for (index, url) in urls.iter().enumerate() {
        let name = format!("{url} {REMOTE_SECRET} {ENCRYPTION_KEY} {index}");
        let record = daemon::store::RemoteRecord { id: format!("remote-{index}"), name, url: url.clone() };
        store.add_remote(&record, 0).await.unwrap();
    }
    store.close().await;
    drop(store);
    let (running, client) = common::start(dir.path()).await;
    let bundle = client.call::<SupportBundleGet>(NoParams {}).await;
    assert!(bundle.text.contains("remote-2") && bundle.text.contains("not supported yet"), "{}", bundle.text);
    for secret in [REMOTE_SECRET, ENCRYPTION_KEY, &encoded(REMOTE_SECRET), &encoded(ENCRYPTION_KEY)] {
        assert!(!bundle.text.contains(secret), "{secret} is in:\n{}", bundle.text);
    }
    running.stop().await;
}
