//! One pool at run time: what its listeners, calls, transfers and writers share.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use disks::{NbdFaults, NbdServer};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::database::Database;
use crate::error::LabError;
use crate::failure::Failure;
use crate::fault::{CallFault, Fault, Faults};
use crate::session::Sessions;
use crate::shelf::{Place, Shelf};
use crate::store::Store;

/// What a pool keeps for ever: how to reach it, how to log in, and what proves that it is the same.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub name: String,
    pub username: String,
    pub password: String,
    pub port: u16,
    pub nbd_port: u16,
    pub certificate_pem: String,
    pub key_pem: String,
    /// Reference of each host, master first.
    pub hosts: Vec<String>,
    /// Reference of each host's control domain, in the same order.
    pub control_domains: Vec<String>,
}

/// Settings of [`crate::PoolSpec`] that hold after the building.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub detach_after: Duration,
    pub close_after: Duration,
    pub writes_per_second: u64,
    pub seed: u64,
}

/// The records on disk.
#[derive(Serialize, Deserialize)]
pub(crate) struct Saved {
    pub settings: Settings,
    pub records: Value,
    pub places: HashMap<String, Place>,
    #[serde(default)]
    pub vtpms: HashMap<String, String>,
    #[serde(default)]
    pub mutations: u64,
}

/// A pool.
pub(crate) struct Pool {
    pub identity: Identity,
    pub settings: Settings,
    pub dir: PathBuf,
    pub db: Database,
    pub shelf: Shelf,
    pub sessions: Sessions,
    pub faults: Faults,
    /// The calls made since somebody wanted them noted.
    pub calls: Mutex<Option<Vec<String>>>,
    /// Contents of virtual TPMs, by reference.
    pub vtpms: Mutex<HashMap<String, String>>,
    /// Bytes a second that each running VM writes.
    pub write_rate: watch::Sender<u64>,
    /// How often disks were mutated: each time other blocks change.
    pub mutations: AtomicU64,
    /// Whether nobody answers, by a fault.
    pub offline: watch::Sender<bool>,
    /// The NBD server of each host.
    pub nbd: Mutex<Vec<NbdServer>>,
    /// Tasks that can be cancelled, by reference.
    pub cancels: Mutex<HashMap<String, CancellationToken>>,
    /// Address of the HTTPS port and of the NBD port, once they listen.
    pub listening: OnceLock<(SocketAddr, SocketAddr)>,
    /// Who runs the guests of appliances, if anybody does.
    pub guests: OnceLock<Arc<dyn crate::guests::Guests>>,
    /// The guests that were started, by reference of their machine.
    pub booted: Mutex<HashMap<String, crate::rpc::Booted>>,
    /// Ends everything.
    pub stop: CancellationToken,
    /// Everything that runs for the pool.
    pub tracker: TaskTracker,
    /// For threads that have to start something asynchronous.
    pub runtime: Handle,
}

impl Pool {
    /// Address of a host by its position, on which it is reached.
    pub fn host_address(index: usize) -> String {
        format!("127.0.0.{}", index + 1)
    }

    /// The master.
    pub fn master(&self) -> &str {
        &self.identity.hosts[0]
    }

    /// Whether a VM is the control domain of a host.
    pub fn is_control_domain(&self, vm: &str) -> bool {
        self.identity.control_domains.iter().any(|domain| domain == vm)
    }

    /// Writes the records down, atomically: a killed lab comes back with the last complete state. Blocks.
    pub fn save(&self) -> Result<(), LabError> {
        // Places before records: a VDI without a place would be lost, a place without a VDI is only litter.
        let records = self.db.with(|store| store.to_json());
        let vtpms = self.vtpms.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let saved = Saved {
            settings: self.settings.clone(),
            records,
            places: self.shelf.places(),
            vtpms,
            mutations: self.mutations.load(Ordering::Relaxed),
        };
        write_json(&self.dir.join("pool.json"), &saved)
    }

    /// Saves at every change until the pool stops, and once more then.
    pub async fn keep_saved(self: Arc<Self>) {
        let mut changes = self.db.watch();
        let mut saved = None;
        loop {
            let stopping = tokio::select! {
                _ = changes.changed() => false,
                () = self.stop.cancelled() => true,
            };
            // Tasks come and go without leaving anything to save.
            let present = Some(self.db.with(|store| store.durable_generation()));
            if std::mem::replace(&mut saved, present) == present && !stopping {
                continue;
            }
            let pool = Arc::clone(&self);
            match tokio::task::spawn_blocking(move || pool.save()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(pool = self.identity.name, %error, "the pool's records could not be saved"),
                Err(error) => tracing::error!(pool = self.identity.name, %error, "saving the pool's records failed"),
            }
            if stopping {
                return;
            }
            // Changes come in bursts; a burst is one write.
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(50)) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    /// Attaches a VDI to the control domain for a transfer. It stays attached until the guard goes, and a little longer.
    pub fn plug(self: &Arc<Self>, vdi: &str, read_only: bool) -> Result<Plug, Failure> {
        let domain = self.identity.control_domains[0].clone();
        let vbd = self.db.with(|store| {
            store.get("VDI", vdi)?;
            Ok::<_, Failure>(store.create(
                "VBD",
                json!({
                    "VM": domain, "VDI": vdi, "device": "", "userdevice": "autodetect", "currently_attached": true,
                    "mode": if read_only { "RO" } else { "RW" }, "other_config": { "owner": "backhaul-lab" }, "unpluggable": true
                }),
            ))
        })?;
        Ok(Plug { pool: Arc::clone(self), vbd })
    }

    /// Passes on what has been switched on or off to those who do not ask at every step.
    pub fn faults_changed(self: &Arc<Self>) {
        self.offline.send_if_modified(|offline| {
            let now = self.faults.is_on(|fault| *fault == Fault::HostOffline);
            std::mem::replace(offline, now) != now
        });
        let offline = *self.offline.borrow();
        let mut wanted = NbdFaults { refuse_connections: offline, ..NbdFaults::default() };
        for spec in self.faults.list() {
            let count = spec.count.unwrap_or(u32::MAX);
            match spec.fault {
                Fault::CutNbd { after_bytes } => (wanted.cut_after_bytes, wanted.cuts) = (Some(after_bytes), count),
                Fault::NbdReadError { from_byte } => (wanted.error_range, wanted.errors) = (Some(from_byte..u64::MAX), count),
                Fault::SlowNbd { bytes_per_second } => wanted.bytes_per_second = Some(bytes_per_second.max(1)),
                Fault::SlowLine { delay } => wanted.latency = Duration::from_millis(delay),
                Fault::RefuseNbd => wanted.refuse_connections = true,
                Fault::RefuseNbdTls => wanted.refuse_tls = true,
                Fault::ShortNbdReplies => wanted.short_reads = count,
                Fault::ReorderNbdReplies => wanted.reorder = true,
                _ => {}
            }
        }
        let servers = self.nbd.lock().unwrap_or_else(PoisonError::into_inner);
        for server in servers.iter() {
            server.faults().set(wanted.clone());
            if offline {
                server.disconnect_all();
            }
        }
        drop(servers);
        if let Some(time) = self.faults.next_end() {
            let pool = Arc::clone(self);
            self.runtime.spawn(self.tracker.track_future(async move {
                tokio::select! {
                    () = tokio::time::sleep(time) => pool.faults_changed(),
                    () = pool.stop.cancelled() => {}
                }
            }));
        }
    }

    /// Notes a call, if calls are noted, and says how it is to fail, if it is.
    pub fn note_call(&self, name: &str) -> Option<CallFault> {
        if let Some(calls) = self.calls.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            calls.push(name.to_owned());
        }
        self.faults.of_call(name)
    }

    /// A token that [`Pool::cancel_task`] triggers, for something that runs under a task.
    pub fn cancellable(&self, task: &str) -> CancellationToken {
        let mut cancels = self.cancels.lock().unwrap_or_else(PoisonError::into_inner);
        cancels.entry(task.to_owned()).or_insert_with(|| self.stop.child_token()).clone()
    }

    /// Stops what runs under a task; `false` when nothing does.
    pub fn cancel_task(&self, task: &str) -> bool {
        let cancels = self.cancels.lock().unwrap_or_else(PoisonError::into_inner);
        cancels.get(task).map(CancellationToken::cancel).is_some()
    }

    /// Nothing runs under the task any more.
    pub fn forget_cancellable(&self, task: &str) {
        self.cancels.lock().unwrap_or_else(PoisonError::into_inner).remove(task);
    }
}

/// A VDI attached to the control domain.
pub(crate) struct Plug {
    pool: Arc<Pool>,
    vbd: String,
}

impl Drop for Plug {
    fn drop(&mut self) {
        let (pool, vbd) = (Arc::clone(&self.pool), std::mem::take(&mut self.vbd));
        let late = self.pool.tracker.track_future(async move {
            tokio::select! {
                () = tokio::time::sleep(pool.settings.detach_after) => {}
                () = pool.stop.cancelled() => {}
            }
            pool.db.with(|store| store.remove("VBD", &vbd));
        });
        self.pool.runtime.spawn(late);
    }
}

/// Writes a file beside its place and renames it there. Readable by its owner only: it may hold secrets.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), LabError> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;

    let text = serde_json::to_vec(value).map_err(|source| LabError::State { path: path.to_owned(), source })?;
    let temporary = path.with_extension("json.new");
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(&text))
        .map_err(LabError::file("write", &temporary))?;
    std::fs::rename(&temporary, path).map_err(LabError::file("replace", path))
}

/// Reads such a file; `None` when there is none.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, LabError> {
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|source| LabError::State { path: path.to_owned(), source }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(LabError::file("read", path)(error)),
    }
}

impl Saved {
    /// The store in it.
    pub fn store(&self) -> Store {
        Store::from_json(self.records.clone())
    }
}
