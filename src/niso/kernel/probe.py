"""Send one packet from any network namespace, and observe whether it arrives (raw(7), packet(7)).

A socket stays in the network namespace in which it was created. The calling thread is therefore in
the other namespace only while it creates the socket.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import struct
import time

from niso.base.errors import KernelError
from niso.base.named_tuples import TYPE_CHECKING
from niso.base.names import family_of, packed
from niso.base.native import socket
from niso.kernel import flow_memory, netns
from niso.kernel.netlink import address_family, refused, refusing

if TYPE_CHECKING:
    from typing import Self

_NUMBERS = {"tcp": 6, "udp": 17, "sctp": 132}
# protocol, request, reply
_ECHO = {4: (socket.IPPROTO_ICMP, 8, 0), 6: (socket.IPPROTO_ICMPV6, 128, 129)}
_ETHERTYPE = {4: 0x0800, 6: 0x86DD}
_IP_HEADER = {4: 20, 6: 40}
# linux/in.h, linux/in6.h: IP_MTU_DISCOVER and IPV6_MTU_DISCOVER to ..._PMTUDISC_PROBE: the packet
# is not fragmented, whatever path MTU the kernel knows
_PROBE = {4: (socket.IPPROTO_IP, 10, 3), 6: (socket.IPPROTO_IPV6, 23, 3)}
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_SYN, _ACK = 0x02, 0x10
_UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.EMSGSIZE}
_UNREACHABLE |= {errno.EACCES, errno.EPERM, errno.EINVAL}
_TCP = struct.Struct("!HHIIBBHHH")
_AT_ONCE = 1000  # foreign packets to skip before the time is checked


class ProbePacket:
    """A test packet from ``source`` to ``destination``, as a context manager.

    ``namespace`` is the sender's network namespace, or "" for the caller's. ``proto`` is tcp (a
    SYN), udp (an empty datagram), sctp (an INIT) or icmp (an echo request). All but icmp have a
    ``port``. ``watched`` is (namespace of the receiver, port after NAT), or None if the arrival is
    not observed. ``size`` is the length of the echo request's IP packet in bytes; if it is not 0,
    the packet must not be fragmented. ``own_port`` is the source port, or 0 for any. Raises
    KernelError if a namespace or the source address does not exist, or the port is in use.
    """

    def __init__(
        self,
        namespace: str,
        source: str,
        destination: str,
        port: int | None,
        proto: str,
        watched: tuple[str, int | None] | None = None,
        size: int = 0,
        own_port: int = 0,
    ) -> None:
        self._size = size
        self._to, self._port, self._proto = destination, port or 0, proto
        self._source, self._version = source, family_of(source)
        self._token = os.urandom(4)
        self._own_port = own_port
        self._watched: tuple[socket.socket, int] | None = None
        with contextlib.ExitStack() as self._stack, refusing(f"send from {source}"):
            with netns.at(namespace):
                self._socket = self._open()
            if watched is not None:
                with netns.inside(watched[0]):
                    ethertype = socket.htons(_ETHERTYPE[self._version])
                    sniffer = self._new_socket(socket.AF_PACKET, socket.SOCK_DGRAM, ethertype)
                sniffer.setblocking(False)
                self._watched = (sniffer, watched[1] or 0)
            self._open_sockets = self._stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open_sockets.close()

    def _new_socket(self, family: int, kind: int, proto: int = 0) -> socket.socket:
        new = socket.socket(family, kind | socket.SOCK_CLOEXEC, proto)
        self._stack.callback(new.close)
        return new

    def send(self) -> str:
        """Send the packet once. If the sender's own kernel refuses it, return the reason, otherwise
        "". niso's rules do not record the packet as a flow. Raises KernelError for other failures.
        """
        if self._proto != "icmp":
            flow_memory.leave_out(self._source, self._proto, self._own_port)
        try:
            if self._proto == "udp":
                self._socket.connect((self._to, self._port))
                self._socket.send(b"")
            else:
                self._socket.sendto(self._packet(), (self._to, 0))
        except OSError as error:
            if error.errno not in _UNREACHABLE:
                raise refused(f"send to {self._to}", error.errno or 0) from error
            return os.strerror(error.errno or 0).lower()
        return ""

    def wait(self, seconds: float, for_answer: bool = False) -> tuple[bool | None, bool]:
        """Wait at most ``seconds`` for the packet to arrive or to be answered.

        Returns (whether it arrived, whether it was answered). With ``for_answer``, the wait ends
        only with the answer. If the arrival is not observed (no ``watched``), the first result is
        None, and the wait also ends only with the answer.
        """
        deadline = time.monotonic() + seconds
        poll = select.poll()
        for watched in (self._socket, *((self._watched[0],) if self._watched else ())):
            poll.register(watched, select.POLLIN)
        arrived, answered = False, False
        while not (answered or (arrived and not for_answer)):
            left = deadline - time.monotonic()
            events = poll.poll(max(0, left) * 1000)
            answered = self._is_answered() or answered
            arrived = self._has_arrived() or arrived
            if left <= 0 or not events:
                break
        return (arrived or answered) if self._watched else None, answered

    def _open(self) -> socket.socket:
        family = _FAMILY[self._version]
        if self._proto in ("tcp", "udp"):
            # a port of niso's own, so that answers to other programs are not mistaken for the
            # probe's
            kind = socket.SOCK_STREAM if self._proto == "tcp" else socket.SOCK_DGRAM
            bound = self._bind(self._new_socket(family, kind), self._own_port)
            self._own_port = bound.getsockname()[1]
            if self._proto == "udp":
                return bound
        elif not self._own_port:
            self._own_port = 49152 + int.from_bytes(self._token, "big") % 16384
        number = _ECHO[self._version][0] if self._proto == "icmp" else _NUMBERS[self._proto]
        raw = self._bind(self._new_socket(family, socket.SOCK_RAW, number))
        if self._size:
            raw.setsockopt(*_PROBE[self._version])
        return raw

    def _bind(self, new: socket.socket, port: int = 0) -> socket.socket:
        new.bind((self._source, port))
        new.setblocking(False)
        new.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        return new

    def _packet(self) -> bytes:
        if self._proto == "icmp":
            request = struct.pack("!BBHHH", _ECHO[self._version][1], 0, 0, self._own_port, 1)
            request += self._token
            request += bytes(max(0, self._size - _IP_HEADER[self._version] - len(request)))
            # for ICMPv6 the kernel computes the checksum (RFC 3542, 3.1)
            return _with_sum(request, 2, request)
        if self._proto == "sctp":
            # INIT (RFC 9260, 3.3.2): tag, window, one stream each way, initial TSN
            chunk = struct.pack("!BBH4sIHHI", 1, 0, 20, self._token, 65536, 1, 1, 1)
            packet = struct.pack("!HHII", self._own_port, self._port, 0, 0) + chunk
            return packet[:8] + struct.pack("<I", _crc32c(packet)) + packet[12:]
        sequence = int.from_bytes(self._token, "big")
        packet = _TCP.pack(self._own_port, self._port, sequence, 0, 5 << 4, _SYN, 64240, 0, 0)
        pseudo_header = packed(self._source) + packed(self._to)
        pseudo_header += struct.pack("!II", len(packet), _NUMBERS["tcp"])
        return _with_sum(packet, 16, pseudo_header + packet)

    def _is_answered(self) -> bool:
        try:
            for _ in range(_AT_ONCE):
                data = self._socket.recv(4096)
                has_header = self._version == 4 and self._proto != "udp"
                if self._is_answer(data[(data[0] & 15) * 4 :] if has_header else data):
                    return True
            return False
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.ECONNREFUSED:  # an ICMP error: the answer of a closed UDP port
                return True
            if error.errno not in _UNREACHABLE:
                raise refused(f"receive from {self._to}", error.errno or 0) from error
            return False

    def _is_answer(self, data: bytes) -> bool:
        if self._proto == "udp":
            return True
        if self._proto == "icmp":
            return data[:1] == bytes([_ECHO[self._version][2]]) and data[8:12] == self._token
        if len(data) < 14:  # not a valid packet
            return False
        from_port, to_port = struct.unpack_from("!HH", data)
        if (from_port, to_port) != (self._port, self._own_port):
            return False
        if self._proto == "sctp":
            return True
        acknowledged = int.from_bytes(self._token, "big") + 1 & 0xFFFFFFFF
        return bool(data[13] & _ACK) and int.from_bytes(data[8:12], "big") == acknowledged

    def _has_arrived(self) -> bool:
        if self._watched is None:
            return False
        sniffer, port = self._watched
        try:
            for _ in range(_AT_ONCE):
                packet, where = sniffer.recvfrom(4096)
                # copies of outgoing packets are not arrivals
                if where[2] != socket.PACKET_OUTGOING and self._is_own(packet, port):
                    return True
            return False
        except BlockingIOError:
            return False

    def _is_own(self, packet: bytes, port: int) -> bool:
        if len(packet) < 20:
            return False
        is_4 = self._version == 4
        number, offset = (packet[9], (packet[0] & 15) * 4) if is_4 else (packet[6], 40)
        data = packet[offset:]
        if self._proto == "icmp":
            return number == _ECHO[self._version][0] and data[8:12] == self._token
        has_port = len(data) >= 8 and int.from_bytes(data[2:4], "big") == port
        if number != _NUMBERS[self._proto] or not has_port:
            return False
        if self._proto == "tcp":
            return data[4:8] == self._token
        if self._proto == "sctp":
            return data[16:20] == self._token
        return int.from_bytes(data[:2], "big") == self._own_port


def echo(namespace: str, source: str, destination: str, seconds: float) -> float | None:
    """Send an ICMP echo request, and return the round-trip time in seconds. Returns None if there
    is no reply within ``seconds``. Raises KernelError.
    """
    with ProbePacket(namespace, source, destination, None, "icmp") as probe:
        start = time.perf_counter()
        if unsent := probe.send():
            raise KernelError(f"cannot send from {source} to {destination}: {unsent}")
        return time.perf_counter() - start if probe.wait(seconds)[1] else None


def free_port(namespace: str, source: str, proto: str) -> int:
    """Return a source port that no program in a namespace uses now. Raises KernelError."""
    kind = socket.SOCK_DGRAM if proto == "udp" else socket.SOCK_STREAM
    with (
        refusing(f"send from {source}"),
        netns.at(namespace),
        contextlib.closing(
            socket.socket(address_family(source), kind | socket.SOCK_CLOEXEC)
        ) as asker,
    ):
        asker.bind((source, 0))
        return int(asker.getsockname()[1])


def own_address(destination: str) -> str | None:
    """Return the source address of packets to ``destination``. Returns None without a route."""
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
    with contextlib.closing(socket.socket(address_family(destination), kind)) as asker:
        try:
            asker.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            asker.connect((destination, 9))  # a socket for the route lookup; it sends nothing
        except OSError:
            return None
        return str(asker.getsockname()[0])


def _with_sum(packet: bytes, at: int, summed: bytes) -> bytes:
    """Insert the Internet checksum (RFC 1071) of ``summed`` into a packet at the offset ``at``."""
    total = sum(struct.unpack(f"!{len(summed) // 2}H", summed))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return packet[:at] + struct.pack("!H", ~total & 0xFFFF) + packet[at + 2 :]


def _crc32c(data: bytes) -> int:
    """Compute the checksum of an SCTP packet (RFC 9260, appendix A)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
