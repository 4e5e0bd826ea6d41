//! Checks an archive on its way to somewhere else.

use crate::archive::Archive;
use crate::compression::Decompressor;
use crate::{Summary, XvaError};

/// Watches the bytes of an archive, compressed or not, and says at the end whether it was whole: `ova.xml` first, chunks
/// in order and each true to its checksum, the mark of the end, a complete compressed stream around it.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let mut writer = xva::Writer::new();
/// # let pieces = [writer.ova_xml(b"<value/>".as_slice().into())?, vec![writer.finish()?]].concat();
/// let mut validator = xva::Validator::new();
/// for piece in pieces {
///     validator.push(&piece)?;
/// }
/// assert_eq!(validator.finish()?.ova_xml_length, 8);
/// # Ok(())
/// # }
/// ```
pub struct Validator {
    decompressor: Decompressor,
    archive: Archive,
}

impl Validator {
    /// A validator that has seen nothing.
    pub fn new() -> Self {
        Self { decompressor: Decompressor::new(), archive: Archive::new() }
    }

    /// Looks at the next bytes, in pieces of any size.
    ///
    /// # Errors
    /// The first fault of the archive. What follows one is not worth looking at.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), XvaError> {
        self.decompressor.push(bytes, &mut |piece| self.archive.push(piece, &mut ()))
    }

    /// The bytes have ended.
    ///
    /// # Errors
    /// [`XvaError::Truncated`] and its like when the archive has not.
    pub fn finish(mut self) -> Result<Summary, XvaError> {
        self.decompressor.finish(&mut |piece| self.archive.push(piece, &mut ()))?;
        self.archive.finish(self.decompressor.compression(), self.decompressor.position())
    }

    /// Bytes looked at.
    pub fn position(&self) -> u64 {
        self.decompressor.position()
    }
}

impl Default for Validator {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Validator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Validator").field("stream", &self.decompressor).finish_non_exhaustive()
    }
}
