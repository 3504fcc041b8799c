"""Read and write the rows of attachments: services whose processes other programs start.

The *owner* of an attachment is the program that requested it: podman, docker, cni or systemd, or
cli for a person at the command line. The owner or niso has created the network namespace. ``id``
and ``given`` are the owner's id and name for the attachment. When an attachment ends, the table
``released`` records its addresses with the owner and ``given``. The next attachment with the same
owner and ``given`` gets these addresses again. Other services get such an address only if no other
address is free.
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
    """A service whose process another program starts. The fields are the columns of its table."""

    service: str
    owner: str
    id: str
    given: str
    netns: str  # path of the namespace; "" if niso created the namespace
    cookie: int  # cookie of the namespace (SO_NETNS_COOKIE); 0 if niso created the namespace
    asked: str = "{}"  # JSON of the owner's request

    def lives(self, kernel: Kernel) -> bool:
        """Return whether the attachment's network namespace still exists. A namespace that niso
        created is assumed to exist. Raises KernelError.
        """
        return not self.netns or kernel.cookie_at(self.netns) == self.cookie


LOST = AttachedRow("", "", "", "", "/proc/0/ns/net", 0)
"""A stand-in for the row of an attachment that was deleted. No namespace can exist at its path."""


CHOSEN_ALIASES, CHOSEN_IP = "chosen_aliases", "chosen_ip"
"""The labels of a pod that hold the names and the address that its user chose with annotations."""
CALLER = "caller"
"""The label that holds the `process_key` of the dockerd that requested the attachment."""
NAMESPACE = "pod_namespace"
"""The label that holds the Kubernetes namespace of a pod."""


def process_key(pid: int) -> str:
    """Return a string that identifies a process until the next boot, or "" if it has exited. The
    string contains the process's id and start time, because ids are reused (proc_pid_stat(5)).
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else f"{pid} {fields[19]}"


class AttachedLink(NamedTuple):
    """The network interface of an attachment on one network: the inner end of a veth pair."""

    network: str
    interface: str
    mac: str
    routes: bool  # whether the default route uses this interface


class AttachedRows(Rows):
    """Database queries for attachments."""

    def get(self, service: str) -> AttachedRow | None:
        rows = self._run("SELECT * FROM attached WHERE service=?", service)
        return next((AttachedRow(*row) for row in rows), None)

    def all(self, owner: str | None = None, id: str | None = None) -> list[AttachedRow]:
        """Return attachments, sorted by service: all, or those of an ``owner`` or an ``id``."""
        asked = {key: text for key, text in (("owner", owner), ("id", id)) if text is not None}
        where = " AND ".join(f"{key}=:{key}" for key in asked) or "TRUE"
        rows = self._db.execute(f"SELECT * FROM attached WHERE {where} ORDER BY service", asked)
        return [AttachedRow(*row) for row in rows]

    def of_cookie(self, cookie: int) -> list[AttachedRow]:
        """Return the attachments in the network namespace with this cookie (SO_NETNS_COOKIE)."""
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
        """Return (namespace, interfaces) of an attachment, as `niso.plan` needs them.

        The namespace is (path, cookie), or None if niso created it. The interfaces are {network:
        (interface name, MAC, whether the default route uses the interface)}.
        """
        attached = self.get(service) or LOST
        outside = (attached.netns, attached.cookie) if attached.netns else None
        return outside, {
            link.network: (link.interface, link.mac, link.routes) for link in self.links(service)
        }

    # --- writing; inside a transaction ------------------------------------------------------------

    def put(self, attached: AttachedRow, links: Iterable[AttachedLink]) -> None:
        """Insert or replace an attachment and its interfaces. The row of its service must exist."""
        self._put("attached", *attached)
        name = attached.service
        rows = ((name, *link[:3], int(link.routes)) for link in links)
        self._set_rows("attached_link", name, rows)

    def move(self, service: str, cookie: int, interface: str) -> None:
        """Record that an attachment now has another namespace and another network interface.

        The attachment must have only one interface. ``cookie`` identifies the namespace
        (SO_NETNS_COOKIE).
        """
        self._run("UPDATE attached SET cookie=? WHERE service=?", cookie, service)
        self._run("UPDATE attached_link SET interface=? WHERE service=?", interface, service)

    def release(self, service: str, now: float) -> None:
        """Record an attachment's addresses as released, so that its owner's next attachment with
        the same name gets them again.
        """
        self._run(
            "INSERT OR REPLACE INTO released SELECT l.network, l.family, l.number, a.owner,"
            " a.given, ? FROM lease l JOIN attached a ON a.service=l.service WHERE l.service=?",
            *(now, service),
        )

    def drop_released(self) -> None:
        """Delete the records of released addresses that are now assigned to services again."""
        self._run(
            "DELETE FROM released WHERE EXISTS (SELECT 1 FROM lease l"
            " WHERE l.network=released.network AND l.family=released.family"
            " AND l.number=released.number)"
        )


def requested_settings(attached: AttachedRow) -> dict[str, Any]:
    """Decode the settings that the owner requested for an attachment, as a dict. The possible keys
    are ``policy``, ``policies`` (by network) and ``labels``.
    """
    return dict(decoded(attached.asked))


BY_INTERFACE = "docker"
"""The owner that makes one attachment for each interface, and sets the default route itself."""
