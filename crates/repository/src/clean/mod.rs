//! Clean: what interrupted work left is completed or removed, what retention freed is merged
//! (backup-repository.md §4.9).
//!
//! Unlike XO's, it never removes on doubt: one metadata file that cannot be read, one listing that fails, one disk the
//! storage does not deliver, and nothing of that VM is removed or merged. A restore point that lost a disk is reported
//! and stays. A plan is a value first ([`CleanPlan`]); carrying it out is a separate, dumb step.

mod plan;
mod survey;

use std::collections::BTreeMap;
use std::sync::Arc;

use storage::{Durability, Storage};
use tokio_util::sync::CancellationToken;

use crate::disk::{Disk, Trust};
use crate::layout::vm_dir;
use crate::merge::{self, Context, MergeSettings};
use crate::{BackupMetadata, Point, Progress, Result, VmLock, cache, listing};
pub use plan::{CleanPlan, Merge, Removal};
use survey::Survey;

/// What clean may do; what it may not, it reports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CleanOptions {
    /// Resume and start merges.
    pub merge: bool,
    /// Remove what nothing refers to.
    pub remove: bool,
}

/// What clean did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// What a person should look at.
    pub problems: Vec<String>,
    /// Paths removed, with the reason.
    pub removed: Vec<String>,
    /// Disks that took their ancestors' place.
    pub merged: Vec<String>,
    /// Whether a merge is still to be done: one was due, and the options or a failure forbade it.
    pub merge_due: bool,
}

/// Plans without doing anything.
pub(crate) async fn plan(storage: &Arc<dyn Storage>, vm: &str) -> Result<CleanPlan> {
    Ok(CleanPlan::of(&Survey::take(storage, vm).await?))
}

pub(crate) async fn clean(
    storage: &Arc<dyn Storage>,
    lock: &VmLock,
    options: CleanOptions,
    settings: MergeSettings,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<Cleaned> {
    let vm = lock.vm();
    let mut cleaned = Cleaned::default();
    let context = Context { storage, lock, settings, progress, cancel };
    lock.check(vm)?;

    let mut plan = plan(storage, vm).await?;
    if options.merge && !plan.resume.is_empty() {
        merge_all(&context, &plan.resume, &mut cleaned).await?;
        plan = self::plan(storage, vm).await?;
    }
    cleaned.problems.append(&mut plan.problems);
    // What must go before a merge, such as a branch nobody needs, goes first; what a merge makes superfluous goes with it.
    if options.remove {
        for removal in &plan.remove {
            lock.check(vm)?;
            if cancel.is_cancelled() {
                return Err(crate::Error::Cancelled);
            }
            match removal.tree {
                true => storage.remove_tree(&removal.path).await?,
                false => storage.remove(&removal.path, Durability::AtSync).await?,
            }
            tracing::info!(path = %removal.path, reason = removal.reason, "removed from a repository");
            cleaned.removed.push(format!("{}: {}", removal.path, removal.reason));
        }
    }
    if options.merge {
        merge_all(&context, &plan.merge, &mut cleaned).await?;
    } else {
        cleaned.merge_due = !plan.merge.is_empty() || !plan.resume.is_empty();
    }
    correct(storage, lock, &cleaned).await?;
    Ok(cleaned)
}

/// One chain after the other. A merge that cannot be done is a problem of its own, not the end of the others.
async fn merge_all(context: &Context<'_>, merges: &[Merge], cleaned: &mut Cleaned) -> Result<()> {
    for merge in merges {
        match merge::run(context, &merge.members, merge.state.clone()).await {
            Ok(()) => cleaned.merged.extend(merge.members.last().map(ToString::to_string)),
            Err(error @ (crate::Error::Cancelled | crate::Error::LockLost { .. })) => return Err(error),
            Err(error) if error.is_doubt() => return Err(error),
            Err(error) => {
                cleaned.merge_due = true;
                cleaned.problems.push(format!("{} cannot be merged: {}", merge.members[0], error.chain()));
            }
        }
    }
    Ok(())
}

/// Makes metadata say the truth about disks that merges changed (H4), and the cache about the metadata (H8).
async fn correct(storage: &Arc<dyn Storage>, lock: &VmLock, cleaned: &Cleaned) -> Result<()> {
    let vm = lock.vm();
    let mut listing = listing::list(storage, vm, false).await?;
    let mut dirty = false;
    for point in &mut listing.points {
        let Some(truth) = truth(storage, vm, point, cleaned).await? else { continue };
        lock.check(vm)?;
        if !dirty {
            cache::invalidate(&**storage, vm).await?;
            dirty = true;
        }
        storage.replace(&point.id.path(), truth.to_bytes().into(), Durability::Now).await?;
        point.metadata = truth;
    }
    lock.check(vm)?;
    // A metadata file that cannot be read may only be so today: a cache without it would hide it from XO.
    if !listing.unreadable.is_empty() {
        return cache::invalidate(&**storage, vm).await;
    }
    let entries: cache::Entries =
        listing.points.iter().map(|point| (point.id.to_string(), cache::entry(&point.id, &point.metadata))).collect();
    let known = cache::read(&**storage, vm).await?;
    let same = |known: &cache::Entries| {
        known.len() == entries.len()
            && entries.keys().all(|id| known.get(id).and_then(cache::metadata) == cache::metadata(&entries[id]))
    };
    if known.as_ref().is_some_and(same) || (entries.is_empty() && known.is_none()) {
        return Ok(());
    }
    cache::write(&**storage, vm, &entries).await
}

/// The metadata as it should be; none when it is so already, or when a disk cannot be opened.
async fn truth(storage: &Arc<dyn Storage>, vm: &str, point: &Point, cleaned: &Cleaned) -> Result<Option<BackupMetadata>> {
    if point.metadata.vhds.is_none() {
        return Ok(None);
    }
    let (mut differencing, mut size, mut merged) = (BTreeMap::new(), 0, false);
    for (key, relative) in point.metadata.disks() {
        let Ok(path) = vm_dir(vm)?.resolve(relative) else { return Ok(None) };
        let Ok(disk) = Disk::open(storage, &path, Trust::Whole).await else { return Ok(None) };
        differencing.insert(key.to_owned(), disk.is_differencing());
        size += disk.file_size();
        merged |= cleaned.merged.contains(&path.to_string());
    }
    let claimed = point.metadata.is_vhd_differencing.as_ref();
    if !merged && claimed.is_none_or(|claimed| *claimed == differencing) {
        return Ok(None);
    }
    Ok(Some(BackupMetadata { is_vhd_differencing: Some(differencing), size, ..point.metadata.clone() }))
}
