//! The certificate that connections see: the configured one, or our own, until it is renewed. A new one counts for the next
//! connection; those that are open go on with the one they began with.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use api::CertificateRenewParams;
use rustls::ServerConfig;
use tls::{CertificateError, Facts, Fingerprint, SelfSigned};

use crate::config::Config;
use crate::daemon::StartError;
use crate::fault::{Fault, Invalid};
use crate::files::write_private;
use crate::store::{Fact, Store};

/// The fingerprint of the configured certificate that a renewed one stands in the place of. With another one configured
/// since then, that one counts.
pub(super) const INSTEAD_OF: &str = "certificate_instead_of";
/// A certificate with its key that is to stand in the file and may not stand there yet, because the state is one transaction
/// and a file is another. Sealed.
pub(super) const PENDING: &str = "certificate_pending";

struct Shown {
    certificate: SelfSigned,
    fingerprint: Fingerprint,
    server: Arc<ServerConfig>,
}

impl Shown {
    fn of(certificate: SelfSigned) -> Result<Self, CertificateError> {
        let fingerprint = certificate.fingerprint()?;
        let mut server = Arc::unwrap_or_clone(certificate.server_config()?);
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { certificate, fingerprint, server: Arc::new(server) })
    }
}

/// The certificate of this proxy.
pub struct Certificates {
    store: Arc<Store>,
    /// Where our own stands, with its key.
    file: PathBuf,
    /// Names that a self-signed one is made for.
    names: Vec<String>,
    configured: Option<Fingerprint>,
    now: RwLock<Arc<Shown>>,
    changing: tokio::sync::Mutex<()>,
}

impl Certificates {
    /// Takes up the certificate: a renewed one, the configured one, or our own, which is made and kept at the first start,
    /// because clients pin it.
    ///
    /// # Errors
    /// It cannot be read, made or used.
    pub async fn open(store: Arc<Store>, config: &Config) -> Result<Arc<Self>, StartError> {
        let file = own_file(config);
        if let Some(pem) = store.sealed_fact(PENDING).await? {
            write_private(&file, pem.as_bytes()).map_err(written(&file))?;
            store.forget_facts(&[PENDING]).await?;
        }
        let names = names(config);
        let mut configured = None;
        let mut used = file.clone();
        let certificate = match &config.tls {
            Some(files) => {
                let read = |path: &PathBuf| {
                    let failed = |source| StartError::CertificateFile { what: "read", path: path.clone(), source };
                    std::fs::read_to_string(path).map_err(failed)
                };
                let given = SelfSigned { certificate_pem: read(&files.certificate)?, key_pem: read(&files.key)? };
                let wrong = |source| StartError::Certificate { path: files.certificate.clone(), source };
                let fingerprint = given.fingerprint().map_err(wrong)?;
                configured = Some(fingerprint);
                let renewed = store.fact(INSTEAD_OF).await?.is_some_and(|before| before == fingerprint.to_string());
                match renewed.then(|| own(&file)).transpose()?.flatten() {
                    Some(own) => own,
                    None => {
                        used.clone_from(&files.certificate);
                        given
                    }
                }
            }
            None => match own(&file)? {
                Some(own) => own,
                None => {
                    let made = made(&names).map_err(|source| StartError::Certificate { path: file.clone(), source })?;
                    write_private(&file, both(&made).as_bytes()).map_err(written(&file))?;
                    made
                }
            },
        };
        let shown = Shown::of(certificate).map_err(|source| StartError::Certificate { path: used, source })?;
        let now = RwLock::new(Arc::new(shown));
        Ok(Arc::new(Self { store, file, names, configured, now, changing: tokio::sync::Mutex::default() }))
    }

    fn shown(&self) -> Arc<Shown> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Fingerprint of the certificate that the next connection sees.
    pub fn fingerprint(&self) -> Fingerprint {
        self.shown().fingerprint
    }

    /// What stands in the certificate that the next connection sees.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn facts(&self) -> Result<Facts, CertificateError> {
        let chain = self.shown().certificate.certificates()?;
        let leaf = chain.first().ok_or_else(|| CertificateError::Unreadable { reason: "there is none".into() })?;
        Facts::of(leaf)
    }

    /// How the next connection is met.
    pub fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.shown().server)
    }

    /// Certificate and key as one text. A secret.
    pub(crate) fn pem(&self) -> String {
        both(&self.shown().certificate)
    }

    /// The fact by which this proxy remembers that a renewed certificate counts, for one that has another configured.
    pub(super) fn instead_of(&self) -> Option<String> {
        self.configured.map(|configured| configured.to_string())
    }

    /// Shows another certificate from the next connection on, and keeps it: a new self-signed one, or the given one.
    ///
    /// # Errors
    /// Certificate and key do not belong together, or the state cannot be written; then nothing is changed.
    pub async fn renew(&self, given: &CertificateRenewParams) -> Result<Fingerprint, Fault> {
        let certificate = match (&given.certificate, &given.key) {
            (None, None) => made(&self.names)
                .map_err(|error| Fault::Failed(crate::fault::report("CERTIFICATE", "cannot make a new certificate", &error)))?,
            (Some(certificate), Some(key)) => SelfSigned { certificate_pem: certificate.clone(), key_pem: key.clone() },
            (certificate, _) => {
                let name = if certificate.is_some() { "key" } else { "certificate" };
                return Err(Fault::invalid(name, "certificate and key are given together, or neither for a self-signed one"));
            }
        };
        let shown = Shown::of(certificate).map_err(|error| unusable(&error))?;
        let _changing = self.changing.lock().await;
        // Both at once: from here on it is the one, also if the file cannot be written now.
        let mut facts = vec![Fact::sealed(PENDING, both(&shown.certificate))];
        facts.extend(self.instead_of().map(|configured| Fact::open(INSTEAD_OF, configured)));
        self.store.set_facts(&facts).await?;
        Ok(self.put(shown).await)
    }

    /// Shows the certificate of another proxy, whose state has been taken over and says so.
    pub(super) async fn take_up(&self, certificate: Taken) -> Fingerprint {
        let _changing = self.changing.lock().await;
        self.put(certificate.0).await
    }

    /// Shows a certificate that is to stand in the file, as the state says already.
    async fn put(&self, shown: Shown) -> Fingerprint {
        match write_private(&self.file, both(&shown.certificate).as_bytes()) {
            Ok(()) => {
                if let Err(error) = self.store.forget_facts(&[PENDING]).await {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "a certificate that is in its file stays marked: the next start writes it once more");
                }
            }
            Err(error) => {
                tracing::error!(path = %self.file.display(), %error, "cannot write the certificate; the next start tries again");
            }
        }
        let fingerprint = shown.fingerprint;
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(shown);
        tracing::info!(%fingerprint, "shows another certificate from now on");
        fingerprint
    }
}

/// A certificate with its key that has been found to be good.
pub(super) struct Taken(Shown);

impl Taken {
    /// Checks a text with certificate and key.
    pub(super) fn read(pem: &str) -> Result<Self, CertificateError> {
        Shown::of(SelfSigned { certificate_pem: pem.to_owned(), key_pem: pem.to_owned() }).map(Self)
    }
}

/// Where our own certificate stands: one file for it and its key, because they are made, kept and lost together.
pub(super) fn own_file(config: &Config) -> PathBuf {
    config.state_dir.join("certificate.pem")
}

pub(super) fn own(file: &Path) -> Result<Option<SelfSigned>, StartError> {
    match std::fs::read_to_string(file) {
        Ok(pem) => Ok(Some(SelfSigned { certificate_pem: pem.clone(), key_pem: pem })),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StartError::CertificateFile { what: "read", path: file.to_owned(), source }),
    }
}

fn written(file: &Path) -> impl FnOnce(std::io::Error) -> StartError {
    let path = file.to_owned();
    |source| StartError::CertificateFile { what: "write", path, source }
}

fn both(certificate: &SelfSigned) -> String {
    if certificate.certificate_pem == certificate.key_pem {
        return certificate.certificate_pem.clone();
    }
    format!("{}\n{}", certificate.certificate_pem.trim_end(), certificate.key_pem)
}

fn names(config: &Config) -> Vec<String> {
    let address = config.listen.ip().to_string();
    let names = [crate::config::host_name(), "localhost".into(), "127.0.0.1".into(), "::1".into(), address];
    let plain = |name: &String| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:".contains(&b));
    names.into_iter().filter(plain).collect()
}

fn made(names: &[String]) -> Result<SelfSigned, CertificateError> {
    SelfSigned::generate(&names.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Which of the two is no good, without a word of either: what was given may be a key in the wrong place.
fn unusable(error: &CertificateError) -> Fault {
    let (name, message) = match error {
        CertificateError::Pem { what: "certificate", .. } => {
            ("certificate", "certificate: expected a certificate chain in PEM, leaf first")
        }
        CertificateError::Pem { .. } => ("key", "key: expected an unencrypted private key in PEM (PKCS#8, PKCS#1 or SEC1)"),
        CertificateError::Mismatch(rustls::Error::InconsistentKeys(_)) => ("key", "key: it is not the key of the certificate"),
        _ => ("certificate", "certificate: certificate and key cannot be used together"),
    };
    Fault::InvalidParameters(vec![Invalid { name: name.into(), keyword: "format", message: message.into() }])
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    async fn open(dir: &Path, more: &str) -> Arc<Certificates> {
        let text = format!("name = \"p\"\nstate_dir = {:?}\n{more}", dir.join("state"));
        let config = Config::parse(&dir.join("backhauld.toml"), &text).unwrap();
        let store = Arc::new(Store::open(&config.state_dir).await.unwrap());
        Certificates::open(store, &config).await.unwrap()
    }

    async fn close(certificates: Arc<Certificates>) {
        certificates.store.close().await;
    }

    fn given(certificate: &SelfSigned, key: &SelfSigned) -> CertificateRenewParams {
        CertificateRenewParams { certificate: Some(certificate.certificate_pem.clone()), key: Some(key.key_pem.clone()) }
    }

    #[tokio::test]
    async fn a_new_certificate_is_kept_and_one_with_anothers_key_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let certificates = open(dir.path(), "").await;
        let first = certificates.fingerprint();
        let renewed = certificates.renew(&CertificateRenewParams::default()).await.unwrap();
        assert!(renewed != first && certificates.fingerprint() == renewed);

        let (one, other) = (SelfSigned::generate(&["a"]).unwrap(), SelfSigned::generate(&["a"]).unwrap());
        let wrong = [
            (given(&one, &other), "not the key of the certificate"),
            (CertificateRenewParams { key: None, ..given(&one, &one) }, "together"),
            (CertificateRenewParams { certificate: None, ..given(&one, &one) }, "together"),
            (CertificateRenewParams { certificate: Some(one.key_pem.clone()), key: Some(one.key_pem.clone()) }, "in PEM"),
            (CertificateRenewParams { certificate: Some(one.certificate_pem.clone()), key: Some("x".into()) }, "in PEM"),
        ];
        for (wrong, says) in wrong {
            let refused = certificates.renew(&wrong).await.unwrap_err();
            assert!(matches!(refused, Fault::InvalidParameters(_)));
            let refused = format!("{refused:?}");
            assert!(refused.contains(says) && !refused.contains("BEGIN"), "{refused}");
            assert_eq!(certificates.fingerprint(), renewed);
        }
        let taken = certificates.renew(&given(&one, &one)).await.unwrap();
        assert_eq!(taken, one.fingerprint().unwrap());
        let mode = std::fs::metadata(dir.path().join("state/certificate.pem")).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        close(certificates).await;
        assert_eq!(open(dir.path(), "").await.fingerprint(), taken);
    }

    #[tokio::test]
    async fn a_renewed_one_counts_until_another_is_configured() {
        let dir = tempfile::tempdir().unwrap();
        let configure = |certificate: &SelfSigned| {
            let (cert, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
            std::fs::write(&cert, &certificate.certificate_pem).unwrap();
            write_private(&key, certificate.key_pem.as_bytes()).unwrap();
        };
        let more = "[tls]\ncertificate = \"c.pem\"\nkey = \"k.pem\"\n";
        let configured = SelfSigned::generate(&["a"]).unwrap();
        configure(&configured);
        let certificates = open(dir.path(), more).await;
        assert_eq!(certificates.fingerprint(), configured.fingerprint().unwrap());
        let renewed = certificates.renew(&CertificateRenewParams::default()).await.unwrap();
        close(certificates).await;
        let certificates = open(dir.path(), more).await;
        assert_eq!(certificates.fingerprint(), renewed);
        // What cannot be kept is not shown, not even after a restart.
        let refuse = "CREATE TRIGGER full BEFORE INSERT ON meta BEGIN SELECT RAISE(FAIL, 'full'); END";
        sqlx::query(refuse).execute(certificates.store.connections()).await.unwrap();
        certificates.renew(&CertificateRenewParams::default()).await.unwrap_err();
        assert_eq!(certificates.fingerprint(), renewed);
        sqlx::query("DROP TRIGGER full").execute(certificates.store.connections()).await.unwrap();
        close(certificates).await;
        let certificates = open(dir.path(), more).await;
        assert_eq!(certificates.fingerprint(), renewed);
        // And what cannot be written now is written at the next start.
        let file = dir.path().join("state/certificate.pem");
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        let later = certificates.renew(&CertificateRenewParams::default()).await.unwrap();
        assert_eq!(certificates.fingerprint(), later);
        close(certificates).await;
        std::fs::remove_dir(&file).unwrap();
        let certificates = open(dir.path(), more).await;
        assert_eq!(certificates.fingerprint(), later);
        close(certificates).await;
        let another = SelfSigned::generate(&["a"]).unwrap();
        configure(&another);
        assert_eq!(open(dir.path(), more).await.fingerprint(), another.fingerprint().unwrap());
    }
}
