"""Capture the packets from and to some addresses that any nftables rule drops.

Nothing in existing tables is changed: separate tables (`niso.kernel.nft_trace`) mark packets that
belong to no established connection, and the kernel reports the path of each. A packet whose path
ends in a drop is returned with its headers, the only part of it that the kernel reports.
"""

from __future__ import annotations

import os
import socket

from niso.base.addresses import family_of
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel.nft_bridge import ABSENT
from niso.kernel.nft_trace import PREFIX, Trace

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from niso.kernel.nft_trace import Step

MOST_A_SECOND = 500
"""The most packets that each rule marks a second; further packets are not seen."""
_BUFFER = 4 << 20
_MOST_WAYS = 4096
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h


class Dropped(NamedTuple):
    """A dropped packet, and the rule that dropped it; ``rule`` is "" for a chain's policy.

    ``headers`` begin with the IP header. ``length`` is that of the whole packet.
    """

    table: str
    chain: str
    rule: str
    headers: bytes
    length: int


class Drops(Trace):
    """Capture the dropped packets of some services. A context manager. Raises KernelError.

    ``addresses`` are those of the services, ``ends`` the host ends of their veth pairs, ``bridges``
    the bridges of all networks.
    """

    def __init__(
        self, addresses: Collection[str], ends: Collection[str], bridges: Collection[str]
    ) -> None:
        super().__init__(marking(addresses, ends, bridges))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        self._headers: dict[int, tuple[bytes, bytes]] = {}

    def fileno(self) -> int:
        return self._socket.fileno()

    def dropped(self) -> list[Dropped]:
        """Wait for trace messages of the kernel, and return the packets that were dropped."""
        return self.among(self.read())

    def among(self, steps: Iterable[Step]) -> list[Dropped]:
        """Return the packets whose path ends with a drop in one of these steps."""
        dropped = []
        for step in steps:
            if step.network:
                self._headers[step.id] = step.network, step.transport
            if step.verdict == "drop" and step.id in self._headers:
                network, transport = self._headers.pop(step.id)
                rule = step.rule if step.kind == "rule" else ""
                dropped.append(Dropped(step.table, step.chain, rule, *_packet(network, transport)))
        while len(self._headers) > _MOST_WAYS:  # trace steps of packets that passed
            del self._headers[next(iter(self._headers))]
        return dropped


def _packet(network: bytes, transport: bytes) -> tuple[bytes, int]:
    """Return the complete headers, and the length of the packet."""
    if network[0] >> 4 == 4:
        size = (network[0] & 15) * 4
        length = int.from_bytes(network[2:4], "big")
    else:
        size = 40
        length = 40 + int.from_bytes(network[4:6], "big")
        # the kernel omits extension headers (RFC 8200)
        if len(network) == 40 and network[6] in (0, 43, 44, 60, 51):
            transport = b""
    return network + (transport if len(network) == size else b""), length


def marking(addresses: Collection[str], ends: Collection[str], bridges: Collection[str]) -> str:
    """Return the tables that mark packets of these addresses, in nft(8) syntax."""
    limit = f"limit rate {MOST_A_SECOND}/second burst {MOST_A_SECOND} packets meta nftrace set 1"
    into, either, foreign = [], [], []
    for family, word in ((4, "ip"), (6, "ip6")):
        own = ", ".join(a for a in addresses if family_of(a) == family)
        if not own:
            continue
        outside = f"iifname != {{ {', '.join(bridges)} }} " if bridges else ""
        into.append(f"{outside}{word} daddr {{ {own} }} {limit}")
        # the bridge table has already marked what raw refuses
        into.append(f"meta mark & {ABSENT} != 0 {word} saddr {{ {own} }} {limit}")
        for side in ("saddr", "daddr"):
            either.append(
                f"ct state != {{ established, related }} {word} {side} {{ {own} }} {limit}"
            )
        if ends:
            foreign.append(f"iifname {{ {', '.join(ends)} }} {word} saddr != {{ {own} }} {limit}")
    name = f"{PREFIX}{os.getpid()}_drops"
    # raw drops packets from outside to a service's address; the other rules need the destination
    # after DNAT
    chains = {
        ("inet", "prerouting", -450): into,
        ("inet", "input", -150): either,
        ("inet", "forward", -150): either,
        ("inet", "output", -150): either,
        ("bridge", "prerouting", -450): foreign,
    }
    return "\n".join(
        f"table {family} {name} {{ flags owner; chain {hook} {{"
        f" type filter hook {hook} priority {priority}; {'; '.join(rules)}; }}; }}"
        for (family, hook, priority), rules in chains.items()
        if rules
    )
