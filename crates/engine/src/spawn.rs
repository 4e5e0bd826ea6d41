//! The daemon's side of a worker: start it, read its events, acknowledge, cancel, bury.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command as Process};
use tokio::sync::Mutex;

use crate::plan::Plan;
use crate::worker::{Command, MAX_LINE, Report};

/// Why a worker cannot be started or understood.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// No process.
    #[error("cannot start a worker process from {program}")]
    Start {
        /// What should have been started.
        program: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The socket failed.
    #[error("cannot talk to the worker")]
    Socket(#[source] std::io::Error),
    /// The worker wrote what is no report.
    #[error("the worker wrote a line that is no event")]
    NotAnEvent(#[source] serde_json::Error),
    /// A line that never ends.
    #[error("the worker wrote a line of more than 16 MiB")]
    LineTooLong,
}

/// Variables a worker keeps; everything else of the daemon's environment stays with the daemon.
const KEPT_VARIABLES: [&str; 6] = ["PATH", "LANG", "TZ", "TMPDIR", "RUST_LOG", "RUST_BACKTRACE"];

/// How a worker's memory is kept, in glibc's words; another allocator does not listen.
///
/// Blocks of 2 MiB come and go on many threads. With an arena for every few of them each arena would keep its own freed
/// blocks, and the worker would hold several times what its permits allow; allocations are few, so one does. And a freed
/// block would go back to the kernel, to be had again as five hundred page faults: half of the processor time of a
/// transfer. What is kept is bounded by what was needed at once, and the process ends with its run.
pub const ALLOCATOR: [(&str, &str); 3] =
    [("MALLOC_ARENA_MAX", "1"), ("MALLOC_MMAP_THRESHOLD_", "33554432"), ("MALLOC_TRIM_THRESHOLD_", "134217728")];

/// A running worker. Dropping it closes the socket, at which the worker exits at once.
pub struct WorkerHandle {
    pid: u32,
    child: Child,
    reader: BufReader<OwnedReadHalf>,
    control: WorkerControl,
}

/// Talks to a worker from anywhere.
#[derive(Clone)]
pub struct WorkerControl(Arc<Mutex<OwnedWriteHalf>>);

/// Starts `program` with `arguments` as a worker (it must call [`crate::worker::main`]) and sends it the plan.
///
/// The plan travels over the socket only: nothing of it is in the arguments or the environment.
///
/// # Errors
/// [`WorkerError::Start`] when there is no process, [`WorkerError::Socket`] when it does not take the plan.
pub async fn spawn(program: &Path, arguments: &[&str], plan: Plan) -> Result<WorkerHandle, WorkerError> {
    let (ours, theirs) = StdUnixStream::pair().map_err(WorkerError::Socket)?;
    ours.set_nonblocking(true).map_err(WorkerError::Socket)?;
    let mut process = Process::new(program);
    process.args(arguments).stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()).env_clear();
    for name in KEPT_VARIABLES {
        if let Some(value) = std::env::var_os(name) {
            process.env(name, value);
        }
    }
    process.envs(ALLOCATOR);
    // Ctrl-C on a terminal goes to the whole group of the daemon: its workers are the daemon's to cancel.
    process.process_group(0);
    let child = process.spawn().map_err(|source| WorkerError::Start { program: program.display().to_string(), source })?;
    // The command holds our copy of the child's end: while it lives, the child's death would not close the socket.
    drop(process);
    let pid = child.id().unwrap_or_default();
    let (reader, writer) = UnixStream::from_std(ours).map_err(WorkerError::Socket)?.into_split();
    let control = WorkerControl(Arc::new(Mutex::new(writer)));
    control.send(&Command::Plan(Box::new(plan))).await?;
    Ok(WorkerHandle { pid, child, reader: BufReader::new(reader), control })
}

impl WorkerHandle {
    /// Process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The next event; none when the worker has gone. May be dropped and called again only between events: use it
    /// from one task that does nothing else.
    ///
    /// # Errors
    /// When the line is no event.
    pub async fn next(&mut self) -> Result<Option<Report>, WorkerError> {
        let mut line = Vec::new();
        let read = (&mut self.reader).take(MAX_LINE).read_until(b'\n', &mut line).await;
        match read {
            Ok(_) => {}
            // A worker that was killed with lines of ours unread resets the socket: it has gone all the same.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(WorkerError::Socket(error)),
        }
        match line.pop() {
            Some(b'\n') => serde_json::from_slice(&line).map(Some).map_err(WorkerError::NotAnEvent),
            Some(_) if line.len() as u64 + 1 == MAX_LINE => Err(WorkerError::LineTooLong),
            // Half a line: it died while writing, and the event did not happen.
            _ => Ok(None),
        }
    }

    /// A way to talk to it from elsewhere.
    pub fn control(&self) -> WorkerControl {
        self.control.clone()
    }

    /// Waits until the process has ended.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub async fn wait(&mut self) -> Result<ExitStatus, WorkerError> {
        self.child.wait().await.map_err(WorkerError::Socket)
    }

    /// Ends the process without asking it, and returns without waiting for it: a process stuck in a dead mount does
    /// not die before the mount answers.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn kill(&mut self) -> Result<(), WorkerError> {
        self.child.start_kill().map_err(WorkerError::Socket)
    }
}

impl WorkerControl {
    /// Says that the durable event `seq` is on disk.
    ///
    /// # Errors
    /// When the worker has gone.
    pub async fn ack(&self, seq: u64) -> Result<(), WorkerError> {
        self.send(&Command::Ack(seq)).await
    }

    /// Asks the worker to stop and clean up.
    ///
    /// # Errors
    /// When the worker has gone.
    pub async fn cancel(&self) -> Result<(), WorkerError> {
        self.send(&Command::Cancel(true)).await
    }

    async fn send(&self, command: &Command) -> Result<(), WorkerError> {
        let mut line = serde_json::to_vec(command).map_err(|error| WorkerError::Socket(error.into()))?;
        line.push(b'\n');
        self.0.lock().await.write_all(&line).await.map_err(WorkerError::Socket)
    }
}
