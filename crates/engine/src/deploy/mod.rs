//! Deploying proxies: the flow, its steps, and how each is undone.
//!
//! A deployment is one intent from its first byte to its end. The VM is marked with the run before the pool has it
//! ([`image`]), so that a run that dies leaves nothing that is not found again ([`settle`]). What is passed from host to
//! guest and back goes through XenStore ([`guest`]), so the certificate is pinned over the hypervisor's channel.
//!
//! The end is a commit: the registration stands in the journal, and then the intent is durably settled; of a replacement it
//! becomes, under the same number, the one to destroy the former VM.

mod check;
mod flow;
mod guest;
mod image;
mod machine;
mod proxy;
mod reconfigure;
mod settle;
mod steps;
mod verdict;

use api::ProxyStatus;

pub(crate) use flow::deploy;
pub use guest::{addresses as guest_addresses, host as host_address, url as proxy_url};
pub(crate) use reconfigure::{destroy, reconfigure};
pub(crate) use settle::settle;
pub use steps::{deploy_steps, destroy_steps, reconfigure_steps};
pub use verdict::{Told, Verdict};

use crate::error::Error;

/// Whether the proxy that answers is the one that was meant.
fn check_id(status: &ProxyStatus, wanted: &str, name: &str) -> Result<(), Error> {
    if status.id == wanted {
        return Ok(());
    }
    let message = format!("what answers as proxy {name} has the id {:?}, and should have {wanted}", status.id);
    Err(Error::Refused { code: "PROXY_ANOTHER", message, next: Some("check that the image is of this version of Backhaul") })
}
