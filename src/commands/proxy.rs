//! `backhaul proxy`: the console's own list of proxies.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use api::{ErrorReport, NoParams, ProxyStatus, ProxyStatusGet, UpgradePhase, UpgradeState, format_rate};
use futures::future::join_all;
use serde::Serialize;
use tls::Fingerprint;
use url::Url;

use super::cli::{Common, ProxyCommand, TokenSource};
use super::context::{Context, config_dir};
use super::failure::{Exit, Failure};
use super::{deploy, maintain, output, upgrade};
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

/// Runs it.
///
/// # Errors
/// [`Failure`].
pub async fn run(common: &Common, command: ProxyCommand) -> Result<(), Failure> {
    match command {
        ProxyCommand::List => list(common).await,
        ProxyCommand::Show { name } => show(common, name).await,
        ProxyCommand::Deploy(arguments) => deploy::deploy(common, *arguments).await,
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
        ProxyCommand::Destroy { name, confirm } => deploy::destroy(common, &name, confirm).await,
        ProxyCommand::Forget { name } => deploy::forget(common, &name).await,
        ProxyCommand::Add { name, url, token, fingerprint, accept_fingerprint } => {
            add(common, name, &url, &token, fingerprint.as_deref(), accept_fingerprint).await
        }
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
    Entry {
        name: proxy.name.clone(),
        url: proxy.url.as_str().trim_end_matches('/').to_owned(),
        fingerprint: proxy.fingerprint.to_string(),
        state,
        status,
        error,
    }
}

async fn add(
    common: &Common,
    name: String,
    url: &str,
    token: &TokenSource,
    fingerprint: Option<&str>,
    accept: bool,
) -> Result<(), Failure> {
    config::check_name(&name).map_err(|message| Failure::usage(format!("proxy name {name:?}: {message}")))?;
    let url = config::check_url(url).map_err(|message| Failure::usage(format!("address {url:?}: {message}")))?;
    let expected: Option<Fingerprint> =
        fingerprint.map(str::parse).transpose().map_err(|error: tls::ParseFingerprintError| Failure::usage(error.to_string()))?;
    let dir = config_dir(common)?;
    if let Ok(known) = &Config::load(&dir).proxies
        && known.iter().any(|proxy| proxy.name == name)
    {
        return Err(config::ConfigError::NameTaken { name }.into());
    }
    let token = read_token(token)?;
    let seen = Client::observe(&url).await?;
    match expected {
        Some(expected) if expected != seen => {
            let host = url.host_str().unwrap_or_default().to_owned();
            return Err(CallError::Certificate { host, expected, seen: Some(seen) }.into());
        }
        Some(_) => {}
        None if accept => output::aside(&format!("pinning the certificate {seen}")),
        None => confirm(&url, seen)?,
    }
    let proxy = Proxy { name, url, token, fingerprint: seen };
    let client = proxy.client()?;
    let status = client.call::<ProxyStatusGet>(&NoParams {}).await?;
    Config::add_proxy(&dir, proxy.clone())?;
    if common.json {
        let entry = Entry {
            name: proxy.name,
            url: proxy.url.as_str().trim_end_matches('/').to_owned(),
            fingerprint: seen.to_string(),
            state: "live",
            status: Some(status),
            error: None,
        };
        return Ok(output::json(&entry)?);
    }
    let text = format!("added proxy {}: {} {}, certificate {seen}", proxy.name, status.name, status.version);
    Ok(output::line(&output::printable(&text))?)
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
fn confirm(url: &Url, seen: Fingerprint) -> Result<(), Failure> {
    let host = url.host_str().unwrap_or_default();
    let refused = || {
        Failure::refused("FINGERPRINT_NOT_ACCEPTED", format!("the proxy at {host} shows the certificate {seen}, which nobody has confirmed"))
            .next("compare it with the line `fingerprint` that backhauld prints when it starts, then add --fingerprint or --accept-fingerprint")
    };
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(refused());
    }
    let _ = write!(
        io::stderr().lock(),
        "{host} shows the certificate\n  {seen}\nbackhauld prints its own when it starts. Are they the same? [y/N] "
    );
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    match read {
        Ok(_) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(()),
        _ => Err(refused()),
    }
}
