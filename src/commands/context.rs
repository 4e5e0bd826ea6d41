//! What a command works with: the configuration, the proxies it may ask, and the objects it finds on them.

use std::path::PathBuf;

use api::{ErrorCode, ErrorReport, IdParams, Method, RunDetail, RunGet};
use futures::future::join_all;
use serde::Serialize;
use serde_json::Value;

use super::cli::Common;
use super::failure::{Exit, Failure};
use super::output;
use crate::config::{Config, Proxy};
use crate::fleet::{CallError, Client};

/// A command's surroundings.
pub struct Context {
    /// The configuration.
    pub config: Config,
    /// Whether answers are JSON.
    pub json: bool,
    only: Option<String>,
    read_only: bool,
}

/// A proxy that can be asked.
#[derive(Clone)]
pub struct Site {
    /// Its name in the configuration.
    pub name: String,
    client: Client,
    read_only: bool,
}

/// A kind of object: what people call it, and the command that lists them.
#[derive(Clone, Copy)]
pub struct Kind {
    name: &'static str,
    list: &'static str,
}

impl Kind {
    /// Pools.
    pub const POOL: Self = Self { name: "pool", list: "backhaul pool list" };
    /// Remotes.
    pub const REMOTE: Self = Self { name: "remote", list: "backhaul remote list" };
    /// Jobs.
    pub const JOB: Self = Self { name: "job", list: "backhaul job list" };
    /// Deployed proxies.
    pub const DEPLOYED: Self = Self { name: "deployed proxy", list: "backhaul proxy deployed" };
}

/// Something, and the proxy it is on.
#[derive(Serialize)]
pub struct Found<T> {
    /// Name of the proxy.
    pub proxy: String,
    /// What.
    #[serde(flatten)]
    pub item: T,
}

impl Context {
    /// Reads the configuration.
    ///
    /// # Errors
    /// No folder is known. A broken file shows when it is needed.
    pub fn new(common: &Common) -> Result<Self, Failure> {
        let config = Config::load(&config_dir(common)?);
        let read_only = common.read_only || config.console.read_only;
        Ok(Self { config, json: common.json, only: common.proxy.clone(), read_only })
    }

    /// The configured proxies that may be asked.
    ///
    /// # Errors
    /// The file is broken, the one asked for is not in it, or there is none.
    pub fn proxies(&self) -> Result<Vec<&Proxy>, Failure> {
        let all = self.configured()?;
        let asked: Vec<&Proxy> = all.iter().filter(|proxy| self.only.as_ref().is_none_or(|only| proxy.name == *only)).collect();
        match (&self.only, asked.is_empty()) {
            (Some(only), true) => {
                let names = all.iter().map(|proxy| proxy.name.as_str()).collect::<Vec<_>>().join(", ");
                let known = if names.is_empty() { "none is known".to_owned() } else { format!("known: {names}") };
                Err(Failure::usage(format!("there is no proxy {only:?} in the configuration; {known}")))
            }
            (None, true) => Err(Failure::usage(format!("no proxy is known in {}", self.config.dir().display()))
                .next("backhaul proxy add NAME URL --token-file FILE, or backhaul lab to try it out")),
            _ => Ok(asked),
        }
    }

    /// All entries of the configuration, whichever of them the command is narrowed to.
    ///
    /// # Errors
    /// The file is broken.
    pub fn configured(&self) -> Result<&[Proxy], Failure> {
        self.config.proxies.as_deref().map_err(|error| {
            let exit = match error {
                crate::config::ConfigError::Exposed { .. } => Exit::Refused,
                _ => Exit::Usage,
            };
            Failure { exit, report: Some(ErrorReport::new("CONFIG", error.to_string())) }
        })
    }

    /// The proxies that may be asked, ready to be called.
    ///
    /// # Errors
    /// As [`Context::proxies`].
    pub fn sites(&self) -> Result<Vec<Site>, Failure> {
        self.proxies()?.into_iter().map(|proxy| self.site(proxy)).collect()
    }

    /// The proxies that may be asked about one of them: that it does not answer itself is no obstacle, for it is the others that
    /// know it. Where it is the only one, it is asked all the same.
    ///
    /// # Errors
    /// As [`Context::proxies`].
    pub fn others(&self, name: &str) -> Result<Vec<Site>, Failure> {
        let mut sites = self.sites()?;
        if sites.iter().any(|site| site.name != name) {
            sites.retain(|site| site.name != name);
        }
        Ok(sites)
    }

    /// All configured proxies, whichever of them the command is narrowed to: for what holds over a whole fleet.
    ///
    /// # Errors
    /// The file is broken, or there is none.
    pub fn fleet(&self) -> Result<Vec<Site>, Failure> {
        self.configured()?.iter().map(|proxy| self.site(proxy)).collect()
    }

    fn site(&self, proxy: &Proxy) -> Result<Site, Failure> {
        Ok(Site { name: proxy.name.clone(), client: proxy.client()?, read_only: self.read_only })
    }

    /// The one proxy a command without any object is for.
    ///
    /// # Errors
    /// There are several and none was named.
    pub fn only_site(&self) -> Result<Site, Failure> {
        let mut sites = self.sites()?;
        if sites.len() > 1 {
            let names = sites.iter().map(|site| site.name.as_str()).collect::<Vec<_>>().join(", ");
            return Err(Failure::usage(format!("say which proxy with --proxy NAME: {names}")));
        }
        sites.pop().ok_or_else(|| Failure::usage("no proxy is known"))
    }

    /// Asks all proxies for a list. Those that do not answer are told on standard error, and the second value is how
    /// the command must end for it. A proxy that does not have what the list is narrowed to has nothing to list: no
    /// failure as long as another one has it.
    ///
    /// # Errors
    /// Nobody answered.
    pub async fn gather<M>(&self, params: &M::Params) -> Result<(Vec<Found<Value>>, Option<Failure>), Failure>
    where
        M: Method,
        M::Params: Sync,
        M::Item: IntoIterator,
        <M::Item as IntoIterator>::Item: Serialize,
    {
        let sites = self.sites()?;
        let answers = join_all(sites.iter().map(|site| site.try_call::<M>(params))).await;
        let (mut found, mut missing, mut elsewhere) = (Vec::new(), None::<Failure>, None);
        let answered = answers.iter().any(Result::is_ok);
        for (site, answer) in sites.iter().zip(answers) {
            match answer {
                Ok(items) => found.extend(items.into_iter().map(|item| {
                    let item = serde_json::to_value(item).unwrap_or_default();
                    Found { proxy: site.name.clone(), item }
                })),
                Err(error @ CallError::Answered { code: ErrorCode::NoSuchObject, .. }) => elsewhere = Some(error),
                Err(error) => {
                    if let Some(previous) = missing.replace(Failure::from(error))
                        && let Some(report) = previous.report
                    {
                        output::error(&report, self.json);
                    }
                }
            }
        }
        let nowhere = elsewhere.filter(|_| !answered).map(Failure::from);
        Ok((found, missing.or(nowhere)))
    }

    /// Finds the run that `id`, or the beginning of one, means among all proxies.
    ///
    /// # Errors
    /// Nothing or several runs are meant, or a proxy that might know it does not answer.
    pub async fn find_run(&self, id: &str) -> Result<(Site, RunDetail), Failure> {
        let sites = self.sites()?;
        let params = IdParams { id: id.to_owned() };
        let answers = join_all(sites.iter().map(|site| site.try_call::<RunGet>(&params))).await;
        let (mut found, mut missing) = (Vec::new(), None);
        for (site, answer) in sites.iter().zip(answers) {
            match answer {
                // A whole id is unique whoever else is silent; a beginning is not.
                Ok(detail) if detail.run.id == id => return Ok((site.clone(), detail)),
                Ok(detail) => found.push((site.clone(), detail)),
                Err(CallError::Answered { code: ErrorCode::NoSuchObject, .. }) => {}
                Err(error) => missing = Some(Failure::from(error)),
            }
        }
        if let Some(missing) = missing {
            let next = format!("a proxy that may know the run {id:?} does not answer, or knows several; give the whole id");
            return Err(if sites.len() > 1 { missing.next(next) } else { missing });
        }
        match found.len() {
            0 => Err(Failure::failed("NO_SUCH_OBJECT", format!("there is no run {id:?} on {}", list_names(&sites)))
                .next("backhaul run list")),
            1 => Ok(found.swap_remove(0)),
            _ => {
                let candidates = found.iter().map(|(site, detail)| format!("{} on {}", detail.run.id, site.name));
                let candidates = candidates.collect::<Vec<_>>().join(", ");
                Err(Failure::usage(format!("run {id:?} is ambiguous: {candidates}")).next("give the whole id"))
            }
        }
    }
}

impl Site {
    /// Calls a method, unless [`Site::permit`] stops it.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn call<M: Method>(&self, params: &M::Params) -> Result<M::Item, Failure> {
        self.permit::<M>()?;
        Ok(self.try_call::<M>(params).await?)
    }

    /// Whether a method may be called, for what does not call it here.
    ///
    /// # Errors
    /// It changes something, and this console is read-only.
    pub fn permit<M: Method>(&self) -> Result<(), Failure> {
        if M::WRITES && self.read_only {
            return Err(Failure::refused("READ_ONLY", format!("{} changes something, and this console is read-only", M::NAME)));
        }
        Ok(())
    }

    async fn try_call<M: Method>(&self, params: &M::Params) -> Result<M::Item, CallError> {
        match self.client.call::<M>(params).await {
            Ok(item) => Ok(item),
            Err(error) => Err(self.client.explain(error).await),
        }
    }

    /// The connection below, for streams.
    pub fn client(&self) -> &Client {
        &self.client
    }
}

/// Finds the one object that `name` means among these proxies, by id or by name.
///
/// # Errors
/// Nothing or several things are meant, or a proxy that might know it does not answer.
pub async fn find<M, T>(
    sites: Vec<Site>,
    Kind { name: what, list }: Kind,
    name: &str,
    params: &M::Params,
    names: impl Fn(&T) -> [String; 2],
) -> Result<(Site, T), Failure>
where
    M: Method<Item = Vec<T>>,
    M::Params: Sync,
{
    let answers = join_all(sites.iter().map(|site| site.call::<M>(params))).await;
    let (mut by_id, mut by_name, mut missing) = (Vec::new(), Vec::new(), None);
    for (site, answer) in sites.iter().zip(answers) {
        match answer {
            Ok(items) => {
                for item in items {
                    let [id, label] = names(&item);
                    if id == name {
                        by_id.push((site.clone(), item));
                    } else if label == name {
                        by_name.push((site.clone(), item));
                    }
                }
            }
            Err(failure) => missing = Some(failure),
        }
    }
    // An id is unique whoever else is silent; a name is not.
    let mut found = if by_id.is_empty() {
        if let Some(missing) = missing {
            let next = format!("a proxy that may know the {what} {name:?} does not answer; name the right one with --proxy");
            return Err(if sites.len() > 1 { missing.next(next) } else { missing });
        }
        by_name
    } else {
        by_id
    };
    match found.len() {
        0 => Err(Failure::failed("NO_SUCH_OBJECT", format!("there is no {what} {name:?} on {}", list_names(&sites))).next(list)),
        1 => Ok(found.swap_remove(0)),
        _ => {
            let candidates = found.iter().map(|(site, item)| format!("{} on {}", names(item)[0], site.name));
            let candidates = candidates.collect::<Vec<_>>().join(", ");
            Err(Failure::usage(format!("{what} {name:?} is ambiguous: {candidates}")).next("use its id, or --proxy NAME"))
        }
    }
}

/// The configuration folder a command line means.
///
/// # Errors
/// None is named and the user has no home.
pub fn config_dir(common: &Common) -> Result<PathBuf, Failure> {
    match &common.config {
        Some(dir) => Ok(dir.clone()),
        None => Ok(Config::default_dir()?),
    }
}

fn list_names(sites: &[Site]) -> String {
    sites.iter().map(|site| site.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// Picks the one of `items` that `name` means.
///
/// # Errors
/// What is wrong, in words: nothing or several.
pub fn pick<'a, T>(what: &str, name: &str, items: &'a [T], names: impl Fn(&T) -> [&str; 2]) -> Result<&'a T, String> {
    if let Some(item) = items.iter().find(|item| names(item)[0] == name) {
        return Ok(item);
    }
    let mut found = items.iter().filter(|item| names(item)[1] == name);
    match (found.next(), found.next()) {
        (Some(item), None) => Ok(item),
        (None, _) => Err(format!("there is no {what} {name:?}")),
        (Some(_), Some(_)) => {
            let candidates: Vec<&str> = items.iter().map(&names).filter(|names| names[1] == name).map(|names| names[0]).collect();
            Err(format!("{what} {name:?} is ambiguous: {}", candidates.join(", ")))
        }
    }
}
