"""Snapshots for tests, hand-made and drawn by hypothesis."""

from __future__ import annotations

import ipaddress

from hypothesis import strategies as st

from niso.base import names
from niso.kernel import ruleset
from niso.kernel.kinds.kind import State
from niso.kernel.nft_elements import Element
from niso.plan.records import (
    ANY,
    ANY4,
    ANY6,
    NetworkRecord,
    PlannedService,
    PortMapping,
    ServiceEndpoint,
    Snapshot,
    SubnetRecord,
)

STATE_ID = "0123abcd"
NETWORKS = ("backend", "front", "a-network-with-a-long-name")
SERVICES = ("api", "db", "cache", "a" + "-9" * 31)
FORCED = (
    ("net/ipv6/conf/default/force_forwarding", "0"),
    ("net/ipv6/conf/uplink0/force_forwarding", "0"),
)
"""IPv6 forwarding as forwarding.record finds it off, where the kernel has force_forwarding; and where it has not:"""
SWITCHED = (("net/ipv6/conf/all/forwarding", "0"), ("net/ipv6/conf/uplink0/accept_ra", "1"))


def network(
    number: int, dual: bool = False, mtu: int = 1500, internal: bool = False
) -> NetworkRecord:
    """``NETWORKS[number]`` with 10.99.<number>.0/24 and, with ``dual``, fd00:99:<number+1>::/64."""
    name = NETWORKS[number]
    subnets = [SubnetRecord(4, f"10.99.{number}.0/24", f"10.99.{number}.1")]
    if dual:
        subnets.append(SubnetRecord(6, f"fd00:99:{number + 1}::/64", f"fd00:99:{number + 1}::1"))
    return NetworkRecord(name, names.bridge(name), mtu, tuple(subnets), internal)


def endpoint(on: NetworkRecord, host: int) -> ServiceEndpoint:
    """The ``host``-th address of each subnet."""
    return ServiceEndpoint(
        on.name, tuple(str(ipaddress.ip_network(s.cidr).network_address + host) for s in on.subnets)
    )


def everything(
    networks: tuple[NetworkRecord, ...],
    services: tuple[PlannedService, ...],
    forwarding_before: str = "0",
    ipv6_before: tuple[tuple[str, str], ...] = (),
) -> Snapshot:
    """The snapshot of the scope ALL, as the store makes it."""
    services = tuple(each._replace(publishes=bool(each.ports)) for each in services)
    publishing = {
        endpoint.network for service in services if service.ports for endpoint in service.endpoints
    }
    by_loopback = {
        service.endpoints[0].network
        for service in services
        if any(
            port.host_ip in (ANY, ANY4) or port.host_ip.startswith("127.") for port in service.ports
        )
    }
    families = {each.name: {subnet.family for subnet in each.subnets} for each in networks}
    readers = frozenset(tuple(e.network for e in service.endpoints) for service in services)
    return Snapshot(
        state_id=STATE_ID,
        networks=tuple(
            each._replace(publishes=each.name in publishing, by_loopback=each.name in by_loopback)
            for each in networks
        ),
        services=services,
        readers=readers,
        fresh=readers,
        neighbours=services,
        any_network=bool(networks),
        forwards=bool(services),
        forwards6=any(6 in families[e.network] for service in services for e in service.endpoints),
        sysctls_before=(("net/ipv4/ip_forward", forwarding_before), *ipv6_before),
    )


PROTOS = st.sampled_from(("tcp", "tcp", "udp", "sctp"))
HOST_IPS = (ANY, ANY, ANY4, ANY6, "127.0.0.1", "192.0.2.1", "2001:db8::1")


@st.composite
def ports(draw: st.DrawFn, first: int) -> tuple[PortMapping, ...]:
    """Up to two entries of one manifest within the host ports from ``first`` to ``first + 9``."""
    found: list[PortMapping] = []
    for _ in range(draw(st.integers(0, 2))):
        count = draw(st.sampled_from((1, 1, 2, 5)))
        host_port = first + draw(st.integers(0, 10 - count))
        container_port = draw(st.sampled_from((host_port, 80)))
        port = PortMapping(
            draw(st.sampled_from(HOST_IPS)), host_port, container_port, draw(PROTOS), count
        )
        wide = (ANY, ANY4, ANY6)
        # the specific address wins over all; nothing else may be there twice
        if not any(
            port.clashes(other)
            and (port.host_ip == other.host_ip or (port.host_ip in wide and other.host_ip in wide))
            for other in found
        ):
            found.append(port)
    return tuple(found)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Whole worlds of up to three networks and four services; no two endpoints have one address, no two services one port."""
    networks = tuple(
        network(
            number,
            dual=draw(st.booleans()),
            mtu=draw(st.sampled_from((1500, 1400))),
            internal=draw(st.sampled_from((False, False, True))),
        )
        for number in sorted(draw(st.sets(st.integers(0, len(NETWORKS) - 1))))
    )
    hosts = {
        each.name: iter(draw(st.permutations(range(2, 2 + len(SERVICES))))) for each in networks
    }
    host_ports = iter(draw(st.permutations(range(8000, 8000 + 10 * len(SERVICES), 10))))
    services = []
    for name in sorted(draw(st.sets(st.sampled_from(SERVICES)))) if networks else ():
        on = draw(st.lists(st.sampled_from(networks), min_size=1, max_size=2, unique=True))
        hostname = draw(st.sampled_from((name, name[:20].rstrip("-") + "-host")))
        services.append(
            PlannedService(
                name=name,
                generation=draw(st.integers(1, 2)),
                endpoints=tuple(endpoint(each, next(hosts[each.name])) for each in on),
                ports=draw(ports(next(host_ports))),
                names=tuple(dict.fromkeys((hostname, name))),
            )
        )
    return everything(
        networks,
        tuple(services),
        draw(st.sampled_from(("0", "1"))),
        draw(st.sampled_from(((), FORCED, SWITCHED, (("net/ipv6/conf/all/forwarding", "1"),)))),
    )


def elements(state: State, container: str, table: str = ruleset.INET) -> dict[str, tuple[str, str]]:
    """Return the value and comment of each element of a set or map."""
    return {
        e.text: (e.value_text, e.comment)
        for e in state[Element]
        if (e.table, e.container) == (table, container)
    }
