"""From where services can be reached, as far as this host can tell: its addresses, and what other rules drop."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from niso.base.family import family_of
from niso.base.names import is_marked
from niso.explain import foreign_firewalls
from niso.explain.foreign_firewalls import Drop
from niso.kernel.interface import Kernel
from niso.kernel.rtnetlink import Rtnl
from niso.plan.records import ANY4, ANY6, Network, Policy, Port

_BRIDGED = {4: "net/bridge/bridge-nf-call-iptables", 6: "net/bridge/bridge-nf-call-ip6tables"}


def drops(kernel: Kernel, networks: Iterable[Network]) -> list[Drop]:
    """Chains of others that drop what goes to, from or within these networks. Raises KernelError.

    A packet is forwarded only if every table's chains let it.
    """
    groups: dict[tuple[int, bool], list[str]] = {}
    for network in networks:
        for family in (subnet.family for subnet in network.subnets):
            bridged = network.publishes or kernel.sysctl(_BRIDGED[family]) == "1"
            groups.setdefault((family, bridged), []).append(network.bridge)
    found = [
        drop
        for (family, bridged), bridges in sorted(groups.items())
        for drop in foreign_firewalls.foreign_drops(kernel, bridges, bridged, (family,))
    ]
    return list(dict.fromkeys(found))


def closed_links(kernel: Kernel) -> list[tuple[str, str]]:
    """(what is wrong, what to do) of each link of the host that forwards no IPv4: nobody reaches a service by it, and no
    service reaches anybody. It is not niso's to change. Raises KernelError."""
    return [
        (
            f"link {name} forwards no IPv4 ({_forwarding(name)} is 0)",
            f"sysctl -w {_forwarding(name)}=1",
        )
        for name in sorted(kernel.not_forwarding())
    ]


def _forwarding(link: str) -> str:
    return f"net/ipv4/conf/{link}/forwarding"


def ways_in(
    kernel: Kernel, ports: Iterable[tuple[Port, Network, Sequence[str]]]
) -> list[list[str]]:
    """For each port (with one address, or all of one family), its network and the internal networks that do not lead to it: who can
    reach it, in words. Raises KernelError.
    """
    wanted = list(ports)
    addresses, closed = _addresses(), set(kernel.not_forwarding())
    blocked: dict[tuple[str, int], list[str]] = {}
    for network in {network for _, network, _ in wanted}:
        for family in (4, 6):
            only = network._replace(subnets=tuple(s for s in network.subnets if s.family == family))
            blocked[network.name, family] = [
                d.chain for d in drops(kernel, [only]) if "published" in d.what
            ]
    ways = []
    for port, network, internal in wanted:
        chains = blocked[network.name, port.families[0]]
        ways.append(
            _ways(
                port,
                addresses,
                closed,
                internal,
                f" (but {', '.join(chains)} drops it)" if chains else "",
            )
        )
    return ways


def narrowed(ways: list[str], policy: Policy | None) -> list[str]:
    """Who can reach a port, with what the service's policy says of it. The host may always."""
    if policy is None or len(ways) < 2:
        return ways
    if policy.allow_from == ():
        return [ways[0], "nobody else: allow_from is empty"]
    said = []
    if policy.allow_from is not None:
        said.append(
            f"of these only allow_from: {', '.join(entry.text for entry in policy.allow_from)}"
        )
    if policy.deny_from:
        said.append(f"but not deny_from: {', '.join(entry.text for entry in policy.deny_from)}")
    return [*ways, *said]


def _addresses() -> list[tuple[str, str, bool]]:
    """(address, link, the link is one to other machines) of this host."""
    with Rtnl() as rtnl:
        links = {link.index: link for link in rtnl.links()}
        found = []
        for each in rtnl.addresses():
            address = ipaddress.ip_interface(each.address).ip
            link = links.get(each.index)
            if link is not None and not address.is_link_local:
                outside = (
                    not address.is_loopback and not is_marked(link.alias) and link.name != "lo"
                )
                found.append((str(address), link.name, outside))
    return found


def _ways(
    port: Port,
    addresses: list[tuple[str, str, bool]],
    closed: set[str],
    internal: Sequence[str],
    but: str,
) -> list[str]:
    if port.host_ip in (ANY4, ANY6):
        there = [each for each in addresses if family_of(each[0]) in port.families]
    elif port.host_ip.startswith("127."):
        return ["this host"]
    else:
        there = [each for each in addresses if each[0] == port.host_ip]
        if not there:
            return [f"nobody: this host has no address {port.host_ip} now"]
    shut = {link for address, link, _ in there if family_of(address) == 4 and link in closed}
    outside = [
        f"{address} on {link}"
        for address, link, is_outside in there
        if is_outside and link not in shut
    ]
    others = [f"other machines by {', '.join(outside)}{but}"] if outside else []
    nobody = [f"nobody by {link}: {_forwarding(link)} is 0" for link in sorted(shut)]
    inner = f" but by internal network {' or '.join(internal)}" if internal else ""
    return ["this host", f"services{inner}{but}", *others, *nobody]
