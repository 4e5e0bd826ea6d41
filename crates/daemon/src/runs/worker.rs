//! The daemon's side of one worker: its events into the journal, its acknowledgements, its death.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use api::{ErrorReport, EventKind, Outcome, format_bytes};
use engine::plan::Plan;
use engine::{WorkerControl, WorkerHandle};
use tokio_util::sync::CancellationToken;

use super::{End, Runs};
use crate::fault;
use crate::fold::phase_words;
use crate::journal::JournalError;

/// After a cancel a worker cleans up by itself; then it is ended.
const CLEANING: Duration = Duration::from_secs(90);
/// The same when the daemon stops.
const STOPPING: Duration = Duration::from_secs(30);
/// From the end of a process to its burial; one that is stuck in the kernel is left behind after that.
const BURIAL: Duration = Duration::from_secs(5);

impl Runs {
    /// Executes a plan in a process of its own. None: the worker wrote the end itself.
    pub(super) async fn work(&self, run: &str, plan: Plan, cancel: &CancellationToken) -> Option<End> {
        let arguments: Vec<&str> = self.program.arguments.iter().map(String::as_str).collect();
        let mut worker = match engine::spawn(&self.program.path, &arguments, plan).await {
            Ok(worker) => worker,
            Err(error) => return Some(End::failure(fault::report("WORKER_START", "cannot begin the run", &error))),
        };
        tracing::info!(run, worker = worker.pid(), "worker started");
        let give_up = CancellationToken::new();
        let patience = tokio::spawn(pass_on(cancel.clone(), self.stop.clone(), worker.control(), give_up.clone()));
        let followed = self.follow(run, &mut worker, &give_up).await;
        patience.abort();
        let end = match followed {
            Followed::Ended => None,
            Followed::Died => {
                let how = burial(&mut worker).await;
                Some(self.interrupted(run, &format!("its worker {how}")))
            }
            Followed::GaveUp => {
                let _ = worker.kill();
                let how = burial(&mut worker).await;
                Some(self.interrupted(run, &format!("its worker did not stop when asked, and {how}")))
            }
            Followed::Refused(report) => {
                let _ = worker.kill();
                burial(&mut worker).await;
                Some(End::failure(report))
            }
        };
        if end.is_none() {
            burial(&mut worker).await;
        }
        end
    }

    async fn follow(&self, run: &str, worker: &mut WorkerHandle, give_up: &CancellationToken) -> Followed {
        let control = worker.control();
        loop {
            let report = tokio::select! {
                report = worker.next() => report,
                // The half-read line goes with it: nothing is read from this worker again.
                () = give_up.cancelled() => return Followed::GaveUp,
            };
            let report = match report {
                Ok(Some(report)) => report,
                Ok(None) => return Followed::Died,
                Err(error) => return Followed::Refused(fault::report("WORKER_PROTOCOL", "cannot follow the worker", &error)),
            };
            let last = matches!(report.event, EventKind::RunEnded { .. });
            let (event, durable) = (report.event, report.durable || last);
            let write = async {
                if durable { self.journal.append(run, event).await.map(drop) } else { self.journal.append_soon(run, event).await }
            };
            // A journal that cannot be written just now holds up the worker, but nobody's patience.
            let written = tokio::select! {
                written = write => written,
                () = give_up.cancelled() => return Followed::GaveUp,
            };
            match written {
                Ok(()) => {}
                // It ended the run and had more to say.
                Err(JournalError::NotOpen { .. }) => return Followed::Ended,
                Err(error) => {
                    let report = fault::report("JOURNAL", "the run was stopped because its journal cannot be written", &error);
                    return Followed::Refused(report.with_next("check the free space of the proxy's state folder"));
                }
            }
            if report.durable && control.ack(report.seq).await.is_err() && !last {
                return Followed::Died;
            }
            if last {
                return Followed::Ended;
            }
        }
    }

    /// How a run ends whose process went away: where it stood and how far it had come.
    pub(super) fn interrupted(&self, run: &str, how: &str) -> End {
        let (phase, (done, total)) = self.journal.look(run, |run| (run.phase(), run.progress())).unwrap_or_default();
        let moved = match total {
            0 => String::new(),
            _ => format!(", {} of {}", format_bytes(done), format_bytes(total)),
        };
        let message = format!("interrupted while {}{moved}: {how}", phase_words(phase));
        let report = ErrorReport::new("INTERRUPTED", message)
            .with_next("nothing that was restorable before is lost; what was left half done is cleaned up, then run it again");
        End { outcome: Outcome::Interrupted, error: Some(report) }
    }
}

enum Followed {
    /// Its last event is in the journal.
    Ended,
    /// The process is gone.
    Died,
    /// It was asked to stop, and did not.
    GaveUp,
    /// We cannot go on with it.
    Refused(ErrorReport),
}

/// Tells the worker when somebody cancels, and when patience is over.
async fn pass_on(cancel: CancellationToken, stop: CancellationToken, control: WorkerControl, give_up: CancellationToken) {
    cancel.cancelled().await;
    let _ = control.cancel().await;
    tokio::select! {
        () = tokio::time::sleep(CLEANING) => {}
        () = async { stop.cancelled().await; tokio::time::sleep(STOPPING).await } => {}
    }
    give_up.cancel();
}

/// Waits for the process to go, and says how it went.
async fn burial(worker: &mut WorkerHandle) -> String {
    match tokio::time::timeout(BURIAL, worker.wait()).await {
        Ok(Ok(status)) => in_words(status),
        Ok(Err(error)) => format!("went away in an unknown way ({error})"),
        Err(_) => {
            let pid = worker.pid();
            let _ = worker.kill();
            format!("(process {pid}) is stuck in the system and was left behind; a mount that does not answer does that")
        }
    }
}

fn in_words(status: ExitStatus) -> String {
    let name = |signal| match signal {
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL, by hand or for lack of memory",
        11 => "SIGSEGV",
        15 => "SIGTERM",
        _ => "see signal(7)",
    };
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("was killed by signal {signal} ({})", name(signal)),
        (None, Some(code)) => format!("ended with status {code} without a last word"),
        (None, None) => "went away".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_death_is_told_in_words() {
        assert_eq!(in_words(ExitStatus::from_raw(9)), "was killed by signal 9 (SIGKILL, by hand or for lack of memory)");
        assert_eq!(in_words(ExitStatus::from_raw(3 << 8)), "ended with status 3 without a last word");
    }
}
