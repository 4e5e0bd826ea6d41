//! Upgrade bundles on their way in: as they are, into a file, so that memory holds a piece at a time whatever their size.
//! Nothing is believed of them here; who begins the upgrade checks them.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use api::{ErrorReport, MAX_BUNDLE, Received, format_bytes};
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::{Body as _, Incoming as Body};
use sha2::{Digest, Sha256};
use tokio::fs::File;
use tokio::io::AsyncWriteExt;

use crate::daemon::Daemon;
use crate::fault::Fault;
use crate::upgrade::{Programs, ProgramsError, ROOM};

/// From one piece of a bundle to the next.
const SILENCE: Duration = Duration::from_secs(60);
/// What comes after a refusal is read and thrown away for so long.
const HEARING: Duration = Duration::from_secs(10);
/// Between two looks at the free space, bytes.
const LOOK: u64 = 4 << 20;

/// Why a bundle was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("this proxy takes no upgrade bundle now")]
    NotNow(Fault),
    #[error("an upgrade bundle needs {} in {}, and {} are free there", format_bytes(*needed), place.display(), format_bytes(*free))]
    NoRoom { place: PathBuf, needed: u64, free: u64 },
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
            Self::NotNow(_) => StatusCode::FORBIDDEN,
            Self::Busy => StatusCode::CONFLICT,
            Self::TooLong => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Cut(_) => StatusCode::BAD_REQUEST,
            Self::Folder(_) | Self::Write { .. } | Self::NoRoom { .. } => StatusCode::INSUFFICIENT_STORAGE,
        }
    }

    pub(super) fn report(&self) -> ErrorReport {
        if let Self::NotNow(why) = self {
            return why.clone().report();
        }
        let report = ErrorReport::new("BUNDLE_NOT_TAKEN", crate::fault::chain(self));
        match self {
            Self::NotNow(_) => report,
            Self::Busy => report.with_next("wait until it has arrived"),
            Self::TooLong => report.with_next("check that the file is an upgrade bundle: backhaul bundle show FILE"),
            Self::Cut(_) => report.with_next("send it again"),
            Self::Folder(_) | Self::Write { .. } | Self::NoRoom { .. } => {
                report.with_next("check the free space of the proxy's state folder")
            }
        }
    }
}

/// A bundle on its way: gone from the disk unless it arrives.
struct Incoming<'a> {
    programs: &'a Programs,
    path: PathBuf,
    arrived: bool,
}

impl Incoming<'_> {
    /// Looks whether so much more can be written without leaving the journal no room.
    fn check_room(&self, bytes: u64) -> Result<(), Refused> {
        match self.programs.free() {
            Some(free) if free < bytes.saturating_add(ROOM) => {
                Err(Refused::NoRoom { place: self.programs.state_dir().to_owned(), needed: bytes.saturating_add(ROOM), free })
            }
            _ => Ok(()),
        }
    }

    async fn write(&mut self, body: &mut Body) -> Result<Received, Refused> {
        let path = self.path.clone();
        let writing = |source| Refused::Write { path: path.clone(), source };
        let announced = body.size_hint().lower();
        if announced > MAX_BUNDLE {
            return Err(Refused::TooLong);
        }
        self.check_room(announced)?;
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&path).await.map_err(writing)?;
        let (mut sum, mut bytes, mut looked) = (Sha256::new(), 0u64, 0u64);
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
                return Err(Refused::TooLong);
            }
            // Others write there too, and not everybody announces how much comes.
            if bytes - looked >= LOOK {
                self.check_room(0)?;
                looked = bytes;
            }
            sum.update(&piece);
            file.write_all(&piece).await.map_err(writing)?;
        }
        file.flush().await.map_err(writing)?;
        drop(file);
        let bundle: String = sum.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        tokio::fs::rename(&path, path.with_file_name(&bundle)).await.map_err(writing)?;
        self.arrived = true;
        Ok(Received { bundle, bytes })
    }
}

impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        if !self.arrived {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Writes a bundle to its place. One that arrived before goes: there is room for one.
pub(super) async fn receive(daemon: &Daemon, mut body: Body) -> Result<Received, Refused> {
    let received = async {
        daemon.upgrades.permit().map_err(Refused::NotNow)?;
        let _door = daemon.upgrades.door.try_lock().map_err(|_| Refused::Busy)?;
        let programs = daemon.upgrades.programs();
        let path = programs.empty_received()?.join("incoming");
        Incoming { programs, path, arrived: false }.write(&mut body).await
    };
    match received.await {
        Ok(received) => {
            tracing::info!(bundle = received.bundle, bytes = received.bytes, "received an upgrade bundle");
            Ok(received)
        }
        Err(refused) => {
            tracing::warn!(error = &refused as &dyn std::error::Error, "an upgrade bundle was not taken");
            // Whoever is cut off in the middle of sending does not read why.
            let rest = async { while let Some(Ok(_)) = body.frame().await {} };
            let _ = tokio::time::timeout(HEARING, rest).await;
            Err(refused)
        }
    }
}
