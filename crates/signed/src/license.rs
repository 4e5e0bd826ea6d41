//! Licences: who may run how many proxies, from when until when.

use std::fmt;

use jiff::Timestamp;
use uuid::Uuid;

use crate::{Document, DocumentError, PublicKey, SecretKey};

const KIND: &str = "license";
const FIELDS: [&str; 8] = ["Id", "Product", "Holder", "Proxies", "Issued", "Not-Before", "Expires", "Bound-To"];
/// The product our licences are for.
pub const PRODUCT: &str = "backhaul-proxy";
/// A clock may be behind the highest time seen by this, milliseconds: clocks are corrected.
const TOLERANCE: i64 = 24 * 3_600_000;
/// A licence that ends within this is said to end soon, milliseconds.
const SOON: i64 = 30 * 24 * 3_600_000;

/// A licence whose signature was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct License {
    /// Its id, a UUID in lower case.
    pub id: String,
    /// What it is for.
    pub product: String,
    /// Whom it was issued to.
    pub holder: String,
    /// How many proxies it covers.
    pub proxies: u32,
    /// When it was issued.
    pub issued_at: Timestamp,
    /// From when on it counts.
    pub not_before: Timestamp,
    /// Until when; none: for ever.
    pub expires_at: Option<Timestamp>,
    /// Id of the only proxy it is for, a UUID in lower case, if its issuer bound it.
    pub bound_to: Option<String>,
}

/// Why a licence with a good signature does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LicenseFault {
    /// It is for something else.
    #[error("the licence is for {0:?}, not for a backup proxy")]
    OtherProduct(String),
    /// Its time has not come.
    #[error("the licence is not valid before {}", Day(*.0))]
    NotYet(Timestamp),
    /// Its time is over.
    #[error("the licence expired on {}", Day(*.0))]
    Expired(Timestamp),
    /// Its issuer bound it to another proxy.
    #[error("the licence was issued for another proxy ({0})")]
    OtherProxy(String),
    /// The clock was set back.
    #[error("the clock of this proxy was set back: it says {}, but it has been {} already; set it right", Day(*now), Day(*seen))]
    ClockSetBack {
        /// What it says.
        now: Timestamp,
        /// The highest time known.
        seen: Timestamp,
    },
}

/// A day, as messages tell it.
struct Day(Timestamp);

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.strftime("%Y-%m-%d"))
    }
}

/// How a licence that counts stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// When it ends, if that is within 30 days.
    pub ends_soon: Option<Timestamp>,
}

impl Standing {
    /// What to know about it, in a sentence.
    pub fn warning(&self) -> Option<String> {
        self.ends_soon.map(|ends| format!("the licence expires on {}, within 30 days", Day(ends)))
    }
}

impl License {
    /// The signed text.
    ///
    /// # Errors
    /// What it says could not be read back, or can never count.
    pub fn issue(&self, key: &SecretKey) -> Result<String, DocumentError> {
        let mut document = Document::new(KIND)
            .with("Id", &self.id)
            .with("Product", &self.product)
            .with("Holder", &self.holder)
            .with("Proxies", self.proxies.to_string())
            .with("Issued", self.issued_at.to_string())
            .with("Not-Before", self.not_before.to_string());
        if let Some(expires) = self.expires_at {
            document = document.with("Expires", expires.to_string());
        }
        if let Some(proxy) = &self.bound_to {
            document = document.with("Bound-To", proxy);
        }
        let text = document.sign(key)?;
        // Whoever issues it is told what is wrong with it, not whoever pays for it.
        Self::understand(&document).map_err(|error| match error {
            DocumentError::Damaged { kind, what } => DocumentError::Unfit { kind, what },
            other => other,
        })?;
        Ok(text)
    }

    /// Reads a signed text.
    ///
    /// # Errors
    /// It is no licence, was changed, or is signed by nobody trusted here.
    pub fn read(text: &str, issuers: &[PublicKey]) -> Result<Self, DocumentError> {
        Self::understand(&Document::open(KIND, text, issuers)?.only(&FIELDS)?)
    }

    fn understand(document: &Document) -> Result<Self, DocumentError> {
        let license = Self {
            id: document.read_as::<Uuid>("Id")?.to_string(),
            product: document.need("Product")?.to_owned(),
            holder: document.need("Holder")?.to_owned(),
            proxies: document.read_as("Proxies")?,
            issued_at: document.read_as("Issued")?,
            not_before: document.read_as("Not-Before")?,
            expires_at: document.get("Expires").map(|_| document.read_as("Expires")).transpose()?,
            // However its issuer wrote it, it is compared with ids in lower case.
            bound_to: document
                .get("Bound-To")
                .map(|_| document.read_as::<Uuid>("Bound-To"))
                .transpose()?
                .map(|id| id.to_string()),
        };
        if license.proxies == 0 {
            return Err(document.damaged("it covers no proxy"));
        }
        if license.bound_to.is_some() && license.proxies > 1 {
            return Err(document.damaged(format!("it covers {} proxies, but is bound to one", license.proxies)));
        }
        if license.expires_at.is_some_and(|expires| expires <= license.not_before) {
            return Err(document.damaged("it expires before it is valid"));
        }
        Ok(license)
    }

    /// Whether it counts for a proxy now. `seen`: the highest time this proxy has ever known.
    ///
    /// # Errors
    /// Why it does not count.
    pub fn standing(&self, now: Timestamp, seen: Timestamp, proxy: &str) -> Result<Standing, LicenseFault> {
        let (at, known) = (now.as_millisecond(), seen.max(self.issued_at));
        if self.product != PRODUCT {
            return Err(LicenseFault::OtherProduct(self.product.clone()));
        }
        if let Some(other) = self.bound_to.as_ref().filter(|other| *other != proxy) {
            return Err(LicenseFault::OtherProxy(other.clone()));
        }
        if at.saturating_add(TOLERANCE) < known.as_millisecond() {
            return Err(LicenseFault::ClockSetBack { now, seen: known });
        }
        if now < self.not_before {
            return Err(LicenseFault::NotYet(self.not_before));
        }
        match self.expires_at {
            Some(expires) if now >= expires => Err(LicenseFault::Expired(expires)),
            Some(expires) if expires.as_millisecond() - at <= SOON => Ok(Standing { ends_soon: Some(expires) }),
            _ => Ok(Standing { ends_soon: None }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(text: &str) -> Timestamp {
        format!("{text}T00:00:00Z").parse().unwrap()
    }

    fn license() -> License {
        License {
            id: "8a4f3c0e-64f6-4c1c-9d0c-7f4f5d1c0001".into(),
            product: PRODUCT.into(),
            holder: "Né & Söhne \"quoted\" 🦀".into(),
            proxies: 2,
            issued_at: day("2026-01-01"),
            not_before: day("2026-02-01"),
            expires_at: Some(day("2027-02-01")),
            bound_to: None,
        }
    }

    const ME: &str = "8a4f3c0e-64f6-4c1c-9d0c-7f4f5d1c00aa";
    const YOU: &str = "8a4f3c0e-64f6-4c1c-9d0c-7f4f5d1c00bb";

    fn bound(to: &str) -> License {
        License { bound_to: Some(to.into()), proxies: 1, ..license() }
    }

    #[test]
    fn a_licence_reads_back() {
        let key = SecretKey::generate().unwrap();
        for license in [license(), License { expires_at: None, ..bound(ME) }] {
            assert_eq!(License::read(&license.issue(&key).unwrap(), &[key.public()]).unwrap(), license);
        }
        let shouted = bound(&ME.to_uppercase()).issue(&key).unwrap();
        assert_eq!(License::read(&shouted, &[key.public()]).unwrap(), bound(ME));
    }

    #[test]
    fn what_can_never_count_is_not_issued() {
        let key = SecretKey::generate().unwrap();
        let refused = |license: License| license.issue(&key).unwrap_err().to_string();
        assert!(refused(License { proxies: 0, ..license() }).contains("covers no proxy"));
        assert!(refused(License { proxies: 2, ..bound(ME) }).contains("bound to one"));
        assert!(refused(License { expires_at: Some(day("2026-02-01")), ..license() }).contains("expires before"));
        assert!(refused(bound("paris")).contains("Bound-To"));
        assert!(refused(License { id: "1".into(), ..license() }).contains("Id"));
        assert!(refused(License { holder: " \n".into(), ..license() }).contains("Holder is empty"));
        assert!(refused(License { holder: "a\nProxies: 99".into(), ..license() }).contains("line break"));
    }

    #[test]
    fn a_trusted_key_does_not_make_an_unknown_or_missing_line_good() {
        let key = SecretKey::generate().unwrap();
        let read = |text: String| License::read(&text, &[key.public()]).unwrap_err().to_string();
        let document = Document::open(KIND, &license().issue(&key).unwrap(), &[key.public()]).unwrap();
        assert!(read(document.with("Only-On-Sundays", "yes").sign(&key).unwrap()).contains("Only-On-Sundays"));
        assert!(read(Document::new(KIND).with("Holder", "x").sign(&key).unwrap()).contains("no line Id"));
    }

    #[test]
    fn each_reason_not_to_count_has_its_own_sentence() {
        let now = day("2026-06-01");
        let fault = |license: License, now, seen| license.standing(now, seen, ME).unwrap_err();
        let cases = [
            (fault(License { product: "x".into(), ..license() }, now, now), LicenseFault::OtherProduct("x".into())),
            (fault(bound(YOU), now, now), LicenseFault::OtherProxy(YOU.into())),
            (fault(license(), day("2026-01-15"), day("2026-01-15")), LicenseFault::NotYet(day("2026-02-01"))),
            (fault(license(), day("2027-02-01"), now), LicenseFault::Expired(day("2027-02-01"))),
            (fault(license(), now, day("2026-06-03")), LicenseFault::ClockSetBack { now, seen: day("2026-06-03") }),
        ];
        let mut sentences: Vec<String> = Vec::new();
        for (found, expected) in cases {
            assert_eq!(found, expected);
            sentences.push(found.to_string());
        }
        let key = SecretKey::generate().unwrap();
        let (text, stranger) = (license().issue(&key).unwrap(), SecretKey::generate().unwrap());
        sentences.push(License::read(&text, &[stranger.public()]).unwrap_err().to_string());
        sentences.push(License::read(&text.replace("Proxies: 2", "Proxies: 9"), &[key.public()]).unwrap_err().to_string());
        sentences.sort();
        sentences.dedup();
        assert_eq!(sentences.len(), 7, "{sentences:#?}");
    }

    #[test]
    fn a_licence_knows_that_it_cannot_be_earlier_than_its_issue() {
        let early = day("2025-06-01");
        let fault = license().standing(early, early, ME).unwrap_err();
        assert_eq!(fault, LicenseFault::ClockSetBack { now: early, seen: day("2026-01-01") });
    }

    #[test]
    fn limits_are_exact() {
        let (seen, ms) = (day("2026-06-02"), jiff::SignedDuration::from_millis(1));
        let (begins, ends) = (day("2026-02-01"), day("2027-02-01"));
        let stands = |now, seen| license().standing(now, seen, ME).is_ok();
        assert!(stands(day("2026-06-01"), seen) && !stands(day("2026-06-01") - ms, seen));
        assert!(stands(begins, begins) && !stands(begins - ms, begins));
        assert!(stands(ends - ms, ends) && !stands(ends, ends));
        let soon = ends - jiff::SignedDuration::from_hours(30 * 24);
        assert_eq!(license().standing(soon, soon, ME).unwrap().ends_soon, Some(ends));
        assert_eq!(license().standing(soon - ms, soon, ME).unwrap().ends_soon, None);
    }

    #[test]
    fn the_ends_of_time_are_no_trouble() {
        let (first, last) = (Timestamp::MIN, Timestamp::MAX);
        let eternal = License { issued_at: first, not_before: first, expires_at: Some(last), ..license() };
        assert_eq!(eternal.standing(first, first, ME).unwrap().ends_soon, None);
        eternal.standing(last, last, ME).unwrap_err();
        eternal.standing(first, last, ME).unwrap_err();
        let key = SecretKey::generate().unwrap();
        assert_eq!(License::read(&eternal.issue(&key).unwrap(), &[key.public()]).unwrap(), eternal);
    }

    #[test]
    fn the_end_is_told_thirty_days_before() {
        let standing = |now| license().standing(now, now, ME).unwrap();
        assert_eq!(standing(day("2026-06-01")).warning(), None);
        assert!(standing(day("2027-01-10")).warning().unwrap().contains("2027-02-01"));
    }
}
