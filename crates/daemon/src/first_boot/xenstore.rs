//! XenStore, as far as a guest uses it: the keys below `vm-data` of its own domain.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::files::write_private;

/// Where host and guest tell each other things.
const DATA: &str = "vm-data";

/// Why a key cannot be read, written or removed. Values are never quoted.
#[derive(Debug, thiserror::Error)]
pub enum XenStoreError {
    /// A file that stands for a key.
    #[error("cannot {what} {}", path.display())]
    File {
        /// `read`, `write` or `remove`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// A program that cannot be run.
    #[error("cannot run {program} (is the package of the XenStore tools installed?)")]
    Program {
        /// The program.
        program: &'static str,
        /// Cause.
        source: std::io::Error,
    },
    /// A program that failed.
    #[error("{program} failed for {key}: {said}")]
    Failed {
        /// The program.
        program: &'static str,
        /// The key.
        key: String,
        /// What it said.
        said: String,
    },
}

/// Keys and values below `vm-data`.
pub trait XenStore {
    /// Those of the keys that are there, with their values.
    ///
    /// # Errors
    /// When it cannot be told what is there.
    fn read(&self, keys: &[&'static str]) -> Result<BTreeMap<&'static str, String>, XenStoreError>;

    /// Writes a key.
    ///
    /// # Errors
    /// When it is not written.
    fn write(&self, key: &str, value: &str) -> Result<(), XenStoreError>;

    /// Removes a key; one that is not there is fine.
    ///
    /// # Errors
    /// When it stays.
    fn remove(&self, key: &str) -> Result<(), XenStoreError>;
}

/// A folder in the place of `vm-data`: a file for each key, subfolders for its slashes.
#[derive(Debug)]
pub struct Folder(pub PathBuf);

impl XenStore for Folder {
    fn read(&self, keys: &[&'static str]) -> Result<BTreeMap<&'static str, String>, XenStoreError> {
        let mut found = BTreeMap::new();
        for key in keys {
            let path = self.0.join(key);
            match std::fs::read(&path) {
                Ok(value) => drop(found.insert(*key, text(&value))),
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
                Err(source) => return Err(XenStoreError::File { what: "read", path, source }),
            }
        }
        Ok(found)
    }

    fn write(&self, key: &str, value: &str) -> Result<(), XenStoreError> {
        let path = self.0.join(key);
        let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        made.and_then(|()| write_private(&path, value.as_bytes())).map_err(|source| XenStoreError::File {
            what: "write",
            path,
            source,
        })
    }

    fn remove(&self, key: &str) -> Result<(), XenStoreError> {
        let path = self.0.join(key);
        match overwrite(&path).and_then(|()| std::fs::remove_file(&path)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(XenStoreError::File { what: "remove", path, source: error }),
            _ => Ok(()),
        }
    }
}

/// Writes zeros over a file: what was removed only could still be read from the volume it was on.
fn overwrite(path: &Path) -> std::io::Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).open(path)?;
    let length = file.metadata()?.len();
    std::io::copy(&mut std::io::repeat(0).take(length), &mut file)?;
    file.sync_all()
}

/// The programs that come with Xen's guest tools. No secret is ever an argument of theirs.
#[derive(Debug)]
pub struct Programs;

impl XenStore for Programs {
    fn read(&self, keys: &[&'static str]) -> Result<BTreeMap<&'static str, String>, XenStoreError> {
        // The list tells what is there; its values are escaped, so each is read by itself.
        let listed = run("xenstore-ls", &["-f", DATA])?;
        if !listed.status.success() {
            let said = String::from_utf8_lossy(&listed.stderr);
            if said.contains("No such file") || said.contains("ENOENT") {
                return Ok(BTreeMap::new());
            }
            return Err(failed("xenstore-ls", DATA, &listed));
        }
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let there = paths(&listed);
        let mut found = BTreeMap::new();
        for key in keys.iter().filter(|key| there.contains(*key)) {
            let path = format!("{DATA}/{key}");
            let mut value = run("xenstore-read", &["-R", &path])?;
            if !value.status.success() {
                // Some guest tools know no -R: they print values as they are.
                value = run("xenstore-read", &[&path])?;
            }
            if !value.status.success() {
                return Err(failed("xenstore-read", &path, &value));
            }
            found.insert(*key, text(&value.stdout));
        }
        Ok(found)
    }

    fn write(&self, key: &str, value: &str) -> Result<(), XenStoreError> {
        succeed("xenstore-write", key, &[value])
    }

    fn remove(&self, key: &str) -> Result<(), XenStoreError> {
        succeed("xenstore-rm", key, &[])
    }
}

/// The keys in what `xenstore-ls -f` prints, a line `vm-data/a/b = "value"` each; below a domain's full path as well.
fn paths(listed: &str) -> Vec<&str> {
    listed
        .lines()
        .filter_map(|line| {
            let (path, _) = line.split_once(" = ")?;
            path.strip_prefix("vm-data/").or_else(|| path.split_once("/vm-data/").map(|(_, key)| key))
        })
        .collect()
}

/// A value ends where the line does that it is printed on.
fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).trim_end_matches(['\r', '\n']).to_owned()
}

fn run(program: &'static str, arguments: &[&str]) -> Result<Output, XenStoreError> {
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null());
    command.output().map_err(|source| XenStoreError::Program { program, source })
}

fn succeed(program: &'static str, key: &str, more: &[&str]) -> Result<(), XenStoreError> {
    let path = format!("{DATA}/{key}");
    let output = run(program, &[&[path.as_str()], more].concat())?;
    if output.status.success() { Ok(()) } else { Err(failed(program, &path, &output)) }
}

fn failed(program: &'static str, key: &str, output: &Output) -> XenStoreError {
    XenStoreError::Failed { program, key: key.to_owned(), said: String::from_utf8_lossy(&output.stderr).trim().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_key_leaves_no_value_behind() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder(dir.path().to_owned());
        folder.write("a/b", "a secret").unwrap();
        // Another name of the same file shows what became of its content.
        let other = dir.path().join("other");
        std::fs::hard_link(dir.path().join("a/b"), &other).unwrap();
        folder.remove("a/b").unwrap();
        assert_eq!(std::fs::read(other).unwrap(), [0; 8]);
        assert!(folder.read(&["a/b"]).unwrap().is_empty());
        folder.remove("a/b").unwrap();
    }

    #[test]
    fn the_list_of_the_tools_is_understood() {
        let listed = "vm-data/ip = \"10.0.0.5\"\nvm-data/backhaul = \"\"\nvm-data/backhaul/name = \"a = b\"\n\
                      /local/domain/3/vm-data/gateway = \"10.0.0.1\"\nnonsense\n";
        assert_eq!(paths(listed), ["ip", "backhaul", "backhaul/name", "gateway"]);
    }
}
