"""Define the rules for networks that span hosts: which hosts may send what by VXLAN (RFC 7348).

A packet of another host is checked where it arrives, by the inner headers, before connection
tracking. It passes only if its inner destination is a service here, and if its outer source, VNI,
inner source MAC and inner source address all belong to one claim. So no host can send as a service
of another host, or from an address that its service has lost. ARP, neighbour discovery to all, VLAN
tags and broadcasts of other hosts are dropped here. On a host without such a network all sets are
empty.

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
"""The sets: the UDP port, VXLAN devices, services here, and the claims of other hosts.

The port is also in ``sealed`` if its packets must go through the tunnel. Tunnel addresses are IPv6,
so only IPv6 is looked up there; no claim then has another host's IPv4 address.

``vx46`` has claims of IPv6 addresses by hosts with IPv4 underlay addresses.
"""

ARRIVES = "udp dport @wire jump wire"
"""The first rule of prerouting. It also checks packets from lo, where VXLAN sockets listen, too."""

LEAVES = "udp dport @wire jump wire_away"
"""The first rule after masquerading: otherwise a service or user could forge such packets.

Their outer source would be this host's. Only packets that a VXLAN device has encapsulated have that
device as their input device (ip_output, net/ipv4/ip_output.c).
"""

UNMARKED = 'oifname "nx-*" meta mark set meta mark & 0xb3ffffff'
"""The rule that clears niso's marks on packets that a VXLAN device is to encapsulate.

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
"""The sets with claims of other hosts."""
