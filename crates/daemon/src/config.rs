//! The configuration file: strict TOML, so that a misspelt key is an error with its place and not a silent default.
//!
//! | key | meaning | default |
//! | --- | --- | --- |
//! | `name` | what this proxy is called | the host's name |
//! | `site` | where it stands | none |
//! | `id` | the UUID it is to have, if its state has none yet | made once |
//! | `listen` | `ADDRESS:PORT`; port 0 takes a free one | `[::]:443` |
//! | `state_dir` | folder for the database, its key and the certificate | required |
//! | `token` or `token_file` | what clients prove themselves with; at most one of them | made once, `state_dir/token` |
//! | `tls.certificate`, `tls.key` | PEM files | made once, kept in `state_dir` |
//! | `http_proxy` | `http://[USER:PASSWORD@]HOST[:PORT]` of the proxy for downloads; makes this file one with a secret | none |
//! | `metrics.token` | whether `/metrics` asks for the token (cookie, or `Authorization: Bearer`) | `false` |
//! | `license.issuer_keys` | public keys of those who issue licences; with one, jobs run only under a licence | none |
//! | `upgrade.keys` | public keys of those who make upgrades and images; none: no upgrade is taken | none |
//! | `upgrade.probation_seconds` | how long a new program may take to show that it is good | 45 |
//! | `deploy.image` | the appliance's XVA that new proxies are made of unless another is named | none |
//! | `limits.connections` | client connections at the same time | 512 |
//! | `limits.runs` | workers at the same time; further runs wait queued | 8 |
//! | `limits.block_memory_mib` | disk content a worker may hold in memory at once, MiB | 64 |
//!
//! Relative paths count from the folder of the file. A file that holds a secret (the token, the private key, this file with
//! a token or an HTTP proxy in it) is refused when anybody but its owner can read it.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use engine::plan::Secret;
use serde::Deserialize;
use signed::PublicKey;
use toml::Spanned;

use crate::launch;
use crate::secrets::exposed;

/// A configuration that has been read and checked.
#[derive(Clone)]
pub struct Config {
    /// Name of the proxy.
    pub name: String,
    /// Site, if told.
    pub site: Option<String>,
    /// UUID for a state that has none yet, lower case with hyphens.
    pub id: Option<String>,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Folder of the state.
    pub state_dir: PathBuf,
    /// The token of the clients. A secret; none: the one in the state folder, made at the first start.
    pub token: Option<Token>,
    /// Certificate and key, when not made by ourselves.
    pub tls: Option<TlsFiles>,
    /// Whether `/metrics` asks for the token.
    pub metrics_token: bool,
    /// URL of the proxy for downloads; may hold credentials. A secret.
    pub http_proxy: Option<Secret>,
    /// Bounds.
    pub limits: Limits,
    /// Public keys of those who issue licences; none: no licence is asked for.
    pub issuer_keys: Vec<PublicKey>,
    /// Public keys of those who make upgrades and images.
    pub upgrade_keys: Vec<PublicKey>,
    /// The appliance that new proxies are made of unless another is named.
    pub image: Option<PathBuf>,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("name", &self.name)
            .field("listen", &self.listen)
            .field("state_dir", &self.state_dir)
            .finish_non_exhaustive()
    }
}

/// The token of the clients; never printed.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// A token that can travel as the value of a cookie (RFC 6265, cookie-octet).
    ///
    /// # Errors
    /// What was expected, in words.
    pub fn new(text: String) -> Result<Self, &'static str> {
        let fits = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | ',' | ';' | '\\');
        if text.is_empty() || !text.chars().all(fits) {
            return Err("expected printable ASCII without spaces, quotes, commas, semicolons or backslashes");
        }
        if text.len() < 16 {
            tracing::warn!("the token has fewer than 16 characters; it can be guessed");
        }
        Ok(Self(text))
    }

    /// The text to compare with.
    pub fn secret(&self) -> &str {
        &self.0
    }
}

/// Certificate and private key, PEM files.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// Certificate chain, leaf first.
    pub certificate: PathBuf,
    /// Private key.
    pub key: PathBuf,
}

/// Bounds that keep one busy day from becoming an outage.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Client connections at the same time.
    pub connections: usize,
    /// Workers at the same time.
    pub runs: usize,
    /// Disk content a worker may hold in memory at once, bytes.
    pub block_memory: u64,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// Something at a place of the file is wrong.
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
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: Option<Spanned<String>>,
    site: Option<Spanned<String>>,
    id: Option<Spanned<String>>,
    listen: Option<Spanned<String>>,
    state_dir: Spanned<PathBuf>,
    token: Option<Spanned<String>>,
    token_file: Option<Spanned<PathBuf>>,
    tls: Option<RawTls>,
    http_proxy: Option<Spanned<String>>,
    #[serde(default)]
    metrics: RawMetrics,
    #[serde(default)]
    limits: RawLimits,
    #[serde(default)]
    license: RawLicense,
    #[serde(default)]
    upgrade: RawUpgrade,
    #[serde(default)]
    deploy: RawDeploy,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawUpgrade {
    #[serde(default)]
    keys: Vec<Spanned<String>>,
    probation_seconds: Option<Spanned<i64>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawLicense {
    #[serde(default)]
    issuer_keys: Vec<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawDeploy {
    image: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTls {
    certificate: PathBuf,
    key: Spanned<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawMetrics {
    #[serde(default)]
    token: bool,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    connections: Option<Spanned<i64>>,
    runs: Option<Spanned<i64>>,
    block_memory_mib: Option<Spanned<i64>>,
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// The token's file when none is configured.
    pub fn token_path(&self) -> PathBuf {
        self.state_dir.join("token")
    }

    /// Checks a text as if it stood in the file `path`.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let source = Source { path, text };
        let raw: Raw = toml::from_str(text).map_err(|error| {
            let start = text.floor_char_boundary(error.span().map_or(0, |span| span.start));
            source.wrong(start, source.with_key(start, error.message()))
        })?;
        let base = path.parent().unwrap_or_else(|| Path::new("."));

        let name = match raw.name {
            Some(name) => source.plain(name, "name")?,
            None => host_name(),
        };
        let site = raw.site.map(|site| source.plain(site, "site")).transpose()?;
        let id = raw.id.map(|id| source.id(&id)).transpose()?;
        let http_proxy = raw.http_proxy.map(|url| source.http_proxy(url)).transpose()?;
        let listen = match raw.listen {
            Some(listen) => listen.get_ref().parse().map_err(|_| {
                let text =
                    format!("listen = {:?}: expected ADDRESS:PORT, e.g. \"0.0.0.0:443\" or \"[::]:443\"", listen.get_ref());
                source.wrong(listen.span().start, text)
            })?,
            None => SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 443)),
        };
        if raw.state_dir.get_ref().as_os_str().is_empty() {
            return Err(source.wrong(raw.state_dir.span().start, "state_dir: expected the path of a folder, found nothing"));
        }
        let token = source.token(base, raw.token, raw.token_file)?;
        let tls = raw.tls.map(|tls| {
            let (start, key) = (tls.key.span().start, base.join(tls.key.get_ref()));
            source.private(start, "tls.key", &key)?;
            Ok(TlsFiles { certificate: base.join(tls.certificate), key })
        });
        let limits = Limits {
            connections: source.count(raw.limits.connections, "limits.connections", 512, 65_536)? as usize,
            runs: source.count(raw.limits.runs, "limits.runs", 8, 256)? as usize,
            block_memory: source.count(raw.limits.block_memory_mib, "limits.block_memory_mib", 64, 1 << 20)? << 20,
        };
        let issuer_keys = raw.license.issuer_keys.iter().map(|key| source.public_key("license.issuer_keys", key));
        let issuer_keys = issuer_keys.collect::<Result<_, _>>()?;
        let upgrade_keys = raw.upgrade.keys.iter().map(|key| source.public_key("upgrade.keys", key));
        let upgrade_keys = upgrade_keys.collect::<Result<_, _>>()?;
        // The launcher's, who reads it for itself; here it is only checked.
        let (default, most) = (launch::PROBATION_LIMIT.as_secs(), launch::LONGEST_PROBATION.as_secs());
        source.count(raw.upgrade.probation_seconds, "upgrade.probation_seconds", default, most)?;
        Ok(Self {
            name,
            site,
            id,
            listen,
            state_dir: base.join(raw.state_dir.into_inner()),
            token,
            tls: tls.transpose()?,
            metrics_token: raw.metrics.token,
            http_proxy,
            limits,
            issuer_keys,
            upgrade_keys,
            image: raw.deploy.image.map(|image| base.join(image)),
        })
    }
}

/// The text being read, to tell where in it something is wrong.
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn public_key(&self, key: &str, text: &Spanned<String>) -> Result<PublicKey, ConfigError> {
        text.get_ref().parse().map_err(|error| self.wrong(text.span().start, format!("{key}: {error}")))
    }

    fn wrong(&self, offset: usize, message: impl Into<String>) -> ConfigError {
        let before = &self.text[..self.text.floor_char_boundary(offset)];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        ConfigError::Wrong {
            path: self.path.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message: message.into(),
        }
    }

    /// Puts the key of the line before a message about its value, which does not say which one it is.
    fn with_key(&self, offset: usize, message: &str) -> String {
        let start = self.text[..offset].rfind('\n').map_or(0, |newline| newline + 1);
        match self.text[start..].split_once('=') {
            Some((key, _)) if message.starts_with("invalid ") && start + key.len() < offset => {
                format!("{}: {message}", key.trim())
            }
            _ => message.to_owned(),
        }
    }

    fn plain(&self, text: Spanned<String>, key: &str) -> Result<String, ConfigError> {
        let start = text.span().start;
        let text = text.into_inner();
        check_plain(&text).map_err(|expected| self.wrong(start, format!("{key}: {expected}")))?;
        Ok(text)
    }

    fn id(&self, id: &Spanned<String>) -> Result<String, ConfigError> {
        let wrong = |_| {
            let message = format!("id = {:?}: expected a UUID, e.g. \"6fa459ea-ee8a-4ca4-894e-db77e160355e\"", id.get_ref());
            self.wrong(id.span().start, message)
        };
        Ok(uuid::Uuid::parse_str(id.get_ref()).map_err(wrong)?.to_string())
    }

    /// What is wrong with it is said without quoting it: it may hold a password.
    fn http_proxy(&self, url: Spanned<String>) -> Result<Secret, ConfigError> {
        let start = url.span().start;
        self.private(start, "http_proxy", self.path)?;
        check_http_proxy(url.get_ref()).map_err(|expected| self.wrong(start, format!("http_proxy: {expected}")))?;
        Ok(Secret::new(url.into_inner()))
    }

    fn count(&self, value: Option<Spanned<i64>>, key: &str, default: u64, most: u64) -> Result<u64, ConfigError> {
        let Some(value) = value else { return Ok(default) };
        let found = *value.get_ref();
        match u64::try_from(found) {
            Ok(count) if (1..=most).contains(&count) => Ok(count),
            _ => Err(self.wrong(value.span().start, format!("{key} = {found}: expected 1 to {most}"))),
        }
    }

    fn token(
        &self,
        base: &Path,
        inline: Option<Spanned<String>>,
        file: Option<Spanned<PathBuf>>,
    ) -> Result<Option<Token>, ConfigError> {
        let (start, text) = match (inline, file) {
            (Some(token), None) => {
                let start = token.span().start;
                self.private(start, "token", self.path)?;
                (start, token.into_inner())
            }
            (None, Some(file)) => {
                let (start, path) = (file.span().start, base.join(file.get_ref()));
                let text = std::fs::read_to_string(&path)
                    .map_err(|error| self.wrong(start, format!("token_file: cannot read {}: {error}", path.display())))?;
                self.private(start, "token_file", &path)?;
                (start, text.trim_end_matches(['\r', '\n']).to_owned())
            }
            (Some(_), Some(file)) => {
                return Err(self.wrong(file.span().start, "token_file: expected either token or token_file, found both"));
            }
            (None, None) => return Ok(None),
        };
        Token::new(text).map(Some).map_err(|expected| self.wrong(start, format!("token: {expected}")))
    }

    /// Refuses a file with a secret that others than its owner can read.
    fn private(&self, start: usize, key: &str, path: &Path) -> Result<(), ConfigError> {
        match exposed(path) {
            Some(mode) => {
                let path = path.display();
                let message = format!("{key}: others can read {path} (mode {mode:03o}); expected mode 600 (chmod 600 {path})");
                Err(self.wrong(start, message))
            }
            None => Ok(()),
        }
    }
}

/// Whether a text can be the name of a proxy, or of the place where it stands.
///
/// # Errors
/// What was expected, in words.
pub(crate) fn check_plain(text: &str) -> Result<(), &'static str> {
    if text.trim().is_empty() || text.chars().count() > 200 || text.chars().any(char::is_control) {
        return Err("expected 1 to 200 characters without control characters");
    }
    Ok(())
}

/// Whether a URL can be that of an HTTP proxy.
///
/// # Errors
/// What was expected, in words, without the URL.
pub(crate) fn check_http_proxy(url: &str) -> Result<(), &'static str> {
    let proxy = url::Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    proxy.map(drop).ok_or("expected a URL like http://proxy.example:3128")
}

/// The name of this host.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "name = \"p\"\nstate_dir = \"state\"\ntoken = \"0123456789abcdef\"\nlisten = \"127.0.0.1:0\"\n";

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("/etc/backhaul/backhauld.toml"), text)
    }

    #[test]
    fn paths_count_from_the_folder_of_the_file() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.state_dir, Path::new("/etc/backhaul/state"));
        assert_eq!(config.limits.runs, 8);
    }

    #[test]
    fn an_id_and_an_http_proxy_are_taken_as_they_are() {
        let text = format!("{GOOD}id = \"6FA459EA-ee8a-4ca4-894e-db77e160355e\"\nhttp_proxy = \"http://u:p@proxy:3128\"\n");
        let config = parse(&text).unwrap();
        assert_eq!(config.id.unwrap(), "6fa459ea-ee8a-4ca4-894e-db77e160355e");
        assert_eq!(config.http_proxy.unwrap().expose(), "http://u:p@proxy:3128");
        assert!(parse(GOOD).unwrap().id.is_none());
    }

    #[test]
    fn no_secret_in_a_debug_print() {
        assert!(!format!("{:?}", parse(GOOD).unwrap()).contains("0123456789"));
    }

    #[test]
    fn each_mistake_is_named_with_its_place() {
        let cases = [
            ("unknown key", format!("{GOOD}lisen = \"127.0.0.1:0\"\n")),
            ("wrong type", GOOD.replace("\"state\"", "5")),
            ("no address", GOOD.replace("127.0.0.1:0", "localhost")),
            ("both tokens", format!("{GOOD}token_file = \"t\"\n")),
            ("token file missing", GOOD.replace("token = \"0123456789abcdef\"", "token_file = \"/nowhere/at/all\"")),
            ("token with a space", GOOD.replace("0123456789abcdef", "a b")),
            ("no state_dir", GOOD.replace("state_dir", "#")),
            ("broken syntax", format!("{GOOD}é = = 1\n")),
            ("unknown key in a table", format!("{GOOD}[tls]\ncertificate = \"c\"\nkey = \"k\"\nchain = 1\n")),
            ("limit too small", format!("{GOOD}[limits]\nruns = 0\n")),
            ("id that is no UUID", format!("{GOOD}id = \"p1\"\n")),
            ("HTTP proxy that is no URL", format!("{GOOD}http_proxy = \"user:hunter2@proxy\"\n")),
            ("empty name", GOOD.replace("\"p\"", "\"\"")),
        ];
        let said: Vec<String> = cases.iter().map(|(what, text)| format!("{what}: {}", parse(text).unwrap_err())).collect();
        insta::assert_snapshot!(said.join("\n"));
    }

    #[test]
    fn a_file_with_a_secret_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "0123456789abcdef\n").unwrap();
        let text = GOOD.replace("token = \"0123456789abcdef\"", &format!("token_file = {file:?}"));
        let proxy = GOOD.replace("token = \"0123456789abcdef\"", "http_proxy = \"http://u:p@proxy:3128\"");
        let key = format!("{GOOD}[tls]\ncertificate = \"c\"\nkey = {file:?}\n");
        for mode in [0o644, 0o640, 0o604] {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            for refused in [parse(&text), parse(&key), Config::parse(&file, GOOD), Config::parse(&file, &proxy)] {
                let said = refused.unwrap_err().to_string();
                assert!(said.contains("expected mode 600"), "{said}");
            }
        }
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(parse(&text).unwrap().token.unwrap().secret(), "0123456789abcdef");
        assert!(parse(&key).is_ok() && Config::parse(&file, GOOD).is_ok());
        assert!(parse(&GOOD.replace("token", "#")).unwrap().token.is_none());
    }

    #[test]
    fn every_line_of_the_packaged_example_is_understood() {
        let key = signed::SecretKey::generate().unwrap().public().to_string();
        let example = include_str!("../../../packaging/backhauld.toml.example");
        let setting = |line: &str| line.starts_with('[') || line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
        let commented = |line: &'static str| line.strip_prefix("# ").filter(|line| setting(line)).unwrap_or(line);
        let all = example.lines().map(commented).collect::<Vec<_>>().join("\n").replace("backhaul-public-ed25519:…", &key);
        let config = Config::parse(Path::new("/etc/backhaul/backhauld.toml"), &all).unwrap();
        assert!(config.http_proxy.is_some() && config.image.is_some(), "{all}");
        assert_eq!((config.issuer_keys.len(), config.upgrade_keys.len(), config.limits.runs), (1, 1, 8), "{all}");
        Config::parse(Path::new("/etc/backhaul/backhauld.toml"), example).unwrap();
    }
}
