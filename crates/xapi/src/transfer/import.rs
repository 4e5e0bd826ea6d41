//! Streams into a pool: `/import/` and `/import_raw_vdi/` (xapi-streams.md §2.2, §2.4, §2.5).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use futures::future::OptionFuture;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST};
use hyper::{Request, Response};
use serde_json::Value;
use tokio::sync::oneshot;
use url::Url;

use super::connection::Connection;
use super::{DiskFormat, MAX_REDIRECTS, redirect};
use crate::session::address;
use crate::{Client, Error, Ref, Result, Task};

/// How long a broken upload waits for its task to tell why.
const REASON: Duration = Duration::from_secs(5);

/// What is to be sent.
type Source = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

impl Client {
    /// Imports a VM from an XVA of exactly `length` bytes into a storage and gives the new VM. `label` is for people.
    pub async fn import_vm(
        &self,
        sr: &Ref,
        length: u64,
        body: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        label: &str,
    ) -> Result<Ref> {
        let what = format!("import of {label}");
        let query = vec![("sr_id", sr.to_string())];
        let result = self.import(&what, "/import/", query, length, Box::pin(body)).await?;
        // A set of references; a single one where a server writes it plainly.
        let first = match &result {
            Value::Array(vms) => vms.first().and_then(Value::as_str),
            Value::String(vm) => Some(vm.as_str()),
            _ => None,
        };
        first.map(Ref::from).ok_or_else(|| Error::Malformed { what, reason: "its task names no VM".into() })
    }

    /// Writes a disk image of exactly `length` bytes into an existing disk.
    pub async fn import_raw_vdi(
        &self,
        vdi: &Ref,
        format: DiskFormat,
        length: u64,
        body: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        label: &str,
    ) -> Result<()> {
        let query = vec![("format", format.to_string()), ("vdi", vdi.to_string())];
        self.import(&format!("import of disk {label}"), "/import_raw_vdi/", query, length, Box::pin(body)).await.map(drop)
    }

    async fn import(&self, what: &str, path: &str, query: Vec<(&str, String)>, length: u64, mut source: Source) -> Result<Value> {
        if length == 0 {
            return Err(Error::Malformed { what: what.to_owned(), reason: "nothing to send".into() });
        }
        let timing = self.timing();
        let mut session = self.session().await?;
        let (mut renewed, mut busy) = (false, 1);
        loop {
            let task = self.create_task(what).await?;
            let mut query = query.clone();
            query.push(("task_id", task.reference().to_string()));
            let mut url = self.handler(&session, path, &query);
            let mut redirects = 0;
            let status = loop {
                let connection = self.open::<Gated>(&url, &session).await?;
                let upload = Upload { client: self, what, url: &url, task: &task, length };
                match upload.run(connection, source).await? {
                    Sent::All(_open) => {
                        // The connection stays open until the task has said its last word.
                        return task.finish_within(timing.inactivity.max(timing.settle), length).await;
                    }
                    Sent::Nothing { status, redirect, source: back } => {
                        source = back;
                        match redirect {
                            Some(next) if redirects < MAX_REDIRECTS => {
                                redirects += 1;
                                url = next;
                            }
                            Some(_) => {
                                let reason = format!("more than {MAX_REDIRECTS} redirects");
                                return Err(Error::Malformed { what: what.to_owned(), reason });
                            }
                            None => break status,
                        }
                    }
                }
            };
            match status {
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
                    let error = Error::Http { what: what.to_owned(), address: address(&url), status };
                    return Err(task.failure_within(REASON).await.unwrap_or(error));
                }
            }
        }
    }
}

/// One request on one connection.
struct Upload<'a> {
    client: &'a Client,
    what: &'a str,
    url: &'a Url,
    task: &'a Task,
    length: u64,
}

/// How far an upload came.
enum Sent {
    /// Every byte went out.
    All(Open),
    /// The host answered before the body: elsewhere, or not now. The source is untouched.
    Nothing { status: u16, redirect: Option<Url>, source: Source },
}

/// A connection with its unread response: dropping either closes it, in the middle of the upload if need be.
type Open = (Connection<Gated>, Option<Response<Incoming>>);

impl Upload<'_> {
    async fn run(&self, mut connection: Connection<Gated>, source: Source) -> Result<Sent> {
        let what = self.what.to_owned();
        let (gate, waiting) = oneshot::channel();
        let (report, mut outcome) = oneshot::channel();
        let sent = Arc::new(AtomicU64::new(0));
        let body = Gated { waiting, source: None, left: self.length, sent: Arc::clone(&sent), report: Some(report) };
        // No secret in it but the request line, which goes over TLS.
        let request = Request::put(&self.url[url::Position::BeforePath..])
            .header(HOST, address(self.url))
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, self.length)
            .body(body)
            .map_err(|error| Error::Malformed { what: what.clone(), reason: error.to_string() })?;

        // The status line comes before the body is read, and may send us elsewhere (xapi-streams.md §2.2). A host that
        // says nothing gets the body after a while.
        let response = connection.sender.send_request(request);
        tokio::pin!(response);
        let mut answer = None;
        match tokio::time::timeout(self.client.timing().upload_head, &mut response).await {
            Ok(Ok(head)) => {
                let status = head.status();
                let redirect = redirect(&what, self.url, status, head.headers())?;
                if redirect.is_some() || !status.is_success() {
                    return Ok(Sent::Nothing { status: status.as_u16(), redirect, source });
                }
                answer = Some(head);
            }
            Ok(Err(source)) => return Err(self.broken(source.into()).await),
            Err(_) => {}
        }
        if gate.send(source).is_err() {
            return Err(self.broken("the host closed it before the data".into()).await);
        }

        let patience = self.client.timing().inactivity;
        let mut last = 0;
        loop {
            let early: OptionFuture<_> = answer.is_none().then_some(&mut response).into();
            tokio::select! {
                biased;
                end = &mut outcome => return match end {
                    Ok(End::All) => Ok(Sent::All((connection, answer))),
                    Ok(end) => Err(self.ended(end, &sent)),
                    Err(_) => {
                        let bytes = sent.load(Ordering::Relaxed);
                        let cut = Error::Cut { what, bytes, status: "pending".into() };
                        Err(self.task.failure_within(REASON).await.unwrap_or(cut))
                    }
                },
                Some(early) = early => match early {
                    Ok(head) if head.status().is_success() => answer = Some(head),
                    Ok(head) => {
                        let error = Error::Http { what, address: address(self.url), status: head.status().as_u16() };
                        return Err(self.task.failure_within(REASON).await.unwrap_or(error));
                    }
                    Err(source) => {
                        // A source that failed made the connection fail: it is the better reason.
                        return Err(match outcome.try_recv() {
                            Ok(end @ (End::Source(_) | End::Short | End::Long)) => self.ended(end, &sent),
                            Ok(End::All) | Err(_) => self.broken(source.into()).await,
                        });
                    }
                },
                () = tokio::time::sleep(patience) => {
                    let now = sent.load(Ordering::Relaxed);
                    if now == last {
                        return Err(Error::TimedOut { what, after: patience });
                    }
                    last = now;
                }
            }
        }
    }

    /// The error of a body that did not end as announced.
    fn ended(&self, end: End, sent: &AtomicU64) -> Error {
        let (what, announced, got) = (self.what.to_owned(), self.length, sent.load(Ordering::Relaxed));
        match end {
            End::Source(source) => Error::Body { what, source },
            End::Long => Error::Length { what, announced, got, more: true },
            End::Short | End::All => Error::Length { what, announced, got, more: false },
        }
    }

    async fn broken(&self, source: crate::error::Source) -> Error {
        let error = Error::Transport { what: self.what.to_owned(), address: address(self.url), source };
        self.task.failure_within(REASON).await.unwrap_or(error)
    }
}

/// How a body ended; that it was dropped before is told by the channel.
enum End {
    All,
    Source(io::Error),
    Short,
    Long,
}

/// A body that waits for its source, so that the headers go first and a redirect costs nothing.
struct Gated {
    waiting: oneshot::Receiver<Source>,
    source: Option<Source>,
    left: u64,
    sent: Arc<AtomicU64>,
    report: Option<oneshot::Sender<End>>,
}

impl Gated {
    fn tell(&mut self, end: End) {
        if let Some(report) = self.report.take() {
            let _ = report.send(end);
        }
    }

    /// Ends the connection, since the announced length cannot be kept.
    fn fail(&mut self, end: End) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.tell(end);
        Poll::Ready(Some(Err(io::Error::other("the data to send failed"))))
    }
}

impl Body for Gated {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.source.is_none() {
            match ready!(Pin::new(&mut self.waiting).poll(context)) {
                Ok(source) => self.source = Some(source),
                Err(_) => return Poll::Ready(Some(Err(io::Error::other("given up before the data")))),
            }
        }
        let this = &mut *self;
        let Some(source) = &mut this.source else { return Poll::Pending };
        loop {
            return match ready!(source.as_mut().poll_next(context)) {
                Some(Ok(chunk)) if chunk.is_empty() => continue,
                Some(Ok(chunk)) => {
                    let length = chunk.len() as u64;
                    if length > this.left {
                        return this.fail(End::Long);
                    }
                    this.left -= length;
                    this.sent.fetch_add(length, Ordering::Relaxed);
                    if this.left == 0 {
                        this.tell(End::All);
                    }
                    Poll::Ready(Some(Ok(Frame::data(chunk))))
                }
                Some(Err(error)) => this.fail(End::Source(error)),
                None if this.left > 0 => this.fail(End::Short),
                None => Poll::Ready(None),
            };
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
