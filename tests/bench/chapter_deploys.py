"""Benchmark deploys: how many requests fail while a service is replaced by its next version."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from driver import Case, Chapter
from figures import Found

LABS = {
    "start-first": "deploy-start-first",
    "replicas": "deploy-replicas",
    "stop-first": "deploy-stop-first",
    "podman": "deploy-podman",
    "docker": "deploy-docker",
}


@dataclass(frozen=True)
class Sizes:
    seconds: float
    rounds: int
    rounds_s: float


FULL = Sizes(240, 12, 150)
QUICK = Sizes(60, 3, 40)


def measure(sizes: Sizes, leave_out: frozenset[str]) -> Found:
    with Chapter(sizes.seconds, leave_out) as chapter:
        cases: dict[str, Case] = {
            who: partial(lab.call, "replace")
            for who, kind in LABS.items()
            if who not in leave_out and (lab := chapter.lab(kind, who))
        }
        chapter.in_turn("deploys", cases, 0, 0, sizes.rounds, sizes.rounds_s)
        return chapter.found
