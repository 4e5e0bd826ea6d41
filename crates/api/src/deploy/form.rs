//! The deployment parameters as a person meets them: one list for the console's form and for the command line.

use std::collections::BTreeMap;

use super::{AddressSpec, DEFAULT_PORT, DeploySpec, FieldFault, ImageSource, Login, minimum};

/// What kind of answer a field takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldKind {
    /// A line.
    Text,
    /// A line that is not shown; on the command line it is read from a file or standard input, never given as an argument.
    Secret,
    /// One of what the deployer offers.
    Offered,
    /// One of these: word, what it means.
    OneOf(&'static [(&'static str, &'static str)]),
}

/// A deployment parameter.
#[derive(Debug, Clone, Copy)]
pub struct FieldInfo {
    /// Its name: in [`FieldFault`]s, and as `--name` on the command line.
    pub id: &'static str,
    /// Its name on the screen.
    pub label: &'static str,
    /// What it is for.
    pub help: &'static str,
    /// What it takes.
    pub kind: FieldKind,
    /// What empty means; empty: nothing.
    pub default: &'static str,
    /// Only asked when another field has this value.
    pub when: Option<(&'static str, &'static str)>,
}

const fn info(id: &'static str, label: &'static str, kind: FieldKind, default: &'static str, help: &'static str) -> FieldInfo {
    FieldInfo { id, label, help, kind, default, when: None }
}

impl FieldInfo {
    const fn when(mut self, field: &'static str, value: &'static str) -> Self {
        self.when = Some((field, value));
        self
    }
}

/// All parameters, in the order they are asked.
pub const FIELDS: &[FieldInfo] = &[
    info("name", "Name", FieldKind::Text, "", "What the proxy is called"),
    info("site", "Site", FieldKind::Text, "", "Where it stands; empty: the pool's name"),
    info("pool", "Pool", FieldKind::Offered, "", "The pool that will run its VM"),
    info("sr", "Storage", FieldKind::Offered, "", "Takes its system disk; thin storage only what is used, about 2 GiB at first"),
    info("network", "Network", FieldKind::Offered, "", "It must reach the hosts and the backup storage"),
    info(
        "address",
        "Address",
        FieldKind::OneOf(&[("dhcp", "from the network (DHCP)"), ("static", "as given here")]),
        "dhcp",
        "How it gets its address",
    ),
    info("ip", "IP", FieldKind::Text, "", "IPv4 or IPv6, with or without /prefix").when("address", "static"),
    info("netmask", "Netmask", FieldKind::Text, "", "Mask or prefix length, unless the address has it").when("address", "static"),
    info("gateway", "Gateway", FieldKind::Text, "", "Router of the network; empty: none").when("address", "static"),
    info("dns", "DNS", FieldKind::Text, "", "Addresses of name servers, separated by commas").when("address", "static"),
    info("port", "Port", FieldKind::Text, "443", "TCP port on which it answers"),
    info("http-proxy", "HTTP proxy", FieldKind::Secret, "", "For downloads: http://[user:password@]host:port; empty: none"),
    info("vcpus", "vCPUs", FieldKind::Text, "2", "At least 2: one for the network, one for compression"),
    info("memory", "Memory", FieldKind::Text, "2 GiB", "At least 2 GiB"),
    info("disk", "Disk", FieldKind::Text, "20 GiB", "System disk: at least 20 GiB, on thin storage at least 2 GiB"),
    info("license", "Licence", FieldKind::Offered, "", "The first free one unless another is chosen"),
    info(
        "login",
        "Login",
        FieldKind::OneOf(&[("off", "nobody can log in"), ("password", "by password"), ("key", "by SSH key")]),
        "off",
        "Account of a technician on the appliance",
    ),
    info("login-password", "Password", FieldKind::Secret, "", "At least 8 characters").when("login", "password"),
    info("login-key", "SSH key", FieldKind::Text, "", "A public key, as in authorized_keys").when("login", "key"),
    info("image", "Image", FieldKind::Text, "", "The appliance: a path on the deploying proxy, or a URL"),
    info("image-sha256", "Checksum", FieldKind::Text, "", "SHA-256 of the image; empty: from the file beside it"),
];

/// A parameter by name.
pub fn field(id: &str) -> Option<&'static FieldInfo> {
    FIELDS.iter().find(|field| field.id == id)
}

/// What a person answered, by [`FieldInfo::id`]; absent and empty mean the default.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Answers(BTreeMap<&'static str, String>);

impl Answers {
    /// Takes an answer; a name that is none is ignored and answers false.
    pub fn set(&mut self, id: &str, value: impl Into<String>) -> bool {
        let Some(field) = field(id) else { return false };
        self.0.insert(field.id, value.into());
        true
    }

    /// An answer, or the default.
    pub fn get(&self, id: &str) -> &str {
        let default = field(id).map_or("", |field| field.default);
        self.0.get(id).map(|value| value.trim()).filter(|value| !value.is_empty()).unwrap_or(default)
    }

    fn optional(&self, id: &str) -> Option<String> {
        Some(self.get(id)).filter(|value| !value.is_empty()).map(str::to_owned)
    }

    /// Whether a field is asked at all, given the others.
    pub fn asked(&self, field: &FieldInfo) -> bool {
        field.when.is_none_or(|(other, value)| self.get(other) == value)
    }
}

/// Bytes as a person writes them: `2 GiB`, `2G`, `2048 MiB`, `2147483648`.
pub fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let amount: f64 = text[..digits].parse().ok()?;
    let unit: u64 = match text[digits..].trim().to_ascii_lowercase().trim_end_matches('b').trim_end_matches('i') {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        _ => return None,
    };
    let bytes = amount * unit as f64;
    (bytes.is_finite() && (0.0..1e18).contains(&bytes)).then_some(bytes as u64)
}

impl DeploySpec {
    /// Reads the answers and checks all that can be checked without asking a pool.
    ///
    /// # Errors
    /// Every fault, at its field.
    pub fn from_answers(answers: &Answers) -> Result<Self, Vec<FieldFault>> {
        let mut faults = Vec::new();
        let mut wrong = |field: &str, message: String| faults.push(FieldFault::new(field, message));
        if let Err(message) = check_name(answers.get("name")) {
            wrong("name", message);
        }
        if answers.get("pool").is_empty() {
            wrong("pool", "a pool is needed".into());
        }
        let address = match answers.get("address") {
            "static" => {
                let parts = ["ip", "netmask", "gateway", "dns"].map(|id| answers.get(id));
                AddressSpec::parse(parts[0], parts[1], parts[2], parts[3]).unwrap_or_else(|found| {
                    found.into_iter().for_each(|fault| wrong(fault.field, fault.message));
                    AddressSpec::Dhcp
                })
            }
            "dhcp" => AddressSpec::Dhcp,
            other => {
                wrong("address", format!("{other:?} is neither dhcp nor static"));
                AddressSpec::Dhcp
            }
        };
        let port = answers.get("port").parse().ok().filter(|port| *port > 0).unwrap_or_else(|| {
            wrong("port", "a number from 1 to 65535".into());
            DEFAULT_PORT
        });
        let vcpus = answers.get("vcpus").parse().unwrap_or_else(|_| {
            wrong("vcpus", "a whole number".into());
            minimum::VCPUS
        });
        let mut size = |id: &'static str| {
            bytes(answers.get(id)).unwrap_or_else(|| {
                wrong(id, format!("{:?} is no size, such as 2 GiB", answers.get(id)));
                u64::MAX >> 1
            })
        };
        let (memory, disk) = (size("memory"), size("disk"));
        let login = match answers.get("login") {
            "off" => None,
            "password" => Some(Login::Password { password: answers.get("login-password").to_owned() }),
            "key" => Some(Login::Key { key: answers.get("login-key").to_owned() }),
            other => {
                wrong("login", format!("{other:?} is neither off, password nor key"));
                None
            }
        };
        let spec = Self {
            name: answers.get("name").to_owned(),
            site: answers.optional("site"),
            pool: answers.get("pool").to_owned(),
            sr: answers.optional("sr"),
            network: answers.optional("network"),
            address,
            port,
            http_proxy: answers.optional("http-proxy"),
            vcpus,
            memory,
            disk,
            license: answers.optional("license"),
            login,
            image: ImageSource { url: answers.get("image").to_owned(), sha256: answers.optional("image-sha256") },
        };
        for fault in spec.faults() {
            if !faults.iter().any(|other| other.field == fault.field) {
                faults.push(fault);
            }
        }
        if faults.is_empty() { Ok(spec) } else { Err(faults) }
    }

    /// What is wrong with it, as far as can be told without asking a pool.
    pub fn faults(&self) -> Vec<FieldFault> {
        let mut faults = Vec::new();
        let mut wrong = |field: &str, message: String| faults.push(FieldFault::new(field, message));
        if let Err(message) = check_name(&self.name) {
            wrong("name", message);
        }
        if let Some(site) = &self.site
            && site.chars().any(char::is_control)
        {
            wrong("site", "it holds a control character".into());
        }
        for fault in self.address.faults() {
            wrong(fault.field, fault.message);
        }
        if self.vcpus < minimum::VCPUS {
            wrong("vcpus", format!("at least {}: with one, network and compression wait for each other", minimum::VCPUS));
        } else if self.vcpus > 64 {
            wrong("vcpus", "at most 64".into());
        }
        if self.memory < minimum::MEMORY {
            let has = too_little(self.memory, minimum::MEMORY);
            wrong(
                "memory",
                format!("at least 2 GiB, {has} is too little: a worker alone may hold 128 MiB, and mounts need the rest"),
            );
        }
        if self.disk < minimum::DISK_THIN {
            let has = too_little(self.disk, minimum::DISK_THIN);
            wrong("disk", format!("at least 20 GiB, or 2 GiB on thin storage; {has} is too little"));
        } else if self.disk > LARGEST_DISK {
            let has = crate::format_bytes(self.disk);
            wrong("disk", format!("at most 2040 GiB, where the disks of pools end; {has} is too much"));
        }
        if let Some(proxy) = &self.http_proxy
            && let Err(message) = check_http_proxy(proxy)
        {
            wrong("http-proxy", message.into());
        }
        match &self.login {
            Some(Login::Password { password }) if password.chars().count() < 8 => {
                wrong("login-password", "at least 8 characters".into());
            }
            Some(Login::Password { password }) if password.contains(['\n', '\0', ':']) => {
                wrong("login-password", "no colon, newline or NUL can be in it".into());
            }
            Some(Login::Key { key }) if !is_public_key(key) => {
                wrong("login-key", "a public key in one line, beginning with ssh-ed25519, ssh-rsa or ecdsa-sha2-…".into());
            }
            _ => {}
        }
        if self.image.url.is_empty() {
            wrong("image", "the appliance's XVA is needed: a path on the deploying proxy, or a URL".into());
        } else if self.image.url.chars().any(char::is_control) {
            wrong("image", "it holds a control character".into());
        }
        if let Some(sum) = &self.image.sha256
            && (sum.len() != 64 || !sum.bytes().all(|byte| byte.is_ascii_hexdigit()))
        {
            wrong("image-sha256", "a SHA-256 has 64 hexadecimal digits".into());
        }
        faults
    }
}

/// The largest disk that every storage of a pool can hold (VHD), bytes.
const LARGEST_DISK: u64 = 2040 << 30;

/// A size below a minimum, never rounded up to it.
fn too_little(size: u64, minimum: u64) -> String {
    let words = crate::format_bytes(size);
    if words == crate::format_bytes(minimum) { format!("{} MiB", size >> 20) } else { words }
}

fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        Err("a name is needed".into())
    } else if name.chars().count() > 100 {
        Err(format!("it has {} characters; at most 100", name.chars().count()))
    } else if name.chars().any(char::is_control) {
        Err("it holds a control character".into())
    } else if name.starts_with('-') {
        Err("it begins with a hyphen, as options of commands do".into())
    } else {
        Ok(())
    }
}

/// The value itself is never in the message: it may hold a password.
fn check_http_proxy(proxy: &str) -> Result<(), &'static str> {
    let expected = "expected http://[user:password@]host:port";
    let rest = proxy.strip_prefix("http://").or_else(|| proxy.strip_prefix("https://")).ok_or(expected)?;
    let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host).trim_end_matches('/');
    let port = host.rsplit_once(':').map(|(_, port)| port);
    let odd = proxy.chars().any(|c| c.is_control() || c == ' ' || c == '"' || c == '\\');
    let plausible = !host.is_empty() && !host.starts_with(':') && !host.contains('/') && !odd;
    if plausible && port.is_none_or(|port| port.ends_with(']') || port.parse::<u16>().is_ok()) { Ok(()) } else { Err(expected) }
}

fn is_public_key(key: &str) -> bool {
    let mut words = key.split_whitespace();
    let kinds = ["ssh-ed25519", "ssh-rsa", "ecdsa-sha2-", "sk-ssh-ed25519@", "sk-ecdsa-sha2-"];
    let kind = words.next().is_some_and(|word| kinds.iter().any(|kind| word.starts_with(kind)));
    let body = words.next().is_some_and(|word| word.starts_with("AAAA") && word.len() > 40);
    kind && body && !key.contains(['\n', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(changes: &[(&str, &str)]) -> Answers {
        let mut answers = Answers::default();
        for (id, value) in [("name", "annecy"), ("pool", "annecy"), ("image", "/srv/appliance.xva")].iter().chain(changes) {
            assert!(answers.set(id, *value), "{id}");
        }
        answers
    }

    fn faults(changes: &[(&str, &str)]) -> Vec<String> {
        let found = DeploySpec::from_answers(&answers(changes)).err().unwrap_or_default();
        found.into_iter().map(|fault| fault.field).collect()
    }

    #[test]
    fn the_defaults_are_a_proxy() {
        let spec = DeploySpec::from_answers(&answers(&[])).unwrap();
        assert_eq!((spec.vcpus, spec.memory, spec.disk, spec.port), (2, 2 << 30, 20 << 30, 443));
        assert_eq!((spec.address, spec.login), (AddressSpec::Dhcp, None));
        DeploySpec::from_answers(&answers(&[("name", "né \"quoted\" 🦀 '"), ("memory", "4096MiB"), ("disk", "40g")])).unwrap();
    }

    #[test]
    fn every_fault_stands_at_its_field() {
        for (field, value) in [
            ("name", " "),
            ("name", "a\nb"),
            ("pool", ""),
            ("vcpus", "1"),
            ("vcpus", "two"),
            ("memory", "1.9 GiB"),
            ("memory", "2047 MiB"),
            ("memory", "much"),
            ("disk", "3 TiB"),
            ("name", "-dash"),
            ("disk", "1 GiB"),
            ("port", "0"),
            ("port", "70000"),
            ("http-proxy", "proxy:3128"),
            ("http-proxy", "http://user:secret word@proxy"),
            ("image", ""),
            ("image-sha256", "abc"),
            ("address", "random"),
            ("login", "always"),
        ] {
            assert_eq!(faults(&[(field, value)]), [field], "{field} = {value}");
        }
        assert_eq!(faults(&[("login", "password"), ("login-password", "short")]), ["login-password"]);
        assert_eq!(faults(&[("login", "key"), ("login-key", "AAAA")]), ["login-key"]);
        assert_eq!(faults(&[("address", "static"), ("ip", "10.0.0.5/24"), ("gateway", "10.9.0.1")]), ["gateway"]);
        assert_eq!(faults(&[("vcpus", "1"), ("memory", "1 GiB"), ("name", "")]), ["name", "vcpus", "memory"]);
    }

    #[test]
    fn what_is_too_little_is_not_rounded_up_to_what_is_enough() {
        let found = DeploySpec::from_answers(&answers(&[("memory", "2047 MiB")])).unwrap_err();
        assert!(found[0].message.contains("2047 MiB is too little"), "{found:?}");
    }

    #[test]
    fn no_fault_repeats_a_secret() {
        let secret = "http://user:hunter2 x@proxy";
        let found = DeploySpec::from_answers(&answers(&[("http-proxy", secret)])).unwrap_err();
        assert!(!found[0].message.contains("hunter2"));
        assert!(
            !format!("{:?}", DeploySpec::from_answers(&answers(&[("http-proxy", "http://u:hunter2@p:1")])).unwrap())
                .contains("hunter2")
        );
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, wanted) in [("2 GiB", 2 << 30), ("2G", 2 << 30), ("2gb", 2 << 30), ("2048 MiB", 2 << 30), ("17", 17)] {
            assert_eq!(bytes(text), Some(wanted), "{text}");
        }
        assert_eq!(bytes("1.5 KiB"), Some(1536));
        for text in ["", "GiB", "-1", "1 parsec", "1e99"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }
}
