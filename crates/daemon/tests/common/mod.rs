//! What the tests of the daemon share: one in this process, and a client that trusts its certificate and no other.

#![allow(dead_code, reason = "each test file uses its part")]

pub mod process;

use std::path::Path;
use std::sync::Arc;

use api::{Event, Method, RpcError, RpcRequest};
use daemon::clock::SystemClock;
use daemon::config::Config;
use daemon::daemon::Running;
use daemon::runs::WorkerProgram;
use serde_json::Value;
use tls::{Fingerprint, Trust};

/// The token of every daemon in the tests.
pub const TOKEN: &str = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFG";

/// The configuration file of a daemon with its state in `dir`.
pub fn config_text(dir: &Path) -> String {
    let state = dir.join("state");
    format!("name = \"test\"\nsite = \"here\"\nlisten = \"127.0.0.1:0\"\nstate_dir = {state:?}\ntoken = {TOKEN:?}\n")
}

/// A licence for one proxy, without an end.
pub fn license() -> signed::License {
    let now = jiff::Timestamp::now();
    signed::License {
        id: uuid::Uuid::new_v4().to_string(),
        product: signed::PRODUCT.into(),
        holder: "test".into(),
        proxies: 1,
        issued_at: now,
        not_before: now,
        expires_at: None,
        bound_to: None,
    }
}

/// Starts a daemon in this process.
pub async fn start(dir: &Path) -> (Running, Client) {
    start_with(dir, "").await
}

/// Starts one with more lines in its configuration.
pub async fn start_with(dir: &Path, more: &str) -> (Running, Client) {
    let config = Config::parse(&dir.join("backhauld.toml"), &format!("{}{more}", config_text(dir))).unwrap();
    let program = WorkerProgram { path: env!("CARGO_BIN_EXE_backhauld").into(), arguments: vec!["worker".to_owned()] };
    let running = daemon::daemon::start(config, program, Arc::new(SystemClock)).await.unwrap();
    let client = Client::new(&running.address.to_string(), running.daemon.fingerprint());
    (running, client)
}

/// A client of one daemon.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    pub base: String,
    token: String,
}

impl Client {
    pub fn new(address: &str, fingerprint: Fingerprint) -> Self {
        tls::install_provider();
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::client_config(Trust::Pinned(fingerprint)))
            .no_proxy()
            .build()
            .unwrap();
        Self { http, base: format!("https://{address}"), token: TOKEN.to_owned() }
    }

    /// The same with another token.
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: token.to_owned(), ..self.clone() }
    }

    /// Whether its token is accepted.
    pub async fn is_let_in(&self) -> bool {
        let body = r#"{"id":0,"jsonrpc":"2.0","method":"system.getServerVersion"}"#;
        let status = self.authenticated("/api/v1").body(body).send().await.unwrap().status();
        assert!(status == 200 || status == 401, "{status}");
        status == 200
    }

    pub fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    pub fn authenticated(&self, path: &str) -> reqwest::RequestBuilder {
        self.request(reqwest::Method::POST, path).header("cookie", format!("other=1; authenticationToken={}", self.token))
    }

    /// Sends a body as it is; the answer as JSON.
    pub async fn raw(&self, body: impl Into<reqwest::Body>) -> Value {
        let response = self.authenticated("/api/v1").body(body).send().await.unwrap();
        assert_eq!(response.status(), 200);
        response.json().await.unwrap()
    }

    pub async fn call_raw(&self, method: &str, params: Value) -> Value {
        self.raw(serde_json::to_vec(&RpcRequest::new(method, params)).unwrap()).await
    }

    pub async fn try_call<M: Method>(&self, params: M::Params) -> Result<M::Item, RpcError> {
        let mut answer = self.call_raw(M::NAME, serde_json::to_value(params).unwrap()).await;
        match answer.get_mut("error") {
            Some(error) => Err(serde_json::from_value(error.take()).unwrap()),
            None => Ok(serde_json::from_value(answer["result"].take()).unwrap()),
        }
    }

    pub async fn call<M: Method>(&self, params: M::Params) -> M::Item {
        self.try_call::<M>(params).await.unwrap()
    }

    /// Opens a stream of lines.
    pub async fn stream(&self, method: &str, params: Value) -> Lines {
        let body = serde_json::to_vec(&RpcRequest::new(method, params)).unwrap();
        let response = self.authenticated("/api/v1/").body(body).send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(response.headers().get("content-encoding").is_none());
        Lines { response, rest: Vec::new(), header: false }
    }

    /// Every event of a run after a cursor, until its end.
    pub async fn events(&self, run: &str, cursor: u64) -> Vec<Event> {
        let mut lines = self.stream("run.watch", serde_json::json!({ "run": run, "cursor": cursor })).await;
        let mut events = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            events.push(serde_json::from_value(line).unwrap());
        }
        events
    }
}

/// The lines of an answer, read as XO's client reads them: an empty line is an error.
pub struct Lines {
    response: reqwest::Response,
    rest: Vec<u8>,
    header: bool,
}

impl Lines {
    pub async fn next(&mut self) -> Result<Option<Value>, String> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                let value: Value = serde_json::from_slice(&line).map_err(|error| format!("{line:?}: {error}"))?;
                if self.header {
                    return Ok(Some(value));
                }
                self.header = true;
                if value["result"]["$responseType"] != "ndjson" {
                    return Err(value.to_string());
                }
                continue;
            }
            match self.response.chunk().await {
                Ok(Some(chunk)) => self.rest.extend_from_slice(&chunk),
                Ok(None) if self.rest.is_empty() => return Ok(None),
                Ok(None) => return Err(format!("remainder {:?}", String::from_utf8_lossy(&self.rest))),
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}
