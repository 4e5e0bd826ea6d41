//! The run journal: the one record of what a run does, written before and while it happens.
//!
//! A run is a tree of tasks (VM, disk transfer, merge…). Every event carries the cursor at which it stands in the
//! journal of its run; a reader that remembers the last cursor it saw gets every later event exactly once.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ErrorReport;

/// Identifies a task inside its run; the run itself is no task.
pub type TaskId = u32;

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Position in the journal of the run: 1, 2, 3… without holes.
    pub cursor: u64,
    /// When, in milliseconds since the Unix epoch.
    pub at: i64,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "camelCase")]
pub enum EventKind {
    /// The run exists; nothing has been done yet.
    RunQueued {
        /// `backup`, `restore`, `verify`, `remove`, `recover`.
        kind: crate::RunKind,
        /// The job, for a run that has one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        job: Option<String>,
        /// What a person calls this run: the job's or the VM's name.
        label: String,
    },
    /// A worker has the plan and begins.
    RunStarted {
        /// Process id of the worker.
        worker: u32,
    },
    /// A part of the work begins.
    TaskStarted {
        /// Its id.
        task: TaskId,
        /// The task it is a part of.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parent: Option<TaskId>,
        /// What sort of work.
        kind: TaskKind,
        /// The object's name as a person knows it.
        label: String,
        /// The object's identifier: VM uuid, VDI uuid, restore point id, remote id.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        object: Option<String>,
    },
    /// Where a task stands. Written at most twice a second per task, and at each change of phase.
    TaskProgress {
        /// The task.
        task: TaskId,
        /// Its meter, whole: a reader needs only the newest.
        #[serde(flatten)]
        meter: TransferMeter,
    },
    /// Something a person should know: a fallback, a retry, a key disk instead of a delta and why.
    Log {
        /// The task it concerns; none: the run.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        task: Option<TaskId>,
        /// How serious.
        level: LogLevel,
        /// The sentence.
        message: String,
    },
    /// Something is about to be created, or has just got a name, outside the journal. Durable before it happens, so
    /// that a restart finds it.
    Intent {
        /// Unique in the run; [`EventKind::Settled`] refers to it.
        intent: u32,
        /// What.
        #[serde(flatten)]
        what: Intent,
    },
    /// What an intent announced is now either gone or part of a finished whole: nothing is left to clean.
    Settled {
        /// The intent's number.
        intent: u32,
    },
    /// A part of the work is over.
    TaskEnded {
        /// The task.
        task: TaskId,
        /// How.
        outcome: Outcome,
        /// Why, when it failed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<ErrorReport>,
        /// What came out.
        #[serde(default, skip_serializing_if = "TaskResult::is_empty")]
        result: TaskResult,
    },
    /// The run is over; always the last event.
    RunEnded {
        /// How.
        outcome: Outcome,
        /// Why, when it failed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<ErrorReport>,
        /// Totals.
        #[serde(default)]
        summary: RunSummary,
    },
}

/// How a run or task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// All done.
    Success,
    /// Not done; the error says why.
    Failure,
    /// A person stopped it.
    Cancelled,
    /// Nothing to do, or refused with a reason before anything was touched.
    Skipped,
    /// The process died under it; found at the next start.
    Interrupted,
}

/// What sort of work a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TaskKind {
    /// One VM of a backup.
    Vm,
    /// Snapshot taken, tagged, or removed on the pool.
    Snapshot,
    /// Movement of one disk.
    Disk,
    /// Movement of one XVA.
    Xva,
    /// Retention: old restore points removed.
    Retention,
    /// Disks of a chain merged.
    Merge,
    /// Repository checked and leftovers removed.
    Clean,
    /// One restore point restored.
    Restore,
    /// One restore point read back and checked.
    Verify,
    /// Leftovers of an interrupted run found and removed.
    Recover,
    /// Waiting for another run to let go of a VM; the meter says which.
    Queue,
    /// A named step of a deployment.
    Step,
    /// A kind this reader does not know yet.
    #[serde(other)]
    Unknown,
}

/// What a task is doing now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Waiting for its turn.
    #[default]
    Queued,
    /// Talking to the pool: snapshot, records, changed blocks.
    Preparing,
    /// Data is moving.
    Transferring,
    /// Data is made durable and published.
    Committing,
    /// Blocks of a chain are merged.
    Merging,
    /// Data is read back and checked.
    Verifying,
    /// Temporary objects go.
    Cleaning,
    /// Nothing more to do.
    Done,
}

/// Where a second of a transfer can go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Wait {
    /// The pool: an NBD or export read.
    Source,
    /// This proxy's processor: compression, checksums, zero detection.
    Cpu,
    /// The repository: a write, a sync, a rename.
    Target,
    /// A configured limit.
    Limit,
    /// A lock held by somebody else.
    Lock,
    /// A XAPI task.
    XapiTask,
}

/// Milliseconds attributed to each wait.
pub type Waits = BTreeMap<Wait, u64>;

/// The meter of one task: phase, bytes, speed, waits.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TransferMeter {
    /// What it is doing.
    pub phase: Phase,
    /// Bytes of disk content dealt with so far (moved or known to be zero).
    pub bytes_done: u64,
    /// Bytes of disk content to deal with; none while unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
    /// Bytes really read from the source.
    #[serde(default)]
    pub bytes_read: u64,
    /// Bytes really written to the target.
    #[serde(default)]
    pub bytes_written: u64,
    /// Present speed: `bytes_done` per second over the last few seconds.
    #[serde(default)]
    pub bytes_per_second: u64,
    /// Time by what it waited for, since the task began, milliseconds.
    #[serde(default, skip_serializing_if = "Waits::is_empty")]
    pub waits: Waits,
    /// What it waits for now, in words: `NBD read of xvda on xcp-1`, `lock held by run 12`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<String>,
}

/// What came out of a task.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskResult {
    /// Restore point written, restored, verified or removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_point: Option<String>,
    /// VM made by a restore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// Whether the disk was written as a delta.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta: Option<bool>,
    /// How the data came: `nbd+cbt`, `nbd`, `stream`, `xva`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Bytes of content moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// `https://host[:port]` of a proxy that was deployed or moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// SHA-256 of that proxy's certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
}

impl TaskResult {
    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Something created outside the journal that a crash would leave behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "camelCase")]
pub enum Intent {
    /// A snapshot of a VM on a pool, found again by its temporary name or by its backup keys
    /// (backup-repository.md §4.1).
    Snapshot {
        /// Pool id.
        pool: String,
        /// The live VM.
        vm: String,
        /// The job whose keys it carries.
        job: String,
        /// The snapshot's uuid, once known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        snapshot: Option<String>,
    },
    /// Operations blocked on a live VM for the time of the run.
    BlockedOperations {
        /// Pool id.
        pool: String,
        /// The live VM.
        vm: String,
        /// Operation → reason before the run; `None`: it was not blocked.
        previous: BTreeMap<String, Option<String>>,
    },
    /// A VM being restored, with its disks; marked in `other_config` with the run's id.
    RestoredVm {
        /// Pool id.
        pool: String,
        /// The new VM or VDI, once known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        uuid: Option<String>,
    },
    /// A restore point being written: temporary files, disks without metadata.
    RestorePoint {
        /// Remote id.
        remote: String,
        /// VM directory.
        vm: String,
    },
    /// The VM of a proxy being deployed; marked in `other_config` with the run's id. Undone, it goes; and the proxy it was
    /// to replace is switched on again.
    DeployedVm {
        /// Pool id.
        pool: String,
        /// The new VM, once known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        uuid: Option<String>,
        /// The VM it replaces, from before that is switched off.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        replaces: Option<String>,
        /// Whether the proxy on that VM answered: then it has to again before this counts as undone.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        answered: bool,
    },
    /// A proxy that holds its runs back because it is to be destroyed. Undone, it takes runs again.
    DrainedProxy {
        /// Pool id.
        pool: String,
        /// Its VM.
        uuid: String,
    },
    /// The VM of a proxy that is to go, because another has taken its place or a person said so. Finished, never undone.
    ObsoleteVm {
        /// Pool id.
        pool: String,
        /// The VM.
        uuid: String,
        /// Jobs that go with it, by id: the snapshots that they keep on the pool go too.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        jobs: Vec<String>,
    },
    /// A proxy's VM whose address or resources are being changed. Undone, it gets back what it had and is restarted.
    ReconfiguredVm {
        /// Pool id.
        pool: String,
        /// The VM.
        uuid: String,
        /// XenStore data before: key → value; `None`: there was none. No secrets.
        keys: BTreeMap<String, Option<String>>,
        /// Processors before.
        vcpus: u32,
        /// Memory before, bytes.
        memory: u64,
        /// Whether its proxy answered before: then it has to again before this counts as undone.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        answered: bool,
    },
    /// A XAPI task of ours.
    XapiTask {
        /// Pool id.
        pool: String,
        /// Opaque reference of the task.
        task: String,
    },
}

/// How serious a log line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Good to know.
    Info,
    /// Worth a look: a fallback, a retry.
    Warning,
    /// Something failed; the run may go on.
    Error,
}

/// Totals of a run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunSummary {
    /// VMs (or restore points) that succeeded.
    pub succeeded: u32,
    /// VMs (or restore points) that failed.
    pub failed: u32,
    /// Disk content moved, bytes.
    pub bytes: u64,
    /// Bytes written to repositories.
    pub bytes_written: u64,
    /// Warnings logged.
    pub warnings: u32,
}
