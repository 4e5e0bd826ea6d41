//! Where the content of each VDI lies: which image, and which point of its history.
//!
//! A VDI and its snapshots share one image. The image goes when the last of them does, so either may be destroyed first.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use disks::{DiskError, Image, Layer, View};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::failure::Failure;

/// Place of a VDI's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// The image; also the name of its directory.
    pub image: Uuid,
    /// The snapshot; the live disk when there is none.
    pub snapshot: Option<Uuid>,
}

impl Place {
    /// As the disks know it.
    pub fn layer(&self) -> Layer {
        self.snapshot.map_or(Layer::Live, Layer::Snapshot)
    }
}

#[derive(Default)]
struct Content {
    places: HashMap<String, Place>,
    images: HashMap<Uuid, Arc<Image>>,
}

/// The images of a storage repository.
pub(crate) struct Shelf {
    dir: PathBuf,
    content: Mutex<Content>,
}

impl Shelf {
    /// An empty shelf in that directory.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, content: Mutex::default() }
    }

    /// Opens the images of the places given, by VDI reference.
    pub fn open(dir: PathBuf, places: HashMap<String, Place>) -> Result<Self, DiskError> {
        let mut images = HashMap::new();
        for place in places.values() {
            if let std::collections::hash_map::Entry::Vacant(slot) = images.entry(place.image) {
                slot.insert(Image::open(&dir.join(place.image.to_string()))?);
            }
        }
        Ok(Self { dir, content: Mutex::new(Content { places, images }) })
    }

    /// The places, to be saved.
    pub fn places(&self) -> HashMap<String, Place> {
        self.lock().places.clone()
    }

    /// Directory of an image.
    pub fn image_dir(&self, image: Uuid) -> PathBuf {
        self.dir.join(image.to_string())
    }

    /// A new image of zeros.
    pub fn create(&self, image: Uuid, bytes: u64) -> Result<Arc<Image>, DiskError> {
        Image::create(&self.image_dir(image), bytes)
    }

    /// Takes an image as the live content of a VDI.
    pub fn put(&self, vdi: &str, id: Uuid, image: Arc<Image>) {
        let mut content = self.lock();
        content.images.insert(id, image);
        content.places.insert(vdi.to_owned(), Place { image: id, snapshot: None });
    }

    /// Takes a snapshot of an image as the content of a VDI.
    pub fn put_snapshot(&self, vdi: &str, image: Uuid, snapshot: Uuid) {
        self.lock().places.insert(vdi.to_owned(), Place { image, snapshot: Some(snapshot) });
    }

    /// Where a VDI's content is.
    pub fn find(&self, vdi: &str) -> Result<(Arc<Image>, Place), Failure> {
        let content = self.lock();
        content
            .places
            .get(vdi)
            .and_then(|place| Some((Arc::clone(content.images.get(&place.image)?), *place)))
            .ok_or_else(|| Failure::new("VDI_MISSING", ["", vdi]))
    }

    /// A VDI's content to be read.
    pub fn view(&self, vdi: &str) -> Result<View, Failure> {
        let (image, place) = self.find(vdi)?;
        Ok(View::new(image, place.layer())?)
    }

    /// File of a VDI that is live; snapshots have none of their own.
    pub fn path(&self, vdi: &str) -> Option<PathBuf> {
        let (image, place) = self.find(vdi).ok()?;
        place.snapshot.is_none().then(|| Path::to_path_buf(image.path()))
    }

    /// Forgets a VDI and frees what nobody needs any more. Blocks.
    pub fn remove(&self, vdi: &str) -> Result<(), Failure> {
        let (image, place, last) = {
            let mut content = self.lock();
            let Some(place) = content.places.remove(vdi) else { return Ok(()) };
            let last = !content.places.values().any(|other| other.image == place.image);
            let image = if last { content.images.remove(&place.image) } else { content.images.get(&place.image).cloned() };
            (image, place, last)
        };
        match (image, last, place.snapshot) {
            (Some(image), true, _) => image.remove()?,
            (Some(image), false, Some(snapshot)) => image.delete_snapshot(snapshot)?,
            // A live disk whose snapshots stay: only its file goes, with the last of them.
            _ => {}
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
