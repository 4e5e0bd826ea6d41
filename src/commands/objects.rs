//! `backhaul pool`, `vm`, `sr`, `remote`: what a proxy reads from and writes to.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Read, Write};

use api::{
    IdParams, NoParams, Pool, PoolAdd, PoolAddParams, PoolFilter, PoolList, PoolRemove, Remote, RemoteAdd, RemoteAddParams,
    RemoteList, RemoteRemove, RemoteTestRun, Sr, SrList, Vm, VmList, format_bytes, format_rate,
};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::cli::{PasswordSource, PoolCommand, RemoteCommand, SrCommand, VmCommand};
use super::context::{Context, Found, Kind, find};
use super::failure::{Exit, Failure};
use super::output;

/// Prints a list gathered from all proxies, and ends as the silent ones make it end.
pub(super) fn print_list<T: DeserializeOwned>(
    context: &Context,
    (found, missing): (Vec<Found<Value>>, Option<Failure>),
    headings: &[&str],
    row: impl Fn(&str, T) -> Vec<String>,
) -> Result<(), Failure> {
    if context.json {
        output::json(&found)?;
    } else {
        let rows = found.into_iter().map(|found| {
            let item = serde_json::from_value(found.item);
            item.map(|item| row(&found.proxy, item))
        });
        let rows: Vec<_> =
            rows.collect::<Result<_, _>>().map_err(|error| Failure::failed("INVALID_ANSWER", error.to_string()))?;
        output::table(headings, &rows)?;
    }
    missing.map_or(Ok(()), Err)
}

/// Prints one object: whole as JSON, or a sentence.
pub(super) fn print_one(context: &Context, proxy: &str, item: &impl serde::Serialize, sentence: String) -> Result<(), Failure> {
    if context.json {
        output::json(&Found { proxy: proxy.to_owned(), item })?;
    } else {
        output::line(&output::printable(&sentence))?;
    }
    Ok(())
}

/// `pool`.
///
/// # Errors
/// [`Failure`].
pub async fn pool(context: &Context, command: PoolCommand) -> Result<(), Failure> {
    match command {
        PoolCommand::List => {
            let found = context.gather::<PoolList>(&NoParams {}).await?;
            print_list(context, found, &["NAME", "PROXY", "STATE", "URL", "USER", "ID", "ERROR"], |proxy, pool: Pool| {
                let error = pool.error.map(|error| error.message).unwrap_or_default();
                vec![pool.name, proxy.to_owned(), output::word(&pool.state), pool.url, pool.username, pool.id, error]
            })
        }
        PoolCommand::Add { url, username, name, password, fingerprint } => {
            let site = context.only_site()?;
            let password = read_password(&password)?;
            let unchecked = fingerprint.is_none();
            let pool = site.call::<PoolAdd>(&PoolAddParams { name, url, username, password, fingerprint }).await?;
            if unchecked {
                output::aside(&format!("pinned the certificate {}: compare it with the pool's own", pool.fingerprint));
            }
            let text = format!("added pool {} ({}) to proxy {}", pool.name, pool.id, site.name);
            print_one(context, &site.name, &pool, text)
        }
        PoolCommand::Remove { pool } => {
            let names = |pool: &Pool| [pool.id.clone(), pool.name.clone()];
            let (site, pool) = find::<PoolList, _>(context.sites()?, Kind::POOL, &pool, &NoParams {}, names).await?;
            site.call::<PoolRemove>(&IdParams { id: pool.id.clone() }).await?;
            let text = format!("proxy {} forgot pool {}", site.name, pool.name);
            print_one(context, &site.name, &json!({ "removed": pool.id }), text)
        }
    }
}

fn read_password(source: &PasswordSource) -> Result<String, Failure> {
    let unreadable = |error: io::Error| Failure::failed("PASSWORD", format!("cannot read the password: {error}"));
    let text = if let Some(path) = &source.password_file {
        std::fs::read_to_string(path).map_err(|error| Failure::file("read the password from", path, &error))?
    } else if let Some(variable) = &source.password_env {
        std::env::var(variable).map_err(|_| Failure::usage(format!("the variable {variable} is not set, or is no text")))?
    } else if io::stdin().is_terminal() {
        ask_password().map_err(unreadable)?
    } else {
        let mut text = String::new();
        io::stdin().lock().take(64 << 10).read_to_string(&mut text).map_err(unreadable)?;
        text
    };
    // Only the end of the line is not part of it: a password may begin or end with a space.
    let password = text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text));
    if password.is_empty() { Err(Failure::usage("the password is empty")) } else { Ok(password.to_owned()) }
}

/// Asks on the terminal without showing what is typed.
fn ask_password() -> io::Result<String> {
    let stdin = io::stdin();
    let before = tcgetattr(&stdin)?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    let _ = write!(io::stderr(), "Password of the pool: ");
    tcsetattr(&stdin, OptionalActions::Flush, &silent)?;
    let mut text = String::new();
    let read = stdin.read_line(&mut text);
    tcsetattr(&stdin, OptionalActions::Flush, &before)?;
    let _ = writeln!(io::stderr());
    read.map(|_| text)
}

/// `vm`.
///
/// # Errors
/// [`Failure`].
pub async fn vm(context: &Context, VmCommand::List { pool }: VmCommand) -> Result<(), Failure> {
    let pools = pool_names(context).await?;
    let params = PoolFilter { pool: pool.clone() };
    let mut found = context.gather::<VmList>(&params).await?;
    forgive_other_pools(context, &pool, &pools, &mut found)?;
    print_list(context, found, &["NAME", "PROXY", "POOL", "STATE", "DISKS", "SIZE", "CBT", "UUID"], |proxy, vm: Vm| {
        let bytes = vm.disks.iter().map(|disk| disk.bytes).sum();
        let cbt = match vm.disks.iter().filter(|disk| disk.cbt).count() {
            0 => "off",
            all if all == vm.disks.len() => "on",
            _ => "some",
        };
        let pool = pools.get(&vm.pool).unwrap_or(&vm.pool).clone();
        let disks = vm.disks.len().to_string();
        vec![vm.name, proxy.to_owned(), pool, vm.power_state, disks, format_bytes(bytes), cbt.to_owned(), vm.uuid]
    })
}

/// `sr`.
///
/// # Errors
/// [`Failure`].
pub async fn sr(context: &Context, SrCommand::List { pool }: SrCommand) -> Result<(), Failure> {
    let pools = pool_names(context).await?;
    let params = PoolFilter { pool: pool.clone() };
    let mut found = context.gather::<SrList>(&params).await?;
    forgive_other_pools(context, &pool, &pools, &mut found)?;
    print_list(context, found, &["NAME", "PROXY", "POOL", "SIZE", "FREE", "DEFAULT", "UUID"], |proxy, sr: Sr| {
        let pool = pools.get(&sr.pool).unwrap_or(&sr.pool).clone();
        let default = if sr.default { "yes" } else { "" };
        vec![sr.name, proxy.to_owned(), pool, format_bytes(sr.bytes), format_bytes(sr.free), default.to_owned(), sr.uuid]
    })
}

/// Names of the pools by id, of all proxies that answer.
async fn pool_names(context: &Context) -> Result<HashMap<String, String>, Failure> {
    let (pools, _) = context.gather::<PoolList>(&NoParams {}).await?;
    let text = |pool: &Found<Value>, key: &str| pool.item.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok(pools.iter().map(|pool| (text(pool, "id"), text(pool, "name"))).collect())
}

/// A proxy that does not have the pool asked for has nothing to list: no failure as long as another one has it.
fn forgive_other_pools(
    context: &Context,
    pool: &Option<String>,
    pools: &HashMap<String, String>,
    found: &mut (Vec<Found<Value>>, Option<Failure>),
) -> Result<(), Failure> {
    let Some(pool) = pool else { return Ok(()) };
    if !pools.iter().any(|(id, name)| id == pool || name == pool) && found.1.is_none() && found.0.is_empty() {
        return Err(Failure::failed("NO_SUCH_OBJECT", format!("there is no pool {pool:?}")).next("backhaul pool list"));
    }
    let several = context.sites()?.len() > 1;
    if several && found.1.as_ref().is_some_and(|failure| failure.exit == Exit::Failed) && !found.0.is_empty() {
        found.1 = None;
    }
    Ok(())
}

/// `remote`.
///
/// # Errors
/// [`Failure`].
pub async fn remote(context: &Context, command: RemoteCommand) -> Result<(), Failure> {
    let names = |remote: &Remote| [remote.id.clone(), remote.name.clone()];
    match command {
        RemoteCommand::List => {
            let found = context.gather::<RemoteList>(&NoParams {}).await?;
            print_list(
                context,
                found,
                &["NAME", "PROXY", "KIND", "FREE", "SIZE", "URL", "ID", "ERROR"],
                |proxy, remote: Remote| {
                    let space = remote.space.map_or((String::new(), String::new()), |space| {
                        (format_bytes(space.available), format_bytes(space.size))
                    });
                    let error = remote.error.map(|error| error.message).unwrap_or_default();
                    vec![remote.name, proxy.to_owned(), remote.kind, space.0, space.1, remote.url, remote.id, error]
                },
            )
        }
        RemoteCommand::Add { name, url } => {
            let site = context.only_site()?;
            let url = remote_url(url)?;
            let remote = site.call::<RemoteAdd>(&RemoteAddParams { name, url }).await?;
            let text = format!("added remote {} ({}) to proxy {}", remote.name, remote.id, site.name);
            print_one(context, &site.name, &remote, text)
        }
        RemoteCommand::Test { remote } => {
            let (site, remote) = find::<RemoteList, _>(context.sites()?, Kind::REMOTE, &remote, &NoParams {}, names).await?;
            let test = site.call::<RemoteTestRun>(&IdParams { id: remote.id.clone() }).await?;
            let rate = |rate: Option<f64>| rate.map_or("?".to_owned(), |rate| format_rate(rate as u64));
            let text = if test.success {
                format!("remote {} works: written at {}, read at {}", remote.name, rate(test.write_rate), rate(test.read_rate))
            } else {
                format!("remote {} does not work: step {}", remote.name, test.step.as_deref().unwrap_or("?"))
            };
            print_one(context, &site.name, &test, text)?;
            if test.success { Ok(()) } else { Err(Failure { exit: Exit::Failed, report: test.error }) }
        }
        RemoteCommand::Remove { remote } => {
            let (site, remote) = find::<RemoteList, _>(context.sites()?, Kind::REMOTE, &remote, &NoParams {}, names).await?;
            site.call::<RemoteRemove>(&IdParams { id: remote.id.clone() }).await?;
            let text = format!("proxy {} forgot remote {}; its files stay", site.name, remote.name);
            print_one(context, &site.name, &json!({ "removed": remote.id }), text)
        }
    }
}

/// The URL of a remote; one with a password must not stand where others can read it.
fn remote_url(url: String) -> Result<String, Failure> {
    if url == "-" {
        let mut text = String::new();
        let read = io::stdin().lock().take(64 << 10).read_to_string(&mut text);
        read.map_err(|error| Failure::failed("URL", format!("cannot read the URL from standard input: {error}")))?;
        return Ok(text.trim().to_owned());
    }
    let authority = url.split_once("://").map_or("", |(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or_default());
    match authority.rsplit_once('@') {
        Some((user, _)) if user.contains(':') => Err(Failure::usage(
            "a URL with a password must not stand on the command line; pass `-` and write it to standard input",
        )),
        _ => Ok(url),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_on_the_command_line_is_refused() {
        assert!(remote_url("file:///srv/a@b:c".into()).is_ok());
        assert!(remote_url("nfs://host:/export".into()).is_ok());
        let failure = remote_url("s3://key:secret@host/bucket".into()).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(!format!("{failure:?}").contains("secret"));
    }
}
