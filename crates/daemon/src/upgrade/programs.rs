//! What launcher and daemon leave each other in `programs` below the state folder: programs, which of them is the current
//! one, how far an upgrade has come, how the last one came out. `docs/upgrading.md` has the whole protocol.
//!
//! ```text
//! programs/current           name of the program that runs; absent: the launcher's own executable
//! programs/NAME/backhauld    a program from a bundle
//! programs/NAME/manifest.json  what its bundle says of it
//! programs/pending.json      an upgrade under way; holds a token lent for it, so only its owner can read it
//! programs/outcome.json      how an upgrade came out, until the daemon has put it into the history
//! programs/before/           the state as it was before the swap
//! programs/received/SHA256   a bundle that a client has sent
//! ```
//!
//! Launcher and daemon may be of different versions. So fields are only added, unknown ones are skipped, and every file
//! appears whole or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use api::{ErrorReport, UpgradePhase};
use engine::plan::Secret;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::files::{private_folder, remove_file, remove_folder, sync_folder, sync_parent, write_private};

/// The exit code by which a daemon asks its launcher to swap programs.
pub const EXIT_SWAP: u8 = 75;
/// Variable that tells a daemon its launcher's process id.
pub const LAUNCHER: &str = "BACKHAUL_LAUNCHER";
/// Variable that tells a daemon that it is on probation.
pub const PROBATION: &str = "BACKHAUL_PROBATION";
/// A program's file in its folder.
const BINARY: &str = "backhauld";

/// A file of the folder that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProgramsError {
    /// It cannot be read, written or removed.
    #[error("cannot {what} {}", path.display())]
    File {
        /// `read`, `write`, `remove`…
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// It does not read back.
    #[error("{} is damaged; after a look at what it says, remove it", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: serde_json::Error,
    },
}

type Result<T, E = ProgramsError> = std::result::Result<T, E>;

/// What is known of a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgramInfo {
    /// Version.
    pub version: String,
    /// Channel; none: not from a bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    /// Build; none: not from a bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<String>,
    /// SHA-256 of the program; none: not from a bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl ProgramInfo {
    /// This very program, when it is not from a bundle.
    pub fn own() -> Self {
        Self { version: env!("CARGO_PKG_VERSION").to_owned(), channel: None, build: None, sha256: None }
    }

    /// What a bundle's signer says.
    pub fn of(manifest: &signed::BundleManifest) -> Self {
        let build = &manifest.build;
        Self {
            version: build.version.clone(),
            channel: Some(build.channel.clone()),
            build: Some(build.build.clone()),
            sha256: Some(manifest.sha256.clone()),
        }
    }

    /// Version and build, for a person.
    pub fn words(&self) -> String {
        match &self.build {
            Some(build) => format!("{} ({build})", self.version),
            None => self.version.clone(),
        }
    }

    /// Name of its folder: never that of another program, even of one that calls itself the same.
    pub fn folder(&self) -> String {
        let part = |text: &Option<String>| text.clone().unwrap_or_default();
        let sum: String = part(&self.sha256).chars().take(12).collect();
        format!("{}_{}_{sum}", self.version, part(&self.build))
    }
}

/// How far an upgrade has come. What each means for whoever finds it is in `docs/upgrading.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// The daemon lets running transfers end.
    Draining,
    /// The daemon has ended or is about to; the state is to be copied.
    Swap,
    /// The state is copied; the new program was never started.
    Copied,
    /// The new program was started.
    Probation,
    /// The new program was no good; the state is to be put back.
    Restoring,
    /// The new program is good, and is to become the current one.
    Passed,
}

/// An upgrade under way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pending {
    /// How far it has come.
    pub stage: Stage,
    /// Its run in the journal.
    pub run: String,
    /// Folder of the new program.
    pub program: String,
    /// Folder of the program of before; none: the launcher's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former: Option<String>,
    /// Version and build before.
    pub from: String,
    /// Version and build wanted.
    pub to: String,
    /// What the new program must show; there from [`Stage::Swap`] on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<Expected>,
    /// Why it is rolled back; there at [`Stage::Restoring`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorReport>,
    /// What the launcher has seen.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// What a proxy shows of itself: the same before an upgrade and after it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Expected {
    /// A token, lent for the time of the swap.
    pub token: Secret,
    /// The proxy's id.
    pub id: String,
    /// SHA-256 of its certificate.
    pub fingerprint: String,
    /// Ids of its pools.
    pub pools: Vec<String>,
    /// Ids of its remotes.
    pub remotes: Vec<String>,
    /// Ids of its jobs.
    pub jobs: Vec<String>,
}

/// How an upgrade came out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// Its run in the journal.
    pub run: String,
    /// Version and build before.
    pub from: String,
    /// Version and build wanted.
    pub to: String,
    /// Done, rolled back, or failed.
    pub phase: UpgradePhase,
    /// When, milliseconds since the Unix epoch.
    pub at: i64,
    /// Why, unless it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorReport>,
    /// What the launcher has seen.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// The folder.
#[derive(Debug, Clone)]
pub struct Programs {
    state: PathBuf,
    dir: PathBuf,
}

impl Programs {
    /// That of a state folder. Nothing is made yet.
    pub fn below(state_dir: &Path) -> Self {
        Self { state: state_dir.to_owned(), dir: state_dir.join("programs") }
    }

    /// The folder itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The state folder that it is in.
    pub fn state_dir(&self) -> &Path {
        &self.state
    }

    /// Makes the folder.
    ///
    /// # Errors
    /// [`ProgramsError::File`].
    pub fn make(&self) -> Result<()> {
        private_folder(&self.dir).map_err(failed("make", &self.dir))
    }

    /// Where a program is.
    pub fn binary(&self, name: &str) -> PathBuf {
        self.dir.join(name).join(BINARY)
    }

    /// Where the state of before is kept.
    pub fn before(&self) -> PathBuf {
        self.dir.join("before")
    }

    /// The current program; none: the launcher's own, or that of the name is gone.
    ///
    /// # Errors
    /// [`ProgramsError::File`].
    pub fn current(&self) -> Result<Option<String>> {
        let path = self.dir.join("current");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed("read", &path)(source)),
        };
        let name = text.trim();
        if is_name(name) && self.binary(name).is_file() {
            return Ok(Some(name.to_owned()));
        }
        tracing::error!(name, "the program that should run is not there; starting the one that came with the package");
        Ok(None)
    }

    /// Makes a program the current one; none: the launcher's own.
    ///
    /// # Errors
    /// [`ProgramsError::File`].
    pub fn set_current(&self, name: Option<&str>) -> Result<()> {
        let path = self.dir.join("current");
        match name {
            Some(name) => write_private(&path, format!("{name}\n").as_bytes()).map_err(failed("write", &path)),
            None => remove(&path),
        }
    }

    /// What is known of a program from a bundle.
    pub fn info(&self, name: &str) -> Option<ProgramInfo> {
        let path = self.dir.join(name).join("manifest.json");
        read(&path).inspect_err(|error| tracing::warn!(%error, "a program does not say what it is")).ok().flatten()
    }

    /// The folder of the program that this process runs, if it is one of these.
    pub fn running(&self) -> Option<String> {
        let executable = std::env::current_exe().ok()?.canonicalize().ok()?;
        let folder = executable.parent()?;
        let ours = folder.parent()? == self.dir.canonicalize().ok()?;
        folder.file_name()?.to_str().filter(|_| ours).map(str::to_owned)
    }

    /// Keeps a program in its folder, so that it would be there after a power cut, and answers the folder's name.
    ///
    /// # Errors
    /// [`ProgramsError::File`].
    pub fn keep(&self, info: &ProgramInfo, program: &[u8]) -> Result<String> {
        self.make()?;
        let name = info.folder();
        let (folder, made) = (self.dir.join(&name), self.dir.join(format!(".{name}.new")));
        let writing = failed("write", &folder);
        let write = || {
            remove_folder(&made)?;
            private_folder(&made)?;
            let mut file = File::options().write(true).create_new(true).mode(0o755).open(made.join(BINARY))?;
            file.write_all(program)?;
            // Whatever the umask was.
            file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
            file.sync_all()?;
            let text = serde_json::to_vec_pretty(info).map_err(io::Error::from)?;
            write_private(&made.join("manifest.json"), &text)?;
            remove_folder(&folder)?;
            fs::rename(&made, &folder)?;
            sync_folder(&self.dir)
        };
        write().map_err(writing)?;
        Ok(name)
    }

    /// Removes all programs but these, and what was never finished.
    ///
    /// # Errors
    /// [`ProgramsError::File`].
    pub fn sweep(&self, kept: &[&str]) -> Result<()> {
        let reading = failed("read", &self.dir);
        let entries: io::Result<Vec<_>> = fs::read_dir(&self.dir).and_then(|entries| entries.collect());
        for entry in entries.map_err(reading)? {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let unfinished = name.starts_with('.') && name.ends_with(".new");
            if unfinished || (!kept.contains(&&*name) && self.binary(&name).is_file()) {
                remove_folder(&entry.path()).map_err(failed("remove", &entry.path()))?;
            }
        }
        Ok(())
    }

    /// The upgrade under way.
    ///
    /// # Errors
    /// [`ProgramsError`].
    pub fn pending(&self) -> Result<Option<Pending>> {
        read(&self.dir.join("pending.json"))
    }

    /// Notes how far an upgrade has come.
    ///
    /// # Errors
    /// [`ProgramsError::File`].
    pub fn set_pending(&self, pending: &Pending) -> Result<()> {
        write(&self.dir.join("pending.json"), pending)
    }

    /// How an upgrade came out that the history does not know yet.
    ///
    /// # Errors
    /// [`ProgramsError`].
    pub fn outcome(&self) -> Result<Option<Outcome>> {
        read(&self.dir.join("outcome.json"))
    }

    /// The history knows it.
    ///
    /// # Errors
    /// [`ProgramsError::File`].
    pub fn forget_outcome(&self) -> Result<()> {
        remove(&self.dir.join("outcome.json"))
    }

    /// Ends an upgrade: its outcome is left for the daemon, and what nobody needs any more goes. Whoever is killed in the
    /// middle of it can begin again.
    ///
    /// # Errors
    /// [`ProgramsError::File`].
    pub fn conclude(&self, pending: &Pending, phase: UpgradePhase, error: Option<ErrorReport>, at: i64) -> Result<()> {
        let outcome = Outcome {
            run: pending.run.clone(),
            from: pending.from.clone(),
            to: pending.to.clone(),
            phase,
            at,
            error,
            notes: pending.notes.clone(),
        };
        write(&self.dir.join("outcome.json"), &outcome)?;
        let current = self.current()?;
        match phase {
            UpgradePhase::Done => {
                let kept: Vec<&str> = current.iter().chain(&pending.former).map(String::as_str).collect();
                self.sweep(&kept)?;
            }
            _ if current.as_ref() != Some(&pending.program) && is_name(&pending.program) => {
                let folder = self.dir.join(&pending.program);
                remove_folder(&folder).map_err(failed("remove", &folder))?;
            }
            _ => {}
        }
        remove_folder(&self.before()).map_err(failed("remove", &self.before()))?;
        remove(&self.dir.join("pending.json"))
    }

    /// Where a bundle is that a client has sent; none when `sum` is no SHA-256.
    pub fn received(&self, sum: &str) -> Option<PathBuf> {
        let good = sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        good.then(|| self.dir.join("received").join(sum))
    }

    /// Removes the folder of received bundles.
    ///
    /// # Errors
    /// [`ProgramsError::File`].
    pub fn forget_received(&self) -> Result<()> {
        let folder = self.dir.join("received");
        remove_folder(&folder).map_err(failed("remove", &folder))
    }

    /// Free space beside the state, bytes; none: it cannot be told.
    pub fn free(&self) -> Option<u64> {
        let found = rustix::fs::statvfs(&self.state).ok()?;
        Some(found.f_bavail.saturating_mul(found.f_frsize))
    }

    /// Empties and makes the folder of received bundles.
    ///
    /// # Errors
    /// [`ProgramsError::File`].
    pub fn empty_received(&self) -> Result<PathBuf> {
        let folder = self.dir.join("received");
        let made = self
            .make()
            .and_then(|()| remove_folder(&folder).and_then(|()| private_folder(&folder)).map_err(failed("empty", &folder)));
        made.map(|()| folder)
    }
}

/// A folder's name that leads nowhere else.
fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0'])
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ProgramsError {
    let path = path.to_owned();
    move |source| ProgramsError::File { what, path, source }
}

fn remove(path: &Path) -> Result<()> {
    let removed = remove_file(path).and_then(|()| match sync_parent(path) {
        // A folder that was never made holds nothing either.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        synced => synced,
    });
    removed.map_err(failed("remove", path))
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match fs::read(path) {
        Ok(text) => {
            serde_json::from_slice(&text).map(Some).map_err(|source| ProgramsError::Damaged { path: path.to_owned(), source })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed("read", path)(source)),
    }
}

fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec_pretty(value).map_err(io::Error::from);
    text.and_then(|text| write_private(path, &text)).map_err(failed("write", path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn info(build: &str) -> ProgramInfo {
        ProgramInfo {
            version: "0.2.0".into(),
            channel: Some("stable".into()),
            build: Some(build.into()),
            sha256: Some(build.repeat(64)),
        }
    }

    fn pending(program: &str, former: Option<&str>) -> Pending {
        Pending {
            stage: Stage::Swap,
            run: "r".into(),
            program: program.into(),
            former: former.map(Into::into),
            from: "0.1.0".into(),
            to: "0.2.0".into(),
            expected: None,
            error: None,
            notes: vec!["seen".into()],
        }
    }

    #[test]
    fn a_program_is_kept_executable_and_only_a_whole_one_can_be_the_current_one() {
        let dir = tempfile::tempdir().unwrap();
        let programs = Programs::below(dir.path());
        assert_eq!(programs.current().unwrap(), None);
        let name = programs.keep(&info("a"), b"program").unwrap();
        assert_eq!(fs::metadata(programs.binary(&name)).unwrap().permissions().mode() & 0o777, 0o755);
        programs.set_current(Some(&name)).unwrap();
        assert_eq!(programs.current().unwrap().as_ref(), Some(&name));
        assert_eq!(programs.info(&name), Some(info("a")));
        for bad in ["../a", "", ".", "nothing"] {
            programs.set_current(Some(bad)).unwrap();
            assert_eq!(programs.current().unwrap(), None, "{bad}");
        }
    }

    #[test]
    fn the_current_program_and_the_former_one_stay_and_the_others_go() {
        let dir = tempfile::tempdir().unwrap();
        let programs = Programs::below(dir.path());
        let [old, former, new] = ["a", "b", "c"].map(|build| programs.keep(&info(build), b"program").unwrap());
        programs.set_current(Some(&new)).unwrap();
        programs.set_pending(&pending(&new, Some(&former))).unwrap();
        programs.conclude(&pending(&new, Some(&former)), UpgradePhase::Done, None, 5).unwrap();
        let there = [&old, &former, &new].map(|name| programs.binary(name).is_file());
        assert_eq!(there, [false, true, true]);
        assert!(programs.pending().unwrap().is_none());
        let outcome = programs.outcome().unwrap().unwrap();
        assert_eq!((outcome.phase, outcome.at, outcome.notes.len()), (UpgradePhase::Done, 5, 1));

        // One that is no good goes, and nothing else.
        let bad = programs.keep(&info("d"), b"program").unwrap();
        programs.conclude(&pending(&bad, Some(&new)), UpgradePhase::RolledBack, None, 6).unwrap();
        assert_eq!([&former, &new, &bad].map(|name| programs.binary(name).is_file()), [true, true, false]);
        // The current one is not removed, whatever an upgrade to it came to.
        programs.conclude(&pending(&new, Some(&new)), UpgradePhase::Failed, None, 7).unwrap();
        assert!(programs.binary(&new).is_file());
    }

    #[test]
    fn records_of_a_later_version_are_read_and_damaged_ones_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let programs = Programs::below(dir.path());
        programs.make().unwrap();
        programs.set_pending(&pending("p", None)).unwrap();
        let path = programs.dir().join("pending.json");
        let text = fs::read_to_string(&path).unwrap().replacen('{', "{\"later\":[1],", 1);
        fs::write(&path, text).unwrap();
        assert_eq!(programs.pending().unwrap().unwrap(), pending("p", None));
        fs::write(&path, "{").unwrap();
        assert!(programs.pending().unwrap_err().to_string().contains("pending.json is damaged"));
    }

    #[test]
    fn the_token_is_in_no_debug_print() {
        let expected = Expected {
            token: Secret::new("hunter2hunter2"),
            id: String::new(),
            fingerprint: String::new(),
            pools: vec![],
            remotes: vec![],
            jobs: vec![],
        };
        let pending = Pending { expected: Some(expected), ..pending("p", None) };
        assert!(!format!("{pending:?}").contains("hunter2"));
        let dir = tempfile::tempdir().unwrap();
        let programs = Programs::below(dir.path());
        programs.make().unwrap();
        programs.set_pending(&pending).unwrap();
        let path = programs.dir().join("pending.json");
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(programs.pending().unwrap(), Some(pending));
    }
}
