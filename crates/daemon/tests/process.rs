//! The real binary: start, refusals, signals, and honesty after a kill.

mod common;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use api::*;
use common::config_text;
use common::process::{command, spawn, write_config};
use daemon::clock::SystemClock;
use daemon::journal::Journal;
use daemon::store::{NewRun, Store};
use rustix::process::Signal;

#[tokio::test(flavor = "multi_thread")]
async fn it_stops_when_asked_and_keeps_its_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = spawn(dir.path());
    assert_eq!(first.client.call::<SystemGetServerVersion>(NoParams {}).await, env!("CARGO_PKG_VERSION"));
    let status = first.client.call::<ProxyStatusGet>(NoParams {}).await;
    assert!(first.signal(Signal::TERM).success());
    let mut again = spawn(dir.path());
    assert_eq!(again.client.call::<ProxyStatusGet>(NoParams {}).await.fingerprint, status.fingerprint);
    assert!(again.signal(Signal::INT).success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_the_same_state_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = spawn(dir.path());
    let second = command(dir.path()).output().unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(said.contains(&format!("process {}", first.child.id())), "{said}");
    assert!(first.signal(Signal::TERM).success());
}

#[test]
fn a_broken_configuration_is_told_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let check = |text: &str| {
        let mut command = command(dir.path());
        std::fs::write(dir.path().join("backhauld.toml"), text).unwrap();
        command.arg("--check-config").output().unwrap()
    };
    assert!(check(&config_text(dir.path())).status.success());
    let broken = check(&format!("{}retention = 3\n", config_text(dir.path())));
    let said = String::from_utf8(broken.stderr).unwrap();
    assert!(!broken.status.success() && said.contains("backhauld.toml:6:1: unknown field `retention`"), "{said}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let text = config_text(dir.path()).replace("127.0.0.1:0", &taken.local_addr().unwrap().to_string());
    let mut command = command(dir.path());
    std::fs::write(dir.path().join("backhauld.toml"), text).unwrap();
    let said = String::from_utf8(command.output().unwrap().stderr).unwrap();
    assert!(said.contains("cannot listen on 127.0.0.1:"), "{said}");
}

#[test]
fn without_a_token_it_makes_one_and_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let text: String = config_text(dir.path()).lines().filter(|line| !line.starts_with("token")).collect::<Vec<_>>().join("\n");
    let file = dir.path().join("state/token");
    let mut tokens = Vec::new();
    for _ in 0..2 {
        let mut command = command(dir.path());
        write_config(dir.path(), &text);
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(ready["tokenFile"], file.to_str().unwrap());
        tokens.push(std::fs::read_to_string(&file).unwrap());
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).unwrap();
        assert!(child.wait().unwrap().success());
    }
    assert!(tokens[0] == tokens[1] && tokens[0].trim_end().len() == 64);
}

fn started(task: u32, kind: TaskKind) -> EventKind {
    EventKind::TaskStarted { task, parent: None, kind, label: "web".into(), object: None }
}

/// Writes the journal of a run that stops in the middle, as a killed daemon leaves it.
async fn leave_open(dir: &Path, id: &str, kinds: Vec<EventKind>) {
    let store = Arc::new(Store::open(&dir.join("state")).await.unwrap());
    let journal = Journal::open(Arc::clone(&store), Arc::new(SystemClock), Arc::default()).await.unwrap();
    let run = NewRun { id: id.into(), kind: RunKind::Backup, job: None, label: "nightly".into(), recovers: None };
    journal.create(run).await.unwrap();
    for kind in kinds {
        journal.append(id, kind).await.unwrap();
    }
    journal.close().await;
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_found_without_an_end_gets_an_honest_one() {
    let dir = tempfile::tempdir().unwrap();
    let meter = TransferMeter {
        phase: Phase::Transferring,
        bytes_done: 3 << 30,
        bytes_total: Some(12 << 30),
        ..TransferMeter::default()
    };
    let journal = vec![
        EventKind::RunStarted { worker: 1 },
        started(1, TaskKind::Vm),
        started(2, TaskKind::Disk),
        EventKind::TaskProgress { task: 2, meter },
    ];
    leave_open(dir.path(), "killed", journal).await;

    let mut daemon = spawn(dir.path());
    let detail = daemon.client.call::<RunGet>(IdParams { id: "killed".into() }).await;
    assert_eq!(detail.run.outcome, Some(Outcome::Interrupted));
    let message = detail.run.error.unwrap().message;
    assert_eq!(message, "interrupted while transferring, 3.0 GiB of 12.0 GiB: the daemon went away under it");
    assert!(detail.tasks.iter().all(|task| task.outcome == Some(Outcome::Interrupted)));
    assert_eq!(daemon.client.call::<ProxyStatusGet>(NoParams {}).await.running, []);
    let events = daemon.client.events("killed", 0).await;
    assert_eq!(events.iter().map(|event| event.cursor).collect::<Vec<_>>(), (1..=9).collect::<Vec<u64>>());
    assert!(daemon.signal(Signal::TERM).success());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_run_announced_is_given_to_a_recover_run() {
    let dir = tempfile::tempdir().unwrap();
    let intent = Intent::XapiTask { pool: "gone".into(), task: "OpaqueRef:1".into() };
    leave_open(dir.path(), "killed", vec![EventKind::Intent { intent: 1, what: intent }]).await;
    let mut daemon = spawn(dir.path());
    let runs = daemon.client.call::<RunList>(RunListParams::default()).await;
    let recovery = runs.iter().find(|run| run.kind == RunKind::Recover).unwrap();
    assert_eq!(recovery.label, "after run killed");
    // Killed again in the middle of it, any number of times: never two at once, never one left running.
    for _ in 0..3 {
        daemon.signal(Signal::KILL);
        daemon = spawn(dir.path());
        let runs = daemon.client.call::<RunList>(RunListParams::default()).await;
        assert!(runs.iter().filter(|run| run.kind == RunKind::Recover && run.outcome.is_none()).count() <= 1);
        assert!(runs.iter().filter(|run| run.kind == RunKind::Backup).all(|run| run.outcome.is_some()));
    }
    assert!(daemon.signal(Signal::TERM).success());
}
