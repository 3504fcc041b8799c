"""Read and write the rows of published ports, and find the services that use host ports.

The ``origin`` of a row is ``manifest`` if the manifest sets the host port, ``chosen`` if niso has
chosen the host port, or ``forward`` if `niso port-forward` added the port.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter

from niso.plan.records import PortMapping
from niso.store.sqlite import Rows, decoded, encoded, other_intents

ServicePorts = list[tuple[str, PortMapping]]  # (service, port)
MANIFEST, CHOSEN, FORWARD = "manifest", "chosen", "forward"
PORT_COLUMNS = "host_ip, host_port, container_port, proto, count"
_IS = "service=? AND host_ip=? AND host_port=? AND container_port=? AND proto=? AND count=?"
# the columns of a port in the record of a change in progress
_UNDONE = ", ".join(f"json_extract(value, '$.{column}')" for column in PortMapping._fields)
_UNDONE_SPAN = (
    "json_extract(value, '$.host_port') AS first, json_extract(value, '$.count') AS length"
)

PRIMARY = (
    "e.network=(SELECT o.network FROM endpoint o JOIN network i ON i.name=o.network"
    " WHERE o.service=e.service ORDER BY i.internal, o.position LIMIT 1)"
)
"""An SQL condition: the endpoint ``e`` is on the network of its service's default route.
`niso.plan.records.primary` chooses the same endpoint."""

_TO_PUBLISH = (
    "SELECT p.service, e.network,"
    " MAX(host_ip IN ('', '0.0.0.0') OR host_ip LIKE '127.%') FROM port p"
    " JOIN service s ON s.name=p.service"
    f" JOIN endpoint e ON e.service=COALESCE(s.provider, s.name) AND {PRIMARY}"
    " WHERE p.service=? GROUP BY p.service"
)
"""An SQL query for the row that a service should have in the table ``published``."""


class PortRows(Rows):
    """Database queries for published ports."""

    def ports(self, service: str | None = None) -> ServicePorts:
        """Return (service, port) for each published port of ``service``, or of all services if it
        is None. A service's ports are in the order of its manifest.
        """
        return self._ports("WHERE service=?", service) if service else self._ports("")

    def _ports(self, where: str, *values: str) -> ServicePorts:
        query = f"SELECT service, {PORT_COLUMNS} FROM port {where} ORDER BY service, position"
        return [(row[0], PortMapping(*row[1:])) for row in self._run(query, *values)]

    def active_ports(self) -> ServicePorts:
        return self._ports("JOIN service s ON s.name=port.service WHERE s.active=1")

    def has_port(self, service: str, port: PortMapping) -> bool:
        return self._has(f"SELECT 1 FROM port WHERE {_IS}", service, *port)

    def some_ports(self, service: str, among: Iterable[PortMapping]) -> list[PortMapping]:
        """Return the ports in ``among`` that a service is recorded to publish."""
        return [port for port in dict.fromkeys(among) if self.has_port(service, port)]

    def published_on(self, services: Iterable[str]) -> set[str]:
        """Return the networks on which one of these services has published ports."""
        query = "SELECT network FROM published WHERE service=?"
        networks = {network for service in services for network in self._column(query, service)}
        return networks & {*self._column("SELECT name FROM network")} if networks else networks

    def publishes(self, service: str) -> bool:
        """Return whether a service has published a port at any time since its activation."""
        return self._has("SELECT 1 FROM published WHERE service=?", service)

    def forwards(self, service: str) -> list[PortMapping]:
        """Return the ports that `niso port-forward` added to a service."""
        return self._of_origin(service, FORWARD)

    def _of_origin(self, service: str, origin: str) -> list[PortMapping]:
        return [port for _, port in self._ports("WHERE service=? AND origin=?", service, origin)]

    def all_forwards(self) -> ServicePorts:
        """Return (service, port) for all ports that `niso port-forward` added."""
        return self._ports("WHERE origin=?", FORWARD)

    def manifest_ports(self, service: str) -> list[PortMapping]:
        """Return the published ports of a service whose host port is set in the manifest."""
        return self._of_origin(service, MANIFEST)

    def port_holders(self, wanted: PortMapping, but: frozenset[str] = frozenset()) -> ServicePorts:
        """Return (service, port) for each port of an active service that conflicts with ``wanted``.

        This includes ports that a service would publish again after an undo of its change in
        progress, unless the service is in ``but``.
        """
        proto, first, last = wanted.proto, wanted.host_port, wanted.last
        live = (
            f"SELECT service, {PORT_COLUMNS} FROM port JOIN service s ON s.name=port.service"
            " WHERE s.active=1 AND proto=?"
        )
        undone = (
            f"SELECT service, {_UNDONE} FROM intent, json_each(undo, '$.port')"
            " WHERE json_extract(value, '$.proto')=?"
            " AND json_extract(undo, '$.service[0].active')=1"
        )
        rows = self._run(
            f"{live} AND host_port BETWEEN ? AND ?"
            f" UNION {live} AND count>1 AND host_port<? AND host_port+count>?",
            *(proto, first, last, proto, first, first),
        ).fetchall()
        if other_intents(self._db, but):
            rows += [row for row in self._run(undone, proto) if row[0] not in but]
        return [
            (row[0], port)
            for row in dict.fromkeys(rows)
            if (port := PortMapping(*row[1:])).clashes(wanted)
        ]

    def chosen_port(self, service: str, wanted: PortMapping) -> int | None:
        """Return the host port that niso chose for a published port, or None if it chose none."""
        rows = self._column(
            "SELECT host_port FROM port WHERE service=? AND origin=?"
            " AND host_ip=? AND container_port=? AND proto=? AND count=?",
            *(service, CHOSEN, wanted.host_ip, wanted.container_port, wanted.proto, wanted.count),
        )
        return next(iter(rows), None)

    def spans(self, proto: str, first: int, last: int) -> list[tuple[int, int]]:
        """Return (first, last) of the recorded ranges of host ports that may overlap a given range.

        Ranges of inactive services, and all ranges that an undo would restore, are included.
        """
        return self._run(
            "SELECT host_port, host_port+count-1 FROM port"
            " WHERE proto=? AND host_port<=? AND host_port+count>?"
            f" UNION SELECT first, first+length-1 FROM (SELECT {_UNDONE_SPAN}"
            "  FROM intent, json_each(undo, '$.port') WHERE json_extract(value, '$.proto')=?)",
            *(proto, last, first, proto),
        ).fetchall()

    # --- writing; inside a transaction ------------------------------------------------------------

    def set_ports(
        self, service: str, ports: Iterable[PortMapping], chosen: Iterable[PortMapping] = ()
    ) -> None:
        """Replace a service's ports from the manifest. niso chose the host ports of ``chosen``."""
        cursor = self._run(
            f"SELECT {PORT_COLUMNS}, origin FROM port WHERE service=? ORDER BY position", service
        )
        before = [(PortMapping(*row[:-1]), row[-1]) for row in cursor]
        free = set(chosen)
        mine = {port: CHOSEN if port in free else MANIFEST for port in ports}
        rows = [
            *mine.items(),
            *((port, FORWARD) for port, origin in before if origin == FORWARD and port not in mine),
        ]
        if rows != before:  # a gap in the positions, left by a removed port, does not count
            numbered = enumerate(rows)
            self.put_port_rows(
                service, [(service, i, *port, origin) for i, (port, origin) in numbered]
            )
        self.note_published(service)

    def add_forward(self, service: str, port: PortMapping) -> None:
        self._run(
            "INSERT INTO port SELECT ?,"
            " COALESCE((SELECT MAX(position)+1 FROM port WHERE service=?), 0), ?, ?, ?, ?, ?, ?",
            service,
            service,
            *port,
            FORWARD,
        )
        self.note_published(service)

    def add_back(self, service: str, port: PortMapping, manifest: Sequence[PortMapping]) -> None:
        """Publish a manifest port again after a `niso port-forward` that had taken it was removed.
        ``manifest`` has all ports of the manifest, and determines the order of the rows.
        """
        chosen = self._of_origin(service, CHOSEN)
        mine = [port, *self.manifest_ports(service), *chosen]

        def place(one: PortMapping) -> int:
            asked = one._replace(host_port=0) if one in chosen else one
            return manifest.index(asked) if asked in manifest else len(manifest)

        self.set_ports(service, sorted(mine, key=place), chosen)

    def note_published(self, service: str) -> None:
        """Record the network on which a service publishes ports, and whether on 127.0.0.1.

        The record stays until the service is deactivated: open connections need the settings of the
        bridge even after the last port is removed. For a sharer, the network is its provider's.
        Call this function again when the provider changes networks.
        """
        self._run(
            f"INSERT INTO published {_TO_PUBLISH} ON CONFLICT (service) DO UPDATE"
            " SET network=excluded.network, by_loopback=MAX(by_loopback, excluded.by_loopback)",
            service,
        )

    def is_noted(self, service: str) -> bool:
        """Return whether `note_published` would leave a service's record unchanged."""
        row = self._run(_TO_PUBLISH, service).fetchone()
        noted = self.published_row(service)
        return row is None or (noted is not None and noted[1] == row[1] and noted[2] >= row[2])

    def published_row(self, service: str) -> tuple[str, str, int] | None:
        """Return a service's row of the table ``published``, or None if the service has none."""
        rows = self._run("SELECT * FROM published WHERE service=?", service)
        return next(iter(rows), None)

    def put_published_row(self, service: str, row: tuple[object, ...] | None) -> None:
        """Replace a service's row of the table ``published``, or delete it if ``row`` is None."""
        self._set_rows("published", service, () if row is None else (row,))

    def take_port(self, service: str, port: PortMapping) -> None:
        self._run(f"DELETE FROM port WHERE {_IS}", service, *port)

    def port_rows(self, service: str) -> list[tuple[object, ...]]:
        return self._run("SELECT * FROM port WHERE service=?", service).fetchall()

    def put_port_rows(self, service: str, rows: Iterable[tuple[object, ...]]) -> None:
        self._set_rows("port", service, rows)

    def begin_moving(
        self, ports: Iterable[tuple[str, PortMapping]], networks: Iterable[str], now: float
    ) -> None:
        """Record which ports a change adds or removes, and on which networks."""
        on = sorted(networks)
        for service, group in groupby(sorted(ports), key=itemgetter(0)):
            moved = encoded({"moved": [port._asdict() for _, port in group], "networks": on})
            self._put("intent", service, "ports", moved, now)

    def moved_ports(self) -> ServicePorts:
        """Return (service, port) for each port that a change in progress adds or removes."""
        rows = self._run("SELECT service, undo FROM intent WHERE action='ports' ORDER BY service")
        return [
            (service, PortMapping(**port))
            for service, undo in rows
            for port in decoded(undo)["moved"]
        ]

    def moved_on(self) -> set[str]:
        """Return the networks on which a change in progress adds or removes ports."""
        rows = self._column("SELECT undo FROM intent WHERE action='ports'")
        return {network for undo in rows for network in decoded(undo)["networks"]}

    def end_publishing(self, service: str, keep_forwards: bool = False) -> None:
        """Record that a service no longer publishes ports. Ports that `niso port-forward` added are
        deleted, unless ``keep_forwards``.
        """
        if not keep_forwards:
            self._run("DELETE FROM port WHERE service=? AND origin=?", service, FORWARD)
        self._run("DELETE FROM published WHERE service=?", service)
