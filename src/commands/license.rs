//! `backhaul license`: issuing, for whoever runs a fleet; importing, binding and listing on its proxies.

use std::path::{Path, PathBuf};

use api::{IdParams, License, LicenseImport, LicenseImportParams, LicenseList, LicenseRemove, Method, NoParams, ProxyStatusGet};
use clap::{Args, Subcommand};
use futures::future::join_all;
use jiff::{Timestamp, ToSpan as _};
use signed::SecretKey;

use super::cli::Common;
use super::context::{Context, Site};
use super::failure::{Exit, Failure};
use super::objects::{print_list, print_one};
use super::output;
use crate::fleet::licenses::{self, LicenseFault, Member};

/// `license …`.
#[derive(Debug, Subcommand)]
pub enum LicenseCommand {
    /// Make the pair of keys of an issuer: the secret one stays in the file, the public one goes into each backhauld.toml
    Keygen {
        /// File for the secret key; must not exist
        file: PathBuf,
    },
    /// Issue a licence: the signed text goes to standard output
    Issue(IssueArgs),
    /// Check a licence and give it to a proxy to keep
    Import {
        /// The signed text
        file: PathBuf,
    },
    /// The licences that the proxies hold
    List,
    /// One licence
    Show {
        /// Its id, or the beginning of it
        id: String,
    },
    /// Bind a licence to a proxy; one that serves another proxy already is refused
    Bind {
        /// Its id, or the beginning of it
        id: String,
        /// The proxy that shall run under it
        #[arg(value_name = "PROXY")]
        whose: String,
    },
    /// Free a licence of a proxy
    Unbind {
        /// Its id, or the beginning of it
        id: String,
        /// The proxy
        // Not called `proxy`: it would be taken for the option --proxy.
        #[arg(value_name = "PROXY")]
        whose: String,
    },
    /// Forget a licence that serves no proxy
    Remove {
        /// Its id, or the beginning of it
        id: String,
    },
}

/// `license issue`.
#[derive(Debug, Args)]
pub struct IssueArgs {
    /// The issuer's secret key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Whom it is for
    #[arg(long)]
    holder: String,
    /// How many proxies it covers
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    proxies: u32,
    /// Days it is valid, from its first on; without, for ever
    #[arg(long, value_parser = clap::value_parser!(i64).range(1..=36500))]
    days: Option<i64>,
    /// First moment it is valid, e.g. 2027-01-01T00:00:00Z [default: now]
    #[arg(long, value_name = "TIME")]
    not_before: Option<Timestamp>,
    /// Id of the only proxy it is for
    #[arg(long, value_name = "ID")]
    bound_to: Option<String>,
}

/// Runs it.
///
/// # Errors
/// [`Failure`].
pub async fn run(common: &Common, command: LicenseCommand) -> Result<(), Failure> {
    match command {
        LicenseCommand::Keygen { file } => keygen(common, &file, "[license]\nissuer_keys"),
        LicenseCommand::Issue(arguments) => issue(common, &arguments),
        LicenseCommand::Import { file } => {
            let context = Context::new(common)?;
            let site = context.only_site()?;
            let text = std::fs::read_to_string(&file).map_err(|error| Failure::file("read", &file, &error))?;
            let license = site.call::<LicenseImport>(&LicenseImportParams { text }).await?;
            let told = format!("{} keeps licence {} of {}", site.name, license.id, license.holder);
            print_one(&context, &site.name, &license, told)
        }
        LicenseCommand::List => list(&Context::new(common)?).await,
        LicenseCommand::Show { id } => {
            let context = Context::new(common)?;
            let (site, license) = find(&context, &id).await?;
            let told = words(&license).into_iter().map(|(key, value)| format!("{key:<11} {value}")).collect::<Vec<_>>();
            if context.json {
                return print_one(&context, &site.name, &license, String::new());
            }
            for line in told {
                output::line(&output::printable(&line))?;
            }
            Ok(())
        }
        LicenseCommand::Bind { id, whose } => bind(&Context::new(common)?, &id, &whose).await,
        LicenseCommand::Unbind { id, whose } => unbind(&Context::new(common)?, &id, &whose).await,
        LicenseCommand::Remove { id } => {
            let context = Context::new(common)?;
            let (site, license) = find(&context, &id).await?;
            site.call::<LicenseRemove>(&IdParams { id: license.id.clone() }).await?;
            print_one(&context, &site.name, &license, format!("{} has forgotten licence {}", site.name, license.id))
        }
    }
}

/// Makes a pair of keys; `place` is where its public half goes in a proxy's configuration.
///
/// # Errors
/// [`Failure`].
pub(super) fn keygen(common: &Common, file: &Path, place: &str) -> Result<(), Failure> {
    if file.exists() {
        return Err(Failure::refused("KEY_EXISTS", format!("{} exists: a key is never written over", file.display())));
    }
    let key = SecretKey::generate().map_err(|error| Failure::failed("KEY", error.to_string()))?;
    let secret = format!("{}\n", key.expose());
    crate::config::write_private(file, &secret).map_err(|error| Failure::file("write", file, &error))?;
    if common.json {
        return Ok(output::json(&serde_json::json!({ "public": key.public().to_string(), "id": key.public().id() }))?);
    }
    output::aside(&format!("the secret key {} is in {}; the public one for backhauld.toml:", key.public().id(), file.display()));
    Ok(output::line(&format!("{place} = [\"{}\"]", key.public()))?)
}

fn issue(common: &Common, arguments: &IssueArgs) -> Result<(), Failure> {
    let text = std::fs::read_to_string(&arguments.key).map_err(|error| Failure::file("read", &arguments.key, &error))?;
    let key: SecretKey = text.parse().map_err(|error| Failure::usage(format!("{}: {error}", arguments.key.display())))?;
    let now = Timestamp::now();
    let not_before = arguments.not_before.unwrap_or(now);
    let expires_at = arguments.days.map(|days| not_before.checked_add((days * 24).hours())).transpose();
    let expires_at = expires_at.map_err(|_| Failure::usage("its end is too far in the future"))?;
    if arguments.holder.trim().is_empty() {
        return Err(Failure::usage("a licence has a holder"));
    }
    let license = signed::License {
        id: uuid::Uuid::new_v4().to_string(),
        product: signed::PRODUCT.to_owned(),
        holder: arguments.holder.trim().to_owned(),
        proxies: arguments.proxies,
        issued_at: now,
        not_before,
        expires_at,
        bound_to: arguments.bound_to.clone(),
    };
    let text = license.issue(&key).map_err(|error| Failure::usage(error.to_string()))?;
    if common.json {
        return Ok(output::json(&serde_json::json!({ "id": license.id, "text": text }))?);
    }
    Ok(output::line(text.trim_end())?)
}

async fn list(context: &Context) -> Result<(), Failure> {
    let found = context.gather::<LicenseList>(&NoParams {}).await?;
    if found.0.is_empty() && !context.json {
        let asked = any_requires(context).await;
        output::aside(if asked { "no proxy holds a licence" } else { "no licence is asked for by any proxy" });
    }
    print_list(context, found, &["ID", "HELD BY", "HOLDER", "COVERS", "SERVES", "EXPIRES", "STATE"], |proxy, license: License| {
        let serves: Vec<&str> = license.bound.iter().map(|bound| bound.name.as_str()).collect();
        let (serves, expires, state) = (serves.join(", "), expires(&license), state(&license));
        vec![license.id, proxy.to_owned(), license.holder, license.proxies.to_string(), serves, expires, state]
    })
}

async fn any_requires(context: &Context) -> bool {
    let Ok(sites) = context.sites() else { return false };
    let states = join_all(sites.iter().map(|site| site.call::<ProxyStatusGet>(&NoParams {}))).await;
    states.into_iter().flatten().any(|status| status.licensing.required)
}

fn expires(license: &License) -> String {
    license.expires_at.map_or_else(|| "never".to_owned(), output::time)
}

fn state(license: &License) -> String {
    license.fault.clone().or_else(|| license.warning.clone()).unwrap_or_else(|| "good".into())
}

fn words(license: &License) -> Vec<(&'static str, String)> {
    let mut words = vec![
        ("id", license.id.clone()),
        ("holder", license.holder.clone()),
        ("covers", license.proxies.to_string()),
        ("from", output::time(license.not_before)),
        ("expires", expires(license)),
        ("state", state(license)),
    ];
    words.extend(license.bound.iter().map(|bound| ("serves", format!("{} ({})", bound.name, bound.proxy))));
    words
}

/// The licence that an id, or the beginning of one, means, at all proxies that hold a copy: it is held by the proxy it
/// serves, and often by the one that has deployed that.
async fn copies(context: &Context, id: &str) -> Result<Vec<(Site, License)>, Failure> {
    let (mut found, mut missing) = (Vec::<(Site, License)>::new(), None);
    let sites = context.sites()?;
    let lists = join_all(sites.iter().map(|site| site.call::<LicenseList>(&NoParams {}))).await;
    for (site, listed) in sites.iter().zip(lists) {
        match listed {
            Ok(held) => found.extend(held.into_iter().map(|license| (site.clone(), license))),
            Err(failure) => missing = Some(failure),
        }
    }
    let exact = found.iter().any(|(_, license)| license.id == id);
    found.retain(|(_, license)| license.id == id || (!exact && id.len() >= 4 && license.id.starts_with(id)));
    let mut ids: Vec<&str> = found.iter().map(|(_, license)| license.id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    match (ids.len(), missing) {
        (0, Some(missing)) => Err(missing.next(format!("a proxy that may hold the licence {id:?} does not answer"))),
        (0, None) => {
            Err(Failure::failed("NO_SUCH_OBJECT", format!("no proxy holds a licence {id:?}")).next("backhaul license list"))
        }
        (1, _) => Ok(found),
        _ => Err(Failure::usage(format!("several licences begin with {id:?}: {}", ids.join(", ")))),
    }
}

/// The first proxy that holds it, and its copy.
async fn find(context: &Context, id: &str) -> Result<(Site, License), Failure> {
    Ok(copies(context, id).await?.swap_remove(0))
}

impl Member for Site {
    type Error = Failure;

    fn name(&self) -> &str {
        &self.name
    }

    fn call<M>(&self, params: &M::Params) -> impl Future<Output = Result<M::Item, Failure>> + Send
    where
        M: Method,
        M::Params: Sync,
    {
        Self::call::<M>(self, params)
    }

    fn advise(error: Failure, next: String) -> Failure {
        error.next(next)
    }
}

impl From<LicenseFault> for Failure {
    fn from(fault: LicenseFault) -> Self {
        let report = Some(fault.report());
        let exit = match fault {
            LicenseFault::Config(error) => return error.into(),
            LicenseFault::NotHeld { .. } => Exit::Failed,
            LicenseFault::InUse { .. } => Exit::Refused,
        };
        Self { exit, report }
    }
}

async fn bind(context: &Context, id: &str, name: &str) -> Result<(), Failure> {
    let (holder, license) = find(context, id).await?;
    let bound = licenses::bind(&context.fleet()?, &holder.name, name, &license.id).await?;
    print_one(context, name, &bound, format!("licence {} serves {name}", bound.id))
}

async fn unbind(context: &Context, id: &str, name: &str) -> Result<(), Failure> {
    let copies = copies(context, id).await?;
    let (holder, license) = &copies[0];
    // As the copies have it: the proxy itself may be long gone, and still be noted.
    let served = copies.iter().flat_map(|(_, copy)| &copy.bound).find(|bound| bound.name == name || bound.proxy == name);
    let of = served.cloned().ok_or_else(|| {
        Failure::failed("NO_SUCH_OBJECT", format!("licence {} does not serve {name:?}", license.id)).next("backhaul license list")
    })?;
    let freed = licenses::unbind(&context.fleet()?, &holder.name, &of, &license.id).await?;
    print_one(context, &of.name, &freed, format!("licence {} no longer serves {}", freed.id, of.name))
}
