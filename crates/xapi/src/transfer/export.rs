//! Streams out of a pool: `/export/` and `/export_raw_vdi/` (xapi-streams.md §2.3, §2.5).

use std::collections::VecDeque;
use std::error::Error as _;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::Stream;
use http_body_util::Empty;
use hyper::Request;
use hyper::body::{Body, Incoming};
use hyper::header::HOST;
use tokio::time::{Instant, Sleep};
use tokio_util::io::StreamReader;
use tokio_util::task::AbortOnDropHandle;

use super::{Compression, DiskFormat, MAX_REDIRECTS, redirect};
use crate::session::address;
use crate::{Client, Error, Ref, Result, Task};

/// How long a broken stream waits for its task to tell why.
const REASON: Duration = Duration::from_secs(5);
/// What a second HTTP response begins with (xapi-streams.md §2.1).
const SECOND_RESPONSE: &[u8] = b"HTTP/";
/// How much of a second response is quoted.
const QUOTED: usize = 120;

/// A body on its way out of a pool.
///
/// Read it with [`Export::next`], as a [`Stream`], or through [`Export::reader`], then call [`Export::finish`]: only
/// that tells whether the pool sent everything. Dropping it closes the connection and cancels the task.
pub struct Export {
    task: Task,
    what: String,
    address: String,
    body: Incoming,
    /// Closes the connection when dropped.
    _connection: AbortOnDropHandle<()>,
    /// Bytes held back until it is sure that they are no second response, then handed out.
    begin: Begin,
    ready: VecDeque<Bytes>,
    ended: bool,
    bytes: u64,
    patience: Duration,
    settle: Duration,
    alarm: Option<Pin<Box<Sleep>>>,
}

enum Begin {
    Unknown(BytesMut),
    Data,
}

impl Client {
    /// Exports a VM or snapshot as XVA. `label` is for people: the name of the VM.
    pub async fn export_vm(&self, vm: &Ref, compression: Compression, label: &str) -> Result<Export> {
        let query = vec![("ref", vm.to_string()), ("use_compression", compression.to_string())];
        // With compression the first byte can take long (xapi-streams.md §2.3).
        let first = if compression == Compression::None { self.timing().inactivity } else { self.timing().first_byte };
        self.export(format!("export of {label}"), "/export/", query, first).await
    }

    /// Exports the content of a disk; with `base`, only what differs from it. A base is a wish: look at the type of
    /// the disk that comes (T11).
    pub async fn export_raw_vdi(&self, vdi: &Ref, base: Option<&Ref>, format: DiskFormat, label: &str) -> Result<Export> {
        let mut query = vec![("format", format.to_string()), ("vdi", vdi.to_string())];
        if let Some(base) = base {
            query.push(("base", base.to_string()));
        }
        self.export(format!("export of disk {label}"), "/export_raw_vdi/", query, self.timing().inactivity).await
    }

    async fn export(&self, what: String, path: &str, query: Vec<(&str, String)>, first: Duration) -> Result<Export> {
        let timing = self.timing();
        let mut session = self.session().await?;
        let (mut renewed, mut busy) = (false, 1);
        loop {
            let task = self.create_task(&what).await?;
            let mut query = query.clone();
            query.push(("task_id", task.reference().to_string()));
            let mut url = self.handler(&session, path, &query);
            let mut redirects = 0;
            let (response, connection) = loop {
                let mut connection = self.open::<Empty<Bytes>>(&url, &session).await?;
                let request = Request::get(&url[url::Position::BeforePath..])
                    .header(HOST, address(&url))
                    .body(Empty::new())
                    .map_err(|error| Error::Malformed { what: what.clone(), reason: error.to_string() })?;
                let response = match tokio::time::timeout(first, connection.sender.send_request(request)).await {
                    Ok(Ok(response)) => response,
                    Ok(Err(source)) => {
                        let error = Error::Transport { what: what.clone(), address: address(&url), source: source.into() };
                        return Err(task.failure_within(REASON).await.unwrap_or(error));
                    }
                    Err(_) => return Err(Error::TimedOut { what, after: first }),
                };
                match redirect(&what, &url, response.status(), response.headers())? {
                    Some(next) if redirects < MAX_REDIRECTS => {
                        redirects += 1;
                        url = next;
                    }
                    Some(_) => {
                        return Err(Error::Malformed { what, reason: format!("more than {MAX_REDIRECTS} redirects") });
                    }
                    None => break (response, connection),
                }
            };
            match response.status().as_u16() {
                200..=299 => {
                    return Ok(Export {
                        task,
                        what,
                        address: address(&url),
                        body: response.into_body(),
                        _connection: connection.driver,
                        begin: Begin::Unknown(BytesMut::new()),
                        ready: VecDeque::new(),
                        ended: false,
                        bytes: 0,
                        patience: timing.inactivity,
                        settle: timing.settle,
                        alarm: Some(Box::pin(tokio::time::sleep(first))),
                    });
                }
                401 if !renewed => {
                    renewed = true;
                    task.discard().await;
                    session = self.renew(&session).await?;
                }
                503 if busy < timing.busy_attempts => {
                    busy += 1;
                    task.discard().await;
                    tokio::time::sleep(timing.busy_delay).await;
                }
                status => {
                    let error = Error::Http { what, address: address(&url), status };
                    return Err(task.failure_within(REASON).await.unwrap_or(error));
                }
            }
        }
    }
}

impl Export {
    /// The task, for the journal of a run.
    pub fn task(&self) -> &Ref {
        self.task.reference()
    }

    /// Bytes received so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next bytes; none at the end of the body, which is no success yet.
    ///
    /// # Errors
    /// The reason the task tells, where it tells one; else what happened to the connection.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        match std::future::poll_fn(|context| self.poll_bytes(context)).await {
            Some(Ok(bytes)) => Ok(Some(bytes)),
            Some(Err(error)) => Err(self.explain(error).await),
            None => Ok(None),
        }
    }

    /// The body for parsers that read. Errors of the pool are inside the [`io::Error`]s, see [`Export::explain_io`].
    pub fn reader(&mut self) -> StreamReader<&mut Self, Bytes> {
        StreamReader::new(self)
    }

    /// The error behind one of [`Export::reader`] or of the [`Stream`]: what the task says, where it says something.
    /// None when the error did not come from the pool.
    pub async fn explain_io(&self, error: io::Error) -> Result<Error, io::Error> {
        Ok(self.explain(error.downcast::<Error>()?).await)
    }

    /// Waits for the task: the only proof that everything came. Reads the rest of the body first, so that a parser
    /// that stops at the end of its format does not make the pool fail.
    pub async fn finish(mut self) -> Result<()> {
        while self.next().await?.is_some() {}
        let Self { task, bytes, settle, .. } = self;
        task.finish_within(settle, bytes).await.map(drop)
    }

    /// Closes the connection and waits until the task is gone: for whoever has read enough.
    pub async fn abort(self) {
        let Self { task, body, _connection, .. } = self;
        drop((body, _connection));
        task.discard().await;
    }

    async fn explain(&self, error: Error) -> Error {
        match error {
            Error::Transport { .. } | Error::Broken { .. } => self.task.failure_within(REASON).await.unwrap_or(error),
            error => error,
        }
    }

    fn poll_bytes(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes>>> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(bytes)));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            let frame = match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    ready!(self.poll_alarm(context));
                    self.ended = true;
                    return Poll::Ready(Some(Err(Error::TimedOut { what: self.what.clone(), after: self.patience })));
                }
            };
            self.alarm = None;
            match frame {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.bytes += data.len() as u64;
                        if let Err(error) = self.take(data) {
                            self.ended = true;
                            return Poll::Ready(Some(Err(error)));
                        }
                    }
                }
                // Hosts close the TCP connection without closing TLS. Whether it was the end, the task knows.
                Some(Err(error)) if is_unclean_end(&error) => self.end(),
                Some(Err(source)) => {
                    self.ended = true;
                    let error =
                        Error::Transport { what: self.what.clone(), address: self.address.clone(), source: source.into() };
                    return Poll::Ready(Some(Err(error)));
                }
                None => self.end(),
            }
        }
    }

    /// Ready when nothing came for too long. The time counts from when somebody waits, not from the last byte: a slow
    /// reader is not a silent pool.
    fn poll_alarm(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let patience = self.patience;
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + patience)));
        alarm.as_mut().poll(context)
    }

    /// Accepts data, once it is known to be data.
    fn take(&mut self, data: Bytes) -> Result<()> {
        let Begin::Unknown(held) = &mut self.begin else {
            self.ready.push_back(data);
            return Ok(());
        };
        held.extend_from_slice(&data);
        let seen = held.len().min(SECOND_RESPONSE.len());
        if held[..seen] != SECOND_RESPONSE[..seen] {
            self.ready.push_back(held.split().freeze());
            self.begin = Begin::Data;
        } else if held.len() >= SECOND_RESPONSE.len() {
            let line = held[..].split(|byte| *byte == b'\r' || *byte == b'\n').next().unwrap_or_default();
            let line = String::from_utf8_lossy(&line[..line.len().min(QUOTED)]).into_owned();
            return Err(Error::Broken { what: self.what.clone(), line });
        }
        Ok(())
    }

    fn end(&mut self) {
        self.ended = true;
        if let Begin::Unknown(held) = &mut self.begin
            && !held.is_empty()
        {
            self.ready.push_back(held.split().freeze());
        }
    }
}

/// Whether the connection ended without TLS saying so; a broken chunk or length is something else.
fn is_unclean_end(error: &hyper::Error) -> bool {
    if error.is_incomplete_message() {
        return false;
    }
    let mut next = error.source();
    while let Some(cause) = next {
        if let Some(cause) = cause.downcast_ref::<io::Error>() {
            return cause.kind() == io::ErrorKind::UnexpectedEof;
        }
        next = cause.source();
    }
    false
}

impl Stream for Export {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_bytes(context).map(|item| item.map(|result| result.map_err(io::Error::from)))
    }
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export").field("what", &self.what).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}
