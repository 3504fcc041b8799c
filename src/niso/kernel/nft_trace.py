"""Trace packets through all nftables hooks, including those of other programs (nft(8), nftrace).

Tables with the flag ``owner`` mark the packets. The kernel deletes them with the socket that
created them, also if this process is killed.
"""

from __future__ import annotations

import errno
import os
import re
import select
import struct
import time

from niso.base.addresses import family_of
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.kernel import netlink
from niso.kernel.libnftables import Nft
from niso.kernel.netlink import attributes, refused, string, understood

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

PREFIX = "niso_live_"
"""The prefix of the names of the tables; the process id follows."""

_TRACE = 0x0A11  # NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_TRACE
_GROUP, _SOL_NETLINK, _ADD_MEMBERSHIP = 9, 270, 1  # NFNLGRP_NFTRACE
_TABLE, _CHAIN, _HANDLE, _TYPE, _VERDICT, _ID = 1, 2, 3, 4, 5, 6
_NETWORK, _TRANSPORT, _POLICY = 8, 9, 16
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_KINDS = {1: "policy", 2: "return", 3: "rule"}  # NFT_TRACETYPE_*
_VERDICTS = {0: "drop", 1: "accept", -1: "continue", -3: "jump", -4: "goto", -5: "return"}
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_HANDLE_TEXT = re.compile(r"^\s+(.*) # handle (\d+)$")
_QUIET_S = 0.3  # after this silence, the path of a packet is complete


class Step(NamedTuple):
    """One event of a packet in one chain: a rule matched, or the chain's policy decided.

    ``table`` is like "inet niso", ``verdict`` like "accept" or "goto refuse", ``rule`` the text of
    the rule, "" for a policy. ``network`` and ``transport`` are the first bytes of the packet's
    headers (at most 40 and 20), empty where the kernel did not repeat them.
    """

    id: int
    table: str
    chain: str
    kind: str
    verdict: str
    rule: str
    network: bytes
    transport: bytes

    @property
    def source_port(self) -> int | None:
        """Return the sender's port; None without the headers, or if they have no port."""
        return int.from_bytes(self.transport[:2], "big") if len(self.transport) >= 4 else None

    @property
    def version(self) -> int | None:
        """Return the IP version; None without the headers."""
        return self.network[0] >> 4 if self.network else None

    def is_of_packet(self, other: Step) -> bool:
        """Return whether both steps have headers, and of the same packet before source NAT."""
        return self._sent != b"" and self._sent == other._sent

    @property
    def _sent(self) -> bytes:
        """Return the bytes that only the sender sets: the source, and what numbers its packets.

        The destination, and so checksums, may be translated on the way.
        """
        of_packet = self.transport[:2] + self.transport[4:6]  # a port or type; length, sequence, id
        if self.version == 4 and len(self.network) >= 20:
            return self.network[4:6] + self.network[9:10] + self.network[12:16] + of_packet
        if self.version == 6 and len(self.network) >= 24:
            return self.network[6:7] + self.network[8:24] + of_packet
        return b""


class Packet(NamedTuple):
    """Selects the packets to mark. ``starts``: only those that begin a TCP connection."""

    source: str
    destination: str
    port: int | None
    proto: str
    starts: bool = True


class Trace(netlink.Netlink):
    """Trace packets from its creation on. A context manager. Raises KernelError.

    ``tables`` is the text of the tables that mark the packets (nft(8)). ``missed`` says whether the
    kernel had to skip messages.
    """

    def __init__(self, tables: str) -> None:
        super().__init__(netlink.NETFILTER)
        self._nft = Nft()
        self.missed = False
        try:
            self._rules = self._read_rules()
            self._socket.bind((0, 0))  # the kernel sends nothing to port 0, its own
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP)
            self._nft.run(tables)
        except OSError as error:
            self.close()
            raise refused("follow packets", error.errno or 0) from error
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def close(self) -> None:
        self._nft.close()
        super().close()

    def first(self, seconds: float) -> list[Step]:
        """Wait for one packet and return its path; empty if none came in ``seconds``.

        Where a bridge passes the packet up to the host, the kernel changes its trace id, because
        the id depends on the ingress link (trace_fill_id, net/netfilter/nf_tables_trace.c).
        """
        steps: list[Step] = []
        ids: set[int] = set()
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if not select.select([self._socket], [], [], left)[0]:
                break
            for step in self.read():
                if not steps or step.id in ids or step.is_of_packet(steps[0]):
                    ids.add(step.id)
                    steps.append(step)
                    end = time.monotonic() + _QUIET_S
        return steps

    def read(self) -> list[Step]:
        """Wait for trace messages of the kernel, and return their steps."""
        try:
            replies = self._receive()
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise refused("follow packets", error.errno or 0) from error
            self.missed = True
            return []
        bodies = [reply.body for reply in replies if reply.kind == _TRACE]
        return [understood("follow packets", self._parse, body) for body in bodies]

    def _parse(self, body: bytes) -> Step:
        fields = attributes(body, 4)
        table = f"{_FAMILIES.get(body[0], str(body[0]))} {string(fields[_TABLE])}"
        handle = int.from_bytes(fields.get(_HANDLE, b""), "big")
        verdict = attributes(fields.get(_VERDICT, b""))
        code = fields.get(_POLICY, verdict.get(_VERDICT_CODE, struct.pack(">i", -1)))
        word = _VERDICTS.get(struct.unpack(">i", code)[0], "queue")
        chain = string(fields[_CHAIN])
        return Step(
            int.from_bytes(fields[_ID], "big"),
            table,
            chain,
            _KINDS.get(int.from_bytes(fields[_TYPE], "big"), ""),
            f"{word} {string(verdict.get(_VERDICT_CHAIN, b''))}".strip(),
            self._rules.get((table, chain, handle), "") if handle else "",
            fields.get(_NETWORK, b""),
            fields.get(_TRANSPORT, b""),
        )

    def _read_rules(self) -> dict[tuple[str, str, int], str]:
        """Return the text of each rule by table, chain and handle."""
        rules = {}
        table = chain = ""
        for line in self._nft.outline().splitlines():
            if line.startswith("table "):
                table = line.removeprefix("table ").partition(" {")[0]
            elif line.startswith("\tchain "):
                chain = line.removeprefix("\tchain ").partition(" {")[0]
            elif match := _HANDLE_TEXT.match(line):
                rules[table, chain, int(match[2])] = match[1]
        return rules


def _rule(packet: Packet) -> str:
    """Return the rule that marks one packet a second."""
    word = "ip6" if family_of(packet.destination) == 6 else "ip"
    match = f"{word} saddr {packet.source} {word} daddr {packet.destination}"
    if packet.port is not None:
        match += f" {packet.proto} dport {packet.port}"
        if packet.proto == "tcp" and packet.starts:
            match += " tcp flags & (syn | ack) == syn"
    else:
        match += f" meta l4proto {'ipv6-icmp' if word == 'ip6' else 'icmp'}"
    return f"{match} limit rate 1/second burst 1 packets meta nftrace set 1"


def marking(packets: Iterable[Packet]) -> str:
    """Return the tables that mark these packets, in nft(8) syntax."""
    rules = "; ".join(map(_rule, packets))
    name = f"{PREFIX}{os.getpid()}"
    chains = {
        "inet": ("prerouting", "output"),
        "bridge": ("prerouting",),
    }
    return "\n".join(
        f"table {family} {name} {{ flags owner;"
        + "".join(
            f" chain {hook} {{ type filter hook {hook} priority -450; {rules}; }};"
            for hook in hooks
        )
        + " }"
        for family, hooks in chains.items()
    )
