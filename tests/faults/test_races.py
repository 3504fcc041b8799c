"""Run many niso commands concurrently on the same names: each completes or fails, with no duplicates."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import subprocess
import time
from collections.abc import Iterator

import pytest
from conftest import Lab
from fault_world import World

LONG = os.environ.get("NISO_TEST_LONG") == "1"
WORKERS = 64 if LONG else 16
OPERATIONS = 4
SECONDS = 60 if LONG else 0
DEADLINE = 500 if LONG else 90
WORKER = (pathlib.Path(__file__).parent / "race_worker.py").read_text()

EXPECTED = re.compile(
    r"host port \d+/tcp is published by|no service 's\d'|service 's\d' is not active|no network 'n\d'"
    r"|network 'n\d' is used by|package copy .* (is gone|cannot be opened: No such file)|91\d\d:80 is not forwarded to 's\d'|has just taken host port"
)
"""Why a command may refuse when others change the same things."""


@pytest.fixture
def world() -> Iterator[World]:
    with Lab(600 if LONG else 120) as lab:
        yield World(lab)


def race(world: World, kills: bool) -> list[dict[str, object]]:
    """Have workers take their operations at the same time; what became of each, in no order."""
    for number in range(6):
        # two by two they want the same host port
        world.service(
            f"s{number}",
            ports=[f"{9000 + number // 2}:80"],
            network=f"n{number % 3}",
            stop_timeout="1s",
        )
    workers = [
        world.lab.popen(
            "python3", "-ISc", WORKER, str(number), str(OPERATIONS), str(SECONDS), str(int(kills))
        )
        for number in range(WORKERS)
    ]
    results: list[dict[str, object]] = []
    for worker in workers:
        out, err = worker.communicate(timeout=DEADLINE)
        assert (worker.returncode, err) == (0, "")
        results += [json.loads(line) for line in out.splitlines()]
    assert len(results) >= WORKERS * OPERATIONS
    return results


def without_progress(words: str) -> list[str]:
    """The lines of stderr but those that say what a command is at, when it takes over a second."""
    return [line for line in words.splitlines() if not re.fullmatch(r"niso: .* \(\d+s\)", line)]


def assert_all_clear(results: list[dict[str, object]], killed: bool) -> None:
    for result in results:
        what = json.dumps(result, indent=1)
        words = str(result["stderr"])
        assert result["status"] in ((0, 1, -9) if killed else (0, 1)), what
        assert "Traceback" not in words, what
        for line in without_progress(words):
            if line.startswith("niso: ") and not line.startswith("niso: warning: "):
                assert EXPECTED.search(line), what
        if result["status"] == 1:
            assert words.startswith("niso: "), what
        if result["status"] == 0 and result["argv"] == ["ps", "--json"]:
            addresses = [
                tuple(row["address"]) for row in json.loads(str(result["stdout"])) if row["address"]
            ]
            assert len(addresses) == len(set(addresses)), what


def assert_nothing_twice(world: World) -> None:
    """Check in the kernel that every active service has its own namespace, address and port."""
    rows = {row["service"]: row for row in json.loads(world.niso("ps", "--json").stdout)}
    active = {name: row for name, row in rows.items() if row["status"] != "inactive"}
    found = world.snapshot()
    assert sorted(found["namespaces"]) == ["", *sorted(f"niso-{name}" for name in active)]
    assert found["homes"] == {name: [f"niso-{name}"] for name in active}
    seen = []
    for name, row in active.items():
        mine = [
            a for a in found["namespaces"][f"niso-{name}"]["addresses"] if a.startswith("eth0 ")
        ]
        assert mine == [f"eth0 {address}/24" for address in row["address"]]
        seen += mine
    assert len(seen) == len(set(seen))
    ports = [port["host_port"] for row in active.values() for port in row["ports"]]
    assert len(ports) == len(set(ports))
    inet = found["rules"].get("inet niso", {"sets": {"publish_any4": []}})["sets"]
    assert len(inet["publish_any4"]) == len(ports)
    bridges = [
        name for name, link in found["namespaces"][""]["links"].items() if link["kind"] == "bridge"
    ]
    networks = json.loads(world.niso("net", "list", "--json").stdout)
    assert sorted(bridges) == sorted(f"niso-{row['name']}" for row in networks)
    subnets = [row["subnet"] for row in networks]
    assert len(subnets) == len(set(subnets))


def test_commands_at_once_give_nothing_twice_and_end_as_they_say(world: World) -> None:
    baseline = world.snapshot()
    results = race(world, kills=False)
    assert_all_clear(results, killed=False)
    done = {result["argv"][0] for result in results if result["status"] == 0}  # type: ignore[index]
    assert {"activate", "deactivate", "ps", "net"} <= done
    assert "port-forward" in {result["argv"][0] for result in results}  # type: ignore[index]
    world.assert_whole()
    assert_nothing_twice(world)
    world.clear()
    world.wait_for_snapshot(baseline, "after everything is removed")


def test_commands_at_once_of_which_some_are_killed_converge(world: World) -> None:
    baseline = world.snapshot()
    results = race(world, kills=True)
    assert_all_clear(results, killed=True)
    assert any(result["status"] == -9 for result in results)
    world.niso("net", "repair")
    world.assert_whole()
    assert_nothing_twice(world)
    world.clear()
    world.wait_for_snapshot(baseline, "after everything is removed")


def test_no_change_of_many_at_once_is_lost(world: World) -> None:
    """Each service requests the next free address, a free host port, and a line in the shared hosts file."""
    baseline = world.snapshot()
    names = [f"m{number}" for number in range(64 if LONG else 8)]
    packages = [
        world.service(name, ports=[":80"], network="n0", stop_timeout="1s") for name in names
    ]
    every_one_works(world, [("activate", package) for package in packages])
    rows = {row["service"]: row for row in json.loads(world.niso("ps", "--json").stdout)}
    assert sorted(rows) == sorted(names)
    assert_nothing_twice(world)
    (hosts,) = world.lab.path("/run/niso/hosts").glob("*/hosts")
    lines = hosts.read_text().splitlines()
    listed = {line.split()[-1]: line.split()[0] for line in lines if line.startswith("10.99.")}
    del listed["host.niso.local"]
    assert listed == {name: row["address"][0] for name, row in rows.items()}
    every_one_works(
        world, [("port-forward", name, f"{9200 + i}:80") for i, name in enumerate(names)]
    )
    every_one_works(world, [("net", "create", f"w{number}") for number in range(len(names))])
    world.assert_whole()
    assert len(world.snapshot()["rules"]["inet niso"]["sets"]["publish_any4"]) == 2 * len(names)
    every_one_works(
        world,
        [(("deactivate", "remove")[i % 2], name) for i, name in enumerate(names)]
        + [("net", "remove", f"w{number}") for number in range(len(names))],
    )
    world.assert_whole()
    assert world.snapshot()["homes"] == {}
    world.clear()
    world.wait_for_snapshot(baseline, "after everything is removed")


def every_one_works(world: World, commands: list[tuple[str, ...]]) -> None:
    """All of them at once, each in a process of its own."""
    for process in [world.lab.popen("niso", *command) for command in commands]:
        _, words = process.communicate(timeout=DEADLINE)
        assert process.returncode == 0, words


HOLDER = """\
import fcntl, os, sqlite3, sys
lock = os.open("/run/niso/lock", os.O_RDWR)
fcntl.flock(lock, fcntl.LOCK_EX)
own = os.open("/run/niso/locks/a.lock", os.O_RDWR | os.O_CREAT)
fcntl.flock(own, fcntl.LOCK_EX)
store = sqlite3.connect("/var/lib/niso/state.db", isolation_level=None)
store.execute("BEGIN IMMEDIATE")
store.execute("UPDATE service SET active=0")
print("holds", flush=True)
sys.stdin.readline()
"""


def test_reader_does_not_wait_for_a_writer(world: World) -> None:
    """The writer is in the middle of its change, holds all locks, and never goes on."""
    world.niso("activate", "/tmp/a", "/tmp/b")
    writer = world.lab.popen("python3", "-ISc", HOLDER, stdin=subprocess.PIPE)
    assert writer.stdout and writer.stdout.readline() == b"holds\n"
    for reader in (
        "ps",
        "inspect a",
        "logs a",
        "net list",
        "net inspect niso-default",
        "net ports",
        "net ports --exposed",
        "net explain b a:80",
        "net check",
    ):
        done = world.niso(*reader.split(), timeout=30)
        assert "inactive" not in done.stdout, (
            done.stdout
        )  # what is not committed is nobody's business
    writer.kill()
    writer.communicate()


def test_nobody_waits_for_a_process_that_takes_long_to_stop(world: World) -> None:
    script = "trap '' TERM; while :; do sleep 1; done"
    stubborn = world.service("stubborn", command=["sh", "-c", script], stop_timeout="60s")
    world.niso("activate", stubborn)
    stopping = world.lab.popen("niso", "deactivate", "stubborn")
    world.lab.wait_for(
        lambda: world.lab.path("/run/niso/services/stubborn/run-0/stopping").exists(), what="TERM"
    )
    rows = {row["service"]: row["status"] for row in json.loads(world.niso("ps", "--json").stdout)}
    assert rows == {"stubborn": "running"}
    world.niso("net", "list")
    world.niso("net", "ports")
    world.niso("inspect", "stubborn")
    world.niso("activate", "/tmp/a")
    world.niso("net", "create", "other")
    world.niso("net", "remove", "other")
    world.niso("restart", "a")
    world.niso("remove", "a")
    world.assert_whole()
    assert stopping.poll() is None, "the others waited for it"
    # who wants the very same service waits for its turn
    waiting = world.lab.popen("niso", "activate", stubborn)
    world.lab.run("pkill", "-KILL", "-f", "^/(usr/)?bin/sh -c trap")
    _, words = stopping.communicate(timeout=30)
    assert (stopping.returncode, without_progress(words)) == (0, [])
    _, words = waiting.communicate(timeout=30)
    assert (waiting.returncode, without_progress(words)) == (0, [])
    assert world.snapshot()["homes"] == {"stubborn": ["niso-stubborn"]}
    world.assert_whole()
    world.lab.run("pkill", "-KILL", "-f", "^/(usr/)?bin/sh -c trap")


def test_two_stops_of_one_service_are_one(world: World) -> None:
    world.niso("activate", "/tmp/a")
    both = [world.lab.popen("niso", "deactivate", "a") for _ in range(2)]
    words = []
    for each in both:
        out, err = each.communicate(timeout=30)
        assert (each.returncode, without_progress(err)) == (0, [])
        words.append(out)
    assert sorted(words) == ["a: already inactive, unchanged\n", "a: inactive\n"]


@pytest.mark.parametrize("command", ["activate /tmp/a", "restart a", "deactivate a"])
def test_command_killed_at_any_moment_converges(world: World, command: str) -> None:
    """Between two failpoints too: while conmon and crun start, or end, a process."""
    baseline = world.snapshot()
    moments = 40 if LONG else 3
    for moment in range(moments):
        if not command.startswith("activate"):
            world.niso("activate", "/tmp/a")
        victim = world.lab.popen("niso", *command.split())
        with contextlib.suppress(subprocess.TimeoutExpired):
            victim.wait(0.06 + moment * (0.3 / moments))
        world.lab.run(
            "kill", "-KILL", str(victim.pid), check=False
        )  # niso alone: not the group, which conmon is in
        victim.communicate(timeout=20)
        world.niso("activate", "/tmp/a")
        world.assert_whole()
        assert world.snapshot()["homes"] == {"a": ["niso-a"]}
        world.niso("remove", "a")
        world.wait_for_snapshot(baseline, f"killed at moment {moment}")


def test_hosts_file_that_a_kill_left_half_made_or_half_removed_goes(world: World) -> None:
    """A folder with only a draft, or empty, counts as no hosts file, and is removed with its last reader."""
    baseline = world.snapshot()
    for left in ("hosts.new", None):
        world.niso("activate", "/tmp/a")
        (hosts,) = world.lab.path("/run/niso/hosts").glob("*/hosts")
        if left is not None:
            hosts.with_name(left).write_bytes(hosts.read_bytes())
        hosts.unlink()
        world.niso("remove", "a")
        assert world.snapshot() == baseline


def test_what_somebody_else_has_put_beside_a_hosts_file_keeps_nobody_from_ending(
    world: World,
) -> None:
    baseline = world.snapshot()
    world.niso("activate", "/tmp/a")
    (hosts,) = world.lab.path("/run/niso/hosts").glob("*/hosts")
    hosts.with_name("hosts~").write_text("an editor's")
    world.lab.path("/run/niso/hosts/file").write_text("no folder")
    world.niso("deactivate", "a")
    world.assert_whole()
    assert hosts.with_name("hosts~").exists() and not hosts.exists()
    world.niso("activate", "/tmp/a")
    world.niso("net", "repair")
    world.niso("remove", "a")
    world.assert_whole()
    world.lab.run("rm", "-r", "/run/niso/hosts/file", f"/run/niso/hosts/{hosts.parent.name}")
    assert world.snapshot() == baseline


def test_sweep_beside_an_activation_comes_before_it_or_after_it(world: World) -> None:
    """Never in the middle: a service that runs is active, and one that is not has no process."""
    seen: set[str] = set()
    for moment in range(60 if LONG else 8):
        commands = [("activate", "/tmp/a"), ("reset", "--yes")]
        first = world.lab.popen("niso", *commands.pop(moment % 2))
        if moment < 2:  # wholly before it
            first.wait(60)
        else:
            time.sleep(moment % (12 if LONG else 6) * 0.04)
        second = world.lab.popen("niso", *commands.pop())
        for each in (first, second):
            _, words = each.communicate(timeout=60)
            assert each.returncode == 0, words
        (row,) = json.loads(world.niso("ps", "--json").stdout)
        seen.add(row["status"])
        assert bool(world.snapshot()["homes"]) == (row["status"] == "running"), (moment, row)
        if row["status"] == "running":
            world.assert_whole()
        world.niso("activate", "/tmp/a")
        world.assert_whole()
        world.niso("remove", "a")
    assert seen == {"running", "inactive"}
