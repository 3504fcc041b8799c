"""Write the summary of the page of results."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from figures import Found, Row, median, number, ratio, times


def short(figures: dict[str, Any]) -> str:
    """Return the main figures, those of the peers, and niso's targets, as a table."""
    lines = ["| | niso | compared with | ratio | target |", "| --- | --- | --- | --- | --- |"]

    def line(
        words: str,
        own: Row | None,
        others: Iterable[tuple[str, Row | None]],
        unit: str,
        aim: str = "",
    ) -> None:
        if own is None:
            return
        rest = [(name, row) for name, row in others if row is not None]
        beside = ", ".join(f"{name} {number(median(row))}" for name, row in rest)
        ratios = ", ".join(times(ratio(own, row)) for _, row in rest)
        lines.append(
            f"| {words} | **{number(median(own))}** {unit} | {beside} | {ratios} | {aim} |"
        )

    if "services" in figures:
        found = Found.load(figures["services"])
        sizes = found.sizes("attach")
        few, many = (sizes[0], sizes[-1]) if sizes else (0, 0)
        tools, engines = ("netavark", "cni", "docker"), ("podman", "docker")
        own = found.row("attach", "niso", few)
        line(
            f"attach a network, in process, with {few} services",
            own,
            _of(found, "attach", tools, few),
            "ms",
            "≤ 2 ms",
        )
        beside = [(f"niso with {few}", own), *_of(found, "attach", tools, many)]
        line(
            f"attach a network, in process, with {many:,} services",
            found.row("attach", "niso", many),
            beside,
            "ms",
            f"≤ 1.5 times that with {few}",
        )
        line(
            f"detach, with {few} services",
            found.row("detach", "niso", few),
            _of(found, "detach", tools, few),
            "ms",
            "≤ 2 ms",
        )
        beside = _of(found, "attach", tools, few)
        line(
            f"attach by a command, with {few} services",
            found.row("attach", "niso command", few),
            beside,
            "ms",
        )
        beside = _of(found, "start", engines, few)
        aim = "≤ 0.7 of podman, ≤ 0.35 of docker"
        line(
            f"start a service by a command, with {few} services",
            found.row("start", "niso", few),
            beside,
            "ms",
            aim,
        )
        line(
            f"remove a service, with {few} services",
            found.row("remove", "niso", few),
            _of(found, "remove", engines, few),
            "ms",
        )
        for row in found.rows("start of many, each"):
            beside = [("one service", found.row("start", "niso", few))]
            line(
                f"start {row.at} services in one command, time for each",
                row,
                beside,
                "ms",
                "≤ 25 ms",
            )
        commands = (("docker version", "docker"), ("podman version", "podman"))
        beside = [(name, found.row(f"floor: {name}", who, 0)) for name, who in commands]
        line(
            "`niso net list`",
            found.row("floor: niso net list", "niso", 0),
            beside,
            "ms",
            "≤ 1.2 of docker version",
        )
    if "ports" in figures:
        found = Found.load(figures["ports"])
        last = next(iter(row for row in found.rows("tcp") if row.who == "niso many last"), None)
        only = next(iter(found.rows("tcp", "niso 1")), None)
        line(
            "new TCP connections through 1 published port", only, _limits(found, "tcp"), "a second"
        )
        at = last.at if last else 0
        line(
            f"new TCP connections through the last of {at:,} published ports",
            last,
            [("1 port", only)],
            "a second",
            "≥ 0.95",
        )
        only = next(iter(found.rows("bulk", "niso 1")), None)
        line(
            "throughput through a published port", only, _limits(found, "bulk"), "Gbit/s", "≥ 0.95"
        )
    return "\n".join(lines) if len(lines) > 2 else "Not measured yet."


def _of(found: Found, what: str, whos: Iterable[str], wanted: int) -> list[tuple[str, Row | None]]:
    return [(who, found.row(what, who, wanted)) for who in whos]


def _limits(found: Found, what: str) -> list[tuple[str, Row | None]]:
    named = (
        ("one DNAT rule", "translated"),
        ("routed with connection tracking", "tracked"),
        ("routed", "routed"),
    )
    return [(name, found.row(what, who, 0)) for name, who in named]
