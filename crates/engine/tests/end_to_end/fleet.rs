//! A site into whose pool proxies are deployed: an image, plans, and what must hold afterwards.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use api::{AddressSpec, EventKind, Outcome, ProxyState, RunKind, TaskKind, TaskResult};
use engine::plan::{
    DeployPlan, DeployTimes, DestroyPlan, ImagePlan, OpenIntent, ProxyAccess, ReconfigurePlan, RecoverPlan, ReplacePlan, Secret,
    Work,
};
use engine::{Plan, Told, Verdict};
use lab::{Dump, LabSpec, PoolHandle};
use serde_json::json;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::guests::Proxies;
use crate::site::{Site, Story, execute, open_intents};

pub const PROXY: &str = "11111111-2222-4333-8444-555555555555";
pub const NAME: &str = "né \"annecy\" 🦀";
const TOKEN: &str = "the-token-of-the-proxy-0123456789";
const PORT: u16 = 8443;
const MIB: u64 = 1 << 20;
/// For what a pool does behind the back of whoever asked for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a proxy is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// It answers, and has its address by lease.
    Leased,
    /// It does not answer, so that a copy of its state is taken; and its address is fixed.
    Silent,
}

/// A pool with guests, and an image.
pub struct Fleet {
    pub site: Site,
    pub proxies: Proxies,
    images: TempDir,
    /// How many runs there have been: each has an id of its own, for that is what marks name.
    runs: AtomicU32,
}

impl Fleet {
    /// `number`: different for each test of this program.
    pub async fn new(number: u8) -> Self {
        let mut spec = LabSpec::single();
        spec.pools[0].vms.truncate(0);
        spec.pools[0] = spec.pools[0].clone().varied();
        spec.pools[0].detach_after = Duration::from_millis(1);
        let site = Site::with(spec).await;
        let proxies = Proxies::new(number);
        site.pool().set_guests(Arc::new(proxies.clone()));
        let images = tempfile::tempdir().unwrap();
        let meta = xva::Appliance { name: "appliance".into(), version: "1".into(), vcpus: 2, memory: 2 << 30, disk: 4 * MIB };
        let mut disk = vec![7; 4 * MIB as usize];
        disk[510..512].copy_from_slice(&[0x55, 0xAA]);
        let mut archive = Vec::new();
        xva::write_appliance(&mut archive, disk.as_slice(), &meta).await.unwrap();
        let sum: String = Sha256::digest(&archive).iter().map(|byte| format!("{byte:02x}")).collect();
        std::fs::write(images.path().join("appliance.xva"), &archive).unwrap();
        std::fs::write(images.path().join("appliance.xva.sha256"), format!("{sum}  appliance.xva\n")).unwrap();
        Self { site, proxies, images, runs: AtomicU32::new(0) }
    }

    pub fn pool(&self) -> &PoolHandle {
        self.site.pool()
    }

    pub fn image(&self) -> PathBuf {
        self.images.path().join("appliance.xva")
    }

    fn uuid_of(&self, class: &'static str, name: &str) -> String {
        let records = self.pool().records(class);
        let (_, record) = records.iter().find(|(_, record)| record["name_label"] == name).unwrap();
        record["uuid"].as_str().unwrap().to_owned()
    }

    pub fn deployment(&self) -> DeployPlan {
        DeployPlan {
            proxy: PROXY.into(),
            name: NAME.into(),
            site: "Annecy".into(),
            pool: "pool".into(),
            sr: self.uuid_of("SR", "Local storage"),
            network: self.uuid_of("network", "Pool-wide network associated with eth0"),
            address: AddressSpec::Dhcp,
            port: PORT,
            vcpus: 2,
            memory: 2 << 30,
            disk: 20 << 30,
            image: ImagePlan {
                url: Secret::new(self.image().display().to_string()),
                sha256: None,
                trusted: Vec::new(),
                http_proxy: None,
            },
            token: Secret::new(TOKEN),
            http_proxy: None,
            login: None,
            issuer_key: None,
            upgrade_key: None,
            license: None,
            replaces: None,
            times: DeployTimes::default(),
        }
    }

    pub fn replacement(&self, of: &TaskResult) -> DeployPlan {
        let (vm, url, fingerprint) = parts(of);
        DeployPlan { replaces: Some(ReplacePlan { vm, url, fingerprint, state: None }), ..self.deployment() }
    }

    /// A replacement of a proxy, in one of the ways it can be had; the former one is ready for it.
    pub async fn replacing(&self, of: &TaskResult, manner: Manner) -> DeployPlan {
        let mut plan = self.replacement(of);
        plan.address = self.address(manner);
        if manner == Manner::Silent {
            let state = self.copied(of).await;
            plan.replaces.as_mut().unwrap().state = Some(state);
            self.proxies.silence(of.vm.as_deref().unwrap(), Some(0));
        }
        plan
    }

    /// Deploys one to be replaced in a manner, without a trouble.
    pub async fn replaceable(&self, manner: Manner) -> TaskResult {
        let plan = DeployPlan { address: self.address(manner), ..self.deployment() };
        let story = self.run(deploy(plan)).await;
        let proxy = registered(&story.assert(Outcome::Success).0).unwrap();
        self.proxies.set_jobs(proxy.vm.as_deref().unwrap(), 2);
        proxy
    }

    fn address(&self, manner: Manner) -> AddressSpec {
        match manner {
            Manner::Leased => AddressSpec::Dhcp,
            Manner::Silent => self.fixed(100),
        }
    }

    /// After a replacement of `former`: cleans up as the daemon would, and gives the proxy that is there now. It answers, if it
    /// is the former one even when it did not before.
    pub async fn after_replacing(&self, former: &TaskResult, events: &[EventKind]) -> Option<TaskResult> {
        let new = outcome(events);
        self.recover(open_intents(events), &[new.as_ref().unwrap_or(former)]).await;
        self.proxies.silence(former.vm.as_deref().unwrap(), None);
        new
    }

    /// The reference of a proxy's VM.
    pub fn vm(&self, of: &TaskResult) -> String {
        let vms = self.pool().records("VM");
        vms.into_iter().find(|(_, vm)| vm["uuid"].as_str() == of.vm.as_deref()).unwrap().0
    }

    /// Takes a snapshot of a proxy's VM.
    pub async fn snapshot(&self, of: &TaskResult) {
        self.pool().call("VM.snapshot", vec![json!(self.vm(of)), json!("before an experiment")]).await.unwrap();
    }

    /// Plugs a disk into a proxy's VM; none: a new one. Gives the disk's reference.
    pub async fn attach(&self, of: &TaskResult, disk: Option<String>, position: &str) -> String {
        let disk = match disk {
            Some(disk) => disk,
            None => {
                let srs = self.pool().records("SR");
                let (sr, _) = srs.iter().find(|(_, record)| record["uuid"] == self.deployment().sr.as_str()).unwrap();
                let disk = json!({
                    "name_label": "repository", "name_description": "", "SR": sr, "virtual_size": 1 << 20, "type": "user",
                    "sharable": false, "read_only": false, "other_config": {}, "sm_config": {}, "tags": [], "xenstore_data": {}
                });
                self.pool().call("VDI.create", vec![disk]).await.unwrap().as_str().unwrap().to_owned()
            }
        };
        let plug = json!({
            "VM": self.vm(of), "VDI": disk, "userdevice": position, "bootable": false, "mode": "RO", "type": "Disk", "empty": false,
            "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {}
        });
        self.pool().call("VBD.create", vec![plug]).await.unwrap();
        disk
    }

    pub fn reconfiguration(&self, of: &TaskResult) -> ReconfigurePlan {
        let (vm, url, fingerprint) = parts(of);
        ReconfigurePlan {
            proxy: PROXY.into(),
            name: NAME.into(),
            pool: "pool".into(),
            vm,
            url,
            fingerprint,
            token: Secret::new(TOKEN),
            port: PORT,
            address: None,
            vcpus: Some(3),
            memory: None,
            times: DeployTimes::default(),
        }
    }

    pub fn destruction(&self, of: &TaskResult) -> DestroyPlan {
        let access = Some(access(of));
        let vm = of.vm.clone().unwrap();
        DestroyPlan {
            proxy: PROXY.into(),
            name: NAME.into(),
            pool: "pool".into(),
            vm,
            access,
            jobs: Vec::new(),
            times: DeployTimes::default(),
        }
    }

    /// The state of a proxy, as its deployer copies it.
    pub async fn copied(&self, of: &TaskResult) -> ProxyState {
        client(of).call::<api::StateExport>(&api::NoParams {}).await.unwrap()
    }

    /// An address of the network that nobody gets by lease, as one that is given.
    pub fn fixed(&self, last: u8) -> AddressSpec {
        AddressSpec::parse(&format!("{}/24", self.proxies.address(last)), "", "", "").unwrap()
    }

    fn id(&self) -> String {
        format!("run-{}", self.runs.load(Ordering::Relaxed))
    }

    /// The plan of the next run.
    pub fn plan(&self, work: Work) -> Plan {
        self.runs.fetch_add(1, Ordering::Relaxed);
        Plan { run: self.id(), ..self.site.plan(work) }
    }

    /// Executes a work to its end.
    pub async fn run(&self, work: Work) -> Story {
        execute(self.plan(work)).await
    }

    /// Deploys one that works, without a trouble.
    pub async fn deployed(&self) -> TaskResult {
        let story = self.run(deploy(self.deployment())).await;
        registered(&story.assert(Outcome::Success).0).unwrap()
    }

    /// Destroys a proxy, without a trouble.
    pub async fn destroyed(&self, proxy: &TaskResult) {
        self.run(Work::Destroy(self.destruction(proxy))).await.assert(Outcome::Success);
    }

    /// Cleans up after the last run, as the daemon would; `proxies`: those that it has in its registry.
    pub async fn recover(&self, intents: Vec<OpenIntent>, proxies: &[&TaskResult]) {
        if intents.is_empty() {
            return;
        }
        let plan = self.recovery(intents, proxies);
        self.run(Work::Recover(plan)).await.assert(Outcome::Success);
    }

    /// The plan by which the daemon would clean up after the last run.
    pub fn recovery(&self, intents: Vec<OpenIntent>, proxies: &[&TaskResult]) -> RecoverPlan {
        let proxies = proxies.iter().map(|proxy| access(proxy)).collect();
        RecoverPlan { run: self.id(), intents, proxies, times: DeployTimes::default() }
    }

    /// The pool is as it was; what it still does for a task that was cut off, it is given time for.
    pub async fn assert_as(&self, before: &Dump, what: &str) {
        self.assert_as_but(before, what, |_| false).await;
    }

    /// As [`Fleet::assert_as`], after an answer was lost, or a run cancelled or killed: a task of which nobody has learnt is left, and
    /// the pool itself collects it once it is over.
    pub async fn assert_as_but_for_tasks(&self, before: &Dump, what: &str) {
        let is_over =
            |line: &str| ["success", "failure", "cancelled"].iter().any(|end| line.contains(&format!("\"status\":\"{end}\"")));
        self.assert_as_but(before, what, |line| line.starts_with("task ") && is_over(line)).await;
    }

    async fn assert_as_but(&self, before: &Dump, what: &str, harmless: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut changes = before.difference(&self.pool().dump());
            changes.retain(|change| !harmless(change) && !is_own_certificate(change));
            changes.extend(self.stray_images());
            if changes.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "{what}: {changes:#?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Images that no disk of the pool has.
    fn stray_images(&self) -> Vec<String> {
        let disks = std::fs::read_dir(self.site.lab.dir().join("pool-1-lab/disks")).unwrap();
        let known: Vec<_> = self.pool().records("VDI").into_iter().map(|(_, vdi)| vdi["uuid"].clone()).collect();
        let images = disks.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        images.filter(|image| !known.iter().any(|vdi| vdi == image.as_str())).map(|image| format!("image {image}")).collect()
    }

    /// The proxy answers where it says, takes runs, and its machine carries no mark that it is to go.
    pub async fn assert_works(&self, proxy: &TaskResult, jobs: u32, what: &str) {
        let vm = proxy.vm.clone().unwrap();
        assert_eq!(self.proxies.state(&vm), (false, jobs), "{what}: holds its runs back, or lost its jobs");
        let (_, record) = self.pool().records("VM").into_iter().find(|(_, record)| record["uuid"] == vm.as_str()).unwrap();
        assert_eq!(record["power_state"], "Running", "{what}");
        assert_eq!(record["other_config"]["backhaul:proxy"], PROXY, "{what}");
        assert!(record["other_config"].get("backhaul:obsolete").is_none(), "{what}: {record}");
        assert!(!record["xenstore_data"].to_string().contains(TOKEN), "{what}: the token is left in XenStore");
        let status = client(proxy).call::<api::ProxyStatusGet>(&api::NoParams {}).await.unwrap();
        assert_eq!((status.id.as_str(), status.draining), (PROXY, false), "{what}");
    }

    /// No VM of this proxy is on the pool but those.
    pub fn assert_vms(&self, expected: &[&TaskResult], what: &str) {
        let vms = self.pool().records("VM");
        let mut found: Vec<_> = vms
            .iter()
            .filter(|(_, vm)| vm["other_config"].get("backhaul-appliance").is_some())
            .map(|(_, vm)| vm["uuid"].as_str().unwrap())
            .collect();
        let mut expected: Vec<_> = expected.iter().map(|proxy| proxy.vm.as_deref().unwrap()).collect();
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected, "{what}");
    }
}

/// A deployment as a work.
pub fn deploy(plan: DeployPlan) -> Work {
    Work::Deploy(Box::new(plan))
}

/// Whether all that changed is the certificate that a guest has told: one that took over another's shows it from then on, and
/// tells of it when it starts next.
fn is_own_certificate(change: &str) -> bool {
    let told = |text: &str| -> Option<serde_json::Map<String, serde_json::Value>> {
        let mut data: serde_json::Map<_, _> = serde_json::from_str(text).ok()?;
        data.remove("vm-data/backhaul/fingerprint").map(|_| data)
    };
    let data = change.split_once(" xenstore_data: ").and_then(|(_, data)| data.split_once(" became "));
    data.is_some_and(|(before, after)| told(before).is_some_and(|before| told(after) == Some(before)))
}

fn access(of: &TaskResult) -> ProxyAccess {
    let (vm, url, fingerprint) = parts(of);
    ProxyAccess { vm, name: NAME.into(), url, token: Secret::new(TOKEN), fingerprint }
}

fn client(of: &TaskResult) -> client::Client {
    let (_, url, fingerprint) = parts(of);
    let token = client::Token::new(TOKEN).unwrap();
    client::Client::new(&url.parse().unwrap(), &token, fingerprint.parse().unwrap()).unwrap()
}

fn parts(of: &TaskResult) -> (String, String, String) {
    (of.vm.clone().unwrap(), of.url.clone().unwrap(), of.fingerprint.clone().unwrap())
}

/// What a run has registered, whether or not that counts.
pub fn registered(events: &[EventKind]) -> Option<TaskResult> {
    events.iter().rev().find_map(|event| match event {
        EventKind::TaskEnded { result, .. } if result.fingerprint.is_some() => Some(result.clone()),
        _ => None,
    })
}

/// What came of a deployment or change, as the daemon reads it from the journal: the result, if it was committed.
pub fn outcome(events: &[EventKind]) -> Option<TaskResult> {
    // A later intent of the same number takes the place of the earlier.
    let open: BTreeMap<u32, OpenIntent> = open_intents(events).into_iter().map(|open| (open.intent, open)).collect();
    let open: Vec<_> = open.into_values().collect();
    let result = registered(events);
    match (Told { kind: RunKind::Deploy, result: result.as_ref(), open: &open, condemned: false }).verdict(false) {
        Verdict::Ready(result) => Some(result),
        _ => None,
    }
}

/// The labels of the steps that a run took, in order.
pub fn steps(events: &[EventKind]) -> Vec<String> {
    let of = |event: &EventKind| match event {
        EventKind::TaskStarted { kind: TaskKind::Step, label, .. } => Some(label.clone()),
        _ => None,
    };
    events.iter().filter_map(of).collect()
}

/// The message with which a run ended.
pub fn message(story: &Story) -> String {
    match story.0.last() {
        Some(EventKind::RunEnded { error: Some(error), .. }) => error.message.clone(),
        last => panic!("no error: {last:?}"),
    }
}
