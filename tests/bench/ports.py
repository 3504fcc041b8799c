"""The benchmark of published ports, of niso and of its peers in turn: ``ports.py [--quick] [--profile] [--output FILE]``.

Each world (worlds.py) has a lab of its own; how they are driven: driver.py.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import time

from driver import Cases, Driver, Figures, Lab, column, head, load, rate, ratio, say, spread, store

SMALL = 10
RANGE = 1_000


class Sizes:
    """How much is measured. ``most`` is as many ports as a peer can be given within the time."""

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        self.whole_s = 58 if quick else 295
        self.most = {"niso": 10_000, "netavark": 1_000 if quick else 10_000, "docker": 1_000}
        # netavark reads all its rules for each service: as many as niso's would take it 5 minutes
        self.services = {"niso": 100, "netavark": 3, "docker": 3}
        self.rounds = 5 if quick else 15
        self.slow_rounds = 3
        self.flow_rounds = 3 if quick else 12
        self.flow_ms = 150 if quick else 250


class Bench(Driver):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes.whole_s)
        self.sizes = sizes
        self.filled: dict[tuple[str, int], dict[str, float]] = {}
        self.absent: dict[str, str] = {}

    def make(self, kind: str, ports: int, services: int) -> None:
        """A lab with as many published ports; where it cannot be, `absent` says why."""
        if kind in self.absent:
            return
        say(f"{kind}: {ports} ports")
        lab = self.labs[kind, ports] = Lab(kind, self.flows, self.deadline)
        try:
            self.filled[kind, ports] = lab.call("fill", ports, services)
        except RuntimeError as error:
            self.absent[kind] = str(error)
            for key in [key for key in self.labs if key[0] == kind]:
                self.labs.pop(key).close()

    def of(self, kind: str) -> tuple[Lab, Lab]:
        """The labs of a kind with few and with many ports."""
        return self.labs[kind, SMALL], self.labs[kind, self.sizes.most[kind]]

    def kinds(self) -> list[str]:
        return [kind for kind in ("niso", "netavark", "docker") if (kind, SMALL) in self.labs]

    # --- the measurements --------------------------------------------------------------------------------------------

    def one_more(self) -> Figures:
        """Figures of (kind, way, "small" or "large"): [ms to publish, ms to take away]."""
        own: Cases = {}
        peers: Cases = {}
        for kind in self.kinds():
            for way in ("process", "command", "attach") if kind == "niso" else ("attach",):
                for size, lab in zip(("small", "large"), self.of(kind), strict=True):
                    cases = own if kind == "niso" else peers
                    cases[kind, way, size] = functools.partial(lab.call, "one", way)
        found = self.in_turn("one more port", own, self.sizes.rounds, 0.2)
        return found | self.in_turn("one more port, peers", peers, self.sizes.slow_rounds, 0.2)

    def ranges(self) -> tuple[Figures, Figures]:
        """Figures of (kind, way, container port): [ms to publish, ms to take away]; and the same with kernel objects."""
        cases: Cases = {}
        counted: Figures = {}
        for kind in self.kinds():
            for way in ("process", "command") if kind == "niso" else ("attach",):
                for container in (8_000, 18_000) if kind != "docker" else ():
                    cases[kind, way, container] = functools.partial(self.span, kind, way, container, False)
                    if way != "command":
                        counted[kind, way, container] = [self.span(kind, way, container, True)]
        return self.in_turn("ranges", cases, self.sizes.rounds, 0.2), counted

    def span(self, kind: str, way: str, container: int, counted: bool) -> list[float]:
        found: list[float] = self.of(kind)[0].call("span", way, 8_000, container, RANGE, counted)
        return found

    def docker_range(self) -> Figures:
        """As `ranges`, counted: to docker equal and shifted ones are the same. It takes 10 s and more: once, at the end."""
        if "docker" not in self.kinds():
            return {}
        say(f"docker, {RANGE} ports in a row")
        before = load()
        try:
            found = [self.span("docker", "attach", 8_000, True)]
        except TimeoutError:
            self.notes.append("ranges, docker: not measured, the time was up")
            return {}
        self.notes.append(f"ranges, docker: once, load {before} to {load()}")
        return {("docker", "attach", 8_000): found}

    def new_flows(self) -> Figures:
        """Figures of (kind, protocol, "first", "last", "routed" or "tracked"): [flows per second]."""
        cases: Cases = {}
        plain = self.labs["plain", 0]
        plain.call("serve", ["first"])
        for kind in self.kinds():
            self.of(kind)[1].call("serve")
        for proto in ("tcp", "udp"):
            for to in ("routed", "tracked"):
                cases["plain", proto, to] = functools.partial(rate, plain, proto, to, self.sizes.flow_ms)
            for kind in self.kinds():
                for to in ("first", "last"):
                    lab = self.of(kind)[1]
                    cases[kind, proto, to] = functools.partial(rate, lab, proto, to, self.sizes.flow_ms)
        return self.in_turn("new flows", cases, self.sizes.flow_rounds, 0.3)

    def run(self) -> str:
        sizes = self.sizes
        for kind in ("niso", "netavark", *(() if sizes.quick else ("docker",))):
            self.make(kind, SMALL, 3)
            self.make(kind, sizes.most[kind], sizes.services[kind])
        self.make("plain", 0, 0)
        began = time.monotonic()
        one, (ranges, counted), flows = self.one_more(), self.ranges(), self.new_flows()
        slow = self.docker_range()
        say(f"measured in {time.monotonic() - began:.0f} s")
        return "\n".join(
            [
                *head(
                    "Published ports: what they cost",
                    "./dev bench ports --quick" if sizes.quick else "./dev bench ports",
                    f"a round of flows is {sizes.flow_ms} ms of each",
                ),
                *one_more_table(self, one),
                *ranges_table(ranges | slow, counted | slow),
                *flows_table(self, flows),
                *foot(self),
            ]
        )

    def profile(self) -> str:
        """Where niso's time goes: one more of many ports, and a shifted range."""
        most = self.sizes.most["niso"]
        self.make("niso", SMALL, 3)
        self.make("niso", most, self.sizes.services["niso"])
        few, many = self.of("niso")
        for lab in (few, many):
            lab.call("one", "process")
        one = many.call("profile", 20, 50_000, 81, 1)
        span = few.call("profile", 5, 30_000, 18_000, RANGE)
        return f"20 times one more port at {most:,}\n{one}\n5 times a shifted range of {RANGE:,} at {SMALL}\n{span}"


# --- the text --------------------------------------------------------------------------------------------------------


NAMES = {
    ("niso", "process"): "niso port-forward, in process",
    ("niso", "command"): "niso port-forward, whole command",
    ("niso", "attach"): "niso: one more service with it, in process",
    ("netavark", "attach"): "netavark setup / teardown",
    ("docker", "attach"): "docker run -d / rm -f",
}


def one_more_table(bench: Bench, found: Figures) -> list[str]:
    lines = [
        "## (a) One more port",
        "",
        f"| ms, median (least to most) | at {SMALL} ports | at many | how many | ratio | taken away, at {SMALL} | at many |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (kind, way), name in NAMES.items():
        if (kind, way, "small") not in found:
            continue
        small, large = found[kind, way, "small"], found[kind, way, "large"]
        cells = [
            name,
            spread(column(small)),
            spread(column(large)),
            f"{bench.sizes.most[kind]:,} of {bench.sizes.services[kind]} services",
            f"**{ratio(large, small)}**",
            spread(column(small, 1)),
            spread(column(large, 1)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += missing(bench)
    return [
        *lines,
        "",
        "Every one of these ports has an entry of its own. `in process`: the store, the kernel and all checks, without starting"
        " Python; in the niso worlds services have no process. Neither peer can add a port to a running container, so that"
        " theirs are one more container with one port: netavark's is the network alone, docker's the whole container.",
        "",
    ]


def missing(bench: Bench) -> list[str]:
    return [f"| {kind}: not measured: {why} | | | | | | |" for kind, why in bench.absent.items()]


def ranges_table(found: Figures, counted: Figures) -> list[str]:
    lines = [
        f"## (b, c) {RANGE:,} ports in a row",
        "",
        "| ms, median (least to most) | published | taken away | rules and elements added | to niso's whole command |",
        "| --- | --- | --- | --- | --- |",
    ]
    for container, words in ((8_000, f"8000-{7_999 + RANGE} as they are"), (18_000, "to 18000 and on")):
        base = found["niso", "command", container]
        for (kind, way), name in NAMES.items():
            rows = found.get((kind, way, container))
            if rows is None:
                continue
            objects = counted.get((kind, way, container))
            cells = [
                f"{words}: {name}",
                spread(column(rows)),
                spread(column(rows, 1)),
                f"{objects[0][2]:,.0f}" if objects else "",
                f"{statistics.median(column(rows)) / statistics.median(column(base)):.2f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", f"Where {SMALL} ports are published already.", ""]


def flows_table(bench: Bench, found: Figures) -> list[str]:
    lines = [
        "## (d) New flows from another machine",
        "",
        "| per second, median (least to most) | first port | last port | last / first | first / tracked | last / tracked |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for proto in ("tcp", "udp"):
        tracked, routed = found["plain", proto, "tracked"], found["plain", proto, "routed"]
        words = f"{proto.upper()}, routed to the service without NAT"
        lines.append(f"| {words}, with connection tracking | {spread(column(tracked))} | | | 1 | |")
        lines.append(f"| {words}, no netfilter at all | {spread(column(routed))} | | | {ratio(routed, tracked)} | |")
        for kind in bench.kinds():
            first, last = found[kind, proto, "first"], found[kind, proto, "last"]
            cells = [
                f"{proto.upper()}, {kind}, {bench.sizes.most[kind]:,} ports",
                spread(column(first)),
                spread(column(last)),
                f"**{ratio(last, first)}**",
                ratio(first, tracked),
                ratio(last, tracked),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "One client process on the first processor and one server process on the last, in C, with 64 flows open at a time: a TCP"
        " flow is a connection, one byte and a reset; a UDP flow a new socket, one datagram and its answer. Each has a source"
        " address and port of its own. The two processes and the kernel's work for them fill both processors.",
        "",
    ]


def foot(bench: Bench) -> list[str]:
    filled = "; ".join(
        f"{kind} {ports:,} in {found['seconds']:.1f} s" for (kind, ports), found in bench.filled.items() if found
    )
    return [
        "## How it went",
        "",
        f"- Rounds, and the load of the machine (its 1-minute average) before and after: {'; '.join(bench.notes)}.",
        f"- Publishing the ports that were there: {filled}.",
        "- All state folders are on tmpfs: a disk's fsync is in no figure.",
        "",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute: fewer rounds, fewer ports, no docker")
    parser.add_argument("--profile", action="store_true", help="print where niso's time goes, and measure nothing")
    parser.add_argument("--output", help="the markdown file to write (default: docs/bench/ports.md)")
    options = parser.parse_args()
    try:
        with Bench(Sizes(options.quick)) as bench:
            if options.profile:
                print(bench.profile())
                return 0
            text = bench.run()
    except (RuntimeError, TimeoutError) as error:
        say(str(error))
        return 1
    store(text, options.output, "ports.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
