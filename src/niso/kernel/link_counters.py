"""Read the traffic counters of links (rtnl_link_stats64, linux/if_link.h)."""

from __future__ import annotations

import socket
import struct

from niso.base.lite_typing import NamedTuple
from niso.kernel import netlink
from niso.kernel.netlink import attributes, string

_GETLINK = 18
_IFLA_IFNAME, _IFLA_STATS64 = 3, 23
_ifinfomsg = struct.Struct("=BxHiII")
_stats = struct.Struct("=QQQQ")  # rtnl_link_stats64: rx_packets, tx_packets, rx_bytes, tx_bytes


class Traffic(NamedTuple):
    """Packets and bytes received and sent since the link was created."""

    rx_packets: int
    rx_bytes: int
    tx_packets: int
    tx_bytes: int


def of_links() -> dict[str, Traffic]:
    """Return the traffic of each link in the caller's network namespace, by name.

    Raises KernelError.
    """
    with netlink.Netlink(netlink.ROUTE) as kernel:
        body = _ifinfomsg.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        return dict(kernel.dump("list links", _GETLINK, body, _parse))


def _parse(body: bytes) -> tuple[str, Traffic] | None:
    link = attributes(body, _ifinfomsg.size)
    if _IFLA_STATS64 not in link:
        return None
    rx_packets, tx_packets, rx_bytes, tx_bytes = _stats.unpack_from(link[_IFLA_STATS64])
    return string(link[_IFLA_IFNAME]), Traffic(rx_packets, rx_bytes, tx_packets, tx_bytes)
