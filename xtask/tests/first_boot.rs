//! When an appliance takes what a volume tells, with folders in the place of volumes and a daemon that only notes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

struct Guest(PathBuf);

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn program(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/bash\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

impl Guest {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("backhaul-first-boot-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        for folder in ["bin", "run", "kept", "volumes"] {
            fs::create_dir_all(dir.join(folder)).unwrap();
        }
        let at = dir.display();
        // Takes the name, and consumes the token.
        program(&dir.join("bin/backhauld"), &format!("cat \"$3/backhaul/name\" >>{at}/taken; rm -f \"$3/backhaul/token\""));
        program(&dir.join("bin/getent"), "exit 2");
        let volumes = format!(
            "run={at}/run\nvolumes() {{ ls -d {at}/volumes/* 2>/dev/null; }}\n\
             mount_volume() {{ [ ! -e \"$1/broken\" ] && ln -sfn \"$1\" \"$run/volume\"; }}\n\
             unmount_volume() {{ rm \"$run/volume\"; }}\nis_xen() {{ false; }}\n"
        );
        fs::write(dir.join("volumes.sh"), volumes).unwrap();
        Self(dir)
    }

    fn put(&self, file: &str, text: &str) {
        let path = self.0.join("volumes").join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// What one boot takes, and whether all was well.
    fn boot(&self) -> (String, bool) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/appliance/root/usr/lib/backhaul/first-boot");
        let path = format!("{}:{}", self.0.join("bin").display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("bash");
        command.arg(script).env("PATH", path).env("BACKHAUL_KEPT", self.0.join("kept"));
        command.env("BACKHAUL_VOLUMES", self.0.join("volumes.sh")).stdin(Stdio::null()).stderr(Stdio::null());
        let good = command.status().unwrap().success();
        let taken = fs::read_to_string(self.0.join("taken")).unwrap_or_default();
        let _ = fs::remove_file(self.0.join("taken"));
        (taken.split_whitespace().collect::<Vec<_>>().join(" "), good)
    }
}

fn taken(what: &str) -> (String, bool) {
    (what.to_owned(), true)
}

#[test]
fn a_volume_counts_once_until_it_changes_and_again_when_it_goes_back() {
    let guest = Guest::new("once");
    assert_eq!(guest.boot(), taken(""));
    guest.put("a/backhaul/name", "first\n");
    guest.put("a/backhaul/token", "secret\n");
    assert_eq!(guest.boot(), taken("first"));
    // What is consumed, and what is told back, is no change.
    guest.put("a/backhaul/ready", "443\n");
    assert_eq!(guest.boot(), taken(""));
    guest.put("a/backhaul/name", "second\n");
    assert_eq!(guest.boot(), taken("second"));
    assert_eq!(guest.boot(), taken(""));
    guest.put("a/backhaul/name", "first\n");
    assert_eq!(guest.boot(), taken("first"));
    assert_eq!(guest.boot(), taken(""));
    // Another volume is another one, and the first stays taken.
    guest.put("b/backhaul/name", "other\n");
    assert_eq!(guest.boot(), taken("other"));
    assert_eq!(guest.boot(), taken(""));
}

#[test]
fn a_volume_that_cannot_be_read_once_is_not_taken_a_second_time() {
    let guest = Guest::new("broken");
    guest.put("a/backhaul/name", "first\n");
    assert_eq!(guest.boot(), taken("first"));
    guest.put("a/broken", "");
    assert_eq!(guest.boot(), (String::new(), false));
    fs::remove_file(guest.0.join("volumes/a/broken")).unwrap();
    assert_eq!(guest.boot(), taken(""));
}
