"""Kill niso, or refuse its steps, in commands on services of the modes host, none and share.

Nobody may be elsewhere than its manifest, old or new, says, and the same command again makes all as it should be.
``NISO_TEST_LONG=1`` takes every step; else each command is killed once, and in every second command two
steps are refused.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from conftest import Lab
from fault_world import LONG, World, borrowed, sample

REFUSALS = 2
MODES = {
    "bridge": 'network = "backend"\nports = ["8080:80"]',
    "host": 'mode = "host"',
    "none": 'mode = "none"',
    "share": 'mode = "share"\nshare = "p"\nports = ["8080:80"]',
}
HOMES = {"bridge": "niso-x", "none": "niso-x", "share": "niso-p", "host": "another"}
"""Mode of ``x`` -> the namespace that its processes are in; the host's has no name."""


class Case(NamedTuple):
    prepare: tuple[str, ...]
    command: str
    least: int  # steps that the command has at least, and at most three times as many
    modes: tuple[str, ...]  # that x may be in meanwhile
    undoes: bool = True


def change(old: str, new: str, least: int) -> Case:
    return Case(
        ("activate --take-over /tmp/p", f"activate --take-over /tmp/x-{old}"),
        f"activate --take-over /tmp/x-{new}",
        least,
        (old, new),
    )


CASES = {
    "sharer": Case(
        ("activate --take-over /tmp/p",), "activate --take-over /tmp/x-share", 12, ("share",)
    ),
    "both-at-once": Case((), "activate --take-over /tmp/x-share /tmp/p", 30, ("share",)),
    "host": Case((), "activate --take-over /tmp/x-host", 10, ("host",)),
    "none": Case((), "activate --take-over /tmp/x-none", 14, ("none",)),
    "bridge-to-share": change("bridge", "share", 15),
    "share-to-bridge": change("share", "bridge", 20),
    "bridge-to-host": change("bridge", "host", 15),
    "host-to-share": change("host", "share", 12),
    "share-to-none": change("share", "none", 15),
    "provider-moves": Case(
        ("activate --take-over /tmp/p", "activate --take-over /tmp/x-share"),
        "activate --take-over /tmp/p-elsewhere",
        25,
        ("share",),
    ),
    "sharer-ends": Case(
        ("activate --take-over /tmp/p", "activate --take-over /tmp/x-share"),
        "deactivate x",
        6,
        ("share",),
        False,
    ),
    "both-end": Case(
        ("activate --take-over /tmp/p", "activate --take-over /tmp/x-share"),
        "remove p x",
        14,
        ("share",),
        False,
    ),
}


@pytest.fixture
def world(left: list[World]) -> Iterator[World]:
    yield from borrowed(left, lambda: ready(Lab(3000).__enter__()))


def ready(lab: Lab) -> World:
    world = World(lab)
    for folder, name, network in (
        ("p", "p", 'network = "backend"\nports = ["7070:70"]'),
        ("p-elsewhere", "p", 'network = "elsewhere"\nports = ["7070:70"]'),
        *((f"x-{mode}", "x", text) for mode, text in MODES.items()),
    ):
        lines = [
            "[package]",
            f'name = "{name}"',
            'version = "1"',
            "[binary]",
            'entrypoint = "sleep"',
            'args = ["1000"]',
        ]
        lab.write(f"/tmp/{folder}/manifest.toml", "\n".join([*lines, "[network]", network, ""]))
    # what is made once for all services is there before the first comparison
    world.niso("activate", "/tmp/c")
    world.niso("remove", "c")
    return world


def prepare(world: World, case: Case) -> None:
    for command in case.prepare:
        world.niso(*command.split())


def wide(found: dict[str, Any], case: Case) -> list[str]:
    """What is not as any of the manifests says, in a snapshot."""
    inet = found["rules"].get("inet niso", {}).get("sets", {})
    bridge = found["rules"].get("bridge niso", {}).get("sets", {})
    wrong = []
    if found["namespaces"][""]["sysctls"]["net/ipv4/ip_forward"] == "1" and not (
        inet and bridge and inet["closed"]
    ):
        wrong.append("forwarding is on without rules")
    allowed = {HOMES[mode] for mode in case.modes} | {
        "another"
    }  # a namespace that has lost its name already
    for service, homes in found["homes"].items():
        if not set(homes) <= (allowed if service == "x" else {"niso-p"}):
            wrong.append(f"a process of {service} is in {homes}")
    if "host" not in case.modes and "host" in found["homes"].get("x", ()):
        wrong.append("x is in the host's network")
    guarded = {each.partition(" ")[0] for each in bridge.get("ports", ())}
    for name, link in found["namespaces"][""]["links"].items():
        if (
            (link["ifalias"] or "").startswith("niso:")
            and link["kind"] == "veth"
            and name not in guarded
        ):
            wrong.append(f"{name} is there and not guarded")
    return wrong


def in_the_hosts_network(world: World) -> bool:
    """Whether a process of x is, by the kernel's word."""
    script = (
        "import os, re\n"
        "own = os.stat('/proc/self/ns/net').st_ino\n"
        "for pid in filter(str.isdigit, os.listdir('/proc')):\n"
        "    try:\n"
        "        words = open(f'/proc/{pid}/cgroup').read()\n"
        "        if re.search(r'/niso-[0-9a-f]{8}/x$', words, re.M) and os.stat(f'/proc/{pid}/ns/net').st_ino == own:\n"
        "            print(pid)\n"
        "    except OSError:\n"
        "        pass\n"
    )
    return bool(world.lab.run("python", "-ISc", script).stdout)


def again(world: World, case: Case) -> None:
    done = world.niso(*case.command.split(), check=False)
    if done.returncode:  # it was finished by then
        assert "no service" in done.stderr and case.command.startswith("remove"), done.stderr


@pytest.mark.parametrize("name", CASES)
def test_command_killed_at_any_step_converges(world: World, left: list[World], name: str) -> None:
    case = CASES[name]
    command = case.command.split()
    baseline = world.snapshot()
    prepare(world, case)
    points = world.points(*command)
    assert case.least <= len(points) <= 3 * case.least, points
    world.assert_whole()
    wanted = world.snapshot()
    assert wide(wanted, case) == []
    world.clear()
    world.wait_for_snapshot(baseline, "undisturbed: after everything is removed")
    # its network is another one already, and its old process still runs
    between = [
        i
        for i, step in enumerate(points, 1)
        if step in ("stop the process of x", "ask the process of x to end")
    ]
    numbers = range(1, len(points) + 1)
    for number in numbers if LONG else between[:1] or [random.Random(name).choice(numbers)]:
        what = f"killed at {number}, before {points[number - 1]!r}"
        prepare(world, case)
        done, reached = world.disturbed(number, "kill", *command)
        # of two that start at once either may be first
        assert (
            done.returncode == -9 and len(reached) == number and not set(reached) - set(points)
        ), what
        world.wait_until_right(lambda found: wide(found, case), what)
        if "host" not in case.modes:
            assert not in_the_hosts_network(world), what
        world.niso("ps")
        world.niso("net", "ports")
        world.niso("net", "create", "other")  # which recovers, and mends nothing
        world.niso("net", "remove", "other")
        world.assert_whole()
        again(world, case)
        world.wait_for_snapshot(wanted, f"{what}: after the same command again")
        world.assert_whole()
        world.clear()
        world.wait_for_snapshot(baseline, f"{what}: after everything is removed")
    left.append(world)


@pytest.mark.parametrize(
    "name", [name for name in CASES if CASES[name].undoes][:: 1 if LONG else 2]
)
def test_step_that_is_refused_undoes_the_command(
    world: World, left: list[World], name: str
) -> None:
    case = CASES[name]
    command = case.command.split()
    prepare(world, case)
    before = world.snapshot()
    statuses = {
        row["service"]: (row["status"], row["mode"])
        for row in json.loads(world.niso("ps", "--json").stdout)
    }
    points = world.points(*command)
    world.clear()
    prepare(world, case)
    for number in sample(len(points), REFUSALS):
        what = f"EIO at {number}, {points[number - 1]!r}"
        done, _ = world.disturbed(number, "EIO", *command)
        if done.returncode == 0:  # clean-up after the last commit
            assert number == len(points) or points[number - 1].startswith("show "), (
                what
            )  # which cannot be: it is started anew
            world.clear()
            prepare(world, case)
            continue
        assert done.returncode == 1 and done.stderr.startswith("niso: "), what
        world.wait_for_snapshot(before, f"{what}: right after the failure")
        world.assert_whole()
        now = {
            row["service"]: (row["status"], row["mode"])
            for row in json.loads(world.niso("ps", "--json").stdout)
        }
        assert now == statuses, what
    world.niso(*command)
    world.assert_whole()
    world.clear()
    left.append(world)


@pytest.mark.parametrize(
    "name", ["share-to-bridge", "both-end", *(["both-at-once"] if LONG else [])]
)
def test_recovery_that_is_killed_too_is_recovered(
    world: World, left: list[World], name: str
) -> None:
    case = CASES[name]
    command = case.command.split()
    prepare(world, case)
    wanted = world.snapshot()
    steps = world.points(*command)
    if case.undoes:
        died = max(i for i, step in enumerate(steps, 1) if step == "commit to the store")
    else:  # what was begun is finished
        died = steps.index("remove what is left of the process of x") + 1
        wanted = world.snapshot()
    world.clear()

    def begin() -> None:
        prepare(world, case)
        world.disturbed(died, "kill", *command)

    world.assert_recovery_recovers(begin, wanted, lambda _: world.clear(), 3, first=2)
    left.append(world)
