//! The only place where something under a local repository is created, renamed, synced or deleted.
//!
//! Every path is opened beneath the descriptor of the root, without following links (`openat2`), and every change is
//! made relative to the descriptor of its parent directory, so that a directory swapped for a link in between has no
//! effect. The root's descriptor also keeps a mount busy: an unmounted share never turns into writes to the bare mount
//! point.
#![allow(clippy::disallowed_methods)]

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;

use crate::{Durability, Entry, EntryKind, OpenOptions, RepoPath, Space, Stat};

const DIR_MODE: Mode = Mode::RWXU;
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
/// Directories in directories below which a tree is no repository's any more.
const MAX_DEPTH: usize = 16;

/// The root of a local repository.
#[derive(Debug)]
pub(crate) struct Root {
    fd: OwnedFd,
}

impl Root {
    pub fn open(path: &Path, options: OpenOptions) -> io::Result<Self> {
        if options.make_root {
            use std::os::unix::fs::DirBuilderExt;
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        }
        // A link is fine here: what the root is called is the administrator's business.
        let fd = rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { fd })
    }

    /// Opens something beneath the root, following no link.
    fn open_beneath(&self, path: &RepoPath, flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let name = if path.is_root() { "." } else { path.as_str() };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(&self.fd, name, flags, Mode::empty(), resolve) {
            Err(Errno::NOSYS) => self.walk(path, flags),
            other => Ok(other?),
        }
    }

    /// The same on kernels without `openat2`: component by component.
    fn walk(&self, path: &RepoPath, flags: OFlags) -> io::Result<OwnedFd> {
        let step = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut dir = rustix::fs::openat(&self.fd, ".", step, Mode::empty())?;
        let mut components = path.components().peekable();
        while let Some(component) = components.next() {
            let flags = if components.peek().is_some() { step } else { flags };
            dir = rustix::fs::openat(&dir, component, flags, Mode::empty())?;
        }
        Ok(dir)
    }

    fn dir(&self, path: &RepoPath) -> io::Result<OwnedFd> {
        self.open_beneath(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    fn parent(&self, path: &RepoPath) -> io::Result<OwnedFd> {
        self.dir(&path.parent().ok_or(Errno::INVAL)?)
    }

    /// The parent directory, made when missing.
    fn parent_made(&self, path: &RepoPath) -> io::Result<OwnedFd> {
        match self.parent(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.make_dir(&path.parent().ok_or(Errno::INVAL)?, Durability::Now)?;
                self.parent(path)
            }
            other => other,
        }
    }

    /// A regular file; anything else is refused. Non-blocking, so that a planted pipe cannot hold us.
    pub fn open_file(&self, path: &RepoPath, write: bool) -> io::Result<File> {
        let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
        let file = File::from(self.open_beneath(path, access | OFlags::NONBLOCK)?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(Errno::ISDIR.into()) }
    }

    pub fn create(&self, path: &RepoPath) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(self.parent_made(path)?, path.name(), flags, FILE_MODE)?.into())
    }

    pub fn read(&self, path: &RepoPath, limit: u64) -> io::Result<Option<Bytes>> {
        let file = self.open_file(path, false)?;
        let mut data = Vec::with_capacity(file.metadata()?.len().min(limit) as usize);
        file.take(limit.saturating_add(1)).read_to_end(&mut data)?;
        Ok((data.len() as u64 <= limit).then(|| data.into()))
    }

    pub fn list(&self, path: &RepoPath) -> io::Result<Vec<Entry>> {
        let dir = self.dir(path)?;
        let mut entries = Vec::new();
        for entry in rustix::fs::Dir::read_from(&dir)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else {
                tracing::warn!(directory = %path, "a name that is not UTF-8 is left alone");
                continue;
            };
            if name == "." || name == ".." {
                continue;
            }
            let kind = match entry.file_type() {
                // Not every file system tells; one that is gone again is not listed.
                FileType::Unknown => match rustix::fs::statat(&dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                    Err(Errno::NOENT) => continue,
                    Err(error) => return Err(error.into()),
                },
                known => known,
            };
            entries.push(Entry { name: name.to_owned(), kind: entry_kind(kind) });
        }
        entries.sort();
        Ok(entries)
    }

    pub fn stat(&self, path: &RepoPath) -> io::Result<Stat> {
        let stat = if path.is_root() {
            rustix::fs::fstat(&self.fd)?
        } else {
            rustix::fs::statat(self.parent(path)?, path.name(), AtFlags::SYMLINK_NOFOLLOW)?
        };
        let since = Duration::new(u64::try_from(stat.st_mtime).unwrap_or(0), u32::try_from(stat.st_mtime_nsec).unwrap_or(0));
        Ok(Stat {
            kind: entry_kind(FileType::from_raw_mode(stat.st_mode)),
            len: u64::try_from(stat.st_size).unwrap_or(0),
            modified: UNIX_EPOCH + since,
        })
    }

    /// Writes a file under a temporary name and gives it its own, exclusively or not.
    pub fn put(&self, path: &RepoPath, data: &[u8], exclusive: bool, durability: Durability) -> io::Result<()> {
        let dir = self.parent_made(path)?;
        let temporary = temporary_name()?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(&dir, temporary.as_str(), flags, FILE_MODE)?);
        let published = file
            .write_all(data)
            .and_then(|()| if durability == Durability::Now { file.sync_all() } else { Ok(()) })
            .and_then(|()| publish(&dir, &temporary, path.name(), exclusive));
        if let Err(error) = published {
            let _ = rustix::fs::unlinkat(&dir, temporary.as_str(), AtFlags::empty());
            return Err(error);
        }
        settle(&dir, durability)
    }

    pub fn rename(&self, from: &RepoPath, to: &RepoPath, durability: Durability) -> io::Result<()> {
        let (source, target) = (self.parent(from)?, self.parent_made(to)?);
        rustix::fs::renameat(&source, from.name(), &target, to.name())?;
        settle(&target, durability)?;
        if from.parent() == to.parent() { Ok(()) } else { settle(&source, durability) }
    }

    pub fn share(&self, from: &RepoPath, to: &RepoPath) -> io::Result<()> {
        let (source, target) = (self.parent(from)?, self.parent_made(to)?);
        let temporary = temporary_name()?;
        match rustix::fs::linkat(&source, from.name(), &target, temporary.as_str(), AtFlags::empty()) {
            Ok(()) => {}
            // File systems without hard links, or with too many on this one: a copy does as well.
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::MLINK | Errno::XDEV) => {
                let mut original = self.open_file(from, false)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let mut copy = File::from(rustix::fs::openat(&target, temporary.as_str(), flags, FILE_MODE)?);
                if let Err(error) = io::copy(&mut original, &mut copy) {
                    let _ = rustix::fs::unlinkat(&target, temporary.as_str(), AtFlags::empty());
                    return Err(error);
                }
            }
            Err(error) => return Err(error.into()),
        }
        let renamed = rustix::fs::renameat(&target, temporary.as_str(), &target, to.name());
        // Renaming one link of a file onto another of the same file does nothing: the temporary name may still be there.
        let _ = rustix::fs::unlinkat(&target, temporary.as_str(), AtFlags::empty());
        Ok(renamed?)
    }

    pub fn remove(&self, path: &RepoPath, durability: Durability) -> io::Result<()> {
        let dir = match self.parent(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        match rustix::fs::unlinkat(&dir, path.name(), AtFlags::empty()) {
            Ok(()) => settle(&dir, durability),
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    pub fn remove_tree(&self, path: &RepoPath) -> io::Result<()> {
        let parent = match self.parent(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        remove_entry(&parent, path.name(), MAX_DEPTH)
    }

    pub fn make_dir(&self, path: &RepoPath, durability: Durability) -> io::Result<()> {
        if self.dir(path).is_ok() {
            return Ok(());
        }
        let Some(parent) = path.parent() else { return Ok(()) };
        self.make_dir(&parent, durability)?;
        let parent = self.dir(&parent)?;
        match rustix::fs::mkdirat(&parent, path.name(), DIR_MODE) {
            Ok(()) => settle(&parent, durability),
            // Somebody was faster; or it is no directory, which opening it says.
            Err(Errno::EXIST) => self.dir(path).map(drop),
            Err(error) => Err(error.into()),
        }
    }

    pub fn make_lock(&self, path: &RepoPath) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(self.parent(path)?, path.name(), DIR_MODE)?)
    }

    pub fn remove_lock(&self, path: &RepoPath) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(self.parent(path)?, path.name(), AtFlags::REMOVEDIR)?)
    }

    pub fn set_modified(&self, path: &RepoPath, time: SystemTime) -> io::Result<()> {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let stamp = rustix::fs::Timespec { tv_sec: since.as_secs() as i64, tv_nsec: since.subsec_nanos().into() };
        let times = rustix::fs::Timestamps { last_access: stamp, last_modification: stamp };
        Ok(rustix::fs::utimensat(self.parent(path)?, path.name(), &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.fd)?)
    }

    pub fn space(&self) -> io::Result<Space> {
        let stat = rustix::fs::fstatvfs(&self.fd)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Space {
            size: bytes(stat.f_blocks),
            used: bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
            available: bytes(stat.f_bavail),
        })
    }
}

/// Reads exactly `len` bytes.
pub(crate) fn read_at(file: &File, offset: u64, len: usize) -> io::Result<Bytes> {
    let mut data = vec![0; len];
    file.read_exact_at(&mut data, offset)?;
    Ok(data.into())
}

/// Writes all parts, gathering them in the kernel.
pub(crate) fn write_at(file: &File, mut offset: u64, parts: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut rest = slices.as_mut_slice();
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        match rustix::io::pwritev(file, rest, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                offset += written as u64;
                IoSlice::advance_slices(&mut rest, written);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn entry_kind(kind: FileType) -> EntryKind {
    match kind {
        FileType::RegularFile => EntryKind::File,
        FileType::Directory => EntryKind::Directory,
        _ => EntryKind::Other,
    }
}

/// A name that XO's clean removes and its listings ignore (backup-repository.md §5.6).
fn temporary_name() -> io::Result<String> {
    let random = getrandom::u64().map_err(io::Error::other)?;
    Ok(format!(".{random:016x}.tmp"))
}

fn publish(dir: &OwnedFd, temporary: &str, name: &str, exclusive: bool) -> io::Result<()> {
    if !exclusive {
        return Ok(rustix::fs::renameat(dir, temporary, dir, name)?);
    }
    match rustix::fs::renameat_with(dir, temporary, dir, name, RenameFlags::NOREPLACE) {
        // NFS knows no exclusive rename, but an exclusive link.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            rustix::fs::linkat(dir, temporary, dir, name, AtFlags::empty())?;
            Ok(rustix::fs::unlinkat(dir, temporary, AtFlags::empty())?)
        }
        other => Ok(other?),
    }
}

fn settle(dir: &OwnedFd, durability: Durability) -> io::Result<()> {
    match durability {
        Durability::Now => Ok(rustix::fs::fsync(dir)?),
        Durability::AtSync => Ok(()),
    }
}

fn remove_entry<N: rustix::path::Arg + Copy>(parent: &OwnedFd, name: N, depth: usize) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    if depth == 0 {
        return Err(Errno::LOOP.into());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    // Names first, then removals: a directory changed while it is read may skip entries.
    let entries = rustix::fs::Dir::read_from(&dir)?.collect::<Result<Vec<_>, _>>()?;
    for entry in entries {
        let child = entry.file_name();
        if child.to_bytes() != b"." && child.to_bytes() != b".." {
            remove_entry(&dir, child, depth - 1)?;
        }
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
