//! `backhaul proxy deploy` and what is done to deployed proxies later.
//!
//! The parameters are [`api::deploy::FIELDS`], the same table that makes the console's form: a field added there is an
//! option here. Secrets are read from files or standard input, never from the command line.

use std::collections::HashMap;
use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};

use api::deploy::{Answers, FIELDS, FieldInfo, FieldKind, redact_url};
use api::{
    AddressSpec, DeployClaim, DeployDestroy, DeployForget, DeployReconfigure, DeployReview, DeployReviewGet, DeploySpec,
    DeployStart, Deployed, DeployedList, DestroyParams, IdParams, NoParams, ReconfigureParams, Run,
};
use clap::{Arg, ArgMatches, Args, FromArgMatches};
use serde_json::json;

use super::cli::Common;
use super::context::{self, Context, Kind, Site, config_dir};
use super::failure::{Exit, Failure};
use super::objects::print_list;
use super::ssh::{self, SshArgs};
use super::{output, watch};
use crate::config::{Config, ConfigError};
use crate::fleet::{keep, licenses};

/// The answers on a command line.
#[derive(Clone, Default)]
pub struct DeployAnswers {
    given: Vec<(&'static str, Given)>,
}

#[derive(Clone)]
enum Given {
    Value(String),
    File(PathBuf),
}

impl Given {
    fn read(self) -> Result<String, Failure> {
        match self {
            Self::Value(value) => Ok(value),
            Self::File(path) => read_secret(&path),
        }
    }
}

impl std::fmt::Debug for DeployAnswers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.given.iter().map(|(id, _)| id)).finish()
    }
}

/// The option of a field: secrets come from a file.
fn option(field: &FieldInfo) -> String {
    if field.kind == FieldKind::Secret { format!("{}-file", field.id) } else { field.id.to_owned() }
}

impl Args for DeployAnswers {
    fn augment_args(command: clap::Command) -> clap::Command {
        FIELDS.iter().fold(command, |command, field| {
            let mut help = field.help.to_owned();
            if let FieldKind::OneOf(words) = field.kind {
                let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                help.push_str(&format!(": {}", words.join(", ")));
            }
            if !field.default.is_empty() {
                help.push_str(&format!(" [default: {}]", field.default));
            }
            let secret = field.kind == FieldKind::Secret;
            if secret {
                help.push_str("; read from this file, - for standard input");
            }
            let value_name = if secret { "FILE" } else { "VALUE" };
            command.arg(Arg::new(field.id).long(option(field)).value_name(value_name).help(help))
        })
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for DeployAnswers {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = FIELDS.iter().filter_map(|field| {
            let value = matches.get_one::<String>(field.id)?.clone();
            let secret = field.kind == FieldKind::Secret;
            Some((field.id, if secret { Given::File(value.into()) } else { Given::Value(value) }))
        });
        Ok(Self { given: given.collect() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl DeployAnswers {
    /// Standard input is read to its end once; a second reader would find nothing and take it for an answer.
    fn one_standard_input(&self) -> Result<(), Failure> {
        let from_there = |(_, given): &&(_, Given)| matches!(given, Given::File(path) if path == Path::new("-"));
        let mut ids = self.given.iter().filter(from_there).map(|(id, _)| *id);
        match (ids.next(), ids.next()) {
            (Some(first), Some(second)) => Err(Failure::usage(format!(
                "--{first}-file and --{second}-file are both -: standard input can be only one of them"
            ))),
            _ => Ok(()),
        }
    }

    /// What was given, when it is nothing but these; an empty answer is one.
    fn only(self, ids: &[&str]) -> Result<HashMap<&'static str, String>, Failure> {
        if let Some((id, _)) = self.given.iter().find(|(id, _)| !ids.contains(id)) {
            return Err(Failure::usage(format!("--{id} is about a VM in a pool; with --ssh there is none")));
        }
        self.one_standard_input()?;
        let read = self.given.into_iter().map(|(id, given)| Ok((id, given.read()?)));
        read.collect()
    }

    fn read(self) -> Result<Answers, Failure> {
        self.one_standard_input()?;
        let mut answers = Answers::default();
        for (id, given) in self.given {
            answers.set(id, given.read()?);
        }
        Ok(answers)
    }
}

pub(super) fn read_secret(path: &Path) -> Result<String, Failure> {
    if path == Path::new("-") {
        let mut text = String::new();
        let read = io::stdin().lock().take(64 << 10).read_to_string(&mut text);
        read.map_err(|error| Failure::failed("SECRET", format!("cannot read from standard input: {error}")))?;
        return Ok(text.trim_end_matches(['\r', '\n']).to_owned());
    }
    let text = std::fs::read_to_string(path).map_err(|error| Failure::file("read", path, &error))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// `proxy deploy`.
#[derive(Debug, Args)]
pub struct DeployArgs {
    #[command(flatten)]
    answers: DeployAnswers,
    #[command(flatten)]
    ssh: SshArgs,
    /// Only show what would be done; touches nothing
    #[arg(long)]
    plan: bool,
    /// Do what was shown without asking
    #[arg(long)]
    yes: bool,
    /// Return once the run has started, instead of following it to its end
    #[arg(long)]
    no_watch: bool,
}

/// `proxy reconfigure`.
#[derive(Debug, Args)]
pub struct ReconfigureArgs {
    /// Name or id of the deployed proxy
    name: String,
    /// Get the address from the network
    #[arg(long, conflicts_with = "ip")]
    dhcp: bool,
    /// Static address, with or without /prefix
    #[arg(long)]
    ip: Option<String>,
    /// Mask or prefix length, unless the address has it
    #[arg(long, default_value = "", requires = "ip", hide_default_value = true)]
    netmask: String,
    /// Router
    #[arg(long, default_value = "", requires = "ip", hide_default_value = true)]
    gateway: String,
    /// Addresses of name servers, separated by commas
    #[arg(long, default_value = "", requires = "ip", hide_default_value = true)]
    dns: String,
    /// Processors
    #[arg(long)]
    vcpus: Option<u32>,
    /// Memory, MiB
    #[arg(long, value_name = "MIB")]
    memory_mib: Option<u64>,
}

/// `proxy deploy`: shows the plan, asks, starts the run, follows it, and gets to know the new proxy.
///
/// # Errors
/// [`Failure`].
pub async fn deploy(common: &Common, arguments: DeployArgs) -> Result<(), Failure> {
    if let Some(destination) = arguments.ssh.ssh.clone() {
        let given = arguments.answers.only(&["name", "site", "port", "http-proxy"])?;
        let answer = Box::new(move |id: &str| given.get(id).cloned());
        let request = ssh::Request { destination, ssh: arguments.ssh, answer, plan: arguments.plan, yes: arguments.yes };
        return ssh::deploy(common, request).await;
    }
    let context = Context::new(common)?;
    if context.json && !arguments.yes && !arguments.plan {
        return Err(Failure::usage("with --json say --yes or --plan: a program cannot be asked whether it agrees"));
    }
    let answers = arguments.answers.read()?;
    let site = deployer(&context, answers.get("pool")).await?;
    let mut spec = spec(&site, answers).await?;
    spec.license = licenses::for_deployment(&context.fleet()?, &site.name, spec.license.as_deref()).await?;
    let review = site.call::<DeployReviewGet>(&spec).await?;
    if context.json {
        output::json(&review)?;
    } else {
        show(&site, &review)?;
    }
    if !review.faults.is_empty() {
        return Err(Failure { exit: Exit::Refused, report: Some(api::deploy::refusal(&review.faults)) });
    }
    // What the new proxy will be called here is another one's name: said before there is a new one.
    if context.configured()?.iter().any(|known| known.name == spec.name) {
        return Err(ConfigError::NameTaken { name: spec.name }.into());
    }
    if arguments.plan {
        return Ok(());
    }
    if !arguments.yes && !agreed("Deploy it?")? {
        return Err(Failure::refused("NOT_AGREED", "nothing was touched").next("--yes does it without asking"));
    }
    let run = site.call::<DeployStart>(&spec).await?;
    if arguments.no_watch {
        return watch::started(&context, &site, &run, false).await;
    }
    watch::follow(&context, &site, &run.id, 0).await?;
    adopt(common, &site, &spec.name).await
}

/// `proxy reconfigure`.
///
/// # Errors
/// [`Failure`].
pub async fn reconfigure(common: &Common, arguments: ReconfigureArgs) -> Result<(), Failure> {
    let context = Context::new(common)?;
    let address = match &arguments.ip {
        Some(ip) => Some(AddressSpec::parse(ip, &arguments.netmask, &arguments.gateway, &arguments.dns).map_err(|faults| {
            let words: Vec<String> = faults.iter().map(|fault| format!("{}: {fault}", fault.field)).collect();
            Failure::usage(words.join("; "))
        })?),
        None => arguments.dhcp.then_some(AddressSpec::Dhcp),
    };
    let memory = arguments.memory_mib.map(|mib| mib.saturating_mul(1 << 20));
    if address.is_none() && arguments.vcpus.is_none() && memory.is_none() {
        return Err(Failure::usage("say what to change: --dhcp, --ip, --vcpus, --memory-mib"));
    }
    let (site, deployed) = find(&context, &arguments.name).await?;
    let params = ReconfigureParams { id: deployed.id, address, vcpus: arguments.vcpus, memory };
    let run = site.call::<DeployReconfigure>(&params).await?;
    follow_and_adopt(common, &context, &site, &run, &params.id).await
}

/// `proxy redeploy`.
#[derive(Debug, Args)]
pub struct RedeployArgs {
    /// Name or id of the deployed proxy
    name: String,
    /// Another appliance: a file on the machine of the proxy that deploys, or a URL [default: that of before]
    #[arg(long, value_name = "VALUE")]
    image: Option<String>,
    /// SHA-256 the image must have
    #[arg(long, value_name = "HEX", requires = "image")]
    image_sha256: Option<String>,
    /// Another storage repository, by name or UUID [default: that of before]
    #[arg(long, value_name = "NAME|UUID")]
    sr: Option<String>,
    /// Let the backups go that lie on the proxy's own disk
    #[arg(long)]
    discard_local_backups: bool,
    /// Do it without asking
    #[arg(long)]
    yes: bool,
    /// Return once the run has started, instead of following it to its end
    #[arg(long)]
    no_watch: bool,
}

/// `proxy redeploy`: a new VM takes the place of the present one, which goes once the new one is proven.
///
/// # Errors
/// [`Failure`].
pub async fn redeploy(common: &Common, arguments: RedeployArgs) -> Result<(), Failure> {
    let context = Context::new(common)?;
    if context.json && !arguments.yes {
        return Err(Failure::usage("with --json say --yes: a program cannot be asked whether it agrees"));
    }
    let (site, deployed) = find(&context, &arguments.name).await?;
    let image = arguments.image.map(|url| api::ImageSource { url, sha256: arguments.image_sha256 });
    if !arguments.yes {
        let url = redact_url(image.as_ref().map_or(&deployed.spec.image.url, |image| &image.url));
        let question =
            format!("Make the proxy {} anew from {}? Its present VM goes once the new one is proven.", deployed.name, url);
        if !agreed(&output::printable(&question))? {
            return Err(Failure::refused("NOT_AGREED", "nothing was touched").next("--yes does it without asking"));
        }
    }
    let discard_local = arguments.discard_local_backups;
    let params = api::RedeployParams { id: deployed.id.clone(), image, sr: arguments.sr, discard_local };
    let run = site.call::<api::Redeploy>(&params).await?;
    if arguments.no_watch {
        return watch::started(&context, &site, &run, false).await;
    }
    // By its id: while it was made anew, somebody may have called it otherwise.
    follow_and_adopt(common, &context, &site, &run, &deployed.id).await
}

/// `proxy destroy`.
///
/// # Errors
/// [`Failure`].
pub async fn destroy(common: &Common, name: &str, confirm: Option<String>, discard_local: bool) -> Result<(), Failure> {
    let context = Context::new(common)?;
    let (site, deployed) = find(&context, name).await?;
    let typed = match confirm {
        Some(typed) => typed,
        None => ask(&format!(
            "This destroys the VM of the proxy {} with its disk. Type its name to go on: ",
            output::printable(&deployed.name)
        ))?,
    };
    if typed != deployed.name {
        let message = format!("nothing was touched: the proxy is called {:?}, not {typed:?}", deployed.name);
        return Err(Failure::refused("NOT_CONFIRMED", message));
    }
    let run = site.call::<DeployDestroy>(&DestroyParams { id: deployed.id.clone(), name: typed, discard_local }).await?;
    watch::follow(&context, &site, &run.id, 0).await?;
    drop_entry(common, &deployed)
}

/// `proxy forget`.
///
/// # Errors
/// [`Failure`].
pub async fn forget(common: &Common, name: &str) -> Result<(), Failure> {
    let context = Context::new(common)?;
    let (site, deployed) = find(&context, name).await?;
    site.call::<DeployForget>(&IdParams { id: deployed.id.clone() }).await?;
    drop_entry(common, &deployed)?;
    if context.json {
        return Ok(output::json(&json!({ "forgotten": deployed.name, "vm": deployed.vm }))?);
    }
    let vm = deployed.vm.as_deref().unwrap_or("none");
    Ok(output::line(&output::printable(&format!("{} is forgotten; its VM {vm} stays", deployed.name)))?)
}

/// `proxy deployed`.
///
/// # Errors
/// [`Failure`].
pub async fn list(common: &Common) -> Result<(), Failure> {
    let context = Context::new(common)?;
    let found = context.gather::<DeployedList>(&NoParams {}).await?;
    let headings = ["NAME", "BY", "STATE", "POOL", "ADDRESS", "RUN", "VM", "ID"];
    print_list(&context, found, &headings, |proxy, deployed: Deployed| {
        let state = output::word(&deployed.state);
        let (url, vm) = (deployed.url.unwrap_or_default(), deployed.vm.unwrap_or_default());
        vec![deployed.name, proxy.to_owned(), state, deployed.pool_name, url, deployed.run, vm, deployed.id]
    })
}

/// `proxy claim`: gets to know a proxy that somebody else had deployed.
///
/// # Errors
/// [`Failure`].
pub async fn claim(common: &Common, name: &str) -> Result<(), Failure> {
    let context = Context::new(common)?;
    let (site, deployed) = find(&context, name).await?;
    adopt(common, &site, &deployed.id).await
}

async fn follow_and_adopt(common: &Common, context: &Context, site: &Site, run: &Run, id: &str) -> Result<(), Failure> {
    watch::follow(context, site, &run.id, 0).await?;
    adopt(common, site, id).await
}

/// The proxy that has the pool and so deploys into it.
async fn deployer(context: &Context, pool: &str) -> Result<Site, Failure> {
    if pool.is_empty() {
        return Err(Failure::usage("say into which pool with --pool").next("backhaul pool list"));
    }
    let names = |pool: &api::Pool| [pool.id.clone(), pool.name.clone()];
    Ok(context::find::<api::PoolList, _>(context.sites()?, Kind::POOL, pool, &NoParams {}, names).await?.0)
}

/// Completes the answers with what the deployer has at hand, and checks them.
async fn spec(site: &Site, mut answers: Answers) -> Result<DeploySpec, Failure> {
    if answers.get("image").is_empty() {
        let options = site.call::<api::DeployOptionsGet>(&NoParams {}).await?;
        if let Some(image) = options.image {
            answers.set("image", image);
        }
    }
    DeploySpec::from_answers(&answers).map_err(|faults| {
        let report = api::deploy::refusal(&faults);
        Failure { exit: Exit::Refused, report: Some(report) }
    })
}

async fn find(context: &Context, name: &str) -> Result<(Site, Deployed), Failure> {
    let names = |deployed: &Deployed| [deployed.id.clone(), deployed.name.clone()];
    context::find::<DeployedList, _>(context.others(name)?, Kind::DEPLOYED, name, &NoParams {}, names).await
}

fn show(site: &Site, review: &DeployReview) -> io::Result<()> {
    output::line(&output::printable(&format!("deployed by {}:", site.name)))?;
    for (label, value) in &review.lines {
        output::line(&output::printable(&format!("  {label:<12} {value}")))?;
    }
    let steps: Vec<&str> = review.steps.iter().map(|step| step.name.as_str()).collect();
    output::line(&format!("  {:<12} {}", "Steps", steps.join(", ")))?;
    for warning in &review.warnings {
        output::line(&output::printable(&format!("  note: {}: {}", warning.field, warning.message)))?;
    }
    Ok(())
}

pub(super) fn ask(question: &str) -> Result<String, Failure> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::refused("NOT_CONFIRMED", "there is nobody to ask").next("see --help for the option that confirms"));
    }
    let _ = write!(io::stderr().lock(), "{question}");
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.map_err(|error| Failure::failed("TERMINAL", format!("cannot read the answer: {error}")))?;
    Ok(answer.trim_end_matches(['\r', '\n']).to_owned())
}

pub(super) fn agreed(question: &str) -> Result<bool, Failure> {
    Ok(matches!(ask(&format!("{question} [y/N] "))?.trim(), "y" | "Y" | "yes"))
}

/// Adds a deployed proxy to the configuration, or brings its entry up to date. By its id, or its name at its deployer.
async fn adopt(common: &Common, site: &Site, id: &str) -> Result<(), Failure> {
    site.permit::<DeployClaim>()?;
    let proxy = keep::claim(&config_dir(common)?, (&site.name, site.client()), id, None).await?;
    if common.json {
        let entry = json!({ "name": proxy.name, "url": proxy.address(), "fingerprint": proxy.fingerprint.to_string() });
        return Ok(output::json(&entry)?);
    }
    let says = match keep::status(&proxy).await {
        Ok(_) => "answers",
        Err(error) => {
            output::aside(&output::printable(&format!("note: it does not answer there now: {error}")));
            "is known"
        }
    };
    let shown = format!("proxy {} {says} at {}, certificate {}", proxy.name, proxy.address(), proxy.fingerprint);
    Ok(output::line(&output::printable(&shown))?)
}

/// Takes a deployed proxy out of the configuration, if it is there: this one, not another that is called so here.
fn drop_entry(common: &Common, deployed: &Deployed) -> Result<(), Failure> {
    let pinned = deployed.fingerprint.as_ref().and_then(|text| text.parse().ok());
    let address = deployed.url.as_deref().map(|url| url.trim_end_matches('/'));
    Config::drop_proxy(&config_dir(common)?, |entry| {
        Some(entry.fingerprint) == pinned || (entry.name == deployed.name && Some(entry.address().as_str()) == address)
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_input_is_one_secret_only() {
        let stdin = || Given::File("-".into());
        let one = DeployAnswers { given: vec![("a", stdin()), ("b", Given::Value("-".into())), ("c", Given::File("x".into()))] };
        one.one_standard_input().unwrap();
        let two = DeployAnswers { given: vec![("a", stdin()), ("b", stdin())] };
        for refused in [two.clone().read().map(drop), two.only(&["a", "b"]).map(drop)] {
            let message = refused.unwrap_err().report.unwrap().message;
            assert!(message.contains("--a-file and --b-file"), "{message}");
        }
    }
}
