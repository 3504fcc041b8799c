"""Whether a packet passes, and which line of which manifest or which default says so. Pure: data in, verdict out.

Three things must let it: its way (docs/design/packet.md), the egress of the service that sends it, and the ingress of the one
that gets it. The rules in the kernel (render/) come from the same policies by another way, and tests hold one against the
other. It is the first packet of a flow that is judged: replies, and ICMP errors about them, pass with their flow.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from niso.base.family import family_of
from niso.base.lite_typing import NamedTuple
from niso.plan.records import WIDE, Endpoint, Entry, Network, Policy, Port, bracketed

PORTED = ("tcp", "udp", "sctp")
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Known(NamedTuple):
    """A known service, active or not: a policy that names it means its leases."""

    name: str
    names: tuple[
        str, ...
    ]  # what policies may call it: its name, its hostname, the names of those that share its namespace
    endpoints: tuple[Endpoint, ...]
    policy: Policy = Policy()
    ports: tuple[Port, ...] = ()  # published: each with its host port
    active: bool = True
    sharers: tuple[tuple[Port, str], ...] = ()  # of ports that are not its own: whose they are


class World(NamedTuple):
    """All that a verdict hangs on. Addresses are text in their canonical form."""

    services: Mapping[str, Known]
    networks: Mapping[str, Network]
    host: frozenset[str] = (
        frozenset()
    )  # the host's addresses; 127.0.0.0/8, ::1 and the gateways are known without it
    closed: frozenset[int] = frozenset()  # families that the host forwards for services alone
    wires: frozenset[str] = (
        frozenset()
    )  # the prefixes of the host's links: within one of them nothing passes the host


class Party(NamedTuple):
    service: str  # "" for the host, for others and for nobody
    address: str


class Reason(NamedTuple):
    """What one of the three says. Where a line of a manifest decides, ``service``, ``key`` and ``text`` are it."""

    passes: bool
    words: str
    service: str = ""
    key: str = ""  # "network.policy.deny_from[0]"; without [0] where it is the whole list, which does not name the peer
    text: str = ""  # the entry as written


class Verdict(NamedTuple):
    """Whether it passes. ``destination`` and ``port`` are those after a published port was looked up, as policies see them."""

    passes: bool
    ingress: Reason
    egress: Reason
    path: Reason
    source: Party
    destination: Party
    port: int | None

    @property
    def dropped_by(self) -> Reason | None:
        """The first that drops it: the way, then egress, then ingress, as in the kernel."""
        return next(
            (each for each in (self.path, self.egress, self.ingress) if not each.passes), None
        )


class _Way(NamedTuple):
    reason: Reason
    address: str  # of the destination, after DNAT
    port: int | None
    itself: bool = False  # from a service to itself, which no policy forbids


def decide(world: World, source: str, destination: str, port: int | None, proto: str) -> Verdict:
    """The verdict on a packet as it is sent, so ``destination`` and ``port`` may be the host's and published.

    ``proto`` is tcp, udp or sctp with a port; or icmp (of both families), or any other word, with None. Raises ValueError for
    what is no address, or a port where there should be none. A broadcast or multicast packet is judged for the services
    that could get it: the host gets what egress lets it.
    """
    if (port is not None) != (proto in PORTED):
        raise ValueError(f"{proto} with port {port}")
    source, destination = str(ipaddress.ip_address(source)), str(ipaddress.ip_address(destination))
    sender = _holder(world, source)
    way = _way(world, source, destination, port, proto)
    receiver = _holder(world, way.address)
    if way.itself:
        assert sender
        receiver = sender
        egress = ingress = Reason(True, f"{sender[0].name} may always reach itself")
    else:
        egress = _egress(world, sender, source, way, proto)
        ingress = _ingress(world, receiver, source, way, proto)
    return Verdict(
        way.reason.passes and egress.passes and ingress.passes,
        ingress,
        egress,
        way.reason,
        Party(sender[0].name if sender else "", source),
        Party(receiver[0].name if receiver else "", way.address),
        way.port,
    )


def judge(
    world: World, source: str, destination: str, port: int | None, proto: str
) -> tuple[Reason, Reason]:
    """(egress, ingress) of an open flow, whose ends are as they are behind NAT. How it got there is not judged.

    A service may always reach itself, also where NAT gives it its gateway's address.
    """
    sender, receiver = _holder(world, source), _holder(world, destination)
    if sender is not None and receiver is not None and sender[0].name == receiver[0].name:
        free = Reason(True, f"{sender[0].name} may always reach itself")
        return free, free
    way = _Way(Reason(True, "open"), destination, port)
    return _egress(world, sender, source, way, proto), _ingress(world, receiver, source, way, proto)


def matches(entry: Entry, world: World, address: str, port: int | None, proto: str) -> bool:
    """Whether an entry names this peer with this port and protocol: of the service (ingress) or of the peer (egress).

    ``address`` is the peer's, in its canonical form. An entry never matches an address of the other family than its peer's.
    """
    if entry.proto not in ("", proto):
        return False
    if (entry.first, entry.last) != (0, 65535) and (
        port is None or not entry.first <= port <= entry.last
    ):
        return False
    peer = entry.peer
    if peer.kind == "prefix":
        return _within(ipaddress.ip_address(address), peer.name)
    if peer.kind == "network":
        network = world.networks.get(peer.name)
        return network is not None and holds(network, address) and address not in _gateways(network)
    holder = _holder(world, address)
    return holder is not None and peer.name in holder[0].names


# --- the two policies ------------------------------------------------------------------------------------------------

_Holder = tuple[Known, str]
"""Whose a leased address is, and on which network."""


def _egress(world: World, sender: _Holder | None, source: str, way: _Way, proto: str) -> Reason:
    if sender is None:
        return Reason(True, f"{_who(world, source)} has no policy of niso")
    service, policy = sender[0].name, sender[0].policy
    free = f"{service} has no egress.allow, and its egress.deny does not name the destination"
    key = "network.policy.egress"
    side = _Side(service, policy.egress_deny, policy.egress_allow, f"{key}.allow", free)
    return _judge(world, side, way.address, way.port, proto)


def _ingress(world: World, receiver: _Holder | None, source: str, way: _Way, proto: str) -> Reason:
    if receiver is None:
        return Reason(True, f"{_who(world, way.address)} has no policy of niso")
    if is_host(world, source):
        return Reason(True, "the host may always connect in")
    service, policy = receiver[0].name, receiver[0].policy
    free = f"{service} has no allow_from, and its deny_from does not name the source"
    key = "network.policy.allow_from"
    side = _Side(service, policy.deny_from, policy.allow_from, key, free)
    return _judge(world, side, source, way.port, proto)


class _Side(NamedTuple):
    """One direction of a service's policy; ``free`` says why what it does not name passes."""

    service: str
    deny: tuple[Entry, ...]
    allow: tuple[Entry, ...] | None
    allow_key: str
    free: str


def _judge(world: World, side: _Side, peer: str, port: int | None, proto: str) -> Reason:
    """What one direction of a policy says: deny wins over allow, and what no allow list names is denied where there is one."""
    service, deny, allow, allow_key, free = side
    for passes, entries in ((False, deny), (True, allow or ())):
        for entry in entries:
            if matches(entry, world, peer, port, proto):
                words = f'{entry.key} of {service}, "{entry.text}", {"allows" if passes else "denies"} it'
                return Reason(passes, words, service, entry.key, entry.text)
    if allow is None:
        return Reason(True, free)
    what = "does not name it" if allow else "is empty"
    return Reason(False, f"{allow_key} of {service} {what}", service, allow_key)


def _who(world: World, address: str) -> str:
    return "the host" if is_host(world, address) else address


# --- the way ---------------------------------------------------------------------------------------------------------


class _Packet(NamedTuple):
    """A packet on its way: who sends it, and on which network it reaches the host's bridge ("" if on none)."""

    source: str
    destination: str
    port: int | None
    proto: str
    sender: Known | None
    entered: str
    from_host: bool

    def drop(self, words: str) -> _Way:
        return _Way(Reason(False, words), self.destination, self.port)

    def accept(self, words: str) -> _Way:
        return _Way(Reason(True, words), self.destination, self.port)


def _way(world: World, source: str, destination: str, port: int | None, proto: str) -> _Way:
    """Where a packet gets if no policy forbids it, and what lets it or does not."""
    to = ipaddress.ip_address(destination)
    holder, from_host = _holder(world, source), is_host(world, source)
    sender, entered = holder or (None, "")
    packet = _Packet(source, destination, port, proto, sender, entered, from_host)
    if ipaddress.ip_address(source).version != to.version:
        return packet.drop("IPv4 addresses and IPv6 addresses do not reach each other")
    if sender:
        ended = _by_sender(world, packet, sender, to)
        if ended is not None:
            return ended
    elif not from_host and network_of(world, source) is not None:
        return packet.drop(f"no service has the address {source}")
    if to.is_loopback and not from_host:
        return packet.drop("the host's loopback addresses can be reached from no other machine")
    if _is_broadcast(world, to):
        if from_host:
            return packet.accept("the host can reach every service")
        return packet.drop("broadcast and multicast pass to no service")

    if is_host(world, destination):
        found = _published(world, to, port, proto, entered)
        if found is None:
            return packet.accept(f"{destination} is the host's own")
        asked = f"{_at(destination, port)}/{proto}"
        return _to_published(world, holder, found, entered, asked)

    receiver = _holder(world, destination)
    if receiver:
        return _to_service(world, packet, *receiver)
    if network_of(world, destination) is not None:
        return packet.drop(f"no service has the address {destination}")
    return _outwards(world, packet, to)


def _by_sender(world: World, packet: _Packet, known: Known, to: _Address) -> _Way | None:
    """What becomes of a service's packet before it reaches the host's bridge; None if it gets there."""
    source, destination, entered = packet.source, packet.destination, packet.entered
    if not known.active:
        return packet.drop(f"{known.name} is not active")
    own = destination in addresses_of(known)
    if own or to.is_loopback:
        words = "its own address" if own else "its own loopback"
        return packet.accept(f"{destination} is {words} to {known.name}")._replace(itself=True)
    by = entered if _is_link_local6(to) else _leaves_by(world, known, to)
    if by is None:
        return packet.drop(
            f"{known.name} has no way to IPv{to.version} addresses outside its networks"
        )
    if by != entered:
        return packet.drop(
            f"{known.name} sends to {destination} by network {by}, where {source} is not its address"
        )
    return None


def _to_service(world: World, packet: _Packet, known: Known, network: str) -> _Way:
    """What becomes of a packet to a service's own address."""
    sender, entered = packet.sender, packet.entered
    if not known.active:
        return packet.drop(f"{known.name} is not active")
    if packet.from_host:
        return packet.accept("the host can reach every service")
    if not sender:
        return packet.drop(
            f"{known.name} can be reached from outside the host by published ports only"
        )
    if network == entered:
        return packet.accept(f"{sender.name} and {known.name} are both on network {network}")
    if world.networks[entered].internal:
        return packet.drop(_stays(entered))
    return packet.drop(
        f"networks {entered} and {network} are apart: only published ports lead from one to the other"
    )


def _outwards(world: World, packet: _Packet, to: _Address) -> _Way:
    """What becomes of a packet to an address that is neither the host's nor on a network of niso's."""
    if not packet.sender:
        both = (ipaddress.ip_address(packet.source), to)
        on_a_wire = any(all(_within(each, prefix) for each in both) for prefix in world.wires)
        if to.version in world.closed and not (packet.from_host or on_a_wire):
            return packet.drop(
                f"the host forwards IPv{to.version} for services alone, as it forwarded none before"
            )
        return packet.accept("no service has to do with it")
    if _is_link_local6(to):
        return packet.drop("no service has a link-local address, and the host leads to none")
    if world.networks[packet.entered].internal:
        return packet.drop(_stays(packet.entered))
    return packet.accept(f"network {packet.entered} leads out")


class _Published(NamedTuple):
    """Where a published port leads."""

    known: Known  # whose network it leads to
    network: str
    address: str
    port: int
    sharer: str  # whose port it is, where that shares the network; else ""


def _to_published(
    world: World,
    sender: _Holder | None,
    found: _Published,
    entered: str,
    asked: str,
) -> _Way:
    known, network, address, port, sharer = found
    whose = f"{sharer}, which shares the network of {known.name}," if sharer else known.name
    words = f"{asked} is a published port of {whose} and leads to {_at(address, port)}"
    if sender and network != entered and world.networks[entered].internal:
        return _Way(Reason(False, _stays(entered)), address, port)
    return _Way(
        Reason(True, words), address, port, itself=sender is not None and known is sender[0]
    )


def _stays(network: str) -> str:
    return f"network {network} is internal: it leads to the host and its own services only"


def _at(address: str, port: int | None) -> str:
    return f"{bracketed(address)}:{port}"


def _published(
    world: World, to: _Address, port: int | None, proto: str, entered: str
) -> _Published | None:
    """Whose a published port of a host's address is, and where it leads.

    Who is on the network from which it is asked is reached there, else on its first. The specific address wins.
    """
    if port is None or (to.version == 6 and to.is_loopback):
        return None
    for hosts in ((str(to),), WIDE):
        for known in world.services.values():
            for each in known.ports if known.active else ():
                inside = each.host_port and each.host_port <= port <= each.last
                # published are the families of its first network
                inside = inside and any(
                    family_of(a) == to.version for e in known.endpoints[:1] for a in e.addresses
                )
                if (
                    inside
                    and each.proto == proto
                    and each.host_ip in hosts
                    and to.version in each.families
                ):
                    shared = [
                        endpoint for endpoint in known.endpoints if endpoint.network == entered
                    ]
                    for endpoint in (*shared, *known.endpoints[:1]):
                        for address in endpoint.addresses:
                            if family_of(address) == to.version:
                                return _Published(
                                    known,
                                    endpoint.network,
                                    address,
                                    each.container_port + port - each.host_port,
                                    dict(known.sharers).get(each, ""),
                                )
    return None


def _leaves_by(world: World, known: Known, to: _Address) -> str | None:
    """The network by which a service sends to an address: the one that has it, else its first, which has the default route."""
    for endpoint in known.endpoints:
        if holds(world.networks[endpoint.network], str(to)):
            return endpoint.network
    first = known.endpoints[0].network
    return (
        first
        if any(subnet.family == to.version for subnet in world.networks[first].subnets)
        else None
    )


# --- addresses -------------------------------------------------------------------------------------------------------


def _holder(world: World, address: str) -> _Holder | None:
    for known in world.services.values():
        for endpoint in known.endpoints:
            if address in endpoint.addresses:
                return known, endpoint.network
    return None


def addresses_of(known: Known) -> tuple[str, ...]:
    """Return all leases of a service."""
    return tuple(address for endpoint in known.endpoints for address in endpoint.addresses)


def is_host(world: World, address: str) -> bool:
    """Whether the host takes it for its own; 127.0.0.0/8 and ::1 are the host's unless a service sends to them."""
    if address in world.host or any(
        address in _gateways(network) for network in world.networks.values()
    ):
        return True
    return ipaddress.ip_address(address).is_loopback


def _gateways(network: Network) -> tuple[str, ...]:
    return tuple(subnet.gateway for subnet in network.subnets)


def network_of(world: World, address: str) -> Network | None:
    """Return the network that has the address, whether or not a service has it."""
    return next((network for network in world.networks.values() if holds(network, address)), None)


def holds(network: Network, address: str) -> bool:
    """Return whether the address is in a subnet of the network."""
    number = ipaddress.ip_address(address)
    return any(_within(number, subnet.cidr) for subnet in network.subnets)


def _within(address: _Address, prefix: str) -> bool:
    """Never across families (ipaddress says so too)."""
    return address in ipaddress.ip_network(prefix)


def _is_link_local6(address: _Address) -> bool:
    return address.version == 6 and address.is_link_local


def _is_broadcast(world: World, to: _Address) -> bool:
    """Whether it is a multicast address or a broadcast one of a niso network or of every link (RFC 919, RFC 1112)."""
    if to.is_multicast or str(to) == "255.255.255.255":
        return True
    cidrs = (
        s.cidr for network in world.networks.values() for s in network.subnets if s.family == 4
    )
    return to.version == 4 and any(
        to == ipaddress.IPv4Network(cidr).broadcast_address for cidr in cidrs
    )
