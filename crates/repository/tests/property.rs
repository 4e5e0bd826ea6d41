//! Any sequence of backups, removals, merges and interruptions keeps every listed restore point as the model has it.
#![allow(clippy::disallowed_methods)]

mod common;

use std::sync::Arc;

use common::*;
use proptest::prelude::*;
use repository::{DiskLayout, MergeSettings, Repository};
use storage::fault::CrashPoint;

#[derive(Debug, Clone)]
enum Action {
    Backup(Vec<u32>),
    Grow,
    Retain(usize),
    RemoveOne(usize),
    Clean {
        merge: bool,
    },
    /// The same as a clean, dying after so many changes.
    DyingClean(u64),
    DyingBackup(u64),
    /// The snapshot the next delta needs is lost: a key is written.
    LoseSnapshot,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => proptest::collection::vec(0..4_u32, 0..4).prop_map(Action::Backup),
        1 => Just(Action::Grow),
        2 => (1..4_usize).prop_map(Action::Retain),
        1 => (0..6_usize).prop_map(Action::RemoveOne),
        2 => any::<bool>().prop_map(|merge| Action::Clean { merge }),
        2 => (0..30_u64).prop_map(Action::DyingClean),
        1 => (0..10_u64).prop_map(Action::DyingBackup),
        1 => Just(Action::LoseSnapshot),
    ]
}

async fn play(layout: DiskLayout, actions: Vec<Action>) {
    let dir = scratch();
    let storage = local(dir.path()).await;
    let settings = MergeSettings { concurrency: 3, checkpoint: 2 };
    let repository = Repository::open(storage.clone(), layout).with_merges(settings);
    let dying = |changes| Repository::open(Arc::new(CrashPoint::after(storage.clone(), changes)), layout).with_merges(settings);
    let mut model = Model::new(3 * BLOCK + 4096);
    let mut seed = 0;
    let mut change = |model: &mut Model, changed: &[u32]| {
        let count = (model.live.size as u64).div_ceil(BLOCK as u64) as u32;
        for index in changed.iter().filter(|index| **index < count) {
            seed += 1;
            // Every third write is of zeros.
            let content = if seed % 3 == 0 { vec![0; BLOCK] } else { block(seed, *index) };
            model.write(*index, &content);
        }
    };
    for action in actions {
        match &action {
            Action::Backup(changed) => {
                change(&mut model, changed);
                backup(&repository, &mut model, &(0..64).collect::<Vec<_>>()).await.unwrap();
            }
            Action::DyingBackup(changes) => {
                let written = backup(&dying(*changes), &mut model, &(0..64).collect::<Vec<_>>()).await;
                age_lock(&storage).await;
                if written.is_err()
                    && !repository.list(VM).await.unwrap().points.iter().any(|point| point.id == id(model.next - 1))
                {
                    clean(&repository, false).await.unwrap();
                }
            }
            Action::Grow => model.live.size += BLOCK,
            Action::LoseSnapshot => model.next += 1,
            Action::Retain(keep) => {
                let listed = check(&repository, &model, "before retention").await;
                let surplus = listed.len().saturating_sub(*keep);
                remove(&repository, &listed[..surplus]).await.unwrap();
            }
            Action::RemoveOne(index) => {
                let listed = check(&repository, &model, "before a removal").await;
                if let Some(point) = listed.get(*index) {
                    repository.remove_point(point).await.unwrap();
                }
            }
            Action::Clean { merge } => {
                let cleaned = clean(&repository, *merge).await.unwrap_or_default();
                assert!(cleaned.problems.is_empty(), "{cleaned:?}");
            }
            Action::DyingClean(changes) => {
                let _ = clean(&dying(*changes), true).await;
                age_lock(&storage).await;
            }
        }
        check(&repository, &model, &format!("after {action:?}")).await;
    }
    let listed = check(&repository, &model, "at the end").await;
    if clean(&repository, true).await.is_ok() {
        assert_eq!(check(&repository, &model, "after the last clean").await, listed);
        check_cache(&storage, "at the end").await;
        // As many disks as restore points: nothing is left over.
        let disks = storage.list(&lineage_dir()).await.unwrap_or_default();
        assert_eq!(disks.iter().filter(|entry| entry.name.ends_with(".vhd")).count(), listed.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn listed_restore_points_never_change(directory in any::<bool>(), actions in proptest::collection::vec(action(), 1..14)) {
        let layout = if directory { DiskLayout::Directory } else { DiskLayout::File };
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(play(layout, actions));
    }
}
