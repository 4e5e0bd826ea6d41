//! What runs in the appliances that a test deploys: the real daemon in this process, told what it is by the real first boot,
//! each on a loopback address of its own.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use daemon::clock::SystemClock;
use daemon::config::Config;
use daemon::daemon::Running;
use daemon::first_boot::{CONFIG, Folder, XenStore, first_boot, report};
use daemon::runs::WorkerProgram;
use futures::future::BoxFuture;
use lab::{Boot, Guests, Report};

/// The daemon of one machine, while it is on. Locked while it comes up or goes down.
type Guest = Arc<tokio::sync::Mutex<Option<Running>>>;

/// All machines of a test.
#[derive(Clone)]
pub struct Machines(Arc<Site>);

struct Site {
    dir: PathBuf,
    /// Each test has a network of its own: 127.A.B.0/24.
    number: u8,
    /// By UUID of their machine.
    guests: Mutex<HashMap<String, Guest>>,
    /// By hardware address.
    leases: Mutex<BTreeMap<String, u8>>,
}

impl Machines {
    pub fn new(dir: &Path, number: u8) -> Self {
        Self(Arc::new(Site { dir: dir.to_owned(), number, guests: Mutex::default(), leases: Mutex::default() }))
    }

    /// How many have a disk.
    pub fn count(&self) -> usize {
        self.guests().len()
    }

    /// Gives each machine another address when it starts next.
    pub fn renew(&self) {
        let mut leases = self.0.leases.lock().unwrap();
        let next = 10 + leases.len() as u8;
        for (index, last) in leases.values_mut().enumerate() {
            *last = next + index as u8;
        }
    }

    fn guests(&self) -> MutexGuard<'_, HashMap<String, Guest>> {
        self.0.guests.lock().unwrap()
    }

    fn guest(&self, vm: &str) -> Guest {
        Arc::clone(self.guests().entry(vm.to_owned()).or_default())
    }

    fn address(&self, mac: &str) -> IpAddr {
        let mut leases = self.0.leases.lock().unwrap();
        let next = 10 + leases.len() as u8;
        let last = *leases.entry(mac.to_owned()).or_insert(next);
        IpAddr::V4(Ipv4Addr::new(127, 130 + (std::process::id() % 100) as u8, self.0.number, last))
    }

    async fn come_up(&self, machine: Boot) -> Result<(Running, Report), String> {
        let folder = self.0.dir.join(&machine.vm);
        let told = folder.join("xenstore");
        let _ = std::fs::remove_dir_all(&told);
        let address = self.address(&machine.mac);
        // Loopback has all addresses, so the daemon is told to keep to its own.
        let own = ("backhaul/listen".to_owned(), address.to_string());
        for (key, value) in machine.data.iter().chain([(&own.0, &own.1)]) {
            Folder(told.clone()).write(key, value).map_err(|error| error.to_string())?;
        }
        let step = async |report_back: bool| {
            let (root, xenstore) = (folder.clone(), Folder(told.clone()));
            let step = move || if report_back { report(&root, &xenstore) } else { first_boot(&root, &xenstore) };
            tokio::task::spawn_blocking(step).await.unwrap().map_err(|error| error.to_string())
        };
        step(false).await?;
        let config = Config::load(&folder.join(CONFIG)).map_err(|error| error.to_string())?;
        let program = WorkerProgram { path: env!("CARGO_BIN_EXE_backhauld").into(), arguments: vec!["worker".to_owned()] };
        let started = daemon::daemon::start(config, program, Arc::new(SystemClock)).await;
        let running = started.map_err(|error| format!("{error:?}"))?;
        step(true).await?;
        let mut data = BTreeMap::new();
        read_keys(&told, &told, &mut data);
        data.remove("backhaul/listen");
        Ok((running, Report { address: Some(address), data }))
    }
}

fn read_keys(base: &Path, folder: &Path, keys: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            read_keys(base, &path, keys);
        } else {
            let key = path.strip_prefix(base).unwrap().to_str().unwrap().to_owned();
            keys.insert(key, std::fs::read_to_string(&path).unwrap());
        }
    }
}

async fn switch_off(guest: &Guest) {
    if let Some(running) = guest.lock().await.take() {
        running.stop().await;
    }
}

impl Guests for Machines {
    fn boot(&self, machine: Boot) -> BoxFuture<'static, Result<Report, String>> {
        let (machines, guest) = (self.clone(), self.guest(&machine.vm));
        // On a task of its own: whoever waits for the report may go away, and what came up is then still there to switch off.
        let booting = tokio::spawn(async move {
            let mut guest = guest.lock().await;
            if let Some(before) = guest.take() {
                before.stop().await;
            }
            let (running, report) = machines.come_up(machine).await?;
            *guest = Some(running);
            Ok(report)
        });
        Box::pin(async move { booting.await.unwrap() })
    }

    fn halt(&self, vm: &str, _clean: bool) -> BoxFuture<'static, ()> {
        let guest = self.guests().get(vm).cloned();
        Box::pin(async move {
            if let Some(guest) = guest {
                switch_off(&guest).await;
            }
        })
    }

    fn forget(&self, vm: &str) -> BoxFuture<'static, ()> {
        let guest = self.guests().remove(vm);
        let folder = self.0.dir.join(vm);
        Box::pin(async move {
            if let Some(guest) = guest {
                switch_off(&guest).await;
                let _ = std::fs::remove_dir_all(folder);
            }
        })
    }
}
