//! Facts about the proxy itself, a key and a value each; secret ones are sealed, and stand there in hexadecimal.

use sqlx::SqliteConnection;

use super::{Result, Store, query};
use crate::secrets::{SecretError, Secrets};

/// The proxy's id.
pub(super) const PROXY_ID: &str = "proxy_id";

/// A fact to keep.
#[derive(Clone, PartialEq, Eq)]
pub struct Fact {
    key: &'static str,
    value: String,
    sealed: bool,
}

impl Fact {
    /// One that anybody may see.
    pub fn open(key: &'static str, value: impl Into<String>) -> Self {
        Self { key, value: value.into(), sealed: false }
    }

    /// A secret one.
    pub fn sealed(key: &'static str, value: impl Into<String>) -> Self {
        Self { key, value: value.into(), sealed: true }
    }
}

fn place(key: &str) -> String {
    format!("meta.value:{key}")
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hexadecimal(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect::<Option<_>>()?;
    let pairs = digits.chunks(2).map(|pair| Some(pair[0] << 4 | pair.get(1)?));
    pairs.collect()
}

/// Keeps facts in the place of those of before.
pub(super) async fn put_facts(connection: &mut SqliteConnection, secrets: &Secrets, facts: &[Fact]) -> Result<()> {
    for Fact { key, value, sealed } in facts {
        let value = if *sealed { hexadecimal(&secrets.seal(&place(key), value)?) } else { value.clone() };
        sqlx::query("INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value")
            .bind(*key)
            .bind(value)
            .execute(&mut *connection)
            .await
            .map_err(query("keep a fact of the proxy"))?;
    }
    Ok(())
}

impl Store {
    /// A fact.
    pub async fn fact(&self, key: &str) -> Result<Option<String>> {
        sqlx::query_scalar("SELECT value FROM meta WHERE key = ?")
            .bind(key)
            .fetch_optional(self.connections())
            .await
            .map_err(query("read a fact of the proxy"))
    }

    /// A secret fact.
    pub async fn sealed_fact(&self, key: &str) -> Result<Option<String>> {
        let Some(text) = self.fact(key).await? else { return Ok(None) };
        let damaged = || SecretError::Open { place: place(key) };
        let sealed = from_hexadecimal(&text).ok_or_else(damaged)?;
        Ok(Some(self.secrets.open_sealed(&place(key), &sealed)?))
    }

    /// Keeps a fact in the place of the one of before.
    pub async fn set_fact(&self, key: &'static str, value: &str) -> Result<()> {
        self.set_facts(&[Fact::open(key, value)]).await
    }

    /// Keeps facts in the place of those of before: all, or none.
    pub async fn set_facts(&self, facts: &[Fact]) -> Result<()> {
        let what = "keep facts of the proxy";
        let mut transaction = self.connections().begin().await.map_err(query(what))?;
        put_facts(&mut transaction, &self.secrets, facts).await?;
        transaction.commit().await.map_err(query(what))
    }

    /// Forgets facts.
    pub async fn forget_facts(&self, keys: &[&str]) -> Result<()> {
        for key in keys {
            let done = sqlx::query("DELETE FROM meta WHERE key = ?").bind(*key).execute(self.connections()).await;
            done.map_err(query("forget a fact of the proxy"))?;
        }
        Ok(())
    }

    /// The proxy's id; when there is none yet, the one it was `given`, or a new one.
    pub async fn proxy_id(&self, given: Option<&str>) -> Result<String> {
        if let Some(id) = self.fact(PROXY_ID).await? {
            if let Some(given) = given.filter(|given| *given != id) {
                tracing::warn!(id, given, "the configuration gives another id than this proxy has; it keeps its own");
            }
            return Ok(id);
        }
        let id = given.map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned);
        self.set_fact(PROXY_ID, &id).await?;
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sealed_fact_reads_back_and_is_seen_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        assert_eq!(store.sealed_fact("a").await.unwrap(), None);
        store.set_facts(&[Fact::sealed("a", "hünter2"), Fact::open("b", "seen"), Fact::sealed("c", "")]).await.unwrap();
        assert_eq!(store.sealed_fact("a").await.unwrap().as_deref(), Some("hünter2"));
        assert_eq!(store.sealed_fact("c").await.unwrap().as_deref(), Some(""));
        assert_eq!(store.fact("b").await.unwrap().as_deref(), Some("seen"));
        // One that stands elsewhere, or is none, does not open.
        store.set_fact("d", &store.fact("a").await.unwrap().unwrap()).await.unwrap();
        store.sealed_fact("d").await.unwrap_err();
        store.sealed_fact("b").await.unwrap_err();
        store.forget_facts(&["a", "b"]).await.unwrap();
        assert_eq!(store.fact("a").await.unwrap(), None);
    }

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
