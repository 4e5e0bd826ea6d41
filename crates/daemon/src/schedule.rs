//! When jobs run: cron expressions in a time zone, and the one task that sleeps until the next of them.
//!
//! A start that the clock repeats in autumn happens once, one that it leaps over in spring happens at the end of the
//! leap (for expressions with a fixed hour; `*/15 * * * *` simply follows the wall). Starts missed while the daemon
//! was off, or the machine asleep, are not made up for: each job gets one skipped run that says what was missed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::{Job, Schedule, SchedulePreview};
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use futures::future::BoxFuture;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::store::{Store, StoreError};

/// A start that is later than this is a missed one.
const PUNCTUAL: Duration = Duration::from_secs(60);
/// Between two attempts to read the jobs.
const RETRY: Duration = Duration::from_secs(30);
/// Missed starts are counted up to here.
const COUNTED: usize = 1000;

/// A schedule that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// No cron expression.
    #[error("{cron:?} is no cron expression ({reason}); expected five fields: minute hour day-of-month month day-of-week")]
    Cron {
        /// As given.
        cron: String,
        /// What is wrong.
        reason: String,
    },
    /// No time zone.
    #[error("{0:?} is no time zone; expected a name such as \"Europe/Paris\" or \"UTC\"")]
    TimeZone(String),
    /// It never comes.
    #[error("{0:?} never comes: no such date exists")]
    Never(String),
}

/// A schedule that has been understood.
pub struct Calendar {
    cron: Cron,
    zone: TimeZone,
}

impl Calendar {
    /// Understands a schedule.
    pub fn new(schedule: &Schedule) -> Result<Self, ScheduleError> {
        let wrong = |reason: String| ScheduleError::Cron { cron: schedule.cron.chars().take(100).collect(), reason };
        if schedule.cron.len() > 200 {
            return Err(wrong("it is longer than 200 characters".into()));
        }
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let cron = parser.parse(schedule.cron.trim()).map_err(|error| wrong(error.to_string()))?;
        let zone = TimeZone::get(&schedule.timezone).map_err(|_| ScheduleError::TimeZone(schedule.timezone.clone()))?;
        Ok(Self { cron, zone })
    }

    /// The first start after a time.
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        let next = self.cron.find_next_occurrence(&after.to_zoned(self.zone.clone()), false).ok()?;
        // Never the same twice, whatever a time zone does.
        Some(next.timestamp()).filter(|next| *next > after)
    }

    /// The next starts.
    pub fn upcoming(&self, after: Timestamp, count: usize) -> Vec<Timestamp> {
        std::iter::successors(self.next_after(after), |last| self.next_after(*last)).take(count).collect()
    }

    /// In words.
    pub fn words(&self) -> String {
        format!("{} ({})", self.cron.describe().trim_end_matches('.'), self.zone.iana_name().unwrap_or("UTC"))
    }
}

/// A schedule in words with its next starts.
pub fn preview(schedule: &Schedule, now: Timestamp, count: usize) -> Result<SchedulePreview, ScheduleError> {
    let calendar = Calendar::new(schedule)?;
    let next: Vec<i64> = calendar.upcoming(now, count.max(1)).into_iter().map(Timestamp::as_millisecond).collect();
    if next.is_empty() {
        return Err(ScheduleError::Never(schedule.cron.clone()));
    }
    Ok(SchedulePreview { words: calendar.words(), next: next.into_iter().take(count).collect() })
}

/// Next starts of a job; none when it is disabled or has no schedule.
pub fn next_runs(job: &Job, now: Timestamp, count: usize) -> Vec<i64> {
    calendar(job)
        .map_or_else(Vec::new, |calendar| calendar.upcoming(now, count).into_iter().map(Timestamp::as_millisecond).collect())
}

fn calendar(job: &Job) -> Option<Calendar> {
    let schedule = job.spec.schedule.as_ref().filter(|_| job.spec.enabled)?;
    Calendar::new(schedule).inspect_err(|error| tracing::error!(job = job.spec.name, %error, "a stored schedule is no good")).ok()
}

/// What the scheduler makes happen.
pub trait Starter: Send + Sync + 'static {
    /// It is time for a job.
    fn start(&self, job: Job) -> BoxFuture<'_, ()>;
    /// Starts of a job were missed.
    fn skip(&self, job: Job, reason: String) -> BoxFuture<'_, ()>;
}

/// Sleeps until the next start of any job.
pub struct Scheduler {
    /// Where the jobs are.
    pub store: Arc<Store>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// What to do.
    pub starter: Arc<dyn Starter>,
    /// Rung when a job changed.
    pub changed: Arc<Notify>,
}

impl Scheduler {
    /// Works until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let mut since = self.clock.now();
        let mut told = false;
        // Why a start that is due may be late.
        let mut why = SLEPT;
        loop {
            let jobs = async {
                if !told {
                    self.tell_missed(since).await?;
                }
                self.jobs().await
            };
            // What is due meanwhile is not lost: `since` stays where it is, and so does what was noted last.
            let Ok(jobs) = jobs.await.inspect_err(unreadable) else {
                why = UNREADABLE;
                if self.waited(&stop).await {
                    continue;
                }
                return;
            };
            told = true;
            let next = jobs.values().filter_map(|(_, calendar)| calendar.next_after(since)).min();
            let timer = async {
                match next {
                    Some(at) => self.clock.sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = timer => {}
                () = self.changed.notified() => {}
                () = stop.cancelled() => break,
            }
            let now = self.clock.now();
            // A clock that was set back counts from there: better a start twice than none for a year.
            if now > since
                && let Err(error) = self.start_due(jobs, since, now, why).await
            {
                unreadable(&error);
                why = UNREADABLE;
                if self.waited(&stop).await {
                    continue;
                }
                return;
            }
            since = now;
            why = SLEPT;
            self.note_alive(now).await;
        }
        self.note_alive(self.clock.now()).await;
    }

    async fn note_alive(&self, now: Timestamp) {
        if let Err(error) = self.store.note_alive(now.as_millisecond()).await {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot note the time");
        }
    }

    /// Waits for the next attempt; false when told to stop.
    async fn waited(&self, stop: &CancellationToken) -> bool {
        tokio::select! {
            () = self.clock.sleep_until(self.clock.now() + RETRY) => true,
            () = stop.cancelled() => false,
        }
    }

    async fn jobs(&self) -> Result<HashMap<String, (Job, Calendar)>, StoreError> {
        let jobs = self.store.jobs().await?.into_iter();
        Ok(jobs.filter_map(|job| calendar(&job).map(|calendar| (job.id.clone(), (job, calendar)))).collect())
    }

    /// Starts what was due among the jobs as they were, if they still are so. After an error nothing has been started.
    async fn start_due(
        &self,
        jobs: HashMap<String, (Job, Calendar)>,
        since: Timestamp,
        now: Timestamp,
        why: &str,
    ) -> Result<(), StoreError> {
        let current = self.jobs().await?;
        for (id, (job, calendar)) in jobs {
            let missed: Vec<Timestamp> = due(&calendar, since, now).collect();
            let Some(last) = missed.last().copied() else { continue };
            let Some((current, _)) = current.get(&id).filter(|(now, _)| now.spec.schedule == job.spec.schedule) else { continue };
            if now.duration_since(last).unsigned_abs() <= PUNCTUAL {
                self.starter.start(current.clone()).await;
            } else {
                self.starter.skip(current.clone(), missed_words(missed.len(), last, why)).await;
            }
        }
        Ok(())
    }

    /// After an error nothing has been told.
    async fn tell_missed(&self, now: Timestamp) -> Result<(), StoreError> {
        let Some(alive) = self.store.last_alive().await?.and_then(|at| Timestamp::from_millisecond(at).ok()) else {
            self.note_alive(now).await;
            return Ok(());
        };
        for (job, calendar) in self.jobs().await?.into_values() {
            let missed: Vec<Timestamp> = due(&calendar, alive, now).collect();
            if let Some(last) = missed.last() {
                self.starter.skip(job, missed_words(missed.len(), *last, "the daemon was not running")).await;
            }
        }
        self.note_alive(now).await;
        Ok(())
    }
}

const SLEPT: &str = "the machine slept or its clock was set";
const UNREADABLE: &str = "the jobs could not be read";

fn unreadable(error: &StoreError) {
    tracing::error!(error = error as &dyn std::error::Error, seconds = RETRY.as_secs(), "cannot read the jobs; trying again");
}

fn due(calendar: &Calendar, since: Timestamp, now: Timestamp) -> impl Iterator<Item = Timestamp> {
    std::iter::successors(calendar.next_after(since), |last| calendar.next_after(*last))
        .take_while(move |at| *at <= now)
        .take(COUNTED)
}

fn missed_words(count: usize, last: Timestamp, why: &str) -> String {
    let starts = match count {
        1 => "1 start was".to_owned(),
        COUNTED => format!("at least {COUNTED} starts were"),
        _ => format!("{count} starts were"),
    };
    format!("{starts} missed, the last at {last}: {why}")
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use api::JobSpec;
    use tokio::sync::watch;

    use super::*;

    /// Stands still until somebody sleeps, then leaps to where the sleeper wants to be.
    struct Leaping {
        now: watch::Sender<Timestamp>,
        asked: watch::Sender<Option<Timestamp>>,
    }

    impl Leaping {
        fn new(now: Timestamp) -> Arc<Self> {
            Arc::new(Self { now: watch::Sender::new(now), asked: watch::Sender::new(None) })
        }
    }

    impl Clock for Leaping {
        fn now(&self) -> Timestamp {
            *self.now.borrow()
        }

        fn sleep_until(&self, at: Timestamp) -> BoxFuture<'static, ()> {
            self.asked.send_replace(Some(at));
            let mut now = self.now.subscribe();
            Box::pin(async move {
                let _ = now.wait_for(|now| *now >= at).await;
            })
        }
    }

    #[derive(Default)]
    struct Noted(Mutex<Vec<String>>, Notify);

    impl Starter for Noted {
        fn start(&self, job: Job) -> BoxFuture<'_, ()> {
            self.0.lock().unwrap().push(format!("start {}", job.spec.name));
            self.1.notify_one();
            Box::pin(async {})
        }

        fn skip(&self, job: Job, reason: String) -> BoxFuture<'_, ()> {
            self.0.lock().unwrap().push(format!("skip {}: {reason}", job.spec.name));
            self.1.notify_one();
            Box::pin(async {})
        }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn paris(cron: &str) -> Schedule {
        Schedule { cron: cron.into(), timezone: "Europe/Paris".into() }
    }

    fn job(cron: &str) -> Job {
        let spec: JobSpec = serde_json::from_value(serde_json::json!({
            "name": "nightly", "mode": "delta", "vms": ["v"], "remotes": [], "schedule": paris(cron),
        }))
        .unwrap();
        Job { id: "j".into(), schedule_id: "s".into(), spec, last_run: None, next_runs: vec![] }
    }

    async fn starts(cron: &str, from: &str, to: &str) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path()).await.unwrap());
        store.add_job(&job(cron), 0).await.unwrap();
        let clock = Leaping::new(at(from));
        let noted = Arc::new(Noted::default());
        let stop = CancellationToken::new();
        let scheduler = Scheduler { store, clock: clock.clone(), starter: noted.clone(), changed: Arc::default() };
        let running = tokio::spawn(scheduler.run(stop.clone()));
        let mut asked = clock.asked.subscribe();
        let mut times = Vec::new();
        loop {
            let next = asked.wait_for(|at| at.is_some_and(|at| at > clock.now())).await.unwrap().unwrap();
            if next > at(to) {
                break;
            }
            times.push(next.to_string());
            clock.now.send_replace(next);
            noted.1.notified().await;
        }
        stop.cancel();
        running.await.unwrap();
        assert_eq!(noted.0.lock().unwrap().len(), times.len());
        times
    }

    #[tokio::test]
    async fn a_start_in_the_hour_that_comes_twice_happens_once() {
        let times = starts("30 2 * * *", "2025-10-24T12:00:00Z", "2025-10-27T12:00:00Z").await;
        assert_eq!(times, ["2025-10-25T00:30:00Z", "2025-10-26T00:30:00Z", "2025-10-27T01:30:00Z"]);
    }

    #[tokio::test]
    async fn a_start_in_the_hour_that_never_comes_happens_once_at_its_end() {
        let times = starts("30 2 * * *", "2025-03-28T12:00:00Z", "2025-03-31T12:00:00Z").await;
        assert_eq!(times, ["2025-03-29T01:30:00Z", "2025-03-30T01:00:00Z", "2025-03-31T00:30:00Z"]);
    }

    #[tokio::test]
    async fn missed_starts_are_told_once_per_job_and_not_made_up_for() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path()).await.unwrap());
        store.add_job(&job("0 * * * *"), 0).await.unwrap();
        store.note_alive(at("2025-06-01T00:30:00Z").as_millisecond()).await.unwrap();
        let noted = Arc::new(Noted::default());
        let clock = Leaping::new(at("2025-06-01T05:30:00Z"));
        let scheduler = Scheduler { store, clock, starter: noted.clone(), changed: Arc::default() };
        let stop = CancellationToken::new();
        let running = tokio::spawn(scheduler.run(stop.clone()));
        noted.1.notified().await;
        stop.cancel();
        running.await.unwrap();
        let said = noted.0.lock().unwrap().clone();
        assert_eq!(said, ["skip nightly: 5 starts were missed, the last at 2025-06-01T05:00:00Z: the daemon was not running"]);
    }

    #[tokio::test]
    async fn a_machine_that_slept_over_a_start_does_not_start_at_noon() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path()).await.unwrap());
        store.add_job(&job("0 2 * * *"), 0).await.unwrap();
        let noted = Arc::new(Noted::default());
        let clock = Leaping::new(at("2025-06-01T12:00:00Z"));
        let scheduler = Scheduler { store, clock: clock.clone(), starter: noted.clone(), changed: Arc::default() };
        let stop = CancellationToken::new();
        let running = tokio::spawn(scheduler.run(stop.clone()));
        clock.asked.subscribe().wait_for(Option::is_some).await.unwrap();
        clock.now.send_replace(at("2025-06-02T10:00:00Z"));
        noted.1.notified().await;
        stop.cancel();
        running.await.unwrap();
        assert!(noted.0.lock().unwrap()[0].starts_with("skip nightly: 1 start was missed"));
    }

    #[tokio::test]
    async fn a_start_that_is_due_while_the_jobs_cannot_be_read_comes_after() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path()).await.unwrap());
        store.add_job(&job("0 2 * * *"), 0).await.unwrap();
        let rename = async |sql: &'static str| sqlx::query(sql).execute(store.connections()).await.map(drop).unwrap();
        let noted = Arc::new(Noted::default());
        let clock = Leaping::new(at("2025-06-01T12:00:00Z"));
        let scheduler =
            Scheduler { store: Arc::clone(&store), clock: clock.clone(), starter: noted.clone(), changed: Arc::default() };
        let stop = CancellationToken::new();
        let running = tokio::spawn(scheduler.run(stop.clone()));
        let mut asked = clock.asked.subscribe();
        let due = asked.wait_for(Option::is_some).await.unwrap().unwrap();
        rename("ALTER TABLE jobs RENAME TO away").await;
        clock.now.send_replace(due);
        let again = asked.wait_for(|at| at.is_some_and(|at| at > due)).await.unwrap().unwrap();
        assert_eq!(again, due + RETRY);
        rename("ALTER TABLE away RENAME TO jobs").await;
        clock.now.send_replace(again);
        noted.1.notified().await;
        stop.cancel();
        running.await.unwrap();
        assert_eq!(*noted.0.lock().unwrap(), ["start nightly"]);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_a_reason() {
        let now = at("2025-01-01T00:00:00Z");
        let refused =
            |cron: &str, zone: &str| preview(&Schedule { cron: cron.into(), timezone: zone.into() }, now, 3).unwrap_err();
        assert!(matches!(refused("every day", "UTC"), ScheduleError::Cron { .. }));
        assert!(matches!(refused("* * * *", "UTC"), ScheduleError::Cron { .. }));
        assert!(matches!(refused(&"1".repeat(300), "UTC"), ScheduleError::Cron { .. }));
        assert!(matches!(refused("0 0 * * *", "Europe/Pariss"), ScheduleError::TimeZone(_)));
        assert!(matches!(refused("0 0 30 2 *", "UTC"), ScheduleError::Never(_)));
    }

    #[test]
    fn a_preview_has_words_and_times() {
        let preview = preview(&paris("15 2 * * 1"), at("2025-01-01T00:00:00Z"), 2).unwrap();
        assert!(preview.words.contains("Monday") && preview.words.ends_with("(Europe/Paris)"), "{}", preview.words);
        assert_eq!(preview.next, [at("2025-01-06T01:15:00Z").as_millisecond(), at("2025-01-13T01:15:00Z").as_millisecond()]);
    }
}
