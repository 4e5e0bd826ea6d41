//! Restores that do not come to their end, and points that go.

use api::{Outcome, TaskKind};
use engine::plan::{RestorePlan, Work};
use lab::Fault;

use crate::site::{FILES, Site};

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_upload_leaves_nothing_on_the_pool() {
    let site = Site::new().await;
    site.run(Work::Backup(site.backup())).await.assert(Outcome::Success);
    let (vms, vdis) = (site.pool().records("VM").len(), site.pool().records("VDI").len());
    site.pool().set_fault(Fault::CutImport { after_bytes: 3 << 20 });
    let plan = site.restore(FILES, &site.points(FILES).await[0]);
    site.run(Work::Restore(plan)).await.assert(Outcome::Failure);
    assert_eq!((site.pool().records("VM").len(), site.pool().records("VDI").len()), (vms, vdis));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_restore_leaves_nothing_on_the_pool() {
    let site = Site::new().await;
    site.run(Work::Backup(site.backup())).await.assert(Outcome::Success);
    let vms = site.pool().records("VM").len();
    let plan = site.restore(FILES, &site.points(FILES).await[0]);
    let (journal, cancel, end) = site.start(Work::Restore(plan));
    journal.until(|event| matches!(event, api::EventKind::TaskStarted { kind: TaskKind::Disk, .. })).await;
    cancel.cancel();
    assert_eq!(end.await.unwrap(), Outcome::Cancelled);
    journal.story().assert_tidy();
    assert_eq!(site.pool().records("VM").len(), vms);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_kept_whatever_it_is() {
    let site = Site::new().await;
    site.run(Work::Backup(site.backup())).await.assert(Outcome::Success);
    let name = "a \"quoted\" ../name \u{202e}\u{1f4ec}".to_owned();
    let plan = RestorePlan { name: Some(name.clone()), ..site.restore(FILES, &site.points(FILES).await[0]) };
    site.run(Work::Restore(plan)).await.assert(Outcome::Success);
    let restored = site.pool().vm(&name).unwrap();
    let (_, record) = site.pool().records("VM").into_iter().find(|(_, vm)| vm["uuid"] == restored.uuid).unwrap();
    assert_eq!(record["tags"], serde_json::json!(["restored from backup"]));
    assert_eq!(record["VIFs"].as_array().unwrap().len(), 1);
    assert!(record["other_config"].get("xo:backup:job").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_point_is_gone_and_the_others_restore() {
    let site = Site::new().await;
    let mut contents = Vec::new();
    for _ in 0..2 {
        contents.push(site.content("alpha"));
        site.run(Work::Backup(site.backup())).await.assert(Outcome::Success);
        site.pool().mutate("alpha", 4.0).await.unwrap();
    }
    let points = site.points(FILES).await;
    let remove = site.restore(FILES, &points[0]).point;
    site.run(Work::Remove(remove.clone())).await.assert(Outcome::Success);
    assert_eq!(site.points(FILES).await.len(), 1);
    site.assert_restores(FILES, &points[1], &contents[1]).await;
    site.run(Work::Remove(remove)).await.assert(Outcome::Failure);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_point_fails_its_verify() {
    let site = Site::new().await;
    site.run(Work::Backup(site.backup())).await.assert(Outcome::Success);
    let point = site.points(FILES).await.remove(0);
    let vhd = point.metadata.vhds.as_ref().unwrap().values().next().unwrap().clone();
    let path = site.remote_path(FILES).join("xo-vm-backups").join(point.id.vm()).join(vhd);
    let length = std::fs::metadata(&path).unwrap().len();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(length - 4096).unwrap();
    let plan = site.restore(FILES, &point).point;
    site.run(Work::Verify(plan)).await.assert(Outcome::Failure);
}
