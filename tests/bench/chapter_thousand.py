"""Benchmark commands beside 1,000 services on one network, to the same beside 10."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from driver import Case, Chapter, Failed, Lab, say
from figures import Found

STATE = "/var/lib/niso"
"""The folder that a machine keeps over a reboot, with /tmp/packages."""


@dataclass(frozen=True)
class Sizes:
    seconds: float
    few: int
    many: int
    grow_s: float
    rounds: int
    rounds_s: float
    together: int
    stack: tuple[int, int]
    """The layers of the stack, and how many services each has."""
    enabled: int
    leases: int
    networks: int


FULL = Sizes(290, 10, 1_000, 120, 6, 45, 100, (10, 5), 500, 10_000, 200)
QUICK = Sizes(60, 5, 50, 20, 2, 10, 20, (4, 3), 20, 500, 20)


def measure(sizes: Sizes, leave_out: frozenset[str]) -> Found:
    with Chapter(sizes.seconds, leave_out) as chapter:
        labs = {
            who: lab
            for who in ("few", "stored", "many")
            if (lab := chapter.lab("thousand", who, who))
        }
        at = {"few": sizes.few, "stored": sizes.many, "many": sizes.many}
        say(f"{at} services, and {sizes.leases:,} leases")
        asked = {who: (lab, "grow", [at[who], sizes.grow_s]) for who, lab in labs.items()}
        for who, grown in chapter.at_once(asked, sizes.grow_s + 60).items():
            at[who] = grown["count"]
        with _noted(chapter, "stored"):
            labs["stored"].call("crowd", sizes.leases, sizes.networks, within_s=120)
        turns: list[tuple[str, int, tuple[str, ...]]] = [
            ("commands", sizes.rounds, ("few", "stored", "many")),
            ("repair", 3, ("few", "many")),
        ]
        for method, rounds, whos in turns:
            cases: dict[str, Case] = {
                who: partial(labs[who].call, method) for who in whos if who in labs
            }
            chapter.in_turn(method, cases, at, 0, rounds, sizes.rounds_s)
        chapter.in_turn(
            "together",
            {
                "few": partial(labs["few"].call, "several", sizes.together),
                "stack": partial(labs["few"].call, "stacked", *sizes.stack),
            },
            {"few": sizes.together, "stack": sizes.stack[0] * sizes.stack[1]},
            0,
            3,
            sizes.rounds_s,
        )
        end = partial(labs["many"].call, "end", sizes.enabled, within_s=120)
        chapter.once("end all", "many", at["many"], end)
        rebooted = chapter.lab("thousand-rebooted", "rebooted")
        if rebooted:
            _move(labs["many"], rebooted)
            restore = partial(rebooted.call, "restore", within_s=120)
            chapter.once("restore", "rebooted", sizes.enabled, restore)
        return chapter.found


def _move(before: Lab, after: Lab) -> None:
    """Let a lab have what another one has on its disk, as after a reboot."""
    for folder in (STATE, "/tmp/packages"):
        old, new = (f"/proc/{lab.inside()}/root{folder}" for lab in (before, after))
        shutil.copytree(old, new, symlinks=True, dirs_exist_ok=True)


@contextlib.contextmanager
def _noted(chapter: Chapter, who: str) -> Iterator[None]:
    try:
        yield
    except (Failed, KeyError) as error:
        chapter.found.lacks("", who, 0, str(error))
