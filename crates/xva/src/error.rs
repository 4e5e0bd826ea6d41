//! What can be wrong with an archive.

use std::io;

/// An archive that is not whole, or not an archive.
#[derive(Debug, thiserror::Error)]
pub enum XvaError {
    /// The source failed.
    #[error("cannot read the XVA at byte {position}")]
    Io {
        /// Bytes read until then.
        position: u64,
        /// Cause.
        source: io::Error,
    },
    /// The archive ends too early.
    #[error("the XVA is cut: it ends at byte {position}, in {part}")]
    Truncated {
        /// Length of what came, bytes (compressed ones if it is compressed).
        position: u64,
        /// What was being read.
        part: String,
    },
    /// The compressed stream around the archive is damaged.
    #[error("the {compression} stream of the XVA is damaged near byte {position}")]
    Compressed {
        /// `gzip` or `zstd`.
        compression: &'static str,
        /// Compressed bytes read until then.
        position: u64,
        /// Cause.
        source: io::Error,
    },
    /// Something follows the end of the compressed stream.
    #[error("the {compression} stream of the XVA is followed by other data at byte {position}")]
    TrailingCompressed {
        /// `gzip` or `zstd`.
        compression: &'static str,
        /// Where the other data begins, bytes.
        position: u64,
    },
    /// A record that should be a tar header is none.
    #[error("not a tar header at byte {position} of the XVA: {reason}")]
    TarHeader {
        /// Position in the uncompressed archive, bytes.
        position: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The first entry is something else.
    #[error("not an XVA: its first entry is \"{}\", not ova.xml", found.escape_debug())]
    OvaXmlNotFirst {
        /// Name of the first entry.
        found: String,
    },
    /// An archive without any entry.
    #[error("the XVA is empty: it has no ova.xml")]
    Empty,
    /// An entry that does not belong into an XVA.
    #[error("unexpected entry \"{}\" at byte {position} of the XVA: {reason}", name.escape_debug())]
    Entry {
        /// Its name.
        name: String,
        /// Position in the uncompressed archive, bytes.
        position: u64,
        /// Why it does not belong there.
        reason: &'static str,
    },
    /// An entry larger than any real one.
    #[error("entry \"{}\" of the XVA is {size} bytes long, at most {maximum} are accepted", name.escape_debug())]
    TooLarge {
        /// Its name.
        name: String,
        /// Its size, bytes.
        size: u64,
        /// The most accepted, bytes.
        maximum: u64,
    },
    /// The data of a chunk are not what its checksum says.
    #[error("checksum of chunk {chunk} of the XVA: {stored} is written, {computed} is true")]
    Checksum {
        /// Name of the chunk.
        chunk: String,
        /// Checksum in the archive.
        stored: String,
        /// Checksum of the data.
        computed: String,
    },
    /// A chunk that is not followed by its checksum, in an archive with checksums.
    #[error("chunk {chunk} of the XVA is not followed by its checksum")]
    ChecksumMissing {
        /// Name of the chunk.
        chunk: String,
    },
    /// Something other than zeros after the end of the archive.
    #[error("the XVA does not end at its end: other data follow at byte {position}")]
    Trailing {
        /// Position in the uncompressed archive, bytes.
        position: u64,
    },
}
