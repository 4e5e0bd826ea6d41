//! The test of a remote: write ten mebibytes, read them back, compare (backup-repository.md §5.8).

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use crate::{Durability, RepoPath, Storage, StorageError};

/// What the test writes, bytes.
pub const PROBE_BYTES: usize = 10 * 1024 * 1024;

/// What is written and read at a time, bytes: as much memory as the test takes.
const PIECE: usize = 256 * 1024;

/// A storage that works.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Probe {
    /// Bytes per second written, durably.
    pub write_rate: f64,
    /// Bytes per second read back; the system's cache may have helped.
    pub read_rate: f64,
}

/// Where the test failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeStep {
    /// Writing.
    Write,
    /// Reading back.
    Read,
    /// What came back is not what was written.
    Compare,
}

impl ProbeStep {
    /// XO's word for it, and ours for the step it does not have.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Read => "read",
            Self::Compare => "compare",
        }
    }
}

/// A storage that does not work.
#[derive(Debug, thiserror::Error)]
#[error("the test of the storage failed at the step \"{}\" with {file}", step.name())]
pub struct ProbeError {
    /// The step.
    pub step: ProbeStep,
    /// The file it was tried with.
    pub file: String,
    /// Why; none when the content came back different.
    #[source]
    pub source: Option<StorageError>,
}

/// Tests a storage with a file `/<epoch ms>.test`, which is removed again whatever happens.
///
/// # Errors
/// [`ProbeError`] with the step that failed.
pub async fn probe(storage: &dyn Storage) -> Result<Probe, ProbeError> {
    let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let path = RepoPath::root().join(&format!("{epoch}.test")).expect("digits and a suffix are a file name");
    let outcome = measure(storage, &path).await;
    if let Err(error) = storage.remove(&path, Durability::AtSync).await {
        tracing::warn!(%error, "the test's file stays behind");
    }
    outcome
}

async fn measure(storage: &dyn Storage, path: &RepoPath) -> Result<Probe, ProbeError> {
    let failed = |step| move |source| ProbeError { step, file: path.absolute(), source: Some(source) };
    let write = failed(ProbeStep::Write);
    let mut seed = vec![0; PIECE];
    getrandom::fill(&mut seed)
        .map_err(|error| write(StorageError::from_io("draw random bytes for", path.absolute(), std::io::Error::other(error))))?;
    // No two pieces have a word in common at the same place, so that none passes for another, and no storage spares itself one.
    let piece = |offset: u64| -> Bytes {
        let (words, _) = seed.as_chunks::<8>();
        let key = (offset + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        words.iter().flat_map(|word| (u64::from_le_bytes(*word) ^ key).to_le_bytes()).collect::<Vec<u8>>().into()
    };
    let offsets = || (0..PROBE_BYTES as u64).step_by(PIECE);
    let rate = |since: Instant| PROBE_BYTES as f64 / since.elapsed().as_secs_f64().max(1e-9);

    let started = Instant::now();
    let file = storage.create(path).await.map_err(write)?;
    for offset in offsets() {
        file.write_at(offset, vec![piece(offset)]).await.map_err(write)?;
    }
    file.sync().await.map_err(write)?;
    drop(file);
    let write_rate = rate(started);

    let (started, read) = (Instant::now(), failed(ProbeStep::Read));
    let file = storage.open(path).await.map_err(read)?;
    for offset in offsets() {
        let back = file.read_at(offset, PIECE).await.map_err(read)?;
        if back != piece(offset) {
            return Err(ProbeError { step: ProbeStep::Compare, file: path.absolute(), source: None });
        }
    }
    Ok(Probe { write_rate, read_rate: rate(started) })
}
