"""Databases of earlier store versions, with tables and rows as those versions wrote them."""

from __future__ import annotations

import json
import os
import sqlite3

from niso.base import paths
from niso.plan.records import Port
from niso.store import same_host, tables
from niso.store.service_rows import ROW_TABLES

VERSION_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE network (
    name TEXT PRIMARY KEY,
    bridge TEXT NOT NULL UNIQUE,
    mtu INTEGER NOT NULL,
    implicit INTEGER NOT NULL CHECK (implicit IN (0, 1)),
    created_at REAL NOT NULL
) STRICT;
CREATE TABLE subnet (
    network TEXT NOT NULL REFERENCES network ON DELETE CASCADE,
    family INTEGER NOT NULL CHECK (family IN (4, 6)),
    cidr TEXT NOT NULL UNIQUE,
    gateway TEXT NOT NULL,
    PRIMARY KEY (network, family)
) STRICT;
CREATE TABLE service (
    name TEXT PRIMARY KEY,
    manifest_path TEXT NOT NULL,
    manifest TEXT NOT NULL,
    rootfs TEXT,
    package TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    uid INTEGER NOT NULL UNIQUE,
    active INTEGER NOT NULL CHECK (active IN (0, 1)),
    generation INTEGER NOT NULL,
    networks TEXT NOT NULL,
    spec TEXT NOT NULL,
    created_at REAL NOT NULL,
    activated_at REAL
) STRICT;
CREATE INDEX service_active ON service (active, networks);
CREATE TABLE host_name (
    name TEXT PRIMARY KEY,
    service TEXT NOT NULL REFERENCES service ON DELETE CASCADE,
    position INTEGER NOT NULL
) STRICT;
CREATE INDEX host_name_service ON host_name (service, position);
CREATE TABLE endpoint (
    service TEXT NOT NULL REFERENCES service ON DELETE CASCADE,
    position INTEGER NOT NULL,
    network TEXT NOT NULL REFERENCES network,
    PRIMARY KEY (service, position),
    UNIQUE (network, service)
) STRICT;
CREATE TABLE lease (
    network TEXT NOT NULL REFERENCES network,
    family INTEGER NOT NULL CHECK (family IN (4, 6)),
    number BLOB NOT NULL,
    address TEXT NOT NULL UNIQUE,
    service TEXT NOT NULL REFERENCES service ON DELETE CASCADE,
    static INTEGER NOT NULL CHECK (static IN (0, 1)),
    PRIMARY KEY (network, family, number),
    UNIQUE (service, network, family)
) STRICT, WITHOUT ROWID;
CREATE TABLE port (
    service TEXT NOT NULL REFERENCES service ON DELETE CASCADE,
    position INTEGER NOT NULL,
    host_ip TEXT NOT NULL,
    host_port INTEGER NOT NULL,
    container_port INTEGER NOT NULL,
    proto TEXT NOT NULL,
    PRIMARY KEY (service, position)
) STRICT;
CREATE INDEX port_host ON port (proto, host_port);
CREATE TABLE intent (
    service TEXT PRIMARY KEY,
    action TEXT NOT NULL,
    undo TEXT NOT NULL,
    created_at REAL NOT NULL
) STRICT;
CREATE TABLE sysctl (name TEXT PRIMARY KEY, before TEXT NOT NULL) STRICT;
"""
"""The tables of version 1, as that version had them."""

NUMBER_2 = (2).to_bytes(16)
ROWS: dict[str, list[tuple]] = {
    "meta": [("state_id", "0123abcd"), ("world", same_host.here())],
    "network": [("backend", "niso-backend", 1500, 1, 1.0), ("front", "niso-front", 1400, 0, 2.0)],
    "subnet": [
        ("backend", 4, "10.99.1.0/24", "10.99.1.1"),
        ("front", 4, "10.99.2.0/24", "10.99.2.1"),
    ],
    "service": [
        (
            "api",
            "/srv/api/manifest.toml",
            "{}",
            None,
            "/p/api",
            "f",
            5000,
            1,
            3,
            '["backend", "front"]',
            "{}",
            1.0,
            2.0,
        ),
        (
            "db",
            "/srv/db/manifest.toml",
            "{}",
            None,
            "/p/db",
            "f",
            5001,
            0,
            1,
            '["front"]',
            "{}",
            1.0,
            2.0,
        ),
    ],
    "host_name": [("web", "api", 0), ("api", "api", 1), ("db", "db", 0)],
    "endpoint": [("api", 0, "backend"), ("api", 1, "front"), ("db", 0, "front")],
    "lease": [
        ("backend", 4, NUMBER_2, "10.99.1.2", "api", 0),
        ("front", 4, (5).to_bytes(16), "10.99.2.5", "api", 1),
        ("front", 4, NUMBER_2, "10.99.2.2", "db", 0),
    ],
    "port": [
        ("api", 0, "", 8080, 80, "tcp"),
        ("api", 1, "0.0.0.0", 443, 8443, "tcp"),
        ("db", 0, "", 5432, 5432, "tcp"),
    ],
    "sysctl": [("net/ipv4/ip_forward", "0")],
}
PORTS = [Port("", 8080, 80, "tcp"), Port("0.0.0.0", 443, 8443, "tcp")]


def rows_of(service: str) -> str:
    """What version 1 noted of a service when a change of it began."""
    noted = {}
    for table in ("service", "host_name", "endpoint", "lease", "port"):
        column = {"service": 0, "host_name": 1, "lease": 4}.get(table, 0)
        noted[table] = [
            [{"hex": value.hex()} if isinstance(value, bytes) else value for value in row]
            for row in ROWS[table]
            if row[column] == service
        ]
    return json.dumps(noted)


WRITTEN = {
    # as version 3 encoded the manifests of two services
    "api": (
        '{"package":{"name":"api","version":"1","rootfs":null},'
        '"binary":{"entrypoint":"api","args":["-v"],"working_dir":"/app"},"environment":{"A":"1"},'
        '"service":{"user":"33:44","restart":"on-failure","restart_delay":"500ms","stop_timeout":"1m"},'
        '"isolation":{"capabilities":[],"read_only":true,"resources":{"memory_max":"64M","cpu_max":"150%","pids_limit":null}},'
        '"healthcheck":{"tcp":null,"http":"http://web:80/ok","interval":"5s","timeout":"2s","retries":3,"start_period":"10s"},'
        '"volumes":{"tmp":{"mount":"/scratch","host":null,"mode":"rw","tmpfs":true,"size":"1M"}},'
        '"network":{"mode":"bridge","share":null,"network":"niso-default","networks":["backend","front"],'
        '"ports":["8080:80","0.0.0.0:443:8443"],"hostname":"web","aliases":[],"ip":{"front":"10.99.2.5"},'
        '"policy":{"allow_from":["db:80/tcp"],"deny_from":[],"log":false,"egress":{"allow":null,"deny":[]}}}}'
    ),
    "db": (
        '{"package":{"name":"db","version":"1","rootfs":null},"binary":{"entrypoint":"db","args":[],"working_dir":"/app"},'
        '"environment":{},"service":{"user":null,"restart":"on-failure","restart_delay":"1s","stop_timeout":"10s"},'
        '"isolation":{"capabilities":[],"read_only":true,"resources":{"memory_max":null,"cpu_max":null,"pids_limit":null}},'
        '"healthcheck":null,"volumes":{"healthcheck":{"mount":"/d","host":null,"mode":"rw","tmpfs":false,"size":null}},'
        '"network":{"mode":"bridge","share":null,"network":"front","networks":[],"ports":["5432"],"hostname":null,"aliases":[],'
        '"ip":null,"policy":{"allow_from":null,"deny_from":[],"log":false,"egress":{"allow":null,"deny":[]}}}}'
    ),
}
PROCESS = (
    # of api, as version 3 wrote it
    '{"service": "api", "state_id": "0123abcd", "generation": 3, "package": "/p/api", "rootfs": null, "argv": ["/app/api", "-v"], '
    '"working_dir": "/app", "environment": {"A": "1"}, "uid": 33, "gid": 44, "groups": [], "user_name": "api", "home": "/tmp", '
    '"capabilities": [], "read_only": true, "hostname": "web", "hosts_folder": "/run/niso/hosts/x", "resolv_conf": "", '
    '"netns": "/run/netns/niso-api", "restart": "on-failure", "restart_delay_s": 0.5, "stop_timeout_s": 60.0, '
    '"memory_max": 67108864, "cpu_max": 150, "pids_limit": null, "volumes": '
    '[{"name": "tmp", "mount": "/scratch", "source": null, "named": false, "read_only": false, "size": 1048576}]}'
)


def positions(database: sqlite3.Connection, service: str) -> str:
    """What version 3 noted of a service when a change of it began: rows as lists."""
    noted = {}
    for table in ROW_TABLES:
        if table == "extra_host" or table.startswith(("attached", "outside")):  # of later versions
            continue
        column = "name" if table == "service" else "service"
        rows = database.execute(f"SELECT * FROM {table} WHERE {column}=?", (service,))
        noted[table] = [
            [{"hex": value.hex()} if isinstance(value, bytes) else value for value in row]
            for row in rows
        ]
    return json.dumps(noted)


LATER = ("restrict_suid_sgid", "shm_size", "tmp_size", "limits")
"""Fields of a ServiceSpec that version 4 did not have."""


def stored_as(version: int) -> sqlite3.Connection:
    """Make this host's database as an earlier version had it.

    It has a network that an activation made, one that was created, and two services.
    """
    os.makedirs(paths.state_dir(), mode=0o700)
    database = sqlite3.connect(paths.database(), isolation_level=None)
    database.executescript(f"PRAGMA journal_mode=WAL; PRAGMA user_version=1; {VERSION_1}")
    for table, rows in ROWS.items():
        for row in rows:
            database.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
    tables.add_functions(database)
    for number in range(2, version + 1):
        for statement in tables.MIGRATIONS[number].split(";"):
            database.execute(statement)
        if number == 3:
            _write_manifests(database)
        if number == 4:
            _forget_later_fields(database)
        database.execute(f"PRAGMA user_version={number}")
    return database


def _write_manifests(database: sqlite3.Connection) -> None:
    """Put what version 3 wrote of manifests and processes."""
    for name, text in WRITTEN.items():
        database.execute("UPDATE service SET manifest=? WHERE name=?", (text, name))
    database.execute("UPDATE service SET spec=? WHERE name='api'", (PROCESS,))


def _forget_later_fields(database: sqlite3.Connection) -> None:
    for name, text in database.execute("SELECT name, manifest FROM service").fetchall():
        fields = {key: value for key, value in json.loads(text).items() if key not in LATER}
        database.execute("UPDATE service SET manifest=? WHERE name=?", (json.dumps(fields), name))
