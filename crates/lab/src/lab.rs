//! A laboratory as others use it: opened, asked, and closed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use disks::{BlockRead, NbdServer, NbdTls};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::database::Database;
use crate::dump::Dump;
use crate::error::LabError;
use crate::failure::Answer;
use crate::fault::{FaultSpec, Faults};
use crate::inventory::{self, VmInfo};
use crate::pool::{Identity, Pool, Saved, read_json, write_json};
use crate::session::Sessions;
use crate::shelf::Shelf;
use crate::spec::{LabSpec, PoolSpec};
use crate::writer::{self, Mutation};
use crate::{export_names, rpc, server, world};

/// Running pools. Dropping it stops them; [`Lab::close`] also waits until everything is saved.
pub struct Lab {
    dir: PathBuf,
    pools: Vec<PoolHandle>,
}

impl Lab {
    /// Opens the lab in `dir`, or builds it there from `spec` when there is none yet. A lab that exists keeps its own
    /// specification, ports, passwords and certificates.
    ///
    /// # Errors
    /// [`LabError`]: the specification is not usable, the directory cannot be used, its state is damaged, a disk cannot be made, no port is free.
    pub async fn open(dir: &Path, spec: &LabSpec) -> Result<Self, LabError> {
        tls::install_provider();
        std::fs::create_dir_all(dir).map_err(LabError::file("make", dir))?;
        let dir = dir.canonicalize().map_err(LabError::file("find", dir))?;
        spec.check()?;
        let file = dir.join("world.json");
        let spec = match read_json::<LabSpec>(&file)? {
            Some(known) => known,
            None => {
                write_json(&file, spec)?;
                spec.clone()
            }
        };
        let building = spec.pools.iter().enumerate().map(|(index, pool)| {
            let (dir, pool, seed) = (dir.join(pool_dir(index, &pool.name)), pool.clone(), spec.seed);
            tokio::task::spawn_blocking(move || build_if_new(&dir, &pool, seed).map(|()| dir))
        });
        let mut pools = Vec::new();
        for built in futures::future::join_all(building).await {
            let dir = built.map_err(|error| LabError::Spec(error.to_string()))??;
            pools.push(PoolHandle::start(dir).await?);
        }
        Ok(Self { dir, pools })
    }

    /// A small lab for tests: [`LabSpec::single`].
    ///
    /// # Errors
    /// As [`Lab::open`].
    pub async fn single(dir: &Path) -> Result<Self, LabError> {
        Self::open(dir, &LabSpec::single()).await
    }

    /// Where its state lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The pools, in the order of the specification.
    pub fn pools(&self) -> &[PoolHandle] {
        &self.pools
    }

    /// The first pool, which every lab has.
    pub fn pool(&self) -> &PoolHandle {
        &self.pools[0]
    }

    /// The pool of that name.
    pub fn pool_named(&self, name: &str) -> Option<&PoolHandle> {
        self.pools.iter().find(|pool| pool.name() == name)
    }

    /// Stops everything and waits until it has stopped and is saved.
    ///
    /// # Errors
    /// [`LabError::File`] when the last state cannot be written.
    pub async fn close(self) -> Result<(), LabError> {
        for pool in &self.pools {
            pool.close().await?;
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for pool in &self.pools {
            pool.inner.stop.cancel();
        }
    }
}

fn build_if_new(dir: &Path, pool: &PoolSpec, seed: u64) -> Result<(), LabError> {
    if dir.join("identity.json").exists() {
        return Ok(());
    }
    if dir.exists() {
        // A building that was interrupted.
        std::fs::remove_dir_all(dir).map_err(LabError::file("remove", dir))?;
    }
    world::build(dir, pool, seed)
}

/// A pool's directory: its name as far as a file system and a reader bear it.
fn pool_dir(index: usize, name: &str) -> String {
    let plain: String = name.chars().take(40).map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
    format!("pool-{}-{plain}", index + 1)
}

/// A running pool.
#[derive(Clone)]
pub struct PoolHandle {
    inner: Arc<Pool>,
}

impl PoolHandle {
    async fn start(dir: PathBuf) -> Result<Self, LabError> {
        let opened = tokio::task::spawn_blocking({
            let dir = dir.clone();
            move || open_state(&dir)
        });
        let (mut identity, saved, store, shelf) = opened.await.map_err(|error| LabError::Spec(error.to_string()))??;
        let certificate =
            tls::SelfSigned { certificate_pem: identity.certificate_pem.clone(), key_pem: identity.key_pem.clone() };
        let config =
            certificate.server_config().map_err(|source| LabError::Certificate { pool: identity.name.clone(), source })?;
        let listeners = listen(&identity).await?;
        identity.port = port_of(&listeners);
        let stop = CancellationToken::new();
        let pool = Arc::new(Pool {
            db: Database::new(store),
            shelf,
            sessions: Sessions::default(),
            faults: Faults::default(),
            calls: Mutex::default(),
            vtpms: Mutex::new(saved.vtpms),
            write_rate: watch::Sender::new(saved.settings.writes_per_second),
            mutations: AtomicU64::new(saved.mutations),
            offline: watch::Sender::new(false),
            nbd: Mutex::default(),
            cancels: Mutex::default(),
            listening: OnceLock::new(),
            guests: OnceLock::new(),
            booted: Mutex::default(),
            stop,
            tracker: TaskTracker::new(),
            runtime: Handle::current(),
            settings: saved.settings,
            identity: identity.clone(),
            dir,
        });
        let nbd = listen_nbd(&pool, &identity, &config).await?;
        identity.nbd_port = nbd.first().map_or(0, |server| server.address().port());
        let addresses = (SocketAddr::new(LOOPBACK, identity.port), SocketAddr::new(LOOPBACK, identity.nbd_port));
        *pool.nbd.lock().unwrap_or_else(PoisonError::into_inner) = nbd;
        let _first = pool.listening.set(addresses);
        // The ports are kept, so that a lab is found again where it was.
        write_json(&pool.dir.join("identity.json"), &identity)?;
        for (host, listener) in listeners.into_iter().enumerate() {
            pool.tracker.spawn(server::listen(Arc::clone(&pool), host, listener, TlsAcceptor::from(Arc::clone(&config))));
        }
        pool.tracker.spawn(Arc::clone(&pool).keep_saved());
        pool.tracker.spawn(writer::keep_writing(Arc::clone(&pool)));
        Ok(Self { inner: pool })
    }

    async fn close(&self) -> Result<(), LabError> {
        self.inner.stop.cancel();
        let servers = std::mem::take(&mut *self.inner.nbd.lock().unwrap_or_else(PoisonError::into_inner));
        for server in servers {
            server.close().await;
        }
        self.inner.tracker.close();
        self.inner.tracker.wait().await;
        let pool = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || pool.save()).await.map_err(|error| LabError::Spec(error.to_string()))?
    }

    /// Its name label.
    pub fn name(&self) -> &str {
        &self.inner.identity.name
    }

    /// Where its master answers: `https://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        self.host_url(0)
    }

    /// Where the host at a position answers; all but the first are slaves.
    pub fn host_url(&self, host: usize) -> String {
        let port = self.inner.listening.get().map_or(0, |(https, _)| https.port());
        format!("https://{}:{port}", Pool::host_address(host))
    }

    /// Port of the NBD servers, on the addresses of the hosts.
    pub fn nbd_port(&self) -> u16 {
        self.inner.listening.get().map_or(0, |(_, nbd)| nbd.port())
    }

    /// Who may log in.
    pub fn username(&self) -> &str {
        &self.inner.identity.username
    }

    /// With what. A secret.
    pub fn password(&self) -> &str {
        &self.inner.identity.password
    }

    /// Certificate of HTTPS and NBD, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.inner.identity.certificate_pem
    }

    /// Its fingerprint.
    ///
    /// # Panics
    /// Never: the certificate was used to listen with.
    pub fn fingerprint(&self) -> tls::Fingerprint {
        let identity = &self.inner.identity;
        tls::SelfSigned { certificate_pem: identity.certificate_pem.clone(), key_pem: String::new() }
            .fingerprint()
            .expect("the certificate was read when the pool began to listen")
    }

    /// Its machines as they are now: no templates, snapshots or control domains.
    pub fn vms(&self) -> Vec<VmInfo> {
        inventory::vms(&self.inner)
    }

    /// The machine with that UUID or name.
    pub fn vm(&self, name: &str) -> Option<VmInfo> {
        let all = self.vms();
        all.iter().find(|vm| vm.uuid == name).or_else(|| all.iter().find(|vm| vm.name == name)).cloned()
    }

    /// File of the live disk at a position of a machine.
    ///
    /// # Errors
    /// [`LabError::Unknown`].
    pub fn disk_path(&self, vm: &str, position: usize) -> Result<PathBuf, LabError> {
        let disk = self.vm(vm).and_then(|vm| vm.disks.into_iter().nth(position));
        disk.map(|disk| disk.path).ok_or_else(|| self.unknown(format!("disk {position} of a VM {vm}")))
    }

    /// A disk, live or snapshot, by the UUID of its VDI; for reading.
    ///
    /// # Errors
    /// [`LabError::Unknown`], also for a snapshot whose data is destroyed.
    pub fn disk(&self, vdi: &str) -> Result<Arc<dyn BlockRead>, LabError> {
        let reference = self.inner.db.with(|store| store.by_uuid("VDI", vdi));
        let view = reference.and_then(|reference| self.inner.shelf.view(&reference));
        view.map(|view| Arc::new(view) as Arc<dyn BlockRead>).map_err(|_| self.unknown(format!("readable VDI {vdi}")))
    }

    /// Writes into the live disk of a VDI, as its machine would.
    ///
    /// # Errors
    /// [`LabError::Unknown`], [`LabError::Disk`].
    pub fn write_disk(&self, vdi: &str, offset: u64, bytes: &[u8]) -> Result<(), LabError> {
        let reference = self.inner.db.with(|store| store.by_uuid("VDI", vdi));
        let found = reference.and_then(|reference| self.inner.shelf.find(&reference));
        let (image, _) = found.map_err(|_| self.unknown(format!("VDI {vdi}")))?;
        image.write_at(offset, bytes).map_err(|source| LabError::Disk { pool: self.name().to_owned(), source })
    }

    /// Changes a share of the 2 MiB blocks of each disk of a machine, `percent` of 0 to 100; at least one block of each.
    ///
    /// # Errors
    /// [`LabError::Unknown`]; [`LabError::Spec`] for a share that is none, or disks that cannot be written.
    pub async fn mutate(&self, vm: &str, percent: f64) -> Result<Vec<Mutation>, LabError> {
        let reference = inventory::find_vm(&self.inner, vm).ok_or_else(|| self.unknown(format!("VM {vm}")))?;
        let pool = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || writer::mutate(&pool, &reference, percent))
            .await
            .map_err(|error| LabError::Spec(error.to_string()))?
            .map_err(|failure| LabError::Spec(failure.to_string()))
    }

    /// Says who runs the guests of appliances; only the first counts. Machines of appliances that run are booted.
    pub fn set_guests(&self, guests: Arc<dyn crate::guests::Guests>) {
        if self.inner.guests.set(guests).is_ok() {
            rpc::boot_all(&self.inner);
        }
    }

    /// Sets how many bytes a second each running machine writes.
    pub fn set_write_rate(&self, bytes_per_second: u64) {
        self.inner.write_rate.send_replace(bytes_per_second);
    }

    /// Switches a fault on.
    pub fn set_fault(&self, fault: impl Into<FaultSpec>) {
        self.inner.faults.set(fault.into());
        self.inner.faults_changed();
    }

    /// Switches all faults off.
    pub fn clear_faults(&self) {
        self.inner.faults.clear();
        self.inner.faults_changed();
    }

    /// The faults that are on.
    pub fn faults(&self) -> Vec<FaultSpec> {
        self.inner.faults.list()
    }

    /// Notes the calls that are made from now on, by name and in order: those of XAPI as they are called, the work of an
    /// asynchronous one once more under its name without `Async.`, and transfers as `PUT /import`.
    pub fn log_calls(&self) {
        *self.inner.calls.lock().unwrap_or_else(PoisonError::into_inner) = Some(Vec::new());
    }

    /// The calls made since, which are noted no longer.
    pub fn logged_calls(&self) -> Vec<String> {
        self.inner.calls.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default()
    }

    /// All records as they are now, to be compared.
    pub fn dump(&self) -> Dump {
        self.inner.db.with(|store| Dump::of(store))
    }

    /// Cuts all NBD connections, as a crash of the server would.
    pub fn cut_nbd(&self) {
        for server in self.inner.nbd.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            server.disconnect_all();
        }
    }

    /// NBD connections open now, over all hosts.
    pub fn nbd_connections(&self) -> usize {
        self.inner.nbd.lock().unwrap_or_else(PoisonError::into_inner).iter().map(NbdServer::connections).sum()
    }

    /// Ends all sessions.
    pub fn drop_sessions(&self) {
        self.inner.sessions.close_all();
    }

    /// Sessions open now.
    pub fn sessions(&self) -> usize {
        self.inner.sessions.count()
    }

    /// A record by class and reference, as a client would read it.
    pub fn record(&self, class: &'static str, reference: &str) -> Option<Value> {
        self.inner.db.with(|store| store.get(class, reference).ok().map(|record| Value::Object(record.clone())))
    }

    /// All records of a class: what a test looks at to see that nothing is left behind.
    pub fn records(&self, class: &'static str) -> Vec<(String, Value)> {
        self.inner.db.with(|store| {
            store.all(class).map(|(reference, record)| (reference.to_owned(), Value::Object(record.clone()))).collect()
        })
    }

    /// Makes a call without going over the network; the session is the pool's own.
    ///
    /// # Errors
    /// What a client would get.
    pub async fn call(&self, method: &str, params: Vec<Value>) -> Answer {
        let session = self.inner.sessions.open(self.inner.master(), "backhaul-lab");
        let params = std::iter::once(session.as_str().into()).chain(params).collect();
        let answer = rpc::call(&self.inner, 0, method, params).await;
        self.inner.sessions.close(&session);
        answer
    }

    /// Writes the records down now.
    ///
    /// # Errors
    /// [`LabError::File`].
    pub fn save(&self) -> Result<(), LabError> {
        self.inner.save()
    }

    fn unknown(&self, what: String) -> LabError {
        LabError::Unknown { pool: self.name().to_owned(), what }
    }
}

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Reads a pool's state and puts right what a killed lab left.
fn open_state(dir: &Path) -> Result<(Identity, Saved, crate::store::Store, Shelf), LabError> {
    let missing = |name: &str| LabError::Spec(format!("{} is missing", dir.join(name).display()));
    let identity: Identity = read_json(&dir.join("identity.json"))?.ok_or_else(|| missing("identity.json"))?;
    let saved: Saved = read_json(&dir.join("pool.json"))?.ok_or_else(|| missing("pool.json"))?;
    let mut store = saved.store();
    let disks = dir.join("disks");
    for domain in &identity.control_domains {
        for vbd in store.refs("VM", domain, "VBDs").unwrap_or_default() {
            store.remove("VBD", &vbd);
        }
    }
    // Nothing goes on in a lab that has only just been opened.
    let busy = store.all("VM").filter(|(_, vm)| vm["current_operations"].as_object().is_some_and(|all| !all.is_empty()));
    for vm in busy.map(|(vm, _)| vm.to_owned()).collect::<Vec<_>>() {
        let _known = store.set("VM", &vm, "current_operations", serde_json::json!({}));
    }
    let mut places = saved.places.clone();
    places.retain(|vdi, place| store.has("VDI", vdi) && disks.join(place.image.to_string()).is_dir());
    let lost: Vec<String> = store.all("VDI").map(|(vdi, _)| vdi.to_owned()).filter(|vdi| !places.contains_key(vdi)).collect();
    for vdi in lost {
        for vbd in store.refs("VDI", &vdi, "VBDs").unwrap_or_default() {
            store.remove("VBD", &vbd);
        }
        store.remove("VDI", &vdi);
    }
    let known: Vec<String> = places.values().map(|place| place.image.to_string()).collect();
    for entry in std::fs::read_dir(&disks).map_err(LabError::file("list", &disks))?.flatten() {
        if !known.iter().any(|image| entry.file_name() == image.as_str()) {
            std::fs::remove_dir_all(entry.path()).map_err(LabError::file("remove", entry.path()))?;
        }
    }
    let shelf = Shelf::open(disks, places).map_err(|source| LabError::Disk { pool: identity.name.clone(), source })?;
    Ok((identity, saved, store, shelf))
}

fn port_of(listeners: &[TcpListener]) -> u16 {
    listeners.first().and_then(|listener| listener.local_addr().ok()).map_or(0, |address| address.port())
}

/// Listens for every host on one port: the one of before if it is free, else any.
async fn listen(identity: &Identity) -> Result<Vec<TcpListener>, LabError> {
    let mut port = identity.port;
    let mut attempts = 0;
    loop {
        match listen_on(identity, port).await {
            Ok(listeners) => return Ok(listeners),
            Err((address, source)) if attempts >= 20 => {
                return Err(LabError::Listen { pool: identity.name.clone(), address, source });
            }
            Err(_) => (port, attempts) = (0, attempts + 1),
        }
    }
}

async fn listen_on(identity: &Identity, mut port: u16) -> Result<Vec<TcpListener>, (SocketAddr, std::io::Error)> {
    let mut listeners = Vec::new();
    for host in 0..identity.hosts.len() {
        let address = host_address(host, port);
        let listener = TcpListener::bind(address).await.map_err(|source| (address, source))?;
        port = listener.local_addr().map_err(|source| (address, source))?.port();
        listeners.push(listener);
    }
    Ok(listeners)
}

fn host_address(host: usize, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, host as u8 + 1)), port)
}

async fn listen_nbd(
    pool: &Arc<Pool>,
    identity: &Identity,
    config: &Arc<rustls::ServerConfig>,
) -> Result<Vec<NbdServer>, LabError> {
    let mut wanted = identity.nbd_port;
    let mut attempts = 0;
    'again: loop {
        let (mut servers, mut port) = (Vec::new(), wanted);
        for host in 0..identity.hosts.len() {
            let address = host_address(host, port);
            let names = Arc::new(export_names::ExportNames::of(pool));
            match NbdServer::bind(address, NbdTls::Required(Arc::clone(config)), names).await {
                Ok(server) => {
                    port = server.address().port();
                    servers.push(server);
                }
                Err(source) if attempts >= 20 => return Err(LabError::Listen { pool: identity.name.clone(), address, source }),
                Err(_) => {
                    (wanted, attempts) = (0, attempts + 1);
                    continue 'again;
                }
            }
        }
        return Ok(servers);
    }
}
