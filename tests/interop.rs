//! Judges that nobody here wrote, against the lab and against the repositories we write.
//!
//! Two XAPI clients (npm `xen-api`, PyPI `XenAPI`) list the lab's pool. XO's own engine, from npm, backs up and restores
//! against the lab; what comes back has to be byte-identical. And each engine reads, restores, extends and merges what
//! the other wrote. They are installed by two commands, which a test names
//! when they are missing: a judge that does not sit is a failure, not a skip.

#[path = "interop/judge.rs"]
mod judge;
#[path = "interop/ours.rs"]
mod ours;
#[path = "interop/site.rs"]
mod site;

use api::{Compression, JobMode, TaskKind};
use judge::{python, xo};
use serde_json::json;
use site::{Layout, Site};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_clients_list_the_pool() {
    let site = Site::open(Layout::File).await;
    let pool = site.pool();
    let vm = site.vm();

    let seen = xo("pool", &json!({ "pool": pool })).await;
    assert_eq!(seen["pool"], "lab");
    let disks: Vec<&str> = vm.disks.iter().map(|disk| disk.vdi.as_str()).collect();
    assert_eq!(seen["vms"], json!([{ "uuid": vm.uuid, "name": "alpha", "disks": disks }]));

    let url = pool["url"].as_str().unwrap();
    let seen = python(url, &pool).await;
    assert_eq!(seen, json!({ "pool": "lab", "hosts": 1, "vms": [{ "uuid": vm.uuid, "name": "alpha", "state": "Running" }] }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn xo_backs_up_the_lab_as_xva_and_restores_it() {
    let site = Site::open(Layout::File).await;
    let before = site.keep_disks("before");
    let answer = site.xo_backup("full", json!({})).await;
    let points = site.good(&answer, 1);
    assert_eq!(points[0]["mode"], "full");
    site.mutate(20.0).await;

    let vm = site.xo_restore(&points[0]).await;
    site.assert_disks("restored from the XVA", &vm, &before);
    site.assert_no_leftovers();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn xo_backs_up_the_lab_by_changed_blocks_over_nbd_into_files() {
    xo_key_and_delta(Layout::File, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn xo_backs_up_the_lab_by_streams_into_directories() {
    xo_key_and_delta(Layout::Directory, false).await;
}

async fn xo_key_and_delta(layout: Layout, nbd: bool) {
    let site = Site::open(layout).await;
    let settings = json!({ "preferNbd": nbd });
    let first = site.keep_disks("first");
    let answer = site.xo_backup("delta", settings.clone()).await;
    site.good(&answer, 1);
    assert_eq!(answer["exports"], json!([{ "isFull": true }]));

    site.mutate(10.0).await;
    let second = site.keep_disks("second");
    let answer = site.xo_backup("delta", settings).await;
    let points = site.good(&answer, 2);
    assert_eq!(answer["exports"], json!([{ "isFull": false }]), "{answer}");
    let used_nbd = answer["infos"].as_array().unwrap().iter().any(|info| info["message"] == "Transfer data using NBD");
    assert_eq!(used_nbd, nbd, "{answer}");
    // Three of 32 blocks of each disk, and the whole key before.
    assert!(points[1]["size"].as_u64().unwrap() * 2 < points[0]["size"].as_u64().unwrap(), "{points:?}");

    for (point, contents) in points.iter().zip([&first, &second]) {
        let vm = site.xo_restore(point).await;
        site.assert_disks("restored from the chain", &vm, contents);
    }
    site.assert_xo_reads("read from the chain", &points[1], &second).await;
    site.assert_no_leftovers();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn xo_reads_restores_and_extends_our_files() {
    ours_then_xo(Layout::File, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn xo_reads_restores_and_extends_our_directories() {
    ours_then_xo(Layout::Directory, false).await;
}

async fn ours_then_xo(layout: Layout, nbd: bool) {
    let site = Site::open(layout).await;
    let backup = || site.our_backup(JobMode::Delta, Compression::None, nbd, 7);
    let (key, delta) = if nbd { ("nbd", "nbd+cbt") } else { ("stream", "stream") };

    let first = site.keep_disks("first");
    assert_eq!(backup().await.disks(), [(false, key.to_owned()), (false, key.to_owned())]);
    site.mutate(10.0).await;
    let second = site.keep_disks("second");
    assert_eq!(backup().await.disks(), [(true, delta.to_owned()), (true, delta.to_owned())]);

    // XO lists them, finds nothing to clean, reads and restores both.
    let points = site.xo_points(2).await;
    for (point, contents) in points.iter().zip([&first, &second]) {
        site.assert_xo_reads("read by XO from our chain", point, contents).await;
        let vm = site.xo_restore(point).await;
        site.assert_disks("restored by XO from our chain", &vm, contents);
    }

    // XO continues our chain from our snapshot, and merges it when retention asks for that.
    site.mutate(10.0).await;
    let third = site.keep_disks("third");
    let answer = site.xo_backup("delta", json!({ "preferNbd": nbd })).await;
    assert_eq!(answer["exports"], json!([{ "isFull": false }]), "{answer:#}");
    site.good(&answer, 3);
    site.mutate(10.0).await;
    let fourth = site.keep_disks("fourth");
    let answer = site.xo_backup("delta", json!({ "preferNbd": nbd, "exportRetention": 2 })).await;
    assert_eq!(answer["exports"], json!([{ "isFull": false }]), "{answer:#}");
    let points = site.good(&answer, 2);

    // What XO left of our chain is ours to verify, restore and continue.
    for (point, contents) in points.iter().zip([&third, &fourth]) {
        site.our_verify(point).await;
        let vm = site.our_restore(point).await;
        site.assert_disks("restored by us after XO's merge", &vm, contents);
    }
    assert_eq!(backup().await.disks(), [(true, delta.to_owned()), (true, delta.to_owned())]);
    site.xo_points(3).await;
    site.assert_no_leftovers();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn we_read_restore_and_extend_the_files_of_xo() {
    xo_then_ours(Layout::File, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn we_read_restore_and_extend_the_directories_of_xo() {
    xo_then_ours(Layout::Directory, false).await;
}

async fn xo_then_ours(layout: Layout, nbd: bool) {
    let site = Site::open(layout).await;
    let settings = json!({ "preferNbd": nbd });
    let first = site.keep_disks("first");
    site.good(&site.xo_backup("delta", settings.clone()).await, 1);
    site.mutate(10.0).await;
    let second = site.keep_disks("second");
    let points = site.good(&site.xo_backup("delta", settings.clone()).await, 2);

    for (point, contents) in points.iter().zip([&first, &second]) {
        site.our_verify(point).await;
        let vm = site.our_restore(point).await;
        site.assert_disks("restored by us from XO's chain", &vm, contents);
    }

    // We continue XO's chain, merging it, and XO continues the merged one.
    site.mutate(10.0).await;
    let third = site.keep_disks("third");
    let told = site.our_backup(JobMode::Delta, Compression::None, nbd, 2).await;
    assert!(told.disks().iter().all(|(delta, _)| *delta), "{:?}", told.disks());
    let points = site.xo_points(2).await;
    for (point, contents) in points.iter().zip([&second, &third]) {
        site.assert_xo_reads("read by XO after our merge", point, contents).await;
    }
    site.mutate(10.0).await;
    let fourth = site.keep_disks("fourth");
    let answer = site.xo_backup("delta", settings).await;
    assert_eq!(answer["exports"], json!([{ "isFull": false }]), "{answer:#}");
    let points = site.good(&answer, 3);
    let vm = site.our_restore(&points[2]).await;
    site.assert_disks("restored by us from a chain of both", &vm, &fourth);
    site.assert_no_leftovers();
}

/// XO can throw the data of its snapshot away and keep only its change tracking; that is then the base for both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_continue_from_a_snapshot_whose_data_is_destroyed() {
    let site = Site::open(Layout::File).await;
    let settings = json!({ "preferNbd": true, "cbtDestroySnapshotData": true });
    site.good(&site.xo_backup("delta", settings.clone()).await, 1);
    site.assert_snapshots("cbt_metadata", 2);

    site.mutate(10.0).await;
    let second = site.keep_disks("second");
    let told = site.our_backup(JobMode::Delta, Compression::None, true, 7).await;
    assert_eq!(told.disks(), [(true, "nbd+cbt".to_owned()), (true, "nbd+cbt".to_owned())]);
    site.assert_snapshots("user", 2);
    let points = site.xo_points(2).await;
    site.assert_xo_reads("read by XO from our delta", &points[1], &second).await;

    site.mutate(10.0).await;
    let third = site.keep_disks("third");
    let answer = site.xo_backup("delta", settings).await;
    assert_eq!(answer["exports"], json!([{ "isFull": false }]), "{answer:#}");
    let points = site.good(&answer, 3);
    let vm = site.our_restore(&points[2]).await;
    site.assert_disks("restored by us from a chain of both", &vm, &third);
    site.assert_no_leftovers();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_restores_the_xva_of_the_other() {
    let site = Site::open(Layout::File).await;
    let before = site.keep_disks("before");
    let points = site.good(&site.xo_backup("full", json!({})).await, 1);
    site.our_verify(&points[0]).await;
    let vm = site.our_restore(&points[0]).await;
    site.assert_disks("restored by us from XO's XVA", &vm, &before);

    for (compression, count) in [(Compression::None, 2), (Compression::Gzip, 3), (Compression::Zstd, 4)] {
        site.mutate(10.0).await;
        let before = site.keep_disks("before");
        let told = site.our_backup(JobMode::Full, compression, true, 7).await;
        assert_eq!(told.results(TaskKind::Xva).len(), 1);
        let point = site.xo_points(count).await.pop().unwrap();
        let vm = site.xo_restore(&point).await;
        site.assert_disks("restored by XO from our XVA", &vm, &before);
    }
    site.assert_no_leftovers();
}
