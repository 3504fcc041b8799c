"""What niso can tell of a packet that somebody asks about: whether it passes, what says so, and the nftables objects that do it.

The engine (policy.py) judges; here a question becomes a packet, and the engine's words get the objects of the kernel.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from types import MappingProxyType

from niso.base import names
from niso.base.errors import NisoError
from niso.base.family import family_of
from niso.base.lite_typing import NamedTuple
from niso.explain.question import End, Packet, ends
from niso.kernel import nft_tables, probe
from niso.kernel.kinds.element import Element
from niso.plan import nft
from niso.plan import policy_maps as rules
from niso.plan.records import Member, Network, Policed, Policy
from niso.plan.verdict import (
    Known,
    Reason,
    Verdict,
    World,
    addresses_of,
    decide,
    holds,
    is_host,
    network_of,
)
from niso.store.store import Store


class Object(NamedTuple):
    """A rule of a chain (``place`` counts from 0), or an element of a set or map (``place`` is None)."""

    table: str
    container: str
    text: str
    place: int | None = None

    @property
    def counts(self) -> bool:
        if self.place is None:
            return self.container in nft_tables.COUNTED
        return " counter " in f" {self.text} "


class Explanation(NamedTuple):
    """A verdict with the nftables objects of each of its three parts; ``counted`` are the rules that count the packet."""

    packet: Packet
    verdict: Verdict
    path: tuple[Object, ...]
    egress: tuple[Object, ...]
    ingress: tuple[Object, ...]
    counted: tuple[Object, ...]


# --- what is asked ---------------------------------------------------------------------------------------------------

# --- explain ---------------------------------------------------------------------------------------------------------


def explain(
    store: Store,
    world: World,
    packet: Packet,
    closed: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> Explanation:
    """The engine's verdict with the objects of the kernel that do the same.

    ``closed`` are links of the host with their addresses that forward nothing (`niso.kernel.host_facts.not_forwarding`).
    """
    verdict = decide(world, *packet)
    sender, receiver = (
        world.services.get(party.service) for party in (verdict.source, verdict.destination)
    )
    path, early, late = _path(store, world, packet, verdict)
    egress: tuple[Object, ...] = ()
    ingress: tuple[Object, ...] = ()
    if _walks(world, packet, verdict):
        judged = (packet.proto, verdict.port)
        to = verdict.destination.address
        egress = _policy_objects(world, sender, False, packet.source, to, judged)
        ingress = (
            ()
            if is_host(world, packet.source)
            else _policy_objects(world, receiver, True, to, packet.source, judged)
        )
    if early:
        counted: tuple[Object, ...] = early
    elif not _walks(world, packet, verdict) or (not verdict.path.passes and not late):
        counted = ()
    else:
        counted = egress if not verdict.egress.passes else egress + ingress
        counted = (
            counted if not (verdict.egress.passes and verdict.ingress.passes) else counted + late
        )
    link = _closed_link(world, packet, verdict, closed)
    if link:
        words = f"{link} forwards nothing that comes by it: net/ipv4/conf/{link}/forwarding is 0"
        verdict, counted = verdict._replace(passes=False, path=Reason(False, words)), ()
    return Explanation(
        packet, verdict, path, egress, ingress, tuple(each for each in counted if each.counts)
    )


def _closed_link(
    world: World, packet: Packet, verdict: Verdict, closed: Mapping[str, Collection[str]]
) -> str:
    """The link that a packet from outside comes to the host by where that does not forward it; else ""."""
    from_outside = (
        not verdict.source.service and not is_host(world, packet.source) and packet.family == 4
    )
    if not (closed and from_outside and verdict.path.passes and verdict.destination.service):
        return ""
    own = probe.own_address(packet.source)  # the host answers by the link that it came by
    return next((name for name, addresses in closed.items() if own in addresses), "")


def other_family(
    store: Store,
    world: World,
    source: End,
    destination: End,
    packet: Packet,
    closed: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> Explanation | None:
    """The same by the other family, where the two have it."""
    try:
        found = ends(world, source, destination, 4 if packet.family == 6 else 6)
    except NisoError:
        return None
    return explain(store, world, packet._replace(source=found[0], destination=found[1]), closed)


def _walks(world: World, packet: Packet, verdict: Verdict) -> bool:
    """Whether the packet leaves its namespace and comes by the chains of policies."""
    sender = world.services.get(verdict.source.service)
    if sender is None:
        return not is_host(world, packet.source)
    own = (address for endpoint in sender.endpoints for address in endpoint.addresses)
    return (
        packet.destination not in own and not ipaddress.ip_address(packet.destination).is_loopback
    )


_Rules = tuple[Object, ...]


def _path(
    store: Store, world: World, packet: Packet, verdict: Verdict
) -> tuple[_Rules, _Rules, _Rules]:
    """The objects of the way; of these the rules that drop it before policies are asked, and after."""
    sender = world.services.get(verdict.source.service)
    family = packet.family
    if family_of(packet.source) != family or (
        sender and not (sender.active and _walks(world, packet, verdict))
    ):
        return (), (), ()
    to = ipaddress.ip_address(packet.destination)
    entered = network_of(world, packet.source) if sender else None
    target = verdict.destination.address
    reached = network_of(world, target)
    objects: list[Object] = []
    if sender and entered:
        on = next(
            (
                e.network
                for e in sender.endpoints
                if holds(world.networks[e.network], packet.destination)
            ),
            None,
        )
        by = world.networks[on or sender.endpoints[0].network]
        if all(subnet.family != family for subnet in by.subnets):
            return (), (), ()
        if by.name != entered.name and not to.is_link_local:
            spoofed = _static(nft_tables.BRIDGE, "from_port", "not its own address")
            # of IPv6 nothing may leave at all: no neighbour is asked for with a source that the link does not have
            return spoofed, spoofed if family == 4 else (), ()
        objects.append(_port_element(store, sender.name, by.name, packet.source, family))
    elif not sender and not is_host(world, packet.source) and network_of(world, packet.source):
        strange = _static(
            nft_tables.INET, "raw", f"{'ip' if family == 4 else 'ip6'} saddr @subnets{family}"
        )
        return strange, strange, ()
    if target != packet.destination:
        objects += _published(world, packet, verdict, entered)
    if verdict.path.passes:
        return (*objects, *_passing(world, packet, sender, entered, reached)), (), ()
    if to.is_multicast or (
        reached and verdict.destination.service == "" and _is_broadcast(reached, target)
    ):
        return (*objects, *_static(nft_tables.BRIDGE, "between", "broadcast, multicast")), (), ()
    if not sender and is_host(world, packet.source):
        return tuple(objects), (), ()
    if to.is_loopback:
        strange = _static(
            nft_tables.INET, "raw", f"{'ip daddr 127.0.0.0/8' if family == 4 else 'ip6 daddr ::1'}"
        )
        return strange, strange, ()
    if entered and entered.internal and (reached is None or reached.name != entered.name):
        closed = _static(nft_tables.INET, "forward", "out of an internal network")
        return (*objects, *closed), closed, ()
    if reached and (entered is None or reached.name != entered.name):
        apart = _static(nft_tables.INET, "forward", "not published")
        return (*objects, *apart), (), apart
    return tuple(objects), (), ()


def _passing(
    world: World,
    packet: Packet,
    sender: Known | None,
    entered: Network | None,
    reached: Network | None,
) -> _Rules:
    if sender is None or entered is None:
        return ()
    if (
        reached is not None
        and reached.name == entered.name
        and not is_host(world, packet.destination)
    ):
        # frames of a bridge that needs no connection tracking are switched, and no rule sees them
        return (
            _static(nft_tables.INET, "forward", "@same_bridge accept", 1)
            if reached.publishes or reached.policed
            else ()
        )
    if reached is None and not is_host(world, packet.destination):
        word = "ip" if packet.family == 4 else "ip6"
        return _static(nft_tables.INET, "postrouting", f"{word} saddr @subnets")
    return ()


def _is_broadcast(network: Network, address: str) -> bool:
    subnets = (
        ipaddress.ip_network(subnet.cidr) for subnet in network.subnets if subnet.family == 4
    )
    return any(address == str(subnet.broadcast_address) for subnet in subnets)


def _static(table: str, chain: str, fragment: str, last: int = 0) -> _Rules:
    """The rule of the fixed text that has ``fragment`` in it: the first, or with ``last`` the last."""
    rules = nft_tables.rules_of(table, chain)
    found = [
        Object(table, chain, text, place) for place, text in enumerate(rules) if fragment in text
    ]
    return tuple(found[-1:] if last else found[:1])


def _object(element: Element) -> Object:
    text = f"{element.element} : {element.value}" if element.value else element.element
    return Object(element.table, element.container, text)


def _port_element(store: Store, service: str, network: str, address: str, family: int) -> Object:
    row = store.service(service)
    host_end = names.veth(service, network, row.generation if row else 0)
    mac = names.mac(service, network, store.state_id())
    return next(
        _object(each)
        for each in nft.endpoint(service, host_end, mac, [address])
        if each.container == f"sources{family}"
    )


def _published(
    world: World, packet: Packet, verdict: Verdict, entered: Network | None
) -> list[Object]:
    """The map element that leads the packet to a service."""
    known = world.services[verdict.destination.service]
    target = verdict.destination.address
    beside = any(target in endpoint.addresses for endpoint in known.endpoints[1:])
    for host_ip in (packet.destination, "any"):
        for port in known.ports:
            if port.proto != packet.proto or (port.host_ip == packet.destination) != (
                host_ip != "any"
            ):
                continue
            if beside and entered:
                elements = nft.published_on(known.name, port, entered.bridge, [target])
            else:
                elements = nft.published(known.name, port, [target])
            for element in elements:
                first, _, last = element.element.rpartition(" . ")[2].partition("-")
                if int(first) <= (packet.port or 0) <= int(last or first):
                    return [_object(element)]
    return []


def _policy_objects(
    world: World, known: Known | None, ingress: bool, own: str, peer: str, packet: _Judged
) -> _Rules:
    """What leads a packet to a service's policy, and the element there that decides."""
    if known is None or not known.active:
        return ()
    policed = Policed(known.name, addresses_of(known), known.policy)
    deciding = rules.decides(policed, _members(world, known.policy), ingress, own, peer, *packet)
    if deciding is None:
        return ()
    leads = Element(
        nft_tables.INET,
        f"{'in' if ingress else 'e'}gress{6 if ':' in own else 4}",
        own,
        "",
        known.name,
    )
    said = f'{deciding.element} comment "{deciding.comment}" : {deciding.value}'
    return _object(leads), Object(nft_tables.INET, deciding.container, said)


_Judged = tuple[str, int | None]
"""(protocol, port) as policies see them."""


def _members(world: World, policy: Policy) -> list[Member]:
    """What the names in a policy stand for."""
    found = []
    for kind, name in sorted({(entry.peer.kind, entry.peer.name) for entry in policy.entries()}):
        if kind == "network" and name in world.networks:
            subnets = world.networks[name].subnets
            cidrs, gateways = (
                tuple(each) for each in zip(*((s.cidr, s.gateway) for s in subnets), strict=True)
            )
            found.append(Member(kind, name, cidrs, gateways))
        elif kind == "service":
            holder = next((each for each in world.services.values() if name in each.names), None)
            if holder is not None:
                found.append(Member(kind, name, addresses_of(holder)))
    return found
