//! Reading a restore point back: every structure, every link, every block (of a full backup: the whole stream).

use std::collections::BTreeSet;
use std::sync::Arc;

use api::JobMode;
use futures::{StreamExt, stream};
use md5::{Digest, Md5};
use storage::{RepoPath, Storage};
use tokio_util::sync::CancellationToken;

use crate::disk::chain::DiskChain;
use crate::layout::vm_dir;
use crate::xva_file::{CHECKSUM, MD5_MARK, hex};
use crate::{BackupMetadata, Error, PointId, Progress, Result, Step, Work};

/// Blocks read at the same time.
const READERS: usize = 4;
/// Faulty blocks of one disk that are named one by one.
const MAX_FAULTS: usize = 32;
/// Bytes of an XVA read at once.
const PIECE: u64 = 4 << 20;

/// What a verify found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verification {
    /// Disks (or archives) read.
    pub disks: usize,
    /// Blocks read.
    pub blocks: u64,
    /// Bytes of content read.
    pub bytes: u64,
    /// What is wrong, each naming disk and block; empty when the restore point is sound.
    pub faults: Vec<String>,
}

impl Verification {
    /// Whether nothing was found.
    pub fn is_sound(&self) -> bool {
        self.faults.is_empty()
    }
}

pub(crate) async fn verify(
    storage: &Arc<dyn Storage>,
    id: &PointId,
    metadata: &BackupMetadata,
    progress: &dyn Progress,
    cancel: &CancellationToken,
) -> Result<Verification> {
    let mut found = Verification::default();
    let dir = vm_dir(id.vm())?;
    if metadata.mode == JobMode::Full {
        match metadata.xva.as_deref().map(|xva| dir.resolve(xva)) {
            Some(Ok(path)) => verify_xva(storage, &path, metadata.size, progress, cancel, &mut found).await?,
            _ => found.faults.push("the metadata names no usable archive".into()),
        }
        return Ok(found);
    }
    if metadata.disks().next().is_none() {
        found.faults.push("the metadata names no disk".into());
    }
    let mut chains = Vec::new();
    for (key, relative) in metadata.disks() {
        let opened = match dir.resolve(relative) {
            Ok(path) => DiskChain::open(storage, &path).await,
            Err(error) => Err(error.into()),
        };
        match opened {
            Ok(chain) => {
                let record = metadata.vdis.as_ref().and_then(|vdis| vdis.get(key)?.get("uuid")?.as_str());
                if record.is_some_and(|uuid| uuid != chain.unique_id().to_string()) {
                    found.faults.push(format!(
                        "{relative}: it holds disk {}, not {}",
                        chain.unique_id(),
                        record.unwrap_or_default()
                    ));
                }
                chains.push((relative, chain));
            }
            Err(error) if error.is_doubt() => return Err(error),
            Err(error) => found.faults.push(format!("{relative}: {}", error.chain())),
        }
    }
    let total = chains.iter().map(|(_, chain)| chain.blocks().len() as u64).sum();
    for (relative, chain) in &chains {
        verify_disk(relative, chain, total, progress, cancel, &mut found).await?;
    }
    Ok(found)
}

async fn verify_disk(
    relative: &str,
    chain: &DiskChain,
    total: u64,
    progress: &dyn Progress,
    cancel: &CancellationToken,
    found: &mut Verification,
) -> Result<()> {
    let reads = stream::iter(chain.blocks()).map(|index| async move {
        if cancel.is_cancelled() {
            return (index, Err(Error::Cancelled));
        }
        (index, chain.read_block(index).await)
    });
    let mut reads = reads.buffer_unordered(READERS);
    let mut faulty = BTreeSet::new();
    while let Some((index, read)) = reads.next().await {
        match read {
            Err(error) if error.is_doubt() => return Err(error),
            Err(error) => {
                faulty.insert(index);
                if faulty.len() <= MAX_FAULTS {
                    found.faults.push(format!("{relative}, block {index}: {}", error.chain()));
                }
            }
            Ok(_) => {}
        }
        found.blocks += 1;
        found.bytes += vhd::block_length(index, chain.virtual_size()) as u64;
        progress.step(Step { work: Work::Verify, object: relative, done: found.blocks, total, bytes: found.bytes });
    }
    if faulty.len() > MAX_FAULTS {
        found.faults.push(format!("{relative}: {} blocks more", faulty.len() - MAX_FAULTS));
    }
    found.disks += 1;
    Ok(())
}

async fn verify_xva(
    storage: &Arc<dyn Storage>,
    path: &RepoPath,
    size: u64,
    progress: &dyn Progress,
    cancel: &CancellationToken,
    found: &mut Verification,
) -> Result<()> {
    let file = match storage.open(path).await {
        Ok(file) => file,
        Err(error) => {
            let error = Error::from(error);
            if error.is_doubt() {
                return Err(error);
            }
            found.faults.push(error.chain());
            return Ok(());
        }
    };
    let length = file.length().await?;
    if length != size {
        found.faults.push(format!("{path}: it has {length} bytes, the metadata says {size}"));
    }
    let mut checks = Some((Md5::new(), xva::Validator::new()));
    let mut position = 0;
    while position < length {
        if cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let piece = file.read_at(position, PIECE.min(length - position) as usize).await?;
        position += piece.len() as u64;
        let Some((mut md5, mut validator)) = checks.take() else { break };
        let checked = tokio::task::spawn_blocking(move || {
            md5.update(&piece);
            validator.push(&piece).map(|()| (md5, validator))
        });
        match checked.await {
            Ok(Ok(sound)) => checks = Some(sound),
            Ok(Err(error)) => {
                found.faults.push(Error::Xva { path: path.absolute(), source: error }.chain());
                break;
            }
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => return Err(Error::Cancelled),
        }
        found.bytes = position;
        progress.step(Step { work: Work::Verify, object: path.as_str(), done: position, total: length, bytes: position });
    }
    found.disks += 1;
    let Some((md5, validator)) = checks else { return Ok(()) };
    if let Err(source) = validator.finish() {
        found.faults.push(Error::Xva { path: path.absolute(), source }.chain());
    }
    let computed = hex(&md5.finalize());
    let beside = path.parent().unwrap_or_default().join(&format!("{}{CHECKSUM}", path.name()))?;
    match storage.read(&beside, 1024).await {
        Ok(text) => {
            let text = String::from_utf8_lossy(&text);
            // Other algorithms are found in old repositories; theirs is not computed here.
            if let Some(expected) = text.trim().strip_prefix(MD5_MARK)
                && !expected.eq_ignore_ascii_case(&computed)
            {
                let expected = expected.to_owned();
                found.faults.push(Error::Checksum { path: path.absolute(), found: computed, expected }.to_string());
            }
        }
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}
