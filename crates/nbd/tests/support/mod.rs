//! What the tests of this crate share: a disk, options that do not wait, endpoints, a server program.
#![allow(dead_code, reason = "each test file uses a part")]

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nbd::{Endpoint, ExportName, NbdError, Options, Tls};

pub const EXPORT: &str = "/0f3a…?session_id=OpaqueRef:secret";

/// Bytes that differ everywhere.
pub fn disk(size: usize) -> Vec<u8> {
    (0..size.div_ceil(4) as u32).flat_map(|word| word.wrapping_mul(2_654_435_761).to_be_bytes()).take(size).collect()
}

/// Short pauses and few attempts; the timeouts are long, so that a test which waits for one has failed.
pub fn options() -> Options {
    Options { attempts: 3, retry_delay: Duration::from_millis(1), ..Options::default() }
}

pub fn endpoint(port: u16, tls: Tls) -> Endpoint {
    Endpoint { address: "127.0.0.1".into(), port, export_name: ExportName::new(EXPORT).unwrap(), tls }
}

/// The error at the bottom of a chain of "because".
pub fn root(error: &NbdError) -> &NbdError {
    match error {
        NbdError::Unreachable { last, .. } => root(last),
        NbdError::Lost(reason) => root(reason),
        other => other,
    }
}

/// A server program, ended with the test.
pub struct Program {
    child: Child,
    pub port: u16,
}

impl Program {
    /// Starts `program`, which must be installed, on a free port, and waits until it listens there.
    pub async fn start(program: &str, arguments: impl Fn(u16) -> Vec<String>) -> Self {
        let port = free_port();
        Self::start_on(port, program, arguments).await
    }

    pub async fn start_on(port: u16, program: &str, arguments: impl Fn(u16) -> Vec<String>) -> Self {
        let mut child = Command::new(program)
            .args(arguments(port))
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{program} is installed: {error}"));
        while tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err() {
            assert!(child.try_wait().unwrap().is_none(), "{program} ended at once");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Self { child, port }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

pub fn text(path: &Path) -> String {
    path.to_str().expect("a temporary path is text").to_owned()
}
