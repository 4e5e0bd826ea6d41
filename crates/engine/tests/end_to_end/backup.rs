//! Backups as they should go.

use api::{Compression, ErrorReport, JobMode, Outcome, TaskKind};
use engine::plan::{BackupPlan, Work};
use lab::Fault;

use crate::site::{DIRECTORIES, FILES, Site, execute};

const MIB: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_moves_only_what_changed_and_both_points_restore_to_the_byte() {
    let site = Site::new().await;
    let first = site.content("alpha");
    let key = site.run(Work::Backup(site.backup())).await;
    key.assert(Outcome::Success);
    let disks = key.results(TaskKind::Disk);
    assert!(disks.iter().all(|disk| disk.delta == Some(false) && disk.path.as_deref() == Some("nbd")), "{disks:?}");
    site.assert_pool_clean(1);

    let mutations = site.pool().mutate("alpha", 5.0).await.unwrap();
    let second = site.content("alpha");
    assert_ne!(first, second);
    let delta = site.run(Work::Backup(site.backup())).await;
    delta.assert(Outcome::Success);
    let disks = delta.results(TaskKind::Disk);
    assert!(disks.iter().all(|disk| disk.delta == Some(true) && disk.path.as_deref() == Some("nbd+cbt")), "{disks:?}");
    let moved: u64 = disks.iter().filter_map(|disk| disk.bytes).sum();
    let blocks = mutations.iter().map(|mutation| mutation.bytes.div_ceil(2 * MIB)).sum::<u64>();
    assert!(moved <= blocks * 2 * MIB, "{moved} bytes for {blocks} changed blocks");
    assert_eq!(delta.warnings(), [] as [String; 0]);
    site.assert_pool_clean(1);

    for remote in [FILES, DIRECTORIES] {
        let points = site.points(remote).await;
        assert_eq!(points.len(), 2);
        assert_eq!(site.leftovers(remote), [] as [std::path::PathBuf; 0]);
        site.assert_restores(remote, &points[0], &first).await;
        site.assert_restores(remote, &points[1], &second).await;
        let verify = site.restore(remote, &points[1]).point;
        site.run(Work::Verify(verify)).await.assert(Outcome::Success);
    }
    site.assert_pool_clean(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_nbd_the_stream_does_it_and_the_journal_says_so() {
    let site = Site::new().await;
    site.pool().set_fault(Fault::NoNbd);
    for delta in [false, true] {
        let story = site.run(Work::Backup(site.backup())).await;
        story.assert(Outcome::Success);
        let disks = story.results(TaskKind::Disk);
        assert!(disks.iter().all(|disk| disk.delta == Some(delta) && disk.path.as_deref() == Some("stream")), "{disks:?}");
        assert!(story.warnings().iter().any(|warning| warning.contains("NBD")), "{:?}", story.warnings());
        let content = site.content("alpha");
        site.assert_restores(FILES, site.points(FILES).await.last().unwrap(), &content).await;
        site.pool().mutate("alpha", 5.0).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_changed_blocks_the_export_tells_what_to_read() {
    let site = Site::new().await;
    site.run(Work::Backup(site.backup())).await.assert(Outcome::Success);
    site.pool().mutate("alpha", 5.0).await.unwrap();
    site.pool().set_fault(Fault::NoChangedBlocks);
    let story = site.run(Work::Backup(site.backup())).await;
    story.assert(Outcome::Success);
    let disks = story.results(TaskKind::Disk);
    assert!(disks.iter().all(|disk| disk.delta == Some(true) && disk.path.as_deref() == Some("nbd")), "{disks:?}");
    assert!(story.warnings().iter().any(|warning| warning.contains("SR_BACKEND_FAILURE_460")), "{:?}", story.warnings());
    site.assert_restores(DIRECTORIES, site.points(DIRECTORIES).await.last().unwrap(), &site.content("alpha")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_instead_of_a_delta_becomes_a_key() {
    let site = Site::new().await;
    let plan = BackupPlan { prefer_nbd: false, ..site.backup() };
    site.run(Work::Backup(plan.clone())).await.assert(Outcome::Success);
    site.pool().mutate("alpha", 5.0).await.unwrap();
    site.pool().set_fault(Fault::FullInsteadOfDelta);
    let story = site.run(Work::Backup(plan)).await;
    story.assert(Outcome::Success);
    assert!(story.results(TaskKind::Disk).iter().all(|disk| disk.delta == Some(false)));
    assert!(story.warnings().iter().any(|warning| warning.contains("becomes a key")));
    site.assert_restores(FILES, site.points(FILES).await.last().unwrap(), &site.content("alpha")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_points_go_and_the_chain_is_merged() {
    let site = Site::new().await;
    let plan = BackupPlan { retention: 2, ..site.backup() };
    let mut contents = Vec::new();
    for _ in 0..4 {
        contents.push(site.content("alpha"));
        site.run(Work::Backup(plan.clone())).await.assert(Outcome::Success);
        site.pool().mutate("alpha", 4.0).await.unwrap();
    }
    site.assert_pool_clean(1);
    for remote in [FILES, DIRECTORIES] {
        let points = site.points(remote).await;
        assert_eq!(points.len(), 2);
        for (point, content) in points.iter().zip(&contents[2..]) {
            site.assert_restores(remote, point, content).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_interval_makes_a_key() {
    let site = Site::new().await;
    let plan = BackupPlan { full_interval: 2, ..site.backup() };
    let mut deltas = Vec::new();
    for _ in 0..3 {
        let story = site.run(Work::Backup(plan.clone())).await;
        deltas.push(story.assert(Outcome::Success).results(TaskKind::Disk)[0].delta.unwrap());
    }
    assert_eq!(deltas, [false, true, false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_backup_is_an_archive_in_every_compression() {
    let site = Site::new().await;
    let content = site.content("alpha");
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let plan = BackupPlan { mode: JobMode::Full, compression, retention: 1, ..site.backup() };
        let story = site.run(Work::Backup(plan)).await;
        story.assert(Outcome::Success);
        assert_eq!(story.results(TaskKind::Xva)[0].path.as_deref(), Some("xva"));
        site.assert_pool_clean(0);
        for remote in [FILES, DIRECTORIES] {
            let points = site.points(remote).await;
            assert_eq!(points.len(), 1);
            site.assert_restores(remote, &points[0], &content).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remote_that_fails_leaves_the_other_whole() {
    let site = Site::new().await;
    // A file where the directory of backups should be.
    std::fs::write(site.remote_path(DIRECTORIES).join("xo-vm-backups"), "in the way").unwrap();
    let story = site.run(Work::Backup(site.backup())).await;
    assert_eq!(story.outcome(), Outcome::Failure);
    story.assert_tidy();
    assert!(story.warnings().iter().any(|warning| warning.contains(DIRECTORIES)), "{:?}", story.warnings());
    let points = site.points(FILES).await;
    assert_eq!(points.len(), 1);
    site.assert_restores(FILES, &points[0], &site.content("alpha")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remote_that_is_away_is_not_written_to_and_the_other_gets_its_backup() {
    let site = Site::new().await;
    let mut plan = site.plan(Work::Backup(site.backup()));
    let why = "the remote directories is not mounted";
    plan.remotes[1].away = Some(ErrorReport::new("REMOTE_NOT_MOUNTED", why));
    let story = execute(plan).await;
    assert_eq!(story.outcome(), Outcome::Failure);
    story.assert_tidy();
    assert!(story.warnings().iter().any(|warning| warning.contains(why)), "{:?}", story.warnings());
    assert_eq!(std::fs::read_dir(site.remote_path(DIRECTORIES)).unwrap().count(), 0);
    let points = site.points(FILES).await;
    site.assert_restores(FILES, &points[0], &site.content("alpha")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_backed_up_is_a_sentence() {
    let site = Site::new().await;
    let mut gone = site.backup();
    gone.vms[0].uuid = "d3b0a7c4-5e6f-4a1b-9c2d-0e1f2a3b4c5d".into();
    let story = site.run(Work::Backup(gone)).await;
    story.assert(Outcome::Failure);
    let nothing = BackupPlan { vms: Vec::new(), ..site.backup() };
    site.run(Work::Backup(nothing)).await.assert(Outcome::Failure);
    site.assert_pool_clean(0);
}
