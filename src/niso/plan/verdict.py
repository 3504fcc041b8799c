"""Decide whether a packet passes, and name the manifest entry or the default that decides.

Three checks must pass: the path (docs/design/packet.md), the egress policy of the sending service,
and the ingress policy of the receiving service. The rules in the kernel are derived from the same
policies by other code (`niso.plan.policy_elements`), and tests compare the two. Only the first
packet of a flow is evaluated. Later packets and replies of the flow, and ICMP errors about the
flow, pass without an evaluation.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Mapping

from niso.base.named_tuples import NamedTuple
from niso.base.names import bracketed, family_of
from niso.kernel.ruleset import BRIDGE, INET, slot_of
from niso.plan.elements import fill
from niso.plan.records import (
    OUTSIDE,
    PORTED,
    WIDE,
    Entry,
    NetworkRecord,
    Policy,
    PortMapping,
    ServiceEndpoint,
    primary,
)

_PORTED_TOO = ("33", "136")  # DCCP, UDP-Lite

Rule = tuple[str, str, str]
"""A rule of `niso.kernel.ruleset`: (table, chain, the rule's text or a part of it)."""

_SPOOFED = (BRIDGE, "from_port", "not its own address")
_BETWEEN = (BRIDGE, "between", "broadcast, multicast")
_ABSENT = (INET, "from_bridge", "to an address that no service has")
_INTERNAL = (INET, "forward", "out of an internal network")
_SAME_BRIDGE = (INET, "forward", "iifname . oifname @same_bridge accept")
_NOT_PUBLISHED = (INET, "forward", "not published")
_NO_PORTS = {family: (INET, f"away{family}", "without ports") for family in (4, 6)}
_AFTER_POLICIES = {_NOT_PUBLISHED, *_NO_PORTS.values()}


def _raw(to: Address, text: str) -> Rule:
    return INET, "raw" if to.version == 4 else "raw6", text


class Party(NamedTuple):
    service: str  # its name; "" for the host, other machines and unused addresses
    address: str


class Reason(NamedTuple):
    """The result of one check of a packet (path, egress or ingress), and the reason for the result.
    ``service``, ``key`` and ``text`` identify the manifest entry that decides, or are "". With
    ``audits``, the entry would deny the packet, but its policy is in its audit period. ``rule`` is
    the rule of this host that drops the packet because of its path, or that shows why it passes.
    """

    passes: bool
    message: str
    service: str = ""
    key: str = ""  # "network.policy.deny_from[0]"; without [0] if no entry of the list matches
    text: str = ""  # the entry as written
    audits: bool = False
    rule: Rule | None = None

    @property
    def is_late(self) -> bool:
        """Return whether the packet passes the policies before ``rule`` drops it."""
        return self.rule in _AFTER_POLICIES


class Verdict(NamedTuple):
    """The verdict on a packet. The packet passes if ``path``, ``egress`` and ``ingress`` all pass.
    If the packet is sent to a published port, ``destination`` and ``port`` are the values after
    DNAT.
    """

    passes: bool
    ingress: Reason
    egress: Reason
    path: Reason
    source: Party
    destination: Party
    port: int | None
    instances: tuple[Party, ...]
    """If the destination is a service address, the instances of which one gets the packet.
    The policies were evaluated for the first, which drops the packet if any of them does."""

    @property
    def receiver(self) -> Party:
        """Return the receiver of the packet. If the destination is a service address, the receiver
        is an instance of the service.
        """
        return self.instances[0] if self.instances else self.destination

    @property
    def dropped_by(self) -> Reason | None:
        """Return the first check that drops the packet, in the kernel's order, or None."""
        policies = (self.egress, self.ingress)
        checks = (*policies, self.path) if self.path.is_late else (self.path, *policies)
        return next((reason for reason in checks if not reason.passes), None)


def decide(
    context: PolicyContext,
    source: str,
    destination: str,
    port: int | None,
    proto: str,
    own_port: int | None = None,
) -> Verdict:
    """Return the verdict on a packet, given its addresses, port and protocol before any NAT.

    ``destination`` and ``port`` may be a published port. ``proto`` is tcp, udp, sctp, or a protocol
    without ports; icmp means ICMP of both IP versions. A broadcast or multicast packet is evaluated
    for all services that could receive it, and passes if one of them receives it. The host receives
    no broadcast or multicast packet from a service. ``own_port`` is the source port. For a service
    address, it decides which instance gets the packet. If it is None, any instance may get the
    packet. Raises ValueError for an invalid address, and for a port that does not fit the protocol.
    """
    if (port is not None) != (proto in PORTED):
        raise ValueError(f"{proto} with port {port}")
    source, destination = str(ipaddress.ip_address(source)), str(ipaddress.ip_address(destination))
    sender = holder_of(context, source)
    path, address, port, to_itself = _path(context, source, destination, port, proto)
    receiver = sender if to_itself else holder_of(context, address)
    instances: tuple[Party, ...] = ()
    if to_itself and sender is not None:
        egress = ingress = Reason(True, f"{sender[0].name} may always reach itself")
    elif instances := _instances(
        context, receiver, source, proto, own_port, sender is None or address != destination
    ):
        parts = [evaluate(context, source, one.address, port, proto) for one in instances]
        drops = [not (egress.passes and ingress.passes) for egress, ingress in parts]
        if path.passes and receiver is not None:
            near = sender is None or address != destination
            serving = _serving(context, receiver[0], near)
            message = _stands_for(context, path.message, address, serving, instances)
            if len(set(drops)) > 1:
                message += "; their policies differ by address: name the source port"
            path = path._replace(message=message)
        first = drops.index(True) if True in drops else 0
        egress, ingress = parts[first]
        instances = (instances[first], *instances[:first], *instances[first + 1 :])
    else:
        egress = _egress(context, sender, address, port, proto, source)
        ingress = _ingress(context, receiver, source, port, proto, address)
        if sender is not None and path.passes and is_broadcast(context, parsed(address)):
            ingress = _among_all(context, *sender, source, port, proto)
    return Verdict(
        path.passes and egress.passes and ingress.passes,
        ingress,
        egress,
        path,
        Party(sender[0].name if sender else "", source),
        Party(receiver[0].name if receiver else "", address),
        port,
        instances,
    )


def _instances(
    context: PolicyContext,
    receiver: Holder | None,
    source: str,
    proto: str,
    own_port: int | None,
    near: bool,
) -> tuple[Party, ...]:
    # ``own_port`` is the packet's source port; None means any port
    serving, family = _serving(context, receiver[0], near) if receiver else (), family_of(source)
    if receiver is None or not serving:
        return ()
    if (slot := slot_of(source, proto, own_port)) is not None:
        ordinal = fill(tuple(sorted(dict(serving))))[slot]
        serving = tuple(one for one in serving if one[0] == ordinal)
    return tuple(
        Party(name, address)
        for _, name in serving
        if (known := context.services.get(name)) is not None
        for endpoint in known.endpoints
        for address in endpoint.addresses
        if endpoint.network == receiver[1] and family_of(address) == family
    )


def _serving(
    context: PolicyContext, known: KnownService, near: bool
) -> tuple[tuple[int, str], ...]:
    # ``near``: packets to a published port, or from a program of this host, reach only instances on
    # this host if the service is of this host
    serving = known.serving or ()
    if not near or known.host:
        return serving
    here = (one for one in serving if one[1] in context.services)
    return tuple(one for one in here if not context.services[one[1]].host)


def _stands_for(
    context: PolicyContext,
    message: str,
    address: str,
    serving: tuple[tuple[int, str], ...],
    instances: tuple[Party, ...],
) -> str:
    count = len(serving)
    which = instances[0].service if count == 1 else f"{count} instances"
    hosts = {known.host for _, name in serving if (known := context.services.get(name)) is not None}
    if count > 1 and len(hosts) > 1:
        which += " on " + ", ".join(sorted(host or "this host" for host in hosts))
    gets = f", and {instances[0].service} gets this packet" if len(instances) < count else ""
    return f"{message}; {address} stands for {which}{gets}"


def evaluate(
    context: PolicyContext, source: str, destination: str, port: int | None, proto: str
) -> tuple[Reason, Reason]:
    """Evaluate the sender's egress policy and the receiver's ingress policy for an open flow, and
    return both results, in this order. ``source`` and ``destination`` are the addresses after NAT.
    ``port`` is None if the protocol has no ports. A service may always reach itself, even if NAT
    has replaced its address by its gateway's.
    """
    sender, receiver = holder_of(context, source), holder_of(context, destination)
    if sender is not None and receiver is not None and sender[0].name == receiver[0].name:
        free = Reason(True, f"{sender[0].name} may always reach itself")
        return free, free
    egress = _egress(context, sender, destination, port, proto, source)
    return egress, _ingress(context, receiver, source, port, proto, destination)


def matches(
    entry: Entry, context: PolicyContext, address: str, port: int | None, proto: str
) -> bool:
    """Return whether a policy entry matches a peer's address (in canonical form), protocol and
    port. ``port`` is a port of the service for an ingress entry, and of the peer for an egress
    entry.
    """
    if entry.proto not in ("", proto):
        return False
    if (entry.first, entry.last) != (0, 65535) and (
        port is None or not entry.first <= port <= entry.last
    ):
        return False
    peer = entry.peer
    if peer.kind == "prefix":
        return within(parsed(address), peer.name)
    if peer.kind == "prefixes":
        return any(within(parsed(address), cidr) for cidr in peer.name.split(","))
    if peer.kind == "network":
        network = context.networks.get(peer.name)
        return (
            network is not None and contains(network, address) and address not in gateways(network)
        )
    if peer == OUTSIDE:
        return not is_host(context, address) and network_of(context, address) is None
    if peer.kind == "outside":
        return address in context.outside.get(peer.name, ())
    holder = holder_of(context, address)
    return holder is not None and peer.name in holder[0].names


def _egress(
    context: PolicyContext, sender: Holder | None, to: str, port: int | None, proto: str, own: str
) -> Reason:
    if sender is None:
        return Reason(True, f"{_who(context, own)} has no niso policy")
    return _adjusted(sender[0], _evaluate_policy(context, sender[0], False, to, port, proto))


def _ingress(
    context: PolicyContext, receiver: Holder | None, by: str, port: int | None, proto: str, own: str
) -> Reason:
    if receiver is None:
        return Reason(True, f"{_who(context, own)} has no niso policy")
    if is_host(context, by):
        return Reason(True, "the host may always connect")
    return _adjusted(receiver[0], _evaluate_policy(context, receiver[0], True, by, port, proto))


def _among_all(
    context: PolicyContext,
    sender: KnownService,
    network: str,
    by: str,
    port: int | None,
    proto: str,
) -> Reason:
    """Evaluate the ingress policies of all services that a multicast or broadcast packet reaches.
    The packet passes unless all of them deny it. Their audit periods have no effect.
    """
    passing: dict[bool, list[str]] = {True: [], False: []}
    for known in context.services.values():
        is_there = any(
            endpoint.network == network and family_of(address) == family_of(by)
            for endpoint in known.endpoints
            for address in endpoint.addresses
        )
        if is_there and known is not sender and known.active and known.serving is None:
            reason = _evaluate_policy(context, known, True, by, port, proto)
            passing[reason.passes].append(known.name)
    hearers, others = (
        ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
        for names in (passing[True], passing[False])
    )
    refused = f"; refused by the policies of {others}" if others else ""
    return Reason(bool(hearers) or not others, f"received by {hearers or 'no service'}{refused}")


def _adjusted(known: KnownService, reason: Reason) -> Reason:
    """Return ``reason``, the result of a service's policy, adjusted for its audit period and host.

    During its audit period, a policy accepts what it would deny. For a service of another host, the
    message says that this other host decides. Packets pass this host's rules until the other host
    has published the policy.
    """
    if known.host and not known.heard:
        return Reason(True, f"{known.host} decides: the policy of {known.name} is not known here")
    if known.audits and not reason.passes:
        message = f"passes while the policy of {known.owner} is in audit: {reason.message}"
        reason = reason._replace(passes=True, message=message, audits=True)
    if known.host:
        there = f"{known.host} decides, by the policy that it has published"
        reason = reason._replace(message=f"{reason.message}; {there}")
    return reason


def _evaluate_policy(
    context: PolicyContext,
    known: KnownService,
    ingress: bool,
    peer: str,
    port: int | None,
    proto: str,
) -> Reason:
    """Evaluate a service's ingress or egress policy for a peer. Deny entries have precedence over
    allow entries. An allow list denies all peers that it does not match.
    """
    service, policy = known.owner, known.policy
    if ingress:
        deny, allow, key = policy.deny_from, policy.allow_from, "network.policy.{}_from"
    else:
        deny, allow, key = policy.egress_deny, policy.egress_allow, "network.policy.egress.{}"
    for passes, entries in ((False, deny), (True, allow or ())):
        for entry in entries:
            if matches(entry, context, peer, port, proto):
                verb = "allowed" if passes else "denied"
                message = f'{verb} by {entry.key} of {service} ("{entry.text}")'
                return Reason(passes, message, service, entry.key, entry.text)
    if allow is None:
        if deny:
            return Reason(True, f"not listed in {key.format('deny')} of {service}")
        return Reason(True, f"{service} has no {'ingress' if ingress else 'egress'} policy")
    key = key.format("allow")
    message = f"not listed in {key} of {service}" if allow else f"{key} of {service} is empty"
    return Reason(False, message, service, key)


def _who(context: PolicyContext, address: str) -> str:
    return "the host" if is_host(context, address) else address


_drop, _accept = functools.partial(Reason, False), functools.partial(Reason, True)


class _Packet(NamedTuple):
    """A packet and its sender. ``entered`` is the network through which the sender sends the
    packet, or "" for a sender that is not a service.
    """

    source: str
    destination: str
    to: Address  # the parsed destination
    port: int | None
    proto: str
    sender: KnownService | None
    entered: str
    from_host: bool


def _path(
    context: PolicyContext, source: str, destination: str, port: int | None, proto: str
) -> tuple[Reason, str, int | None, bool]:
    """Check the path of a packet, without policies. Returns (result, address and port after DNAT,
    whether a service sends to itself). Policies do not apply to a service that sends to itself.
    """
    to, from_host = ipaddress.ip_address(destination), is_host(context, source)
    sender, entered = holder_of(context, source) or (None, "")
    packet = _Packet(source, destination, to, port, proto, sender, entered, from_host)
    if sender and sender.active and ipaddress.ip_address(source).version == to.version:
        is_own = destination in addresses_of(sender)
        if is_own or to.is_loopback:
            what = "own address" if is_own else "own loopback address"
            reason = _accept(f"{destination} is {sender.name}'s {what}")
            return reason, destination, port, True
    stopped = _before_dnat(context, packet)
    if stopped is not None:
        return stopped, destination, port, False
    if is_host(context, destination):
        published = _published(context, to, port, proto, entered)
        if published is not None:
            known, network, address, inside, sharer = published
            if sender and network != entered and context.networks[entered].internal:
                return _stays(entered), address, inside, False
            owner = f"{sharer}, which shares the network of {known.name}" if sharer else known.name
            asked = f"{bracketed(destination)}:{port}/{proto}"
            led_to = f"it leads to {bracketed(address)}:{inside}"
            reason = _accept(f"{asked} is a published port of {owner}; {led_to}")
            return reason, address, inside, known is sender
        if _is_name_server_elsewhere(context, packet):
            reason = _drop(
                f"{destination} is the address of another network's bridge: its name server is for"
                " that network alone",
                rule=(INET, "input", f"daddr @subnets{to.version} meta l4proto"),
            )
        else:
            own = f"{destination} is the host's own address"
            unpublished = f", and no service publishes {port}/{proto} there" if port else ""
            reason = _accept(own + unpublished)
    elif (receiver := holder_of(context, destination)) is not None:
        reason = _to_service(context, packet, *receiver)
    elif network_of(context, destination) is not None:
        reason = _to_unused(context, packet)
    else:
        reason = _outwards(context, packet)
    return reason, destination, port, False


def _before_dnat(context: PolicyContext, packet: _Packet) -> Reason | None:
    """Return the verdict if a check that comes before DNAT decides, otherwise None."""
    source, destination, to, _, _, sender, entered, from_host = packet
    if ipaddress.ip_address(source).version != to.version:
        return _drop("IPv4 and IPv6 addresses cannot reach each other")
    if sender:
        if not sender.active:
            return _drop(f"{sender.name} is not active")
        if sender.serving is not None:
            return _drop(
                f"{source} is the service address of {sender.name}: its instances send from their"
                " own addresses"
            )
        by = leaves_by(context, sender, entered, to)
        if by is None:
            return _drop(f"{sender.name} has no IPv{to.version} route out of its networks")
        if by != entered:
            return _drop(
                f"{sender.name} reaches {destination} through network {by},"
                f" where {source} is not its address",
                rule=_SPOOFED,
            )
    elif not from_host and network_of(context, source) is not None:
        rule = _raw(to, f"saddr @subnets{to.version}")
        return _drop(f"no service has the address {source}", rule=rule)
    if to.is_loopback and not from_host:
        reason = "the host's loopback addresses can only be reached from the host"
        return _drop(reason, rule=_raw(to, "loopback from a wire"))
    if is_broadcast(context, to):
        if from_host:
            return _accept("the host can reach every service")
        return _to_all(context, packet)
    from_outside = not (sender or from_host)
    is_bridge = is_host(context, destination) and network_of(context, destination) is not None
    if from_outside and is_bridge:
        return _drop(
            f"{destination} is the address of a bridge: from outside the host, published ports"
            " can be reached only by its other addresses",
            rule=_refusing(packet, False),
        )
    return None


def _to_all(context: PolicyContext, packet: _Packet) -> Reason:
    """Check the path (without policies) of multicast or broadcast, except from the host."""
    entered, to = packet.entered, str(packet.to)
    reached = network_of(context, to)
    across = reached is not None and reached.name != entered
    # the host treats the broadcast address of another network as its own address
    rule = None if across or not packet.sender else _BETWEEN
    if not packet.sender or not context.networks[entered].multicast:
        return _drop("broadcast and multicast do not reach services", rule=rule)
    if across:
        return _drop(f"{to} is the broadcast address of another network")
    if packet.proto != "udp":
        return _drop(f"network {entered} passes broadcast and multicast of UDP only", rule=rule)
    message = f"network {entered} passes UDP multicast and broadcast to all its services"
    return _accept(message, rule=(BRIDGE, "between", "on a network with multicast"))


def _is_name_server_elsewhere(context: PolicyContext, packet: _Packet) -> bool:
    """Return whether a packet is sent to a name server on another network than its sender's. Such
    packets are dropped, because a name server may reveal names of its own network, as Podman's
    aardvark-dns does. The destination is an address of the host.
    """
    if packet.port != 53 or packet.proto not in ("tcp", "udp") or not packet.entered:
        return False
    reached = network_of(context, packet.destination)
    return reached is not None and reached.name != packet.entered


def _refusing(packet: _Packet, across: bool) -> Rule | None:
    """Return the rule that drops a packet to an address in a network of niso, if any. With
    ``across``, the packet comes from a service on another network, which is not internal.
    """
    if across:
        return _NOT_PUBLISHED
    if packet.sender:  # the rule is on the sender's host
        return None if packet.sender.host else _ABSENT
    if packet.from_host:
        return None
    return _raw(packet.to, f"daddr @subnets{packet.to.version}")


def _to_service(
    context: PolicyContext, packet: _Packet, known: KnownService, network: str
) -> Reason:
    """Check the path (without policies) of a packet to an address of the service ``known``."""
    sender, entered = packet.sender, packet.entered
    across = sender is not None and network != entered
    if across and context.networks[entered].internal:
        return _stays(entered)
    rule = _refusing(packet, across)
    if not known.active:
        return _drop(f"{known.name} is not active", rule=rule)
    if known.serving == ():
        return _drop(f"no instance of {known.name} serves", rule=rule)
    if packet.from_host and known.host:
        return _drop(
            f"{known.name} is on {known.host}, and programs of the host reach services of this"
            " host alone"
        )
    if packet.from_host and known.serving and not _serving(context, known, True):
        return _drop(
            f"all instances of {known.name} that serve are on other hosts, and programs of the host"
            " reach services of this host alone"
        )
    if packet.from_host:
        return _accept("the host can reach every service")
    if not sender:
        return _drop(
            f"{known.name} can be reached from outside the host only by its published ports",
            rule=rule,
        )
    if network == entered:
        wire = ", by VXLAN" if sender.host != known.host else ""
        on = context.networks[network]
        # a bridge without connection tracking switches frames without evaluating the rule
        return _accept(
            f"{_on_host(sender)} and {_on_host(known)} are both on network {network}{wire}",
            rule=_SAME_BRIDGE if on.publishes or on.policed else None,
        )
    return _drop(
        f"networks {entered} and {network} are isolated from each other:"
        " only published ports can be reached across",
        rule=rule,
    )


def _to_unused(context: PolicyContext, packet: _Packet) -> Reason:
    """Check the path of a packet to an address in a network of niso that no service has."""
    network = network_of(context, packet.destination)
    across = packet.sender is not None and network is not None and network.name != packet.entered
    if across and context.networks[packet.entered].internal:
        return _stays(packet.entered)
    reason = f"no service has the address {packet.destination}"
    return _drop(reason, rule=_refusing(packet, across))


def _on_host(known: KnownService) -> str:
    return f"{known.name} (on {known.host})" if known.host else known.name


def _outwards(context: PolicyContext, packet: _Packet) -> Reason:
    """Check the path of a packet to an address of neither the host nor a network of niso."""
    to = packet.to
    if not packet.sender:
        both = (ipaddress.ip_address(packet.source), to)
        on_a_wire = any(all(within(end, prefix) for end in both) for prefix in context.wires)
        if to.version in context.closed and not (packet.from_host or on_a_wire):
            if link := next(filter(None, (_later_link(context, end) for end in both)), ""):
                return _accept(f"link {link} came after niso's first service")
            return _drop(
                f"the host forwards IPv{to.version} for services only:"
                " it did not forward before niso"
            )
        return _accept("no service is involved")
    if is_link_local6(to):
        return _drop("services have no link-local addresses, and the host does not route them")
    if any(_is_for_all(wire, to) for wire in context.wires):
        return _drop(
            f"{to} is a broadcast or anycast address of a link of the host, not a machine's own"
        )
    if context.networks[packet.entered].internal:
        return _stays(packet.entered)
    if packet.proto not in (*PORTED, "icmp", *_PORTED_TOO):
        return _drop(
            f"protocol {packet.proto} has no ports: answers could not be told from what is meant"
            " for the host",
            rule=_NO_PORTS[to.version],
        )
    rule = (INET, "postrouting", f"saddr @subnets{to.version}")
    return _accept(f"network {packet.entered} has access to the outside", rule=rule)


def _later_link(context: PolicyContext, address: Address) -> str:
    """Return the host's interface to which packets for an address are routed, if it was created
    after niso enabled forwarding, otherwise "". niso's rules do not restrict forwarding through
    such an interface.
    """
    routes = [prefix for prefix in context.routes if within(address, prefix)]
    return context.routes[max(routes, key=_prefix_length)] if routes else ""


def _prefix_length(prefix: str) -> int:
    return _network(prefix).prefixlen


def _stays(network: str) -> Reason:
    message = f"network {network} is internal: it reaches only the host and its own services"
    return _drop(message, rule=_INTERNAL)


def _published(
    context: PolicyContext, to: Address, port: int | None, proto: str, entered: str
) -> tuple[KnownService, str, str, int, str] | None:
    """Return the service and address to which a published port on a host address is translated.
    Returns None if no service publishes the port.

    The result is (service, network, address, port, publisher). ``publisher`` is a service in the
    same namespace that has published the port in place of the service, or "". A client on a network
    of the service (``entered``) is sent to the service's address on this network. Other clients are
    sent to the address on the service's primary network. A port that is published on one host
    address has precedence over a port that is published on all host addresses.
    """
    if port is None or (to.version == 6 and to.is_loopback):
        return None
    for hosts in ((str(to),), WIDE):
        for known in context.services.values():
            first = primary(known.endpoints, context.networks) if known.ports else None
            if first is None or not known.active:
                continue
            if known.serving is not None and not _serving(context, known, True):
                continue
            if all(family_of(address) != to.version for address in first.addresses):
                continue  # ports of this family are published only by the default route
            shared = [endpoint for endpoint in known.endpoints if endpoint.network == entered]
            network, address = next(
                (endpoint.network, address)
                for endpoint in (*shared, first)
                for address in endpoint.addresses
                if family_of(address) == to.version
            )
            for published in known.ports:
                if (
                    published.host_ip in hosts
                    and published.proto == proto
                    and published.host_port
                    and published.host_port <= port <= published.last
                    and to.version in published.families
                ):
                    inside = published.container_port + port - published.host_port
                    return known, network, address, inside, dict(known.sharers).get(published, "")
    return None


def leaves_by(context: PolicyContext, known: KnownService, entered: str, to: Address) -> str | None:
    """Return the network through which a service sends a packet, or None without a route.

    ``entered`` is the network of the packet's source address.
    """
    if is_link_local6(to):
        return entered
    for endpoint in known.endpoints:
        if contains(context.networks[endpoint.network], str(to)):
            return endpoint.network
    first = primary(known.endpoints, context.networks)
    if first is None:
        return None
    families = {subnet.family for subnet in context.networks[first.network].subnets}
    return first.network if to.version in families else None


Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class KnownService(NamedTuple):
    """A service with the data that is needed to evaluate policies. Inactive services are included,
    because their addresses are reserved.
    """

    name: str
    names: tuple[str, ...]  # its names, and those of services that share its namespace
    endpoints: tuple[ServiceEndpoint, ...]
    policy: Policy = Policy()
    ports: tuple[PortMapping, ...] = ()  # published ports, each with its host port
    active: bool = True
    # (port, service) for each port that another service in its namespace publishes
    sharers: tuple[tuple[PortMapping, str], ...] = ()
    audits: bool = False  # its policy is in its audit period, and denies nothing
    host: str = ""  # the other host that it runs on; "" for this host
    heard: bool = True  # whether its policy is known on this host
    front: str = ""  # the service of which this is an instance; "" for other services
    # ordinals and names of instances that receive connections; None without a service address
    serving: tuple[tuple[int, str], ...] | None = None

    @property
    def owner(self) -> str:
        """Return the service's name as users see it: ``web`` for the instance ``web.2``."""
        return self.front or self.name


class PolicyContext(NamedTuple):
    """The services, networks and addresses (in canonical form) on which verdicts depend."""

    services: Mapping[str, KnownService]
    networks: Mapping[str, NetworkRecord]
    host: frozenset[str] = frozenset()  # the host's addresses, except 127.0.0.0/8, ::1 and gateways
    closed: frozenset[int] = frozenset()  # families that the host forwards for services only
    wires: frozenset[str] = frozenset()  # prefixes of the host's links
    # prefixes from which subnets are taken, also those of former networks
    pools: tuple[str, ...] = ()
    outside: Mapping[str, tuple[str, ...]] = {}  # DNS name -> addresses that services may reach
    outside_ever: Mapping[str, tuple[str, ...]] = {}  # the same, including PAST addresses
    # with ``closed``: prefixes of other links, each with its link if that came after niso, or ""
    routes: Mapping[str, str] = {}


Holder = tuple[KnownService, str]
"""(service, network): the service that has an address, and the network of the address."""


def holder_of(context: PolicyContext, address: str) -> Holder | None:
    """Return (service, network) for the service that has an address, or None."""
    for known in context.services.values():
        for endpoint in known.endpoints:
            if address in endpoint.addresses:
                return known, endpoint.network
    return None


def addresses_of(known: KnownService) -> tuple[str, ...]:
    return tuple(address for endpoint in known.endpoints for address in endpoint.addresses)


def is_host(context: PolicyContext, address: str) -> bool:
    """Return whether the host has an address. Loopback addresses count as the host's, so callers
    must first handle a service that sends to its own loopback address.
    """
    is_gateway = any(address in gateways(network) for network in context.networks.values())
    return address in context.host or is_gateway or parsed(address).is_loopback


def gateways(network: NetworkRecord) -> tuple[str, ...]:
    return tuple(subnet.gateway for subnet in network.subnets)


def network_of(context: PolicyContext, address: str) -> NetworkRecord | None:
    """Return the network whose subnets contain an address, or None. The address may be unused."""
    return next(
        (network for network in context.networks.values() if contains(network, address)), None
    )


def is_for_services(context: PolicyContext, address: str) -> bool:
    """Return whether only services can have an address, because it is or was in a network of niso.
    This includes all addresses in the prefixes from which niso takes subnets.
    """
    number = parsed(address)
    in_pool = any(within(number, prefix) for prefix in context.pools)
    return in_pool or network_of(context, address) is not None


def contains(network: NetworkRecord, address: str) -> bool:
    """Return whether one of the network's subnets contains an address."""
    number = parsed(address)
    return any(within(number, subnet.cidr) for subnet in network.subnets)


parsed = functools.lru_cache(4096)(ipaddress.ip_address)
_network = functools.lru_cache(1024)(ipaddress.ip_network)
"""Parse an address or a prefix. Both are cached, since each is parsed for several flows."""


def within(address: Address, prefix: str) -> bool:
    """Return whether a prefix contains an address. Returns False if their IP versions differ."""
    return address in _network(prefix)


def is_link_local6(address: Address) -> bool:
    return address.version == 6 and address.is_link_local


def is_broadcast(context: PolicyContext, to: Address) -> bool:
    """Return whether an address is multicast or broadcast (RFC 919, RFC 1112)."""
    if to.is_multicast or str(to) == "255.255.255.255":
        return True
    subnets = (subnet for network in context.networks.values() for subnet in network.subnets)
    fours = (_network(subnet.cidr) for subnet in subnets if subnet.family == 4)
    return any(to == subnet.broadcast_address for subnet in fours)


def _is_for_all(prefix: str, to: Address) -> bool:
    """Return whether an address is the broadcast address or the routers' anycast address of a
    prefix (RFC 919; RFC 4291, 2.6.1). A prefix with two addresses has neither (RFC 3021, RFC 6164).
    """
    network = _network(prefix)
    return network.num_addresses > 2 and str(to) == str(network[-1 if network.version == 4 else 0])
