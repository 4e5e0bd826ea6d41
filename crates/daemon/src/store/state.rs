//! All that a proxy knows of the world, read and written as a whole: what one proxy hands over to the next.

use api::{DeployedState, Job, ProxyState};
use serde::{Deserialize, Serialize};

use super::meta::{Fact, PROXY_ID, put_facts};
use super::{BindingRecord, DeploymentRecord, LicenseRecord, PoolRecord, RemoteRecord, Result, Store, query};
use super::{deployments, jobs, licenses, pools, remotes};

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

impl Store {
    /// All records, as they were at one moment: whatever one refers to is among them.
    pub async fn records(&self) -> Result<Records> {
        let what = "read the whole state";
        // From the first statement in it on, the database shows what stands there then, whoever writes meanwhile.
        let mut reading = self.connections().begin().await.map_err(query(what))?;
        let secrets = &self.secrets;
        let mut deployments = Vec::new();
        // One whose first run goes on is known nowhere else yet: that run, and not another proxy, sees to its end.
        let known = deployments::all(&mut reading, secrets).await?;
        for mut record in known.into_iter().filter(|record| record.state != DeployedState::Deploying) {
            let state = deployments::state(&mut reading, secrets, &record.id).await?;
            record.state = DeployedState::Ready;
            (record.wanted, record.secrets.wanted_image, record.run) = (None, None, None);
            deployments.push((record, state));
        }
        let records = Records {
            jobs: jobs::all(&mut reading).await?,
            remotes: remotes::all(&mut reading, secrets).await?,
            pools: pools::all(&mut reading, secrets).await?,
            bindings: licenses::all_bindings(&mut reading).await?,
            licenses: licenses::all(&mut reading, secrets).await?,
            deployments,
        };
        reading.commit().await.map_err(query(what))?;
        Ok(records)
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use api::JobSpec;

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_job_refers_to_is_always_among_the_records() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path()).await.unwrap());
        let writer = Arc::clone(&store);
        let writing = tokio::spawn(async move {
            let spec = serde_json::json!({ "name": "j", "mode": "delta", "vms": ["v"], "remotes": [] });
            let spec: JobSpec = serde_json::from_value(spec).unwrap();
            for round in 0.. {
                let id = format!("r{round}");
                let remote = RemoteRecord { id: id.clone(), name: id.clone(), url: "file:///x".into() };
                writer.add_remote(&remote, 1).await.unwrap();
                let spec = JobSpec { remotes: vec![id.clone()], ..spec.clone() };
                let job = Job { id: "j".into(), schedule_id: "s".into(), spec, last_run: None, next_runs: Vec::new() };
                writer.add_job(&job, 1).await.unwrap();
                writer.remove_job("j").await.unwrap();
                writer.remove_remote(&id).await.unwrap();
            }
        });
        let mut with_a_job = 0;
        while with_a_job < 100 {
            assert!(!writing.is_finished());
            let records = store.records().await.unwrap();
            for job in &records.jobs {
                with_a_job += 1;
                let there = |id: &String| records.remotes.iter().any(|remote| remote.id == *id);
                assert!(job.spec.remotes.iter().all(there), "the remotes of a job are missing");
            }
        }
        writing.abort();
    }
}
