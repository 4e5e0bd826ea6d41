//! The guests of appliances, run by somebody else: what they are told, and what becomes of what they report.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use lab::{APPLIANCE, Boot, Fault, Guests, Report};
use serde_json::{Value, json};
use support::{Bench, until};

/// Runs guests that report at once, unless their data says that they fail or hang.
#[derive(Default)]
struct Told(Mutex<Vec<String>>);

impl Told {
    fn note(&self, what: String) {
        self.0.lock().unwrap().push(what);
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

struct Runner(Arc<Told>);

impl Guests for Runner {
    fn boot(&self, machine: Boot) -> BoxFuture<'static, Result<Report, String>> {
        assert!(!machine.network.is_empty() && machine.mac.len() == 17, "{machine:?}");
        self.0.note(format!("boot {}", machine.vm));
        Box::pin(async move {
            match machine.data.get("backhaul/mode").map(String::as_str) {
                Some("fail") => return Err("no kernel".into()),
                Some("hang") => std::future::pending().await,
                _ => {}
            }
            let mut data = machine.data;
            data.remove("backhaul/token");
            data.insert("backhaul/ready".into(), "8443".into());
            let address = data.get("backhaul/address").and_then(|address| address.parse().ok());
            Ok(Report { address, data })
        })
    }

    fn halt(&self, vm: &str, clean: bool) -> BoxFuture<'static, ()> {
        self.0.note(format!("halt {vm} {clean}"));
        Box::pin(async {})
    }

    fn forget(&self, vm: &str) -> BoxFuture<'static, ()> {
        self.0.note(format!("forget {vm}"));
        Box::pin(async {})
    }
}

/// A lab whose machine is an appliance's, off, with XenStore data.
async fn appliance(data: &[(&str, &str)]) -> (Bench, String, String) {
    let bench = Bench::single().await;
    let vm = bench.pool().vm("alpha").unwrap();
    let reference = json!(vm.reference);
    bench.client.call("VM.hard_shutdown", std::slice::from_ref(&reference)).await;
    bench.client.call("VM.add_to_other_config", &[reference.clone(), json!(APPLIANCE), json!("1.0")]).await;
    let data: BTreeMap<&str, &str> = data.iter().copied().collect();
    bench.client.call("VM.set_xenstore_data", &[reference, json!(data)]).await;
    (bench, vm.reference, vm.uuid)
}

fn field(bench: &Bench, vm: &str, field: &str) -> Value {
    bench.pool().record("VM", vm).unwrap()[field].clone()
}

fn networks(bench: &Bench, vm: &str) -> Option<Value> {
    let metrics = field(bench, vm, "guest_metrics");
    Some(bench.pool().record("VM_guest_metrics", metrics.as_str()?)?["networks"].clone())
}

#[tokio::test]
async fn a_guest_is_told_and_heard_from_its_start_to_its_end() {
    let data = [("other", "stays"), ("vm-data/backhaul/token", "t"), ("vm-data/backhaul/address", "127.0.3.7")];
    let (bench, vm, uuid) = appliance(&data).await;
    let told = Arc::new(Told::default());
    bench.pool().set_guests(Arc::new(Runner(Arc::clone(&told))));
    assert!(told.all().is_empty(), "a machine that is off was booted");
    let (reference, client) = (json!(vm), &bench.client);

    client.call("VM.start", &[reference.clone(), json!(false), json!(false)]).await;
    until("the report", || networks(&bench, &vm).is_some()).await;
    let reported = json!({ "0/ip": "127.0.3.7", "0/ipv4/0": "127.0.3.7" });
    assert_eq!(networks(&bench, &vm).unwrap(), reported);
    let now = json!({ "other": "stays", "vm-data/backhaul/address": "127.0.3.7", "vm-data/backhaul/ready": "8443" });
    assert_eq!(field(&bench, &vm, "xenstore_data"), now);

    let domain = field(&bench, &vm, "domid");
    client.call("VM.clean_reboot", std::slice::from_ref(&reference)).await;
    until("the second report", || networks(&bench, &vm).is_some()).await;
    assert_ne!(field(&bench, &vm, "domid"), domain);

    client.call("VM.clean_shutdown", std::slice::from_ref(&reference)).await;
    assert_eq!((networks(&bench, &vm), field(&bench, &vm, "power_state")), (None, json!("Halted")));
    client.call("VM.set_xenstore_data", &[reference.clone(), json!({ "vm-data/backhaul/address": "fd00::7" })]).await;
    client.call("VM.start", &[reference.clone(), json!(false), json!(false)]).await;
    until("the third report", || networks(&bench, &vm).is_some()).await;
    assert_eq!(networks(&bench, &vm).unwrap(), json!({ "0/ipv6/0": "fd00::7" }));
    client.call("VM.hard_shutdown", std::slice::from_ref(&reference)).await;
    client.call("VM.destroy", std::slice::from_ref(&reference)).await;

    let expected = ["boot", "halt true", "boot", "halt true", "boot", "halt false", "forget"];
    let expected: Vec<String> = expected
        .iter()
        .map(|what| match what.split_once(' ') {
            Some((what, clean)) => format!("{what} {uuid} {clean}"),
            None => format!("{what} {uuid}"),
        })
        .collect();
    assert_eq!(told.all(), expected);
}

#[tokio::test]
async fn a_machine_that_runs_already_is_booted_and_one_whose_guest_hangs_is_switched_off() {
    let (bench, vm, uuid) = appliance(&[("vm-data/backhaul/mode", "hang")]).await;
    bench.client.call("VM.start", &[json!(vm), json!(true), json!(false)]).await;
    bench.client.call("VM.unpause", &[json!(vm)]).await;
    let told = Arc::new(Told::default());
    bench.pool().set_guests(Arc::new(Runner(Arc::clone(&told))));
    until("the boot", || told.all() == [format!("boot {uuid}")]).await;
    bench.client.call("VM.hard_shutdown", &[json!(vm)]).await;
    assert_eq!(told.all(), [format!("boot {uuid}"), format!("halt {uuid} false")]);
    assert_eq!((networks(&bench, &vm), field(&bench, &vm, "power_state")), (None, json!("Halted")));
    bench.lab.close().await.unwrap();
}

#[tokio::test]
async fn a_guest_that_fails_leaves_its_machine_running_without_a_word() {
    let (bench, vm, uuid) = appliance(&[("vm-data/backhaul/mode", "fail")]).await;
    let told = Arc::new(Told::default());
    bench.pool().set_guests(Arc::new(Runner(Arc::clone(&told))));
    bench.client.call("VM.start", &[json!(vm), json!(false), json!(false)]).await;
    until("the boot", || told.all() == [format!("boot {uuid}")]).await;
    // Closing waits for whatever still runs for the pool.
    let pool = bench.pool().clone();
    bench.lab.close().await.unwrap();
    let record = pool.record("VM", &vm).unwrap();
    assert_eq!((&record["power_state"], &record["guest_metrics"]), (&json!("Running"), &json!("OpaqueRef:NULL")));
}

/// Runs guests that never report, and that end by themselves only when they are cut off.
#[derive(Default)]
struct Stubborn {
    running: Mutex<BTreeSet<String>>,
    asked: tokio::sync::Notify,
    cut: tokio::sync::Notify,
}

struct StubbornRunner(Arc<Stubborn>);

impl Guests for StubbornRunner {
    fn boot(&self, machine: Boot) -> BoxFuture<'static, Result<Report, String>> {
        assert!(self.0.running.lock().unwrap().insert(machine.vm), "it runs already");
        Box::pin(std::future::pending())
    }

    fn halt(&self, vm: &str, clean: bool) -> BoxFuture<'static, ()> {
        let (guests, vm) = (Arc::clone(&self.0), vm.to_owned());
        Box::pin(async move {
            if clean {
                guests.asked.notify_one();
                guests.cut.notified().await;
            } else {
                guests.cut.notify_one();
            }
            guests.running.lock().unwrap().remove(&vm);
        })
    }

    fn forget(&self, _: &str) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_not_stop_is_cut_off_by_a_second_call() {
    let (bench, vm, _) = appliance(&[]).await;
    let guests = Arc::new(Stubborn::default());
    bench.pool().set_guests(Arc::new(StubbornRunner(Arc::clone(&guests))));
    let (client, vm) = (bench.client.clone(), json!(vm));
    client.call("VM.start", &[vm.clone(), json!(false), json!(false)]).await;
    let (asking, asked) = (client.clone(), vm.clone());
    let clean = tokio::spawn(async move { asking.try_call("VM.clean_shutdown", &[asked]).await });
    guests.asked.notified().await;
    assert_eq!(client.call("VM.get_power_state", std::slice::from_ref(&vm)).await, "Running");
    let hard = client.try_call("VM.hard_shutdown", std::slice::from_ref(&vm)).await;
    // Whichever of both comes first to write it down, the other finds it done.
    let calls = [hard, clean.await.unwrap()];
    assert!(calls.iter().any(Result::is_ok), "{calls:?}");
    for refused in calls.into_iter().filter_map(Result::err) {
        assert_eq!(refused.0, "VM_BAD_POWER_STATE");
    }
    assert_eq!(client.call("VM.get_power_state", std::slice::from_ref(&vm)).await, "Halted");
    assert!(guests.running.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_guest_outlives_a_machine_that_is_switched_off_while_it_starts() {
    let (bench, vm, _) = appliance(&[]).await;
    let guests = Arc::new(Stubborn::default());
    bench.pool().set_guests(Arc::new(StubbornRunner(Arc::clone(&guests))));
    let (client, vm) = (&bench.client, json!(vm));
    for _ in 0..50 {
        let start = [vm.clone(), json!(false), json!(false)];
        let stopped = async { while client.try_call("VM.hard_shutdown", std::slice::from_ref(&vm)).await.is_err() {} };
        let (started, ()) = tokio::join!(client.call("VM.start", &start), stopped);
        assert_eq!(started, "");
        assert_eq!(client.call("VM.get_power_state", std::slice::from_ref(&vm)).await, "Halted");
        assert!(guests.running.lock().unwrap().is_empty(), "a guest runs in a machine that is off");
    }
}

#[tokio::test]
async fn what_a_guest_reports_is_falsified_on_demand() {
    let (bench, vm, uuid) = appliance(&[("vm-data/backhaul/address", "127.0.3.7"), ("vm-data/backhaul/token", "t")]).await;
    let told = Arc::new(Told::default());
    bench.pool().set_guests(Arc::new(Runner(Arc::clone(&told))));
    let (client, pool) = (&bench.client, bench.pool());
    let start = async || client.call("VM.start", &[json!(vm), json!(false), json!(false)]).await;
    let stop = async || client.call("VM.hard_shutdown", &[json!(vm)]).await;
    pool.set_fault(Fault::DaemonNeverAnswers.once());
    start().await;
    until("the report", || networks(&bench, &vm).is_some()).await;
    assert_eq!(networks(&bench, &vm).unwrap()["0/ip"], "127.0.3.7");
    let data = field(&bench, &vm, "xenstore_data");
    assert!(data.get("vm-data/backhaul/ready").is_none() && data["vm-data/backhaul/token"] == "t", "{data}");
    stop().await;
    pool.set_fault(Fault::GuestReportsOtherAddress { address: "127.0.9.9".parse().unwrap() }.once());
    start().await;
    until("the report", || networks(&bench, &vm).is_some()).await;
    assert_eq!(networks(&bench, &vm).unwrap()["0/ip"], "127.0.9.9");
    stop().await;
    pool.set_fault(Fault::GuestNeverReports.once());
    start().await;
    until("the fault", || bench.pool().faults().is_empty()).await;
    assert_eq!(networks(&bench, &vm), None);
    assert_eq!(told.all().iter().filter(|what| **what == format!("boot {uuid}")).count(), 3);
}

#[tokio::test]
async fn processors_and_memory_are_set_while_a_machine_is_off() {
    let bench = Bench::single().await;
    let (client, vm) = (&bench.client, json!(bench.pool().vm("alpha").unwrap().reference));
    let gib = |count: u64| json!(count << 30);
    let limits = [vm.clone(), gib(1), gib(2), gib(2), gib(2)];
    let processors = [vm.clone(), json!(4)];
    for (method, params) in [("VM.set_memory_limits", limits.as_slice()), ("VM.set_VCPUs_max", &processors)] {
        assert_eq!(client.try_call(method, params).await.unwrap_err().0, "VM_BAD_POWER_STATE", "{method}");
    }
    client.call("VM.hard_shutdown", std::slice::from_ref(&vm)).await;
    assert_eq!(client.try_call("VM.set_VCPUs_at_startup", &processors).await.unwrap_err().0, "INVALID_VALUE");
    client.call("VM.set_VCPUs_max", &processors).await;
    client.call("VM.set_VCPUs_at_startup", &processors).await;
    let wrong = [vm.clone(), gib(3), gib(2), gib(2), gib(2)];
    assert_eq!(client.try_call("VM.set_memory_limits", &wrong).await.unwrap_err().0, "MEMORY_CONSTRAINT_VIOLATION_ORDER");
    client.call("VM.set_memory_limits", &limits).await;
    let record = client.call("VM.get_record", &[vm]).await;
    let numbers = ["VCPUs_max", "VCPUs_at_startup", "memory_static_max"].map(|field| record[field].as_u64().unwrap());
    assert_eq!(numbers, [4, 4, 2 << 30]);
}
