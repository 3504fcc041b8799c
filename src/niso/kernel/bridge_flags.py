"""What of a bridge and its ports niso leaves, or sets, as it is on a new one (linux/if_link.h): read, and put back.

Any of it changes where frames go: an isolated port reaches no other, one that floods nothing hears no question for it.
"""

from __future__ import annotations

import struct

from niso.kernel.netlink import attribute, nested, text

_INFO_KIND, _INFO_DATA, _INFO_SLAVE_KIND, _INFO_SLAVE_DATA = 1, 2, 4, 5
_UP = 6  # IF_OPER_UP
_FORWARDING = 3  # BR_STATE_FORWARDING
_PORT_STATE = 1
_STATES = {0: "disabled", 1: "listening", 2: "learning", 4: "blocking"}

# IFLA_BRPORT_*: (what bridge(8) calls it, what a new port has)
_FLAGS: dict[int, tuple[str, int]] = {
    5: ("guard", 0),
    6: ("root_block", 0),
    7: ("fastleave", 0),
    8: ("learning", 1),
    9: ("flood", 1),
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
ARP_OFF, ARP_OFF_INSIDE = "arp off", "arp off inside"
"""A flag of the link itself (IFF_NOARP), of a bridge, a port, or a pair's other end: whoever has it finds no neighbour."""
_GROUP_FORWARD = 31  # IFLA_BRPORT_GROUP_FWD_MASK

# IFLA_BR_*: (what ip-link(8) calls it, how struct writes it, what niso's bridges have)
_SETTINGS: dict[int, tuple[str, str, int]] = {
    5: ("stp_state", "=I", 0),  # first: what it allows of the others depends on it
    1: ("forward_delay", "=I", 0),
    4: ("ageing_time", "=I", 30_000),
    7: ("vlan_filtering", "=B", 0),
    9: ("group_fwd_mask", "=H", 0),
    23: ("mcast_snooping", "=B", 0),
}


def drift_of_port(found: dict[int, bytes], operstate: int) -> str:
    """What of a port (its IFLA_INFO_SLAVE_DATA) is not as on a new one: ``isolated on, learning off``.

    Its state counts while its link carries: then only somebody's word keeps it from forwarding.
    """
    words = [
        f"{name} {'on' if found[kind][0] else 'off'}"
        for kind, (name, usual) in _FLAGS.items()
        if found.get(kind, b"\0")[:1] != bytes([usual]) and kind in found
    ]
    if any(found.get(_GROUP_FORWARD, b"")):
        words.append("group_fwd_mask set")
    state = found.get(_PORT_STATE, b"")[:1]
    if operstate == _UP and state and state[0] != _FORWARDING:
        words.append(f"state {_STATES.get(state[0], state[0])}")
    return ", ".join(words)


def drift_of_bridge(found: dict[int, bytes]) -> str:
    """What of a bridge (its IFLA_INFO_DATA) niso did not make so: ``stp_state 1``."""
    words = []
    for kind, (name, form, usual) in _SETTINGS.items():
        payload = found.get(kind, b"")
        value = struct.unpack(form, payload)[0] if len(payload) == struct.calcsize(form) else usual
        if value != usual:
            words.append(f"{name} {value}")
    return ", ".join(words)


def usual(drift: str) -> list[bytes]:
    """The attributes for one RTM_NEWLINK after another that put back what ``drift`` names, of a bridge or of a port."""
    names = [words.partition(" ")[0] for words in drift.split(", ")] if drift else []
    port = [
        attribute(kind, bytes([usual])) for kind, (name, usual) in _FLAGS.items() if name in names
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
        *(_linkinfo(_INFO_SLAVE_KIND, _INFO_SLAVE_DATA, each) for each in port),
        *(_linkinfo(_INFO_KIND, _INFO_DATA, each) for each in own),
    ]


def _linkinfo(kind: int, data: int, setting: bytes) -> bytes:
    return nested(18, text(kind, "bridge"), nested(data, setting))
