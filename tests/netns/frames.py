"""Build frames that a service may or must not send, with a mark that receivers look for.

The mark is the payload, or in ND an option that nobody knows (RFC 4861, 4.6: to be ignored), or behind an ARP packet.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6NDOptUnknown,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw
from wire import Addresses

One = Callable[[bytes, int], Any]  # a frame, or a list of them where they are parts of one packet
Named = dict[str, One]

ALL, EVIL = "ff:ff:ff:ff:ff:ff", "02:66:66:66:66:66"
ALL6_MAC, ALL6 = "33:33:00:00:00:01", "ff02::1"
BRIDGE_LLA = "fe80::1"  # what niso's bridges have
LLA = "fe80::6666"
SPLIT = 40  # bytes in a first fragment, eights
OUTSIDE = {4: "198.51.100.1", 6: "2001:db8:ffff::1"}

SAID_BY_EVERY_KERNEL = ("MLD report", "router solicitation")
"""Each interface sends these by itself, so their drops are not counted."""


def marked(mark: bytes) -> Any:
    return ICMPv6NDOptUnknown(type=253, data=mark)


def address(mark: bytes, start: str = "fd00") -> str:
    """An IPv6 address that carries the mark, for ND that must be just as kernels say it."""
    return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(start) + mark)


def udp(mark: bytes, port: int, to: int = 9) -> Any:
    return UDP(sport=port, dport=to) / Raw(mark)


def parts(head: Any, body: Any, number: int) -> list[Any]:
    """An IP packet in two fragments. ``head`` is its frame up to where a fragment header is; ``number`` tells packets apart."""
    whole = bytes(head / body)[len(head) :]
    first, rest = whole[:SPLIT], whole[SPLIT:]
    if IP in head:
        one, two = head.copy(), head.copy()
        one[IP].flags, two[IP].frag = "MF", SPLIT // 8
        one[IP].id = two[IP].id = number
        one[IP].proto = two[IP].proto = (head / body)[IP].proto
        return [one / Raw(first), two / Raw(rest)]
    kind = (head / body).getlayer(len(head.layers()) - 1).nh
    fragment = {"nh": kind, "id": number}
    return [
        head / IPv6ExtHdrFragment(m=1, **fragment) / Raw(first),
        head / IPv6ExtHdrFragment(offset=SPLIT // 8, **fragment) / Raw(rest),
    ]


class Shouts(NamedTuple):
    """``me`` sends with its own addresses, but to more than one."""

    me: Addresses
    victim: Addresses

    def frames(self) -> Named:
        me, victim = self.me, self.victim
        group = "01:00:5e:00:00:fb"
        offer = BOOTP(op=2, yiaddr=victim.ip4, siaddr=me.ip4) / DHCP(
            options=[("message-type", "offer"), "end"]
        )
        targets = {
            "to all": (ALL, "255.255.255.255"),
            "to all of the subnet": (ALL, "10.99.1.255"),
            "to one address in a frame to all": (ALL, victim.ip4),
            "to one address in a frame to a group": (group, victim.ip4),
            "to one address in a frame to an unknown group": ("03:00:00:00:00:01", victim.ip4),
            "to one address in a frame to 01:80:c2:00:00:00": ("01:80:c2:00:00:00", victim.ip4),
            "to all in a frame to one": (victim.mac, "255.255.255.255"),
            "to all of the subnet in a frame to one": (victim.mac, "10.99.1.255"),
            "to a group": (group, "224.0.0.251"),
            "to a group in a frame to one": (victim.mac, "224.0.0.251"),
            "to all hosts": ("01:00:5e:00:00:01", "224.0.0.1"),
            "to all hosts in a frame to one": (victim.mac, "224.0.0.1"),
            "to a routed group in a frame to one": (victim.mac, "239.1.1.1"),
            "to all hosts in a frame to all": (ALL, "224.0.0.1"),
        }
        targets6 = {
            "to all nodes": (ALL6_MAC, ALL6),
            "to all nodes in a frame to one": (victim.mac, ALL6),
            "to all nodes in a frame to all": (ALL, ALL6),
            "to a group": ("33:33:00:00:00:fb", "ff02::fb"),
            "to a group in a frame to one": (victim.mac, "ff02::fb"),
            "to a site's group in a frame to one": (victim.mac, "ff05::1:3"),
            "to the world's group in a frame to one": (victim.mac, "ff0e::1"),
            "to one address in a frame to all nodes": (ALL6_MAC, victim.ip6),
            "to one address in a frame to all": (ALL, victim.ip6),
        }
        found: Named = {}
        for name, (mac, target) in targets.items():
            head = Ether(src=me.mac, dst=mac) / IP(src=me.ip4, dst=target)
            found[f"UDP {name}"] = lambda m, p, h=head: h / udp(m, p)
            found[f"ping {name}"] = lambda m, p, h=head: h / ICMP() / Raw(m)
            found[f"fragments {name}"] = lambda m, p, h=head: parts(h, udp(m * 4, p), p)
            found[f"DHCP offer {name}"] = lambda m, p, h=head: (
                h / UDP(sport=67, dport=68) / offer / Raw(m)
            )
        for name, (mac, target) in targets6.items():
            head6 = Ether(src=me.mac, dst=mac) / IPv6(src=me.ip6, dst=target)
            found[f"UDP6 {name}"] = lambda m, p, h=head6: h / udp(m, p, 547)
            found[f"ping6 {name}"] = lambda m, p, h=head6: h / ICMPv6EchoRequest(data=m)
            found[f"fragments6 {name}"] = lambda m, p, h=head6: parts(h, udp(m * 4, p), p)
            found[f"UDP6 behind hop-by-hop options {name}"] = lambda m, p, h=head6: (
                h / IPv6ExtHdrHopByHop() / udp(m, p)
            )
        found["IGMP query to all hosts"] = lambda m, p: (
            Ether(src=me.mac, dst="01:00:5e:00:00:01")
            / IP(src=me.ip4, dst="224.0.0.1", ttl=1, proto=2)
            / Raw(bytes.fromhex("1164ee9b00000000") + m)
        )
        return found


def ipv6_anywhere(me: str, other: str, router: str) -> Named:
    """IPv6 of any kind, for a network that has none. MACs."""

    def said(source: str, to: str, mac: str, body: Callable[[bytes, int], Any]) -> One:
        return lambda m, p: Ether(src=me, dst=mac) / IPv6(src=source, dst=to, hlim=255) / body(m, p)

    found: Named = {}
    for where, mac in (("a service", other), ("the host", router), ("all", ALL6_MAC)):
        for source in (LLA, "fd00:99:3::2", "::"):
            to = ALL6 if mac == ALL6_MAC else BRIDGE_LLA
            found[f"UDP as {source} to {where}"] = said(source, to, mac, udp)
            found[f"ping as {source} to {where}"] = said(
                source, to, mac, lambda m, p: ICMPv6EchoRequest(data=m)
            )
        found[f"NS to {where}"] = said(
            LLA, ALL6, mac, lambda m, p: ICMPv6ND_NS(tgt="fe80::2") / marked(m)
        )
        found[f"NA to {where}"] = said(
            LLA, ALL6, mac, lambda m, p: ICMPv6ND_NA(tgt=LLA) / marked(m)
        )
        found[f"RA to {where}"] = said(LLA, ALL6, mac, lambda m, p: ICMPv6ND_RA() / marked(m))
    found["MLD report"] = said(
        LLA, "ff02::16", "33:33:00:00:00:16", lambda m, p: ICMPv6MLReport2() / Raw(m)
    )
    found["router solicitation"] = said(
        LLA, "ff02::2", "33:33:00:00:00:02", lambda m, p: ICMPv6ND_RS() / marked(m)
    )
    return found


def honest(
    me: Addresses, other: Addresses, router: str, router4: str, router6: str
) -> dict[str, tuple[str, One]]:
    """What a service may send, by whom it must be seen: "db" (``other``) or "host"."""
    to_db, to_host, to_all = (Ether(src=me.mac, dst=mac) for mac in (other.mac, router, ALL))
    all6 = Ether(src=me.mac, dst=ALL6_MAC)

    def arp(mark: bytes, port: int) -> Any:
        return to_all / ARP(op=1, hwsrc=me.mac, psrc=me.ip4, pdst=other.ip4) / Raw(mark)

    def six(target: str) -> Any:
        return IPv6(src=me.ip6, dst=target, hlim=255)

    def solicit(target: str) -> Any:
        return ICMPv6ND_NS(tgt=target) / ICMPv6NDOptSrcLLAddr(lladdr=me.mac)

    advert = ICMPv6ND_NA(tgt=me.ip6, O=1) / ICMPv6NDOptDstLLAddr(lladdr=me.mac)
    return {
        "UDP": ("db", lambda m, p: to_db / IP(src=me.ip4, dst=other.ip4) / udp(m, p)),
        "UDP to the host": ("host", lambda m, p: to_host / IP(src=me.ip4, dst=router4) / udp(m, p)),
        "broadcast to the host": (
            "host",
            lambda m, p: to_all / IP(src=me.ip4, dst="10.99.1.255") / udp(m, p),
        ),
        "fragments": (
            "db",
            lambda m, p: parts(to_db / IP(src=me.ip4, dst=other.ip4), udp(m * 4, p), p),
        ),
        "ARP question": ("db", arp),
        "ARP question to the host": ("host", arp),
        "UDP6": ("db", lambda m, p: to_db / six(other.ip6) / udp(m, p)),
        "UDP6 behind options": (
            "db",
            lambda m, p: to_db / six(other.ip6) / IPv6ExtHdrDestOpt() / udp(m, p),
        ),
        "ping6 to the host": (
            "host",
            lambda m, p: to_host / six(router6) / ICMPv6EchoRequest(data=m),
        ),
        "fragments6": ("db", lambda m, p: parts(to_db / six(other.ip6), udp(m * 4, p), p)),
        "NS to all": ("db", lambda m, p: all6 / six(ALL6) / solicit(address(m))),
        "NS to the host": ("host", lambda m, p: to_host / six(router6) / solicit(address(m))),
        "NA to all": ("db", lambda m, p: all6 / six(address(m, "ff02")) / advert),
        "NA to one": ("db", lambda m, p: to_db / six(address(m)) / advert),
        "NA without an option": (
            "db",
            lambda m, p: to_db / six(address(m)) / ICMPv6ND_NA(tgt=me.ip6),
        ),
    }
