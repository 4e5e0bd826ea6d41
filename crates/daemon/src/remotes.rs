//! The remotes: opened when asked for, each question with a time limit and on a task of its own, so that a dead mount
//! costs an answer and not the daemon.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::{ErrorReport, Remote, RemoteTest, Space, Topic};
use engine::plan::{RemoteAccess, Secret};
use futures::future::join_all;
use storage::{Location, OpenOptions, RemoteUrl, Storage, StorageError};

use crate::fault::{self, Fault};
use crate::mounts::{self, Mount};
use crate::news::News;
use crate::store::{RemoteRecord, Store, StoreError};

/// For a look at the free space.
const LOOK: Duration = Duration::from_secs(5);
/// For a listing of everything on it.
const LISTING: Duration = Duration::from_secs(60);
/// For the test with 10 MiB.
pub(crate) const PROBE: Duration = Duration::from_secs(120);

/// What each remote was mounted on when it was added, among the facts of the proxy: id → mount, in JSON.
const MOUNTS: &str = "remote_mounts";

/// Code of a question that was not asked, because another one is under way.
pub(crate) const BUSY: &str = "REMOTE_BUSY";

/// The remotes of this proxy.
pub struct Remotes {
    store: Arc<Store>,
    news: Arc<News>,
    /// One question at a time to each: a hung one must not pile up threads.
    gates: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    errors: Mutex<BTreeMap<String, ErrorReport>>,
    /// What each said last of its room, for as long as another question keeps it busy.
    rooms: Mutex<HashMap<String, Room>>,
    /// Held while the fact about mounts is changed.
    mounts: tokio::sync::Mutex<()>,
    home: Arc<Home>,
}

/// What is seen of a remote from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Room {
    space: Option<storage::Space>,
    own_disk: bool,
}

/// Where the system stands that this proxy runs on.
pub struct Home {
    root: PathBuf,
    state: PathBuf,
}

impl Home {
    /// Of the system that a state folder belongs to.
    pub fn of(state: &Path) -> Self {
        Self { root: crate::first_boot::root_of(state), state: state.to_owned() }
    }

    /// Whether a remote is a folder on the disk of that system, on which nothing else is mounted.
    fn holds(&self, url: &RemoteUrl) -> std::io::Result<bool> {
        use std::os::unix::fs::MetadataExt;
        let Location::Local { path } = url.location() else { return Ok(false) };
        let path = path.canonicalize()?;
        if !path.starts_with(self.root.canonicalize()?) {
            return Ok(false);
        }
        let device = path.metadata()?.dev();
        Ok([&self.root, &self.state].into_iter().flat_map(|own| own.metadata()).any(|own| own.dev() == device))
    }

    /// The free space of a remote, and where it lies.
    async fn look(self: Arc<Self>, url: RemoteUrl, storage: Arc<dyn Storage>) -> storage::Result<Room> {
        let space = storage.space().await?;
        // Asked of the kernel, which may be waiting for a mount.
        let held = tokio::task::spawn_blocking(move || self.holds(&url)).await.map_err(std::io::Error::other).flatten();
        let own_disk = held.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot tell on which disk a remote lies");
            false
        });
        Ok(Room { space, own_disk })
    }
}

impl Remotes {
    /// Over the stored remotes; opens none of them yet.
    pub fn new(store: Arc<Store>, news: Arc<News>, home: Home) -> Arc<Self> {
        Arc::new(Self {
            store,
            news,
            gates: Mutex::default(),
            errors: Mutex::default(),
            rooms: Mutex::default(),
            mounts: tokio::sync::Mutex::default(),
            home: Arc::new(home),
        })
    }

    /// The stored remote with an id, or a name.
    pub async fn find(&self, id: &str) -> Result<RemoteRecord, Fault> {
        let all = self.store.remotes().await?;
        let found = all.iter().find(|remote| remote.id == id).or_else(|| all.iter().find(|remote| remote.name == id));
        found.cloned().ok_or_else(|| Fault::missing("remote", id))
    }

    /// All, or the one that is asked for.
    pub async fn chosen(&self, id: Option<&str>) -> Result<Vec<RemoteRecord>, Fault> {
        match id {
            Some(id) => Ok(vec![self.find(id).await?]),
            None => Ok(self.store.remotes().await?),
        }
    }

    /// How to reach a remote, for a worker.
    pub async fn access(&self, id: &str) -> Result<RemoteAccess, Fault> {
        let record = self.find(id).await?;
        let away = self.elsewhere(&record).await;
        let RemoteRecord { id, name, url } = record;
        Ok(RemoteAccess { id, name, url: Secret::new(url), away })
    }

    /// Opens a new remote, making its folder if need be, and stores it.
    pub async fn add(&self, name: String, url: String, at: i64) -> Result<Remote, Fault> {
        let parsed = RemoteUrl::parse(&url).map_err(|error| Fault::invalid("url", format!("url: {error}")))?;
        for known in self.store.remotes().await? {
            if RemoteUrl::parse(&known.url).is_ok_and(|known| known.location() == parsed.location()) {
                return Err(Fault::invalid("url", format!("url: the remote {:?} is already there", known.name)));
            }
        }
        let record = RemoteRecord { id: uuid::Uuid::new_v4().to_string(), name, url };
        let home = Arc::clone(&self.home);
        let look = move |url: RemoteUrl| async move {
            let storage = storage::open(&url, OpenOptions { make_root: true }).await?;
            home.look(url, storage).await
        };
        let room = self.ask(&record, LOOK, "open", look).await?;
        self.store.add_remote(&record, at).await?;
        self.keep_mount(&record.id, mount_below(&record)).await;
        self.news.changed(Topic::Remotes);
        self.news.changed(Topic::RestorePoints);
        Ok(show(record, Ok(room)))
    }

    /// Forgets a remote; its files stay.
    pub async fn remove(&self, id: &str) -> Result<(), Fault> {
        let remote = self.find(id).await?;
        let jobs = self.store.jobs_of_remote(&remote.id).await?;
        if !jobs.is_empty() {
            let reason = format!("the remote {} is used by the job{} {}", remote.name, plural(jobs.len()), jobs.join(", "));
            return Err(Fault::forbidden("remote.remove", reason));
        }
        self.store.remove_remote(&remote.id).await?;
        self.keep_mount(&remote.id, None).await;
        self.note(&remote.id, None);
        self.gates.lock().unwrap_or_else(PoisonError::into_inner).remove(&remote.id);
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner).remove(&remote.id);
        self.news.changed(Topic::Remotes);
        self.news.changed(Topic::RestorePoints);
        Ok(())
    }

    /// All remotes with their free space, asked at the same time.
    pub async fn list(&self) -> Result<Vec<Remote>, Fault> {
        let all = self.store.remotes().await?;
        Ok(join_all(all.into_iter().map(|record| async move {
            let room = self.room(&record).await;
            show(record, room)
        }))
        .await)
    }

    async fn mounts(&self) -> Result<BTreeMap<String, Mount>, StoreError> {
        let text = self.store.fact(MOUNTS).await?;
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
    }

    /// Notes what a remote is mounted on, or forgets it. Without the note its mount is not looked after, and no more.
    async fn keep_mount(&self, id: &str, mount: Option<Mount>) {
        let _one_at_a_time = self.mounts.lock().await;
        let kept = async {
            let mut mounts = self.mounts().await?;
            match mount {
                Some(mount) => drop(mounts.insert(id.to_owned(), mount)),
                None => drop(mounts.remove(id)),
            }
            self.store.set_fact(MOUNTS, &serde_json::to_string(&mounts).unwrap_or_default()).await
        };
        if let Err(error) = kept.await {
            tracing::warn!(remote = id, error = &error as &dyn std::error::Error, "cannot note what a remote is mounted on");
        }
    }

    /// Whether a remote does not lie any more on what it was mounted on when it was added: then its share is away, and the
    /// folder that is left of it belongs to another disk, which backups would fill.
    async fn elsewhere(&self, record: &RemoteRecord) -> Option<ErrorReport> {
        let then = self.mounts().await.ok()?.remove(&record.id)?;
        let now = mount_below(record)?;
        if now.is_as(&then) {
            return None;
        }
        if now.point != then.point && now.point.starts_with(&then.point) {
            // It has got a disk of its own since.
            self.keep_mount(&record.id, Some(now)).await;
            return None;
        }
        let message =
            format!("the remote {} is not mounted: it lies on the {now}, and lay on the {then} when it was added", record.name);
        let next = format!(
            "mount it again: mount {}; if it is to lie there from now on, remove the remote and add it again: its files stay",
            then.point.display()
        );
        Some(ErrorReport::new("REMOTE_NOT_MOUNTED", message).with_next(next))
    }

    /// The free space of a remote, as it is now or was last known.
    pub(crate) async fn space(&self, record: &RemoteRecord) -> Result<Option<storage::Space>, ErrorReport> {
        Ok(self.room(record).await?.space)
    }

    async fn room(&self, record: &RemoteRecord) -> Result<Room, ErrorReport> {
        self.room_within(record, LOOK).await
    }

    async fn room_within(&self, record: &RemoteRecord, patience: Duration) -> Result<Room, ErrorReport> {
        if self.gate(&record.id).try_lock().is_err() {
            // A test or a listing is under way: what was last known of the remote still holds.
            if let Some(report) = self.noted(&record.id) {
                return Err(report);
            }
            if let Some(room) = self.rooms.lock().unwrap_or_else(PoisonError::into_inner).get(&record.id) {
                return Ok(*room);
            }
        }
        let home = Arc::clone(&self.home);
        let look = move |url: RemoteUrl| async move {
            let storage = open(&url).await?;
            home.look(url, storage).await
        };
        match self.ask_within(record, patience.min(LOOK), LOOK, "look at", look).await {
            Ok(room) => {
                self.rooms.lock().unwrap_or_else(PoisonError::into_inner).insert(record.id.clone(), room);
                Ok(room)
            }
            // Nothing is known yet, and that is no fault of the remote's.
            Err(report) if report.code == BUSY => Ok(Room::default()),
            Err(report) => Err(report),
        }
    }

    fn gate(&self, id: &str) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(self.gates.lock().unwrap_or_else(PoisonError::into_inner).entry(id.to_owned()).or_default())
    }

    fn noted(&self, id: &str) -> Option<ErrorReport> {
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// Writes, reads back and compares 10 MiB. `patience`: for each question to it that is under way.
    pub async fn probe(&self, id: &str, patience: Duration) -> Result<RemoteTest, Fault> {
        let record = self.find(id).await?;
        let name = record.name.clone();
        let failed = |step: &str, error: ErrorReport| RemoteTest {
            success: false,
            write_rate: None,
            read_rate: None,
            step: Some(step.to_owned()),
            error: Some(error),
        };
        // Opening is a step of its own: its error says more than the test's.
        if let Err(error) = self.room_within(&record, patience).await {
            return Ok(failed("open", error));
        }
        let tested = self.ask_within(&record, patience, PROBE, "test", |url| async move {
            let storage = open(&url).await?;
            Ok::<_, StorageError>(storage::probe(&*storage).await)
        });
        Ok(match tested.await {
            Ok(Ok(probe)) => RemoteTest {
                success: true,
                write_rate: Some(probe.write_rate),
                read_rate: Some(probe.read_rate),
                step: None,
                error: None,
            },
            Ok(Err(error)) => {
                failed(error.step.name(), fault::report("REMOTE_TEST", &format!("the remote {name} failed"), &error))
            }
            Err(error) => failed("open", error),
        })
    }

    /// Asks a remote something within `limit`. The question goes on if it takes longer; others wait for its end as long as
    /// for their own answer, and are told the remote's last error when it does not come, or that it is busy.
    pub async fn ask<T, E, F>(
        &self,
        record: &RemoteRecord,
        limit: Duration,
        what: &str,
        question: impl FnOnce(RemoteUrl) -> F,
    ) -> Result<T, ErrorReport>
    where
        T: Send + 'static,
        E: Into<Failure> + Send + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        self.ask_within(record, limit, limit, what, question).await
    }

    /// The same with a `patience` of its own for other questions to end.
    async fn ask_within<T, E, F>(
        &self,
        record: &RemoteRecord,
        patience: Duration,
        limit: Duration,
        what: &str,
        question: impl FnOnce(RemoteUrl) -> F,
    ) -> Result<T, ErrorReport>
    where
        T: Send + 'static,
        E: Into<Failure> + Send + 'static,
        F: Future<Output = Result<T, E>> + Send + 'static,
    {
        let what = format!("cannot {what} the remote {}", record.name);
        let Ok(pass) = tokio::time::timeout(patience, self.gate(&record.id).lock_owned()).await else {
            // Whether it hangs is for the question that is under way to find out.
            let busy =
                || ErrorReport::new(BUSY, format!("{what}: another question to it takes long")).with_next("try again later");
            return Err(self.noted(&record.id).unwrap_or_else(busy));
        };
        let answer = async {
            // A folder that is left of it is no empty repository, and nothing is written to a disk it does not belong to.
            if let Some(away) = self.elsewhere(record).await {
                return Err(away);
            }
            let url = RemoteUrl::parse(&record.url).map_err(|error| fault::report("REMOTE_URL", &what, &error))?;
            let hangs = |what: &str| {
                ErrorReport::new("REMOTE_HANGS", format!("{what}: it does not answer")).with_next("check its mount on the proxy")
            };
            let asking = question(url);
            let task = tokio::spawn(async move {
                let answer = asking.await;
                drop(pass);
                answer
            });
            match tokio::time::timeout(limit, task).await {
                Ok(Ok(answer)) => answer.map_err(|error| explain(error.into(), &what)),
                Ok(Err(error)) => Err(fault::report("INTERNAL", &what, &error)),
                Err(_) => Err(hangs(&what)),
            }
        }
        .await;
        self.note(&record.id, answer.as_ref().err());
        answer
    }

    /// Asks for a listing.
    pub async fn ask_listing<T, F>(&self, record: &RemoteRecord, question: impl FnOnce(RemoteUrl) -> F) -> Result<T, ErrorReport>
    where
        T: Send + 'static,
        F: Future<Output = repository::Result<T>> + Send + 'static,
    {
        self.ask(record, LISTING, "list the restore points of", question).await
    }

    fn note(&self, id: &str, error: Option<&ErrorReport>) {
        let changed = {
            let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
            match error {
                Some(error) => errors.insert(id.to_owned(), error.clone()).is_none(),
                None => errors.remove(id).is_some(),
            }
        };
        if changed {
            if let Some(error) = error {
                tracing::warn!(remote = id, %error, "a remote is away");
            }
            self.news.changed(Topic::Remotes);
        }
    }
}

/// What a remote on this machine lies on.
fn mount_below(record: &RemoteRecord) -> Option<Mount> {
    match RemoteUrl::parse(&record.url).ok()?.location() {
        Location::Local { path } => mounts::of(path),
        _ => None,
    }
}

/// Opens a remote that must be there: an empty mount point is not silently a new repository.
async fn open(url: &RemoteUrl) -> storage::Result<Arc<dyn Storage>> {
    storage::open(url, OpenOptions { make_root: false }).await
}

/// What a question to a remote can fail with.
pub enum Failure {
    /// The storage.
    Storage(StorageError),
    /// The repository on it.
    Repository(repository::Error),
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        Self::Storage(error)
    }
}

impl From<repository::Error> for Failure {
    fn from(error: repository::Error) -> Self {
        match error {
            repository::Error::Storage(error) => Self::Storage(error),
            error => Self::Repository(error),
        }
    }
}

fn explain(error: Failure, what: &str) -> ErrorReport {
    use storage::Kind;
    let error = match error {
        Failure::Storage(error) => error,
        Failure::Repository(error) => return fault::report("REPOSITORY", what, &error),
    };
    // A root that is not there has words of its own in `storage`, and the system's error behind them.
    let absent = error.source.as_ref().is_some_and(|source| source.kind() == std::io::ErrorKind::NotFound);
    let (code, next) = match &error.kind {
        _ if absent => ("REMOTE_NOT_FOUND", Some("check that it is mounted on the proxy")),
        Kind::NotFound => ("REMOTE_NOT_FOUND", Some("check that it is mounted on the proxy")),
        Kind::NoSpace { .. } => ("REMOTE_FULL", Some("remove restore points, lower the retention of jobs, or enlarge it")),
        Kind::PermissionDenied => ("REMOTE_PERMISSION", Some("give the daemon's user the right to write there")),
        Kind::ReadOnly => ("REMOTE_READ_ONLY", Some("mount it writable")),
        Kind::Unsupported(_) => ("REMOTE_UNSUPPORTED", None),
        _ => ("REMOTE_FAILED", None),
    };
    let report = fault::report(code, what, &error);
    match next {
        Some(next) => report.with_next(next),
        None => report,
    }
}

fn show(record: RemoteRecord, room: Result<Room, ErrorReport>) -> Remote {
    let parsed = RemoteUrl::parse(&record.url).ok();
    let Room { space, own_disk } = room.as_ref().copied().unwrap_or_default();
    Remote {
        id: record.id,
        name: record.name,
        url: parsed.as_ref().map(RemoteUrl::redacted).unwrap_or_default(),
        kind: parsed.as_ref().map(|url| url.location().kind().to_owned()).unwrap_or_default(),
        vhd_directory: parsed.as_ref().is_some_and(RemoteUrl::use_vhd_directory),
        space: space.map(|space| Space { size: space.size, used: space.used, available: space.available }),
        own_disk,
        error: room.err(),
    }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remote_goes_with_the_proxy_only_if_it_lies_on_its_system_s_disk() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("guest/srv/backups"), dir.path().join("nas"));
        let state = dir.path().join("guest/var/lib/backhaul");
        for folder in [&inside, &outside, &state] {
            std::fs::create_dir_all(folder).unwrap();
        }
        std::os::unix::fs::symlink(&inside, dir.path().join("link")).unwrap();
        let home = Home::of(&state);
        let holds = |path: &Path| home.holds(&RemoteUrl::parse(&format!("file://{}", path.display())).unwrap());
        assert!(holds(&inside).unwrap() && holds(&dir.path().join("link")).unwrap());
        assert!(!holds(&outside).unwrap());
        holds(&dir.path().join("guest/nothing")).unwrap_err();
        // The whole machine is the system of whoever has its state elsewhere; what is mounted there is no part of its disk.
        let home = Home::of(&dir.path().join("state"));
        assert!(!home.holds(&RemoteUrl::parse("file:///proc").unwrap()).unwrap());
        assert!(Home::of(dir.path()).holds(&RemoteUrl::parse(&format!("file://{}", outside.display())).unwrap()).unwrap());
    }

    #[tokio::test]
    async fn a_busy_remote_does_not_hang_and_one_whose_question_timed_out_does() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&dir.path().join("state")).await.unwrap());
        let remotes = Remotes::new(store, Arc::default(), Home::of(dir.path()));
        let root = dir.path().join("remote");
        std::fs::create_dir(&root).unwrap();
        let record = RemoteRecord { id: "r".into(), name: "nas".into(), url: format!("file://{}", root.display()) };
        remotes.rooms.lock().unwrap().insert("r".into(), Room::default());
        let pass = remotes.gate("r").lock_owned().await;
        assert_eq!(remotes.space(&record).await, Ok(None));
        let never = |_| std::future::pending::<storage::Result<()>>();
        assert_eq!(remotes.ask(&record, Duration::ZERO, "look at", never).await.unwrap_err().code, BUSY);
        assert_eq!(remotes.noted("r"), None);
        drop(pass);
        assert_eq!(remotes.ask(&record, Duration::ZERO, "look at", never).await.unwrap_err().code, "REMOTE_HANGS");
        // The question still hangs; now that is what others are told.
        assert_eq!(remotes.space(&record).await.unwrap_err().code, "REMOTE_HANGS");
    }
}
