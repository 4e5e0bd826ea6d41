//! Merges of directories that XO or an older configuration made: grown disks (H3), mixed compression (H6).
#![allow(clippy::disallowed_methods)]

use std::path::Path;

use bytes::Bytes;
use storage::{LocalStorage, OpenOptions};
use uuid::Uuid;

use super::*;
use crate::disk::codec::Filter;
use crate::disk::writer::{Base, DiskWriter};
use crate::{BackupTime, DiskLayout, Lineage, NewDisk};

const IDS: [u128; 2] = [0x1111_1111_1111_4111_8111_1111_1111_1111, 0x2222_2222_2222_4222_8222_2222_2222_2222];

fn content(seed: u8) -> Bytes {
    vec![seed; vhd::BLOCK_SIZE].into()
}

async fn write(storage: &Arc<dyn Storage>, n: usize, blocks: u64, base: Option<Base>, data: &[(u32, u8)]) -> RepoPath {
    let lineage = Lineage { vm: "vm".into(), job: "job".into(), vdi: "vdi".into() };
    let time = BackupTime::from_millis(n as i64 * 1000).unwrap();
    let virtual_size = blocks * vhd::BLOCK_SIZE as u64;
    let new = NewDisk { lineage, time, virtual_size, uuid: Uuid::from_u128(IDS[n]), base };
    let writer = DiskWriter::create(storage.clone(), DiskLayout::Directory, new).await.unwrap();
    for (index, seed) in data {
        writer.write_block(*index, content(*seed)).await.unwrap();
    }
    writer.finish().await.unwrap().path
}

/// Compresses all chunks of a disk directory anew.
async fn recompress(root: &Path, dir: &RepoPath, filter: Filter) {
    let dir = root.join(dir.as_str());
    for chunk in ["header", "footer", "bat", "blocks/0/0", "blocks/0/2"] {
        let packed = std::fs::read(dir.join(chunk)).unwrap().into();
        let path = RepoPath::parse(chunk).unwrap();
        let plain = Filter::Brotli.decode(&path, packed, vhd::STORED_BLOCK).await.unwrap();
        std::fs::write(dir.join(chunk), filter.encode(&path, vec![plain]).await.unwrap()).unwrap();
    }
    match filter {
        Filter::None => std::fs::remove_file(dir.join("chunk-filters.json")).unwrap(),
        other => std::fs::write(dir.join("chunk-filters.json"), other.declaration()).unwrap(),
    }
}

#[tokio::test]
async fn directories_that_grew_and_are_compressed_differently_merge() {
    for filter in [Filter::Brotli, Filter::Gzip, Filter::None] {
        let root = tempfile::tempdir().unwrap();
        let storage: Arc<dyn Storage> =
            Arc::new(LocalStorage::open(root.path().to_owned(), OpenOptions::default()).await.unwrap());
        let parent = write(&storage, 0, 3, None, &[(0, 1), (2, 2)]).await;
        recompress(root.path(), &resolve_alias(&*storage, &parent).await.unwrap(), filter).await;
        let base = Base { name: parent.name().to_owned(), uuid: Uuid::from_u128(IDS[0]), length: 1 };
        let target = write(&storage, 1, 20, Some(base), &[(2, 3), (17, 4)]).await;

        let lock = VmLock::take(storage.clone(), "vm", RepoPath::parse("xo-vm-backups/vm.lock").unwrap()).await.unwrap();
        let (settings, cancel) = (MergeSettings::default(), CancellationToken::new());
        let context = Context { storage: &storage, lock: &lock, settings, progress: &(), cancel: &cancel };
        run(&context, &[parent.clone(), target.clone()], None).await.unwrap();

        let merged = DiskChain::open(&storage, &target).await.unwrap();
        assert_eq!((merged.length(), merged.virtual_size()), (1, 20 * vhd::BLOCK_SIZE as u64), "{filter:?}");
        assert_eq!(merged.blocks(), [0, 2, 17]);
        for (index, seed) in [(0, 1), (2, 3), (17, 4)] {
            assert!(merged.read_block(index).await.unwrap().unwrap() == content(seed), "{filter:?}, block {index}");
        }
        assert!(storage.stat(&parent).await.is_err() && storage.stat(&state_path(&parent).unwrap()).await.is_err());
    }
}

#[tokio::test]
async fn a_cancelled_merge_stops_between_blocks_and_goes_on_later() {
    let root = tempfile::tempdir().unwrap();
    let storage: Arc<dyn Storage> = Arc::new(LocalStorage::open(root.path().to_owned(), OpenOptions::default()).await.unwrap());
    let parent = write(&storage, 0, 6, None, &[(0, 1)]).await;
    let base = Base { name: parent.name().to_owned(), uuid: Uuid::from_u128(IDS[0]), length: 1 };
    let target = write(&storage, 1, 6, Some(base), &[(0, 2), (1, 3), (2, 4), (3, 5), (4, 6)]).await;
    let lock = VmLock::take(storage.clone(), "vm", RepoPath::parse("xo-vm-backups/vm.lock").unwrap()).await.unwrap();
    let settings = MergeSettings { concurrency: 1, checkpoint: 2 };
    let members = [parent.clone(), target.clone()];

    let cancel = CancellationToken::new();
    let stop = |step: Moved<'_>| {
        if step.done == 3 {
            cancel.cancel()
        }
    };
    let context = Context { storage: &storage, lock: &lock, settings, progress: &stop, cancel: &cancel };
    assert!(matches!(run(&context, &members, None).await, Err(Error::Cancelled)));
    let state = MergeState::read(&*storage, &state_path(&parent).unwrap()).await.unwrap().unwrap();
    assert_eq!((state.step, state.current_block, state.chain.len()), (Step::Blocks, 2, 2));

    let never = CancellationToken::new();
    let seen = std::sync::Mutex::new(Vec::new());
    let watch = |step: Moved<'_>| seen.lock().unwrap().push((step.done, step.total));
    let context = Context { storage: &storage, lock: &lock, settings, progress: &watch, cancel: &never };
    run(&context, &members, Some(state)).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), [(3, 5), (4, 5), (5, 5)]);
    let merged = DiskChain::open(&storage, &target).await.unwrap();
    for index in 0..5 {
        assert!(merged.read_block(index).await.unwrap().unwrap() == content(index as u8 + 2));
    }
}
