//! What runs in the appliances of these tests: as little of a proxy as a deployment can tell from a real one. It keeps its
//! state over restarts of its machine, takes what it is told, and can be made to fail one call.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};

use api::{Imported, ProxyState, ProxyStatus};
use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use lab::{Boot, Guests, Report};
use serde_json::{Value, json};
use tls::SelfSigned;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// What is on the disk of an appliance, and what its daemon holds in memory.
struct Disk {
    id: String,
    name: String,
    token: String,
    certificate: SelfSigned,
    pools: Vec<String>,
    jobs: u32,
    draining: bool,
    /// What it is at work on.
    running: Vec<Running>,
    /// How many calls more it answers before it falls silent; none: it never does.
    answers: Option<usize>,
}

/// A run of a proxy.
#[derive(Clone)]
pub struct Running {
    pub id: &'static str,
    /// In the words of the API.
    pub kind: &'static str,
    /// What it waits for before it begins; none: it has begun.
    pub waits: Option<&'static str>,
}

#[derive(Default)]
struct Site {
    /// By UUID of their machine.
    disks: HashMap<String, Arc<Mutex<Disk>>>,
    running: HashMap<String, JoinHandle<()>>,
    /// By hardware address.
    leases: HashMap<String, u8>,
    /// The calls that proxies have answered, by method.
    calls: Vec<String>,
    /// The method to fail, and which call of it.
    failing: Option<(String, usize)>,
    /// How many calls met with silence.
    unheard: usize,
    /// The runs that were at work on a machine when it was switched off.
    cut_off: Vec<&'static str>,
    /// Held while guests do not go down however nicely they are asked.
    stubborn: Option<tokio::sync::watch::Sender<()>>,
}

/// All proxies of a test.
#[derive(Clone)]
pub struct Proxies {
    site: Arc<Mutex<Site>>,
    /// Each test has a network of its own: 127.A.B.0/24.
    network: [u8; 3],
}

impl Proxies {
    /// `number`: different for each test of this program.
    pub fn new(number: u8) -> Self {
        let [_, .., low] = std::process::id().to_be_bytes();
        Self { site: Arc::default(), network: [127, 100 + low / 2, number] }
    }

    fn site(&self) -> MutexGuard<'_, Site> {
        self.site.lock().unwrap()
    }

    /// An address of the network that nobody gets by lease.
    pub fn address(&self, last: u8) -> IpAddr {
        let [a, b, c] = self.network;
        IpAddr::V4(Ipv4Addr::new(a, b, c, last))
    }

    /// Makes the call that comes next but `nth - 1` of that method fail, once.
    pub fn fail(&self, method: &str, nth: usize) {
        self.site().failing = Some((method.to_owned(), nth));
    }

    /// Whether the call that was to fail has failed; none is to any more.
    pub fn struck(&self) -> bool {
        self.site().failing.take().is_none()
    }

    /// The methods called since the last time this was asked.
    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.site().calls)
    }

    /// Makes the proxy on a machine fall silent after so many calls more; none: it answers again.
    pub fn silence(&self, vm: &str, after: Option<usize>) {
        if let Some(disk) = self.site().disks.get(vm) {
            disk.lock().unwrap().answers = after;
        }
    }

    /// How many calls met with silence so far.
    pub fn unheard(&self) -> usize {
        self.site().unheard
    }

    /// What the proxy on a machine is at work on.
    pub fn set_running(&self, vm: &str, running: Vec<Running>) {
        self.site().disks[vm].lock().unwrap().running = running;
    }

    /// The runs that were at work on a machine when it was switched off.
    pub fn cut_off(&self) -> Vec<&'static str> {
        self.site().cut_off.clone()
    }

    /// Whether guests that are asked to go down take their time, until this is taken back.
    pub fn set_stubborn(&self, stubborn: bool) {
        self.site().stubborn = stubborn.then(|| tokio::sync::watch::channel(()).0);
    }

    /// Gives the proxy on a machine so many jobs.
    pub fn set_jobs(&self, vm: &str, jobs: u32) {
        self.site().disks[vm].lock().unwrap().jobs = jobs;
    }

    /// Whether the proxy on a machine holds its runs back, and how many jobs it has.
    pub fn state(&self, vm: &str) -> (bool, u32) {
        let site = self.site();
        let disk = site.disks[vm].lock().unwrap();
        (disk.draining, disk.jobs)
    }

    /// How many appliances have a disk, and how many run.
    pub fn count(&self) -> (usize, usize) {
        let site = self.site();
        (site.disks.len(), site.running.len())
    }

    async fn boot(self, machine: Boot) -> Result<Report, String> {
        let Boot { vm, mac, mut data, .. } = machine;
        let told: BTreeMap<String, String> =
            data.iter().filter_map(|(key, value)| Some((key.strip_prefix("backhaul/")?.to_owned(), value.clone()))).collect();
        let disk = {
            let mut site = self.site();
            Arc::clone(site.disks.entry(vm.clone()).or_insert_with(|| Arc::new(Mutex::new(fresh(&told)))))
        };
        disk.lock().unwrap().draining = false;
        let address = match told.get("address").filter(|address| *address != "dhcp") {
            Some(address) => address.split('/').next().unwrap_or_default().parse().map_err(|_| format!("{address:?}"))?,
            None => {
                let mut site = self.site();
                let next = 10 + site.leases.len() as u8;
                let last = *site.leases.entry(mac).or_insert(next);
                drop(site);
                self.address(last)
            }
        };
        let port = told.get("port").and_then(|port| port.parse().ok()).ok_or("no port")?;
        let listener = TcpListener::bind(SocketAddr::new(address, port)).await.map_err(|error| error.to_string())?;
        let fingerprint = disk.lock().unwrap().certificate.fingerprint().unwrap().to_string();
        let serving = tokio::spawn(serve(self.clone(), disk, listener));
        if let Some(before) = self.site().running.insert(vm, serving) {
            before.abort();
        }
        data.retain(|key, _| !["token", "http-proxy", "login-password", "login-key"].iter().any(|end| key.ends_with(end)));
        data.insert("backhaul/ready".into(), port.to_string());
        data.insert("backhaul/fingerprint".into(), fingerprint);
        Ok(Report { address: Some(address), data })
    }

    /// Notes a call, and says whether it is the one to fail.
    fn note(&self, method: &str) -> bool {
        let mut site = self.site();
        site.calls.push(method.to_owned());
        match &mut site.failing {
            Some((failing, nth)) if failing == method && *nth > 1 => *nth -= 1,
            Some((failing, _)) if failing == method => {
                site.failing = None;
                return true;
            }
            _ => {}
        }
        false
    }
}

fn fresh(told: &BTreeMap<String, String>) -> Disk {
    let text = |key: &str| told.get(key).cloned().unwrap_or_default();
    Disk {
        id: text("id"),
        name: text("name"),
        token: text("token"),
        certificate: SelfSigned::generate(&["localhost"]).unwrap(),
        pools: Vec::new(),
        jobs: 0,
        draining: false,
        running: Vec::new(),
        answers: None,
    }
}

impl Guests for Proxies {
    fn boot(&self, machine: Boot) -> BoxFuture<'static, Result<Report, String>> {
        Box::pin(self.clone().boot(machine))
    }

    fn halt(&self, vm: &str, clean: bool) -> BoxFuture<'static, ()> {
        let (proxies, vm) = (self.clone(), vm.to_owned());
        let stubborn = self.site().stubborn.as_ref().filter(|_| clean).map(tokio::sync::watch::Sender::subscribe);
        Box::pin(async move {
            if let Some(mut stubborn) = stubborn {
                // Fails when it is taken back.
                let _ = stubborn.changed().await;
            }
            let running = {
                let mut site = proxies.site();
                let at_work = site.disks.get(&vm).map(|disk| std::mem::take(&mut disk.lock().unwrap().running));
                site.cut_off.extend(at_work.into_iter().flatten().filter(|run| run.waits.is_none()).map(|run| run.id));
                site.running.remove(&vm)
            };
            if let Some(running) = running {
                running.abort();
                // Aborted or not, its listener is closed now.
                let _ = running.await;
            }
        })
    }

    fn forget(&self, vm: &str) -> BoxFuture<'static, ()> {
        let disk = self.site().disks.remove(vm);
        Box::pin(async move { drop(disk) })
    }
}

async fn serve(proxies: Proxies, disk: Arc<Mutex<Disk>>, listener: TcpListener) {
    // With it, the connections end.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((socket, _)) = listener.accept().await {
        let (proxies, disk) = (proxies.clone(), Arc::clone(&disk));
        connections.spawn(async move {
            let config = disk.lock().unwrap().certificate.server_config().unwrap();
            let Ok(stream) = TlsAcceptor::from(config).accept(socket).await else { return };
            let service = hyper::service::service_fn(move |request| answer(proxies.clone(), Arc::clone(&disk), request));
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(
    proxies: Proxies,
    disk: Arc<Mutex<Disk>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, &'static str> {
    let silent = match &mut disk.lock().unwrap().answers {
        Some(0) => true,
        Some(more) => {
            *more -= 1;
            false
        }
        None => false,
    };
    if silent {
        proxies.site().unheard += 1;
        return Err("silent");
    }
    let shown = request.headers().get("cookie").and_then(|cookie| cookie.to_str().ok()).unwrap_or_default().to_owned();
    let expected = format!("authenticationToken={}", disk.lock().unwrap().token);
    let Ok(body) = request.into_body().collect().await else { return Ok(Response::new(Full::default())) };
    if shown != expected {
        let mut refused = Response::new(Full::default());
        *refused.status_mut() = StatusCode::UNAUTHORIZED;
        return Ok(refused);
    }
    let call: Value = serde_json::from_slice(&body.to_bytes()).unwrap();
    let method = call["method"].as_str().unwrap();
    let result = match proxies.note(method) {
        true => Err(json!({ "code": "MADE_TO_FAIL", "message": format!("{method} was made to fail") })),
        false => Ok(called(&mut disk.lock().unwrap(), method, call["params"].clone())),
    };
    let document = match result {
        Ok(result) => json!({ "jsonrpc": "2.0", "id": 0, "result": result }),
        Err(data) => json!({ "jsonrpc": "2.0", "id": 0, "error": { "code": -32000, "message": data["message"], "data": data } }),
    };
    let mut response = Response::new(Full::from(document.to_string()));
    response.headers_mut().insert("content-type", "application/json".parse().unwrap());
    Ok(response)
}

fn called(disk: &mut Disk, method: &str, params: Value) -> Value {
    match method {
        "system.getServerVersion" => json!("0.1.0"),
        "proxy.status" => status(disk),
        "proxy.drain" => {
            disk.draining = params["on"] == true;
            status(disk)
        }
        "pool.add" => {
            disk.pools.push(params["url"].as_str().unwrap().to_owned());
            pool(&disk.pools[disk.pools.len() - 1])
        }
        "pool.list" => disk.pools.iter().map(|url| pool(url)).collect(),
        "run.cancel" => {
            let at = disk.running.iter().position(|run| params["id"] == run.id).unwrap();
            run(&disk.running.remove(at))
        }
        "run.get" => {
            let asked = disk.running.iter().find(|run| params["id"] == run.id).unwrap();
            let waits = asked.waits.map(|words| {
                json!({
                    "id": 0, "kind": "queue", "label": "waiting for its turn", "startedAt": 0,
                    "meter": api::TransferMeter { waiting_for: Some(words.into()), ..api::TransferMeter::default() }
                })
            });
            let mut detail = run(asked);
            detail["tasks"] = waits.into_iter().collect();
            detail["log"] = json!([]);
            serde_json::to_value(serde_json::from_value::<api::RunDetail>(detail).unwrap()).unwrap()
        }
        "remote.list" => json!([]),
        "job.list" => (0..disk.jobs).map(job).collect(),
        "state.export" => {
            let SelfSigned { certificate_pem, key_pem } = &disk.certificate;
            let content = json!({
                "certificate": certificate_pem, "key": key_pem, "pools": disk.pools, "jobs": disk.jobs, "draining": disk.draining
            });
            serde_json::to_value(ProxyState { form: 1, taken_at: 0, id: disk.id.clone(), content, own_disk: Vec::new() }).unwrap()
        }
        "state.import" => {
            let ProxyState { id, content, .. } = serde_json::from_value(params).unwrap();
            let text = |key: &str| content[key].as_str().unwrap().to_owned();
            disk.id = id;
            disk.certificate = SelfSigned { certificate_pem: text("certificate"), key_pem: text("key") };
            disk.pools = serde_json::from_value(content["pools"].clone()).unwrap();
            disk.jobs = content["jobs"].as_u64().unwrap() as u32;
            disk.draining |= content["draining"] == true;
            let fingerprint = disk.certificate.fingerprint().unwrap().to_string();
            let imported = Imported { pools: disk.pools.len() as u32, remotes: 0, jobs: disk.jobs, fingerprint };
            serde_json::to_value(imported).unwrap()
        }
        other => panic!("nobody has told the proxies of these tests of {other}"),
    }
}

fn status(disk: &Disk) -> Value {
    let fingerprint = disk.certificate.fingerprint().unwrap().to_string();
    let status = json!({
        "name": disk.name, "version": "0.1.0", "startedAt": 0, "running": disk.running.iter().map(run).collect::<Vec<_>>(), "bytesPerSecond": 0, "fingerprint": fingerprint,
        "id": disk.id, "draining": disk.draining
    });
    // What it is not told of has a default; what has none must be there.
    serde_json::to_value(serde_json::from_value::<ProxyStatus>(status).unwrap()).unwrap()
}

fn run(run: &Running) -> Value {
    json!({ "id": run.id, "kind": run.kind, "label": format!("the {} {}", run.kind, run.id), "queuedAt": 0, "cursor": 1 })
}

fn pool(url: &str) -> Value {
    let pool = json!({
        "id": "p", "name": "lab", "url": url, "username": "root", "fingerprint": "F", "state": "connected"
    });
    serde_json::to_value(serde_json::from_value::<api::Pool>(pool).unwrap()).unwrap()
}

fn job(number: u32) -> Value {
    let job = json!({
        "id": format!("j{number}"), "scheduleId": "s", "name": format!("job {number}"), "mode": "delta", "vms": ["v"], "remotes": ["r"], "retention": 1
    });
    serde_json::to_value(serde_json::from_value::<api::Job>(job).unwrap()).unwrap()
}
