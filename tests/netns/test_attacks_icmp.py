"""Errors of ICMP pass only from an end of their flow or from its path, and never where the flow itself does not pass.

Connection tracking calls an error related if the packet that it quotes is of any flow, whoever sends it: with an accomplice's
flow it carries what the sender likes over `internal`, over policies and between networks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from attack_world import CLIENT, EAR, GATEWAY, HOST, NEIGHBOUR, Rule, World
from conftest import Lab
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from services import filter_bridged
from wire import Link, Wire

FROM_SERVICES = [
    Rule("bridge niso", "from_own4", ("icmp type",)),
    Rule("bridge niso", "from_own6", ("counter", "drop")),
]
INVALID = Rule("inet niso", "input", ("ct state", "invalid"))
FROM_OUTSIDE = [
    *(Rule("inet niso", chain, ("daddr @subnets", "goto direct")) for chain in ("raw", "raw6")),
    Rule("inet niso", "related", ("iifname != @bridges", "drop")),
]
COUNTING = [("bridge niso", "from_own_error"), ("bridge niso", "from_own6")]

both_families = pytest.mark.parametrize("family", [4, 6])
both_ways = pytest.mark.parametrize("nf_call", [0, 1])


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab(deadline_seconds=600) as lab, Wire(lab) as wire:
        yield World(lab, wire)


def ip(source: str, target: str, **more: Any) -> Any:
    return IPv6(src=source, dst=target) if ":" in target else IP(src=source, dst=target)


def unreachable(source: str, target: str, quoted: Any, mark: bytes, kind: str = "port") -> Any:
    """An error from ``source`` to ``target`` that quotes a packet of ``target``'s and carries the mark."""
    if ":" in target:
        head = {
            "port": ICMPv6DestUnreach(code=4),
            "size": ICMPv6PacketTooBig(mtu=1280),
            "time": ICMPv6TimeExceeded(),
        }[kind]
    else:
        head = {
            "port": ICMP(type=3, code=3),
            "size": ICMP(type=3, code=4, nexthopmtu=552),
            "time": ICMP(type=11, code=0),
        }[kind]
    return ip(source, target) / head / Raw(bytes(quoted)) / Raw(mark)


def flow(world: World, sender: Link, mac: str, source: str, target: str, port: int, to: int) -> Any:
    """A datagram that opens a flow; gives it as its sender sends it."""
    packet = world.udp(source, target, b"opens a flow", port, to)
    sender.send(
        Ether(src=world.mac[sender.name.partition(":")[0].removeprefix("niso-")], dst=mac) / packet
    )
    return packet


def shoot(world: World, name: str, packet: Any, mac: str) -> None:
    world.link[name].send(Ether(src=world.mac[name], dst=mac) / packet)


def to_host(world: World, name: str) -> str:
    networks = {"mallory": "backend", "mate": "inner", "web": "frontend", "api": "backend"}
    network = networks.get(name)
    return world.bridge[network].mac if network else world.host.mac


@both_families
@both_ways
@pytest.mark.parametrize("who", ["mallory", "mate"])
def test_service_says_nothing_about_the_flow_of_others(
    world: World, who: str, family: int, nf_call: int
) -> None:
    """To another machine, out of an internal network too, and into another network."""
    filter_bridged(world.lab, nf_call)
    own = world.of[who].ip(family)

    def tell(mark: bytes, port: int) -> None:
        client, host, web = CLIENT[family], HOST[family], world.of["web"].ip(family)
        flow(world, world.link["client"], world.host.mac, client, host, port, 8081)
        assert world.honest(world.link["web"])
        asked, answered = (
            world.udp(client, web, b"", port, 80),
            world.udp(host, client, b"", 8081, port),
        )
        shoot(world, who, unreachable(own, client, asked, mark), to_host(world, who))
        shoot(world, who, unreachable(own, host, answered, mark), to_host(world, who))

    receivers = [world.link["client"], world.link["web"]]
    with world.without(FROM_SERVICES):
        tell(b"bare-%d%d" % (family, nf_call), 20_001)
        for receiver in receivers:
            assert world.arrives(b"bare-%d%d" % (family, nf_call), [receiver]), receiver.name
    before = world.drops(COUNTING)
    tell(b"kept-%d%d" % (family, nf_call), 20_002)
    assert all(world.honest(receiver) for receiver in receivers)
    assert not any(receiver.saw(b"kept-%d%d" % (family, nf_call)) for receiver in receivers)
    assert world.drops(COUNTING) - before >= 2


@both_families
def test_outside_says_nothing_about_flows_that_stay_inside(world: World, family: int) -> None:
    """mate, of an internal network, talks to the host; api to web by its published port."""
    host, outside = HOST[family], NEIGHBOUR[family]
    mate, api = world.of["mate"].ip(family), world.of["api"].ip(family)
    gateway = GATEWAY["inner"][family]

    def tell(mark: bytes, port: int) -> None:
        sent = flow(world, world.link["mate"], world.bridge["inner"].mac, mate, gateway, port, EAR)
        shoot(world, "neighbour", unreachable(outside, mate, sent, mark), world.host.mac)
        flow(world, world.link["api"], world.bridge["backend"].mac, api, host, port, 8081)
        world.honest(world.link["web"])
        answer = world.udp(host, api, b"", 8081, port)
        shoot(world, "neighbour", unreachable(outside, host, answer, mark), world.host.mac)

    receivers = [world.link["mate"], world.link["web"]]
    with world.without(FROM_OUTSIDE):
        tell(b"bare-out%d" % family, 21_001)
        for receiver in receivers:
            assert world.arrives(b"bare-out%d" % family, [receiver]), receiver.name
    tell(b"kept-out%d" % family, 21_002)
    assert world.honest(world.link["web"])
    assert not world.arrives(b"kept-out%d" % family, receivers, 0.5)


@both_families
def test_service_lowers_no_path_mtu_of_the_host(world: World, family: int) -> None:
    """To another machine; the host asked for nothing larger, mallory says that an answer was too large."""
    own, client, host = world.of["mallory"].ip(family), CLIENT[family], HOST[family]
    gateway = GATEWAY["backend"][family]
    echo = ip(host, client) / (ICMPv6EchoReply(id=7) if family == 6 else ICMP(type=0, id=7))
    quoted = echo / Raw(bytes(1300))

    def mtu() -> str:
        shoot(
            world,
            "mallory",
            unreachable(own, host, quoted, b"", "size"),
            world.bridge["backend"].mac,
        )
        shoot(
            world,
            "mallory",
            unreachable(own, gateway, quoted, b"", "size"),
            world.bridge["backend"].mac,
        )
        assert world.honest(world.link["niso-backend"])
        return str(world.lab.run("ip", f"-{family}", "route", "get", client).stdout)

    assert "mtu" not in mtu()
    with world.without([*FROM_SERVICES, INVALID]):
        world.lab.wait_for(lambda: "mtu" in mtu(), what="the host believes mallory")
    world.lab.run("ip", f"-{family}", "route", "flush", "cache")


@both_families
@both_ways
def test_service_lowers_no_path_mtu_of_its_neighbour(
    world: World, family: int, nf_call: int
) -> None:
    filter_bridged(world.lab, nf_call)
    own, db, client = world.of["mallory"].ip(family), world.of["db"].ip(family), CLIENT[family]
    echo = ip(db, client) / (ICMPv6EchoReply(id=7) if family == 6 else ICMP(type=0, id=7))
    mark = b"bare-mtu-%d%d" % (family, nf_call)
    with world.without(FROM_SERVICES):
        shoot(world, "mallory", unreachable(own, db, echo, mark, "size"), world.mac["db"])
        assert world.arrives(mark, [world.link["db"]])
    mark = b"kept-mtu-%d%d" % (family, nf_call)
    shoot(world, "mallory", unreachable(own, db, echo, mark, "size"), world.mac["db"])
    assert world.honest(world.link["db"])
    assert not world.link["db"].saw(mark)


@both_families
@both_ways
def test_honest_errors_arrive(world: World, family: int, nf_call: int) -> None:
    """Port unreachable through DNAT; path MTU and traceroute from a router outside; between services, and to the host."""
    filter_bridged(world.lab, nf_call)
    client, host, router = CLIENT[family], HOST[family], NEIGHBOUR[family]
    web, api, db = (world.of[name].ip(family) for name in ("web", "api", "db"))

    def arrives(name: str, packet: Any, mac: str, mark: bytes, receiver: Link) -> None:
        shoot(world, name, packet, mac)
        assert world.arrives(mark, [receiver]), (mark, receiver.name)

    # the client asks a published port where nobody listens: web says so
    flow(world, world.link["client"], world.host.mac, client, host, 22_001 + nf_call, 8081)
    assert world.honest(world.link["web"])
    got = world.udp(client, web, b"", 22_001 + nf_call, 80)
    mark = b"closed-%d%d" % (family, nf_call)
    error = unreachable(web, client, got, mark)
    arrives("web", error, to_host(world, "web"), mark, world.link["client"])
    # a router on the way from web to the client, and from api to the client
    answer = world.udp(host, client, b"", 8081, 22_001 + nf_call)
    for kind in ("size", "time"):
        mark = b"%s-to-web-%d%d" % (kind.encode(), family, nf_call)
        arrives(
            "neighbour",
            unreachable(router, host, answer, mark, kind),
            world.host.mac,
            mark,
            world.link["web"],
        )
    flow(world, world.link["api"], to_host(world, "api"), api, client, 40_001 + nf_call, 9)
    assert world.honest(world.link["client"])
    sent = world.udp(host, client, b"", 40_001 + nf_call, 9)
    for kind in ("size", "time", "port"):
        mark = b"%s-to-api-%d%d" % (kind.encode(), family, nf_call)
        arrives(
            "neighbour",
            unreachable(router, host, sent, mark, kind),
            world.host.mac,
            mark,
            world.link["api"],
        )
    # between services of a network, and to the host
    flow(world, world.link["api"], world.mac["db"], api, db, 22_005 + nf_call, 9)
    assert world.honest(world.link["db"])
    mark = b"db-%d%d" % (family, nf_call)
    error = unreachable(db, api, world.udp(api, db, b"", 22_005 + nf_call, 9), mark)
    arrives("db", error, world.mac["api"], mark, world.link["api"])
    refused = world.lab.run(
        "python3",
        "-ISc",
        "import socket, sys\n"
        "s = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)\n"
        "s.connect((sys.argv[1], 9)); s.settimeout(5); s.send(b'x')\n"
        "try: s.recv(1)\n"
        "except ConnectionRefusedError: print('refused')",
        db,
    )
    assert refused.stdout == "refused\n"
