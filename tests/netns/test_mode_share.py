"""Test network.mode share, from inside and outside of the services."""

from __future__ import annotations

import os
import signal

import snapshots
from conftest import Lab
from modes import (
    KERNEL,
    PORT,
    SHARED,
    api,
    lives_in,
    names_in,
    running,
    seen_in,
    side,
    started_again,
)
from services import (
    CLIENT,
    HOST,
    address,
    answer,
    ask,
    idle,
    namespace,
    on,
    pid_of,
)


def test_share_is_the_providers_network_names_and_addresses(lab: Lab) -> None:
    lab.niso(
        "activate",
        api(lab, network={"hostname": "web"}),
        side(lab),
        idle(lab, "peer", network=on("backend")),
    )
    assert lives_in(lab, "side") == lives_in(lab, "api") == namespace(lab, "api")
    assert sorted(
        name for name in os.listdir(lab.path("/run/netns")) if name.startswith("niso-")
    ) == ["niso-api", "niso-peer"]
    at = address(lab, "api")
    own = ["web.niso.local", "web", "api.niso.local", "api", "side.niso.local", "side"]
    for service in ("api", "side", "peer"):
        assert names_in(lab, service)[at] == own, service
    assert seen_in(lab, "side", "cat", "/etc/hosts") == seen_in(lab, "api", "cat", "/etc/hosts")
    assert seen_in(lab, "side", "hostname") == seen_in(lab, "api", "hostname") == "web\n"
    assert seen_in(lab, "side", "cat", "/etc/hostname") == "web\n"
    # each other by loopback, others by the sharer's name
    assert answer(lab, "127.0.0.1", 90, "niso-api").startswith("side 127.0.0.1")
    assert seen_in(lab, "side", "nc", "-w1", "127.0.0.1", "80").startswith("api 127.0.0.1")
    assert seen_in(lab, "peer", "nc", "-w1", "side", "90").startswith(
        f"side {address(lab, 'peer')}"
    )
    assert lab.niso("net", "check").returncode == 0
    assert lab.niso("net", "check", "side").returncode == 0

    # its name goes with it
    lab.niso("deactivate", "side")
    assert names_in(lab, "peer")[at] == own[:4]
    assert answer(lab, HOST, PORT, "client") == f"api {CLIENT}"
    assert lab.niso("net", "check").returncode == 0


def test_ports_of_a_sharer_are_reached_every_way_and_end_with_it(lab: Lab) -> None:
    lab.niso("activate", api(lab, network={"ports": []}), idle(lab, "peer", network=on("backend")))
    lab.niso("activate", idle(lab, "far", network=on("front")), side(lab))
    for bridged in "01":
        lab.run("sysctl", "-qw", f"net.bridge.bridge-nf-call-iptables={bridged}")
        assert answer(lab, HOST, SHARED, "client") == f"side {CLIENT}"
        assert answer(lab, HOST, SHARED) == f"side {HOST}"
        assert answer(lab, "127.0.0.1", SHARED).startswith("side ")
        for service in ("peer", "far"):
            assert answer(lab, HOST, SHARED, f"niso-{service}") == f"side {address(lab, service)}"
        assert answer(lab, HOST, SHARED, "niso-api").startswith("side ")  # hairpin
    talk = lab.popen("/usr/bin/busybox", "nc", HOST, str(SHARED), stdin=-1, netns="client")
    assert talk.stdout and talk.stdin
    assert talk.stdout.readline() == f"side {CLIENT}\n".encode()
    before = {key: value for key, value in snapshots.take(lab).items() if key in KERNEL}
    lab.niso("deactivate", "side")
    assert talk.wait(10) == 0  # the server's end is closed
    for where, to in (
        ("client", HOST),
        (None, HOST),
        (None, "127.0.0.1"),
        ("niso-peer", HOST),
        ("niso-api", HOST),
    ):
        assert ask(lab, to, SHARED, where) == "", (where, to)
    flows = lab.run("cat", "/proc/net/nf_conntrack", check=False).stdout
    assert f"dport={SHARED} " not in flows
    lab.niso("activate", "side")
    after = {key: value for key, value in snapshots.take(lab).items() if key in KERNEL}
    assert snapshots.differences(before, after) == []


def test_datagrams_to_a_port_of_a_sharer_that_ended_lead_to_nobody(lab: Lab) -> None:
    """Nor may the provider, which keeps the address, get them."""
    server = """
import socket, sys
own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
own.bind(("", int(sys.argv[2])))
while True:
    data, peer = own.recvfrom(100)
    own.sendto(sys.argv[1].encode(), peer)
"""
    sender = """
import socket, sys
own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
own.settimeout(1)
own.connect(("192.0.2.1", 9090))
for line in sys.stdin:
    try:
        own.send(b"x")
        print(own.recv(100).decode(), flush=True)
    except OSError:
        print("-", flush=True)
"""
    lab.niso(
        "activate",
        idle(lab, "api", network=on("backend")),
        idle(lab, "side", network={"mode": "share", "share": "api", "ports": ["9090:90/udp"]}),
    )
    inside = lab.popen("/usr/bin/python3", "-ISc", server, "there", "90", netns="niso-api")
    client = lab.popen("/usr/bin/python3", "-ISc", sender, stdin=-1, netns="client")
    assert client.stdin and client.stdout

    def asked() -> bytes:
        assert client.stdin and client.stdout
        client.stdin.write(b"\n")
        return client.stdout.readline().strip()

    lab.wait_for(lambda: asked() == b"there", 10, "an answer")
    lab.niso("deactivate", "side")
    assert asked() == b"-"
    assert inside.poll() is None
    lab.niso("activate", "side")
    assert asked() == b"there"


def test_sharer_killed_or_provider_killed_the_namespace_stays(lab: Lab) -> None:
    quick = {"service": {"restart_delay": "10ms"}}
    lab.niso("activate", api(lab, **quick), side(lab, **quick))
    there = namespace(lab, "api")
    for victim, other in (("api", "side"), ("side", "api")):
        before = running(lab, "api", "side")
        lab.run("kill", f"-{signal.SIGKILL.value}", str(before[victim][0]))
        started_again(lab, victim, before[victim][0])
        assert running(lab, other)[other] == before[other]
        assert lives_in(lab, "api") == lives_in(lab, "side") == namespace(lab, "api") == there
        for port, service in ((PORT, "api"), (SHARED, "side")):
            assert answer(lab, HOST, port, "client") == f"{service} {CLIENT}"
    assert lab.niso("net", "check").returncode == 0


AGAIN = """
import sys
from niso.change.activate import restart
from niso.kernel.real import Kernel
from niso.runtime.machine import Machine
from niso.runtime.processes import Processes
from niso.store.store import Store
all = Machine(Store.open(), Kernel(), Processes())
for _ in range(int(sys.argv[2])):
    restart(all, [sys.argv[1]])
"""


def test_provider_that_is_restarted_often_never_moves_its_sharers_listener(lab: Lab) -> None:
    lab.niso("activate", idle(lab, "api", network=on("backend")), side(lab))
    talk = lab.popen("/usr/bin/busybox", "nc", HOST, str(SHARED), stdin=-1, netns="client")
    assert talk.stdin and talk.stdout
    assert talk.stdout.readline() == f"side {CLIENT}\n".encode()

    def listener() -> str:
        lines = lab.run("cat", "/proc/net/tcp", netns="niso-api").stdout.splitlines()
        (found,) = [
            line.split()[9]
            for line in lines
            if line.split()[1].endswith(":005A") and line.split()[3] == "0A"
        ]
        return found

    there, before, inode = namespace(lab, "api"), running(lab, "side"), listener()
    provider = pid_of(lab, "api")
    for done in range(4):
        lab.run("python", "-c", AGAIN, "api", "6", timeout=60)
        talk.stdin.write(b"%d\n" % done)
        assert talk.stdout.readline() == b"%d\n" % done
    assert pid_of(lab, "api") != provider
    assert (namespace(lab, "api"), running(lab, "side"), listener()) == (there, before, inode)
    assert lives_in(lab, "api") == lives_in(lab, "side") == there
    assert talk.poll() is None
