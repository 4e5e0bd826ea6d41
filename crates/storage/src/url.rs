//! Remote URLs as XO writes them (backup-repository.md §5.1).

use std::fmt;
use std::path::PathBuf;

use url::Url;

/// A remote URL, taken apart. Its `Debug` and [`RemoteUrl::redacted`] show no secret.
#[derive(Clone, PartialEq, Eq)]
pub struct RemoteUrl {
    location: Location,
    options: Vec<(String, String)>,
}

/// Where a remote is.
#[derive(Clone, PartialEq, Eq)]
pub enum Location {
    /// A directory of this machine.
    Local {
        /// Absolute.
        path: PathBuf,
    },
    /// An NFS export.
    Nfs {
        /// Name or address.
        host: String,
        /// Port, when not the usual one.
        port: Option<u16>,
        /// Absolute path of the export.
        path: String,
    },
    /// An SMB share.
    Smb {
        /// User.
        username: String,
        /// Password.
        password: String,
        /// Windows domain.
        domain: String,
        /// `host\share` as given after the two backslashes.
        host: String,
        /// Path in the share, with backslashes; may be empty.
        path: String,
    },
    /// A bucket of an S3 service.
    S3 {
        /// Whether it is spoken to over TLS.
        tls: bool,
        /// Access key id.
        key: String,
        /// Secret access key.
        secret: String,
        /// Host, with port if given.
        host: String,
        /// Bucket, then directories.
        path: String,
        /// Region.
        region: String,
    },
    /// A container of Azure Blob storage, or of its emulator.
    Azure {
        /// `azure`, `azurite` or `azurite+http`.
        scheme: String,
        /// Account.
        account: String,
        /// Account key.
        key: String,
        /// Host, with port if given.
        host: String,
        /// Container, then directories.
        path: String,
    },
}

impl Location {
    /// `local`, `nfs`, `smb`, `s3`, `azure`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Local { .. } => "local",
            Self::Nfs { .. } => "nfs",
            Self::Smb { .. } => "smb",
            Self::S3 { .. } => "s3",
            Self::Azure { .. } => "azure",
        }
    }
}

/// Only the sort of storage: the rest may hold secrets.
impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())
    }
}

/// Why a text is not a remote URL. Never quotes the URL: it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// No `scheme://`, or one XO does not have.
    #[error("the remote's URL does not begin with file://, nfs://, smb://, s3:// or azure://")]
    Scheme,
    /// A part is missing or malformed.
    #[error("the {scheme} remote's URL is malformed: {what}")]
    Malformed {
        /// The scheme.
        scheme: String,
        /// What is wrong.
        what: &'static str,
    },
    /// An option's value is not JSON of the type it needs.
    #[error("the remote's option {0:?} has an unusable value")]
    Option(String),
    /// XO refuses it too: the root is the directory above.
    #[error("the remote's path must not end in xo-vm-backups; it is the directory that contains it")]
    InsideRepository,
}

impl RemoteUrl {
    /// Takes a URL apart.
    ///
    /// # Errors
    /// [`UrlError`] naming the part that is wrong.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = text.split_once("://").ok_or(UrlError::Scheme)?;
        let (body, query, region) = split(scheme, rest);
        let malformed = |what| UrlError::Malformed { scheme: scheme.to_owned(), what };
        let location = match scheme {
            "file" => {
                if body.is_empty() || body.contains('\0') {
                    return Err(malformed("it needs an absolute path"));
                }
                Location::Local { path: format!("/{}", body.trim_start_matches('/')).into() }
            }
            "nfs" => parse_nfs(body).ok_or_else(|| malformed("the form is nfs://<host>:[<port>:]<path>"))?,
            "smb" => {
                parse_smb(body).ok_or_else(|| malformed("the form is smb://<user>:<password>@<domain>\\\\<host>[\\0<path>]"))?
            }
            "s3" | "s3+http" => parse_s3(scheme == "s3", body, region)
                .ok_or_else(|| malformed("the form is s3://<key>:<secret>@<host>/<bucket>[/<directory>][#<region>]"))?,
            "azure" | "azurite" | "azurite+http" => parse_azure(scheme, body)
                .ok_or_else(|| malformed("the form is azure://<account>:<key>@<host>/<container>[/<directory>]"))?,
            _ => return Err(UrlError::Scheme),
        };
        let tail = match &location {
            Location::Local { path } => path.to_str().unwrap_or_default(),
            Location::Nfs { path, .. } | Location::Smb { path, .. } => path,
            Location::S3 { path, .. } | Location::Azure { path, .. } => path,
        };
        if tail.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next() == Some("xo-vm-backups") {
            return Err(UrlError::InsideRepository);
        }
        let options: Vec<(String, String)> =
            url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned().collect();
        let parsed = Self { location, options };
        for name in ["useVhdDirectory", "allowUnauthorized", "immutable"] {
            parsed.flag(name)?;
        }
        if let Some(key) = parsed.option("encryptionKey")
            && !key.is_empty()
            && !(key.starts_with('"') && key.ends_with('"') && key.len() >= 2)
        {
            return Err(UrlError::Option("encryptionKey".into()));
        }
        Ok(parsed)
    }

    /// Where it is.
    pub const fn location(&self) -> &Location {
        &self.location
    }

    /// Whether disks are to be written as directories of blocks; object stores always do.
    pub fn use_vhd_directory(&self) -> bool {
        matches!(self.location, Location::S3 { .. } | Location::Azure { .. }) || self.flag("useVhdDirectory") == Ok(true)
    }

    /// Whether nothing on it can be changed once written.
    pub fn immutable(&self) -> bool {
        self.flag("immutable") == Ok(true)
    }

    /// The encryption key, as the JSON string's inside; an empty or absent one is none.
    pub fn encryption_key(&self) -> Option<&str> {
        let key = self.option("encryptionKey")?.trim_matches('"');
        (!key.is_empty()).then_some(key)
    }

    /// The URL with secrets replaced by `***`, for screens, logs and errors.
    pub fn redacted(&self) -> String {
        let mut text = match &self.location {
            Location::Local { path } => format!("file://{}", path.display()),
            Location::Nfs { host, port: Some(port), path } => format!("nfs://{host}:{port}:{path}"),
            Location::Nfs { host, port: None, path } => format!("nfs://{host}:{path}"),
            Location::Smb { username, domain, host, path, .. } => {
                let path = if path.is_empty() { String::new() } else { format!("\\{path}") };
                format!("smb://{username}:***@{domain}\\\\{host}{path}")
            }
            Location::S3 { tls, key, host, path, region, .. } => {
                format!("s3{}://{key}:***@{host}/{path}#{region}", if *tls { "" } else { "+http" })
            }
            Location::Azure { scheme, account, host, path, .. } => format!("{scheme}://{account}:***@{host}/{path}"),
        };
        for (index, (name, value)) in self.options.iter().enumerate() {
            // Only flags are known to be harmless.
            let shown = if matches!(value.as_str(), "true" | "false" | "") { value } else { "***" };
            let separator = if index == 0 { '?' } else { '&' };
            text.push_str(&format!("{separator}{name}={shown}"));
        }
        text
    }

    fn option(&self, name: &str) -> Option<&str> {
        self.options.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn flag(&self, name: &str) -> Result<bool, UrlError> {
        match self.option(name) {
            None | Some("" | "false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(UrlError::Option(name.to_owned())),
        }
    }
}

impl fmt::Debug for RemoteUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RemoteUrl").field(&self.redacted()).finish()
    }
}

/// Body, query, fragment. Only object stores have a fragment; elsewhere `#` is a character of a path.
fn split<'a>(scheme: &str, rest: &'a str) -> (&'a str, Option<&'a str>, Option<&'a str>) {
    let (rest, fragment) = match scheme {
        "s3" | "s3+http" => rest.rsplit_once('#').map_or((rest, None), |(rest, region)| (rest, Some(region))),
        _ => (rest, None),
    };
    // A password of an SMB share may hold a question mark; options come last and look like `name=`.
    let query = rest.rmatch_indices('?').find(|(at, _)| rest[at + 1..].contains('=') && !rest[at + 1..].contains('@'));
    match query {
        Some((at, _)) => (&rest[..at], Some(&rest[at + 1..]), fragment),
        None => (rest.strip_suffix('?').unwrap_or(rest), None, fragment),
    }
}

fn parse_nfs(body: &str) -> Option<Location> {
    let (host, rest) = match body.strip_prefix('[') {
        Some(rest) => rest.split_once("]:")?,
        None => body.split_once(':')?,
    };
    let (port, path) = match rest.split_once(':') {
        Some((port, path)) if !port.contains('/') => (Some(port.parse().ok()?), path),
        _ => (None, rest),
    };
    (!host.is_empty() && !path.is_empty()).then(|| Location::Nfs {
        host: host.to_owned(),
        port,
        path: format!("/{}", path.trim_start_matches('/')),
    })
}

fn parse_smb(body: &str) -> Option<Location> {
    let (account, target) = body.rsplit_once('@')?;
    let (username, password) = account.split_once(':')?;
    let (domain, host) = target.split_once("\\\\")?;
    let (host, path) = host.split_once('\0').unwrap_or((host, ""));
    (!username.is_empty() && !host.is_empty()).then(|| Location::Smb {
        username: username.to_owned(),
        password: password.to_owned(),
        domain: domain.to_owned(),
        host: host.to_owned(),
        path: path.trim_matches('\\').to_owned(),
    })
}

fn object_store(body: &str) -> Option<(String, String, String, String)> {
    // Any scheme with a host does: the point is the user part and its decoding.
    let url = Url::parse(&format!("https://{body}")).ok()?;
    let decode = |text: &str| -> String {
        // `+` is a plus here, not a blank: keys are encoded as components, not as forms.
        let text = format!("x={}", text.replace('+', "%2B"));
        url::form_urlencoded::parse(text.as_bytes()).next().map(|(_, value)| value.into_owned()).unwrap_or_default()
    };
    let host = match url.port() {
        Some(port) => format!("{}:{port}", url.host_str()?),
        None => url.host_str()?.to_owned(),
    };
    let path = decode(url.path().trim_matches('/'));
    let (user, secret) = (decode(url.username()), decode(url.password()?));
    (!user.is_empty() && !path.is_empty()).then_some((user, secret, host, path))
}

fn parse_s3(tls: bool, body: &str, region: Option<&str>) -> Option<Location> {
    let (key, secret, host, path) = object_store(body)?;
    let region = region.filter(|region| !region.is_empty()).or_else(|| host.strip_prefix("s3.")?.strip_suffix(".amazonaws.com"));
    let region = region.unwrap_or("us-east-1").to_owned();
    Some(Location::S3 { tls, key, secret, host, path, region })
}

fn parse_azure(scheme: &str, body: &str) -> Option<Location> {
    let (account, key, host, path) = object_store(body)?;
    Some(Location::Azure { scheme: scheme.to_owned(), account, key, host, path })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_local_url_is_an_absolute_path() {
        let url = RemoteUrl::parse("file:///mnt/back ups/#1?useVhdDirectory=true").unwrap();
        assert_eq!(url.location(), &Location::Local { path: "/mnt/back ups/#1".into() });
        assert!(url.use_vhd_directory());
        assert_eq!(RemoteUrl::parse("file://mnt/x").unwrap().location(), &Location::Local { path: "/mnt/x".into() });
        assert!(RemoteUrl::parse("file://").is_err());
    }

    #[test]
    fn every_form_of_xo_parses() {
        let nfs = RemoteUrl::parse("nfs://192.0.2.1:2049:/exports/b").unwrap();
        assert_eq!(nfs.location(), &Location::Nfs { host: "192.0.2.1".into(), port: Some(2049), path: "/exports/b".into() });
        let smb = RemoteUrl::parse("smb://user:p:a@ss?@DOM\\\\srv\\share\0deep\\er").unwrap();
        let Location::Smb { username, password, domain, host, path } = smb.location() else { panic!("not SMB") };
        assert_eq!([username, password, domain, host, path], ["user", "p:a@ss?", "DOM", "srv\\share", "deep\\er"]);
        let s3 = RemoteUrl::parse("s3://AKIA:se%2Fcr%2Bet@s3.eu-west-3.amazonaws.com/bucket/dir?allowUnauthorized=true").unwrap();
        let Location::S3 { secret, region, path, tls, .. } = s3.location() else { panic!("not S3") };
        assert_eq!((secret.as_str(), region.as_str(), path.as_str(), *tls), ("se/cr+et", "eu-west-3", "bucket/dir", true));
        assert!(s3.use_vhd_directory());
        let named = RemoteUrl::parse("s3+http://k:s@127.0.0.1:9000/bucket#mars").unwrap();
        assert!(matches!(named.location(), Location::S3 { region, tls: false, .. } if region == "mars"));
        assert_eq!(RemoteUrl::parse("azurite+http://acc:a2V5@localhost:10000/c/d").unwrap().location().kind(), "azure");
        assert_eq!(RemoteUrl::parse("ftp://x"), Err(UrlError::Scheme));
        assert_eq!(RemoteUrl::parse("file:///x/xo-vm-backups/"), Err(UrlError::InsideRepository));
    }

    #[test]
    fn no_secret_is_shown() {
        for text in [
            "smb://user:hunter2@DOM\\\\srv\0x",
            "s3://AKIA:hunter2@host/bucket?encryptionKey=%22hunter2hunter2hunter2hunter2hun%22",
            "azure://acc:hunter2@host/c",
            "file:///x?useVhdDirectory=true&encryptionKey=%22hunter2%22",
        ] {
            let url = RemoteUrl::parse(text).unwrap();
            assert!(!url.redacted().contains("hunter2") && !format!("{url:?}").contains("hunter2"), "{}", url.redacted());
        }
    }

    #[tokio::test]
    async fn an_encryption_key_is_refused_rather_than_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let url = RemoteUrl::parse(&format!("file://{}?encryptionKey=%22secret%22", dir.path().display())).unwrap();
        let error = crate::open(&url, crate::OpenOptions::default()).await.unwrap_err();
        assert!(error.to_string().contains("not supported yet") && !error.to_string().contains("secret"), "{error}");
    }

    proptest! {
        #[test]
        fn anything_parses_or_fails_cleanly(text in "(file|nfs|smb|s3|azure)://[a-z:@/?#\\\\%=&\0]{0,30}") {
            let _ = RemoteUrl::parse(&text).map(|url| url.redacted());
        }
    }
}
