//! Keys and their text form.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest, Sha256};

const PUBLIC: &str = "backhaul-public-ed25519:";
const SECRET: &str = "backhaul-secret-ed25519:";

/// A key that cannot be read or made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text is no key of that kind.
    #[error("expected a key that begins with {expected}, followed by 32 bytes in base64")]
    NoKey {
        /// What it should begin with.
        expected: &'static str,
    },
    /// It was given the other half of the pair.
    #[error("this is a {found} key where the {wanted} one is needed")]
    OtherHalf {
        /// `public` or `secret`.
        found: &'static str,
        /// `public` or `secret`.
        wanted: &'static str,
    },
    /// The system gave no random numbers.
    #[error("no random numbers to make a key of")]
    Random,
}

fn decode(text: &str, prefix: &'static str, other: &'static str) -> Result<Vec<u8>, KeyError> {
    let text = text.trim();
    let (found, wanted) = if prefix == PUBLIC { ("secret", "public") } else { ("public", "secret") };
    if text.starts_with(other) {
        return Err(KeyError::OtherHalf { found, wanted });
    }
    let no_key = KeyError::NoKey { expected: prefix };
    let encoded = text.strip_prefix(prefix).ok_or(no_key.clone())?;
    BASE64.decode(encoded).map_err(|_| no_key)
}

/// The half of a pair that checks.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Sixteen hexadecimal digits by which messages name it: the first 8 bytes of its SHA-256.
    pub fn id(&self) -> String {
        Sha256::digest(self.0).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(message, signature).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PUBLIC}{}", BASE64.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.id())
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bytes = decode(text, PUBLIC, SECRET)?;
        bytes.try_into().map(Self).map_err(|_| KeyError::NoKey { expected: PUBLIC })
    }
}

/// The half of a pair that signs. A secret.
pub struct SecretKey {
    seed: [u8; 32],
    pair: Ed25519KeyPair,
}

impl SecretKey {
    /// A new pair.
    ///
    /// # Errors
    /// No random numbers are to be had.
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = [0; 32];
        aws_lc_rs::rand::SecureRandom::fill(&SystemRandom::new(), &mut seed).map_err(|_| KeyError::Random)?;
        Self::from_seed(seed)
    }

    fn from_seed(seed: [u8; 32]) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| KeyError::NoKey { expected: SECRET })?;
        Ok(Self { seed, pair })
    }

    /// Its other half.
    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.pair.public_key().as_ref());
        PublicKey(bytes)
    }

    /// The text to keep in a file that only its owner can read.
    pub fn expose(&self) -> String {
        format!("{SECRET}{}", BASE64.encode(self.seed))
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey")
    }
}

impl FromStr for SecretKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bytes = decode(text, SECRET, PUBLIC)?;
        Self::from_seed(bytes.try_into().map_err(|_| KeyError::NoKey { expected: SECRET })?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back_what_they_write_and_are_told_apart() {
        let secret = SecretKey::generate().unwrap();
        let again: SecretKey = secret.expose().parse().unwrap();
        assert_eq!(again.public(), secret.public());
        let public: PublicKey = secret.public().to_string().parse().unwrap();
        assert!(public.verifies(b"text", &secret.sign(b"text")) && !public.verifies(b"next", &secret.sign(b"text")));
        assert_eq!(secret.expose().parse::<PublicKey>(), Err(KeyError::OtherHalf { found: "secret", wanted: "public" }));
        assert!(matches!(public.to_string().parse::<SecretKey>(), Err(KeyError::OtherHalf { .. })));
        for text in ["", "backhaul-public-ed25519:", "backhaul-public-ed25519:AAAA", "ssh-ed25519 AAAA"] {
            assert!(matches!(text.parse::<PublicKey>(), Err(KeyError::NoKey { .. })), "{text}");
        }
        assert_eq!(format!("{secret:?}"), "SecretKey");
        assert_eq!(public.id().len(), 16);
    }

    #[test]
    fn no_error_repeats_a_key() {
        let secret = SecretKey::generate().unwrap().expose();
        let hidden = &secret[SECRET.len()..];
        let spoilt = format!("{secret}x");
        for error in [secret.parse::<PublicKey>().unwrap_err(), spoilt.parse::<SecretKey>().unwrap_err()] {
            assert!(!format!("{error} {error:?}").contains(hidden), "{error}");
        }
    }

    /// RFC 8032, section 7.1, test 1: the pair is the one everybody else makes of this seed.
    #[test]
    fn the_pair_and_its_signature_are_those_of_the_standard() {
        let bytes = |hex: &str| -> Vec<u8> {
            hex.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
        };
        let seed = bytes("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60");
        let key: SecretKey = format!("{SECRET}{}", BASE64.encode(seed)).parse().unwrap();
        assert_eq!(key.public().0.to_vec(), bytes("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"));
        let signature = "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b";
        assert_eq!(key.sign(b""), bytes(signature));
    }
}
