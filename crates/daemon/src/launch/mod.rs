//! `backhauld launch`: starts the current program and, when that asks for it, swaps it for a new one; takes the new one
//! back, with the state as it was, unless it shows within its probation that it is good.
//!
//! The launcher is the process that a service manager knows. It is never replaced itself before the next start of the
//! service, so what passes between it and a daemon of another version is kept small and stable: two variables, one exit
//! code, one signal, the line with which the daemon says that it is ready, and the files of [`crate::upgrade::Programs`].
//! `docs/upgrading.md` says what happens when anything is killed at any time.

mod copy;
mod last_words;
mod probation;
mod process;
mod settings;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use api::{ErrorReport, UpgradePhase};
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::fault;
use crate::upgrade::{EXIT_SWAP, Pending, ProgramInfo, Programs, ProgramsError, Stage, version};
pub(crate) use copy::state_size;
use copy::{CopyError, StateLock};
use last_words::LastWords;
use process::{Process, StartError, exit_code};
use settings::Settings;

/// How long a new program may take to show that it is good, unless the configuration says otherwise.
pub const PROBATION_LIMIT: Duration = Duration::from_secs(45);
/// The longest probation that can be configured.
pub const LONGEST_PROBATION: Duration = Duration::from_secs(600);
/// For a program that is taken back to end by itself.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// For the lock of the state to be free once its daemon has ended.
const LOCK: Duration = Duration::from_secs(10);

/// Why the launcher cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Its folder.
    #[error(transparent)]
    Programs(#[from] ProgramsError),
    /// The state as it was cannot be put back.
    #[error(
        "cannot put the state of before the upgrade to {to} back; nothing is started before it is, the next start tries again"
    )]
    Restore {
        /// What was upgraded to.
        to: String,
        /// Cause.
        source: CopyError,
    },
    /// Somebody works on the state.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The current program.
    #[error(transparent)]
    Start(#[from] StartError),
    /// No signals.
    #[error("cannot listen for signals")]
    Signals(#[source] std::io::Error),
}

/// The whole of the launcher's process.
pub fn main(config: &Path) -> ExitCode {
    // One thread: a program dies with the thread that started it.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return crate::failed(&error),
    };
    tls::install_provider();
    let code = runtime.block_on(async { Launcher::new(config)?.run().await });
    runtime.shutdown_background();
    match code {
        Ok(code) => ExitCode::from(code),
        Err(error) => crate::failed(&error),
    }
}

/// `backhauld launched PARENT PROGRAM…`: becomes the program, which then ends when its launcher does, even by `kill -9`:
/// a state has one daemon at a time.
///
/// The wish to be told of a parent's death is the child's to utter, and survives `exec`; between `fork` and `exec` it could
/// only be uttered by unsafe code, so a process of our own stands between.
pub fn become_program(parent: i32, program: &[OsString]) -> ExitCode {
    use std::os::unix::process::CommandExt;
    let Some((path, arguments)) = program.split_first() else { return ExitCode::from(2) };
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Pid, getppid, set_parent_process_death_signal};
        let asked = set_parent_process_death_signal(Some(Signal::KILL));
        // It may have died before we asked.
        if asked.is_err() || getppid().map(Pid::as_raw_pid) != Some(parent) {
            return ExitCode::FAILURE;
        }
    }
    let error = std::process::Command::new(path).args(arguments).exec();
    eprintln!("backhauld: cannot run {}: {error}", Path::new(path).display());
    ExitCode::FAILURE
}

struct Launcher {
    config: PathBuf,
    /// None when the configuration says no state folder: then the daemon is only started, and says what is wrong with it.
    settings: Option<Settings>,
    signals: Signals,
}

/// The signals that ask the launcher to end. They are passed on.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::TERM,
            _ = self.interrupt.recv() => Signal::INT,
        }
    }

    /// Whether one came that nobody has waited for.
    async fn came(&mut self) -> bool {
        tokio::select! {
            biased;
            _ = self.next() => true,
            () = std::future::ready(()) => false,
        }
    }
}

/// What is to be started.
struct Program {
    /// None: the launcher's own.
    path: Option<PathBuf>,
    name: String,
}

/// How it goes on when a program has ended.
enum Next {
    /// Look whether there is something to settle, and start again.
    Again,
    /// The launcher ends too.
    Exit(u8),
}

impl Launcher {
    fn new(config: &Path) -> Result<Self, LaunchError> {
        let signals = Signals {
            terminate: signal(SignalKind::terminate()).map_err(LaunchError::Signals)?,
            interrupt: signal(SignalKind::interrupt()).map_err(LaunchError::Signals)?,
        };
        let settings = Settings::read(config);
        if settings.is_none() {
            tracing::warn!(config = %config.display(), "the configuration names no state folder: no upgrade is looked for");
        }
        Ok(Self { config: config.to_owned(), settings, signals })
    }

    async fn run(mut self) -> Result<u8, LaunchError> {
        let Some(settings) = self.settings.clone() else {
            let own = Program { path: None, name: "the program of the package".into() };
            let process = Process::start(&own, &self.config, false)?;
            return match self.follow(process, None).await? {
                Next::Exit(code) => Ok(code),
                Next::Again => Ok(EXIT_SWAP),
            };
        };
        let programs = Programs::below(&settings.state_dir);
        programs.make()?;
        let _only_one = copy::lock_launcher(programs.dir())?;
        loop {
            let trial = self.settle(&settings, &programs).await?;
            // A signal that came meanwhile is for a program that was not there.
            if self.signals.came().await {
                return Ok(0);
            }
            // The daemon of a launcher that was killed may take a moment to be gone. One that stays is told of by the new one.
            drop(StateLock::take(&settings.state_dir, LOCK).await);
            let next = match trial {
                Some(pending) => self.try_new(&settings, &programs, pending).await?,
                None => {
                    let program = choose(&programs)?;
                    tracing::info!(program = program.name, "starting the daemon");
                    let process = Process::start(&program, &self.config, false)?;
                    self.follow(process, Some(&programs)).await?
                }
            };
            if let Next::Exit(code) = next {
                return Ok(code);
            }
        }
    }

    /// Does what the daemon that has just ended, or an earlier life of this launcher, has left to be done; answers the
    /// upgrade whose program is to be tried now.
    async fn settle(&self, settings: &Settings, programs: &Programs) -> Result<Option<Pending>, LaunchError> {
        let Some(mut pending) = programs.pending()? else { return Ok(None) };
        match pending.stage {
            Stage::Draining => {
                let report = interrupted("the proxy ended while it let running transfers end; nothing was swapped");
                programs.conclude(&pending, UpgradePhase::Failed, Some(report), now())?;
                Ok(None)
            }
            Stage::Swap => {
                let locked = StateLock::take(&settings.state_dir, LOCK).await?;
                let saved = copy::save(&settings.state_dir, &programs.before());
                drop(locked);
                if let Err(error) = saved {
                    let report = fault::report("UPGRADE_NO_COPY", "the state cannot be copied before the swap", &error)
                        .with_next("check the free space of the proxy's state folder, then start the upgrade again");
                    programs.conclude(&pending, UpgradePhase::Failed, Some(report), now())?;
                    return Ok(None);
                }
                pending.stage = Stage::Copied;
                programs.set_pending(&pending)?;
                Ok(Some(pending))
            }
            Stage::Copied => Ok(Some(pending)),
            Stage::Probation => {
                let report = interrupted("the launcher was ended while the new program was on probation");
                self.roll_back(settings, programs, pending, report).await?;
                Ok(None)
            }
            Stage::Restoring => {
                // One whose outcome stands has its state back already.
                let concluded = programs.outcome()?.is_some_and(|outcome| outcome.run == pending.run);
                if !concluded {
                    self.restore(settings, programs, &pending).await?;
                }
                let error = pending.error.clone();
                programs.conclude(&pending, UpgradePhase::RolledBack, error, now())?;
                Ok(None)
            }
            Stage::Passed => {
                accept(programs, &pending)?;
                Ok(None)
            }
        }
    }

    async fn restore(&self, settings: &Settings, programs: &Programs, pending: &Pending) -> Result<(), LaunchError> {
        let _locked = StateLock::take(&settings.state_dir, LOCK).await?;
        copy::restore(&programs.before(), &settings.state_dir)
            .map_err(|source| LaunchError::Restore { to: pending.to.clone(), source })
    }

    /// Puts the state of before back. The reason is written down first: whoever is killed after that knows it.
    async fn roll_back(
        &self,
        settings: &Settings,
        programs: &Programs,
        mut pending: Pending,
        report: ErrorReport,
    ) -> Result<(), LaunchError> {
        tracing::error!(to = pending.to, error = %report, "rolling back an upgrade");
        pending.stage = Stage::Restoring;
        pending.error = Some(report.clone());
        programs.set_pending(&pending)?;
        self.restore(settings, programs, &pending).await?;
        programs.conclude(&pending, UpgradePhase::RolledBack, Some(report), now())?;
        Ok(())
    }

    /// Starts the new program on probation.
    async fn try_new(&mut self, settings: &Settings, programs: &Programs, mut pending: Pending) -> Result<Next, LaunchError> {
        let begun = Instant::now();
        pending.stage = Stage::Probation;
        // Before it starts: one that may have touched the state is never taken for one that was not started.
        programs.set_pending(&pending)?;
        tracing::info!(to = pending.to, seconds = settings.probation.as_secs(), "starting the new program on probation");
        let words = LastWords::new(settings, pending.expected.as_ref());
        let program = Program { path: Some(programs.binary(&pending.program)), name: pending.to.clone() };
        let mut process = match Process::start(&program, &self.config, true) {
            Ok(process) => process,
            Err(error) => {
                let report = bad(&pending, &fault::chain(&error), &[], &words);
                self.roll_back(settings, programs, pending, report).await?;
                return Ok(Next::Again);
            }
        };
        let proved = tokio::select! {
            signal = self.signals.next() => {
                // The machine goes down, or somebody does not want this proxy now. Not proved is not good.
                process.signal(signal);
                let _ = tokio::time::timeout(settings.probation, process.wait()).await;
                process.end(LAST_WORDS).await;
                return Ok(Next::Exit(0));
            }
            proved = probation::prove(&mut process, pending.expected.as_ref(), settings.probation) => proved,
        };
        match proved {
            Ok(note) => {
                pending.notes.push(format!("the new program was good after {:.1} s: {note}", begun.elapsed().as_secs_f64()));
                pending.stage = Stage::Passed;
                programs.set_pending(&pending)?;
                accept(programs, &pending)?;
                process.signal(Signal::USR1);
                self.follow(process, Some(programs)).await
            }
            Err(why) => {
                process.end(LAST_WORDS).await;
                let report = bad(&pending, &why, &process.last_lines(), &words);
                self.roll_back(settings, programs, pending, report).await?;
                Ok(Next::Again)
            }
        }
    }

    /// Passes signals on until the program ends.
    async fn follow(&mut self, mut process: Process, programs: Option<&Programs>) -> Result<Next, LaunchError> {
        let mut asked = false;
        let status = loop {
            tokio::select! {
                status = process.wait() => break status,
                signal = self.signals.next() => {
                    asked = true;
                    process.signal(signal);
                }
            }
        };
        process.drain().await;
        let code = exit_code(status);
        let pending = programs.map(Programs::pending).transpose()?.flatten();
        let swap = pending.is_some_and(|pending| pending.stage == Stage::Swap);
        // One that was killed after it had handed over has handed over all the same.
        if swap {
            // Asked to end, the launcher swaps at its next start.
            return Ok(if asked { Next::Exit(0) } else { Next::Again });
        }
        if code == EXIT_SWAP {
            tracing::error!("the daemon asked for a swap, and nothing is there to be swapped");
            return Ok(Next::Exit(1));
        }
        Ok(Next::Exit(code))
    }
}

/// The program that is to run: that of the last good bundle, unless the package has brought a later one since.
fn choose(programs: &Programs) -> Result<Program, LaunchError> {
    let own = ProgramInfo::own();
    if let Some(name) = programs.current()? {
        let info = programs.info(&name);
        let overtaken = info.as_ref().is_some_and(|info| version::compare(&own.version, &info.version).is_gt());
        if !overtaken {
            let words = info.map_or_else(|| name.clone(), |info| info.words());
            return Ok(Program { path: Some(programs.binary(&name)), name: words });
        }
        tracing::info!(package = own.version, bundle = name, "the package is newer than the last bundle, and takes its place");
        programs.set_current(None)?;
    }
    Ok(Program { path: None, name: own.words() })
}

/// The new program becomes the current one.
fn accept(programs: &Programs, pending: &Pending) -> Result<(), LaunchError> {
    programs.set_current(Some(&pending.program))?;
    programs.conclude(pending, UpgradePhase::Done, None, now())?;
    tracing::info!(from = pending.from, to = pending.to, "upgraded");
    Ok(())
}

fn now() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

fn interrupted(what: &str) -> ErrorReport {
    ErrorReport::new("UPGRADE_INTERRUPTED", what).with_next("start the upgrade again")
}

fn bad(pending: &Pending, why: &str, last_lines: &[String], words: &LastWords) -> ErrorReport {
    let message = format!("the new program {} was taken back: {}", pending.to, words.clean(why));
    let mut report = ErrorReport::new("UPGRADE_ROLLED_BACK", message)
        .with_next(format!("{} runs again with its state of before; ask whoever made the bundle", pending.from));
    report.causes = words.clean_lines(last_lines);
    report
}
