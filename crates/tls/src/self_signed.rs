//! A self-signed certificate with its key.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::Fingerprint;

/// A certificate and its key, both in PEM.
#[derive(Clone)]
pub struct SelfSigned {
    /// Certificate, PEM.
    pub certificate_pem: String,
    /// Private key, PKCS#8 PEM. A secret.
    pub key_pem: String,
}

/// A certificate that cannot be made or read.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Making failed.
    #[error("cannot make a self-signed certificate for {names}")]
    Generate {
        /// The names asked for.
        names: String,
        /// Cause.
        source: rcgen::Error,
    },
    /// The PEM text holds no certificate or key.
    #[error("the PEM text holds no usable {what}")]
    Pem {
        /// `certificate` or `private key`.
        what: &'static str,
        /// Cause.
        source: rustls::pki_types::pem::Error,
    },
    /// Key and certificate do not fit together.
    #[error("the private key does not fit the certificate")]
    Mismatch(#[source] rustls::Error),
    /// What stands in a certificate cannot be read.
    #[error("the certificate cannot be read: {reason}")]
    Unreadable {
        /// What is wrong with it.
        reason: String,
    },
}

impl SelfSigned {
    /// Makes one for host names and addresses.
    pub fn generate(names: &[&str]) -> Result<Self, CertificateError> {
        let made = rcgen::generate_simple_self_signed(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
            .map_err(|source| CertificateError::Generate { names: names.join(", "), source })?;
        Ok(Self { certificate_pem: made.cert.pem(), key_pem: made.signing_key.serialize_pem() })
    }

    /// Certificates of the PEM text, leaf first.
    pub fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
        CertificateDer::pem_slice_iter(self.certificate_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| CertificateError::Pem { what: "certificate", source })
    }

    /// Fingerprint of the leaf.
    pub fn fingerprint(&self) -> Result<Fingerprint, CertificateError> {
        let leaf = CertificateDer::from_pem_slice(self.certificate_pem.as_bytes())
            .map_err(|source| CertificateError::Pem { what: "certificate", source })?;
        Ok(Fingerprint::of(&leaf))
    }

    /// A server configuration that shows it.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, CertificateError> {
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())
            .map_err(|source| CertificateError::Pem { what: "private key", source })?;
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(CertificateError::Mismatch)?
            .with_no_client_auth()
            .with_single_cert(self.certificates()?, key)
            .map_err(CertificateError::Mismatch)?;
        Ok(Arc::new(config))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;
    use crate::{Trust, client_config};

    async fn handshake(server: &SelfSigned, trust: Trust) -> std::io::Result<()> {
        let (near, far) = tokio::io::duplex(1 << 16);
        let acceptor = TlsAcceptor::from(server.server_config().unwrap());
        let connector = TlsConnector::from(Arc::new(client_config(trust)));
        let name = "localhost".try_into().unwrap();
        let (client, _server) = tokio::join!(connector.connect(name, near), acceptor.accept(far));
        client.map(drop)
    }

    #[tokio::test]
    async fn only_the_pinned_certificate_is_accepted() {
        let (one, other) = (SelfSigned::generate(&["localhost"]).unwrap(), SelfSigned::generate(&["localhost"]).unwrap());
        handshake(&one, Trust::Pinned(one.fingerprint().unwrap())).await.unwrap();
        handshake(&one, Trust::Pinned(other.fingerprint().unwrap())).await.unwrap_err();
    }

    #[tokio::test]
    async fn a_first_contact_tells_the_fingerprint() {
        let server = SelfSigned::generate(&["10.0.0.1", "localhost"]).unwrap();
        let (trust, seen) = Trust::first_use();
        handshake(&server, trust).await.unwrap();
        assert_eq!(*seen.lock().unwrap(), Some(server.fingerprint().unwrap()));
    }
}
