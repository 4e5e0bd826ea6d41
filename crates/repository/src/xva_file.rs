//! The data of a full backup: one stream, checked while it is written (backup-repository.md §5.5, §5.6; H19).

use std::sync::Arc;

use bytes::Bytes;
use md5::{Digest, Md5};
use storage::{DiskFile, Durability, RepoPath, Storage};

use crate::{BackupTime, Error, PointId, Result};

/// What follows the name of a file with its checksum.
pub(crate) const CHECKSUM: &str = ".checksum";
/// How a checksum file begins when it is an MD5.
pub(crate) const MD5_MARK: &str = "$1$$";

/// An XVA that is whole and has its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FinishedXva {
    /// The path as metadata holds it (`xva`): `./<timestamp>.xva`.
    pub relative: String,
    /// Bytes stored: `size` of the metadata.
    pub size: u64,
    /// MD5 of the stored bytes, hexadecimal.
    pub md5: String,
    /// What the archive was.
    pub summary: xva::Summary,
}

/// An XVA being written, in order. Memory: the pieces being written, and what the checks keep (a chunk's checksum state).
#[derive(Debug)]
pub struct XvaWriter {
    storage: Arc<dyn Storage>,
    file: Arc<dyn DiskFile>,
    temporary: RepoPath,
    path: RepoPath,
    position: u64,
    checks: Option<Checks>,
}

#[derive(Debug)]
struct Checks {
    md5: Md5,
    validator: xva::Validator,
}

impl Checks {
    fn push(&mut self, data: &[u8]) -> Result<(), xva::XvaError> {
        self.md5.update(data);
        self.validator.push(data)
    }
}

impl XvaWriter {
    pub(crate) async fn create(storage: Arc<dyn Storage>, id: &PointId) -> Result<Self> {
        let path = id.sibling(".xva");
        match storage.stat(&path).await {
            Ok(_) => return Err(Error::PointExists(id.to_string())),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
        let dir = path.parent().unwrap_or_default();
        let temporary = dir.join(&format!(".{}.{}", BackupTime::now().millis(), path.name()))?;
        let file = storage.create(&temporary).await?;
        let checks = Some(Checks { md5: Md5::new(), validator: xva::Validator::new() });
        Ok(Self { storage, file, temporary, path, position: 0, checks })
    }

    /// Appends to the stream, in one go and without joining them, the pieces as they came: about a MiB in all is a good
    /// measure. Writing and checking go side by side.
    ///
    /// # Errors
    /// [`Error::Xva`] as soon as the stream is not an XVA, [`Error::Storage`]. Then it can only be aborted.
    pub async fn write(&mut self, pieces: Vec<Bytes>) -> Result<()> {
        let Some(mut checks) = self.checks.take() else {
            return Err(Error::Damaged { path: self.path.absolute(), what: "the stream was faulty before".into() });
        };
        let length: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        let looked_at = pieces.clone();
        let check =
            tokio::task::spawn_blocking(move || looked_at.iter().try_for_each(|piece| checks.push(piece)).map(|()| checks));
        let written = self.file.write_at(self.position, pieces).await;
        let checked = match check.await {
            Ok(checked) => checked,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => return Err(Error::Cancelled),
        };
        self.checks = Some(checked.map_err(|source| Error::Xva { path: self.path.absolute(), source })?);
        written?;
        self.position += length;
        Ok(())
    }

    /// Bytes written so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Completes the file: a stream that is not a whole XVA is refused and removed. Durable with the commit.
    ///
    /// # Errors
    /// [`Error::Xva`] for a truncated or damaged stream, [`Error::Storage`].
    pub async fn finish(mut self) -> Result<FinishedXva> {
        let finished = self.publish().await;
        if finished.is_err() {
            self.clear().await;
        }
        finished
    }

    /// Removes what was written.
    pub async fn abort(self) {
        self.clear().await;
    }

    async fn clear(&self) {
        if let Err(error) = self.storage.remove(&self.temporary, Durability::AtSync).await {
            tracing::warn!(%error, "a part of a full backup stays behind until the next clean");
        }
    }

    async fn publish(&mut self) -> Result<FinishedXva> {
        let Some(Checks { md5, validator }) = self.checks.take() else {
            return Err(Error::Damaged { path: self.path.absolute(), what: "the stream was faulty before".into() });
        };
        let summary = validator.finish().map_err(|source| Error::Xva { path: self.path.absolute(), source })?;
        let md5 = hex(&md5.finalize());
        self.storage.rename(&self.temporary, &self.path, Durability::AtSync).await?;
        let dir = self.path.parent().unwrap_or_default();
        let checksum = dir.join(&format!("{}{CHECKSUM}", self.path.name()))?;
        self.storage.replace(&checksum, format!("{MD5_MARK}{md5}").into(), Durability::AtSync).await?;
        Ok(FinishedXva { relative: format!("./{}", self.path.name()), size: self.position, md5, summary })
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
