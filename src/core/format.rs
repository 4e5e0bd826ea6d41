//! How times, spans and shares are written. Amounts are written by [`api::format_bytes`].

use jiff::{Timestamp, tz::TimeZone};

/// A moment on a person's clock: `04:50` today, `Mon 04:50` within six days, `2026-11-23 04:50` otherwise.
pub fn moment(at: i64, now: i64, zone: &TimeZone) -> String {
    let (Ok(at), Ok(now)) = (Timestamp::from_millisecond(at), Timestamp::from_millisecond(now)) else {
        return "?".into();
    };
    let (at, now) = (at.to_zoned(zone.clone()), now.to_zoned(zone.clone()));
    let pattern = if at.date() == now.date() {
        "%H:%M"
    } else if (at.timestamp().as_second() - now.timestamp().as_second()).abs() < 6 * 86_400 {
        "%a %H:%M"
    } else {
        "%Y-%m-%d %H:%M"
    };
    at.strftime(pattern).to_string()
}

/// A moment with its seconds, for logs: `04:50:07`, with the date when it is another day.
pub fn clock(at: i64, now: i64, zone: &TimeZone) -> String {
    let (Ok(at), Ok(now)) = (Timestamp::from_millisecond(at), Timestamp::from_millisecond(now)) else {
        return "?".into();
    };
    let (at, now) = (at.to_zoned(zone.clone()), now.to_zoned(zone.clone()));
    at.strftime(if at.date() == now.date() { "%H:%M:%S" } else { "%Y-%m-%d %H:%M:%S" }).to_string()
}

/// A full date and time.
pub fn date_time(at: i64, zone: &TimeZone) -> String {
    Timestamp::from_millisecond(at)
        .map_or_else(|_| "?".into(), |at| at.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M").to_string())
}

/// A span of milliseconds in two units at most: `8 s`, `2 m 05 s`, `3 h 20 m`, `2 d 4 h`.
pub fn span(milliseconds: i64) -> String {
    let s = milliseconds.max(0) / 1000;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} m {:02} s", s / 60, s % 60),
        3600..86_400 => format!("{} h {:02} m", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

/// `1 VM`, `3 VMs`.
pub fn count(n: usize, one: &str) -> String {
    counted(n, one, &format!("{one}s"))
}

/// `1 proxy`, `3 proxies`.
pub fn counted(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// An id as a person reads it: its first eight characters.
pub fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

/// Done of total in whole percent; 100 only when all is done.
pub fn percent(done: u64, total: u64) -> u64 {
    if total == 0 || done >= total { 100 } else { ((done as f64 / total as f64) * 100.0).min(99.0) as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_say_no_more_than_needed() {
        let now = 1_795_000_000_000;
        let tz = TimeZone::UTC;
        assert_eq!(moment(now, now, &tz), "11:06");
        assert_eq!(moment(now + 86_400_000, now, &tz), "Thu 11:06");
        assert_eq!(moment(now - 30 * 86_400_000, now, &tz), "2026-10-19 11:06");
        assert_eq!(moment(i64::MAX, now, &tz), "?");
    }

    #[test]
    fn spans_have_two_units() {
        assert_eq!(span(-5), "0 s");
        assert_eq!(span(125_000), "2 m 05 s");
        assert_eq!(span(12_000_000), "3 h 20 m");
        assert_eq!(span(187_200_000), "2 d 4 h");
    }

    #[test]
    fn percent_reaches_100_only_at_the_end() {
        assert_eq!(percent(999_999, 1_000_000), 99);
        assert_eq!(percent(5, 5), 100);
        assert_eq!(percent(0, 0), 100);
    }
}
