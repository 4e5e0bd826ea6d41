//! Deploying a proxy into a pool: what is asked of a person, what a pool offers, what will be done, what came of it.
//!
//! [`FIELDS`] is the one definition of the deployment parameters: the console's form and `backhaul proxy deploy` are
//! made of it, and [`DeploySpec::from_answers`] reads the answers of both.

mod address;
mod form;

pub use address::{AddressFault, AddressSpec, IpNetwork};
pub use form::{Answers, FIELDS, FieldInfo, FieldKind, bytes, field};

use serde::{Deserialize, Serialize};

use crate::ErrorReport;

/// What a proxy needs at least; the reason stands beside the field that is below it.
pub mod minimum {
    /// Virtual processors.
    pub const VCPUS: u32 = 2;
    /// Memory, bytes.
    pub const MEMORY: u64 = 2 << 30;
    /// System disk on storage that reserves all of it, bytes.
    pub const DISK: u64 = 20 << 30;
    /// What is really used of the disk on thin storage at least, bytes.
    pub const DISK_THIN: u64 = 2 << 30;
}

/// The tags of a proxy's VM: for people, and for XO, whose smart mode does not back up a VM with the latter.
pub const TAGS: [&str; 2] = ["Backhaul proxy", "xo:no-bak=Backhaul proxy"];

/// The port of a proxy unless said otherwise.
pub const DEFAULT_PORT: u16 = 443;

/// A proxy to deploy, as a person asks for it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeploySpec {
    /// Name of the proxy, unique among those of the deployer.
    pub name: String,
    /// Where it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<String>,
    /// Pool id or name.
    pub pool: String,
    /// uuid or name of the storage repository; none: the pool's default one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sr: Option<String>,
    /// uuid or name of the network; none: the only one with a physical interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// How it gets its address.
    #[serde(default)]
    pub address: AddressSpec,
    /// TCP port it answers on.
    #[serde(default = "default_port")]
    pub port: u16,
    /// HTTP proxy for downloads; may hold credentials. A secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_proxy: Option<String>,
    /// Virtual processors.
    #[serde(default = "default_vcpus")]
    pub vcpus: u32,
    /// Memory, bytes.
    #[serde(default = "default_memory")]
    pub memory: u64,
    /// Size of the system disk, bytes.
    #[serde(default = "default_disk")]
    pub disk: u64,
    /// Licence id; none: the first free one, where licences are asked for at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// Technician's login; none: nobody can log in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<Login>,
    /// The appliance.
    pub image: ImageSource,
}

impl std::fmt::Debug for DeploySpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { name, pool, sr, network, address, .. } = self;
        f.debug_struct("DeploySpec")
            .field("name", name)
            .field("pool", pool)
            .field("sr", sr)
            .field("network", network)
            .field("address", address)
            .finish_non_exhaustive()
    }
}

impl DeploySpec {
    /// The same without what must not be seen again: for registries and answers.
    #[must_use]
    pub fn redacted(&self) -> Self {
        let mut shown = self.clone();
        shown.http_proxy = shown.http_proxy.as_deref().map(redact_url);
        shown.login = None;
        shown.image.url = redact_url(&shown.image.url);
        shown
    }
}

/// A URL without the password, and without the user, in front of its host, and without its query, which may be a key to what
/// it names. A path is no URL, and stays as it is.
pub fn redact_url(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (rest, query) = rest.split_once('?').map_or((rest, ""), |(rest, _)| (rest, "?…"));
    let end = rest.find(['/', '#']).unwrap_or(rest.len());
    match rest[..end].rfind('@') {
        Some(at) => format!("{scheme}://***@{}{query}", &rest[at + 1..]),
        None => format!("{scheme}://{rest}{query}"),
    }
}

fn default_port() -> u16 {
    DEFAULT_PORT
}
fn default_vcpus() -> u32 {
    minimum::VCPUS
}
fn default_memory() -> u64 {
    minimum::MEMORY
}
fn default_disk() -> u64 {
    minimum::DISK
}

/// The technician's login on the appliance. A secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "camelCase")]
pub enum Login {
    /// A password, as typed; it is hashed before it leaves the deployer.
    Password {
        /// The password.
        password: String,
    },
    /// A line of `authorized_keys`.
    Key {
        /// The line.
        key: String,
    },
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Login by password",
            Self::Key { .. } => "Login by key",
        })
    }
}

/// Where the appliance comes from.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageSource {
    /// `file:///…` or a path, on the deployer's machine, or `http(s)://…`, of an XVA.
    pub url: String,
    /// SHA-256 it must have, hexadecimal. A `.sha256` file or a signed `.manifest` beside it counts too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl std::fmt::Debug for ImageSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageSource").field("url", &redact_url(&self.url)).field("sha256", &self.sha256).finish()
    }
}

/// A parameter that cannot be, or a doubt about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldFault {
    /// [`FieldInfo::id`]; empty: the deployment as a whole.
    pub field: String,
    /// In words.
    pub message: String,
}

impl FieldFault {
    /// A fault of a field.
    pub fn new(field: &str, message: impl Into<String>) -> Self {
        Self { field: field.to_owned(), message: message.into() }
    }
}

/// What the pools of a deployer offer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeployOptions {
    /// The pools, also those that cannot take a proxy.
    pub pools: Vec<PoolOffer>,
    /// Licences that can be chosen, and whether one is needed.
    pub licensing: crate::LicenseOffer,
    /// An appliance the deployer has at hand, as a URL for [`ImageSource::url`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

/// A pool to deploy into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolOffer {
    /// Pool id.
    pub id: String,
    /// Name.
    pub name: String,
    /// Why it cannot take a proxy; none: it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
    /// Most memory that is free on one host, bytes.
    pub memory_free: u64,
    /// Most processors of one host.
    pub cpus: u32,
    /// Storage.
    pub srs: Vec<SrOffer>,
    /// Networks.
    pub networks: Vec<NetworkOffer>,
}

/// A storage repository for the system disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SrOffer {
    /// XAPI uuid.
    pub uuid: String,
    /// Name.
    pub name: String,
    /// Driver: `ext`, `lvm`, `nfs`…
    pub kind: String,
    /// Whether a disk takes only what is written to it.
    pub thin: bool,
    /// Total size, bytes.
    pub bytes: u64,
    /// Free, bytes.
    pub free: u64,
    /// Whether it is the pool's default.
    pub default: bool,
    /// Why it cannot take the disk; none: it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
}

/// A network for the proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkOffer {
    /// XAPI uuid.
    pub uuid: String,
    /// Name.
    pub name: String,
    /// Whether the pool's management runs over it.
    pub management: bool,
    /// Whether disks are offered over NBD on it.
    pub nbd: bool,
    /// Why it cannot take the proxy; none: it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
}

/// What a deployment would do. Making it touches nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeployReview {
    /// Why it cannot be done, by field.
    #[serde(default)]
    pub faults: Vec<FieldFault>,
    /// What to think about first, by field.
    #[serde(default)]
    pub warnings: Vec<FieldFault>,
    /// What will be created, a label and a value a line.
    pub lines: Vec<(String, String)>,
    /// The steps, in order.
    pub steps: Vec<StepInfo>,
}

/// A step of a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepInfo {
    /// Its name, as the run's task is called.
    pub name: String,
    /// Its time limit, seconds.
    pub limit_seconds: u64,
}

/// A proxy that this daemon has deployed, or is deploying.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Deployed {
    /// The proxy's id, its own for ever.
    pub id: String,
    /// Name.
    pub name: String,
    /// Pool id.
    pub pool: String,
    /// Name of the pool.
    pub pool_name: String,
    /// XAPI uuid of its VM, once there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// `https://host[:port]`, once it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// SHA-256 of its certificate, once it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// Where it stands.
    pub state: DeployedState,
    /// As it was asked for, without secrets.
    pub spec: DeploySpec,
    /// Licence id, if one is bound to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
    /// The run that works on it now, or did last.
    pub run: String,
    /// When it was ready first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_at: Option<i64>,
    /// When its jobs and remotes were last copied here, for a redeployment without its help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copied_at: Option<i64>,
}

/// How far a deployed proxy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeployedState {
    /// Its first run goes on.
    Deploying,
    /// It has been ready.
    Ready,
    /// A run changes, replaces or destroys it.
    Changing,
}

/// How to reach a deployed proxy. Holds its token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Credentials {
    /// The proxy's id.
    pub id: String,
    /// Name.
    pub name: String,
    /// `https://host[:port]`.
    pub url: String,
    /// API token. A secret.
    pub token: String,
    /// SHA-256 of its certificate.
    pub fingerprint: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("name", &self.name).field("url", &self.url).finish_non_exhaustive()
    }
}

/// A deployed proxy to be made anew from an image; jobs, remotes and identity stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RedeployParams {
    /// Id or name of the deployed proxy.
    pub id: String,
    /// Another image; none: that of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageSource>,
    /// Another storage repository; none: that of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sr: Option<String>,
    /// Whether the backups on the proxy's own disk may go with its VM; if not, they keep it from being made anew.
    #[serde(default)]
    pub discard_local: bool,
}

/// Address or resources of a deployed proxy to change; its VM is restarted for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReconfigureParams {
    /// Id or name of the deployed proxy.
    pub id: String,
    /// Another address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<AddressSpec>,
    /// Another number of processors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// Another amount of memory, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
}

/// A deployed proxy to destroy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DestroyParams {
    /// Id or name of the deployed proxy.
    pub id: String,
    /// Its name, typed: anything else is refused.
    pub name: String,
    /// As for [`RedeployParams`].
    #[serde(default)]
    pub discard_local: bool,
}

/// The code of [`refusal`].
pub const REFUSED: &str = "DEPLOY_REFUSED";

/// Why a deployment is refused before it starts: all faults at once.
pub fn refusal(faults: &[FieldFault]) -> ErrorReport {
    let words: Vec<String> = faults
        .iter()
        .map(|fault| if fault.field.is_empty() { fault.message.clone() } else { format!("{}: {}", fault.field, fault.message) })
        .collect();
    ErrorReport::new(REFUSED, words.join("; ")).with_next("nothing was touched; correct it and try again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_of_a_url_are_never_shown() {
        for (url, shown) in [
            ("http://user:p@ss@proxy:3128", "http://***@proxy:3128"),
            ("http://proxy:3128/a@b", "http://proxy:3128/a@b"),
            ("https://user:p@store/x.xva?sv=1&sig=secret#f", "https://***@store/x.xva?…"),
            ("https://store?sig=a@b", "https://store?…"),
            ("https://store/x.xva?", "https://store/x.xva?…"),
            ("/srv/x.xva", "/srv/x.xva"),
            ("/srv/what?.xva", "/srv/what?.xva"),
        ] {
            assert_eq!(redact_url(url), shown);
        }
    }
}
