"""Build packets into which the kernel writes a 16-bit value only after all rules have seen them.

A packet socket with PACKET_VNET_HDR may ask the kernel for a checksum at any place (VIRTIO_NET_HDR_F_NEEDS_CSUM,
linux/virtio_net.h). The kernel may put it off until it fragments the packet or until a link cannot do it (skb_checksum_help,
net/core/dev.c). The sender chooses the sum by the last two bytes of the packet, which it covers.
"""

from __future__ import annotations

import socket
import struct
from array import array
from fcntl import ioctl
from typing import Any

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from wire import ETH_P_ALL, PACKET_OUTGOING, Wire

SOL_PACKET, PACKET_VNET_HDR, PACKET_VNET_HDR_SZ = 263, 15, 24  # linux/if_packet.h
NEEDS_CSUM = 1
TCPV4, UDP_WHOLE, TCPV6, UDP_L4 = 1, 3, 4, 5  # VIRTIO_NET_HDR_GSO_*
SIOCETHTOOL, GTXCSUM, GGRO = 0x8946, 0x16, 0x2B  # linux/sockios.h, linux/ethtool.h
_HEAD = struct.Struct("=BBHHHH")  # flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
_ETHER = 14

# places in an IP packet: of its 16-bit words, by family
SOURCE, TARGET = {4: 14, 6: 22}, {4: 18, 6: 38}
PROTOCOL = {4: 8}
FROM_PORT, TO_PORT = {4: 20, 6: 40}, {4: 22, 6: 42}


def folded(data: bytes) -> int:
    """The 16-bit ones' complement sum (RFC 1071)."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def vnet(
    flags: int = 0, start: int = 0, offset: int = 0, gso: int = 0, size: int = 0, head: int = 0
) -> bytes:
    """A struct virtio_net_hdr."""
    return _HEAD.pack(flags, gso, head, size, start, offset)


def datagram(source: str, target: str, ports: tuple[int, int], data: bytes, number: int) -> Any:
    """A UDP packet with this identification, and two bytes at its end that no checksum covers."""
    family = 6 if ":" in target else 4
    head = IPv6(src=source, dst=target) if family == 6 else IP(src=source, dst=target, id=number)
    body = UDP(sport=ports[0], dport=ports[1], len=8 + len(data), chksum=0 if family == 4 else None)
    packet = head / body / Raw(data)
    if family == 6:  # the length of UDP leaves the end out, so that any end will do
        packet = IPv6(bytes(packet))
        packet.plen = packet.plen + 2
    else:
        packet.len = 20 + 8 + len(data) + 2
    return type(packet)(bytes(packet) + bytes(2))


def steered(written: bytes, place: int, value: int) -> bytes:
    """The last two bytes of ``written``, with which the sum from ``place`` on is ``value``.

    ``written`` is the packet as it is when the kernel writes, but for these two bytes.
    """
    assert len(written) % 2 == 0 and place % 2 == 0
    rest = folded(written[place:-2])
    last = (~value & 0xFFFF) - rest
    return struct.pack("!H", last + 0xFFFF if last < 0 else last)


def late(
    macs: tuple[str, str], sent: Any, place: int, value: int, written: Any, number: int
) -> list[bytes]:
    """The frames, in two fragments, of ``sent``, whose word at ``place`` becomes ``value`` late.

    ``written`` is the packet as it will be then. The fragments have an identification ``number``.
    """
    family = 6 if isinstance(sent, IPv6) else 4
    end = steered(bytes(written), place, value)
    whole = bytes(sent)[:-2] + end
    length = 40 if family == 6 else 20
    head, body = whole[:length], whole[length:]
    frames = []
    middle = len(body) // 16 * 8
    for start, part in ((0, body[:middle]), (middle, body[middle:])):
        ether = Ether(src=macs[0], dst=macs[1])
        more = start == 0
        if family == 6:
            ip = IPv6(head)
            ip.remove_payload()
            del ip.plen
            cut = IPv6ExtHdrFragment(nh=ip.nh, offset=start // 8, m=int(more), id=number)
            ip.nh = 44
            frame = ether / ip / cut / Raw(part)
        else:
            ip = IP(head)
            ip.remove_payload()
            del ip.len, ip.chksum
            ip.id, ip.flags, ip.frag = number, "MF" if more else 0, start // 8
            frame = ether / ip / Raw(part)
        # the fragment header goes when the packet is put together, and what is before it moves
        at = _ETHER + (8 if family == 6 else 0) + place
        # both fragments have a sum to make, or the whole would have none
        frames.append(vnet(NEEDS_CSUM, at if more else 40, 0) + bytes(frame))
    return frames


class Thrower:
    """A packet socket whose frames begin with a `vnet` header; it also tells what comes in with one."""

    def __init__(self, wire: Wire, netns: str | None, link: str) -> None:
        self._socket = wire.socket(netns, socket.AF_PACKET, socket.SOCK_RAW)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        self._socket.bind((link, ETH_P_ALL))

    def send(self, *frames: bytes) -> None:
        for frame in frames:
            self._socket.send(frame)

    def seen(self) -> list[tuple[int, int, bytes]]:
        """(flags, gso_type, frame) of all that came in since the last call."""
        found = []
        while True:
            try:
                data, (_, _, kind, *_) = self._socket.recvfrom(1 << 17)
            except BlockingIOError:
                return found
            if kind != PACKET_OUTGOING:
                found.append((data[0], data[1], data[_HEAD.size :]))


def offload(
    wire: Wire, netns: str | None, link: str, on: bool | None = None, get: int = GTXCSUM
) -> bool:
    """Whether a link leaves checksums to others, or another feature; set that if ``on`` is given."""
    value = array("I", [get if on is None else get + 1, bool(on)])
    with wire.socket(netns, socket.AF_INET, socket.SOCK_DGRAM, keep=False) as control:
        request = struct.pack("16sP16x", link.encode(), value.buffer_info()[0])
        ioctl(control, SIOCETHTOOL, request)
    return bool(value[1])


HEAD_SIZE = _HEAD.size
TAP = """\
import fcntl, os, struct, sys
tap = os.open("/dev/net/tun", os.O_RDWR)
flags = 2 | 0x1000 | 0x4000  # IFF_TAP, IFF_NO_PI, IFF_VNET_HDR (linux/if_tun.h)
fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH14x", b"tap0", flags))  # TUNSETIFF
os.system("ip link set tap0 up")
print(os.popen("ip -br link show tap0").read().split()[2])
for line in sys.stdin:
    try:
        os.write(tap, bytes.fromhex(line))
        print("sent")
    except OSError as error:
        print(error)
"""
"""A program that makes tap0 in its namespace, and writes the lines of its input to it, in hexadecimal."""
