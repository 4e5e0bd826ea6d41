//! The process dies at every point of every operation, one after the other. Each time, at once and without any repair,
//! every listed restore point must read as before; a clean must then complete or remove what was begun, leave nothing
//! to do for a second one, and the next backup must build on what is there.
#![allow(clippy::disallowed_methods)]

mod common;

use std::path::Path;
use std::sync::Arc;

use common::*;
use repository::{DiskLayout, MergeSettings, Repository, Result};
use storage::Storage;
use storage::fault::CrashPoint;

const DISK: usize = 3 * BLOCK + 1_000_000;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Operation {
    /// A delta is written and committed.
    Backup,
    /// The oldest restore point goes and its disk is merged into the next.
    MergeOne,
    /// The two oldest go: one merge of three disks.
    MergeTwo,
    /// One in the middle goes.
    MergeMiddle,
    /// All but the oldest go, as a user removes.
    Remove,
    /// The disk has grown, and the key is merged into the delta written since.
    MergeGrown,
}

fn open(storage: Arc<dyn Storage>, layout: DiskLayout) -> Repository {
    Repository::open(storage, layout).with_merges(MergeSettings { concurrency: 2, checkpoint: 2 })
}

async fn prepare(root: &Path, layout: DiskLayout, operation: Operation) -> Model {
    let repository = open(local(root).await, layout);
    let mut model = Model::new(DISK);
    for (n, changed) in [vec![0, 2, 3], vec![1, 2], vec![2], vec![3]].into_iter().enumerate() {
        if n == 1 && operation == Operation::MergeGrown {
            // As many blocks as a sector of the table has entries, and more.
            model.live.size = 200 * BLOCK;
        }
        for index in &changed {
            model.write(*index, &block(n as u32 + 1, *index));
        }
        backup(&repository, &mut model, &changed).await.unwrap();
    }
    model.write(0, &block(9, 0));
    model.write(1, &vec![0; BLOCK]);
    model
}

async fn run(repository: &Repository, model: &mut Model, operation: Operation) -> Result<()> {
    match operation {
        Operation::Backup => backup(repository, model, &[0, 1]).await.map(drop),
        Operation::MergeOne | Operation::MergeGrown => {
            remove(repository, &[id(1)]).await?;
            clean(repository, true).await.map(drop)
        }
        Operation::MergeTwo => {
            remove(repository, &[id(1), id(2)]).await?;
            clean(repository, true).await.map(drop)
        }
        Operation::MergeMiddle => {
            remove(repository, &[id(2)]).await?;
            clean(repository, true).await.map(drop)
        }
        Operation::Remove => {
            for n in 2..=4 {
                repository.remove_point(&id(n)).await?;
            }
            Ok(())
        }
    }
}

fn removed(operation: Operation) -> Vec<u32> {
    match operation {
        Operation::Backup => vec![],
        Operation::MergeOne | Operation::MergeGrown => vec![1],
        Operation::MergeTwo => vec![1, 2],
        Operation::MergeMiddle => vec![2],
        Operation::Remove => vec![2, 3, 4],
    }
}

async fn die_everywhere(layout: DiskLayout, operation: Operation) {
    let template = scratch();
    let before = prepare(template.path(), layout, operation).await;

    // Once to its end, to know how many changes there are and what must come out.
    let whole = scratch();
    copy_tree(template.path(), whole.path());
    let counter = CrashPoint::after(local(whole.path()).await, u64::MAX);
    run(&open(Arc::new(counter.clone()), layout), &mut before.clone(), operation).await.unwrap();
    let total = counter.changes();
    assert!(total > 5, "{operation:?} makes only {total} changes");

    for crash_at in 0..total {
        let when = format!("{operation:?}, {layout:?}, change {crash_at} of {total}");
        let dir = scratch();
        copy_tree(template.path(), dir.path());
        let plain = local(dir.path()).await;
        let mut model = before.clone();
        let dying = CrashPoint::after(plain.clone(), crash_at);
        let outcome = run(&open(Arc::new(dying.clone()), layout), &mut model, operation).await;
        assert!(dying.is_dead() || outcome.is_ok(), "{when}: {outcome:?}");

        let repository = open(plain.clone(), layout);
        let gone = removed(operation);
        let listed = check(&repository, &model, &format!("{when}, before any repair")).await;
        for n in (1..=4).filter(|n| !gone.contains(n)) {
            assert!(listed.contains(&id(n)), "{when}: {} is not listed", id(n));
        }
        check_cache(&plain, &when).await;

        age_lock(&plain).await;
        let cleaned = clean(&repository, true).await.unwrap_or_else(|error| panic!("{when}: {}", error.chain()));
        assert!(cleaned.problems.is_empty(), "{when}: {:?}", cleaned.problems);
        assert_eq!(check(&repository, &model, &format!("{when}, after a clean")).await, listed, "{when}");
        check_cache(&plain, &when).await;
        let again = clean(&repository, true).await.unwrap();
        assert_eq!(again, repository::Cleaned::default(), "{when}: something was left to do");

        // Life goes on: a later backup builds on the newest restore point of all.
        model.next = 6;
        if listed.contains(&id(5)) || listed.last() == Some(&id(4)) {
            let newest = if listed.contains(&id(5)) { 5 } else { 4 };
            let size = model.live.size as u64;
            let base = repository.find_base(&lineage(), snapshot(newest), size, time(6)).await.unwrap();
            assert!(matches!(base, repository::BaseSearch::Found(_)), "{when}: {base:?}");
        }
        backup(&repository, &mut model, &[0, 1]).await.unwrap();
        check(&repository, &model, &format!("{when}, after the next backup")).await;
    }
}

macro_rules! crashes {
    ($($name:ident: $layout:ident, $operation:ident;)*) => { $(
        #[tokio::test]
        async fn $name() {
            die_everywhere(DiskLayout::$layout, Operation::$operation).await;
        }
    )* };
}

crashes! {
    a_backup_to_a_file: File, Backup;
    a_backup_to_a_directory: Directory, Backup;
    a_merge_of_two_files: File, MergeOne;
    a_merge_of_two_directories: Directory, MergeOne;
    a_merge_of_three_files: File, MergeTwo;
    a_merge_of_three_directories: Directory, MergeTwo;
    a_merge_in_the_middle_of_files: File, MergeMiddle;
    a_merge_in_the_middle_of_directories: Directory, MergeMiddle;
    a_merge_after_a_file_grew: File, MergeGrown;
    removals_of_files: File, Remove;
    removals_of_directories: Directory, Remove;
}
