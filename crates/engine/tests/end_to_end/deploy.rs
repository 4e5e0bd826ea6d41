//! Deployments as they should go, and those that are stopped or come to nothing in time.

use api::{AddressSpec, Outcome, TaskKind};
use engine::plan::{DeployPlan, DeployTimes, ImagePlan, ReconfigurePlan, Secret, Work};
use engine::{deploy_steps, destroy_steps, reconfigure_steps};
use lab::Fault;

use crate::fleet::{Fleet, PROXY, deploy, message, outcome, steps};

fn names(steps: &[api::StepInfo]) -> Vec<String> {
    steps.iter().map(|step| step.name.clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_deployed_changed_replaced_and_destroyed_and_the_pool_is_as_before() {
    let fleet = Fleet::new(1).await;
    let before = fleet.pool().dump();
    let times = DeployTimes::default();
    let story = fleet.run(deploy(fleet.deployment())).await;
    story.assert(Outcome::Success);
    assert_eq!(steps(&story.0), names(&deploy_steps(&times, false)));
    let first = outcome(&story.0).unwrap();
    fleet.assert_works(&first, 0, "deployed").await;
    let vm = fleet.pool().vm(first.vm.as_deref().unwrap()).unwrap();
    assert_eq!((vm.name.as_str(), vm.disks[0].bytes), (crate::fleet::NAME, 20 << 30));

    fleet.proxies.set_jobs(first.vm.as_deref().unwrap(), 3);
    let plan = fleet.reconfiguration(&first);
    let story = fleet.run(Work::Reconfigure(plan.clone())).await;
    story.assert(Outcome::Success);
    assert_eq!(steps(&story.0), names(&reconfigure_steps(&plan)));
    assert_eq!(outcome(&story.0).unwrap(), first);
    fleet.assert_works(&first, 3, "with more processors").await;

    let address = AddressSpec::parse(&format!("{}/24", fleet.proxies.address(200)), "", "", "").unwrap();
    let plan = ReconfigurePlan { address: Some(address), vcpus: None, ..fleet.reconfiguration(&first) };
    let story = fleet.run(Work::Reconfigure(plan)).await;
    let moved = outcome(&story.assert(Outcome::Success).0).unwrap();
    assert_eq!(moved.url.as_deref(), Some(format!("https://{}:8443", fleet.proxies.address(200)).as_str()));
    fleet.assert_works(&moved, 3, "at another address").await;

    let story = fleet.run(deploy(fleet.replacement(&moved))).await;
    story.assert(Outcome::Success);
    assert_eq!(steps(&story.0), names(&deploy_steps(&times, true)));
    let second = outcome(&story.0).unwrap();
    assert_ne!(second.vm, moved.vm);
    assert_eq!(second.fingerprint, moved.fingerprint, "whoever pinned its certificate finds the same proxy");
    fleet.assert_works(&second, 3, "replaced").await;
    fleet.assert_vms(&[&second], "replaced");

    let plan = fleet.destruction(&second);
    let story = fleet.run(Work::Destroy(plan.clone())).await;
    story.assert(Outcome::Success);
    assert_eq!(steps(&story.0), names(&destroy_steps(&plan)));
    fleet.assert_as(&before, "destroyed").await;
    assert_eq!(fleet.proxies.count(), (0, 0));
    fleet.run(Work::Destroy(plan)).await.assert(Outcome::Success);
}

/// A deployment that must fail at a step and leave the pool as it was.
async fn fails(fleet: &Fleet, plan: DeployPlan, step: &str, says: &str) {
    let before = fleet.pool().dump();
    let story = fleet.run(deploy(plan)).await;
    story.assert(Outcome::Failure);
    let message = message(&story);
    assert!(message.contains(&format!("step {step} ")) && message.contains(says), "{message}");
    fleet.assert_as(&before, step).await;
    assert_eq!(fleet.proxies.count(), (0, 0), "{step}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_happen_in_time_is_named_and_undone() {
    let fleet = Fleet::new(2).await;
    let brief = DeployTimes { address: 1, daemon: 1, stall: 1, call: 10, ..DeployTimes::default() };
    let plan = || DeployPlan { times: brief, ..fleet.deployment() };
    let pool = fleet.pool();
    for (fault, step, says) in [
        (Fault::GuestNeverReports, "address", "did not report an address (its agent says nothing) within 1 s"),
        (Fault::DaemonNeverAnswers, "daemon", "did not report (it has not taken its configuration yet) within 1 s"),
        (Fault::CutImport { after_bytes: 1 << 20 }, "upload", "import the image"),
    ] {
        pool.set_fault(fault);
        fails(&fleet, plan(), step, says).await;
        pool.clear_faults();
    }
    // Where it says to be, nobody answers.
    pool.set_fault(Fault::GuestReportsOtherAddress { address: fleet.proxies.address(250) });
    fails(&fleet, plan(), "daemon", "did not answer").await;
    // It says to be elsewhere than it was told.
    let address = AddressSpec::parse(&format!("{}/24", fleet.proxies.address(100)), "", "", "").unwrap();
    fails(&fleet, DeployPlan { address, ..plan() }, "address", &format!("(it reports {})", fleet.proxies.address(250))).await;
    pool.clear_faults();
    fleet.destroyed(&fleet.deployed().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_does_not_come_up_in_time_is_taken_back() {
    let fleet = Fleet::new(3).await;
    let proxy = fleet.deployed().await;
    let before = fleet.pool().dump();
    let brief = DeployTimes { address: 1, daemon: 1, ..DeployTimes::default() };
    let address = AddressSpec::parse(&format!("{}/24", fleet.proxies.address(100)), "", "", "").unwrap();
    let plan = ReconfigurePlan { times: brief, address: Some(address), ..fleet.reconfiguration(&proxy) };
    for (fault, step) in [(Fault::GuestNeverReports, "address"), (Fault::DaemonNeverAnswers, "daemon")] {
        fleet.pool().set_fault(fault.once());
        let story = fleet.run(Work::Reconfigure(plan.clone())).await;
        story.assert(Outcome::Failure);
        assert!(message(&story).contains(&format!("step {step} failed and the former settings are back")), "{}", message(&story));
        fleet.assert_as(&before, step).await;
        fleet.assert_works(&proxy, 0, step).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_before_anything_is_made() {
    let fleet = Fleet::new(4).await;
    let sr = |name: &str| {
        let records = fleet.pool().records("SR");
        records.iter().find(|(_, sr)| sr["name_label"] == name).unwrap().1["uuid"].as_str().unwrap().to_owned()
    };
    let plan = || fleet.deployment();
    let other_sum = ImagePlan { sha256: Some("0".repeat(64)), ..plan().image };
    let nowhere = ImagePlan { url: Secret::new("/nowhere.xva"), ..plan().image };
    fails(&fleet, DeployPlan { sr: sr("lab archive"), ..plan() }, "check", "1.0 GiB free").await;
    fails(&fleet, DeployPlan { sr: sr("lab SAN"), disk: 500 << 30, ..plan() }, "check", "400.0 GiB free").await;
    fails(&fleet, DeployPlan { memory: 80 << 30, ..plan() }, "check", "no host has 80.0 GiB").await;
    fails(&fleet, DeployPlan { image: other_sum, ..plan() }, "upload", "its SHA-256 is").await;
    fails(&fleet, DeployPlan { image: nowhere, ..plan() }, "check", "/nowhere.xva").await;
    fails(&fleet, DeployPlan { network: PROXY.into(), ..plan() }, "check", "has no network").await;
    let proxy = fleet.deployed().await;
    let before = fleet.pool().dump();
    let taken = fleet.proxies.address(10);
    let address = AddressSpec::parse(&format!("{taken}/24"), "", "", "").unwrap();
    let story = fleet.run(deploy(DeployPlan { address, ..plan() })).await;
    story.assert(Outcome::Failure);
    assert!(message(&story).contains(&format!("the address {taken} is in use: VM")), "{}", message(&story));
    fleet.assert_as(&before, "address").await;
    fleet.assert_works(&proxy, 0, "address").await;
    // What fitted when it was looked at, and does not any more when it is needed.
    for (call, code, step) in
        [("VDI.resize", "SR_BACKEND_FAILURE_44", "configure"), ("VM.start", "HOST_NOT_ENOUGH_FREE_MEMORY", "start")]
    {
        fleet.pool().set_fault(Fault::FailCall { call: call.into(), nth: 1, code: code.into(), done: false }.once());
        let story = fleet.run(deploy(plan())).await;
        story.assert(Outcome::Failure);
        assert!(message(&story).contains(&format!("step {step} ")) && message(&story).contains(code), "{}", message(&story));
        fleet.assert_as(&before, call).await;
    }
}

/// Runs a work and cancels it when a step begins.
async fn cancelled_at(fleet: &Fleet, work: Work, step: &str) -> Vec<api::EventKind> {
    let (journal, cancel, end) = crate::site::begin(fleet.plan(work));
    let begins = |event: &api::EventKind| match event {
        api::EventKind::TaskStarted { kind: TaskKind::Step, label, .. } => label == step,
        _ => false,
    };
    journal.until(begins).await;
    cancel.cancel();
    end.await.unwrap();
    journal.story().0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_cancelled_at_any_step_is_undone_or_complete() {
    let fleet = Fleet::new(5).await;
    let before = fleet.pool().dump();
    for step in names(&deploy_steps(&DeployTimes::default(), false)) {
        let events = cancelled_at(&fleet, deploy(fleet.deployment()), &step).await;
        crate::site::Story(events.clone()).assert_tidy();
        match outcome(&events) {
            None => assert_eq!(crate::site::Story(events).outcome(), Outcome::Cancelled, "{step}"),
            Some(proxy) => {
                fleet.assert_works(&proxy, 0, &step).await;
                fleet.destroyed(&proxy).await;
            }
        }
        fleet.assert_as_but_for_tasks(&before, &step).await;
        assert_eq!(fleet.proxies.count(), (0, 0), "{step}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_or_replacement_cancelled_at_any_step_leaves_a_proxy_that_works() {
    let fleet = Fleet::new(6).await;
    let mut proxy = fleet.deployed().await;
    fleet.proxies.set_jobs(proxy.vm.as_deref().unwrap(), 2);
    for step in names(&reconfigure_steps(&fleet.reconfiguration(&proxy))) {
        let before = fleet.pool().dump();
        let events = cancelled_at(&fleet, Work::Reconfigure(fleet.reconfiguration(&proxy)), &step).await;
        crate::site::Story(events.clone()).assert_tidy();
        match outcome(&events) {
            None => fleet.assert_as_but_for_tasks(&before, &step).await,
            Some(_) => {
                let back = ReconfigurePlan { vcpus: Some(2), ..fleet.reconfiguration(&proxy) };
                fleet.run(Work::Reconfigure(back)).await.assert(Outcome::Success);
                fleet.assert_as_but_for_tasks(&before, &step).await;
            }
        }
        fleet.assert_works(&proxy, 2, &step).await;
    }
    for step in names(&deploy_steps(&DeployTimes::default(), true)) {
        let before = fleet.pool().dump();
        let events = cancelled_at(&fleet, deploy(fleet.replacement(&proxy)), &step).await;
        crate::site::Story(events.clone()).assert_tidy();
        match outcome(&events) {
            None => fleet.assert_as_but_for_tasks(&before, &step).await,
            Some(new) => proxy = new,
        }
        fleet.assert_works(&proxy, 2, &step).await;
        fleet.assert_vms(&[&proxy], &step);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destruction_is_cancelled_before_it_begins_or_comes_to_its_end() {
    let fleet = Fleet::new(7).await;
    let before = fleet.pool().dump();
    for step in ["check", "drain", "destroy"] {
        let proxy = fleet.deployed().await;
        let standing = fleet.pool().dump();
        let events = cancelled_at(&fleet, Work::Destroy(fleet.destruction(&proxy)), step).await;
        let story = crate::site::Story(events);
        story.assert_tidy();
        if story.outcome() == Outcome::Cancelled {
            fleet.assert_as_but_for_tasks(&standing, step).await;
            fleet.assert_works(&proxy, 0, step).await;
            fleet.destroyed(&proxy).await;
        }
        fleet.assert_as_but_for_tasks(&before, step).await;
    }
}
