//! What a proxy's guest is told through XenStore, and what it tells: its address, its certificate.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api::AddressSpec;
use tls::Fingerprint;
use xapi::{Record, Vm, VmGuestMetrics};

use super::steps::{Look, until};
use crate::error::Error;
use crate::journal::Task;
use crate::plan::{DeployPlan, LoginPlan};
use crate::pool::Pool;

/// All that host and guest tell each other stands below it.
const DATA: &str = "vm-data/";
/// The guest's daemon has come up: its port.
pub(crate) const READY: &str = "vm-data/backhaul/ready";
/// The guest's certificate.
const FINGERPRINT: &str = "vm-data/backhaul/fingerprint";
/// Where the guest gets its address from.
pub(crate) const ADDRESS: [&str; 3] = ["vm-data/backhaul/address", "vm-data/backhaul/gateway", "vm-data/backhaul/dns"];
/// What the guest consumes, because it is a secret.
const SECRETS: [&str; 4] =
    ["vm-data/backhaul/token", "vm-data/backhaul/http-proxy", "vm-data/backhaul/login-password", "vm-data/backhaul/login-key"];

/// The keys by which a guest learns its address, with none for those that must not be there.
pub(crate) fn address_keys(address: &AddressSpec) -> BTreeMap<String, Option<String>> {
    let (network, gateway, dns) = match address {
        AddressSpec::Dhcp => ("dhcp".to_owned(), None, None),
        AddressSpec::Static { network, gateway, dns } => {
            let servers: Vec<_> = dns.iter().map(ToString::to_string).collect();
            let dns = (!servers.is_empty()).then(|| servers.join(","));
            (network.to_string(), gateway.map(|gateway| gateway.to_string()), dns)
        }
    };
    ADDRESS.into_iter().map(str::to_owned).zip([Some(network), gateway, dns]).collect()
}

/// Everything a new proxy is told. Holds secrets.
pub(crate) fn first_data(plan: &DeployPlan, other: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut data: BTreeMap<String, String> =
        other.iter().filter(|(key, _)| !key.starts_with(DATA)).map(|(key, value)| (key.clone(), value.clone())).collect();
    let mut tell = |key: &str, value: &str| data.insert(format!("{DATA}backhaul/{key}"), value.to_owned());
    tell("name", &plan.name);
    tell("site", &plan.site);
    tell("id", &plan.proxy);
    tell("token", plan.token.expose());
    tell("port", &plan.port.to_string());
    if let Some(proxy) = &plan.http_proxy {
        tell("http-proxy", proxy.expose());
    }
    if let Some(key) = &plan.issuer_key {
        tell("issuer-key", key);
    }
    if let Some(key) = &plan.upgrade_key {
        tell("upgrade-key", key);
    }
    match &plan.login {
        Some(LoginPlan::PasswordHash(hash)) => tell("login-password", hash.expose()),
        Some(LoginPlan::Key(key)) => tell("login-key", key),
        None => None,
    };
    data.extend(address_keys(&plan.address).into_iter().filter_map(|(key, value)| Some((key, value?))));
    data
}

/// Tells a new proxy everything. What the pool says when it fails is left out but for its code: it may quote what it was
/// given.
pub(crate) async fn hand_over(pool: &Pool, vm: &Record<Vm>, plan: &DeployPlan) -> Result<(), Error> {
    let data = first_data(plan, &vm.xenstore_data);
    pool.client.set_xenstore_data(&vm.reference, &data).await.map_err(|error| Error::Pool {
        pool: pool.name.clone(),
        doing: format!("write the configuration of {} into the XenStore data of its VM", plan.name),
        code: error.code().to_owned(),
        source: format!("it answers {}", error.code()).into(),
    })
}

/// Waits until the guest reports its address.
pub(crate) async fn address(
    pool: &Pool,
    vm: &Record<Vm>,
    wanted: &AddressSpec,
    task: &Task,
    seconds: u64,
) -> Result<IpAddr, Error> {
    let who = format!("the guest of {}", vm.name_label);
    let does = match wanted {
        AddressSpec::Dhcp => "report an address".to_owned(),
        AddressSpec::Static { network, .. } => format!("report the address {}", network.address),
    };
    until(task, seconds, (&who, &does), async || {
        let now = pool.client.get::<Vm>(&vm.reference).await.map_err(pool.failed(format!("watch VM {}", vm.name_label)))?;
        check_runs(&now)?;
        if now.guest_metrics.is_null() {
            return Ok(Look::NotYet("its agent says nothing".into()));
        }
        let metrics = match pool.client.get::<VmGuestMetrics>(&now.guest_metrics).await {
            Err(error) if error.is_gone() => return Ok(Look::NotYet("its agent says nothing".into())),
            metrics => metrics.map_err(pool.failed(format!("read what the guest of {} reports", vm.name_label)))?,
        };
        let reported = addresses(&metrics.networks);
        let found = match wanted {
            AddressSpec::Dhcp => reported.first().copied(),
            AddressSpec::Static { network, .. } => reported.iter().copied().find(|address| *address == network.address),
        };
        match found {
            Some(address) => Ok(Look::There(address)),
            None if reported.is_empty() => Ok(Look::NotYet("its agent reports none".into())),
            None => Ok(Look::NotYet(format!("it reports {}", list(&reported)))),
        }
    })
    .await
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A guest that has stopped needs no waiting for.
fn check_runs(vm: &Record<Vm>) -> Result<(), Error> {
    if vm.power_state == "Running" {
        return Ok(());
    }
    Err(Error::Refused {
        code: "VM_STOPPED",
        message: format!("VM {} is {} although it was started", vm.name_label, vm.power_state.to_lowercase()),
        next: Some("see on the pool who or what stopped it, then start it again"),
    })
}

/// The addresses a guest reports that others can use, the best first: of the first interface, IPv4 before IPv6.
pub fn addresses(networks: &BTreeMap<String, String>) -> Vec<IpAddr> {
    let mut found: Vec<(String, bool, IpAddr)> = networks
        .iter()
        .filter_map(|(key, address)| Some((key.split('/').next()?.to_owned(), address.parse::<IpAddr>().ok()?)))
        .filter(|(_, address)| is_usable(*address))
        .map(|(device, address)| (device, address.is_ipv6(), address))
        .collect();
    found.sort();
    found.dedup();
    found.into_iter().map(|(_, _, address)| address).collect()
}

fn is_usable(address: IpAddr) -> bool {
    let local = match address {
        IpAddr::V4(address) => address.is_link_local() || address == Ipv4Addr::UNSPECIFIED,
        IpAddr::V6(address) => address.is_unicast_link_local() || address == Ipv6Addr::UNSPECIFIED,
    };
    !local && !address.is_multicast()
}

/// Waits until the guest's daemon has reported its certificate, through the hypervisor.
pub(crate) async fn fingerprint(pool: &Pool, vm: &Record<Vm>, task: &Task, seconds: u64) -> Result<Fingerprint, Error> {
    let who = format!("the daemon on {}", vm.name_label);
    until(task, seconds, (&who, "report"), async || {
        let now = pool.client.get::<Vm>(&vm.reference).await.map_err(pool.failed(format!("watch VM {}", vm.name_label)))?;
        check_runs(&now)?;
        let data = &now.xenstore_data;
        let (Some(_), Some(fingerprint)) = (data.get(READY), data.get(FINGERPRINT)) else {
            let token_is_there = data.contains_key(SECRETS[0]);
            let seen = if token_is_there { "it has not taken its configuration yet" } else { "its daemon is not up yet" };
            return Ok(Look::NotYet(seen.into()));
        };
        let fingerprint = fingerprint.parse().map_err(|error| {
            Error::refused("PROXY_FINGERPRINT", format!("what {} reports as its certificate is none: {error}", vm.name_label))
        })?;
        Ok(Look::There(fingerprint))
    })
    .await
}

/// Removes the secrets that a guest should have consumed, and has not.
pub(crate) async fn wipe(pool: &Pool, vm: &Record<Vm>, task: &Task) -> Result<(), Error> {
    let data = pool.client.xenstore_data(&vm.reference).await.map_err(pool.failed("read the XenStore data of the new VM"))?;
    for key in SECRETS.into_iter().filter(|key| data.contains_key(*key)) {
        task.warn(format!("{key} was not removed by the guest: it is removed from here"));
        let cleared = pool.client.clear_xenstore_key(&vm.reference, key).await;
        cleared.map_err(pool.failed(format!("remove {key} from the XenStore data of {}", vm.name_label)))?;
    }
    Ok(())
}

/// The address in a URL, if it is one.
pub fn host(url: &str) -> Option<IpAddr> {
    url::Url::parse(url).ok()?.host_str()?.trim_matches(['[', ']']).parse().ok()
}

/// Whether nobody but the guest of this VM can be at a URL, as far as the pool knows: it runs, and its agent does not say that
/// it is elsewhere.
pub(crate) async fn is_at(pool: &Pool, vm: &Record<Vm>, url: &str) -> Result<bool, Error> {
    if vm.power_state != "Running" {
        return Ok(false);
    }
    let Some(host) = host(url).filter(|_| !vm.guest_metrics.is_null()) else { return Ok(true) };
    let reported = match pool.client.get::<VmGuestMetrics>(&vm.guest_metrics).await {
        Err(error) if error.is_gone() => Vec::new(),
        metrics => {
            addresses(&metrics.map_err(pool.failed(format!("read what the guest of {} reports", vm.name_label)))?.networks)
        }
    };
    Ok(reported.is_empty() || reported.contains(&host))
}

/// Where a proxy answers: `https://host[:port]`.
pub fn url(address: IpAddr, port: u16) -> String {
    let host = match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    if port == 443 { format!("https://{host}") } else { format!("https://{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_address_comes_first_and_link_local_ones_do_not_count() {
        let networks = [
            ("1/ip", "10.1.0.9"),
            ("0/ipv6/0", "fe80::1"),
            ("0/ipv6/1", "2001:db8::7"),
            ("0/ip", "10.0.0.7"),
            ("0/ipv4/0", "10.0.0.7"),
            ("0/ipv4/1", "169.254.1.1"),
            ("0/ipv4/2", "nonsense"),
        ];
        let networks = networks.map(|(key, address)| (key.to_owned(), address.to_owned())).into();
        assert_eq!(list(&addresses(&networks)), "10.0.0.7, 2001:db8::7, 10.1.0.9");
    }

    #[test]
    fn addresses_are_told_whole_and_dhcp_says_so() {
        let spec = AddressSpec::parse("10.0.0.5/24", "", "10.0.0.1", "10.0.0.2 9.9.9.9").unwrap();
        let values: Vec<_> = address_keys(&spec).into_values().collect();
        // In the order of the keys: address, dns, gateway.
        assert_eq!(values, [Some("10.0.0.5/24".into()), Some("10.0.0.2,9.9.9.9".into()), Some("10.0.0.1".into())]);
        assert_eq!(address_keys(&AddressSpec::Dhcp).into_values().collect::<Vec<_>>(), [Some("dhcp".into()), None, None]);
    }

    #[test]
    fn a_url_has_brackets_and_a_port_where_they_are_needed() {
        assert_eq!(url("10.0.0.7".parse().unwrap(), 443), "https://10.0.0.7");
        assert_eq!(url("2001:db8::7".parse().unwrap(), 8443), "https://[2001:db8::7]:8443");
    }
}
