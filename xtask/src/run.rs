//! Running other programs: shown before they run, their failure named.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// A program with its arguments, run from the root of the workspace.
pub struct Program(Command);

impl Program {
    /// A program found through PATH, or by its path.
    pub fn new(name: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(name);
        command.current_dir(workspace());
        Self(command)
    }

    /// The cargo that runs us.
    pub fn cargo() -> Self {
        Self::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
    }

    /// As root: directly when we are, through sudo otherwise.
    pub fn as_root(name: &str) -> Self {
        if succeeds("sh", &["-c", "test \"$(id -u)\" = 0"]) { Self::new(name) } else { Self::new("sudo").arg(name) }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.0.arg(arg);
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.0.args(args);
        self
    }

    /// A variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(name, value);
        self
    }

    /// What it prints is not shown.
    #[must_use]
    pub fn quiet(mut self) -> Self {
        self.0.stdout(Stdio::null());
        self
    }

    /// Runs it to its end; anything but success is an error.
    pub fn run(mut self) -> Result<()> {
        eprintln!("+ {}", self.shown());
        let status = self.0.status().with_context(|| format!("cannot start {}", self.shown()))?;
        if !status.success() {
            bail!("{} ended with {status}", self.shown());
        }
        Ok(())
    }

    /// It, to be run in another way.
    pub fn into_command(self) -> Command {
        self.0
    }

    /// Becomes it, so that the terminal and its signals are its own.
    pub fn exec(mut self) -> Result<()> {
        let error = self.0.exec();
        Err(error).with_context(|| format!("cannot start {}", self.shown()))
    }

    fn shown(&self) -> String {
        std::iter::once(self.0.get_program())
            .chain(self.0.get_args())
            .map(|part| part.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ")
    }
}

/// Whether a program exists and ends well, with nothing printed.
pub fn succeeds(name: &str, args: &[&str]) -> bool {
    Command::new(name)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
