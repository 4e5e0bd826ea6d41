//! Certificates: make a self-signed one, pin one by its fingerprint.
//!
//! Trust in this house is pinned, never skipped: pools, NBD servers and proxies have self-signed certificates, so a
//! peer is known by the SHA-256 of the certificate it shows. The first time, the fingerprint is observed and shown
//! to a person on both sides; afterwards only that certificate is accepted.

mod facts;
mod pin;
mod self_signed;

pub use facts::Facts;
pub use pin::{Fingerprint, ParseFingerprintError, Trust, client_config};
pub use self_signed::{CertificateError, SelfSigned};

/// The one cryptographic provider of the process. Harmless to call again.
pub fn install_provider() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
