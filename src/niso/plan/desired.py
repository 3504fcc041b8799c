"""Compute the desired state of the kernel from the store, and compare it with the actual state.

A `Snapshot` contains the rows of the store that one command needs: the rows of one service, of one
network, or of all. `desired` computes a `State` for the same services and networks. `findings`
returns the problems that `niso net check` reports: the differences between the desired and the
actual State, except differences that only follow from another difference. All functions are pure:
they use neither I/O nor the clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache

from niso.base import names
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.names import family_of
from niso.base.native import lazy
from niso.kernel import ruleset
from niso.kernel.kinds import hosts_files
from niso.kernel.kinds.addresses import Address, Fdb, PermanentNeighbour, Route, RoutingRule
from niso.kernel.kinds.hosts_files import HostsFile, HostsLine, line_names
from niso.kernel.kinds.kind import KINDS, Finding, KernelObject, State, by_key, kind_of
from niso.kernel.kinds.kind import wanted as in_view_of
from niso.kernel.kinds.links import Bridge, Shaper, Veth
from niso.kernel.kinds.namespaces import Netns, NetnsName
from niso.kernel.kinds.nft import Ruleset, owner
from niso.kernel.kinds.sysctls import ALL_GROUPS, FORWARDING, ON, Sysctl
from niso.kernel.nft_elements import Element
from niso.kernel.ruleset import INET, TUNNEL
from niso.plan import elements
from niso.plan.records import (
    HOST_GATEWAY,
    NetworkRecord,
    PlannedService,
    PortMapping,
    Snapshot,
    primary,
)

if TYPE_CHECKING:
    from niso.kernel.kinds import tunnels
else:  # only networks that span hosts have tunnels
    tunnels = lazy("niso.kernel.kinds.tunnels")

BRIDGE_LINK_LOCAL = "fe80::1/64"
"""The link-local address of every bridge with IPv6.

The host needs it to send neighbour solicitations for packets that it forwards (RFC 4861, 7.2.2).
"""


# objects of all services share these strings
_alias = cache(names.alias)


@cache
def _bridge_mac(bridge: str, alias: str) -> str:
    return names.mac("", bridge, alias)


@cache
def _text(form: str, *parts: object) -> str:
    return form.format(*parts)


def desired(snapshot: Snapshot) -> State:
    """Return the desired state of the kernel for the services and networks in a snapshot."""
    networks = {network.name: network for network in snapshot.networks}
    objects: list[KernelObject] = [*_shared(snapshot), *_hosts_files(snapshot)]
    for network in snapshot.networks:
        objects += _network(snapshot, network)
    for service in snapshot.services:
        if service.mode == "front":
            objects += _front(snapshot, service, networks)
            continue
        for port in service.ports if service.mode != "host" else ():
            objects += _published(service, port, networks)
        if service.mode not in ("host", "share"):  # share: uses another's network
            objects += _service(snapshot, service, networks)
    alias = _alias(snapshot.state_id)
    for remote in snapshot.remotes:
        if remote.mode == "front":
            objects += _front(snapshot, remote, networks)
        else:
            objects += _remote(remote, networks, alias)
    return State(objects)


def _shared(snapshot: Snapshot) -> Iterator[KernelObject]:
    """Yield the objects that several services or networks share: nftables tables, host sysctls and
    the WireGuard interface. Also yield the elements of policies.
    """
    if snapshot.any_network:
        yield Ruleset(ruleset.DIGEST)
        yield from owner(snapshot.state_id)
    yield from map(elements.wire, snapshot.wire)
    if snapshot.tunnel is not None:
        yield from map(elements.sealed, snapshot.wire)
        yield Element(INET, "ports", (TUNNEL,))  # the tunnel may carry only VXLAN
        others = tuple(sorted(snapshot.tunnel.others))
        yield tunnels.WireGuard(TUNNEL, *snapshot.tunnel[:5], _alias(snapshot.state_id), others)
    for policed in snapshot.policed:
        from niso.plan import policy_elements  # few services have a policy

        made = policy_elements.elements(policed, snapshot.members)
        yield from made
        yield from policy_elements.heard(policed, made)
    before = dict(snapshot.sysctls_before)
    for family in sorted(shut(before, snapshot.forwards, snapshot.forwards6)):
        yield elements.closed(family)
        for version, links in snapshot.links_before:
            if version == family:
                yield from elements.links_before(family, links)
    for name, value in snapshot.sysctls_before:
        # forwarding is on while a service needs it, afterwards as before niso changed it
        is_six = name.startswith("net/ipv6/")
        needed = snapshot.forwards6 if is_six else snapshot.forwards
        yield Sysctl("", name, ON[name.rpartition("/")[2]] if needed else value)
        if needed:
            yield from elements.before(name, value)


def _network(snapshot: Snapshot, network: NetworkRecord) -> Iterator[KernelObject]:
    """Yield a network's bridge with its addresses, nftables elements and sysctls."""
    alias = _alias(snapshot.state_id)
    bridge = network.bridge
    families = {subnet.family for subnet in network.subnets}
    # frames between two services of one bridge must be tracked where a policy applies, and where
    # they may be replies of a published port
    tracked4, tracked6 = (
        (network.publishes or network.policed) and family in families for family in (4, 6)
    )
    mac = _bridge_mac(bridge, alias)
    own = Bridge(bridge, network.mtu, alias, True, tracked4, tracked6, mac)
    yield own._replace(internal=network.internal)
    words = (network.subnets, network.internal, network.observe, network.multicast)
    yield from elements.network(network.name, bridge, mac, *words)
    if network.internal:
        yield from (RoutingRule(bridge, family) for family in sorted(families))
    for subnet in network.subnets:
        yield RoutingRule(f"lo {subnet.cidr}", subnet.family)
        yield RoutingRule(subnet.cidr, subnet.family)
        length = subnet.cidr.rpartition("/")[2]
        yield Address("", bridge, f"{subnet.gateway}/{length}")
    yield Sysctl("", f"net/ipv4/conf/{bridge}/route_localnet", str(int(network.by_loopback)))
    yield Sysctl("", f"net/ipv6/conf/{bridge}/disable_ipv6", str(int(6 not in families)))
    if 6 in families:
        yield Address("", bridge, BRIDGE_LINK_LOCAL)
    if network.span is not None:
        link, span = names.vxlan(network.name), network.span
        yield tunnels.Vxlan(link, span.vni, span.local, span.port, network.mtu, bridge, alias)
        yield Sysctl("", f"net/ipv6/conf/{link}/disable_ipv6", "1")
        yield from elements.spans(network.name, link)


def _remote(
    remote: PlannedService, networks: dict[str, NetworkRecord], alias: str
) -> Iterator[KernelObject]:
    """Yield the objects for a service of another host: the neighbour and forwarding entries for its
    addresses and MAC, and nftables elements. The elements allow the service's addresses as source
    addresses only in packets from its host.
    """
    for endpoint in remote.endpoints:
        network = networks[endpoint.network]
        if network.span is None:
            continue
        link = names.vxlan(network.name)
        mac = names.mac(remote.name, network.name, network.span.cluster)
        yield Fdb(link, mac, remote.host)
        for address in endpoint.addresses:
            yield PermanentNeighbour("", network.bridge, address, mac)
        yield from elements.claim(
            *(remote.name, remote.host, remote.host_number, network.span.vni, link, mac),
            endpoint.addresses,
        )
        gateway_mac = _bridge_mac(network.bridge, alias)
        yield from elements.receivers(remote.name, gateway_mac, mac, endpoint.addresses)


def _service(
    snapshot: Snapshot, service: PlannedService, networks: dict[str, NetworkRecord]
) -> Iterator[KernelObject]:
    """Yield the namespace of a service, and its veth pairs, addresses and routes.

    A service sends all packets for a network to its gateway's MAC, and the nftables bridge table
    replaces this MAC by the receiver's. Therefore a service has one neighbour on each network. The
    kernel's neighbour table, which all namespaces share, needs no entry for each pair of services.

    A program can bind a socket to a network interface and send to an address without a route
    through this interface. The kernel then treats the address as a neighbour. With mcast_solicit 0,
    the kernel sends no ARP request for the address. Its neighbour entry fails at once, and is
    removed when the table needs room (neigh_forced_gc, net/core/neighbour.c).
    """
    alias = _alias(snapshot.state_id)
    netns = names.netns(service.name)
    if service.outside is not None:
        yield NetnsName(netns, *service.outside)
    else:
        yield Netns(netns, alias)
        own_sysctls = {
            "net/ipv4/ip_unprivileged_port_start": "0",
            "net/ipv4/ping_group_range": ALL_GROUPS,
            **{name.replace(".", "/"): value for name, value in service.sysctls},
        }
        yield from (Sysctl(netns, *pair) for pair in own_sysctls.items())
        # a new address is added before the old one is deleted, and must not be deleted with it
        # (ip-sysctl.rst)
        yield Sysctl(netns, "net/ipv4/conf/all/promote_secondaries", "1")
        yield from _link_sysctls(netns, "default", [networks[e.network] for e in service.endpoints])
    own: list[tuple[str, str]] = []  # (address, gateway of its network)
    first = primary(service.endpoints, networks)
    for position, endpoint in enumerate(service.endpoints):
        network = networks[endpoint.network]
        host_end = names.veth(service.name, network.name, service.generation)
        owner = network.span.cluster if network.span else snapshot.state_id
        mac = endpoint.mac or names.mac(service.name, network.name, owner)
        inner = endpoint.interface or _text("eth{}", position)
        routes = endpoint is first if endpoint.routes is None else endpoint.routes
        if service.outside is not None:
            yield Sysctl(netns, _text("net/ipv4/conf/{}/promote_secondaries", inner), "1")
            yield from _link_sysctls(netns, inner, [network])
        yield Sysctl(netns, _text("net/ipv4/neigh/{}/mcast_solicit", inner), "0")
        link = (network.mtu, network.bridge, service.publishes, alias)
        yield Veth(host_end, netns, inner, mac, *link, sums=service.raw)
        if any(service.bandwidth):
            yield Shaper(host_end, netns, inner, *service.bandwidth)
        gateway_mac = _bridge_mac(network.bridge, alias)
        for subnet, address in zip(network.subnets, endpoint.addresses, strict=True):
            own.append((address, subnet.gateway))
            length = subnet.cidr.rpartition("/")[2]
            yield Address(netns, inner, f"{address}/{length}", routed=False)
            # a program in the service can add routes through the gateway only with a route to the
            # gateway
            alone = _text("{}/{}", subnet.gateway, 32 if subnet.family == 4 else 128)
            yield Route(netns, alone, "", inner)
            yield Route(netns, subnet.cidr, subnet.gateway, inner)
            if routes:
                everywhere = "0.0.0.0/0" if subnet.family == 4 else "::/0"
                # an engine may add a network of its own, which leads outside
                last = network.internal and service.outside is not None
                yield Route(netns, everywhere, subnet.gateway, inner, last=last)
            yield PermanentNeighbour("", network.bridge, address, mac)
            yield PermanentNeighbour(netns, inner, subnet.gateway, gateway_mac)
        own_port = (service.name, host_end, mac, endpoint.addresses)
        words = (service.limits, network.observe, network.multicast)
        yield from elements.endpoint(*own_port, *words)
        yield from elements.receivers(service.name, gateway_mac, mac, endpoint.addresses)
        if network.span is not None:
            yield elements.here(service.name, network.span.vni, mac)
    if service.publishes:
        yield from elements.hairpin(service.name, own)


def _published(
    service: PlannedService,
    port: PortMapping,
    networks: dict[str, NetworkRecord],
    front: bool = False,
) -> Iterator[Element]:
    """Yield the nftables elements of one published port. Connections to the port are translated to
    the service's addresses on its primary network. Connections from clients on another network of
    the service are translated to the service's addresses on that network.
    """
    first = primary(service.endpoints, networks)
    if first is None:
        return
    families = {family_of(address) for address in first.addresses}
    for endpoint in service.endpoints:
        inside = [address for address in endpoint.addresses if family_of(address) in families]
        bridge = "" if endpoint is first else networks[endpoint.network].bridge
        yield from elements.published(service.name, port, inside, bridge, front)


def _front(
    snapshot: Snapshot, service: PlannedService, networks: dict[str, NetworkRecord]
) -> Iterator[Element]:
    """Yield the nftables elements of a service address, and of ports that are published for it.
    While no instance of the service receives connections, there are no elements. Connections to
    published ports, and from programs of this host, are sent only to instances on this host.
    """
    if not (service.serving or service.elsewhere):
        return
    for endpoint in service.endpoints:
        bridge = networks[endpoint.network].bridge
        mac = _bridge_mac(bridge, _alias(snapshot.state_id))
        for address in endpoint.addresses:
            near, far = (
                {
                    ordinal: own
                    for ordinal, its in some
                    for other in its
                    for own in other.addresses
                    if other.network == endpoint.network and family_of(own) == family_of(address)
                }
                for some in (service.serving, service.elsewhere)
            )
            yield from elements.service_address(service.name, bridge, mac, address, near, far)
    for port in service.ports if service.serving else ():
        yield from _published(service, port, networks, front=True)


def shut(before: Mapping[str, str], forwards: bool, forwards6: bool) -> frozenset[int]:
    """Return the IP versions (4, 6) that the host forwards only because niso enabled forwarding.

    ``before`` maps host sysctls to their values before niso changed them. ``forwards`` and
    ``forwards6`` are true while niso makes the host forward IPv4 and IPv6
    (`SnapshotRows.host_forwards`).
    """
    four = forwards and before.get(FORWARDING) == "0"
    six = forwards6 and any(
        name.startswith("net/ipv6/") and name.endswith("forwarding") and value == "0"
        for name, value in before.items()
    )
    return frozenset(([4] if four else []) + ([6] if six else []))


def _link_sysctls(netns: str, link: str, networks: Iterable[NetworkRecord]) -> Iterator[Sysctl]:
    """Yield the sysctls of the network interface ``link`` in a service's namespace. If ``link`` is
    ``default``, the sysctls are the defaults for interfaces that are created later.
    """
    if any(subnet.family == 6 for network in networks for subnet in network.subnets):
        # niso assigns all addresses: packets from a generated one would be dropped
        yield Sysctl(netns, _text("net/ipv6/conf/{}/addr_gen_mode", link), "1")
        # niso sets all routes: router advertisements must not add routes
        yield Sysctl(netns, _text("net/ipv6/conf/{}/accept_ra", link), "0")
        yield Sysctl(netns, _text("net/ipv6/conf/{}/disable_ipv6", link), "0")
    else:
        yield Sysctl(netns, _text("net/ipv6/conf/{}/disable_ipv6", link), "1")


def _hosts_files(snapshot: Snapshot) -> Iterator[HostsFile | HostsLine]:
    """Yield all hosts files in scope and their lines. Each address of a service is one line.

    All services with the same ordered list of networks share a hosts file. A service is listed with
    its addresses on the first of these networks that it is on, and with its names. A name that a
    service on an earlier network has is left out. The service's addresses on the other networks are
    listed as ``SERVICE.NETWORK.niso.local``. The host itself is listed with the gateways of the
    first network. A service without a network, or with extra hosts, has its own hosts file.
    """
    for service in snapshot.services:
        if service.mode == "none":
            folder, text = names.own_hosts_folder(service.name), line_names(service.names)
            yield HostsFile(folder)
            yield from (HostsLine(folder, address, text) for address in ("127.0.0.1", "::1"))
    by_name = {network.name: network for network in snapshot.networks}
    scope = {service.name for service in snapshot.services}
    files: list[tuple[str, tuple[str, ...], bool, tuple[tuple[str, str], ...]]] = [
        (names.hosts_folder(networks), networks, networks in snapshot.fresh, ())
        for networks in snapshot.readers
    ]
    for service in snapshot.apart:
        networks = tuple(endpoint.network for endpoint in service.endpoints)
        folder, fresh = names.own_hosts_folder(service.name), service.name in scope
        files.append((folder, networks, fresh, service.extra_hosts))
    for folder, networks, fresh, extra in files:
        yield HostsFile(folder)
        if fresh:
            services = (*snapshot.neighbours, *snapshot.listed)
        else:
            services = (*snapshot.services, *snapshot.remotes)
        yield from _services_lines(folder, networks, extra, services)
        if (first := by_name.get(networks[0])) is not None:
            gateways = [subnet.gateway for subnet in first.subnets]
            yield from (HostsLine(folder, gateway, hosts_files.HOST) for gateway in gateways)
            by_address: dict[str, list[str]] = {}
            for name, address in extra:
                for one in gateways if address == HOST_GATEWAY else [address]:
                    by_address.setdefault(one, []).append(name)
            for one, called in by_address.items():
                yield HostsLine(folder, one, " ".join(called))


def _services_lines(
    folder: str,
    networks: tuple[str, ...],
    extra: Iterable[tuple[str, str]],
    services: Iterable[PlannedService],
) -> Iterator[HostsLine]:
    """Yield the lines for services in one hosts file.

    Services that share a network namespace read the same file. ``networks`` are their networks, in
    order. ``extra`` are the manifest's extra hosts as pairs (name, address). If a service has the
    same name as an extra host, the extra host is used.
    """
    listed = []  # (position of the network in ``networks``, service, addresses there)
    for service in services:
        if service.mode not in ("bridge", "attached", "front") or not service.names:
            continue  # an instance is reached by the names of its service
        by_network = {endpoint.network: endpoint.addresses for endpoint in service.endpoints}
        shared = [at for at, on in enumerate(networks) if on in by_network]
        if shared:
            listed.append((shared[0], service, by_network[networks[shared[0]]]))
        for network in (networks[at] for at in shared[1:]):
            text = f"{service.name}.{network}.{names.DOMAIN}"
            yield from (HostsLine(folder, one, text) for one in by_network[network])
    first = {name: -1 for name, _ in extra}
    for at, service, _ in listed:
        for name in service.names:
            first[name] = min(at, first.get(name, at))
    for at, service, addresses in listed:
        own = tuple(name for name in service.names if first[name] == at)
        if own:
            text = line_names(own)
            yield from (HostsLine(folder, address, text) for address in addresses)


def findings(want: State, have: State) -> list[Finding]:
    """Return the differences between the desired and the actual state, for `niso net check`. A
    difference that follows from another difference is left out, such as the missing address of a
    missing interface.
    """
    result: list[Finding] = []
    # missing or foreign parents, and conditions that explain other differences; sysctls are
    # compared before the veth pairs that they are on
    there = {veth.key() for veth in have[Veth] if veth.peer}
    unseen = (veth for veth in want[Veth] if veth.key() not in there)
    known = {kind_of(veth).parent_name(veth) for veth in unseen}
    want = in_view_of(want, have)
    for kind in KINDS:
        before, more = by_key(want[kind.type], have[kind.type])
        for obj in sorted(want[kind.type]):
            actual = before.pop(obj.key(), None)
            if actual == obj or not known.isdisjoint(
                (*kind.parents(obj), *kind.causes(obj, actual))
            ):
                continue
            if actual is None:
                result.append(Finding("missing", kind.noun(obj)))
                known.add(kind.parent_name(obj))
            else:
                result += kind.differences(obj, actual, known)
                known.update(kind.conditions(obj, actual))
        for obj in sorted([*before.values(), *more]):
            # a sysctl cannot be deleted
            if kind.type is Sysctl or not known.isdisjoint(kind.parents(obj)):
                continue
            result.append(Finding("foreign", kind.noun(obj)))
            known.add(kind.parent_name(obj))
    return result
