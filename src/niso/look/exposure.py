"""Report from where services can be reached, and which other firewalls drop the packets."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from niso.base.named_tuples import TYPE_CHECKING
from niso.base.names import family_of, is_marked
from niso.kernel.rtnetlink import Rtnl
from niso.look import host_ports, other_firewalls
from niso.look.other_firewalls import ForeignDrop
from niso.plan.records import ANY4, ANY6, NetworkRecord, Policy, PortMapping
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.kernel.real import Kernel


def drops(kernel: Kernel, networks: Iterable[NetworkRecord]) -> list[ForeignDrop]:
    """Return other programs' chains that drop packets of these networks. Raises KernelError."""
    groups: dict[tuple[int, bool], list[str]] = {}
    for network in networks:
        for family in (subnet.family for subnet in network.subnets):
            bridged = other_firewalls.is_bridged(kernel, network, family)
            groups.setdefault((family, bridged), []).append(network.bridge)
    if not groups:
        return []
    with kernel.foreign_chains() as source:
        if not source.base_chains():
            return []

    found = (
        drop
        for (family, bridged), bridges in sorted(groups.items())
        for drop in other_firewalls.foreign_drops(kernel, bridges, bridged, (family,))
    )
    return list(dict.fromkeys(found))


def others_dropped(chains: Iterable[str]) -> list[tuple[str, str]]:
    """Return a problem and its remedy for each of the given NAT chains of other programs."""
    return [
        (
            f"nftables chain {chain} translates addresses of packets that niso drops: the host"
            " did not forward IPv4 before niso's first service",
            "set net.ipv4.ip_forward = 1 in /etc/sysctl.d; it counts when no service is active,"
            " or from the next boot",
        )
        for chain in chains
    ]


def closed_links(kernel: Kernel) -> list[tuple[str, str]]:
    """Return a problem and its remedy for each network interface that does not forward IPv4."""
    return [
        (
            f"link {name} does not forward IPv4 ({_forwarding(name)} is 0)",
            f"sysctl -w {_forwarding(name)}=1",
        )
        for name in sorted(kernel.not_forwarding())
    ]


def _forwarding(link: str) -> str:
    return f"net/ipv4/conf/{link}/forwarding"


def narrowed(ways: list[str], policy: Policy | None) -> list[str]:
    """Add a policy's limits to the lines that say who can reach a port.

    The first line is about this host, which no policy limits.
    """
    if policy is None or len(ways) < 2:
        return ways
    if policy.allow_from == ():
        return [ways[0], "nobody else: allow_from is empty"]
    limits = []
    if policy.allow_from is not None:
        peers = ", ".join(entry.text for entry in policy.allow_from)
        limits.append(f"of these only allow_from: {peers}")
    if policy.deny_from:
        limits.append(f"but not deny_from: {', '.join(entry.text for entry in policy.deny_from)}")
    return [*ways, *limits]


def _addresses() -> list[tuple[str, str, bool]]:
    """List the host's addresses, each with its interface and whether it leads to other machines."""
    addresses = []
    with Rtnl() as rtnl:
        links = {link.index: link for link in rtnl.links()}
        for assigned in rtnl.addresses():
            address = ipaddress.ip_interface(assigned.address).ip
            link = links.get(assigned.index)
            if link is not None and not address.is_link_local:
                is_own = address.is_loopback or is_marked(link.alias) or link.name == "lo"
                addresses.append((str(address), link.name, not is_own))
    return addresses


def _ways(
    port: PortMapping,
    addresses: list[tuple[str, str, bool]],
    closed: set[str],
    internal: Sequence[str],
    but: str,
) -> list[str]:
    """Return the lines that say who can reach a port.

    ``closed`` are the interfaces that do not forward IPv4. ``internal`` are the networks from which
    the port cannot be reached. ``but`` is a note about firewalls of other programs that drop
    packets.
    """
    if port.host_ip in (ANY4, ANY6):
        published = [item for item in addresses if family_of(item[0]) in port.families]
    elif port.host_ip.startswith("127."):
        return ["this host"]
    else:
        published = [item for item in addresses if item[0] == port.host_ip]
        if not published:
            return [f"nobody: this host has no address {port.host_ip} now"]
    shut = {link for address, link, _ in published if family_of(address) == 4 and link in closed}
    outside = [
        f"{address} on {link}"
        for address, link, is_outside in published
        if is_outside and link not in shut
    ]
    others = [f"other machines via {', '.join(outside)}{but}"] if outside else []
    nobody = [f"nobody via {link}: {_forwarding(link)} is 0" for link in sorted(shut)]
    inner = f" except from internal network {' or '.join(internal)}" if internal else ""
    return ["this host", f"services{inner}{but}", *others, *nobody]


def exposed_ports(kernel: Kernel, store: Store) -> tuple[host_ports.PublishedPort, ...]:
    """Return the published ports and who can reach each of them, for `Networks.exposure`."""
    # imported late: activations need the rest of this module
    from niso.look import chains_on_path, listening

    lines = host_ports.port_rows(store)
    services = {service for service, _, _ in lines}
    internal = [network.name for network in store.networks() if network.internal]
    on = {service: [network for network, _ in store.addresses(service)] for service in services}
    first = {service: store.require_network(on[service][0]) for service in services}
    policies = {service: store.policy(store.home(service)) for service in services}
    addresses, not_forwarding = _addresses(), set(kernel.not_forwarding())
    blocked: dict[tuple[NetworkRecord, int], str] = {}
    for network in set(first.values()):
        for family in (4, 6):
            only = network._replace(subnets=tuple(s for s in network.subnets if s.family == family))
            chains = [d.chain for d in drops(kernel, [only]) if "published" in d.what]
            blocked[network, family] = f" (but {', '.join(chains)} drops it)" if chains else ""
    notes: dict[tuple[str, PortMapping, int], list[str]] = {}
    for service, port, family, text in host_ports.shadows(kernel, store, services):
        notes.setdefault((service, port, family), []).append(text)
    for service, port, family, found in listening.unheard(
        listening.ServiceSockets(kernel), store, services
    ):
        notes.setdefault((service, port, family), []).append(found.words)
    for service, port, family, other in chains_on_path.of_ports(kernel, store, services):
        notes.setdefault((service, port, family), []).append(f"but {other.words}")
    result = []
    for service, port, row in lines:
        family = family_of(row.host_ip)
        # traffic of an internal network stays on it, so only its own services are reachable
        closed = [name for name in internal if name not in on[service]]
        but = blocked[first[service], family]
        at = port._replace(host_ip=row.host_ip)
        ways = narrowed(_ways(at, addresses, not_forwarding, closed, but), policies[service])
        ways = [*ways, *notes.get((service, port, family), ())]
        result.append(host_ports.published_port(service, row, tuple(ways)))
    return tuple(result)
