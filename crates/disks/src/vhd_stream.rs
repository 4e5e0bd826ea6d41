//! A disk as a VHD stream, as `export_raw_vdi` sends it and `import_raw_vdi` takes it (xapi-streams.md §2.5).
//!
//! A pool's streams are looser than the files of a repository: blocks stand in any order, there may be room between
//! header and table, the last block may be short. [`Shape`] makes such streams, so that clients meet them.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::AsyncRead;
use tokio::task::spawn_blocking;
use uuid::Uuid;
use vhd::{BLOCK_SIZE, BlockTable, DiskType, DynamicHeader, FULL_BITMAP, Footer, ParentLink, SECTOR, STORED_BLOCK};

use crate::layer::{BlockRead, View};
use crate::stream::{ByteStream, store, unwrap_join};
use crate::{BLOCK, Bitmap, DiskError, Image};

/// How a stream departs from the plainest form.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Shape {
    /// Blocks stand in descending order.
    pub unordered: bool,
    /// Empty sectors between header and block table.
    pub gap_sectors: u16,
    /// The last block of the disk ends with the disk, if it also stands last.
    pub short_last_block: bool,
}

/// A VHD on its way out.
#[derive(Debug)]
pub struct VhdExport {
    /// Exact number of bytes of the stream.
    pub length: u64,
    /// Blocks of 2 MiB in it.
    pub blocks: u32,
    /// The bytes.
    pub stream: ByteStream,
}

/// What an import found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Imported {
    /// Size of the disk in the stream, bytes.
    pub virtual_size: u64,
    /// Whether it was a differencing image, laid over what the disk held.
    pub differencing: bool,
    /// Blocks of 2 MiB written.
    pub blocks: u32,
}

/// The content of `view` as a VHD: all blocks that are not zero, or with a `base` the blocks that differ from it, as a
/// differencing image. `id` becomes the unique id of the image, and that of the base its parent's.
///
/// # Errors
/// Whatever reading says before the first byte is sent; later failures come through the stream.
pub async fn export_vhd(view: &View, id: Uuid, base: Option<(&View, Uuid)>, shape: Shape) -> Result<VhdExport, DiskError> {
    let parent = base.map(|(_, id)| ParentLink { unique_id: id, name: format!("{id}.vhd") });
    let (view, base) = (view.clone(), base.map(|(base, _)| base.clone()));
    let (view, blocks) = unwrap_join(spawn_blocking(move || wanted(&view, base.as_ref()).map(|blocks| (view, blocks))).await)?;
    let plan =
        Plan::new(view.size(), id, parent, blocks, shape).map_err(|error| DiskError::Vhd { message: error.to_string() })?;
    let (length, blocks) = (plan.length, plan.blocks.len() as u32);
    let stream = ByteStream::produced_by(move |sink| {
        if sink.send(plan.head).is_err() {
            return Ok(());
        }
        for (index, length) in plan.blocks {
            let mut data = vec![0; length];
            read_padded(&view, vhd::block_offset(index), &mut data)?;
            if sink.send(Bytes::from_static(&FULL_BITMAP)).and_then(|()| sink.send(data.into())).is_err() {
                return Ok(());
            }
        }
        let _ = sink.send(plan.footer);
        Ok(())
    });
    Ok(VhdExport { length, blocks, stream })
}

/// Writes a VHD stream into a disk: a dynamic one as content of a fresh disk, a differencing one over what is there.
///
/// # Errors
/// [`DiskError::Vhd`] for a stream that is none, is cut, or is of a larger disk; [`DiskError::File`].
pub async fn import_vhd(image: &Arc<Image>, source: impl AsyncRead + Unpin) -> Result<Imported, DiskError> {
    let broken = |error: vhd::stream::ReadError| DiskError::Vhd { message: with_causes(&error) };
    let mut reader = vhd::stream::Reader::open(source).await.map_err(broken)?;
    let virtual_size = reader.virtual_size();
    if virtual_size > image.size() {
        let message = format!("its disk of {virtual_size} bytes does not fit into one of {}", image.size());
        return Err(DiskError::Vhd { message });
    }
    let mut blocks = 0;
    while let Some((index, data)) = reader.next_block().await.map_err(broken)? {
        let inside = vhd::block_length(index, virtual_size);
        store(image, vhd::block_offset(index), data.slice(..inside)).await?;
        blocks += 1;
    }
    Ok(Imported { virtual_size, differencing: reader.is_differencing(), blocks })
}

fn with_causes(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |error| error.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Everything of a stream but the data.
struct Plan {
    head: Bytes,
    /// Index and bytes of data, in the order of the stream.
    blocks: Vec<(u32, usize)>,
    footer: Bytes,
    length: u64,
}

impl Plan {
    fn new(
        size: u64,
        id: Uuid,
        parent: Option<ParentLink>,
        mut blocks: Vec<u32>,
        shape: Shape,
    ) -> Result<Self, vhd::FormatError> {
        let disk_type = if parent.is_some() { DiskType::Differencing } else { DiskType::Dynamic };
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() as u32);
        let footer = Footer::new(size, id, disk_type, seconds);
        let mut header = DynamicHeader::for_disk(&footer, parent)?;
        header.table_offset += u64::from(shape.gap_sectors) * SECTOR as u64;
        if shape.unordered {
            blocks.reverse();
        }
        let mut table = BlockTable::new(header.max_table_entries)?;
        let mut at = header.table_offset + table.to_bytes().len() as u64;
        let (mut placed, last) = (Vec::with_capacity(blocks.len()), blocks.last().copied());
        for index in blocks {
            let sector = u32::try_from(at / SECTOR as u64).map_err(|_| vhd::FormatError::FileTooLong { blocks: index.into() })?;
            table.set(index, sector)?;
            let inside = vhd::block_length(index, size);
            let length = if shape.short_last_block && last == Some(index) { inside } else { BLOCK_SIZE };
            placed.push((index, length));
            at += (STORED_BLOCK - BLOCK_SIZE + length) as u64;
        }
        let footer = Bytes::copy_from_slice(&footer.to_bytes());
        let mut head = BytesMut::from(&footer[..]);
        head.put_slice(&header.to_bytes());
        head.put_bytes(0, usize::from(shape.gap_sectors) * SECTOR);
        head.put_slice(&table.to_bytes());
        Ok(Self { head: head.freeze(), blocks: placed, length: at + footer.len() as u64, footer })
    }
}

/// The blocks of 2 MiB that a VHD of `view` must hold, ascending.
fn wanted(view: &View, base: Option<&View>) -> Result<Vec<u32>, DiskError> {
    const PER_BLOCK: u64 = BLOCK_SIZE as u64 / BLOCK;
    let candidates = match base {
        None => view.image.allocated(view.layer)?,
        Some(base) if Arc::ptr_eq(&base.image, &view.image) => view.image.unshared(view.layer, base.layer)?,
        Some(base) => {
            let mut either = Bitmap::for_size(view.size());
            either.union(&view.image.allocated(view.layer)?);
            either.union(&base.image.allocated(base.layer)?);
            either
        }
    };
    let mut blocks: Vec<u64> = candidates.runs().flatten().map(|block| block / PER_BLOCK).collect();
    blocks.dedup();
    let (mut mine, mut theirs) = (vec![0; BLOCK_SIZE], vec![0; BLOCK_SIZE]);
    let mut wanted = Vec::new();
    for block in blocks {
        let offset = block * BLOCK_SIZE as u64;
        read_padded(view, offset, &mut mine)?;
        let differs = match base {
            None => !vhd::is_zero(&mine),
            Some(base) => {
                read_padded(base, offset, &mut theirs)?;
                mine != theirs
            }
        };
        if differs && offset < view.size() {
            wanted.push(block as u32);
        }
    }
    Ok(wanted)
}

/// Reads, taking what lies past the end of the disk for zeros.
fn read_padded(view: &View, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
    let inside = view.size().saturating_sub(offset).min(buffer.len() as u64) as usize;
    let (content, rest) = buffer.split_at_mut(inside);
    rest.fill(0);
    if content.is_empty() { Ok(()) } else { view.read_at(offset, content) }
}
