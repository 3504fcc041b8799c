"""Build frames by which a service speaks as another one, as the router, or as nobody."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

from frames import (
    ALL,
    ALL6,
    ALL6_MAC,
    BRIDGE_LLA,
    EVIL,
    LLA,
    OUTSIDE,
    SPLIT,
    Named,
    One,
    marked,
    parts,
    udp,
)
from scapy.contrib.mpls import MPLS
from scapy.layers.eap import EAPOL
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6MLQuery,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptMTU,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.l2 import ARP, LLC, SNAP, STP, Dot1AD, Dot1Q, Ether
from scapy.layers.ppp import PPP, PPPoE
from scapy.packet import Raw
from wire import Addresses


class Lies(NamedTuple):
    """``me`` sends as ``other``, as the router, or as nobody, to ``victim`` and to the router."""

    me: Addresses
    other: Addresses
    victim: str  # its MAC
    router: str
    router4: str
    router6: str

    @staticmethod
    def to(frame: Any, mac: str) -> Any:
        frame[Ether].dst = mac
        return frame

    def ipv4(self) -> Named:
        me, other = self.me, self.other
        sources = {
            "another's IPv4": other.ip4,
            "the router's IPv4": self.router4,
            "an outside IPv4": OUTSIDE[4],
            "another network's IPv4": "10.99.2.2",
            "no IPv4": "0.0.0.0",
            "127.0.0.1": "127.0.0.1",
            "broadcast IPv4": "255.255.255.255",
        }
        found: Named = {}
        for where, mac in (("a service", self.victim), ("the host", self.router), ("all", ALL)):
            head = Ether(src=me.mac, dst=mac)
            for name, source in sources.items():
                found[f"{name} to {where}"] = lambda m, p, h=head, s=source: (
                    h / IP(src=s, dst=OUTSIDE[4]) / udp(m, p)
                )
            for name, source, address in (
                ("another's MAC", other.mac, me.ip4),
                ("nobody's MAC", EVIL, me.ip4),
                ("another's MAC and IPv4", other.mac, other.ip4),
            ):
                found[f"{name} to {where}"] = lambda m, p, s=source, a=address, d=mac: (
                    Ether(src=s, dst=d) / IP(src=a, dst=OUTSIDE[4]) / udp(m, p)
                )
        head = Ether(src=me.mac, dst=self.victim)
        found["another's IPv4 in TCP"] = lambda m, p: (
            head / IP(src=other.ip4, dst="10.99.1.1") / TCP(sport=p) / Raw(m)
        )
        found["another's IPv4 in a ping"] = lambda m, p: (
            head / IP(src=other.ip4, dst="10.99.1.1") / ICMP() / Raw(m)
        )
        found["another's IPv4 in fragments"] = lambda m, p: parts(
            head / IP(src=other.ip4, dst="10.99.1.1"), udp(m * 4, p), p
        )
        found["IPv4 cut short"] = lambda m, p: (
            Ether(src=me.mac, dst=self.victim, type=0x0800) / Raw(b"\x45" + m[:10] + m)
        )
        return found

    def arp(self) -> Named:
        me, other = self.me, self.other

        def says(
            mac: str, address: str, outer: str = "", to: str = self.victim, **more: Any
        ) -> One:
            fields = {
                "op": 2,
                "hwsrc": mac,
                "psrc": address,
                "hwdst": self.victim,
                "pdst": self.router4,
            } | more
            return lambda mark, port: Ether(src=outer or me.mac, dst=to) / ARP(**fields) / Raw(mark)

        found = {
            "ARP answer for another's address": says(me.mac, other.ip4),
            "ARP answer for another's address, as another": says(
                other.mac, other.ip4, outer=other.mac
            ),
            "ARP answer with another's MAC inside": says(other.mac, me.ip4),
            "ARP answer with another's MAC outside": says(me.mac, me.ip4, outer=other.mac),
            "ARP answer for the router": says(me.mac, self.router4),
            "ARP answer to the host": says(me.mac, other.ip4, to=self.router),
            "ARP to all, for another's address": says(
                me.mac, other.ip4, to=ALL, op=1, pdst=other.ip4
            ),
            "ARP to all, for the router's address": says(
                me.mac, self.router4, to=ALL, op=1, pdst=self.router4
            ),
            "ARP question as another": says(me.mac, other.ip4, to=ALL, op=1),
            "ARP probe of another's address": says(me.mac, "0.0.0.0", to=ALL, op=1, pdst=other.ip4),
            "ARP of IEEE 802 hardware": says(me.mac, other.ip4, hwtype=6),
            "ARP for an outside address": says(me.mac, OUTSIDE[4]),
        }
        rarp = says(me.mac, me.ip4, op=4)

        def reverse(mark: bytes, port: int) -> Any:
            frame = rarp(mark, port)
            frame.type = 0x8035
            return frame

        return found | {"reverse ARP": reverse}

    def ipv6(self) -> Named:
        me, other = self.me, self.other
        sources = {
            "another's IPv6": other.ip6,
            "the router's IPv6": self.router6,
            "the bridge's link-local address": BRIDGE_LLA,
            "a link-local address": LLA,
            "an outside IPv6": OUTSIDE[6],
            "no IPv6": "::",
            "::1": "::1",
            "another's IPv4 as IPv6": f"::ffff:{other.ip4}",
        }
        found: Named = {}
        for where, mac in (
            ("a service", self.victim),
            ("the host", self.router),
            ("all", ALL6_MAC),
        ):
            head = Ether(src=me.mac, dst=mac)
            for name, source in sources.items():
                found[f"{name} to {where}"] = lambda m, p, h=head, s=source: (
                    h / IPv6(src=s, dst=OUTSIDE[6]) / udp(m, p)
                )
            for name, source, address in (
                ("another's MAC, own IPv6", other.mac, me.ip6),
                ("another's MAC and IPv6", other.mac, other.ip6),
            ):
                found[f"{name} to {where}"] = lambda m, p, s=source, a=address, d=mac: (
                    Ether(src=s, dst=d) / IPv6(src=a, dst=OUTSIDE[6]) / udp(m, p)
                )
        head = Ether(src=me.mac, dst=self.victim)
        found["another's IPv6 in a ping"] = lambda m, p: (
            head / IPv6(src=other.ip6, dst=self.router6) / ICMPv6EchoRequest(data=m)
        )
        found["another's IPv6 in fragments"] = lambda m, p: parts(
            head / IPv6(src=other.ip6, dst=self.router6), udp(m * 4, p), p
        )
        return found

    def _advert(self, target: str, mark: bytes) -> Any:
        return (
            ICMPv6ND_NA(tgt=target, R=0, S=0, O=1)
            / marked(mark)
            / ICMPv6NDOptDstLLAddr(lladdr=self.me.mac)
        )

    def _router(self, mark: bytes) -> Any:
        own = ICMPv6NDOptSrcLLAddr(lladdr=self.me.mac)
        return ICMPv6ND_RA(routerlifetime=600) / marked(mark) / own / ICMPv6NDOptMTU(mtu=1280)

    def nd(self) -> Named:
        me, other = self.me, self.other

        def said(
            body: Callable[[bytes], Any], source: str = me.ip6, to: str = ALL6, mac: str = ALL6_MAC
        ) -> One:
            return lambda mark, port: (
                Ether(src=me.mac, dst=mac) / IPv6(src=source, dst=to, hlim=255) / body(mark)
            )

        def solicit(target: str, lladdr: str) -> Callable[[bytes], Any]:
            option = ICMPv6NDOptSrcLLAddr(lladdr=lladdr)
            return lambda mark: ICMPv6ND_NS(tgt=target) / option / marked(mark)

        redirect = ICMPv6ND_Redirect(tgt=me.ip6, dst=other.ip6)
        found: Named = {}
        for where, mac in (
            ("", self.victim),
            (", to the host", self.router),
            (", to all", ALL6_MAC),
        ):
            to = self.router6 if mac == self.router else ALL6
            found |= {
                f"NA for another's address{where}": said(
                    lambda m: self._advert(other.ip6, m), to=to, mac=mac
                ),
                f"NA for the router{where}": said(
                    lambda m: self._advert(self.router6, m), to=to, mac=mac
                ),
                f"NA for the bridge's link-local address{where}": said(
                    lambda m: self._advert(BRIDGE_LLA, m), to=to, mac=mac
                ),
                f"NA as another{where}": said(
                    lambda m: self._advert(other.ip6, m), other.ip6, to=to, mac=mac
                ),
                f"NS as another{where}": said(
                    solicit(self.router6, me.mac), other.ip6, to=to, mac=mac
                ),
                f"NS as the router{where}": said(
                    solicit(other.ip6, me.mac), self.router6, to=to, mac=mac
                ),
                f"NS of nobody for another's address{where}": said(
                    lambda m: ICMPv6ND_NS(tgt=other.ip6) / marked(m), "::", to=to, mac=mac
                ),
                f"router advertisement{where}": said(self._router, to=to, mac=mac),
                f"router advertisement as the bridge{where}": said(
                    self._router, BRIDGE_LLA, to=to, mac=mac
                ),
                f"redirect{where}": said(lambda m: redirect / marked(m), to=to, mac=mac),
                f"redirect as the bridge{where}": said(
                    lambda m: redirect / marked(m), BRIDGE_LLA, to=to, mac=mac
                ),
            }
        return found | {
            "router advertisement of a link-local address": said(self._router, LLA),
            "MLD query": said(lambda m: ICMPv6MLQuery() / Raw(m)),
            "NS that gives another's MAC as its own": said(
                solicit(self.router6, other.mac), mac=self.victim
            ),
            "NA that gives another's MAC as its own": said(
                lambda m: (
                    ICMPv6ND_NA(tgt=me.ip6, O=1)
                    / ICMPv6NDOptDstLLAddr(lladdr=other.mac)
                    / marked(m)
                ),
                mac=self.victim,
            ),
        }

    def hidden_nd(self) -> Named:
        """NA for another's address and RA behind headers that a filter may not follow, and in fragments."""
        me = self.me
        alone, options = IPv6ExtHdrFragment, IPv6ExtHdrDestOpt()
        headers = {
            "hop-by-hop options": IPv6ExtHdrHopByHop(),
            "destination options": options,
            "a routing header": IPv6ExtHdrRouting(addresses=[], segleft=0),
            "much": IPv6ExtHdrHopByHop()
            / options
            / options
            / IPv6ExtHdrRouting(addresses=[], segleft=0)
            / options,
            "a fragment header": alone(id=7),
            "a fragment header and options": alone(id=8) / options,
            "options and a fragment header": options / alone(id=9),
            "two fragment headers": alone(id=10) / alone(id=11),
        }
        bodies = {
            "NA for another's address": lambda m: self._advert(self.other.ip6, m),
            "RA": self._router,
        }
        places = {
            "": (self.victim, ALL6),
            ", to all": (ALL6_MAC, ALL6),
            ", to the host": (self.router, self.router6),
        }
        found: Named = {}
        for (where, (mac, to)), (name, body) in itertools.product(places.items(), bodies.items()):
            head = Ether(src=me.mac, dst=mac) / IPv6(src=me.ip6, dst=to, hlim=255)
            for header, first in headers.items():
                found[f"{name} behind {header}{where}"] = lambda m, p, h=head, f=first, b=body: (
                    h / f / b(m)
                )
            found |= {
                f"{name} in fragments{where}": lambda m, p, h=head, b=body: parts(h, b(m), p),
                f"{name} in fragments behind options{where}": lambda m, p, h=head, b=body: parts(
                    h / options, b(m), p
                ),
                # what it is would be told only in the rest, which RFC 7112 forbids
                f"{name} in the rest behind options{where}": lambda m, p, h=head, b=body: parts(
                    h,
                    IPv6ExtHdrDestOpt(options=[PadN(optdata=m.ljust(SPLIT - 4, b"\0"))]) / b(m),
                    p,
                ),
            }
        return found

    def tagged(self) -> Named:
        me = self.me
        inside = {
            "own IPv4": lambda m, p: IP(src=me.ip4, dst=OUTSIDE[4]) / udp(m, p),
            "another's IPv4": lambda m, p: IP(src=self.other.ip4, dst=OUTSIDE[4]) / udp(m, p),
            "ARP": lambda m, p: (
                ARP(op=2, hwsrc=me.mac, psrc=self.router4, pdst=self.other.ip4) / Raw(m)
            ),
            "RA": lambda m, p: IPv6(src=me.ip6, dst=ALL6, hlim=255) / self._router(m),
        }
        tags = {
            "VLAN 0": Dot1Q(vlan=0),
            "VLAN 7": Dot1Q(vlan=7),
            "a service tag": Dot1AD(vlan=0),
            "two tags": Dot1AD(vlan=5) / Dot1Q(vlan=0),
            "two VLAN 0": Dot1Q(vlan=0) / Dot1Q(vlan=0),
        }
        found: Named = {}
        for tag, head in tags.items():
            for name, body in inside.items():
                for where, mac in (("a service", self.victim), ("the host", self.router)):
                    found[f"{name} behind {tag} to {where}"] = (
                        lambda m, p, h=head, b=body, mac=mac: (
                            Ether(src=me.mac, dst=mac) / h / b(m, p)
                        )
                    )
        return found

    def other_types(self) -> Named:
        me = self.me

        def plain(number: int, to: str = self.victim) -> One:
            return lambda m, p: Ether(src=me.mac, dst=to, type=number) / Raw(m * 4)

        ip = IP(src=me.ip4, dst=OUTSIDE[4])
        head = Ether(src=me.mac, dst=self.victim)
        numbers = {
            "local experiment": 0x88B5,
            "IPX": 0x8137,
            "AppleTalk": 0x809B,
            "LLDP to one": 0x88CC,
            "flow control to one": 0x8808,
            "PTP": 0x88F7,
            "loopback test": 0x9000,
            "old tag": 0x9100,
            "MACsec": 0x88E5,
            "batman": 0x4305,
        }
        found = {name: plain(number) for name, number in numbers.items()}
        found |= {
            f"{name}, to the host": plain(number, self.router) for name, number in numbers.items()
        }
        return found | {
            "MPLS": lambda m, p: head / MPLS(label=16, s=1) / ip / udp(m, p),
            "PPPoE": lambda m, p: head / PPPoE(sessionid=1) / PPP() / ip / udp(m, p),
            "EAPOL": lambda m, p: head / EAPOL() / Raw(m),
            "IPv4 in SNAP": lambda m, p: (
                head / LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP(OUI=0, code=0x0800) / ip / udp(m, p)
            ),
            "NetBIOS over LLC": lambda m, p: head / LLC(dsap=0xF0, ssap=0xF0, ctrl=3) / Raw(m),
            "IPv6 as IPv4": lambda m, p: (
                Ether(src=me.mac, dst=self.victim, type=0x0800)
                / Raw(bytes(IPv6(src=me.ip6) / udp(m, p)))
            ),
            "IPv4 as IPv6": lambda m, p: (
                Ether(src=me.mac, dst=self.victim, type=0x86DD) / Raw(bytes(ip / udp(m, p)))
            ),
            "BPDU": lambda m, p: (
                Ether(src=me.mac, dst="01:80:c2:00:00:00")
                / LLC(dsap=0x42, ssap=0x42, ctrl=3)
                / STP()
                / Raw(m)
            ),
            "CDP": lambda m, p: (
                Ether(src=me.mac, dst="01:00:0c:cc:cc:cc")
                / LLC(dsap=0xAA, ssap=0xAA, ctrl=3)
                / SNAP(OUI=0x0C, code=0x2000)
                / Raw(m)
            ),
            "multicast of another type": plain(0x88B5, "01:80:c2:00:00:21"),
            "broadcast of another type": plain(0x88B5, ALL),
        }
