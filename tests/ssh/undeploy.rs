//! A removal, when what is to go is broken, holds what is not its own, or has a licence.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::host::{Host, Setup, free_port};
use super::{difference, good, live, proxies, refused, stderr, stdout};

#[test]
fn what_is_broken_can_be_removed_all_the_same() {
    let host = Host::start(&Setup::default());
    let (to, port) = (host.destination("root"), free_port().to_string());
    let deploy = ["proxy", "deploy", "--ssh", &to, "--name", "p", "--port", &port, "--yes"];
    let undeploy = ["proxy", "undeploy", "--ssh", &to, "--purge", "--confirm"];
    let before = host.contents();
    for (broken, name) in [
        // While the daemon still runs with the former ones.
        ("echo 'listen = [[' > /etc/backhaul/backhauld.toml", host.run("uname -n").trim().to_owned()),
        ("echo 'colour = \"red\"' >> /etc/backhaul/backhauld.toml", "p".to_owned()),
        ("echo 'two words' > /var/lib/backhaul/token", "p".to_owned()),
    ] {
        good(host.backhaul(&deploy));
        host.run(broken);
        let again = host.backhaul(&deploy);
        assert!(!again.status.success(), "{broken}");
        good(host.backhaul(&[&undeploy[..], &[&name]].concat()));
        assert_eq!(difference(&before, &host.contents()), [""; 0], "something stayed: {broken}");
        let _ = fs::remove_file(host.config().join("proxies.toml"));
    }
}

#[test]
fn backups_and_other_file_systems_below_the_state_are_not_purged() {
    let host = Host::start(&Setup::default());
    let (to, port) = (host.destination("root"), free_port().to_string());
    good(host.backhaul(&["proxy", "deploy", "--ssh", &to, "--name", "p", "--port", &port, "--yes"]));
    let purge = ["proxy", "undeploy", "--ssh", &to, "--confirm", "p", "--purge"];
    let process = super::pid(&host);
    host.run("mkdir -p /var/lib/backhaul/nas/xo-vm-backups/vm && touch /var/lib/backhaul/nas/xo-vm-backups/vm/disk.vhd");
    refused(&host.backhaul(&purge), 4, &["backups in /var/lib/backhaul/nas/xo-vm-backups", "move them first"]);
    host.run("mv /var/lib/backhaul/nas/xo-vm-backups /root/ && mount -t tmpfs share /var/lib/backhaul/nas && touch /var/lib/backhaul/nas/x");
    refused(&host.backhaul(&purge), 4, &["/var/lib/backhaul/nas on", "umount"]);
    assert_eq!(super::pid(&host), process, "the service was stopped for nothing");
    live(&host);
    // Mounted only after that was looked at: it stays, and the removal says that it is not done.
    let kept = "mount -t tmpfs share /var/lib/backhaul/nas && touch /var/lib/backhaul/nas/x";
    host.run("umount /var/lib/backhaul/nas && cp /usr/bin/rm /usr/bin/rm.real");
    let script = format!("#!/bin/sh\ncase \"$*\" in *' /var/lib/backhaul') {kept};; esac\nexec /usr/bin/rm.real \"$@\"\n");
    host.replace("/usr/bin/rm", &script);
    refused(&host.backhaul(&purge), 1, &["cannot remove all of it", "the same command goes on"]);
    assert_eq!(host.run("ls /var/lib/backhaul/nas"), "x\n", "it reached into what was mounted");
    host.run("mv /usr/bin/rm.real /usr/bin/rm; umount /var/lib/backhaul/nas");
    good(host.backhaul(&purge[..]));
    assert_eq!(host.run("ls -d /var/lib/backhaul 2> /dev/null || :"), "");
}

#[test]
fn a_state_that_is_a_file_system_of_its_own_is_emptied_and_stays() {
    let host = Host::start(&Setup::default());
    let (to, port) = (host.destination("root"), free_port().to_string());
    host.run("mkdir /var/lib/backhaul && mount -t tmpfs state /var/lib/backhaul && mkdir /var/lib/backhaul/lost+found");
    let before = host.contents();
    good(host.backhaul(&["proxy", "deploy", "--ssh", &to, "--name", "p", "--port", &port, "--yes"]));
    live(&host);
    good(host.backhaul(&["proxy", "undeploy", "--ssh", &to, "--confirm", "p", "--purge"]));
    let left = difference(&before, &host.contents());
    assert!(left.iter().all(|line| line.starts_with("var/lib/backhaul d ")), "{left:?}");
    assert_eq!(host.run("ls -A /var/lib/backhaul"), "lost+found\n");
}

#[test]
fn an_account_that_could_not_be_taken_back_is_not_made() {
    let host = Host::start(&Setup::default());
    let to = host.destination("root");
    host.run("mv /usr/sbin/userdel /usr/sbin/userdel.real");
    let before = host.contents();
    let deploy = ["proxy", "deploy", "--ssh", &to, "--name", "p", "--port", &free_port().to_string(), "--yes"];
    refused(&host.backhaul(&deploy), 4, &["has no userdel", "make the account there"]);
    assert_eq!(difference(&before, &host.contents()), [""; 0]);
}

#[test]
fn what_was_removed_is_said_before_what_could_not_be_written_down() {
    let host = Host::start(&Setup::default());
    let (to, port) = (host.destination("root"), free_port().to_string());
    good(host.backhaul(&["proxy", "deploy", "--ssh", &to, "--name", "p", "--port", &port, "--yes"]));
    fs::remove_file(host.config().join("proxies.lock")).unwrap();
    fs::create_dir(host.config().join("proxies.lock")).unwrap();
    let output = host.backhaul(&["proxy", "undeploy", "--ssh", &to, "--confirm", "p", "--purge"]);
    refused(&output, 1, &["console's configuration", "the proxy is removed", "backhaul proxy remove p"]);
    assert!(stdout(&output).contains("removed the proxy p from"), "{}", stdout(&output));
}

/// Whoever does not want to wait for a proxy that does not answer need not.
#[test]
fn the_wait_for_others_ends_when_it_is_interrupted() {
    let host = Host::start(&Setup::default());
    let (to, port) = (host.destination("root"), free_port().to_string());
    good(host.backhaul(&["proxy", "deploy", "--ssh", &to, "--name", "p", "--port", &port, "--yes"]));
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let path = host.config().join("proxies.toml");
    let entry = format!(
        "{}\n[[proxy]]\nname = \"silent\"\nurl = \"https://{}\"\ntoken = \"another-ones-token\"\nfingerprint = \"{}\"\n",
        proxies(&host),
        silent.local_addr().unwrap(),
        "AB".repeat(32)
    );
    fs::write(&path, entry).unwrap();
    let mut command = host.command(&["proxy", "undeploy", "--ssh", &to, "--confirm", "p", "--purge"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let _called = silent.accept().unwrap();
    let id = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("silent cannot free all licences of p: interrupted"), "{}", stderr(&output));
    assert!(proxies(&host).contains("silent") && !proxies(&host).contains("name = \"p\""), "{}", proxies(&host));
}

/// A daemon of this machine, which holds licences.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn holder(host: &Host, settings: &str) -> (Holder, u16) {
    let (dir, port) = (host.dir.path().join("holder"), free_port());
    fs::create_dir(&dir).unwrap();
    let config = dir.join("backhauld.toml");
    let text = format!("name = \"holder\"\nlisten = \"127.0.0.1:{port}\"\nstate_dir = \"state\"\n{settings}");
    fs::write(&config, text).unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
    let daemon = Path::new(env!("CARGO_BIN_EXE_backhaul")).with_file_name("backhauld");
    let log = fs::File::create(dir.join("log")).unwrap();
    let mut command = Command::new(daemon);
    command.arg("--config").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let mut held = Holder(command.spawn().unwrap());
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(held.0.try_wait().unwrap().is_none() && std::time::Instant::now() < end, "the holder does not answer");
        std::thread::yield_now();
    }
    (held, port)
}

#[test]
fn a_proxy_that_is_purged_frees_its_licence() {
    let host = Host::start(&Setup::default());
    let (to, port) = (host.destination("root"), free_port().to_string());
    let at = |name: &str| host.dir.path().join(name).to_str().unwrap().to_owned();
    let settings = good(host.backhaul(&["license", "keygen", &at("issuer.key")]));
    let (held, holder_port) = holder(&host, &settings);
    let url = format!("https://127.0.0.1:{holder_port}");
    let token = host.dir.path().join("holder/state/token");
    let state = host.dir.path().join("holder/backhauld.toml");
    let daemon = Path::new(env!("CARGO_BIN_EXE_backhaul")).with_file_name("backhauld");
    let told = good(Command::new(daemon).args(["fingerprint", "--config"]).arg(state).output().unwrap());
    let add = ["proxy", "add", "holder", &url, "--token-file", token.to_str().unwrap(), "--fingerprint", told.trim()];
    good(host.backhaul(&add));

    good(host.backhaul(&["proxy", "deploy", "--ssh", &to, "--name", "p", "--port", &port, "--yes"]));
    host.run(&format!("printf '%s' '{settings}' >> /etc/backhaul/backhauld.toml && systemctl restart backhauld"));
    good(host.backhaul(&["proxy", "deploy", "--ssh", &to, "--yes"]));
    let issued = good(host.backhaul(&["license", "issue", "--key", &at("issuer.key"), "--holder", "x", "--days", "90"]));
    fs::write(at("one.license"), issued).unwrap();
    let imported = good(host.backhaul(&["license", "import", &at("one.license"), "--proxy", "holder", "--json"]));
    let license: Value = serde_json::from_str(imported.trim()).unwrap();
    let id = license["id"].as_str().unwrap();
    good(host.backhaul(&["license", "bind", id, "p"]));
    let serves = || {
        let listed = good(host.backhaul(&["license", "list", "--proxy", "holder", "--json"]));
        let listed: Value = serde_json::from_str(listed.trim()).unwrap();
        let listed = if listed.is_array() { listed[0].clone() } else { listed };
        listed["bound"].as_array().map_or(0, Vec::len)
    };
    assert_eq!(serves(), 1);

    // Its data stays, so it comes back as the same: the licence stays, too.
    let undeploy = ["proxy", "undeploy", "--ssh", &to, "--confirm", "p"];
    good(host.backhaul(&undeploy));
    assert_eq!(serves(), 1);
    good(host.backhaul(&["proxy", "deploy", "--ssh", &to, "--name", "p", "--port", &port, "--yes"]));
    let said = good(host.backhaul(&[&undeploy[..], &["--purge"]].concat()));
    assert!(said.contains(&format!("licence {id} no longer serves p")), "{said}");
    assert_eq!(serves(), 0);

    // Whoever cannot be asked is named.
    good(host.backhaul(&["proxy", "deploy", "--ssh", &to, "--name", "p", "--port", &port, "--yes"]));
    drop(held);
    let gone = host.backhaul(&[&undeploy[..], &["--purge"]].concat());
    assert!(gone.status.success() && stderr(&gone).contains("holder cannot free all licences of p"), "{}", stderr(&gone));
    assert!(!proxies(&host).contains("name = \"p\""));
}
