"""List the host's ports: the published ports, and the ports on which other programs listen.

If a port is in use, `niso.change.ports` refuses to publish it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable

from niso.base.errors import Conflict
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import bracketed, family_of, span
from niso.plan import records
from niso.store.service_rows import ServiceRow
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.kernel.real import Kernel
    from niso.kernel.sockets import Listener


HOLDERS = ("podman",)  # owners of attachments whose own programs listen on published ports


def published_by(row: ServiceRow) -> tuple[records.PortMapping, ...]:
    """Return the ports in a service's manifest at its last activation.

    Empty if the service's row in the database is damaged.
    """
    spec = row.service
    return tuple(published.port for published in spec.network.ports) if spec is not None else ()


def taken(
    store: Store,
    service: str,
    wanted: Iterable[records.PortMapping],
    published: Container[records.PortMapping],
) -> list[tuple[records.PortMapping, str, records.PortMapping]]:
    """Return the host ports of a manifest that a `niso port-forward` of any service has taken.

    ``wanted`` are the manifest's ports, and ``published`` the ports of ``service`` at its last
    activation. Each result is (port of the manifest, forwarding service, forwarded port).
    """
    gone = [
        port
        for port in wanted
        if port.host_port and port in published and not store.has_port(service, port)
    ]
    forwards = store.all_forwards() if gone else []
    return [
        (port, holder, held)
        for port in gone
        for holder, held in forwards
        if (same_place(held, port) if holder == service else held.clashes(port))
    ]


def unpublished(store: Store, service: str) -> list[records.PortMapping]:
    """Return manifest ports that are unpublished because a former port-forward had taken them."""
    row = store.service(service)
    wanted = published_by(row) if row is not None else ()
    lost = [
        port
        for port in dict.fromkeys(wanted)
        if not (
            store.has_port(service, port)
            if port.host_port
            else store.chosen_port(service, port) is not None
        )
    ]
    still = {port for port, _, _ in taken(store, service, lost, lost)}
    return [port for port in lost if port not in still]


def same_place(one: records.PortMapping, other: records.PortMapping) -> bool:
    """Return whether two published ports overlap on the same host address or on all addresses."""
    alike = one.host_ip == other.host_ip or (one.is_wide and other.is_wide)
    return alike and one.clashes(other)


def as_held(held: records.PortMapping, wanted: records.PortMapping) -> str:
    """Return " as ADDRESS:PORT" if ``held`` has another host port than ``wanted``, otherwise ""."""
    return "" if held.host_side == wanted.host_side else f" as {held.host_side}"


class Listeners:
    """The listening sockets of the host. The sockets of a protocol are read when first needed."""

    def __init__(self, kernel: Kernel, families: tuple[int, ...]) -> None:
        self._kernel = kernel
        # the IP versions of the service's network: other packets are not forwarded
        self._families = families
        self._found: dict[str, list[Listener]] = {}

    def of(self, proto: str) -> list[Listener]:
        if proto not in self._found:
            self._found[proto] = self._kernel.listeners(proto)
        return self._found[proto]

    def clashing(self, port: records.PortMapping) -> list[Listener]:
        """Return the host's sockets that would lose packets if a port were published."""
        return [
            listener
            for listener in self.of(port.proto)
            if port.host_port <= listener.port <= port.last
            and family_of(listener.address) in self._families
            and port.clashes(records.PortMapping(listener.address, listener.port, 0, port.proto))
        ]

    def check(self, port: records.PortMapping, key: str) -> None:
        """Raise Conflict, with the manifest key ``key``, if a process of the host uses the port."""
        for listener in self.clashing(port):
            program, at = self.described(listener)
            raise Conflict(
                f"host port {port.host_side} is used by {program}, which listens on {at}",
                "stop it, or choose another port",
                key,
            )

    def described(self, listener: Listener) -> tuple[str, str]:
        """Return (phrase for the program that owns a socket, ``ADDRESS:PORT`` of the socket)."""
        who = self._kernel.socket_holder(listener.inode)
        program = f"{who[1]} (pid {who[0]})" if who else "a process that is not visible from here"
        return program, f"{bracketed(listener.address)}:{listener.port}"


def shadows(
    kernel: Kernel, store: Store, services: Iterable[str]
) -> list[tuple[str, records.PortMapping, int, str]]:
    """Find programs that get no packets because a service publishes the port on which they listen.

    Each result is (service, port, IP version, text about the program). Raises KernelError.
    """
    listeners: dict[tuple[int, ...], Listeners] = {}
    result = []
    for service in services:
        if (store.attachment_key(service) or ("", ""))[0] in HOLDERS:
            continue
        families = store.port_families(service)
        present = listeners.setdefault(families, Listeners(kernel, families))
        for _, port in store.ports(service):
            for listener in present.clashing(port):
                program, at = present.described(listener)
                text = f"{program} listens on {at}, and gets no packets for {port.host_side}"
                result.append((service, port, family_of(listener.address), text))
    return result


class Port(NamedTuple):
    """A published port or range of ports, on one host address or all addresses of one IP version.

    If ``anywhere`` is true, the manifest publishes the port on all addresses, and there is one
    `Port` for each IP version of the service's network. ``--json`` leaves this field out.
    """

    host_ip: str  # the host address; 0.0.0.0 and :: mean all IPv4 or IPv6 addresses
    host_port: int  # first port on the host
    container_port: int  # first port inside the service
    proto: str  # tcp, udp or sctp
    range: int = 1  # number of ports; only for ranges
    anywhere: bool = False

    def left_out(self) -> tuple[str, ...]:
        """Return the names of the fields that are left out of the JSON output."""
        return ("range", "anywhere") if self.range == 1 else ("anywhere",)


def rows(ports: Iterable[records.PortMapping], families: tuple[int, ...]) -> tuple[Port, ...]:
    """Convert ports to `Port`. A port on all addresses becomes one `Port` for each IP version."""
    everywhere = [address for family, address in ((4, "0.0.0.0"), (6, "::")) if family in families]
    return tuple(
        Port(address, port.host_port, port.container_port, port.proto, port.count, not port.host_ip)
        for port in ports
        for address in ([port.host_ip] if port.host_ip else everywhere)
    )


class PublishedPort(NamedTuple):
    """A published port and the active service to which it leads."""

    service: str  # the service's name
    host: str  # host address and port or range
    container: int
    """the port inside the service, or the first of a range; the same as container_port"""
    mapping: Port
    from_: tuple[str, ...] | None = None  # strings: who can reach the port; only with --exposed

    def left_out(self) -> tuple[str, ...]:
        """Return the names of the fields that are left out of the JSON output."""
        return ("from_",) if self.from_ is None else ()


def published_ports(store: Store) -> tuple[PublishedPort, ...]:
    """Return the published ports of active services, for `Networks.ports`."""
    return tuple(published_port(service, row, None) for service, _, row in port_rows(store))


def port_rows(store: Store) -> list[tuple[str, records.PortMapping, Port]]:
    """Return (service, recorded port, `Port` to show) for published ports of active services."""
    ports = store.active_ports()
    families = {service: store.port_families(service) for service in {name for name, _ in ports}}
    return [
        (service, port, row) for service, port in ports for row in rows([port], families[service])
    ]


def published_port(service: str, port: Port, ways: tuple[str, ...] | None) -> PublishedPort:
    """Build a `PublishedPort`. ``ways`` are phrases about the clients that can reach the port."""
    address = f"{bracketed(port.host_ip)}:{span(port.host_port, port.range)}"
    return PublishedPort(service, address, port.container_port, port, ways)
