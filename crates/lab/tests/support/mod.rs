//! A client made of nothing but HTTP requests: what a pool answers is looked at byte by byte.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lab::{Lab, LabSpec, PoolHandle};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A lab with one small pool, a client of it, and a session.
pub struct Bench {
    pub dir: TempDir,
    pub lab: Lab,
    pub client: Client,
}

/// Speaks to one host of a pool.
#[derive(Clone)]
pub struct Client {
    pub http: reqwest::Client,
    pub url: String,
    pub session: String,
}

/// An API failure: code and parameters.
pub type Failure = (String, Vec<String>);

impl Bench {
    pub async fn single() -> Self {
        Self::of(&LabSpec::single()).await
    }

    pub async fn of(spec: &LabSpec) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let lab = Lab::open(dir.path(), spec).await.unwrap();
        let client = Client::login(lab.pool()).await;
        Self { dir, lab, client }
    }

    pub fn pool(&self) -> &PoolHandle {
        self.lab.pool()
    }
}

impl Client {
    /// Without a session.
    pub fn new(pool: &PoolHandle, host: usize) -> Self {
        let tls = tls::client_config(tls::Trust::Pinned(pool.fingerprint()));
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .unwrap();
        Self { http, url: pool.host_url(host), session: String::new() }
    }

    pub async fn login(pool: &PoolHandle) -> Self {
        let mut client = Self::new(pool, 0);
        let answer = client.raw("session.login_with_password", json!([pool.username(), pool.password(), "1.1", "test"])).await;
        client.session = answer.unwrap().as_str().unwrap().to_owned();
        client
    }

    /// A call as it is, without a session put before the parameters.
    pub async fn raw(&self, method: &str, params: Value) -> Result<Value, Failure> {
        let call = json!({ "jsonrpc": "2.0", "method": method, "params": params, "id": 7 });
        let answer = self.http.post(format!("{}/jsonrpc", self.url)).json(&call).send().await.unwrap();
        assert_eq!(answer.headers()["content-type"], "application/json");
        let answer: Value = answer.json().await.unwrap();
        assert_eq!(answer["id"], 7);
        match answer.get("error") {
            Some(error) => {
                assert_eq!(error["code"], 1);
                let params = error["data"].as_array().unwrap().iter().map(|param| param.as_str().unwrap().to_owned());
                Err((error["message"].as_str().unwrap().to_owned(), params.collect()))
            }
            None => Ok(answer["result"].clone()),
        }
    }

    /// A call with the session.
    pub async fn try_call(&self, method: &str, params: &[Value]) -> Result<Value, Failure> {
        let params: Vec<Value> = std::iter::once(json!(self.session)).chain(params.iter().cloned()).collect();
        self.raw(method, json!(params)).await
    }

    /// A call that succeeds.
    pub async fn call(&self, method: &str, params: &[Value]) -> Value {
        self.try_call(method, params).await.unwrap_or_else(|failure| panic!("{method} {params:?}: {failure:?}"))
    }

    /// A call that gives a text.
    pub async fn text(&self, method: &str, params: &[Value]) -> String {
        self.call(method, params).await.as_str().unwrap().to_owned()
    }

    /// Waits for a task by events and gives its record.
    pub async fn wait(&self, task: &str) -> Value {
        let mut token = String::new();
        loop {
            let record = self.call("task.get_record", &[json!(task)]).await;
            if record["status"] != "pending" && record["status"] != "cancelling" {
                return record;
            }
            let batch = self.call("event.from", &[json!([format!("task/{task}")]), json!(token), json!(10.1)]).await;
            token = batch["token"].as_str().unwrap().to_owned();
        }
    }

    /// An asynchronous call that succeeds; gives the reference in the task's result.
    pub async fn run(&self, method: &str, params: &[Value]) -> String {
        let task = self.text(&format!("Async.{method}"), params).await;
        let record = self.wait(&task).await;
        assert_eq!(record["status"], "success", "{method}: {record}");
        self.call("task.destroy", &[json!(task)]).await;
        let result = record["result"].as_str().unwrap();
        result.trim_start_matches("<value>").trim_end_matches("</value>").to_owned()
    }

    /// A task for a transfer.
    pub async fn task(&self) -> String {
        self.text("task.create", &[json!("[XO] test"), json!("")]).await
    }

    /// `GET` on a data handler with session and task.
    pub async fn get(&self, path: &str, query: &[(&str, &str)]) -> (reqwest::Response, String) {
        let task = self.task().await;
        let url = self.address(path, query, &task);
        (self.http.get(url).send().await.unwrap(), task)
    }

    /// `PUT` of a file on a data handler; gives the status and the task.
    pub async fn put(&self, path: &str, query: &[(&str, &str)], body: Vec<u8>) -> (reqwest::Result<reqwest::Response>, String) {
        let task = self.task().await;
        let url = self.address(path, query, &task);
        (self.http.put(url).body(body).send().await, task)
    }

    pub fn address(&self, path: &str, query: &[(&str, &str)], task: &str) -> String {
        let mut url = url::Url::parse(&format!("{}{path}", self.url)).unwrap();
        url.query_pairs_mut().extend_pairs(query).append_pair("session_id", &self.session).append_pair("task_id", task);
        url.into()
    }

    /// A snapshot of a machine, no template any more, and the VDIs of its disks in order.
    pub async fn snapshot(&self, vm: &str) -> (String, Vec<String>) {
        let snapshot = self.run("VM.snapshot", &[json!(vm), json!("snap")]).await;
        self.call("VM.set_is_a_template", &[json!(snapshot), json!(false)]).await;
        (snapshot.clone(), self.disks(&snapshot).await)
    }

    /// The VDIs of a machine's disks, in order.
    pub async fn disks(&self, vm: &str) -> Vec<String> {
        let mut disks = Vec::new();
        for vbd in self.call("VM.get_VBDs", &[json!(vm)]).await.as_array().unwrap() {
            let record = self.call("VBD.get_record", std::slice::from_ref(vbd)).await;
            if record["type"] == "Disk" {
                disks.push((record["userdevice"].as_str().unwrap().to_owned(), record["VDI"].as_str().unwrap().to_owned()));
            }
        }
        disks.sort();
        disks.into_iter().map(|(_, vdi)| vdi).collect()
    }

    pub async fn uuid(&self, class: &str, reference: &str) -> String {
        self.text(&format!("{class}.get_uuid"), &[json!(reference)]).await
    }
}

/// The content of a disk of the pool.
pub fn content(pool: &PoolHandle, uuid: &str) -> Vec<u8> {
    let disk = pool.disk(uuid).unwrap();
    let mut bytes = vec![0; disk.size() as usize];
    disk.read_at(0, &mut bytes).unwrap();
    bytes
}

/// Runs a program if it is there; `None` when it is not.
pub fn tool(program: &str, args: &[&std::ffi::OsStr]) -> Option<String> {
    let output = match Command::new(program).args(args).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => panic!("{program}: {error}"),
    };
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Turns any image into a raw file with `qemu-img`; `None` where that is missing.
pub fn to_raw(image: &Path) -> Option<Vec<u8>> {
    let raw = image.with_extension("converted");
    tool(
        "qemu-img",
        &["convert".as_ref(), "-f".as_ref(), "vpc".as_ref(), "-O".as_ref(), "raw".as_ref(), image.as_ref(), raw.as_ref()],
    )?;
    Some(std::fs::read(raw).unwrap())
}

/// Waits until something holds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
