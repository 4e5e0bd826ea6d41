//! What is asked of a run, and the plan that comes of it once it is its turn.

use std::collections::BTreeSet;

use api::{Intent, Job, RunKind};
use engine::plan::{
    BackupPlan, DeployPlan, DestroyPlan, Limits, OpenIntent, Plan, PointPlan, ProxyAccess, ReconfigurePlan, RecoverPlan,
    RestorePlan, VmPlan, Work,
};

use super::Runs;
use crate::fault::Fault;
use crate::store::DeploymentRecord;

/// What a run is asked to do.
#[derive(Debug, Clone)]
pub enum Request {
    /// Execute a job.
    Backup(Box<Job>),
    /// Restore a restore point.
    Restore {
        /// What.
        point: Point,
        /// Pool id.
        pool: String,
        /// SR uuid.
        sr: String,
        /// Name of the new VM.
        name: Option<String>,
    },
    /// Check a restore point.
    Verify(Point),
    /// Remove a restore point.
    Remove(Point),
    /// Deploy a proxy, or make one anew.
    Deploy(Box<DeployPlan>),
    /// Change address or resources of a deployed proxy.
    Reconfigure(Box<ReconfigurePlan>),
    /// Destroy a deployed proxy.
    Destroy(DestroyPlan),
    /// Clean up after a run.
    Recover {
        /// The run that left something.
        run: String,
        /// What it left.
        intents: Vec<OpenIntent>,
    },
}

/// A restore point, found by its identifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// `<remote id>/xo-vm-backups/<VM uuid>/<timestamp>.json`.
    pub id: String,
    /// Remote id.
    pub remote: String,
    /// Path in the remote.
    pub path: String,
    /// VM uuid.
    pub vm: String,
    /// What a person calls it.
    pub label: String,
}

impl Request {
    /// Sort of run.
    pub fn kind(&self) -> RunKind {
        match self {
            Self::Backup(_) => RunKind::Backup,
            Self::Restore { .. } => RunKind::Restore,
            Self::Verify(_) => RunKind::Verify,
            Self::Remove(_) => RunKind::Remove,
            Self::Recover { .. } => RunKind::Recover,
            Self::Deploy(plan) if plan.replaces.is_some() => RunKind::Redeploy,
            Self::Deploy(_) => RunKind::Deploy,
            Self::Reconfigure(_) => RunKind::Reconfigure,
            Self::Destroy(_) => RunKind::Destroy,
        }
    }

    /// The job it executes.
    pub fn job(&self) -> Option<&str> {
        match self {
            Self::Backup(job) => Some(&job.id),
            _ => None,
        }
    }

    /// What a person calls it.
    pub fn label(&self) -> String {
        match self {
            Self::Backup(job) => job.spec.name.clone(),
            Self::Restore { point, .. } | Self::Verify(point) | Self::Remove(point) => point.label.clone(),
            Self::Recover { run, .. } => format!("after run {run}"),
            Self::Deploy(plan) => plan.name.clone(),
            Self::Reconfigure(plan) => plan.name.clone(),
            Self::Destroy(plan) => plan.name.clone(),
        }
    }

    /// The run it cleans up after.
    pub fn recovers(&self) -> Option<&str> {
        match self {
            Self::Recover { run, .. } => Some(run),
            _ => None,
        }
    }

    /// The VMs it works on, and whether nobody else may meanwhile.
    pub fn vms(&self) -> (Vec<String>, bool) {
        match self {
            Self::Backup(job) => (job.spec.vms.clone(), true),
            Self::Restore { point, .. } | Self::Verify(point) => (vec![point.vm.clone()], false),
            Self::Remove(point) => (vec![point.vm.clone()], true),
            Self::Deploy(plan) => (plan.replaces.iter().map(|replaced| replaced.vm.clone()).collect(), true),
            Self::Reconfigure(plan) => (vec![plan.vm.clone()], true),
            Self::Destroy(plan) => (vec![plan.vm.clone()], true),
            Self::Recover { intents, .. } => {
                let vms: BTreeSet<String> = intents.iter().filter_map(|open| vm_of(&open.what)).map(str::to_owned).collect();
                (vms.into_iter().collect(), true)
            }
        }
    }

    /// The pools a clean-up needs to answer before it makes sense to begin.
    pub fn pools_first(&self) -> Vec<String> {
        match self {
            Self::Recover { intents, .. } => {
                let pools: BTreeSet<&str> = intents.iter().filter_map(|open| pool_of(&open.what)).collect();
                pools.into_iter().map(str::to_owned).collect()
            }
            _ => Vec::new(),
        }
    }
}

fn vm_of(intent: &Intent) -> Option<&str> {
    match intent {
        Intent::Snapshot { vm, .. } | Intent::BlockedOperations { vm, .. } | Intent::RestorePoint { vm, .. } => Some(vm),
        Intent::DeployedVm { uuid, .. } => uuid.as_deref(),
        Intent::DrainedProxy { uuid, .. } | Intent::ObsoleteVm { uuid, .. } | Intent::ReconfiguredVm { uuid, .. } => Some(uuid),
        Intent::RestoredVm { .. } | Intent::XapiTask { .. } => None,
    }
}

pub(super) fn pool_of(intent: &Intent) -> Option<&str> {
    match intent {
        Intent::Snapshot { pool, .. }
        | Intent::BlockedOperations { pool, .. }
        | Intent::RestoredVm { pool, .. }
        | Intent::DeployedVm { pool, .. }
        | Intent::DrainedProxy { pool, .. }
        | Intent::ObsoleteVm { pool, .. }
        | Intent::ReconfiguredVm { pool, .. }
        | Intent::XapiTask { pool, .. } => Some(pool),
        Intent::RestorePoint { .. } => None,
    }
}

pub(super) fn remote_of(intent: &Intent) -> Option<&str> {
    match intent {
        Intent::RestorePoint { remote, .. } => Some(remote),
        _ => None,
    }
}

impl Runs {
    /// How to reach the deployed proxies on the VMs that a run's intents name, and the one that the run was about.
    async fn deployed_on(&self, run: &str, intents: &[OpenIntent]) -> Result<Vec<ProxyAccess>, Fault> {
        let named = |vm: &str| {
            intents.iter().any(|open| match &open.what {
                Intent::DeployedVm { replaces, .. } => replaces.as_deref() == Some(vm),
                Intent::DrainedProxy { uuid, .. } | Intent::ReconfiguredVm { uuid, .. } => uuid == vm,
                _ => false,
            })
        };
        // The row says where the proxy is since the run, which may have ended before anybody wrote that down.
        self.settle_deployment(run, false).await;
        let concerns = |record: &DeploymentRecord| record.run.as_deref() == Some(run) || record.vm.as_deref().is_some_and(named);
        let deployed = self.store.deployments().await?;
        Ok(deployed.iter().filter(|record| concerns(record)).filter_map(DeploymentRecord::access).collect())
    }

    /// Makes the plan: looks up where the VMs are and how to reach pools and remotes.
    pub(super) async fn plan(&self, run: &str, request: &Request) -> Result<Plan, Fault> {
        let mut pools = BTreeSet::new();
        let mut remotes = BTreeSet::new();
        let point = |point: &Point| PointPlan { remote: point.remote.clone(), path: point.path.clone() };
        let work = match request {
            Request::Backup(job) => {
                let mut vms = Vec::with_capacity(job.spec.vms.len());
                for uuid in &job.spec.vms {
                    let (pool, name) = self.pools.locate(uuid).await?;
                    pools.insert(pool.clone());
                    vms.push(VmPlan { pool, uuid: uuid.clone(), name });
                }
                remotes.extend(job.spec.remotes.iter().cloned());
                Work::Backup(BackupPlan {
                    job: job.id.clone(),
                    job_name: job.spec.name.clone(),
                    schedule: job.schedule_id.clone(),
                    mode: job.spec.mode,
                    vms,
                    remotes: job.spec.remotes.clone(),
                    retention: job.spec.retention,
                    compression: job.spec.compression,
                    prefer_nbd: job.spec.prefer_nbd,
                    concurrency: job.spec.concurrency,
                    full_interval: job.spec.full_interval,
                    max_bytes_per_second: job.spec.max_bytes_per_second,
                })
            }
            Request::Restore { point: from, pool, sr, name } => {
                pools.insert(pool.clone());
                remotes.insert(from.remote.clone());
                Work::Restore(RestorePlan { point: point(from), pool: pool.clone(), sr: sr.clone(), name: name.clone() })
            }
            Request::Verify(from) => {
                remotes.insert(from.remote.clone());
                Work::Verify(point(from))
            }
            Request::Remove(from) => {
                remotes.insert(from.remote.clone());
                Work::Remove(point(from))
            }
            Request::Deploy(plan) => {
                pools.insert(plan.pool.clone());
                Work::Deploy(plan.clone())
            }
            Request::Reconfigure(plan) => {
                pools.insert(plan.pool.clone());
                Work::Reconfigure((**plan).clone())
            }
            Request::Destroy(plan) => {
                pools.insert(plan.pool.clone());
                // Its jobs may have kept snapshots on any of them.
                pools.extend(self.pools.ids());
                Work::Destroy(plan.clone())
            }
            Request::Recover { run, intents } => {
                // What was forgotten since cannot be reached any more; the worker says so of each intent.
                let known: BTreeSet<String> = self.pools.ids().into_iter().collect();
                pools.extend(request.pools_first().into_iter().filter(|id| known.contains(id)));
                for id in intents.iter().filter_map(|open| remote_of(&open.what)) {
                    if self.remotes.find(id).await.is_ok() {
                        remotes.insert(id.to_owned());
                    }
                }
                let proxies = self.deployed_on(run, intents).await?;
                Work::Recover(RecoverPlan { run: run.clone(), intents: intents.clone(), proxies, times: Default::default() })
            }
        };
        let pools = pools.iter().map(|id| self.pools.access(id)).collect::<Result<Vec<_>, _>>()?;
        let mut reached = Vec::with_capacity(remotes.len());
        for id in &remotes {
            reached.push(self.remotes.access(id).await?);
        }
        let limits = Limits { block_memory: self.limits.block_memory, ..Limits::default() };
        Ok(Plan { run: run.to_owned(), work, pools, remotes: reached, limits })
    }
}
