//! Upgrade bundles: one file with a signed manifest, an empty line, and the program, compressed.
//!
//! What a bundle says is believed in the order it can be: the signature of the manifest, then the sizes it declares, then
//! the sum of the compressed bytes, and only then are these decompressed. So nobody but the signer reaches the decoder,
//! and nothing grows beyond what the manifest declares and [`LARGEST`] allows.

use std::io::{self, BufRead, BufReader, Read};

use crate::document::{LONGEST, begin, end};
use crate::{Document, DocumentError, PublicKey, SecretKey, sum};

const KIND: &str = "bundle";
const FIELDS: [&str; 8] = ["Version", "Channel", "Build", "Arch", "Size", "SHA-256", "Payload-Size", "Payload-SHA-256"];
/// The largest program, and the largest payload, bytes.
const LARGEST: u64 = 256 << 20;
/// Slow enough to be small, quick enough to wait for.
const LEVEL: i32 = 12;

/// Which build of the program a bundle holds. Each text is a word of letters, digits and `. + _ -`, so that it can be
/// part of a file's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// Version, such as `0.2.0`.
    pub version: String,
    /// Channel, such as `stable`.
    pub channel: String,
    /// Build, such as a commit.
    pub build: String,
    /// Processor it runs on, as Rust names it: `x86_64`, `aarch64`.
    pub arch: String,
}

/// What a bundle's signer says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleManifest {
    /// Which build.
    pub build: Build,
    /// Size of the program, bytes.
    pub size: u64,
    /// SHA-256 of the program, hexadecimal in lower case.
    pub sha256: String,
    /// Size of the compressed program, bytes.
    pub payload_size: u64,
    /// SHA-256 of the compressed program, hexadecimal in lower case.
    pub payload_sha256: String,
}

/// A bundle that was checked to its last byte.
#[derive(Clone, PartialEq, Eq)]
pub struct Opened {
    /// What its signer says.
    pub manifest: BundleManifest,
    /// The program.
    pub program: Vec<u8>,
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").field("manifest", &self.manifest).finish_non_exhaustive()
    }
}

/// A bundle that cannot be made or is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// Its manifest is no good.
    #[error(transparent)]
    Manifest(#[from] DocumentError),
    /// It cannot be read.
    #[error("cannot read the upgrade bundle")]
    Read(#[source] io::Error),
    /// The program cannot be compressed.
    #[error("cannot compress the program for the upgrade bundle")]
    Compress(#[source] io::Error),
    /// The program is too large.
    #[error("the {what} of the upgrade bundle has {size} bytes; at most {LARGEST} are accepted")]
    TooLarge {
        /// `program` or `payload`.
        what: &'static str,
        /// Its size, bytes.
        size: u64,
    },
    /// There is no program.
    #[error("the upgrade bundle holds no program")]
    Empty,
    /// It ended early.
    #[error("the upgrade bundle is cut off: {found} of {expected} bytes of its payload; copy or download it again")]
    Truncated {
        /// Bytes that are there, at least.
        found: u64,
        /// Bytes its manifest declares.
        expected: u64,
    },
    /// There is more in it than was signed.
    #[error("the upgrade bundle goes on after its end; copy or download it again")]
    Trailing,
    /// Its payload is not the one that was signed.
    #[error("the payload of the upgrade bundle is damaged: its SHA-256 is not the signed one; copy or download it again")]
    OtherPayload,
    /// What was signed cannot be decompressed.
    #[error("the upgrade bundle cannot be decompressed, though nobody changed it: it was badly made; ask its maker for another")]
    Decompress(#[source] io::Error),
    /// What was signed is not the program that was declared.
    #[error("the program in the upgrade bundle is not the declared one, though nobody changed it: it was badly made")]
    OtherProgram,
}

impl BundleManifest {
    fn document(&self) -> Document {
        Document::new(KIND)
            .with("Version", &self.build.version)
            .with("Channel", &self.build.channel)
            .with("Build", &self.build.build)
            .with("Arch", &self.build.arch)
            .with("Size", self.size.to_string())
            .with("SHA-256", &self.sha256)
            .with("Payload-Size", self.payload_size.to_string())
            .with("Payload-SHA-256", &self.payload_sha256)
    }

    fn understand(document: &Document) -> Result<Self, DocumentError> {
        Ok(Self {
            build: Build {
                version: name(document, "Version")?,
                channel: name(document, "Channel")?,
                build: name(document, "Build")?,
                arch: name(document, "Arch")?,
            },
            size: document.read_as("Size")?,
            sha256: sum::field(document, "SHA-256")?,
            payload_size: document.read_as("Payload-Size")?,
            payload_sha256: sum::field(document, "Payload-SHA-256")?,
        })
    }

    /// Reads the manifest at the beginning of a bundle and leaves the reader at the payload: enough to say what an upgrade
    /// would do, not to do it.
    ///
    /// # Errors
    /// It cannot be read, is no bundle, was changed, or is signed by nobody trusted here.
    pub fn read(bundle: &mut impl BufRead, trusted: &[PublicKey]) -> Result<Self, BundleError> {
        let text = armour(bundle)?;
        Self::believe(&text, Document::open(KIND, &text, trusted)?)
    }

    /// Reads the manifest at the beginning of a bundle and says whose signature it bears: enough to show it to a person, not to
    /// trust it.
    ///
    /// # Errors
    /// It cannot be read, is no bundle, or was changed.
    pub fn read_of_anyone(bundle: &mut impl BufRead) -> Result<(Self, PublicKey), BundleError> {
        let text = armour(bundle)?;
        let (document, signer) = Document::open_of_anyone(KIND, &text)?;
        Ok((Self::believe(&text, document)?, signer))
    }

    fn believe(text: &str, document: Document) -> Result<Self, BundleError> {
        let document = document.only(&FIELDS)?;
        // Mail around a licence is of use; a file that begins with something else is another file.
        if !text.starts_with(&begin(KIND)) {
            return Err(document.damaged("something stands before its manifest").into());
        }
        let manifest = Self::understand(&document)?;
        manifest.check_sizes()?;
        Ok(manifest)
    }

    fn check_sizes(&self) -> Result<(), BundleError> {
        for (what, size) in [("program", self.size), ("payload", self.payload_size)] {
            if size > LARGEST {
                return Err(BundleError::TooLarge { what, size });
            }
        }
        if self.size == 0 { Err(BundleError::Empty) } else { Ok(()) }
    }
}

/// Makes a bundle of a program.
///
/// # Errors
/// The program is empty, too large, or its build has a name that no file could have.
pub fn pack_bundle(program: &[u8], build: &Build, key: &SecretKey) -> Result<Vec<u8>, BundleError> {
    pack_bundle_at(LEVEL, program, build, key)
}

/// As [`pack_bundle`], at a level of compression from 1, quick, to 22, small.
///
/// # Errors
/// As [`pack_bundle`].
pub fn pack_bundle_at(level: i32, program: &[u8], build: &Build, key: &SecretKey) -> Result<Vec<u8>, BundleError> {
    let size = program.len() as u64;
    if size > LARGEST {
        return Err(BundleError::TooLarge { what: "program", size });
    }
    let payload = zstd::bulk::compress(program, level).map_err(BundleError::Compress)?;
    let manifest = BundleManifest {
        build: build.clone(),
        size,
        sha256: sum::of(program),
        payload_size: payload.len() as u64,
        payload_sha256: sum::of(&payload),
    };
    manifest.check_sizes()?;
    let document = manifest.document();
    BundleManifest::understand(&document)?;
    let mut bundle = document.sign(key)?.into_bytes();
    bundle.push(b'\n');
    bundle.extend_from_slice(&payload);
    Ok(bundle)
}

/// Opens a bundle, and only one that a trusted key has signed and that is whole.
///
/// # Errors
/// [`BundleError`].
pub fn open_bundle(bundle: impl Read, trusted: &[PublicKey]) -> Result<Opened, BundleError> {
    let mut bundle = BufReader::new(bundle);
    let manifest = BundleManifest::read(&mut bundle, trusted)?;
    let expected = manifest.payload_size;
    let mut payload = Vec::new();
    // One byte more than declared tells a bundle that goes on from one that ends.
    bundle.take(expected + 1).read_to_end(&mut payload).map_err(BundleError::Read)?;
    let found = payload.len() as u64;
    if found < expected {
        return Err(BundleError::Truncated { found, expected });
    }
    if found > expected {
        return Err(BundleError::Trailing);
    }
    if sum::of(&payload) != manifest.payload_sha256 {
        return Err(BundleError::OtherPayload);
    }
    let program = decompress(&payload, manifest.size)?;
    if program.len() as u64 != manifest.size || sum::of(&program) != manifest.sha256 {
        return Err(BundleError::OtherProgram);
    }
    Ok(Opened { manifest, program })
}

/// At most one byte more than `size`, which is enough to see that it is too much.
fn decompress(payload: &[u8], size: u64) -> Result<Vec<u8>, BundleError> {
    let mut program = Vec::new();
    let decoder = zstd::stream::read::Decoder::new(payload).map_err(BundleError::Decompress)?;
    decoder.take(size + 1).read_to_end(&mut program).map_err(BundleError::Decompress)?;
    Ok(program)
}

/// The text from the first byte to the line that ends it, and the empty line behind it, which is left out.
fn armour(bundle: &mut impl BufRead) -> Result<String, BundleError> {
    let (mut text, last) = (Vec::new(), end(KIND));
    loop {
        let start = text.len();
        // One byte more than a document may have: the reader of documents then says that it is too long.
        let room = (LONGEST + 1 - start) as u64;
        let read = bundle.by_ref().take(room).read_until(b'\n', &mut text).map_err(BundleError::Read)?;
        if read == 0 || text.last() != Some(&b'\n') {
            // What follows says better what is wrong than that something ended.
            break;
        }
        if text[start..].trim_ascii_end() == last.as_bytes() {
            return after_armour(bundle, text);
        }
    }
    into_text(text)
}

fn after_armour(bundle: &mut impl BufRead, text: Vec<u8>) -> Result<String, BundleError> {
    let mut line = [0];
    match bundle.read_exact(&mut line) {
        Ok(()) if line == *b"\n" => into_text(text),
        Ok(()) => {
            Err(DocumentError::Damaged { kind: KIND, what: "no empty line stands between manifest and payload".into() }.into())
        }
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(DocumentError::Damaged { kind: KIND, what: "nothing stands behind its manifest".into() }.into())
        }
        Err(error) => Err(BundleError::Read(error)),
    }
}

fn into_text(bytes: Vec<u8>) -> Result<String, BundleError> {
    String::from_utf8(bytes).map_err(|error| match error.as_bytes().starts_with(begin(KIND).as_bytes()) {
        true => DocumentError::Damaged { kind: KIND, what: "its manifest is no text".into() }.into(),
        false => DocumentError::NotThere { kind: KIND }.into(),
    })
}

/// A field that can be part of a file's name, and of no path.
fn name(document: &Document, field: &str) -> Result<String, DocumentError> {
    let text = document.need(field)?;
    let fit = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'+' | b'_' | b'-');
    if text.len() <= 64 && text.bytes().all(fit) && text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        Ok(text.to_owned())
    } else {
        Err(document.damaged(format!("{field}: {text:?} is not a word of at most 64 letters, digits and . + _ -")))
    }
}

#[cfg(test)]
mod tests;
