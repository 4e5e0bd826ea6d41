//! Proxies that this one deploys: what a pool offers, what is reviewed before anything starts, the registry, and what
//! becomes of it when a run has ended.
//!
//! The flow itself is a run like any other ([`engine::plan::DeployPlan`]). The registry row is written before the run
//! starts, holds the token and names the run; [`settle`](settle::settle) reads from the run's journal what came of it, at its
//! end or at the next start of the daemon, so that a row and its VM never disagree for long. A run that a row names and that
//! was never begun has touched nothing.

mod known;
mod offers;
mod plan;
mod reach;
mod review;
pub(crate) mod settle;

use std::path::PathBuf;
use std::sync::Arc;

use api::{
    Credentials, DeployOptions, DeployReview, DeploySpec, Deployed, DeployedState, DestroyParams, EventKind, LogLevel,
    ReconfigureParams, RedeployParams, Run, Topic,
};
use engine::plan::{DestroyPlan, ReconfigurePlan};
use futures::future::join_all;

use crate::fault::Fault;
use crate::journal::Journal;
use crate::licensing::Licenses;
use crate::maintenance;
use crate::news::News;
use crate::pools::Pools;
use crate::runs::{Request, Runs, run_id};
use crate::store::{DeploymentRecord, Store};

pub use offers::{Offer, read_offer};

/// The proxies that this one has deployed.
pub struct Deployments {
    store: Arc<Store>,
    pools: Arc<Pools>,
    runs: Arc<Runs>,
    journal: Journal,
    news: Arc<News>,
    licenses: Arc<Licenses>,
    settings: Settings,
    /// Held between the check that a name, an address or a licence is free and the row that takes it.
    deciding: tokio::sync::Mutex<()>,
}

/// What the configuration says about deploying.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The appliance at hand.
    pub image: Option<PathBuf>,
    /// Public keys that images and upgrades must be signed with, as text.
    pub upgrade_keys: Vec<String>,
}

impl Deployments {
    /// Over the parts of the house.
    pub fn new(
        store: Arc<Store>,
        pools: Arc<Pools>,
        runs: Arc<Runs>,
        journal: Journal,
        news: Arc<News>,
        licenses: Arc<Licenses>,
        settings: Settings,
    ) -> Arc<Self> {
        Arc::new(Self { store, pools, runs, journal, news, licenses, settings, deciding: tokio::sync::Mutex::default() })
    }

    /// What the pools offer. One that does not answer is among them, with why.
    pub async fn options(&self) -> Result<DeployOptions, Fault> {
        let offers = join_all(self.pools.known().into_iter().map(|pool| async move {
            match self.pools.offer(&pool.id).await {
                Ok(offer) => offer.pool,
                Err(fault) => api::PoolOffer {
                    id: pool.id,
                    name: pool.name,
                    why_not: Some(fault.report().message),
                    memory_free: 0,
                    cpus: 0,
                    srs: Vec::new(),
                    networks: Vec::new(),
                },
            }
        }))
        .await;
        let image = self.settings.image.as_ref().map(|path| path.display().to_string());
        Ok(DeployOptions { pools: offers, licensing: self.licenses.offer().await?, image })
    }

    /// What a deployment would do; touches nothing.
    pub async fn review(&self, spec: &DeploySpec) -> Result<DeployReview, Fault> {
        let spec = self.completed(spec);
        let looked = self.look(&spec, None).await?;
        let mut review = looked.review;
        review.steps = plan::steps();
        Ok(review)
    }

    /// The image at hand is meant where none is named.
    fn completed(&self, spec: &DeploySpec) -> DeploySpec {
        let mut spec = spec.clone();
        if spec.image.url.is_empty()
            && let Some(image) = &self.settings.image
        {
            spec.image.url = image.display().to_string();
        }
        spec
    }

    /// Starts a deployment.
    ///
    /// # Errors
    /// All that speaks against it, at once; then nothing was touched.
    pub async fn start(&self, spec: &DeploySpec, at: i64) -> Result<Run, Fault> {
        let _deciding = self.deciding.lock().await;
        let spec = self.completed(spec);
        let looked = self.look(&spec, None).await?;
        let Some(choice) = looked.choice else { return Err(api::deploy::refusal(&looked.review.faults).into()) };
        let id = uuid::Uuid::new_v4().to_string();
        let plan = self.deploy_plan(&id, &spec, &choice).await?;
        let run = run_id();
        let record = plan::record(&id, &run, &spec, &choice, &plan);
        self.store.add_deployment(&record, at).await?;
        if let Some(license) = &choice.license
            && let Err(fault) = self.licenses.reserve(license, &id, &spec.name, at).await
        {
            self.store.remove_deployment(&id).await?;
            return Err(fault);
        }
        match self.runs.start_as(run, Request::Deploy(Box::new(plan))).await {
            Ok(run) => Ok(self.begun(run)),
            Err(fault) => {
                self.store.remove_deployment(&id).await?;
                Err(fault)
            }
        }
    }

    /// Makes a deployed proxy anew. Its VM stays until the new one is proven.
    ///
    /// # Errors
    /// All that speaks against it, at once; then nothing was touched.
    pub async fn redeploy(&self, given: &RedeployParams) -> Result<Run, Fault> {
        let record = self.idle(&given.id, "deploy.redeploy").await?;
        let doubt = self.check_backups(&record, given.discard_local, "redeploy").await?;
        let _deciding = self.deciding.lock().await;
        let mut record = self.idle(&record.id, "deploy.redeploy").await?;
        let mut spec = record.spec.clone();
        spec.http_proxy = record.secrets.http_proxy.as_ref().map(|secret| secret.expose().to_owned());
        spec.image.url = record.secrets.image.expose().to_owned();
        if let Some(image) = &given.image {
            spec.image = image.clone();
        }
        if given.sr.is_some() {
            spec.sr.clone_from(&given.sr);
        }
        let looked = self.look(&spec, Some(&record)).await?;
        let Some(choice) = looked.choice else { return Err(api::deploy::refusal(&looked.review.faults).into()) };
        let plan = self.redeploy_plan(&record, &spec, &choice).await?;
        spec.sr = Some(choice.sr.uuid.clone());
        record.wanted = Some(spec.redacted());
        record.secrets.wanted_image = Some(plan.image.url.clone());
        self.change(record, Request::Deploy(Box::new(plan)), doubt).await
    }

    /// Changes address or resources.
    pub async fn reconfigure(&self, given: &ReconfigureParams) -> Result<Run, Fault> {
        let _deciding = self.deciding.lock().await;
        let mut record = self.idle(&given.id, "deploy.reconfigure").await?;
        let mut spec = record.spec.clone();
        if let Some(address) = &given.address {
            spec.address = address.clone();
        }
        spec.vcpus = given.vcpus.unwrap_or(spec.vcpus);
        spec.memory = given.memory.unwrap_or(spec.memory);
        if spec == record.spec {
            return Err(Fault::forbidden("deploy.reconfigure", format!("{} is like that already", record.name)));
        }
        let looked = self.look_at_change(&spec, &record).await?;
        if !looked.is_empty() {
            return Err(api::deploy::refusal(&looked).into());
        }
        let (Some(vm), Some(url), Some(fingerprint)) = (&record.vm, &record.url, &record.fingerprint) else {
            return Err(never_ready(&record));
        };
        let plan = ReconfigurePlan {
            proxy: record.id.clone(),
            name: record.name.clone(),
            pool: record.pool.clone(),
            vm: vm.clone(),
            url: url.clone(),
            fingerprint: fingerprint.clone(),
            token: record.secrets.token.clone(),
            port: record.spec.port,
            address: given.address.clone(),
            vcpus: given.vcpus,
            memory: given.memory,
            times: Default::default(),
        };
        record.wanted = Some(spec);
        self.change(record, Request::Reconfigure(Box::new(plan)), None).await
    }

    /// Destroys a deployed proxy with its VM.
    pub async fn destroy(&self, given: &DestroyParams) -> Result<Run, Fault> {
        let record = self.idle(&given.id, "deploy.destroy").await?;
        if given.name != record.name {
            let message = format!("name: the proxy is called {:?}; to destroy it, give exactly that name", record.name);
            return Err(Fault::invalid("name", message));
        }
        let doubt = self.check_backups(&record, given.discard_local, "destroy").await?;
        let _deciding = self.deciding.lock().await;
        let record = self.idle(&record.id, "deploy.destroy").await?;
        let Some(vm) = record.vm.clone() else { return Err(never_ready(&record)) };
        let plan = DestroyPlan {
            proxy: record.id.clone(),
            name: record.name.clone(),
            pool: record.pool.clone(),
            vm,
            access: record.access(),
            jobs: self.store.deployment_state(&record.id).await?.as_ref().map(maintenance::jobs_in).unwrap_or_default(),
            times: Default::default(),
        };
        self.change(record, Request::Destroy(plan), doubt).await
    }

    /// Forgets a deployed proxy; its VM stays, its licence is free again, here and there.
    ///
    /// # Errors
    /// It has a licence and cannot be told to let go of it: it would go on under it.
    pub async fn forget(&self, id: &str) -> Result<bool, Fault> {
        let record = self.idle(id, "deploy.forget").await?;
        let bindings = self.store.license_bindings().await?;
        if let Some(bound) = bindings.iter().find(|bound| bound.proxy == record.id) {
            self.free(&record, &bound.license).await?;
        }
        let _deciding = self.deciding.lock().await;
        let record = self.idle(&record.id, "deploy.forget").await?;
        let done = self.store.remove_deployment(&record.id).await?;
        self.news.changed(Topic::Deployed);
        self.news.changed(Topic::Licenses);
        Ok(done)
    }

    /// Refuses to forget a pool while deployed proxies stand on it: added again, it would be another one, and they could be
    /// neither made anew nor destroyed from here. As long as the guard is held, none is deployed into it.
    ///
    /// # Errors
    /// Forbidden, with the proxies; or the state cannot be read.
    pub async fn let_go_of_pool(&self, id: &str, name: &str) -> Result<impl Drop, Fault> {
        let deciding = self.deciding.lock().await;
        let known = self.store.deployments().await?;
        let there: Vec<&str> = known.iter().filter(|record| record.pool == id).map(|record| record.name.as_str()).collect();
        if there.is_empty() {
            return Ok(deciding);
        }
        let reason = format!(
            "deployed proxies stand on the pool {name}: {}; destroy or forget them first (backhaul proxy destroy, or forget)",
            there.join(", ")
        );
        Err(Fault::forbidden("pool.remove", reason))
    }

    /// The registry.
    pub async fn list(&self) -> Result<Vec<Deployed>, Fault> {
        let records = self.store.deployments().await?;
        let pools = self.pools.known();
        let bindings = self.store.license_bindings().await?;
        let deployed = records.into_iter().map(|record| Deployed {
            license: bindings.iter().find(|bound| bound.proxy == record.id).map(|bound| bound.license.clone()),
            pool_name: pools.iter().find(|pool| pool.id == record.pool).map_or(record.pool.clone(), |pool| pool.name.clone()),
            id: record.id,
            name: record.name,
            pool: record.pool,
            vm: record.vm,
            url: record.url,
            fingerprint: record.fingerprint,
            state: record.state,
            spec: record.spec,
            run: record.run.unwrap_or_default(),
            ready_at: record.ready_at,
            copied_at: record.copied_at,
        });
        Ok(deployed.collect())
    }

    /// How to reach a deployed proxy.
    pub async fn claim(&self, id: &str) -> Result<Credentials, Fault> {
        // Whoever has seen the end of the run may be faster than what follows from it.
        let mut record = self.find(id).await?;
        if settle::settle_ended(&self.store, &self.journal, &self.news, &record).await? {
            record = self.find(&record.id).await?;
        }
        match (record.url, record.fingerprint) {
            (Some(url), Some(fingerprint)) => Ok(Credentials {
                id: record.id,
                name: record.name,
                url,
                token: record.secrets.token.expose().to_owned(),
                fingerprint,
            }),
            _ => Err(Fault::forbidden("deploy.claim", format!("{} is not ready yet", record.name))),
        }
    }

    /// The deployed proxy of an id, or a name.
    pub async fn find(&self, id: &str) -> Result<DeploymentRecord, Fault> {
        let mut known = self.store.deployments().await?;
        let at = known.iter().position(|record| record.id == id).or_else(|| known.iter().position(|record| record.name == id));
        at.map(|at| known.swap_remove(at)).ok_or_else(|| Fault::missing("proxy", id))
    }

    /// A deployed proxy that no run works on.
    async fn idle(&self, id: &str, operation: &'static str) -> Result<DeploymentRecord, Fault> {
        let record = self.find(id).await?;
        match (record.state, &record.run) {
            (DeployedState::Ready, _) => Ok(record),
            (_, run) => {
                let run = run.as_deref().unwrap_or("that is not known");
                Err(Fault::forbidden(operation, format!("run {run} is at work on {}", record.name)))
            }
        }
    }

    /// Hands the row of a proxy that is ready over to a run. The row names the run before there is the run: whoever reads it,
    /// also after a crash in between, never takes the former run for this one.
    ///
    /// `doubt`: what the journal of the run is to begin with.
    async fn change(&self, mut record: DeploymentRecord, request: Request, doubt: Option<String>) -> Result<Run, Fault> {
        let (id, former) = (run_id(), record.run.take());
        record.state = DeployedState::Changing;
        record.run = Some(id.clone());
        self.store.set_deployment(&record).await?;
        // Whoever looks after it lets go of it.
        self.news.changed(Topic::Deployed);
        match self.runs.start_as(id, request).await {
            Ok(run) => {
                if let Some(message) = doubt {
                    let warning = EventKind::Log { task: None, level: LogLevel::Warning, message };
                    // It is in the log of the daemon already.
                    let _ = self.journal.append_soon(&run.id, warning).await;
                }
                Ok(self.begun(run))
            }
            Err(fault) => {
                (record.state, record.run) = (DeployedState::Ready, former);
                (record.wanted, record.secrets.wanted_image) = (None, None);
                self.store.set_deployment(&record).await?;
                self.news.changed(Topic::Deployed);
                Err(fault)
            }
        }
    }

    fn begun(&self, run: Run) -> Run {
        self.news.changed(Topic::Deployed);
        self.news.changed(Topic::Licenses);
        run
    }
}

fn never_ready(record: &DeploymentRecord) -> Fault {
    Fault::forbidden("deploy", format!("{} has never been ready", record.name))
}
