"""Apply policy changes to open connections: end denied flows, keep allowed ones tracked."""

from __future__ import annotations

from collections.abc import Iterable

from niso.base import names
from niso.base.lite_typing import TYPE_CHECKING
from niso.base.prefixes import Prefix, prefix
from niso.kernel import nft_sets
from niso.kernel.kinds.bridge import Bridge
from niso.kernel.kinds.element import Element
from niso.kernel.state import State
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.kernel.flows import Flow
    from niso.kernel.interface import Kernel
    from niso.kernel.sockdiag import Connection
    from niso.plan.known_world import World

_BRIDGED = {
    False: "net/bridge/bridge-nf-call-iptables",
    True: "net/bridge/bridge-nf-call-ip6tables",
}
_PASSES = 8


def narrows(before: State, after: State) -> bool:
    """Return whether a change of policies may deny traffic that was allowed.

    It may if an allowing element is removed or a denying one is added, if an address gets another
    class, or an audit ends.
    """
    was, now = _said(before), _said(after)
    if was == now:
        return bool(_audits(before) - _audits(after))
    from niso.plan.policy_maps import PASSES

    return (
        any(value == PASSES or not _is_verdict(value) for _, value in was - now)
        or any(value != PASSES for _, value in now - was)
        or bool(_audits(before) - _audits(after))
    )


def _is_verdict(value: str) -> bool:
    """Return whether an element does not lead to others, as a class of addresses does."""
    return ":" not in value


def _audits(state: State) -> set[tuple[str, ...]]:
    return {element.key() for element in state[Element] if element.ends}


def _said(state: State) -> set[tuple[tuple[str, ...], str]]:
    """Return (key, value) of the policy elements, ignoring their manifest lines."""
    return {
        (element.key(), element.value)
        for element in state[Element]
        if element.container in nft_sets.POLICIES
    }


def cut(kernel: Kernel, store: Store, services: Iterable[str]) -> int:
    """End open flows of these services that policies now deny; return their number.

    Repeats until no such flow is left, since packets under way during the change may have created
    new ones. Raises KernelError.
    """
    addresses = [address for name in services for _, address in store.addresses(name)]
    known: World | None = None
    ended = 0
    for _ in range(_PASSES):
        flows = kernel.flows_of(addresses)
        if flows and known is None:
            from niso.reconcile.world import read_world

            known = read_world(kernel, store)
            # an address that DNS no longer returns is still allowed for open connections
            known = known._replace(outside=known.outside_ever)
        denied = [flow for flow in flows if known is not None and not _allowed(known, flow)]
        if not denied:
            break
        ended += kernel.end_flows(denied)
    return ended


def _allowed(known: World, flow: Flow) -> bool:
    """Return whether the policies of both ends allow a flow.

    Published ports are not considered: open TCP connections outlive their port.
    """
    from niso.plan import verdict

    egress, ingress = verdict.judge(known, flow.source, flow.destination, flow.port, flow.proto)
    return egress.passes and ingress.passes


def introduce(kernel: Kernel, store: Store, before: State, after: State) -> None:
    """Add the open connections of bridges that become tracked to connection tracking.

    Otherwise their next packet would count as a new connection. Raises KernelError.
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
                connections |= {connection for connection in there if _within(connection, subnets)}
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
    """Guess from the port numbers whether the client end opened the connection.

    Needed if neither end has a listener any longer. Clients usually have the higher port.
    """
    return connection.client_port > connection.server_port


def _within(connection: Connection, subnets: list[Prefix]) -> bool:
    client, server = connection.client, connection.server
    return client != server and any(
        subnet.holds(client) and subnet.holds(server) for subnet in subnets
    )
