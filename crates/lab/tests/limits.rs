//! What a pool does not have room for, and calls that fail because they were made to.

mod support;

use lab::{Fault, LabSpec, SrSpec};
use serde_json::{Value, json};
use support::{Bench, until};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn spec() -> LabSpec {
    let mut spec = LabSpec::single();
    let mut pool = spec.pools.remove(0).varied();
    pool.storage.push(SrSpec::new("tiny", "nfs", 64 * MIB).with_free(3 * MIB));
    pool.host_memory = 4 * GIB;
    spec.pools.push(pool);
    spec
}

fn sr(bench: &Bench, name: &str) -> (String, u64) {
    let (reference, record) = bench.pool().records("SR").into_iter().find(|(_, sr)| sr["name_label"] == name).unwrap();
    (reference, record["physical_size"].as_u64().unwrap() - record["physical_utilisation"].as_u64().unwrap())
}

async fn archive(disk: usize) -> Vec<u8> {
    let meta = xva::Appliance { name: "a".into(), version: "1".into(), vcpus: 1, memory: GIB, disk: disk as u64 };
    let mut archive = Vec::new();
    xva::write_appliance(&mut archive, vec![7; disk].as_slice(), &meta).await.unwrap();
    archive
}

#[tokio::test]
async fn storage_takes_what_it_has_room_for_and_keeps_nothing_of_the_rest() {
    let bench = Bench::of(&spec()).await;
    let client = &bench.client;
    let disk = |sr: &str, bytes: u64| json!({ "SR": sr, "virtual_size": bytes, "type": "user", "sharable": false, "read_only": false, "other_config": {} });
    let (san, free) = sr(&bench, "lab SAN");
    assert_eq!(free, 400 * GIB);
    let before = bench.pool().dump();
    let refused = client.try_call("VDI.create", &[disk(&san, 401 * GIB)]).await.unwrap_err();
    assert_eq!(refused, ("SR_BACKEND_FAILURE_44".into(), vec!["".into(), "There is insufficient space".into(), "".into()]));
    let vdi = client.text("VDI.create", &[disk(&san, 390 * GIB)]).await;
    assert_eq!(sr(&bench, "lab SAN").1, 10 * GIB);
    let grown = client.try_call("VDI.resize", &[json!(vdi), json!(401 * GIB)]).await.unwrap_err();
    assert_eq!(grown.0, "SR_BACKEND_FAILURE_44");
    client.call("VDI.resize", &[json!(vdi), json!(400 * GIB)]).await;
    assert_eq!(sr(&bench, "lab SAN").1, 0);
    client.call("VDI.destroy", &[json!(vdi)]).await;

    // Thin storage takes a disk of any size, and what is written to it as long as there is room.
    let (tiny, free) = sr(&bench, "tiny");
    assert_eq!(free, 3 * MIB);
    let vdi = client.text("VDI.create", &[disk(&tiny, 500 * GIB)]).await;
    client.call("VDI.destroy", &[json!(vdi)]).await;
    let (_, task) = client.put("/import/", &[("sr_id", &tiny)], archive(8 * MIB as usize).await).await;
    let ended = client.wait(&task).await;
    assert_eq!((&ended["status"], &ended["error_info"][0]), (&json!("failure"), &json!("SR_BACKEND_FAILURE_44")));
    client.call("task.destroy", &[json!(task)]).await;
    until("the undoing of the import", || before.difference(&bench.pool().dump()).is_empty()).await;
    let (_, task) = client.put("/import/", &[("sr_id", &tiny)], archive(2 * MIB as usize).await).await;
    assert_eq!(client.wait(&task).await["status"], "success");
    assert_eq!(sr(&bench, "tiny").1, MIB);
}

#[tokio::test]
async fn a_machine_starts_where_its_memory_is_free_and_nowhere_else() {
    let bench = Bench::of(&spec()).await;
    let (client, vm) = (&bench.client, json!(bench.pool().vm("alpha").unwrap().reference));
    let free = || bench.pool().records("host_metrics")[0].1["memory_free"].as_u64().unwrap();
    assert_eq!(free(), GIB);
    client.call("VM.hard_shutdown", std::slice::from_ref(&vm)).await;
    assert_eq!(free(), 2 * GIB);
    let limits = |bytes: u64| [vm.clone(), json!(bytes), json!(bytes), json!(bytes), json!(bytes)];
    client.call("VM.set_memory_limits", &limits(3 * GIB)).await;
    let start = [vm.clone(), json!(false), json!(false)];
    let refused = client.try_call("VM.start", &start).await.unwrap_err();
    assert_eq!(refused, ("HOST_NOT_ENOUGH_FREE_MEMORY".into(), vec![(3 * GIB).to_string(), (2 * GIB).to_string()]));
    client.call("VM.set_memory_limits", &limits(2 * GIB)).await;
    client.call("VM.start", &start).await;
    assert_eq!(free(), 0);
}

#[tokio::test]
async fn a_call_fails_that_was_made_to_and_calls_are_noted() {
    let bench = Bench::single().await;
    let (client, pool) = (&bench.client, bench.pool());
    let vm = json!(pool.vm("alpha").unwrap().reference);
    let fail = |call: &str, nth: u32, done: bool| {
        pool.set_fault(Fault::FailCall { call: call.into(), nth, code: "SOME_CODE".into(), done }.once());
    };
    pool.log_calls();
    fail("VM.get_name_label", 2, false);
    client.call("VM.get_name_label", std::slice::from_ref(&vm)).await;
    let failed = client.try_call("VM.get_name_label", std::slice::from_ref(&vm)).await.unwrap_err();
    assert_eq!(failed.0, "SOME_CODE");
    // Done all the same.
    fail("VM.set_name_label", 1, true);
    client.try_call("VM.set_name_label", &[vm.clone(), json!("other")]).await.unwrap_err();
    assert_eq!(client.call("VM.get_name_label", std::slice::from_ref(&vm)).await, "other");
    // The work of a task.
    fail("VM.hard_shutdown", 1, false);
    let task = client.text("Async.VM.hard_shutdown", std::slice::from_ref(&vm)).await;
    let ended = client.wait(&task).await;
    assert_eq!((&ended["status"], &ended["error_info"][0]), (&json!("failure"), &json!("SOME_CODE")));
    // A transfer.
    fail("PUT /import", 1, false);
    let (answer, task) = client.put("/import/", &[], vec![0; 10]).await;
    assert_eq!(answer.unwrap().status(), 500);
    assert_eq!(client.wait(&task).await["error_info"][0], "SOME_CODE");
    assert_eq!(pool.faults().len(), 0);
    let calls = pool.logged_calls();
    let count = |name: &str| calls.iter().filter(|call| *call == name).count();
    assert_eq!((count("VM.get_name_label"), count("Async.VM.hard_shutdown"), count("VM.hard_shutdown")), (3, 1, 1), "{calls:?}");
    assert_eq!(pool.logged_calls(), [] as [String; 0]);
}

#[tokio::test]
async fn a_dump_comes_over_the_wire_as_it_is() {
    let bench = Bench::single().await;
    let dump = bench.client.raw("lab.dump", json!([bench.pool().password()])).await.unwrap();
    let dump: lab::Dump = serde_json::from_value(dump).unwrap();
    assert_eq!(dump.difference(&bench.pool().dump()), [] as [String; 0]);
    let refused: Result<Value, _> = bench.client.raw("lab.dump", json!(["wrong"])).await;
    assert_eq!(refused.unwrap_err().0, "SESSION_AUTHENTICATION_FAILED");
}
