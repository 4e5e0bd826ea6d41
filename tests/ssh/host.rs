//! A Linux host to deploy to: this machine's own system in a file system of its own, laid over the real one and thrown away
//! afterwards, with a real OpenSSH server, the real tools of the distribution, and a `systemctl` that starts and stops the
//! real daemon as the account that its unit names. What a deployment leaves on it can be listed.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Stands in for systemd. It acts on a unit as it was at the last `daemon-reload`, as the real one does.
const SYSTEMCTL: &str = include_str!("systemctl.sh");

pub struct Host {
    pub dir: tempfile::TempDir,
    pub ssh_port: u16,
    server: Child,
}

pub struct Setup {
    /// Size of the host's disk, MiB.
    pub disk: u32,
    /// Whether the account `admin` may become root without a password.
    pub sudo: bool,
    /// Whether its SSH server opens tunnels.
    pub tunnels: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self { disk: 4096, sudo: true, tunnels: true }
    }
}

/// A port that nobody listens on.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// As root, which laying file systems over each other takes.
fn as_root(program: &str) -> Command {
    if rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.args(["-n", program]);
    command
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn keygen(path: &Path) {
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(path).output().unwrap();
    assert!(made.status.success(), "{made:?}");
}

impl Host {
    pub fn start(setup: &Setup) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let ssh_port = free_port();
        keygen(&at("host-key"));
        keygen(&at("client-key"));
        keygen(&at("other-key"));

        // What the host has beside the system that it is laid over.
        let host = at("host");
        write(&host.join("usr/bin/systemctl"), SYSTEMCTL, 0o755);
        write(&host.join("usr/bin/journalctl"), "#!/bin/sh\nexec tail -n 5 /var/log/backhauld.log\n", 0o755);
        fs::create_dir_all(host.join("run/systemd/system")).unwrap();
        fs::create_dir_all(host.join("run/sshd")).unwrap();
        for (name, line) in [
            ("passwd", "admin:x:4242:4242::/:/bin/sh\n"),
            ("shadow", "admin:*:19000:0:99999:7:::\n"),
            ("group", "admin:x:4242:\n"),
            ("gshadow", "admin:*::\n"),
        ] {
            let there = as_root("cat").arg(format!("/etc/{name}")).output().unwrap();
            assert!(there.status.success(), "{there:?}");
            let mode = if name.contains("shadow") { 0o640 } else { 0o644 };
            write(&host.join("etc").join(name), &(String::from_utf8(there.stdout).unwrap() + line), mode);
        }
        let rule = if setup.sudo { "admin ALL=(root) NOPASSWD: ALL\n" } else { "" };
        write(&host.join("etc/sudoers.d/admin"), &format!("Defaults logfile=/var/log/sudo.log\n{rule}"), 0o440);
        let key = fs::read_to_string(at("client-key.pub")).unwrap();
        write(&host.join("etc/ssh/test-keys"), &key, 0o644);
        write(&host.join("etc/ssh/test-host-key"), &fs::read_to_string(at("host-key")).unwrap(), 0o600);
        let server = format!(
            "Port {ssh_port}\nListenAddress 127.0.0.1\nHostKey /etc/ssh/test-host-key\nAuthorizedKeysFile /etc/ssh/test-keys\n\
             UsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\nStrictModes no\n\
             LogLevel VERBOSE\nMaxStartups 100\nMaxSessions 100\nPidFile none\n\
             AllowTcpForwarding {}\n",
            if setup.tunnels { "yes" } else { "no" }
        );
        write(&host.join("etc/ssh/test-config"), &server, 0o644);

        // The administrator's ssh, with a configuration of its own.
        let client = format!(
            "IdentityFile {dir}/client-key\nIdentitiesOnly yes\nUserKnownHostsFile {dir}/known-hosts\nGlobalKnownHostsFile none\n\
             StrictHostKeyChecking yes\nUpdateHostKeys no\nBatchMode yes\n",
            dir = dir.path().display()
        );
        write(&at("ssh-config"), &client, 0o600);
        write(&at("bin/ssh"), &format!("#!/bin/sh\nexec /usr/bin/ssh -F '{}' \"$@\"\n", at("ssh-config").display()), 0o755);

        let script = r#"
            set -e
            mkdir -p "$1/disk" "$1/root"
            mount -t tmpfs -o "size=$2m,mode=0755" disk "$1/disk"
            mkdir "$1/disk/work" "$1/disk/upper"
            cp -a --no-preserve=ownership "$1/host/." "$1/disk/upper/"
            chgrp shadow "$1/disk/upper/etc/shadow" "$1/disk/upper/etc/gshadow"
            chmod 0755 "$1/disk/upper"
            mount -t overlay -o "lowerdir=/,upperdir=$1/disk/upper,workdir=$1/disk/work" host "$1/root"
            mount --rbind /dev "$1/root/dev"
            mount -t proc proc "$1/root/proc"
            mount -t tmpfs -o mode=1777 tmp "$1/root/tmp"
            exec chroot "$1/root" /usr/sbin/sshd -D -e -f /etc/ssh/test-config
        "#;
        let log = fs::File::create(at("sshd.log")).unwrap();
        // All that runs on the host ends with its first process.
        let server = as_root("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script, "host"])
            .arg(dir.path())
            .arg(setup.disk.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut host = Self { dir, ssh_port, server };
        host.trust("host-key.pub");
        let end = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", ssh_port)).is_err() {
            if let Some(status) = host.server.try_wait().unwrap() {
                panic!("the host did not start ({status}): {}", host.log());
            }
            assert!(Instant::now() < end, "the host does not answer: {}", host.log());
            std::thread::yield_now();
        }
        host
    }

    /// What the OpenSSH server said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("sshd.log")).unwrap_or_default()
    }

    /// Makes the administrator's ssh expect this host key.
    pub fn trust(&self, key: &str) {
        let key = fs::read_to_string(self.dir.path().join(key)).unwrap();
        write(&self.dir.path().join("known-hosts"), &format!("[127.0.0.1]:{} {key}", self.ssh_port), 0o600);
    }

    pub fn destination(&self, user: &str) -> String {
        format!("{user}@127.0.0.1:{}", self.ssh_port)
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("console")
    }

    /// The console's command, ready to be run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.command_of(&self.config(), arguments)
    }

    /// The command of a console with another configuration.
    pub fn command_of(&self, config: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_backhaul"));
        let path = std::env::var("PATH").unwrap();
        command
            .arg("--config")
            .arg(config)
            .args(arguments)
            .env("PATH", format!("{}:{path}", self.dir.path().join("bin").display()))
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
        command
    }

    pub fn backhaul(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a script on the host as root.
    pub fn run(&self, script: &str) -> String {
        let ssh = self.dir.path().join("bin/ssh");
        let done = Command::new(ssh)
            .args(["-p", &self.ssh_port.to_string(), "root@127.0.0.1", script])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(done.status.success(), "{script}: {done:?}");
        String::from_utf8(done.stdout).unwrap()
    }

    /// Puts a script in the place of a program on the host.
    pub fn replace(&self, program: &str, script: &str) {
        self.put(program, script.as_bytes());
    }

    /// Puts a file on the host, which may be executed.
    pub fn put(&self, path: &str, content: &[u8]) {
        let ssh = self.dir.path().join("bin/ssh");
        let mut child = Command::new(ssh)
            .args(["-p", &self.ssh_port.to_string(), "root@127.0.0.1"])
            .arg(format!("cat > {path}.new && chmod 755 {path}.new && mv {path}.new {path}"))
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), content).unwrap();
        assert!(child.wait().unwrap().success());
    }

    /// All that is on the host where a deployment could leave something: kind, permissions, owner, and size or content.
    pub fn contents(&self) -> Vec<String> {
        // The account tools keep their lock and one former state each; that is theirs. What a person types on the machine that
        // this host is made of has nothing to do with it.
        let listed = self.run(
            "cd / && list() { find \"$@\" \\( -path 'etc/*-' -o -name .pwd.lock -o -path root/.bash_history \
             -o -path var/lib/sudo \\) -prune -o \\( -type d -printf '%p d %m %U\\n' -o -printf '%p %y %m %U %s %l\\n' \\) 2> /dev/null; }; \
             list etc usr/bin usr/sbin usr/lib/systemd usr/lib/sysusers.d var/tmp tmp; \
             list root home usr/local usr/share/doc var/lib -maxdepth 2; \
             if [ -e var/lib/backhaul ]; then list var/lib/backhaul -mindepth 2; fi; \
             cd etc && sha256sum passwd shadow group gshadow",
        );
        assert!(listed.lines().count() > 500, "{listed}");
        let mut lines: Vec<String> = listed.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The one process that was started; all others of the host are its children and end with it.
        let id = self.server.id().to_string();
        let _ = as_root("kill").args(["-KILL", &id]).status();
        let _ = self.server.wait();
        if std::thread::panicking() {
            eprintln!(
                "--- sshd:\n{}",
                self.log().lines().filter(|line| !line.starts_with("debug")).collect::<Vec<_>>().join("\n")
            );
        }
    }
}
