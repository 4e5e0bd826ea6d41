//! The daemon of a deployer, killed at events of the journal of each run that works on a deployed proxy. Whatever was killed
//! when: afterwards its registry, the VM on the pool, the proxy itself and the licence agree, as before the run or as after it.

mod common;
#[path = "common/machines.rs"]
mod machines;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use api::*;
use common::process::{Daemon, spawn_with};
use common::{Client, license};
use lab::{Lab, LabSpec};
use machines::Machines;
use rustix::process::Signal;
use sha2::{Digest, Sha256};
use signed::SecretKey;

const NAME: &str = "né \"annecy\" 🦀";
const MIB: u64 = 1 << 20;
/// For what is settled in the background.
const PATIENCE: Duration = Duration::from_secs(60);

/// A pool with machines in it, the daemon that deploys them, and its one licence.
struct House {
    dir: tempfile::TempDir,
    lab: Lab,
    machines: Machines,
    daemon: Daemon,
    config: String,
    pool: String,
    license: String,
}

/// What is known of the proxy once everything has come to rest; none: it is not there.
type Found = Option<Deployed>;

async fn image(dir: &Path) -> String {
    let meta = xva::Appliance { name: "appliance".into(), version: "1".into(), vcpus: 2, memory: 2 << 30, disk: 4 * MIB };
    let mut disk = vec![7; 4 * MIB as usize];
    disk[510..512].copy_from_slice(&[0x55, 0xAA]);
    let mut archive = Vec::new();
    xva::write_appliance(&mut archive, disk.as_slice(), &meta).await.unwrap();
    let sum: String = Sha256::digest(&archive).iter().map(|byte| format!("{byte:02x}")).collect();
    let path = dir.join("appliance.xva");
    std::fs::write(&path, &archive).unwrap();
    std::fs::write(dir.join("appliance.xva.sha256"), format!("{sum}  appliance.xva\n")).unwrap();
    path.display().to_string()
}

impl House {
    /// `number`: different for each test of this program.
    async fn new(number: u8) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut spec = LabSpec::single();
        spec.pools[0].vms.truncate(0);
        spec.pools[0].detach_after = Duration::from_millis(1);
        let lab = Lab::open(&dir.path().join("lab"), &spec).await.unwrap();
        let machines = Machines::new(&dir.path().join("machines"), number);
        lab.pool().set_guests(Arc::new(machines.clone()));
        let issuer = SecretKey::generate().unwrap();
        let image = image(dir.path()).await;
        let config = format!("[license]\nissuer_keys = [\"{}\"]\n[deploy]\nimage = {image:?}\n", issuer.public());
        let daemon = spawn_with(dir.path(), &config);
        let pool = PoolAddParams {
            name: None,
            url: lab.pool().url(),
            username: lab.pool().username().into(),
            password: lab.pool().password().into(),
            fingerprint: None,
        };
        let pool = daemon.client.call::<PoolAdd>(pool).await.id;
        let params = LicenseImportParams { text: license().issue(&issuer).unwrap() };
        let license = daemon.client.call::<LicenseImport>(params).await.id;
        Self { dir, lab, machines, daemon, config, pool, license }
    }

    fn client(&self) -> &Client {
        &self.daemon.client
    }

    async fn deploy(&self) -> Run {
        let spec = serde_json::json!({ "name": NAME, "pool": self.pool, "port": 8443, "image": { "url": "" } });
        self.client().call::<DeployStart>(serde_json::from_value(spec).unwrap()).await
    }

    /// A proxy is there, without a trouble.
    async fn deployed(&self) -> Deployed {
        let run = self.deploy().await;
        self.ended(&run, "a deployment without a trouble").await;
        self.agree("a deployment without a trouble").await.expect("it is there")
    }

    async fn ended(&self, run: &Run, what: &str) {
        let events = self.client().events(&run.id, 0).await;
        let last = &events.last().unwrap().kind;
        assert!(matches!(last, EventKind::RunEnded { outcome: Outcome::Success, .. }), "{what}: {last:?}");
    }

    /// Kills the daemon once so many events of a run have come, and starts it again; whether the run had more than those.
    async fn kill_after(&mut self, run: &Run, count: usize) -> bool {
        let mut lines = self.client().stream("run.watch", serde_json::json!({ "run": run.id })).await;
        let (mut seen, mut ended) = (0, false);
        while seen < count && !ended {
            let Some(line) = lines.next().await.unwrap() else { break };
            let event: Event = serde_json::from_value(line).unwrap();
            ended = matches!(event.kind, EventKind::RunEnded { .. });
            // How many meters there are is chance.
            seen += usize::from(!matches!(event.kind, EventKind::TaskProgress { .. }));
        }
        drop(lines);
        self.daemon.signal(Signal::KILL);
        self.let_go().await;
        self.daemon = spawn_with(self.dir.path(), &self.config);
        !ended
    }

    /// Waits until nobody holds the folder of the daemon any more: a worker that was just being started when it died does for
    /// a moment.
    async fn let_go(&self) {
        let lock = std::fs::File::open(self.dir.path().join("state/lock")).unwrap();
        let free = async {
            while rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, free).await.expect("the folder of a dead daemon is let go of");
    }

    /// Waits until nothing runs and nothing is open any more.
    async fn at_rest(&self, what: &str) -> Found {
        let resting = async {
            loop {
                let running = self.client().call::<ProxyStatusGet>(NoParams {}).await.running;
                for run in &running {
                    self.client().events(&run.id, 0).await;
                }
                let mut known = self.client().call::<DeployedList>(NoParams {}).await;
                let done = known.iter().all(|known| known.state == DeployedState::Ready);
                if running.is_empty() && done {
                    assert!(known.len() <= 1, "{what}: {known:?}");
                    return known.pop();
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, resting).await.unwrap_or_else(|_| panic!("{what}: it does not come to rest"))
    }

    /// All sides say the same of the proxy, and if it is there, it works.
    async fn agree(&self, what: &str) -> Found {
        let found = self.at_rest(what).await;
        let licenses = self.client().call::<LicenseList>(NoParams {}).await;
        let bound: Vec<&str> = licenses[0].bound.iter().map(|bound| bound.proxy.as_str()).collect();
        let vms = self.lab.pool().records("VM");
        let of_proxies: Vec<_> =
            vms.iter().map(|(_, vm)| vm).filter(|vm| vm["other_config"].get("backhaul:proxy").is_some()).collect();
        let Some(known) = found else {
            assert!(of_proxies.is_empty() && bound.is_empty(), "{what}: {of_proxies:?} {bound:?}");
            assert_eq!(self.machines.count(), 0, "{what}");
            return None;
        };
        assert_eq!(bound, [known.id.as_str()], "{what}");
        let uuids: Vec<_> = of_proxies.iter().map(|vm| vm["uuid"].as_str()).collect();
        assert_eq!(uuids, [known.vm.as_deref()], "{what}");
        let vm = of_proxies[0];
        let vcpus = (&vm["power_state"], &vm["VCPUs_at_startup"]);
        assert_eq!(vcpus, (&"Running".into(), &known.spec.vcpus.into()), "{what}");
        let tags: BTreeSet<&str> = vm["tags"].as_array().unwrap().iter().filter_map(|tag| tag.as_str()).collect();
        assert_eq!(tags, api::deploy::TAGS.into(), "{what}");
        assert_eq!(vm["name_label"], NAME, "{what}");

        let claimed = self.client().call::<DeployClaim>(IdParams { id: known.id.clone() }).await;
        let address = claimed.url.strip_prefix("https://").unwrap();
        let proxy = Client::new(address, claimed.fingerprint.parse().unwrap()).with_token(&claimed.token);
        let status = proxy.call::<ProxyStatusGet>(NoParams {}).await;
        assert_eq!((&status.id, status.name.as_str(), status.draining), (&known.id, NAME, false), "{what}");
        assert_eq!((status.licensing.fault, status.licensing.license.as_ref()), (None, Some(&self.license)), "{what}");
        assert_eq!(proxy.call::<PoolList>(NoParams {}).await.len(), 1, "{what}");
        Some(known)
    }

    async fn destroyed(&self, known: &Deployed) {
        let params = DestroyParams { id: known.id.clone(), name: NAME.into(), discard_local: false };
        let run = self.client().call::<DeployDestroy>(params).await;
        self.ended(&run, "a destruction without a trouble").await;
        assert_eq!(self.agree("a destruction without a trouble").await, None);
    }

    async fn stop(self) {
        self.daemon.stop();
        self.lab.close().await.unwrap();
    }
}

/// After how many events the daemon is killed: after each but the last, which is the end of the run.
fn moments(total: usize) -> std::ops::Range<usize> {
    0..total
}

async fn length(house: &House, run: &Run) -> usize {
    let events = house.client().events(&run.id, 0).await;
    events.iter().filter(|event| !matches!(event.kind, EventKind::TaskProgress { .. })).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployer_killed_while_it_deploys_or_destroys_has_a_working_proxy_or_none() {
    let mut house = House::new(1).await;
    let run = house.deploy().await;
    let total = length(&house, &run).await;
    let known = house.agree("the first").await.expect("it is there");
    let refused = house.client().try_call::<PoolRemove>(IdParams { id: house.pool.clone() }).await.unwrap_err();
    assert!(refused.message.contains(NAME) && refused.message.contains("forget"), "{refused}");
    let params = DestroyParams { id: known.id.clone(), name: NAME.into(), discard_local: false };
    let run = house.client().call::<DeployDestroy>(params).await;
    let shorter = length(&house, &run).await;
    assert_eq!(house.agree("destroyed").await, None);

    let (mut none, mut some) = (0, 0);
    for at in moments(total) {
        let run = house.deploy().await;
        house.kill_after(&run, at).await;
        match house.agree(&format!("deployment killed after {at} of {total} events")).await {
            None => none += 1,
            Some(known) => {
                some += 1;
                house.destroyed(&known).await;
            }
        }
    }
    assert!(none > 0 && some > 0, "{none} came to nothing, {some} to a proxy");
    let (mut none, mut some) = (0, 0);
    for at in moments(shorter) {
        let known = house.deployed().await;
        let params = DestroyParams { id: known.id.clone(), name: NAME.into(), discard_local: false };
        let run = house.client().call::<DeployDestroy>(params).await;
        house.kill_after(&run, at).await;
        match house.agree(&format!("destruction killed after {at} of {shorter} events")).await {
            None => none += 1,
            Some(known) => {
                some += 1;
                house.destroyed(&known).await;
            }
        }
    }
    assert!(none > 0 && some > 0, "{none} were finished, {some} had not begun");
    assert!(house.client().call::<PoolRemove>(IdParams { id: house.pool.clone() }).await);
    house.stop().await;
}

/// What the network gives a proxy may be another address at any start: its guest reports it to the pool.
#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_comes_up_with_another_address_is_found_again() {
    let house = House::new(3).await;
    let before = house.deployed().await;
    house.machines.renew();
    let vms = house.lab.pool().records("VM");
    let (vm, _) = vms.iter().find(|(_, vm)| vm["uuid"].as_str() == before.vm.as_deref()).unwrap();
    house.lab.pool().call("VM.clean_reboot", vec![vm.as_str().into()]).await.unwrap();
    let moved = async {
        while house.at_rest("restarted").await.unwrap().url == before.url {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, moved).await.expect("its deployer finds it");
    let after = house.agree("found again").await.unwrap();
    assert_eq!((after.id, after.fingerprint), (before.id, before.fingerprint));
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployer_killed_while_it_replaces_or_changes_a_proxy_has_the_former_or_the_new_one() {
    let mut house = House::new(2).await;
    let first = house.deployed().await;
    let redeploy = |id: &str| RedeployParams { id: id.into(), image: None, sr: None, discard_local: false };
    let reconfigure = |known: &Deployed| {
        let vcpus = Some(if known.spec.vcpus == 2 { 3 } else { 2 });
        ReconfigureParams { id: known.id.clone(), address: None, vcpus, memory: None }
    };
    let run = house.client().call::<Redeploy>(redeploy(&first.id)).await;
    let total = length(&house, &run).await;
    let known = house.agree("made anew").await.expect("it is there");
    assert!(known.vm != first.vm && known.id == first.id);
    let run = house.client().call::<DeployReconfigure>(reconfigure(&known)).await;
    let shorter = length(&house, &run).await;
    let mut known = house.agree("changed").await.expect("it is there");
    assert_eq!(known.spec.vcpus, 3);

    let (mut former, mut new) = (0, 0);
    for at in moments(total) {
        let run = house.client().call::<Redeploy>(redeploy(&known.id)).await;
        house.kill_after(&run, at).await;
        let now = house.agree(&format!("replacement killed after {at} of {total} events")).await.expect("there is one");
        let counted = if now.vm == known.vm { &mut former } else { &mut new };
        *counted += 1;
        known = now;
    }
    assert!(former > 0 && new > 0, "{former} times the former one, {new} times a new one");
    let (mut as_before, mut changed) = (0, 0);
    for at in moments(shorter) {
        let run = house.client().call::<DeployReconfigure>(reconfigure(&known)).await;
        house.kill_after(&run, at).await;
        let now = house.agree(&format!("change killed after {at} of {shorter} events")).await.expect("there is one");
        let counted = if now.spec == known.spec { &mut as_before } else { &mut changed };
        *counted += 1;
        assert_eq!((&now.vm, &now.id), (&known.vm, &first.id));
        known = now;
    }
    assert!(as_before > 0 && changed > 0, "{as_before} times as before, {changed} times changed");
    house.destroyed(&known).await;
    house.stop().await;
}
