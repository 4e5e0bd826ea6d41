//! Whole system: the lab's pool, the real daemon as a process, its workers, a repository on disk; then the same with
//! daemon and worker killed at chosen events of the journal.

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use api::*;
use common::process::{Daemon, spawn};
use lab::Lab;
use rustix::process::{Pid, Signal, kill_process};

/// A lab and a daemon that knows its pool, a remote, and a job on the VM `alpha`.
async fn house(dir: &Path, retention: u32) -> (Lab, Daemon, Job) {
    let lab = Lab::single(&dir.join("lab")).await.unwrap();
    let daemon = spawn(dir);
    let pool = lab.pool();
    let added = daemon
        .client
        .call::<PoolAdd>(PoolAddParams {
            name: None,
            url: pool.url(),
            username: pool.username().into(),
            password: pool.password().into(),
            fingerprint: None,
        })
        .await;
    assert_eq!((added.name.as_str(), &added.fingerprint), ("lab", &pool.fingerprint().to_string()));
    let url = format!("file://{}", dir.join("remote").display());
    let remote = daemon.client.call::<RemoteAdd>(RemoteAddParams { name: "nas".into(), url }).await;
    let vms = daemon.client.call::<VmList>(PoolFilter::default()).await;
    let alpha = vms.iter().find(|vm| vm.name == "alpha").unwrap();
    let spec = serde_json::json!({
        "name": "nightly", "mode": "delta", "vms": [alpha.uuid], "remotes": [remote.name], "retention": retention,
    });
    let job = daemon.client.call::<JobCreate>(serde_json::from_value(spec).unwrap()).await;
    (lab, daemon, job)
}

async fn finished(daemon: &Daemon, run: &Run) -> RunDetail {
    let events = daemon.client.events(&run.id, 0).await;
    assert!(matches!(events.last().unwrap().kind, EventKind::RunEnded { .. }));
    daemon.client.call::<RunGet>(IdParams { id: run.id.clone() }).await
}

fn id(id: &str) -> IdParams {
    IdParams { id: id.into() }
}

async fn points(daemon: &Daemon) -> BTreeSet<String> {
    daemon.client.call::<RestorePointList>(RestorePointListParams::default()).await.into_iter().map(|p| p.id).collect()
}

/// Waits until nothing runs any more, clean-ups included: by watching each open run to its end.
async fn quiet(daemon: &Daemon) {
    loop {
        let running = daemon.client.call::<ProxyStatusGet>(NoParams {}).await.running;
        let Some(run) = running.first() else { return };
        let ended = finished(daemon, run).await;
        assert!(ended.run.outcome.is_some());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_backed_up_listed_verified_and_restored_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let (lab, daemon, job) = house(dir.path(), 7).await;
    for round in 0..2 {
        let run = daemon.client.call::<JobRun>(id("nightly")).await;
        let detail = finished(&daemon, &run).await;
        assert_eq!(detail.run.outcome, Some(Outcome::Success), "{:?} {:?}", detail.run.error, detail.log);
        assert_eq!(points(&daemon).await.len(), round + 1);
        lab.pool().mutate("alpha", 5.0).await.unwrap();
    }
    assert_eq!(daemon.client.call::<JobGet>(id(&job.id)).await.last_run.unwrap().outcome, Some(Outcome::Success));
    let run = daemon.client.call::<JobRun>(id("nightly")).await;
    assert_eq!(finished(&daemon, &run).await.run.outcome, Some(Outcome::Success));

    let newest = daemon.client.call::<RestorePointList>(RestorePointListParams::default()).await.remove(0);
    let run = daemon.client.call::<RestorePointVerify>(id(&newest.id)).await;
    assert_eq!(finished(&daemon, &run).await.run.outcome, Some(Outcome::Success));
    let sr = daemon.client.call::<SrList>(PoolFilter::default()).await.remove(0);
    let restore = RestoreParams { id: newest.id.clone(), sr: sr.uuid, name: Some("alpha again".into()) };
    let run = daemon.client.call::<RestorePointRestore>(restore).await;
    let detail = finished(&daemon, &run).await;
    assert_eq!(detail.run.outcome, Some(Outcome::Success), "{:?} {:?}", detail.run.error, detail.log);
    compare(&lab, "alpha", "alpha again");

    let newest = daemon.client.call::<RestorePointList>(RestorePointListParams::default()).await.remove(0);
    assert_eq!(newest.verified.map(|verified| verified.outcome), Some(Outcome::Success));
    let run = daemon.client.call::<RestorePointRemove>(id(&newest.id)).await;
    assert_eq!(finished(&daemon, &run).await.run.outcome, Some(Outcome::Success));
    assert_eq!(points(&daemon).await.len(), 2);
    daemon.stop();
    lab.close().await.unwrap();
}

fn compare(lab: &Lab, one: &str, other: &str) {
    let (one, other) = (lab.pool().vm(one).unwrap(), lab.pool().vm(other).unwrap());
    assert_eq!(one.disks.len(), other.disks.len());
    for (one, other) in one.disks.iter().zip(&other.disks) {
        let read = |vdi: &str| {
            let disk = lab.pool().disk(vdi).unwrap();
            let mut bytes = vec![0; usize::try_from(disk.size()).unwrap()];
            disk.read_at(0, &mut bytes).unwrap();
            bytes
        };
        assert!(read(&one.vdi) == read(&other.vdi), "{} differs from {}", other.name, one.name);
    }
}

/// Twenty runs, each killed after another number of events: the worker in odd rounds, the daemon in even ones.
#[tokio::test(flavor = "multi_thread")]
async fn twenty_kills_lose_nothing_that_was_listed() {
    let dir = tempfile::tempdir().unwrap();
    let (lab, mut daemon, _) = house(dir.path(), 2).await;
    let run = daemon.client.call::<JobRun>(id("nightly")).await;
    assert_eq!(finished(&daemon, &run).await.run.outcome, Some(Outcome::Success));
    for round in 0..20usize {
        lab.pool().mutate("alpha", 3.0).await.unwrap();
        let run = daemon.client.call::<JobRun>(id("nightly")).await;
        let mut lines = daemon.client.stream("run.watch", serde_json::json!({ "run": run.id })).await;
        let mut worker = None;
        let mut ended = false;
        for _ in 0..(3 + round * 2) {
            let Some(line) = lines.next().await.unwrap() else {
                ended = true;
                break;
            };
            let event: Event = serde_json::from_value(line).unwrap();
            if let EventKind::RunStarted { worker: pid } = event.kind {
                worker = Pid::from_raw(pid.try_into().unwrap());
            }
        }
        drop(lines);
        match worker.filter(|_| round % 2 == 1 && !ended) {
            // It may just have ended by itself.
            Some(worker) => drop(kill_process(worker, Signal::KILL)),
            None => {
                daemon.signal(Signal::KILL);
                daemon = spawn(dir.path());
            }
        }
        quiet(&daemon).await;
        let detail = daemon.client.call::<RunGet>(id(&run.id)).await;
        assert!(detail.run.outcome.is_some() && detail.tasks.iter().all(|task| task.outcome.is_some()));
        for point in points(&daemon).await {
            let run = daemon.client.call::<RestorePointVerify>(id(&point)).await;
            let verified = finished(&daemon, &run).await;
            assert_eq!(verified.run.outcome, Some(Outcome::Success), "round {round}: {point}: {:?}", verified.run.error);
        }
    }
    let run = daemon.client.call::<JobRun>(id("nightly")).await;
    let detail = finished(&daemon, &run).await;
    assert_eq!(detail.run.outcome, Some(Outcome::Success), "{:?} {:?}", detail.run.error, detail.log);
    let newest = daemon.client.call::<RestorePointList>(RestorePointListParams::default()).await.remove(0);
    let sr = daemon.client.call::<SrList>(PoolFilter::default()).await.remove(0);
    let restore = RestoreParams { id: newest.id, sr: sr.uuid, name: Some("alpha again".into()) };
    let run = daemon.client.call::<RestorePointRestore>(restore).await;
    assert_eq!(finished(&daemon, &run).await.run.outcome, Some(Outcome::Success));
    compare(&lab, "alpha", "alpha again");
    daemon.stop();
    lab.close().await.unwrap();
}
