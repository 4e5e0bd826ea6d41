//! Pools as stored.

use serde::{Deserialize, Serialize};
use sqlx::SqliteConnection;

use super::{Result, Store, naming, query};
use crate::secrets::Secrets;

/// A pool with its password; written out only into a proxy's whole state.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRecord {
    /// Identifier.
    pub id: String,
    /// Name, unique.
    pub name: String,
    /// `https://host[:port]`.
    pub url: String,
    /// User.
    pub username: String,
    /// A secret.
    pub password: String,
    /// Pinned SHA-256 of the certificate.
    pub fingerprint: String,
}

fn place(id: &str) -> String {
    format!("pools.password:{id}")
}

pub(super) async fn insert(connection: &mut SqliteConnection, secrets: &Secrets, pool: &PoolRecord, at: i64) -> Result<()> {
    let sealed = secrets.seal(&place(&pool.id), &pool.password)?;
    sqlx::query(
        "INSERT INTO pools (id, name, url, username, sealed_password, fingerprint, created_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(&pool.id)
    .bind(&pool.name)
    .bind(&pool.url)
    .bind(&pool.username)
    .bind(sealed)
    .bind(&pool.fingerprint)
    .bind(at)
    .execute(connection)
    .await
    .map_err(naming("pool", &pool.name))?;
    Ok(())
}

/// In a reading of the caller's.
pub(super) async fn all(connection: &mut SqliteConnection, secrets: &Secrets) -> Result<Vec<PoolRecord>> {
    let rows: Vec<(String, String, String, String, Vec<u8>, String)> = sqlx::query_as(
        "SELECT id, name, url, username, sealed_password, fingerprint FROM pools ORDER BY name COLLATE NOCASE, id",
    )
    .fetch_all(connection)
    .await
    .map_err(query("read the pools"))?;
    rows.into_iter()
        .map(|(id, name, url, username, sealed, fingerprint)| {
            let password = secrets.open_sealed(&place(&id), &sealed)?;
            Ok(PoolRecord { id, name, url, username, password, fingerprint })
        })
        .collect()
}

impl Store {
    /// All pools, by name.
    pub async fn pools(&self) -> Result<Vec<PoolRecord>> {
        all(&mut *self.connection().await?, &self.secrets).await
    }

    /// Stores a new pool.
    pub async fn add_pool(&self, pool: &PoolRecord, at: i64) -> Result<()> {
        let mut connection = self.connections().acquire().await.map_err(query("keep a pool"))?;
        insert(&mut connection, &self.secrets, pool, at).await
    }

    /// Forgets a pool; whether there was one.
    pub async fn remove_pool(&self, id: &str) -> Result<bool> {
        let done = sqlx::query("DELETE FROM pools WHERE id = ?").bind(id).execute(self.connections()).await;
        Ok(done.map_err(query("remove a pool"))?.rows_affected() > 0)
    }

    /// Remembers where VMs are: uuid and name.
    pub async fn note_vms(&self, pool: &str, vms: &[(String, String)]) -> Result<()> {
        let what = "remember where VMs are";
        let mut transaction = self.connections().begin().await.map_err(query(what))?;
        for (uuid, name) in vms {
            sqlx::query(
                "INSERT INTO known_vms (uuid, pool, name) VALUES (?, ?, ?) ON CONFLICT (uuid) \
                 DO UPDATE SET pool = excluded.pool, name = excluded.name \
                 WHERE pool <> excluded.pool OR name <> excluded.name",
            )
            .bind(uuid)
            .bind(pool)
            .bind(name)
            .execute(&mut *transaction)
            .await
            .map_err(query(what))?;
        }
        transaction.commit().await.map_err(query(what))
    }

    /// Where a VM was last seen: pool and name.
    pub async fn known_vm(&self, uuid: &str) -> Result<Option<(String, String)>> {
        sqlx::query_as("SELECT pool, name FROM known_vms WHERE uuid = ?")
            .bind(uuid)
            .fetch_optional(self.connections())
            .await
            .map_err(query("look up a VM"))
    }
}
