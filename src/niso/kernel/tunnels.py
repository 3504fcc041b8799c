"""Create VXLAN devices and parse their settings (linux/if_link.h, RFC 7348)."""

from __future__ import annotations

import errno
import socket
import struct

from niso.base.addresses import family_of
from niso.base.errors import Conflict, KernelError
from niso.base.lite_typing import NamedTuple
from niso.kernel import bridge_flags
from niso.kernel.netlink import Message, attribute, attributes, text, u32
from niso.kernel.rtnetlink import NEWLINK, Rtnl, ifinfo, join, raise_up
from niso.kernel.rtnl_records import (
    IFF_UP,
    IFLA_IFNAME,
    IFLA_MTU,
    alias_data,
    of_kind,
)

_ID, _GROUP, _LINK, _LOCAL, _TTL, _LEARNING = 1, 2, 3, 4, 5, 7  # IFLA_VXLAN_*
_PORT, _GROUP6, _LOCAL6 = 15, 16, 17
_OFF = {
    _LEARNING: "learning",
    11: "proxy",
    12: "rsc",
    13: "l2miss",
    14: "l3miss",
    25: "external",
    30: "vnifilter",
}
_TTL_HOPS = 64


class Tunnel(NamedTuple):
    """The settings of a VXLAN device.

    ``drift`` names other settings that differ from those of `add`.
    """

    vni: int
    local: str
    port: int
    drift: str = ""


def parse(data: bytes) -> Tunnel:
    """Parse a VXLAN device's IFLA_INFO_DATA."""
    have = attributes(data)
    local = ""
    if _LOCAL in have:
        local = socket.inet_ntop(socket.AF_INET, have[_LOCAL])
    elif _LOCAL6 in have:
        local = socket.inet_ntop(socket.AF_INET6, have[_LOCAL6])
    parts = [name for kind, name in _OFF.items() if any(have.get(kind, b""))]
    if any(have.get(_GROUP, b"")) or any(have.get(_GROUP6, b"")):
        parts.append("remote")  # the remote to which the device would send MACs without an entry
    if any(have.get(_LINK, b"")):
        parts.append("dev")
    if have.get(_TTL, bytes([_TTL_HOPS])) != bytes([_TTL_HOPS]):
        parts.append(f"ttl {have[_TTL][0]}")
    vni = struct.unpack("=I", have[_ID])[0] if _ID in have else 0
    port = struct.unpack("!H", have[_PORT])[0] if _PORT in have else 0
    return Tunnel(vni, local, port, ", ".join(parts))


def add(rtnl: Rtnl, name: str, tunnel: Tunnel, mtu: int, bridge: str, alias: str) -> None:
    """Create a VXLAN device, up, as a port of ``bridge``; neither learns or floods.

    Raises KernelError, and Conflict if another link has the VNI or the UDP port.
    """
    master = rtnl.index(bridge)
    index = rtnl.free_index()
    what = f"create VXLAN device '{name}'"
    family = socket.AF_INET6 if family_of(tunnel.local) == 6 else socket.AF_INET
    settings = (
        u32(_ID, tunnel.vni),
        attribute(
            _LOCAL6 if family == socket.AF_INET6 else _LOCAL, socket.inet_pton(family, tunnel.local)
        ),
        attribute(_TTL, bytes([_TTL_HOPS])),
        attribute(_LEARNING, b"\0"),
        attribute(_PORT, struct.pack("!H", tunnel.port)),
    )
    try:
        rtnl.create(
            index,
            what,
            text(IFLA_IFNAME, name)
            # in the creation: the default without an underlying link is 1500 bytes
            + u32(IFLA_MTU, mtu)
            + of_kind("vxlan", *settings),
            alias_data(alias),
            join(name, index, bridge, master),
            *(Message(what, NEWLINK, 0, ifinfo(index) + setting) for setting in _port_settings()),
            raise_up(name, index),
        )
    except KernelError as error:
        if error.errno == errno.EEXIST and rtnl.link(name) is None:
            raise Conflict(
                f"another VXLAN device has VNI {tunnel.vni} and UDP port {tunnel.port}",
                "ip -d link show type vxlan",
            ) from error
        if error.errno == errno.EADDRINUSE:
            raise Conflict(
                f"UDP port {tunnel.port} is in use: VXLAN device {name!r} needs it",
                f"ss -ulnp 'sport = :{tunnel.port}' and ip -d link show type vxlan show by what",
            ) from error
        raise


def attach(rtnl: Rtnl, name: str, mtu: int, bridge: str) -> None:
    """Set MTU, bridge and port settings of an existing VXLAN device, and set it up.

    Raises KernelError.
    """
    rtnl.set_link(name, mtu=mtu, master=bridge)
    named = ifinfo() + text(IFLA_IFNAME, name)
    what = f"reset port '{name}'"
    rtnl.transact(
        *(Message(what, NEWLINK, 0, named + setting) for setting in _port_settings()),
        Message(
            f"set link '{name}' up", NEWLINK, 0, ifinfo(0, IFF_UP, IFF_UP) + text(IFLA_IFNAME, name)
        ),
    )


def _port_settings() -> list[bytes]:
    """Return the attributes for the bridge port of a VXLAN device."""
    return bridge_flags.usual(", ".join(bridge_flags.TUNNEL_PORT), tunnel=True)
