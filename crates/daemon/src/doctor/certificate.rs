//! This proxy's own certificate: what its clients see.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use tls::Facts;

use super::{About, Finding, Kind, Lines};
use crate::daemon::Daemon;

/// Days before its end from which on a certificate is looked at.
const SOON: i64 = 30;
const DAY: i64 = 86_400;
/// What to do about a certificate.
const RENEW: &str =
    "show another one: backhaul proxy certificate renew; other consoles pin it anew after that: backhaul proxy add";

/// Reads the certificate that connections see.
pub async fn check(lines: Lines, daemon: Arc<Daemon>) {
    let about = About::new(Kind::Certificate, "this proxy", "reading its certificate", RENEW);
    let work = async {
        let host = crate::config::host_name();
        let names = Names { host: &host, address: daemon.config.listen.ip() };
        let finding = match daemon.certificates.facts() {
            Ok(facts) => judge(&facts, daemon.now() / 1000, &names),
            Err(error) => Finding::fail(crate::fault::chain(&error), RENEW),
        };
        (finding, Some(()))
    };
    lines.check(about, work).await;
}

/// What this proxy is called.
struct Names<'a> {
    host: &'a str,
    address: IpAddr,
}

impl Names<'_> {
    fn covered_by(&self, facts: &Facts) -> bool {
        facts.covers(self.host) || (!self.address.is_unspecified() && facts.covers(&self.address.to_string()))
    }
}

fn judge(facts: &Facts, now: i64, names: &Names<'_>) -> Finding {
    let date = |second| Timestamp::from_second(second).map_or_else(|_| "?".to_owned(), |at| at.strftime("%Y-%m-%d").to_string());
    let days = |seconds: i64| seconds / DAY;
    if now > facts.not_after {
        let words = format!("it expired on {}, {} days ago", date(facts.not_after), days(now - facts.not_after));
        return Finding::fail(words, RENEW);
    }
    if now < facts.not_before {
        let words = format!("it counts only from {}, in {} days", date(facts.not_before), days(facts.not_before - now));
        return Finding::fail(words, format!("check this proxy's clock; if it is right, {RENEW}"));
    }
    let kind = if facts.self_signed { "self-signed, known by its fingerprint" } else { "issued by another" };
    let words = format!("valid until {} ({kind}), for {}", date(facts.not_after), facts.names.join(", "));
    let left = days(facts.not_after - now);
    if left < SOON {
        return Finding::warning(format!("{words}: {left} days left"), RENEW);
    }
    // Whoever pins it asks for no name; whoever relies on its issuer does.
    if !facts.self_signed && !names.covered_by(facts) {
        let words = format!("{words}, and not for {}", names.host);
        return Finding::warning(
            words,
            format!("let it be issued for {} too, unless it is reached by one of those names", names.host),
        );
    }
    Finding::pass(words)
}

#[cfg(test)]
mod tests {
    use api::Verdict;

    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn judged(not_before: i64, not_after: i64, names: &[&str], self_signed: bool) -> Finding {
        let facts = Facts { not_before, not_after, names: names.iter().map(|name| (*name).to_owned()).collect(), self_signed };
        judge(&facts, NOW, &Names { host: "p1", address: "0.0.0.0".parse().unwrap() })
    }

    #[test]
    fn dates_and_names_are_judged() {
        let far = NOW + 400 * DAY;
        assert_eq!(judged(0, far, &["other"], true).verdict, Verdict::Pass, "a pinned one may be called anything");
        assert_eq!(judged(0, far, &["p1"], false).verdict, Verdict::Pass);
        let other = judged(0, far, &["other"], false);
        assert_eq!(other.verdict, Verdict::Warning);
        assert!(other.measured.ends_with("and not for p1"), "{}", other.measured);
        let soon = judged(0, NOW + 10 * DAY, &["p1"], true);
        assert_eq!(soon.verdict, Verdict::Warning);
        assert!(soon.measured.ends_with("10 days left"), "{}", soon.measured);
        let over = judged(0, NOW - 3 * DAY, &["p1"], true);
        assert_eq!((over.verdict, over.measured.as_str()), (Verdict::Fail, "it expired on 2027-01-12, 3 days ago"));
        assert_eq!(judged(NOW + DAY, far, &["p1"], true).verdict, Verdict::Fail);
    }
}
