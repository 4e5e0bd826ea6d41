//! Texts that are signed with Ed25519 and checked without asking anybody: licences, upgrade bundles, manifests of images.
//!
//! [`SecretKey`] signs, [`PublicKey`] checks; a [`Document`] is fields in an armour that a person can read and mail;
//! [`License`], [`BundleManifest`] and [`ImageManifest`] are what some documents say. `docs/licences.md` has the formats.

mod bundle;
mod document;
mod image;
mod key;
mod license;
mod sum;

pub use bundle::{Build, BundleError, BundleManifest, Opened, open_bundle, pack_bundle, pack_bundle_at};
pub use document::{Document, DocumentError};
pub use image::{ImageCheck, ImageFault, ImageFormat, ImageManifest, ImageNeeds};
pub use key::{KeyError, PublicKey, SecretKey};
pub use license::{License, LicenseFault, PRODUCT, Standing};
