"""Test that no packet changes after the rules have seen it: checksums that a sender leaves to a later link.

``mallory`` has NET_RAW. Each attack succeeds if its link leaves checksums to others, as the kernel makes it.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import late_sums
import pytest
from conftest import Lab
from late_sums import FROM_PORT, PROTOCOL, SOURCE, TARGET, TO_PORT, Thrower, offload
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from services import idle, inspect
from wire import Addresses, Link, Wire

HOST = {4: "192.0.2.1", 6: "2001:db8::1"}
CLIENT = {4: "192.0.2.2", 6: "2001:db8::2"}
NEIGHBOUR = {4: "192.0.2.3", 6: "2001:db8::3"}
OPEN, SHUT = 8443, 53
PUBLISHED = 8080
SOME = 40_000  # a source port that masquerading keeps
ARRIVES_SECONDS = 5
NEVER_SECONDS = 0.5  # an attack that succeeds takes some milliseconds

families = pytest.mark.parametrize("family", [4, 6])


class World:
    def __init__(self, lab: Lab, wire: Wire) -> None:
        self.lab, self.wire = lab, wire
        lab.niso("net", "create", "lan", "--subnet", "10.99.1.0/24", "--subnet", "fd00:99:1::/64")
        allow = [f"{CLIENT[4]}:{OPEN}/udp", f"[{CLIENT[6]}]:{OPEN}/udp", f"db:{OPEN}/udp"]
        raw = {"capabilities": ["NET_RAW"]}
        lab.niso(
            "activate",
            idle(lab, "api", network={"network": "lan", "ports": [f"{PUBLISHED}:80/udp"]}),
            idle(
                lab,
                "db",
                network={
                    "network": "lan",
                    "policy": {"allow_from": [f"mallory:{OPEN}/udp", f"api:{SHUT}/udp"]},
                },
            ),
            idle(
                lab,
                "mallory",
                network={"network": "lan", "policy": {"egress": {"allow": allow}}},
                isolation=raw,
            ),
        )
        self.of = {name: Addresses(lab, f"niso-{name}") for name in ("api", "db", "mallory")}
        self.gateway = Addresses(lab, None, "niso-lan")
        self.raw = Thrower(wire, "niso-mallory", "eth0")
        self.link = {name: wire.link(f"niso-{name}", "eth0") for name in ("api", "db")}
        self.link |= {name: wire.link(name, "eth0") for name in ("client", "neighbour")}
        for name in ("client", "neighbour"):  # the host knows their MACs
            lab.run("ping", "-c1", "-W2", {"client": CLIENT, "neighbour": NEIGHBOUR}[name][4])
            lab.run("ping", "-c1", "-W2", {"client": CLIENT, "neighbour": NEIGHBOUR}[name][6])
        self._numbers = itertools.count(1)
        self._seconds: float = NEVER_SECONDS

    @contextlib.contextmanager
    def undefended(self) -> Iterator[None]:
        """mallory's link leaves checksums to others."""
        offload(self.wire, "niso-mallory", "eth0", True)
        self._seconds = ARRIVES_SECONDS
        try:
            yield
        finally:
            self._seconds = NEVER_SECONDS
            offload(self.wire, "niso-mallory", "eth0", False)

    def attack(
        self,
        towards: str,
        target: str,
        place: int,
        value: int,
        written: Callable[[Any], Any] = lambda packet: packet,
        length: int = 100,
    ) -> bytes:
        """Send a datagram of mallory's with so many bytes, which becomes another late; return its mark.

        ``written`` makes of the packet what it is when the kernel writes.
        """
        number, me = next(self._numbers), self.of["mallory"]
        mark = b"late-%06d" % number
        source = me.ip(6 if ":" in target else 4)
        data = mark + bytes(length - len(mark))
        packet = late_sums.datagram(source, target, (SOME, OPEN), data, number)
        frames = late_sums.late((me.mac, towards), packet, place, value, written(packet), number)
        self.raw.send(*frames)
        return mark

    def arrived(self, link: Link, mark: bytes, place: int, value: int) -> bool:
        """Whether a frame with the mark and the value comes in."""
        end = time.monotonic() + self._seconds
        while time.monotonic() < end:
            for frame in link.look():
                if mark in frame and _word(frame, place) == value:
                    return True
            time.sleep(0.02)
        return False


def _word(frame: bytes, place: int) -> int:
    """The word at a place of a frame's packet, which may be a fragment."""
    moved = 8 if frame[12:14] == b"\x86\xdd" and frame[20] == 44 and place >= 40 else 0
    return int(struct.unpack_from("!H", frame, 14 + place + moved)[0])


def low(address: str) -> int:
    """The last 16 bits of an address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return int.from_bytes(socket.inet_pton(family, address)[-2:])


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with Lab(deadline_seconds=600) as lab, Wire(lab) as wire:
        yield World(lab, wire)


Shot = Callable[[], bool]


def prove(world: World, shoot: Shot) -> None:
    """Assert that an attack succeeds if the link leaves checksums to others, and fails as niso makes it.

    A kernel that has `ip_check_csum_start` (Linux 6.12.118) refuses by itself to fragment a packet
    with a checksum in its IPv4 header."""
    assert not offload(world.wire, "niso-mallory", "eth0")
    assert not shoot()
    with world.undefended():
        before = not_fragmented(world)
        assert shoot() or not_fragmented(world) > before
    assert not shoot()


def not_fragmented(world: World) -> int:
    """Return how many IPv4 packets the lab's host could not fragment."""
    names, counts = (
        line.split()
        for line in world.lab.run("cat", "/proc/net/snmp").stdout.splitlines()
        if line.startswith("Ip:")
    )
    return int(counts[names.index("FragFails")])


def within(world: World, family: int, place: int, value: int) -> Shot:
    """A datagram to the port of db that mallory may reach, whose word at ``place`` changes."""
    db = world.of["db"]

    def shoot() -> bool:
        mark = world.attack(db.mac, db.ip(family), place, value)
        return world.arrived(world.link["db"], mark, place, value)

    return shoot


def outward(world: World, family: int, place: int, value: int, receiver: str = "client") -> Shot:
    """A datagram to the port that mallory may reach outside, longer than what a link takes."""

    def written(packet: Any) -> Any:
        """As it leaves: from the host, one hop further."""
        packet = packet.copy()
        if family == 6:
            packet.hlim -= 1
            # masquerading takes the checksum for that of the addresses alone (inet_proto_csum_replace16)
            before, after = (socket.inet_pton(socket.AF_INET6, a) for a in (packet.src, HOST[6]))
            flipped = bytes(byte ^ 0xFF for byte in before)
            packet[UDP].chksum = late_sums.folded(
                struct.pack("!H", packet[UDP].chksum) + flipped + after
            )
        else:
            packet.ttl -= 1
            del packet.chksum
        packet.src = HOST[family]
        return type(packet)(bytes(packet))

    def shoot() -> bool:
        mark = world.attack(world.gateway.mac, CLIENT[family], place, value, written, 1700)
        return world.arrived(world.link[receiver], mark, place, value)

    return shoot


@families
def test_another_port_than_a_policy_allows(world: World, family: int) -> None:
    prove(world, within(world, family, TO_PORT[family], SHUT))


@families
def test_source_of_another_service(world: World, family: int) -> None:
    other = low(world.of["api"].ip(family))
    prove(world, within(world, family, SOURCE[family], other))


@families
def test_source_that_no_service_has(world: World, family: int) -> None:
    prove(world, within(world, family, SOURCE[family], 0x0177))


def test_another_protocol(world: World) -> None:
    """UDP becomes GRE; IPv6 has the byte in a word that a fragment's header replaces."""
    prove(world, within(world, 4, PROTOCOL[4], 64 << 8 | 47))


@families
def test_another_machine_than_egress_allows(world: World, family: int) -> None:
    prove(
        world, outward(world, family, TARGET[family], low(NEIGHBOUR[family]), receiver="neighbour")
    )


@families
def test_another_port_than_egress_allows(world: World, family: int) -> None:
    """4789: so would VXLAN leave for another host of an unencrypted cluster."""
    prove(world, outward(world, family, TO_PORT[family], 4789))


@families
def test_answer_of_a_published_port(world: World, family: int) -> None:
    prove(world, outward(world, family, FROM_PORT[family], PUBLISHED))


@families
def test_source_of_another_machine(world: World, family: int) -> None:
    prove(world, outward(world, family, SOURCE[family], low(NEIGHBOUR[family])))


def test_only_links_that_can_send_whole_frames(world: World) -> None:
    """Those of services with such a capability, of those whose namespace such a one shares, and of attachments."""
    lab, wire = world.lab, world.wire
    others = {
        name: {"isolation": {"capabilities": [capability]}}
        for name, capability in (("admin", "NET_ADMIN"), ("plain", "CHOWN"))
    }
    lab.niso(
        "activate", *(idle(lab, n, network={"network": "lan"}, **o) for n, o in others.items())
    )
    side = idle(
        lab,
        "side",
        network={"mode": "share", "share": "plain"},
        isolation={"capabilities": ["NET_RAW"]},
    )
    lab.run("ip", "netns", "add", "box")
    lab.niso("net", "attach", "box", "--netns", "/run/netns/box", "--network", "lan")
    inside = {name: f"niso-{name}" for name in ("api", "db", "mallory", "admin", "plain")}
    inside["box"] = "box"

    def leave_sums() -> set[str]:
        return {name for name, netns in inside.items() if offload(wire, netns, "eth0")}

    assert leave_sums() == {"api", "db", "plain"}
    joins = {
        n: offload(wire, None, port_of(lab, n), get=late_sums.GGRO)
        for n in ("mallory", "db", "box")
    }
    assert joins == {"mallory": True, "db": False, "box": True}
    lab.niso("activate", side)
    assert leave_sums() == {"api", "db"}
    lab.niso("remove", "side")
    assert leave_sums() == {"api", "db"}, "what ran there may have left sockets"
    lab.niso("net", "check")
    lab.niso("net", "detach", "box")
    lab.niso("remove", *others)


# what a header of the same structure can ask for: (flags, gso_type, gso_size, bytes of data)
HEADERS = {
    "sum in its place": (late_sums.NEEDS_CSUM, 0, 0, 100),
    "sum elsewhere": (late_sums.NEEDS_CSUM, 0, 0, 100),
    "segments of UDP": (late_sums.NEEDS_CSUM, late_sums.UDP_L4, 500, 3000),
    "segments of UDP, without a sum": (0, late_sums.UDP_L4, 500, 3000),
    "fragments of UDP": (late_sums.NEEDS_CSUM, late_sums.UDP_WHOLE, 504, 3000),
    "segments of TCP": (late_sums.NEEDS_CSUM, late_sums.TCPV4, 500, 3000),
    "segments of TCP, without a sum": (0, late_sums.TCPV4, 500, 3000),
    "segments of TCP with a sum elsewhere": (late_sums.NEEDS_CSUM, late_sums.TCPV4, 500, 3000),
}


def crafted(world: World, source: str, name: str, mac: str) -> bytes:
    """A frame of mallory's with such a header."""
    flags, gso, size, length = HEADERS[name]
    ip = IP(src=source, dst=world.of["db"].ip4)
    tcp = gso == late_sums.TCPV4
    head = TCP(sport=SOME, dport=OPEN) if tcp else UDP(sport=SOME, dport=OPEN)
    frame = bytes(
        Ether(src=mac, dst=world.of["db"].mac) / ip / head / Raw(b"crafted!" * (length // 8))
    )
    start = 60 if "elsewhere" in name else 34
    wanted = late_sums.vnet(flags, start, 16 if tcp else 6, gso, size, 54 if tcp else 42)
    return wanted + frame


def left_open(world: World, name: str, send: Callable[[], None]) -> list[tuple[int, int, int]]:
    """(flags, gso_type, length) of what reaches the host's end of a pair and is not complete."""
    port = Thrower(world.wire, None, name)
    with contextlib.suppress(OSError):  # the kernel refuses some headers by itself
        send()
    found: list[tuple[int, int, int]] = []
    end = time.monotonic() + 0.3
    while time.monotonic() < end and not found:
        frames = [each for each in port.seen() if b"crafted!" in each[2]]
        found = [
            (flags, gso, len(frame))
            for flags, gso, frame in frames
            if flags & late_sums.NEEDS_CSUM or gso
        ]
        time.sleep(0.02)
    return found


def port_of(lab: Lab, name: str) -> str:
    return str(inspect(lab, name)["endpoints"][0]["host_interface"])


def test_no_header_leaves_anything_open(world: World) -> None:
    """Neither a checksum nor segments are left to the host, whatever the header asks for."""
    port, me = port_of(world.lab, "mallory"), world.of["mallory"]

    def open_by() -> set[str]:
        return {
            name
            for name in HEADERS
            if left_open(
                world, port, lambda name=name: world.raw.send(crafted(world, me.ip4, name, me.mac))
            )
        }

    assert open_by() == set()
    with world.undefended():
        assert {"sum in its place", "sum elsewhere", "segments of TCP"} <= open_by()


def test_tap_in_an_attachment(world: World) -> None:
    """Its root may forward what a program writes to a tap device with the same header."""
    lab, wire = world.lab, world.wire
    lab.run("ip", "netns", "add", "router")
    lab.niso("net", "attach", "router", "--netns", "/run/netns/router", "--network", "lan")
    me = Addresses(lab, "router")
    lab.run(
        "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0", netns="router"
    )
    lab.run("sysctl", "-qw", "net.ipv4.conf.all.accept_local=1", netns="router")
    writer = lab.popen("python3", "-ISuc", late_sums.TAP, netns="router", stdin=-1)
    assert writer.stdin and writer.stdout
    mac = writer.stdout.readline().decode().strip()
    lab.run("sysctl", "-qw", "net.ipv4.conf.tap0.rp_filter=0", netns="router")
    port = port_of(lab, "router")

    def send(name: str) -> None:
        data = crafted(world, me.ip4, name, "02:00:00:00:00:77")
        at = late_sums.HEAD_SIZE
        data = data[:at] + bytes.fromhex(mac.replace(":", "")) + data[at + 6 :]
        writer.stdin.write(data.hex().encode() + b"\n")
        assert writer.stdout.readline()

    def open_by() -> set[str]:
        return {n for n in HEADERS if left_open(world, port, lambda n=n: send(n))}

    try:
        assert open_by() == set()
        offload(wire, "router", "eth0", True)
        assert "sum elsewhere" in open_by()
        checked = lab.niso("net", "check", check=False)
        assert "leaves checksums to later links" in checked.stdout
        lab.niso("net", "repair")
        assert open_by() == set()
    finally:
        writer.kill()
        lab.niso("net", "detach", "router")
