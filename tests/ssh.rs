//! `backhaul proxy deploy --ssh` and `undeploy` against a real OpenSSH server, on a host of its own.

#[path = "ssh/cut.rs"]
mod cut;
#[path = "ssh/host.rs"]
mod host;
#[path = "ssh/packages.rs"]
mod packages;
#[path = "ssh/strangers.rs"]
mod strangers;
#[path = "ssh/tokens.rs"]
mod tokens;
#[path = "ssh/undeploy.rs"]
mod undeploy;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::process::Output;

use host::{Host, Setup, free_port};
use serde_json::Value;

/// As bad as a name may be.
const NAME: &str = r#"Paris "rack 4" $(touch /tmp/pwned) `touch /tmp/pwned` 'x' \ 🗼 ;&|"#;
const SITE: &str = "東京 \"$HOME\" '; touch /tmp/pwned; '";

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
fn good(output: Output) -> String {
    assert!(output.status.success(), "{}\n{}", stdout(&output), stderr(&output));
    stdout(&output)
}

#[track_caller]
fn refused(output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.status.code(), Some(code), "{}\n{}", stdout(output), stderr(output));
    for word in words {
        assert!(stderr(output).contains(word), "{word:?} is not said: {}", stderr(output));
    }
}

/// What stands in the one file but not in the other.
fn difference(before: &[String], after: &[String]) -> Vec<String> {
    let (before, after): (BTreeSet<_>, BTreeSet<_>) = (before.iter().collect(), after.iter().collect());
    before.symmetric_difference(&after).map(|line| (*line).clone()).collect()
}

fn proxies(host: &Host) -> String {
    fs::read_to_string(host.config().join("proxies.toml")).unwrap()
}

fn live(host: &Host) -> Value {
    let listed: Value = serde_json::from_str(&good(host.backhaul(&["proxy", "list", "--json"]))).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(listed[0]["state"], "live", "{listed}");
    listed[0].clone()
}

fn pid(host: &Host) -> String {
    host.run("cat /run/test-systemd/pid")
}

/// The daemon without its symbols, so that it is copied quickly, with something behind its end.
fn stripped(host: &Host, name: &str, end: &[u8]) -> String {
    let path = host.dir.path().join(name);
    let daemon = std::path::Path::new(env!("CARGO_BIN_EXE_backhaul")).with_file_name("backhauld");
    let done = std::process::Command::new("strip").arg("-o").arg(&path).arg(daemon).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    fs::File::options().append(true).open(&path).unwrap().write_all(end).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_proxy_comes_stays_changes_and_goes() {
    let host = Host::start(&Setup::default());
    let (to, port) = (host.destination("root"), free_port().to_string());
    let before = host.contents();
    let first = ["proxy", "deploy", "--ssh", &to, "--name", NAME, "--site", SITE, "--port", &port];

    let planned = good(host.backhaul(&[&first[..], &["--plan"]].concat()));
    assert!(planned.contains("make the account backhaul") && planned.contains("start the service"), "{planned}");
    let unasked = host.backhaul(&first);
    refused(&unasked, 4, &["there is nobody to ask"]);
    refused(&host.backhaul(&[&first[..], &["--json"]].concat()), 2, &["--json", "--yes", "--plan"]);
    assert_eq!(difference(&before, &host.contents()), [""; 0], "a plan touched something");

    let said = good(host.backhaul(&[&first[..], &["--yes"]].concat()));
    let entry = live(&host);
    assert_eq!((&entry["name"], &entry["status"]["site"]), (&NAME.into(), &SITE.into()));
    assert_eq!(entry["status"]["name"], NAME);
    assert_eq!(entry["url"], format!("https://127.0.0.1:{port}"));
    let told = host.run("backhauld fingerprint");
    assert_eq!(entry["fingerprint"], told.trim());
    assert!(said.contains(told.trim()), "{said}");
    assert_eq!(host.run("ls /tmp"), "", "a name became a command");
    let owners = host.run(
        "stat -c '%n %a %U' /etc/backhaul/backhauld.toml /var/lib/backhaul /var/lib/backhaul/token; \
         ps -o user= -p $(cat /run/test-systemd/pid)",
    );
    assert_eq!(
        owners,
        "/etc/backhaul/backhauld.toml 600 backhaul\n/var/lib/backhaul 700 backhaul\n/var/lib/backhaul/token 600 backhaul\nbackhaul\n"
    );

    let (settled, process) = (host.contents(), pid(&host));
    for arguments in [&first[..], &["proxy", "deploy", "--ssh", &to]] {
        let again = good(host.backhaul(&[arguments, &["--yes"]].concat()));
        assert!(again.contains("nothing to do") && again.contains("is unchanged"), "{again}");
    }
    // Files of the running daemon's database come and go.
    let changed = difference(&settled, &host.contents());
    assert!(changed.iter().all(|line| line.starts_with("var/lib/backhaul/")), "{changed:?}");
    assert_eq!(pid(&host), process, "the service was started again for nothing");

    // Another version, by what stands behind the end of its file.
    let other = stripped(&host, "next", b"next");
    let upgrade = ["proxy", "deploy", "--ssh", &to, "--package", &other, "--yes"];
    let upgraded = good(host.backhaul(&upgrade));
    assert!(upgraded.contains("put the program") && !upgraded.contains("account"), "{upgraded}");
    assert_ne!(pid(&host), process);
    assert_eq!(live(&host)["fingerprint"], told.trim());

    // The port is the file's; what a running proxy can change of itself is not changed here.
    let next = ["proxy", "deploy", "--ssh", &to, "--package", &other, "--yes"];
    let port = free_port().to_string();
    let moved = good(host.backhaul(&[&next[..], &["--port", &port]].concat()));
    assert!(moved.contains("put the settings") && !moved.contains("put the program"), "{moved}");
    assert_eq!(live(&host)["url"], format!("https://127.0.0.1:{port}"));
    // For programs: first what is going to be done, then what became of it.
    let lines: Vec<Value> =
        good(host.backhaul(&[&next[..], &["--json"]].concat())).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        (lines.len(), &lines[0]["steps"], &lines[1]["changed"]),
        (2, &Value::Array(Vec::new()), &false.into()),
        "{lines:?}"
    );
    refused(&host.backhaul(&[&next[..], &["--site", "Lyon"]].concat()), 2, &["is there already, with another site", "proxy set"]);
    // It calls itself otherwise, and its token is another one, of which the host has no copy: it is still the same.
    good(host.backhaul(&["proxy", "set", NAME, "--name", "renamed"]));
    good(host.backhaul(&["proxy", "token", "rotate", "renamed"]));
    assert_eq!(host.run("ls /var/lib/backhaul/token 2> /dev/null || :"), "");
    let again = good(host.backhaul(&next));
    assert!(again.contains("nothing to do") && again.contains("renamed is unchanged"), "{again}");
    assert_eq!(live(&host)["name"], "renamed");
    good(host.backhaul(&["proxy", "set", "renamed", "--name", NAME]));

    refused(&host.backhaul(&["proxy", "undeploy", "--ssh", &to, "--confirm", "x"]), 4, &["nothing was touched"]);
    live(&host);
    good(host.backhaul(&["proxy", "undeploy", "--ssh", &to, "--confirm", NAME]));
    let left = difference(&before, &host.contents());
    // Its data, and the account that owns them: a line of the lists of accounts, and their sums.
    let expected = |line: &String| {
        let accounts = ["etc/passwd f", "etc/shadow f", "etc/group f", "etc/gshadow f"];
        line.starts_with("var/lib/backhaul") || line.contains("  ") || accounts.iter().any(|account| line.starts_with(account))
    };
    assert!(left.iter().all(expected), "{left:?}");
    assert!(left.iter().any(|line| line.starts_with("var/lib/backhaul/state.db f 600")), "{left:?}");
    assert!(!proxies(&host).contains("[[proxy]]"));

    // Its data makes it the same proxy again.
    good(host.backhaul(&[&first[..], &["--yes"]].concat()));
    assert_eq!(live(&host)["fingerprint"], told.trim());
    good(host.backhaul(&["proxy", "undeploy", "--ssh", &to, "--confirm", NAME, "--purge"]));
    assert_eq!(difference(&before, &host.contents()), [""; 0], "something stayed");
    refused(&host.backhaul(&["proxy", "undeploy", "--ssh", &to, "--confirm", NAME]), 4, &["no proxy was deployed"]);
}

#[test]
fn by_way_of_sudo_no_secret_is_seen_by_others() {
    let host = Host::start(&Setup::default());
    let (to, port) = (host.destination("admin"), free_port().to_string());
    let proxy_file = host.dir.path().join("http-proxy");
    fs::write(&proxy_file, "http://user:hunter2hunter2@proxy.example:3128\n").unwrap();
    let arguments = [
        "proxy",
        "deploy",
        "--ssh",
        &to,
        "--name",
        "by sudo",
        "--port",
        &port,
        "--yes",
        "--http-proxy-file",
        proxy_file.to_str().unwrap(),
    ];
    let mut child =
        host.command(&arguments).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    // Every command line and environment of this machine, which includes the host's, for as long as it takes.
    let mut seen = BTreeSet::new();
    while child.try_wait().unwrap().is_none() {
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            for file in ["cmdline", "environ"] {
                seen.insert(fs::read(entry.path().join(file)).unwrap_or_default());
            }
        }
    }
    let output = child.wait_with_output().unwrap();
    good(output.clone());
    let seen: Vec<String> = seen.iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    assert!(seen.iter().any(|line| line.contains("sudo")) && seen.iter().any(|line| line.contains("eval")), "nothing was seen");
    live(&host);
    let config: toml::Table = toml::from_str(&proxies(&host)).unwrap();
    let token = config["proxy"][0]["token"].as_str().unwrap().to_owned();
    assert!(token.len() >= 32);
    let files = host.run("cat /var/log/sudo.log /var/log/backhauld.log");
    assert!(files.contains("COMMAND="), "sudo logged nothing");
    for secret in [token.as_str(), "hunter2hunter2"] {
        assert!(!seen.iter().any(|line| line.contains(secret)), "a process list shows a secret");
        for text in [&files, &host.log(), &stdout(&output), &stderr(&output)] {
            assert!(!text.contains(secret), "a log shows a secret");
        }
        let holders =
            host.run(&format!("grep -rlF '{secret}' /etc /var/lib/backhaul /var/log /var/tmp /tmp /run | xargs stat -c '%a'"));
        assert!(!holders.is_empty() && holders.lines().all(|mode| mode == "600"), "{holders}");
    }
    good(host.backhaul(&["proxy", "undeploy", "--ssh", &to, "--confirm", "by sudo", "--purge"]));
}

#[test]
fn a_host_that_will_not_do_is_refused_before_anything_is_touched() {
    let host = Host::start(&Setup { sudo: false, ..Setup::default() });
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (root, admin) = (host.destination("root"), host.destination("admin"));
    let (port, taken) = (free_port().to_string(), busy.local_addr().unwrap().port().to_string());
    let before = host.contents();
    let deploy = |to: &str, port: &str| host.backhaul(&["proxy", "deploy", "--ssh", to, "--port", port, "--name", "p", "--yes"]);

    refused(&deploy(&admin, &port), 4, &["admin is not root", "NOPASSWD"]);
    refused(&deploy(&root, &taken), 4, &[&format!("something listens on port {taken}"), "--port"]);
    host.trust("other-key.pub");
    refused(&deploy(&root, &port), 4, &["ssh does not trust the host key", "known_hosts"]);
    host.trust("host-key.pub");
    refused(&host.backhaul(&["proxy", "deploy", "--ssh", &host.destination("nobody-there"), "--yes"]), 4, &["Permission denied"]);
    refused(&host.backhaul(&["proxy", "deploy", "--ssh", "root@127.0.0.1:1", "--yes"]), 3, &["cannot log in", "refused"]);
    refused(&host.backhaul(&["proxy", "deploy", "--ssh=-oProxyCommand=touch /tmp/x", "--yes"]), 2, &["no place to go to"]);
    refused(&host.backhaul(&["proxy", "deploy", "--ssh", &root, "--sr", "x", "--yes"]), 2, &["--sr is about a VM"]);
    refused(&host.backhaul(&["proxy", "deploy", "--ssh", &root, "--name", "a\nb", "--yes"]), 2, &["control characters"]);
    refused(&host.backhaul(&["--read-only", "proxy", "deploy", "--ssh", &root, "--port", &port, "--yes"]), 4, &["read-only"]);

    for (program, fake, words) in [
        (
            "/usr/bin/uname",
            "#!/bin/sh\n[ \"$1\" = -m ] && echo riscv64 || echo host\n",
            ["the processor there is riscv64", "--package"],
        ),
        ("/usr/bin/getconf", "#!/bin/sh\necho glibc 2.17\n", ["there it is 2.17", "--static"]),
        ("/usr/bin/getconf", "#!/bin/sh\nexit 1\n", ["there is none there", "--static"]),
    ] {
        host.run(&format!("cp {program} /root/kept"));
        host.replace(program, fake);
        refused(&deploy(&root, &port), 4, &words);
        host.run(&format!("mv /root/kept {program}"));
    }
    host.run("rmdir /run/systemd/system");
    refused(&deploy(&root, &port), 4, &["not started by systemd", "proxy add"]);
    host.run("mkdir /run/systemd/system");
    assert_eq!(difference(&before, &host.contents()), [""; 0], "a refusal touched something");
    assert!(!host.config().join("proxies.toml").exists());

    host.run("mkdir /etc/backhaul && touch /etc/backhaul/backhauld.toml");
    refused(&deploy(&root, &port), 4, &["somebody else set up", "proxy add"]);
}

#[test]
fn a_full_disk_is_seen_before_the_copy() {
    let host = Host::start(&Setup { disk: 24, ..Setup::default() });
    let before = host.contents();
    let root = host.destination("root");
    refused(&host.backhaul(&["proxy", "deploy", "--ssh", &root, "--yes"]), 4, &["MiB free", "are needed"]);
    assert_eq!(difference(&before, &host.contents()), [""; 0]);
}

/// Lets each call of a deployment fail in turn, until one has none left to fail; answers what was said to be impossible.
fn each_call_fails(host: &Host, deploy: &[&str], undone: impl Fn(&str)) -> Vec<String> {
    let mut named = Vec::new();
    for call in 1.. {
        assert!(call < 40, "there is no end: {named:?}");
        host.run(&format!("echo {call} > /run/left"));
        let output = host.backhaul(deploy);
        let left: i32 = host.run("cat /run/left").trim().parse().unwrap();
        if left > 0 {
            good(output);
            break;
        }
        let said = stderr(&output);
        if output.status.success() {
            // Only the removal of what was kept for undoing: all is well by then.
            assert!(said.contains("backhaul-former"), "call {call}: {said}");
            break;
        }
        undone(&format!("call {call}: {said}"));
        if let Some(step) = said.lines().find_map(|line| line.strip_prefix("backhaul: cannot ")) {
            named.push(step.split(" on root@").next().unwrap().to_owned());
        }
    }
    named
}

#[test]
fn whichever_call_fails_is_named_and_all_is_undone() {
    let host = Host::start(&Setup::default());
    let (to, port) = (host.destination("root"), free_port().to_string());
    // Each script is read by `dd`; this one gives up at the wanted call.
    host.run("cp /usr/bin/dd /usr/bin/dd.real");
    host.replace(
        "/usr/bin/dd",
        "#!/bin/sh\nleft=$(cat /run/left 2> /dev/null || echo 0)\necho $((left - 1)) > /run/left\n\
         [ \"$left\" = 1 ] && exit 1\nexec /usr/bin/dd.real \"$@\"\n",
    );
    let first = stripped(&host, "first", b"");
    let deploy = ["proxy", "deploy", "--ssh", &to, "--name", "p", "--port", &port, "--yes", "--package", &first];
    let before = host.contents();
    let named = each_call_fails(&host, &deploy, |what| {
        assert_eq!(difference(&before, &host.contents()), [""; 0], "{what}");
        assert_eq!(host.run("systemctl is-active backhauld || :"), "inactive\n", "{what}");
        assert!(!host.config().join("proxies.toml").exists() || !proxies(&host).contains("[[proxy]]"), "{what}");
    });
    for step in [
        "make the account backhaul",
        "make the folder /var/lib/backhaul",
        "put a new token to /var/lib/backhaul/token",
        "put the settings to /etc/backhaul/backhauld.toml",
        "put the program to /usr/local/bin/backhauld",
        "check the settings with the program",
        "put the unit to /etc/systemd/system/backhauld.service",
        "start the service, now and with the system",
        "read the certificate's fingerprint over SSH",
    ] {
        assert!(named.iter().any(|name| name == step), "{step:?} is not among {named:?}");
    }
    live(&host);
    // What could not be removed at last is removed by the next run.
    assert!(good(host.backhaul(&deploy)).contains("nothing to do"));
    assert_eq!(host.run("find /usr/local/bin /etc /var/lib/backhaul /run -name '*.backhaul-*' 2> /dev/null"), "");

    // The same for an upgrade that also moves: what ran before runs again.
    let next = stripped(&host, "next", b"next");
    let elsewhere = free_port().to_string();
    let upgrade = ["proxy", "deploy", "--ssh", &to, "--port", &elsewhere, "--yes", "--package", &next];
    let before = host.contents();
    let named = each_call_fails(&host, &upgrade, |what| {
        let changed = difference(&before, &host.contents());
        assert!(changed.iter().all(|line| line.starts_with("var/lib/backhaul/")), "{what}: {changed:?}");
        assert_eq!(live(&host)["url"], format!("https://127.0.0.1:{port}"), "{what}");
    });
    assert!(named.iter().any(|name| name == "put the program to /usr/local/bin/backhauld"), "{named:?}");
    assert!(named.iter().any(|name| name == "start the service again"), "{named:?}");
    assert_eq!(live(&host)["url"], format!("https://127.0.0.1:{elsewhere}"));
}

#[test]
fn a_service_that_does_not_start_is_told_with_its_words_and_the_former_one_runs_again() {
    let host = Host::start(&Setup::default());
    let (to, port) = (host.destination("root"), free_port().to_string());
    good(host.backhaul(&["proxy", "deploy", "--ssh", &to, "--name", "p", "--port", &port, "--yes"]));
    let before = host
        .run("sha256sum /usr/local/bin/backhauld /etc/backhaul/*-* /etc/backhaul/*.toml /etc/systemd/system/backhauld.service");
    host.run("touch /run/test-systemd/broken");
    let failed = host.backhaul(&["proxy", "deploy", "--ssh", &to, "--port", &free_port().to_string(), "--yes"]);
    refused(&failed, 1, &["cannot start the service again", "Job for backhauld.service failed"]);
    host.run("rm /run/test-systemd/broken");
    assert_eq!(
        host.run(
            "sha256sum /usr/local/bin/backhauld /etc/backhaul/*-* /etc/backhaul/*.toml /etc/systemd/system/backhauld.service"
        ),
        before
    );
    // What ran before could not be started while starting was broken: that is said, and the next run mends it.
    assert!(stderr(&failed).contains("cannot undo"), "{}", stderr(&failed));
    good(host.backhaul(&["proxy", "deploy", "--ssh", &to, "--yes"]));
    live(&host);
    // A service that the system must not enable.
    host.run("systemctl stop backhauld; touch /run/test-systemd/masked");
    let masked = host.backhaul(&["proxy", "deploy", "--ssh", &to, "--yes"]);
    refused(&masked, 1, &["cannot start the service", "is masked", "is as it was before"]);
}

#[test]
fn a_connection_that_is_cut_leaves_what_the_next_run_takes_up() {
    let host = Host::start(&Setup::default());
    let (to, port) = (host.destination("root"), free_port().to_string());
    let before = host.contents();
    // In the middle of the program's way, the server's process of this connection is gone.
    host.run("cp /usr/bin/sha256sum /usr/bin/sha256sum.real");
    host.replace(
        "/usr/bin/sha256sum",
        "#!/bin/sh\nfor f in /usr/local/bin/backhauld.backhaul-new.*/new; do\n[ -e $f ] && [ ! -e /run/cut ] && { touch /run/cut; \
         for p in $(pgrep -x sshd); do [ \"$(ps -o ppid= -p $p | tr -d ' ')\" = 1 ] && kill -9 $p; done; exit 1; }\ndone\n\
         exec /usr/bin/sha256sum.real \"$@\"\n",
    );
    let cut = host.backhaul(&["proxy", "deploy", "--ssh", &to, "--name", "p", "--port", &port, "--yes"]);
    refused(&cut, 3, &["cannot put the program", "cannot undo", "the same command takes it up"]);
    good(host.backhaul(&["proxy", "deploy", "--ssh", &to, "--name", "p", "--port", &port, "--yes"]));
    live(&host);
    good(host.backhaul(&["proxy", "undeploy", "--ssh", &to, "--confirm", "p", "--purge"]));
    host.run("mv /usr/bin/sha256sum.real /usr/bin/sha256sum");
    let left = difference(&before, &host.contents());
    assert!(left.iter().all(|line| line.starts_with("usr/bin/sha256sum")), "{left:?}");
}

#[test]
fn a_proxy_behind_a_firewall_is_deployed_and_the_way_is_shown() {
    let host = Host::start(&Setup::default());
    let (to, port) = (host.destination("root"), free_port().to_string());
    host.replace("/usr/bin/firewall-cmd", "#!/bin/sh\n[ \"$1\" = --state ] && echo running\n");
    let output =
        host.backhaul(&["proxy", "deploy", "--ssh", &to, "--name", "p", "--port", &port, "--host", "255.255.255.255", "--yes"]);
    let open = format!("firewall-cmd --permanent --add-port={port}/tcp");
    refused(&output, 3, &["is deployed", "it answers on its host, but not from here", &open]);
    assert!(proxies(&host).contains("https://255.255.255.255"));
    // Another console gets to know it by hand, with what the host says of itself.
    let told = host.run("/usr/local/bin/backhauld fingerprint");
    let (other, token) = (host.dir.path().join("other-console"), host.dir.path().join("token"));
    fs::write(&token, host.run("cat /var/lib/backhaul/token")).unwrap();
    let url = format!("https://127.0.0.1:{port}");
    let add = ["proxy", "add", &url, "--token-file", token.to_str().unwrap(), "--fingerprint", told.trim()];
    good(host.command_of(&other, &add).output().unwrap());
    // Where a console looks for it can be changed later.
    good(host.backhaul(&["proxy", "deploy", "--ssh", &to, "--host", "127.0.0.1", "--yes"]));
    live(&host);
}
