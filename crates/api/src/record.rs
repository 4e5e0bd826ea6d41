//! The records of a proxy as its API shows them. Sizes are bytes, times milliseconds since the Unix epoch.

use serde::{Deserialize, Serialize};

use crate::{ErrorReport, Outcome, RunSummary, TaskId, TaskKind, TaskResult, TransferMeter};

/// The state of one proxy.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyStatus {
    /// Configured name.
    pub name: String,
    /// Configured site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// Program version.
    pub version: String,
    /// When the daemon started.
    pub started_at: i64,
    /// Runs that have not ended.
    pub running: Vec<Run>,
    /// Sum over the running transfers.
    pub bytes_per_second: u64,
    /// The newest failure of a run that no later one has put right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<LastError>,
    /// SHA-256 of the daemon's certificate.
    #[serde(default)]
    pub fingerprint: String,
    /// The proxy's id, its own for ever.
    #[serde(default)]
    pub id: String,
    /// Release channel of the program: `stable`, `testing`; none: not from a bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    /// Which build of the version: `lab.2`; none: not from a bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<String>,
    /// Whether new runs are held back.
    #[serde(default)]
    pub draining: bool,
    /// How it stands with licences.
    #[serde(default)]
    pub licensing: crate::Licensing,
    /// The upgrade that goes on, or the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<Box<crate::UpgradeState>>,
    /// Until when a former token is still accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former_token_until: Option<i64>,
}

/// A failure with its time and origin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastError {
    /// When.
    pub at: i64,
    /// The run, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// What.
    pub error: ErrorReport,
}

/// A pool this proxy reads from and restores to. The password never comes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// Identifier.
    pub id: String,
    /// Name.
    pub name: String,
    /// `https://host[:port]`.
    pub url: String,
    /// User.
    pub username: String,
    /// Pinned SHA-256 of the master's certificate.
    pub fingerprint: String,
    /// Whether it answered last time.
    pub state: PoolState,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorReport>,
}

/// Whether a pool answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolState {
    /// Not asked yet.
    Unknown,
    /// Answers.
    Connected,
    /// Does not answer, or refuses.
    Unreachable,
}

/// A VM of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Vm {
    /// Pool id.
    pub pool: String,
    /// XAPI uuid.
    pub uuid: String,
    /// Name.
    pub name: String,
    /// `Running`, `Halted`, `Suspended`, `Paused`.
    pub power_state: String,
    /// Tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Disks, in device order.
    pub disks: Vec<VmDisk>,
}

/// A disk of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmDisk {
    /// XAPI uuid of the VDI.
    pub vdi: String,
    /// Name.
    pub name: String,
    /// Device, e.g. `xvda`.
    #[serde(default)]
    pub device: String,
    /// Virtual size.
    pub bytes: u64,
    /// Whether changed blocks are tracked.
    pub cbt: bool,
}

/// A storage repository of a pool, for restores.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sr {
    /// Pool id.
    pub pool: String,
    /// XAPI uuid.
    pub uuid: String,
    /// Name.
    pub name: String,
    /// Total size.
    pub bytes: u64,
    /// Free space.
    pub free: u64,
    /// Whether it is the pool's default.
    pub default: bool,
}

/// A remote (backup repository).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Remote {
    /// Identifier.
    pub id: String,
    /// Name.
    pub name: String,
    /// URL with secrets replaced (backup-repository.md §5.1).
    pub url: String,
    /// `local`, `nfs`, `smb`, `s3`, `azure`.
    pub kind: String,
    /// Whether disks are written as directories of blocks rather than VHD files.
    pub vhd_directory: bool,
    /// Space, when the storage can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub space: Option<Space>,
    /// Whether it lies on the disk of the proxy's own system, and so goes with the proxy.
    #[serde(default)]
    pub own_disk: bool,
    /// Why it cannot be used, as of the last look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorReport>,
}

/// Room on a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Space {
    /// Total.
    pub size: u64,
    /// Used.
    pub used: u64,
    /// Free for us.
    pub available: u64,
}

/// Result of testing a remote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RemoteTest {
    /// Whether what was written came back the same.
    pub success: bool,
    /// Bytes per second written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_rate: Option<f64>,
    /// Bytes per second read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_rate: Option<f64>,
    /// The step that failed: `open`, `write`, `read`, `compare`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorReport>,
}

/// What a job writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobMode {
    /// Incremental: a key, then deltas.
    Delta,
    /// Full: one XVA a run.
    Full,
}

/// Compression of a full backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// As it is.
    None,
    /// gzip, by the pool.
    Gzip,
    /// zstd, by the pool.
    #[default]
    Zstd,
}

/// What to back up, where to, when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Job {
    /// Identifier (UUID v4): part of the paths in repositories.
    pub id: String,
    /// Schedule's identifier (UUID v4): retention counts per schedule.
    pub schedule_id: String,
    /// What a person sets.
    #[serde(flatten)]
    pub spec: JobSpec,
    /// Its last run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_run: Option<Run>,
    /// Next starts, at most three; empty when disabled or without schedule.
    #[serde(default)]
    pub next_runs: Vec<i64>,
}

/// What a person sets of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobSpec {
    /// Name, unique on the proxy.
    pub name: String,
    /// Incremental or full.
    pub mode: JobMode,
    /// uuids of the VMs.
    pub vms: Vec<String>,
    /// ids of the remotes.
    pub remotes: Vec<String>,
    /// When; none: only by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    /// Whether the schedule is followed.
    #[serde(default = "yes")]
    pub enabled: bool,
    /// How many restore points to keep per VM, at least 1.
    #[serde(default = "default_retention")]
    pub retention: u32,
    /// Compression of full backups.
    #[serde(default)]
    pub compression: Compression,
    /// Read disks over NBD where the pool offers it; `export_raw_vdi` otherwise, and the journal says so.
    #[serde(default = "yes")]
    pub prefer_nbd: bool,
    /// VMs at the same time.
    #[serde(default = "default_concurrency")]
    pub concurrency: u32,
    /// A key disk every so many runs; 0: never forced.
    #[serde(default)]
    pub full_interval: u32,
    /// Bytes per second for the whole job; 0: unlimited.
    #[serde(default)]
    pub max_bytes_per_second: u64,
}

fn yes() -> bool {
    true
}
fn default_retention() -> u32 {
    7
}
fn default_concurrency() -> u32 {
    2
}

/// When a job runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Schedule {
    /// Five (or six, seconds first) fields.
    pub cron: String,
    /// IANA name.
    pub timezone: String,
}

/// A cron expression explained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SchedulePreview {
    /// In words.
    pub words: String,
    /// Next starts.
    pub next: Vec<i64>,
}

/// What a run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunKind {
    /// Executes a job.
    Backup,
    /// Restores a restore point.
    Restore,
    /// Reads a restore point back.
    Verify,
    /// Removes a restore point.
    Remove,
    /// Cleans up after an interrupted run.
    Recover,
    /// Deploys a proxy.
    Deploy,
    /// Makes a deployed proxy anew.
    Redeploy,
    /// Changes address or resources of a deployed proxy.
    Reconfigure,
    /// Destroys a deployed proxy.
    Destroy,
    /// Has upgraded this proxy.
    Upgrade,
    /// A kind this reader does not know yet.
    #[serde(other)]
    Unknown,
}

/// One execution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// Identifier.
    pub id: String,
    /// What it does.
    pub kind: RunKind,
    /// Job, for a run that has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// Name of the job or VM.
    pub label: String,
    /// When it was asked for.
    pub queued_at: i64,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<i64>,
    /// How it ended; none: it has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Whether a cancel was asked for.
    #[serde(default)]
    pub cancelling: bool,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorReport>,
    /// Totals, once ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<RunSummary>,
    /// Cursor of the newest event.
    pub cursor: u64,
}

impl Eq for RunSummary {}

/// A run with its tasks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunDetail {
    /// The run.
    #[serde(flatten)]
    pub run: Run,
    /// Its tasks, parents before children.
    pub tasks: Vec<Task>,
    /// Its log lines.
    pub log: Vec<LogLine>,
}

/// A task as the journal left it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Task {
    /// Identifier in the run.
    pub id: TaskId,
    /// Task it is a part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<TaskId>,
    /// Sort of work.
    pub kind: TaskKind,
    /// Object's name.
    pub label: String,
    /// Object's identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// When it began.
    pub started_at: i64,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<i64>,
    /// How.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorReport>,
    /// Last meter.
    #[serde(default)]
    pub meter: TransferMeter,
    /// What came out.
    #[serde(default)]
    pub result: TaskResult,
}

/// A line of a run's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogLine {
    /// When.
    pub at: i64,
    /// Task; none: the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    /// How serious.
    pub level: crate::LogLevel,
    /// The sentence.
    pub message: String,
}

/// A restore point of a VM on a remote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestorePoint {
    /// `<remote id>/xo-vm-backups/<VM uuid>/<timestamp>.json`, as xo-server forms it.
    pub id: String,
    /// Remote id.
    pub remote: String,
    /// VM uuid.
    pub vm: String,
    /// VM name at the time.
    pub vm_name: String,
    /// Incremental or full.
    pub mode: JobMode,
    /// When.
    pub timestamp: i64,
    /// Job that wrote it.
    #[serde(default)]
    pub job: String,
    /// Bytes moved to write it.
    pub size: u64,
    /// Disks; for a delta backup, read from its metadata.
    #[serde(default)]
    pub disks: Vec<RestorePointDisk>,
    /// What a verify last said, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<Verified>,
}

/// A disk of a restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestorePointDisk {
    /// uuid of the snapshot VDI.
    pub uuid: String,
    /// Name.
    pub name: String,
    /// Virtual size.
    pub bytes: u64,
    /// Whether it is stored as a delta.
    pub delta: bool,
}

/// Outcome of the last verify of a restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verified {
    /// When.
    pub at: i64,
    /// How it ended.
    pub outcome: Outcome,
}
