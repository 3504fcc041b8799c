"""Define the bridge table of the ruleset: what services may send, and which services frames reach.

It checks frames at the ports of niso's bridges before the inet table (nft_tables.py) sees their
packets, and records the result in the packet mark.
"""

from __future__ import annotations

from niso.kernel import nft_sensor, nft_wire
from niso.kernel.nft_limits import ARP, FRAGMENTS, limit

SWITCHED = "0x4e150000"
"""The mark of a frame that a foreign bridge switches, set in the bridge hook for the forward chain."""

CHECKED = "0x40000000"
"""The bit of the packet mark for frames from a service's port that have passed the source check.

`raw` drops packets from niso's bridges without this bit: they came through a port that niso did not
create or that was renamed, whose name no rule of the bridge table matches. For packets from
internal networks the bit is set again before routing, since mangle rules may overwrite it: without
the bit, the routing rule of the network drops them (kernel/routing_rules.py).
"""

RESOLVED = "0x4000000"
"""The bit of the packet mark for frames into which the bridge table has written the receiver's MAC.

Other firewalls may restore the bit from a connection's mark, on a frame to any MAC. But a frame
that leaves by a port was addressed to the bridge's own MAC (``pkttype host``) only if the bridge
table rewrote it, or the host translated it. And a port that niso has not created may learn a
service's MAC.
"""
_RESOLVED = f"meta mark set meta mark | {RESOLVED}"
ABSENT = "0x10000000"
"""The bit of the packet mark for packets from a service to an unassigned address of its subnet."""
_ABSENT = f"meta mark set meta mark & 0xbfffffff | {ABSENT}"  # without the bit `CHECKED`
_CHECK = f"meta mark set meta mark | {CHECKED}"
_BOTH = hex(int(CHECKED, 16) | int(RESOLVED, 16))
# IPv4 is checked and sent to the receiver's MAC by one rule
_RESOLVED4 = f"meta mark set meta mark | {_BOTH}"
_UNTRACKED_COPY = hex(int(RESOLVED, 16) | int(nft_sensor.TRACKED, 16))

DROPPED_FROM = "dropped_from"
"""A set of the bridge table that counts packets with a foreign source, by bridge port.

The rules fill it, so it is not part of State. A separate rule adds to the set before the drop,
because adding to a full set ends the rule.
"""

TABLE = f"""\
table bridge niso {{
	comment "made by niso; see niso net rules"

	set owner {{ type ifname; }}
	set ports {{ type ifname; }}
	set sources4 {{ type ifname . ether_addr . ipv4_addr; }}
	set sources6 {{ type ifname . ether_addr . ipv6_addr; }}
	set links {{ typeof iifname . @th,208,48; }}
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
	set broadcasts {{ type ipv4_addr; }}
	set {FRAGMENTS} {{ type ifname; {limit(FRAGMENTS, 40)}; }}
	set {ARP} {{ type ifname; {limit(ARP, 100)}; }}
{nft_sensor.BRIDGE_SETS}
	set {DROPPED_FROM} {{ type ifname; size 65535; flags dynamic; counter; }}

	chain prerouting {{
		type filter hook prerouting priority -300; policy accept;
		ether type ip iifname . ether saddr . ip saddr @sources4 goto from_own4
		iifname @ports goto from_port
		ether type arp arp saddr ip @subnets4 counter drop comment "ARP for a service from a port that niso has not made"
	}}

	chain from_own4 {{
		@nh,48,16 & 0x3fff != 0 iifname @{FRAGMENTS} counter drop comment "too many fragments of a service"
		@nh,128,8 127 counter drop comment "loopback from a wire, before DNAT can hide it"
		meta l4proto icmp icmp type {{ destination-unreachable, source-quench, redirect, time-exceeded, parameter-problem }} jump from_own_error
		meta pkttype host ether daddr set ether daddr . ip daddr map @receivers4 {_RESOLVED4} accept comment "to a service, by its gateway's MAC"
		meta pkttype host ip daddr @subnets4 jump to_own4
		{_CHECK} accept
	}}

	chain to_own4 {{
		ip daddr @gateways4 return
		ether daddr . ip daddr @own4 {_ABSENT} accept comment "to an address that no service has: refused in raw"
		ether daddr != @host_macs counter drop comment "to the MAC of a port: the host would ask for a neighbour"
	}}

	chain to_own6 {{
		ether daddr set ether daddr . ip6 daddr map @receivers6 {_RESOLVED} return comment "to a service, by its gateway's MAC"
		ip6 daddr fe80::/10 ip6 daddr != fe80::1 counter drop comment "link-local: no service has such an address, the bridge this one"
		ip6 daddr != @subnets6 return
		ip6 daddr @gateways6 return
		ether daddr . ip6 daddr @own6 {_ABSENT} accept comment "to an address that no service has: refused in raw"
		ether daddr != @host_macs counter drop comment "to the MAC of a port: the host would ask for a neighbour"
	}}

	chain from_own_error {{
		icmp type {{ destination-unreachable, time-exceeded, parameter-problem }} iifname . @th,192,32 @quoted4 return comment "about a packet to itself"
		add @{DROPPED_FROM} {{ iifname }}
		counter drop comment "about the packets of others"
	}}

	chain from_port {{
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
		meta mark & {_BOTH} == {_BOTH} meta pkttype host iifname "n*" oifname @ports goto see comment "to one service alone"
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
		meta pkttype other meta mark & {nft_sensor.TRACKED} == 0 iifname "nx-*" accept comment "the same of another host: has no flow"
		meta pkttype other iifname @ports counter drop comment "to the MAC of another port: the host would not take it, but its flow"
	}}

{nft_sensor.BRIDGE_CHAINS}
	chain between {{
		ether type arp accept
		icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
		meta pkttype {{ broadcast, multicast }} counter drop
		ip daddr {{ 224.0.0.0/4, 255.255.255.255 }} counter drop comment "in a frame to one MAC"
		ip daddr @broadcasts counter drop
		ip6 daddr ff00::/8 counter drop
		add @{DROPPED_FROM} {{ iifname }}
		counter drop comment "to a MAC that has another address, or to none"
	}}

	chain postrouting {{
		type filter hook postrouting priority 300; policy accept;
		{nft_wire.UNMARKED}
		meta mark & 0xffff0000 == {SWITCHED} meta mark set meta mark & 0x0000ffff
	}}
}}
"""
