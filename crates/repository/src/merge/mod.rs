//! Merging: the blocks of children move into their oldest ancestor, which then takes the place of the newest child
//! (backup-repository.md §4.8).
//!
//! Crash-safe at every point, for our readers and XO's alike, by four rules:
//! - A child is not touched until the parent has its name. Blocks are copied or linked, never moved, so that the chain
//!   reads the same before, during and after: whatever of a block is half-written in the parent, the child has it whole.
//! - What a structure refers to is durable before the structure: blocks, then block table, then state.
//! - A file grows first and gets a valid footer at its new end, then the blocks go in between.
//! - One rename publishes: of the parent over the target, or of the parent's alias over the target's. Only then
//!   children are removed (H5), and whatever a crash leaves of them has no name that anybody refers to.

pub(crate) mod state;
mod target;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use futures::{StreamExt, stream};
use storage::{Durability, RepoPath, Storage};
use tokio_util::sync::CancellationToken;

use crate::disk::chain::DiskChain;
use crate::disk::directory::resolve_alias;
use crate::disk::{Disk, Trust};
use crate::layout::ALIAS;
use crate::{Error, Progress, Result, Step as Moved, VmLock, Work};
use state::{MergeState, Step, state_path};
use target::Target;

/// How merges work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MergeSettings {
    /// Blocks in flight; each takes 2 MiB, twice that where it is compressed anew.
    pub concurrency: usize,
    /// Blocks between two checkpoints: at most so many are done again after an interruption.
    pub checkpoint: usize,
}

impl Default for MergeSettings {
    fn default() -> Self {
        Self { concurrency: 4, checkpoint: 256 }
    }
}

/// What a merge works with.
pub(crate) struct Context<'a> {
    pub storage: &'a Arc<dyn Storage>,
    pub lock: &'a VmLock,
    pub settings: MergeSettings,
    pub progress: &'a dyn Progress,
    pub cancel: &'a CancellationToken,
}

impl Context<'_> {
    fn go_on(&self) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        self.lock.check(self.lock.vm())
    }
}

/// Merges `members` (parent first, target last) or goes on with a merge that has a state.
///
/// Cancelled, it stops between blocks, and a later call goes on. It must be awaited to its end: a future dropped on the
/// way leaves writes behind that nobody waits for.
pub(crate) async fn run(context: &Context<'_>, members: &[RepoPath], state: Option<MergeState>) -> Result<()> {
    let [parent, .., target] = members else {
        return Err(Error::Refused { path: "a chain".into(), what: "there is nothing to merge".into() });
    };
    if parent.name().ends_with(ALIAS) != target.name().ends_with(ALIAS) {
        let what = format!("{} is stored in another form", parent.name());
        return Err(Error::Refused { path: target.absolute(), what });
    }
    context.go_on()?;
    if state.as_ref().is_none_or(|state| state.step == Step::Blocks) {
        merge_blocks(context, members, state).await?;
    }
    publish(context, members).await
}

async fn merge_blocks(context: &Context<'_>, members: &[RepoPath], state: Option<MergeState>) -> Result<()> {
    let storage = context.storage;
    let state_file = state_path(&members[0])?;
    let parent = Disk::open(storage, &members[0], Trust::Merging).await?;
    let mut children = Vec::new();
    for path in members[1..].iter().rev() {
        children.push(Disk::open(storage, path, Trust::Whole).await?);
    }
    let children = DiskChain::of(children);
    let name = |path: &RepoPath| path.name().to_owned();
    let fresh = MergeState {
        child: children.unique_id(),
        parent: parent.footer().unique_id,
        chain: members.iter().map(name).collect(),
        current_block: 0,
        merged_bytes: 0,
        step: Step::Blocks,
        disk_size: 0,
    };
    // The ids of a resumed merge are those it began with: the parent may have its new one by now.
    let mut state = match state {
        Some(old) if !old.child.is_nil() && !old.parent.is_nil() => MergeState { chain: fresh.chain, ..old },
        Some(old) => MergeState { current_block: old.current_block, ..fresh },
        None => fresh,
    };
    let present = children.blocks();
    let todo: Vec<u32> =
        present.iter().copied().filter(|index| *index >= state.current_block || !parent.has_block(*index)).collect();
    let mut target = Target::new(storage.clone(), parent, &children);
    // Announced before the first change, and again with how far it got at every checkpoint.
    state.current_block = todo.first().copied().unwrap_or(children.block_count());
    state.write(&**storage, &state_file).await?;
    target.prepare(children.block_count(), &todo).await?;
    state.disk_size = target.file_size();

    let total = present.len() as u64;
    let mut done = total - todo.len() as u64;
    for batch in todo.chunks(context.settings.checkpoint.max(1)) {
        context.go_on()?;
        let moves = stream::iter(batch.iter().copied()).map(|index| {
            let (target, children) = (&target, &children);
            async move {
                context.go_on()?;
                target.take_block(children, index).await.map(|()| index)
            }
        });
        let mut moves = moves.buffer_unordered(context.settings.concurrency.max(1));
        // All of them are awaited even when one fails: no write may still be under way when this returns.
        let mut failure = None;
        while let Some(moved) = moves.next().await {
            match moved {
                Ok(index) => {
                    done += 1;
                    state.merged_bytes += vhd::BLOCK_SIZE as u64;
                    let bytes = vhd::block_length(index, children.virtual_size()) as u64;
                    let object = members[members.len() - 1].as_str();
                    context.progress.step(Moved { work: Work::Merge, object, done, total, bytes: bytes * done });
                }
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        drop(moves);
        if let Some(error) = failure {
            return Err(error);
        }
        context.go_on()?;
        target.checkpoint(batch).await?;
        state.current_block = batch.last().map_or(0, |last| last + 1);
        state.write(&**storage, &state_file).await?;
    }
    context.go_on()?;
    target.adopt(children.newest().footer()).await
}

/// The one rename that replaces target by parent, and what is superfluous then.
async fn publish(context: &Context<'_>, members: &[RepoPath]) -> Result<()> {
    let storage = context.storage;
    let (parent, target) = (&members[0], &members[members.len() - 1]);
    let mut data = Vec::new();
    if parent.name().ends_with(ALIAS) {
        let kept = resolve_alias(&**storage, parent).await?;
        for alias in members[1..].iter().filter(|path| path.name().ends_with(ALIAS)) {
            match resolve_alias(&**storage, alias).await {
                Ok(dir) if dir != kept => data.push(dir),
                // Already gone, or, by XO, already pointing where it should: nothing to remove.
                Ok(_) => {}
                Err(error) if error.is_doubt() => return Err(error),
                Err(_) => {}
            }
        }
    }
    context.lock.check(context.lock.vm())?;
    storage.rename(parent, target, Durability::Now).await?;
    for member in &members[1..members.len() - 1] {
        storage.remove(member, Durability::AtSync).await?;
    }
    for dir in data {
        storage.remove_tree(&dir).await?;
    }
    Ok(storage.remove(&state_path(parent)?, Durability::AtSync).await?)
}
