"""Define the rules for networks that span hosts: who may say what through VXLAN (RFC 7348).

A packet of another host is judged where it arrives, by the inner headers, before connection
tracking. It passes only if its inner destination is a service here, and if its outer source, VNI,
inner source MAC and inner source address are those of one claim. So no host speaks for a service of
another, nobody is heard at an address that he has lost, and ARP, neighbour discovery to all, VLAN
tags and broadcasts of other hosts end here. On a host without such a network all sets are empty.

Offsets are in bits from the UDP header: flags 64, VNI 96, then the inner frame: destination 128,
source 176, EtherType 224, source address 336 (IPv4) or 304 (IPv6).
"""

from __future__ import annotations

TUNNEL = "nw-cluster"
"""The WireGuard link of an encrypted cluster (kinds/wireguard.py)."""
VNI, TO, FROM = "@th,96,24", "@th,128,48", "@th,176,48"
_OUTER = {4: "ip saddr", 6: "ip6 saddr"}
_INNER = {4: ("0x0800", "@th,336,32"), 6: ("0x86dd", "@th,304,128")}
_PAIRS = [(outer, inner) for outer in (4, 6) for inner in (4, 6)]


def _key(outer: int, inner: int) -> str:
    return f"{_OUTER[outer]} . {VNI} . {FROM} . {_INNER[inner][1]}"


SETS = "\n".join(
    (
        "\tset wire { type inet_service; }",
        "\tset sealed { type inet_service; }",
        "\tset vxlans { type ifname; }",
        f"\tset here {{ typeof {VNI} . {TO}; }}",
        *(f"\tset vx{o}{i} {{ typeof {_key(o, i)}; }}" for o, i in _PAIRS),
    )
)
"""The sets: the UDP port, VXLAN devices, services here, and the claims of others.

The port is also in ``sealed`` if its packets must go through the tunnel. Its addresses are IPv6, so
only IPv6 is looked up there; no claim has another host's IPv4 address then.

``vx46`` has claims of IPv6 addresses by hosts with IPv4 underlay addresses.
"""

ARRIVES = "udp dport @wire jump wire"
"""The first rule of prerouting. A packet from lo is judged too: VXLAN sockets listen there."""

LEAVES = "udp dport @wire jump wire_away"
"""The first rule after masquerading: a service or user could otherwise write such packets itself.

Their outer source would be this host's. Only packets that a VXLAN device has wrapped have it as
their input device (ip_output, net/ipv4/ip_output.c).
"""

UNMARKED = 'oifname "nx-*" meta mark set meta mark & 0xb3ffffff'
"""The rule that takes niso's marks off what a VXLAN device is to wrap.

Those are `CHECKED`, `TRACKED` and `RESOLVED`. For a packet with a mark the device looks up its
route again (ip_tunnel_dst_cache_usable, include/net/ip_tunnels.h).
"""

CHAINS = "\n".join(
    (
        "\tchain wire {",
        f'\t\tmeta nfproto ipv6 udp dport @sealed iifname != "{TUNNEL}" fib daddr type != unicast'
        ' counter drop comment "not through the tunnel"',
        f"\t\t{VNI} . {TO} @here jump claimed",
        '\t\tfib daddr type unicast return comment "not for this host"',
        '\t\tcounter drop comment "of another host, and nobody has claimed it"',
        "\t}",
        "",
        "\tchain claimed {",
        *(
            f"\t\t@th,64,8 0x08 @th,224,16 {_INNER[i][0]} {_key(o, i)} @vx{o}{i} notrack accept"
            for o, i in _PAIRS
        ),
        "\t}",
        "",
        "\tchain wire_away {",
        "\t\tiifname != @vxlans fib saddr type local counter drop"
        ' comment "not sent by a VXLAN device, but with the address of this host"',
        f'\t\tmeta nfproto ipv6 udp dport @sealed oifname != "{TUNNEL}" fib saddr type local'
        ' counter drop comment "it would leave unencrypted"',
        "\t}",
        "",
        "\tchain wire_out {",
        "\t\ttype filter hook output priority raw; policy accept;",
        "\t\tudp dport @wire notrack",
        "\t}",
    )
)

CLAIMS = tuple(f"vx{o}{i}" for o, i in _PAIRS)
"""The sets with claims of others."""
