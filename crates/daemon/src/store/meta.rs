//! Facts about the proxy itself, a key and a value each.

use super::{Result, Store, query};

impl Store {
    /// A fact.
    pub async fn fact(&self, key: &str) -> Result<Option<String>> {
        sqlx::query_scalar("SELECT value FROM meta WHERE key = ?")
            .bind(key)
            .fetch_optional(self.connections())
            .await
            .map_err(query("read a fact of the proxy"))
    }

    /// Keeps a fact in the place of the one of before.
    pub async fn set_fact(&self, key: &str, value: &str) -> Result<()> {
        sqlx::query("INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value")
            .bind(key)
            .bind(value)
            .execute(self.connections())
            .await
            .map_err(query("keep a fact of the proxy"))?;
        Ok(())
    }

    /// The proxy's id; made when there is none yet.
    pub async fn proxy_id(&self) -> Result<String> {
        const KEY: &str = "proxy_id";
        if let Some(id) = self.fact(KEY).await? {
            return Ok(id);
        }
        let id = uuid::Uuid::new_v4().to_string();
        self.set_fact(KEY, &id).await?;
        Ok(id)
    }
}
