//! What a deployment is going to do: the difference between what is wanted and what a host has. Nothing is touched here.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use packages::{Inspected, Kind, Needs};
use sha2::{Digest as _, Sha256};
use toml::{Table, Value};

use super::answer::Standing;
use super::probe::{Form, Found, Mark, paths};
use crate::commands::failure::Failure;

/// The unit of the packages; a program that comes as a file stands elsewhere.
const UNIT: &str = include_str!("../../../packaging/backhauld.service");
/// Room for the state at first, KiB.
const STATE_ROOM: u64 = 64 << 10;
/// Owner of what only the daemon may read.
const OWN: &str = "backhaul:backhaul";
/// TCP port unless another is wanted.
const PORT: u16 = 443;

/// What the administrator asked for; absent: as it is there, or the default.
#[derive(Default)]
pub struct Wishes {
    /// Name of the proxy.
    pub name: Option<String>,
    /// Site; empty: none.
    pub site: Option<String>,
    /// TCP port.
    pub port: Option<u16>,
    /// HTTP proxy for downloads; may hold a password. Empty: none.
    pub http_proxy: Option<String>,
    /// Whether a proxy whose token nobody here knows gets a new one.
    pub new_token: bool,
}

/// The program, as a file of some kind on this machine.
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// Whether it was named, or is the one beside the running program.
    pub named: bool,
    /// What it is.
    pub inspected: Inspected,
}

impl Source {
    /// Looks into a file.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn open(path: &Path, named: bool) -> Result<Self, Failure> {
        let inspected = packages::inspect(path).map_err(|error| Failure::usage(error.to_string()))?;
        Ok(Self { path: path.to_owned(), named, inspected })
    }

    fn form(&self) -> Form {
        match self.inspected.kind {
            Kind::Program | Kind::Archive { .. } => Form::Program,
            Kind::Deb { .. } | Kind::Rpm { .. } => Form::Package,
        }
    }
}

/// A file's content.
pub enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// This file.
    File(PathBuf),
}

impl Content {
    /// Its SHA-256, hexadecimal.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn sum(&self) -> Result<String, Failure> {
        let mut hash = Sha256::new();
        match self {
            Self::Bytes(bytes) => hash.update(bytes),
            Self::File(path) => {
                let copied = std::fs::File::open(path).and_then(|mut file| std::io::copy(&mut file, &mut Writer(&mut hash)));
                copied.map_err(|error| Failure::file("read", path, &error))?;
            }
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn kib(&self) -> Result<u64, Failure> {
        let bytes = match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File(path) => std::fs::metadata(path).map_err(|error| Failure::file("examine", path, &error))?.len(),
        };
        Ok(bytes.div_ceil(1 << 10))
    }
}

struct Writer<'a>(&'a mut Sha256);

impl std::io::Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// One thing to do.
pub enum Step {
    /// Makes a folder.
    Folder {
        /// Where.
        path: &'static str,
        /// Permissions, octal.
        mode: &'static str,
        /// `user:group`.
        owner: &'static str,
    },
    /// Makes the account.
    Account,
    /// Puts a file, over a former one if there is.
    Put {
        /// What it is, in a word or two.
        what: &'static str,
        /// Where.
        path: &'static str,
        /// Permissions, octal.
        mode: &'static str,
        /// `user:group`.
        owner: &'static str,
        /// Whether there is one now.
        existed: bool,
        /// What.
        content: Content,
    },
    /// Installs a package.
    Package {
        /// `deb` or `rpm`.
        kind: &'static str,
        /// Which version is there now.
        former: Option<String>,
        /// Which version comes.
        version: String,
        /// The file.
        path: PathBuf,
    },
    /// Lets the program check the settings.
    Check,
    /// Starts the service, or starts it again.
    Start {
        /// Whether there is a state, of which a copy is to be made first.
        state: bool,
        /// Whether it runs now.
        active: bool,
        /// Whether it is started with the system now.
        enabled: bool,
    },
}

impl Step {
    /// In words, to follow "cannot".
    pub fn words(&self) -> String {
        match self {
            Self::Folder { path, .. } => format!("make the folder {path}"),
            Self::Account => "make the account backhaul".into(),
            Self::Put { what, path, .. } => format!("put {what} to {path}"),
            Self::Package { version, former: None, .. } => format!("install the package backhaul {version}"),
            Self::Package { version, former: Some(former), .. } => format!("replace the package backhaul {former} by {version}"),
            Self::Check => "check the settings with the program".into(),
            Self::Start { active: true, .. } => "start the service again".into(),
            Self::Start { active: false, .. } => "start the service, now and with the system".into(),
        }
    }
}

/// What is going to be done.
pub struct Plan {
    /// Name of the proxy.
    pub name: String,
    /// Its site.
    pub site: Option<String>,
    /// TCP port.
    pub port: u16,
    /// Where it listens, as seen on its host.
    pub near: SocketAddr,
    /// Whether it listens on another port than consoles know of.
    pub moves: bool,
    /// Whether there is a deployment already, which this changes.
    pub again: bool,
    /// Whether a run that was cut has put what is still to be started.
    pub unfinished: bool,
    /// Whether an earlier run has left something to be cleaned up.
    pub leftovers: bool,
    /// What is to be known before it is agreed to.
    pub notes: Vec<String>,
    /// The token, new or the one that is there. A secret.
    pub token: client::Token,
    /// Where the program stands afterwards.
    pub program: &'static str,
    /// What to do, in order; nothing when the host is as wanted.
    pub steps: Vec<Step>,
}

/// Compares.
///
/// # Errors
/// [`Failure`]: the host will not do, or is somebody else's.
pub fn plan(host: &str, found: &Found, standing: &Standing, wishes: &Wishes, source: &Source) -> Result<Plan, Failure> {
    let form = form(host, found, source)?;
    if let Some(why) = &found.bad_token {
        return Err(Failure::refused("UNFIT_HOST", format!("{} on {host} is no good: {why}", paths::TOKEN))
            .next("remove it there: the same command with --new-token makes a new one"));
    }
    // An account that an earlier deployment has left with its files is ours, too.
    let made_account = !found.is("account") || found.is("account-made");
    let mark = found.mark.unwrap_or(Mark { form, made_account });
    let former = found.config.as_deref().map(|text| settings(host, text)).transpose()?;
    let fallback = found.facts.get("node").unwrap_or("backhaul");
    if let Some(former) = &former {
        unchanged(former, standing, wishes)?;
    }
    let (config, changed) = configure(former, wishes, fallback, found.is("ipv6"));
    let (name, site) = match &standing.status {
        Some(status) => (status.name.clone(), status.site.clone()),
        None => (word(&config, "name").unwrap_or(fallback).to_owned(), word(&config, "site").map(str::to_owned)),
    };
    let port = port_of(&config).unwrap_or(PORT);
    let program = if form == Form::Program { paths::PROGRAM } else { paths::PACKAGED_PROGRAM };

    // After a rotation there is none on the host; then the one that the proxy accepted counts.
    let kept = standing.token.clone().or_else(|| token_of(found));
    let new = kept.is_none();
    let mut notes = Vec::new();
    let token = match kept {
        Some(token) => token,
        None => {
            lost_token(host, found, wishes, &config, &mut notes)?;
            new_token()?
        }
    };
    let mut steps = Vec::new();
    let put = |steps: &mut Vec<Step>, wanted: bool, what, path, mode, owner, content| {
        if wanted {
            let existed = found.exists(path) || found.sum(path).is_some();
            steps.push(Step::Put { what, path, mode, owner, existed, content });
        }
    };
    if !found.exists(paths::SETTINGS) {
        steps.push(Step::Folder { path: paths::SETTINGS, mode: "0755", owner: "root:root" });
    }
    let text = Content::Bytes(mark.text().into_bytes());
    put(&mut steps, found.mark.is_none(), "the mark of this deployment", paths::MARK, "0644", "root:root", text);
    if !found.is("account") {
        // What makes it is also needed to take it back.
        if let Some(tool) = ["useradd", "userdel"].into_iter().find(|tool| !found.facts.has("tool", tool)) {
            return Err(Failure::refused("UNFIT_HOST", format!("{host} has no {tool}, which the account backhaul is made with"))
                .next("make the account there: a system account without password, with a group of its name"));
        }
        steps.push(Step::Account);
    }
    if !found.exists(paths::STATE) {
        steps.push(Step::Folder { path: paths::STATE, mode: "0700", owner: OWN });
    }
    let text = Content::Bytes(format!("{}\n", token.secret()).into_bytes());
    put(&mut steps, new, "a new token", paths::TOKEN, "0600", OWN, text);
    let text =
        toml::to_string(&config).map_err(|error| Failure::failed("CONFIG", format!("cannot write the settings: {error}")))?;
    put(&mut steps, changed, "the settings", paths::CONFIG, "0600", OWN, Content::Bytes(text.into_bytes()));
    let before = steps.len();
    program_steps(host, found, source, form, &mut steps)?;
    // A run that was cut may have put all of it, and not have started it.
    let unfinished = found.is("unfinished");
    if changed || unfinished || steps.len() > before {
        steps.push(Step::Check);
    }
    if form == Form::Program {
        let text = Content::Bytes(UNIT.replace(paths::PACKAGED_PROGRAM, paths::PROGRAM).into_bytes());
        let differs = found.sum(paths::UNIT) != Some(text.sum()?.as_str());
        put(&mut steps, differs, "the unit", paths::UNIT, "0644", "root:root", text);
    }
    let (active, enabled) = (found.is("active"), found.is("enabled"));
    // A mark alone, without anything else to do, needs no restart; a token counts from a start on.
    let state = found.exists(paths::DATABASE);
    if steps.len() > before || changed || new || !active || !enabled {
        steps.push(Step::Start { state, active, enabled });
    }
    if found.facts.has("port", &port.to_string()) && !(active && found.mark.is_some() && former_port(found) == Some(port)) {
        return Err(Failure::refused("PORT_IN_USE", format!("something listens on port {port} of {host} already"))
            .next(format!("`ss -ltnp sport = :{port}` there says what; or choose another port with --port")));
    }
    if !steps.is_empty() {
        let copy = found.facts.get("state-kib").and_then(|kib| kib.parse().ok()).unwrap_or(0);
        room(host, found, "/var/lib", STATE_ROOM + if state { copy } else { 0 })?;
        room(host, found, "/etc", 1 << 10)?;
    }
    // The settings change in nothing but the port: one that was cut on its way to another one has left them.
    let moves = former_port(found) != Some(port) || found.facts.has("former", paths::CONFIG);
    let (again, leftovers) = (found.mark.is_some(), found.facts.get("former").is_some() || unfinished);
    Ok(Plan { name, site, port, near: near(&config), moves, again, unfinished, leftovers, notes, token, program, steps })
}

/// Whether a token may be put over a state that is there: other consoles may know the one that it has.
fn lost_token(host: &str, found: &Found, wishes: &Wishes, config: &Table, notes: &mut Vec<String>) -> Result<(), Failure> {
    let unknown = |text: String| Failure::refused("TOKEN_UNKNOWN", text);
    if config.contains_key("token_file") || config.contains_key("token") {
        return Err(unknown(format!("the token of the proxy on {host} is in the file that its settings name, or in them"))
            .next("`backhaul proxy add` with that token makes it known here; then the same command again"));
    }
    if !found.exists(paths::DATABASE) {
        return Ok(());
    }
    if found.mark.is_some() && !wishes.new_token {
        return Err(unknown(format!("the proxy on {host} has another token than its first, and this console does not know it"))
            .next("use a console that knows it; or --new-token gives it a new one, and all others lose their access"));
    }
    notes.push("the state there gets a new token: consoles that know the former one lose their access".into());
    Ok(())
}

/// How the program comes, or why it must not.
fn form(host: &str, found: &Found, source: &Source) -> Result<Form, Failure> {
    let packaged = found.facts.get(&format!("owner:{}", paths::PACKAGED_PROGRAM));
    let ours = |form| {
        let fits = match (form, source.form()) {
            (Form::Program, Form::Program) => true,
            (Form::Program, _) => false,
            (_, Form::Package) => true,
            // The program beside us is only the default for where there is none.
            (..) => !source.named,
        };
        if fits {
            return Ok(form);
        }
        let (here, there) = if form == Form::Program { ("package", "file") } else { ("file", "package") };
        Err(Failure::usage(format!("{} is a {here}, and the program came to {host} as a {there}", source.path.display()))
            .next(format!("give a {there}, or `backhaul proxy undeploy --ssh {host}` first: its data stays")))
    };
    if let Some(mark) = found.mark {
        return ours(mark.form);
    }
    if found.exists(paths::CONFIG) || found.is("active") {
        let by = packaged.map(|package| format!(" (program of the package {package})")).unwrap_or_default();
        return Err(Failure::refused("FOREIGN_DAEMON", format!("{host} has a backhauld that somebody else set up{by}"))
            .next("get to know it with `backhaul proxy add`, or remove it there first"));
    }
    let unowned = |path: &str| found.sum(path).is_some() && found.facts.get(&format!("owner:{path}")).is_none();
    if let Some(path) = [paths::PROGRAM, paths::PACKAGED_PROGRAM].into_iter().find(|path| unowned(path)) {
        return Err(Failure::refused("FOREIGN_DAEMON", format!("{host} has {path}, and nobody says who put it there"))
            .next("remove it there, or set it up by hand and use `backhaul proxy add`"));
    }
    if packaged.is_some() { ours(Form::Found) } else { Ok(source.form()) }
}

fn program_steps(host: &str, found: &Found, source: &Source, form: Form, steps: &mut Vec<Step>) -> Result<(), Failure> {
    let install = match (form, source.form()) {
        (Form::Program, _) => true,
        // What is installed stays, unless a package is named.
        (_, Form::Package) => true,
        (_, Form::Program | Form::Found) => false,
    };
    if !install {
        return match found.sum(paths::PACKAGED_PROGRAM) {
            Some(_) => Ok(()),
            None => Err(Failure::refused("UNFIT_HOST", format!("the package of the program is gone from {host}"))
                .next("give it with --package FILE")),
        };
    }
    let content = match &source.inspected.kind {
        Kind::Program => Content::File(source.path.clone()),
        Kind::Archive { program } => Content::Bytes(program.clone()),
        Kind::Deb { version } => return package(host, found, source, "deb", "dpkg", version, steps),
        Kind::Rpm { version } => return package(host, found, source, "rpm", "rpm", version, steps),
    };
    if found.sum(paths::PROGRAM) == Some(content.sum()?.as_str()) {
        return Ok(());
    }
    fits(host, found, source)?;
    room(host, found, "/usr/local/bin", content.kib()?)?;
    let existed = found.sum(paths::PROGRAM).is_some();
    steps.push(Step::Put { what: "the program", path: paths::PROGRAM, mode: "0755", owner: "root:root", existed, content });
    Ok(())
}

fn package(
    host: &str,
    found: &Found,
    source: &Source,
    kind: &'static str,
    tool: &str,
    version: &str,
    steps: &mut Vec<Step>,
) -> Result<(), Failure> {
    let former = found.facts.get("package").map(str::to_owned);
    if former.as_deref() == Some(version) && found.is("package-whole") {
        return Ok(());
    }
    if !found.facts.has("tool", tool) {
        return Err(Failure::refused("UNFIT_HOST", format!("{host} has no {tool}, which installs {}", source.path.display()))
            .next("give a package of the other kind, or a program, with --package FILE"));
    }
    fits(host, found, source)?;
    let size = Content::File(source.path.clone()).kib()?;
    room(host, found, "/var/tmp", size)?;
    room(host, found, "/usr/bin", size * 4)?;
    steps.push(Step::Package { kind, former, version: version.to_owned(), path: source.path.clone() });
    Ok(())
}

/// Whether the program can run there at all.
fn fits(host: &str, found: &Found, source: &Source) -> Result<(), Failure> {
    let needs: &Needs = &source.inspected.needs;
    let machine = found.facts.get("arch").unwrap_or("unknown");
    match needs.unmet(machine, found.facts.get("glibc")) {
        None => Ok(()),
        Some(why) => Err(Failure::refused("UNFIT_HOST", format!("{} cannot run on {host}: {why}", source.path.display()))
            .next("give one that fits with --package FILE; `cargo xtask package --static` makes one that needs no C library")),
    }
}

fn room(host: &str, found: &Found, folder: &str, kib: u64) -> Result<(), Failure> {
    let unfit = |why: String| Failure::refused("UNFIT_HOST", format!("{folder} on {host} {why}"));
    match found.facts.get(&format!("free:{folder}")) {
        Some("readonly") => {
            Err(unfit("cannot be written to".into()).next("a system with a read-only /usr or /etc is not supported"))
        }
        Some(free) if free.parse::<u64>().is_ok_and(|free| free < kib) => Err(unfit(format!(
            "has {} MiB free; {} MiB are needed",
            free.parse::<u64>().unwrap_or(0) >> 10,
            kib.div_ceil(1 << 10)
        ))),
        _ => Ok(()),
    }
}

fn settings(host: &str, text: &str) -> Result<Table, Failure> {
    // The text may hold a password, so what the parser quotes is not shown.
    toml::from_str(text).map_err(|_| {
        Failure::failed("CONFIG", format!("{} on {host} is no TOML", paths::CONFIG))
            .next("`backhauld --check-config` there says where; mend it, or undeploy and deploy anew: the data stays")
    })
}

fn listen_of(config: &Table) -> Option<SocketAddr> {
    config.get("listen")?.as_str()?.parse().ok()
}

/// Where one listens, as seen on its host.
fn near(config: &Table) -> SocketAddr {
    let listen = listen_of(config).unwrap_or_else(|| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT));
    // What listens on all addresses of IPv6 does so on those of IPv4, too.
    let ip = if listen.ip().is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { listen.ip() };
    SocketAddr::new(ip, listen.port())
}

/// Where the one that is there listens, as seen on its host.
pub fn near_of(found: &Found) -> Option<SocketAddr> {
    Some(near(&toml::from_str(found.config.as_deref()?).ok()?))
}

/// The token that the host has: of the settings, or else of its file.
pub fn token_of(found: &Found) -> Option<client::Token> {
    let config: Table = found.config.as_deref().and_then(|text| toml::from_str(text).ok()).unwrap_or_default();
    match (word(&config, "token"), config.contains_key("token_file")) {
        (Some(token), _) => client::Token::new(token).ok(),
        (None, true) => None,
        (None, false) => found.token.clone(),
    }
}

fn port_of(config: &Table) -> Option<u16> {
    Some(listen_of(config)?.port())
}

/// The name in the settings that are there.
pub fn name_of(found: &Found) -> Option<String> {
    let config: Table = toml::from_str(found.config.as_deref()?).ok()?;
    Some(config.get("name")?.as_str()?.to_owned())
}

/// The port in the settings that are there.
pub fn former_port(found: &Found) -> Option<u16> {
    port_of(&toml::from_str(found.config.as_deref()?).ok()?).or(Some(PORT))
}

fn word<'a>(config: &'a Table, key: &str) -> Option<&'a str> {
    config.get(key).and_then(Value::as_str)
}

/// Name, site and HTTP proxy of a proxy that is there are changed while it runs, and kept in its state; its file is then only
/// the beginning. Saying once more what is so is no change.
fn unchanged(former: &Table, standing: &Standing, wishes: &Wishes) -> Result<(), Failure> {
    let status = standing.status.as_ref();
    let live = |key: &str| match (status, key) {
        (Some(status), "name") => Some(status.name.as_str()),
        (Some(status), "site") => status.site.as_deref(),
        _ => word(former, key),
    };
    let wished = [("name", &wishes.name), ("site", &wishes.site), ("http_proxy", &wishes.http_proxy)];
    for (key, wish) in wished {
        let Some(wish) = wish.as_deref() else { continue };
        if wish != live(key).unwrap_or_default() && wish != word(former, key).unwrap_or_default() {
            let (what, option) = (key.replace('_', " "), key.replace('_', "-"));
            let name = live("name").unwrap_or_default();
            return Err(Failure::usage(format!("the proxy {name:?} is there already, with another {what}"))
                .next(format!("`backhaul proxy set` changes it; leave --{option} out here")));
        }
    }
    Ok(())
}

/// The settings wanted, and whether they differ from the former ones. What was added by hand stays.
fn configure(former: Option<Table>, wishes: &Wishes, fallback: &str, ipv6: bool) -> (Table, bool) {
    let mut config = former.clone().unwrap_or_default();
    let mut set = |key: &str, value: &str| drop(config.insert(key.to_owned(), Value::String(value.to_owned())));
    let any = if ipv6 { "[::]" } else { "0.0.0.0" };
    match &former {
        None => {
            set("name", wishes.name.as_deref().unwrap_or(fallback));
            for (key, wish) in [("site", &wishes.site), ("http_proxy", &wishes.http_proxy)] {
                if let Some(wish) = wish.as_deref().filter(|wish| !wish.is_empty()) {
                    set(key, wish);
                }
            }
            set("listen", &format!("{any}:{}", wishes.port.unwrap_or(PORT)));
            set("state_dir", paths::STATE);
        }
        Some(former) => {
            if let Some(port) = wishes.port.filter(|port| port_of(former).unwrap_or(PORT) != *port) {
                // It listens where somebody made it listen, on another port.
                let listen = listen_of(former).map(|listen| SocketAddr::new(listen.ip(), port).to_string());
                set("listen", &listen.unwrap_or_else(|| format!("{any}:{port}")));
            }
        }
    }
    let changed = former.as_ref() != Some(&config);
    (config, changed)
}

/// 244 random bits, in characters that fit into a cookie.
fn new_token() -> Result<client::Token, Failure> {
    let text = format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
    client::Token::new(&text).map_err(|why| Failure::failed("TOKEN", why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_port_is_opened_where_the_former_one_was() {
        let moved = |former: &str| {
            let wishes = Wishes { port: Some(8443), ..Wishes::default() };
            let (config, changed) = configure(Some(toml::from_str(former).unwrap()), &wishes, "p", true);
            (word(&config, "listen").unwrap().to_owned(), changed)
        };
        assert_eq!(moved("listen = \"192.0.2.7:443\""), ("192.0.2.7:8443".into(), true));
        assert_eq!(moved("listen = \"[fd00::7]:443\""), ("[fd00::7]:8443".into(), true));
        assert_eq!(moved("listen = \"[::]:8443\""), ("[::]:8443".into(), false));
        assert_eq!(moved("name = \"p\""), ("[::]:8443".into(), true));
    }
}
