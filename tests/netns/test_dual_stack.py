"""Test dual-stack, IPv6-only and internal networks, with packets and the kernel's own listings."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
import snapshots
from conftest import Lab, assert_whole
from damage_world import FORWARDING6
from services import CLIENT, HOST, answer, ask, idle, on, package, pings, refused, seen_source, send

HOST6, CLIENT6 = "2001:db8::1", "2001:db8::2"
SUBNET, SUBNET6 = "10.99.1.0/24", "fd00:1::/64"
API, DB, GATEWAY = "10.99.1.2", "10.99.1.3", "10.99.1.1"
API6, DB6, GATEWAY6 = "fd00:1::2", "fd00:1::3", "fd00:1::1"

TELL = """\
import socket, sys
server = socket.create_server(("::", int(sys.argv[2])), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    connection, peer = server.accept()
    connection.sendall(f"{sys.argv[1]} {peer[0].removeprefix('::ffff:')}\\n".encode())
    connection.close()
"""
"""Tells each client, of either family, its name and the address that the client seems to have."""


def tell(lab: Lab, name: str, **sections: dict[str, Any]) -> str:
    command = ("/usr/bin/python3", "-ISu", "/app/tell.py", name, "80")
    return package(lab, name, *command, files={"tell.py": TELL}, **sections)


@pytest.fixture(scope="module")
def dual() -> Iterator[Lab]:
    """A host with one network of both families: api, published on 8080, and db. The tests that share it leave it as it is."""
    with Lab(deadline_seconds=900) as lab:
        lab.niso("net", "create", "backend", "--subnet", SUBNET, "--subnet", SUBNET6)
        lab.niso(
            "activate",
            tell(lab, "api", network=on("backend", ports=["8080:80"])),
            tell(lab, "db", network=on("backend")),
        )
        for address in (API, API6, DB, DB6):
            answer(lab, address, 80)
        yield lab


# --- both families ----------------------------------------------------------------------------------------------------


def test_service_has_an_address_and_a_name_of_each_family_and_no_other(dual: Lab) -> None:
    for words in ((), ("backend",), ("api",)):
        assert dual.niso("net", "check", *words).returncode == 0
    found = dual.ip_json("address", "show", "dev", "eth0", netns="niso-api")[0]["addr_info"]
    assert {(each["local"], each["prefixlen"]) for each in found} == {(API, 24), (API6, 64)}
    assert not any("tentative" in each for each in found)
    bridge = dual.ip_json("address", "show", "dev", "niso-backend")[0]["addr_info"]
    own = {f"{each['local']}/{each['prefixlen']}" for each in bridge}
    assert own == {"10.99.1.1/24", "fd00:1::1/64", "fe80::1/64"}
    routes = dual.ip_json("-6", "route", "show", "default", netns="niso-api")
    assert [route["gateway"] for route in routes] == [GATEWAY6]
    for name in ("db", "db.niso.local"):
        listed = dual.niso("exec", "api", "--", "getent", "ahosts", name).stdout
        assert {line.split()[0] for line in listed.splitlines()} == {DB, DB6}
    reverse = dual.niso("exec", "api", "--", "getent", "hosts", DB6).stdout
    assert reverse.split()[1:] == ["db.niso.local", "db"]


def test_ports_of_the_bridge_have_no_routes_and_one_forwarding_entry_each(dual: Lab) -> None:
    """The kernel would walk those of all ports for each new one."""
    ports = {link["ifname"] for link in dual.ip_json("link", "show", "master", "niso-backend")}
    routes = {route["dev"] for route in dual.ip_json("-6", "route", "show", "table", "all")}
    assert (len(ports), ports & routes, "niso-backend" in routes) == (2, set(), True)
    listed = dual.run("bridge", "-j", "fdb", "show", "br", "niso-backend").stdout
    entries = [
        entry
        for entry in json.loads(listed)
        if entry.get("master") == "niso-backend" and "vlan" not in entry
    ]
    own = [(entry["ifname"], entry["state"]) for entry in entries if entry["ifname"] in ports]
    assert sorted(own) == sorted((port, "static") for port in ports)


def test_services_host_and_outside_reach_each_other_by_both_families(dual: Lab) -> None:
    four = (API, DB, GATEWAY, HOST, CLIENT)
    for api, db, gateway, host, client in (four, (API6, DB6, GATEWAY6, HOST6, CLIENT6)):
        assert pings(dual, db, "niso-api")
        assert ask(dual, db, 80, "niso-api") == f"db {api}"
        assert pings(dual, api) and pings(dual, gateway, "niso-api")
        assert ask(dual, api, 80) == f"api {gateway}"
        assert pings(dual, host, "niso-api")
        assert seen_source(dual, "niso-db", client) == host
        assert pings(dual, client, "niso-db")


def test_nothing_but_published_ports_can_be_reached_from_outside(dual: Lab) -> None:
    dual.run("ip", "-6", "route", "replace", SUBNET6, "via", HOST6, netns="client")
    for address in (API6, DB6):
        assert ask(dual, address, 80, "client") == ""
        assert not pings(dual, address, "client")
    assert ask(dual, HOST6, 8080, "client") == f"api {CLIENT6}"


def test_large_packets_pass_between_families_mtu_and_fragments(dual: Lab) -> None:
    for target in (DB6, CLIENT6):
        done = dual.run("ping", "-c1", "-W2", "-s", "4000", target, netns="niso-api", check=False)
        assert done.returncode == 0, done.stdout


# --- neighbours: services have no link-local address of their own ------------------------------------------------------

STATES = {"REACHABLE", "STALE", "DELAY", "PROBE", "PERMANENT"}


def neighbour(lab: Lab, address: str, link: str, netns: str | None = None) -> set[str]:
    """The states of a neighbour entry; empty where there is none."""
    return {
        state
        for entry in lab.ip_json("neigh", "show", address, "dev", link, netns=netns)
        for state in entry["state"]
    }


def test_forwarded_traffic_finds_the_service_again_after_its_neighbour_entry_is_gone(
    dual: Lab,
) -> None:
    """Nothing but the client's own packets: for them the host asks with fe80::1, and the service answers that."""
    host, service = ("niso-backend", API6, None), ("eth0", GATEWAY6, "niso-api")
    for sides in ([host], [service], [host, service]):
        for how in ("flushed", "failed"):
            for link, address, netns in sides:
                words = f"flush nud all dev {link}"
                if how == "failed":
                    words = f"replace {address} dev {link} nud failed"
                dual.run("ip", "-6", "neigh", *words.split(), netns=netns)
                assert not neighbour(dual, address, link, netns) & STATES
            assert ask(dual, HOST6, 8080, "client") == f"api {CLIENT6}"
            for link, address, netns in (host, service):
                assert neighbour(dual, address, link, netns) & STATES


SEND = """\
import socket, sys, time
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.connect((sys.argv[1], int(sys.argv[2])))
for number in range(1000):
    s.send(b"%d" % number)
    time.sleep(0.006)
"""
RECEIVE = """\
import socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.bind(("::", int(sys.argv[1])))
s.settimeout(10)
print("ready", flush=True)
got = set()
while len(got) < 1000:
    try:
        got.add(s.recv(100))
    except TimeoutError:
        break
print(len(got))
"""


def test_no_datagram_is_lost_while_neighbours_are_confirmed_anew(dual: Lab) -> None:
    """UDP both ways, each forwarded by the host, for some rounds of the kernel's probes (ndisc: 30 s and 5 s, here 0.5 and 1).

    The kernel sends no probe without a link-local address of its own: a service's entry fails, and the next datagram asks.
    """
    dual.niso("port-forward", "api", "7001:7001/udp")
    for link, netns in (("niso-backend", None), ("eth0", "niso-api")):
        times = ("base_reachable_time_ms=500", "delay_first_probe_time=1", "retrans_time_ms=200")
        dual.run(
            "sysctl", "-qw", *(f"net.ipv6.neigh.{link}.{setting}" for setting in times), netns=netns
        )
        # niso's entries are permanent, and need no probe
        dual.run("ip", "-6", "neigh", "flush", "nud", "all", "dev", link, netns=netns)
    ways = [("client", 7000, "niso-api", CLIENT6), ("niso-api", 7001, "client", HOST6)]
    receivers = [
        dual.popen("python3", "-ISc", RECEIVE, str(port), netns=to) for to, port, _, _ in ways
    ]
    for receiver in receivers:
        assert receiver.stdout and receiver.stdout.readline() == b"ready\n"
    senders = [
        dual.popen("python3", "-ISc", SEND, at, str(port), netns=by) for _, port, by, at in ways
    ]
    states = set()
    while any(sender.poll() is None for sender in senders):
        states |= neighbour(dual, GATEWAY6, "eth0", "niso-api")
        time.sleep(0.05)
    assert [receiver.communicate()[0].strip() for receiver in receivers] == ["1000", "1000"]
    assert states >= {"DELAY", "PROBE"}, "no neighbour was confirmed in that time"
    dual.niso("port-forward", "--remove", "api", "7001:7001/udp")


def test_host_confirms_a_stale_service_by_a_probe(dual: Lab) -> None:
    dual.run("ip", "neigh", "replace", API6, "dev", "niso-backend", "nud", "stale")
    send(dual, None, API6, 9)
    dual.wait_for(
        lambda: neighbour(dual, API6, "niso-backend") == {"REACHABLE"}, 15, "the probe's answer"
    )


def test_bridge_that_is_created_again_has_the_mac_that_services_know(dual: Lab) -> None:
    """Their neighbour entries live on for up to a minute."""
    mac = dual.ip_json("link", "show", "niso-backend")[0]["address"]
    dual.run("ip", "link", "del", "niso-backend")
    dual.niso("net", "repair")
    assert dual.ip_json("link", "show", "niso-backend")[0]["address"] == mac
    assert answer(dual, HOST6, 8080, "client") == f"api {CLIENT6}"
    assert pings(dual, DB6, "niso-api") and pings(dual, CLIENT6, "niso-db")
    assert_whole(dual)


# --- coming and going -------------------------------------------------------------------------------------------------


def test_deactivate_and_remove_leave_nothing(lab: Lab) -> None:
    lab.niso("net", "list")
    pings(lab, CLIENT6)  # what the kernel makes of the host's first packet stays
    before = snapshots.take(lab)
    lab.niso("net", "create", "backend", "--subnet", SUBNET, "--subnet", SUBNET6)
    made = snapshots.take(lab)
    planned = lab.niso(
        "activate", "--dry-run", tell(lab, "api", network=on("backend", ports=["8080:80"]))
    ).stdout
    assert "address add fd00:1::2/64 dev eth0" in planned and f"{FORWARDING6}=1" in planned
    for other in (before, made):
        other["files"] = snapshots.take(lab)["files"]
    assert snapshots.differences(made, snapshots.take(lab)) == []
    assert lab.niso("activate", "-v", "/tmp/packages/api").stderr == planned
    answer(lab, API6, 80)
    planned = lab.niso("deactivate", "--dry-run", "api").stdout
    assert lab.niso("deactivate", "-v", "api").stderr == planned
    after = snapshots.take(lab)
    for part in ("store", "files"):
        made[part] = after[part]
    assert snapshots.differences(made, after) == []
    lab.niso("remove", "api")
    lab.niso("net", "remove", "backend")
    after = snapshots.take(lab)
    for part in ("store", "files"):
        before[part] = after[part]
    assert snapshots.differences(before, after) == []


def test_service_that_moves_to_a_dual_stack_network_gets_ipv6(lab: Lab) -> None:
    """Its namespace stays, in which IPv6 was off for links to come."""
    lab.niso("net", "create", "backend", "--subnet", SUBNET, "--subnet", SUBNET6)
    lab.niso("net", "create", "plain", "--subnet", "10.99.2.0/24")
    lab.niso(
        "activate", tell(lab, "api", network=on("plain")), tell(lab, "db", network=on("backend"))
    )
    lab.niso("activate", tell(lab, "api", network={"networks": ["plain", "backend"]}))
    assert_whole(lab)
    assert answer(lab, "fd00:1::2", 80, "niso-api").startswith("db fd00:1::")
    lab.niso("activate", tell(lab, "api", network=on("plain")))
    assert_whole(lab)
    assert lab.ip_json("-6", "address", "show", "dev", "eth0", netns="niso-api") in ([], [{}])


def test_network_of_ipv6_alone(lab: Lab) -> None:
    lab.niso("net", "create", "six", "--subnet", "fd00:6::/64", "--gateway", "fd00:6::ffff")
    api = tell(lab, "api", network=on("six", ports=["8080:80"]))
    lab.niso("activate", api, tell(lab, "db", network=on("six")))
    assert_whole(lab)
    assert answer(lab, "fd00:6::2", 80, "niso-api") == "db fd00:6::1"
    names = lab.niso("exec", "db", "--", "getent", "ahosts", "api").stdout
    assert {line.split()[0] for line in names.splitlines()} == {"fd00:6::1"}
    assert answer(lab, HOST6, 8080, "client") == f"api {CLIENT6}"
    assert ask(lab, HOST, 8080, "client") == ""
    assert seen_source(lab, "niso-db", CLIENT6) == HOST6
    assert not pings(lab, CLIENT, "niso-db")
    said = refused(lab, "activate", idle(lab, "more", network=on("six", ip="10.99.1.9")))
    assert "network.ip" in said and "'six' has no IPv4 subnet" in said


# --- internal ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def internal() -> Iterator[Lab]:
    """The same, internal; ``web`` is published on 8081 of a network that is not."""
    with Lab(deadline_seconds=900) as lab:
        lab.niso("net", "create", "backend", "--subnet", SUBNET, "--subnet", SUBNET6, "--internal")
        lab.niso("net", "create", "frontend", "--subnet", "10.99.2.0/24", "--subnet", "fd00:2::/64")
        lab.niso(
            "activate",
            tell(lab, "api", network=on("backend", ports=["8080:80"])),
            tell(lab, "db", network=on("backend")),
            tell(lab, "web", network=on("frontend", ports=["8081:80"])),
        )
        for address in (API, API6, DB, DB6, "fd00:2::2"):
            answer(lab, address, 80)
        yield lab


WATCH = r"""
import select, socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind(("eth0", 0))
print("ready", flush=True)
while s in select.select([s, sys.stdin], [], [])[0]:
    frame, (_, _, kind, *_) = s.recvfrom(2048)
    echo, syn = (58, 128), 6
    if frame[12:14] == b"\x86\xdd":
        protocol, first = frame[20], frame[54]
    elif frame[12:14] == b"\x08\x00":
        protocol, first, echo = frame[23], frame[34], (1, 8)
    else:
        continue
    if kind != 4 and ((protocol, first) == echo or protocol == syn):
        print("echo" if protocol == echo[0] else "tcp", flush=True)
"""
"""Each echo request and TCP segment that comes to eth0, until its stdin ends."""


def test_nothing_leaves_an_internal_network(internal: Lab) -> None:
    for target in (CLIENT, CLIENT6):
        watch = internal.popen("python3", "-ISc", WATCH, netns="client", stdin=subprocess.PIPE)
        assert watch.stdout and watch.stdin and watch.stdout.readline() == b"ready\n"
        assert ask(internal, target, 9, "niso-db") == ""
        assert not pings(internal, target, "niso-db")
        assert pings(internal, target, "niso-web")  # the watch sees what comes
        watch.stdin.close()
        assert watch.stdout.read().split() == [b"echo"]


def test_internal_network_has_itself_the_host_and_its_published_ports(internal: Lab) -> None:
    four = (API, GATEWAY, DB, HOST, CLIENT)
    for own, gateway, other, host, client in (four, (API6, GATEWAY6, DB6, HOST6, CLIENT6)):
        assert ask(internal, other, 80, "niso-api") == f"db {own}"
        assert ask(internal, own, 80) == f"api {gateway}"
        assert pings(internal, gateway, "niso-api") and pings(internal, host, "niso-api")
        assert ask(internal, host, 8080, "client") == f"api {client}"


def test_internal_service_reaches_no_service_of_another_network(internal: Lab) -> None:
    """Not by the other's own address, and not by the port that it publishes: that would be a way on from the host."""
    for target, port in (("10.99.2.2", 80), ("fd00:2::2", 80), (HOST, 8081), (HOST6, 8081)):
        assert ask(internal, target, port, "niso-db") == "", target
    for target in (API, API6):
        assert ask(internal, target, 80, "niso-web") == ""
    assert_whole(internal)
