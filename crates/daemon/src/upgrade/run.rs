//! An upgrade in the history: its steps up to the swap.

use std::sync::Arc;
use std::time::Duration;

use api::{
    ErrorReport, EventKind, LogLevel, Outcome, Phase, RunKind, TaskId, TaskKind, TaskResult, TransferMeter, UpgradePhase,
    UpgradeState,
};
use signed::Opened;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Claim, Expected, Pending, ProgramInfo, Stage, Upgrades, end_run};
use crate::daemon::Daemon;
use crate::fault::{self, Fault};
use crate::journal::JournalError;
use crate::store::NewRun;

/// Wait for running transfers unless told otherwise, seconds.
const WAIT: u64 = 3600;
/// The longest wait that can be asked for, seconds: nothing starts meanwhile.
const LONGEST_WAIT: u64 = 7 * 24 * 3600;
/// How long the launcher's token counts at most, seconds. Longer than a machine stays off in the middle of a swap: it is
/// taken back when the swap is over, whichever way, and a good program must not be found bad because the token is too old.
const LOAN: i64 = 30 * 24 * 3600;
/// Between two looks at what still runs; news of a run comes sooner.
const LOOK: Duration = Duration::from_millis(500);

const KEEP: (TaskId, &str) = (1, "check the bundle and keep its program");
const DRAIN: (TaskId, &str) = (2, "let running transfers end");
const SWAP: (TaskId, &str) = (3, "swap programs and check the new one");

/// An upgrade that has its bundle.
struct Upgrading {
    /// Given back when it is over.
    claim: Claim,
    daemon: Arc<Daemon>,
    run: String,
    pending: Pending,
}

/// How long running transfers may take.
///
/// # Errors
/// Longer than anybody can mean.
pub(super) fn wait(seconds: Option<u64>) -> Result<Duration, Fault> {
    match seconds.unwrap_or(WAIT) {
        seconds if seconds <= LONGEST_WAIT => Ok(Duration::from_secs(seconds)),
        _ => Err(Fault::invalid("waitSeconds", format!("waitSeconds: expected at most {LONGEST_WAIT}, a week"))),
    }
}

/// Keeps the program, and goes on in the background.
pub(super) async fn start(claim: Claim, daemon: &Arc<Daemon>, opened: Opened, wait: Duration) -> Result<UpgradeState, Fault> {
    let upgrades = Arc::clone(&claim.0);
    let info = ProgramInfo::of(&opened.manifest);
    let (from, to) = (upgrades.running.words(), info.words());
    let new =
        NewRun {
            id: crate::runs::run_id(), kind: RunKind::Upgrade, job: None, label: format!("{from} → {to}"), recovers: None
        };
    let run = daemon.journal.create(new).await?.id;
    let programs = upgrades.programs.clone();
    let kept = async {
        begin(daemon, &run, KEEP).await?;
        let kept = tokio::task::spawn_blocking(move || programs.keep(&info, &opened.program)).await;
        let program = kept.map_err(|_| ErrorReport::new("INTERNAL", "the program was not kept: its writer broke"))??;
        end(daemon, &run, KEEP).await?;
        let pending = Pending {
            stage: Stage::Draining,
            run: run.clone(),
            program,
            former: upgrades.folder.clone(),
            from: from.clone(),
            to: to.clone(),
            expected: None,
            error: None,
            notes: Vec::new(),
        };
        begin(daemon, &run, DRAIN).await?;
        upgrades.programs.set_pending(&pending)?;
        Ok::<_, Fault>(pending)
    };
    let pending = match kept.await {
        Ok(pending) => pending,
        Err(fault) => {
            let report = fault.clone().report();
            let _ = end_run(&daemon.journal, &run, Outcome::Failure, Some(report)).await;
            return Err(fault);
        }
    };
    let state =
        UpgradeState { phase: UpgradePhase::Draining, from, to, since: daemon.now(), run: Some(run.clone()), error: None };
    upgrades.set_state(state.clone());
    daemon.runs.hold(true);
    daemon.news.moved();
    let upgrading = Upgrading { claim, daemon: Arc::clone(daemon), run: run.clone(), pending };
    daemon.runs.adopt(&run, move |cancel| upgrading.carry_out(wait, cancel));
    Ok(state)
}

async fn begin(daemon: &Daemon, run: &str, (task, label): (TaskId, &str)) -> Result<(), JournalError> {
    let kind = EventKind::TaskStarted { task, parent: None, kind: TaskKind::Step, label: label.into(), object: None };
    daemon.journal.append(run, kind).await.map(drop)
}

async fn end(daemon: &Daemon, run: &str, (task, _): (TaskId, &str)) -> Result<(), JournalError> {
    let kind = EventKind::TaskEnded { task, outcome: Outcome::Success, error: None, result: TaskResult::default() };
    daemon.journal.append(run, kind).await.map(drop)
}

impl Upgrading {
    fn upgrades(&self) -> &Arc<Upgrades> {
        &self.claim.0
    }

    async fn carry_out(mut self, wait: Duration, cancel: CancellationToken) {
        let given_up = match self.drained(wait, &cancel).await {
            false if self.daemon.stop.is_cancelled() => Some(Err("the proxy was stopped while it let running transfers end")),
            false => Some(Ok(())),
            true => None,
        };
        let report = match given_up {
            None => match self.hand_over().await {
                Ok(()) => return,
                Err(fault) => fault.report(),
            },
            Some(Ok(())) => ErrorReport::new("CANCELLED", "somebody cancelled the upgrade; nothing was swapped"),
            Some(Err(why)) => {
                ErrorReport::new("UPGRADE_INTERRUPTED", why).with_next("nothing was swapped; start the upgrade again")
            }
        };
        let outcome = if report.code == "CANCELLED" { Outcome::Cancelled } else { Outcome::Failure };
        self.give_up(outcome, report).await;
    }

    /// Waits until nothing runs any more, or nobody wants it: false.
    async fn drained(&self, wait: Duration, cancel: &CancellationToken) -> bool {
        let mut watcher = self.daemon.news.watcher();
        let deadline = Instant::now() + wait;
        let mut told = String::new();
        loop {
            let late = Instant::now() >= deadline;
            let busy = self.daemon.runs.busy(&self.run);
            if busy.is_empty() {
                return !cancel.is_cancelled();
            }
            for (run, queued_recovery) in &busy {
                // A clean-up that waits for its pool is begun again at the next start, however often.
                let why = match (late, queued_recovery) {
                    (_, true) => "this proxy is being upgraded; it is cleaned up afterwards",
                    (true, false) => "this proxy is being upgraded, and the time that was given to running transfers is over",
                    (false, false) => continue,
                };
                if let Err(error) = self.daemon.runs.cancel_because(&run.id, why).await {
                    tracing::warn!(run = run.id, error = %error.report(), "cannot cancel a run before an upgrade");
                }
            }
            let words = busy.iter().map(|(run, _)| format!("run {} ({})", run.id, run.label)).collect::<Vec<_>>().join(", ");
            if words != told {
                let meter = TransferMeter { phase: Phase::Queued, waiting_for: Some(words.clone()), ..TransferMeter::default() };
                let _ = self.daemon.journal.append_soon(&self.run, EventKind::TaskProgress { task: DRAIN.0, meter }).await;
                told = words;
            }
            watcher.take(&self.daemon.news);
            tokio::select! {
                () = cancel.cancelled() => return false,
                _ = watcher.wait() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// From here on the launcher goes on, whatever happens to this process.
    async fn hand_over(&mut self) -> Result<(), Fault> {
        let daemon = Arc::clone(&self.daemon);
        let expected = Expected {
            token: daemon.tokens.lend(LOAN, daemon.now()).await?,
            id: daemon.id(),
            fingerprint: daemon.fingerprint().to_string(),
            pools: daemon.pools.ids(),
            remotes: daemon.store.remotes().await?.into_iter().map(|remote| remote.id).collect(),
            jobs: daemon.store.jobs().await?.into_iter().map(|job| job.id).collect(),
        };
        end(&daemon, &self.run, DRAIN).await?;
        begin(&daemon, &self.run, SWAP).await?;
        self.pending.stage = Stage::Swap;
        self.pending.expected = Some(expected);
        self.upgrades().programs.set_pending(&self.pending)?;
        let (from, to) = (self.pending.from.clone(), self.pending.to.clone());
        tracing::info!(from, to, "drained; ending, so that the launcher swaps programs");
        let run = Some(self.run.clone());
        let state = UpgradeState { phase: UpgradePhase::Swapping, from, to, since: daemon.now(), run, error: None };
        self.upgrades().set_state(state);
        daemon.news.moved();
        self.upgrades().swap.cancel();
        Ok(())
    }

    /// It does not come to a swap: everything as before.
    async fn give_up(self, outcome: Outcome, report: ErrorReport) {
        let daemon = &self.daemon;
        tracing::warn!(to = self.pending.to, error = %report, "an upgrade is given up");
        let message = report.message.clone();
        let concluded =
            self.upgrades().programs.conclude(&self.pending, UpgradePhase::Failed, Some(report.clone()), daemon.now());
        let _ = daemon.journal.append(&self.run, EventKind::Log { task: None, level: LogLevel::Warning, message }).await;
        match end_run(&daemon.journal, &self.run, outcome, Some(report.clone())).await {
            // What is told here is told: the next start has nothing to add.
            Ok(()) => _ = concluded.and_then(|()| self.upgrades().programs.forget_outcome()),
            Err(error) => tracing::error!(run = self.run, error = fault::chain(&error), "cannot end the run of an upgrade"),
        }
        let Pending { from, to, .. } = self.pending.clone();
        let run = Some(self.run.clone());
        let state = UpgradeState { phase: UpgradePhase::Failed, from, to, since: daemon.now(), run, error: Some(report) };
        self.upgrades().remember(&daemon.store, &state).await;
        daemon.runs.hold(false);
        self.upgrades().set_state(state);
        daemon.news.moved();
        if !daemon.stop.is_cancelled() {
            daemon.runs.start_held().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::maintenance::Tokens;
    use crate::store::Store;

    #[tokio::test]
    async fn the_launchers_token_counts_longer_than_a_machine_stays_off() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("name = \"p\"\nstate_dir = {:?}\ntoken = \"configured-0123456789\"\n", dir.path().join("state"));
        let config = Config::parse(&dir.path().join("backhauld.toml"), &text).unwrap();
        let store = Arc::new(Store::open(&config.state_dir).await.unwrap());
        let tokens = Tokens::open(store, &config).await.unwrap();
        let lent = tokens.lend(LOAN, 0).await.unwrap();
        let days = |days: i64| days * 24 * 3_600_000;
        assert!(tokens.accept(lent.expose(), days(7)) && !tokens.accept(lent.expose(), days(365)));
    }

    #[test]
    fn nobody_waits_for_ever() {
        assert_eq!(wait(None).unwrap(), Duration::from_secs(3600));
        assert_eq!(wait(Some(0)).unwrap(), Duration::ZERO);
        assert_eq!(wait(Some(LONGEST_WAIT)).unwrap(), Duration::from_secs(604_800));
        for seconds in [LONGEST_WAIT + 1, u64::MAX] {
            assert!(matches!(wait(Some(seconds)), Err(Fault::InvalidParameters(_))));
        }
    }
}
