"""Read the packets that nftables rules log, trace or drop.

Logged packets: rules log packets to a group (linux/netfilter/nfnetlink_log.h). At most one process
can read a group. Packets that are logged while no process reads the group are lost, because the
kernel does not store them.

Traced packets: the kernel reports the path of a packet through the nftables chains of all hooks and
all programs (nft(8), nftrace). Rules in temporary tables mark the packets to trace. These tables
have the flag ``owner``: the kernel deletes them when the socket that created them is closed, also
if niso is killed.

Dropped packets: temporary tables trace the packets from and to some addresses, except packets of
established connections. If any nftables rule drops a traced packet, its headers are returned. The
kernel reports no more of a traced packet.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import socket
import struct
import time

from niso.base.errors import Conflict, KernelError
from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.names import family_of, unpacked
from niso.kernel import netlink
from niso.kernel.libnftables import Nft
from niso.kernel.netlink import Message, attribute, attributes, parse_reply, string
from niso.kernel.ruleset import ABSENT, TEMPORARY

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from typing import Self


# --- logged packets -------------------------------------------------------------------------------

_PACKET, _CONFIG = 0x0400, 0x0401  # NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_*
_CFG_CMD, _CFG_MODE, _CFG_QTHRESH = 1, 2, 5
_BIND = b"\1"  # NFULNL_CFG_CMD_BIND
_COPY_PACKET = 2
_COPIED = 256  # bytes of each packet: the headers
_TIMESTAMP, _INDEV, _OUTDEV, _PHYSINDEV, _PAYLOAD, _PREFIX = 3, 4, 5, 6, 9, 10
_END_OF_TIME = 1 << 37  # seconds since 1970; datetime cannot hold later ones
_RECEIVE_BYTES = 1 << 20
_BOUND = "/proc/net/netfilter/nfnetlink_log"
_PROTOCOLS = {1: "icmp", 58: "icmp", 6: "tcp", 17: "udp", 132: "sctp"}
_EXTENSIONS = {0, 43, 60, 135}  # IPv6 headers with their length in the second byte (RFC 8200, 4)
_FRAGMENT = 44


class Logged(NamedTuple):
    """A packet that an nftables rule has logged."""

    time: float  # in seconds since 1970
    prefix: str  # the log prefix of the rule
    link: str  # the network interface, or port of a bridge, by which the packet came
    source: str
    destination: str
    port: int | None  # the destination port
    proto: str  # a number if the protocol has no name here


class Nflog(netlink.Netlink):
    """A context manager that reads the packets that rules log to a group, in the caller's network
    namespace. Raises Conflict if another process reads the group, and KernelError without the
    kernel module nfnetlink_log.
    """

    def __init__(self, group: int) -> None:
        super().__init__(netlink.NETFILTER)
        self._group = group
        try:
            self.enlarge_buffer(_RECEIVE_BYTES)
            self._bind()
        except BaseException:
            self.close()
            raise

    def read(self) -> list[Logged] | None:
        """Wait for logged packets and return them, or None if the kernel had to skip packets."""
        what = "read logged packets"
        replies = self.notices(what)
        if replies is None:
            return None
        logged = (parse_reply(what, _parse, body) for kind, *_, body in replies if kind == _PACKET)
        return [packet for packet in logged if packet is not None]

    def _bind(self) -> None:
        start = struct.pack("!BBH", socket.AF_UNSPEC, 0, self._group)  # struct nfgenmsg
        what = f"read packets logged to group {self._group}"
        mode = struct.pack("!IBx", _COPIED, _COPY_PACKET)  # struct nfulnl_msg_config_mode
        at_once = attribute(_CFG_QTHRESH, struct.pack("!I", 1))
        try:
            self.transact(Message(what, _CONFIG, 0, start + attribute(_CFG_CMD, _BIND)))
            self.transact(Message(what, _CONFIG, 0, start + attribute(_CFG_MODE, mode) + at_once))
        except KernelError as error:
            # a group bound by another socket answers EPERM (nfulnl_recv_config)
            if error.errno in (errno.EPERM, errno.EBUSY) and (holder := _holder(self._group)):
                raise Conflict(
                    f"{holder} already reads the dropped packets (nflog group {self._group}),"
                    " and the kernel allows one reader",
                    "stop that one first, or read its output",
                ) from None
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT):
                raise KernelError(
                    "this kernel lacks nfnetlink_log, which is needed to read dropped packets",
                    "modprobe nfnetlink_log, or install the full set of kernel modules",
                    error.errno,
                ) from None
            raise


def _holder(group: int) -> str:
    """Describe the process that reads a log group, or return "". The port of a netlink socket is
    usually the pid of its process (netlink(7)).
    """
    with contextlib.suppress(OSError), open(_BOUND, encoding="ascii") as file:
        for line in file:
            if line.split()[:1] == [str(group)]:
                pid = line.split()[1]
                known = os.path.exists(f"/proc/{pid}")
                return f"another process (pid {pid})" if known else "another process"
    return ""


def _parse(body: bytes) -> Logged | None:
    fields = attributes(body, 4)
    ends = _ends(fields.get(_PAYLOAD, b""))
    if ends is None:
        return None
    stamp = fields.get(_TIMESTAMP)
    seconds, micros = struct.unpack("!QQ", stamp) if stamp else (0, 0)
    # the sender may have set the time of departure (SO_TXTIME)
    if seconds >= _END_OF_TIME or micros >= 1_000_000:
        seconds = 0
    index = next((fields[kind] for kind in (_PHYSINDEV, _INDEV, _OUTDEV) if kind in fields), b"")
    return Logged(
        seconds + micros / 1e6 if seconds else time.time(),
        string(fields.get(_PREFIX, b"")),
        _link(index),
        *ends,
    )


def _link(index: bytes) -> str:
    number = int.from_bytes(index, "big")
    with contextlib.suppress(OSError):  # the process has ended
        return socket.if_indextoname(number)
    return f"link {number}"


def _ends(packet: bytes) -> tuple[str, str, int | None, str] | None:
    """Parse an IP packet into (source, destination, destination port, protocol). Returns None if it
    is not an IP packet. The packet may be truncated. The port is None if the packet has no port.
    """
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        source, destination = unpacked(packet[12:16]), unpacked(packet[16:20])
        first = not int.from_bytes(packet[6:8], "big") & 0x1FFF
        number, offset = packet[9], (packet[0] & 15) * 4
    elif version == 6 and len(packet) >= 40:
        source, destination = (
            socket.inet_ntop(socket.AF_INET6, packet[at : at + 16]) for at in (8, 24)
        )
        number, offset, first = _upper(packet)
    else:
        return None
    proto = _PROTOCOLS.get(number, str(number))
    has_port = proto in ("tcp", "udp", "sctp") and first and len(packet) >= offset + 4
    port = int.from_bytes(packet[offset + 2 : offset + 4], "big") if has_port else None
    return source, destination, port, proto


def _upper(packet: bytes) -> tuple[int, int, bool]:
    # returns (protocol, offset, whether the payload begins in this packet): no for a later fragment
    number, offset, first = packet[6], 40, True
    while offset + 8 <= len(packet):
        if number == _FRAGMENT:
            first = first and not int.from_bytes(packet[offset + 2 : offset + 4], "big") & 0xFFF8
            number, offset = packet[offset], offset + 8
        elif number in _EXTENSIONS:
            number, offset = packet[offset], offset + 8 * (packet[offset + 1] + 1)
        else:
            break
    return number, offset, first


# --- traced packets -------------------------------------------------------------------------------

_TRACE = 0x0A11  # NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_TRACE
_GROUP = 9  # NFNLGRP_NFTRACE
_TRACE_BYTES = 4 << 20
_TABLE, _CHAIN, _HANDLE, _TYPE, _VERDICT, _ID = 1, 2, 3, 4, 5, 6
_NETWORK, _TRANSPORT, _POLICY = 8, 9, 16
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_KINDS = {1: "policy", 2: "return", 3: "rule"}  # NFT_TRACETYPE_*
_VERDICTS = {0: "drop", 1: "accept", -1: "continue", -3: "jump", -4: "goto", -5: "return"}
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_HANDLE_TEXT = r"^\s+(.*) # handle (\d+)$"
_QUIET_S = 0.3  # after this silence, the path of a packet is complete


class TraceStep(NamedTuple):
    """One event on the path of a traced packet: a rule of a chain matched, or the chain's policy
    decided. ``network`` has up to 40 bytes of the packet's IP header. ``transport`` has up to 20
    bytes of its TCP, UDP or ICMP header. Both are empty except in the first event at each hook.
    """

    id: int  # the kernel's trace id of the packet
    table: str  # such as "inet niso"
    chain: str
    kind: str
    verdict: str  # such as "accept" or "goto refuse"
    rule: str  # the text of the rule; "" for a policy
    network: bytes
    transport: bytes

    @property
    def source_port(self) -> int | None:
        return int.from_bytes(self.transport[:2], "big") if len(self.transport) >= 4 else None

    @property
    def version(self) -> int | None:
        return self.network[0] >> 4 if self.network else None

    def is_of_packet(self, other: TraceStep) -> bool:
        """Return whether both steps are about the same packet. The packet is recognised after
        destination NAT between the steps, but not after source NAT.
        """
        return self._sent != b"" and self._sent == other._sent

    @property
    def _sent(self) -> bytes:
        """Return the bytes of the headers that identify the packet, such as source and sequence
        number. Destination and checksums are left out, because DNAT changes them.
        """
        of_packet = self.transport[:2] + self.transport[4:6]  # a port or type; length, sequence, id
        if self.version == 4 and len(self.network) >= 20:
            return self.network[4:6] + self.network[9:10] + self.network[12:16] + of_packet
        if self.version == 6 and len(self.network) >= 24:
            return self.network[6:7] + self.network[8:24] + of_packet
        return b""


class Trace(netlink.Netlink):
    """A context manager that traces packets. ``tables`` define temporary nftables tables that mark
    the packets to trace: the result of `trace_rules` or `drop_rules`. Raises KernelError.
    """

    def __init__(self, tables: str) -> None:
        super().__init__(netlink.NETFILTER)
        self._nft = Nft()
        self._headers: dict[int, tuple[bytes, bytes]] = {}
        try:
            self._rules = self._read_rules()
            with netlink.refusing("follow packets"):
                self.enlarge_buffer(_TRACE_BYTES)
                self.listen(_GROUP)
            self._nft.run(tables)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def close(self) -> None:
        self._nft.close()
        super().close()

    def first(self, seconds: float) -> list[TraceStep]:
        """Wait at most ``seconds`` for a traced packet, and return the steps of its path. Returns
        an empty list if no packet comes in time.

        When a bridge passes the packet up to the host, the kernel changes the packet's trace id.
        The id depends on the network interface through which the packet came (trace_fill_id,
        net/netfilter/nf_tables_trace.c). Steps with the new id are recognised by the packet's
        headers.
        """
        steps: list[TraceStep] = []
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

    def read(self) -> list[TraceStep]:
        what = "follow packets"
        replies = self.notices(what) or ()
        return [
            parse_reply(what, self._parse, body) for kind, *_, body in replies if kind == _TRACE
        ]

    def dropped(self) -> list[Dropped]:
        dropped = []
        for step in self.read():
            if step.network:
                self._headers[step.id] = step.network, step.transport
            if step.verdict == "drop" and step.id in self._headers:
                rule = step.rule if step.kind == "rule" else ""
                packet = _packet(*self._headers.pop(step.id))
                dropped.append(Dropped(step.table, step.chain, rule, *packet))
        while len(self._headers) > _MOST_WAYS:  # trace steps of packets that passed
            del self._headers[next(iter(self._headers))]
        return dropped

    def _parse(self, body: bytes) -> TraceStep:
        fields = attributes(body, 4)
        table = f"{_FAMILIES.get(body[0], str(body[0]))} {string(fields[_TABLE])}"
        handle = int.from_bytes(fields.get(_HANDLE, b""), "big")
        verdict = attributes(fields.get(_VERDICT, b""))
        code = fields.get(_POLICY, verdict.get(_VERDICT_CODE, struct.pack(">i", -1)))
        word = _VERDICTS.get(struct.unpack(">i", code)[0], "queue")
        chain = string(fields[_CHAIN])
        return TraceStep(
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
        rules: dict[tuple[str, str, int], str] = {}
        table = chain = ""
        for line in self._nft.outline().splitlines():
            if line.startswith("table "):
                table = line.removeprefix("table ").partition(" {")[0]
            elif line.startswith("\tchain "):
                chain = line.removeprefix("\tchain ").partition(" {")[0]
            elif match := re.match(_HANDLE_TEXT, line):
                rules[table, chain, int(match[2])] = match[1]
        return rules


def _rule(
    source: str, destination: str, port: int | None, proto: str, starts: bool, family: int
) -> str:
    """Return the rule that marks packets. As source or destination, "" means the host."""
    word = "ip6" if family == 6 else "ip"
    match = " ".join(
        f"{word} {side} {address}" if address else f"meta nfproto ipv{family} fib {side} type local"
        for side, address in (("saddr", source), ("daddr", destination))
    )
    if port is not None:
        match += f" {proto} dport {port}"
        if proto == "tcp" and starts:
            match += " tcp flags & (syn | ack) == syn"
    else:
        match += f" meta l4proto {'ipv6-icmp' if word == 'ip6' else 'icmp'}"
    return f"{match} limit rate 1/second burst 1 packets meta nftrace set 1"


def trace_rules(
    ends: Iterable[tuple[str, str]],
    port: int | None,
    proto: str,
    starts: bool,
    published: Iterable[tuple[int, str, int]],
) -> str:
    """Return temporary nftables tables that mark packets for tracing, in nft(8) syntax. ``ends``
    are pairs (source, destination). If ``port`` is None, ICMP packets are marked. With ``starts``,
    only TCP packets that open a connection are marked. ``published`` are (IP version, source, host
    port): packets from this source to this port, on any address of the host, are marked too. The
    source "" is the host itself.
    """
    rules = [_rule(*pair, port, proto, starts, family_of(pair[1])) for pair in ends]
    # the bridge family has no fib expression
    own = [_rule(source, "", at, proto, starts, family) for family, source, at in published]
    name = f"{TEMPORARY}{os.getpid()}"
    chains = {"inet": ("prerouting", "output"), "bridge": ("prerouting",)}
    return "\n".join(
        f"table {family} {name} {{ flags owner;"
        + "".join(
            f" chain {hook} {{ type filter hook {hook} priority -450;"
            f" {'; '.join([*rules, *(own if family == 'inet' else [])])}; }};"
            for hook in hooks
        )
        + " }"
        for family, hooks in chains.items()
    )


# --- dropped packets ------------------------------------------------------------------------------

MOST_A_SECOND = 500
"""The maximum number of packets that each rule marks in a second. Further packets are not seen."""
_MOST_WAYS = 4096


class Dropped(NamedTuple):
    """A dropped packet and the rule that dropped it. ``length`` is the packet's full length."""

    table: str
    chain: str
    rule: str  # the text of the rule; "" for a chain's policy
    headers: bytes  # the start of the packet, from the IP header on
    length: int  # the full length of the packet in bytes


def _packet(network: bytes, transport: bytes) -> tuple[bytes, int]:
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


def drop_rules(addresses: Collection[str], ends: Collection[str], bridges: Collection[str]) -> str:
    """Return temporary nftables tables that mark packets of some services for tracing, in nft(8)
    syntax. ``addresses`` are the services' addresses, ``ends`` the host's ends of their veth pairs,
    and ``bridges`` the bridges of all networks. `Trace` returns the marked packets that are
    dropped.
    """
    limit = f"limit rate {MOST_A_SECOND}/second burst {MOST_A_SECOND} packets meta nftrace set 1"
    into, either, foreign = [], [], []
    for family, word in ((4, "ip"), (6, "ip6")):
        own = ", ".join(a for a in addresses if family_of(a) == family)
        if not own:
            continue
        outside = f"iifname != {{ {', '.join(bridges)} }} " if bridges else ""
        into.append(f"{outside}{word} daddr {{ {own} }} {limit}")
        # raw evaluates the sender's policy before the bridge copies the frame
        into.append(f"meta pkttype {{ broadcast, multicast }} {word} saddr {{ {own} }} {limit}")
        # the bridge table has already marked what raw refuses
        into.append(f"meta mark & {ABSENT} != 0 {word} saddr {{ {own} }} {limit}")
        either += [
            f"ct state != {{ established, related }} {word} {side} {{ {own} }} {limit}"
            for side in ("saddr", "daddr")
        ]
        if ends:
            foreign.append(f"iifname {{ {', '.join(ends)} }} {word} saddr != {{ {own} }} {limit}")
    name = f"{TEMPORARY}{os.getpid()}_drops"
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
