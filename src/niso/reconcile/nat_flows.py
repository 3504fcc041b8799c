"""End flows whose NAT is not what the rules say now.

Connection tracking asks the rules for the first packet of a flow alone. A datagram that came while niso's rules were away, or
before a published port changed, has left an entry that keeps its client away for as long as it sends.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable

from niso.base.family import family_of
from niso.kernel.flows import Tracked
from niso.kernel.interface import Kernel
from niso.kernel.kinds.address import Address
from niso.kernel.kinds.element import Element
from niso.kernel.state import State
from niso.plan.records import Port

_PASSES = 8

Net = ipaddress.IPv4Network | ipaddress.IPv6Network


def clear(kernel: Kernel, want: State) -> int:
    """End the flows that have not the NAT that ``want``, which is of everything, gives them; gives how many. Raises KernelError.

    TCP that has had an answer stays: whoever answers has it. It looks until it finds none, since packets are under way.
    """
    is_stray = _judge(want, {each.partition("/")[0] for each in kernel.host_addresses()})
    ended = 0
    for _ in range(_PASSES):
        found = [flow for flow in kernel.flows() if is_stray(flow)]
        if not found:
            break
        ended += kernel.end_flows(found)
    return ended


def _judge(want: State, own: set[str]) -> Callable[[Tracked], bool]:
    """Whether a flow is one that lacks its NAT."""
    targets = _Targets(want)
    subnets = [
        ipaddress.ip_network(each.element)
        for each in want[Element]
        if each.container in ("subnets4", "subnets6")
    ]

    def is_stray(flow: Tracked) -> bool:
        if flow.proto == "tcp" and flow.answered:
            return False
        to = ipaddress.ip_address(flow.destination)
        if flow.destination in own or to.is_loopback:
            led_to = targets.of(flow)
            if not led_to:
                return False
            # the host by 127.0.0.1, and a service that reaches itself, are seen with another address
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
    """Where published ports lead."""

    def __init__(self, want: State) -> None:
        self._at: dict[tuple[str, str, int], set[str]] = {}  # host's address or "", protocol, port
        self._ranges: list[tuple[str, str, int, int, str]] = []
        for each in want[Element]:
            way, _, where = each.container.rstrip("46").partition("_")
            if way not in ("publish", "range", "local") or not each.value:
                continue
            *start, proto, ports = each.element.split(" . ")
            host = start[-1] if where == "addr" else ""
            first, _, last = ports.partition("-")
            target = each.value.partition(" . ")[0]
            if last:
                self._ranges.append((host, proto, int(first), int(last), target))
            else:
                self._at.setdefault((host, proto, int(first)), set()).add(target)

    def of(self, flow: Tracked) -> set[str]:
        """The addresses of the flow's family that its port may lead to; empty where it is not published."""
        if flow.port is None:
            return set()
        found: set[str] = set()
        for host in ("", flow.destination):
            found |= self._at.get((host, flow.proto, flow.port), set())
        found.update(
            target
            for host, proto, first, last, target in self._ranges
            if host in ("", flow.destination) and proto == flow.proto and first <= flow.port <= last
        )
        return {target for target in found if family_of(target) == family_of(flow.destination)}


def flush_changed_ports(kernel: Kernel, before: State, after: State) -> None:
    """End the flows that a change of published ports concerns, but TCP that has an answer: they follow at once.

    A datagram that was sent while a port was away has left an entry without NAT, which would keep its client away.
    """
    changed = {
        element.element
        for element in before[Element] ^ after[Element]
        if element.container.startswith(("publish_", "range_"))
    }
    if changed:
        flush_ports(kernel, (_claim(element) for element in changed))


def flush_ports(
    kernel: Kernel, claims: Iterable[tuple[str, int, int]], answered: bool = False
) -> None:
    """End the flows to (protocol, first port, last port) of this host's own addresses; TCP with an answer only if ``answered``."""
    kernel.flush_ports(claims, answered)


def end_flows(kernel: Kernel, ports: Iterable[Port]) -> None:
    """End all flows to published ports whose service is gone while the address that they led to stays."""
    claims = [(port.proto, port.host_port, port.last) for port in ports]
    if claims:
        flush_ports(kernel, claims, answered=True)


def _claim(element: str) -> tuple[str, int, int]:
    """``10.0.0.1 . tcp . 8000-8010`` -> ("tcp", 8000, 8010)."""
    *_, proto, ports = element.split(" . ")
    first, _, last = ports.partition("-")
    return proto, int(first), int(last or first)


def flush_gone_addresses(kernel: Kernel, before: State, after: State) -> None:
    """No flow of an address that is gone is left for the next one that gets it."""
    gone = {a.address.partition("/")[0] for a in before[Address] if a.netns}
    gone -= {a.address.partition("/")[0] for a in after[Address] if a.netns}
    if gone:
        kernel.flush_addresses(gone)
