"""Benchmark policies: traffic on a bridge with and without one, and the cost of a policy change."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from chapter_ports import RATES
from driver import Case, Chapter, Failed, Lab, flows_program, say
from figures import Found

FEW = 12
KINDS = (
    "switched",
    "tracked",
    "no-policy",
    "no-policy-forgets",
    "policed",
    "policed-forgets",
    "unlimited",
)


@dataclass(frozen=True)
class Sizes:
    seconds: float
    many: int
    rounds: int
    rounds_s: float
    flow_rounds: int
    flow_ms: int


FULL = Sizes(150, 1_000, 12, 30, 12, 250)
QUICK = Sizes(30, 100, 3, 4, 3, 100)


def measure(sizes: Sizes, leave_out: frozenset[str]) -> Found:
    with Chapter(sizes.seconds, leave_out) as chapter:
        _rates(chapter, sizes)
        _changes(chapter, sizes)
        return chapter.found


def _rates(chapter: Chapter, sizes: Sizes) -> None:
    try:
        flows = flows_program()
    except Failed as error:
        chapter.found.lacks("", "", 0, str(error))
        return
    cases: dict[str, Case] = {}
    paths: dict[str, Case] = {}
    labs: dict[str, Lab] = {}
    for kind in KINDS:
        say(f"inside a bridge: {kind}")
        if lab := chapter.lab(kind, flows=flows):
            try:
                lab.call("fill", 0)
                lab.call("forget_soon")
                labs[kind], paths[kind] = lab, partial(_path, lab)
            except Failed as error:
                chapter.found.lacks("", kind, 0, str(error))
    chapter.in_turn("one processor", paths, 0, 0, sizes.flow_rounds, sizes.rounds_s)
    for kind, lab in labs.items():
        try:
            lab.call("serve")
            cases[kind] = partial(_rate, lab, sizes.flow_ms)
        except Failed as error:
            chapter.found.lacks("", kind, 0, str(error))
    chapter.in_turn("inside a bridge", cases, 0, 0, sizes.flow_rounds, sizes.seconds / 3)


def _rate(lab: Lab, ms: int) -> dict[str, float]:
    return {proto: lab.call("rate", proto, "", ms) for proto in RATES}


def _path(lab: Lab) -> dict[str, float]:
    return {f"path {proto}": lab.call("path", proto) for proto in RATES}


def _changes(chapter: Chapter, sizes: Sizes) -> None:
    cases: dict[str, Case] = {}
    at = {f"niso {count}": count for count in (FEW, sizes.many)}
    for name, count in at.items():
        say(f"{count:,} services with policies")
        if lab := chapter.lab("policies", "niso", name=name):
            try:
                lab.call("fill", count, within_s=max(1.0, chapter.left_s()))
                cases[name] = partial(lab.call, "change")
            except Failed as error:
                chapter.found.lacks("", name, 0, str(error))
    chapter.in_turn("changes of policies", cases, at, 0, sizes.rounds, sizes.rounds_s)
