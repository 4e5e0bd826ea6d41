//! Licences: who may run how many proxies, from when until when.

use std::fmt;

use jiff::Timestamp;

use crate::{Document, DocumentError, PublicKey, SecretKey};

const KIND: &str = "license";
/// The product our licences are for.
pub const PRODUCT: &str = "backhaul-proxy";
/// A clock may be behind the highest time seen by this, milliseconds: clocks are corrected.
const TOLERANCE: i64 = 24 * 3_600_000;
/// A licence that ends within this is said to end soon, milliseconds.
const SOON: i64 = 30 * 24 * 3_600_000;

/// A licence whose signature was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct License {
    /// Its id, a UUID.
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
    /// Id of the only proxy it is for, if its issuer bound it.
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
    pub fn issue(&self, key: &SecretKey) -> String {
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
        document.sign(key)
    }

    /// Reads a signed text.
    ///
    /// # Errors
    /// It is no licence, was changed, or is signed by nobody trusted here.
    pub fn read(text: &str, issuers: &[PublicKey]) -> Result<Self, DocumentError> {
        let document = Document::open(KIND, text, issuers)?;
        let proxies: u32 = document.read_as("Proxies")?;
        if proxies == 0 {
            return Err(DocumentError::Damaged { kind: KIND, what: "it covers no proxy".into() });
        }
        Ok(Self {
            id: document.read_as::<uuid::Uuid>("Id")?.to_string(),
            product: document.need("Product")?.to_owned(),
            holder: document.need("Holder")?.to_owned(),
            proxies,
            issued_at: document.read_as("Issued")?,
            not_before: document.read_as("Not-Before")?,
            expires_at: document.get("Expires").map(|_| document.read_as("Expires")).transpose()?,
            bound_to: document.get("Bound-To").map(str::to_owned),
        })
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

    #[test]
    fn a_licence_reads_back() {
        let key = SecretKey::generate().unwrap();
        for license in [license(), License { expires_at: None, bound_to: Some("p".into()), ..license() }] {
            assert_eq!(License::read(&license.issue(&key), &[key.public()]).unwrap(), license);
        }
        let none = License { proxies: 0, ..license() }.issue(&key);
        assert!(License::read(&none, &[key.public()]).unwrap_err().to_string().contains("covers no proxy"));
    }

    #[test]
    fn each_reason_not_to_count_has_its_own_sentence() {
        let now = day("2026-06-01");
        let said = |license: License, now, seen| license.standing(now, seen, "me").unwrap_err().to_string();
        let mut sentences = vec![
            said(License { product: "x".into(), ..license() }, now, now),
            said(License { bound_to: Some("you".into()), ..license() }, now, now),
            said(license(), day("2026-01-15"), day("2026-01-15")),
            said(license(), day("2027-02-01"), now),
            said(license(), now, day("2026-06-03")),
        ];
        // Set back to before it was issued: the licence itself knows better.
        assert!(said(license(), day("2025-06-01"), day("2025-06-01")).contains("clock"));
        sentences.dedup();
        assert_eq!(sentences.len(), 5, "{sentences:#?}");
    }

    #[test]
    fn the_end_is_told_thirty_days_before() {
        let standing = |now| license().standing(now, now, "me").unwrap();
        assert_eq!(standing(day("2026-06-01")).warning(), None);
        assert!(standing(day("2027-01-10")).warning().unwrap().contains("2027-02-01"));
        license().standing(day("2026-06-01"), day("2026-06-02"), "me").unwrap();
    }
}
