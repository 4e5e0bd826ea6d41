//! How a proxy gets its address, and whether address, netmask, gateway and name servers fit together.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How a proxy gets its address.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "camelCase")]
pub enum AddressSpec {
    /// From the network.
    #[default]
    Dhcp,
    /// As given.
    Static {
        /// `address/prefix`.
        network: IpNetwork,
        /// Router, if any.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        gateway: Option<IpAddr>,
        /// Name servers.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        dns: Vec<IpAddr>,
    },
}

/// What is wrong with an address: which part, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct AddressFault {
    /// `ip`, `netmask`, `gateway`, `dns`.
    pub field: &'static str,
    /// In words.
    pub message: String,
}

fn fault(field: &'static str, message: impl Into<String>) -> AddressFault {
    AddressFault { field, message: message.into() }
}

impl AddressSpec {
    /// Reads a static address as a person types it: `ip` may carry its prefix; `netmask` is a mask or a prefix length;
    /// name servers are separated by commas or spaces. All faults are told, each at its field.
    ///
    /// # Errors
    /// What does not fit.
    pub fn parse(ip: &str, netmask: &str, gateway: &str, dns: &str) -> Result<Self, Vec<AddressFault>> {
        let mut faults = Vec::new();
        let network = read_network(ip.trim(), netmask.trim()).map_err(|error| faults.push(error)).ok();
        let gateway = match gateway.trim() {
            "" => None,
            text => match text.parse::<IpAddr>() {
                Ok(gateway) => Some(gateway),
                Err(_) => {
                    faults.push(fault("gateway", format!("{text:?} is no IP address; a gateway is given by its address")));
                    None
                }
            },
        };
        let mut servers = Vec::new();
        for text in dns.split([',', ' ']).filter(|text| !text.is_empty()) {
            match text.parse::<IpAddr>() {
                Ok(server) => servers.push(server),
                Err(_) => faults.push(fault(
                    "dns",
                    format!("{text:?} is no IP address; a name server cannot be given by a name, for nobody could look it up"),
                )),
            }
        }
        let Some(network) = network else { return Err(faults) };
        let spec = Self::Static { network, gateway, dns: servers };
        faults.extend(spec.faults());
        if faults.is_empty() { Ok(spec) } else { Err(faults) }
    }

    /// What does not fit together.
    pub fn faults(&self) -> Vec<AddressFault> {
        let Self::Static { network, gateway, dns } = self else { return Vec::new() };
        let mut faults = Vec::new();
        if let Some(message) = network.unusable() {
            faults.push(fault("ip", message));
        }
        match gateway {
            Some(gateway) if gateway.is_ipv4() != network.address.is_ipv4() => {
                let (one, other) = if gateway.is_ipv4() { ("IPv4", "IPv6") } else { ("IPv6", "IPv4") };
                faults.push(fault("gateway", format!("{gateway} is {one}, the address is {other}")));
            }
            Some(gateway) if *gateway == network.address => {
                faults.push(fault("gateway", format!("{gateway} is the proxy's own address")));
            }
            // Link-local routers are how IPv6 networks have theirs.
            Some(IpAddr::V6(gateway)) if gateway.is_unicast_link_local() => {}
            Some(gateway) if !network.contains(*gateway) => {
                let message = format!("{gateway} is outside of {}: the proxy could not reach it", network.subnet());
                faults.push(fault("gateway", message));
            }
            _ => {}
        }
        for server in dns {
            if server.is_unspecified() || server.is_multicast() {
                faults.push(fault("dns", format!("{server} cannot be a name server")));
            }
        }
        faults
    }
}

fn read_network(ip: &str, netmask: &str) -> Result<IpNetwork, AddressFault> {
    let (address, prefix) = match ip.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (ip, None),
    };
    if address.is_empty() {
        return Err(fault("ip", "an address is needed, for example 10.0.0.5 or 10.0.0.5/24; or choose DHCP"));
    }
    let address: IpAddr = address.parse().map_err(|_| fault("ip", format!("{address:?} is no IP address")))?;
    let from_ip =
        prefix.map(|text| prefix_length(address, text).ok_or_else(|| fault("ip", bad_mask(address, text)))).transpose()?;
    let from_mask = match netmask {
        "" => None,
        text => Some(prefix_length(address, text).ok_or_else(|| fault("netmask", bad_mask(address, text)))?),
    };
    match (from_ip, from_mask) {
        (Some(one), Some(other)) if one != other => {
            Err(fault("netmask", format!("the address says /{one}, the netmask says /{other}")))
        }
        (None, None) => Err(fault("netmask", "a netmask or prefix length is needed, for example 255.255.255.0 or 24")),
        (Some(prefix), _) | (None, Some(prefix)) => Ok(IpNetwork { address, prefix }),
    }
}

fn bad_mask(address: IpAddr, text: &str) -> String {
    let most = if address.is_ipv4() { 32 } else { 128 };
    format!("{text:?} is neither a prefix length from 1 to {most} nor a netmask")
}

/// A prefix length, from itself or from a mask such as 255.255.255.0.
fn prefix_length(address: IpAddr, text: &str) -> Option<u8> {
    let most = if address.is_ipv4() { 32 } else { 128 };
    if let Ok(prefix) = text.trim_start_matches('/').parse::<u8>() {
        return (1..=most).contains(&prefix).then_some(prefix);
    }
    let mask: Ipv4Addr = text.parse().ok().filter(|_| address.is_ipv4())?;
    let bits = u32::from(mask);
    // Ones first, then zeros only.
    (bits.leading_ones() == bits.count_ones() && bits != 0).then_some(bits.leading_ones() as u8)
}

/// An address with the length of its network's prefix, written `10.0.0.5/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IpNetwork {
    /// The address.
    pub address: IpAddr,
    /// Length of the network's prefix, bits.
    pub prefix: u8,
}

impl IpNetwork {
    /// Whether another address is in the same network.
    pub fn contains(&self, other: IpAddr) -> bool {
        match (self.address, other) {
            (IpAddr::V4(a), IpAddr::V4(b)) => masked_v4(a, self.prefix) == masked_v4(b, self.prefix),
            (IpAddr::V6(a), IpAddr::V6(b)) => masked_v6(a, self.prefix) == masked_v6(b, self.prefix),
            _ => false,
        }
    }

    /// The network it is in: `10.0.0.0/24`.
    pub fn subnet(&self) -> Self {
        let address = match self.address {
            IpAddr::V4(address) => IpAddr::V4(Ipv4Addr::from(masked_v4(address, self.prefix))),
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(masked_v6(address, self.prefix))),
        };
        Self { address, prefix: self.prefix }
    }

    /// The mask of an IPv4 network; none for IPv6.
    pub fn netmask(&self) -> Option<Ipv4Addr> {
        self.address.is_ipv4().then(|| Ipv4Addr::from(mask_v4(self.prefix)))
    }

    /// Why no host can have this address.
    fn unusable(&self) -> Option<String> {
        let address = self.address;
        if address.is_unspecified() || address.is_multicast() {
            return Some(format!("{address} is no address of a host"));
        }
        let link_local = match address {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
        if link_local {
            return Some(format!("{address} cannot be reached from another machine"));
        }
        if let IpAddr::V4(v4) = address
            && self.prefix < 31
        {
            let host = u32::from(v4) & !mask_v4(self.prefix);
            if host == 0 {
                return Some(format!("{address} is the network itself, not a host in it"));
            }
            if host == !mask_v4(self.prefix) {
                return Some(format!("{address} is the broadcast address of {}", self.subnet()));
            }
        }
        None
    }
}

fn mask_v4(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)
}

fn masked_v4(address: Ipv4Addr, prefix: u8) -> u32 {
    u32::from(address) & mask_v4(prefix)
}

fn masked_v6(address: Ipv6Addr, prefix: u8) -> u128 {
    u128::from(address) & u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0)
}

impl std::fmt::Display for IpNetwork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for IpNetwork {
    type Err = AddressFault;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        read_network(text.trim(), "")
    }
}

impl Serialize for IpNetwork {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for IpNetwork {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(ip: &str, netmask: &str, gateway: &str, dns: &str) -> Vec<&'static str> {
        AddressSpec::parse(ip, netmask, gateway, dns).err().unwrap_or_default().into_iter().map(|fault| fault.field).collect()
    }

    #[test]
    fn what_fits_is_read_in_each_way_to_write_it() {
        let wanted = AddressSpec::parse("10.0.0.5/24", "", "10.0.0.1", "10.0.0.2, 9.9.9.9").unwrap();
        assert_eq!(AddressSpec::parse("10.0.0.5", "255.255.255.0", "10.0.0.1", "10.0.0.2 9.9.9.9").unwrap(), wanted);
        assert_eq!(AddressSpec::parse("10.0.0.5", "24", "10.0.0.1", "10.0.0.2,9.9.9.9").unwrap(), wanted);
        let text = serde_json::to_string(&wanted).unwrap();
        assert_eq!(serde_json::from_str::<AddressSpec>(&text).unwrap(), wanted);
        AddressSpec::parse("2001:db8::5/64", "", "fe80::1", "2001:db8::53").unwrap();
        AddressSpec::parse("2001:db8::5", "64", "2001:db8::1", "").unwrap();
        AddressSpec::parse("10.0.0.0/31", "", "10.0.0.1", "").unwrap();
    }

    #[test]
    fn each_fault_stands_at_its_field() {
        assert_eq!(faults("10.0.0.5/24", "", "10.0.1.1", ""), ["gateway"]);
        assert_eq!(faults("10.0.0.5/24", "", "10.0.0.5", ""), ["gateway"]);
        assert_eq!(faults("10.0.0.5/24", "", "fe80::1", ""), ["gateway"]);
        assert_eq!(faults("10.0.0.5/24", "", "router.lan", "dns.lan"), ["gateway", "dns"]);
        assert_eq!(faults("10.0.0.5/24", "255.255.0.0", "", ""), ["netmask"]);
        assert_eq!(faults("10.0.0.5", "", "", ""), ["netmask"]);
        assert_eq!(faults("10.0.0.5", "255.0.255.0", "", ""), ["netmask"]);
        assert_eq!(faults("10.0.0.5", "33", "", ""), ["netmask"]);
        assert_eq!(faults("10.0.0.0/24", "", "", ""), ["ip"]);
        assert_eq!(faults("10.0.0.255/24", "", "", ""), ["ip"]);
        for nowhere in ["224.0.0.1/24", "169.254.3.4/16", "fe80::5/64"] {
            assert_eq!(faults(nowhere, "", "", ""), ["ip"], "{nowhere}");
        }
        assert_eq!(faults("proxy.lan", "24", "", ""), ["ip"]);
        assert_eq!(faults("", "", "", ""), ["ip"]);
        assert_eq!(faults("2001:db8::5", "255.255.255.0", "", ""), ["netmask"]);
    }

    #[test]
    fn subnets_are_told_as_networks() {
        let network: IpNetwork = "10.1.2.3/20".parse().unwrap();
        assert_eq!(network.subnet().to_string(), "10.1.0.0/20");
        assert_eq!(network.netmask().unwrap().to_string(), "255.255.240.0");
        assert!(network.contains("10.1.15.255".parse().unwrap()) && !network.contains("10.1.16.0".parse().unwrap()));
    }
}
