"""Define the tables of state.db. This module is loaded only to create or upgrade a store."""

from __future__ import annotations

TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE network (
    name TEXT PRIMARY KEY, bridge TEXT NOT NULL UNIQUE, mtu INTEGER NOT NULL,
    implicit INTEGER NOT NULL CHECK (implicit IN (0, 1)), created_at REAL NOT NULL,
    internal INTEGER NOT NULL DEFAULT 0, observe INTEGER NOT NULL DEFAULT 1,
    multicast INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE subnet (
    network TEXT NOT NULL REFERENCES network ON DELETE CASCADE,
    family INTEGER NOT NULL CHECK (family IN (4, 6)), cidr TEXT NOT NULL UNIQUE,
    gateway TEXT NOT NULL, PRIMARY KEY (network, family)
) STRICT;
CREATE TABLE service (
    name TEXT PRIMARY KEY, manifest_path TEXT NOT NULL, manifest TEXT NOT NULL, rootfs TEXT,
    package TEXT NOT NULL, fingerprint TEXT NOT NULL, uid INTEGER NOT NULL UNIQUE,
    active INTEGER NOT NULL CHECK (active IN (0, 1)), generation INTEGER NOT NULL,
    networks TEXT NOT NULL, spec TEXT NOT NULL, created_at REAL NOT NULL, activated_at REAL,
    mode TEXT NOT NULL DEFAULT 'bridge', provider TEXT, enabled INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX service_active ON service (active, networks);
CREATE TABLE host_name (
    name TEXT, service TEXT NOT NULL REFERENCES service ON DELETE CASCADE,
    position INTEGER NOT NULL, PRIMARY KEY (name, service)
) STRICT;
CREATE INDEX host_name_service ON host_name (service, position);
CREATE TABLE endpoint (
    service TEXT NOT NULL REFERENCES service ON DELETE CASCADE, position INTEGER NOT NULL,
    network TEXT NOT NULL REFERENCES network, PRIMARY KEY (service, position),
    UNIQUE (network, service)
) STRICT;
CREATE TABLE lease (
    network TEXT NOT NULL REFERENCES network, family INTEGER NOT NULL CHECK (family IN (4, 6)),
    number BLOB NOT NULL, address TEXT NOT NULL UNIQUE,
    service TEXT NOT NULL REFERENCES service ON DELETE CASCADE,
    static INTEGER NOT NULL CHECK (static IN (0, 1)), PRIMARY KEY (network, family, number),
    UNIQUE (service, network, family)
) STRICT, WITHOUT ROWID;
CREATE TABLE port (
    service TEXT NOT NULL REFERENCES service ON DELETE CASCADE, position INTEGER NOT NULL,
    host_ip TEXT NOT NULL, host_port INTEGER NOT NULL, container_port INTEGER NOT NULL,
    proto TEXT NOT NULL, count INTEGER NOT NULL DEFAULT 1, origin TEXT NOT NULL DEFAULT 'manifest',
    PRIMARY KEY (service, position)
) STRICT;
CREATE INDEX port_host ON port (proto, host_port);
CREATE INDEX port_range ON port (proto, host_port) WHERE count > 1;
CREATE TABLE published (
    service TEXT PRIMARY KEY REFERENCES service ON DELETE CASCADE, network TEXT NOT NULL,
    by_loopback INTEGER NOT NULL
) STRICT;
CREATE INDEX published_network ON published (network);
CREATE INDEX endpoint_beside ON endpoint (network) WHERE position > 0;
CREATE TABLE policy (
    service TEXT PRIMARY KEY REFERENCES service ON DELETE CASCADE, text TEXT NOT NULL
) STRICT;
CREATE TABLE policy_peer (
    service TEXT NOT NULL REFERENCES service ON DELETE CASCADE,
    kind TEXT NOT NULL CHECK (kind IN ('service', 'network')), name TEXT NOT NULL,
    PRIMARY KEY (kind, name, service)
) STRICT, WITHOUT ROWID;
CREATE INDEX policy_peer_service ON policy_peer (service);
CREATE TABLE policed (
    service TEXT NOT NULL REFERENCES service ON DELETE CASCADE, network TEXT NOT NULL,
    PRIMARY KEY (network, service)
) STRICT, WITHOUT ROWID;
CREATE INDEX policed_service ON policed (service);
CREATE INDEX service_provider ON service (provider) WHERE provider IS NOT NULL;
CREATE TABLE extra_host (
    service TEXT NOT NULL REFERENCES service ON DELETE CASCADE, name TEXT NOT NULL,
    address TEXT NOT NULL, PRIMARY KEY (service, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE stack_member (
    service TEXT PRIMARY KEY, stack TEXT NOT NULL, file TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX stack_member_stack ON stack_member (stack);
CREATE TABLE intent (
    service TEXT PRIMARY KEY, action TEXT NOT NULL, undo TEXT NOT NULL, created_at REAL NOT NULL
) STRICT;
CREATE TABLE sysctl (name TEXT PRIMARY KEY, before TEXT NOT NULL) STRICT;
CREATE TABLE attached (
    service TEXT PRIMARY KEY REFERENCES service ON DELETE CASCADE, owner TEXT NOT NULL,
    id TEXT NOT NULL, given TEXT NOT NULL, netns TEXT NOT NULL, cookie INTEGER NOT NULL,
    asked TEXT NOT NULL
) STRICT;
CREATE INDEX attached_id ON attached (owner, id);
CREATE TABLE attached_link (
    service TEXT NOT NULL REFERENCES service ON DELETE CASCADE, network TEXT NOT NULL,
    interface TEXT NOT NULL, mac TEXT NOT NULL, routes INTEGER NOT NULL CHECK (routes IN (0, 1)),
    PRIMARY KEY (service, network)
) STRICT, WITHOUT ROWID;
CREATE TABLE released (
    network TEXT NOT NULL REFERENCES network ON DELETE CASCADE,
    family INTEGER NOT NULL CHECK (family IN (4, 6)), number BLOB NOT NULL, owner TEXT NOT NULL,
    given TEXT NOT NULL, released_at REAL NOT NULL, PRIMARY KEY (network, family, number)
) STRICT, WITHOUT ROWID;
CREATE INDEX released_given ON released (owner, given, network);
CREATE TABLE span (
    network TEXT PRIMARY KEY REFERENCES network ON DELETE CASCADE, vni INTEGER NOT NULL UNIQUE,
    port INTEGER NOT NULL, local TEXT NOT NULL
) STRICT;
CREATE TABLE peer (
    host TEXT PRIMARY KEY, id TEXT NOT NULL, address TEXT NOT NULL,
    live INTEGER NOT NULL CHECK (live IN (0, 1))
) STRICT;
CREATE TABLE remote (
    network TEXT NOT NULL REFERENCES network ON DELETE CASCADE,
    family INTEGER NOT NULL CHECK (family IN (4, 6)), address TEXT NOT NULL, service TEXT NOT NULL,
    host TEXT NOT NULL, gen INTEGER NOT NULL, up INTEGER NOT NULL CHECK (up IN (0, 1)),
    PRIMARY KEY (network, address)
) STRICT;
CREATE INDEX remote_service ON remote (service);
CREATE TABLE remote_name (
    name TEXT NOT NULL, service TEXT NOT NULL, position INTEGER NOT NULL,
    PRIMARY KEY (name, service)
) STRICT;
CREATE INDEX remote_name_service ON remote_name (service, position);
CREATE TABLE claim (
    service TEXT PRIMARY KEY, mark TEXT NOT NULL, gen INTEGER NOT NULL, addresses TEXT NOT NULL
) STRICT;
CREATE TABLE outside_peer (
    service TEXT NOT NULL REFERENCES service ON DELETE CASCADE, name TEXT NOT NULL,
    PRIMARY KEY (service, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX outside_peer_name ON outside_peer (name);
CREATE TABLE outside_name (name TEXT PRIMARY KEY, answer TEXT NOT NULL) STRICT;
CREATE INDEX service_inactive ON service (active, name, mode) WHERE active=0;
"""

SERVICE_INDEXES = (
    "CREATE INDEX service_acted_on ON service (name) WHERE active=1 AND CASE WHEN"
    " json_valid(manifest) THEN json_extract(manifest, '$.process.healthcheck.on_unhealthy') END"
    " IN ('restart', 'stop')",
    "CREATE INDEX service_checked ON service (name) WHERE active=1 AND CASE WHEN"
    " json_valid(manifest) THEN json_type(manifest, '$.process.healthcheck') END='object'",
    "CREATE INDEX service_scheduled ON service (name) WHERE CASE WHEN json_valid(manifest)"
    " THEN json_type(manifest, '$.process.schedule') END='text'",
)
"""Indexes of services by keys of their manifests. SQLite uses an index only if the condition of a
query has the same text."""

INSTANCES = """
CREATE TABLE instance (
    service TEXT PRIMARY KEY REFERENCES service ON DELETE CASCADE,
    front TEXT NOT NULL,
    number INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('starting', 'serving', 'leaving', 'out', 'kept')),
    version INTEGER NOT NULL,
    since REAL NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX instance_front ON instance (front);
CREATE TABLE deploy (
    front TEXT NOT NULL,
    version INTEGER NOT NULL,
    at REAL NOT NULL,
    took_s REAL NOT NULL,
    outcome TEXT NOT NULL,
    why TEXT NOT NULL,
    manifest TEXT NOT NULL,
    package TEXT NOT NULL,
    manifest_path TEXT NOT NULL,
    package_version TEXT NOT NULL DEFAULT '',
    login_uid INTEGER,
    sudo_user TEXT NOT NULL DEFAULT '',
    command TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (front, version)
) STRICT, WITHOUT ROWID;
"""
"""The statements for the tables that version 2 of the store added."""

ADDED = {
    3: ("ALTER TABLE instance ADD COLUMN since REAL NOT NULL DEFAULT 0",),
    4: (
        "ALTER TABLE deploy ADD COLUMN package_version TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE deploy ADD COLUMN login_uid INTEGER",
        "ALTER TABLE deploy ADD COLUMN sudo_user TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE deploy ADD COLUMN command TEXT NOT NULL DEFAULT ''",
    ),
    5: ("ALTER TABLE network ADD COLUMN multicast INTEGER NOT NULL DEFAULT 0",),
    6: SERVICE_INDEXES,
}
"""Maps each later version of the store to the statements that change the tables of version 2."""
