//! A lab with one pool and one remote, and XO's engine sent to work on them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lab::{Lab, LabSpec, PoolHandle, VmInfo};
use serde_json::{Value, json};

use crate::judge::{assert_same, xo};

pub const JOB: &str = "5a0c6f52-4d0e-4c8e-9b0a-0f6f0f1c2d3e";
pub const SCHEDULE: &str = "0d2f7a7e-52c6-4f0e-8a51-6f1f0d9b7c11";
pub const REMOTE: &str = "c2b0a4f1-6a0d-4a55-9a0b-3a3f5a1d9e77";

/// How disks are stored on the remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    File,
    Directory,
}

/// The lab, its pool, its remote.
pub struct Site {
    lab: Lab,
    layout: Layout,
    dir: tempfile::TempDir,
}

impl Site {
    pub async fn open(layout: Layout) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("remote")).unwrap();
        let mut spec = LabSpec::single();
        // XO's HTTP client dies when an export closes the moment its last byte is sent.
        spec.pools[0].close_after = Duration::from_millis(500);
        let lab = Lab::open(&dir.path().join("lab"), &spec).await.unwrap();
        Self { lab, layout, dir }
    }

    pub fn layout(&self) -> Layout {
        self.layout
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn lab(&self) -> &PoolHandle {
        self.lab.pool()
    }

    pub fn remote(&self) -> PathBuf {
        self.dir().join("remote")
    }

    /// The pool as the scripts want it.
    pub fn pool(&self) -> Value {
        let pool = self.lab();
        json!({ "url": pool.url(), "username": pool.username(), "password": pool.password() })
    }

    /// A request with the remote in it.
    fn with_remote(&self, mut request: Value) -> Value {
        let directory = self.layout == Layout::Directory;
        request["remote"] = json!({ "id": REMOTE, "path": self.remote(), "vhdDirectory": directory });
        request
    }

    /// A request with the pool and the remote in it.
    fn with_all(&self, request: Value) -> Value {
        let mut request = self.with_remote(request);
        request["pool"] = self.pool();
        request
    }

    /// The machine that is backed up.
    pub fn vm(&self) -> VmInfo {
        self.lab().vm("alpha").unwrap()
    }

    /// UUID of the storage that takes restores.
    pub fn sr(&self) -> String {
        let (_, pool) = self.lab().records("pool").remove(0);
        let sr = self.lab().record("SR", pool["default_SR"].as_str().unwrap()).unwrap();
        sr["uuid"].as_str().unwrap().to_owned()
    }

    pub async fn mutate(&self, percent: f64) {
        self.lab().mutate("alpha", percent).await.unwrap();
    }

    /// Copies of the disks of the machine as they are now.
    pub fn keep_disks(&self, name: &str) -> Vec<PathBuf> {
        let keep = |(position, disk): (usize, &lab::DiskInfo)| {
            let path = self.dir().join(format!("{name}-{position}.raw"));
            std::fs::copy(&disk.path, &path).unwrap();
            path
        };
        self.vm().disks.iter().enumerate().map(keep).collect()
    }

    /// Asserts that the disks of a machine are the ones kept.
    pub fn assert_disks(&self, what: &str, vm: &str, kept: &[PathBuf]) {
        let vm = self.lab().vm(vm).unwrap_or_else(|| panic!("{what}: there is no VM {vm}"));
        assert_eq!(vm.disks.len(), kept.len(), "{what}: {vm:?}");
        for (disk, kept) in vm.disks.iter().zip(kept) {
            assert_same(what, &disk.path, kept);
        }
    }

    /// One run of XO's engine.
    pub async fn xo_backup(&self, mode: &str, settings: Value) -> Value {
        self.next_second().await;
        let mut all = json!({ "exportRetention": 7 });
        all.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        let job = json!({ "id": JOB, "mode": mode });
        xo("backup", &self.with_all(json!({ "vm": self.vm().uuid, "job": job, "schedule": SCHEDULE, "settings": all }))).await
    }

    /// Waits for the clock to show a second that no earlier run can have used: XO groups snapshots by a time in whole
    /// seconds, and two runs in one of them look like one snapshot of two VMs.
    pub async fn next_second(&self) {
        let seconds = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let before = seconds();
        while seconds() == before {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The restore points as XO lists them, oldest first, after its clean-up found nothing to complain about.
    pub async fn xo_points(&self, count: usize) -> Vec<Value> {
        let request = self.with_remote(json!({ "vm": self.vm().uuid }));
        let listed = xo("points", &request).await;
        let cleaned = xo("clean", &request).await;
        assert_eq!(cleaned["warnings"], json!([]), "{cleaned:#}");
        assert_eq!(cleaned["points"], listed, "the clean-up changed the listing");
        let points = listed.as_array().unwrap().clone();
        assert_eq!(points.len(), count, "{listed:#}");
        points
    }

    /// Asserts that XO reads the disks of a restore point as they were.
    pub async fn assert_xo_reads(&self, what: &str, point: &Value, kept: &[PathBuf]) {
        let disks = point["disks"].as_object().unwrap();
        assert_eq!(disks.len(), kept.len(), "{point:#}");
        for (vdi, path) in disks {
            let output = self.dir().join("read.raw");
            xo("read", &self.with_remote(json!({ "disk": self.disk_path(path), "output": output }))).await;
            assert_same(what, &output, &kept[self.position_of_snapshot(point, vdi)]);
        }
    }

    /// A restore by XO's engine; the UUID of the new machine.
    pub async fn xo_restore(&self, point: &Value) -> String {
        let answer = xo("restore", &self.with_all(json!({ "point": point["file"], "sr": self.sr() }))).await;
        assert_eq!(answer["failures"], json!([]), "{answer:#}");
        answer["result"]["id"].as_str().unwrap_or_else(|| panic!("no VM in {answer:#}")).to_owned()
    }

    /// The restore points of an answer that tells of no failure and no warning, oldest first.
    pub fn good(&self, answer: &Value, points: usize) -> Vec<Value> {
        assert_eq!((&answer["failures"], &answer["warnings"]), (&json!([]), &json!([])), "{answer:#}");
        let found = answer["points"].as_array().unwrap().clone();
        assert_eq!(found.len(), points, "{answer:#}");
        found
    }

    /// Path of a disk in the repository, from its place in the metadata.
    fn disk_path(&self, path: &Value) -> String {
        format!("xo-vm-backups/{}/{}", self.vm().uuid, path.as_str().unwrap())
    }

    /// Which disk of the machine a disk of a restore point is.
    fn position_of_snapshot(&self, point: &Value, vdi: &str) -> usize {
        let path = point["disks"][vdi].as_str().unwrap();
        let is_lineage = |disk: &lab::DiskInfo| path.contains(&disk.vdi);
        self.vm().disks.iter().position(is_lineage).unwrap_or_else(|| panic!("{path} belongs to no disk"))
    }

    /// The pool has so many snapshot disks, all of one type.
    pub fn assert_snapshots(&self, kind: &str, count: usize) {
        let snapshots = self.lab().records("VDI").into_iter().filter(|(_, vdi)| vdi["is_a_snapshot"] == true);
        let kinds: Vec<_> = snapshots.map(|(_, vdi)| vdi["type"].as_str().unwrap_or_default().to_owned()).collect();
        assert_eq!(kinds, vec![kind; count]);
    }

    /// Nothing of a run stays on the pool: no task, no session, no disk held by a control domain, no blocked operation.
    pub fn assert_no_leftovers(&self) {
        let pool = self.lab();
        // XO leaves the finished tasks of its NBD transfers to the pool's own collection.
        let pending = |(_, task): &(String, Value)| task["status"] == "pending";
        let tasks: Vec<_> =
            pool.records("task").into_iter().filter(pending).map(|(_, task)| task["name_label"].clone()).collect();
        assert!(tasks.is_empty(), "tasks are pending: {tasks:?}");
        let vm = pool.record("VM", &self.vm().reference).unwrap();
        assert_eq!(vm["blocked_operations"], json!({}));
        let temporary = pool.records("VM").into_iter().find(|(_, vm)| vm["name_label"] == "xo-backup-temp-snapshot-name");
        assert!(temporary.is_none(), "a temporary snapshot stays");
    }
}
