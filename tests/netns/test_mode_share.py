"""Test network.mode share, from inside and outside of the services."""

from __future__ import annotations

import json
import os
import signal

import pytest
import snapshots
from conftest import Lab
from modes import (
    KERNEL,
    PORT,
    SHARED,
    alone,
    api,
    lives_in,
    names_in,
    open_,
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
    echo,
    idle,
    inspect,
    namespace,
    on,
    pid_of,
    ps,
    refused,
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
    ) == [
        "niso-api",
        "niso-peer",
    ]
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

    shown = ps(lab, "side")
    assert (shown["mode"], shown["address"]) == ("share", [at])
    assert [(port["host_port"], port["container_port"]) for port in shown["ports"]] == [
        (SHARED, 90)
    ]
    assert [port["host_port"] for port in ps(lab, "api")["ports"]] == [PORT]
    rows = json.loads(lab.niso("net", "ports", "--json").stdout)
    assert {(row["service"], row["host_port"]) for row in rows} == {("api", PORT), ("side", SHARED)}
    assert (inspect(lab, "side")["shares"], inspect(lab, "api")["shared_by"]) == ("api", ["side"])
    assert inspect(lab, "side")["netns"] == "/run/netns/niso-api"
    lines = lab.niso("net", "inspect", "backend").stdout.splitlines()
    assert [line.split()[:2] for line in lines if line.startswith("  ")][:2] == [
        ["api", at],
        ["side", at],
    ]
    assert lab.niso("net", "check").returncode == 0
    assert lab.niso("net", "check", "side").returncode == 0

    # its name goes with it
    lab.niso("deactivate", "side")
    assert names_in(lab, "peer")[at] == own[:4]
    assert answer(lab, HOST, PORT, "client") == f"api {CLIENT}"
    assert lab.niso("net", "check").returncode == 0


@pytest.mark.parametrize("bridged", ["0", "1"])
def test_ports_of_a_sharer_are_reached_every_way_and_end_with_it(lab: Lab, bridged: str) -> None:
    lab.run("sysctl", "-qw", f"net.bridge.bridge-nf-call-iptables={bridged}")
    lab.niso("activate", api(lab, network={"ports": []}), idle(lab, "peer", network=on("backend")))
    lab.niso("activate", idle(lab, "far", network=on("front")), side(lab))
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


def test_sharer_needs_a_provider_that_is_there(lab: Lab) -> None:
    path = side(lab)
    said = refused(lab, "activate", path)
    assert (
        f"{path}/manifest.toml: network.share: no service 'api' is known" in said and "hint" in said
    )
    lab.niso("activate", api(lab))
    lab.niso("deactivate", "api")
    before = snapshots.take(lab)
    said = refused(lab, "activate", path)
    assert "network.share: service 'api' is not active" in said and "niso activate api" in said
    assert snapshots.differences(before, snapshots.take(lab)) == []
    # both in one command, in either order
    lab.niso("activate", path, "api")
    assert lives_in(lab, "side") == namespace(lab, "api")
    said = refused(
        lab, "activate", echo(lab, "third", 70, network={"mode": "share", "share": "side"})
    )
    assert "it shares that of 'api'" in said and 'share = "api"' in said
    lab.niso("activate", open_(lab))
    said = refused(
        lab, "activate", echo(lab, "third", 70, network={"mode": "share", "share": "open"})
    )
    assert "network.share: service 'open' has mode host" in said
    assert json.loads(lab.niso("ps", "--json").stdout) and "third" not in lab.niso("ps").stdout


def test_provider_is_held_while_it_is_shared(lab: Lab) -> None:
    lab.niso("activate", api(lab), side(lab), side(lab, "second", 91, network={"ports": []}))
    before = snapshots.take(lab)
    for command in (
        ["deactivate", "api"],
        ["remove", "api"],
        ["deactivate", "--dry-run", "api"],
        ["remove", "api", "side"],
    ):
        said = refused(lab, *command)
        assert "service 'api' is in use: " in said and "'second'" in said, said
        assert "hint: it can end after these, or in the same command: second" in said
    for mode in ({"mode": "host"}, {"mode": "share", "share": "second"}):
        said = refused(lab, "activate", echo(lab, "api", 80, network=mode))
        assert "network." in said
    assert snapshots.differences(before["store"], snapshots.take(lab)["store"]) == []
    running(lab, "api", "side", "second")
    assert lab.niso("net", "check").returncode == 0
    lab.niso("deactivate", "api", "second", "side")  # in one command: in any order
    assert {row["status"] for row in json.loads(lab.niso("ps", "--json").stdout)} == {"inactive"}
    lab.niso("activate", "second", "side", api(lab))
    assert "stop api" in lab.niso("deactivate", "--dry-run", "--all").stdout
    lab.niso("deactivate", "--all")
    assert {row["status"] for row in json.loads(lab.niso("ps", "--json").stdout)} == {"inactive"}
    # the provider can go while a sharer is only known
    lab.niso("remove", "api")
    assert "no service 'api' is known" in refused(lab, "activate", "side")
    lab.niso("remove", "side", "second")
    assert lab.niso("net", "check").returncode == 0


def test_sharers_end_before_their_provider(lab: Lab) -> None:
    script = "trap 'echo end; exit' TERM; while true; do sleep 0.05; done"
    for name, network in (
        ("a-provider", on("backend")),
        ("b-sharer", {"mode": "share", "share": "a-provider"}),
    ):
        folder = idle(
            lab, name, network=network, binary={"entrypoint": "/bin/sh", "args": ["-c", script]}
        )
        lab.niso("activate", folder)
    done = lab.niso("deactivate", "-v", "--all")
    lines = [line for line in done.stderr.splitlines() if line.startswith("stop ")]
    assert lines == ["stop b-sharer", "stop a-provider"]
    ends = {n: lab.niso("logs", n, "-t").stdout.split()[0] for n in ("a-provider", "b-sharer")}
    assert ends["b-sharer"] <= ends["a-provider"]


def test_share_of_mode_none(lab: Lab) -> None:
    both = {"mode": "share", "share": "hermit"}  # by any name
    lab.niso("activate", alone(lab), echo(lab, "guest", 90, network=both))
    assert lives_in(lab, "guest") == namespace(lab, "alone")
    assert answer(lab, "127.0.0.1", 90, "niso-alone").startswith("guest ")
    own = ["hermit.niso.local", "hermit", "alone.niso.local", "alone", "guest.niso.local", "guest"]
    assert names_in(lab, "guest")["127.0.0.1"] == own
    assert seen_in(lab, "guest", "hostname") == "hermit\n"
    assert ps(lab, "guest")["address"] == []
    said = refused(lab, "activate", echo(lab, "guest", 90, network=both | {"ports": ["9090:90"]}))
    assert (
        "network.ports[0]: service 'alone', whose network namespace it shares, has mode none"
        in said
    )
    assert "PORT: 'alone', whose network 'guest' shares, has mode none" in refused(
        lab, "port-forward", "guest", "1:1"
    )
    assert "'open' has mode host" in (
        lab.niso("activate", open_(lab)) and refused(lab, "port-forward", "open", "1:1")
    )
    assert lab.niso("net", "check").returncode == 0
    assert answer(lab, "127.0.0.1", 90, "niso-alone").startswith("guest ")


def test_port_of_a_sharer_is_forwarded_and_clashes_like_any(lab: Lab) -> None:
    lab.niso(
        "activate", api(lab), side(lab), idle(lab, "peer", network=on("backend", ports=["7070:70"]))
    )
    lab.niso("port-forward", "side", "9191:90")
    assert answer(lab, HOST, 9191, "client") == f"side {CLIENT}"
    assert answer(lab, HOST, 9191, "niso-api").startswith("side ")
    assert {each["host_port"] for each in ps(lab, "side")["ports"]} == {SHARED, 9191}
    lab.niso("restart", "side", "api")
    assert answer(lab, HOST, 9191, "client") == f"side {CLIENT}"
    for port, holder in ((PORT, "api"), (7070, "peer")):
        assert f"is published by '{holder}'" in refused(lab, "port-forward", "side", f"{port}:90")
    lab.niso("port-forward", "side", f"{PORT}:90", "--take-over")
    assert answer(lab, HOST, PORT, "client") == f"side {CLIENT}"
    assert [each["host_port"] for each in ps(lab, "api")["ports"]] == []
    said = refused(lab, "activate", idle(lab, "peer", network=on("backend", ports=["9090:70"])))
    assert "network.ports[0]: host port 9090/tcp is published by 'side'" in said
    lab.niso("port-forward", "side", "9191:90", "--remove")
    assert ask(lab, HOST, 9191, "client") == ""
    lab.niso("deactivate", "side")
    assert ask(lab, HOST, PORT, "client") == ""
    assert lab.niso("net", "check").returncode == 0


def test_sharer_of_a_dual_stack_provider_on_two_networks_is_published_on_both(lab: Lab) -> None:
    lab.niso("net", "create", "six", "--subnet", "10.99.6.0/24", "--subnet", "fd00:99:6::/64")
    lab.niso("activate", echo(lab, "api", 80, network={"networks": ["six", "backend"]}))
    dual = "import socket\nserver = socket.create_server(('::', 90), family=socket.AF_INET6, dualstack_ipv6=True)\n"
    dual += "while True:\n    c, peer = server.accept()\n    c.sendall(b'side ' + peer[0].encode() + b'\\n')\n    c.close()\n"
    share = {"mode": "share", "share": "api", "ports": ["9090:90"]}
    folder = idle(
        lab,
        "side",
        network=share,
        binary={"entrypoint": "/usr/bin/python3", "args": ["-ISc", dual]},
    )
    lab.niso("activate", folder, idle(lab, "peer", network=on("backend")))
    assert answer(lab, HOST, 9090, "client").endswith(CLIENT)
    assert answer(lab, "2001:db8::1", 9090, "client") == "side 2001:db8::2"
    assert answer(lab, HOST, 9090, "niso-peer").endswith(address(lab, "peer"))
    hosts = [row["host"] for row in json.loads(lab.niso("net", "ports", "--json").stdout)]
    assert hosts == ["0.0.0.0:9090", "[::]:9090"]
    assert lab.niso("net", "check").returncode == 0


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


def test_provider_that_is_restarted_a_hundred_times_never_moves_its_sharers_listener(
    lab: Lab,
) -> None:
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
    for done in range(0, 100, 20):
        lab.run("python", "-c", AGAIN, "api", "20", timeout=60)
        talk.stdin.write(b"%d\n" % done)
        assert talk.stdout.readline() == b"%d\n" % done
    assert pid_of(lab, "api") != provider
    assert (namespace(lab, "api"), running(lab, "side"), listener()) == (there, before, inode)
    assert lives_in(lab, "api") == lives_in(lab, "side") == there
    assert talk.poll() is None
