//! `backhaul license`: issuing, for whoever runs a fleet; importing, binding and listing on its proxies.

use std::path::{Path, PathBuf};

use api::{
    Binding, IdParams, License, LicenseBind, LicenseBindParams, LicenseGet, LicenseImport, LicenseImportParams, LicenseList,
    LicenseRemove, LicenseUnbind, NoParams, ProxyStatusGet,
};
use clap::{Args, Subcommand};
use jiff::{Timestamp, ToSpan as _};
use signed::SecretKey;

use super::cli::Common;
use super::context::{Context, Site};
use super::failure::Failure;
use super::objects::{print_list, print_one};
use super::output;

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
        // Not called `proxy`: it would be taken for the option --proxy, and only that one be asked.
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
        LicenseCommand::Issue(arguments) => issue(&arguments),
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

fn issue(arguments: &IssueArgs) -> Result<(), Failure> {
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
    for site in sites {
        if site.call::<ProxyStatusGet>(&NoParams {}).await.is_ok_and(|status| status.licensing.required) {
            return true;
        }
    }
    false
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

/// The licence that an id, or the beginning of one, means, and the first proxy that holds it: a licence is held by the proxy
/// it serves, and often by the one that has deployed that.
async fn find(context: &Context, id: &str) -> Result<(Site, License), Failure> {
    let (mut found, mut missing) = (Vec::<(Site, License)>::new(), None);
    for site in context.sites()? {
        match site.call::<LicenseList>(&NoParams {}).await {
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
        (1, _) => Ok(found.swap_remove(0)),
        _ => Err(Failure::usage(format!("several licences begin with {id:?}: {}", ids.join(", ")))),
    }
}

/// The proxy of that name, and who it says it is.
async fn proxy(context: &Context, name: &str) -> Result<(Site, Binding), Failure> {
    let site = context.sites()?.into_iter().find(|site| site.name == name);
    let site = site.ok_or_else(|| Failure::usage(format!("there is no proxy {name:?} in the configuration")))?;
    let status = site.call::<ProxyStatusGet>(&NoParams {}).await?;
    Ok((site, Binding { proxy: status.id, name: name.to_owned() }))
}

/// Binds it where it is held, then takes it to the proxy. All proxies are asked first: a licence serves no more of a fleet
/// than it covers, whoever holds a copy of it.
async fn bind(context: &Context, id: &str, name: &str) -> Result<(), Failure> {
    let (holder, license) = find(context, id).await?;
    let (target, binding) = proxy(context, name).await?;
    let mut serves: Vec<Binding> = Vec::new();
    for site in context.sites()? {
        let held = site.call::<LicenseList>(&NoParams {}).await.map_err(|failure| {
            failure.next(format!("{} may hold the licence too; it must answer before one is bound", site.name))
        })?;
        for bound in held.into_iter().filter(|other| other.id == license.id).flat_map(|other| other.bound) {
            if bound.proxy != binding.proxy && !serves.iter().any(|known| known.proxy == bound.proxy) {
                serves.push(bound);
            }
        }
    }
    if serves.len() >= license.proxies as usize {
        let names: Vec<&str> = serves.iter().map(|bound| bound.name.as_str()).collect();
        let reason = format!("the licence covers {} and already serves {}", license.proxies, names.join(", "));
        return Err(Failure::refused("LICENSE_IN_USE", reason).next("backhaul license unbind frees it"));
    }
    let params = LicenseBindParams { id: license.id.clone(), proxy: Some(binding.clone()) };
    if holder.name != target.name {
        let text = holder.call::<LicenseGet>(&IdParams { id: license.id.clone() }).await?.text;
        holder.call::<LicenseBind>(&params).await?;
        target.call::<LicenseImport>(&LicenseImportParams { text }).await?;
    }
    let bound = target.call::<LicenseBind>(&params).await?;
    print_one(context, &target.name, &bound, format!("licence {} serves {}", bound.id, target.name))
}

async fn unbind(context: &Context, id: &str, name: &str) -> Result<(), Failure> {
    let (holder, license) = find(context, id).await?;
    let (target, binding) = proxy(context, name).await?;
    let params = LicenseBindParams { id: license.id.clone(), proxy: Some(binding) };
    // Whoever holds a copy frees its own note of it; the proxy's first, for that is the one that counts.
    let at_target = target.call::<LicenseUnbind>(&params).await;
    let at_holder = if holder.name == target.name { None } else { Some(holder.call::<LicenseUnbind>(&params).await) };
    let freed = match (at_target, at_holder) {
        (Ok(freed), _) | (Err(_), Some(Ok(freed))) => freed,
        (Err(failure), _) => return Err(failure),
    };
    print_one(context, &target.name, &freed, format!("licence {} no longer serves {}", freed.id, target.name))
}
