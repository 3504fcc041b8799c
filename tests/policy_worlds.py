"""Worlds for tests of policies: built by hand, and drawn by hypothesis.

Network n of a drawn world is 10.99.n.0/24 and its IPv6 image; the host is 192.0.2.1, another machine 192.0.2.2. Each IPv4
address has one image in IPv6, which is fd00:: plus its number, so that a world can be turned into the one that has the families
changed over.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from hypothesis import strategies as st

from niso.manifest import policy as manifest_policy
from niso.plan.records import (
    ANY,
    ANY4,
    ANY6,
    Entry,
    NetworkRecord,
    Policy,
    PortMapping,
    ServiceEndpoint,
    SubnetRecord,
)
from niso.plan.verdict import KnownService, PolicyContext

NOTHING = Policy()
HOST, OUTSIDE = "192.0.2.1", "192.0.2.2"
IMAGE = int(ipaddress.IPv6Address("fd00::"))


NAMES = {
    "out.example": (
        OUTSIDE,
        str(ipaddress.IPv6Address(IMAGE + int(ipaddress.IPv4Address(OUTSIDE)))),
    ),
    "half.example": (OUTSIDE,),
}
"""Outside names, and what DNS answered. There is one more in policies, without an address."""


def network(name: str, *cidrs: str, internal: bool = False) -> NetworkRecord:
    subnets = []
    for cidr in cidrs:
        prefix = ipaddress.ip_network(cidr)
        subnets.append(SubnetRecord(prefix.version, cidr, str(prefix[1])))
    return NetworkRecord(name, f"niso-{name}", 1500, tuple(subnets), internal)


def policy(
    allow_from: Iterable[str] | None = None,
    deny_from: Iterable[str] = (),
    allow: Iterable[str] | None = None,
    deny: Iterable[str] = (),
) -> Policy:
    return manifest_policy.parse(allow_from, deny_from, allow, deny, False)


def known(
    name: str,
    on: Mapping[str, Sequence[str]],
    rules: Policy = NOTHING,
    *ports: PortMapping,
    **more: Any,
) -> KnownService:
    """A service with its addresses by network."""
    endpoints = tuple(
        ServiceEndpoint(network, tuple(addresses)) for network, addresses in on.items()
    )
    return KnownService(name, more.pop("names", (name,)), endpoints, rules, ports, **more)


def world(
    services: Iterable[KnownService], networks: Iterable[NetworkRecord], host: Iterable[str]
) -> PolicyContext:
    return PolicyContext(
        {service.name: service for service in services},
        {each.name: each for each in networks},
        frozenset(host),
        outside=NAMES,
    )


def with_policy(world: PolicyContext, name: str, rules: Policy) -> PolicyContext:
    return world._replace(
        services={**world.services, name: world.services[name]._replace(policy=rules)}
    )


def image(address: str) -> str:
    """Of an IPv4 address in IPv6."""
    return str(ipaddress.IPv6Address(IMAGE + int(ipaddress.IPv4Address(address))))


# --- families changed over -------------------------------------------------------------------------------------------


def swapped(text: str) -> str:
    """The image of an address or prefix in the other family; a host address that stands for all is that of the other."""
    if text in (ANY, ANY4, ANY6):
        return {ANY: ANY, ANY4: ANY6, ANY6: ANY4}[text]
    address, slash, length = text.partition("/")
    if text in ("0.0.0.0/0", "::/0"):
        return "0.0.0.0/0" if ":" in text else "::/0"
    if ":" in text:
        return f"{ipaddress.IPv4Address(int(ipaddress.IPv6Address(address)) - IMAGE)}{slash}{slash and int(length) - 96}"
    return f"{image(address)}{slash}{slash and int(length) + 96}"


def _swapped_entries(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    return tuple(
        entry._replace(peer=entry.peer._replace(name=swapped(entry.peer.name)))
        if entry.peer.kind == "prefix"
        else entry
        for entry in entries
    )


def swapped_world(world: PolicyContext) -> PolicyContext:
    services = {}
    for name, each in world.services.items():
        rules = Policy(
            None if each.policy.allow_from is None else _swapped_entries(each.policy.allow_from),
            _swapped_entries(each.policy.deny_from),
            None
            if each.policy.egress_allow is None
            else _swapped_entries(each.policy.egress_allow),
            _swapped_entries(each.policy.egress_deny),
        )
        services[name] = each._replace(
            endpoints=tuple(
                ServiceEndpoint(e.network, tuple(map(swapped, e.addresses))) for e in each.endpoints
            ),
            policy=rules,
            ports=tuple(port._replace(host_ip=swapped(port.host_ip)) for port in each.ports),
        )
    networks = {
        name: each._replace(
            subnets=tuple(
                SubnetRecord(10 - s.family, swapped(s.cidr), swapped(s.gateway))
                for s in each.subnets
            )
        )
        for name, each in world.networks.items()
    }
    outside = {name: tuple(map(swapped, each)) for name, each in world.outside.items()}
    return PolicyContext(services, networks, frozenset(map(swapped, world.host)), outside=outside)


# --- drawn -----------------------------------------------------------------------------------------------------------

NETWORKS = ("n1", "n2", "n3")
SERVICES = ("s1", "s2", "s3", "s4")
_WIDE4 = ("0.0.0.0/0", "10.99.0.0/16", "10.99.1.0/24", "192.0.2.0/24")
_NARROW4 = (
    "10.99.2.0/24",
    "10.99.1.2",
    "10.99.1.3/32",
    "10.99.2.2/31",
    "10.99.1.1",
    "10.99.2.1",
    HOST,
    OUTSIDE,
)
_WIDE = (
    *_WIDE4,
    *(f"[{swapped(prefix)}]" for prefix in _WIDE4),
    "network:n1",
    "outside",
    "outside",
)
_NARROW = (*_NARROW4, *(f"[{swapped(prefix)}]" for prefix in _NARROW4))
_NAMES = (
    *SERVICES,
    *SERVICES,
    "s1.niso.local",
    "other2",
    "ghost",
    "network:n2",
    "network:n3",
    "network:ghost",
)
_PEERS = (*_WIDE, *_WIDE, *_NARROW, *_NAMES)
_PORTS = ("",) * 9 + (
    ":80",
    ":80",
    ":81",
    ":80-81",
    ":80/tcp",
    ":81/udp",
    ":80-82/sctp",
    "/tcp",
    "/udp",
    "/icmp",
)
TEXTS = st.builds(str.__add__, st.sampled_from(_PEERS), st.sampled_from(_PORTS))
_LISTS = st.lists(TEXTS, min_size=2, max_size=5) | st.lists(TEXTS, max_size=3)


_OUT = st.builds(
    str.__add__, st.sampled_from((*NAMES, *NAMES, "ghost.example")), st.sampled_from(_PORTS)
)
_EGRESS = _LISTS | st.lists(TEXTS | _OUT, min_size=1, max_size=5)


_DENY = st.lists(st.sampled_from(_WIDE), max_size=1) | st.lists(TEXTS, max_size=2)
_POLICIES = st.builds(policy, st.none() | _LISTS, _DENY, st.none() | _EGRESS, _DENY)


_HOSTS = st.lists(st.sampled_from((ANY, HOST, image(HOST))), unique=True, min_size=1, max_size=2)


@functools.cache
def _below(count: int) -> st.SearchStrategy[int]:
    return st.integers(0, count - 1)


def _pick[T](draw: st.DrawFn, things: Sequence[T]) -> T:
    """As a draw of st.sampled_from, but without a new strategy each time: hypothesis examines each one at length."""
    return things[draw(_below(len(things)))]


class Packet(NamedTuple):
    source: str
    destination: str
    port: int | None
    proto: str


_NEAR = (
    (80, "tcp"),
    (80, "tcp"),
    (81, "tcp"),
    (80, "udp"),
    (81, "udp"),
    (82, "sctp"),
    (None, "icmp"),
    (None, "gre"),
)


@st.composite
def _networks(draw: st.DrawFn) -> list[NetworkRecord]:
    found = []
    for number, name in enumerate(NETWORKS, 1):
        cidr = f"10.99.{number}.0/24"
        cidrs = _pick(draw, ((cidr,), *[(cidr, swapped(cidr))] * 4, (swapped(cidr),)))
        found.append(network(name, *cidrs, internal=_pick(draw, (False, False, True))))
    return found


@st.composite
def worlds(draw: st.DrawFn) -> PolicyContext:
    """Three networks, four services on one or two of them, with policies and published ports that do not contradict."""
    networks = {each.name: each for each in draw(_networks())}
    services = []
    for number, name in enumerate(SERVICES, 1):
        on = _pick(
            draw, (*[("n1",)] * 4, ("n2",), ("n3",), ("n1", "n2"), ("n2", "n1"), ("n3", "n1"))
        )
        addresses = {
            each: [
                str(ipaddress.ip_network(subnet.cidr)[number + 1 if number < 4 else 200])
                for subnet in networks[each].subnets
            ]
            for each in on
        }
        ports = [
            PortMapping(where, 8000 + 10 * number, inner, proto, count)
            for where in draw(_HOSTS)
            for inner, proto, count in [
                _pick(draw, ((80, "tcp", 1), (80, "tcp", 2), (81, "udp", 2)))
            ]
        ]
        services.append(
            known(
                name,
                addresses,
                draw(_POLICIES),
                *ports,
                names=(f"other{number}", name),
                active=_pick(draw, (True,) * 20 + (False,)),
            )
        )
    return world(services, networks.values(), (HOST, image(HOST)))


def addresses(world: PolicyContext) -> list[str]:
    """All that a packet of this world could come from or go to: leased, the host's, an outside one and a free one."""
    leased = [a for each in world.services.values() for e in each.endpoints for a in e.addresses]
    gateways = [subnet.gateway for each in world.networks.values() for subnet in each.subnets]
    outside = [HOST, OUTSIDE, "10.99.1.77"]
    return [*leased, *gateways, *outside, *map(image, outside)]


@st.composite
def packets(draw: st.DrawFn, world: PolicyContext, count: int = 16) -> list[Packet]:
    """Packets of one family each: from a service to another, to published ports, and from anywhere to anywhere."""
    everything = addresses(world)
    leased = [
        address
        for each in world.services.values()
        for e in each.endpoints
        for address in e.addresses
    ]
    published = [port for each in world.services.values() for port in each.ports]
    found = []
    for _ in range(count):
        kind = _pick(draw, ("services", "services", "services", "published", "published", "any"))
        source = _pick(
            draw, everything if kind == "any" else [*leased, *leased, OUTSIDE, image(OUTSIDE)]
        )
        own = [
            a
            for each in world.services.values()
            for e in each.endpoints
            if source in e.addresses
            for a in e.addresses
        ]
        pool = [each for each in leased if each not in own] if kind == "services" else everything
        pool = [each for each in pool if (":" in each) == (":" in source)] or everything
        flow = _pick(draw, _NEAR)
        if kind == "published":
            port = _pick(draw, published)
            pool = [HOST if ":" not in source else image(HOST)]
            flow = (
                port.host_port + _pick(draw, (0, 0, port.count - 1, port.count)),
                port.proto,
            )
        found.append(Packet(source, _pick(draw, pool), *flow))
    return found
