//! What a replacement finds of the proxy whose place it takes: one that falls silent, that is elsewhere, that has something to
//! lose; and what becomes of it when the replacement fails or is cut off.

use std::sync::{Arc, Mutex};

use api::{EventKind, Outcome, TaskKind, TaskResult};
use async_trait::async_trait;
use engine::plan::{DeployPlan, DeployTimes, RecoverPlan, ReplacePlan, Work};
use engine::{Journal, JournalError};
use lab::Fault;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::crash::AS_WORKER;
use crate::fleet::{Fleet, Manner, deploy, outcome};
use crate::guests::Running;
use crate::site::{Memory, Story, open_intents};

const OTHER: &str = "99999999-2222-4333-8444-555555555555";

/// A journal that does something when an event comes, before the run goes on.
struct Hooked<F> {
    memory: Memory,
    hook: Mutex<F>,
}

#[async_trait]
impl<F: FnMut(&EventKind) + Send + 'static> Journal for Hooked<F> {
    fn record(&self, event: EventKind) {
        (self.hook.lock().unwrap())(&event);
        self.memory.record(event);
    }

    async fn record_durable(&self, event: EventKind) -> Result<(), JournalError> {
        self.record(event);
        Ok(())
    }
}

/// Runs a work to its end, with something to do at each event.
async fn hooked(fleet: &Fleet, work: Work, cancel: CancellationToken, hook: impl FnMut(&EventKind) + Send + 'static) -> Story {
    let journal = Arc::new(Hooked { memory: Memory::default(), hook: Mutex::new(hook) });
    engine::run(fleet.plan(work), Arc::clone(&journal) as Arc<dyn Journal>, cancel).await;
    journal.memory.story()
}

fn begins(event: &EventKind, step: &str) -> bool {
    matches!(event, EventKind::TaskStarted { kind: TaskKind::Step, label, .. } if label == step)
}

fn uuid(proxy: &TaskResult) -> &str {
    proxy.vm.as_deref().unwrap()
}

async fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let waiting = async {
        while !happened() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

/// A replacement that is refused and has changed nothing. Gives what it said.
async fn refused(fleet: &Fleet, proxy: &TaskResult, plan: DeployPlan, code: &str) -> String {
    let before = fleet.pool().dump();
    let story = fleet.run(deploy(plan)).await;
    story.assert(Outcome::Failure);
    let Some(EventKind::RunEnded { error: Some(error), .. }) = story.0.last() else { panic!("no error") };
    assert_eq!(error.code, code, "{error}");
    fleet.assert_as(&before, code).await;
    fleet.assert_works(proxy, 2, code).await;
    error.message.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_after_the_registration_comes_too_late() {
    let fleet = Fleet::new(40).await;
    let cancel = CancellationToken::new();
    let token = cancel.clone();
    let registered = move |event: &EventKind| {
        if matches!(event, EventKind::TaskEnded { result, .. } if result.fingerprint.is_some()) {
            token.cancel();
        }
    };
    let story = hooked(&fleet, deploy(fleet.deployment()), cancel.clone(), registered).await;
    assert!(cancel.is_cancelled());
    story.assert(Outcome::Success);
    let proxy = outcome(&story.0).unwrap();
    fleet.assert_works(&proxy, 0, "cancelled").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_proxy_starts_nothing_before_it_is_certain_to_stay() {
    let fleet = Fleet::new(41).await;
    let proxy = fleet.replaceable(Manner::Silent).await;
    let plan = fleet.replacing(&proxy, Manner::Silent).await;
    let (proxies, seen, new) = (fleet.proxies.clone(), Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(None)));
    let (notes, known) = (Arc::clone(&seen), Arc::clone(&new));
    let look = move |event: &EventKind| {
        if let EventKind::TaskEnded { result: TaskResult { vm: Some(vm), .. }, .. } = event {
            *known.lock().unwrap() = Some(vm.clone());
        }
        if begins(event, "register") || begins(event, "retire") {
            let vm = known.lock().unwrap().clone().unwrap();
            notes.lock().unwrap().push(proxies.state(&vm).0);
        }
    };
    let story = hooked(&fleet, deploy(plan), CancellationToken::new(), look).await;
    let new = outcome(&story.assert(Outcome::Success).0).unwrap();
    assert_eq!(*seen.lock().unwrap(), [true, true], "its schedules were let loose too early");
    fleet.assert_works(&new, 2, "replaced").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_falls_silent_before_it_is_drained_is_replaced_from_its_copy() {
    let fleet = Fleet::new(42).await;
    let proxy = fleet.replaceable(Manner::Leased).await;
    let mut plan = fleet.replacement(&proxy);
    plan.replaces.as_mut().unwrap().state = Some(fleet.copied(&proxy).await);
    // It answers the check, and nothing after it.
    fleet.proxies.silence(uuid(&proxy), Some(1));
    let story = fleet.run(deploy(plan)).await;
    let new = outcome(&story.assert(Outcome::Success).0).unwrap();
    assert!(story.warnings().iter().any(|line| line.contains("does not answer")), "{:?}", story.warnings());
    fleet.assert_works(&new, 2, "from its copy").await;
    fleet.assert_vms(&[&new], "from its copy");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_runs_elsewhere_gets_no_twin() {
    let fleet = Fleet::new(43).await;
    let proxy = fleet.replaceable(Manner::Leased).await;
    let mut plan = fleet.replacement(&proxy);
    plan.replaces.as_mut().unwrap().vm = OTHER.into();
    let message = refused(&fleet, &proxy, plan, "PROXY_VM_ELSEWHERE").await;
    assert!(message.contains(OTHER), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_else_at_its_former_address_does_not_stand_in_its_way() {
    let fleet = Fleet::new(44).await;
    let proxy = fleet.replaceable(Manner::Leased).await;
    let story = fleet.run(deploy(DeployPlan { proxy: OTHER.into(), name: "another".into(), ..fleet.deployment() })).await;
    let other = outcome(&story.assert(Outcome::Success).0).unwrap();
    let (url, state) = (other.url.clone().unwrap(), Some(fleet.copied(&proxy).await));
    // By lease it has come to another address, and its deployer does not know.
    let replaces = ReplacePlan { url, state, ..fleet.replacement(&proxy).replaces.unwrap() };
    let story = fleet.run(deploy(DeployPlan { replaces: Some(replaces), ..fleet.deployment() })).await;
    let new = outcome(&story.assert(Outcome::Success).0).unwrap();
    fleet.assert_works(&new, 2, "replaced").await;
    fleet.assert_vms(&[&new, &other], "replaced");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_somebody_attached_is_not_destroyed_with_the_former_vm() {
    let fleet = Fleet::new(45).await;
    let proxy = fleet.replaceable(Manner::Leased).await;
    fleet.attach(&proxy, None, "3").await;
    let message = refused(&fleet, &proxy, fleet.replacement(&proxy), "PROXY_HAS_DISKS").await;
    assert!(message.contains("repository ("), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_former_proxy_that_has_yet_to_clean_up_says_so_at_once_and_is_not_replaced() {
    let fleet = Fleet::new(46).await;
    let proxy = fleet.replaceable(Manner::Leased).await;
    let waits = Running { id: "r1", kind: "recover", waits: Some("pool lyon does not answer") };
    fleet.proxies.set_running(uuid(&proxy), vec![waits]);
    let message = refused(&fleet, &proxy, fleet.replacement(&proxy), "PROXY_HAS_LEFTOVERS").await;
    assert!(message.contains("run r1") && message.contains("pool lyon does not answer"), "{message}");
    // It waits on the same machine after a restart.
    fleet.run(Work::Reconfigure(fleet.reconfiguration(&proxy))).await.assert(Outcome::Success);
    fleet.assert_works(&proxy, 2, "changed").await;
}

/// A replacement is killed while its former VM is asked to go down. What the clean-up is given.
async fn killed_in_switch_off(fleet: &Fleet, proxy: &TaskResult) -> RecoverPlan {
    fleet.proxies.set_stubborn(true);
    let program = std::env::current_exe().unwrap();
    let plan = fleet.plan(deploy(fleet.replacement(proxy)));
    let mut worker = engine::spawn(&program, &AS_WORKER, plan).await.unwrap();
    let (control, mut events) = (worker.control(), Vec::new());
    while !events.last().is_some_and(|event| begins(event, "switch off")) {
        let report = worker.next().await.unwrap().expect("it ended before it switched anything off");
        events.push(report.event);
        if report.durable {
            control.ack(report.seq).await.unwrap();
        }
    }
    let goes_down = || {
        let vm = fleet.pool().record("VM", &fleet.vm(proxy)).unwrap();
        vm["current_operations"].to_string().contains("clean_shutdown")
    };
    until("its VM is asked to go down", goes_down).await;
    worker.kill().unwrap();
    worker.wait().await.unwrap();
    fleet.recovery(open_intents(&events), &[proxy])
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_is_not_over_before_a_vm_that_goes_down_is_on_again() {
    let fleet = Fleet::new(47).await;
    let proxy = fleet.replaceable(Manner::Leased).await;
    let before = fleet.pool().dump();
    let plan = killed_in_switch_off(&fleet, &proxy).await;
    let impatient = RecoverPlan { times: DeployTimes { start: 1, ..plan.times }, ..plan.clone() };
    let story = fleet.site.run(Work::Recover(impatient)).await;
    assert_eq!(story.outcome(), Outcome::Failure, "nobody knows yet how it ends: {:#?}", story.0);
    fleet.proxies.set_stubborn(false);
    fleet.site.run(Work::Recover(plan)).await.assert(Outcome::Success);
    fleet.assert_as_but_for_tasks(&before, "undone").await;
    fleet.assert_works(&proxy, 2, "undone").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_goes_down_while_its_proxy_is_waited_for_is_switched_on_again() {
    let fleet = Fleet::new(48).await;
    let proxy = fleet.replaceable(Manner::Leased).await;
    let before = fleet.pool().dump();
    let what = api::Intent::DeployedVm { pool: "pool".into(), uuid: None, replaces: proxy.vm.clone(), answered: true };
    let plan = fleet.recovery(vec![engine::plan::OpenIntent { intent: 1, what }], &[&proxy]);
    // It goes down from inside: nothing on the pool says so.
    fleet.proxies.silence(uuid(&proxy), Some(0));
    let (_, _, end) = fleet.site.start(Work::Recover(plan));
    until("the proxy is waited for", || fleet.proxies.unheard() > 0).await;
    fleet.pool().call("VM.hard_shutdown", vec![json!(fleet.vm(&proxy))]).await.unwrap();
    fleet.proxies.silence(uuid(&proxy), None);
    assert_eq!(end.await.unwrap(), Outcome::Success);
    fleet.assert_as_but_for_tasks(&before, "on again").await;
    fleet.assert_works(&proxy, 2, "on again").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_answered_and_does_not_come_up_again_is_no_success() {
    let fleet = Fleet::new(49).await;
    let proxy = fleet.replaceable(Manner::Leased).await;
    fleet.proxies.silence(uuid(&proxy), Some(0));
    let recovered = async |answered| {
        let what = api::Intent::DeployedVm { pool: "pool".into(), uuid: None, replaces: proxy.vm.clone(), answered };
        let mut plan = fleet.recovery(vec![engine::plan::OpenIntent { intent: 1, what }], &[&proxy]);
        plan.times = DeployTimes { start: 1, daemon: 1, ..plan.times };
        fleet.site.run(Work::Recover(plan)).await.outcome()
    };
    assert_eq!(recovered(true).await, Outcome::Failure);
    assert_eq!(recovered(false).await, Outcome::Success, "perhaps that is why it was to be replaced");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_while_the_former_vm_is_retired_is_finished_by_the_clean_up() {
    let fleet = Fleet::new(50).await;
    let proxy = fleet.replaceable(Manner::Leased).await;
    let stuck = Fault::FailCall { call: "Async.VM.destroy".into(), nth: 1, code: "INTERNAL_ERROR".into(), done: false };
    fleet.pool().set_fault(stuck);
    let stuck = Fault::FailCall { call: "VM.destroy".into(), nth: 1, code: "INTERNAL_ERROR".into(), done: false };
    fleet.pool().set_fault(stuck);
    let story = fleet.run(deploy(fleet.replacement(&proxy))).await;
    fleet.pool().clear_faults();
    assert_eq!(story.outcome(), Outcome::Success);
    let new = outcome(&story.0).unwrap();
    assert!(story.warnings().iter().any(|line| line.contains("the new proxy stays, but")), "{:?}", story.warnings());
    fleet.assert_works(&new, 2, "not retired").await;
    assert_eq!(fleet.after_replacing(&proxy, &story.0).await, Some(new.clone()));
    fleet.assert_works(&new, 2, "retired").await;
    fleet.assert_vms(&[&new], "retired");
}
