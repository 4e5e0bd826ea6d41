//! The process that executes one run: its side of the wire, and the wire itself.
//!
//! The daemon starts the worker with one end of a socketpair as file descriptor 0. Both sides speak lines of JSON:
//!
//! | from | line | meaning |
//! | --- | --- | --- |
//! | daemon | `{"plan":{…}}` | first and once: what to do |
//! | daemon | `{"ack":n}` | the durable event `n` is on disk |
//! | daemon | `{"cancel":true}` | stop, clean up, end as cancelled |
//! | worker | `{"seq":n,"durable":bool,"event":{…}}` | an event of the journal; `n` counts 1, 2, 3… |
//!
//! The end of the daemon's side means that nobody keeps the journal any more: the worker exits at once, and what it
//! left is found by its intents. Reading and writing happen on threads of their own, so that a worker whose runtime
//! is stuck in a dead mount still obeys.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use api::{EventKind, Outcome};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::journal::{Journal, JournalError};
use crate::plan::Plan;

/// A line from the daemon.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Command {
    /// What to do.
    Plan(Box<Plan>),
    /// A durable event is on disk.
    Ack(u64),
    /// Stop.
    Cancel(bool),
}

/// A line from the worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Its number: 1, 2, 3…
    pub seq: u64,
    /// Whether the worker waits for an acknowledgement.
    pub durable: bool,
    /// The event.
    pub event: EventKind,
}

/// The longest line either side accepts, bytes: a plan or an event is far below.
pub(crate) const MAX_LINE: u64 = 16 << 20;

/// Exit codes of a worker. What matters is the journal; these tell the daemon's log why there is none.
mod exit {
    pub const FAILED: u8 = 1;
    /// The daemon went away, or spoke what no daemon speaks.
    pub const ORPHAN: i32 = 3;
}

/// Why there is nothing to execute.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("file descriptor 0 is no socket of a daemon")]
    NoSocket(#[source] std::io::Error),
    #[error("the daemon's first line is no plan")]
    NoPlan(#[source] Option<serde_json::Error>),
    #[error("cannot read from the daemon")]
    Read(#[source] std::io::Error),
    #[error("cannot start the runtime")]
    Runtime(#[source] std::io::Error),
}

/// Executes the plan that the daemon sends over file descriptor 0; the whole of the worker process.
pub fn main() -> ExitCode {
    match execute() {
        Ok(Outcome::Failure) => ExitCode::from(exit::FAILED),
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "worker cannot start");
            ExitCode::from(exit::FAILED)
        }
    }
}

fn execute() -> Result<Outcome, StartError> {
    let socket = std::io::stdin().as_fd().try_clone_to_owned().map_err(StartError::NoSocket)?;
    let socket = UnixStream::from(socket);
    let mut lines = BufReader::new(socket.try_clone().map_err(StartError::NoSocket)?);
    let plan = match read_line(&mut lines).map_err(StartError::Read)? {
        Some(line) => match serde_json::from_slice(&line) {
            Ok(Command::Plan(plan)) => *plan,
            Ok(_) => return Err(StartError::NoPlan(None)),
            Err(error) => return Err(StartError::NoPlan(Some(error))),
        },
        None => return Err(StartError::NoPlan(None)),
    };
    let cancel = CancellationToken::new();
    let (journal, writer) = SocketJournal::start(socket);
    let acks = Arc::clone(&journal.acks);
    let token = cancel.clone();
    thread::spawn(move || listen(lines, &acks, &token));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // Two for the network and the zero test; file work is on blocking threads of its own.
        .worker_threads(thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 4)))
        .max_blocking_threads(64)
        .enable_all()
        .build()
        .map_err(StartError::Runtime)?;
    let outcome = runtime.block_on(crate::run(plan, journal, cancel));
    // A write that hangs in a dead mount must not keep the process: the run is over.
    runtime.shutdown_background();
    // The last event is durable, hence acknowledged, hence written; the writer ends with its channel.
    let _ = writer.join();
    Ok(outcome)
}

/// Reads a line without its end; none at the end of the stream.
pub(crate) fn read_line(reader: &mut impl BufRead) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    reader.take(MAX_LINE).read_until(b'\n', &mut line)?;
    match line.pop() {
        Some(b'\n') => Ok(Some(line)),
        // Half a line is what a dying peer leaves.
        Some(_) if line.len() as u64 + 1 == MAX_LINE => {
            Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "a line is longer than 16 MiB"))
        }
        _ => Ok(None),
    }
}

type Acks = Arc<Mutex<HashMap<u64, oneshot::Sender<()>>>>;

/// Obeys the daemon until it goes away; then the process ends, whatever it was doing.
fn listen(mut lines: BufReader<UnixStream>, acks: &Acks, cancel: &CancellationToken) {
    while let Ok(Some(line)) = read_line(&mut lines) {
        match serde_json::from_slice(&line) {
            Ok(Command::Ack(seq)) => {
                let waiter = acks.lock().unwrap_or_else(PoisonError::into_inner).remove(&seq);
                if let Some(waiter) = waiter {
                    let _ = waiter.send(());
                }
            }
            Ok(Command::Cancel(true)) => cancel.cancel(),
            Ok(Command::Cancel(false)) => {}
            Ok(Command::Plan(_)) | Err(_) => break,
        }
    }
    orphaned()
}

/// Ends as in a crash: without a daemon there is no journal, and the next daemon's recover run cleans up.
fn orphaned() -> ! {
    #[expect(clippy::disallowed_methods, reason = "nothing may be done that the journal does not hear of")]
    std::process::exit(exit::ORPHAN)
}

/// The journal at the other end of the socket.
struct SocketJournal {
    /// The next number and the way to the writer: under one lock, so that lines leave in the order of their numbers.
    next: Mutex<(u64, mpsc::Sender<Report>)>,
    acks: Acks,
}

impl SocketJournal {
    fn start(socket: UnixStream) -> (Arc<Self>, thread::JoinHandle<()>) {
        let (sender, reports) = mpsc::channel::<Report>();
        let writer = thread::spawn(move || write_reports(socket, &reports));
        (Arc::new(Self { next: Mutex::new((1, sender)), acks: Acks::default() }), writer)
    }

    fn send(&self, durable: bool, event: EventKind, waiter: Option<oneshot::Sender<()>>) {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let seq = next.0;
        next.0 += 1;
        if let Some(waiter) = waiter {
            self.acks.lock().unwrap_or_else(PoisonError::into_inner).insert(seq, waiter);
        }
        // The writer only ends when the daemon is gone, and then so does this process.
        let _ = next.1.send(Report { seq, durable, event });
    }
}

fn write_reports(mut socket: UnixStream, reports: &mpsc::Receiver<Report>) {
    for report in reports {
        let Ok(mut line) = serde_json::to_vec(&report) else { continue };
        line.push(b'\n');
        if socket.write_all(&line).is_err() {
            orphaned();
        }
    }
}

#[async_trait]
impl Journal for SocketJournal {
    fn record(&self, event: EventKind) {
        self.send(false, event, None);
    }

    async fn record_durable(&self, event: EventKind) -> Result<(), JournalError> {
        let (waiter, acknowledged) = oneshot::channel();
        self.send(true, event, Some(waiter));
        acknowledged.await.map_err(|_| JournalError("the daemon went away".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_with_the_stream_and_never_in_the_middle() {
        let mut text: &[u8] = b"{\"ack\":1}\n{\"cancel\":true}\n{\"ack\"";
        assert_eq!(read_line(&mut text).unwrap().as_deref(), Some(&b"{\"ack\":1}"[..]));
        assert_eq!(read_line(&mut text).unwrap().as_deref(), Some(&b"{\"cancel\":true}"[..]));
        assert_eq!(read_line(&mut text).unwrap(), None);
    }

    #[test]
    fn a_line_without_end_is_refused_before_it_fills_the_memory() {
        let mut endless = BufReader::new(std::io::repeat(b'x'));
        assert_eq!(read_line(&mut endless).unwrap_err().kind(), std::io::ErrorKind::InvalidData);
    }

    #[test]
    fn the_wire_is_as_documented() {
        assert_eq!(serde_json::to_string(&Command::Ack(7)).unwrap(), r#"{"ack":7}"#);
        assert_eq!(serde_json::to_string(&Command::Cancel(true)).unwrap(), r#"{"cancel":true}"#);
        let report = Report { seq: 1, durable: true, event: EventKind::Settled { intent: 2 } };
        assert_eq!(serde_json::to_string(&report).unwrap(), r#"{"seq":1,"durable":true,"event":{"event":"settled","intent":2}}"#);
    }
}
