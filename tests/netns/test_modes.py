"""Test network.mode host, none and share, from inside and outside of the services."""

from __future__ import annotations

import json
import os
import signal

import pytest
import snapshots
from conftest import Lab
from modes import (
    PORT,
    SHARED,
    alone,
    api,
    home_of,
    lives_in,
    names_in,
    no_folders_but,
    open_,
    running,
    seen_in,
    side,
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
    process_below,
    ps,
    refused,
)

KERNEL = ("namespaces", "in the host", "mounts", "cgroups")
"""What of a snapshot is the kernel's."""


def capabilities(lab: Lab, service: str) -> dict[str, str]:
    pid = pid_of(lab, service)
    lines = lab.run("cat", f"/proc/{process_below(lab, pid)}/status").stdout.splitlines()
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return {key: fields[key] for key in ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp")}


# --- host ------------------------------------------------------------------------------------------------------------


def test_host_mode_is_the_hosts_network_and_nothing_else_of_the_host(lab: Lab) -> None:
    lab.write("/tmp/hosts", "127.0.0.1 localhost\n192.0.2.7 seven\n")
    lab.run("mount", "--bind", "/tmp/hosts", "/etc/hosts")
    before = snapshots.take(lab)
    lab.niso("activate", open_(lab))
    after = snapshots.take(lab)
    assert lives_in(lab, "open") == home_of(lab, "self")
    # no namespace, link, rule, sysctl, forwarding: nothing of the kernel's network is touched, nor is anything to be put back
    assert after["store"]["sysctl"] == []
    assert (
        snapshots.differences(
            {key: before[key] for key in KERNEL[:3]}, {key: after[key] for key in KERNEL[:3]}
        )
        == []
    )

    assert answer(lab, HOST, 7000, "client") == f"open {CLIENT}"
    assert answer(lab, "127.0.0.1", 7000) == "open 127.0.0.1"
    assert seen_in(lab, "open", "hostname") == lab.run("hostname").stdout
    for name, more in (("hosts", "127.0.0.1  host.niso.local\n"), ("resolv.conf", "")):
        own = lab.run("cat", f"/etc/{name}").stdout
        assert seen_in(lab, "open", "cat", f"/etc/{name}") == own + more
    assert seen_in(lab, "open", "cat", "/etc/hostname") == lab.run("hostname").stdout
    assert "uplink0" in seen_in(lab, "open", "ip", "link")
    # what it may do is what any service may
    idle(lab, "bridged", network=on("backend"))
    lab.niso("activate", "/tmp/packages/bridged")
    assert capabilities(lab, "open") == capabilities(lab, "bridged")
    assert capabilities(lab, "open")["CapEff"] == "0" * 16
    assert seen_in(lab, "open", "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start") == "1024\n"

    shown = ps(lab, "open")
    assert (shown["mode"], shown["address"], shown["ports"]) == ("host", [], [])
    line = next(line for line in lab.niso("ps").stdout.splitlines() if line.startswith("open "))
    assert line.split()[3:5] == ["host", "-"]
    assert inspect(lab, "open")["netns"] is None
    assert inspect(lab, "open")["hostname"] == lab.run("hostname").stdout.strip()
    assert lab.niso("net", "check").returncode == 0

    # what the host's files say is read at each start
    lab.write("/tmp/hosts", "127.0.0.1 localhost\n192.0.2.8 eight\n")
    lab.niso("restart", "open")
    assert "192.0.2.8 eight" in seen_in(lab, "open", "cat", "/etc/hosts")
    lab.niso("deactivate", "open")
    assert ask(lab, HOST, 7000, "client") == ""
    lab.niso("remove", "bridged", "open")
    left = snapshots.take(lab)
    assert snapshots.differences({k: before[k] for k in KERNEL}, {k: left[k] for k in KERNEL}) == []


def test_host_mode_below_1024_needs_the_capability(lab: Lab) -> None:
    said = refused(lab, "activate", open_(lab, 700))
    assert "Permission denied" in said
    lab.niso("activate", open_(lab, 700, isolation={"capabilities": ["NET_BIND_SERVICE"]}))
    assert answer(lab, HOST, 700, "client") == f"open {CLIENT}"


def test_host_mode_process_that_dies_is_started_again_on_the_host(lab: Lab) -> None:
    lab.niso("activate", open_(lab, service={"restart_delay": "10ms"}))
    old, _ = running(lab, "open")["open"]
    lab.run("kill", "-9", str(old))
    started_again(lab, "open", old)
    assert lives_in(lab, "open") == home_of(lab, "self")
    assert answer(lab, HOST, 7000, "client") == f"open {CLIENT}"
    assert lab.niso("net", "check").returncode == 0


def test_port_that_a_host_mode_service_listens_on_cannot_be_published(lab: Lab) -> None:
    lab.niso("activate", open_(lab))
    answer(lab, HOST, 7000)
    said = refused(lab, "activate", idle(lab, "late", network=on("backend", ports=["7000:80"])))
    assert "network.ports[0]: host port 7000/tcp is used by python3" in said


# --- none ------------------------------------------------------------------------------------------------------------


def test_mode_none_has_its_loopback_and_no_way_out_or_in(lab: Lab) -> None:
    before = snapshots.take(lab)
    lab.niso("activate", alone(lab))
    after = snapshots.take(lab)
    assert after["namespaces"] == ["niso-alone"]
    assert snapshots.differences(before["in the host"], after["in the host"]) == []
    assert lives_in(lab, "alone") == namespace(lab, "alone")
    links = lab.ip_json("address", netns="niso-alone")
    assert [(link["ifname"], "UP" in link["flags"]) for link in links] == [("lo", True)]
    assert {each["local"] for each in links[0]["addr_info"]} == {"127.0.0.1", "::1"}

    assert (
        answer(lab, "127.0.0.1", 80, "niso-alone") == "alone 127.0.0.1"
    )  # and it may bind every port
    assert seen_in(lab, "alone", "hostname") == "hermit\n"
    assert seen_in(lab, "alone", "cat", "/etc/hostname") == "hermit\n"
    own = ["hermit.niso.local", "hermit", "alone.niso.local", "alone"]
    assert names_in(lab, "alone") == {"127.0.0.1": own, "::1": own}
    assert seen_in(lab, "alone", "cat", "/etc/hosts").count("localhost") > 1
    for name in ("hermit", "alone.niso.local"):
        assert (
            lab.niso("exec", "alone", "--", "/usr/bin/getent", "hosts", name).stdout.split()[0]
            == "::1"
        )
    for target in (HOST, CLIENT, "10.99.0.1"):
        done = lab.niso(
            "exec", "alone", "--", "/usr/bin/busybox", "nc", "-w1", target, "80", check=False
        )
        assert done.returncode != 0 and "unreachable" in done.stderr
    assert ask(lab, HOST, 80, "client") == ""

    shown = ps(lab, "alone")
    assert (shown["mode"], shown["address"], shown["ports"]) == ("none", [], [])
    assert inspect(lab, "alone")["endpoints"] == []
    assert lab.niso("net", "check").returncode == 0
    no_folders_but(lab, "=alone")
    lab.niso("deactivate", "alone")
    no_folders_but(lab)
    left = snapshots.take(lab)
    assert snapshots.differences({k: before[k] for k in KERNEL}, {k: left[k] for k in KERNEL}) == []


def test_two_of_mode_none_are_apart(lab: Lab) -> None:
    lab.niso("activate", alone(lab), echo(lab, "other", 80, network={"mode": "none"}))
    assert answer(lab, "127.0.0.1", 80, "niso-alone") == "alone 127.0.0.1"
    assert answer(lab, "127.0.0.1", 80, "niso-other") == "other 127.0.0.1"
    assert set(names_in(lab, "other")["127.0.0.1"]) == {"other.niso.local", "other"}


def test_what_is_lost_of_mode_none_is_told_and_put_right(lab: Lab) -> None:
    lab.niso("activate", alone(lab))
    lab.run("rm", "-r", "/run/niso/hosts/=alone")
    lab.run("ip", "-n", "niso-alone", "link", "set", "lo", "down")
    said = lab.niso("net", "check", check=False)
    assert said.returncode == 1
    assert (
        "hosts file /run/niso/hosts/=alone/hosts" in said.stdout
        and "network namespace niso-alone (up is False" in said.stdout
    )
    lab.niso("net", "repair")
    assert lab.niso("net", "check").returncode == 0
    assert answer(lab, "127.0.0.1", 80, "niso-alone") == "alone 127.0.0.1"
    assert "hermit" in names_in(lab, "alone")["127.0.0.1"]
    lab.run("ip", "netns", "delete", "niso-alone")
    lab.niso("net", "repair")
    assert lives_in(lab, "alone") == namespace(lab, "alone")
    assert lab.niso("net", "check").returncode == 0


# --- share -----------------------------------------------------------------------------------------------------------


def test_share_is_the_providers_network_names_and_addresses(lab: Lab) -> None:
    lab.niso(
        "activate",
        api(lab, network={"hostname": "web"}),
        side(lab),
        idle(lab, "peer", network=on("backend")),
    )
    assert lives_in(lab, "side") == lives_in(lab, "api") == namespace(lab, "api")
    assert sorted(
        each for each in os.listdir(lab.path("/run/netns")) if each.startswith("niso-")
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
    assert [(each["host_port"], each["container_port"]) for each in shown["ports"]] == [
        (SHARED, 90)
    ]
    assert [each["host_port"] for each in ps(lab, "api")["ports"]] == [PORT]
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
    lab.niso("port-forward", "side", f"{PORT}:90", "--replace")
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


def test_commands_of_every_mode(lab: Lab) -> None:
    lab.niso("activate", api(lab), side(lab), alone(lab), open_(lab))
    for service in ("api", "side", "alone", "open"):
        assert seen_in(lab, service, "echo", "hello") == "hello\n"
        before = running(lab, service)[service]
        lab.niso("restart", service)
        assert running(lab, service)[service] != before
        assert lab.niso("logs", service).returncode == 0
    spoken = idle(
        lab,
        "talk",
        network={"mode": "host"},
        binary={"entrypoint": "/bin/sh", "args": ["-c", "echo hi; sleep 1000"]},
    )
    lab.niso("activate", spoken)
    assert lab.niso("logs", "talk").stdout == "hi\n"
    rows = json.loads(lab.niso("net", "stats", "--json").stdout)
    assert {row["service"] for row in rows} == {"api", "side", "alone", "open", "talk"}
    lab.niso("activate", "api", "side", "alone", "open", "talk")
    assert lab.niso("net", "repair").stdout == "nothing to repair\n"


def test_explain_and_ping_say_what_a_mode_means(lab: Lab) -> None:
    lab.niso(
        "activate",
        api(lab),
        side(lab),
        alone(lab),
        open_(lab),
        idle(lab, "peer", network=on("backend")),
    )
    at, there = address(lab, "api"), address(lab, "peer")
    assert f"side ({at})" in lab.niso("net", "ping", "side", "peer").stdout
    assert f"peer ({there})" in lab.niso("net", "ping", "peer", "side").stdout
    said = lab.niso("net", "explain", "peer", "side:90").stdout
    assert (
        "pass" in said and "side shares the network namespace, addresses and policy of api" in said
    )
    assert lab.niso("net", "explain", "side", "peer:80", "--prove").returncode == 0
    assert "own address" in lab.niso("net", "explain", "side", "api:80").stdout
    assert f"side ({at})" in lab.niso("net", "ping", "api", "side").stdout
    said = lab.niso("net", "explain", CLIENT, f"{HOST}:{SHARED}").stdout
    assert "is a published port of side, which shares the network of api; it leads to" in said
    assert (
        "is a published port of api; it leads to"
        in lab.niso("net", "explain", CLIENT, f"{HOST}:{PORT}").stdout
    )
    for arguments in (["net", "ping", "peer", "open"], ["net", "explain", "open", "peer:80"]):
        assert "open has mode host" in refused(
            lab, *arguments, status=2 if "explain" in arguments else 1
        )
    for arguments in (["net", "ping", "alone", "peer"], ["net", "explain", "peer", "alone:80"]):
        assert "alone has mode none" in refused(
            lab, *arguments, status=2 if "explain" in arguments else 1
        )
    lab.niso("deactivate", "side")
    assert "side is not active" in refused(lab, "net", "ping", "side", "peer")


def started_again(lab: Lab, service: str, before: int) -> None:
    lab.wait_for(
        lambda: inspect(lab, service)["pid"] not in (None, before), 10, f"{service} started again"
    )


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
from niso.commands.restart import restart
from niso.services import machine
from niso.store.store import Store
all = machine.real(Store.open())
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
