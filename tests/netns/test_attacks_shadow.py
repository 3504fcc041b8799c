"""Nobody takes over a flow that is meant for a published port or for a program of the host (port shadowing, CVE-2021-3773).

``mallory`` sends from the port that she wants to a client. Where masquerading keeps it, connection tracking takes what the
client sends to that port for her flow's answer and gives it to her. An unprivileged service can do the same by `bind`.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from attack_world import CLIENT, EAR, HOST, Rule, World
from conftest import Lab
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from services import idle, on
from wire import FAMILY, Wire, sctp_init

AWAY = [
    Rule("inet niso", f"away{family}", (w,)) for family in (4, 6) for w in ("masquerade", "drop")
]
KEPT = [Rule("inet niso", f"kept{family}", ("drop",)) for family in (4, 6)]
OF_HOST = [Rule("inet niso", "of_host", ("goto another_port",))]
ANSWERS = [Rule("inet niso", "answers", ("drop",))]
OWN = range(32_768, 61_000)
PORTS = (53, 16_000, 20_000, 40_000, 50_005)
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}

# a client with a stateful firewall: it resets no connection that it has not asked for
SILENT = """\
table inet silent {
	chain out {
		type filter hook output priority 0;
		tcp flags rst drop
		meta l4proto sctp drop
		icmp type destination-unreachable drop
		icmpv6 type destination-unreachable drop
	}
}
"""

both_families = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab(deadline_seconds=600) as lab, Wire(lab) as wire:
        world = World(lab, wire)
        ports = [f"{port}:80/{proto}" for port in PORTS[:-1] for proto in PROTOCOLS]
        ports += [f"50000-50010:50000-50010/{proto}" for proto in PROTOCOLS]
        lab.niso("activate", idle(lab, "web", network=on("frontend", ports=ports)))
        world.link["web"] = wire.link("niso-web", "eth0")
        lab.run("nft", "-f", "-", input=SILENT, netns="client")
        yield world


def packet(source: str, target: str, proto: str, sport: int, dport: int, mark: bytes) -> Any:
    head = IPv6(src=source, dst=target) if ":" in target else IP(src=source, dst=target)
    if proto == "sctp":
        head.fields["nh" if ":" in target else "proto"] = PROTOCOLS[proto]
        return head / Raw(sctp_init(sport, dport, sport, mark))
    transport = UDP if proto == "udp" else TCP
    return head / transport(sport=sport, dport=dport) / Raw(mark)


def lay(world: World, family: int, proto: str, port: int, to: int) -> bytes:
    """mallory sends to the client's port ``to``, from the port that she wants."""
    head = Ether(src=world.mac["mallory"], dst=world.bridge["backend"].mac)
    own = world.of["mallory"].ip(family)
    return world.shoot(
        world.link["mallory"],
        lambda mark, _: [head / packet(own, CLIENT[family], proto, port, to, mark)],
    )


def ask(world: World, family: int, proto: str, port: int, own: int) -> bytes:
    """The client asks that port of the host, from its port ``own``."""
    head = Ether(src=world.mac["client"], dst=world.host.mac)
    return world.shoot(
        world.link["client"],
        lambda mark, _: [head / packet(CLIENT[family], HOST[family], proto, own, port, mark)],
    )


def shadowed(world: World, family: int, proto: str, port: int, own: int) -> bool:
    """Whether what the client asks goes to mallory and not to the one whose port it is."""
    lay(world, family, proto, port, own)
    assert world.honest(world.link["client"])  # by then it is there, or dropped
    mark = ask(world, family, proto, port, own)
    holder = world.ear[family] if port == EAR else world.link["web"]
    assert world.arrives(mark, [holder, world.link["mallory"]]), (proto, port, "lost")
    return world.link["mallory"].saw(mark)


@contextlib.contextmanager
def plainly_masqueraded(world: World) -> Iterator[None]:
    """Services' packets leave as behind a plain ``masquerade``, as those of Docker and Podman do."""
    with world.without([*AWAY, *KEPT]):
        for family in (4, 6):
            world.lab.run("nft", "add", "rule", "inet", "niso", f"away{family}", "masquerade")
        yield


@both_families
def test_published_port_is_not_taken_over(world: World, family: int) -> None:
    tries = [(proto, port) for proto in PROTOCOLS for port in PORTS]
    numbers = iter(range(10_000, 20_000, 7))
    with plainly_masqueraded(world):
        taken = {each: shadowed(world, family, *each, next(numbers)) for each in tries}
        assert all(taken.values()), taken
    taken = {each: shadowed(world, family, *each, next(numbers)) for each in tries}
    assert not any(taken.values()), taken


@both_families
def test_program_of_the_host_is_not_taken_over(world: World, family: int) -> None:
    with plainly_masqueraded(world):
        assert shadowed(world, family, "udp", EAR, 20_001)
    assert not shadowed(world, family, "udp", EAR, 20_003)


@both_families
@pytest.mark.parametrize("asking", ["client", "db"])
def test_program_of_the_host_takes_over_no_published_port(
    world: World, family: int, asking: str
) -> None:
    """Nor does a service of mode host, or a user of the host: to send from the port takes no right."""
    to = CLIENT[family] if asking == "client" else world.of["db"].ip(family)
    head = Ether(
        src=world.mac[asking],
        dst=world.host.mac if asking == "client" else world.bridge["backend"].mac,
    )

    def shadowed(port: int, own: int) -> bool:
        kind = socket.AF_INET6 if family == 6 else socket.AF_INET
        with world.wire.socket(None, kind, socket.SOCK_DGRAM, keep=False) as program:
            program.bind((HOST[family], port))
            program.sendto(mark := b"attack-%07d" % (9_000_000 + own), (to, own))
            assert world.arrives(mark, [world.link[asking]])
            mark = world.shoot(
                world.link[asking],
                lambda mark, _: [head / packet(to, HOST[family], "udp", own, port, mark)],
            )
            if world.arrives(mark, [world.link["web"]], 0.5):
                return False
            program.settimeout(1)
            assert program.recv(100) == mark, (port, "lost")
            return True

    numbers = iter(range(21_000 if asking == "client" else 22_000, 23_000))
    with world.without(OF_HOST):
        taken = [shadowed(port, next(numbers)) for port in PORTS]
        assert all(taken), taken
    taken = [shadowed(port, next(numbers)) for port in PORTS]
    assert not any(taken), taken


OTHERS = """\
ip link add others0 type bridge
ip netns add box
ip link add box0 type veth peer name eth0 netns box
ip link set box0 master others0 up
ip link set others0 up
ip address add 10.50.0.1/24 dev others0
ip address add fd50::1/64 dev others0 nodad
ip -n box address add 10.50.0.2/24 dev eth0
ip -n box address add fd50::2/64 dev eth0 nodad
ip -n box link set eth0 up
ip -n box route add default via 10.50.0.1
ip -n box route add default via fd50::1
nft add table inet others
nft 'add chain inet others out { type nat hook postrouting priority srcnat; }'
nft add rule inet others out iifname others0 masquerade
"""
FORWARDING = Rule("inet niso", "others", ("@closed",))
OF_OTHERS = Rule("inet niso", "kept", ("iif != 0",))


def test_container_of_another_engine_takes_over_no_published_port(world: World) -> None:
    """A bridge beside niso's whose containers are masqueraded, as those of Docker and Podman are."""
    world.lab.run("sh", "-ec", OTHERS)
    numbers = iter(range(23_000, 24_000))

    def sends(family: int, port: int) -> bool:
        """Whether a flow of the container from that port leaves, and gets what the client then asks the port."""
        own = next(numbers)
        with world.wire.socket("box", FAMILY[family], socket.SOCK_DGRAM, keep=False) as box:
            box.bind(("", port))
            box.sendto(mark := b"attack-%07d" % (9_100_000 + own), (CLIENT[family], own))
            left = world.arrives(mark, [world.link["client"]], 0.5)
            mark = ask(world, family, "udp", port, own)
            if left:
                box.settimeout(2)
                return bool(box.recv(100) == mark)
            assert world.arrives(mark, [world.link["web"]])
            return False

    tries = [(family, port) for family in (4, 6) for port in (20_000, 50_005)]
    with world.without([FORWARDING, OF_OTHERS]):
        assert all(sends(*each) for each in tries)
    with world.without([FORWARDING]):
        assert not any(sends(*each) for each in tries)
        assert all(sends(family, 7) for family in (4, 6))  # that nobody publishes or listens on


@both_families
def test_protocol_without_ports_leaves_no_trace(world: World, family: int) -> None:
    """Otherwise what its peer sends to the host by that protocol, as an IPsec tunnel's, would be mallory's."""
    own, host, client = world.of["mallory"].ip(family), HOST[family], CLIENT[family]
    out = Ether(src=world.mac["mallory"], dst=world.bridge["backend"].mac)
    back = Ether(src=world.mac["client"], dst=world.host.mac)
    kind = socket.AF_INET6 if family == 6 else socket.AF_INET

    def of(source: str, target: str, proto: int, mark: bytes) -> Any:
        at = IPv6(src=source, dst=target, nh=proto) if family == 6 else IP(src=source, dst=target)
        if family == 4:
            at.proto = proto
        return at / Raw(bytes(8) + mark)

    def taken(proto: int) -> bool:
        """Whether mallory gets what the client sends to the host after her own packet."""
        with world.wire.socket(None, kind, socket.SOCK_RAW, proto, keep=False) as program:
            world.shoot(world.link["mallory"], lambda mark, _: [out / of(own, client, proto, mark)])
            assert world.honest(world.link["client"])
            mark = world.shoot(
                world.link["client"], lambda mark, _: [back / of(client, host, proto, mark)]
            )
            if world.arrives(mark, [world.link["mallory"]], 0.5):
                return True
            program.settimeout(1)
            assert mark in program.recv(200), (proto, "lost")
            return False

    with plainly_masqueraded(world):
        assert all(taken(proto) for proto in (41, 103))  # IPv6 in IP, PIM
    drops = [("inet niso", f"away{family}")]
    before = world.drops(drops)
    assert not any(taken(proto) for proto in (50, 47, 4, 89))  # ESP, GRE, IP in IP, OSPF
    assert world.drops(drops) - before == 4


@both_families
def test_program_of_the_host_on_a_port_that_masquerading_takes(world: World, family: int) -> None:
    """What is sent to it is lost rather than given to mallory, and once it was used nobody gets its port."""
    port = 51_820 + family
    with world.wire.socket(
        None, socket.AF_INET6 if family == 6 else socket.AF_INET, socket.SOCK_DGRAM, keep=False
    ) as program:
        program.bind((HOST[family], port))
        program.setblocking(False)

        def asked(own: int) -> str:
            """Who sees what the client asks the program from its port ``own``, after mallory's shot there."""
            lay(world, family, "udp", port, own)
            assert world.honest(world.link["client"])
            mark = ask(world, family, "udp", port, own)
            if world.arrives(mark, [world.link["mallory"]], 0.3):
                return "mallory"
            with contextlib.suppress(BlockingIOError):
                return "program" if program.recv(100) == mark else "another"
            return "nobody"

        with world.without(ANSWERS):
            assert asked(20_101) == "mallory"
        assert asked(20_102) == "nobody"
        ask(world, family, "udp", port, 20_103)
        world.lab.wait_for(
            lambda: (
                str(port) in world.lab.run("nft", "list", "set", "inet", "niso", "programs").stdout
            )
        )
        program.recv(100)
        assert asked(20_104) == "program"
        mark = lay(world, family, "udp", port, 20_105)  # it gets another port
        assert world.arrives(mark, [world.link["client"]])


def test_user_of_the_host_with_many_ports_leaves_services_theirs(world: World) -> None:
    """Who waits on all ports that masquerading takes, and is asked there, would take them from all services for a day."""
    many = range(33_000, 34_500)
    world.lab.run("nft", "flush", "set", "inet", "niso", "programs")
    asking = world.wire.socket("client", socket.AF_INET, socket.SOCK_DGRAM, keep=False)
    with contextlib.ExitStack() as stack:
        stack.enter_context(asking)
        for port in many:
            each = world.wire.socket(None, socket.AF_INET, socket.SOCK_DGRAM, keep=False)
            stack.enter_context(each).bind(("", port))
        for port in many:
            asking.sendto(b"", (HOST[4], port))
        assert world.honest(world.ear[4])
    listed = world.lab.run("nft", "-j", "list", "set", "inet", "niso", "programs").stdout
    assert listed.count("concat") == 1024
    world.lab.run("nft", "flush", "set", "inet", "niso", "programs")


@both_families
def test_ping_of_the_host_is_its_own(world: World, family: int) -> None:
    """Whatever identifiers a service's pings have."""
    own, client = world.of["mallory"].ip(family), CLIENT[family]
    head = Ether(src=world.mac["mallory"], dst=world.bridge["backend"].mac)
    for kind in ("from the host", "to the host"):
        number = 4000 if kind == "from the host" else 4001
        echo = ICMPv6EchoRequest(id=number) if family == 6 else ICMP(id=number)
        at = IPv6(src=own, dst=client) if family == 6 else IP(src=own, dst=client)
        mark = world.shoot(
            world.link["mallory"], lambda mark, _, p=at / echo: [head / p / Raw(mark)]
        )
        assert world.arrives(mark, [world.link["client"]])
        netns, to = (None, client) if kind == "from the host" else ("client", HOST[family])
        words = ("ping", "-c", "1", "-W", "3", "-e", str(number), to)
        assert " 1 received" in world.lab.run(*words, netns=netns, check=False).stdout, kind


@both_families
@pytest.mark.parametrize("proto", PROTOCOLS)
def test_flow_from_the_port_of_another_leaves_by_one_of_the_hosts_own(
    world: World, family: int, proto: str
) -> None:
    """Whatever its source port: it works, and others keep theirs where they may."""
    client = world.link["client"]

    def seen_from(mark: bytes) -> int:
        assert world.arrives(mark, [client])
        frame = next(each for each in client.seen if mark in each)
        return int.from_bytes(frame[54:56] if family == 6 else frame[34:36], "big")

    for port in PORTS:
        mark = lay(world, family, proto, port, 30_000 + port % 1000)
        if not world.arrives(
            mark, [client]
        ):  # one in some thousands is to get a published port, and is dropped
            mark = lay(world, family, proto, port, 31_000 + port % 1000)
        left = seen_from(mark)
        assert left in OWN and left not in PORTS, port
    assert seen_from(lay(world, family, proto, 45_678, 30_000)) == 45_678


@both_families
def test_no_flow_gets_a_port_by_chance(world: World, family: int) -> None:
    """With most of the range published, most flows that would get one of it are dropped untracked, and none gets one."""
    spans = ("33768-39999", "40001-49999", "50011-60999")
    ports = [f"{span}:{span}/udp" for span in spans]
    world.lab.niso("activate", idle(world.lab, "plenty", network=on("frontend", ports=ports)))
    client, before = world.link["client"], world.drops([("inet niso", f"kept{family}")])
    try:
        marks = [lay(world, family, "udp", 1000 + n, 30_000) for n in range(300)]
        world.honest(client)
        start = 54 if family == 6 else 34
        came = [each for each in client.look() if any(mark in each for mark in marks)]
        sources = {int.from_bytes(each[start : start + 2], "big") for each in came}
        assert sources <= set(OWN[:1000]), sources
        assert world.drops([("inet niso", f"kept{family}")]) - before >= 200
    finally:
        world.lab.niso("remove", "plenty")


@both_families
def test_flow_that_has_the_port_already_ends_when_it_is_published(
    world: World, family: int
) -> None:
    """mallory, or a program of the host, takes a port of the host before it is published; or while there are no rules."""

    def send(port: int, to: int) -> None:
        kind = socket.AF_INET6 if family == 6 else socket.AF_INET
        with world.wire.socket(None, kind, socket.SOCK_DGRAM, keep=False) as program:
            program.bind((HOST[family], port))
            mark = b"attack-%07d" % (9_000_000 + to)
            program.sendto(mark, (CLIENT[family], to))
            assert world.arrives(mark, [world.link["client"]])

    lay(world, family, "udp", 41_000, 31_000)
    world.arrives(lay(world, family, "udp", 41_000, 31_000), [world.link["client"]])
    send(41_001, 31_002)
    ports = ["41000:80/udp", "41001:81/udp"]
    world.lab.niso("activate", idle(world.lab, "late", network=on("frontend", ports=ports)))
    try:
        late = world.wire.link("niso-late", "eth0")
        assert world.arrives(ask(world, family, "udp", 41_000, 31_000), [late])
        assert world.arrives(ask(world, family, "udp", 41_001, 31_002), [late])
        world.lab.run("nft", "flush", "ruleset")
        send(41_001, 31_003)
        world.lab.niso("net", "repair")
        assert world.arrives(ask(world, family, "udp", 41_001, 31_003), [late])
    finally:
        world.lab.niso("remove", "late")
