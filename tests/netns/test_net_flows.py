"""Test niso net flows on real traffic."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Lab
from services import answer, ask, echo, idle, on, send

from niso.kernel import policy_rules

PATH = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

KEEP = """
import socket, time
s = socket.create_connection(("10.99.1.2", 80)); print(s.recv(99).decode()); time.sleep(100)
"""


UDP_SERVER = """
import select, socket
servers = [socket.socket(2, 2), socket.socket(2, 2)]
for server, port in zip(servers, (53, 54)): server.bind(("", port))
print("up")
while True:
    for one in select.select(servers, [], [])[0]: data, peer = one.recvfrom(99); one.sendto(data, peer)
"""
UDP_CLIENT = """
import socket, time
s = socket.socket(2, 2); s.settimeout(5); end = time.monotonic() + {seconds}
while True:
    s.sendto(b"x", ("10.99.1.2", {port})); s.recv(99); time.sleep(0.2)
    if time.monotonic() > end: break
"""


@pytest.fixture
def world(lab: Lab) -> Lab:
    subnets = ("--subnet", "10.99.1.0/24", "--subnet", "fd00:99:1::/64")
    lab.niso("net", "create", "backend", *subnets)
    db = echo(
        lab,
        "db",
        network=on("backend", ports=["8080:80"]),
        **{"network.policy": {"allow_from": ["web:80", "192.0.2.0/24"]}},
    )
    lab.niso("activate", db, idle(lab, "web", network=on("backend")), idle(lab, "api"))
    lab.niso("activate", idle(lab, "bad", network=on("backend")))
    return lab


def flows(lab: Lab, *words: str) -> list[list[str]]:
    """The lines of the table, without ports of the moment and times."""
    text = lab.niso("net", "flows", *words).stdout
    return [re.split(r"\s{2,}", line) for line in text.splitlines()[1:]]


def test_who_connected_to_whom_and_what_decides(world: Lab) -> None:
    sets = {thing["set"]["name"]: thing["set"] for thing in world.nft_json() if "set" in thing}
    assert all(sets[f"{name}4"]["size"] == size for name, size in policy_rules.SIZES.items())
    answer(world, "10.99.1.2", 80, "niso-web")
    ask(world, "fd00:99:1::2", 80, "niso-web")  # db listens on IPv4 alone
    answer(world, "192.0.2.1", 8080, "client")
    answer(world, "127.0.0.1", 8080)
    assert ask(world, "10.99.1.2", 80, "niso-bad") == ""
    assert ask(world, "10.99.1.2", 80, "niso-api") == ""
    kept = world.popen("/usr/bin/python3", "-ISuc", KEEP, netns="niso-web")
    assert kept.stdout is not None and kept.stdout.readline().startswith(b"db ")
    found = flows(world)
    for line in found:  # how often a refused client tried again depends on the time
        line[2] = line[2] if line[5] == "pass" else "n"
        line[4] = "t"
    assert found == [
        [
            "192.0.2.2",
            "db:80/tcp",
            "1",
            "-",
            "t",
            "pass",
            'published 8080, db allow_from[1] "192.0.2.0/24"',
        ],
        ["api", "db:80/tcp", "n", "-", "t", "drop", "db allow_from"],
        ["bad", "db:80/tcp", "n", "-", "t", "drop", "db allow_from"],
        ["host", "db:80/tcp", "1", "-", "t", "pass", "published 8080"],
        # by IPv4 twice and by IPv6
        ["web", "db:80/tcp", "3", "1", "t", "pass", 'db allow_from[0] "web:80"'],
    ]
    # the rules have what is declared, and not what they fill
    text = world.niso("net", "rules").stdout
    assert "elements = { 192.0.2.2 . " in world.run("nft", "list", "table", "inet", "niso").stdout
    assert "192.0.2.2" not in text and "10.99.1.2" in text
    assert "192.0.2.2" not in world.niso("net", "rules", "--json").stdout
    assert [line[0] for line in flows(world, "--denied")] == ["api", "bad"]
    assert [line[0] for line in flows(world, "api")] == ["api"]
    rows = json.loads(world.niso("net", "flows", "--json").stdout)
    first = next(row for row in rows if row["from"]["name"] == "bad")
    assert (first["key"], first["service"], first["verdict"]) == (
        "network.policy.allow_from",
        "db",
        "drop",
    )
    world.wait_for(lambda: not flows(world, "--denied", "--since", "1s"), 10, "older flows")
    assert [line[:4] for line in flows(world, "--since", "1s")] == [["web", "db:80/tcp", "2", "1"]]
    # a policy that changes: what passed would not pass now
    world.niso(
        "activate",
        echo(
            world,
            "db",
            network=on("backend", ports=["8080:80"]),
            **{"network.policy": {"allow_from": ["bad"]}},
        ),
    )
    by = {line[0]: line[6] for line in flows(world)}
    assert (by["bad"], by["web"]) == ("now allowed", "now denied: db allow_from")
    kept.kill()
    # UDP: a request and its reply are no connection, a stream is one
    server = world.popen("/usr/bin/python3", "-ISuc", UDP_SERVER, netns="niso-db")
    assert server.stdout is not None and server.stdout.readline() == b"up\n"
    for port, seconds in ((53, 0.0), (54, 4.0)):
        asks = UDP_CLIENT.format(port=port, seconds=seconds)
        world.run("/usr/bin/python3", "-ISc", asks, netns="niso-bad")
    server.kill()
    opened = {
        row["port"]: row["open"]
        for row in json.loads(world.niso("net", "flows", "bad", "--json").stdout)
    }
    assert (opened[53], opened[54]) == (0, 1)
    picture = world.niso("net", "graph").stdout
    assert 'n_bad -. ":80 denied" .-x n_db' in picture and 'n_web -- ":80" --> n_db' in picture
    declared = world.niso("net", "graph", "--declared", "--format", "dot").stdout
    assert 'n_bad -> n_db [label="*"]' in declared and "n_web ->" not in declared
    world.niso("net", "graph", "-o", "/tmp/net.mmd")
    assert world.path("/tmp/net.mmd").read_text() == picture


def test_new_flows_as_they_happen(world: Lab) -> None:
    answer(world, "10.99.1.2", 80, "niso-web")
    follower = world.popen("niso", "net", "flows", "-f", "db")
    assert follower.stdout is not None
    line = b""
    for _ in range(30):  # it shows what comes after its first look
        answer(world, "10.99.1.2", 80, "niso-web")
        if select.select([follower.stdout], [], [], 1.2)[0]:
            line = follower.stdout.readline()
            break
    assert re.match(rb"\S+Z  web \S+ db:80/tcp  pass  db allow_from\[0\] \"web:80\"", line), line
    ask(world, "10.99.1.2", 80, "niso-bad")
    lines = iter(follower.stdout.readline, b"")
    refused = next(line.decode() for line in lines if b"bad" in line)
    assert "db:80/tcp  drop  db allow_from" in refused
    follower.send_signal(signal.SIGINT)
    assert follower.wait(10) == 130


KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "any": ({}, ""),
    "list": ({"allow_from": []}, "allow_from"),
    "deny": ({"deny_from": ["0.0.0.0/0"]}, "deny_from[0]"),
}
OUT: dict[str, tuple[dict[str, Any], str]] = {
    "any": ({}, ""),
    "list": ({"egress": {"allow": []}}, "egress.allow"),
    "deny": ({"egress": {"deny": ["0.0.0.0/0"]}}, "egress.deny[0]"),
}
ON = {"plain": 1, "inner": 2, "other": 3}
EVERYTHING = """
import json, niso
from niso.api.host import plain
with niso.connect() as host, host.map() as map:
    every = [plain(host.flows()), plain(map.read()), plain(host.learn(egress=True))]
    names = [line.service for line in host.services.list()]
    said = []
    for sender in (name for name in names if name.startswith("s-")):
        for receiver in (name for name in names if name.startswith("r-")):
            judged = host.explain(sender, f"{receiver}:9/udp").judged
            by = judged.dropped_by
            said.append((sender, receiver, by.words if by else ""))
    print(json.dumps([*every, said]))
"""


def test_the_line_that_is_named_is_the_line_that_dropped(lab: Lab) -> None:
    """For each pair of reasons: an internal network, both policies of each kind, isolated networks."""
    for name, number in ON.items():
        internal = ["--internal"] * (name == "inner")
        lab.niso("net", "create", name, "--subnet", f"10.99.{number}.0/24", *internal)
    folders = []
    for network in ("plain", "inner"):
        folders += [
            idle(lab, f"s-{network}-{kind}", network=on(network, policy=keys))
            for kind, (keys, _) in OUT.items()
        ]
    for network in ON:
        folders += [
            idle(lab, f"r-{network}-{kind}", network=on(network, policy=keys))
            for kind, (keys, _) in KINDS.items()
        ]
    lab.niso("activate", *folders)
    at = {row["service"]: row["address"][0] for row in json.loads(lab.niso("ps", "--json").stdout)}
    senders = [name for name in at if name.startswith("s-")]
    expected: dict[tuple[str, str], str] = {}
    for sender in senders:
        for receiver in at.keys() - senders:
            (_, here, out), (_, there, kind) = sender.split("-"), receiver.split("-")
            if here == "inner" and there != here:
                expected[sender, receiver] = "internal"
            elif out != "any":
                expected[sender, receiver] = f"{sender} {OUT[out][1]}"
            elif kind != "any":
                expected[sender, receiver] = f"{receiver} {KINDS[kind][1]}"
            else:
                expected[sender, receiver] = "" if here == there else "isolated"
    dropped = sum(bool(line) for line in expected.values())
    capture = lab.popen("niso", "net", "capture", *senders, "--drops", "-c", str(dropped), env=PATH)
    lab.wait_for(lambda: "_drops" in lab.run("nft", "list", "tables").stdout, 30, "tables")
    before = {row["service"]: row for row in json.loads(lab.niso("net", "stats", "--json").stdout)}
    for sender, receiver in expected:
        send(lab, f"niso-{sender}", at[receiver], 9)
    assert capture.stdout is not None
    captured = {}
    for line in capture.stdout.read().decode().splitlines():
        words = line.split(" ")
        ends = words[2].rpartition(".")[0], words[4].rpartition(".")[0]
        captured[ends] = line.rpartition("  (")[2].removesuffix(")")
    assert capture.wait(30) == 0
    seen, drawn, learned, explained = json.loads(lab.run("python", "-c", EVERYTHING).stdout)

    def named(flow: dict[str, Any]) -> str:
        if flow["verdict"] == "pass":
            return ""
        if flow.get("key"):
            return f"{flow['service']} {flow['key'].removeprefix('network.policy.')}"
        return "internal" if "is internal" in flow["words"] else "isolated"

    flows = {(flow["from"]["name"], flow["to"]["name"]): flow for flow in seen}
    assert {ends: named(flow) for ends, flow in flows.items()} == expected
    # the kernel's own counters
    after = {row["service"]: row for row in json.loads(lab.niso("net", "stats", "--json").stdout)}
    for way, first in (("out", 0), ("in", 1)):
        for name in at:
            own = sum(
                line.startswith(f"{name} ") and ends[first] == name
                for ends, line in expected.items()
            )
            assert after[name][f"{way}-drops"] - before[name][f"{way}-drops"] == own, (way, name)
    # the others say the same words
    words = {ends: flow["words"] for ends, flow in flows.items() if flow["verdict"] == "drop"}
    assert captured == words
    assert {(sender, receiver): said for sender, receiver, said in explained if said} == words
    assert {
        (flow["from"]["name"], flow["to"]["name"]): flow["words"]
        for flow in drawn["flows"]
        if flow["verdict"] == "drop"
    } == words
    for line in sorted(
        {line for line in expected.values() if line.split("-")[0] in ("internal", "isolated")}
        | {"s-inner-list egress.allow", "r-inner-deny deny_from[0]"}
    ):
        sender, receiver = next(ends for ends, own in expected.items() if own == line)
        trace = lab.popen("niso", "net", "trace", sender, f"{receiver}:9/udp")
        lab.wait_for(lambda: "niso_live_" in lab.run("nft", "list", "tables").stdout, 30, "tables")
        while trace.poll() is None:
            send(lab, f"niso-{sender}", at[receiver], 9)
        assert trace.stdout is not None and trace.returncode == 1
        said = trace.stdout.read().decode().splitlines()
        assert said[-1] == f"drop: {words[sender, receiver]}"
    # explain prints the line that drops before other lines that would drop the packet too
    for sender, receiver in (("s-plain-any", "r-inner-list"), ("s-inner-deny", "r-plain-deny")):
        told = lab.niso("net", "explain", sender, f"{receiver}:9/udp", check=False).stdout
        first = re.findall(r"^  \w+ +drop +(.*)", told, re.MULTILINE)[0]
        assert first == words[sender, receiver], told
    # a suggested line changes the verdict, if the lines for both ends are added
    offered = set()
    for policy in learned:
        for key, peer_first in (("allow_from", True), ("egress", False)):
            for entry in policy[key]:
                if not entry["allowed"]:
                    ends = entry["text"].partition(":")[0], policy["service"]
                    offered.add(ends if peer_first else ends[::-1])
    closed = {ends for ends, line in expected.items() if line in ("", "internal", "isolated")}
    refusing = {ends for ends in expected if "-deny" in ends[0] or "-deny" in ends[1]}
    apart = {ends for ends in expected if ends[0].split("-")[1] != ends[1].split("-")[1]}
    assert not offered & (closed | apart) and expected.keys() - closed - apart - refusing <= offered
