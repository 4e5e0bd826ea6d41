//! `backhauld fingerprint`: which certificate clients see, told by the side that holds it, for whoever compares.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tls::{Fingerprint, SelfSigned, Trust};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::certificate::{own, own_file};
use crate::config::Config;
use crate::daemon::StartError;

/// For a daemon on the same machine.
const ANSWER: Duration = Duration::from_secs(5);

/// The fingerprint; none: there is no certificate before the first start.
///
/// # Errors
/// A certificate cannot be read, or is none.
pub async fn fingerprint(config: &Config) -> Result<Option<Fingerprint>, StartError> {
    let file = own_file(config);
    let of = |certificate: SelfSigned, path: &std::path::Path| {
        certificate.fingerprint().map_err(|source| StartError::Certificate { path: path.to_owned(), source })
    };
    let own = own(&file)?.map(|certificate| of(certificate, &file)).transpose()?;
    let Some(files) = &config.tls else { return Ok(own) };
    let path = files.certificate.clone();
    let pem = std::fs::read_to_string(&path).map_err(|source| StartError::CertificateFile {
        what: "read",
        path: path.clone(),
        source,
    })?;
    let configured = of(SelfSigned { certificate_pem: pem, key_pem: String::new() }, &path)?;
    if own.is_none_or(|own| own == configured) {
        return Ok(Some(configured));
    }
    // A renewed one may stand in the place of the configured one; the state says so, and it is the running daemon's.
    match seen(config.listen).await {
        Some(seen) if Some(seen) == own || seen == configured => Ok(Some(seen)),
        _ => {
            tracing::warn!("the daemon does not answer: this is the configured certificate, unless it was renewed since");
            Ok(Some(configured))
        }
    }
}

/// What the daemon shows on this machine.
async fn seen(listen: SocketAddr) -> Option<Fingerprint> {
    let near = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    let (trust, cell) = Trust::first_use();
    let connector = TlsConnector::from(Arc::new(tls::client_config(trust)));
    let talk = async {
        let stream = TcpStream::connect((near, listen.port())).await.ok()?;
        connector.connect(near.into(), stream).await.ok().map(drop)
    };
    tokio::time::timeout(ANSWER, talk).await.ok()??;
    cell.lock().ok().and_then(|seen| *seen)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[tokio::test]
    async fn what_is_there_is_told_and_nothing_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let parse = |more: &str| {
            let text = format!("state_dir = \"state\"\nlisten = \"127.0.0.1:1\"\n{more}");
            Config::parse(&dir.path().join("backhauld.toml"), &text).unwrap()
        };
        assert_eq!(fingerprint(&parse("")).await.unwrap(), None);
        assert!(!dir.path().join("state").exists());

        let write = |path: &Path| {
            let made = SelfSigned::generate(&["localhost"]).unwrap();
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            crate::files::write_private(path, format!("{}{}", made.certificate_pem, made.key_pem).as_bytes()).unwrap();
            Some(made.fingerprint().unwrap())
        };
        let own = write(&dir.path().join("state/certificate.pem"));
        assert_eq!(fingerprint(&parse("")).await.unwrap(), own);
        let configured = write(&dir.path().join("other.pem"));
        let config = parse("[tls]\ncertificate = \"other.pem\"\nkey = \"other.pem\"\n");
        assert_eq!(fingerprint(&config).await.unwrap(), configured);
        std::fs::write(dir.path().join("other.pem"), "nothing").unwrap();
        fingerprint(&config).await.unwrap_err();
    }
}
