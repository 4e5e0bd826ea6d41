//! A scripted XAPI: it answers as it should unless a test tells it to misbehave.

// Every test binary uses a part of it.
#![allow(dead_code)]

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tls::{SelfSigned, Trust};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use xapi::{Client, Connect, Timing};

/// What a call is answered with, once, instead of the usual.
#[derive(Clone)]
pub enum Answer {
    Value(Value),
    Error(&'static str, Vec<String>),
    Status(u16),
    HangUp,
}

/// What a data handler does after it has read the head of the request.
#[derive(Clone)]
pub enum Step {
    Send(Vec<u8>),
    /// Reads that many bytes of the body.
    Read(usize),
    Succeed(&'static str),
    Fail(&'static str, &'static str),
    /// The task disappears.
    Vanish,
    /// The connection goes without a word, not even TLS's.
    Cut,
    /// Nothing more happens until the client gives up.
    Hang,
}

pub fn ok_head() -> Step {
    Step::Send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nCache-Control: no-cache\r\n\r\n".to_vec())
}

pub fn status(status: u16) -> Step {
    Step::Send(format!("HTTP/1.1 {status} Scripted\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").into_bytes())
}

#[derive(Default)]
struct Script {
    answers: HashMap<&'static str, VecDeque<Answer>>,
    data: VecDeque<Vec<Step>>,
    tasks: HashMap<String, Value>,
    calls: Vec<(String, Vec<Value>)>,
    requests: Vec<String>,
    received: Vec<u8>,
    logins: u32,
}

pub struct Pool {
    pub certificate: SelfSigned,
    pub port: u16,
    script: Arc<Mutex<Script>>,
    /// Counts changes, so that nobody has to sleep.
    changes: Arc<watch::Sender<u64>>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Impatient, so that tests that wait something out take no time.
pub fn timing() -> Timing {
    Timing {
        inactivity: Duration::from_secs(20),
        upload_head: Duration::from_millis(200),
        settle: Duration::from_millis(100),
        busy_attempts: 4,
        busy_delay: Duration::from_millis(1),
        read_delay: Duration::from_millis(1),
        event_wait: Duration::from_secs(1),
        poll_first: Duration::from_millis(1),
        poll_most: Duration::from_millis(20),
        ..Timing::default()
    }
}

impl Pool {
    pub async fn start() -> Self {
        Self::start_with(SelfSigned::generate(&["localhost"]).unwrap()).await
    }

    pub async fn start_with(certificate: SelfSigned) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let acceptor = TlsAcceptor::from(certificate.server_config().unwrap());
        let script = Arc::new(Mutex::new(Script::default()));
        let changes = Arc::new(watch::Sender::new(0));
        let (shared, changed) = (Arc::clone(&script), Arc::clone(&changes));
        let server = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, script, changes) = (acceptor.clone(), Arc::clone(&shared), Arc::clone(&changed));
                tokio::spawn(async move {
                    if let Ok(stream) = acceptor.accept(socket).await {
                        let _ = serve(BufReader::new(stream), script, changes).await;
                    }
                });
            }
        });
        Self { certificate, port, script, changes, server }
    }

    pub fn connect(&self) -> Connect {
        let trust = Trust::Pinned(self.certificate.fingerprint().unwrap());
        Connect { timing: timing(), ..Connect::new(format!("https://127.0.0.1:{}", self.port), "root", "hunter2", trust) }
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.connect()).await.unwrap()
    }

    pub fn answer(&self, method: &'static str, answers: impl IntoIterator<Item = Answer>) {
        self.script.lock().unwrap().answers.entry(method).or_default().extend(answers);
    }

    pub fn data(&self, steps: impl IntoIterator<Item = Step>) {
        self.script.lock().unwrap().data.push_back(steps.into_iter().collect());
    }

    pub fn settle(&self, task: &str, status: &str, result: &str, error_info: &[&str]) {
        settle(&self.script, &self.changes, task, status, result, error_info);
    }

    /// Parameters of all calls of a method so far, without the session.
    pub fn calls(&self, method: &str) -> Vec<Vec<Value>> {
        let script = self.script.lock().unwrap();
        script.calls.iter().filter(|(name, _)| name == method).map(|(_, params)| params.clone()).collect()
    }

    /// Request lines of data handlers.
    pub fn requests(&self) -> Vec<String> {
        self.script.lock().unwrap().requests.clone()
    }

    pub fn received(&self) -> Vec<u8> {
        self.script.lock().unwrap().received.clone()
    }

    pub fn logins(&self) -> u32 {
        self.script.lock().unwrap().logins
    }

    pub fn tasks(&self) -> usize {
        self.script.lock().unwrap().tasks.len()
    }

    /// Waits until something holds; whoever waits in vain is stopped by a limit that no timing depends on.
    pub async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let mut changes = self.changes.subscribe();
        let wait = async {
            while !holds(self) {
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap_or_else(|_| panic!("never: {what}"));
    }
}

fn settle(script: &Mutex<Script>, changes: &watch::Sender<u64>, task: &str, status: &str, result: &str, error_info: &[&str]) {
    if let Some(record) = script.lock().unwrap().tasks.get_mut(task) {
        *record = json!({"uuid": task, "status": status, "progress": 1.0, "result": result, "error_info": error_info});
    }
    changes.send_modify(|count| *count += 1);
}

async fn serve(
    mut stream: BufReader<TlsStream<TcpStream>>,
    script: Arc<Mutex<Script>>,
    changes: Arc<watch::Sender<u64>>,
) -> io::Result<()> {
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let mut length = 0;
        loop {
            let mut header = String::new();
            stream.read_line(&mut header).await?;
            if header.trim().is_empty() {
                break;
            }
            let (name, value) = header.split_once(':').unwrap();
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().unwrap();
            }
            assert!(!name.eq_ignore_ascii_case("transfer-encoding"), "hosts do not understand chunks");
        }
        if !line.starts_with("POST /jsonrpc ") {
            return handle_data(&line, stream, &script, &changes).await;
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        let request: Value = serde_json::from_slice(&body).unwrap();
        let method = request["method"].as_str().unwrap().to_owned();
        let mut params = request["params"].as_array().unwrap().clone();
        if method != "session.login_with_password" {
            params.remove(0);
        }
        let answer = {
            let mut script = script.lock().unwrap();
            script.calls.push((method.clone(), params.clone()));
            script.answers.get_mut(method.as_str()).and_then(VecDeque::pop_front)
        };
        changes.send_modify(|count| *count += 1);
        let answer = match answer {
            Some(answer) => answer,
            None => usual(&method, &params, &script, &changes).await,
        };
        let (status, body) = match answer {
            Answer::Value(value) => (200, json!({"jsonrpc": "2.0", "id": request["id"], "result": value})),
            Answer::Error(code, params) => {
                (200, json!({"jsonrpc": "2.0", "id": request["id"], "error": {"code": 1, "message": code, "data": params}}))
            }
            Answer::Status(status) => (status, Value::Null),
            Answer::HangUp => return Ok(()),
        };
        let body = body.to_string();
        let head =
            format!("HTTP/1.1 {status} Scripted\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        stream.flush().await?;
    }
}

async fn usual(method: &str, params: &[Value], script: &Mutex<Script>, changes: &watch::Sender<u64>) -> Answer {
    if method == "event.from" {
        // Tells nothing but that something changed since the token.
        let seen = params[1].as_str().and_then(|token| token.parse().ok()).unwrap_or(0);
        let count = changes.subscribe().wait_for(|count| *count > seen).await.map_or(0, |count| *count);
        return Answer::Value(json!({"events": [], "valid_ref_counts": {}, "token": count.to_string()}));
    }
    let mut script = script.lock().unwrap();
    let reference = params.first().and_then(Value::as_str).unwrap_or_default().to_owned();
    match method {
        "session.login_with_password" => {
            script.logins += 1;
            Answer::Value(json!(format!("OpaqueRef:secret-{}", script.logins)))
        }
        "task.create" => {
            let reference = format!("OpaqueRef:task-{}", script.calls.len());
            script.tasks.insert(reference.clone(), json!({"status": "pending"}));
            Answer::Value(json!(reference))
        }
        "task.get_record" => match script.tasks.get(&reference) {
            Some(task) => Answer::Value(task.clone()),
            None => Answer::Error("HANDLE_INVALID", vec!["task".into(), reference]),
        },
        "task.destroy" => {
            script.tasks.remove(&reference);
            Answer::Value(json!(""))
        }
        method if method.starts_with("Async.") => {
            let reference = format!("OpaqueRef:task-{}", script.calls.len());
            script.tasks.insert(reference.clone(), json!({"status": "success", "result": "<value>OpaqueRef:made</value>"}));
            Answer::Value(json!(reference))
        }
        _ => Answer::Value(json!("")),
    }
}

async fn handle_data(
    line: &str,
    mut stream: BufReader<TlsStream<TcpStream>>,
    script: &Mutex<Script>,
    changes: &watch::Sender<u64>,
) -> io::Result<()> {
    let steps = {
        let mut script = script.lock().unwrap();
        script.requests.push(line.trim().to_owned());
        script.data.pop_front().unwrap_or_else(|| vec![status(404)])
    };
    changes.send_modify(|count| *count += 1);
    let path = line.split(' ').nth(1).unwrap();
    let url: url::Url = format!("https://host{path}").parse().unwrap();
    let task = url.query_pairs().find(|(name, _)| name == "task_id").map(|(_, value)| value.into_owned()).unwrap();
    for step in steps {
        match step {
            Step::Send(bytes) => {
                stream.write_all(&bytes).await?;
                stream.flush().await?;
            }
            Step::Read(length) => {
                let mut body = vec![0; length];
                stream.read_exact(&mut body).await?;
                script.lock().unwrap().received.extend(body);
                changes.send_modify(|count| *count += 1);
            }
            Step::Succeed(result) => settle(script, changes, &task, "success", result, &[]),
            Step::Fail(code, param) => settle(script, changes, &task, "failure", "", &[code, param]),
            Step::Vanish => drop(script.lock().unwrap().tasks.remove(&task)),
            Step::Cut => return Ok(()),
            Step::Hang => {
                let mut rest = [0; 64];
                while stream.read(&mut rest).await? > 0 {}
                return Ok(());
            }
        }
    }
    stream.shutdown().await
}
