//! A proxy that says what a test wants, and the console's binary run against it.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod lab;
pub mod processes;
pub mod relay;

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::Path;
use std::process::Output;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tls::SelfSigned;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

pub const TOKEN: &str = "0123456789abcdef";

/// What the fake answers to a method.
#[derive(Clone)]
pub enum Reply {
    /// A result.
    Result(Value),
    /// An error: code, message, data.
    Error(i64, &'static str, Value),
    /// A stream of lines as they are, then the end of the connection.
    Lines(Vec<String>),
    /// A stream of lines as they are, that stays open.
    Open(Vec<String>),
}

type Handler = Box<dyn Fn(&str, &Value) -> Option<Reply> + Send + Sync>;
type Calls = Arc<Mutex<Vec<(String, Value)>>>;

pub struct FakeProxy {
    pub url: String,
    pub fingerprint: String,
    calls: Calls,
}

impl FakeProxy {
    /// Answers what `handler` says; without an answer there is no such method.
    pub async fn start(handler: impl Fn(&str, &Value) -> Option<Reply> + Send + Sync + 'static) -> Self {
        tls::install_provider();
        let certificate = SelfSigned::generate(&["localhost", "127.0.0.1"]).unwrap();
        let acceptor = TlsAcceptor::from(certificate.server_config().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let calls = Calls::default();
        let (handler, seen): (Arc<Handler>, _) = (Arc::new(Box::new(handler)), Arc::clone(&calls));
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, handler, seen) = (acceptor.clone(), Arc::clone(&handler), Arc::clone(&seen));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(socket).await else { return };
                    let service =
                        hyper::service::service_fn(move |request| answer(request, Arc::clone(&handler), Arc::clone(&seen)));
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { url, fingerprint: certificate.fingerprint().unwrap().to_string(), calls }
    }

    /// One that answers a fixed table.
    pub async fn with(answers: Vec<(&'static str, Reply)>) -> Self {
        let answers: HashMap<_, _> = answers.into_iter().collect();
        Self::start(move |method, _| answers.get(method).cloned()).await
    }

    /// Methods called so far, with their parameters.
    pub fn calls(&self) -> Vec<(String, Value)> {
        self.calls.lock().unwrap().clone()
    }

    /// Adds it to the configuration in `dir`, as a person would.
    pub async fn add_to(&self, dir: &Path, name: &str) {
        let token = dir.join("token");
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(&token, TOKEN).unwrap();
        let token = token.to_str().unwrap();
        let added =
            backhaul(dir, &["proxy", "add", name, &self.url, "--token-file", token, "--fingerprint", &self.fingerprint]).await;
        assert!(added.status.success(), "{added:?}");
    }
}

/// A deployed proxy, as its deployer lists it.
pub fn deployed(id: &str, name: &str, url: &str, fingerprint: &str) -> Value {
    let mut answers = api::deploy::Answers::default();
    for (field, value) in [("name", name), ("pool", "p-1"), ("image", "/srv/appliance.xva")] {
        assert!(answers.set(field, value));
    }
    let deployed = api::Deployed {
        id: id.into(),
        name: name.into(),
        pool: "p-1".into(),
        pool_name: "paris".into(),
        vm: Some(format!("vm-{name}")),
        url: Some(url.into()),
        fingerprint: Some(fingerprint.into()),
        state: api::DeployedState::Ready,
        spec: api::DeploySpec::from_answers(&answers).unwrap(),
        license: None,
        run: "run-1".into(),
        ready_at: Some(0),
        copied_at: None,
    };
    serde_json::to_value(deployed).unwrap()
}

async fn answer(
    request: Request<Incoming>,
    handler: Arc<Handler>,
    calls: Calls,
) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    let (send, receive) = mpsc::channel::<Bytes>(16);
    let stream = futures::stream::unfold(receive, |mut receive| async move {
        receive.recv().await.map(|bytes| (Ok::<_, Infallible>(Frame::data(bytes)), receive))
    });
    let mut response = Response::new(StreamBody::new(stream));
    let cookie = request.headers().get("cookie").and_then(|cookie| cookie.to_str().ok()).unwrap_or_default().to_owned();
    if request.uri().path() == "/healthz" {
        return Ok(response);
    }
    // What begins with the token is one of its successors.
    if !cookie.starts_with(&format!("authenticationToken={TOKEN}")) {
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        return Ok(response);
    }
    response.headers_mut().insert("content-type", "application/json".parse().unwrap());
    let bundle = request.uri().path() == api::BUNDLE_PATH;
    let body = request.into_body().collect().await.unwrap().to_bytes();
    if bundle {
        calls.lock().unwrap().push(("bundle".to_owned(), String::from_utf8_lossy(&body).into()));
        let received = json!({ "bundle": "its sum", "bytes": body.len() });
        let _ = send.send(received.to_string().into()).await;
        return Ok(response);
    }
    let call: Value = serde_json::from_slice(&body).unwrap();
    let (method, params) = (call["method"].as_str().unwrap().to_owned(), call["params"].clone());
    calls.lock().unwrap().push((method.clone(), params.clone()));
    let reply = handler(&method, &params).unwrap_or(Reply::Error(-32601, "method not found", Value::Null));
    tokio::spawn(async move {
        let stays_open = matches!(reply, Reply::Open(_));
        let pieces: Vec<String> = match reply {
            // Spaces first, as from a daemon that keeps a slow call alive.
            Reply::Result(result) => vec![" ".into(), json!({ "jsonrpc": "2.0", "id": 0, "result": result }).to_string()],
            Reply::Error(code, message, data) => {
                vec![
                    json!({ "jsonrpc": "2.0", "id": 0, "error": { "code": code, "message": message, "data": data } }).to_string(),
                ]
            }
            Reply::Lines(lines) | Reply::Open(lines) => {
                let header = json!({ "jsonrpc": "2.0", "id": 0, "result": { "$responseType": "ndjson" } });
                std::iter::once(header.to_string()).chain(lines).map(|line| format!("  {line}\n")).collect()
            }
        };
        for piece in pieces {
            let _ = send.send(piece.into()).await;
        }
        if stays_open {
            send.closed().await;
        }
    });
    Ok(response)
}

/// Runs the console's binary with a configuration folder.
pub async fn backhaul(config: &Path, arguments: &[&str]) -> Output {
    tokio::process::Command::new(env!("CARGO_BIN_EXE_backhaul"))
        .arg("--config")
        .arg(config)
        .args(arguments)
        .env_remove("RUST_LOG")
        .env("TZ", "UTC")
        .stdin(std::process::Stdio::null())
        .output()
        .await
        .unwrap()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}
