"""Write the page of results: Markdown from figures. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from figures import Found
from page_cluster import cluster
from page_deploys import deploys
from page_expect import expect
from page_goals import goals
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
        *goals(figures, drawn),
    ]
    for name, write in (
        ("services", services),
        ("thousand", thousand),
        ("ports", ports),
        ("policies", inside),
        ("deploys", deploys),
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
            "`./dev bench` writes this page. Each measured program runs in its own lab. All labs of a section"
            " exist at the same time, and the programs are measured alternately (A B C C B A …), after one"
            " round that does not count. A figure is the median of all rounds, with the lowest and the highest in brackets. “with 311 services” after"
            " a figure means that the program reached only 311 services within its time limit. A ratio is the median of the ratios of all rounds. Smaller values are"
            " better, except for traffic. All state folders are on tmpfs, so the figures do not include fsync"
            " to a disk."
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
        words = "**The machine was busy with other work during this measurement**: times are too long, and ratios of traffic are imprecise."
        lines += [prose(words), ""]
    kind = "as a quick run " if data["quick"] else ""
    lines += [
        prose(
            f"These figures were measured {kind}on {data['date']} and took {data['seconds']} s. The load of the machine"
            f" was {data['load'][0]} at the start and {data['load'][1]} at the end."
        ),
        "",
        "| measurement | rounds | load before | load after |",
        "| --- | --- | --- | --- |",
        *(
            re.sub(r"(.*): (\d+) rounds, load (.*) to (.*)", r"| \1 | \2 | \3 | \4 |", note)
            for note in found.notes
        ),
        "",
    ]
    return lines
