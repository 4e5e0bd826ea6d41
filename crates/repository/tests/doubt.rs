//! What clean does not touch: ancestors of disks that cannot be read, and whatever a restore point may refer to that
//! does not say what it refers to.
#![allow(clippy::disallowed_methods)]

mod common;

use std::path::{Path, PathBuf};

use common::*;
use repository::{Cleaned, DiskLayout, Repository};
use serde_json::{Value, json};

const DISKS: [&str; 3] = ["20250131T231600Z.vhd", "20250131T231700Z.vhd", "20250131T231800Z.vhd"];

fn file(root: &Path, name: &str) -> PathBuf {
    root.join(lineage_dir().as_str()).join(name)
}

/// Three backups of one chain.
async fn chain(root: &Path) -> (Repository, Model) {
    let repository = Repository::open(local(root).await, DiskLayout::File);
    let mut model = Model::new(2 * BLOCK);
    for n in 1..=3 {
        model.write(n % 2, &block(n, n % 2));
        backup(&repository, &mut model, &[n % 2]).await.unwrap();
    }
    (repository, model)
}

fn assert_untouched(cleaned: &Cleaned, case: &str) {
    assert!(cleaned.removed.is_empty() && cleaned.merged.is_empty(), "{case}: {cleaned:?}");
    assert!(!cleaned.problems.is_empty(), "{case}: nothing is reported");
}

#[tokio::test]
async fn ancestors_of_a_disk_that_cannot_be_read_stay() {
    let dir = scratch();
    let (repository, model) = chain(dir.path()).await;
    remove(&repository, &[id(1), id(2)]).await.unwrap();
    for (victim, cut) in [(DISKS[2], Some(700)), (DISKS[2], Some(0)), (DISKS[2], None), (DISKS[1], Some(700)), (DISKS[1], None)] {
        let case = format!("{victim} cut to {cut:?}");
        let whole = std::fs::read(file(dir.path(), victim)).unwrap();
        match cut {
            Some(length) => std::fs::write(file(dir.path(), victim), &whole[..length]).unwrap(),
            None => std::fs::remove_file(file(dir.path(), victim)).unwrap(),
        }
        assert_untouched(&clean(&repository, true).await.unwrap(), &case);
        std::fs::write(file(dir.path(), victim), whole).unwrap();
        assert_eq!(check(&repository, &model, &case).await, [id(3)]);
    }
    let cleaned = clean(&repository, true).await.unwrap();
    assert!(cleaned.problems.is_empty() && cleaned.merged.len() == 1, "{cleaned:?}");
    assert_eq!(check(&repository, &model, "repaired").await, [id(3)]);
}

#[tokio::test]
async fn a_restore_point_that_does_not_say_what_it_needs_stops_every_removal() {
    let dir = scratch();
    let (repository, _) = chain(dir.path()).await;
    let metadata = dir.path().join(id(3).path().as_str());
    let whole: Value = serde_json::from_slice(&std::fs::read(&metadata).unwrap()).unwrap();
    remove(&repository, &[id(2)]).await.unwrap();
    let mut no_disks = whole.clone();
    no_disks.as_object_mut().unwrap().remove("vhds");
    let mut outside = whole.clone();
    outside["vhds"][KEY] = json!("../../../../../etc/x.vhd");
    let mut no_archive = no_disks.clone();
    no_archive["mode"] = json!("full");
    for (case, content) in [("no disks", no_disks), ("outside", outside), ("no archive", no_archive)] {
        std::fs::write(&metadata, content.to_string()).unwrap();
        assert_untouched(&clean(&repository, true).await.unwrap(), case);
    }
}

#[tokio::test]
async fn a_merge_whose_members_are_not_all_there_does_not_go_on() {
    let dir = scratch();
    let (repository, model) = chain(dir.path()).await;
    remove(&repository, &[id(1), id(2)]).await.unwrap();
    let state = |chain: &[&str]| {
        json!({ "child": { "uuid": snapshot(3) }, "parent": { "uuid": snapshot(1) }, "chain": chain, "currentBlock": 0,
            "mergedDataSize": 0, "step": "mergeBlocks", "diskSize": 0 })
    };
    let state_file = file(dir.path(), &format!(".{}.merge.json", DISKS[0]));
    // A list that leaves one out: its blocks would be lost.
    std::fs::write(&state_file, state(&[DISKS[0], DISKS[2]]).to_string()).unwrap();
    let cleaned = clean(&repository, true).await.unwrap();
    assert!(cleaned.merged.is_empty() && cleaned.problems.iter().any(|problem| problem.contains("cannot go on")), "{cleaned:?}");
    // One that is gone.
    std::fs::write(&state_file, state(&DISKS).to_string()).unwrap();
    let whole = std::fs::read(file(dir.path(), DISKS[1])).unwrap();
    std::fs::remove_file(file(dir.path(), DISKS[1])).unwrap();
    assert_untouched(&clean(&repository, true).await.unwrap(), "one is gone");
    std::fs::write(file(dir.path(), DISKS[1]), whole).unwrap();
    let cleaned = clean(&repository, true).await.unwrap();
    assert!(cleaned.problems.is_empty() && cleaned.merged.len() == 1, "{cleaned:?}");
    assert_eq!(check(&repository, &model, "repaired").await, [id(3)]);
}
