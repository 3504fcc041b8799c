"""niso.kernel.conntrack against the conntrack command, which makes the entries and lists what is left."""

from __future__ import annotations

import socket
import subprocess

import pytest
from kernel_world import nft, throw_away_host

from niso.kernel import conntrack


def tool(words: str) -> str:
    done = subprocess.run(["conntrack", *words.split()], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"conntrack {words}: {done.stderr}"
    return done.stdout


def add(
    source: str, destination: str, proto: str, sport: int, dport: int, *, to: str = "", status: str = "SEEN_REPLY"
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


@throw_away_host
def test_flush_addresses_takes_flows_of_either_end_before_and_after_nat() -> None:
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


@throw_away_host
def test_flush_addresses_takes_thousands() -> None:
    nft("table ip n {\n chain c { type filter hook output priority 0; ct state new accept; }\n}")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        for port in range(1000, 4000):
            one.sendto(b"", ("127.0.0.7", port))
            one.sendto(b"", ("127.0.0.8", port))
    kept = {entry for entry in left() if entry[1] >= 1000}
    assert len(kept) == 3000  # the ports, each with two entries
    assert conntrack.flush_addresses(["127.0.0.7"]) == 3000
    assert "dst=127.0.0.7" not in tool("-L")
    assert len(left()) == 3000


@pytest.mark.parametrize("proto", ["tcp", "udp", "sctp"])
@throw_away_host
def test_flush_port_takes_flows_to_that_port_and_protocol_only(proto: str) -> None:
    other = "udp" if proto == "tcp" else "tcp"
    states = {"sctp": " --state ESTABLISHED"}
    for source, used, sport, dport in (
        ("192.0.2.11", proto, 1, 8080),
        ("192.0.2.12", proto, 8080, 9),
        ("192.0.2.13", other, 1, 8080),
        ("192.0.2.14", proto, 1, 8081),
    ):
        if used == "sctp":
            tool(
                f"-I -s {source} -d 192.0.2.1 -p sctp --sport {sport} --dport {dport}{states['sctp']} --orig-vtag 1 "
                "--reply-vtag 2 --timeout 600 -u SEEN_REPLY"
            )
        else:
            add(source, "192.0.2.1", used, sport, dport)
    assert conntrack.flush_port(proto, 8080) == 1
    assert {source for source, _ in left()} == {"192.0.2.12", "192.0.2.13", "192.0.2.14"}


@throw_away_host
def test_flush_port_keeps_established_tcp_and_flows_to_other_addresses() -> None:
    add("192.0.2.11", "192.0.2.1", "tcp", 1, 8080, status="SEEN_REPLY,ASSURED")
    add("192.0.2.12", "192.0.2.1", "tcp", 1, 8080)
    add("192.0.2.13", "203.0.113.9", "tcp", 1, 8080)
    add("2001:db8::9", "2001:db8::1", "tcp", 1, 8080)
    assert conntrack.flush_port("tcp", 8080, ["192.0.2.1", "2001:db8::1"]) == 2
    assert left() == {("192.0.2.11", 8080), ("192.0.2.13", 8080)}
    add("192.0.2.11", "192.0.2.1", "udp", 1, 8080, status="SEEN_REPLY,ASSURED")
    assert conntrack.flush_port("udp", 8080) == 1


@throw_away_host
def test_host_that_tracks_nothing_has_nothing_to_flush() -> None:
    assert conntrack.flush_addresses(["10.99.1.2"]) == 0
    assert conntrack.flush_port("udp", 53) == 0
