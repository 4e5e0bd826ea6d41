//! The pools: one session each, made when first needed, its state shown, its records read.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use api::{ErrorReport, Pool, PoolAddParams, PoolState, Sr, Topic, Vm, VmDisk};
use engine::plan::{PoolAccess, Secret};
use futures::future::join_all;
use tls::{Fingerprint, Trust};
use xapi::{Client, Connect, Record};

use crate::fault::{self, Fault};
use crate::news::News;
use crate::store::{PoolRecord, Store};

/// For one question to a pool, logging in included.
const PATIENCE: Duration = Duration::from_secs(30);
/// So long a failed login answers for others who ask at the same time.
const FRESH: Duration = Duration::from_secs(1);
/// A pool that was away is looked at again when somebody lists pools, at most this often.
const LOOK_AGAIN: Duration = Duration::from_secs(15);

async fn log_out(entries: &[Arc<Entry>]) {
    join_all(entries.iter().map(|entry| async move {
        let client = entry.client.lock().await.take();
        if let Some(client) = client {
            let _ = tokio::time::timeout(Duration::from_secs(2), client.close()).await;
        }
    }))
    .await;
}

struct Known {
    state: PoolState,
    error: Option<ErrorReport>,
    looked: Option<Instant>,
}

struct Entry {
    record: PoolRecord,
    client: tokio::sync::Mutex<Option<Client>>,
    known: Mutex<Known>,
}

impl Entry {
    fn new(record: PoolRecord, client: Option<Client>) -> Arc<Self> {
        let state = if client.is_some() { PoolState::Connected } else { PoolState::Unknown };
        let known = Mutex::new(Known { state, error: None, looked: client.is_some().then(Instant::now) });
        Arc::new(Self { record, client: tokio::sync::Mutex::new(client), known })
    }

    fn show(&self) -> Pool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        Pool {
            id: self.record.id.clone(),
            name: self.record.name.clone(),
            url: self.record.url.clone(),
            username: self.record.username.clone(),
            fingerprint: self.record.fingerprint.clone(),
            state: known.state,
            error: known.error.clone(),
        }
    }

    fn fresh_failure(&self) -> Option<ErrorReport> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = known.looked.is_some_and(|looked| looked.elapsed() < FRESH);
        known.error.clone().filter(|_| recent)
    }
}

/// The pools of this proxy.
pub struct Pools {
    store: Arc<Store>,
    news: Arc<News>,
    entries: Mutex<HashMap<String, Arc<Entry>>>,
}

impl Pools {
    /// Takes up the stored pools; asks none of them anything yet.
    pub async fn open(store: Arc<Store>, news: Arc<News>) -> Result<Arc<Self>, crate::store::StoreError> {
        let entries = store.pools().await?.into_iter().map(|record| (record.id.clone(), Entry::new(record, None))).collect();
        Ok(Arc::new(Self { store, news, entries: Mutex::new(entries) }))
    }

    /// Takes up the pools as they are stored now, after all of them have changed.
    pub async fn reload(&self) -> Result<(), crate::store::StoreError> {
        let stored = self.store.pools().await?;
        let former: Vec<Arc<Entry>> = {
            let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            let new = stored.into_iter().map(|record| (record.id.clone(), Entry::new(record, None))).collect();
            std::mem::replace(&mut *entries, new).into_values().collect()
        };
        log_out(&former).await;
        Ok(())
    }

    fn entries(&self) -> Vec<Arc<Entry>> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries: Vec<_> = entries.values().cloned().collect();
        entries.sort_by_key(|entry| (entry.record.name.to_lowercase(), entry.record.id.clone()));
        entries
    }

    fn entry(&self, id: &str) -> Result<Arc<Entry>, Fault> {
        let entries = self.entries();
        let found = entries.iter().find(|entry| entry.record.id == id).or_else(|| entries.iter().find(|e| e.record.name == id));
        found.cloned().ok_or_else(|| Fault::missing("pool", id))
    }

    /// Identifier and name of the pool with an id, or a name.
    ///
    /// # Errors
    /// There is none.
    pub fn find(&self, id: &str) -> Result<(String, String), Fault> {
        self.entry(id).map(|entry| (entry.record.id.clone(), entry.record.name.clone()))
    }

    fn chosen(&self, pool: Option<&str>) -> Result<Vec<Arc<Entry>>, Fault> {
        match pool {
            Some(id) => Ok(vec![self.entry(id)?]),
            None => Ok(self.entries()),
        }
    }

    /// How to reach a pool, for a worker.
    pub fn access(&self, id: &str) -> Result<PoolAccess, Fault> {
        let record = &self.entry(id)?.record;
        Ok(PoolAccess {
            id: record.id.clone(),
            name: record.name.clone(),
            url: record.url.clone(),
            username: record.username.clone(),
            password: Secret::new(&record.password),
            fingerprint: record.fingerprint.clone(),
        })
    }

    /// The ids of all pools.
    pub fn ids(&self) -> Vec<String> {
        self.entries().iter().map(|entry| entry.record.id.clone()).collect()
    }

    /// The pools as last seen. Those not seen yet, or away, are looked at in the background; watchers hear of it.
    pub fn list(self: &Arc<Self>) -> Vec<Pool> {
        let entries = self.entries();
        for entry in &entries {
            let due = {
                let known = entry.known.lock().unwrap_or_else(PoisonError::into_inner);
                known.state != PoolState::Connected && known.looked.is_none_or(|looked| looked.elapsed() >= LOOK_AGAIN)
            };
            if due {
                let (pools, entry) = (Arc::clone(self), Arc::clone(entry));
                tokio::spawn(async move { pools.client(&entry).await.map(drop) });
            }
        }
        entries.iter().map(|entry| entry.show()).collect()
    }

    /// The pools as last seen, without looking.
    pub fn known(&self) -> Vec<Pool> {
        self.entries().iter().map(|entry| entry.show()).collect()
    }

    /// Connects a pool and stores it. Without fingerprint the certificate it shows is pinned.
    pub async fn add(&self, params: PoolAddParams, at: i64) -> Result<Pool, Fault> {
        let trust = match &params.fingerprint {
            Some(text) => {
                Trust::Pinned(text.parse().map_err(|error| Fault::invalid("fingerprint", format!("fingerprint: {error}")))?)
            }
            None => Trust::Pinned(first_contact(&params.url).await?),
        };
        let Trust::Pinned(fingerprint) = &trust else { unreachable!("both arms pin") };
        let fingerprint = fingerprint.to_string();
        let client = connect(&params.url, &params.username, &params.password, trust).await.map_err(|error| {
            let what = format!("cannot add the pool {}", shown(&params.url));
            Fault::Failed(explain(&error, &what))
        })?;
        let name = match params.name.filter(|name| !name.trim().is_empty()) {
            Some(name) => crate::rpc::params::name(&name)?,
            None => own_name(&client).await.unwrap_or_else(|| shown(&params.url)),
        };
        let record = PoolRecord {
            id: uuid::Uuid::new_v4().to_string(),
            name,
            url: params.url,
            username: params.username,
            password: params.password,
            fingerprint,
        };
        self.store.add_pool(&record, at).await?;
        let entry = Entry::new(record, Some(client));
        let pool = entry.show();
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).insert(pool.id.clone(), entry);
        self.news.changed(Topic::Pools);
        self.news.changed(Topic::Vms);
        Ok(pool)
    }

    /// Forgets a pool.
    pub async fn remove(&self, id: &str) -> Result<(), Fault> {
        let entry = self.entry(id)?;
        self.store.remove_pool(&entry.record.id).await?;
        self.entries.lock().unwrap_or_else(PoisonError::into_inner).remove(&entry.record.id);
        if let Some(client) = entry.client.lock().await.take() {
            client.close().await;
        }
        self.news.changed(Topic::Pools);
        self.news.changed(Topic::Vms);
        Ok(())
    }

    /// Logs out everywhere: pools count our sessions.
    pub async fn close(&self) {
        log_out(&self.entries()).await;
    }

    async fn client(&self, entry: &Entry) -> Result<Client, ErrorReport> {
        let mut slot = entry.client.lock().await;
        if let Some(client) = &*slot {
            return Ok(client.clone());
        }
        // Several asked at once: one attempt answers for all.
        if let Some(report) = entry.fresh_failure() {
            return Err(report);
        }
        let record = &entry.record;
        let trust = match record.fingerprint.parse::<Fingerprint>() {
            Ok(fingerprint) => Trust::Pinned(fingerprint),
            Err(error) => return Err(fault::report("POOL_FINGERPRINT", "the stored fingerprint is damaged", &error)),
        };
        let connected = connect(&record.url, &record.username, &record.password, trust).await;
        let result = connected.map_err(|error| explain(&error, &format!("cannot reach the pool {}", record.name)));
        self.note(entry, result.as_ref().err());
        let client = result?;
        *slot = Some(client.clone());
        Ok(client)
    }

    /// Keeps what was learnt of a pool, and tells watchers when it is news.
    fn note(&self, entry: &Entry, error: Option<&ErrorReport>) {
        let state = if error.is_some() { PoolState::Unreachable } else { PoolState::Connected };
        let changed = {
            let mut known = entry.known.lock().unwrap_or_else(PoisonError::into_inner);
            let changed = known.state != state;
            *known = Known { state, error: error.cloned(), looked: Some(Instant::now()) };
            changed
        };
        if changed {
            if let Some(error) = error {
                tracing::warn!(pool = entry.record.name, %error, "a pool is away");
            }
            self.news.changed(Topic::Pools);
            self.news.changed(Topic::Vms);
        }
    }

    /// Asks a pool something, within its time, and keeps whether it answered.
    async fn ask<T, F: Future<Output = xapi::Result<T>>>(
        &self,
        entry: &Entry,
        what: &str,
        question: impl FnOnce(Client) -> F,
    ) -> Result<T, ErrorReport> {
        let asking = async {
            let client = self.client(entry).await?;
            let answer = question(client).await;
            answer.map_err(|error| explain(&error, &format!("cannot read the {what} of the pool {}", entry.record.name)))
        };
        let answer = tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| {
            let message = format!("the pool {} did not answer within {} s", entry.record.name, PATIENCE.as_secs());
            Err(ErrorReport::new("POOL_TIMEOUT", message))
        });
        self.note(entry, answer.as_ref().err());
        answer
    }

    /// What a pool offers to a new proxy.
    ///
    /// # Errors
    /// There is no such pool, or it does not answer.
    pub async fn offer(&self, id: &str) -> Result<crate::deploy::Offer, Fault> {
        let entry = self.entry(id)?;
        let (id, name) = (entry.record.id.clone(), entry.record.name.clone());
        let asked =
            self.ask(&entry, "hosts and storage", |client| async move { crate::deploy::read_offer(id, name, &client).await });
        Ok(asked.await?)
    }

    /// The addresses that the guest of a VM reports now, the first interface's first; none of a VM that is gone or tells nothing.
    ///
    /// # Errors
    /// There is no such pool, or it does not answer.
    pub async fn guest_addresses(&self, id: &str, vm: &str) -> Result<Vec<IpAddr>, Fault> {
        let entry = self.entry(id)?;
        let asked = self.ask(&entry, "guests", |client| async move {
            let networks = async {
                let vm = client.by_uuid::<xapi::Vm>(vm).await?;
                if vm.guest_metrics.is_null() {
                    return Ok(Default::default());
                }
                Ok(client.get::<xapi::VmGuestMetrics>(&vm.guest_metrics).await?.networks.clone())
            };
            match networks.await {
                Err(error) if xapi::Error::is_gone(&error) => Ok(Vec::new()),
                networks => Ok(engine::guest_addresses(&networks?)),
            }
        });
        Ok(asked.await?)
    }

    /// Whether a pool answers now.
    pub async fn check(&self, id: &str) -> Result<(), ErrorReport> {
        let entry = self.entry(id).map_err(Fault::report)?;
        self.ask(&entry, "state", |client| async move { client.all::<xapi::Pool>().await.map(drop) }).await
    }

    /// The VMs of all pools or one. A pool that is away leaves its VMs out, and says why in its own record; when none
    /// answers, that is an error.
    pub async fn vms(&self, pool: Option<&str>) -> Result<Vec<Vm>, Fault> {
        let answers = self.ask_all(pool, "VMs", |id, client| async move { read_vms(&id, &client).await }).await?;
        for (id, vms) in &answers {
            let seen: Vec<(String, String)> = vms.iter().map(|vm| (vm.uuid.clone(), vm.name.clone())).collect();
            self.store.note_vms(id, &seen).await?;
        }
        Ok(answers.into_iter().flat_map(|(_, vms)| vms).collect())
    }

    /// The storage repositories of all pools or one, under the same rule.
    pub async fn srs(&self, pool: Option<&str>) -> Result<Vec<Sr>, Fault> {
        let answers = self.ask_all(pool, "storage", |id, client| async move { read_srs(&id, &client).await }).await?;
        Ok(answers.into_iter().flat_map(|(_, srs)| srs).collect())
    }

    async fn ask_all<T, F>(
        &self,
        pool: Option<&str>,
        what: &str,
        question: impl Fn(String, Client) -> F,
    ) -> Result<Vec<(String, T)>, Fault>
    where
        F: Future<Output = xapi::Result<T>>,
    {
        let entries = self.chosen(pool)?;
        let answers = join_all(entries.iter().map(|entry| {
            let id = entry.record.id.clone();
            let question = &question;
            async move { (id.clone(), self.ask(entry, what, |client| question(id, client)).await) }
        }))
        .await;
        let mut good = Vec::new();
        let mut failure = None;
        for (id, answer) in answers {
            match answer {
                Ok(answer) => good.push((id, answer)),
                Err(report) => failure = failure.or(Some(report)),
            }
        }
        match failure {
            Some(report) if good.is_empty() => Err(report.into()),
            _ => Ok(good),
        }
    }

    /// Which of the VMs no pool knows; those on pools that are away count as known.
    pub async fn unknown_vms(&self, uuids: &[String]) -> Result<Vec<String>, Fault> {
        if self.entries().is_empty() {
            return Ok(uuids.to_vec());
        }
        let seen = self.vms(None).await;
        let all_answered = seen.is_ok() && self.known().iter().all(|pool| pool.state == PoolState::Connected);
        let seen = seen.unwrap_or_default();
        let missing: Vec<String> = uuids.iter().filter(|uuid| !seen.iter().any(|vm| vm.uuid == **uuid)).cloned().collect();
        if !all_answered && !missing.is_empty() {
            tracing::warn!(vms = missing.join(", "), "accepted unseen: not every pool answers");
            return Ok(Vec::new());
        }
        Ok(missing)
    }

    /// On which pool a VM is, and its name, as far as anybody knows; asks the pools only when it was never seen.
    pub async fn locate(&self, uuid: &str) -> Result<(String, String), Fault> {
        if let Some(known) = self.store.known_vm(uuid).await? {
            return Ok(known);
        }
        let _ = self.vms(None).await;
        if let Some(known) = self.store.known_vm(uuid).await? {
            return Ok(known);
        }
        match self.entries().first() {
            Some(entry) => Ok((entry.record.id.clone(), uuid.to_owned())),
            None => Err(ErrorReport::new("NO_POOL", "this proxy has no pool")
                .with_next("add the pool of the VMs: backhaul pool add")
                .into()),
        }
    }
}

/// The address without what could be a password.
fn shown(url: &str) -> String {
    match url::Url::parse(url) {
        Ok(parsed) => parsed.host_str().unwrap_or("without a host").to_owned(),
        Err(_) => url.rsplit('@').next().unwrap_or_default().chars().take(100).collect(),
    }
}

async fn first_contact(url: &str) -> Result<Fingerprint, Fault> {
    let what = format!("cannot add the pool {}", shown(url));
    xapi::fingerprint(url).await.map_err(|error| Fault::Failed(explain(&error, &what)))
}

async fn connect(url: &str, username: &str, password: &str, trust: Trust) -> xapi::Result<Client> {
    Client::connect(Connect::new(url, username, password, trust)).await
}

/// An error of a pool in words, with what to do.
pub(crate) fn explain(error: &xapi::Error, what: &str) -> ErrorReport {
    let report = fault::report(error.code(), what, error);
    match error.code() {
        "POOL_CERTIFICATE" => report.with_next(
            "if the pool's certificate was renewed, compare its fingerprint on the host and add the pool again; otherwise somebody \
             else answers in its place",
        ),
        "SESSION_AUTHENTICATION_FAILED" => report.with_next("check user and password of the pool"),
        "POOL_UNREACHABLE" => report.with_next("check address, port and network from this proxy to the pool's master"),
        _ => report,
    }
}

async fn own_name(client: &Client) -> Option<String> {
    let pool = client.all::<xapi::Pool>().await.ok()?.into_iter().next()?;
    if !pool.name_label.trim().is_empty() {
        return Some(pool.name_label.clone());
    }
    let master = client.get::<xapi::Host>(&pool.master).await.ok()?;
    Some(master.name_label.clone()).filter(|name| !name.trim().is_empty())
}

async fn read_vms(pool: &str, client: &Client) -> xapi::Result<Vec<Vm>> {
    let (vms, vbds, vdis) = tokio::try_join!(client.all::<xapi::Vm>(), client.all::<xapi::Vbd>(), client.all::<xapi::Vdi>())?;
    let vdis: HashMap<&xapi::Ref, &Record<xapi::Vdi>> = vdis.iter().map(|vdi| (&vdi.reference, vdi)).collect();
    let mut disks: HashMap<&xapi::Ref, Vec<(u32, VmDisk)>> = HashMap::new();
    for vbd in vbds.iter().filter(|vbd| vbd.r#type == "Disk" && !vbd.empty) {
        let Some(vdi) = vdis.get(&vbd.vdi) else { continue };
        let position: u32 = vbd.userdevice.parse().unwrap_or(u32::MAX);
        let disk = VmDisk {
            vdi: vdi.uuid.clone(),
            name: vdi.name_label.clone(),
            device: if vbd.device.is_empty() { device_name(position) } else { vbd.device.clone() },
            bytes: vdi.virtual_size,
            cbt: vdi.cbt_enabled,
        };
        disks.entry(&vbd.vm).or_default().push((position, disk));
    }
    let mut found: Vec<Vm> = vms
        .iter()
        .filter(|vm| !vm.is_a_template && !vm.is_a_snapshot && !vm.is_control_domain)
        .map(|vm| {
            let mut disks = disks.remove(&vm.reference).unwrap_or_default();
            disks.sort_by_key(|(position, _)| *position);
            Vm {
                pool: pool.to_owned(),
                uuid: vm.uuid.clone(),
                name: vm.name_label.clone(),
                power_state: vm.power_state.clone(),
                tags: vm.tags.clone(),
                disks: disks.into_iter().map(|(_, disk)| disk).collect(),
            }
        })
        .collect();
    found.sort_by_cached_key(|vm| (vm.name.to_lowercase(), vm.uuid.clone()));
    Ok(found)
}

/// As a Linux guest will call it.
fn device_name(position: u32) -> String {
    match u8::try_from(position) {
        Ok(position) if position < 26 => format!("xvd{}", char::from(b'a' + position)),
        _ => String::new(),
    }
}

async fn read_srs(pool: &str, client: &Client) -> xapi::Result<Vec<Sr>> {
    let (srs, pools) = tokio::try_join!(client.all::<xapi::Sr>(), client.all::<xapi::Pool>())?;
    let default = pools.first().map(|pool| pool.default_sr.clone());
    let mut found: Vec<Sr> = srs
        .iter()
        .filter(|sr| sr.content_type != "iso" && !matches!(sr.r#type.as_str(), "iso" | "udev") && sr.physical_size > 0)
        .map(|sr| Sr {
            pool: pool.to_owned(),
            uuid: sr.uuid.clone(),
            name: sr.name_label.clone(),
            bytes: sr.physical_size,
            free: sr.physical_size.saturating_sub(sr.physical_utilisation),
            default: default.as_ref() == Some(&sr.reference),
        })
        .collect();
    found.sort_by_cached_key(|sr| (!sr.default, sr.name.to_lowercase(), sr.uuid.clone()));
    Ok(found)
}
