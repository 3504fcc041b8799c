"""Test that other machines and networks cannot get in; each attack first succeeds undefended."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from attack_world import CLIENT, EAR, GATEWAY, HOST, LOOPBACK_EAR, NEIGHBOUR, Attack, Rule, World
from conftest import Lab
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from services import filter_bridged, unfilter
from wire import Link, Wire, sctp_init

NOT_PUBLISHED = [
    *(Rule("inet niso", chain, ("not published",)) for chain in ("forward", "enter")),
    # what no rule before has sent to a bridge it takes for one without its name
    Rule("inet niso", "next_hop", ("has lost its name",)),
]
BY_STATE = [Rule("inet niso", chain, ("ct state", "invalid")) for chain in ("forward", "enter")]
INTERNAL = Rule("inet niso", "forward", ("iifname @internal", "goto refuse"))
LOOPBACK = Rule("inet niso", "raw", ("@nh,128,8 0x7f", "drop"))
OWN_LOOPBACK = Rule("bridge niso", "from_own4", ("loopback from a wire", "drop"))
WITHOUT_PORTS = [Rule("inet niso", f"away{family}", ("without ports",)) for family in (4, 6)]
FROM_LOOPBACK = Rule("inet niso", "raw", ("@nh,96,8 0x7f", "drop"))
TO_SUBNETS = [
    Rule("inet niso", chain, ("daddr @subnets", "goto direct")) for chain in ("raw", "raw6")
]
MAPPED = Rule("inet niso", "raw6", ("::ffff:0.0.0.0/96", "drop"))
AS_HOST = Rule("inet niso", "forward", ("as the host itself;",))
NO_HOST = [Rule("inet niso", c, ("fib saddr type", "drop")) for c in ("forward", "enter")]
OUR_SUBNETS = [Rule("inet niso", chain, ("saddr @subnets", "drop")) for chain in ("raw", "raw6")]
FROM_PORT = Rule("bridge niso", "prerouting", ("iifname @ports",))
UNCHECKED = Rule("inet niso", "from_bridge", ("drop",))
UNUSED = {4: "10.99.1.200", 6: "fd00:99:4::200"}
FORWARD = [("inet niso", chain) for chain in ("forward", "enter")]
RAW = [("inet niso", chain) for chain in ("raw", "raw6", "from_bridge")]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab(deadline_seconds=600) as lab, Wire(lab) as wire:
        yield World(lab, wire)


both_ways = pytest.mark.parametrize("nf_call", [0, 1])


def ip(source: str, target: str) -> Any:
    return IPv6(src=source, dst=target) if ":" in target else IP(src=source, dst=target)


def packets(source: str, target: str, mark: bytes, port: int) -> dict[str, Packet]:
    """One packet of each kind from an address to another: ``80`` is a container port that is published, 9000 is not."""
    head = ip(source, target)
    six = ":" in target
    ping = ICMPv6EchoRequest(id=port, data=mark) if six else ICMP(id=port) / Raw(mark)
    sctp = Raw(sctp_init(port, 80, port, mark))
    found = {
        "UDP to a published container port": head / UDP(sport=port, dport=80) / Raw(mark),
        "UDP": head / UDP(sport=port, dport=9000) / Raw(mark),
        "TCP SYN": head / TCP(sport=port, dport=80, flags="S") / Raw(mark),
        "TCP ACK": head / TCP(sport=port, dport=9000, flags="A", seq=1, ack=1) / Raw(mark),
        "TCP RST": head / TCP(sport=port, dport=9000, flags="R", seq=1) / Raw(mark),
        "ping": head / ping,
    }
    if six:
        found["SCTP"] = IPv6(src=source, dst=target, nh=132) / sctp
        found["UDP behind hop-by-hop options"] = (
            head / IPv6ExtHdrHopByHop() / UDP(sport=port, dport=80) / Raw(mark)
        )
        found["ping behind destination options"] = head / IPv6ExtHdrDestOpt() / ping
        found["an unknown protocol"] = IPv6(src=source, dst=target, nh=253) / Raw(mark)
    else:
        found["SCTP"] = IP(src=source, dst=target, proto=132) / sctp
        found["an unknown protocol"] = IP(src=source, dst=target, proto=253) / Raw(mark)
    return found


def each_packet(
    who: str,
    sender: Link,
    head: Packet,
    source: str,
    target: str,
    receiver: Link,
    leave_out: tuple[str, ...] = (),
) -> list[Attack]:
    """An attack for each kind of packet. A RST for no connection is invalid to connection tracking, which counts nothing."""
    return [
        Attack(
            f"{who} -> {target}: {kind}",
            sender,
            lambda mark, port, kind=kind: [head / packets(source, target, mark, port)[kind]],
            (receiver,),
            counted=kind != "TCP RST",
        )
        for kind in packets(source, target, b"", 1)
        if kind not in leave_out
    ]


def test_neighbour_with_a_route_reaches_no_service_by_its_address(world: World) -> None:
    head = Ether(src=world.mac["neighbour"], dst=world.host.mac)
    attacks = []
    for name in ("api", "web", "plain", "vault"):
        for family in (4, 6):
            if target := world.of[name].ip(family):
                receiver = world.link[name]
                attacks += each_packet(
                    "neighbour", world.link["neighbour"], head, NEIGHBOUR[family], target, receiver
                )
    api = world.of["api"].ip4
    attacks.append(
        Attack(
            "a port published on 127.0.0.1, by the service's address",
            world.link["neighbour"],
            lambda mark, port: [head / world.udp(NEIGHBOUR[4], api, mark, port, 83)],
            (world.link["api"],),
        )
    )
    world.prove(attacks, [*TO_SUBNETS, *NOT_PUBLISHED, *BY_STATE], RAW)


def test_neighbour_with_a_route_reaches_no_port_by_a_bridge_address(world: World) -> None:
    """A port that is published everywhere is so on the host's addresses that others can know, not on those of its bridges."""
    head = Ether(src=world.mac["neighbour"], dst=world.host.mac)
    attacks = [
        Attack(
            f"neighbour -> {GATEWAY[network][family]}",
            world.link["neighbour"],
            lambda mark, port, n=network, f=family, to=to: [
                head / world.udp(NEIGHBOUR[f], GATEWAY[n][f], mark, port, to)
            ],
            (receiver if to != EAR else world.ear[family],),
        )
        for network, receiver in (("backend", world.link["api"]), ("inner", world.link["api"]))
        for family in (4, 6)
        for to in (8080, EAR)
    ]
    world.prove(attacks, TO_SUBNETS, RAW)


def test_sources_that_nobody_outside_has_are_not_believed(world: World) -> None:
    """The host's own addresses, all of its link, and IPv4 in IPv6."""
    head, sender = Ether(src=world.mac["neighbour"], dst=world.host.mac), world.link["neighbour"]

    def attack(source: str, receiver: Any, port: int) -> Attack:
        host = HOST[6 if ":" in source else 4]
        return Attack(
            f"neighbour as {source} to port {port}",
            sender,
            lambda mark, sport: [head / world.udp(source, host, mark, sport, port)],
            (receiver,),
        )

    api = world.link["api"]
    local = [attack(source, api, 8080) for source in (HOST[4], "192.0.2.255", HOST[6])]
    world.prove(local, NO_HOST, FORWARD)
    # nor in a flow of the host's own, where a policy would let it in
    with world.wire.socket(None, socket.AF_INET6, socket.SOCK_DGRAM, keep=False) as program:
        program.bind((HOST[6], 0))
        own = program.getsockname()[1]
        program.sendto(b"attack-flow", (HOST[6], 8080))
        assert world.arrives(b"attack-flow", [api])
        back = Ether(src=world.mac["api"], dst=world.bridge["backend"].mac)
        answer = world.udp(world.of["api"].ip6, HOST[6], b"answer", 80, own)
        api.send(back / answer)
        select.select([program], [], [], 3)
        assert program.recv(10) == b"answer"
        forged = Attack(
            "neighbour in a flow of the host",
            sender,
            lambda mark, _: [head / world.udp(HOST[6], HOST[6], mark, own, 8080)],
            (api,),
        )
        world.prove([forged], [AS_HOST], FORWARD)
    # what is to be forwarded the kernel itself drops
    mapped = (f"::ffff:{world.of['db'].ip4}", f"::ffff:{NEIGHBOUR[4]}", "::ffff:127.0.0.1")
    world.prove([attack(source, world.ear[6], EAR) for source in mapped], [MAPPED], RAW)


@both_ways
def test_services_of_other_networks_are_not_reached_by_their_addresses(
    world: World, nf_call: int
) -> None:
    filter_bridged(world.lab, nf_call)
    attacks = []
    for source, target in (
        ("mallory", "web"),
        ("mallory", "plain"),
        ("mallory", "vault"),
        ("web", "api"),
        ("evil", "api"),
    ):
        network = {"mallory": "backend", "web": "frontend", "evil": "old"}[source]
        head = Ether(src=world.mac[source], dst=world.bridge[network].mac)
        for family in (4, 6):
            own, other = world.of[source].ip(family), world.of[target].ip(family)
            if own and other:
                attacks += each_packet(
                    source, world.link[source], head, own, other, world.link[target]
                )
    world.prove(attacks, [*NOT_PUBLISHED, *BY_STATE], FORWARD)


def test_loopback_of_the_host_is_reached_from_no_wire_and_no_service(world: World) -> None:
    """Ports that are published on 127.0.0.1, and programs of the host that listen there; also 127.0.0.1 as a source."""
    world.lab.run(
        "sysctl",
        "-qw",
        "net.ipv4.conf.uplink0.route_localnet=1",
        "net.ipv4.conf.niso-frontend.route_localnet=1",
    )
    wires = {
        "neighbour": (NEIGHBOUR[4], world.host.mac),
        "mallory": (world.of["mallory"].ip4, world.bridge["backend"].mac),
        "web": (world.of["web"].ip4, world.bridge["frontend"].mac),
    }
    attacks, sources = [], []
    for name, (own, router) in wires.items():
        head, sender = Ether(src=world.mac[name], dst=router), world.link[name]
        attacks += [
            Attack(
                f"{name} -> 127.0.0.1, published there",
                sender,
                lambda mark, port, own=own, head=head: [
                    head / world.udp(own, "127.0.0.1", mark, port, 8083)
                ],
                (world.link["api"],),
            ),
            Attack(
                f"{name} -> 127.0.0.1, where a program of the host listens",
                sender,
                lambda mark, port, own=own, head=head: [
                    head / world.udp(own, "127.0.0.1", mark, port, LOOPBACK_EAR)
                ],
                (world.loopback_ear,),
            ),
            Attack(
                f"{name} -> 127.0.0.1, published everywhere",
                sender,
                lambda mark, port, own=own, head=head: [
                    head / world.udp(own, "127.0.0.1", mark, port, 8080)
                ],
                (world.link["api"],),
            ),
        ]
        sources.append(
            Attack(
                f"{name} as 127.0.0.1",
                sender,
                lambda mark, port, head=head: [
                    head / world.udp("127.0.0.1", HOST[4], mark, port, EAR)
                ],
                (world.ear[4],),
            )
        )
    world.prove(attacks, [LOOPBACK, OWN_LOOPBACK], [*RAW, ("bridge niso", "from_own4")])
    world.prove(
        sources, [FROM_LOOPBACK, FROM_PORT, UNCHECKED], [*RAW, ("bridge niso", "from_port")]
    )


def test_loopback6_of_the_host_is_reached_from_no_wire_and_no_service(world: World) -> None:
    """The kernel itself refuses ::1 from a wire, so there is nothing to show undefended."""
    receivers = (world.link["api"], world.ear[6])
    for name, router in (("neighbour", world.host.mac), ("mallory", world.bridge["backend"].mac)):
        own = NEIGHBOUR[6] if name == "neighbour" else world.of[name].ip6
        for source, target, port in (
            (own, "::1", 8080),
            (own, "::1", EAR),
            ("::1", HOST[6], 8080),
            ("::1", HOST[6], EAR),
        ):
            head = Ether(src=world.mac[name], dst=router)
            mark = world.shoot(
                world.link[name],
                lambda mark, sport, h=head, s=source, t=target, p=port: [
                    h / world.udp(s, t, mark, sport, p)
                ],
            )
            assert all(world.honest(receiver) for receiver in receivers)
            assert not any(receiver.saw(mark) for receiver in receivers), (
                name,
                source,
                target,
                port,
            )


def test_addresses_of_niso_subnets_are_not_believed_from_the_wire(world: World) -> None:
    """Not that of a service, not one that nobody has, of whichever network; to a published port and to the host itself."""
    head, sender = Ether(src=world.mac["neighbour"], dst=world.host.mac), world.link["neighbour"]
    attacks = []
    for family in (4, 6):
        for source in (
            world.of["db"].ip(family),
            world.of["web"].ip(family),
            {4: "10.99.1.200", 6: "fd00:99:4::200"}[family],
        ):
            for receiver, port in ((world.link["api"], 8080), (world.ear[family], EAR)):
                attacks.append(
                    Attack(
                        f"neighbour as {source} to port {port} of the host",
                        sender,
                        lambda mark, sport, s=source, f=family, p=port: [
                            head / world.udp(s, HOST[f], mark, sport, p)
                        ],
                        (receiver,),
                    )
                )
    world.prove(attacks, OUR_SUBNETS, RAW)


@both_ways
def test_service_of_an_internal_network_reaches_nothing_outside_of_it(
    world: World, nf_call: int
) -> None:
    """Not other machines, not services of other networks, and not these by what they publish on the host."""
    filter_bridged(world.lab, nf_call)
    head, sender = Ether(src=world.mac["mate"], dst=world.bridge["inner"].mac), world.link["mate"]
    attacks = []
    for family in (4, 6):
        own = world.of["mate"].ip(family)
        attacks += each_packet("mate", sender, head, own, CLIENT[family], world.link["client"])
        attacks += each_packet(
            "mate", sender, head, own, world.of["web"].ip(family), world.link["web"]
        )
        for address in (HOST[family], GATEWAY["inner"][family], GATEWAY["frontend"][family]):
            for proto in (UDP, TCP):
                attacks.append(
                    Attack(
                        f"mate -> {address}, where web is published, by {proto.__name__}",
                        sender,
                        lambda mark, port, own=own, address=address, proto=proto: [
                            head / ip(own, address) / proto(sport=port, dport=8081) / Raw(mark)
                        ],
                        (world.link["web"],),
                    )
                )
    attacks += each_packet(
        "mate", sender, head, world.of["mate"].ip4, world.of["plain"].ip4, world.link["plain"]
    )
    world.prove(attacks, [INTERNAL, *NOT_PUBLISHED, *BY_STATE, *WITHOUT_PORTS], FORWARD)


@both_ways
@pytest.mark.parametrize("family", [4, 6])
def test_service_of_an_internal_network_reaches_the_host_and_its_network(
    world: World, family: int, nf_call: int
) -> None:
    """And is reached by the ports that it publishes."""
    filter_bridged(world.lab, nf_call)
    own, inner, vault = (
        world.of["mate"].ip(family),
        world.bridge["inner"].mac,
        world.of["vault"].ip(family),
    )
    ways = [
        ("mate", inner, own, GATEWAY["inner"][family], EAR, world.ear[family]),
        ("mate", inner, own, HOST[family], EAR, world.ear[family]),
        ("mate", world.mac["vault"], own, vault, 9000, world.link["vault"]),
        ("mate", inner, own, HOST[family], 8092, world.link["vault"]),
        ("neighbour", world.host.mac, NEIGHBOUR[family], HOST[family], 8092, world.link["vault"]),
        (
            "web",
            world.bridge["frontend"].mac,
            world.of["web"].ip(family),
            HOST[family],
            8092,
            world.link["vault"],
        ),
    ]
    for sender, mac, source, target, port, receiver in ways:
        head = Ether(src=world.mac[sender], dst=mac)
        mark = world.shoot(
            world.link[sender],
            lambda m, p, h=head, s=source, t=target, to=port: [h / world.udp(s, t, m, p, to)],
        )
        assert world.arrives(mark, [receiver]), f"{sender} does not reach {target} port {port}"


@pytest.mark.parametrize("family", [4, 6])
def test_nothing_leaves_an_internal_network_when_the_rules_are_flushed(
    world: World, family: int
) -> None:
    """Its filter holds then: to another machine, to another network; host and neighbours are reached."""
    lab, mate = world.lab, world.of["mate"]
    router, vault = world.bridge["inner"].mac, world.of["vault"]
    ways = {
        "client": (CLIENT[family], router, 9, world.link["client"]),
        "web": (world.of["web"].ip(family), router, 80, world.link["web"]),
        "host": (GATEWAY["inner"][family], router, EAR, world.ear[family]),
        "vault": (vault.ip(family), vault.mac, 80, world.link["vault"]),
    }

    def reached() -> set[str]:
        marks = {}
        for name, (target, mac, to, _) in ways.items():
            head = Ether(src=mate.mac, dst=mac)
            marks[name] = world.shoot(
                world.link["mate"],
                lambda mark, port, h=head, t=target, p=to: [
                    h / world.udp(mate.ip(family), t, mark, port, p)
                ],
            )
        return world.arrived({name: (marks[name], way[3]) for name, way in ways.items()})

    try:
        lab.run("nft", "flush", "ruleset")
        unfilter(lab, "niso-inner", 46)
        assert reached() == {"client", "host", "vault"}  # another filter guards web's bridge
        unfilter(lab, "niso-frontend")
        assert reached() == {"client", "web", "host", "vault"}
        assert "change bridge niso-inner (its filters" in lab.niso("net", "repair", "-v").stderr
        lab.run("nft", "flush", "ruleset")
        assert reached() == {"host", "vault"}
    finally:
        lab.niso("net", "repair")


@pytest.mark.parametrize("family", [4, 6])
def test_port_of_an_internal_network_answers_whatever_others_mark(
    world: World, family: int
) -> None:
    """The rules' mark lets packets past the filters; others set and restore marks of connections before."""
    lab, client, vault = world.lab, world.link["client"], world.link["vault"]
    others = "\n".join(
        f"chain {hook} {{ type filter hook {hook} priority mangle; meta mark set {mark}; }}"
        for hook, mark in (("prerouting", "ct mark"), ("forward", 0), ("postrouting", 0))
    )
    lab.run("nft", "-f", "-", input=f"table inet others {{\n{others}\n}}\n")
    try:
        head = Ether(src=world.mac["client"], dst=world.host.mac)
        asked, answered = b"asked-%d" % family, b"answered-%d" % family
        client.send(head / world.udp(CLIENT[family], HOST[family], asked, 30_001, 8092))
        assert world.arrives(asked, [vault])
        head = Ether(src=world.mac["vault"], dst=world.bridge["inner"].mac)
        own = world.of["vault"].ip(family)
        vault.send(head / world.udp(own, CLIENT[family], answered, 80, 30_001))
        assert world.arrives(answered, [client])
    finally:
        lab.run("nft", "delete", "table", "inet", "others")
