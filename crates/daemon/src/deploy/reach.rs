//! Deployed proxies are called themselves: to see that they can be reached, and before something is done to them that they
//! alone know the harm of.

use std::time::Duration;

use api::{ErrorReport, LicenseBindParams, LicenseUnbind, NoParams, ProxyStatus, ProxyStatusGet, Remote, RemoteList};
use client::{CallError, Client, Token};
use tokio::time::timeout;

use super::Deployments;
use crate::fault::Fault;
use crate::store::DeploymentRecord;

/// For a proxy to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// How a proxy is reached.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Access {
    pub url: String,
    pub fingerprint: String,
    pub token: String,
}

impl Access {
    pub fn of(record: &DeploymentRecord) -> Option<Self> {
        let (url, fingerprint) = (record.url.clone()?, record.fingerprint.clone()?);
        Some(Self { url, fingerprint, token: record.secrets.token.expose().to_owned() })
    }

    pub fn client(&self) -> Result<Client, CallError> {
        let unusable = |what: String| CallError::Foreign { host: self.url.clone(), what };
        let url = url::Url::parse(&self.url).map_err(|error| unusable(format!("the address is no URL: {error}")))?;
        let token = Token::new(&self.token).map_err(unusable)?;
        let pinned = self.fingerprint.parse().map_err(|error: tls::ParseFingerprintError| unusable(error.to_string()))?;
        Client::new(&url, &token, pinned)
    }

    /// Asks for something that is answered at once.
    pub async fn call<M: api::Method>(&self, params: &M::Params) -> Result<M::Item, CallError> {
        let client = self.client()?;
        match timeout(PATIENCE, client.call::<M>(params)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(client.explain(error).await),
            Err(_) => {
                let reason = format!("no answer in {} s", PATIENCE.as_secs());
                Err(CallError::Unreachable { host: client.host().to_owned(), reason })
            }
        }
    }

    pub async fn status(&self) -> Result<ProxyStatus, CallError> {
        self.call::<ProxyStatusGet>(&NoParams {}).await
    }
}

impl Deployments {
    /// Refuses to do away with a proxy's VM while backups lie on its disk, unless they may go too. Gives what is to be said
    /// when that cannot be told.
    pub(super) async fn check_backups(
        &self,
        record: &DeploymentRecord,
        discard: bool,
        what: &str,
    ) -> Result<Option<String>, Fault> {
        let name = &record.name;
        let Some(access) = Access::of(record).filter(|_| !discard) else { return Ok(None) };
        let (held, doubt) = match access.call::<RemoteList>(&NoParams {}).await {
            Ok(remotes) => (on_own_disk(remotes), None),
            Err(error) => {
                let reason = error.report().message;
                let copied = self.store.deployment_state(&record.id).await?;
                let doubt = match &copied {
                    Some(state) => format!(
                        "whether backups lie on the own disk of {name}, which goes with its VM, cannot be asked: {reason}; when its \
                         state was copied last, {}, none did",
                        jiff::Timestamp::from_millisecond(state.taken_at).unwrap_or_default()
                    ),
                    None => format!(
                        "whether backups lie on the own disk of {name}, which goes with its VM, cannot be told: it never answered \
                         here; now: {reason}"
                    ),
                };
                (copied.map(|state| state.own_disk).unwrap_or_default(), Some(doubt))
            }
        };
        if held.is_empty() {
            if let Some(doubt) = &doubt {
                tracing::warn!(proxy = name, "{doubt}");
            }
            return Ok(doubt);
        }
        let message = format!(
            "{name} keeps backups on its own disk, which goes with its VM: {} {}",
            if held.len() == 1 { "remote" } else { "remotes" },
            held.join(", ")
        );
        let next = format!(
            "copy them elsewhere and remove the remotes; or let them go: backhaul proxy {what} {name:?} --discard-local-backups"
        );
        Err(ErrorReport::new("PROXY_HOLDS_BACKUPS", message).with_next(next).into())
    }

    /// Has a proxy let go of its licence.
    pub(super) async fn free(&self, record: &DeploymentRecord, license: &str) -> Result<(), Fault> {
        let Some(access) = Access::of(record) else { return Ok(()) };
        let freed = async {
            let standing = access.status().await?;
            if standing.id == record.id && standing.licensing.license.as_deref() == Some(license) {
                access.call::<LicenseUnbind>(&LicenseBindParams { id: license.to_owned(), proxy: None }).await?;
            }
            Ok::<_, CallError>(())
        };
        freed.await.map_err(|error| {
            let (name, report) = (&record.name, error.report());
            let message = format!(
                "{name} cannot be told to let go of its licence {}, and would go on under it: {}",
                super::review::short(license),
                report.message
            );
            let next = format!(
                "bring it up; or, when it is gone for good: backhaul license unbind {} {name:?}, then forget it again",
                super::review::short(license)
            );
            Fault::Failed(ErrorReport {
                causes: report.causes,
                ..ErrorReport::new("PROXY_KEEPS_LICENSE", message).with_next(next)
            })
        })
    }
}

/// The names of those remotes of a proxy that lie on its own disk.
pub(super) fn on_own_disk(remotes: Vec<Remote>) -> Vec<String> {
    remotes.into_iter().filter(|remote| remote.own_disk).map(|remote| remote.name).collect()
}

/// A proxy that cannot be asked.
pub(super) fn failed(error: CallError) -> Fault {
    Fault::Failed(error.report())
}
