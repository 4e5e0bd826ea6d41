//! Remotes as stored.

use serde::{Deserialize, Serialize};
use sqlx::SqliteConnection;

use super::{Result, Store, naming, query};
use crate::secrets::Secrets;

/// A remote with its URL, which may hold a password; written out only into a proxy's whole state.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteRecord {
    /// Identifier: the first part of the ids of its restore points.
    pub id: String,
    /// Name, unique.
    pub name: String,
    /// A secret.
    pub url: String,
}

fn place(id: &str) -> String {
    format!("remotes.url:{id}")
}

pub(super) async fn insert(connection: &mut SqliteConnection, secrets: &Secrets, remote: &RemoteRecord, at: i64) -> Result<()> {
    let sealed = secrets.seal(&place(&remote.id), &remote.url)?;
    sqlx::query("INSERT INTO remotes (id, name, sealed_url, created_at) VALUES (?, ?, ?, ?)")
        .bind(&remote.id)
        .bind(&remote.name)
        .bind(sealed)
        .bind(at)
        .execute(connection)
        .await
        .map_err(naming("remote", &remote.name))?;
    Ok(())
}

/// In a reading of the caller's.
pub(super) async fn all(connection: &mut SqliteConnection, secrets: &Secrets) -> Result<Vec<RemoteRecord>> {
    let rows: Vec<(String, String, Vec<u8>)> =
        sqlx::query_as("SELECT id, name, sealed_url FROM remotes ORDER BY name COLLATE NOCASE, id")
            .fetch_all(connection)
            .await
            .map_err(query("read the remotes"))?;
    rows.into_iter()
        .map(|(id, name, sealed)| {
            let url = secrets.open_sealed(&place(&id), &sealed)?;
            Ok(RemoteRecord { id, name, url })
        })
        .collect()
}

impl Store {
    /// All remotes, by name.
    pub async fn remotes(&self) -> Result<Vec<RemoteRecord>> {
        all(&mut *self.connection().await?, &self.secrets).await
    }

    /// Stores a new remote.
    pub async fn add_remote(&self, remote: &RemoteRecord, at: i64) -> Result<()> {
        let mut connection = self.connections().acquire().await.map_err(query("keep a remote"))?;
        insert(&mut connection, &self.secrets, remote, at).await
    }

    /// Forgets a remote; whether there was one. The database refuses it while a job uses it.
    pub async fn remove_remote(&self, id: &str) -> Result<bool> {
        let done = sqlx::query("DELETE FROM remotes WHERE id = ?").bind(id).execute(self.connections()).await;
        Ok(done.map_err(query("remove a remote"))?.rows_affected() > 0)
    }

    /// Names of the jobs that write to a remote.
    pub async fn jobs_of_remote(&self, id: &str) -> Result<Vec<String>> {
        let rows: Vec<(String,)> = sqlx::query_as(
            "SELECT jobs.name FROM job_remotes JOIN jobs ON jobs.id = job_remotes.job WHERE remote = ? ORDER BY jobs.name",
        )
        .bind(id)
        .fetch_all(self.connections())
        .await
        .map_err(query("read the jobs of a remote"))?;
        Ok(rows.into_iter().map(|(name,)| name).collect())
    }
}
