//! SHA-256 in the form manifests have it.

use sha2::{Digest, Sha256};

use crate::{Document, DocumentError};

/// Hexadecimal digits in lower case.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The sum of bytes that are all there.
pub(crate) fn of(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// A field that holds a sum; in lower case, however it was written.
pub(crate) fn field(document: &Document, name: &str) -> Result<String, DocumentError> {
    let sum = document.need(name)?.to_ascii_lowercase();
    if sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(sum)
    } else {
        Err(document.damaged(format!("its {name} has not 64 hexadecimal digits")))
    }
}
