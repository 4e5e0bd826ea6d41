//! Upgrade bundles at hand: read or downloaded once, looked at, and brought to a proxy.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use api::deploy::redact_url;
use api::{ErrorCode, ErrorReport, MAX_BUNDLE, UpgradeParams, UpgradeStart, UpgradeState, format_bytes};
use bytes::{Bytes, BytesMut};
use sha2::{Digest as _, Sha256};
use signed::BundleManifest;

use super::{CallError, Client};

/// How long a download may stand still.
const PATIENCE: Duration = Duration::from_secs(60);

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
/// said before any of them is touched.
///
/// # Errors
/// [`FetchError`].
pub(crate) async fn fetch(from: &str) -> Result<Bundle, FetchError> {
    let downloaded = if from.starts_with("http://") || from.starts_with("https://") { Some(download(from).await?) } else { None };
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

async fn download(url: &str) -> Result<Bytes, FetchError> {
    let failed = |error: reqwest::Error| FetchError::Download { from: redact_url(url), reason: said(&error.without_url()) };
    tls::install_provider();
    let http = reqwest::Client::builder().connect_timeout(Duration::from_secs(10)).read_timeout(PATIENCE).build();
    let answer = http.map_err(failed)?.get(url).send().await.map_err(failed)?;
    let mut answer = answer.error_for_status().map_err(failed)?;
    let mut bytes = BytesMut::new();
    while let Some(piece) = answer.chunk().await.map_err(failed)? {
        bytes.extend_from_slice(&piece);
        if bytes.len() as u64 > MAX_BUNDLE {
            return Err(FetchError::TooLong { from: redact_url(url) });
        }
    }
    Ok(bytes.freeze())
}

/// Begins an upgrade; sends the bundle first, unless the proxy has it from another try.
///
/// # Errors
/// [`CallError`].
pub(crate) async fn begin(client: &Client, bundle: &Bundle, params: &UpgradeParams) -> Result<UpgradeState, CallError> {
    match client.call::<UpgradeStart>(params).await {
        Err(CallError::Answered { code: ErrorCode::NoSuchObject, .. }) => {}
        begun => return begun,
    }
    client.send_bundle(bundle.bytes.clone()).await?;
    client.call::<UpgradeStart>(params).await
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
