"""No service takes by floods what the kernel has once for all: neighbour entries, memory for fragments, tracked flows.

Each flood is bounded in packets, and first shown to succeed without the rule. What is counted belongs to the lab; the neighbour
table, which is the machine's, is never filled.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest
from attack_world import CLIENT, GATEWAY, Rule, World
from conftest import Lab
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw
from scapy.utils import checksum
from services import idle, pings
from wire import FAMILY, Addresses, Wire

ROUTED_BACK = {
    "bridge": [Rule("bridge niso", f"to_own{n}", (f"@own{n}",)) for n in (4, 6)],
    "port": [Rule("bridge niso", f"to_own{n}", ("@host_macs",)) for n in (4, 6)],
}
ASKING = [Rule("bridge niso", chain, ("@arp_nd",)) for chain in ("from_port", "from_own_nd")]
FRAGMENTS = [Rule("bridge niso", chain, ("@fragments",)) for chain in ("from_own4", "from_own6")]
FLOWS = [Rule("inet niso", chain, ("@flows",)) for chain in ("forward", "input")]
BROADCAST = "ff:ff:ff:ff:ff:ff"

both_families = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab(deadline_seconds=600) as lab, Wire(lab) as wire:
        yield World(lab, wire)


def flood(world: World, sender: str, frames: list[bytes]) -> float:
    """Send all frames; return how long it took in seconds."""
    start = time.monotonic()
    link = world.link[sender]
    for frame in frames:
        while True:
            try:
                link.send(frame)
                break
            except BlockingIOError:
                time.sleep(0.001)
    return time.monotonic() - start


def ip(family: int, source: str, target: str) -> IP | IPv6:
    return IP(src=source, dst=target) if family == 4 else IPv6(src=source, dst=target)


# --- neighbours ------------------------------------------------------------------------------------------------------

NOBODY = {
    4: [f"10.99.1.{n}" for n in range(50, 150)],
    6: [f"fd00:99:1::5:{n:x}" for n in range(100)],
}


def asked_for(world: World, family: int, mac: str) -> int:
    """Send to addresses that nobody has, by a MAC of the host; return how many it then asks for."""
    head = Ether(src=world.mac["mallory"], dst=mac)
    own = world.of["mallory"].ip(family)
    flood(
        world,
        "mallory",
        [bytes(head / ip(family, own, to) / UDP(sport=9, dport=9)) for to in NOBODY[family]],
    )
    entries = world.lab.ip_json("neigh", "show", "dev", "niso-backend", "nud", "all")
    return len({entry["dst"] for entry in entries} & set(NOBODY[family]))


@pytest.mark.parametrize("by", ["bridge", "port"])
@both_families
def test_host_asks_for_no_neighbour_in_a_services_stead(world: World, family: int, by: str) -> None:
    """Neither by the MAC of the bridge nor by that of mallory's port, which it would have to guess."""
    mac = world.bridge["backend"].mac
    with contextlib.ExitStack() as attack:
        if by == "port":
            (port,) = (
                link
                for link in world.lab.ip_json("link", "show", "master", "niso-backend")
                if link["ifname"].startswith("nimal")
            )
            mac = port["address"]
            # ports of earlier versions have an entry of their own MAC, which leads to the host
            entry = mac, "dev", port["ifname"], "master"
            world.lab.run("bridge", "fdb", "add", *entry, "local")
            attack.callback(world.lab.run, "bridge", "fdb", "del", *entry)
        with world.without(ROUTED_BACK[by]):
            assert asked_for(world, family, mac) == len(NOBODY[family])
        assert asked_for(world, family, mac) == 0
    assert world.honest(world.link["db"]) and world.honest(world.link["api"])


def test_host_asks_for_no_link_local_neighbour(world: World) -> None:
    """A program without any right names the link; its route to all leads by the gateway's MAC."""
    nobody = {f"fe80::5:{n:x}" for n in range(50)}
    (inside,) = world.lab.ip_json("link", "show", "eth0", netns="niso-db")

    def asked() -> int:
        with world.wire.socket("niso-db", FAMILY[6], socket.SOCK_DGRAM, keep=False) as one:
            for to in nobody:
                send(lambda to=to: one.sendto(b"", (to, 9, 0, inside["ifindex"])))
        entries = world.lab.ip_json("neigh", "show", "dev", "niso-backend", "nud", "all")
        return len({entry["dst"] for entry in entries} & nobody)

    with world.without([Rule("bridge niso", "to_own6", ("fe80::",))]):
        assert asked() == len(nobody)
    assert asked() == 0
    assert pings(world.lab, "fe80::1%eth0", netns="niso-db")


WIDE = {4: "10.98.0.0/20", 6: "fd00:98::/64"}
OF_ITS_OWN = {
    4: [f"10.98.9.{n}" for n in range(1, 251)],
    6: [f"fd00:98::5:{n:x}" for n in range(1, 251)],
}


def asked_inside(world: World, family: int) -> int:
    """Send from a service to addresses of its network that nobody has; return how many take an entry."""
    netns = "niso-wide"
    for on_link in (0, 1):
        with world.wire.socket(netns, FAMILY[family], socket.SOCK_DGRAM, keep=False) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_DONTROUTE, on_link)
            for to in OF_ITS_OWN[family]:
                with contextlib.suppress(OSError):  # DONTROUTE: no route
                    send(lambda to=to: one.sendto(b"", (to, 9)))
    entries = world.lab.ip_json("neigh", "show", "dev", "eth0", "nud", "all", netns=netns)
    return len({entry["dst"] for entry in entries} & set(OF_ITS_OWN[family]))


def test_service_asks_for_no_neighbour_of_its_own_networks(world: World) -> None:
    """A service could fill the machine's neighbour table with entries of its own namespace, without any right."""
    lab = world.lab
    subnets = [word for subnet in WIDE.values() for word in ("--subnet", subnet)]
    lab.niso("net", "create", "wide", *subnets)
    keys = {"network": {"network": "wide"}}
    lab.niso("activate", *(idle(lab, name, **keys) for name in ("wide", "near")))
    for family, subnet in WIDE.items():
        assert asked_inside(world, family) == 0
        # what it would be with the kernel's own route
        metric = "0" if family == 4 else "1"
        words = (f"-{family}", "route", "replace", subnet, "dev", "eth0", "metric", metric)
        lab.run("ip", "-n", "niso-wide", *words, "proto", "kernel")
        lab.run("sysctl", "-qw", "net.ipv4.neigh.eth0.mcast_solicit=3", netns="niso-wide")
        assert asked_inside(world, family) == len(OF_ITS_OWN[family])
    shown = lab.niso("net", "check", check=False).stdout
    assert shown.count("in niso-wide (the kernel's route to its prefix bypasses the gateway)") == 2
    lab.niso("net", "repair")
    near = Addresses(lab, "niso-near")
    for family, alien in OF_ITS_OWN.items():
        lab.run("ip", f"-{family}", "neigh", "flush", "all", netns="niso-wide")
        assert asked_inside(world, family) == 0
        assert pings(lab, near.ip(family), "niso-wide")
        with world.wire.socket("niso-wide", FAMILY[family], socket.SOCK_STREAM, keep=False) as one:
            one.settimeout(2)
            with pytest.raises(OSError) as caught:
                one.connect((alien[0], 80))
            assert caught.value.errno == errno.EHOSTUNREACH


ON_LINK = {
    4: [f"192.0.2.{n}" for n in range(10, 250)],
    6: [f"2001:db8::5:{n:x}" for n in range(240)],
}


@both_families
def test_host_asks_for_few_neighbours_of_its_own_links_at_once(world: World, family: int) -> None:
    """An unprivileged service could fill the machine's neighbour table with those of a large link."""

    # api and db: each has its own limit
    sender, kind = ("db", socket.AF_INET) if family == 4 else ("api", socket.AF_INET6)

    def asked_for() -> tuple[int, float]:
        world.lab.run("ip", "neigh", "flush", "dev", "uplink0", "nud", "all", check=False)
        began = time.monotonic()
        with world.wire.socket(f"niso-{sender}", kind, socket.SOCK_DGRAM, keep=False) as one:
            for to in ON_LINK[family]:
                send(lambda to=to: one.sendto(b"", (to, 9)))
        took = time.monotonic() - began
        entries = world.lab.ip_json("neigh", "show", "dev", "uplink0", "nud", "all")
        return len({entry["dst"] for entry in entries} & set(ON_LINK[family])), took

    with world.without([Rule("inet niso", "forward", ("goto next_hop",))]):
        assert asked_for()[0] == len(ON_LINK[family])
    count, took = asked_for()
    assert 90 <= count <= 100 + 20 * (took + 1)
    assert world.honest(world.link["client"])  # of another service


def test_large_ping_of_the_gateway_is_answered(world: World) -> None:
    for gateway in GATEWAY["backend"].values():
        world.lab.run("ping", "-c", "1", "-W", "3", "-s", "4000", gateway, netns="niso-api")


# --- ARP and neighbour discovery -------------------------------------------------------------------------------------

MANY = 3000


def question(world: World, family: int, sender: str) -> bytes:
    mac, own = world.mac[sender], world.of[sender]
    if family == 4:
        ask = ARP(hwsrc=mac, psrc=own.ip4, pdst="10.99.1.77")
        return bytes(Ether(src=mac, dst=BROADCAST) / ask)
    head = Ether(src=mac, dst="33:33:ff:00:00:77") / IPv6(
        src=own.ip6, dst="ff02::1:ff00:77", hlim=255
    )
    return bytes(head / ICMPv6ND_NS(tgt="fd00:99:1::77") / ICMPv6NDOptSrcLLAddr(lladdr=mac))


def arrived(world: World, family: int) -> tuple[int, float]:
    """Return how many of `MANY` questions reach db, and how long it took to send them."""
    # the two have a limit together: one service for each
    frame = question(world, family, {4: "mallory", 6: "api"}[family])
    link = world.link["db"]
    link.look()
    before = link.seen.count(frame)
    took = 0.0
    for _ in range(10):
        took += flood(world, {4: "mallory", 6: "api"}[family], [frame] * (MANY // 10))
        link.look()
    return link.seen.count(frame) - before, took


@both_families
def test_questions_of_one_service_are_limited(world: World, family: int) -> None:
    with world.without(ASKING):
        assert arrived(world, family)[0] == MANY
    came, took = arrived(world, family)
    assert 1000 <= came <= 1000 + 100 * (took + 1)
    assert world.honest(world.link["db"])


# --- fragments -------------------------------------------------------------------------------------------------------


def starts(world: World, family: int, count: int) -> list[bytes]:
    """Return first fragments of as many packets that never become whole."""
    head = Ether(src=world.mac["mallory"], dst=world.bridge["backend"].mac)
    own, data = world.of["mallory"].ip(family), Raw(bytes(1400))
    if family == 6:
        one = bytes(head / ip(6, own, CLIENT[6]) / IPv6ExtHdrFragment(nh=17, m=1, id=1) / data)
        return [one[:58] + struct.pack("!I", n) + one[62:] for n in range(1, count + 1)]
    one = bytes(head / IP(src=own, dst=CLIENT[4], id=0, flags="MF", proto=17) / data)
    frames = []
    for n in range(count):
        header = one[14:18] + struct.pack("!H", n) + one[20:24] + bytes(2) + one[26:34]
        header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
        frames.append(one[:14] + header + one[34:])
    return frames


def share(world: World, family: int) -> int:
    """Return how many of ten large pings of another service are answered."""
    out = world.lab.run(
        *("ping", "-q", "-c", "10", "-i", "0.05", "-W", "1", "-s", "3000", CLIENT[family]),
        netns="niso-api",
        check=False,
    ).stdout
    return int(out.split(" received")[0].rpartition(" ")[2])


@both_families
def test_fragments_of_one_service_leave_room_for_others(world: World, family: int) -> None:
    frames = starts(world, family, 4000)
    # by now nothing is left of what other tests have sent
    flood(world, "mallory", frames[:3000])
    assert share(world, family) == 10
    with world.without(FRAGMENTS):
        flood(world, "mallory", frames)
        assert share(world, family) == 0


# --- flows -----------------------------------------------------------------------------------------------------------

FLOWS_SENT = 9_000


def tracked(world: World) -> int:
    return int(world.lab.run("cat", "/proc/sys/net/netfilter/nf_conntrack_count").stdout)


def opened(world: World, family: int) -> tuple[int, float]:
    """Return how many flows are tracked of those that mallory, without any right, opens; and the time in seconds."""
    before, start = tracked(world), time.monotonic()
    for _ in range(2):
        with world.wire.socket(
            "niso-mallory", FAMILY[family], socket.SOCK_DGRAM, keep=False
        ) as own:
            for port in range(1, 1 + FLOWS_SENT // 2):
                send(lambda own=own, port=port: own.sendto(b"x", (CLIENT[family], port)))
    took = time.monotonic() - start
    return tracked(world) - before, took


def send(what: Callable[[], object]) -> None:
    while True:
        try:
            what()
            return
        except (BlockingIOError, ConnectionRefusedError):
            time.sleep(0.0001)


@both_families
def test_new_flows_of_one_service_are_limited(world: World, family: int) -> None:
    count, took = opened(world, family)
    assert 4900 <= count <= 5000 + 1000 * (took + 1)
    world.link["client"].look()  # or its buffer has no room for more
    assert world.honest(world.link["client"])
    with world.without(FLOWS):
        assert opened(world, family)[0] > FLOWS_SENT * 0.95
