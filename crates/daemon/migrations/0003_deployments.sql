-- Proxies that this one has deployed. `spec` and `wanted` are DeploySpec as JSON without its secrets; `wanted` is what the
-- run under way makes of it. `sealed_secrets` holds the token and what else must not be seen, `sealed_state` the last copy
-- of the proxy's own state.
CREATE TABLE deployments (
    id             TEXT PRIMARY KEY,
    name           TEXT NOT NULL UNIQUE,
    pool           TEXT NOT NULL,
    state          TEXT NOT NULL,
    run            TEXT,
    vm             TEXT,
    url            TEXT,
    fingerprint    TEXT,
    spec           TEXT NOT NULL,
    wanted         TEXT,
    sealed_secrets BLOB NOT NULL,
    sealed_state   BLOB,
    copied_at      INTEGER,
    ready_at       INTEGER,
    created_at     INTEGER NOT NULL
) STRICT;

-- Licences as signed text, and the proxies they are bound to: each proxy has one at most.
CREATE TABLE licenses (
    id          TEXT PRIMARY KEY,
    sealed_text BLOB NOT NULL,
    imported_at INTEGER NOT NULL
) STRICT;

CREATE TABLE license_bindings (
    proxy    TEXT PRIMARY KEY,
    license  TEXT NOT NULL REFERENCES licenses (id) ON DELETE RESTRICT,
    name     TEXT NOT NULL,
    bound_at INTEGER NOT NULL
) STRICT;

CREATE INDEX license_bindings_by_license ON license_bindings (license);
