-- The state of one proxy. Times are milliseconds since the Unix epoch; columns named `sealed_*` hold secrets,
-- encrypted with the key file beside the database.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;

CREATE TABLE pools (
    id              TEXT PRIMARY KEY,
    name            TEXT NOT NULL UNIQUE,
    url             TEXT NOT NULL,
    username        TEXT NOT NULL,
    sealed_password BLOB NOT NULL,
    fingerprint     TEXT NOT NULL,
    created_at      INTEGER NOT NULL
) STRICT;

CREATE TABLE remotes (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    sealed_url BLOB NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

-- `spec` is the JobSpec as JSON. Its schedule stands in `schedules` too, whose id outlives any change of the
-- expression: retention in repositories counts per schedule id.
CREATE TABLE jobs (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    spec       TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE job_remotes (
    job      TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    remote   TEXT NOT NULL REFERENCES remotes (id) ON DELETE RESTRICT,
    PRIMARY KEY (job, remote)
) STRICT, WITHOUT ROWID;

CREATE INDEX job_remotes_by_remote ON job_remotes (remote);

CREATE TABLE schedules (
    id       TEXT PRIMARY KEY,
    job      TEXT NOT NULL UNIQUE REFERENCES jobs (id) ON DELETE CASCADE,
    cron     TEXT,
    timezone TEXT,
    enabled  INTEGER NOT NULL
) STRICT;

-- One row a run. Written in the transaction of the event that says so, so that it never disagrees with the journal.
-- No reference to jobs: history outlives them. `leftovers` is NULL while the run goes on, then `none`, `pending`
-- (intents not settled) or `cleaned`; `recovers` names the run a Recover run cleans up after.
CREATE TABLE runs (
    id         TEXT PRIMARY KEY,
    kind       TEXT NOT NULL,
    job        TEXT,
    label      TEXT NOT NULL,
    queued_at  INTEGER NOT NULL,
    ended_at   INTEGER,
    outcome    TEXT,
    cancelling INTEGER NOT NULL DEFAULT 0,
    error      TEXT,
    summary    TEXT,
    cursor     INTEGER NOT NULL DEFAULT 0,
    recovers   TEXT,
    leftovers  TEXT
) STRICT;

CREATE INDEX runs_by_time ON runs (queued_at DESC);
CREATE INDEX runs_by_job ON runs (job, queued_at DESC);
CREATE INDEX runs_open ON runs (queued_at) WHERE ended_at IS NULL;
CREATE INDEX runs_with_leftovers ON runs (queued_at) WHERE leftovers = 'pending';

CREATE TABLE events (
    run    TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    cursor INTEGER NOT NULL,
    at     INTEGER NOT NULL,
    json   TEXT NOT NULL,
    PRIMARY KEY (run, cursor)
) STRICT, WITHOUT ROWID;

CREATE TABLE verifications (
    restore_point TEXT PRIMARY KEY,
    at            INTEGER NOT NULL,
    outcome       TEXT NOT NULL,
    run           TEXT NOT NULL
) STRICT;

-- Where a VM was last seen, so that a run can name it and its pool while the pool is away.
CREATE TABLE known_vms (
    uuid TEXT PRIMARY KEY,
    pool TEXT NOT NULL REFERENCES pools (id) ON DELETE CASCADE,
    name TEXT NOT NULL
) STRICT;
