//! Exports and imports against a scripted XAPI that misbehaves as real pools do (xapi-streams.md §2, §6).

mod support;

use std::io;

use bytes::Bytes;
use futures::{StreamExt, stream};
use serde_json::json;
use support::{Answer, Pool, Step, ok_head, status};
use tls::SelfSigned;
use tokio::io::AsyncReadExt;
use xapi::{Client, Compression, DiskFormat, Error, Export, Ref, Result};

async fn read(mut export: Export) -> (Vec<u8>, Result<()>) {
    let mut data = Vec::new();
    loop {
        match export.next().await {
            Ok(Some(bytes)) => data.extend(bytes),
            Ok(None) => return (data, export.finish().await),
            Err(error) => return (data, Err(error)),
        }
    }
}

async fn export(client: &Client) -> Result<Export> {
    client.export_raw_vdi(&"OpaqueRef:vdi".into(), Some(&"OpaqueRef:base".into()), DiskFormat::Vhd, "disk").await
}

fn send(data: &[u8]) -> Step {
    Step::Send(data.to_vec())
}

#[tokio::test]
async fn an_export_succeeds_with_its_task() {
    let pool = Pool::start().await;
    let client = pool.client().await;
    for (head, end) in [(ok_head(), None), (ok_head(), Some(Step::Cut)), (send(b"HTTP/1.0 200 OK\r\n\r\n"), None)] {
        // Hosts may close without closing TLS: the task tells that all is well. Some speak HTTP/1.0.
        pool.data([head, send(b"H"), send(b"TTX"), send(&[7; 100_000]), Step::Succeed("")].into_iter().chain(end));
        let (data, end) = read(export(&client).await.unwrap()).await;
        end.unwrap();
        assert_eq!((&data[..4], data.len()), (&b"HTTX"[..], 100_004));
    }
    let request = &pool.requests()[0];
    assert!(
        request
            .starts_with("GET /export_raw_vdi/?format=vhd&vdi=OpaqueRef%3Avdi&base=OpaqueRef%3Abase&task_id=OpaqueRef%3Atask-"),
        "{request}"
    );
    assert_eq!(pool.tasks(), 0);
}

#[tokio::test]
async fn an_export_is_read_as_a_stream_of_bytes_too() {
    let pool = Pool::start().await;
    let client = pool.client().await;
    pool.data([ok_head(), send(b"01234567"), Step::Succeed("")]);
    let mut export = client.export_vm(&"OpaqueRef:vm".into(), Compression::Zstd, "vm").await.unwrap();
    let mut begin = [0; 5];
    export.reader().read_exact(&mut begin).await.unwrap();
    assert_eq!(&begin, b"01234");
    // A parser that has enough may leave the rest.
    export.finish().await.unwrap();
    assert!(pool.requests()[0].contains("use_compression=zstd"));
}

#[tokio::test]
async fn an_export_that_ends_early_fails_with_the_reason_of_its_task() {
    let pool = Pool::start().await;
    let client = pool.client().await;
    for end in [None, Some(Step::Cut)] {
        pool.data([ok_head(), send(&[7; 10]), Step::Fail("VDI_IO_ERROR", "Device I/O errors")].into_iter().chain(end));
        let (data, end) = read(export(&client).await.unwrap()).await;
        assert_eq!((data.len(), end.unwrap_err().code()), (10, "VDI_IO_ERROR"));
    }
    assert_eq!(pool.tasks(), 0);
}

#[tokio::test]
async fn an_export_that_ends_while_its_task_is_pending_or_gone_is_no_success() {
    let pool = Pool::start().await;
    let client = pool.client().await;
    pool.data([ok_head(), send(&[7; 10])]);
    let error = read(export(&client).await.unwrap()).await.1.unwrap_err();
    assert!(matches!(&error, Error::Cut { bytes: 10, status, .. } if status == "pending"), "{error:?}");
    pool.until("the task is gone", |pool| pool.tasks() == 0).await;

    pool.data([ok_head(), send(&[7; 10]), Step::Vanish]);
    let error = read(export(&client).await.unwrap()).await.1.unwrap_err();
    assert!(matches!(error, Error::TaskVanished { .. }), "{error:?}");
}

#[tokio::test]
async fn a_second_response_in_the_body_is_not_data() {
    let pool = Pool::start().await;
    let client = pool.client().await;
    pool.data([ok_head(), send(b"HT"), send(b"TP/1.1 500 Internal Error\r\n\r\n"), Step::Fail("VDI_NOT_AVAILABLE", "x")]);
    let (data, end) = read(export(&client).await.unwrap()).await;
    assert_eq!((data.len(), end.unwrap_err().code()), (0, "VDI_NOT_AVAILABLE"));

    pool.data([ok_head(), send(b"HTTP/1.1 500 Internal Error\r\n\r\n"), Step::Vanish]);
    let error = read(export(&client).await.unwrap()).await.1.unwrap_err();
    assert!(matches!(&error, Error::Broken { line, .. } if line == "HTTP/1.1 500 Internal Error"), "{error:?}");
}

#[tokio::test]
async fn a_redirect_is_followed_to_the_host_that_sees_the_storage() {
    let (master, member) = (Pool::start().await, Pool::start().await);
    let client = master.client().await;
    let location = format!("https://127.0.0.1:{}/export_raw_vdi/?task_id=OpaqueRef%3At&x=1", member.port);
    let go = || {
        [
            Step::Succeed(""),
            Step::Send(format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n").into_bytes()),
        ]
    };

    // The member's certificate is not the one pinned, and the pool does not vouch for it.
    master.data(go());
    let error = export(&client).await.unwrap_err();
    assert!(matches!(error, Error::Certificate { .. }), "{error:?}");
    assert!(member.requests().is_empty(), "a session went to a host that is not trusted");

    // The master, which is trusted, tells what certificate the member has.
    master.answer("host.get_all_records", [Answer::Value(json!({"OpaqueRef:h": {"address": "127.0.0.1"}}))]);
    master.answer("host.get_server_certificate", [Answer::Value(json!(member.certificate.certificate_pem))]);
    master.data(go());
    member.data([ok_head(), send(b"data")]);
    let (data, end) = read(export(&client).await.unwrap()).await;
    end.unwrap();
    assert_eq!(data, b"data");
}

#[tokio::test]
async fn redirects_in_a_circle_end() {
    let pool = Pool::start().await;
    let client = pool.client().await;
    for _ in 0..9 {
        pool.data([send(b"HTTP/1.1 302 Found\r\nLocation: /export_raw_vdi/?task_id=t\r\nContent-Length: 0\r\n\r\n")]);
    }
    let error = export(&client).await.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
}

#[tokio::test]
async fn an_export_logs_in_again_and_waits_for_a_busy_host() {
    let pool = Pool::start().await;
    let client = pool.client().await;
    pool.data([status(401)]);
    pool.data([status(503)]);
    pool.data([ok_head(), send(b"data"), Step::Succeed("")]);
    let (data, end) = read(export(&client).await.unwrap()).await;
    end.unwrap();
    assert_eq!((data, pool.logins(), pool.tasks()), (b"data".to_vec(), 2, 0));

    pool.data([Step::Fail("VDI_MISSING", "x"), status(500)]);
    assert_eq!(export(&client).await.unwrap_err().code(), "VDI_MISSING");
    pool.data([Step::Vanish, status(404)]);
    let error = export(&client).await.unwrap_err();
    assert!(matches!(error, Error::Http { status: 404, .. }), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
}

#[tokio::test]
async fn a_dropped_or_aborted_export_leaves_no_task() {
    let pool = Pool::start().await;
    let client = pool.client().await;
    for drops in [true, false] {
        pool.data([ok_head(), send(b"data"), Step::Hang]);
        let mut export = export(&client).await.unwrap();
        export.next().await.unwrap();
        if drops {
            drop(export)
        } else {
            export.abort().await
        }
        pool.until("the task is gone", |pool| pool.tasks() == 0).await;
    }
    assert_eq!(pool.calls("task.cancel").len(), 2);
}

#[tokio::test]
async fn a_silent_export_is_given_up() {
    let pool = Pool::start().await;
    let mut connect = pool.connect();
    connect.timing.inactivity = std::time::Duration::from_millis(100);
    let client = Client::connect(connect).await.unwrap();
    pool.data([ok_head(), send(b"data"), Step::Hang]);
    let (data, end) = read(export(&client).await.unwrap()).await;
    assert!(matches!(end, Err(Error::TimedOut { .. })), "{end:?}");
    assert_eq!(data, b"data");
}

/// Data that comes in pieces, slowly enough that everything else happens in between.
fn chunks(data: &'static [u8]) -> impl futures::Stream<Item = io::Result<Bytes>> + Send {
    stream::iter(data.chunks(3)).then(|chunk| async move {
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        Ok(Bytes::from_static(chunk))
    })
}

async fn import(
    client: &Client,
    length: u64,
    body: impl futures::Stream<Item = io::Result<Bytes>> + Send + 'static,
) -> Result<()> {
    client.import_raw_vdi(&"OpaqueRef:vdi".into(), DiskFormat::Vhd, length, body, "disk").await
}

#[tokio::test]
async fn an_import_sends_exactly_what_was_announced() {
    let pool = Pool::start().await;
    let client = pool.client().await;
    // A host that answers before the body, one that answers after it, one whose answer is already complete.
    pool.data([ok_head(), Step::Read(10), Step::Succeed("")]);
    pool.data([Step::Read(10), ok_head(), Step::Succeed("")]);
    pool.data([send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), Step::Read(10), Step::Succeed("")]);
    pool.data([send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"), Step::Read(10), Step::Succeed("")]);
    for _ in 0..4 {
        import(&client, 10, chunks(b"0123456789")).await.unwrap();
    }
    assert_eq!(pool.received(), b"0123456789".repeat(4));
    assert_eq!(pool.tasks(), 0);
}

#[tokio::test]
async fn an_imported_vm_is_named_by_the_task() {
    let pool = Pool::start().await;
    let client = pool.client().await;
    for result in [
        "<value><array><data><value>OpaqueRef:new</value><value>OpaqueRef:b</value></data></array></value>",
        "<value>OpaqueRef:new</value>",
    ] {
        pool.data([ok_head(), Step::Read(4), Step::Succeed(result)]);
        let vm = client.import_vm(&"OpaqueRef:sr".into(), 4, chunks(b"xva!"), "vm").await.unwrap();
        assert_eq!(vm, Ref::from("OpaqueRef:new"));
    }
    assert!(pool.requests()[0].starts_with("PUT /import/?sr_id=OpaqueRef%3Asr&task_id="), "{:?}", pool.requests());
    pool.data([ok_head(), Step::Read(4), Step::Succeed("<value><array><data/></array></value>")]);
    let error = client.import_vm(&"OpaqueRef:sr".into(), 4, chunks(b"xva!"), "vm").await.unwrap_err();
    assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
}

#[tokio::test]
async fn a_redirect_comes_before_the_body_and_costs_none_of_it() {
    let pool = Pool::start().await;
    let client = pool.client().await;
    pool.data([send(
        b"HTTP/1.1 302 Found\r\nLocation: /import_raw_vdi/?task_id=OpaqueRef%3Atask-2\r\nContent-Length: 0\r\n\r\n",
    )]);
    pool.data([ok_head(), Step::Read(10), Step::Succeed("")]);
    import(&client, 10, chunks(b"0123456789")).await.unwrap();
    assert_eq!(pool.received(), b"0123456789");
}

#[tokio::test]
async fn an_import_logs_in_again_and_waits_for_a_busy_host() {
    let pool = Pool::start().await;
    let client = pool.client().await;
    pool.data([status(401)]);
    pool.data([status(503)]);
    pool.data([ok_head(), Step::Read(10), Step::Succeed("")]);
    import(&client, 10, chunks(b"0123456789")).await.unwrap();
    assert_eq!((pool.logins(), pool.tasks()), (2, 0));
    pool.data([Step::Fail("SR_FULL", "x"), status(400)]);
    assert_eq!(import(&client, 10, chunks(b"0123456789")).await.unwrap_err().code(), "SR_FULL");
}

#[tokio::test]
async fn an_import_that_the_host_breaks_off_fails_with_the_reason_of_its_task() {
    let pool = Pool::start().await;
    let client = pool.client().await;
    let endless = || stream::repeat_with(|| Ok(Bytes::from_static(&[7; 1 << 16]))).take(4096);
    pool.data([ok_head(), Step::Read(100), Step::Fail("VDI_IO_ERROR", "full")]);
    assert_eq!(import(&client, 4096 << 16, endless()).await.unwrap_err().code(), "VDI_IO_ERROR");
    pool.data([ok_head(), Step::Read(100), Step::Vanish]);
    let error = import(&client, 4096 << 16, endless()).await.unwrap_err();
    assert!(matches!(error, Error::Cut { .. } | Error::Transport { .. } | Error::TaskVanished { .. }), "{error:?}");
    pool.data([ok_head(), Step::Read(10), Step::Fail("IMPORT_ERROR", "x")]);
    assert_eq!(import(&client, 10, chunks(b"0123456789")).await.unwrap_err().code(), "IMPORT_ERROR");
}

#[tokio::test]
async fn a_source_that_fails_or_has_another_length_ends_the_import() {
    let pool = Pool::start().await;
    let client = pool.client().await;
    for _ in 0..3 {
        pool.data([ok_head(), Step::Hang]);
    }
    let broken = stream::iter([Ok(Bytes::from_static(b"01")), Err(io::Error::other("the disk of the repository failed"))]);
    let error = import(&client, 10, broken).await.unwrap_err();
    assert!(matches!(&error, Error::Body { source, .. } if source.to_string().contains("repository")), "{error:?}");
    let error = import(&client, 11, chunks(b"0123456789")).await.unwrap_err();
    assert!(matches!(error, Error::Length { announced: 11, got: 10, more: false, .. }), "{error:?}");
    let error = import(&client, 8, chunks(b"0123456789")).await.unwrap_err();
    assert!(matches!(error, Error::Length { announced: 8, more: true, .. }), "{error:?}");
    pool.until("the tasks are gone", |pool| pool.tasks() == 0).await;
}

#[tokio::test]
async fn a_host_that_takes_nothing_more_is_given_up() {
    let pool = Pool::start().await;
    let mut connect = pool.connect();
    connect.timing.inactivity = std::time::Duration::from_millis(100);
    let client = Client::connect(connect).await.unwrap();
    pool.data([ok_head(), Step::Hang]);
    let error = import(&client, 10, stream::pending()).await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error:?}");
}

#[tokio::test]
async fn members_with_the_certificate_of_the_pool_need_no_introduction() {
    let certificate = SelfSigned::generate(&["localhost"]).unwrap();
    let (master, member) = (Pool::start_with(certificate.clone()).await, Pool::start_with(certificate).await);
    let client = master.client().await;
    let location = format!("https://127.0.0.1:{}/import_raw_vdi/?task_id=OpaqueRef%3At", member.port);
    master.data([
        Step::Succeed(""),
        Step::Send(format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n").into_bytes()),
    ]);
    member.data([ok_head(), Step::Read(10)]);
    import(&client, 10, chunks(b"0123456789")).await.unwrap();
    assert_eq!(member.received(), b"0123456789");
}
