"""Policies of running services: what the engine judges them by, and what a change of one does to open connections."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from niso.base import names
from niso.base.lite_typing import TYPE_CHECKING
from niso.kernel import nft_tables
from niso.kernel.interface import Kernel
from niso.kernel.kinds.bridge import Bridge
from niso.kernel.kinds.element import Element
from niso.kernel.state import State
from niso.plan.policy_maps import PASSES
from niso.reconcile.world import read_world
from niso.store.store import Store

if TYPE_CHECKING:
    from niso.kernel.flows import Flow
    from niso.kernel.sockdiag import Connection
    from niso.plan.verdict import World

_BRIDGED = {
    False: "net/bridge/bridge-nf-call-iptables",
    True: "net/bridge/bridge-nf-call-ip6tables",
}
_PASSES = 8


def narrows(before: State, after: State) -> bool:
    """Whether a change may deny what was allowed: something that let pass is gone, or something that does not is new."""
    was, now = _said(before), _said(after)
    return any(value == PASSES for _, value in was - now) or any(
        value != PASSES for _, value in now - was
    )


def _said(state: State) -> set[tuple[tuple[str, ...], str]]:
    """What policies say, whichever line of a manifest says it."""
    return {
        (each.key(), each.value) for each in state[Element] if each.container in nft_tables.POLICIES
    }


def cut(kernel: Kernel, store: Store, services: Iterable[str]) -> int:
    """End the open flows of these services that policies deny now, and only those; gives how many.

    It looks until it finds none: what was under way when the rules changed may have made new ones. Raises KernelError.
    """
    addresses = [address for name in services for _, address in store.addresses(name)]
    known: World | None = None
    ended = 0
    for _ in range(_PASSES):
        found = kernel.flows_of(addresses)
        if found and known is None:
            known = read_world(kernel, store)
        denied = [flow for flow in found if known is not None and not _allowed(known, flow)]
        if not denied:
            break
        ended += kernel.end_flows(denied)
    return ended


def _allowed(known: World, flow: Flow) -> bool:
    """Whether both ends' policies let a flow be; which ways there are is not asked again: open TCP outlives its port."""
    from niso.plan import verdict

    egress, ingress = verdict.judge(known, flow.source, flow.destination, flow.port, flow.proto)
    return egress.passes and ingress.passes


def introduce(kernel: Kernel, store: Store, before: State, after: State) -> None:
    """Make the open connections on bridges whose frames are about to be tracked known, so that they are no new ones.

    Raises KernelError.
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
    found: set[Connection] = set()
    for network in networks:
        subnets = [
            ipaddress.ip_network(subnet.cidr)
            for subnet in network.subnets
            if (network.bridge, subnet.family == 6) in turned
        ]
        for service, active in store.members(network.name):
            if active:
                there = kernel.connections_in(names.netns(service))
                found |= {each for each in there if _within(each, subnets)}
    kernel.add_flows(
        sorted(each for each in found if _reversed(each) not in found or _by_ports(each))
    )


def _reversed(connection: Connection) -> Connection:
    return type(connection)(
        connection.server, connection.server_port, connection.client, connection.client_port
    )


def _by_ports(connection: Connection) -> bool:
    """Who began it, where both ends seem to be the client's since nobody listens any more: ports for clients are high ones."""
    return connection.client_port > connection.server_port


def _within(
    connection: Connection, subnets: list[ipaddress.IPv4Network | ipaddress.IPv6Network]
) -> bool:
    client, server = (
        ipaddress.ip_address(connection.client),
        ipaddress.ip_address(connection.server),
    )
    return client != server and any(client in subnet and server in subnet for subnet in subnets)
