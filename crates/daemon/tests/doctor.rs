//! The doctor with each checked thing broken in turn: it names that thing and no other. The pool is the lab's, over real
//! sockets; what is broken is really broken.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use api::*;
use common::process::write_config;
use common::{Client, config_text, start_with};
use daemon::daemon::Running;
use daemon::store::{PoolRecord, RemoteRecord, Store};
use lab::{Fault, Lab, LabSpec};
use serde_json::{Value, json};
use tls::{Fingerprint, SelfSigned};

/// What is the matter with a house from the beginning.
#[derive(Default)]
struct Wrong {
    url: Option<String>,
    password: Option<&'static str>,
    fingerprint: Option<Fingerprint>,
    remote: Option<&'static str>,
    config: String,
}

/// A lab, and a daemon that knows its pool, a remote, and a job on the VM `alpha`.
struct House {
    dir: tempfile::TempDir,
    lab: Lab,
    running: Running,
    client: Client,
}

fn remote_dir(dir: &Path) -> PathBuf {
    dir.join("remote")
}

/// Writes the state of a daemon that knows all of it, without asking anybody.
async fn furnish(dir: &Path, lab: &Lab, wrong: &Wrong) {
    let pool = lab.pool();
    let store = Store::open(&dir.join("state")).await.unwrap();
    let record = PoolRecord {
        id: "pool-1".into(),
        name: "lab".into(),
        url: wrong.url.clone().unwrap_or_else(|| pool.url()),
        username: pool.username().into(),
        password: wrong.password.unwrap_or(pool.password()).into(),
        fingerprint: wrong.fingerprint.unwrap_or(pool.fingerprint()).to_string(),
    };
    store.add_pool(&record, 0).await.unwrap();
    std::fs::create_dir(remote_dir(dir)).unwrap();
    let url = wrong.remote.map_or_else(|| format!("file://{}", remote_dir(dir).display()), str::to_owned);
    store.add_remote(&RemoteRecord { id: "remote-1".into(), name: "nas".into(), url }, 0).await.unwrap();
    let spec = json!({
        "name": "nightly", "mode": "delta", "vms": [pool.vm("alpha").unwrap().uuid], "remotes": ["remote-1"],
    });
    let spec = serde_json::from_value(spec).unwrap();
    let job = Job { id: "job-1".into(), schedule_id: "schedule-1".into(), spec, last_run: None, next_runs: Vec::new() };
    store.add_job(&job, 0).await.unwrap();
    store.close().await;
}

impl House {
    async fn new(wrong: Wrong) -> Self {
        Self::on(LabSpec::single(), wrong).await
    }

    async fn on(spec: LabSpec, wrong: Wrong) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let lab = Lab::open(&dir.path().join("lab"), &spec).await.unwrap();
        furnish(dir.path(), &lab, &wrong).await;
        let (running, client) = start_with(dir.path(), &wrong.config).await;
        Self { dir, lab, running, client }
    }

    async fn sound() -> Self {
        Self::new(Wrong::default()).await
    }

    async fn examine(&self) -> Vec<DoctorCheck> {
        let now = self.running.daemon.now();
        self.examine_as(json!({ "now": now, "version": env!("CARGO_PKG_VERSION") })).await
    }

    async fn examine_as(&self, params: Value) -> Vec<DoctorCheck> {
        examine(&self.client, params).await
    }

    /// Changes a record of the pool as somebody else would.
    async fn change(&self, method: &str, params: Value) {
        let Value::Array(params) = params else { panic!("parameters are a list") };
        self.lab.pool().call(method, params).await.unwrap();
    }

    /// Reference of the only object of a class.
    fn only(&self, class: &'static str) -> String {
        let found = self.lab.pool().records(class);
        assert_eq!(found.len(), 1);
        found[0].0.clone()
    }

    async fn end(self) {
        self.running.stop().await;
        self.lab.close().await.unwrap();
    }
}

async fn examine(client: &Client, params: Value) -> Vec<DoctorCheck> {
    let mut lines = client.stream("doctor.run", params).await;
    let mut found = Vec::new();
    while let Some(line) = lines.next().await.unwrap() {
        found.push(serde_json::from_value::<DoctorCheck>(line).unwrap());
    }
    found
}

/// Expects one thing to be wrong and nothing else; gives what is said of it.
#[track_caller]
fn only_wrong(found: &[DoctorCheck], check: &str, object: &str, verdict: Verdict) -> String {
    let wrong: Vec<&DoctorCheck> = found.iter().filter(|line| line.verdict != Verdict::Pass).collect();
    let [line] = wrong[..] else { panic!("expected {check} of {object} to be wrong and nothing else: {wrong:#?}") };
    assert_eq!((line.check.as_str(), line.object.as_str(), line.verdict), (check, object, verdict), "{line:#?}");
    assert!(line.fix.as_ref().is_some_and(|fix| !fix.trim().is_empty()), "{line:#?}");
    line.measured.clone()
}

fn kinds(found: &[DoctorCheck]) -> Vec<&str> {
    let mut kinds: Vec<&str> = found.iter().map(|line| line.check.as_str()).collect();
    kinds.sort_unstable();
    kinds
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_house_passes_and_every_kind_of_check_has_a_line() {
    let house = House::sound().await;
    let found = house.examine().await;
    let wrong: Vec<_> = found.iter().filter(|line| line.verdict != Verdict::Pass || line.fix.is_some()).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let expected = [
        "cbt",
        "certificate",
        "clock",
        "clock",
        "disk",
        "dns",
        "nbd",
        "nbd",
        "pool",
        "remote",
        "route",
        "route",
        "version",
        "version",
    ];
    assert_eq!(kinds(&found), expected, "{found:#?}");
    // A login for the look of it, and no session left behind.
    let pool = house.lab.pool().clone();
    tokio::time::timeout(Duration::from_secs(30), async {
        while pool.sessions() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    assert_eq!(pool.nbd_connections(), 0);
    house.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_does_not_resolve() {
    let house = House::new(Wrong { url: Some("https://nowhere.invalid".into()), ..Wrong::default() }).await;
    let found = house.examine().await;
    let said = only_wrong(&found, "dns", "pool lab", Verdict::Fail);
    assert!(said.contains("nowhere.invalid"), "{said}");
    assert!(!kinds(&found).contains(&"pool"), "what depends on the name is not tried");
    house.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_where_nobody_listens() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let house = House::new(Wrong { url: Some(format!("https://127.0.0.1:{port}")), ..Wrong::default() }).await;
    let said = only_wrong(&house.examine().await, "route", "pool lab", Verdict::Fail);
    assert!(said.contains(&format!("127.0.0.1:{port} refuses connections")), "{said}");
    house.end().await;
}

/// A queue of one that is full: further connections are neither taken nor refused, as behind a firewall that drops them.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_where_packets_vanish() {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    let patience = Duration::from_millis(500);
    while let Ok(stream) = tokio::time::timeout(patience, tokio::net::TcpStream::connect(address)).await {
        waiting.push(stream.unwrap());
    }
    let house = House::new(Wrong { url: Some(format!("https://{address}")), ..Wrong::default() }).await;
    let found = house.examine().await;
    let said = only_wrong(&found, "route", "pool lab", Verdict::Fail);
    assert_eq!(said, format!("TCP connection to {address}: no answer within the limit of 3s"));
    assert_ne!(found.last().map(|line| line.check.as_str()), found.first().map(|line| line.check.as_str()));
    assert_eq!(found.last().unwrap().check, "route", "it delayed nobody: {found:#?}");
    drop((waiting, listener));
    house.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_who_takes_connections_and_never_answers() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let house = House::new(Wrong { url: Some(format!("https://{address}")), ..Wrong::default() }).await;
    let said = only_wrong(&house.examine().await, "pool", "pool lab", Verdict::Fail);
    assert!(said.contains(&address.to_string()) && said.contains("5s"), "{said}");
    drop(listener);
    house.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password() {
    let house = House::new(Wrong { password: Some("not-the-password"), ..Wrong::default() }).await;
    let found = house.examine().await;
    let said = only_wrong(&found, "pool", "pool lab", Verdict::Fail);
    assert!(said.contains("SESSION_AUTHENTICATION_FAILED") && said.contains("root"), "{said}");
    assert!(!format!("{found:?}").contains("not-the-password"));
    house.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_certificate_than_the_pinned_one() {
    let pinned = SelfSigned::generate(&["x"]).unwrap().fingerprint().unwrap();
    let house = House::new(Wrong { fingerprint: Some(pinned), ..Wrong::default() }).await;
    let said = only_wrong(&house.examine().await, "pool", "pool lab", Verdict::Fail);
    assert!(said.contains(&pinned.to_string()) && said.contains(&house.lab.pool().fingerprint().to_string()), "{said}");
    house.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_that_are_wrong() {
    let house = House::sound().await;
    house.lab.pool().set_fault(Fault::ClockSkew { seconds: -600 });
    let said = only_wrong(&house.examine().await, "clock", "host lab-host-1 of lab", Verdict::Fail);
    assert!(said.contains("behind this proxy's"), "{said}");
    house.lab.pool().clear_faults();
    let hour = 3_600_000;
    let console = json!({ "now": house.running.daemon.now() + hour });
    let said = only_wrong(&house.examine_as(console).await, "clock", "console", Verdict::Fail);
    assert!(said.contains("ahead of this proxy's"), "{said}");
    house.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_console_of_another_version_and_hosts_of_an_old_one() {
    let house = House::sound().await;
    let said = only_wrong(&house.examine_as(json!({ "version": "99.0.0" })).await, "version", "this proxy", Verdict::Warning);
    assert!(said.contains("99.0.0: the proxy is older"), "{said}");
    let old = json!({ "product_brand": "XCP-ng", "product_version": "7.6.0" });
    house.change("host.set_software_version", json!([house.only("host"), old])).await;
    let said = only_wrong(&house.examine().await, "version", "pool lab", Verdict::Warning);
    assert!(said.contains("XCP-ng 7.6.0 on lab-host-1"), "{said}");
    house.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_is_not_meant_for_nbd() {
    let house = House::sound().await;
    let network = house.only("network");
    house.change("network.remove_purpose", json!([network, "nbd"])).await;
    let found = house.examine().await;
    let said = only_wrong(&found, "nbd", "pool lab", Verdict::Warning);
    assert!(said.contains("none of its 1 networks has the purpose nbd"), "{said}");
    house.change("network.add_purpose", json!([network, "nbd"])).await;
    house.change("network.add_purpose", json!([network, "insecure_nbd"])).await;
    let said = only_wrong(&house.examine().await, "nbd", "pool lab", Verdict::Fail);
    assert!(said.contains("refuses every NBD connection"), "{said}");
    house.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_an_address_for_nbd_or_with_one_where_nothing_listens() {
    let house = House::sound().await;
    let pif = house.only("PIF");
    house.change("PIF.set_IP", json!([pif, ""])).await;
    let said = only_wrong(&house.examine().await, "nbd", "host lab-host-1 of lab", Verdict::Fail);
    assert!(said.contains("no address on Pool-wide network associated with eth0"), "{said}");
    house.change("PIF.set_IP", json!([pif, "127.0.0.77"])).await;
    let said = only_wrong(&house.examine().await, "route", "host lab-host-1 of lab", Verdict::Fail);
    assert!(said.contains("127.0.0.77:") && said.contains("refuses"), "{said}");
    house.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_down_is_one_line() {
    let house = House::sound().await;
    house.change("host_metrics.set_live", json!([house.only("host_metrics"), false])).await;
    let said = only_wrong(&house.examine().await, "pool", "host lab-host-1 of lab", Verdict::Fail);
    assert!(said.contains("does not answer its pool's master"), "{said}");
    house.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_with_several_hosts_has_lines_for_each_and_one_that_is_down_costs_its_own() {
    let mut spec = LabSpec::single();
    spec.pools[0].hosts = 3;
    let house = House::on(spec, Wrong::default()).await;
    let found = house.examine().await;
    only_right(&found);
    let of = |found: &[DoctorCheck], host: u32| {
        let object = format!("host lab-host-{host} of lab");
        let lines: Vec<_> = found.iter().filter(|line| line.object == object).cloned().collect();
        kinds(&lines).join(" ")
    };
    assert_eq!([1, 2, 3].map(|host| of(&found, host)), ["clock nbd route", "clock nbd route route", "clock nbd route route"]);
    let hosts = house.lab.pool().records("host");
    let down = hosts.iter().find(|(_, host)| host["name_label"] == "lab-host-2").unwrap();
    house.change("host_metrics.set_live", json!([down.1["metrics"], false])).await;
    let found = house.examine().await;
    only_wrong(&found, "pool", "host lab-host-2 of lab", Verdict::Fail);
    assert_eq!([1, 2, 3].map(|host| of(&found, host)), ["clock nbd route", "pool", "clock nbd route route"]);
    house.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_does_not_tell_where_or_with_what_certificate_it_serves_disks() {
    let house = House::sound().await;
    let unanswered = |call: &str| Fault::FailCall { call: call.into(), nth: 1, code: "INTERNAL_ERROR".into(), done: false };
    for call in ["VDI.get_nbd_info", "VDI.get_all"] {
        house.lab.pool().set_fault(unanswered(call));
        let found = house.examine().await;
        let line = found.iter().find(|line| line.object == "pool lab" && line.verdict == Verdict::Warning);
        let line = line.unwrap_or_else(|| panic!("{call}: {found:#?}"));
        assert_eq!(line.check, "nbd");
        assert!(line.measured.contains("does not tell where") && line.measured.contains("INTERNAL_ERROR"), "{line:?}");
        house.lab.pool().clear_faults();
    }
    // An address that no disk tells of: its certificate is asked for, and this pool does not know the question.
    let listener = std::net::TcpListener::bind(("127.0.0.77", house.lab.pool().nbd_port())).unwrap();
    house.change("PIF.set_IP", json!([house.only("PIF"), "127.0.0.77"])).await;
    let said = only_wrong(&house.examine().await, "nbd", "host lab-host-1 of lab", Verdict::Warning);
    assert!(said.contains("its certificate is not told") && said.contains("MESSAGE_METHOD_UNKNOWN"), "{said}");
    drop(listener);
    house.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_cannot_say_all_holds_up_nothing_else() {
    let house = House::sound().await;
    let state =
        sqlx::SqlitePool::connect(&format!("sqlite:{}", house.dir.path().join("state/state.db").display())).await.unwrap();
    sqlx::query("UPDATE remotes SET sealed_url = x'00'").execute(&state).await.unwrap();
    state.close().await;
    let found = house.examine().await;
    let said = only_wrong(&found, "disk", "state", Verdict::Fail);
    assert!(said.contains("cannot decrypt"), "{said}");
    let kinds = kinds(&found);
    for kind in ["disk", "certificate", "pool", "nbd", "cbt"] {
        assert!(kinds.contains(&kind), "{kind}: {found:#?}");
    }
    house.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_in_the_address_of_a_remote() {
    for (remote, verdict, words) in [
        ("nfs://nowhere.invalid:/export", Verdict::Fail, "nowhere.invalid does not resolve"),
        ("nfs://127.0.0.1:/export", Verdict::Pass, "127.0.0.1 is an address"),
    ] {
        let house = House::new(Wrong { remote: Some(remote), ..Wrong::default() }).await;
        let found = house.examine().await;
        let line = found.iter().find(|line| line.check == "dns" && line.object == "remote nas").unwrap();
        assert!(line.verdict == verdict && line.measured.contains(words), "{line:?}");
        house.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_nbd_server_that_hangs_up_or_has_no_tls() {
    let house = House::sound().await;
    for fault in [Fault::RefuseNbd, Fault::RefuseNbdTls] {
        house.lab.pool().set_fault(fault);
        let said = only_wrong(&house.examine().await, "nbd", "host lab-host-1 of lab", Verdict::Fail);
        assert!(said.contains(&format!("127.0.0.1:{}", house.lab.pool().nbd_port())), "{said}");
        house.lab.pool().clear_faults();
    }
    house.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_of_a_job_without_change_tracking() {
    let house = House::sound().await;
    let disk = house.lab.pool().vm("alpha").unwrap().disks[1].clone();
    house.change("VDI.disable_cbt", json!([disk.reference])).await;
    let said = only_wrong(&house.examine().await, "cbt", "job nightly on lab", Verdict::Warning);
    assert!(said.contains("1 of the 2 disks") && said.contains("alpha data") && said.contains(&disk.vdi), "{said}");
    let storage = house.lab.pool().record("VDI", &disk.reference).unwrap()["SR"].as_str().unwrap().to_owned();
    let drivers = house.lab.pool().records("SM");
    let driver = &drivers.iter().find(|(_, driver)| driver["type"] == "ext").unwrap().0;
    house.change("SM.set_features", json!([driver, {}])).await;
    house.change("SM.set_capabilities", json!([driver, []])).await;
    let said = only_wrong(&house.examine().await, "cbt", "job nightly on lab", Verdict::Warning);
    let name = house.lab.pool().record("SR", &storage).unwrap()["name_label"].as_str().unwrap().to_owned();
    assert!(said.contains(&format!("{name} (type ext) cannot track them")), "{said}");
    house.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remote_that_is_gone_or_is_a_file_or_hangs() {
    let house = House::sound().await;
    let place = remote_dir(house.dir.path());
    std::fs::remove_dir_all(&place).unwrap();
    let said = only_wrong(&house.examine().await, "remote", "remote nas", Verdict::Fail);
    assert!(said.contains("does not exist"), "{said}");
    std::fs::write(&place, "in the place of a folder").unwrap();
    only_wrong(&house.examine().await, "remote", "remote nas", Verdict::Fail);
    std::fs::remove_file(&place).unwrap();
    std::fs::create_dir(&place).unwrap();
    only_right(&house.examine().await);

    // As a mount whose server went away: a question to it that never ends.
    let remotes = &house.running.daemon.remotes;
    let record = remotes.find("nas").await.unwrap();
    let never = |_| std::future::pending::<storage::Result<()>>();
    remotes.ask(&record, Duration::ZERO, "look at", never).await.unwrap_err();
    let said = only_wrong(&house.examine().await, "remote", "remote nas", Verdict::Fail);
    assert!(said.contains("does not answer"), "{said}");
    house.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remote_that_is_busy_is_not_broken() {
    let house = House::sound().await;
    let remotes = &house.running.daemon.remotes;
    let record = remotes.find("nas").await.unwrap();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let (begin, begun) = tokio::sync::oneshot::channel::<()>();
    let listing = remotes.ask(&record, Duration::from_secs(600), "list", move |_| async move {
        let _ = begin.send(());
        let _ = ended.await;
        Ok::<_, storage::StorageError>(())
    });
    let examined = async {
        begun.await.unwrap();
        let said = only_wrong(&house.examine().await, "remote", "remote nas", Verdict::Warning);
        assert!(said.contains("another question to it takes long"), "{said}");
        end.send(()).unwrap();
    };
    let (listed, ()) = tokio::join!(listing, examined);
    listed.unwrap();
    only_right(&house.examine().await);
    house.end().await;
}

#[track_caller]
fn only_right(found: &[DoctorCheck]) {
    let wrong: Vec<_> = found.iter().filter(|line| line.verdict != Verdict::Pass).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Where not even root can write.
#[tokio::test(flavor = "multi_thread")]
async fn a_remote_that_cannot_be_written() {
    let house = House::new(Wrong { remote: Some("file:///proc"), ..Wrong::default() }).await;
    let said = only_wrong(&house.examine().await, "remote", "remote nas", Verdict::Fail);
    assert!(said.contains("step write"), "{said}");
    house.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let mut wanted = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    (wanted.not_before, wanted.not_after) = (rcgen::date_time_ymd(2019, 1, 1), rcgen::date_time_ymd(2020, 1, 1));
    let key = rcgen::KeyPair::generate().unwrap();
    let (certificate_file, key_file) = (dir.path().join("certificate.pem"), dir.path().join("key.pem"));
    std::fs::write(&certificate_file, wanted.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&key_file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let config = format!("[tls]\ncertificate = {certificate_file:?}\nkey = {key_file:?}\n");
    let house = House::new(Wrong { config, ..Wrong::default() }).await;
    let said = only_wrong(&house.examine().await, "certificate", "this proxy", Verdict::Fail);
    assert!(said.contains("expired on 2020-01-01"), "{said}");
    house.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_licence_that_is_asked_for_and_missing() {
    let issuer = signed::SecretKey::generate().unwrap().public();
    let config = format!("[license]\nissuer_keys = [\"{issuer}\"]\n");
    let house = House::new(Wrong { config, ..Wrong::default() }).await;
    let said = only_wrong(&house.examine().await, "license", "this proxy", Verdict::Fail);
    assert!(said.contains("no licence is bound to this proxy"), "{said}");
    house.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http_proxy_that_is_not_there() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = format!("http_proxy = \"http://user:hunter2hunter2@127.0.0.1:{port}\"\n");
    let house = House::new(Wrong { config, ..Wrong::default() }).await;
    let found = house.examine().await;
    only_wrong(&found, "route", "HTTP proxy", Verdict::Fail);
    assert!(!format!("{found:?}").contains("hunter2hunter2"));
    house.end().await;
}

/// The state folder on a file system that is nearly full, and the remote on one that is too small, each in a mount
/// namespace of the daemon's own.
#[tokio::test(flavor = "multi_thread")]
async fn file_systems_without_room() {
    for (full, check, object) in [("state", "disk", "state folder"), ("remote", "remote", "remote nas")] {
        let dir = tempfile::tempdir().unwrap();
        let lab = Lab::single(&dir.path().join("lab")).await.unwrap();
        furnish(dir.path(), &lab, &Wrong::default()).await;
        write_config(dir.path(), &config_text(dir.path()));
        let size = if full == "state" { "32m" } else { "4m" };
        let script = format!(
            "cp -a \"$1/{full}\" \"$1/copy\" && mount -t tmpfs -o size={size} tmpfs \"$1/{full}\" && cp -a \"$1/copy/.\" \"$1/{full}/\" \
             && chmod 700 \"$1/{full}\" && exec \"$2\" --config \"$1/backhauld.toml\""
        );
        let (mut mounted, _, client) = with_mounts(dir.path(), &script);
        let said = only_wrong(&examine(&client, json!({})).await, check, object, Verdict::Fail);
        assert!(
            said.contains(if full == "state" { "32.0 MiB free" } else { "step write" }) || said.contains("of 32.0 MiB"),
            "{said}"
        );
        assert!(mounted.stop().unwrap().success());
        lab.close().await.unwrap();
    }
}

/// A daemon in a mount namespace of its own, and the script that started it. Nothing of it outlives a test that fails.
struct Mounted {
    child: Child,
    dir: PathBuf,
}

impl Mounted {
    /// Stops the daemon; its script ends as it does.
    fn stop(&mut self) -> std::io::Result<std::process::ExitStatus> {
        let text = std::fs::read_to_string(PathBuf::from(format!(
            "/proc/{}/root{}",
            self.child.id(),
            self.dir.join("state/lock").display()
        )))?;
        let daemon = text.trim().parse().ok().and_then(rustix::process::Pid::from_raw).ok_or(std::io::ErrorKind::NotFound)?;
        rustix::process::kill_process(daemon, rustix::process::Signal::TERM)?;
        self.child.wait()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) && self.stop().is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Starts one by a script that is given the folder and the program, and ends as the program does.
fn with_mounts(dir: &Path, script: &str) -> (Mounted, BufReader<ChildStdout>, Client) {
    let mut child = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .args([dir.as_os_str(), env!("CARGO_BIN_EXE_backhauld").as_ref()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
    let client = Client::new(ready["address"].as_str().unwrap(), ready["fingerprint"].as_str().unwrap().parse().unwrap());
    (Mounted { child, dir: dir.to_owned() }, output, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_remote_whose_share_is_away_is_not_written_to() {
    let dir = tempfile::tempdir().unwrap();
    let share = dir.path().join("share");
    std::fs::create_dir(&share).unwrap();
    write_config(dir.path(), &config_text(dir.path()));
    // Unmounts when a line comes, and says so.
    let script = "mount -t tmpfs -o size=4g tmpfs \"$1/share\" && { \"$2\" --config \"$1/backhauld.toml\" </dev/null & pid=$!; \
                  read _; umount \"$1/share\" && echo gone; wait $pid; }";
    let (mut mounted, mut output, client) = with_mounts(dir.path(), script);
    let url = format!("file://{}", share.display());
    let remote = client.call::<RemoteAdd>(RemoteAddParams { name: "nas".into(), url }).await;
    let found = examine(&client, json!({})).await;
    only_right(&found);
    let mount = format!("tmpfs mounted at {}", share.display());
    assert!(found.iter().any(|line| line.check == "remote" && line.measured.contains(&mount)), "{found:#?}");
    let mut line = String::new();
    mounted.child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "gone\n");
    let found = examine(&client, json!({})).await;
    let said = only_wrong(&found, "remote", "remote nas", Verdict::Fail);
    assert!(said.contains("is not mounted") && said.contains(&mount), "{said}");
    let test = client.call::<RemoteTestRun>(IdParams { id: remote.id.clone() }).await;
    assert_eq!((test.success, test.error.map(|error| error.code).as_deref()), (false, Some("REMOTE_NOT_MOUNTED")));
    // It does not pass for a repository without backups either, and no run opens it.
    let listed = client.call::<RemoteList>(NoParams {}).await;
    assert_eq!(listed[0].error.as_ref().map(|error| error.code.as_str()), Some("REMOTE_NOT_MOUNTED"), "{listed:#?}");
    let points = RestorePointListParams { remote: Some(remote.id), vm: None };
    let refused = client.try_call::<RestorePointList>(points).await.unwrap_err();
    assert!(refused.message.contains("is not mounted"), "{refused}");
    assert_eq!(std::fs::read_dir(&share).unwrap().count(), 0, "nothing is written to the folder that is left");
    assert!(mounted.stop().unwrap().success());
}
