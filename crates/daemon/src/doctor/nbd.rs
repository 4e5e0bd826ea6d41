//! Whether disks can be read over NBD: a network is meant for it, each host has an address on it, and its server answers
//! there with the pool's certificate.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use ::nbd::{Endpoint, ExportName, NbdError, Tls};
use futures::future::join_all;
use serde_json::json;
use xapi::{Host, NbdInfo, Network, Pif, Record, Ref};

use super::pool::Visit;
use super::{About, Finding, Kind, Lines, route};
use crate::fault;

/// The purpose of a network over which hosts serve NBD with TLS (xapi-streams.md §3.1).
const SECURE: &str = "nbd";
/// The same in clear.
const INSECURE: &str = "insecure_nbd";
/// Where hosts listen, unless they say otherwise.
const PORT: u16 = 10809;
/// Disks that are asked where they are served: each knows the hosts that see its storage.
const ASKED: usize = 8;
/// What to look after where an NBD server should listen.
const SERVICE: &str = "that the NBD server runs on that host (systemctl status xapi-nbd)";

/// What to do when the toolstack does not answer.
const BUSY: &str = "check the load of the pool's master (xe task-list); the toolstack is slow or busy";

/// What the pool tells of its NBD servers, by address.
type Told = BTreeMap<IpAddr, NbdInfo>;

/// Checks networks, then every host.
pub async fn check(lines: &Lines, visit: &Visit) {
    let about = About::new(Kind::Nbd, visit.object(), "reading its networks", BUSY);
    let Some((networks, pifs)) = lines.check(about, read(visit)).await else { return };
    let about = About::new(Kind::Nbd, visit.object(), "asking where its disks are served", BUSY);
    let told = lines.check(about, told(visit)).await.unwrap_or_default();
    join_all(visit.hosts.iter().map(|host| check_host(lines, visit, host, &networks, &pifs, &told))).await;
}

type Wires = (Vec<Record<Network>>, Vec<Record<Pif>>);

async fn read(visit: &Visit) -> (Finding, Option<Wires>) {
    match tokio::try_join!(visit.client.all::<Network>(), visit.client.all::<Pif>()) {
        Ok((networks, pifs)) => {
            let (finding, usable) = judge(&networks, &pifs);
            let meant = networks.into_iter().filter(|network| has(network, SECURE)).collect();
            (finding, usable.then_some((meant, pifs)))
        }
        Err(error) => {
            let words = format!("its networks cannot be read: {}", fault::chain(&error));
            (Finding::fail(words, "check that the user of the pool may read everything (role pool-admin)"), None)
        }
    }
}

fn has(network: &Network, purpose: &str) -> bool {
    network.purpose.iter().any(|found| found == purpose)
}

fn names(networks: &[&Record<Network>]) -> String {
    networks.iter().map(|network| network.name_label.as_str()).collect::<Vec<_>>().join(", ")
}

/// What the purposes of the networks come to, and whether hosts can serve NBD by them.
fn judge(networks: &[Record<Network>], pifs: &[Record<Pif>]) -> (Finding, bool) {
    let meant = |purpose| networks.iter().filter(|network| has(network, purpose)).collect::<Vec<_>>();
    let (secure, insecure) = (meant(SECURE), meant(INSECURE));
    match (secure.is_empty(), insecure.is_empty()) {
        (false, true) => (Finding::pass(format!("disks are offered over NBD with TLS on {}", names(&secure))), true),
        (false, false) => {
            let words = format!(
                "{} has the purpose nbd and {} insecure_nbd: a pool with both refuses every NBD connection",
                names(&secure),
                names(&insecure)
            );
            let fix = insecure.iter().map(|network| parameter("remove", network, INSECURE)).collect::<Vec<_>>().join("; ");
            (Finding::fail(words, fix), false)
        }
        (true, false) => {
            let words = format!(
                "{} has the purpose insecure_nbd: disks would travel in clear, which this proxy does not do; they are read as \
                 streams instead, slower and without changed blocks",
                names(&insecure)
            );
            let fix = insecure
                .iter()
                .flat_map(|network| [parameter("remove", network, INSECURE), parameter("add", network, SECURE)])
                .collect::<Vec<_>>()
                .join("; ");
            (Finding::warning(words, fix), false)
        }
        (true, true) => {
            let management = pifs.iter().find(|pif| pif.management).map(|pif| &pif.network);
            let network = networks.iter().find(|network| Some(&network.reference) == management).or(networks.first());
            let fix =
                network.map_or_else(|| "give a network of the pool the purpose nbd".into(), |n| parameter("add", n, SECURE));
            let words = format!(
                "none of its {} networks has the purpose nbd: disks are read as streams, slower and without changed blocks",
                networks.len()
            );
            (Finding::warning(words, fix), false)
        }
    }
}

fn parameter(what: &str, network: &Record<Network>, purpose: &str) -> String {
    format!("xe network-param-{what} uuid={} param-name=purpose param-key={purpose}", network.uuid)
}

/// Asks where some of the disks are served. A pool without disks tells nothing, and no matter; nor does a disk that has just
/// gone, as long as others are told of.
async fn told(visit: &Visit) -> (Option<Finding>, Option<Told>) {
    let failed = |error: &xapi::Error| {
        let words = format!("it does not tell where its disks are served: {}", fault::chain(error));
        let fix = "look into the log of the pool's master: /var/log/xensource.log; backups read these disks as streams or fail";
        Some(Finding::warning(words, fix))
    };
    let disks: Vec<Ref> = match visit.client.call("VDI.get_all", json!([])).await {
        Ok(disks) => disks,
        Err(error) => return (failed(&error), None),
    };
    // From the whole list: those of one storage tend to stand together.
    let step = (disks.len() / ASKED).max(1);
    let asked = disks.iter().step_by(step).take(ASKED).map(|disk| visit.client.nbd_info(disk));
    let (mut found, mut failure) = (Told::new(), None);
    for answer in join_all(asked).await {
        match answer {
            Ok(infos) => found.extend(infos.into_iter().filter_map(|info| Some((info.address.parse().ok()?, info)))),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    let finding = failure.filter(|_| found.is_empty()).and_then(|error| failed(&error));
    (finding, Some(found))
}

async fn check_host(
    lines: &Lines,
    visit: &Visit,
    host: &Record<Host>,
    networks: &[Record<Network>],
    pifs: &[Record<Pif>],
    told: &Told,
) {
    let object = visit.host_object(host);
    let addresses = addresses(host, networks, pifs);
    if addresses.is_empty() {
        let names = names(&networks.iter().collect::<Vec<_>>());
        let about = About::new(Kind::Nbd, &object, "looking for its addresses", "");
        let words = format!("it has no address on {names}, which is meant for NBD: disks on its own storage are read as streams");
        let fix = "give its interface on that network an address (xe pif-reconfigure-ip), or give the purpose nbd to a network \
                   where all hosts have one";
        lines.check(about, async { (Finding::fail(words, fix), Some(())) }).await;
        return;
    }
    join_all(addresses.into_iter().map(|address| {
        let object = &object;
        async move {
            let known = told.get(&address);
            let port = known.or_else(|| told.values().next()).map_or(PORT, |info| info.port);
            if route::check(lines, object, &[address], port, SERVICE).await.is_none() {
                return;
            }
            let certificate = match known {
                Some(info) => Some(info.cert.clone()),
                None => certificate(lines, visit, host).await,
            };
            if let Some(certificate) = certificate {
                handshake(lines, object, SocketAddr::new(address, port), &certificate).await;
            }
        }
    }))
    .await;
}

/// Addresses of a host on networks that are meant for NBD.
fn addresses(host: &Record<Host>, networks: &[Record<Network>], pifs: &[Record<Pif>]) -> Vec<IpAddr> {
    let on_it = |pif: &&Record<Pif>| {
        pif.host == host.reference && pif.currently_attached && networks.iter().any(|network| network.reference == pif.network)
    };
    let read = |text: &str| text.split('/').next().and_then(|text| text.parse::<IpAddr>().ok());
    let found = pifs.iter().filter(on_it).filter_map(|pif| read(&pif.ip).or_else(|| pif.ipv6.iter().find_map(|ip| read(ip))));
    found.collect()
}

/// The certificate of a host of whose NBD server no disk has told.
async fn certificate(lines: &Lines, visit: &Visit, host: &Record<Host>) -> Option<String> {
    let about = About::new(Kind::Nbd, visit.host_object(host), "asking for its certificate", BUSY);
    let work = async {
        match visit.client.call::<String>("host.get_server_certificate", json!([host.reference])).await {
            Ok(certificate) => (None, Some(certificate)),
            Err(error) => {
                let words = format!("its certificate is not told, so its NBD server is not tried: {}", fault::chain(&error));
                let fix = "look into the log of the pool's master: /var/log/xensource.log";
                (Some(Finding::warning(words, fix)), None)
            }
        }
    };
    lines.check(about, work).await
}

async fn handshake(lines: &Lines, object: &str, shown: SocketAddr, certificate: &str) {
    let about = About::new(
        Kind::Nbd,
        object,
        format!("TLS handshake with the NBD server at {shown}"),
        format!("check {SERVICE}; restart it: systemctl restart xapi-nbd"),
    );
    let work = async {
        let tls = match Tls::required(certificate) {
            Ok(tls) => tls,
            Err(error) => {
                let words = format!(
                    "the certificate that the pool tells of the NBD server at {shown} is no good: {}",
                    fault::chain(&error)
                );
                return (Finding::warning(words, "look at it: xe host-get-server-certificate uuid=… (xe host-list)"), None);
            }
        };
        let begun = Instant::now();
        let export_name = ExportName::new("").unwrap_or_else(|_| unreachable!("an empty name is short enough"));
        let endpoint = Endpoint { address: shown.ip().to_string(), port: shown.port(), export_name, tls };
        match ::nbd::probe(&endpoint).await {
            Ok(_) => {
                let words = format!(
                    "NBD with TLS at {shown}, ready after {} ms; the certificate is the pool's",
                    begun.elapsed().as_millis()
                );
                (Finding::pass(words), Some(()))
            }
            Err(error) => (failed(&error), None),
        }
    };
    lines.check(about, work).await;
}

fn failed(error: &NbdError) -> Finding {
    let fix = match error {
        NbdError::Tls { .. } => {
            "its certificate is not the one the pool tells: restart its NBD server (systemctl restart xapi-nbd), which takes up a \
             renewed certificate only then"
        }
        NbdError::TlsRefused { .. } => "take the purpose insecure_nbd from all networks of the pool and restart its NBD server",
        NbdError::NotNbd { .. } => "something else listens on that port: check what (ss -ltnp on the host)",
        _ => "restart its NBD server (systemctl restart xapi-nbd); it serves sixteen connections at most, so it may be full",
    };
    Finding::fail(fault::chain(error), fix)
}

#[cfg(test)]
mod tests {
    use api::Verdict;
    use serde_json::Value;

    use super::*;

    fn network(name: &str, purpose: &[&str]) -> Record<Network> {
        Record::read(name.into(), json!({ "uuid": format!("u-{name}"), "name_label": name, "purpose": purpose })).unwrap()
    }

    fn pif(network: &str, host: &str, more: &Value) -> Record<Pif> {
        let mut raw = json!({ "network": network, "host": host, "currently_attached": true, "IP": "10.0.0.1" });
        raw.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Record::read(Ref::null(), raw).unwrap()
    }

    #[test]
    fn purposes_are_judged_and_the_fix_is_a_command() {
        let said = |networks: &[Record<Network>]| {
            let (finding, usable) = judge(networks, &[pif("management", "h", &json!({ "management": true }))]);
            (finding.verdict, usable, finding.fix.unwrap_or_default())
        };
        assert_eq!(said(&[network("a", &[]), network("b", &["nbd"])]), (Verdict::Pass, true, String::new()));
        let fix = "xe network-param-add uuid=u-management param-name=purpose param-key=nbd";
        assert_eq!(said(&[network("a", &[]), network("management", &["x"])]), (Verdict::Warning, false, fix.into()));
        let fix = "xe network-param-remove uuid=u-b param-name=purpose param-key=insecure_nbd";
        assert_eq!(said(&[network("a", &["nbd"]), network("b", &["insecure_nbd"])]), (Verdict::Fail, false, fix.into()));
        let (verdict, usable, fix) = said(&[network("b", &["insecure_nbd"])]);
        assert_eq!((verdict, usable), (Verdict::Warning, false));
        assert!(fix.contains("param-remove") && fix.ends_with("param-key=nbd"), "{fix}");
    }

    #[test]
    fn only_plugged_interfaces_with_an_address_on_such_a_network_count() {
        let host = Record::read(Ref::from("h"), json!({})).unwrap();
        let found = |pifs: &[Record<Pif>]| addresses(&host, &[network("n", &["nbd"])], pifs);
        assert_eq!(found(&[pif("n", "h", &json!({}))]), ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(found(&[pif("n", "h", &json!({ "IP": "", "IPv6": ["fd00::1/64"] }))]), ["fd00::1".parse::<IpAddr>().unwrap()]);
        for (network, host, more) in [
            ("other", "h", json!({})),
            ("n", "another", json!({})),
            ("n", "h", json!({ "IP": "" })),
            ("n", "h", json!({ "currently_attached": false })),
        ] {
            assert!(found(&[pif(network, host, &more)]).is_empty(), "{network} {host} {more}");
        }
    }
}
