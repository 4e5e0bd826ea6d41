//! Runs the judges: programs that nobody here wrote, installed by their own package managers.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// No judge needs longer, and one that hangs must not hang the tests.
const PATIENCE: Duration = Duration::from_secs(180);

/// The folder of the scripts.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop")
}

fn installed(what: &str, command: &str) -> PathBuf {
    let path = folder().join(what);
    assert!(path.is_dir(), "the judges are not installed: run `{command}` at the root of the project, then this test again");
    path
}

/// Asks XO's engine; see `tests/interop/xo.mjs` for commands and answers.
pub async fn xo(command: &str, request: &Value) -> Value {
    installed("node_modules", "npm ci --ignore-scripts --prefix tests/interop");
    let mut node = Command::new("node");
    node.arg(folder().join("xo.mjs")).arg(command);
    ask(&format!("XO's engine ({command})"), node, request).await
}

/// Asks PyPI's XenAPI; see `tests/interop/list.py`.
pub async fn python(url: &str, credentials: &Value) -> Value {
    let packages =
        installed("python", "python3 -m pip install --target tests/interop/python --requirement tests/interop/requirements.txt");
    let mut python = Command::new("python3");
    python.arg(folder().join("list.py")).arg(url).env("PYTHONPATH", packages);
    ask("PyPI's XenAPI", python, credentials).await
}

async fn ask(who: &str, mut command: Command, request: &Value) -> Value {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("{who} cannot be started ({error}): is its interpreter installed?"));
    let mut stdin = child.stdin.take().expect("stdin is piped");
    stdin.write_all(request.to_string().as_bytes()).await.expect("the request is sent");
    drop(stdin);
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output())
        .await
        .unwrap_or_else(|_| panic!("{who} did not answer in {} s", PATIENCE.as_secs()))
        .expect("its output can be read");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{who} failed ({}):\n{log}", output.status);
    // Shown only when the test fails.
    if !log.trim().is_empty() {
        println!("{who} says:\n{log}");
    }
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{who} answered no JSON ({error}): {}", String::from_utf8_lossy(&output.stdout)))
}

/// Asserts that two files have the same bytes, and names the first block of 2 MiB that differs.
pub fn assert_same(what: &str, one: &Path, other: &Path) {
    let read =
        |path: &Path| std::fs::read(path).unwrap_or_else(|error| panic!("{what}: cannot read {}: {error}", path.display()));
    let (left, right) = (read(one), read(other));
    assert_eq!(left.len(), right.len(), "{what}: sizes of {} and {}", one.display(), other.display());
    let differing = left.chunks(2 << 20).zip(right.chunks(2 << 20)).enumerate().filter(|(_, (left, right))| left != right);
    let blocks: Vec<usize> = differing.map(|(index, _)| index).collect();
    assert!(blocks.is_empty(), "{what}: {} and {} differ in the blocks {blocks:?}", one.display(), other.display());
}
