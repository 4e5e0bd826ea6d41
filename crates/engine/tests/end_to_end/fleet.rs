//! A site into whose pool proxies are deployed: an image, plans, and what must hold afterwards.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use api::{AddressSpec, EventKind, Intent, Outcome, TaskKind, TaskResult};
use engine::Plan;
use engine::plan::{
    DeployPlan, DeployTimes, DestroyPlan, ImagePlan, OpenIntent, ProxyAccess, ReconfigurePlan, RecoverPlan, ReplacePlan, Secret,
    Work,
};
use lab::{Dump, LabSpec, PoolHandle};
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
        let (vm, ..) = parts(of);
        DestroyPlan { proxy: PROXY.into(), name: NAME.into(), pool: "pool".into(), vm, times: DeployTimes::default() }
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
        let access = |result: &&TaskResult| {
            let (vm, url, fingerprint) = parts(result);
            ProxyAccess { vm, name: NAME.into(), url, token: Secret::new(TOKEN), fingerprint }
        };
        let proxies = proxies.iter().map(access).collect();
        let plan = RecoverPlan { run: self.id(), intents, proxies };
        self.run(Work::Recover(plan)).await.assert(Outcome::Success);
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
        let (vm, url, fingerprint) = parts(proxy);
        assert_eq!(self.proxies.state(&vm), (false, jobs), "{what}: holds its runs back, or lost its jobs");
        let (_, record) = self.pool().records("VM").into_iter().find(|(_, record)| record["uuid"] == vm.as_str()).unwrap();
        assert_eq!(record["power_state"], "Running", "{what}");
        assert_eq!(record["other_config"]["backhaul:proxy"], PROXY, "{what}");
        assert!(record["other_config"].get("backhaul:obsolete").is_none(), "{what}: {record}");
        assert!(!record["xenstore_data"].to_string().contains(TOKEN), "{what}: the token is left in XenStore");
        let token = client::Token::new(TOKEN).unwrap();
        let client = client::Client::new(&url.parse().unwrap(), &token, fingerprint.parse().unwrap()).unwrap();
        let status = client.call::<api::ProxyStatusGet>(&api::NoParams {}).await.unwrap();
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
    let open: BTreeMap<u32, Intent> = open_intents(events).into_iter().map(|open| (open.intent, open.what)).collect();
    registered(events).filter(|_| open.values().all(|what| matches!(what, Intent::ObsoleteVm { .. })))
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
