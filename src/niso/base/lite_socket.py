"""Provide the parts of `socket` that niso needs for netlink and addresses.

They are those of the C module below it. `socket` itself makes enums of its constants and loads
selectors: 14 of the 195 million instructions of an attachment. What it adds, files and timeouts of
connections, is of no use here.
"""

from __future__ import annotations

from _socket import (
    AF_INET,
    AF_INET6,
    AF_NETLINK,
    AF_UNIX,
    AF_UNSPEC,
    IPPROTO_ICMPV6,
    IPPROTO_IPV6,
    IPPROTO_SCTP,
    IPPROTO_TCP,
    IPPROTO_UDP,
    IPV6_MULTICAST_HOPS,
    IPV6_MULTICAST_LOOP,
    MSG_DONTWAIT,
    MSG_TRUNC,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SOCK_RAW,
    SOL_SOCKET,
    inet_ntop,
    inet_pton,
    socket,
)

__all__ = [
    "AF_INET",
    "AF_INET6",
    "AF_NETLINK",
    "AF_UNIX",
    "AF_UNSPEC",
    "IPPROTO_ICMPV6",
    "IPPROTO_IPV6",
    "IPPROTO_SCTP",
    "IPPROTO_TCP",
    "IPPROTO_UDP",
    "IPV6_MULTICAST_HOPS",
    "IPV6_MULTICAST_LOOP",
    "MSG_DONTWAIT",
    "MSG_TRUNC",
    "SOCK_CLOEXEC",
    "SOCK_DGRAM",
    "SOCK_RAW",
    "SOL_SOCKET",
    "inet_ntop",
    "inet_pton",
    "socket",
]
