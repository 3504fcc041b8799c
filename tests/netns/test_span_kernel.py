"""Test networks that span hosts on the real kernel, with a mirror that the test fills: no engine is there.

Host c is the attacker: root, and itself a host of the cluster. Each attack first succeeds without the defence.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import re
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from subprocess import run
from typing import Any, NamedTuple

import pytest
from conftest import UNPRIVILEGED
from damages import OF_SPANS
from many_hosts import MTU, PORT, VNI, Host, Service, fill, network, underlay
from samples import samples
from services import CLIENT, ask, echo, on, pings
from wire import Ear, Link, Wire  # before scapy: it silences its warnings

from scapy.layers.inet import IP, TCP, UDP, fragment  # isort: skip
from scapy.layers.inet6 import (  # isort: skip
    ICMPv6ND_NA,
    ICMPv6ND_RA,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptUnknown,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    fragment6,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether  # isort: skip
from scapy.layers.vxlan import VXLAN  # isort: skip
from scapy.packet import Raw  # isort: skip

API = Service("api", "a", ("10.99.1.2", "fd00:99:1::2"))
DB = Service("db", "b", ("10.99.1.3", "fd00:99:1::3"))
EVIL = Service("evil", "c", ("10.99.1.4", "fd00:99:1::4"))
SERVICES = [API, DB, EVIL]
NOBODY = {4: "198.51.100.77", 6: "2001:db8:51::77"}
EVERY, EVERY6 = "ff:ff:ff:ff:ff:ff", "33:33:00:00:00:01"
SECONDS = 3


class World(NamedTuple):
    family: int
    a: Host
    b: Host
    c: Host

    @property
    def hosts(self) -> list[Host]:
        return [self.a, self.b, self.c]

    def fill(self, host: Host, services: list[Service], gone: tuple[str, ...] = ()) -> None:
        fill(host, self.hosts, services, self.family, gone)


@pytest.fixture(scope="module", params=[4, 6], ids=["over IPv4", "over IPv6"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """api on a, db on b, evil on c."""
    with underlay("a", "b", "c") as hosts:
        world = World(request.param, *hosts)
        for host in hosts:
            network(host)
            world.fill(host, SERVICES)
            for service in SERVICES:
                if service.host == host.name:
                    host.lab.niso("activate", echo(host.lab, service.name, network=on("backend")))
            assert host.lab.niso("net", "check").stdout.startswith("OK"), host.name
        yield world


def test_services_reach_one_another(world: World) -> None:
    a = world.a.lab
    inside = a.ip_json("address", "show", "eth0", netns="niso-api")[0]["addr_info"]
    assert {each["local"] for each in inside} == set(API.addresses)
    a.wait_for(lambda: ask(a, "10.99.1.3", 80, "niso-api") == "db 10.99.1.2", 10)
    for address in DB.addresses:
        full = str(MTU - (48 if ":" in address else 28))
        a.run("ping", "-c1", "-W2", "-Mdo", "-s", full, address, netns="niso-api")
    lines = a.path("/run/niso/hosts/backend/hosts").read_text().splitlines()
    assert {(address, "db") for address in DB.addresses} <= {
        (line.split()[0], line.split()[-1]) for line in lines if line
    }
    # what neither has asked for never leaves: no broadcast, no ARP, no neighbour discovery
    heard = world.b.lab.run("nft", "list", "chain", "inet", "niso", "wire").stdout
    assert "packets 0 " in heard


def test_what_is_wrapped_has_no_mark(world: World) -> None:
    """With one, the device would look up its route for each packet (ip_tunnel_dst_cache_usable)."""
    lab, chain = world.a.lab, ("bridge", "niso", "postrouting")
    rule = f"udp dport {PORT} meta mark != 0 counter"
    hook = "type filter hook output priority 0"
    lab.run("nft", f"table inet probe {{ chain c {{ {hook}; {rule}; }}; }}")
    try:
        for marked in (False, True):
            assert pings(world.a.lab, DB.addresses[0], "niso-api")
            found = lab.run("nft", "list", "table", "inet", "probe").stdout
            assert ("packets 0 " not in found) == marked
            lab.run("nft", "flush", "chain", *chain)
    finally:
        lab.run("nft", "delete", "table", "inet", "probe")
        lab.niso("net", "repair")


def test_service_is_not_heard_once_its_claim_is_gone(world: World) -> None:
    """As after a take-over: its own host sends on, believing that it has it."""
    world.fill(world.b, [DB, EVIL])
    assert not pings(world.a.lab, DB.addresses[0], "niso-api")
    assert "10.99.1.2" not in world.b.lab.path("/run/niso/hosts/backend/hosts").read_text()
    # it is c's now, with the same address
    world.fill(world.b, [DB, EVIL, API._replace(host="c")])
    assert not pings(world.a.lab, DB.addresses[0], "niso-api")
    world.fill(world.b, SERVICES)
    assert pings(world.a.lab, DB.addresses[0], "niso-api")


def test_names_of_a_host_that_is_gone_are_hidden_and_its_addresses_stay(world: World) -> None:
    world.fill(world.b, SERVICES, gone=("a",))
    assert "10.99.1.2" not in world.b.lab.path("/run/niso/hosts/backend/hosts").read_text()
    assert pings(world.a.lab, DB.addresses[0], "niso-api")
    world.fill(world.b, SERVICES)


# --- check and repair ---------------------------------------------------------------------------------------------

NX = "nx-backend"
DEVICE = "VXLAN device nx-backend"
DAMAGES: list[tuple[tuple[str, ...], str, list[tuple[str, str]]]] = [
    # the kernel drops the neighbour entries of a link that is down
    ((), "ip link set niso-backend down", [("different", "bridge niso-backend")]),
    (("Vxlan missing",), f"ip link delete {NX}", [("missing", DEVICE)]),
    (
        ("Vxlan foreign", "Fdb foreign"),
        "ip link add nx-stray type vxlan id 9 dstport 4798 && ip link set nx-stray alias {alias} &&"
        f" bridge fdb add 02:00:00:00:00:01 dev {NX} self dst {{nobody}} &&"
        f" bridge fdb add 00:00:00:00:00:00 dev {NX} self dst {{nobody}} permanent &&"
        " ip neigh add 10.99.1.9 lladdr 02:00:00:00:00:01 dev niso-backend nud permanent",
        [
            ("foreign", "VXLAN device nx-stray"),
            ("foreign", "forwarding entry 00:00:00:00:00:00 of VXLAN device nx-backend"),
            ("foreign", "forwarding entry 02:00:00:00:00:01 of VXLAN device nx-backend"),
            ("foreign", "neighbour entry 10.99.1.9 on niso-backend"),
        ],
    ),
    (
        ("Vxlan.vni", "Vxlan.local", "Vxlan.port", "Vxlan.device"),
        f"ip link delete {NX} && ip link add {NX} mtu 1430 type vxlan id 4099 local {{nobody}}"
        f" dstport 4798 ttl 64 nolearning l2miss && ip link set {NX} master niso-backend"
        f" alias {{alias}} up && sysctl -qw net.ipv6.conf.{NX}.disable_ipv6=1",
        [("different", DEVICE)],
    ),
    (
        ("Vxlan.mtu", "Vxlan.up", "Vxlan.drift"),
        f"bridge link set dev {NX} flood on bcast_flood on neigh_suppress off &&"
        f" ip link set {NX} mtu 1300 group default gro_max_size 65536 && ip link set {NX} down",
        [("different", DEVICE)],
    ),
    (("Vxlan.bridge",), f"ip link set {NX} nomaster", [("different", DEVICE)]),
    (
        ("Fdb missing", "Fdb.host"),
        f"bridge fdb delete {API.mac} dev {NX} self && bridge fdb delete {API.mac} dev {NX} master"
        f" && bridge fdb replace {EVIL.mac} dev {NX} self dst {{nobody}} permanent"
        f" && ip neigh delete {API.addresses[1]} dev niso-backend && ip neigh replace"
        f" {API.addresses[0]} lladdr 02:00:00:00:00:01 dev niso-backend nud permanent",
        [
            ("different", f"forwarding entry {EVIL.mac} of VXLAN device nx-backend"),
            ("different", f"neighbour entry {API.addresses[0]} on niso-backend"),
            ("missing", f"forwarding entry {API.mac} of VXLAN device nx-backend"),
            ("missing", f"neighbour entry {API.addresses[1]} on niso-backend"),
        ],
    ),
    (
        ("Fdb.fixed",),
        f"bridge fdb delete {API.mac} dev {NX} master",
        [("different", f"forwarding entry {API.mac} of VXLAN device nx-backend")],
    ),
]


def test_every_damage_is_found_and_repaired(world: World) -> None:
    if world.family == 6:
        pytest.skip("no different over IPv6")
    lab = world.b.lab
    words = {
        "alias": lab.ip_json("link", "show", NX)[0]["ifalias"],
        "nobody": NOBODY[4],
    }
    wrong = {}
    for cases, command, findings in DAMAGES:
        lab.run("sh", "-c", command.format(**words))
        shown = json.loads(lab.niso("net", "check", "--json", check=False).stdout)
        found = sorted((each["problem"], each["what"]) for each in shown)
        lab.niso("net", "repair")
        left = lab.niso("net", "check", check=False).stdout
        if found != findings or not left.startswith("OK"):
            wrong[cases] = (shown, left)
    assert not wrong
    assert pings(world.a.lab, DB.addresses[0], "niso-api")
    assert {case for cases, _, _ in DAMAGES for case in cases} == OF_SPANS


# --- attacks from another host ------------------------------------------------------------------------------------


class Shot(NamedTuple):
    """An attack of c on db, which is on b. ``frames`` is of a mark and b's MACs and addresses."""

    name: str
    frames: Callable[[Aim, bytes], list[Any]]
    receiver: str = "db"  # or "host", "host6": b's own program; or "client": behind b


class Aim(NamedTuple):
    """What c knows: how to reach b, and itself."""

    family: int
    b: Host
    c: Host
    bridge: str  # the MAC of b's bridge

    def outer(self, source: str | None = None, target: str | None = None) -> Any:
        source, target = (
            source or self.c.address[self.family],
            target or self.b.address[self.family],
        )
        head = Ether(src=self.c.mac, dst=self.b.mac)
        return head / (
            IPv6(src=source, dst=target) if self.family == 6 else IP(src=source, dst=target)
        )

    def wrapped(self, inner: Any, vni: int = VNI, **outer: str) -> Any:
        """A frame in VXLAN, from c to b. Checksums of zero are what many devices send."""
        return self.outer(**outer) / UDP(sport=40_000, dport=PORT) / VXLAN(vni=vni, flags=8) / inner

    def frame(self, who: Service, mark: bytes, inner: int = 4, to: str = "", mac: str = "") -> Any:
        """A datagram to db as that of a service, with its MAC."""
        place = inner == 6
        to = to or DB.addresses[place]
        head = (
            IPv6(src=who.addresses[place], dst=to)
            if place
            else IP(src=who.addresses[place], dst=to)
        )
        return Ether(src=who.mac, dst=mac or DB.mac) / head / UDP(sport=9, dport=9) / Raw(mark)


def nested(aim: Aim, mark: bytes) -> list[Any]:
    """As evil, through the wire, to b's own VXLAN device: the inner packet speaks for api."""
    inner = aim.frame(API, mark)
    head = (
        IPv6(src=EVIL.addresses[1], dst="fd00:99:1::1")
        if aim.family == 6
        else IP(src=EVIL.addresses[0], dst="10.99.1.1")
    )
    to_host = Ether(src=EVIL.mac, dst=aim.bridge) / head
    return [aim.wrapped(to_host / UDP(sport=9, dport=PORT) / VXLAN(vni=VNI, flags=8) / inner)]


def fragments(aim: Aim, mark: bytes) -> list[Any]:
    """api's datagram in fragments of the outer packet, the first with the UDP header alone."""
    whole = aim.wrapped(aim.frame(API, mark))
    if aim.family == 4:
        parts = fragment(whole[IP], fragsize=8)
        return [Ether(src=aim.c.mac, dst=aim.b.mac) / part for part in parts]
    packet = whole[IPv6]
    packet = IPv6(src=packet.src, dst=packet.dst) / IPv6ExtHdrFragment(id=7) / packet.payload
    parts = fragment6(packet, 56)
    return [Ether(src=aim.c.mac, dst=aim.b.mac) / part for part in parts]


def arp(aim: Aim, mark: bytes) -> list[Any]:
    lie = ARP(op=2, hwsrc=EVIL.mac, psrc=API.addresses[0], hwdst=DB.mac, pdst=DB.addresses[0])
    return [aim.wrapped(Ether(src=EVIL.mac, dst=DB.mac, type=0x806) / lie / Raw(mark))]


def neighbour(aim: Aim, mark: bytes) -> list[Any]:
    note = ICMPv6NDOptUnknown(
        type=200, data=mark + bytes(14 - len(mark) % 8 if len(mark) % 8 != 6 else 0)
    )
    lie = ICMPv6ND_NA(tgt=API.addresses[1], R=0, S=1, O=1) / ICMPv6NDOptDstLLAddr(lladdr=EVIL.mac)
    head = IPv6(src=EVIL.addresses[1], dst=DB.addresses[1], hlim=255)
    return [aim.wrapped(Ether(src=EVIL.mac, dst=DB.mac) / head / lie / note)]


def router(aim: Aim, mark: bytes) -> list[Any]:
    note = ICMPv6NDOptUnknown(
        type=200, data=mark + bytes(14 - len(mark) % 8 if len(mark) % 8 != 6 else 0)
    )
    head = IPv6(src="fe80::66", dst="ff02::1", hlim=255)
    return [aim.wrapped(Ether(src=EVIL.mac, dst=EVERY6) / head / ICMPv6ND_RA() / note)]


def as_host(aim: Aim, mark: bytes) -> list[Any]:
    """Forge the outer source: no host has it."""
    return [aim.wrapped(aim.frame(API, mark), source=NOBODY[aim.family])]


def behind(*headers: Any) -> Callable[[Aim, bytes], list[Any]]:
    """api's datagram, with extension headers of IPv6 between the outer header and UDP."""

    def frames(aim: Aim, mark: bytes) -> list[Any]:
        packet = aim.wrapped(aim.frame(API, mark))
        made = packet[Ether].copy()
        made[IPv6].remove_payload()
        for header in headers:
            made = made / header.copy()
        return [made / packet[UDP].copy()]

    return frames


ATTACKS = [
    Shot("another host's service", lambda aim, mark: [aim.wrapped(aim.frame(API, mark))]),
    Shot("another host's service, IPv6", lambda aim, mark: [aim.wrapped(aim.frame(API, mark, 6))]),
    Shot("b's own service", lambda aim, mark: [aim.wrapped(aim.frame(DB, mark))]),
    Shot(
        "its own MAC, another's address",
        lambda aim, mark: [aim.wrapped(aim.frame(Service("evil", "c", API.addresses), mark))],
    ),
    Shot(
        "an address that nobody has",
        lambda aim, mark: [
            aim.wrapped(aim.frame(EVIL._replace(addresses=("10.99.1.9", "fd00:99:1::9")), mark))
        ],
    ),
    Shot("from an address of no host", as_host),
    Shot("another VNI", lambda aim, mark: [aim.wrapped(aim.frame(EVIL, mark), vni=VNI + 1)]),
    Shot("ARP", arp),
    Shot("neighbour advertisement", neighbour),
    Shot("router advertisement", router),
    Shot(
        "VLAN tag",
        lambda aim, mark: [
            aim.wrapped(
                Ether(src=EVIL.mac, dst=DB.mac) / Dot1Q(vlan=0) / aim.frame(EVIL, mark).payload
            )
        ],
    ),
    Shot("broadcast", lambda aim, mark: [aim.wrapped(aim.frame(EVIL, mark, mac=EVERY))]),
    Shot(
        "to the host itself",
        lambda aim, mark: [aim.wrapped(aim.frame(EVIL, mark, to="10.99.1.1", mac=aim.bridge))],
        "host",
    ),
    Shot(
        "to the host itself, IPv6",
        lambda aim, mark: [
            aim.wrapped(aim.frame(EVIL, mark, 6, to="fd00:99:1::1", mac=aim.bridge))
        ],
        "host6",
    ),
    Shot(
        "to the host itself in a broadcast",
        lambda aim, mark: [aim.wrapped(aim.frame(EVIL, mark, to="10.99.1.1", mac=EVERY))],
        "host",
    ),
    Shot(
        "by the host as a gateway",
        lambda aim, mark: [aim.wrapped(aim.frame(EVIL, mark, to=CLIENT, mac=aim.bridge))],
        "client",
    ),
    Shot("fragments", fragments),
    Shot("nested", nested),
]
BY_IPV6 = [
    Shot("behind hop-by-hop options", behind(IPv6ExtHdrHopByHop())),
    Shot("behind destination options", behind(IPv6ExtHdrDestOpt(), IPv6ExtHdrDestOpt())),
    Shot("one fragment", behind(IPv6ExtHdrFragment(id=9))),
]
"""What only an outer IPv6 header can have."""
FOREIGN_VNI = "another VNI"


class Range:
    """Where the shots of a test are fired."""

    def __init__(self, world: World, wires: list[Wire]) -> None:
        self.world = world
        self.b, self.c = wires
        bridge = world.b.lab.ip_json("link", "show", "niso-backend")[0]["address"]
        self.aim = Aim(world.family, world.b, world.c, bridge)
        self.out = self.c.link(None, "under0")
        self.receivers: dict[str, Link | Ear] = {
            "db": self.b.link("niso-db", "eth0"),
            "host": Ear(self.b, "0.0.0.0", 9),
            "host6": Ear(self.b, "::", 9),
            "client": self.b.link("client", "eth0"),
        }
        self.numbers = itertools.count(1)

    def fire(self, shot: Shot) -> tuple[bytes, Link | Ear]:
        mark = b"attack-%07d" % next(self.numbers)
        for frame in shot.frames(self.aim, mark):
            self.out.send(frame)
        return mark, self.receivers[shot.receiver]

    def fire_cut(self, shot: Shot, first: Any = None) -> tuple[bytes, Link | Ear]:
        """Fire the frames of an attack as parts of one packet, after an honest part."""
        mark = b"attack-%07d" % next(self.numbers)
        first = self.aim.wrapped(first or self.aim.frame(EVIL, b"first"))
        self.send_cut([first, *shot.frames(self.aim, mark)])
        return mark, self.receivers[shot.receiver]

    def send_cut(self, frames: list[Any]) -> None:
        """Send frames in VXLAN as one packet that b's kernel cuts (UDP_SEGMENT)."""
        parts = [bytes(frame[UDP].payload) for frame in frames]
        size = max(map(len, parts))
        data = b"".join(part.ljust(size, b"\0") for part in parts)
        address = self.aim.b.address[self.aim.family]
        kind = str(int(socket.AF_INET6 if ":" in address else socket.AF_INET))
        words = (kind, address, str(PORT), data.hex(), str(size))
        self.world.c.lab.run("python3", "-ISc", SENDER, *words)

    @staticmethod
    def arrives(mark: bytes, receiver: Link | Ear, seconds: float = SECONDS) -> bool:
        end = time.monotonic() + seconds
        while not receiver.saw(mark):
            if (left := end - time.monotonic()) <= 0:
                return False
            select.select([receiver], [], [], left)
        return True

    def honest(self) -> bool:
        """Whether db sees what evil may send it: what comes later than an attack shows that it is over."""
        shot = Shot("honest", lambda aim, mark: [aim.wrapped(aim.frame(EVIL, mark))])
        return self.arrives(*self.fire(shot))


@contextlib.contextmanager
def defenceless(world: World) -> Iterator[None]:
    """b without niso's tables, and a VXLAN device of another network on its bridge too."""
    lab = world.b.lab
    lab.run("nft", "destroy", "table", "inet", "niso")
    lab.run("nft", "destroy", "table", "bridge", "niso")
    lab.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.under0.rp_filter=0")
    words = f"id {VNI + 1} local {world.b.address[world.family]} dstport {PORT} nolearning"
    lab.run("ip", "link", "add", "other", "type", "vxlan", *words.split())
    lab.run("ip", "link", "set", "other", "master", "niso-backend", "up")
    try:
        yield
    finally:
        lab.run("ip", "link", "delete", "other")
        lab.niso("net", "repair")
        lab.run("ip", "neigh", "flush", "all", netns="niso-db")


def test_another_host_cannot_speak_for_others(world: World) -> None:
    attacks = ATTACKS + (BY_IPV6 if world.family == 6 else [])
    with Wire(world.b.lab) as b, Wire(world.c.lab) as c:
        field = Range(world, [b, c])
        with defenceless(world):
            silent = [shot.name for shot in attacks if not field.arrives(*field.fire(shot))]
        assert not silent, "these show nothing: they do not arrive without the rules either"
        assert field.honest()
        marks = [(shot, *field.fire(shot)) for shot in attacks]
        assert field.honest()
        assert [shot.name for shot, mark, receiver in marks if receiver.saw(mark)] == []
        # once more by the wire's rule alone: what it lets through, the bridge's table would stop
        world.b.lab.run("nft", "destroy", "table", "bridge", "niso")
        world.b.lab.run("nft", 'insert rule inet niso raw iifname "niso-*" accept')
        assert field.honest()
        marks = [(shot, *field.fire(shot)) for shot in attacks]
        assert field.honest()
        assert [shot.name for shot, mark, receiver in marks if receiver.saw(mark)] == [
            "neighbour advertisement"
        ]
        world.b.lab.niso("net", "repair")


# --- attacks of users and services of a host -----------------------------------------------------------------------

SENDER = """\
import socket, sys
family, address, port, data = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), bytes.fromhex(sys.argv[4])
sender = socket.socket(family, socket.SOCK_DGRAM)
if sys.argv[5:]:
    sender.setsockopt(socket.IPPROTO_UDP, 103, int(sys.argv[5]))  # UDP_SEGMENT
sender.sendto(data, (address, port))
"""


@pytest.mark.parametrize("who", ["user", "service"])
def test_nobody_writes_what_the_host_would_wrap(world: World, who: str) -> None:
    """From c, whose address is the outer source by itself or by masquerading, as evil to db; to b's lo too."""
    address = world.b.address[world.family]
    lab = world.c.lab

    def send(to: Host, target: str, mark: bytes) -> None:
        frame = Ether(src=EVIL.mac, dst=DB.mac) / IP(src=EVIL.addresses[0], dst=DB.addresses[0])
        data = bytes(VXLAN(vni=VNI, flags=8) / frame / UDP(sport=9, dport=9) / Raw(mark))
        kind = socket.AF_INET6 if ":" in target else socket.AF_INET
        words = ("python3", "-ISc", SENDER, str(int(kind)), target, str(PORT), data.hex())
        if who == "service" and to is world.c:
            to.lab.run(*words, netns="niso-evil", check=False)
        else:
            to.lab.run(*UNPRIVILEGED, *words, check=False)

    with Wire(world.b.lab) as b:
        db = b.link("niso-db", "eth0")
        send(world.c, address, b"with-the-rule")
        rules = lab.run("nft", "-a", "list", "chain", "inet", "niso", "wire_away").stdout
        [rule] = [line for line in rules.splitlines() if "@vxlans" in line]
        assert "packets 0 " not in rule
        handle = rule.split()[-1]
        lab.run("nft", "delete", "rule", "inet", "niso", "wire_away", "handle", handle)
        send(world.c, address, b"without-the-rule")
        assert Range.arrives(b"without-the-rule", db)
        assert not db.saw(b"with-the-rule")
        lab.niso("net", "repair")
        # and on b itself, by lo
        own = "::1" if world.family == 6 else "127.0.0.1"
        send(world.b, own, b"by-lo")
        assert not Range.arrives(b"by-lo", db, 0.3)


def test_each_part_of_a_large_packet_is_checked(world: World) -> None:
    """c sends packets that b's kernel cuts for the VXLAN socket, after the chain wire saw the first part."""
    b, c = world.b.lab, world.c.lab
    parts = [shot for shot in ATTACKS if shot.frames not in (fragments, as_host)]
    own = Shot("its own", lambda aim, mark: [aim.wrapped(aim.frame(EVIL, mark))])
    own6 = Shot("its own, IPv6", lambda aim, mark: [aim.wrapped(aim.frame(EVIL, mark, 6))])
    with Wire(b) as wire_b, Wire(c) as wire_c:
        field = Range(world, [wire_b, wire_c])
        c.run("nft", "flush", "chain", "inet", "niso", "wire_away")
        try:
            with defenceless(world):
                silent = [shot.name for shot in parts if not field.arrives(*field.fire_cut(shot))]
            assert not silent, "these show nothing: they do not arrive without the rules either"
            assert field.arrives(*field.fire_cut(own)) and field.arrives(*field.fire_cut(own6))
            marks = [(shot, *field.fire_cut(shot)) for shot in parts]
            assert field.arrives(*field.fire_cut(own))
            assert [shot.name for shot, mark, receiver in marks if receiver.saw(mark)] == []
            b.run("ip", "link", "set", NX, "group", "default")
            assert not field.arrives(*field.fire_cut(parts[0]), 0.5)
            assert field.arrives(*field.fire_cut(own))
            # once more without the number of the host: the other checks let a third host's service pass
            trusts = "meta mark set meta mark | 0x40000000 accept"
            b.run("nft", f"insert rule bridge niso from_tunnel4 {trusts}")
            assert field.arrives(*field.fire_cut(parts[0]))
            b.niso("net", "repair")
            # whoever overwrites the number stops even what is allowed
            hook = "type filter hook prerouting priority mangle"
            b.run("nft", f"table inet other {{ chain c {{ {hook}; meta priority set 0; }}; }}")
            assert not field.arrives(*field.fire(own), 0.5)
        finally:
            b.run("nft", "destroy", "table", "inet", "other")
            for lab in (b, c):
                lab.niso("net", "repair")


def drawn(field: Range, mark: bytes, draw: random.Random) -> tuple[Any, bool]:
    """Return a random frame, often nearly as evil's kernel sends it, and whether db may receive it."""
    six = draw.random() < 0.5
    every = [API, DB, EVIL]
    macs = [*(who.mac for who in every), field.aim.bridge, EVERY, EVERY6]
    odd = ["fd00:99:1::1", "2001:db8::2", "ff02::1", "::1"] if six else ["10.99.1.1", CLIENT]
    places = [*(who.addresses[six] for who in every), NOBODY[6 if six else 4], *odd]
    places += [field.aim.b.address[6 if six else 4], *(() if six else ("127.0.0.1", "224.0.0.1"))]
    right = (EVIL.mac, DB.mac, EVIL.addresses[six], DB.addresses[six])
    is_near = [draw.random() < 0.75 for _ in right]
    source, target, sender, receiver = found = tuple(
        value if near else draw.choice(some)
        for value, near, some in zip(right, is_near, (macs, macs, places, places), strict=True)
    )
    frame, kind = Ether(src=source, dst=target), draw.random()
    if kind < 0.1:
        frame /= Dot1Q(vlan=draw.choice((0, 7)))
    head = IPv6(src=sender, dst=receiver) if six else IP(src=sender, dst=receiver)
    if kind > 0.9 and not six:
        return frame / ARP(op=2, hwsrc=source, psrc=sender, pdst=receiver) / Raw(mark), False
    return frame / head / UDP(sport=9, dport=9) / Raw(mark), found == right and kind >= 0.1


def test_random_parts_of_large_packets(world: World) -> None:
    """Of random frames in one packet of c, exactly those arrive that evil may send to db."""
    b, c, draw = world.b.lab, world.c.lab, random.Random(6)
    with Wire(b) as wire_b, Wire(c) as wire_c:
        field = Range(world, [wire_b, wire_c])
        c.run("nft", "flush", "chain", "inet", "niso", "wire_away")
        try:
            sent: dict[bytes, tuple[Any, bool]] = {}
            for _ in range(samples(8, 100)):
                marks = [b"random-%07d" % next(field.numbers) for _ in range(30)]
                made = {mark: drawn(field, mark, draw) for mark in marks}
                sent |= made
                frames = [field.aim.frame(EVIL, b"first"), *(frame for frame, _ in made.values())]
                field.send_cut([field.aim.wrapped(frame) for frame in frames])
            assert field.honest()
        finally:
            c.niso("net", "repair")
        for name, receiver in field.receivers.items():
            seen = {mark for data in receiver.look() for mark in re.findall(rb"random-\d{7}", data)}
            expected = {mark for mark, (_, is_fair) in sent.items() if is_fair and name == "db"}
            assert [sent[mark][0].summary() for mark in seen ^ expected] == [], name
        assert sum(is_fair for _, is_fair in sent.values()) > 20


@contextlib.contextmanager
def held(host: Host, out: Link) -> Iterator[Callable[[], None]]:
    """What is sent to this host waits until the yielded function is called, and then arrives at once."""
    queue = [*host.middle, "tc", "qdisc"]
    words = ["dev", f"to{host.address[4].rpartition('.')[2]}", "root", "tbf", "burst", "70000"]
    filler = Ether(src="02:00:00:00:00:99", dst=host.mac, type=0x88B5) / Raw(bytes(1480))

    def release() -> None:
        run([*queue, "change", *words, "limit", "1mb", "rate", "8gbit"], check=True)
        out.send(filler)

    run([*queue, "add", *words, "limit", "1mb", "rate", "8kbit"], check=True)
    try:
        for _ in range(70_000 // 1480 + 5):
            out.send(filler)
        yield release
    finally:
        run([*queue, "delete", *words[:3]], check=True)


def test_frames_of_two_hosts_are_never_joined(world: World) -> None:
    """The kernel would join a frame of c to one of a, if it continues the same TCP connection (GRO)."""
    b, c = world.b.lab, world.c.lab

    def segment(who: Service, mark: bytes, n: int) -> Any:
        head = IP(src=who.addresses[0], dst=DB.addresses[0], id=n, flags="DF")
        tcp = TCP(sport=99, dport=80, seq=1000 + 100 * n, ack=5, flags="A")
        return Ether(src=who.mac, dst=DB.mac) / head / tcp / Raw(mark.ljust(100, b"."))

    with Wire(world.a.lab) as wire_a, Wire(b) as wire_b, Wire(c) as wire_c:
        field = Range(world, [wire_b, wire_c])
        db, out = field.receivers["db"], wire_a.link(None, "under0")
        of_a = Aim(world.family, world.b, world.a, field.aim.bridge)
        c.run("nft", "flush", "chain", "inet", "niso", "wire_away")
        # the kernel joins only packets with the same hash; with a flow label it would compute one
        c.run("sysctl", "-qw", "net.ipv6.auto_flowlabels=0")

        def joins(name: str) -> bool:
            marks = [f"{word} {name}".encode() for word in ("of a", "of c", "as a")]
            attack = Shot("", lambda aim, mark: [aim.wrapped(segment(API, marks[2], 1))])
            with held(world.b, out) as release:
                out.send(of_a.wrapped(segment(API, marks[0], 0)))
                field.fire_cut(attack, segment(EVIL, marks[1], 0))
                assert not db.saw(marks[0])
                release()
                assert field.arrives(marks[0], db) and field.arrives(marks[1], db)
            return field.honest() and db.saw(marks[2])

        try:
            b.run("ip", "link", "set", NX, "gro_max_size", "65536")
            assert joins("with GRO")
            b.niso("net", "repair")
            assert not joins("repaired")
        finally:
            for lab in (b, c):
                lab.niso("net", "repair")


SERVER = """\
import socket, sys
kind = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
server = socket.create_server((sys.argv[1], 81), family=kind)
client, length = server.accept()[0], 0
while data := client.recv(1 << 20):
    length += len(data)
print(length)
"""
FILLER = """\
import socket, sys
with socket.create_connection((sys.argv[1], 81), 10) as client:
    client.sendall(bytes(1 << 22))
    client.shutdown(socket.SHUT_WR)
    client.recv(1)
"""


def test_large_packets_of_services_stay_whole(world: World) -> None:
    """4 MiB of one connection cross the tunnel, the bridge and the rules in packets above the MTU."""
    a, b = world.a.lab, world.b.lab
    hook, large = "type filter hook prerouting priority -350", "meta length > 20000 counter"
    probes = {"inet": f"udp dport {PORT} {large}", "bridge": f'iifname "{NX}" {large}'}
    for table, rule in probes.items():
        b.run("nft", f"table {table} probe {{ chain c {{ {hook}; {rule}; }}; }}")
    try:
        for address in DB.addresses:
            server = b.popen(
                *("ip", "netns", "exec", "niso-db", "python3", "-ISc", SERVER, address),
                stdout=subprocess.PIPE,
            )
            b.wait_for(lambda: ":81" in b.run("ss", "-ltnH", netns="niso-db").stdout, 10)
            a.run("python3", "-ISc", FILLER, address, netns="niso-api")
            assert int(server.communicate(timeout=20)[0]) == 1 << 22
        for table in probes:
            shown = b.run("nft", "list", "table", table, "probe").stdout
            assert int(shown.partition("packets ")[2].split()[0]) > 100, shown
    finally:
        for table in probes:
            b.run("nft", "delete", "table", table, "probe")
