//! What all parts of one run share.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use api::LogLevel;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use crate::budget::Budget;
use crate::error::Error;
use crate::journal::{Recorder, Task};
use crate::limit::Limiter;
use crate::meter::Meter;
use crate::plan::{Limits, Plan, PoolAccess, RemoteAccess};
use crate::pool::Pool;
use crate::remote::Remote;
use crate::source::Flow;

/// What all parts of one run share.
pub(crate) struct Context {
    /// The run's id.
    pub(crate) run: String,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) cancel: CancellationToken,
    pub(crate) limits: Limits,
    budget: Arc<Budget>,
    limiter: Arc<Limiter>,
    pools: BTreeMap<String, (PoolAccess, OnceCell<Arc<Pool>>)>,
    remotes: BTreeMap<String, (RemoteAccess, OnceCell<Arc<Remote>>)>,
}

impl Context {
    pub(crate) fn new(plan: &Plan, bytes_per_second: u64, recorder: Arc<Recorder>, cancel: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            run: plan.run.clone(),
            recorder,
            cancel,
            limits: plan.limits,
            budget: Arc::new(Budget::new(plan.limits.block_memory)),
            limiter: Arc::new(Limiter::new(bytes_per_second)),
            pools: plan.pools.iter().map(|pool| (pool.id.clone(), (pool.clone(), OnceCell::new()))).collect(),
            remotes: plan.remotes.iter().map(|remote| (remote.id.clone(), (remote.clone(), OnceCell::new()))).collect(),
        })
    }

    /// The pool of that id, connected by the first who asks.
    pub(crate) async fn pool(&self, id: &str) -> Result<Arc<Pool>, Error> {
        let (access, cell) = self
            .pools
            .get(id)
            .ok_or_else(|| Error::refused("POOL_NOT_FOUND", format!("pool {id} is not among those the run may use")))?;
        let connect = cell.get_or_try_init(|| async { Pool::connect(access).await.map(Arc::new) });
        self.unless_cancelled(connect).await?.cloned()
    }

    /// The ids of all pools that the run may use.
    pub(crate) fn pool_ids(&self) -> impl Iterator<Item = &str> {
        self.pools.keys().map(String::as_str)
    }

    /// How the pool of that id is reached, for whoever else shall reach it.
    pub(crate) fn pool_access(&self, id: &str) -> Option<&PoolAccess> {
        self.pools.get(id).map(|(access, _)| access)
    }

    /// The remote of that id, opened by the first who asks.
    pub(crate) async fn remote(&self, id: &str) -> Result<Arc<Remote>, Error> {
        let (access, cell) = self
            .remotes
            .get(id)
            .ok_or_else(|| Error::refused("REMOTE_NOT_FOUND", format!("remote {id} is not among those the run may use")))?;
        let open = cell.get_or_try_init(|| async { Remote::open(access).await.map(Arc::new) });
        self.unless_cancelled(open).await?.cloned()
    }

    /// What a remote is called, open or not.
    pub(crate) fn remote_name(&self, id: &str) -> String {
        self.remotes.get(id).map_or_else(|| id.to_owned(), |(access, _)| access.name.clone())
    }

    /// Logs out of the pools. Sessions are a limited good.
    pub(crate) async fn close(&self) {
        for pool in self.pools.values().filter_map(|(_, cell)| cell.get()) {
            // A pool that went away must not hold the end of the run back.
            let _ = tokio::time::timeout(Duration::from_secs(10), pool.client.close()).await;
        }
    }

    /// Fails once the run is cancelled.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.cancel.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Waits for something that may be given up in the middle.
    pub(crate) async fn unless_cancelled<T>(&self, work: impl Future<Output = T>) -> Result<T, Error> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(Error::Cancelled),
            done = work => Ok(done),
        }
    }

    /// Warns in the task's log, or in the run's.
    pub(crate) fn warn(&self, task: Option<&Task>, message: String) {
        match task {
            Some(task) => task.warn(message),
            None => self.recorder.log(LogLevel::Warning, message),
        }
    }

    /// What a transfer with this meter needs.
    pub(crate) fn flow(&self, meter: &Arc<Meter>, source_words: String) -> Flow {
        Flow {
            budget: Arc::clone(&self.budget),
            limiter: Arc::clone(&self.limiter),
            meter: Arc::clone(meter),
            cancel: self.cancel.clone(),
            stall: Duration::from_secs(self.limits.stall_seconds.max(1)),
            source_words: source_words.into(),
            memory_words: "memory: blocks wait to be written".into(),
        }
    }
}
