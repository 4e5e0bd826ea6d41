//! What a proxy knows of those that it deployed: it follows what becomes of them.

mod common;

use std::path::Path;
use std::time::Duration;

use api::*;
use common::{Client, TOKEN, license, start_with};
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
        Self::start_with(dir, "").await
    }

    /// Both with more lines in their configuration.
    async fn start_with(dir: &Path, more: &str) -> Self {
        let (one, other) = (dir.join("deployer"), dir.join("deployed"));
        for dir in [&one, &other] {
            std::fs::create_dir_all(dir).unwrap();
        }
        let (deployer, deployed) = (start_with(&one, more).await, start_with(&other, more).await);
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

/// What a refusal says to programs.
fn code(refused: &RpcError) -> &str {
    refused.data["code"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn a_proxy_with_backups_on_its_own_disk_is_not_done_away_with_unless_that_is_meant() {
    let dir = tempfile::tempdir().unwrap();
    let pair = Pair::start(dir.path()).await;
    let url = format!("file://{}", dir.path().join("backups").display());
    let remote = pair.deployed.1.call::<RemoteAdd>(RemoteAddParams { name: "nas".into(), url }).await;
    assert!(remote.own_disk, "it lies where the state of the proxy does");
    let added = pair.deployer.0.daemon.now();
    until("the copy of the state with the remote", async || pair.known().await.copied_at.filter(|at| *at >= added)).await;
    let client = &pair.deployer.1;
    let redeploy = async |discard_local| {
        let params = RedeployParams { id: pair.id.clone(), image: None, sr: None, discard_local };
        client.try_call::<Redeploy>(params).await.unwrap_err()
    };
    let destroy = async |discard_local| {
        client.try_call::<DeployDestroy>(DestroyParams { id: pair.id.clone(), name: "test".into(), discard_local }).await
    };
    for (refused, command) in [(redeploy(false).await, "proxy redeploy"), (destroy(false).await.unwrap_err(), "proxy destroy")] {
        assert_eq!(code(&refused), "PROXY_HOLDS_BACKUPS", "{refused}");
        assert!(refused.message.contains("remote nas"), "{refused}");
        let next = refused.data["next"].as_str().unwrap();
        assert!(next.contains(command) && next.contains("--discard-local-backups"), "{next}");
    }
    // What stands in the way then is the pool, which is not there.
    assert_eq!(code(&redeploy(true).await), "DEPLOY_REFUSED");
    // Nobody can be asked: what is known of it counts.
    pair.deployed.0.stop().await;
    let refused = destroy(false).await.unwrap_err();
    assert!(code(&refused) == "PROXY_HOLDS_BACKUPS" && refused.message.contains("remote nas"), "{refused}");
    destroy(true).await.unwrap();
    pair.deployer.0.stop().await;
}

#[tokio::test]
async fn of_a_proxy_that_cannot_be_asked_the_run_says_what_is_known_of_backups_on_its_own_disk() {
    let dir = tempfile::tempdir().unwrap();
    let pair = Pair::start(dir.path()).await;
    until("the copy of the state", async || pair.known().await.copied_at).await;
    pair.deployed.0.stop().await;
    let client = &pair.deployer.1;
    let params = DestroyParams { id: pair.id.clone(), name: "test".into(), discard_local: false };
    let run = client.call::<DeployDestroy>(params).await;
    let events = client.events(&run.id, 0).await;
    let says = |event: &&Event| matches!(&event.kind, EventKind::Log { message, .. } if message.contains("none did"));
    assert_eq!(events.iter().filter(says).count(), 1, "{events:?}");
    pair.deployer.0.stop().await;
}

#[tokio::test]
async fn a_forgotten_proxy_lets_go_of_its_licence_or_is_not_forgotten() {
    for answers in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let issuer = signed::SecretKey::generate().unwrap();
        let pair = Pair::start_with(dir.path(), &format!("[license]\nissuer_keys = [\"{}\"]\n", issuer.public())).await;
        let license = license();
        let text = license.issue(&issuer).unwrap();
        let (client, deployed) = (&pair.deployer.1, &pair.deployed.1);
        for (client, proxy) in [(client, Some(Binding { proxy: pair.id.clone(), name: "test".into() })), (deployed, None)] {
            client.call::<LicenseImport>(LicenseImportParams { text: text.clone() }).await;
            client.call::<LicenseBind>(LicenseBindParams { id: license.id.clone(), proxy }).await;
        }
        let bound = async |client: &Client| client.call::<LicenseList>(NoParams {}).await[0].bound.len();
        let forget = async || client.try_call::<DeployForget>(IdParams { id: pair.id.clone() }).await;
        if answers {
            assert!(forget().await.unwrap());
            assert_eq!((bound(client).await, bound(deployed).await), (0, 0));
            let standing = deployed.call::<ProxyStatusGet>(NoParams {}).await.licensing;
            assert!(standing.fault.unwrap().contains("no licence is bound"));
            pair.stop().await;
            continue;
        }
        pair.deployed.0.stop().await;
        let refused = forget().await.unwrap_err();
        assert_eq!((code(&refused), bound(client).await), ("PROXY_KEEPS_LICENSE", 1), "{refused}");
        let next = refused.data["next"].as_str().unwrap();
        assert!(next.contains(&format!("backhaul license unbind {} \"test\"", &license.id[..8])), "{next}");
        assert_eq!(client.call::<DeployedList>(NoParams {}).await.len(), 1);
        // As it says there.
        let proxy = Some(Binding { proxy: pair.id.clone(), name: "test".into() });
        client.call::<LicenseUnbind>(LicenseBindParams { id: license.id.clone(), proxy }).await;
        assert!(forget().await.unwrap());
        assert_eq!(client.call::<DeployedList>(NoParams {}).await, []);
        pair.deployer.0.stop().await;
    }
}
