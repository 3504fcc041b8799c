"""niso.kernel.conntrack against the conntrack command, which makes the entries and lists what is left."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from kernel_world import nft, sh, throw_away_host

from niso.kernel import conntrack, netlink

# What a walk over the table is said to cost: with 0 the kernel always filters, with 10**9 one dump gives all.
WALKS = [0, 10**9]
UNASSIGNED = 253  # an IP protocol for experiments (RFC 3692)


def tool(words: str) -> str:
    done = subprocess.run(
        ["conntrack", *words.split()], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, f"conntrack {words}: {done.stderr}"
    return done.stdout


def add(
    source: str,
    destination: str,
    proto: str,
    sport: int,
    dport: int,
    *,
    to: str = "",
    status: str = "SEEN_REPLY",
) -> None:
    """An entry; with ``to`` one that was DNATed there."""
    state = "--state ESTABLISHED " if proto == "tcp" else ""
    nat = f"-g {to} " if to else ""
    tool(
        f"-I -s {source} -d {destination} -p {proto} --sport {sport} --dport {dport} {state}{nat}"
        f"--timeout 600 -u {status}"
    )


def left() -> set[tuple[str, int]]:
    """(original source, original destination port) of all entries."""
    found = set()
    for family in ("ipv4", "ipv6"):
        for line in tool(f"-L -f {family}").splitlines():
            fields = [word.partition("=") for word in line.split()]
            values: dict[str, str] = {}
            for key, _, value in fields:
                values.setdefault(key, value)
            found.add((values["src"], int(values["dport"])))
    return found


@pytest.mark.parametrize(("walk", "own"), [(0, 10**9), (10**9, 10**9), (0, -(10**9))])
@throw_away_host
def test_flush_addresses_takes_flows_of_either_end_before_and_after_nat(
    walk: int, own: int
) -> None:
    """Also where the kernel is asked to delete by itself."""
    conntrack._WALK, conntrack._OWN_WALK = walk, own
    nft(
        "table ip n {\n chain c { type nat hook prerouting priority -100; }\n}"
    )  # NAT of inserted entries needs the module
    add("10.99.1.2", "192.0.2.9", "tcp", 1, 101)
    add("192.0.2.9", "10.99.1.2", "udp", 2, 102)
    add("192.0.2.9", "192.0.2.1", "tcp", 3, 103, to="10.99.1.2")
    add("192.0.2.9", "192.0.2.1", "tcp", 4, 104, to="10.99.1.22")
    add("10.99.1.22", "192.0.2.9", "udp", 5, 105)
    add("fd00:99::2", "2001:db8::9", "udp", 6, 106)
    add("2001:db8::9", "fd00:99::2", "tcp", 7, 107)
    add("fd00:99::22", "2001:db8::9", "tcp", 8, 108)
    others = {("192.0.2.9", 104), ("10.99.1.22", 105), ("fd00:99::22", 108)}
    assert len(left()) == 8
    assert conntrack.flush_addresses(["10.99.1.2", "fd00:99::2"]) == 5
    assert left() == others
    assert conntrack.flush_addresses(["10.99.1.2", "fd00:99::2"]) == 0
    assert conntrack.flush_addresses([]) == 0
    assert left() == others


@pytest.mark.parametrize("own", [10**9, -(10**9)])
@throw_away_host
def test_flush_addresses_takes_hundreds_of_addresses_at_once(own: int) -> None:
    """The kernel answers each deletion, and its answers must fit the socket."""
    conntrack._WALK, conntrack._OWN_WALK = 0, own
    nft("table ip n {\n chain c { type filter hook output priority 0; ct state new accept; }\n}")
    addresses = [f"127.1.{i // 250}.{i % 250 + 1}" for i in range(400)]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        for address in [*addresses, "127.0.0.8"]:
            for port in range(1000, 1003):
                one.sendto(b"", (address, port))
    assert conntrack.flush_addresses(addresses) == 1200
    assert "dst=127.1." not in tool("-L")
    assert len(left()) == 3


@pytest.mark.parametrize("walk", WALKS)
@throw_away_host
def test_flush_addresses_takes_all_protocols_of_both_families(walk: int) -> None:
    conntrack._WALK = walk
    nft("table inet n {\n chain c { type filter hook output priority 0; ct state new accept; }\n}")
    addresses = ("10.99.1.2", "10.99.1.3", "fd00:99::2", "fd00:99::3")
    for address in addresses:
        sh(f"ip address add {address}/{128 if ':' in address else 32} dev lo nodad")
        sh(f"ping -c 1 -w 10 -I {address} {address}")
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        for kind, number in (
            (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
            (socket.SOCK_RAW, UNASSIGNED),
        ):
            with socket.socket(family, kind, number) as one:
                one.bind((address, 0))
                one.sendto(b"data", (address, 9 if kind == socket.SOCK_DGRAM else 0))

    def shown() -> list[tuple[str, str]]:
        listed = [
            line.split()
            for family in ("ipv4", "ipv6")
            for line in tool(f"-L -f {family}").splitlines()
        ]
        fields = [
            (line[0], next(word for word in line if word.startswith("src="))) for line in listed
        ]
        return sorted(
            {(proto, source.removeprefix("src=")) for proto, source in fields if proto != "tcp"}
        )

    both = {
        address: {proto for proto, source in shown() if source == address} for address in addresses
    }
    assert both["10.99.1.2"] == both["10.99.1.3"] == {"icmp", "udp", "unknown"}
    assert both["fd00:99::2"] == both["fd00:99::3"] == {"icmpv6", "udp", "unknown"}
    assert conntrack.flush_addresses(["10.99.1.2", "fd00:99::2"]) >= 6
    assert {source for _, source in shown()} == {"10.99.1.3", "fd00:99::3"}
    assert len(shown()) == 6


def add_sctp(source: str, sport: int, dport: int) -> None:
    tool(
        f"-I -s {source} -d 192.0.2.1 -p sctp --sport {sport} --dport {dport} --state ESTABLISHED --orig-vtag 1 "
        "--reply-vtag 2 --timeout 600 -u SEEN_REPLY"
    )


@pytest.mark.parametrize(
    ("proto", "walk"), [("tcp", 0), *((proto, 10**9) for proto in ("tcp", "udp", "sctp"))]
)
@throw_away_host
def test_flush_ports_takes_flows_to_those_ports_and_that_protocol_only(
    proto: str, walk: int
) -> None:
    conntrack._WALK = walk
    flows = [
        ("192.0.2.11", proto, 1, 8080),
        ("192.0.2.12", proto, 8080, 9),
        ("192.0.2.13", "udp" if proto == "tcp" else "tcp", 1, 8080),
        ("192.0.2.14", proto, 1, 8081),
        ("192.0.2.15", proto, 1, 8079),
        *((f"192.0.2.{number}", proto, 1, 8000 + number) for number in range(20, 32)),
    ]

    def fill() -> None:
        for source, used, sport, dport in flows:
            if used == "sctp":
                add_sctp(source, sport, dport)
            else:
                add(source, "192.0.2.1", used, sport, dport, status="UNSET")

    fill()
    everything = left()
    assert len(everything) == len(flows)

    def here() -> list[str]:
        return ["192.0.2.1"]

    assert conntrack.flush_ports([(proto, 8080, 8080)], here) == 1
    assert left() == everything - {("192.0.2.11", 8080)}
    assert conntrack.flush_ports([(proto, 8081, 8081)], here) == 1
    assert left() == everything - {("192.0.2.11", 8080), ("192.0.2.14", 8081)}
    # a range, and a port of another protocol that nothing was sent to
    assert conntrack.flush_ports([(proto, 8022, 8029), ("udp", 7, 7)], here) == 8
    gone = {
        ("192.0.2.11", 8080),
        ("192.0.2.14", 8081),
        *((f"192.0.2.{n}", 8000 + n) for n in range(22, 30)),
    }
    assert left() == everything - gone
    several = [(proto, port, port) for port in (8020, 8021, 8030, 8031, 8079, 8079, 9999)]
    assert conntrack.flush_ports(several, here) == 5
    assert {source for source, _ in left()} == {"192.0.2.12", "192.0.2.13"}
    # what the host has sent from the port is answered to it
    assert conntrack.flush_ports([(proto, 8080, 8080)], lambda: ["192.0.2.12"]) == 1
    assert conntrack.flush_ports([("tcp", 1, 65535), ("udp", 0, 65535), ("sctp", 1, 65535)]) == 1
    assert left() == set()


@pytest.mark.parametrize("walk", WALKS)
@throw_away_host
def test_flush_ports_takes_what_was_sent_to_these_addresses_of_both_families(walk: int) -> None:
    conntrack._WALK = walk
    destinations = (
        "192.0.2.1",
        "203.0.113.9",
        "127.0.0.1",
        "127.9.9.9",
        "128.0.0.1",
        "2001:db8::1",
        "2001:db8:1::1",
        "::1",
    )

    def fill() -> set[str]:
        for number, destination in enumerate(destinations):
            add(
                "::9" if ":" in destination else "10.0.0.9", destination, "udp", 1000 + number, 8080
            )
        return set(destinations)

    def kept() -> set[str]:
        lines = [
            line for family in ("ipv4", "ipv6") for line in tool(f"-L -f {family}").splitlines()
        ]
        return {
            next(word for word in line.split() if word.startswith("dst="))[4:] for line in lines
        }

    port = [("udp", 8080, 8080)]
    everything = fill()
    assert kept() == everything
    assert conntrack.flush_ports(port, lambda: ["192.0.2.1", "2001:db8::1"]) == 2
    assert kept() == everything - {"192.0.2.1", "2001:db8::1"}
    assert conntrack.flush_ports(port, lambda: ["127.0.0.0/8", "198.51.100.1"]) == 2
    assert kept() == {"203.0.113.9", "128.0.0.1", "2001:db8:1::1", "::1"}
    assert conntrack.flush_ports(port, lambda: ["2001:db8::/32", "128.0.0.1/32"]) == 2
    assert kept() == {"203.0.113.9", "::1"}
    assert conntrack.flush_ports(port, lambda: ["0.0.0.0/0"]) == 1
    assert conntrack.flush_ports(port, lambda: []) == 0
    assert kept() == {"::1"}
    assert conntrack.flush_ports(port) == 1
    assert kept() == set()


@pytest.mark.parametrize("walk", WALKS)
@throw_away_host
def test_flush_ports_keeps_tcp_that_has_seen_a_reply_and_ends_all_else(walk: int) -> None:
    conntrack._WALK = walk
    for source, state, status in (
        ("192.0.2.11", "ESTABLISHED", "SEEN_REPLY,ASSURED"),
        ("192.0.2.12", "SYN_RECV", "SEEN_REPLY"),
        ("192.0.2.13", "SYN_SENT", "UNSET"),
    ):
        tool(
            f"-I -s {source} -d 192.0.2.1 -p tcp --sport 1 --dport 8080 --state {state} --timeout 600 -u {status}"
        )
    add("192.0.2.14", "192.0.2.1", "udp", 1, 8080, status="SEEN_REPLY,ASSURED")
    add("192.0.2.15", "192.0.2.1", "udp", 1, 8080, status="UNSET")
    add_sctp("192.0.2.16", 1, 8080)
    before = left()
    ports = [("tcp", 8080, 8080), ("udp", 8080, 8080), ("sctp", 8080, 8080)]
    assert conntrack.flush_ports(ports, lambda: ["192.0.2.1"]) == 4
    assert left() == {("192.0.2.11", 8080), ("192.0.2.12", 8080)} < before


@throw_away_host
def test_flush_ports_leaves_a_living_connection_and_ends_an_unanswered_one() -> None:
    nft(
        "table inet n {\n chain c { type filter hook output priority 0; ct state invalid drop; ct state new accept; }\n}"
    )
    sh("ip link add b0 type bridge")
    sh("ip address add 192.0.2.1/24 dev b0")
    sh("ip link set b0 up")
    with (
        socket.create_server(("127.0.0.1", 8080)) as server,
        socket.create_connection(("127.0.0.1", 8080)) as client,
        server.accept()[0] as served,
        socket.socket() as waiting,
    ):
        waiting.setblocking(False)
        assert waiting.connect_ex(("192.0.2.99", 8080)) == errno.EINPROGRESS  # nobody answers
        assert "SYN_SENT" in tool("-L -p tcp -d 192.0.2.99")
        assert conntrack.flush_ports([("tcp", 8080, 8080)]) == 1
        assert "ESTABLISHED" in tool("-L -p tcp -d 127.0.0.1")
        client.sendall(b"still there")
        assert served.recv(100) == b"still there"


@pytest.mark.parametrize("bound", ["_PASSES", "_SETTLED"])
@throw_away_host
def test_flush_ports_ends_though_clients_send_all_the_time(bound: str) -> None:
    setattr(conntrack, bound, 10**9)  # so the other one must end it
    nft("table inet n {\n chain c { type filter hook output priority 0; ct state new accept; }\n}")
    code = (
        "import socket\n"
        "while True:\n"
        " with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:\n"
        "  one.sendto(b'', ('127.0.0.7', 8080))\n"
    )
    sender = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 20
        while not left() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert conntrack.flush_ports([("udp", 8080, 8080)]) >= 1
        assert sender.poll() is None
    finally:
        sender.kill()
        sender.wait()
    conntrack.flush_ports([("udp", 8080, 8080)])
    assert left() == set()


@pytest.mark.parametrize("walk", WALKS)
@throw_away_host
def test_flush_takes_thousands(walk: int) -> None:
    conntrack._WALK = walk
    nft("table inet n {\n chain c { type filter hook output priority 0; ct state new accept; }\n}")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        for port in range(1000, 4000):
            one.sendto(b"", ("127.0.0.7", port))
            one.sendto(b"", ("127.0.0.8", port))
    assert len({entry for entry in left() if entry[1] >= 1000}) == 3000  # two entries each
    assert conntrack.flush_addresses(["127.0.0.8"]) == 3000
    assert "dst=127.0.0.8" not in tool("-L") and len(left()) == 3000
    assert conntrack.flush_ports([("udp", 2000, 2999)], lambda: ["127.0.0.0/8"]) == 1000
    assert {port for _, port in left()} == {*range(1000, 2000), *range(3000, 4000)}
    assert conntrack.flush_ports([("udp", 1500, 1500), ("udp", 3500, 3500), ("tcp", 1, 65535)]) == 2
    assert {port for _, port in left()} == {*range(1000, 2000), *range(3000, 4000)} - {1500, 3500}


@throw_away_host
def test_flush_takes_flows_of_other_zones_too() -> None:
    tool("-I -s 192.0.2.11 -d 192.0.2.1 -p udp --sport 1 --dport 8080 --timeout 600 -u UNSET -w 7")
    tool(
        "-I -s 192.0.2.11 -d 192.0.2.1 -p udp --sport 1 --dport 8080 --timeout 600 -u UNSET --orig-zone 8"
    )
    assert len(tool("-L").splitlines()) == 2
    assert conntrack.flush_ports([("udp", 8080, 8080)]) == 2
    assert left() == set()


@throw_away_host
def test_flush_walks_the_table_no_more_often_than_it_must() -> None:
    walks = []
    real = netlink.Netlink.dump

    def dump(self: netlink.Netlink, *arguments: Any) -> list[Any]:
        walks.append(arguments[2])
        return real(self, *arguments)

    netlink.Netlink.dump = dump  # type: ignore[method-assign, assignment]  # in this test's own process

    def walked(call: Callable[[], int]) -> tuple[int, int]:
        walks.clear()
        return call(), len(walks)

    many = [("udp", 1, 1000), ("tcp", 80, 80), ("sctp", 5, 5)]
    assert walked(lambda: conntrack.flush_ports(many)) == (0, 0)  # nothing is tracked
    assert walked(lambda: conntrack.flush_addresses(["10.99.1.2"])) == (0, 0)
    add("192.0.2.11", "192.0.2.1", "udp", 40_000, 8080)
    assert walked(lambda: conntrack.flush_ports(many)) == (0, 1)  # few entries: all at once
    assert walked(lambda: conntrack.flush_addresses(["10.99.1.2", "10.99.1.3", "fd00::2"])) == (
        0,
        1,
    )
    assert walked(lambda: conntrack.flush_addresses(["10.99.1.2"])) == (0, 0)  # the kernel's own
    conntrack._WALK = 0  # many entries: what the kernel chooses
    assert walked(lambda: conntrack.flush_ports(many)) == (0, 12)
    assert walked(lambda: conntrack.flush_ports([("udp", 80, 81)])) == (0, 8)
    assert walked(lambda: conntrack.flush_addresses(["10.99.1.2", "fd00::2", "fd00::3"])) == (0, 5)
    assert walked(lambda: conntrack.flush_ports([("udp", 8080, 8080)])) == (
        1,
        8,
    )  # and a second time that finds none


@throw_away_host
def test_host_that_tracks_nothing_has_nothing_to_flush() -> None:
    assert conntrack.flush_addresses(["10.99.1.2", "fd00::2"]) == 0
    assert conntrack.flush_ports([("udp", 53, 53), ("tcp", 1, 65535)], lambda: ["127.0.0.0/8"]) == 0
    assert conntrack.flush_ports([]) == 0
