"""Write the section that compares the main figures with those of an earlier commit and with goals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from figures import Found, Row, median, number, ratio
from page_parts import picture, prose

EARLIER = "dcb8fea9 and 7356d8a7"
"""The commits that `Goal.before` was measured on, with this benchmark and on such a machine."""


class Goal(NamedTuple):
    words: str
    unit: str
    before: float
    aim: float
    more: bool
    """Whether higher values are better."""
    find: Callable[[Callable[[str, str, str], Row | None]], float | None]


def _ratio(chapter: str, what: str, who: str, whose: str, over: str = "") -> Any:
    return lambda row: ratio(row(chapter, what, who), row(chapter, over or what, whose))


def _value(chapter: str, what: str, who: str, scale: float = 1) -> Any:
    def find(row: Callable[[str, str, str], Row | None]) -> float | None:
        own = row(chapter, what, who)
        return median(own) * scale if own else None

    return find


def _grows(row: Callable[[str, str, str], Row | None]) -> float | None:
    return ratio(row("services", "attach", "niso>"), row("services", "attach", "niso"))


GOALS = (
    Goal("attach a network, in process", "ms", 3.01, 1.8, False, _value("services", "attach", "niso")),
    Goal("the same with 1,000 services, to 10", "", 1.40, 1.3, False, _grows),
    Goal("`niso activate` to `podman run`", "", 0.87, 0.70, False, _ratio("services", "start", "niso", "podman")),
    Goal("`niso activate` to `docker run`", "", 0.44, 0.35, False, _ratio("services", "start", "niso", "docker")),
    Goal("`podman run` on a niso network to its own", "", 1.11, 1.05, False, _ratio("services", "start", "podman-niso", "podman")),
    Goal("new TCP connections through a port, to one DNAT rule", "", 0.90, 0.95, True, _ratio("ports", "tcp", "niso 1", "translated")),
    Goal("new UDP flows through a port, to one DNAT rule", "", 0.86, 0.95, True, _ratio("ports", "udp", "niso 1", "translated")),
    Goal("inside a bridge on one processor, to switching", "", 0.86, 0.93, True, _ratio("policies", "path tcp", "switched", "no-policy")),
    Goal("the same with a policy", "", 0.67, 0.72, True, _ratio("policies", "path tcp", "switched", "policed")),
    Goal("new connections between hosts, to a bare tunnel", "", 0.76, 0.85, True, _ratio("cluster", "tcp", "span", "tunnel")),
    Goal("throughput between hosts, to a bare tunnel", "", 0.89, 0.95, True, _ratio("cluster", "bulk", "span", "tunnel")),
    Goal("`niso net check` of 1,000 services, memory", "MiB", 31.5, 25, False, _value("thousand", "check, MiB", "many")),
    Goal("`niso net repair` of 1,000 services, memory", "MiB", 47, 35, False, _value("thousand", "repair, MiB", "many")),
    Goal("`niso restore` of 500 services", "s", 6.4, 5, False, _value("thousand", "restore", "rebooted", 0.001)),
    Goal("`niso deactivate --all` of 1,000 services", "s", 8.8, 6, False, _value("thousand", "end all", "many", 0.001)),
)  # fmt: skip


def measured(figures: dict[str, Any]) -> list[tuple[Goal, float]]:
    """Return the goals whose figures were measured, each with its present figure."""
    chapters = {name: Found.load(each) for name, each in figures.items()}

    def row(chapter: str, what: str, who: str) -> Row | None:
        """Return the row with the fewest other services, or the most (``who`` ends with ``>``)."""
        found = chapters[chapter].rows(what, who.rstrip(">")) if chapter in chapters else []
        return found[-1 if who.endswith(">") else 0] if found else None

    pairs = [(goal, goal.find(row)) for goal in GOALS]
    return [(goal, value) for goal, value in pairs if value is not None]


def goals(figures: dict[str, Any], drawn: set[str]) -> list[str]:
    lines = [
        "## Before, now, and the goals",
        "",
        *picture("goals", "The main figures before and now, relative to their goals", drawn),
        "| | before | now | goal | reached |",
        "| --- | --- | --- | --- | --- |",
    ]
    for goal, value in measured(figures):
        unit = f" {goal.unit}" if goal.unit else ""
        aim = f"{'≥' if goal.more else '≤'} {number(goal.aim)}{unit}"
        reached = value >= goal.aim if goal.more else value <= goal.aim
        cells = [f"{number(goal.before)}{unit}", f"**{number(value)}**{unit}", aim]
        lines.append(f"| {goal.words} | {' | '.join(cells)} | {'yes' if reached else 'no'} |")
    words = (
        f"The figures before are those of commits {EARLIER}, before the code was reorganised."
        " [Performance](../design/performance.md) says what limits the figures that miss their goals."
    )
    return [*lines, "", prose(words), ""]
