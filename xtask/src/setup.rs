//! What the tests need of the machine: real servers and judges from the distribution and the registries.

use anyhow::{Result, bail};

use crate::run::{Program, succeeds, workspace};

/// A command that must exist, and Debian's package that brings it.
const COMMANDS: &[(&str, &str)] = &[
    ("qemu-img", "qemu-utils"),
    ("qemu-nbd", "qemu-utils"),
    ("nbdkit", "nbdkit"),
    ("nbdcopy", "libnbd-bin"),
    ("mkfs.ext4", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
    ("strace", "strace"),
    ("sshd", "openssh-server"),
    ("ssh", "openssh-client"),
    ("sudo", "sudo"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
    ("ps", "procps"),
    ("pgrep", "procps"),
    ("strip", "binutils"),
    ("systemd-sysusers", "systemd"),
    ("rpmbuild", "rpm"),
    ("python3", "python3"),
    ("node", "nodejs"),
    ("npm", "npm"),
];

/// Installs all that is missing; does nothing on a machine that has it.
pub fn all() -> Result<()> {
    debian()?;
    node_judges()?;
    python_judges()
}

fn debian() -> Result<()> {
    let mut missing: Vec<&str> = COMMANDS.iter().filter(|(command, _)| !exists(command)).map(|(_, package)| *package).collect();
    if !succeeds("python3", &["-m", "pip", "--version"]) {
        missing.push("python3-pip");
    }
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    if !exists("apt-get") {
        bail!("the tests need {}; install them with your distribution's tool and try again", missing.join(", "));
    }
    Program::as_root("apt-get").arg("update").run()?;
    Program::as_root("apt-get").args(["install", "--yes", "--no-install-recommends"]).args(missing).run()
}

/// XO's own engine, pinned, as the judge of compatibility.
fn node_judges() -> Result<()> {
    let interop = workspace().join("tests/interop");
    let lock = std::fs::read(interop.join("package-lock.json"))?;
    let stamp = interop.join("node_modules/.installed-lock");
    if std::fs::read(&stamp).is_ok_and(|installed| installed == lock) {
        return Ok(());
    }
    Program::new("npm").args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix"]).arg(&interop).run()?;
    Ok(std::fs::write(stamp, lock)?)
}

/// The XAPI client of the Python registry, in a folder of its own.
fn python_judges() -> Result<()> {
    let packages = workspace().join("tests/interop/python");
    if packages.join("XenAPI").exists() || packages.join("XenAPI.py").exists() {
        return Ok(());
    }
    let requirements = workspace().join("tests/interop/requirements.txt");
    Program::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--target"])
        .arg(packages)
        .arg("--requirement")
        .arg(requirements)
        .run()
}

/// What packs.
pub fn packagers() -> Result<()> {
    if ["dpkg-deb", "rpmbuild", "tar", "gzip"].iter().all(|command| exists(command)) {
        return Ok(());
    }
    Program::as_root("apt-get").args(["install", "--yes", "--no-install-recommends", "dpkg", "rpm", "tar", "gzip"]).run()
}

/// The font of the screenshots.
pub fn fonts() -> Result<()> {
    if succeeds("sh", &["-c", "ls /usr/share/fonts/truetype/dejavu/DejaVuSansMono.ttf"]) {
        return Ok(());
    }
    Program::as_root("apt-get").args(["install", "--yes", "--no-install-recommends", "fonts-dejavu-core"]).run()
}

/// The guard of licences and sources.
pub fn cargo_deny() -> Result<()> {
    if succeeds("cargo", &["deny", "--version"]) {
        return Ok(());
    }
    Program::cargo().args(["install", "cargo-deny", "--locked", "--version", "0.20.2"]).run()
}

fn exists(command: &str) -> bool {
    succeeds("sh", &["-c", &format!("PATH=\"$PATH:/usr/sbin:/sbin\" command -v {command}")])
}
