"""Draw the charts of the page, PNG and SVG, and print their names: ``plots.py FIGURES FOLDER``. Needs matplotlib."""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Callable, Iterable
from typing import Any

import matplotlib
from figures import Found, Row, median, number
from page_goals import measured
from page_inside import INSIDE
from page_parts import NAMES
from page_ports import flow_lines

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

# niso's stands out; the others' can be told apart without colour too, by their marks.
STYLES: dict[str, tuple[str, str]] = {
    "niso": ("#d1242f", "o"),
    "niso command": ("#f08c6c", "o"),
    "niso forward": ("#8f1d24", "P"),
    "batch": ("#9aa0a6", "x"),
    "netavark": ("#3b6fb6", "s"),
    "cni": ("#7a4fb0", "D"),
    "podman": ("#2f9e73", "^"),
    "podman-niso": ("#7fc6a4", "^"),
    "docker": ("#1b9ad6", "v"),
}
WORDS = {name: words.replace("`", "") for name, words in NAMES.items()}
KINDS = (
    ("tcp", "new TCP connections/s"),
    ("udp", "new UDP flows/s"),
    ("bulk", "throughput, Gbit/s"),
)
_PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.85}
Lines = Iterable[tuple[str, str, str]]
"""(what, who, its name in the legend)"""


def main(store: str, folder: str) -> None:
    figures = json.loads(pathlib.Path(store).read_text(encoding="utf-8"))
    plt.rcParams |= {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e4e4e4",
        "axes.axisbelow": True,
        "legend.frameon": False,
        "svg.hashsalt": "niso",
        "svg.fonttype": "none",
    }
    pictures: dict[str, tuple[str, Callable[[Found], Figure | None]]] = {
        "network": ("services", network),
        "whole": ("services", whole),
        "memory": ("services", memory),
        "floor": ("services", floor),
        "ports": ("ports", ports),
        "flows": ("ports", flows),
        "inside": ("policies", inside),
    }
    for name, (chapter, picture) in pictures.items():
        if chapter not in figures:
            continue
        figure = picture(Found.load(figures[chapter]))
        if figure is None:
            continue
        figure.text(
            0.995,
            0.005,
            _foot(figures[chapter]),
            ha="right",
            va="bottom",
            fontsize=7,
            color="#777777",
        )
        figure.savefig(f"{folder}/{name}.png", dpi=130)
        figure.savefig(f"{folder}/{name}.svg", metadata={"Date": None})
        plt.close(figure)
        print(name)
    if drawn := _goals(figures):
        drawn.savefig(f"{folder}/goals.png", dpi=130)
        drawn.savefig(f"{folder}/goals.svg", metadata={"Date": None})
        plt.close(drawn)
        print("goals")


def _goals(figures: dict[str, Any]) -> Figure | None:
    """Figures before and now relative to their goals: 1 or less is reached."""
    found = measured(figures)[::-1]
    if not found:
        return None
    figure, (axes,) = _figure(1, 1.2 + 0.32 * len(found))
    for at, (goal, value) in enumerate(found):
        then, now = (
            goal.aim / each if goal.more else each / goal.aim for each in (goal.before, value)
        )
        axes.plot([then, now], [at, at], color="#9aa0a6", linewidth=1.5, zorder=1)
        axes.scatter(then, at, color="#9aa0a6", marker="o", zorder=2, label="before")
        axes.scatter(now, at, color=STYLES["niso"][0], marker="D", zorder=3, label="now")
    axes.set_yticks(range(len(found)), [goal.words.replace("`", "") for goal, _ in found])
    axes.axvline(1, color="#333333", linestyle="--", linewidth=1)
    axes.set_xlabel("relative to the goal (dashed): smaller is better")
    _legend(figure, [axes])
    return figure


def _foot(data: dict[str, Any]) -> str:
    peers = [
        release
        for release in data["versions"]
        if release.split()[0] in ("niso", "podman", "netavark", "docker", "CNI")
    ]
    kind = "QUICK RUN, " if data["quick"] else ""
    return f"{kind}{data['date']}   {data['machine']}\n{', '.join(peers)}"


def _figure(columns: int, height: float = 4.6) -> tuple[Figure, list[Axes]]:
    figure, axes = plt.subplots(
        1, columns, figsize=(10.5, height), layout="constrained", squeeze=False
    )
    figure.get_layout_engine().set(rect=(0, 0.34 / height, 1, 1 - 0.34 / height))
    return figure, list(axes[0])


def _lines(
    axes: Axes, found: Found, lines: Lines, x: str, y: str, title: str, scale: float = 1
) -> bool:
    """Medians with least to most, on logarithmic axes; whether there is anything."""
    sizes: set[int] = set()
    for what, who, name in lines:
        rows = [row for row in found.rows(what, who) if row.values]
        if not rows:
            continue
        colour, mark = STYLES[who]
        at, middle = [row.at for row in rows], [median(row) * scale for row in rows]
        own = who.startswith("niso")
        spread = [
            [m - min(row.values) * scale for m, row in zip(middle, rows, strict=True)],
            [max(row.values) * scale - m for m, row in zip(middle, rows, strict=True)],
        ]
        axes.errorbar(
            at, middle, yerr=spread, color=colour, marker=mark, markersize=6 if own else 5, capsize=2, elinewidth=0.8,
            linewidth=2.6 if who == "niso" else 1.8 if own else 1.3, label=name, zorder=3 if own else 2,
        )  # fmt: skip
        sizes |= {row.wanted for row in rows}
    if not sizes:
        axes.set_visible(False)
        return False
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sorted(sizes), [f"{size:,}" for size in sorted(sizes)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=11)
    return True


def _legend(figure: Figure, axes: list[Axes]) -> None:
    entries = {
        name: handle
        for each in axes
        for handle, name in zip(*each.get_legend_handles_labels(), strict=True)
    }
    figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=4, fontsize=9)


def network(found: Found) -> Figure | None:
    figure, axes = _figure(2)
    drawn = []
    for each, (what, title) in zip(
        axes, (("attach", "attached"), ("detach", "detached")), strict=True
    ):
        lines = [
            (what, "niso", "niso, in process: the kernel's part"),
            (what, "niso command", "niso, whole command (no process)"),
            (what, "batch", "ip -batch and nft -f"),
            (what, "netavark", "netavark"),
            (what, "cni", "CNI plugins"),
            (what, "docker", "docker network connect / disconnect"),
        ]
        words = f"one service's network, {title}"
        drawn.append(_lines(each, found, lines, "existing services", "ms (log)", words))
    if not any(drawn):
        return None
    _legend(figure, axes)
    return figure


def whole(found: Found) -> Figure | None:
    figure, axes = _figure(2)
    drawn = []
    for each, (what, title) in zip(
        axes, (("start", "started"), ("remove", "removed")), strict=True
    ):
        lines = [
            (what, "niso", "niso activate / remove"),
            (what, "podman", "podman run -d -p / rm -f"),
            (what, "podman-niso", "the same on a network of niso"),
        ]
        lines.append((what, "docker", "docker run -d -p / rm -f"))
        words = f"one service with its process, {title}"
        drawn.append(_lines(each, found, lines, "existing services", "ms (log)", words))
    if not any(drawn):
        return None
    _legend(figure, axes)
    return figure


def memory(found: Found) -> Figure | None:
    figure, (axes,) = _figure(1)
    lines = [("kib", who, WORDS[who]) for who in ("niso", "podman", "docker")]
    title = "resident memory of all processes of the services, daemons included"
    if not _lines(axes, found, lines, "services", "MiB, PSS (log)", title, 1 / 1024):
        return None
    axes.legend()
    return figure


def floor(found: Found) -> Figure | None:
    names = [
        "python -c pass",
        "niso --version",
        "niso net list",
        "niso ps",
        "docker version",
        "podman version",
    ]
    rows = [(name, next(iter(found.rows(f"floor: {name}")), None)) for name in names]
    bars = [(name, row, name.split()[0]) for name, row in rows if row is not None]
    if not bars:
        return None
    figure, (axes,) = _figure(1, 3.4)
    _bars(axes, bars, "ms", "minimum cost of a command")
    return figure


def _bars(
    axes: Axes, bars: list[tuple[str, Row, str]], x: str, title: str, limit: float = 0
) -> None:
    """Lying bars of medians, with least to most and the figure beside it; ``limit`` is a line to compare with."""
    most = max(max(row.values) for _, row, _ in bars)
    for y, (_, row, who) in enumerate(bars):
        middle = median(row)
        axes.barh(y, middle, color=STYLES.get(who, ("#c9ccd1", ""))[0], height=0.68)
        axes.errorbar(
            middle,
            y,
            xerr=[[middle - min(row.values)], [max(row.values) - middle]],
            color="#333333",
            capsize=2,
            elinewidth=0.8,
        )
        axes.text(
            max(row.values) + most * 0.02,
            y,
            number(middle),
            va="center",
            fontsize=8.5,
            zorder=4,
            bbox=_PAPER,
        )
    axes.set_yticks(range(len(bars)), [name for name, _, _ in bars])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, most * 1.16)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.set_xlabel(x)
    axes.set_title(title, fontsize=11)
    if limit:
        axes.axvline(limit, color="#555555", linestyle="--", linewidth=1)


def ports(found: Found) -> Figure | None:
    figure, axes = _figure(2)
    drawn = []
    for each, (shape, title) in zip(
        axes,
        (("range", "a range that keeps its numbers"), ("each", "each to another number")),
        strict=True,
    ):
        lines = [
            ("niso", "niso, a service with them, in process"),
            ("niso command", "niso, whole command (no process)"),
            ("niso forward", "niso port-forward, in process"),
            ("netavark", "netavark"),
            ("cni", "CNI plugins"),
            ("podman", "podman run"),
            ("docker", "docker run"),
        ]
        named = [(f"publish {shape}", who, name) for who, name in lines]
        drawn.append(
            _lines(
                each, _with_one(found, shape), named, "ports published at once", "ms (log)", title
            )
        )
    if not any(drawn):
        return None
    _legend(figure, axes)
    return figure


def _with_one(found: Found, shape: str) -> Found:
    """One port alone is of both shapes."""
    rows = found.rows(f"publish {shape}")
    if shape == "each":
        rows += [
            Row("publish each", row.who, 1, 1, row.values)
            for row in found.rows("publish range")
            if row.at == 1
        ]
    return Found(rows)


def flows(found: Found) -> Figure | None:
    named = flow_lines(found)
    return _rates(
        found, [(who, name, who.split()[0]) for who, name in named], "tracked", "routed, tracked"
    )


def inside(found: Found) -> Figure | None:
    colours = {"no-policy": "niso", "policed": "niso forward"}
    named = [(who, name, colours.get(who, who)) for who, name in INSIDE.items()]
    return _rates(found, named, "switched", "switching")


def _rates(
    found: Found, named: list[tuple[str, str, str]], limit: str, limit_name: str
) -> Figure | None:
    """More is better; the line is the limit that the kernel alone sets."""
    named = [each for each in named if found.rows("tcp", each[0])]
    if not named:
        return None
    figure, axes = _figure(3, 1.6 + 0.32 * len(named))
    for number_, (each, (what, title)) in enumerate(zip(axes, KINDS, strict=True)):
        bars = [
            (name if number_ == 0 else "", found.rows(what, who)[0], style)
            for who, name, style in named
            if found.rows(what, who)
        ]
        if not bars:
            each.set_visible(False)
            continue
        base = next(iter(found.rows(what, limit)), None)
        _bars(
            each,
            bars,
            f"more is better\n(dashed: {limit_name})",
            title,
            median(base) if base else 0,
        )
        each.xaxis.set_major_locator(plt.MaxNLocator(4))
    return figure


if __name__ == "__main__":
    main(*sys.argv[1:])
