//! Errands: what the console asks for that takes several calls, or touches the configuration or the files of this machine.

use std::io::{self, Read as _};
use std::path::PathBuf;
use std::sync::Arc;

use api::{
    CertificateRenewParams, DeployStart, DoctorParams, DoctorRun, ErrorReport, LicenseImport, LicenseImportParams, Method,
    NoParams, SupportBundleGet, UpgradeParams,
};
use jiff::Timestamp;

use super::keep::KeepError;
use super::{Client, Shared, bundle, files, keep, licenses};
use crate::config::{Config, ConfigError, Proxy};
use crate::core::{Answer, Done, Errand, FleetEvent, FleetEventKind, LicenseSource, ProxyEntry, RequestId};

/// Largest file taken for a licence, bytes: as much as is searched for one.
const LICENSE: u64 = 64 << 10;

/// Does an errand and tells what came of it.
pub(super) async fn perform(shared: Arc<Shared>, name: String, id: RequestId, errand: Errand) {
    let (result, joined) = match run(&shared, &name, id, errand).await {
        Ok((done, joined)) => (Ok(done), joined),
        Err(error) => (Err(error), None),
    };
    shared.tell(&name, FleetEventKind::Reply { id, result: result.map(Answer::Errand) });
    // Only now: of a proxy that it does not know yet, the console would not take in what it hears.
    if let Some(proxy) = joined {
        shared.connect(proxy);
    }
}

/// Starts a deployment, as the console asks for it, under a licence that no other proxy of the fleet serves under.
pub(super) async fn deploy(shared: Arc<Shared>, name: String, id: RequestId, mut spec: Box<api::DeploySpec>) {
    let started = async {
        spec.license = licenses::for_deployment(&clients(&shared)?, &name, spec.license.as_deref()).await?;
        call::<DeployStart>(&client(&shared, &name)?, &spec).await
    };
    let result = started.await.map(Answer::DeployStart);
    shared.tell(&name, FleetEventKind::Reply { id, result });
}

/// What came of it, and a proxy that is to be connected to when that is told.
async fn run(shared: &Shared, name: &str, id: RequestId, errand: Errand) -> Result<(Done, Option<Proxy>), ErrorReport> {
    let done = match errand {
        Errand::Adopt { deployed, known } => {
            let (done, proxy) = adopt(shared, name, &deployed, known).await?;
            return Ok((done, Some(proxy)));
        }
        Errand::Drop => drop_entry(shared, name).await?,
        Errand::RotateToken => rotate(shared, name).await?,
        Errand::RenewCertificate => renew(shared, name).await?,
        Errand::Upgrade { bundle, wait_seconds, downgrade } => {
            let client = client(shared, name)?;
            let told = |bringing| shared.tell(name, FleetEventKind::Bundle { id, bringing });
            let bundle = bundle::fetch(&typed(&bundle).display().to_string(), &told).await.map_err(|error| error.report())?;
            let params = UpgradeParams { bundle: bundle.sha256.clone(), wait_seconds: Some(wait_seconds), downgrade };
            let to = (shared.events.clone(), name.to_owned());
            let sent = move |bringing| {
                let kind = FleetEventKind::Bundle { id, bringing };
                // The console is gone: nobody is left to tell.
                let _ = to.0.send(FleetEvent { proxy: to.1.clone(), kind });
            };
            match bundle::begin(&client, &bundle, &params, sent).await {
                Ok(state) => Done::Upgrading(Box::new(state)),
                Err(error) => return Err(client.explain(error).await.report()),
            }
        }
        Errand::ImportLicense(source) => {
            let client = client(shared, name)?;
            let text = match source {
                LicenseSource::Text(text) => text,
                LicenseSource::File(path) => String::from_utf8(read(&path, LICENSE).await?).map_err(|_| {
                    ErrorReport::new("LICENSE_FILE", format!("{path} is no text")).with_next("name the file with the signed text")
                })?,
            };
            Done::LicenseKept(Box::new(call::<LicenseImport>(&client, &LicenseImportParams { text }).await?))
        }
        Errand::BindLicense { license, to } => {
            Done::LicenseBound(Box::new(licenses::bind(&clients(shared)?, name, &to, &license).await?))
        }
        Errand::UnbindLicense { license, of } => {
            Done::LicenseFreed(Box::new(licenses::unbind(&clients(shared)?, name, &of, &license).await?))
        }
        Errand::Examine => examine(shared, name, id).await?,
        Errand::SaveSupportBundle => {
            let bundle = call::<SupportBundleGet>(&client(shared, name)?, &NoParams {}).await?;
            let saved = tokio::task::spawn_blocking(move || files::save(&bundle.file_name, &bundle.text)).await;
            let path = saved.map_err(|error| ErrorReport::new("FILE", format!("cannot write the text: {error}")))??;
            Done::Saved { path: path.display().to_string() }
        }
    };
    Ok((done, None))
}

fn known(shared: &Shared, name: &str) -> Result<Proxy, ErrorReport> {
    shared.proxy(name).ok_or_else(|| ConfigError::NoSuchProxy { name: name.to_owned() }.report())
}

fn client(shared: &Shared, name: &str) -> Result<Client, ErrorReport> {
    known(shared, name)?.client().map_err(|error| error.report())
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

/// `name_here`: what the proxy is called here already.
async fn adopt(shared: &Shared, deployer: &str, deployed: &str, name_here: Option<String>) -> Result<(Done, Proxy), ErrorReport> {
    let client = client(shared, deployer)?;
    let here = name_here.as_ref().and_then(|name| shared.proxy(name));
    let proxy = keep::claim(shared.dir()?, (deployer, &client), deployed, here).await?;
    let proxy = Proxy { name: name_here.unwrap_or(proxy.name), ..proxy };
    let entry = ProxyEntry { name: proxy.name.clone(), url: proxy.address() };
    Ok((Done::Adopted { entry, fingerprint: proxy.fingerprint.to_string() }, proxy))
}

/// Takes out what is this proxy's, not what is called so by now.
async fn drop_entry(shared: &Shared, name: &str) -> Result<Done, ErrorReport> {
    if let Some(proxy) = shared.proxy(name) {
        let dropped = keep::blocking(shared.dir()?, move |dir| Config::drop_proxy(dir, |entry| entry.same(&proxy))).await;
        dropped.map_err(|error| error.report())?;
        shared.leave(name);
    }
    Ok(Done::Dropped)
}

async fn rotate(shared: &Shared, name: &str) -> Result<Done, ErrorReport> {
    let alone = shared.changing.lock().await;
    let made = keep::rotate(shared.dir()?, &known(shared, name)?, None).await;
    let (proxy, made) = used(shared, name, made)?;
    drop(alone);
    Ok(Done::TokenKept { former_until: made.former_until, untold: untold(shared, &proxy).await })
}

async fn renew(shared: &Shared, name: &str) -> Result<Done, ErrorReport> {
    let alone = shared.changing.lock().await;
    let made = keep::renew(shared.dir()?, &known(shared, name)?, &CertificateRenewParams::default()).await;
    let (proxy, made) = used(shared, name, made)?;
    drop(alone);
    Ok(Done::CertificatePinned { fingerprint: made.fingerprint, untold: untold(shared, &proxy).await })
}

/// Goes on with what was made; also when it could not be written, for as long as this console runs.
fn used<T>(shared: &Shared, name: &str, made: Result<(Proxy, T), KeepError>) -> Result<(Proxy, T), ErrorReport> {
    let here = |proxy: &Proxy| Proxy { name: name.to_owned(), ..proxy.clone() };
    match &made {
        Ok((proxy, _)) => shared.connect(here(proxy)),
        Err(KeepError::Unkept { proxy, .. }) => shared.connect(here(proxy)),
        Err(_) => {}
    }
    made.map_err(|error| error.report())
}

/// Tells whoever deployed a proxy how it is reached now; why that one may not know, in words.
async fn untold(shared: &Shared, proxy: &Proxy) -> Option<String> {
    match keep::tell_deployer(proxy, &shared.proxies()).await {
        Ok(told) => told.rest(&proxy.name),
        Err(error) => {
            let report = error.report();
            let next = report.next.map(|next| format!("; {next}")).unwrap_or_default();
            Some(format!("{}{next}", report.message))
        }
    }
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
