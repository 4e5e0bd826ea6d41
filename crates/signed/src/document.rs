//! Fields in an armour: a text that a person can read, and mail, and that nobody can change.
//!
//! ```text
//! -----BEGIN BACKHAUL LICENSE-----
//! Holder: Example SARL
//! …
//! Signer: backhaul-public-ed25519:…
//! Signature: …
//! -----END BACKHAUL LICENSE-----
//! ```
//!
//! Signed is everything from the first line to the signer's, its line ends as LF. Text around the armour does not count.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::{PublicKey, SecretKey};

/// The longest document that is read, bytes.
const LONGEST: usize = 64 << 10;

/// A text that is no good document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// There is none in the text.
    #[error("this is no {kind}: no line says -----BEGIN BACKHAUL {}-----", kind.to_uppercase())]
    NotThere {
        /// What was looked for.
        kind: &'static str,
    },
    /// Its end is missing.
    #[error("the {kind} is cut off: its last line is missing")]
    Truncated {
        /// What it is.
        kind: &'static str,
    },
    /// It is far longer than one is.
    #[error("this is no {kind}: it is longer than {LONGEST} bytes")]
    TooLong {
        /// What was looked for.
        kind: &'static str,
    },
    /// A line is no field, stands twice, or is missing.
    #[error("the {kind} is damaged: {what}")]
    Damaged {
        /// What it is.
        kind: &'static str,
        /// What is wrong.
        what: String,
    },
    /// Somebody signed it who is not trusted here.
    #[error("the {kind} is signed by another issuer ({found}) than the ones trusted here ({trusted})")]
    OtherSigner {
        /// What it is.
        kind: &'static str,
        /// Id of its signer's key.
        found: String,
        /// Ids of the trusted keys.
        trusted: String,
    },
    /// The text is not the one that was signed.
    #[error("the signature of the {kind} is broken: its text was changed after it was signed")]
    Broken {
        /// What it is.
        kind: &'static str,
    },
}

/// Fields, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    kind: &'static str,
    fields: Vec<(String, String)>,
}

impl Document {
    /// An empty one; `kind` is a word in lower case, such as `license`.
    pub fn new(kind: &'static str) -> Self {
        Self { kind, fields: Vec::new() }
    }

    /// Adds a field. Control characters, which would end its line, become spaces.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl AsRef<str>) -> Self {
        let value: String = value.as_ref().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        self.fields.push((name.to_owned(), value.trim().to_owned()));
        self
    }

    /// A field's value.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// A field that must be there.
    ///
    /// # Errors
    /// It is not.
    pub fn need(&self, name: &str) -> Result<&str, DocumentError> {
        self.get(name).ok_or_else(|| self.damaged(format!("it has no line {name}")))
    }

    /// A field that must be there and be understood.
    ///
    /// # Errors
    /// It is not.
    pub fn read_as<T: std::str::FromStr>(&self, name: &str) -> Result<T, DocumentError> {
        let text = self.need(name)?;
        text.parse().map_err(|_| self.damaged(format!("{name}: {text:?} is not understood")))
    }

    fn damaged(&self, what: String) -> DocumentError {
        DocumentError::Damaged { kind: self.kind, what }
    }

    fn body(&self, signer: &PublicKey) -> String {
        let mut body = format!("{}\n", begin(self.kind));
        for (name, value) in &self.fields {
            body.push_str(&format!("{name}: {value}\n"));
        }
        body.push_str(&format!("Signer: {signer}\n"));
        body
    }

    /// The signed text.
    pub fn sign(&self, key: &SecretKey) -> String {
        let body = self.body(&key.public());
        let signature = BASE64.encode(key.sign(body.as_bytes()));
        format!("{body}Signature: {signature}\n{}\n", end(self.kind))
    }

    /// Reads a signed text, and only one that a trusted key has signed as it stands.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub fn open(kind: &'static str, text: &str, trusted: &[PublicKey]) -> Result<Self, DocumentError> {
        if text.len() > LONGEST {
            return Err(DocumentError::TooLong { kind });
        }
        let damaged = |what: String| DocumentError::Damaged { kind, what };
        let mut lines = text.lines().map(|line| line.strip_suffix('\r').unwrap_or(line));
        if !lines.any(|line| line == begin(kind)) {
            return Err(DocumentError::NotThere { kind });
        }
        let mut document = Self::new(kind);
        let (mut signer, mut signature, mut ended) = (None, None, false);
        for line in lines {
            if line == end(kind) {
                ended = true;
                break;
            }
            let (name, value) = line.split_once(": ").ok_or_else(|| damaged(format!("{line:?} is no field")))?;
            match name {
                _ if signature.is_some() => return Err(damaged("something stands behind its signature".into())),
                "Signature" => signature = Some(BASE64.decode(value).map_err(|_| damaged("its signature is no base64".into()))?),
                _ if signer.is_some() => return Err(damaged("something stands behind its signer".into())),
                "Signer" => {
                    signer = Some(value.parse::<PublicKey>().map_err(|error| damaged(format!("its signer is no key: {error}")))?);
                }
                _ if document.get(name).is_some() => return Err(damaged(format!("{name} stands twice"))),
                _ => document.fields.push((name.to_owned(), value.to_owned())),
            }
        }
        if !ended {
            return Err(DocumentError::Truncated { kind });
        }
        let (Some(signer), Some(signature)) = (signer, signature) else {
            return Err(damaged("it is not signed".into()));
        };
        if !trusted.contains(&signer) {
            let ids: Vec<String> = trusted.iter().map(PublicKey::id).collect();
            let trusted = if ids.is_empty() { "none".to_owned() } else { ids.join(", ") };
            return Err(DocumentError::OtherSigner { kind, found: signer.id(), trusted });
        }
        if !signer.verifies(document.body(&signer).as_bytes(), &signature) {
            return Err(DocumentError::Broken { kind });
        }
        Ok(document)
    }
}

fn begin(kind: &str) -> String {
    format!("-----BEGIN BACKHAUL {}-----", kind.to_uppercase())
}

fn end(kind: &str) -> String {
    format!("-----END BACKHAUL {}-----", kind.to_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed() -> (SecretKey, Document, String) {
        let key = SecretKey::generate().unwrap();
        let document = Document::new("license").with("Holder", "Né \"quoted\" 🦀 \u{202e}rtl: x\nSigner: y").with("Count", "3");
        let text = document.sign(&key);
        (key, document, text)
    }

    #[test]
    fn what_was_signed_reads_back_also_out_of_a_mail() {
        let (key, document, text) = signed();
        let mailed = format!("Hello,\r\nhere it is:\r\n{}\r\nRegards", text.replace('\n', "\r\n"));
        for text in [&text, &mailed] {
            assert_eq!(Document::open("license", text, &[key.public()]).unwrap(), document);
        }
        assert_eq!(document.get("Signer"), None);
    }

    #[test]
    fn each_fault_has_its_own_sentence() {
        let (key, _, text) = signed();
        let trusted = [key.public()];
        let open = |text: &str| Document::open("license", text, &trusted).unwrap_err();
        assert!(matches!(open("hello"), DocumentError::NotThere { .. }));
        assert!(matches!(open(&text.replace("LICENSE", "IMAGE")), DocumentError::NotThere { .. }));
        assert!(matches!(open(text.split("-----END").next().unwrap()), DocumentError::Truncated { .. }));
        assert!(matches!(open(&text.replace("Count: 3", "Count: 4")), DocumentError::Broken { .. }));
        assert!(matches!(open(&text.replace("Count: 3\n", "Count: 3\nCount: 3\n")), DocumentError::Damaged { .. }));
        assert!(matches!(open(&text.replace("Count: 3\n", "")), DocumentError::Broken { .. }));
        assert!(matches!(open(&"x".repeat(LONGEST + 1)), DocumentError::TooLong { .. }));
        let stranger = SecretKey::generate().unwrap();
        let other = Document::open("license", &text, &[stranger.public()]).unwrap_err();
        assert!(matches!(other, DocumentError::OtherSigner { .. }), "{other}");
        assert!(Document::open("license", &text, &[]).unwrap_err().to_string().contains("none"));
    }

    proptest::proptest! {
        #[test]
        fn no_changed_character_goes_unseen(at in 0usize..400, by in 1u8..=127) {
            let (key, document, text) = signed();
            let mut bytes = text.into_bytes();
            let at = at % bytes.len();
            bytes[at] ^= by;
            if let Ok(changed) = String::from_utf8(bytes)
                && let Ok(opened) = Document::open("license", &changed, &[key.public()])
            {
                // Only what does not count may differ: the line end behind the armour.
                proptest::prop_assert_eq!(opened, document);
            }
        }
    }
}
