//! Licences with the real programs of a lab that asks for them: none, a free one that binds itself, no second proxy under
//! it, several to choose from, and all that is no licence.

mod support;

use std::path::{Path, PathBuf};

use serde_json::Value;
use support::lab::Lab;
use support::{stderr, stdout};

/// Issues a licence with the key in a file, and answers the file that holds it.
async fn issue(lab: &Lab, key: &Path, name: &str, more: &[&str]) -> PathBuf {
    let issue = ["license", "issue", "--key", key.to_str().unwrap(), "--holder", "Né \"x\" 🦀"];
    let issued = lab.run(&[&issue[..], more].concat()).await;
    assert!(issued.status.success(), "{}", stderr(&issued));
    let path = lab.dir.join(format!("{name}.license"));
    std::fs::write(&path, stdout(&issued)).unwrap();
    path
}

async fn import(lab: &Lab, file: &Path) -> Value {
    lab.ask(&["license", "import", file.to_str().unwrap(), "--proxy", "paris"]).await.remove(0)
}

/// Proxies that the licences serve, as their deployer has it: licence, names.
async fn serving(lab: &Lab) -> Vec<(String, Vec<String>)> {
    let licences = lab.list(&["license", "list", "--proxy", "paris"]).await;
    let names = |licence: &Value| {
        let bound = licence["bound"].as_array().into_iter().flatten();
        bound.map(|bound| bound["name"].as_str().unwrap().to_owned()).collect()
    };
    licences.iter().map(|licence| (licence["id"].as_str().unwrap().to_owned(), names(licence))).collect()
}

fn deploy(name: &str) -> Vec<&str> {
    vec!["proxy", "deploy", "--pool", "paris", "--proxy", "paris", "--name", name, "--port", "8443", "--yes"]
}

#[tokio::test]
async fn a_free_licence_binds_itself_serves_one_proxy_and_is_free_again_when_that_is_destroyed() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::start_with(&dir.path().join("lab"), &["--licensed"]).await;
    let key = lab.dir.join("keys/issuer.key");

    // None: said before anything starts; and jobs do not run, while everything else does.
    let vms = lab.list(&["vm", "list"]).await;
    let (code, said) = lab.refused(&deploy("annecy")).await;
    assert!(code == 4 && said.contains("holds no licence") && said.contains("license import"), "{said}");
    assert_eq!(lab.list(&["vm", "list"]).await, vms);
    lab.ask(&["job", "add", "--name", "nightly", "--mode", "delta", "--vm", "web-01", "--remote", "paris-backups"]).await;
    let (_, said) = lab.refused(&["job", "run", "nightly"]).await;
    assert!(said.contains("no licence is bound"), "{said}");
    assert_eq!(lab.status("paris").await["licensing"]["required"], true);

    // One: the new proxy has it, and its deployer knows.
    let licence = import(&lab, &issue(&lab, &key, "one", &["--days", "20"]).await).await;
    let id = licence["id"].as_str().unwrap();
    let plan = lab.run(&[&deploy("annecy")[..10], &["--plan"]].concat()).await;
    assert!(plan.status.success() && stdout(&plan).contains("30 days"), "{}{}", stdout(&plan), stderr(&plan));
    lab.ask(&deploy("annecy")).await;
    assert_eq!(serving(&lab).await, [(id.to_owned(), vec!["annecy".to_owned()])]);
    let licensing = lab.status("annecy").await["licensing"].take();
    assert_eq!((licensing["required"].as_bool(), licensing["license"].as_str()), (Some(true), Some(id)));
    assert_eq!(licensing["fault"], Value::Null);

    // Two proxies for one licence: neither by deployment nor by hand.
    let (code, said) = lab.refused(&deploy("grenoble")).await;
    assert!(code == 4 && said.contains("none of its 1 licences is free"), "{said}");
    let (code, said) = lab.refused(&["license", "bind", id, "lyon"]).await;
    assert!(code == 4 && said.contains("already serves annecy"), "{said}");
    // Its job runs, under its licence.
    let remote = dir.path().join("remote");
    std::fs::create_dir(&remote).unwrap();
    lab.ask(&["remote", "add", "--proxy", "annecy", "nas", &format!("file://{}", remote.display())]).await;
    lab.ask(&["job", "add", "--proxy", "annecy", "--name", "first", "--mode", "delta", "--vm", "web-01", "--remote", "nas"])
        .await;
    let run = lab.ask(&["job", "run", "--proxy", "annecy", "first", "--watch"]).await;
    assert_eq!(run.last().unwrap()["outcome"], "success");

    // Destroyed, it frees its licence, and the next one gets it.
    lab.ask(&["proxy", "destroy", "annecy", "--confirm", "annecy"]).await;
    assert_eq!(serving(&lab).await, [(id.to_owned(), Vec::new())]);
    lab.ask(&["license", "bind", id, "lyon"]).await;
    assert_eq!(lab.status("lyon").await["licensing"]["license"], id);
    lab.stop().await;
}

#[tokio::test]
async fn of_several_licences_the_one_that_lasts_longest_is_taken_and_what_is_none_is_refused_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let lab = Lab::start_with(&dir.path().join("lab"), &["--licensed"]).await;
    let key = lab.dir.join("keys/issuer.key");
    let stranger = dir.path().join("stranger.key");
    lab.ask(&["license", "keygen", stranger.to_str().unwrap()]).await;

    let good = issue(&lab, &key, "good", &["--days", "90"]).await;
    let tampered = lab.dir.join("tampered.license");
    std::fs::write(&tampered, std::fs::read_to_string(&good).unwrap().replace("Proxies: 1", "Proxies: 9")).unwrap();
    let cut = lab.dir.join("cut.license");
    std::fs::write(&cut, std::fs::read_to_string(&good).unwrap().split("Signature").next().unwrap()).unwrap();
    let old = ["--not-before", "2020-01-01T00:00:00Z", "--days", "30"];
    let cases = [
        (issue(&lab, &key, "old", &old).await, "expired on 2020-01-31"),
        (issue(&lab, &key, "early", &["--not-before", "2100-01-01T00:00:00Z"]).await, "not valid before 2100-01-01"),
        (issue(&lab, &stranger, "stranger", &[]).await, "signed by another key"),
        (tampered, "changed after it was signed"),
        (cut, "cut off"),
        (key.clone(), "no licence"),
    ];
    for (file, expected) in cases {
        let (code, said) = lab.refused(&["license", "import", file.to_str().unwrap(), "--proxy", "paris"]).await;
        assert!(code == 2 && said.contains(expected), "{}: {said}", file.display());
        assert!(!said.contains("backhaul-secret"), "{said}");
    }
    assert!(serving(&lab).await.is_empty());

    let short = import(&lab, &issue(&lab, &key, "short", &["--days", "10"]).await).await;
    let long = import(&lab, &good).await;
    lab.ask(&deploy("annecy")).await;
    let mut served = serving(&lab).await;
    served.retain(|(_, names)| !names.is_empty());
    assert_eq!(served, [(long["id"].as_str().unwrap().to_owned(), vec!["annecy".to_owned()])]);
    // Chosen by hand, the other one.
    lab.ask(&[&deploy("grenoble")[..], &["--license", &short["id"].as_str().unwrap()[..8]]].concat()).await;
    assert!(serving(&lab).await.iter().all(|(_, names)| names.len() == 1));
    assert_eq!(lab.status("grenoble").await["licensing"]["license"], short["id"]);
    lab.stop().await;
}
