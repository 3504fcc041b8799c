"""Send random frames from services, and see that nobody receives what he may not.

The frames have any MAC, address, extension header, VLAN tag and flags, and some a forged source. Other
firewalls mark packets as niso does. What a service receives must be addressed to it, come from the
sender's own MAC and address, and be allowed by the verdict of `niso.plan.verdict`.
"""

from __future__ import annotations

import random
import re
import socket
import time
from typing import Any, NamedTuple

import pytest
from conftest import Lab
from samples import samples
from services import CLIENT, HOST, filter_bridged, idle
from test_policy_packets import engine_world
from wire import Wire  # before scapy: it silences its warnings

from niso.plan import verdict  # isort: skip
from scapy.layers.inet import ICMP, IP, TCP, UDP  # isort: skip
from scapy.layers.inet6 import (  # isort: skip
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import Dot1Q, Ether  # isort: skip
from scapy.packet import Raw  # isort: skip

SEEDS = range(1, samples(2, 21) + 1)
FRAMES = samples(1500, 6000)
PORT, FROM = 9000, 7000
PAIR = 9002, 7002
"""The ports of datagrams that go both ways: those of one way may be the answers to the other."""
NETWORKS = {"a": ("n1",), "b": ("n1",), "c": ("n1", "n2"), "e": ("n2",), "f": ("n2",)}
OUTSIDE = (CLIENT, "2001:db8::2")
"""The client's addresses. Those below are the host's or nobody's."""
ODD4 = ("10.99.1.77", "10.99.1.255", "255.255.255.255", "224.0.0.1", "127.0.0.1", "10.99.1.1", HOST)
ODD6 = ("fd00:99:1::77", "ff02::1", "fe80::1", "fe80::7", "::1", "fd00:99:1::1", "2001:db8::1")
ODD_MACS = ("ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "33:33:00:00:00:01", "0a:11:22:33:44:55")
FOREIGN = (
    "",
    *(
        f"table {family} other {{ chain c {{ type filter hook prerouting priority {priority};"
        f" meta mark set {mark}; }}; }}"
        for family, priority, mark in (
            ("bridge", -100, "meta mark | 0x04000000"),
            ("inet", -150, "meta mark | 0x4c000000"),
            ("inet", -150, "0"),
        )
    ),
)
"""What another firewall does to marks: nothing, `RESOLVED`, all of niso's, or it takes all off."""
MARKER = re.compile(rb"frame-(\d{6})")


class End(NamedTuple):
    """A service's link."""

    service: str
    link: str
    mac: str
    addresses: tuple[str, ...]


class Sent(NamedTuple):
    end: End
    source: str
    target: str
    mac: str
    frame: Any
    proto: str
    port: int | None


class World:
    """Services with random policies on two networks, of which one may be internal."""

    def __init__(self, lab: Lab, wire: Wire, draw: random.Random) -> None:
        self.lab, self.draw = lab, draw
        self.published = [PORT]
        self.internal = {name for name in ("n1", "n2") if draw.random() < 0.3}
        for number, name in enumerate(("n1", "n2"), 1):
            cidrs = (f"10.99.{number}.0/24", f"fd00:99:{number}::/64")
            words = [word for cidr in cidrs for word in ("--subnet", cidr)]
            more = ["--internal"] if name in self.internal else []
            lab.niso("net", "create", name, *words, *more)
        lab.niso("activate", *(self._package(number, name) for number, name in enumerate(NETWORKS)))
        self.verdicts = engine_world(lab)
        self.ends = [end for name in NETWORKS for end in self._ends(name)]
        self.holder = {address: end for end in self.ends for address in end.addresses}
        links = {link["ifname"]: link["address"] for link in lab.ip_json("link")}
        self.bridge = {name: links[f"niso-{name}"] for name in ("n1", "n2")}
        ports = {name: mac for name, mac in links.items() if re.match("ni[^s].*-", name)}
        for name, mac in ports.items():
            # as the kernel adds it when a MAC is set: frames to it go to the host
            lab.run("bridge", "fdb", "replace", mac, "dev", name, "master", "permanent")
        others = (*(end.mac for end in self.ends), *links.values())
        self.macs = (tuple(ports.values()), others, ODD_MACS)
        self.wires = {end: wire.link(f"niso-{end.service}", end.link) for end in self.ends}
        self.client = wire.link("client", "eth0")

    def _package(self, number: int, name: str) -> str:
        draw = self.draw
        table: dict[str, Any] = {"networks": list(NETWORKS[name])}
        if draw.random() < 0.4:
            self.published.append(8000 + number)
            table["ports"] = [f"{8000 + number}:{PORT}/udp"]
        peer = draw.choice(sorted(NETWORKS))
        rules = draw.choice(({}, {}, {"allow_from": [peer]}, {"deny_from": [peer]}))
        return idle(self.lab, name, network=table, **{"network.policy": rules})

    def _ends(self, name: str) -> list[End]:
        _, *links = self.lab.ip_json("address", netns=f"niso-{name}")  # without lo
        return [
            End(name, link["ifname"], link["address"], tuple(a["local"] for a in link["addr_info"]))
            for link in links
        ]

    def frame(self, number: int) -> Sent:
        """Draw a frame; half of them are nearly as a service's kernel sends them."""
        draw = self.draw
        end = draw.choice(self.ends)
        own_bridge = self.bridge[f"n{end.addresses[0].split('.')[2]}"]
        plain = draw.random() < 0.5
        six = draw.random() < 0.5
        known = [address for address in (*self.holder, *OUTSIDE) if (":" in address) == six]
        target = draw.choice(known if plain else known + list(ODD6 if six else ODD4))
        right = self.holder[target].mac if target in self.holder else own_bridge
        mac = (
            draw.choice((own_bridge, own_bridge, right))
            if plain
            else draw.choice(draw.choice(self.macs))
        )
        forged = draw.random() < (0.05 if plain else 0.2)
        sources = self.holder if forged else end.addresses
        source = draw.choice([address for address in sources if (":" in address) == six])
        own = draw.choice(self.ends).mac if not plain and draw.random() < 0.1 else end.mac
        proto, port, body = self._body(number, six, target)
        head = self._head6(source, target, number) if six else self._head4(source, target)
        ether: Any = Ether(src=own, dst=mac)
        if draw.random() < 0.04:
            ether /= Dot1Q(vlan=draw.choice((0, 1, 5)))
        return Sent(end, source, target, own, ether / head / body, proto, port)

    def _body(self, number: int, six: bool, target: str) -> tuple[str, int | None, Any]:
        data = Raw(b"frame-%06d" % number)
        proto = self.draw.choice(("udp", "pair", "pair", "tcp", "udp" if six else "icmp"))
        if proto == "icmp":
            return proto, None, ICMP(id=number) / data
        if proto == "tcp":
            flags = self.draw.choice(("S", "S", "A", "SA", "R"))
            return proto, PORT, TCP(sport=FROM + 10 + number, dport=PORT, flags=flags) / data
        if proto == "pair":
            first, port = self.draw.sample(PAIR, 2)
            return "udp", port, UDP(sport=first, dport=port) / data
        port = PORT if target in self.holder else self.draw.choice(self.published)
        return "udp", port, UDP(sport=FROM, dport=port) / data

    def _head4(self, source: str, target: str) -> Any:
        through = socket.inet_aton(self.draw.choice([a for a in self.holder if "." in a]))
        route = b"\x83\x07\x04" + through + b"\x00"  # LSRR (RFC 791)
        options = self.draw.choice((b"", b"", b"", route))
        ttl = self.draw.choice((1, 64, 64))
        return IP(src=source, dst=target, ttl=ttl, flags="DF", options=options)

    def _head6(self, source: str, target: str, number: int) -> Any:
        made = IPv6(src=source, dst=target, hlim=self.draw.choice((1, 64, 255)))
        through = [self.draw.choice([a for a in self.holder if ":" in a])]
        more = self.draw.random()
        if more < 0.1:
            return made / IPv6ExtHdrDestOpt()
        if more < 0.15:
            kind = self.draw.choice((0, 2, 4))
            return made / IPv6ExtHdrRouting(type=kind, addresses=through, segleft=1)
        if more < 0.2:
            return made / IPv6ExtHdrFragment(m=0, offset=0, id=number)
        return made / IPv6ExtHdrHopByHop() if more < 0.25 else made

    def may_arrive(self, sent: Sent, at: End | None, target: str) -> bool:
        """Return whether a frame may reach an end (None: the client), where it is addressed to ``target``."""
        if sent.source not in sent.end.addresses:
            return False
        is_open = f"n{sent.end.addresses[0].split('.')[2]}" not in self.internal
        if at is None:
            return sent.target in OUTSIDE and is_open
        found = self._verdict(sent.source, sent.target, sent.port, sent)
        passes = found.passes
        if sent.target not in self.holder:
            # published: also by a link that the kernel of the service would not choose
            found = self._verdict(sent.source, target, PORT, sent)
            passes = passes or (found.ingress.passes and (found.path.passes or is_open))
        elif sent.port in PAIR:
            passes = passes or self._verdict(sent.target, sent.source, sent.port, sent).passes
        return self.holder.get(target) == at and passes and sent.mac == sent.end.mac

    def _verdict(self, source: str, target: str, port: int | None, sent: Sent) -> verdict.Verdict:
        return verdict.decide(self.verdicts, source, target, port, sent.proto)

    def arrived(self, sent: dict[int, Sent]) -> tuple[int, list[str]]:
        """Return how many frames have arrived, and descriptions of those that must not."""
        came, wrong = 0, []
        for at, wire in (*self.wires.items(), (None, self.client)):
            seen = set()
            for data in wire.look():
                if not (marker := MARKER.search(data)):
                    continue
                frame = Ether(data)
                head = frame.getlayer(IP) or frame.getlayer(IPv6)
                one = sent[int(marker[1])]
                if head is not None and at == one.end and head.src != one.source:
                    continue  # an error about it, or an answer
                came += 1
                twice = marker[1] in seen
                seen.add(marker[1])
                if twice or head is None or not self.may_arrive(one, at, head.dst):
                    what = one.frame.summary()
                    place = f"{at.service} {at.link}" if at else "the client"
                    wrong.append(
                        f"{one.end.service} {one.end.link}: {what} -> {place}{' twice' * twice}"
                    )
        return came, wrong


@pytest.mark.parametrize("nf_call", [0, 1])
@pytest.mark.parametrize("seed", SEEDS)
def test_random_frames_reach_nobody_who_may_not_have_them(seed: int, nf_call: int) -> None:
    draw = random.Random(f"{seed} {nf_call}")
    with Lab(120) as lab, Wire(lab) as wire:
        world = World(lab, wire, draw)
        filter_bridged(lab, nf_call)
        lab.run("ip", "link", "set", "niso-n1", "promisc", draw.choice(("on", "off")))
        if foreign := FOREIGN[(seed + 2 * nf_call) % len(FOREIGN)]:
            lab.run("nft", foreign)
        sent = {}
        for number in range(FRAMES):
            sent[number] = one = world.frame(number)
            world.wires[one.end].send(one.frame)
            if number % 100 == 0:
                time.sleep(0.02)  # the receivers' processor is this one
        time.sleep(0.3)
        came, wrong = world.arrived(sent)
        assert not wrong, "\n".join(wrong[:20])
        assert came > FRAMES // 50, came
