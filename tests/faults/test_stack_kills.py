"""`niso stack up` and `down` die at any of their steps: no half stack is left, and the same command again makes it whole.

``NISO_TEST_LONG=1`` takes every step; else every few.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Lab
from fault_world import LONG, World, differences, sample

KILLS = 3

ONE = """\
[stack]
name = "shop"
[networks]
backend = { subnet = "10.99.7.0/24" }
[[service]]
name = "db"
package = "/tmp/c"
networks = ["backend"]
[[service]]
name = "old"
package = "/tmp/c"
ports = ["8090:80"]
"""
OTHER = """\
[stack]
name = "shop"
[networks]
backend = { subnet = "10.99.7.0/24" }
frontend = { subnet = "10.99.8.0/24" }
[[service]]
name = "db"
package = "/tmp/c"
networks = ["backend", "frontend"]
environment = { LEVEL = "debug" }
[[service]]
name = "new"
package = "/tmp/c"
networks = ["frontend"]
ports = ["8090:80"]
depends_on = { db = "started" }
"""


@pytest.fixture
def world() -> Iterator[World]:
    with Lab(600 if LONG else 180) as lab:
        world = World(lab)
        world.niso("activate", "/tmp/c")
        world.niso("remove", "c")
        yield world


def prepare(world: World, text: str | None) -> None:
    world.clear()
    if text is not None:
        world.lab.write("/tmp/stack/stack.toml", text)
        world.niso("stack", "up", "/tmp/stack")


def recovered(world: World, wanted: dict[str, Any], what: str) -> None:
    """As `World.wait_for_snapshot`, but that a lock's file may stay, of a service that never came to be."""
    last: list[str] = []

    def same() -> bool:
        last[:] = [line for line in differences(wanted, world.snapshot()) if "too much /run/niso/locks/" not in line]
        return not last

    try:
        world.lab.wait_for(same, 5, what)
    except BaseException:
        raise AssertionError(f"{what}:\n" + "\n".join(last)) from None


def stack(world: World) -> set[str]:
    rows = json.loads(world.niso("stack", "status", "/tmp/stack", "--json").stdout)
    return {row["service"] for row in rows if row["mode"]}  # the others are in the file alone


def kills(world: World, first: str | None, command: tuple[str, ...], text: str) -> Iterator[tuple[str, Any, Any]]:
    """Kill the command at some of its steps; gives what was done, and snapshots of what was before and what it should reach."""
    prepare(world, first)
    before = world.snapshot()
    world.lab.write("/tmp/stack/stack.toml", text)
    points = world.points(*command)
    assert len(points) > 20 and "commit to the store" in points
    wanted = world.snapshot()
    for number in sample(len(points), KILLS):
        prepare(world, first)
        world.lab.write("/tmp/stack/stack.toml", text)
        done, reached = world.disturbed(number, "kill", *command)
        what = f"killed at {number}, before {points[number - 1]!r}"
        assert (done.returncode, len(reached)) == (-9, number), what
        yield what, before, wanted


@pytest.mark.parametrize("first", [None, ONE], ids=["from nothing", "a change"])
def test_up_killed_at_any_step_leaves_no_half_stack_and_converges(world: World, first: str | None) -> None:
    command = ("stack", "up", "/tmp/stack")
    for what, before, wanted in kills(world, first, command, OTHER):
        world.niso("net", "repair")
        # undone, or done but for the last step: its clean-up
        names = stack(world)
        assert names in ({"db", "new"}, {"db", "old"} if first else set()), what
        recovered(world, wanted if "new" in names else before, f"{what}: recovered")
        world.assert_content()
        world.niso(*command)
        world.wait_for_snapshot(wanted, f"{what}: after the same command again")
        assert stack(world) == {"db", "new"}
        world.assert_content()


def test_down_killed_at_any_step_is_finished(world: World) -> None:
    command = ("stack", "down", "/tmp/stack")
    for what, before, wanted in kills(world, OTHER, command, OTHER):
        world.niso("net", "repair")
        begun = wanted if not world.snapshot()["homes"] else before
        recovered(world, begun, f"{what}: recovered")
        world.niso(*command)
        world.wait_for_snapshot(wanted, f"{what}: after the same command again")
        assert stack(world) == {"db", "new"}
        world.assert_content()


def test_step_of_up_that_is_refused_undoes_it(world: World) -> None:
    prepare(world, ONE)
    before = world.snapshot()
    world.lab.write("/tmp/stack/stack.toml", OTHER)
    points = world.points("stack", "up", "/tmp/stack")
    prepare(world, ONE)
    world.lab.write("/tmp/stack/stack.toml", OTHER)
    for number in sample(len(points), KILLS):
        done, _ = world.disturbed(number, "EIO", "stack", "up", "/tmp/stack")
        if done.returncode == 0:  # clean-up after the last commit
            assert number == len(points)
            continue
        assert done.returncode == 1 and "input/output error" in done.stderr.lower(), points[number - 1]
        recovered(world, before, f"EIO at {number}, {points[number - 1]!r}")
        assert stack(world) == {"db", "old"}
        world.assert_content()
