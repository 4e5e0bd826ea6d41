//! The appliance's image: found, known by its checksum, and read on its way to the pool.
//!
//! It is checked twice over: a file is read once before anything is made, and whatever is uploaded is summed while it
//! goes. The last piece is held back until the sum is right, so that a pool never completes a wrong image.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use futures::stream::{self, Stream, StreamExt};
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use crate::error::{Cause, Error};
use crate::plan::ImagePlan;

/// A file is read in pieces of this size, bytes.
const PIECE: usize = 1 << 20;
/// Longest checksum file read, bytes.
const MAX_CHECKSUM: usize = 64 << 10;

type Pieces = Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>;

/// An image that is there and whose checksum is known.
#[derive(Debug)]
pub(crate) struct Image {
    source: Source,
    /// For messages, without credentials.
    shown: String,
    sha256: String,
}

#[derive(Debug)]
enum Source {
    File(PathBuf),
    Web { http: reqwest::Client, url: String },
}

/// An image on its way.
pub(crate) struct Reading {
    /// Bytes that will come.
    pub(crate) length: u64,
    pub(crate) pieces: Pieces,
    /// Set when the sum was wrong.
    pub(crate) wrong: Arc<OnceLock<String>>,
}

impl Image {
    /// Finds the image, and what it must be.
    pub(crate) async fn find(plan: &ImagePlan) -> Result<Self, Error> {
        let url = plan.url.expose();
        let shown = api::deploy::redact_url(url);
        let source = source(plan).map_err(|what| failure(&shown, "IMAGE_ADDRESS", what, "give a path or an http(s) URL"))?;
        let mut image = Self { source, shown, sha256: String::new() };
        image.sha256 = verify_manifest(&image, plan).await?;
        image.open().await.map(drop)?;
        Ok(image)
    }

    fn failed(&self, code: &'static str, what: impl Into<String>, next: &'static str) -> Error {
        failure(&self.shown, code, what.into(), next)
    }

    fn unreadable(&self, what: &str, source: impl Into<Cause>) -> Error {
        let (image, what) = (self.shown.clone(), what.to_owned());
        Error::Image {
            image,
            code: "IMAGE_UNREADABLE",
            what,
            next: "check the path or URL of the image",
            source: Some(source.into()),
        }
    }

    /// Reads a small text beside the image; none when there is none.
    async fn beside(&self, extension: &str) -> Result<Option<String>, Error> {
        let what = format!("cannot read the {extension} file beside it");
        match &self.source {
            Source::File(path) => {
                let mut path = path.clone().into_os_string();
                path.push(extension);
                match tokio::fs::read(&path).await {
                    Ok(text) => Ok(Some(String::from_utf8_lossy(&text[..text.len().min(MAX_CHECKSUM)]).into_owned())),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(self.unreadable(&what, error)),
                }
            }
            Source::Web { http, url } => {
                let (path, query) = url.split_once('?').map_or((url.as_str(), None), |(path, query)| (path, Some(query)));
                let mut beside = format!("{path}{extension}");
                if let Some(query) = query {
                    let _ = write!(beside, "?{query}");
                }
                let answer = http.get(beside).send().await.map_err(|error| self.unreadable(&what, error.without_url()))?;
                if !answer.status().is_success() {
                    return Ok(None);
                }
                let mut text = Vec::new();
                let mut pieces = answer.bytes_stream();
                while let Some(piece) = pieces.next().await {
                    text.extend_from_slice(&piece.map_err(|error| self.unreadable(&what, error.without_url()))?);
                    if text.len() > MAX_CHECKSUM {
                        return Err(self.failed(
                            "IMAGE_CHECKSUM_UNKNOWN",
                            format!("the {extension} file beside it is too long"),
                            SAY_IT,
                        ));
                    }
                }
                Ok(Some(String::from_utf8_lossy(&text).into_owned()))
            }
        }
    }

    /// Its length and its bytes as they are.
    async fn open(&self) -> Result<(u64, Pieces), Error> {
        match &self.source {
            Source::File(path) => {
                let opened = async {
                    let file = tokio::fs::File::open(path).await?;
                    let metadata = file.metadata().await?;
                    if !metadata.is_file() {
                        return Err(std::io::Error::other("it is no file"));
                    }
                    Ok((metadata.len(), file))
                };
                let (length, file) = opened.await.map_err(|error| self.unreadable("cannot open it", error))?;
                Ok((length, pieces(file).boxed()))
            }
            Source::Web { http, url } => {
                let what = "cannot download it";
                let answer = http.get(url).send().await.map_err(|error| self.unreadable(what, error.without_url()))?;
                let answer = answer.error_for_status().map_err(|error| self.unreadable(what, error.without_url()))?;
                let length = answer.content_length().ok_or_else(|| {
                    self.failed(
                        "IMAGE_LENGTH_UNKNOWN",
                        "its server does not say how long it is",
                        "download it, and give it as a file",
                    )
                })?;
                let pieces = answer.bytes_stream().map(|piece| piece.map_err(|error| std::io::Error::other(error.without_url())));
                Ok((length, pieces.boxed()))
            }
        }
    }

    /// Reads a file through and compares; what comes from the web is summed while it goes. `read` hears of every piece.
    pub(crate) async fn verify(&self, read: impl Fn(u64)) -> Result<(), Error> {
        if matches!(self.source, Source::Web { .. }) {
            return Ok(());
        }
        let (_, mut pieces) = self.open().await?;
        let mut sum = Sha256::new();
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| self.unreadable("cannot read it", error))?;
            sum.update(&piece);
            read(piece.len() as u64);
        }
        self.compare(&hexadecimal(sum))
    }

    fn compare(&self, found: &str) -> Result<(), Error> {
        if found == self.sha256 { Ok(()) } else { Err(self.mismatch(found)) }
    }

    /// The error of an image that is another one.
    pub(crate) fn mismatch(&self, found: &str) -> Error {
        let what = format!("its SHA-256 is {found}, and should be {}", self.sha256);
        self.failed("IMAGE_CHECKSUM", what, "get the image anew, or correct the checksum")
    }

    /// The image with its VM marked by further members of `other_config`.
    pub(crate) async fn marked(&self, members: &[(&str, &str)]) -> Result<Reading, Error> {
        let (length, mut source) = self.open().await?;
        let mut sum = Sha256::new();
        let mut head = BytesMut::new();
        let mut wanted = xva::RECORD_SIZE;
        while head.len() < wanted {
            let Some(piece) = source.next().await else {
                return Err(self.failed("NOT_AN_APPLIANCE", "it ends where it should begin", NO_APPLIANCE));
            };
            let piece = piece.map_err(|error| self.unreadable("cannot read it", error))?;
            sum.update(&piece);
            head.extend_from_slice(&piece);
            if let (true, Some(record)) = (wanted == xva::RECORD_SIZE, head.first_chunk()) {
                wanted = xva::first_entry(record).map_err(|error| self.no_appliance(error))?;
            }
        }
        let rest = head.split_off(wanted).freeze();
        let entry = xva::mark(&head, super::machine::APPLIANCE, members).map_err(|error| self.no_appliance(error))?;
        let wrong = Arc::new(OnceLock::new());
        let state = Summing { source, sum, expected: self.sha256.clone(), wrong: Arc::clone(&wrong), held: rest };
        let length = length - wanted as u64 + entry.len() as u64;
        let pieces = stream::once(async { Ok(entry) }).chain(summed(state)).boxed();
        Ok(Reading { length, pieces, wrong })
    }

    fn no_appliance(&self, error: xva::MarkError) -> Error {
        let what = "it is no appliance of Backhaul".to_owned();
        Error::Image {
            image: self.shown.clone(),
            code: "NOT_AN_APPLIANCE",
            what,
            next: NO_APPLIANCE,
            source: Some(Box::new(error)),
        }
    }
}

const SAY_IT: &str = "give the SHA-256 of the image, or put a .sha256 file beside it";
const NO_APPLIANCE: &str = "give the uncompressed .xva that comes with Backhaul";

fn failure(shown: &str, code: &'static str, what: String, next: &'static str) -> Error {
    Error::Image { image: shown.to_owned(), code, what, next, source: None }
}

fn source(plan: &ImagePlan) -> Result<Source, String> {
    let url = plan.url.expose();
    if let Some(path) = url.strip_prefix("file://") {
        return Ok(Source::File(path.into()));
    }
    if !url.contains("://") {
        return Ok(Source::File(url.into()));
    }
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err("only files and http(s) are read".into());
    }
    tls::install_provider();
    let mut builder = reqwest::Client::builder().connect_timeout(std::time::Duration::from_secs(10)).no_proxy();
    if let Some(proxy) = &plan.http_proxy {
        let proxy = reqwest::Proxy::all(proxy.expose()).map_err(|_| "the HTTP proxy for it is no URL".to_owned())?;
        builder = builder.proxy(proxy);
    }
    let http = builder.build().map_err(|error| format!("no HTTP client can be made: {}", error.without_url()))?;
    Ok(Source::Web { http, url: url.to_owned() })
}

/// The SHA-256 an image must have, from whoever may say so: the plan, or a `.sha256` file beside it.
///
/// Where keys are trusted, only a manifest signed by one of them counts.
async fn verify_manifest(image: &Image, plan: &ImagePlan) -> Result<String, Error> {
    if !plan.trusted.is_empty() {
        return signed_sum(image, plan).await;
    }
    let said = match &plan.sha256 {
        Some(said) => said.clone(),
        None => image.beside(".sha256").await?.unwrap_or_default(),
    };
    // `sha256sum` writes the name behind the sum.
    let sum = said.split_ascii_whitespace().next().unwrap_or_default().to_ascii_lowercase();
    match sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        true => Ok(sum),
        false if said.is_empty() => Err(image.failed("IMAGE_CHECKSUM_UNKNOWN", "nothing says what its SHA-256 must be", SAY_IT)),
        false => Err(image.failed("IMAGE_CHECKSUM_UNKNOWN", "what should be its SHA-256 is none", SAY_IT)),
    }
}

/// The SHA-256 in the manifest beside the image, which one of the trusted keys must have signed.
async fn signed_sum(image: &Image, plan: &ImagePlan) -> Result<String, Error> {
    let unsigned = |why: String| image.failed("IMAGE_UNSIGNED", &why, "get the image with its .manifest from whoever makes it");
    let Some(text) = image.beside(".manifest").await? else {
        return Err(unsigned("signatures are asked for here, and no .manifest stands beside it".into()));
    };
    let keys: Result<Vec<signed::PublicKey>, _> = plan.trusted.iter().map(|key| key.parse()).collect();
    let keys = keys.map_err(|error: signed::KeyError| unsigned(format!("a key that is trusted cannot be read: {error}")))?;
    let manifest = signed::ImageManifest::read(&text, &keys).map_err(|error| unsigned(error.to_string()))?;
    match &plan.sha256 {
        Some(said) if !said.eq_ignore_ascii_case(&manifest.sha256) => {
            let what = format!("its signed manifest says SHA-256 {}, the one given is {said}", manifest.sha256);
            Err(image.failed("IMAGE_CHECKSUM", &what, "correct the checksum given, or leave it out: the signed manifest has it"))
        }
        _ => Ok(manifest.sha256),
    }
}

fn pieces(file: tokio::fs::File) -> impl Stream<Item = std::io::Result<Bytes>> + Send {
    stream::try_unfold(file, async |mut file| {
        let mut piece = BytesMut::with_capacity(PIECE);
        while piece.len() < PIECE && file.read_buf(&mut piece).await? > 0 {}
        Ok((!piece.is_empty()).then(|| (piece.freeze(), file)))
    })
}

struct Summing {
    source: Pieces,
    sum: Sha256,
    expected: String,
    wrong: Arc<OnceLock<String>>,
    /// Not sent yet.
    held: Bytes,
}

/// Gives every piece when the next one is there, and the last one when the sum is right.
fn summed(state: Summing) -> impl Stream<Item = std::io::Result<Bytes>> + Send {
    stream::try_unfold(Some(state), async |state| {
        let Some(mut state) = state else { return Ok(None) };
        match state.source.next().await {
            Some(piece) => {
                let piece = piece?;
                state.sum.update(&piece);
                let before = std::mem::replace(&mut state.held, piece);
                Ok(Some((before, Some(state))))
            }
            None => {
                let found = hexadecimal(state.sum);
                if found != state.expected {
                    let _ = state.wrong.set(found);
                    return Err(std::io::Error::other("the image is not what it should be"));
                }
                Ok(Some((state.held, None)))
            }
        }
    })
}

fn hexadecimal(sum: Sha256) -> String {
    sum.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
