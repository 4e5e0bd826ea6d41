//! The real programs of a lab, for tests that need the whole of it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::{Child, Command};

use super::{backhaul, stderr, stdout};

/// Patience for things that take a second: a machine under load takes a hundred.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// A lab that ends with its test.
pub struct Lab {
    child: Child,
    pub dir: PathBuf,
}

impl Lab {
    /// Starts one and waits until it is ready.
    pub async fn start(dir: &Path, more: &[&str]) -> Self {
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

    /// The console's configuration.
    pub fn config(&self) -> PathBuf {
        self.dir.join("config")
    }

    /// Runs a command that must succeed, and reads its JSON lines.
    pub async fn ask(&self, arguments: &[&str]) -> Vec<Value> {
        let output = backhaul(&self.config(), &[arguments, &["--json"]].concat()).await;
        assert!(output.status.success(), "{arguments:?}: {}{}", stdout(&output), stderr(&output));
        stdout(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Runs a command that must not succeed; its exit code and what it says.
    pub async fn refused(&self, arguments: &[&str]) -> (i32, String) {
        let output = backhaul(&self.config(), arguments).await;
        assert!(!output.status.success(), "{arguments:?} succeeds: {}", stdout(&output));
        (output.status.code().unwrap(), format!("{}{}", stdout(&output), stderr(&output)))
    }

    /// A list.
    pub async fn list(&self, arguments: &[&str]) -> Vec<Value> {
        match self.ask(arguments).await.remove(0) {
            Value::Array(items) => items,
            other => panic!("no list: {other}"),
        }
    }

    /// What a proxy says of itself.
    pub async fn status(&self, proxy: &str) -> Value {
        self.ask(&["proxy", "show", proxy]).await.remove(0)["status"].take()
    }

    /// Asks the lab to end, and waits until it has.
    pub async fn stop(mut self) {
        kill_process(Pid::from_raw(self.child.id().unwrap() as i32).unwrap(), Signal::TERM).unwrap();
        assert!(self.child.wait().await.unwrap().success());
    }
}

/// The daemon's program, beside the console's.
pub fn daemon_program() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_backhaul")).with_file_name("backhauld")
}
