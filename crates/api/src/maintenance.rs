//! Keeping a proxy up: holding runs back, and its state as a whole.

use serde::{Deserialize, Serialize};

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
