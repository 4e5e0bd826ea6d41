//! A disk with its ancestors, read as one: the newest member that has a block supplies it.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use storage::{RepoPath, Storage};
use uuid::Uuid;

use super::directory::VhdDirectory;
use super::{Disk, Trust};
use crate::merge::state::{MergeState, state_path};
use crate::{Error, Result};

/// More ancestors than any job makes; a longer chain is taken for a mistake.
const MAX_MEMBERS: usize = 4096;

/// An open chain. Reading takes no lock: a merge under way changes no block's content.
#[derive(Debug)]
pub struct DiskChain {
    /// Newest first.
    members: Vec<Disk>,
    /// The member an interrupted or running merge moves blocks into, when there is one.
    merging: Option<usize>,
}

impl DiskChain {
    /// Opens a disk and all its ancestors, checking every link.
    ///
    /// # Errors
    /// [`Error::Format`] and [`Error::Damaged`] for a damaged member, a wrong parent, a circle; [`Error::Storage`] with
    /// `NotFound` for a missing one.
    pub(crate) async fn open(storage: &Arc<dyn Storage>, path: &RepoPath) -> Result<Self> {
        let mut members: Vec<Disk> = Vec::new();
        let mut merging = None;
        let mut seen = HashSet::new();
        let mut next = Some(path.clone());
        while let Some(path) = next {
            if !seen.insert(path.clone()) || members.len() == MAX_MEMBERS {
                let what = "its chain of parents comes back to itself, or does not end".to_owned();
                return Err(Error::Damaged { path: path.absolute(), what });
            }
            let (disk, state) = match Disk::open(storage, &path, Trust::Whole).await {
                Ok(disk) => (disk, None),
                Err(error) if error.is_doubt() || error.is_not_found() => return Err(error),
                Err(error) => {
                    // Its end may be in the hands of a merge, and then it is not judged by it.
                    let state = MergeState::read(&**storage, &state_path(&path)?).await.ok().flatten().ok_or(error)?;
                    (Disk::open(storage, &path, Trust::Merging).await?, Some(state))
                }
            };
            if let Some(child) = members.last()
                && child.header().parent_unique_id != disk.footer().unique_id
            {
                // The last step of a merge gives the parent its target's identity just before its name.
                let state = match state {
                    Some(state) => Some(state),
                    None => MergeState::read(&**storage, &state_path(&path)?).await.ok().flatten(),
                };
                let renamed = state.as_ref().is_some_and(|state| {
                    state.parent == child.header().parent_unique_id && state.child == disk.footer().unique_id
                });
                if !renamed {
                    child.header().check_parent(disk.footer()).map_err(super::format(child.path()))?;
                }
                merging = state.map(|_| members.len());
            } else if let Some(_state) = state {
                merging = Some(members.len());
            }
            next = disk.parent_path()?;
            members.push(disk);
        }
        let chain = Self { members, merging };
        vhd::block_count(chain.virtual_size()).map_err(super::format(chain.members[0].path()))?;
        Ok(chain)
    }

    /// Size of the disk, bytes.
    pub fn virtual_size(&self) -> u64 {
        self.members[0].footer().current_size
    }

    /// uuid of the snapshot VDI it holds.
    pub fn unique_id(&self) -> Uuid {
        self.members[0].footer().unique_id
    }

    /// Blocks of 2 MiB the disk has, present or not.
    pub fn block_count(&self) -> u32 {
        // Checked when it was opened.
        vhd::block_count(self.virtual_size()).unwrap_or(0)
    }

    /// Whether the newest member is a delta.
    pub fn is_differencing(&self) -> bool {
        self.members[0].is_differencing()
    }

    /// Members, the key included.
    pub fn length(&self) -> usize {
        self.members.len()
    }

    /// Paths of the members, newest first.
    pub fn paths(&self) -> impl Iterator<Item = &RepoPath> {
        self.members.iter().map(Disk::path)
    }

    /// Indexes of the blocks any member has, ascending; all others read as zeros.
    pub fn blocks(&self) -> Vec<u32> {
        let count = self.block_count();
        let mut present = vec![false; count as usize];
        for index in self.members.iter().flat_map(Disk::blocks).filter(|index| *index < count) {
            present[index as usize] = true;
        }
        present.iter().zip(0..).filter(|(present, _)| **present).map(|(_, index)| index).collect()
    }

    /// Indexes of the blocks the newest member itself has, ascending: what it was written with.
    pub fn own_blocks(&self) -> Vec<u32> {
        self.members[0].blocks()
    }

    /// A block of exactly 2 MiB, zeros behind the disk's end; none when no member has it. Any number may be read at the
    /// same time; each holds 2 MiB, or twice that while it is decompressed.
    ///
    /// # Errors
    /// When the member that should have it cannot supply it.
    pub async fn read_block(&self, index: u32) -> Result<Option<Bytes>> {
        let Some(position) = self.members.iter().position(|disk| disk.has_block(index)) else { return Ok(None) };
        match self.members[position].read_block(index).await {
            Err(error) if error.is_not_found() => self.moved_block(index, position, error).await.map(Some),
            read => read,
        }
    }

    /// XO merges directories by moving blocks: one missing in a child is in the parent already.
    async fn moved_block(&self, index: u32, position: usize, missing: Error) -> Result<Bytes> {
        let parents = self.members.iter().enumerate().skip(position + 1);
        for (at, disk) in parents {
            let Disk::Directory(directory) = disk else { continue };
            if self.merging == Some(at) || has_state(directory).await {
                return directory.read_block_file(index).await.map_err(|_| missing);
            }
        }
        Err(missing)
    }

    /// All members are directories with this compression.
    pub(crate) fn all_directories(&self, filter: super::codec::Filter) -> bool {
        self.members.iter().all(|disk| matches!(disk, Disk::Directory(directory) if directory.filter == filter))
    }

    /// All members are files.
    pub(crate) fn all_files(&self) -> bool {
        self.members.iter().all(|disk| matches!(disk, Disk::File(_)))
    }

    pub(crate) fn newest(&self) -> &Disk {
        &self.members[0]
    }

    pub(crate) fn members(&self) -> &[Disk] {
        &self.members
    }

    /// Disks that are newest first and known to follow one another.
    pub(crate) fn of(members: Vec<Disk>) -> Self {
        Self { members, merging: None }
    }
}

async fn has_state(directory: &VhdDirectory) -> bool {
    match state_path(&directory.path) {
        Ok(path) => matches!(MergeState::read(&*directory.storage, &path).await, Ok(Some(_))),
        Err(_) => false,
    }
}
