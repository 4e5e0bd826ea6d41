//! What is known here of a deployed proxy follows what becomes of it elsewhere: its name, token, certificate and address are
//! taken down when somebody tells them, after they were tried; and of its own state a copy is kept, so that it can be made
//! anew when it cannot be asked any more.
//!
//! Each proxy that is ready is watched over its own stream of news. A copy is taken when the stream begins, when something
//! of the state changes, and every few hours. While a run works on the proxy nothing is copied.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::{
    Credentials, Deployed, DeployedState, NoParams, ProxyNews, ProxyStatus, ProxyStatusGet, ProxyWatch, RemoteList, StateExport,
    Topic,
};
use client::{CallError, Client};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::Deployments;
use super::reach::{Access, failed, on_own_disk};
use crate::clock::Clock;
use crate::config::check_plain;
use crate::fault::Fault;
use crate::store::{DeploymentRecord, StoreError};

/// From a change to the copy: changes come in groups.
const CALM: Duration = Duration::from_secs(2);
/// A copy is never older than this, unless the proxy cannot be asked.
const OLDEST: Duration = Duration::from_secs(6 * 3600);
/// Between two attempts to reach a proxy, doubled up to the longest.
const RETRY_FIRST: Duration = Duration::from_secs(5);
const RETRY_LAST: Duration = Duration::from_secs(600);

impl Deployments {
    /// Takes down how a deployed proxy is called and reached now. Its address stays as long as the proxy answers there.
    ///
    /// # Errors
    /// It cannot be reached so, or is another one; a run works on it; the name is taken. Then nothing is changed.
    pub async fn adopt(&self, given: &Credentials) -> Result<Deployed, Fault> {
        const OPERATION: &str = "deploy.adopt";
        check_plain(&given.name).map_err(|expected| Fault::invalid("name", format!("name: {expected}")))?;
        let known = self.by_id(&given.id).await?;
        let at = |url: &str| Access { url: url.into(), fingerprint: given.fingerprint.clone(), token: given.token.clone() };
        let (mut url, mut answer) = (given.url.clone(), None);
        if let Some(present) = known.url.filter(|present| *present != given.url)
            && let Ok(status) = at(&present).status().await
        {
            (url, answer) = (present, Some(status));
        }
        let status = match answer {
            Some(status) => status,
            None => at(&url).status().await.map_err(failed)?,
        };
        if status.id != given.id {
            return Err(Fault::forbidden(OPERATION, format!("what answers at {url} is another proxy: {}", status.name)));
        }
        let _deciding = self.deciding.lock().await;
        let mut record = self.idle(&given.id, OPERATION).await?;
        record.url = Some(url);
        record.fingerprint = Some(given.fingerprint.clone());
        record.secrets.token = engine::plan::Secret::new(&given.token);
        self.rename(&mut record, &given.name).await?;
        let deployed = self.list().await?.into_iter().find(|deployed| deployed.id == given.id);
        deployed.ok_or_else(|| Fault::missing("proxy", &given.id))
    }

    async fn by_id(&self, id: &str) -> Result<DeploymentRecord, Fault> {
        let known = self.store.deployments().await?;
        known.into_iter().find(|record| record.id == id).ok_or_else(|| Fault::missing("proxy", id))
    }

    /// Writes a record down under a name, which its licence has then too.
    async fn rename(&self, record: &mut DeploymentRecord, name: &str) -> Result<(), StoreError> {
        record.name = name.to_owned();
        record.spec.name = name.to_owned();
        self.store.set_deployment(record).await?;
        self.store.rename_binding(&record.id, name).await?;
        self.news.changed(Topic::Deployed);
        self.news.changed(Topic::Licenses);
        Ok(())
    }

    /// Keeps copies of the states of all proxies that are ready, until told to stop.
    pub async fn keep_copies(self: Arc<Self>, clock: Arc<dyn Clock>, stop: CancellationToken) {
        let mut watcher = self.news.watcher();
        let mut followed: HashMap<String, (Access, AbortOnDropHandle<()>)> = HashMap::new();
        loop {
            match self.store.deployments().await {
                Ok(records) => {
                    let ready = records.into_iter().filter(|record| record.state == DeployedState::Ready);
                    let ready: HashMap<String, Access> =
                        ready.filter_map(|record| Some((record.id.clone(), Access::of(&record)?))).collect();
                    followed.retain(|id, (access, _)| ready.get(id) == Some(access));
                    for (id, access) in ready {
                        followed.entry(id).or_insert_with_key(|id| {
                            let task = Arc::clone(&self).follow(id.clone(), access.clone(), Arc::clone(&clock));
                            (access, AbortOnDropHandle::new(tokio::spawn(task)))
                        });
                    }
                }
                Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "cannot look after deployed proxies"),
            }
            loop {
                tokio::select! {
                    more = watcher.wait() => if !more { return },
                    () = stop.cancelled() => return,
                }
                if watcher.take(&self.news).contains(&Topic::Deployed) {
                    break;
                }
            }
        }
    }

    async fn follow(self: Arc<Self>, id: String, access: Access, clock: Arc<dyn Clock>) {
        let (mut pause, mut last) = (RETRY_FIRST, String::new());
        loop {
            let mut copied = false;
            let Err(fault) = self.watch(&id, &access, &*clock, &mut copied).await;
            if copied {
                (pause, last) = (RETRY_FIRST, String::new());
            }
            if !copied && self.found_elsewhere(&id, &access).await {
                // Whoever looks after the proxies follows it there.
                return;
            }
            let report = fault.report();
            if report.message != last {
                tracing::warn!(proxy = id, error = %report, "the state of a deployed proxy cannot be copied now");
                last = report.message;
            }
            sleep(pause).await;
            pause = (pause * 2).min(RETRY_LAST);
        }
    }

    /// Whether a proxy that does not answer at its address answers at another one that its guest reports to the pool, as one that
    /// has its address by DHCP may. Then that is taken down: certificate and id show that it is the same.
    async fn found_elsewhere(&self, id: &str, access: &Access) -> bool {
        let found = async {
            let record = self.by_id(id).await?;
            let Some(vm) = &record.vm else { return Ok(None) };
            for address in self.pools.guest_addresses(&record.pool, vm).await? {
                let url = engine::proxy_url(address, record.spec.port);
                let there = Access { url, ..access.clone() };
                if there.url != access.url && there.status().await.is_ok_and(|status| status.id == id) {
                    return Ok(Some(there.url));
                }
            }
            Ok::<_, Fault>(None)
        };
        let Ok(Some(url)) = found.await else { return false };
        let _deciding = self.deciding.lock().await;
        let moved = async {
            let mut record = self.idle(id, "deploy.follow").await?;
            if record.url.as_deref() != Some(access.url.as_str()) {
                return Ok(());
            }
            tracing::info!(proxy = record.name, from = access.url, to = url, "a deployed proxy has another address now");
            record.url = Some(url);
            self.store.set_deployment(&record).await?;
            self.news.changed(Topic::Deployed);
            Ok::<_, Fault>(())
        };
        moved.await.is_ok()
    }

    /// Watches a proxy, and copies its state, until that fails.
    async fn watch(
        &self,
        id: &str,
        access: &Access,
        clock: &dyn Clock,
        copied: &mut bool,
    ) -> Result<std::convert::Infallible, Fault> {
        let client = access.client().map_err(failed)?;
        let mut lines = client.stream::<ProxyWatch>(&NoParams {}).await.map_err(failed)?;
        let mut seen = None;
        loop {
            match timeout(OLDEST, lines.next()).await {
                Err(_) => {}
                Ok(Ok(None)) => {
                    let reason = "it ended the stream of its news".to_owned();
                    return Err(failed(CallError::Cut { host: client.host().to_owned(), reason }));
                }
                Ok(Err(error)) => return Err(failed(error)),
                Ok(Ok(Some(news))) => {
                    let shown = shown(&news.status);
                    let first = seen.is_none();
                    let changed = seen.replace(shown.clone()).is_some_and(|before| before != shown);
                    if !first && !changed && !concerns(&news) {
                        continue;
                    }
                    if !first {
                        sleep(CALM).await;
                    }
                }
            }
            self.copy(id, &client, clock).await?;
            *copied = true;
        }
    }

    async fn copy(&self, id: &str, client: &Client, clock: &dyn Clock) -> Result<(), Fault> {
        // As old as it may be, and not a moment younger.
        let at = clock.now().as_millisecond();
        let mut state = client.call::<StateExport>(&NoParams {}).await.map_err(failed)?;
        let remotes = client.call::<RemoteList>(&NoParams {}).await.map_err(failed)?;
        state.own_disk = on_own_disk(remotes);
        let status = client.call::<ProxyStatusGet>(&NoParams {}).await.map_err(failed)?;
        if state.id != id || status.id != id {
            return Err(Fault::forbidden("deploy", format!("what answers at {} is another proxy", client.host())));
        }
        let _deciding = self.deciding.lock().await;
        let mut record = self.by_id(id).await?;
        if record.state != DeployedState::Ready {
            return Ok(());
        }
        self.store.set_deployment_state(id, &state, at).await?;
        if record.name != status.name {
            let renamed = self.rename(&mut record, &status.name).await;
            if let Err(error) = renamed {
                tracing::warn!(
                    id,
                    name = status.name,
                    error = &error as &dyn std::error::Error,
                    "a deployed proxy is called otherwise"
                );
            }
        }
        self.news.changed(Topic::Deployed);
        Ok(())
    }
}

/// What of a proxy's state shows in its status.
fn shown(status: &ProxyStatus) -> (String, Option<String>, String, Option<i64>) {
    (status.name.clone(), status.site.clone(), status.fingerprint.clone(), status.former_token_until)
}

/// Whether news is of something that belongs to the state.
fn concerns(news: &ProxyNews) -> bool {
    let topics = [Topic::Pools, Topic::Remotes, Topic::Jobs, Topic::Licenses, Topic::Deployed];
    news.changed.iter().any(|changed| topics.contains(changed))
}
