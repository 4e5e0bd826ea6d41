//! The restore points on all remotes, read from the repositories themselves: what is there is what they say.

use std::collections::HashMap;
use std::sync::Arc;

use api::{RestorePoint, Verified};
use futures::future::join_all;
use futures::stream::{self, StreamExt, TryStreamExt};
use repository::{BackupMetadata, Listing, PointId, Repository};
use storage::RemoteUrl;

use crate::fault::Fault;
use crate::remotes::Remotes;
use crate::runs::Point;
use crate::store::{RemoteRecord, Store};

/// The restore points of this proxy's remotes.
pub struct Points {
    store: Arc<Store>,
    remotes: Arc<Remotes>,
}

impl Points {
    /// Over the remotes.
    pub fn new(store: Arc<Store>, remotes: Arc<Remotes>) -> Arc<Self> {
        Arc::new(Self { store, remotes })
    }

    /// Newest first. A remote that does not answer leaves its points out and says why in its own record; when none
    /// answers, or the one asked for does not, that is an error.
    pub async fn list(&self, vm: Option<&str>, remote: Option<&str>) -> Result<Vec<RestorePoint>, Fault> {
        let remotes = self.remotes.chosen(remote).await?;
        let answers = join_all(remotes.iter().map(|remote| self.of_remote(remote))).await;
        let verified: HashMap<String, Verified> = self.store.verifications().await?.into_iter().collect();
        let mut points = Vec::new();
        let (mut answered, mut failure) = (remotes.is_empty(), None);
        for answer in answers {
            match answer {
                Ok(found) => {
                    answered = true;
                    points.extend(found);
                }
                Err(report) => failure = failure.or(Some(report)),
            }
        }
        if let Some(report) = failure.filter(|_| !answered) {
            return Err(report.into());
        }
        if let Some(vm) = vm {
            points.retain(|point: &RestorePoint| point.vm.eq_ignore_ascii_case(vm) || point.vm_name == vm);
        }
        for point in &mut points {
            point.verified = verified.get(&point.id).cloned();
        }
        points.sort_by(|one, other| (other.timestamp, &one.id).cmp(&(one.timestamp, &other.id)));
        Ok(points)
    }

    async fn of_remote(&self, remote: &RemoteRecord) -> Result<Vec<RestorePoint>, api::ErrorReport> {
        let (id, name) = (remote.id.clone(), remote.name.clone());
        self.remotes.ask_listing(remote, move |url| async move { read_all(&url, &id, &name).await }).await
    }

    /// The restore point with an identifier; it is there when this returns.
    pub async fn find(&self, id: &str) -> Result<Point, Fault> {
        let missing = || Fault::missing("restorePoint", id);
        let (remote, path) = id.split_once('/').ok_or_else(missing)?;
        let wanted = PointId::parse(path).map_err(|_| missing())?;
        let remote = self.remotes.find(remote).await.map_err(|_| missing())?;
        let point = wanted.clone();
        let found = self.remotes.ask_listing(&remote, move |url| async move { read_one(&url, &point).await }).await?;
        let metadata = found.ok_or_else(missing)?;
        let at = jiff::Timestamp::from_millisecond(metadata.timestamp).unwrap_or_default();
        Ok(Point {
            id: format!("{}{wanted}", remote.id),
            remote: remote.id,
            path: wanted.to_string(),
            vm: wanted.vm().to_owned(),
            label: format!("{} ({at:.0})", metadata.vm_name()),
        })
    }
}

/// VM directories read at the same time.
const READERS: usize = 8;

async fn read_all(url: &RemoteUrl, remote: &str, name: &str) -> repository::Result<Vec<RestorePoint>> {
    let repository = Repository::open_url(url).await?;
    let vms = repository.vm_dirs().await?;
    let listings = stream::iter(vms).map(|vm| {
        let repository = &repository;
        async move { repository.list(&vm).await }
    });
    let listings: Vec<Listing> = listings.buffer_unordered(READERS).try_collect().await?;
    let mut points = Vec::new();
    for listing in listings {
        for unreadable in &listing.unreadable {
            tracing::warn!(remote = name, path = unreadable.path, reason = unreadable.reason, "a restore point cannot be read");
        }
        points.extend(listing.points.iter().map(|point| point.metadata.restore_point(remote, &point.id)));
    }
    Ok(points)
}

async fn read_one(url: &RemoteUrl, id: &PointId) -> repository::Result<Option<BackupMetadata>> {
    match Repository::open_url(url).await?.metadata(id).await {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}
