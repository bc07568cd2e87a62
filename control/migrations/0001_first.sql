-- Times are seconds since 1970. Names are DNS labels. Keys of WireGuard are 32 bytes.

CREATE TABLE organisations (
    id      INTEGER PRIMARY KEY,
    name    TEXT    NOT NULL UNIQUE,
    created INTEGER NOT NULL
) STRICT;

-- The number is the network's place in fdaa::/16; 0 is nobody's.
CREATE TABLE networks (
    id           INTEGER PRIMARY KEY CHECK (id BETWEEN 1 AND 4294967295),
    organisation INTEGER NOT NULL REFERENCES organisations (id) ON DELETE CASCADE,
    name         TEXT    NOT NULL,
    created      INTEGER NOT NULL,
    UNIQUE (organisation, name)
) STRICT;

-- SSH CAs. The newest of a kind signs; all of a kind are trusted, two during a rotation.
CREATE TABLE authorities (
    id           INTEGER PRIMARY KEY,
    organisation INTEGER NOT NULL REFERENCES organisations (id) ON DELETE CASCADE,
    kind         TEXT    NOT NULL CHECK (kind IN ('user', 'host')),
    seed         BLOB    NOT NULL CHECK (length(seed) = 32),
    created      INTEGER NOT NULL
) STRICT;

CREATE INDEX authorities_of ON authorities (organisation, kind);

CREATE TABLE apps (
    id      INTEGER PRIMARY KEY,
    network INTEGER NOT NULL REFERENCES networks (id) ON DELETE CASCADE,
    name    TEXT    NOT NULL,
    created INTEGER NOT NULL,
    UNIQUE (network, name)
) STRICT;

CREATE TABLE instances (
    id            TEXT    PRIMARY KEY,
    app           INTEGER NOT NULL REFERENCES apps (id) ON DELETE CASCADE,
    region        TEXT    NOT NULL,
    process_group TEXT    NOT NULL,
    key           BLOB    NOT NULL UNIQUE CHECK (length(key) = 32),
    address       TEXT    NOT NULL UNIQUE,
    started       INTEGER NOT NULL CHECK (started IN (0, 1)),
    created       INTEGER NOT NULL
) STRICT;

CREATE INDEX instances_of ON instances (app);

-- WireGuard peers. A lease has an end; a permanent peer has none.
CREATE TABLE peers (
    id      INTEGER PRIMARY KEY,
    network INTEGER NOT NULL REFERENCES networks (id) ON DELETE CASCADE,
    name    TEXT    NOT NULL,
    key     BLOB    NOT NULL UNIQUE CHECK (length(key) = 32),
    address TEXT    NOT NULL UNIQUE,
    expires INTEGER,
    created INTEGER NOT NULL,
    UNIQUE (network, name)
) STRICT;

CREATE INDEX peers_by_end ON peers (expires);

-- A user is a name, the same person in every organisation that counts it as a member.
CREATE TABLE users (
    id      INTEGER PRIMARY KEY,
    name    TEXT    NOT NULL UNIQUE,
    created INTEGER NOT NULL
) STRICT;

CREATE TABLE members (
    organisation INTEGER NOT NULL REFERENCES organisations (id) ON DELETE CASCADE,
    user         INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    PRIMARY KEY (organisation, user)
) STRICT, WITHOUT ROWID;

-- Only the SHA-256 of a token or of a session is kept.
CREATE TABLE login_tokens (
    hash    BLOB    PRIMARY KEY CHECK (length(hash) = 32),
    user    INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    expires INTEGER NOT NULL,
    used    INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX login_tokens_of ON login_tokens (user, expires);

CREATE TABLE sessions (
    hash    BLOB    PRIMARY KEY CHECK (length(hash) = 32),
    user    INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    expires INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX sessions_of ON sessions (user, expires);

-- Keys of the control plane itself.
CREATE TABLE secrets (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;
