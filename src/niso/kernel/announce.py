"""Announce a new address to the neighbours of a link (RFC 5227, 3; RFC 4861, 7.2.6).

If another service had the address before, their caches map it to that one's MAC, and it would be
unreachable until they ask again. No packet socket is used: the kernel needs some 10 ms to close one
(packet_release waits for all RCU readers, net/packet/af_packet.c).
"""

from __future__ import annotations

import struct

from niso.base import lite_socket as socket
from niso.kernel import netns
from niso.kernel.netlink import refused
from niso.kernel.rtnl_sockets import Sockets

_ALL_NODES = "ff02::1"
_NEIGHBOUR_ADVERT, _OVERRIDE, _TARGET_LINK = 136, 0x20000000, 2  # ICMPv6 type, flag O, option
_FREEBIND, _HOPS = 78, 255  # IPV6_FREEBIND, linux/in6.h: the address may not be assigned yet


def announce(sockets: Sockets, name: str, link: str, cidr: str) -> None:
    """Send a gratuitous ARP request, or an unsolicited neighbour advertisement.

    It is sent through ``link`` of the namespace ``name``. Raises KernelError.
    """
    rtnl = sockets.at(name)
    what = f"announce {cidr.partition('/')[0]} on link '{link}' of {name}"
    if ":" not in cidr:
        rtnl.announce(what, rtnl.index(link), cidr)
        return
    end = rtnl.link(link)
    if end is None:
        return
    address = cidr.partition("/")[0]
    packed = socket.inet_pton(socket.AF_INET6, address)
    # the kernel writes the checksum (RFC 3542, 3.1)
    message = (
        struct.pack("!BBHI", _NEIGHBOUR_ADVERT, 0, 0, _OVERRIDE) + packed + bytes([_TARGET_LINK, 1])
    )
    message += bytes.fromhex(end.mac.replace(":", ""))
    try:
        with netns.inside(name):
            raw = socket.socket(
                socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMPV6
            )
            try:
                for option, value in (
                    (_FREEBIND, 1),
                    (socket.IPV6_MULTICAST_HOPS, _HOPS),
                    (socket.IPV6_MULTICAST_LOOP, 0),
                ):
                    raw.setsockopt(socket.IPPROTO_IPV6, option, value)
                raw.bind((address, 0, 0, 0))
                raw.sendto(message, (_ALL_NODES, 0, 0, end.index))
            finally:
                raw.close()
    except OSError as error:
        raise refused(what, error.errno or 0) from error
