//! Texts that are signed with Ed25519 and checked without asking anybody: licences, and manifests of images.
//!
//! [`SecretKey`] signs, [`PublicKey`] checks; a [`Document`] is fields in an armour that a person can read and mail;
//! [`License`] and [`ImageManifest`] are what some documents say.

mod document;
mod image;
mod key;
mod license;

pub use document::{Document, DocumentError};
pub use image::ImageManifest;
pub use key::{KeyError, PublicKey, SecretKey};
pub use license::{License, LicenseFault, Standing};
