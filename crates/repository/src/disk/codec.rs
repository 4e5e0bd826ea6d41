//! How the chunks of a disk directory are compressed (backup-repository.md §3.6).

use std::io::{Read, Write};
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use storage::{RepoPath, Storage};
use tokio::sync::Semaphore;

use crate::{Error, Result};

/// Compressor of a disk directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Filter {
    /// Chunks as they are.
    None,
    /// gzip.
    Gzip,
    /// Brotli, what XO and we write.
    Brotli,
}

/// Compression and decompression at work at the same time, process-wide: one a processor, more would only hold memory.
/// Each holds a block and its compressed form, so at most 8 x 2 x 2 MiB = 32 MiB besides the blocks of the callers.
static WORKERS: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(std::thread::available_parallelism().map_or(2, |count| count.get().clamp(2, 8))));
/// Log of brotli's window. With the least effort the encoder looks no further back, and takes its input in pieces of this
/// size: a larger one only costs memory, twice its size.
const WINDOW: u32 = 18;
const BUFFER: usize = 64 << 10;

impl Filter {
    /// Reads `chunk-filters.json` of a disk directory; no file means none.
    pub(crate) async fn read(storage: &dyn Storage, path: &RepoPath) -> Result<Self> {
        let text = match storage.read(path, 4096).await {
            Ok(text) => text,
            Err(error) if error.is_not_found() => return Ok(Self::None),
            Err(error) => return Err(error.into()),
        };
        let damaged = |what: String| Error::Damaged { path: path.absolute(), what };
        let names: Vec<String> = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        match names.first().map(String::as_str) {
            None => Ok(Self::None),
            Some("gzip") => Ok(Self::Gzip),
            Some("brotli") => Ok(Self::Brotli),
            Some(other) => Err(damaged(format!("the compressor {other:?} is not known"))),
        }
    }

    /// The content of `chunk-filters.json`.
    pub(crate) const fn declaration(self) -> &'static str {
        match self {
            Self::None => "[]",
            Self::Gzip => r#"["gzip"]"#,
            Self::Brotli => r#"["brotli"]"#,
        }
    }

    /// Compresses the parts of one chunk.
    pub(crate) async fn encode(self, path: &RepoPath, parts: Vec<Bytes>) -> Result<Bytes> {
        if self == Self::None {
            return Ok(parts.concat().into());
        }
        let failed = |source| Error::Codec { path: path.absolute(), verb: "compressed", source };
        offload(move || self.encode_now(&parts)).await.map_err(failed)
    }

    fn encode_now(self, parts: &[Bytes]) -> std::io::Result<Bytes> {
        let mut out = Vec::with_capacity(parts.iter().map(Bytes::len).sum::<usize>() / 2);
        match self {
            Self::None => parts.iter().for_each(|part| out.extend_from_slice(part)),
            Self::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(&mut out, flate2::Compression::fast());
                parts.iter().try_for_each(|part| encoder.write_all(part))?;
                encoder.finish()?;
            }
            Self::Brotli => {
                // The least effort: what XO writes.
                let mut encoder = brotli::CompressorWriter::new(&mut out, BUFFER, 0, WINDOW);
                parts.iter().try_for_each(|part| encoder.write_all(part))?;
                encoder.flush()?;
                drop(encoder);
            }
        }
        // It may wait for a slow storage, outside of what the engine counts.
        out.shrink_to_fit();
        Ok(out.into())
    }

    /// Decompresses one chunk that may have `limit` bytes at most, whatever it claims.
    pub(crate) async fn decode(self, path: &RepoPath, data: Bytes, limit: usize) -> Result<Bytes> {
        let decoded = if self == Self::None {
            data
        } else {
            let failed = |source| Error::Codec { path: path.absolute(), verb: "decompressed", source };
            offload(move || self.decode_now(&data, limit)).await.map_err(failed)?
        };
        if decoded.len() > limit {
            return Err(Error::Damaged { path: path.absolute(), what: format!("it holds more than {limit} bytes") });
        }
        Ok(decoded)
    }

    fn decode_now(self, data: &[u8], limit: usize) -> std::io::Result<Bytes> {
        let mut out = Vec::with_capacity(limit.min(4 << 20));
        let bound = limit as u64 + 1;
        match self {
            Self::None => out.extend_from_slice(data),
            Self::Gzip => drop(flate2::read::MultiGzDecoder::new(data).take(bound).read_to_end(&mut out)?),
            Self::Brotli => drop(brotli::Decompressor::new(data, BUFFER).take(bound).read_to_end(&mut out)?),
        }
        Ok(out.into())
    }
}

async fn offload(work: impl FnOnce() -> std::io::Result<Bytes> + Send + 'static) -> std::io::Result<Bytes> {
    let permit = WORKERS.acquire().await.map_err(std::io::Error::other)?;
    let done = tokio::task::spawn_blocking(work).await;
    drop(permit);
    match done {
        Ok(done) => done,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(error) => Err(std::io::Error::other(error)),
    }
}

/// Reads and decompresses a chunk of at most `limit` bytes.
pub(crate) async fn read_chunk(storage: &Arc<dyn Storage>, filter: Filter, path: &RepoPath, limit: usize) -> Result<Bytes> {
    // Incompressible data grows a little; more than this no compressor of ours adds.
    let data = storage.read(path, limit as u64 + (limit as u64 >> 6) + 1024).await?;
    filter.decode(path, data, limit).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn chunks_come_back_and_bombs_do_not_go_off() {
        let path = RepoPath::parse("blocks/0/1").unwrap();
        let (head, body) =
            (Bytes::from(vec![0xff; 512]), Bytes::from((0..100_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>()));
        for filter in [Filter::None, Filter::Gzip, Filter::Brotli] {
            let packed = filter.encode(&path, vec![head.clone(), body.clone()]).await.unwrap();
            let back = filter.decode(&path, packed.clone(), 512 + body.len()).await.unwrap();
            assert!(back[..512] == head && back[512..] == body, "{filter:?}");
            assert!(filter.decode(&path, packed.clone(), 511 + body.len()).await.is_err(), "{filter:?} expands without end");
            if filter != Filter::None {
                let cut = packed.slice(..packed.len() - 1);
                assert!(filter.decode(&path, cut, 512 + body.len()).await.is_err(), "{filter:?} does not notice a cut");
            }
        }
    }
}
