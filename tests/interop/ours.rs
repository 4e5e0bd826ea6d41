//! Our engine, sent to work on the same site as XO's.

use std::sync::{Arc, Mutex};

use api::{EventKind, LogLevel, Outcome, TaskKind, TaskResult};
use async_trait::async_trait;
use engine::plan::{BackupPlan, Limits, PointPlan, PoolAccess, RemoteAccess, RestorePlan, Secret, VmPlan, Work};
use engine::{Journal, JournalError, Plan};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::site::{JOB, Layout, REMOTE, SCHEDULE, Site};

const POOL: &str = "pool";

/// What a run of ours wrote into its journal.
pub struct Told(Vec<EventKind>);

struct Events(Mutex<Vec<EventKind>>);

#[async_trait]
impl Journal for Events {
    fn record(&self, event: EventKind) {
        self.0.lock().unwrap().push(event);
    }

    async fn record_durable(&self, event: EventKind) -> Result<(), JournalError> {
        self.record(event);
        Ok(())
    }
}

impl Told {
    /// Results of the tasks of a kind that succeeded.
    pub fn results(&self, kind: TaskKind) -> Vec<TaskResult> {
        let ids: Vec<_> = self
            .0
            .iter()
            .filter_map(|event| match event {
                EventKind::TaskStarted { task, kind: this, .. } if *this == kind => Some(*task),
                _ => None,
            })
            .collect();
        self.0
            .iter()
            .filter_map(|event| match event {
                EventKind::TaskEnded { task, outcome: Outcome::Success, result, .. } if ids.contains(task) => {
                    Some(result.clone())
                }
                _ => None,
            })
            .collect()
    }

    /// For each disk moved: whether as a delta, and how it was read.
    pub fn disks(&self) -> Vec<(bool, String)> {
        let disk = |result: TaskResult| (result.delta.unwrap_or(false), result.path.unwrap_or_default());
        self.results(TaskKind::Disk).into_iter().map(disk).collect()
    }
}

impl Site {
    /// One backup run of ours, as job and schedule of XO's.
    pub async fn our_backup(&self, mode: api::JobMode, compression: api::Compression, prefer_nbd: bool, retention: u32) -> Told {
        self.next_second().await;
        let vm = self.vm();
        self.our_run(Work::Backup(BackupPlan {
            job: JOB.into(),
            job_name: "interop".into(),
            schedule: SCHEDULE.into(),
            mode,
            vms: vec![VmPlan { pool: POOL.into(), uuid: vm.uuid, name: vm.name }],
            remotes: vec![REMOTE.into()],
            retention,
            compression,
            prefer_nbd,
            concurrency: 1,
            full_interval: 0,
            max_bytes_per_second: 0,
        }))
        .await
    }

    /// Reads a restore point back.
    pub async fn our_verify(&self, point: &Value) {
        self.our_run(Work::Verify(of(point))).await;
    }

    /// A restore of ours; the UUID of the new machine.
    pub async fn our_restore(&self, point: &Value) -> String {
        let work = Work::Restore(RestorePlan { point: of(point), pool: POOL.into(), sr: self.sr(), name: None });
        let told = self.our_run(work).await;
        let vm = told.results(TaskKind::Restore).into_iter().find_map(|result| result.vm);
        vm.expect("a restore names the new VM")
    }

    /// A run that has to succeed, without a warning.
    async fn our_run(&self, work: Work) -> Told {
        let pool = self.lab();
        let directory = self.layout() == Layout::Directory;
        let url = format!("file://{}?useVhdDirectory={directory}", self.remote().display());
        let plan = Plan {
            run: "interop".into(),
            work,
            pools: vec![PoolAccess {
                id: POOL.into(),
                name: "lab".into(),
                url: pool.url(),
                username: pool.username().into(),
                password: Secret::new(pool.password()),
                fingerprint: pool.fingerprint().to_string(),
            }],
            remotes: vec![RemoteAccess { id: REMOTE.into(), name: "judge".into(), url: Secret::new(url), away: None }],
            limits: Limits::default(),
        };
        let journal = Arc::new(Events(Mutex::default()));
        let outcome = engine::run(plan, Arc::clone(&journal) as Arc<dyn Journal>, CancellationToken::new()).await;
        let events = std::mem::take(&mut *journal.0.lock().unwrap());
        let warned = |event: &EventKind| matches!(event, EventKind::Log { level: LogLevel::Warning | LogLevel::Error, .. });
        assert!(outcome == Outcome::Success && !events.iter().any(warned), "our run ended as {outcome:?}: {events:#?}");
        Told(events)
    }
}

fn of(point: &Value) -> PointPlan {
    PointPlan { remote: REMOTE.into(), path: point["file"].as_str().expect("XO names the file").into() }
}
