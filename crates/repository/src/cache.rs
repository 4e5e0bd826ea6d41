//! The listing cache of a VM directory, which XO trusts blindly (backup-repository.md §4.10, H8).
//!
//! Around every change it is removed first and written last, so that a crash in between leaves none, and XO rebuilds it.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use bytes::Bytes;
use serde_json::{Map, Value};
use storage::{Durability, RepoPath, Storage};

use crate::layout::{CACHE, vm_dir};
use crate::{BackupMetadata, PointId, Result};

/// Largest cache that is read, bytes, packed and unpacked: some thousands of restore points.
const MAX_CACHE: u64 = 256 << 20;

/// Entries by identifier.
pub(crate) type Entries = BTreeMap<String, Map<String, Value>>;

fn path(vm: &str) -> Result<RepoPath> {
    Ok(vm_dir(vm)?.join(CACHE)?)
}

/// The cache's entries; none when there is no cache, or none that can be read.
pub(crate) async fn read(storage: &dyn Storage, vm: &str) -> Result<Option<Entries>> {
    let packed = match storage.read(&path(vm)?, MAX_CACHE).await {
        Ok(packed) => packed,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => {
            tracing::warn!(%error, "a listing cache is not used");
            return Ok(None);
        }
    };
    Ok(tokio::task::spawn_blocking(move || unpack(&packed)).await.ok().flatten())
}

fn unpack(packed: &[u8]) -> Option<Entries> {
    let mut text = Vec::new();
    flate2::read::MultiGzDecoder::new(packed).take(MAX_CACHE + 1).read_to_end(&mut text).ok()?;
    if text.len() as u64 > MAX_CACHE {
        return None;
    }
    serde_json::from_slice(&text).ok()
}

/// Removes the cache: what follows changes the directory.
pub(crate) async fn invalidate(storage: &dyn Storage, vm: &str) -> Result<()> {
    Ok(storage.remove(&path(vm)?, Durability::Now).await?)
}

/// Writes the cache anew.
pub(crate) async fn write(storage: &dyn Storage, vm: &str, entries: &Entries) -> Result<()> {
    let text = serde_json::to_vec(entries).expect("maps with text keys always serialise");
    let packed = tokio::task::spawn_blocking(move || {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&text).and_then(|()| encoder.finish()).expect("writing to memory does not fail")
    });
    match packed.await {
        Ok(packed) => Ok(storage.replace(&path(vm)?, Bytes::from(packed), Durability::AtSync).await?),
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// A restore point as an entry.
pub(crate) fn entry(id: &PointId, metadata: &BackupMetadata) -> Map<String, Value> {
    let Ok(Value::Object(mut entry)) = serde_json::to_value(metadata) else { return Map::new() };
    entry.insert("_filename".into(), id.to_string().into());
    entry.insert("id".into(), id.to_string().into());
    entry
}

/// A restore point from an entry, without the fields only the cache has.
pub(crate) fn metadata(entry: &Map<String, Value>) -> Option<BackupMetadata> {
    let mut entry = entry.clone();
    for own in ["_filename", "id", "isImmutable"] {
        entry.remove(own);
    }
    BackupMetadata::parse(&serde_json::to_vec(&entry).ok()?).ok()
}
