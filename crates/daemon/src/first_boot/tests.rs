use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use tls::SelfSigned;

use super::*;

const ID: &str = "6fa459ea-ee8a-4ca4-894e-db77e160355e";
const TOKEN: &str = "0123456789abcdef0123";
const HASH: &str = "$6$salt$abcdefghijklmnop";

/// A machine that has been told something.
struct Guest {
    dir: tempfile::TempDir,
}

impl Guest {
    fn told(keys: &[(&str, &str)]) -> Self {
        let guest = Self { dir: tempfile::tempdir().unwrap() };
        guest.tell(keys);
        guest
    }

    fn tell(&self, keys: &[(&str, &str)]) {
        for (key, value) in keys {
            self.xenstore().write(key, value).unwrap();
        }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn xenstore(&self) -> Folder {
        Folder(self.dir.path().join("vm-data"))
    }

    fn boot(&self) {
        first_boot(&self.root(), &self.xenstore()).unwrap();
    }

    fn config(&self) -> Config {
        Config::load(&self.root().join(CONFIG)).unwrap()
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.root().join(path)).unwrap()
    }

    /// Keys that are left.
    fn left(&self) -> Vec<&'static str> {
        self.xenstore().read(&KEYS).unwrap().into_keys().collect()
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn what_our_deployer_tells_is_taken_and_its_secrets_are_consumed() {
    let guest = Guest::told(&[
        ("backhaul/name", "paris-2"),
        ("backhaul/site", "Paris \"centre\""),
        ("backhaul/id", ID),
        ("backhaul/token", TOKEN),
        ("backhaul/port", "8443"),
        ("backhaul/listen", "127.10.0.7"),
        ("backhaul/http-proxy", "http://user:secret@proxy:3128"),
        ("backhaul/address", "2001:db8::5/64"),
        ("backhaul/gateway", "fe80::1"),
        ("backhaul/dns", "2001:db8::53,9.9.9.9"),
        ("backhaul/login-password", HASH),
        ("backhaul/ready", "443"),
    ]);
    guest.boot();
    let config = guest.config();
    assert_eq!((config.name.as_str(), config.site.as_deref()), ("paris-2", Some("Paris \"centre\"")));
    assert_eq!((config.id.as_deref(), config.listen), (Some(ID), "127.10.0.7:8443".parse().unwrap()));
    assert_eq!(config.http_proxy.as_ref().unwrap().expose(), "http://user:secret@proxy:3128");
    assert_eq!(config.state_dir, guest.root().join("var/lib/backhaul"));
    assert_eq!(guest.read("var/lib/backhaul/token"), format!("{TOKEN}\n"));
    assert_eq!(mode(&config.token_path()), 0o600);
    assert_eq!(mode(&guest.root().join(CONFIG)), 0o600);
    let network = guest.read(NETWORK);
    let expected = "Address=2001:db8::5/64\nGateway=fe80::1\nDNS=2001:db8::53\nDNS=9.9.9.9\n";
    assert!(network.ends_with(expected), "{network}");
    assert_eq!(mode(&guest.root().join(NETWORK)), 0o644);
    let kept = ["address", "dns", "gateway", "id", "listen", "name", "port", "site"].map(|key| format!("backhaul/{key}"));
    assert_eq!(guest.left(), kept);
}

#[test]
fn what_xo_tells_is_taken_as_xo_encodes_it() {
    let guest = Guest::told(&[
        ("xo-proxy-authenticationToken", "\"0123456789abcdef-_xo\""),
        ("xoa-updater-proxy-url", "\"http://proxy:3128\""),
        ("xoa-updater-channel", "\"xo-proxy-appliance-latest\""),
        ("xoa-updater-credentials", "{\"email\":\"a@b\",\"registrationToken\":\"t\"}"),
        ("system-account-xoa-password", "pass"),
        ("ip", "10.0.0.5"),
        ("netmask", "255.255.255.0"),
        ("gateway", "10.0.0.1"),
        ("dns", "10.0.0.2"),
    ]);
    guest.boot();
    assert_eq!(guest.read("var/lib/backhaul/token"), "0123456789abcdef-_xo\n");
    assert_eq!(guest.config().http_proxy.unwrap().expose(), "http://proxy:3128");
    assert_eq!(guest.config().listen.port(), 443);
    let network = guest.read(NETWORK);
    assert!(network.ends_with("Address=10.0.0.5/24\nGateway=10.0.0.1\nDNS=10.0.0.2\n"), "{network}");
    assert_eq!(guest.left(), ["dns", "gateway", "ip", "netmask"]);
}

#[test]
fn broken_values_are_left_aside_and_the_rest_is_taken() {
    let guest = Guest::told(&[
        ("backhaul/name", "good"),
        ("backhaul/id", "no-uuid"),
        ("backhaul/port", "70000"),
        ("backhaul/listen", "localhost"),
        ("backhaul/http-proxy", "user:secret@proxy"),
        ("backhaul/token", "with a space in it"),
        ("xo-proxy-authenticationToken", "no JSON string"),
        ("backhaul/address", "10.0.0.5/24"),
        ("backhaul/gateway", "10.9.9.9"),
        ("backhaul/login-password", "plain"),
        ("backhaul/login-key", "command=\"x\" ssh-ed25519 AAAAC3NzaC1lZDI1NTE5"),
    ]);
    guest.boot();
    let config = guest.config();
    assert_eq!((config.name.as_str(), config.id.as_deref(), config.listen), ("good", None, "[::]:443".parse().unwrap()));
    assert!(config.http_proxy.is_none() && !config.token_path().exists());
    assert!(guest.read(NETWORK).ends_with("DHCP=yes\n"));
    let keys = guest.xenstore().read(&KEYS).unwrap();
    assert_eq!(keys.len(), 11);
    let warnings = Settings::read(&keys).warnings;
    assert_eq!(warnings.len(), 9, "{warnings:?}");
    let said = warnings.join("\n");
    let secrets = ["secret", "space in", "no JSON", "plain", "AAAA"];
    assert!(!secrets.iter().any(|secret| said.contains(secret)), "{said}");
}

#[test]
fn the_keys_of_issuers_and_of_those_who_upgrade_are_added_to_those_that_are_there() {
    let [issuer, upgrader, later] = [(); 3].map(|()| signed::SecretKey::generate().unwrap());
    let (first, second) = (issuer.public().to_string(), upgrader.public().to_string());
    let guest = Guest::told(&[("backhaul/issuer-key", &first), ("backhaul/upgrade-key", &second)]);
    guest.boot();
    let config = guest.config();
    assert_eq!((config.issuer_keys, config.upgrade_keys), (vec![issuer.public()], vec![upgrader.public()]));
    let before = guest.read(CONFIG);
    guest.boot();
    assert_eq!(guest.read(CONFIG), before);
    guest.tell(&[("backhaul/upgrade-key", &later.public().to_string())]);
    guest.boot();
    assert_eq!(guest.config().upgrade_keys, [upgrader.public(), later.public()]);
    // Several at once, of which one is broken.
    guest.tell(&[("backhaul/issuer-key", &format!("{first} x {}", later.public()))]);
    guest.boot();
    assert_eq!(guest.config().issuer_keys, [issuer.public(), later.public()]);
    // The other half of a pair is no key to be told, and is not repeated.
    guest.tell(&[("backhaul/issuer-key", &later.expose()), ("backhaul/upgrade-key", "x")]);
    guest.boot();
    assert_eq!(guest.config().issuer_keys, [issuer.public(), later.public()]);
    let warnings = Settings::read(&guest.xenstore().read(&KEYS).unwrap()).warnings;
    assert!(warnings.len() == 2 && !warnings.concat().contains(&later.expose()), "{warnings:?}");
}

#[test]
fn without_keys_nothing_changes() {
    let guest = Guest::told(&[]);
    guest.boot();
    assert!(!guest.root().exists());
    guest.tell(&[("something/else", "x"), ("backhaul/ready", "443")]);
    guest.boot();
    assert!(!guest.root().exists());
}

#[test]
fn a_later_boot_keeps_what_was_consumed_and_takes_what_is_new() {
    let guest = Guest::told(&[
        ("backhaul/name", "a"),
        ("backhaul/site", "s"),
        ("backhaul/token", TOKEN),
        ("backhaul/http-proxy", "http://proxy:3128"),
        ("backhaul/address", "10.0.0.5/24"),
    ]);
    guest.boot();
    let files = || [CONFIG, NETWORK, "var/lib/backhaul/token"].map(|path| (path, guest.read(path)));
    let before: BTreeMap<_, _> = files().into();
    guest.boot();
    assert_eq!(before, files().into());
    guest.tell(&[("backhaul/name", "b"), ("backhaul/site", ""), ("backhaul/address", "dhcp")]);
    guest.boot();
    let config = guest.config();
    assert_eq!((config.name.as_str(), config.site), ("b", None));
    assert_eq!(config.http_proxy.unwrap().expose(), "http://proxy:3128");
    assert_eq!(guest.read("var/lib/backhaul/token"), format!("{TOKEN}\n"));
    assert!(guest.read(NETWORK).ends_with("DHCP=yes\n"));
}

#[test]
fn a_configured_token_and_what_else_stands_there_give_way_only_where_told() {
    let guest = Guest::told(&[("backhaul/token", TOKEN)]);
    let text = "state_dir = \"state\"\ntoken = \"another-token-of-old\"\n[limits]\nruns = 3\n";
    write_file(&guest.root().join(CONFIG), text).unwrap();
    guest.boot();
    let config = guest.config();
    assert!(config.token.is_none());
    assert_eq!(config.limits.runs, 3);
    assert_eq!(guest.read("etc/backhaul/state/token"), format!("{TOKEN}\n"));
    // One that cannot be read is not overwritten.
    guest.tell(&[("backhaul/token", TOKEN)]);
    write_file(&guest.root().join(CONFIG), "token = secret").unwrap();
    let refused = first_boot(&guest.root(), &guest.xenstore()).unwrap_err();
    assert!(matches!(refused, FirstBootError::NoToml(_)), "{refused}");
    assert_eq!(guest.left(), ["backhaul/token"]);
}

#[test]
fn off_is_off_whatever_else_is_told() {
    let keys = BTreeMap::from([
        ("backhaul/login-password", "off".to_owned()),
        ("backhaul/login-key", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ me@here".to_owned()),
    ]);
    let settings = Settings::read(&keys);
    assert!(matches!(settings.login.as_slice(), [settings::Login::Off]), "{settings:?}");
    assert_eq!(settings.consumed, ["backhaul/login-password", "backhaul/login-key"]);
}

#[test]
fn the_report_tells_the_certificate_and_the_port() {
    tls::install_provider();
    let door = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = door.local_addr().unwrap().port();
    let guest = Guest::told(&[("backhaul/listen", "127.0.0.1"), ("backhaul/port", &port.to_string())]);
    guest.boot();
    let missing = report(&guest.root(), &guest.xenstore()).unwrap_err();
    assert!(matches!(missing, FirstBootError::NoCertificate), "{missing}");
    let made = SelfSigned::generate(&["localhost"]).unwrap();
    let pem = format!("{}{}", made.certificate_pem, made.key_pem);
    write_file(&guest.root().join("var/lib/backhaul/certificate.pem"), &pem).unwrap();
    report(&guest.root(), &guest.xenstore()).unwrap();
    let told = guest.xenstore().read(&[FINGERPRINT, READY]).unwrap();
    assert_eq!(told[FINGERPRINT], made.fingerprint().unwrap().to_string());
    assert_eq!(told[READY], port.to_string());
}

#[test]
fn the_report_tells_the_certificate_that_was_renewed_over_the_configured_one() {
    tls::install_provider();
    let door = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = door.local_addr().unwrap().port();
    let guest = Guest::told(&[("backhaul/listen", "127.0.0.1"), ("backhaul/port", &port.to_string())]);
    guest.boot();
    let (renewed, configured) = (SelfSigned::generate(&["localhost"]).unwrap(), SelfSigned::generate(&["localhost"]).unwrap());
    for (file, made) in [("certificate.pem", &renewed), ("configured.pem", &configured)] {
        let pem = format!("{}{}", made.certificate_pem, made.key_pem);
        write_file(&guest.root().join("var/lib/backhaul").join(file), &pem).unwrap();
    }
    let (config, file) = (guest.root().join(CONFIG), guest.root().join("var/lib/backhaul/configured.pem"));
    let text = std::fs::read_to_string(&config).unwrap();
    write_file(&config, &format!("{text}[tls]\ncertificate = {file:?}\nkey = {file:?}\n")).unwrap();
    // What the running daemon shows.
    let (server, told) = (renewed.server_config().unwrap(), renewed.fingerprint().unwrap());
    std::thread::spawn(move || {
        for mut stream in door.incoming().flatten() {
            let mut shown = rustls::ServerConnection::new(server.clone()).unwrap();
            let _ = shown.complete_io(&mut stream);
        }
    });
    report(&guest.root(), &guest.xenstore()).unwrap();
    assert_eq!(guest.xenstore().read(&[FINGERPRINT]).unwrap()[FINGERPRINT], told.to_string());
}
