//! `cargo xtask package`: both programs with unit and documents as `.tar.gz`, `.deb` and `.rpm`.
//!
//! The same commit gives the same bytes (`SOURCE_DATE_EPOCH`, by default the time of the commit): no time, name or path of the
//! machine that builds gets in. What the programs need of a machine is read out of them and written into the packages.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use packages::{Glibc, Kind};

use crate::run::{Program, succeeds, workspace};
use crate::setup;

/// What is installed, where, with which permissions. The unit stands beside this module's other sources in `packaging/`.
const FILES: &[(&str, &str, u32)] = &[
    ("packaging/backhauld.service", "usr/lib/systemd/system/backhauld.service", 0o644),
    ("packaging/backhaul.sysusers", "usr/lib/sysusers.d/backhaul.conf", 0o644),
    ("packaging/backhauld.toml.example", "usr/share/doc/backhaul/backhauld.toml.example", 0o644),
    ("README.md", "usr/share/doc/backhaul/README.md", 0o644),
    ("docs/installing.md", "usr/share/doc/backhaul/installing.md", 0o644),
    ("LICENSE", "usr/share/doc/backhaul/copyright", 0o644),
];
/// The programs.
pub const PROGRAMS: [&str; 2] = ["backhaul", "backhauld"];
const SUMMARY: &str = "backup proxy and console for XCP-ng virtual machines";
const ABOUT: &str = "backhauld reads the disks of a pool's virtual machines and writes them to backup repositories;\n \
                     backhaul is the terminal console over all of them.";
/// systemd's own measure of how exposed the service is, at most, times ten.
const EXPOSURE: &str = "20";

const POSTINST: &str = r#"#!/bin/sh
# Makes the account. Starts nothing that did not run: a fresh installation has no settings yet.
set -e
if [ "$1" = configure ]; then
    systemd-sysusers ${DPKG_ROOT:+--root="$DPKG_ROOT"} /usr/lib/sysusers.d/backhaul.conf
    if [ -z "$DPKG_ROOT" ] && [ -d /run/systemd/system ]; then
        systemctl daemon-reload
        # `backhaul proxy deploy --ssh` starts it again itself, once the settings are checked.
        [ -n "${BACKHAUL_DEPLOYING:-}" ] || systemctl try-restart backhauld.service
    fi
fi
"#;
const PRERM: &str = r#"#!/bin/sh
set -e
if [ "$1" = remove ] && [ -z "$DPKG_ROOT" ] && [ -d /run/systemd/system ]; then
    systemctl stop backhauld.service
    systemctl disable backhauld.service
fi
"#;
const POSTRM: &str = r#"#!/bin/sh
# Settings and state are not the package's: they stay, purged or not.
set -e
if [ -z "$DPKG_ROOT" ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi
"#;
const RPM_SCRIPTS: &str = r#"%post
systemd-sysusers /usr/lib/sysusers.d/backhaul.conf || :
if [ -d /run/systemd/system ]; then systemctl daemon-reload || :; fi

%preun
if [ "$1" = 0 ] && [ -d /run/systemd/system ]; then systemctl stop backhauld.service || :; systemctl disable backhauld.service || :; fi

%postun
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || :
    # `backhaul proxy deploy --ssh` starts it again itself, once the settings are checked.
    if [ "$1" != 0 ] && [ -z "${BACKHAUL_DEPLOYING:-}" ]; then systemctl try-restart backhauld.service || :; fi
fi
"#;

struct Options {
    profile: String,
    fixed: bool,
    binaries: Option<PathBuf>,
    out: PathBuf,
    only: Option<String>,
    check: bool,
}

impl Options {
    fn parse(args: &[String]) -> Result<Self> {
        let mut options = Self {
            profile: "dist".into(),
            fixed: false,
            binaries: None,
            out: workspace().join("target/package"),
            only: None,
            check: false,
        };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--profile" => options.profile = value()?.clone(),
                "--binaries" => options.binaries = Some(std::path::absolute(value()?)?),
                "--out" => options.out = std::path::absolute(value()?)?,
                "--only" => options.only = Some(value()?.clone()),
                "--static" => options.fixed = true,
                "--check" => options.check = true,
                other => bail!("no such option: {other}; there are --profile, --static, --binaries, --out, --only, --check"),
            }
        }
        ensure!(!options.check || options.only.is_none(), "--check looks at all packages, so there is no --only with it");
        Ok(options)
    }
}

/// What is the same in all packages.
struct Release {
    version: String,
    /// As `uname -m` says it.
    machine: String,
    glibc: Option<Glibc>,
    /// Seconds since the Unix epoch.
    epoch: String,
}

/// Builds, packs, and with `--check` looks at what came out.
pub fn run(args: &[String]) -> Result<()> {
    let options = Options::parse(args)?;
    setup::packagers()?;
    let binaries = match &options.binaries {
        Some(folder) => folder.clone(),
        None => build(&options)?,
    };
    let mut needs = None;
    for program in PROGRAMS {
        let found = packages::inspect(&binaries.join(program))?;
        ensure!(found.kind == Kind::Program, "{} is no program", binaries.join(program).display());
        ensure!(!options.fixed || found.needs.glibc.is_none(), "{program} still needs the C library {:?}", found.needs.glibc);
        let former = needs.replace(found.needs.clone());
        // Both go into the same package, so the more demanding one counts.
        if let Some(former) = former.filter(|former| former.glibc > found.needs.glibc) {
            needs = Some(former);
        }
    }
    let needs = needs.context("there is no program")?;
    let (version, epoch) = version()?;
    let release = Release { version, machine: needs.machine, glibc: needs.glibc, epoch };
    let made = pack(&release, &binaries, &options.out, options.only.as_deref())?;
    if options.check {
        let again = options.out.join("again");
        let second = pack(&release, &binaries, &again, None)?;
        for (first, second) in made.iter().zip(&second) {
            ensure!(fs::read(first)? == fs::read(second)?, "{} is not the same when it is made again", first.display());
        }
        fs::remove_dir_all(&again)?;
        check(&release, &made)?;
    }
    let library = release.glibc.map_or_else(|| "no C library".into(), |version| format!("glibc {version} or newer"));
    println!("for {} with {library}:", release.machine);
    for path in made {
        println!("{:>12}  {}", fs::metadata(&path)?.len(), path.display());
    }
    Ok(())
}

/// Builds the programs; answers where they are.
fn build(options: &Options) -> Result<PathBuf> {
    let host = output(Command::new("rustc").args(["--version", "--verbose"]))?;
    let triple = host.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc tells no host")?.to_owned();
    let mut cargo = Program::cargo().args(["build", "--package", "backhaul", "--package", "daemon", "--bins", "--locked"]);
    cargo = cargo.args(["--profile", &options.profile]);
    let mut folder = workspace().join("target");
    let mut flags = String::new();
    if options.profile != "dev" {
        // Paths of this machine stand in messages of panics.
        let home = std::env::var("CARGO_HOME").or_else(|_| std::env::var("HOME").map(|home| format!("{home}/.cargo")))?;
        write!(flags, "--remap-path-prefix={}=backhaul --remap-path-prefix={home}=cargo", workspace().display())?;
    }
    if options.fixed {
        // With the target named, what runs while building (macros, build scripts) stays dynamic.
        flags.push_str(" -C target-feature=+crt-static");
        cargo = cargo.args(["--target", &triple]);
        folder.push(&triple);
    }
    if !flags.is_empty() {
        cargo = cargo.env("RUSTFLAGS", &flags);
    }
    cargo.run()?;
    Ok(folder.join(if options.profile == "dev" { "debug" } else { &options.profile }))
}

/// The version of the packages, and the time that stands in them: those of the commit.
fn version() -> Result<(String, String)> {
    let git = |args: &[&str]| output(Command::new("git").current_dir(workspace()).args(args));
    let base = env!("CARGO_PKG_VERSION");
    let epoch = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(epoch) => epoch,
        Err(_) => git(&["log", "-1", "--format=%ct"])?,
    };
    ensure!(epoch.parse::<u64>().is_ok(), "SOURCE_DATE_EPOCH: expected seconds since 1970, found {epoch:?}");
    let tagged = git(&["tag", "--points-at", "HEAD"])?.lines().any(|tag| tag == format!("v{base}"));
    let clean = git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    if tagged && clean {
        return Ok((base.to_owned(), epoch));
    }
    let commit = commit(Command::new("git").current_dir(workspace()))?;
    Ok((format!("{base}+{commit}{}", if clean { "" } else { ".changed" }), epoch))
}

/// Time and short name of the commit, the same wherever it is asked.
fn commit(git: &mut Command) -> Result<String> {
    git.env("TZ", "UTC").args(["log", "-1", "--date=format-local:%Y%m%d%H%M", "--format=%cd.%h", "--abbrev=8"]);
    output(git)
}

fn pack(release: &Release, binaries: &Path, out: &Path, only: Option<&str>) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(out)?;
    let stage = out.join("stage");
    if stage.exists() {
        fs::remove_dir_all(&stage)?;
    }
    for program in PROGRAMS {
        install(&binaries.join(program), &stage.join("usr/bin").join(program), 0o755)?;
    }
    for (from, to, mode) in FILES {
        install(&workspace().join(from), &stage.join(to), *mode)?;
    }
    let mut made = Vec::new();
    // The .deb last: its control files go into the stage.
    for (kind, make) in [("tar.gz", tarball as fn(_, _, _) -> _), ("rpm", rpm), ("deb", deb)] {
        if only.is_none_or(|only| only == kind) {
            made.push(make(release, &stage, out)?);
        }
    }
    ensure!(!made.is_empty(), "--only is tar.gz, rpm or deb");
    fs::remove_dir_all(&stage)?;
    Ok(made)
}

fn install(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let folder = to.parent().context("a file in no folder")?;
    fs::create_dir_all(folder)?;
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode))?;
    // Folders as they are on a system, whatever the umask.
    for folder in folder.ancestors().take_while(|folder| !folder.ends_with("stage")) {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn tarball(release: &Release, stage: &Path, out: &Path) -> Result<PathBuf> {
    let kind = if release.glibc.is_none() { "-static" } else { "" };
    let name = format!("backhaul-{}-linux-{}{kind}", release.version, release.machine);
    let path = out.join(format!("{name}.tar.gz"));
    Program::new("tar")
        .args(["--create", "--sort=name", "--format=ustar", "--owner=0", "--group=0", "--numeric-owner"])
        .arg(format!("--mtime=@{}", release.epoch))
        .arg(format!("--transform=s,^\\./usr,{name},"))
        .arg("--use-compress-program=gzip -n -9")
        .args(["--directory".as_ref(), stage.as_os_str(), "--file".as_ref(), path.as_os_str(), "./usr".as_ref()])
        .run()?;
    Ok(path)
}

fn deb(release: &Release, stage: &Path, out: &Path) -> Result<PathBuf> {
    let architecture = match release.machine.as_str() {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "ppc64le" => "ppc64el",
        other => other,
    };
    let library = release.glibc.map(|version| format!("libc6 (>= {version}), libgcc-s1, ")).unwrap_or_default();
    let kib: u64 =
        PROGRAMS.iter().map(|name| fs::metadata(stage.join("usr/bin").join(name)).map_or(0, |file| file.len() >> 10)).sum();
    let control = stage.join("DEBIAN");
    fs::create_dir(&control)?;
    fs::set_permissions(&control, fs::Permissions::from_mode(0o755))?;
    let text = format!(
        "Package: backhaul\nVersion: {}\nArchitecture: {architecture}\nMaintainer: Backhaul <backhaul@packages.invalid>\n\
         Installed-Size: {kib}\nDepends: {library}systemd\nSection: admin\nPriority: optional\nDescription: {SUMMARY}\n {ABOUT}\n",
        release.version
    );
    for (name, text, mode) in
        [("control", text.as_str(), 0o644), ("postinst", POSTINST, 0o755), ("prerm", PRERM, 0o755), ("postrm", POSTRM, 0o755)]
    {
        fs::write(control.join(name), text)?;
        fs::set_permissions(control.join(name), fs::Permissions::from_mode(mode))?;
    }
    let sums = output(Command::new("sh").current_dir(stage).args(["-c", "find usr -type f | LC_ALL=C sort | xargs md5sum"]))?;
    fs::write(control.join("md5sums"), sums + "\n")?;
    fs::set_permissions(control.join("md5sums"), fs::Permissions::from_mode(0o644))?;
    let path = out.join(format!("backhaul_{}_{architecture}.deb", release.version));
    Program::new("dpkg-deb")
        .env("SOURCE_DATE_EPOCH", &release.epoch)
        // Read by us, and by every dpkg there is.
        .args(["--root-owner-group", "-Zgzip", "--build"])
        .arg(stage)
        .arg(&path)
        .run()?;
    Ok(path)
}

fn rpm(release: &Release, stage: &Path, out: &Path) -> Result<PathBuf> {
    let top = out.join("rpmbuild");
    fs::create_dir_all(&top)?;
    let requires = release
        .glibc
        .map(|version| format!("Requires: libc.so.6(GLIBC_{version})(64bit), libgcc_s.so.1()(64bit)\n"))
        .unwrap_or_default();
    let mut files = String::new();
    for program in PROGRAMS {
        writeln!(files, "%attr(0755,root,root) /usr/bin/{program}")?;
    }
    for (_, to, mode) in FILES {
        writeln!(files, "%attr({mode:04o},root,root) /{to}")?;
    }
    let spec = format!(
        "Name: backhaul\nVersion: {}\nRelease: 1\nSummary: {SUMMARY}\nLicense: Apache-2.0 OR MIT\nAutoReqProv: no\nRequires: systemd\n{requires}\
         %description\n{}\n\n%install\ncp -a {}/usr %{{buildroot}}/\n\n{RPM_SCRIPTS}\n%files\n%dir %attr(0755,root,root) \
         /usr/share/doc/backhaul\n{files}",
        release.version,
        ABOUT.replace("\n ", "\n"),
        stage.display(),
    );
    let path = top.join("backhaul.spec");
    fs::write(&path, spec)?;
    let define = |name: &str, value: &str| ["--define".to_owned(), format!("{name} {value}")];
    Program::new("rpmbuild")
        .env("SOURCE_DATE_EPOCH", &release.epoch)
        .args(["-bb", "--quiet", "--target", &release.machine])
        .args(define("_topdir", &top.display().to_string()))
        .args(define("_rpmdir", &top.display().to_string()))
        .args(define("_rpmfilename", "backhaul.rpm"))
        .args(define("_buildhost", "reproducible"))
        .args(define("use_source_date_epoch_as_buildtime", "1"))
        .args(define("clamp_mtime_to_source_date_epoch", "1"))
        .args(define("source_date_epoch_from_changelog", "0"))
        // The files as they are: nothing stripped, moved, linked or compressed.
        .args(define("__os_install_post", "%{nil}"))
        .args(define("debug_package", "%{nil}"))
        .args(define("_build_id_links", "none"))
        .args(define("_binary_payload", "w9.gzdio"))
        .arg(&path)
        .run()?;
    let made = out.join(format!("backhaul-{}-1.{}.rpm", release.version, release.machine));
    fs::rename(top.join("backhaul.rpm"), &made)?;
    fs::remove_dir_all(top)?;
    Ok(made)
}

/// Looks at the packages with the tools that install them, and at the service with systemd's own measure.
fn check(release: &Release, made: &[PathBuf]) -> Result<()> {
    let [tarball, rpm, deb] = made else { bail!("three packages were expected") };
    let mut wanted: Vec<String> = PROGRAMS.iter().map(|name| format!("usr/bin/{name}")).collect();
    wanted.extend(FILES.iter().map(|(_, to, _)| (*to).to_owned()));
    wanted.sort();
    let same = |what: &Path, mut found: Vec<String>| {
        found.sort();
        ensure!(found == wanted, "{} has {found:#?}\nand should have {wanted:#?}", what.display());
        Ok(())
    };

    let listed = output(Command::new("dpkg-deb").arg("--contents").arg(deb))?;
    let file = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        ensure!(columns.get(1) == Some(&"root/root"), "not root's: {line}");
        Ok(columns
            .first()
            .filter(|mode| mode.starts_with('-'))
            .and(columns.last())
            .map(|path| path.trim_start_matches("./").to_owned()))
    };
    same(deb, listed.lines().map(file).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())?;
    let listed = output(
        Command::new("rpm")
            .args(["-qp", "--nosignature", "--qf", "[%{FILENAMES} %{FILEUSERNAME} %{FILEMODES:perms}\n]"])
            .arg(rpm),
    )?;
    ensure!(listed.lines().all(|line| line.contains(" root ")), "not root's: {listed}");
    let files = listed.lines().filter(|line| !line.contains(" d")).filter_map(|line| line.split(' ').next());
    same(rpm, files.map(|path| path.trim_start_matches('/').to_owned()).collect())?;
    let listed = output(Command::new("tar").arg("-tzf").arg(tarball))?;
    let files = listed.lines().filter(|line| !line.ends_with('/')).filter_map(|line| line.split_once('/'));
    same(tarball, files.map(|(_, path)| format!("usr/{path}")).collect())?;

    for path in made {
        let found = packages::inspect(path)?.needs;
        ensure!((&found.machine, found.glibc) == (&release.machine, release.glibc), "{} needs {found:?}", path.display());
    }
    let hosts = output(Command::new("rpm").args(["-qp", "--nosignature", "--qf", "%{BUILDHOST} %{BUILDTIME}"]).arg(rpm))?;
    ensure!(hosts == format!("reproducible {}", release.epoch), "the .rpm tells of this machine: {hosts}");
    if succeeds("systemd-analyze", &["--version"]) {
        let unit = workspace().join("packaging/backhauld.service");
        Program::new("systemd-analyze")
            .args(["security", "--no-pager", "--offline=yes", &format!("--threshold={EXPOSURE}")])
            .arg(unit)
            .quiet()
            .run()?;
    }
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    ensure!(
        output.status.success(),
        "{:?} ended with {}: {}",
        command.get_program(),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_commit_is_the_same_in_every_time_zone() {
        let epoch: u64 = output(Command::new("git").args(["log", "-1", "--format=%ct"])).unwrap().parse().unwrap();
        let clock = format!("{:02}{:02}", epoch / 3600 % 24, epoch / 60 % 60);
        for zone in ["Asia/Kathmandu", "XXX-5:45", "UTC"] {
            let commit = commit(Command::new("git").env("TZ", zone)).unwrap();
            assert_eq!(&commit[8..12], clock, "{commit} in {zone}");
        }
    }
}
