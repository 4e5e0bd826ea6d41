//! What an image keeps beside its live file, so that it can be opened again.
//!
//! ```text
//! disk.raw        the live disk
//! state.json      sizes, snapshots, which numbered files belong to what; replaced atomically
//! lock            held while the image is open
//! <n>.data        contents that a snapshot keeps because something newer overwrote them (sparse, same offsets)
//! <n>.held        one bit a block: is it in <n>.data
//! <n>.changed     one bit a block: was it written between this point and the one before
//! ```
//!
//! Bits are written in place, after the data they speak of and before the live disk changes, so a process killed at
//! any moment leaves a readable image. Files without a mention in `state.json` are leftovers of such a death. Nothing
//! is synced: the lab's disks survive the death of the process, not of the machine.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{BLOCK, Bitmap, DiskError};

/// `state.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// Bytes of the live disk.
    pub size: u64,
    /// Changes of the live disk since the newest snapshot.
    pub changed: Option<LogRecord>,
    /// Oldest first.
    pub snapshots: Vec<SnapshotRecord>,
    /// First number not yet used for a file.
    pub next_file: u64,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SnapshotRecord {
    pub id: Uuid,
    pub size: u64,
    pub changed: Option<LogRecord>,
    /// Number of its data and held files; none once its data is destroyed.
    pub data: Option<u64>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogRecord {
    pub file: u64,
    /// Whether it covers everything since the point before.
    pub complete: bool,
}

/// A bitmap and the file that mirrors it.
#[derive(Debug)]
pub(crate) struct StoredBitmap {
    pub number: u64,
    pub bits: Bitmap,
    file: File,
    path: PathBuf,
}

impl StoredBitmap {
    pub fn create(dir: &Path, number: u64, kind: &str, bits: Bitmap) -> Result<Self, DiskError> {
        let path = dir.join(format!("{number}.{kind}"));
        let file = create(&path)?;
        file.write_all_at(bits.as_bytes(), 0).map_err(DiskError::file("write", &path))?;
        Ok(Self { number, bits, file, path })
    }

    pub fn open(dir: &Path, number: u64, kind: &str, size: u64) -> Result<Self, DiskError> {
        let path = dir.join(format!("{number}.{kind}"));
        let file = open(&path)?;
        let expected = size.div_ceil(BLOCK).div_ceil(8);
        let found = file.metadata().map_err(DiskError::file("examine", &path))?.len();
        // Longer is a growth that died before the state knew of it; nothing was written into the new part yet.
        if found < expected {
            return Err(DiskError::Length { path, found, expected });
        }
        file.set_len(expected).map_err(DiskError::file("size", &path))?;
        let mut bytes = vec![0; expected as usize];
        file.read_exact_at(&mut bytes, 0).map_err(DiskError::file("read", &path))?;
        let bits = Bitmap::from_bytes(size, bytes).expect("the length was checked above");
        Ok(Self { number, bits, file, path })
    }

    /// Adds a block, in memory and in the file.
    pub fn set(&mut self, block: u64) -> Result<(), DiskError> {
        if self.bits.set(block) {
            let byte = (block / 8) as usize;
            let bytes = &self.bits.as_bytes()[byte..=byte];
            self.file.write_all_at(bytes, byte as u64).map_err(DiskError::file("write", &self.path))?;
        }
        Ok(())
    }

    /// Follows the disk to a larger size.
    pub fn grow(&mut self, size: u64) -> Result<(), DiskError> {
        self.bits = self.bits.clone().grown_to(size);
        self.file.write_all_at(self.bits.as_bytes(), 0).map_err(DiskError::file("write", &self.path))
    }
}

/// A new file, readable and writable, that must not exist.
pub(crate) fn create(path: &Path) -> Result<File, DiskError> {
    File::options().read(true).write(true).create_new(true).open(path).map_err(DiskError::file("create", path))
}

pub(crate) fn open(path: &Path) -> Result<File, DiskError> {
    File::options().read(true).write(true).open(path).map_err(DiskError::file("open", path))
}

impl Record {
    pub fn load(dir: &Path) -> Result<Self, DiskError> {
        let path = dir.join("state.json");
        let text = fs::read(&path).map_err(DiskError::file("read", &path))?;
        serde_json::from_slice(&text).map_err(|source| DiskError::State { path, source })
    }

    pub fn save(&self, dir: &Path) -> Result<(), DiskError> {
        let (path, fresh) = (dir.join("state.json"), dir.join("state.json.new"));
        let text = serde_json::to_vec_pretty(self).map_err(|source| DiskError::State { path: path.clone(), source })?;
        fs::write(&fresh, text).map_err(DiskError::file("write", &fresh))?;
        fs::rename(&fresh, &path).map_err(DiskError::file("replace", &path))
    }

    /// Removes numbered files that nothing refers to.
    pub fn sweep(&self, dir: &Path) -> Result<(), DiskError> {
        let logs = self.snapshots.iter().filter_map(|snapshot| snapshot.changed).chain(self.changed);
        let mut known: Vec<String> = logs.map(|log| format!("{}.changed", log.file)).collect();
        for number in self.snapshots.iter().filter_map(|snapshot| snapshot.data) {
            known.extend([format!("{number}.data"), format!("{number}.held")]);
        }
        for entry in fs::read_dir(dir).map_err(DiskError::file("list", dir))? {
            let name = entry.map_err(DiskError::file("list", dir))?.file_name();
            let Some(name) = name.to_str() else { continue };
            let numbered = name.split_once('.').is_some_and(|(number, kind)| {
                number.bytes().all(|digit| digit.is_ascii_digit()) && ["data", "held", "changed"].contains(&kind)
            });
            if numbered && !known.iter().any(|known| known == name) {
                match fs::remove_file(dir.join(name)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(DiskError::file("remove", dir.join(name))(error));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}
