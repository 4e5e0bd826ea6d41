//! The worker as the daemon sees it: a real process at the other end of a real socketpair.
//!
//! The process is this test program itself, asked for the one ignored test, which is nothing but the worker's `main`.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use api::{EventKind, Outcome};
use engine::plan::{BackupPlan, Limits, PoolAccess, RecoverPlan, RemoteAccess, Secret, VmPlan, Work};
use engine::{Plan, WorkerHandle};

const AS_WORKER: [&str; 4] = ["--ignored", "--exact", "the_worker_process", "--nocapture"];

#[test]
#[ignore = "not a test: the process that the others start"]
fn the_worker_process() {
    let _ = engine::worker::main();
}

fn program() -> PathBuf {
    std::env::current_exe().unwrap()
}

fn plan(work: Work) -> Plan {
    Plan { run: "run-1".into(), work, pools: Vec::new(), remotes: Vec::new(), limits: Limits::default() }
}

/// Nothing to recover: a run of two durable events.
fn empty_plan() -> Plan {
    plan(Work::Recover(RecoverPlan { run: "run-0".into(), intents: Vec::new(), proxies: Vec::new(), times: Default::default() }))
}

/// Reads and acknowledges until the worker has gone.
async fn attend(worker: &mut WorkerHandle) -> Vec<EventKind> {
    let (control, mut events) = (worker.control(), Vec::new());
    while let Some(report) = worker.next().await.unwrap() {
        assert_eq!(report.seq, events.len() as u64 + 1);
        if report.durable {
            control.ack(report.seq).await.unwrap();
        }
        events.push(report.event);
    }
    events
}

#[tokio::test]
async fn a_run_is_told_from_its_first_event_to_its_last() {
    let mut worker = engine::spawn(&program(), &AS_WORKER, empty_plan()).await.unwrap();
    let pid = worker.pid();
    let events = attend(&mut worker).await;
    assert_eq!(events.first(), Some(&EventKind::RunStarted { worker: pid }));
    assert!(matches!(events.last(), Some(EventKind::RunEnded { outcome: Outcome::Success, .. })), "{events:?}");
    assert!(worker.wait().await.unwrap().success());
}

#[tokio::test]
async fn a_cancel_ends_a_run_that_waits_for_a_pool() {
    // Connections are accepted by the kernel, and nobody ever answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let backup = BackupPlan {
        job: "0c7f6a52-3a0e-4f0e-9a52-6b0d0c8a1f11".into(),
        job_name: "nightly".into(),
        schedule: "5b1b0d3e-7f0c-4a4e-8f39-2f2f4c6d9e01".into(),
        mode: api::JobMode::Delta,
        vms: vec![VmPlan { pool: "p".into(), uuid: "d3b0a7c4-5e6f-4a1b-9c2d-0e1f2a3b4c5d".into(), name: "web".into() }],
        remotes: vec!["r".into()],
        retention: 1,
        compression: api::Compression::None,
        prefer_nbd: true,
        concurrency: 1,
        full_interval: 0,
        max_bytes_per_second: 0,
    };
    let directory = tempfile::tempdir().unwrap();
    let plan = Plan {
        pools: vec![PoolAccess {
            id: "p".into(),
            name: "silent".into(),
            url: format!("https://{}", silent.local_addr().unwrap()),
            username: "root".into(),
            password: Secret::new("secret"),
            fingerprint: "00".repeat(32),
        }],
        remotes: vec![RemoteAccess {
            away: None,
            id: "r".into(),
            name: "local".into(),
            url: Secret::new(format!("file://{}", directory.path().display())),
        }],
        ..plan(Work::Backup(backup))
    };
    let mut worker = engine::spawn(&program(), &AS_WORKER, plan).await.unwrap();
    let first = worker.next().await.unwrap().unwrap();
    assert!(first.durable);
    let control = worker.control();
    control.cancel().await.unwrap();
    control.ack(first.seq).await.unwrap();
    let mut last = first;
    while let Some(report) = worker.next().await.unwrap() {
        if report.durable {
            control.ack(report.seq).await.unwrap();
        }
        last = report;
    }
    assert!(matches!(last.event, EventKind::RunEnded { outcome: Outcome::Cancelled, .. }), "{last:?}");
    assert!(worker.wait().await.unwrap().success());
}

#[tokio::test]
async fn a_program_that_does_not_exist_is_named() {
    let Err(error) = engine::spawn(&PathBuf::from("/nonexistent/backhauld"), &AS_WORKER, empty_plan()).await else {
        panic!("started")
    };
    assert!(error.to_string().contains("/nonexistent/backhauld"));
}

/// A worker with its socket in our hands.
fn raw_worker() -> (std::process::Child, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut command = Command::new(program());
    command.args(AS_WORKER).stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().unwrap();
    drop(command);
    (child, ours)
}

#[test]
fn a_worker_whose_daemon_goes_away_ends_at_once() {
    let (mut child, mut socket) = raw_worker();
    let line = serde_json::json!({ "plan": empty_plan() });
    writeln!(socket, "{line}").unwrap();
    let mut first = String::new();
    BufReader::new(socket.try_clone().unwrap()).read_line(&mut first).unwrap();
    assert!(first.contains("runStarted"));
    // It waits for the acknowledgement of its first event, for ever.
    drop(socket);
    assert_eq!(child.wait().unwrap().code(), Some(3));
}

#[test]
fn a_worker_without_plan_does_nothing() {
    for line in ["{\"cancel\":true}\n", "garbage\n", ""] {
        let (mut child, mut socket) = raw_worker();
        socket.write_all(line.as_bytes()).unwrap();
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        // A worker that leaves our line unread resets the connection instead of closing it.
        let _ = BufReader::new(socket).read_line(&mut answer);
        assert_eq!(answer, "");
        child.wait().unwrap();
    }
}

#[test]
fn the_command_line_shows_nothing_of_the_plan() {
    let (mut child, socket) = raw_worker();
    let shown = std::fs::read(format!("/proc/{}/cmdline", child.id())).unwrap_or_default();
    assert!(!String::from_utf8_lossy(&shown).contains("plan"));
    drop(socket);
    child.wait().unwrap();
}
