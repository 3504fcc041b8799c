"""Telling the neighbours of a link whose address an address is now (RFC 5227, 3; RFC 4861, 7.2.6).

An address that another service had before is in their caches with that one's MAC, and would be dead until they ask anew.
"""

from __future__ import annotations

import atexit
import os
import socket
import struct

from niso.child import keep_only, signals_held
from niso.kernel.netlink import refused

_ETH_ARP, _ETH_IPV6 = 0x0806, 0x86DD
_BROADCAST = b"\xff" * 6
_ALL_NODES = socket.inet_pton(socket.AF_INET6, "ff02::1")
_ALL_NODES_MAC = bytes.fromhex("333300000001")
_NEIGHBOUR_ADVERT, _OVERRIDE, _TARGET_LINK = 136, 0x20000000, 2  # ICMPv6 type, flag O, option


class Announcements:
    """``with Announcements() as news:`` what it sends, by sockets that are let go at the end.

    The kernel takes some 10 ms to close such a socket (packet_release waits for all readers of RCU, net/packet/af_packet.c): a
    process of its own does it, so that a command that makes many services does not wait for each. At its exit niso waits for that.
    """

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Announcements:
        return self

    def send(self, link: str, mac: str, address: str) -> None:
        """Send a gratuitous ARP request, or an unsolicited neighbour advertisement, by ``link`` of the caller's namespace.

        Raises KernelError.
        """
        own = bytes.fromhex(mac.replace(":", ""))
        frame = _advert(own, address) if ":" in address else _arp(own, address)
        try:
            # no protocol: it receives nothing
            packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC)
            self._sockets.append(packet)
            packet.bind((link, 0))
            packet.send(frame)
        except OSError as error:
            raise refused(f"announce {address} on link '{link}'", error.errno or 0) from error

    def __exit__(self, *_: object) -> None:
        if not self._sockets:
            return
        with signals_held():
            wait, tell = os.pipe()
            pid = os.fork()
            if pid == 0:
                try:
                    keep_only({wait, *(packet.fileno() for packet in self._sockets)})
                    os.read(wait, 1)
                finally:
                    os._exit(0)
            os.close(wait)
            for packet in self._sockets:
                packet.close()  # at once: the other process has it too
            os.close(tell)
            if not _closing:
                atexit.register(_reap)
            _closing.append(pid)


_closing: list[int] = []


def _reap() -> None:
    while _closing:
        os.waitpid(_closing.pop(), 0)


def _arp(mac: bytes, address: str) -> bytes:
    packed = socket.inet_aton(address)
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + packed + bytes(6) + packed
    return _BROADCAST + mac + struct.pack("!H", _ETH_ARP) + body


def _advert(mac: bytes, address: str) -> bytes:
    packed = socket.inet_pton(socket.AF_INET6, address)
    message = struct.pack("!BBHI", _NEIGHBOUR_ADVERT, 0, 0, _OVERRIDE) + packed + bytes([_TARGET_LINK, 1]) + mac
    pseudo = packed + _ALL_NODES + struct.pack("!IHBB", len(message), 0, 0, socket.IPPROTO_ICMPV6)
    message = message[:2] + struct.pack("!H", _checksum(pseudo + message)) + message[4:]
    header = struct.pack("!IHBB", 6 << 28, len(message), socket.IPPROTO_ICMPV6, 255) + packed + _ALL_NODES
    return _ALL_NODES_MAC + mac + struct.pack("!H", _ETH_IPV6) + header + message


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
