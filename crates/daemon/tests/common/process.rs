//! The real binary, started and stopped.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{Client, config_text};

/// A daemon process with a client.
pub struct Daemon {
    pub child: Child,
    pub client: Client,
}

pub fn command(dir: &Path) -> Command {
    command_with(dir, "")
}

fn command_with(dir: &Path, more: &str) -> Command {
    write_config(dir, &format!("{}{more}", config_text(dir)));
    let mut command = Command::new(env!("CARGO_BIN_EXE_backhauld"));
    command.arg("--config").arg(dir.join("backhauld.toml")).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Writes the configuration as the daemon wants it when a token stands in it: for its owner only.
pub fn write_config(dir: &Path, text: &str) {
    let path = dir.join("backhauld.toml");
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// Starts one and waits for its line.
pub fn spawn(dir: &Path) -> Daemon {
    spawn_with(dir, "")
}

/// Starts one with more lines in its configuration.
pub fn spawn_with(dir: &Path, more: &str) -> Daemon {
    let mut child = command_with(dir, more).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
    assert_eq!(ready["ready"], true);
    let client = Client::new(ready["address"].as_str().unwrap(), ready["fingerprint"].as_str().unwrap().parse().unwrap());
    Daemon { child, client }
}

impl Daemon {
    /// Sends a signal and waits for the end.
    pub fn signal(&mut self, signal: Signal) -> std::process::ExitStatus {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
        self.child.wait().unwrap()
    }

    /// Stops it as a service manager does.
    pub fn stop(mut self) {
        assert!(self.signal(Signal::TERM).success());
    }
}
