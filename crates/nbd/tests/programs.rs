//! The client against servers written by others: `qemu-nbd` and `nbdkit`, which must be installed.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use futures::future::join_all;
use futures::stream::{self, StreamExt};
use nbd::{Client, NbdError, Options, Tls};
use support::{EXPORT, Program, disk, endpoint, options, root, text};
use tempfile::TempDir;
use tls::SelfSigned;

const BLOCK: usize = 2 << 20;
/// 17 MiB and one sector: nine blocks, the last of them short.
const SIZE: usize = (17 << 20) + 512;

fn folder() -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.raw");
    fs::write(&path, disk(SIZE)).unwrap();
    let path = text(&path);
    (folder, path)
}

fn qemu_nbd(port: u16, disk: &str, more: &[&str]) -> Vec<String> {
    let port = port.to_string();
    let fixed = [
        "--persistent",
        "--shared=16",
        "--read-only",
        "--format=raw",
        "--bind=127.0.0.1",
        "--port",
        &port,
        "--export-name",
        EXPORT,
    ];
    fixed.iter().chain(more).chain([&disk]).map(|argument| (*argument).to_owned()).collect()
}

fn nbdkit(port: u16, arguments: &[&str]) -> Vec<String> {
    let port = port.to_string();
    let fixed = ["--foreground", "--ipaddr=127.0.0.1", "--port", &port];
    fixed.iter().chain(arguments).map(|argument| (*argument).to_owned()).collect()
}

async fn read_all(client: &Client, concurrency: usize) -> Result<Vec<u8>, NbdError> {
    let size = client.size() as usize;
    let reads = (0..size).step_by(BLOCK).map(|offset| client.read(offset as u64, BLOCK.min(size - offset)));
    let blocks: Vec<_> = stream::iter(reads).buffered(concurrency).collect().await;
    Ok(blocks.into_iter().collect::<Result<Vec<_>, _>>()?.concat())
}

#[tokio::test]
async fn a_disk_of_qemu_over_one_and_over_several_connections() {
    let (_folder, path) = folder();
    let server = Program::start("qemu-nbd", |port| qemu_nbd(port, &path, &[])).await;
    for connections in [1, 4] {
        let options = Options { connections, ..options() };
        let client = Client::connect(vec![endpoint(server.port, Tls::Plain)], options).await.unwrap();
        assert_eq!((client.size(), client.connections()), (SIZE as u64, connections));
        assert!(read_all(&client, 16).await.unwrap() == disk(SIZE));
        assert_eq!(client.read(4097, 3).await.unwrap(), disk(5000)[4097..4100]);
        assert!(client.read(SIZE as u64, 0).await.unwrap().is_empty());
        client.close().await;
        assert!(matches!(client.read(0, 512).await, Err(error) if matches!(root(&error), NbdError::Closed)));
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_not_asked_for() {
    let (_folder, path) = folder();
    let server = Program::start("qemu-nbd", |port| qemu_nbd(port, &path, &[])).await;
    let client = Client::connect(vec![endpoint(server.port, Tls::Plain)], options()).await.unwrap();
    assert!(matches!(client.read(SIZE as u64 - 1, 2).await, Err(NbdError::OutOfRange { .. })));
    assert!(matches!(client.read(u64::MAX, 2).await, Err(NbdError::OutOfRange { .. })));
    let long = Client::connect(vec![endpoint(server.port, Tls::Plain)], Options { max_read: 4096, ..options() }).await.unwrap();
    assert!(matches!(long.read(0, 4097).await, Err(NbdError::TooLong { length: 4097, maximum: 4096 })));
}

#[tokio::test]
async fn an_unknown_export_is_refused_without_naming_it() {
    let (_folder, path) = folder();
    let server = Program::start("qemu-nbd", |port| qemu_nbd(port, &path, &[])).await;
    let mut wrong = endpoint(server.port, Tls::Plain);
    wrong.export_name = nbd::ExportName::new("another?session_id=secret").unwrap();
    let error = Client::connect(vec![wrong], options()).await.unwrap_err();
    assert!(matches!(root(&error), NbdError::ExportRefused { .. }), "{error:?}");
    assert!(!format!("{error:?} {error}").contains("secret"));
}

/// The files in which qemu wants a certificate.
fn credentials(folder: &Path) -> SelfSigned {
    let made = SelfSigned::generate(&["localhost", "127.0.0.1"]).unwrap();
    for name in ["ca-cert.pem", "server-cert.pem"] {
        fs::write(folder.join(name), &made.certificate_pem).unwrap();
    }
    fs::write(folder.join("server-key.pem"), &made.key_pem).unwrap();
    made
}

#[tokio::test]
async fn tls_with_the_pinned_certificate_only() {
    let (folder, path) = folder();
    let made = credentials(folder.path());
    let object = format!("tls-creds-x509,id=tls0,endpoint=server,verify-peer=off,sanity-check=off,dir={}", text(folder.path()));
    let server = Program::start("qemu-nbd", |port| qemu_nbd(port, &path, &["--object", &object, "--tls-creds=tls0"])).await;

    let required = Tls::required(&made.certificate_pem).unwrap();
    let client = Client::connect(vec![endpoint(server.port, required)], Options { connections: 2, ..options() }).await.unwrap();
    assert!(read_all(&client, 8).await.unwrap() == disk(SIZE));
    client.close().await;

    let other = SelfSigned::generate(&["localhost"]).unwrap();
    let wrong = endpoint(server.port, Tls::required(&other.certificate_pem).unwrap());
    let error = Client::connect(vec![wrong], options()).await.unwrap_err();
    assert!(matches!(root(&error), NbdError::Tls { .. }), "{error:?}");

    let error = Client::connect(vec![endpoint(server.port, Tls::Plain)], options()).await.unwrap_err();
    assert!(matches!(root(&error), NbdError::ExportRefused { .. }), "the server insists on TLS: {error:?}");
}

#[tokio::test]
async fn a_look_at_a_server_reads_nothing_and_leaves_no_connection() {
    let (folder, path) = folder();
    let made = credentials(folder.path());
    let object = format!("tls-creds-x509,id=tls0,endpoint=server,verify-peer=off,sanity-check=off,dir={}", text(folder.path()));
    let server = Program::start("qemu-nbd", |port| qemu_nbd(port, &path, &["--object", &object, "--tls-creds=tls0"])).await;
    let required = Tls::required(&made.certificate_pem).unwrap();
    let nameless = |tls| nbd::Endpoint { export_name: nbd::ExportName::new("").unwrap(), ..endpoint(server.port, tls) };
    // More looks than the server has places.
    for _ in 0..40 {
        assert!(nbd::probe(&nameless(required)).await.unwrap());
    }
    let other = Tls::Required(SelfSigned::generate(&["localhost"]).unwrap().fingerprint().unwrap());
    assert!(matches!(nbd::probe(&nameless(other)).await, Err(NbdError::Tls { .. })));

    let open = Program::start("qemu-nbd", |port| qemu_nbd(port, &path, &[])).await;
    let refused = nbd::probe(&endpoint(open.port, required)).await;
    assert!(matches!(refused, Err(NbdError::TlsRefused { .. })), "{refused:?}");
    assert!(!nbd::probe(&endpoint(open.port, Tls::Plain)).await.unwrap());
    let nobody = nbd::probe(&endpoint(support::free_port(), Tls::Plain)).await;
    assert!(matches!(nobody, Err(NbdError::Connect { .. })), "{nobody:?}");
}

#[tokio::test]
async fn a_server_without_tls_is_used_only_where_that_is_allowed() {
    let (_folder, path) = folder();
    let server = Program::start("qemu-nbd", |port| qemu_nbd(port, &path, &[])).await;
    let fingerprint = SelfSigned::generate(&["localhost"]).unwrap().fingerprint().unwrap();
    let error = Client::connect(vec![endpoint(server.port, Tls::Required(fingerprint))], options()).await.unwrap_err();
    assert!(matches!(root(&error), NbdError::TlsRefused { .. }), "{error:?}");
    let client = Client::connect(vec![endpoint(server.port, Tls::Preferred(fingerprint))], options()).await.unwrap();
    assert_eq!(client.read(0, 512).await.unwrap(), disk(512));
}

#[tokio::test]
async fn a_dead_endpoint_is_passed_over() {
    let (_folder, path) = folder();
    let server = Program::start("qemu-nbd", |port| qemu_nbd(port, &path, &[])).await;
    let dead = endpoint(support::free_port(), Tls::Plain);
    let endpoints = vec![dead.clone(), endpoint(server.port, Tls::Plain)];
    let client = Client::connect(endpoints, Options { connections: 3, ..options() }).await.unwrap();
    assert_eq!(client.connections(), 3);
    assert!(read_all(&client, 4).await.unwrap() == disk(SIZE));
    let error = Client::connect(vec![dead.clone(), dead], options()).await.unwrap_err();
    assert!(matches!(&error, NbdError::Unreachable { tried: 2, .. }));
    assert!(matches!(Client::connect(vec![], options()).await, Err(NbdError::NoEndpoint)));
}

#[tokio::test]
async fn a_server_that_is_replaced_in_the_middle() {
    let (_folder, path) = folder();
    let server = Program::start("qemu-nbd", |port| qemu_nbd(port, &path, &[])).await;
    let port = server.port;
    let client = Client::connect(vec![endpoint(port, Tls::Plain)], Options { connections: 2, ..options() }).await.unwrap();
    let before = join_all((0..4).map(|block| client.read(block * BLOCK as u64, BLOCK))).await;
    assert!(before.iter().all(Result::is_ok));
    drop(server);
    let _server = Program::start_on(port, "qemu-nbd", |port| qemu_nbd(port, &path, &[])).await;
    assert!(read_all(&client, 8).await.unwrap() == disk(SIZE));
    assert_eq!(client.reconnections(), 2);
}

#[tokio::test]
async fn replies_out_of_order_from_nbdkit() {
    let (_folder, path) = folder();
    // Slow reads served by many threads overtake each other.
    let file = format!("file={path}");
    let arguments = ["--threads=16", "--filter=delay", "file", &file, "rdelay=20ms"];
    let server = Program::start("nbdkit", |port| nbdkit(port, &arguments)).await;
    let client = Client::connect(vec![endpoint(server.port, Tls::Plain)], options()).await.unwrap();
    let disk = disk(SIZE);
    let reads = (0..64_usize).map(|number| {
        let (client, offset, length) = (&client, number * 65_537, 1 + number * 1009 % 100_000);
        async move { (offset, length, client.read(offset as u64, length).await.unwrap()) }
    });
    for (offset, length, data) in join_all(reads).await {
        assert!(data == disk[offset..offset + length]);
    }
}

#[tokio::test]
async fn errors_of_the_server_are_tried_again_and_then_told() {
    let (folder, path) = folder();
    let file = format!("file={path}");
    let sometimes = ["--filter=error", "file", &file, "error-pread=EIO", "error-pread-rate=30%"];
    let server = Program::start("nbdkit", |port| nbdkit(port, &sometimes)).await;
    let patient = Options { attempts: 40, retry_delay: std::time::Duration::ZERO, ..options() };
    let client = Client::connect(vec![endpoint(server.port, Tls::Plain)], patient).await.unwrap();
    assert!(read_all(&client, 8).await.unwrap() == disk(SIZE));
    assert_eq!(client.reconnections(), 0, "an error reply is no reason to reconnect");

    let trigger = folder.path().join("fail");
    let file_trigger = format!("error-file={}", text(&trigger));
    let always = ["--filter=error", "file", &file, "error-pread=EIO", "error-pread-rate=100%", &file_trigger];
    let server = Program::start("nbdkit", |port| nbdkit(port, &always)).await;
    let client = Client::connect(vec![endpoint(server.port, Tls::Plain)], options()).await.unwrap();
    client.read(0, 512).await.unwrap();
    fs::write(&trigger, "").unwrap();
    assert!(matches!(client.read(1024, 512).await, Err(NbdError::Read { code: 5, offset: 1024, length: 512, .. })));
    fs::remove_file(&trigger).unwrap();
    client.read(1024, 512).await.unwrap();
}

#[test]
fn the_programs_are_here() {
    for program in ["qemu-nbd", "nbdkit"] {
        assert!(Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success()), "install {program}");
    }
}
