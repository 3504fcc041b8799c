"""Manage networks (``host.networks``), and list published ports and niso's nftables rules."""

from __future__ import annotations

from niso.base.errors import UsageError
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import owner
from niso.look.session import ApiPart, as_usage, text, texts
from niso.plan import records
from niso.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    import niso
    from niso.look.host_ports import Port


_DEFAULT_NETWORK = "niso-default"  # copied from niso.base.names, to save an import


class NetworkLine(NamedTuple):
    """One network in the result of `Networks.list`."""

    name: str  # the network's name
    subnet: str  # subnets, separated by a comma and a space
    services: int  # number of services on the network
    vni: int | None  # VXLAN network identifier in the cluster; null if on this host only
    elsewhere: int  # number of services of other hosts on the network


class Subnet(NamedTuple):
    """A subnet of a network."""

    cidr: str  # the subnet
    gateway: str  # the bridge's address


class NetworkMember(NamedTuple):
    """A service on a network."""

    service: str  # the service's name
    active: bool  # whether the service is active
    address: tuple[str, ...]  # addresses, one for each network and IP version; can be empty
    ports: tuple[Port, ...]
    """published ports, one for each IP version; empty if the service is on another host"""
    host: str | None  # name of the other host that the service is on; null for this host


class Network(NamedTuple):
    """All details of a network."""

    name: str  # the network's name
    subnet: str  # subnets, separated by a comma and a space
    subnets: tuple[Subnet, ...]  # the subnets, one for each IP version
    bridge: str  # name of the bridge on the host
    internal: bool  # whether packets are not forwarded out of the network
    observe: bool  # whether the network's flows are recorded
    mtu: int  # MTU in bytes
    vni: int | None  # VXLAN network identifier in the cluster; null if on this host only
    services: tuple[NetworkMember, ...]  # services on the network
    multicast: bool  # whether multicasts and broadcasts pass between its services


class CreatedNetwork(NamedTuple):
    """The result of `Networks.create`. ``changed`` is false if the network existed already."""

    changed: bool
    network: Network


class RemovedNetwork(NamedTuple):
    """The result of `Networks.remove` for one network."""

    name: str  # the network's name
    changed: bool  # false if nothing changed


class HostName(NamedTuple):
    """A name by which the host itself can reach a service."""

    name: str  # NAME.niso.local
    address: str  # an IPv4 or IPv6 address


class HostNames(NamedTuple):
    """The result of `Networks.host_names`."""

    on_host: bool  # whether the host's own /etc/hosts has the names
    changed: bool  # false if nothing changed
    names: tuple[HostName, ...]  # one for each name and address


class Rules(NamedTuple):
    """niso's nftables tables in the kernel."""

    nftables: list[object]  # objects of libnftables-json(5)


class Networks(ApiPart):
    """The API of networks: ``host.networks``."""

    def create(  # noqa: PLR0913  # settings, by keyword
        self,
        name: str,
        *,
        subnets: Iterable[str] = (),
        ipv6: bool = False,
        gateways: Iterable[str] = (),
        internal: bool = False,
        mtu: int | None = None,
        allow_public: bool = False,
        observe: bool = True,
        span: bool = False,
        multicast: bool = False,
        dry_run: bool = False,
    ) -> CreatedNetwork:
        """Create a network and its bridge. Nothing changes if the network exists with these values.

        ``subnets`` has at most one prefix per IP version and defaults to the next free /24.
        ``gateways`` are the bridge's addresses. ``ipv6`` adds a unique local /64. ``internal``
        disables forwarding out of the network. ``mtu`` is in bytes. ``allow_public`` permits public
        prefixes. This host can then no longer reach the real addresses in these prefixes. With
        ``observe``, niso records the network's flows. ``span`` creates the network in the cluster
        too, or adds a network of the cluster to this host. With ``multicast``, UDP multicasts and
        broadcasts pass between the network's services, as their policies allow.

        Raises Conflict, UsageError, KernelError, and Error if the cluster does not answer. In these
        cases nothing has changed.
        """
        from niso.base.names import network_name
        from niso.change import journal, networks
        from niso.plan.subnets import NetworkRequest

        self.session.require()
        given = text(name, "NAME")
        name = as_usage(lambda: network_name(given, "NAME"))
        if mtu is not None and (isinstance(mtu, bool) or not isinstance(mtu, int)):
            raise UsageError(f"must be an integer, not {type(mtu).__name__}", None, "mtu")
        prefixes, bridges = tuple(texts(subnets, "subnets")), tuple(texts(gateways, "gateways"))
        machine = self.session.machine_for_change(create=not dry_run)
        store = machine.store
        request = NetworkRequest(
            name, prefixes, ipv6, bridges, internal, mtu, allow_public, observe, span, multicast
        )
        if not dry_run and store.intents():
            journal.recover(machine)
        made = networks.create(machine, request, dry_run)
        network = _described(store, made or store.require_network(name))
        return CreatedNetwork(made is not None, network)

    def list(self) -> tuple[NetworkLine, ...]:
        """Return all networks, the default network first."""
        store = self.session.store()
        counts, others = store.member_counts(), store.others()
        lines = []
        for network in store.networks():
            count = counts.get(network.name, 0)
            there = [other for other in others if other.is_on(network.name)]
            elsewhere = sum(owner(other.name) == other.name for other in there)
            line = NetworkLine(network.name, _subnets(network), count, _vni(network), elsewhere)
            lines.append(line)
        return tuple(sorted(lines, key=lambda line: (line.name != _DEFAULT_NETWORK, line.name)))

    def names(self) -> tuple[str, ...]:
        """Return the names of all networks."""
        return tuple(self.session.store().network_names())

    def inspect(self, name: str) -> Network:
        """Return all details of a network. Raises NotFound."""
        store = self.session.store()
        return _described(store, store.require_network(text(name, "name")))

    def remove(self, *names: str, dry_run: bool = False) -> tuple[RemovedNetwork, ...]:
        """Remove networks and their bridges. If one network cannot be removed, none is removed.

        Raises NotFound, and Conflict if a network is in use.
        """
        from niso.change import journal, networks

        wanted = [*dict.fromkeys(texts(names, "names"))]
        machine = self.session.machine_for_change()
        if not dry_run:
            journal.recover(machine)
        networks.remove(machine, wanted, dry_run)
        return tuple(RemovedNetwork(name, not dry_run) for name in wanted)

    def ports(self) -> tuple[niso.PublishedPort, ...]:
        """Return the published ports of active services.

        A port has one result for each host address or IP version on which it is published.
        """
        from niso.look import host_ports

        return host_ports.published_ports(self.session.store())

    def ports_everywhere(self) -> tuple[niso.ClusterPort, ...]:
        """Return the published ports of active services on all hosts, sorted by service.

        For other hosts, only services on networks that span hosts are included. Raises Error if
        this host is in no cluster.
        """
        from niso.look import other_hosts

        return other_hosts.ports(self.session)

    def exposure(self) -> tuple[niso.PublishedPort, ...]:
        """Return the published ports, with the clients that can reach each port (``from_``).

        Other firewalls on the host are taken into account. Raises KernelError.
        """
        from niso.look import other_firewalls

        return other_firewalls.exposed_ports(self.session.kernel(), self.session.store())

    def host_names(self, *, on_host: bool | None = None) -> HostNames:
        """Return the names by which the host itself can reach services.

        With ``on_host=True``, niso also writes these names into the host's own /etc/hosts, now and
        after each change. ``on_host=False`` removes them from the file. Raises KernelError if the
        file cannot be replaced atomically. In this case nothing has changed.
        """
        from niso.change import networks
        from niso.reconcile import host_settings

        if on_host is None:
            store, changed = self.session.store(), False
        else:
            machine = self.session.machine_for_change(create=on_host)
            store, changed = machine.store, networks.show(machine, on_host)
        lines = (line.split() for line in host_settings.wanted(store))
        rows = tuple(HostName(name, address) for address, *called in lines for name in called)
        return HostNames(store.writes_host_names(), changed, rows)

    def rules(self) -> Rules:
        """Return niso's nftables tables as data. Raises KernelError.

        Elements of sets and maps that change at run time are left out.
        """
        items = [item for table in _tables(as_text=False) for item in table]
        for item in items:
            held = item.get("set") or item.get("map") or {}
            if "dynamic" in held.get("flags", ()):
                held.pop("elem", None)
        return Rules(items)

    def rules_text(self) -> str:
        """Return the same tables as `rules`, in the text format of nft(8). Raises KernelError."""
        return "".join(_declared("".join(_tables(as_text=True))))


def _declared(text: str) -> Iterator[str]:
    """Yield the lines of an nft(8) listing, without the elements of dynamic sets and maps."""
    fills = skips = False
    for line in text.splitlines(keepends=True):
        if line.startswith(("\tset ", "\tmap ")):
            fills = False
        elif line.startswith("\t\tflags "):
            fills = "dynamic" in line
        skips = skips or (fills and line.startswith("\t\telements = {"))
        if not skips:
            yield line
        skips = skips and not line.endswith("}\n")


def _tables(as_text: bool) -> list[Any]:
    from niso.kernel import libnftables, nft_elements, ruleset

    with libnftables.Nft() as kernel, nft_elements.Nfnetlink() as netlink:
        return [
            kernel.text(f"list table {table}") if as_text else kernel.query(f"list table {table}")
            for table in ruleset.CONTAINERS
            if netlink.all_of(table, "owner") is not None
        ]


def _subnets(network: records.NetworkRecord) -> str:
    return ", ".join(subnet.cidr for subnet in network.subnets)


def _vni(network: records.NetworkRecord) -> int | None:
    return None if network.span is None else network.span.vni


def _described(store: Store, network: records.NetworkRecord) -> Network:
    from niso.look.host_ports import rows

    services = []
    for member, is_active in store.members(network.name):
        if owner(member) != member:
            continue  # an instance of a service that is listed itself
        sharers = [(sharer, True) for sharer in store.sharers(member)]
        for service, active in ((member, is_active), *sharers):
            addresses = tuple(a for n, a in store.addresses(service) if n == network.name)
            ports = rows((port for _, port in store.ports(service)), store.port_families(service))
            services.append(NetworkMember(service, active, addresses, ports, None))
    if network.span is not None:
        services += _elsewhere(store, network.name)
    return Network(
        network.name,
        _subnets(network),
        tuple(Subnet(subnet.cidr, subnet.gateway) for subnet in network.subnets),
        network.bridge,
        network.internal,
        network.observe,
        network.mtu,
        _vni(network),
        tuple(services),
        network.multicast,
    )


def _elsewhere(store: Store, network: str) -> Iterator[NetworkMember]:
    """Yield the services that other hosts have on a network that spans hosts. ``active`` is true if
    this host can resolve the service's names.
    """
    hosts = {address: host for host, (_, address, _) in store.across.peers().items()}
    for service in store.across.remotes((network,), "network"):
        if owner(service.name) != service.name:
            continue
        endpoints = [e for e in service.endpoints if e.network == network]
        addresses = tuple(address for e in endpoints for address in e.addresses)
        host = hosts.get(service.host, service.host)
        yield NetworkMember(service.name, bool(service.names), addresses, (), host)
