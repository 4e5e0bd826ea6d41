//! Where a disk is served.

use std::fmt;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tls::Fingerprint;

use crate::NbdError;

/// The longest export name a server must accept, bytes.
const MAX_NAME: usize = 4096;

/// The name of an export. A pool puts a session into it, so it is a credential: it prints as nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct ExportName(String);

impl ExportName {
    /// # Errors
    /// [`NbdError::ExportName`] for more than 4096 bytes.
    pub fn new(name: impl Into<String>) -> Result<Self, NbdError> {
        let name = name.into();
        if name.len() > MAX_NAME { Err(NbdError::ExportName { length: name.len() }) } else { Ok(Self(name)) }
    }

    /// The name, for the wire only.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ExportName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ExportName(..)")
    }
}

/// Whether a connection is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// Always, and the server shows the certificate of this fingerprint.
    Required(Fingerprint),
    /// The same if the server offers TLS; in clear if it says that it does not. For networks whose purpose is
    /// `insecure_nbd`, for which a pool hands out a certificate all the same.
    Preferred(Fingerprint),
    /// Never.
    Plain,
}

impl Tls {
    /// Always, with the certificate a pool handed out (`cert` of `VDI.get_nbd_info`).
    ///
    /// # Errors
    /// [`NbdError::Certificate`] when the text is no PEM certificate.
    pub fn required(certificate_pem: &str) -> Result<Self, NbdError> {
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(NbdError::Certificate)?;
        Ok(Self::Required(Fingerprint::of(&certificate)))
    }
}

/// One place where a disk is served.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Host name or IP address.
    pub address: String,
    /// TCP port; 10809 in pools.
    pub port: u16,
    /// The export.
    pub export_name: ExportName,
    /// Encryption.
    pub tls: Tls,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bracketed = self.address.contains(':') && !self.address.starts_with('[');
        if bracketed { write!(f, "[{}]:{}", self.address, self.port) } else { write!(f, "{}:{}", self.address, self.port) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_prints_no_secret() {
        let export_name = ExportName::new("/vdi?session_id=OpaqueRef:secret").unwrap();
        let endpoint = Endpoint { address: "fd00::1".into(), port: 10809, export_name, tls: Tls::Plain };
        assert_eq!(endpoint.to_string(), "[fd00::1]:10809");
        assert!(!format!("{endpoint:?} {endpoint:#?}").contains("secret"));
    }

    #[test]
    fn what_is_no_name_and_no_certificate() {
        assert!(matches!(ExportName::new("x".repeat(4097)), Err(NbdError::ExportName { length: 4097 })));
        assert!(matches!(Tls::required("-----BEGIN NOTHING-----"), Err(NbdError::Certificate(_))));
    }

    #[test]
    fn a_certificate_is_known_by_its_fingerprint() {
        let made = tls::SelfSigned::generate(&["host"]).unwrap();
        assert_eq!(Tls::required(&made.certificate_pem).unwrap(), Tls::Required(made.fingerprint().unwrap()));
    }
}
