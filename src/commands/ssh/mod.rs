//! `backhaul proxy deploy --ssh` and `undeploy`: a proxy on any Linux with systemd, without a hypervisor.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`interrupt`] | ctrl-C |
//! | [`session`] | one connection of the administrator's own `ssh`; scripts over it, a tunnel through it |
//! | [`probe`] | what the host is and has |
//! | [`answer`] | how the proxy there answers, over SSH and HTTPS |
//! | [`plan`] | the difference to what is wanted; touches nothing |
//! | [`apply`] | does it step by step, undoes it when a step fails |
//! | [`undeploy`] | takes all of it away again |
//!
//! The certificate is pinned from what the program on the host says of it over the SSH connection, so nobody has to compare
//! fingerprints: who trusts the host's SSH key trusts this.

mod answer;
mod apply;
mod interrupt;
mod plan;
mod probe;
mod session;
mod undeploy;

use std::path::{Path, PathBuf};

use clap::Args;
use tls::Fingerprint;
use url::Url;

use self::answer::{Reach, Standing, fingerprint, reach, standing};
use self::apply::Work;
use self::interrupt::Interrupt;
use self::plan::{Plan, Source, Wishes};
use self::probe::Found;
use self::session::{Destination, Session};
pub use self::undeploy::{UndeployArgs, undeploy};
use super::cli::Common;
use super::context::config_dir;
use super::deploy::agreed;
use super::failure::{Exit, Failure};
use super::output;
use crate::config::{Config, Proxy, check_name, check_url};

/// The part of `proxy deploy` that is about hosts without a hypervisor.
#[derive(Debug, Args)]
pub struct SshArgs {
    /// Not into a pool, but onto this Linux with systemd, by way of the program ssh: takes --name, --site, --port and
    /// --http-proxy-file; what is not given stays as it is there
    #[arg(long, value_name = "[USER@]HOST[:PORT]")]
    pub ssh: Option<String>,
    /// With --ssh: a .deb, .rpm, .tar.gz or program to install [default: the backhauld beside this program]
    #[arg(long, value_name = "FILE", requires = "ssh")]
    pub package: Option<PathBuf>,
    /// With --ssh: name or address under which consoles reach it [default: the one that ssh connects to]
    #[arg(long, value_name = "HOST", requires = "ssh")]
    pub host: Option<String>,
    /// With --ssh: where a proxy is whose token this console does not know, give it a new one; all who knew it lose their access
    #[arg(long, requires = "ssh")]
    pub new_token: bool,
}

/// What was answered to a parameter of the deployment, by the parameter's id.
pub type Answers = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// What was given for `proxy deploy --ssh`.
pub struct Request {
    /// Where.
    pub destination: String,
    /// How.
    pub ssh: SshArgs,
    /// Name, site, port, HTTP proxy.
    pub answer: Answers,
    /// Show only.
    pub plan: bool,
    /// Do not ask.
    pub yes: bool,
}

/// `proxy deploy --ssh`.
///
/// # Errors
/// [`Failure`].
pub async fn deploy(common: &Common, request: Request) -> Result<(), Failure> {
    let destination: Destination = request.destination.parse().map_err(Failure::usage)?;
    let wishes = wishes(&request)?;
    if common.json && !request.yes && !request.plan {
        // Answers for programs hold no question, and nobody agrees to a plan that was not shown.
        return Err(Failure::usage("with --json say --yes, or --plan to see what would be done"));
    }
    let source = match &request.ssh.package {
        Some(path) => Source::open(path, true)?,
        None => Source::open(&beside()?, false)?,
    };
    let dir = config_dir(common)?;
    let config = Config::load(&dir);
    let read_only = common.read_only || config.console.read_only;
    let known = config.proxies?;

    let interrupt = Interrupt::listen()?;
    let mut session = Session::open(&destination, &interrupt).await?;
    let (found, standing) = interrupt.ends(look(&mut session, &known, request.plan)).await??;
    let host = destination.to_string();
    let plan = plan::plan(&host, &found, &standing, &wishes, &source)?;
    // The console may call it otherwise. One that only has its name may be another proxy: it says nothing about this one.
    let same = known.iter().find(|proxy| Some(proxy.fingerprint) == standing.fingerprint);
    let url = address(request.ssh.host.as_deref(), same, &session, &plan)?;
    let entry = same.or_else(|| known.iter().find(|proxy| proxy.name == plan.name));
    check_name(&plan.name).map_err(|why| Failure::usage(format!("proxy name {:?}: {why}", plan.name)))?;
    if let Some(entry) = entry.filter(|entry| same.is_none() && entry.url != url && entry.token != plan.token) {
        return Err(Failure::refused(
            "NAME_TAKEN",
            format!("the console knows another proxy {:?} already, at {}", entry.name, shown(&entry.url)),
        )
        .next("choose another name with --name, or `backhaul proxy remove` it"));
    }
    present(common, &request, &plan, &found, &url, interrupted(&found, &standing, &plan))?;
    if request.plan {
        return Ok(());
    }
    if !plan.steps.is_empty() {
        if read_only {
            return Err(Failure::refused("READ_ONLY", "this deploys something, and this console is read-only"));
        }
        if !request.yes && !interrupt.ends(off_thread(|| agreed("Deploy it?"))).await?? {
            return Err(Failure::refused("NOT_AGREED", "nothing was touched").next("--yes does it without asking"));
        }
    }
    let mut work = Work::new(&session, &interrupt, &plan, plan::former_port(&found), common.json);
    work.perform().await?;
    let finished = interrupt.ends(finish(&session, &plan, &url, &dir, entry)).await;
    let finished = finished.unwrap_or_else(|interrupted| Err(("see the proxy answer", interrupted.into())));
    let (reach, fingerprint, new_entry) = match finished {
        Ok(finished) => finished,
        Err((step, failure)) if plan.steps.is_empty() => return Err(named(step, failure)),
        Err((step, failure)) => {
            return Err(work.give_up(step, failure).await);
        }
    };
    work.keep().await;
    let changed = !plan.steps.is_empty() || new_entry;
    report(common, &plan, &found, &url, fingerprint, changed, &reach)
}

async fn look(session: &mut Session, known: &[Proxy], only: bool) -> Result<(Found, Standing), Failure> {
    probe::enter(session).await?;
    // From here on nobody else changes what the plan is made of.
    if !only {
        session.hold().await?;
    }
    let found = probe::probe(session).await?;
    let standing = standing(session, &found, known).await?;
    Ok((found, standing))
}

/// Waits for a person without holding up the rest.
async fn off_thread<T: Send + 'static>(ask: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    let asked = tokio::task::spawn_blocking(ask).await;
    asked.unwrap_or_else(|_| Err(Failure::failed("TERMINAL", "the question could not be asked")))
}

fn named(step: &str, mut failure: Failure) -> Failure {
    if let Some(report) = &mut failure.report {
        report.message = format!("cannot {step}: {}", report.message);
    }
    failure
}

/// What follows the steps on the host: certificate, answer, the console's entry. The error names the step.
async fn finish(
    session: &Session,
    plan: &Plan,
    url: &Url,
    dir: &Path,
    entry: Option<&Proxy>,
) -> Result<(Reach, Fingerprint, bool), (&'static str, Failure)> {
    const READ: &str = "read the certificate's fingerprint over SSH";
    const COMPARE: &str = "see the proxy answer";
    const KEEP: &str = "write it into the console's configuration";
    let fingerprint = fingerprint(session, plan.program).await.map_err(|failure| (READ, failure))?;
    let reach = reach(session, plan, url, fingerprint).await.map_err(|failure| (COMPARE, failure))?;
    let name = entry.map_or(&plan.name, |entry| &entry.name).clone();
    let proxy = Proxy { name, url: url.clone(), token: plan.token.clone(), fingerprint };
    let new_entry = entry != Some(&proxy);
    if new_entry {
        // As the file is now: others may have changed it while the steps were done.
        Config::adopt(dir, proxy, entry).map_err(|error| (KEEP, error.into()))?;
    }
    Ok((reach, fingerprint, new_entry))
}

/// How many runs the restart interrupts; none: nobody could be asked.
fn interrupted(found: &Found, standing: &Standing, plan: &Plan) -> Option<usize> {
    let restarts = plan.steps.iter().any(|step| matches!(step, plan::Step::Start { active: true, .. }));
    match &standing.status {
        Some(status) if restarts => Some(status.running.len()),
        None if restarts && found.mark.is_some() => None,
        _ => Some(0),
    }
}

fn wishes(request: &Request) -> Result<Wishes, Failure> {
    let plain = |what: &str, text: Option<String>| match text {
        Some(text) if text.chars().count() > 200 || text.chars().any(char::is_control) => {
            Err(Failure::usage(format!("--{what}: at most 200 characters, no control characters")))
        }
        text => Ok(text),
    };
    let name = plain("name", (request.answer)("name"))?;
    if let Some(name) = &name {
        check_name(name).map_err(|why| Failure::usage(format!("--name {name:?}: {why}")))?;
    }
    let port = match (request.answer)("port") {
        Some(text) => match text.parse::<u16>() {
            Ok(port) if port > 0 => Some(port),
            _ => return Err(Failure::usage(format!("--port {text:?}: expected 1 to 65535"))),
        },
        None => None,
    };
    let http_proxy = (request.answer)("http-proxy");
    if let Some(url) = http_proxy.as_deref().filter(|url| !url.is_empty()) {
        let fits = Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        if !fits {
            return Err(Failure::usage("the HTTP proxy is no URL like http://[user:password@]proxy.example:3128"));
        }
    }
    let site = plain("site", (request.answer)("site"))?;
    Ok(Wishes { name, site, port, http_proxy, new_token: request.ssh.new_token })
}

/// The daemon beside this program.
fn beside() -> Result<PathBuf, Failure> {
    let here = std::env::current_exe()
        .map_err(|error| Failure::failed("FILE", format!("cannot tell where this program is: {error}")))?;
    let path = here.with_file_name("backhauld");
    if path.is_file() {
        return Ok(path);
    }
    Err(Failure::usage(format!("there is no backhauld beside {}", here.display()))
        .next("name what to install with --package FILE"))
}

/// Where consoles will look for it: what was said, else what this console knows of the very same, else where ssh goes. A port
/// that something forwards to it is kept while it does not move itself.
fn address(said: Option<&str>, same: Option<&Proxy>, session: &Session, plan: &Plan) -> Result<Url, Failure> {
    if let Some(entry) = same.filter(|_| said.is_none() && !plan.moves) {
        return Ok(entry.url.clone());
    }
    let known = same.map(|entry| entry.url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned());
    let host = said.map(|host| host.trim_matches(['[', ']']).to_owned()).or(known).unwrap_or_else(|| session.host().to_owned());
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let text = format!("https://{host}:{}", plan.port);
    check_url(&text).map_err(|why| Failure::usage(format!("{text}: {why}")).next("name its address with --host"))
}

fn shown(url: &Url) -> &str {
    url.as_str().trim_end_matches('/')
}

fn present(
    common: &Common,
    request: &Request,
    plan: &Plan,
    found: &Found,
    url: &Url,
    running: Option<usize>,
) -> Result<(), Failure> {
    let steps: Vec<String> = plan.steps.iter().map(plan::Step::words).collect();
    if common.json {
        return Ok(output::json(&serde_json::json!({
            "name": plan.name, "site": plan.site, "url": shown(url), "steps": steps, "interruptedRuns": running,
            "notes": plan.notes,
        }))?);
    }
    let fact = |key: &str| found.facts.get(key).unwrap_or("?").to_owned();
    let library = found.facts.get("glibc").map(|version| format!(", glibc {version}")).unwrap_or_default();
    let version = found.facts.get(&format!("version:{}", plan.program));
    let mut lines = vec![
        ("Host", format!("{}: {}, systemd {}{library}", request.destination, fact("arch"), fact("systemd"))),
        ("Name", plan.name.clone()),
        ("Site", plan.site.clone().unwrap_or_else(|| "none".into())),
        ("Address", shown(url).to_owned()),
    ];
    if let Some(version) = version {
        lines.push(("There now", format!("backhauld {version}")));
    }
    for (label, value) in lines {
        output::line(&output::printable(&format!("{label:<10} {value}")))?;
    }
    if steps.is_empty() {
        output::line("nothing to do on the host: all is as wanted")?;
    } else {
        output::line("will be done there:")?;
        for step in steps {
            output::line(&output::printable(&format!("  {step}")))?;
        }
    }
    match running {
        Some(0) => {}
        Some(running) => output::line(&format!("note: {running} running runs will be interrupted"))?,
        None => output::line("note: the proxy there could not be asked for its runs; those that run will be interrupted")?,
    }
    for note in &plan.notes {
        output::line(&output::printable(&format!("note: {note}")))?;
    }
    Ok(())
}

fn report(
    common: &Common,
    plan: &Plan,
    found: &Found,
    url: &Url,
    fingerprint: Fingerprint,
    changed: bool,
    reach: &Reach,
) -> Result<(), Failure> {
    let reachable = matches!(reach, Reach::Direct);
    if common.json {
        output::json(&serde_json::json!({
            "name": plan.name, "url": shown(url), "fingerprint": fingerprint.to_string(), "changed": changed,
            "steps": plan.steps.iter().map(plan::Step::words).collect::<Vec<_>>(), "reachable": reachable,
        }))?;
    } else if reachable {
        let what = if changed { "answers" } else { "is unchanged and answers" };
        let text = format!("proxy {} {what} at {}, certificate {fingerprint}", plan.name, shown(url));
        output::line(&output::printable(&text))?;
    }
    let (why, proven) = match reach {
        Reach::Direct => return Ok(()),
        Reach::OnlyThere(why) => (why, "it answers on its host, but not from here"),
        Reach::Unknown(why) => (why, "it does not answer from here, and the host forbids to look through SSH"),
    };
    let text = format!("proxy {} is deployed, but {proven}: {why}", plan.name);
    let failure = Failure { exit: Exit::Unreachable, report: Some(api::ErrorReport::new("NOT_REACHABLE", text)) };
    Err(failure.next(hint(found.facts.get("firewall"), plan.port)))
}

/// What lets the port through, in the words of the firewall that is there.
fn hint(firewall: Option<&str>, port: u16) -> String {
    let then = "then `backhaul proxy list`";
    match firewall {
        Some("firewalld") => {
            format!("there: firewall-cmd --permanent --add-port={port}/tcp && firewall-cmd --reload; {then}")
        }
        Some("ufw") => format!("there: ufw allow {port}/tcp; {then}"),
        Some("nft") => format!(
            "let TCP port {port} through in the nftables rules there (`nft list ruleset`, usually /etc/nftables.conf): tcp dport \
             {port} accept; {then}"
        ),
        Some("iptables") => format!("there: iptables -I INPUT -p tcp --dport {port} -j ACCEPT, and keep that rule; {then}"),
        _ => format!(
            "no firewall was found on the host; look between here and there at TCP port {port}, or name another address with --host"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_speaks_of_the_firewall_that_is_there() {
        assert!(hint(Some("firewalld"), 8443).contains("firewall-cmd --permanent --add-port=8443/tcp"));
        assert!(hint(Some("ufw"), 8443).contains("ufw allow 8443/tcp"));
        assert!(hint(Some("nft"), 8443).contains("tcp dport 8443 accept"));
        assert!(hint(None, 8443).contains("no firewall"));
    }
}
