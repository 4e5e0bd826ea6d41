//! A disk as a directory of compressed blocks, reached through an alias (backup-repository.md §3.6, §3.7).

use std::sync::Arc;

use bytes::Bytes;
use storage::{RepoPath, Storage};
use vhd::{BLOCK_BITMAP, BlockBitmap, DynamicHeader, FOOTER_SIZE, Footer, HEADER_SIZE, STORED_BLOCK};

use super::codec::{Filter, read_chunk};
use super::{Trust, format};
use crate::{Error, Result};

/// Longest alias, bytes.
const MAX_ALIAS: u64 = 1024;

/// An open disk directory.
#[derive(Debug)]
pub(crate) struct VhdDirectory {
    pub storage: Arc<dyn Storage>,
    /// The alias: what names the disk.
    pub path: RepoPath,
    /// The directory with the data.
    pub dir: RepoPath,
    pub filter: Filter,
    pub footer: Footer,
    pub header: DynamicHeader,
    pub bitmap: BlockBitmap,
}

/// Where an alias points: a `.vhd` name somewhere in the lineage, no alias itself.
pub(crate) async fn resolve_alias(storage: &dyn Storage, alias: &RepoPath) -> Result<RepoPath> {
    let text = storage.read(alias, MAX_ALIAS).await?;
    let damaged = |what: String| Error::Damaged { path: alias.absolute(), what };
    let text = str::from_utf8(&text).map_err(|_| damaged("the alias is not text".into()))?.trim();
    let lineage = alias.parent().unwrap_or_default();
    let target = lineage.resolve(text).map_err(|error| damaged(format!("the alias points at no usable path: {error}")))?;
    let inside = target.as_str().strip_prefix(lineage.as_str()).is_some_and(|rest| rest.starts_with('/'));
    if !inside || !target.name().ends_with(".vhd") || target.name().ends_with(crate::layout::ALIAS) {
        return Err(damaged(format!("the alias points at {text:?}, which is no disk of this lineage")));
    }
    Ok(target)
}

impl VhdDirectory {
    pub async fn open(storage: &Arc<dyn Storage>, path: &RepoPath, trust: Trust) -> Result<Self> {
        let dir = resolve_alias(&**storage, path).await?;
        Self::read(storage, path, dir, trust).await
    }

    pub async fn read(storage: &Arc<dyn Storage>, path: &RepoPath, dir: RepoPath, trust: Trust) -> Result<Self> {
        let filter = Filter::read(&**storage, &dir.join(vhd::directory::CHUNK_FILTERS)?).await?;
        let chunk = |name, limit| {
            let dir = dir.clone();
            async move { read_chunk(storage, filter, &dir.join(name)?, limit).await }
        };
        let footer = Footer::parse(&chunk(vhd::directory::FOOTER, FOOTER_SIZE).await?).map_err(format(&dir))?;
        let header = DynamicHeader::parse(&chunk(vhd::directory::HEADER, HEADER_SIZE).await?).map_err(format(&dir))?;
        if trust == Trust::Whole {
            header.check_against(&footer).map_err(format(&dir))?;
        }
        // One byte a block is what XO writes; old disks may be followed by some slack.
        let limit = header.max_table_entries as usize + 4096;
        let bitmap =
            BlockBitmap::parse(&chunk(vhd::directory::BAT, limit).await?, header.max_table_entries).map_err(format(&dir))?;
        Ok(Self { storage: storage.clone(), path: path.clone(), dir, filter, footer, header, bitmap })
    }

    pub fn block_path(&self, index: u32) -> Result<RepoPath> {
        Ok(self.dir.resolve(&vhd::directory::block_path(index))?)
    }

    /// The data of a block the bitmap has.
    pub async fn read_block(&self, index: u32) -> Result<Option<Bytes>> {
        if !self.bitmap.contains(index) {
            return Ok(None);
        }
        self.read_block_file(index).await.map(Some)
    }

    /// The data of a block, whatever the bitmap says.
    pub async fn read_block_file(&self, index: u32) -> Result<Bytes> {
        let path = self.block_path(index)?;
        let chunk = read_chunk(&self.storage, self.filter, &path, STORED_BLOCK).await?;
        if chunk.len() != STORED_BLOCK {
            let what = format!("the block has {} bytes instead of {STORED_BLOCK}", chunk.len());
            return Err(Error::Damaged { path: path.absolute(), what });
        }
        Ok(chunk.slice(BLOCK_BITMAP..))
    }

    /// What the disk would take as a file: the number XO puts into `size`, also for directories (§2.1).
    pub fn file_size(&self) -> u64 {
        vhd::FileLayout::new(self.header.max_table_entries).file_size(self.bitmap.count())
    }
}
