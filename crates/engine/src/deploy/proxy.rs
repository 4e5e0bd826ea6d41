//! A deployed proxy as its deployer calls it.

use std::collections::BTreeSet;
use std::str::FromStr;
use std::time::Duration;

use api::{
    DrainParams, IdParams, Method, NoParams, ProxyDrain, ProxyStatus, ProxyStatusGet, Run, RunCancel, RunGet, RunKind,
    SystemGetServerVersion, TaskKind,
};
use client::{CallError, Client, Token};
use tls::Fingerprint;
use tokio::time::{Instant, timeout};
use url::Url;

use super::steps::{Look, until};
use crate::error::Error;
use crate::journal::Task;
use crate::plan::{ProxyAccess, Secret};

/// For a first look whether it answers.
const LOOK: Duration = Duration::from_secs(15);
/// After which clean-ups that wait, with nothing else left that runs, are taken for such as wait for a pool.
const STUCK: Duration = Duration::from_secs(5);

/// What becomes of the runs of a proxy that is to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// All come to their end: their journals go with the machine, and with them the knowledge of what they left.
    All,
    /// Those that work come to their end. Clean-ups that wait go on waiting on the same machine afterwards.
    Working,
    /// They are cancelled, and clean-ups under way come to their end. Of those that wait is told.
    Cancelled,
}

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
        let who = format!("proxy {}", self.name);
        until(task, seconds, (&who, "answer"), async || {
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

    /// Lets runs start again, once it answers.
    pub(crate) async fn release(&self, task: &Task, seconds: u64) -> Result<(), Error> {
        if self.wait_for(task, seconds).await?.draining {
            self.drain(false).await?;
        }
        Ok(())
    }

    /// How it stands, if it can be reached; else why not.
    ///
    /// # Errors
    /// It refuses to say.
    pub(crate) async fn look(&self) -> Result<Result<ProxyStatus, String>, Error> {
        match self.try_call::<ProxyStatusGet>(&NoParams {}).await {
            Ok(status) => Ok(Ok(status)),
            Err(error) if error.is_passing() => Ok(Err(error.to_string())),
            Err(error) => Err(self.failed("ask for its state", error)),
        }
    }

    /// Holds new runs back and waits for the end of those that run.
    pub(crate) async fn drained(&self, ending: Ending, task: &Task, seconds: u64) -> Result<(), Error> {
        self.drain(true).await?;
        let who = format!("the runs of proxy {}", self.name);
        let mut cancelled = BTreeSet::new();
        let mut stuck_since = None;
        until(task, seconds, (&who, "end"), async || {
            let (working, waiting) = self.at_work().await?;
            if ending == Ending::Cancelled {
                for run in working.iter().filter(|run| run.kind != RunKind::Recover && !cancelled.contains(&run.id)) {
                    task.warn(format!("cancels run {} ({}) on proxy {}", run.id, run.label, self.name));
                    let doing = format!("cancel run {}", run.id);
                    self.call::<RunCancel>(&doing, &IdParams { id: run.id.clone() }).await?;
                }
                cancelled.extend(working.iter().map(|run| run.id.clone()));
            }
            if !working.is_empty() {
                stuck_since = None;
                let names: Vec<_> = working.iter().map(|run| run.label.as_str()).collect();
                return Ok(Look::NotYet(names.join(", ")));
            }
            if waiting.is_empty() || ending == Ending::Working {
                return Ok(Look::There(()));
            }
            let left = waiting.join("; ");
            if ending == Ending::Cancelled {
                task.warn(format!("proxy {} has yet to clean up, and what it would have cleaned up stays: {left}", self.name));
                return Ok(Look::There(()));
            }
            if stuck_since.get_or_insert_with(Instant::now).elapsed() < STUCK {
                return Ok(Look::NotYet(left));
            }
            Err(Error::Refused {
                code: "PROXY_HAS_LEFTOVERS",
                message: format!("proxy {} has yet to clean up, and would not know of it any more: {left}", self.name),
                next: Some(
                    "let it clean up, for which the pools named have to answer; or clean up by hand and switch its VM off: then its \
                     state as last copied is taken",
                ),
            })
        })
        .await
    }

    /// The runs that work, and in words the clean-ups that wait.
    async fn at_work(&self) -> Result<(Vec<Run>, Vec<String>), Error> {
        let (mut working, mut waiting) = (Vec::new(), Vec::new());
        for run in self.call::<ProxyStatusGet>("ask for its runs", &NoParams {}).await?.running {
            if run.kind != RunKind::Recover {
                working.push(run);
                continue;
            }
            let doing = format!("ask what run {} does", run.id);
            let detail = self.call::<RunGet>(&doing, &IdParams { id: run.id.clone() }).await?;
            let queued = detail.tasks.iter().find(|task| task.kind == TaskKind::Queue && task.outcome.is_none());
            match queued {
                Some(task) => {
                    let words = task.meter.waiting_for.as_deref().unwrap_or("its turn");
                    waiting.push(format!("run {} {} waits for {words}", run.id, run.label));
                }
                None => working.push(run),
            }
        }
        Ok((working, waiting))
    }
}
