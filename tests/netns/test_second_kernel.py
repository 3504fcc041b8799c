"""Test what a distribution's kernel has and a small kernel may lack: SCTP, DCCP and UDP-Lite sockets.

`./dev test-uml` provides such a kernel. Elsewhere a test is skipped, and names what is missing.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from conftest import Lab
from services import CLIENT, HOST, address, idle, on, package

SPEAKER = """\
import socket, sys, threading
server = socket.socket(socket.AF_INET, int(sys.argv[1]), int(sys.argv[2]))
if sys.argv[2] == "33":
    server.setsockopt(269, 2, b"NISO")
server.bind(("", int(sys.argv[4])))
if sys.argv[1] == "2":
    print("ready", flush=True)
    while True:
        data, peer = server.recvfrom(2000)
        server.sendto(f"{sys.argv[3]} {peer[0]} {peer[1]} {data.decode()}".encode(), peer)
server.listen(8)
print("ready", flush=True)
def serve(one, peer):
    while data := one.recv(2000):
        one.send(f"{sys.argv[3]} {peer[0]} {peer[1]} {data.decode()}".encode())
while True:
    threading.Thread(target=serve, args=server.accept()).start()
"""
"""Answers ``NAME PEER PORT DATA``. Arguments: socket type, protocol, name, port. 269 is SOL_DCCP, and 2
DCCP_SOCKOPT_SERVICE."""
CALLER = """\
import socket, sys
one = socket.socket(socket.AF_INET, int(sys.argv[1]), int(sys.argv[2]))
if sys.argv[2] == "33":
    one.setsockopt(269, 2, b"NISO")
one.settimeout(float(sys.argv[5]))
try:
    one.connect((sys.argv[3], int(sys.argv[4])))
    for word in sys.stdin if len(sys.argv) > 6 else ["once"]:
        one.send(word.strip().encode())
        print(one.recv(2000).decode(), flush=True)
except OSError as error:
    print("failed:", error, flush=True)
"""
KINDS = {"sctp": (socket.SOCK_STREAM, 132), "udplite": (socket.SOCK_DGRAM, 136), "dccp": (6, 33)}
"""The type and the protocol of a socket."""


def needs(proto: str) -> tuple[str, str]:
    """Return the type and the protocol of a socket as words. Skips the test if the kernel has none."""
    kind, number = KINDS[proto]
    try:
        socket.socket(socket.AF_INET, kind, number).close()
    except OSError as error:
        pytest.skip(f"this kernel has no {proto.upper()} sockets: {error.strerror}")
    return str(int(kind)), str(number)


def call(
    lab: Lab, words: tuple[str, str], to: str, port: int, netns: str | None, seconds: float = 3
) -> str:
    """Return the answer of a `SPEAKER`, or ``failed: ...``."""
    done = lab.run("python3", "-ISc", CALLER, *words, to, str(port), str(seconds), netns=netns)
    return str(done.stdout).strip()


def answered(lab: Lab, words: tuple[str, str], to: str, port: int, netns: str | None) -> str:
    """Return the answer of a `SPEAKER`, which may still be starting."""
    what = f"an answer of {to}:{port} to {netns}"

    def one() -> str:
        answer = call(lab, words, to, port, netns)
        return "" if answer.startswith("failed") else answer

    return str(lab.wait_for(one, 10, what))


@pytest.fixture
def town(lab: Lab) -> Iterator[Lab]:
    """Two networks."""
    lab.niso("net", "create", "backend", "--subnet", "10.99.1.0/24")
    lab.niso("net", "create", "frontend", "--subnet", "10.99.2.0/24")
    yield lab


def test_sctp_sockets_follow_ports_and_policies(town: Lab) -> None:
    """The kernel's own SCTP has associations with heartbeats, tags and checksums that NAT must keep."""
    words = needs("sctp")

    def db(port: int, *allowed: str) -> str:
        keys = on("backend", ports=[f"{port}:80/sctp"], policy={"allow_from": list(allowed)})
        return package(town, "db", "/usr/bin/python3", "-ISuc", SPEAKER, *words, "db", "80", network=keys)  # fmt: skip

    everyone = ("api:80/sctp", "192.0.2.0/24:80/sctp")
    town.niso("activate", db(8080, *everyone))
    # a socket takes the interval of its namespace when it is opened
    town.run("sysctl", "-qw", "net.sctp.hb_interval=500", netns="niso-db")
    town.niso("restart", "db")
    assert town.run("sysctl", "-n", "net.sctp.hb_interval", netns="niso-db").stdout == "500\n"
    others = (idle(town, "api", network=on("backend")), idle(town, "web", network=on("frontend")))
    town.niso("activate", *others)
    here, api = address(town, "db"), address(town, "api")
    assert answered(town, words, here, 80, "niso-api").startswith(f"db {api} ")
    assert answered(town, words, HOST, 8080, "client").startswith(f"db {CLIENT} ")
    assert "failed" in call(town, words, here, 80, "niso-web")
    assert "failed" in call(town, words, here, 81, "niso-api")
    # an association that is open when the port moves and when a policy narrows
    held = [
        town.popen("python3", "-ISuc", CALLER, *words, *to, "5", "lines", netns=netns, stdin=-1)
        for to, netns in (((here, "80"), "niso-api"), ((HOST, "8080"), "client"))
    ]

    def say(which: int, word: str) -> str:
        process = held[which]
        assert process.stdin and process.stdout
        process.stdin.write(word.encode() + b"\n")
        process.stdin.flush()
        return str(process.stdout.readline().decode().strip())

    assert [say(which, "one").split()[-1] for which in (0, 1)] == ["one", "one"]
    town.niso("activate", db(8081, *everyone))
    assert answered(town, words, HOST, 8081, "client").startswith(f"db {CLIENT} ")
    assert "failed" in call(town, words, HOST, 8080, "client")
    assert say(0, "two").endswith("two")
    town.niso("activate", db(8081, everyone[1]))
    town.run("sleep", "5")  # heartbeats of db, which may connect to api, would begin the flow again
    assert say(0, "three") == "failed: timed out", "the policy no longer allows api"
    assert "failed" in call(town, words, here, 80, "niso-api")
    assert answered(town, words, HOST, 8081, "client").startswith(f"db {CLIENT} ")
    town.niso("net", "check")


@pytest.mark.parametrize("proto", ["sctp", "udplite", "dccp"])
def test_protocol_goes_out_through_masquerading(town: Lab, proto: str) -> None:
    """The outside sees the host's address, and a port that neither programs nor published ports have."""
    words = needs(proto)
    if proto == "udplite":
        # Linux takes each for invalid: its checksums are verified as if the protocol were UDP
        # (udplite_error, net/netfilter/nf_conntrack_proto_udp.c).
        town.run("sysctl", "-qw", "net.netfilter.nf_conntrack_checksum=0")
    server = town.popen("python3", "-ISuc", SPEAKER, *words, "out", "90", netns="client")
    assert server.stdout and server.stdout.readline() == b"ready\n"
    town.niso(
        "activate",
        idle(town, "api", network=on("backend")),
        idle(town, "web", network=on("frontend", policy={"egress": {"allow": ["api"]}})),
    )
    name, source, port, _ = answered(town, words, CLIENT, 90, "niso-api").split()
    assert (name, source) == ("out", HOST)
    assert 32_768 <= int(port) < 61_000
    assert "failed" in call(town, words, CLIENT, 90, "niso-web")
    # what comes unasked reaches nobody
    unasked = package(town, "api", "/usr/bin/python3", "-ISuc", SPEAKER, *words, "api", "80", network=on("backend"))  # fmt: skip
    town.niso("activate", unasked)
    here = address(town, "api")
    assert answered(town, words, here, 80, None).startswith("api ")
    town.client("ip", "route", "add", "10.99.0.0/16", "via", HOST)
    assert "failed" in call(town, words, here, 80, "client")
