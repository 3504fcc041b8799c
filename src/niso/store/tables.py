"""Define the tables of state.db, and migrate a store of an earlier version after copying it.

Stores of version 3 or older have a manifest as it was written, and the rows of an intent as lists.
Version 4 has the parsed manifest, and rows by column names.
"""

from __future__ import annotations

import json
import os
import sqlite3

from niso.base import files, paths
from niso.base.errors import InvalidInput
from niso.base.named_tuples import TYPE_CHECKING
from niso.manifest import keys
from niso.plan.records import Port
from niso.store import service_rows
from niso.store.sqlite import VERSION

if TYPE_CHECKING:
    from typing import Any


# --- the tables, and SQL for each version ---------------------------------------------------------


_SINCE_2 = """CREATE INDEX port_range ON port (proto, host_port) WHERE count > 1;
CREATE TABLE published (
    service TEXT PRIMARY KEY REFERENCES service ON DELETE CASCADE,
    network TEXT NOT NULL,
    by_loopback INTEGER NOT NULL
) STRICT;
CREATE INDEX published_network ON published (network);
CREATE INDEX endpoint_beside ON endpoint (network) WHERE position > 0;
CREATE TABLE policy (
    service TEXT PRIMARY KEY REFERENCES service ON DELETE CASCADE,
    text TEXT NOT NULL
) STRICT;
CREATE TABLE policy_peer (
    service TEXT NOT NULL REFERENCES service ON DELETE CASCADE,
    kind TEXT NOT NULL CHECK (kind IN ('service', 'network')),
    name TEXT NOT NULL,
    PRIMARY KEY (kind, name, service)
) STRICT, WITHOUT ROWID;
CREATE INDEX policy_peer_service ON policy_peer (service);
CREATE TABLE policed (
    service TEXT NOT NULL REFERENCES service ON DELETE CASCADE,
    network TEXT NOT NULL,
    PRIMARY KEY (network, service)
) STRICT, WITHOUT ROWID;
CREATE INDEX policed_service ON policed (service);
"""

_SINCE_3 = """CREATE INDEX service_provider ON service (provider) WHERE provider IS NOT NULL;
"""

_SINCE_6 = """CREATE TABLE extra_host (
    service TEXT NOT NULL REFERENCES service ON DELETE CASCADE,
    name TEXT NOT NULL,
    address TEXT NOT NULL,
    PRIMARY KEY (service, name)
) STRICT, WITHOUT ROWID;
"""
_ATTACHED = """CREATE TABLE attached (
    service TEXT PRIMARY KEY REFERENCES service ON DELETE CASCADE,
    owner TEXT NOT NULL,
    id TEXT NOT NULL,
    given TEXT NOT NULL,
    netns TEXT NOT NULL,
    cookie INTEGER NOT NULL,
    asked TEXT NOT NULL
) STRICT;
CREATE INDEX attached_id ON attached (owner, id);
CREATE TABLE attached_link (
    service TEXT NOT NULL REFERENCES service ON DELETE CASCADE,
    network TEXT NOT NULL,
    interface TEXT NOT NULL,
    mac TEXT NOT NULL,
    routes INTEGER NOT NULL CHECK (routes IN (0, 1)),
    PRIMARY KEY (service, network)
) STRICT, WITHOUT ROWID;
CREATE TABLE released (
    network TEXT NOT NULL REFERENCES network ON DELETE CASCADE,
    family INTEGER NOT NULL CHECK (family IN (4, 6)),
    number BLOB NOT NULL,
    owner TEXT NOT NULL,
    given TEXT NOT NULL,
    released_at REAL NOT NULL,
    PRIMARY KEY (network, family, number)
) STRICT, WITHOUT ROWID;
CREATE INDEX released_given ON released (owner, given, network);
"""

_SPANS = """CREATE TABLE span (
    network TEXT PRIMARY KEY REFERENCES network ON DELETE CASCADE,
    vni INTEGER NOT NULL UNIQUE,
    port INTEGER NOT NULL,
    local TEXT NOT NULL
) STRICT;
CREATE TABLE peer (
    host TEXT PRIMARY KEY,
    id TEXT NOT NULL,
    address TEXT NOT NULL,
    live INTEGER NOT NULL CHECK (live IN (0, 1))
) STRICT;
CREATE TABLE remote (
    network TEXT NOT NULL REFERENCES network ON DELETE CASCADE,
    family INTEGER NOT NULL CHECK (family IN (4, 6)),
    address TEXT NOT NULL,
    service TEXT NOT NULL,
    host TEXT NOT NULL,
    gen INTEGER NOT NULL,
    up INTEGER NOT NULL CHECK (up IN (0, 1)),
    PRIMARY KEY (network, address)
) STRICT;
CREATE INDEX remote_service ON remote (service);
CREATE TABLE remote_name (
    name TEXT NOT NULL,
    service TEXT NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (name, service)
) STRICT;
CREATE INDEX remote_name_service ON remote_name (service, position);
CREATE TABLE claim (
    service TEXT PRIMARY KEY,
    mark TEXT NOT NULL,
    gen INTEGER NOT NULL,
    addresses TEXT NOT NULL
) STRICT;
"""

_OUTSIDE = """CREATE TABLE outside_peer (
    service TEXT NOT NULL REFERENCES service ON DELETE CASCADE,
    name TEXT NOT NULL,
    PRIMARY KEY (service, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX outside_peer_name ON outside_peer (name);
CREATE TABLE outside_name (name TEXT PRIMARY KEY, answer TEXT NOT NULL) STRICT;
"""

_INACTIVE = """CREATE INDEX service_inactive ON service (active, name, mode) WHERE active=0;
"""

TABLES = (
    """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE network (
    name TEXT PRIMARY KEY,
    bridge TEXT NOT NULL UNIQUE,
    mtu INTEGER NOT NULL,
    implicit INTEGER NOT NULL CHECK (implicit IN (0, 1)),
    created_at REAL NOT NULL,
    internal INTEGER NOT NULL DEFAULT 0,
    observe INTEGER NOT NULL DEFAULT 1
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
    activated_at REAL,
    mode TEXT NOT NULL DEFAULT 'bridge',
    provider TEXT,
    enabled INTEGER NOT NULL DEFAULT 0,
    plain INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX service_active ON service (active, networks);
CREATE TABLE host_name (
    name TEXT,
    service TEXT NOT NULL REFERENCES service ON DELETE CASCADE,
    position INTEGER NOT NULL,
    PRIMARY KEY (name, service)
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
    count INTEGER NOT NULL DEFAULT 1,
    origin TEXT NOT NULL DEFAULT 'manifest',
    PRIMARY KEY (service, position)
) STRICT;
CREATE INDEX port_host ON port (proto, host_port);
"""
    + _SINCE_2
    + _SINCE_3
    + _SINCE_6
    + """CREATE TABLE stack_member (
    service TEXT PRIMARY KEY,
    stack TEXT NOT NULL,
    file TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX stack_member_stack ON stack_member (stack);
CREATE TABLE intent (
    service TEXT PRIMARY KEY,
    action TEXT NOT NULL,
    undo TEXT NOT NULL,
    created_at REAL NOT NULL
) STRICT;
CREATE TABLE sysctl (name TEXT PRIMARY KEY, before TEXT NOT NULL) STRICT;
"""
    + _ATTACHED
    + _SPANS
    + _OUTSIDE
    + _INACTIVE
)

MIGRATIONS: dict[int, str] = {
    2: """
ALTER TABLE network ADD COLUMN internal INTEGER NOT NULL DEFAULT 0;
ALTER TABLE port ADD COLUMN count INTEGER NOT NULL DEFAULT 1;
ALTER TABLE port ADD COLUMN origin TEXT NOT NULL DEFAULT 'manifest';
"""
    + _SINCE_2
    + """INSERT INTO published SELECT DISTINCT p.service, e.network, 1 FROM port p
 JOIN service s ON s.name=p.service AND s.active=1
 JOIN endpoint e ON e.service=p.service AND e.position=0;
""",
    3: """
ALTER TABLE service ADD COLUMN mode TEXT NOT NULL DEFAULT 'bridge';
ALTER TABLE service ADD COLUMN provider TEXT;
ALTER TABLE service ADD COLUMN enabled INTEGER NOT NULL DEFAULT 0;
"""
    + _SINCE_3
    + """CREATE TABLE stack_member (service TEXT PRIMARY KEY, stack TEXT NOT NULL) STRICT;
CREATE INDEX stack_member_stack ON stack_member (stack);
""",
    # manifests as ServiceSpecs, intents by column names: functions of `niso.store.tables`
    4: "UPDATE service SET manifest=parsed_manifest(manifest);"
    " UPDATE intent SET undo=named_undo(action, undo)",
    # ServiceSpec and ProcessSpec have more fields, with the defaults of version 4
    5: "ALTER TABLE stack_member ADD COLUMN file TEXT NOT NULL DEFAULT ''",
    # several services may have one hostname or alias, on different networks
    6: """
CREATE TABLE shared_name (
    name TEXT,
    service TEXT NOT NULL REFERENCES service ON DELETE CASCADE,
    position INTEGER NOT NULL,
    PRIMARY KEY (name, service)
) STRICT;
INSERT INTO shared_name SELECT name, service, position FROM host_name;
DROP TABLE host_name;
ALTER TABLE shared_name RENAME TO host_name;
CREATE INDEX host_name_service ON host_name (service, position);
"""
    + _SINCE_6,
    7: "ALTER TABLE network ADD COLUMN observe INTEGER NOT NULL DEFAULT 1",
    # attachments: services without a process of niso's
    8: _ATTACHED,
    # networks that span hosts, with the services of other hosts; meta has the cluster
    9: _SPANS,
    # outside names in policies, with the answers of DNS
    10: _OUTSIDE,
    # the checksum of plain services (`mark` of service_rows), and columns to list inactive ones
    11: "ALTER TABLE service ADD COLUMN plain INTEGER NOT NULL DEFAULT 0;"
    " UPDATE service SET plain=mark(name, mode, manifest, spec, networks);" + _INACTIVE,
}
"""Version -> the SQL that migrates a database of the version before.

Columns are only ever added. An intent holds whole rows: those of an older version are restored with
the defaults of the new columns.
"""


# --- migration and the copy before it -------------------------------------------------------------


def migrate(db: sqlite3.Connection) -> int:
    """Bring a store to this version, and return its previous version.

    No-op if another process has done so. The caller holds a transaction. Raises sqlite3.Error.
    """
    before = version = int(db.execute("PRAGMA user_version").fetchone()[0])
    while version < VERSION:
        version += 1
        if version == 4:
            add_functions(db)
        if version == 11:
            db.create_function("mark", 5, service_rows.mark, deterministic=True)
        for statement in MIGRATIONS[version].split(";"):
            db.execute(statement)
    db.execute(f"PRAGMA user_version={VERSION}")
    return before


def copy_path(version: int) -> str:
    """Return the path for the copy of a store of an earlier version."""
    return f"{paths.database()}.v{version}"


def keep(version: int) -> None:
    """Copy the store of an earlier version to `copy_path`; no-op for the present version.

    The caller has changed the store in a transaction that is not committed yet. Raises
    sqlite3.Error, OSError.
    """
    if version == VERSION:
        return
    path = copy_path(version)
    draft = f"{path}.new"
    if os.path.lexists(draft):
        files.remove(draft)
    # another connection than the caller's: it reads the store before the change
    source, target = sqlite3.connect(paths.database()), sqlite3.connect(draft)
    try:
        source.backup(target)
    finally:
        source.close()
        target.close()
    os.chmod(draft, 0o600)
    files.sync(draft)
    os.rename(draft, path)
    files.sync(paths.state_dir())


# --- rows of version 3 or older -------------------------------------------------------------------


def add_functions(connection: sqlite3.Connection) -> None:
    """Register the SQL functions ``parsed_manifest`` and ``named_undo``.

    The tables must have all columns of version 3.
    """
    columns: dict[str, list[tuple[str, object]]] = {}  # table -> (name, default) of each column
    for (table,) in connection.execute("SELECT name FROM sqlite_schema WHERE type='table'"):
        columns[table] = [
            (name, connection.execute(f"SELECT {default}").fetchone()[0] if default else None)
            for _, name, _, _, default, _ in connection.execute(f"PRAGMA table_info({table})")
        ]
    connection.create_function("parsed_manifest", 1, parsed_manifest, deterministic=True)
    connection.create_function("named_undo", 2, lambda *row: _named_undo(columns, *row))


def parsed_manifest(text: str) -> str:
    """Convert a manifest to the form of version 4.

    A damaged manifest is returned unchanged: `niso net check` reports it.
    """
    try:
        new = service_rows.encode_service(keys.of_written(text))
        new.encode()  # json accepts lone surrogates, which are not valid text
        return new
    except (ValueError, RecursionError, InvalidInput):
        return text


def _named_undo(columns: dict[str, list[tuple[str, object]]], action: str, text: str) -> str:
    """Convert the undo data of an intent to rows by column names.

    Columns that the row's version did not have get their defaults.
    """
    undo: dict[str, list[Any]] = json.loads(text)
    if action == "ports":
        return json.dumps({"moved": [Port(*port)._asdict() for port in undo["moved"]]})
    named = {}
    for table, rows in undo.items():
        named[table] = [
            {
                name: row[i] if i < len(row) else default
                for i, (name, default) in enumerate(columns[table])
            }
            for row in rows
        ]
    for row in named.get("service", ()):
        row["manifest"] = parsed_manifest(str(row["manifest"]))
    return json.dumps(named)
