//! What is mounted where (proc_pid_mountinfo(5)).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Something that is mounted. Neither source nor options: those of SMB may hold accounts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mount {
    /// Where.
    pub point: PathBuf,
    /// What: `ext4`, `nfs4`, `cifs`…
    pub kind: String,
}

impl Mount {
    /// Whether another one is in the same place and of the same kind, whichever version of its protocol is spoken. What is mounted
    /// when somebody asks for it is of the kind that it then gets; until then nothing can be written there.
    pub fn is_as(&self, other: &Self) -> bool {
        let family = |kind: &str| match kind {
            "nfs4" => "nfs".to_owned(),
            "smb3" => "cifs".to_owned(),
            kind => kind.to_owned(),
        };
        let on_demand = self.kind == "autofs" || other.kind == "autofs";
        self.point == other.point && (on_demand || family(&self.kind) == family(&other.kind))
    }
}

impl std::fmt::Display for Mount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} mounted at {}", self.kind, self.point.display())
    }
}

/// All mounts that this process sees; empty where the system does not tell.
pub(crate) fn all() -> Vec<Mount> {
    read(&std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

/// What a path lies on. It is not looked at, so that a dead mount holds nobody up.
pub(crate) fn of(path: &Path) -> Option<Mount> {
    deepest(all(), path)
}

fn read(mountinfo: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let point = PathBuf::from(unescaped(before.split(' ').nth(4)?));
        Some(Mount { point, kind: after.split(' ').next()?.to_owned() })
    };
    mountinfo.lines().filter_map(mount).collect()
}

fn deepest(mounts: Vec<Mount>, path: &Path) -> Option<Mount> {
    // The last one counts where several are mounted over each other.
    mounts.into_iter().filter(|mount| path.starts_with(&mount.point)).max_by_key(|mount| mount.point.components().count())
}

/// Blanks and the like stand as three octal digits.
fn unescaped(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_mount_counts() {
        let mounts = "22 1 0:1 / / rw - ext4 /dev/vda rw\n\
                      30 22 0:40 / /mnt/nas\\040one rw,relatime shared:1 - nfs4 nas:/export rw,vers=4.2\n\
                      31 22 0:41 / /mnt rw - tmpfs none rw\n";
        let found = |path: &str| deepest(read(mounts), Path::new(path)).map(|mount| mount.to_string());
        assert_eq!(found("/mnt/nas one/x").as_deref(), Some("nfs4 mounted at /mnt/nas one"));
        assert_eq!(found("/mnt/nas one2").as_deref(), Some("tmpfs mounted at /mnt"));
        assert_eq!(found("/srv").as_deref(), Some("ext4 mounted at /"));
    }

    #[test]
    fn another_place_or_kind_is_another_mount() {
        let mount = |point: &str, kind: &str| Mount { point: point.into(), kind: kind.into() };
        assert!(mount("/a", "nfs").is_as(&mount("/a", "nfs4")) && mount("/a", "cifs").is_as(&mount("/a", "smb3")));
        assert!(mount("/a", "nfs4").is_as(&mount("/a", "autofs")) && !mount("/a", "nfs4").is_as(&mount("/", "autofs")));
        assert!(!mount("/a", "nfs").is_as(&mount("/a", "ext4")) && !mount("/a", "ext4").is_as(&mount("/", "ext4")));
    }
}
