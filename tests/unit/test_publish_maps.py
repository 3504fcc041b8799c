"""Test which service gets a packet for a host port: the maps against the list of ports."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from port_packets import packets, takes
from samples import samples
from snapshots_made import SERVICES, endpoint, everything, network

from niso.base.names import BRIDGE_GROUP
from niso.kernel import ruleset
from niso.kernel.kinds.kind import State
from niso.kernel.nft_elements import Element, ports_of
from niso.plan.desired import desired
from niso.plan.records import NetworkRecord, PlannedService, PortMapping, Snapshot

NETWORKS = (network(0), network(1, dual=True), network(2, dual=True, internal=True))
DESTINATIONS = ("127.0.0.1", "192.0.2.1", "203.0.113.9", "::1", "2001:db8::1", "fd00::9")
HOST_IPS = ("", "", "0.0.0.0", "::", "127.0.0.1", "192.0.2.1", "203.0.113.9", "2001:db8::1")
NUMBERS = range(9, 21)


class Packet(NamedTuple):
    iif: str  # "" for what the host itself sends
    to: str
    proto: str
    port: int


class Hit(NamedTuple):
    service: str
    address: str
    port: int


# --- the kernel's way ----------------------------------------------------------------------------------------------

_RULE = re.compile(r"dnat (ip6?) to (.+) map @(\w+)")
_RETURN = re.compile(r"(ip6?) daddr (\S+) return( comment \"[^\"]*\")?")


_JUMP = re.compile(rf"meta iifgroup {BRIDGE_GROUP} jump (\w+)")


def _rules(chain: str) -> list[str]:
    """Return the rules of a chain, those of a chain that packets from bridges are sent to in its place.

    Those look at the link themselves, so packets from elsewhere match none of them.
    """
    lines: list[str] = []
    for line in ruleset.rules_of(ruleset.INET, chain):
        if jump := _JUMP.fullmatch(line):
            inner = _rules(jump[1])
            assert all(" to iifname . " in each for each in inner)
            lines += inner
        elif " daddr set " not in line:  # ports of service addresses: test_service_address
            lines.append(line)
    return lines


CHAIN = _rules("publish")
RETURNS = [found.group(1, 2) for line in CHAIN if (found := _RETURN.fullmatch(line))]
RULES = [
    (found[1], found[2].split(" . "), found[3])
    for line in CHAIN
    if (found := _RULE.fullmatch(line))
]
"""(family, what is looked up, map), in the order of the chain, which has nothing else but the returns at its start."""

Maps = dict[str, dict[tuple[str, ...], list[tuple[int, int, str, str]]]]


def maps(state: State) -> Maps:
    """Map -> the parts of its keys but the last, which is a port -> (first port, last port, value, owner)."""
    found: Maps = {}
    for element in state[Element]:
        if element.container.startswith(("local_", "publish_", "range_")):
            *parts, ports = element.fields
            entry = (*ports_of(ports), element.value_text, element.owner)
            found.setdefault(element.container, {}).setdefault(tuple(parts), []).append(entry)
    return found


def walk(tables: Maps, packet: Packet) -> Hit | None:
    """Return the target of a packet in the chain ``publish``: that of the first map that has it."""
    family = "ip6" if ":" in packet.to else "ip"
    if (family, packet.to) in RETURNS:
        return None
    fields = {"iifname": packet.iif, f"{family} daddr": packet.to, "meta l4proto": packet.proto}
    for of, (*names, last), name in RULES:
        if of != family or name not in tables:
            continue
        assert last == "th dport"
        entries = tables[name].get(tuple(fields[each] for each in names), ())
        hits = [(value, owner) for low, high, value, owner in entries if low <= packet.port <= high]
        if hits:
            ((value, owner),) = hits  # a map has one value for a key
            address, _, port = value.partition(" . ")
            return Hit(owner, address, int(port or packet.port))
    return None


# --- by looking at each port -----------------------------------------------------------------------------------------


def owner(snapshot: Snapshot, packet: Packet) -> Hit | None:
    """The service that publishes a port: by its specific address if it has one, at the network that the client is on."""
    if packet.to == "::1":
        return None
    family = 6 if ":" in packet.to else 4
    bridges = {each.name: each.bridge for each in snapshot.networks}
    for service in snapshot.services:
        takers = [
            port
            for port in service.ports
            if port.proto == packet.proto
            and port.host_port <= packet.port < port.host_port + port.count
            and port.host_ip in ("", packet.to, "::" if family == 6 else "0.0.0.0")
        ]
        takers.sort(key=lambda port: port.host_ip != packet.to)
        if not takers:
            continue
        # on the families of the network of the default route, the client's own network before all
        internal = {each.name for each in snapshot.networks if each.internal}
        outer = min(service.endpoints, key=lambda each: each.network in internal)
        first = {":" in address for address in outer.addresses}
        near = [
            each
            for each in service.endpoints
            if bridges[each.network] == packet.iif and (family == 6) in first
        ]
        for each in [*near, outer]:
            for address in each.addresses:
                if (6 if ":" in address else 4) == family:
                    return Hit(
                        service.name,
                        address,
                        takers[0].container_port + packet.port - takers[0].host_port,
                    )
    return None


@st.composite
def worlds(draw: st.DrawFn) -> Snapshot:
    """Draw services with densely packed ports of which no two match the same packet."""
    services: list[PlannedService] = []
    used: set[tuple[str, str, int]] = set()
    for number, name in enumerate(
        draw(st.lists(st.sampled_from(SERVICES), max_size=3, unique=True))
    ):
        on: list[NetworkRecord] = draw(
            st.lists(st.sampled_from(NETWORKS), min_size=1, max_size=3, unique=True)
        )
        ports: list[PortMapping] = []
        for _ in range(draw(st.integers(0, 6))):
            count = draw(st.sampled_from((1, 1, 1, 2, 3, 5)))
            first = draw(st.integers(10, 20 - count))
            port = PortMapping(
                draw(st.sampled_from(HOST_IPS)),
                first,
                draw(st.sampled_from((first, first, 80, 11))),
                draw(st.sampled_from(("tcp", "tcp", "udp"))),
                count,
            )
            if not packets(port) & used and not any(takes(port) & takes(other) for other in ports):
                ports.append(port)
        used |= {packet for port in ports for packet in packets(port)}
        endpoints = tuple(endpoint(each, 2 + number) for each in on)
        services.append(PlannedService(name, 1, endpoints, tuple(ports), (name,)))
    return everything(NETWORKS, tuple(services))


PACKETS = [
    Packet(iif, to, proto, port)
    for iif in ("", "uplink0", *(each.bridge for each in NETWORKS))
    for to in DESTINATIONS
    if not iif or to not in ("127.0.0.1", "::1")  # the chain raw drops them
    for proto in ("tcp", "udp")
    for port in NUMBERS
]


@settings(max_examples=samples(37, 150), deadline=None)
@given(worlds())
def test_maps_send_each_packet_to_the_service_that_publishes_its_port(snapshot: Snapshot) -> None:
    tables = maps(desired(snapshot))
    for packet in PACKETS:
        assert walk(tables, packet) == owner(snapshot, packet), packet


@settings(max_examples=samples(37, 150), deadline=None)
@given(worlds())
def test_service_that_reaches_itself_by_a_published_port_sees_the_gateway_of_where_it_is_reached(
    snapshot,
) -> None:
    """By whichever of its addresses it asks: its link takes no packet that comes from its own address."""
    state = desired(snapshot)
    tables = maps(state)
    gateways = {
        subnet.cidr.split("::/" if subnet.family == 6 else ".0/")[0]: subnet.gateway
        for n in NETWORKS
        for subnet in n.subnets
    }
    pairs = {e.fields: e.value[0] for e in state[Element] if e.container.startswith("hairpin")}
    bridges = {each.name: each.bridge for each in snapshot.networks}
    for service in snapshot.services:
        for link in service.endpoints:
            for source in link.addresses:
                for packet in PACKETS:
                    hit = walk(tables, packet) if packet.iif == bridges[link.network] else None
                    if (
                        hit is None
                        or hit.service != service.name
                        or (":" in hit.address) != (":" in source)
                    ):
                        continue
                    prefix = hit.address.rpartition("::" if ":" in source else ".")[0]
                    assert pairs[source, hit.address] == gateways[prefix]
    assert {source for source, _ in pairs} == {
        address
        for s in snapshot.services
        if s.ports
        for each in s.endpoints
        for address in each.addresses
    }


def test_chain_asks_for_one_address_before_all_and_for_single_ports_before_ranges() -> None:
    kinds = ("local_addr", "local_any", "publish_addr", "range_addr", "publish_any", "range_any")
    for family in "46":
        assert [name for _, _, name in RULES if name.endswith(family)] == [
            f"{kind}{family}" for kind in kinds
        ]
    assert len(CHAIN) == len(RULES) + len(RETURNS), "a rule that the walk does not know"
    assert all(_RETURN.fullmatch(line) for line in CHAIN[: len(RETURNS)])


@pytest.mark.parametrize(
    ("packet", "hit"),
    [
        (Packet("uplink0", "192.0.2.1", "tcp", 10), Hit("api", "10.99.0.2", 80)),
        (Packet("uplink0", "203.0.113.9", "tcp", 10), Hit("api", "10.99.0.2", 81)),
        (Packet("", "127.0.0.1", "tcp", 10), Hit("api", "10.99.0.2", 80)),
        (Packet("uplink0", "192.0.2.1", "tcp", 15), Hit("api", "10.99.0.2", 15)),
        (Packet("uplink0", "192.0.2.1", "tcp", 18), None),
        (Packet("uplink0", "192.0.2.1", "udp", 10), None),
        (Packet("uplink0", "2001:db8::1", "tcp", 10), None),
        (Packet("niso-front", "203.0.113.9", "tcp", 10), Hit("api", "10.99.1.2", 81)),
        (Packet("niso-front", "2001:db8::1", "tcp", 10), None),
        (Packet("", "::1", "tcp", 10), None),
    ],
)
def test_packet_of_one_world_is_sent_where_it_belongs(packet: Packet, hit: Hit | None) -> None:
    """Both ways of looking, held to what was worked out by hand."""
    ports = (
        PortMapping("", 10, 80, "tcp"),
        PortMapping("203.0.113.9", 10, 81, "tcp"),
        PortMapping("0.0.0.0", 12, 12, "tcp", 6),
    )
    service = PlannedService(
        "api", 1, (endpoint(NETWORKS[0], 2), endpoint(NETWORKS[1], 2)), ports, ("api",)
    )
    snapshot = everything(NETWORKS, (service,))
    assert walk(maps(desired(snapshot)), packet) == hit
    assert owner(snapshot, packet) == hit
