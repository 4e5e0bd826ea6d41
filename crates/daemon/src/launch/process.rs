//! A daemon's process under its launcher: started so that it dies with it, its output passed on, its last lines kept.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Program;
use crate::upgrade::{LAUNCHER, PROBATION};

/// Lines kept of what a program says.
const KEPT: usize = 20;
/// Longest line passed on at once, bytes.
const LONGEST: usize = 64 << 10;
/// For the output of a program that has ended to be read; something it started may hold it open.
const REST: Duration = Duration::from_secs(1);

/// A program that cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {program}")]
pub struct StartError {
    /// Which.
    program: String,
    /// Cause.
    source: io::Error,
}

/// The line with which a daemon says that it answers.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Ready {
    pub(super) address: std::net::SocketAddr,
    pub(super) fingerprint: String,
}

/// A running daemon.
pub(super) struct Process {
    child: Child,
    ready: watch::Receiver<Option<Ready>>,
    lines: Arc<Mutex<VecDeque<String>>>,
    pumps: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts a program on a configuration.
    pub(super) fn start(program: &Program, config: &Path, on_probation: bool) -> Result<Self, StartError> {
        let failed = |source| StartError { program: program.name.clone(), source };
        let (own, name) = own_executable().map_err(failed)?;
        let me = std::process::id().to_string();
        let path: OsString = program.path.as_ref().map_or_else(|| name.into(), |path| path.clone().into());
        let mut command = Command::new(&own);
        command
            .args(["launched", &me])
            .arg(path)
            .arg("--config")
            .arg(config)
            .env(LAUNCHER, &me)
            .env_remove(PROBATION)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // What a terminal sends is for the launcher, which passes it on, once.
            .process_group(0)
            .kill_on_drop(true);
        if on_probation {
            command.env(PROBATION, "1");
        }
        let mut child = command.spawn().map_err(failed)?;
        let (told, ready) = watch::channel(None);
        let lines = Arc::<Mutex<VecDeque<String>>>::default();
        let mut pumps = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            pumps.push(tokio::spawn(pump(stdout, io::stdout(), move |line| {
                if let Ok(line) = serde_json::from_str::<Ready>(line) {
                    told.send_replace(Some(line));
                }
            })));
        }
        if let Some(stderr) = child.stderr.take() {
            let lines = Arc::clone(&lines);
            pumps.push(tokio::spawn(pump(stderr, io::stderr(), move |line| {
                let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                if lines.len() == KEPT {
                    lines.pop_front();
                }
                lines.push_back(line.to_owned());
            })));
        }
        Ok(Self { child, ready, lines, pumps })
    }

    /// Waits until it answers; none when its output ends before.
    pub(super) fn ready(&self) -> impl Future<Output = Option<Ready>> + use<> {
        let mut ready = self.ready.clone();
        async move { ready.wait_for(Option::is_some).await.ok().and_then(|ready| ready.clone()) }
    }

    /// Waits for its end.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    pub(super) fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Asks it to end, and makes it.
    pub(super) async fn end(&mut self, patience: Duration) {
        self.signal(Signal::TERM);
        if tokio::time::timeout(patience, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
        self.drain().await;
    }

    /// Reads what is left of its output.
    pub(super) async fn drain(&mut self) {
        for pump in std::mem::take(&mut self.pumps) {
            let abort = pump.abort_handle();
            if tokio::time::timeout(REST, pump).await.is_err() {
                abort.abort();
            }
        }
    }

    /// What it said last on standard error.
    pub(super) fn last_lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// This very program, whatever stands in its place on the disk by now; and the path of that.
fn own_executable() -> io::Result<(PathBuf, PathBuf)> {
    let mut name = std::env::current_exe()?;
    // The system's mark on a file that was replaced, as a package does.
    if let Some(path) = name.to_str().and_then(|name| name.strip_suffix(" (deleted)")) {
        name = path.into();
    }
    let itself = Path::new("/proc/self/exe");
    Ok(if itself.exists() { (itself.to_owned(), name) } else { (name.clone(), name) })
}

/// Passes lines on as they come.
async fn pump(from: impl AsyncRead + Unpin, mut to: impl Write, mut seen: impl FnMut(&str)) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        match read_line(&mut from, &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        // Nobody has to listen.
        let _ = to.write_all(&line).and_then(|()| to.flush());
        let text = String::from_utf8_lossy(&line);
        seen(text.trim_end());
    }
}

/// A line with its end, or as much of it as is passed on at once.
async fn read_line(from: &mut (impl AsyncBufReadExt + Unpin), line: &mut Vec<u8>) -> io::Result<usize> {
    loop {
        let available = from.fill_buf().await?;
        if available.is_empty() {
            return Ok(line.len());
        }
        let end = available.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
        let taken = end.unwrap_or(available.len());
        line.extend_from_slice(&available[..taken]);
        from.consume(taken);
        if end.is_some() || line.len() >= LONGEST {
            return Ok(line.len());
        }
    }
}

/// The launcher ends as its daemon did, in the words of a shell.
pub(super) fn exit_code(status: io::Result<ExitStatus>) -> u8 {
    let Ok(status) = status else { return 1 };
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    u8::try_from(code).unwrap_or(1)
}

/// How a program ended, in words.
pub(super) fn in_words(status: io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("it ended with status {code}"),
            (None, Some(signal)) => format!("it was killed by signal {signal}"),
            (None, None) => "it ended".to_owned(),
        },
        Err(error) => format!("it ended in an unknown way ({error})"),
    }
}
