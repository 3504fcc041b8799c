"""Test ports of niso's bridges that niso has not made, and connection marks of other firewalls."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from attack_world import CLIENT, EAR, GATEWAY, HOST, Rule, World, forget
from conftest import Lab
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw
from services import filter_bridged
from wire import Wire

FROM_STRAY = Rule("bridge niso", "forward", ("iifname != @ports oifname @ports",))
FROM_MARKED = Rule("bridge niso", "forward", ('iifname != "n*"',))
BETWEEN = Rule("bridge niso", "forward", ("iifname @ports",))
FOREIGN_ARP = Rule("bridge niso", "prerouting", ("arp saddr ip", "drop"))
OF_SUBNETS = [
    Rule("inet niso", chain, ("addr @subnets", end))
    for chain in ("raw", "raw6")
    for end in ("drop", "goto direct")
]
UNCHECKED = [Rule("inet niso", "from_bridge", ("drop",)), *OF_SUBNETS]
ODD_PORTS = [
    FROM_STRAY,
    FROM_MARKED,
    BETWEEN,
    *UNCHECKED,
    FOREIGN_ARP,
]
COUNT_LOST = ("others", "next_hop", "forward", "input")
BY_NAME = [
    *UNCHECKED,
    Rule("inet niso", "forward", ("oifname @bridges", "goto refuse")),
    *(Rule("inet niso", chain, ("lost its",)) for chain in COUNT_LOST),
]
COUNT_ODD_PORTS = [
    ("bridge niso", "forward"),
    ("bridge niso", "prerouting"),
    ("inet niso", "from_bridge"),
]

both_ways = pytest.mark.parametrize("nf_call", [0, 1])


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab(deadline_seconds=600) as lab, Wire(lab) as wire:
        yield World(lab, wire)


@contextlib.contextmanager
def stray_port(lab: Lab) -> Iterator[None]:
    """A link of somebody else's on niso's bridge."""
    lab.run("ip", "link", "set", "stray", "master", "niso-backend")
    try:
        yield
    finally:
        lab.run("ip", "link", "set", "stray", "nomaster")


@contextlib.contextmanager
def marked_port(lab: Lab) -> Iterator[None]:
    """The same, and a firewall of somebody else's marks its frames as niso marks what it checked."""
    mark = 'iifname "stray" meta mark set meta mark | 0x40000000'
    chain = f"chain c {{ type filter hook prerouting priority -310; {mark}; }}"
    lab.run("nft", f"table bridge other {{ {chain}; }}")
    try:
        with stray_port(lab):
            yield
    finally:
        lab.run("nft", "delete table bridge other")


@contextlib.contextmanager
def renamed_port(lab: Lab) -> Iterator[None]:
    """mallory's port under another name."""
    links = lab.ip_json("link", "show", "master", "niso-backend")
    name = next(link["ifname"] for link in links if link["ifname"].startswith("nimal"))
    lab.run("ip", "link", "set", name, "name", "renamed")
    try:
        yield
    finally:
        lab.run("ip", "link", "set", "renamed", "name", name)


@both_ways
@pytest.mark.parametrize("odd_port", [stray_port, marked_port, renamed_port])
def test_port_that_niso_does_not_know_says_nothing(
    world: World, odd_port: Callable[[Lab], Any], nf_call: int
) -> None:
    """Neither to a service, nor to the host or another machine; and no lie by ARP is believed.

    If another firewall marks its frames as checked, it reaches no service.
    """
    lab, db = world.lab, world.of["db"]
    to_db = world.link["db"].name
    sender, mine = world.link["mallory"], world.mac["mallory"]
    own = {family: world.of["mallory"].ip(family) for family in (4, 6)}
    if odd_port is not renamed_port:
        lab.run(
            "ip", "link", "add", "stray", "type", "veth", "peer", "stray1", "netns", "neighbour"
        )
        lab.run("ip", "link", "set", "stray", "up")
        lab.run("ip", "link", "set", "stray1", "up", netns="neighbour")
        lab.wait_for(lambda: "LOWER_UP" in lab.run("ip", "link", "show", "stray").stdout)
        sender, mine = world.wire.link("neighbour", "stray1"), "02:66:00:00:00:02"
        own = {4: "10.99.1.99", 6: "fd00:99:1::99"}
    router = world.bridge["backend"].mac

    def received() -> set[str]:
        """What comes of a datagram to each receiver, and of a lie about db's address."""
        forget(lab, None, "niso-backend", [db.ip4])
        lab.run("ping", "-c", "1", "-W", "5", db.ip4)
        shots = {}
        for family in (4, 6):
            for receiver, mac, to, port in (
                (world.link["db"], db.mac, db.ip(family), 80),
                (world.ear[family], router, GATEWAY["backend"][family], EAR),
                (world.link["client"], router, CLIENT[family], 9),
            ):
                head, source = Ether(src=mine, dst=mac), own[family]
                mark = world.shoot(
                    sender,
                    lambda mark, number, h=head, s=source, t=to, p=port: [
                        h / world.udp(s, t, mark, number, p)
                    ],
                )
                shots[f"{receiver.name} {family}"] = (mark, receiver)
        sender.send(
            Ether(src=mine, dst="ff:ff:ff:ff:ff:ff")
            / ARP(op=1, hwsrc=mine, psrc=db.ip4, pdst=GATEWAY["backend"][4])
        )
        world.honest(world.link["api"])  # by another port
        found = world.arrived(shots)
        entry = lab.run("ip", "neigh", "show", db.ip4, "dev", "niso-backend").stdout
        return found | ({"lie"} if mine in entry else set())

    try:
        filter_bridged(lab, nf_call)
        with world.without(ODD_PORTS), odd_port(lab):
            assert len(received()) == 7
        lab.run("ip", "neigh", "flush", "all")
        before = world.drops(COUNT_ODD_PORTS)
        with odd_port(lab):
            assert not {name for name in received() if odd_port is not marked_port or to_db in name}
        assert world.drops(COUNT_ODD_PORTS) >= before + (2 if odd_port is marked_port else 6)
    finally:
        if odd_port is not renamed_port:
            lab.run("ip", "link", "delete", "stray")
        lab.niso("net", "repair")


@pytest.mark.parametrize("lost", ["group", "name"])
def test_bridge_without_its_group_or_name_passes_nothing_to_another(
    world: World, lost: str
) -> None:
    """Another program takes it from two bridges, of which one is internal.

    Of ports without their group, the rules look up the names.
    """
    lab, of, bridge = world.lab, world.of, world.bridge

    def received() -> set[str]:
        shots = {}
        for family in (4, 6):
            own = {name: of[name].ip(family) for name in ("db", "mallory", "mate", "web")}
            client, host = CLIENT[family], HOST[family]
            for name, sender, mac, source, target, port, receiver in (
                ("in", "client", world.host.mac, client, host, 8080, world.link["api"]),
                ("out", "mallory", bridge["backend"].mac, "", client, 9, world.link["client"]),
                ("to the host", "db", bridge["backend"].mac, "", host, EAR, world.ear[family]),
                ("out of inner", "mate", bridge["inner"].mac, "", client, 9, world.link["client"]),
                ("over", "web", bridge["frontend"].mac, "", own["db"], 80, world.link["db"]),
            ):
                packet = functools.partial(world.udp, source or own[sender], target, to=port)
                head = Ether(src=world.mac[sender], dst=mac)
                mark = world.shoot(
                    world.link[sender],
                    lambda mark, number, h=head, p=packet: [h / p(mark, 40_000 + number % 999)],
                )
                shots[f"{name} {family}"] = (mark, receiver)
        assert world.honest(world.link["plain"])
        return world.arrived(shots)

    def lose() -> None:
        for port in lab.ip_json("link", "show", "master", "niso-backend"):
            lab.run("ip", "link", "set", port["ifname"], "group", "default")
        lab.run("ping", "-c", "1", "-W", "5", of["db"].ip4, netns="niso-mallory")
        for name in ("backend", "inner"):
            words = ("group", "default") if lost == "group" else ("name", f"lost-{name}")
            lab.run("ip", "link", "set", f"niso-{name}", *words)
        lab.run("nft", "flush set inet niso closed")  # the host forwards for others too

    def get_names_back() -> None:
        for name in ("backend", "inner") if lost == "name" else ():
            lab.run("ip", "link", "set", f"lost-{name}", "name", f"niso-{name}")

    chains = [("inet niso", name) for name in (*COUNT_LOST, "from_bridge")]
    # a published port of a bridge that was renamed is still published
    stays = {"in 4", "in 6"} if lost == "name" else set()
    with world.without(BY_NAME):
        lose()
        try:
            assert len(received()) == 10
        finally:
            get_names_back()
    lose()
    try:
        before = world.drops(chains)
        assert received() == stays
        assert world.drops(chains) >= before + 8
    finally:
        get_names_back()
        assert lab.niso("net", "repair").stdout.startswith("repaired: ")
    assert world.honest(world.link["api"])


RESTORE = """
table inet other {
	chain before {
		type filter hook prerouting priority mangle
		ct mark != 0 meta mark set ct mark
	}
	chain after {
		type filter hook postrouting priority mangle
		ct mark set meta mark
	}
}
"""


@pytest.mark.parametrize("family", [4, 6])
def test_mark_of_a_connection_leads_no_frame_elsewhere(world: World, family: int) -> None:
    """Another firewall restores the mark of a frame that was led to db on a frame to another MAC."""
    filter_bridged(world.lab, 1)
    me, db, api = world.of["mallory"], world.of["db"], world.of["api"]
    router, link = world.bridge["backend"].mac, world.link["mallory"]

    def sent(mac: str) -> bytes:
        """Send a datagram to db by its gateway's MAC, and another one of the same flow to this one."""
        to = [Ether(src=me.mac, dst=each) for each in (router, mac)]
        return world.shoot(
            link,
            lambda mark, port: [
                head / world.udp(me.ip(family), db.ip(family), text, port)
                for head, text in zip(to, (b"first", mark), strict=True)
            ],
        )

    world.lab.run("nft", "-f", "-", input=RESTORE)
    try:
        for mac in (api.mac, "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:09"):
            assert not world.arrives(sent(mac), [world.link["api"]], 0.3), mac
        assert world.arrives(sent(db.mac), [world.link["db"]])
    finally:
        world.lab.run("nft", "delete table inet other")


@both_ways
def test_port_that_takes_a_services_mac_gets_nothing(world: World, nf_call: int) -> None:
    """A port of somebody else's learns, and the kernel moves db's static entry to it."""
    lab, me, db = world.lab, world.of["mallory"], world.of["db"]
    filter_bridged(lab, nf_call)
    lab.run("ip", "link", "add", "stray", "type", "veth", "peer", "stray1", "netns", "neighbour")
    try:
        lab.run("ip", "link", "set", "stray1", "up", netns="neighbour")
        lab.run("ip", "link", "set", "stray", "master", "niso-backend", "up")
        thief = world.wire.link("neighbour", "stray1")
        shown = ("bridge", "fdb", "show", "dev", "stray")

        def stolen() -> bool:
            thief.send(Ether(src=db.mac, dst="02:66:00:00:00:01", type=0x88B5) / Raw(bytes(46)))
            return db.mac in lab.run(*shown).stdout

        lab.wait_for(stolen, what="the MAC at the stray port")
        marks = [
            world.shoot(
                world.link["mallory"],
                lambda mark, port, mac=mac, family=family: [
                    Ether(src=me.mac, dst=mac) / world.udp(me.ip(family), db.ip(family), mark, port)
                ],
            )
            for mac in (db.mac, world.bridge["backend"].mac)
            for family in (4, 6)
        ]
        assert world.honest(world.link["api"])
        assert db.mac in lab.run(*shown).stdout
        assert not [mark for mark in marks if thief.saw(mark)]
    finally:
        lab.run("ip", "link", "delete", "stray")
        lab.niso("net", "repair")
    assert world.honest(world.link["db"])
