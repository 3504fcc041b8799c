"""Compare the settings of bridges and their ports with those that niso sets (linux/if_link.h).

Each setting changes where frames go: an isolated port reaches no other, and a port without
bcast_flood receives no ARP request. niso changes two defaults of a new port. Its ports do not flood
unicast frames to an unknown MAC, since other services could read them. They do not learn MACs,
since each MAC has a static entry.
"""

from __future__ import annotations

import struct

from niso.kernel.netlink import attribute, nested, text

_INFO_KIND, _INFO_DATA, _INFO_SLAVE_KIND, _INFO_SLAVE_DATA = 1, 2, 4, 5
_UP = 6  # IF_OPER_UP
_FORWARDING = 3  # BR_STATE_FORWARDING
_PORT_STATE = 1
NEW_PORT = "learning on, flood on"
"""The drift of a port as the kernel creates it."""
_STATES = {0: "disabled", 1: "listening", 2: "learning", 4: "blocking"}

_MODE, _LEARNING, _FLOOD = 4, 8, 9  # IFLA_BRPORT_MODE (hairpin), _LEARNING, _UNICAST_FLOOD

# IFLA_BRPORT_*: (name in bridge(8), value of niso's ports)
_FLAGS: dict[int, tuple[str, int]] = {
    5: ("guard", 0),
    6: ("root_block", 0),
    7: ("fastleave", 0),
    8: ("learning", 0),
    9: ("flood", 0),
    10: ("proxy_arp", 0),
    12: ("proxy_arp_wifi", 0),
    27: ("mcast_flood", 1),
    28: ("mcast_to_unicast", 0),
    29: ("vlan_tunnel", 0),
    30: ("bcast_flood", 1),
    32: ("neigh_suppress", 0),
    33: ("isolated", 0),
    39: ("locked", 0),
    40: ("mab", 0),
}
_OF_TUNNELS = {27: 0, 30: 0, 32: 1}
"""Settings of ports that are VXLAN devices, where they differ: they flood nothing at all, and the
bridge itself answers ARP requests and neighbour solicitations for addresses behind them."""
TUNNEL_PORT = ("learning", "flood", "mcast_flood", "bcast_flood", "neigh_suppress")
"""The settings that a new port of a VXLAN device needs."""
ARP_OFF, ARP_OFF_INSIDE = "arp off", "arp off inside"
"""The flag IFF_NOARP, which stops ARP, on a bridge or port, and on the other end of a pair."""
_GROUP_FORWARD = 31  # IFLA_BRPORT_GROUP_FWD_MASK

# IFLA_BR_*: (name in ip-link(8), struct format, value of niso's bridges)
_SETTINGS: dict[int, tuple[str, str, int]] = {
    5: ("stp_state", "=I", 0),  # first: it decides which values the other settings may have
    1: ("forward_delay", "=I", 0),
    4: ("ageing_time", "=I", 30_000),
    7: ("vlan_filtering", "=B", 0),
    9: ("group_fwd_mask", "=H", 0),
    23: ("mcast_snooping", "=B", 0),
}


def drift_of_port(settings: dict[int, bytes], operstate: int, tunnel: bool) -> str:
    """Return the settings of a port that differ from niso's, such as ``isolated on, learning on``.

    ``settings`` is the port's IFLA_INFO_SLAVE_DATA. A ``tunnel`` port is a VXLAN device. The port
    state counts only while the link has a carrier, since otherwise the kernel sets the state.
    """
    parts = [
        f"{name} {'on' if settings[kind][0] else 'off'}"
        for kind, (name, usual) in _flags(tunnel).items()
        if settings.get(kind, b"\0")[:1] != bytes([usual]) and kind in settings
    ]
    if any(settings.get(_GROUP_FORWARD, b"")):
        parts.append("group_fwd_mask set")
    state = settings.get(_PORT_STATE, b"")[:1]
    if operstate == _UP and state and state[0] != _FORWARDING:
        parts.append(f"state {_STATES.get(state[0], state[0])}")
    return ", ".join(parts)


def drift_of_bridge(settings: dict[int, bytes]) -> str:
    """Return the settings of a bridge that differ from niso's, such as ``stp_state 1``.

    ``settings`` is the bridge's IFLA_INFO_DATA.
    """
    parts = []
    for kind, (name, form, usual) in _SETTINGS.items():
        payload = settings.get(kind, b"")
        value = struct.unpack(form, payload)[0] if len(payload) == struct.calcsize(form) else usual
        if value != usual:
            parts.append(f"{name} {value}")
    return ", ".join(parts)


def _flags(tunnel: bool) -> dict[int, tuple[str, int]]:
    if not tunnel:
        return _FLAGS
    return {kind: (name, _OF_TUNNELS.get(kind, usual)) for kind, (name, usual) in _FLAGS.items()}


def new_port(hairpin: bool, learns: bool = False) -> bytes:
    """Return the attributes that apply niso's settings to a new port in one RTM_NEWLINK.

    With ``learns``, learning and flooding stay on, the kernel's defaults. For each message that
    changes one of the two, the kernel walks all ports (nbp_update_port_count, net/bridge/br_if.c).
    """
    flags = attribute(_MODE, bytes([hairpin]))
    for kind in (_LEARNING, _FLOOD):
        flags += attribute(kind, bytes([learns]))
    return _linkinfo(_INFO_SLAVE_KIND, _INFO_SLAVE_DATA, flags)


def usual(drift: str, tunnel: bool = False) -> list[bytes]:
    """Return the attributes that reset the settings named in ``drift``, of a bridge or a port.

    Each attribute needs its own RTM_NEWLINK, in this order.
    """
    names = [part.partition(" ")[0] for part in drift.split(", ")] if drift else []
    port = [
        attribute(kind, bytes([usual]))
        for kind, (name, usual) in _flags(tunnel).items()
        if name in names
    ]
    if "group_fwd_mask" in names:
        port.append(attribute(_GROUP_FORWARD, struct.pack("=H", 0)))
    if "state" in names:
        port.append(attribute(_PORT_STATE, bytes([_FORWARDING])))
    own = [
        attribute(kind, struct.pack(form, usual))
        for kind, (name, form, usual) in _SETTINGS.items()
        if name in names
    ]
    return [
        *(_linkinfo(_INFO_SLAVE_KIND, _INFO_SLAVE_DATA, setting) for setting in port),
        *(_linkinfo(_INFO_KIND, _INFO_DATA, setting) for setting in own),
    ]


def _linkinfo(kind: int, data: int, setting: bytes) -> bytes:
    return nested(18, text(kind, "bridge"), nested(data, setting))
