"""Random walks (`walk`): whatever is done in whatever order, all is as the model says after each step."""

from __future__ import annotations

import os
import random
import time
from collections import Counter

import pytest
from walk import outside, walks
from walk.draw import Draw
from walk.machine import Machine
from walk.model import World
from walk.parts import HOST, Command, Manifest, Port, Step, dumped, loaded
from walk.walker import Failure, Walker

LONG = os.environ.get("NISO_TEST_LONG") == "1"
MINUTES = 30
SEEDS = (1, 2, 3, 4) if LONG else (1, 2)
STEPS = 30 if LONG else 20


@pytest.mark.first
@pytest.mark.parametrize("seed", SEEDS)
def test_walk_is_as_the_model_says(seed: int) -> None:
    failed = walks.walk(seed, STEPS, Counter())
    assert not failed, "\n".join(failed)


@pytest.mark.skipif(not LONG, reason="NISO_TEST_LONG=1 walks for half an hour")
def test_long_walk_is_as_the_model_says() -> None:
    until = time.monotonic() + MINUTES * 60
    counts: Counter[str] = Counter()
    while time.monotonic() < until:
        failed = walks.walk(random.randrange(1 << 31), walks.STEPS, counts, shrink=True)
        assert not failed, "\n".join(failed)
    print(walks.counted(counts))


def test_steps_of_a_walk_can_be_kept() -> None:
    """As a failed walk keeps them, to take them again: the same seed draws them, and a file has them."""

    def drawn() -> list[Step]:
        draw, world = Draw(1), World()
        steps = []
        for _ in range(300):
            steps.append(draw.step(world))
            if steps[-1].command:
                world = world.after(steps[-1].command)[1][0]
        return steps

    assert loaded(dumped(drawn())) == drawn()


SEEN = ("link", "port off", "address", "route", "ports", "rules", "hosts", "bridge", "both")


def test_walk_sees_what_is_wrong_without_the_help_of_niso() -> None:
    """What other programs damage is seen in the kernel, in hosts files or by connections alone."""
    ada = Manifest("ada", networks=("red",), ports=(Port(9000, 8001, at=HOST),))
    bob = Manifest("bob", networks=("red",))
    with Machine(300) as machine:
        walker = Walker(machine, 0, patience_s=0.3)
        walker.take(Step("command", Command(("activate", "/tmp/walk/ada"), (ada,))))
        walker.take(Step("command", Command(("activate", "/tmp/walk/bob"), (bob,))))
        for kind in SEEN:
            machine.damage(outside.script(kind, "ada", "red", machine.pids()["ada"]))
            with pytest.raises(Failure) as failure:
                walker.settle(trusting=True)
            assert not any("net check" in line for line in failure.value.lines)
            machine.quick("net", "repair")
        walker.settle()
