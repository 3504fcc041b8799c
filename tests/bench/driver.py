"""Drives benchmarks: worlds in labs that live at once, so that what is compared is measured in turn, and the text of results.

A B C C B A …: every second round in reverse. Ratios are those of one round; what is shown is their median. Nothing here passes
or fails.
"""

from __future__ import annotations

import contextlib
import datetime
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
from typing import Any, Self

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = ROOT / ".cache" / "bench"

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


class Driver:
    """Labs, and rounds of cases within ``whole_s`` seconds."""

    def __init__(self, whole_s: float) -> None:
        self.whole_s = whole_s
        self.deadline = time.monotonic() + whole_s
        self.flows = str(CACHE / "flows")
        CACHE.mkdir(parents=True, exist_ok=True)
        compiler = ["gcc", "-O2", "-Wall", "-static", "-o", self.flows, str(HERE / "flows.c")]
        subprocess.run(compiler, check=True)
        self.labs: dict[tuple[str, int], Lab] = {}
        self.notes: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for lab in self.labs.values():
            lab.close()

    def in_turn(self, name: str, cases: Cases, rounds: int, within: float) -> Figures:
        """The cases in turn, every second round in reverse, one as a warm-up; how busy the machine was is noted.

        ``within`` is the part of the whole time that it may take: then it ends with the round.
        """
        say(f"{name}: {rounds} rounds of {len(cases)}")
        before, end = load(), time.monotonic() + within * self.whole_s
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


def rate(lab: Lab, *args: Any) -> list[float]:
    return [lab.call("rate", *args)]


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


def column(rows: list[list[float]], which: int = 0) -> list[float]:
    return [row[which] for row in rows]


def head(title: str, command: str, words: str) -> list[str]:
    """The title, and how and where it was measured; ``words`` say more."""
    return [
        f"# {title}",
        "",
        f"Written by `{command}` on {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC."
        " What is compared was measured in turn, each in a lab of its own; ratios are medians of the rounds' ratios.",
        "",
        f"- machine: {machine()}",
        f"- versions: {', '.join(versions())}",
        f"- one round that is not counted comes first; {words}",
        "",
    ]


def store(text: str, output: str | None, name: str) -> None:
    """Write and print a result; without ``output`` to docs/bench."""
    path = pathlib.Path(output or ROOT / "docs" / "bench" / name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(text)


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
