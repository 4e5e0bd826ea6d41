//! All that a proxy knows of the world, read and written as a whole: what one proxy hands over to the next.

use std::collections::BTreeSet;

use api::{DeployedState, Job, ProxyState};
use serde::{Deserialize, Serialize};

use super::meta::{Fact, PROXY_ID, put_facts};
use super::{BindingRecord, DeploymentRecord, LicenseRecord, PoolRecord, RemoteRecord, Result, Store, query};
use super::{deployments, jobs, licenses, pools, remotes};

/// Readings of the state before one that fits together is given up waiting for.
const ATTEMPTS: u32 = 5;

/// The records of a proxy. Full of secrets.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Records {
    /// Pools with their credentials.
    pub pools: Vec<PoolRecord>,
    /// Remotes with their URLs.
    pub remotes: Vec<RemoteRecord>,
    /// Jobs with their schedules.
    pub jobs: Vec<Job>,
    /// Licences.
    pub licenses: Vec<LicenseRecord>,
    /// Which proxies they serve.
    pub bindings: Vec<BindingRecord>,
    /// Proxies deployed by this one, each with the copy of its state.
    pub deployments: Vec<(DeploymentRecord, Option<ProxyState>)>,
}

impl Records {
    /// Whether everything that is referred to is there: it was read bit by bit, while others write.
    fn is_whole(&self) -> bool {
        let remotes: BTreeSet<&str> = self.remotes.iter().map(|remote| remote.id.as_str()).collect();
        let licenses: BTreeSet<&str> = self.licenses.iter().map(|license| license.id.as_str()).collect();
        self.jobs.iter().flat_map(|job| &job.spec.remotes).all(|remote| remotes.contains(remote.as_str()))
            && self.bindings.iter().all(|bound| licenses.contains(bound.license.as_str()))
    }
}

impl Store {
    /// All records.
    pub async fn records(&self) -> Result<Records> {
        let mut attempt = 1;
        loop {
            let records = self.read_records().await?;
            if records.is_whole() || attempt == ATTEMPTS {
                return Ok(records);
            }
            attempt += 1;
        }
    }

    async fn read_records(&self) -> Result<Records> {
        let mut deployments = Vec::new();
        // One whose first run goes on is known nowhere else yet: that run, and not another proxy, sees to its end.
        for mut record in self.deployments().await?.into_iter().filter(|record| record.state != DeployedState::Deploying) {
            let state = self.deployment_state(&record.id).await?;
            record.state = DeployedState::Ready;
            (record.wanted, record.secrets.wanted_image, record.run) = (None, None, None);
            deployments.push((record, state));
        }
        Ok(Records {
            jobs: self.jobs().await?,
            remotes: self.remotes().await?,
            pools: self.pools().await?,
            bindings: self.license_bindings().await?,
            licenses: self.licenses().await?,
            deployments,
        })
    }

    /// Takes on the id and the records of another proxy, with facts to keep beside them: all of it, or nothing. False, and
    /// nothing done, when there are jobs, remotes or deployed proxies already.
    ///
    /// Pools that are there go: without jobs nothing depends on them.
    pub async fn become_other(&self, id: &str, records: &Records, facts: &[Fact], at: i64) -> Result<bool> {
        let what = "take a state over";
        let mut transaction = self.connections().begin_with("BEGIN IMMEDIATE").await.map_err(query(what))?;
        let there: i64 = sqlx::query_scalar(
            "SELECT (SELECT COUNT(*) FROM jobs) + (SELECT COUNT(*) FROM remotes) + (SELECT COUNT(*) FROM deployments)",
        )
        .fetch_one(&mut *transaction)
        .await
        .map_err(query(what))?;
        if there > 0 {
            return Ok(false);
        }
        sqlx::query("DELETE FROM pools").execute(&mut *transaction).await.map_err(query(what))?;
        for pool in &records.pools {
            pools::insert(&mut transaction, &self.secrets, pool, at).await?;
        }
        for remote in &records.remotes {
            remotes::insert(&mut transaction, &self.secrets, remote, at).await?;
        }
        for job in &records.jobs {
            jobs::insert(&mut transaction, job, at).await?;
        }
        for license in &records.licenses {
            licenses::put(&mut transaction, &self.secrets, license, at).await?;
        }
        for binding in &records.bindings {
            licenses::put_binding(&mut transaction, binding, at).await?;
        }
        for (record, state) in &records.deployments {
            deployments::insert(&mut transaction, &self.secrets, record, at).await?;
            if let Some(state) = state {
                let copied_at = record.copied_at.unwrap_or(state.taken_at);
                deployments::put_state(&mut transaction, &self.secrets, &record.id, state, copied_at).await?;
            }
        }
        put_facts(&mut transaction, &self.secrets, &[Fact::open(PROXY_ID, id)]).await?;
        put_facts(&mut transaction, &self.secrets, facts).await?;
        transaction.commit().await.map_err(query(what))?;
        Ok(true)
    }
}
