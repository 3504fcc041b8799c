"""Find the host's sockets that use a port, and their processes, through NETLINK_SOCK_DIAG.

See sock_diag(7) and linux/inet_diag.h. Functions raise KernelError.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct

from niso.base.named_tuples import TYPE_CHECKING, NamedTuple
from niso.base.native import socket
from niso.kernel import netlink
from niso.kernel.netlink import attributes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    _End = tuple[str, int]
    _Figures = tuple[str, float | None, int | None, int | None, int | None]

_BY_FAMILY = 20  # SOCK_DIAG_BY_FAMILY
_DESTROY = 21  # SOCK_DESTROY
_SKV6ONLY = 11  # INET_DIAG_SKV6ONLY
_INFO = 2  # INET_DIAG_INFO
# TCP_ESTABLISHED, TCP_LISTEN; TCP_CLOSE is also a UDP socket that is bound but not connected
_ESTABLISHED, _LISTEN, _CLOSE = 1, 10, 7
# the states of ss(8), except listening sockets and TIME_WAIT, whose connection is over
_STATES = {
    1: "established",
    2: "syn-sent",
    3: "syn-recv",
    4: "fin-wait-1",
    5: "fin-wait-2",
    8: "close-wait",
    9: "last-ack",
    11: "closing",
}
_PROTOCOLS = {
    "tcp": (socket.IPPROTO_TCP, _LISTEN),
    "udp": (socket.IPPROTO_UDP, _CLOSE),
    "sctp": (socket.IPPROTO_SCTP, _LISTEN),
}
_LOOPBACK = 1  # the index of lo in each network namespace (linux/net_namespace.h)
_MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:0.0.0.0/96

_request = struct.Struct("=BBBxI")  # struct inet_diag_req_v2, before its socket id
_rtt_retransmitted = struct.Struct("=I28xI")  # of struct tcp_info: tcpi_rtt, tcpi_total_retrans
_acked_received = struct.Struct("=QQ")  # tcpi_bytes_acked, tcpi_bytes_received
_RTT, _ACKED = 68, 120  # offset at which they begin
_id = struct.Struct(">HH16s16s")  # struct inet_diag_sockid, before interface and cookie
_ID_SIZE = 48
_ATTRIBUTES = 4 + _ID_SIZE + 20  # offset of the attributes in struct inet_diag_msg


class Listener(NamedTuple):
    """A socket that receives packets to a port. The address "0.0.0.0" or "::" means any address."""

    family: int
    address: str
    port: int
    inode: int


class Connection(NamedTuple):
    """The addresses and ports of a TCP connection's client and server."""

    client: str
    client_port: int
    server: str
    server_port: int


class Measured(NamedTuple):
    """A TCP connection with measurements of its socket in this namespace (struct tcp_info). A
    measurement is None if the kernel does not report it, for example during the handshake.
    """

    connection: Connection
    is_server: bool  # whether the socket is the server's
    state: str
    rtt: float | None  # smoothed round-trip time in seconds
    retransmitted: int | None  # segments
    received: int | None  # bytes
    acked: int | None  # bytes sent and acknowledged


def listeners(proto: str) -> list[Listener]:
    """Return the sockets of this network namespace that wait for packets.

    For "tcp" and "sctp" these are listening sockets. For "udp" these are bound sockets that are not
    connected. An IPv6 socket that also accepts IPv4 is returned once for each IP version. If a
    socket is bound to the device lo alone, its address is a loopback address.
    """
    number, state = _PROTOCOLS[proto]
    # the kernel cannot list SCTP sockets without the module, but then there are none
    absent = (errno.ENOENT,) if proto == "sctp" else ()
    with netlink.Netlink(netlink.SOCK_DIAG) as kernel:
        return [
            listener
            for family in (socket.AF_INET, socket.AF_INET6)
            for several in kernel.dump(
                f"list {proto} sockets",
                _BY_FAMILY,
                _request.pack(family, number, 0, 1 << state) + bytes(_ID_SIZE),
                _parse,
                absent,
            )
            for listener in several
            if listener.port
        ]


def connections() -> list[Connection]:
    """Return the established TCP connections of this network namespace. If a socket listens on the
    local port, the local end is the server, otherwise the client.
    """
    return [connection for connection, *_ in _connections((_ESTABLISHED,), 0, _parse_ends)]


def measured() -> list[Measured]:
    """Return the TCP connections of this namespace, including those being opened or closed."""
    return [
        Measured(connection, is_server, *figures)
        for connection, is_server, figures in _connections(_STATES, 1 << _INFO - 1, _parse_measured)
    ]


def destroy() -> int:
    """Reset the established and half-closed TCP connections of this network namespace, and return
    their number. Both ends receive the reset, so no client waits for an answer (SOCK_DESTROY,
    linux/sock_diag.h). A kernel without CONFIG_INET_DIAG_DESTROY resets no connection. Raises
    KernelError.
    """
    # connections whose client still waits for data, or whose server still waits for data
    mask = sum(1 << state for state in (1, 4, 8))
    absent = (errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL)
    count = 0
    with netlink.Netlink(netlink.SOCK_DIAG) as kernel:
        for family in (socket.AF_INET, socket.AF_INET6):
            body = _request.pack(family, socket.IPPROTO_TCP, 0, mask) + bytes(_ID_SIZE)
            ids = [*kernel.dump("list tcp connections", _BY_FAMILY, body, _identity)]
            head = _request.pack(family, socket.IPPROTO_TCP, 0, mask)
            kernel.transact_each(
                netlink.Message("reset a connection", _DESTROY, 0, head + one, absent)
                for one in ids
            )
            count += len(ids)
    return count


def _identity(body: bytes) -> bytes:
    return body[4 : 4 + _ID_SIZE]


def _connections[T](
    states: Iterable[int], extensions: int, parse: Callable[[bytes], tuple[_End, _End, T]]
) -> Iterator[tuple[Connection, bool, T]]:
    """Yield (connection, is server, details) for each TCP connection with a state in ``states``.

    "is server" is True if the local end is the server. ``parse`` reads the two ends and the details
    from a message of the kernel.
    """
    served = {listener.port for listener in listeners("tcp")}
    mask = sum(1 << state for state in states)
    with netlink.Netlink(netlink.SOCK_DIAG) as kernel:
        for family in (socket.AF_INET, socket.AF_INET6):
            body = _request.pack(family, socket.IPPROTO_TCP, extensions, mask) + bytes(_ID_SIZE)
            for local, remote, more in kernel.dump("list tcp connections", _BY_FAMILY, body, parse):
                is_server = local[1] in served
                ends = (*remote, *local) if is_server else (*local, *remote)
                yield Connection(*ends), is_server, more


def holder(inode: int) -> tuple[int, str] | None:
    """Return (pid, program) of the process that has a socket open, or None. Of several processes,
    the one with the lowest pid is returned.
    """
    return holders([inode]).get(inode)


def holders(inodes: Iterable[int]) -> dict[int, tuple[int, str]]:
    """Find the processes that have sockets open. Returns {inode of the socket: (pid, program)}. Of
    several processes, the one with the lowest pid is returned. Sockets of processes that are not
    visible are left out.
    """
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    result: dict[int, tuple[int, str]] = {}

    def link(path: str) -> str:
        with contextlib.suppress(FileNotFoundError):
            return os.readlink(path)
        return ""

    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        if len(result) == len(wanted):
            break
        folder = f"/proc/{pid}/fd"
        try:
            own = {wanted.get(link(f"{folder}/{fd}")) for fd in os.listdir(folder)}
            found = own - {None} - result.keys()
            if found:
                with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                    # a program chooses its own name: a newline in it would break the output
                    name = file.read().rstrip("\n").replace("\n", " ")
                result |= {inode: (pid, name) for inode in found if inode is not None}
        except OSError:  # the process has ended, or niso may not inspect it
            continue
    return result


def _parse_ends(body: bytes) -> tuple[_End, _End, None]:
    port, far_port, source, destination = _id.unpack_from(body, 4)
    near, far = (_address(body[0], packed)[1] for packed in (source, destination))
    return (near, port), (far, far_port), None


def _parse_measured(body: bytes) -> tuple[_End, _End, _Figures]:
    local, remote, _ = _parse_ends(body)
    state = _STATES.get(body[1], str(body[1]))
    info = attributes(body, _ATTRIBUTES).get(_INFO)
    if info is None:
        return local, remote, (state, None, None, None, None)
    micros, retransmitted = _rtt_retransmitted.unpack_from(info, _RTT)
    acked, received = _acked_received.unpack_from(info, _ACKED)
    rtt = micros / 1e6 if micros else None
    return local, remote, (state, rtt, retransmitted, received, acked)


def _address(family: int, packed: bytes) -> tuple[int, str]:
    """Return (IP version as AF_*, address). An IPv4-mapped IPv6 address is returned as IPv4."""
    if family == socket.AF_INET6 and packed.startswith(_MAPPED):
        family, packed = socket.AF_INET, packed[12:]
    size = 4 if family == socket.AF_INET else 16
    return family, socket.inet_ntop(family, packed[:size])


def _parse(body: bytes) -> list[Listener]:
    port, _, source, _ = _id.unpack_from(body, 4)
    link: int = struct.unpack_from("=I", body, 4 + _id.size)[0]
    inode: int = struct.unpack_from("=I", body, 4 + _ID_SIZE + 16)[0]
    result = [Listener(*_address(body[0], source), port, inode)]
    only_v6 = attributes(body, _ATTRIBUTES).get(_SKV6ONLY, b"\1") != b"\0"
    if body[0] == socket.AF_INET6 and source == bytes(16) and not only_v6:
        result.append(Listener(socket.AF_INET, "0.0.0.0", port, inode))
    if link == _LOOPBACK and source == bytes(16):  # bound to the device lo (SO_BINDTODEVICE)
        own: dict[int, str] = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
        return [one._replace(address=own[one.family]) for one in result]
    return result
