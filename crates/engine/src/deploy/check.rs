//! Whether what was reviewed still holds, before anything is touched.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use api::deploy::minimum;
use api::{AddressSpec, format_bytes};
use tokio::net::TcpStream;
use tokio::time::timeout;
use xapi::{Host, HostMetrics, Network, Pbd, Record, Ref, Sr, Vm, VmGuestMetrics};

use super::{guest, machine};
use crate::error::Error;
use crate::plan::DeployPlan;
use crate::pool::Pool;

/// How long an address is given to show that somebody has it.
const KNOCK: Duration = Duration::from_secs(2);

/// Where the new VM goes.
pub(crate) struct Ground {
    pub(crate) sr: Ref,
    pub(crate) network: Ref,
}

fn refused(code: &'static str, message: String, next: &'static str) -> Error {
    Error::Refused { code, message, next: Some(next) }
}

async fn object<T: xapi::Kind>(pool: &Pool, uuid: &str, what: &str, code: &'static str) -> Result<Record<T>, Error> {
    match pool.client.by_uuid::<T>(uuid).await {
        Err(error) if error.is_gone() => {
            Err(refused(code, format!("pool {} has no {what} {uuid} any more", pool.name), "choose another one"))
        }
        found => found.map_err(pool.failed(format!("find the {what} {uuid}"))),
    }
}

/// Finds storage and network, and checks that the proxy fits. `old`: the VM whose place it takes.
pub(crate) async fn ground(pool: &Pool, plan: &DeployPlan, old: Option<&Record<Vm>>) -> Result<Ground, Error> {
    let sr = object::<Sr>(pool, &plan.sr, "storage repository", "SR_NOT_FOUND").await?;
    let network = object::<Network>(pool, &plan.network, "network", "NETWORK_NOT_FOUND").await?;
    let needed = if sr.is_thin() { minimum::DISK_THIN } else { plan.disk };
    if sr.free() < needed {
        let (needed, free) = (format_bytes(needed), format_bytes(sr.free()));
        let message = format!("storage {} has {free} free, and the disk needs {needed}", sr.name_label);
        return Err(refused("SR_FULL", message, "free space there, or choose another storage"));
    }
    let mut hosts = BTreeSet::new();
    for pbd in &sr.pbds {
        let pbd = pool.get::<Pbd>(pbd).await?;
        if pbd.currently_attached {
            hosts.insert(pbd.host.clone());
        }
    }
    if hosts.is_empty() {
        let message = format!("storage {} is connected to no host", sr.name_label);
        return Err(refused("SR_UNPLUGGED", message, "connect it on the pool, or choose another storage"));
    }
    memory(pool, plan.memory, &hosts, old).await?;
    let present = plan.replaces.as_ref().map(|replaces| replaces.url.as_str());
    address(pool, &plan.address, plan.port, old, present).await?;
    Ok(Ground { sr: sr.reference.clone(), network: network.reference.clone() })
}

/// Whether one of the hosts has that much memory free, or will have once `old` is off.
async fn memory(pool: &Pool, wanted: u64, hosts: &BTreeSet<Ref>, old: Option<&Record<Vm>>) -> Result<(), Error> {
    let all = pool.client.all::<Host>().await.map_err(pool.failed("list its hosts"))?;
    let mut most = 0;
    for host in all.iter().filter(|host| host.enabled && hosts.contains(&host.reference)) {
        let metrics = pool.get::<HostMetrics>(&host.metrics).await?;
        let freed = old.filter(|old| old.resident_on == host.reference).map_or(0, |old| old.memory_static_max);
        if metrics.live {
            most = most.max(metrics.memory_free + freed);
        }
    }
    if most >= wanted {
        return Ok(());
    }
    let message = format!("no host has {} of memory free; the most is {}", format_bytes(wanted), format_bytes(most));
    Err(refused("NO_MEMORY", message, "shut a VM down, or give the proxy less"))
}

/// Refuses to replace a VM with more disks than the system's: a replacement has a new one of its own, and with the former VM
/// all go. What somebody attached may be a repository.
pub(crate) async fn only_system_disk(pool: &Pool, vm: &Record<Vm>) -> Result<(), Error> {
    let disks = pool.client.disks(&vm.reference).await.map_err(pool.failed(format!("read the disks of VM {}", vm.name_label)))?;
    let others = disks.get(1..).unwrap_or_default();
    if others.is_empty() {
        return Ok(());
    }
    let others: Vec<_> = others.iter().map(|(_, disk)| machine::disk_words(disk)).collect();
    let message =
        format!("VM {} has more disks than its system's, which would be destroyed with it: {}", vm.name_label, others.join(", "));
    let next = "detach them from the VM, then start this again; the new VM can be given them once it works";
    Err(refused("PROXY_HAS_DISKS", message, next))
}

/// Whether more memory than before fits where a VM runs, or anywhere.
pub(crate) async fn more_memory(pool: &Pool, wanted: u64, vm: &Record<Vm>) -> Result<(), Error> {
    if wanted <= vm.memory_static_max {
        return Ok(());
    }
    let hosts = pool.client.all::<Host>().await.map_err(pool.failed("list its hosts"))?;
    memory(pool, wanted, &hosts.into_iter().map(|host| host.reference).collect(), Some(vm)).await
}

/// Whether a static address is free: no other VM's guest reports it, and nothing answers there. `own`: the VM that may have it,
/// because it is its own, and `present`: where the proxy on that VM answers.
///
/// That nothing answers is no proof: a machine that is off, or that drops what it does not know, is not seen from here.
pub(crate) async fn address(
    pool: &Pool,
    wanted: &AddressSpec,
    port: u16,
    own: Option<&Record<Vm>>,
    present: Option<&str>,
) -> Result<(), Error> {
    let AddressSpec::Static { network, .. } = wanted else { return Ok(()) };
    let address = network.address;
    let metrics = pool.client.all::<VmGuestMetrics>().await.map_err(pool.failed("read what its guests report"))?;
    let vms = pool.client.all::<Vm>().await.map_err(pool.failed("list its VMs"))?;
    let owners: BTreeMap<&Ref, &Record<Vm>> = vms.iter().map(|vm| (&vm.guest_metrics, vm)).collect();
    for metrics in metrics.iter().filter(|metrics| guest::addresses(&metrics.networks).contains(&address)) {
        match owners.get(&metrics.reference) {
            Some(owner) if own.is_some_and(|own| own.reference == owner.reference) => return Ok(()),
            Some(owner) => return Err(in_use(address, &format!("VM {} reports it", owner.name_label))),
            None => {}
        }
    }
    // Who answers is the proxy itself, whether its guest's agent says so or not.
    if own.is_some_and(|own| own.power_state == "Running") && present.and_then(guest::host) == Some(address) {
        return Ok(());
    }
    match knock(address, port).await {
        Some(sign) => Err(in_use(address, &sign)),
        None => Ok(()),
    }
}

fn in_use(address: IpAddr, sign: &str) -> Error {
    refused("ADDRESS_IN_USE", format!("the address {address} is in use: {sign}"), "choose a free address")
}

/// How somebody showed that an address is taken, if so.
///
/// A refusal is an answer: a machine that has the address and not the port gives it. A firewall can give it in the place of a
/// machine that is not there; then a free address is taken for one in use, which the words say, and which costs another
/// address and not a conflict. On loopback the kernel refuses for every address, so there it says nothing.
async fn knock(address: IpAddr, port: u16) -> Option<String> {
    match timeout(KNOCK, TcpStream::connect(SocketAddr::new(address, port))).await {
        Ok(Ok(_)) => Some(format!("something answers there on port {port}")),
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused && !address.is_loopback() => Some(format!(
            "connections to its port {port} are refused, by a machine that has it or by a firewall that answers for all"
        )),
        _ => None,
    }
}
