//! Debian: where its packages come from, and which they were the last time.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::run::{Program, succeeds, workspace};

/// Where packages come from.
#[derive(Args)]
pub struct Sources {
    /// Release of Debian
    #[arg(long, default_value = "trixie")]
    pub suite: String,
    /// Mirror of Debian
    #[arg(long, value_name = "URL", default_value = "http://deb.debian.org/debian")]
    mirror: String,
    /// Mirror of its security updates
    #[arg(long, value_name = "URL", default_value = "http://deb.debian.org/debian-security")]
    security_mirror: String,
    /// The archive as it was at a time like 20261126T000000Z, from snapshot.debian.org instead of the mirrors
    #[arg(long, value_name = "TIME")]
    snapshot: Option<String>,
}

impl Sources {
    /// Runs `mmdebstrap`: packages of these sources, as an archive of files.
    pub fn mmdebstrap(&self, packages: &[String], output: &Path, change: impl FnOnce(Program) -> Program) -> Result<()> {
        install_mmdebstrap()?;
        let suite = &self.suite;
        let (mut main, mut security) = (self.mirror.clone(), self.security_mirror.clone());
        let mut program = Program::new("nice")
            .args(["mmdebstrap", "--quiet", "--architectures=amd64", "--components=main"])
            .args(["--format=tar", "--aptopt=Apt::Install-Recommends \"false\""])
            .arg(format!("--include={}", packages.join(",")));
        if let Some(time) = &self.snapshot {
            main = format!("http://snapshot.debian.org/archive/debian/{time}");
            security = format!("http://snapshot.debian.org/archive/debian-security/{time}");
            program = program.arg("--aptopt=Acquire::Check-Valid-Until \"false\"");
        }
        change(program)
            .arg(suite)
            .arg(output)
            .arg(format!("deb {main} {suite} main"))
            .arg(format!("deb {main} {suite}-updates main"))
            .arg(format!("deb {security} {suite}-security main"))
            .run()
    }
}

/// The only program that is installed on this machine.
fn install_mmdebstrap() -> Result<()> {
    if succeeds("mmdebstrap", &["--version"]) {
        return Ok(());
    }
    if !succeeds("apt-get", &["--version"]) {
        bail!("the appliance is made with mmdebstrap and apt; install them with your distribution's tool and try again");
    }
    Program::as_root("apt-get").arg("update").run()?;
    Program::as_root("apt-get").args(["install", "--yes", "--no-install-recommends", "mmdebstrap"]).run()
}

/// The names in a list: one a line, with a reason behind `#`.
pub fn names(list: &str) -> Vec<String> {
    let lines = list.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// Packages and their versions.
pub type Packages = BTreeMap<String, String>;

/// Which packages were in the appliance, and the time that its files were given.
#[derive(Debug, PartialEq, Eq)]
pub struct Lock {
    /// Seconds since 1970: nothing in the image is younger.
    pub epoch: u64,
    /// What was in it.
    pub packages: Packages,
}

impl Lock {
    /// Where it stands.
    pub fn path() -> PathBuf {
        workspace().join("packaging/appliance/packages.lock")
    }

    /// Reads it.
    pub fn load() -> Result<Self> {
        let path = Self::path();
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is broken; --update-lock writes it anew", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let mut lines = text.lines().filter(|line| !line.starts_with('#'));
        let epoch = lines.next().and_then(|line| line.strip_prefix("epoch ")?.parse().ok());
        let epoch = epoch.context("its first line is no `epoch SECONDS`")?;
        Ok(Self { epoch, packages: packages(lines)? })
    }

    /// Writes it.
    pub fn save(&self) -> Result<()> {
        let path = Self::path();
        let mut text = "# What the appliance was last made of: `cargo xtask appliance --update-lock` writes it.\n".to_owned();
        let _ = writeln!(text, "epoch {}", self.epoch);
        for (name, version) in &self.packages {
            let _ = writeln!(text, "{name} {version}");
        }
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// What is another than it was, a line each.
    pub fn differences(&self, now: &Packages) -> Vec<String> {
        let all: std::collections::BTreeSet<_> = self.packages.keys().chain(now.keys()).collect();
        let line = |name: &String| match (self.packages.get(name), now.get(name)) {
            (Some(before), Some(after)) if before != after => Some(format!("{name}: {after}, was {before}")),
            (Some(before), None) => Some(format!("{name}: gone, was {before}")),
            (None, Some(after)) => Some(format!("{name}: {after}, is new")),
            _ => None,
        };
        all.into_iter().filter_map(line).collect()
    }
}

/// Reads lines of `name version`.
pub fn packages<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Packages> {
    let pair = |line: &str| line.split_once(' ').map(|(name, version)| (name.to_owned(), version.trim().to_owned()));
    lines.into_iter().map(|line| pair(line).with_context(|| format!("{line:?} is no package with its version"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_names_and_reasons() {
        assert_eq!(names("# why\nudev\n\nsudo   # root\n"), ["udev", "sudo"]);
    }

    #[test]
    fn a_lock_reads_back_and_names_what_differs() {
        let lock = Lock::parse("# x\nepoch 17\na 1.0-1\nb 2\n").unwrap();
        assert_eq!(lock.epoch, 17);
        let now = packages(["a 1.0-2", "c 3"]).unwrap();
        assert_eq!(lock.differences(&now), ["a: 1.0-2, was 1.0-1", "b: gone, was 2", "c: 3, is new"]);
        assert!(lock.differences(&lock.packages).is_empty());
        assert!(Lock::parse("a 1\n").is_err());
        assert!(Lock::parse("epoch 1\na\n").is_err());
    }
}
