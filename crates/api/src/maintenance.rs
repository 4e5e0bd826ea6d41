//! Keeping a proxy up: its settings, token and certificate, upgrades, health, and its state as a whole.

use serde::{Deserialize, Serialize};

use crate::ErrorReport;

/// What can be changed of a proxy without deploying it anew. Absent: stays; empty text: goes back to none.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigureParams {
    /// Name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// HTTP proxy for downloads. A secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_proxy: Option<String>,
}

impl std::fmt::Debug for ConfigureParams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConfigureParams").field("name", &self.name).field("site", &self.site).finish_non_exhaustive()
    }
}

/// A new token; the present one stays good for a while, so that nobody is locked out meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenRotateParams {
    /// Seconds during which the former token is still accepted; default a day, at most 30 days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap_seconds: Option<u64>,
}

/// The new token. A secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewToken {
    /// The token.
    pub token: String,
    /// Until when the former one is accepted.
    pub former_until: i64,
}

impl std::fmt::Debug for NewToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewToken").field("former_until", &self.former_until).finish_non_exhaustive()
    }
}

/// Another certificate; none given: a new self-signed one.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateRenewParams {
    /// Certificate chain, PEM, leaf first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// Its private key, PEM. A secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

impl std::fmt::Debug for CertificateRenewParams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CertificateRenewParams")
    }
}

/// The certificate that connections see from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewCertificate {
    /// Its SHA-256.
    pub fingerprint: String,
}

/// Whether runs are held back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainParams {
    /// `true`: nothing new starts; what runs goes on.
    pub on: bool,
}

/// All that makes a proxy itself: settings, pools, remotes, jobs, licences, certificate. Full of secrets; opaque to
/// whoever carries it from one proxy to the next.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyState {
    /// Version of the form: 1.
    pub form: u32,
    /// When it was taken.
    pub taken_at: i64,
    /// The proxy's id.
    pub id: String,
    /// The state itself.
    pub content: serde_json::Value,
    /// Names of the remotes on the proxy's own disk, as whoever keeps this copy has found them: their backups are not in here,
    /// and go with its VM.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub own_disk: Vec<String>,
}

impl std::fmt::Debug for ProxyState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProxyState").field("id", &self.id).field("taken_at", &self.taken_at).finish_non_exhaustive()
    }
}

/// How much of a state was taken in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// Pools.
    pub pools: u32,
    /// Remotes.
    pub remotes: u32,
    /// Jobs.
    pub jobs: u32,
    /// SHA-256 of the certificate from now on.
    pub fingerprint: String,
}

/// A bundle to upgrade to. It is sent beforehand, as it is, to [`BUNDLE_PATH`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpgradeParams {
    /// SHA-256 of the bundle, hexadecimal in lower case. One that was not sent is no such object.
    pub bundle: String,
    /// Seconds to wait for running transfers, which are cancelled then; default an hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_seconds: Option<u64>,
    /// Whether an older version than the running one is meant.
    #[serde(default)]
    pub downgrade: bool,
}

/// Where a bundle is sent to with `POST`, as it is, by whoever shows the token.
pub const BUNDLE_PATH: &str = "/api/v1/bundle";
/// The longest bundle that is taken, bytes: the largest payload, and room for the manifest.
pub const MAX_BUNDLE: u64 = (256 << 20) + (64 << 10);

/// A bundle that has arrived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// Its SHA-256.
    pub bundle: String,
    /// Its size, bytes.
    pub bytes: u64,
}

/// Where an upgrade stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpgradeState {
    /// What is going on.
    pub phase: UpgradePhase,
    /// Version and build before.
    pub from: String,
    /// Version and build wanted.
    pub to: String,
    /// When the phase began.
    pub since: i64,
    /// The run that tells of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// Why it was rolled back, or given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorReport>,
}

/// A part of an upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum UpgradePhase {
    /// Running transfers come to their end; nothing new starts.
    Draining,
    /// The new version starts and checks itself.
    Swapping,
    /// The new version runs.
    Done,
    /// The new version was no good; the one of before runs.
    RolledBack,
    /// It did not come to a swap.
    Failed,
    /// A phase this reader does not know yet.
    #[serde(other)]
    Unknown,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Pass,
    /// Works, but look at it.
    Warning,
    /// Broken.
    Fail,
    /// A verdict this reader does not know yet.
    #[serde(other)]
    Unknown,
}

/// One checked thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DoctorCheck {
    /// Kind of check: `dns`, `route`, `clock`, `pool`, `nbd`, `cbt`, `remote`, `certificate`, `disk`, `version`, `license`.
    pub check: String,
    /// On what: a pool, host, remote.
    pub object: String,
    /// How it came out.
    pub verdict: Verdict,
    /// The measured value, in words.
    pub measured: String,
    /// What to do, unless it passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    /// How long it took, milliseconds.
    pub took: u64,
}

/// What the doctor is to know from outside.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DoctorParams {
    /// The asking console's clock, milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<i64>,
    /// The asking console's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// A redacted text about the whole proxy, for whoever is asked for help.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SupportBundle {
    /// Name for a file.
    pub file_name: String,
    /// The text.
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_newer_daemon_says_is_read_and_not_guessed() {
        assert_eq!(serde_json::from_str::<UpgradePhase>("\"hovering\"").unwrap(), UpgradePhase::Unknown);
        assert_eq!(serde_json::from_str::<UpgradePhase>("\"rolledBack\"").unwrap(), UpgradePhase::RolledBack);
        assert_eq!(serde_json::from_str::<Verdict>("\"moot\"").unwrap(), Verdict::Unknown);
    }
}
