//! From a TCP connection to an export that can be read (xapi-streams.md §3.2).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::pki_types::ServerName;
use tls::Trust;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::wire::{
    ACK, FIXED_NEWSTYLE, GREETING, NO_ZEROES, OPTION, OPTION_ABORT, OPTION_EXPORT_NAME, OPTION_REPLY, OPTION_STARTTLS, ZEROES,
};
use crate::{Endpoint, NbdError, Tls};

/// The longest text accepted behind an option reply, bytes. It explains an error, to nobody here.
const MAX_REPLY: u32 = 64 << 10;

/// A connection with or without TLS.
#[derive(Debug)]
pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Connects and chooses the export; gives the connection, ready for reads, and the size of the disk in bytes.
pub(crate) async fn open(endpoint: &Endpoint) -> Result<(Stream, u64), NbdError> {
    let (mut stream, zeroes) = greeted(endpoint).await?;
    let size = choose_export(endpoint, &mut stream, zeroes).await?;
    Ok((stream, size))
}

/// Whether a server answers and secures the connection as told; nothing is read, and the export's name is not sent.
/// `true`: the connection was encrypted. The caller limits the time.
///
/// # Errors
/// As for a connection that is read from.
pub async fn probe(endpoint: &Endpoint) -> Result<bool, NbdError> {
    let (mut stream, _) = greeted(endpoint).await?;
    // A host serves sixteen connections at most: this one is told that it is over. Whether it hears is its affair.
    let _ = stream.write_all(&option(OPTION_ABORT, b"")).await;
    let _ = stream.shutdown().await;
    Ok(matches!(stream, Stream::Tls(_)))
}

/// A connection up to where the export is chosen, and whether the server will pad its answer with zeros.
async fn greeted(endpoint: &Endpoint) -> Result<(Stream, bool), NbdError> {
    let host = endpoint.address.trim_start_matches('[').trim_end_matches(']');
    let connect = |source| NbdError::Connect { address: endpoint.to_string(), source };
    let tcp = TcpStream::connect((host, endpoint.port)).await.map_err(connect)?;
    // Requests are small and must not wait for company.
    tcp.set_nodelay(true).map_err(connect)?;
    let mut stream = Stream::Plain(tcp);
    let zeroes = greet(endpoint, &mut stream).await?;
    match endpoint.tls {
        Tls::Plain => {}
        Tls::Required(fingerprint) | Tls::Preferred(fingerprint) => match (start_tls(endpoint, &mut stream).await?, endpoint.tls)
        {
            (ACK, _) => stream = secure(endpoint, stream, Trust::Pinned(fingerprint)).await?,
            (_, Tls::Preferred(_)) => tracing::info!(%endpoint, "the NBD server has no TLS, going on in clear as allowed"),
            (reply, _) => return Err(NbdError::TlsRefused { address: endpoint.to_string(), reply }),
        },
    }
    Ok((stream, zeroes))
}

/// Exchanges greetings. `true` when the server will pad its answer with zeros.
async fn greet(endpoint: &Endpoint, stream: &mut Stream) -> Result<bool, NbdError> {
    let broken = broken(endpoint, "greeting");
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).await.map_err(broken)?;
    let not_nbd = |reason| NbdError::NotNbd { address: endpoint.to_string(), reason };
    if !greeting.starts_with(GREETING) {
        return Err(not_nbd("it does not begin with NBDMAGIC"));
    }
    if &greeting[8..16] != OPTION {
        return Err(not_nbd("it negotiates no options"));
    }
    let offered = u16::from_be_bytes([greeting[16], greeting[17]]);
    if offered & FIXED_NEWSTYLE == 0 {
        return Err(not_nbd("it lacks the flag"));
    }
    let flags = offered & (FIXED_NEWSTYLE | NO_ZEROES);
    stream.write_all(&u32::from(flags).to_be_bytes()).await.map_err(broken)?;
    Ok(flags & NO_ZEROES == 0)
}

/// Asks for TLS; gives the type of the reply.
async fn start_tls(endpoint: &Endpoint, stream: &mut Stream) -> Result<u32, NbdError> {
    let broken = broken(endpoint, "asked for TLS");
    stream.write_all(&option(OPTION_STARTTLS, b"")).await.map_err(broken)?;
    let magic = stream.read_u64().await.map_err(broken)?;
    let (about, kind) = (stream.read_u32().await.map_err(broken)?, stream.read_u32().await.map_err(broken)?);
    let length = stream.read_u32().await.map_err(broken)?;
    let protocol = |reason| NbdError::Protocol { address: endpoint.to_string(), reason };
    if magic != OPTION_REPLY || about != OPTION_STARTTLS {
        return Err(protocol("the answer to the request for TLS is something else"));
    }
    if length > MAX_REPLY || (kind == ACK && length > 0) {
        return Err(protocol("the answer to the request for TLS is too long"));
    }
    let mut explanation = vec![0; length as usize];
    stream.read_exact(&mut explanation).await.map_err(broken)?;
    Ok(kind)
}

async fn secure(endpoint: &Endpoint, stream: Stream, trust: Trust) -> Result<Stream, NbdError> {
    let Stream::Plain(tcp) = stream else { return Ok(stream) };
    // The certificate is pinned, so the name only matters for servers that choose a certificate by it.
    let name = ServerName::try_from(endpoint.address.clone());
    let name = name.or_else(|_| ServerName::try_from("localhost".to_owned()));
    let failed = |source| NbdError::Tls { address: endpoint.to_string(), source };
    let name = name.map_err(|source| failed(io::Error::other(source)))?;
    let connector = TlsConnector::from(Arc::new(tls::client_config(trust)));
    Ok(Stream::Tls(Box::new(connector.connect(name, tcp).await.map_err(failed)?)))
}

/// Names the export; gives its size in bytes.
async fn choose_export(endpoint: &Endpoint, stream: &mut Stream, zeroes: bool) -> Result<u64, NbdError> {
    // A server that does not know the export has no way to say so here but to close the connection.
    let refused = |source: io::Error| match source.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            NbdError::ExportRefused { address: endpoint.to_string() }
        }
        _ => broken(endpoint, "told the export")(source),
    };
    stream.write_all(&option(OPTION_EXPORT_NAME, endpoint.export_name.reveal().as_bytes())).await.map_err(refused)?;
    stream.flush().await.map_err(refused)?;
    let size = stream.read_u64().await.map_err(refused)?;
    let _transmission_flags = stream.read_u16().await.map_err(refused)?;
    if zeroes {
        stream.read_exact(&mut [0; ZEROES]).await.map_err(refused)?;
    }
    Ok(size)
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    [OPTION.as_slice(), &number.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data].concat()
}

fn broken(endpoint: &Endpoint, step: &'static str) -> impl Fn(io::Error) -> NbdError + Copy {
    move |source| NbdError::Handshake { address: endpoint.to_string(), step, source }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
