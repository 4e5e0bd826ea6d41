//! `backhaul lab`: three sites in a folder. The pools are simulated, in this process; the proxies are real `backhauld`
//! processes, of which the third site has none yet: its pool is connected to the proxy of the first. Everything between a pool's sockets and the files of the remotes is the program itself.
//!
//! ```text
//! DIR/lab.json      how to reach everything; there only while the lab runs
//! DIR/config        configuration of a console that knows the proxies
//! DIR/keys          the secret keys of whoever makes upgrades, and licences, for this lab
//! DIR/pools         the pools, their records and disk images
//! DIR/remotes/SITE  what the proxies write
//! DIR/sites/SITE    configuration, state and log of each proxy
//! ```
//!
//! The daemons die with the lab, however it ends (see [`guard`]); a daemon that dies alone is started again on its port.

mod guests;
mod inventory;
mod proxy;

use std::fs::{self, File, TryLockError};
use std::io::IsTerminal as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lab::{Content, DiskSpec, Fault, LabSpec, MIB, PoolHandle, PoolSpec, SrSpec, VmSpec};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use signed::{ImageFormat, ImageManifest, ImageNeeds, KeyError, SecretKey};
use tls::Fingerprint;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::UnboundedReceiver;

pub use proxy::guard;

use self::inventory::Inventory;
use self::proxy::{Setup, Site};
use super::cli::{Common, Lab as Arguments, LabCommand, Screen};
use super::failure::{Exit, Failure};
use super::output;
use crate::config::Config;
use crate::core::FleetEvent;
use crate::fleet::Fleet;

/// Runs it.
///
/// # Errors
/// [`Failure`].
pub async fn run(common: &Common, screen: &Screen, arguments: Arguments) -> Result<(), Failure> {
    match arguments {
        Arguments { command: Some(LabCommand::Mutate { dir, vm, percent }), .. } => mutate(common, &dir, &vm, percent).await,
        // Handled before anything else is set up.
        Arguments { command: Some(LabCommand::Guard { .. }), .. } => Err(Failure::usage("guard is for the lab itself")),
        Arguments { serve: true, dir: Some(dir), small, line, writes, licensed, .. } => {
            serve(&dir, &spec(small), Manner { line: line.unwrap_or(0), writes, licensed }).await
        }
        Arguments { dir, small, line, writes, licensed, .. } => {
            demo(common, screen, dir, &spec(small), Manner { line: line.unwrap_or(DEMO_LINE), writes, licensed }).await
        }
    }
}

fn spec(small: bool) -> LabSpec {
    if !small {
        return LabSpec::demo();
    }
    let site = |name: &str, vm: &str| {
        let system = DiskSpec::new(format!("{vm} system"), 128 * MIB, Content::FileSystem { bytes: 24 * MIB });
        let data = DiskSpec::new(format!("{vm} data"), 64 * MIB, Content::Generated { bytes: 10 * MIB });
        PoolSpec::new(name, vec![VmSpec::new(vm, vec![system, data])]).varied()
    };
    let till = DiskSpec::new("till-01 system", 32 * MIB, Content::Generated { bytes: 4 * MIB });
    let mut annecy = PoolSpec::new("annecy", vec![VmSpec::new("till-01", vec![till])]).varied();
    annecy.storage[0] = SrSpec::new("annecy NAS", "nfs", 120 << 30);
    annecy.host_memory = 16 << 30;
    LabSpec { pools: vec![site("paris", "web-01"), site("lyon", "files-01"), annecy], seed: 7 }
}

/// Sites without a proxy, and the one whose proxy has their pool: from there one is deployed into them.
const WITHOUT_PROXY: &[(&str, &str)] = &[("annecy", "paris")];

fn lent_to(pool: &PoolHandle) -> Option<&'static str> {
    WITHOUT_PROXY.iter().find(|(without, _)| *without == pool.name()).map(|(_, lender)| *lender)
}

/// MiB a second and connection in front of a person: a real site's line, on which a small disk still takes some seconds.
const DEMO_LINE: u32 = 10;

/// How fast the simulated sites are, and what they ask for.
#[derive(Clone, Copy)]
struct Manner {
    /// MiB a second and connection; 0: no limit.
    line: u32,
    /// KiB a second that each running VM writes.
    writes: u32,
    /// Whether licences are asked for.
    licensed: bool,
}

impl Manner {
    fn set(self, pool: &PoolHandle) {
        pool.set_write_rate(u64::from(self.writes) * 1024);
        if self.line > 0 {
            let bytes_per_second = u64::from(self.line) * MIB;
            pool.set_fault(Fault::SlowNbd { bytes_per_second });
            pool.set_fault(Fault::SlowExport { bytes_per_second });
        }
    }
}

/// Everything that runs.
struct Running {
    dir: PathBuf,
    lab: lab::Lab,
    sites: Vec<Site>,
    guests: Arc<guests::RealGuests>,
    /// Held as long as the lab runs, so that no second one uses the folder.
    _lock: File,
}

impl Running {
    /// Starts everything, or continues what is in the folder; none when asked to stop meanwhile. Without a lab, every
    /// daemon has ended when this returns.
    async fn start(dir: &Path, spec: &LabSpec, manner: Manner, stop: &mut Stop) -> Result<Option<Self>, Failure> {
        let program = proxy::find_program()?;
        private_dir(dir)?;
        let dir = dir.canonicalize().map_err(|error| Failure::file("find", dir, &error))?;
        let lock = lock(&dir)?;
        remove_if_there(&dir.join("lab.json"))?;
        if !dir.join("pools").exists() {
            output::aside("building the pools and their disks…");
        }
        let pools = dir.join("pools");
        let opened = tokio::select! {
            opened = lab::Lab::open(&pools, spec) => opened,
            () = stop.asked() => return Ok(None),
        };
        let lab = opened.map_err(|error| {
            let mut report = api::ErrorReport::new("LAB", format!("cannot start the pools in {}: {error}", dir.display()));
            report = report.with_source(&error);
            Failure { exit: Exit::Failed, report: Some(report) }
        })?;
        let guests = guests::RealGuests::new(&dir, &program);
        private_dir(&dir.join("keys"))?;
        let release = secret_key(&dir.join("keys/release.key"))?;
        let issuer = manner.licensed.then(|| secret_key(&dir.join("keys/issuer.key"))).transpose()?;
        let image = appliance(&dir, &release).await?;
        let setup = Setup { program, image, release: release.public(), issuer: issuer.map(|issuer| issuer.public()) };
        let mut sites = Vec::new();
        let (mut failed, mut asked) = (None, false);
        for pool in lab.pools() {
            manner.set(pool);
            pool.set_guests(Arc::clone(&guests) as Arc<dyn lab::Guests>);
        }
        for pool in lab.pools().iter().filter(|pool| lent_to(pool).is_none()) {
            output::aside(&format!("starting proxy {}…", pool.name()));
            let others = lab.pools().iter().filter(|other| lent_to(other) == Some(pool.name()));
            let pools: Vec<&PoolHandle> = std::iter::once(pool).chain(others).collect();
            let mut starting = std::pin::pin!(Site::start(&dir, &setup, &pools));
            let started = tokio::select! {
                started = &mut starting => started,
                // A daemon that has begun is asked to end, not cut off: it may be writing.
                () = stop.asked() => {
                    asked = true;
                    starting.await
                }
            };
            failed = started.map(|site| sites.push(site)).err();
            if asked || failed.is_some() {
                break;
            }
        }
        if asked || failed.is_some() {
            futures::future::join_all(sites.into_iter().map(Site::stop)).await;
            guests.stop().await;
            let _ = lab.close().await;
            return failed.map_or(Ok(None), Err);
        }
        let config = dir.join("config");
        let ours: Vec<_> = sites.iter().map(Site::entry).collect();
        // Somebody may have added proxies of his own to the lab's configuration.
        let mut entries = Config::load(&config).proxies?;
        entries.retain(|entry| ours.iter().all(|ours| ours.name != entry.name));
        let entries: Vec<_> = ours.into_iter().chain(entries).collect();
        Config::set_proxies(&config, &entries)?;
        let running = Self { dir, lab, sites, guests, _lock: lock };
        running.describe()?;
        Ok(Some(running))
    }

    fn describe(&self) -> Result<(), Failure> {
        describe(&self.dir, &Inventory::of(&self.dir, &self.lab, &self.sites))
    }

    /// Starts daemons again that have died and keeps `lab.json` true, for ever.
    async fn supervise(&mut self) {
        let inventory = Inventory::of(&self.dir, &self.lab, &self.sites);
        let watched = self.sites.iter_mut().map(Site::keep_running);
        tokio::join!(futures::future::join_all(watched), keep_described(&self.dir, &self.lab, inventory));
    }

    /// Stops everything in order; what it is worth keeping is on disk afterwards.
    async fn stop(self) -> Result<(), Failure> {
        let _ = fs::remove_file(self.dir.join("lab.json"));
        futures::future::join_all(self.sites.into_iter().map(Site::stop)).await;
        self.guests.stop().await;
        self.lab.close().await.map_err(|error| Failure::failed("LAB", format!("the pools were not saved: {error}")))
    }
}

/// Size of the disk of the lab's appliance, bytes: small, because nothing is on it but a partition table.
const APPLIANCE_DISK: u64 = 16 * MIB;

/// The key of before, or a new one.
fn secret_key(path: &Path) -> Result<SecretKey, Failure> {
    let wrong = |error: KeyError| Failure::failed("LAB", format!("{}: {error}", path.display()));
    match fs::read_to_string(path) {
        Ok(text) => text.parse().map_err(wrong),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key = SecretKey::generate().map_err(wrong)?;
            let text = format!("{}\n", key.expose());
            crate::config::write_private(path, &text).map_err(|error| Failure::file("write", path, &error))?;
            Ok(key)
        }
        Err(error) => Err(Failure::file("read", path, &error)),
    }
}

/// Makes the image that proxies are deployed from, with its checksum and its signed manifest beside it.
async fn appliance(dir: &Path, release: &SecretKey) -> Result<PathBuf, Failure> {
    let images = dir.join("images");
    private_dir(&images)?;
    let path = images.join("backhaul-appliance.xva");
    let (sum, manifest) = (path.with_added_extension("sha256"), path.with_added_extension("manifest"));
    if path.is_file() && sum.is_file() && manifest.is_file() {
        return Ok(path);
    }
    let meta = xva::Appliance {
        name: "Backhaul appliance".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        vcpus: 2,
        memory: 2048 * MIB,
        disk: APPLIANCE_DISK,
    };
    let mut disk = vec![0; APPLIANCE_DISK as usize];
    // What makes a disk bootable, as far as a firmware looks.
    disk[510..512].copy_from_slice(&[0x55, 0xAA]);
    let mut archive = Vec::new();
    let made = xva::write_appliance(&mut archive, disk.as_slice(), &meta).await;
    made.map_err(|error| Failure::failed("LAB", format!("cannot make the lab's appliance: {error}")))?;
    let hash: String = Sha256::digest(&archive).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(&path, &archive).map_err(|error| Failure::file("write", &path, &error))?;
    fs::write(&sum, format!("{hash}  backhaul-appliance.xva\n")).map_err(|error| Failure::file("write", &sum, &error))?;
    let described = ImageManifest {
        version: meta.version,
        format: ImageFormat::Xva,
        size: archive.len() as u64,
        sha256: hash,
        needs: ImageNeeds { memory: meta.memory, vcpus: meta.vcpus, disk: meta.disk },
    };
    let text = described.sign(release).map_err(|error| Failure::failed("LAB", format!("the image is not signed: {error}")))?;
    fs::write(&manifest, text).map_err(|error| Failure::file("write", &manifest, &error))?;
    Ok(path)
}

fn describe(dir: &Path, inventory: &Inventory) -> Result<(), Failure> {
    let path = dir.join("lab.json");
    let text = serde_json::to_string_pretty(inventory).map_err(|error| Failure::failed("LAB", error.to_string()))?;
    crate::config::write_private(&path, &text).map_err(|error| Failure::file("write", &path, &error))
}

/// Writes the inventory again whenever a VM has come or gone: one that was restored belongs to it.
async fn keep_described(dir: &Path, lab: &lab::Lab, mut inventory: Inventory) {
    loop {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        let vms = inventory::vms(lab);
        if vms != inventory.vms {
            inventory.vms = vms;
            // Where there is no room the older list stays; the next change tries again.
            let _ = describe(dir, &inventory);
        }
    }
}

/// `backhaul lab --serve`.
async fn serve(dir: &Path, spec: &LabSpec, manner: Manner) -> Result<(), Failure> {
    let mut stop = Stop::new()?;
    let Some(mut running) = Running::start(dir, spec, manner, &mut stop).await? else { return Ok(()) };
    output::aside(&format!("the lab runs; {} says how to reach it", running.dir.join("lab.json").display()));
    tokio::select! {
        () = stop.asked() => {}
        () = running.supervise() => {}
    }
    output::aside("stopping…");
    running.stop().await
}

/// `backhaul lab`.
async fn demo(common: &Common, screen: &Screen, dir: Option<PathBuf>, spec: &LabSpec, manner: Manner) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        return Err(Failure::usage(crate::tui::TuiError::NoTerminal.to_string()).next("backhaul lab --serve --dir DIR"));
    }
    let mut stop = Stop::new()?;
    let home = Home::new(dir)?;
    let Some(mut running) = Running::start(home.path(), spec, manner, &mut stop).await? else { return Ok(()) };
    let config = Config::load(&running.dir.join("config"));
    let proxies = config.proxies?;
    let (fleet, events): (_, UnboundedReceiver<FleetEvent>) = Fleet::start(&proxies, Some(&running.dir.join("config")));
    let options = super::options(common, screen, config.console, &proxies);
    let shown = tokio::select! {
        shown = crate::tui::run(options, events, fleet) => shown,
        () = running.supervise() => Ok(()),
    };
    output::aside("stopping…");
    let stopped = running.stop().await;
    shown.map_err(super::terminal_failure)?;
    stopped
}

/// Where a lab lives: a folder of its user's, or one of its own that goes with it.
enum Home {
    Kept(PathBuf),
    Temporary(PathBuf),
}

impl Home {
    fn new(dir: Option<PathBuf>) -> Result<Self, Failure> {
        if let Some(dir) = dir {
            return Ok(Self::Kept(dir));
        }
        let parent = std::env::temp_dir();
        sweep(&parent);
        let path = parent.join(format!("{PREFIX}{}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(|error| Failure::file("create", &path, &error))?;
        Ok(Self::Temporary(path))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Kept(path) | Self::Temporary(path) => path,
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Self::Temporary(path) = self
            && let Err(error) = fs::remove_dir_all(&*path)
        {
            output::aside(&format!("cannot remove {}: {error}", path.display()));
        }
    }
}

const PREFIX: &str = "backhaul-lab-";

/// Removes the folders of labs that were killed: those that nobody holds the lock of, and that are ours.
fn sweep(parent: &Path) {
    use std::os::unix::fs::MetadataExt as _;
    let me = rustix::process::geteuid().as_raw();
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let named = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        let ours = entry.metadata().is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == me);
        // Without a lock file it has only just been made.
        if let (true, Ok(file)) = (named && ours, File::open(entry.path().join("lock")))
            && file.try_lock().is_ok()
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn private_dir(dir: &Path) -> Result<(), Failure> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| Failure::file("create", dir, &error))
}

fn remove_if_there(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Failure::file("remove", path, &error)),
        _ => Ok(()),
    }
}

fn lock(dir: &Path) -> Result<File, Failure> {
    let path = dir.join("lock");
    let file = File::options().write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(|error| Failure::file("open", &path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Failure::refused("LAB_RUNS", format!("another lab runs in {}", dir.display()))),
        Err(TryLockError::Error(error)) => Err(Failure::file("lock", &path, &error)),
    }
}

/// The signals that ask a lab to stop.
struct Stop([tokio::signal::unix::Signal; 3]);

impl Stop {
    fn new() -> Result<Self, Failure> {
        let signal = |kind| signal(kind).map_err(|error| Failure::failed("SIGNAL", format!("cannot wait for signals: {error}")));
        Ok(Self([signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?]))
    }

    async fn asked(&mut self) {
        let [terminate, interrupt, hangup] = &mut self.0;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// `backhaul lab mutate`: asks the pool of a running lab, which alone may write its disks.
async fn mutate(common: &Common, dir: &Path, vm: &str, percent: f64) -> Result<(), Failure> {
    let inventory = Inventory::load(dir)?;
    let (mut by_uuid, mut by_name) = (Vec::new(), Vec::new());
    for pool in &inventory.pools {
        let vms = pool_call(pool, "lab.vms", json!([pool.password])).await?;
        for known in vms.as_array().into_iter().flatten() {
            let uuid = known["uuid"].as_str().unwrap_or_default().to_owned();
            if uuid == vm {
                by_uuid.push((pool, uuid));
            } else if known["name"] == vm {
                by_name.push((pool, uuid));
            }
        }
    }
    let found = if by_uuid.is_empty() { by_name } else { by_uuid };
    let (pool, uuid) = match &found[..] {
        [] => return Err(Failure::failed("NO_SUCH_OBJECT", format!("there is no VM {vm:?} in the lab"))),
        [one] => one,
        several => {
            let candidates: Vec<_> = several.iter().map(|(pool, uuid)| format!("{uuid} in {}", pool.name)).collect();
            return Err(Failure::usage(format!("VM {vm:?} is ambiguous: {}", candidates.join(", "))).next("use its UUID"));
        }
    };
    let disks = pool_call(pool, "lab.mutate", json!([pool.password, uuid, percent])).await?;
    if common.json {
        return Ok(output::json(&json!({ "pool": pool.name, "vm": uuid, "disks": disks }))?);
    }
    for disk in disks.as_array().into_iter().flatten() {
        let bytes = disk["bytes"].as_u64().unwrap_or_default();
        output::line(&format!("changed {} of disk {}", api::format_bytes(bytes), disk["vdi"].as_str().unwrap_or_default()))?;
    }
    Ok(())
}

/// Calls a pool of a running lab by JSON-RPC.
async fn pool_call(pool: &inventory::Pool, method: &str, params: Value) -> Result<Value, Failure> {
    let away = |reason: String| {
        let report = api::ErrorReport::new("LAB_AWAY", format!("the pool {} of the lab does not answer: {reason}", pool.name));
        Failure { exit: Exit::Unreachable, report: Some(report.with_next("is the lab still running?")) }
    };
    let pinned: Fingerprint =
        pool.fingerprint.parse().map_err(|_| Failure::failed("LAB", "lab.json holds a broken fingerprint"))?;
    let http = crate::fleet::pinned_http(pinned).map_err(|error| away(error.to_string()))?;
    let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
    let sent = http.post(format!("{}/jsonrpc", pool.url)).json(&request).send().await;
    let answer: Value = match sent {
        Ok(response) => response.json().await.map_err(|error| away(error.without_url().to_string()))?,
        Err(error) => return Err(away(error.without_url().to_string())),
    };
    match (answer.get("result"), answer.get("error")) {
        (Some(result), _) => Ok(result.clone()),
        (None, error) => {
            let said = error.and_then(|error| error.get("message")).and_then(Value::as_str).unwrap_or("no reason given");
            Err(Failure::failed("LAB", format!("the pool {} refuses {method}: {said}", pool.name)))
        }
    }
}

/// What a site needs of its pool.
fn pool_params(pool: &PoolHandle) -> api::PoolAddParams {
    api::PoolAddParams {
        name: Some(pool.name().to_owned()),
        url: pool.url(),
        username: pool.username().to_owned(),
        password: pool.password().to_owned(),
        fingerprint: Some(pool.fingerprint().to_string()),
    }
}
