//! The lock of a VM directory, the one XO takes too (backup-repository.md §4.11).
//!
//! A directory `<VM>.lock`, kept fresh by its modification time: set every five seconds, dead after ten. The holder
//! looks before it refreshes; another time than the one it set, or no directory, means that somebody thought it dead.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use storage::{RepoPath, Storage};
use tokio::task::JoinHandle;

use crate::{Error, Result};

const REFRESH: Duration = Duration::from_secs(5);
const STALE: Duration = Duration::from_secs(10);

/// The lock of one VM's directory, held. Whatever changes that directory asks to see it.
///
/// [`VmLock::release`] gives it back; dropped without, it is given back in the background.
#[derive(Debug)]
pub struct VmLock {
    vm: String,
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    storage: Arc<dyn Storage>,
    path: RepoPath,
    life: Arc<Mutex<Life>>,
    heartbeat: JoinHandle<()>,
}

impl VmLock {
    /// Takes the lock, or says who has it: there is no waiting here.
    pub(crate) async fn take(storage: Arc<dyn Storage>, vm: &str, path: RepoPath) -> Result<Self> {
        if !storage.capabilities().has_local_lock {
            return Ok(Self { vm: vm.to_owned(), held: None });
        }
        if let Err(error) = storage.make_lock(&path).await {
            if !error.is_already_exists() {
                return Err(error.into());
            }
            if let Some(age) = age(&*storage, &path).await?
                && age <= STALE
            {
                return Err(Error::Locked { vm: vm.to_owned(), lock: path.absolute(), age_seconds: age.as_secs() });
            }
            tracing::warn!(lock = %path, "taking over the lock of a process that stopped refreshing it");
            match storage.remove_lock(&path).await {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
            storage.make_lock(&path).await.map_err(|error| match error.is_already_exists() {
                true => Error::Locked { vm: vm.to_owned(), lock: path.absolute(), age_seconds: 0 },
                false => error.into(),
            })?;
        }
        let mark = refresh(&*storage, &path).await?;
        let life = Arc::new(Mutex::new(Life { mark, lost: None }));
        let heartbeat = tokio::spawn(beat(storage.clone(), path.clone(), life.clone()));
        Ok(Self { vm: vm.to_owned(), held: Some(Held { storage, path, life, heartbeat }) })
    }

    /// Whose lock this is.
    pub fn vm(&self) -> &str {
        &self.vm
    }

    /// Whether it is still held, and is that of `vm`.
    ///
    /// # Errors
    /// [`Error::LockLost`], [`Error::WrongLock`].
    pub fn check(&self, vm: &str) -> Result<()> {
        if vm != self.vm {
            return Err(Error::WrongLock { held: self.vm.clone(), wanted: vm.to_owned() });
        }
        let lost = self.held.as_ref().and_then(|held| shared(&held.life).lost.clone());
        lost.map_or(Ok(()), |reason| Err(Error::LockLost { vm: self.vm.clone(), reason }))
    }

    /// Gives the lock back.
    ///
    /// # Errors
    /// When the lock directory cannot be removed; it dies by itself after ten seconds.
    pub async fn release(mut self) -> Result<()> {
        let Some(held) = self.held.take() else { return Ok(()) };
        held.give_back().await
    }
}

impl Held {
    async fn give_back(self) -> Result<()> {
        self.heartbeat.abort();
        // Wait until it is really over, or a last refresh could meet the next holder's directory.
        let _ = self.heartbeat.await;
        let mark = {
            let life = shared(&self.life);
            if life.lost.is_some() {
                return Ok(());
            }
            life.mark
        };
        match self.storage.stat(&self.path).await {
            Ok(stat) if stat.modified == mark => Ok(self.storage.remove_lock(&self.path).await?),
            // Taken over by somebody, or a refresh was aborted before it noted its time: it dies by itself.
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for VmLock {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            held.heartbeat.abort();
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(async move {
                    if let Err(error) = held.give_back().await {
                        tracing::warn!(error = %error.chain(), "a lock is left to expire");
                    }
                });
            }
        }
    }
}

/// What heartbeat and holder share.
#[derive(Debug)]
struct Life {
    /// The time last set: a lock directory with another one is not ours.
    mark: SystemTime,
    /// Why the lock is lost, once it is.
    lost: Option<String>,
}

fn shared(life: &Mutex<Life>) -> std::sync::MutexGuard<'_, Life> {
    life.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// How long ago the holder gave a sign of life; none when the lock is gone.
async fn age(storage: &dyn Storage, path: &RepoPath) -> Result<Option<Duration>> {
    match storage.stat(path).await {
        // A time in the future is a fresh one: clocks differ, and a lock is not broken on doubt.
        Ok(stat) => Ok(Some(SystemTime::now().duration_since(stat.modified).unwrap_or_default())),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Sets the time and reads back what the storage made of it: some keep whole seconds only.
async fn refresh(storage: &dyn Storage, path: &RepoPath) -> Result<SystemTime, storage::StorageError> {
    storage.set_modified(path, SystemTime::now()).await?;
    Ok(storage.stat(path).await?.modified)
}

async fn beat(storage: Arc<dyn Storage>, path: RepoPath, life: Arc<Mutex<Life>>) {
    let mut last = tokio::time::Instant::now();
    let reason = loop {
        tokio::time::sleep(REFRESH).await;
        let mark = shared(&life).mark;
        match storage.stat(&path).await {
            Ok(stat) if stat.modified != mark => break "another process refreshed it".to_owned(),
            Err(error) if error.is_not_found() => break "another process removed it".to_owned(),
            Ok(_) => match refresh(&*storage, &path).await {
                Ok(time) => {
                    shared(&life).mark = time;
                    last = tokio::time::Instant::now();
                    continue;
                }
                Err(error) => tracing::warn!(%error, "a lock could not be refreshed"),
            },
            Err(error) => tracing::warn!(%error, "a lock could not be looked at"),
        }
        if last.elapsed() > STALE {
            break "it could not be refreshed in time".to_owned();
        }
    };
    tracing::warn!(lock = %path, reason, "a lock was lost");
    shared(&life).lost = Some(reason);
}
