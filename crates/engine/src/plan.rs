//! What a run is going to do, complete: a worker needs nothing else to do it.
//!
//! A plan holds secrets (pool passwords, URLs of remotes), so it is never logged and never written to a file; it
//! travels only over the socketpair between daemon and worker ([`crate::worker`]).

use std::fmt;

use api::{AddressSpec, Compression, ErrorReport, Intent, JobMode, ProxyState, RunKind};
use serde::{Deserialize, Serialize};

/// A text that must not be seen: its `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Takes a text into custody.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// What a run is going to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The run's identifier; what a restore creates on a pool is marked with it.
    pub run: String,
    /// The work itself.
    pub work: Work,
    /// How to reach the pools the work names.
    #[serde(default)]
    pub pools: Vec<PoolAccess>,
    /// How to reach the remotes the work names.
    #[serde(default)]
    pub remotes: Vec<RemoteAccess>,
    /// Limits of the worker.
    #[serde(default)]
    pub limits: Limits,
}

/// How to reach a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolAccess {
    /// Identifier.
    pub id: String,
    /// Name, for messages.
    pub name: String,
    /// `https://host[:port]` of the master.
    pub url: String,
    /// User.
    pub username: String,
    /// Password.
    pub password: Secret,
    /// SHA-256 of the only certificate that is accepted, as [`tls::Fingerprint`] writes it.
    pub fingerprint: String,
}

/// How to reach a deployed proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyAccess {
    /// XAPI uuid of its VM.
    pub vm: String,
    /// Name, for messages.
    pub name: String,
    /// `https://host[:port]`.
    pub url: String,
    /// API token.
    pub token: Secret,
    /// SHA-256 of the only certificate that is accepted.
    pub fingerprint: String,
}

/// How to reach a remote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RemoteAccess {
    /// Identifier.
    pub id: String,
    /// Name, for messages.
    pub name: String,
    /// URL with its options (backup-repository.md §5.1); may hold a password.
    pub url: Secret,
    /// Why it must not be opened; none: it may. Its share is not mounted, and what lies in its place would be filled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub away: Option<ErrorReport>,
}

/// Limits of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// Bytes of disk content that may be in memory at once, over all transfers of the run. At least two blocks per
    /// disk that moves at the same time are wanted; fewer only make it slower.
    pub block_memory: u64,
    /// Reads in flight per disk, when the source allows several.
    pub reads_in_flight: u32,
    /// NBD connections per disk. A host serves 16 at most (xapi-streams.md §3.2).
    pub nbd_connections: u32,
    /// Disks of one VM moved at the same time.
    pub disks_per_vm: u32,
    /// Seconds without a byte after which a source or a target is given up.
    pub stall_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { block_memory: 64 << 20, reads_in_flight: 16, nbd_connections: 2, disks_per_vm: 4, stall_seconds: 300 }
    }
}

/// The work of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Work {
    /// Back up VMs to remotes.
    Backup(BackupPlan),
    /// Restore one restore point into a new VM.
    Restore(RestorePlan),
    /// Read one restore point back and check it.
    Verify(PointPlan),
    /// Remove one restore point.
    Remove(PointPlan),
    /// Clean what an interrupted run left.
    Recover(RecoverPlan),
    /// Deploy a proxy, or make one anew.
    Deploy(Box<DeployPlan>),
    /// Change address or resources of a deployed proxy.
    Reconfigure(ReconfigurePlan),
    /// Destroy a deployed proxy.
    Destroy(DestroyPlan),
}

impl Work {
    /// The kind, in the words of the API.
    pub fn kind(&self) -> RunKind {
        match self {
            Self::Backup(_) => RunKind::Backup,
            Self::Restore(_) => RunKind::Restore,
            Self::Verify(_) => RunKind::Verify,
            Self::Remove(_) => RunKind::Remove,
            Self::Recover(_) => RunKind::Recover,
            Self::Deploy(plan) if plan.replaces.is_some() => RunKind::Redeploy,
            Self::Deploy(_) => RunKind::Deploy,
            Self::Reconfigure(_) => RunKind::Reconfigure,
            Self::Destroy(_) => RunKind::Destroy,
        }
    }
}

/// One execution of a backup job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupPlan {
    /// Job identifier: part of the paths in repositories, owner of the snapshots.
    pub job: String,
    /// Job name: part of the snapshots' names.
    pub job_name: String,
    /// Schedule identifier: retention counts per schedule.
    pub schedule: String,
    /// Incremental or full.
    pub mode: JobMode,
    /// The VMs.
    pub vms: Vec<VmPlan>,
    /// Ids of the remotes, each in [`Plan::remotes`].
    pub remotes: Vec<String>,
    /// Restore points to keep per VM, at least 1.
    pub retention: u32,
    /// Compression of a full backup.
    #[serde(default)]
    pub compression: Compression,
    /// Read disks over NBD where the pool offers it.
    #[serde(default)]
    pub prefer_nbd: bool,
    /// VMs at the same time; 0: all.
    #[serde(default)]
    pub concurrency: u32,
    /// A key disk every so many runs; 0: never forced.
    #[serde(default)]
    pub full_interval: u32,
    /// Bytes per second over all transfers of the run; 0: unlimited.
    #[serde(default)]
    pub max_bytes_per_second: u64,
}

/// A VM to back up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmPlan {
    /// Pool id, in [`Plan::pools`].
    pub pool: String,
    /// XAPI uuid.
    pub uuid: String,
    /// Name as last known, for messages before the pool has answered.
    #[serde(default)]
    pub name: String,
}

/// A restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestorePlan {
    /// What to restore.
    #[serde(flatten)]
    pub point: PointPlan,
    /// Pool id, in [`Plan::pools`].
    pub pool: String,
    /// XAPI uuid of the storage repository that takes the disks.
    pub sr: String,
    /// Name of the new VM; none: `<name> (<timestamp>)`.
    #[serde(default)]
    pub name: Option<String>,
}

/// One restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointPlan {
    /// Remote id, in [`Plan::remotes`].
    pub remote: String,
    /// `/xo-vm-backups/<VM uuid>/<timestamp>.json` (backup-repository.md §1.3), with or without the leading slash.
    pub path: String,
}

impl PointPlan {
    /// What a task over the point is called before its metadata has been read: `20250131T231500Z`. The run's own label
    /// has the name of the VM.
    pub(crate) fn label(&self) -> String {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        name.strip_suffix(".json").unwrap_or(name).to_owned()
    }
}

/// What an interrupted run left to clean.
///
/// The work is idempotent: whoever starts it keeps the intents open until a recover run has ended with success, and
/// starts it again otherwise. A run that ended by itself may leave open intents too (the pool was away while it
/// cleaned): those are recovered the same way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoverPlan {
    /// The interrupted run.
    pub run: String,
    /// Its intents without a `Settled`, oldest first. The same number may stand several times: a later intent with
    /// the same number knows more (the uuid of a snapshot) and replaces the earlier.
    pub intents: Vec<OpenIntent>,
    /// How to reach the deployed proxies on the VMs that the intents name, and the one that the run was about: they may have
    /// to be told to take runs again.
    #[serde(default)]
    pub proxies: Vec<ProxyAccess>,
    /// Time limits of what is waited for.
    #[serde(default)]
    pub times: DeployTimes,
}

/// An intent that was not settled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenIntent {
    /// Its number in the interrupted run.
    pub intent: u32,
    /// What it announced.
    #[serde(flatten)]
    pub what: Intent,
}

/// A proxy to deploy into a pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeployPlan {
    /// The proxy's id.
    pub proxy: String,
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub site: String,
    /// Pool id, in [`Plan::pools`]; the new proxy is told how to reach it.
    pub pool: String,
    /// XAPI uuid of the storage repository for its disk.
    pub sr: String,
    /// XAPI uuid of its network.
    pub network: String,
    /// How it gets its address.
    pub address: AddressSpec,
    /// TCP port it answers on.
    pub port: u16,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory, bytes.
    pub memory: u64,
    /// Size of the system disk, bytes.
    pub disk: u64,
    /// The appliance.
    pub image: ImagePlan,
    /// Its API token.
    pub token: Secret,
    /// HTTP proxy for its downloads.
    #[serde(default)]
    pub http_proxy: Option<Secret>,
    /// Technician's login.
    #[serde(default)]
    pub login: Option<LoginPlan>,
    /// Public key of the issuer of licences, if licences are asked for.
    #[serde(default)]
    pub issuer_key: Option<String>,
    /// Public key of those who sign upgrades, if configured.
    #[serde(default)]
    pub upgrade_key: Option<String>,
    /// The licence to bind, as signed text.
    #[serde(default)]
    pub license: Option<Secret>,
    /// The deployed proxy whose place it takes.
    #[serde(default)]
    pub replaces: Option<ReplacePlan>,
    /// Time limits of the steps.
    #[serde(default)]
    pub times: DeployTimes,
}

/// Where the appliance comes from and what it must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImagePlan {
    /// A path, `file://…` or `http(s)://…`, of an XVA; may hold credentials.
    pub url: Secret,
    /// SHA-256 it must have; none: the file beside it says so.
    #[serde(default)]
    pub sha256: Option<String>,
    /// Public keys of which one must have signed its manifest; empty: a checksum is enough.
    #[serde(default)]
    pub trusted: Vec<String>,
    /// HTTP proxy for downloading it.
    #[serde(default)]
    pub http_proxy: Option<Secret>,
}

/// A technician's login.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LoginPlan {
    /// A password, as crypt(5) hashes it.
    PasswordHash(Secret),
    /// A line of `authorized_keys`.
    Key(String),
}

/// A deployed proxy to be replaced.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplacePlan {
    /// XAPI uuid of its VM; it may be gone.
    pub vm: String,
    /// `https://host[:port]`.
    pub url: String,
    /// Pinned SHA-256 of its certificate.
    pub fingerprint: String,
    /// Its state as last copied, for when it does not answer.
    #[serde(default)]
    pub state: Option<ProxyState>,
}

/// Time limits of the steps, seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeployTimes {
    /// For a call of the pool or the proxy.
    pub call: u64,
    /// For the upload of the image; without a byte for `stall` it ends sooner.
    pub upload: u64,
    /// Without a byte of the upload.
    pub stall: u64,
    /// For running transfers of a proxy that is replaced or restarted.
    pub drain: u64,
    /// For the VM to start, or to shut down.
    pub start: u64,
    /// Until its guest reports an address.
    pub address: u64,
    /// Until its daemon answers.
    pub daemon: u64,
}

impl Default for DeployTimes {
    fn default() -> Self {
        Self { call: 60, upload: 4 * 3600, stall: 300, drain: 3600, start: 120, address: 300, daemon: 300 }
    }
}

/// Address or resources of a deployed proxy to change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReconfigurePlan {
    /// The proxy's id.
    pub proxy: String,
    /// Its name.
    pub name: String,
    /// Pool id, in [`Plan::pools`].
    pub pool: String,
    /// XAPI uuid of its VM.
    pub vm: String,
    /// `https://host[:port]` now.
    pub url: String,
    /// Pinned SHA-256 of its certificate.
    pub fingerprint: String,
    /// Its API token.
    pub token: Secret,
    /// Port it answers on.
    pub port: u16,
    /// Its address from now on; none: stays.
    #[serde(default)]
    pub address: Option<AddressSpec>,
    /// Its processors from now on; none: stays.
    #[serde(default)]
    pub vcpus: Option<u32>,
    /// Its memory from now on, bytes; none: stays.
    #[serde(default)]
    pub memory: Option<u64>,
    /// Time limits of the steps.
    #[serde(default)]
    pub times: DeployTimes,
}

/// A deployed proxy to destroy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DestroyPlan {
    /// The proxy's id.
    pub proxy: String,
    /// Its name.
    pub name: String,
    /// Pool id, in [`Plan::pools`].
    pub pool: String,
    /// XAPI uuid of its VM; it may be gone.
    pub vm: String,
    /// How to reach it, so that what it is at work on comes to an end before its VM does; none: not known.
    #[serde(default)]
    pub access: Option<ProxyAccess>,
    /// Ids of its jobs as last known, for when it cannot be asked: the snapshots that they keep on pools go with it.
    #[serde(default)]
    pub jobs: Vec<String>,
    /// Time limits of the steps.
    #[serde(default)]
    pub times: DeployTimes,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan {
            run: "run-1".into(),
            work: Work::Restore(RestorePlan {
                point: PointPlan { remote: "r".into(), path: "/xo-vm-backups/x/20250131T231500Z.json".into() },
                pool: "p".into(),
                sr: "s".into(),
                name: Some("a \"quoted\" name \u{202e}".into()),
            }),
            pools: vec![PoolAccess {
                id: "p".into(),
                name: "lab".into(),
                url: "https://127.0.0.1".into(),
                username: "root".into(),
                password: Secret::new("hunter2"),
                fingerprint: String::new(),
            }],
            remotes: vec![RemoteAccess {
                id: "r".into(),
                name: "nas".into(),
                url: Secret::new("smb://u:hunter2@nas/x"),
                away: None,
            }],
            limits: Limits::default(),
        }
    }

    #[test]
    fn a_plan_survives_the_wire_in_one_line() {
        let text = serde_json::to_string(&plan()).unwrap();
        assert!(!text.contains('\n'));
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan());
    }

    #[test]
    fn debug_shows_no_secret() {
        assert!(!format!("{:?}", plan()).contains("hunter2"));
    }

    #[test]
    fn an_open_intent_keeps_its_number_beside_its_content() {
        let open = OpenIntent { intent: 3, what: Intent::XapiTask { pool: "p".into(), task: "OpaqueRef:1".into() } };
        let text = serde_json::to_string(&open).unwrap();
        assert_eq!(text, r#"{"intent":3,"what":"xapiTask","pool":"p","task":"OpaqueRef:1"}"#);
        assert_eq!(serde_json::from_str::<OpenIntent>(&text).unwrap(), open);
    }
}
