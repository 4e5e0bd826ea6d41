//! Upgrades of this proxy, as its daemon sees them: a bundle is checked and kept, running transfers end, and then the
//! daemon ends too and leaves the rest to its launcher ([`crate::launch`]). Whoever runs afterwards, the new program or the
//! one of before, puts into the history how it came out.

mod programs;
mod run;
pub mod version;

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::{
    ErrorReport, EventKind, LogLevel, Outcome as RunOutcome, RunSummary, TaskResult, UpgradeParams, UpgradePhase, UpgradeState,
};
use signed::{BundleManifest, Opened, PublicKey};
use tokio_util::sync::CancellationToken;

use crate::daemon::Daemon;
use crate::fault::{self, Fault};
use crate::journal::Journal;
use crate::store::Store;
pub use programs::{EXIT_SWAP, Expected, LAUNCHER, Outcome, PROBATION, Pending, ProgramInfo, Programs, ProgramsError, Stage};

/// The method, in refusals.
const OPERATION: &str = "upgrade.start";
/// The last upgrade's state, among the facts of the proxy.
const LAST: &str = "last_upgrade";
/// Space that must stay free beside what an upgrade writes, bytes: the journals of runs need it meanwhile.
pub(crate) const ROOM: u64 = 64 << 20;

/// Upgrades of this proxy.
pub struct Upgrades {
    programs: Programs,
    keys: Vec<PublicKey>,
    /// Whether a launcher started this process.
    launched: bool,
    /// Whether the launcher has yet to say that this program may stay.
    on_probation: AtomicBool,
    running: ProgramInfo,
    /// Folder of the running program; none: not from a bundle.
    folder: Option<String>,
    state: Mutex<Option<UpgradeState>>,
    busy: AtomicBool,
    /// Held while a bundle is received.
    pub(crate) door: tokio::sync::Mutex<()>,
    /// Told when the daemon is to end, so that its launcher swaps programs.
    pub swap: CancellationToken,
}

/// An upgrade was interrupted, and only the launcher can finish it.
#[derive(Debug, thiserror::Error)]
#[error(
    "an upgrade to {to} was interrupted in the middle of its swap; start `backhauld launch` with the same configuration, \
     which finishes it or puts the state of before back"
)]
pub struct HalfDone {
    to: String,
}

/// Whether the parent of this process is a launcher, and whether it has put it on probation.
fn launcher() -> (bool, bool) {
    let told = std::env::var(LAUNCHER).ok().and_then(|text| text.parse::<i32>().ok());
    // Somebody whose own parent is a launcher inherits the variable, and none of what it stands for.
    let launched = told.is_some() && told == rustix::process::getppid().map(rustix::process::Pid::as_raw_pid);
    (launched, launched && std::env::var_os(PROBATION).is_some())
}

impl Upgrades {
    /// Over a state folder; before its database is opened.
    ///
    /// # Errors
    /// [`HalfDone`].
    pub fn open(programs: Programs, keys: Vec<PublicKey>) -> Result<Arc<Self>, HalfDone> {
        let (launched, on_probation) = launcher();
        let pending = programs.pending().unwrap_or_else(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot tell whether an upgrade is under way");
            None
        });
        if let Some(pending) = &pending
            && !on_probation
            && pending.stage != Stage::Draining
        {
            return Err(HalfDone { to: pending.to.clone() });
        }
        let folder = programs.running();
        let running = folder.as_ref().and_then(|name| programs.info(name)).unwrap_or_else(ProgramInfo::own);
        let state = pending.filter(|_| on_probation).map(|pending| UpgradeState {
            phase: UpgradePhase::Swapping,
            from: pending.from,
            to: pending.to,
            since: jiff::Timestamp::now().as_millisecond(),
            run: Some(pending.run),
            error: None,
        });
        Ok(Arc::new(Self {
            programs,
            keys,
            launched,
            on_probation: AtomicBool::new(on_probation),
            running,
            folder,
            state: Mutex::new(state),
            busy: AtomicBool::new(false),
            door: tokio::sync::Mutex::default(),
            swap: CancellationToken::new(),
        }))
    }

    /// What runs.
    pub fn running(&self) -> &ProgramInfo {
        &self.running
    }

    /// The folder of programs.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Removes what was sent and never started: an upgrade sends its bundle anew.
    pub(crate) fn forget_received(&self) {
        if let Err(error) = self.programs.forget_received() {
            tracing::warn!(error = &error as &dyn std::error::Error, "a bundle that was never started stays on the disk");
        }
    }

    /// Whether this program may yet be taken back.
    pub fn on_probation(&self) -> bool {
        self.on_probation.load(Ordering::Relaxed)
    }

    /// Whether nothing may be changed now: it could be lost with a roll-back.
    pub fn holds_still(&self) -> bool {
        self.on_probation() || self.swap.is_cancelled()
    }

    /// The public keys, as they are told to a deployed proxy.
    pub fn keys(&self) -> Vec<String> {
        self.keys.iter().map(ToString::to_string).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Option<UpgradeState>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The upgrade that goes on, or the last one.
    pub fn state(&self) -> Option<UpgradeState> {
        self.lock().clone()
    }

    fn set_state(&self, state: UpgradeState) {
        *self.lock() = Some(state);
    }

    /// Runs that must stay open although no worker is at work on them: that of the upgrade that brought this program.
    pub fn open_run(&self) -> Option<String> {
        if !self.on_probation() {
            return None;
        }
        self.programs.pending().ok().flatten().map(|pending| pending.run)
    }

    /// At the start, and when the probation is over: puts into the history what the launcher says of an upgrade.
    pub async fn take_up(&self, store: &Store, journal: &Journal, now: i64) {
        if let Err(fault) = self.try_take_up(store, journal, now).await {
            tracing::error!(error = %fault.report(), "cannot put the outcome of an upgrade into the history");
        }
    }

    async fn try_take_up(&self, store: &Store, journal: &Journal, now: i64) -> Result<(), Fault> {
        if self.state().is_none()
            && let Some(text) = store.fact(LAST).await?
        {
            *self.lock() = serde_json::from_str(&text).ok();
        }
        if let Some(pending) = self.programs.pending()?
            && pending.stage == Stage::Draining
        {
            let report = ErrorReport::new("UPGRADE_INTERRUPTED", "the proxy ended while it let running transfers end")
                .with_next("nothing was swapped; start the upgrade again");
            self.programs.conclude(&pending, UpgradePhase::Failed, Some(report), now)?;
        }
        let Some(outcome) = self.programs.outcome()? else { return Ok(()) };
        let Outcome { run, from, to, phase, at, error, notes } = outcome;
        if journal.run(&run).is_some() {
            for message in notes {
                journal.append(&run, EventKind::Log { task: None, level: LogLevel::Info, message }).await?;
            }
            let ended = if phase == UpgradePhase::Done { RunOutcome::Success } else { RunOutcome::Failure };
            end_run(journal, &run, ended, error.clone()).await?;
        }
        let state = UpgradeState { phase, from, to, since: at, run: Some(run), error };
        self.remember(store, &state).await;
        tracing::info!(from = state.from, to = state.to, ?phase, "an upgrade is over");
        self.programs.forget_outcome()?;
        self.set_state(state);
        Ok(())
    }

    async fn remember(&self, store: &Store, state: &UpgradeState) {
        let text = serde_json::to_string(state).unwrap_or_default();
        if let Err(error) = store.set_fact(LAST, &text).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot keep how an upgrade came out");
        }
    }

    /// The launcher says that this program stays.
    pub async fn confirmed(&self, daemon: &Daemon) {
        if self.on_probation.swap(false, Ordering::Relaxed) {
            // Before it is told to be over: whoever waits for that may go on at once.
            daemon.runs.hold(false);
            self.take_up(&daemon.store, &daemon.journal, daemon.now()).await;
            if let Err(error) = daemon.runs.clean_up_leftovers().await {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "cannot tell which runs have left something; the next start cleans up after them");
            }
            daemon.runs.start_held().await;
            if let Err(error) = daemon.tokens.take_back().await {
                tracing::warn!(error = &error as &dyn std::error::Error, "the launcher's token counts until its time is over");
            }
            daemon.news.moved();
        }
    }

    /// Why no upgrade can begin now, apart from the bundle.
    ///
    /// # Errors
    /// The refusal.
    pub fn permit(&self) -> Result<(), Fault> {
        let refused = |reason: &str| Err(Fault::forbidden(OPERATION, reason));
        if !self.launched {
            return refused(
                "this daemon was started by hand, and only its launcher can swap programs; start it with `backhauld launch \
                 --config FILE`, as its service does",
            );
        }
        if self.keys.is_empty() {
            return refused(
                "no key is configured that upgrades must be signed with; put the public key of whoever makes them into \
                 [upgrade] keys of the configuration and restart the proxy",
            );
        }
        if self.holds_still() || self.busy.load(Ordering::Relaxed) {
            return refused("an upgrade is going on already");
        }
        Ok(())
    }

    /// Checks and keeps a bundle, then begins to drain; the rest happens by itself.
    ///
    /// # Errors
    /// Refused; nothing has been touched then.
    pub async fn start(self: &Arc<Self>, daemon: &Arc<Daemon>, given: UpgradeParams) -> Result<UpgradeState, Fault> {
        self.permit()?;
        // Before the bundle is taken: it goes with the first attempt.
        let wait = run::wait(given.wait_seconds)?;
        let claim = Claim::take(self)?;
        let opened = self.open_received(&given.bundle).await?;
        self.check(&opened.manifest, given.downgrade)?;
        self.check_room(opened.manifest.size)?;
        run::start(claim, daemon, opened, wait).await
    }

    /// Takes a bundle that was sent, whether it is good or not.
    async fn open_received(&self, sum: &str) -> Result<Opened, Fault> {
        let path = self.programs.received(sum).ok_or_else(|| Fault::invalid("bundle", "bundle: expected its SHA-256"))?;
        if !path.is_file() {
            return Err(Fault::missing("bundle", sum));
        }
        let keys = self.keys.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let opened = File::open(&path).map_err(signed::BundleError::Read).and_then(|file| signed::open_bundle(file, &keys));
            let _ = std::fs::remove_file(&path);
            opened
        });
        let opened =
            opened.await.map_err(|_| Fault::forbidden(OPERATION, "the upgrade bundle cannot be read: its reader broke"))?;
        opened.map_err(|error| Fault::forbidden(OPERATION, fault::chain(&error)))
    }

    fn check(&self, manifest: &BundleManifest, downgrade: bool) -> Result<(), Fault> {
        let (build, arch) = (&manifest.build, std::env::consts::ARCH);
        let new = ProgramInfo::of(manifest);
        let refused = |reason: String| Err(Fault::forbidden(OPERATION, reason));
        if build.arch != arch {
            return refused(format!(
                "the upgrade bundle is for {}, and this proxy is {arch}; get the bundle for {arch}",
                build.arch
            ));
        }
        if (&new.version, &new.build) == (&self.running.version, &self.running.build) {
            return refused(format!("this proxy runs {} already", self.running.words()));
        }
        if !downgrade && version::compare(&new.version, &self.running.version).is_lt() {
            return refused(format!(
                "{} is older than the {} that runs here, and may not read its state; if that is what you want, ask for it: \
                 --downgrade, or Version in the form",
                new.words(),
                self.running.words()
            ));
        }
        Ok(())
    }

    /// The program and a copy of the state must fit.
    fn check_room(&self, program: u64) -> Result<(), Fault> {
        let state = crate::launch::state_size(self.programs.state_dir());
        let needed = program.saturating_add(state.saturating_mul(2)).saturating_add(ROOM);
        let Some(free) = self.programs.free() else { return Ok(()) };
        if free < needed {
            let (free, needed) = (api::format_bytes(free), api::format_bytes(needed));
            let place = self.programs.state_dir().display();
            return Err(Fault::forbidden(OPERATION, format!("an upgrade needs {needed} in {place}, and {free} are free there")));
        }
        Ok(())
    }
}

/// The one upgrade that can go on; given back when it is dropped.
pub(crate) struct Claim(Arc<Upgrades>);

impl Claim {
    fn take(upgrades: &Arc<Upgrades>) -> Result<Self, Fault> {
        if upgrades.busy.swap(true, Ordering::Relaxed) {
            return Err(Fault::forbidden(OPERATION, "an upgrade is going on already"));
        }
        Ok(Self(Arc::clone(upgrades)))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.busy.store(false, Ordering::Relaxed);
    }
}

/// Ends a run of the daemon's own with the steps still open in it.
async fn end_run(
    journal: &Journal,
    run: &str,
    outcome: RunOutcome,
    error: Option<ErrorReport>,
) -> Result<(), crate::journal::JournalError> {
    let open: Vec<_> = journal.look(run, |run| run.open_tasks().map(|task| task.id).collect()).unwrap_or_default();
    for task in open {
        let kind = EventKind::TaskEnded { task, outcome, error: error.clone(), result: TaskResult::default() };
        journal.append(run, kind).await?;
    }
    journal.append(run, EventKind::RunEnded { outcome, error, summary: RunSummary::default() }).await.map(drop)
}

impl From<ProgramsError> for Fault {
    fn from(error: ProgramsError) -> Self {
        Self::Failed(fault::report("PROGRAMS", "the folder of programs cannot be used", &error))
    }
}
