"""Test published TCP ports with packets from clients, the host and services.

Every way in, and what no packet reaches: test_ways_in.py, test_attacks.py, test_attacks_inside.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conftest import Lab
from services import (
    BRIDGE_CALLS,
    CLIENT,
    HOST,
    NEIGHBOUR,
    address,
    answer,
    ask,
    echo,
    filter_bridged,
    idle,
    on,
    pings,
    seen_source,
)

BACKEND, FRONTEND = "10.99.1.0/24", "10.99.2.0/24"


@pytest.fixture(scope="module")
def shop() -> Iterator[Lab]:
    """A host with two networks: api (published on 8080) and db on backend, web (published on 8081) on frontend.

    The tests that share it only send packets.
    """
    with Lab(deadline_seconds=900) as lab:
        lab.niso("net", "create", "backend", "--subnet", BACKEND)
        lab.niso("net", "create", "frontend", "--subnet", FRONTEND)
        raw = {"isolation": {"capabilities": ["NET_RAW"]}}
        lab.niso(
            "activate",
            echo(lab, "api", network=on("backend", ports=["8080:80"])),
            echo(lab, "db", network=on("backend"), **raw),
            echo(lab, "web", network=on("frontend", ports=["8081:80"])),
        )
        for name in ("api", "db", "web"):
            answer(lab, address(lab, name), 80)
        yield lab


# --- ways in ----------------------------------------------------------------------------------------------------------


@pytest.mark.rootless
@pytest.mark.parametrize("who", ["client", "neighbour"])
def test_other_machine_reaches_a_published_port_and_the_service_sees_its_address(
    shop: Lab, who: str
) -> None:
    assert ask(shop, HOST, 8080, who) == f"api {CLIENT if who == 'client' else NEIGHBOUR}"


@pytest.mark.rootless
def test_host_reaches_a_published_port_by_its_own_addresses_and_by_loopback(shop: Lab) -> None:
    assert ask(shop, HOST, 8080) == f"api {HOST}"
    assert ask(shop, "10.99.1.1", 8080) == "api 10.99.1.1"
    assert ask(shop, "127.0.0.1", 8080) == "api 10.99.1.1"  # a service cannot answer to 127.0.0.1
    assert ask(shop, "127.0.0.77", 8080) == "api 10.99.1.1"


@pytest.mark.rootless
def test_host_reaches_every_service_by_its_address(shop: Lab) -> None:
    for name in ("api", "db", "web"):
        assert ask(shop, address(shop, name), 80).startswith(f"{name} 10.99.")


@pytest.mark.rootless
def test_service_reaches_a_published_port_by_the_hosts_address(shop: Lab) -> None:
    assert ask(shop, HOST, 8081, "niso-api") == f"web {address(shop, 'api')}"
    assert ask(shop, HOST, 8080, "niso-db") == f"api {address(shop, 'db')}"


@pytest.mark.rootless
def test_services_of_a_network_reach_each_other_by_name_and_address(shop: Lab) -> None:
    assert ask(shop, address(shop, "db"), 80, "niso-api") == f"db {address(shop, 'api')}"
    done = shop.niso(
        "exec", "api", "--", "busybox", "nc", "-w", "2", "db.niso.local", "80", input=""
    )
    assert done.stdout.strip() == f"db {address(shop, 'api')}"


@pytest.mark.rootless
def test_service_reaches_out_as_the_host(shop: Lab) -> None:
    assert seen_source(shop, "niso-db", CLIENT) == HOST


@pytest.mark.rootless
def test_no_process_of_niso_listens_for_published_ports(shop: Lab) -> None:
    found = shop.run("ss", "-Hltn").stdout
    assert found == ""


# --- with a host of its own -------------------------------------------------------------------------------------------


def test_established_connection_lives_on_when_its_port_goes(lab: Lab) -> None:
    lab.niso("activate", echo(lab, "api", network={"ports": ["8080:80"]}))
    answer(lab, HOST, 8080, "client")
    talk = "import socket, sys; s = socket.create_connection(('192.0.2.1', 8080)); f = s.makefile('rw')\nfor line in sys.stdin:\n    f.write(line); f.flush(); print(f.readline(), end='', flush=True)\n"
    connection = lab.popen("python3", "-ISuc", talk, netns="client", stdin=-1)
    assert connection.stdin and connection.stdout
    connection.stdin.write(b"one\n")
    assert connection.stdout.readline() == f"api {CLIENT}\n".encode()
    lab.niso("activate", echo(lab, "api", network={"ports": ["8081:80"]}))
    assert ask(lab, HOST, 8080, "client") == ""
    connection.stdin.write(b"two\n")
    assert connection.stdout.readline() == b"one\n"
    connection.kill()


def test_foreign_traffic_is_routed_only_if_it_was_before(lab: Lab) -> None:
    """The client routes a second net over the host to the neighbour: no niso bridge is concerned."""
    lab.run("ip", "address", "add", "198.51.100.3/32", "dev", "lo", netns="neighbour")
    lab.run("ip", "route", "add", "198.51.100.3", "via", NEIGHBOUR)
    lab.run("ip", "route", "add", "198.51.100.3", "via", HOST, netns="client")
    lab.run("sysctl", "-qw", "net.ipv4.conf.all.accept_redirects=0", netns="client")
    for link in ("all", "uplink0"):
        lab.run("sysctl", "-qw", f"net.ipv4.conf.{link}.send_redirects=0")
    for before in (False, True):
        lab.run("sysctl", "-qw", f"net.ipv4.ip_forward={int(before)}")
        assert pings(lab, "198.51.100.3", "client") is before
        lab.niso("activate", idle(lab, "api"))
        assert lab.run("cat", "/proc/sys/net/ipv4/ip_forward").stdout == "1\n"
        assert pings(lab, "198.51.100.3", "client") is before
        lab.niso("deactivate", "api")
        assert pings(lab, "198.51.100.3", "client") is before


def test_frames_of_a_foreign_bridge_are_untouched(lab: Lab) -> None:
    """Two machines on somebody's bridge, with addresses that niso also uses, while forwarding is on for niso alone."""
    lab.run("ip", "link", "add", "br-other", "type", "bridge")
    lab.run("ip", "link", "set", "br-other", "up")
    for number in (1, 2):
        lab.run("ip", "netns", "add", f"m{number}")
        pair = f"link add m{number} type veth peer name eth0 netns m{number}"
        lab.run("ip", *pair.split())
        lab.run("ip", "link", "set", f"m{number}", "master", "br-other", "up")
        lab.run("ip", "address", "add", f"172.20.0.{number}/24", "dev", "eth0", netns=f"m{number}")
        lab.run("ip", "link", "set", "eth0", "up", netns=f"m{number}")
    lab.niso("activate", idle(lab, "api"))
    for nf_call in (0, 1):
        filter_bridged(lab, nf_call)
        assert seen_source(lab, "m1", "172.20.0.2", server="m2") == "172.20.0.1"
        assert pings(lab, "172.20.0.2", "m1")
    # and so are the marks of another firewall, whose bits are also niso's
    lab.run("ip", "address", "add", "172.20.0.3/24", "dev", "br-other")
    mark, counted = "meta mark set 0x44000000", "iifname br-other meta mark 0x44000000 counter"
    lab.run(
        "nft",
        f"table bridge other {{ chain c {{ type filter hook prerouting priority -310; {mark}; }}; }}",
    )
    lab.run(
        "nft",
        f"table inet other {{ chain c {{ type filter hook input priority 0; {counted}; }}; }}",
    )
    assert pings(lab, "172.20.0.3", "m1")
    assert "packets 0 " not in lab.run("nft", "list", "table", "inet", "other").stdout


def test_global_bridge_sysctls_stay_as_found(lab: Lab) -> None:
    for value in (0, 1):
        filter_bridged(lab, value)
        lab.niso("activate", echo(lab, "api", network={"ports": ["8080:80"]}), echo(lab, "db"))
        assert answer(lab, HOST, 8080, "client") == f"api {CLIENT}"
        assert answer(lab, address(lab, "db"), 80, "niso-api") == f"db {address(lab, 'api')}"
        kept = lab.run(
            "sysctl", "-n", *(f"net.bridge.bridge-nf-call-{name}" for name in BRIDGE_CALLS)
        )
        assert kept.stdout.split() == [str(value)] * 3
        lab.niso("deactivate", "--all")
