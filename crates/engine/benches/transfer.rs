//! What moving a disk costs: wall seconds, CPU seconds per GiB, peak memory, beside `nbdcopy` of the same export.
//!
//! `cargo bench -p engine --bench transfer [-- --gib N --runs N]`. A simulated pool runs in this process; each measured program is a child
//! process, so that its CPU time and memory are its own. The contenders take turns, and medians are printed: on a
//! shared machine only the ratios mean something. Memory is warmed before each run: where fresh pages are dear, every
//! figure that writes would measure the kernel instead.
//!
//! Where the judges of `tests/interop` are installed, XO's own engine does the same work beside ours.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use api::{Compression, EventKind, JobMode, Outcome, TaskKind};
use async_trait::async_trait;
use engine::plan::{BackupPlan, Limits, Plan, PointPlan, PoolAccess, RemoteAccess, RestorePlan, Secret, VmPlan, Work};
use engine::{Journal, JournalError};
use lab::{Content, DiskSpec, Lab, LabSpec, PoolHandle, PoolSpec, VmSpec};
use serde_json::{Value, json};

const CHILD: &str = "--child";
/// Kernel clock ticks a second of `/proc/<pid>/stat`.
const TICKS: f64 = 100.0;

fn main() {
    tls::install_provider();
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if args.first().is_some_and(|arg| arg == CHILD) {
        return child();
    }
    let gib = number(&args, "--gib").unwrap_or(4);
    let runs = number(&args, "--runs").unwrap_or(3) as usize;
    tokio::runtime::Runtime::new().expect("a runtime").block_on(bench(gib, runs));
}

fn number(args: &[String], name: &str) -> Option<u64> {
    let at = args.iter().position(|arg| arg == name)?;
    args.get(at + 1)?.parse().ok()
}

/// Runs one plan from standard input and tells its peak memory.
fn child() {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).expect("a plan on standard input");
    let plan: Plan = serde_json::from_str(&text).expect("a plan");
    let journal = Arc::new(Notes::default());
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let outcome = runtime.block_on(engine::run(plan, Arc::clone(&journal) as Arc<dyn Journal>, Default::default()));
    let notes = journal.0.lock().expect("no panic while noting");
    println!("{}", json!({ "success": outcome == Outcome::Success, "hwm": peak_kib("self"), "notes": *notes }));
}

/// What of a journal a benchmark wants to know.
#[derive(Default)]
struct Notes(std::sync::Mutex<BTreeMap<String, Value>>);

#[async_trait]
impl Journal for Notes {
    fn record(&self, event: EventKind) {
        let mut notes = self.0.lock().expect("no panic while noting");
        match event {
            EventKind::TaskEnded { result, error, .. } => {
                for (name, value) in [("path", result.path.map(Value::from)), ("point", result.restore_point.map(Value::from))] {
                    if let Some(value) = value {
                        notes.insert(name.into(), value);
                    }
                }
                if let Some(error) = error {
                    notes.insert("error".into(), json!(error));
                }
            }
            EventKind::TaskStarted { task, kind: TaskKind::Merge, .. } => {
                notes.insert("merge task".into(), json!(task));
            }
            EventKind::RunEnded { summary, .. } => {
                notes.insert("bytes".into(), json!(summary.bytes));
            }
            _ => {}
        }
    }

    async fn record_durable(&self, event: EventKind) -> Result<(), JournalError> {
        self.record(event);
        Ok(())
    }
}

fn peak_kib(pid: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or(0)
}

/// CPU seconds of all children that have ended.
fn children_cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(13) + ticks(14)) / TICKS
}

/// One measured run.
#[derive(Clone, Copy, Default)]
struct Figures {
    wall: f64,
    cpu: f64,
    mib: f64,
}

/// Runs a child to its end.
fn measure(mut command: Command, input: &str) -> (Figures, Vec<u8>) {
    warm();
    let (cpu, start) = (children_cpu(), Instant::now());
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("the child reads");
    let pid = child.id().to_string();
    let mut peak = 0;
    let mut output = Vec::new();
    std::thread::scope(|scope| {
        let (done, ended) = std::sync::mpsc::channel::<()>();
        // A child that is not ours cannot tell its peak itself: it is asked from outside while it lives.
        let watcher = scope.spawn(move || {
            let mut peak = 0;
            while ended
                .recv_timeout(std::time::Duration::from_millis(20))
                .is_err_and(|error| error == std::sync::mpsc::RecvTimeoutError::Timeout)
            {
                peak = peak.max(peak_kib(&pid));
            }
            peak
        });
        child.stdout.take().expect("piped").read_to_end(&mut output).expect("the child's output");
        let status = child.wait().expect("the child ends");
        assert!(status.success(), "{command:?}: {status}");
        drop(done);
        peak = watcher.join().expect("the watcher ends");
    });
    (Figures { wall: start.elapsed().as_secs_f64(), cpu: children_cpu() - cpu, mib: peak as f64 / 1024.0 }, output)
}

/// Touches as much memory as a run will want for page cache, so that no run pays for fresh pages.
fn warm() {
    let mut block = vec![0u8; 2 << 30];
    block.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    std::hint::black_box(&block);
}

struct Bench {
    pool: PoolHandle,
    dir: PathBuf,
    vm: String,
    /// A VM with eight disks.
    wide: String,
    sr: String,
    /// Job and remote of the next plan; a new pair is a new chain.
    serial: u32,
}

impl Bench {
    fn remote(&mut self) -> PathBuf {
        self.serial += 1;
        let dir = self.dir.join(format!("remote-{}", self.serial));
        std::fs::create_dir_all(&dir).expect("room for a remote");
        dir
    }

    fn plan(&self, remotes: &[(&Path, bool)], work: Work) -> Plan {
        let pool = PoolAccess {
            id: "pool".into(),
            name: "bench".into(),
            url: self.pool.url(),
            username: self.pool.username().into(),
            password: Secret::new(self.pool.password()),
            fingerprint: self.pool.fingerprint().to_string(),
        };
        let access = |(index, (dir, directory)): (usize, &(&Path, bool))| RemoteAccess {
            away: None,
            id: index.to_string(),
            name: format!("remote {index}"),
            url: Secret::new(format!("file://{}{}", dir.display(), if *directory { "?useVhdDirectory=true" } else { "" })),
        };
        Plan {
            run: "bench".into(),
            work,
            pools: vec![pool],
            remotes: remotes.iter().enumerate().map(access).collect(),
            limits: Limits::default(),
        }
    }

    fn backup(&self, remotes: &[(&Path, bool)], job: &BackupPlan) -> Plan {
        let ids = (0..remotes.len()).map(|index| index.to_string()).collect();
        self.plan(remotes, Work::Backup(BackupPlan { remotes: ids, ..job.clone() }))
    }

    fn job(&self, mode: JobMode) -> BackupPlan {
        BackupPlan {
            job: format!("0c7f6a52-3a0e-4f0e-9a52-{:012x}", self.serial),
            job_name: "bench".into(),
            schedule: format!("5b1b0d3e-7f0c-4a4e-8f39-{:012x}", self.serial),
            mode,
            vms: vec![VmPlan { pool: "pool".into(), uuid: self.vm.clone(), name: "bench".into() }],
            remotes: Vec::new(),
            retention: 7,
            compression: Compression::None,
            prefer_nbd: true,
            concurrency: 1,
            full_interval: 0,
            max_bytes_per_second: 0,
        }
    }

    /// Runs a plan in a child of its own.
    fn run(&self, plan: &Plan) -> (Figures, Value) {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.arg(CHILD).envs(engine::ALLOCATOR);
        let (figures, output) = measure(command, &serde_json::to_string(plan).expect("a plan"));
        let answer: Value = serde_json::from_slice(&output).expect("the child's answer");
        assert_eq!(answer["success"], true, "the run failed: {answer:#}");
        let own = Figures { mib: answer["hwm"].as_f64().unwrap_or(0.0) / 1024.0, ..figures };
        (own, answer["notes"].clone())
    }

    /// XO's engine: a key by NBD, with its snapshot and its clean-up as a run of its has them. None where it is not
    /// installed.
    fn xo(&self, remote: &Path, directory: bool) -> Option<Figures> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/interop");
        if !folder.join("node_modules").is_dir() {
            return None;
        }
        let job = self.job(JobMode::Delta);
        let request = json!({
            "pool": { "url": self.pool.url(), "username": self.pool.username(), "password": self.pool.password() },
            "remote": { "id": format!("c2b0a4f1-6a0d-4a55-9a0b-{:012x}", self.serial), "path": remote, "vhdDirectory": directory },
            "vm": self.vm,
            "job": { "id": job.job, "mode": "delta" },
            "schedule": job.schedule,
            "settings": { "exportRetention": 1, "preferNbd": true },
        });
        let mut command = Command::new("node");
        command.arg(folder.join("xo.mjs")).arg("backup").stderr(Stdio::null());
        let (figures, output) = measure(command, &request.to_string());
        let answer: Value = serde_json::from_slice(&output).expect("the answer of XO's engine");
        assert_eq!(answer["failures"], json!([]), "XO's run failed: {answer:#}");
        Some(figures)
    }
}

#[derive(Default)]
struct Table(Vec<(String, f64, Vec<Figures>)>);

impl Table {
    fn add(&mut self, name: &str, gib: f64, figures: Figures) {
        eprintln!("  {name}: {:.2} s, {:.2} CPU s, {:.0} MiB", figures.wall, figures.cpu, figures.mib);
        match self.0.iter_mut().find(|row| row.0 == name) {
            Some(row) => row.2.push(figures),
            None => self.0.push((name.into(), gib, vec![figures])),
        }
    }

    fn print(&self) {
        let median = |figures: &[Figures], of: fn(&Figures) -> f64| {
            let mut values: Vec<f64> = figures.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let baseline = median(&self.0[0].2, |f| f.wall);
        println!("| what (medians of {}) | wall s | CPU s | CPU s/GiB | peak MiB | nbdcopy wall / this |", self.0[0].2.len());
        println!("| --- | ---: | ---: | ---: | ---: | ---: |");
        for (name, gib, figures) in &self.0 {
            let (wall, cpu, mib) = (median(figures, |f| f.wall), median(figures, |f| f.cpu), median(figures, |f| f.mib));
            println!("| {name} | {wall:.2} | {cpu:.2} | {:.2} | {mib:.0} | {:.2} |", cpu / gib, baseline / wall);
        }
    }
}

async fn bench(gib: u64, runs: usize) {
    let dir = tempfile::tempdir().expect("a scratch directory");
    let content = gib * 6 / 10 * (1 << 30) + gib * 6 % 10 * (1 << 30) / 10;
    let disk = DiskSpec::new("bench disk", gib << 30, Content::Generated { bytes: content });
    let vm = VmSpec::new("bench", vec![disk]).halted();
    let part = |n| DiskSpec::new(format!("disk {n}"), (gib << 30) / 8, Content::Generated { bytes: content / 8 });
    let wide = VmSpec::new("wide", (1..=8).map(part).collect()).halted();
    let spec = LabSpec { pools: vec![PoolSpec::new("bench", vec![vm, wide])], seed: 1 };
    eprintln!("a disk of {gib} GiB, {:.1} GiB of it written; {runs} runs of each", content as f64 / (1u64 << 30) as f64);
    let lab = Lab::open(dir.path(), &spec).await.expect("a lab");
    let pool = lab.pool().clone();
    let vm = pool.vm("bench").expect("the VM");
    let wide = pool.vm("wide").expect("the VM with eight disks").uuid;
    let sr = pool
        .records("SR")
        .into_iter()
        .find(|(_, sr)| sr["content_type"] != "iso" && sr["VDIs"].as_array().is_some_and(|vdis| !vdis.is_empty()));
    let sr = sr.and_then(|(_, sr)| sr["uuid"].as_str().map(str::to_owned)).expect("a storage repository");
    let mut bench = Bench { pool: pool.clone(), dir: dir.path().to_owned(), vm: vm.uuid.clone(), wide, sr, serial: 0 };
    let moved = content as f64 / (1u64 << 30) as f64;
    let mut table = Table::default();
    for _ in 0..runs {
        let target = dir.path().join("nbdcopy.raw");
        table.add("nbdcopy over TLS to a file", moved, nbdcopy(&pool, &vm.disks[0].vdi, dir.path(), &target).await);
        std::fs::remove_file(&target).expect("nbdcopy wrote a file");

        for (name, directory, nbd) in [
            ("key, NBD to a VHD file", false, true),
            ("key, NBD to a VHD directory (brotli)", true, true),
            ("key, export stream to a VHD file", false, false),
        ] {
            let remote = bench.remote();
            let job = BackupPlan { prefer_nbd: nbd, retention: 1, ..bench.job(JobMode::Delta) };
            let (figures, _) = bench.run(&bench.backup(&[(&remote, directory)], &job));
            table.add(name, moved, figures);
            if nbd {
                pool.mutate("bench", 5.0).await.expect("a changed disk");
                let kind = if directory { "directory" } else { "file" };
                let (figures, notes) = bench.run(&bench.backup(&[(&remote, directory)], &job));
                let delta = notes["bytes"].as_f64().unwrap_or(0.0) / (1u64 << 30) as f64;
                table.add(&format!("5 % delta by CBT and its merge, VHD {kind}"), delta, figures);
                if !directory {
                    let point = notes["point"].as_str().expect("a restore point").to_owned();
                    let path = point.trim_start_matches("0/").to_owned();
                    let restore = RestorePlan {
                        point: PointPlan { remote: "0".into(), path },
                        pool: "pool".into(),
                        sr: bench.sr.clone(),
                        name: Some("restored".into()),
                    };
                    let (figures, _) = bench.run(&bench.plan(&[(&remote, false)], Work::Restore(restore)));
                    table.add("restore of a VHD file", moved, figures);
                    destroy(&pool, "restored").await;
                }
            }
            std::fs::remove_dir_all(remote).expect("a remote to remove");
        }
        for (name, directory) in
            [("XO's engine: key, NBD to a VHD file", false), ("XO's engine: key, NBD to a VHD directory", true)]
        {
            let remote = bench.remote();
            if let Some(figures) = bench.xo(&remote, directory) {
                table.add(name, moved, figures);
            }
            std::fs::remove_dir_all(remote).expect("a remote to remove");
        }
        let (files, directories) = (bench.remote(), bench.remote());
        let mut job = bench.job(JobMode::Delta);
        job.vms[0].uuid = bench.wide.clone();
        let mut plan = bench.backup(&[(&files, false), (&directories, true)], &job);
        plan.limits.disks_per_vm = 8;
        table.add("key, NBD, 8 disks to 2 remotes (files, directories)", moved, bench.run(&plan).0);
        for remote in [files, directories] {
            std::fs::remove_dir_all(remote).expect("a remote to remove");
        }
        for (name, compression) in [("full XVA", Compression::None), ("full XVA, zstd by the pool", Compression::Zstd)] {
            let remote = bench.remote();
            let job = BackupPlan { compression, ..bench.job(JobMode::Full) };
            let (figures, _) = bench.run(&bench.backup(&[(&remote, false)], &job));
            table.add(name, moved, figures);
            std::fs::remove_dir_all(remote).expect("a remote to remove");
        }
    }
    table.print();
    lab.close().await.expect("the lab ends");
}

/// `nbdcopy` of the live disk, checked by the pool's certificate, into a sparse file.
async fn nbdcopy(pool: &PoolHandle, vdi: &str, dir: &Path, target: &Path) -> Figures {
    let connect = xapi::Connect::new(pool.url(), pool.username(), pool.password(), tls::Trust::Pinned(pool.fingerprint()));
    let client = xapi::Client::connect(connect).await.expect("the pool answers");
    let reference: Value = client.call("VDI.get_by_uuid", vec![json!(vdi)]).await.expect("the disk");
    let reference = xapi::Ref::from(reference.as_str().expect("a reference").to_owned());
    let info = client.nbd_info(&reference).await.expect("the pool offers NBD");
    std::fs::write(dir.join("ca-cert.pem"), pool.certificate_pem()).expect("room for a certificate");
    let name = info[0].export_name.replace('?', "%3F").replace('=', "%3D").replace('&', "%26");
    let uri = format!("nbds://localhost:{}/{name}?tls-certificates={}", info[0].port, dir.display());
    let mut command = Command::new("nbdcopy");
    command.arg(uri).arg(target);
    let (figures, _) = measure(command, "");
    client.close().await;
    figures
}

async fn destroy(pool: &PoolHandle, name: &str) {
    let Some(vm) = pool.vm(name) else { return };
    let connect = xapi::Connect::new(pool.url(), pool.username(), pool.password(), tls::Trust::Pinned(pool.fingerprint()));
    let client = xapi::Client::connect(connect).await.expect("the pool answers");
    client.destroy_vm(&xapi::Ref::from(vm.reference), xapi::Destroy::default()).await.expect("the VM goes");
    client.close().await;
}
