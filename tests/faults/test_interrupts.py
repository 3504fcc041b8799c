"""Interrupt commands with INT or TERM, alone or as a process group, once or twice, at any moment.

What was begun is undone or can be done again, nothing of niso stays behind, and no command hangs. ``NISO_TEST_LONG=1`` takes more.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator

import pytest
from conftest import Lab
from fault_cases import CASES, Undisturbed, again, as_before, guarded, prepare, ready
from fault_world import LOG, LONG, World

NAMES = tuple(CASES) if LONG else ("changed-environment", "restart", "stack-change")
MOMENTS = 30 if LONG else 2
LATER_S = 0.02  # a moment is after some step, by at most this


@pytest.fixture
def world() -> Iterator[World]:
    with Lab(1800 if LONG else 240) as lab:
        yield ready(lab)


def interrupt(
    world: World, command: list[str], steps: int, chance: random.Random
) -> tuple[str, int, str]:
    """Interrupt a command some time after its ``steps``-th step; in which way, its exit status and its words."""
    log = world.lab.path(LOG)
    log.unlink(missing_ok=True)
    number, times = chance.choice((signal.SIGINT, signal.SIGTERM)), chance.choice((1, 1, 2))
    whole_group = chance.choice((True, False))
    process = world.lab.popen(
        "niso", *command, inside=False, env={"NISO_FAILPOINT": "0", "NISO_FAILPOINT_LOG": LOG}
    )
    world.lab.wait_for(
        lambda: log.exists() and f"\n{steps} " in f"\n{log.read_text()}", 30, f"{steps} steps"
    )
    for _ in range(times):
        time.sleep(chance.uniform(0, LATER_S))
        if whole_group:
            process.send_signal(number)
        else:
            world.lab.run(
                "kill", f"-{number.name.removeprefix('SIG')}", str(process.pid), check=False
            )
    _, words = process.communicate(timeout=60)
    assert "Traceback" not in words and "bug in niso" not in words, words
    assert process.returncode is not None
    way = (
        f"{times} {number.name} to {'the group' if whole_group else 'it alone'} after step {steps}"
    )
    return way, process.returncode, words


@pytest.mark.parametrize("name", NAMES)
def test_command_that_is_interrupted_at_any_moment_is_undone_or_done_again(
    world: World, name: str
) -> None:
    known = Undisturbed(world, name)
    case, chance = known.case, random.Random(f"interrupt {name}")
    interrupted = 0
    for _ in range(MOMENTS):
        prepare(world, case)
        steps = chance.randint(1, len(known.points))
        what, status, words = interrupt(world, case.command.split(), steps, chance)
        assert status in (0, 130), (
            what,
            status,
            words,
        )  # a second one soon after the first counts as the same
        interrupted += status == 130
        assert status != 130 or "niso: interrupted" in words, (what, words)
        if case.undoes and status == 130:
            found = world.snapshot()["store"]
            assert found in (known.before["store"], known.wanted["store"]), what
            world.wait_for_snapshot(
                known.before if found == known.before["store"] else known.wanted, what
            )
            world.assert_whole()
        if not case.damaged:
            world.wait_until_right(guarded, what)
        again(world, case)
        world.wait_for_snapshot(known.wanted, f"{what}: after the same command again")
        world.assert_whole()
        as_before(world, known.baseline, what)
    assert interrupted or name.startswith("port-")  # these can be over before a signal comes


def test_burst_of_signals_is_one_and_what_was_begun_is_undone(world: World) -> None:
    """As timeout(1) sends them: to the command, and then to its group; while it waits, works, undoes and ends."""
    before = world.snapshot()
    for moment in range(40 if LONG else 10):
        process = world.lab.popen("niso", "activate", "/tmp/a", inside=False)
        time.sleep(0.03 + moment % 10 * 0.02)
        for _ in range(20):
            process.send_signal(signal.SIGTERM)
        _, words = process.communicate(timeout=60)
        assert "Traceback" not in words and "Exception" not in words, words
        assert process.returncode in (0, 130) or (
            process.returncode == -signal.SIGTERM and not words
        ), words
        if process.returncode == 130:
            assert words.endswith("niso: interrupted\n"), words
        world.clear()
        world.wait_for_snapshot(before, f"moment {moment}")
