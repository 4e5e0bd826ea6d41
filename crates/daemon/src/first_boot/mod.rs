//! An appliance's guest at every boot: takes what its deployer has told it through XenStore, and tells back which
//! certificate it answers with. Without keys nothing changes, and a second time changes nothing either.
//!
//! Keys stand below `vm-data`; secrets are removed once they are kept:
//!
//! | key | beside XO's | what becomes of it |
//! | --- | --- | --- |
//! | `backhaul/name`, `/site`, `/id` | | the same keys of the configuration |
//! | `backhaul/listen`, `/port` | | `listen` |
//! | `backhaul/issuer-key` | | one or several, with spaces between them: added to `license.issuer_keys` |
//! | `backhaul/upgrade-key` | | the same: added to `upgrade.keys` |
//! | `backhaul/token` | `xo-proxy-authenticationToken` | `token` in the state folder; removed |
//! | `backhaul/http-proxy` | `xoa-updater-proxy-url` | `http_proxy` of the configuration; removed |
//! | `backhaul/address`, `/gateway`, `/dns` | `ip`, `netmask`, `gateway`, `dns` | `etc/systemd/network/10-backhaul.network` |
//! | `backhaul/login-password`, `/login-key` | `system-account-xoa-password` | the technician's account; removed |
//! | | `xoa-updater-channel`, `xoa-updater-credentials` | removed |
//! | `backhaul/fingerprint`, `/ready` | | written by [`report`]; those of the boot before are removed |

mod login;
mod settings;
mod xenstore;

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use api::AddressSpec;

use crate::config::{Config, ConfigError};
use crate::daemon::StartError;
use crate::files::write_private;
use crate::maintenance;
use settings::{FINGERPRINT, KEYS, READY, Settings};
pub use xenstore::{Folder, Programs, XenStore, XenStoreError};

/// The configuration, below the root.
pub const CONFIG: &str = "etc/backhaul/backhauld.toml";
/// The state of a new configuration, below the root.
const STATE: &str = "var/lib/backhaul";
const NETWORK: &str = "etc/systemd/network/10-backhaul.network";
const HEADER: &str = "# Kept by `backhauld first-boot` from what the VM was told through XenStore.\n";
/// How long the daemon may take to answer before nothing is reported.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is tried meanwhile.
const PAUSE: Duration = Duration::from_millis(200);

/// Why a guest cannot take its configuration, or report.
#[derive(Debug, thiserror::Error)]
pub enum FirstBootError {
    /// XenStore.
    #[error(transparent)]
    XenStore(#[from] XenStoreError),
    /// A file.
    #[error("cannot {what} {}", path.display())]
    File {
        /// `read` or `write`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The configuration that is there is no TOML. What is wrong is not quoted: it may be a secret.
    #[error("{} is no TOML; correct it, or remove it to have it made anew", .0.display())]
    NoToml(PathBuf),
    /// The configuration cannot be written down.
    #[error("cannot write the configuration as TOML")]
    Toml(#[source] toml::ser::Error),
    /// The configuration is no good.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The certificate is no good.
    #[error(transparent)]
    Certificate(#[from] StartError),
    /// There is none.
    #[error("the daemon answers, and has made no certificate")]
    NoCertificate,
    /// The system refuses threads or timers.
    #[error("cannot ask the daemon for its certificate")]
    Runtime(#[source] std::io::Error),
    /// The daemon does not come up.
    #[error("the daemon does not answer on port {port} after {} seconds; see its log", PATIENCE.as_secs())]
    Silent {
        /// The port.
        port: u16,
        /// Cause.
        source: std::io::Error,
    },
}

/// Takes what is told through XenStore, and writes it below `root`; broken values are logged and left aside.
///
/// # Errors
/// [`FirstBootError`]; what could not be kept is still in XenStore then, and the next boot tries again.
pub fn first_boot(root: &Path, xenstore: &dyn XenStore) -> Result<(), FirstBootError> {
    let keys = xenstore.read(&KEYS)?;
    if keys.is_empty() {
        tracing::info!("nothing is told through XenStore: nothing changes");
        return Ok(());
    }
    let root = &std::path::absolute(root).map_err(|source| FirstBootError::File { what: "find", path: root.into(), source })?;
    let mut settings = Settings::read(&keys);
    for warning in settings.warnings.drain(..) {
        tracing::warn!("{warning}");
    }
    // What this guest itself has told before is nothing that it is told.
    if keys.keys().any(|key| ![FINGERPRINT, READY].contains(key)) {
        configure(root, &settings)?;
        connect(root, settings.address.as_ref())?;
    }
    for login in &settings.login {
        if root != Path::new("/") {
            tracing::info!("the technician's login is left aside: {} is not the root of a machine", root.display());
        } else if let Err(warning) = login::apply(login) {
            tracing::warn!("{warning}");
        }
    }
    for key in &settings.consumed {
        xenstore.remove(key)?;
    }
    tracing::info!(consumed = settings.consumed.len(), "took what is told through XenStore");
    Ok(())
}

/// The configuration and the token. Only what is told changes.
fn configure(root: &Path, settings: &Settings) -> Result<(), FirstBootError> {
    let path = root.join(CONFIG);
    let old = read(&path)?;
    let before: toml::Table = old.as_deref().unwrap_or_default().parse().map_err(|_| FirstBootError::NoToml(path.clone()))?;
    let mut config = before.clone();
    let mut set = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            config.insert(key.to_owned(), value.into());
        }
    };
    set("name", settings.name.clone());
    set("site", settings.site.clone());
    set("id", settings.id.clone());
    set("listen", settings.listen.map(|address| address.to_string()));
    set("http_proxy", settings.http_proxy.as_ref().map(|url| url.expose().to_owned()));
    if settings.site.as_deref() == Some("") {
        config.remove("site");
    }
    let keys = [("license", "issuer_keys", &settings.issuer_keys), ("upgrade", "keys", &settings.upgrade_keys)];
    for (table, list, keys) in keys {
        for key in keys {
            add_key(&mut config, table, list, &key.to_string());
        }
    }
    let fresh = SocketAddr::from((Ipv6Addr::UNSPECIFIED, api::deploy::DEFAULT_PORT)).to_string();
    config.entry("listen").or_insert_with(|| fresh.into());
    let state = root.join(STATE).display().to_string();
    let state = config.entry("state_dir").or_insert_with(|| state.into()).as_str().unwrap_or_default().to_owned();
    if let Some(token) = &settings.token {
        // One that was configured otherwise would hide it.
        config.remove("token");
        config.remove("token_file");
        let folder = path.parent().unwrap_or(root).join(state);
        write_file(&folder.join("token"), &format!("{}\n", token.expose()))?;
    }
    if config != before {
        let text = toml::to_string(&config).map_err(FirstBootError::Toml)?;
        write_file(&path, &format!("{HEADER}{text}"))?;
    }
    Ok(())
}

/// Adds a key to a list of the configuration: those that a person has put there stay.
fn add_key(config: &mut toml::Table, table: &str, list: &str, key: &str) {
    let table = config.entry(table).or_insert_with(|| toml::Table::new().into());
    // What is something else altogether is said when the configuration is read.
    let Some(table) = table.as_table_mut() else { return };
    let list = table.entry(list).or_insert_with(|| toml::value::Array::new().into());
    if let Some(list) = list.as_array_mut()
        && !list.iter().any(|known| known.as_str() == Some(key))
    {
        list.push(key.into());
    }
}

/// The network. Where no address is told, the one from the network, unless it was told before.
fn connect(root: &Path, address: Option<&AddressSpec>) -> Result<(), FirstBootError> {
    use std::os::unix::fs::PermissionsExt;
    let path = root.join(NETWORK);
    let old = read(&path)?;
    if address.is_none() && old.is_some() {
        return Ok(());
    }
    let text = network_file(address.unwrap_or(&AddressSpec::Dhcp));
    if old.as_deref() != Some(text.as_str()) {
        write_file(&path, &text)?;
        // The network's daemon runs as a user of its own.
        let readable = std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644));
        readable.map_err(|source| FirstBootError::File { what: "make readable", path, source })?;
    }
    Ok(())
}

fn network_file(address: &AddressSpec) -> String {
    // The first interface, by the names that Xen's driver has had.
    let mut text = format!("{HEADER}[Match]\nName=enX0 eth0\n\n[Network]\n");
    match address {
        AddressSpec::Dhcp => text.push_str("DHCP=yes\n"),
        AddressSpec::Static { network, gateway, dns } => {
            text.push_str(&format!("DHCP=no\nIPv6AcceptRA=no\nAddress={network}\n"));
            text.extend(gateway.iter().map(|gateway| format!("Gateway={gateway}\n")));
            text.extend(dns.iter().map(|server| format!("DNS={server}\n")));
        }
    }
    text
}

/// The root of the system that a state folder belongs to: the one it was configured below, or the machine's.
pub(crate) fn root_of(state: &Path) -> PathBuf {
    let above = state.ends_with(STATE).then(|| state.ancestors().nth(Path::new(STATE).iter().count())).flatten();
    above.unwrap_or(Path::new("/")).to_owned()
}

/// Tells the deployer which certificate the daemon answers with and on which port, once it answers.
///
/// # Errors
/// [`FirstBootError`], also when the daemon does not come up in time.
pub fn report(root: &Path, xenstore: &dyn XenStore) -> Result<(), FirstBootError> {
    let config = Config::load(&root.join(CONFIG))?;
    let port = config.listen.port();
    let deadline = Instant::now() + PATIENCE;
    while let Err(source) = answers(config.listen) {
        if Instant::now() >= deadline {
            return Err(FirstBootError::Silent { port, source });
        }
        #[expect(clippy::disallowed_methods, reason = "the pause between two tries; this process has no runtime to block")]
        std::thread::sleep(PAUSE);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(FirstBootError::Runtime)?;
    // A renewed certificate may stand in the place of the configured one: the running daemon's counts.
    let fingerprint = runtime.block_on(maintenance::fingerprint(&config))?.ok_or(FirstBootError::NoCertificate)?;
    // Ready comes last: whoever sees it finds the fingerprint.
    xenstore.write(FINGERPRINT, &fingerprint.to_string())?;
    xenstore.write(READY, &port.to_string())?;
    Ok(())
}

/// Whether somebody listens there.
fn answers(listen: SocketAddr) -> std::io::Result<()> {
    let loopback: &[IpAddr] = match listen.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => &[IpAddr::V4(Ipv4Addr::LOCALHOST)],
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => &[IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::LOCALHOST)],
        one => &[one],
    };
    let addresses: Vec<_> = loopback.iter().map(|ip| SocketAddr::new(*ip, listen.port())).collect();
    TcpStream::connect(addresses.as_slice()).map(drop)
}

fn read(path: &Path) -> Result<Option<String>, FirstBootError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FirstBootError::File { what: "read", path: path.to_owned(), source }),
    }
}

/// A file that only its owner can read, with its folder.
fn write_file(path: &Path, text: &str) -> Result<(), FirstBootError> {
    let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    made.and_then(|()| write_private(path, text.as_bytes())).map_err(|source| FirstBootError::File {
        what: "write",
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
