//! States for tests and for the pictures of the documentation: a small fleet with something of everything.

use api::{
    ErrorReport, Event, EventKind, Job, JobMode, JobSpec, LastError, LogLevel, LogLine, Outcome, Phase, Pool, PoolState,
    ProxyNews, ProxyStatus, Remote, RestorePoint, RestorePointDisk, Run, RunDetail, RunKind, RunSummary, Schedule, Space, Sr,
    Task, TaskKind, Topic, TransferMeter, Verified, Vm, VmDisk, Wait,
};

#[path = "fixture_kept.rs"]
pub mod kept;

use super::effect::{Answer, Effect, FleetCommand, Request, RequestId};
use super::keymap::Keymap;
use super::message::{Connection, FleetEvent, FleetEventKind, Message, ProxyEntry};
use super::state::{Settings, State};
use super::update;

/// The time in every fixture: a Monday, 04:50 UTC.
pub const NOW: i64 = 1_795_409_400_000;
const HOUR: i64 = 3_600_000;
const GIB: u64 = 1 << 30;

/// A console that has heard of nothing yet.
pub fn connecting() -> State {
    let entry = |name: &str| ProxyEntry { name: name.into(), url: format!("https://{name}.example:8443") };
    let settings = Settings { version: "0.1.0".into(), ..Settings::default() };
    State::new(settings, Keymap::load(None).0, vec![entry("site-a"), entry("site-b")], NOW, (80, 24))
}

/// Gives the core an event of a proxy.
pub fn fleet(state: &mut State, proxy: &str, kind: FleetEventKind) -> Vec<Effect> {
    update(state, NOW, Message::Fleet(FleetEvent { proxy: proxy.into(), kind }))
}

/// Changes a connection.
pub fn connection(state: &mut State, proxy: &str, connection: Connection) -> Vec<Effect> {
    fleet(state, proxy, FleetEventKind::Connection(connection))
}

/// A connection that is lost.
pub fn away() -> Connection {
    let error = ErrorReport::new("UNREACHABLE", "no answer from site-a.example:8443 within 10 s")
        .with_next("check the line and the daemon");
    Connection::Retrying { error, next: NOW + 8_000 }
}

/// The state of a proxy.
pub fn proxy_status(name: &str, running: Vec<Run>) -> ProxyStatus {
    ProxyStatus {
        name: name.into(),
        site: Some(if name == "site-a" { "Grenoble" } else { "Lyon" }.into()),
        version: "0.1.0".into(),
        started_at: NOW - 30 * HOUR,
        bytes_per_second: if running.is_empty() { 0 } else { 432_013_312 },
        running,
        last_error: (name == "site-b").then(|| LastError {
            at: NOW - 3 * HOUR,
            run: Some("run-2".into()),
            error: ErrorReport::new("REMOTE_FULL", "the remote nas-lyon is full: 0 B free, 2.0 MiB needed")
                .with_next("free space, or lower the retention"),
        }),
        fingerprint: "SHA256:5f:1c:09:aa".into(),
        ..ProxyStatus::default()
    }
}

/// Sends a status as news.
pub fn status(state: &mut State, proxy: &str, status: ProxyStatus) -> Vec<Effect> {
    fleet(state, proxy, FleetEventKind::News(Box::new(ProxyNews { status, changed: Vec::new() })))
}

/// Announces changes.
pub fn news(state: &mut State, proxy: &str, changed: &[Topic]) -> Vec<Effect> {
    let status = state.proxy(proxy).and_then(|proxy| proxy.status.clone()).unwrap_or_else(|| proxy_status(proxy, Vec::new()));
    fleet(state, proxy, FleetEventKind::News(Box::new(ProxyNews { status, changed: changed.to_vec() })))
}

/// The id of the call that matches.
pub fn call_id(effects: &[Effect], matches: impl Fn(&Request) -> bool) -> RequestId {
    effects
        .iter()
        .find_map(|effect| match effect {
            Effect::Fleet(FleetCommand::Call { id, request, .. }) if matches(request) => Some(*id),
            _ => None,
        })
        .unwrap_or(RequestId(0))
}

/// Answers the first call among the effects.
pub fn reply(state: &mut State, effects: &[Effect], result: Result<Answer, ErrorReport>) -> Vec<Effect> {
    let first = effects.iter().find_map(|effect| match effect {
        Effect::Fleet(FleetCommand::Call { id, proxy, .. }) => Some((*id, proxy.clone())),
        _ => None,
    });
    match first {
        Some((id, proxy)) => fleet(state, &proxy, FleetEventKind::Reply { id, result }),
        None => Vec::new(),
    }
}

/// Answers every list that is asked for from the small fleet.
pub fn answer_lists(state: &mut State, effects: &[Effect]) {
    let mut todo: Vec<(RequestId, String, Request)> = calls(effects);
    while let Some((id, proxy, request)) = todo.pop() {
        let a = proxy == "site-a";
        let answer = match request {
            Request::Pools(_) => Answer::Pools(vec![pool(a)]),
            Request::Vms(_) => Answer::Vms(if a { vms() } else { Vec::new() }),
            Request::Srs(_) => Answer::Srs(if a { srs() } else { Vec::new() }),
            Request::Remotes(_) => Answer::Remotes(vec![remote(a)]),
            Request::Jobs(_) => Answer::Jobs(if a { jobs() } else { Vec::new() }),
            Request::Runs(_) => Answer::Runs(runs(a)),
            Request::RestorePoints(_) => Answer::RestorePoints(if a { points() } else { Vec::new() }),
            Request::Deployed(_) => Answer::Deployed(Vec::new()),
            Request::DeployOptions(_) => Answer::DeployOptions(kept::options()),
            Request::DeployReview(spec) => Answer::DeployReview(kept::review(&spec)),
            Request::Licenses(_) => Answer::Licenses(Vec::new()),
            _ => continue,
        };
        let effects = fleet(state, &proxy, FleetEventKind::Reply { id, result: Ok(answer) });
        todo.extend(calls(&effects));
    }
}

fn calls(effects: &[Effect]) -> Vec<(RequestId, String, Request)> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Fleet(FleetCommand::Call { id, proxy, request }) => Some((*id, proxy.clone(), request.clone())),
            _ => None,
        })
        .collect()
}

/// Two proxies that answer, nothing listed yet.
pub fn live() -> State {
    let mut state = connecting();
    for proxy in ["site-a", "site-b"] {
        let effects = connection(&mut state, proxy, Connection::Live);
        answer_lists(&mut state, &effects);
        status(&mut state, proxy, proxy_status(proxy, Vec::new()));
    }
    state
}

/// Everything there is, with a run going on.
pub fn many() -> State {
    let mut state = live();
    status(&mut state, "site-a", proxy_status("site-a", vec![run("run-1", "nightly")]));
    for key in ["2", "3", "5", "6", "1"] {
        let key = super::Key::char(key.chars().next().unwrap_or('1'));
        let effects = update(&mut state, NOW, Message::Key(key));
        answer_lists(&mut state, &effects);
    }
    state
}

/// [`many`], with one proxy away.
pub fn stale() -> State {
    let mut state = many();
    connection(&mut state, "site-a", away());
    state.notices.dismiss();
    state
}

/// [`many`], with the events of the run that goes on.
pub fn transferring() -> State {
    let mut state = many();
    let effects = update(&mut state, NOW, Message::Key(super::Key::char('4')));
    let id = call_id(&effects, |request| matches!(request, Request::Run(_)));
    fleet(&mut state, "site-a", FleetEventKind::Reply { id, result: Ok(Answer::Run(detail("run-1", None))) });
    for n in 0..12u64 {
        for (task, share) in [(2u32, 2u64), (3, 1)] {
            let meter = TransferMeter {
                phase: Phase::Transferring,
                bytes_done: n * 256 * (1 << 20) * share,
                bytes_total: Some(8 * GIB * share),
                bytes_read: n * 250 * (1 << 20) * share,
                bytes_written: n * 200 * (1 << 20) * share,
                bytes_per_second: (150 + 20 * (n * 7 % 5)) * (1 << 20) * share,
                waits: [(Wait::Source, 700), (Wait::Target, 200), (Wait::Cpu, 100)].into(),
                waiting_for: Some(format!("NBD read of xvd{} on xcp-1", if task == 2 { 'a' } else { 'b' })),
            };
            let cursor = 5 + n * 2 + u64::from(task == 3);
            let event = Event { cursor, at: NOW - 12_000 + n as i64 * 1_000, kind: EventKind::TaskProgress { task, meter } };
            fleet(&mut state, "site-a", FleetEventKind::Run { run: "run-1".into(), event });
        }
    }
    state
}

/// A pool.
pub fn pool(a: bool) -> Pool {
    Pool {
        id: "pool-1".into(),
        name: if a { "xcp-grenoble" } else { "xcp-lyon" }.into(),
        url: "https://10.0.0.2".into(),
        username: "root".into(),
        fingerprint: "SHA256:77:aa".into(),
        state: PoolState::Connected,
        error: None,
    }
}

/// VMs with names as people give them, and as they should not.
pub fn vms() -> Vec<Vm> {
    [
        "db 1",
        "web-1",
        "خادم 🚀 files",
        "evil\u{1b}[31m\u{202e}name",
        "a very long name of a virtual machine that nobody should have given to anything at all",
    ]
    .into_iter()
    .zip(["vm-db", "vm-web", "vm-files", "vm-evil", "vm-long"])
    .enumerate()
    .map(|(n, (name, uuid))| Vm {
        pool: "pool-1".into(),
        uuid: uuid.into(),
        name: name.into(),
        power_state: if n == 2 { "Halted" } else { "Running" }.into(),
        tags: Vec::new(),
        disks: (0..=n % 2)
            .map(|d| VmDisk {
                vdi: format!("{uuid}-{d}"),
                name: format!("disk {d}"),
                device: format!("xvd{}", if d == 0 { 'a' } else { 'b' }),
                bytes: 8 * GIB,
                cbt: true,
            })
            .collect(),
    })
    .collect()
}

/// Storage repositories.
pub fn srs() -> Vec<Sr> {
    ["Local storage", "iSCSI"]
        .into_iter()
        .enumerate()
        .map(|(n, name)| Sr {
            pool: "pool-1".into(),
            uuid: format!("sr-{n}"),
            name: name.into(),
            bytes: 500 * GIB,
            free: (300 - n as u64 * 100) * GIB,
            default: n == 1,
        })
        .collect()
}

/// A remote.
pub fn remote(a: bool) -> Remote {
    Remote {
        id: if a { "remote-a" } else { "remote-b" }.into(),
        name: if a { "backups" } else { "nas-lyon" }.into(),
        url: "file:///srv/backups".into(),
        kind: "local".into(),
        vhd_directory: false,
        space: Some(Space { size: 1000 * GIB, used: if a { 420 } else { 970 } * GIB, available: if a { 580 } else { 30 } * GIB }),
        own_disk: false,
        error: None,
    }
}

/// A job.
pub fn job(id: &str, name: &str) -> Job {
    let spec = JobSpec {
        name: name.into(),
        mode: JobMode::Delta,
        vms: vec!["vm-web".into()],
        remotes: vec!["remote-a".into()],
        schedule: None,
        enabled: true,
        retention: 7,
        compression: Default::default(),
        prefer_nbd: true,
        concurrency: 2,
        full_interval: 0,
        max_bytes_per_second: 0,
    };
    Job { id: id.into(), schedule_id: format!("{id}-s"), spec, last_run: None, next_runs: Vec::new() }
}

/// Jobs of every sort.
pub fn jobs() -> Vec<Job> {
    let mut by_hand = job("job-1", "by hand");
    by_hand.last_run = Some(ended("run-3", "by hand", Outcome::Failure));
    let mut nightly = job("job-2", "nightly");
    nightly.spec.vms = vms().into_iter().map(|vm| vm.uuid).collect();
    nightly.spec.schedule = Some(Schedule { cron: "0 2 * * *".into(), timezone: "Europe/Paris".into() });
    nightly.next_runs = vec![NOW + 20 * HOUR, NOW + 44 * HOUR];
    nightly.last_run = Some(ended("run-4", "nightly", Outcome::Success));
    let mut off = job("job-3", "weekly archive");
    off.spec.mode = JobMode::Full;
    off.spec.enabled = false;
    off.spec.schedule = Some(Schedule { cron: "0 2 * * 0".into(), timezone: "UTC".into() });
    vec![by_hand, nightly, off]
}

/// A run that goes on.
pub fn run(id: &str, label: &str) -> Run {
    Run {
        id: id.into(),
        kind: RunKind::Backup,
        job: Some("job-2".into()),
        label: label.into(),
        queued_at: NOW - 60_000,
        ended_at: None,
        outcome: None,
        cancelling: false,
        error: None,
        summary: None,
        cursor: 4,
    }
}

/// A run that has ended.
pub fn ended(id: &str, label: &str, outcome: Outcome) -> Run {
    let failed = outcome == Outcome::Failure;
    Run {
        queued_at: NOW - 5 * HOUR,
        ended_at: Some(NOW - 5 * HOUR + 754_000),
        outcome: Some(outcome),
        error: failed.then(|| {
            ErrorReport::new(
                "VDI_IN_USE",
                "the snapshot of web-1 could not be removed: its disk is still attached to the control domain",
            )
            .with_next("run the job again in a few minutes")
        }),
        summary: Some(RunSummary {
            succeeded: u32::from(!failed),
            failed: u32::from(failed),
            bytes: 3 * GIB,
            bytes_written: 2 * GIB,
            warnings: 1,
        }),
        ..run(id, label)
    }
}

/// The history.
pub fn runs(a: bool) -> Vec<Run> {
    if !a {
        return vec![ended("run-2", "lyon", Outcome::Cancelled)];
    }
    vec![
        run("run-1", "nightly"),
        ended("run-3", "by hand", Outcome::Failure),
        ended("run-4", "nightly", Outcome::Success),
        ended("run-5", "nightly", Outcome::Interrupted),
        Run {
            kind: RunKind::Deploy,
            job: None,
            summary: Some(RunSummary::default()),
            ..ended("run-6", "annecy", Outcome::Success)
        },
    ]
}

/// A run with its tasks.
pub fn detail(id: &str, outcome: Option<Outcome>) -> RunDetail {
    let task = |id, parent, kind, label: &str| Task {
        id,
        parent,
        kind,
        label: label.into(),
        object: None,
        started_at: NOW - 50_000,
        ended_at: outcome.map(|_| NOW - 1_000),
        outcome,
        error: None,
        meter: TransferMeter { phase: Phase::Preparing, ..TransferMeter::default() },
        result: Default::default(),
    };
    let mut run = run(id, "nightly");
    run.outcome = outcome;
    run.ended_at = outcome.map(|_| NOW);
    let log = |level, message: &str| LogLine { at: NOW - 40_000, task: Some(1), level, message: message.into() };
    RunDetail {
        run,
        tasks: vec![
            task(1, None, TaskKind::Vm, "web-1"),
            task(2, Some(1), TaskKind::Disk, "xvda"),
            task(3, Some(1), TaskKind::Disk, "xvdb"),
        ],
        log: vec![
            log(LogLevel::Info, "snapshot taken in 1.2 s"),
            log(LogLevel::Warning, "xvdb is written as a key disk: its chain has reached the full interval of 10 runs"),
        ],
    }
}

/// Restore points of two VMs.
pub fn points() -> Vec<RestorePoint> {
    [("vm-web", "web-1", 4), ("vm-db", "db 1", 2)]
        .into_iter()
        .flat_map(|(vm, name, n)| {
            (0..n).map(move |at: i64| RestorePoint {
                id: format!("remote-a/xo-vm-backups/{vm}/2026112{}T020000Z.json", 3 - at.min(3)),
                remote: "remote-a".into(),
                vm: vm.into(),
                vm_name: name.into(),
                mode: JobMode::Delta,
                timestamp: NOW - HOUR * (3 + 24 * at),
                job: "job-2".into(),
                size: GIB / 4 + at as u64 * GIB,
                disks: vec![RestorePointDisk { uuid: "d".into(), name: "disk 0".into(), bytes: 8 * GIB, delta: at + 1 < n }],
                verified: (at == 1).then_some(Verified { at: NOW - 20 * HOUR, outcome: Outcome::Success }),
            })
        })
        .collect()
}

/// So many restore points of one VM, and as many VMs with one: for measuring.
pub fn crowd(rows: usize) -> Vec<RestorePoint> {
    let template = points().swap_remove(0);
    (0..rows)
        .map(|n| RestorePoint {
            id: format!("remote-a/{n}"),
            vm: format!("vm-{n}"),
            vm_name: format!("machine {n:05}"),
            timestamp: NOW - n as i64 * 1000,
            ..template.clone()
        })
        .collect()
}
