"""Open the store, and read and write its networks and settings (SQLite, in the state folder).

The store does not contain the state of the kernel. From the rows of the store, `niso.plan` computes
which objects the kernel should have. A writer must have niso's lock and a transaction. A reader
needs neither: SQLite's write-ahead log (WAL) isolates readers from writers, and keeps the store
consistent even if a process is killed.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Container, Iterable

from niso.base import files, names, paths, signals
from niso.base.errors import Conflict, Error, NotFound
from niso.plan.records import NetworkRecord
from niso.store import sqlite
from niso.store.attached_rows import AttachedRows
from niso.store.policy_rows import suggest
from niso.store.service_rows import ROW_TABLES, Intent, ServiceRow, service_row
from niso.store.snapshots import SnapshotRows
from niso.store.sqlite import (
    Transaction,
    connected,
    damaged,
    decoded,
    encoded,
    marks,
    sqlite3,
    unusable,
)

# --- the store ------------------------------------------------------------------------------------


class Store(SnapshotRows):
    """A connection to state.db. Make all changes inside ``with store.transaction():``."""

    # --- opening ------------------------------------------------------------

    @classmethod
    def open(cls, create: bool = True) -> Store:
        """Open state.db. If missing, create it or, without ``create``, use an empty store."""
        path = paths.database()
        exists = os.path.lexists(path)
        try:
            if not exists and create:
                signals.hit("create the state folder")
                os.makedirs(paths.state_dir(), mode=0o700, exist_ok=True)
                os.chmod(paths.state_dir(), 0o700)
                cls._create(path)
                exists = True
            if exists:
                sqlite.require_store()
                store = cls(connected(path))
                store._require_version()
                if (folder := _new_location(store._db)) is not None:
                    with store.transaction():
                        store._set_meta("folder", folder)
            else:
                store = cls.empty()
            here = _host_identity()
            if _recorded_identity(store._db) != here and not _enter_store_netns(store._db, here):
                with store.transaction():
                    reset_after_reboot(store._db, here)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise unusable(error) from error
        except OSError as error:
            raise Error(f"{error.filename}: {error.strerror}", "check NISO_STATE_DIR") from error
        return store

    @classmethod
    def empty(cls) -> Store:
        store = cls(connected(":memory:"))
        store._fill()
        return store

    @classmethod
    def _create(cls, path: str) -> None:
        """Create the database under a temporary name, unless another process creates it first."""
        folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        draft = f"{path}.new"
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            if os.path.lexists(path):
                return
            _remove_database(draft)
            try:
                new = cls(connected(draft))
                new._fill()
                new.close()
                signals.hit("name the new store")
                os.rename(draft, path)
            except BaseException:
                _remove_database(draft)
                raise
            os.fsync(folder)
            files.sync(os.path.dirname(paths.state_dir()))
        finally:
            os.close(folder)

    def close(self) -> None:
        self._db.close()

    def _fill(self) -> None:
        from niso.store import tables

        with self.transaction():
            for statement in (
                *f"{tables.TABLES}{tables.INSTANCES}".split(";"),
                *tables.SERVICE_INDEXES,
            ):
                self._run(statement)
            self._set_meta("state_id", os.urandom(4).hex())
            self._run(f"PRAGMA user_version={sqlite.VERSION}")

    def _require_version(self) -> None:
        """Upgrade a store of an older niso. Raise Error if it is of a newer niso, or incomplete."""
        version = int(self._run("PRAGMA user_version").fetchone()[0])
        if version < 1:
            raise damaged("a database, but not a store of niso")
        if version < sqlite.VERSION:
            self._upgrade()
        elif version != sqlite.VERSION:
            raise Error(
                f"{paths.database()} has version {version}, this niso supports {sqlite.VERSION}",
                "use the niso that made it. To start anew: its niso net repair --sweep stops all"
                " its services and deletes their networks; then move the file away",
            )
        tables = "sqlite_schema m, pragma_table_info(m.name) WHERE m.type='table'"
        if self._column(f"SELECT COUNT(*) FROM {tables}") != [sqlite.COLUMNS]:
            raise damaged("it does not have the tables of its version")
        self.state_id()

    def _upgrade(self) -> None:
        from niso.store import tables

        with self.transaction():
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version == sqlite.VERSION:  # another process has upgraded it
                return
            if version == 1:
                for statement in tables.INSTANCES.split(";"):
                    self._db.execute(statement)
                version = 4  # the version of these tables
            later = [one for at, added in tables.ADDED.items() if at > version for one in added]
            for statement in later:
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version={sqlite.VERSION}")

    def changes(self) -> int:
        """Return SQLite's data_version: it differs after each commit of another connection."""
        return int(self._run("PRAGMA data_version").fetchone()[0])

    def transaction(self) -> Transaction:
        """Return a context manager for a write transaction. An error in the block rolls it back."""
        return Transaction(self._db)

    def reading(self) -> Transaction:
        """Return a context manager for a read transaction: all queries see the same state."""
        return Transaction(self._db, writes=False)

    # --- integrity ------------------------------------------------------------

    def require_sound(self) -> None:
        """Let SQLite check all pages of the database. Raises Error if the database is damaged."""
        self._run("PRAGMA cache_size=-256")  # KiB
        problems = self._column("PRAGMA quick_check(1)")
        if problems != ["ok"]:
            raise damaged("; ".join(problems))

    def orphans(self) -> list[tuple[str, str]]:
        """Return (table, service) for rows whose service is not in the table ``service``."""
        query = "SELECT DISTINCT service FROM {} WHERE service NOT IN (SELECT name FROM service)"
        return [
            (table, str(service))
            for table in ROW_TABLES[1:-1]
            for service in self._column(f"{query.format(table)} ORDER BY service")
        ]

    def drop_orphans(self) -> None:
        for table in ROW_TABLES[1:-1]:
            self._run(f"DELETE FROM {table} WHERE service NOT IN (SELECT name FROM service)")

    def in_memory(self) -> Store:
        """Return a copy of the store in memory. Changes to the copy are not saved."""
        copy = connected(":memory:")
        self._db.backup(copy)
        return Store(copy)

    # --- reading ------------------------------------------------------------

    def service(self, name: str) -> ServiceRow | None:
        row = self._run("SELECT * FROM service WHERE name=?", name).fetchone()
        return service_row(row) if row else None

    def require_known(self, name: str) -> ServiceRow:
        """Return the row of a service. Raises NotFound if the store has no such service."""
        if (row := self.service(name)) is None:
            raise NotFound(f"no service {name!r}", "niso ps lists the services")
        return row

    def require_active(self, name: str) -> ServiceRow:
        """Return the row of an active service. Raises NotFound, or Conflict if it is inactive."""
        row = self.require_known(name)
        if not row.active:
            raise Conflict(f"service {name!r} is not active", f"niso activate {name}")
        return row

    def services(self) -> list[ServiceRow]:
        return [service_row(row) for row in self._run("SELECT * FROM service ORDER BY name")]

    def active_rows(self) -> list[ServiceRow]:
        rows = self._run("SELECT * FROM service WHERE active=1 ORDER BY name")
        return [service_row(row) for row in rows]

    def acted_on_services(self) -> list[str]:
        """Return the active services that niso restarts or stops when they are unhealthy."""
        return self._column(
            "SELECT name FROM service INDEXED BY service_acted_on WHERE active=1"
            " AND CASE WHEN json_valid(manifest) THEN json_extract"
            "(manifest, '$.process.healthcheck.on_unhealthy') END IN ('restart', 'stop')"
            " ORDER BY name"
        )

    def checked_services(self) -> list[str]:
        """Return the active services that have a health check, sorted, with a single query."""
        return self._column(
            "SELECT name FROM service INDEXED BY service_checked WHERE active=1"
            " AND CASE WHEN json_valid(manifest)"
            " THEN json_type(manifest, '$.process.healthcheck') END='object' ORDER BY name"
        )

    def scheduled(self) -> dict[str, bool]:
        """Return {job: whether it is activated at boot} for each job with a schedule."""
        rows = self._run(
            "SELECT name, enabled FROM service INDEXED BY service_scheduled"
            " WHERE CASE WHEN json_valid(manifest)"
            " THEN json_type(manifest, '$.process.schedule') END='text' ORDER BY name"
        )
        return {row[0]: bool(row[1]) for row in rows}

    def service_names(self) -> list[tuple[str, bool, bool]]:
        """Return (name, is active, starts at boot) of all services, sorted by name."""
        rows = self._run("SELECT name, active, enabled FROM service ORDER BY name")
        return [(row[0], bool(row[1]), bool(row[2])) for row in rows]

    def network_names(self) -> list[str]:
        return self._column("SELECT name FROM network ORDER BY name")

    def require_network(self, name: str) -> NetworkRecord:
        """Return a network. Raises NotFound, with a hint that proposes a similar name."""
        network = self.network(name)
        if network is None:
            hint = suggest(name, self.network_names(), "niso net list lists them")
            raise NotFound(f"no network {name!r}", hint)
        return network

    def bridge_holder(self, bridge: str) -> str | None:
        return self._text("SELECT name FROM network WHERE bridge=?", bridge)

    def members(self, network: str) -> list[tuple[str, bool]]:
        """Return (service, is active) for each service on a network, sorted by address."""
        rows = self._run(
            "SELECT s.name, s.active FROM endpoint e JOIN service s ON s.name=e.service"
            " LEFT JOIN lease l ON l.service=e.service AND l.network=e.network"
            " WHERE e.network=? GROUP BY s.name ORDER BY MIN(l.family), MIN(l.number)",
            network,
        )
        return [(row[0], bool(row[1])) for row in rows]

    def derived_mac(self, service: str, network: str) -> str:
        """Return the MAC address that niso derives for a service on a network."""
        known = self.network(network)
        span = known.span if known is not None else None
        return names.mac(service, network, span.cluster if span is not None else self.state_id())

    def chosen_macs(self, networks: Iterable[str]) -> list[tuple[str, str, str]]:
        """Return (network, service, MAC) for the MACs that attachments' owners chose, sorted."""
        rows = self._run("SELECT network, service, mac FROM attached_link WHERE mac!=''")
        on = frozenset(networks)
        return sorted((row[0], row[1], row[2]) for row in rows if row[0] in on)

    def network_made_at(self, network: str) -> float | None:
        """Return the Unix time in seconds at which a network was created, or None if unknown."""
        times = self._column("SELECT created_at FROM network WHERE name=?", network)
        return times[0] if times else None

    def restored_by_undo(self, network: str) -> list[str]:
        """Return services that would be on a network again after an undo of their changes."""
        return self._column(
            "SELECT service FROM intent, json_each(undo, '$.endpoint')"
            " WHERE json_extract(value, '$.network')=?",
            network,
        )

    def member_counts(self) -> dict[str, int]:
        """Return {network: number of its services}. Instances are not counted, and networks without
        a service are left out.
        """
        return dict(
            self._run(
                "SELECT network, COUNT(*) FROM endpoint"
                " WHERE service NOT IN (SELECT service FROM instance) GROUP BY network"
            )
        )

    # --- writing; inside a transaction ------------------------------------------------------------

    def add_network(self, network: NetworkRecord, implicit: bool, now: float) -> None:
        """Add a network. An ``implicit`` network is deleted with its last recorded service."""
        self._run(
            "INSERT INTO network VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            *(network.name, network.bridge, network.mtu, int(implicit), now),
            *(int(network.internal), int(network.observe), int(network.multicast)),
        )
        for subnet in network.subnets:
            self._run("INSERT INTO subnet VALUES (?, ?, ?, ?)", network.name, *subnet)

    def make_explicit(self, name: str) -> None:
        """Record that a network is no longer implicit: it stays even if no service uses it."""
        self._run("UPDATE network SET implicit=0 WHERE name=? AND implicit=1", name)

    def drop_network(self, name: str) -> None:
        """Delete a network with its subnets, and the addresses of other hosts' services on it."""
        self._run("DELETE FROM network WHERE name=?", name)
        if self.cluster_id():
            self.across.forget_nameless()

    def is_implicit(self, network: str) -> bool:
        """Return whether a network is deleted together with its last recorded service."""
        return self._has("SELECT 1 FROM network WHERE name=? AND implicit=1", network)

    def drop_implicit_networks(self, names: Iterable[str]) -> list[str]:
        """Delete those of the given networks that are implicit and unused. Return their names."""
        gone = [
            name
            for name in sorted(set(names))
            if not self._on({name})
            and not self.restored_by_undo(name)
            and self._has("SELECT 1 FROM network WHERE name=? AND implicit=1", name)
        ]
        for name in gone:
            self.drop_network(name)
        return gone

    def put_service(self, row: ServiceRow) -> None:
        """Insert or replace a service's row in the table ``service``. Rows in other tables stay."""
        columns = row._asdict() | {
            "active": int(row.active),
            "networks": encoded(row.networks),
            "enabled": int(row.enabled),
        }
        values = tuple(columns.values())
        updates = ", ".join(f"{field}=excluded.{field}" for field in ServiceRow._fields[1:])
        self._run(
            f"INSERT INTO service ({', '.join(columns)}) VALUES ({marks(values)})"
            f" ON CONFLICT (name) DO UPDATE SET {updates}",
            *values,
        )

    def set_inactive(self, name: str) -> None:
        self._run("UPDATE service SET active=0 WHERE name=?", name)

    def set_enabled(self, name: str, enabled: bool) -> None:
        """Record whether a service is activated at boot."""
        self._run("UPDATE service SET enabled=? WHERE name=?", int(enabled), name)

    def set_names(self, service: str, names: tuple[str, ...]) -> None:
        """Replace the names of a service: hostname, service name and aliases."""
        self._set_rows("host_name", service, ((n, service, i) for i, n in enumerate(names)))

    def set_endpoints(self, service: str, networks: tuple[str, ...]) -> None:
        """Replace the networks of a service, and delete its addresses on other networks."""
        self._set_rows("endpoint", service, ((service, i, on) for i, on in enumerate(networks)))
        elsewhere = f"network NOT IN ({marks(networks)})"
        self._run(f"DELETE FROM lease WHERE service=? AND {elsewhere}", service, *networks)

    def internal(self, networks: Iterable[str]) -> list[str]:
        """Return the internal networks among ``networks``. Unknown networks are left out."""
        known = map(self.network, networks)
        return [network.name for network in known if network is not None and network.internal]

    def free_uid(self, first: int, skip: Container[int] = ()) -> int:
        """Return the lowest uid from ``first`` on that is neither in use nor in ``skip``."""
        row = self._run(
            "SELECT COALESCE(MIN(uid + 1), ?) FROM service s"
            " WHERE NOT EXISTS (SELECT 1 FROM service WHERE uid=s.uid+1) AND s.uid>=?"
            " AND EXISTS (SELECT 1 FROM service WHERE uid=?)",
            *(first, first, first),
        ).fetchone()
        uid = int(row[0])
        while uid in skip or self._has("SELECT 1 FROM service WHERE uid=?", uid):
            uid += 1
        return uid

    def placeholder_uid(self) -> int:
        """Return an unused negative number to record for an attachment, which has no uid."""
        return min(self._column("SELECT MIN(uid) FROM service")[0] or 0, 0) - 1

    @property
    def attachments(self) -> AttachedRows:
        return AttachedRows(self._db)

    def forget(self, service: str, undoes: bool = False) -> None:
        """Delete all rows of a service except the record of its change in progress. An attachment's
        addresses are recorded as released, unless its creation is undone (``undoes``).
        """
        if not undoes and self.attachment_key(service) is not None:
            self.attachments.release(service, time.time())
        self._run("DELETE FROM service WHERE name=?", service)
        if not undoes:
            self._run("DELETE FROM deploy WHERE front=?", service)
        self.leave_stack(service)

    def set_sysctl_before(self, name: str, before: str) -> None:
        """Record a sysctl's value from before niso first changed it. Later calls have no effect."""
        self._run("INSERT OR IGNORE INTO sysctl VALUES (?, ?)", name, before)

    def clear_sysctls_before(self, pattern: str) -> None:
        """Delete the recorded former values of sysctls whose names match the glob ``pattern``."""
        self._run("DELETE FROM sysctl WHERE name GLOB ?", pattern)

    def undo(self, intents: Iterable[Intent]) -> None:
        """Restore the rows of services as they were before these changes.

        Networks that a change has created are deleted if no service uses them. The rows of all
        services are deleted before the first service is restored, since services may have exchanged
        names or ports.
        """
        changed = [(intent, self.service(intent.service)) for intent in intents]
        for intent, _ in changed:
            self.forget(intent.service, undoes=True)
        for intent, _ in changed:
            for table, rows in intent.rows.items():
                for row in rows:
                    values = [
                        bytes.fromhex(value["hex"]) if isinstance(value, dict) else value
                        for value in row.values()
                    ]
                    self._run(
                        f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks(values)})", *values
                    )
        for intent, now in changed:
            restored = self.service(intent.service)
            if restored is not None and now is not None:
                self.set_enabled(intent.service, now.enabled)  # a change does not set this column
            if restored is not None and restored.active:
                self.note_published(intent.service)
            for sharer in self.sharers(intent.service):
                self.note_published(sharer)
            self.drop_implicit_networks(now.networks if now else ())


def _remove_database(path: str) -> None:
    for ending in ("", "-wal", "-shm", "-journal"):
        try:
            os.unlink(f"{path}{ending}")
        except FileNotFoundError:
            pass


# --- a reboot, or a copied state folder -----------------------------------------------------------
#
# A running host is identified by its boot id, its network namespace and the start time of its
# PID 1. All three are needed, because niso may run in a container: a restart of the container does
# not change the boot id. If this identity differs from the recorded one, the first process to open
# the store records that no service is active. It also deletes the records of sysctls and of
# interrupted port-forward commands, because their kernel state no longer exists.
#
# A copy of a state folder must not change the services of the original. The copy has the same state
# id, so it would treat the network interfaces, processes and rules of the original as its own.
# Therefore the store records the device, inode and path of its folder, and a folder that may be a
# copy is refused. The folder counts as moved, not as a copy, if device and inode are the same, or
# if there is no longer a store with this id at the recorded path.


_FORGET = (
    "UPDATE service SET active=0 WHERE active=1",
    # undoing a change must leave the service inactive
    "UPDATE intent SET undo=json_set(undo, '$.service[0].active', 0)"
    " WHERE json_extract(undo, '$.service[0].active')=1",
    "UPDATE intent SET undo=json_set(undo, '$.published', json('[]'))"
    " WHERE json_type(undo, '$.published')='array'",
    "DELETE FROM intent WHERE action='ports'",
    "DELETE FROM sysctl",
    "DELETE FROM meta WHERE key IN ('nat_before', 'links_before', 'keeps_forwarding')",
    "DELETE FROM published",
)


def _host_identity() -> str:
    """Return a string that identifies the running host: boot id, network namespace, start of PID 1.
    See random(4), namespaces(7) and proc_pid_stat(5). Raises OSError.
    """
    with open("/proc/1/stat", encoding="utf-8", errors="replace") as file:
        started = file.read().rpartition(")")[2].split()[19]
    return f"{paths.boot_id()} {os.stat('/proc/self/ns/net').st_ino} {started}"


def _recorded_identity(db: sqlite3.Connection) -> str | None:
    row = db.execute("SELECT value FROM meta WHERE key='world'").fetchone()
    return str(row[0]) if row else None


def _record_identity(db: sqlite3.Connection, world: str) -> None:
    db.execute("INSERT OR REPLACE INTO meta VALUES ('world', ?)", (world,))


def _enter_store_netns(db: sqlite3.Connection, world: str) -> bool:
    """Enter the network namespace of the store's services if it is the namespace of PID 1.

    A command can be started in another network namespace, for instance by a unit with
    PrivateNetwork=. ``world`` is the identity that this process sees (`_host_identity`). Returns
    whether the process has changed its namespace. Raises OSError. Raises Conflict in a program that
    uses niso as a library, because niso must not change the namespace of such a program.
    """
    before = _recorded_identity(db)
    was, now = (before or "").split(), world.split()
    if was == now or len(was) != len(now) or (was[0], was[2]) != (now[0], now[2]):
        return False  # a new store, or one of another boot
    fd = os.open("/proc/1/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if str(os.fstat(fd).st_ino) != was[1]:
            return False
        if not paths.is_command:
            reason = "this process is in another network namespace than its state folder is of"
            raise Conflict(reason, "start it in that of PID 1: nsenter -t 1 -n")
        os.setns(fd, os.CLONE_NEWNET)
    finally:
        os.close(fd)
    return True


def reset_after_reboot(db: sqlite3.Connection, world: str) -> None:
    """Record all services as inactive after a reboot, or if the store is from another host.

    ``world`` is the host's present identity (`_host_identity`). Raises Conflict if services still
    run in another network namespace of the same boot, because changes made in this namespace would
    not reach them. The caller must be in a transaction.
    """
    before = _recorded_identity(db)
    if before == world:
        return
    boot, network = (before or world).split()[:2]
    if boot == world.split(maxsplit=1)[0] and _any_lives(db):
        if network == world.split()[1]:  # another PID namespace
            _record_identity(db, world)
            return
        reason = "the services of this state folder are in another network namespace"
        raise Conflict(reason, "run niso in the one that it was started in before")
    for statement in _FORGET:
        db.execute(statement)
    _record_identity(db, world)


def _any_lives(db: sqlite3.Connection) -> bool:
    state_id = db.execute("SELECT value FROM meta WHERE key='state_id'").fetchone()[0]
    active = [row[0] for row in db.execute("SELECT name FROM service WHERE active=1")]
    return any(_is_mount(paths.netns_path(name)) or _runs(name, state_id) for name in active)


def _is_mount(path: str) -> bool:
    try:
        return os.stat(path).st_dev != os.stat(os.path.dirname(path)).st_dev
    except OSError:
        return False


def _runs(service: str, state_id: str) -> bool:
    try:
        with open(os.path.join(paths.service_dir(service), "state.json"), encoding="utf-8") as file:
            pid = int(decoded(file.read())["pid"])
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            return f"{paths.cgroup(state_id, service)}\n" in file.read()
    except (OSError, ValueError, KeyError):
        return False


def _new_location(db: sqlite3.Connection) -> str | None:
    """Return the location of the state folder if it differs from the recorded one, otherwise None.

    The location is the device, inode and path. Raises Error if the folder is a copy of a folder
    that still exists. Raises OSError.
    """
    folder = os.path.abspath(paths.state_dir())
    here = _inode_of(folder)
    now = f"{here} {ascii(folder)[1:-1]}"  # escaped, because a path need not be UTF-8
    row = db.execute("SELECT value FROM meta WHERE key='folder'").fetchone()
    if row is None or row[0] == now:
        return None if row else now
    try:
        device, inode, path = str(row[0]).split(" ", 2)
        was, before = f"{device} {inode}", path.encode().decode("unicode_escape")
        there = _inode_of(before)
    except (OSError, ValueError):
        return now
    if there == here:
        # the same folder under another path, or after a reboot that has renumbered the devices
        return None if here == was else now
    state_id = db.execute("SELECT value FROM meta WHERE key='state_id'").fetchone()
    if here != was and _state_id(before) == state_id:
        raise Error(
            f"{folder} is a copy of the state folder {before}, which has the same services",
            f"use NISO_STATE_DIR={before}; to go on with the copy, first move that one away",
        )
    return now


def _inode_of(folder: str) -> str:
    status = os.stat(folder)
    return f"{status.st_dev} {status.st_ino}"


def _state_id(folder: str) -> tuple[str] | None:
    path = os.path.join(folder, os.path.basename(paths.database()))
    if not os.path.isfile(path):
        return None
    try:
        other = sqlite3.connect(path)
        try:
            query = "SELECT value FROM meta WHERE key='state_id'"
            row: tuple[str] | None = other.execute(query).fetchone()
        finally:
            other.close()
    except sqlite3.Error:
        return None
    return row
