"""Compute the path of a packet: its addresses, the verdict, and the nftables objects that decide.

The arguments FROM and TO of a command are resolved to services and addresses. `niso.plan.verdict`
computes the verdict. This module adds the nftables objects that enforce the verdict.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping

from niso.base import names
from niso.base.errors import Error, NotFound, UsageError
from niso.base.named_tuples import NamedTuple
from niso.base.names import family_of
from niso.kernel import policy_rules, probe, ruleset
from niso.kernel.nft_elements import Element, ports_of
from niso.plan import policy_elements
from niso.plan.elements import (
    claim,
    endpoint,
    published,
    service_address,
)
from niso.plan.records import PORTED, Member, NetworkRecord, Policed, Policy, primary
from niso.plan.verdict import (
    KnownService,
    PolicyContext,
    Reason,
    Verdict,
    addresses_of,
    contains,
    decide,
    is_host,
    leaves_by,
    network_of,
)
from niso.store.policy_rows import bare_name
from niso.store.service_rows import SERVING
from niso.store.store import Store

PROTOCOLS = (*PORTED, "icmp")
HOST = "host"
SOURCE = "NAME, ADDRESS or host, then :PORT to name the source port"
TARGET = "NAME, ADDRESS or [IPV6], then :PORT or :PORT/PROTO; or /icmp"


class PacketEnd(NamedTuple):
    """The sender or receiver of a packet: a service, the host, or another address."""

    service: str = ""  # the service that owns the namespace of the named service
    address: str = ""  # set only if an address was given
    sharer: str = ""  # the named service, if it runs in another service's namespace
    outside: str = ""  # a DNS name in a policy that is not in niso.local

    @property
    def name(self) -> str:
        """The name of the service, the host or the address, for messages."""
        return self.sharer or self.service or self.address or self.outside or HOST


class Packet(NamedTuple):
    """A packet before DNAT. ``port`` is None for icmp.

    ``own_port`` is the source port, or None if unknown. If a service has instances, the source port
    determines which instance gets the packet.
    """

    source: str
    destination: str
    port: int | None
    proto: str
    own_port: int | None = None

    @property
    def family(self) -> int:
        return family_of(self.destination)


def parse_target(text: str) -> tuple[str, int | None, str]:
    """Parse ``db`` or ``[fd00::2]:80/tcp`` into a name, a port (None for icmp) and a protocol."""

    def wrong(reason: str) -> UsageError:
        return UsageError(f"TO {text!r}: {reason}", TARGET)

    end, slash, proto = text.partition("/")
    if end.startswith("["):
        host, closed, after = end[1:].partition("]")
        if not closed or (after and not after.startswith(":")) or ":" not in host:
            raise wrong("brackets are for an IPv6 address, and only :PORT may follow")
        colon, number = after[:1], after[1:]
    elif end.count(":") > 1:
        host, colon, number = end, "", ""
    else:
        host, colon, number = end.partition(":")
    if not host:
        raise wrong("the name or address is missing")
    if slash and proto not in PROTOCOLS:
        raise wrong(f"{proto!r} is not a valid protocol (tcp, udp, sctp or icmp)")
    if not colon:
        if proto in PORTED:
            raise wrong(f"{proto} needs a port")
        return host, None, "icmp"
    if proto == "icmp":
        raise wrong("icmp has no ports")
    if not (number.isascii() and number.isdigit() and 1 <= int(number) <= 65535):
        raise wrong(f"{number!r} is not a valid port (1 to 65535)")
    return host, int(number), proto or "tcp"


def parse_source(text: str) -> tuple[str, int | None]:
    """Parse ``cli:40001`` or ``[fd00::2]:40001`` into a name or address, and a port or None."""
    end, colon, number = text.rpartition(":")
    if not colon or not number.isdecimal() or (":" in end and not end.endswith("]")):
        return text, None
    if not (number.isascii() and 1 <= int(number) <= 65535):
        raise UsageError(f"FROM {text!r}: {number!r} is not a valid port (1 to 65535)", SOURCE)
    return end, int(number)


def resolve_both(store: Store, source: str, destination: str) -> tuple[PacketEnd, PacketEnd]:
    """Resolve the arguments FROM (the sender) and TO (the receiver) of a packet.

    A name in TO is looked up first on the networks of FROM. TO may also be a DNS name in a policy.
    Raises Error and UsageError as `resolve` does.
    """
    from_ = resolve(store, source)
    service = from_.service or store.lease_holder(from_.address) or ""
    if store.instances.of(service):  # an instance sends by its own address
        serving = store.instances.of(service, SERVING)
        if not serving:
            reason = f"no instance of {service} serves, so none can send"
            raise Error(reason, "niso ps -i")
        from_ = PacketEnd(service=serving[0].service)
    if "." in destination and store.names_outside() and destination in store.outside.named():
        return from_, PacketEnd(outside=destination)
    try:
        return from_, resolve(store, destination, from_.service or None)
    except NotFound as error:
        if "." in bare_name(destination):
            error.hint = "an outside name is known if a policy has it; else use an address"
        raise


def resolve(store: Store, text: str, asker: str | None = None) -> PacketEnd:
    """Return the `PacketEnd` for ``host``, an address, or a service's name, hostname or alias.

    With a service as ``asker``, a name is looked up first on this service's networks. Raises Error
    for an unknown name or a service without a network. Raises UsageError for an unusable address.
    """
    if bare_name(text) == HOST:
        return PacketEnd()
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        if ":" in text or "/" in text or text.replace(".", "").isdigit():
            raise UsageError(f"{text!r} is not a valid address", TARGET) from None
        return _end(store, _named(store, text, asker))
    if isinstance(address, ipaddress.IPv6Address) and (address.ipv4_mapped or address.scope_id):
        raise UsageError(
            f"{text!r}: IPv4-mapped addresses and zones are not supported",
            "write the plain address",
        )
    if address.is_unspecified:
        raise UsageError(
            f"{text!r} is the unspecified address; it refers to the sender itself",
            "use an address, or host",
        )
    return PacketEnd(address=str(address))


def _named(store: Store, text: str, asker: str | None) -> str:
    """Return the service with this name, hostname or alias. This host's services come first."""
    try:
        return store.resolve(text, asker)
    except NotFound:
        elsewhere = store.holders_elsewhere(bare_name(text))
        if len(elsewhere) != 1:
            raise
        return elsewhere[0]


def _end(store: Store, service: str) -> PacketEnd:
    row, home = store.service(service), store.service(store.home(service))
    if row is not None and row.mode == "host":
        raise Error(
            f"{service} has mode host: it uses the host's addresses, like any program of the host",
            "use host instead: niso net explain host TO, or FROM host:PORT",
        )
    if row is not None and home is None:
        raise Error(
            f"{service} shares the network of {row.provider}, which does not exist",
            f"niso inspect {service}",
        )
    shared = f"shares the network of {home.name}" if home and home.name != service else ""
    if home is not None and home.mode == "none":
        whose = f"{service} {shared}, which" if shared else service
        raise Error(
            f"{whose} has mode none: it has only a loopback interface",
            'use mode = "bridge"',
        )
    if row is None or home is None or not shared:
        return PacketEnd(service=service)
    if not row.active:
        raise Error(f"{service} is not active: it {shared}", f"niso activate {service}")
    return PacketEnd(service=home.name, sharer=service)


def ends(
    context: PolicyContext, source: PacketEnd, destination: PacketEnd, family: int | None = None
) -> tuple[str, str]:
    """Return (source, destination): the addresses of a packet, preferably IPv4 addresses.

    The addresses follow from the sender's hosts file and routes. Raises Error if sender and
    receiver have no IP version in common, and UsageError if the arguments have different IP
    versions.
    """
    given = {family_of(end.address) for end in (source, destination) if end.address}
    if len(given) > 1:
        raise UsageError(
            f"{source.address} and {destination.address} are of different families",
            "use two addresses of the same family",
        )
    for end in (source, destination):
        if end.address and family not in (None, *given):
            other = 6 if family == 4 else 4
            raise UsageError(
                f"-{family} conflicts with {end.address}, which is an IPv{other} address",
                f"-{other}",
            )
    families = [number for number in (4, 6) if family in (None, number) and given <= {number}]
    for number in families:
        pair = _ends(context, source, destination, number)
        if pair is not None:
            return pair
    kind = f"IPv{families[0]}" if len(families) == 1 else "IPv4 or IPv6"
    if source.service and not context.services[source.service].endpoints:
        raise Error(f"{source.service} has no network", f"niso inspect {source.service}")
    if destination.outside and not context.outside.get(destination.outside):
        raise Error(f"{destination.outside} has no address", "niso net refresh says why")
    raise Error(
        f"{source.name} cannot send an {kind} packet to {destination.name}: "
        "no addresses of the same family have a route between them"
    )


def ends_by_family(
    context: PolicyContext, source: PacketEnd, destination: PacketEnd
) -> dict[int, tuple[str, str]]:
    """Return {IP version: (source, destination)} for each IP version common to both."""
    first = ends(context, source, destination)
    pairs = {family_of(first[1]): first}
    if not (source.address or destination.address):
        pair = _ends(context, source, destination, 6)
        if pair is not None:
            pairs[6] = pair
    return pairs


def _ends(
    context: PolicyContext, source: PacketEnd, to: PacketEnd, family: int
) -> tuple[str, str] | None:
    address = _destination(context, source, to, family)
    own = address and _source(context, source, address, family)
    return (own, address) if own and address else None


def _destination(
    context: PolicyContext, source: PacketEnd, to: PacketEnd, family: int
) -> str | None:
    """Return the address to which the sender resolves the name of the destination, or None."""
    if to.address:
        return to.address
    sender = context.services.get(source.service)
    if to.outside:
        first = primary(sender.endpoints, context.networks) if sender else None
        has_route = first is None or any(family_of(own) == family for own in first.addresses)
        return _of_family(context.outside.get(to.outside, ()), family) if has_route else None
    if not to.service:
        if sender:  # to a service, the host is the gateway of its first network
            own = (
                subnet for e in sender.endpoints for subnet in context.networks[e.network].subnets
            )
            return next((subnet.gateway for subnet in own if subnet.family == family), None)
        if source.address:
            return probe.own_address(source.address)
        return "127.0.0.1" if family == 4 else "::1"
    known = context.services[to.service]
    by_network = {
        endpoint.network: _of_family(endpoint.addresses, family) for endpoint in known.endpoints
    }
    shared = [by_network.get(endpoint.network) for endpoint in sender.endpoints] if sender else []
    return next((address for address in (*shared, *by_network.values()) if address), None)


def _source(context: PolicyContext, source: PacketEnd, to: str, family: int) -> str | None:
    """Return the source address that the sender's kernel chooses for a destination, or None."""
    if source.address:
        return source.address
    if not source.service:
        return probe.own_address(to)
    endpoints = context.services[source.service].endpoints
    if any(to in endpoint.addresses for endpoint in endpoints):
        return to
    on = [endpoint for endpoint in endpoints if contains(context.networks[endpoint.network], to)]
    if (first := primary(endpoints, context.networks)) is not None:
        on.append(first)
    return next(
        (a for endpoint in (*on, *endpoints) if (a := _of_family(endpoint.addresses, family))), None
    )


def _of_family(addresses: tuple[str, ...], family: int) -> str | None:
    return next((address for address in addresses if family_of(address) == family), None)


# --- the verdict and the objects that enforce it --------------------------------------------------


class Object(NamedTuple):
    """A rule of a chain, or an element of a set or map, in nftables."""

    table: str
    container: str
    text: str
    place: int | None = None  # position of a rule in its chain, from 0; None for an element
    host: str = ""  # the other host that should have the object; "" is this host
    element: Element | None = None

    @property
    def counts(self) -> bool:
        """True if the object has a packet counter."""
        if self.place is None:
            return self.container in ruleset.COUNTED
        return " counter " in f" {self.text} "

    @property
    def nft(self) -> str:
        """The rule or element as text: ``rule inet niso forward: drop``."""
        if self.place is None:
            return f"element {self.table} {self.container} {{ {self.text} }}"
        return f"rule {self.table} {self.container}: {self.text}"


class ExplainedPacket(NamedTuple):
    """A verdict on a packet, with the nftables objects of its path and of the policies."""

    packet: Packet
    verdict: Verdict
    path: tuple[Object, ...]
    egress: tuple[Object, ...]
    ingress: tuple[Object, ...]
    counted: tuple[Object, ...]  # the objects whose packet counter the packet increments


def explain(
    store: Store,
    context: PolicyContext,
    packet: Packet,
    closed: Mapping[str, Collection[str]],
) -> ExplainedPacket:
    """Return the verdict on a packet, with the nftables objects that enforce the verdict.

    ``closed`` maps each interface that does not forward packets to its addresses (`host_facts`).
    """
    verdict = decide(context, *packet)
    sender, receiver = (
        context.services.get(party.service) for party in (verdict.source, verdict.receiver)
    )
    walks = _leaves_netns(context, packet, sender)
    path, deciding = _path(store, context, packet, verdict, sender, receiver)
    egress: _Rules = ()
    ingress: _Rules = ()
    if walks:
        judged = (packet.proto, verdict.port)
        to = verdict.receiver.address
        egress = _policy_objects(context, sender, False, packet.source, to, judged)
        if not is_host(context, packet.source):
            ingress = _policy_objects(context, receiver, True, to, packet.source, judged)
    counted: _Rules = ()
    if walks and (verdict.path.passes or verdict.path.is_late):
        counted = egress
        if verdict.egress.passes:
            is_dropped = verdict.path.is_late and verdict.ingress.passes
            counted += ingress + (deciding if is_dropped else ())
    elif deciding:
        # chain between counts a broadcast for each port, and most wrong IPv6 packets are not sent
        is_counted = packet.family == 4 and deciding[0].container != "between"
        counted = deciding if is_counted or deciding[0].table == ruleset.INET else ()
    link = _closed_link(context, packet, verdict, closed)
    if link:
        message = f"the host forwards no packets from {link}: net/ipv4/conf/{link}/forwarding is 0"
        verdict, counted = verdict._replace(passes=False, path=Reason(False, message)), ()
    counters = tuple(item for item in counted if item.counts and not item.host)
    return ExplainedPacket(packet, verdict, path, egress, ingress, counters)


def _closed_link(
    context: PolicyContext, packet: Packet, verdict: Verdict, closed: Mapping[str, Collection[str]]
) -> str:
    """Return the interface on which a packet arrives if it forwards no packets, else ""."""
    from_outside = (
        not verdict.source.service and not is_host(context, packet.source) and packet.family == 4
    )
    if not (closed and from_outside and verdict.path.passes and verdict.destination.service):
        return ""
    own = probe.own_address(packet.source)  # the host replies through the link of arrival
    return next((name for name, addresses in closed.items() if own in addresses), "")


def other_family(
    store: Store,
    context: PolicyContext,
    source: PacketEnd,
    destination: PacketEnd,
    packet: Packet,
    closed: Mapping[str, Collection[str]],
) -> ExplainedPacket | None:
    """Explain the same packet with the other IP version.

    Returns None if ``source`` or ``destination`` has no address of that version.
    """
    try:
        from_, to = ends(context, source, destination, 4 if packet.family == 6 else 6)
    except Error:
        return None
    return explain(store, context, packet._replace(source=from_, destination=to), closed)


def _leaves_netns(context: PolicyContext, packet: Packet, sender: KnownService | None) -> bool:
    """Return whether a packet leaves its sender's namespace: only then do policies apply."""
    if sender is None:
        return not is_host(context, packet.source)
    to = packet.destination
    return to not in addresses_of(sender) and not ipaddress.ip_address(to).is_loopback


_Rules = tuple[Object, ...]


def _path(
    store: Store,
    context: PolicyContext,
    packet: Packet,
    verdict: Verdict,
    sender: KnownService | None,
    receiver: KnownService | None,
) -> tuple[_Rules, _Rules]:
    """Return the nftables objects on a packet's path, and the rule of its verdict, if any.

    Both are in the kernel's order. A rule that the packet never reaches is not part of the result.
    """
    deciding = _static(*verdict.path.rule) if verdict.path.rule else ()
    entered = network_of(context, packet.source) if sender else None
    target = verdict.destination.address
    objects: list[Object] = []
    if sender and entered:
        to = ipaddress.ip_address(packet.destination)
        by = leaves_by(context, sender, entered.name, to)
        is_mixed = family_of(packet.source) != packet.family
        if is_mixed or by is None or not sender.active or sender.serving is not None:
            return (), ()
        if not _leaves_netns(context, packet, sender):
            return (), ()
        if by == entered.name:
            objects += _port_elements(store, sender, receiver or sender, entered, packet.source)
    if target != packet.destination:
        objects += _published(context, packet, verdict, entered)
    if verdict.path.passes and verdict.instances:
        objects += _to_instances(store, context, packet, verdict)
    if verdict.path.passes and sender and receiver and sender.host and receiver.host:
        return tuple(objects), ()  # no rule of this host sees it
    return (*objects, *deciding), deciding


def _static(table: str, chain: str, fragment: str) -> _Rules:
    """Return the rule of a chain that is ``fragment``, or else the first that contains it."""
    rules = ruleset.rules_of(table, chain)
    places = [place for place, text in enumerate(rules) if fragment in text]
    if fragment in rules:
        places = [rules.index(fragment)]
    return tuple(Object(table, chain, rules[place], place) for place in places[:1])


def _object(element: Element) -> Object:
    value = f" : {element.value_text}" if element.is_mapped and element.value else ""
    return Object(element.table, element.container, f"{element.text}{value}", element=element)


def _port_elements(
    store: Store, sender: KnownService, receiver: KnownService, network: NetworkRecord, address: str
) -> _Rules:
    """Return the nftables elements that let a bridge port receive packets from a service's address.
    On the receiver's host, the bridge port for services of other hosts is the network's VXLAN
    device.
    """
    service, row = sender.name, store.service(sender.name)
    family = family_of(address)
    lets = (f"sources{family}", *ruleset.CLAIMS)
    owner = network.span.cluster if network.span is not None else store.state_id()
    mac = names.mac(service, network.name, owner)
    objects: list[Object] = []
    if not sender.host:
        port = names.veth(service, network.name, row.generation if row else 0)
        objects += _objects(endpoint(service, port, mac, [address]), lets)
    if sender.host != receiver.host and network.span is not None:
        host = network.span.local
        if sender.host:
            host = store.across.peers().get(sender.host, ("", sender.host, True))[1]
        link = names.vxlan(network.name)
        number = store.across.number(sender.host)
        elements = claim(service, host, number, network.span.vni, link, mac, [address])
        if receiver.host:  # this host does not know the numbers that other hosts use
            elements = [element._replace(value=()) for element in elements]
        else:
            lets = (*lets, f"heard{family}")
        objects += _objects(elements, lets, receiver.host)
    return tuple(objects)


def _objects(elements: Iterable[Element], containers: Collection[str], host: str = "") -> _Rules:
    return tuple(
        _object(element)._replace(host=host)
        for element in elements
        if element.container in containers
    )


def _published(
    context: PolicyContext, packet: Packet, verdict: Verdict, entered: NetworkRecord | None
) -> list[Object]:
    """Return the elements of nftables maps that translate a published port to a service, if any."""
    known = context.services[verdict.destination.service]
    target = verdict.destination.address
    home = primary(known.endpoints, context.networks)
    beside = home is not None and target not in home.addresses
    for wide in (False, True):
        for port in known.ports:
            at = port.is_wide if wide else port.host_ip == packet.destination
            if port.proto != packet.proto or not at:
                continue
            bridge = entered.bridge if beside and entered else ""
            elements = published(known.name, port, [target], bridge, known.serving is not None)
            # only elements of maps have a value
            found = []
            for element in filter(lambda element: element.value, elements):
                first, last = ports_of(element.fields[-1])
                if first <= (packet.port or 0) <= last:
                    found.append(_object(element))
            if found:
                return found
    return []


def _to_instances(
    store: Store, context: PolicyContext, packet: Packet, verdict: Verdict
) -> list[Object]:
    """Return the nftables objects that translate a service address to an instance's address.

    The service address has 64 slots, and a hash of the packet's source selects one. The last object
    is the element of this slot. If the source port is unknown, the last object is the rule that
    selects a slot.
    """
    name, address = verdict.destination
    network, family = network_of(context, address), family_of(address)
    assert network is not None
    mac = names.mac("", network.bridge, names.alias(store.state_id()))
    is_direct = address == packet.destination
    # a map of its own has the instances of this host, if other hosts have some too
    known = context.services[name]
    others = [other for _, part in known.serving or () if (other := context.services.get(part))]
    is_mixed = any(other.host for other in others) and not all(other.host for other in others)
    is_near = is_mixed and not (is_direct and verdict.source.service)
    instance = {1: verdict.receiver.address}
    elements = service_address(
        name, network.bridge, mac, address, instance, instance if is_near else {}
    )
    container = f"near{family}" if is_near else f"slots{family}"
    tables = (ruleset.INET, ruleset.BRIDGE) if verdict.source.service else (ruleset.INET,)
    vips = [e for e in elements if e.container == f"vips{family}" and e.table in tables]
    objects = [*map(_object, vips if is_direct else ())]
    slot = ruleset.slot_of(packet.source, packet.proto, packet.own_port)
    if slot is None:
        chain = ("spread_near" if is_near else "spread") if is_direct else "to_front"
        return [*objects, *_static(ruleset.INET, chain, f"@{container}")]
    slots = (e for e in elements if e.container == container and e.fields[1] == slot)
    return [*objects, *map(_object, slots)]


def _policy_objects(
    context: PolicyContext,
    known: KnownService | None,
    ingress: bool,
    own: str,
    peer: str,
    packet: _Judged,
) -> _Rules:
    """Return the nftables elements by which a service's policy decides on a packet."""
    if known is None or not known.active or not known.heard:
        return ()
    policed = Policed(known.name, addresses_of(known), known.policy)
    members = _members(context, known.policy)
    outside = not is_host(context, peer) and network_of(context, peer) is None
    found = policy_elements.looked_up(policed, members, ingress, own, peer, *packet, outside)
    if not found:
        return ()
    objects = [_object(policy_elements.gate(known.name, ingress, own))]
    for e in found:
        text = f'{e.text} comment "{e.comment}" : {e.value_text}'
        objects.append(Object(e.table, e.container, text, element=e))
    if known.audits and found[-1].value in policy_rules.VERDICTS:
        place = f"audit_{'in' if ingress else 'out'}{6 if ':' in own else 4}"
        objects.append(Object(ruleset.INET, place, own))
    return tuple(object_._replace(host=known.host) for object_ in objects)


_Judged = tuple[str, int | None]  # the protocol and the port of a packet, as policies see them


def _members(context: PolicyContext, policy: Policy) -> list[Member]:
    members = []
    for kind, name in sorted({(entry.peer.kind, entry.peer.name) for entry in policy.entries()}):
        if kind == "network" and name in context.networks:
            subnets = context.networks[name].subnets
            pairs = tuple(s.cidr for s in subnets), tuple(s.gateway for s in subnets)
            members.append(Member(kind, name, *pairs))
        elif kind == "outside":
            members.append(Member(kind, name, context.outside.get(name, ())))
        elif kind == "service":
            holder = next(
                (known for known in context.services.values() if name in known.names), None
            )
            if holder is not None and holder.serving is not None:  # the name means its instances
                parts = [one for one in context.services.values() if one.front == holder.name]
                addresses = tuple(address for one in parts for address in addresses_of(one))
                members.append(Member(kind, name, addresses))
            elif holder is not None:
                members.append(Member(kind, name, addresses_of(holder)))
    return members
