//! What restore points there are.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use storage::{EntryKind, RepoPath, Storage};

use crate::layout::{BACKUPS, CACHE, vm_dir};
use crate::metadata::MAX_METADATA;
use crate::{BackupMetadata, Error, PointId, Result, cache};

/// Metadata files read at the same time.
const READERS: usize = 8;

/// The restore points of one VM.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// Those whose metadata can be read, oldest first.
    pub points: Vec<Point>,
    /// Metadata files that cannot: nothing is known of what they refer to.
    pub unreadable: Vec<Unreadable>,
}

/// A restore point.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Its identifier.
    pub id: PointId,
    /// Its metadata.
    pub metadata: BackupMetadata,
}

/// A metadata file that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// The file.
    pub path: String,
    /// Why.
    pub reason: String,
    /// The storage failed to deliver it, so that it may well be sound.
    pub doubt: bool,
}

/// Names of the VM directories, sorted. A repository without backups has none.
pub(crate) async fn vms(storage: &dyn Storage) -> Result<Vec<String>> {
    let entries = match storage.list(&RepoPath::root().join(BACKUPS)?).await {
        Ok(entries) => entries,
        Err(error) if error.is_not_found() => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let vm = |name: &str| crate::layout::identifier(name).is_ok();
    Ok(entries.into_iter().filter(|e| e.kind == EntryKind::Directory && vm(&e.name)).map(|e| e.name).collect())
}

/// Reads one metadata file.
pub(crate) async fn read(storage: &dyn Storage, id: &PointId) -> Result<BackupMetadata> {
    let bytes = storage.read(&id.path(), MAX_METADATA).await?;
    BackupMetadata::parse(&bytes).map_err(|reason| Error::Unreadable { path: id.to_string(), reason })
}

/// The restore points of a VM. The names come from the directory; the cache only saves reading the files it knows, and
/// with `cached` off not even that.
pub(crate) async fn list(storage: &Arc<dyn Storage>, vm: &str, cached: bool) -> Result<Listing> {
    let entries = match storage.list(&vm_dir(vm)?).await {
        Ok(entries) => entries,
        Err(error) if error.is_not_found() => return Ok(Listing::default()),
        Err(error) => return Err(error.into()),
    };
    let mut listing = Listing::default();
    let known = match entries.iter().any(|entry| entry.name == CACHE) && cached {
        true => cache::read(&**storage, vm).await?.unwrap_or_default(),
        false => Default::default(),
    };
    let mut unknown = Vec::new();
    for entry in entries.iter().filter(|entry| entry.name.ends_with(".json")) {
        let id = match PointId::parse(&format!("/{BACKUPS}/{vm}/{}", entry.name)) {
            Ok(id) if entry.kind == EntryKind::File => id,
            _ => {
                let path = format!("/{BACKUPS}/{vm}/{}", entry.name);
                listing.unreadable.push(Unreadable { path, reason: "it is not a regular file".into(), doubt: false });
                continue;
            }
        };
        match known.get(&id.to_string()).and_then(cache::metadata) {
            Some(metadata) => listing.points.push(Point { id, metadata }),
            None => unknown.push(id),
        }
    }
    let read = stream::iter(unknown).map(|id| async {
        match read(&**storage, &id).await {
            Ok(metadata) => Ok::<_, Error>(Some(Ok(Point { id, metadata }))),
            // Removed since the directory was listed.
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => {
                let reason = match &error {
                    Error::Unreadable { reason, .. } => reason.clone(),
                    other => other.chain(),
                };
                Ok(Some(Err(Unreadable { path: id.to_string(), reason, doubt: error.is_doubt() })))
            }
        }
    });
    let read: Vec<_> = read.buffer_unordered(READERS).try_collect().await?;
    for point in read.into_iter().flatten() {
        match point {
            Ok(point) => listing.points.push(point),
            Err(unreadable) => listing.unreadable.push(unreadable),
        }
    }
    listing.points.sort_by(|a, b| (a.metadata.timestamp, &a.id).cmp(&(b.metadata.timestamp, &b.id)));
    listing.unreadable.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(listing)
}
