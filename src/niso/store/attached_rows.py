"""Read and write the rows of attachments: services whose processes other programs start.

The program that starts the process is the *owner* of the attachment: podman, cni, systemd, or cli
if a person requested it. The owner or niso creates the network namespace. ``id`` and ``given`` are
the owner's id and name for the attachment. When an attachment ends, its address stays reserved for
the same owner and name (table ``released``) until no other address is free.
"""

from __future__ import annotations

from collections.abc import Iterable

from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.store.service_rows import ServiceRow, service_row
from niso.store.sqlite import Rows, decoded

if TYPE_CHECKING:
    from typing import Any

    from niso.kernel.real import Kernel


class AttachedRow(NamedTuple):
    """An attachment; the fields are the columns of its table."""

    service: str
    owner: str
    id: str
    given: str
    netns: str  # path of the namespace; "" if niso made it
    cookie: int  # cookie of the namespace (SO_NETNS_COOKIE); 0 if niso made it
    asked: str = "{}"  # JSON of the owner's request

    def lives(self, kernel: Kernel) -> bool:
        """Return whether the namespace exists; True if niso made it. Raises KernelError."""
        return not self.netns or kernel.cookie_at(self.netns) == self.cookie


_LOST = AttachedRow("", "", "", "", "/proc/0/ns/net", 0)
"""Stands for a row that was deleted. Its namespace is a path at which none can exist."""


CHOSEN_ALIASES, CHOSEN_IP = "chosen_aliases", "chosen_ip"
"""Labels of a pod: the names and the address that its user has chosen for it by annotations."""
NAMESPACE = "pod_namespace"
"""The label that has the Kubernetes namespace of a pod."""


class AttachedLink(NamedTuple):
    """The network interface that an attachment has on one network: the inner end of a veth pair."""

    network: str
    interface: str
    mac: str
    routes: bool  # whether the default route leads here


class AttachedRows(Rows):
    """The queries of the store for attachments."""

    def get(self, service: str) -> AttachedRow | None:
        rows = self._run("SELECT * FROM attached WHERE service=?", service)
        return next((AttachedRow(*row) for row in rows), None)

    def all(self, owner: str | None = None, id: str | None = None) -> list[AttachedRow]:
        """Return the attachments with this owner and id, or all, sorted by service name."""
        asked = {key: text for key, text in (("owner", owner), ("id", id)) if text is not None}
        where = " AND ".join(f"{key}=:{key}" for key in asked) or "TRUE"
        rows = self._db.execute(f"SELECT * FROM attached WHERE {where} ORDER BY service", asked)
        return [AttachedRow(*row) for row in rows]

    def of_cookie(self, cookie: int) -> list[AttachedRow]:
        """Return the attachments in the namespace that has this cookie (SO_NETNS_COOKIE)."""
        rows = self._run("SELECT * FROM attached WHERE cookie=?", cookie)
        return [AttachedRow(*row) for row in rows]

    def rows(self) -> list[ServiceRow]:
        query = "SELECT * FROM service WHERE mode='attached' ORDER BY name"
        return [service_row(row) for row in self._run(query)]

    def links(self, service: str) -> list[AttachedLink]:
        """Return the network interfaces of an attachment, in the order of its networks."""
        rows = self._run(
            "SELECT l.network, interface, mac, routes FROM attached_link l"
            " JOIN endpoint e ON e.service=l.service AND e.network=l.network"
            " WHERE l.service=? ORDER BY e.position",
            service,
        )
        return [AttachedLink(row[0], row[1], row[2], bool(row[3])) for row in rows]

    def planned(
        self, service: str
    ) -> tuple[tuple[str, int] | None, dict[str, tuple[str, str, bool]]]:
        """Return ((path, cookie) or None if niso made the namespace, interfaces) for the plan.

        The interfaces are a dict {network: (interface name, MAC, whether the default route leads
        there)}.
        """
        attached = self.get(service) or _LOST
        outside = (attached.netns, attached.cookie) if attached.netns else None
        return outside, {
            link.network: (link.interface, link.mac, link.routes) for link in self.links(service)
        }

    # --- writing; inside a transaction ------------------------------------------------------------

    def put(self, attached: AttachedRow, links: Iterable[AttachedLink]) -> None:
        """Insert or replace an attachment with its network interfaces, after its service's row."""
        self._put("attached", *attached)
        name = attached.service
        rows = ((name, *link[:3], int(link.routes)) for link in links)
        self._set_rows("attached_link", name, rows)

    def move(self, service: str, cookie: int, interface: str) -> None:
        """Record the new namespace (its cookie) of an attachment that has only one interface."""
        self._run("UPDATE attached SET cookie=? WHERE service=?", cookie, service)
        self._run("UPDATE attached_link SET interface=? WHERE service=?", interface, service)

    def release(self, service: str, now: float) -> None:
        """Record that the addresses of an attachment are free, and whose they were."""
        self._run(
            "INSERT OR REPLACE INTO released SELECT l.network, l.family, l.number, a.owner,"
            " a.given, ? FROM lease l JOIN attached a ON a.service=l.service WHERE l.service=?",
            *(now, service),
        )

    def drop_released(self) -> None:
        """Delete the records of released addresses that services have again."""
        self._run(
            "DELETE FROM released WHERE EXISTS (SELECT 1 FROM lease l"
            " WHERE l.network=released.network AND l.family=released.family"
            " AND l.number=released.number)"
        )


def wishes(attached: AttachedRow) -> dict[str, Any]:
    """Return the owner's request. Its keys may be policy, policies (by network) and labels."""
    return dict(decoded(attached.asked))


BY_INTERFACE = "docker"
"""The owner that has one attachment for each interface. It sets the default route itself."""
