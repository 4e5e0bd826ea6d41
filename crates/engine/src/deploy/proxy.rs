//! A deployed proxy as its deployer calls it.

use std::str::FromStr;
use std::time::Duration;

use api::{DrainParams, Method, NoParams, ProxyDrain, ProxyStatus, ProxyStatusGet, SystemGetServerVersion};
use client::{CallError, Client, Token};
use tls::Fingerprint;
use tokio::time::timeout;
use url::Url;

use super::steps::{Look, until};
use crate::error::Error;
use crate::journal::Task;
use crate::plan::{ProxyAccess, Secret};

/// For a first look whether it answers.
const LOOK: Duration = Duration::from_secs(15);

/// A proxy, its certificate pinned.
pub(crate) struct Proxy {
    name: String,
    client: Client,
    call: Duration,
}

impl Proxy {
    /// The proxy at `url`; `call`: seconds for a call. Nothing is sent yet.
    pub(crate) fn new(name: &str, url: &str, token: &Secret, fingerprint: &str, call: u64) -> Result<Self, Error> {
        let refused = |what: String| Error::refused("PROXY_ADDRESS", format!("proxy {name} cannot be called: {what}"));
        let url = Url::parse(url).map_err(|error| refused(format!("its address is no URL: {error}")))?;
        let token = Token::new(token.expose()).map_err(|reason| refused(format!("its token cannot be sent: {reason}")))?;
        let pinned = Fingerprint::from_str(fingerprint).map_err(|error| refused(error.to_string()))?;
        let client = Client::new(&url, &token, pinned).map_err(|error| refused(error.to_string()))?;
        Ok(Self { name: name.to_owned(), client, call: Duration::from_secs(call.max(1)) })
    }

    pub(crate) fn of(access: &ProxyAccess, call: u64) -> Result<Self, Error> {
        Self::new(&access.name, &access.url, &access.token, &access.fingerprint, call)
    }

    /// Calls a method; `doing` says what for: `export its state`.
    pub(crate) async fn call<M: Method>(&self, doing: &str, params: &M::Params) -> Result<M::Item, Error> {
        self.try_call::<M>(params).await.map_err(|error| self.failed(doing, error))
    }

    async fn try_call<M: Method>(&self, params: &M::Params) -> Result<M::Item, CallError> {
        match timeout(self.call, self.client.call::<M>(params)).await {
            Ok(Err(error)) => Err(self.client.explain(error).await),
            Ok(answer) => answer,
            Err(_) => {
                let reason = format!("no answer to {} in {} s", M::NAME, self.call.as_secs());
                Err(CallError::Cut { host: self.client.host().to_owned(), reason })
            }
        }
    }

    fn failed(&self, doing: &str, error: CallError) -> Error {
        let report = error.report();
        Error::Proxy {
            proxy: self.name.clone(),
            doing: doing.to_owned(),
            code: report.code,
            next: report.next,
            source: Box::new(error),
        }
    }

    /// Whether it answers now. `is_there`: nobody else can be at its address, so whoever shows another certificate is the proxy
    /// itself with a new one.
    ///
    /// # Errors
    /// It answers, and what its deployer knows of it does not count any more: somebody changed its token or certificate.
    pub(crate) async fn answers(&self, is_there: bool) -> Result<bool, Error> {
        let answer = match timeout(LOOK, self.try_call::<SystemGetServerVersion>(&NoParams {})).await {
            Ok(answer) => answer,
            Err(_) => return Ok(false),
        };
        match answer {
            Ok(_) => Ok(true),
            // It showed the pinned certificate, or there would have been no answer: it is the proxy.
            Err(error @ CallError::Authentication { .. }) => Err(self.estranged(&error)),
            Err(error @ CallError::Certificate { .. }) if is_there => Err(self.estranged(&error)),
            Err(_) => Ok(false),
        }
    }

    fn estranged(&self, error: &CallError) -> Error {
        let message = format!("proxy {} answers, but its token or certificate was changed elsewhere: {error}", self.name);
        let next = Some("on a console that still reaches the proxy: `backhaul proxy adopt NAME`; then start this again");
        Error::Refused { code: "PROXY_ESTRANGED", message, next }
    }

    /// Waits until it answers, and gives its state. That it cannot be reached passes; a refusal does not.
    pub(crate) async fn wait_for(&self, task: &Task, seconds: u64) -> Result<ProxyStatus, Error> {
        let what = format!("proxy {} did not answer", self.name);
        until(task, seconds, &what, async || {
            let answer = match self.try_call::<SystemGetServerVersion>(&NoParams {}).await {
                Ok(_) => self.try_call::<ProxyStatusGet>(&NoParams {}).await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(status) => Ok(Look::There(status)),
                Err(error) if error.is_passing() => Ok(Look::NotYet(error.to_string())),
                Err(error) => Err(self.failed("ask for its state", error)),
            }
        })
        .await
    }

    /// Holds new runs back, or lets them start again.
    pub(crate) async fn drain(&self, on: bool) -> Result<ProxyStatus, Error> {
        let doing = if on { "hold its new runs back" } else { "let its runs start again" };
        self.call::<ProxyDrain>(doing, &DrainParams { on }).await
    }

    /// Holds new runs back and waits until those that run have ended.
    pub(crate) async fn drained(&self, task: &Task, seconds: u64) -> Result<(), Error> {
        self.drain(true).await?;
        let what = format!("the runs of proxy {} did not end", self.name);
        until(task, seconds, &what, async || {
            let status = self.call::<ProxyStatusGet>("ask for its runs", &NoParams {}).await?;
            if status.running.is_empty() {
                return Ok(Look::There(()));
            }
            let names: Vec<_> = status.running.iter().map(|run| run.label.as_str()).collect();
            Ok(Look::NotYet(names.join(", ")))
        })
        .await
    }
}
