//! Every call that a deployment, change, replacement or destruction makes, of the pool and of the proxy, failed once: which
//! there are is learnt from a run without a trouble.

use std::collections::BTreeMap;

use api::Outcome;
use engine::plan::{ReconfigurePlan, Work};
use lab::Fault;

use crate::fleet::{Fleet, Manner, deploy, message, outcome, steps};
use crate::site::{Story, announces_the_end};

/// Calls of which there are as many as chance has it: those of a wait. The first of them are tried.
const POLLED: [&str; 5] = ["event.from", "task.get_record", "VM.get_record", "VM_guest_metrics.get_record", "proxy.status"];

/// Those of them that are not made at all when what is waited for is there at the first look.
const WAITING: [&str; 2] = ["event.from", "task.get_record"];

/// What there is to fail: each call by its name and number.
fn enumerated(calls: &[String]) -> Vec<(String, usize)> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for call in calls {
        *counts.entry(call).or_default() += 1;
    }
    let most = |call: &str, count: usize| if POLLED.contains(&call) { count.min(3) } else { count };
    counts.into_iter().flat_map(|(call, count)| (1..=most(call, count)).map(move |nth| (call.to_owned(), nth))).collect()
}

/// The ways in which a call of the pool fails: before anything happened, and with its answer lost.
const WAYS: [bool; 2] = [false, true];

fn fail(fleet: &Fleet, call: &str, nth: usize, done: bool) {
    let fault = Fault::FailCall { call: call.to_owned(), nth: nth as u32, code: "INTERNAL_ERROR".into(), done };
    fleet.pool().set_fault(fault.once());
}

fn struck(fleet: &Fleet) -> bool {
    let left = fleet.pool().faults().len();
    fleet.pool().clear_faults();
    left == 0
}

/// A call that a run is certain to make has met its fault: else what follows shows nothing.
fn assert_struck(struck: bool, call: &str, nth: usize, what: &str) {
    let certain = if POLLED.contains(&call) { nth == 1 && !WAITING.contains(&call) } else { true };
    assert!(struck || !certain, "{what}: nothing failed");
}

/// A failure that names its step: the last one that the run took.
fn assert_named(story: &Story, what: &str) {
    if story.outcome() == Outcome::Failure {
        let (message, steps) = (message(story), steps(&story.0));
        let last = steps.iter().rfind(|step| *step != "undo").unwrap();
        assert!(message.contains(&format!("step {last} ")), "{what}: {message}");
    }
}

/// The pool is as it was, but for tasks whose answer was lost.
async fn as_before(fleet: &Fleet, before: &lab::Dump, what: &str, lost: bool) {
    if lost { fleet.assert_as_but_for_tasks(before, what).await } else { fleet.assert_as(before, what).await }
}

/// What a run left open is cleaned up, as the daemon would, once the trouble is over.
async fn settled(fleet: &Fleet, story: &Story, proxies: &[&api::TaskResult]) {
    fleet.recover(story.open_intents(), proxies).await;
}

async fn deployment(number: u8, way: bool) {
    let fleet = Fleet::new(number).await;
    let before = fleet.pool().dump();
    fleet.pool().log_calls();
    let proxy = fleet.deployed().await;
    let calls = enumerated(&fleet.pool().logged_calls());
    assert!(calls.iter().any(|(call, _)| call == "PUT /import") && calls.len() > 40, "{calls:?}");
    fleet.destroyed(&proxy).await;
    let mut failures = 0;
    for (call, nth) in calls {
        let what = format!("{call} {nth}, done: {way}");
        fail(&fleet, &call, nth, way);
        let story = fleet.run(deploy(fleet.deployment())).await;
        let struck = struck(&fleet);
        assert_struck(struck, &call, nth, &what);
        assert_named(&story, &what);
        settled(&fleet, &story, &[]).await;
        match outcome(&story.0) {
            Some(proxy) => {
                assert_eq!(story.outcome(), Outcome::Success, "{what}");
                fleet.assert_works(&proxy, 0, &what).await;
                fleet.destroyed(&proxy).await;
            }
            None => {
                assert!(struck, "{what}: failed of itself: {:#?}", story.0);
                failures += 1;
            }
        }
        as_before(&fleet, &before, &what, way).await;
        assert_eq!(fleet.proxies.count(), (0, 0), "{what}");
    }
    assert!(failures > 20, "only {failures} of the calls matter");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_of_a_deployment_fails_once_and_nothing_is_left() {
    deployment(21, WAYS[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_of_every_call_of_a_deployment_is_lost_once_and_nothing_is_left() {
    deployment(22, WAYS[1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_of_the_undoing_of_a_deployment_fails_once_and_nothing_is_left() {
    let fleet = Fleet::new(23).await;
    let before = fleet.pool().dump();
    // The last call that the new proxy has to answer fails, so that there is all to be undone.
    let run = async || {
        fleet.proxies.fail("pool.add", 1);
        fleet.run(deploy(fleet.deployment())).await
    };
    fleet.pool().log_calls();
    let story = run().await;
    story.assert(Outcome::Failure);
    assert!(message(&story).starts_with("step introduce failed and what was made is removed again"), "{}", message(&story));
    let calls = enumerated(&fleet.pool().logged_calls());
    for way in WAYS {
        for (call, nth) in &calls {
            let what = format!("{call} {nth}, done: {way}");
            fail(&fleet, call, *nth, way);
            let story = run().await;
            assert_struck(struck(&fleet), call, *nth, &what);
            assert_eq!(story.outcome(), Outcome::Failure, "{what}");
            settled(&fleet, &story, &[]).await;
            as_before(&fleet, &before, &what, way).await;
            assert_eq!(fleet.proxies.count(), (0, 0), "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_of_a_change_fails_once_and_the_proxy_works() {
    let fleet = Fleet::new(24).await;
    let proxy = fleet.deployed().await;
    fleet.proxies.set_jobs(proxy.vm.as_deref().unwrap(), 2);
    let before = fleet.pool().dump();
    let back = || ReconfigurePlan { vcpus: Some(2), ..fleet.reconfiguration(&proxy) };
    fleet.pool().log_calls();
    fleet.run(Work::Reconfigure(fleet.reconfiguration(&proxy))).await.assert(Outcome::Success);
    let calls = enumerated(&fleet.pool().logged_calls());
    fleet.run(Work::Reconfigure(back())).await.assert(Outcome::Success);
    fleet.assert_as(&before, "changed and changed back").await;
    for way in WAYS {
        for (call, nth) in &calls {
            let what = format!("{call} {nth}, done: {way}");
            fail(&fleet, call, *nth, way);
            let story = fleet.run(Work::Reconfigure(fleet.reconfiguration(&proxy))).await;
            let struck = struck(&fleet);
            assert_struck(struck, call, *nth, &what);
            assert_named(&story, &what);
            settled(&fleet, &story, &[&proxy]).await;
            match outcome(&story.0) {
                Some(_) => fleet.run(Work::Reconfigure(back())).await.assert(Outcome::Success).assert_tidy(),
                None => assert!(struck, "{what}: failed of itself: {:#?}", story.0),
            }
            as_before(&fleet, &before, &what, way).await;
            fleet.assert_works(&proxy, 2, &what).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_outlives_its_vm_is_found_by_the_clean_up() {
    let fleet = Fleet::new(29).await;
    let before = fleet.pool().dump();
    let stuck = || {
        let fault = Fault::FailCall { call: "VDI.destroy".into(), nth: 1, code: "SR_BACKEND_FAILURE_46".into(), done: false };
        fleet.pool().set_fault(fault);
    };
    let disks = || fleet.pool().records("VDI").len();
    let proxy = fleet.deployed().await;
    stuck();
    let story = fleet.run(Work::Destroy(fleet.destruction(&proxy))).await;
    assert_eq!(story.outcome(), Outcome::Failure);
    assert!(message(&story).starts_with("step destroy failed"), "{}", message(&story));
    fleet.assert_vms(&[], "destroyed");
    assert_eq!(disks(), 1);
    fleet.pool().clear_faults();
    settled(&fleet, &story, &[&proxy]).await;
    fleet.assert_as(&before, "destroyed").await;

    stuck();
    fleet.proxies.fail("pool.add", 1);
    let story = fleet.run(deploy(fleet.deployment())).await;
    assert_eq!(story.outcome(), Outcome::Failure);
    assert!(message(&story).contains("step introduce failed and what was made is not all removed yet"), "{}", message(&story));
    assert_eq!(disks(), 1);
    fleet.pool().clear_faults();
    settled(&fleet, &story, &[]).await;
    fleet.assert_as(&before, "undone").await;
}

async fn replacement(number: u8, manner: Manner, way: bool) {
    let fleet = Fleet::new(number).await;
    let mut proxy = fleet.replaceable(manner).await;
    let plan = fleet.replacing(&proxy, manner).await;
    fleet.pool().log_calls();
    let story = fleet.run(deploy(plan)).await;
    proxy = outcome(&story.assert(Outcome::Success).0).unwrap();
    for (call, nth) in enumerated(&fleet.pool().logged_calls()) {
        let what = format!("{call} {nth}, done: {way}");
        let before = fleet.pool().dump();
        let plan = fleet.replacing(&proxy, manner).await;
        fail(&fleet, &call, nth, way);
        let story = fleet.run(deploy(plan)).await;
        assert_struck(struck(&fleet), &call, nth, &what);
        assert_named(&story, &what);
        match fleet.after_replacing(&proxy, &story.0).await {
            Some(new) => proxy = new,
            None => as_before(&fleet, &before, &what, way).await,
        }
        fleet.assert_works(&proxy, 2, &what).await;
        fleet.assert_vms(&[&proxy], &what);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_of_a_replacement_fails_once_and_one_of_both_works() {
    replacement(25, Manner::Leased, WAYS[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_of_every_call_of_a_replacement_is_lost_once_and_one_of_both_works() {
    replacement(26, Manner::Leased, WAYS[1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_of_a_replacement_from_a_copy_fails_once_and_one_of_both_works() {
    replacement(30, Manner::Silent, WAYS[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_of_a_destruction_fails_once_and_it_has_not_begun_or_is_finished() {
    let fleet = Fleet::new(27).await;
    let before = fleet.pool().dump();
    let proxy = fleet.deployed().await;
    fleet.snapshot(&proxy).await;
    fleet.pool().log_calls();
    fleet.destroyed(&proxy).await;
    let calls = enumerated(&fleet.pool().logged_calls());
    for way in WAYS {
        for (call, nth) in &calls {
            let what = format!("{call} {nth}, done: {way}");
            let proxy = fleet.deployed().await;
            fleet.snapshot(&proxy).await;
            let standing = fleet.pool().dump();
            fail(&fleet, call, *nth, way);
            let story = fleet.run(Work::Destroy(fleet.destruction(&proxy))).await;
            assert_struck(struck(&fleet), call, *nth, &what);
            assert_named(&story, &what);
            settled(&fleet, &story, &[&proxy]).await;
            let announced = story.0.iter().any(announces_the_end);
            if !announced {
                assert_eq!(story.outcome(), Outcome::Failure, "{what}");
                as_before(&fleet, &standing, &what, way).await;
                fleet.assert_works(&proxy, 0, &what).await;
                fleet.destroyed(&proxy).await;
            }
            as_before(&fleet, &before, &what, way).await;
            assert_eq!(fleet.proxies.count(), (0, 0), "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_of_a_proxy_fails_once_and_one_that_works_is_left_or_none() {
    let fleet = Fleet::new(28).await;
    let empty = fleet.pool().dump();
    let mut proxy = fleet.deployed().await;
    let deploying = enumerated(&fleet.proxies.calls());
    fleet.proxies.set_jobs(proxy.vm.as_deref().unwrap(), 2);
    let story = fleet.run(Work::Reconfigure(fleet.reconfiguration(&proxy))).await;
    story.assert(Outcome::Success);
    let changing = enumerated(&fleet.proxies.calls());
    let story = fleet.run(deploy(fleet.replacement(&proxy))).await;
    proxy = outcome(&story.assert(Outcome::Success).0).unwrap();
    let replacing = enumerated(&fleet.proxies.calls());
    fleet.destroyed(&proxy).await;
    let destroying = enumerated(&fleet.proxies.calls());
    proxy = fleet.deployed().await;
    fleet.proxies.set_jobs(proxy.vm.as_deref().unwrap(), 2);

    for (call, nth) in changing {
        let what = format!("change: {call} {nth}");
        let before = fleet.pool().dump();
        fleet.proxies.fail(&call, nth);
        let vcpus = Some(4 + nth as u32);
        let plan = ReconfigurePlan { vcpus, ..fleet.reconfiguration(&proxy) };
        let story = fleet.run(Work::Reconfigure(plan)).await;
        assert_struck(fleet.proxies.struck(), &call, nth, &what);
        assert_named(&story, &what);
        story.assert_tidy();
        if outcome(&story.0).is_none() {
            fleet.assert_as(&before, &what).await;
        }
        fleet.assert_works(&proxy, 2, &what).await;
    }
    for (call, nth) in replacing {
        let what = format!("replacement: {call} {nth}");
        let before = fleet.pool().dump();
        fleet.proxies.fail(&call, nth);
        let story = fleet.run(deploy(fleet.replacement(&proxy))).await;
        assert_struck(fleet.proxies.struck(), &call, nth, &what);
        assert_named(&story, &what);
        match fleet.after_replacing(&proxy, &story.0).await {
            Some(new) => proxy = new,
            None => fleet.assert_as(&before, &what).await,
        }
        fleet.assert_works(&proxy, 2, &what).await;
        fleet.assert_vms(&[&proxy], &what);
    }
    for (call, nth) in destroying {
        let what = format!("destruction: {call} {nth}");
        let before = fleet.pool().dump();
        fleet.proxies.fail(&call, nth);
        let story = fleet.run(Work::Destroy(fleet.destruction(&proxy))).await;
        assert_struck(fleet.proxies.struck(), &call, nth, &what);
        assert_named(&story, &what);
        story.assert_tidy();
        if story.outcome() == Outcome::Failure {
            fleet.assert_as(&before, &what).await;
            fleet.assert_works(&proxy, 2, &what).await;
            fleet.destroyed(&proxy).await;
        }
        fleet.assert_as(&empty, &what).await;
        proxy = fleet.deployed().await;
        fleet.proxies.set_jobs(proxy.vm.as_deref().unwrap(), 2);
    }
    fleet.destroyed(&proxy).await;
    for (call, nth) in deploying {
        let what = format!("deployment: {call} {nth}");
        fleet.proxies.fail(&call, nth);
        let story = fleet.run(deploy(fleet.deployment())).await;
        assert_struck(fleet.proxies.struck(), &call, nth, &what);
        assert_named(&story, &what);
        story.assert_tidy();
        if let Some(proxy) = outcome(&story.0) {
            fleet.assert_works(&proxy, 0, &what).await;
            fleet.destroyed(&proxy).await;
        }
        fleet.assert_as(&empty, &what).await;
    }
}
