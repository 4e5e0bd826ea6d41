//! Backups of a pool that misbehaves, and backups that are stopped.

use api::{JobMode, Outcome};
use engine::plan::{BackupPlan, Work};
use lab::{Fault, FaultSpec, TaskAfter};

use crate::site::{DIRECTORIES, FILES, Site, announces_snapshot, transferring};

/// Nothing of a failed run may be listed or left, and the points before it restore as ever.
async fn assert_harmless(site: &Site, before: &[Vec<u8>]) {
    for remote in [FILES, DIRECTORIES] {
        let points = site.points(remote).await;
        assert_eq!(points.len(), 1);
        assert_eq!(site.leftovers(remote), [] as [std::path::PathBuf; 0]);
        site.assert_restores(remote, &points[0], before).await;
    }
    site.assert_pool_clean(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_breaks_fails_the_run_and_lists_nothing() {
    let site = Site::new().await;
    let plan = BackupPlan { prefer_nbd: false, ..site.backup() };
    let before = site.content("alpha");
    site.run(Work::Backup(plan.clone())).await.assert(Outcome::Success);
    site.pool().mutate("alpha", 20.0).await.unwrap();
    let faults = [
        Fault::CutExport { after_bytes: 3 << 20, task: TaskAfter::Failure },
        Fault::CutExport { after_bytes: 3 << 20, task: TaskAfter::Vanished },
        Fault::EndExportEarly { after_bytes: 3 << 20, task: TaskAfter::Failure },
        Fault::ReadError { after_bytes: 3 << 20 },
    ];
    for fault in faults {
        site.pool().set_fault(fault);
        site.run(Work::Backup(plan.clone())).await.assert(Outcome::Failure);
        site.pool().clear_faults();
        assert_harmless(&site, &before).await;
    }
    // The base has survived it all.
    let story = site.run(Work::Backup(plan)).await;
    assert!(story.assert(Outcome::Success).results(api::TaskKind::Disk).iter().all(|disk| disk.delta == Some(true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_breaks_is_not_listed() {
    let site = Site::new().await;
    let plan = BackupPlan { mode: JobMode::Full, ..site.backup() };
    for fault in [
        Fault::CutExport { after_bytes: 3 << 20, task: TaskAfter::Failure },
        Fault::EndExportEarly { after_bytes: 3 << 20, task: TaskAfter::Vanished },
        Fault::HttpInBody,
    ] {
        site.pool().set_fault(fault);
        site.run(Work::Backup(plan.clone())).await.assert(Outcome::Failure);
        site.pool().clear_faults();
        for remote in [FILES, DIRECTORIES] {
            assert_eq!(site.points(remote).await.len(), 0);
            assert_eq!(site.leftovers(remote), [] as [std::path::PathBuf; 0]);
        }
        site.assert_pool_clean(0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn troubles_that_pass_are_survived() {
    let faults: [FaultSpec; 6] = [
        Fault::CutNbd { after_bytes: 5 << 20 }.once(),
        Fault::ReorderNbdReplies.into(),
        Fault::SessionInvalid { after_calls: 20 }.once(),
        Fault::Redirect.into(),
        Fault::VdiInUse.times(2),
        Fault::OldSnapshot.into(),
    ];
    let site = Site::new().await;
    for fault in faults {
        site.pool().set_fault(fault.clone());
        let story = site.run(Work::Backup(site.backup())).await;
        assert_eq!(story.outcome(), Outcome::Success, "{fault:?}: {:#?}", story.0);
        story.assert_tidy();
        site.pool().clear_faults();
        site.pool().mutate("alpha", 5.0).await.unwrap();
    }
    site.assert_pool_clean(1);
    assert_eq!(site.pool().nbd_connections(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_nbd_cannot_read_is_read_from_the_stream() {
    let site = Site::new().await;
    site.pool().set_fault(Fault::NbdReadError { from_byte: 6 << 20 });
    let story = site.run(Work::Backup(site.backup())).await;
    story.assert(Outcome::Success);
    assert!(!story.warnings().is_empty());
    site.assert_restores(FILES, &site.points(FILES).await[0], &site.content("alpha")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_fails_leaves_no_trace() {
    let site = Site::new().await;
    site.pool().set_fault(Fault::SnapshotFails);
    site.run(Work::Backup(site.backup())).await.assert(Outcome::Failure);
    site.assert_pool_clean(0);
    assert_eq!(site.points(FILES).await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_in_the_middle_of_a_transfer_leaves_the_earlier_points_untouched() {
    let site = Site::new().await;
    let before = site.content("alpha");
    site.run(Work::Backup(site.backup())).await.assert(Outcome::Success);
    site.pool().mutate("alpha", 50.0).await.unwrap();
    site.pool().set_fault(Fault::SlowNbd { bytes_per_second: 2 << 20 });
    let (journal, cancel, end) = site.start(Work::Backup(site.backup()));
    journal.until(transferring).await;
    cancel.cancel();
    assert_eq!(end.await.unwrap(), Outcome::Cancelled);
    journal.story().assert_tidy();
    site.pool().clear_faults();
    assert_harmless(&site, &before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_while_the_snapshot_is_taken_leaves_none() {
    let site = Site::new().await;
    let (journal, cancel, end) = site.start(Work::Backup(site.backup()));
    journal.until(announces_snapshot).await;
    cancel.cancel();
    assert_eq!(end.await.unwrap(), Outcome::Cancelled);
    journal.story().assert_tidy();
    site.assert_pool_clean(0);
    assert_eq!(site.points(FILES).await.len(), 0);
}
