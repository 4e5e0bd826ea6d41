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

    /// The proxy's id; when there is none yet, the one it was `given`, or a new one.
    pub async fn proxy_id(&self, given: Option<&str>) -> Result<String> {
        const KEY: &str = "proxy_id";
        if let Some(id) = self.fact(KEY).await? {
            if let Some(given) = given.filter(|given| *given != id) {
                tracing::warn!(id, given, "the configuration gives another id than this proxy has; it keeps its own");
            }
            return Ok(id);
        }
        let id = given.map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned);
        self.set_fact(KEY, &id).await?;
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_given_id_counts_only_where_there_is_none_yet() {
        const GIVEN: &str = "6fa459ea-ee8a-4ca4-894e-db77e160355e";
        let (fresh, old) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = Store::open(fresh.path()).await.unwrap();
        assert_eq!(store.proxy_id(Some(GIVEN)).await.unwrap(), GIVEN);
        assert_eq!(store.proxy_id(None).await.unwrap(), GIVEN);
        let store = Store::open(old.path()).await.unwrap();
        let made = store.proxy_id(None).await.unwrap();
        assert_eq!(store.proxy_id(Some(GIVEN)).await.unwrap(), made);
    }
}
