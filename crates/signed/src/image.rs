//! Manifests of appliance images: what an image must be, by whom it was made.

use crate::{Document, DocumentError, PublicKey, SecretKey};

const KIND: &str = "image";

/// What an image must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageManifest {
    /// Version of the appliance.
    pub version: String,
    /// Size of the file, bytes.
    pub size: u64,
    /// SHA-256 of the file, hexadecimal in lower case.
    pub sha256: String,
}

impl ImageManifest {
    /// The signed text.
    pub fn sign(&self, key: &SecretKey) -> String {
        Document::new(KIND)
            .with("Version", &self.version)
            .with("Size", self.size.to_string())
            .with("SHA-256", &self.sha256)
            .sign(key)
    }

    /// Reads a signed text.
    ///
    /// # Errors
    /// It is no manifest, was changed, or is signed by nobody trusted here.
    pub fn read(text: &str, trusted: &[PublicKey]) -> Result<Self, DocumentError> {
        let document = Document::open(KIND, text, trusted)?;
        let sha256 = document.need("SHA-256")?.to_ascii_lowercase();
        if sha256.len() != 64 || !sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(DocumentError::Damaged { kind: KIND, what: "its SHA-256 has not 64 hexadecimal digits".into() });
        }
        Ok(Self { version: document.need("Version")?.to_owned(), size: document.read_as("Size")?, sha256 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_reads_back_and_its_sum_is_checked() {
        let key = SecretKey::generate().unwrap();
        let manifest = ImageManifest { version: "0.1.0".into(), size: 7, sha256: "ab".repeat(32) };
        assert_eq!(ImageManifest::read(&manifest.sign(&key), &[key.public()]).unwrap(), manifest);
        let short = ImageManifest { sha256: "ab".into(), ..manifest };
        ImageManifest::read(&short.sign(&key), &[key.public()]).unwrap_err();
    }
}
