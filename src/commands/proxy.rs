//! `backhaul proxy`: the console's own list of proxies.

use std::io::{self, Read};

use api::{ErrorReport, NoParams, ProxyStatus, ProxyStatusGet, UpgradePhase, UpgradeState, format_rate};
use futures::future::join_all;
use serde::Serialize;
use tls::Fingerprint;
use url::Url;

use super::cli::{Common, ProxyCommand, TokenSource};
use super::context::{Context, config_dir};
use super::failure::{Exit, Failure};
use super::{deploy, maintain, output, ssh, upgrade};
use crate::config::{self, Config, Proxy, Token};
use crate::fleet::{CallError, Client};

/// A proxy of the configuration, and what it says of itself.
#[derive(Serialize)]
struct Entry {
    name: String,
    url: String,
    fingerprint: String,
    /// `live`, `unreachable`, `refused`.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<ProxyStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorReport>,
}

impl Entry {
    fn live(proxy: &Proxy, status: ProxyStatus) -> Self {
        Self {
            name: proxy.name.clone(),
            url: proxy.address(),
            fingerprint: proxy.fingerprint.to_string(),
            state: "live",
            status: Some(status),
            error: None,
        }
    }
}

/// Runs it.
///
/// # Errors
/// [`Failure`].
pub async fn run(common: &Common, command: ProxyCommand) -> Result<(), Failure> {
    match command {
        ProxyCommand::List => list(common).await,
        ProxyCommand::Show { name } => show(common, name).await,
        ProxyCommand::Deploy(arguments) => deploy::deploy(common, *arguments).await,
        ProxyCommand::Undeploy(arguments) => ssh::undeploy(common, arguments).await,
        ProxyCommand::Deployed => deploy::list(common).await,
        ProxyCommand::Claim { name } => deploy::claim(common, &name).await,
        ProxyCommand::Adopt { name } => maintain::adopt(common, &name).await,
        ProxyCommand::Certificate(command) => maintain::certificate(common, command).await,
        ProxyCommand::Drain { name, switch } => maintain::drain(common, &name, switch).await,
        ProxyCommand::Redeploy(arguments) => deploy::redeploy(common, arguments).await,
        ProxyCommand::Set(arguments) => maintain::set(common, arguments).await,
        ProxyCommand::Token(command) => maintain::token(common, command).await,
        ProxyCommand::Reconfigure(arguments) => deploy::reconfigure(common, arguments).await,
        ProxyCommand::Upgrade(arguments) => upgrade::run(common, arguments).await,
        ProxyCommand::Destroy { name, confirm, discard_local_backups } => {
            deploy::destroy(common, &name, confirm, discard_local_backups).await
        }
        ProxyCommand::Forget { name } => deploy::forget(common, &name).await,
        ProxyCommand::Add { mut place, token, fingerprint, accept_fingerprint } => {
            let url = place.pop().unwrap_or_default();
            add(common, place.pop(), &url, &token, fingerprint.as_deref(), accept_fingerprint).await
        }
        ProxyCommand::Trust { name, fingerprint } => trust(common, name, fingerprint.as_deref()).await,
        ProxyCommand::Remove { name } => {
            let dir = config_dir(common)?;
            Config::remove_proxy(&dir, &name)?;
            if common.json {
                output::json(&serde_json::json!({ "removed": name }))?;
            } else {
                output::line(&format!("forgot proxy {}", output::printable(&name)))?;
            }
            Ok(())
        }
    }
}

async fn list(common: &Common) -> Result<(), Failure> {
    let context = Context::new(common)?;
    let proxies = match (&context.config.proxies, &common.proxy) {
        // An empty list is an answer, not a mistake.
        (Ok(all), None) => all.iter().collect(),
        _ => context.proxies()?,
    };
    let entries = join_all(proxies.into_iter().map(ask)).await;
    if common.json {
        return Ok(output::json(&entries)?);
    }
    let row = |entry: &Entry| {
        let status = entry.status.as_ref();
        vec![
            entry.name.clone(),
            entry.state.to_owned(),
            status.map(upgrade::words).unwrap_or_default(),
            status.and_then(|status| status.site.clone()).unwrap_or_default(),
            status.map(|status| status.running.len().to_string()).unwrap_or_default(),
            status.map(|status| format_rate(status.bytes_per_second)).unwrap_or_default(),
            entry.url.clone(),
            said(entry),
        ]
    };
    let rows: Vec<_> = entries.iter().map(row).collect();
    Ok(output::table(&["NAME", "STATE", "VERSION", "SITE", "RUNS", "SPEED", "URL", "LAST ERROR"], &rows)?)
}

/// Why it is not live, or its last failure.
fn said(entry: &Entry) -> String {
    let of_runs = || entry.status.as_ref()?.last_error.as_ref().map(|last| last.error.message.clone());
    entry.error.as_ref().map(|error| error.message.clone()).or_else(of_runs).unwrap_or_default()
}

async fn show(common: &Common, name: String) -> Result<(), Failure> {
    let context = Context::new(&Common { proxy: Some(name), ..common.clone() })?;
    let Some(proxy) = context.proxies()?.into_iter().next() else { return Err(Failure::usage("no proxy is known")) };
    let entry = ask(proxy).await;
    if common.json {
        output::json(&entry)?;
    } else {
        let mut text = vec![
            ("name", entry.name.clone()),
            ("url", entry.url.clone()),
            ("fingerprint", entry.fingerprint.clone()),
            ("state", entry.state.into()),
        ];
        if let Some(status) = &entry.status {
            text.push(("version", upgrade::words(status)));
            text.extend(status.channel.clone().map(|channel| ("channel", channel)));
            if status.version != env!("CARGO_PKG_VERSION") {
                text.push(("skew", concat!("this console is ", env!("CARGO_PKG_VERSION")).to_owned()));
            }
            text.extend(status.upgrade.as_ref().map(|upgrade| ("upgrade", last_upgrade(upgrade))));
            text.push(("site", status.site.clone().unwrap_or_default()));
            text.push(("started", output::time(status.started_at)));
            text.push(("speed", format_rate(status.bytes_per_second)));
            text.extend(status.draining.then(|| ("draining", "starts no new runs".to_owned())));
            text.extend(status.former_token_until.map(|until| ("former token", format!("good until {}", output::time(until)))));
            text.extend(status.running.iter().map(|run| ("running", format!("{} {}", run.id, run.label))));
        }
        for (key, value) in text {
            output::line(&format!("{key:<12} {}", output::printable(&value)))?;
        }
    }
    match (entry.state, entry.error) {
        ("live", _) => Ok(()),
        (state, report) => Err(Failure { exit: if state == "refused" { Exit::Refused } else { Exit::Unreachable }, report }),
    }
}

fn last_upgrade(state: &UpgradeState) -> String {
    let phase = match state.phase {
        UpgradePhase::Draining => "waits for running transfers",
        UpgradePhase::Swapping => "swaps programs",
        UpgradePhase::Done => "done",
        UpgradePhase::RolledBack => "rolled back",
        UpgradePhase::Failed => "failed",
        UpgradePhase::Unknown => "in a phase that this program does not know, since",
    };
    let error = state.error.as_ref().map(|error| format!(": {}", error.message)).unwrap_or_default();
    format!("{} → {}, {phase} {}{error}", state.from, state.to, output::time(state.since))
}

async fn ask(proxy: &Proxy) -> Entry {
    let answer = match proxy.client() {
        Ok(client) => match client.call::<ProxyStatusGet>(&NoParams {}).await {
            Ok(status) => Ok(status),
            Err(error) => Err(client.explain(error).await),
        },
        Err(error) => Err(error),
    };
    let (state, status, error) = match answer {
        Ok(status) => ("live", Some(status), None),
        Err(error) => {
            let state = if error.is_passing() { "unreachable" } else { "refused" };
            (state, None, Some(error.report()))
        }
    };
    Entry { name: proxy.name.clone(), url: proxy.address(), fingerprint: proxy.fingerprint.to_string(), state, status, error }
}

async fn add(
    common: &Common,
    name: Option<String>,
    url: &str,
    token: &TokenSource,
    fingerprint: Option<&str>,
    accept: bool,
) -> Result<(), Failure> {
    let check =
        |name: &str| config::check_name(name).map_err(|message| Failure::usage(format!("proxy name {name:?}: {message}")));
    name.as_deref().map_or(Ok(()), check)?;
    let url = config::check_url(url).map_err(|message| Failure::usage(format!("address {url:?}: {message}")))?;
    let expected = parse_fingerprint(fingerprint)?;
    let dir = config_dir(common)?;
    if let (Ok(known), Some(name)) = (&Config::load(&dir).proxies, &name)
        && known.iter().any(|proxy| proxy.name == *name)
    {
        return Err(config::ConfigError::NameTaken { name: name.clone() }.into());
    }
    let token = read_token(token)?;
    let seen = Client::observe(&url).await?;
    if expected.is_none() && accept {
        output::aside(&format!("pinning the certificate {seen}"));
    } else {
        accepted(&url, seen, expected, None)?;
    }
    let client = Client::new(&url, &token, seen)?;
    let status = client.call::<ProxyStatusGet>(&NoParams {}).await?;
    let name = name.unwrap_or_else(|| status.name.trim().to_owned());
    check(&name)?;
    let proxy = Proxy { name, url, token, fingerprint: seen };
    Config::add_proxy(&dir, proxy.clone())?;
    if common.json {
        return Ok(output::json(&Entry::live(&proxy, status))?);
    }
    let text = format!("added proxy {}: {} {}, certificate {seen}", proxy.name, status.name, status.version);
    Ok(output::line(&output::printable(&text))?)
}

async fn trust(common: &Common, name: String, fingerprint: Option<&str>) -> Result<(), Failure> {
    let expected = parse_fingerprint(fingerprint)?;
    let context = Context::new(&Common { proxy: Some(name), ..common.clone() })?;
    let Some(proxy) = context.proxies()?.into_iter().next() else { return Err(Failure::usage("no proxy is known")) };
    let seen = Client::observe(&proxy.url).await?;
    // Nothing is asked about a certificate that is trusted already; another one that was expected is told even so.
    if seen != proxy.fingerprint || expected.is_some() {
        accepted(&proxy.url, seen, expected, Some(proxy.fingerprint))?;
    }
    let mut renewed = Proxy { fingerprint: seen, ..proxy.clone() };
    // Whoever does not accept the token is not the proxy that it was made for.
    let status = renewed.client()?.call::<ProxyStatusGet>(&NoParams {}).await?;
    let changed = renewed.fingerprint != proxy.fingerprint;
    if changed {
        renewed = Config::change_proxy(&config_dir(common)?, proxy, |entry| entry.fingerprint = seen)?;
    }
    if common.json {
        return Ok(output::json(&Entry::live(&renewed, status))?);
    }
    let text = match changed {
        true => format!("proxy {} is trusted by its certificate {seen} from now on", renewed.name),
        false => format!("proxy {} shows the certificate that is trusted already, {seen}", renewed.name),
    };
    Ok(output::line(&output::printable(&text))?)
}

fn parse_fingerprint(text: Option<&str>) -> Result<Option<Fingerprint>, Failure> {
    text.map(str::parse).transpose().map_err(|error: tls::ParseFingerprintError| Failure::usage(error.to_string()))
}

/// Accepts a certificate that is as expected, or that a person says is right.
fn accepted(url: &Url, seen: Fingerprint, expected: Option<Fingerprint>, pinned: Option<Fingerprint>) -> Result<(), Failure> {
    match expected {
        Some(expected) if expected != seen => {
            let host = url.host_str().unwrap_or_default().to_owned();
            Err(CallError::Certificate { host, expected, seen: Some(seen) }.into())
        }
        Some(_) => Ok(()),
        None => confirm(url, seen, pinned),
    }
}

fn read_token(source: &TokenSource) -> Result<Token, Failure> {
    let text = match &source.token_file {
        Some(path) => std::fs::read_to_string(path).map_err(|error| Failure::file("read the token from", path, &error))?,
        None => {
            let mut text = String::new();
            // A token is a line; whoever pipes more has mistaken the file.
            io::stdin()
                .lock()
                .take(64 << 10)
                .read_to_string(&mut text)
                .map_err(|error| Failure::failed("TOKEN", format!("cannot read the token from standard input: {error}")))?;
            text
        }
    };
    Token::new(&text).map_err(Failure::usage)
}

/// Asks the person whether the certificate is the right one, where there is a person.
fn confirm(url: &Url, seen: Fingerprint, pinned: Option<Fingerprint>) -> Result<(), Failure> {
    let host = url.host_str().unwrap_or_default();
    let before = pinned.map(|pinned| format!(" in the place of {pinned}")).unwrap_or_default();
    let refused = || {
        let text = format!("the proxy at {host} shows the certificate {seen}{before}, which nobody has confirmed");
        let option = if pinned.is_some() { "--fingerprint" } else { "--fingerprint or --accept-fingerprint" };
        Failure::refused("FINGERPRINT_NOT_ACCEPTED", text)
            .next(format!("compare it with what `backhauld fingerprint` prints on the proxy's host, then add {option}"))
    };
    let shows = match pinned {
        Some(pinned) => format!("{host} was trusted by the certificate\n  {pinned}\nand shows now\n  {seen}\n"),
        None => format!("{host} shows the certificate\n  {seen}\n"),
    };
    let question = format!("{shows}`backhauld fingerprint` on its host prints the right one. Are they the same?");
    match deploy::agreed(&question) {
        Ok(true) => Ok(()),
        Ok(false) | Err(_) => Err(refused()),
    }
}
