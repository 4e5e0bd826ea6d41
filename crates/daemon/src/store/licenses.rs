//! Licences as stored: the signed text, sealed, and which proxy each serves.

use serde::{Deserialize, Serialize};
use sqlx::SqliteConnection;

use super::{Result, Store, query};
use crate::secrets::Secrets;

/// A licence as it was imported; written out only into a proxy's whole state.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LicenseRecord {
    /// Its id.
    pub id: String,
    /// The signed text. A secret.
    pub text: String,
}

/// A proxy that a licence serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindingRecord {
    /// The proxy's id.
    pub proxy: String,
    /// The licence's id.
    pub license: String,
    /// The proxy's name when it was bound.
    pub name: String,
}

fn place(id: &str) -> String {
    format!("licenses.text:{id}")
}

pub(super) async fn put(connection: &mut SqliteConnection, secrets: &Secrets, license: &LicenseRecord, at: i64) -> Result<()> {
    let sealed = secrets.seal(&place(&license.id), &license.text)?;
    sqlx::query(
        "INSERT INTO licenses (id, sealed_text, imported_at) VALUES (?, ?, ?) \
         ON CONFLICT (id) DO UPDATE SET sealed_text = excluded.sealed_text",
    )
    .bind(&license.id)
    .bind(sealed)
    .bind(at)
    .execute(connection)
    .await
    .map_err(query("keep a licence"))?;
    Ok(())
}

/// As the binding was elsewhere, without asking how many it covers.
pub(super) async fn put_binding(connection: &mut SqliteConnection, binding: &BindingRecord, at: i64) -> Result<()> {
    sqlx::query(
        "INSERT INTO license_bindings (proxy, license, name, bound_at) VALUES (?, ?, ?, ?) \
         ON CONFLICT (proxy) DO UPDATE SET license = excluded.license, name = excluded.name, bound_at = excluded.bound_at",
    )
    .bind(&binding.proxy)
    .bind(&binding.license)
    .bind(&binding.name)
    .bind(at)
    .execute(connection)
    .await
    .map_err(query("keep the binding of a licence"))?;
    Ok(())
}

/// In a reading of the caller's.
pub(super) async fn all(connection: &mut SqliteConnection, secrets: &Secrets) -> Result<Vec<LicenseRecord>> {
    let rows: Vec<(String, Vec<u8>)> = sqlx::query_as("SELECT id, sealed_text FROM licenses ORDER BY imported_at, id")
        .fetch_all(connection)
        .await
        .map_err(query("read the licences"))?;
    let open = |(id, sealed): (String, Vec<u8>)| {
        let text = secrets.open_sealed(&place(&id), &sealed)?;
        Ok(LicenseRecord { id, text })
    };
    rows.into_iter().map(open).collect()
}

/// In a reading of the caller's.
pub(super) async fn all_bindings(connection: &mut SqliteConnection) -> Result<Vec<BindingRecord>> {
    let rows: Vec<(String, String, String)> =
        sqlx::query_as("SELECT proxy, license, name FROM license_bindings ORDER BY bound_at, proxy")
            .fetch_all(connection)
            .await
            .map_err(query("read the bindings of licences"))?;
    Ok(rows.into_iter().map(|(proxy, license, name)| BindingRecord { proxy, license, name }).collect())
}

impl Store {
    /// All licences, oldest first.
    pub async fn licenses(&self) -> Result<Vec<LicenseRecord>> {
        all(&mut *self.connection().await?, &self.secrets).await
    }

    /// Keeps a licence; one that is there already is replaced.
    pub async fn put_license(&self, license: &LicenseRecord, at: i64) -> Result<()> {
        let mut connection = self.connections().acquire().await.map_err(query("keep a licence"))?;
        put(&mut connection, &self.secrets, license, at).await
    }

    /// Forgets a licence; the database refuses it while it is bound.
    pub async fn remove_license(&self, id: &str) -> Result<bool> {
        let done = sqlx::query("DELETE FROM licenses WHERE id = ?").bind(id).execute(self.connections()).await;
        Ok(done.map_err(query("remove a licence"))?.rows_affected() > 0)
    }

    /// Which proxy each licence serves.
    pub async fn license_bindings(&self) -> Result<Vec<BindingRecord>> {
        all_bindings(&mut *self.connection().await?).await
    }

    /// Binds a licence to a proxy, instead of the one it had, unless `most` proxies have it already; whether it was bound.
    pub async fn bind_license(&self, binding: &BindingRecord, most: u32, at: i64) -> Result<bool> {
        // One statement, so that two at once cannot both take the last place.
        let done = sqlx::query(
            "INSERT INTO license_bindings (proxy, license, name, bound_at) SELECT ?1, ?2, ?3, ?4 \
             WHERE (SELECT COUNT(*) FROM license_bindings WHERE license = ?2 AND proxy <> ?1) < ?5 \
             ON CONFLICT (proxy) DO UPDATE SET license = excluded.license, name = excluded.name, bound_at = excluded.bound_at",
        )
        .bind(&binding.proxy)
        .bind(&binding.license)
        .bind(&binding.name)
        .bind(at)
        .bind(most)
        .execute(self.connections())
        .await
        .map_err(query("bind a licence"))?;
        Ok(done.rows_affected() > 0)
    }

    /// Notes that the proxy a licence serves is called otherwise now.
    pub async fn rename_binding(&self, proxy: &str, name: &str) -> Result<()> {
        let done = sqlx::query("UPDATE license_bindings SET name = ? WHERE proxy = ?")
            .bind(name)
            .bind(proxy)
            .execute(self.connections());
        done.await.map_err(query("rename the proxy of a licence"))?;
        Ok(())
    }

    /// Frees the licence of a proxy; whether it had one.
    pub async fn unbind_license(&self, proxy: &str) -> Result<bool> {
        let done = sqlx::query("DELETE FROM license_bindings WHERE proxy = ?").bind(proxy).execute(self.connections()).await;
        Ok(done.map_err(query("free a licence"))?.rows_affected() > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_licence_serves_as_many_proxies_as_it_covers_and_a_proxy_has_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        for id in ["one", "two"] {
            store.put_license(&LicenseRecord { id: id.into(), text: "signed".into() }, 1).await.unwrap();
        }
        let bind = async |proxy: &str, license: &str, most| {
            let binding = BindingRecord { proxy: proxy.into(), license: license.into(), name: proxy.into() };
            store.bind_license(&binding, most, 1).await.unwrap()
        };
        assert!(bind("a", "one", 1).await);
        assert!(bind("a", "one", 1).await, "twice to the same is the same");
        assert!(!bind("b", "one", 1).await);
        assert!(bind("b", "one", 2).await);
        assert!(bind("b", "two", 1).await);
        store.remove_license("one").await.unwrap_err();
        assert!(store.unbind_license("a").await.unwrap() && !store.unbind_license("a").await.unwrap());
        assert!(store.remove_license("one").await.unwrap());
        assert_eq!(store.license_bindings().await.unwrap().len(), 1);
    }
}
