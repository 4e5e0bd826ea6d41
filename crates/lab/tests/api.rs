//! Calls, records, events and tasks, as a client sees them.

mod support;

use std::time::Duration;

use lab::{Fault, Lab, LabSpec};
use serde_json::{Value, json};
use support::{Bench, Client};

#[tokio::test]
async fn a_client_logs_in_lists_and_logs_out() {
    let bench = Bench::single().await;
    let client = &bench.client;
    let pools = client.call("pool.get_all_records", &[]).await;
    let pool = pools.as_object().unwrap().values().next().unwrap();
    assert_eq!((pools.as_object().unwrap().len(), &pool["name_label"]), (1, &json!("lab")));
    let host = client.call("host.get_record", &[pool["master"].clone()]).await;
    assert_eq!(host["address"], "127.0.0.1");
    let methods = client.raw("system.listMethods", json!([])).await.unwrap();
    for class in ["network", "PIF", "pool", "SR", "task", "VBD", "VDI", "VIF", "VM", "VM_guest_metrics", "host", "PBD"] {
        assert!(methods.as_array().unwrap().contains(&json!(format!("{class}.get_all_records"))), "{class}");
        let records = client.call(&format!("{class}.get_all_records"), &[]).await;
        let mut keys = records.as_object().unwrap().values().map(|record| record.as_object().unwrap().keys().collect::<Vec<_>>());
        if let Some(first) = keys.next() {
            assert!(keys.all(|other| other == first), "records of {class} differ in their fields");
        }
    }
    client.call("session.logout", &[]).await;
    assert_eq!(client.try_call("VM.get_all", &[]).await.unwrap_err().0, "SESSION_INVALID");
}

#[tokio::test]
async fn what_is_wrong_is_called_by_its_code() {
    let bench = Bench::single().await;
    let client = &bench.client;
    let vm = bench.pool().vm("alpha").unwrap();
    let cases: &[(&str, Value, &str)] = &[
        ("VM.get_record", json!(["OpaqueRef:none"]), "HANDLE_INVALID"),
        ("VM.get_by_uuid", json!(["none"]), "UUID_INVALID"),
        ("VM.fly", json!([vm.reference]), "MESSAGE_METHOD_UNKNOWN"),
        ("Nothing.get_all", json!([]), "MESSAGE_METHOD_UNKNOWN"),
        ("event.register", json!([["*"]]), "MESSAGE_METHOD_UNKNOWN"),
        ("VM.get_record", json!([]), "MESSAGE_PARAMETER_COUNT_MISMATCH"),
        ("VM.set_power_state", json!([vm.reference, "Halted"]), "MESSAGE_METHOD_UNKNOWN"),
        ("VM.set_name_label", json!([vm.reference, 7]), "FIELD_TYPE_ERROR"),
        ("VM.destroy", json!([vm.reference]), "VM_BAD_POWER_STATE"),
        ("VM.start", json!([vm.reference, false, false]), "VM_BAD_POWER_STATE"),
        ("VDI.destroy", json!([vm.disks[0].reference]), "VDI_IN_USE"),
        ("VDI.get_virtual_size", json!(["OpaqueRef:NULL"]), "HANDLE_INVALID"),
        ("VM.create", json!([{ "name_label": "x" }]), "INTERNAL_ERROR"),
        ("event.from", json!([["*"], "nonsense", 1.5]), "EVENT_FROM_TOKEN_PARSE_FAILURE"),
    ];
    for (method, params, code) in cases {
        let failure = client.try_call(method, params.as_array().unwrap()).await.unwrap_err();
        assert_eq!(&failure.0, code, "{method}: {failure:?}");
    }
    let wrong = client.raw("session.login_with_password", json!(["root", "wrong"])).await.unwrap_err();
    assert_eq!(wrong.0, "SESSION_AUTHENTICATION_FAILED");
    client.call("VM.add_to_blocked_operations", &[json!(vm.reference), json!("snapshot"), json!("not now")]).await;
    let blocked = client.try_call("VM.snapshot", &[json!(vm.reference), json!("x")]).await.unwrap_err();
    assert_eq!(blocked, ("OPERATION_BLOCKED".into(), vec![vm.reference.clone(), "not now".into()]));
}

#[tokio::test]
async fn maps_refuse_duplicates_and_forgive_absence() {
    let bench = Bench::single().await;
    let vm = json!(bench.pool().vm("alpha").unwrap().reference);
    let add = [vm.clone(), json!("xo:backup:job"), json!("1")];
    bench.client.call("VM.add_to_other_config", &add).await;
    let duplicate = bench.client.try_call("VM.add_to_other_config", &add).await.unwrap_err();
    assert_eq!((duplicate.0.as_str(), duplicate.1[0].as_str()), ("MAP_DUPLICATE_KEY", "VM"));
    for _ in 0..2 {
        bench.client.call("VM.remove_from_other_config", &[vm.clone(), json!("xo:backup:job")]).await;
    }
    bench.client.call("VM.add_tags", &[vm.clone(), json!("a")]).await;
    bench.client.call("VM.add_tags", &[vm.clone(), json!("a")]).await;
    assert_eq!(bench.client.call("VM.get_tags", &[vm]).await, json!(["a"]));
}

#[tokio::test]
async fn events_come_as_soon_as_something_changes() {
    let bench = Bench::single().await;
    let client = &bench.client;
    let pool = client.call("pool.get_all", &[]).await[0].clone();
    let token = client.call("event.inject", &[json!("pool"), pool.clone()]).await;
    let waiting = {
        let (client, token) = (client.clone(), token.clone());
        tokio::spawn(async move { client.call("event.from", &[json!(["Pool", "TASK"]), token, json!(30.1)]).await })
    };
    let begun = tokio::time::Instant::now();
    client.call("pool.add_to_other_config", &[pool, json!("xo:barrier:1"), json!("2")]).await;
    let batch = waiting.await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20), "the call waited for its timeout");
    assert_eq!(batch["events"].as_array().unwrap().len(), 1);
    let event = &batch["events"][0];
    assert_eq!((&event["class"], &event["operation"]), (&json!("pool"), &json!("mod")));
    assert_eq!(event["snapshot"]["other_config"]["xo:barrier:1"], "2");
    assert_eq!(batch["valid_ref_counts"], json!({ "pool": 1, "task": 0 }));
    // Nothing new: an empty batch with a token, after the time asked for.
    let quiet = client.call("event.from", &[json!(["pool"]), batch["token"].clone(), json!(0.05)]).await;
    assert_eq!(quiet["events"], json!([]));
    // From the beginning, everything is an addition.
    let all = client.call("event.from", &[json!(["*"]), json!(""), json!(1.5)]).await;
    assert!(all["events"].as_array().unwrap().iter().all(|event| event["operation"] == "add"));
}

#[tokio::test]
async fn tasks_tell_how_it_ended() {
    let bench = Bench::single().await;
    let client = &bench.client;
    let vm = json!(bench.pool().vm("alpha").unwrap().reference);
    let task = client.text("Async.VM.snapshot", &[vm.clone(), json!("s")]).await;
    let record = client.wait(&task).await;
    assert_eq!((&record["status"], &record["progress"]), (&json!("success"), &json!(1.0)));
    let snapshot = record["result"].as_str().unwrap().trim_start_matches("<value>").trim_end_matches("</value>");
    assert_eq!(client.call("VM.get_snapshot_of", &[json!(snapshot)]).await, vm);
    let task = client.text("Async.VM.start", &[vm.clone(), json!(false), json!(false)]).await;
    let record = client.wait(&task).await;
    assert_eq!((&record["status"], &record["error_info"][0]), (&json!("failure"), &json!("VM_BAD_POWER_STATE")));
    // A client's own task, in the old spelling of the methods.
    let own = client.text("task_create", &[json!("[XO] x"), json!("")]).await;
    client.call("task.set_progress", &[json!(own), json!(0.5)]).await;
    client.call("task_set_status", &[json!(own), json!("success")]).await;
    assert_eq!(client.wait(&own).await["status"], "success");
    let own = client.task().await;
    client.call("task.cancel", &[json!(own)]).await;
    assert_eq!(client.wait(&own).await["status"], "cancelled");
    client.call("task.destroy", &[json!(own)]).await;
    assert_eq!(client.try_call("task.get_record", &[json!(own)]).await.unwrap_err().0, "HANDLE_INVALID");
}

#[tokio::test]
async fn a_snapshot_is_a_machine_of_its_own() {
    let bench = Bench::single().await;
    let client = &bench.client;
    let vm = bench.pool().vm("alpha").unwrap();
    let snapshot = client.run("VM.snapshot", &[json!(vm.reference), json!("before"), json!([vm.disks[1].reference])]).await;
    let record = client.call("VM.get_record", &[json!(snapshot)]).await;
    assert_eq!(
        (&record["is_a_snapshot"], &record["is_a_template"], &record["power_state"]),
        (&json!(true), &json!(true), &json!("Halted"))
    );
    assert_ne!(record["uuid"], vm.uuid);
    let disks = client.disks(&snapshot).await;
    assert_eq!(disks.len(), 1, "the ignored disk was taken along");
    let disk = client.call("VDI.get_record", &[json!(disks[0])]).await;
    assert_eq!((&disk["snapshot_of"], &disk["cbt_enabled"]), (&json!(vm.disks[0].reference), &json!(true)));
    assert_eq!(client.call("VM.get_snapshots", &[json!(vm.reference)]).await, json!([snapshot]));
    assert_eq!(client.call("VDI.get_snapshots", &[json!(vm.disks[0].reference)]).await, json!([disks[0]]));
    client.run("VM.destroy", &[json!(snapshot)]).await;
    client.run("VDI.destroy", &[json!(disks[0])]).await;
    assert_eq!(client.call("VM.get_snapshots", &[json!(vm.reference)]).await, json!([]));
    assert_eq!(client.call("VDI.get_snapshots", &[json!(vm.disks[0].reference)]).await, json!([]));
}

#[tokio::test]
async fn machines_are_made_switched_copied_and_destroyed() {
    let bench = Bench::single().await;
    let client = &bench.client;
    let vm = json!(bench.pool().vm("alpha").unwrap().reference);
    client.run("VM.clean_shutdown", std::slice::from_ref(&vm)).await;
    assert_eq!(client.call("VM.get_power_state", std::slice::from_ref(&vm)).await, "Halted");
    let copy = json!(client.run("VM.clone", &[vm.clone(), json!("copy")]).await);
    assert_eq!(client.call("VM.get_is_a_snapshot", std::slice::from_ref(&copy)).await, false);
    client.run("VM.start", &[copy.clone(), json!(false), json!(false)]).await;
    // The guest's agent reports a moment later.
    let reference = copy.as_str().unwrap();
    support::until("the guest's report", || {
        bench.pool().record("VM", reference).is_some_and(|vm| vm["guest_metrics"] != "OpaqueRef:NULL")
    })
    .await;
    client.run("VM.suspend", std::slice::from_ref(&copy)).await;
    client.run("VM.resume", &[copy.clone(), json!(false), json!(false)]).await;
    client.run("VM.hard_shutdown", std::slice::from_ref(&copy)).await;
    let disks = client.disks(reference).await;
    client.run("VM.destroy", &[copy]).await;
    for disk in disks {
        client.run("VDI.destroy", &[json!(disk)]).await;
    }
    // A machine from its record, as a restore makes it.
    let record = client.call("VM.get_record", &[vm]).await;
    let made = json!(client.text("VM.create", std::slice::from_ref(&record)).await);
    let made_record = client.call("VM.get_record", std::slice::from_ref(&made)).await;
    assert_ne!(made_record["uuid"], record["uuid"]);
    assert_eq!(
        (&made_record["VBDs"], &made_record["VIFs"], &made_record["platform"]),
        (&json!([]), &json!([]), &record["platform"])
    );
    client.call("VM.set_bios_strings", &[made.clone(), json!({ "bios-vendor": "x" })]).await;
    let sr = client.call("SR.get_by_name_label", &[json!("Local storage")]).await[0].clone();
    let vdi = client
        .call(
            "VDI.create",
            &[json!({ "name_label": "d", "name_description": "", "SR": sr, "virtual_size": "5000000", "type": "user",
                "sharable": false, "read_only": false, "other_config": {}, "xenstore_data": {}, "tags": [] })],
        )
        .await;
    assert_eq!(client.call("VDI.get_virtual_size", std::slice::from_ref(&vdi)).await, 6 << 20);
    let vbd = json!({ "VM": made, "VDI": vdi, "userdevice": "autodetect", "bootable": true, "mode": "RW", "type": "Disk", "empty": false,
        "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {} });
    let vbd = client.call("VBD.create", &[vbd]).await;
    assert_eq!(client.call("VBD.get_userdevice", &[vbd]).await, "0");
    assert_eq!(client.call("VM.get_allowed_VBD_devices", std::slice::from_ref(&made)).await[0], "1");
    let network = client.call("network.get_all", &[]).await[0].clone();
    let vif = json!({ "device": "0", "network": network, "VM": made, "MAC": "", "MTU": 1500, "other_config": {}, "qos_algorithm_type": "",
        "qos_algorithm_params": {} });
    let vif = client.call("VIF.create", &[vif]).await;
    assert_eq!(client.call("VIF.get_MAC", &[vif]).await.as_str().unwrap().len(), 17);
    assert_eq!(client.call("network.get_VIFs", &[network]).await.as_array().unwrap().len(), 2);
    let vtpm = client.call("VTPM.create", &[made.clone(), json!(false)]).await;
    client.call("VTPM.set_contents", &[vtpm.clone(), json!("secret")]).await;
    assert_eq!(client.call("VTPM.get_contents", &[vtpm]).await, "secret");
    client.call("VM.destroy", &[made]).await;
    client.call("VDI.destroy", &[vdi]).await;
}

#[tokio::test]
async fn xml_rpc_clients_get_the_types_they_know() {
    let bench = Bench::single().await;
    let pool = bench.pool();
    let call = |body: String| {
        let request = bench.client.http.post(format!("{}/RPC2", bench.client.url)).header("content-type", "text/xml").body(body);
        async move {
            let answer = request.send().await.unwrap();
            assert_eq!(answer.headers()["content-type"], "text/xml");
            answer.text().await.unwrap()
        }
    };
    let param = |text: &str| format!("<param><value><string>{text}</string></value></param>");
    let login = format!(
        "<?xml version='1.0'?><methodCall><methodName>session.login_with_password</methodName><params>{}{}</params></methodCall>",
        param(pool.username()),
        param(pool.password())
    );
    let answer = call(login).await;
    assert!(answer.contains("<name>Status</name><value>Success</value>"));
    let session = answer.split("OpaqueRef:").nth(1).unwrap().split('<').next().unwrap();
    let records = call(format!(
        "<methodCall><methodName>VDI.get_all_records</methodName><params>{}</params></methodCall>",
        param(&format!("OpaqueRef:{session}"))
    ))
    .await;
    assert!(records.contains("<name>virtual_size</name><value>67108864</value>"));
    assert!(records.contains("<name>cbt_enabled</name><value><boolean>1</boolean></value>"));
    assert!(records.contains("<name>snapshot_time</name><value><dateTime.iso8601>19700101T00:00:00Z</dateTime.iso8601></value>"));
    let failure = call(
        "<methodCall><methodName>VM.get_all</methodName><params><param><value>x</value></param></params></methodCall>".into(),
    )
    .await;
    assert!(failure.contains("<name>Status</name><value>Failure</value>"));
    assert!(failure.contains("<value>SESSION_INVALID</value><value>x</value>"));
}

#[tokio::test]
async fn only_the_master_logs_anybody_in() {
    let mut spec = LabSpec::single();
    spec.pools[0].hosts = 2;
    let bench = Bench::of(&spec).await;
    let slave = Client::new(bench.pool(), 1);
    let login = json!([bench.pool().username(), bench.pool().password()]);
    assert_eq!(
        slave.raw("session.login_with_password", login.clone()).await.unwrap_err(),
        ("HOST_IS_SLAVE".into(), vec!["127.0.0.1".into()])
    );
    bench.pool().set_fault(Fault::HostIsSlave { master: "127.0.0.9".into() }.once());
    let failure = bench.client.raw("session.login_with_password", login.clone()).await.unwrap_err();
    assert_eq!(failure, ("HOST_IS_SLAVE".into(), vec!["127.0.0.9".into()]));
    bench.client.raw("session.login_with_password", login).await.unwrap();
}

#[tokio::test]
async fn a_lab_comes_back_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::single(dir.path()).await.unwrap();
    let (url, password, before) = (lab.pool().url(), lab.pool().password().to_owned(), lab.pool().vm("alpha").unwrap());
    let client = Client::login(lab.pool()).await;
    let (snapshot, disks) = client.snapshot(&before.reference).await;
    let uuid = client.uuid("VDI", &disks[0]).await;
    let content = support::content(lab.pool(), &uuid);
    lab.pool().mutate("alpha", 10.0).await.unwrap();
    drop(client);
    lab.close().await.unwrap();
    let lab = Lab::single(dir.path()).await.unwrap();
    assert_eq!((lab.pool().url(), lab.pool().password()), (url, password.as_str()));
    assert_eq!(lab.pool().vm("alpha").unwrap(), before);
    assert!(lab.pool().record("VM", &snapshot).is_some());
    assert!(support::content(lab.pool(), &uuid) == content, "the snapshot has changed");
    assert!(std::fs::read(&before.disks[0].path).unwrap() != content, "the live disk has not changed");
    lab.close().await.unwrap();
}
