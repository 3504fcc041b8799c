"""Every command dies, or fails, at each of its steps; what is left is never wider than declared, the next command works, and the
same command again makes it whole.

``NISO_TEST_LONG=1`` takes every step and every kind of failure, with ``NISO_TEST_STEPS=N`` at most N steps for each command and
kind; else each command dies or fails once.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Lab
from fault_cases import (
    CASES,
    ERRNOS,
    LATER,
    OTHERS,
    Case,
    Undisturbed,
    again,
    as_before,
    guarded,
    look,
    numbers,
    prepare,
    ready,
    some,
)
from fault_world import LONG, World, borrowed

FAILURES = (*ERRNOS, *LATER)
ACTIONS = ("kill", *FAILURES) if LONG else ("some",)
STEPS = int(os.environ.get("NISO_TEST_STEPS", "1000"))


@pytest.fixture
def world(left: list[World]) -> Iterator[World]:
    yield from borrowed(left, lambda: ready(Lab(3000).__enter__()))


def assert_guarded(world: World, case: Case, what: str) -> dict[str, Any]:
    """Nothing is wider than declared, but for what goes in its own time; gives a snapshot."""
    return world.snapshot() if case.damaged else world.wait_until_right(guarded, what)


def others_work(world: World, known: Undisturbed, position: int, action: str, what: str) -> None:
    """A command of another kind; but for one that only looks, it wholly finishes or undoes what was begun."""
    another = OTHERS[position % len(OTHERS)]
    another(world)
    # a process that cannot be started again is told, and left to `repair`
    if known.case.recovers and another is not look and action not in ("crun", "conmon"):
        world.assert_whole()
        assert world.snapshot()["store"] in (known.before["store"], known.wanted["store"]), what


def killed(world: World, known: Undisturbed, number: int, position: int) -> None:
    case = known.case
    what = f"killed at {number}, before {known.points[number - 1]!r}"
    prepare(world, case)
    done, reached = world.disturbed(number, "kill", *case.command.split())
    # of services that are created at once, which is first differs
    assert (
        done.returncode == -9 and len(reached) == number and not set(reached) - set(known.points)
    ), what
    homes = assert_guarded(world, case, what)["homes"]
    for row in json.loads(world.niso("ps", "--json").stdout):
        assert row["service"] in homes or row["status"] in ("inactive", "failed", "exited (143)"), (
            what,
            row,
        )
    others_work(world, known, position, "kill", what)
    again(world, case)
    world.wait_for_snapshot(known.wanted, f"{what}: after the same command again")
    world.assert_whole()
    as_before(world, known.baseline, what)


def failed(world: World, known: Undisturbed, number: int, action: str, position: int) -> bool:
    """Whether all is as before the command, which has told what failed; else it is done, by the same command again."""
    case = known.case
    what = f"{action} at {number}, {known.points[number - 1]!r}"
    done, _ = world.disturbed(number, action, *case.command.split())
    if done.returncode:
        assert done.returncode == 1, what
        told = [line for line in done.stderr.splitlines() if not line.startswith("  ")]
        lines = [
            line for line in told if not re.search(r"\(\d+s\)$", line)
        ]  # a stack's step that takes long
        assert lines[0].startswith("niso: "), (what, done.stderr)
        assert reason(action) in done.stderr.lower(), (what, done.stderr)
        if action in ERRNOS and case.undoes:
            assert len(lines) == 1, (what, done.stderr)
    assert_guarded(world, case, what)
    # after the last commit, the command deletes the manifest of the former copy: nothing is undone
    cleans_up = known.points[number - 1].startswith("delete ")
    if done.returncode and case.undoes and not cleans_up:
        if action in LATER:  # which may have kept it from being undone at once
            others_work(world, known, 1 + position % 2, action, what)
            again_ = world.niso("net", "repair", check=False)
            assert again_.returncode == 0, (what, again_)
        # what was undone, or else finished, is so wholly
        last = known.before if was_undone(world, known) else known.wanted
        assert last is known.before or action in LATER, what
        world.wait_for_snapshot(last, f"{what}: right after the failure")
        world.assert_whole()
        return last is known.before
    others_work(world, known, position, action, what)
    again(world, case)
    world.wait_for_snapshot(known.wanted, f"{what}: after the same command again")
    world.assert_whole()
    return False


def was_undone(world: World, known: Undisturbed) -> bool:
    """Whether the records are those of before the command; what could not be undone may have been finished."""
    return bool(world.snapshot()["store"] == known.before["store"])


def reason(action: str) -> str:
    """What the command says of the failure, in lower case."""
    later = {
        "overrun": "no buffer space",
        "sqlite-busy": "database is locked",
        "sqlite-full": "disk is full",
        "crun": "niso: ",  # whoever waits for what crun does says that it is not so
        "conmon": "conmon ended without a message",
    }
    return later.get(action) or ERRNOS[action].lower()


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("name", CASES)
def test_command_that_dies_or_fails_at_any_step_is_never_wide_and_converges(
    world: World, left: list[World], name: str, action: str
) -> None:
    known = Undisturbed(world, name)
    every = {each: numbers(each, known.points, known.uses) for each in ("kill", *FAILURES)}
    if not LONG:
        place = list(CASES).index(name)
        possible = [each for each in FAILURES if every[each]]
        # every second command dies, the others fail
        action = "kill" if place % 2 else possible[place // 2 % len(possible)]
        every = {action: some(name, action, every[action], 1)}
    else:
        every = {action: some(name, action, every[action], STEPS)}
    prepared = False
    for each, steps in every.items():
        for position, number in enumerate(steps):
            if each == "kill":
                killed(world, known, number, position)
                continue
            if not prepared:
                prepare(world, known.case)
            prepared = failed(world, known, number, each, position)
            if not prepared:
                as_before(world, known.baseline, f"{each} at {number}")
    if prepared:
        as_before(world, known.baseline, "failed and undone")
    if LONG and action == "kill":
        prepare(world, known.case)
        done, _ = world.disturbed(len(known.points) + 1, "kill", *known.case.command.split())
        assert done.returncode == 0
        as_before(world, known.baseline, "not killed")
    left.append(world)


@pytest.mark.parametrize(
    "name",
    ["changed-network", "deactivate-last"]
    + (["first-activate", "changed-environment"] if LONG else []),
)
def test_recovery_that_is_killed_too_is_recovered(
    world: World, left: list[World], name: str
) -> None:
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

    def begin() -> None:
        prepare(world, case)
        world.disturbed(died, "kill", *command)

    world.assert_recovery_recovers(
        begin, wanted, lambda what: as_before(world, baseline, what), 2, is_wide=guarded
    )
    left.append(world)


OVERRUN = """\
import errno, socket
from niso.base.errors import KernelError
from niso.kernel.rtnetlink import Rtnl
with Rtnl() as netlink:
    netlink._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    try:
        netlink.delete_links([f"none{number}" for number in range(64)])
    except KernelError as error:
        print(errno.errorcode[error.errno], error.message)
"""


def test_answers_that_the_kernel_drops_are_a_failure(world: World) -> None:
    """What the failpoint `overrun` stands for: a real socket whose buffer is too small for what the kernel answers."""
    done = world.lab.run("python", "-c", OVERRUN, timeout=20)
    assert done.stdout.startswith("ENOBUFS cannot delete links 'none0', "), done
    assert "no buffer space available" in done.stdout
