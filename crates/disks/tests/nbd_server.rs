//! The NBD server, read by a client of thirty lines that hides nothing, and by libnbd where it is installed.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use disks::{BlockRead, Image, Layer, MAX_CONNECTIONS, NbdFaults, NbdServer, NbdTls, View};
use tls::{SelfSigned, Trust, client_config};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const SIZE: u64 = 4 << 20;
const NAME: &str = "/vdi?session_id=secret";

struct Fixture {
    server: NbdServer,
    certificate: SelfSigned,
    content: Vec<u8>,
    _dir: tempfile::TempDir,
}

async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let image = Image::create(&dir.path().join("image"), SIZE).unwrap();
    let content: Vec<u8> = (0..SIZE as u32).map(|at| (at / 513) as u8).collect();
    image.write_at(0, &content).unwrap();
    let disk: Arc<dyn BlockRead> = Arc::new(View::new(image, Layer::Live).unwrap());
    let certificate = SelfSigned::generate(&["localhost", "127.0.0.1"]).unwrap();
    let resolve = move |name: &str| (name == NAME).then(|| Arc::clone(&disk));
    let tls = NbdTls::Required(certificate.server_config().unwrap());
    let server = NbdServer::bind("127.0.0.1:0".parse().unwrap(), tls, Arc::new(resolve)).await.unwrap();
    Fixture { server, certificate, content, _dir: dir }
}

trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

struct Client(Box<dyn Wire>);

impl Client {
    async fn plain(fixture: &Fixture) -> io::Result<TcpStream> {
        let mut socket = TcpStream::connect(fixture.server.address()).await?;
        let mut greeting = [0; 18];
        socket.read_exact(&mut greeting).await?;
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        socket.write_all(&1_u32.to_be_bytes()).await?;
        Ok(socket)
    }

    async fn connect(fixture: &Fixture, name: &str) -> io::Result<Self> {
        let mut socket = Self::plain(fixture).await?;
        assert_eq!(option(&mut socket, 5, b"").await?, 1, "STARTTLS is accepted");
        let pinned = client_config(Trust::Pinned(fixture.certificate.fingerprint().unwrap()));
        let mut stream = TlsConnector::from(Arc::new(pinned)).connect("localhost".try_into().unwrap(), socket).await?;
        stream.write_all(&[b"IHAVEOPT\0\0\0\x01", &(name.len() as u32).to_be_bytes()[..], name.as_bytes()].concat()).await?;
        assert_eq!(stream.read_u64().await?, SIZE);
        assert_eq!(stream.read_u16().await? & 3, 3);
        let mut zeros = [1; 124];
        stream.read_exact(&mut zeros).await?;
        assert_eq!(zeros, [0; 124]);
        Ok(Self(Box::new(stream)))
    }

    async fn request(&mut self, kind: u16, cookie: u64, offset: u64, length: u32) -> io::Result<()> {
        let head = [&0x2560_9513_u32.to_be_bytes()[..], &[0; 2], &kind.to_be_bytes(), &cookie.to_be_bytes()].concat();
        self.0.write_all(&[&head[..], &offset.to_be_bytes(), &length.to_be_bytes()].concat()).await?;
        self.0.flush().await
    }

    /// Error and cookie of the next reply.
    async fn reply(&mut self) -> io::Result<(u32, u64)> {
        assert_eq!(self.0.read_u32().await?, 0x6744_6698);
        Ok((self.0.read_u32().await?, self.0.read_u64().await?))
    }

    async fn read(&mut self, offset: u64, length: u32) -> io::Result<Result<Vec<u8>, u32>> {
        self.request(0, 1, offset, length).await?;
        let (error, _) = self.reply().await?;
        if error != 0 {
            return Ok(Err(error));
        }
        let mut content = vec![0; length as usize];
        self.0.read_exact(&mut content).await?;
        Ok(Ok(content))
    }
}

/// Sends an option and gives the type of the reply.
async fn option(wire: &mut (impl Wire + ?Sized), option: u32, data: &[u8]) -> io::Result<u32> {
    let option = option.to_be_bytes();
    wire.write_all(&[&b"IHAVEOPT"[..], &option, &(data.len() as u32).to_be_bytes(), data].concat()).await?;
    let mut head = [0; 20];
    wire.read_exact(&mut head).await?;
    assert_eq!(head[8..12], option);
    let length = u32::from_be_bytes(head[16..].try_into().unwrap());
    let mut rest = vec![0; length as usize];
    wire.read_exact(&mut rest).await?;
    Ok(u32::from_be_bytes(head[12..16].try_into().unwrap()))
}

#[tokio::test]
async fn what_is_read_is_what_is_stored() {
    let fixture = fixture().await;
    let mut client = Client::connect(&fixture, NAME).await.unwrap();
    for (offset, length) in [(0, 512), (65_535, 70_000), (SIZE - 1, 1), (0, SIZE as u32)] {
        let read = client.read(offset, length).await.unwrap().unwrap();
        assert!(read == fixture.content[offset as usize..][..length as usize]);
    }
    assert_eq!(client.read(SIZE - 1, 2).await.unwrap(), Err(22), "past the end");
    client.request(1, 9, 0, 4).await.unwrap();
    client.0.write_all(b"data").await.unwrap();
    assert_eq!(client.reply().await.unwrap(), (1, 9), "a write is refused, and its data skipped");
    assert!(client.read(0, 10).await.unwrap().is_ok());
    client.request(2, 0, 0, 0).await.unwrap();
    assert_eq!(client.0.read(&mut [0]).await.unwrap(), 0, "closed after good-bye");
}

#[tokio::test]
async fn many_reads_in_flight_come_back_each_with_its_cookie() {
    let fixture = fixture().await;
    fixture.server.faults().set(NbdFaults { reorder: true, ..NbdFaults::default() });
    let mut client = Client::connect(&fixture, NAME).await.unwrap();
    for cookie in 0..64 {
        client.request(0, cookie, cookie * 65_536, 65_536).await.unwrap();
    }
    let mut seen = BTreeMap::new();
    for position in 0..64 {
        let (error, cookie) = client.reply().await.unwrap();
        let mut content = vec![0; 65_536];
        client.0.read_exact(&mut content).await.unwrap();
        assert!(error == 0 && content == fixture.content[cookie as usize * 65_536..][..65_536]);
        seen.insert(cookie, position);
    }
    assert_eq!(seen.len(), 64);
    assert!(seen.iter().any(|(cookie, position)| cookie != position), "the fault changes the order");
}

#[tokio::test]
async fn nothing_is_served_in_clear_or_under_a_wrong_name() {
    let fixture = fixture().await;
    let mut socket = Client::plain(&fixture).await.unwrap();
    assert_eq!(option(&mut socket, 3, b"").await.unwrap(), 0x8000_0005, "TLS first");
    let go = [&(NAME.len() as u32).to_be_bytes()[..], NAME.as_bytes(), &[0, 0]].concat();
    assert_eq!(option(&mut socket, 7, &go).await.unwrap(), 0x8000_0005);
    socket.write_all(&[&b"IHAVEOPT\0\0\0\x01\0\0\0\x16"[..], NAME.as_bytes()].concat()).await.unwrap();
    assert_eq!(socket.read(&mut [0]).await.unwrap(), 0, "an export name in clear ends the connection");
    assert!(Client::connect(&fixture, "/vdi?session_id=guess").await.is_err());
    fixture.server.faults().set(NbdFaults { refuse_tls: true, ..NbdFaults::default() });
    let mut socket = Client::plain(&fixture).await.unwrap();
    assert_eq!(option(&mut socket, 5, b"").await.unwrap(), 0x8000_0002);
}

#[tokio::test]
async fn garbage_ends_the_connection_and_nothing_else() {
    let fixture = fixture().await;
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 64], b"\0\0\0\x01IHAVEOPT\0\0\0\x07\xFF\xFF\xFF\xFF"] {
        let mut socket = TcpStream::connect(fixture.server.address()).await.unwrap();
        socket.write_all(garbage).await.unwrap();
        let mut rest = Vec::new();
        // A reset is as good an end as a close.
        let _ = socket.read_to_end(&mut rest).await;
        assert_eq!(rest.len(), 18, "the greeting and no more");
    }
    assert!(Client::connect(&fixture, NAME).await.unwrap().read(0, 1).await.unwrap().is_ok());
}

#[tokio::test]
async fn faults_strike_as_often_as_they_were_told() {
    let fixture = fixture().await;
    let faults = fixture.server.faults();
    faults.set(NbdFaults { cut_after_bytes: Some(100_000), cuts: 1, ..NbdFaults::default() });
    let mut client = Client::connect(&fixture, NAME).await.unwrap();
    assert!(client.read(0, 65_536).await.unwrap().is_ok());
    assert_eq!(client.read(0, 65_536).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    let mut client = Client::connect(&fixture, NAME).await.unwrap();
    assert!(client.read(0, 1 << 20).await.unwrap().is_ok(), "one cut was asked for");

    faults.set(NbdFaults { error_range: Some(1000..2000), errors: 2, ..NbdFaults::default() });
    assert!(client.read(0, 1000).await.unwrap().is_ok());
    assert_eq!(client.read(1999, 1).await.unwrap(), Err(5));
    assert_eq!(client.read(0, 5000).await.unwrap(), Err(5));
    assert!(client.read(0, 5000).await.unwrap().is_ok());

    faults.set(NbdFaults { short_reads: 1, ..NbdFaults::default() });
    assert!(client.read(0, 5000).await.is_err());
    let mut client = Client::connect(&fixture, NAME).await.unwrap();
    assert!(client.read(0, 5000).await.unwrap().is_ok());

    fixture.server.disconnect_all();
    assert!(client.read(0, 1).await.is_err(), "thrown out");
    assert!(Client::connect(&fixture, NAME).await.is_ok(), "and welcome again");
    faults.set(NbdFaults { refuse_connections: true, ..NbdFaults::default() });
    assert!(Client::plain(&fixture).await.is_err());
}

#[tokio::test]
async fn the_seventeenth_connection_is_closed() {
    let fixture = fixture().await;
    let mut clients = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        clients.push(Client::connect(&fixture, NAME).await.unwrap());
    }
    assert_eq!(fixture.server.connections(), MAX_CONNECTIONS);
    assert!(Client::plain(&fixture).await.is_err());
    drop(clients.pop());
    while fixture.server.connections() == MAX_CONNECTIONS {
        tokio::task::yield_now().await;
    }
    assert!(Client::connect(&fixture, NAME).await.is_ok());
    fixture.server.close().await;
    assert!(clients[0].read(0, 1).await.is_err());
}

/// A client that nobody here wrote, over TLS against the certificate itself as authority.
#[tokio::test(flavor = "multi_thread")]
async fn nbdcopy_copies_the_same_bytes() {
    let fixture = fixture().await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ca-cert.pem"), &fixture.certificate.certificate_pem).unwrap();
    let (port, certificates) = (fixture.server.address().port(), dir.path().display());
    let uri = format!("nbds://localhost:{port}//vdi%3Fsession_id=secret?tls-certificates={certificates}");
    let target = dir.path().join("copy.raw");
    let copied = tokio::process::Command::new("nbdcopy").arg(&uri).arg(&target).output().await;
    let copied = copied.expect("nbdcopy starts; `cargo xtask setup` installs it");
    assert!(copied.status.success(), "{copied:?}");
    assert!(std::fs::read(target).unwrap() == fixture.content);
}
