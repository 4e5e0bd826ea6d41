//! Keeping a proxy up from the command line: its settings, token, certificate, and whether it takes new work.
//!
//! What the console knows of a proxy follows each change: name, token and pin stand in its configuration before anything
//! that counted before ends. So does what the proxy knows that deployed it, if there is one and it can be asked.

use std::path::{Path, PathBuf};

use api::{
    CertificateRenew, CertificateRenewParams, ConfigureParams, DeployAdopt, DrainParams, NoParams, ProxyConfigure, ProxyDrain,
    ProxyStatus, ProxyStatusGet, TokenRevoke, TokenRotate,
};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::cli::{Common, seconds};
use super::context::{Context, Site, config_dir};
use super::deploy::read_secret;
use super::failure::Failure;
use super::output;
use crate::config::{Config, ConfigError, Proxy};
use crate::fleet::keep::{self, Told};

/// How long the former token counts at least while the new one is being written down, seconds.
const BRIDGE: u64 = 600;

/// `proxy set`.
#[derive(Debug, Args)]
pub struct SetArgs {
    /// Its name
    // Not called `proxy`: that is an option of all commands.
    #[arg(value_name = "PROXY")]
    which: String,
    /// Its new name
    #[arg(long)]
    name: Option<String>,
    /// Where it stands; "": nowhere
    #[arg(long)]
    site: Option<String>,
    /// HTTP proxy for its downloads, read from this file, - for standard input: it may hold a password
    #[arg(long, value_name = "FILE")]
    http_proxy_file: Option<PathBuf>,
    /// No HTTP proxy
    #[arg(long, conflicts_with = "http_proxy_file")]
    no_http_proxy: bool,
}

/// `proxy token …`.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a new token and keep it in this console's configuration; the former one stays good for a while
    Rotate {
        /// Name of the proxy
        name: String,
        /// How long the former token is still accepted: 12h, 7d, at most 30d; 0 ends it at once
        #[arg(long, value_name = "TIME", default_value = "1d", value_parser = seconds)]
        overlap: u64,
    },
    /// End the time in which former tokens are still accepted
    Revoke {
        /// Name of the proxy
        name: String,
    },
}

/// `proxy certificate …`.
#[derive(Debug, Subcommand)]
pub enum CertificateCommand {
    /// Show another certificate from now on, and pin it here: a new self-signed one, or one from files
    Renew {
        /// Name of the proxy
        name: String,
        /// Certificate chain, PEM, leaf first
        #[arg(long, value_name = "FILE", requires = "key")]
        certificate: Option<PathBuf>,
        /// Its private key, PEM
        #[arg(long, value_name = "FILE", requires = "certificate")]
        key: Option<PathBuf>,
    },
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// A proxy of the configuration, and how to call it.
struct Known {
    dir: PathBuf,
    proxy: Proxy,
    site: Site,
}

impl Known {
    fn find(common: &Common, name: &str) -> Result<Self, Failure> {
        let context = Context::new(&Common { proxy: Some(name.to_owned()), ..common.clone() })?;
        let Some(proxy) = context.proxies()?.into_iter().next().cloned() else {
            return Err(Failure::usage("no proxy is known"));
        };
        Ok(Self { dir: config_dir(common)?, site: context.only_site()?, proxy })
    }

    async fn ask(&self) -> Result<ProxyStatus, Failure> {
        Ok(self.proxy.client()?.call::<ProxyStatusGet>(&NoParams {}).await?)
    }

    /// Tells the proxy that deployed this one, if one of the configuration did, how it is called and reached now.
    ///
    /// # Errors
    /// It would not take it down: what was changed stands all the same.
    async fn tell_deployer(&self) -> Result<Option<String>, Failure> {
        let told = keep::tell_deployer(&self.proxy, &Config::load(&self.dir).proxies?).await?;
        if let Some(rest) = told.rest(&self.proxy.name) {
            output::aside(&rest);
        }
        Ok(match told {
            Told::Deployer(name) => Some(name),
            Told::Nobody { .. } => None,
        })
    }
}

/// `proxy set`.
///
/// # Errors
/// [`Failure`].
pub async fn set(common: &Common, arguments: SetArgs) -> Result<(), Failure> {
    let http_proxy = match (&arguments.http_proxy_file, arguments.no_http_proxy) {
        (Some(path), _) => Some(read_secret(path)?),
        (None, true) => Some(String::new()),
        (None, false) => None,
    };
    let params = ConfigureParams { name: arguments.name, site: arguments.site, http_proxy };
    if params == ConfigureParams::default() {
        return Err(Failure::usage("say what to change: --name, --site, --http-proxy-file, --no-http-proxy"));
    }
    let mut known = Known::find(common, &arguments.which)?;
    let before = known.ask().await?;
    let status = known.site.call::<ProxyConfigure>(&params).await?;
    // Called here as it calls itself: so it stays. Whoever calls it otherwise here has a reason.
    if known.proxy.name == before.name && status.name != before.name {
        match Config::rename_proxy(&known.dir, &before.name, &status.name) {
            Ok(()) => known.proxy.name.clone_from(&status.name),
            Err(error @ ConfigError::NameTaken { .. }) => {
                output::aside(&output::printable(&format!(
                    "it stays {:?} in this console's configuration: {error}",
                    before.name
                )));
            }
            Err(error) => return Err(error.into()),
        }
    }
    if status.name != before.name {
        known.tell_deployer().await?;
    }
    if common.json {
        return Ok(output::json(&status)?);
    }
    let site = status.site.as_deref().unwrap_or("no site");
    Ok(output::line(&output::printable(&format!("proxy {}, {site}", status.name)))?)
}

/// `proxy token …`.
///
/// # Errors
/// [`Failure`].
pub async fn token(common: &Common, command: TokenCommand) -> Result<(), Failure> {
    match command {
        TokenCommand::Rotate { name, overlap } => rotate(common, &name, overlap).await,
        TokenCommand::Revoke { name } => {
            let known = Known::find(common, &name)?;
            let revoked = known.site.call::<TokenRevoke>(&NoParams {}).await?;
            if common.json {
                return Ok(output::json(&json!({ "name": known.proxy.name, "revoked": revoked }))?);
            }
            let text = if revoked { "accepts no former token any more" } else { "accepted no former token" };
            Ok(output::line(&output::printable(&format!("proxy {} {text}", known.proxy.name)))?)
        }
    }
}

async fn rotate(common: &Common, name: &str, overlap: u64) -> Result<(), Failure> {
    let mut known = Known::find(common, name)?;
    known.site.permit::<TokenRotate>()?;
    // The former one ends when the new one is written down, and not before, however soon that is to be.
    let overlap_seconds = if overlap == 0 { BRIDGE } else { overlap };
    let (proxy, new) = keep::rotate(&known.dir, &known.proxy, Some(overlap_seconds)).await?;
    known.proxy = proxy;
    let told = known.tell_deployer().await;
    let mut until = Some(new.former_until);
    if overlap == 0 {
        known.proxy.client()?.call::<TokenRevoke>(&NoParams {}).await?;
        until = None;
    }
    let told = told?;
    if common.json {
        return Ok(output::json(&json!({ "name": known.proxy.name, "formerUntil": until, "toldTo": told }))?);
    }
    let until = until
        .map_or_else(|| "the former one has ended".to_owned(), |until| format!("the former one ends {}", output::time(until)));
    let told = told.map(|told| format!("; {told}, which deployed it, knows it too")).unwrap_or_default();
    Ok(output::line(&output::printable(&format!("proxy {} has a new token, kept here; {until}{told}", known.proxy.name)))?)
}

/// `proxy certificate …`.
///
/// # Errors
/// [`Failure`].
pub async fn certificate(common: &Common, command: CertificateCommand) -> Result<(), Failure> {
    let CertificateCommand::Renew { name, certificate, key } = command;
    let read = |path: Option<PathBuf>| path.map(|path| read_text(&path)).transpose();
    let params = CertificateRenewParams { certificate: read(certificate)?, key: read(key)? };
    let mut known = Known::find(common, &name)?;
    known.site.permit::<CertificateRenew>()?;
    let (proxy, new) = keep::renew(&known.dir, &known.proxy, &params).await?;
    known.proxy = proxy;
    let told = known.tell_deployer().await?;
    if common.json {
        return Ok(output::json(&json!({ "name": known.proxy.name, "fingerprint": new.fingerprint, "toldTo": told }))?);
    }
    let told = told.map(|told| format!("; {told}, which deployed it, knows it too")).unwrap_or_default();
    let text = format!("proxy {} shows the certificate {}, pinned here{told}", known.proxy.name, new.fingerprint);
    Ok(output::line(&output::printable(&text))?)
}

fn read_text(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| Failure::file("read", path, &error))
}

/// `proxy drain`.
///
/// # Errors
/// [`Failure`].
pub async fn drain(common: &Common, name: &str, switch: Switch) -> Result<(), Failure> {
    let known = Known::find(common, name)?;
    let status = known.site.call::<ProxyDrain>(&DrainParams { on: switch == Switch::On }).await?;
    if common.json {
        return Ok(output::json(&status)?);
    }
    let text = match (status.draining, status.running.len()) {
        (false, _) => "starts runs again".to_owned(),
        (true, 0) => "starts no new runs, and none is running".to_owned(),
        (true, running) => format!("starts no new runs; {running} still running"),
    };
    Ok(output::line(&output::printable(&format!("proxy {} {text}", known.proxy.name)))?)
}

/// `proxy adopt`: for whoever changed something of a proxy while its deployer could not be told.
///
/// # Errors
/// [`Failure`]; also when no proxy of the configuration deployed it.
pub async fn adopt(common: &Common, name: &str) -> Result<(), Failure> {
    let known = Known::find(common, name)?;
    known.site.permit::<DeployAdopt>()?;
    let status = known.ask().await?;
    let Some(told) = known.tell_deployer().await? else {
        let message = format!("none of the proxies that answer has deployed {:?}", status.name);
        return Err(Failure::failed("NO_DEPLOYER", message).next("backhaul proxy list shows who does not answer"));
    };
    if common.json {
        return Ok(output::json(&json!({ "name": known.proxy.name, "toldTo": told }))?);
    }
    Ok(output::line(&output::printable(&format!("{told} knows how {} is called and reached", status.name)))?)
}
