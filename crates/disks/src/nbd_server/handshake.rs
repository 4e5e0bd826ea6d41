//! Greeting and options, up to the choice of an export.

use std::io;
use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{NbdTls, Shared, Wire};
use crate::BlockRead;

const NBD_MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const REPLY_MAGIC: u64 = 0x0003_E889_0455_65A9;

const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;
/// Flags present, read-only, several connections see the same content.
const TRANSMISSION_FLAGS: u16 = 1 | 1 << 1 | 1 << 8;
/// A client has no reason for longer options; export names end at 4096.
const MAX_OPTION: u32 = 8192;

const EXPORT_NAME: u32 = 1;
const ABORT: u32 = 2;
const LIST: u32 = 3;
const START_TLS: u32 = 5;
const INFO: u32 = 6;
const GO: u32 = 7;

const ACK: u32 = 1;
const REP_INFO: u32 = 3;
const ERR_UNSUPPORTED: u32 = 0x8000_0001;
const ERR_POLICY: u32 = 0x8000_0002;
const ERR_INVALID: u32 = 0x8000_0003;
const ERR_TLS_REQUIRED: u32 = 0x8000_0005;
const ERR_UNKNOWN: u32 = 0x8000_0006;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

/// How the options ended.
pub(super) enum Next {
    /// The connection is to be closed.
    End,
    /// The client wants TLS and has been told to begin.
    StartTls(Arc<rustls::ServerConfig>),
    /// The client has chosen this disk.
    Serve(Arc<dyn BlockRead>),
}

/// Sends the greeting and reads the client's flags.
pub(super) async fn greet(wire: &mut impl Wire) -> io::Result<u32> {
    let mut greeting = BytesMut::with_capacity(18);
    greeting.put_u64(NBD_MAGIC);
    greeting.put_u64(OPTION_MAGIC);
    greeting.put_u16(FIXED_NEWSTYLE | NO_ZEROES);
    wire.write_all(&greeting).await?;
    wire.flush().await?;
    let flags = wire.read_u32().await?;
    if flags & !u32::from(FIXED_NEWSTYLE | NO_ZEROES) != 0 || flags & u32::from(FIXED_NEWSTYLE) == 0 {
        return Err(invalid("the client does not speak fixed newstyle"));
    }
    Ok(flags)
}

/// Answers options until one of them ends this part.
pub(super) async fn options(wire: &mut impl Wire, shared: &Shared, flags: u32, encrypted: bool) -> io::Result<Next> {
    loop {
        if wire.read_u64().await? != OPTION_MAGIC {
            return Err(invalid("an option without its magic"));
        }
        let (option, length) = (wire.read_u32().await?, wire.read_u32().await?);
        if length > MAX_OPTION {
            return Err(invalid("an option longer than any"));
        }
        let mut data = vec![0; length as usize];
        wire.read_exact(&mut data).await?;
        let locked = matches!(shared.tls, NbdTls::Required(_)) && !encrypted;
        match option {
            // This option has no error reply: all a server can do is hang up.
            EXPORT_NAME => return Ok(if locked { Next::End } else { export_name(wire, shared, flags, &data).await? }),
            ABORT => {
                reply(wire, option, ACK, &[]).await?;
                return Ok(Next::End);
            }
            START_TLS => match &shared.tls {
                NbdTls::Required(config) if !encrypted && data.is_empty() => {
                    if !shared.faults.get().refuse_tls {
                        reply(wire, option, ACK, &[]).await?;
                        return Ok(Next::StartTls(Arc::clone(config)));
                    }
                    reply(wire, option, ERR_POLICY, b"TLS is refused (simulated fault)").await?;
                }
                NbdTls::Required(_) => reply(wire, option, ERR_INVALID, &[]).await?,
                NbdTls::Off => reply(wire, option, ERR_POLICY, b"this server has no TLS").await?,
            },
            _ if locked => reply(wire, option, ERR_TLS_REQUIRED, &[]).await?,
            // Names are credentials: the list is empty.
            LIST => reply(wire, option, ACK, &[]).await?,
            INFO | GO => {
                let Some(name) = requested_name(&data) else {
                    reply(wire, option, ERR_INVALID, &[]).await?;
                    continue;
                };
                let Some(disk) = shared.resolve.resolve(name) else {
                    reply(wire, option, ERR_UNKNOWN, b"no such export").await?;
                    continue;
                };
                let mut export = BytesMut::with_capacity(12);
                export.put_u16(INFO_EXPORT);
                export.put_u64(disk.size());
                export.put_u16(TRANSMISSION_FLAGS);
                reply(wire, option, REP_INFO, &export).await?;
                let mut sizes = BytesMut::with_capacity(14);
                sizes.put_u16(INFO_BLOCK_SIZE);
                sizes.put_u32(1);
                sizes.put_u32(4096);
                sizes.put_u32(super::transmission::MAX_READ);
                reply(wire, option, REP_INFO, &sizes).await?;
                reply(wire, option, ACK, &[]).await?;
                if option == GO {
                    return Ok(Next::Serve(disk));
                }
            }
            _ => reply(wire, option, ERR_UNSUPPORTED, &[]).await?,
        }
    }
}

async fn export_name(wire: &mut impl Wire, shared: &Shared, flags: u32, name: &[u8]) -> io::Result<Next> {
    let Some(disk) = std::str::from_utf8(name).ok().and_then(|name| shared.resolve.resolve(name)) else {
        return Ok(Next::End);
    };
    let mut answer = BytesMut::with_capacity(134);
    answer.put_u64(disk.size());
    answer.put_u16(TRANSMISSION_FLAGS);
    if flags & u32::from(NO_ZEROES) == 0 {
        answer.put_bytes(0, 124);
    }
    wire.write_all(&answer).await?;
    wire.flush().await?;
    Ok(Next::Serve(disk))
}

/// The export name in the data of INFO or GO: its length, itself, then requests for details.
fn requested_name(data: &[u8]) -> Option<&str> {
    let (length, rest) = data.split_first_chunk::<4>()?;
    let (name, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    let (count, requests) = rest.split_first_chunk::<2>()?;
    (requests.len() == 2 * usize::from(u16::from_be_bytes(*count))).then(|| std::str::from_utf8(name).ok())?
}

async fn reply(wire: &mut impl Wire, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut bytes = BytesMut::with_capacity(20 + data.len());
    bytes.put_u64(REPLY_MAGIC);
    bytes.put_u32(option);
    bytes.put_u32(kind);
    bytes.put_u32(data.len() as u32);
    bytes.put_slice(data);
    wire.write_all(&bytes).await?;
    wire.flush().await
}

fn invalid(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_must_fill_exactly_what_it_announces() {
        let data = [&[0, 0, 0, 2][..], b"ab", &[0, 1, 0, 3]].concat();
        assert_eq!(requested_name(&data), Some("ab"));
        for cut in 0..data.len() {
            assert_eq!(requested_name(&data[..cut]), None, "{cut}");
        }
        assert_eq!(requested_name(&[0xFF; 10]), None);
    }
}
