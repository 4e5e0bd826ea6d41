//! A worker that is killed right after any of its durable events, and the recover run after it.
//!
//! The worker is this test program again, in a process of its own, and it dies by SIGKILL: nothing of it runs on.

use api::{EventKind, Outcome};
use engine::plan::Work;

use crate::site::{DIRECTORIES, FILES, Site, open_intents};

pub const AS_WORKER: [&str; 4] = ["--ignored", "--exact", "crash::the_worker_process", "--nocapture"];

#[test]
#[ignore = "not a test: the process that is killed"]
fn the_worker_process() {
    let _ = engine::worker::main();
}

/// Runs a work in a worker and kills it when it waits for the acknowledgement of its `at`-th durable event. Its events,
/// and whether it was killed.
async fn killed_at(site: &Site, work: Work, at: usize) -> (Vec<EventKind>, bool) {
    let program = std::env::current_exe().unwrap();
    let mut worker = engine::spawn(&program, &AS_WORKER, site.plan(work)).await.unwrap();
    let (control, mut events, mut durable) = (worker.control(), Vec::new(), 0);
    while let Some(report) = worker.next().await.unwrap() {
        events.push(report.event);
        if report.durable {
            durable += 1;
            if durable == at {
                worker.kill().unwrap();
                worker.wait().await.unwrap();
                return (events, true);
            }
            control.ack(report.seq).await.unwrap();
        }
    }
    (events, false)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_killed_at_any_durable_point_is_recovered_and_no_listed_point_suffers() {
    let site = Site::new().await;
    let mut contents = vec![site.content("alpha")];
    site.run(Work::Backup(site.backup())).await.assert(Outcome::Success);
    for at in 1.. {
        site.pool().mutate("alpha", 5.0).await.unwrap();
        let (events, killed) = killed_at(&site, Work::Backup(site.backup()), at).await;
        site.age_locks();
        site.recover(open_intents(&events)).await.assert(Outcome::Success);
        if site.points(FILES).await.len() > contents.len() {
            contents.push(site.content("alpha"));
        }
        for remote in [FILES, DIRECTORIES] {
            assert_eq!(site.points(remote).await.len(), contents.len(), "killed at {at}");
            assert_eq!(site.leftovers(remote), [] as [std::path::PathBuf; 0], "killed at {at}");
        }
        site.assert_pool_clean(1);
        if !killed {
            assert!(at > 6, "a backup to two remotes has more durable events than {at}");
            break;
        }
    }
    // The key, the backup killed while it told its end, and the one that nobody killed.
    assert_eq!(contents.len(), 3);
    for remote in [FILES, DIRECTORIES] {
        for (point, content) in site.points(remote).await.iter().zip(&contents) {
            site.assert_restores(remote, point, content).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_killed_at_any_durable_point_leaves_no_half_vm() {
    let site = Site::new().await;
    site.run(Work::Backup(site.backup())).await.assert(Outcome::Success);
    let (vms, vdis) = (site.pool().records("VM").len(), site.pool().records("VDI").len());
    let plan = site.restore(FILES, &site.points(FILES).await[0]);
    for at in 1.. {
        let (events, killed) = killed_at(&site, Work::Restore(plan.clone()), at).await;
        site.recover(open_intents(&events)).await.assert(Outcome::Success);
        if !killed {
            assert_eq!(site.pool().records("VM").len(), vms + 1);
            break;
        }
        let last = events.last();
        let finished = matches!(last, Some(EventKind::RunEnded { .. }));
        if finished {
            assert_eq!(site.pool().records("VM").len(), vms + 1);
            break;
        }
        assert_eq!((site.pool().records("VM").len(), site.pool().records("VDI").len()), (vms, vdis), "killed at {at}");
    }
}
