//! One connection of the administrator's own `ssh` program, with its configuration, agent and known hosts; scripts run over it.
//!
//! The command line of `ssh`, and of the shell on the other side, is always the same few words: script, values and files
//! travel on standard input. Whatever a name contains, it cannot become part of a command, and nothing secret stands in a
//! process list. It also makes no difference which shell the account has, or that `sudo` logs what it runs.

use std::fs::DirBuilder;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::str::FromStr;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinHandle;

use super::interrupt::Interrupt;
use crate::commands::failure::{Exit, Failure};

/// What the master connection prints when it stands.
const READY: &str = "backhaul-ready";
/// For a script; the longest waits two minutes for one that was cut, and one each for the service's end and start.
const SCRIPT: Duration = Duration::from_secs(300);
/// For what `ssh` says after it has ended.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// Between two signs of life; without one for a minute the host is let go.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);
/// How [`Script::HOLD`] ends when another one holds the host.
const HELD: i32 = 75;
/// The slowest line that a copy is waited for, bytes per second.
const SLOWEST: u64 = 16 << 10;
/// Most that is kept of what a script prints, bytes.
const MAX_SAID: u64 = 1 << 20;

/// Where to go: `[user@]host[:port]`, with the host in brackets when it is an IPv6 address, or the name of an entry in the
/// configuration of `ssh`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    user: Option<String>,
    host: String,
    port: Option<u16>,
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("{text:?} is no place to go to: expected [user@]host[:port], e.g. root@nas.example:22");
        let (user, rest) = match text.rsplit_once('@') {
            Some((user, rest)) => (Some(user), rest),
            None => (None, text),
        };
        let (host, port) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or_else(expected)?;
                (host, if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or_else(expected)?) })
            }
            // More than one colon is an IPv6 address without brackets, hence without a port.
            None => match rest.split_once(':') {
                Some((host, port)) if !port.contains(':') => (host, Some(port)),
                _ => (rest, None),
            },
        };
        let port = port.map(|port| port.parse().ok().filter(|port| *port > 0).ok_or_else(expected)).transpose()?;
        // What begins with a hyphen would be an option.
        let plain = |word: &str| {
            !word.is_empty() && !word.starts_with('-') && !word.contains(|c: char| c.is_control() || c.is_whitespace())
        };
        if !plain(host) || !user.is_none_or(plain) {
            return Err(expected());
        }
        Ok(Self { user: user.map(str::to_owned), host: host.to_owned(), port })
    }
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        match (self.host.contains(':'), self.port) {
            (true, Some(port)) => write!(f, "[{}]:{port}", self.host),
            (_, Some(port)) => write!(f, "{}:{port}", self.host),
            (_, None) => f.write_str(&self.host),
        }
    }
}

impl Destination {
    fn arguments(&self, command: &mut Command) {
        if let Some(port) = self.port {
            command.arg("-p").arg(port.to_string());
        }
        if let Some(user) = &self.user {
            command.arg("-l").arg(user);
        }
        command.arg("--").arg(&self.host);
    }
}

/// What went wrong between here and there.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// No `ssh`, or no place for its socket.
    #[error("cannot {what}: {source}")]
    Local {
        /// What was tried.
        what: &'static str,
        /// Cause.
        source: std::io::Error,
    },
    /// No connection.
    #[error("cannot log in to {destination} with ssh: {}", last(said))]
    Connect {
        /// Where to.
        destination: String,
        /// What `ssh` said.
        said: String,
    },
    /// The connection is gone.
    #[error("the ssh connection to {destination} is gone: {}", last(said))]
    Lost {
        /// Where to.
        destination: String,
        /// What `ssh` said.
        said: String,
    },
    /// ctrl-C, before there was a connection.
    #[error("interrupted")]
    Interrupted,
    /// A script took too long.
    #[error("{destination} did not answer within {} s", limit.as_secs())]
    Silent {
        /// Where to.
        destination: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// Somebody else is at work there.
    #[error("another deployment or removal is under way on {destination}")]
    Held {
        /// Where.
        destination: String,
    },
    /// A script ended otherwise than well.
    #[error("{}", if said.is_empty() { format!("it ended with exit code {code}") } else { said.clone() })]
    Script {
        /// Exit code.
        code: i32,
        /// What it said, without white space at its ends.
        said: String,
    },
}

/// The last line of what was said: programs come to the point at the end.
fn last(said: &str) -> &str {
    said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it said nothing")
}

impl From<SshError> for Failure {
    fn from(error: SshError) -> Self {
        let message = error.to_string();
        let mut failure = match &error {
            SshError::Connect { said, destination } if said.contains("ost key verification failed") => Failure::refused(
                "SSH_HOST_KEY",
                format!("ssh does not trust the host key of {destination}"),
            )
            .next(format!(
                "log in once with `ssh {destination}` and compare the key; if the host was set up anew, ssh tells which line of \
                     known_hosts is of the old one"
            )),
            SshError::Connect { said, destination } if said.contains("Permission denied") => {
                Failure::refused("SSH_LOGIN", message)
                    .next(format!("`ssh {destination}` must log in: a key in the agent, or a password typed on a terminal"))
            }
            SshError::Connect { .. } | SshError::Lost { .. } | SshError::Silent { .. } => {
                Failure { exit: Exit::Unreachable, report: Some(api::ErrorReport::new("SSH", message)) }
            }
            SshError::Held { .. } => Failure::refused("UNDER_WAY", message)
                .next("wait until it is over: it may be waiting for an answer at another console"),
            SshError::Interrupted => Failure::failed("INTERRUPTED", message),
            SshError::Local { .. } | SshError::Script { .. } => Failure::failed("SSH", message),
        };
        if let (SshError::Connect { said, .. } | SshError::Lost { said, .. }, Some(report)) = (&error, &mut failure.report) {
            let lines = said.lines().map(str::trim).filter(|line| !line.is_empty() && line.chars().any(|c| c != '@'));
            report.causes = lines.map(str::to_owned).collect();
        }
        failure
    }
}

/// A file's content on its way.
pub enum Payload<'a> {
    /// None.
    Nothing,
    /// These bytes.
    Bytes(&'a [u8]),
    /// This local file.
    File(&'a Path),
}

/// A script, by the name of what it does.
pub struct Script(&'static str);

macro_rules! scripts {
    ($($name:ident $file:literal)*) => {
        impl Script {
            $(pub const $name: Self = Self(concat!(include_str!("scripts/prelude.sh"), include_str!($file)));)*
        }
    };
}

scripts! {
    HELLO "scripts/hello.sh"
    HOLD "scripts/hold.sh"
    BEGIN "scripts/begin.sh"
    PROBE "scripts/probe.sh"
    READ "scripts/read.sh"
    PUT "scripts/put.sh"
    UNPUT "scripts/unput.sh"
    KEEP "scripts/keep.sh"
    FOLDER "scripts/folder.sh"
    UNFOLDER "scripts/unfolder.sh"
    ACCOUNT "scripts/account.sh"
    UNACCOUNT "scripts/unaccount.sh"
    PACKAGE "scripts/package.sh"
    UNPACKAGE "scripts/unpackage.sh"
    CHECK "scripts/check.sh"
    START "scripts/start.sh"
    UNSTART "scripts/unstart.sh"
    RESUME "scripts/resume.sh"
    FINGERPRINT "scripts/fingerprint.sh"
    KEPT "scripts/kept.sh"
    REMOVE "scripts/remove.sh"
}

/// An open connection. Closed when dropped.
pub struct Session {
    destination: Destination,
    /// The name or address that `ssh` makes of the destination's host.
    host: String,
    folder: PathBuf,
    master: Child,
    /// The master's standard input: when it closes, by whatever end of this process, the connection ends.
    _life: ChildStdin,
    root: bool,
    /// Keeps others away from the host.
    hold: Option<JoinHandle<()>>,
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(hold) = &self.hold {
            hold.abort();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Session {
    /// Logs in. `ssh` asks for what it needs on the terminal.
    ///
    /// # Errors
    /// [`SshError`].
    pub async fn open(destination: &Destination, interrupt: &Interrupt) -> Result<Self, SshError> {
        let host = interrupt.ends(resolve(destination)).await??;
        let folder = socket_folder().map_err(|source| SshError::Local { what: "make a folder for the socket of ssh", source })?;
        let mut command = ssh(&folder);
        command.args(["-o", "ControlMaster=yes", "-o", "ControlPersist=no"]);
        command.args(["-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3"]);
        destination.arguments(&mut command);
        // The other end lives exactly as long as our end of its standard input.
        command.arg(format!("exec /bin/sh -c 'echo {READY}; exec cat > /dev/null'"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut master = command.spawn().map_err(no_ssh)?;
        // The input, too: waiting for the child's end would close it.
        let (Some(life), Some(output), Some(errors)) = (master.stdin.take(), master.stdout.take(), master.stderr.take()) else {
            return Err(no_ssh(std::io::Error::other("no pipes")));
        };
        let errors = tokio::spawn(listen(errors, std::io::IsTerminal::is_terminal(&std::io::stderr())));
        let mut session = Self { destination: destination.clone(), host, folder, master, _life: life, root: false, hold: None };
        let mut lines = BufReader::new(output).lines();
        loop {
            let line = tokio::select! {
                line = lines.next_line() => line,
                // What it has started may outlive it, and hold on to its output.
                _ = session.master.wait() => Ok(None),
                () = interrupt.pressed() => {
                    // Not killed: it may be asking for a password, and then puts the terminal in order first.
                    if let Some(id) = session.master() {
                        let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
                    }
                    let _ = tokio::time::timeout(LAST_WORDS, errors).await;
                    return Err(SshError::Interrupted);
                }
            };
            match line {
                Ok(Some(line)) if line.trim_end() == READY => return Ok(session),
                // Start-up files of the login may talk.
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => {
                    let said = tokio::time::timeout(LAST_WORDS, errors).await;
                    let said = said.ok().and_then(Result::ok).unwrap_or_default();
                    return Err(SshError::Connect { destination: destination.to_string(), said });
                }
            }
        }
    }

    fn master(&self) -> Option<rustix::process::Pid> {
        let id = i32::try_from(self.master.id()?).ok()?;
        rustix::process::Pid::from_raw(id)
    }

    /// From now on scripts run as root, by way of `sudo` unless the login is root.
    pub fn become_root(&mut self) {
        self.root = true;
    }

    /// The name or address under which `ssh` reaches the host.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Where the session goes.
    pub fn destination(&self) -> &Destination {
        &self.destination
    }

    /// Runs a script with values, and a payload behind them. Answers what it printed.
    ///
    /// # Errors
    /// [`SshError`].
    pub async fn run(&self, script: Script, values: &[&str], payload: Payload<'_>) -> Result<String, SshError> {
        let mut child = self.command(&script).spawn().map_err(no_ssh)?;
        let (Some(mut input), Some(output), Some(errors)) = (child.stdin.take(), child.stdout.take(), child.stderr.take()) else {
            return Err(no_ssh(std::io::Error::other("no pipes")));
        };
        let payload_bytes = match payload {
            Payload::Nothing => 0,
            Payload::Bytes(bytes) => bytes.len() as u64,
            Payload::File(path) => tokio::fs::metadata(path).await.map_or(0, |file| file.len()),
        };
        let mut head = script.0.as_bytes().to_vec();
        for value in values {
            debug_assert!(!value.contains('\n'), "a value is a line");
            head.extend_from_slice(value.replace('\n', " ").as_bytes());
            head.push(b'\n');
        }
        // A script that fails early reads no further; why is in what it says.
        let write = async {
            input.write_all(&head).await?;
            match payload {
                Payload::Nothing => {}
                Payload::Bytes(bytes) => input.write_all(bytes).await?,
                Payload::File(path) => {
                    let mut file = tokio::fs::File::open(path).await?;
                    tokio::io::copy(&mut file, &mut input).await?;
                }
            }
            input.shutdown().await?;
            drop(input);
            Ok::<_, std::io::Error>(())
        };
        let talk = async {
            let (_, output, errors, status) = tokio::join!(write, listen(output, false), listen(errors, false), child.wait());
            (output, errors, status)
        };
        let limit = SCRIPT + Duration::from_secs(payload_bytes / SLOWEST);
        let silent = |_| SshError::Silent { destination: self.destination.to_string(), limit };
        let (output, errors, status) = tokio::time::timeout(limit, talk).await.map_err(silent)?;
        let status = status.map_err(|source| SshError::Local { what: "wait for ssh", source })?;
        let begun = output.split_once("backhaul-begin\n").map(|(_, rest)| rest.to_owned());
        match (status.code(), begun) {
            (Some(0), Some(output)) => Ok(output),
            (Some(code), Some(output)) if code != 255 => {
                let said = if errors.trim().is_empty() { output } else { errors };
                Err(SshError::Script { code, said: said.trim().to_owned() })
            }
            // Before the script began: sudo, or a shell that is none.
            (Some(code), None) if code != 255 => {
                let said = if errors.trim().is_empty() { "no script can be run there" } else { errors.trim() };
                Err(SshError::Script { code, said: said.to_owned() })
            }
            _ => Err(SshError::Lost { destination: self.destination.to_string(), said: errors }),
        }
    }

    /// Keeps other deployments and removals away from the host until this session ends, however it ends.
    ///
    /// # Errors
    /// [`SshError::Held`] by another one.
    pub async fn hold(&mut self) -> Result<(), SshError> {
        let mut child = self.command(&Script::HOLD).spawn().map_err(no_ssh)?;
        let (Some(mut input), Some(output), Some(errors)) = (child.stdin.take(), child.stdout.take(), child.stderr.take()) else {
            return Err(no_ssh(std::io::Error::other("no pipes")));
        };
        let destination = self.destination.to_string();
        let talk = async {
            let _ = input.write_all(Script::HOLD.0.as_bytes()).await;
            let mut lines = BufReader::new(output).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                if line == "held" {
                    return Ok(());
                }
            }
            drop(lines);
            let (status, said) = tokio::join!(child.wait(), listen(errors, false));
            let status = status.map_err(|source| SshError::Local { what: "wait for ssh", source })?;
            Err(match status.code() {
                Some(HELD) => SshError::Held { destination: destination.clone() },
                Some(code) if code != 255 => SshError::Script { code, said: said.trim().to_owned() },
                _ => SshError::Lost { destination: destination.clone(), said },
            })
        };
        let silent = |_| SshError::Silent { destination: self.destination.to_string(), limit: SCRIPT };
        tokio::time::timeout(SCRIPT, talk).await.map_err(silent)??;
        self.hold = Some(tokio::spawn(async move {
            // The program ends with this task, and with it the hold.
            let _child = child;
            while input.write_all(b".").await.is_ok() {
                tokio::time::sleep(SIGN_OF_LIFE).await;
            }
        }));
        Ok(())
    }

    /// `ssh` with a script that comes on its standard input: exactly the script is read, byte for byte, and the rest is left to it.
    fn command(&self, script: &Script) -> Command {
        let mut command = client(&self.folder);
        self.destination.arguments(&mut command);
        let sudo = if self.root { "sudo -n " } else { "" };
        let length = script.0.len();
        command.arg(format!("exec {sudo}/bin/sh -c 'eval \"$(dd bs=1 count={length} 2>/dev/null)\"'"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// Opens a local port that leads through the connection to an address of the host's own.
    ///
    /// # Errors
    /// No port can be had here.
    pub async fn tunnel(&self, to: SocketAddr) -> Result<Tunnel, SshError> {
        let failed = |source| SshError::Local { what: "open a local port", source };
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?.port();
        let (folder, destination) = (self.folder.clone(), self.destination.clone());
        let task = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut command = client(&folder);
                command.arg("-W").arg(to.to_string());
                destination.arguments(&mut command);
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
                open.spawn(async move {
                    let Ok(mut child) = command.spawn() else { return };
                    let (Some(mut input), Some(mut output)) = (child.stdin.take(), child.stdout.take()) else { return };
                    let (mut from, mut to) = socket.split();
                    // Whichever side ends first ends the other.
                    tokio::select! {
                        _ = tokio::io::copy(&mut from, &mut input) => {}
                        _ = tokio::io::copy(&mut output, &mut to) => {}
                    }
                });
            }
        });
        Ok(Tunnel { port: local, task })
    }
}

/// A local port that leads to the host.
pub struct Tunnel {
    /// The port, on 127.0.0.1.
    pub port: u16,
    task: JoinHandle<()>,
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// `ssh` with what all uses share.
fn ssh(folder: &Path) -> Command {
    // ctrl-C, and a terminal that closes, are for us: we put back what was begun, and for that the connection must stay. What is
    // ignored stays ignored in the program that the shell becomes.
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "trap '' INT HUP; exec ssh \"$@\"", "ssh"]);
    command.arg("-o").arg(format!("ControlPath={}", folder.join("s").display()));
    // Whatever else the configuration says of this host, here no terminal, no forwarding and no other command is wanted.
    command.args(["-T", "-a", "-x", "-e", "none", "-o", "RemoteCommand=none", "-o", "PermitLocalCommand=no"]);
    command.args(["-o", "ClearAllForwardings=yes"]);
    command
}

/// `ssh` through the open connection, and never through another one.
fn client(folder: &Path) -> Command {
    let mut command = ssh(folder);
    command.args(["-o", "ControlMaster=no", "-o", "BatchMode=yes", "-o", "ProxyCommand=false"]);
    command
}

fn no_ssh(source: std::io::Error) -> SshError {
    SshError::Local { what: "start the program ssh", source }
}

/// What `ssh` makes of the host: its configuration may give it another name.
async fn resolve(destination: &Destination) -> Result<String, SshError> {
    let mut command = Command::new("ssh");
    command.arg("-G");
    destination.arguments(&mut command);
    let output = command.stdin(Stdio::null()).output().await.map_err(no_ssh)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(SshError::Connect { destination: destination.to_string(), said });
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("hostname "));
    Ok(host.map_or_else(|| destination.host.clone(), |host| host.trim_matches(['[', ']']).to_owned()))
}

/// A folder of our own with a short path: the path of a socket has at most about 100 bytes.
fn socket_folder() -> std::io::Result<PathBuf> {
    let name = format!("backhaul-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
    let runtime =
        std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_dir() && path.as_os_str().len() < 40);
    let folder = runtime.unwrap_or_else(|| PathBuf::from("/tmp")).join(name);
    DirBuilder::new().mode(0o700).create(&folder)?;
    Ok(folder)
}

/// Reads to the end, at most [`MAX_SAID`]; what is said meanwhile may be shown, such as that a key wants to be touched.
async fn listen(from: impl AsyncRead + Unpin, show: bool) -> String {
    let (mut reader, mut all) = (BufReader::new(from), Vec::new());
    loop {
        let mut line = Vec::new();
        match (&mut reader).take(MAX_SAID).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return String::from_utf8_lossy(&all).into_owned(),
            Ok(_) => {
                let text = String::from_utf8_lossy(&line);
                if show && !text.trim().is_empty() {
                    crate::commands::output::aside(text.trim_end());
                }
                if all.len() as u64 <= MAX_SAID {
                    all.extend_from_slice(&line);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_user_host_and_port() {
        let parsed = |text: &str| {
            let Destination { user, host, port } = text.parse().unwrap();
            (user, host, port)
        };
        assert_eq!(parsed("root@nas:2222"), (Some("root".into()), "nas".into(), Some(2222)));
        assert_eq!(parsed("nas"), (None, "nas".into(), None));
        assert_eq!(parsed("root@[fd00::1]:22"), (Some("root".into()), "fd00::1".into(), Some(22)));
        assert_eq!(parsed("fd00::1"), (None, "fd00::1".into(), None));
        assert_eq!(parsed("a@b@nas"), (Some("a@b".into()), "nas".into(), None));
        for text in ["root@[fd00::1]:22", "nas", "root@nas:2222"] {
            assert_eq!(text.parse::<Destination>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_could_be_an_option_is_no_destination() {
        for text in ["", "-oProxyCommand=x", "root@-v", "-l@nas", "@nas", "nas:", "nas:0", "nas:70000", "[fd00::1", "a b", "a\nb"]
        {
            assert!(text.parse::<Destination>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_point_is_at_the_end() {
        assert_eq!(last("Warning: x\r\nPermission denied (publickey).\r\n\r\n"), "Permission denied (publickey).");
        assert_eq!(last(""), "it said nothing");
    }
}
