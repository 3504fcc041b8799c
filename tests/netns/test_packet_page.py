"""Test that packets pass the chains that docs/design/packet.md names, using nft's trace.

One datagram goes each way of the page's table; each base chain of niso's that it meets, and each chain that a rule sends it to, must
stand in the table, in that order, and no other. UPDATE=1 writes the table's chains anew (run with -n 0).
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import pages
import pytest
from conftest import Lab
from services import CLIENT, HOST, idle, on, send

UPDATE = os.environ.get("UPDATE") == "1"
PAGE = pages.ROOT / "docs/design/packet.md"

# The first hook of each table that a packet can meet. The ports are those of the datagrams below.
TRACER = """
table inet tracer {
	chain in { type filter hook prerouting priority -350; udp dport { 80, 8080, 8081, 8082, 53 } meta nftrace set 1; }
	chain out { type filter hook output priority -350; udp dport { 80, 8080, 8081, 8082, 53 } meta nftrace set 1; }
}
table bridge tracer {
	chain in { type filter hook prerouting priority -350; udp dport { 80, 8080, 8081, 8082, 53 } meta nftrace set 1; }
}
"""
API, PEER, DB, WEB, LEFT, RIGHT = (
    "10.99.1.2",
    "10.99.1.3",
    "10.99.1.4",
    "10.99.2.2",
    "10.99.3.2",
    "10.99.3.3",
)


ENTERS = re.compile(r"trace id \w+ (inet|bridge) niso (\w+) packet:")
SENT_TO = re.compile(r"trace id \w+ (inet|bridge) niso .*\(verdict (?:goto|jump) (\w+)\)")
PLACE = {"inet": "", "bridge": "bridge/"}


class Way(NamedTuple):
    name: str  # the first cell of the table's row
    sender: str | None  # a network namespace, None the host's
    to: tuple[str, int]


WAYS = [
    Way("another machine → a published port", "client", (HOST, 8080)),
    Way("another machine → a service's address, by a route", "client", (API, 80)),
    Way("the host → a published port, by its own address", None, (HOST, 8080)),
    Way("the host → a published port, by 127.0.0.1", None, ("127.0.0.1", 8080)),
    Way("the host → a service's address", None, (API, 80)),
    Way("a service → a published port of another network", "niso-web", (HOST, 8080)),
    Way("a service → a published port of its own network", "niso-peer", (HOST, 8080)),
    Way("a service → its own published port", "niso-api", (HOST, 8080)),
    Way(
        "a service → another service of its network, if neither has a published port or a policy",
        "niso-left",
        (RIGHT, 80),
    ),
    Way(
        "a service → another service of its network, which has a published port or a policy",
        "niso-peer",
        (API, 80),
    ),
    Way(
        "a service → another service of its network, which has an ingress policy",
        "niso-peer",
        (DB, 80),
    ),
    Way("a service → the host", "niso-web", (HOST, 53)),
    Way("a service → another machine", "niso-web", (CLIENT, 53)),
    Way("a service with an egress policy → another machine", "niso-db", (CLIENT, 53)),
    Way("a service → a service of another network", "niso-web", (API, 80)),
]


def rows() -> dict[str, list[str]]:
    """Way -> its chains, of the table of the page: ``raw`` of table inet niso, ``bridge/forward`` of table bridge niso."""
    found = {}
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) > 1 and " → " in cells[0] and "`" in cells[1]:
            found[cells[0]] = re.findall(r"`([\w/]+)`", cells[1])
    return found


class Trace:
    """The lines of ``nft monitor trace``, which is listening once the constructor returns."""

    def __init__(self, lab: Lab) -> None:
        self.lines: list[str] = []
        self._lab = lab
        self._process = lab.popen(
            "stdbuf", "-oL", "nft", "monitor", "trace", stderr=subprocess.STDOUT
        )
        threading.Thread(target=self._read, daemon=True).start()
        deadline = time.monotonic() + 60
        while not self._seen(
            8082, 0
        ):  # it reads the whole ruleset before it listens, which is slow on a busy machine
            if time.monotonic() > deadline:
                pytest.fail(f"nft monitor does not listen: {self.lines}")
            self._probe(8082)
            time.sleep(0.1)
        self.end()  # what else was sent meanwhile is over

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self.lines.append(line.decode())
        self.lines.append("(nft monitor has ended)\n")

    def _probe(self, port: int) -> None:
        send(self._lab, None, CLIENT, port)

    def _seen(self, port: int, start: int) -> bool:
        """Whether a probe to ``port`` has passed the last of its six chains since line ``start``."""
        said = "".join(self.lines[start:])
        probes = re.findall(rf"trace id (\w+) inet niso output packet: .* udp dport {port} ", said)
        return any(
            re.search(rf"trace id {probe} inet niso kept (rule|policy accept)", said)
            for probe in probes
        )

    def end(self) -> None:
        """Send one more packet and wait for its trace, which comes behind all of those before."""
        start = len(self.lines)
        self._probe(8081)
        deadline = time.monotonic() + 30
        while not self._seen(8081, start):
            if time.monotonic() > deadline:
                pytest.fail(f"no trace of a packet of the host: {self.lines[start:]}")
            time.sleep(0.01)

    def chains(self, start: int) -> list[str]:
        """The chains of niso from line ``start`` on: base chains as the packet enters them, and those that a rule sends it to."""
        found = []
        for line in self.lines[start:]:
            if words := ENTERS.match(line) or SENT_TO.match(line):
                found.append(PLACE[words.group(1)] + words.group(2))
        return found


LAST = ["wire_out", "output", "from_host", "see_away", "postrouting", "of_host", "kept"]
"""The way of the packet that ends a trace: of the host, to another machine."""


@pytest.fixture(scope="module")
def traced() -> Iterator[tuple[Lab, Trace]]:
    with Lab() as lab:
        policy = {"allow_from": ["peer:80"], "egress": {"allow": ["0.0.0.0/0:53"]}}
        lab.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0")
        lab.niso(
            "activate",
            idle(lab, "api", network=on("backend", ports=["8080:80/udp"])),
            idle(lab, "peer", network=on("backend")),
            idle(lab, "db", network=on("backend", policy=policy)),
            idle(lab, "web", network=on("frontend")),
            idle(lab, "left", network=on("plain")),
            idle(lab, "right", network=on("plain")),
        )
        lab.run("ip", "route", "add", "10.99.1.0/24", "via", HOST, netns="client")
        for name, address in (
            ("niso-peer", API),
            ("niso-peer", DB),
            ("niso-left", RIGHT),
            ("niso-web", HOST),
        ):
            lab.run(
                "ping", "-c1", "-W2", address, netns=name, check=False
            )  # neighbours are known from here on
        lab.run("nft", "-f", "-", input=TRACER)
        yield lab, Trace(lab)


def test_the_table_has_these_ways_and_no_others() -> None:
    assert set(rows()) == {way.name for way in WAYS}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_a_packet_passes_the_chains_that_the_page_names(
    traced: tuple[Lab, Trace], way: Way
) -> None:
    lab, trace = traced
    wanted = rows()[way.name]
    start = len(trace.lines)
    send(lab, way.sender, *way.to)
    with contextlib.suppress(pytest.fail.Exception):  # what it is in its place is said below
        lab.wait_for(
            lambda: trace.chains(start)[: len(wanted)] == wanted, timeout=1 if UPDATE else 10
        )
    trace.end()  # and no further chain
    found = trace.chains(start)
    found, last = found[: -len(LAST)], found[-len(LAST) :]
    assert last == LAST
    if UPDATE:
        words = " → ".join(f"`{chain}`" for chain in found)
        PAGE.write_text(
            re.sub(
                rf"(?m)^\| {re.escape(way.name)} \| [^|]* \|",
                f"| {way.name} | {words} |",
                PAGE.read_text(),
            )
        )
    else:
        assert found == wanted
