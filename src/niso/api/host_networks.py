"""Networks, published ports and the rules in the kernel."""

from __future__ import annotations

from niso.api.guard import guarded, text, texts
from niso.api.published import Port, rows
from niso.base.errors import InvalidInput, UsageError
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from niso.api.session import Session
    from niso.plan import records
    from niso.store.store import Store

_DEFAULT_NETWORK = "niso-default"  # that of niso.base.names, which is another module to load


class NetworkLine(NamedTuple):
    """A network in a list."""

    name: str
    """the network's name"""
    subnet: str
    """its subnets, with a comma and a space between two"""
    services: int
    """how many known services are on it"""


class Subnet(NamedTuple):
    """A subnet of a network."""

    cidr: str
    """the subnet"""
    gateway: str
    """the bridge's address"""


class NetworkMember(NamedTuple):
    """A service on a network."""

    service: str
    """the service's name"""
    active: bool
    """whether it is active"""
    address: str
    """its addresses, with a comma and a space between several; empty where it has none"""
    ports: tuple[Port, ...]
    """its published ports, a row for each family"""


class Network(NamedTuple):
    """All of a network."""

    name: str
    """the network's name"""
    subnet: str
    """its subnets, with a comma and a space between two"""
    subnets: tuple[Subnet, ...]
    """one for each family"""
    bridge: str
    """the name of its link on the host"""
    internal: bool
    """whether nothing is forwarded out"""
    mtu: int
    """bytes"""
    services: tuple[NetworkMember, ...]
    """known services on it"""


class CreatedNetwork(NamedTuple):
    """Result of `Networks.create`; ``changed`` is false where the network already existed."""

    changed: bool
    network: Network


class RemovedNetwork(NamedTuple):
    """Result of `Networks.remove`, for one network."""

    name: str
    """the network's name"""
    changed: bool
    """false where it was so already"""


class PublishedPort(NamedTuple):
    """A published port and the active service that it leads to."""

    service: str
    """the service's name"""
    host: str
    """address and port, or ports"""
    container: int
    """as container_port"""
    mapping: Port
    from_: tuple[str, ...] | None = None
    """strings: from where it can be reached; only where --exposed is given"""

    def left_out(self) -> tuple[str, ...]:
        """Return the fields that JSON does not have."""
        return ("from_",) if self.from_ is None else ()


class Rules(NamedTuple):
    """niso's tables of nftables, as they are in the kernel."""

    nftables: list[object]
    """as libnftables gives it: libnftables-json(5)"""


class Networks:
    """``host.networks``."""

    def __init__(self, session: Session) -> None:
        self.session = session

    @guarded
    def create(
        self,
        name: str,
        *,
        subnets: Iterable[str] = (),
        ipv6: bool = False,
        gateways: Iterable[str] = (),
        internal: bool = False,
        mtu: int | None = None,
        dry_run: bool = False,
    ) -> CreatedNetwork:
        """Create a network and its bridge; no-op where it exists with these values.

        ``subnets`` are prefixes, at most one of each family; without them it is the next free /24.
        ``gateways`` are the bridge's addresses in them. ``ipv6`` adds a unique local /64,
        ``internal`` forwards nothing out, ``mtu`` is in bytes. Raises Conflict, UsageError,
        KernelError; then nothing has changed.
        """
        from niso.commands import network as command
        from niso.manifest.values import network_name
        from niso.services.networks import Wish

        self.session.require()
        try:
            name = network_name(text(name, "NAME"), "NAME")
        except InvalidInput as error:
            raise UsageError.of(error) from None
        if mtu is not None and (isinstance(mtu, bool) or not isinstance(mtu, int)):
            raise UsageError(f"mtu: must be a whole number, not {type(mtu).__name__}", None, "mtu")
        given = tuple(texts(subnets, "subnets")), tuple(texts(gateways, "gateways"))
        machine = self.session.machine_for_change(create=not dry_run)
        store = machine.store
        wish = Wish(name, given[0], ipv6, given[1], internal, mtu)
        if not dry_run and store.intents():
            from niso.services import journal

            journal.recover(machine, self.session.report)
        made = command.create(machine, wish, self.session.report, dry_run)
        return CreatedNetwork(
            made is not None, _described(store, made or store.require_network(name))
        )

    @guarded
    def list(self) -> tuple[NetworkLine, ...]:
        """Return all networks, the default one first."""
        store = self.session.store()
        counts = store.member_counts()
        lines = [
            NetworkLine(network.name, _subnets(network), counts.get(network.name, 0))
            for network in store.networks()
        ]
        return tuple(sorted(lines, key=lambda line: (line.name != _DEFAULT_NETWORK, line.name)))

    @guarded
    def names(self) -> tuple[str, ...]:
        """Return the names of all networks."""
        return tuple(self.session.store().network_names())

    @guarded
    def inspect(self, name: str) -> Network:
        """Return all of one network. Raises NotFound."""
        store = self.session.store()
        return _described(store, store.require_network(text(name, "name")))

    @guarded
    def remove(self, *names: str, dry_run: bool = False) -> tuple[RemovedNetwork, ...]:
        """Remove networks and their bridges, all or none.

        Raises NotFound, and Conflict where a known service is on one.
        """
        from niso.commands import network as command
        from niso.services import journal

        wanted = [*dict.fromkeys(texts(names, "names"))]
        machine = self.session.machine_for_change()
        if not dry_run:
            journal.recover(machine, self.session.report)
        command.remove(machine, wanted, self.session.report, dry_run)
        return tuple(RemovedNetwork(name, not dry_run) for name in wanted)

    @guarded
    def ports(self) -> tuple[PublishedPort, ...]:
        """Return the published ports of all active services, a row for each address or family."""
        return tuple(
            _published(service, row, None) for service, _, row in _port_rows(self.session.store())
        )

    @guarded
    def exposure(self) -> tuple[PublishedPort, ...]:
        """Return `ports` with ``from_``: from where each can be reached. Raises KernelError."""
        from niso.explain import exposure

        store = self.session.store()
        lines = [*_port_rows(store)]
        services = {service for service, _, _ in lines}
        internal = [network.name for network in store.networks() if network.internal]
        on = {service: [network for network, _ in store.addresses(service)] for service in services}
        first = {service: store.require_network(on[service][0]) for service in services}
        # what comes by an internal network stays on it: it reaches who is on it too
        closed = {
            service: [each for each in internal if each not in on[service]] for service in services
        }
        ways = exposure.ways_in(
            self.session.kernel(),
            (
                (port._replace(host_ip=row.host_ip), first[service], closed[service])
                for service, port, row in lines
            ),
        )
        policies = {service: store.policy(store.home(service)) for service in services}
        return tuple(
            _published(service, row, tuple(exposure.narrowed(way, policies[service])))
            for way, (service, _, row) in zip(ways, lines, strict=True)
        )

    @guarded
    def rules(self) -> Rules:
        """Return niso's nftables tables as data. Raises KernelError."""
        return Rules([each for table in _tables(as_text=False) for each in table])

    @guarded
    def rules_text(self) -> str:
        """Return niso's nftables tables as nft(8) writes them. Raises KernelError."""
        return "".join(_tables(as_text=True))


def _tables(as_text: bool) -> list[Any]:
    """Return niso's tables that the kernel has: each one's text, or its list of objects."""
    from niso.kernel import nft_tables
    from niso.kernel.libnftables import Nft

    with Nft() as kernel:
        return [
            kernel.text(f"list table {table}") if as_text else kernel.query(f"list table {table}")
            for table in nft_tables.CONTAINERS
            if kernel.elements(table, "owner") is not None
        ]


def _port_rows(store: Store) -> list[tuple[str, records.Port, Port]]:
    """Return (service, port, row of it) of all active services."""
    families: dict[str, tuple[int, ...]] = {}
    lines = []
    for service, port in store.active_ports():
        if service not in families:
            families[service] = store.port_families(service)
        lines += [(service, port, row) for row in rows([port], families[service])]
    return lines


def _published(service: str, port: Port, ways: tuple[str, ...] | None) -> PublishedPort:
    last = port.host_port + port.range - 1
    address = f"[{port.host_ip}]" if ":" in port.host_ip else port.host_ip
    span = str(port.host_port) if port.range == 1 else f"{port.host_port}-{last}"
    return PublishedPort(service, f"{address}:{span}", port.container_port, port, ways)


def _subnets(network: records.Network) -> str:
    return ", ".join(subnet.cidr for subnet in network.subnets)


def _members(store: Store, network: str) -> list[tuple[str, bool]]:
    """Return (service, active) of a network's services.

    Each is followed by the active services that share its namespace.
    """
    return [
        each
        for service, active in store.members(network)
        for each in ((service, active), *((sharer, True) for sharer in store.sharers(service)))
    ]


def _described(store: Store, network: records.Network) -> Network:
    return Network(
        network.name,
        _subnets(network),
        tuple(Subnet(subnet.cidr, subnet.gateway) for subnet in network.subnets),
        network.bridge,
        network.internal,
        network.mtu,
        tuple(
            NetworkMember(
                service,
                active,
                ", ".join(a for n, a in store.addresses(service) if n == network.name),
                rows((port for _, port in store.ports(service)), store.port_families(service)),
            )
            for service, active in _members(store, network.name)
        ),
    )
