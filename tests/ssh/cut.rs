//! Deployments that are cut off, interrupted or undone, and two of them at once.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::host::{Host, Setup, free_port};
use super::{difference, good, live, pid, proxies, refused, stderr, stripped};

fn send(child: &Child, signal: Signal) {
    let id = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(id, signal).unwrap();
}

/// Waits for something, as long as a program works on it.
fn until(child: &mut Child, what: &str, is: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is() {
        assert!(child.try_wait().unwrap().is_none() && Instant::now() < end, "{what} did not happen");
        std::thread::yield_now();
    }
}

fn spawn(mut command: Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// What happens once, just before `systemctl` does something.
fn once(host: &Host, verb: &str, script: &str) {
    host.run("mkdir -p /run/test-systemd");
    host.replace(&format!("/run/test-systemd/once-{verb}"), script);
}

/// What a run keeps for undoing, on the whole host.
fn kept(host: &Host) -> String {
    host.run("find /usr/local/bin /etc /var/lib/backhaul /run -name '*.backhaul-*' -o -name deploying 2> /dev/null")
}

/// Puts a program in the place of the administrator's ssh; how it finds out what ssh makes of a host is left to the real one.
fn instead_of_ssh(host: &Host, script: &str) {
    let ssh = host.dir.path().join("bin/ssh");
    let real = fs::read_to_string(&ssh).unwrap();
    let call = real.lines().find(|line| line.contains("exec /usr/bin/ssh")).unwrap().trim();
    let call = call.strip_prefix("case \"$*\" in *-G*) ").map_or(call, |call| call.trim_end_matches(" ;; esac"));
    fs::write(&ssh, format!("#!/bin/sh\ncase \"$*\" in *-G*) {call} ;; esac\n{script}")).unwrap();
}

/// Whoever thinks better of it while ssh still asks has not met a proxy that does not answer.
#[test]
fn interrupted_at_the_login_it_ends_as_it_does_anywhere_else() {
    let host = Host::start(&Setup::default());
    let (to, asks) = (host.destination("root"), host.dir.path().join("asks"));
    instead_of_ssh(&host, &format!(": > '{}'\nexec sleep 600\n", asks.display()));
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let mut child = spawn(host.command(&["proxy", "deploy", "--ssh", &to, "--yes"]));
        until(&mut child, "the login", || asks.exists());
        send(&child, signal);
        refused(&child.wait_with_output().unwrap(), 1, &["interrupted"]);
        fs::remove_file(&asks).unwrap();
    }
    // A helper of ssh that outlives it, and holds on to its standard error.
    fs::write(&asks, "").unwrap();
    instead_of_ssh(&host, &format!("while [ -e '{}' ]; do sleep 0.1; done &\necho no way >&2\nexit 255\n", asks.display()));
    let mut child = spawn(host.command(&["proxy", "deploy", "--ssh", &to, "--yes"]));
    let end = Instant::now() + Duration::from_secs(60);
    let ended = loop {
        match child.try_wait().unwrap() {
            None if Instant::now() < end => std::thread::yield_now(),
            ended => break ended.is_some(),
        }
    };
    fs::remove_file(&asks).unwrap();
    assert!(ended, "it waits for what outlives ssh");
    refused(&child.wait_with_output().unwrap(), 3, &["cannot log in"]);
}

#[test]
fn interrupted_within_a_step_what_is_at_work_ends_before_it_is_undone() {
    let host = Host::start(&Setup::default());
    let (to, port) = (host.destination("root"), free_port().to_string());
    let before = host.contents();
    // It goes on when somebody waits for it, or when what it works on is taken away below it.
    once(
        &host,
        "restart",
        "touch /run/at-work\nuntil pgrep -x flock > /dev/null; do\n[ -e /etc/systemd/system/backhauld.service ] || \
         { touch /run/overlapped; exit 1; }\nsleep 0.1\ndone\n",
    );
    let mut child = spawn(host.command(&["proxy", "deploy", "--ssh", &to, "--name", "p", "--port", &port, "--yes"]));
    until(&mut child, "the start", || host.run("ls /run/at-work 2> /dev/null || :").contains("at-work"));
    send(&child, Signal::INT);
    let output = child.wait_with_output().unwrap();
    refused(&output, 1, &["cannot start the service", "interrupted", "is as it was before"]);
    assert_eq!(host.run("ls /run/overlapped 2> /dev/null || :"), "", "it was undone while it was being done");
    assert_eq!(host.run("systemctl is-active backhauld || :"), "inactive\n");
    assert_eq!(difference(&before, &host.contents()), [""; 0]);
}

/// Before the unit is taken up, the server's processes of all connections are gone.
const CUT: &str = "for p in $(pgrep -x sshd); do [ \"$(ps -o ppid= -p $p | tr -d ' ')\" = 1 ] && kill -9 $p; done\nexit 1\n";

#[test]
fn a_change_that_was_cut_before_the_start_is_finished_by_the_same_command() {
    let host = Host::start(&Setup::default());
    let (to, port) = (host.destination("root"), free_port().to_string());
    let (first, next) = (stripped(&host, "first", b""), stripped(&host, "next", b"next"));
    let deploy = ["proxy", "deploy", "--ssh", &to, "--name", "p", "--port", &port, "--yes", "--package"];
    good(host.backhaul(&[&deploy[..], &[&first]].concat()));
    let running = || host.run("readlink /proc/$(cat /run/test-systemd/pid)/exe");

    let upgrade = [&deploy[..], &[&next]].concat();
    once(&host, "daemon-reload", CUT);
    refused(&host.backhaul(&upgrade), 3, &["cannot start the service again", "the same command takes it up"]);
    assert_ne!(running(), "/usr/local/bin/backhauld\n", "nothing was cut");
    let said = good(host.backhaul(&upgrade));
    assert!(said.contains("start the service again") && !said.contains("put the program"), "{said}");
    assert_eq!((running().as_str(), kept(&host).as_str()), ("/usr/local/bin/backhauld\n", ""));
    let process = pid(&host);
    assert!(good(host.backhaul(&upgrade)).contains("nothing to do"));
    assert_eq!(pid(&host), process, "the service was started again for nothing");

    // The same for another port: consoles look for it there afterwards.
    let elsewhere = free_port().to_string();
    let mut moved = upgrade.clone();
    moved[7] = &elsewhere;
    once(&host, "daemon-reload", CUT);
    refused(&host.backhaul(&moved), 3, &["cannot start the service again"]);
    good(host.backhaul(&moved));
    assert_eq!((live(&host)["url"].as_str().unwrap(), kept(&host).as_str()), (&*format!("https://127.0.0.1:{elsewhere}"), ""));
}

#[test]
fn an_upgrade_that_fails_after_it_changed_the_state_gives_the_former_one_back() {
    let host = Host::start(&Setup::default());
    let (to, port) = (host.destination("root"), free_port().to_string());
    let (first, next) = (stripped(&host, "first", b""), stripped(&host, "next", b"next"));
    let deploy = ["proxy", "deploy", "--ssh", &to, "--name", "p", "--port", &port, "--yes", "--package"];
    good(host.backhaul(&[&deploy[..], &[&first]].concat()));
    good(host.backhaul(&["proxy", "set", "p", "--site", "Lyon"]));
    // What a newer program makes of a database; no program of today reads it.
    let newer = "systemctl stop backhauld && exec setpriv --reuid backhaul --regid backhaul --clear-groups sqlite3 \
                 /var/lib/backhaul/state.db \"INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (99999, 'newer', 1, x'00', 0)\"\n";
    once(&host, "restart", newer);
    let failed = host.backhaul(&[&deploy[..], &[&next]].concat());
    refused(&failed, 1, &["cannot start the service again", "is as it was before"]);
    assert_eq!(live(&host)["status"]["site"], "Lyon");
    assert_eq!(kept(&host), "");
    good(host.backhaul(&[&deploy[..], &[&next]].concat()));
    assert_eq!(live(&host)["status"]["site"], "Lyon");
    assert_eq!(kept(&host), "");
}

#[test]
fn of_two_at_once_the_second_is_refused_and_an_entry_made_meanwhile_is_not_lost() {
    let host = Host::start(&Setup::default());
    let (to, port) = (host.destination("root"), free_port().to_string());
    let before = host.contents();
    let deploy = ["proxy", "deploy", "--ssh", &to, "--name", "p", "--port", &port, "--yes"];
    once(&host, "restart", "touch /run/at-work\nuntil [ -e /run/go ]; do sleep 0.1; done\n");
    let mut child = spawn(host.command(&deploy));
    until(&mut child, "the start", || host.run("ls /run/at-work 2> /dev/null || :").contains("at-work"));
    let other = host.dir.path().join("other-console");
    let of_other = |arguments: &[&str]| host.command_of(&other, arguments).output().unwrap();
    refused(&of_other(&deploy), 4, &["another deployment or removal is under way on root@", "wait until it is over"]);
    refused(
        &of_other(&["proxy", "undeploy", "--ssh", &to, "--confirm", "p"]),
        4,
        &["another deployment or removal is under way"],
    );
    // The console gets to know another proxy of that name while it works.
    let entry = format!(
        "[[proxy]]\nname = \"p\"\nurl = \"https://elsewhere.example\"\ntoken = \"another-ones-token\"\nfingerprint = \"{}\"\n",
        "AB".repeat(32)
    );
    fs::create_dir_all(host.config()).unwrap();
    fs::write(host.config().join("proxies.toml"), &entry).unwrap();
    fs::set_permissions(host.config().join("proxies.toml"), fs::Permissions::from_mode(0o600)).unwrap();
    host.run("touch /run/go");
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    while errors.read_line(&mut said).unwrap() > 0 {}
    assert_eq!(child.wait().unwrap().code(), Some(1), "{said}");
    assert!(said.contains("there is already a proxy \"p\"") && said.contains("is as it was before"), "{said}");
    assert!(proxies(&host).contains("another-ones-token"), "{}", proxies(&host));
    assert_eq!(difference(&before, &host.contents()), [""; 0]);
    // Nobody is kept away any more.
    let done = of_other(&deploy);
    assert!(done.status.success(), "{}", stderr(&done));
}
