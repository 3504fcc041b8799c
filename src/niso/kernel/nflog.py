"""Read packets that nftables rules log to a group (linux/netfilter/nfnetlink_log.h).

The kernel stores nothing: packets of a group without a reader are lost. A group has one reader.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time

from niso.base.errors import Conflict, KernelError
from niso.base.lite_typing import NamedTuple
from niso.kernel import netlink
from niso.kernel.netlink import Message, attribute, attributes, refused, string, understood

_PACKET, _CONFIG = 0x0400, 0x0401  # NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_*
_CFG_CMD, _CFG_MODE, _CFG_QTHRESH = 1, 2, 5
_BIND = b"\1"  # NFULNL_CFG_CMD_BIND
_COPY_PACKET = 2
_COPIED = 256  # bytes of each packet: the headers
_TIMESTAMP, _INDEV, _OUTDEV, _PHYSINDEV, _PAYLOAD, _PREFIX = 3, 4, 5, 6, 9, 10
_END_OF_TIME = 1 << 37  # seconds since 1970; datetime cannot hold later ones
_RECEIVE_BYTES = 1 << 20
_SO_RCVBUFFORCE = 33
_BOUND = "/proc/net/netfilter/nfnetlink_log"
_PROTOCOLS = {1: "icmp", 58: "icmp", 6: "tcp", 17: "udp", 132: "sctp"}
_EXTENSIONS = {0, 43, 60, 135}  # IPv6 headers with their length in the second byte (RFC 8200, 4)
_FRAGMENT = 44


class Logged(NamedTuple):
    """A logged packet: time (seconds since 1970), prefix of the rule, ingress link and addresses.

    On a bridge, the link is the bridge port. ``port`` is the destination port, None if there is
    none. ``proto`` is a name, or a number if the name is unknown here.
    """

    time: float
    prefix: str
    link: str
    source: str
    destination: str
    port: int | None
    proto: str


class Nflog(netlink.Netlink):
    """Read the packets logged to ``group`` in the caller's network namespace. A context manager.

    Raises Conflict if another process reads the group, KernelError if the kernel lacks the module.
    """

    def __init__(self, group: int) -> None:
        super().__init__(netlink.NETFILTER)
        self._group = group
        try:
            with contextlib.suppress(PermissionError):
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BYTES)
            self._bind()
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> list[Logged] | None:
        """Wait for packets and return them; None if some were lost because reading was too slow."""
        try:
            replies = self._receive()
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                return None
            raise refused("read logged packets", error.errno or 0) from error
        packets = [reply.body for reply in replies if reply.kind == _PACKET]
        logged = (understood("read logged packets", _parse, body) for body in packets)
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
    """Return a description of the process that has bound a group; "" if none has.

    The port number of a socket usually is the pid of its process (netlink(7)).
    """
    try:
        with open(_BOUND, encoding="ascii") as file:
            ports = [line.split()[1] for line in file if line.split()[:1] == [str(group)]]
    except OSError:
        return ""
    if not ports:
        return ""
    return (
        f"another process (pid {ports[0]})"
        if os.path.exists(f"/proc/{ports[0]}")
        else "another process"
    )


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
    try:
        return socket.if_indextoname(number)
    except OSError:  # the process has ended
        return f"link {number}"


def _ends(packet: bytes) -> tuple[str, str, int | None, str] | None:
    """Return (source, destination, destination port, protocol) of a possibly truncated IP packet.

    Returns None for anything else.
    """
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        source, destination = (
            socket.inet_ntop(socket.AF_INET, packet[at : at + 4]) for at in (12, 16)
        )
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
    """Return (protocol, its offset, whether it is not a later fragment) of an IPv6 packet."""
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
