//! What the keys say, each checked by itself: a broken one is told and counts as absent.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use api::AddressSpec;
use engine::plan::Secret;
use signed::{KeyError, PublicKey};

use crate::config::{Token, check_http_proxy, check_plain};

pub(super) const TOKEN: &str = "backhaul/token";
pub(super) const XO_TOKEN: &str = "xo-proxy-authenticationToken";
pub(super) const HTTP_PROXY: &str = "backhaul/http-proxy";
pub(super) const XO_HTTP_PROXY: &str = "xoa-updater-proxy-url";
pub(super) const LOGIN_PASSWORD: &str = "backhaul/login-password";
pub(super) const LOGIN_KEY: &str = "backhaul/login-key";
pub(super) const XO_PASSWORD: &str = "system-account-xoa-password";
pub(super) const FINGERPRINT: &str = "backhaul/fingerprint";
pub(super) const READY: &str = "backhaul/ready";
/// XO's that mean nothing here. XO waits for the channel to disappear.
const XO_UPDATER: [&str; 2] = ["xoa-updater-channel", "xoa-updater-credentials"];

/// All keys that are read.
pub(super) const KEYS: [&str; 25] = [
    "backhaul/name",
    "backhaul/site",
    "backhaul/id",
    "backhaul/port",
    "backhaul/listen",
    "backhaul/address",
    "backhaul/gateway",
    "backhaul/dns",
    "backhaul/issuer-key",
    "backhaul/upgrade-key",
    "ip",
    "netmask",
    "gateway",
    "dns",
    TOKEN,
    XO_TOKEN,
    HTTP_PROXY,
    XO_HTTP_PROXY,
    LOGIN_PASSWORD,
    LOGIN_KEY,
    XO_PASSWORD,
    XO_UPDATER[0],
    XO_UPDATER[1],
    FINGERPRINT,
    READY,
];

/// What a guest is told. None: nothing, so what it has stays.
#[derive(Debug, Default)]
pub(super) struct Settings {
    pub(super) name: Option<String>,
    /// Empty: no site.
    pub(super) site: Option<String>,
    pub(super) id: Option<String>,
    pub(super) listen: Option<SocketAddr>,
    pub(super) token: Option<Secret>,
    pub(super) http_proxy: Option<Secret>,
    /// Whose licences are asked for.
    pub(super) issuer_keys: Vec<PublicKey>,
    /// Whose upgrades and images are taken.
    pub(super) upgrade_keys: Vec<PublicKey>,
    pub(super) address: Option<AddressSpec>,
    pub(super) login: Vec<Login>,
    /// Keys to remove once the rest is kept.
    pub(super) consumed: Vec<&'static str>,
    /// What was wrong, in words without secrets.
    pub(super) warnings: Vec<String>,
}

/// A change of the technician's account.
#[derive(Debug)]
pub(super) enum Login {
    /// A password's crypt hash.
    Hash(Secret),
    /// A password.
    Password(Secret),
    /// A line of `authorized_keys`.
    Key(String),
    /// Nobody can log in.
    Off,
}

impl Settings {
    /// Reads the keys.
    pub(super) fn read(keys: &BTreeMap<&'static str, String>) -> Self {
        let mut settings = Self::default();
        let get = |key: &str| keys.get(key).map(|value| value.trim()).filter(|value| !value.is_empty());
        settings.name = get("backhaul/name").and_then(|name| settings.check("backhaul/name", plain(name)));
        settings.site = keys.get("backhaul/site").and_then(|site| match site.trim() {
            "" => Some(String::new()),
            site => settings.check("backhaul/site", plain(site)),
        });
        settings.id = get("backhaul/id").and_then(|id| {
            let id = uuid::Uuid::parse_str(id).map(|id| id.to_string());
            settings.check("backhaul/id", id.map_err(|_| "expected a UUID".to_owned()))
        });
        settings.listen = settings.listen(get("backhaul/listen"), get("backhaul/port"));
        settings.token = settings.either(keys, TOKEN, XO_TOKEN, |text| Token::new(text.to_owned()).map(drop));
        settings.http_proxy = settings.either(keys, HTTP_PROXY, XO_HTTP_PROXY, check_http_proxy);
        settings.issuer_keys = settings.keys("backhaul/issuer-key", get("backhaul/issuer-key"));
        settings.upgrade_keys = settings.keys("backhaul/upgrade-key", get("backhaul/upgrade-key"));
        settings.address = settings.address(&get);
        settings.logins(&get);
        let gone = [XO_UPDATER[0], XO_UPDATER[1], FINGERPRINT, READY];
        settings.consumed.extend(gone.into_iter().filter(|key| keys.contains_key(key)));
        settings
    }

    fn check<T>(&mut self, key: &str, value: Result<T, String>) -> Option<T> {
        value.map_err(|why| self.warnings.push(format!("the XenStore key vm-data/{key} is left aside: {why}"))).ok()
    }

    /// Public keys, with spaces between them.
    fn keys(&mut self, key: &str, text: Option<&str>) -> Vec<PublicKey> {
        let words = text.unwrap_or_default().split_whitespace();
        words.filter_map(|word| self.check(key, word.parse().map_err(|error: KeyError| error.to_string()))).collect()
    }

    fn listen(&mut self, address: Option<&str>, port: Option<&str>) -> Option<SocketAddr> {
        if address.is_none() && port.is_none() {
            return None;
        }
        let address = address.and_then(|text| {
            let parsed = text.trim_matches(['[', ']']).parse::<IpAddr>();
            self.check("backhaul/listen", parsed.map_err(|_| format!("{text:?} is no IP address")))
        });
        let port = port.and_then(|text| {
            let parsed = text.parse::<u16>().ok().filter(|port| *port > 0);
            self.check("backhaul/port", parsed.ok_or_else(|| format!("{text:?} is no TCP port")))
        });
        Some(SocketAddr::new(address.unwrap_or(Ipv6Addr::UNSPECIFIED.into()), port.unwrap_or(api::deploy::DEFAULT_PORT)))
    }

    /// A secret under our key as it is, or under XO's as a JSON string; ours counts if both are good.
    fn either(
        &mut self,
        keys: &BTreeMap<&'static str, String>,
        ours: &'static str,
        xo: &'static str,
        check: impl Fn(&str) -> Result<(), &'static str>,
    ) -> Option<Secret> {
        let mut good = |key: &'static str, text: Result<String, String>| {
            let text = text.and_then(|text| check(&text).map(|()| text).map_err(str::to_owned));
            let secret = self.check(key, text).map(Secret::new);
            self.consumed.extend(secret.as_ref().map(|_| key));
            secret
        };
        let text = |key: &str| keys.get(key).map(|value| value.trim()).filter(|value| !value.is_empty());
        let first = text(ours).and_then(|text| good(ours, Ok(text.to_owned())));
        // The decoder's message would quote the secret.
        let decoded = |text: &str| serde_json::from_str::<String>(text).map_err(|_| "expected a JSON string".to_owned());
        let second = text(xo).and_then(|text| good(xo, decoded(text)));
        first.or(second)
    }

    fn address<'a>(&mut self, get: &impl Fn(&str) -> Option<&'a str>) -> Option<AddressSpec> {
        let text = |key: &str| get(key).unwrap_or("");
        let (key, ip, netmask, gateway, dns) = match (get("backhaul/address"), get("ip")) {
            (Some(address), _) => ("backhaul/address", address, "", text("backhaul/gateway"), text("backhaul/dns")),
            (None, Some(ip)) => ("ip", ip, text("netmask"), text("gateway"), text("dns")),
            (None, None) => return None,
        };
        if ip.eq_ignore_ascii_case("dhcp") {
            return Some(AddressSpec::Dhcp);
        }
        let parsed = AddressSpec::parse(ip, netmask, gateway, dns).map_err(|faults| {
            let faults: Vec<_> = faults.iter().map(|fault| format!("{}: {fault}", fault.field)).collect();
            format!("{}; the address is taken from the network (DHCP)", faults.join("; "))
        });
        Some(self.check(key, parsed).unwrap_or_default())
    }

    fn logins<'a>(&mut self, get: &impl Fn(&str) -> Option<&'a str>) {
        let password = get(LOGIN_PASSWORD).map(|text| (LOGIN_PASSWORD, login_hash(text)));
        let key = get(LOGIN_KEY).map(|text| (LOGIN_KEY, login_key(text)));
        let xo = get(XO_PASSWORD).map(|text| {
            let fits = !text.chars().any(char::is_control);
            let login = fits.then(|| Login::Password(Secret::new(text)));
            (XO_PASSWORD, login.ok_or_else(|| "expected a text without control characters".to_owned()))
        });
        for (key, login) in [xo, password, key].into_iter().flatten() {
            if let Some(login) = self.check(key, login) {
                self.login.push(login);
                self.consumed.push(key);
            }
        }
        // Whatever else was told, off is off.
        if self.login.iter().any(|login| matches!(login, Login::Off)) {
            self.login = vec![Login::Off];
        }
    }
}

fn plain(text: &str) -> Result<String, String> {
    check_plain(text).map(|()| text.to_owned()).map_err(str::to_owned)
}

fn login_hash(text: &str) -> Result<Login, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "./$=,".contains(c);
    match text {
        "off" => Ok(Login::Off),
        text if (text.starts_with("$6$") || text.starts_with("$y$")) && text.chars().all(allowed) => {
            Ok(Login::Hash(Secret::new(text)))
        }
        _ => Err("expected a crypt hash that begins with $6$ or $y$, or off".to_owned()),
    }
}

fn login_key(text: &str) -> Result<Login, String> {
    if text == "off" {
        return Ok(Login::Off);
    }
    let mut words = text.split(' ');
    let kind = words.next().is_some_and(|kind| ["ssh-", "ecdsa-", "sk-"].iter().any(|start| kind.starts_with(start)));
    let base64 = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
    let key = words.next().is_some_and(|key| key.len() > 16 && key.chars().all(base64));
    if kind && key && !text.chars().any(char::is_control) {
        return Ok(Login::Key(text.to_owned()));
    }
    Err("expected one line of an OpenSSH public key, or off".to_owned())
}
