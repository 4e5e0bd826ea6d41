//! What a host is and has, as [`Script::PROBE`] tells it.

use std::collections::BTreeMap;

use super::session::{Payload, Script, Session, SshError};
use crate::commands::failure::Failure;

/// Where things are on the host.
pub mod paths {
    /// The program, when it comes as a program.
    pub const PROGRAM: &str = "/usr/local/bin/backhauld";
    /// The program, when it comes in a package.
    pub const PACKAGED_PROGRAM: &str = "/usr/bin/backhauld";
    /// The unit, when the program comes as a program.
    pub const UNIT: &str = "/etc/systemd/system/backhauld.service";
    /// Folder of the settings.
    pub const SETTINGS: &str = "/etc/backhaul";
    /// The settings.
    pub const CONFIG: &str = "/etc/backhaul/backhauld.toml";
    /// Says that we made all this.
    pub const MARK: &str = "/etc/backhaul/deployed-by-ssh";
    /// Folder of the state.
    pub const STATE: &str = "/var/lib/backhaul";
    /// The token that clients prove themselves with.
    pub const TOKEN: &str = "/var/lib/backhaul/token";
    /// The database of the state: where it is, a daemon has worked.
    pub const DATABASE: &str = "/var/lib/backhaul/state.db";
    /// What former files, copies and notes of a run are beside, under its name.
    pub const KEPT: [&str; 9] = [
        PROGRAM,
        UNIT,
        CONFIG,
        MARK,
        TOKEN,
        "/var/lib/backhaul/state",
        "/var/lib/backhaul/made",
        "/etc/backhaul/made",
        "/run/backhaul-account",
    ];
}

/// The oldest systemd whose units can have a state folder.
const OLDEST_SYSTEMD: u32 = 235;

/// `key=value` lines; a key may come several times.
#[derive(Debug, Default)]
pub struct Facts(BTreeMap<String, Vec<String>>);

impl Facts {
    fn parse(text: &str) -> Self {
        let mut facts: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
            facts.entry(key.to_owned()).or_default().push(value.trim().to_owned());
        }
        Self(facts)
    }

    /// The first value of a key; an empty one is none.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.first().map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether a key has this value among others.
    pub fn has(&self, key: &str, value: &str) -> bool {
        self.0.get(key).is_some_and(|values| values.iter().any(|found| found == value))
    }
}

/// How the program came to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As a file.
    Program,
    /// In a package that we installed, with its unit.
    Package,
    /// In a package that was there before us, and stays after us.
    Found,
}

/// What a deployment noted of itself on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// How the program came.
    pub form: Form,
    /// Whether the account was made.
    pub made_account: bool,
}

impl Mark {
    /// As it stands on the host.
    pub fn text(self) -> String {
        let form = match self.form {
            Form::Program => "program",
            Form::Package => "package",
            Form::Found => "found",
        };
        let account = if self.made_account { "made" } else { "found" };
        format!(
            "# Made by `backhaul proxy deploy --ssh`; `backhaul proxy undeploy --ssh` removes it all.\n\
             version=1\nprogram={form}\naccount={account}\n"
        )
    }

    fn parse(text: &str) -> Result<Self, String> {
        let facts = Facts::parse(text);
        let form = match (facts.get("version"), facts.get("program")) {
            (Some("1"), Some("program")) => Form::Program,
            (Some("1"), Some("package")) => Form::Package,
            (Some("1"), Some("found")) => Form::Found,
            _ => return Err(format!("{} on the host was not written by this version", paths::MARK)),
        };
        Ok(Self { form, made_account: facts.get("account") == Some("made") })
    }
}

/// A host that has been looked at.
#[derive(Debug)]
pub struct Found {
    /// All that was told.
    pub facts: Facts,
    /// What an earlier deployment noted.
    pub mark: Option<Mark>,
    /// The settings there. May hold a secret.
    pub config: Option<String>,
    /// The token there. A secret.
    pub token: Option<client::Token>,
    /// Why what stands in its place is none.
    pub bad_token: Option<String>,
}

/// Logs in, becomes root, and checks that the host can be worked on at all.
///
/// # Errors
/// [`Failure`], in the words of what is missing.
pub async fn enter(session: &mut Session) -> Result<(), Failure> {
    let hello = Facts::parse(&session.run(Script::HELLO, &[], Payload::Nothing).await?);
    let (user, host) = (hello.get("user").unwrap_or("?"), session.destination().to_string());
    match hello.get("sudo") {
        Some("needless") => {}
        Some("yes") => session.become_root(),
        Some("absent") => {
            return Err(Failure::refused("NOT_ROOT", format!("{user} is not root on {host}, and there is no sudo"))
                .next("log in as root: --ssh root@HOST"));
        }
        _ => {
            return Err(Failure::refused("NOT_ROOT", format!("{user} is not root on {host}, and sudo asks for a password"))
                .next(format!(
                    "log in as root, or let {user} become root without a password for the time being: \
                     a line `{user} ALL=(root) NOPASSWD: ALL` in /etc/sudoers.d"
                )));
        }
    }
    Ok(())
}

/// Looks at the host.
///
/// # Errors
/// [`Failure`].
pub async fn probe(session: &Session) -> Result<Found, Failure> {
    let facts = Facts::parse(&session.run(Script::PROBE, &[], Payload::Nothing).await?);
    let host = session.destination();
    let unfit = |what: String| Failure::refused("UNFIT_HOST", what);
    let systemd: Option<u32> = facts.get("systemd").and_then(|version| version.parse().ok());
    match systemd {
        Some(version) if version >= OLDEST_SYSTEMD => {}
        Some(version) => {
            return Err(unfit(format!("{host} has systemd {version}; at least {OLDEST_SYSTEMD} is needed")));
        }
        None => {
            return Err(unfit(format!("{host} was not started by systemd, which is to run the service"))
                .next("start backhauld by other means there, then `backhaul proxy add`"));
        }
    }
    if !facts.has("tool", "sha256sum") {
        return Err(unfit(format!("{host} has no sha256sum, with which copies are checked")));
    }
    let mut found = Found { facts, mark: None, config: None, token: None, bad_token: None };
    if let Some(text) = found.read(session, paths::MARK).await? {
        found.mark = Some(Mark::parse(&text).map_err(|why| unfit(format!("cannot work on {host}: {why}")))?);
    }
    found.config = found.read(session, paths::CONFIG).await?;
    match found.read(session, paths::TOKEN).await {
        Ok(Some(text)) => match client::Token::new(&text) {
            Ok(token) => found.token = Some(token),
            Err(why) => found.bad_token = Some(why),
        },
        Ok(None) => {}
        // What its owner cannot read is not the daemon's, but what somebody has put in its place.
        Err(SshError::Script { said, .. }) => found.bad_token = Some(format!("its owner cannot read it: {said}")),
        Err(error) => return Err(error.into()),
    }
    Ok(found)
}

impl Found {
    async fn read(&self, session: &Session, path: &str) -> Result<Option<String>, SshError> {
        if !self.exists(path) {
            return Ok(None);
        }
        session.run(Script::READ, &[path], Payload::Nothing).await.map(Some)
    }

    /// Whether one of [`paths`] is there.
    pub fn exists(&self, path: &str) -> bool {
        self.facts.has("exists", path)
    }

    /// SHA-256 of a file that is there.
    pub fn sum(&self, path: &str) -> Option<&str> {
        self.facts.get(&format!("sum:{path}"))
    }

    /// Whether something is so.
    pub fn is(&self, key: &str) -> bool {
        self.facts.get(key) == Some("yes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_lines_with_an_equals_sign() {
        let facts = Facts::parse("arch=x86_64\nnoise\ntool=dpkg\ntool=rpm\nempty=\nversion:/a=b=c\n");
        assert_eq!(facts.get("arch"), Some("x86_64"));
        assert!(facts.has("tool", "rpm") && !facts.has("tool", "noise"));
        assert_eq!((facts.get("empty"), facts.get("version:/a")), (None, Some("b=c")));
    }

    #[test]
    fn a_mark_reads_back_what_it_says() {
        for form in [Form::Program, Form::Package, Form::Found] {
            for made_account in [true, false] {
                let mark = Mark { form, made_account };
                assert_eq!(Mark::parse(&mark.text()), Ok(mark));
            }
        }
        Mark::parse("version=2\nprogram=program\n").unwrap_err();
    }
}
