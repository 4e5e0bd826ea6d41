//! What a proxy knows of those that it deployed: it follows what becomes of them.

mod common;

use std::path::Path;
use std::time::Duration;

use api::*;
use common::{Client, TOKEN, start};
use daemon::daemon::Running;
use daemon::store::{DeploymentRecord, DeploymentSecrets};
use engine::plan::Secret;
use serde_json::json;

/// For what happens in the background.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until there is an answer.
async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{what}"))
}

/// A deployer that has deployed another, as its registry says.
struct Pair {
    deployer: (Running, Client),
    deployed: (Running, Client),
    id: String,
}

impl Pair {
    async fn start(dir: &Path) -> Self {
        let (one, other) = (dir.join("deployer"), dir.join("deployed"));
        for dir in [&one, &other] {
            std::fs::create_dir(dir).unwrap();
        }
        let (deployer, deployed) = (start(&one).await, start(&other).await);
        let status = deployed.1.call::<ProxyStatusGet>(NoParams {}).await;
        let spec = DeploySpec {
            name: "test".into(),
            site: None,
            pool: "p".into(),
            sr: None,
            network: None,
            address: AddressSpec::Dhcp,
            port: 443,
            http_proxy: None,
            vcpus: 2,
            memory: 2 << 30,
            disk: 20 << 30,
            license: None,
            login: None,
            image: ImageSource::default(),
        };
        let secrets = DeploymentSecrets {
            token: Secret::new(TOKEN),
            http_proxy: None,
            login: None,
            image: Secret::new("/srv/x.xva"),
            wanted_image: None,
        };
        let record = DeploymentRecord {
            id: status.id.clone(),
            name: "test".into(),
            pool: "p".into(),
            state: DeployedState::Ready,
            run: None,
            vm: Some("vm".into()),
            url: Some(deployed.1.base.clone()),
            fingerprint: Some(status.fingerprint),
            spec,
            wanted: None,
            secrets,
            copied_at: None,
            ready_at: Some(1),
        };
        deployer.0.daemon.store.add_deployment(&record, 1).await.unwrap();
        deployer.0.daemon.news.changed(Topic::Deployed);
        Self { deployer, deployed, id: status.id }
    }

    async fn known(&self) -> Deployed {
        self.deployer.1.call::<DeployedList>(NoParams {}).await.remove(0)
    }

    async fn claimed(&self) -> Credentials {
        self.deployer.1.call::<DeployClaim>(IdParams { id: self.id.clone() }).await
    }

    async fn stop(self) {
        self.deployed.0.stop().await;
        self.deployer.0.stop().await;
    }
}

#[tokio::test]
async fn a_copy_of_its_state_is_kept_and_follows_its_changes_and_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let pair = Pair::start(dir.path()).await;
    until("the state is copied", async || pair.known().await.copied_at).await;

    // Where a remote is may be a secret, as a whole.
    let url = format!("file://{}/hunter2", dir.path().display());
    let remote = pair.deployed.1.call::<RemoteAdd>(RemoteAddParams { name: "nas".into(), url }).await;
    let store = &pair.deployer.0.daemon.store;
    until("the remote is copied", async || {
        let copy = store.deployment_state(&pair.id).await.unwrap()?;
        copy.content.to_string().contains(&remote.id).then_some(())
    })
    .await;
    let given = ConfigureParams { name: Some("lyon".into()), ..ConfigureParams::default() };
    pair.deployed.1.call::<ProxyConfigure>(given).await;
    until("the name is known", async || (pair.known().await.name == "lyon").then_some(())).await;
    assert_eq!(pair.known().await.spec.name, "lyon");
    let state = dir.path().join("deployer/state");
    pair.stop().await;
    for entry in std::fs::read_dir(state).unwrap().flatten() {
        let bytes = std::fs::read(entry.path()).unwrap();
        assert!(!bytes.windows(7).any(|window| window == b"hunter2"), "{:?}", entry.path());
    }
}

#[tokio::test]
async fn a_changed_token_name_and_certificate_are_taken_down_after_they_were_tried() {
    let dir = tempfile::tempdir().unwrap();
    let pair = Pair::start(dir.path()).await;
    let before = pair.claimed().await;
    let rotated = pair.deployed.1.call::<TokenRotate>(TokenRotateParams { overlap_seconds: Some(0) }).await.token;
    let client = pair.deployed.1.with_token(&rotated);
    let fingerprint = client.call::<CertificateRenew>(CertificateRenewParams::default()).await.fingerprint;

    let good = Credentials { name: "lyon".into(), token: rotated.clone(), fingerprint, ..before.clone() };
    let adopt = async |given: &Credentials| pair.deployer.1.try_call::<DeployAdopt>(given.clone()).await;
    let wrong = [
        (Credentials { token: TOKEN.into(), ..good.clone() }, "does not accept the token"),
        (Credentials { fingerprint: before.fingerprint.clone(), ..good.clone() }, "another certificate"),
        (Credentials { fingerprint: "x".into(), ..good.clone() }, "fingerprint"),
        (Credentials { id: "x".into(), ..good.clone() }, "no such proxy"),
        (Credentials { name: "a\nb".into(), ..good.clone() }, "control characters"),
    ];
    for (wrong, says) in wrong {
        let refused = adopt(&wrong).await.unwrap_err();
        assert!(refused.message.contains(says), "{refused}");
        assert!(!serde_json::to_string(&refused).unwrap().contains(&rotated));
        assert_eq!(pair.claimed().await, before);
    }
    let deployed = adopt(&good).await.unwrap();
    assert_eq!((deployed.name.as_str(), deployed.fingerprint.as_deref()), ("lyon", Some(good.fingerprint.as_str())));
    assert_eq!(pair.claimed().await, good);
    // With what it knows now it can copy again.
    let copied = pair.known().await.copied_at;
    until("the state is copied anew", async || (pair.known().await.copied_at > copied).then_some(())).await;
    pair.stop().await;
}

#[tokio::test]
async fn another_proxy_is_never_taken_for_the_deployed_one() {
    let dir = tempfile::tempdir().unwrap();
    let pair = Pair::start(dir.path()).await;
    // The deployer itself answers at its own address, with a good token and certificate.
    let own = pair.deployer.1.call::<ProxyStatusGet>(NoParams {}).await;
    pair.deployed.0.stop().await;
    let (deployer, client) = &pair.deployer;
    let given = json!({
        "id": pair.id, "name": "test", "url": client.base, "token": TOKEN, "fingerprint": own.fingerprint,
    });
    let refused = client.call_raw("deploy.adopt", given).await;
    assert!(refused["error"]["message"].as_str().unwrap().contains("another proxy"), "{refused}");
    assert_eq!(client.call::<DeployedList>(NoParams {}).await[0].url, Some(pair.deployed.1.base.clone()));
    assert!(!deployer.daemon.stop.is_cancelled());
    pair.deployer.0.stop().await;
}
