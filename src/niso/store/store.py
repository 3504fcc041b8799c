"""The store: what niso knows, in SQLite. It holds no kernel state; what the kernel should have follows from it (plan.py).

Writers hold niso's lock (apply.lock) and one transaction; readers need neither. WAL keeps both apart and survives kill -9.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from heapq import merge
from typing import NamedTuple

from niso import failpoint, paths
from niso.errors import NisoError, NotFound
from niso.records import Endpoint, Network, Port, Service, Snapshot, Subnet
from niso.store import schema
from niso.store.policies import Name, PolicyRows
from niso.store.ports import PortRows
from niso.store.sqlite import Transaction, unusable, use_wal

_PUBLISHED = "SELECT 1 FROM published p JOIN service v ON v.name=p.service AND v.active=1 WHERE p.network=n.name"
# a service's ports lead to it by its other networks too, for those who are on them
_PUBLISHED_BESIDE = (
    "SELECT 1 FROM endpoint e JOIN service v ON v.name=e.service AND v.active=1 JOIN published p ON p.service=e.service"
    " WHERE e.network=n.name AND e.position>0"
)

ROW_TABLES = ("service", "host_name", "endpoint", "lease", "port", "published", "policy", "policy_peer", "policed")
"""The tables that hold a service, parents first; the column with its name is ``name`` in the first, else ``service``."""


class Scope(NamedTuple):
    """What one command touches. None is all."""

    services: tuple[str, ...] | None = None
    networks: tuple[str, ...] | None = None
    ports: tuple[Port, ...] | None = None  # of these services, no others
    names: tuple[
        Name, ...
    ] = ()  # of services and networks, which may stand for other addresses now: policies name them


ALL = Scope()


class ServiceRow(NamedTuple):
    name: str
    manifest_path: str
    manifest: str  # JSON, model.manifest.encode
    rootfs: str | None
    package: str
    fingerprint: str
    uid: int
    active: bool
    generation: int
    networks: tuple[str, ...]
    spec: str  # JSON, the process spec of the last activation
    created_at: float
    activated_at: float | None


class Intent(NamedTuple):
    """A change that was begun: what to do if its process is gone."""

    service: str
    action: str  # activate | deactivate | remove
    undo: str  # JSON: {table: [row, ...]}


class Store(PortRows, PolicyRows):
    """One connection. ``with store.transaction():`` for every change; a failure inside changes nothing."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    # --- opening -------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, create: bool = True) -> Store:
        """Open state.db of the state folder. Without ``create`` a store that is not there reads as an empty one."""
        path = paths.database()
        exists = os.path.exists(path)
        try:
            if not exists and not create:
                connection = sqlite3.connect(":memory:", isolation_level=None)
            else:
                if not exists:
                    failpoint.hit("create the state folder")
                    os.makedirs(paths.state_dir(), mode=0o700, exist_ok=True)
                    os.chmod(paths.state_dir(), 0o700)
                connection = sqlite3.connect(path, timeout=10, isolation_level=None)
                use_wal(connection)
                connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA foreign_keys=ON")
            store = cls(connection)
            store._migrate()
        except sqlite3.DatabaseError as error:
            raise unusable(error) from error
        except OSError as error:
            raise NisoError(f"{error.filename}: {error.strerror}", "check NISO_STATE_DIR") from error
        return store

    def close(self) -> None:
        self._db.close()

    def _migrate(self) -> None:
        version = self._version()
        if version == schema.VERSION:
            return
        if version > schema.VERSION:
            raise NisoError(
                f"{paths.database()} is of version {version}, this niso knows {schema.VERSION}", "use the newer niso"
            )
        with self.transaction():
            version = self._version()  # another process may have been first
            if version == 0:
                for statement in schema.TABLES.split(";"):
                    self._db.execute(statement)
                self._db.execute("INSERT INTO meta VALUES ('state_id', ?)", (os.urandom(4).hex(),))
                version = schema.VERSION
            while version < schema.VERSION:
                version += 1
                for statement in schema.MIGRATIONS[version].split(";"):
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version={schema.VERSION}")

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def changes(self) -> int:
        """A number that is another one after every change that another connection has made (SQLite's data_version)."""
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def transaction(self) -> Transaction:
        return Transaction(self._db)

    # --- reading -------------------------------------------------------------------------------------------------

    def state_id(self) -> str:
        return str(self._db.execute("SELECT value FROM meta WHERE key='state_id'").fetchone()[0])

    def service(self, name: str) -> ServiceRow | None:
        row = self._db.execute("SELECT * FROM service WHERE name=?", (name,)).fetchone()
        return _service_row(row) if row else None

    def services(self) -> list[ServiceRow]:
        return [_service_row(row) for row in self._db.execute("SELECT * FROM service ORDER BY name")]

    def active_services(self) -> list[str]:
        return [row[0] for row in self._db.execute("SELECT name FROM service WHERE active=1 ORDER BY name")]

    def any_active(self, family: int | None = None) -> bool:
        """Whether a service is active, on a network of this family if one is given."""
        if family is None:
            return self._db.execute("SELECT 1 FROM service WHERE active=1 LIMIT 1").fetchone() is not None
        query = (
            # CROSS: in this order, since few networks have a second family
            "SELECT 1 FROM subnet s CROSS JOIN endpoint e ON e.network=s.network"
            " CROSS JOIN service v ON v.name=e.service AND v.active=1 WHERE s.family=? LIMIT 1"
        )
        return self._db.execute(query, (family,)).fetchone() is not None

    def resolve(self, name: str) -> str:
        """The service that answers to ``name`` (its name, hostname or an alias). NotFound names near ones."""
        row = self._db.execute("SELECT service FROM host_name WHERE name=?", (name,)).fetchone()
        if row:
            return str(row[0])
        known = [each[0] for each in self._db.execute("SELECT name FROM host_name ORDER BY name")]
        raise NotFound(f"no service {name!r}", _suggest(name, known, "niso ps lists the services"))

    # What a begun change has given up is held until it has ended: it may have to be put back.

    def names_with(self, services: Iterable[str]) -> tuple[Name, ...]:
        """What policies may call these services."""
        return tuple(sorted({("service", name) for service in services for name in self.names(service)}))

    def name_holder(self, name: str) -> str | None:
        """The service that has this name, or would have it again if its begun change were undone."""
        row = self._db.execute(
            "SELECT service FROM host_name WHERE name=? UNION ALL SELECT service FROM intent, json_each(undo, '$.host_name')"
            " WHERE json_extract(value, '$[0]')=?",
            (name, name),
        ).fetchone()
        return str(row[0]) if row else None

    def names(self, service: str) -> tuple[str, ...]:
        rows = self._db.execute("SELECT name FROM host_name WHERE service=? ORDER BY position", (service,))
        return tuple(row[0] for row in rows)

    def leases(self, network: str, family: int = 4) -> list[tuple[str, str, bool]]:
        """(address, service, service is active) of a network, ascending."""
        rows = self._db.execute(
            "SELECT address, service, active FROM lease JOIN service s ON s.name=lease.service"
            " WHERE network=? AND family=? ORDER BY number",
            (network, family),
        )
        return [(row[0], row[1], bool(row[2])) for row in rows]

    def addresses(self, service: str) -> list[tuple[str, str]]:
        """(network, address) of a service's leases, in the order of its endpoints."""
        return self._db.execute(
            "SELECT e.network, l.address FROM endpoint e JOIN lease l ON l.service=e.service AND l.network=e.network"
            " WHERE e.service=? ORDER BY e.position, l.family",
            (service,),
        ).fetchall()

    def network(self, name: str) -> Network | None:
        found = self._networks((name,))
        return found[0] if found else None

    def networks(self) -> list[Network]:
        return self._networks(None)

    def network_names(self) -> list[str]:
        return [row[0] for row in self._db.execute("SELECT name FROM network ORDER BY name")]

    def require_network(self, name: str) -> Network:
        found = self.network(name)
        if found is None:
            raise NotFound(f"no network {name!r}", _suggest(name, self.network_names(), "niso net list lists them"))
        return found

    def bridge_holder(self, bridge: str) -> str | None:
        row = self._db.execute("SELECT name FROM network WHERE bridge=?", (bridge,)).fetchone()
        return str(row[0]) if row else None

    def members(self, network: str) -> list[tuple[str, bool]]:
        """(service, active) of the known services on a network, by their addresses."""
        rows = self._db.execute(
            "SELECT s.name, s.active FROM lease l JOIN service s ON s.name=l.service"
            " WHERE l.network=? GROUP BY s.name ORDER BY MIN(l.family), MIN(l.number)",
            (network,),
        )
        return [(row[0], bool(row[1])) for row in rows]

    def held_by(self, network: str) -> list[str]:
        """The services that would be on a network again if their begun changes were undone."""
        rows = self._db.execute(
            "SELECT service FROM intent, json_each(undo, '$.endpoint') WHERE json_extract(value, '$[2]')=?", (network,)
        )
        return [row[0] for row in rows]

    def member_counts(self) -> dict[str, int]:
        """How many known services are on each network that has any."""
        return dict(self._db.execute("SELECT network, COUNT(*) FROM endpoint GROUP BY network"))

    def sysctls_before(self) -> dict[str, str]:
        return dict(self._db.execute("SELECT name, before FROM sysctl"))

    def intents(self) -> list[Intent]:
        rows = self._db.execute("SELECT service, action, undo FROM intent ORDER BY created_at")
        return [Intent(*row) for row in rows]

    def intent(self, service: str) -> Intent | None:
        row = self._db.execute("SELECT service, action, undo FROM intent WHERE service=?", (service,)).fetchone()
        return Intent(*row) if row else None

    def _networks(self, only: tuple[str, ...] | None) -> list[Network]:
        where, values = ("", ()) if only is None else (f"WHERE n.name IN ({_marks(only)})", only)
        rows = self._db.execute(
            "SELECT n.name, n.bridge, n.mtu, family, cidr, gateway, internal,"
            f" EXISTS({_PUBLISHED}) OR EXISTS({_PUBLISHED_BESIDE}), EXISTS({_PUBLISHED} AND by_loopback),"
            " EXISTS(SELECT 1 FROM policed p JOIN service v ON v.name=p.service AND v.active=1 WHERE p.network=n.name)"
            f" FROM network n JOIN subnet s ON s.network=n.name {where} ORDER BY n.name, family",
            values,
        )
        found: dict[str, Network] = {}
        for name, bridge, mtu, family, cidr, gateway, *flags in rows:
            subnets = found[name].subnets if name in found else ()
            found[name] = Network(name, bridge, mtu, (*subnets, Subnet(family, cidr, gateway)), *map(bool, flags))
        return list(found.values())

    def _active(self, names: Iterable[str], ports: tuple[Port, ...] | None = None) -> Iterator[Service]:
        """The services of ``names`` that are active, as the plan sees them, with all of their ports or those of ``ports``."""
        for name in names:
            row = self._db.execute("SELECT generation FROM service WHERE name=? AND active=1", (name,)).fetchone()
            if row is None:
                continue
            endpoints: dict[str, tuple[str, ...]] = {}
            for network, address in self.addresses(name):
                endpoints[network] = (*endpoints.get(network, ()), address)
            yield Service(
                name=name,
                generation=row[0],
                endpoints=tuple(Endpoint(network, addresses) for network, addresses in endpoints.items()),
                ports=tuple(
                    self.some_ports(name, ports) if ports is not None else (port for _, port in self.ports(name))
                ),
                publishes=self.publishes(name),
                names=self.names(name),
            )

    def snapshot(self, scope: Scope) -> Snapshot:
        """The part of the store that ``scope`` needs, for plan.desired."""
        everything = scope.services is None
        named = self.active_services() if scope.services is None else scope.services
        services = tuple(self._active(named, scope.ports))
        wanted = None
        if scope.services is not None:
            mine = {endpoint.network for service in services for endpoint in service.endpoints}
            wanted = tuple(sorted(mine | set(scope.networks or ())))
        lists: dict[tuple[str, ...], int] = {
            tuple(json.loads(text)): count
            for text, count in self._db.execute(
                "SELECT networks, COUNT(*) FROM service WHERE active=1 GROUP BY networks"
            )
        }
        if wanted is not None:
            lists = {reader: count for reader, count in lists.items() if set(reader) & set(wanted)}
        # a file that has no reader outside the scope is written whole
        inside = [tuple(endpoint.network for endpoint in service.endpoints) for service in services]
        fresh = frozenset(reader for reader, count in lists.items() if everything or inside.count(reader) == count)
        # where only ports are touched, policies are not
        policed = tuple(self._policed(services, scope.names)) if scope.ports is None else ()
        neighbours = services if everything else tuple(self._active(self._on({n for r in fresh for n in r})))
        return Snapshot(
            state_id=self.state_id(),
            networks=tuple(self._networks(wanted)),
            services=services,
            readers=frozenset(lists),
            fresh=fresh,
            neighbours=neighbours,
            policed=policed,
            members=self._members(policed),
            any_network=self._db.execute("SELECT 1 FROM network LIMIT 1").fetchone() is not None,
            any_active=self.any_active(),
            any_active6=self.any_active(6),
            sysctls_before=tuple(sorted(self.sysctls_before().items())),
        )

    def _on(self, networks: set[str]) -> list[str]:
        names = tuple(networks)
        rows = self._db.execute(
            f"SELECT DISTINCT service FROM endpoint WHERE network IN ({_marks(names)}) ORDER BY service",
            names,
        )
        return [row[0] for row in rows]

    # --- writing; inside a transaction ---------------------------------------------------------------------------

    def add_network(self, network: Network, implicit: bool, now: float) -> None:
        """``implicit``: made by an activation, so it goes with its last known service."""
        self._db.execute(
            "INSERT INTO network VALUES (?, ?, ?, ?, ?, ?)",
            (network.name, network.bridge, network.mtu, int(implicit), now, int(network.internal)),
        )
        self._db.executemany("INSERT INTO subnet VALUES (?, ?, ?, ?)", [(network.name, *s) for s in network.subnets])

    def drop_network(self, name: str) -> None:
        self._db.execute("DELETE FROM network WHERE name=?", (name,))

    def drop_implicit_networks(self, names: Iterable[str]) -> list[str]:
        """Drop those of ``names`` that an activation made and that no known service is on; gives their names."""
        gone = [
            name
            for name in sorted(set(names))
            if not self._on({name})
            and not self.held_by(name)
            and self._db.execute("SELECT 1 FROM network WHERE name=? AND implicit=1", (name,)).fetchone()
        ]
        for name in gone:
            self.drop_network(name)
        return gone

    def put_service(self, row: ServiceRow) -> None:
        """Insert a service, or replace its own columns; what hangs on it stays."""
        values = (*row[:7], int(row.active), row.generation, json.dumps(row.networks), *row[10:])
        marks = ", ".join("?" * len(values))
        updates = ", ".join(f"{field}=excluded.{field}" for field in ServiceRow._fields[1:])
        self._db.execute(
            f"INSERT INTO service VALUES ({marks}) ON CONFLICT (name) DO UPDATE SET {updates}",
            values,
        )

    def set_active(self, name: str, active: bool) -> None:
        self._db.execute("UPDATE service SET active=? WHERE name=?", (int(active), name))

    def set_names(self, service: str, names: tuple[str, ...]) -> None:
        self._db.execute("DELETE FROM host_name WHERE service=?", (service,))
        self._db.executemany("INSERT INTO host_name VALUES (?, ?, ?)", [(n, service, i) for i, n in enumerate(names)])

    def set_endpoints(self, service: str, networks: tuple[str, ...]) -> None:
        """The ordered networks of a service; leases on networks that it left go."""
        self._db.execute("DELETE FROM endpoint WHERE service=?", (service,))
        self._db.executemany(
            "INSERT INTO endpoint VALUES (?, ?, ?)", [(service, i, network) for i, network in enumerate(networks)]
        )
        self._db.execute(
            f"DELETE FROM lease WHERE service=? AND network NOT IN ({_marks(networks)})",
            (service, *networks),
        )

    def lease_of(self, service: str, network: str, family: int) -> tuple[str, bool] | None:
        row = self._db.execute(
            "SELECT address, static FROM lease WHERE service=? AND network=? AND family=?", (service, network, family)
        ).fetchone()
        return (row[0], bool(row[1])) if row else None

    def lease_holder(self, address: str) -> str | None:
        """The service that has this address, or would have it again if its begun change were undone."""
        row = self._db.execute(
            "SELECT service FROM lease WHERE address=? UNION ALL SELECT service FROM intent, json_each(undo, '$.lease')"
            " WHERE json_extract(value, '$[3]')=?",
            (address, address),
        ).fetchone()
        return str(row[0]) if row else None

    def used_numbers(self, network: str, family: int) -> Iterator[int]:
        """The numbers of all leases of a subnet, ascending, and of those that a begun change may have to take back."""
        held = self._db.execute(
            "SELECT unhex(json_extract(value, '$[2].hex')) FROM intent, json_each(undo, '$.lease')"
            " WHERE json_extract(value, '$[0]')=? AND json_extract(value, '$[1]')=?",
            (network, family),
        ).fetchall()
        rows = self._db.execute(
            "SELECT number FROM lease WHERE network=? AND family=? ORDER BY number", (network, family)
        )
        return merge((int.from_bytes(row[0]) for row in rows), sorted(int.from_bytes(row[0]) for row in held))

    def add_lease(self, service: str, network: str, family: int, number: int, address: str, static: bool) -> None:
        self._db.execute(
            "INSERT INTO lease VALUES (?, ?, ?, ?, ?, ?)",
            (network, family, number.to_bytes(16), address, service, int(static)),
        )

    def drop_lease(self, service: str, network: str, family: int) -> None:
        self._db.execute("DELETE FROM lease WHERE service=? AND network=? AND family=?", (service, network, family))

    def free_uid(self, first: int) -> int:
        row = self._db.execute(
            "SELECT COALESCE(MIN(uid + 1), ?) FROM service s WHERE NOT EXISTS (SELECT 1 FROM service WHERE uid=s.uid+1)"
            " AND EXISTS (SELECT 1 FROM service WHERE uid=?)",
            (first, first),
        ).fetchone()
        return int(row[0])

    def forget(self, service: str) -> None:
        self._db.execute("DELETE FROM service WHERE name=?", (service,))

    def set_sysctl_before(self, name: str, before: str) -> None:
        self._db.execute("INSERT OR IGNORE INTO sysctl VALUES (?, ?)", (name, before))

    def clear_sysctls_before(self, pattern: str) -> None:
        """Forget those whose name is like ``pattern``, with * for anything."""
        self._db.execute("DELETE FROM sysctl WHERE name GLOB ?", (pattern,))

    def begin_intent(self, service: str, action: str, now: float) -> None:
        """Note, before a change, what the service's rows are, so that whoever finds it unfinished can undo it."""
        undo = json.dumps(self._rows(service))
        self._db.execute("INSERT OR REPLACE INTO intent VALUES (?, ?, ?, ?)", (service, action, undo, now))

    def end_intent(self, service: str) -> None:
        self._db.execute("DELETE FROM intent WHERE service=?", (service,))

    def is_as_before(self, intent: Intent) -> bool:
        """Whether the service's rows are as the intent found them."""
        return bool(json.loads(intent.undo) == self._rows(intent.service))

    def undo(self, intent: Intent) -> None:
        """Put the service's rows back as the intent found them; networks that only it had go."""
        now = self.service(intent.service)
        self.forget(intent.service)
        for table, rows in json.loads(intent.undo).items():
            names = [column[1] for column in self._db.execute(f"PRAGMA table_info({table})")]
            for row in rows:
                values = [bytes.fromhex(value["hex"]) if isinstance(value, dict) else value for value in row]
                # rows of an older version are shorter: what was added since has its default
                columns = ", ".join(names[: len(values)])
                self._db.execute(f"INSERT INTO {table} ({columns}) VALUES ({_marks(values)})", values)
        restored = self.service(intent.service)
        if restored is not None and restored.active:
            self._note_published(intent.service)  # rows of the first version do not say it
        self.drop_implicit_networks(now.networks if now else ())

    def _rows(self, service: str) -> dict[str, list[list[object]]]:
        rows = {}
        for table in ROW_TABLES:
            column = "name" if table == "service" else "service"
            found = self._db.execute(f"SELECT * FROM {table} WHERE {column}=?", (service,)).fetchall()
            rows[table] = [[{"hex": v.hex()} if isinstance(v, bytes) else v for v in row] for row in found]
        return rows


def _service_row(row: tuple[object, ...]) -> ServiceRow:
    fields = ServiceRow(*row)  # type: ignore[arg-type]
    return fields._replace(active=bool(fields.active), networks=tuple(json.loads(str(fields.networks))))


def _marks(values: Iterable[object]) -> str:
    return ", ".join("?" for _ in values)


def _suggest(name: str, known: list[str], otherwise: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]!r}?" if near else otherwise
