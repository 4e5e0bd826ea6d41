//! Whether the clocks agree: that of each host with this proxy's, this proxy's with the console's.
//!
//! A host tells its time in whole seconds, somewhere between the question and the answer. What is judged is the least
//! difference that this leaves possible, so that a slow answer is never taken for a wrong clock.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde_json::json;

use super::pool::Visit;
use super::{About, Finding, Kind, Lines};

/// Seconds from which on a host's clock is looked at, and from which on it is wrong: sessions, certificates and the order of
/// snapshots go by it.
const HOST: (i64, i64) = (5, 60);
/// The same of the console's, whose question travels for an unknown time; it only shows times.
const CONSOLE: (i64, i64) = (30, 300);

/// Asks each host of a pool.
pub async fn check_hosts(lines: &Lines, visit: &Visit) {
    futures::future::join_all(visit.hosts.iter().map(|host| async move {
        let fix =
            format!("start time synchronisation on host {}: systemctl enable --now chronyd; chronyc makestep", host.name_label);
        let about = About::new(
            Kind::Clock,
            visit.host_object(host),
            "asking for the host's time",
            "check the toolstack of the host (xe-toolstack-restart)",
        );
        let work = async {
            let before = visit.daemon.now();
            let answer = visit.client.call::<String>("host.get_servertime", json!([host.reference])).await;
            let after = visit.daemon.now();
            let finding = match answer {
                Ok(text) => match read(&text) {
                    Some(shown) => judge(difference(shown, before, after), HOST, "the host's clock", "this proxy's", fix),
                    None => Finding::warning(format!("the host's time cannot be read: {text:?}"), "update the host"),
                },
                Err(error) => {
                    let words = format!("the host does not tell its time: {}", crate::fault::chain(&error));
                    Finding::fail(words, "check that the host is up and its toolstack runs (xe-toolstack-restart)")
                }
            };
            (finding, Some(()))
        };
        lines.check(about, work).await;
    }))
    .await;
}

/// Compares with the console that asks.
pub async fn check_console(lines: Lines, told: Option<i64>, asked_at: i64) {
    let Some(told) = told else { return };
    let about = About::new(Kind::Clock, "console", "comparing the clocks", "");
    let fix = "start time synchronisation on this proxy (timedatectl set-ntp true) and on the console's machine; the schedules \
               of jobs go by this proxy's clock";
    let gap = Gap { milliseconds: told - asked_at, uncertain: 0 };
    lines.check(about, async { (judge(gap, CONSOLE, "the console's clock", "this proxy's", fix.into()), Some(())) }).await;
}

/// How far another clock is ahead of ours, milliseconds; negative: behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Gap {
    /// Its middle.
    milliseconds: i64,
    /// Either way.
    uncertain: i64,
}

impl Gap {
    /// The least it can be, without its sign.
    fn least(self) -> i64 {
        self.milliseconds.saturating_abs().saturating_sub(self.uncertain).max(0)
    }
}

/// Of a clock that showed a whole second while ours went from `before` to `after`.
fn difference(shown: i64, before: i64, after: i64) -> Gap {
    let (least, most) = (shown - after, shown + 999 - before);
    Gap { milliseconds: (least + most) / 2, uncertain: (most - least) / 2 }
}

/// The time a host tells, `20261128T17:39:25Z`, milliseconds since the Unix epoch.
fn read(text: &str) -> Option<i64> {
    let text = text.trim().trim_end_matches('Z');
    let read = ["%Y%m%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S"].iter().find_map(|form| DateTime::strptime(form, text).ok())?;
    read.to_zoned(TimeZone::UTC).ok().map(|time| Timestamp::as_millisecond(time.timestamp()))
}

fn judge(gap: Gap, (look, wrong): (i64, i64), whose: &str, ours: &str, fix: String) -> Finding {
    let seconds = gap.milliseconds.unsigned_abs() as f64 / 1000.0;
    let way = if gap.milliseconds < 0 { "behind" } else { "ahead of" };
    let exact = if gap.uncertain > 0 { format!(" (±{:.1} s)", gap.uncertain as f64 / 1000.0) } else { String::new() };
    let measured = format!("{whose} is {seconds:.1} s {way} {ours}{exact}");
    match gap.least() / 1000 {
        least if least >= wrong => Finding::fail(measured, fix),
        least if least >= look => Finding::warning(measured, fix),
        _ => Finding::pass(measured),
    }
}

#[cfg(test)]
mod tests {
    use api::Verdict;

    use super::*;

    #[test]
    fn the_time_of_a_host_is_read() {
        assert_eq!(read("19700102T00:00:01Z"), Some(86_401_000));
        assert_eq!(read("1970-01-02T00:00:01Z"), Some(86_401_000));
        assert_eq!(read("yesterday"), None);
    }

    #[test]
    fn a_slow_answer_is_no_wrong_clock_and_a_wrong_clock_is_one_however_slow() {
        let verdict = |shown, before, after| judge(difference(shown, before, after), HOST, "a", "b", "do".into()).verdict;
        assert_eq!(verdict(10_000, 10_000, 10_020), Verdict::Pass);
        assert_eq!(verdict(10_000, 10_000, 90_000), Verdict::Pass, "told at once, heard late");
        assert_eq!(verdict(90_000, 10_000, 90_000), Verdict::Pass, "told late");
        assert_eq!(verdict(20_000, 10_000, 10_020), Verdict::Warning);
        assert_eq!(verdict(100_000, 10_000, 10_020), Verdict::Fail);
        assert_eq!(verdict(100_000, 190_000, 193_000), Verdict::Fail);
    }

    #[test]
    fn which_way_and_how_far_is_told() {
        let finding = judge(difference(100_000, 190_000, 190_400), HOST, "the host's clock", "this proxy's", "do".into());
        assert_eq!(finding.measured, "the host's clock is 89.7 s behind this proxy's (±0.7 s)");
        assert_eq!(finding.fix.as_deref(), Some("do"));
    }
}
