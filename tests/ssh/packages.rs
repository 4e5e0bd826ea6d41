//! What a package file brings and takes away again, with the real tools of the distributions.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::host::{Host, Setup, free_port};
use super::{difference, good, live, refused, stderr, stdout};

/// A package of both programs, of one kind.
fn packed(host: &Host, kind: &str) -> String {
    let beside = Path::new(env!("CARGO_BIN_EXE_backhaul")).parent().unwrap();
    let small = host.dir.path().join("programs");
    fs::create_dir(&small).unwrap();
    for program in ["backhaul", "backhauld"] {
        let done = Command::new("strip").arg("-o").arg(small.join(program)).arg(beside.join(program)).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    }
    let made = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["run", "--quiet", "--package", "xtask", "--", "package", "--only", kind, "--binaries"])
        .arg(&small)
        .arg("--out")
        .arg(host.dir.path().join("packages"))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", stderr(&made));
    let mut made = fs::read_dir(host.dir.path().join("packages")).unwrap().flatten().map(|entry| entry.path());
    let path: PathBuf = made.find(|path| path.to_str().unwrap().ends_with(kind)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// `tools`: where the tool keeps its lists, which it makes and leaves; `whose`: asks it whose the program is.
fn comes_and_goes(host: &Host, kind: &str, tools: &str, whose: &str) {
    let (to, port) = (host.destination("root"), free_port().to_string());
    let package = packed(host, kind);
    let deploy = ["proxy", "deploy", "--ssh", &to, "--name", "p", "--port", &port, "--yes", "--package", &package];

    let before = host.contents();
    host.run("mkdir -p /run/test-systemd && touch /run/test-systemd/broken");
    refused(&host.backhaul(&deploy), 1, &["cannot start the service", "is as it was before"]);
    host.run("rm /run/test-systemd/broken");
    let ours = |lines: Vec<String>| lines.into_iter().filter(|line| !line.starts_with(tools)).collect::<Vec<_>>();
    assert_eq!(ours(difference(&before, &host.contents())), [""; 0], "something stayed");

    // Where the former versions of this program let a package wait, somebody else waits.
    host.run(&format!(
        "setpriv --reuid 4242 --regid 4242 --clear-groups sh -c 'for n in {kind} {kind}.backhaul-new; do \
         ln -s /etc/taken-over /var/tmp/backhaul-package.$n; done'"
    ));
    let said = good(host.backhaul(&deploy));
    assert!(said.contains("install the package backhaul"), "{said}");
    assert_eq!(host.run("ls /etc/taken-over 2> /dev/null || :"), "", "what lay in the way was followed");
    assert_eq!(host.run("cd /var/tmp && find . -mindepth 1 -user root"), "", "the package lies about");
    host.run("rm /var/tmp/backhaul-package.*");
    live(host);
    assert_eq!(host.run(whose), "backhaul\n");
    let again = good(host.backhaul(&deploy));
    assert!(again.contains("nothing to do"), "{again}");
    if kind == "deb" {
        // Its installation was cut: it is there, but not installed. It is installed anew, and the service started again once,
        // by the deployment.
        host.run("sed -i '/^Package: backhaul$/,/^$/s/^Status: .*/Status: install ok half-configured/' /var/lib/dpkg/status");
        host.run(": > /run/test-systemd/starts");
        let mended = good(host.backhaul(&deploy));
        assert!(mended.contains("replace the package backhaul"), "{mended}");
        assert_eq!(host.run("dpkg-query -W -f '${Status}' backhaul"), "install ok installed");
        assert_eq!(host.run("cat /run/test-systemd/starts"), "restart\n");
        live(host);
    }
    // The program beside the console does not replace what a package brought, and a named one is refused.
    let plain = &deploy[..deploy.len() - 2];
    assert!(good(host.backhaul(plain)).contains("nothing to do"));
    let program = host.dir.path().join("programs/backhauld");
    refused(&host.backhaul(&[plain, &["--package", program.to_str().unwrap()]].concat()), 2, &["came to", "as a package"]);
    good(host.backhaul(&["proxy", "undeploy", "--ssh", &to, "--confirm", "p", "--purge"]));
    assert_eq!(ours(difference(&before, &host.contents())), [""; 0], "something stayed");

    // What cannot be installed is not left lying about either.
    host.replace(if kind == "deb" { "/usr/bin/dpkg" } else { "/usr/bin/rpm" }, "#!/bin/sh\necho broken >&2\nexit 2\n");
    refused(&host.backhaul(&deploy), 1, &["cannot install the package", "broken"]);
    assert_eq!(host.run("ls -A /var/tmp"), "", "the package lies about");
}

#[test]
fn a_deb_is_installed_and_removed_by_the_tool_of_the_distribution() {
    let host = Host::start(&Setup::default());
    host.run("find /var/tmp -mindepth 1 -delete");
    comes_and_goes(&host, "deb", "var/lib/dpkg", "dpkg-query -W -f '${Package}\n' backhaul && dpkg --verify backhaul");
}

/// As the page on installing tells it.
#[test]
fn by_hand_a_package_is_set_up_as_it_is_told() {
    let host = Host::start(&Setup::default());
    let package = packed(&host, "deb");
    let told = include_str!("../../docs/installing.md");
    let (_, told) = told.split_once("## From a package, by hand").unwrap();
    let line = told.lines().find(|line| line.starts_with("install ")).unwrap();
    let bytes = fs::read(&package).unwrap();
    host.put("/root/backhaul.deb", &bytes);
    host.run(&format!("rm -rf /etc/backhaul && dpkg -i /root/backhaul.deb > /dev/null && {line}"));
    assert_eq!(
        host.run("stat -c '%n %a %U:%G' /etc/backhaul /etc/backhaul/backhauld.toml"),
        "/etc/backhaul 755 root:root\n/etc/backhaul/backhauld.toml 600 backhaul:backhaul\n"
    );
    host.run("backhauld --config /etc/backhaul/backhauld.toml --check-config");
    // Where it listens is where the page looks for it.
    assert!(host.run("grep ^listen /etc/backhaul/backhauld.toml").contains(":443\""));
    assert!(told.contains("backhaul proxy add https://nas.example --token-file token"), "{told}");
}

#[test]
fn an_rpm_is_installed_and_removed_by_the_tool_of_the_distribution() {
    let host = Host::start(&Setup::default());
    host.run("find /var/tmp -mindepth 1 -delete");
    // The packages that it needs are there, but this system's lists of packages are not the tool's. It looks at its own name.
    host.run("mkdir /opt/real && mv /usr/bin/rpm /opt/real/");
    host.replace(
        "/usr/bin/rpm",
        "#!/bin/sh\n[ \"$1\" != --upgrade ] || { shift; set -- --upgrade --nodeps \"$@\"; }\nexec /opt/real/rpm \"$@\"\n",
    );
    host.run("rpm --initdb");
    let lists = host.run("rpm --eval '%_dbpath'");
    comes_and_goes(
        &host,
        "rpm",
        lists.trim().trim_start_matches('/'),
        "rpm -q --qf '%{NAME}\n' backhaul && rpm --verify --nodeps backhaul",
    );
}

#[test]
fn of_an_archive_the_program_in_it_is_deployed() {
    let host = Host::start(&Setup::default());
    let (to, port) = (host.destination("root"), free_port().to_string());
    let archive = packed(&host, "tar.gz");
    let before = host.contents();
    let deploy = ["proxy", "deploy", "--ssh", &to, "--name", "p", "--port", &port, "--yes", "--package", &archive];
    let said = good(host.backhaul(&deploy));
    assert!(said.contains("put the program to /usr/local/bin/backhauld"), "{said}");
    live(&host);
    let program = fs::read(host.dir.path().join("programs/backhauld")).unwrap();
    assert_eq!(host.run("stat -c %s /usr/local/bin/backhauld").trim(), program.len().to_string());
    assert!(good(host.backhaul(&deploy)).contains("nothing to do"));
    let other = host.dir.path().join("programs/backhaul");
    let console = host.backhaul(&[&deploy[..deploy.len() - 1], &[other.to_str().unwrap()]].concat());
    assert!(!console.status.success(), "the console was deployed as a daemon: {}", stdout(&console));
    live(&host);
    good(host.backhaul(&["proxy", "undeploy", "--ssh", &to, "--confirm", "p", "--purge"]));
    assert_eq!(difference(&before, &host.contents()), [""; 0], "something stayed");
}
