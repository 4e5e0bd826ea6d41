//! What is written is VHD to others, and XO's own examples and leftovers are understood.
#![allow(clippy::disallowed_methods)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use api::JobMode;
use bytes::Bytes;
use common::*;
use repository::*;
use serde_json::json;
use storage::{Durability, RepoPath};
use tokio_util::sync::CancellationToken;

fn file(root: &Path, name: &str) -> PathBuf {
    root.join(lineage_dir().as_str()).join(name)
}

/// Asks qemu-img, where there is one.
fn qemu(arguments: &[&str]) -> Option<String> {
    let output = Command::new("qemu-img").args(arguments).output().ok()?;
    assert!(output.status.success(), "qemu-img {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn assert_qemu_reads(vhd: &Path, content: &[u8]) {
    let scratch = scratch();
    let raw = scratch.path().join("raw");
    let (vhd, raw_name) = (vhd.to_str().unwrap(), raw.to_str().unwrap());
    // The size field rules, not the geometry: as for every disk that XAPI makes.
    let source = format!("driver=vpc,force_size_calc=current_size,file.filename={vhd}");
    if qemu(&["info", "-f", "vpc", vhd]).is_some() {
        qemu(&["convert", "--image-opts", &source, "-O", "raw", raw_name]);
        let read = std::fs::read(raw).unwrap();
        assert!(read[..content.len()] == *content && read[content.len()..].iter().all(|byte| *byte == 0));
    }
}

#[tokio::test]
async fn qemu_reads_a_key_and_what_a_merge_made_of_it() {
    let dir = scratch();
    let repository = Repository::open(local(dir.path()).await, DiskLayout::File);
    let mut model = Model::new(4 * BLOCK + 512);
    for index in [0, 3, 4] {
        model.write(index, &block(1, index));
    }
    let first = backup(&repository, &mut model, &[]).await.unwrap();
    assert_qemu_reads(&file(dir.path(), "20250131T231600Z.vhd"), &model.points[&first].bytes());
    model.write(2, &block(2, 2));
    model.write(3, &[0; BLOCK]);
    backup(&repository, &mut model, &[2, 3]).await.unwrap();
    remove(&repository, &[first]).await.unwrap();
    let cleaned = clean(&repository, true).await.unwrap();
    assert_eq!(cleaned.merged.len(), 1);
    assert_qemu_reads(&file(dir.path(), "20250131T231700Z.vhd"), &model.live.bytes());
    let metadata = repository.metadata(&id(2)).await.unwrap();
    assert!(!metadata.is_vhd_differencing.unwrap()[KEY]);
    assert_eq!(metadata.size, std::fs::metadata(file(dir.path(), "20250131T231700Z.vhd")).unwrap().len());
}

#[tokio::test]
async fn names_and_bytes_are_those_of_the_reference() {
    for (layout, name) in [(DiskLayout::File, "20250131T231600Z.vhd"), (DiskLayout::Directory, "20250131T231600Z.alias.vhd")] {
        let dir = scratch();
        let repository = Repository::open(local(dir.path()).await, layout);
        let mut model = Model::new(5 << 20);
        for index in [0, 2] {
            model.write(index, &block(1, index));
        }
        backup(&repository, &mut model, &[]).await.unwrap();
        let metadata = repository.metadata(&id(1)).await.unwrap();
        // The example of backup-repository.md §3.5: the same size in both forms.
        assert_eq!(metadata.size, 4_197_888);
        assert_eq!(metadata.vhds.unwrap()[KEY], format!("vdis/{JOB}/{VDI}/{name}"));
        let vm = dir.path().join("xo-vm-backups").join(VM);
        let json = std::fs::read_to_string(vm.join("20250131T231600Z.json")).unwrap();
        assert!(json.starts_with('{') && !json.contains('\n'));
        if layout == DiskLayout::Directory {
            assert_eq!(std::fs::read(file(dir.path(), name)).unwrap(), b"data/20250131T231600Z.vhd");
            let data = file(dir.path(), "data/20250131T231600Z.vhd");
            assert_eq!(std::fs::read(data.join("chunk-filters.json")).unwrap(), br#"["brotli"]"#);
            for (chunk, length) in
                [("header", 1024), ("footer", 512), ("bat", 3), ("blocks/0/0", 512 + BLOCK), ("blocks/0/2", 512 + BLOCK)]
            {
                let mut plain = Vec::new();
                let packed = std::fs::read(data.join(chunk)).unwrap();
                std::io::copy(&mut brotli::Decompressor::new(&packed[..], 4096), &mut plain).unwrap();
                assert_eq!(plain.len(), length, "{chunk}");
                if chunk == "bat" {
                    assert_eq!(plain, [0b1010_0000, 0, 0]);
                }
            }
            assert!(!data.join("blocks/0/1").exists());
        }
        // Nothing temporary is left anywhere.
        for entry in std::fs::read_dir(dir.path().join(lineage_dir().as_str())).unwrap() {
            assert!(!entry.unwrap().file_name().to_str().unwrap().starts_with('.'));
        }
    }
}

const FULL: &str = r#"{"jobId":"0c7f6a52-3a0e-4f0e-9a52-6b0d0c8a1f11","mode":"full","scheduleId":"5b1b0d3e-7f0c-4a4e-8f39-2f2f4c6d9e01",
"timestamp":1738365300123,"version":"2.0.0","vm":{"uuid":"d3b0a7c4-5e6f-4a1b-9c2d-0e1f2a3b4c5d","name_label":"web-01","is_a_template":0,
"is_control_domain":0,"ha_always_run":1,"tags":["prod"],"memory_static_max":2147483648},"vmSnapshot":{"is_a_snapshot":true,"suspend_VDI":"OpaqueRef:NULL"},
"xva":"./20250131T231500Z.xva","size":"4831838208","tags":["daily=2025-02-01"],"x-private":{"a":[1,2]}}"#;

#[test]
fn metadata_of_every_age_is_read_and_nothing_in_it_is_lost() {
    let full = BackupMetadata::parse(FULL.as_bytes()).unwrap();
    assert_eq!((full.mode, full.size, full.vm_name()), (JobMode::Full, 4_831_838_208, "web-01"));
    assert_eq!(full.vm["is_a_template"], json!(false));
    assert_eq!(full.vm["ha_always_run"], json!(true));
    assert_eq!(full.vm["memory_static_max"], json!(2_147_483_648_u64));
    let again: serde_json::Value = serde_json::from_slice(&full.to_bytes()).unwrap();
    assert_eq!(again["x-private"], json!({ "a": [1, 2] }));
    assert_eq!(again["jobId"], json!(JOB));
    assert!(again.get("vhds").is_none() && again.get("vifs").is_none());

    let delta = json!({ "mode": "delta", "timestamp": 1, "vm": {}, "vhds": { "OpaqueRef:x": "vdis/a/b/c.vhd" }, "isVhdDifferencing": { "OpaqueRef:x": 1 },
        "includeNonNbdQcow2Fix": true, "vtpms": [null, "secret"] });
    let delta = BackupMetadata::parse(delta.to_string().as_bytes()).unwrap();
    assert!(delta.is_vhd_differencing.as_ref().unwrap()["OpaqueRef:x"] && delta.include_non_nbd_qcow2_fix == Some(true));
    let again: serde_json::Value = serde_json::from_slice(&delta.to_bytes()).unwrap();
    assert_eq!(again["includeNonNbdQcow2Fix"], json!(true));
    assert!(delta.check().is_err());

    let unsized_one = BackupMetadata::parse(br#"{"mode":"delta","timestamp":1,"vm":{},"size":null,"tags":null}"#).unwrap();
    assert_eq!((unsized_one.size, unsized_one.tags.len()), (0, 0));

    for bad in [
        "",
        "null",
        "[]",
        r#"{"mode":"other","timestamp":1,"vm":{}}"#,
        r#"{"mode":"full","timestamp":"x","vm":{}}"#,
        r#"{"mode":"full","timestamp":1}"#,
    ] {
        assert!(BackupMetadata::parse(bad.as_bytes()).is_err(), "{bad}");
    }
    let deep = format!(r#"{{"mode":"full","timestamp":1,"vm":{{}},"x":{}1{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
    assert!(BackupMetadata::parse(deep.as_bytes()).is_err());
}

#[tokio::test]
async fn half_a_metadata_file_is_reported_and_stops_every_removal() {
    let dir = scratch();
    let storage = local(dir.path()).await;
    let repository = Repository::open(storage.clone(), DiskLayout::File);
    let mut model = Model::new(BLOCK);
    for n in 1..=3 {
        model.write(0, &block(n, 0));
        backup(&repository, &mut model, &[0]).await.unwrap();
    }
    let victim = id(2).path();
    let whole = storage.read(&victim, 1 << 20).await.unwrap();
    // Something an unhindered clean would remove.
    let orphan = RepoPath::parse(&format!("xo-vm-backups/{VM}/20240101T000000Z.xva")).unwrap();
    storage.write_new(&orphan, Bytes::from_static(b"x"), Durability::Now).await.unwrap();
    for cut in (0..whole.len()).step_by(7).chain([whole.len() - 1]) {
        // The cache would hide the damage from a listing, as it does from XO's.
        storage.remove(&RepoPath::parse(&format!("xo-vm-backups/{VM}/cache.json.gz")).unwrap(), Durability::Now).await.unwrap();
        storage.replace(&victim, whole.slice(..cut), Durability::AtSync).await.unwrap();
        let listing = repository.list(VM).await.unwrap();
        assert_eq!((listing.points.len(), listing.unreadable.len()), (2, 1), "cut at {cut}");
        let cleaned = clean(&repository, true).await.unwrap();
        assert!(cleaned.removed.is_empty() && cleaned.merged.is_empty(), "cut at {cut}: {cleaned:?}");
        assert!(
            cleaned.problems.iter().any(|problem| problem.contains("nothing of this VM is removed")),
            "{:?}",
            cleaned.problems
        );
        assert!(storage.stat(&RepoPath::parse(&format!("xo-vm-backups/{VM}/cache.json.gz")).unwrap()).await.is_err());
    }
    storage.replace(&victim, whole, Durability::AtSync).await.unwrap();
    assert_eq!(check(&repository, &model, "repaired").await.len(), 3);
    let cleaned = clean(&repository, true).await.unwrap();
    assert_eq!(cleaned.removed.len(), 1, "{cleaned:?}");
    check_cache(&storage, "repaired").await;
}

#[tokio::test]
async fn a_merge_that_xo_interrupted_after_removing_the_children_is_finished() {
    // H5: state `cleanup`, children gone, the parent still under its own name.
    let dir = scratch();
    let storage = local(dir.path()).await;
    let repository = Repository::open(storage.clone(), DiskLayout::File);
    let mut model = Model::new(2 * BLOCK);
    for n in 1..=2 {
        model.write(n - 1, &block(n, 0));
        backup(&repository, &mut model, &[n - 1]).await.unwrap();
    }
    remove(&repository, &[id(1)]).await.unwrap();
    clean(&repository, true).await.unwrap();
    let (parent, target) = ("20250131T231600Z.vhd", "20250131T231700Z.vhd");
    std::fs::rename(file(dir.path(), target), file(dir.path(), parent)).unwrap();
    let state = json!({ "child": { "uuid": snapshot(2) }, "parent": { "uuid": snapshot(1) }, "chain": [parent, target], "currentBlock": 1,
        "mergedDataSize": 0, "step": "cleanup", "diskSize": 0 });
    std::fs::write(file(dir.path(), &format!(".{parent}.merge.json")), state.to_string()).unwrap();
    let cleaned = clean(&repository, false).await.unwrap();
    assert!(cleaned.merge_due && cleaned.removed.is_empty(), "{cleaned:?}");
    let cleaned = clean(&repository, true).await.unwrap();
    assert!(cleaned.problems.is_empty() && cleaned.merged.len() == 1, "{cleaned:?}");
    assert_eq!(check(&repository, &model, "finished").await, [id(2)]);
    assert!(!file(dir.path(), &format!(".{parent}.merge.json")).exists());
}

#[tokio::test]
async fn a_merge_in_which_xo_had_moved_blocks_reads_right_and_goes_on() {
    let dir = scratch();
    let repository = Repository::open(local(dir.path()).await, DiskLayout::Directory);
    let mut model = Model::new(3 * BLOCK);
    for (n, changed) in [(1, vec![0, 1]), (2, vec![0, 2]), (3, vec![0])] {
        changed.iter().for_each(|index| model.write(*index, &block(n, *index)));
        backup(&repository, &mut model, &changed).await.unwrap();
    }
    remove(&repository, &[id(1), id(2)]).await.unwrap();
    let (parent, middle, target) = ("20250131T231600Z", "20250131T231700Z", "20250131T231800Z");
    let chain = [parent, middle, target].map(|stem| format!("{stem}.alias.vhd"));
    let state = json!({ "child": { "uuid": snapshot(3) }, "parent": { "uuid": snapshot(1) }, "chain": chain, "currentBlock": 0, "step": "mergeBlocks" });
    std::fs::write(file(dir.path(), &format!(".{parent}.alias.vhd.merge.json")), state.to_string()).unwrap();
    let place = |stem: &str, index: u32| file(dir.path(), &format!("data/{stem}.vhd/blocks/0/{index}"));
    std::fs::rename(place(target, 0), place(parent, 0)).unwrap();
    std::fs::rename(place(middle, 2), place(parent, 2)).unwrap();
    assert_eq!(check(&repository, &model, "interrupted").await, [id(3)]);
    let cleaned = clean(&repository, true).await.unwrap();
    assert!(cleaned.problems.is_empty() && cleaned.merged.len() == 1, "{cleaned:?}");
    assert_eq!(check(&repository, &model, "finished").await, [id(3)]);
    let left: Vec<_> = std::fs::read_dir(file(dir.path(), "data")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [format!("{parent}.vhd").as_str()]);
}

#[tokio::test]
async fn branches_circles_and_ways_out_are_left_alone() {
    let dir = scratch();
    let repository = Repository::open(local(dir.path()).await, DiskLayout::Directory);
    let mut model = Model::new(BLOCK);
    model.write(0, &block(1, 0));
    backup(&repository, &mut model, &[0]).await.unwrap();
    let outside = file(dir.path(), "20250201T000000Z.alias.vhd");
    for target in ["../../../../../../etc/x.vhd", "../other/x.vhd", "x.alias.vhd", "", "\u{fffd}\0", "data/none.vhd"] {
        std::fs::write(&outside, target).unwrap();
        let chain = repository.open_disk(&id(1), &format!("vdis/{JOB}/{VDI}/20250201T000000Z.alias.vhd")).await;
        assert!(chain.is_err(), "{target:?}");
        let cleaned = clean(&repository, true).await.unwrap();
        assert!(cleaned.removed.len() == 1 && !outside.exists(), "{target:?}: {cleaned:?}");
        check(&repository, &model, target).await;
    }
    assert!(repository.open_disk(&id(1), "../../../../etc/passwd").await.is_err());
}

#[tokio::test]
async fn a_base_is_found_only_where_it_can_be_built_on() {
    let dir = scratch();
    let storage = local(dir.path()).await;
    let repository = Repository::open(storage.clone(), DiskLayout::Directory);
    let mut model = Model::new(2 * BLOCK);
    model.write(0, &block(1, 0));
    backup(&repository, &mut model, &[0]).await.unwrap();
    let search = async |repository: &Repository, snapshot, size, time| match repository
        .find_base(&lineage(), snapshot, size, time)
        .await
        .unwrap()
    {
        BaseSearch::Found(base) => Ok(base.name().to_owned()),
        BaseSearch::None { reason } => Err(reason),
    };
    let size = 2 * BLOCK as u64;
    assert_eq!(search(&repository, snapshot(1), size, time(2)).await.unwrap(), "20250131T231600Z.alias.vhd");
    assert!(search(&repository, snapshot(2), size, time(2)).await.unwrap_err().contains("holds the snapshot"));
    assert!(search(&repository, snapshot(1), size + 512, time(2)).await.unwrap_err().contains("the disk had"));
    assert!(search(&repository, snapshot(1), size, time(1)).await.is_err());
    let files = Repository::open(storage, DiskLayout::File);
    assert!(search(&files, snapshot(1), size, time(2)).await.unwrap_err().contains("another form"));
    std::fs::write(file(dir.path(), "data/20250131T231600Z.vhd/footer"), b"damaged").unwrap();
    assert!(search(&repository, snapshot(1), size, time(2)).await.unwrap_err().contains("damaged"));
}

#[tokio::test]
async fn verify_names_the_damaged_block() {
    let dir = scratch();
    let repository = Repository::open(local(dir.path()).await, DiskLayout::Directory);
    let mut model = Model::new(2 * BLOCK);
    for index in 0..2 {
        model.write(index, &block(1, index));
    }
    backup(&repository, &mut model, &[]).await.unwrap();
    let never = CancellationToken::new();
    let sound = repository.verify(&id(1), &(), &never).await.unwrap();
    assert!(sound.is_sound() && sound.blocks == 2 && sound.bytes == 2 * BLOCK as u64);
    std::fs::write(file(dir.path(), "data/20250131T231600Z.vhd/blocks/0/1"), b"rot").unwrap();
    let found = repository.verify(&id(1), &(), &never).await.unwrap();
    assert!(found.faults.len() == 1 && found.faults[0].contains("block 1"), "{found:?}");
    std::fs::remove_file(file(dir.path(), "data/20250131T231600Z.vhd/blocks/0/0")).unwrap();
    assert_eq!(repository.verify(&id(1), &(), &never).await.unwrap().faults.len(), 2);
    never.cancel();
    assert!(matches!(repository.verify(&id(1), &(), &never).await, Err(Error::Cancelled)));
}

#[tokio::test]
async fn a_full_backup_is_published_whole_or_not_at_all() {
    let dir = scratch();
    let storage = local(dir.path()).await;
    let repository = Repository::open(storage.clone(), DiskLayout::File);
    let mut writer = xva::Writer::new();
    let mut archive: Vec<u8> = writer.ova_xml(Bytes::from_static(b"<value/>")).unwrap().concat();
    writer.begin_disk("Ref:1", 2 << 20).unwrap();
    while let Some((_, length)) = writer.next_chunk() {
        archive.extend(writer.chunk(vec![7; length].into()).unwrap().concat());
    }
    archive.extend(writer.finish().unwrap());
    let archive = Bytes::from(archive);
    let lock = repository.lock(VM).await.unwrap();
    let vm_dir = dir.path().join("xo-vm-backups").join(VM);

    let mut cut = repository.create_xva(&lock, time(1)).await.unwrap();
    cut.write(vec![archive.slice(..archive.len() - 1024)]).await.unwrap();
    assert!(matches!(cut.finish().await, Err(Error::Xva { .. })));
    assert_eq!(std::fs::read_dir(&vm_dir).unwrap().count(), 0);

    let mut whole = repository.create_xva(&lock, time(1)).await.unwrap();
    for piece in archive.chunks(300_000) {
        whole.write(vec![Bytes::copy_from_slice(piece)]).await.unwrap();
    }
    let finished = whole.finish().await.unwrap();
    assert_eq!((finished.size, finished.relative.as_str()), (archive.len() as u64, "./20250131T231600Z.xva"));
    let mut metadata = BackupMetadata::new(JobMode::Full, time(1), JOB, SCHEDULE, vm_record());
    metadata.xva = Some(finished.relative);
    metadata.size = finished.size + 1;
    assert!(matches!(repository.commit(&lock, &metadata).await, Err(Error::Incomplete(_))));
    metadata.size -= 1;
    let point = repository.commit(&lock, &metadata).await.unwrap();
    assert!(matches!(repository.commit(&lock, &metadata).await, Err(Error::PointExists(_))));
    lock.release().await.unwrap();
    let checksum = std::fs::read_to_string(vm_dir.join("20250131T231600Z.xva.checksum")).unwrap();
    assert_eq!(checksum, format!("$1$${}", finished.md5));
    assert_eq!(clean(&repository, true).await.unwrap(), Cleaned::default());
    let never = CancellationToken::new();
    assert!(repository.verify(&point, &(), &never).await.unwrap().is_sound());
    std::fs::write(vm_dir.join("20250131T231600Z.xva"), &archive[..archive.len() - 512]).unwrap();
    assert!(!repository.verify(&point, &(), &never).await.unwrap().is_sound());
    repository.remove_point(&point).await.unwrap();
    assert!(repository.list(VM).await.unwrap().points.is_empty());
    assert!(std::fs::read_dir(&vm_dir).unwrap().all(|entry| entry.unwrap().file_name() == "cache.json.gz"));
}

#[tokio::test]
async fn one_lock_at_a_time_and_a_lost_one_stops_its_holder() {
    let dir = scratch();
    let storage = local(dir.path()).await;
    let repository = Repository::open(storage.clone(), DiskLayout::File);
    let held = repository.lock(VM).await.unwrap();
    assert!(matches!(repository.lock(VM).await, Err(Error::Locked { .. })));
    assert!(matches!(held.check("another"), Err(Error::WrongLock { .. })));
    held.release().await.unwrap();
    let dead = repository.lock(VM).await.unwrap();
    age_lock(&storage).await;
    let taken = repository.lock(VM).await.unwrap();
    // The first holder finds a foreign time and lets go without removing what is not its own.
    drop(dead);
    taken.check(VM).unwrap();
    taken.release().await.unwrap();
    assert!(storage.stat(&RepoPath::parse(&format!("xo-vm-backups/{VM}.lock")).unwrap()).await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn identities_that_break_xos_links_are_refused() {
    let dir = scratch();
    let repository = Repository::open(local(dir.path()).await, DiskLayout::File);
    let lock = repository.lock(VM).await.unwrap();
    for uuid in
        ["01890a5d-ac96-774b-bcce-b302099a8057", "00000000-0000-0000-0000-000000000000", "c0ffee00-1111-4222-0333-444455556666"]
    {
        let new = NewDisk { lineage: lineage(), time: time(1), virtual_size: 1, uuid: uuid.parse().unwrap(), base: None };
        assert!(matches!(repository.create_disk(&lock, new).await, Err(Error::Refused { .. })), "{uuid}");
    }
}
