//! Disks and machines out of a pool and into it, byte for byte.

mod support;

use std::collections::HashSet;

use base64::Engine as _;
use futures::StreamExt as _;
use lab::{Content, DiskSpec, LabSpec, MIB, PoolSpec, VmSpec};
use nbd::{Endpoint, ExportName, Options, Tls};
use serde_json::{Value, json};
use support::{Bench, Client, content, to_raw};

/// What an XVA or VHD export gives when everything goes well.
async fn download(client: &Client, path: &str, query: &[(&str, &str)]) -> Vec<u8> {
    let (answer, task) = client.get(path, query).await;
    if answer.status() != 200 {
        panic!("{path} {query:?}: {} {}", answer.status(), answer.text().await.unwrap());
    }
    assert!(answer.headers().get("content-length").is_none() && answer.headers().get("transfer-encoding").is_none());
    assert_eq!(answer.headers()["task-id"], task.as_str());
    let body = answer.bytes().await.unwrap().to_vec();
    let record = client.wait(&task).await;
    assert_eq!((&record["status"], &record["progress"]), (&json!("success"), &json!(1.0)), "{record}");
    body
}

async fn upload(client: &Client, path: &str, query: &[(&str, &str)], body: Vec<u8>) -> Value {
    let (answer, task) = client.put(path, query, body).await;
    assert_eq!(answer.unwrap().status(), 200);
    client.wait(&task).await
}

/// A new disk of that size.
async fn new_disk(client: &Client, bytes: u64) -> (String, String) {
    let sr = client.call("SR.get_by_name_label", &[json!("Local storage")]).await[0].clone();
    let record = json!({ "name_label": "new", "SR": sr, "virtual_size": bytes, "type": "user", "sharable": false, "read_only": false,
        "other_config": {} });
    let disk = client.text("VDI.create", &[record]).await;
    let uuid = client.uuid("VDI", &disk).await;
    (disk, uuid)
}

#[tokio::test]
async fn a_disk_exported_as_vhd_is_the_disk() {
    let bench = Bench::single().await;
    let client = &bench.client;
    let vm = bench.pool().vm("alpha").unwrap();
    let (_, disks) = client.snapshot(&vm.reference).await;
    let first = content(bench.pool(), &client.uuid("VDI", &disks[0]).await);
    // What the machine writes afterwards is not in the snapshot.
    let mutated = bench.pool().mutate("alpha", 10.0).await.unwrap();
    assert_eq!(mutated[0].bytes, 3 * 2 * MIB);
    let full = download(client, "/export_raw_vdi/", &[("format", "vhd"), ("vdi", &disks[0])]).await;
    let file = bench.dir.path().join("full.vhd");
    std::fs::write(&file, &full).unwrap();
    if let Some(raw) = to_raw(&file) {
        assert!(raw[..first.len()] == first, "qemu-img reads something else");
    }
    assert!(download(client, "/export_raw_vdi/", &[("vdi", &disks[0])]).await == first);

    // The delta between two snapshots, laid over the full one, is the second.
    let (_, later) = client.snapshot(&vm.reference).await;
    let second = content(bench.pool(), &client.uuid("VDI", &later[0]).await);
    let query = [("format", "vhd"), ("vdi", later[0].as_str()), ("base", disks[0].as_str())];
    let delta = download(client, "/export_raw_vdi/", &query).await;
    assert!(delta.len() < 4 * 2 * MIB as usize && full.len() > delta.len());
    let (target, uuid) = new_disk(client, 64 * MIB).await;
    let query = [("format", "vhd"), ("vdi", target.as_str())];
    assert_eq!(upload(client, "/import_raw_vdi/", &query, full).await["status"], "success");
    assert!(content(bench.pool(), &uuid) == first);
    assert_eq!(upload(client, "/import_raw_vdi/", &query, delta).await["status"], "success");
    assert!(content(bench.pool(), &uuid) == second);
    // A stream that ends too early is an import that failed.
    let raw = [("format", "raw"), ("vdi", target.as_str())];
    assert_eq!(upload(client, "/import_raw_vdi/", &raw, first.clone()).await["status"], "success");
    let cut = first[..100_000].to_vec();
    assert_eq!(upload(client, "/import_raw_vdi/", &query, cut).await["status"], "failure");
}

#[tokio::test]
async fn a_machine_goes_out_and_comes_back_byte_for_byte() {
    let bench = Bench::single().await;
    let client = &bench.client;
    let vm = bench.pool().vm("alpha").unwrap();
    let (snapshot, _) = client.snapshot(&vm.reference).await;
    let originals: Vec<_> = vm.disks.iter().map(|disk| std::fs::read(&disk.path).unwrap()).collect();
    for compression in ["false", "true", "zstd"] {
        let archive = download(client, "/export/", &[("ref", &snapshot), ("use_compression", compression)]).await;
        let mut validator = xva::Validator::new();
        validator.push(&archive).unwrap();
        let summary = validator.finish().unwrap();
        assert_eq!(summary.disks.len(), 2, "{compression}: {}", summary.compression);
        let sr = client.call("SR.get_by_name_label", &[json!("Local storage")]).await[0].as_str().unwrap().to_owned();
        let record = upload(client, "/import/", &[("sr_id", &sr)], archive).await;
        assert_eq!(record["status"], "success", "{record}");
        let result = record["result"].as_str().unwrap();
        let made = result
            .strip_prefix("<value><array><data><value>")
            .and_then(|rest| rest.strip_suffix("</value></data></array></value>"));
        let made = client.call("VM.get_record", &[json!(made.unwrap())]).await;
        assert_eq!(
            (&made["is_a_template"], &made["is_a_snapshot"], &made["name_label"]),
            (&json!(false), &json!(false), &json!("snap"))
        );
        assert_ne!(made["uuid"], json!(client.uuid("VM", &snapshot).await));
        let imported = bench.pool().vm(made["uuid"].as_str().unwrap()).unwrap();
        for (disk, original) in imported.disks.iter().zip(&originals) {
            assert!(std::fs::read(&disk.path).unwrap() == *original, "{compression}: {} differs", disk.name);
        }
        assert_eq!((imported.disks.len(), made["VIFs"].as_array().unwrap().len()), (2, 1));
    }
}

#[tokio::test]
async fn a_damaged_archive_leaves_nothing() {
    let bench = Bench::single().await;
    let client = &bench.client;
    let vm = bench.pool().vm("alpha").unwrap();
    let (snapshot, _) = client.snapshot(&vm.reference).await;
    let archive = download(client, "/export/", &[("ref", &snapshot)]).await;
    let counts = || ["VM", "VDI", "VBD", "VIF", "VM_metrics"].map(|class| bench.pool().records(class).len());
    support::until("the detaching of the disks", || {
        bench.pool().records("VBD").iter().all(|(_, vbd)| vbd["other_config"]["owner"] != "backhaul-lab")
    })
    .await;
    let before = counts();
    let mut damaged = archive.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    for (archive, code) in [
        (damaged, "IMPORT_ERROR_SOME_CHECKSUMS_FAILED"),
        (archive[..archive.len() - 600_000].to_vec(), "IMPORT_ERROR_PREMATURE_EOF"),
        (b"no archive at all".repeat(1000), "IMPORT_ERROR"),
    ] {
        let record = upload(client, "/import/", &[], archive).await;
        assert_eq!((&record["status"], &record["error_info"][0]), (&json!("failure"), &json!(code)));
    }
    support::until("the removal of what was made", || counts() == before).await;
}

#[tokio::test]
async fn a_probe_changes_nothing_and_chunks_are_refused() {
    let bench = Bench::single().await;
    let client = &bench.client;
    let before = bench.pool().records("VM").len();
    let url = format!("{}/import/?session_id={}", client.url, client.session);
    assert_eq!(client.http.put(&url).header("content-length", "0").body("").send().await.unwrap().status(), 200);
    assert_eq!(bench.pool().records("VM").len(), before);
    let stream = futures::stream::iter([Ok::<_, std::io::Error>(bytes::Bytes::from_static(b"x"))]);
    assert_eq!(client.http.put(&url).body(reqwest::Body::wrap_stream(stream)).send().await.unwrap().status(), 403);
    assert_eq!(client.http.get(&url).send().await.unwrap().status(), 405);
    let (answer, task) = client.get("/export_raw_vdi/", &[("vdi", "OpaqueRef:none")]).await;
    assert_eq!(answer.status(), 500);
    assert_eq!(client.wait(&task).await["error_info"][0], "UUID_INVALID");
    let (answer, task) = client.get("/export_raw_vdi/", &[("format", "qcow3")]).await;
    assert_eq!((answer.status().as_u16(), &client.wait(&task).await["status"]), (404, &json!("failure")));
    let task = client.task().await;
    let mut stranger = client.clone();
    stranger.session = "OpaqueRef:stranger".into();
    let url = stranger.address("/export/", &[], &task);
    assert_eq!(client.http.get(url).send().await.unwrap().status(), 401);
    assert_eq!(client.wait(&task).await["error_info"][0], "SESSION_AUTHENTICATION_FAILED");
    // A machine that runs is not exported, its disks are in use.
    let vm = bench.pool().vm("alpha").unwrap();
    let (_, task) = client.get("/export/", &[("uuid", &vm.uuid)]).await;
    assert_eq!(client.wait(&task).await["error_info"][0], "VM_BAD_POWER_STATE");
    let (_, task) = client.get("/export_raw_vdi/", &[("vdi", &vm.disks[0].vdi)]).await;
    assert_eq!(client.wait(&task).await["error_info"][0], "VDI_IN_USE");
    let dump = client.http.get(client.address("/pool/xmldbdump", &[], &client.task().await)).send().await.unwrap();
    assert!(dump.text().await.unwrap().starts_with("<?xml"));
}

#[tokio::test]
async fn a_disk_stays_attached_for_a_moment_after_its_export() {
    let mut spec = LabSpec::single();
    spec.pools[0].detach_after = std::time::Duration::from_secs(3600);
    let bench = Bench::of(&spec).await;
    let client = &bench.client;
    let (snapshot, disks) = client.snapshot(&bench.pool().vm("alpha").unwrap().reference).await;
    download(client, "/export_raw_vdi/", &[("format", "vhd"), ("vdi", &disks[0])]).await;
    client.run("VM.destroy", &[json!(snapshot)]).await;
    let failure = client.try_call("VDI.destroy", &[json!(disks[0])]).await.unwrap_err();
    assert_eq!(failure, ("VDI_IN_USE".into(), vec![disks[0].clone(), "destroy".into()]));
    let vbds = client.call("VDI.get_VBDs", &[json!(disks[0])]).await;
    let vbd = vbds.as_array().unwrap()[0].clone();
    let vm = client.call("VBD.get_VM", std::slice::from_ref(&vbd)).await;
    assert_eq!(client.call("VM.get_is_control_domain", &[vm]).await, true);
    client.call("VBD.unplug_force", std::slice::from_ref(&vbd)).await;
    client.call("VBD.destroy", &[vbd]).await;
    client.call("VDI.destroy", &[json!(disks[0])]).await;
}

/// A client's view of an export over NBD.
async fn endpoints(client: &Client, vdi: &str) -> Vec<Endpoint> {
    let offers = client.call("VDI.get_nbd_info", &[json!(vdi)]).await;
    offers
        .as_array()
        .unwrap()
        .iter()
        .map(|offer| Endpoint {
            address: offer["address"].as_str().unwrap().to_owned(),
            port: offer["port"].as_u64().unwrap() as u16,
            export_name: ExportName::new(offer["exportname"].as_str().unwrap()).unwrap(),
            tls: Tls::required(offer["cert"].as_str().unwrap()).unwrap(),
        })
        .collect()
}

#[tokio::test]
async fn changed_blocks_over_nbd_make_the_second_snapshot_of_the_first() {
    let mut spec = LabSpec::single();
    spec.pools[0].hosts = 2;
    let bench = Bench::of(&spec).await;
    let client = &bench.client;
    let vm = bench.pool().vm("alpha").unwrap();
    let (first_vm, first) = client.snapshot(&vm.reference).await;
    let mut copy = content(bench.pool(), &client.uuid("VDI", &first[0]).await);
    bench.pool().mutate("alpha", 20.0).await.unwrap();
    // A change that leaves everything as it was is still a change.
    let same = copy[..65536].to_vec();
    bench.pool().write_disk(&vm.disks[0].vdi, 0, &same).unwrap();
    let (_, second) = client.snapshot(&vm.reference).await;
    client.run("VM.destroy", &[json!(first_vm)]).await;
    client.run("VDI.data_destroy", &[json!(first[0])]).await;
    let record = client.call("VDI.get_record", &[json!(first[0])]).await;
    assert_eq!(record["type"], "cbt_metadata");
    for method in ["VDI.get_nbd_info", "VDI.clone", "VDI.snapshot"] {
        assert_eq!(client.try_call(method, &[json!(first[0])]).await.unwrap_err().0, "VDI_INCOMPATIBLE_TYPE", "{method}");
    }
    let bitmap = client.run("VDI.list_changed_blocks", &[json!(first[0]), json!(second[0])]).await;
    let bitmap = base64::engine::general_purpose::STANDARD.decode(bitmap).unwrap();
    assert_eq!(bitmap.len() as u64, (64 * MIB / 65536) / 8);
    let flagged: HashSet<usize> = (0..bitmap.len() * 8).filter(|block| bitmap[block / 8] & (0x80 >> (block % 8)) != 0).collect();
    let target = content(bench.pool(), &client.uuid("VDI", &second[0]).await);
    let different: HashSet<usize> =
        (0..target.len() / 65536).filter(|block| target[block * 65536..][..65536] != copy[block * 65536..][..65536]).collect();
    assert!(different.len() == 6 * 32 && flagged.is_superset(&different) && flagged.contains(&0));
    assert!(flagged.len() <= different.len() + 1, "blocks are flagged that nobody wrote");

    let endpoints = endpoints(client, &second[0]).await;
    assert_eq!(endpoints.len(), 2);
    let disk = nbd::Client::connect(endpoints, Options::default()).await.unwrap();
    assert_eq!(disk.size(), 64 * MIB);
    let reads = flagged.iter().map(|block| {
        let disk = disk.clone();
        async move { (*block, disk.read(*block as u64 * 65536, 65536).await.unwrap()) }
    });
    let mut reads = futures::stream::iter(reads).buffer_unordered(8);
    while let Some((block, data)) = reads.next().await {
        copy[block * 65536..][..65536].copy_from_slice(&data);
    }
    assert!(copy == target);
    drop(reads);
    // While it is read, the disk is attached to the control domain.
    assert_eq!(
        client.try_call("VDI.data_destroy", &[json!(vm.disks[0].reference)]).await.unwrap_err().0,
        "OPERATION_NOT_ALLOWED"
    );
    assert!(
        bench.pool().records("VBD").iter().any(|(_, vbd)| vbd["VDI"] == second[0].as_str() && vbd["currently_attached"] == true)
    );
    disk.close().await;
    // Blocks of unrelated disks cannot be listed.
    let failure = client.try_call("VDI.list_changed_blocks", &[json!(first[0]), json!(second[1])]).await.unwrap_err();
    assert_eq!(failure.0, "SR_BACKEND_FAILURE_460");
    let wrong = client.try_call("VDI.enable_cbt", &[json!(second[0])]).await.unwrap_err();
    assert_eq!(wrong, ("OPERATION_NOT_ALLOWED".into(), vec!["VDI is a snapshot".into()]));
}

#[tokio::test]
async fn disks_have_partitions_and_files() {
    let disk = DiskSpec::new("root", 512 * MIB, Content::FileSystem { bytes: 24 * MIB });
    let spec =
        LabSpec { pools: vec![PoolSpec::new("files", vec![VmSpec::new("it's \"odd\" \u{202e}rtl 📦", vec![disk])])], seed: 3 };
    let bench = Bench::of(&spec).await;
    let vm = bench.pool().vms().remove(0);
    let image = std::fs::read(&vm.disks[0].path).unwrap();
    assert_eq!((&image[512..520], &image[image.len() - 512..][..8]), (&b"EFI PART"[..], &b"EFI PART"[..]));
    let partition = bench.dir.path().join("partition");
    std::fs::write(&partition, &image[MIB as usize..image.len() - MIB as usize]).unwrap();
    if image[MIB as usize..].starts_with(b"Backhaul lab: generated content") {
        return;
    }
    support::tool("e2fsck", &["-fn".as_ref(), partition.as_ref()]);
    if let Some(name) = support::tool("debugfs", &["-R".as_ref(), "cat /etc/hostname".as_ref(), partition.as_ref()]) {
        assert_eq!(name, "it's \"odd\" \u{202e}rtl 📦\n");
    }
    // The same seed makes the same disk.
    let again = Bench::of(&spec).await;
    assert_eq!(again.pool().vms()[0].uuid, vm.uuid);
}
