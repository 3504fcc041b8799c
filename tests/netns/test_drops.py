"""Test niso net stats and niso net drops: dropped packets by service and direction."""

from __future__ import annotations

import contextlib
import json
import operator
import re
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Lab, Process, assert_whole
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from services import idle, on, refused
from wire import Addresses, Wire

GROUP = "28271"
PORTS = ("tcp", "udp", "sctp")


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    """Networks and policies, which all tests leave as they are; drops stay counted."""
    with Lab(deadline_seconds=900) as lab:
        subnets = ("--subnet", "10.99.1.0/24", "--subnet", "fd00:99:1::/64")
        lab.niso("net", "create", "backend", *subnets)
        logged = {"allow_from": ["web:80"], "deny_from": ["api:82"], "log": True}
        network = on("backend", ports=["5432:80"])
        api = {"network.policy.egress": {"deny": ["db:81"]}, "network.policy": {"log": True}}
        lab.niso(
            "activate",
            idle(lab, "db", network=network, **{"network.policy": logged}),
            idle(lab, "api", network=on("backend"), **api),
            idle(lab, "web", network=on("backend")),
        )
        yield lab


def send(lab: Lab, source: str, to: str, family: int = 4) -> None:
    """One packet that is dropped, by niso's own probe."""
    done = lab.niso("net", "explain", source, to, f"-{family}", "--prove", "--json", check=False)
    found = json.loads(done.stdout)
    assert found["proof"]["agrees"], found
    assert found["verdict"] == "drop"


def stats(lab: Lab) -> dict[str, dict[str, int]]:
    rows = json.loads(lab.niso("net", "stats", "--json").stdout)
    return {row.pop("service"): row for row in rows}


def drops_of(lab: Lab) -> dict[str, tuple[int, ...]]:
    ways = ("in-drops", "out-drops", "foreign")
    return {name: tuple(row[way] for way in ways) for name, row in stats(lab).items()}


@pytest.mark.rootless
def test_drops_are_counted_by_service_and_direction_in_both_families(world: Lab) -> None:
    before = drops_of(world)
    for family in (4, 6):
        send(world, "api", "db:82", family)
        send(world, "web", "db:83", family)
        send(world, "api", "db:81", family)
    send(world, "api", "db:81/udp")
    after = drops_of(world)
    more = {name: tuple(map(operator.sub, after[name], before[name])) for name in after}
    assert more == {"db": (4, 0, 0), "api": (0, 3, 0), "web": (0, 0, 0)}
    table = world.niso("net", "stats").stdout.splitlines()
    columns = "SERVICE IN-PACKETS IN-BYTES IN-DROPS OUT-PACKETS OUT-BYTES OUT-DROPS FOREIGN"
    assert table[0].split() == columns.split()
    assert [line.split()[0] for line in table[1:]] == ["api", "db", "web"]


def test_traffic_is_what_the_links_have_carried(world: Lab) -> None:
    before = stats(world)
    world.run("ping", "-c", "5", "-i", "0.01", "-s", "1000", "10.99.1.3", netns="niso-web")
    web, api = (
        {
            key: value - before[name][key]
            for key, value in stats(world)[name].items()
            if value is not None
        }
        for name in ("web", "api")
    )
    # echo requests and replies of 1000 bytes with their headers, and what ARP may have had to ask
    for sent, got in ((web, api), (api, web)):
        assert 5 <= sent["out-packets"] <= 8 and 5 <= got["in-packets"] <= 8
        assert 5 * 1042 <= sent["out-bytes"] <= 5 * 1042 + 200
    for name in ("web", "api"):
        early = stats(world)[name]
        link = world.ip_json("-s", "link", "show", "dev", "eth0", netns=f"niso-{name}")[0][
            "stats64"
        ]
        late = stats(world)[name]  # neighbours are confirmed at any time
        for way, told in (("in", link["rx"]), ("out", link["tx"])):
            for what in ("packets", "bytes"):
                assert early[f"{way}-{what}"] <= told[what] <= late[f"{way}-{what}"]


def test_what_a_service_sends_that_is_not_its_own_is_counted_to_it(world: Lab) -> None:
    web, db = Addresses(world, "niso-web"), Addresses(world, "niso-db")
    before = drops_of(world)
    with Wire(world) as wire:
        link = wire.link("niso-web", "eth0")
        for i in range(7):
            link.send(
                Ether(src=web.mac, dst=db.mac)
                / IP(src=f"10.99.1.{100 + i}", dst=db.ip4)
                / UDP(dport=80)
            )
        link.send(
            Ether(src=web.mac, dst=db.mac) / IP(src=web.ip4, dst=db.ip4) / UDP(dport=80)
        )  # its own
    foreign = before["web"][2] + 7
    world.wait_for(lambda: drops_of(world)["web"][2] == foreign, what="7 foreign frames of web")
    assert drops_of(world)["db"] == before["db"]
    # what the rules note is nobody else's: the tables are as they should be, and stay so
    assert_whole(world)
    assert world.niso("net", "repair").stdout == "nothing to repair\n"
    world.niso("restart", "web")
    world.niso("activate", idle(world, "new", network=on("backend")))
    assert drops_of(world)["web"][2] == foreign


def test_stats_without_services_and_without_tables(lab: Lab) -> None:
    assert json.loads(lab.niso("net", "stats", "--json").stdout) == []
    lab.niso("activate", idle(lab, "api"))
    lab.run("nft", "flush", "ruleset")
    row = stats(lab)["api"]
    assert (row["in-drops"], row["out-drops"], row["foreign"]) == (None, None, None)
    assert lab.niso("net", "stats").stdout.splitlines()[1].split()[3::3] == ["-", "-"]


# --- log -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def reading(lab: Lab, *arguments: str) -> Iterator[Process]:
    """``niso net drops`` that has begun to read."""
    process = lab.popen("niso", "net", "drops", *arguments)
    lab.wait_for(lambda: bound(lab), what="a reader of the group")
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)


def bound(lab: Lab) -> bool:
    text = lab.run("cat", "/proc/net/netfilter/nfnetlink_log").stdout
    return any(line.split()[0] == GROUP for line in text.splitlines())


def lines_until(process: Process, mark: str) -> list[str]:
    """Its lines up to the one with ``mark``; the lab's deadline bounds the wait."""
    found: list[str] = []
    assert process.stdout
    while not found or mark not in found[-1]:
        line = process.stdout.readline()
        assert line, found
        found.append(line.decode())
    return found


def ended(process: Process) -> tuple[int, str]:
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode is not None
    return process.returncode, errors


def test_log_shows_each_drop_as_it_happens(world: Lab) -> None:
    device = next(link for link in world.ip_json("link") if link["ifname"].startswith("niapi-"))[
        "ifname"
    ]
    with reading(world) as process:
        for family in (4, 6):
            for proto in PORTS:
                send(world, "api", f"db:82/{proto}", family)
        send(world, "api", "db:81")
        send(world, "api", "db")
        world.run("busybox", "nc", "-w", "1", "192.0.2.1", "5432", netns="client", check=False)
        lines = lines_until(process, "192.0.2.2")
        assert ended(process) == (130, "")
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z  ", line) for line in lines)
    shown = [line.split("  ", 1)[1].rstrip() for line in lines]
    denied = [
        f"db  in  network.policy.deny_from[0]  api → db:82/{proto}  {device}" for proto in PORTS
    ]
    assert shown == [
        *denied,
        *denied,
        f"api  out  network.policy.egress.deny[0]  api → db:81/tcp  {device}",
        f"db  in  network.policy.allow_from  api → db/icmp  {device}",
        "db  in  network.policy.allow_from  192.0.2.2 → db:80/tcp  uplink0",
    ]


@pytest.mark.rootless
def test_log_of_one_service_as_json(world: Lab) -> None:
    with reading(world, "api", "--json") as process:
        send(world, "api", "db:82")  # db's
        send(world, "api", "db:81/udp", 6)
        (line,) = lines_until(process, "{")
        assert ended(process) == (130, "")
    found: dict[str, Any] = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("time"))
    assert found.pop("interface").startswith("niapi-")
    assert found == {
        "service": "api",
        "direction": "out",
        "key": "network.policy.egress.deny[0]",
        "source": {"service": "api", "address": "fd00:99:1::3"},
        "destination": {"service": "db", "address": "fd00:99:1::2", "port": 81},
        "proto": "udp",
    }


def test_what_others_log_to_the_group_is_not_shown(world: Lab) -> None:
    world.run(
        "nft",
        "add table inet other; add chain inet other out { type filter hook output priority 0; }",
    )
    world.run("nft", f'add rule inet other out ip protocol icmp log prefix "other" group {GROUP}')
    with reading(world) as process:
        world.run("ping", "-c", "1", "192.0.2.2")
        send(world, "api", "db:81")
        assert len(lines_until(process, "egress.deny")) == 1
        assert ended(process) == (130, "")


def test_log_has_one_reader_and_nothing_from_before_it(world: Lab) -> None:
    send(world, "api", "db:82")
    with reading(world) as process:
        send(world, "api", "db:81")
        (line,) = lines_until(process, "  ")
        assert "egress.deny" in line
        words = refused(world, "net", "drops")
        assert f"another process (pid {process.pid}) already reads the dropped packets" in words
        assert "  hint: stop that one first" in words
        assert ended(process)[0] == 130
    with reading(world, "web") as process:  # the group is free again
        status, errors = ended(process)
    assert status == 130
    assert errors.startswith("niso: warning: log = true is not set in the policy of web")
    assert "did you mean 'web'?" in refused(world, "net", "drops", "wbe")


def test_log_ends_when_nobody_reads_its_output_any_more(world: Lab) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = world.popen("niso", "net", "drops", stdout=theirs.fileno())
        world.wait_for(lambda: bound(world), what="a reader of the group")
        theirs.close()
        ours.close()
        assert process.wait(20) == 1
    assert not bound(world)
