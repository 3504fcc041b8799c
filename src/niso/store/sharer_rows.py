"""Rows of services by network mode: own namespace, the host's, or another service's.

A service of mode share (a sharer) has no endpoint. It has the addresses, networks and port families
of its provider. While it is active, its names and ports belong to the provider's namespace.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from niso.plan.records import Port
from niso.store.sqlite import others_intend

_PROVIDER = "(SELECT COALESCE(provider, name) FROM service WHERE name=?)"
_PORT = "host_ip, host_port, container_port, proto, count"


class ModeRows:
    """The queries of the store for network modes."""

    _db: sqlite3.Connection

    def home(self, service: str) -> str:
        """Return the service whose endpoints a service uses: its provider, or itself."""
        row = self._db.execute(f"SELECT {_PROVIDER}", (service,)).fetchone()
        return str(row[0] or service)

    def sharers(self, provider: str) -> list[str]:
        """Return the active services in the namespace of this one."""
        rows = self._db.execute(
            "SELECT name FROM service WHERE provider=? AND active=1 ORDER BY name", (provider,)
        )
        return [row[0] for row in rows]

    def held_sharers(self, provider: str, but: frozenset[str] = frozenset()) -> list[str]:
        """Return the sharers, and those that undoing their changes in progress would restore.

        Of the latter, services in ``but`` are skipped.
        """
        sharers = set(self.sharers(provider))
        if others_intend(self._db, but):
            rows = self._db.execute(
                "SELECT service FROM intent WHERE json_extract(undo, '$.service[0].provider')=?"
                " AND json_extract(undo, '$.service[0].active')=1",
                (provider,),
            )
            sharers.update(row[0] for row in rows if row[0] not in but)
        return sorted(sharers)

    def with_companions(self, services: Iterable[str]) -> tuple[str, ...]:
        """Return these services, their providers, and the active sharers of those."""
        names = set(services)
        homes = {self.home(name) for name in names}
        sharers = {sharer for home in homes for sharer in self.sharers(home)}
        return tuple(sorted(names | homes | sharers))

    def names(self, service: str) -> tuple[str, ...]:
        """Return the service's own names: hostname, name, aliases."""
        rows = self._db.execute(
            "SELECT name FROM host_name WHERE service=? ORDER BY position", (service,)
        )
        return tuple(row[0] for row in rows)

    def names_there(self, service: str) -> tuple[str, ...]:
        """Return the names of a service's address: its own, then those of its active sharers."""
        sharers = self.sharers(service)
        return (*self.names(service), *(name for sharer in sharers for name in self.names(sharer)))

    def ports_there(self, service: str) -> list[Port]:
        """Return a service's own ports, then those of its active sharers."""
        rows = self._db.execute(
            f"SELECT {_PORT} FROM port JOIN service s ON s.name=port.service"
            " WHERE s.name=? OR (s.provider=? AND s.active=1) ORDER BY s.name!=?, s.name, position",
            (service, service, service),
        )
        return [Port(*row) for row in rows]

    def mode_of_name(self, name: str) -> str | None:
        """Return the mode of the service with this name, or None."""
        row = self._db.execute(
            "SELECT mode FROM host_name h JOIN service s ON s.name=h.service WHERE h.name=?",
            (name,),
        ).fetchone()
        return str(row[0]) if row else None

    def addresses(self, service: str) -> list[tuple[str, str]]:
        """Return (network, address) of a service in the order of its endpoints.

        A sharer has those of its provider.
        """
        return self._db.execute(
            "SELECT e.network, l.address FROM endpoint e"
            " JOIN lease l ON l.service=e.service AND l.network=e.network"
            f" WHERE e.service={_PROVIDER} ORDER BY e.position, l.family",
            (service,),
        ).fetchall()

    def port_families(self, service: str) -> tuple[int, ...]:
        """Return the families of the network that a service publishes its ports on."""
        rows = self._db.execute(
            "SELECT family FROM subnet s JOIN endpoint e ON e.network=s.network"
            f" WHERE e.service={_PROVIDER} AND e.position=0 ORDER BY family",
            (service,),
        )
        return tuple(row[0] for row in rows)
