"""Hold the rows of attachments: services in namespaces of others, or made for others.

Their process is started by somebody else, the *owner*: podman, cni, systemd, or cli for a person.
``id`` and ``given`` are what the owner calls it. An address that an attachment had stays with the
owner and this name (table ``released``) until somebody else needs it.
"""

from __future__ import annotations

from collections.abc import Iterable

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.store.service_rows import ServiceRow, service_row
from niso.store.sqlite import decoded, sqlite3

if TYPE_CHECKING:
    from typing import Any

    from niso.kernel.interface import Kernel


class Attached(NamedTuple):
    """An attachment; the fields are the columns of its table."""

    service: str
    owner: str
    id: str
    given: str
    netns: str  # the path of the namespace; "" if niso made it
    cookie: int  # of the namespace (SO_NETNS_COOKIE); 0 if niso made it
    asked: str = "{}"  # JSON, as the owner wants it

    def lives(self, kernel: Kernel) -> bool:
        """Return whether the namespace has not ended. Raises KernelError.

        One that niso made counts as alive: it is checked and repaired as that of a service.
        """
        return not self.netns or kernel.cookie_at(self.netns) == self.cookie


_LOST = Attached("", "", "", "", "/proc/0/ns/net", 0)
"""In place of a deleted row: a namespace that never was."""


class Link(NamedTuple):
    """The end of an attachment's veth pair on a network."""

    network: str
    interface: str
    mac: str
    routes: bool  # whether the default route leads here


class Attachments:
    """The queries of the store for attachments."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def get(self, service: str) -> Attached | None:
        """Return an attachment, or None."""
        row = self._db.execute("SELECT * FROM attached WHERE service=?", (service,)).fetchone()
        return Attached(*row) if row else None

    def all(self, owner: str | None = None, id: str | None = None) -> list[Attached]:
        """Return all attachments, or those of an owner and id, sorted by name."""
        asked = {key: text for key, text in (("owner", owner), ("id", id)) if text is not None}
        where = " AND ".join(f"{key}=:{key}" for key in asked) or "TRUE"
        query = f"SELECT * FROM attached WHERE {where} ORDER BY service"
        rows = self._db.execute(query, asked)
        return [Attached(*row) for row in rows]

    def of_cookie(self, cookie: int) -> list[Attached]:
        """Return the attachments of the namespace with this cookie."""
        rows = self._db.execute("SELECT * FROM attached WHERE cookie=?", (cookie,))
        return [Attached(*row) for row in rows]

    def rows(self) -> list[ServiceRow]:
        """Return the services' rows of all attachments, sorted by name."""
        query = "SELECT * FROM service WHERE mode='attached' ORDER BY name"
        return [service_row(row) for row in self._db.execute(query)]

    def links(self, service: str) -> list[Link]:
        """Return an attachment's links, in the order of its networks."""
        rows = self._db.execute(
            "SELECT l.network, interface, mac, routes FROM attached_link l"
            " JOIN endpoint e ON e.service=l.service AND e.network=l.network"
            " WHERE l.service=? ORDER BY e.position",
            (service,),
        )
        return [Link(row[0], row[1], row[2], bool(row[3])) for row in rows]

    def planned(
        self, service: str
    ) -> tuple[tuple[str, int] | None, dict[str, tuple[str, str, bool]]]:
        """Return what a plan needs: (path and cookie of a namespace of others, links by network).

        A link is (interface, MAC, whether the default route leads there).
        """
        attached = self.get(service) or _LOST
        outside = (attached.netns, attached.cookie) if attached.netns else None
        return outside, {
            link.network: (link.interface, link.mac, link.routes) for link in self.links(service)
        }

    # --- writing; inside a transaction ------------------------------------------------------------

    def put(self, attached: Attached, links: Iterable[Link]) -> None:
        """Insert or replace an attachment with its links. The service's row must exist."""
        self._db.execute("INSERT OR REPLACE INTO attached VALUES (?, ?, ?, ?, ?, ?, ?)", attached)
        self._db.execute("DELETE FROM attached_link WHERE service=?", (attached.service,))
        self._db.executemany(
            "INSERT INTO attached_link VALUES (?, ?, ?, ?, ?)",
            [(attached.service, *link[:3], int(link.routes)) for link in links],
        )

    def move(self, service: str, cookie: int, interface: str) -> None:
        """Change the namespace of an attachment, and the interface that its only link has there."""
        self._db.execute("UPDATE attached SET cookie=? WHERE service=?", (cookie, service))
        self._db.execute(
            "UPDATE attached_link SET interface=? WHERE service=?", (interface, service)
        )

    def release(self, service: str, now: float) -> None:
        """Record the addresses of an attachment as released.

        ``now`` is in seconds since 1970.
        """
        self._db.execute(
            "INSERT OR REPLACE INTO released SELECT l.network, l.family, l.number, a.owner,"
            " a.given, ? FROM lease l JOIN attached a ON a.service=l.service WHERE l.service=?",
            (now, service),
        )

    def drop_released(self) -> None:
        """Delete the record of released addresses that are leased again."""
        self._db.execute(
            "DELETE FROM released WHERE EXISTS (SELECT 1 FROM lease l"
            " WHERE l.network=released.network AND l.family=released.family"
            " AND l.number=released.number)"
        )


def wishes(attached: Attached) -> dict[str, Any]:
    """Return what the owner wants: ``policy``, ``policies`` by network, and ``labels``."""
    return dict(decoded(attached.asked))
