//! Volumes labelled BACKHAUL: made with a configuration, and read while the machine runs or after.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Bench;
use crate::disk;

/// A volume, in a file of its own or as a part of a disk.
pub struct Volume {
    /// The file.
    pub file: PathBuf,
    /// Where in it, bytes.
    start: u64,
    /// Whether a machine may write to it.
    pub writable: bool,
}

/// A key and its value.
pub type Key<'a> = (&'a str, &'a str);

impl Volume {
    /// A part of a disk.
    pub fn part(disk: &Path, start: u64) -> Self {
        Self { file: disk.to_owned(), start, writable: true }
    }

    /// A new FAT volume.
    pub fn fat(bench: &Bench) -> Result<Self> {
        Ok(Self { file: disk::volume(&bench.tools, &bench.dir.join("volume.img"), 0)?, start: 0, writable: true })
    }

    /// A new ISO 9660 volume with these keys, which nobody can write to.
    pub fn iso(bench: &Bench, keys: &[Key<'_>]) -> Result<Self> {
        let folder = folder(bench, keys)?;
        let file = bench.dir.join("volume.iso");
        let make = bench.tools.program("bin/genisoimage").args(["-quiet", "-V", "BACKHAUL", "-R", "-o"]);
        make.arg(&file).arg(&folder).run()?;
        Ok(Self { file, start: 0, writable: false })
    }

    /// Puts keys on it, while no machine has it.
    pub fn put(&self, bench: &Bench, keys: &[Key<'_>]) -> Result<()> {
        let folder = folder(bench, keys)?;
        let mut copy = bench.tools.program("bin/mcopy").args(["-s", "-o", "-Q", "-i", &self.image()]);
        for entry in std::fs::read_dir(&folder)? {
            copy = copy.arg(entry?.path());
        }
        copy.arg("::/").run()
    }

    /// The value of a key, if it is there.
    pub fn get(&self, bench: &Bench, key: &str) -> Result<Option<String>> {
        let mut command = bench.tools.program("bin/mtype").args(["-i", &self.image(), &format!("::{key}")]).into_command();
        let output = command.output().context("cannot run mtype")?;
        if output.status.success() {
            return Ok(Some(String::from_utf8_lossy(&output.stdout).trim().to_owned()));
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        ensure!(said.contains("not found"), "cannot read {key} of {}: {said}", self.file.display());
        Ok(None)
    }

    /// Removes a key.
    pub fn remove(&self, bench: &Bench, key: &str) -> Result<()> {
        bench.tools.program("bin/mdel").args(["-i", &self.image(), &format!("::{key}")]).run()
    }

    /// Waits for the value of a key.
    pub async fn wait(&self, bench: &Bench, key: &str, limit: Duration) -> Result<String> {
        let poll = async {
            loop {
                // What is read while it is written may be nonsense: the next look is better.
                if let Ok(Some(value)) = self.get(bench, key)
                    && !value.is_empty()
                {
                    return value;
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        let waited = tokio::time::timeout(limit, poll).await;
        waited.with_context(|| format!("the appliance did not tell {key} within {} s", limit.as_secs()))
    }

    /// Whether these bytes stand anywhere on it, in a file or in what was one.
    pub fn holds(&self, text: &str) -> Result<bool> {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::open(&self.file)?;
        let mut content = vec![0; disk::VOLUME_SIZE.min(file.metadata()?.len() - self.start) as usize];
        file.read_exact_at(&mut content, self.start)?;
        Ok(content.windows(text.len()).any(|window| window == text.as_bytes()))
    }

    fn image(&self) -> String {
        format!("{}@@{}", self.file.display(), self.start)
    }
}

/// A folder with a file for each key.
fn folder(bench: &Bench, keys: &[Key<'_>]) -> Result<PathBuf> {
    let folder = super::fresh(&bench.dir.join("keys"))?;
    for (key, value) in keys {
        let path = folder.join(key);
        std::fs::create_dir_all(path.parent().unwrap_or(&folder))?;
        std::fs::write(&path, value).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(folder)
}
