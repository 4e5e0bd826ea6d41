//! Which restore points stay (backup-repository.md §4.7). Pure: entries in, a plan out.

use std::collections::BTreeSet;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

/// What retention looks at: one restore point of a VM, mode and schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<T> {
    /// What the caller knows it by.
    pub id: T,
    /// When, milliseconds since the Unix epoch.
    pub timestamp: i64,
}

/// Who stays and who goes, both oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetentionPlan<T> {
    /// Stays.
    pub keep: Vec<T>,
    /// Goes.
    pub remove: Vec<T>,
}

/// Long-term retention: besides the newest, the oldest of each of so many days, weeks, months and years.
#[derive(Debug, Clone, PartialEq)]
pub struct LongTerm {
    /// Where days begin.
    pub timezone: TimeZone,
    /// Rules, each on its own.
    pub rules: Vec<Rule>,
}

/// One rule of long-term retention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// What a bucket is.
    pub period: Period,
    /// Buckets to keep, at least 1.
    pub retention: u32,
    /// What is subtracted first: hours for days, days for everything longer.
    pub offset: i32,
}

/// What a bucket of long-term retention is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Period {
    /// A day.
    Daily,
    /// A week that begins on Sunday; week 1 contains 1 January.
    Weekly,
    /// A month.
    Monthly,
    /// A year.
    Yearly,
}

impl Period {
    /// The word in settings and tags.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
        }
    }
}

/// Plans retention: the `newest` newest entries stay, and those `long_term` designates.
///
/// Before a backup `newest` is the job's retention less one, for the one about to be written (§4.7).
pub fn plan<T: Clone>(entries: &[Entry<T>], newest: usize, long_term: Option<&LongTerm>) -> RetentionPlan<T> {
    let mut sorted: Vec<&Entry<T>> = entries.iter().collect();
    sorted.sort_by_key(|entry| entry.timestamp);
    let times: Vec<i64> = sorted.iter().map(|entry| entry.timestamp).collect();
    let mut kept: BTreeSet<usize> = (sorted.len().saturating_sub(newest)..sorted.len()).collect();
    if let Some(long_term) = long_term {
        for rule in &long_term.rules {
            kept.extend(representatives(&times, *rule, &long_term.timezone).into_iter().map(|(_, index)| index));
        }
    }
    let mut plan = RetentionPlan { keep: Vec::new(), remove: Vec::new() };
    for (index, entry) in sorted.into_iter().enumerate() {
        let side = if kept.contains(&index) { &mut plan.keep } else { &mut plan.remove };
        side.push(entry.id.clone());
    }
    plan
}

/// The marks of a new entry (`tags` of its metadata): every bucket it represents among `others` and itself.
pub fn tags(timestamp: i64, others: &[i64], long_term: &LongTerm) -> Vec<String> {
    let mut times = others.to_vec();
    times.push(timestamp);
    times.sort_unstable();
    let own = times.iter().rposition(|time| *time == timestamp);
    let marks = long_term.rules.iter().flat_map(|rule| {
        let representatives = representatives(&times, *rule, &long_term.timezone);
        representatives
            .into_iter()
            .filter(|(_, index)| Some(*index) == own)
            .map(|(key, _)| format!("{}={key}", rule.period.name()))
    });
    marks.collect()
}

/// Bucket and index of the entry that stands for it: from newest to oldest, the oldest of each bucket wins.
fn representatives(ascending: &[i64], rule: Rule, zone: &TimeZone) -> Vec<(String, usize)> {
    let mut found: Vec<(String, usize)> = Vec::new();
    for (index, timestamp) in ascending.iter().enumerate().rev() {
        let Some(key) = bucket(*timestamp, rule, zone) else { continue };
        let buckets = found.len();
        match found.last_mut() {
            Some(last) if last.0 == key => last.1 = index,
            _ if buckets < rule.retention as usize => found.push((key, index)),
            _ => break,
        }
    }
    found
}

fn bucket(timestamp: i64, rule: Rule, zone: &TimeZone) -> Option<String> {
    let local = Timestamp::from_millisecond(timestamp).ok()?.to_zoned(zone.clone());
    let date = match rule.period {
        Period::Daily => local.checked_sub(i64::from(rule.offset).hours()).ok()?.date(),
        _ => local.date().checked_sub(rule.offset.days()).ok()?,
    };
    Some(match rule.period {
        Period::Daily => date.strftime("%Y-%m-%d").to_string(),
        Period::Weekly => locale_week(date)?,
        Period::Monthly => date.strftime("%Y-%m").to_string(),
        Period::Yearly => date.strftime("%Y").to_string(),
    })
}

/// Year and week as the English locale counts them: weeks begin on Sunday, week 1 contains 1 January.
fn locale_week(date: Date) -> Option<String> {
    let sunday = date.checked_sub(i64::from(date.weekday().to_sunday_zero_offset()).days()).ok()?;
    let saturday = sunday.checked_add(6.days()).ok()?;
    // The week belongs to the year of its last day: the one that may have just begun.
    let first = Date::new(saturday.year(), 1, 1).ok()?;
    let first_sunday = first.checked_sub(i64::from(first.weekday().to_sunday_zero_offset()).days()).ok()?;
    let days = sunday.since(first_sunday).ok()?.get_days();
    Some(format!("{:04}-{:02}", saturday.year(), days / 7 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn day(text: &str) -> i64 {
        format!("{text}T03:00:00Z").parse::<Timestamp>().unwrap().as_millisecond()
    }

    fn rule(period: Period, retention: u32) -> Rule {
        Rule { period, retention, offset: 0 }
    }

    #[test]
    fn the_test_vector_of_the_reference() {
        let first: Timestamp = "2025-01-01T03:00:00Z".parse().unwrap();
        let entries: Vec<Entry<String>> = (0..40)
            .map(|days| first + (24 * days).hours())
            .map(|time| Entry { id: time.strftime("%m-%d").to_string(), timestamp: time.as_millisecond() })
            .collect();
        let long_term = LongTerm {
            timezone: TimeZone::get("Europe/Paris").unwrap(),
            rules: vec![rule(Period::Daily, 5), rule(Period::Weekly, 3), rule(Period::Monthly, 2)],
        };
        let plan = plan(&entries, 3, Some(&long_term));
        assert_eq!(plan.keep, ["01-01", "01-26", "02-01", "02-02", "02-05", "02-06", "02-07", "02-08", "02-09"]);
        assert_eq!(plan.keep.len() + plan.remove.len(), 40);
    }

    #[test]
    fn weeks_are_those_of_the_english_locale() {
        for (date, week) in
            [("2025-01-01", "2025-01"), ("2024-12-29", "2025-01"), ("2024-12-28", "2024-52"), ("2025-01-31", "2025-05")]
        {
            assert_eq!(locale_week(date.parse().unwrap()).unwrap(), week, "{date}");
        }
    }

    #[test]
    fn a_new_entry_is_marked_with_the_buckets_it_opens() {
        let long_term = LongTerm { timezone: TimeZone::UTC, rules: vec![rule(Period::Daily, 5), rule(Period::Yearly, 1)] };
        assert_eq!(tags(day("2025-01-01"), &[], &long_term), ["daily=2025-01-01", "yearly=2025"]);
        assert_eq!(tags(day("2025-01-02"), &[day("2025-01-01")], &long_term), ["daily=2025-01-02"]);
        assert!(tags(day("2025-01-01") + 1, &[day("2025-01-01")], &long_term).is_empty());
    }

    #[test]
    fn nothing_to_keep_removes_all_and_too_much_removes_none() {
        let entries = [Entry { id: 'b', timestamp: 2 }, Entry { id: 'a', timestamp: 1 }];
        assert_eq!(plan(&entries, 0, None).remove, ['a', 'b']);
        assert_eq!(plan(&entries, 1, None), RetentionPlan { keep: vec!['b'], remove: vec!['a'] });
        assert!(plan(&entries, 9, None).remove.is_empty());
    }

    proptest! {
        #[test]
        fn every_entry_is_in_the_plan_once_and_the_newest_stay(times in proptest::collection::vec(0..4_000_000_000_000_i64, 0..60), newest in 0..20_usize, buckets in 1..6_u32) {
            let entries: Vec<Entry<usize>> = times.iter().enumerate().map(|(id, timestamp)| Entry { id, timestamp: *timestamp }).collect();
            let long_term = LongTerm { timezone: TimeZone::UTC, rules: vec![rule(Period::Monthly, buckets)] };
            let plan = plan(&entries, newest, Some(&long_term));
            let mut all: Vec<usize> = plan.keep.iter().chain(&plan.remove).copied().collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..times.len()).collect::<Vec<_>>());
            prop_assert!(plan.keep.len() >= newest.min(times.len()) && plan.keep.len() <= newest + buckets as usize);
            let oldest_of_newest = plan.keep.iter().rev().take(newest).map(|id| times[*id]).min();
            if let Some(bound) = oldest_of_newest {
                prop_assert!(plan.remove.iter().all(|id| times[*id] <= bound));
            }
        }
    }
}
