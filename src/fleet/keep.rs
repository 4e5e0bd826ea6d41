//! What only the configuration knows of a proxy: its token, and the certificate it is pinned by.
//!
//! Both change here, for the console as for the commands: the file is found to be writable before anything is asked for, is
//! read anew when the answer is there, and whoever deployed the proxy is told. What a deployer tells is taken over only if
//! it works, where something else is known already: a token that is written over is lost.

use std::path::Path;

use api::{
    CertificateRenew, CertificateRenewParams, Credentials, DeployAdopt, DeployClaim, DeployedList, ErrorReport, IdParams, Method,
    NewCertificate, NewToken, NoParams, ProxyStatus, ProxyStatusGet, TokenRotate, TokenRotateParams,
};
use futures::future::join_all;

use super::{CallError, Client};
use crate::config::{Config, ConfigError, Proxy, Token};

/// Why something is not kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeepError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A call.
    #[error(transparent)]
    Call(#[from] CallError),
    /// What a proxy answers cannot be used.
    #[error("{proxy} told {what}")]
    Answer { code: &'static str, proxy: String, what: String },
    /// The proxy has it, and the file could not be written after all.
    #[error("{what} of {} is made, but not kept: {error}", proxy.name)]
    Unkept { proxy: Box<Proxy>, what: &'static str, next: String, error: Box<ConfigError> },
    /// What the deployer knows is older than what is known here.
    #[error("{deployer} knows another token or certificate of {proxy} than this console, whose own are the good ones: they stay")]
    Estranged { deployer: String, proxy: String },
    /// Nobody can tell which is the older.
    #[error("{deployer} knows another token or certificate of {proxy} than this console, which keeps its own: {error}")]
    Undecided { deployer: String, proxy: String, error: Box<CallError> },
    /// The change stands, and its deployer does not know.
    #[error("the change is made, but {deployer}, which deployed the proxy, was not told: {error}")]
    Untold { deployer: String, proxy: String, error: Box<CallError> },
}

impl KeepError {
    /// The same for readers.
    pub(crate) fn report(&self) -> ErrorReport {
        let text = self.to_string();
        match self {
            Self::Config(error) => error.report(),
            Self::Call(error) => error.report(),
            Self::Answer { code, .. } => ErrorReport::new(*code, text),
            Self::Unkept { next, .. } => ErrorReport::new("CONFIG", text).with_next(next.as_str()),
            Self::Estranged { proxy, .. } => ErrorReport::new("PROXY_ESTRANGED", text)
                .with_next(format!("backhaul proxy adopt {proxy:?} tells it the good ones")),
            Self::Undecided { proxy, error, .. } => ErrorReport::new(error.report().code, text).with_next(format!(
                "backhaul proxy claim {proxy:?} once it answers; backhaul proxy remove {proxy:?} before, if it is another one"
            )),
            Self::Untold { deployer, proxy, error } => ErrorReport::new(error.report().code, text)
                .with_next(format!("backhaul proxy adopt {proxy:?} tells {deployer} once that is put right")),
        }
    }
}

impl From<KeepError> for ErrorReport {
    fn from(error: KeepError) -> Self {
        error.report()
    }
}

/// Whether the deployer of a proxy knows how it is reached now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// It does.
    Deployer(String),
    /// None of those that answer deployed it; these do not answer.
    Nobody { silent: Vec<String> },
}

impl Told {
    /// What is left to do, in a sentence.
    pub(crate) fn rest(&self, proxy: &str) -> Option<String> {
        match self {
            Self::Nobody { silent } if !silent.is_empty() => {
                let silent = silent.join(", ");
                Some(format!("{silent} did not answer; if it deployed the proxy: backhaul proxy adopt {proxy:?}, once it does"))
            }
            _ => None,
        }
    }
}

/// Does something with the configuration where waiting for a disk holds nobody up.
pub(super) async fn blocking<T: Send + 'static>(
    dir: &Path,
    work: impl FnOnce(&Path) -> Result<T, ConfigError> + Send + 'static,
) -> Result<T, ConfigError> {
    let (place, dir) = (dir.to_owned(), dir.to_owned());
    let done = tokio::task::spawn_blocking(move || work(&dir)).await;
    done.unwrap_or_else(|error| Err(ConfigError::File { action: "use", path: place, source: std::io::Error::other(error) }))
}

async fn change(dir: &Path, known: &Proxy, change: impl FnOnce(&mut Proxy) + Send + 'static) -> Result<Proxy, ConfigError> {
    let known = known.clone();
    blocking(dir, move |dir| Config::change_proxy(dir, &known, change)).await
}

async fn call<M: Method>(client: &Client, params: &M::Params) -> Result<M::Item, CallError> {
    match client.call::<M>(params).await {
        Ok(item) => Ok(item),
        Err(error) => Err(client.explain(error).await),
    }
}

/// Asks a proxy how it is.
///
/// # Errors
/// It does not answer so.
pub(crate) async fn status(proxy: &Proxy) -> Result<ProxyStatus, CallError> {
    call::<ProxyStatusGet>(&proxy.client()?, &NoParams {}).await
}

/// Has a proxy make a new token, which is good for `overlap` seconds beside the former one (none: as the proxy decides), and
/// keeps it; the entry as it stands then.
///
/// # Errors
/// [`KeepError`]; of [`KeepError::Unkept`] the proxy counts.
pub(crate) async fn rotate(dir: &Path, known: &Proxy, overlap: Option<u64>) -> Result<(Proxy, NewToken), KeepError> {
    let present = change(dir, known, |_| {}).await?;
    let made = call::<TokenRotate>(&present.client()?, &TokenRotateParams { overlap_seconds: overlap }).await?;
    let token = Token::new(&made.token).map_err(|why| KeepError::Answer {
        code: "TOKEN",
        proxy: present.name.clone(),
        what: format!("a token that is none: {why}"),
    })?;
    let new = token.clone();
    match change(dir, &present, move |entry| entry.token = new).await {
        Ok(proxy) => Ok((proxy, made)),
        Err(error) => {
            let next = "correct that, and make another one before the former one ends".to_owned();
            Err(KeepError::Unkept {
                proxy: Box::new(Proxy { token, ..present }),
                what: "the new token",
                next,
                error: error.into(),
            })
        }
    }
}

/// Has a proxy show another certificate, and pins it; the entry as it stands then.
///
/// # Errors
/// [`KeepError`]; of [`KeepError::Unkept`] the proxy counts.
pub(crate) async fn renew(
    dir: &Path,
    known: &Proxy,
    params: &CertificateRenewParams,
) -> Result<(Proxy, NewCertificate), KeepError> {
    let present = change(dir, known, |_| {}).await?;
    // Told over the connection that is pinned to the former one, and so as good as that.
    let made = call::<CertificateRenew>(&present.client()?, params).await?;
    let fingerprint = made.fingerprint.parse().map_err(|error: tls::ParseFingerprintError| KeepError::Answer {
        code: "CERTIFICATE",
        proxy: present.name.clone(),
        what: format!("a fingerprint that is none: {error}"),
    })?;
    match change(dir, &present, move |entry| entry.fingerprint = fingerprint).await {
        Ok(proxy) => Ok((proxy, made)),
        Err(error) => {
            let next = format!("correct that, then: backhaul proxy trust {:?} --fingerprint {}", present.name, made.fingerprint);
            let proxy = Box::new(Proxy { fingerprint, ..present });
            Err(KeepError::Unkept { proxy, what: "the new certificate", next, error: error.into() })
        }
    }
}

/// Tells the proxy that deployed this one, if one of the fleet did, how it is called and reached now.
///
/// # Errors
/// [`KeepError`]: what was changed stands all the same.
pub(crate) async fn tell_deployer(proxy: &Proxy, fleet: &[Proxy]) -> Result<Told, KeepError> {
    let status = status(proxy).await?;
    let others: Vec<&Proxy> = fleet.iter().filter(|other| !other.same(proxy)).collect();
    let asked = others.into_iter().map(async |other| {
        let listed = match other.client() {
            Ok(client) => client.call::<DeployedList>(&NoParams {}).await,
            Err(error) => Err(error),
        };
        (other, listed)
    });
    let mut silent = Vec::new();
    for (other, listed) in join_all(asked).await {
        match listed {
            Ok(deployed) if deployed.iter().any(|deployed| deployed.id == status.id) => {
                let credentials = Credentials {
                    id: status.id.clone(),
                    name: status.name.clone(),
                    url: proxy.address(),
                    token: proxy.token.secret().to_owned(),
                    fingerprint: proxy.fingerprint.to_string(),
                };
                call::<DeployAdopt>(&other.client()?, &credentials).await.map_err(|error| KeepError::Untold {
                    deployer: other.name.clone(),
                    proxy: proxy.name.clone(),
                    error: error.into(),
                })?;
                return Ok(Told::Deployer(other.name.clone()));
            }
            Ok(_) => {}
            Err(_) => silent.push(other.name.clone()),
        }
    }
    Ok(Told::Nobody { silent })
}

/// Gets to know a deployed proxy from the one that deployed it; its entry. `known`: how it is known already, if that is sure.
///
/// # Errors
/// [`KeepError`]; nothing is changed then.
pub(crate) async fn claim(
    dir: &Path,
    (deployer, client): (&str, &Client),
    id: &str,
    known: Option<Proxy>,
) -> Result<Proxy, KeepError> {
    let credentials = call::<DeployClaim>(client, &IdParams { id: id.to_owned() }).await?;
    let claimed = Proxy::claimed(&credentials).map_err(|what| KeepError::Answer {
        code: "CLAIM",
        proxy: deployer.to_owned(),
        what: format!("of {} {what}", credentials.name),
    })?;
    // All of the file, not only those this console was started for.
    let listed = blocking(dir, |dir| Config::load(dir).proxies).await?;
    let present = Proxy::position(&listed, known.as_ref().unwrap_or(&claimed)).map(|at| &listed[at]);
    if let Some(present) = present.filter(|present| present.token != claimed.token || present.fingerprint != claimed.fingerprint)
        && let Err(error) = status(&claimed).await
    {
        let (deployer, proxy) = (deployer.to_owned(), present.name.clone());
        return Err(match status(present).await {
            Ok(_) => KeepError::Estranged { deployer, proxy },
            Err(_) => KeepError::Undecided { deployer, proxy, error: error.into() },
        });
    }
    Ok(blocking(dir, move |dir| Config::adopt(dir, claimed, known.as_ref())).await?)
}
