"""Whose network namespace a service is in: its own, the host's, or that of another service (network.mode).

A service of mode share has no endpoint of its own. Its addresses, networks and the families of its ports are its provider's,
and while it is active its names and ports belong to what the provider's namespace is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from niso.plan.records import Port
from niso.store.sqlite import others_intend

_PROVIDER = "(SELECT COALESCE(provider, name) FROM service WHERE name=?)"
_PORT = "host_ip, host_port, container_port, proto, count"


class ModeRows:
    """The part of the store that is about network modes."""

    _db: sqlite3.Connection

    def home(self, service: str) -> str:
        """The service whose endpoints it has: its provider, or itself."""
        row = self._db.execute(f"SELECT {_PROVIDER}", (service,)).fetchone()
        return str(row[0] or service)

    def sharers(self, provider: str) -> list[str]:
        """The active services that are in the namespace of this one."""
        rows = self._db.execute(
            "SELECT name FROM service WHERE provider=? AND active=1 ORDER BY name", (provider,)
        )
        return [row[0] for row in rows]

    def held_sharers(self, provider: str, but: frozenset[str] = frozenset()) -> list[str]:
        """Those, and the services that would be so again if their begun changes were undone; of these not those in ``but``."""
        found = set(self.sharers(provider))
        if others_intend(self._db, but):
            rows = self._db.execute(
                "SELECT service FROM intent WHERE json_extract(undo, '$.service[0].provider')=?"
                " AND json_extract(undo, '$.service[0].active')=1",
                (provider,),
            )
            found.update(row[0] for row in rows if row[0] not in but)
        return sorted(found)

    def with_companions(self, services: Iterable[str]) -> tuple[str, ...]:
        """These services with their providers, and with all that share a namespace with one of them now."""
        found = list(services)
        homes = {self.home(name) for name in found}
        return tuple(
            sorted({*found, *homes, *(sharer for home in homes for sharer in self.sharers(home))})
        )

    def names(self, service: str) -> tuple[str, ...]:
        """Its own: hostname, name, aliases."""
        rows = self._db.execute(
            "SELECT name FROM host_name WHERE service=? ORDER BY position", (service,)
        )
        return tuple(row[0] for row in rows)

    def names_there(self, service: str) -> tuple[str, ...]:
        """What its address answers to: its own names, then those of the active services that share its namespace."""
        sharers = self.sharers(service)
        return (*self.names(service), *(name for sharer in sharers for name in self.names(sharer)))

    def ports_there(self, service: str) -> list[Port]:
        """Its own ports, then those of the active services that share its namespace."""
        rows = self._db.execute(
            f"SELECT {_PORT} FROM port JOIN service s ON s.name=port.service"
            " WHERE s.name=? OR (s.provider=? AND s.active=1) ORDER BY s.name!=?, s.name, position",
            (service, service, service),
        )
        return [Port(*row) for row in rows]

    def mode_of_name(self, name: str) -> str | None:
        """The mode of the service that has this name; None where there is none."""
        row = self._db.execute(
            "SELECT mode FROM host_name h JOIN service s ON s.name=h.service WHERE h.name=?",
            (name,),
        ).fetchone()
        return str(row[0]) if row else None

    def addresses(self, service: str) -> list[tuple[str, str]]:
        """(network, address) of what a service has, in the order of its endpoints; of one that shares, its provider's."""
        return self._db.execute(
            "SELECT e.network, l.address FROM endpoint e JOIN lease l ON l.service=e.service AND l.network=e.network"
            f" WHERE e.service={_PROVIDER} ORDER BY e.position, l.family",
            (service,),
        ).fetchall()

    def port_families(self, service: str) -> tuple[int, ...]:
        """The families of the network that a service's ports are published on."""
        rows = self._db.execute(
            "SELECT family FROM subnet s JOIN endpoint e ON e.network=s.network"
            f" WHERE e.service={_PROVIDER} AND e.position=0 ORDER BY family",
            (service,),
        )
        return tuple(row[0] for row in rows)
