"""What links have carried (rtnl_link_stats64, linux/if_link.h)."""

from __future__ import annotations

import socket
import struct

from niso.base.lite_typing import NamedTuple
from niso.kernel import netlink
from niso.kernel.netlink import attributes, string

_GETLINK = 18
_IFLA_IFNAME, _IFLA_STATS64 = 3, 23
_ifinfomsg = struct.Struct("=BxHiII")
_stats = struct.Struct(
    "=QQQQ"
)  # the first of struct rtnl_link_stats64: rx_packets, tx_packets, rx_bytes, tx_bytes


class Traffic(NamedTuple):
    """Since the link was made: packets and bytes that it has received, and sent."""

    rx_packets: int
    rx_bytes: int
    tx_packets: int
    tx_bytes: int


def of_links() -> dict[str, Traffic]:
    """Of all links of the network namespace that the caller is in, by name. Raises KernelError."""
    with netlink.Netlink(netlink.ROUTE) as kernel:
        body = _ifinfomsg.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        return dict(kernel.dump("list links", _GETLINK, body, _parse))


def _parse(body: bytes) -> tuple[str, Traffic] | None:
    found = attributes(body, _ifinfomsg.size)
    if _IFLA_STATS64 not in found:
        return None
    rx_packets, tx_packets, rx_bytes, tx_bytes = _stats.unpack_from(found[_IFLA_STATS64])
    return string(found[_IFLA_IFNAME]), Traffic(rx_packets, rx_bytes, tx_packets, tx_bytes)
