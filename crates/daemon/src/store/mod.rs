//! The state of the proxy: one SQLite database, its schema, its key file, and the lock that keeps a second daemon out.
//!
//! WAL mode: readers never wait for the journal's writer. Rows that hold secrets are sealed ([`crate::secrets`]).

mod deployments;
mod jobs;
mod licenses;
mod meta;
mod pools;
mod remotes;
mod runs;
mod state;

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::migrate::MigrateError;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};

use crate::secrets::{SecretError, Secrets};

#[cfg(test)]
pub(crate) use deployments::tests::record as example;
pub use deployments::{DeploymentRecord, DeploymentSecrets};
pub use licenses::{BindingRecord, LicenseRecord};
pub use meta::Fact;
pub use pools::PoolRecord;
pub use remotes::RemoteRecord;
pub(crate) use runs::word;
pub use runs::{Leftovers, NewRun, OpenRun};
pub use state::Records;

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");

/// Why the state cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder cannot be made or used.
    #[error("cannot use the state folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// Another daemon works on it.
    #[error("the state folder {} is in use by another backhauld (process {pid})", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
        /// Who holds it, as it wrote itself into the lock file.
        pid: String,
    },
    /// The database cannot be opened.
    #[error("cannot open the database {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: sqlx::Error,
    },
    /// The database was written by a later version.
    #[error(
        "the database {} was written by a newer backhauld (schema {version}); this one knows schemas up to {known}: \
         install the newer version again, or restore the state folder from before the upgrade",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        version: i64,
        /// The newest schema of this program.
        known: i64,
    },
    /// The schema cannot be brought up to date.
    #[error("cannot bring the database {} up to date", path.display())]
    Migrate {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: MigrateError,
    },
    /// A statement failed.
    #[error("cannot {what} in the state database")]
    Query {
        /// What was tried.
        what: &'static str,
        /// Cause.
        source: sqlx::Error,
    },
    /// A stored text does not read back.
    #[error("the {what} stored in the state database cannot be read")]
    Damaged {
        /// What.
        what: &'static str,
        /// Cause.
        source: serde_json::Error,
    },
    /// Two of the same kind with one name.
    #[error("the name {name:?} is taken by another {what}")]
    NameTaken {
        /// `pool`, `remote`, `job`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A secret cannot be sealed or opened.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

pub(crate) type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Adds what was tried to a database error.
pub(crate) fn query(what: &'static str) -> impl FnOnce(sqlx::Error) -> StoreError {
    move |source| StoreError::Query { what, source }
}

pub(crate) fn damaged(what: &'static str) -> impl FnOnce(serde_json::Error) -> StoreError {
    move |source| StoreError::Damaged { what, source }
}

/// Writing a record; a broken uniqueness of its name is told as that.
fn naming(what: &'static str, name: &str) -> impl FnOnce(sqlx::Error) -> StoreError {
    let name = name.to_owned();
    move |source| match &source {
        sqlx::Error::Database(error) if error.is_unique_violation() => StoreError::NameTaken { what, name },
        _ => StoreError::Query { what: "write a record", source },
    }
}

/// An open state folder.
pub struct Store {
    pool: SqlitePool,
    secrets: Secrets,
    // Held for its lock: released by the system however the process ends.
    _lock: File,
}

impl Store {
    /// Opens the folder, makes what is missing, and brings the schema up to date.
    pub async fn open(dir: &Path) -> Result<Self> {
        let folder = |source| StoreError::Folder { path: dir.to_owned(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(folder)?;
        let lock = lock(dir)?;
        let secrets = Secrets::open(&dir.join("secrets.key"))?;

        let path = dir.join("state.db");
        // SQLite gives its files the mode of the database.
        OpenOptions::new().append(true).create(true).mode(0o600).open(&path).map_err(folder)?;
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10))
            .pragma("cache_size", "-512");
        // No limits of age or idleness: they would wake an idle daemon to close what it needs again.
        let pool = SqlitePoolOptions::new()
            .max_connections(4)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .connect_with(options)
            .await
            .map_err(|source| StoreError::Open { path: path.clone(), source })?;
        MIGRATIONS.run(&pool).await.map_err(|source| match source {
            MigrateError::VersionMissing(version) => {
                let known = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default();
                StoreError::Newer { path: path.clone(), version, known }
            }
            source => StoreError::Migrate { path: path.clone(), source },
        })?;
        Ok(Self { pool, secrets, _lock: lock })
    }

    /// The connections, for the journal's writer.
    pub(crate) fn connections(&self) -> &SqlitePool {
        &self.pool
    }

    /// One of them, for several statements.
    async fn connection(&self) -> Result<sqlx::pool::PoolConnection<sqlx::Sqlite>> {
        self.pool.acquire().await.map_err(query("reach the tables"))
    }

    /// Waits for the open statements and closes the database.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// When the daemon was last known to be alive; none on a new state.
    pub async fn last_alive(&self) -> Result<Option<i64>> {
        let noted: Option<(String,)> = sqlx::query_as("SELECT value FROM meta WHERE key = 'alive_at'")
            .fetch_optional(&self.pool)
            .await
            .map_err(query("read the time of the last stop"))?;
        let last: (Option<i64>,) = sqlx::query_as(
            "SELECT MAX(at) FROM (SELECT MAX(queued_at) AS at FROM runs UNION ALL SELECT MAX(ended_at) FROM runs)",
        )
        .fetch_one(&self.pool)
        .await
        .map_err(query("read the time of the last run"))?;
        Ok(noted.and_then(|(text,)| text.parse().ok()).max(last.0))
    }

    /// Notes that the daemon is alive.
    pub async fn note_alive(&self, at: i64) -> Result<()> {
        sqlx::query(
            "INSERT INTO meta (key, value) VALUES ('alive_at', ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        )
        .bind(at.to_string())
        .execute(&self.pool)
        .await
        .map_err(query("note the time"))?;
        Ok(())
    }
}

fn lock(dir: &Path) -> Result<File> {
    use rustix::fs::{FlockOperation, flock};
    let folder = |source| StoreError::Folder { path: dir.to_owned(), source };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(dir.join("lock"))
        .map_err(folder)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            let _ = (&mut file).take(32).read_to_string(&mut pid);
            let pid = if pid.trim().is_empty() { "unknown".into() } else { pid.trim().to_owned() };
            return Err(StoreError::InUse { path: dir.to_owned(), pid });
        }
        Err(error) => return Err(folder(error.into())),
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(folder)?;
    file.write_all(format!("{}\n", std::process::id()).as_bytes()).map_err(folder)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_second_daemon_on_the_same_state_is_refused_with_the_first_one_s_pid() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Store::open(dir.path()).await.unwrap();
        let error = Store::open(dir.path()).await.err().unwrap().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
    }

    #[tokio::test]
    async fn a_state_of_a_newer_program_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        sqlx::query("INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (9999, 'x', 1, x'00', 0)")
            .execute(store.connections())
            .await
            .unwrap();
        store.close().await;
        drop(store);
        let error = Store::open(dir.path()).await.err().unwrap();
        assert!(matches!(error, StoreError::Newer { version: 9999, known: 3, .. }), "{error}");
    }

    #[tokio::test]
    async fn what_is_stored_is_there_after_a_restart_and_for_nobody_else_to_read() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a/b");
        let store = Store::open(&state).await.unwrap();
        store.note_alive(5).await.unwrap();
        store.close().await;
        drop(store);
        assert_eq!(Store::open(&state).await.unwrap().last_alive().await.unwrap(), Some(5));
        for (name, mode) in [("", 0o700), ("state.db", 0o600), ("secrets.key", 0o600), ("lock", 0o600)] {
            let found = std::fs::metadata(state.join(name)).unwrap().permissions().mode() & 0o777;
            assert_eq!(found, mode, "{name}");
        }
    }
}
