"""Delete the flows that a change of ports or policies no longer allows.

Connection tracking consults NAT rules only for the first packet of a flow. If a datagram arrives
while niso's rules are missing, or before a published port changes, the entry for its flow has no
NAT or the wrong NAT. Packets of that client are then misrouted for as long as the client sends.
Allowed flows that begin to be tracked are added, so that they are not interrupted.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable

from niso.base import names
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.names import Prefix, family_of, prefix
from niso.kernel import ruleset
from niso.kernel.kinds.kind import State
from niso.kernel.kinds.links import Bridge
from niso.kernel.nft_elements import Atoms, Element, ports_of
from niso.plan import verdict
from niso.plan.elements import LOCAL, PUBLISHED
from niso.plan.policy_elements import PASSES
from niso.plan.records import Port
from niso.plan.verdict import PolicyContext
from niso.reconcile.live_world import read_world
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.kernel.conntrack import Tracked
    from niso.kernel.real import Kernel
    from niso.kernel.sockets import Connection


if TYPE_CHECKING:
    Net = ipaddress.IPv4Network | ipaddress.IPv6Network

_PORT_MAPS = PUBLISHED | LOCAL
_PASSES = 8
NO_STATE = State()


def clear(kernel: Kernel, want: State) -> int:
    """Delete the flows whose NAT differs from what the complete state ``want`` requires.

    Returns their number. TCP flows in which both ends have sent packets stay: they belong to the
    host that answers. The search is repeated, because packets in transit may create new ones.
    Raises KernelError.
    """
    is_stray = _judge(want, {address.partition("/")[0] for address in kernel.host_addresses()})
    ended = 0
    for _ in range(_PASSES):
        strays = [flow for flow in kernel.flows() if is_stray(flow)]
        if not strays:
            break
        ended += kernel.end_flows(strays)
    return ended


def _judge(want: State, own: set[str]) -> Callable[[Tracked], bool]:
    """Return a function that says whether a flow must be deleted.

    That is one without the NAT that the rules require now, or one that uses a port of the host that
    is now published. ``own`` are the addresses of the host.
    """
    targets = _Targets(want)
    subnets = [
        ipaddress.ip_network(element.fields[0])
        for element in want[Element]
        if element.container in ("subnets4", "subnets6")
    ]

    def is_stray(flow: Tracked) -> bool:
        if flow.proto == "tcp" and flow.answered:
            return False
        if flow.answers_to in own and targets.of(flow.proto, flow.answers_to, flow.answers_port):
            return True
        to = ipaddress.ip_address(flow.destination)
        if flow.destination in own or to.is_loopback:
            led_to = targets.of(flow.proto, flow.destination, flow.port)
            if not led_to:
                return False
            # for the host via 127.0.0.1, and a service that reaches itself, the source is also
            # translated
            unseen = flow.answers_to == flow.source
            hidden = ipaddress.ip_address(flow.source).is_loopback or flow.source in led_to
            return flow.answers_from not in led_to or (hidden and unseen)
        outwards = _within(flow.source, subnets) and not _within(flow.destination, subnets)
        return outwards and not to.is_multicast and flow.answers_to == flow.source

    return is_stray


def _within(address: str, subnets: Iterable[Net]) -> bool:
    packed = ipaddress.ip_address(address)
    return any(packed in subnet for subnet in subnets)


class _Targets:
    """The published ports, and the addresses they are translated to."""

    def __init__(self, want: State) -> None:
        self._at: dict[tuple[str, str, int], set[str]] = {}  # host's address or "", protocol, port
        self._ranges: list[tuple[str, str, int, int, str]] = []
        for element in want[Element]:
            has_host = _PORT_MAPS.get(element.container)
            if has_host is None:
                continue
            *start, proto, port = element.fields
            host = start[-1] if has_host else ""
            target = element.value[0]
            if isinstance(port, tuple):
                self._ranges.append((host, proto, *port, target))
            else:
                self._at.setdefault((host, proto, port), set()).add(target)

    def of(self, proto: str, address: str, port: int | None) -> set[str]:
        """Return the addresses, of the same family, to which a published port is translated."""
        if port is None:
            return set()
        targets: set[str] = set()
        for host in ("", address):
            targets |= self._at.get((host, proto, port), set())
        targets.update(
            target
            for host, of_proto, first, last, target in self._ranges
            if host in ("", address) and of_proto == proto and first <= port <= last
        )
        return {target for target in targets if family_of(target) == family_of(address)}


def flush_changed_ports(
    kernel: Kernel, before: State, after: State, doubt: State = NO_STATE
) -> None:
    """Delete the flows of published ports that have changed, or that are in ``doubt``.

    Open TCP connections stay. For other flows, a packet that was sent while the port was not
    published has left an entry without NAT, which would misroute the client.
    """
    changed = {
        element.fields[-2:]
        for element in (before[Element] ^ after[Element]) | doubt[Element]
        if element.container in PUBLISHED
    }
    if changed:
        flush_ports(kernel, ((proto, *ports_of(port)) for proto, port in changed))


def flush_ports(
    kernel: Kernel, claims: Iterable[tuple[str, int, int]], answered: bool = False
) -> None:
    """Delete the flows to (protocol, first port, last port) of this host's own addresses.

    TCP flows in which both ends have sent packets are deleted only with ``answered``.
    """
    kernel.flush_ports(claims, answered)


def end_flows(kernel: Kernel, ports: Iterable[Port]) -> None:
    """Delete the flows to published ports of deactivated services whose address another one has."""
    claims = [(port.proto, port.host_port, port.last) for port in ports]
    if claims:
        flush_ports(kernel, claims, answered=True)


_BRIDGED = {
    False: "net/bridge/bridge-nf-call-iptables",
    True: "net/bridge/bridge-nf-call-ip6tables",
}


def narrows(before: State, after: State) -> bool:
    """Return whether a change of policies may deny packets that were allowed before.

    That is so if an element that allows is removed, if one that denies is added, if an address gets
    another class of addresses, or if an audit ends.
    """
    was, now = _said(before), _said(after)
    if was == now:
        return bool(_audits(before) - _audits(after))

    return (
        any(value == PASSES or _is_class(value) for _, value in was - now)
        or any(value != PASSES for _, value in now - was)
        or bool(_audits(before) - _audits(after))
    )


def _is_class(value: Atoms) -> bool:
    """Return whether an nftables element's value is the number of a class of addresses.

    Other elements then say what is allowed for that class.
    """
    return bool(value) and isinstance(value[0], int)


def _audits(state: State) -> set[Atoms]:
    return {element.key() for element in state[Element] if element.ends}


def _said(state: State) -> set[tuple[Atoms, Atoms]]:
    """Return pairs (key, value) of the elements for policies, without their comments."""
    return {
        (element.key(), element.value)
        for element in state[Element]
        if element.container in ruleset.POLICIES
    }


def cut(kernel: Kernel, store: Store, services: Iterable[str]) -> int:
    """Delete the open flows of these services that policies now deny, and return their number.

    The search is repeated, because packets in transit may have created new ones. Raises
    KernelError.
    """
    addresses = [address for name in services for _, address in store.addresses(name)]
    context: PolicyContext | None = None
    ended = 0
    for _ in range(_PASSES):
        flows = kernel.flows_of(addresses)
        if flows and context is None:
            context = read_world(kernel, store)
            # an address that DNS no longer returns is still allowed for open connections
            context = context._replace(outside=context.outside_ever)
        denied = [flow for flow in flows if context is not None and not _allowed(context, flow)]
        if not denied:
            break
        ended += kernel.end_flows(denied)
    return ended


def _allowed(context: PolicyContext, flow: Tracked) -> bool:
    """Return whether the policies of both services allow a flow, whatever is published."""
    egress, ingress = verdict.evaluate(
        context, flow.source, flow.answers_from, flow.served_port, flow.proto
    )
    return egress.passes and ingress.passes


def introduce(kernel: Kernel, store: Store, before: State, after: State) -> None:
    """Add open TCP connections to connection tracking for bridges that begin to be tracked.

    Otherwise the next packet of such a connection would count as the first of a new one. Raises
    KernelError.
    """
    was = {bridge.name: bridge for bridge in before[Bridge]}
    turned: set[tuple[str, bool]] = set()
    for bridge in after[Bridge]:
        old = was.get(bridge.name)
        if old is not None:
            turned |= {(bridge.name, False)} if bridge.tracked4 and not old.tracked4 else set()
            turned |= {(bridge.name, True)} if bridge.tracked6 and not old.tracked6 else set()
    turned = {(name, six) for name, six in turned if kernel.sysctl(_BRIDGED[six]) == "0"}
    if not turned:
        return
    networks = [
        network for network in store.networks() if network.bridge in {name for name, _ in turned}
    ]
    connections: set[Connection] = set()
    for network in networks:
        subnets = [
            prefix(subnet.cidr)
            for subnet in network.subnets
            if (network.bridge, subnet.family == 6) in turned
        ]
        for service, active in store.members(network.name):
            if active:
                there = kernel.connections_in(names.netns(service))
                connections |= {
                    connection for connection in there if _within_networks(connection, subnets)
                }
    kernel.add_flows(
        sorted(
            connection
            for connection in connections
            if _reversed(connection) not in connections or _by_ports(connection)
        )
    )


def _reversed(connection: Connection) -> Connection:
    return type(connection)(
        connection.server, connection.server_port, connection.client, connection.client_port
    )


def _by_ports(connection: Connection) -> bool:
    """Return whether the client end probably opened the connection: it has the higher port.

    This is needed if no end has a listening socket any more.
    """
    return connection.client_port > connection.server_port


def _within_networks(connection: Connection, subnets: list[Prefix]) -> bool:
    client, server = connection.client, connection.server
    return client != server and any(
        subnet.holds(client) and subnet.holds(server) for subnet in subnets
    )
