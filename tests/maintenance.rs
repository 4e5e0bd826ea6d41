//! A deployed proxy over its life, with the real programs: it is given another name, token, certificate and address, made
//! anew with its help and without, and destroyed; it stays the same proxy all the time, and nothing is left of it.

mod support;

use std::path::Path;

use serde_json::{Value, json};
use support::lab::{Lab, PATIENCE, pool_call};
use support::processes::Processes;
use support::{backhaul, stderr, stdout};

const SECRET: &str = "s3cret-word";

/// The proxy, as its deployer knows it.
async fn deployed(lab: &Lab) -> Value {
    let mut known = lab.list(&["proxy", "deployed", "--proxy", "paris"]).await;
    assert_eq!(known.len(), 1, "{known:?}");
    known.remove(0)
}

/// Stops the schedule of the job, and waits until the deployer has a copy of the state that was taken after that.
async fn disabled_and_copied(lab: &Lab, name: &str) {
    let waiting = async {
        loop {
            // Each time is a change, and so an occasion for a copy: one that began before does not count.
            lab.ask(&["job", "disable", "--proxy", name, "nightly"]).await;
            let after = jiff::Timestamp::now().as_millisecond();
            for _ in 0..100 {
                if deployed(lab).await["copiedAt"].as_i64().is_some_and(|at| at > after) {
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("the deployer keeps a copy of the proxy's state");
}

/// What makes the proxy the same one, whatever is changed of it.
async fn identity(lab: &Lab, name: &str) -> Value {
    let job = lab.list(&["job", "list", "--proxy", name]).await.remove(0);
    let remote = lab.list(&["remote", "list", "--proxy", name]).await.remove(0);
    let pool = lab.list(&["pool", "list", "--proxy", name]).await.remove(0);
    let shown = lab.ask(&["proxy", "show", name]).await.remove(0);
    assert_eq!(shown["state"], "live", "{shown}");
    json!({
        "id": shown["status"]["id"], "job": job["id"], "schedule": job["scheduleId"], "cron": job["schedule"], "remote": remote["id"],
        "pool": pool["id"], "fingerprint": shown["fingerprint"], "token": lab.token(name),
    })
}

/// Runs the job; how many bytes it moved.
async fn moved(lab: &Lab, name: &str) -> u64 {
    let events = lab.ask(&["job", "run", "--proxy", name, "nightly", "--watch"]).await;
    let last = events.last().unwrap();
    assert_eq!((&last["event"], &last["outcome"]), (&"runEnded".into(), &"success".into()), "{last}");
    last["summary"]["bytes"].as_u64().unwrap()
}

/// Changes some blocks of the VM; how many bytes.
async fn mutated(lab: &Lab) -> u64 {
    let home = lab.dir.to_str().unwrap();
    let told = lab.ask(&["lab", "mutate", "--dir", home, "--vm", "web-01", "--percent", "5"]).await;
    told[0]["disks"].as_array().unwrap().iter().map(|disk| disk["bytes"].as_u64().unwrap()).sum()
}

/// The power state of a VM, as the pool tells it; then a method of the pool is called on it. None: there is no such VM.
async fn vm_power(lab: &Lab, uuid: &str, then: Option<&str>) -> Option<String> {
    let inventory = lab.json();
    let pool = inventory["pools"].as_array().unwrap().iter().find(|pool| pool["name"] == "paris").unwrap();
    let session = pool_call(pool, "session.login_with_password", json!([pool["username"], pool["password"]])).await;
    let all = pool_call(pool, "VM.get_all_records", json!([session])).await;
    let (reference, record) = all.as_object().unwrap().iter().find(|(_, record)| record["uuid"] == uuid)?;
    if let Some(method) = then {
        pool_call(pool, method, json!([session, reference])).await;
    }
    Some(record["power_state"].as_str().unwrap().to_owned())
}

/// The token of a proxy, from the configuration of a console.
fn token_of(config: &Path, name: &str) -> String {
    let table: toml::Table = std::fs::read_to_string(config.join("proxies.toml")).unwrap().parse().unwrap();
    let proxies = table["proxy"].as_array().unwrap();
    let ours = proxies.iter().find(|proxy| proxy["name"].as_str() == Some(name)).unwrap();
    ours["token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_deployed_proxy_is_changed_and_made_anew_and_stays_the_same_one() {
    let dir = tempfile::tempdir().unwrap();
    let processes = Processes::watch();
    let lab = Lab::start(&dir.path().join("lab")).await;
    let (before, images) = (lab.dumps().await, lab.images());
    let http_proxy = dir.path().join("http-proxy");
    std::fs::write(&http_proxy, format!("http://user:{SECRET}@127.0.0.1:3128\n")).unwrap();

    let first = "annecy";
    lab.ask(&["proxy", "deploy", "--pool", "paris", "--name", first, "--site", "Annecy", "--port", "8443", "--yes"]).await;
    let remote = dir.path().join("remote");
    std::fs::create_dir(&remote).unwrap();
    lab.ask(&["remote", "add", "--proxy", first, "nas", &format!("file://{}", remote.display())]).await;
    let job = ["--name", "nightly", "--mode", "delta", "--vm", "web-01", "--remote", "nas", "--schedule", "0 3 * * *"];
    lab.ask(&[&["job", "add", "--proxy", first][..], &job].concat()).await;
    let whole = moved(&lab, first).await;

    // Its name: known at once here, to it, and to whoever deployed it.
    let name = "né \"lyon\" 🦀";
    let file = http_proxy.to_str().unwrap();
    lab.ask(&["proxy", "set", first, "--name", name, "--site", "Lyon", "--http-proxy-file", file]).await;
    let listed = lab.list(&["proxy", "list"]).await;
    assert!(listed.iter().all(|proxy| proxy["name"] != first), "{listed:?}");
    let entry = listed.iter().find(|proxy| proxy["name"] == name).unwrap();
    assert_eq!((&entry["status"]["name"], &entry["status"]["site"]), (&json!(name), &json!("Lyon")));
    assert_eq!(deployed(&lab).await["name"], name);
    let wrong = lab.run(&["proxy", "set", name, "--name", " "]).await;
    assert_eq!(wrong.status.code(), Some(2), "{}", stderr(&wrong));

    // Its token: the former one is good until it is revoked, and the deployer knows the new one.
    let tokens = [lab.token(name), {
        let said = lab.ask(&["proxy", "token", "rotate", name]).await.remove(0);
        assert_eq!(said["toldTo"], "paris");
        lab.token(name)
    }];
    assert_ne!(tokens[0], tokens[1]);
    let shown = lab.ask(&["proxy", "show", name]).await.remove(0);
    assert!(shown["status"]["formerTokenUntil"].is_i64(), "{shown}");
    assert_eq!(lab.ask(&["proxy", "token", "revoke", name]).await[0]["revoked"], true);
    lab.ask(&["proxy", "claim", name, "--proxy", "paris"]).await;
    assert_eq!(lab.token(name), tokens[1]);

    // Its certificate: pinned anew here and by the deployer.
    let renewed = lab.ask(&["proxy", "certificate", "renew", name]).await.remove(0);
    assert_eq!(deployed(&lab).await["fingerprint"], renewed["fingerprint"]);
    let same = identity(&lab, name).await;
    assert_eq!((&same["fingerprint"], &same["token"]), (&renewed["fingerprint"], &json!(tokens[1])));

    // Changed where its deployer cannot be told: that one says so before it touches anything, until somebody tells it.
    let elsewhere = dir.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let token_file = elsewhere.join("token");
    let (url, pin) = (deployed(&lab).await["url"].clone(), renewed["fingerprint"].clone());
    let add = |name: &str, token: &str| {
        std::fs::write(&token_file, token).unwrap();
        let (url, pin) = (url.as_str().unwrap(), pin.as_str().unwrap());
        let file = token_file.to_str().unwrap();
        ["proxy", "add", name, url, "--token-file", file, "--fingerprint", pin].map(str::to_owned)
    };
    let run = async |config: &Path, arguments: &[String]| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = backhaul(config, &arguments).await;
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    };
    run(&elsewhere, &add(name, &tokens[1])).await;
    run(&elsewhere, &["proxy", "token", "rotate", name, "--overlap", "0"].map(str::to_owned)).await;
    let third = token_of(&elsewhere, name);
    let estranged = lab.run(&["proxy", "reconfigure", name, "--vcpus", "3"]).await;
    let said = stderr(&estranged);
    assert!(!estranged.status.success() && said.contains("step check") && said.contains("backhaul proxy adopt"), "{said}");
    assert_eq!(deployed(&lab).await["state"], "ready");
    lab.ask(&["proxy", "remove", name]).await;
    run(&lab.dir.join("config"), &add(name, &third)).await;
    assert_eq!(lab.ask(&["proxy", "adopt", name]).await[0]["toldTo"], "paris");
    let tokens = [tokens[0].clone(), tokens[1].clone(), third];
    let same = identity(&lab, name).await;

    // Its address.
    let old = deployed(&lab).await;
    let old_url = old["url"].as_str().unwrap();
    let (network, _) = old_url.strip_prefix("https://").unwrap().rsplit_once('.').unwrap();
    let ip = format!("{network}.99/24");
    lab.ask(&["proxy", "reconfigure", name, "--ip", &ip]).await;
    let moved_to = deployed(&lab).await;
    assert_eq!(moved_to["url"], format!("https://{network}.99:8443"));
    assert_eq!(moved_to["vm"], old["vm"]);
    assert_eq!(identity(&lab, name).await, same);

    // Held back, it starts nothing.
    assert_eq!(lab.ask(&["proxy", "drain", name, "on"]).await[0]["draining"], true);
    let refused = lab.run(&["job", "run", "--proxy", name, "nightly"]).await;
    assert!(!refused.status.success() && stderr(&refused).contains("drained"), "{}{}", stdout(&refused), stderr(&refused));
    assert_eq!(lab.ask(&["proxy", "drain", name, "off"]).await[0]["draining"], false);

    // An image that is not what it should be: nothing changes.
    let torn = dir.path().join("torn.xva");
    let image = lab.dir.join("images/backhaul-appliance.xva");
    let mut bytes = std::fs::read(&image).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&torn, bytes).unwrap();
    std::fs::copy(image.with_added_extension("manifest"), torn.with_added_extension("manifest")).unwrap();
    let wrong = ["proxy", "redeploy", name, "--yes", "--image", torn.to_str().unwrap()];
    let refused = lab.run(&wrong).await;
    assert!(!refused.status.success() && stderr(&refused).contains("SHA-256"), "{}{}", stdout(&refused), stderr(&refused));
    let kept = deployed(&lab).await;
    assert_eq!((&kept["vm"], &kept["state"], &kept["spec"]), (&old["vm"], &json!("ready"), &moved_to["spec"]));
    assert_eq!(identity(&lab, name).await, same);

    // A new machine that does not start, when the old one is off already: the old one is back.
    let inventory = lab.json();
    let pool = inventory["pools"].as_array().unwrap().iter().find(|pool| pool["name"] == "paris").unwrap();
    let fault = json!({ "kind": "fail_call", "call": "VM.start", "nth": 1, "code": "HOST_NOT_ENOUGH_FREE_MEMORY", "count": 1 });
    pool_call(pool, "lab.set_fault", json!([pool["password"], fault])).await;
    let refused = lab.run(&["proxy", "redeploy", name, "--yes"]).await;
    let said = format!("{}{}", stdout(&refused), stderr(&refused));
    assert!(!refused.status.success() && said.contains("step start failed and what was made is removed again"), "{said}");
    assert_eq!(deployed(&lab).await["vm"], old["vm"]);
    assert_eq!(identity(&lab, name).await, same);

    // Made anew, with its own help: another VM, the same proxy, and the chain of its backups goes on.
    let changed = mutated(&lab).await;
    lab.ask(&["proxy", "redeploy", name, "--yes"]).await;
    let anew = deployed(&lab).await;
    assert_ne!(anew["vm"], old["vm"]);
    assert_eq!((&anew["url"], &anew["state"]), (&moved_to["url"], &json!("ready")));
    assert_eq!(vm_power(&lab, old["vm"].as_str().unwrap(), None).await, None);
    assert_eq!(identity(&lab, name).await, same);
    assert!(changed < whole);
    assert_eq!(moved(&lab, name).await, changed);

    // And without: its VM is off, and what is known is the copy that its deployer keeps.
    disabled_and_copied(&lab, name).await;
    vm_power(&lab, anew["vm"].as_str().unwrap(), Some("VM.hard_shutdown")).await;
    let events = lab.ask(&["proxy", "redeploy", name, "--yes"]).await;
    assert!(events.iter().any(|event| event["message"].as_str().is_some_and(|said| said.contains("as last copied"))));
    let again = deployed(&lab).await;
    assert_ne!(again["vm"], anew["vm"]);
    assert_eq!(vm_power(&lab, anew["vm"].as_str().unwrap(), None).await, None);
    assert_eq!(identity(&lab, name).await, same);
    assert_eq!(lab.list(&["job", "list", "--proxy", name]).await[0]["enabled"], false);
    assert_eq!(moved(&lab, name).await, 0, "nothing has changed since the run before");
    assert_eq!(lab.list(&["backup", "list", "--proxy", name]).await.len(), 3);

    let secrets: Vec<&str> = tokens.iter().map(String::as_str).chain([SECRET]).collect();
    for secret in &secrets {
        assert_eq!(lab.leaks(secret), Vec::<std::path::PathBuf>::new());
    }
    processes.assert_show("proxy token rotate", &secrets);
    lab.ask(&["proxy", "destroy", name, "--confirm", name]).await;
    // A job leaves the snapshot that its next delta would count from; it is a job's, and no part of a proxy.
    lab.destroy_snapshots("paris").await;
    lab.assert_as(&before, "after all of it").await;
    assert_eq!(lab.images(), images);
    assert_eq!(lab.list(&["proxy", "deployed"]).await, Vec::<Value>::new());
}
