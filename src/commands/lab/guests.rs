//! What runs inside the lab's appliances: the real `backhauld`, configured by the real `first-boot` from the same XenStore
//! data that a hypervisor would hand over, each on a loopback address of its own.
//!
//! ```text
//! DIR/guests/VM/xenstore   its `vm-data`, a file a key
//! DIR/guests/VM/etc        what first-boot has made of it
//! DIR/guests/VM/var        the daemon's state
//! ```

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::BoxFuture;
use lab::{Boot, Guests, Report};
use tokio::process::Command;
use tokio::sync::{oneshot, watch};

use super::proxy::{self, Started};
use crate::commands::failure::Failure;
use crate::config::write_private;

/// Guests get addresses of 127.A.1.0/24, A being different from lab to lab, so that several can run side by side.
fn network(process: u32) -> [u8; 3] {
    [127, 16 + (process % 224) as u8, 1]
}

/// Which addresses were given away, in the folder of the lab.
const LEASES: &str = "leases.json";
/// The first address that is given away.
const FIRST: u8 = 10;

/// The guests of a lab.
pub(super) struct RealGuests {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    /// The file of leases.
    lease_file: PathBuf,
    program: PathBuf,
    /// By UUID of their machines.
    running: Mutex<HashMap<String, Guest>>,
    leases: Mutex<Leases>,
}

/// Who has which address. Kept in the folder of the lab, so that proxies are found again when it comes back.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Leases {
    network: [u8; 3],
    /// Addresses by hardware address: a machine that comes back gets its old one.
    given: BTreeMap<String, Ipv4Addr>,
}

impl Leases {
    /// Those of a lab that was there before, or none yet.
    fn load(file: &Path) -> Self {
        let kept = fs::read(file).ok().and_then(|text| serde_json::from_slice(&text).ok());
        kept.unwrap_or_else(|| Self { network: network(std::process::id()), given: BTreeMap::new() })
    }

    fn give(&mut self, mac: &str, file: &Path) -> Result<Ipv4Addr, String> {
        if let Some(given) = self.given.get(mac) {
            return Ok(*given);
        }
        let [a, b, c] = self.network;
        let next = u8::try_from(self.given.len()).ok().and_then(|count| FIRST.checked_add(count));
        let address = Ipv4Addr::new(
            a,
            b,
            c,
            next.ok_or_else(|| format!("the lab's network has no address left: remove {}", file.display()))?,
        );
        self.given.insert(mac.to_owned(), address);
        let kept = write_private(file, &serde_json::json!(self).to_string());
        kept.map_err(|error| format!("cannot write {}: {error}", file.display()))?;
        Ok(address)
    }
}

/// A guest that has been started, and how to be rid of it.
#[derive(Clone)]
struct Guest {
    wish: Arc<watch::Sender<Wish>>,
    /// Closed once nothing of it runs any more.
    life: watch::Receiver<()>,
}

/// What is to become of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wish {
    Run,
    /// It may end by itself.
    Stop,
    /// At once.
    Cut,
}

impl Guest {
    fn wants(&self, wish: Wish) {
        self.wish.send_if_modified(|now| {
            let more = wish > *now;
            *now = wish.max(*now);
            more
        });
    }

    async fn gone(mut self) {
        while self.life.changed().await.is_ok() {}
    }
}

impl RealGuests {
    /// Guests below the folder of a lab.
    pub(super) fn new(lab: &Path, program: &Path) -> Arc<Self> {
        let lease_file = lab.join(LEASES);
        let leases = Mutex::new(Leases::load(&lease_file));
        let program = program.to_owned();
        let inner = Inner { dir: lab.join("guests"), lease_file, program, running: Mutex::default(), leases };
        Arc::new(Self { inner: Arc::new(inner) })
    }

    /// Ends all guests, asked first.
    pub(super) async fn stop(&self) {
        let running: Vec<Guest> = self.inner.running().values().cloned().collect();
        futures::future::join_all(running.into_iter().map(|guest| async move {
            guest.wants(Wish::Stop);
            guest.gone().await;
        }))
        .await;
    }
}

impl Guests for RealGuests {
    fn boot(&self, machine: Boot) -> BoxFuture<'static, Result<Report, String>> {
        let inner = Arc::clone(&self.inner);
        Box::pin(async move {
            let (tell, told) = oneshot::channel();
            let (alive, life) = watch::channel(());
            let guest = Guest { wish: Arc::new(watch::Sender::new(Wish::Run)), life };
            // The one before may not be quite gone: two daemons on one state do not go together.
            loop {
                let before = {
                    let mut running = inner.running();
                    match running.get(&machine.vm) {
                        Some(before) => before.clone(),
                        None => {
                            running.insert(machine.vm.clone(), guest.clone());
                            break;
                        }
                    }
                };
                before.gone().await;
            }
            // Its life does not hang on whoever waits for its report.
            tokio::spawn(Arc::clone(&inner).live(machine, guest, alive, tell));
            told.await.unwrap_or_else(|_| Err("it was switched off before it was up".into()))
        })
    }

    fn halt(&self, vm: &str, clean: bool) -> BoxFuture<'static, ()> {
        let guest = self.inner.running().get(vm).cloned();
        Box::pin(async move {
            if let Some(guest) = guest {
                guest.wants(if clean { Wish::Stop } else { Wish::Cut });
                guest.gone().await;
            }
        })
    }

    fn forget(&self, vm: &str) -> BoxFuture<'static, ()> {
        let folder = self.inner.dir.join(vm);
        Box::pin(async move {
            if let Err(error) = fs::remove_dir_all(&folder)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(folder = %folder.display(), %error, "the folder of a guest stays behind");
            }
        })
    }
}

impl Inner {
    fn running(&self) -> MutexGuard<'_, HashMap<String, Guest>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A guest from its first file to its last process.
    async fn live(
        self: Arc<Self>,
        machine: Boot,
        guest: Guest,
        alive: watch::Sender<()>,
        tell: oneshot::Sender<Result<Report, String>>,
    ) {
        let mut wish = guest.wish.subscribe();
        let mut daemon = None;
        let up = tokio::select! {
            up = self.come_up(&machine, &mut daemon) => Some(up),
            _ = wish.wait_for(|wish| *wish > Wish::Run) => None,
        };
        let is_up = matches!(up, Some(Ok(_)));
        if let Some(up) = up {
            // Nobody has to wait for it.
            let _ = tell.send(up);
        }
        if is_up {
            self.keep_up(&machine, &mut daemon, &mut wish).await;
        } else if wish.borrow().eq(&Wish::Run) {
            // A machine whose guest does not come up runs on all the same.
            let _ = wish.wait_for(|wish| *wish > Wish::Run).await;
        }
        if let Some(mut daemon) = daemon {
            let cut = async { drop(wish.wait_for(|wish| *wish == Wish::Cut).await) };
            tokio::select! {
                biased;
                () = cut => {}
                () = proxy::end("a guest", &mut daemon.child) => {}
            }
            // Waits for its end, too; one that has ended does not mind.
            let _ = daemon.child.kill().await;
        }
        self.running().remove(&machine.vm);
        drop(alive);
    }

    /// Starts the daemon again whenever it has ended by itself, as an appliance's service manager does.
    async fn keep_up(&self, machine: &Boot, daemon: &mut Option<Started>, wish: &mut watch::Receiver<Wish>) {
        let folder = self.dir.join(&machine.vm);
        let again = async {
            loop {
                if let Some(running) = daemon.as_mut() {
                    let _ = running.child.wait().await;
                }
                tokio::time::sleep(proxy::PAUSE).await;
                match proxy::spawn(&self.program, &folder.join("etc/backhaul/backhauld.toml"), &folder) {
                    Ok(started) => {
                        if let Err(failure) = daemon.insert(started).ready(&machine.vm).await {
                            tracing::warn!(vm = machine.vm, ?failure, "the daemon of a guest does not start again");
                        }
                    }
                    Err(failure) => tracing::warn!(vm = machine.vm, ?failure, "the daemon of a guest does not start again"),
                }
            }
        };
        tokio::select! {
            () = again => {}
            _ = wish.wait_for(|wish| *wish > Wish::Run) => {}
        }
    }

    async fn come_up(&self, machine: &Boot, daemon: &mut Option<Started>) -> Result<Report, String> {
        let folder = self.dir.join(&machine.vm);
        let xenstore = folder.join("xenstore");
        super::private_dir(&folder).map_err(|_| format!("cannot make {}", folder.display()))?;
        let address = self.address(machine)?;
        write_keys(&xenstore, &machine.data)?;
        // Loopback has all addresses, so the daemon is told to keep to its own.
        write_key(&xenstore, "backhaul/listen", &address.to_string())?;
        self.run("first-boot", &folder).await?;
        let config = folder.join("etc/backhaul/backhauld.toml");
        let words = |failure: Failure| {
            failure.report.map_or_else(String::new, |report| format!("{report}: {}", report.causes.join("; ")))
        };
        let started = daemon.insert(proxy::spawn(&self.program, &config, &folder).map_err(words)?);
        started.ready(&machine.vm).await.map_err(words)?;
        self.run("report", &folder).await?;
        let mut data = read_keys(&xenstore)?;
        data.remove("backhaul/listen");
        Ok(Report { address: Some(address), data })
    }

    async fn run(&self, what: &str, folder: &Path) -> Result<(), String> {
        let done = Command::new(&self.program)
            .arg(what)
            .arg("--root")
            .arg(folder)
            .arg("--xenstore-dir")
            .arg(folder.join("xenstore"))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|error| format!("cannot run {}: {error}", self.program.display()))?;
        if done.status.success() {
            return Ok(());
        }
        Err(format!("{what} ended with {}: {}", done.status, String::from_utf8_lossy(&done.stderr).trim()))
    }

    /// The static address that the machine was told, or the one its network gives it.
    fn address(&self, machine: &Boot) -> Result<IpAddr, String> {
        let told = machine.data.get("backhaul/address").or_else(|| machine.data.get("ip"));
        if let Some(told) = told.filter(|told| *told != "dhcp") {
            let address: IpAddr =
                told.split('/').next().unwrap_or_default().parse().map_err(|_| format!("{told:?} is no address"))?;
            return match address.is_loopback() {
                true => Ok(address),
                false => Err(format!("{address} is not on the lab's network: only loopback addresses are")),
            };
        }
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(IpAddr::V4(leases.give(&machine.mac, &self.lease_file)?))
    }
}

fn write_keys(folder: &Path, keys: &BTreeMap<String, String>) -> Result<(), String> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(format!("cannot empty {}: {error}", folder.display()));
        }
        _ => {}
    }
    super::private_dir(folder).map_err(|_| format!("cannot make {}", folder.display()))?;
    keys.iter().try_for_each(|(key, value)| write_key(folder, key, value))
}

fn write_key(folder: &Path, key: &str, value: &str) -> Result<(), String> {
    // Keys come from whoever deploys: none of them may leave the folder.
    if key.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
        return Err(format!("{key:?} is no key"));
    }
    let path = folder.join(key);
    let failed = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
    fs::create_dir_all(path.parent().unwrap_or(folder)).map_err(failed)?;
    write_private(&path, value).map_err(failed)
}

fn read_keys(folder: &Path) -> Result<BTreeMap<String, String>, String> {
    let mut keys = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        let failed = |error: std::io::Error| format!("cannot read {}: {error}", next.display());
        for entry in fs::read_dir(&next).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let key = path.strip_prefix(folder).ok().and_then(Path::to_str).unwrap_or_default().to_owned();
            keys.insert(key, fs::read_to_string(&path).map_err(failed)?);
        }
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_its_address_again_when_the_lab_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(LEASES);
        let mut leases = Leases::load(&file);
        let given = ["a", "b", "a"].map(|mac| leases.give(mac, &file).unwrap());
        assert!(given[0] == given[2] && given[0] != given[1], "{given:?}");
        assert_eq!(Leases::load(&file), leases);
        fs::write(&file, "no leases").unwrap();
        assert_eq!(Leases::load(&file).given, BTreeMap::new());
    }

    #[test]
    fn keys_are_files_and_stay_in_their_folder() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("xenstore");
        let keys: BTreeMap<String, String> =
            [("ip", "127.0.0.9"), ("backhaul/name", "né \"x\" 🦀")].map(|(key, value)| (key.into(), value.into())).into();
        write_keys(&folder, &keys).unwrap();
        assert_eq!(read_keys(&folder).unwrap(), keys);
        for bad in ["../x", "a/../../x", "", "a//b", "/etc/x"] {
            write_key(&folder, bad, "x").unwrap_err();
        }
        write_keys(&folder, &BTreeMap::new()).unwrap();
        assert!(read_keys(&folder).unwrap().is_empty());
    }
}
