//! Runs and their events, as readers see them. Only [`crate::journal`] writes them.

use api::{Event, EventKind, Outcome, Run, RunKind, Verified};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::{Result, Store, StoreError, damaged, query};

/// A run about to exist.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// Identifier.
    pub id: String,
    /// What it does.
    pub kind: RunKind,
    /// The job, for a run that has one.
    pub job: Option<String>,
    /// Name of the job or VM.
    pub label: String,
    /// The run it cleans up after, for a Recover run.
    pub recovers: Option<String>,
}

/// A run without an end, as found at start.
#[derive(Debug, Clone)]
pub struct OpenRun {
    /// The run.
    pub run: Run,
    /// The run it cleans up after, for a Recover run.
    pub recovers: Option<String>,
}

/// What an ended run left behind in pools and repositories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leftovers {
    /// Nothing.
    None,
    /// Intents that were not settled.
    Pending,
    /// Intents that a Recover run dealt with.
    Cleaned,
}

impl Leftovers {
    /// As stored.
    pub fn text(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Pending => "pending",
            Self::Cleaned => "cleaned",
        }
    }
}

/// Sums over all runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Disk content moved by ended runs, bytes.
    pub moved: i64,
    /// Written by ended runs, bytes.
    pub written: i64,
    /// Events of all runs.
    pub events: i64,
    /// Ended runs with something left to clean.
    pub with_leftovers: i64,
}

/// An enumeration as its wire name.
pub(crate) fn word(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        _ => String::new(),
    }
}

pub(super) fn unword<T: DeserializeOwned>(what: &'static str, text: String) -> Result<T> {
    serde_json::from_value(serde_json::Value::String(text)).map_err(damaged(what))
}

const COLUMNS: &str = "id, kind, job, label, queued_at, ended_at, outcome, cancelling, error, summary, cursor, recovers";

fn open_run(row: &SqliteRow) -> Result<OpenRun> {
    let get = |source| StoreError::Query { what: "read a run", source };
    let outcome: Option<String> = row.try_get("outcome").map_err(get)?;
    let error: Option<String> = row.try_get("error").map_err(get)?;
    let summary: Option<String> = row.try_get("summary").map_err(get)?;
    let run = Run {
        id: row.try_get("id").map_err(get)?,
        kind: unword("kind of a run", row.try_get("kind").map_err(get)?)?,
        job: row.try_get("job").map_err(get)?,
        label: row.try_get("label").map_err(get)?,
        queued_at: row.try_get("queued_at").map_err(get)?,
        ended_at: row.try_get("ended_at").map_err(get)?,
        outcome: outcome.map(|text| unword::<Outcome>("outcome of a run", text)).transpose()?,
        cancelling: row.try_get("cancelling").map_err(get)?,
        error: error.map(|text| serde_json::from_str(&text).map_err(damaged("error of a run"))).transpose()?,
        summary: summary.map(|text| serde_json::from_str(&text).map_err(damaged("summary of a run"))).transpose()?,
        cursor: row.try_get::<i64, _>("cursor").map_err(get)?.unsigned_abs(),
    };
    Ok(OpenRun { run, recovers: row.try_get("recovers").map_err(get)? })
}

impl Store {
    /// Runs, newest first.
    pub async fn runs(&self, job: Option<&str>, before: Option<i64>, limit: u32) -> Result<Vec<Run>> {
        let sql = sqlx::AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM runs WHERE (?1 IS NULL OR job = ?1) AND (?2 IS NULL OR queued_at < ?2) \
             ORDER BY queued_at DESC, rowid DESC LIMIT ?3"
        ));
        let rows = sqlx::query(sql)
            .bind(job)
            .bind(before)
            .bind(limit)
            .fetch_all(self.connections())
            .await
            .map_err(query("read the runs"))?;
        rows.iter().map(|row| open_run(row).map(|open| open.run)).collect()
    }

    /// One run by its id or an unambiguous beginning of it, of 4 characters at least; none when there is none or several.
    pub async fn run(&self, id: &str) -> Result<Option<OpenRun>> {
        let mut found = self.runs_beginning(id).await?;
        if found.first().is_some_and(|first| first.run.id == id) || found.len() == 1 {
            return Ok(Some(found.swap_remove(0)));
        }
        Ok(None)
    }

    /// The run with this id, then those whose ids begin with it if it has at least 4 characters; the first few.
    pub async fn runs_beginning(&self, id: &str) -> Result<Vec<OpenRun>> {
        let sql = sqlx::AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM runs WHERE id = ?1 OR (length(?1) >= 4 AND substr(id, 1, length(?1)) = ?1) \
             ORDER BY id <> ?1, id LIMIT 5"
        ));
        let rows = sqlx::query(sql).bind(id).fetch_all(self.connections()).await.map_err(query("read a run"))?;
        rows.iter().map(open_run).collect()
    }

    /// Runs that have not ended, oldest first.
    pub async fn open_runs(&self) -> Result<Vec<OpenRun>> {
        let sql = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM runs WHERE ended_at IS NULL ORDER BY queued_at, rowid"));
        let rows = sqlx::query(sql).fetch_all(self.connections()).await.map_err(query("read the open runs"))?;
        rows.iter().map(open_run).collect()
    }

    /// Ended runs whose leftovers are still to be cleaned, oldest first.
    pub async fn runs_with_leftovers(&self) -> Result<Vec<Run>> {
        let sql =
            sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM runs WHERE leftovers = 'pending' ORDER BY queued_at, rowid"));
        let rows = sqlx::query(sql).fetch_all(self.connections()).await.map_err(query("read the runs with leftovers"))?;
        rows.iter().map(|row| open_run(row).map(|open| open.run)).collect()
    }

    /// The newest run of each job.
    pub async fn last_runs(&self) -> Result<Vec<Run>> {
        let sql = sqlx::AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM runs WHERE rowid IN \
             (SELECT (SELECT rowid FROM runs WHERE job = jobs.id ORDER BY queued_at DESC, rowid DESC LIMIT 1) FROM jobs)"
        ));
        let rows = sqlx::query(sql).fetch_all(self.connections()).await.map_err(query("read the last runs"))?;
        rows.iter().map(|row| open_run(row).map(|open| open.run)).collect()
    }

    /// The newest run that failed or was interrupted, unless a later one has put that right: one of the same job, an
    /// upgrade after an upgrade, one that did well with the same deployed proxy, otherwise the same thing done again.
    pub async fn last_failure(&self) -> Result<Option<Run>> {
        // Of each subject its newest run: with `max` the other columns are of that row.
        let sql = sqlx::AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM runs WHERE rowid = (SELECT latest FROM \
             (SELECT rowid AS latest, outcome, max(ended_at) AS ended FROM runs \
             WHERE outcome IN ('success', 'failure', 'interrupted') \
             GROUP BY CASE WHEN job IS NOT NULL THEN 'job ' || job WHEN kind = 'upgrade' THEN kind \
             WHEN kind IN ('deploy', 'redeploy', 'reconfigure', 'destroy') THEN 'proxy ' || label \
             ELSE kind || ' ' || label END) \
             WHERE outcome <> 'success' ORDER BY ended DESC LIMIT 1)"
        ));
        let row = sqlx::query(sql).fetch_optional(self.connections()).await.map_err(query("read the last failure"))?;
        row.as_ref().map(|row| open_run(row).map(|open| open.run)).transpose()
    }

    /// How many runs ended how: kind, outcome, count.
    pub async fn run_counts(&self) -> Result<Vec<(String, String, i64)>> {
        sqlx::query_as("SELECT kind, outcome, COUNT(*) FROM runs WHERE outcome IS NOT NULL GROUP BY kind, outcome ORDER BY 1, 2")
            .fetch_all(self.connections())
            .await
            .map_err(query("count the runs"))
    }

    /// Sums over all runs.
    pub async fn totals(&self) -> Result<Totals> {
        let (moved, written, events, with_leftovers) = sqlx::query_as(
            "SELECT COALESCE(SUM(summary ->> '$.bytes'), 0), COALESCE(SUM(summary ->> '$.bytesWritten'), 0), \
             COALESCE(SUM(cursor), 0), COUNT(*) FILTER (WHERE leftovers = 'pending') FROM runs",
        )
        .fetch_one(self.connections())
        .await
        .map_err(query("add up the runs"))?;
        Ok(Totals { moved, written, events, with_leftovers })
    }

    /// When each job last succeeded: name, milliseconds.
    pub async fn last_successes(&self) -> Result<Vec<(String, i64)>> {
        sqlx::query_as(
            "SELECT jobs.name, MAX(runs.ended_at) FROM jobs JOIN runs ON runs.job = jobs.id \
             WHERE runs.outcome = 'success' AND runs.kind = 'backup' GROUP BY jobs.id ORDER BY jobs.name",
        )
        .fetch_all(self.connections())
        .await
        .map_err(query("read the last successes"))
    }

    /// Events of a run after a cursor, in order, at most `limit`.
    pub async fn events_after(&self, run: &str, cursor: u64, limit: u32) -> Result<Vec<Event>> {
        let mut connection = self.connections().acquire().await.map_err(query("reach the journal"))?;
        events(&mut connection, run, cursor, limit).await
    }

    /// What verifies last said.
    pub async fn verifications(&self) -> Result<Vec<(String, Verified)>> {
        let rows: Vec<(String, i64, String)> = sqlx::query_as("SELECT restore_point, at, outcome FROM verifications")
            .fetch_all(self.connections())
            .await
            .map_err(query("read the verifications"))?;
        rows.into_iter()
            .map(|(point, at, outcome)| Ok((point, Verified { at, outcome: unword("outcome of a verify", outcome)? })))
            .collect()
    }

    /// Keeps what a verify said.
    pub async fn note_verification(&self, point: &str, run: &str, verified: &Verified) -> Result<()> {
        sqlx::query(
            "INSERT INTO verifications (restore_point, at, outcome, run) VALUES (?, ?, ?, ?) ON CONFLICT (restore_point) \
             DO UPDATE SET at = excluded.at, outcome = excluded.outcome, run = excluded.run",
        )
        .bind(point)
        .bind(verified.at)
        .bind(word(verified.outcome))
        .bind(run)
        .execute(self.connections())
        .await
        .map_err(query("keep a verification"))?;
        Ok(())
    }

    /// Notes that a Recover run has dealt with what `run` left.
    pub async fn note_cleaned(&self, run: &str) -> Result<()> {
        sqlx::query("UPDATE runs SET leftovers = ? WHERE id = ?")
            .bind(Leftovers::Cleaned.text())
            .bind(run)
            .execute(self.connections())
            .await
            .map_err(query("note that a run was cleaned up"))?;
        Ok(())
    }

    /// Notes that somebody asked a run to stop.
    pub async fn note_cancelling(&self, run: &str) -> Result<()> {
        sqlx::query("UPDATE runs SET cancelling = 1 WHERE id = ? AND ended_at IS NULL")
            .bind(run)
            .execute(self.connections())
            .await
            .map_err(query("note a cancel"))?;
        Ok(())
    }
}

async fn events(connection: &mut SqliteConnection, run: &str, cursor: u64, limit: u32) -> Result<Vec<Event>> {
    let rows: Vec<(i64, i64, String)> =
        sqlx::query_as("SELECT cursor, at, json FROM events WHERE run = ? AND cursor > ? ORDER BY cursor LIMIT ?")
            .bind(run)
            .bind(i64::try_from(cursor).unwrap_or(i64::MAX))
            .bind(limit)
            .fetch_all(connection)
            .await
            .map_err(query("read the journal"))?;
    rows.into_iter()
        .map(|(cursor, at, json)| {
            let kind: EventKind = serde_json::from_str(&json).map_err(damaged("event"))?;
            Ok(Event { cursor: cursor.unsigned_abs(), at, kind })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failure_is_the_last_one_until_a_later_run_has_put_it_right() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let mut at = 0;
        let mut last = async |kind: &str, job: Option<&str>, label: &str, outcome: &str| {
            at += 1;
            let sql = "INSERT INTO runs (id, kind, job, label, queued_at, ended_at, outcome) VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6)";
            let row = sqlx::query(sql).bind(format!("run-{at}")).bind(kind).bind(job).bind(label).bind(at).bind(outcome);
            row.execute(store.connections()).await.unwrap();
            store.last_failure().await.unwrap().map(|run| run.id)
        };
        assert_eq!(last("backup", Some("job-1"), "nightly", "success").await, None);
        assert_eq!(last("backup", Some("job-1"), "nightly", "failure").await.as_deref(), Some("run-2"));
        assert_eq!(last("backup", Some("job-2"), "nightly", "success").await.as_deref(), Some("run-2"), "another job");
        assert_eq!(last("verify", None, "web-1", "interrupted").await.as_deref(), Some("run-4"));
        assert_eq!(last("restore", None, "web-1", "success").await.as_deref(), Some("run-4"), "something else");
        assert_eq!(last("verify", None, "web-1", "cancelled").await.as_deref(), Some("run-4"), "says nothing");
        assert_eq!(last("verify", None, "web-1", "success").await.as_deref(), Some("run-2"), "the one before is still so");
        assert_eq!(last("backup", Some("job-1"), "renamed", "success").await, None);
        assert_eq!(last("deploy", None, "annecy", "failure").await.as_deref(), Some("run-9"));
        assert_eq!(last("deploy", None, "valence", "success").await.as_deref(), Some("run-9"));
        assert_eq!(last("deploy", None, "annecy", "success").await, None);
        assert_eq!(last("upgrade", None, "1 → 2", "failure").await.as_deref(), Some("run-12"));
        assert_eq!(last("upgrade", None, "1 → 3", "success").await, None);
    }
}
