//! What a deployment would do, and what speaks against it. Only reads.

use std::net::{IpAddr, ToSocketAddrs};
use std::path::Path;

use api::deploy::{TAGS, minimum, redact_url};
use api::{
    AddressSpec, DeployReview, DeploySpec, DeployedState, FieldFault, Login, NetworkOffer, PoolOffer, SrOffer, format_bytes,
};

use super::{Deployments, Offer};
use crate::fault::Fault;
use crate::store::DeploymentRecord;

/// A deployment that was looked at from all sides.
pub(super) struct Reviewed {
    pub review: DeployReview,
    /// What it comes to, when nothing speaks against it.
    pub choice: Option<Choice>,
}

/// What the names of a spec stand for.
pub(super) struct Choice {
    pub pool: String,
    pub sr: SrOffer,
    pub network: NetworkOffer,
    /// Licence id to bind, where one is needed.
    pub license: Option<String>,
}

impl Deployments {
    /// Looks at a deployment. `replacing`: the deployed proxy whose place it takes.
    pub(super) async fn look(&self, spec: &DeploySpec, replacing: Option<&DeploymentRecord>) -> Result<Reviewed, Fault> {
        let known = self.store.deployments().await?;
        let others: Vec<&DeploymentRecord> =
            known.iter().filter(|other| replacing.is_none_or(|this| this.id != other.id)).collect();
        let mut found = Found { faults: spec.faults(), ..Found::default() };
        if let Some(taken) = others.iter().find(|other| other.name == spec.name) {
            let state = if taken.state == DeployedState::Deploying { "is being deployed" } else { "was deployed by this one" };
            found.fault("name", format!("a proxy of this name {state}"));
        }
        let (mut sr, mut network) = (None, None);
        let mut pool = None;
        match self.pools.offer(&spec.pool).await {
            Ok(offer) => {
                sr = found.storage(spec, &offer.pool, &others);
                network = found.network(spec, &offer.pool);
                // What it has now is free again once it is off.
                found.host(spec, &offer.pool, replacing.map_or(0, |this| this.spec.memory));
                found.address(spec, &offer, &others, replacing);
                pool = Some(offer.pool);
            }
            Err(fault) => found.fault("pool", fault.report().message),
        }
        let license = match replacing {
            // It keeps the one it has.
            Some(_) => None,
            None => found.license(spec, &self.licenses.offer().await?),
        };
        found.image(spec);
        let lines = lines(spec, pool.as_ref(), sr.as_ref(), network.as_ref(), license.as_ref(), self.licenses.required());
        let review = DeployReview { faults: found.faults, warnings: found.warnings, lines, steps: Vec::new() };
        let choice = match (pool, sr, network) {
            (Some(pool), Some(sr), Some(network)) if review.faults.is_empty() => {
                Some(Choice { pool: pool.id, sr, network, license: license.map(|license| license.id) })
            }
            _ => None,
        };
        Ok(Reviewed { review, choice })
    }
}

#[derive(Default)]
struct Found {
    faults: Vec<FieldFault>,
    warnings: Vec<FieldFault>,
}

impl Found {
    fn fault(&mut self, field: &str, message: impl Into<String>) {
        self.faults.push(FieldFault::new(field, message));
    }

    fn warn(&mut self, field: &str, message: impl Into<String>) {
        self.warnings.push(FieldFault::new(field, message));
    }

    fn storage(&mut self, spec: &DeploySpec, pool: &PoolOffer, others: &[&DeploymentRecord]) -> Option<SrOffer> {
        let chosen = match &spec.sr {
            Some(wanted) => match one(&pool.srs, wanted, |sr| [&sr.uuid, &sr.name]) {
                Ok(sr) => sr,
                Err(why) => {
                    self.fault("sr", format!("{why} storage {wanted:?} in the pool {}", pool.name));
                    return None;
                }
            },
            None => match pool.srs.iter().find(|sr| sr.default) {
                Some(sr) => sr,
                None => {
                    self.fault("sr", format!("the pool {} has no default storage; choose one", pool.name));
                    return None;
                }
            },
        };
        // What another deployment under way will have taken.
        let promised: u64 = others
            .iter()
            .filter(|other| other.state == DeployedState::Deploying && other.spec.sr.as_deref() == Some(&chosen.uuid))
            .map(|other| if chosen.thin { minimum::DISK_THIN } else { other.spec.disk })
            .sum();
        let free = chosen.free.saturating_sub(promised);
        let also = if promised > 0 { " beside another deployment" } else { "" };
        if let Some(why) = &chosen.why_not {
            self.fault("sr", format!("{}: {why}", chosen.name));
        } else if chosen.thin && free < minimum::DISK_THIN {
            self.fault("sr", format!("{} has {} free{also}; a proxy takes at least 2 GiB", chosen.name, format_bytes(free)));
        } else if !chosen.thin && spec.disk < minimum::DISK {
            let disk = format_bytes(spec.disk);
            let message = format!(
                "{disk} is too little: at least 20 GiB, because {} reserves all of it (thick); 2 GiB would do on thin storage",
                chosen.name
            );
            self.fault("disk", message);
        } else if !chosen.thin && free < spec.disk {
            let message =
                format!("{} has {} free{also}; the disk takes {}", chosen.name, format_bytes(free), format_bytes(spec.disk));
            self.fault("sr", message);
        } else if chosen.thin && free < spec.disk {
            self.warn("sr", format!("{} has {} free{also}, less than the disk could grow to", chosen.name, format_bytes(free)));
        }
        Some(chosen.clone())
    }

    fn network(&mut self, spec: &DeploySpec, pool: &PoolOffer) -> Option<NetworkOffer> {
        let usable: Vec<&NetworkOffer> = pool.networks.iter().filter(|network| network.why_not.is_none()).collect();
        let chosen = match &spec.network {
            Some(wanted) => match one(&pool.networks, wanted, |network| [&network.uuid, &network.name]) {
                Ok(network) => network,
                Err(why) => {
                    self.fault("network", format!("{why} network {wanted:?} in the pool {}", pool.name));
                    return None;
                }
            },
            None => match usable.iter().find(|network| network.management).or(usable.first()) {
                Some(network) => network,
                None => {
                    self.fault("network", format!("no network of the pool {} can take a proxy", pool.name));
                    return None;
                }
            },
        };
        if let Some(why) = &chosen.why_not {
            self.fault("network", format!("{}: {why}", chosen.name));
        } else if !chosen.nbd {
            let message = format!(
                "disks are not offered over NBD on {}: backups will be slower and read whole disks more often",
                chosen.name
            );
            self.warn("network", message);
        }
        Some(chosen.clone())
    }

    fn host(&mut self, spec: &DeploySpec, pool: &PoolOffer, freed: u64) {
        if let Some(why) = &pool.why_not {
            self.fault("pool", format!("{}: {why}", pool.name));
            return;
        }
        if spec.memory > pool.memory_free.saturating_add(freed) && spec.memory >= minimum::MEMORY {
            let most = format_bytes(pool.memory_free);
            self.fault("memory", format!("no host of {} has {} free; the most is {most}", pool.name, format_bytes(spec.memory)));
        }
        if pool.cpus > 0 && spec.vcpus > pool.cpus {
            self.fault("vcpus", format!("the hosts of {} have {} processors at most", pool.name, pool.cpus));
        }
    }

    fn address(&mut self, spec: &DeploySpec, offer: &Offer, others: &[&DeploymentRecord], replacing: Option<&DeploymentRecord>) {
        let AddressSpec::Static { network, .. } = &spec.address else { return };
        let own = replacing.and_then(|this| engine::host_address(this.url.as_deref()?)).is_some_and(|own| own == network.address);
        let address = network.address;
        if let Some((_, whose)) = offer.taken.iter().find(|(taken, _)| *taken == address)
            && !own
        {
            self.fault("ip", format!("{address} is in use by {whose}"));
        } else if let Some(other) = others.iter().find(|other| promised_address(other) == Some(address)) {
            self.fault("ip", format!("{address} is the address of the proxy {}", other.name));
        }
    }

    fn license(&mut self, spec: &DeploySpec, offer: &api::LicenseOffer) -> Option<api::License> {
        if !offer.required {
            if spec.license.is_some() {
                self.warn("license", "no licence is needed here; the one chosen stays free");
            }
            return None;
        }
        let chosen = match &spec.license {
            Some(id) => {
                match offer.licenses.iter().find(|license| license.id == *id || (id.len() >= 4 && license.id.starts_with(id))) {
                    None => {
                        self.fault("license", format!("this proxy holds no licence {id:?}"));
                        return None;
                    }
                    Some(license) => license,
                }
            }
            None => match offer.licenses.iter().find(|license| license.free() > 0) {
                None => {
                    self.fault("license", offer.why_not.clone().unwrap_or_else(|| "no licence is free".into()));
                    return None;
                }
                Some(license) => license,
            },
        };
        if let Some(fault) = &chosen.fault {
            self.fault("license", fault.clone());
        } else if chosen.free() == 0 {
            self.fault("license", format!("licence {} already serves {}", short(&chosen.id), chosen.serves()));
        } else if let Some(warning) = &chosen.warning {
            self.warn("license", warning.clone());
        }
        Some(chosen.clone())
    }

    fn image(&mut self, spec: &DeploySpec) {
        let url = &spec.image.url;
        if url.starts_with("http://") || url.starts_with("https://") {
            let host = url::Url::parse(url).ok().and_then(|url| Some((url.host_str()?.to_owned(), url.port_or_known_default()?)));
            match host {
                None => self.fault("image", "that URL names no host"),
                // Looked up here, so that a slip of the pen is told before anything is created.
                Some((host, port)) if spec.http_proxy.is_none() && (host.as_str(), port).to_socket_addrs().is_err() => {
                    self.fault("image", format!("the host {host} of the image cannot be looked up"));
                }
                Some(_) => {}
            }
            if spec.image.sha256.is_none() {
                self.warn("image", "without a checksum the one beside the image counts, which comes over the same line");
            }
            return;
        }
        let path = Path::new(url.strip_prefix("file://").unwrap_or(url));
        if url.is_empty() || url.contains("://") && !url.starts_with("file://") {
            if !url.is_empty() {
                self.fault("image", format!("{} is neither a path nor a file, http or https URL", redact_url(url)));
            }
            return;
        }
        match std::fs::metadata(path) {
            Err(error) => self.fault("image", format!("cannot open {} on the deploying proxy: {error}", path.display())),
            Ok(file) if !file.is_file() => self.fault("image", format!("{} is no file", path.display())),
            Ok(_) => {
                let beside = |ending: &str| path.with_added_extension(ending).is_file();
                if spec.image.sha256.is_none() && !beside("sha256") && !beside("manifest") {
                    self.fault("image", "nothing says what the image must be: give its SHA-256, or put a .sha256 file beside it");
                }
            }
        }
    }
}

/// The one thing that a uuid or name means.
fn one<'a, T>(all: &'a [T], wanted: &str, names: impl Fn(&T) -> [&String; 2]) -> Result<&'a T, &'static str> {
    if let Some(found) = all.iter().find(|item| names(item)[0] == wanted) {
        return Ok(found);
    }
    let mut found = all.iter().filter(|item| names(item)[1] == wanted);
    match (found.next(), found.next()) {
        (Some(found), None) => Ok(found),
        (None, _) => Err("there is no"),
        (Some(_), Some(_)) => Err("there are several of the name, give the uuid of the"),
    }
}

/// The static address that a deployed proxy has or will have.
fn promised_address(record: &DeploymentRecord) -> Option<IpAddr> {
    match &record.wanted.as_ref().unwrap_or(&record.spec).address {
        AddressSpec::Static { network, .. } => Some(network.address),
        AddressSpec::Dhcp => engine::host_address(record.url.as_deref()?),
    }
}

/// A licence's id as a person reads it.
pub(super) fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

fn lines(
    spec: &DeploySpec,
    pool: Option<&PoolOffer>,
    sr: Option<&SrOffer>,
    network: Option<&NetworkOffer>,
    license: Option<&api::License>,
    required: bool,
) -> Vec<(String, String)> {
    let mut lines = Vec::new();
    let mut line = |label: &str, value: String| lines.push((label.to_owned(), value));
    line("Name", spec.name.clone());
    let pool_name = pool.map_or(spec.pool.as_str(), |pool| &pool.name);
    line("Site", spec.site.clone().unwrap_or_else(|| pool_name.to_owned()));
    line("VM", format!("“{}” in the pool {pool_name}, tagged {}", spec.name, TAGS.join(" and ")));
    line("Resources", format!("{} vCPUs, {} of memory, starts with its host", spec.vcpus, format_bytes(spec.memory)));
    if let Some(sr) = sr {
        let kind = if sr.thin { "thin: takes what is used" } else { "thick: takes all of it" };
        line(
            "Disk",
            format!("{} on {} ({}, {kind}), {} free there", format_bytes(spec.disk), sr.name, sr.kind, format_bytes(sr.free)),
        );
    }
    if let Some(network) = network {
        line("Network", network.name.clone());
    }
    line(
        "Address",
        match &spec.address {
            AddressSpec::Dhcp => format!("from the network (DHCP), port {}", spec.port),
            AddressSpec::Static { network, gateway, dns } => {
                let gateway = gateway.map_or_else(|| "no gateway".to_owned(), |gateway| format!("gateway {gateway}"));
                let dns: Vec<String> = dns.iter().map(ToString::to_string).collect();
                let dns = if dns.is_empty() { "no DNS".to_owned() } else { format!("DNS {}", dns.join(", ")) };
                format!("{network}, {gateway}, {dns}, port {}", spec.port)
            }
        },
    );
    if let Some(proxy) = &spec.http_proxy {
        line("HTTP proxy", redact_url(proxy));
    }
    let licence = match (required, license) {
        (false, _) => "not needed".to_owned(),
        (true, None) => "none".to_owned(),
        (true, Some(license)) => format!("{} of {}", short(&license.id), license.holder),
    };
    line("Licence", licence);
    let login = match &spec.login {
        None => "off",
        Some(Login::Password { .. }) => "technician, by password",
        Some(Login::Key { .. }) => "technician, by SSH key",
    };
    line("Login", login.to_owned());
    line("Image", redact_url(&spec.image.url));
    if let Some(sum) = &spec.image.sha256 {
        line("Checksum", sum.to_ascii_lowercase());
    }
    line("Token", "made new; handed over through the pool's XenStore, removed there once read".to_owned());
    lines
}
