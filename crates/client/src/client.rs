//! Calls to one proxy: JSON-RPC over HTTPS with a pinned certificate (xo-proxy-api.md §1.1-1.4).

use std::marker::PhantomData;
use std::time::Duration;

use api::{ErrorCode, ErrorReport, Method, Received, RpcRequest, RpcResponse};
use bytes::{Bytes, BytesMut};
use reqwest::header::{CONTENT_TYPE, COOKIE, HeaderValue};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tls::{Fingerprint, Trust};
use url::Url;

use crate::{CallError, Token};

/// To the first byte of a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// A daemon with something to say writes at least a space every 10 s; three missed ones are a dead line.
const SILENCE: Duration = Duration::from_secs(35);
/// For an answer without keep-alive, however long a pool takes to answer the proxy.
const CALL: Duration = Duration::from_secs(120);
/// Longest line accepted, bytes.
const MAX_LINE: usize = 8 << 20;
/// Longest answer accepted, bytes.
const MAX_ANSWER: usize = 64 << 20;

/// A proxy that can be called. Cheap to clone; holds no connection open.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    url: Url,
    host: String,
    cookie: HeaderValue,
    pinned: Fingerprint,
}

/// Answers of a streaming method, one at a time.
pub struct Lines<M> {
    body: Body,
    method: PhantomData<fn() -> M>,
}

struct Body {
    response: reqwest::Response,
    buffer: BytesMut,
    /// How much of the buffer is known to hold no line end.
    searched: usize,
    host: String,
    pinned: Fingerprint,
}

impl Client {
    /// A client for the proxy at an address with this certificate. Connects when called.
    ///
    /// # Errors
    /// [`CallError::Foreign`] when the address or token cannot be used at all.
    pub fn new(address: &Url, token: &Token, pinned: Fingerprint) -> Result<Self, CallError> {
        let host = host_of(address);
        let unusable = |what: &str| CallError::Foreign { host: host.clone(), what: what.to_owned() };
        let http = http(Trust::Pinned(pinned)).map_err(|_| unusable("no HTTP client can be made"))?;
        let url = address.join("api/v1").map_err(|_| unusable("the address cannot be extended"))?;
        let cookie = cookie(token).ok_or_else(|| unusable("the token does not fit into a cookie"))?;
        Ok(Self { http, url, host, cookie, pinned })
    }

    /// `host:port`, for messages.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Calls a method that answers once.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn call<M: Method>(&self, params: &M::Params) -> Result<M::Item, CallError> {
        let result = self.call_value(M::NAME, to_value(params)).await?;
        serde_json::from_value(result).map_err(|error| self.foreign(format!("the answer to {} cannot be read: {error}", M::NAME)))
    }

    /// Calls a method by name.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn call_value(&self, method: &str, params: Value) -> Result<Value, CallError> {
        let call = async {
            let mut body = self.post(method, params, CALL).await?;
            let mut answer = BytesMut::new();
            while let Some(piece) = body.piece().await? {
                answer.extend_from_slice(&piece);
                if answer.len() > MAX_ANSWER {
                    return Err(self.foreign(format!("its answer to {method} is longer than {MAX_ANSWER} bytes")));
                }
            }
            self.result_of(method, &answer)
        };
        match tokio::time::timeout(CALL, call).await {
            Ok(result) => result,
            Err(_) => {
                Err(CallError::Cut { host: self.host.clone(), reason: format!("no answer to {method} in {} s", CALL.as_secs()) })
            }
        }
    }

    /// Calls a method that answers a stream, and waits until the stream has begun.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn stream<M: Method>(&self, params: &M::Params) -> Result<Lines<M>, CallError> {
        let mut body = self.post(M::NAME, to_value(params), SILENCE).await?;
        let first = body.line().await?.ok_or_else(|| self.cut("it closed before answering"))?;
        let header = self.result_of(M::NAME, &first)?;
        if header != api::ndjson_header() {
            return Err(self.foreign(format!("it answers {} at once where a stream was expected", M::NAME)));
        }
        Ok(Lines { body, method: PhantomData })
    }

    /// Sends an upgrade bundle as it is, for [`api::UpgradeStart`].
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn send_bundle(&self, body: impl Into<reqwest::Body>) -> Result<Received, CallError> {
        let url = self.url.join(api::BUNDLE_PATH).map_err(|_| self.foreign("the address cannot be extended".into()))?;
        let request = self.http.post(url).header(COOKIE, self.cookie.clone()).body(body);
        let failed = |error: &reqwest::Error, answered| CallError::from_http(&self.host, self.pinned, error, answered);
        let mut response = request.send().await.map_err(|error| failed(&error, false))?;
        let status = response.status().as_u16();
        match status {
            401 => return Err(CallError::Authentication { host: self.host.clone() }),
            404 => return Err(self.foreign("it takes no upgrade bundles: it is of an older version".into())),
            _ => {}
        }
        let mut answer = BytesMut::new();
        while let Some(piece) = response.chunk().await.map_err(|error| failed(&error, true))? {
            answer.extend_from_slice(&piece);
            if answer.len() > MAX_LINE {
                return Err(self.foreign("its answer to a bundle is too long".into()));
            }
        }
        let unread =
            |error: serde_json::Error| self.foreign(format!("its answer to a bundle (HTTP {status}) cannot be read: {error}"));
        match status {
            200 => serde_json::from_slice(&answer).map_err(unread),
            _ => {
                let report: ErrorReport = serde_json::from_slice(&answer).map_err(unread)?;
                Err(CallError::Answered { code: ErrorCode::Failed, report })
            }
        }
    }

    /// The certificate the proxy shows, whichever it is. Sends no token.
    ///
    /// # Errors
    /// [`CallError::Unreachable`], [`CallError::Foreign`].
    pub async fn observe(url: &Url) -> Result<Fingerprint, CallError> {
        let host = host_of(url);
        let (trust, seen) = Trust::first_use();
        let foreign = |what: &str| CallError::Foreign { host: host.clone(), what: what.to_owned() };
        let client = http(trust).map_err(|_| foreign("no HTTP client can be made"))?;
        let health = url.join("healthz").map_err(|_| foreign("the address cannot be extended"))?;
        let asked = client.get(health).timeout(CONNECT).send().await;
        let seen = seen.lock().ok().and_then(|seen| *seen);
        match (seen, asked) {
            (Some(seen), _) => Ok(seen),
            (None, Err(error)) => {
                // Without a certificate seen, nothing was pinned that could have been refused.
                Err(match CallError::from_http(&host, Fingerprint::of(&Vec::new().into()), &error, false) {
                    CallError::Cut { host, reason } => CallError::Foreign { host, what: format!("no TLS there ({reason})") },
                    error => error,
                })
            }
            (None, Ok(_)) => Err(foreign("it showed no certificate")),
        }
    }

    /// Completes a refusal of the certificate with the one that is shown.
    pub async fn explain(&self, error: CallError) -> CallError {
        match error {
            CallError::Certificate { host, expected, seen: None } => {
                CallError::Certificate { host, expected, seen: Self::observe(&self.url).await.ok() }
            }
            error => error,
        }
    }

    /// Sends a request and waits at most `limit` for the head of its answer: of a stream it comes at once, of a single answer
    /// not before the proxy has it.
    async fn post(&self, method: &str, params: Value, limit: Duration) -> Result<Body, CallError> {
        let request = self.http.post(self.url.clone()).header(COOKIE, self.cookie.clone());
        let sent = tokio::time::timeout(limit, request.json(&RpcRequest::new(method, params)).send()).await;
        let response = match sent {
            Ok(sent) => sent.map_err(|error| CallError::from_http(&self.host, self.pinned, &error, false))?,
            Err(_) => return Err(self.cut("no answer in time")),
        };
        match response.status().as_u16() {
            200 => {}
            401 => return Err(CallError::Authentication { host: self.host.clone() }),
            503 => return Err(CallError::Unreachable { host: self.host.clone(), reason: "it is too busy (HTTP 503)".into() }),
            status => return Err(self.foreign(format!("HTTP status {status}"))),
        }
        let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if kind.split(';').next().map(str::trim) != Some("application/json") {
            return Err(self.foreign(format!("an answer of type {kind:?}")));
        }
        Ok(Body { response, buffer: BytesMut::new(), searched: 0, host: self.host.clone(), pinned: self.pinned })
    }

    fn result_of(&self, method: &str, answer: &[u8]) -> Result<Value, CallError> {
        let response: RpcResponse = serde_json::from_slice(answer)
            .map_err(|error| self.foreign(format!("its answer to {method} is no JSON-RPC: {error}")))?;
        match (response.error, response.result) {
            (Some(error), _) => Err(CallError::from_rpc(error)),
            (None, Some(result)) => Ok(result),
            (None, None) => Err(self.foreign(format!("its answer to {method} has neither result nor error"))),
        }
    }

    fn foreign(&self, what: String) -> CallError {
        CallError::Foreign { host: self.host.clone(), what }
    }

    fn cut(&self, reason: &str) -> CallError {
        CallError::Cut { host: self.host.clone(), reason: reason.to_owned() }
    }
}

impl<M: Method> Lines<M> {
    /// The next item; `None` when the stream is over. A stream that broke may look the same: what was expected of its end
    /// must show in its items.
    ///
    /// # Errors
    /// [`CallError`]; the stream is then over.
    pub async fn next(&mut self) -> Result<Option<M::Item>, CallError> {
        let Some(line) = self.body.line().await? else { return Ok(None) };
        parse(&line, &self.body.host).map(Some)
    }
}

impl Body {
    /// The next line that holds anything, without its end.
    async fn line(&mut self) -> Result<Option<Bytes>, CallError> {
        loop {
            while let Some(end) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let mut line = self.buffer.split_to(self.searched + end + 1);
                self.searched = 0;
                line.truncate(line.len() - 1);
                if !line.trim_ascii().is_empty() {
                    return Ok(Some(line.freeze()));
                }
            }
            // Keep-alive spaces stand in front of the next line; thousands of them are still an empty line.
            let spaces = self.buffer.len() - self.buffer.trim_ascii_start().len();
            let _ = self.buffer.split_to(spaces);
            self.searched = self.buffer.len();
            if self.buffer.len() > MAX_LINE {
                let what = format!("a line longer than {MAX_LINE} bytes");
                return Err(CallError::Foreign { host: self.host.clone(), what });
            }
            match self.piece().await? {
                Some(piece) => self.buffer.extend_from_slice(&piece),
                None => {
                    // An early error comes without a line end (xo-proxy-api.md §1.4).
                    let rest = self.buffer.split().freeze();
                    self.searched = 0;
                    return Ok((!rest.is_empty()).then_some(rest));
                }
            }
        }
    }

    async fn piece(&mut self) -> Result<Option<Bytes>, CallError> {
        match tokio::time::timeout(SILENCE, self.response.chunk()).await {
            Ok(piece) => piece.map_err(|error| CallError::from_http(&self.host, self.pinned, &error, true)),
            Err(_) => {
                Err(CallError::Cut { host: self.host.clone(), reason: format!("nothing heard for {} s", SILENCE.as_secs()) })
            }
        }
    }
}

fn parse<T: DeserializeOwned>(line: &[u8], host: &str) -> Result<T, CallError> {
    serde_json::from_slice(line)
        .map_err(|error| CallError::Foreign { host: host.to_owned(), what: format!("a line that cannot be read: {error}") })
}

fn to_value(params: &impl serde::Serialize) -> Value {
    serde_json::to_value(params).expect("parameters are plain data: no map with keys that are not strings")
}

/// An HTTP client that accepts one certificate only, and no detours.
///
/// # Errors
/// It cannot be made.
pub fn pinned_http(pinned: Fingerprint) -> reqwest::Result<reqwest::Client> {
    http(Trust::Pinned(pinned))
}

fn http(trust: Trust) -> reqwest::Result<reqwest::Client> {
    tls::install_provider();
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls::client_config(trust))
        .connect_timeout(CONNECT)
        .tcp_keepalive(Duration::from_secs(15))
        // A token must not follow a redirect, nor pass through whatever the environment calls a proxy.
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
}

fn cookie(token: &Token) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("authenticationToken={}", token.secret())).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn host_of(url: &Url) -> String {
    format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or(443))
}
