//! `backhauld`: HTTPS and JSON-RPC, state store, scheduler, workers. Thin: it wires the rooms below together.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`config`] | the file, strict |
//! | [`store`], [`secrets`], `files` | SQLite, its lock, its key; files that stay |
//! | [`journal`], [`fold`] | the one writer of run journals, and a run as its journal tells it |
//! | [`runs`] | requests to plans to worker processes to last events; recovery |
//! | [`schedule`], [`clock`] | when jobs run |
//! | [`deploy`] | proxies deployed by this one: offers, review, registry, outcome |
//! | [`maintenance`] | settings, tokens, certificate, and the state as a whole |
//! | [`upgrade`], [`launch`] | another program in the place of this one: as the daemon sees it, and its launcher |
//! | [`licensing`] | which licences there are, and which proxy each serves |
//! | [`pools`], [`remotes`], [`points`] | what the proxy reads from and writes to |
//! | [`doctor`], [`support`], `redact`, `mounts` | what is wrong with the proxy, and a text about it without secrets |
//! | [`http`], [`rpc`] | the one door, and the handlers behind it |
//! | [`first_boot`] | what an appliance's guest takes from and tells to its deployer |
//! | [`daemon`] | how all of it begins and ends |

pub mod clock;
pub mod config;
pub mod daemon;
pub mod deploy;
pub mod doctor;
pub mod fault;
mod files;
pub mod first_boot;
pub mod fold;
pub mod http;
pub mod journal;
pub mod launch;
pub mod licensing;
pub mod maintenance;
mod mounts;
pub mod news;
pub mod points;
pub mod pools;
mod redact;
pub mod remotes;
pub mod rpc;
pub mod runs;
pub mod schedule;
pub mod secrets;
pub mod store;
pub mod support;
pub mod upgrade;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

/// Sends the log to standard error and keeps its last lines for the support bundle; `RUST_LOG` says how much of it.
pub fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // Fails only when a log is already set up, as in tests.
    let _ = tracing_subscriber::registry()
        .with(filter)
        .with(fmt::layer().with_ansi(false).with_writer(std::io::stderr))
        .with(fmt::layer().with_ansi(false).with_writer(support::ring()))
        .try_init();
}

/// The whole of the daemon process: until SIGTERM or SIGINT; a second one ends it at once.
///
/// When it answers, one line goes to standard output:
/// `{"ready":true,"address":"127.0.0.1:8443","fingerprint":"AB:…"}`; with `tokenFile` when the token is the one that
/// was made in the state folder.
pub fn main(config: &Path, check_only: bool) -> ExitCode {
    let config = match config::Config::load(config) {
        Ok(config) => config,
        Err(error) => return failed(&error),
    };
    if check_only {
        println!(
            "the configuration is good: {} listens on {}, state in {}",
            config.name,
            config.listen,
            config.state_dir.display()
        );
        return ExitCode::SUCCESS;
    }
    // Two threads wait and pass on; what is heavy happens in the workers.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).max_blocking_threads(64).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let code = runtime.block_on(serve(config));
    // A thread that hangs in a dead mount must not hold up the exit.
    runtime.shutdown_background();
    code
}

/// `backhauld fingerprint`: prints the certificate's SHA-256, and makes none where there is none yet.
pub fn fingerprint(config: &Path) -> ExitCode {
    let config = match config::Config::load(config) {
        Ok(config) => config,
        Err(error) => return failed(&error),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    match runtime.block_on(maintenance::fingerprint(&config)) {
        Ok(Some(fingerprint)) => {
            println!("{fingerprint}");
            ExitCode::SUCCESS
        }
        Ok(None) => {
            eprintln!("backhauld: there is no certificate in {} yet; it is made at the first start", config.state_dir.display());
            ExitCode::FAILURE
        }
        Err(error) => failed(&error),
    }
}

/// One step of an appliance's boot below `root`; `xenstore`: a folder in the place of XenStore.
pub fn boot_step(
    step: fn(&Path, &dyn first_boot::XenStore) -> Result<(), first_boot::FirstBootError>,
    root: &Path,
    xenstore: Option<&Path>,
) -> ExitCode {
    let done = match xenstore {
        Some(folder) => step(root, &first_boot::Folder(folder.to_owned())),
        None => step(root, &first_boot::Programs),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

async fn serve(config: config::Config) -> ExitCode {
    let program = match std::env::current_exe() {
        Ok(path) => runs::WorkerProgram { path, arguments: vec!["worker".to_owned()] },
        Err(error) => return failed(&error),
    };
    // Before the door opens, so that no signal finds us without an answer.
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()), signal(SignalKind::user_defined1()));
    let (Ok(terminate), Ok(interrupt), Ok(mut confirmed)) = signals else {
        return failed(&std::io::Error::other("cannot listen for signals"));
    };
    let mut asked = Asked { terminate, interrupt, last: None };
    let token_path = config.token.is_none().then(|| config.token_path());
    let started = tokio::select! {
        started = daemon::start(config, program, Arc::new(clock::SystemClock)) => started,
        // What was begun is found and ended at the next start.
        () = asked.stopped() => return ExitCode::SUCCESS,
    };
    let running = match started {
        Ok(running) => running,
        Err(error) => return failed(&error),
    };
    // After a rotation there is none any more.
    let token_file = token_path.filter(|path| path.exists()).map(|path| path.display().to_string());
    let (address, fingerprint) = (running.address.to_string(), running.daemon.fingerprint().to_string());
    let mut ready = serde_json::json!({ "ready": true, "address": address, "fingerprint": fingerprint });
    if let Some(token_file) = &token_file {
        ready["tokenFile"] = token_file.as_str().into();
    }
    let mut stdout = std::io::stdout();
    // Nobody has to listen.
    let _ = writeln!(stdout, "{ready}").and_then(|()| stdout.flush());
    tracing::info!(name = running.daemon.settings.name(), address, fingerprint, token_file, "ready");

    let upgrades = Arc::clone(&running.daemon.upgrades);
    let code = loop {
        tokio::select! {
            () = asked.stopped() => break ExitCode::SUCCESS,
            () = upgrades.swap.cancelled() => break ExitCode::from(upgrade::EXIT_SWAP),
            _ = confirmed.recv() => upgrades.confirmed(&running.daemon).await,
        }
    };
    tracing::info!("stopping: running runs are cancelled and clean up; a second signal ends at once");
    tokio::select! {
        () = running.stop() => {}
        () = asked.stopped() => tracing::warn!("ended at once; what is left behind is cleaned up at the next start"),
    }
    code
}

/// Signals closer together than this are one: a service manager may tell the launcher and the daemon both.
const ECHO: Duration = Duration::from_secs(1);

/// The signals that ask the daemon to stop.
struct Asked {
    terminate: Signal,
    interrupt: Signal,
    last: Option<Instant>,
}

impl Asked {
    async fn stopped(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
            }
            let now = Instant::now();
            if self.last.replace(now).is_none_or(|last| now.duration_since(last) >= ECHO) {
                return;
            }
        }
    }
}

fn failed(error: &(dyn std::error::Error + 'static)) -> ExitCode {
    eprintln!("backhauld: {}", fault::chain(error));
    ExitCode::FAILURE
}
