//! What every storage promises, held against a local directory.
#![allow(clippy::disallowed_methods)]

use std::sync::Arc;

use bytes::Bytes;
use storage::fault::CrashPoint;
use storage::{Durability::*, EntryKind, Kind, LocalStorage, OpenOptions, RepoPath, Storage};

async fn local() -> (tempfile::TempDir, LocalStorage) {
    let dir = tempfile::tempdir().unwrap();
    let storage = LocalStorage::open(dir.path().to_owned(), OpenOptions::default()).await.unwrap();
    (dir, storage)
}

fn path(text: &str) -> RepoPath {
    RepoPath::parse(text).unwrap()
}

#[tokio::test]
async fn a_missing_root_is_an_error_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("not there");
    let error = LocalStorage::open(root.clone(), OpenOptions::default()).await.unwrap_err();
    assert!(error.to_string().contains("does not exist; is it mounted?"), "{error}");
    assert!(!root.exists());
    LocalStorage::open(root.clone(), OpenOptions { make_root: true }).await.unwrap();
    assert!(root.is_dir());
}

#[tokio::test]
async fn small_files_are_exclusive_whole_and_private() {
    use std::os::unix::fs::PermissionsExt;
    let (dir, storage) = local().await;
    let file = path("a/b c/🙂.json");
    storage.write_new(&file, Bytes::from_static(b"one"), Now).await.unwrap();
    let again = storage.write_new(&file, Bytes::from_static(b"two"), Now).await.unwrap_err();
    assert!(again.is_already_exists(), "{again}");
    assert_eq!(storage.read(&file, 3).await.unwrap(), "one");
    storage.replace(&file, Bytes::from_static(b"three"), AtSync).await.unwrap();
    assert_eq!(storage.read(&file, 4).await.unwrap_err().kind, Kind::TooLarge { limit: 4 });
    assert_eq!(storage.read(&file, 5).await.unwrap(), "three");
    // No temporary name stays behind, and the directories are ours alone.
    assert_eq!(storage.list(&path("a/b c")).await.unwrap().len(), 1);
    assert_eq!(std::fs::metadata(dir.path().join("a")).unwrap().permissions().mode() & 0o777, 0o700);
    storage.remove(&file, Now).await.unwrap();
    storage.remove(&file, Now).await.unwrap();
    assert!(storage.read(&file, 5).await.unwrap_err().is_not_found());
    storage.sync().await.unwrap();
}

#[tokio::test]
async fn files_of_blocks_take_positioned_writes_from_many_hands() {
    let (_dir, storage) = local().await;
    let file = storage.create(&path("disk")).await.unwrap();
    let writes = (0..32u8).rev().map(|index| {
        let file = file.clone();
        tokio::spawn(async move {
            let parts = vec![Bytes::from(vec![0xff; 3]), Bytes::new(), Bytes::from(vec![index; 7])];
            file.write_at(u64::from(index) * 10, parts).await.unwrap();
        })
    });
    for write in writes.collect::<Vec<_>>() {
        write.await.unwrap();
    }
    file.sync().await.unwrap();
    assert_eq!(file.length().await.unwrap(), 320);
    let reader = storage.open(&path("disk")).await.unwrap();
    for index in 0..32u8 {
        let back = reader.read_at(u64::from(index) * 10, 10).await.unwrap();
        assert_eq!((&back[..3], &back[3..]), (&[0xff; 3][..], &[index; 7][..]));
    }
    assert_eq!(reader.read_at(315, 6).await.unwrap_err().kind, Kind::UnexpectedEnd);
    assert!(storage.create(&path("disk")).await.unwrap_err().is_already_exists());
}

#[tokio::test]
async fn links_and_special_files_are_refused_not_followed() {
    let (dir, storage) = local().await;
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "secret").unwrap();
    std::os::unix::fs::symlink(outside.path(), dir.path().join("way out")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("secret"), dir.path().join("link.json")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.path().join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();

    assert_eq!(storage.read(&path("link.json"), 100).await.unwrap_err().kind, Kind::Symlink);
    assert_eq!(storage.read(&path("way out/secret"), 100).await.unwrap_err().kind, Kind::Symlink);
    assert!(storage.list(&path("way out")).await.is_err());
    assert!(storage.write_new(&path("way out/new"), Bytes::new(), Now).await.is_err());
    assert_eq!(storage.open(&path("pipe")).await.unwrap_err().kind, Kind::NotAFile);
    assert_eq!(storage.stat(&path("link.json")).await.unwrap().kind, EntryKind::Other);
    storage.remove_tree(&path("way out")).await.unwrap();
    assert!(outside.path().join("secret").exists());
    // Replacing a link replaces the link.
    storage.replace(&path("link.json"), Bytes::from_static(b"ours"), Now).await.unwrap();
    assert_eq!(std::fs::read_to_string(outside.path().join("secret")).unwrap(), "secret");
}

#[tokio::test]
async fn shared_content_outlives_its_first_name() {
    let (_dir, storage) = local().await;
    let (one, two) = (path("x/one"), path("y/z/two"));
    storage.write_new(&one, Bytes::from_static(b"content"), AtSync).await.unwrap();
    for _ in 0..2 {
        storage.share(&one, &two).await.unwrap();
    }
    assert_eq!(storage.list(&path("y/z")).await.unwrap().len(), 1);
    storage.replace(&two, Bytes::from_static(b"other"), AtSync).await.unwrap();
    assert_eq!(storage.read(&one, 10).await.unwrap(), "content");
    storage.share(&one, &two).await.unwrap();
    storage.remove(&one, AtSync).await.unwrap();
    assert_eq!(storage.read(&two, 10).await.unwrap(), "content");
}

#[tokio::test]
async fn trees_go_whole_and_listings_never_pretend() {
    let (_dir, storage) = local().await;
    storage.write_new(&path("t/blocks/0/1"), Bytes::from_static(b"1"), AtSync).await.unwrap();
    storage.write_new(&path("t/header"), Bytes::from_static(b"2"), AtSync).await.unwrap();
    storage.remove_tree(&path("t")).await.unwrap();
    storage.remove_tree(&path("t")).await.unwrap();
    assert!(storage.list(&path("t")).await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn a_lock_is_taken_once() {
    let (_dir, storage) = local().await;
    storage.make_lock(&path("vm.lock")).await.unwrap();
    assert!(storage.make_lock(&path("vm.lock")).await.unwrap_err().is_already_exists());
    let then = std::time::UNIX_EPOCH + std::time::Duration::from_millis(1_700_000_000_123);
    storage.set_modified(&path("vm.lock"), then).await.unwrap();
    assert_eq!(storage.stat(&path("vm.lock")).await.unwrap().modified, then);
    storage.remove_lock(&path("vm.lock")).await.unwrap();
    assert!(storage.remove_lock(&path("vm.lock")).await.is_err());
}

#[tokio::test]
async fn the_probe_measures_and_leaves_nothing() {
    let (_dir, storage) = local().await;
    let rates = storage::probe(&storage).await.unwrap();
    assert!(rates.write_rate > 0.0 && rates.read_rate > 0.0);
    assert!(storage.list(&RepoPath::root()).await.unwrap().is_empty());
    let space = storage.space().await.unwrap().unwrap();
    assert!(space.size >= space.used && space.available <= space.size);

    let dead = CrashPoint::after(Arc::new(storage), 0);
    assert_eq!(storage::probe(&dead).await.unwrap_err().step.name(), "write");
}

#[tokio::test]
async fn a_crash_cuts_one_change_and_ends_everything() {
    let (_dir, storage) = local().await;
    let storage: Arc<dyn Storage> = Arc::new(storage);
    let dying = CrashPoint::after(storage.clone(), 1);
    let file = dying.create(&path("disk")).await.unwrap();
    assert!(file.write_at(0, vec![Bytes::from(vec![1; 700]), Bytes::from(vec![2; 700])]).await.is_err());
    assert!(dying.is_dead() && dying.list(&RepoPath::root()).await.is_err());
    assert_eq!(storage.read(&path("disk"), 4096).await.unwrap(), [1; 512].as_slice());
}
