//! `backhaul doctor` and `backhaul support`: what is wrong with a proxy, and a text about it for whoever is asked for help.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use api::{DoctorCheck, DoctorParams, DoctorRun, NoParams, SupportBundleGet, Verdict};
use clap::Args;
use futures::future::join_all;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;

use super::cli::Common;
use super::context::{Context, Site};
use super::failure::{Exit, Failure};
use super::output;
use crate::fleet::files;

/// `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The proxy [default: all]
    #[arg(value_name = "PROXY", conflicts_with = "proxy")]
    name: Option<String>,
}

/// `support`.
#[derive(Debug, Args)]
pub struct SupportArgs {
    /// The proxy [default: the only one]
    #[arg(value_name = "PROXY", conflicts_with = "proxy")]
    name: Option<String>,
    /// Write it to this file, which must not exist; `-`: standard output [default: a file here, named after proxy and time]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// A line with where it belongs.
#[derive(Serialize)]
struct Line<'a> {
    proxy: &'a str,
    #[serde(flatten)]
    check: &'a DoctorCheck,
}

/// How many came out how.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    passed: usize,
    warnings: usize,
    failed: usize,
}

/// The same with the proxy that is named behind the command.
fn narrowed(common: &Common, name: Option<String>) -> Result<Common, Failure> {
    match (&common.proxy, &name) {
        (Some(one), Some(other)) if one != other => {
            Err(Failure::usage(format!("two proxies are named, {one:?} and {other:?}; name one")))
        }
        _ => Ok(Common { proxy: name.or_else(|| common.proxy.clone()), ..common.clone() }),
    }
}

/// Examines proxies, all at the same time, and tells each line as it comes.
///
/// # Errors
/// [`Failure`]; also, without a word more, when a check failed.
pub async fn doctor(common: &Common, arguments: DoctorArgs) -> Result<(), Failure> {
    let context = Context::new(&narrowed(common, arguments.name)?)?;
    let sites = context.sites()?;
    let several = sites.len() > 1;
    let ended = join_all(sites.iter().map(|site| examine(&context, site, several))).await;
    let (mut sum, mut worst) = (Count::default(), None::<Failure>);
    for end in ended {
        match end {
            Ok(count) => {
                sum.passed += count.passed;
                sum.warnings += count.warnings;
                sum.failed += count.failed;
            }
            // One that cannot be asked is told; how the command ends is for the worst of them.
            Err(failure) => {
                if let Some(report) = &failure.report {
                    output::error(report, context.json);
                }
                worst = worst.filter(|worst| worst.exit >= failure.exit).or(Some(failure));
            }
        }
    }
    if !context.json && sum.passed + sum.warnings + sum.failed > 0 {
        let warnings = if sum.warnings == 1 { "1 warning".to_owned() } else { format!("{} warnings", sum.warnings) };
        output::line(&format!("{} passed, {warnings}, {} failed", sum.passed, sum.failed))?;
    }
    match (worst, sum.failed) {
        (Some(worst), _) => Err(Failure::silent(worst.exit)),
        (None, 0) => Ok(()),
        (None, _) => Err(Failure::silent(Exit::Failed)),
    }
}

async fn examine(context: &Context, site: &Site, several: bool) -> Result<Count, Failure> {
    let params =
        DoctorParams { now: Some(Timestamp::now().as_millisecond()), version: Some(env!("CARGO_PKG_VERSION").to_owned()) };
    let client = site.client();
    let mut lines = match client.stream::<DoctorRun>(&params).await {
        Ok(lines) => lines,
        Err(error) => return Err(client.explain(error).await.into()),
    };
    let mut count = Count::default();
    while let Some(check) = lines.next().await? {
        match check.verdict {
            Verdict::Pass => count.passed += 1,
            Verdict::Warning | Verdict::Unknown => count.warnings += 1,
            Verdict::Fail => count.failed += 1,
        }
        if context.json {
            output::json(&Line { proxy: &site.name, check: &check })?;
        } else {
            output::line(&words(several.then_some(site.name.as_str()), &check))?;
        }
    }
    Ok(count)
}

/// Symbol and word: told apart without colour, and by who cannot see the symbol.
fn words(proxy: Option<&str>, check: &DoctorCheck) -> String {
    let (symbol, verdict) = match check.verdict {
        Verdict::Pass => ("✓", "pass"),
        Verdict::Warning => ("!", "warning"),
        Verdict::Fail => ("✗", "fail"),
        Verdict::Unknown => ("!", "unknown"),
    };
    let proxy = proxy.map(|proxy| format!("{proxy}  ")).unwrap_or_default();
    let text = format!("{symbol} {verdict:<7}  {proxy}{:<11}  {}: {}", check.check, check.object, check.measured);
    let mut out = output::printable(&text);
    if let Some(fix) = &check.fix {
        out.push_str("\n             do: ");
        out.push_str(&output::printable(fix));
    }
    out
}

/// Fetches the bundle and keeps it where only its owner can read it.
///
/// # Errors
/// [`Failure`]; a file that exists is left alone.
pub async fn support(common: &Common, arguments: SupportArgs) -> Result<(), Failure> {
    let context = Context::new(&narrowed(common, arguments.name)?)?;
    let site = context.only_site()?;
    let bundle = site.call::<SupportBundleGet>(&NoParams {}).await?;
    if arguments.output.as_deref() == Some(Path::new("-")) {
        if context.json {
            return Ok(output::json(&json!({ "proxy": site.name, "text": bundle.text }))?);
        }
        let mut out = std::io::stdout().lock();
        return Ok(out.write_all(bundle.text.as_bytes()).and_then(|()| out.flush())?);
    }
    let file = arguments.output.unwrap_or_else(|| PathBuf::from(files::file_name(&bundle.file_name)));
    files::write_new(&file, &bundle.text).map_err(|error| Failure::file("write", &file, &error))?;
    if context.json {
        let file = file.display().to_string();
        return Ok(output::json(&json!({ "proxy": site.name, "file": file, "bytes": bundle.text.len() }))?);
    }
    output::line(&format!("{} ({})", file.display(), api::format_bytes(bundle.text.len() as u64)))?;
    output::aside("secrets are taken out; names of VMs, hosts and folders are not: read it before you give it away");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_it_with_a_word_and_moves_no_cursor() {
        let check = DoctorCheck {
            check: "nbd".into(),
            object: "pool \u{1b}[2Jx".into(),
            verdict: Verdict::Warning,
            measured: "no network".into(),
            fix: Some("xe".into()),
            took: 3,
        };
        let said = words(Some("p1"), &check);
        assert_eq!(said, "! warning  p1  nbd          pool \u{FFFD}[2Jx: no network\n             do: xe");
    }
}
