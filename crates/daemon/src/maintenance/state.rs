//! A proxy's state as a whole: taken from one proxy, and given to the next, which becomes that proxy. Opaque to whoever
//! carries it, full of secrets, never logged.

use std::collections::BTreeMap;

use api::{ErrorReport, Imported, ProxyState, Topic};
use engine::plan::Secret;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::certificate::{INSTEAD_OF, PENDING, Taken};
use super::settings::{HTTP_PROXY, NAME, SITE};
use super::tokens::{self, Kept};
use crate::config::{check_http_proxy, check_plain};
use crate::daemon::Daemon;
use crate::fault::Fault;
use crate::licensing::HIGH_WATER;
use crate::store::{Fact, Records};

/// The form that is written and understood.
const FORM: u32 = 1;
/// SHA-256 of the state that was taken over, so that the same one again does no harm.
const IMPORTED: &str = "state_imported";

/// What a state of form 1 holds.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Content {
    name: String,
    #[serde(default)]
    site: Option<String>,
    #[serde(default)]
    http_proxy: Option<Secret>,
    tokens: Kept,
    /// Certificate and key, PEM.
    certificate: Secret,
    /// The highest time that was ever seen, by which a clock that was set back is known.
    #[serde(default)]
    highest_time: Option<String>,
    /// Whether new runs were held back, as they are before a state is taken to be given to the next: so that its schedules
    /// begin when whoever gives it says so.
    #[serde(default)]
    draining: bool,
    records: Records,
    /// What a version after this one has put there.
    #[serde(flatten)]
    more: BTreeMap<String, Value>,
}

/// All that makes this proxy itself.
///
/// While new runs are held back it is taken to be given to the next, and then nothing may be left to clean up: the journals that
/// know of it do not go with the state.
///
/// # Errors
/// The state cannot be read; or runs have left something, and new ones are held back.
pub async fn export(daemon: &Daemon) -> Result<ProxyState, Fault> {
    let left = if daemon.runs.is_draining() { daemon.runs.leftovers().await? } else { Vec::new() };
    if !left.is_empty() {
        let message = format!("what is still to be cleaned up would be forgotten: {}", left.join("; "));
        let next = "let it be cleaned up, for which the pools and remotes named have to answer; or clean up by hand and switch this \
                    proxy off: then its state as last copied is taken";
        return Err(Fault::Failed(ErrorReport::new("PROXY_HAS_LEFTOVERS", message).with_next(next)));
    }
    let settings = daemon.settings.get();
    let content = Content {
        name: settings.name,
        site: settings.site,
        http_proxy: settings.http_proxy,
        tokens: daemon.tokens.get(),
        certificate: Secret::new(daemon.certificates.pem()),
        highest_time: daemon.store.fact(HIGH_WATER).await?,
        draining: daemon.runs.is_drained_by_hand(),
        records: daemon.store.records().await?,
        more: BTreeMap::new(),
    };
    let content = serde_json::to_value(content).map_err(|_| broken("the state cannot be written as JSON"))?;
    Ok(ProxyState { form: FORM, taken_at: daemon.now(), id: settings.id, content, own_disk: Vec::new() })
}

/// Becomes the proxy that a state was taken of.
///
/// # Errors
/// The state is of another form or damaged, this proxy has something of its own already, or it cannot be written; then
/// nothing is changed.
pub async fn import(daemon: &Daemon, state: ProxyState) -> Result<Imported, Fault> {
    if state.form != FORM {
        let message = format!("form: {} is not known here; this version takes over states of form {FORM}", state.form);
        return Err(Fault::invalid("form", message));
    }
    let (content, certificate) = read(&state)?;
    let digest = digest(&state)?;
    let _importing = daemon.importing.lock().await;
    if daemon.store.fact(IMPORTED).await?.as_ref() == Some(&digest) {
        return Ok(counted(&content.records, daemon.fingerprint().to_string()));
    }
    if let Some(open) = daemon.store.open_runs().await?.first() {
        return Err(Fault::forbidden("state.import", format!("run {} is at work on this proxy", open.run.id)));
    }
    for pool in daemon.pools.known() {
        daemon.runs.let_go_of_pool(&pool.id, &pool.name).await?;
    }
    let now = daemon.now();
    let mut facts = vec![
        Fact::open(NAME, content.name.as_str()),
        Fact::open(SITE, content.site.as_deref().unwrap_or_default()),
        Fact::sealed(HTTP_PROXY, content.http_proxy.as_ref().map(Secret::expose).unwrap_or_default()),
        tokens::fact(&daemon.tokens.get().taken_over(content.tokens.clone(), now)),
        Fact::sealed(PENDING, content.certificate.expose()),
        Fact::open(IMPORTED, digest),
    ];
    // The higher one stays: neither proxy may be told of an earlier time than it has seen.
    let milliseconds = |time: Option<String>| time.and_then(|time| time.parse::<i64>().ok());
    let highest = milliseconds(content.highest_time).max(milliseconds(daemon.store.fact(HIGH_WATER).await?));
    facts.extend(highest.map(|time| Fact::open(HIGH_WATER, time.to_string())));
    facts.extend(daemon.certificates.instead_of().map(|configured| Fact::open(INSTEAD_OF, configured)));
    let drained = daemon.runs.is_drained_by_hand();
    daemon.runs.drain(drained || content.draining);
    let become_other = daemon.store.become_other(&state.id, &content.records, &facts, now).await;
    if !matches!(become_other, Ok(true)) {
        daemon.runs.drain(drained);
    }
    if !become_other? {
        let reason = "this proxy has jobs, remotes or deployed proxies of its own; a state is taken over by a new one only";
        return Err(Fault::forbidden("state.import", reason));
    }
    daemon.settings.reload().await?;
    daemon.tokens.reload().await?;
    daemon.pools.reload().await?;
    let fingerprint = daemon.certificates.take_up(certificate).await;
    for topic in [Topic::Pools, Topic::Vms, Topic::Remotes, Topic::Jobs, Topic::RestorePoints, Topic::Deployed, Topic::Licenses] {
        daemon.news.changed(topic);
    }
    daemon.schedules_changed.notify_one();
    let imported = counted(&content.records, fingerprint.to_string());
    tracing::info!(id = state.id, pools = imported.pools, remotes = imported.remotes, jobs = imported.jobs, "took a state over");
    Ok(imported)
}

fn counted(records: &Records, fingerprint: String) -> Imported {
    let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    Imported {
        pools: count(records.pools.len()),
        remotes: count(records.remotes.len()),
        jobs: count(records.jobs.len()),
        fingerprint,
    }
}

/// The ids of the jobs in a state; none when it cannot be read.
pub(crate) fn jobs_in(state: &ProxyState) -> Vec<String> {
    let content = serde_json::from_value::<Content>(state.content.clone());
    content.map(|content| content.records.jobs.into_iter().map(|job| job.id).collect()).unwrap_or_default()
}

/// Reads and checks all of a state before anything is touched. What is wrong is not quoted: it is full of secrets.
fn read(state: &ProxyState) -> Result<(Content, Taken), Fault> {
    let damaged = |what: &str| Fault::invalid("content", format!("content: {what}; export the state anew"));
    let id = uuid::Uuid::parse_str(&state.id).map_err(|_| Fault::invalid("id", "id: expected a UUID"))?;
    if id.to_string() != state.id {
        return Err(Fault::invalid("id", "id: expected a UUID in lower case with hyphens"));
    }
    let content: Content = serde_json::from_value(state.content.clone())
        .map_err(|_| damaged("it is no state of a proxy, damaged, or of a newer version"))?;
    if let Some(unknown) = content.more.keys().next() {
        tracing::warn!(unknown, "a state of a newer version was not taken over");
        let message = "content: it is of a newer version, with parts that are not known here; upgrade this proxy first";
        return Err(Fault::invalid("content", message));
    }
    check_plain(&content.name).map_err(|_| damaged("its name is none"))?;
    content.site.as_deref().map_or(Ok(()), check_plain).map_err(|_| damaged("its site is none"))?;
    let http_proxy = content.http_proxy.as_ref().map_or(Ok(()), |url| check_http_proxy(url.expose()));
    http_proxy.map_err(|_| damaged("its HTTP proxy is none"))?;
    let certificate = Taken::read(content.certificate.expose()).map_err(|_| damaged("its certificate cannot be used"))?;
    Ok((content, certificate))
}

fn digest(state: &ProxyState) -> Result<String, Fault> {
    let bytes = serde_json::to_vec(state).map_err(|_| broken("the state cannot be read again"))?;
    Ok(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}

fn broken(what: &str) -> Fault {
    Fault::Failed(ErrorReport::new("INTERNAL", what))
}
