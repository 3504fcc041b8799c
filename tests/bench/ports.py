"""The benchmark of published ports, of niso and of its peers in turn: ``ports.py [--quick] [--profile] [--output FILE]``.

Each world (worlds.py) has a lab of its own and all of these live at once, so that what is compared is measured in turn:
A B C C B A …. Ratios are those of one round; what is shown is their median. Nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import glob
import json
import os
import pathlib
import platform
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = ROOT / ".cache" / "bench"

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


Cases = dict[Any, Callable[[], list[float]]]
Figures = dict[Any, list[list[float]]]
"""Case -> one list of figures for each round."""


class Lab:
    """A world in a lab; its calls end the benchmark when its time is up."""

    def __init__(self, kind: str, flows: str, deadline: float) -> None:
        self.kind = kind
        self._deadline = deadline
        argv = [sys.executable, "-m", "niso.lab", "--", sys.executable, "-B", str(HERE / "agent.py"), kind, flows]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, env=environment(), cwd="/"
        )

    def call(self, method: str, *args: Any) -> Any:
        """What the method gives. Raises RuntimeError where it fails, TimeoutError when the time is up."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps({"call": method, "args": args}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise RuntimeError(f"the lab of {self.kind} has ended") from None
        left = self._deadline - time.monotonic()
        if not select.select([self._process.stdout], [], [], max(0.0, left))[0]:
            raise TimeoutError(f"the time is up in {self.kind}: {method}")
        answer = json.loads(self._process.stdout.readline() or '{"error": "the lab has ended"}')
        if "error" in answer:
            raise RuntimeError(f"{self.kind}: {answer['error']}")
        return answer["got"]

    def close(self) -> None:
        self._process.terminate()  # what is in the lab goes with it
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Bench:
    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.deadline = time.monotonic() + sizes.whole_s
        self.flows = str(CACHE / "flows")
        CACHE.mkdir(parents=True, exist_ok=True)
        compiler = ["gcc", "-O2", "-Wall", "-static", "-o", self.flows, str(HERE / "flows.c")]
        subprocess.run(compiler, check=True)
        self.labs: dict[tuple[str, int], Lab] = {}
        self.filled: dict[tuple[str, int], dict[str, float]] = {}
        self.absent: dict[str, str] = {}
        self.notes: list[str] = []

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        for lab in self.labs.values():
            lab.close()

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

    def in_turn(self, name: str, cases: Cases, rounds: int, within: float) -> Figures:
        """The cases in turn, every second round in reverse, one as a warm-up; how busy the machine was is noted.

        ``within`` is the part of the whole time that it may take: then it ends with the round.
        """
        say(f"{name}: {rounds} rounds of {len(cases)}")
        before, end = load(), time.monotonic() + within * self.sizes.whole_s
        found: Figures = {case: [] for case in cases}
        done = -1
        while done < rounds and (done < 1 or time.monotonic() < end):
            for case in list(cases) if done % 2 else reversed(cases):
                figures = cases[case]()
                if done >= 0:
                    found[case].append(figures)
            done += 1
        self.notes.append(f"{name}: {done} rounds, load {before} to {load()}")
        return found

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
                *head(self),
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


def rate(lab: Lab, *args: Any) -> list[float]:
    return [lab.call("rate", *args)]


# --- the text --------------------------------------------------------------------------------------------------------


def spread(values: list[float], unit: str = "") -> str:
    """Median, least and most: ``3.1 (2.9 to 4.0)``."""
    if len(values) == 1:
        return f"{number(values[0])}{unit} (once)"
    return f"**{number(statistics.median(values))}**{unit} ({number(min(values))} to {number(max(values))})"


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def ratio(above: list[list[float]], below: list[list[float]]) -> str:
    """The median of the rounds' ratios of the first figure."""
    return f"{statistics.median(a[0] / b[0] for a, b in zip(above, below, strict=False)):.2f}"


NAMES = {
    ("niso", "process"): "niso port-forward, in process",
    ("niso", "command"): "niso port-forward, whole command",
    ("niso", "attach"): "niso: one more service with it, in process",
    ("netavark", "attach"): "netavark setup / teardown",
    ("docker", "attach"): "docker run -d / rm -f",
}


def column(rows: list[list[float]], which: int = 0) -> list[float]:
    return [row[which] for row in rows]


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


def head(bench: Bench) -> list[str]:
    mode = "./dev bench ports --quick" if bench.sizes.quick else "./dev bench ports"
    return [
        "# Published ports: what they cost",
        "",
        f"Written by `{mode}` on {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC."
        " What is compared was measured in turn, each in a lab of its own; ratios are medians of the rounds' ratios.",
        "",
        f"- machine: {machine()}",
        f"- versions: {', '.join(versions())}",
        f"- one round that is not counted comes first; a round of flows is {bench.sizes.flow_ms} ms of each",
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


def machine() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{models[0] if models else platform.machine()}, {len(os.sched_getaffinity(0))} processors, {memory:.0f} GiB"


def versions() -> list[str]:
    found = [f"Linux {platform.release()}", f"Python {platform.python_version()}"]
    git = ["git", "-C", str(ROOT), "-c", f"safe.directory={ROOT}", "describe", "--always", "--dirty"]
    for name, argv, word in (
        ("niso", git, 0),
        ("nft", ["nft", "--version"], 1),
        ("netavark", ["netavark", "--version"], 1),
        ("docker", ["dockerd", "--version"], 2),
        ("", ["iptables", "--version"], slice(None)),
    ):
        with contextlib.suppress(OSError):
            said = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment()).stdout.split()
            words = said[word] if isinstance(word, slice) else said[word : word + 1]
            found.append(" ".join([name, *words]).strip(" ,"))
    return found


def environment() -> dict[str, str]:
    """With the peers on PATH, and without what would change niso's behaviour."""
    peers = [path for package in ("bin", "sbin", "lib/podman") for path in glob.glob(f"{CACHE}/*/usr/{package}")]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("NISO_", "DOCKER_", "NETAVARK_"))}
    own = os.path.join(sys.prefix, "bin")
    return kept | {"PATH": ":".join([own, *peers, "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"])}


def load() -> str:
    return f"{os.getloadavg()[0]:.2f}"


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr)


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
    output = pathlib.Path(options.output or ROOT / "docs" / "bench" / "ports.md")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
