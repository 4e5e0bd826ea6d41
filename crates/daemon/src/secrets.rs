//! Secrets at rest: passwords and remote URLs are sealed with AES-256-GCM under a key file that only the daemon's user
//! can read, so that a copy of the database alone tells nothing.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, RandomizedNonceKey};

use crate::files::write_private;

const KEY_LEN: usize = 32;

/// Why a secret cannot be sealed or read back.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The key file cannot be made or read.
    #[error("cannot {what} the key file {}", path.display())]
    KeyFile {
        /// `make` or `read`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// Others can read the key file.
    #[error("the key file {} can be read by others (mode {mode:o}); expected mode 600", path.display())]
    KeyFileOpen {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The key file has the wrong length.
    #[error("the key file {} does not hold {KEY_LEN} bytes", path.display())]
    KeyFileLength {
        /// The file.
        path: PathBuf,
    },
    /// Sealing failed.
    #[error("cannot encrypt the secret of {place}")]
    Seal {
        /// Table, column and row.
        place: String,
    },
    /// What is stored was sealed with another key, for another place, or is damaged.
    #[error("cannot decrypt the secret of {place}: it was stored with another key file, or is damaged")]
    Open {
        /// Table, column and row.
        place: String,
    },
}

/// The key of this state folder.
pub struct Secrets {
    key: RandomizedNonceKey,
}

impl Secrets {
    /// Reads the key file, or makes it when there is none yet.
    pub fn open(path: &Path) -> Result<Self, SecretError> {
        let bytes = match std::fs::File::open(path) {
            Ok(file) => read_key(path, file)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => make_key(path)?,
            Err(source) => return Err(SecretError::KeyFile { what: "read", path: path.to_owned(), source }),
        };
        let key = RandomizedNonceKey::new(&AES_256_GCM, &bytes).expect("a key of 32 bytes is an AES-256 key");
        Ok(Self { key })
    }

    /// Seals `secret` for one place; it opens nowhere else. The nonce stands first.
    pub fn seal(&self, place: &str, secret: &str) -> Result<Vec<u8>, SecretError> {
        let mut bytes = secret.as_bytes().to_vec();
        let nonce = self
            .key
            .seal_in_place_append_tag(Aad::from(place.as_bytes()), &mut bytes)
            .map_err(|_| SecretError::Seal { place: place.to_owned() })?;
        Ok([nonce.as_ref().as_slice(), &bytes].concat())
    }

    /// Opens what [`Secrets::seal`] made for the same place.
    pub fn open_sealed(&self, place: &str, sealed: &[u8]) -> Result<String, SecretError> {
        let damaged = || SecretError::Open { place: place.to_owned() };
        let (nonce, bytes) = sealed.split_first_chunk::<NONCE_LEN>().ok_or_else(damaged)?;
        let mut bytes = bytes.to_vec();
        let plain = self.key.open_in_place(nonce.into(), Aad::from(place.as_bytes()), &mut bytes).map_err(|_| damaged())?;
        String::from_utf8(plain.to_vec()).map_err(|_| damaged())
    }
}

fn read_key(path: &Path, mut file: std::fs::File) -> Result<[u8; KEY_LEN], SecretError> {
    let reading = |source| SecretError::KeyFile { what: "read", path: path.to_owned(), source };
    let mode = file.metadata().map_err(reading)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(SecretError::KeyFileOpen { path: path.to_owned(), mode });
    }
    let mut read = Vec::with_capacity(KEY_LEN + 1);
    (&mut file).take(KEY_LEN as u64 + 1).read_to_end(&mut read).map_err(reading)?;
    read.try_into().map_err(|_| SecretError::KeyFileLength { path: path.to_owned() })
}

/// The caller holds the lock of the state folder, so nobody else makes one at the same time.
fn make_key(path: &Path) -> Result<[u8; KEY_LEN], SecretError> {
    let making = |source| SecretError::KeyFile { what: "make", path: path.to_owned(), source };
    let mut bytes = [0; KEY_LEN];
    getrandom::fill(&mut bytes).map_err(|error| making(std::io::Error::other(error)))?;
    write_private(path, &bytes).map_err(making)?;
    Ok(bytes)
}

/// The mode of a file that others than its owner can read, write or execute; none for a private or absent one.
pub(crate) fn exposed(path: &Path) -> Option<u32> {
    let mode = std::fs::metadata(path).ok()?.permissions().mode() & 0o777;
    (mode & 0o077 != 0).then_some(mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_opens_with_its_key_at_its_place_only() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("secrets.key");
        let sealed = Secrets::open(&key).unwrap().seal("pools.password:1", "pässword").unwrap();
        assert!(!sealed.windows(4).any(|window| window == b"word"));

        let again = Secrets::open(&key).unwrap();
        assert_eq!(again.open_sealed("pools.password:1", &sealed).unwrap(), "pässword");
        again.open_sealed("pools.password:2", &sealed).unwrap_err();
        again.open_sealed("pools.password:1", &sealed[..5]).unwrap_err();
        let mut bent = sealed.clone();
        *bent.last_mut().unwrap() ^= 1;
        again.open_sealed("pools.password:1", &bent).unwrap_err();
        let other = Secrets::open(&dir.path().join("other.key")).unwrap();
        other.open_sealed("pools.password:1", &sealed).unwrap_err();
    }

    #[test]
    fn a_key_file_open_to_others_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("secrets.key");
        Secrets::open(&key).unwrap();
        assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Secrets::open(&key), Err(SecretError::KeyFileOpen { .. })));
    }
}
