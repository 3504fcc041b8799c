"""Benchmark one service beside 10 to 1,000 others: its network, the whole command, memory, overhead."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

from driver import Case, Chapter, Failed, Lab, say
from figures import Found

LABS = {
    "niso": "niso",
    "niso-whole": "niso-whole",
    "batch": "batch",
    "netavark": "netavark",
    "cni": "cni",
    "podman": "podman",
    "podman-niso": "podman-niso",
    "docker": "docker",
}
SEVERAL_ROUNDS = 3
LEAST_S = 10  # what is left must be as much for another size to be begun
WHOLE = {"niso": "niso-whole", "podman": "podman", "docker": "docker"}
STARTS = {**WHOLE, "podman-niso": "podman-niso"}


@dataclass(frozen=True)
class Sizes:
    seconds: float
    sizes: tuple[int, ...]
    grow_s: tuple[float, ...]
    """How long a party may take to come to each size; one that does not is measured where it is, and grows no further."""
    rounds: int
    rounds_s: float
    many: int


FULL = Sizes(600, (10, 100, 500, 1_000), (30, 60, 130, 150), 12, 30, 100)
QUICK = Sizes(70, (10, 100), (10, 16), 4, 8, 20)


def measure(sizes: Sizes, leave_out: frozenset[str]) -> Found:
    with Chapter(sizes.seconds, leave_out) as chapter:
        labs: dict[str, Lab] = {}
        for who, kind in LABS.items():
            say(f"a lab for {who}")
            if lab := chapter.lab(kind):
                labs[who] = lab
        at = dict.fromkeys(labs, 0)
        for number, (size, seconds) in enumerate(zip(sizes.sizes, sizes.grow_s, strict=True)):
            if number and chapter.left_s() < LEAST_S:
                chapter.found.lacks(
                    "", "all", size, f"the {sizes.seconds:.0f} s of this chapter were over"
                )
                break
            _grow(chapter, labs, at, size, seconds)
            here = {who: lab for who, lab in labs.items() if at[who]}
            if number == 0:
                _floor(chapter, here, sizes)
            _network(chapter, here, at, size, sizes)
            _whole(chapter, here, at, size, sizes)
            _memory(chapter, here, at, size)
            if number == 0 and "niso-whole" in here:
                _several(chapter, here["niso-whole"], sizes)
            for who in [who for who in labs if at[who] < size]:
                del labs[who]  # it stays as it is, so that the others have the same beside them
        return chapter.found


def _grow(
    chapter: Chapter, labs: dict[str, Lab], at: dict[str, int], size: int, seconds: float
) -> None:
    """All grow at once, in at most that time; who has not come as far is noted."""
    seconds = max(1.0, min(seconds, chapter.left_s()))
    say(f"{size:,} services each, in at most {seconds:.0f} s")
    asked = {who: (lab, "grow", [size, seconds]) for who, lab in labs.items()}
    for who, grown in chapter.at_once(asked, seconds + 90).items():
        at[who] = grown["count"]
        if at[who] < size:
            why = grown["why"] or f"its time limit was {seconds:.0f} s"
            chapter.found.lacks(
                "", LABS[who], size, f"reached only {at[who]:,} services, because {why}"
            )


def _network(
    chapter: Chapter, labs: dict[str, Lab], at: dict[str, int], size: int, sizes: Sizes
) -> None:
    cases: dict[str, Case] = {}
    beside: dict[str, int] = {}
    for who in ("niso", "batch", "netavark", "cni", "docker"):
        if who in labs:
            cases[who] = partial(labs[who].call, "network")
            beside[who] = at[who]
    if "niso" in labs:
        cases["niso command"] = partial(labs["niso"].call, "command")
        beside["niso command"] = at["niso"]
    chapter.in_turn(f"network at {size:,}", cases, beside, size, sizes.rounds, sizes.rounds_s)


def _whole(
    chapter: Chapter, labs: dict[str, Lab], at: dict[str, int], size: int, sizes: Sizes
) -> None:
    here = {who: labs[kind] for who, kind in STARTS.items() if kind in labs}
    cases: dict[str, Case] = {who: partial(lab.call, "whole") for who, lab in here.items()}
    beside = {who: at[STARTS[who]] for who in here}
    chapter.in_turn(f"whole at {size:,}", cases, beside, size, sizes.rounds, sizes.rounds_s)


def _memory(chapter: Chapter, labs: dict[str, Lab], at: dict[str, int], size: int) -> None:
    asked = {who: (labs[kind], "memory", []) for who, kind in WHOLE.items() if kind in labs}
    for who, found in chapter.at_once(asked, 60).items():
        for what in ("processes", "kib"):
            chapter.found.add(what, who, at[WHOLE[who]], size, found[what])


def _several(chapter: Chapter, lab: Lab, sizes: Sizes) -> None:
    end = time.monotonic() + sizes.rounds_s
    for turn in range(SEVERAL_ROUNDS):
        if turn and time.monotonic() > end:
            break
        say(f"{sizes.many} services in one command, {turn + 1} of at most {SEVERAL_ROUNDS}")
        try:
            for what, value in lab.call("several", sizes.many).items():
                chapter.found.add(what, "niso", sizes.many, sizes.many, value)
        except Failed as error:
            chapter.found.lacks("start of many, each", "niso", 0, str(error))
            return


def _floor(chapter: Chapter, labs: dict[str, Lab], sizes: Sizes) -> None:
    """Each command is a party of its own, with one figure."""
    cases = {who: partial(labs[kind].call, "floor") for who, kind in WHOLE.items() if kind in labs}
    chapter.in_turn(
        "floor",
        {who: partial(_floors, case) for who, case in cases.items()},
        0,
        0,
        4 * sizes.rounds,
        sizes.rounds_s,
    )


def _floors(case: Case) -> dict[str, float]:
    return {f"floor: {command}": value for command, value in case().items()}
