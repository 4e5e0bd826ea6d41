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
//! Signed is everything from the first line to the signer's, its line ends as LF. Text around the armour does not count;
//! inside it nothing is forgiven but CRLF for LF, so that there is one text for one signature.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::{PublicKey, SecretKey};

/// The longest text a document is looked for in, bytes.
pub(crate) const LONGEST: usize = 64 << 10;
/// The longest value of a field, characters.
const LONGEST_VALUE: usize = 500;

/// A text that is no good document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// There is none in the text.
    #[error("this is no {}: no line says {}", word(kind), begin(kind))]
    NotThere {
        /// What was looked for.
        kind: &'static str,
    },
    /// There is one, but of another kind.
    #[error("this is no {}: its first line says {found}, not {}", word(kind), begin(kind))]
    OtherKind {
        /// What was looked for.
        kind: &'static str,
        /// The line that begins what is there.
        found: String,
    },
    /// There are several, and one would be left out.
    #[error("the text holds more than one {}; give them one at a time", word(kind))]
    Several {
        /// What was looked for.
        kind: &'static str,
    },
    /// Its end is missing.
    #[error("the {} is cut off: its last line is missing; copy it once more, from -----BEGIN to -----END", word(kind))]
    Truncated {
        /// What it is.
        kind: &'static str,
    },
    /// It is far longer than one is.
    #[error("this is no {}: it is longer than {LONGEST} bytes", word(kind))]
    TooLong {
        /// What was looked for.
        kind: &'static str,
    },
    /// A line is no field, stands twice, is unknown, or is missing.
    #[error("the {} is damaged: {what}", word(kind))]
    Damaged {
        /// What it is.
        kind: &'static str,
        /// What is wrong.
        what: String,
    },
    /// What is to be signed could not be read afterwards.
    #[error("the {} cannot be made: {what}", word(kind))]
    Unfit {
        /// What was to be made.
        kind: &'static str,
        /// What is wrong.
        what: String,
    },
    /// Somebody signed it who is not trusted here.
    #[error("the {} is signed by another key ({found}) than the ones trusted here ({trusted})", word(kind))]
    OtherSigner {
        /// What it is.
        kind: &'static str,
        /// Id of its signer's key.
        found: String,
        /// Ids of the trusted keys.
        trusted: String,
    },
    /// The text is not the one that was signed.
    #[error("the signature of the {} is broken: its text was changed after it was signed", word(kind))]
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

    /// Adds a field, without the spaces around its value. Whether it can stand there is said by [`Document::sign`].
    #[must_use]
    pub fn with(mut self, name: &str, value: impl AsRef<str>) -> Self {
        self.fields.push((name.to_owned(), value.as_ref().trim().to_owned()));
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

    /// Refuses fields that its kind does not have: what is not understood could restrict what is.
    ///
    /// # Errors
    /// There is one.
    pub fn only(self, names: &[&str]) -> Result<Self, DocumentError> {
        match self.fields.iter().find(|(name, _)| !names.contains(&name.as_str())) {
            Some((name, _)) => Err(self.damaged(format!("the line {name} is unknown; perhaps a later version can read it"))),
            None => Ok(self),
        }
    }

    pub(crate) fn damaged(&self, what: impl Into<String>) -> DocumentError {
        DocumentError::Damaged { kind: self.kind, what: what.into() }
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
    ///
    /// # Errors
    /// A field could not be read back: nothing is signed that nobody can use.
    pub fn sign(&self, key: &SecretKey) -> Result<String, DocumentError> {
        for (index, (name, value)) in self.fields.iter().enumerate() {
            let twice = self.fields[..index].iter().any(|(other, _)| other == name);
            if let Some(what) = unfit(name, value, twice) {
                return Err(DocumentError::Unfit { kind: self.kind, what });
            }
        }
        let body = self.body(&key.public());
        let signature = BASE64.encode(key.sign(body.as_bytes()));
        Ok(format!("{body}Signature: {signature}\n{}\n", end(self.kind)))
    }

    /// Reads a signed text, and only one that a trusted key has signed as it stands.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub fn open(kind: &'static str, text: &str, trusted: &[PublicKey]) -> Result<Self, DocumentError> {
        let (document, signer) = Self::open_of_anyone(kind, text)?;
        if !trusted.contains(&signer) {
            let ids: Vec<String> = trusted.iter().map(PublicKey::id).collect();
            let trusted = if ids.is_empty() { "none".to_owned() } else { ids.join(", ") };
            return Err(DocumentError::OtherSigner { kind, found: signer.id(), trusted });
        }
        Ok(document)
    }

    /// Reads a text that its signer has signed as it stands, whoever that is.
    pub(crate) fn open_of_anyone(kind: &'static str, text: &str) -> Result<(Self, PublicKey), DocumentError> {
        let parsed = Parsed::read(kind, text)?;
        // The signature before the signer: a spoilt signer's line is damage, not somebody else's work.
        if !parsed.signer.verifies(parsed.document.body(&parsed.signer).as_bytes(), &parsed.signature) {
            return Err(DocumentError::Broken { kind });
        }
        Ok((parsed.document, parsed.signer))
    }
}

/// A document of which nothing is believed yet.
struct Parsed {
    document: Document,
    signer: PublicKey,
    signature: Vec<u8>,
}

impl Parsed {
    fn read(kind: &'static str, text: &str) -> Result<Self, DocumentError> {
        if text.len() > LONGEST {
            return Err(DocumentError::TooLong { kind });
        }
        // Editors of other systems put a byte order mark in front.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        // `lines` takes CRLF for a line's end as well as LF.
        let mut lines = text.lines();
        if !lines.any(|line| line == begin(kind)) {
            return Err(not_there(kind, text));
        }
        // The end before the fields: of a text that is cut within a line, the cut is to be told, not the half line.
        let inside = lines.clone().position(|line| line == end(kind)).ok_or(DocumentError::Truncated { kind })?;
        let damaged = |what: String| DocumentError::Damaged { kind, what };
        let mut document = Document::new(kind);
        let (mut signer, mut signature) = (None, None);
        for line in lines.by_ref().take(inside) {
            let field = line.split_once(": ").ok_or_else(|| damaged(format!("{:?} is no field", shortened(line))));
            let (name, value) = field?;
            match name {
                _ if signature.is_some() => return Err(damaged("something stands behind its signature".into())),
                "Signature" => signature = Some(BASE64.decode(value).map_err(|_| damaged("its signature is no base64".into()))?),
                _ if signer.is_some() => return Err(damaged("something stands behind its signer".into())),
                "Signer" => signer = Some(signer_of(value).map_err(damaged)?),
                _ => {
                    let twice = document.get(name).is_some();
                    if let Some(what) = unfit(name, value, twice) {
                        return Err(damaged(what));
                    }
                    document.fields.push((name.to_owned(), value.to_owned()));
                }
            }
        }
        if lines.any(|line| line == begin(kind)) {
            return Err(DocumentError::Several { kind });
        }
        let (Some(signer), Some(signature)) = (signer, signature) else {
            return Err(damaged("it is not signed".into()));
        };
        Ok(Self { document, signer, signature })
    }
}

/// The key's one spelling only: its reader forgives spaces, a signed text does not.
fn signer_of(value: &str) -> Result<PublicKey, String> {
    let signer: PublicKey = value.parse().map_err(|error| format!("its signer is no key: {error}"))?;
    if signer.to_string() == value { Ok(signer) } else { Err("there are spaces around its signer".into()) }
}

/// Why a field cannot stand in a document.
fn unfit(name: &str, value: &str, twice: bool) -> Option<String> {
    let name_is_fit =
        !name.is_empty() && name.len() <= 40 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if !name_is_fit || matches!(name, "Signer" | "Signature") {
        return Some(format!("{:?} is no name of a field", shortened(name)));
    }
    // The last two end lines in some programs, and so could hide what follows.
    let ends_a_line = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    let why = if twice {
        "stands twice".to_owned()
    } else if value.is_empty() {
        "is empty".to_owned()
    } else if value.chars().any(ends_a_line) {
        "holds a line break or another control character".to_owned()
    } else if value.trim() != value {
        "has spaces around it".to_owned()
    } else if value.chars().nth(LONGEST_VALUE).is_some() {
        format!("is longer than {LONGEST_VALUE} characters")
    } else {
        return None;
    };
    Some(format!("{name} {why}"))
}

fn not_there(kind: &'static str, text: &str) -> DocumentError {
    let other = text.lines().find(|line| line.starts_with("-----BEGIN BACKHAUL ") && line.ends_with("-----"));
    match other {
        Some(found) => DocumentError::OtherKind { kind, found: shortened(found) },
        None => DocumentError::NotThere { kind },
    }
}

/// As much of a line as a message can bear, without what a terminal would obey.
fn shortened(line: &str) -> String {
    line.chars().take(60).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// What people call it.
fn word(kind: &str) -> &str {
    match kind {
        "license" => "licence",
        "image" => "image manifest",
        "bundle" => "upgrade bundle",
        other => other,
    }
}

pub(crate) fn begin(kind: &str) -> String {
    format!("-----BEGIN BACKHAUL {}-----", kind.to_uppercase())
}

pub(crate) fn end(kind: &str) -> String {
    format!("-----END BACKHAUL {}-----", kind.to_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed() -> (SecretKey, Document, String) {
        let key = SecretKey::generate().unwrap();
        let document = Document::new("license").with("Holder", "Né \"quoted\" 🦀 \u{202b}rtl: x Signer: y").with("Count", "3");
        let text = document.sign(&key).unwrap();
        (key, document, text)
    }

    #[test]
    fn what_was_signed_reads_back_also_out_of_a_mail() {
        let (key, document, text) = signed();
        let mailed = format!("Hello,\r\nhere it is:\r\n{}\r\nRegards", text.replace('\n', "\r\n"));
        let marked = format!("\u{feff}{text}");
        for text in [&text, &mailed, &marked] {
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
        assert!(matches!(open(&text.replace("LICENSE", "IMAGE")), DocumentError::OtherKind { .. }));
        assert!(matches!(open(&format!("{text}{text}")), DocumentError::Several { .. }));
        let whole = text.trim_end();
        for cut in (0..whole.len()).filter(|cut| text.is_char_boundary(*cut)) {
            let first = text.lines().next().unwrap().len();
            match open(&text[..cut]) {
                DocumentError::NotThere { .. } if cut < first => {}
                DocumentError::Truncated { .. } if cut >= first => {}
                other => panic!("cut at {cut}: {other}"),
            }
        }
        assert!(matches!(open(&text.replace("Count: 3", "Count: 4")), DocumentError::Broken { .. }));
        assert!(matches!(open(&text.replace("Count: 3\n", "Count: 3\nCount: 3\n")), DocumentError::Damaged { .. }));
        assert!(matches!(open(&text.replace("Count: 3\n", "Count: 3\nMore: 3\n")), DocumentError::Broken { .. }));
        assert!(matches!(open(&text.replace("Count: 3\n", "Count: 3 \n")), DocumentError::Damaged { .. }));
        assert!(matches!(open(&text.replace("Count: 3\n", "Count: 3\n\n")), DocumentError::Damaged { .. }));
        assert!(matches!(open(&text.replace("Count: 3\n", "")), DocumentError::Broken { .. }));
        assert!(matches!(open(&text.replace("Signature: ", "Signed: ")), DocumentError::Damaged { .. }));
        assert!(matches!(open(&"x".repeat(LONGEST + 1)), DocumentError::TooLong { .. }));
    }

    #[test]
    fn a_stranger_is_named_and_told_from_damage() {
        let (key, _, text) = signed();
        let stranger = SecretKey::generate().unwrap();
        let sentence = Document::open("license", &text, &[stranger.public()]).unwrap_err().to_string();
        assert!(sentence.contains(&key.public().id()) && sentence.contains(&stranger.public().id()), "{sentence}");
        assert!(Document::open("license", &text, &[]).unwrap_err().to_string().contains("none"));
        // Another name put under a foreign text is no signature of that other.
        let usurped = text.replace(&key.public().to_string(), &stranger.public().to_string());
        for trusted in [key.public(), stranger.public()] {
            let error = Document::open("license", &usurped, &[trusted]).unwrap_err();
            assert_eq!(error, DocumentError::Broken { kind: "license" });
        }
    }

    #[test]
    fn a_signature_counts_for_its_kind_only() {
        let (key, _, text) = signed();
        let disguised = text.replace("BACKHAUL LICENSE", "BACKHAUL IMAGE");
        let error = Document::open("image", &disguised, &[key.public()]).unwrap_err();
        assert_eq!(error, DocumentError::Broken { kind: "image" });
    }

    #[test]
    fn nothing_is_signed_that_could_not_be_read_back() {
        let key = SecretKey::generate().unwrap();
        let long = "x".repeat(LONGEST_VALUE + 1);
        let fields = [
            ("Holder", "a\nProxies: 99"),
            ("Holder", "a\rb"),
            ("Holder", "a\u{2028}b"),
            ("Holder", "a\u{1b}[2J"),
            ("Holder", " "),
            ("Holder", &long),
            ("Signer", "x"),
            ("Signature", "x"),
            ("Two words", "x"),
            ("", "x"),
            ("Nom-d\u{e9}", "x"),
        ];
        for (name, value) in fields {
            let error = Document::new("license").with(name, value).sign(&key).unwrap_err();
            assert!(matches!(error, DocumentError::Unfit { .. }), "{name}: {value:?}: {error}");
        }
        let twice = Document::new("license").with("Holder", "a").with("Holder", "b").sign(&key).unwrap_err();
        assert!(twice.to_string().contains("Holder stands twice"), "{twice}");
    }

    #[test]
    fn a_field_the_kind_does_not_have_is_refused() {
        let (_, document, _) = signed();
        let error = document.clone().only(&["Holder"]).unwrap_err();
        assert!(error.to_string().contains("Count"), "{error}");
        document.only(&["Holder", "Count"]).unwrap();
    }

    #[test]
    fn messages_show_no_more_of_a_foreign_text_than_they_can_bear() {
        let (key, _, text) = signed();
        let hostile = text.replace("Count: 3", &format!("\u{1b}[2J{}", "x".repeat(5000)));
        let sentence = Document::open("license", &hostile, &[key.public()]).unwrap_err().to_string();
        assert!(sentence.len() < 200 && !sentence.contains('\u{1b}'), "{sentence}");
    }
}
