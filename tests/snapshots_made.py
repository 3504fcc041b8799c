"""Snapshots by hand and by hypothesis: small worlds of services and networks that the store could hold."""

from __future__ import annotations

import ipaddress

from hypothesis import strategies as st

from niso import names
from niso.records import Endpoint, Network, Port, Service, Snapshot, Subnet

STATE_ID = "0123abcd"
NETWORKS = ("backend", "front", "a-network-with-a-long-name")
SERVICES = ("api", "db", "cache", "a" + "-9" * 31)


def network(number: int, dual: bool = False, mtu: int = 1500, publishes: bool = False) -> Network:
    """``NETWORKS[number]`` with 10.99.<number>.0/24 and, with ``dual``, fd00:99:<number+1>::/64."""
    name = NETWORKS[number]
    subnets = [Subnet(4, f"10.99.{number}.0/24", f"10.99.{number}.1")]
    if dual:
        subnets.append(Subnet(6, f"fd00:99:{number + 1}::/64", f"fd00:99:{number + 1}::1"))
    return Network(name, names.bridge(name), mtu, tuple(subnets), publishes=publishes)


def endpoint(on: Network, host: int) -> Endpoint:
    """The ``host``-th address of each subnet."""
    return Endpoint(on.name, tuple(str(ipaddress.ip_network(s.cidr).network_address + host) for s in on.subnets))


def everything(networks: tuple[Network, ...], services: tuple[Service, ...], forwarding_before: str = "0") -> Snapshot:
    """The snapshot of the scope ALL, as the store makes it."""
    services = tuple(each._replace(publishes=bool(each.ports)) for each in services)
    publishing = {service.endpoints[0].network for service in services if service.ports}
    families = {each.name: {subnet.family for subnet in each.subnets} for each in networks}
    readers = frozenset(tuple(e.network for e in service.endpoints) for service in services)
    return Snapshot(
        state_id=STATE_ID,
        networks=tuple(
            each._replace(publishes=each.name in publishing, by_loopback=each.name in publishing) for each in networks
        ),
        services=services,
        readers=readers,
        fresh=readers,
        neighbours=services,
        any_network=bool(networks),
        any_active=bool(services),
        any_active6=any(6 in families[e.network] for service in services for e in service.endpoints),
        sysctls_before=(("net/ipv4/ip_forward", forwarding_before),),
    )


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Whole worlds of up to three networks and four services; no two endpoints have one address, no two ports one number."""
    networks = tuple(
        network(number, dual=draw(st.booleans()), mtu=draw(st.sampled_from((1500, 1400))))
        for number in sorted(draw(st.sets(st.integers(0, len(NETWORKS) - 1))))
    )
    hosts = {each.name: iter(draw(st.permutations(range(2, 2 + len(SERVICES))))) for each in networks}
    host_ports = iter(draw(st.permutations(range(8080, 8080 + 2 * len(SERVICES)))))
    services = []
    for name in sorted(draw(st.sets(st.sampled_from(SERVICES)))) if networks else ():
        on = draw(st.lists(st.sampled_from(networks), min_size=1, max_size=2, unique=True))
        ports = tuple(
            Port("", next(host_ports), draw(st.integers(1, 3)), "tcp") for _ in range(draw(st.integers(0, 2)))
        )
        hostname = draw(st.sampled_from((name, name[:20].rstrip("-") + "-host")))
        services.append(
            Service(
                name=name,
                generation=draw(st.integers(1, 2)),
                endpoints=tuple(endpoint(each, next(hosts[each.name])) for each in on),
                ports=ports,
                names=tuple(dict.fromkeys((hostname, name))),
            )
        )
    return everything(networks, tuple(services), draw(st.sampled_from(("0", "1"))))
