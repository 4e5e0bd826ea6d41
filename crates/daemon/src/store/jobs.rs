//! Jobs as stored. A job always has a schedule id, even without a schedule: retention counts by it.

use api::{Job, JobSpec};
use sqlx::SqliteConnection;

use super::{Result, Store, damaged, naming, query};

type Row = (String, String, String);

fn job((id, schedule_id, spec): Row) -> Result<Job> {
    let spec: JobSpec = serde_json::from_str(&spec).map_err(damaged("job"))?;
    Ok(Job { id, schedule_id, spec, last_run: None, next_runs: Vec::new() })
}

/// In a transaction of the caller's: a job has several parts.
pub(super) async fn insert(connection: &mut SqliteConnection, job: &Job, at: i64) -> Result<()> {
    sqlx::query("INSERT INTO jobs (id, name, spec, created_at) VALUES (?, ?, ?, ?)")
        .bind(&job.id)
        .bind(&job.spec.name)
        .bind(serde_json::to_string(&job.spec).map_err(damaged("job"))?)
        .bind(at)
        .execute(&mut *connection)
        .await
        .map_err(naming("job", &job.spec.name))?;
    write_parts(connection, job).await
}

/// In a reading of the caller's.
pub(super) async fn all(connection: &mut SqliteConnection) -> Result<Vec<Job>> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT jobs.id, schedules.id, jobs.spec FROM jobs JOIN schedules ON schedules.job = jobs.id \
         ORDER BY jobs.name COLLATE NOCASE, jobs.id",
    )
    .fetch_all(connection)
    .await
    .map_err(query("read the jobs"))?;
    rows.into_iter().map(job).collect()
}

impl Store {
    /// All jobs, by name, without last and next runs.
    pub async fn jobs(&self) -> Result<Vec<Job>> {
        all(&mut *self.connection().await?).await
    }

    /// Stores a new job.
    pub async fn add_job(&self, job: &Job, at: i64) -> Result<()> {
        let mut transaction = self.connections().begin().await.map_err(query("begin a change"))?;
        insert(&mut transaction, job, at).await?;
        transaction.commit().await.map_err(query("keep a job"))
    }

    /// Replaces what a person sets of a job.
    pub async fn update_job(&self, job: &Job) -> Result<()> {
        let mut transaction = self.connections().begin().await.map_err(query("begin a change"))?;
        sqlx::query("UPDATE jobs SET name = ?, spec = ? WHERE id = ?")
            .bind(&job.spec.name)
            .bind(serde_json::to_string(&job.spec).map_err(damaged("job"))?)
            .bind(&job.id)
            .execute(&mut *transaction)
            .await
            .map_err(naming("job", &job.spec.name))?;
        sqlx::query("DELETE FROM job_remotes WHERE job = ?")
            .bind(&job.id)
            .execute(&mut *transaction)
            .await
            .map_err(query("change a job"))?;
        write_parts(&mut transaction, job).await?;
        transaction.commit().await.map_err(query("keep a job"))
    }

    /// Removes a job; whether there was one. Its runs and restore points stay.
    pub async fn remove_job(&self, id: &str) -> Result<bool> {
        let done = sqlx::query("DELETE FROM jobs WHERE id = ?").bind(id).execute(self.connections()).await;
        Ok(done.map_err(query("remove a job"))?.rows_affected() > 0)
    }
}

async fn write_parts(connection: &mut SqliteConnection, job: &Job) -> Result<()> {
    for remote in &job.spec.remotes {
        sqlx::query("INSERT INTO job_remotes (job, remote) VALUES (?, ?)")
            .bind(&job.id)
            .bind(remote)
            .execute(&mut *connection)
            .await
            .map_err(query("keep the remotes of a job"))?;
    }
    let schedule = job.spec.schedule.as_ref();
    sqlx::query(
        "INSERT INTO schedules (id, job, cron, timezone, enabled) VALUES (?, ?, ?, ?, ?) \
         ON CONFLICT (id) DO UPDATE SET cron = excluded.cron, timezone = excluded.timezone, enabled = excluded.enabled",
    )
    .bind(&job.schedule_id)
    .bind(&job.id)
    .bind(schedule.map(|schedule| schedule.cron.as_str()))
    .bind(schedule.map(|schedule| schedule.timezone.as_str()))
    .bind(job.spec.enabled)
    .execute(connection)
    .await
    .map_err(query("keep the schedule of a job"))?;
    Ok(())
}
