"""Which sockets of the host hold a port, by NETLINK_SOCK_DIAG (sock_diag(7), linux/inet_diag.h), and whose they are."""

from __future__ import annotations

import errno
import os
import socket
import struct

from niso.base.lite_typing import NamedTuple
from niso.kernel import netlink
from niso.kernel.netlink import attributes

_BY_FAMILY = 20  # SOCK_DIAG_BY_FAMILY
_SKV6ONLY = 11  # INET_DIAG_SKV6ONLY
_ESTABLISHED, _LISTEN, _CLOSE = (
    1,
    10,
    7,
)  # TCP_ESTABLISHED, TCP_LISTEN; TCP_CLOSE is also a UDP socket that is bound and not connected
_PROTOCOLS = {
    "tcp": (socket.IPPROTO_TCP, _LISTEN),
    "udp": (socket.IPPROTO_UDP, _CLOSE),
    "sctp": (socket.IPPROTO_SCTP, _LISTEN),
}
_LAST_PORT = 65535
_MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0.0.0.0/96

_request = struct.Struct("=BBBxI")  # struct inet_diag_req_v2, before its socket id
_id = struct.Struct(">HH16s16s")  # struct inet_diag_sockid, before interface and cookie
_ID_SIZE = 48


class Listener(NamedTuple):
    """A socket that takes what comes to ``port`` of ``address`` ("0.0.0.0" or "::" for all of its family)."""

    family: int
    address: str
    port: int
    inode: int


class Connection(NamedTuple):
    """A TCP connection by its client's and its server's ends."""

    client: str
    client_port: int
    server: str
    server_port: int


def listeners(proto: str, first: int | None = None, last: int | None = None) -> list[Listener]:
    """Listening sockets ("tcp", "sctp") or bound ones that are not connected ("udp") of this network namespace.

    Of the port ``first``, of the ports ``first`` to ``last``, or of all. An IPv6 socket that takes IPv4 too is in the list
    once for each. A kernel without SCTP has no such sockets. Raises KernelError.
    """
    number, state = _PROTOCOLS[proto]
    low, high = (1, _LAST_PORT) if first is None else (first, first if last is None else last)
    # Without their module SCTP's sockets are not listed, but there are none either.
    absent = (errno.ENOENT,) if proto == "sctp" else ()
    found: list[Listener] = []
    with netlink.Netlink(netlink.SOCK_DIAG) as kernel:
        for family in (socket.AF_INET, socket.AF_INET6):
            body = _request.pack(family, number, 0, 1 << state)
            body += _id.pack(low if low == high else 0, 0, b"", b"").ljust(_ID_SIZE, b"\0")
            for several in kernel.dump(f"list {proto} sockets", _BY_FAMILY, body, _parse, absent):
                found += several
    return [listener for listener in found if low <= listener.port <= high]


def connections() -> list[Connection]:
    """The established TCP connections of this network namespace. Raises KernelError.

    The end whose port is listened on here is the server's; else this end is the client's.
    """
    served = {listener.port for listener in listeners("tcp")}
    found = []
    with netlink.Netlink(netlink.SOCK_DIAG) as kernel:
        for family in (socket.AF_INET, socket.AF_INET6):
            body = _request.pack(family, socket.IPPROTO_TCP, 0, 1 << _ESTABLISHED) + bytes(_ID_SIZE)
            for here, there in kernel.dump("list tcp connections", _BY_FAMILY, body, _parse_ends):
                found.append(
                    Connection(*there, *here) if here[1] in served else Connection(*here, *there)
                )
    return found


def holder(inode: int) -> tuple[int, str] | None:
    """(pid, program name) of the process with the lowest pid that has this socket open; None if none can be seen."""
    wanted = f"socket:[{inode}]"
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        folder = f"/proc/{pid}/fd"
        try:
            if any(_link(f"{folder}/{fd}") == wanted for fd in os.listdir(folder)):
                with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                    # a program names itself as it likes: a newline would begin a line of its own where this is printed
                    return pid, file.read().rstrip("\n").replace("\n", " ")
        except OSError:  # it ended meanwhile, or is not ours to see
            continue
    return None


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return ""


def _parse_ends(body: bytes) -> tuple[tuple[str, int], tuple[str, int]]:
    port, far_port, source, destination = _id.unpack_from(body, 4)
    return (_text(body[0], source), port), (_text(body[0], destination), far_port)


def _text(family: int, packed: bytes) -> str:
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, packed[:4])
    if packed.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed)


def _parse(body: bytes) -> list[Listener]:
    family = body[0]
    port, _, source, _ = _id.unpack_from(body, 4)
    inode: int = struct.unpack_from("=I", body, 4 + _ID_SIZE + 16)[0]
    if family == socket.AF_INET:
        return [Listener(family, socket.inet_ntop(socket.AF_INET, source[:4]), port, inode)]
    if source.startswith(_MAPPED):
        return [
            Listener(socket.AF_INET, socket.inet_ntop(socket.AF_INET, source[12:]), port, inode)
        ]
    found = [Listener(family, socket.inet_ntop(socket.AF_INET6, source), port, inode)]
    only_v6 = attributes(body, 4 + _ID_SIZE + 20).get(_SKV6ONLY, b"\1") != b"\0"
    if source == bytes(16) and not only_v6:
        found.append(Listener(socket.AF_INET, "0.0.0.0", port, inode))
    return found
