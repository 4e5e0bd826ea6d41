//! Upgrade bundles on their way in: as they are, into a file, so that memory holds a piece at a time whatever their size.
//! Nothing is believed of them here; who begins the upgrade checks them.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use api::{ErrorReport, MAX_BUNDLE, Received, format_bytes};
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::Incoming;
use sha2::{Digest, Sha256};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

use crate::daemon::Daemon;
use crate::upgrade::ProgramsError;

/// From one piece of a bundle to the next.
const SILENCE: Duration = Duration::from_secs(60);

/// Why a bundle was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("another upgrade bundle is on its way to this proxy")]
    Busy,
    #[error("an upgrade bundle has at most {}", format_bytes(MAX_BUNDLE))]
    TooLong,
    #[error("the upgrade bundle was not sent to its end: {0}")]
    Cut(String),
    #[error(transparent)]
    Folder(#[from] ProgramsError),
    #[error("cannot write the upgrade bundle to {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

impl Refused {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Busy => StatusCode::CONFLICT,
            Self::TooLong => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Cut(_) => StatusCode::BAD_REQUEST,
            Self::Folder(_) | Self::Write { .. } => StatusCode::INSUFFICIENT_STORAGE,
        }
    }

    pub(super) fn report(&self) -> ErrorReport {
        let report = ErrorReport::new("BUNDLE_NOT_TAKEN", crate::fault::chain(self));
        match self {
            Self::Busy => report.with_next("wait until it has arrived"),
            Self::TooLong => report.with_next("check that the file is an upgrade bundle: backhaul bundle show FILE"),
            Self::Cut(_) => report.with_next("send it again"),
            Self::Folder(_) | Self::Write { .. } => report.with_next("check the free space of the proxy's state folder"),
        }
    }
}

/// Writes a bundle to its place. One that arrived before goes: there is room for one.
pub(super) async fn receive(daemon: &Daemon, mut body: Incoming) -> Result<Received, Refused> {
    let _door = daemon.upgrades.door.try_lock().map_err(|_| Refused::Busy)?;
    let folder = daemon.upgrades.programs().empty_received()?;
    let path = folder.join("incoming");
    let writing = |source| Refused::Write { path: path.clone(), source };
    let mut options = File::options();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&path).await.map_err(writing)?;
    let (mut sum, mut bytes) = (Sha256::new(), 0u64);
    loop {
        let next = tokio::time::timeout(SILENCE, body.frame()).await;
        let piece = match next {
            Err(_) => return Err(Refused::Cut(format!("nothing came for {} s", SILENCE.as_secs()))),
            Ok(None) => break,
            Ok(Some(Err(error))) => return Err(Refused::Cut(error.to_string())),
            Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
        };
        bytes += piece.len() as u64;
        if bytes > MAX_BUNDLE {
            drop(file);
            let _ = tokio::fs::remove_file(&path).await;
            return Err(Refused::TooLong);
        }
        sum.update(&piece);
        file.write_all(&piece).await.map_err(writing)?;
    }
    file.flush().await.map_err(writing)?;
    drop(file);
    let bundle: String = sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    tokio::fs::rename(&path, folder.join(&bundle)).await.map_err(writing)?;
    tracing::info!(bundle, bytes, "received an upgrade bundle");
    Ok(Received { bundle, bytes })
}
