"""Announce a new address to the neighbours of a link (RFC 5227, 3; RFC 4861, 7.2.6).

If another service had the address before, their caches map it to that one's MAC, and it would be
unreachable until they ask again. No packet socket is used: the kernel needs some 10 ms to close one
(packet_release waits for all RCU readers, net/packet/af_packet.c).
"""

from __future__ import annotations

import errno
import struct

from niso.base import lite_socket as socket
from niso.base.lite_typing import TYPE_CHECKING
from niso.kernel import netlink, netns
from niso.kernel.netlink import Message, attribute, refused
from niso.kernel.rtnl_records import parse_cidr
from niso.kernel.rtnl_sockets import Sockets

if TYPE_CHECKING:
    from niso.kernel.rtnetlink import Rtnl

_NEWNEIGH, _DELNEIGH = 28, 29  # RTM_*
_ndmsg = struct.Struct("=BBHiHBB")
_NDA_DST, _NTF_USE = 1, 0x01

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
        _resolve(rtnl, what, rtnl.index(link), cidr)
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


def _resolve(rtnl: Rtnl, what: str, link_index: int, address: str) -> None:
    """Have the kernel send a gratuitous ARP request for an IPv4 address of the link.

    It resolves the address like that of any neighbour in use (NTF_USE); the entry is then
    deleted. ``what`` names the step in a KernelError; its errno is ENOBUFS if the neighbour
    table is full.
    """
    family, packed, _ = parse_cidr(address)
    use = _ndmsg.pack(family, 0, 0, link_index, 0, _NTF_USE, 0) + attribute(_NDA_DST, packed)
    drop = _ndmsg.pack(family, 0, 0, link_index, 0, 0, 0) + attribute(_NDA_DST, packed)
    rtnl.transact(
        Message(what, _NEWNEIGH, netlink.CREATE, use),
        Message(what, _DELNEIGH, 0, drop, (errno.ENOENT,)),
    )
