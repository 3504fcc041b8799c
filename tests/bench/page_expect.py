"""Write what a user should expect, in ten lines: each with its figures, and why they are so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from figures import Found, Row, median, number, ratio, slope, times
from page_parts import NAMES, prose

_LEVEL = 0.03
"""Figures that differ by less are called the same, because rounds differ by more."""


class _Missing(Exception):
    """A figure has not been measured."""


class _Figures:
    """The figures of all chapters. A missing one raises `_Missing`."""

    def __init__(self, figures: dict[str, Any]) -> None:
        self._chapters = {name: Found.load(data) for name, data in figures.items()}

    def row(self, chapter: str, what: str, who: str, last: bool = False) -> Row:
        """Return a row of the smallest size, or of the largest."""
        found = self._chapters.get(chapter)
        rows = found.rows(what, who) if found else []
        if not rows:
            raise _Missing
        return rows[-1 if last else 0]

    def size(self, chapter: str, what: str) -> str:
        """Return the largest number of services that niso was measured beside."""
        return f"{self.row(chapter, what, 'niso', True).at:,}"

    def to(self, chapter: str, what: str, who: str, other: str) -> str:
        """Return how many times the figure of ``other`` ``who`` has, at the smallest size."""
        return times(ratio(self.row(chapter, what, who), self.row(chapter, what, other)))

    def growth(self, chapter: str, what: str, who: str = "niso") -> str:
        """Return how many times the figure at the smallest size it is at the largest."""
        own = self.row(chapter, what, who, True), self.row(chapter, what, who)
        return times(ratio(*own))

    def each(self, who: str) -> float:
        """Return the memory of one more service, in MiB."""
        found = self._chapters.get("services")
        kib = slope(found.rows("kib", who)) if found else None
        if kib is None:
            raise _Missing
        return kib / 1024


def expect(figures: dict[str, Any]) -> list[str]:
    """Return the section; a line without all of its figures is left out."""
    lines = []
    given = _Figures(figures)
    for write in _LINES:
        try:
            lines.append(prose(f"- {' '.join(write(given))}", "  "))
        except _Missing:
            continue
    return ["## What to expect", "", *lines, ""] if lines else []


def _compared(own: float, other: float) -> str:
    """Return how a figure of niso compares with that of another program, in words."""
    if abs(own - other) <= _LEVEL * other:
        return "about the same as"
    return "less than" if own < other else "more than"


def _network(f: _Figures) -> Iterator[str]:
    own = f.row("services", "attach", "niso")
    peers = ("netavark", "cni", "docker")
    others = ", ".join(
        f"{NAMES[who]} {number(median(f.row('services', 'attach', who)))}" for who in peers
    )
    yield f"**Attaching a service to a network** takes {number(median(own))} ms in a running program"
    yield f"({others}). For each service, niso opens one netlink socket and commits one nftables"
    yield "transaction."


def _command(f: _Figures) -> Iterator[str]:
    yield f"**`niso activate`** takes {f.to('services', 'start', 'niso', 'podman')} times as long as"
    yield f"`podman run`, and {f.to('services', 'start', 'niso', 'docker')} times as long as `docker run`."
    yield "Nearly half of the time of `niso activate` is the start of Python with its imports."


def _plugin(f: _Figures) -> Iterator[str]:
    own, peer = (f.row("services", "attach", who) for who in ("niso command", "netavark"))
    yield "**Attaching a service to a network by a separate command** takes"
    yield f"{number(median(own))} ms, {_compared(median(own), median(peer))} netavark's"
    yield f"{number(median(peer))} ms. netavark is a compiled program, and does not record leases,"
    yield "names and policies."


def _several(f: _Figures) -> Iterator[str]:
    many = f.row("services", "start of many, each", "niso")
    alone = f.row("services", "start", "niso")
    yield f"**{many.at} services in one command** take {number(median(many))} ms each. A command for a"
    yield f"single service takes {number(median(alone))} ms. With one command, Python starts only once,"
    yield "and the kernel is changed only once."


def _beside(f: _Figures) -> Iterator[str]:
    few = f.row("services", "attach", "niso").at
    yield f"**With {f.size('services', 'attach')} services on the host**, attaching a service takes"
    yield f"{f.growth('services', 'attach')} times as long as with {few} services, and `niso activate`"
    yield f"takes {f.growth('services', 'start')} times as long. The reason is that the kernel walks"
    yield "all ports of a bridge whenever a port is added."


def _memory(f: _Figures) -> Iterator[str]:
    own, podman, docker = (f.each(who) for who in ("niso", "podman", "docker"))
    yield f"**Memory**: niso needs {number(own)} MiB for each service,"
    yield f"{_compared(own, podman)} podman's {number(podman)} MiB. Each service of niso includes an init"
    yield f"of 0.05 MiB, which reaps processes and forwards signals. docker needs {number(docker)} MiB for"
    yield "each service, and memory for its daemons."


def _ports(f: _Figures) -> Iterator[str]:
    own, peer = (f.row("ports", "tcp", who) for who in ("niso 1", "netavark 1"))
    yield "**New connections through a published port** reach"
    yield f"{times(ratio(own, f.row('ports', 'tcp', 'tracked')))} of the rate of a routed path with"
    yield f"connection tracking, {_compared(median(own), median(peer))} netavark's"
    yield f"{f.to('ports', 'tcp', 'netavark 1', 'tracked')}. Unlike netavark, niso also checks the"
    yield "sender, limits new flows and records flows. The throughput of niso reaches"
    yield f"{f.to('ports', 'bulk', 'niso 1', 'tracked')} of the throughput of the routed path."


def _many_ports(f: _Figures) -> Iterator[str]:
    last = f.row("ports", "tcp", "niso many last")
    yield f"**The last of {last.at:,} ports** reaches"
    yield f"{times(ratio(last, f.row('ports', 'tcp', 'niso 1')))} of the rate of a single port,"
    yield "because niso's ports are elements of a map. netavark has a rule for each port, and its last"
    yield f"port reaches {f.to('ports', 'tcp', 'netavark many last', 'netavark 1')} of the rate of its"
    yield f"single port. The last of {f.row('ports', 'tcp', 'docker many last').at:,} ports of docker"
    yield f"reaches {f.to('ports', 'tcp', 'docker many last', 'docker 1')} of the rate of its single port."


def _inside(f: _Figures) -> Iterator[str]:
    yield "**Between two services of one network** new connections reach"
    yield f"{f.to('policies', 'tcp', 'no-policy', 'switched')} of the rate of plain switching, and"
    yield f"{f.to('policies', 'tcp', 'policed', 'switched')} with a policy. Throughput reaches"
    yield f"{f.to('policies', 'bulk', 'no-policy', 'switched')} without and"
    yield f"{f.to('policies', 'bulk', 'policed', 'switched')} with a policy. A policy needs connection"
    yield "tracking. With connection tracking and no other rule, new connections already reach only"
    yield f"{f.to('policies', 'tcp', 'tracked', 'switched')}."


def _hosts(f: _Figures) -> Iterator[str]:
    def compared(what: str) -> str:
        own, peer = (f.row("cluster", what, who) for who in ("span", "swarm"))
        to = [f.to("cluster", what, who, "underlay") for who in ("span", "swarm")]
        words = _compared(median(own), median(peer))
        return f"{to[0]} of the rate between the hosts without a tunnel, {words} Docker Swarm's {to[1]}"

    yield f"**Between two hosts** new connections reach {compared('tcp')}."
    yield f"Throughput reaches {compared('bulk')}. Most of the loss is caused by VXLAN. In addition to encapsulation, niso"
    yield "checks the sender of each packet on both hosts, and enforces policies between hosts."


_LINES = (
    _network,
    _command,
    _plugin,
    _several,
    _beside,
    _memory,
    _ports,
    _many_ports,
    _inside,
    _hosts,
)
