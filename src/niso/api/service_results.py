"""Results of less common commands for services."""

from __future__ import annotations

from niso.api.published_ports import Port, rows
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from niso.plan import records
    from niso.store.store import Store


class Marked(NamedTuple):
    """Result of `Services.enable` and `disable` for one service, and of `Host.guard_firewalls`.

    Also of `Kubernetes.enable` and `disable`.
    """

    service: str
    """the service's name; with --firewall, the unit of a firewall"""
    changed: bool
    """false if nothing changed"""
    unit: str | None
    """path of the systemd unit; with --firewall, of the drop-in"""


class Taken(NamedTuple):
    """Ports taken over from a service, or returned to it."""

    service: str
    """the service's name"""
    ports: tuple[Port, ...]
    """published ports, one per address family"""


class Forwarded(NamedTuple):
    """Result of `Services.port_forward` and `Services.port_unforward`."""

    service: str
    """the service's name"""
    changed: bool
    """false if nothing changed"""
    ports: tuple[Port, ...]
    """published ports, one per address family"""
    taken: tuple[Taken, ...]
    """services that lost ports to --replace"""
    returned: tuple[Taken, ...]
    """services whose manifests' ports are published again after --remove"""


def forwarded(
    store: Store,
    service: str,
    port: records.Port,
    changed: bool,
    taken: Iterable[tuple[str, records.Port]] = (),
    returned: Iterable[tuple[str, records.Port]] = (),
) -> Forwarded:
    """Return the result for a port of a service, and for ports of others that were affected."""

    def ports_of(name: str, one: records.Port) -> tuple[Port, ...]:
        return rows([one], store.port_families(name))

    lost = tuple(Taken(who, ports_of(who, one)) for who, one in taken)
    back = tuple(Taken(who, ports_of(who, one)) for who, one in returned)
    return Forwarded(service, changed, ports_of(service, port), lost, back)


class Executed(NamedTuple):
    """Result of `Services.run`; ``status`` is 128 + N if signal N killed the command."""

    status: int
    stdout: bytes
    stderr: bytes


class Signalled(NamedTuple):
    """Result of `Services.kill` for one service."""

    service: str
    """the service's name"""
    signal: str
    """name of the signal"""
    ended: bool
    """whether its process had ended shortly afterwards"""
