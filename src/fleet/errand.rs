//! Errands: what the console asks for that takes several calls, or touches the configuration or the files of this machine.

use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::{
    CertificateRenew, CertificateRenewParams, DeployClaim, DoctorParams, DoctorRun, ErrorReport, IdParams, LicenseImport,
    LicenseImportParams, Method, NoParams, SupportBundleGet, TokenRotate, TokenRotateParams, UpgradeParams, UpgradeStart,
};
use jiff::Timestamp;

use super::{Client, Shared, licenses, unkept};
use crate::config::{Config, ConfigError, Proxy, Token};
use crate::core::{Answer, Done, Errand, FleetEventKind, LicenseSource, ProxyEntry, RequestId};

/// Largest file taken for a licence, bytes: as much as is searched for one.
const LICENSE: u64 = 64 << 10;
/// Largest file taken for an upgrade bundle, bytes: as much as one may hold.
const BUNDLE: u64 = 257 << 20;

/// Does an errand and tells what came of it.
pub(super) async fn perform(shared: Arc<Shared>, name: String, id: RequestId, errand: Errand) {
    let mut joined = None;
    let result = match errand {
        Errand::Adopt { deployed, known } => adopt(&shared, &name, deployed, known).await.map(|(done, proxy)| {
            joined = Some(proxy);
            done
        }),
        errand => run(&shared, &name, id, errand).await,
    };
    shared.tell(&name, FleetEventKind::Reply { id, result: result.map(Answer::Errand) });
    // Only now: of a proxy that it does not know yet, the console would not take in what it hears.
    if let Some(proxy) = joined {
        shared.connect(proxy);
    }
}

async fn run(shared: &Shared, name: &str, id: RequestId, errand: Errand) -> Result<Done, ErrorReport> {
    match errand {
        // Done by the caller, for it has something to do after the answer.
        Errand::Adopt { .. } => Err(ErrorReport::new("ERRAND", "this errand is done elsewhere")),
        Errand::Drop => drop_entry(shared, name),
        Errand::RotateToken => rotate(shared, name).await,
        Errand::RenewCertificate => renew(shared, name).await,
        Errand::Upgrade { bundle, wait_seconds } => {
            let client = client(shared, name)?;
            let bytes = read(&bundle, BUNDLE).await?;
            let received = client.send_bundle(bytes).await.map_err(|error| error.report())?;
            let params = UpgradeParams { bundle: received.bundle, wait_seconds: Some(wait_seconds), downgrade: false };
            Ok(Done::Upgrading(Box::new(call::<UpgradeStart>(&client, &params).await?)))
        }
        Errand::ImportLicense(source) => {
            let client = client(shared, name)?;
            let text = match source {
                LicenseSource::Text(text) => text,
                LicenseSource::File(path) => String::from_utf8(read(&path, LICENSE).await?).map_err(|_| {
                    ErrorReport::new("LICENSE_FILE", format!("{path} is no text")).with_next("name the file with the signed text")
                })?,
            };
            let license = call::<LicenseImport>(&client, &LicenseImportParams { text }).await?;
            Ok(Done::LicenseKept(Box::new(license)))
        }
        Errand::BindLicense { license, to } => {
            let bound = licenses::bind(&clients(shared)?, name, &to, &license).await?;
            Ok(Done::LicenseBound(Box::new(bound)))
        }
        Errand::UnbindLicense { license, of } => {
            let freed = licenses::unbind(&clients(shared)?, name, &of, &license).await?;
            Ok(Done::LicenseFreed(Box::new(freed)))
        }
        Errand::Examine => examine(shared, name, id).await,
        Errand::SaveSupportBundle => {
            let bundle = call::<SupportBundleGet>(&client(shared, name)?, &NoParams {}).await?;
            let path = save(&bundle.file_name, &bundle.text)?;
            Ok(Done::Saved { path: path.display().to_string() })
        }
    }
}

fn no_such(name: &str) -> ErrorReport {
    ErrorReport::new("NO_SUCH_PROXY", format!("there is no proxy {name:?} in the configuration"))
}

fn client(shared: &Shared, name: &str) -> Result<Client, ErrorReport> {
    let proxy = shared.proxy(name).ok_or_else(|| no_such(name))?;
    proxy.client().map_err(|error| error.report())
}

fn clients(shared: &Shared) -> Result<Vec<(String, Client)>, ErrorReport> {
    let made = |proxy: Proxy| Ok((proxy.name.clone(), proxy.client().map_err(|error| error.report())?));
    shared.proxies().into_iter().map(made).collect()
}

/// Calls a method; a failure is told with what can be found out about it.
pub(super) async fn call<M: Method>(client: &Client, params: &M::Params) -> Result<M::Item, ErrorReport> {
    match client.call::<M>(params).await {
        Ok(item) => Ok(item),
        Err(error) => Err(client.explain(error).await.report()),
    }
}

async fn adopt(shared: &Shared, deployer: &str, deployed: String, known: Option<String>) -> Result<(Done, Proxy), ErrorReport> {
    shared.dir()?;
    let credentials = call::<DeployClaim>(&client(shared, deployer)?, &IdParams { id: deployed }).await?;
    let wrong = |what: String| ErrorReport::new("CLAIM", format!("{deployer} told {what}"));
    let mut proxy = Proxy::claimed(&credentials).map_err(wrong)?;
    // All of the file, not only those this console was started for.
    let listed = Config::load(shared.dir()?).proxies.map_err(|error| unkept(&error))?;
    let same = listed.iter().find(|other| other.fingerprint == proxy.fingerprint);
    if let Some(name) = known.or_else(|| same.map(|same| same.name.clone())) {
        proxy.name = name;
    } else if listed.iter().any(|other| other.name == proxy.name) {
        let message = format!("there is already another proxy {:?} in the configuration", proxy.name);
        return Err(
            ErrorReport::new("NAME_TAKEN", message).with_next("`backhaul proxy remove` takes that one out, then add this one")
        );
    }
    shared.keep(&proxy)?;
    let entry = ProxyEntry { name: proxy.name.clone(), url: proxy.url.as_str().trim_end_matches('/').to_owned() };
    Ok((Done::Adopted { entry, fingerprint: proxy.fingerprint.to_string() }, proxy))
}

fn drop_entry(shared: &Shared, name: &str) -> Result<Done, ErrorReport> {
    match Config::remove_proxy(shared.dir()?, name) {
        Ok(()) | Err(ConfigError::NoSuchProxy { .. }) => {
            shared.leave(name);
            Ok(Done::Dropped)
        }
        Err(error) => Err(unkept(&error)),
    }
}

async fn rotate(shared: &Shared, name: &str) -> Result<Done, ErrorReport> {
    shared.dir()?;
    let proxy = shared.proxy(name).ok_or_else(|| no_such(name))?;
    let made = call::<TokenRotate>(&client(shared, name)?, &TokenRotateParams { overlap_seconds: None }).await?;
    let token = Token::new(&made.token)
        .map_err(|why| ErrorReport::new("TOKEN", format!("{name} made a token that cannot be used: {why}")))?;
    let proxy = Proxy { token, ..proxy };
    let kept = shared.keep(&proxy);
    // Also when it could not be written: this console at least can go on with it.
    shared.connect(proxy);
    kept.map(|()| Done::TokenKept { former_until: made.former_until }).map_err(|error| {
        error.with_next("the new token is used until this console ends; correct that and make another before the former one ends")
    })
}

async fn renew(shared: &Shared, name: &str) -> Result<Done, ErrorReport> {
    shared.dir()?;
    let proxy = shared.proxy(name).ok_or_else(|| no_such(name))?;
    let made = call::<CertificateRenew>(&client(shared, name)?, &CertificateRenewParams::default()).await?;
    let fingerprint = made.fingerprint.parse().map_err(|error: tls::ParseFingerprintError| {
        ErrorReport::new("FINGERPRINT", format!("{name} told a fingerprint that is none: {error}"))
    })?;
    let proxy = Proxy { fingerprint, ..proxy };
    let kept = shared.keep(&proxy);
    shared.connect(proxy);
    let next = format!("it is pinned until this console ends; its fingerprint is {}", made.fingerprint);
    kept.map(|()| Done::CertificatePinned { fingerprint: made.fingerprint }).map_err(|error| error.with_next(next))
}

async fn examine(shared: &Shared, name: &str, id: RequestId) -> Result<Done, ErrorReport> {
    let client = client(shared, name)?;
    let version = Some(env!("CARGO_PKG_VERSION").to_owned());
    let params = DoctorParams { now: Some(Timestamp::now().as_millisecond()), version };
    let examined = async {
        let mut lines = client.stream::<DoctorRun>(&params).await?;
        while let Some(check) = lines.next().await? {
            shared.tell(name, FleetEventKind::Check { id, check: Box::new(check) });
        }
        Ok(())
    };
    match examined.await {
        Ok(()) => Ok(Done::Examined),
        Err(error) => Err(client.explain(error).await.report()),
    }
}

/// A path as a person types it.
fn typed(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
    }
}

/// Reads a file of at most so many bytes.
async fn read(path: &str, most: u64) -> Result<Vec<u8>, ErrorReport> {
    let place = typed(path);
    let shown = place.display().to_string();
    let reading = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        std::fs::File::open(&place)?.take(most + 1).read_to_end(&mut bytes)?;
        io::Result::Ok(bytes)
    });
    let failed = |why: &dyn std::fmt::Display| {
        ErrorReport::new("FILE", format!("cannot read {shown}: {why}")).with_next("the path is one on this machine")
    };
    match reading.await {
        Ok(Ok(bytes)) if bytes.len() as u64 <= most => Ok(bytes),
        Ok(Ok(_)) => Err(failed(&format!("it is larger than {}", api::format_bytes(most)))),
        Ok(Err(error)) => Err(failed(&error)),
        Err(error) => Err(failed(&error)),
    }
}

/// A name for a file, whatever a proxy calls it.
fn file_name(told: &str) -> String {
    let plain: String = told.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')).take(120).collect();
    let plain = plain.trim_start_matches(['.', '-']);
    if plain.is_empty() { "backhaul-support.txt".to_owned() } else { plain.to_owned() }
}

/// Writes a text into a new file where this console was started, or else where temporary files go.
fn save(told: &str, text: &str) -> Result<PathBuf, ErrorReport> {
    let name = file_name(told);
    let places = [std::env::current_dir().ok(), Some(std::env::temp_dir())];
    let mut last = None;
    for place in places.into_iter().flatten() {
        match create(&place, &name, text) {
            Ok(path) => return Ok(path),
            Err(error) => last = Some((place, error)),
        }
    }
    let why = last.map_or_else(String::new, |(place, error)| format!(" in {}: {error}", place.display()));
    Err(ErrorReport::new("FILE", format!("cannot write {name}{why}"))
        .with_next("start the console in a folder that can be written to"))
}

fn create(place: &Path, name: &str, text: &str) -> io::Result<PathBuf> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let (stem, ending) = name.rsplit_once('.').unwrap_or((name, "txt"));
    for n in 1..1000 {
        let path = place.join(if n == 1 { format!("{stem}.{ending}") } else { format!("{stem}-{n}.{ending}") });
        match std::fs::File::options().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(mut file) => {
                file.write_all(text.as_bytes())?;
                return Ok(path);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from(io::ErrorKind::AlreadyExists))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_cannot_choose_the_place_of_a_file() {
        for (told, expected) in [
            ("support-a.txt", "support-a.txt"),
            ("../../.ssh/authorized_keys", "sshauthorized_keys"),
            ("/etc/passwd", "etcpasswd"),
            ("..", "backhaul-support.txt"),
            ("ä b\u{1b}[31m.txt", "b31m.txt"),
        ] {
            assert_eq!(file_name(told), expected, "{told}");
        }
    }

    #[test]
    fn no_file_is_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let first = create(dir.path(), "a.txt", "one").unwrap();
        let second = create(dir.path(), "a.txt", "two").unwrap();
        assert_ne!(first, second);
        assert_eq!(std::fs::read_to_string(first).unwrap(), "one");
    }
}
