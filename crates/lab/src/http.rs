//! As much of HTTP/1.1 as a pool speaks: short answers that keep the connection, exports that end with it, uploads
//! that are answered before their body.
//!
//! An own layer, because everything clients trip over is below what an HTTP library lets through: bodies delimited by
//! the end of the connection alone, a reset in the middle of one, an answer ahead of the request's body
//! (xapi-streams.md §2).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::rpc::Task;

/// Most bytes of a request's head.
const HEAD: usize = 64 << 10;

/// Most bytes of the body of a call.
const CALL: u64 = 64 << 20;

/// How long a connection may be silent between requests.
const IDLE: Duration = Duration::from_secs(300);

/// A request that cannot be answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    /// The connection broke.
    #[error("the connection broke")]
    Connection(#[from] io::Error),
    /// This is no HTTP.
    #[error("no HTTP request: {0}")]
    Syntax(String),
    /// Too much of it.
    #[error("the {what} of the request exceeds {limit} bytes")]
    TooLarge { what: &'static str, limit: u64 },
    /// Nothing came for too long.
    #[error("the connection was silent for too long")]
    Idle,
}

/// Head of a request.
#[derive(Debug)]
pub(crate) struct Request {
    pub method: String,
    /// Without query, and without a slash at the end.
    pub path: String,
    /// As it came, question mark left out.
    pub query: String,
    headers: Vec<(String, String)>,
}

impl Request {
    /// A header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A parameter of the query.
    pub fn parameter(&self, name: &str) -> Option<String> {
        url::form_urlencoded::parse(self.query.as_bytes()).find(|(known, _)| known == name).map(|(_, value)| value.into_owned())
    }

    /// A cookie.
    pub fn cookie(&self, name: &str) -> Option<&str> {
        self.header("cookie")?.split(';').find_map(|cookie| cookie.trim().strip_prefix(name)?.strip_prefix('='))
    }

    /// User and password of basic authentication.
    pub fn basic(&self) -> Option<(String, String)> {
        let encoded = self.header("authorization")?.strip_prefix("Basic ")?;
        let text = String::from_utf8(BASE64.decode(encoded.trim()).ok()?).ok()?;
        text.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))
    }

    /// Bytes of the body, where the request says so.
    pub fn length(&self) -> Option<u64> {
        self.header("content-length")?.trim().parse().ok()
    }

    /// Whether the body comes in chunks.
    pub fn is_chunked(&self) -> bool {
        self.header("transfer-encoding").is_some_and(|coding| coding.to_ascii_lowercase().contains("chunked"))
    }

    fn closes(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

/// A client's connection.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    buffer: BytesMut,
}

impl Connection {
    /// Over a stream whose handshake is done.
    pub fn new(stream: TlsStream<TcpStream>) -> Self {
        Self { stream, buffer: BytesMut::with_capacity(16 << 10) }
    }

    /// The next request; `None` when the client is done.
    pub async fn request(&mut self) -> Result<Option<Request>, HttpError> {
        loop {
            if let Some(request) = self.parse()? {
                return Ok(Some(request));
            }
            if self.buffer.len() > HEAD {
                return Err(HttpError::TooLarge { what: "head", limit: HEAD as u64 });
            }
            let read =
                tokio::time::timeout(IDLE, self.stream.read_buf(&mut self.buffer)).await.map_err(|_| HttpError::Idle)??;
            if read == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(HttpError::Syntax("cut off in its head".into())) };
            }
        }
    }

    fn parse(&mut self) -> Result<Option<Request>, HttpError> {
        let mut headers = [httparse::EMPTY_HEADER; 100];
        let mut head = httparse::Request::new(&mut headers);
        let length = match head.parse(&self.buffer).map_err(|error| HttpError::Syntax(error.to_string()))? {
            httparse::Status::Complete(length) => length,
            httparse::Status::Partial => return Ok(None),
        };
        let target = head.path.unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let headers = head
            .headers
            .iter()
            .map(|header| (header.name.to_ascii_lowercase(), String::from_utf8_lossy(header.value).into_owned()));
        let request = Request {
            method: head.method.unwrap_or_default().to_owned(),
            path: path.trim_end_matches('/').to_owned(),
            query: query.to_owned(),
            headers: headers.collect(),
        };
        self.buffer.advance(length);
        Ok(Some(request))
    }

    /// The whole body of a call.
    pub async fn call_body(&mut self, length: u64) -> Result<Vec<u8>, HttpError> {
        if length > CALL {
            return Err(HttpError::TooLarge { what: "body", limit: CALL });
        }
        let mut body = Vec::new();
        tokio::time::timeout(IDLE, self.body(length).read_to_end(&mut body)).await.map_err(|_| HttpError::Idle)??;
        if (body.len() as u64) < length {
            return Err(HttpError::Syntax("cut off in its body".into()));
        }
        Ok(body)
    }

    /// The body of an upload, to be read as it comes.
    pub fn body(&mut self, length: u64) -> Body<'_> {
        Body { connection: self, remaining: length, received: 0, cut_at: None, task: None }
    }

    /// A short answer. Says whether the connection lives on.
    pub async fn answer(
        &mut self,
        request: &Request,
        status: u16,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<bool, HttpError> {
        let close = request.closes();
        let mut head = head(status, headers);
        head.push_str(&format!(
            "content-length: {}\r\nconnection: {}\r\n\r\n",
            body.len(),
            if close { "close" } else { "keep-alive" }
        ));
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        self.stream.write_all(&bytes).await?;
        self.stream.flush().await?;
        Ok(!close)
    }

    /// The head of an answer that ends with the connection.
    pub async fn begin(&mut self, version: &str, headers: &[(&str, &str)]) -> io::Result<()> {
        let head = head(200, headers).replacen("HTTP/1.1", version, 1);
        self.stream.write_all(format!("{head}connection: close\r\ncache-control: no-cache, no-store\r\n\r\n").as_bytes()).await?;
        self.stream.flush().await
    }

    /// More of its body.
    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Pushes out what was sent.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.stream.flush().await
    }

    /// Ends the connection in good order.
    pub async fn close(mut self) {
        // A client that has gone already does not mind.
        let _ = self.stream.shutdown().await;
    }

    /// Ends the connection as a crash would: the client sees a reset.
    pub fn reset(self) {
        let (socket, _) = self.stream.into_inner();
        let _ = socket.set_zero_linger();
    }
}

fn head(status: u16, headers: &[(&str, &str)]) -> String {
    let reason = match status {
        200 => "OK",
        302 => "Found",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        411 => "Length Required",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    };
    let mut head = format!("HTTP/1.1 {status} {reason}\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head
}

/// The body of an upload.
pub(crate) struct Body<'a> {
    connection: &'a mut Connection,
    remaining: u64,
    received: u64,
    cut_at: Option<u64>,
    task: Option<&'a Task>,
}

impl<'a> Body<'a> {
    /// Tells a task how far the upload is.
    pub fn reporting_to(mut self, task: &'a Task) -> Self {
        self.task = Some(task);
        self
    }

    /// Fails once so many bytes have come.
    pub fn cut_at(mut self, bytes: Option<u64>) -> Self {
        self.cut_at = bytes;
        self
    }

    /// Bytes that have come.
    pub fn received(&self) -> u64 {
        self.received
    }

    fn advance(&mut self, count: usize) {
        let total = (self.remaining + self.received) as f64;
        let before = self.received as f64 / total;
        self.remaining -= count as u64;
        self.received += count as u64;
        let after = self.received as f64 / total;
        if let Some(task) = self.task.filter(|_| (after * 100.0).floor() > (before * 100.0).floor()) {
            // The end is the import's to tell.
            task.progress(after.min(0.99));
        }
    }
}

impl AsyncRead for Body<'_> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.cut_at.is_some_and(|cut| this.received >= cut) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let left_to_cut = this.cut_at.map_or(u64::MAX, |cut| cut - this.received);
        let most = this.remaining.min(left_to_cut).min(out.remaining() as u64) as usize;
        if most == 0 {
            return Poll::Ready(Ok(()));
        }
        if !this.connection.buffer.is_empty() {
            let count = most.min(this.connection.buffer.len());
            out.put_slice(&this.connection.buffer.split_to(count));
            this.advance(count);
            return Poll::Ready(Ok(()));
        }
        let mut limited = ReadBuf::new(out.initialize_unfilled_to(most));
        let polled = Pin::new(&mut this.connection.stream).poll_read(context, &mut limited);
        let count = limited.filled().len();
        if polled.is_ready() {
            out.advance(count);
            this.advance(count);
        }
        polled
    }
}
