//! `backhaul proxy undeploy --ssh`: takes away what a deployment made, also when what runs there is broken.

use std::collections::BTreeSet;

use api::{Binding, ErrorReport, LicenseBindParams, LicenseList, LicenseUnbind, NoParams};
use clap::Args;
use futures::future::join_all;

use super::answer::{Standing, standing};
use super::interrupt::Interrupt;
use super::probe::{self, Form, Found, paths};
use super::session::{Destination, Payload, Script, Session};
use super::{named, off_thread, plan};
use crate::commands::cli::Common;
use crate::commands::context::config_dir;
use crate::commands::deploy::ask;
use crate::commands::failure::Failure;
use crate::commands::output;
use crate::config::{Config, Proxy};
use crate::fleet::licenses::Member;

/// `proxy undeploy`.
#[derive(Debug, Args)]
pub struct UndeployArgs {
    /// The host
    #[arg(long, value_name = "[USER@]HOST[:PORT]")]
    ssh: String,
    /// Remove its data too: jobs, history, licences, passwords
    #[arg(long)]
    purge: bool,
    /// Name of the proxy, instead of typing it when asked
    #[arg(long, value_name = "NAME")]
    confirm: Option<String>,
}

/// `proxy undeploy`.
///
/// # Errors
/// [`Failure`].
pub async fn undeploy(common: &Common, arguments: UndeployArgs) -> Result<(), Failure> {
    let destination: Destination = arguments.ssh.parse().map_err(Failure::usage)?;
    let dir = config_dir(common)?;
    let config = Config::load(&dir);
    if common.read_only || config.console.read_only {
        return Err(Failure::refused("READ_ONLY", "this removes something, and this console is read-only"));
    }
    let known = config.proxies?;
    let interrupt = Interrupt::listen()?;
    let mut session = Session::open(&destination, &interrupt).await?;
    let (found, standing) = interrupt.ends(look(&mut session, &known)).await??;
    if arguments.purge {
        interrupt.ends(nothing_kept(&session)).await??;
    }
    let Some(mark) = found.mark else {
        let there = if found.exists(paths::CONFIG) { "its backhauld was set up by somebody else" } else { "there is none" };
        return Err(Failure::refused("NOT_DEPLOYED", format!("no proxy was deployed to {destination} from a console: {there}")));
    };
    let said = standing.status.as_ref().map(|status| status.name.clone()).or_else(|| plan::name_of(&found));
    let name = said.unwrap_or_else(|| found.facts.get("node").unwrap_or("backhaul").to_owned());
    if let Some(running) = standing.status.as_ref().map(|status| status.running.len()).filter(|running| *running > 0) {
        output::aside(&format!("note: {running} running runs will be interrupted"));
    }
    let data = if arguments.purge {
        format!("and {} with all jobs, history, licences and passwords in it", paths::STATE)
    } else {
        format!("but not {} with its jobs, history, licences and passwords, which --purge removes", paths::STATE)
    };
    let typed = match arguments.confirm {
        Some(typed) => typed,
        None => {
            let question = format!("This removes the proxy {name} from {destination}, {data}. Type its name to go on: ");
            interrupt.ends(off_thread(move || ask(&output::printable(&question)))).await??
        }
    };
    if typed != name {
        return Err(Failure::refused(
            "NOT_CONFIRMED",
            format!("nothing was touched: the proxy there is called {name:?}, not {typed:?}"),
        ));
    }
    let form = match mark.form {
        Form::Program => "program",
        Form::Package => "package",
        Form::Found => "found",
    };
    let word = |yes: bool, other: &'static str| if yes { "yes" } else { other };
    let account = if mark.made_account { "made" } else { "found" };
    let values = [form, account, word(arguments.purge, "no")];
    let removing = session.run(Script::REMOVE, &values, Payload::Nothing);
    tokio::pin!(removing);
    let removed = match interrupt.ends(&mut removing).await {
        Ok(removed) => removed,
        // Half of it would be worse than all of it.
        Err(_) => {
            output::aside("the removal has begun and is being finished");
            removing.await
        }
    };
    removed.map_err(|error| {
        named("remove all of it", error.into()).next(format!("the same command goes on where this one ended: {destination}"))
    })?;
    let mine = own(&known, &standing, plan::token_of(&found).as_ref());
    let entry = mine.first().copied();
    let called = entry.map_or(&name, |entry| &entry.name);
    let mut freed = Freed::default();
    if arguments.purge {
        let others: Vec<&Proxy> = known.iter().filter(|proxy| !mine.contains(proxy)).collect();
        let id = standing.status.as_ref().map(|status| status.id.as_str());
        freed = free(&others, id, called, &interrupt).await;
    }
    let pins: Vec<tls::Fingerprint> = mine.iter().map(|proxy| proxy.fingerprint).collect();
    let dropped = match pins.is_empty() {
        true => Ok(Vec::new()),
        false => Config::drop_proxy(&dir, |proxy| pins.contains(&proxy.fingerprint)),
    };
    for note in &freed.notes {
        output::aside(&output::printable(&format!("note: {note}")));
    }
    let forgotten = dropped.as_ref().ok().and_then(|names| names.first().cloned());
    if common.json {
        output::json(&serde_json::json!({
            "removed": name, "purged": arguments.purge, "forgotten": forgotten, "freed": freed.licenses,
        }))?;
    } else {
        output::line(&output::printable(&format!("removed the proxy {name} from {destination}, {data}")))?;
        for license in &freed.licenses {
            output::line(&output::printable(&format!("licence {license} no longer serves {called}")))?;
        }
    }
    let next = format!("the proxy is removed; `backhaul proxy remove {called}` takes it out of the configuration later");
    dropped.map(drop).map_err(|error| named("take it out of the console's configuration", error.into()).next(next))
}

/// The entries of this very proxy: those of its certificate. Of one that does not tell it, that of its token, if that is not
/// shared.
fn own<'a>(known: &'a [Proxy], standing: &Standing, token: Option<&client::Token>) -> Vec<&'a Proxy> {
    if let Some(pin) = standing.fingerprint {
        return known.iter().filter(|proxy| proxy.fingerprint == pin).collect();
    }
    let mut own: Vec<&Proxy> = known.iter().filter(|proxy| Some(&proxy.token) == token).collect();
    if own.len() > 1 {
        own.clear();
    }
    own
}

/// Looks at the host, without asking that what runs there is in order: it is going to go.
async fn look(session: &mut Session, known: &[Proxy]) -> Result<(Found, Standing), Failure> {
    probe::enter(session).await?;
    session.hold().await?;
    let found = probe::probe(session).await?;
    let standing = standing(session, &found, known).await.unwrap_or_else(|failure| {
        let why = failure.report.map(|report| report.message).unwrap_or_default();
        output::aside(&output::printable(&format!("note: the proxy there cannot tell its certificate: {why}")));
        Standing::default()
    });
    Ok((found, standing))
}

/// A repository may lie in the state, or be mounted there: what is in it is not the proxy's to take along.
async fn nothing_kept(session: &Session) -> Result<(), Failure> {
    let said = session.run(Script::KEPT, &[], Payload::Nothing).await?;
    let of = |key: &str| {
        let lines = said.lines().filter_map(|line| line.split_once('=')).filter(|(found, _)| *found == key);
        lines.map(|(_, path)| path).collect::<Vec<_>>().join(", ")
    };
    let (backups, mounts, host) = (of("backups"), of("mounted"), session.destination());
    let next = "or leave out --purge: the data stays then";
    if !backups.is_empty() {
        return Err(Failure::refused("BACKUPS_THERE", format!("there are backups in {backups} on {host}"))
            .next(format!("move them first, {next}")));
    }
    if !mounts.is_empty() {
        return Err(Failure::refused("MOUNTED_THERE", format!("{mounts} on {host} is the root of another file system"))
            .next(format!("umount it there first, {next}")));
    }
    Ok(())
}

/// What became of the licences of a proxy that is gone.
#[derive(Default)]
struct Freed {
    /// Those that serve it no longer, by id.
    licenses: Vec<String>,
    /// What could not be done, in words.
    notes: Vec<String>,
}

/// Frees, at all others, the licences that are noted as its own. `id`: what it calls itself, where it still said so; `called`:
/// its name on this console. ctrl-C ends the wait for those that do not answer.
async fn free(others: &[&Proxy], id: Option<&str>, called: &str, interrupt: &Interrupt) -> Freed {
    let answers = join_all(others.iter().map(|proxy| async move {
        // What is freed is noted at once: what comes after it may fail.
        let mut one = Freed::default();
        let done = interrupt.ends(free_at(proxy, id, called, &mut one)).await;
        let why = match done {
            Ok(Ok(())) => None,
            Ok(Err(report)) => Some(report.message),
            Err(interrupted) => Some(interrupted.to_string()),
        };
        if let Some(why) = why {
            one.notes.push(format!(
                "{} cannot free all licences of {called}: {why}; `backhaul license list` shows them, `backhaul license unbind` \
                 frees them later",
                proxy.name
            ));
        }
        one
    }));
    let (mut licenses, mut notes) = (BTreeSet::new(), Vec::new());
    for one in answers.await {
        licenses.extend(one.licenses);
        notes.extend(one.notes);
    }
    Freed { licenses: licenses.into_iter().collect(), notes }
}

async fn free_at(proxy: &Proxy, id: Option<&str>, called: &str, freed: &mut Freed) -> Result<(), ErrorReport> {
    let member = (proxy.name.clone(), proxy.client().map_err(|error| error.report())?);
    for copy in Member::call::<LicenseList>(&member, &NoParams {}).await? {
        let own = |bound: &&Binding| id.map_or(bound.name == called, |id| bound.proxy == id);
        let Some(bound) = copy.bound.iter().find(own) else { continue };
        if id.is_none() {
            freed.notes.push(format!(
                "the proxy did not say who it is, so {} still has licence {} for a {called}: `backhaul license unbind {} {called}` \
                 frees it",
                proxy.name, copy.id, copy.id
            ));
            continue;
        }
        let params = LicenseBindParams { id: copy.id.clone(), proxy: Some(bound.clone()) };
        Member::call::<LicenseUnbind>(&member, &params).await?;
        freed.licenses.push(copy.id);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_known_by_its_certificate_and_by_its_token_only_where_none_is_told() {
        let entry = |name: &str, token: &str, pin: &str| Proxy {
            name: name.into(),
            url: crate::config::check_url("https://127.0.0.1:8443").unwrap(),
            token: client::Token::new(token).unwrap(),
            fingerprint: pin.repeat(32).parse().unwrap(),
        };
        // Two proxies were given the same token.
        let known = [entry("other", "shared", "AB"), entry("this", "shared", "CD"), entry("third", "own", "EF")];
        let token = |text: &str| client::Token::new(text).unwrap();
        let names = |standing: &Standing, token: Option<&client::Token>| {
            own(&known, standing, token).into_iter().map(|proxy| proxy.name.clone()).collect::<Vec<_>>()
        };
        let told = Standing { fingerprint: Some(known[1].fingerprint), ..Standing::default() };
        assert_eq!(names(&told, Some(&token("shared"))), ["this"]);
        assert_eq!(names(&told, Some(&token("own"))), ["this"]);
        let untold = Standing::default();
        assert_eq!(names(&untold, Some(&token("own"))), ["third"]);
        assert_eq!(names(&untold, Some(&token("shared"))), [""; 0]);
        assert_eq!(names(&untold, None), [""; 0]);
    }
}
