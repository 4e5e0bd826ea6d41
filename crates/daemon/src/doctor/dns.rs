//! Whether the name of a host resolves.

use std::net::{IpAddr, SocketAddr};

use super::{About, Finding, Kind, Lines};

/// Checks the name of what is called `object`, a `what`; gives its addresses.
pub async fn check(lines: &Lines, object: &str, what: &str, host: &str) -> Option<Vec<IpAddr>> {
    let servers = name_servers(&tokio::fs::read_to_string("/etc/resolv.conf").await.unwrap_or_default());
    let asked = if servers.is_empty() { "no DNS server is configured".into() } else { format!("asked: {}", servers.join(", ")) };
    let fix =
        format!("check the DNS servers in /etc/resolv.conf of this proxy ({asked}), or the name in the address of the {what}");
    let about = About::new(Kind::Dns, object, format!("resolving {host}"), fix.clone());
    lines.check(about, async { resolve(host, &asked, fix).await }).await
}

async fn resolve(host: &str, asked: &str, fix: String) -> (Finding, Option<Vec<IpAddr>>) {
    if let Ok(address) = host.parse::<IpAddr>() {
        return (Finding::pass(format!("{address} is an address: there is no name to resolve")), Some(vec![address]));
    }
    let found = tokio::net::lookup_host((host, 0)).await.map(|found| found.map(|found: SocketAddr| found.ip()));
    match found.map(|found| distinct(found.collect())) {
        Ok(found) if !found.is_empty() => {
            let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
            (Finding::pass(format!("{host} is {}", shown.join(", "))), Some(found))
        }
        Ok(_) => (Finding::fail(format!("{host} has no address ({asked})"), fix), None),
        Err(error) => (Finding::fail(format!("{host} does not resolve: {error} ({asked})"), fix), None),
    }
}

fn distinct(mut found: Vec<IpAddr>) -> Vec<IpAddr> {
    let mut seen = std::collections::BTreeSet::new();
    found.retain(|address| seen.insert(*address));
    found
}

/// The servers that the system's resolver asks.
pub(crate) fn name_servers(resolv_conf: &str) -> Vec<String> {
    let lines = resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    lines.map(|server| server.trim().to_owned()).filter(|server| !server.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::Verdict;

    #[tokio::test]
    async fn an_address_needs_no_name_and_a_name_that_is_none_is_told() {
        for literal in ["10.0.0.1", "fd00::1"] {
            let (finding, found) = resolve(literal, "", String::new()).await;
            assert_eq!((finding.verdict, found), (Verdict::Pass, Some(vec![literal.parse().unwrap()])));
            assert!(finding.measured.contains("is an address"), "{}", finding.measured);
        }
        let (finding, found) = resolve("not a name", "asked: 10.0.0.53", "look".into()).await;
        assert_eq!((finding.verdict, found, finding.fix.as_deref()), (Verdict::Fail, None, Some("look")));
        assert!(finding.measured.starts_with("not a name does not resolve: "), "{}", finding.measured);
        assert!(finding.measured.ends_with("(asked: 10.0.0.53)"), "{}", finding.measured);
    }

    #[test]
    fn the_servers_asked_are_those_of_the_file() {
        let text = "# x\nsearch a.example\nnameserver 10.0.0.53\n nameserver\tfd00::53 \nnameserver\noptions edns0\n";
        assert_eq!(name_servers(text), ["10.0.0.53", "fd00::53"]);
    }
}
