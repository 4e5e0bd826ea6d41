//! The launcher and its daemon as real processes: good programs and bad ones, and a launcher killed at every stage.

mod common;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, LazyLock, mpsc};
use std::time::{Duration, Instant};

use api::*;
use common::process::write_config;
use common::{Client, TOKEN, config_text};
use daemon::clock::SystemClock;
use daemon::journal::Journal;
use daemon::store::{NewRun, RemoteRecord, Store};
use daemon::upgrade::{Expected, Pending, ProgramInfo, Programs, Stage};
use engine::plan::Secret;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use sha2::{Digest, Sha256};
use signed::{Build, SecretKey, pack_bundle_at};

/// For what takes a second; a machine under load takes a hundred.
const PATIENCE: Duration = Duration::from_secs(180);

static KEY: LazyLock<SecretKey> = LazyLock::new(|| SecretKey::generate().unwrap());

fn build(name: &str) -> Build {
    Build { version: "0.1.0".into(), channel: "testing".into(), build: name.into(), arch: std::env::consts::ARCH.into() }
}

fn good_program() -> Vec<u8> {
    std::fs::read(env!("CARGO_BIN_EXE_backhauld")).unwrap()
}

fn bundle_of(program: &[u8], name: &str) -> Vec<u8> {
    pack_bundle_at(1, program, &build(name), &KEY).unwrap()
}

/// A bundle of a program that does what a shell says.
fn scripted(name: &str, script: &str) -> Vec<u8> {
    bundle_of(format!("#!/bin/sh\n{script}\n").as_bytes(), name)
}

/// A launcher with its daemon.
struct Launched {
    child: Child,
    lines: mpsc::Receiver<String>,
    client: Client,
    dir: PathBuf,
}

fn launch_with(dir: &Path, upgrade: &str) -> Launched {
    write_config(dir, &format!("{}{upgrade}", config_text(dir)));
    let mut command = Command::new(env!("CARGO_BIN_EXE_backhauld"));
    command.args(["launch", "--config"]).arg(dir.join("backhauld.toml"));
    launched(command, dir)
}

fn launched(mut command: Command, dir: &Path) -> Launched {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::from(std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap()))
        .spawn()
        .unwrap();
    let (send, lines) = mpsc::channel();
    let stdout = child.stdout.take().unwrap();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = send.send(line);
        }
    });
    let client = next_client(&lines, dir);
    Launched { child, lines, client, dir: dir.to_owned() }
}

fn launch(dir: &Path, probation: u32) -> Launched {
    launch_with(dir, &format!("[upgrade]\nkeys = [\"{}\"]\nprobation_seconds = {probation}\n", KEY.public()))
}

fn next_client(lines: &mpsc::Receiver<String>, dir: &Path) -> Client {
    let log = || std::fs::read_to_string(dir.join("log")).unwrap_or_default();
    let line = lines.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("no daemon gets ready ({error}): {}", log()));
    let ready: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
    Client::new(ready["address"].as_str().unwrap(), ready["fingerprint"].as_str().unwrap().parse().unwrap())
}

impl Launched {
    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap()).unwrap()
    }

    fn signal(&mut self, signal: Signal) -> ExitStatus {
        kill_process(self.pid(), signal).unwrap();
        self.child.wait().unwrap()
    }

    fn programs(&self) -> Programs {
        Programs::below(&self.dir.join("state"))
    }

    /// Sends a bundle and begins.
    async fn upgrade(&self, bundle: &[u8]) -> Result<UpgradeState, RpcError> {
        self.client.try_call::<UpgradeStart>(self.sent(bundle).await).await
    }

    async fn sent(&self, bundle: &[u8]) -> UpgradeParams {
        let response = self.client.authenticated(BUNDLE_PATH).body(bundle.to_vec()).send().await.unwrap();
        assert_eq!(response.status(), 200);
        let received: Received = response.json().await.unwrap();
        let sum: String = Sha256::digest(bundle).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(received, Received { bundle: sum.clone(), bytes: bundle.len() as u64 });
        UpgradeParams { bundle: sum, wait_seconds: Some(60), downgrade: false }
    }

    /// Sends what is not taken; with what status, and why.
    async fn refused(&self, body: impl Into<reqwest::Body>) -> (u16, ErrorReport) {
        let response = self.client.authenticated(BUNDLE_PATH).body(body).send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    }

    /// What lies in the folder of received bundles.
    fn received(&self) -> Vec<String> {
        // As the launcher sees it: it may have mounts of its own.
        let root = PathBuf::from(format!("/proc/{}/root", self.child.id()));
        let folder = self.dir.join("state/programs/received");
        let entries = std::fs::read_dir(root.join(folder.strip_prefix("/").unwrap()));
        entries.into_iter().flatten().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    async fn status(&self) -> ProxyStatus {
        self.client.call::<ProxyStatusGet>(NoParams {}).await
    }

    /// The daemon that stays once all is over.
    async fn settled(&mut self) -> ProxyStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // A new line is a new daemon at a new address.
            if let Ok(line) = self.lines.try_recv() {
                let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
                self.client =
                    Client::new(ready["address"].as_str().unwrap(), ready["fingerprint"].as_str().unwrap().parse().unwrap());
            }
            let body = serde_json::to_vec(&RpcRequest::new("proxy.status", serde_json::json!({}))).unwrap();
            if let Ok(response) = self.client.authenticated("/api/v1").body(body).send().await
                && let Ok(mut answer) = response.json::<serde_json::Value>().await
                && let Ok(status) = serde_json::from_value::<ProxyStatus>(answer["result"].take())
                && let Some(upgrade) = &status.upgrade
                && !matches!(upgrade.phase, UpgradePhase::Draining | UpgradePhase::Swapping)
            {
                return status;
            }
            let log = || std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "the upgrade does not come to its end: {}", log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The newest upgrade in the history.
    async fn history(&self) -> RunDetail {
        let runs = self.client.call::<RunList>(RunListParams::default()).await;
        let run = runs.iter().find(|run| run.kind == RunKind::Upgrade).expect("an upgrade in the history");
        self.client.call::<RunGet>(IdParams { id: run.id.clone() }).await
    }

    async fn remotes(&self) -> Vec<String> {
        self.client.call::<RemoteList>(NoParams {}).await.into_iter().map(|remote| remote.name).collect()
    }

    async fn add_remote(&self, name: &str) {
        let path = self.dir.join(name);
        std::fs::create_dir_all(&path).unwrap();
        self.client.call::<RemoteAdd>(RemoteAddParams { name: name.into(), url: format!("file://{}", path.display()) }).await;
    }

    fn stop(mut self) {
        assert!(self.signal(Signal::TERM).success());
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn folders(programs: &Programs) -> usize {
    let entries = std::fs::read_dir(programs.dir()).unwrap().flatten();
    entries.filter(|entry| entry.path().join("backhauld").is_file()).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_program_takes_the_place_of_the_one_before_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mut proxy = launch(dir.path(), 60);
    proxy.add_remote("nas").await;
    let before = proxy.status().await;
    assert_eq!((before.build, before.channel, before.upgrade), (None, None, None));
    let begun = proxy.upgrade(&bundle_of(&good_program(), "lab.2")).await.unwrap();
    assert_eq!((begun.phase, begun.from.as_str(), begun.to.as_str()), (UpgradePhase::Draining, "0.1.0", "0.1.0 (lab.2)"));
    let after = proxy.settled().await;
    let upgrade = after.upgrade.unwrap();
    assert_eq!((upgrade.phase, upgrade.error), (UpgradePhase::Done, None));
    assert_eq!((after.build.as_deref(), after.channel.as_deref()), (Some("lab.2"), Some("testing")));
    assert_eq!((&after.id, &after.fingerprint), (&before.id, &before.fingerprint));
    assert!(!after.draining && after.running.is_empty());
    assert_eq!(proxy.remotes().await, ["nas"]);
    let run = proxy.history().await;
    assert_eq!((run.run.outcome, run.tasks.len()), (Some(Outcome::Success), 3));
    assert!(run.tasks.iter().all(|task| task.outcome == Some(Outcome::Success) && task.kind == TaskKind::Step), "{run:?}");
    assert!(run.log.iter().any(|line| line.message.contains("1 remotes")), "{:?}", run.log);
    // What is changed from now on stays.
    proxy.add_remote("second").await;

    // Two more: the current program and the one before it are kept.
    for name in ["lab.3", "lab.4"] {
        proxy.upgrade(&bundle_of(&good_program(), name)).await.unwrap();
        assert_eq!(proxy.settled().await.build.as_deref(), Some(name));
    }
    assert_eq!(folders(&proxy.programs()), 2);
    proxy.stop();
    let again = launch(dir.path(), 60);
    assert_eq!(again.status().await.build.as_deref(), Some("lab.4"));
    assert_eq!(again.status().await.upgrade.unwrap().phase, UpgradePhase::Done);
    assert_eq!(again.remotes().await, ["nas", "second"]);
    again.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_program_is_taken_back_with_the_state_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut proxy = launch(dir.path(), 6);
    proxy.add_remote("nas").await;
    let (before, state) = (proxy.status().await, dir.path().join("state"));
    let real = env!("CARGO_BIN_EXE_backhauld");
    let lie = format!(
        "echo '{{\"ready\":true,\"address\":\"127.0.0.1:1\",\"fingerprint\":\"{}\"}}'; exec sleep 1000",
        before.fingerprint
    );
    let bad = [
        (
            "exits",
            format!("echo 'the token is {TOKEN}, smb://me:hunter2@nas' >&2; echo broken >&2; exit 3"),
            "it ended with status 3",
        ),
        ("hangs", "exec sleep 1000".to_owned(), "not ready and checked within 6 s"),
        (
            "spoils",
            format!("echo spoilt > '{0}/state.db'; echo spoilt > '{0}/state.db-wal'; rm '{0}/token'; exit 1", state.display()),
            "status 1",
        ),
        ("lies", lie, "cannot reach the proxy at 127.0.0.1:1"),
        ("forgets", format!("rm -f '{}'/state.db*; exec '{real}' \"$@\"", state.display()), "does not accept the token"),
        ("is no program", String::new(), ""),
    ];
    for (name, script, expected) in bad {
        let bundle = match script.is_empty() {
            true => bundle_of(b"\x7fELF, but not really", "no-program"),
            false => scripted(&name.replace(' ', "-"), &script),
        };
        // A token of its own is made only where none is configured; this one is a file like any other.
        std::fs::write(state.join("token"), "x").unwrap();
        proxy.upgrade(&bundle).await.unwrap();
        let after = proxy.settled().await;
        let upgrade = after.upgrade.unwrap();
        let error = upgrade.error.unwrap();
        assert_eq!(upgrade.phase, UpgradePhase::RolledBack, "{name}: {error:?}");
        assert!(error.message.contains(expected), "{name}: {error:?}");
        assert_eq!((&after.build, &after.id, &after.fingerprint), (&before.build, &before.id, &before.fingerprint), "{name}");
        assert!(!after.draining, "{name}");
        assert_eq!(proxy.remotes().await, ["nas"], "{name}");
        assert_eq!(std::fs::read_to_string(state.join("token")).unwrap(), "x", "{name}");
        assert_eq!(folders(&proxy.programs()), 0, "{name}");
        assert!(!proxy.programs().before().exists(), "{name}");
        let run = proxy.history().await;
        assert_eq!(run.run.outcome, Some(Outcome::Failure), "{name}");
        assert_eq!(run.run.error.as_ref().map(|error| &error.message), Some(&error.message), "{name}");
        if name == "exits" {
            let said = error.causes.join("\n");
            assert!(said.contains("broken") && said.contains("smb://[redacted: account]@nas"), "{said}");
            assert!(!said.contains(TOKEN) && !said.contains("hunter2"), "{said}");
        }
    }
    // None of it is started ever again.
    proxy.stop();
    let again = launch(dir.path(), 6);
    assert_eq!(again.status().await.upgrade.unwrap().phase, UpgradePhase::RolledBack);
    again.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_touches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let proxy = launch(dir.path(), 6);
    let good = bundle_of(b"program", "lab.2");
    let stranger = SecretKey::generate().unwrap();
    let other_arch = Build { arch: "vax".into(), ..build("lab.2") };
    let older = Build { version: "0.0.9".into(), ..build("lab.2") };
    let with = |at: usize, by: u8| {
        let mut bytes = good.clone();
        bytes[at] ^= by;
        bytes
    };
    let text = String::from_utf8_lossy(&good).into_owned();
    let manifest_end = text.find("-----END").unwrap();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("other key", pack_bundle_at(1, b"program", &build("lab.2"), &stranger).unwrap(), "signed by another key"),
        ("other arch", pack_bundle_at(1, b"program", &other_arch, &KEY).unwrap(), "is for vax"),
        ("older", pack_bundle_at(1, b"program", &older, &KEY).unwrap(), "older than"),
        ("truncated", good[..good.len() - 1].to_vec(), "cut off"),
        ("truncated manifest", good[..manifest_end].to_vec(), "cut off"),
        ("longer", [good.as_slice(), b"x"].concat(), "goes on after its end"),
        ("tampered payload", with(good.len() - 3, 1), "SHA-256"),
        ("tampered manifest", text.replacen("lab.2", "lab.3", 1).into_bytes(), "changed after it was signed"),
        ("no bundle", b"hello".to_vec(), "no upgrade bundle"),
        ("empty", Vec::new(), "no upgrade bundle"),
    ];
    for (what, bundle, expected) in cases {
        let refused = proxy.upgrade(&bundle).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::ForbiddenOperation.number(), "{what}: {refused:?}");
        assert!(refused.message.contains(expected), "{what}: {refused:?}");
    }
    let params = |bundle: &str| UpgradeParams { bundle: bundle.into(), wait_seconds: None, downgrade: false };
    let unsent = proxy.client.try_call::<UpgradeStart>(params(&"0".repeat(64))).await.unwrap_err();
    assert_eq!(unsent.code, ErrorCode::NoSuchObject.number());
    for odd in ["../../token", "", "AB"] {
        let refused = proxy.client.try_call::<UpgradeStart>(params(odd)).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::InvalidParameters.number(), "{odd:?}");
    }
    let stranger = proxy.client.request(reqwest::Method::POST, BUNDLE_PATH).body("x").send().await.unwrap();
    assert_eq!(stranger.status(), 401);

    assert_eq!(proxy.client.call::<RunList>(RunListParams::default()).await, []);
    let status = proxy.status().await;
    assert!(status.upgrade.is_none() && !status.draining);
    assert!(proxy.programs().pending().unwrap().is_none() && folders(&proxy.programs()) == 0);
    proxy.stop();

    // Without a key nobody's bundle is taken, and without a launcher nobody's either; both say what to do, and neither is
    // written anywhere. One of some size: whoever is still sending it is to read the answer.
    let large = vec![0; 8 << 20];
    let proxy = launch_with(dir.path(), "");
    let refused = proxy.refused(large.clone()).await;
    assert!(refused.0 == 403 && refused.1.message.contains("[upgrade] keys"), "{refused:?}");
    let refused = proxy.client.try_call::<UpgradeStart>(params(&"0".repeat(64))).await.unwrap_err();
    assert!(refused.message.contains("[upgrade] keys"), "{refused:?}");
    proxy.stop();
    let daemon = common::process::spawn(dir.path());
    let refused = daemon.client.authenticated(BUNDLE_PATH).body(large).send().await.unwrap();
    assert_eq!(refused.status(), 403);
    assert!(!dir.path().join("state/programs/received").exists());
    let refused = daemon.client.try_call::<UpgradeStart>(params(&"0".repeat(64))).await.unwrap_err();
    assert!(refused.message.contains("backhauld launch"), "{refused:?}");
    daemon.stop();
}

/// Connects as somebody who says how long a bundle is, sends less, and goes.
async fn send_a_part(client: &Client, length: usize, part: usize) {
    use tokio::io::AsyncWriteExt;
    let address = client.base.strip_prefix("https://").unwrap();
    let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let (trust, _) = tls::Trust::first_use();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls::client_config(trust)));
    let mut stream = connector.connect("localhost".try_into().unwrap(), tcp).await.unwrap();
    let head =
        format!("POST {BUNDLE_PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![0; part]).await.unwrap();
    stream.flush().await.unwrap();
    stream.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_arrive_and_what_is_never_started_leaves_nothing_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let proxy = launch(dir.path(), 6);
    let log = || std::fs::read_to_string(dir.path().join("log")).unwrap();
    send_a_part(&proxy.client, 100 << 20, 1 << 20).await;
    let deadline = Instant::now() + PATIENCE;
    while !log().contains("not sent to its end") || !proxy.received().is_empty() {
        assert!(Instant::now() < deadline, "{:?} stays: {}", proxy.received(), log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let sent = proxy.sent(&bundle_of(b"program", "lab.2")).await;
    assert_eq!(proxy.received(), std::slice::from_ref(&sent.bundle));
    proxy.stop();
    let again = launch(dir.path(), 6);
    assert!(again.received().is_empty(), "{:?}", again.received());
    let gone = again.client.try_call::<UpgradeStart>(sent).await.unwrap_err();
    assert_eq!(gone.code, ErrorCode::NoSuchObject.number());
    again.stop();
}

/// The state on a file system of 96 MiB, in a mount namespace of the launcher's own.
#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_never_fills_the_disk_of_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("state")).unwrap();
    let keys = format!("[upgrade]\nkeys = [\"{}\"]\n", KEY.public());
    write_config(dir.path(), &format!("{}{keys}", config_text(dir.path())));
    let script = "mount -t tmpfs -o size=96m,mode=700 tmpfs \"$1/state\" && exec \"$2\" launch --config \"$1/backhauld.toml\"";
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", script, "sh"]);
    command.args([dir.path().as_os_str(), env!("CARGO_BIN_EXE_backhauld").as_ref()]);
    let proxy = launched(command, dir.path());
    let (status, report) = proxy.refused(vec![0; 48 << 20]).await;
    assert!(status == 507 && report.message.contains("112.0 MiB") && report.message.contains("are free"), "{report:?}");
    // Without its length it is seen on the way, and what was written goes.
    let pieces = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(vec![0; 1 << 20]));
    let (status, report) = proxy.refused(reqwest::Body::wrap_stream(futures::StreamExt::take(pieces, 48))).await;
    assert!(status == 507 && report.message.contains("64.0 MiB") && report.message.contains("are free"), "{report:?}");
    let small = proxy.sent(&bundle_of(b"program", "lab.2")).await;
    assert_eq!(proxy.received(), [small.bundle], "there is room as before");
    proxy.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_launcher_ends_as_its_daemon_does_and_takes_it_along() {
    let dir = tempfile::tempdir().unwrap();
    let mut proxy = launch(dir.path(), 6);
    let second = Command::new(env!("CARGO_BIN_EXE_backhauld"))
        .args(["launch", "--config"])
        .arg(dir.path().join("backhauld.toml"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains("another launcher"), "{said}");
    let daemon = daemon_pid(dir.path());
    kill_process(daemon, Signal::KILL).unwrap();
    assert_eq!(proxy.child.wait().unwrap().code(), Some(137));
    let mut proxy = launch(dir.path(), 6);
    let daemon = daemon_pid(dir.path());
    proxy.signal(Signal::KILL);
    gone(daemon).await;
    let mut proxy = launch(dir.path(), 6);
    assert!(proxy.signal(Signal::INT).success());
    // What is wrong with a configuration is said by the daemon, with its place.
    write_config(dir.path(), "state_dir = 5\n");
    let broken = Command::new(env!("CARGO_BIN_EXE_backhauld"))
        .args(["launch", "--config"])
        .arg(dir.path().join("backhauld.toml"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&broken.stderr).into_owned();
    assert!(broken.status.code() == Some(1) && said.contains("backhauld.toml:1:13"), "{said}");
}

/// The daemon of a state, as it wrote itself into the lock file.
fn daemon_pid(dir: &Path) -> Pid {
    let text = std::fs::read_to_string(dir.join("state/lock")).unwrap();
    Pid::from_raw(text.trim().parse().unwrap()).unwrap()
}

async fn gone(pid: Pid) {
    let deadline = Instant::now() + PATIENCE;
    while test_kill_process(pid).is_ok() {
        assert!(Instant::now() < deadline, "process {pid:?} outlives its launcher");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until an upgrade has come to a stage, or further.
async fn at_stage(programs: &Programs, wanted: &[Stage]) {
    let deadline = Instant::now() + PATIENCE;
    while !programs.pending().unwrap().is_some_and(|pending| wanted.contains(&pending.stage)) {
        assert!(Instant::now() < deadline, "the upgrade never comes to {wanted:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launcher_killed_with_a_program_on_probation_takes_it_along_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut proxy = launch(dir.path(), 600);
    proxy.add_remote("nas").await;
    let mark = dir.path().join("pid");
    let spoil =
        format!("echo spoilt > '{}/state/state.db'; echo $$ > '{}'; exec sleep 1000", dir.path().display(), mark.display());
    proxy.upgrade(&scripted("hangs", &spoil)).await.unwrap();
    at_stage(&proxy.programs(), &[Stage::Probation]).await;
    let deadline = Instant::now() + PATIENCE;
    let pid = loop {
        let text = std::fs::read_to_string(&mark).unwrap_or_default();
        if let Some(pid) = text.trim().parse().ok().and_then(Pid::from_raw) {
            break pid;
        }
        assert!(Instant::now() < deadline, "the program never starts");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    proxy.signal(Signal::KILL);
    gone(pid).await;
    let mut proxy = launch(dir.path(), 600);
    let after = proxy.settled().await;
    let upgrade = after.upgrade.unwrap();
    assert_eq!(upgrade.phase, UpgradePhase::RolledBack);
    assert!(upgrade.error.unwrap().message.contains("on probation"));
    assert_eq!(proxy.remotes().await, ["nas"]);
    assert_eq!(proxy.history().await.run.outcome, Some(Outcome::Failure));
    proxy.stop();
}

/// Stages as a killed launcher leaves them, with what is on the disk at that time.
#[derive(Debug, Clone, Copy)]
enum Left {
    Draining,
    Swap,
    SwapWithHalfACopy,
    Copied,
    Probation,
    Restoring,
    Restored,
    Passed,
    PassedAndCurrent,
    PassedAndTold,
}

/// Makes a state that a launcher was killed on.
async fn leave(dir: &Path, left: Left, id: &str, fingerprint: &str, remotes: Vec<String>) {
    let state = dir.join("state");
    let programs = Programs::below(&state);
    let store = Arc::new(Store::open(&state).await.unwrap());
    let journal = Journal::open(Arc::clone(&store), Arc::new(SystemClock), Arc::default()).await.unwrap();
    let run = NewRun { id: "upgrade1".into(), kind: RunKind::Upgrade, job: None, label: "u".into(), recovers: None };
    journal.create(run).await.unwrap();
    let step = EventKind::TaskStarted { task: 3, parent: None, kind: TaskKind::Step, label: "swap".into(), object: None };
    journal.append("upgrade1", step).await.unwrap();
    journal.close().await;
    store.close().await;
    drop(store);

    let info = ProgramInfo {
        channel: Some("testing".into()),
        build: Some("lab.9".into()),
        sha256: Some("ab".repeat(32)),
        ..ProgramInfo::own()
    };
    let program = programs.keep(&info, &good_program()).unwrap();
    let stage = match left {
        Left::Draining => Stage::Draining,
        Left::Swap | Left::SwapWithHalfACopy => Stage::Swap,
        Left::Copied => Stage::Copied,
        Left::Probation => Stage::Probation,
        Left::Restoring | Left::Restored => Stage::Restoring,
        Left::Passed | Left::PassedAndCurrent | Left::PassedAndTold => Stage::Passed,
    };
    let expected = Expected {
        token: Secret::new(TOKEN),
        id: id.into(),
        fingerprint: fingerprint.into(),
        pools: vec![],
        remotes,
        jobs: vec![],
    };
    let error = matches!(stage, Stage::Restoring).then(|| ErrorReport::new("UPGRADE_ROLLED_BACK", "it ended with status 3"));
    let pending = Pending {
        stage,
        run: "upgrade1".into(),
        program: program.clone(),
        former: None,
        from: "0.1.0".into(),
        to: "0.1.0 (lab.9)".into(),
        expected: Some(expected),
        error: error.clone(),
        notes: vec!["noted".into()],
    };
    let copy = |to: &Path| {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(&state).unwrap().flatten().filter(|entry| entry.path().is_file()) {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    };
    match left {
        Left::Draining | Left::Swap => {}
        Left::SwapWithHalfACopy => {
            let half = programs.before().with_added_extension("new");
            std::fs::create_dir_all(&half).unwrap();
            std::fs::write(half.join("state.db"), "half").unwrap();
        }
        Left::Copied | Left::Passed => copy(&programs.before()),
        Left::PassedAndCurrent => {
            copy(&programs.before());
            programs.set_current(Some(&program)).unwrap();
        }
        Left::PassedAndTold => {
            programs.set_current(Some(&program)).unwrap();
            programs.conclude(&pending, UpgradePhase::Done, None, 5).unwrap();
        }
        Left::Probation | Left::Restoring => {
            copy(&programs.before());
            for file in ["state.db", "state.db-wal"] {
                std::fs::write(state.join(file), "spoilt").unwrap();
            }
        }
        // The state is back, the outcome told, and all but the note of the upgrade gone.
        Left::Restored => {
            programs.conclude(&pending, UpgradePhase::RolledBack, error, 5).unwrap();
        }
    }
    programs.set_pending(&pending).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launcher_killed_at_any_stage_goes_on_or_back() {
    use UpgradePhase::{Done, Failed, RolledBack};
    let cases = [
        (Left::Draining, Failed),
        (Left::Swap, Done),
        (Left::SwapWithHalfACopy, Done),
        (Left::Copied, Done),
        (Left::Probation, RolledBack),
        (Left::Restoring, RolledBack),
        (Left::Restored, RolledBack),
        (Left::Passed, Done),
        (Left::PassedAndCurrent, Done),
        (Left::PassedAndTold, Done),
    ];
    for (left, phase) in cases {
        let dir = tempfile::tempdir().unwrap();
        let proxy = launch(dir.path(), 60);
        proxy.add_remote("nas").await;
        let before = proxy.status().await;
        let remotes = proxy.client.call::<RemoteList>(NoParams {}).await.into_iter().map(|remote| remote.id).collect();
        proxy.stop();
        leave(dir.path(), left, &before.id, &before.fingerprint, remotes).await;
        if !matches!(left, Left::Draining) {
            // Started by hand, a daemon leaves a half-done swap alone.
            let by_hand = common::process::command(dir.path()).output().unwrap();
            let said = String::from_utf8_lossy(&by_hand.stderr).into_owned();
            assert!(!by_hand.status.success() && said.contains("backhauld launch"), "{left:?}: {said}");
        }
        let mut proxy = launch(dir.path(), 60);
        let after = proxy.settled().await;
        let upgrade = after.upgrade.unwrap();
        assert_eq!(upgrade.phase, phase, "{left:?}: {upgrade:?}");
        assert_eq!(after.build.as_deref(), (phase == Done).then_some("lab.9"), "{left:?}");
        assert_eq!(proxy.remotes().await, ["nas"], "{left:?}");
        let programs = proxy.programs();
        assert!(programs.pending().unwrap().is_none() && programs.outcome().unwrap().is_none(), "{left:?}");
        assert!(!programs.before().exists(), "{left:?}");
        assert_eq!(folders(&programs), usize::from(phase == Done), "{left:?}");
        let run = proxy.history().await;
        let outcome = if phase == Done { Outcome::Success } else { Outcome::Failure };
        assert_eq!((run.run.outcome, run.tasks[0].outcome), (Some(outcome), Some(outcome)), "{left:?}");
        assert!(!after.draining && after.running.is_empty(), "{left:?}");
        // And it stays so.
        proxy.stop();
        let again = launch(dir.path(), 60);
        assert_eq!(again.status().await.upgrade.unwrap(), upgrade, "{left:?}");
        again.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_changed_while_a_program_is_on_probation() {
    let dir = tempfile::tempdir().unwrap();
    let mut proxy = launch(dir.path(), 240);
    proxy.upgrade(&bundle_of(&good_program(), "lab.2")).await.unwrap();
    // The line of the new program comes when its probation begins, which lasts for seconds.
    let on_probation = next_client(&proxy.lines, dir.path());
    let add = RemoteAddParams { name: "nas".into(), url: format!("file://{}", dir.path().display()) };
    let refused = on_probation.try_call::<RemoteAdd>(add.clone()).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::ForbiddenOperation.number());
    assert!(refused.message.contains("swapping programs"), "{refused:?}");
    assert!(on_probation.call::<ProxyStatusGet>(NoParams {}).await.draining);
    proxy.client = on_probation;
    assert_eq!(proxy.settled().await.upgrade.unwrap().phase, UpgradePhase::Done);
    proxy.client.call::<RemoteAdd>(add).await;
    proxy.stop();
}

fn job(id: &str) -> Job {
    let spec = serde_json::json!({ "name": "nightly", "mode": "delta", "vms": ["nowhere"], "remotes": ["remote-1"] });
    let spec = serde_json::from_value(spec).unwrap();
    Job { id: id.into(), schedule_id: "s".into(), spec, last_run: None, next_runs: Vec::new() }
}

/// Keeps that job, and the remote it names.
async fn add_job(store: &Store) {
    let remote = RemoteRecord { id: "remote-1".into(), name: "nowhere".into(), url: "file:///nowhere".into() };
    store.add_remote(&remote, 0).await.unwrap();
    store.add_job(&job("job-1"), 0).await.unwrap();
}

/// A run that ended without settling what it had announced, and a job that fell due while the upgrade waited.
async fn leave_work(dir: &Path) {
    let store = Arc::new(Store::open(&dir.join("state")).await.unwrap());
    let journal = Journal::open(Arc::clone(&store), Arc::new(SystemClock), Arc::default()).await.unwrap();
    let run = NewRun { id: "leaver01".into(), kind: RunKind::Backup, job: None, label: "l".into(), recovers: None };
    journal.create(run).await.unwrap();
    let what = Intent::RestorePoint { remote: "forgotten".into(), vm: "vm".into() };
    journal.append("leaver01", EventKind::Intent { intent: 1, what }).await.unwrap();
    let ended = EventKind::RunEnded { outcome: Outcome::Interrupted, error: None, summary: RunSummary::default() };
    journal.append("leaver01", ended).await.unwrap();
    add_job(&store).await;
    store.set_fact("held_starts", "[\"job-1\"]").await.unwrap();
    journal.close().await;
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_on_probation_cleans_nothing_up_and_what_waited_begins_when_it_stays() {
    let dir = tempfile::tempdir().unwrap();
    let proxy = launch(dir.path(), 60);
    let before = proxy.status().await;
    proxy.stop();
    leave(dir.path(), Left::Swap, &before.id, &before.fingerprint, Vec::new()).await;
    leave_work(dir.path()).await;
    let mut proxy = launch(dir.path(), 60);
    assert_eq!(proxy.settled().await.upgrade.unwrap().phase, UpgradePhase::Done);
    let deadline = Instant::now() + PATIENCE;
    let (recovery, due) = loop {
        let runs = proxy.client.call::<RunList>(RunListParams::default()).await;
        let recovery = runs.iter().find(|run| run.kind == RunKind::Recover);
        let due = runs.iter().find(|run| run.job.as_deref() == Some("job-1"));
        if let (Some(recovery), Some(due)) = (recovery, due) {
            break (recovery.clone(), due.clone());
        }
        assert!(Instant::now() < deadline, "what waited never begins: {runs:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let over = proxy.history().await.run.ended_at.unwrap();
    assert!(recovery.queued_at >= over && due.queued_at >= over, "{over}: {recovery:?} {due:?}");
    assert_ne!(due.outcome, Some(Outcome::Skipped), "{due:?}");
    proxy.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_and_an_upgrade_hold_runs_back_each_for_itself() {
    let dir = tempfile::tempdir().unwrap();
    let (running, client) = common::start(dir.path()).await;
    let runs = &running.daemon.runs;
    add_job(&running.daemon.store).await;
    runs.hold(true);
    for on in [true, false] {
        assert!(client.call::<ProxyDrain>(DrainParams { on }).await.draining, "the upgrade goes on");
    }
    let refused = client.try_call::<JobRun>(IdParams { id: "job-1".into() }).await.unwrap_err();
    assert!(refused.message.contains("being upgraded"), "{refused:?}");
    // Due twice while the upgrade waits: started once when it is over.
    for _ in 0..2 {
        runs.start_scheduled(job("job-1")).await;
    }
    let list = async || client.call::<RunList>(RunListParams::default()).await;
    assert_eq!(list().await, []);
    runs.hold(false);
    assert!(!client.call::<ProxyStatusGet>(NoParams {}).await.draining);
    for _ in 0..2 {
        runs.start_held().await;
    }
    let started = list().await;
    assert_eq!(started.iter().map(|run| run.job.as_deref()).collect::<Vec<_>>(), [Some("job-1")]);
    client.events(&started[0].id, 0).await;
    assert_eq!(list().await[0].outcome, Some(Outcome::Failure), "its VM is nowhere");
    // What a person holds back is not made up for, and a person's wish outlives the upgrade.
    client.call::<ProxyDrain>(DrainParams { on: true }).await;
    runs.hold(true);
    runs.start_scheduled(job("job-1")).await;
    runs.hold(false);
    assert!(client.call::<ProxyStatusGet>(NoParams {}).await.draining);
    assert_eq!(list().await[0].outcome, Some(Outcome::Skipped));
    running.stop().await;
}
