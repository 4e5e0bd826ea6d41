//! Every fault, seen from the client's side.

mod support;

use std::time::{Duration, Instant};

use lab::{Fault, LabSpec, TaskAfter};
use nbd::{Endpoint, ExportName, Options, Tls};
use serde_json::json;
use support::{Bench, Client, until};

/// A snapshot's disk, ready to be exported.
async fn disk(bench: &Bench) -> String {
    let vm = bench.pool().vm("alpha").unwrap();
    bench.client.snapshot(&vm.reference).await.1.remove(0)
}

/// An export of it: what came, whether the connection ended well, and the task.
async fn export(client: &Client, vdi: &str) -> (usize, bool, String) {
    let (mut answer, task) = client.get("/export_raw_vdi/", &[("format", "vhd"), ("vdi", vdi)]).await;
    assert_eq!(answer.status(), 200);
    let mut received = 0;
    loop {
        match answer.chunk().await {
            Ok(Some(piece)) => received += piece.len(),
            Ok(None) => return (received, true, task),
            Err(_) => return (received, false, task),
        }
    }
}

#[tokio::test]
async fn an_export_is_cut_where_asked_and_its_task_says_what_it_should() {
    let bench = Bench::single().await;
    let vdi = disk(&bench).await;
    let client = &bench.client;
    bench.pool().set_fault(Fault::CutExport { after_bytes: 3_000_000, task: TaskAfter::Failure }.once());
    let (received, whole, task) = export(client, &vdi).await;
    assert!(!whole && received <= 3_000_000, "{received} bytes, whole: {whole}");
    assert_eq!(client.wait(&task).await["status"], "failure");
    bench.pool().set_fault(Fault::EndExportEarly { after_bytes: 3_000_000, task: TaskAfter::Pending }.once());
    let (received, whole, task) = export(client, &vdi).await;
    assert_eq!((received, whole), (3_000_000, true));
    assert_eq!(client.call("task.get_status", &[json!(task)]).await, "pending");
    bench.pool().set_fault(Fault::EndExportEarly { after_bytes: 0, task: TaskAfter::Vanished }.once());
    let (_, _, task) = export(client, &vdi).await;
    assert_eq!(client.try_call("task.get_status", &[json!(task)]).await.unwrap_err().0, "HANDLE_INVALID");
    bench.pool().set_fault(Fault::ReadError { after_bytes: 70_000 }.once());
    let (received, _, task) = export(client, &vdi).await;
    assert_eq!((received, &client.wait(&task).await["error_info"][0]), (70_000, &json!("VDI_IO_ERROR")));
    bench.pool().set_fault(Fault::HttpInBody.once());
    let (answer, task) = client.get("/export_raw_vdi/", &[("vdi", &vdi)]).await;
    assert!(answer.bytes().await.unwrap().starts_with(b"HTTP/1.1 500"));
    assert_eq!(client.wait(&task).await["status"], "failure");
    // All of them struck once.
    let (_, whole, task) = export(client, &vdi).await;
    assert_eq!((whole, &client.wait(&task).await["status"]), (true, &json!("success")));
}

#[tokio::test]
async fn an_export_can_be_slow_and_cancelled() {
    let bench = Bench::single().await;
    let vdi = disk(&bench).await;
    bench.pool().set_fault(Fault::SlowExport { bytes_per_second: 50_000 });
    let (mut answer, task) = bench.client.get("/export_raw_vdi/", &[("vdi", &vdi)]).await;
    assert!(answer.chunk().await.unwrap().is_some());
    bench.client.call("task.cancel", &[json!(task)]).await;
    assert_eq!(bench.client.wait(&task).await["status"], "cancelled");
    while let Ok(Some(_)) = answer.chunk().await {}
    until("the detaching of the disk", || {
        bench.pool().records("VBD").iter().all(|(_, vbd)| vbd["other_config"]["owner"] != "backhaul-lab")
    })
    .await;
}

#[tokio::test]
async fn an_import_is_cut_and_leaves_nothing() {
    let bench = Bench::single().await;
    let client = &bench.client;
    let (snapshot, _) = client.snapshot(&bench.pool().vm("alpha").unwrap().reference).await;
    let (answer, task) = client.get("/export/", &[("ref", &snapshot)]).await;
    let archive = answer.bytes().await.unwrap().to_vec();
    client.wait(&task).await;
    let before = bench.pool().records("VM").len();
    bench.pool().set_fault(Fault::CutImport { after_bytes: 5_000_000 }.once());
    let (_, task) = client.put("/import/", &[], archive).await;
    assert_eq!(client.wait(&task).await["status"], "failure");
    until("the removal of the machine", || bench.pool().records("VM").len() == before).await;
}

#[tokio::test]
async fn handlers_refuse_redirect_and_answer_full_for_delta() {
    let mut spec = LabSpec::single();
    spec.pools[0].hosts = 2;
    let bench = Bench::of(&spec).await;
    let vdi = disk(&bench).await;
    let client = &bench.client;
    bench.pool().set_fault(Fault::Unavailable.once());
    assert_eq!(client.get("/export_raw_vdi/", &[("vdi", &vdi)]).await.0.status(), 503);
    bench.pool().set_fault(Fault::Redirect.once());
    let (answer, _) = client.get("/export_raw_vdi/", &[("vdi", &vdi), ("format", "raw")]).await;
    assert_eq!(answer.status(), 302);
    let location = answer.headers()["location"].to_str().unwrap().to_owned();
    assert!(location.starts_with("https://127.0.0.2:") && location.contains("format=raw"), "{location}");
    assert_eq!(client.http.get(location).send().await.unwrap().bytes().await.unwrap().len(), 64 << 20);
    let (_, later) = client.snapshot(&bench.pool().vm("alpha").unwrap().reference).await;
    bench.pool().set_fault(Fault::FullInsteadOfDelta.once());
    let query = [("format", "vhd"), ("vdi", later[0].as_str()), ("base", vdi.as_str())];
    let mut lengths = Vec::new();
    for _ in 0..2 {
        lengths.push(client.get("/export_raw_vdi/", &query).await.0.bytes().await.unwrap().len());
    }
    assert!(lengths[0] > 10_000_000 && lengths[1] < 10_000, "{lengths:?}");
}

#[tokio::test]
async fn calls_fail_as_on_a_pool_in_trouble() {
    let bench = Bench::single().await;
    let client = &bench.client;
    let vm = bench.pool().vm("alpha").unwrap();
    let (snapshot, disks) = client.snapshot(&vm.reference).await;
    let (_, later) = client.snapshot(&vm.reference).await;
    let pool = bench.pool();
    let code =
        async |method: &str, params: &[serde_json::Value]| client.try_call(method, params).await.map_err(|failure| failure.0);
    pool.set_fault(Fault::TooManyPendingTasks.once());
    assert_eq!(code("VM.get_all", &[]).await.unwrap_err(), "TOO_MANY_PENDING_TASKS");
    pool.set_fault(Fault::NoNbd.once());
    assert_eq!(client.call("VDI.get_nbd_info", &[json!(disks[0])]).await, json!([]));
    assert_eq!(client.call("VDI.get_nbd_info", &[json!(disks[0])]).await.as_array().unwrap().len(), 1);
    pool.set_fault(Fault::NoChangedBlocks.once());
    let pair = [json!(disks[0]), json!(later[0])];
    assert_eq!(code("VDI.list_changed_blocks", &pair).await.unwrap_err(), "SR_BACKEND_FAILURE_460");
    assert!(code("VDI.list_changed_blocks", &pair).await.is_ok());
    pool.set_fault(Fault::OldSnapshot);
    let with_three = [json!(vm.reference), json!("x"), json!([])];
    assert_eq!(code("VM.snapshot", &with_three).await.unwrap_err(), "MESSAGE_PARAMETER_COUNT_MISMATCH");
    pool.clear_faults();
    assert!(code("VM.snapshot", &with_three).await.is_ok());
    pool.set_fault(Fault::SnapshotFails.once());
    assert_eq!(code("VM.snapshot", &with_three).await.unwrap_err(), "VM_SNAPSHOT_FAILED");
    client.run("VM.destroy", &[json!(snapshot)]).await;
    pool.set_fault(Fault::VdiInUse.times(2));
    for _ in 0..2 {
        assert_eq!(code("VDI.destroy", &[json!(disks[0])]).await.unwrap_err(), "VDI_IN_USE");
    }
    client.call("VDI.destroy", &[json!(disks[0])]).await;
    pool.set_fault(Fault::EventsLost.once());
    let from = [json!(["*"]), json!(""), json!(0.1)];
    assert_eq!(code("event.from", &from).await.unwrap_err(), "EVENTS_LOST");
    assert!(code("event.from", &from).await.is_ok());
    pool.set_fault(Fault::SessionInvalid { after_calls: 1 }.once());
    assert!(code("VM.get_all", &[]).await.is_ok());
    for _ in 0..2 {
        assert_eq!(code("VM.get_all", &[]).await.unwrap_err(), "SESSION_INVALID");
    }
    let again = Client::login(pool).await;
    again.call("VM.get_all", &[]).await;
}

#[tokio::test]
async fn a_host_goes_away_and_comes_back() {
    let bench = Bench::single().await;
    let client = &bench.client;
    bench.pool().set_fault(Fault::HostOffline);
    let url = format!("{}/jsonrpc", client.url);
    let begun = Instant::now();
    loop {
        match client.http.post(&url).body("{}").send().await {
            Err(error) if error.is_connect() => break,
            _ => assert!(begun.elapsed() < Duration::from_secs(20), "the host still answers"),
        }
    }
    bench.pool().clear_faults();
    while client.http.post(&url).body("{}").send().await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(20), "the host does not come back");
    }
    client.call("VM.get_all", &[]).await;
    // By itself, after a time; told from outside.
    let fault = json!([bench.pool().password(), { "kind": "host_offline", "for_milliseconds": 200 }]);
    client.raw("lab.set_fault", fault).await.unwrap();
    while client.http.post(&url).body("{}").send().await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(40), "the host does not come back by itself");
    }
}

async fn connect(client: &Client, vdi: &str) -> Result<nbd::Client, nbd::NbdError> {
    let offers = client.call("VDI.get_nbd_info", &[json!(vdi)]).await;
    let offer = &offers[0];
    let endpoint = Endpoint {
        address: offer["address"].as_str().unwrap().to_owned(),
        port: offer["port"].as_u64().unwrap() as u16,
        export_name: ExportName::new(offer["exportname"].as_str().unwrap()).unwrap(),
        tls: Tls::required(offer["cert"].as_str().unwrap()).unwrap(),
    };
    nbd::Client::connect(vec![endpoint], options()).await
}

/// Without long pauses between attempts.
fn options() -> Options {
    Options { retry_delay: Duration::from_millis(10), ..Options::default() }
}

#[tokio::test]
async fn nbd_breaks_in_its_ways() {
    let bench = Bench::single().await;
    let (client, pool) = (&bench.client, bench.pool());
    let vdi = disk(&bench).await;
    let expected = support::content(pool, &client.uuid("VDI", &vdi).await);
    pool.set_fault(Fault::CutNbd { after_bytes: 1 << 20 }.once());
    let disk = connect(client, &vdi).await.unwrap();
    for block in 0..4 {
        let data = disk.read(block << 20, 1 << 20).await.unwrap();
        assert!(data == expected[(block << 20) as usize..][..1 << 20]);
    }
    assert!(disk.reconnections() > 0, "the connection was not cut");
    disk.close().await;
    pool.clear_faults();
    pool.set_fault(Fault::NbdReadError { from_byte: 8 << 20 });
    let disk = connect(client, &vdi).await.unwrap();
    disk.read(0, 4096).await.unwrap();
    disk.read(9 << 20, 4096).await.unwrap_err();
    disk.close().await;
    pool.clear_faults();
    pool.set_fault(Fault::RefuseNbdTls);
    connect(client, &vdi).await.map(drop).unwrap_err();
    pool.clear_faults();
    // A session that has ended opens nothing.
    let offers = client.call("VDI.get_nbd_info", &[json!(vdi)]).await;
    pool.drop_sessions();
    let endpoint = Endpoint {
        address: "127.0.0.1".into(),
        port: pool.nbd_port(),
        export_name: ExportName::new(offers[0]["exportname"].as_str().unwrap()).unwrap(),
        tls: Tls::required(pool.certificate_pem()).unwrap(),
    };
    nbd::Client::connect(vec![endpoint], options()).await.map(drop).unwrap_err();
}

#[tokio::test]
async fn the_lab_is_steered_over_its_own_port() {
    let bench = Bench::single().await;
    let client = &bench.client;
    let password = bench.pool().password();
    assert_eq!(client.raw("lab.vms", json!(["wrong"])).await.unwrap_err().0, "SESSION_AUTHENTICATION_FAILED");
    let vms = client.raw("lab.vms", json!([password])).await.unwrap();
    assert_eq!((&vms[0]["name"], vms[0]["disks"].as_array().unwrap().len()), (&json!("alpha"), 2));
    let path = vms[0]["disks"][0]["path"].as_str().unwrap();
    let before = std::fs::read(path).unwrap();
    let changed = client.raw("lab.mutate", json!([password, "alpha", 5])).await.unwrap();
    let after = std::fs::read(path).unwrap();
    let different = before.chunks(2 << 20).zip(after.chunks(2 << 20)).filter(|(one, other)| one != other).count() as u64;
    assert_eq!(changed[0]["bytes"], different * (2 << 20));
    assert_eq!(different, 2);
    assert_eq!(client.raw("lab.mutate", json!([password, "nobody", 5])).await.unwrap_err().0, "UUID_INVALID");
    assert_eq!(client.raw("lab.set_fault", json!([password, { "kind": "plague" }])).await.unwrap_err().0, "INVALID_VALUE");
    client.raw("lab.set_fault", json!([password, { "kind": "unavailable", "count": 3 }])).await.unwrap();
    assert_eq!(bench.pool().faults(), [Fault::Unavailable.times(3)]);
    client.raw("lab.clear_faults", json!([password])).await.unwrap();
    assert!(bench.pool().faults().is_empty());
    // Running machines write when told to.
    let before = std::fs::read(path).unwrap();
    client.raw("lab.write_rate", json!([password, 4 << 20])).await.unwrap();
    until("a write of the running machine", || std::fs::read(path).unwrap() != before).await;
}

#[tokio::test]
async fn garbage_on_the_port_harms_nobody() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let bench = Bench::single().await;
    let address = bench.client.url.trim_start_matches("https://").to_owned();
    let mut plain = tokio::net::TcpStream::connect(&address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    let _ = plain.read_to_end(&mut rest).await;
    let url = format!("{}/jsonrpc", bench.client.url);
    let answer = bench.client.http.post(&url).body("not json").send().await.unwrap();
    assert!(answer.text().await.unwrap().contains("-32700"));
    let url = format!("{}/xmlrpc", bench.client.url);
    let answer = bench.client.http.post(&url).body("<a><b>").send().await.unwrap();
    assert!(answer.text().await.unwrap().contains("Failure"));
    bench.client.call("VM.get_all", &[]).await;
}
