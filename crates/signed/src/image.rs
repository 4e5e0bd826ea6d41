//! Manifests of appliance images: what an image must be, what it needs, by whom it was made; and the check of an image
//! while it passes by.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::{Document, DocumentError, PublicKey, SecretKey, sum};

const KIND: &str = "image";
const FIELDS: [&str; 7] = ["Version", "Format", "Size", "SHA-256", "Minimum-Memory", "Minimum-VCPUs", "Minimum-Disk"];

/// What an image must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageManifest {
    /// Version of the appliance.
    pub version: String,
    /// What kind of file it is.
    pub format: ImageFormat,
    /// Size of the file, bytes.
    pub size: u64,
    /// SHA-256 of the file, hexadecimal in lower case.
    pub sha256: String,
    /// The least a VM made of it needs.
    pub needs: ImageNeeds,
}

/// A kind of image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// An archive of a VM that a pool imports.
    Xva,
    /// A disk as it is.
    Raw,
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Xva => "xva",
            Self::Raw => "raw",
        })
    }
}

impl FromStr for ImageFormat {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "xva" => Ok(Self::Xva),
            "raw" => Ok(Self::Raw),
            _ => Err(()),
        }
    }
}

/// The least a VM needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageNeeds {
    /// Memory, bytes.
    pub memory: u64,
    /// Virtual processors.
    pub vcpus: u32,
    /// Disk, bytes.
    pub disk: u64,
}

impl ImageManifest {
    /// The signed text.
    ///
    /// # Errors
    /// What it says could not be read back.
    pub fn sign(&self, key: &SecretKey) -> Result<String, DocumentError> {
        let document = Document::new(KIND)
            .with("Version", &self.version)
            .with("Format", self.format.to_string())
            .with("Size", self.size.to_string())
            .with("SHA-256", &self.sha256)
            .with("Minimum-Memory", self.needs.memory.to_string())
            .with("Minimum-VCPUs", self.needs.vcpus.to_string())
            .with("Minimum-Disk", self.needs.disk.to_string());
        Self::understand(&document)?;
        document.sign(key)
    }

    /// Reads a signed text.
    ///
    /// # Errors
    /// It is no manifest, was changed, or is signed by nobody trusted here.
    pub fn read(text: &str, trusted: &[PublicKey]) -> Result<Self, DocumentError> {
        Self::understand(&Document::open(KIND, text, trusted)?.only(&FIELDS)?)
    }

    fn understand(document: &Document) -> Result<Self, DocumentError> {
        Ok(Self {
            version: document.need("Version")?.to_owned(),
            format: document.read_as("Format")?,
            size: document.read_as("Size")?,
            sha256: sum::field(document, "SHA-256")?,
            needs: ImageNeeds {
                memory: document.read_as("Minimum-Memory")?,
                vcpus: document.read_as("Minimum-VCPUs")?,
                disk: document.read_as("Minimum-Disk")?,
            },
        })
    }

    /// Begins to check a file against it.
    pub fn check(&self) -> ImageCheck {
        ImageCheck { size: self.size, sha256: self.sha256.clone(), seen: 0, digest: Sha256::new() }
    }
}

/// An image that is not the one of its manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageFault {
    /// More came than there should be.
    #[error("the image is longer than the {size} bytes of its manifest; it is another file, or another version of it")]
    TooLong {
        /// Size it should have, bytes.
        size: u64,
    },
    /// It ended early.
    #[error("the image is cut off: {seen} of {size} bytes; download it again")]
    TooShort {
        /// Bytes that came.
        seen: u64,
        /// Size it should have, bytes.
        size: u64,
    },
    /// It is as long as it should be, but other bytes.
    #[error("the image is damaged or another one: its SHA-256 is {found}, its manifest says {expected}; download it again")]
    OtherSum {
        /// The sum of what came.
        found: String,
        /// The sum it should have.
        expected: String,
    },
}

/// The check of an image whose bytes pass by in order.
pub struct ImageCheck {
    size: u64,
    sha256: String,
    seen: u64,
    digest: Sha256,
}

impl ImageCheck {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// There are already more than there should be; nothing after that is worth reading.
    pub fn update(&mut self, bytes: &[u8]) -> Result<(), ImageFault> {
        self.seen = self.seen.saturating_add(bytes.len() as u64);
        if self.seen > self.size {
            return Err(ImageFault::TooLong { size: self.size });
        }
        self.digest.update(bytes);
        Ok(())
    }

    /// Says whether that was all of the right image.
    ///
    /// # Errors
    /// It was not.
    pub fn finish(self) -> Result<(), ImageFault> {
        let Self { size, sha256, seen, digest } = self;
        if seen > size {
            return Err(ImageFault::TooLong { size });
        }
        if seen < size {
            return Err(ImageFault::TooShort { seen, size });
        }
        let found = sum::hex(&digest.finalize());
        if found == sha256.to_ascii_lowercase() { Ok(()) } else { Err(ImageFault::OtherSum { found, expected: sha256 }) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn manifest(content: &[u8]) -> ImageManifest {
        ImageManifest {
            version: "0.1.0".into(),
            format: ImageFormat::Xva,
            size: content.len() as u64,
            sha256: sum::of(content),
            needs: ImageNeeds { memory: 2 << 30, vcpus: 2, disk: 20 << 30 },
        }
    }

    fn checked(manifest: &ImageManifest, content: &[u8], piece: usize) -> Result<(), ImageFault> {
        let mut check = manifest.check();
        content.chunks(piece).try_for_each(|piece| check.update(piece))?;
        check.finish()
    }

    #[test]
    fn a_manifest_reads_back_and_a_bad_one_is_not_signed() {
        let key = SecretKey::generate().unwrap();
        let manifest = manifest(b"content");
        let text = manifest.sign(&key).unwrap();
        assert_eq!(ImageManifest::read(&text, &[key.public()]).unwrap(), manifest);
        let short = ImageManifest { sha256: "ab".into(), ..manifest.clone() };
        assert!(short.sign(&key).unwrap_err().to_string().contains("64 hexadecimal digits"));
        ImageManifest { version: "1\nSize: 3".into(), ..manifest }.sign(&key).unwrap_err();
    }

    #[test]
    fn a_trusted_key_does_not_make_an_unknown_or_missing_line_good() {
        let key = SecretKey::generate().unwrap();
        let read = |document: Document| ImageManifest::read(&document.sign(&key).unwrap(), &[key.public()]).unwrap_err();
        assert!(read(Document::new(KIND).with("Version", "1")).to_string().contains("no line Format"));
        assert!(read(Document::new(KIND).with("Revoked", "yes")).to_string().contains("Revoked"));
    }

    #[test]
    fn an_image_that_is_not_its_manifests_is_told_how() {
        let manifest = manifest(b"content");
        assert_eq!(checked(&manifest, b"content", 3), Ok(()));
        assert_eq!(checked(&manifest, b"contents", 3), Err(ImageFault::TooLong { size: 7 }));
        assert_eq!(checked(&manifest, b"conten", 3), Err(ImageFault::TooShort { seen: 6, size: 7 }));
        assert!(matches!(checked(&manifest, b"Content", 3), Err(ImageFault::OtherSum { .. })));
        assert_eq!(checked(&manifest, b"", 1), Err(ImageFault::TooShort { seen: 0, size: 7 }));
    }

    #[test]
    fn a_fault_is_not_forgotten_by_who_goes_on_after_it() {
        let mut check = manifest(b"content").check();
        check.update(b"content").unwrap();
        check.update(b"!").unwrap_err();
        assert_eq!(check.finish(), Err(ImageFault::TooLong { size: 7 }));
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter_and_every_bit_does(
            content in proptest::collection::vec(any::<u8>(), 1..500), piece in 1usize..64, at in any::<prop::sample::Index>(), by in 1u8..,
        ) {
            let manifest = manifest(&content);
            prop_assert_eq!(checked(&manifest, &content, piece), Ok(()));
            let mut other = content.clone();
            other[at.index(content.len())] ^= by;
            let refused = matches!(checked(&manifest, &other, piece), Err(ImageFault::OtherSum { .. }));
            prop_assert!(refused);
        }
    }
}
