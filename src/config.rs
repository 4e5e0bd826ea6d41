//! The console's configuration folder: which proxies there are, and how the console is to look.
//!
//! | file | holds | when it is broken |
//! | --- | --- | --- |
//! | `proxies.toml` | name, URL, token and pinned certificate of each proxy; mode 0600 | no proxies, and the reason is said |
//! | `console.toml` | `theme`, `keymap`, `ascii`, `read_only` | defaults, and the reason is said |
//!
//! Parsing is strict: a misspelt key is an error with its place. `proxies.toml` holds secrets, so it is refused when others
//! can read it, is only ever replaced as a whole, and is not written over while it cannot be understood.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

pub use client::Token;
use serde::{Deserialize, Serialize};
use tls::Fingerprint;
use toml::Spanned;
use url::Url;

/// A proxy of the fleet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// What it is called here, unique.
    pub name: String,
    /// `https://host[:port]`.
    pub url: Url,
    /// What proves who we are.
    pub token: Token,
    /// The certificate it must show.
    pub fingerprint: Fingerprint,
}

impl Proxy {
    /// A proxy as its deployer says how to reach it.
    ///
    /// # Errors
    /// What of it cannot be used, in words.
    pub fn claimed(credentials: &api::Credentials) -> Result<Self, String> {
        let wrong = |what: &str, why: String| format!("{what} that is none: {why}");
        check_name(&credentials.name).map_err(|why| wrong("a name", why))?;
        Ok(Self {
            name: credentials.name.clone(),
            url: check_url(&credentials.url).map_err(|why| wrong("an address", why))?,
            token: Token::new(&credentials.token).map_err(|why| wrong("a token", why))?,
            fingerprint: credentials
                .fingerprint
                .parse()
                .map_err(|error: tls::ParseFingerprintError| wrong("a fingerprint", error.to_string()))?,
        })
    }

    /// Its address, as people write it.
    pub fn address(&self) -> String {
        self.url.as_str().trim_end_matches('/').to_owned()
    }

    /// Whether both are ways to one proxy: the certificate is the same, which no two proxies share, or else the address and
    /// one of name and token. Neither of these tells alone: an address can go to another, and a token be given to all.
    pub fn same(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
            || (self.address() == other.address() && (self.name == other.name || self.token == other.token))
    }

    /// Where the entry of a proxy stands, whatever of it has changed meanwhile. The certificate counts most.
    pub fn position(entries: &[Self], proxy: &Self) -> Option<usize> {
        let pinned = entries.iter().position(|entry| entry.fingerprint == proxy.fingerprint);
        pinned.or_else(|| entries.iter().position(|entry| entry.same(proxy)))
    }

    /// A client for it. Connects when called.
    ///
    /// # Errors
    /// The address or token cannot be used at all.
    pub fn client(&self) -> Result<client::Client, client::CallError> {
        client::Client::new(&self.url, &self.token, self.fingerprint)
    }
}

/// How the console is to look and behave.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Console {
    /// Name of a built-in theme, or path of one.
    pub theme: Option<String>,
    /// Path of a key map laid over the default one; relative to the folder.
    pub keymap: Option<PathBuf>,
    /// Seven-bit glyphs only; none: decided by the locale.
    pub ascii: Option<bool>,
    /// Refuse everything that changes anything.
    #[serde(default)]
    pub read_only: bool,
}

/// A configuration folder.
#[derive(Debug)]
pub struct Config {
    dir: PathBuf,
    /// The proxies in the order of the file, or why they are not known.
    pub proxies: Result<Vec<Proxy>, ConfigError>,
    /// How the console is to look; the defaults where its file is broken.
    pub console: Console,
    /// Why the defaults are used.
    pub console_problem: Option<ConfigError>,
}

/// A configuration that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No place for it is known.
    #[error("no home directory is known to keep the configuration in; name a folder with --config DIR")]
    NoHome,
    /// A file or the folder cannot be used.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Something at a place of a file is wrong.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Counted from 1, in characters.
        column: usize,
        /// What was found and what was expected.
        message: String,
    },
    /// Others can read the tokens.
    #[error("{} holds tokens and other users can read it (mode {mode:04o}); run: chmod 600 {}", path.display(), path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A name is taken.
    #[error("there is already a proxy {name:?}; remove it first, or choose another name")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// A name is unknown.
    #[error("there is no proxy {name:?} in the configuration")]
    NoSuchProxy {
        /// The name.
        name: String,
    },
    /// The new text cannot be made. A fault of this program.
    #[error("the configuration cannot be written as TOML: {0}")]
    Serialize(#[from] toml::ser::Error),
}

impl ConfigError {
    /// The error as everything else tells errors.
    pub fn report(&self) -> api::ErrorReport {
        let code = match self {
            Self::NameTaken { .. } => "NAME_TAKEN",
            Self::NoSuchProxy { .. } => "NO_SUCH_PROXY",
            _ => "CONFIG",
        };
        let report = api::ErrorReport::new(code, self.to_string());
        match self {
            Self::NameTaken { .. } => {
                report.with_next("`backhaul proxy remove` takes that one out of the configuration, and changes nothing on it")
            }
            Self::NoSuchProxy { .. } => report.with_next("backhaul proxy list"),
            _ => report,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProxiesFile {
    #[serde(default)]
    proxy: Vec<RawProxy>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProxy {
    name: Spanned<String>,
    url: Spanned<String>,
    token: Spanned<String>,
    fingerprint: Spanned<String>,
}

#[derive(Serialize)]
struct NewFile<'a> {
    proxy: Vec<NewProxy<'a>>,
}

#[derive(Serialize)]
struct NewProxy<'a> {
    name: &'a str,
    url: &'a str,
    token: &'a str,
    fingerprint: String,
}

impl Config {
    /// The folder used when none is named.
    ///
    /// # Errors
    /// [`ConfigError::NoHome`].
    pub fn default_dir() -> Result<PathBuf, ConfigError> {
        let dirs = directories::ProjectDirs::from("", "", "backhaul").ok_or(ConfigError::NoHome)?;
        Ok(dirs.config_dir().to_owned())
    }

    /// Reads a folder; files that are not there count as empty, and what is broken is told in the fields.
    pub fn load(dir: &Path) -> Self {
        let (console, console_problem) = match load_console(&dir.join("console.toml")) {
            Ok(console) => (console, None),
            Err(problem) => (Console::default(), Some(problem)),
        };
        let console = Console { keymap: console.keymap.map(|path| dir.join(path)), ..console };
        Self { dir: dir.to_owned(), proxies: load_proxies(&dir.join("proxies.toml")), console, console_problem }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Adds a proxy and writes the file.
    ///
    /// # Errors
    /// [`ConfigError::NameTaken`], [`ConfigError::File`], and whatever is wrong with the present file.
    pub fn add_proxy(dir: &Path, proxy: Proxy) -> Result<(), ConfigError> {
        change_proxies(dir, |proxies| {
            if proxies.iter().any(|known| known.name == proxy.name) {
                return Err(ConfigError::NameTaken { name: proxy.name.clone() });
            }
            proxies.push(proxy);
            Ok(())
        })
    }

    /// Takes in how a proxy is reached: into its own entry, or a new one. The entry as it stands then, with its name.
    /// `known`: an entry that is sure to be this proxy's.
    ///
    /// # Errors
    /// [`ConfigError::NameTaken`] by another proxy, [`ConfigError::File`], and whatever is wrong with the present file.
    pub fn adopt(dir: &Path, proxy: Proxy, known: Option<&Proxy>) -> Result<Proxy, ConfigError> {
        change_proxies(dir, |proxies| {
            if let Some(at) = Proxy::position(proxies, known.unwrap_or(&proxy)) {
                proxies[at] = Proxy { name: proxies[at].name.clone(), ..proxy };
                return Ok(proxies[at].clone());
            }
            if proxies.iter().any(|other| other.name == proxy.name) {
                return Err(ConfigError::NameTaken { name: proxy.name });
            }
            proxies.push(proxy.clone());
            Ok(proxy)
        })
    }

    /// Changes the entry of a proxy, as it stands in the file now, and writes that; the entry as it stands then.
    ///
    /// # Errors
    /// [`ConfigError::NoSuchProxy`], [`ConfigError::File`], and whatever is wrong with the present file.
    pub fn change_proxy(dir: &Path, known: &Proxy, change: impl FnOnce(&mut Proxy)) -> Result<Proxy, ConfigError> {
        change_proxies(dir, |proxies| {
            let at = Proxy::position(proxies, known).ok_or_else(|| ConfigError::NoSuchProxy { name: known.name.clone() })?;
            change(&mut proxies[at]);
            Ok(proxies[at].clone())
        })
    }

    /// Removes the entries that are a proxy's, whatever they are called, and writes the file; their names.
    ///
    /// # Errors
    /// [`ConfigError::File`], and whatever is wrong with the present file.
    pub fn drop_proxy(dir: &Path, is: impl Fn(&Proxy) -> bool) -> Result<Vec<String>, ConfigError> {
        change_proxies(dir, |proxies| {
            let dropped = proxies.extract_if(.., |proxy| is(proxy)).map(|proxy| proxy.name);
            Ok(dropped.collect())
        })
    }

    /// Calls a proxy otherwise and writes the file.
    ///
    /// # Errors
    /// [`ConfigError::NoSuchProxy`], [`ConfigError::NameTaken`], [`ConfigError::File`], and whatever is wrong with the present
    /// file.
    pub fn rename_proxy(dir: &Path, name: &str, new: &str) -> Result<(), ConfigError> {
        change_proxies(dir, |proxies| {
            if name != new && proxies.iter().any(|known| known.name == new) {
                return Err(ConfigError::NameTaken { name: new.to_owned() });
            }
            let known = proxies.iter_mut().find(|known| known.name == name);
            known.ok_or_else(|| ConfigError::NoSuchProxy { name: name.to_owned() })?.name = new.to_owned();
            Ok(())
        })
    }

    /// Removes a proxy and writes the file.
    ///
    /// # Errors
    /// [`ConfigError::NoSuchProxy`], [`ConfigError::File`], and whatever is wrong with the present file.
    pub fn remove_proxy(dir: &Path, name: &str) -> Result<(), ConfigError> {
        change_proxies(dir, |proxies| {
            let position = proxies.iter().position(|proxy| proxy.name == name);
            proxies.remove(position.ok_or_else(|| ConfigError::NoSuchProxy { name: name.to_owned() })?);
            Ok(())
        })
    }

    /// Replaces all proxies: for a laboratory, which owns its folder.
    ///
    /// # Errors
    /// [`ConfigError::File`].
    pub fn set_proxies(dir: &Path, proxies: &[Proxy]) -> Result<(), ConfigError> {
        make_private_dir(dir)?;
        write_proxies(dir, proxies)
    }
}

/// Checks the name of a proxy.
///
/// # Errors
/// What is expected, in words.
pub fn check_name(name: &str) -> Result<(), String> {
    if name.trim().is_empty() || name.trim() != name || name.chars().count() > 200 || name.chars().any(char::is_control) {
        return Err("a name has 1 to 200 characters, no control characters, and no space at its ends".into());
    }
    Ok(())
}

/// Checks the address of a proxy.
///
/// # Errors
/// What is expected, in words.
pub fn check_url(text: &str) -> Result<Url, String> {
    let expected = || "expected https://HOST or https://HOST:PORT, without user, path or query".to_owned();
    let url = Url::parse(text).map_err(|_| expected())?;
    let bare = url.username().is_empty()
        && url.password().is_none()
        && url.path() == "/"
        && url.query().is_none()
        && url.fragment().is_none();
    if url.scheme() == "https" && url.host().is_some() && bare { Ok(url) } else { Err(expected()) }
}

fn load_console(path: &Path) -> Result<Console, ConfigError> {
    match fs::read_to_string(path) {
        Ok(text) => toml::from_str(&text).map_err(|error| wrong_toml(path, &text, &error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Console::default()),
        Err(source) => Err(ConfigError::File { action: "read", path: path.to_owned(), source }),
    }
}

fn load_proxies(path: &Path) -> Result<Vec<Proxy>, ConfigError> {
    let failed = |action| move |source| ConfigError::File { action, path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("read")(error)),
    };
    let mode = file.metadata().map_err(failed("examine"))?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(ConfigError::Exposed { path: path.to_owned(), mode });
    }
    let text = io::read_to_string(file).map_err(failed("read"))?;
    let raw: ProxiesFile = toml::from_str(&text).map_err(|error| wrong_toml(path, &text, &error))?;
    let mut proxies: Vec<Proxy> = Vec::with_capacity(raw.proxy.len());
    for RawProxy { name, url, token, fingerprint } in raw.proxy {
        check_name(name.get_ref()).map_err(|message| wrong(path, &text, name.span().start, message))?;
        if proxies.iter().any(|known| known.name == *name.get_ref()) {
            return Err(wrong(path, &text, name.span().start, format!("the name {:?} stands twice", name.get_ref())));
        }
        let checked = check_url(url.get_ref()).map_err(|message| wrong(path, &text, url.span().start, message))?;
        let secret = Token::new(token.get_ref()).map_err(|message| wrong(path, &text, token.span().start, message))?;
        let pinned = fingerprint
            .get_ref()
            .parse()
            .map_err(|error: tls::ParseFingerprintError| wrong(path, &text, fingerprint.span().start, error.to_string()))?;
        proxies.push(Proxy { name: name.into_inner(), url: checked, token: secret, fingerprint: pinned });
    }
    Ok(proxies)
}

/// Reads, changes and writes the proxies under a lock, so that two commands at once lose nothing.
fn change_proxies<T>(dir: &Path, change: impl FnOnce(&mut Vec<Proxy>) -> Result<T, ConfigError>) -> Result<T, ConfigError> {
    make_private_dir(dir)?;
    let lock_path = dir.join("proxies.lock");
    let failed = |action| {
        let path = lock_path.clone();
        move |source| ConfigError::File { action, path, source }
    };
    let lock = File::options().write(true).create(true).truncate(false).mode(0o600).open(&lock_path).map_err(failed("open"))?;
    lock.lock().map_err(failed("lock"))?;
    let mut proxies = load_proxies(&dir.join("proxies.toml"))?;
    let done = change(&mut proxies)?;
    write_proxies(dir, &proxies)?;
    Ok(done)
}

fn make_private_dir(dir: &Path) -> Result<(), ConfigError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| ConfigError::File {
        action: "create",
        path: dir.to_owned(),
        source,
    })
}

fn write_proxies(dir: &Path, proxies: &[Proxy]) -> Result<(), ConfigError> {
    let entries = proxies.iter().map(|Proxy { name, url, token, fingerprint }| NewProxy {
        name,
        url: url.as_str().trim_end_matches('/'),
        token: token.secret(),
        fingerprint: fingerprint.to_string(),
    });
    let text = toml::to_string(&NewFile { proxy: entries.collect() })?;
    write_private(&dir.join("proxies.toml"), &text).map_err(|source| ConfigError::File {
        action: "write",
        path: dir.join("proxies.toml"),
        source,
    })
}

/// Replaces a file as a whole, durably, readable by its owner only.
///
/// # Errors
/// Whatever the file system says; the old file is then still there.
pub fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let fresh = path.with_added_extension("new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

fn wrong_toml(path: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    wrong(path, text, error.span().map_or(0, |span| span.start), error.message().to_owned())
}

fn wrong(path: &Path, text: &str, offset: usize, message: String) -> ConfigError {
    let before = &text[..text.floor_char_boundary(offset)];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    ConfigError::Wrong {
        path: path.to_owned(),
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(name: &str) -> Proxy {
        Proxy {
            name: name.into(),
            url: check_url("https://127.0.0.1:8443").unwrap(),
            token: Token::new(" secret-token-0123 \n").unwrap(),
            fingerprint: "AB".repeat(32).parse().unwrap(),
        }
    }

    #[test]
    fn what_is_added_is_there_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("deep/config");
        for name in ["paris", "a \"b\" c", "東京 🗼", "../x"] {
            Config::add_proxy(&dir, proxy(name)).unwrap();
        }
        Config::remove_proxy(&dir, "paris").unwrap();
        Config::rename_proxy(&dir, "../x", "lyon").unwrap();
        assert!(matches!(Config::rename_proxy(&dir, "lyon", "東京 🗼"), Err(ConfigError::NameTaken { .. })));
        assert!(matches!(Config::rename_proxy(&dir, "paris", "x"), Err(ConfigError::NoSuchProxy { .. })));
        Config::rename_proxy(&dir, "lyon", "../x").unwrap();
        let proxies = Config::load(&dir).proxies.unwrap();
        assert_eq!(proxies, [proxy("a \"b\" c"), proxy("東京 🗼"), proxy("../x")]);
        assert_eq!(fs::metadata(dir.join("proxies.toml")).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(Config::add_proxy(&dir, proxy("../x")), Err(ConfigError::NameTaken { .. })));
        assert!(matches!(Config::remove_proxy(&dir, "paris"), Err(ConfigError::NoSuchProxy { .. })));
    }

    #[test]
    fn a_proxy_keeps_its_entry_and_never_takes_that_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let (token, pin) = (|text| Token::new(text).unwrap(), |text: &str| text.repeat(32).parse().unwrap());
        let lyon = Proxy { token: token("lyons"), ..proxy("lyon") };
        Config::add_proxy(dir, lyon.clone()).unwrap();
        // Another of the name: with nothing in common but that.
        let url = check_url("https://127.0.0.1:9443").unwrap();
        let other = Proxy { url, token: token("others"), fingerprint: pin("CD"), ..lyon.clone() };
        assert!(matches!(Config::adopt(dir, other.clone(), None), Err(ConfigError::NameTaken { .. })));
        assert_eq!(Config::load(dir).proxies.unwrap(), std::slice::from_ref(&lyon));
        // The same under another name, with another token; then with another certificate at its address; then known for sure.
        let renamed = Proxy { name: "né".into(), token: token("next"), ..lyon.clone() };
        let kept = Config::adopt(dir, renamed, None).unwrap();
        assert_eq!(kept, Proxy { token: token("next"), ..lyon.clone() });
        let renewed = Proxy { fingerprint: pin("EF"), token: token("third"), ..lyon.clone() };
        assert_eq!(Config::adopt(dir, renewed.clone(), None).unwrap(), renewed);
        assert_eq!(Config::adopt(dir, other.clone(), Some(&renewed)).unwrap(), other);
        // What two change at once is changed by both.
        Config::change_proxy(dir, &other, |entry| entry.token = token("fourth")).unwrap();
        let both = Config::change_proxy(dir, &other, |entry| entry.fingerprint = pin("01")).unwrap();
        assert_eq!((both.token.secret(), both.fingerprint), ("fourth", pin("01")));
        assert!(matches!(
            Config::change_proxy(dir, &Proxy { name: "x".into(), ..lyon.clone() }, |_| {}),
            Err(ConfigError::NoSuchProxy { .. })
        ));
        // Dropped by what it is, not by its name.
        assert_eq!(Config::drop_proxy(dir, |entry| entry.fingerprint == lyon.fingerprint).unwrap(), [""; 0]);
        assert_eq!(Config::drop_proxy(dir, |entry| entry.same(&both)).unwrap(), ["lyon"]);
        assert!(Config::load(dir).proxies.unwrap().is_empty());
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        Config::add_proxy(dir.path(), proxy("p")).unwrap();
        let path = dir.path().join("proxies.toml");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Config::load(dir.path()).proxies.unwrap_err().to_string();
        assert!(error.contains("mode 0640") && error.contains(&format!("chmod 600 {}", path.display())), "{error}");
    }

    #[test]
    fn mistakes_are_named_with_their_place_and_never_written_over() {
        let dir = tempfile::tempdir().unwrap();
        Config::add_proxy(dir.path(), proxy("p")).unwrap();
        let path = dir.path().join("proxies.toml");
        let good = fs::read_to_string(&path).unwrap();
        let cases = [
            (good.replace("name", "nmae"), "2:1: unknown field `nmae`"),
            (good.replace("https://", "http://"), "3:7: expected https://HOST"),
            (good.replace("8443", "8443/path?x"), "3:7: expected https://HOST"),
            (good.replace("AB:AB", "xx"), "5:15: a fingerprint is 64 hexadecimal digits"),
            (good.replace("secret-", "secret "), "4:9: a token is printable ASCII"),
            (good.replace("\"p\"", "\"\""), "2:8: a name has 1 to 200 characters"),
            (format!("{good}{good}"), "7:8: the name \"p\" stands twice"),
            (format!("é = = 1\n{good}"), "1:5: extra `=`"),
        ];
        for (text, expected) in cases {
            fs::write(&path, &text).unwrap();
            let error = Config::load(dir.path()).proxies.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}\n{text}");
            assert!(!error.contains("0123"), "a token in an error: {error}");
            Config::add_proxy(dir.path(), proxy("q")).unwrap_err();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn a_broken_console_file_means_defaults_and_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("console.toml"), "read_only = true\nkeymap = \"keys.toml\"\n").unwrap();
        let config = Config::load(dir.path());
        assert_eq!((config.console.read_only, config.console.keymap), (true, Some(dir.path().join("keys.toml"))));
        fs::write(dir.path().join("console.toml"), "read_only = true\nteme = \"x\"\n").unwrap();
        let config = Config::load(dir.path());
        assert_eq!(config.console, Console::default());
        let problem = config.console_problem.unwrap().to_string();
        assert!(problem.contains("console.toml:2:1: unknown field `teme`"), "{problem}");
    }

    #[test]
    fn no_secret_in_a_debug_print() {
        assert!(!format!("{:?}", proxy("p")).contains("secret"));
    }
}
