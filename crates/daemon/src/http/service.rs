//! Requests to answers: `/healthz`, `/metrics`, `/api/v1`, and nothing else.

use std::sync::Arc;
use std::time::{Duration, Instant};

use api::{RpcError, RpcResponse};
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::Incoming;
use hyper::header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, COOKIE, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use super::{metrics, ndjson, upload};
use crate::daemon::Daemon;
use crate::fault::Fault;
use crate::redact::percent_decoded;
use crate::rpc::{self, Answer};

/// The longest request, bytes. Only whoever shows the token gets that far.
const LONGEST: usize = 64 << 20;
/// For the whole body of a request.
const SLOWEST: Duration = Duration::from_secs(60);

/// Body of an answer.
pub type Body = UnsyncBoxBody<Bytes, ndjson::BrokenOff>;

/// Answers one request.
pub async fn answer(daemon: Arc<Daemon>, request: Request<Incoming>) -> Response<Body> {
    let mut response = route(daemon, request).await;
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn route(daemon: Arc<Daemon>, request: Request<Incoming>) -> Response<Body> {
    let reading = matches!(*request.method(), Method::GET | Method::HEAD);
    match request.uri().path() {
        "/healthz" if reading => plain(StatusCode::OK, "ok"),
        "/metrics" if reading => {
            if daemon.config.metrics_token && !authenticated(&daemon, request.headers()) {
                return unauthorized();
            }
            let mut response = text(StatusCode::OK, metrics::exposition(&daemon).await);
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
            response
        }
        "/healthz" | "/metrics" => not_allowed(request.method(), "GET, HEAD"),
        "/api/v1" | "/api/v1/" if request.method() == Method::POST => {
            if authenticated(&daemon, request.headers()) {
                call(daemon, request.into_body()).await
            } else {
                unauthorized()
            }
        }
        api::BUNDLE_PATH if request.method() == Method::POST => {
            if authenticated(&daemon, request.headers()) {
                bundle(&daemon, request.into_body()).await
            } else {
                unauthorized()
            }
        }
        "/api/v1" | "/api/v1/" | api::BUNDLE_PATH => not_allowed(request.method(), "POST"),
        _ => plain(StatusCode::NOT_FOUND, "Not Found"),
    }
}

/// Whether the request shows a token that counts, in the cookie of XO's clients or as a bearer.
fn authenticated(daemon: &Daemon, headers: &HeaderMap) -> bool {
    let now = daemon.now();
    let is_it = |shown: &str| daemon.tokens.accept(shown, now);
    let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok()).flat_map(|line| line.split(';'));
    let cookie = cookies.filter_map(|pair| pair.trim().strip_prefix("authenticationToken="));
    let bearer = headers.get_all(AUTHORIZATION).iter().filter_map(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    // XO's clients encode the value as a component of a URL.
    cookie.chain(bearer).any(|shown| is_it(shown) || is_it(&percent_decoded(shown)))
}

/// Takes an upgrade bundle.
async fn bundle(daemon: &Daemon, body: Incoming) -> Response<Body> {
    match upload::receive(daemon, body).await {
        Ok(received) => json_response(full(json!(received).to_string())),
        Err(refused) => {
            let mut response = json_response(full(json!(refused.report()).to_string()));
            *response.status_mut() = refused.status();
            closing(response)
        }
    }
}

async fn call(daemon: Arc<Daemon>, body: Incoming) -> Response<Body> {
    let read = tokio::time::timeout(SLOWEST, Limited::new(body, LONGEST).collect()).await;
    let body = match read {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            return closing(plain(StatusCode::PAYLOAD_TOO_LARGE, "Payload Too Large"));
        }
        Ok(Err(_)) => return closing(plain(StatusCode::BAD_REQUEST, "Bad Request")),
        Err(_) => return closing(plain(StatusCode::REQUEST_TIMEOUT, "Request Timeout")),
    };
    let request = match Envelope::read(&body) {
        Ok(request) => request,
        Err(refused) => return document(Some(refused.0), Err(refused.1)),
    };
    drop(body);
    let Envelope { id, method, params } = request;

    let begun = Instant::now();
    // A task of its own: whoever hangs up in the middle changes nothing, and a panic is an error of this call only.
    let working = tokio::spawn(rpc::dispatch(daemon, method.clone(), params));
    let answer = working.await.unwrap_or_else(|error| {
        tracing::error!(method, %error, "a call broke down");
        Err(api::ErrorReport::new("INTERNAL", format!("{method} broke down in the daemon; its log says where")).into())
    });
    tracing::debug!(method, milliseconds = begun.elapsed().as_millis() as u64, ok = answer.is_ok(), "call");
    match answer {
        Ok(Answer::Scalar(value)) => document(id, Ok(value)),
        Ok(Answer::Stream(items)) => {
            let body = StreamBody::new(ndjson::body(id.unwrap_or_default(), items, ndjson::KEEP_ALIVE));
            json_response(BodyExt::boxed_unsync(body))
        }
        Err(fault) => document(id, Err(fault)),
    }
}

/// A request as it came. Without `id` it is a notification: executed, and answered without one.
struct Envelope {
    id: Option<Value>,
    method: String,
    params: Value,
}

impl Envelope {
    fn read(body: &[u8]) -> Result<Self, Box<(Value, Fault)>> {
        let value: Value = serde_json::from_slice(body).map_err(|_| Box::new((Value::Null, Fault::InvalidJson)))?;
        let invalid = |id: &Value, message: &str| Box::new((id.clone(), Fault::InvalidRequest(message.to_owned())));
        let Value::Object(mut object) = value else {
            return Err(invalid(&Value::Null, "invalid JSON-RPC request: expected one object"));
        };
        let id = object.remove("id");
        let shown = id.clone().unwrap_or_default();
        match object.get("jsonrpc") {
            None => {}
            Some(Value::String(version)) if version == "2.0" => {}
            Some(other) => return Err(invalid(&shown, &format!("invalid version: {other}"))),
        }
        if !matches!(shown, Value::Null | Value::Number(_) | Value::String(_)) {
            return Err(invalid(&Value::Null, "invalid identifier: expected a number or a string"));
        }
        let method = match object.remove("method") {
            Some(Value::String(method)) => method,
            Some(other) => return Err(invalid(&shown, &format!("invalid method: {other}"))),
            None => return Err(invalid(&shown, "invalid JSON-RPC request: method is missing")),
        };
        let params = match object.remove("params") {
            None => json!({}),
            Some(params @ (Value::Object(_) | Value::Array(_))) => params,
            Some(other) => return Err(invalid(&shown, &format!("invalid params: {other}"))),
        };
        Ok(Self { id, method, params })
    }
}

fn document(id: Option<Value>, answer: Result<Value, Fault>) -> Response<Body> {
    let (result, error) = match answer {
        // XO's client reads a property of whatever it gets.
        Ok(Value::Null) => (Some(Value::Bool(true)), None),
        Ok(value) => (Some(value), None),
        Err(fault) => (None, Some(RpcError::from(fault))),
    };
    let is_notification = id.is_none();
    let response = RpcResponse { jsonrpc: "2.0".into(), id: id.unwrap_or_default(), result, error };
    let mut value = serde_json::to_value(response).unwrap_or_default();
    if is_notification && let Some(object) = value.as_object_mut() {
        object.remove("id");
    }
    json_response(full(value.to_string()))
}

fn json_response(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn plain(status: StatusCode, words: &'static str) -> Response<Body> {
    text(status, words)
}

fn closing(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

/// The body has not been read, and will not be.
fn unauthorized() -> Response<Body> {
    closing(plain(StatusCode::UNAUTHORIZED, "Unauthorized"))
}

fn not_allowed(method: &Method, allowed: &'static str) -> Response<Body> {
    let mut response = if method == Method::OPTIONS {
        plain(StatusCode::OK, "")
    } else {
        plain(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed")
    };
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &str) -> (Value, i64) {
        let refused = Envelope::read(body.as_bytes()).err().unwrap();
        (refused.0, RpcError::from(refused.1).code)
    }

    #[test]
    fn what_is_no_request_is_told_apart() {
        assert_eq!(refused("garbage"), (Value::Null, -32700));
        assert_eq!(refused(""), (Value::Null, -32700));
        assert_eq!(refused("[]"), (Value::Null, -32600));
        assert_eq!(refused(r#"{"id":7}"#), (json!(7), -32600));
        assert_eq!(refused(r#"{"id":7,"method":5}"#), (json!(7), -32600));
        assert_eq!(refused(r#"{"id":7,"jsonrpc":"1.0","method":"x"}"#), (json!(7), -32600));
        assert_eq!(refused(r#"{"id":7,"method":"x","params":3}"#), (json!(7), -32600));
    }

    #[test]
    fn what_xo_sends_is_a_request() {
        let request = Envelope::read(br#"{"id":0,"jsonrpc":"2.0","method":"system.getServerVersion"}"#).ok().unwrap();
        assert_eq!((request.id, request.params), (Some(json!(0)), json!({})));
        assert!(Envelope::read(br#"{"method":"x"}"#).ok().unwrap().id.is_none());
    }

    #[test]
    fn a_token_may_come_encoded() {
        assert_eq!(percent_decoded("a%2Fb+c&d"), "a/b+c&d");
    }
}
