//! The whole story with the real programs: a lab, a job, a key, a delta that moves only what changed, a restore that is
//! the same to the byte, and nothing left running.

mod support;

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use support::lab::{Lab, PATIENCE};
use support::{backhaul, stderr};

async fn gone(processes: &[Pid]) {
    let waiting = async {
        while processes.iter().any(|pid| test_kill_process(*pid).is_ok()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("the daemons end with the lab");
}

fn moved(events: &[Value]) -> u64 {
    let last = events.last().unwrap();
    assert_eq!((&last["event"], &last["outcome"]), (&"runEnded".into(), &"success".into()), "{last}");
    last["summary"]["bytes"].as_u64().unwrap()
}

#[tokio::test]
async fn a_vm_is_backed_up_changed_backed_up_again_and_restored_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    // A folder with a space: paths travel through configuration files, URLs and command lines.
    let home = dir.path().join("a lab");
    let mut lab = Lab::start(&home).await;
    let inventory = lab.json();
    assert_eq!((inventory["proxies"].as_array().unwrap().len(), inventory["pools"].as_array().unwrap().len()), (2, 3));
    assert_eq!(lab.list(&["proxy", "list"]).await.iter().filter(|proxy| proxy["state"] == "live").count(), 2);

    lab.ask(&["job", "add", "--name", "nightly “x”", "--mode", "delta", "--vm", "web-01", "--remote", "paris-backups"]).await;
    let key = lab.ask(&["job", "run", "nightly “x”", "--watch"]).await;
    let cursors: Vec<u64> = key.iter().map(|event| event["cursor"].as_u64().unwrap()).collect();
    assert_eq!(cursors, (1..=cursors.len() as u64).collect::<Vec<_>>());
    let whole = moved(&key);

    let mutated = lab.ask(&["lab", "mutate", "--dir", home.to_str().unwrap(), "--vm", "web-01", "--percent", "5"]).await;
    let changed: u64 = mutated[0]["disks"].as_array().unwrap().iter().map(|disk| disk["bytes"].as_u64().unwrap()).sum();
    let delta = moved(&lab.ask(&["job", "run", "nightly “x”", "--watch"]).await);
    assert_eq!(delta, changed, "the second run moves what has changed, of {whole} bytes");

    let points = lab.list(&["backup", "list", "--vm", "web-01"]).await;
    assert_eq!(points.len(), 2);
    let newest = points[0]["id"].as_str().unwrap();
    moved(&lab.ask(&["backup", "restore", newest, "--sr", "Local storage", "--name", "back \"again\"", "--watch"]).await);
    moved(&lab.ask(&["backup", "verify", newest, "--watch"]).await);

    // Stopped and continued, it is the same lab; the restored VM is in its inventory now.
    let daemons = lab.daemons();
    assert_eq!(daemons.len(), 4, "a launcher and its daemon for each of two sites");
    lab.signal(Signal::TERM);
    assert!(lab.child.wait().await.unwrap().success());
    gone(&daemons).await;
    assert!(!home.join("lab.json").exists());
    let lab = Lab::start(&home).await;
    let inventory = lab.json();
    let disks = |name: &str| -> Vec<PathBuf> {
        let vm = inventory["vms"].as_array().unwrap().iter().find(|vm| vm["name"] == name).unwrap();
        vm["disks"].as_array().unwrap().iter().map(|disk| disk["path"].as_str().unwrap().into()).collect()
    };
    let (original, restored) = (disks("web-01"), disks("back \"again\""));
    assert_eq!(original.len(), 2);
    for (one, other) in original.iter().zip(&restored) {
        assert!(
            std::fs::read(one).unwrap() == std::fs::read(other).unwrap(),
            "{} differs from {}",
            one.display(),
            other.display()
        );
    }
    assert_eq!(lab.list(&["backup", "list"]).await.len(), 2);
}

#[tokio::test]
async fn nothing_survives_a_killed_lab_and_a_killed_daemon_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut lab = Lab::start(dir.path()).await;
    let daemons = lab.daemons();
    for pid in &daemons {
        kill_process(*pid, Signal::KILL).unwrap();
    }
    let back = async {
        while lab.list(&["proxy", "list"]).await.iter().any(|proxy| proxy["state"] != "live") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, back).await.expect("the daemons are started again");
    let second =
        backhaul(&dir.path().join("config"), &["lab", "--serve", "--small", "--dir", dir.path().to_str().unwrap()]).await;
    assert_eq!(second.status.code(), Some(4), "a second lab in the same folder: {second:?}");

    let daemons = lab.daemons();
    lab.signal(Signal::KILL);
    let _ = lab.child.wait().await;
    gone(&daemons).await;
    let told = backhaul(&dir.path().join("config"), &["vm", "list"]).await;
    assert_eq!(told.status.code(), Some(3));
    std::fs::remove_file(dir.path().join("lab.json")).unwrap();
    let lab = Lab::start(dir.path()).await;
    assert_eq!(lab.list(&["vm", "list"]).await.len(), 3);
}

#[tokio::test]
async fn a_proxy_is_deployed_used_changed_and_destroyed_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::start(&dir.path().join("lab")).await;
    let before = (lab.dumps().await, lab.images());

    // A name that no sane person gives.
    let name = "né \"annecy\" 🦀";
    let secret = "s3cret-word";
    let proxy_file = dir.path().join("http-proxy");
    std::fs::write(&proxy_file, format!("http://user:{secret}@127.0.0.1:3128\n")).unwrap();
    let more = ["--http-proxy-file", proxy_file.to_str().unwrap()];
    // The site has no proxy yet: that of paris, which has its pool, deploys one.
    let deploy = ["proxy", "deploy", "--pool", "annecy", "--name", name, "--site", "Annecy", "--port", "8443", "--yes"];
    let deployed = lab.ask(&[&deploy[..], &more].concat()).await;
    let url = deployed.last().unwrap()["url"].as_str().unwrap().to_owned();
    let listed = lab.list(&["proxy", "list"]).await;
    let entry = listed.iter().find(|proxy| proxy["name"] == name).expect("the new proxy is known");
    assert_eq!((entry["state"].as_str(), entry["url"].as_str()), (Some("live"), Some(url.as_str())));
    // The new proxy has the pool too, so it must be said who deploys.
    let again = lab.run(&[&deploy[..], &["--proxy", "paris"]].concat()).await;
    assert!(stderr(&again).contains("a proxy of this name"), "{}", stderr(&again));

    // It is ready for remotes and jobs.
    let remote = dir.path().join("remote");
    std::fs::create_dir(&remote).unwrap();
    let remote_url = format!("file://{}", remote.display());
    lab.ask(&["remote", "add", "--proxy", name, "nas", &remote_url]).await;
    lab.ask(&["job", "add", "--proxy", name, "--name", "first", "--mode", "delta", "--vm", "till-01", "--remote", "nas"]).await;
    lab.ask(&["job", "run", "--proxy", name, "first", "--watch"]).await;
    assert_eq!(lab.list(&["backup", "list", "--proxy", name]).await.len(), 1);

    // Other resources: restarted, and the same proxy.
    lab.ask(&["proxy", "reconfigure", name, "--vcpus", "3"]).await;
    assert_eq!(lab.list(&["job", "list", "--proxy", name]).await.len(), 1);

    for word in [secret, &lab.token(name)] {
        assert_eq!(lab.leaks(word), [] as [PathBuf; 0]);
    }

    let mistyped = lab.run(&["proxy", "destroy", name, "--confirm", "annecy"]).await;
    assert_eq!(mistyped.status.code(), Some(4), "{}", stderr(&mistyped));
    lab.ask(&["proxy", "destroy", name, "--confirm", name]).await;
    // What is left is the base of the next delta of the VM that was backed up: that is the job's, not the deployment's.
    lab.destroy_snapshots("annecy").await;
    lab.assert_as(&before.0, "destroyed").await;
    assert_eq!(lab.images(), before.1);
    assert!(lab.list(&["proxy", "list"]).await.iter().all(|proxy| proxy["name"] != name));
    assert_eq!(lab.list(&["proxy", "deployed"]).await, Vec::<Value>::new());
    assert!(std::fs::read_dir(lab.dir.join("guests")).unwrap().next().is_none(), "a guest's folder stays behind");
}
