//! Points in the history of an image, and reading them.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use uuid::Uuid;

use crate::{DiskError, Image};

/// Which content of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layer {
    /// As it is now.
    Live,
    /// As it was at that snapshot.
    Snapshot(Uuid),
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Live => f.write_str("the live disk"),
            Self::Snapshot(id) => write!(f, "snapshot {id}"),
        }
    }
}

/// Something that can be read like a disk. Blocks.
pub trait BlockRead: Send + Sync {
    /// Size, bytes.
    fn size(&self) -> u64;

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// [`DiskError::OutOfRange`] past the end, and whatever the files say.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError>;

    /// Ranges, in bytes and ascending, outside of which all is zero.
    ///
    /// # Errors
    /// Whatever the files say.
    fn allocated(&self) -> Result<Vec<Range<u64>>, DiskError>;
}

/// A point in the history of an image, readable as a disk.
#[derive(Clone)]
pub struct View {
    pub(crate) image: Arc<Image>,
    pub(crate) layer: Layer,
    size: u64,
}

impl View {
    /// A view of `layer`; its size is fixed now.
    ///
    /// # Errors
    /// [`DiskError::NoSuchSnapshot`], [`DiskError::DataDestroyed`].
    pub fn new(image: Arc<Image>, layer: Layer) -> Result<Self, DiskError> {
        let size = image.layer_size(layer)?;
        Ok(Self { image, layer, size })
    }

    /// The image it looks at.
    pub fn image(&self) -> &Arc<Image> {
        &self.image
    }

    /// Where in its history.
    pub fn layer(&self) -> Layer {
        self.layer
    }
}

impl BlockRead for View {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        self.image.read_layer(self.layer, offset, buffer)
    }

    fn allocated(&self) -> Result<Vec<Range<u64>>, DiskError> {
        Ok(self.image.allocated(self.layer)?.byte_ranges(self.size))
    }
}
