//! `backhaul doctor` and `backhaul support` against a proxy that answers what a test wants: words, exit codes, files.

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Output;

use serde_json::{Value, json};
use support::{FakeProxy, Reply, backhaul, stderr, stdout};

fn check(verdict: &str, object: &str) -> String {
    let mut check = json!({ "check": "nbd", "object": object, "verdict": verdict, "measured": "as it is", "took": 3 });
    if verdict != "pass" {
        check["fix"] = "turn the screw".into();
    }
    check.to_string()
}

async fn proxy(name: &'static str, lines: Vec<String>) -> FakeProxy {
    let status = json!({
        "name": name, "site": "here", "version": "0.1.0", "startedAt": 0, "running": [], "bytesPerSecond": 0, "fingerprint": ""
    });
    FakeProxy::with(vec![("proxy.status", Reply::Result(status)), ("doctor.run", Reply::Lines(lines))]).await
}

#[tokio::test]
async fn the_exit_code_is_that_of_the_worst_check() {
    for (verdicts, code) in [(vec!["pass"], 0), (vec!["pass", "warning"], 0), (vec!["warning", "fail", "pass"], 1)] {
        let dir = tempfile::tempdir().unwrap();
        let asked = proxy("a", verdicts.iter().map(|verdict| check(verdict, "pool x")).collect()).await;
        asked.add_to(dir.path(), "a").await;
        let ran = backhaul(dir.path(), &["doctor", "a"]).await;
        assert_eq!(ran.status.code(), Some(code), "{ran:?}");
        let said = stdout(&ran);
        assert_eq!(said.matches("do: turn the screw").count(), verdicts.iter().filter(|word| **word != "pass").count(), "{said}");
        let json = backhaul(dir.path(), &["doctor", "--json"]).await;
        assert_eq!(json.status.code(), Some(code));
        let lines: Vec<Value> = stdout(&json).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.iter().map(|line| line["verdict"].as_str().unwrap()).collect::<Vec<_>>(), verdicts);
        assert!(lines.iter().all(|line| line["proxy"] == "a"));
        let params = asked.calls().into_iter().find(|(method, _)| method == "doctor.run").unwrap().1;
        assert_eq!(params["version"], env!("CARGO_PKG_VERSION"));
        assert!(params["now"].as_i64().unwrap() > 1_600_000_000_000);
    }
}

#[tokio::test]
async fn all_proxies_are_asked_and_one_that_is_silent_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (proxy("one", vec![check("pass", "pool x")]).await, proxy("two", vec![check("warning", "pool y")]).await);
    one.add_to(dir.path(), "one").await;
    two.add_to(dir.path(), "two").await;
    let ran = backhaul(dir.path(), &["doctor"]).await;
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    let said = stdout(&ran);
    assert!(said.contains("✓ pass     one  nbd") && said.contains("! warning  two  nbd"), "{said}");
    assert!(said.ends_with("1 passed, 1 warning, 0 failed\n"), "{said}");
    let narrowed = stdout(&backhaul(dir.path(), &["doctor", "two"]).await);
    assert!(!narrowed.contains("pool x") && narrowed.contains("pool y"), "{narrowed}");
    assert_eq!(backhaul(dir.path(), &["doctor", "three"]).await.status.code(), Some(2));
    assert_eq!(backhaul(dir.path(), &["--proxy", "one", "doctor", "two"]).await.status.code(), Some(2));

    let path = dir.path().join("proxies.toml");
    let text = std::fs::read_to_string(&path).unwrap().replace(&two.url, "https://127.0.0.1:1");
    std::fs::write(&path, text).unwrap();
    let ran = backhaul(dir.path(), &["doctor"]).await;
    assert_eq!(ran.status.code(), Some(3), "{ran:?}");
    assert!(stdout(&ran).contains("pool x") && stderr(&ran).contains("127.0.0.1:1"), "{ran:?}");
}

async fn in_folder(config: &Path, folder: &Path, arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_backhaul"));
    command.arg("--config").arg(config).args(arguments).env_remove("RUST_LOG").current_dir(folder);
    command.stdin(std::process::Stdio::null()).output().await.unwrap()
}

#[tokio::test]
async fn a_bundle_is_a_file_for_its_owner_only_in_this_folder_only() {
    let dir = tempfile::tempdir().unwrap();
    let (config, folder) = (dir.path().join("config"), dir.path().join("a/b"));
    std::fs::create_dir_all(&folder).unwrap();
    let bundle = json!({ "fileName": "../../out of\u{1b}[2J here.txt", "text": "all of it\n" });
    let proxy = FakeProxy::with(vec![
        (
            "proxy.status",
            Reply::Result(json!({
                "name": "a", "version": "0.1.0", "startedAt": 0, "running": [], "bytesPerSecond": 0
            })),
        ),
        ("support.bundle", Reply::Result(bundle)),
    ])
    .await;
    proxy.add_to(&config, "a").await;

    let ran = in_folder(&config, &folder, &["support", "a"]).await;
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    let made: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(made, [folder.join("outof2Jhere.txt")], "{ran:?}");
    assert_eq!(std::fs::metadata(&made[0]).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_to_string(&made[0]).unwrap(), "all of it\n");
    std::fs::write(&made[0], "mine").unwrap();
    let again = in_folder(&config, &folder, &["support"]).await;
    assert_eq!(again.status.code(), Some(1), "a file that exists is left alone: {again:?}");
    assert_eq!(std::fs::read_to_string(&made[0]).unwrap(), "mine");

    let named = in_folder(&config, &folder, &["support", "--output", "x.txt", "--json"]).await;
    let told: Value = serde_json::from_str(&stdout(&named)).unwrap();
    assert_eq!(told, json!({ "proxy": "a", "file": "x.txt", "bytes": 10 }));
    assert_eq!(std::fs::metadata(folder.join("x.txt")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(stdout(&in_folder(&config, &folder, &["support", "--output", "-"]).await), "all of it\n");
}
