"""End flows whose NAT does not match the current rules.

Connection tracking consults NAT rules only for the first packet of a flow. A datagram that arrived
while niso's rules were missing, or before a published port changed, leaves an entry without the
right NAT. The entry misroutes its client for as long as the client sends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from niso.base.addresses import family_of
from niso.base.lite_typing import TYPE_CHECKING
from niso.kernel.kinds.element import Element
from niso.kernel.state import State
from niso.plan.records import Port

if TYPE_CHECKING:
    import ipaddress

    from niso.kernel.flows import Tracked
    from niso.kernel.interface import Kernel

    Net = ipaddress.IPv4Network | ipaddress.IPv6Network

_PASSES = 8
NO_STATE = State()


def clear(kernel: Kernel, want: State) -> int:
    """End the flows whose NAT differs from ``want``, the complete desired state.

    Returns the number of ended flows. Answered TCP flows stay: they belong to the host that
    answers. Repeats until no such flow is left, since packets under way may create new ones. Raises
    KernelError.
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
    """Return a predicate for flows that lack their NAT, or that occupy a published port."""
    import ipaddress  # imported late: needed only after the tables were lost

    targets = _Targets(want)
    subnets = [
        ipaddress.ip_network(element.element)
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
    import ipaddress

    packed = ipaddress.ip_address(address)
    return any(packed in subnet for subnet in subnets)


class _Targets:
    """Map published ports to their target addresses."""

    def __init__(self, want: State) -> None:
        self._at: dict[tuple[str, str, int], set[str]] = {}  # host's address or "", protocol, port
        self._ranges: list[tuple[str, str, int, int, str]] = []
        for element in want[Element]:
            way, _, where = element.container.rstrip("46").partition("_")
            if way not in ("publish", "range", "local") or not element.value:
                continue
            *start, proto, ports = element.element.split(" . ")
            host = start[-1] if where == "addr" else ""
            first, _, last = ports.partition("-")
            target = element.value.partition(" . ")[0]
            if last:
                self._ranges.append((host, proto, int(first), int(last), target))
            else:
                self._at.setdefault((host, proto, int(first)), set()).add(target)

    def of(self, proto: str, address: str, port: int | None) -> set[str]:
        """Return the target addresses, of the same family, of a published port of the host.

        Empty if the port is not published.
        """
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
    """End the flows of changed published ports, and of those in ``doubt``, except answered TCP.

    A datagram that was sent while a port was missing leaves an entry without NAT, which would
    misroute its client. An open TCP connection outlives its port.
    """
    changed = {
        element.element
        for element in (before[Element] ^ after[Element]) | doubt[Element]
        if element.container.startswith(("publish_", "range_"))
    }
    if changed:
        flush_ports(kernel, (_claim(element) for element in changed))


def flush_ports(
    kernel: Kernel, claims: Iterable[tuple[str, int, int]], answered: bool = False
) -> None:
    """End the flows to ports of this host's own addresses. A port is (protocol, first, last).

    Answered TCP flows end only if ``answered``.
    """
    kernel.flush_ports(claims, answered)


def end_flows(kernel: Kernel, ports: Iterable[Port]) -> None:
    """End all flows to published ports whose service ends while their target address stays."""
    claims = [(port.proto, port.host_port, port.last) for port in ports]
    if claims:
        flush_ports(kernel, claims, answered=True)


def _claim(element: str) -> tuple[str, int, int]:
    """Parse ``10.0.0.1 . tcp . 8000-8010`` to ("tcp", 8000, 8010)."""
    *_, proto, ports = element.split(" . ")
    first, _, last = ports.partition("-")
    return proto, int(first), int(last or first)
