//! Following a run on standard output: one event a line, every event once.

use std::time::Duration;

use api::{Event, EventKind, Outcome, Phase, Run, TransferMeter, format_bytes, format_rate};
use serde::Serialize;

use super::context::{Context, Site};
use super::failure::{Exit, Failure};
use super::objects::print_one;
use super::output;
use crate::fleet::{CallError, Follower};

/// How long a proxy may be away before a watcher gives up. The run does not care.
const PATIENCE: Duration = Duration::from_secs(120);

/// An event with where it belongs, so that a line says how to go on from it.
#[derive(Serialize)]
struct Line<'a> {
    proxy: &'a str,
    run: &'a str,
    #[serde(flatten)]
    event: &'a Event,
}

/// Tells of a run that has just been started, and follows it when asked to.
///
/// # Errors
/// [`Failure`]; also when a run that was followed did not succeed.
pub async fn started(context: &Context, site: &Site, run: &Run, follow_it: bool) -> Result<(), Failure> {
    if follow_it {
        return follow(context, site, &run.id, 0).await;
    }
    let text = format!("started run {} ({}) on proxy {}; backhaul run watch {}", run.id, run.label, site.name, run.id);
    print_one(context, &site.name, run, text)
}

/// Prints the events of a run after `cursor` until it ends.
///
/// # Errors
/// [`Failure`]; also when the run did not succeed.
pub async fn follow(context: &Context, site: &Site, run: &str, cursor: u64) -> Result<(), Failure> {
    let mut follower = Follower::new(site.client().clone(), run.to_owned(), cursor, Some(PATIENCE));
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    let mut teller = Teller::new(context, &site.name, run);
    loop {
        let event = tokio::select! {
            event = follower.next() => event,
            _ = &mut interrupted => {
                resume_hint(run, follower.cursor());
                return Err(Failure::silent(Exit::Failed));
            }
        };
        let event = match event {
            Ok(Some(event)) => event,
            // Watched from behind its last event: its outcome is still to be told.
            Ok(None) => return Ok(()),
            Err(error) => {
                if !matches!(error, CallError::Answered { .. }) {
                    resume_hint(run, follower.cursor());
                }
                return Err(error.into());
            }
        };
        teller.tell(&event)?;
        if let EventKind::RunEnded { outcome, error, .. } = event.kind {
            return match outcome {
                Outcome::Success => Ok(()),
                _ => Err(Failure { exit: Exit::Failed, report: error.filter(|_| !context.json) }),
            };
        }
    }
}

/// Prints the events of a run.
pub(super) struct Teller<'a> {
    json: bool,
    proxy: &'a str,
    run: &'a str,
    labels: Labels,
}

impl<'a> Teller<'a> {
    pub(super) fn new(context: &Context, proxy: &'a str, run: &'a str) -> Self {
        Self { json: context.json, proxy, run, labels: Labels::default() }
    }

    /// Prints one, unless it only matters to a restart.
    ///
    /// # Errors
    /// Standard output is gone.
    pub(super) fn tell(&mut self, event: &Event) -> Result<(), Failure> {
        if self.json {
            output::json(&Line { proxy: self.proxy, run: self.run, event })?;
        } else if let Some(text) = self.labels.sentence(&event.kind) {
            let time = output::time(event.at);
            output::line(&format!("{} {:>5}  {}", time.get(11..).unwrap_or(&time), event.cursor, output::printable(&text)))?;
        }
        Ok(())
    }
}

fn resume_hint(run: &str, cursor: u64) {
    output::aside(&format!("the run goes on without us; to follow it again: backhaul run watch {run} --from {cursor}"));
}

/// A run's state in a word or two.
pub fn state(run: &Run) -> String {
    match run.outcome {
        Some(outcome) => format!("{} {}", output::word(&outcome), output::time(run.ended_at.unwrap_or(run.queued_at))),
        None if run.cancelling => "cancelling".into(),
        None => "running".into(),
    }
}

/// What tasks are called, learnt from the events that announce them.
#[derive(Default)]
struct Labels(std::collections::HashMap<u32, String>);

impl Labels {
    fn of(&self, task: u32) -> String {
        self.0.get(&task).cloned().unwrap_or_else(|| format!("task {task}"))
    }

    /// An event in words; nothing for those that only matter to a restart.
    fn sentence(&mut self, kind: &EventKind) -> Option<String> {
        Some(match kind {
            EventKind::RunQueued { kind, label, .. } => format!("queued: {} {label}", output::word(kind)),
            EventKind::RunStarted { .. } => "started".into(),
            EventKind::TaskStarted { task, kind, label, .. } => {
                // Many labels begin with their kind already: "snapshot of web-01".
                let kind = output::word(kind);
                let name = if label.starts_with(&kind) { label.clone() } else { format!("{kind} {label}") };
                self.0.insert(*task, name.clone());
                format!("{name}: started")
            }
            EventKind::TaskProgress { task, meter } => format!("{}: {}", self.of(*task), progress(meter)),
            EventKind::Log { task, level, message } => {
                let task = task.map(|task| format!("{}: ", self.of(task))).unwrap_or_default();
                format!("{task}{}: {message}", output::word(level))
            }
            EventKind::Intent { .. } | EventKind::Settled { .. } => return None,
            EventKind::TaskEnded { task, outcome, error, result } => {
                let bytes = result.bytes.map(|bytes| format!(", {}", format_bytes(bytes))).unwrap_or_default();
                let path = result.path.as_ref().map(|path| format!(" by {path}")).unwrap_or_default();
                let error = error.as_ref().map(|error| format!(": {}", error.message)).unwrap_or_default();
                format!("{}: {}{bytes}{path}{error}", self.of(*task), output::word(outcome))
            }
            // What has no VMs in it has nothing of this kind to count.
            EventKind::RunEnded { outcome, summary, .. } if summary.succeeded + summary.failed == 0 && summary.bytes == 0 => {
                format!("ended: {}", output::word(outcome))
            }
            EventKind::RunEnded { outcome, summary, .. } => format!(
                "ended: {}, {} succeeded, {} failed, {} moved, {} written",
                output::word(outcome),
                summary.succeeded,
                summary.failed,
                format_bytes(summary.bytes),
                format_bytes(summary.bytes_written)
            ),
        })
    }
}

fn progress(meter: &TransferMeter) -> String {
    let mut text = output::word(&meter.phase);
    if meter.bytes_done > 0 || meter.phase == Phase::Transferring {
        text.push_str(&format!(" {}", format_bytes(meter.bytes_done)));
        if let Some(total) = meter.bytes_total {
            text.push_str(&format!(" of {}", format_bytes(total)));
        }
    }
    if meter.bytes_per_second > 0 {
        text.push_str(&format!(", {}", format_rate(meter.bytes_per_second)));
    }
    if let Some(waiting) = &meter.waiting_for {
        text.push_str(&format!(", waits for {waiting}"));
    }
    text
}
