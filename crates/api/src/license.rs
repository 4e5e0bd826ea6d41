//! Licences as the API shows them. The signed text itself is `crates/signed`'s.

use serde::{Deserialize, Serialize};

/// A licence that a daemon holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct License {
    /// Its id.
    pub id: String,
    /// Whom it was issued to.
    pub holder: String,
    /// How many proxies it covers.
    pub proxies: u32,
    /// From when on, milliseconds since the Unix epoch.
    pub not_before: i64,
    /// Until when; none: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<i64>,
    /// Proxies it is bound to.
    #[serde(default)]
    pub bound: Vec<Binding>,
    /// Why it is no good, in a sentence; none: it is good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// What to know about it: it expires soon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

impl License {
    /// How many further proxies it can be bound to.
    pub fn free(&self) -> u32 {
        if self.fault.is_some() { 0 } else { self.proxies.saturating_sub(self.bound.len() as u32) }
    }

    /// The names of the proxies it is bound to, in one line.
    pub fn serves(&self) -> String {
        self.bound.iter().map(|bound| bound.name.as_str()).collect::<Vec<_>>().join(", ")
    }
}

/// A proxy that a licence is bound to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// The proxy's id.
    pub proxy: String,
    /// Its name at that time.
    pub name: String,
}

/// How a proxy stands with licences.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Licensing {
    /// Whether an issuer's key is configured; if not, nothing is asked for anywhere.
    pub required: bool,
    /// The licence in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// Why jobs do not run, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// What to know: it expires within 30 days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

impl Licensing {
    /// In a word, for a screen.
    pub fn word(&self) -> &'static str {
        match (self.required, &self.fault, &self.warning) {
            (false, ..) => "not needed",
            (true, Some(_), _) => "missing",
            (true, None, Some(_)) => "expires soon",
            (true, None, None) => "good",
        }
    }
}

/// What a deployment can be given.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LicenseOffer {
    /// Whether a proxy needs one.
    pub required: bool,
    /// All that the deployer holds, the free ones first.
    #[serde(default)]
    pub licenses: Vec<License>,
    /// Why none can be bound; none: one can, or none is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
}

/// A licence to take in.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LicenseImportParams {
    /// The signed text.
    pub text: String,
}

impl std::fmt::Debug for LicenseImportParams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LicenseImportParams").finish_non_exhaustive()
    }
}

/// A licence to bind or unbind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LicenseBindParams {
    /// Licence id, or an unambiguous beginning of it.
    pub id: String,
    /// The proxy; none: this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Binding>,
}

/// A licence with its signed text, to be taken to another proxy.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LicenseText {
    /// What it says.
    pub license: License,
    /// The signed text.
    pub text: String,
}

impl std::fmt::Debug for LicenseText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LicenseText").field("license", &self.license).finish_non_exhaustive()
    }
}
