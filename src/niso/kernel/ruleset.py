"""Define niso's two nftables tables: DNAT, masquerading, forwarding, anti-spoofing and tunnels.

The chains of the tables never change. Sets and maps contain the services and networks. A change of
services only adds and deletes elements of sets and maps, in one transaction, so its cost does not
depend on the number of services. Both tables cover IPv4 and IPv6. `niso.kernel.policy_rules`
defines the chains for policies and recorded flows, and `niso.plan.elements` computes the elements.
docs/design/packet.md describes the path of a packet.

The bridge table checks frames at the ports of niso's bridges: which frames a service may send, and
which frames may reach a service. This table runs before the inet table, and records its result in
the packet mark.

A VXLAN packet of another host is checked where it arrives, by the inner headers, before connection
tracking (RFC 7348). It passes only if its inner destination is a service on this host. In addition
its outer source, VNI, inner source MAC and inner source address must all belong to the same claim.
A claim is the cluster's reservation of addresses for a service. Therefore no host can send packets
with the address of another host's service, or with an address that its own service no longer has.
ARP packets, multicast neighbour discovery, frames with VLAN tags and broadcasts of other hosts are
dropped. The kernel may cut a large packet into several frames after this check. The check therefore
writes the number of the sending host into the packet's priority, and the bridge table looks up
number and source of each frame. On a host without a network that spans hosts, all sets for these
checks are empty.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import unpack_from

from niso.base.names import BRIDGE_GROUP, BRIDGES, PORT_GROUP, TUNNEL_GROUP, family_of, packed
from niso.base.native import sha256
from niso.kernel import policy_rules
from niso.kernel.policy_rules import CHECKED, CLASSES

# --- packets of other hosts (VXLAN) ---------------------------------------------------------------

TUNNEL = "nw-cluster"  # the WireGuard interface of an encrypted cluster (kinds/tunnels.py)
# Offsets are in bits from the UDP header: flags 64, VNI 96, then the inner frame: destination 128,
# source 176, EtherType 224, source address 336 (IPv4) or 304 (IPv6).
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
        *(f"\tmap vx{o}{i} {{ typeof {_key(o, i)} : meta priority; }}" for o, i in _PAIRS),
    )
)
"""The sets for the UDP port, the VXLAN devices, services here, and the maps from other hosts'
reservations to the number of the host.

The port is also in ``sealed`` if its packets must go through the WireGuard tunnel. Tunnel addresses
are IPv6, so only IPv6 is looked up there; no reservation then has another host's IPv4 address.
``vx46`` has the IPv6 addresses of services on hosts with IPv4 underlay addresses.
"""

# The first rule of prerouting. It also checks packets from lo, where VXLAN sockets receive, too.
ARRIVES = "udp dport @wire jump wire"
# The first rule after masquerading. Without it, a service or user could forge VXLAN packets, whose
# outer source would be the address of this host. Only packets that a VXLAN device has encapsulated
# have that device as their input device (ip_output, net/ipv4/ip_output.c).
LEAVES = "udp dport @wire jump wire_away"
# The rule that clears niso's packet marks `CHECKED`, `TRACKED` and `RESOLVED` on packets that a VXLAN
# device is to encapsulate. For a packet with a mark, the device looks up its route again
# (ip_tunnel_dst_cache_usable, include/net/ip_tunnels.h).
UNMARKED = f"meta oifgroup {TUNNEL_GROUP} meta mark set meta mark & 0xb3ffffff"

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
            f"\t\t@th,64,8 0x08 @th,224,16 {_INNER[i][0]}"
            f" meta priority set {_key(o, i)} map @vx{o}{i} notrack accept"
            for o, i in _PAIRS
        ),
        "\t}",
        "",
        "\tchain wire_away {",
        f"\t\tmeta iifgroup {TUNNEL_GROUP} goto wire_sealed",
        "\t\tiifname != @vxlans fib saddr type local counter drop"
        ' comment "not sent by a VXLAN device, but with the address of this host"',
        "\t\tgoto wire_sealed",
        "\t}",
        "",
        "\tchain wire_sealed {",
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

CLAIMS = tuple(f"vx{o}{i}" for o, i in _PAIRS)  # the maps with other hosts' reservations


# --- rate limits of packets -----------------------------------------------------------------------

FLOWS, FRAGMENTS, ARP, ASKERS = "flows", "fragments", "arp_nd", "askers"
TO_ALL = "to_all"
"""Sets whose elements each have a rate limit. A source without an element has no limit.

New flows are limited by address. IP fragments, ARP together with neighbour discovery, and
multicasts together with broadcasts (``to_all``) are limited by bridge port. ``askers`` limit how
many addresses on its own links the host resolves for a service, except addresses resolved in the
last `NEXT_HOP_S` seconds: each takes an entry of the machine's neighbour table.
"""
_BURST = {FLOWS: 5, FRAGMENTS: 5, ARP: 10, ASKERS: 5, TO_ALL: 5}  # burst, in seconds of the rate


def limit(what: str, rate: int) -> tuple[int, str, int, bool]:
    """Return the value of an element that limits a rate: (rate, unit of time, burst in packets,
    True). ``what`` is the name of the element's set, and ``rate`` is in packets per second. True
    means that packets above the limit match.
    """
    return (rate, "second", rate * _BURST[what], True)


def limit_text(value: tuple[int, str, int, bool]) -> str:
    rate, per, burst, over = value
    return f"limit rate{' over' if over else ''} {rate}/{per} burst {burst} packets"


# --- the bridge table -----------------------------------------------------------------------------

# The packet mark of a frame that a foreign bridge switches. The bridge table sets it for the chain
# forward of the inet table.
SWITCHED = "0x4e150000"

RESOLVED = "0x4000000"
"""The bit of the packet mark for frames into which the bridge table has written the receiver's MAC.

Other firewalls may restore the bit from a connection's mark, on a frame to any MAC. Therefore the
bit alone is not enough. A frame that leaves by a port was addressed to the bridge's own MAC
(``pkttype host``) only if the bridge table rewrote it, or the host translated it. In addition, a
port that niso has not created may learn a service's MAC.
"""
_RESOLVED = f"meta mark set meta mark | {RESOLVED}"
# the bit of the packet mark for packets from a service to an unassigned address of its subnet
ABSENT = "0x10000000"
_ABSENT = f"meta mark set meta mark & 0xbfffffff | {ABSENT}"  # without the bit `CHECKED`
_CHECK = f"meta mark set meta mark | {CHECKED}"
# Matches frames from other hosts. A port that has lost its group returns from from_tunnel.
_NO_PORT = f"meta iifgroup != {PORT_GROUP}"
_BOTH = hex(int(CHECKED, 16) | int(RESOLVED, 16))
# IPv4 is checked and sent to the receiver's MAC by one rule
_RESOLVED4 = f"meta mark set meta mark | {_BOTH}"
_UNTRACKED_COPY = hex(int(RESOLVED, 16) | int(policy_rules.TRACKED, 16))

# The set of the bridge table that counts packets with a foreign source address, by bridge port. The
# rules fill it, so it is not part of State. A separate rule adds to the set before the drop, because
# adding to a full set ends the rule.
DROPPED_FROM = "dropped_from"

MULTICAST = "multicast"
"""The sets of networks whose services receive each other's multicasts and broadcasts: of the
bridge table with the ports, of the inet table with the bridges.
"""
_IS_TO_ALL = "meta pkttype != host meta pkttype != other"
_IS_MULTICAST = f"{_IS_TO_ALL} iifname @{MULTICAST} meta l4proto udp meta mark & {CHECKED} != 0"
"""The match of packets whose sender's policy ``to_all`` evaluates before the bridge copies them.

``forward`` accepts the copies by the same match, so each packet that it accepts was evaluated.
"""
# the links of a bridge by their groups: ports of services, and VXLAN devices
_PORTS = f"group & {PORT_GROUP ^ TUNNEL_GROUP ^ 0xFFFFFFFF:#x} == {PORT_GROUP}"

TABLE = f"""\
table bridge niso {{
	comment "made by niso; see niso net rules"

	set owner {{ type ifname; }}
	set ports {{ type ifname; }}
	set sources4 {{ type ifname . ether_addr . ipv4_addr; }}
	set sources6 {{ type ifname . ether_addr . ipv6_addr; }}
	set links {{ typeof iifname . @th,208,48; }}
	set heard4 {{ typeof meta priority . ip saddr; }}
	set heard6 {{ typeof meta priority . ip6 saddr; }}
	set quoted4 {{ typeof iifname . @th,192,32; }}
	set quoted6 {{ typeof iifname . @th,256,128; }}
	set subnets4 {{ type ipv4_addr; flags interval; }}
	set subnets6 {{ type ipv6_addr; flags interval; }}
	set own4 {{ type ether_addr . ipv4_addr; flags interval; }}
	set own6 {{ type ether_addr . ipv6_addr; flags interval; }}
	set host_macs {{ type ether_addr; }}
	map receivers4 {{ type ether_addr . ipv4_addr : ether_addr; }}
	map receivers6 {{ type ether_addr . ipv6_addr : ether_addr; }}
	set gateways4 {{ type ipv4_addr; }}
	set gateways6 {{ type ipv6_addr; }}
	set vips4 {{ type ether_addr . ipv4_addr; }}
	set vips6 {{ type ether_addr . ipv6_addr; }}
	set broadcasts {{ type ipv4_addr; }}
	set {FRAGMENTS} {{ type ifname; {limit_text(limit(FRAGMENTS, 40))}; }}
	set {ARP} {{ type ifname; {limit_text(limit(ARP, 100))}; }}
	set {MULTICAST} {{ type ifname; }}
	set {TO_ALL} {{ type ifname; {limit_text(limit(TO_ALL, 100))}; }}
{policy_rules.HEAR_SETS}
{policy_rules.BRIDGE_SETS}
	set {DROPPED_FROM} {{ type ifname; flags dynamic; counter; }}

	chain prerouting {{
		type filter hook prerouting priority -300; policy accept;
		ether type ip iifname . ether saddr . ip saddr @sources4 goto from_own4
		iifname @ports goto from_port
		ether type arp arp saddr ip @subnets4 counter drop comment "ARP for a service from a port that niso has not made"
	}}

	chain from_own4 {{
		@nh,48,16 & 0x3fff != 0 iifname @{FRAGMENTS} counter drop comment "too many fragments of a service"
		meta l4proto icmp icmp type {{ destination-unreachable, source-quench, redirect, time-exceeded, parameter-problem }} jump from_own_error
		{_NO_PORT} jump from_tunnel4
		meta pkttype host ether daddr set ether daddr . ip daddr map @receivers4 {_RESOLVED4} accept comment "to a service, by its gateway's MAC"
		@nh,128,8 127 counter drop comment "loopback from a wire, before DNAT can hide it"
		meta pkttype host ip daddr @subnets4 jump to_own4
		{_IS_TO_ALL} iifname @{TO_ALL} counter drop comment "too many multicasts and broadcasts of a service"
		{_CHECK} accept
	}}

	chain from_tunnel4 {{
		meta pkttype other @nh,128,8 != 127 meta priority . ip saddr @heard4 {_CHECK} accept
		goto from_tunnel
	}}

	chain to_own4 {{
		ip daddr @gateways4 return
		ether daddr . ip daddr @vips4 return
		ether daddr . ip daddr @own4 {_ABSENT} accept comment "to an address that no service has: refused in raw"
		ether daddr != @host_macs counter drop comment "to the MAC of a port: the host would ask for a neighbour"
	}}

	chain to_own6 {{
		ether daddr set ether daddr . ip6 daddr map @receivers6 {_RESOLVED} return comment "to a service, by its gateway's MAC"
		ip6 daddr fe80::/10 ip6 daddr != fe80::1 counter drop comment "link-local: no service has such an address, the bridge this one"
		ip6 daddr != @subnets6 return
		ip6 daddr @gateways6 return
		ether daddr . ip6 daddr @vips6 return
		ether daddr . ip6 daddr @own6 {_ABSENT} accept comment "to an address that no service has: refused in raw"
		ether daddr != @host_macs counter drop comment "to the MAC of a port: the host would ask for a neighbour"
	}}

	chain from_own_error {{
		icmp type {{ destination-unreachable, time-exceeded, parameter-problem }} iifname . @th,192,32 @quoted4 return comment "about a packet to itself"
		add @{DROPPED_FROM} {{ iifname }}
		counter drop comment "about the packets of others"
	}}

	chain from_tunnel {{
		ether type ip6 meta pkttype other iifname . ether saddr . ip6 saddr @sources6 meta priority . ip6 saddr @heard6 {_CHECK} goto from_own6
		iifname != "nx-*" return comment "a port that has lost its group"
		add @{DROPPED_FROM} {{ iifname }}
		counter drop comment "not to the MAC of one service, or not a service of the host that sent it"
	}}

	chain from_port {{
		{_NO_PORT} jump from_tunnel
		ether type arp iifname @{ARP} counter drop comment "too much ARP of a service"
		ether type arp meta length <= 46 iifname . ether saddr . arp saddr ip @sources4 iifname . arp saddr ether . arp saddr ip @sources4 accept
		ether type ip6 iifname . ether saddr . ip6 saddr @sources6 {_CHECK} goto from_own6
		ether type ip6 icmpv6 type {{ mld-listener-report, mld-listener-done, mld2-listener-report, nd-router-solicit }} drop comment "routine announcements of a kernel, not counted"
		add @{DROPPED_FROM} {{ iifname }}
		counter drop comment "not its own address"
	}}

	chain from_own6 {{
		ip6 daddr ::1 counter drop comment "loopback from a wire"
		exthdr frag exists iifname @{FRAGMENTS} counter drop comment "too many fragments of a service"
		meta pkttype host jump to_own6
		meta l4proto != ipv6-icmp {_IS_TO_ALL} iifname @{TO_ALL} counter drop comment "too many multicasts of a service"
		meta l4proto != ipv6-icmp accept
		icmpv6 type {{ echo-request, echo-reply }} accept
		icmpv6 type {{ destination-unreachable, packet-too-big, time-exceeded, parameter-problem }} iifname . @th,256,128 @quoted6 accept comment "about a packet to itself"
		icmpv6 type nd-neighbor-solicit goto from_own_nd
		icmpv6 type nd-neighbor-advert iifname . ether saddr . icmpv6 taddr @sources6 goto from_own_nd
		exthdr frag exists frag frag-off != 0 accept comment "its rest: hosts take no ND in fragments (RFC 6980)"
		add @{DROPPED_FROM} {{ iifname }}
		counter drop comment "router advertisements, redirects, ND for others, errors about their packets"
	}}

	chain from_own_nd {{
		iifname @{ARP} counter drop comment "too much neighbour discovery of a service"
		ip6 length 24 accept comment "no option"
		ip6 length 32 @th,192,16 {{ 0x0101, 0x0201 }} iifname . @th,208,48 @links accept comment "one option, with its own MAC"
		add @{DROPPED_FROM} {{ iifname }}
		counter drop comment "ND with a MAC that is not its own"
	}}

	chain forward {{
		type filter hook forward priority -200; policy accept;
		meta mark & {_BOTH} == {_BOTH} meta pkttype host meta iif{_PORTS} meta oif{_PORTS} goto see comment "to one service alone"
		meta mark & {CHECKED} == 0 iifname != @ports oifname @ports counter drop comment "from a port that niso has not made, or that has lost its name"
		iifname != "n*" oifname @ports counter drop comment "the same, with a mark of another firewall"
		ether type ip oifname . ether daddr . ip daddr @sources4 goto see comment "the same, by its own MAC"
		ether type ip6 oifname . ether daddr . ip6 daddr @sources6 goto see
		iifname @ports goto between
		iifname != @ports meta mark & 0xffff0000 == 0 meta mark set meta mark | {SWITCHED}
	}}

	chain input {{
		type filter hook input priority -200; policy accept;
		meta mark & {_UNTRACKED_COPY} == {RESOLVED} iifname @ports meta mark set meta mark & 0xbfffffff comment "a copy for who listens on the bridge: raw drops it"
		meta pkttype other meta mark & {policy_rules.TRACKED} == 0 iifname "nx-*" accept comment "the same of another host: has no flow"
		meta pkttype other iifname @ports counter drop comment "to the MAC of another port: the host would not take it, but its flow"
	}}

{policy_rules.BRIDGE_CHAINS}
	chain between {{
		ether type arp accept
		icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
		{_IS_TO_ALL} meta l4proto udp iifname @{MULTICAST} oifname @{MULTICAST} goto among_all comment "on a network with multicast"
		meta pkttype {{ broadcast, multicast }} counter drop
		ip daddr {{ 224.0.0.0/4, 255.255.255.255 }} counter drop comment "in a frame to one MAC"
		ip daddr @broadcasts counter drop
		ip6 daddr ff00::/8 counter drop
		add @{DROPPED_FROM} {{ iifname }}
		counter drop comment "to a MAC that has another address, or to none"
	}}

	chain among_all {{
		ip daddr != {{ 224.0.0.0/4, 255.255.255.255 }} ip daddr != @broadcasts counter drop comment "to one address, in a frame to all"
		ip6 daddr != ff00::/8 counter drop comment "to one address, in a frame to all"
		oifname . ether saddr . ip saddr @sources4 drop comment "back to its sender, by a hairpin port"
		oifname . ether saddr . ip6 saddr @sources6 drop
		ether type ip oifname @{policy_rules.HEARS}4 jump check_{policy_rules.HEARS}4
		ether type ip6 oifname @{policy_rules.HEARS}6 jump check_{policy_rules.HEARS}6
		accept
	}}

{policy_rules.HEAR_CHAINS}
	chain postrouting {{
		type filter hook postrouting priority 300; policy accept;
		meta oifgroup {PORT_GROUP} accept comment "to a service: neither of the next two"
		{UNMARKED}
		meta mark & 0xffff0000 == {SWITCHED} meta mark set meta mark & 0x0000ffff
	}}
}}
"""


# --- service addresses ----------------------------------------------------------------------------


SLOTS = 64
"""The number of slots of a service address. Each slot holds the address of one instance."""

_SLOT = f"numgen random mod {SLOTS}"
"""The type of a slot in the declarations of maps. No rule draws a random number.

nft 1.1.3 crashes when it lists a map whose key is declared with ``jhash``. A key declared like this
has the same length and byte order.
"""
SEED = 0x6E69736F
_HASH = f"jhash ip saddr . th sport mod {SLOTS} seed {SEED:#x}"
_HASH6 = _HASH.replace("ip ", "ip6 ")


def _address(family: int) -> str:
    return "ip" if family == 4 else "ip6"


SERVICE_SETS = "\n".join(
    f"\t{line}"
    for family in (4, 6)
    for line in (
        f"set vips{family} {{ type ifname . ipv{family}_addr; }}",
        f"map slots{family} {{ typeof {_address(family)} daddr . {_SLOT}"
        f" : {_address(family)} daddr; }}",
        f"map near{family} {{ typeof {_address(family)} daddr . {_SLOT}"
        f" : {_address(family)} daddr; }}",
        f"map front_addr{family} {{ type ipv{family}_addr . inet_proto . inet_service"
        f" : ipv{family}_addr; }}",
        f"map front_any{family} {{ type inet_proto . inet_service : ipv{family}_addr; }}",
        f"map front_local_addr{family} {{ type ifname . ipv{family}_addr . inet_proto"
        f" . inet_service : ipv{family}_addr; }}",
        f"map front_local_any{family} {{ type ifname . inet_proto . inet_service"
        f" : ipv{family}_addr; }}",
        f"map front_port{family} {{ type ipv{family}_addr . inet_proto . inet_service"
        " : inet_service; }",
    )
)
"""The declarations of the sets and maps for services with a service address.

The set ``vips`` contains the service addresses of each bridge. ``slots`` maps each slot to an
instance. ``near`` maps slots to instances of this host only, for services that have instances on
other hosts too. The ``front_`` maps lead from a published port to the service address and the port
inside the instance.
"""


def _spread(slots: str, port: str = "") -> str:
    """Return the rules that translate a service address to the address of one instance. A hash of
    the client's address and port selects a slot, and the map ``slots`` maps each slot to an
    instance. So all packets of a flow go to the same instance, even after the flow's conntrack
    entry was deleted. ``slots`` and ``port`` are map names without their suffix 4 or 6.
    """
    return "\n".join(
        f"\t\t{'meta l4proto { tcp, udp, sctp } ' if port else ''}"
        f"dnat {ip} to {ip} daddr . {hashed} map @{slots}{family}"
        + (f" : {ip} daddr . meta l4proto . th dport map @{port}{family}" if port else "")
        for family, ip, hashed in ((4, "ip", _HASH), (6, "ip6", _HASH6))
    )


def slot_of(client: str, proto: str, port: int | None) -> int | None:
    """Return the slot that the rules select for a client's flow to a service address. ``port`` is
    the source port. If ``port`` is None, the result is None, except for ICMP.

    The slot is ``jhash`` of the client's address and port, as nft_hash computes it: Jenkins'
    lookup3 (linux/jhash.h) of two registers. The port fills half of the second register. For an
    ICMP echo request, the rules read its type and code as the port.
    """
    if proto == "icmp":
        port = (8 if family_of(client) == 4 else 128) << 8
    if port is None:
        return None
    data = packed(client) + port.to_bytes(2, "big") + bytes(2)
    a = b = c = (0xDEADBEEF + len(data) + SEED) & _WORD
    while data:
        # whole blocks are read in the machine's byte order, the last one byte by byte
        words = unpack_from("=3I" if len(data) > 12 else "<3I", data.ljust(12, b"\0"))
        a, b, c = ((own + word) & _WORD for own, word in zip((a, b, c), words, strict=True))
        for turn in (4, 6, 8, 16, 19, 4) if len(data) > 12 else ():
            a, b, c = b, (c + b) & _WORD, ((a - c) ^ _rotated(c, turn)) & _WORD
        data = data[12:]
    for turn in (14, 11, 25, 16, 4, 14, 24):
        a, b, c = b, ((c ^ b) - _rotated(b, turn)) & _WORD, a
    return b * SLOTS >> 32


_WORD = 0xFFFFFFFF


def _rotated(word: int, bits: int) -> int:
    return (word << bits | word >> 32 - bits) & _WORD


SERVICE_CHAINS = f"""\
	chain spread {{
{_spread("slots")}
	}}

	chain spread_near {{
{_spread("near")}
		goto spread
	}}

	chain to_front {{
{_spread("near", "front_port")}
{_spread("slots", "front_port")}
	}}
"""


def _to_front(key: str = "", where: str = "") -> str:
    """Return the rules that replace the host's address by a service address, for published ports.
    The next rules see the service address as the destination. ``key`` is the beginning of the key
    in the maps, and ``where`` a part of the maps' names.
    """
    return "\n".join(
        f"\t\t{ip} daddr set {key}{at}meta l4proto . th dport map @front_{where}{name}{family}"
        " goto to_front"
        for family, ip in ((4, "ip"), (6, "ip6"))
        for name, at in (("addr", f"{ip} daddr . "), ("any", ""))
    )


# --- the inet table: DNAT, masquerading, forwarding -----------------------------------------------

INET = "inet niso"
BRIDGE = "bridge niso"

# The bit of the packet mark for packets that a program of the host, with one of `OWN_PORTS`, would
# receive. It is set before connection tracking and cleared after it.
PROGRAM = "0x20000000"
# the same bit on egress, for the first packet of a host's flow whose source port is remapped
REMAPPED, _NOT_REMAPPED = PROGRAM, "0xdfffffff"
_MARK_PROGRAM = f"meta mark set meta mark | {PROGRAM}"

PROGRAMS = "programs"
"""The set of the inet table with ports that host programs use and masquerading could take.

A rule adds the port, for a day, when another machine opens a flow to a host program. A packet that
is sent to such a program before that, and matches a flow of a service, is dropped (chain
``answers``). Not all ports on which a program listens are in the set, because any user of the host
may listen on many ports, and then no flow of a service could leave.
"""

ROUTED_KINDS = (
    *("bridge", "veth", "tun", "wireguard", "ovpn", "ppp", "vxlan", "geneve", "gre", "ipip", "sit"),
    *("ip6tnl", "ip6gre", "vti", "vti6", "xfrm"),
)
"""The kinds of network interfaces of programs that need forwarding: container engines and VPNs.

Network cards have no kind. VLANs, bonds and macvlan interfaces lead to the same wires as the card
below them.
"""

OWN_PORTS = range(32_768, 61_000)
"""The host ports that masquerading may use: Linux's ephemeral ports (ip_local_port_range).

A flow whose source port is that of a published port, or of a host program, would receive packets
that are meant for them (CVE-2021-3773).
"""
_OWN_SPAN = f"{OWN_PORTS[0]}-{OWN_PORTS[-1]}"
_MASQUERADE = f"masquerade to :{_OWN_SPAN}"
_WITH_PORTS = "meta l4proto { tcp, udp, sctp, dccp, udplite }"
_ROUTED = "{ " + ", ".join(f'"{kind}"' for kind in ROUTED_KINDS) + " }"
_NO_PORTS = 'counter drop comment "without ports: its answers could be for the host"'

NEXT_HOP_S = 10

_NO_START = "ct state new meta l4proto tcp tcp flags & (fin | syn | rst | ack) != syn"
# the first chunk is not INIT: connection tracking would begin an association with a HEARTBEAT too
_NO_INIT = "meta l4proto sctp ct state new @th,96,8 != 1"

_NAME_SERVER = (
    "meta l4proto { tcp, udp } th dport 53 fib daddr . iif type != local"
    f' counter goto {policy_rules.REFUSE} comment "the name server of another network"'
)
_NOT_OWN = (
    "fib daddr type { broadcast, anycast, multicast }"
    ' counter drop comment "to the host, by an address that is not its own"'
)
"""The rule against packets that the host receives by an address which is not its own.

Such addresses are the broadcast addresses of its links (RFC 919), and in IPv6 the first address of
each subnet if the host forwards (RFC 4291, 2.6.1). Policies name the host by its own addresses. The
host therefore receives no multicast or broadcast of a service either, also on a network with
multicast.
"""

TABLES = f"""\
table inet niso {{
	comment "made by niso; see niso net rules"

	set owner {{ type ifname; }}
	set bridges {{ type ifname; }}
	set same_bridge {{ type ifname . ifname; }}
	set {MULTICAST} {{ type ifname; }}
	set ports {{ type ifname; }}
	set subnets4 {{ type ipv4_addr; flags interval; }}
	set subnets6 {{ type ipv6_addr; flags interval; }}
	set internal {{ type ifname; }}
	set closed {{ type nf_proto; }}
	set later {{ type nf_proto; }}
	set old_index {{ type nf_proto . iface_index; }}
	set old_name {{ type nf_proto . ifname; }}
	set before {{ type ifname . ifname . ifname; }}
	set no_start_in4 {{ type ipv4_addr; counter; }}
	set no_start_in6 {{ type ipv6_addr; counter; }}
	set no_start_out4 {{ type ipv4_addr; counter; }}
	set no_start_out6 {{ type ipv6_addr; counter; }}
	set ingress4 {{ type ipv4_addr; }}
	set ingress6 {{ type ipv6_addr; }}
	set egress4 {{ type ipv4_addr; }}
	set egress6 {{ type ipv6_addr; }}
{policy_rules.AUDIT_SETS}
{policy_rules.POLICY_SETS}
	map local_addr4 {{ type ifname . ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
	map local_addr6 {{ type ifname . ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }}
	map local_any4 {{ type ifname . inet_proto . inet_service : ipv4_addr . inet_service; }}
	map local_any6 {{ type ifname . inet_proto . inet_service : ipv6_addr . inet_service; }}
	map publish_addr4 {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }}
	map publish_addr6 {{ type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }}
	map publish_any4 {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
	map publish_any6 {{ type inet_proto . inet_service : ipv6_addr . inet_service; }}
	map range_addr4 {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr; flags interval; }}
	map range_addr6 {{ type ipv6_addr . inet_proto . inet_service : ipv6_addr; flags interval; }}
	map range_any4 {{ type inet_proto . inet_service : ipv4_addr; flags interval; }}
	map range_any6 {{ type inet_proto . inet_service : ipv6_addr; flags interval; }}
	set kept_addr4 {{ type ipv4_addr . inet_proto . inet_service; }}
	set kept_addr6 {{ type ipv6_addr . inet_proto . inet_service; }}
	set kept_any4 {{ type inet_proto . inet_service; }}
	set kept_any6 {{ type inet_proto . inet_service; }}
	set kept_range_addr4 {{ type ipv4_addr . inet_proto . inet_service; flags interval; }}
	set kept_range_addr6 {{ type ipv6_addr . inet_proto . inet_service; flags interval; }}
	set kept_range_any4 {{ type inet_proto . inet_service; flags interval; }}
	set kept_range_any6 {{ type inet_proto . inet_service; flags interval; }}
{SERVICE_SETS}
	set {PROGRAMS} {{ type inet_proto . inet_service; size 1024; flags dynamic, timeout; timeout 1d; }}
	set flows4 {{ type ipv4_addr; {limit_text(limit(FLOWS, 1000))}; }}
	set flows6 {{ type ipv6_addr; {limit_text(limit(FLOWS, 1000))}; }}
	set next_hops4 {{ type ipv4_addr; flags dynamic, timeout; timeout {NEXT_HOP_S}s; }}
	set next_hops6 {{ type ipv6_addr; flags dynamic, timeout; timeout {NEXT_HOP_S}s; }}
	set askers4 {{ type ipv4_addr; {limit_text(limit(ASKERS, 20))}; }}
	set askers6 {{ type ipv6_addr; {limit_text(limit(ASKERS, 20))}; }}
	map hairpin4 {{ type ipv4_addr . ipv4_addr : ipv4_addr; }}
	map hairpin6 {{ type ipv6_addr . ipv6_addr : ipv6_addr; }}
{policy_rules.INET_SETS}
{SETS}

	chain raw {{
		type filter hook prerouting priority raw; policy accept;
		{ARRIVES}
		meta pkttype != host meta iifgroup {BRIDGE_GROUP} jump to_all
		meta mark & {CHECKED} != 0 meta iifgroup {BRIDGE_GROUP} meta mark set meta mark | {policy_rules.TRACKED} accept comment "of a service: the bridge table has judged it"
		iif "lo" accept
		meta nfproto ipv6 goto raw6
		@nh,128,8 127 counter drop comment "loopback from a wire, before DNAT can hide it"
		@nh,96,8 127 counter drop
		iifname "n*" jump from_bridge
		ip daddr @subnets4 counter goto {policy_rules.DIRECT} comment "not published: to a subnet of niso from outside"
		ip saddr @subnets4 counter drop comment "a service's address from elsewhere"
		th dport {_OWN_SPAN} goto to_program
	}}

	chain to_all {{
		notrack comment "no chain has judged the flow that it would make"
		{_IS_MULTICAST} ip saddr @egress4 jump check_out4 comment "once for all copies"
		{_IS_MULTICAST} ip6 saddr @egress6 jump check_out6
	}}

	chain raw6 {{
		ip6 daddr ::1 counter drop comment "loopback from a wire, before DNAT can hide it"
		ip6 saddr ::1 counter drop
		iifname "n*" jump from_bridge
		ip6 daddr @subnets6 counter goto {policy_rules.DIRECT} comment "not published: to a subnet of niso from outside"
		ip6 saddr ::ffff:0:0/96 counter drop
		ip6 saddr @subnets6 counter drop comment "a service's address from elsewhere"
		th dport {_OWN_SPAN} goto to_program
	}}

	chain to_program {{
		meta l4proto udp socket wildcard {{ 0, 1 }} {_MARK_PROGRAM}
		tcp flags & (fin | syn | rst | ack) == syn socket wildcard {{ 0, 1 }} {_MARK_PROGRAM}
	}}

{CHAINS}

	chain from_bridge {{
		iifname @ports counter drop comment "not switched: link-local control frames"
		iifname != @bridges return
		meta mark & {RESOLVED} != 0 drop comment "a copy of what the bridge has led to a service"
		meta mark & {ABSENT} != 0 counter reject with icmpx type host-unreachable comment "to an address that no service has"
		meta pkttype {{ broadcast, multicast }} meta l4proto != ipv6-icmp fib saddr type local accept comment "the host's own, which it hears itself"
		counter drop comment "from a port of a bridge that niso has not made, or that has lost its name"
	}}

	chain publish {{
		ip6 daddr ::1 return comment "the kernel takes packets for it from no bridge: no answer would come back"
		meta iifgroup {BRIDGE_GROUP} jump publish_local
		dnat ip to ip daddr . meta l4proto . th dport map @publish_addr4
		dnat ip to ip daddr . meta l4proto . th dport map @range_addr4
		dnat ip to meta l4proto . th dport map @publish_any4
		dnat ip to meta l4proto . th dport map @range_any4
		dnat ip6 to ip6 daddr . meta l4proto . th dport map @publish_addr6
		dnat ip6 to ip6 daddr . meta l4proto . th dport map @range_addr6
		dnat ip6 to meta l4proto . th dport map @publish_any6
		dnat ip6 to meta l4proto . th dport map @range_any6
{_to_front()}
	}}

	chain publish_local {{
		dnat ip to iifname . ip daddr . meta l4proto . th dport map @local_addr4
		dnat ip to iifname . meta l4proto . th dport map @local_any4
		dnat ip6 to iifname . ip6 daddr . meta l4proto . th dport map @local_addr6
		dnat ip6 to iifname . meta l4proto . th dport map @local_any6
{_to_front("iifname . ", "local_")}
	}}

{SERVICE_CHAINS}
	chain prerouting {{
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local jump publish
		meta iifgroup {BRIDGE_GROUP} iifname . ip daddr @vips4 goto spread comment "the address of a service: one of its instances"
		meta iifgroup {BRIDGE_GROUP} iifname . ip6 daddr @vips6 goto spread
	}}

	chain answers {{
		type filter hook prerouting priority mangle - 10; policy accept;
		meta mark & {PROGRAM} == 0 accept
		ct direction reply ct status snat ct original ip saddr @subnets4 counter drop comment "for a program of the host: a flow of a service has taken its port"
		ct direction reply ct status snat ct original ip6 saddr @subnets6 counter drop
		meta mark set meta mark & {_NOT_REMAPPED}
	}}

	chain mark_internal {{
		type filter hook prerouting priority dstnat + 1; policy accept;
		meta mark & {CHECKED} != 0 accept
		meta iifgroup {BRIDGE_GROUP} iifname @internal meta mark set meta mark | {CHECKED} comment "the filter of its bridge stops what has no mark"
		ct state untracked accept comment "of other hosts: no untracked packet from outside is for a subnet"
		ip daddr @subnets4 meta mark set meta mark | {CHECKED} comment "for routing rules, where the kernel has no filters"
		ip6 daddr @subnets6 meta mark set meta mark | {CHECKED}
	}}

	chain output {{
		type nat hook output priority dstnat; policy accept;
		fib daddr type local jump publish
		oifname {BRIDGES} oifname . ip daddr @vips4 goto spread_near comment "no answer comes back from instances on other hosts"
		oifname {BRIDGES} oifname . ip6 daddr @vips6 goto spread_near
	}}

	chain postrouting {{
		type nat hook postrouting priority srcnat; policy accept;
		meta oifgroup {BRIDGE_GROUP} goto to_services
		oif "lo" goto of_host
		ip saddr @subnets4 goto away4
		ip6 saddr @subnets6 goto away6
		iif 0 fib saddr type local goto of_host
	}}

	chain of_host {{
		meta nfproto ipv4 meta l4proto . th sport @kept_any4 goto another_port comment "its port is published: it gets another"
		meta nfproto ipv4 meta l4proto . th sport @kept_range_any4 goto another_port
		ip saddr . meta l4proto . th sport @kept_addr4 goto another_port
		ip saddr . meta l4proto . th sport @kept_range_addr4 goto another_port
		meta nfproto ipv6 meta l4proto . th sport @kept_any6 goto another_port
		meta nfproto ipv6 meta l4proto . th sport @kept_range_any6 goto another_port
		ip6 saddr . meta l4proto . th sport @kept_addr6 goto another_port
		ip6 saddr . meta l4proto . th sport @kept_range_addr6 goto another_port
	}}

	chain another_port {{
		meta mark set meta mark | {REMAPPED}
		oifname @bridges {_WITH_PORTS} {_MASQUERADE} fully-random
		{_WITH_PORTS} snat to :{_OWN_SPAN} fully-random
	}}

	chain away4 {{
		{_WITH_PORTS} meta l4proto . th sport @kept_any4 {_MASQUERADE} fully-random comment "its port is published: it gets another"
		{_WITH_PORTS} meta l4proto . th sport @kept_range_any4 {_MASQUERADE} fully-random
		{_WITH_PORTS} meta l4proto . th sport @{PROGRAMS} {_MASQUERADE} fully-random
		{_WITH_PORTS} {_MASQUERADE}
		meta l4proto icmp masquerade
		{_NO_PORTS}
	}}

	chain away6 {{
		{_WITH_PORTS} meta l4proto . th sport @kept_any6 {_MASQUERADE} fully-random
		{_WITH_PORTS} meta l4proto . th sport @kept_range_any6 {_MASQUERADE} fully-random
		{_WITH_PORTS} meta l4proto . th sport @{PROGRAMS} {_MASQUERADE} fully-random
		{_WITH_PORTS} {_MASQUERADE}
		meta l4proto ipv6-icmp masquerade
		{_NO_PORTS}
	}}

	chain kept {{
		type filter hook postrouting priority srcnat + 1; policy accept;
		{LEAVES}
		meta mark & {CHECKED} == 0 iif != 0 meta oifgroup {BRIDGE_GROUP} meta mark set meta mark | {CHECKED} comment "for the bridge's filter; without iif it is a bridged frame"
		ct state established,untracked accept
		meta mark & {REMAPPED} != 0 goto remapped
		meta oifgroup {BRIDGE_GROUP} accept
		ct original ip saddr @subnets4 goto kept4
		ct original ip6 saddr @subnets6 goto kept6
		iif != 0 meta nfproto ipv4 fib saddr type local goto kept4 comment "masqueraded by others, as Docker"
		iif != 0 meta nfproto ipv6 fib saddr type local goto kept6
	}}

	chain remapped {{
		meta mark set meta mark & {_NOT_REMAPPED}
		meta nfproto ipv4 goto kept4
		goto kept6
	}}

	chain kept4 {{
		ct status & snat == 0 accept
		meta l4proto . ct reply proto-dst @kept_any4 counter drop comment "would take a published port: dropped before it is tracked"
		meta l4proto . ct reply proto-dst @kept_range_any4 counter drop
		ct reply ip daddr . meta l4proto . ct reply proto-dst @kept_addr4 counter drop
		ct reply ip daddr . meta l4proto . ct reply proto-dst @kept_range_addr4 counter drop
		iif != 0 iifname != {BRIDGES} accept
		meta l4proto . ct reply proto-dst @{PROGRAMS} counter drop comment "would take the port of a program of the host"
	}}

	chain kept6 {{
		ct status & snat == 0 accept
		meta l4proto . ct reply proto-dst @kept_any6 counter drop
		meta l4proto . ct reply proto-dst @kept_range_any6 counter drop
		ct reply ip6 daddr . meta l4proto . ct reply proto-dst @kept_addr6 counter drop
		ct reply ip6 daddr . meta l4proto . ct reply proto-dst @kept_range_addr6 counter drop
		iif != 0 iifname != {BRIDGES} accept
		meta l4proto . ct reply proto-dst @{PROGRAMS} counter drop
	}}

	chain to_services {{
		meta iifgroup != {BRIDGE_GROUP} accept comment "from another machine: it keeps its address"
		iif 0 fib saddr type local jump of_host comment "a frame within a bridge has no iif here either"
		ip saddr 127.0.0.0/8 masquerade comment "the host by 127.0.0.1"
		ct status & dnat == 0 accept
		snat ip to ip saddr . ip daddr map @hairpin4 comment "a service that reaches itself"
		snat ip6 to ip6 saddr . ip6 daddr map @hairpin6
		ip saddr @subnets4 fib saddr type local masquerade comment "the host by another bridge's address"
		ip6 saddr @subnets6 fib saddr type local masquerade
	}}

	chain forward {{
		type filter hook forward priority filter; policy accept;
		meta iifgroup {BRIDGE_GROUP} ct state established accept
		meta nfproto ipv6 meta oifgroup {BRIDGE_GROUP} meta iifgroup != {BRIDGE_GROUP} fib saddr type local counter drop comment "from outside as the host itself; the kernel refuses IPv4"
		meta oifgroup {BRIDGE_GROUP} ct state established accept
		meta iifgroup != {BRIDGE_GROUP} goto enter
		iifname != @bridges counter drop comment "from a bridge that niso has not made, or that has lost its name"
		ct state related,invalid goto related
		icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} iifname . oifname @same_bridge accept
		ct status & confirmed == 0 ip saddr @flows4 counter drop comment "too many new flows of a service"
		ct status & confirmed == 0 ip6 saddr @flows6 counter drop
		iifname @internal iifname . oifname != @same_bridge counter goto {policy_rules.REFUSE} comment "out of an internal network"
		{_IS_MULTICAST} iifname . oifname @same_bridge accept comment "a copy: to_all has evaluated the sender's policy"
		{_NO_START} jump no_start
		{_NO_INIT} jump no_start
		ip saddr @egress4 jump check_out4
		ip6 saddr @egress6 jump check_out6
		oifname != {BRIDGES} goto next_hop
		ip daddr @ingress4 jump check_in4
		ip6 daddr @ingress6 jump check_in6
		ct status dnat oifname @bridges accept comment "published"
		iifname . oifname @same_bridge accept
		oifname @bridges counter goto {policy_rules.REFUSE} comment "not published"
		goto next_hop
	}}

	chain enter {{
		meta oifgroup != {BRIDGE_GROUP} goto others
		ct state related,invalid goto related
		{_NO_START} jump no_start
		{_NO_INIT} jump no_start
		ip daddr @ingress4 jump check_in4
		ip6 daddr @ingress6 jump check_in6
		fib saddr type != unicast counter drop comment "from outside as the host itself, or as all"
		ct status dnat accept comment "published"
		counter goto {policy_rules.REFUSE} comment "not published"
	}}

	chain next_hop {{
		meta oifgroup {BRIDGE_GROUP} counter drop comment "to a bridge that has lost its name"
		meta oiftype != ether accept
		rt ip nexthop @next_hops4 accept
		rt ip6 nexthop @next_hops6 accept
		ip saddr @askers4 counter drop comment "the host would ask for too many neighbours of a service"
		ip6 saddr @askers6 counter drop
		add @next_hops4 {{ rt ip nexthop }}
		add @next_hops6 {{ rt ip6 nexthop }}
	}}

	chain input {{
		type filter hook input priority filter; policy accept;
		meta iifgroup != {BRIDGE_GROUP} goto from_outside
		ct state vmap {{ established : accept, related : goto related, invalid : drop }}
		iifname != @bridges counter drop comment "from a bridge that niso has not made, or that has lost its name"
		icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
		ct status & confirmed == 0 ip saddr @flows4 counter drop comment "too many new flows of a service"
		ct status & confirmed == 0 ip6 saddr @flows6 counter drop
		ip daddr @subnets4 {_NAME_SERVER}
		ip6 daddr @subnets6 {_NAME_SERVER}
		{_NOT_OWN}
		{_NO_START} jump no_start
		{_NO_INIT} jump no_start
		ip saddr @egress4 jump check_out4
		ip6 saddr @egress6 jump check_out6
	}}

	chain from_outside {{
		ct state != new accept
		iif "lo" accept
		meta l4proto {{ tcp, udp }} th dport {_OWN_SPAN} socket wildcard {{ 0, 1 }} update @{PROGRAMS} {{ meta l4proto . th dport }}
	}}

	chain from_host {{
		type filter hook output priority filter; policy accept;
		oifname != {BRIDGES} accept
		icmp type redirect drop comment "about a copy for who listens on the bridge"
		icmpv6 type nd-redirect drop
		{_NO_START} jump no_start
		{_NO_INIT} jump no_start
	}}

	chain no_start {{
		ip daddr != @audit_in4 ip daddr @no_start_in4 drop comment "of a connection that a policy has cut"
		ip6 daddr != @audit_in6 ip6 daddr @no_start_in6 drop
		ip saddr != @audit_out4 ip saddr @no_start_out4 drop
		ip6 saddr != @audit_out6 ip6 saddr @no_start_out6 drop
	}}

{policy_rules.POLICY_CHAINS}

{policy_rules.AUDIT_CHAINS}
{policy_rules.INET_CHAINS}
	chain related {{
		ct state invalid drop
		iifname != @bridges ct original ip saddr @subnets4 ct reply ip saddr @subnets4 counter drop comment "from outside, about a flow that never leaves"
		iifname != @bridges ct original ip6 saddr @subnets6 ct reply ip6 saddr @subnets6 counter drop
		iifname != @bridges ct original ip saddr 127.0.0.0/8 counter drop
		meta l4proto {{ icmp, ipv6-icmp }} accept
		counter drop
	}}

	chain others {{
		oifname {BRIDGES} oifname @bridges counter drop comment "to a bridge of niso that has lost its group"
		meta mark & 0xffff0000 == {SWITCHED} accept comment "not routed: switched on somebody's bridge"
		meta nfproto != @closed accept
		meta nfproto @later meta iifkind {_ROUTED} meta nfproto . iif != @old_index meta nfproto . iifname != @old_name accept comment "from a link that came after niso's first service"
		meta nfproto @later meta oifkind {_ROUTED} meta nfproto . oif != @old_index meta nfproto . oifname != @old_name accept comment "to such a link"
		counter drop comment "forwarding is on for niso alone"
	}}
}}

{TABLE}"""

DIGEST = sha256(TABLES.encode()).hexdigest()[:8]


# --- types of sets and maps -----------------------------------------------------------------------


_FLAGS = frozenset(("flags interval", "flags timeout", "counter", "last"))


def _declared() -> Iterator[tuple[tuple[str, str], tuple[str, str | None, bool]]]:
    """Yield ((table, name), (key type, value type, is interval)) for each set and map in `TABLES`,
    except sets that rules fill. For a set, the value type is None, or "limit" for rate limits.
    """
    table = ""
    for line in TABLES.split("\n"):
        start = line[:5]
        if start == "table":
            table = line[6:-2]
        elif start in ("\tset ", "\tmap "):
            name, _, body = line[5:].removesuffix("; }").partition(" { ")
            types, *more = body.split("; ")
            key, _, value = types.partition(" ")[2].partition(" : ")
            if more and more[0].startswith("limit "):
                yield (table, name), (key, "limit", False)
            elif not more or _FLAGS.issuperset(more):
                yield (table, name), (key, value or None, "flags interval" in more)


# (table, set or map) to (type of its keys, type of its values, whether it has intervals); the value
# type of a set with rate limits is "limit"
DECLARED = dict(_declared())
TEMPORARY = "niso_live_"
"""The prefix of the names of temporary tables. The process id follows."""

# the sets and maps of each table whose elements niso writes
CONTAINERS = {
    table: tuple(name for at, name in DECLARED if at == table) for table in (INET, BRIDGE)
}

POLICIES = frozenset(
    (
        *(f"{kind}{family}" for kind in ("ingress", "egress") for family in (4, 6)),
        *policy_rules.STOPPED,
        *policy_rules.POLICY_MAPS,
    )
)
"""The sets and maps with elements of policies."""
# each set and map of policies whose elements have counters, to "in" or "out"
COUNTED = policy_rules.STOPPED | {
    name: way for name, (way, part) in policy_rules.POLICY_MAPS.items() if part not in CLASSES
}

_GUARDS = f"""
owner bridges same_bridge ports subnets4 subnets6 internal closed before
old_index old_name
sources4 sources6 quoted4 quoted6 links broadcasts own4 own6 host_macs gateways4 gateways6
flows4 flows6 askers4 askers6 {FRAGMENTS} {ARP} {TO_ALL} vxlans wire sealed
"""
# The sets whose elements restrict another object, and are deleted after it. See kinds/nft.py for
# the elements of policies.
LATE = frozenset(_GUARDS.split())


def rules_of(table: str, chain: str) -> list[str]:
    """Return the rules of one chain in niso's definition of a table, in the chain's order."""
    body = TABLES.partition(f"table {table} {{")[2].partition(f"chain {chain} {{\n")[2]
    lines = [line.strip() for line in body.partition("\n\t}")[0].splitlines()]
    return [line for line in lines if not line.startswith("type ")]
