//! A repository with a model beside it: what every restore point must read as.
#![allow(dead_code, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use api::JobMode;
use bytes::Bytes;
use repository::*;
use serde_json::{Map, Value, json};
use storage::{LocalStorage, OpenOptions, RepoPath, Storage};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub const BLOCK: usize = 2 << 20;
pub const VM: &str = "d3b0a7c4-5e6f-4a1b-9c2d-0e1f2a3b4c5d";
pub const JOB: &str = "0c7f6a52-3a0e-4f0e-9a52-6b0d0c8a1f11";
pub const SCHEDULE: &str = "5b1b0d3e-7f0c-4a4e-8f39-2f2f4c6d9e01";
pub const VDI: &str = "c0ffee00-1111-4222-8333-444455556666";
pub const KEY: &str = "OpaqueRef:aaaa1111-0000-4000-8000-000000000001";

/// A directory in memory where the system has one: the tests sync a lot.
pub fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("a temporary directory")
}

pub async fn local(path: &Path) -> Arc<dyn Storage> {
    Arc::new(LocalStorage::open(path.to_owned(), OpenOptions::default()).await.expect("the directory opens"))
}

pub fn lineage() -> Lineage {
    Lineage { vm: VM.into(), job: JOB.into(), vdi: VDI.into() }
}

pub fn lineage_dir() -> RepoPath {
    RepoPath::parse(&format!("xo-vm-backups/{VM}/vdis/{JOB}/{VDI}")).unwrap()
}

/// The snapshot of the n-th backup.
pub fn snapshot(n: u32) -> Uuid {
    uuid::Builder::from_random_bytes(u128::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c834).to_be_bytes())
        .into_uuid()
}

pub fn time(n: u32) -> BackupTime {
    BackupTime::from_millis(1_738_365_300_123 + i64::from(n) * 60_000).unwrap()
}

pub fn id(n: u32) -> PointId {
    PointId::new(VM, time(n)).unwrap()
}

/// Content of one block that no other (seed, index) has, compressible like a real one.
pub fn block(seed: u32, index: u32) -> Vec<u8> {
    let mut content = vec![0; BLOCK];
    for (at, chunk) in content.chunks_mut(4096).enumerate() {
        chunk[..12].copy_from_slice(&[seed.to_le_bytes(), index.to_le_bytes(), (at as u32).to_le_bytes()].concat());
    }
    content
}

pub fn object(value: Value) -> Record {
    let Value::Object(map) = value else { panic!("not an object") };
    map
}

pub fn vm_record() -> Record {
    object(json!({ "uuid": VM, "name_label": "web-01", "name_description": "", "is_a_template": false, "tags": ["prod"] }))
}

/// What a delta backup's metadata needs besides its disk.
pub fn delta_metadata(n: u32, disk: &FinishedDisk, virtual_size: u64) -> BackupMetadata {
    let mut metadata = BackupMetadata::new(JobMode::Delta, time(n), JOB, SCHEDULE, vm_record());
    let vdi =
        object(json!({ "uuid": snapshot(n), "name_label": "system", "virtual_size": virtual_size, "$snapshot_of$uuid": VDI }));
    metadata.vm_snapshot =
        Some(object(json!({ "uuid": snapshot(n + 1000), "suspend_VDI": "OpaqueRef:NULL", "is_a_template": false })));
    metadata.vhds = Some(BTreeMap::from([(KEY.into(), disk.relative.clone())]));
    metadata.vdis = Some(BTreeMap::from([(KEY.into(), vdi)]));
    metadata.vbds = Some(BTreeMap::from([("OpaqueRef:vbd".into(), object(json!({ "VDI": KEY, "device": "xvda" })))]));
    metadata.vifs = Some(BTreeMap::new());
    metadata.is_vhd_differencing = Some(BTreeMap::from([(KEY.into(), disk.differencing)]));
    metadata.size = disk.size;
    metadata
}

/// Content of a disk: its blocks that are not all zeros.
#[derive(Clone, Default, PartialEq)]
pub struct Content {
    pub size: usize,
    blocks: BTreeMap<u32, Arc<Vec<u8>>>,
}

impl Content {
    pub fn write(&mut self, index: u32, content: &[u8]) {
        let length = vhd::block_length(index, self.size as u64);
        match vhd::is_zero(&content[..length]) {
            true => drop(self.blocks.remove(&index)),
            // Whole, with zeros behind the disk's end: it reads so when the disk grows.
            false => {
                drop(self.blocks.insert(index, Arc::new(vhd::pad_block(Bytes::copy_from_slice(&content[..length])).to_vec())))
            }
        }
    }

    /// The bytes of a block, cut at the disk's end.
    pub fn block(&self, index: u32) -> Bytes {
        let length = vhd::block_length(index, self.size as u64);
        let mut bytes = self.blocks.get(&index).map_or_else(Vec::new, |block| block.to_vec());
        bytes.resize(length, 0);
        bytes.into()
    }

    /// All bytes.
    pub fn bytes(&self) -> Vec<u8> {
        (0..vhd::block_count(self.size as u64).unwrap()).flat_map(|index| self.block(index)).collect()
    }
}

/// The live disk, and every restore point's content.
#[derive(Clone, Default)]
pub struct Model {
    pub live: Content,
    pub points: BTreeMap<PointId, Content>,
    pub next: u32,
}

impl Model {
    pub fn new(bytes: usize) -> Self {
        Self { live: Content { size: bytes, ..Content::default() }, points: BTreeMap::new(), next: 1 }
    }

    pub fn write(&mut self, index: u32, content: &[u8]) {
        self.live.write(index, content);
    }
}

/// Backs the live disk up: a delta when there is a base, with `changed` blocks.
pub async fn backup(repository: &Repository, model: &mut Model, changed: &[u32]) -> Result<PointId> {
    let n = model.next;
    model.next += 1;
    let lock = repository.lock(VM).await?;
    let outcome = write_point(repository, &lock, model, n, changed).await;
    let released = lock.release().await;
    let written = outcome?;
    released?;
    Ok(written)
}

async fn write_point(repository: &Repository, lock: &VmLock, model: &mut Model, n: u32, changed: &[u32]) -> Result<PointId> {
    let size = model.live.size as u64;
    let base = match repository.find_base(&lineage(), snapshot(n - 1), size, time(n)).await? {
        BaseSearch::Found(base) => Some(base),
        BaseSearch::None { .. } => None,
    };
    let key = base.is_none();
    let new = NewDisk { lineage: lineage(), time: time(n), virtual_size: size, uuid: snapshot(n), base };
    let writer = repository.create_disk(lock, new).await?;
    let count = writer.block_count();
    // Backwards: writers take any order.
    for index in (0..count).rev() {
        let data = model.live.block(index);
        if if key { !vhd::is_zero(&data) } else { changed.contains(&index) } {
            writer.write_block(index, data).await?;
        }
    }
    let disk = writer.finish().await?;
    // From here on it may be listed, whole.
    model.points.insert(id(n), model.live.clone());
    repository.commit(lock, &delta_metadata(n, &disk, size)).await
}

pub async fn clean(repository: &Repository, merge: bool) -> Result<Cleaned> {
    let lock = repository.lock(VM).await?;
    let cleaned = repository.clean(&lock, CleanOptions { merge, remove: true }, &(), &CancellationToken::new()).await;
    lock.release().await?;
    cleaned
}

pub async fn remove(repository: &Repository, ids: &[PointId]) -> Result<()> {
    let lock = repository.lock(VM).await?;
    let removed = repository.remove(&lock, ids).await;
    lock.release().await?;
    removed
}

/// The whole content of a restore point's disk.
pub async fn read(repository: &Repository, id: &PointId) -> Result<Content> {
    let metadata = repository.metadata(id).await?;
    let (_, relative) = metadata.disks().next().expect("a disk");
    let chain = repository.open_disk(id, relative).await?;
    let mut content = Content { size: chain.virtual_size() as usize, ..Content::default() };
    for index in chain.blocks() {
        content.write(index, &chain.read_block(index).await?.expect("a listed block"));
    }
    Ok(content)
}

/// Every listed restore point reads as the model says; returns them.
pub async fn check(repository: &Repository, model: &Model, when: &str) -> Vec<PointId> {
    let listing = repository.list(VM).await.expect("a listing");
    assert!(listing.unreadable.is_empty(), "{when}: {:?}", listing.unreadable);
    for point in &listing.points {
        let content = read(repository, &point.id).await.unwrap_or_else(|error| panic!("{when}: {}: {}", point.id, error.chain()));
        assert!(content == model.points[&point.id], "{when}: {} reads differently", point.id);
    }
    listing.points.into_iter().map(|point| point.id).collect()
}

/// What XO would see: the cache lists exactly the metadata files, with what they say.
pub async fn check_cache(storage: &Arc<dyn Storage>, when: &str) {
    use std::io::Read;
    let dir = RepoPath::parse(&format!("xo-vm-backups/{VM}")).unwrap();
    let Ok(packed) = storage.read(&dir.join("cache.json.gz").unwrap(), 1 << 30).await else { return };
    let mut text = String::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_string(&mut text).expect("gzip");
    let cache: Map<String, Value> = serde_json::from_str(&text).expect("JSON");
    let entries = storage.list(&dir).await.expect("a listing");
    let files: Vec<String> = entries.into_iter().map(|e| e.name).filter(|n| n.ends_with(".json")).collect();
    assert_eq!(cache.keys().map(|id| id.rsplit('/').next().unwrap()).collect::<Vec<_>>(), files, "{when}");
    for file in files {
        let path = dir.join(&file).unwrap();
        let text = storage.read(&path, 1 << 30).await.expect("metadata");
        let mut expected: Value = serde_json::from_slice(&text).expect("JSON");
        expected["_filename"] = path.absolute().into();
        expected["id"] = path.absolute().into();
        assert_eq!(cache[&path.absolute()], expected, "{when}");
    }
}

/// A dead process's lock, old enough to be taken over.
pub async fn age_lock(storage: &Arc<dyn Storage>) {
    let lock = RepoPath::parse(&format!("xo-vm-backups/{VM}.lock")).unwrap();
    let _ = storage.set_modified(&lock, std::time::UNIX_EPOCH).await;
}

pub fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
