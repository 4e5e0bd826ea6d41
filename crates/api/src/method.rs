//! The one table of methods: the daemon's dispatcher, the console's client and `docs/api.md` come from it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::*;

/// A method of the API.
pub trait Method {
    /// `namespace.method`.
    const NAME: &'static str;
    /// One line for a person.
    const DOC: &'static str;
    /// Whether it changes anything: refused to read-only tokens and consoles.
    const WRITES: bool;
    /// Whether the answer is a stream of [`Method::Item`]s (NDJSON) rather than one.
    const STREAM: bool;
    /// Parameters, by name.
    type Params: Serialize + DeserializeOwned + Send + 'static;
    /// The answer, or one line of it.
    type Item: Serialize + DeserializeOwned + Send + 'static;
}

/// What the table knows of a method, without its types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MethodInfo {
    /// Its name.
    pub name: &'static str,
    /// One line.
    pub doc: &'static str,
    /// Whether it changes anything.
    pub writes: bool,
    /// Whether it answers a stream.
    pub stream: bool,
}

macro_rules! methods {
    ($( $(#[doc = $doc:literal])+ $kind:ident $name:ident = $wire:literal ($params:ty) -> $item:ty; )+) => {
        $(
            $(#[doc = $doc])+
            #[derive(Debug, Clone, Copy)]
            pub struct $name;
            impl Method for $name {
                const NAME: &'static str = $wire;
                const DOC: &'static str = concat!($($doc),+);
                const WRITES: bool = methods!(@writes $kind);
                const STREAM: bool = methods!(@stream $kind);
                type Params = $params;
                type Item = $item;
            }
        )+
        /// Every method, in the order of the documentation.
        pub const METHODS: &[MethodInfo] = &[
            $( MethodInfo { name: $wire, doc: concat!($($doc),+), writes: methods!(@writes $kind), stream: methods!(@stream $kind) } ),+
        ];
    };
    (@writes read) => { false };
    (@writes write) => { true };
    (@writes watch) => { false };
    (@stream read) => { false };
    (@stream write) => { false };
    (@stream watch) => { true };
}

methods! {
    /// The daemon's version, as XO asks for it.
    read SystemGetServerVersion = "system.getServerVersion" (NoParams) -> String;
    /// Every method with its one-line description.
    read SystemGetMethodsInfo = "system.getMethodsInfo" (NoParams) -> BTreeMap<String, MethodDoc>;
    /// State of this proxy: version, site, running runs, throughput, last error.
    read ProxyStatusGet = "proxy.status" (NoParams) -> ProxyStatus;
    /// The state now, then again at each change, and which lists have changed since.
    watch ProxyWatch = "proxy.watch" (NoParams) -> ProxyNews;
    /// The pools.
    read PoolList = "pool.list" (NoParams) -> Vec<Pool>;
    /// Connects a pool and remembers it; without fingerprint the certificate seen is pinned and answered.
    write PoolAdd = "pool.add" (PoolAddParams) -> Pool;
    /// Forgets a pool.
    write PoolRemove = "pool.remove" (IdParams) -> bool;
    /// The VMs of all pools, or of one; templates, snapshots and control domains left out.
    read VmList = "vm.list" (PoolFilter) -> Vec<Vm>;
    /// The storage repositories of all pools, or of one.
    read SrList = "sr.list" (PoolFilter) -> Vec<Sr>;
    /// The remotes, with free space.
    read RemoteList = "remote.list" (NoParams) -> Vec<Remote>;
    /// Opens a remote and remembers it.
    write RemoteAdd = "remote.add" (RemoteAddParams) -> Remote;
    /// Writes, reads back and compares 10 MiB.
    write RemoteTestRun = "remote.probe" (IdParams) -> RemoteTest;
    /// Forgets a remote; refused while a job uses it. Its files stay.
    write RemoteRemove = "remote.remove" (IdParams) -> bool;
    /// The jobs.
    read JobList = "job.list" (NoParams) -> Vec<Job>;
    /// One job.
    read JobGet = "job.get" (IdParams) -> Job;
    /// Creates a job.
    write JobCreate = "job.create" (JobSpec) -> Job;
    /// Replaces what a person sets of a job.
    write JobUpdate = "job.update" (JobUpdateParams) -> Job;
    /// Enables or disables the schedule of a job.
    write JobSetEnabled = "job.setEnabled" (JobSetEnabledParams) -> Job;
    /// Removes a job; its restore points stay.
    write JobRemove = "job.remove" (IdParams) -> bool;
    /// Starts a job now and answers the run; refused with the run's id while it is already running.
    write JobRun = "job.run" (IdParams) -> Run;
    /// A cron expression in words, with its next starts.
    read SchedulePreviewGet = "schedule.preview" (SchedulePreviewParams) -> SchedulePreview;
    /// The runs, newest first.
    read RunList = "run.list" (RunListParams) -> Vec<Run>;
    /// One run with its tasks and log.
    read RunGet = "run.get" (IdParams) -> RunDetail;
    /// Every event of a run after a cursor, exactly once, until it has ended.
    watch RunWatch = "run.watch" (RunWatchParams) -> Event;
    /// Asks a run to stop; answers at once.
    write RunCancel = "run.cancel" (IdParams) -> Run;
    /// The restore points, newest first, of all remotes or one, all VMs or one.
    read RestorePointList = "restorePoint.list" (RestorePointListParams) -> Vec<RestorePoint>;
    /// Restores a restore point into a new VM and answers the run.
    write RestorePointRestore = "restorePoint.restore" (RestoreParams) -> Run;
    /// Reads a restore point back, checks it, and answers the run.
    write RestorePointVerify = "restorePoint.verify" (IdParams) -> Run;
    /// Removes a restore point and answers the run.
    write RestorePointRemove = "restorePoint.remove" (IdParams) -> Run;
    /// What the pools of this proxy offer to a new proxy, and what speaks against each.
    read DeployOptionsGet = "deploy.options" (NoParams) -> DeployOptions;
    /// What a deployment would do and what speaks against it; touches nothing.
    read DeployReviewGet = "deploy.review" (DeploySpec) -> DeployReview;
    /// Deploys a proxy and answers the run.
    write DeployStart = "deploy.start" (DeploySpec) -> Run;
    /// The proxies this one has deployed.
    read DeployedList = "deploy.list" (NoParams) -> Vec<Deployed>;
    /// How to reach a deployed proxy, its token included.
    write DeployClaim = "deploy.claim" (IdParams) -> Credentials;
    /// Takes down how a deployed proxy is called and reached now, its token included, after it was tried.
    write DeployAdopt = "deploy.adopt" (Credentials) -> Deployed;
    /// Makes a deployed proxy anew from an image and answers the run; jobs, remotes and identity stay.
    write Redeploy = "deploy.redeploy" (RedeployParams) -> Run;
    /// Changes address or resources of a deployed proxy and answers the run.
    write DeployReconfigure = "deploy.reconfigure" (ReconfigureParams) -> Run;
    /// Destroys a deployed proxy with its VM and answers the run; its licence is free again.
    write DeployDestroy = "deploy.destroy" (DestroyParams) -> Run;
    /// Forgets a deployed proxy and frees its licence; its VM stays.
    write DeployForget = "deploy.forget" (IdParams) -> bool;
    /// The licences this proxy holds.
    read LicenseList = "license.list" (NoParams) -> Vec<License>;
    /// One licence with its signed text.
    write LicenseGet = "license.get" (IdParams) -> LicenseText;
    /// Checks a signed licence and keeps it.
    write LicenseImport = "license.import" (LicenseImportParams) -> License;
    /// Forgets a licence that is bound to no proxy.
    write LicenseRemove = "license.remove" (IdParams) -> bool;
    /// Binds a licence to this proxy or another.
    write LicenseBind = "license.bind" (LicenseBindParams) -> License;
    /// Frees a licence of this proxy or another.
    write LicenseUnbind = "license.unbind" (LicenseBindParams) -> License;
    /// Holds new runs back, or lets them start again.
    write ProxyDrain = "proxy.drain" (DrainParams) -> ProxyStatus;
    /// Changes name, site or HTTP proxy of this proxy.
    write ProxyConfigure = "proxy.configure" (ConfigureParams) -> ProxyStatus;
    /// Makes a new token; the former one stays good for a while.
    write TokenRotate = "token.rotate" (TokenRotateParams) -> NewToken;
    /// Ends the time in which the former token is still good.
    write TokenRevoke = "token.revoke" (NoParams) -> bool;
    /// Shows another certificate from now on.
    write CertificateRenew = "certificate.renew" (CertificateRenewParams) -> NewCertificate;
    /// All that makes this proxy itself, secrets included.
    write StateExport = "state.export" (NoParams) -> ProxyState;
    /// Becomes the proxy a state was taken of; only for one that has no jobs and remotes yet.
    write StateImport = "state.import" (ProxyState) -> Imported;
    /// Upgrades this proxy to a signed bundle: drain, swap, self-check, roll-back if it fails.
    write UpgradeStart = "upgrade.start" (UpgradeParams) -> UpgradeState;
    /// Checks everything the proxy depends on; a line a check, as it comes out.
    watch DoctorRun = "doctor.run" (DoctorParams) -> DoctorCheck;
    /// A redacted text about this proxy for whoever is asked for help.
    read SupportBundleGet = "support.bundle" (NoParams) -> SupportBundle;
}

/// No parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NoParams {}

/// The identifier, or the unambiguous name, of one object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdParams {
    /// Identifier or name.
    pub id: String,
}

/// A method for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MethodDoc {
    /// One line.
    pub description: String,
}

/// A line of `proxy.watch`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyNews {
    /// The state now.
    pub status: ProxyStatus,
    /// Lists that changed since the last line: `pools`, `vms`, `remotes`, `jobs`, `runs`, `restorePoints`.
    #[serde(default)]
    pub changed: Vec<Topic>,
}

/// A list that can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Topic {
    /// `pool.list`.
    Pools,
    /// `vm.list`.
    Vms,
    /// `remote.list`.
    Remotes,
    /// `job.list`.
    Jobs,
    /// `run.list`.
    Runs,
    /// `restorePoint.list`.
    RestorePoints,
    /// `deploy.list`.
    Deployed,
    /// `license.list`.
    Licenses,
    /// One this reader does not know yet.
    #[serde(other)]
    Unknown,
}

/// A pool to connect.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolAddParams {
    /// Name; default: the pool's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `https://host[:port]`.
    pub url: String,
    /// User.
    pub username: String,
    /// Password.
    pub password: String,
    /// SHA-256 of the certificate, if known beforehand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
}

impl std::fmt::Debug for PoolAddParams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PoolAddParams").field("url", &self.url).field("username", &self.username).finish_non_exhaustive()
    }
}

/// All pools, or one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PoolFilter {
    /// Pool id or name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
}

/// A remote to open.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteAddParams {
    /// Name.
    pub name: String,
    /// URL with its options (backup-repository.md §5.1), e.g. `file:///srv/backups?useVhdDirectory=true`.
    pub url: String,
}

impl std::fmt::Debug for RemoteAddParams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteAddParams").field("name", &self.name).finish_non_exhaustive()
    }
}

/// New settings of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobUpdateParams {
    /// Job id or name.
    pub id: String,
    /// All that a person sets.
    #[serde(flatten)]
    pub spec: JobSpec,
}

/// Enable or disable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSetEnabledParams {
    /// Job id or name.
    pub id: String,
    /// Whether the schedule is followed.
    pub enabled: bool,
}

/// A cron expression to explain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchedulePreviewParams {
    /// The schedule.
    #[serde(flatten)]
    pub schedule: Schedule,
    /// How many starts; default 3, at most 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
}

/// Which runs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RunListParams {
    /// Of one job only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// At most so many; default 100, at most 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Only those queued before this time, for paging.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<i64>,
}

/// Where to begin watching.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunWatchParams {
    /// Run id.
    pub run: String,
    /// The last cursor seen; 0: from the beginning.
    #[serde(default)]
    pub cursor: u64,
}

/// Which restore points.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RestorePointListParams {
    /// VM uuid or name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// Remote id or name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<String>,
}

/// What to restore and where to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreParams {
    /// Restore point id.
    pub id: String,
    /// SR uuid or name.
    pub sr: String,
    /// Name of the new VM; default: as XO names it, `<name> (<timestamp>)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}
