//! What a file system knows of holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

use crate::{BLOCK, Bitmap};

/// The blocks of a file of `size` bytes that may hold anything but zeros.
pub(crate) fn allocated(file: &File, size: u64) -> io::Result<Bitmap> {
    let mut blocks = Bitmap::for_size(size);
    let mut at = 0;
    while at < size {
        // Only positions are exchanged here, and all other I/O is positioned, so the shared file offset is nobody's.
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(file, SeekFrom::Hole(start))?.min(size);
        for block in start / BLOCK..end.div_ceil(BLOCK) {
            blocks.set(block);
        }
        at = end;
    }
    Ok(blocks)
}

/// Makes a range read as zeros, giving its space back where the file system can.
pub(crate) fn punch(file: &File, offset: u64, length: u64) -> io::Result<()> {
    match fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length) {
        Err(Errno::OPNOTSUPP) => {
            let zeros = vec![0; BLOCK as usize];
            let mut done = 0;
            while done < length {
                let step = (length - done).min(BLOCK);
                file.write_all_at(&zeros[..step as usize], offset + done)?;
                done += step;
            }
            Ok(())
        }
        other => Ok(other?),
    }
}

/// Reads exactly, taking what lies past the end of the file for zeros.
pub(crate) fn read_at(file: &File, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        match file.read_at(buffer, offset) {
            Ok(0) => {
                buffer.fill(0);
                return Ok(());
            }
            Ok(read) => {
                offset += read as u64;
                buffer = &mut buffer[read..];
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
