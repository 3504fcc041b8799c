"""The nftables ruleset: two static tables, and the elements that services and networks add to their sets and maps.

Chains never change with services: a change is elements added and deleted in one transaction, so its cost does not grow
with what is there. Both tables carry both families. How a packet travels: docs/design/packet.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from niso.state import Element

INET = "inet niso"
BRIDGE = "bridge niso"

SWITCHED = "0x4e150000"
"""The mark that carries 'this frame is switched on a foreign bridge' from the bridge hook to the forward chain."""

TABLES = f"""\
table inet niso {{
	comment "made by niso; see niso net rules"

	set owner {{ type ifname; }}
	set bridges {{ type ifname; }}
	set same_bridge {{ type ifname . ifname; }}
	set ports {{ type ifname; }}
	set subnets4 {{ type ipv4_addr; flags interval; }}
	set subnets6 {{ type ipv6_addr; flags interval; }}
	set closed {{ type nf_proto; }}
	map publish_any4 {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
	map publish_any6 {{ type inet_proto . inet_service : ipv6_addr . inet_service; }}

	chain raw {{
		type filter hook prerouting priority raw; policy accept;
		iifname @ports counter drop comment "not switched: link-local control frames"
		iifname != "lo" ip daddr 127.0.0.0/8 counter drop comment "loopback from a wire, before DNAT can hide it"
		iifname != "lo" ip saddr 127.0.0.0/8 counter drop
		iifname != @bridges iifname != "lo" ip saddr @subnets4 counter drop comment "a service's address from elsewhere"
		iifname != @bridges iifname != "lo" ip6 saddr @subnets6 counter drop
	}}

	chain publish {{
		dnat ip to meta l4proto . th dport map @publish_any4
		dnat ip6 to meta l4proto . th dport map @publish_any6
	}}

	chain prerouting {{
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local jump publish
	}}

	chain output {{
		type nat hook output priority dstnat; policy accept;
		fib daddr type local jump publish
	}}

	chain postrouting {{
		type nat hook postrouting priority srcnat; policy accept;
		oifname @bridges ip saddr 127.0.0.0/8 masquerade comment "the host by 127.0.0.1"
		oifname != @bridges ip saddr @subnets4 masquerade
		oifname != @bridges ip6 saddr @subnets6 masquerade
	}}

	chain forward {{
		type filter hook forward priority filter; policy accept;
		iifname != @bridges oifname != @bridges goto others
		ct state vmap {{ established : accept, related : goto related, invalid : drop }}
		oifname @bridges ct status dnat accept comment "published"
		iifname . oifname @same_bridge accept
		oifname @bridges counter drop comment "not published"
	}}

	chain related {{
		meta l4proto {{ icmp, ipv6-icmp }} accept
		counter drop
	}}

	chain others {{
		meta mark & 0xffff0000 == {SWITCHED} accept comment "not routed: switched on somebody's bridge"
		meta nfproto @closed counter drop comment "forwarding is on for niso alone"
	}}
}}

table bridge niso {{
	comment "made by niso; see niso net rules"

	set owner {{ type ifname; }}
	set ports {{ type ifname; }}
	set sources4 {{ type ifname . ether_addr . ipv4_addr; }}
	set sources6 {{ type ifname . ether_addr . ipv6_addr; }}

	chain prerouting {{
		type filter hook prerouting priority -300; policy accept;
		iifname @ports goto from_port
	}}

	chain from_port {{
		ether type ip iifname . ether saddr . ip saddr @sources4 accept
		ether type arp iifname . ether saddr . arp saddr ip @sources4 iifname . arp saddr ether . arp saddr ip @sources4 accept
		counter drop comment "not its own address"
	}}

	chain forward {{
		type filter hook forward priority -200; policy accept;
		iifname @ports oifname @ports ether type != arp meta pkttype {{ broadcast, multicast }} counter drop
		iifname @ports oifname @ports ip daddr {{ 224.0.0.0/4, 255.255.255.255 }} counter drop comment "in a frame to one MAC"
		iifname != @ports meta mark & 0xffff0000 == 0 meta mark set meta mark | {SWITCHED}
	}}

	chain postrouting {{
		type filter hook postrouting priority 300; policy accept;
		meta mark & 0xffff0000 == {SWITCHED} meta mark set meta mark & 0x0000ffff
	}}
}}
"""

DIGEST = hashlib.sha256(TABLES.encode()).hexdigest()[:8]

CONTAINERS = {
    INET: (
        "owner",
        "bridges",
        "same_bridge",
        "ports",
        "subnets4",
        "subnets6",
        "closed",
        "publish_any4",
        "publish_any6",
    ),
    BRIDGE: ("owner", "ports", "sources4", "sources6"),
}
"""Every set and map, so that a reader can list them."""

LATE = frozenset({"owner", "bridges", "same_bridge", "ports", "subnets4", "subnets6", "sources4", "sources6", "closed"})
"""Sets that guard something: their elements go only after what they guard is gone."""


def _quoted(ifname: str) -> str:
    return f'"{ifname}"'


def owner(state_id: str) -> list[Element]:
    """Whose tables these are, and which text made them: what a fresh process reads first."""
    return [
        Element(table, "owner", _quoted(text), "", "")
        for table in CONTAINERS
        for text in (f"id-{state_id}", f"rules-{DIGEST}")
    ]


def closed(family: int) -> Element:
    """Traffic of this family that concerns no niso bridge is not forwarded."""
    return Element(INET, "closed", f"ipv{family}", "", "")


def network(name: str, bridge: str, cidrs: Iterable[str]) -> list[Element]:
    quoted = _quoted(bridge)
    elements = [
        Element(INET, "bridges", quoted, "", name),
        Element(INET, "same_bridge", f"{quoted} . {quoted}", "", name),
    ]
    for cidr in cidrs:
        elements.append(Element(INET, "subnets6" if ":" in cidr else "subnets4", cidr, "", name))
    return elements


def endpoint(service: str, host_end: str, mac: str, addresses: Iterable[str]) -> list[Element]:
    """A service's bridge port: it may send with exactly these addresses."""
    port = _quoted(host_end)
    elements = [Element(INET, "ports", port, "", service), Element(BRIDGE, "ports", port, "", service)]
    for address in addresses:
        family = "6" if ":" in address else "4"
        elements.append(Element(BRIDGE, f"sources{family}", f"{port} . {mac} . {address}", "", service))
    return elements


def published(
    service: str, host_ip: str, host_port: int, container_port: int, proto: str, addresses: Iterable[str]
) -> list[Element]:
    """One published port, for each family that ``host_ip`` and the service's ``addresses`` share."""
    elements = []
    for address in addresses:
        family = "6" if ":" in address else "4"
        if host_ip == "0.0.0.0" and family == "6":
            continue
        key = f"{proto} . {host_port}"
        elements.append(Element(INET, f"publish_any{family}", key, f"{address} . {container_port}", service))
    return elements


def statement(verb: str, element: Element) -> str:
    """``add`` or ``delete`` of one element as nft reads it (nft(8))."""
    what = element.element
    if verb == "add":
        if element.comment:
            what += f' comment "{element.comment}"'
        if element.value:
            what += f" : {element.value}"
    return f"{verb} element {element.table} {element.container} {{ {what} }}"
