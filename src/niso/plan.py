"""Desired state: from what the store holds to what the kernel should have. Pure: no I/O, no clock, no chance.

A `Snapshot` is the part of the store that one command needs (one service, one network, or everything); `desired` turns
it into a `State` of the same extent.
"""

from __future__ import annotations

from niso import names
from niso.records import Network, Snapshot
from niso.render import hosts, nft
from niso.state import (
    Address,
    Bridge,
    Element,
    HostsFile,
    HostsLine,
    Netns,
    Route,
    Ruleset,
    State,
    Sysctl,
    Veth,
)

FORWARDING = "net/ipv4/ip_forward"


def desired(snapshot: Snapshot) -> State:
    """What the kernel should have of all that is in the snapshot's scope."""
    alias = names.alias(snapshot.state_id)
    elements: set[Element] = set(nft.owner(snapshot.state_id)) if snapshot.any_network else set()
    bridges: set[Bridge] = set()
    namespaces: set[Netns] = set()
    veths: set[Veth] = set()
    addresses: set[Address] = set()
    routes: set[Route] = set()
    sysctls: set[Sysctl] = set(_host_sysctls(snapshot))

    if snapshot.any_active and dict(snapshot.sysctls_before).get(FORWARDING, "1") == "0":
        elements.add(nft.closed(4))

    networks = {network.name: network for network in snapshot.networks}
    for network in snapshot.networks:
        bridges.add(Bridge(network.bridge, network.mtu, alias))
        elements.update(nft.network(network.name, network.bridge, [s.cidr for s in network.subnets]))
        families = {subnet.family for subnet in network.subnets}
        for subnet in network.subnets:
            length = subnet.cidr.rpartition("/")[2]
            addresses.add(Address("", network.bridge, f"{subnet.gateway}/{length}"))
        sysctls.add(Sysctl("", f"net/ipv4/conf/{network.bridge}/route_localnet", str(int(network.publishes))))
        if 6 not in families:
            sysctls.add(Sysctl("", f"net/ipv6/conf/{network.bridge}/disable_ipv6", "1"))

    for service in snapshot.services:
        netns = names.netns(service.name)
        namespaces.add(Netns(netns, alias))
        sysctls.update(_service_sysctls(netns, [networks[e.network] for e in service.endpoints]))
        for position, endpoint in enumerate(service.endpoints):
            network = networks[endpoint.network]
            host_end = names.veth(service.name, network.name, service.generation)
            mac = names.mac(service.name, network.name, snapshot.state_id)
            inner = f"eth{position}"
            hairpin = position == 0 and bool(service.ports)
            veths.add(Veth(host_end, netns, inner, mac, network.mtu, network.bridge, hairpin, alias))
            for subnet, address in zip(network.subnets, endpoint.addresses, strict=True):
                length = subnet.cidr.rpartition("/")[2]
                addresses.add(Address(netns, inner, f"{address}/{length}"))
                if position == 0:
                    everywhere = "0.0.0.0/0" if subnet.family == 4 else "::/0"
                    routes.add(Route(netns, everywhere, subnet.gateway, inner))
            elements.update(nft.endpoint(service.name, host_end, mac, endpoint.addresses))
        for port in service.ports:
            elements.update(
                nft.published(
                    service.name,
                    port.host_ip,
                    port.host_port,
                    port.container_port,
                    port.proto,
                    service.endpoints[0].addresses,
                )
            )

    return State(
        rulesets=frozenset({Ruleset(nft.DIGEST)} if snapshot.any_network else ()),
        elements=frozenset(elements),
        bridges=frozenset(bridges),
        netns=frozenset(namespaces),
        sysctls=frozenset(sysctls),
        veths=frozenset(veths),
        addresses=frozenset(addresses),
        routes=frozenset(routes),
        hosts_files=frozenset(HostsFile(names.hosts_folder(reader)) for reader in snapshot.readers),
        hosts_lines=frozenset(_hosts_lines(snapshot)),
    )


def _host_sysctls(snapshot: Snapshot) -> list[Sysctl]:
    """Forwarding is on while a service is active; afterwards what was found before goes back."""
    if snapshot.any_active:
        return [Sysctl("", FORWARDING, "1")]
    return [Sysctl("", name, value) for name, value in snapshot.sysctls_before]


def _service_sysctls(netns: str, networks: list[Network]) -> list[Sysctl]:
    sysctls = [
        Sysctl(netns, "net/ipv4/ip_unprivileged_port_start", "0"),
        Sysctl(netns, "net/ipv4/ping_group_range", "0\t2147483647"),
        # an address that takes another's place comes before that one goes, and must not go with it (ip-sysctl.rst)
        Sysctl(netns, "net/ipv4/conf/all/promote_secondaries", "1"),
    ]
    if not any(subnet.family == 6 for network in networks for subnet in network.subnets):
        # set for interfaces that come later: lo, which is there already, keeps ::1
        sysctls.append(Sysctl(netns, "net/ipv6/conf/default/disable_ipv6", "1"))
    return sysctls


def _hosts_lines(snapshot: Snapshot) -> list[HostsLine]:
    """Each service's line in each file that shows it: its addresses on the reader's first network that it is on."""
    lines: list[HostsLine] = []
    for reader in snapshot.readers:
        services = snapshot.neighbours if reader in snapshot.fresh else snapshot.services
        for service in services:
            by_network = {endpoint.network: endpoint.addresses for endpoint in service.endpoints}
            shared = next((network for network in reader if network in by_network), None)
            if shared is not None:
                text = hosts.line_names(service.names)
                lines.extend(HostsLine(names.hosts_folder(reader), each, text) for each in by_network[shared])
    return lines
