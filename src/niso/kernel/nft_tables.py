"""Define the nftables ruleset: two static tables, with sets and maps for services and networks.

Chains never change with services: a change adds and deletes elements in one transaction, so its
cost does not depend on the number of services. Both tables cover IPv4 and IPv6.
docs/design/packet.md describes the path of a packet.
"""

from __future__ import annotations

from hashlib import sha256

from niso.base.names import BRIDGES
from niso.kernel import nft_audit, nft_bridge, nft_limits, nft_policies, nft_sensor, nft_wire

INET = "inet niso"
BRIDGE = "bridge niso"

PROGRAM = "0x20000000"
"""The bit of the packet mark for packets that a host program on one of `OWN_PORTS` would receive.

It is set before connection tracking and cleared after it.
"""
REMAPPED, _NOT_REMAPPED = PROGRAM, "0xdfffffff"
"""The same bit on egress, for the first packet of a host's flow whose source port is remapped."""
_MARK_PROGRAM = f"meta mark set meta mark | {PROGRAM}"

PROGRAMS = "programs"
"""A set of the inet table with ports that masquerading could take, and host programs use.

A rule adds the port, for a day, when another machine opens a flow to a host program. A packet that
is sent to such a program before that, and matches a flow of a service, is dropped (`answers`). Any
user of the host may listen on many ports: with all of them in the set, no flow of a service could
leave.
"""

OWN_PORTS = range(32_768, 61_000)
"""The host ports that masquerading may use: the range of Linux's ephemeral ports
(ip_local_port_range).

A flow whose source port is that of a published port, or of a host program, would receive packets
that are meant for them (CVE-2021-3773).
"""
_OWN_SPAN = f"{OWN_PORTS[0]}-{OWN_PORTS[-1]}"
_MASQUERADE = f"masquerade to :{_OWN_SPAN}"
_WITH_PORTS = "meta l4proto { tcp, udp, sctp, dccp, udplite }"
_NO_PORTS = 'counter drop comment "without ports: its answers could be for the host"'

NEXT_HOP_S = 10

_NO_START = "ct state new meta l4proto tcp tcp flags & (fin | syn | rst | ack) != syn"

_NAME_SERVER = (
    "meta l4proto { tcp, udp } th dport 53 fib daddr . iif type != local"
    f' counter goto {nft_sensor.REFUSE} comment "the name server of another network"'
)

TABLES = f"""\
table inet niso {{
	comment "made by niso; see niso net rules"

	set owner {{ type ifname; }}
	set bridges {{ type ifname; }}
	set same_bridge {{ type ifname . ifname; }}
	set ports {{ type ifname; }}
	set subnets4 {{ type ipv4_addr; flags interval; }}
	set subnets6 {{ type ipv6_addr; flags interval; }}
	set internal {{ type ifname; }}
	set closed {{ type nf_proto; }}
	set before {{ type ifname . ifname . ifname; }}
	set no_start_in4 {{ type ipv4_addr; counter; }}
	set no_start_in6 {{ type ipv6_addr; counter; }}
	set no_start_out4 {{ type ipv4_addr; counter; }}
	set no_start_out6 {{ type ipv6_addr; counter; }}
	set ingress4 {{ type ipv4_addr; }}
	set ingress6 {{ type ipv6_addr; }}
	set egress4 {{ type ipv4_addr; }}
	set egress6 {{ type ipv6_addr; }}
{nft_audit.SETS}
{nft_policies.SETS}
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
	set {PROGRAMS} {{ type inet_proto . inet_service; size 1024; flags dynamic, timeout; timeout 1d; }}
	set flows4 {{ type ipv4_addr; {nft_limits.limit(nft_limits.FLOWS, 1000)}; }}
	set flows6 {{ type ipv6_addr; {nft_limits.limit(nft_limits.FLOWS, 1000)}; }}
	set next_hops4 {{ type ipv4_addr; size 65535; flags dynamic, timeout; timeout {NEXT_HOP_S}s; }}
	set next_hops6 {{ type ipv6_addr; size 65535; flags dynamic, timeout; timeout {NEXT_HOP_S}s; }}
	set askers4 {{ type ipv4_addr; {nft_limits.limit(nft_limits.ASKERS, 20)}; }}
	set askers6 {{ type ipv6_addr; {nft_limits.limit(nft_limits.ASKERS, 20)}; }}
	map hairpin4 {{ type ipv4_addr . ipv4_addr : ipv4_addr; }}
	map hairpin6 {{ type ipv6_addr . ipv6_addr : ipv6_addr; }}
{nft_sensor.INET_SETS}
{nft_wire.SETS}

	chain raw {{
		type filter hook prerouting priority raw; policy accept;
		{nft_wire.ARRIVES}
		meta pkttype != host iifname {BRIDGES} notrack comment "to all: no chain has judged the flow that it would make"
		meta mark & {nft_bridge.CHECKED} != 0 iifname {BRIDGES} meta mark set meta mark | {nft_sensor.TRACKED} accept comment "of a service: the bridge table has judged it"
		iif "lo" accept
		meta nfproto ipv6 goto raw6
		ip daddr 127.0.0.0/8 counter drop comment "loopback from a wire, before DNAT can hide it"
		ip saddr 127.0.0.0/8 counter drop
		iifname "n*" jump from_bridge
		ip daddr @subnets4 counter drop comment "not published: to a subnet of niso from outside"
		ip saddr @subnets4 counter drop comment "a service's address from elsewhere"
		th dport {_OWN_SPAN} goto to_program
	}}

	chain raw6 {{
		ip6 daddr ::1 counter drop comment "loopback from a wire, before DNAT can hide it"
		ip6 saddr ::1 counter drop
		iifname "n*" jump from_bridge
		ip6 daddr @subnets6 counter drop comment "not published: to a subnet of niso from outside"
		ip6 saddr ::ffff:0:0/96 counter drop
		ip6 saddr @subnets6 counter drop comment "a service's address from elsewhere"
		th dport {_OWN_SPAN} goto to_program
	}}

	chain to_program {{
		meta l4proto udp socket wildcard {{ 0, 1 }} {_MARK_PROGRAM}
		tcp flags & (fin | syn | rst | ack) == syn socket wildcard {{ 0, 1 }} {_MARK_PROGRAM}
	}}

{nft_wire.CHAINS}

	chain from_bridge {{
		iifname @ports counter drop comment "not switched: link-local control frames"
		iifname != @bridges return
		meta mark & {nft_bridge.RESOLVED} != 0 drop comment "a copy of what the bridge has led to a service"
		meta mark & {nft_bridge.ABSENT} != 0 counter reject with icmpx type host-unreachable comment "to an address that no service has"
		meta pkttype {{ broadcast, multicast }} meta l4proto != ipv6-icmp fib saddr type local accept comment "the host's own, which it hears itself"
		counter drop comment "from a port of a bridge that niso has not made, or that has lost its name"
	}}

	chain publish {{
		ip6 daddr ::1 return comment "the kernel takes packets for it from no bridge: no answer would come back"
		iifname {BRIDGES} jump publish_local
		dnat ip to ip daddr . meta l4proto . th dport map @publish_addr4
		dnat ip to ip daddr . meta l4proto . th dport map @range_addr4
		dnat ip to meta l4proto . th dport map @publish_any4
		dnat ip to meta l4proto . th dport map @range_any4
		dnat ip6 to ip6 daddr . meta l4proto . th dport map @publish_addr6
		dnat ip6 to ip6 daddr . meta l4proto . th dport map @range_addr6
		dnat ip6 to meta l4proto . th dport map @publish_any6
		dnat ip6 to meta l4proto . th dport map @range_any6
	}}

	chain publish_local {{
		dnat ip to iifname . ip daddr . meta l4proto . th dport map @local_addr4
		dnat ip to iifname . meta l4proto . th dport map @local_any4
		dnat ip6 to iifname . ip6 daddr . meta l4proto . th dport map @local_addr6
		dnat ip6 to iifname . meta l4proto . th dport map @local_any6
	}}

	chain prerouting {{
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local jump publish
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
		meta mark & {nft_bridge.CHECKED} == 0 iifname {BRIDGES} iifname @internal meta mark set meta mark | {nft_bridge.CHECKED} comment "the routing rule of its bridge prohibits what has no mark"
	}}

	chain output {{
		type nat hook output priority dstnat; policy accept;
		fib daddr type local jump publish
	}}

	chain postrouting {{
		type nat hook postrouting priority srcnat; policy accept;
		oifname @bridges goto to_services
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
		{nft_wire.LEAVES}
		ct state established,untracked accept
		meta mark & {REMAPPED} != 0 goto remapped
		oifname @bridges accept
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
		iif != 0 iifname != {BRIDGES} accept comment "from another machine: it keeps its address"
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
		iifname {BRIDGES} ct state established accept
		meta nfproto ipv6 oifname {BRIDGES} iifname != {BRIDGES} fib saddr type local counter drop comment "from outside as the host itself; the kernel refuses IPv4"
		oifname {BRIDGES} ct state established accept
		iifname != {BRIDGES} goto enter
		iifname != @bridges goto enter comment "not niso's, in spite of its name"
		ct state related,invalid goto related
		icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} iifname . oifname @same_bridge accept
		ct status & confirmed == 0 ip saddr @flows4 counter drop comment "too many new flows of a service"
		ct status & confirmed == 0 ip6 saddr @flows6 counter drop
		iifname @internal iifname . oifname != @same_bridge counter goto {nft_sensor.REFUSE} comment "out of an internal network"
		{_NO_START} jump no_start
		ip saddr @egress4 jump check_out4
		ip6 saddr @egress6 jump check_out6
		oifname != {BRIDGES} goto next_hop
		ip daddr @ingress4 jump check_in4
		ip6 daddr @ingress6 jump check_in6
		ct status dnat oifname @bridges accept comment "published"
		iifname . oifname @same_bridge accept
		oifname @bridges counter goto {nft_sensor.REFUSE} comment "not published"
		goto next_hop
	}}

	chain enter {{
		oifname != @bridges goto others
		ct state related,invalid goto related
		{_NO_START} jump no_start
		ip daddr @ingress4 jump check_in4
		ip6 daddr @ingress6 jump check_in6
		fib saddr type != unicast counter drop comment "from outside as the host itself, or as all"
		ct status dnat accept comment "published"
		counter goto {nft_sensor.REFUSE} comment "not published"
	}}

	chain next_hop {{
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
		iifname != {BRIDGES} goto from_outside
		ct state vmap {{ established : accept, related : goto related, invalid : drop }}
		icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
		ct status & confirmed == 0 ip saddr @flows4 counter drop comment "too many new flows of a service"
		ct status & confirmed == 0 ip6 saddr @flows6 counter drop
		ip daddr @subnets4 {_NAME_SERVER}
		ip6 daddr @subnets6 {_NAME_SERVER}
		{_NO_START} jump no_start
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
	}}

	chain no_start {{
		ip daddr != @audit_in4 ip daddr @no_start_in4 drop comment "of a connection that a policy has cut"
		ip6 daddr != @audit_in6 ip6 daddr @no_start_in6 drop
		ip saddr != @audit_out4 ip saddr @no_start_out4 drop
		ip6 saddr != @audit_out6 ip6 saddr @no_start_out6 drop
	}}

{nft_policies.CHAINS}

{nft_audit.CHAINS}
{nft_sensor.INET_CHAINS}
	chain related {{
		ct state invalid drop
		iifname != @bridges ct original ip saddr @subnets4 ct reply ip saddr @subnets4 counter drop comment "from outside, about a flow that never leaves"
		iifname != @bridges ct original ip6 saddr @subnets6 ct reply ip6 saddr @subnets6 counter drop
		iifname != @bridges ct original ip saddr 127.0.0.0/8 counter drop
		meta l4proto {{ icmp, ipv6-icmp }} accept
		counter drop
	}}

	chain others {{
		meta mark & 0xffff0000 == {nft_bridge.SWITCHED} accept comment "not routed: switched on somebody's bridge"
		meta nfproto @closed counter drop comment "forwarding is on for niso alone"
	}}
}}

{nft_bridge.TABLE}"""

DIGEST = sha256(TABLES.encode()).hexdigest()[:8]
