//! The one writer of run journals, and the way to read along.
//!
//! Every event of every run goes through one task that commits what has piled up in one transaction: an event is
//! acknowledged when it is on disk, cursors count 1, 2, 3… without holes, and the row of the run changes in the
//! transaction of the event that changes it. Readers never wait for a writer and never hold it up: they read the
//! database and are only told that there is more.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::{Event, EventKind, Run, RunDetail, Topic};
use futures::Stream;
use sqlx::pool::PoolConnection;
use sqlx::{Connection, Sqlite, SqliteConnection};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::fold::Folded;
use crate::news::News;
use crate::store::{Leftovers, NewRun, Store, StoreError, damaged, query, word};

/// Events committed together at most.
const BATCH: usize = 256;
/// Between two attempts to write an event that nobody waits for: doubled up to the second.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_LAST: Duration = Duration::from_secs(10);
/// Events a reader fetches at once.
const PAGE: u32 = 256;

/// Why an event is not in the journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The database refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The run has ended, or was never there.
    #[error("run {run} is not going on")]
    NotOpen {
        /// The run.
        run: String,
    },
    /// The daemon is stopping.
    #[error("the journal is closed")]
    Closed,
}

enum What {
    Create(NewRun),
    Append(String),
}

struct Entry {
    what: What,
    kind: EventKind,
    durable: bool,
    done: Option<oneshot::Sender<Result<Event, JournalError>>>,
}

impl Entry {
    fn run(&self) -> &str {
        match &self.what {
            What::Create(run) => &run.id,
            What::Append(run) => run,
        }
    }
}

struct Live {
    folded: Folded,
    recovers: Option<String>,
    changed: watch::Sender<u64>,
}

type LiveRuns = Mutex<HashMap<String, Live>>;

/// The journals of all runs.
#[derive(Clone)]
pub struct Journal {
    store: Arc<Store>,
    live: Arc<LiveRuns>,
    entries: mpsc::Sender<Entry>,
    closing: CancellationToken,
    /// Told when nothing is tried again any more.
    hurried: CancellationToken,
    writer: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Journal {
    /// Takes up the journals as the database has them; runs without an end are open again until they are ended.
    pub async fn open(store: Arc<Store>, clock: Arc<dyn Clock>, news: Arc<News>) -> Result<Self, StoreError> {
        let mut live = HashMap::new();
        for open in store.open_runs().await? {
            let folded = read(&store, &open.run.id).await?;
            live.insert(open.run.id, Live { folded, recovers: open.recovers, changed: watch::Sender::new(open.run.cursor) });
        }
        let live = Arc::new(Mutex::new(live));
        let connection = store.connections().acquire().await.map_err(query("reach the journal"))?;
        let (entries, received) = mpsc::channel(1024);
        let hurried = CancellationToken::new();
        let writer = Writer { connection, live: Arc::clone(&live), clock, news, hurried: hurried.clone(), full_sync: true };
        let closing = CancellationToken::new();
        let writer = tokio::spawn(writer.run(received, closing.clone()));
        Ok(Self { store, live, entries, closing, hurried, writer: Arc::new(Mutex::new(Some(writer))) })
    }

    /// Writes what was handed over, takes nothing more, and gives the writer's connection back.
    pub async fn close(&self) {
        self.closing.cancel();
        self.hurry();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            let _ = writer.await;
        }
    }

    /// From now on, an event that cannot be written is given up at the first attempt: the daemon must come to its end.
    pub fn hurry(&self) {
        self.hurried.cancel();
    }

    /// Makes a run: its row and its first event, on disk when this returns.
    pub async fn create(&self, run: NewRun) -> Result<Run, JournalError> {
        let kind = EventKind::RunQueued { kind: run.kind, job: run.job.clone(), label: run.label.clone() };
        let id = run.id.clone();
        self.enter(What::Create(run), kind, true).await?;
        self.run(&id).ok_or(JournalError::NotOpen { run: id })
    }

    /// Appends an event; it would survive a power cut when this returns.
    pub async fn append(&self, run: &str, kind: EventKind) -> Result<Event, JournalError> {
        self.enter(What::Append(run.to_owned()), kind, true).await
    }

    /// Appends an event without waiting until it is on disk. Order is kept.
    pub async fn append_soon(&self, run: &str, kind: EventKind) -> Result<(), JournalError> {
        let entry = Entry { what: What::Append(run.to_owned()), kind, durable: false, done: None };
        self.entries.send(entry).await.map_err(|_| JournalError::Closed)
    }

    async fn enter(&self, what: What, kind: EventKind, durable: bool) -> Result<Event, JournalError> {
        let (done, written) = oneshot::channel();
        self.entries.send(Entry { what, kind, durable, done: Some(done) }).await.map_err(|_| JournalError::Closed)?;
        written.await.map_err(|_| JournalError::Closed)?
    }

    /// Asks for a mark on an open run that somebody wants it to stop.
    pub async fn mark_cancelling(&self, run: &str) -> Result<(), StoreError> {
        self.store.note_cancelling(run).await
    }

    fn live(&self) -> MutexGuard<'_, HashMap<String, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A look at a run that has not ended.
    pub fn look<T>(&self, run: &str, look: impl FnOnce(&Folded) -> T) -> Option<T> {
        self.live().get(run).map(|live| look(&live.folded))
    }

    /// A look at all runs that have not ended.
    pub fn look_at_all<T>(&self, mut look: impl FnMut(&Folded) -> T) -> Vec<T> {
        self.live().values().map(|live| look(&live.folded)).collect()
    }

    /// A run that has not ended.
    pub fn run(&self, run: &str) -> Option<Run> {
        self.look(run, |folded| folded.run().clone())
    }

    /// The open runs with the run each cleans up after, oldest first.
    pub fn open_runs(&self) -> Vec<(Run, Option<String>)> {
        let mut runs: Vec<_> = self.live().values().map(|live| (live.folded.run().clone(), live.recovers.clone())).collect();
        runs.sort_by(|(one, _), (other, _)| (one.queued_at, &one.id).cmp(&(other.queued_at, &other.id)));
        runs
    }

    /// A run as its whole journal tells it.
    pub async fn read(&self, run: &str) -> Result<Folded, StoreError> {
        if let Some(folded) = self.look(run, Folded::clone) {
            return Ok(folded);
        }
        read(&self.store, run).await
    }

    /// A run, its tasks and its log.
    pub async fn detail(&self, run: &str) -> Result<RunDetail, StoreError> {
        Ok(self.read(run).await?.detail().clone())
    }

    fn subscribe(&self, run: &str) -> Option<watch::Receiver<u64>> {
        self.live().get(run).map(|live| live.changed.subscribe())
    }

    /// Every event after `cursor`, exactly once, as they come, until the run has ended.
    pub fn watch(&self, run: String, cursor: u64) -> impl Stream<Item = Result<Event, StoreError>> + Send + 'static {
        let state = Reading { journal: self.clone(), run, cursor, page: VecDeque::new(), ended: false };
        futures::stream::try_unfold(state, |mut state| async move {
            let event = state.next().await?;
            Ok(event.map(|event| (event, state)))
        })
    }
}

/// Whether an event that could not be written may stand later: a full disk does get empty, a broken rule stays broken.
fn passes(error: &JournalError) -> bool {
    use sqlx::error::ErrorKind;
    match error {
        JournalError::Store(StoreError::Query { source: sqlx::Error::Database(error), .. }) => {
            matches!(error.kind(), ErrorKind::Other)
        }
        JournalError::Store(StoreError::Query { .. }) => true,
        _ => false,
    }
}

async fn read(store: &Store, run: &str) -> Result<Folded, StoreError> {
    let mut folded = Folded::new(run);
    loop {
        let page = store.events_after(run, folded.run().cursor, PAGE).await?;
        if page.is_empty() {
            return Ok(folded);
        }
        page.iter().for_each(|event| folded.apply(event));
    }
}

struct Reading {
    journal: Journal,
    run: String,
    cursor: u64,
    page: VecDeque<Event>,
    ended: bool,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Event>, StoreError> {
        loop {
            if let Some(event) = self.page.pop_front() {
                self.cursor = event.cursor;
                self.ended = matches!(event.kind, EventKind::RunEnded { .. });
                return Ok(Some(event));
            }
            if self.ended {
                return Ok(None);
            }
            // Subscribed before reading: what is written in between rings.
            let changed = self.journal.subscribe(&self.run);
            self.page = self.journal.store.events_after(&self.run, self.cursor, PAGE).await?.into();
            match changed {
                _ if !self.page.is_empty() => {}
                Some(mut changed) => {
                    // An error says that the run has ended meanwhile: one more look, then.
                    let _ = changed.changed().await;
                }
                None => return Ok(None),
            }
        }
    }
}

struct Writer {
    connection: PoolConnection<Sqlite>,
    live: Arc<LiveRuns>,
    clock: Arc<dyn Clock>,
    news: Arc<News>,
    hurried: CancellationToken,
    full_sync: bool,
}

impl Writer {
    async fn run(mut self, mut entries: mpsc::Receiver<Entry>, closing: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                biased;
                received = entries.recv_many(&mut batch, BATCH) => match received {
                    0 => return,
                    _ => self.write(&mut batch).await,
                },
                // What is in the channel still comes.
                () = closing.cancelled(), if !entries.is_closed() => entries.close(),
            }
        }
    }

    async fn write(&mut self, batch: &mut Vec<Entry>) {
        let Err(error) = self.commit(batch).await else { return };
        // One bad entry must not take the others with it: each for itself, each with its own answer.
        let mut whole = Some(error).filter(|_| batch.len() == 1);
        for entry in std::mem::take(batch) {
            let mut one = vec![entry];
            let mut pause = RETRY_FIRST;
            loop {
                let result = match whole.take() {
                    Some(error) => Err(error),
                    None => self.commit(&mut one).await,
                };
                let Err(error) = result else { break };
                match one.pop() {
                    // Nobody is told of its loss, so it is kept until it stands. Meanwhile the channel fills, and workers wait.
                    Some(entry) if entry.done.is_none() && passes(&error) && !self.hurried.is_cancelled() => {
                        tracing::warn!(
                            run = entry.run(),
                            error = &error as &dyn std::error::Error,
                            "cannot write an event; trying again"
                        );
                        one.push(entry);
                        tokio::select! {
                            () = tokio::time::sleep(pause) => {}
                            () = self.hurried.cancelled() => {}
                        }
                        pause = (pause * 2).min(RETRY_LAST);
                    }
                    Some(Entry { done: Some(done), .. }) => {
                        let _ = done.send(Err(error));
                        break;
                    }
                    Some(entry) => {
                        tracing::error!(run = entry.run(), error = &error as &dyn std::error::Error, "lost an event");
                        break;
                    }
                    None => break,
                }
            }
        }
    }

    /// Commits the batch and empties it; on failure nothing has happened and the batch is as it was.
    async fn commit(&mut self, batch: &mut Vec<Entry>) -> Result<(), JournalError> {
        let events = self.number(batch)?;
        // The WAL is synced at each commit only when somebody relies on it: progress may be lost with the power.
        let full_sync = batch.iter().any(|entry| entry.durable);
        if full_sync != self.full_sync {
            let pragma = if full_sync { "PRAGMA synchronous = FULL" } else { "PRAGMA synchronous = NORMAL" };
            sqlx::query(pragma).execute(&mut *self.connection).await.map_err(query("choose how to sync"))?;
            self.full_sync = full_sync;
        }
        let leftovers = self.leftovers(batch, &events);
        let mut transaction = self.connection.begin_with("BEGIN IMMEDIATE").await.map_err(query("write to the journal"))?;
        for (entry, event) in batch.iter().zip(&events) {
            write(&mut transaction, entry, event, leftovers.get(entry.run()).copied()).await?;
        }
        transaction.commit().await.map_err(query("write to the journal"))?;
        self.publish(batch.drain(..).zip(events));
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives each entry its place in the journal of its run.
    fn number(&self, batch: &[Entry]) -> Result<Vec<Event>, JournalError> {
        let at = self.clock.now().as_millisecond();
        let live = self.lock();
        let mut cursors: HashMap<&str, u64> = HashMap::new();
        let mut ended: BTreeSet<&str> = BTreeSet::new();
        batch
            .iter()
            .map(|entry| {
                let run = entry.run();
                let known = match &entry.what {
                    What::Create(_) => Some(0),
                    What::Append(_) => cursors.get(run).copied().or_else(|| live.get(run).map(|live| live.folded.run().cursor)),
                };
                let last = known.filter(|_| !ended.contains(run)).ok_or_else(|| JournalError::NotOpen { run: run.to_owned() })?;
                cursors.insert(run, last + 1);
                if matches!(entry.kind, EventKind::RunEnded { .. }) {
                    ended.insert(run);
                }
                Ok(Event { cursor: last + 1, at, kind: entry.kind.clone() })
            })
            .collect()
    }

    /// Whether the runs that end in this batch leave intents unsettled.
    fn leftovers(&self, batch: &[Entry], events: &[Event]) -> HashMap<String, Leftovers> {
        let live = self.lock();
        let ending = events.iter().zip(batch).filter(|(event, _)| matches!(event.kind, EventKind::RunEnded { .. }));
        ending
            .map(|(_, ended)| {
                let run = ended.run();
                let mut open: BTreeSet<u32> = live
                    .get(run)
                    .map(|live| live.folded.open_intents().iter().map(|open| open.intent).collect())
                    .unwrap_or_default();
                for (event, entry) in events.iter().zip(batch) {
                    match event.kind {
                        EventKind::Intent { intent, .. } if entry.run() == run => _ = open.insert(intent),
                        EventKind::Settled { intent } if entry.run() == run => _ = open.remove(&intent),
                        _ => {}
                    }
                }
                (run.to_owned(), if open.is_empty() { Leftovers::None } else { Leftovers::Pending })
            })
            .collect()
    }

    /// What is on disk becomes visible.
    fn publish(&self, committed: impl Iterator<Item = (Entry, Event)>) {
        let mut lists_changed = false;
        let mut live = self.lock();
        let mut rung: BTreeSet<String> = BTreeSet::new();
        let mut answers = Vec::new();
        for (entry, event) in committed {
            if let What::Create(run) = &entry.what {
                lists_changed = true;
                let opened =
                    Live { folded: Folded::new(&*run.id), recovers: run.recovers.clone(), changed: watch::Sender::new(0) };
                live.insert(run.id.clone(), opened);
            }
            if let Some(open) = live.get_mut(entry.run()) {
                open.folded.apply(&event);
            }
            if matches!(event.kind, EventKind::RunEnded { .. }) {
                lists_changed = true;
                // Dropping the bell tells the watchers.
                live.remove(entry.run());
            } else {
                rung.insert(entry.run().to_owned());
            }
            if let Some(done) = entry.done {
                answers.push((done, event));
            }
        }
        for run in rung {
            if let Some(open) = live.get(&run) {
                open.changed.send_replace(open.folded.run().cursor);
            }
        }
        drop(live);
        for (done, event) in answers {
            let _ = done.send(Ok(event));
        }
        if lists_changed { self.news.changed(Topic::Runs) } else { self.news.moved() }
    }
}

async fn write(
    connection: &mut SqliteConnection,
    entry: &Entry,
    event: &Event,
    leftovers: Option<Leftovers>,
) -> Result<(), StoreError> {
    let cursor = i64::try_from(event.cursor).unwrap_or(i64::MAX);
    if let What::Create(run) = &entry.what {
        sqlx::query("INSERT INTO runs (id, kind, job, label, queued_at, recovers) VALUES (?, ?, ?, ?, ?, ?)")
            .bind(&run.id)
            .bind(word(run.kind))
            .bind(&run.job)
            .bind(&run.label)
            .bind(event.at)
            .bind(&run.recovers)
            .execute(&mut *connection)
            .await
            .map_err(query("make a run"))?;
    }
    sqlx::query("INSERT INTO events (run, cursor, at, json) VALUES (?, ?, ?, ?)")
        .bind(entry.run())
        .bind(cursor)
        .bind(event.at)
        .bind(serde_json::to_string(&event.kind).map_err(damaged("event"))?)
        .execute(&mut *connection)
        .await
        .map_err(query("write to the journal"))?;
    if let EventKind::RunEnded { outcome, error, summary } = &event.kind {
        let error = error.as_ref().map(serde_json::to_string).transpose().map_err(damaged("error of a run"))?;
        sqlx::query("UPDATE runs SET cursor = ?, ended_at = ?, outcome = ?, error = ?, summary = ?, leftovers = ? WHERE id = ?")
            .bind(cursor)
            .bind(event.at)
            .bind(word(outcome))
            .bind(error)
            .bind(serde_json::to_string(summary).map_err(damaged("summary of a run"))?)
            .bind(leftovers.unwrap_or(Leftovers::None).text())
            .bind(entry.run())
            .execute(connection)
            .await
            .map_err(query("end a run"))?;
    } else {
        sqlx::query("UPDATE runs SET cursor = ? WHERE id = ?")
            .bind(cursor)
            .bind(entry.run())
            .execute(connection)
            .await
            .map_err(query("write to the journal"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use api::{LogLevel, Outcome, RunKind, RunSummary};
    use futures::StreamExt;

    use super::*;
    use crate::clock::SystemClock;

    async fn journal(dir: &std::path::Path) -> Journal {
        let store = Arc::new(Store::open(dir).await.unwrap());
        Journal::open(store, Arc::new(SystemClock), Arc::default()).await.unwrap()
    }

    fn new_run(id: &str) -> NewRun {
        NewRun { id: id.into(), kind: RunKind::Backup, job: None, label: "nightly".into(), recovers: None }
    }

    fn log(message: impl Into<String>) -> EventKind {
        EventKind::Log { task: None, level: LogLevel::Info, message: message.into() }
    }

    fn ended(outcome: Outcome) -> EventKind {
        EventKind::RunEnded { outcome, error: None, summary: RunSummary::default() }
    }

    #[tokio::test]
    async fn cursors_have_no_holes_whoever_writes() {
        let dir = tempfile::tempdir().unwrap();
        let journal = journal(dir.path()).await;
        for id in ["a", "b"] {
            journal.create(new_run(id)).await.unwrap();
        }
        let writers = (0..8).map(|writer| {
            let journal = journal.clone();
            tokio::spawn(async move {
                for n in 0..25 {
                    let run = if (writer + n) % 2 == 0 { "a" } else { "b" };
                    journal.append(run, log(format!("{writer}.{n}"))).await.unwrap();
                }
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.unwrap();
        }
        for id in ["a", "b"] {
            let events = journal.store.events_after(id, 0, 1000).await.unwrap();
            let cursors: Vec<u64> = events.iter().map(|event| event.cursor).collect();
            assert_eq!(cursors, (1..=101).collect::<Vec<u64>>());
        }
    }

    #[tokio::test]
    async fn after_the_end_nothing_is_taken_and_what_stood_beside_it_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let journal = journal(dir.path()).await;
        journal.create(new_run("a")).await.unwrap();
        journal.create(new_run("b")).await.unwrap();
        let (end, late, other) = tokio::join!(
            journal.append("a", ended(Outcome::Success)),
            journal.append("a", log("late")),
            journal.append("b", log("x"))
        );
        end.unwrap();
        assert!(matches!(late, Err(JournalError::NotOpen { .. })));
        assert_eq!(other.unwrap().cursor, 2);
        assert!(journal.run("a").is_none());
        assert_eq!(journal.store.run("a").await.unwrap().unwrap().run.outcome, Some(Outcome::Success));
    }

    #[tokio::test]
    async fn unsettled_intents_of_an_ended_run_are_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let journal = journal(dir.path()).await;
        let what = api::Intent::XapiTask { pool: "p".into(), task: "t".into() };
        for (id, settled) in [("clean", true), ("dirty", false)] {
            journal.create(new_run(id)).await.unwrap();
            journal.append(id, EventKind::Intent { intent: 1, what: what.clone() }).await.unwrap();
            if settled {
                journal.append_soon(id, EventKind::Settled { intent: 1 }).await.unwrap();
            }
            journal.append(id, ended(Outcome::Failure)).await.unwrap();
        }
        let left: Vec<String> = journal.store.runs_with_leftovers().await.unwrap().into_iter().map(|run| run.id).collect();
        assert_eq!(left, ["dirty"]);
    }

    #[tokio::test]
    async fn a_watcher_cut_fifty_times_gets_every_event_once() {
        let dir = tempfile::tempdir().unwrap();
        let journal = journal(dir.path()).await;
        journal.create(new_run("a")).await.unwrap();
        let writer = {
            let journal = journal.clone();
            tokio::spawn(async move {
                for n in 0..500 {
                    journal.append_soon("a", log(n.to_string())).await.unwrap();
                    if n % 7 == 0 {
                        tokio::task::yield_now().await;
                    }
                }
                journal.append("a", ended(Outcome::Success)).await.unwrap();
            })
        };
        let mut seen: Vec<Event> = Vec::new();
        for cut in 0..50usize {
            let from = seen.last().map_or(0, |event| event.cursor);
            let stream = journal.watch("a".into(), from).take(cut % 11);
            seen.extend(stream.map(Result::unwrap).collect::<Vec<_>>().await);
        }
        let from = seen.last().map_or(0, |event| event.cursor);
        seen.extend(journal.watch("a".into(), from).map(Result::unwrap).collect::<Vec<_>>().await);
        writer.await.unwrap();
        assert_eq!(seen.iter().map(|event| event.cursor).collect::<Vec<_>>(), (1..=502).collect::<Vec<u64>>());
        assert!(matches!(seen.last().unwrap().kind, EventKind::RunEnded { outcome: Outcome::Success, .. }));
    }

    #[tokio::test]
    async fn an_event_that_cannot_be_written_is_written_later() {
        let dir = tempfile::tempdir().unwrap();
        let journal = journal(dir.path()).await;
        journal.create(new_run("a")).await.unwrap();
        let rename = async |sql: &'static str| sqlx::query(sql).execute(journal.store.connections()).await.map(drop).unwrap();
        rename("ALTER TABLE events RENAME TO away").await;
        // Whoever waits for an answer gets one; what nobody waits for is tried again until it stands.
        journal.append("a", log("refused")).await.unwrap_err();
        journal.append_soon("a", log("kept")).await.unwrap();
        rename("ALTER TABLE away RENAME TO events").await;
        assert_eq!(journal.append("a", log("next")).await.unwrap().cursor, 3);
    }

    #[tokio::test]
    async fn an_open_run_is_open_again_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path()).await.unwrap());
        let first = Journal::open(Arc::clone(&store), Arc::new(SystemClock), Arc::default()).await.unwrap();
        first.create(new_run("a")).await.unwrap();
        first.append("a", log("one")).await.unwrap();
        let again = Journal::open(store, Arc::new(SystemClock), Arc::default()).await.unwrap();
        assert_eq!(again.append("a", log("two")).await.unwrap().cursor, 3);
    }
}
