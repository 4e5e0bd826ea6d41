//! `backhaul proxy upgrade`: brings a bundle to one proxy after the other, follows each through its swap, and stops at the
//! first that does not come out well.
//!
//! The bundle is read or downloaded once, here, so a proxy needs no network for it, and all get the same.

use std::path::Path;
use std::time::Duration;

use api::deploy::redact_url;
use api::{
    MAX_BUNDLE, NoParams, ProxyStatus, ProxyStatusGet, RunKind, RunList, RunListParams, UpgradeParams, UpgradePhase,
    UpgradeStart, UpgradeState, format_bytes,
};
use bytes::{Bytes, BytesMut};
use clap::Args;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use signed::BundleManifest;
use tokio::time::Instant;

use super::cli::Common;
use super::context::{Context, Site};
use super::failure::{Exit, Failure};
use super::watch::Teller;
use super::{bundle, output};
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
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    wait: Option<u64>,
    /// Take an older version than the running one
    #[arg(long)]
    downgrade: bool,
}

fn seconds(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.char_indices().next_back() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 3600),
        _ => (text, 1),
    };
    let seconds = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    seconds.filter(|seconds| *seconds <= 7 * 86_400).ok_or_else(|| "expected a time up to 7 days, e.g. 90s, 30m, 2h".to_owned())
}

/// A bundle that is at hand.
struct Bundle {
    bytes: Bytes,
    sha256: String,
    manifest: BundleManifest,
}

/// Runs it.
///
/// # Errors
/// [`Failure`].
pub async fn run(common: &Common, arguments: UpgradeArgs) -> Result<(), Failure> {
    let context = Context::new(common)?;
    let sites = sites(&context, &arguments)?;
    let bundle = fetch(&arguments.bundle).await?;
    let wait = arguments.wait.unwrap_or(WAIT);
    let params = UpgradeParams { bundle: bundle.sha256.clone(), wait_seconds: Some(wait), downgrade: arguments.downgrade };
    for (index, site) in sites.iter().enumerate() {
        let Err(failure) = one(&context, site, &bundle, &params).await else { continue };
        for untouched in &sites[index + 1..] {
            if context.json {
                output::json(&json!({ "proxy": untouched.name, "phase": "untouched" }))?;
            } else {
                output::aside(&format!("{} is left as it is", untouched.name));
            }
        }
        return Err(failure);
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
        let site = site.ok_or_else(|| {
            Failure::usage(format!("there is no proxy {name:?} in the configuration")).next("backhaul proxy list")
        })?;
        if sites.iter().all(|other| other.name != site.name) {
            sites.push(site.clone());
        }
    }
    Ok(sites)
}

async fn fetch(from: &str) -> Result<Bundle, Failure> {
    let bytes = if from.starts_with("http://") || from.starts_with("https://") {
        download(from).await?
    } else {
        let path = Path::new(from.strip_prefix("file://").unwrap_or(from));
        let failed = |error: std::io::Error| Failure::file("read", path, &error);
        let size = std::fs::metadata(path).map_err(failed)?.len();
        if size > MAX_BUNDLE {
            return Err(too_long(from));
        }
        Bytes::from(std::fs::read(path).map_err(failed)?)
    };
    let shown = redact_url(from);
    // Whether to trust its signer is the proxies' affair; that it is a bundle at all can be said before any is touched.
    let read = BundleManifest::read_of_anyone(&mut bytes.as_ref());
    let (manifest, _) = read.map_err(|error| Failure::refused("BUNDLE", format!("{shown}: {}", bundle::said(&error))))?;
    let sha256 = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Bundle { bytes, sha256, manifest })
}

fn too_long(from: &str) -> Failure {
    let shown = redact_url(from);
    Failure::refused("BUNDLE", format!("{shown} is no upgrade bundle: it is longer than {}", format_bytes(MAX_BUNDLE)))
}

async fn download(url: &str) -> Result<Bytes, Failure> {
    let shown = redact_url(url);
    let failed = |error: reqwest::Error| {
        let reason = bundle::said(&error.without_url());
        Failure::failed("DOWNLOAD", format!("cannot download {shown}: {reason}"))
            .next("download it by other means and give the file")
    };
    tls::install_provider();
    let http = reqwest::Client::builder().connect_timeout(Duration::from_secs(10)).read_timeout(PATIENCE).build();
    let answer = http.map_err(failed)?.get(url).send().await.map_err(failed)?;
    let mut answer = answer.error_for_status().map_err(failed)?;
    let mut bytes = BytesMut::new();
    while let Some(piece) = answer.chunk().await.map_err(failed)? {
        bytes.extend_from_slice(&piece);
        if bytes.len() as u64 > MAX_BUNDLE {
            return Err(too_long(url));
        }
    }
    Ok(bytes.freeze())
}

/// One proxy, to its end.
async fn one(context: &Context, site: &Site, bundle: &Bundle, params: &UpgradeParams) -> Result<(), Failure> {
    let before = site.call::<ProxyStatusGet>(&NoParams {}).await?;
    let wanted = &bundle.manifest.build;
    if before.version == wanted.version && before.build.as_ref() == Some(&wanted.build) {
        return tell(context, site, &before, None, &format!("runs {} already", words(&before)));
    }
    begin(site, bundle, params).await?;
    let state = follow(context, site, params).await?;
    let after = settled(site, Instant::now() + PATIENCE, |_| true).await?;
    match state.phase {
        UpgradePhase::Done => tell(context, site, &after, Some(&state), &format!("upgraded from {} to {}", state.from, state.to)),
        _ => {
            let what = if state.phase == UpgradePhase::RolledBack { "was rolled back" } else { "was not upgraded" };
            tell(context, site, &after, Some(&state), &format!("{what}, and runs {}", words(&after)))?;
            Err(Failure { exit: Exit::Failed, report: state.error })
        }
    }
}

/// Sends the bundle, unless it is there from another try, and begins.
async fn begin(site: &Site, bundle: &Bundle, params: &UpgradeParams) -> Result<(), Failure> {
    match site.call::<UpgradeStart>(params).await {
        Err(Failure { report: Some(report), .. }) if report.code == "NO_SUCH_OBJECT" => {}
        begun => return begun.map(drop),
    }
    site.client().send_bundle(bundle.bytes.clone()).await?;
    site.call::<UpgradeStart>(params).await.map(drop)
}

/// Tells what happens until the upgrade is over, through all restarts of the proxy.
async fn follow(context: &Context, site: &Site, params: &UpgradeParams) -> Result<UpgradeState, Failure> {
    let deadline = Instant::now() + BESIDES + Duration::from_secs(params.wait_seconds.unwrap_or(WAIT));
    let runs = site.call::<RunList>(&RunListParams { limit: Some(20), ..RunListParams::default() }).await?;
    let run = runs.into_iter().find(|run| run.kind == RunKind::Upgrade).map(|run| run.id).unwrap_or_default();
    let mut teller = Teller::new(context, &site.name, &run);
    let mut cursor = 0;
    'lines: loop {
        let mut follower = Follower::new(site.client().clone(), run.clone(), cursor, Some(PATIENCE));
        loop {
            match follower.next().await {
                Ok(Some(event)) => {
                    teller.tell(&event)?;
                    cursor = event.cursor;
                }
                Ok(None) => break 'lines,
                Err(error @ (CallError::Certificate { .. } | CallError::Authentication { .. })) => return Err(error.into()),
                Err(error) if Instant::now() >= deadline => return Err(error.into()),
                // A program on probation may answer anything; it is not the last word.
                Err(_) => break,
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    let over = |status: &ProxyStatus| {
        let phase = status.upgrade.as_ref().map(|upgrade| upgrade.phase);
        !matches!(phase, None | Some(UpgradePhase::Draining | UpgradePhase::Swapping | UpgradePhase::Unknown))
    };
    let status = settled(site, deadline, over).await?;
    let upgrade = status.upgrade.map(|upgrade| *upgrade);
    upgrade.ok_or_else(|| Failure::failed("UPGRADE", format!("{} does not say how its upgrade came out", site.name)))
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
        assert_eq!(["90", "90s", "30m", "2h", "0"].map(|text| seconds(text).unwrap()), [90, 90, 1800, 7200, 0]);
        for bad in ["", "h", "-1", "1d", "9999h", "18446744073709551615h", "1é"] {
            seconds(bad).unwrap_err();
        }
    }
}
