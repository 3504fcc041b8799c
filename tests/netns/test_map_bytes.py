"""Test the bytes of each flow that the map of services has, against what was sent."""

from __future__ import annotations

import json
import sys
from typing import Any

from conftest import Lab, Process
from services import filter_bridged, idle, on, package

DUAL = """
import socket, threading
server = socket.create_server(("", 80), family=socket.AF_INET6, dualstack_ipv6=True)
def echo(connection):
    connection.sendall(b"hello")
    while data := connection.recv(65536):
        connection.sendall(data)
while True:
    threading.Thread(target=echo, args=[server.accept()[0]], daemon=True).start()
"""
CLIENT = """
import socket, sys
kept = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
kept.recv(5)
for line in sys.stdin:
    kept.sendall(bytes(int(line)))
    left = int(line)
    while left:
        left -= len(kept.recv(min(left, 65536)))
    print("back", flush=True)
"""
LOOKS = """
import json, sys, niso
with niso.connect() as host, host.map() as looks:
    for line in sys.stdin:
        state = looks.read()
        print(json.dumps([[f.from_.name, f.to.name, (f.bits or 0) * state.seconds / 8] for f in state.flows]), flush=True)
"""


def test_bytes_of_each_flow(lab: Lab) -> None:
    """Of connections that are open since before, both families, tracked, switched and published."""
    filter_bridged(lab, 0)
    for i, name in enumerate(("back", "plain"), 1):
        subnets = ("--subnet", f"10.99.{i}.0/24", "--subnet", f"fd00:99:{i}::/64")
        lab.niso("net", "create", name, *subnets)
    files: dict[str, Any] = {"files": {"dual.py": DUAL}}
    serve = ("/usr/bin/python3", "-ISu", "/app/dual.py")
    ports = {"network": on("back", ports=["8080:80"]), "healthcheck": {"tcp": 80}}
    only = {"network.policy": {"allow_from": ["api:80", "192.0.2.0/24"]}}
    lab.niso(
        "activate",
        package(lab, "db", *serve, **files, **ports, **only),
        idle(lab, "api", network=on("back")),
        package(lab, "p", *serve, **files, network=on("plain"), healthcheck={"tcp": 80}),
        idle(lab, "q", network=on("plain")),
    )
    clients = []
    for netns, source, target, address, port in (
        ("niso-api", "api", "db", "10.99.1.2", 80),
        ("niso-api", "api", "db", "fd00:99:1::2", 80),
        ("client", "192.0.2.2", "db", "192.0.2.1", 8080),
        (None, "host", "db", "10.99.1.2", 80),
        (None, "host", "db", "127.0.0.1", 8080),
        ("niso-q", "q", "p", "10.99.2.2", 80),
        ("niso-q", "q", "p", "fd00:99:2::2", 80),
    ):
        words = ("/usr/bin/python3", "-ISuc", CLIENT, address, str(port))
        clients.append((source, target, lab.popen(*words, netns=netns, stdin=-1)))
    looks = lab.popen(sys.executable, "-c", LOOKS, stdin=-1)

    def after(process: Process, line: bytes) -> bytes:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(line + b"\n")
        process.stdin.flush()
        return bytes(process.stdout.readline())

    after(looks, b"")
    for source, target, client in clients:
        assert after(client, b"100000") == b"back\n", (source, target)
        rows = json.loads(after(looks, b""))
        moved = {(f, t): octets for f, t, octets in rows if octets > 1000}  # late confirmations
        assert set(moved) == {(source, target)}, moved
        # with headers, of which there are more if the machine is busy. Counted twice: 400,000
        assert 200_000 < moved[source, target] < 300_000
    assert "10.99.2.3 . 10.99.2.2" in lab.run("nft", "list", "set", "bridge niso switched4").stdout
    # nothing that says so is foreign, and a killed one leaves nothing
    assert "niso_live_" in lab.run("nft", "list", "tables").stdout
    assert lab.niso("net", "check").returncode == 0
    looks.kill()
    lab.wait_for(lambda: "niso_live_" not in lab.run("nft", "list", "tables").stdout, 5, "tables")
    for _, _, client in clients:
        client.kill()
