"""Explain a packet: whether it passes, why, and which nftables objects enforce it.

`niso.plan.verdict` decides; this module adds the objects of the kernel to its reasons.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from niso.base import names
from niso.base.addresses import family_of
from niso.base.errors import Error
from niso.base.lite_typing import NamedTuple
from niso.explain.question import End, Packet, ends
from niso.kernel import nft_audit, nft_sets, nft_tables, nft_wire, probe
from niso.kernel.kinds.element import Element
from niso.plan import nft
from niso.plan import policy_maps as rules
from niso.plan.known_world import (
    Known,
    World,
    addresses_of,
    holds,
    is_broadcast,
    is_host,
    network_of,
)
from niso.plan.records import Member, Network, Policed, Policy, primary
from niso.plan.verdict import Reason, Verdict, decide, is_name_server_elsewhere
from niso.store.store import Store


class Object(NamedTuple):
    """A rule of a chain, or an element of a set or map."""

    table: str
    container: str
    text: str
    place: int | None = None  # position of a rule in its chain, from 0; None for an element
    host: str = ""  # the other host that has it, according to what that host published

    @property
    def counts(self) -> bool:
        """Return whether the object has a packet counter."""
        if self.place is None:
            return self.container in nft_sets.COUNTED
        return " counter " in f" {self.text} "


class Explanation(NamedTuple):
    """A verdict with the nftables objects of its three parts.

    ``counted`` are those whose packet counter this packet increments.
    """

    packet: Packet
    verdict: Verdict
    path: tuple[Object, ...]
    egress: tuple[Object, ...]
    ingress: tuple[Object, ...]
    counted: tuple[Object, ...]


def explain(
    store: Store,
    world: World,
    packet: Packet,
    closed: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> Explanation:
    """Return the verdict on a packet, with the nftables objects that enforce it.

    ``closed`` maps the host's links that do not forward to their addresses
    (`niso.kernel.host_facts.not_forwarding`).
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
        message = f"the host forwards no packets from {link}: net/ipv4/conf/{link}/forwarding is 0"
        verdict, counted = verdict._replace(passes=False, path=Reason(False, message)), ()
    counters = tuple(item for item in counted if item.counts and not item.host)
    return Explanation(packet, verdict, path, egress, ingress, counters)


def _closed_link(
    world: World, packet: Packet, verdict: Verdict, closed: Mapping[str, Collection[str]]
) -> str:
    """Return the link by which a packet from outside arrives, if it does not forward; else ""."""
    from_outside = (
        not verdict.source.service and not is_host(world, packet.source) and packet.family == 4
    )
    if not (closed and from_outside and verdict.path.passes and verdict.destination.service):
        return ""
    own = probe.own_address(packet.source)  # the host replies through the link of arrival
    return next((name for name, addresses in closed.items() if own in addresses), "")


def other_family(
    store: Store,
    world: World,
    source: End,
    destination: End,
    packet: Packet,
    closed: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> Explanation | None:
    """Explain the same packet in the other address family; None if its ends lack that family."""
    try:
        from_, to = ends(world, source, destination, 4 if packet.family == 6 else 6)
    except Error:
        return None
    return explain(store, world, packet._replace(source=from_, destination=to), closed)


def _walks(world: World, packet: Packet, verdict: Verdict) -> bool:
    """Return whether the packet leaves its namespace and traverses the policy chains."""
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
    """Return the path's objects, those that drop before the policies, and those that drop after.

    The latter two are part of the path too.
    """
    sender, receiver = (
        world.services.get(party.service) for party in (verdict.source, verdict.destination)
    )
    family = packet.family
    raw = "raw" if family == 4 else "raw6"
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
                endpoint
                for endpoint in sender.endpoints
                if holds(world.networks[endpoint.network], packet.destination)
            ),
            primary(sender.endpoints, world.networks),
        )
        assert on is not None
        by = world.networks[on.network]
        if all(subnet.family != family for subnet in by.subnets):
            return (), (), ()
        if by.name != entered.name and not to.is_link_local:
            spoofed = _static(nft_tables.BRIDGE, "from_port", "not its own address")
            # with IPv6 no packet leaves: no neighbour solicitation has a source that the link does
            # not have
            return spoofed, spoofed if family == 4 else (), ()
        objects += _port_elements(store, sender, receiver or sender, by, packet.source)
    elif not sender and not is_host(world, packet.source) and network_of(world, packet.source):
        spoofed = _static(
            nft_tables.INET, raw, f"{'ip' if family == 4 else 'ip6'} saddr @subnets{family}"
        )
        return spoofed, spoofed, ()
    if target != packet.destination:
        objects += _published(world, packet, verdict, entered)
    if verdict.path.passes:
        if sender and receiver and sender.host and receiver.host:
            return tuple(objects), (), ()  # no rule of this host sees it
        return (*objects, *_passing(world, packet, sender, entered, reached)), (), ()
    if is_broadcast(world, to):
        # to the broadcast address of another network: the host treats it as its own address
        stays = entered and (reached is None or reached.name == entered.name)
        between = _static(nft_tables.BRIDGE, "between", "broadcast, multicast") if stays else ()
        return (*objects, *between), (), ()
    if not sender and is_host(world, packet.source):
        return tuple(objects), (), ()
    if to.is_loopback:
        martian = _static(
            nft_tables.INET, raw, "ip daddr 127.0.0.0/8" if family == 4 else "ip6 daddr ::1"
        )
        return martian, martian, ()
    if entered and is_name_server_elsewhere(
        world, packet.destination, packet.port, packet.proto, entered.name
    ):
        there = _static(nft_tables.INET, "input", f"daddr @subnets{family} meta l4proto")
        return (*objects, *there), there, ()
    early, late = _dropping(sender, entered, reached, family)
    return (*objects, *early, *late), early, late


def _dropping(
    sender: Known | None, entered: Network | None, reached: Network | None, family: int
) -> tuple[_Rules, _Rules]:
    """Return the rules that drop a packet before the policies, and those that drop it after."""
    if entered and entered.internal and (reached is None or reached.name != entered.name):
        return _static(nft_tables.INET, "forward", "out of an internal network"), ()
    if reached and sender is None:
        word = "ip" if family == 4 else "ip6"
        return _static(
            nft_tables.INET, "raw" if family == 4 else "raw6", f"{word} daddr @subnets{family}"
        ), ()
    if reached and (entered is None or reached.name != entered.name):
        return (), _static(nft_tables.INET, "forward", "not published")
    if reached and sender and not sender.host:
        return _static(nft_tables.INET, "from_bridge", "to an address that no service has"), ()
    return (), ()


def _passing(
    world: World,
    packet: Packet,
    sender: Known | None,
    entered: Network | None,
    reached: Network | None,
) -> _Rules:
    """Return the rules that accept a service's packet along its path."""
    if sender is None or entered is None:
        return ()
    if (
        reached is not None
        and reached.name == entered.name
        and not is_host(world, packet.destination)
    ):
        # a bridge without connection tracking switches frames without evaluating these rules
        return (
            _static(nft_tables.INET, "forward", "@same_bridge accept", 1)
            if reached.publishes or reached.policed
            else ()
        )
    if reached is None and not is_host(world, packet.destination):
        word = "ip" if packet.family == 4 else "ip6"
        return _static(nft_tables.INET, "postrouting", f"{word} saddr @subnets")
    return ()


def _static(table: str, chain: str, fragment: str, last: int = 0) -> _Rules:
    """Return the first, or with ``last`` the last, static rule that contains ``fragment``."""
    rules = nft_sets.rules_of(table, chain)
    matching = [
        Object(table, chain, text, place) for place, text in enumerate(rules) if fragment in text
    ]
    return tuple(matching[-1:] if last else matching[:1])


def _object(element: Element) -> Object:
    text = f"{element.element} : {element.value}" if element.value else element.element
    return Object(element.table, element.container, text)


def _port_elements(
    store: Store, sender: Known, receiver: Known, network: Network, address: str
) -> _Rules:
    """Return the set elements that allow a service's source address on its bridge port.

    On a host other than the service's own, that port is the network's VXLAN device, and only the
    service's host may send with its address. Elements for a host's own ports are known to that host
    alone.
    """
    service, row = sender.name, store.service(sender.name)
    lets = (f"sources{family_of(address)}", *nft_wire.CLAIMS)
    owner = network.span.cluster if network.span is not None else store.state_id()
    mac = names.mac(service, network.name, owner)
    objects: list[Object] = []
    if not sender.host:
        port = names.veth(service, network.name, row.generation if row else 0)
        objects += _objects(nft.endpoint(service, port, mac, [address]), lets)
    if sender.host != receiver.host and network.span is not None:
        host = network.span.local
        if sender.host:
            host = store.across.peers().get(sender.host, ("", sender.host, True))[1]
        link = names.vxlan(network.name)
        elements = nft.claim(service, host, network.span.vni, link, mac, [address])
        objects += _objects(elements, lets, receiver.host)
    return tuple(objects)


def _objects(elements: Iterable[Element], containers: Collection[str], host: str = "") -> _Rules:
    """Return the elements in the given containers, labelled with ``host`` ("" for this one)."""
    return tuple(
        _object(element)._replace(host=host)
        for element in elements
        if element.container in containers
    )


def _published(
    world: World, packet: Packet, verdict: Verdict, entered: Network | None
) -> list[Object]:
    """Return the map element that translates the packet to a service, or an empty list."""
    known = world.services[verdict.destination.service]
    target = verdict.destination.address
    home = primary(known.endpoints, world.networks)
    beside = home is not None and target not in home.addresses
    for wide in (False, True):
        for port in known.ports:
            at = port.is_wide if wide else port.host_ip == packet.destination
            if port.proto != packet.proto or not at:
                continue
            if beside and entered:
                elements = nft.published_on(known.name, port, entered.bridge, [target])
            else:
                elements = nft.published(known.name, port, [target])
            # sets of kept ports have no values
            for element in filter(lambda element: element.value, elements):
                first, _, last = element.element.rpartition(" . ")[2].partition("-")
                if int(first) <= (packet.port or 0) <= int(last or first):
                    return [_object(element)]
    return []


def _policy_objects(
    world: World, known: Known | None, ingress: bool, own: str, peer: str, packet: _Judged
) -> _Rules:
    """Return the elements that jump to a service's policy, and the one that decides the packet."""
    if known is None or not known.active or not known.heard:
        return ()
    policed = Policed(known.name, addresses_of(known), known.policy)
    found = rules.looked_up(policed, _members(world, known.policy), ingress, own, peer, *packet)
    if not found:
        return ()
    deciding = found[-1]
    leads = Element(
        nft_tables.INET,
        f"{'in' if ingress else 'e'}gress{6 if ':' in own else 4}",
        own,
        "",
        known.name,
    )
    audit: _Rules = ()
    if known.audits and deciding.value in nft_audit.VERDICTS:
        place = f"audit_{'in' if ingress else 'out'}{6 if ':' in own else 4}"
        audit = (Object(nft_tables.INET, place, own),)
    said = (
        Object(nft_tables.INET, e.container, f'{e.element} comment "{e.comment}" : {e.value}')
        for e in found
    )
    objects = (_object(leads), *said, *audit)
    return tuple(object_._replace(host=known.host) for object_ in objects)


_Judged = tuple[str, int | None]
"""(protocol, port) as policies see them."""


def _members(world: World, policy: Policy) -> list[Member]:
    """Resolve the peers of a policy to prefixes."""
    members = []
    for kind, name in sorted({(entry.peer.kind, entry.peer.name) for entry in policy.entries()}):
        if kind == "network" and name in world.networks:
            subnets = world.networks[name].subnets
            cidrs = tuple(subnet.cidr for subnet in subnets)
            gateways = tuple(subnet.gateway for subnet in subnets)
            members.append(Member(kind, name, cidrs, gateways))
        elif kind == "outside":
            members.append(Member(kind, name, world.outside.get(name, ())))
        elif kind == "service":
            holder = next((known for known in world.services.values() if name in known.names), None)
            if holder is not None:
                members.append(Member(kind, name, addresses_of(holder)))
    return members
