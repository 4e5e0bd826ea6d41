//! The support bundle: one text about the whole proxy that can be given to strangers.
//!
//! Every section is made by itself, and one that cannot be made says why. All of it goes through [`crate::redact`] at the end,
//! whatever each section has taken care of already.

mod ring;
mod system;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use api::{DoctorCheck, DoctorParams, ErrorReport, Outcome, Run, SupportBundle};
use engine::plan::LoginPlan;
use futures::StreamExt;
use jiff::Timestamp;
use serde::Serialize;
use storage::{Location, RemoteUrl};

use crate::config::Config;
use crate::daemon::Daemon;
use crate::doctor;
use crate::fault::Fault;
use crate::maintenance::Values;
use crate::redact::Redactor;

pub(crate) use ring::ring;

/// Runs listed.
const RUNS: u32 = 50;
/// Runs that did not succeed told with their log.
const FAILURES: usize = 10;
/// Lines of the log of each.
const LOG_LINES: usize = 40;

/// For a section, or for what is secret. The doctor's takes up to 15 s.
const LIMIT: Duration = Duration::from_secs(20);

/// Makes the bundle; takes as long as the doctor does.
///
/// # Errors
/// What is secret cannot be read: without knowing it, nothing is given away.
pub async fn bundle(daemon: Arc<Daemon>) -> Result<SupportBundle, Fault> {
    let now = daemon.clock.now();
    let failed = |why: String| {
        let message = format!("no support bundle can be made: what is secret on this proxy cannot be read: {why}");
        Fault::Failed(
            ErrorReport::new("SUPPORT", message).with_next("look into the log of backhauld and at the disk of its state"),
        )
    };
    let redactor = match tokio::time::timeout(LIMIT, secrets(&daemon)).await {
        Ok(Ok(redactor)) => redactor,
        Ok(Err(fault)) => return Err(failed(fault.report().to_string())),
        Err(_) => return Err(failed(format!("no answer within {LIMIT:?}"))),
    };
    let checks = examined(&daemon);
    let sections = async {
        tokio::join!(
            section(async { daemon.status().await.map(|status| json(&status)) }),
            section(objects(&daemon)),
            section(async { Ok(checks.await.iter().map(line).collect::<String>()) }),
            section(runs(&daemon)),
        )
    };
    let folder = daemon.config.state_dir.clone();
    let figures = tokio::task::spawn_blocking(move || system::figures(&folder));
    let ((status, objects, checks, runs), figures) = tokio::join!(sections, figures);
    let figures = figures.unwrap_or_else(|error| format!("not to be had: {error}\n"));
    let settings = daemon.settings.get();
    let config = configuration(&daemon.config, &settings);
    let mut text = format!(
        "Backhaul support bundle\nproxy {} ({}), made {now} by backhauld {}, {} {}\n\
         Secrets are taken out; read it before you give it away all the same: names of VMs, hosts and folders are in it.\n",
        settings.name,
        settings.id,
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH,
    );
    let parts = [
        ("status", status),
        ("configuration", config),
        ("pools, remotes, jobs, licences, deployed proxies", objects),
        ("doctor", checks),
        ("runs", runs),
        ("system", figures),
        ("log", ring().text()),
    ];
    for (title, content) in parts {
        let _ = write!(text, "\n== {title} ==\n{content}");
    }
    // Half a megabyte of log against every secret: not between two calls of others.
    let redacting = tokio::task::spawn_blocking(move || redactor.redact(&text));
    let text = redacting.await.map_err(|error| failed(error.to_string()))?;
    Ok(SupportBundle { file_name: file_name(&settings.name, now), text })
}

async fn section(made: impl Future<Output = Result<String, Fault>>) -> String {
    match tokio::time::timeout(LIMIT, made).await {
        Ok(Ok(made)) => made,
        Ok(Err(fault)) => format!("not to be had: {}\n", fault.report()),
        Err(_) => format!("not to be had: no answer within {LIMIT:?}\n"),
    }
}

fn json(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_else(|error| format!("not to be written: {error}"));
    text.push('\n');
    text
}

/// A file name out of letters, digits, dots and dashes, whatever the proxy is called.
fn file_name(name: &str, now: Timestamp) -> String {
    let plain: String = name.chars().take(60).map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    format!("backhaul-support-{}-{}.txt", plain.trim_matches('-'), now.strftime("%Y%m%dT%H%M%SZ"))
}

/// The settings, each of those that can be a secret only as whether it is there.
fn configuration(config: &Config, settings: &Values) -> String {
    let mut out = String::new();
    let mut tell = |key: &str, value: String| {
        let _ = writeln!(out, "{key:<22} {value}");
    };
    tell("name", settings.name.clone());
    tell("site", settings.site.clone().unwrap_or_else(|| "none".into()));
    tell("id", settings.id.clone());
    tell("listen", config.listen.to_string());
    tell("state_dir", config.state_dir.display().to_string());
    tell("token of clients", if config.token.is_some() { "configured" } else { "made in the state folder" }.into());
    tell("tls.certificate", config.tls.as_ref().map_or_else(|| "none".into(), |files| files.certificate.display().to_string()));
    tell("http_proxy", if settings.http_proxy.is_some() { "configured" } else { "none" }.into());
    tell("metrics ask for token", config.metrics_token.to_string());
    let keys = |keys: &[signed::PublicKey]| keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    tell("license.issuer_keys", keys(&config.issuer_keys));
    tell("upgrade.keys", keys(&config.upgrade_keys));
    tell("deploy.image", config.image.as_ref().map_or_else(|| "none".into(), |image| image.display().to_string()));
    tell("limits.connections", config.limits.connections.to_string());
    tell("limits.runs", config.limits.runs.to_string());
    tell("limits.block_memory", api::format_bytes(config.limits.block_memory));
    out
}

async fn objects(daemon: &Daemon) -> Result<String, Fault> {
    let mut out = json(&daemon.pools.known());
    let remotes = daemon.store.remotes().await?;
    for remote in remotes {
        let url = RemoteUrl::parse(&remote.url).map_or_else(|error| error.to_string(), |url| url.redacted());
        let _ = writeln!(out, "remote {} ({}): {url}", remote.name, remote.id);
    }
    out.push_str(&json(&daemon.store.jobs().await?));
    out.push_str(&json(&daemon.licenses.list().await?));
    out.push_str(&json(&daemon.deployments.list().await?));
    Ok(out)
}

async fn examined(daemon: &Arc<Daemon>) -> Vec<DoctorCheck> {
    doctor::examine(Arc::clone(daemon), DoctorParams::default()).collect().await
}

fn line(check: &DoctorCheck) -> String {
    let verdict = crate::store::word(check.verdict);
    let mut text = format!("{verdict:<8} {:<12} {}: {} ({} ms)\n", check.check, check.object, check.measured, check.took);
    if let Some(fix) = &check.fix {
        let _ = writeln!(text, "         fix: {fix}");
    }
    text
}

async fn runs(daemon: &Daemon) -> Result<String, Fault> {
    let found = daemon.store.runs(None, None, RUNS).await?;
    let mut out = String::new();
    for run in &found {
        let _ = writeln!(out, "{}", summary(run));
    }
    let failed = found.iter().filter(|run| run.outcome.is_some_and(|outcome| outcome != Outcome::Success)).take(FAILURES);
    for run in failed {
        let _ = writeln!(out, "\n-- {} --", summary(run));
        if let Some(error) = &run.error {
            out.push_str(&json(error));
        }
        let detail = match daemon.journal.detail(&run.id).await {
            Ok(detail) => detail,
            Err(error) => {
                let _ = writeln!(out, "its journal cannot be read: {}", crate::fault::chain(&error));
                continue;
            }
        };
        for task in detail.tasks.iter().filter(|task| task.outcome.is_some_and(|outcome| outcome != Outcome::Success)) {
            let kind = crate::store::word(task.kind);
            let error = task.error.as_ref().map(ToString::to_string).unwrap_or_default();
            let _ = writeln!(out, "task {} {kind} {}: {error}", task.id, task.label);
        }
        for line in detail.log.iter().skip(detail.log.len().saturating_sub(LOG_LINES)) {
            let _ = writeln!(out, "{} {} {}", time(line.at), crate::store::word(line.level), line.message);
        }
    }
    Ok(out)
}

fn time(milliseconds: i64) -> String {
    Timestamp::from_millisecond(milliseconds).map_or_else(|_| "?".to_owned(), |at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

fn summary(run: &Run) -> String {
    let kind = crate::store::word(run.kind);
    let outcome = run.outcome.map_or_else(|| "running".to_owned(), crate::store::word);
    let ended = run.ended_at.map_or_else(|| "-".to_owned(), time);
    format!("{} {kind} {:?} queued {} ended {ended}: {outcome}", run.id, run.label, time(run.queued_at))
}

/// All that this proxy knows to be secret.
async fn secrets(daemon: &Daemon) -> Result<Redactor, Fault> {
    let mut known = Redactor::default();
    // Of others than the configured one only hashes are known. They are 64 hexadecimal digits, which go by their looks.
    if let Some(token) = &daemon.config.token {
        known.know(token.secret(), "token");
    }
    for pool in daemon.store.pools().await? {
        known.know(&pool.password, "pool password");
    }
    for remote in daemon.store.remotes().await? {
        know_remote(&mut known, &remote.url);
    }
    for url in daemon.settings.get().http_proxy.iter().chain(&daemon.config.http_proxy) {
        known.know_url(url.expose(), "HTTP proxy account");
    }
    for license in daemon.store.licenses().await? {
        let signature = license.text.lines().find_map(|line| line.strip_prefix("Signature:"));
        known.know(signature.unwrap_or_default().trim(), "licence signature");
    }
    for deployment in daemon.store.deployments().await? {
        known.know(deployment.secrets.token.expose(), "token");
        if let Some(url) = &deployment.secrets.http_proxy {
            known.know_url(url.expose(), "HTTP proxy account");
        }
        if let Some(LoginPlan::PasswordHash(hash)) = &deployment.secrets.login {
            known.know(hash.expose(), "password hash");
        }
        for url in std::iter::once(&deployment.secrets.image).chain(&deployment.secrets.wanted_image) {
            known.know_url(url.expose(), "image account");
            // Storage with an API signs addresses in their query.
            known.know_query(url.expose(), "image signature");
        }
    }
    known.know_keys(&daemon.certificates.pem());
    if let Some(files) = &daemon.config.tls {
        known.know_keys(&tokio::fs::read_to_string(&files.key).await.unwrap_or_default());
    }
    known.know(tokio::fs::read_to_string(daemon.config.token_path()).await.unwrap_or_default().trim(), "token");
    Ok(known)
}

fn know_remote(known: &mut Redactor, url: &str) {
    const WHAT: &str = "remote's account";
    known.know_url(url, WHAT);
    let Ok(parsed) = RemoteUrl::parse(url) else { return };
    match parsed.location() {
        Location::Smb { password, .. } => known.know(password, WHAT),
        Location::S3 { secret, .. } => known.know(secret, WHAT),
        Location::Azure { key, .. } => known.know(key, WHAT),
        Location::Local { .. } | Location::Nfs { .. } => {}
    }
    known.know(parsed.encryption_key().unwrap_or_default(), "remote's key");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_is_one_whatever_the_proxy_is_called() {
        let at = Timestamp::from_second(1_800_000_000).unwrap();
        assert_eq!(file_name("p1", at), "backhaul-support-p1-20270115T080000Z.txt");
        let odd = file_name("../../etc/\"x\" 🦀\n", at);
        assert!(odd.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.'), "{odd}");
        assert!(!odd.contains("..") && odd.len() < 120, "{odd}");
    }

    #[test]
    fn the_secrets_of_every_kind_of_remote_are_known() {
        for url in [
            "smb://user:hunter2x@DOM\\\\srv\0x",
            "s3://AKIA:hunter2x@host/bucket?encryptionKey=%22another-one%22",
            "azure://acc:hunter2x@host/c",
            "file:///x?encryptionKey=%22another-one%22",
        ] {
            let mut known = Redactor::default();
            know_remote(&mut known, url);
            let clean = known.redact(&format!("{url} hunter2x another-one"));
            assert!(!clean.contains("hunter2x") || !url.contains("hunter2x"), "{clean}");
            assert!(!clean.contains("another-one") || !url.contains("another-one"), "{clean}");
        }
    }
}
