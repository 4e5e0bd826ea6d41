//! The marks by which a deployment finds again what is its own: set, taken off, and taken off by somebody else.

use api::{Intent, Outcome, TaskResult};
use engine::plan::{OpenIntent, RecoverPlan, Work};
use lab::Fault;
use serde_json::{Value, json};

use crate::fleet::{Fleet, message};

const OBSOLETE: &str = "backhaul:obsolete";
/// The run whose leftovers the tests clean up.
const RUN: &str = "run-1";

fn record(fleet: &Fleet, proxy: &TaskResult) -> (String, Value) {
    let vms = fleet.pool().records("VM");
    vms.into_iter().find(|(_, vm)| vm["uuid"].as_str() == proxy.vm.as_deref()).unwrap()
}

async fn mark(fleet: &Fleet, proxy: &TaskResult, run: &str) {
    let (reference, _) = record(fleet, proxy);
    let params = vec![json!(reference), json!(OBSOLETE), json!(run)];
    fleet.pool().call("VM.add_to_other_config", params).await.unwrap();
}

fn open(what: Intent) -> Vec<OpenIntent> {
    vec![OpenIntent { intent: 1, what }]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_that_cannot_be_set_names_its_step_and_leaves_the_proxy() {
    let fleet = Fleet::new(90).await;
    let proxy = fleet.deployed().await;
    let before = fleet.pool().dump();
    let fails = Fault::FailCall { call: "VM.add_to_other_config".into(), nth: 1, code: "INTERNAL_ERROR".into(), done: false };
    fleet.pool().set_fault(fails.once());
    let story = fleet.site.run(Work::Destroy(fleet.destruction(&proxy))).await;
    story.assert(Outcome::Failure);
    let message = message(&story);
    assert!(message.contains("step destroy ") && message.contains("mark VM"), "{message}");
    fleet.pool().clear_faults();
    fleet.assert_as(&before, "mark").await;
    fleet.assert_works(&proxy, 0, "mark").await;
    fleet.destroyed(&proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_up_takes_off_what_was_marked_by_the_run_and_nothing_else() {
    let fleet = Fleet::new(91).await;
    let proxy = fleet.deployed().await;
    let before = fleet.pool().dump();
    // As a replacement leaves it that was cut off after it had marked a machine that was off anyway.
    mark(&fleet, &proxy, RUN).await;
    let unfinished = || open(Intent::DeployedVm { pool: "pool".into(), uuid: None, replaces: None, answered: false });
    fleet.recover(unfinished(), &[&proxy]).await;
    fleet.assert_as(&before, "its own mark").await;

    mark(&fleet, &proxy, "another-run").await;
    let marked = fleet.pool().dump();
    fleet.recover(unfinished(), &[&proxy]).await;
    fleet.assert_as(&marked, "the mark of another run").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_somebody_has_unmarked_stays_and_the_clean_up_comes_to_its_end() {
    let fleet = Fleet::new(92).await;
    let proxy = fleet.deployed().await;
    let before = fleet.pool().dump();
    let intents = open(Intent::ObsoleteVm { pool: "pool".into(), uuid: proxy.vm.clone().unwrap(), jobs: Vec::new() });
    let plan = RecoverPlan { run: RUN.into(), intents, proxies: Vec::new(), times: Default::default() };
    let story = fleet.site.run(Work::Recover(plan)).await;
    story.assert(Outcome::Success);
    let warned = story.0.iter().any(|event| match event {
        api::EventKind::Log { level: api::LogLevel::Warning, message, .. } => message.contains("it stays"),
        _ => false,
    });
    assert!(warned, "{:?}", story.0);
    fleet.assert_as(&before, "unmarked").await;
    fleet.assert_works(&proxy, 0, "unmarked").await;
}
