//! The end of an export where bytes leave the pool, and where its faults strike.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::failure::Failure;
use crate::fault::{Fault, TaskAfter};
use crate::http::Connection;
use crate::pool::Pool;
use crate::rpc::Task;

/// Bytes sent at once where the speed is limited.
const SLICE: usize = 16 << 10;

/// Why an export ends before its time.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The connection is to be reset, and this is what the task says.
    Cut(TaskAfter),
    /// The connection is to be closed as if all had been sent.
    EndEarly(TaskAfter),
    /// The storage failed.
    Failed(Failure),
    /// Somebody cancelled the task.
    Cancelled,
    /// The client has gone.
    ClientGone,
}

/// What goes wrong, decided at the beginning of an export.
#[derive(Debug, Default)]
struct Plan {
    cut: Option<(u64, TaskAfter)>,
    end: Option<(u64, TaskAfter)>,
    read_error: Option<u64>,
    bytes_per_second: Option<u64>,
}

/// An export's way out.
pub(crate) struct Outlet {
    connection: Connection,
    task: Task,
    plan: Plan,
    sent: u64,
    expected: u64,
    since: Instant,
}

impl Outlet {
    /// Over a connection whose head has been sent; `expected` bytes are 100 %.
    pub fn new(pool: &Pool, connection: Connection, task: Task, expected: u64) -> Self {
        let faults = &pool.faults;
        let plan = Plan {
            cut: faults.strike(|fault| match fault {
                Fault::CutExport { after_bytes, task } => Some((*after_bytes, *task)),
                _ => None,
            }),
            end: faults.strike(|fault| match fault {
                Fault::EndExportEarly { after_bytes, task } => Some((*after_bytes, *task)),
                _ => None,
            }),
            read_error: faults.strike(|fault| match fault {
                Fault::ReadError { after_bytes } => Some(*after_bytes),
                _ => None,
            }),
            bytes_per_second: faults.strike(|fault| match fault {
                Fault::SlowExport { bytes_per_second } => Some((*bytes_per_second).max(1)),
                _ => None,
            }),
        };
        Self { connection, task, plan, sent: 0, expected: expected.max(1), since: Instant::now() }
    }

    /// Sends a piece, as far as the faults let it.
    pub async fn send(&mut self, piece: Bytes) -> Result<(), Stop> {
        let slice = if self.plan.bytes_per_second.is_some() { SLICE } else { piece.len().max(1) };
        for part in piece.chunks(slice) {
            let (allowed, stop) = self.allowed(part.len() as u64);
            let cancelled = self.task.cancelled().clone();
            tokio::select! {
                biased;
                () = cancelled.cancelled() => return Err(Stop::Cancelled),
                sent = self.connection.send(&part[..allowed as usize]) => sent.map_err(|_| Stop::ClientGone)?,
            }
            self.sent += allowed;
            if let Some(stop) = stop {
                // What was sent before the fault has to arrive before it.
                let _ = self.connection.flush().await;
                return Err(stop);
            }
            self.pace(&cancelled).await?;
        }
        self.task.progress(self.sent as f64 / self.expected as f64);
        Ok(())
    }

    /// How much of `length` bytes may go, and what happens after them.
    fn allowed(&self, length: u64) -> (u64, Option<Stop>) {
        let end = self.sent + length;
        let until = |at: u64| at.saturating_sub(self.sent);
        match &self.plan {
            Plan { cut: Some((at, task)), .. } if *at < end => (until(*at), Some(Stop::Cut(*task))),
            Plan { end: Some((at, task)), .. } if *at < end => (until(*at), Some(Stop::EndEarly(*task))),
            Plan { read_error: Some(at), .. } if *at < end => {
                let failure = Failure::new("VDI_IO_ERROR", ["Device I/O errors"]);
                (until(*at), Some(Stop::Failed(failure)))
            }
            _ => (length, None),
        }
    }

    async fn pace(&self, cancelled: &tokio_util::sync::CancellationToken) -> Result<(), Stop> {
        let Some(rate) = self.plan.bytes_per_second else { return Ok(()) };
        let due = self.since + Duration::from_secs_f64(self.sent as f64 / rate as f64);
        tokio::select! {
            () = cancelled.cancelled() => Err(Stop::Cancelled),
            () = tokio::time::sleep_until(due) => Ok(()),
        }
    }

    /// Ends the export: the task is told, then the connection ends as it must.
    pub async fn end(mut self, pool: &Pool, outcome: Result<(), Stop>) {
        let flushed = match outcome {
            Ok(()) => self.connection.flush().await.map_err(|_| Stop::ClientGone),
            Err(stop) => Err(stop),
        };
        match flushed {
            Ok(()) => {
                self.task.settle(Ok(String::new()));
                tokio::select! {
                    () = tokio::time::sleep(pool.settings.close_after) => {}
                    () = pool.stop.cancelled() => {}
                }
                self.connection.close().await;
            }
            Err(Stop::Cut(after)) => {
                tell(self.task, after);
                self.connection.reset();
            }
            Err(Stop::EndEarly(after)) => {
                tell(self.task, after);
                self.connection.close().await;
            }
            Err(Stop::Failed(failure)) => {
                self.task.settle(Err(failure));
                self.connection.close().await;
            }
            Err(Stop::Cancelled) => {
                let cancelled = Failure::new("TASK_CANCELLED", [self.task.reference()]);
                self.task.settle(Err(cancelled));
                self.connection.reset();
            }
            Err(Stop::ClientGone) => {
                self.task.settle(Err(Failure::new("INTERNAL_ERROR", ["the client closed the connection"])));
                self.connection.reset();
            }
        }
    }
}

fn tell(task: Task, after: TaskAfter) {
    match after {
        TaskAfter::Failure => task.settle(Err(Failure::new("VDI_IO_ERROR", ["Device I/O errors"]))),
        TaskAfter::Pending => task.abandon(),
        TaskAfter::Vanished => task.vanish(),
    }
}
