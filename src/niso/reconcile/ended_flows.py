"""Delete the flows that a change of ports or policies no longer allows.

Connection tracking applies NAT rules only to the first packet of a flow. If a datagram arrives
while niso's rules are missing, its flow is recorded without NAT. If a datagram arrives before the
target of a published port changes, its flow is recorded with the old target. If such a flow were
not deleted, all further packets of the client would be sent to the wrong address, until the client
pauses.

When a change enables connection tracking on a bridge, this module adds the open connections to
connection tracking. Otherwise these connections would be interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from niso.base import names
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.names import family_of, prefix
from niso.kernel import ruleset
from niso.kernel.kinds.kind import State
from niso.kernel.kinds.links import Bridge
from niso.kernel.nft_elements import Atoms, Element, ports_of
from niso.kernel.policy_rules import PASSES
from niso.plan.elements import FRONTS, LOCAL, PUBLISHED
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.kernel.conntrack import Tracked
    from niso.kernel.real import Kernel
    from niso.kernel.sockets import Connection
    from niso.plan.verdict import PolicyContext


_PORT_MAPS = PUBLISHED | LOCAL | FRONTS
_SLOTS = ("slots4", "slots6")
_NEAR = ("near4", "near6")
_PASSES = 8
NO_STATE = State()


def clear(kernel: Kernel, want: State) -> int:
    """Delete the tracked flows whose NAT differs from the NAT in the desired state, and return
    their number. ``want`` is the desired state of all services. TCP flows in which both ends have
    sent packets are not deleted. The search is repeated, because packets in transit may create new
    flows. Raises KernelError.
    """
    is_stray = _stray_test(want, {address.partition("/")[0] for address in kernel.host_addresses()})
    ended = 0
    for _ in range(_PASSES):
        strays = [flow for flow in kernel.flows() if is_stray(flow)]
        if not strays:
            break
        ended += kernel.end_flows(strays)
    return ended


def _stray_test(want: State, own: set[str]) -> Callable[[Tracked], bool]:
    """Return a function that returns whether a flow must be deleted, because it lacks the NAT that
    the rules require, or uses a port of the host that is now published. ``own`` are the host's
    addresses.
    """
    import ipaddress  # only after niso's tables were lost

    def within(address: str) -> bool:
        packed = ipaddress.ip_address(address)
        return any(packed in subnet for subnet in subnets)

    targets = _targets(want)
    subnets = [
        ipaddress.ip_network(element.fields[0])
        for element in want[Element]
        if element.container in ("subnets4", "subnets6")
    ]

    def is_stray(flow: Tracked) -> bool:
        if flow.proto == "tcp" and flow.answered:
            return False
        if flow.answers_to in own and targets(flow.proto, flow.answers_to, flow.answers_port):
            return True
        to = ipaddress.ip_address(flow.destination)
        if flow.destination in own or to.is_loopback:
            led_to = targets(flow.proto, flow.destination, flow.port)
            if not led_to:
                return False
            # for the host via 127.0.0.1, and a service that reaches itself, the source is also
            # translated
            unseen = flow.answers_to == flow.source
            hidden = ipaddress.ip_address(flow.source).is_loopback or flow.source in led_to
            return flow.answers_from not in led_to or (hidden and unseen)
        outwards = within(flow.source) and not within(flow.destination)
        return outwards and not to.is_multicast and flow.answers_to == flow.source

    return is_stray


def _targets(want: State) -> Callable[[str, str, int | None], set[str]]:
    """Return a function (protocol, host address, port) -> targets of a published port. The targets
    are the addresses of services to which the port is translated, in the IP version of the host's
    address.
    """
    single: dict[tuple[str, str, int], set[str]] = {}  # by the host's address or "", protocol, port
    ranges: list[tuple[str, str, int, int, str]] = []
    instances: dict[str, set[str]] = {}
    for element in filter(is_slot, want[Element]):
        instances.setdefault(element.fields[0], set()).add(element.value[0])
    near: dict[str, set[str]] = {}  # ports lead to instances of this host
    for element in want[Element]:
        if element.container in _NEAR:
            near.setdefault(element.fields[0], set()).add(element.value[0])
    instances |= near
    for element in want[Element]:
        has_host = _PORT_MAPS.get(element.container)
        if has_host is None:
            continue
        *start, proto, port = element.fields
        host, target = start[-1] if has_host else "", element.value[0]
        if isinstance(port, tuple):
            ranges.append((host, proto, *port, target))
        else:
            led_to = instances.get(target, ()) if element.container in FRONTS else (target,)
            single.setdefault((host, proto, port), set()).update(led_to)

    def targets(proto: str, address: str, port: int | None) -> set[str]:
        if port is None:
            return set()
        found = single.get(("", proto, port), set()) | single.get((address, proto, port), set())
        found |= {
            target
            for host, of_proto, first, last, target in ranges
            if host in ("", address) and of_proto == proto and first <= port <= last
        }
        return {target for target in found if family_of(target) == family_of(address)}

    return targets


def flush_changed_ports(kernel: Kernel, before: State, after: State, doubt: State) -> None:
    """Delete the flows to published ports that a change adds, removes or moves. ``before`` and
    ``after`` are desired states. All ports in ``doubt`` count as changed. Open TCP connections
    stay. Other flows may have been recorded without NAT, because a packet was sent while the port
    was not published.
    """
    changed = {
        element.fields[-2:]
        for element in (before[Element] ^ after[Element]) | doubt[Element]
        if element.container in PUBLISHED or element.container in FRONTS
    }
    if changed:
        kernel.flush_ports(((proto, *ports_of(port)) for proto, port in changed), False)


def end_datagrams(kernel: Kernel, before: State, after: State) -> None:
    """Delete the UDP flows to instances that no longer receive connections to their service
    address. Otherwise connection tracking would send all further datagrams of a client to such an
    instance. TCP connections stay. If a service address had no instance before, flows to this
    address are deleted too, because they have no NAT.
    """
    was, now = (
        {(element.fields[0], element.value[0]) for element in state[Element] if is_slot(element)}
        for state in (before, after)
    )
    left = {instance for _, instance in was} - {instance for _, instance in now}
    filled = {address for address, _ in now} - {address for address, _ in was}
    if left or filled:
        flows = kernel.flows_of(left | filled)
        kernel.end_flows(
            flow
            for flow in flows
            if flow.proto != "tcp" and (flow.destination in filled or flow.answers_from in left)
        )


def is_slot(element: Element) -> bool:
    """Return whether an nftables element maps a slot of a service address to an instance."""
    return element.container in _SLOTS


_BRIDGED = {
    False: "net/bridge/bridge-nf-call-iptables",
    True: "net/bridge/bridge-nf-call-ip6tables",
}


def narrows(before: State, after: State) -> bool:
    """Return whether a change of policies may deny packets that were allowed before: it removes an
    allowing element or an audit, adds a denying element, or moves an address to another class of
    addresses. ``before`` and ``after`` are desired states.
    """
    was, now = _said(before), _said(after)
    # a class of addresses, whose elements say what is allowed, is a number
    return (
        any(value == PASSES or isinstance(value[0], int) for _, value in was - now if value)
        or any(value != PASSES for _, value in now - was)
        or bool(_audits(before) - _audits(after))
    )


def _audits(state: State) -> set[Atoms]:
    return {element.key() for element in state[Element] if element.ends}


def _said(state: State) -> set[tuple[Atoms, Atoms]]:
    return {
        (element.key(), element.value)
        for element in state[Element]
        if element.container in ruleset.POLICIES
    }


def cut(kernel: Kernel, store: Store, services: Iterable[str]) -> int:
    """Delete the open flows of services that policies now deny, and return the number of deleted
    flows. The search is repeated, because packets in transit may create new flows. Raises
    KernelError.
    """
    # few changes make a policy stricter
    from niso.plan.verdict import evaluate
    from niso.reconcile.live_world import read_world

    def allowed(context: PolicyContext, flow: Tracked) -> bool:
        egress, ingress = evaluate(
            context, flow.source, flow.answers_from, flow.served_port, flow.proto
        )
        return egress.passes and ingress.passes

    addresses = [address for name in services for _, address in store.addresses(name)]
    context: PolicyContext | None = None
    ended = 0
    for _ in range(_PASSES):
        flows = kernel.flows_of(addresses)
        if flows and context is None:
            context = read_world(kernel, store)
            # an address that DNS no longer returns is still allowed for open connections
            context = context._replace(outside=context.outside_ever)
        denied = [flow for flow in flows if context is not None and not allowed(context, flow)]
        if not denied:
            break
        ended += kernel.end_flows(denied)
    return ended


def introduce(kernel: Kernel, store: Store, before: State, after: State) -> None:
    """Add open TCP connections to connection tracking, for bridges on which a change enables
    connection tracking. Otherwise the next packet of such a connection would be evaluated as the
    first packet of a new flow. ``before`` and ``after`` are desired states. Raises KernelError.
    """
    was = {bridge.name: bridge for bridge in before[Bridge]}
    changed: set[tuple[str, bool]] = set()  # (bridge, whether it is about IPv6)
    for bridge in after[Bridge]:
        if (old := was.get(bridge.name)) is not None:
            changed |= {(bridge.name, False)} if bridge.tracked4 and not old.tracked4 else set()
            changed |= {(bridge.name, True)} if bridge.tracked6 and not old.tracked6 else set()
    changed = {(name, six) for name, six in changed if kernel.sysctl(_BRIDGED[six]) == "0"}
    bridges = {name for name, _ in changed}
    connections: set[Connection] = set()
    for network in store.networks() if changed else ():
        if network.bridge not in bridges:
            continue
        subnets = [
            prefix(subnet.cidr)
            for subnet in network.subnets
            if (network.bridge, subnet.family == 6) in changed
        ]
        for service in (name for name, active in store.members(network.name) if active):
            for found in kernel.connections_in(names.netns(service)):
                ends = (found.client, found.server)
                if ends[0] != ends[1] and any(all(map(net.contains, ends)) for net in subnets):
                    connections.add(found)
    # without a listening socket both ends may count as client: it usually has the higher port
    added = (
        one
        for one in connections
        if one.client_port > one.server_port
        or type(one)(one.server, one.server_port, one.client, one.client_port) not in connections
    )
    if changed:
        kernel.add_flows(sorted(added))
