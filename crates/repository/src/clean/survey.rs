//! What is there: everything clean decides on, gathered before anything is decided.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::JobMode;
use storage::{Entry, EntryKind, RepoPath, Storage};

use crate::disk::directory::resolve_alias;
use crate::disk::{Disk, Trust};
use crate::layout::{ALIAS, DATA, VDIS, vm_dir};
use crate::listing::{self, Listing};
use crate::merge::state::{MergeState, parent_of};
use crate::{Error, Point, Result};

/// A VM directory.
#[derive(Debug)]
pub(super) struct Survey {
    pub dir: RepoPath,
    /// Its entries.
    pub entries: Vec<Entry>,
    pub listing: Listing,
    pub lineages: Vec<Lineage>,
    /// What could not be looked at: while there is any, nothing is removed.
    pub doubts: Vec<String>,
}

/// A lineage directory.
#[derive(Debug)]
pub(super) struct Lineage {
    pub dir: RepoPath,
    pub entries: Vec<Entry>,
    /// Disks by file name.
    pub disks: BTreeMap<String, Found>,
    /// Entries of `data/`.
    pub data: Vec<Entry>,
    /// Directories, links and devices with a disk's name: nobody here made them.
    pub strangers: Vec<String>,
    /// Merges under way by the parent's file name; none: the state cannot be understood.
    pub merges: BTreeMap<String, Option<MergeState>>,
}

/// A disk, or what has a disk's name.
#[derive(Debug)]
pub(super) struct Found {
    /// The disk, or why it is none.
    pub disk: Result<Disk, String>,
    /// Name of its parent in the lineage; none for a key or when it is unknown.
    pub parent: Option<String>,
    /// Where its alias points; none for files and unusable aliases.
    pub target: Option<RepoPath>,
}

impl Survey {
    pub async fn take(storage: &Arc<dyn Storage>, vm: &str) -> Result<Self> {
        let dir = vm_dir(vm)?;
        let entries = storage.list(&dir).await?;
        let listing = listing::list(storage, vm, false).await?;
        let mut survey = Self { lineages: Vec::new(), doubts: Vec::new(), listing, entries, dir };
        if survey.entries.iter().any(|entry| entry.name == VDIS) {
            let vdis = survey.dir.join(VDIS)?;
            for job in directories(storage, &vdis).await? {
                for lineage in directories(storage, &job).await? {
                    let lineage = Lineage::take(storage, lineage, &mut survey.doubts).await?;
                    survey.lineages.push(lineage);
                }
            }
        }
        for unreadable in survey.listing.unreadable.iter() {
            survey.doubts.push(format!("the metadata {} cannot be read: {}", unreadable.path, unreadable.reason));
        }
        let incomplete: Vec<String> = survey.listing.points.iter().filter_map(|point| doubt_of(&survey.dir, point)).collect();
        survey.doubts.extend(incomplete);
        Ok(survey)
    }

    /// Disks that restore points refer to, by path.
    pub fn referenced(&self) -> BTreeSet<RepoPath> {
        let points = self.listing.points.iter();
        points.flat_map(|point| point.metadata.disks()).filter_map(|(_, relative)| self.dir.resolve(relative).ok()).collect()
    }
}

impl Lineage {
    async fn take(storage: &Arc<dyn Storage>, dir: RepoPath, doubts: &mut Vec<String>) -> Result<Self> {
        let entries = storage.list(&dir).await?;
        let mut lineage = Self {
            dir,
            disks: BTreeMap::new(),
            data: Vec::new(),
            merges: BTreeMap::new(),
            entries: Vec::new(),
            strangers: Vec::new(),
        };
        for entry in &entries {
            let path = lineage.dir.join(&entry.name)?;
            if let Some(parent) = parent_of(&entry.name) {
                let state = match MergeState::read(&**storage, &path).await {
                    Ok(state) => state,
                    Err(error) if error.is_doubt() => {
                        doubts.push(error.chain());
                        None
                    }
                    Err(_) => None,
                };
                lineage.merges.insert(parent.to_owned(), state);
            }
        }
        for entry in entries.iter().filter(|entry| entry.name.ends_with(".vhd")) {
            if entry.kind != EntryKind::File {
                lineage.strangers.push(entry.name.clone());
                continue;
            }
            let merging = lineage.merges.contains_key(&entry.name);
            let found = Found::take(storage, &lineage.dir.join(&entry.name)?, merging, doubts).await;
            lineage.disks.insert(entry.name.clone(), found);
        }
        if entries.iter().any(|entry| entry.name == DATA && entry.kind == EntryKind::Directory) {
            lineage.data = storage.list(&lineage.dir.join(DATA)?).await?;
        }
        lineage.entries = entries;
        Ok(lineage)
    }
}

impl Found {
    async fn take(storage: &Arc<dyn Storage>, path: &RepoPath, merging: bool, doubts: &mut Vec<String>) -> Self {
        let mut found = Self { disk: Err("it was not opened".into()), parent: None, target: None };
        let mut doubtful = |error: Error| {
            if error.is_doubt() {
                doubts.push(error.chain());
            }
            error.chain()
        };
        if path.name().ends_with(ALIAS) {
            match resolve_alias(&**storage, path).await {
                Ok(target) => found.target = Some(target),
                Err(error) => {
                    found.disk = Err(doubtful(error));
                    return found;
                }
            }
        }
        let disk = match Disk::open(storage, path, Trust::Whole).await {
            Err(error) if merging && !error.is_doubt() => Disk::open(storage, path, Trust::Merging).await,
            opened => opened,
        };
        match disk.and_then(|disk| disk.parent_path().map(|parent| (disk, parent))) {
            Ok((disk, parent)) => {
                found.parent = parent.map(|parent| parent.name().to_owned());
                found.disk = Ok(disk);
            }
            Err(error) => found.disk = Err(doubtful(error)),
        }
        found
    }
}

/// Why it is not known what a restore point refers to, when it is not.
fn doubt_of(dir: &RepoPath, point: &Point) -> Option<String> {
    let metadata = &point.metadata;
    match metadata.mode {
        JobMode::Delta if metadata.vhds.is_none() => return Some(format!("the restore point {} names no disks", point.id)),
        JobMode::Full if metadata.xva.is_none() => return Some(format!("the restore point {} names no archive", point.id)),
        _ => {}
    }
    let mut paths = metadata.disks().map(|(_, relative)| relative).chain(metadata.xva.as_deref());
    let unusable = paths.find(|relative| dir.resolve(relative).is_err())?;
    Some(format!("the restore point {} refers to {unusable:?}, which is no path", point.id))
}

async fn directories(storage: &Arc<dyn Storage>, dir: &RepoPath) -> Result<Vec<RepoPath>> {
    let entries = storage.list(dir).await?;
    let directories = entries.into_iter().filter(|entry| entry.kind == EntryKind::Directory);
    directories.map(|entry| Ok(dir.join(&entry.name)?)).collect()
}
