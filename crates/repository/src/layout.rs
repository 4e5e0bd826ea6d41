//! Names in a repository (backup-repository.md §1).

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use storage::RepoPath;

use crate::{Error, Result};

/// The directory that holds all backups of VMs.
pub const BACKUPS: &str = "xo-vm-backups";
/// The listing cache of a VM directory.
pub const CACHE: &str = "cache.json.gz";
/// The directory of disks in a VM directory.
pub const VDIS: &str = "vdis";
/// The directory of disk directories in a lineage.
pub const DATA: &str = "data";
/// How the name of a pointer to a disk directory ends.
pub const ALIAS: &str = ".alias.vhd";

/// How disks are written on a remote; a property of the remote (`useVhdDirectory`), not of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskLayout {
    /// One VHD file a disk.
    File,
    /// A directory of compressed blocks and an alias a disk.
    Directory,
}

/// When a restore point was taken: milliseconds since the Unix epoch in metadata, whole seconds in names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupTime(i64);

impl BackupTime {
    /// From milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// [`Error::NotAnIdentifier`] outside the years 1970 to 9999, which names cannot say.
    pub fn from_millis(millis: i64) -> Result<Self> {
        const YEAR_10000: i64 = 253_402_300_800_000;
        if (0..YEAR_10000).contains(&millis) { Ok(Self(millis)) } else { Err(Error::NotAnIdentifier(millis.to_string())) }
    }

    /// Now, by this machine's clock.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_millis()).unwrap_or(0))
    }

    /// Milliseconds since the Unix epoch.
    pub const fn millis(self) -> i64 {
        self.0
    }

    /// Seconds since the Unix epoch, as footers hold them (§3.1).
    pub fn footer_seconds(self) -> u32 {
        u32::try_from(self.0 / 1000).unwrap_or(u32::MAX)
    }

    /// The form in names: `20250131T231500Z`.
    pub fn stem(self) -> String {
        let stamp = jiff::Timestamp::from_millisecond(self.0).expect("the constructor checks the range");
        stamp.strftime("%Y%m%dT%H%M%SZ").to_string()
    }
}

/// The identifier of a restore point of a VM: `/xo-vm-backups/<VM uuid>/<timestamp>.json`, leading slash included
/// (backup-repository.md §1.3).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PointId {
    vm: String,
    stem: String,
}

impl PointId {
    /// The restore point of `vm` at `time`.
    ///
    /// # Errors
    /// [`Error::NotAnIdentifier`] when `vm` is not usable as a directory.
    pub fn new(vm: &str, time: BackupTime) -> Result<Self> {
        identifier(vm)?;
        Ok(Self { vm: vm.to_owned(), stem: time.stem() })
    }

    /// Reads the form above; a missing leading slash is forgiven.
    ///
    /// # Errors
    /// [`Error::NotAPoint`] for anything else.
    pub fn parse(text: &str) -> Result<Self> {
        let parse = || {
            let mut parts = text.strip_prefix('/').unwrap_or(text).split('/');
            let (root, vm, file) = (parts.next()?, parts.next()?, parts.next()?);
            let stem = file.strip_suffix(".json")?;
            let sound = root == BACKUPS && parts.next().is_none() && identifier(vm).is_ok() && identifier(stem).is_ok();
            sound.then(|| Self { vm: vm.to_owned(), stem: stem.to_owned() })
        };
        parse().ok_or_else(|| Error::NotAPoint(text.chars().take(200).collect()))
    }

    /// The VM's directory name: the uuid of the source VM.
    pub fn vm(&self) -> &str {
        &self.vm
    }

    /// The file name without `.json`.
    pub fn stem(&self) -> &str {
        &self.stem
    }

    /// The metadata file.
    pub fn path(&self) -> RepoPath {
        self.sibling(".json")
    }

    /// Another file of the same restore point in the VM directory.
    pub(crate) fn sibling(&self, suffix: &str) -> RepoPath {
        let dir = vm_dir(&self.vm).expect("the constructors check the VM");
        dir.join(&format!("{}{suffix}", self.stem)).expect("the constructors check the stem")
    }
}

impl fmt::Display for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{BACKUPS}/{}/{}.json", self.vm, self.stem)
    }
}

/// All disks of one source VDI for one job: a directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lineage {
    /// uuid of the source VM.
    pub vm: String,
    /// The job.
    pub job: String,
    /// uuid of the live VDI; of the suspend VDI itself for a memory image.
    pub vdi: String,
}

impl Lineage {
    /// `xo-vm-backups/<vm>/vdis/<job>/<vdi>`.
    ///
    /// # Errors
    /// [`Error::NotAnIdentifier`] when a part is not usable as a directory.
    pub fn dir(&self) -> Result<RepoPath> {
        identifier(&self.job)?;
        identifier(&self.vdi)?;
        Ok(vm_dir(&self.vm)?.join(VDIS)?.join(&self.job)?.join(&self.vdi)?)
    }

    /// `vdis/<job>/<vdi>/<name>`, as metadata holds it.
    pub(crate) fn relative(&self, name: &str) -> String {
        format!("{VDIS}/{}/{}/{name}", self.job, self.vdi)
    }
}

/// The directory of a VM.
pub(crate) fn vm_dir(vm: &str) -> Result<RepoPath> {
    identifier(vm)?;
    Ok(RepoPath::root().join(BACKUPS)?.join(vm)?)
}

/// Whether a name may be a directory of its own in a repository: one component, not hidden, not a lock.
pub(crate) fn identifier(text: &str) -> Result<()> {
    let bad = text.starts_with('.') || text.ends_with(".lock") || text.len() > 200 || RepoPath::root().join(text).is_err();
    if bad { Err(Error::NotAnIdentifier(text.chars().take(200).collect())) } else { Ok(()) }
}

/// A file name without `.alias.vhd` or `.vhd`.
pub(crate) fn disk_stem(name: &str) -> &str {
    name.strip_suffix(ALIAS).or_else(|| name.strip_suffix(".vhd")).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_those_of_the_reference() {
        let time = BackupTime::from_millis(1_738_365_300_123).unwrap();
        assert_eq!(time.stem(), "20250131T231500Z");
        let id = PointId::new("d3b0a7c4-5e6f-4a1b-9c2d-0e1f2a3b4c5d", time).unwrap();
        assert_eq!(id.to_string(), "/xo-vm-backups/d3b0a7c4-5e6f-4a1b-9c2d-0e1f2a3b4c5d/20250131T231500Z.json");
        assert_eq!(PointId::parse(&id.to_string()).unwrap(), id);
        assert_eq!(PointId::parse(&id.to_string()[1..]).unwrap(), id);
        assert!(BackupTime::from_millis(-1).is_err() && BackupTime::from_millis(i64::MAX).is_err());
    }

    #[test]
    fn what_is_no_restore_point_is_refused() {
        for text in [
            "",
            "/",
            "/xo-vm-backups/x.json",
            "/xo-vm-backups/../x.json",
            "/xo-vm-backups/a/b/c.json",
            "/other/a/b.json",
            "/xo-vm-backups/a/.json",
            "/xo-vm-backups/a.lock/b.json",
            "/xo-vm-backups/a/b.vhd",
            "//xo-vm-backups/a/b.json",
        ] {
            assert!(PointId::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn later_times_sort_later(a in 0..253_402_300_799_999_i64, b in 0..253_402_300_799_999_i64) {
            let (a, b) = (BackupTime::from_millis(a).unwrap(), BackupTime::from_millis(b).unwrap());
            prop_assert!((a.millis() / 1000).cmp(&(b.millis() / 1000)) == a.stem().cmp(&b.stem()));
        }
    }
}
