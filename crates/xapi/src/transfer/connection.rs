//! One TLS connection for one transfer, and what to say when it cannot be made.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Body;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tls::{Fingerprint, Trust};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::task::AbortOnDropHandle;
use url::{Host, Url};

use crate::error::Source;
use crate::rpc::tls_cause;
use crate::session::{Session, address};
use crate::{Client, Error, Result};

/// A connection that serves one request; dropping `driver` closes it.
pub(super) struct Connection<B> {
    pub(super) sender: SendRequest<B>,
    pub(super) driver: AbortOnDropHandle<()>,
}

impl Client {
    /// Connects to where `url` points.
    pub(super) async fn open<B>(&self, url: &Url, session: &Session) -> Result<Connection<B>>
    where
        B: Body + Send + Unpin + 'static,
        B::Data: Send,
        B::Error: Into<Source>,
    {
        let trust = self.trust_for(url, session).await;
        let patience = self.timing().connect;
        let stream = match handshake(url, trust.clone(), patience).await {
            Ok(stream) => stream,
            Err(error) => return Err(refused(url, &trust, patience, error.into()).await),
        };
        let (sender, driver) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| Error::Connect { address: address(url), source: error.into() })?;
        let driver = AbortOnDropHandle::new(tokio::spawn(async move {
            // How it ended is told to whoever reads the response.
            let _ = driver.await;
        }));
        Ok(Connection { sender, driver })
    }
}

async fn handshake(url: &Url, trust: Trust, patience: Duration) -> io::Result<TlsStream<TcpStream>> {
    let port = url.port_or_known_default().unwrap_or(443);
    let connect = async {
        let (tcp, name) = match url.host() {
            Some(Host::Ipv4(ip)) => (TcpStream::connect((ip, port)).await?, ServerName::IpAddress(ip.into())),
            Some(Host::Ipv6(ip)) => (TcpStream::connect((ip, port)).await?, ServerName::IpAddress(ip.into())),
            Some(Host::Domain(name)) => {
                (TcpStream::connect((name, port)).await?, ServerName::try_from(name.to_owned()).map_err(io::Error::other)?)
            }
            None => return Err(io::Error::other("no host")),
        };
        tcp.set_nodelay(true)?;
        TlsConnector::from(Arc::new(tls::client_config(trust))).connect(name, tcp).await
    };
    tokio::time::timeout(patience, connect)
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer in {} s", patience.as_secs_f32()))))
}

/// The certificate shown at `url`.
pub(crate) async fn fingerprint(url: &Url, patience: Duration) -> Result<Fingerprint> {
    let (trust, seen) = Trust::first_use();
    handshake(url, trust, patience).await.map_err(|error| Error::Connect { address: address(url), source: error.into() })?;
    let seen = seen.lock().ok().and_then(|seen| *seen);
    seen.ok_or_else(|| Error::Connect { address: address(url), source: "it showed no certificate".into() })
}

/// The fingerprint of a certificate in PEM, when the text is one.
pub(crate) fn fingerprint_of_pem(pem: &str) -> Option<Fingerprint> {
    CertificateDer::from_pem_slice(pem.as_bytes()).ok().map(|certificate| Fingerprint::of(&certificate))
}

/// The error of a connection that was not made: when the certificate was not the trusted one, both fingerprints are
/// in it, for a person to compare.
pub(crate) async fn refused(url: &Url, trust: &Trust, patience: Duration, source: Source) -> Error {
    if let (Trust::Pinned(expected), Some(rustls::Error::InvalidCertificate(_))) = (trust, tls_cause(&*source))
        && let Ok(seen) = fingerprint(url, patience).await
        && seen != *expected
    {
        return Error::Certificate { address: address(url), seen, expected: *expected };
    }
    Error::Connect { address: address(url), source }
}
