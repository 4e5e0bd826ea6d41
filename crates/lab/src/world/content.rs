//! What is on a disk at first: a partition table, and in the partition a file system with files, or generated content.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use uuid::Uuid;

use super::gpt::{self, MARGIN};
use crate::error::LabError;
use crate::rng::Rng;
use crate::spec::{Content, DiskSpec, MIB, PoolSpec};

/// Bytes of one file of the library.
const FILE: u64 = 4 * MIB;

/// Grain of generated content.
const PIECE: u64 = 64 << 10;

/// Where `mkfs.ext4` is when it is not in `PATH`: that of an ordinary user leaves these out.
const SYSTEM: &[&str] = &["/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4"];

/// Time in all file systems, seconds since 1970: a world looks the same whenever it is built.
const TIME: &str = "1735689600";

/// Files that the disks of a pool are filled with, each written once and linked into the tree of every disk.
pub(super) struct Library {
    dir: PathBuf,
    mkfs: Option<PathBuf>,
}

impl Library {
    /// Writes as many files as the largest disk needs; none without `mkfs.ext4`.
    pub fn make(dir: &Path, spec: &PoolSpec, rng: &Rng) -> Result<Self, LabError> {
        let library = Self { dir: dir.join("library"), mkfs: find_mkfs() };
        let most = spec
            .vms
            .iter()
            .flat_map(|vm| &vm.disks)
            .filter_map(|disk| match disk.content {
                Content::FileSystem { bytes } => Some(bytes),
                _ => None,
            })
            .max();
        if let (Some(bytes), Some(_)) = (most, &library.mkfs) {
            let files = library.dir.join("files");
            fs::create_dir_all(&files).map_err(LabError::file("make", &files))?;
            for number in 0..bytes.div_ceil(FILE) {
                let path = files.join(format!("{number:04}"));
                write_file(&path, number, &mut rng.fork(&format!("file {number}"))).map_err(LabError::file("write", &path))?;
            }
        }
        Ok(library)
    }

    /// A directory with about so many bytes of files.
    fn tree(&self, machine: &str, disk: &DiskSpec, bytes: u64, rng: &mut Rng) -> io::Result<PathBuf> {
        let tree = self.dir.join(format!("tree-{:016x}", rng.next_u64()));
        for dir in ["etc", "home/anna/Pictures", "var/log", "srv/data", "srv/naïve “names” 📁"] {
            fs::create_dir_all(tree.join(dir))?;
        }
        fs::write(tree.join("etc/hostname"), format!("{machine}\n"))?;
        fs::write(
            tree.join("etc/backhaul-lab"),
            format!("Disk {} of the machine {machine}, made by the Backhaul lab.\n", disk.name),
        )?;
        let files = bytes.div_ceil(FILE).max(1);
        let first = rng.below(files);
        for position in 0..files {
            let number = (first + position) % files;
            let name = match number % 4 {
                0 => format!("var/log/messages.{number}"),
                1 => format!("home/anna/Pictures/IMG_{number:04}.raw"),
                2 => format!("srv/naïve “names” 📁/it's file {number}"),
                _ => format!("srv/data/{number:04}.bin"),
            };
            fs::hard_link(self.dir.join(format!("files/{number:04}")), tree.join(name))?;
        }
        Ok(tree)
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        if self.dir.exists()
            && let Err(error) = fs::remove_dir_all(&self.dir)
        {
            tracing::warn!(%error, path = %self.dir.display(), "the files that disks were made from stay behind");
        }
    }
}

fn find_mkfs() -> Option<PathBuf> {
    let in_path = std::env::var_os("PATH")
        .and_then(|paths| std::env::split_paths(&paths).map(|dir| dir.join("mkfs.ext4")).find(|path| path.is_file()));
    in_path.or_else(|| SYSTEM.iter().map(PathBuf::from).find(|path| path.is_file()))
}

/// Every fourth file is text that compresses well; the others do not compress at all.
fn write_file(path: &Path, number: u64, rng: &mut Rng) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut buffer = Vec::with_capacity(MIB as usize + 256);
    for part in 0..FILE / MIB {
        buffer.clear();
        if number.is_multiple_of(4) {
            let mut line = part * 10_000;
            while (buffer.len() as u64) < MIB {
                let (user, time) = (rng.below(50), 100 + rng.below(900));
                writeln!(buffer, "Jan  1 00:00:00 lab service[{number}]: request {line} of user-{user} answered in {time} ms")?;
                line += 1;
            }
            buffer.truncate(MIB as usize);
        } else {
            buffer.resize(MIB as usize, 0);
            rng.fill(&mut buffer);
        }
        file.write_all(&buffer)?;
    }
    Ok(())
}

/// Fills the raw file of a new disk of `bytes`.
pub(super) fn fill(
    path: &Path,
    bytes: u64,
    disk: &DiskSpec,
    machine: &str,
    library: &Library,
    rng: &mut Rng,
) -> Result<(), LabError> {
    let room = bytes.saturating_sub(2 * MARGIN);
    match disk.content {
        Content::Empty => return Ok(()),
        _ if room < 2 * MIB => return Err(LabError::Spec(format!("disk {} is too small for a partition", disk.name))),
        Content::FileSystem { bytes: wanted } | Content::Generated { bytes: wanted } if wanted > room / 10 * 9 => {
            return Err(LabError::Spec(format!("disk {} of {bytes} bytes has no room for {wanted} bytes of content", disk.name)));
        }
        Content::FileSystem { bytes: wanted } if library.mkfs.is_some() => {
            file_system(path, room, disk, machine, wanted, library, rng)?
        }
        Content::FileSystem { bytes: wanted } | Content::Generated { bytes: wanted } => {
            generated(path, room, machine, wanted, rng).map_err(LabError::file("fill", path))?;
        }
    }
    let (front, back) = gpt::tables(bytes, rng.uuid(), rng.uuid());
    let write = || -> io::Result<()> {
        let file = File::options().write(true).open(path)?;
        file.write_all_at(&front, 0)?;
        file.write_all_at(&back, bytes - back.len() as u64)
    };
    write().map_err(LabError::file("partition", path))
}

fn file_system(
    path: &Path,
    room: u64,
    disk: &DiskSpec,
    machine: &str,
    wanted: u64,
    library: &Library,
    rng: &mut Rng,
) -> Result<(), LabError> {
    let tree = library.tree(machine, disk, wanted, rng).map_err(LabError::file("fill", &library.dir))?;
    let (id, hash): (Uuid, Uuid) = (rng.uuid(), rng.uuid());
    let options = format!("offset={MARGIN},nodiscard,lazy_itable_init=1,lazy_journal_init=1,hash_seed={hash}");
    let program = library.mkfs.as_deref().unwrap_or(Path::new("mkfs.ext4"));
    let output = Command::new(program)
        .args(["-q", "-F", "-m", "0", "-b", "4096", "-L", "lab-root", "-E", &options, "-U", &id.to_string()])
        .arg("-d")
        .arg(&tree)
        .arg(path)
        .arg(format!("{}k", room / 1024))
        .env("E2FSPROGS_FAKE_TIME", TIME)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .map_err(LabError::file("run mkfs.ext4 on", path))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(LabError::MakeFileSystem { path: path.to_owned(), message });
    }
    fs::remove_dir_all(&tree).map_err(LabError::file("remove", &tree))
}

/// Pieces of noise spread over the partition, the first of which says what this is.
fn generated(path: &Path, room: u64, machine: &str, wanted: u64, rng: &mut Rng) -> io::Result<()> {
    let file = File::options().write(true).open(path)?;
    let label = format!("Backhaul lab: generated content of a disk of {machine}. There is no file system here.\n");
    file.write_all_at(label.as_bytes(), MARGIN)?;
    let mut piece = vec![0; PIECE as usize];
    for index in rng.choose(wanted / PIECE, room / PIECE - 1) {
        rng.fill(&mut piece);
        file.write_all_at(&piece, MARGIN + (index + 1) * PIECE)?;
    }
    Ok(())
}
