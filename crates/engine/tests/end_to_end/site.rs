//! A site for tests: a simulated pool, two remotes of both layouts, and runs against them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use api::{Compression, EventKind, Intent, JobMode, LogLevel, Outcome, Phase, TaskKind, TaskResult};
use async_trait::async_trait;
use engine::plan::{
    BackupPlan, Limits, OpenIntent, PointPlan, PoolAccess, RecoverPlan, RemoteAccess, RestorePlan, Secret, VmPlan, Work,
};
use engine::{Journal, JournalError, Plan};
use lab::{Lab, LabSpec, PoolHandle};
use repository::{Point, Repository};
use storage::RemoteUrl;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub const JOB: &str = "0c7f6a52-3a0e-4f0e-9a52-6b0d0c8a1f11";
pub const SCHEDULE: &str = "5b1b0d3e-7f0c-4a4e-8f39-2f2f4c6d9e01";
/// The remote that keeps VHD files.
pub const FILES: &str = "files";
/// The remote that keeps VHD directories.
pub const DIRECTORIES: &str = "directories";

/// A journal in memory.
#[derive(Default)]
pub struct Memory {
    events: Mutex<Vec<EventKind>>,
    news: watch::Sender<usize>,
}

#[async_trait]
impl Journal for Memory {
    fn record(&self, event: EventKind) {
        let mut events = self.events.lock().unwrap();
        events.push(event);
        self.news.send_replace(events.len());
    }

    async fn record_durable(&self, event: EventKind) -> Result<(), JournalError> {
        self.record(event);
        Ok(())
    }
}

impl Memory {
    /// Waits until something has happened.
    pub async fn until(&self, happened: impl Fn(&EventKind) -> bool) {
        let mut news = self.news.subscribe();
        while !self.events.lock().unwrap().iter().any(&happened) {
            news.changed().await.unwrap();
        }
    }

    pub fn story(&self) -> Story {
        Story(self.events.lock().unwrap().clone())
    }
}

/// The events of a run that is over.
pub struct Story(pub Vec<EventKind>);

impl Story {
    pub fn outcome(&self) -> Outcome {
        match self.0.last() {
            Some(EventKind::RunEnded { outcome, .. }) => *outcome,
            last => panic!("the last event is {last:?}"),
        }
    }

    /// Results of the tasks of a kind, in the order of their ends.
    pub fn results(&self, kind: TaskKind) -> Vec<TaskResult> {
        let ids: Vec<u32> = self
            .0
            .iter()
            .filter_map(|event| match event {
                EventKind::TaskStarted { task, kind: of, .. } if *of == kind => Some(*task),
                _ => None,
            })
            .collect();
        self.0
            .iter()
            .filter_map(|event| match event {
                EventKind::TaskEnded { task, result, .. } if ids.contains(task) => Some(result.clone()),
                _ => None,
            })
            .collect()
    }

    /// Log lines from a warning up.
    pub fn warnings(&self) -> Vec<String> {
        self.0
            .iter()
            .filter_map(|event| match event {
                EventKind::Log { level, message, .. } if *level >= LogLevel::Warning => Some(message.clone()),
                _ => None,
            })
            .collect()
    }

    /// Intents that nothing has settled.
    pub fn open_intents(&self) -> Vec<OpenIntent> {
        open_intents(&self.0)
    }

    /// A run of which nothing is left to clean, and whose tasks have all ended.
    pub fn assert_tidy(&self) {
        assert_eq!(self.open_intents(), [], "open intents");
        let started = self.0.iter().filter(|event| matches!(event, EventKind::TaskStarted { .. })).count();
        let ended = self.0.iter().filter(|event| matches!(event, EventKind::TaskEnded { .. })).count();
        assert_eq!(started, ended, "tasks");
    }

    pub fn assert(&self, outcome: Outcome) -> &Self {
        assert_eq!(self.outcome(), outcome, "{:#?}", self.0);
        self.assert_tidy();
        self
    }
}

pub fn open_intents(events: &[EventKind]) -> Vec<OpenIntent> {
    let mut open: Vec<OpenIntent> = Vec::new();
    for event in events {
        match event {
            EventKind::Intent { intent, what } => open.push(OpenIntent { intent: *intent, what: what.clone() }),
            EventKind::Settled { intent } => open.retain(|of| of.intent != *intent),
            _ => {}
        }
    }
    open
}

/// A pool, and remotes beside it.
pub struct Site {
    pub lab: Lab,
    _lab_dir: TempDir,
    remotes: TempDir,
}

impl Site {
    /// One running VM `alpha` with two disks of 64 MiB.
    pub async fn new() -> Self {
        Self::with(LabSpec::single()).await
    }

    pub async fn with(spec: LabSpec) -> Self {
        let lab_dir = tempfile::tempdir().unwrap();
        let remotes = tempfile::tempdir().unwrap();
        for name in [FILES, DIRECTORIES] {
            std::fs::create_dir(remotes.path().join(name)).unwrap();
        }
        Self { lab: Lab::open(lab_dir.path(), &spec).await.unwrap(), _lab_dir: lab_dir, remotes }
    }

    pub fn pool(&self) -> &PoolHandle {
        self.lab.pool()
    }

    pub fn remote_path(&self, remote: &str) -> PathBuf {
        self.remotes.path().join(remote)
    }

    fn remote_url(&self, remote: &str) -> String {
        let options = if remote == DIRECTORIES { "?useVhdDirectory=true" } else { "" };
        format!("file://{}{options}", self.remote_path(remote).display())
    }

    pub fn plan(&self, work: Work) -> Plan {
        let pool = self.pool();
        let remote =
            |id: &str| RemoteAccess { id: id.into(), name: id.into(), url: Secret::new(self.remote_url(id)), away: None };
        Plan {
            run: "run-1".into(),
            work,
            pools: vec![PoolAccess {
                id: "pool".into(),
                name: pool.name().into(),
                url: pool.url(),
                username: pool.username().into(),
                password: Secret::new(pool.password()),
                fingerprint: pool.fingerprint().to_string(),
            }],
            remotes: [FILES, DIRECTORIES].map(remote).into(),
            limits: Limits::default(),
        }
    }

    pub fn backup(&self) -> BackupPlan {
        BackupPlan {
            job: JOB.into(),
            job_name: "nightly".into(),
            schedule: SCHEDULE.into(),
            mode: JobMode::Delta,
            vms: vec![VmPlan { pool: "pool".into(), uuid: self.pool().vm("alpha").unwrap().uuid, name: "alpha".into() }],
            remotes: vec![FILES.into(), DIRECTORIES.into()],
            retention: 5,
            compression: Compression::None,
            prefer_nbd: true,
            concurrency: 2,
            full_interval: 0,
            max_bytes_per_second: 0,
        }
    }

    pub fn restore(&self, remote: &str, point: &Point) -> RestorePlan {
        let (_, sr) = self.pool().records("SR").into_iter().find(|(_, sr)| sr["content_type"] == "user").unwrap();
        RestorePlan {
            point: PointPlan { remote: remote.into(), path: point.id.to_string() },
            pool: "pool".into(),
            sr: sr["uuid"].as_str().unwrap().into(),
            name: None,
        }
    }

    /// Executes a work to its end.
    pub async fn run(&self, work: Work) -> Story {
        execute(self.plan(work)).await
    }

    /// Begins a work; its journal, its cancel, and its end.
    pub fn start(&self, work: Work) -> (Arc<Memory>, CancellationToken, tokio::task::JoinHandle<Outcome>) {
        begin(self.plan(work))
    }

    pub async fn recover(&self, intents: Vec<OpenIntent>) -> Story {
        self.run(Work::Recover(RecoverPlan { run: "run-1".into(), intents, proxies: Vec::new(), times: Default::default() }))
            .await
    }

    pub async fn points(&self, remote: &str) -> Vec<Point> {
        let url = RemoteUrl::parse(&self.remote_url(remote)).unwrap();
        let repository = Repository::open_url(&url).await.unwrap();
        repository.list(&self.pool().vm("alpha").unwrap().uuid).await.unwrap().points
    }

    /// Content of the live disks of a VM.
    pub fn content(&self, vm: &str) -> Vec<Vec<u8>> {
        let disks = self.pool().vm(vm).unwrap_or_else(|| panic!("no VM {vm}")).disks;
        disks.iter().map(|disk| std::fs::read(&disk.path).unwrap()).collect()
    }

    /// Restores a point and compares every byte of every disk.
    pub async fn assert_restores(&self, remote: &str, point: &Point, expected: &[Vec<u8>]) {
        let story = self.run(Work::Restore(self.restore(remote, point))).await;
        story.assert(Outcome::Success);
        let uuid = story.results(TaskKind::Restore)[0].vm.clone().unwrap();
        let content = self.content(&uuid);
        assert_eq!(content.len(), expected.len());
        for (disk, (found, expected)) in content.iter().zip(expected).enumerate() {
            assert!(found == expected, "disk {disk} of {} from {remote} differs", point.id);
        }
        assert_eq!(self.pool().vm(&uuid).unwrap().name, format!("alpha ({})", point.id.stem()));
    }

    /// Nothing of a run is left on the pool but at most the base of the next delta.
    pub fn assert_pool_clean(&self, bases: usize) {
        let snapshots: Vec<_> = self.pool().records("VM").into_iter().filter(|(_, vm)| vm["is_a_snapshot"] == true).collect();
        assert_eq!(snapshots.len(), bases, "{snapshots:#?}");
        for (_, snapshot) in &snapshots {
            assert_eq!(snapshot["other_config"]["xo:backup:exported"], "true");
        }
        for (_, vm) in self.pool().records("VM").iter().filter(|(_, vm)| vm["is_a_snapshot"] == false) {
            assert!(vm["blocked_operations"].get("pool_migrate").is_none(), "{vm}");
            assert!(vm["other_config"].get("backhaul:restore").is_none(), "{vm}");
        }
        let orphan = |vdi: &serde_json::Value| vdi["other_config"].get("backhaul:restore").is_some();
        assert!(!self.pool().records("VDI").iter().any(|(_, vdi)| orphan(vdi)));
    }

    /// The files of a remote that no restore point and no lock accounts for: temporary ones, half disks.
    pub fn leftovers(&self, remote: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        walk(&self.remote_path(remote), &mut found);
        found.retain(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with('.') || name.ends_with(".lock")
        });
        found
    }

    /// Makes the locks of a killed process as old as they would be ten seconds later.
    pub fn age_locks(&self) {
        for remote in [FILES, DIRECTORIES] {
            let Ok(entries) = std::fs::read_dir(self.remote_path(remote).join("xo-vm-backups")) else { continue };
            for entry in entries.flatten().filter(|entry| entry.path().extension().is_some_and(|end| end == "lock")) {
                let past = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
                std::fs::File::open(entry.path()).unwrap().set_modified(past).unwrap();
            }
        }
    }
}

/// Executes a plan to its end.
pub async fn execute(plan: Plan) -> Story {
    let journal = Arc::new(Memory::default());
    engine::run(plan, Arc::clone(&journal) as Arc<dyn Journal>, CancellationToken::new()).await;
    journal.story()
}

/// Begins a plan; its journal, its cancel, and its end.
pub fn begin(plan: Plan) -> (Arc<Memory>, CancellationToken, tokio::task::JoinHandle<Outcome>) {
    let (journal, cancel) = (Arc::new(Memory::default()), CancellationToken::new());
    let (pen, token) = (Arc::clone(&journal) as Arc<dyn Journal>, cancel.clone());
    let runtime = tokio::runtime::Handle::current();
    let end = tokio::task::spawn_blocking(move || runtime.block_on(engine::run(plan, pen, token)));
    (journal, cancel, end)
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            walk(&entry.path(), found);
        }
        found.push(entry.path());
    }
}

/// Whether data is moving.
pub fn transferring(event: &EventKind) -> bool {
    matches!(event, EventKind::TaskProgress { meter, .. } if meter.phase == Phase::Transferring && meter.bytes_done > 0)
}

/// Whether an event announces a snapshot.
pub fn announces_snapshot(event: &EventKind) -> bool {
    matches!(event, EventKind::Intent { what: Intent::Snapshot { .. }, .. })
}

/// Whether an event announces that a VM is to go.
pub fn announces_the_end(event: &EventKind) -> bool {
    matches!(event, EventKind::Intent { what: Intent::ObsoleteVm { .. }, .. })
}
