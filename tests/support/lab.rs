//! A lab of its own process, as a person has it: started, asked through the console's binary, looked into.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use lab::Dump;
use rustix::fs::{SeekFrom, seek};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::support::{backhaul, stderr, stdout};

/// Patience for things that take a second: a machine under load takes ten.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub struct Lab {
    pub child: Child,
    pub dir: PathBuf,
}

impl Lab {
    pub async fn start(dir: &Path) -> Self {
        Self::start_with(dir, &[]).await
    }

    /// With further options.
    pub async fn start_with(dir: &Path, more: &[&str]) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_backhaul"));
        let daemon = daemon_program();
        assert!(daemon.is_file(), "{} is missing: cargo build --package daemon", daemon.display());
        let mut child = Command::new(program)
            .args(["lab", "--serve", "--small", "--dir"])
            .arg(dir)
            .args(more)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let ready = dir.join("lab.json");
        let waiting = async {
            while !ready.exists() {
                if let Some(status) = child.try_wait().unwrap() {
                    panic!("the lab ended: {status}");
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("the lab becomes ready");
        Self { child, dir: dir.to_owned() }
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.dir.join("lab.json")).unwrap()).unwrap()
    }

    /// Runs a command that must succeed, and reads its JSON lines.
    pub async fn ask(&self, arguments: &[&str]) -> Vec<Value> {
        let output = backhaul(&self.dir.join("config"), &[arguments, &["--json"]].concat()).await;
        assert!(output.status.success(), "{arguments:?}: {}{}", stdout(&output), stderr(&output));
        stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub async fn list(&self, arguments: &[&str]) -> Vec<Value> {
        match self.ask(arguments).await.remove(0) {
            Value::Array(items) => items,
            other => panic!("no list: {other}"),
        }
    }

    /// Runs a command that must not succeed; its exit code and what it says.
    pub async fn refused(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.run(arguments).await;
        assert!(!output.status.success(), "{arguments:?} succeeds: {}", stdout(&output));
        (output.status.code().unwrap(), format!("{}{}", stdout(&output), stderr(&output)))
    }

    /// What a proxy says of itself.
    pub async fn status(&self, proxy: &str) -> Value {
        self.ask(&["proxy", "show", proxy]).await.remove(0)["status"].take()
    }

    /// Asks the lab to end, and waits until it has.
    pub async fn stop(mut self) {
        self.signal(Signal::TERM);
        assert!(self.child.wait().await.unwrap().success());
    }

    /// The launchers and daemons of this lab that the system says are running.
    pub fn daemons(&self) -> Vec<Pid> {
        let dir = self.dir.to_str().unwrap();
        let processes = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let line = String::from_utf8_lossy(&std::fs::read(entry.path().join("cmdline")).ok()?).into_owned();
            (line.contains("backhauld") && line.contains(dir)).then(|| Pid::from_raw(pid)).flatten()
        });
        processes.collect()
    }

    /// Runs a command, whatever comes of it.
    pub async fn run(&self, arguments: &[&str]) -> Output {
        backhaul(&self.dir.join("config"), arguments).await
    }

    /// The records of all pools, in the order of `lab.json`.
    pub async fn dumps(&self) -> Vec<Dump> {
        let mut dumps = Vec::new();
        for pool in self.json()["pools"].as_array().unwrap() {
            dumps.push(serde_json::from_value(pool_call(pool, "lab.dump", json!([pool["password"]])).await).unwrap());
        }
        dumps
    }

    /// The pools are as they were; what they still do for something that is over, they are given time for.
    pub async fn assert_as(&self, before: &[Dump], what: &str) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let now = self.dumps().await;
            let changes: Vec<String> = before.iter().zip(&now).flat_map(|(before, now)| before.difference(now)).collect();
            if changes.is_empty() {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{what}: {changes:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Destroys all snapshots of a pool with their disks.
    pub async fn destroy_snapshots(&self, pool: &str) {
        let inventory = self.json();
        let pool = inventory["pools"].as_array().unwrap().iter().find(|known| known["name"] == pool).unwrap();
        let session = pool_call(pool, "session.login_with_password", json!([pool["username"], pool["password"]])).await;
        let records = async |class: &str| pool_call(pool, &format!("{class}.get_all_records"), json!([session])).await;
        let (vms, vdis) = (records("VM").await, records("VDI").await);
        for (class, records) in [("VM", &vms), ("VDI", &vdis)] {
            for (reference, _) in records.as_object().unwrap().iter().filter(|(_, record)| record["is_a_snapshot"] == true) {
                let deadline = tokio::time::Instant::now() + PATIENCE;
                // A pool needs a moment to see that nobody reads a disk any more.
                while let Err(error) = try_pool_call(pool, &format!("{class}.destroy"), json!([session, reference])).await {
                    assert!(error["message"] == "VDI_IN_USE" && tokio::time::Instant::now() < deadline, "{class}: {error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        pool_call(pool, "session.logout", json!([session])).await;
    }

    /// The images of all pools.
    pub fn images(&self) -> Vec<std::ffi::OsString> {
        let pools = std::fs::read_dir(self.dir.join("pools")).unwrap().flatten();
        let disks = pools.flat_map(|pool| std::fs::read_dir(pool.path().join("disks")).into_iter().flatten().flatten());
        let mut names: Vec<_> = disks.map(|disk| disk.file_name()).collect();
        names.sort();
        names
    }

    /// The token of a proxy, from the console's configuration.
    pub fn token(&self, proxy: &str) -> String {
        let inventory = std::fs::read_to_string(self.dir.join("config/proxies.toml")).unwrap();
        let table: toml::Table = inventory.parse().unwrap();
        let proxies = table["proxy"].as_array().unwrap();
        let ours = proxies.iter().find(|known| known["name"].as_str() == Some(proxy)).unwrap();
        ours["token"].as_str().unwrap().to_owned()
    }

    /// The files of the lab that hold a secret and must not: all but the console's configuration and the guests themselves.
    pub fn leaks(&self, secret: &str) -> Vec<PathBuf> {
        let allowed = |path: &PathBuf| path.starts_with(self.dir.join("config")) || path.starts_with(self.dir.join("guests"));
        holding(&self.dir, secret).into_iter().filter(|path| !allowed(path)).collect()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id().unwrap() as i32).unwrap(), signal).unwrap();
    }
}

/// The daemon's program, beside the console's.
pub fn daemon_program() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_backhaul")).with_file_name("backhauld")
}

/// Every file below a folder that holds a text.
pub fn holding(dir: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(holding(&path, text));
        } else if holds(&path, text.as_bytes()).unwrap_or(false) {
            found.push(path);
        }
    }
    found
}

/// Whether a file holds a text. Only its data is read: a disk of 20 GiB has hardly any.
fn holds(path: &Path, text: &[u8]) -> std::io::Result<bool> {
    let file = File::open(path)?;
    let mut at = 0;
    loop {
        let begin = match seek(&file, SeekFrom::Data(at)) {
            Ok(begin) => begin,
            Err(rustix::io::Errno::NXIO) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        at = seek(&file, SeekFrom::Hole(begin))?;
        let mut data = vec![0; usize::try_from(at - begin).unwrap()];
        file.read_exact_at(&mut data, begin)?;
        let mut rest = data.as_slice();
        while let Some(first) = rest.iter().position(|byte| *byte == text[0]) {
            if rest[first..].starts_with(text) {
                return Ok(true);
            }
            rest = &rest[first + 1..];
        }
    }
}

/// Calls a pool of `lab.json` directly; the answer's result.
pub async fn pool_call(pool: &Value, method: &str, params: Value) -> Value {
    try_pool_call(pool, method, params).await.unwrap_or_else(|error| panic!("{method}: {error}"))
}

/// As [`pool_call`]; fails with what the pool answers.
pub async fn try_pool_call(pool: &Value, method: &str, params: Value) -> Result<Value, Value> {
    let http = client::pinned_http(pool["fingerprint"].as_str().unwrap().parse().unwrap()).unwrap();
    let call = json!({ "jsonrpc": "2.0", "id": 0, "method": method, "params": params });
    let answer = http.post(format!("{}/jsonrpc", pool["url"].as_str().unwrap())).json(&call).send().await.unwrap();
    let mut answer: Value = answer.json().await.unwrap();
    match answer.get("error") {
        Some(_) => Err(answer["error"].take()),
        None => Ok(answer["result"].take()),
    }
}
