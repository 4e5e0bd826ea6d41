//! A disk with a history: the live file, snapshots that keep what was overwritten, and bitmaps of what changed.
//!
//! A snapshot is a position in a chain, oldest to newest to live, and holds only the blocks that something newer has
//! overwritten. Reading a block of a snapshot looks in its own file, then in each newer one, and finds it in the live
//! disk at last. So taking a snapshot costs nothing, and the first write to a block afterwards costs one copy.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use uuid::Uuid;

use crate::layer::{BlockRead, Layer, View};
use crate::state::{LogRecord, Record, SnapshotRecord, StoredBitmap, create, open};
use crate::{BLOCK, Bitmap, DiskError, sparse};

/// Blocks moved under one holding of the lock while a snapshot goes away, so that readers and writers get their turn.
const HAND_OVER_STEP: u64 = 128;

/// A disk: live file, snapshots, changed blocks. See the crate for what lies where.
///
/// Shared by reference; every operation takes its own lock. A write is atomic per 64 KiB block with regard to reads.
#[derive(Debug)]
pub struct Image {
    dir: PathBuf,
    disk_path: PathBuf,
    state: RwLock<State>,
    /// Locked as long as it is open.
    _lock: File,
}

/// What is known of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// As given to [`Image::snapshot`].
    pub id: Uuid,
    /// Bytes of the disk at that time.
    pub size: u64,
    /// Whether it can be a point of [`Image::changed_blocks`].
    pub cbt: bool,
    /// Whether its content can still be read; otherwise only its bitmap is left.
    pub has_data: bool,
}

#[derive(Debug)]
struct State {
    disk: File,
    size: u64,
    changed: Option<Log>,
    snapshots: Vec<Snapshot>,
    next_file: u64,
}

#[derive(Debug)]
struct Log {
    complete: bool,
    blocks: StoredBitmap,
}

#[derive(Debug)]
struct Snapshot {
    id: Uuid,
    size: u64,
    changed: Option<Log>,
    kept: Option<Kept>,
}

#[derive(Debug)]
struct Kept {
    held: StoredBitmap,
    data: File,
    path: PathBuf,
}

/// Who holds a block of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Snapshot(usize),
    Live,
}

impl Image {
    /// Makes a disk of zeros in a directory that is made too. Until its first snapshot or [`Image::enable_cbt`] the
    /// file at [`Image::path`] may be filled directly, as long as its length stays.
    ///
    /// # Errors
    /// [`DiskError::File`], also when the directory holds an image already.
    pub fn create(dir: &Path, size: u64) -> Result<Arc<Self>, DiskError> {
        fs::create_dir_all(dir).map_err(DiskError::file("create", dir))?;
        let lock = lock(dir)?;
        let disk_path = dir.join("disk.raw");
        let disk = create(&disk_path)?;
        disk.set_len(size).map_err(DiskError::file("size", &disk_path))?;
        let state = State { disk, size, changed: None, snapshots: Vec::new(), next_file: 1 };
        state.record().save(dir)?;
        Ok(Arc::new(Self { dir: dir.to_owned(), disk_path, state: RwLock::new(state), _lock: lock }))
    }

    /// Opens an image made before, and clears away what a killed process left half made.
    ///
    /// # Errors
    /// [`DiskError::InUse`], [`DiskError::State`], [`DiskError::Length`], [`DiskError::File`].
    pub fn open(dir: &Path) -> Result<Arc<Self>, DiskError> {
        let lock = lock(dir)?;
        let record = Record::load(dir)?;
        record.sweep(dir)?;
        let disk_path = dir.join("disk.raw");
        let disk = open(&disk_path)?;
        let found = disk.metadata().map_err(DiskError::file("examine", &disk_path))?.len();
        // A growth interrupted between file and state leaves the file longer; the state decides.
        if found < record.size {
            return Err(DiskError::Length { path: disk_path, found, expected: record.size });
        }
        disk.set_len(record.size).map_err(DiskError::file("size", &disk_path))?;
        let snapshots = record.snapshots.iter().map(|snapshot| Snapshot::open(dir, snapshot)).collect::<Result<_, _>>()?;
        let changed = Log::open(dir, record.changed, record.size)?;
        let state = State { disk, size: record.size, changed, snapshots, next_file: record.next_file };
        Ok(Arc::new(Self { dir: dir.to_owned(), disk_path, state: RwLock::new(state), _lock: lock }))
    }

    /// The live disk as a raw file. For reading; see [`Image::create`] for when it may be written.
    pub fn path(&self) -> &Path {
        &self.disk_path
    }

    /// Bytes of the live disk.
    pub fn size(&self) -> u64 {
        self.read_state().size
    }

    /// Bytes of `layer`.
    ///
    /// # Errors
    /// [`DiskError::NoSuchSnapshot`], [`DiskError::DataDestroyed`].
    pub fn layer_size(&self, layer: Layer) -> Result<u64, DiskError> {
        let state = self.read_state();
        Ok(state.size_of(state.owner_of(layer)?))
    }

    /// The snapshots, oldest first.
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        let info = |snapshot: &Snapshot| SnapshotInfo {
            id: snapshot.id,
            size: snapshot.size,
            cbt: snapshot.changed.is_some(),
            has_data: snapshot.kept.is_some(),
        };
        self.read_state().snapshots.iter().map(info).collect()
    }

    /// Reads the live disk.
    ///
    /// # Errors
    /// [`DiskError::OutOfRange`], [`DiskError::File`].
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.read_layer(Layer::Live, offset, buffer)
    }

    /// Writes the live disk, keeping what snapshots still need and noting what changes.
    ///
    /// # Errors
    /// [`DiskError::OutOfRange`], [`DiskError::File`].
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let mut rest = bytes;
        self.change(offset, bytes.len() as u64, |disk, range| {
            let (now, later) = rest.split_at((range.end - range.start) as usize);
            rest = later;
            disk.write_all_at(now, range.start)
        })
    }

    /// Makes a range of the live disk read as zeros and gives its space back.
    ///
    /// # Errors
    /// [`DiskError::OutOfRange`], [`DiskError::File`].
    pub fn trim(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.change(offset, length, |disk, range| sparse::punch(disk, range.start, range.end - range.start))
    }

    /// Grows the live disk to `size` bytes; the new part is zeros. Snapshots keep their size.
    ///
    /// # Errors
    /// [`DiskError::Shrink`], [`DiskError::File`].
    pub fn resize(&self, size: u64) -> Result<(), DiskError> {
        let mut state = self.write_state();
        if size < state.size {
            return Err(DiskError::Shrink { size: state.size, wanted: size });
        }
        state.disk.set_len(size).map_err(DiskError::file("size", &self.disk_path))?;
        if let Some(log) = &mut state.changed {
            log.blocks.grow(size)?;
        }
        state.size = size;
        state.record().save(&self.dir)
    }

    /// Takes a snapshot under an identifier of the caller's choice.
    ///
    /// # Errors
    /// [`DiskError::SnapshotExists`], [`DiskError::File`].
    pub fn snapshot(&self, id: Uuid) -> Result<(), DiskError> {
        let mut state = self.write_state();
        if state.position(id).is_some() {
            return Err(DiskError::SnapshotExists(id));
        }
        let size = state.size;
        let kept = Kept::create(&self.dir, state.next_number(), size)?;
        let fresh = match &state.changed {
            Some(_) => Some(Log::create(&self.dir, state.next_number(), Bitmap::for_size(size), true)?),
            None => None,
        };
        let changed = std::mem::replace(&mut state.changed, fresh);
        state.snapshots.push(Snapshot { id, size, changed, kept: Some(kept) });
        state.record().save(&self.dir)
    }

    /// Deletes a snapshot. What older ones need of it goes to the next older one, and its changed blocks count for
    /// the next newer point.
    ///
    /// # Errors
    /// [`DiskError::NoSuchSnapshot`], [`DiskError::File`].
    pub fn delete_snapshot(&self, id: Uuid) -> Result<(), DiskError> {
        let mut state = self.hand_over(id)?;
        let position = state.position(id).ok_or(DiskError::NoSuchSnapshot(id))?;
        // A new file for the sum: whoever dies here leaves either the old state or the new one, never half a union.
        let number = state.next_number();
        let gone = state.snapshots.remove(position);
        let newer = match state.snapshots.get_mut(position) {
            Some(snapshot) => &mut snapshot.changed,
            None => &mut state.changed,
        };
        if let Some(log) = newer {
            match &gone.changed {
                Some(older) => {
                    let mut sum = log.blocks.bits.clone();
                    sum.union(&older.blocks.bits);
                    *newer = Some(Log::create(&self.dir, number, sum, log.complete && older.complete)?);
                }
                None => log.complete = false,
            }
        }
        let record = state.record();
        record.save(&self.dir)?;
        record.sweep(&self.dir)
    }

    /// Gives up the content of a snapshot and keeps its bitmap of changed blocks (`VDI.data_destroy`).
    ///
    /// # Errors
    /// [`DiskError::NoSuchSnapshot`], [`DiskError::NotTracked`] when it has no bitmap, [`DiskError::File`].
    pub fn destroy_data(&self, id: Uuid) -> Result<(), DiskError> {
        if !self.snapshots().iter().find(|snapshot| snapshot.id == id).ok_or(DiskError::NoSuchSnapshot(id))?.cbt {
            return Err(DiskError::NotTracked { from: id, to: "the present".into() });
        }
        let mut state = self.hand_over(id)?;
        let position = state.position(id).ok_or(DiskError::NoSuchSnapshot(id))?;
        state.snapshots[position].kept = None;
        let record = state.record();
        record.save(&self.dir)?;
        record.sweep(&self.dir)
    }

    /// Whether changes of the live disk are tracked.
    pub fn cbt_enabled(&self) -> bool {
        self.read_state().changed.is_some()
    }

    /// Starts tracking changes of the live disk; nothing happens when it is on.
    ///
    /// # Errors
    /// [`DiskError::File`].
    pub fn enable_cbt(&self) -> Result<(), DiskError> {
        let mut state = self.write_state();
        if state.changed.is_none() {
            let (number, bits) = (state.next_number(), Bitmap::for_size(state.size));
            state.changed = Some(Log::create(&self.dir, number, bits, false)?);
            state.record().save(&self.dir)?;
        }
        Ok(())
    }

    /// Stops tracking changes of the live disk; snapshots keep their bitmaps.
    ///
    /// # Errors
    /// [`DiskError::File`].
    pub fn disable_cbt(&self) -> Result<(), DiskError> {
        let mut state = self.write_state();
        if state.changed.take().is_some() {
            let record = state.record();
            record.save(&self.dir)?;
            record.sweep(&self.dir)?;
        }
        Ok(())
    }

    /// The blocks written between a snapshot and a newer point: a superset of those that differ, as on a real pool.
    /// Sized for `to`.
    ///
    /// # Errors
    /// [`DiskError::NoSuchSnapshot`]; [`DiskError::NotTracked`] when `from` is not older than `to`, or tracking was off
    /// at some time between.
    pub fn changed_blocks(&self, from: Uuid, to: Layer) -> Result<Bitmap, DiskError> {
        let state = self.read_state();
        let start = state.position(from).ok_or(DiskError::NoSuchSnapshot(from))?;
        let (end, size) = match to {
            Layer::Live => (state.snapshots.len(), state.size),
            Layer::Snapshot(id) => {
                let position = state.position(id).ok_or(DiskError::NoSuchSnapshot(id))?;
                (position, state.snapshots[position].size)
            }
        };
        let untracked = || DiskError::NotTracked { from, to: to.to_string() };
        if start >= end || state.snapshots[start].changed.is_none() {
            return Err(untracked());
        }
        let logs = state.snapshots.iter().map(|snapshot| &snapshot.changed).chain([&state.changed]);
        let mut sum = Bitmap::for_size(size);
        for log in logs.skip(start + 1).take(end - start) {
            let log = log.as_ref().filter(|log| log.complete).ok_or_else(untracked)?;
            sum.union(&log.blocks.bits);
        }
        Ok(sum)
    }

    /// A new image in `dir` with the content of `layer` (`VDI.clone`, `VDI.copy`); holes stay holes.
    ///
    /// # Errors
    /// As [`Image::create`] and [`Image::read_at`].
    pub fn copy_to(self: &Arc<Self>, layer: Layer, dir: &Path) -> Result<Arc<Self>, DiskError> {
        match layer {
            // The live disk may be written meanwhile; a snapshot holds still.
            Layer::Live => {
                let still = Uuid::new_v4();
                self.snapshot(still)?;
                let copied = self.copy_to(Layer::Snapshot(still), dir);
                self.delete_snapshot(still)?;
                copied
            }
            Layer::Snapshot(_) => {
                let source = View::new(Arc::clone(self), layer)?;
                let copy = Self::create(dir, source.size())?;
                let mut buffer = vec![0; 16 * BLOCK as usize];
                for range in source.allocated()? {
                    for start in range.clone().step_by(buffer.len()) {
                        let part = &mut buffer[..(range.end - start).min(16 * BLOCK) as usize];
                        source.read_at(start, part)?;
                        copy.write_at(start, part)?;
                    }
                }
                Ok(copy)
            }
        }
    }

    /// Removes the image with its history and its directory.
    ///
    /// # Errors
    /// [`DiskError::File`].
    pub fn remove(&self) -> Result<(), DiskError> {
        let _state = self.write_state();
        fs::remove_dir_all(&self.dir).map_err(DiskError::file("remove", &self.dir))
    }

    pub(crate) fn read_layer(&self, layer: Layer, offset: u64, mut buffer: &mut [u8]) -> Result<(), DiskError> {
        let state = self.read_state();
        let top = state.owner_of(layer)?;
        let mut at = offset;
        let end = check_range(offset, buffer.len() as u64, state.size_of(top))?;
        while at < end {
            let owner = state.holder(top, at / BLOCK);
            let mut run = (at / BLOCK + 1) * BLOCK;
            while run < end && state.holder(top, run / BLOCK) == owner {
                run += BLOCK;
            }
            let run = run.min(end);
            let (part, rest) = std::mem::take(&mut buffer).split_at_mut((run - at) as usize);
            let (file, path) = state.file(owner, &self.disk_path);
            sparse::read_at(file, at, part).map_err(DiskError::file("read", path))?;
            (at, buffer) = (run, rest);
        }
        Ok(())
    }

    /// The blocks of `layer` that may hold anything but zeros.
    pub(crate) fn allocated(&self, layer: Layer) -> Result<Bitmap, DiskError> {
        let state = self.read_state();
        let top = state.owner_of(layer)?;
        let size = state.size_of(top);
        let files = state.chain(top).map(|owner| {
            let (file, path) = state.file(owner, &self.disk_path);
            let blocks = sparse::allocated(file, size).map_err(DiskError::file("find the holes of", path))?;
            Ok((owner, blocks))
        });
        let files = files.collect::<Result<Vec<_>, DiskError>>()?;
        let mut sum = Bitmap::for_size(size);
        for (owner, blocks) in &files {
            for block in blocks.runs().flatten() {
                if state.holder(top, block) == *owner {
                    sum.set(block);
                }
            }
        }
        Ok(sum)
    }

    /// The blocks that two layers of this image do not share; whether they differ, only reading tells.
    pub(crate) fn unshared(&self, one: Layer, other: Layer) -> Result<Bitmap, DiskError> {
        let state = self.read_state();
        let (one, other) = (state.owner_of(one)?, state.owner_of(other)?);
        let mut sum = Bitmap::for_size(state.size_of(one).max(state.size_of(other)));
        for block in 0..sum.blocks() {
            if state.holder(one, block) != state.holder(other, block) {
                sum.set(block);
            }
        }
        Ok(sum)
    }

    /// Changes a range of the live disk, one block under one holding of the lock.
    fn change(
        &self,
        offset: u64,
        length: u64,
        mut apply: impl FnMut(&File, Range<u64>) -> std::io::Result<()>,
    ) -> Result<(), DiskError> {
        let end = check_range(offset, length, self.size())?;
        let mut at = offset;
        while at < end {
            let block = at / BLOCK;
            let next = ((block + 1) * BLOCK).min(end);
            let mut state = self.write_state();
            state.preserve(block, &self.disk_path)?;
            if let Some(log) = &mut state.changed {
                log.blocks.set(block)?;
            }
            apply(&state.disk, at..next).map_err(DiskError::file("write", &self.disk_path))?;
            at = next;
        }
        Ok(())
    }

    /// Gives the next older snapshot what it reads through `id`, and returns with the lock held once that is complete.
    fn hand_over(&self, id: Uuid) -> Result<RwLockWriteGuard<'_, State>, DiskError> {
        let mut from = 0;
        loop {
            let mut state = self.write_state();
            let position = state.position(id).ok_or(DiskError::NoSuchSnapshot(id))?;
            match state.hand_over(position, from)? {
                Some(next) => from = next,
                // A write may have slipped in behind the cursor between two steps; a last pass under the lock sees.
                None if from == 0 => return Ok(state),
                None => from = 0,
            }
        }
    }

    // A panic while the lock was held leaves at worst a bit set too many in memory: going on is safe.
    fn read_state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_state(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn position(&self, id: Uuid) -> Option<usize> {
        self.snapshots.iter().position(|snapshot| snapshot.id == id)
    }

    fn owner_of(&self, layer: Layer) -> Result<Owner, DiskError> {
        match layer {
            Layer::Live => Ok(Owner::Live),
            Layer::Snapshot(id) => {
                let position = self.position(id).ok_or(DiskError::NoSuchSnapshot(id))?;
                self.snapshots[position].kept.as_ref().ok_or(DiskError::DataDestroyed(id))?;
                Ok(Owner::Snapshot(position))
            }
        }
    }

    fn size_of(&self, owner: Owner) -> u64 {
        match owner {
            Owner::Live => self.size,
            Owner::Snapshot(position) => self.snapshots[position].size,
        }
    }

    /// Where a reader of `top` looks, in that order.
    fn chain(&self, top: Owner) -> impl Iterator<Item = Owner> + '_ {
        let start = match top {
            Owner::Live => self.snapshots.len(),
            Owner::Snapshot(position) => position,
        };
        let kept = |position: &usize| self.snapshots[*position].kept.is_some();
        (start..self.snapshots.len()).filter(kept).map(Owner::Snapshot).chain([Owner::Live])
    }

    fn holder(&self, top: Owner, block: u64) -> Owner {
        let holds = |owner: &Owner| match owner {
            Owner::Live => true,
            Owner::Snapshot(position) => self.snapshots[*position].kept.as_ref().is_some_and(|kept| kept.held.bits.get(block)),
        };
        self.chain(top).find(holds).unwrap_or(Owner::Live)
    }

    fn file<'a>(&'a self, owner: Owner, disk_path: &'a Path) -> (&'a File, &'a Path) {
        match owner {
            Owner::Snapshot(position) => match &self.snapshots[position].kept {
                Some(kept) => (&kept.data, &kept.path),
                None => (&self.disk, disk_path),
            },
            Owner::Live => (&self.disk, disk_path),
        }
    }

    /// Copies a block of the live disk to the newest snapshot that has none of its own yet.
    fn preserve(&mut self, block: u64, disk_path: &Path) -> Result<(), DiskError> {
        let Some(newest) = self.snapshots.iter_mut().rev().find(|snapshot| snapshot.kept.is_some()) else { return Ok(()) };
        let size = newest.size;
        match &mut newest.kept {
            Some(kept) if block * BLOCK < size => kept.keep(block, size, &self.disk, disk_path),
            _ => Ok(()),
        }
    }

    /// One step of moving blocks from the snapshot at `position` to the next older one that reads through it.
    /// Answers where to go on, or nothing when all blocks from `from` on have been dealt with.
    fn hand_over(&mut self, position: usize, from: u64) -> Result<Option<u64>, DiskError> {
        let (older, newer) = self.snapshots.split_at_mut(position);
        let Some(source) = &newer[0].kept else { return Ok(None) };
        let Some(target) = older.iter_mut().rev().find(|snapshot| snapshot.kept.is_some()) else { return Ok(None) };
        let size = target.size;
        let Some(kept) = &mut target.kept else { return Ok(None) };
        let mut moved = 0;
        for block in from..size.div_ceil(BLOCK) {
            if source.held.bits.get(block) && !kept.held.bits.get(block) {
                kept.keep(block, size, &source.data, &source.path)?;
                moved += 1;
                if moved == HAND_OVER_STEP {
                    return Ok(Some(block + 1));
                }
            }
        }
        Ok(None)
    }

    fn next_number(&mut self) -> u64 {
        self.next_file += 1;
        self.next_file - 1
    }

    fn record(&self) -> Record {
        let snapshot = |snapshot: &Snapshot| SnapshotRecord {
            id: snapshot.id,
            size: snapshot.size,
            changed: snapshot.changed.as_ref().map(Log::record),
            data: snapshot.kept.as_ref().map(|kept| kept.held.number),
        };
        Record {
            size: self.size,
            changed: self.changed.as_ref().map(Log::record),
            snapshots: self.snapshots.iter().map(snapshot).collect(),
            next_file: self.next_file,
        }
    }
}

impl Kept {
    fn create(dir: &Path, number: u64, size: u64) -> Result<Self, DiskError> {
        let held = StoredBitmap::create(dir, number, "held", Bitmap::for_size(size))?;
        let path = dir.join(format!("{number}.data"));
        let data = create(&path)?;
        data.set_len(size).map_err(DiskError::file("size", &path))?;
        Ok(Self { held, data, path })
    }

    /// Takes a block from another file unless it is here already: data first, then the bit.
    fn keep(&mut self, block: u64, size: u64, from: &File, from_path: &Path) -> Result<(), DiskError> {
        if self.held.bits.get(block) {
            return Ok(());
        }
        let start = block * BLOCK;
        let mut content = vec![0; (size - start).min(BLOCK) as usize];
        sparse::read_at(from, start, &mut content).map_err(DiskError::file("read", from_path))?;
        // A block not held has never been written here, so a hole already reads as its zeros.
        if !vhd::is_zero(&content) {
            self.data.write_all_at(&content, start).map_err(DiskError::file("write", &self.path))?;
        }
        self.held.set(block)
    }
}

impl Log {
    fn create(dir: &Path, number: u64, bits: Bitmap, complete: bool) -> Result<Self, DiskError> {
        Ok(Self { complete, blocks: StoredBitmap::create(dir, number, "changed", bits)? })
    }

    fn open(dir: &Path, record: Option<LogRecord>, size: u64) -> Result<Option<Self>, DiskError> {
        let open = |record: LogRecord| {
            let blocks = StoredBitmap::open(dir, record.file, "changed", size)?;
            Ok(Self { complete: record.complete, blocks })
        };
        record.map(open).transpose()
    }

    fn record(&self) -> LogRecord {
        LogRecord { file: self.blocks.number, complete: self.complete }
    }
}

impl Snapshot {
    fn open(dir: &Path, record: &SnapshotRecord) -> Result<Self, DiskError> {
        let kept = |number: u64| -> Result<Kept, DiskError> {
            let path = dir.join(format!("{number}.data"));
            Ok(Kept { held: StoredBitmap::open(dir, number, "held", record.size)?, data: open(&path)?, path })
        };
        Ok(Self {
            id: record.id,
            size: record.size,
            changed: Log::open(dir, record.changed, record.size)?,
            kept: record.data.map(kept).transpose()?,
        })
    }
}

fn check_range(offset: u64, length: u64, size: u64) -> Result<u64, DiskError> {
    let end = offset.checked_add(length).filter(|end| *end <= size);
    end.ok_or(DiskError::OutOfRange { offset, length, size })
}

fn lock(dir: &Path) -> Result<File, DiskError> {
    let path = dir.join("lock");
    let file = File::options().write(true).create(true).truncate(false).open(&path).map_err(DiskError::file("open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(Errno::WOULDBLOCK) => Err(DiskError::InUse { path: dir.to_owned() }),
        Err(error) => Err(DiskError::file("lock", &path)(error.into())),
    }
}
