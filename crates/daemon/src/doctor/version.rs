//! Whether versions fit together: this proxy's with the console's, and what the hosts of a pool run.

use std::collections::BTreeMap;

use xapi::{Host, Record};

use super::pool::Visit;
use super::{About, Finding, Kind, Lines};

/// The oldest release of a host that this proxy is made for: the first whose archives have the checksums of today.
const OLDEST: [u32; 2] = [8, 1];
/// The first that serves NBD and tracks changes.
const OLDEST_NBD: [u32; 2] = [7, 3];

/// This proxy and the console that asks.
pub async fn check_console(lines: Lines, console: Option<String>) {
    let about = About::new(Kind::Version, "this proxy", "comparing versions", "");
    lines.check(about, async { (compare(env!("CARGO_PKG_VERSION"), console.as_deref()), Some(())) }).await;
}

/// The first two numbers of a version.
fn release(version: &str) -> Option<[u32; 2]> {
    let mut numbers = version.split(['.', '-', '+']).map(str::parse);
    Some([numbers.next()?.ok()?, numbers.next()?.ok()?])
}

fn compare(own: &str, console: Option<&str>) -> Finding {
    let Some(console) = console else { return Finding::pass(format!("backhauld {own}")) };
    let words = format!("backhauld {own}, console {console}");
    match (release(own), release(console)) {
        (Some(own), Some(console)) if own < console => {
            Finding::warning(format!("{words}: the proxy is older"), "upgrade this proxy: backhaul proxy upgrade")
        }
        (Some(own), Some(console)) if own > console => {
            Finding::warning(format!("{words}: the console is older"), "install the console of the proxies' version")
        }
        (Some(_), Some(_)) => Finding::pass(words),
        _ => Finding::warning(format!("{words}: these cannot be compared"), "install the console of the proxies' version"),
    }
}

/// What the hosts of a pool run.
pub async fn check_pool(lines: &Lines, visit: &Visit) {
    // All of them are down, which has its own lines.
    if visit.hosts.is_empty() {
        return;
    }
    let about = About::new(Kind::Version, visit.object(), "comparing versions", "");
    lines.check(about, async { (judge(&visit.hosts), Some(())) }).await;
}

fn judge(hosts: &[Record<Host>]) -> Finding {
    let mut found: BTreeMap<(String, String), Vec<&str>> = BTreeMap::new();
    for host in hosts {
        let of = |key: &str| host.software_version.get(key).cloned();
        let version = of("product_version_text_short").or_else(|| of("product_version")).unwrap_or_default();
        let version = if release(&version).is_some() { version } else { of("product_version").unwrap_or(version) };
        let brand = of("product_brand").unwrap_or_else(|| "unknown product".into());
        found.entry((brand, version)).or_default().push(&host.name_label);
    }
    let shown = |((brand, version), hosts): (&(String, String), &Vec<&str>)| {
        let version = if version.is_empty() { "of unknown version" } else { version };
        format!("{brand} {version} on {}", hosts.join(", "))
    };
    let words = found.iter().map(shown).collect::<Vec<_>>().join("; ");
    let oldest = found.keys().map(|(_, version)| release(version)).min().flatten();
    match oldest {
        None => Finding::warning(words, "which release it is cannot be told; backups may work or not: try a restore"),
        Some(oldest) if oldest < OLDEST_NBD => {
            Finding::fail(format!("{words}: too old, it has neither NBD nor changed blocks"), "upgrade the pool to XCP-ng 8.3")
        }
        Some(oldest) if oldest < OLDEST => {
            Finding::warning(format!("{words}: older than what this proxy is made for (8.1)"), "upgrade the pool to XCP-ng 8.3")
        }
        Some(_) if found.len() > 1 => {
            Finding::warning(format!("{words}: its hosts differ"), "bring the rolling upgrade of the pool to its end")
        }
        Some(_) => Finding::pass(words),
    }
}

#[cfg(test)]
mod tests {
    use api::Verdict;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_older_one_is_named() {
        assert_eq!(compare("0.2.1", None).measured, "backhauld 0.2.1");
        assert_eq!(compare("0.2.1", Some("0.2.7")).verdict, Verdict::Pass);
        assert!(compare("0.2.1", Some("0.3.0")).measured.ends_with("the proxy is older"));
        assert!(compare("1.0.0", Some("0.3.0")).measured.ends_with("the console is older"));
        assert_eq!(compare("1.0.0", Some("night")).verdict, Verdict::Warning);
    }

    #[test]
    fn old_and_mixed_hosts_are_named() {
        let host = |name: &str, version: &str| {
            let raw =
                json!({ "name_label": name, "software_version": { "product_brand": "XCP-ng", "product_version": version } });
            Record::read(name.into(), raw).unwrap()
        };
        let said = |versions: &[&str]| {
            let hosts: Vec<_> = versions.iter().enumerate().map(|(index, version)| host(&format!("h{index}"), version)).collect();
            judge(&hosts)
        };
        let good = said(&["8.3.0", "8.3.0"]);
        assert_eq!((good.verdict, good.measured.as_str()), (Verdict::Pass, "XCP-ng 8.3.0 on h0, h1"));
        let mixed = said(&["8.3.0", "8.2.1"]);
        assert_eq!(mixed.verdict, Verdict::Warning);
        assert_eq!(mixed.measured, "XCP-ng 8.2.1 on h1; XCP-ng 8.3.0 on h0: its hosts differ");
        assert_eq!(said(&["7.6.0"]).verdict, Verdict::Warning);
        assert_eq!(said(&["7.2.0"]).verdict, Verdict::Fail);
        assert_eq!(said(&[""]).verdict, Verdict::Warning);
    }
}
