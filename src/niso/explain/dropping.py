"""Explain why nftables dropped a packet."""

from __future__ import annotations

import ipaddress
import re

from niso.base.lite_typing import TYPE_CHECKING
from niso.kernel.nft_drops import Dropped
from niso.kernel.nft_sensor import REFUSE, REFUSED
from niso.kernel.nft_tables import BRIDGE, INET
from niso.plan import verdict
from niso.reconcile.world import read_world

if TYPE_CHECKING:
    from niso.kernel.interface import Kernel
    from niso.plan.known_world import World
    from niso.store.store import Store

_COMMENT = re.compile(r'comment "([^"]*)"')
_OF_POLICIES = (REFUSE, f"see_{REFUSED}")
"""The chains that drop what a policy denies; their rules only remember it."""
_COUNTER = re.compile(r"counter(?: packets \d+ bytes \d+)? ?")
_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp", 1: "icmp", 58: "icmp"}


class Dropping:
    """Explain drops by the present policies and rules.

    Reads the store again only after it changed.
    """

    def __init__(self, kernel: Kernel, store: Store) -> None:
        self._kernel, self._store = kernel, store
        self._known: tuple[int, World] | None = None

    def words(self, dropped: Dropped) -> str:
        """Return why a packet was dropped: the manifest entry, or the rule. Raises KernelError."""
        version = self._store.changes()
        if self._known is None or self._known[0] != version:
            self._known = version, read_world(self._kernel, self._store)
        return words(self._known[1], dropped)


def words(world: World, dropped: Dropped) -> str:
    """Return why a packet was dropped: the manifest entry, or the rule. Pure."""
    place = f"{dropped.table} {dropped.chain}"
    if dropped.table not in (INET, BRIDGE):
        return f"{place}: {dropped.rule or 'policy drop'}"
    if comment := _COMMENT.search(dropped.rule):
        return comment[1]
    if dropped.chain not in _OF_POLICIES and _has_condition(dropped.rule):
        return f"{place}: {dropped.rule}"
    packet = _packet(dropped.headers)
    # policies match after DNAT: a packet to a published port already has the service's own address
    for reason in verdict.judge(world, *packet):
        if not reason.passes:
            return reason.message
    decided = verdict.decide(world, *packet).dropped_by
    return decided.message if decided is not None else place


def _has_condition(rule: str) -> bool:
    """Return whether a rule drops by a condition of its own: neither policies nor the last rule.

    ``rule`` is its text as nft(8) lists it; "" is the policy of a chain.
    """
    condition = _COUNTER.sub("", rule).removesuffix("drop").strip()
    return bool(condition) and not condition.startswith("log ") and "vmap" not in condition


def _packet(headers: bytes) -> tuple[str, str, int | None, str]:
    """Parse a packet that begins with its IP header: source, destination, port and protocol."""
    if headers[0] >> 4 == 4:
        size, number, ends = (headers[0] & 15) * 4, headers[9], (headers[12:16], headers[16:20])
    else:
        size, number, ends = 40, headers[6], (headers[8:24], headers[24:40])
    source, destination = (str(ipaddress.ip_address(end)) for end in ends)
    proto = _PROTOCOLS.get(number, str(number))
    port = headers[size + 2 : size + 4]
    if proto not in verdict.PORTED or len(port) < 2:
        return source, destination, None, proto if proto not in verdict.PORTED else "icmp"
    return source, destination, int.from_bytes(port, "big"), proto
