//! What a pool offers to a new proxy: hosts, storage, networks, and why some of them cannot take it.

use std::collections::HashMap;
use std::net::IpAddr;

use api::deploy::minimum;
use api::{NetworkOffer, PoolOffer, SrOffer, format_bytes};
use xapi::{Client, Host, HostMetrics, Network, Pbd, Pif, Record, Ref, Sr, Vm, VmGuestMetrics};

/// What a pool offers, and which addresses are taken on it.
#[derive(Debug, Clone)]
pub struct Offer {
    /// For a person to choose from.
    pub pool: PoolOffer,
    /// Addresses that hosts and guests have, and whose they are.
    pub taken: Vec<(IpAddr, String)>,
}

/// Storage that allocates what is written; all other kinds reserve a disk's whole size.
const THIN: &[&str] = &["ext", "xfs", "zfs", "nfs", "smb", "file", "largeblock", "moosefs", "glusterfs", "cephfs", "xosan"];

/// Asks a pool.
pub async fn read_offer(id: String, name: String, client: &Client) -> xapi::Result<Offer> {
    let (pools, hosts, metrics, srs, pbds) = tokio::try_join!(
        client.all::<xapi::Pool>(),
        client.all::<Host>(),
        client.all::<HostMetrics>(),
        client.all::<Sr>(),
        client.all::<Pbd>(),
    )?;
    let (networks, pifs, vms, guests) =
        tokio::try_join!(client.all::<Network>(), client.all::<Pif>(), client.all::<Vm>(), client.all::<VmGuestMetrics>(),)?;
    let default = pools.first().map(|pool| pool.default_sr.clone()).unwrap_or_default();
    let free: HashMap<&Ref, u64> = metrics.iter().map(|metrics| (&metrics.reference, metrics.memory_free)).collect();
    let usable: Vec<&Record<Host>> = hosts.iter().filter(|host| host.enabled).collect();
    let memory_free = usable.iter().filter_map(|host| free.get(&host.metrics)).copied().max().unwrap_or(0);
    let cpus = usable.iter().filter_map(|host| host.cpu_info.get("cpu_count")?.parse().ok()).max().unwrap_or(0);
    let why_not = if usable.is_empty() {
        Some("none of its hosts takes VMs now".to_owned())
    } else if memory_free < minimum::MEMORY {
        Some(format!("no host has 2 GiB of memory free; the most is {}", format_bytes(memory_free)))
    } else {
        None
    };
    let pool = PoolOffer {
        id,
        name,
        why_not,
        memory_free,
        cpus,
        srs: storage(&srs, &pbds, &default),
        networks: wires(&networks, &pifs, hosts.len()),
    };
    Ok(Offer { pool, taken: addresses(&hosts, &vms, &guests) })
}

fn storage(srs: &[Record<Sr>], pbds: &[Record<Pbd>], default: &Ref) -> Vec<SrOffer> {
    let mut offers: Vec<SrOffer> = srs
        .iter()
        // Drives and CD images are no storage for disks.
        .filter(|sr| sr.content_type != "iso" && !matches!(sr.r#type.as_str(), "iso" | "udev" | "dummy"))
        .map(|sr| {
            let thin = match sr.sm_config.get("allocation").map(String::as_str) {
                Some(allocation) => allocation == "thin" || allocation == "xlvhd",
                None => THIN.contains(&sr.r#type.as_str()),
            };
            let free = sr.physical_size.saturating_sub(sr.physical_utilisation);
            let plugged = pbds.iter().any(|pbd| pbd.sr == sr.reference && pbd.currently_attached);
            let needed = if thin { minimum::DISK_THIN } else { minimum::DISK };
            let why_not = if !plugged {
                Some("it is connected to no host".to_owned())
            } else if free < needed {
                Some(format!("{} free, {} needed", format_bytes(free), format_bytes(needed)))
            } else {
                None
            };
            SrOffer {
                uuid: sr.uuid.clone(),
                name: sr.name_label.clone(),
                kind: sr.r#type.clone(),
                thin,
                bytes: sr.physical_size,
                free,
                default: sr.reference == *default,
                why_not,
            }
        })
        .collect();
    offers.sort_by_cached_key(|sr| (!sr.default, sr.name.to_lowercase(), sr.uuid.clone()));
    offers
}

fn wires(networks: &[Record<Network>], pifs: &[Record<Pif>], hosts: usize) -> Vec<NetworkOffer> {
    let mut offers: Vec<NetworkOffer> = networks
        .iter()
        // The hosts' own link to their guests.
        .filter(|network| !network.other_config.contains_key("is_host_internal_management_network"))
        .map(|network| {
            let ours: Vec<&Record<Pif>> = pifs.iter().filter(|pif| pif.network == network.reference).collect();
            let plugged = ours.iter().filter(|pif| pif.currently_attached).count();
            let why_not = if ours.is_empty() {
                Some("it has no physical interface: the proxy could reach neither hosts nor storage".to_owned())
            } else if plugged == 0 {
                Some(format!("its interface is unplugged on all {hosts} hosts"))
            } else {
                None
            };
            NetworkOffer {
                uuid: network.uuid.clone(),
                name: network.name_label.clone(),
                management: ours.iter().any(|pif| pif.management),
                nbd: network.purpose.iter().any(|purpose| purpose == "nbd"),
                why_not,
            }
        })
        .collect();
    offers.sort_by_cached_key(|network| (!network.management, network.name.to_lowercase(), network.uuid.clone()));
    offers
}

fn addresses(hosts: &[Record<Host>], vms: &[Record<Vm>], guests: &[Record<VmGuestMetrics>]) -> Vec<(IpAddr, String)> {
    let of_hosts = hosts.iter().filter_map(|host| Some((host.address.parse().ok()?, format!("host {}", host.name_label))));
    let of_guests = vms.iter().filter(|vm| vm.power_state == "Running").flat_map(|vm| {
        let found = guests.iter().find(|guest| guest.reference == vm.guest_metrics);
        let addresses = found.into_iter().flat_map(|guest| guest.networks.values());
        addresses.filter_map(|address| Some((address.parse().ok()?, format!("VM {}", vm.name_label))))
    });
    of_hosts.chain(of_guests).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sr(kind: &str, size: u64, used: u64) -> Record<Sr> {
        let raw = json!({
            "uuid": kind, "name_label": kind, "type": kind, "content_type": "user",
            "physical_size": size, "physical_utilisation": used,
        });
        Record::read(Ref::from(kind), raw).unwrap()
    }

    #[test]
    fn storage_that_cannot_take_the_disk_says_why() {
        let gib = 1 << 30;
        let srs =
            [sr("lvm", 100 * gib, 81 * gib), sr("ext", 100 * gib, 97 * gib), sr("nfs", 100 * gib, 99 * gib), sr("udev", gib, 0)];
        let pbd = |of: &str| Record::read(Ref::null(), json!({ "SR": of, "currently_attached": of != "ext" })).unwrap();
        let offers = storage(&srs, &[pbd("lvm"), pbd("ext"), pbd("nfs")], &Ref::from("nfs"));
        let said: Vec<(&str, bool, Option<&str>)> =
            offers.iter().map(|sr| (sr.kind.as_str(), sr.thin, sr.why_not.as_deref())).collect();
        assert_eq!(
            said,
            [
                ("nfs", true, Some("1.0 GiB free, 2.0 GiB needed")),
                ("ext", true, Some("it is connected to no host")),
                ("lvm", false, Some("19.0 GiB free, 20.0 GiB needed")),
            ]
        );
    }
}
