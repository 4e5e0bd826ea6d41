//! The compression around an archive, undone in steps of bounded size and done for those who make one.

use std::fmt;
use std::io::{self, Write};

use bytes::Bytes;
use flate2::write::{GzDecoder, GzEncoder};
use zstd::stream::raw::{Decoder as RawZstd, Operation};

use crate::XvaError;

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xB5, 0x2F, 0xFD];
const GZIP_MAGIC: [u8; 2] = [0x1F, 0x8B];
/// Bytes of output of one step.
const STEP: usize = 256 << 10;
/// Memory a zstd stream may ask for, as a power of two: 128 MiB, what the `zstd` program itself accepts by default.
const ZSTD_WINDOW_LOG: u32 = 27;

/// How an archive is compressed as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not.
    None,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

impl Compression {
    /// How many bytes of the beginning [`Compression::detect`] needs.
    pub const DETECTION: usize = 4;

    /// What a stream beginning with these bytes is compressed with. Fewer than [`Compression::DETECTION`] bytes are an
    /// archive cut before it began, and taken for an uncompressed one.
    pub fn detect(beginning: &[u8]) -> Self {
        if beginning.starts_with(&ZSTD_MAGIC) {
            Self::Zstd
        } else if beginning.starts_with(&GZIP_MAGIC) {
            Self::Gzip
        } else {
            Self::None
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::None => "uncompressed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Finds out the compression and undoes it.
pub(crate) struct Decompressor {
    decoder: Decoder,
    /// Bytes taken in.
    position: u64,
}

enum Decoder {
    Undecided(Vec<u8>),
    None,
    Gzip { decoder: Box<GzDecoder<Vec<u8>>> },
    Zstd { decoder: RawZstd<'static>, output: Vec<u8>, in_frame: bool },
}

impl Decompressor {
    pub fn new() -> Self {
        Self { decoder: Decoder::Undecided(Vec::new()), position: 0 }
    }

    /// Bytes taken in.
    pub fn position(&self) -> u64 {
        self.position
    }

    pub fn compression(&self) -> Compression {
        match self.decoder {
            Decoder::Undecided(_) | Decoder::None => Compression::None,
            Decoder::Gzip { .. } => Compression::Gzip,
            Decoder::Zstd { .. } => Compression::Zstd,
        }
    }

    /// Takes all of `input` and gives what it stands for to `sink`, in pieces of bounded size.
    pub fn push(&mut self, input: &[u8], sink: &mut impl FnMut(&[u8]) -> Result<(), XvaError>) -> Result<(), XvaError> {
        if let Decoder::Undecided(beginning) = &mut self.decoder {
            beginning.extend_from_slice(input);
            if beginning.len() < Compression::DETECTION {
                return Ok(());
            }
            let beginning = std::mem::take(beginning);
            let compression = Compression::detect(&beginning);
            self.decoder = Decoder::of(compression).map_err(damage(compression, 0))?;
            return self.decode(&beginning, sink);
        }
        self.decode(input, sink)
    }

    /// The end of the input: gives what is left to `sink`, and says whether the compressed stream is complete.
    pub fn finish(&mut self, sink: &mut impl FnMut(&[u8]) -> Result<(), XvaError>) -> Result<(), XvaError> {
        match &mut self.decoder {
            Decoder::Undecided(beginning) => {
                self.position = beginning.len() as u64;
                sink(beginning)
            }
            Decoder::None => Ok(()),
            Decoder::Gzip { decoder } => {
                let complete = decoder.try_finish();
                sink(decoder.get_ref())?;
                // The decoder has one complaint for a wrong checksum and a cut one; behind a whole one it takes no byte.
                let corrupt = complete.as_ref().is_err_and(|source| source.kind() != io::ErrorKind::UnexpectedEof);
                let whole = corrupt && matches!(decoder.write(&[0]), Ok(0));
                complete.map_err(|source| if whole { damage(Compression::Gzip, self.position)(source) } else { self.cut() })
            }
            Decoder::Zstd { in_frame, .. } => {
                if *in_frame {
                    return Err(self.cut());
                }
                Ok(())
            }
        }
    }

    fn decode(&mut self, mut input: &[u8], sink: &mut impl FnMut(&[u8]) -> Result<(), XvaError>) -> Result<(), XvaError> {
        while !input.is_empty() {
            let damaged = damage(self.compression(), self.position);
            let taken = match &mut self.decoder {
                Decoder::Undecided(_) | Decoder::None => {
                    sink(input)?;
                    input.len()
                }
                Decoder::Gzip { decoder } => {
                    // One `write` decodes at most one internal buffer, so output cannot run away from a tiny input.
                    let result = decoder.write(input);
                    let output = decoder.get_mut();
                    sink(output)?;
                    output.clear();
                    result.map_err(damaged)?
                }
                Decoder::Zstd { decoder, output, in_frame } => {
                    let status = decoder.run_on_buffers(input, output).map_err(damaged)?;
                    *in_frame = status.remaining != 0;
                    sink(&output[..status.bytes_written])?;
                    if status.bytes_read == 0 && status.bytes_written > 0 {
                        continue;
                    }
                    status.bytes_read
                }
            };
            if taken == 0 {
                return Err(XvaError::TrailingCompressed { compression: self.compression().name(), position: self.position });
            }
            self.position += taken as u64;
            input = &input[taken..];
        }
        self.drain(sink)
    }

    /// Output that zstd still holds although it has taken all input.
    fn drain(&mut self, sink: &mut impl FnMut(&[u8]) -> Result<(), XvaError>) -> Result<(), XvaError> {
        let damaged = damage(self.compression(), self.position);
        while let Decoder::Zstd { decoder, output, in_frame: in_frame @ true } = &mut self.decoder {
            let status = decoder.run_on_buffers(&[], output).map_err(damaged)?;
            *in_frame = status.remaining != 0;
            if status.bytes_written == 0 {
                break;
            }
            sink(&output[..status.bytes_written])?;
        }
        Ok(())
    }

    fn cut(&self) -> XvaError {
        XvaError::Truncated { position: self.position, part: format!("the {} stream", self.compression()) }
    }
}

/// Makes a decoder's complaint an error that says where.
fn damage(compression: Compression, position: u64) -> impl Fn(io::Error) -> XvaError + Copy {
    move |source| XvaError::Compressed { compression: compression.name(), position, source }
}

impl Decoder {
    fn of(compression: Compression) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::None,
            Compression::Gzip => Self::Gzip { decoder: Box::new(GzDecoder::new(Vec::new())) },
            Compression::Zstd => {
                let mut decoder = RawZstd::new()?;
                decoder.set_parameter(zstd::zstd_safe::DParameter::WindowLogMax(ZSTD_WINDOW_LOG))?;
                Self::Zstd { decoder, output: vec![0; STEP], in_frame: true }
            }
        })
    }
}

/// Compresses a stream piece by piece, as a pool does on its way out.
pub struct Compressor {
    encoder: Encoder,
}

enum Encoder {
    None,
    Gzip(GzEncoder<Vec<u8>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

impl Compressor {
    /// # Errors
    /// What the compressor says when it cannot begin: memory.
    pub fn new(compression: Compression) -> io::Result<Self> {
        let encoder = match compression {
            Compression::None => Encoder::None,
            Compression::Gzip => Encoder::Gzip(GzEncoder::new(Vec::new(), flate2::Compression::fast())),
            Compression::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1)?;
                // The `zstd` program that pools use appends a checksum too.
                encoder.include_checksum(true)?;
                Encoder::Zstd(encoder)
            }
        };
        Ok(Self { encoder })
    }

    /// Takes a piece; gives what is ready, maybe nothing. Without compression, the piece itself.
    ///
    /// # Errors
    /// What the compressor says.
    pub fn push(&mut self, piece: Bytes) -> io::Result<Bytes> {
        match &mut self.encoder {
            Encoder::None => Ok(piece),
            Encoder::Gzip(encoder) => {
                encoder.write_all(&piece)?;
                Ok(std::mem::take(encoder.get_mut()).into())
            }
            Encoder::Zstd(encoder) => {
                encoder.write_all(&piece)?;
                Ok(std::mem::take(encoder.get_mut()).into())
            }
        }
    }

    /// The rest of the stream.
    ///
    /// # Errors
    /// What the compressor says.
    pub fn finish(self) -> io::Result<Bytes> {
        match self.encoder {
            Encoder::None => Ok(Bytes::new()),
            Encoder::Gzip(encoder) => encoder.finish().map(Into::into),
            Encoder::Zstd(encoder) => encoder.finish().map(Into::into),
        }
    }
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}

impl fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decompressor").field("compression", &self.compression()).field("position", &self.position).finish()
    }
}
