"""Test what a service with raw sockets cannot send: foreign addresses, other frames, broadcasts, IPv6.

``mallory`` sends to ``db`` (by its MAC), to the host (the bridge's MAC) and to all. Receivers see whole frames, before their
kernel would refuse what niso let through.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import frames
import pytest
from attack_world import EAR, GATEWAY, HOST, NEIGHBOUR, SUBNETS, Attack, Rule, World, forget
from conftest import Lab
from frames import Shouts
from lies import Lies
from samples import LONG
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw
from services import filter_bridged, idle
from wire import Wire

FROM_PORT = Rule("bridge niso", "prerouting", ("iifname @ports",))
BETWEEN = Rule("bridge niso", "forward", ("iifname @ports",))
# a lie may be stopped by more than one rule
FOREIGN_ARP = Rule("bridge niso", "prerouting", ("arp saddr ip", "drop"))
OF_SUBNETS = [
    Rule("inet niso", chain, ("addr @subnets", end))
    for chain in ("raw", "raw6")
    for end in ("drop", "goto direct")
]
UNCHECKED = [Rule("inet niso", "from_bridge", ("drop",)), *OF_SUBNETS]
LIES = [FROM_PORT, BETWEEN, FOREIGN_ARP, *UNCHECKED]
FROM_ELSEWHERE = [Rule("inet niso", "from_bridge", ("iifname @ports",)), *OF_SUBNETS]
COUNT_FROM = [
    ("bridge niso", "from_port"),
    ("bridge niso", "from_own6"),
    ("bridge niso", "from_own_nd"),
]
COUNT_BETWEEN = [("bridge niso", "between")]

both_ways = pytest.mark.parametrize("nf_call", [0, 1])


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab(deadline_seconds=600) as lab, Wire(lab) as wire:
        yield World(lab, wire)


def listed(one: frames.One) -> Callable[[bytes, int], list[Any]]:
    return lambda mark, port: made if isinstance(made := one(mark, port), list) else [made]


def from_mallory(
    world: World, made: dict[str, Callable[[bytes, int], Any]], to_host: bool
) -> list[Attack]:
    receivers = (world.link["db"], world.link["niso-backend"]) if to_host else (world.link["db"],)
    return [
        Attack(name, world.link["mallory"], listed(one), receivers) for name, one in made.items()
    ]


def lies(world: World) -> Lies:
    return Lies(
        me=world.of["mallory"],
        other=world.of["api"],
        victim=world.mac["db"],
        router=world.bridge["backend"].mac,
        router4=GATEWAY["backend"][4],
        router6=GATEWAY["backend"][6],
    )


@pytest.mark.parametrize(
    ("kind", "nf_call"),
    [
        (kind, nf_call)
        for number, kind in enumerate(
            ("ipv4", "arp", "ipv6", "nd", "hidden_nd", "tagged", "other_types")
        )
        for nf_call in (0, 1)
        if LONG or nf_call == number % 2
    ],
)
def test_service_sends_nothing_but_its_own(world: World, kind: str, nf_call: int) -> None:
    filter_bridged(world.lab, nf_call)
    made = getattr(lies(world), kind)()
    world.prove(from_mallory(world, made, to_host=True), LIES, COUNT_FROM)


@both_ways
def test_broadcast_and_multicast_reach_no_other_service(world: World, nf_call: int) -> None:
    """In frames to all, to a group, and to one MAC; with mallory's own addresses."""
    filter_bridged(world.lab, nf_call)
    made = Shouts(me=world.of["mallory"], victim=world.of["db"]).frames()
    world.prove(from_mallory(world, made, to_host=False), [BETWEEN], COUNT_BETWEEN)


@both_ways
@pytest.mark.parametrize("family", [4, 6])
def test_mac_and_address_of_the_receiver_must_fit(world: World, family: int, nf_call: int) -> None:
    """Policies are looked up by address: a frame to db's MAC with api's would pass by those of api."""
    filter_bridged(world.lab, nf_call)
    me, router = world.of["mallory"], GATEWAY["backend"][family]
    attacks = [
        Attack(
            f"to {mac} with {target}",
            world.link["mallory"],
            lambda mark, port, mac=mac, target=target: [
                Ether(src=me.mac, dst=mac) / world.udp(me.ip(family), target, mark, port)
            ],
            (world.link["db"],),
            counted=mac in world.mac.values(),  # a frame to an unknown MAC leaves by no port
        )
        for mac, target in (
            (world.mac["db"], world.of["api"].ip(family)),
            (world.mac["db"], router),
            (world.mac["db"], {4: "198.51.100.1", 6: "2001:db8:ffff::1"}[family]),
            ("02:66:00:00:00:01", world.of["db"].ip(family)),
            ("02:66:00:00:00:01", world.of["api"].ip(family)),
        )
    ]
    world.prove(attacks, [BETWEEN], COUNT_BETWEEN)


@both_ways
def test_arp_carries_nothing_else(world: World, nf_call: int) -> None:
    filter_bridged(world.lab, nf_call)
    me, db = world.of["mallory"], world.of["db"]
    ask = ARP(op=1, hwsrc=me.mac, psrc=me.ip4, pdst=db.ip4)
    attacks = [
        Attack(
            f"ARP to {mac} with more behind it",
            world.link["mallory"],
            lambda mark, _, mac=mac: [Ether(src=me.mac, dst=mac) / ask / Raw(mark * 4)],
            (world.link["db"],),
        )
        for mac in (db.mac, "ff:ff:ff:ff:ff:ff")
    ]
    world.prove(attacks, LIES, COUNT_FROM)


@both_ways
def test_no_ipv6_frame_passes_on_a_network_without_ipv6(world: World, nf_call: int) -> None:
    filter_bridged(world.lab, nf_call)
    evil, plain, router = world.of["evil"], world.of["plain"], world.bridge["old"].mac
    receivers = (world.link["plain"], world.link["niso-old"])
    made = frames.ipv6_anywhere(evil.mac, plain.mac, router)
    attacks = [
        Attack(
            name,
            world.link["evil"],
            listed(one),
            receivers,
            name not in frames.SAID_BY_EVERY_KERNEL,
        )
        for name, one in made.items()
    ]
    world.prove(attacks, LIES, COUNT_FROM)


@both_ways
def test_frames_to_link_local_macs_bring_nothing_to_the_host(world: World, nf_call: int) -> None:
    """The bridge hands these to the host as from the port itself, past its own tables.

    The host takes no IPv6 from the port either; here it does, to test the rules alone.
    """
    filter_bridged(world.lab, nf_call)
    for link in world.lab.ip_json("link", "show", "type", "veth"):
        if "master" in link:
            world.lab.run("sysctl", "-qw", f"net/ipv6/conf/{link['ifname']}/disable_ipv6=0")
    mallory, api = world.of["mallory"], world.of["api"]
    attacks = []
    for last in ("02", "03", "0e", "0f"):
        for family in (4, 6):
            for who, source in (
                ("its own address", mallory.ip(family)),
                ("another's address", api.ip(family)),
                ("an outside address", frames.OUTSIDE[family]),
            ):
                target = GATEWAY["backend"][family]
                attacks.append(
                    Attack(
                        f"{who} {source} to 01:80:c2:00:00:{last}",
                        world.link["mallory"],
                        lambda m, p, s=source, t=target, last=last: [
                            Ether(src=mallory.mac, dst=f"01:80:c2:00:00:{last}")
                            / world.udp(s, t, m, p, EAR)
                        ],
                        (world.ear[family],),
                    )
                )
    world.prove(attacks, FROM_ELSEWHERE, [("inet niso", "from_bridge")])


def test_service_sends_all_that_is_its_own(world: World) -> None:
    """So that the others fail for what is wrong with them, and not all the time."""
    me, db, router = world.of["mallory"], world.of["db"], world.bridge["backend"].mac
    link = {"db": world.link["db"], "host": world.link["niso-backend"]}
    for name, (receiver, one) in frames.honest(
        me, db, router, GATEWAY["backend"][4], GATEWAY["backend"][6]
    ).items():
        mark = world.shoot(world.link["mallory"], listed(one))
        assert world.arrives(mark, [link[receiver]]), name


def neighbours(lab: Lab, netns: str | None, link: str) -> dict[str, str]:
    """Which MAC it has for which address."""
    found = lab.ip_json("neigh", "show", "dev", link, netns=netns)
    return {each["dst"]: each["lladdr"] for each in found if "lladdr" in each}


def test_nobodys_tables_are_poisoned(world: World) -> None:
    """Where the lie for api's address, or for a router, ends up in the victim's kernel without the rules, with them it does not."""
    lab, api, mallory = world.lab, world.of["api"], world.of["mallory"]
    sender, made = world.link["mallory"], lies(world)
    victims = {
        "db": ("niso-db", "eth0", world.mac["db"]),
        "host": (None, "niso-backend", world.bridge["backend"].mac),
    }
    shots = {
        api.ip4: made.arp()["ARP answer for another's address"],
        api.ip6: made.nd()["NA for another's address"],
    }

    def learn(netns: str | None, link: str) -> bool:
        if netns:  # niso's route is by the gateway's MAC, and asks for none
            for one, subnet in itertools.product((netns, "niso-api"), SUBNETS["backend"]):
                family = "-6" if ":" in subnet else "-4"
                metric = "1" if ":" in subnet else "0"
                words = ("route", "replace", subnet, "dev", link, "metric", metric)
                lab.run("ip", family, *words, netns=one)
                lab.run("sysctl", "-qw", f"net.ipv4.neigh.{link}.mcast_solicit=3", netns=one)
        forget(lab, netns, link, [api.ip4, api.ip6])
        for target in (api.ip4, api.ip6):
            lab.run("ping", "-c1", "-W2", target, netns=netns)
        known = neighbours(lab, netns, link)
        return (known.get(api.ip4), known.get(api.ip6)) == (api.mac, api.mac)

    def lie(victim: str) -> None:
        for one in shots.values():
            sender.send(made.to(one(b"", 1), victims[victim][2]))
        sender.send(made.nd()["router advertisement of a link-local address"](b"", 1))

    def believed(victim: str) -> set[str]:
        netns, link, _ = victims[victim]
        return {
            address
            for address, mac in neighbours(lab, netns, link).items()
            if mac == mallory.mac and address in shots
        }

    def routers() -> list[Any]:
        return lab.ip_json("-6", "route", "show", "proto", "ra", netns="niso-db")

    # a service takes no router advertisement anyway: here one does, so that it is the rules that keep it
    assert lab.run("cat", "/proc/sys/net/ipv6/conf/eth0/accept_ra", netns="niso-db").stdout == "0\n"
    lab.run("sysctl", "-qw", "net.ipv6.conf.eth0.accept_ra=1", netns="niso-db")
    for victim, (netns, link, _) in victims.items():
        with world.without(LIES):
            assert learn(netns, link)
            lab.wait_for(
                lambda v=victim: (lie(v), believed(v) == set(shots))[1],
                what=f"lies to {victim} are believed",
            )
            lab.wait_for(routers, what="db takes mallory for a router")
        lab.wait_for(lambda n=netns, li=link: learn(n, li), what=f"{victim} knows api again")
        assert routers() == []
        before = world.drops(COUNT_FROM)
        lie(victim)
        assert world.honest(world.link["db"]) and world.honest(world.link["niso-backend"])
        assert believed(victim) == set() and routers() == []
        assert world.drops(COUNT_FROM) - before == len(shots) + 1
    lab.niso("net", "repair")


def test_bridge_learns_no_mac_that_is_not_its_ports_own(world: World) -> None:
    """A flood of made-up MACs fills the bridge's table without the rules, and leaves it alone with them."""
    me, db = world.of["mallory"], world.of["db"]

    def flood(round_: int) -> None:
        for number in range(50):
            head = Ether(src=f"02:66:00:00:{round_:02x}:{number:02x}", dst=world.mac["db"])
            world.link["mallory"].send(head / world.udp(me.ip4, db.ip4, b"flood", 9, 9))

    def learnt(round_: int) -> int:
        return world.lab.run("bridge", "fdb", "show", "br", "niso-backend").stdout.count(
            f"02:66:00:00:{round_:02x}:"
        )

    with world.without(LIES):
        flood(1)
        world.lab.wait_for(lambda: learnt(1) == 50, what="all are learnt")
    flood(2)
    assert world.honest(world.link["db"])
    assert learnt(2) == 0


@pytest.mark.parametrize("family", [4, 6])
def test_nobody_overhears_a_service_that_was_silent(world: World, family: int) -> None:
    """A bridge that learns forgets a silent service, and sends what is meant for it to all ports."""
    lab, mallory, api = world.lab, world.link["mallory"], world.link["api"]
    head = Ether(src=world.mac["neighbour"], dst=world.host.mac)

    def overheard() -> bool:
        packet = lambda mark, port: [  # noqa: E731
            head / world.udp(NEIGHBOUR[family], HOST[family], mark, port, 8080)
        ]
        sender = world.link["neighbour"]
        assert world.arrives(world.shoot(sender, packet), [api])  # the host has api's MAC by now
        lab.run("ip", "link", "set", "niso-backend", "type", "bridge", "fdb_flush")
        mark = world.shoot(sender, packet)
        assert world.arrives(mark, [api]) and world.honest(world.link["db"])
        return mallory.saw(mark)

    assert not overheard()
    ports = [link["ifname"] for link in lab.ip_json("link", "show", "master", "niso-backend")]
    try:
        for port in ports:
            lab.run("bridge", "link", "set", "dev", port, "learning", "on", "flood", "on")
            lab.run("bridge", "fdb", "flush", "dev", port, "static", "master")
        assert overheard()
        wrong = [
            line
            for line in lab.niso("net", "check", check=False).stdout.splitlines()
            if "veth" in line
        ]
        assert len(wrong) == len(ports) and all("learning on, flood on" in line for line in wrong)
    finally:
        lab.niso("net", "repair")
    assert not overheard()


# --- the host by addresses that are not its own ----------------------------------------------------------------------

HEAR = """\
import socket
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as ear:
    ear.bind(("::", 5353)); ear.settimeout(0.5)
    print("ready", flush=True)
    while (data := ear.recv(99)) != b"end":
        print(data.decode(), flush=True)
"""
SAY = """\
import socket, sys
for to in sys.argv[1:]:
    with socket.socket(socket.AF_INET6 if ":" in to else socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        s.sendto(to.encode(), (to, 5353))
"""
NOT_ITS_OWN = (
    # of the link to other machines
    *("192.0.2.255", "2001:db8::"),
    # of another network, and of an internal one
    *("10.98.2.255", "fd00:98:2::", "10.98.3.255", "fd00:98:3::"),
)
OWN = ("192.0.2.1", "2001:db8::1", "10.98.2.1", "fd00:98:2::1")


def test_host_is_reached_by_no_broadcast_or_anycast_address(lab: Lab) -> None:
    """Egress rules that deny the host's addresses would not stop it, nor would an internal network."""
    lab.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")  # as kernels before 6.17 need it
    for number, more in ((1, ()), (2, ()), (3, ("--internal",))):
        cidrs = (f"10.98.{number}.0/24", f"fd00:98:{number}::/64")
        lab.niso("net", "create", f"n{number}", "--subnet", cidrs[0], "--subnet", cidrs[1], *more)
    denied = {"network": "n1", "policy": {"egress": {"deny": [OWN[0], f"[{OWN[1]}]"]}}}
    lab.niso(
        "activate",
        idle(lab, "api", network=denied),
        idle(lab, "inner", network={"network": "n3"}),
        idle(lab, "other", network={"network": "n2"}),
    )

    def heard(sender: str) -> set[str]:
        ear = lab.popen("python3", "-ISuc", HEAR, stderr=-3)
        assert ear.stdout is not None and ear.stdout.readline() == b"ready\n"
        lab.run("python3", "-ISc", SAY, *NOT_ITS_OWN, *OWN, netns=f"niso-{sender}")
        return set(ear.communicate(timeout=20)[0].split())

    others = {
        "api": {*NOT_ITS_OWN},
        "inner": {one for one in NOT_ITS_OWN if one not in ("10.98.3.255", "fd00:98:3::")},
    }
    for sender, attacks in others.items():
        for to in attacks:
            address = f"[{to}]" if ":" in to else to
            said = lab.niso("net", "explain", sender, f"{address}:5353/udp", check=False).stdout
            assert said.splitlines()[0].endswith(": drop"), said
    assert not heard("api") & {*NOT_ITS_OWN}
    assert not heard("inner") & others["inner"]
    assert heard("inner") >= {*OWN}, "the internal network leads to the host"
    rule = next(
        each["rule"]
        for each in lab.nft_json()
        if each.get("rule", {}).get("comment", "").startswith("to the host, by an address that")
    )
    lab.run("nft", "delete", "rule", "inet", "niso", "input", "handle", str(rule["handle"]))
    assert heard("api") >= others["api"] and heard("inner") >= others["inner"]
