//! The appliance's guest agent, with other programs in the place of `ip` and the tools of XenStore.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Whatever is waited for comes sooner.
const LIMIT: Duration = Duration::from_secs(60);

struct Agent {
    dir: PathBuf,
    child: Child,
}

impl Drop for Agent {
    fn drop(&mut self) {
        // What it has started outlives it otherwise, as it does not in the appliance.
        let group = format!("-{}", self.child.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn program(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/bash\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

impl Agent {
    fn start(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("backhaul-guest-agent-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let programs = dir.join("bin");
        fs::create_dir_all(&programs).unwrap();
        // An interface of the pool's, and one that is not.
        let net = dir.join("sys/class/net");
        for (link, node) in [("eth0", Some("device/vif/0")), ("lo", None)] {
            let device = dir.join("devices").join(link);
            fs::create_dir_all(device.join("device")).unwrap();
            if let Some(node) = node {
                fs::write(device.join("device/nodename"), format!("{node}\n")).unwrap();
            }
            fs::create_dir_all(&net).unwrap();
            symlink(&device, net.join(link)).unwrap();
        }
        let at = dir.display();
        // `monitor` says a line for each that is written into the pipe, and never ends by itself.
        program(
            &programs.join("ip"),
            &format!(
                "case \"$*\" in *monitor*) exec cat <>{at}/changes ;; *-4*eth0*) cat {at}/four ;; *-6*eth0*) cat {at}/six ;; esac"
            ),
        );
        program(&programs.join("xenstore-write"), &format!("echo \"write $1=$2\" >>{at}/said"));
        program(&programs.join("xenstore-rm"), &format!("echo \"rm $1\" >>{at}/said"));
        assert!(Command::new("mkfifo").arg(dir.join("changes")).status().unwrap().success());
        let child = Command::new("true").process_group(0).spawn().unwrap();
        let agent = Self { child, dir };
        agent.addresses(&["10.0.0.7/24"], &["2001:db8::7/64"]);
        agent
    }

    fn run(&mut self) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/appliance/root/usr/lib/backhaul/guest-agent");
        let path = format!("{}:{}", self.dir.join("bin").display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("bash");
        command.arg(script).env("PATH", path).env("BACKHAUL_SYS", self.dir.join("sys"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        self.child = command.spawn().unwrap();
    }

    fn addresses(&self, four: &[&str], six: &[&str]) {
        let line = |family: &str, address: &&str| {
            format!("2: eth0    {family} {address} brd x scope global eth0\\  valid_lft forever\n")
        };
        fs::write(self.dir.join("four"), four.iter().map(|address| line("inet", address)).collect::<String>()).unwrap();
        fs::write(self.dir.join("six"), six.iter().map(|address| line("inet6", address)).collect::<String>()).unwrap();
    }

    fn change(&self) {
        fs::write(self.dir.join("changes"), "2: eth0 inet changed\n").unwrap();
    }

    /// What has been told by the `rounds`-th time that everything was.
    fn told(&self, rounds: usize) -> Vec<String> {
        let begun = Instant::now();
        loop {
            let said = fs::read_to_string(self.dir.join("said")).unwrap_or_default();
            let lines: Vec<_> = said.lines().map(str::to_owned).collect();
            let ends = lines.iter().enumerate().filter(|(_, line)| line.starts_with("write data/updated="));
            if let Some((end, _)) = ends.clone().nth(rounds - 1) {
                let begin = if rounds > 1 { ends.clone().nth(rounds - 2).unwrap().0 + 1 } else { 0 };
                return lines[begin..=end].to_vec();
            }
            assert!(begun.elapsed() < LIMIT, "waited for {rounds} rounds, but there is only: {said}");
            #[expect(clippy::disallowed_methods, reason = "the pause between two looks at a file")]
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn the_pool_is_told_addresses_and_system_and_every_change() {
    let mut agent = Agent::start("tells");
    agent.run();
    let told = agent.told(1);
    let has = |line: &str| told.iter().any(|said| said == line);
    assert!(has("write attr/vif/0/ipv4/0=10.0.0.7"), "{told:?}");
    assert!(has("write attr/vif/0/ipv6/0=2001:db8::7"), "{told:?}");
    assert!(has("write attr/PVAddons/Installed=1"), "{told:?}");
    for key in ["data/os_name", "data/os_distro", "data/os_majorver", "data/os_uname", "data/meminfo_total", "data/meminfo_free"]
    {
        let value = told.iter().find_map(|line| line.strip_prefix(&format!("write {key}=")));
        assert!(value.is_some_and(|value| !value.is_empty()), "{key}: {told:?}");
    }
    agent.addresses(&["10.0.0.8/24", "10.0.0.9/24"], &[]);
    agent.change();
    let told = agent.told(2);
    let addresses: Vec<_> = told.iter().filter(|line| line.contains("vif")).collect();
    assert_eq!(
        addresses,
        ["rm attr/vif/0/ipv6/0", "write attr/vif/0/ipv4/0=10.0.0.8", "write attr/vif/0/ipv4/1=10.0.0.9"],
        "what is gone is removed, and nothing is told twice"
    );
}

#[test]
fn it_ends_when_nobody_monitors_and_when_nothing_can_be_told() {
    let mut agent = Agent::start("deaf");
    program(&agent.dir.join("bin/ip"), "exit 0");
    agent.run();
    assert!(!agent.child.wait().unwrap().success());
    let mut agent = Agent::start("mute");
    program(&agent.dir.join("bin/xenstore-write"), "exit 1");
    agent.run();
    assert!(!agent.child.wait().unwrap().success());
}
