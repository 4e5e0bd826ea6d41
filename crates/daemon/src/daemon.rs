//! The daemon as a whole: what it is made of, how it begins and how it ends.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use api::{LastError, ProxyStatus};
use futures::future::BoxFuture;
use tls::{CertificateError, Fingerprint};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::Config;
use crate::deploy::{self, Deployments};
use crate::fault::Fault;
use crate::http;
use crate::journal::{Journal, JournalError};
use crate::licensing::Licenses;
use crate::maintenance::{Certificates, Settings, Tokens};
use crate::news::News;
use crate::points::Points;
use crate::pools::Pools;
use crate::remotes::{Home, Remotes};
use crate::runs::{Parts, Runs, WorkerProgram};
use crate::schedule::{Scheduler, Starter};
use crate::store::{Store, StoreError};
use crate::upgrade::{HalfDone, Programs, Upgrades};

/// Why the daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A certificate file cannot be read or written.
    #[error("cannot {what} {}", path.display())]
    CertificateFile {
        /// `read` or `write`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The certificate is no good.
    #[error("cannot use the certificate {}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: CertificateError,
    },
    /// The token's file in the state folder cannot be read or made.
    #[error("cannot {what} the token file {}", path.display())]
    TokenFile {
        /// `read` or `make`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The token's file in the state folder is no good.
    #[error("the token file {} is no good: {reason}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// An upgrade is in the middle of its swap.
    #[error(transparent)]
    Upgrade(#[from] HalfDone),
    /// Runs that an earlier process left open cannot be ended.
    #[error("cannot write the journal in {}", path.display())]
    Journal {
        /// The state folder.
        path: PathBuf,
        /// Cause.
        source: JournalError,
    },
    /// The address cannot be had.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Cause.
        source: std::io::Error,
    },
}

/// Everything a call can reach.
pub struct Daemon {
    /// The configuration file as it was read. Name, site and HTTP proxy as they are now: [`Daemon::settings`].
    pub config: Config,
    /// Name, site, HTTP proxy and id.
    pub settings: Arc<Settings>,
    /// The tokens of the clients.
    pub tokens: Arc<Tokens>,
    /// The certificate.
    pub certificates: Arc<Certificates>,
    /// Held while a state is taken over.
    pub importing: tokio::sync::Mutex<()>,
    /// When it started, milliseconds since the Unix epoch.
    pub started_at: i64,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// State.
    pub store: Arc<Store>,
    /// Journals of the runs.
    pub journal: Journal,
    /// What changed.
    pub news: Arc<News>,
    /// Pools.
    pub pools: Arc<Pools>,
    /// Remotes.
    pub remotes: Arc<Remotes>,
    /// Restore points.
    pub points: Arc<Points>,
    /// Runs.
    pub runs: Arc<Runs>,
    /// Licences.
    pub licenses: Arc<Licenses>,
    /// Proxies deployed by this one.
    pub deployments: Arc<Deployments>,
    /// Upgrades of this proxy.
    pub upgrades: Arc<Upgrades>,
    /// Rung when a job changed.
    pub schedules_changed: Arc<Notify>,
    /// Told when the daemon stops.
    pub stop: CancellationToken,
}

impl Daemon {
    /// Now, milliseconds since the Unix epoch.
    pub fn now(&self) -> i64 {
        self.clock.now().as_millisecond()
    }

    /// Its id, its own for ever.
    pub fn id(&self) -> String {
        self.settings.id()
    }

    /// Fingerprint of the certificate that the next connection sees.
    pub fn fingerprint(&self) -> Fingerprint {
        self.certificates.fingerprint()
    }

    /// The state of this proxy.
    pub async fn status(&self) -> Result<ProxyStatus, Fault> {
        // First: an upgrade that is over is then over in all that follows.
        let upgrade = self.upgrades.state().map(Box::new);
        let failure = self.store.last_failure().await?;
        let last_error = failure.and_then(|run| Some(LastError { at: run.ended_at?, run: Some(run.id), error: run.error? }));
        let settings = self.settings.get();
        let program = self.upgrades.running();
        Ok(ProxyStatus {
            name: settings.name,
            site: settings.site,
            version: program.version.clone(),
            started_at: self.started_at,
            running: self.store.open_runs().await?.into_iter().map(|open| open.run).collect(),
            bytes_per_second: self.journal.look_at_all(|run| run.bytes_per_second()).iter().sum(),
            last_error,
            fingerprint: self.fingerprint().to_string(),
            id: settings.id,
            channel: program.channel.clone(),
            build: program.build.clone(),
            upgrade,
            draining: self.runs.is_draining(),
            licensing: self.licenses.standing().await?,
            former_token_until: self.tokens.former_until(self.now()),
        })
    }
}

/// The runs, as the scheduler knows them.
struct Scheduled(Arc<Runs>);

impl Starter for Scheduled {
    fn start(&self, job: api::Job) -> BoxFuture<'_, ()> {
        Box::pin(self.0.start_scheduled(job))
    }

    fn skip(&self, job: api::Job, reason: String) -> BoxFuture<'_, ()> {
        Box::pin(self.0.skip(job, reason))
    }
}

/// A daemon that answers.
pub struct Running {
    /// What it is made of.
    pub daemon: Arc<Daemon>,
    /// Where it listens.
    pub address: SocketAddr,
    server: JoinHandle<()>,
    scheduler: JoinHandle<()>,
    copies: JoinHandle<()>,
    doors: CancellationToken,
}

/// Starts the daemon: state, certificate, door; then what earlier runs left, and the schedules.
pub async fn start(config: Config, program: WorkerProgram, clock: Arc<dyn Clock>) -> Result<Running, StartError> {
    tls::install_provider();
    // Before the database: one that is to be put back is not to be changed.
    let upgrades = Upgrades::open(Programs::below(&config.state_dir), config.upgrade_keys.clone())?;
    let store = Arc::new(Store::open(&config.state_dir).await?);
    // Under the lock of the state: a bundle that is on its way to another daemon is none of ours.
    upgrades.forget_received();
    let settings = Settings::open(Arc::clone(&store), &config).await?;
    let tokens = Tokens::open(Arc::clone(&store), &config).await?;
    if !upgrades.on_probation() {
        tokens.take_back().await?;
    }
    let certificates = Certificates::open(Arc::clone(&store), &config).await?;

    let listening = |source| StartError::Listen { address: config.listen, source };
    let listener = TcpListener::bind(config.listen).await.map_err(listening)?;
    let address = listener.local_addr().map_err(listening)?;

    let news = Arc::<News>::default();
    let stop = CancellationToken::new();
    let journal = Journal::open(Arc::clone(&store), Arc::clone(&clock), Arc::clone(&news)).await?;
    let pools = Pools::open(Arc::clone(&store), Arc::clone(&news)).await?;
    let remotes = Remotes::new(Arc::clone(&store), Arc::clone(&news), Home::of(&config.state_dir));
    let licenses = Licenses::new(Arc::clone(&store), Arc::clone(&clock), config.issuer_keys.clone(), Arc::clone(&settings));
    let runs = Runs::new(Parts {
        store: Arc::clone(&store),
        journal: journal.clone(),
        news: Arc::clone(&news),
        pools: Arc::clone(&pools),
        remotes: Arc::clone(&remotes),
        licenses: Arc::clone(&licenses),
        limits: config.limits,
        program,
        stop: stop.clone(),
    });
    upgrades.take_up(&store, &journal, clock.now().as_millisecond()).await;
    runs.hold(upgrades.on_probation());
    // Before the first call is answered: nobody ever sees an interrupted run as running.
    runs.end_open_runs(upgrades.open_run().as_deref())
        .await
        .map_err(|source| StartError::Journal { path: config.state_dir.clone(), source })?;
    if !upgrades.on_probation() {
        runs.clean_up_leftovers().await?;
        runs.start_held().await;
    }
    if let Err(fault) = deploy::settle::settle_all(&store, &journal, &news).await {
        tracing::error!(error = %fault.report(), "cannot tell what became of deployed proxies");
    }

    let schedules_changed = Arc::<Notify>::default();
    let scheduler = Scheduler {
        store: Arc::clone(&store),
        clock: Arc::clone(&clock),
        starter: Arc::new(Scheduled(Arc::clone(&runs))),
        changed: Arc::clone(&schedules_changed),
    };
    let scheduler = tokio::spawn(scheduler.run(stop.clone()));
    let points = Points::new(Arc::clone(&store), Arc::clone(&remotes));
    let started_at = clock.now().as_millisecond();
    let deploying = deploy::Settings { image: config.image.clone(), upgrade_keys: upgrades.keys() };
    let deployments = Deployments::new(
        Arc::clone(&store),
        Arc::clone(&pools),
        Arc::clone(&runs),
        journal.clone(),
        Arc::clone(&news),
        Arc::clone(&licenses),
        deploying,
    );
    let copies = tokio::spawn(Arc::clone(&deployments).keep_copies(Arc::clone(&clock), stop.clone()));
    let daemon = Arc::new(Daemon {
        config,
        settings,
        tokens,
        certificates,
        importing: tokio::sync::Mutex::default(),
        started_at,
        clock,
        store,
        journal,
        news,
        pools,
        remotes,
        points,
        runs,
        licenses,
        deployments,
        upgrades,
        schedules_changed,
        stop,
    });
    let doors = CancellationToken::new();
    let server = tokio::spawn(http::serve(listener, Arc::clone(&daemon), doors.clone()));
    Ok(Running { daemon, address, server, scheduler, copies, doors })
}

impl Running {
    /// Stops: no new runs, the running ones cancelled and given their time to clean up, then the door, then the state.
    pub async fn stop(self) {
        let Self { daemon, server, scheduler, copies, doors, .. } = self;
        daemon.stop.cancel();
        daemon.journal.hurry();
        let _ = scheduler.await;
        let _ = copies.await;
        daemon.runs.wind_down().await;
        doors.cancel();
        let _ = server.await;
        daemon.pools.close().await;
        daemon.journal.close().await;
        daemon.store.close().await;
    }
}
