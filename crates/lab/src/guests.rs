//! What runs inside machines that were imported from an appliance: the lab simulates hypervisors, not guests, so whoever
//! owns the lab says what their start brings up.

use std::collections::BTreeMap;
use std::net::IpAddr;

use futures::future::BoxFuture;

/// The `other_config` key by which an appliance's machine is known; its value is the appliance's version.
pub const APPLIANCE: &str = "backhaul-appliance";

/// A machine that starts.
#[derive(Debug, Clone)]
pub struct Boot {
    /// UUID of the machine.
    pub vm: String,
    /// UUID of its first network; empty without one.
    pub network: String,
    /// Hardware address on it.
    pub mac: String,
    /// Its XenStore data, without the leading `vm-data/`.
    pub data: BTreeMap<String, String>,
}

/// What a guest reports once it is up.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Its address, if it has one.
    pub address: Option<IpAddr>,
    /// Its XenStore data as it has left it: what it consumed is missing, what it tells is there.
    pub data: BTreeMap<String, String>,
}

/// Whoever runs guests.
pub trait Guests: Send + Sync + 'static {
    /// A machine starts. Answers once its guest has reported; dropped before, when the machine is switched off earlier or
    /// the lab is closed.
    ///
    /// # Errors
    /// Why it does not come up: it then runs without ever reporting.
    fn boot(&self, machine: Boot) -> BoxFuture<'static, Result<Report, String>>;

    /// A machine is switched off; `clean`: its guest is asked to stop, else it is cut off. The machine is off when this
    /// answers, so whatever the guest consisted of must be gone by then. May be called again before that, and then each
    /// call waits; one that is not clean cuts the others short.
    fn halt(&self, vm: &str, clean: bool) -> BoxFuture<'static, ()>;

    /// A machine is gone for good, with its disks.
    fn forget(&self, vm: &str) -> BoxFuture<'static, ()>;
}
