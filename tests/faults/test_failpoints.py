"""Every command dies, or is refused by the kernel, at each of its steps; what is left is never wider than declared, and
the same command again makes it whole.

``NISO_TEST_LONG=1`` takes every step; else every few.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from conftest import Lab
from fault_world import LONG, World, differences, sample

KILLS = 3
REFUSALS = 3
ERRNOS = {"EBUSY": "busy", "ENOSPC": "No space left", "ENOMEM": "Cannot allocate memory", "EIO": "Input/output error"}


class Case(NamedTuple):
    """``prepare`` are commands that succeed; ``command`` is disturbed; both in words."""

    prepare: tuple[str, ...]
    command: str
    least: int  # steps that the command has at least, and at most twice as many (with one more service or network)
    undoes: bool  # what it began is undone when a step is refused, up to its last commit


CASES = {
    "first-activate": Case((), "activate /tmp/a", 30, True),
    "second-activate": Case(("activate /tmp/a",), "activate /tmp/b", 25, True),
    "two-at-once": Case((), "activate /tmp/a /tmp/b", 50, True),
    "changed-port": Case(("activate /tmp/a",), "activate /tmp/a-port", 5, True),
    "changed-environment": Case(("activate /tmp/a",), "activate /tmp/a-environment", 10, True),
    "changed-network": Case(("activate /tmp/a",), "activate /tmp/a-network", 20, True),
    "again": Case(("activate /tmp/a", "deactivate a"), "activate a", 20, True),
    "deactivate": Case(("activate /tmp/a /tmp/b",), "deactivate b", 8, False),
    "deactivate-last": Case(("activate /tmp/a /tmp/b",), "deactivate a b", 12, False),
    "remove": Case(("activate /tmp/a",), "remove a", 12, False),
    "restart": Case(("activate /tmp/a",), "restart a", 6, False),
    "net-create": Case((), "net create backend", 8, True),
    "net-remove": Case(("net create backend",), "net remove backend", 4, False),
    "repair": Case(("activate /tmp/a", "FLUSH"), "net repair", 3, False),
}

OTHERS: dict[str, Callable[[World], None]] = {}
"""Commands of other kinds, which must work whatever was left half-way, and leave things as they were."""


def other(function: Callable[[World], None]) -> Callable[[World], None]:
    OTHERS[function.__name__] = function
    return function


@other
def _look(world: World) -> None:
    world.niso("ps")
    world.niso("net", "list")
    world.niso("net", "ports")


@other
def _activate_another(world: World) -> None:
    world.niso("activate", "/tmp/c")
    assert world.niso("ps", "--json").stdout.count('"status": "running"') >= 1
    world.niso("remove", "c")


@other
def _create_a_network(world: World) -> None:
    world.niso("net", "create", "other")
    world.niso("net", "remove", "other")


@pytest.fixture
def world() -> Iterator[World]:
    with Lab(600 if LONG else 120) as lab:
        world = World(lab)
        world.service("a", folder="a-port", ports=["8090:80"])
        world.service("a", folder="a-environment", ports=["8080:80"], environment={"LEVEL": "debug"})
        lab.write("/tmp/a-environment/data", "other files too\n")
        world.service("a", folder="a-network", ports=["8080:80"], network="elsewhere")
        # what is made once for all services (the store, /run/netns, crun's cache) is there before the first comparison
        world.niso("activate", "/tmp/c")
        world.niso("remove", "c")
        yield world


def prepare(world: World, case: Case) -> None:
    for command in case.prepare:
        if command == "FLUSH":
            world.lab.run("nft", "flush", "ruleset")
        else:
            world.niso(*command.split())


def guarded(found: dict[str, Any]) -> list[str]:
    """What is wider than declared in a snapshot: none of it may ever be, whatever has died."""
    wrong = []
    bridge = found["rules"].get("bridge niso", {}).get("sets", {})
    inet = found["rules"].get("inet niso", {}).get("sets", {})
    host = found["namespaces"][""]
    if host["sysctls"]["net/ipv4/ip_forward"] == "1" and not (inet and bridge and inet["closed"]):
        wrong.append(f"forwarding is on without rules: {inet.get('closed')}")
    for name, value in host["sysctls"].items():
        if name.endswith("/route_localnet") and value == "1" and not inet:
            wrong.append(f"{name} is 1 without rules")
    sources: dict[str, set[str]] = {}
    for each in bridge.get("sources4", ()):
        sources.setdefault(each.rpartition(" of ")[2], set()).add(each.split(" . ")[0])
    for service, homes in found["homes"].items():
        if homes != [f"niso-{service}"]:
            wrong.append(f"a process of {service} is in {homes}")
        if not any(f"{port} of {service}" in bridge["ports"] for port in sources.get(service, ())):
            wrong.append(f"{service} runs and its port is not guarded: {bridge}")
    for name, link in host["links"].items():
        ours = (link["ifalias"] or "").startswith("niso:") and link["kind"] == "veth"
        if ours and not any(each.startswith(f"{name} of ") for each in bridge.get("ports", ())):
            wrong.append(f"{name} is there and not guarded")
    for published in inet.get("publish_any4", ()):
        key, _, target = published.partition(" : ")
        address = target.split(" . ")[0]
        owner = key.rpartition(" of ")[2]
        if f"veth({address})" not in sources.get(owner, ()):
            wrong.append(f"{published} leads to somebody else: {bridge.get('sources4')}")
    return wrong


def again(world: World, case: Case) -> None:
    """The command once more: done, or it says that there is nothing left to do."""
    done = world.niso(*case.command.split(), check=False)
    if done.returncode and case.command.split()[0] in ("remove", "net"):
        assert done.returncode == 1
        assert "no service 'a'" in done.stderr or "no network 'backend'" in done.stderr
    else:
        assert done.returncode == 0, done.stderr


def as_before(world: World, baseline: dict[str, Any], what: str) -> None:
    world.clear()
    world.wait_for_snapshot(baseline, f"{what}: after everything is removed")


@pytest.mark.parametrize("name", CASES)
def test_command_killed_at_any_step_is_never_wide_and_converges(world: World, name: str) -> None:
    case = CASES[name]
    command = case.command.split()
    baseline = world.snapshot()
    prepare(world, case)
    points = world.points(*command)
    assert case.least <= len(points) <= 3 * case.least, points
    world.assert_content()
    wanted = world.snapshot()
    assert guarded(wanted) == []
    as_before(world, baseline, "undisturbed")
    for position, number in enumerate(sample(len(points), KILLS)):
        what = f"killed at {number}, before {points[number - 1]!r}"
        prepare(world, case)
        done, reached = world.disturbed(number, "kill", *command)
        assert (done.returncode, reached) == (-9, points[:number]), what
        if "FLUSH" not in case.prepare:
            world.lab.wait_for(lambda: guarded(world.snapshot()) == [], 5, f"{what}: {guarded(world.snapshot())}")
        homes = world.snapshot()["homes"]
        for row in json.loads(world.niso("ps", "--json").stdout):
            assert row["service"] in homes or row["status"] in ("inactive", "failed", "exited (143)"), (what, row)
        list(OTHERS.values())[position % len(OTHERS)](world)
        again(world, case)
        world.wait_for_snapshot(wanted, f"{what}: after the same command again")
        world.assert_content()
        as_before(world, baseline, what)
    prepare(world, case)
    done, _ = world.disturbed(len(points) + 1, "kill", *command)
    assert done.returncode == 0


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].undoes])
def test_step_that_is_refused_undoes_the_command(world: World, name: str) -> None:
    case = CASES[name]
    command = case.command.split()
    baseline = world.snapshot()
    prepare(world, case)
    before = world.snapshot()
    points = world.points(*command)
    as_before(world, baseline, "undisturbed")
    prepare(world, case)
    errnos = list(ERRNOS)
    for position, number in enumerate(sample(len(points), REFUSALS)):
        errno = errnos[(position + list(CASES).index(name)) % len(errnos)]
        what = f"{errno} at {number}, {points[number - 1]!r}"
        done, _ = world.disturbed(number, errno, *command)
        if done.returncode == 0:  # clean-up after the last commit
            assert number == len(points)
            assert "delete package copy" in points[number - 1]
            continue
        assert done.returncode == 1, what
        lines = [line for line in done.stderr.splitlines() if not line.startswith("  ")]
        assert len(lines) == 1, (what, done.stderr)
        assert lines[0].startswith("niso: ")
        assert ERRNOS[errno].lower() in lines[0].lower(), what
        world.wait_for_snapshot(before, f"{what}: right after the failure")
        assert guarded(world.snapshot()) == []
        world.assert_content()
    world.niso(*command)
    world.assert_content()
    as_before(world, baseline, "refused")


@pytest.mark.parametrize("name", [name for name in CASES if not CASES[name].undoes])
def test_step_of_a_teardown_that_is_refused_is_told_and_done_next_time(world: World, name: str) -> None:
    case = CASES[name]
    command = case.command.split()
    baseline = world.snapshot()
    prepare(world, case)
    points = world.points(*command)
    wanted = world.snapshot()
    as_before(world, baseline, "undisturbed")
    errnos = list(ERRNOS)
    for position, number in enumerate(sample(len(points), REFUSALS)):
        errno = errnos[(position + list(CASES).index(name)) % len(errnos)]
        what = f"{errno} at {number}, {points[number - 1]!r}"
        prepare(world, case)
        done, _ = world.disturbed(number, errno, *command)
        if done.returncode:
            assert done.returncode == 1, what
            assert done.stderr.startswith("niso: "), what
            assert ERRNOS[errno].lower() in done.stderr.lower(), (what, done.stderr)
        if "FLUSH" not in case.prepare:
            world.lab.wait_for(lambda: guarded(world.snapshot()) == [], 5, f"{what}: {guarded(world.snapshot())}")
        again(world, case)
        assert differences(wanted["homes"], world.snapshot()["homes"]) == []
        world.wait_for_snapshot(wanted, f"{what}: after the same command again")
        world.assert_content()
        as_before(world, baseline, what)


@pytest.mark.parametrize("name", ["first-activate", "changed-environment", "changed-network", "deactivate-last"])
def test_recovery_that_is_killed_too_is_recovered(world: World, name: str) -> None:
    case = CASES[name]
    command = case.command.split()
    baseline = world.snapshot()
    prepare(world, case)
    wanted = world.snapshot()
    steps = world.points(*command)
    if case.undoes:
        died = max(i for i, step in enumerate(steps, 1) if step == "commit to the store")
    else:  # what was begun is finished
        died = steps.index("remove what is left of the process of a") + 1
        wanted = world.snapshot()
    as_before(world, baseline, "undisturbed")
    prepare(world, case)
    world.disturbed(died, "kill", *command)
    points = world.points("net", "repair")
    assert len(points) >= 5, points
    world.wait_for_snapshot(wanted, "recovered")
    as_before(world, baseline, "recovered")
    for number in sample(len(points), 2):
        what = f"recovery killed at {number}, before {points[number - 1]!r}"
        prepare(world, case)
        world.disturbed(died, "kill", *command)
        done, _ = world.disturbed(number, "kill", "net", "repair")
        assert done.returncode == -9, what
        world.lab.wait_for(lambda: guarded(world.snapshot()) == [], 5, f"{what}: {guarded(world.snapshot())}")
        world.niso("net", "repair")
        world.wait_for_snapshot(wanted, what)
        world.assert_content()
        as_before(world, baseline, what)
