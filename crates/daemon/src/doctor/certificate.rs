//! This proxy's own certificate: what its clients see.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use tls::{Facts, Fingerprint, SelfSigned};

use super::{About, Finding, Kind, Lines};
use crate::daemon::{Daemon, certificate_path};

/// Days before its end from which on a certificate is looked at.
const SOON: i64 = 30;
const DAY: i64 = 86_400;
/// What to do about a certificate.
const RENEW: &str = "show another certificate (certificate.renew; backhaul proxy certificate), or replace the file and restart \
                     backhauld; consoles pin it anew after that: backhaul proxy add";

/// Reads the file and compares it with what connections see.
pub async fn check(lines: Lines, daemon: Arc<Daemon>) {
    let path = certificate_path(&daemon.config);
    let about =
        About::new(Kind::Certificate, "this proxy", format!("reading {}", path.display()), "check the disk that the file is on");
    let work = async {
        let finding = match tokio::fs::read_to_string(&path).await {
            Ok(pem) => {
                let host = crate::config::host_name();
                let names = Names { host: &host, address: daemon.config.listen.ip() };
                read(pem, daemon.fingerprint, daemon.now() / 1000, &names)
            }
            Err(error) => Finding::fail(format!("{} cannot be read: {error}", path.display()), RENEW),
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

fn read(pem: String, shown: Fingerprint, now: i64, names: &Names<'_>) -> Finding {
    let chain = SelfSigned { certificate_pem: pem, key_pem: String::new() }.certificates();
    let leaf = match chain.as_ref().map(|chain| chain.first()) {
        Ok(Some(leaf)) => leaf,
        Ok(None) => return Finding::fail("its file holds no certificate", RENEW),
        Err(error) => return Finding::fail(crate::fault::chain(error), RENEW),
    };
    match Facts::of(leaf) {
        Ok(facts) => judge(&facts, Fingerprint::of(leaf), shown, now, names),
        Err(error) => Finding::fail(crate::fault::chain(&error), RENEW),
    }
}

fn judge(facts: &Facts, stored: Fingerprint, shown: Fingerprint, now: i64, names: &Names<'_>) -> Finding {
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
    if stored != shown {
        let words = format!("the file holds another certificate ({stored}) than connections see ({shown}); the file's: {words}");
        return Finding::warning(words, "restart backhauld to show the one in the file");
    }
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
        let fingerprint = "AB".repeat(32).parse().unwrap();
        judge(&facts, fingerprint, fingerprint, NOW, &Names { host: "p1", address: "0.0.0.0".parse().unwrap() })
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

    #[test]
    fn a_file_that_was_changed_since_is_told() {
        let made = SelfSigned::generate(&["x"]).unwrap();
        let names = Names { host: "x", address: "127.0.0.1".parse().unwrap() };
        let same = read(made.certificate_pem.clone(), made.fingerprint().unwrap(), NOW, &names);
        assert_eq!(same.verdict, Verdict::Pass, "{}", same.measured);
        let other = read(made.certificate_pem.clone(), "AB".repeat(32).parse().unwrap(), NOW, &names);
        assert_eq!(other.verdict, Verdict::Warning);
        assert_eq!(read("nothing".into(), made.fingerprint().unwrap(), NOW, &names).verdict, Verdict::Fail);
    }
}
