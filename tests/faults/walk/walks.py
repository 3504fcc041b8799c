"""Whole walks, and those that failed: how to take their steps again, and fewer of them."""

from __future__ import annotations

import pathlib
import subprocess
import tempfile
import time
from collections import Counter

from conftest import LabEnded

from walk.draw import Draw
from walk.machine import Machine
from walk.parts import Step, dumped
from walk.walker import Failure, Walker

STEPS = 40
"""Steps of a walk; then everything is removed."""
LAB_S = 1200
SHRINK_S = 120.0
ENDS = (Failure, LabEnded, OSError, subprocess.TimeoutExpired)
"""How a walk fails: the last ones are a lab that died or a command that hangs."""


def walk(seed: int, steps: int, counts: Counter[str], shrink: bool = False) -> list[str]:
    """Walk once; return how it failed, a line each. ``counts`` is added to."""
    with Machine(LAB_S) as machine:
        walker = Walker(machine, seed)
        try:
            walker.walk(Draw(seed), steps)
            return []
        except ENDS as error:
            lines = _report(seed, walker.steps, str(error).splitlines())
        finally:
            counts.update(walker.counts)
    return lines + (replay(walker.steps, seed, True) if shrink else [])


def replay(steps: list[Step], seed: int, shrink: bool = False) -> list[str]:
    """Take steps; return how they fail, or fewer of them with ``shrink``."""
    last = _fails(steps, seed)
    if last is None:
        return []
    if shrink:
        steps, last = _shrunk(steps, seed, last)
    return _report(seed, steps, last)


def counted(counts: Counter[str]) -> str:
    """Return what walks did, in one line."""
    return ", ".join(f"{number} {what}" for what, number in sorted(counts.items()))


def _report(seed: int, steps: list[Step], lines: list[str]) -> list[str]:
    file = pathlib.Path(tempfile.gettempdir()) / f"niso-walk-{seed}-{len(steps)}.json"
    file.write_text(dumped(steps), encoding="utf-8")
    listed = [f"{number:3} {step.text}" for number, step in enumerate(steps, 1)]
    return [
        f"walk: seed {seed} fails after {len(steps)} steps:",
        *lines,
        "its steps:",
        *listed,
        f"to take them again: ./dev walk --seed {seed} --replay {file}",
    ]


def _fails(steps: list[Step], seed: int) -> list[str] | None:
    """Take steps on a new machine; return how they fail, or None."""
    with Machine(LAB_S) as machine:
        walker = Walker(machine, seed)
        try:
            for step in steps:
                walker.take(step)
            walker.clear()
        except ENDS as error:
            return str(error).splitlines()
    return None


def _shrunk(steps: list[Step], seed: int, last: list[str]) -> tuple[list[Step], list[str]]:
    """Return (fewer steps that fail too, how), after at most about `SHRINK_S`."""
    until = time.monotonic() + SHRINK_S
    size = len(steps) // 2
    while size and time.monotonic() < until:
        start = 0
        while start < len(steps) - 1 and time.monotonic() < until:
            # the last step is where it fails
            fewer = [*steps[:start], *steps[min(start + size, len(steps) - 1) :]]
            lines = _fails(fewer, seed)
            if lines is None:
                start += size
            else:
                steps, last = fewer, lines
        size //= 2
    return steps, last
