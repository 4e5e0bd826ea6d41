//! Upgrades with the real programs of a lab, by the commands a person types: a good bundle, a bad one, one after the other,
//! and a backup that runs meanwhile.

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use support::lab::{Lab, PATIENCE, daemon_program};
use support::relay::relay;
use support::{backhaul, stderr, stdout};

/// A bad program, which ends at once.
const BAD: &str = "#!/bin/sh\necho 'cannot find libmissing.so' >&2\nexit 127\n";

/// Packs a program with the key of a lab, as whoever releases one does.
async fn pack(lab: &Lab, program: &Path, build: &str) -> PathBuf {
    let output = lab.dir.join(format!("{build}.bundle"));
    let key = lab.dir.join("keys/release.key");
    let packed = lab
        .ask(&[
            "bundle",
            "pack",
            "--program",
            program.to_str().unwrap(),
            "--key",
            key.to_str().unwrap(),
            "--version",
            env!("CARGO_PKG_VERSION"),
            "--build",
            build,
            "--channel",
            "testing",
            "--level",
            "1",
            "--output",
            output.to_str().unwrap(),
        ])
        .await;
    assert_eq!((packed[0]["build"].as_str(), packed[0]["trusted"].as_bool()), (Some(build), Some(true)));
    output
}

fn bad_program(dir: &Path) -> PathBuf {
    let path = dir.join("bad-program");
    std::fs::write(&path, BAD).unwrap();
    path
}

const HERE: &str = env!("CARGO_PKG_VERSION");

#[tokio::test]
async fn a_fleet_is_upgraded_one_after_the_other_and_a_bad_bundle_stops_at_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::start(&dir.path().join("a lab")).await;
    lab.ask(&["job", "add", "--name", "nightly", "--mode", "delta", "--vm", "web-01", "--remote", "paris-backups"]).await;
    let jobs = lab.list(&["job", "list"]).await;

    // A bad one: the first proxy takes it back, the second is left as it is.
    let bad = pack(&lab, &bad_program(dir.path()), "bad.1").await;
    let upgrade = ["proxy", "upgrade", "paris", "lyon", "--bundle", bad.to_str().unwrap()];
    let (code, said) = lab.refused(&upgrade).await;
    assert_eq!(code, 1, "{said}");
    for words in ["was rolled back", "status 127", "libmissing.so", "lyon is left as it is"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let (paris, lyon) = (lab.status("paris").await, lab.status("lyon").await);
    assert_eq!(paris["upgrade"]["phase"], "rolledBack");
    assert_eq!((&paris["version"], &paris["build"]), (&HERE.into(), &Value::Null));
    assert_eq!(lyon["upgrade"], Value::Null);
    assert_eq!(lab.list(&["job", "list"]).await, jobs);
    let runs = lab.list(&["run", "list"]).await;
    assert_eq!((&runs[0]["kind"], &runs[0]["outcome"]), (&"upgrade".into(), &"failure".into()));
    assert!(runs[0]["error"]["message"].as_str().unwrap().contains("status 127"), "{}", runs[0]);

    // A good one, from the web, for all; then again, which changes nothing.
    let good = pack(&lab, &daemon_program(), "good.2").await;
    let url = serve_once(std::fs::read(&good).unwrap()).await;
    let told = lab.ask(&["proxy", "upgrade", "--all", "--bundle", &url]).await;
    let last: Vec<_> = told.iter().filter(|line| line.get("phase").is_some() && line.get("event").is_none()).collect();
    assert_eq!(last.len(), 2, "{told:?}");
    assert!(last.iter().all(|line| line["phase"] == "done" && line["build"] == "good.2"), "{last:?}");
    for proxy in ["paris", "lyon"] {
        let status = lab.status(proxy).await;
        assert_eq!((&status["build"], &status["channel"]), (&"good.2".into(), &"testing".into()), "{proxy}");
        assert_eq!(status["draining"], false);
    }
    assert_eq!(lab.list(&["job", "list"]).await.len(), 1);
    let again = lab.run(&["proxy", "upgrade", "--all", "--bundle", good.to_str().unwrap()]).await;
    assert!(again.status.success() && stdout(&again).contains("lyon runs 0.1.0 (good.2) already"), "{again:?}");
    let listed = lab.run(&["proxy", "list"]).await;
    assert_eq!(stdout(&listed).matches("0.1.0 (good.2)").count(), 2, "{}", stdout(&listed));

    // It works on as before.
    let run = lab.ask(&["job", "run", "nightly", "--watch"]).await;
    assert_eq!(run.last().unwrap()["outcome"], "success");
    lab.stop().await;
}

/// A web server that gives one file, and its address.
async fn serve_once(content: Vec<u8>) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/good.bundle", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let _ = socket.read(&mut request).await.unwrap();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", content.len());
        socket.write_all(head.as_bytes()).await.unwrap();
        socket.write_all(&content).await.unwrap();
    });
    url
}

#[tokio::test]
async fn a_running_backup_comes_to_its_end_first_unless_its_time_is_over() {
    let dir = tempfile::tempdir().unwrap();
    // A slow line, so that a backup takes some seconds.
    let lab = Lab::start_with(&dir.path().join("lab"), &["--line", "3"]).await;
    lab.ask(&["job", "add", "--name", "slow", "--mode", "delta", "--vm", "web-01", "--remote", "paris-backups"]).await;
    let good = pack(&lab, &daemon_program(), "good.2").await;
    let started = lab.ask(&["job", "run", "slow"]).await;
    let backup = started[0]["id"].as_str().unwrap().to_owned();
    lab.ask(&["proxy", "upgrade", "paris", "--bundle", good.to_str().unwrap()]).await;
    let outcome = async |id: &str| {
        let runs = lab.list(&["run", "list"]).await;
        let of = |kind: &str| runs.iter().find(|run| run["kind"] == kind).cloned().unwrap_or_default();
        let run = runs.iter().find(|run| run["id"] == id).cloned().unwrap();
        (run, of("upgrade"))
    };
    let (ran, upgrade) = outcome(&backup).await;
    assert_eq!(ran["outcome"], "success", "{ran}");
    assert!(ran["endedAt"].as_i64() >= upgrade["queuedAt"].as_i64(), "the upgrade began while the backup ran");
    assert_eq!(lab.list(&["backup", "list"]).await.len(), 1);

    // Without patience it is cancelled, cleans up, and the upgrade goes on.
    lab.ask(&["lab", "mutate", "--dir", lab.dir.to_str().unwrap(), "--vm", "web-01", "--percent", "60"]).await;
    let better = pack(&lab, &daemon_program(), "good.3").await;
    let started = lab.ask(&["job", "run", "slow"]).await;
    let backup = started[0]["id"].as_str().unwrap().to_owned();
    moving(&lab, &backup).await;
    lab.ask(&["proxy", "upgrade", "paris", "--bundle", better.to_str().unwrap(), "--wait", "0"]).await;
    let (ran, upgrade) = outcome(&backup).await;
    assert_eq!((&ran["outcome"], &upgrade["outcome"]), (&"cancelled".into(), &"success".into()), "{ran}");
    let shown = lab.run(&["run", "show", &backup]).await;
    assert!(stdout(&shown).contains("is being upgraded"), "{}", stdout(&shown));
    assert_eq!(lab.status("paris").await["build"], "good.3");
    assert_eq!(lab.list(&["backup", "list"]).await.len(), 1);
    lab.stop().await;
}

/// Waits until a run moves data.
async fn moving(lab: &Lab, run: &str) {
    let waiting = async {
        loop {
            let detail = lab.ask(&["run", "show", run]).await.remove(0);
            let moving = |task: &Value| task["meter"]["bytesDone"].as_u64().unwrap_or_default() > 0;
            assert_eq!(detail["outcome"], Value::Null, "it is over before it is seen: {detail}");
            if detail["tasks"].as_array().into_iter().flatten().any(moving) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("data moves");
}

#[tokio::test]
async fn an_idle_proxy_at_the_end_of_a_long_line_is_upgraded_and_so_is_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::start(&dir.path().join("lab")).await;
    let good = pack(&lab, &daemon_program(), "good.2").await;
    // The same proxies, each way to them 30 ms long: with nothing to wait for, they are gone before anything more is asked.
    let far = dir.path().join("far");
    std::fs::create_dir(&far).unwrap();
    let mut proxies: toml::Table = std::fs::read_to_string(lab.dir.join("config/proxies.toml")).unwrap().parse().unwrap();
    for proxy in proxies["proxy"].as_array_mut().unwrap() {
        let address = proxy["url"].as_str().unwrap().strip_prefix("https://").unwrap().parse().unwrap();
        let near = relay(address, Duration::from_millis(30)).await;
        proxy.as_table_mut().unwrap().insert("url".into(), format!("https://{near}").into());
    }
    backhaul::config::write_private(&far.join("proxies.toml"), &toml::to_string(&proxies).unwrap()).unwrap();
    let upgraded = backhaul(&far, &["proxy", "upgrade", "--all", "--bundle", good.to_str().unwrap(), "--json"]).await;
    assert!(upgraded.status.success(), "{}{}", stdout(&upgraded), stderr(&upgraded));
    let told: Vec<Value> = stdout(&upgraded).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for proxy in ["paris", "lyon"] {
        let of = |line: &&Value| line["proxy"] == proxy;
        assert_eq!(told.iter().filter(of).filter(|line| line["phase"] == "done").count(), 1, "{proxy}: {told:?}");
        // Followed to its last event, through the swap.
        let ends = told.iter().filter(of).filter(|line| line["event"] == "runEnded");
        assert_eq!(ends.count(), 1, "{proxy}: {told:?}");
        assert_eq!(lab.status(proxy).await["build"], "good.2");
    }
    lab.stop().await;
}

#[tokio::test]
async fn what_cannot_be_is_said_before_anything_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::start(&dir.path().join("lab")).await;
    let good = pack(&lab, &bad_program(dir.path()), "x.1").await;
    let good = good.to_str().unwrap();
    let (code, said) = lab.refused(&["proxy", "upgrade", "--bundle", good]).await;
    assert!(code == 2 && said.contains("--all"), "{said}");
    let (code, said) = lab.refused(&["proxy", "upgrade", "nowhere", "--bundle", good]).await;
    assert!(code == 2 && said.contains("nowhere"), "{said}");
    let (code, said) = lab.refused(&["proxy", "upgrade", "paris", "--bundle", "/nowhere.bundle"]).await;
    assert!(code == 1 && said.contains("/nowhere.bundle"), "{said}");
    let (code, said) = lab.refused(&["proxy", "upgrade", "paris", "--bundle", "http://127.0.0.1:1/x?token=hunter2"]).await;
    assert!(code == 1 && said.contains("cannot download") && !said.contains("hunter2"), "{said}");
    let (code, said) = lab.refused(&["proxy", "upgrade", "paris", "--read-only", "--bundle", good]).await;
    assert!(code == 4, "{said}");
    let (code, said) = lab.refused(&["proxy", "upgrade", "paris", "--bundle", lab.dir.join("lab.json").to_str().unwrap()]).await;
    assert!(code == 4 && said.contains("no upgrade bundle"), "{said}");

    // One that its console can read, and the proxy does not take: another key than the lab's.
    let key = dir.path().join("stranger.key");
    lab.ask(&["bundle", "keygen", key.to_str().unwrap()]).await;
    let foreign = dir.path().join("foreign.bundle");
    let program = bad_program(dir.path());
    let pack_it = [
        "bundle",
        "pack",
        "--program",
        program.to_str().unwrap(),
        "--key",
        key.to_str().unwrap(),
        "--version",
        "9.0.0",
        "--build",
        "b",
        "--output",
        foreign.to_str().unwrap(),
    ];
    let packed = lab.ask(&pack_it).await;
    let (code, said) = lab.refused(&["proxy", "upgrade", "paris", "--bundle", foreign.to_str().unwrap()]).await;
    assert!(code == 4 && said.contains("signed by another key"), "{said}");
    let signer = packed[0]["signer"].as_str().unwrap();
    let shown = lab.run(&["bundle", "show", foreign.to_str().unwrap(), "--trust", signer]).await;
    assert!(shown.status.success() && stdout(&shown).contains("9.0.0"), "{}", stderr(&shown));
    let release = lab.ask(&["bundle", "show", good]).await.remove(0)["signer"].as_str().unwrap().to_owned();
    let (code, said) = lab.refused(&["bundle", "show", foreign.to_str().unwrap(), "--trust", &release]).await;
    assert!(code == 4 && said.contains("signed by another key"), "{said}");
    for proxy in ["paris", "lyon"] {
        let status = lab.status(proxy).await;
        assert_eq!((&status["upgrade"], &status["draining"]), (&Value::Null, &false.into()), "{proxy}");
    }
    assert!(lab.list(&["run", "list"]).await.is_empty());
    use std::os::unix::fs::PermissionsExt;
    for file in [key, lab.dir.join("keys/release.key")] {
        assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    }
    lab.stop().await;
}
