"""Run in a service: send to ever new addresses by sockets that are bound to a link, without any right.

Arguments: the link, the family, the way, how many addresses. What the kernel refuses is not an error here.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys

LINK, FAMILY, WAY, COUNT = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
INDEX = socket.if_nametoindex(LINK)
IP_PKTINFO, IPV6_PKTINFO = 8, 50  # linux/in.h, linux/in6.h


def place(n: int) -> tuple[str | int, ...]:
    """Return the n-th address to send to, as the family's sockets take it."""
    if FAMILY == 4:
        others = {"multicast": f"239.1.{n // 256}.{n % 256}", "broadcast": "255.255.255.255"}
        return others.get(WAY, f"198.18.{n // 256}.{n % 256}"), 9
    start = {"multicast": "ff02::5", "link-local": "fe80::5"}.get(WAY, "2001:db8:5:")
    return f"{start}:{n:x}", 9, 0, 0 if start.startswith("2") else INDEX


def attack(n: int) -> None:
    family = socket.AF_INET if FAMILY == 4 else socket.AF_INET6
    echo = socket.IPPROTO_ICMP if FAMILY == 4 else socket.IPPROTO_ICMPV6
    kind = socket.SOCK_STREAM if WAY == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, kind, echo if WAY == "ping" else 0) as own:
        own.setblocking(False)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_DONTROUTE, WAY == "dontroute")
        if WAY == "pktinfo":
            by = (socket.IPPROTO_IP, IP_PKTINFO, struct.pack("=I8x", INDEX))
            by6 = (socket.IPPROTO_IPV6, IPV6_PKTINFO, struct.pack("=16xI", INDEX))
            own.sendmsg([b"x"], [by if FAMILY == 4 else by6], 0, place(n))
            return
        own.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, LINK.encode())
        if WAY == "tcp":
            own.connect(place(n))
        else:
            question = b"\x08" if FAMILY == 4 else b"\x80"
            own.sendto(question + bytes(7) if WAY == "ping" else b"x", place(n))


for number in range(1, COUNT + 1):
    with contextlib.suppress(OSError):
        attack(number)
