//! Disks in a repository: files, directories behind aliases, chains of both.

pub(crate) mod chain;
pub(crate) mod codec;
pub(crate) mod directory;
pub(crate) mod file;
pub(crate) mod writer;

use std::sync::Arc;

use bytes::Bytes;
use storage::{RepoPath, Storage};
use vhd::{DynamicHeader, Footer};

use crate::layout::ALIAS;
use crate::{Error, Result};
use directory::VhdDirectory;
use file::VhdFile;

/// How much an opened disk must prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Everything: header, table, both footers.
    Whole,
    /// The parent of an interrupted merge: its end may be behind its beginning (backup-repository.md §3.5). Opened for
    /// writing where it is a file.
    Merging,
}

/// One disk, open.
#[derive(Debug)]
pub(crate) enum Disk {
    File(VhdFile),
    Directory(VhdDirectory),
}

impl Disk {
    /// Opens what a name in a lineage stands for.
    pub async fn open(storage: &Arc<dyn Storage>, path: &RepoPath, trust: Trust) -> Result<Self> {
        if path.name().ends_with(ALIAS) {
            return Ok(Self::Directory(VhdDirectory::open(storage, path, trust).await?));
        }
        Ok(Self::File(VhdFile::open(storage, path, trust).await?))
    }

    /// What names the disk: the file, or the alias.
    pub fn path(&self) -> &RepoPath {
        match self {
            Self::File(file) => &file.path,
            Self::Directory(directory) => &directory.path,
        }
    }

    pub fn footer(&self) -> &Footer {
        match self {
            Self::File(file) => &file.footer,
            Self::Directory(directory) => &directory.footer,
        }
    }

    pub fn header(&self) -> &DynamicHeader {
        match self {
            Self::File(file) => &file.header,
            Self::Directory(directory) => &directory.header,
        }
    }

    pub fn has_block(&self, index: u32) -> bool {
        match self {
            Self::File(file) => file.table.sector(index).is_some(),
            Self::Directory(directory) => directory.bitmap.contains(index),
        }
    }

    pub fn blocks(&self) -> Vec<u32> {
        match self {
            Self::File(file) => file.table.iter().map(|(index, _)| index).collect(),
            Self::Directory(directory) => directory.bitmap.iter().collect(),
        }
    }

    pub async fn read_block(&self, index: u32) -> Result<Option<Bytes>> {
        match self {
            Self::File(file) => file.read_block(index).await,
            Self::Directory(directory) => directory.read_block(index).await,
        }
    }

    /// Virtual file size, bytes (backup-repository.md §2.1, `size`).
    pub fn file_size(&self) -> u64 {
        match self {
            Self::File(file) => file.file_size(),
            Self::Directory(directory) => directory.file_size(),
        }
    }

    pub fn is_differencing(&self) -> bool {
        self.footer().is_differencing()
    }

    /// The parent's name, as the header has it: relative to the lineage directory. None for a key.
    pub fn parent_path(&self) -> Result<Option<RepoPath>> {
        if !self.is_differencing() {
            return Ok(None);
        }
        let damaged = |what: String| Error::Damaged { path: self.path().absolute(), what };
        let lineage = self.path().parent().unwrap_or_default();
        let name = &self.header().parent_name;
        let parent = lineage.resolve(name).map_err(|error| damaged(format!("its parent's name is unusable: {error}")))?;
        if parent.parent().as_ref() != Some(&lineage) {
            return Err(damaged(format!("its parent {name:?} is not in its lineage")));
        }
        Ok(Some(parent))
    }
}

/// Names the disk in a format error.
pub(crate) fn format(path: &RepoPath) -> impl Fn(vhd::FormatError) -> Error + use<> {
    let path = path.absolute();
    move |source| Error::Format { path: path.clone(), source }
}
