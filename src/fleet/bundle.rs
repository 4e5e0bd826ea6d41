//! Upgrade bundles at hand: read or downloaded once, looked at, and brought to a proxy.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use api::deploy::redact_url;
use api::{ErrorCode, ErrorReport, MAX_BUNDLE, UpgradeParams, UpgradeStart, UpgradeState, format_bytes};
use bytes::{Bytes, BytesMut};
use futures::stream::{self, Stream};
use sha2::{Digest as _, Sha256};
use signed::BundleManifest;

use super::{CallError, Client};
use crate::core::Bringing;

/// How long a download may stand still.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes after which it is told how far it is.
const PIECE: usize = 128 << 10;

/// A bundle that is at hand.
pub(crate) struct Bundle {
    bytes: Bytes,
    /// Its sum, hexadecimal: what an upgrade is asked for by.
    pub(crate) sha256: String,
    /// What it says it holds.
    pub(crate) manifest: BundleManifest,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("cannot read {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("cannot download {from}: {reason}")]
    Download { from: String, reason: String },
    #[error("{from} is no upgrade bundle: it is longer than {}", format_bytes(MAX_BUNDLE))]
    TooLong { from: String },
    #[error("{from}: {}", said(source))]
    Broken { from: String, source: signed::BundleError },
}

impl FetchError {
    /// The same for readers.
    pub(crate) fn report(&self) -> ErrorReport {
        let text = self.to_string();
        match self {
            Self::File { .. } => ErrorReport::new("FILE", text).with_next("the path is one on this machine"),
            Self::Download { .. } => ErrorReport::new("DOWNLOAD", text).with_next("download it by other means and give the file"),
            Self::TooLong { .. } | Self::Broken { .. } => ErrorReport::new("BUNDLE", text),
        }
    }
}

/// Reads a bundle from a file or the web. Whether to trust its signer is the proxies' affair; that it is a bundle at all is
/// said before any of them is touched. How far a download is, is told.
///
/// # Errors
/// [`FetchError`].
pub(crate) async fn fetch(from: &str, told: &(dyn Fn(Bringing) + Sync)) -> Result<Bundle, FetchError> {
    let web = from.starts_with("http://") || from.starts_with("https://");
    let downloaded = if web { Some(download(from, told).await?) } else { None };
    let path = PathBuf::from(from.strip_prefix("file://").unwrap_or(from));
    let (shown, place) = (redact_url(from), path.clone());
    let looked = tokio::task::spawn_blocking(move || {
        let bytes = match downloaded {
            Some(bytes) => bytes,
            None => {
                let failed = |source| FetchError::File { path: path.clone(), source };
                if std::fs::metadata(&path).map_err(failed)?.len() > MAX_BUNDLE {
                    return Err(FetchError::TooLong { from: shown });
                }
                Bytes::from(std::fs::read(&path).map_err(failed)?)
            }
        };
        let read = BundleManifest::read_of_anyone(&mut bytes.as_ref());
        let (manifest, _) = read.map_err(|source| FetchError::Broken { from: shown, source })?;
        let sha256 = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Bundle { bytes, sha256, manifest })
    });
    looked.await.unwrap_or_else(|error| Err(FetchError::File { path: place, source: io::Error::other(error) }))
}

async fn download(url: &str, told: &(dyn Fn(Bringing) + Sync)) -> Result<Bytes, FetchError> {
    let failed = |error: reqwest::Error| FetchError::Download { from: redact_url(url), reason: said(&error.without_url()) };
    tls::install_provider();
    let http = reqwest::Client::builder().connect_timeout(Duration::from_secs(10)).read_timeout(PATIENCE).build();
    let answer = http.map_err(failed)?.get(url).send().await.map_err(failed)?;
    let mut answer = answer.error_for_status().map_err(failed)?;
    let of = answer.content_length().filter(|of| *of <= MAX_BUNDLE);
    let mut bytes = BytesMut::new();
    let mut said_at = 0;
    while let Some(piece) = answer.chunk().await.map_err(failed)? {
        bytes.extend_from_slice(&piece);
        if bytes.len() as u64 > MAX_BUNDLE {
            return Err(FetchError::TooLong { from: redact_url(url) });
        }
        if bytes.len() - said_at >= PIECE {
            said_at = bytes.len();
            told(Bringing::Fetching { done: bytes.len() as u64, of });
        }
    }
    Ok(bytes.freeze())
}

/// Begins an upgrade; sends the bundle first, unless the proxy has it from another try. How much has gone is told.
///
/// # Errors
/// [`CallError`].
pub(crate) async fn begin(
    client: &Client,
    bundle: &Bundle,
    params: &UpgradeParams,
    told: impl Fn(Bringing) + Send + Sync + 'static,
) -> Result<UpgradeState, CallError> {
    match client.call::<UpgradeStart>(params).await {
        Err(CallError::Answered { code: ErrorCode::NoSuchObject, .. }) => {}
        begun => return begun,
    }
    client.send_bundle(reqwest::Body::wrap_stream(pieces(bundle.bytes.clone(), told))).await?;
    client.call::<UpgradeStart>(params).await
}

/// A bundle in pieces; each is told of when it is asked for, so after those before it have gone.
fn pieces(
    bytes: Bytes,
    told: impl Fn(Bringing) + Send + Sync + 'static,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let of = bytes.len() as u64;
    stream::unfold(bytes, move |mut rest| {
        told(Bringing::Sending { done: of - rest.len() as u64, of });
        let piece = rest.split_to(rest.len().min(PIECE));
        std::future::ready((!piece.is_empty()).then_some((Ok(piece), rest)))
    })
}

/// An error with all its causes.
pub(crate) fn said(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string);
    causes.fold(String::new(), |text, cause| match text.is_empty() {
        true => cause,
        false if text.ends_with(&cause) => text,
        false => format!("{text}: {cause}"),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn a_bundle_goes_whole_and_each_piece_is_told_of_once_it_has_gone() {
        let bytes = Bytes::from((0..PIECE * 2 + 5).map(|at| at as u8).collect::<Vec<u8>>());
        let (heard, of) = (Arc::new(Mutex::new(Vec::new())), bytes.len() as u64);
        let ear = Arc::clone(&heard);
        let sent = pieces(bytes.clone(), move |bringing| ear.lock().unwrap().push(bringing));
        let sent: Vec<u8> = sent.map(|piece| piece.unwrap().to_vec()).collect::<Vec<_>>().await.concat();
        assert_eq!(sent, bytes);
        let piece = PIECE as u64;
        let expected = [0, piece, 2 * piece, of].map(|done| Bringing::Sending { done, of });
        assert_eq!(*heard.lock().unwrap(), expected);
    }

    #[tokio::test]
    async fn how_far_a_download_is_is_told() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let length = PIECE * 64;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let (mut line, _) = listener.accept().await.unwrap();
            let mut asked = [0; 1024];
            let _ = line.read(&mut asked).await.unwrap();
            line.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n").as_bytes()).await.unwrap();
            line.write_all(&vec![7; length]).await.unwrap();
        });
        let heard = Mutex::new(Vec::new());
        let got = fetch(&format!("http://{address}/b"), &|bringing| heard.lock().unwrap().push(bringing)).await;
        assert!(matches!(got, Err(FetchError::Broken { .. })), "it holds no bundle");
        serving.await.unwrap();
        let heard = heard.into_inner().unwrap();
        let mut before = 0;
        for bringing in &heard {
            let Bringing::Fetching { done, of: Some(of) } = *bringing else { panic!("{bringing:?}") };
            assert!(done >= before + PIECE as u64 && done <= of && of == length as u64, "{heard:?}");
            before = done;
        }
        assert!(!heard.is_empty());
    }
}
