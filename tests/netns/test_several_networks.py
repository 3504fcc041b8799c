"""Test a service on several networks: its ports answer each client through their common network."""

from __future__ import annotations

import json

from conftest import Lab
from services import CLIENT, HOST, address, filter_bridged, idle, on, pings

ONE, TWO, THREE = "10.99.1.0/24", "10.99.2.0/24", "10.99.3.0/24"

SERVER = """\
import socket, threading
tcp = socket.create_server(("", 80))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("", 80))
def datagrams():
    while True:
        _, peer = udp.recvfrom(100)
        udp.sendto(peer[0].encode(), peer)
threading.Thread(target=datagrams, daemon=True).start()
print("ready", flush=True)
while True:
    connection, peer = tcp.accept()
    connection.sendall(peer[0].encode())
    connection.close()
"""

CLIENTS = """\
import json, socket, sys
answers = {}
for kind, address, port in json.loads(sys.argv[1]):
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    s.settimeout(1)
    try:
        s.connect((address, port))
        if kind == "udp":
            s.send(b"x")
        answers[f"{kind} {address}:{port}"] = s.recv(100).decode()
    except OSError as error:
        answers[f"{kind} {address}:{port}"] = str(error)
    s.close()
print(json.dumps(answers))
"""


def asked(lab: Lab, netns: str | None, ways: list[tuple[str, str, int]]) -> dict[str, str]:
    """Which source address the server saw of each way, as somebody in ``netns`` was told by it."""
    done = lab.run("/usr/bin/python3", "-ISc", CLIENTS, json.dumps(ways), netns=netns, timeout=30)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_published_port_of_a_service_on_several_networks_answers_whoever_asks(lab: Lab) -> None:
    for name, subnet in (("one", ONE), ("two", TWO), ("three", THREE)):
        lab.niso("net", "create", name, "--subnet", subnet)
    ports = ["8080:80", "5353:80/udp", f"{HOST}:7070:80"]
    lab.niso(
        "activate",
        idle(lab, "both", network={"networks": ["two", "one"], "ports": ports}),
        *(idle(lab, f"c{n}", network=on(name)) for n, name in enumerate(("one", "two", "three"))),
        idle(lab, "mixed", network={"networks": ["one", "two"]}),
    )
    server = lab.popen("/usr/bin/python3", "-ISc", SERVER, netns="niso-both")
    assert server.stdout and server.stdout.readline() == b"ready\n"
    gateways = ("10.99.1.1", "10.99.2.1")
    ways = [
        (kind, host, port)
        for kind, port in (("tcp", 8080), ("udp", 5353))
        for host in (HOST, *gateways)
    ]
    ways.append(("tcp", HOST, 7070))

    for bridged in (0, 1):
        filter_bridged(lab, bridged)
        every_way_is_answered(lab, ways, gateways)
    for port in (8080, 7070):
        lab.niso("deactivate", "both")
        found = asked(lab, "niso-c0", [("tcp", HOST, port)])
        assert found[f"tcp {HOST}:{port}"] != address(lab, "c0")
    elements = [e for t in lab.nft_json() if "map" in t for e in t["map"].get("elem", ())]
    assert not [element for element in elements if "'both'" in str(element)]


def every_way_is_answered(
    lab: Lab, ways: list[tuple[str, str, int]], gateways: tuple[str, ...]
) -> None:
    outside = asked(lab, "client", [way for way in ways if way[1] == HOST])
    assert set(outside.values()) == {CLIENT}, outside
    for name in ("c0", "c1", "c2"):
        seen = asked(lab, f"niso-{name}", ways)
        assert set(seen.values()) == {address(lab, name)}, (name, seen)
    mixed = asked(lab, "niso-mixed", ways)
    own = [
        found["local"]
        for link in lab.ip_json("-4", "address", netns="niso-mixed")
        for found in link["addr_info"]
    ]
    assert set(mixed.values()) <= set(own), mixed
    # a service must not see itself, nor the host by an address that it would answer by another link
    itself = asked(lab, "niso-both", ways)
    assert set(itself.values()) <= set(gateways), itself
    host = asked(lab, None, ways)
    assert set(host.values()) <= {HOST, *gateways}, host
    assert asked(lab, None, [("tcp", "127.0.0.1", 8080)]) == {"tcp 127.0.0.1:8080": "10.99.2.1"}
    assert lab.niso("net", "check").returncode == 0


def test_default_route_and_ports_never_lead_into_an_internal_network_beside_another(
    lab: Lab,
) -> None:
    for name, subnet in (("one", ONE), ("two", TWO)):
        lab.niso("net", "create", name, "--subnet", subnet, "--internal")
    lab.niso("net", "create", "three", "--subnet", THREE)
    outer = {"networks": ["two", "three", "one"], "ports": ["8080:80"]}
    lab.niso(
        "activate",
        idle(lab, "both", network=outer),
        idle(lab, "inner", network={"networks": ["two", "one"], "ports": ["9090:80"]}),
        *(idle(lab, name, network=on(name)) for name in ("two", "three")),
    )
    assert pings(lab, CLIENT, "niso-both") and not pings(lab, CLIENT, "niso-inner")
    for name in ("both", "inner"):
        server = lab.popen("/usr/bin/python3", "-ISc", SERVER, netns=f"niso-{name}")
        assert server.stdout and server.stdout.readline() == b"ready\n"
    ways = [("tcp", HOST, 8080), ("tcp", HOST, 9090)]
    # from outside, from a neighbour on each network, and from a service that is only on two
    assert set(asked(lab, "client", ways).values()) == {CLIENT}
    for name in ("two", "three"):
        seen = asked(lab, f"niso-{name}", ways[:1])
        assert set(seen.values()) == {address(lab, name)}, (name, seen)
    assert set(asked(lab, "niso-two", ways).values()) == {address(lab, "two")}
    assert "pass" in lab.niso("net", "explain", "both", CLIENT, "--prove").stdout
    lab.niso("net", "check")
    # the only other one is left, and taken again, while the process runs
    for networks, gets_out in ((["two", "one"], False), (["one", "three"], True)):
        lab.niso("activate", idle(lab, "both", network=outer | {"networks": networks}))
        assert pings(lab, CLIENT, "niso-both") == gets_out
        lab.niso("net", "check")
