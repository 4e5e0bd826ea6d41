//! The client against a peer that follows a script and misbehaves at a chosen moment.

mod support;

use std::future::Future;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures::future::join_all;
use nbd::{Client, NbdError, Options, Tls};
use support::{EXPORT, disk, endpoint, options, root};
use tls::SelfSigned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

const SIZE: usize = 1 << 20;
static DISK: LazyLock<Vec<u8>> = LazyLock::new(|| disk(SIZE));

/// Listens, and plays `script` with each connection; it is told the number of the connection.
async fn peer<S, F>(script: S) -> u16
where
    S: Fn(Peer, usize) -> F + Send + 'static,
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            // How a script ends, the client sees.
            tokio::spawn(script(Peer(stream), number));
        }
    });
    port
}

struct Peer(TcpStream);

#[derive(Debug, Clone, Copy)]
struct Asked {
    command: u16,
    cookie: u64,
    offset: u64,
    length: usize,
}

impl Peer {
    /// Greets with `flags` and gives the client's.
    async fn greet(&mut self, flags: u16) -> std::io::Result<u32> {
        self.0.write_all(&[b"NBDMAGICIHAVEOPT".as_slice(), &flags.to_be_bytes()].concat()).await?;
        self.0.read_u32().await
    }

    /// The next option and its data.
    async fn option(&mut self) -> std::io::Result<(u32, Vec<u8>)> {
        let mut magic = [0; 8];
        self.0.read_exact(&mut magic).await?;
        assert_eq!(&magic, b"IHAVEOPT");
        let option = self.0.read_u32().await?;
        let mut data = vec![0; self.0.read_u32().await? as usize];
        self.0.read_exact(&mut data).await?;
        Ok((option, data))
    }

    async fn option_reply(&mut self, option: u32, kind: u32, data: &[u8]) -> std::io::Result<()> {
        self.0.write_u64(0x0003_E889_0455_65A9).await?;
        self.0.write_u32(option).await?;
        self.0.write_u32(kind).await?;
        self.0.write_u32(data.len() as u32).await?;
        self.0.write_all(data).await
    }

    async fn export(&mut self, size: u64, zeroes: usize) -> std::io::Result<()> {
        assert_eq!(self.option().await?, (1, EXPORT.as_bytes().to_vec()));
        self.0.write_u64(size).await?;
        self.0.write_u16(3).await?;
        self.0.write_all(&vec![0; zeroes]).await
    }

    /// The usual beginning, as a pool plays it.
    async fn begin(&mut self) -> std::io::Result<()> {
        assert_eq!(self.greet(1).await?, 1);
        self.export(SIZE as u64, 124).await
    }

    async fn asked(&mut self) -> std::io::Result<Asked> {
        assert_eq!(self.0.read_u32().await?, 0x2560_9513);
        assert_eq!(self.0.read_u16().await?, 0);
        let (command, cookie) = (self.0.read_u16().await?, self.0.read_u64().await?);
        Ok(Asked { command, cookie, offset: self.0.read_u64().await?, length: self.0.read_u32().await? as usize })
    }

    async fn head(&mut self, error: u32, cookie: u64) -> std::io::Result<()> {
        self.0.write_u32(0x6744_6698).await?;
        self.0.write_u32(error).await?;
        self.0.write_u64(cookie).await
    }

    async fn answer(&mut self, asked: Asked) -> std::io::Result<()> {
        self.head(0, asked.cookie).await?;
        self.0.write_all(&DISK[asked.offset as usize..][..asked.length]).await
    }

    /// Closes without a reset, which would take back what was sent before.
    async fn hang_up(&mut self) -> std::io::Result<()> {
        self.0.shutdown().await?;
        self.0.read_to_end(&mut Vec::new()).await.map(drop)
    }

    /// Answers everything until the client takes its leave.
    async fn serve(&mut self) -> std::io::Result<()> {
        loop {
            let asked = self.asked().await?;
            if asked.command == 2 {
                return Ok(());
            }
            self.answer(asked).await?;
        }
    }
}

async fn connect(port: u16, tls: Tls, options: Options) -> Result<Client, NbdError> {
    Client::connect(vec![endpoint(port, tls)], options).await
}

#[tokio::test]
async fn zeros_behind_the_export_are_dropped_where_both_sides_can() {
    for (flags, zeroes) in [(1, 124), (3, 0)] {
        let port = peer(move |mut peer, _| async move {
            assert_eq!(peer.greet(flags).await?, u32::from(flags));
            peer.export(SIZE as u64, zeroes).await?;
            peer.serve().await
        })
        .await;
        let client = connect(port, Tls::Plain, options()).await.unwrap();
        assert_eq!(client.read(100, 1000).await.unwrap(), DISK[100..1100]);
    }
}

#[tokio::test]
async fn what_is_no_nbd_server_is_told() {
    let greetings: [&[u8]; 4] =
        [b"SSH-2.0-OpenSSH_9.2p1 x", b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53\0\0", b"NBDMAGICIHAVEOPT\0\0", b"NBD"];
    for greeting in greetings {
        let port = peer(move |mut peer, _| async move { peer.0.write_all(greeting).await }).await;
        let error = connect(port, Tls::Plain, options()).await.unwrap_err();
        assert!(matches!(root(&error), NbdError::NotNbd { .. } | NbdError::Handshake { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_refusal_of_tls_is_never_a_downgrade() {
    let fingerprint = SelfSigned::generate(&["localhost"]).unwrap().fingerprint().unwrap();
    for kind in [0x8000_0001, 0x8000_0002, 0x8000_0005] {
        let (said, mut heard) = mpsc::unbounded_channel();
        let port = peer(move |mut peer, _| {
            let said = said.clone();
            async move {
                peer.greet(1).await?;
                while let Ok((option, _)) = peer.option().await {
                    said.send(option).unwrap();
                    peer.option_reply(option, kind, b"no TLS here").await?;
                }
                said.send(0).unwrap();
                Ok(())
            }
        })
        .await;
        let error = connect(port, Tls::Required(fingerprint), options()).await.unwrap_err();
        assert!(matches!(root(&error), NbdError::TlsRefused { reply, .. } if *reply == kind), "{error:?}");
        assert_eq!((heard.recv().await, heard.recv().await), (Some(5), Some(0)), "the export name was not said in clear");
    }
}

#[tokio::test]
async fn nonsense_instead_of_tls_is_no_downgrade_either() {
    let fingerprint = SelfSigned::generate(&["localhost"]).unwrap().fingerprint().unwrap();
    let replies: [(u32, u32, &[u8]); 3] = [(1, 1, b""), (5, 1, b"data"), (5, 1, b"")];
    for (about, kind, data) in replies {
        let port = peer(move |mut peer, _| async move {
            peer.greet(1).await?;
            peer.option().await?;
            peer.option_reply(about, kind, data).await?;
            peer.0.write_all(&[0x2A; 64]).await
        })
        .await;
        // Not even where clear would be allowed: that is for servers that say they have no TLS.
        let error = connect(port, Tls::Preferred(fingerprint), options()).await.unwrap_err();
        assert!(matches!(root(&error), NbdError::Protocol { .. } | NbdError::Tls { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn an_endless_explanation_is_not_read() {
    let fingerprint = SelfSigned::generate(&["localhost"]).unwrap().fingerprint().unwrap();
    let port = peer(|mut peer, _| async move {
        peer.greet(1).await?;
        peer.option().await?;
        peer.0.write_u64(0x0003_E889_0455_65A9).await?;
        peer.0.write_all(&[0, 0, 0, 5, 0x80, 0, 0, 1, 0xFF, 0xFF, 0xFF, 0xFF]).await
    })
    .await;
    let error = connect(port, Tls::Preferred(fingerprint), options()).await.unwrap_err();
    assert!(matches!(root(&error), NbdError::Protocol { .. }), "{error:?}");
}

#[tokio::test]
async fn replies_in_reverse_order_find_their_readers() {
    let port = peer(|mut peer, _| async move {
        peer.begin().await?;
        let mut asked = Vec::new();
        for _ in 0..8 {
            asked.push(peer.asked().await?);
        }
        for asked in asked.into_iter().rev() {
            peer.answer(asked).await?;
        }
        peer.serve().await
    })
    .await;
    let client = connect(port, Tls::Plain, options()).await.unwrap();
    let blocks = join_all((0..8).map(|block| client.read(block * 1000, 1000))).await;
    assert_eq!(blocks.into_iter().map(Result::unwrap).collect::<Vec<_>>().concat(), DISK[..8000]);
}

/// What a bad server does with the second request of its first connection.
#[derive(Debug, Clone, Copy)]
enum Fault {
    WrongMagic,
    UnknownCookie,
    SameCookieTwice,
    StructuredReply,
    CutInHead,
    CutInData,
    Close,
}

#[tokio::test]
async fn every_fault_is_healed_by_another_connection_and_only_what_is_missing_is_asked_again() {
    use Fault::{Close, CutInData, CutInHead, SameCookieTwice, StructuredReply, UnknownCookie, WrongMagic};
    for fault in [WrongMagic, UnknownCookie, SameCookieTwice, StructuredReply, CutInHead, CutInData, Close] {
        let (said, mut heard) = mpsc::unbounded_channel();
        let port = peer(move |mut peer, number| {
            let said = said.clone();
            async move {
                peer.begin().await?;
                if number > 0 {
                    loop {
                        let asked = peer.asked().await?;
                        said.send(asked.offset).unwrap();
                        peer.answer(asked).await?;
                    }
                }
                let (first, second) = (peer.asked().await?, peer.asked().await?);
                peer.answer(first).await?;
                match fault {
                    WrongMagic => peer.0.write_all(&[0xEE; 16]).await?,
                    UnknownCookie => peer.head(0, second.cookie + 1000).await?,
                    SameCookieTwice => peer.head(0, first.cookie).await?,
                    StructuredReply => peer.0.write_all(&0x668e_33ef_u32.to_be_bytes().repeat(5)).await?,
                    CutInHead => peer.0.write_all(&[0x67, 0x44]).await?,
                    CutInData => {
                        peer.head(0, second.cookie).await?;
                        peer.0.write_all(&[0; 100]).await?;
                    }
                    Close => {}
                }
                peer.hang_up().await
            }
        })
        .await;
        let client = connect(port, Tls::Plain, options()).await.unwrap();
        let (one, two) = tokio::join!(client.read(0, 4096), client.read(4096, 4096));
        assert_eq!([one.unwrap(), two.unwrap()].concat(), DISK[..8192], "{fault:?}");
        assert_eq!(client.reconnections(), 1, "{fault:?}");
        assert_eq!(heard.recv().await, Some(4096), "{fault:?}: the first read was done");
        assert!(heard.try_recv().is_err(), "{fault:?}");
    }
}

#[tokio::test]
async fn a_server_that_goes_on_breaking_is_given_up() {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    let port = peer(move |mut peer, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            peer.begin().await?;
            peer.asked().await?;
            peer.0.write_all(&[0xEE; 16]).await
        }
    })
    .await;
    let client = connect(port, Tls::Plain, options()).await.unwrap();
    let error = client.read(0, 512).await.unwrap_err();
    assert!(matches!(root(&error), NbdError::Protocol { .. }), "{error:?}");
    assert_eq!(connections.load(Ordering::SeqCst), 3, "as many as there are attempts");
}

#[tokio::test]
async fn progress_made_by_others_is_no_failure() {
    // Each connection answers one request and closes; ten reads need ten connections, more than the attempts of one read.
    let port = peer(|mut peer, _| async move {
        peer.begin().await?;
        let asked = peer.asked().await?;
        peer.answer(asked).await?;
        peer.hang_up().await
    })
    .await;
    let client = connect(port, Tls::Plain, options()).await.unwrap();
    let blocks = join_all((0..10).map(|block| client.read(block * 100, 100))).await;
    assert_eq!(blocks.into_iter().map(Result::unwrap).collect::<Vec<_>>().concat(), DISK[..1000]);
}

#[tokio::test]
async fn a_silent_server_is_left_after_the_stall_timeout() {
    for silent_in_data in [false, true] {
        let port = peer(move |mut peer, number| async move {
            peer.begin().await?;
            if number > 0 {
                return peer.serve().await;
            }
            let asked = peer.asked().await?;
            if silent_in_data {
                peer.head(0, asked.cookie).await?;
                peer.0.write_all(&[0; 10]).await?;
            }
            std::future::pending().await
        })
        .await;
        let client = connect(port, Tls::Plain, Options { stall_timeout: Duration::from_millis(200), ..options() }).await.unwrap();
        assert_eq!(client.read(0, 4096).await.unwrap(), DISK[..4096]);
        assert_eq!(client.reconnections(), 1);
    }
}

#[tokio::test]
async fn a_server_that_never_gets_ready_is_not_waited_for() {
    let port = peer(|peer, _| async move {
        let _held = peer;
        std::future::pending().await
    })
    .await;
    let error = connect(port, Tls::Plain, Options { connect_timeout: Duration::from_millis(50), ..options() }).await.unwrap_err();
    assert!(matches!(root(&error), NbdError::ConnectTimeout { .. }), "{error:?}");
}

#[tokio::test]
async fn idle_is_not_stalled() {
    let port = peer(|mut peer, _| async move {
        peer.begin().await?;
        peer.serve().await
    })
    .await;
    let client = connect(port, Tls::Plain, Options { stall_timeout: Duration::from_millis(200), ..options() }).await.unwrap();
    client.read(0, 512).await.unwrap();
    // Nothing to wait for: that nothing happens is the point.
    tokio::time::sleep(Duration::from_millis(500)).await;
    client.read(512, 512).await.unwrap();
    assert_eq!(client.reconnections(), 0);
}

#[tokio::test]
async fn a_disk_that_changes_its_size_is_not_read_on() {
    let port = peer(|mut peer, number| async move {
        peer.greet(1).await?;
        peer.export(SIZE as u64 + 512 * number as u64, 124).await
    })
    .await;
    let client = connect(port, Tls::Plain, options()).await.unwrap();
    let error = client.read(0, 512).await.unwrap_err();
    assert!(matches!(root(&error), NbdError::SizeChanged { .. }), "{error:?}");
}

#[tokio::test]
async fn a_permanent_error_is_not_asked_again() {
    let (said, mut heard) = mpsc::unbounded_channel();
    let port = peer(move |mut peer, _| {
        let said = said.clone();
        async move {
            peer.begin().await?;
            loop {
                let asked = peer.asked().await?;
                said.send(()).unwrap();
                peer.head(22, asked.cookie).await?;
            }
        }
    })
    .await;
    let client = connect(port, Tls::Plain, options()).await.unwrap();
    assert!(matches!(client.read(0, 512).await, Err(NbdError::Read { code: 22, .. })));
    heard.recv().await.unwrap();
    assert!(heard.try_recv().is_err());
}

#[tokio::test]
async fn every_connection_takes_its_leave() {
    let (said, mut heard) = mpsc::unbounded_channel();
    let port = peer(move |mut peer, number| {
        let said = said.clone();
        async move {
            peer.begin().await?;
            peer.serve().await?;
            said.send(number).unwrap();
            Ok(())
        }
    })
    .await;
    let three = Options { connections: 3, ..options() };
    connect(port, Tls::Plain, three.clone()).await.unwrap().close().await;
    drop(connect(port, Tls::Plain, three).await.unwrap());
    let mut ended = Vec::new();
    while ended.len() < 6 {
        ended.push(heard.recv().await.unwrap());
    }
    ended.sort_unstable();
    assert_eq!(ended, [0, 1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn closing_does_not_wait_for_a_reconnection() {
    let (said, mut heard) = mpsc::unbounded_channel();
    let port = peer(move |mut peer, number| {
        let said = said.clone();
        async move {
            if number == 0 {
                peer.begin().await?;
            }
            said.send(number).unwrap();
            Ok(())
        }
    })
    .await;
    let for_ever = Options { retry_delay: Duration::from_secs(3600), ..options() };
    let client = connect(port, Tls::Plain, for_ever).await.unwrap();
    let close = async {
        while heard.recv().await != Some(1) {}
        client.close().await;
    };
    let both = async { tokio::join!(client.read(0, 512), close) };
    let (result, ()) = tokio::time::timeout(Duration::from_secs(30), both).await.expect("closing takes no time");
    assert!(matches!(result, Err(NbdError::Closed)), "{result:?}");
}

#[tokio::test]
async fn a_dropped_read_leaves_the_others_in_order() {
    let (go, mut wait) = mpsc::channel::<()>(1);
    let gate = Arc::new(tokio::sync::Mutex::new(Some(go)));
    let port = peer(move |mut peer, _| {
        let gate = Arc::clone(&gate);
        async move {
            peer.begin().await?;
            let first = peer.asked().await?;
            drop(gate.lock().await.take());
            let second = peer.asked().await?;
            peer.answer(first).await?;
            peer.answer(second).await?;
            peer.serve().await
        }
    })
    .await;
    let client = connect(port, Tls::Plain, Options { in_flight: 2, ..options() }).await.unwrap();
    tokio::select! {
        _ = client.read(0, 4096) => panic!("it is not answered yet"),
        _ = wait.recv() => {}
    }
    assert_eq!(client.read(4096, 4096).await.unwrap(), DISK[4096..8192]);
    assert_eq!(client.read(8192, 4096).await.unwrap(), DISK[8192..12288]);
    assert_eq!(client.reconnections(), 0);
}

#[tokio::test]
async fn no_more_is_in_flight_than_allowed() {
    let (said, mut heard) = mpsc::unbounded_channel();
    let port = peer(move |mut peer, _| {
        let said = said.clone();
        async move {
            peer.begin().await?;
            let mut most = 0;
            for _ in 0..5 {
                let mut waiting = vec![peer.asked().await?];
                // Whatever else is on its way is here before this much time has passed, or a later round sees it.
                while let Ok(asked) = tokio::time::timeout(Duration::from_millis(20), peer.asked()).await {
                    waiting.push(asked?);
                }
                most = most.max(waiting.len());
                for asked in waiting {
                    peer.answer(asked).await?;
                }
            }
            said.send(most).unwrap();
            peer.serve().await
        }
    })
    .await;
    let client = connect(port, Tls::Plain, Options { in_flight: 3, ..options() }).await.unwrap();
    let blocks = join_all((0..15).map(|block| client.read(block * 512, 512))).await;
    assert!(blocks.iter().all(Result::is_ok));
    assert_eq!(heard.recv().await, Some(3));
}

#[tokio::test]
async fn fewer_connections_than_wanted_are_enough() {
    let port = peer(|mut peer, number| async move {
        // As a host that has no connection left.
        if number >= 2 {
            return Ok(());
        }
        peer.begin().await?;
        peer.serve().await
    })
    .await;
    let client = connect(port, Tls::Plain, Options { connections: 8, ..options() }).await.unwrap();
    assert_eq!(client.connections(), 2);
    assert_eq!(client.read(0, 512).await.unwrap(), DISK[..512]);
}
