//! What takes more than one call, or touches this machine: the configuration of the console, files, a stream of checks.
//! The fleet does it outside of the core, so that tokens and licences never come in here.

use api::Binding;

use super::effect::{Danger, Request};
use super::message::ProxyEntry;

/// A piece of work for the fleet, answered by exactly one [`super::FleetEventKind::Reply`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Errand {
    /// Claims a deployed proxy of this deployer, keeps how to reach it in the configuration, connects to it.
    Adopt {
        /// Id of the deployed proxy.
        deployed: String,
        /// What it is called in the configuration already, if it is there.
        known: Option<String>,
    },
    /// Takes this proxy out of the configuration and leaves it alone. Asks nobody.
    Drop,
    /// Makes a new token, keeps it in the configuration, and uses it from then on.
    RotateToken,
    /// Has a new certificate made, pins it in the configuration, and expects it from then on.
    RenewCertificate,
    /// Sends a bundle to upgrade to.
    Upgrade {
        /// Path of its file on this machine, or where on the web it is.
        bundle: String,
        /// Seconds to wait for running transfers.
        wait_seconds: u64,
        /// Whether it may be an older version than the one that runs.
        downgrade: bool,
    },
    /// Gives a licence to this proxy to keep.
    ImportLicense(LicenseSource),
    /// Binds a licence that this proxy holds, and takes it to the proxy that shall run under it.
    BindLicense {
        /// Licence id.
        license: String,
        /// That proxy, as it is called in the configuration.
        to: String,
    },
    /// Frees a licence of a proxy, wherever a copy of it is noted.
    UnbindLicense {
        /// Licence id.
        license: String,
        /// The proxy.
        of: Binding,
    },
    /// Checks everything this proxy depends on; a [`super::FleetEventKind::Check`] comes for each thing.
    Examine,
    /// Writes the redacted text for support into a file of this machine.
    SaveSupportBundle,
}

/// Where a licence comes from.
#[derive(Clone, PartialEq, Eq)]
pub enum LicenseSource {
    /// A file on this machine.
    File(String),
    /// The text itself. A secret.
    Text(String),
}

impl std::fmt::Debug for LicenseSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "File({path:?})"),
            Self::Text(_) => f.write_str("Text"),
        }
    }
}

impl Errand {
    /// What it is, for a person.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Adopt { .. } => "get to know the proxy",
            Self::Drop => "take the proxy out of the configuration",
            Self::RotateToken => "make a new token",
            Self::RenewCertificate => "make a new certificate",
            Self::Upgrade { .. } => "upgrade the proxy",
            Self::ImportLicense(_) => "import a licence",
            Self::BindLicense { .. } => "bind the licence",
            Self::UnbindLicense { .. } => "free the licence",
            Self::Examine => "examine the proxy",
            Self::SaveSupportBundle => "write the text for support",
        }
    }

    /// Whether it changes anything: refused in read-only mode.
    pub const fn writes(&self) -> bool {
        !matches!(self, Self::Examine | Self::SaveSupportBundle)
    }

    /// What must be asked before it leaves.
    pub const fn danger(&self) -> Danger {
        match self {
            Self::RotateToken | Self::RenewCertificate | Self::UnbindLicense { .. } | Self::Upgrade { .. } => Danger::Ask,
            _ => Danger::None,
        }
    }

    /// Whether the proxy must answer for it.
    pub const fn needs_proxy(&self) -> bool {
        !matches!(self, Self::Drop)
    }
}

/// Where a bundle is on its way to a proxy; amounts in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bringing {
    /// It is read or downloaded.
    Fetching {
        /// What has come.
        done: u64,
        /// How long it is, where that was told.
        of: Option<u64>,
    },
    /// It is handed to the proxy.
    Sending {
        /// What has gone.
        done: u64,
        /// How long it is.
        of: u64,
    },
}

impl Bringing {
    /// In a word.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Fetching { .. } => "fetching",
            Self::Sending { .. } => "sending",
        }
    }

    /// In words, with how far it is.
    pub fn words(&self) -> String {
        let bytes = api::format_bytes;
        match *self {
            Self::Fetching { done: 0, .. } => "fetching the bundle".into(),
            Self::Fetching { done, of: None } => format!("fetching the bundle, {} so far", bytes(done)),
            Self::Fetching { done, of: Some(of) } => format!("fetching the bundle, {} of {}", bytes(done), bytes(of)),
            Self::Sending { done, of } if done < of => format!("sending the bundle, {} of {}", bytes(done), bytes(of)),
            Self::Sending { .. } => "the bundle is sent, waiting for the proxy".into(),
        }
    }
}

/// What came of an [`Errand`].
#[derive(Debug, Clone, PartialEq)]
pub enum Done {
    /// The proxy is in the configuration and is being connected to.
    Adopted {
        /// As it stands there.
        entry: ProxyEntry,
        /// SHA-256 of its certificate.
        fingerprint: String,
    },
    /// The proxy is no longer in the configuration.
    Dropped,
    /// The new token is in the configuration.
    TokenKept {
        /// Until when the former one is accepted.
        former_until: i64,
        /// Why whoever deployed the proxy may not know the new one.
        untold: Option<String>,
    },
    /// The new certificate is pinned.
    CertificatePinned {
        /// Its SHA-256.
        fingerprint: String,
        /// Why whoever deployed the proxy may not know of it.
        untold: Option<String>,
    },
    /// The upgrade goes on by itself; [`api::ProxyStatus::upgrade`] tells how far it is.
    Upgrading(Box<api::UpgradeState>),
    /// The licence is kept.
    LicenseKept(Box<api::License>),
    /// The licence is bound.
    LicenseBound(Box<api::License>),
    /// The licence is free.
    LicenseFreed(Box<api::License>),
    /// All checks are through.
    Examined,
    /// The file is written.
    Saved {
        /// Its path.
        path: String,
    },
}

/// Whatever is asked of a proxy.
#[derive(Debug, Clone, PartialEq)]
pub enum Ask {
    /// One call.
    Call(Request),
    /// More than that.
    Errand(Errand),
}

impl Ask {
    /// Whether it changes anything.
    pub const fn writes(&self) -> bool {
        match self {
            Self::Call(request) => request.writes(),
            Self::Errand(errand) => errand.writes(),
        }
    }

    /// What must be asked before it leaves.
    pub const fn danger(&self) -> Danger {
        match self {
            Self::Call(request) => request.danger(),
            Self::Errand(errand) => errand.danger(),
        }
    }

    /// Whether the proxy must answer for it.
    pub const fn needs_proxy(&self) -> bool {
        match self {
            Self::Call(_) => true,
            Self::Errand(errand) => errand.needs_proxy(),
        }
    }
}

impl From<Request> for Ask {
    fn from(request: Request) -> Self {
        Self::Call(request)
    }
}

impl From<Errand> for Ask {
    fn from(errand: Errand) -> Self {
        Self::Errand(errand)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_licence_is_in_no_debug_print() {
        let errand = Errand::ImportLicense(LicenseSource::Text("-----BEGIN hunter2".into()));
        assert!(!format!("{errand:?}").contains("hunter2"));
    }

    #[test]
    fn what_locks_others_out_asks_first() {
        for errand in [Errand::RotateToken, Errand::RenewCertificate] {
            assert!(errand.writes() && errand.danger() == Danger::Ask, "{errand:?}");
        }
        assert!(!Errand::Examine.writes());
    }
}
