"""Write the page of results: Markdown from figures. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from figures import Found
from page_cluster import cluster
from page_expect import expect
from page_inside import inside
from page_parts import NAMES, prose
from page_ports import ports
from page_services import services
from page_summary import short
from page_thousand import thousand

BUSY = 10
"""From this load of the machine on a chapter is not to be relied on: its own labs make up to 7."""


def text(figures: dict[str, Any], pictures: Iterable[str]) -> str:
    """Return the whole page. ``pictures`` has the names of the charts that could be drawn."""
    drawn = set(pictures)
    lines = [
        "# Benchmarks: niso and its peers",
        "",
        *_how(figures),
        *expect(figures),
        "## Summary",
        "",
        short(figures),
        "",
    ]
    for name, write in (
        ("services", services),
        ("thousand", thousand),
        ("ports", ports),
        ("policies", inside),
        ("cluster", cluster),
    ):
        if name in figures:
            found = Found.load(figures[name])
            lines += write(found, drawn)
            lines += _went(name, figures[name], found)
        else:
            lines += [f"## {name.capitalize()}", "", "Not measured yet.", ""]
    return "\n".join(lines).rstrip() + "\n"


def _how(figures: dict[str, Any]) -> list[str]:
    quick = any(each["quick"] for each in figures.values())
    lines = [
        prose(
            "`./dev bench` writes this page. Each party runs in a lab of its own. All labs of a chapter are"
            " up at once, and the parties are measured in turn (A B C C B A …), after one round that is not"
            " counted. A ratio is the median of the ratios of the rounds. Smaller is better, except for"
            " traffic. All state folders are on tmpfs, so no figure contains a disk's fsync."
        ),
        "",
    ]
    if quick:
        lines += [
            "**This was a quick run: few rounds, small sizes. `./dev bench` measures reliable figures.**",
            "",
        ]
    for each in {
        repr((each["machine"], each["versions"])): each for each in figures.values()
    }.values():
        lines.append(prose(f"- machine: {each['machine']}", "  "))
        lines.append(prose(f"- versions: {', '.join(each['versions'])}", "  "))
    return [*lines, ""]


def _went(name: str, data: dict[str, Any], found: Found) -> list[str]:
    """Say when a chapter was measured, for how long and under which load, and what is missing."""
    lines = []
    if found.absent:
        lines += ["Not measured:", ""]
        for each in found.absent:
            at = f" at {each.at:,}" if each.at else ""
            what = f" ({each.what})" if each.what else ""
            lines.append(prose(f"- {NAMES.get(each.who, each.who)}{at}{what}: {each.why}", "  "))
        lines.append("")
    if max(map(float, data["load"])) >= BUSY:
        words = "**Measured on a machine that was busy with other work**: times are too long, and ratios of traffic are rough."
        lines += [prose(words), ""]
    rounds = "; ".join(found.notes)
    kind = "quick run, " if data["quick"] else ""
    lines += [
        prose(
            f"<sub>{kind}{data['date']}, {data['seconds']} s, load of the machine {data['load'][0]} to"
            f" {data['load'][1]}. Rounds, with the load before and after: {rounds}.</sub>"
        ),
        "",
    ]
    return lines
