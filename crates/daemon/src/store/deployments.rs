//! Deployed proxies as stored.

use api::{DeploySpec, DeployedState, ProxyState};
use engine::plan::{LoginPlan, Secret};
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::runs::{unword, word};
use super::{Result, Store, StoreError, damaged, naming, query};
use crate::secrets::Secrets;

/// A deployed proxy; written out only into a proxy's whole state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeploymentRecord {
    /// The proxy's id.
    pub id: String,
    /// Its name, unique.
    pub name: String,
    /// Pool id.
    pub pool: String,
    /// Where it stands.
    pub state: DeployedState,
    /// The run that works on it, as soon as the row says that one does, or did last.
    pub run: Option<String>,
    /// XAPI uuid of its VM, once it has been ready.
    pub vm: Option<String>,
    /// `https://host[:port]`, once it has been ready.
    pub url: Option<String>,
    /// SHA-256 of its certificate, once it has been ready.
    pub fingerprint: Option<String>,
    /// As it is, without secrets.
    pub spec: DeploySpec,
    /// As the run under way makes it, without secrets.
    pub wanted: Option<DeploySpec>,
    /// What must not be seen.
    pub secrets: DeploymentSecrets,
    /// When its state was last copied.
    pub copied_at: Option<i64>,
    /// When it was ready first.
    pub ready_at: Option<i64>,
}

/// The secrets of a deployed proxy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeploymentSecrets {
    /// Its API token.
    pub token: Secret,
    /// HTTP proxy for its downloads.
    #[serde(default)]
    pub http_proxy: Option<Secret>,
    /// Technician's login, its password hashed.
    #[serde(default)]
    pub login: Option<LoginPlan>,
    /// URL of its image.
    pub image: Secret,
    /// URL of the image that the run under way makes it of.
    #[serde(default)]
    pub wanted_image: Option<Secret>,
}

const COLUMNS: &str = "id, name, pool, state, run, vm, url, fingerprint, spec, wanted, sealed_secrets, copied_at, ready_at";

fn place(what: &str, id: &str) -> String {
    format!("deployments.{what}:{id}")
}

fn json<T: serde::de::DeserializeOwned>(what: &'static str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(damaged(what))
}

fn text(value: &impl Serialize) -> String {
    // Plain data: no map with keys that are not strings, no failing serializer.
    serde_json::to_string(value).unwrap_or_default()
}

/// In a transaction of the caller's.
pub(super) async fn insert(
    connection: &mut SqliteConnection,
    secrets: &Secrets,
    record: &DeploymentRecord,
    at: i64,
) -> Result<()> {
    let sealed = secrets.seal(&place("secrets", &record.id), &text(&record.secrets))?;
    sqlx::query("INSERT INTO deployments (id, name, pool, state, spec, sealed_secrets, created_at) VALUES (?, ?, ?, ?, ?, ?, ?)")
        .bind(&record.id)
        .bind(&record.name)
        .bind(&record.pool)
        .bind(word(record.state))
        .bind(text(&record.spec))
        .bind(sealed)
        .bind(at)
        .execute(&mut *connection)
        .await
        .map_err(naming("proxy", &record.name))?;
    update(connection, record).await
}

async fn update(connection: &mut SqliteConnection, record: &DeploymentRecord) -> Result<()> {
    sqlx::query(
        "UPDATE deployments SET name = ?, state = ?, run = ?, vm = ?, url = ?, fingerprint = ?, spec = ?, wanted = ?, \
         ready_at = ? WHERE id = ?",
    )
    .bind(&record.name)
    .bind(word(record.state))
    .bind(&record.run)
    .bind(&record.vm)
    .bind(&record.url)
    .bind(&record.fingerprint)
    .bind(text(&record.spec))
    .bind(record.wanted.as_ref().map(text))
    .bind(record.ready_at)
    .bind(&record.id)
    .execute(connection)
    .await
    .map_err(naming("proxy", &record.name))?;
    Ok(())
}

pub(super) async fn put_state(
    connection: &mut SqliteConnection,
    secrets: &Secrets,
    id: &str,
    state: &ProxyState,
    at: i64,
) -> Result<()> {
    let sealed = secrets.seal(&place("state", id), &text(state))?;
    sqlx::query("UPDATE deployments SET sealed_state = ?, copied_at = ? WHERE id = ?")
        .bind(sealed)
        .bind(at)
        .bind(id)
        .execute(connection)
        .await
        .map_err(query("keep the state of a deployed proxy"))?;
    Ok(())
}

fn record(secrets: &Secrets, row: &SqliteRow) -> Result<DeploymentRecord> {
    let get = |source| StoreError::Query { what: "read a deployed proxy", source };
    let id: String = row.try_get("id").map_err(get)?;
    let sealed: Vec<u8> = row.try_get("sealed_secrets").map_err(get)?;
    let secrets = secrets.open_sealed(&place("secrets", &id), &sealed)?;
    let spec: String = row.try_get("spec").map_err(get)?;
    let wanted: Option<String> = row.try_get("wanted").map_err(get)?;
    Ok(DeploymentRecord {
        name: row.try_get("name").map_err(get)?,
        pool: row.try_get("pool").map_err(get)?,
        state: unword("state of a deployed proxy", row.try_get("state").map_err(get)?)?,
        run: row.try_get("run").map_err(get)?,
        vm: row.try_get("vm").map_err(get)?,
        url: row.try_get("url").map_err(get)?,
        fingerprint: row.try_get("fingerprint").map_err(get)?,
        spec: json("parameters of a deployed proxy", &spec)?,
        wanted: wanted.map(|wanted| json("parameters of a deployed proxy", &wanted)).transpose()?,
        secrets: json("secrets of a deployed proxy", &secrets)?,
        copied_at: row.try_get("copied_at").map_err(get)?,
        ready_at: row.try_get("ready_at").map_err(get)?,
        id,
    })
}

/// In a reading of the caller's.
pub(super) async fn all(connection: &mut SqliteConnection, secrets: &Secrets) -> Result<Vec<DeploymentRecord>> {
    let sql = sqlx::AssertSqlSafe(format!("SELECT {COLUMNS} FROM deployments ORDER BY name COLLATE NOCASE, id"));
    let rows = sqlx::query(sql).fetch_all(connection).await.map_err(query("read the deployed proxies"))?;
    rows.iter().map(|row| record(secrets, row)).collect()
}

/// In a reading of the caller's.
pub(super) async fn state(connection: &mut SqliteConnection, secrets: &Secrets, id: &str) -> Result<Option<ProxyState>> {
    let sealed: Option<Option<Vec<u8>>> = sqlx::query_scalar("SELECT sealed_state FROM deployments WHERE id = ?")
        .bind(id)
        .fetch_optional(connection)
        .await
        .map_err(query("read the state of a deployed proxy"))?;
    let Some(sealed) = sealed.flatten() else { return Ok(None) };
    let state = secrets.open_sealed(&place("state", id), &sealed)?;
    json("state of a deployed proxy", &state).map(Some)
}

impl Store {
    /// All deployed proxies, by name.
    pub async fn deployments(&self) -> Result<Vec<DeploymentRecord>> {
        all(&mut *self.connection().await?, &self.secrets).await
    }

    /// Stores a proxy that is about to be deployed.
    pub async fn add_deployment(&self, record: &DeploymentRecord, at: i64) -> Result<()> {
        let mut transaction = self.connections().begin().await.map_err(query("begin a change"))?;
        insert(&mut transaction, &self.secrets, record, at).await?;
        transaction.commit().await.map_err(query("keep a deployed proxy"))
    }

    /// Writes down where a deployed proxy stands, and its secrets: both, or nothing.
    pub async fn set_deployment(&self, record: &DeploymentRecord) -> Result<()> {
        let what = "keep the secrets of a deployed proxy";
        let mut transaction = self.connections().begin().await.map_err(query(what))?;
        self.update_with_secrets(&mut transaction, record).await?;
        transaction.commit().await.map_err(query(what))
    }

    async fn update_with_secrets(&self, connection: &mut SqliteConnection, record: &DeploymentRecord) -> Result<()> {
        let sealed = self.secrets.seal(&place("secrets", &record.id), &text(&record.secrets))?;
        update(connection, record).await?;
        sqlx::query("UPDATE deployments SET sealed_secrets = ? WHERE id = ?")
            .bind(sealed)
            .bind(&record.id)
            .execute(connection)
            .await
            .map_err(query("keep the secrets of a deployed proxy"))?;
        Ok(())
    }

    /// Writes down what a run has made of a deployed proxy, if the row still waits for that run: two may find it out, and the
    /// next run may have begun since the first wrote it down.
    pub async fn settle_deployment(&self, record: &DeploymentRecord, run: Option<&str>) -> Result<()> {
        let what = "settle a deployed proxy";
        let mut transaction = self.connections().begin_with("BEGIN IMMEDIATE").await.map_err(query(what))?;
        let waits: Option<i64> = sqlx::query_scalar("SELECT 1 FROM deployments WHERE id = ? AND run IS ? AND state <> ?")
            .bind(&record.id)
            .bind(run)
            .bind(word(DeployedState::Ready))
            .fetch_optional(&mut *transaction)
            .await
            .map_err(query(what))?;
        if waits.is_some() {
            self.update_with_secrets(&mut transaction, record).await?;
        }
        transaction.commit().await.map_err(query(what))
    }

    /// Keeps a copy of the proxy's own state.
    pub async fn set_deployment_state(&self, id: &str, state: &ProxyState, at: i64) -> Result<()> {
        let mut connection = self.connections().acquire().await.map_err(query("keep the state of a deployed proxy"))?;
        put_state(&mut connection, &self.secrets, id, state, at).await
    }

    /// The last copy of the proxy's own state.
    pub async fn deployment_state(&self, id: &str) -> Result<Option<ProxyState>> {
        state(&mut *self.connection().await?, &self.secrets, id).await
    }

    /// Forgets a deployed proxy and frees its licence, in one go; whether there was one.
    pub async fn remove_deployment(&self, id: &str) -> Result<bool> {
        let what = "forget a deployed proxy";
        let mut transaction = self.connections().begin().await.map_err(query(what))?;
        let freed = sqlx::query("DELETE FROM license_bindings WHERE proxy = ?").bind(id).execute(&mut *transaction).await;
        freed.map_err(query(what))?;
        let done = sqlx::query("DELETE FROM deployments WHERE id = ?").bind(id).execute(&mut *transaction).await;
        let done = done.map_err(query(what))?;
        transaction.commit().await.map_err(query(what))?;
        Ok(done.rows_affected() > 0)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use api::{AddressSpec, ImageSource};

    use super::*;

    /// One whose first run is about to begin.
    pub(crate) fn record(id: &str, name: &str) -> DeploymentRecord {
        DeploymentRecord {
            id: id.into(),
            name: name.into(),
            pool: "p".into(),
            state: DeployedState::Deploying,
            run: None,
            vm: None,
            url: None,
            fingerprint: None,
            spec: DeploySpec {
                name: name.into(),
                site: None,
                pool: "p".into(),
                sr: None,
                network: None,
                address: AddressSpec::Dhcp,
                port: 443,
                http_proxy: None,
                vcpus: 2,
                memory: 2 << 30,
                disk: 20 << 30,
                license: None,
                login: None,
                image: ImageSource::default(),
            },
            wanted: None,
            secrets: DeploymentSecrets {
                token: Secret::new("hunter2"),
                http_proxy: None,
                login: None,
                image: Secret::new("/srv/x.xva"),
                wanted_image: None,
            },
            copied_at: None,
            ready_at: None,
        }
    }

    #[tokio::test]
    async fn a_deployed_proxy_reads_back_and_its_secrets_are_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let mut one = record("1", "né \"x\" 🦀");
        store.add_deployment(&one, 1).await.unwrap();
        assert_eq!(store.deployments().await.unwrap(), [one.clone()]);
        let taken = store.add_deployment(&record("2", "né \"x\" 🦀"), 1).await.unwrap_err();
        assert!(matches!(taken, StoreError::NameTaken { .. }), "{taken}");

        one.state = DeployedState::Ready;
        one.vm = Some("vm".into());
        one.wanted = Some(one.spec.clone());
        store.set_deployment(&one).await.unwrap();
        let state = ProxyState {
            form: 1,
            taken_at: 7,
            id: "1".into(),
            content: serde_json::json!({ "token": "hunter2" }),
            own_disk: Vec::new(),
        };
        store.set_deployment_state("1", &state, 8).await.unwrap();
        one.copied_at = Some(8);
        assert_eq!(store.deployments().await.unwrap(), [one]);
        assert_eq!(store.deployment_state("1").await.unwrap(), Some(state));
        assert_eq!(store.deployment_state("2").await.unwrap(), None);
        store.close().await;
        for entry in std::fs::read_dir(dir.path()).unwrap().flatten() {
            let bytes = std::fs::read(entry.path()).unwrap();
            assert!(!bytes.windows(7).any(|window| window == b"hunter2"), "{:?}", entry.path());
        }
        let store = Store::open({
            drop(store);
            dir.path()
        })
        .await
        .unwrap();
        assert!(store.remove_deployment("1").await.unwrap());
        assert!(!store.remove_deployment("1").await.unwrap());
    }
}
