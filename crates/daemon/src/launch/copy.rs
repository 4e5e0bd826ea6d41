//! The state as it was before a swap: copied while no daemon works on it, and put back the same way.
//!
//! All files of the state folder itself belong to it (database, certificate, token, key), but not its folders, nor the lock
//! and what SQLite makes anew at each start.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tokio::time::Instant;

use crate::files::{private_folder, remove_file, remove_folder, sync_folder};

/// Between two looks at a lock that somebody holds.
const LOOK: Duration = Duration::from_millis(50);
/// Files that are no part of a state.
const LEFT_OUT: [&str; 2] = ["lock", "state.db-shm"];
/// Files of the database that must not stay beside another one.
const LOGS: [&str; 2] = ["state.db-wal", "state.db-shm"];

/// Why a state cannot be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A file.
    #[error("cannot {what} {}", path.display())]
    File {
        /// `copy`, `read`…
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A daemon, or another launcher, works with it.
    #[error("{} is in use by another {who}; end it first", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
        /// `backhauld` or `launcher`.
        who: &'static str,
    },
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CopyError {
    let path = path.to_owned();
    move |source| CopyError::File { what, path, source }
}

/// Held while the files of a state are handled; no daemon starts on it meanwhile.
pub(super) struct StateLock {
    _file: File,
}

fn open_lock(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

impl StateLock {
    /// Takes the lock that a daemon holds while it lives; a daemon that has just been killed may take a moment to be gone.
    pub(super) async fn take(state: &Path, patience: Duration) -> Result<Self, CopyError> {
        let path = state.join("lock");
        let file = open_lock(&path).map_err(failed("open", &path))?;
        let deadline = Instant::now() + patience;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { _file: file }),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => tokio::time::sleep(LOOK).await,
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(CopyError::InUse { path: state.to_owned(), who: "backhauld" });
                }
                Err(error) => return Err(failed("lock", &path)(error.into())),
            }
        }
    }
}

/// Keeps a second launcher away.
pub(super) fn lock_launcher(programs: &Path) -> Result<File, CopyError> {
    let path = programs.join("lock");
    let file = open_lock(&path).map_err(failed("open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(CopyError::InUse { path: programs.to_owned(), who: "launcher" }),
        Err(error) => Err(failed("lock", &path)(error.into())),
    }
}

fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let left_out = LEFT_OUT.iter().any(|left_out| name == *left_out) || name.to_string_lossy().ends_with(".new");
        if entry.file_type()?.is_file() && !left_out {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// How much a state takes, bytes; what cannot be seen does not count.
pub(crate) fn state_size(state: &Path) -> u64 {
    let sizes = files(state).unwrap_or_default().into_iter().filter_map(|path| fs::metadata(path).ok());
    sizes.map(|metadata| metadata.len()).sum()
}

fn copy_durably(from: &Path, to: &Path) -> Result<(), CopyError> {
    // The mode comes along: some of them are secret.
    fs::copy(from, to).and_then(|_| File::open(to)?.sync_all()).map_err(failed("copy", from))
}

/// Copies a state to `before`, whole or not at all. The caller holds its lock.
pub(super) fn save(state: &Path, before: &Path) -> Result<(), CopyError> {
    let made = before.with_added_extension("new");
    remove_folder(&made).map_err(failed("remove", &made))?;
    private_folder(&made).map_err(failed("make", &made))?;
    for path in files(state).map_err(failed("read", state))? {
        let Some(name) = path.file_name() else { continue };
        copy_durably(&path, &made.join(name))?;
    }
    sync_folder(&made).map_err(failed("write", &made))?;
    remove_folder(before).map_err(failed("remove", before))?;
    let folder = before.parent().unwrap_or(state);
    fs::rename(&made, before).and_then(|()| sync_folder(folder)).map_err(failed("write", before))
}

/// Puts a copy back; again, if need be, as often as one likes. The caller holds the lock.
pub(super) fn restore(before: &Path, state: &Path) -> Result<(), CopyError> {
    let copies = files(before).map_err(failed("read", before))?;
    // A log that belongs to the spoilt database would be played into the good one.
    for log in LOGS {
        let path = state.join(log);
        remove_file(&path).map_err(failed("remove", &path))?;
    }
    sync_folder(state).map_err(failed("write", state))?;
    // The database before its log: one that is cut off in between has a database that is older, and whole.
    let (logs, others): (Vec<_>, Vec<_>) = copies.into_iter().partition(|path| path.ends_with(LOGS[0]));
    for path in others.iter().chain(&logs) {
        let Some(name) = path.file_name() else { continue };
        let (target, made) = (state.join(name), state.join(name).with_added_extension("new"));
        copy_durably(path, &made)?;
        fs::rename(&made, &target).map_err(failed("write", &target))?;
    }
    sync_folder(state).map_err(failed("write", state))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn tree(folder: &Path) -> Vec<(String, Vec<u8>)> {
        let mut all: Vec<_> = files(folder)
            .unwrap()
            .into_iter()
            .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap()))
            .collect();
        all.sort();
        all
    }

    #[tokio::test]
    async fn a_state_comes_back_as_it_was_with_its_modes_and_without_later_logs() {
        let dir = tempfile::tempdir().unwrap();
        let (state, before) = (dir.path().join("state"), dir.path().join("state/programs/before"));
        fs::create_dir_all(state.join("programs")).unwrap();
        for (name, text) in [("state.db", "good"), ("state.db-wal", "log"), ("token", "t"), ("lock", "1"), ("state.db-shm", "x")]
        {
            fs::write(state.join(name), text).unwrap();
            fs::set_permissions(state.join(name), fs::Permissions::from_mode(0o600)).unwrap();
        }
        let was = tree(&state);
        assert_eq!(was.len(), 3);
        save(&state, &before).unwrap();
        save(&state, &before).unwrap();
        assert_eq!(tree(&before), was);
        for _ in 0..2 {
            fs::write(state.join("state.db"), "spoilt").unwrap();
            fs::write(state.join("state.db-wal"), "spoilt").unwrap();
            fs::write(state.join("state.db-shm"), "spoilt").unwrap();
            fs::remove_file(state.join("token")).unwrap();
            restore(&before, &state).unwrap();
            assert_eq!(tree(&state), was);
            assert!(!state.join("state.db-shm").exists());
            assert_eq!(fs::metadata(state.join("token")).unwrap().permissions().mode() & 0o777, 0o600);
        }
        // A state that had no log when it was copied gets none.
        fs::remove_file(state.join("state.db-wal")).unwrap();
        save(&state, &before).unwrap();
        fs::write(state.join("state.db-wal"), "spoilt").unwrap();
        restore(&before, &state).unwrap();
        assert!(!state.join("state.db-wal").exists());
    }

    #[tokio::test]
    async fn a_state_in_use_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let held = StateLock::take(dir.path(), Duration::ZERO).await.unwrap();
        assert!(matches!(StateLock::take(dir.path(), Duration::ZERO).await, Err(CopyError::InUse { .. })));
        drop(held);
        StateLock::take(dir.path(), Duration::ZERO).await.unwrap();
    }
}
