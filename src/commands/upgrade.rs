//! `backhaul proxy upgrade`: brings a bundle to one proxy after the other, follows each through its swap, and stops at the
//! first that does not come out well.
//!
//! The bundle is read or downloaded once, here, so a proxy needs no network for it, and all get the same.

use std::time::Duration;

use api::{NoParams, ProxyStatus, ProxyStatusGet, UpgradeParams, UpgradePhase, UpgradeStart, UpgradeState};
use clap::Args;
use serde_json::json;
use tokio::time::Instant;

use super::cli::{Common, seconds};
use super::context::{Context, Site};
use super::failure::{Exit, Failure};
use super::output;
use super::watch::Teller;
use crate::config::ConfigError;
use crate::fleet::bundle::{self, Bundle};
use crate::fleet::{CallError, Follower};

/// How long a proxy may be away before its line is tried anew.
const PATIENCE: Duration = Duration::from_secs(60);
/// For all of an upgrade but the wait for running transfers.
const BESIDES: Duration = Duration::from_secs(900);
/// Wait for running transfers where none is told: the proxy's own default.
const WAIT: u64 = 3600;
/// Between two tries to reach a proxy that swaps.
const PAUSE: Duration = Duration::from_millis(500);

/// `proxy upgrade`.
#[derive(Debug, Args)]
pub struct UpgradeArgs {
    /// The proxies, by their names in the configuration, in this order
    #[arg(value_name = "PROXY")]
    proxies: Vec<String>,
    /// All proxies of the configuration, in its order
    #[arg(long, conflicts_with = "proxies")]
    all: bool,
    /// The signed bundle; from the web it is downloaded here, not by the proxies
    #[arg(long, value_name = "FILE|URL")]
    bundle: String,
    /// How long running transfers may take to end before they are cancelled, e.g. 90s, 30m, 2h [default: 1h]
    #[arg(long, value_name = "TIME", value_parser = wait)]
    wait: Option<u64>,
    /// Take an older version than the running one
    #[arg(long)]
    downgrade: bool,
}

fn wait(text: &str) -> Result<u64, String> {
    let expected = || "expected a time up to 7 days, e.g. 90s, 30m, 2h".to_owned();
    seconds(text).ok().filter(|seconds| *seconds <= 7 * 86_400).ok_or_else(expected)
}

/// Runs it.
///
/// # Errors
/// [`Failure`].
pub async fn run(common: &Common, arguments: UpgradeArgs) -> Result<(), Failure> {
    let context = Context::new(common)?;
    let sites = sites(&context, &arguments)?;
    let bundle = bundle::fetch(&arguments.bundle, &|_| ()).await?;
    let wait = arguments.wait.unwrap_or(WAIT);
    let params = UpgradeParams { bundle: bundle.sha256.clone(), wait_seconds: Some(wait), downgrade: arguments.downgrade };
    for (index, site) in sites.iter().enumerate() {
        let failure = match one(&context, site, &bundle, &params).await {
            Ok(None) => continue,
            Ok(Some(failure)) => failure,
            Err(failure) => {
                if context.json {
                    let error = failure.report.as_ref();
                    output::json(&json!({ "proxy": site.name, "phase": UpgradePhase::Failed, "error": error }))?;
                }
                failure
            }
        };
        for untouched in &sites[index + 1..] {
            if context.json {
                output::json(&json!({ "proxy": untouched.name, "phase": "untouched" }))?;
            } else {
                output::aside(&format!("{} is left as it is", untouched.name));
            }
        }
        return Err(failure.within(&site.name));
    }
    Ok(())
}

/// The proxies that are meant, in order.
fn sites(context: &Context, arguments: &UpgradeArgs) -> Result<Vec<Site>, Failure> {
    let known = context.sites()?;
    if arguments.proxies.is_empty() {
        return match known.len() {
            1 => Ok(known),
            _ if arguments.all => Ok(known),
            _ => Err(Failure::usage("say which proxies, or --all").next("backhaul proxy list")),
        };
    }
    let mut sites: Vec<Site> = Vec::new();
    for name in &arguments.proxies {
        let site = known.iter().find(|site| site.name == *name);
        let site = site.ok_or_else(|| ConfigError::NoSuchProxy { name: name.clone() })?;
        if sites.iter().all(|other| other.name != site.name) {
            sites.push(site.clone());
        }
    }
    Ok(sites)
}

/// One proxy, to its end. A failure that has been told already is a value; it is no less one.
async fn one(context: &Context, site: &Site, bundle: &Bundle, params: &UpgradeParams) -> Result<Option<Failure>, Failure> {
    let before = site.call::<ProxyStatusGet>(&NoParams {}).await?;
    let wanted = &bundle.manifest.build;
    if before.version == wanted.version && before.build.as_ref() == Some(&wanted.build) {
        tell(context, site, &before, None, &format!("runs {} already", words(&before)))?;
        return Ok(None);
    }
    site.permit::<UpgradeStart>()?;
    let begun = begin(site, bundle, params, &before).await?;
    let state = follow(context, site, params, begun).await?;
    let after = settled(site, Instant::now() + PATIENCE, |_| true).await?;
    if state.phase == UpgradePhase::Done {
        tell(context, site, &after, Some(&state), &format!("upgraded from {} to {}", state.from, state.to))?;
        return Ok(None);
    }
    let what = if state.phase == UpgradePhase::RolledBack { "was rolled back" } else { "was not upgraded" };
    tell(context, site, &after, Some(&state), &format!("{what}, and runs {}", words(&after)))?;
    Ok(Some(Failure { exit: Exit::Failed, report: state.error }))
}

/// Begins. A proxy with nothing to wait for may be gone before its answer is here: then it is asked what goes on.
async fn begin(site: &Site, bundle: &Bundle, params: &UpgradeParams, before: &ProxyStatus) -> Result<UpgradeState, Failure> {
    let error = match bundle::begin(site.client(), bundle, params, |_| ()).await {
        Ok(state) => return Ok(state),
        Err(error @ CallError::Cut { .. }) => error,
        Err(error) => return Err(site.client().explain(error).await.into()),
    };
    let run = |status: &ProxyStatus| status.upgrade.as_ref().and_then(|upgrade| upgrade.run.clone());
    let now = settled(site, Instant::now() + PATIENCE, |_| true).await?;
    match now.upgrade {
        Some(ref upgrade) if run(&now) != run(before) => Ok(UpgradeState::clone(upgrade)),
        _ => Err(error.into()),
    }
}

/// Tells what happens until the upgrade is over, through all restarts of the proxy.
async fn follow(context: &Context, site: &Site, params: &UpgradeParams, begun: UpgradeState) -> Result<UpgradeState, Failure> {
    let deadline = Instant::now() + BESIDES + Duration::from_secs(params.wait_seconds.unwrap_or(WAIT));
    if let Some(run) = &begun.run {
        tell_run(context, site, run, deadline).await?;
    }
    let over = |status: &ProxyStatus| {
        // A program of before runs were told does not name its own.
        let upgrade = status.upgrade.as_ref().filter(|upgrade| upgrade.run.is_none() || upgrade.run == begun.run);
        upgrade.is_some_and(|upgrade| {
            !matches!(upgrade.phase, UpgradePhase::Draining | UpgradePhase::Swapping | UpgradePhase::Unknown)
        })
    };
    let status = settled(site, deadline, over).await?;
    let upgrade = status.upgrade.map(|upgrade| *upgrade);
    upgrade.ok_or_else(|| Failure::failed("UPGRADE", "it does not say how its upgrade came out"))
}

/// Tells a run's events to the last.
async fn tell_run(context: &Context, site: &Site, run: &str, deadline: Instant) -> Result<(), Failure> {
    let mut teller = Teller::new(context, &site.name, run);
    let mut cursor = 0;
    loop {
        let mut follower = Follower::new(site.client().clone(), run.to_owned(), cursor, Some(PATIENCE));
        loop {
            match follower.next().await {
                Ok(Some(event)) => {
                    teller.tell(&event)?;
                    cursor = event.cursor;
                }
                Ok(None) => return Ok(()),
                Err(error @ (CallError::Certificate { .. } | CallError::Authentication { .. })) => return Err(error.into()),
                Err(error) if Instant::now() >= deadline => return Err(error.into()),
                // A program on probation may answer anything; it is not the last word.
                Err(_) => break,
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The state of a proxy once it answers and is as wanted.
async fn settled(site: &Site, deadline: Instant, wanted: impl Fn(&ProxyStatus) -> bool) -> Result<ProxyStatus, Failure> {
    loop {
        match site.call::<ProxyStatusGet>(&NoParams {}).await {
            Ok(status) if wanted(&status) || Instant::now() >= deadline => return Ok(status),
            Err(failure) if failure.exit != Exit::Unreachable || Instant::now() >= deadline => return Err(failure),
            _ => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Version and build of a proxy.
pub(super) fn words(status: &ProxyStatus) -> String {
    match &status.build {
        Some(build) => format!("{} ({build})", status.version),
        None => status.version.clone(),
    }
}

fn tell(context: &Context, site: &Site, now: &ProxyStatus, state: Option<&UpgradeState>, text: &str) -> Result<(), Failure> {
    if context.json {
        return Ok(output::json(&json!({
            "proxy": site.name, "phase": state.map_or(UpgradePhase::Done, |state| state.phase),
            "version": now.version, "build": now.build, "channel": now.channel,
            "error": state.and_then(|state| state.error.as_ref()),
        }))?);
    }
    Ok(output::line(&output::printable(&format!("{} {text}", site.name)))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units_and_bounds() {
        assert_eq!(["90s", "30m", "2h", "7d", "0"].map(|text| wait(text).unwrap()), [90, 1800, 7200, 604_800, 0]);
        for bad in ["", "h", "-1", "90", "8d", "9999h", "18446744073709551615h", "1é"] {
            wait(bad).unwrap_err();
        }
    }
}
