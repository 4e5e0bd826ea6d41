//! Destroying a proxy: what it is at work on comes to an end before it does, what belongs to it goes with it, and nothing else.

use api::{Intent, Outcome, TaskResult};
use engine::plan::{DeployPlan, DestroyPlan, OpenIntent, Work};
use lab::Fault;
use serde_json::json;

use crate::fleet::{Fleet, deploy, message, outcome};
use crate::guests::Running;

const OBSOLETE: &str = "backhaul:obsolete";
const OTHER: &str = "99999999-2222-4333-8444-555555555555";

fn uuid(proxy: &TaskResult) -> &str {
    proxy.vm.as_deref().unwrap()
}

fn at_work() -> Vec<Running> {
    vec![
        Running { id: "b1", kind: "backup", waits: None },
        Running { id: "r1", kind: "recover", waits: Some("pool lyon does not answer") },
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_proxy_is_at_work_on_ends_before_its_vm_goes() {
    let fleet = Fleet::new(60).await;
    let before = fleet.pool().dump();
    let proxy = fleet.deployed().await;
    fleet.proxies.set_running(uuid(&proxy), at_work());
    let story = fleet.run(Work::Destroy(fleet.destruction(&proxy))).await;
    story.assert(Outcome::Success);
    assert_eq!(fleet.proxies.cut_off(), [] as [&str; 0], "a run was cut off with its machine");
    let said = |words: &str| story.warnings().iter().any(|line| line.contains(words));
    assert!(said("cancels run b1") && said("run r1") && said("pool lyon does not answer"), "{:?}", story.warnings());
    fleet.assert_as(&before, "destroyed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_cannot_be_asked_is_destroyed_with_a_warning() {
    let fleet = Fleet::new(61).await;
    let before = fleet.pool().dump();
    for known in [true, false] {
        let proxy = fleet.deployed().await;
        fleet.proxies.silence(uuid(&proxy), Some(0));
        let plan = fleet.destruction(&proxy);
        let plan = DestroyPlan { access: plan.access.filter(|_| known), ..plan };
        let story = fleet.run(Work::Destroy(plan)).await;
        story.assert(Outcome::Success);
        assert!(story.warnings().iter().any(|line| line.contains("is cut off")), "{known}: {:?}", story.warnings());
        fleet.assert_as(&before, "destroyed").await;
    }
}

/// Snapshots as jobs keep them, of another proxy's VM: of the first job of the proxies of these tests, and of a stranger.
async fn kept_by_jobs(fleet: &Fleet, of: &TaskResult) -> [String; 2] {
    let mut kept = Vec::new();
    for job in ["j0", "of-somebody-else"] {
        let vm = json!(fleet.vm(of));
        let snapshot = fleet.pool().call("VM.snapshot", vec![vm.clone(), json!(format!("[XO Backup {job}]"))]).await.unwrap();
        let keys = [("job", job), ("vm", uuid(of)), ("datetime", "20260101T00:00:00Z"), ("exported", "true")];
        let record = fleet.pool().record("VM", snapshot.as_str().unwrap()).unwrap();
        let disks = record["VBDs"].as_array().unwrap().iter().map(|plug| {
            let plug = fleet.pool().record("VBD", plug.as_str().unwrap()).unwrap();
            ("VDI", plug["VDI"].clone())
        });
        for (class, object) in disks.chain([("VM", snapshot.clone())]) {
            for (key, value) in keys {
                let key = json!(format!("xo:backup:{key}"));
                fleet
                    .pool()
                    .call(&format!("{class}.add_to_other_config"), vec![object.clone(), key, json!(value)])
                    .await
                    .unwrap();
            }
        }
        kept.push(snapshot.as_str().unwrap().to_owned());
    }
    kept.try_into().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_proxy_go_the_snapshots_that_its_jobs_keep_and_no_others() {
    let fleet = Fleet::new(65).await;
    let story = fleet.run(deploy(DeployPlan { proxy: OTHER.into(), name: "another".into(), ..fleet.deployment() })).await;
    let other = outcome(&story.assert(Outcome::Success).0).unwrap();
    for answers in [true, false] {
        let proxy = fleet.deployed().await;
        let [own, foreign] = kept_by_jobs(&fleet, &other).await;
        let mut plan = fleet.destruction(&proxy);
        if answers {
            fleet.proxies.set_jobs(uuid(&proxy), 1);
        } else {
            fleet.proxies.silence(uuid(&proxy), Some(0));
            plan.jobs = vec!["j0".into()];
        }
        // Killed behind the announcement, a clean-up does the same.
        let stuck = Fault::FailCall { call: "VM.destroy".into(), nth: 1, code: "SR_BACKEND_FAILURE_46".into(), done: false };
        fleet.pool().set_fault(stuck);
        let story = fleet.run(Work::Destroy(plan)).await;
        assert_eq!(story.outcome(), Outcome::Failure);
        fleet.pool().clear_faults();
        fleet.recover(story.open_intents(), &[&proxy]).await;
        assert!(fleet.pool().record("VM", &own).is_none(), "answers: {answers}");
        assert!(fleet.pool().record("VM", &foreign).is_some(), "answers: {answers}");
        fleet.pool().call("VM.destroy", vec![json!(foreign)]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destruction_that_does_not_begin_lets_the_proxy_work_again() {
    let fleet = Fleet::new(62).await;
    let proxy = fleet.deployed().await;
    fleet.proxies.set_running(uuid(&proxy), at_work());
    let before = fleet.pool().dump();
    fleet.proxies.fail("run.cancel", 1);
    let story = fleet.run(Work::Destroy(fleet.destruction(&proxy))).await;
    assert!(fleet.proxies.struck());
    story.assert(Outcome::Failure);
    let says = message(&story);
    assert!(
        says.starts_with("step drain failed and the proxy takes runs again: proxy") && says.contains("cancel run b1"),
        "{says}"
    );
    fleet.assert_as(&before, "not begun").await;
    fleet.assert_works(&proxy, 0, "not begun").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_another_vm_uses_stays_and_is_not_marked() {
    let fleet = Fleet::new(63).await;
    let story = fleet.run(deploy(DeployPlan { proxy: OTHER.into(), name: "another".into(), ..fleet.deployment() })).await;
    let other = outcome(&story.assert(Outcome::Success).0).unwrap();
    let proxy = fleet.deployed().await;
    let disk = fleet.attach(&proxy, None, "3").await;
    fleet.attach(&other, Some(disk.clone()), "3").await;
    let story = fleet.run(Work::Destroy(fleet.destruction(&proxy))).await;
    story.assert(Outcome::Success);
    assert!(story.warnings().iter().any(|line| line.contains("repository (")), "{:?}", story.warnings());
    let record = fleet.pool().record("VDI", &disk).expect("the disk of another VM is gone");
    assert!(record["other_config"].get(OBSOLETE).is_none(), "{record}");
    fleet.assert_vms(&[&other], "another");
}

#[tokio::test(flavor = "multi_thread")]
async fn disks_of_a_vm_that_is_gone_when_it_is_looked_at_are_swept() {
    let fleet = Fleet::new(64).await;
    let before = fleet.pool().dump();
    let proxy = fleet.deployed().await;
    fleet.pool().call("VM.add_to_other_config", vec![json!(fleet.vm(&proxy)), json!(OBSOLETE), json!("run-1")]).await.unwrap();
    // Of another of its VMs, say.
    let disk = fleet.attach(&proxy, None, "3").await;
    let plug = fleet.pool().record("VDI", &disk).unwrap()["VBDs"][0].clone();
    fleet.pool().call("VBD.destroy", vec![plug]).await.unwrap();
    fleet.pool().call("VDI.add_to_other_config", vec![json!(disk), json!(OBSOLETE), json!("run-1")]).await.unwrap();
    let what = Intent::ObsoleteVm { pool: "pool".into(), uuid: uuid(&proxy).into(), jobs: Vec::new() };
    let plan = fleet.recovery(vec![OpenIntent { intent: 1, what }], &[]);
    // It is found, and then it is gone.
    let gone = Fault::FailCall { call: "VM.get_record".into(), nth: 2, code: "HANDLE_INVALID".into(), done: false };
    fleet.pool().set_fault(gone.once());
    fleet.site.run(Work::Recover(plan.clone())).await.assert(Outcome::Success);
    assert_eq!(fleet.pool().faults().len(), 0, "it was not looked at");
    assert!(fleet.pool().record("VDI", &disk).is_none(), "the disk is left");
    fleet.site.run(Work::Recover(plan)).await.assert(Outcome::Success);
    fleet.assert_as(&before, "swept").await;
}
