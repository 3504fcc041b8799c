"""Drive benchmarks: worlds live in labs at the same time, so that they are measured in turn.

A B C C B A …: every second round in reverse. Nothing here passes or fails, and a party that fails does not end the run: what it
could not do is noted with the reason.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import pathlib
import platform
import select
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Self

from figures import Found

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = ROOT / ".cache" / "bench"
PATIENCE_S = 150.0  # for one call: 10,000 ports take netavark over 60 on a slow machine
BOUND_MS = 20_000  # a case that takes as long is measured once

Case = Callable[[], dict[str, float]]
"""What was measured -> its figure."""
_began = time.monotonic()


class Failed(RuntimeError):
    """A world could not do what it was asked; it says why."""


class Lab:
    """A world in a lab. One that does not answer in time is ended, and answers no more."""

    def __init__(self, kind: str, flows: str = "") -> None:
        self.kind = kind
        self._ended = ""
        self._asked: tuple[str, float] = ("", 0.0)
        agent = [sys.executable, "-B", str(HERE / "agent.py"), kind, flows]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "niso.lab", "--", *agent],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env=environment(),
            cwd="/",
        )

    def call(self, method: str, *args: Any, within_s: float = PATIENCE_S) -> Any:
        """What the method gives. Raises Failed."""
        self.ask(method, *args, within_s=within_s)
        return self.answer()

    def ask(self, method: str, *args: Any, within_s: float = PATIENCE_S) -> None:
        """Have it begin; `answer` waits for its end, so that several labs can work at once. Raises Failed."""
        if self._ended:
            raise Failed(self._ended)
        self._asked = (method, time.monotonic() + within_s)
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps({"call": method, "args": args}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._end("its lab has ended")

    def answer(self) -> Any:
        assert self._process.stdout
        method, deadline = self._asked
        began = time.monotonic()
        if not select.select([self._process.stdout], [], [], max(0.0, deadline - began))[0]:
            self._end(f"{method} took more than {time.monotonic() - began:.0f} s and was ended")
        line = self._process.stdout.readline()
        if not line:
            self._end("its lab has ended")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer["got"]

    def _end(self, why: str) -> None:
        self._ended = why
        self.begin_close()
        raise Failed(why)

    def inside(self) -> int:
        """A process of the lab, as it is numbered outside: the first one in another network namespace."""
        own, pid = os.stat("/proc/self/ns/net").st_ino, self._process.pid
        while os.stat(f"/proc/{pid}/ns/net").st_ino == own:
            children = [
                child
                for path in glob.glob(f"/proc/{pid}/task/*/children")
                for child in pathlib.Path(path).read_text(encoding="ascii").split()
            ]
            if not children:
                raise Failed("the lab has no process")
            pid = int(children[0])
        return pid

    def begin_close(self) -> None:
        self._process.terminate()  # what is in the lab goes with it

    def close(self) -> None:
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Chapter:
    """Labs, and rounds of cases in them, within ``seconds``; what is found."""

    def __init__(self, seconds: float, leave_out: frozenset[str] = frozenset()) -> None:
        self.deadline = time.monotonic() + seconds
        self.found = Found()
        self._leave_out = leave_out
        self._labs: dict[str, Lab] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for lab in self._labs.values():
            lab.begin_close()
        for lab in self._labs.values():
            lab.close()

    def left_s(self) -> float:
        return self.deadline - time.monotonic()

    def lab(self, kind: str, who: str = "", name: str = "", flows: str = "") -> Lab | None:
        """A new lab of that kind (or the one there is of that ``name``), or None where there can be none: noted for ``who``."""
        name, who = name or kind, who or kind
        if kind in self._leave_out:
            self.found.lacks("", who, 0, "left out by --without")
            return None
        if name not in self._labs:
            lab = self._labs[name] = Lab(kind, flows)
            try:
                lab.call("ready")
            except Failed as error:
                self.found.lacks("", who, 0, str(error))
                return None
        return self._labs[name]

    def at_once(
        self, asked: dict[str, tuple[Lab, str, list[Any]]], within_s: float
    ) -> dict[str, Any]:
        """Who -> the answer of its lab to (method, arguments); all work at once. Who fails is noted and has none."""
        found: dict[str, Any] = {}
        waiting: list[str] = []
        for who, (lab, method, args) in asked.items():
            with self._noted("", who, 0):
                lab.ask(method, *args, within_s=within_s)
                waiting.append(who)
        for who in waiting:
            with self._noted("", who, 0):
                found[who] = asked[who][0].answer()
        return found

    def once(self, what: str, who: str, at: int, case: Case) -> None:
        """Measure it one time."""
        say(f"{what}: {who} at {at:,}, once")
        with self._noted(what, who, at):
            for name, value in case().items():
                self.found.add(name, who, at, at, value)

    def in_turn(
        self,
        title: str,
        cases: dict[str, Case],
        at: dict[str, int] | int,
        wanted: int,
        rounds: int,
        seconds: float,
    ) -> None:
        """Measure cases (who -> how) in turn, every second round in reverse, after one round that is not counted.

        ``at``: beside how many others, by who where that differs. Ends with the round in which ``seconds`` or the chapter's time
        are over; after the first only what can be done at most twice in that time goes on.
        """
        say(f"{title}: up to {rounds} rounds of {len(cases)}")
        cases = dict(cases)
        before, end = load(), min(time.monotonic() + seconds, self.deadline)
        done = -1
        while cases and done < rounds and (done < 1 or time.monotonic() < end):
            for who in list(cases) if done % 2 else list(reversed(cases)):
                beside = at if isinstance(at, int) else at[who]
                try:
                    began = time.monotonic()
                    figures = cases[who]()
                except Failed as error:
                    self.found.lacks(title, who, beside, str(error))
                    say(f"{title}: {who}: {error}")
                    del cases[who]
                    continue
                slow = (time.monotonic() - began) * 1000 > BOUND_MS
                if done >= 0 or slow:
                    for what, value in figures.items():
                        self.found.add(what, who, beside, wanted, value)
                if slow:
                    del cases[who]
            done += 1
        self.found.notes.append(f"{title}: {max(done, 0)} rounds, load {before} to {load()}")

    @contextlib.contextmanager
    def _noted(self, what: str, who: str, at: int) -> Any:
        try:
            yield
        except Failed as error:
            self.found.lacks(what, who, at, str(error))
            say(f"{what or 'bench'}: {who}: {error}")


def flows_program() -> str:
    """The client and server of flows.c, compiled. Raises Failed."""
    CACHE.mkdir(parents=True, exist_ok=True)
    program = str(CACHE / "flows")
    compiler = ["gcc", "-O2", "-Wall", "-static", "-o", program, str(HERE / "flows.c")]
    try:
        subprocess.run(compiler, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Failed(f"flows.c is not compiled: {error}") from None
    return program


def settle(seconds: float = 30) -> None:
    """Wait while the kernel still clears namespaces up, as far as it shows it."""
    end, last = time.monotonic() + seconds, -1
    while time.monotonic() < end:
        try:
            with open("/proc/slabinfo", encoding="ascii") as file:
                now = next(
                    (int(line.split()[1]) for line in file if line.startswith("net_namespace ")), 0
                )
        except OSError:
            return
        if now == last:
            return
        last = now
        time.sleep(1)


def machine() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    cores = len(os.sched_getaffinity(0))
    return f"{models[0] if models else platform.machine()}, {cores} cores, {memory:.0f} GiB, Linux {platform.release()}"


def niso_version() -> str:
    git = [
        "git",
        "-C",
        str(ROOT),
        "-c",
        f"safe.directory={ROOT}",
        "describe",
        "--always",
        "--dirty",
    ]
    with contextlib.suppress(OSError):
        return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return ""


def versions() -> list[str]:
    found = [f"niso {niso_version()}", f"Python {platform.python_version()}"]
    for name, argv, word in (
        ("podman", ["podman", "--version"], 2),
        ("netavark", ["netavark", "--version"], 1),
        ("docker", ["dockerd", "--version"], 2),
        ("containerd", ["containerd", "--version"], 2),
        ("runc", ["runc", "--version"], 2),
        ("crun", ["crun", "--version"], 2),
        ("conmon", ["conmon", "--version"], 2),
        ("nft", ["nft", "--version"], 1),
        ("iptables", ["iptables", "--version"], 1),
        ("ip", ["ip", "-V"], 2),
        ("etcd", ["etcd", "--version"], 2),
    ):
        said: list[str] = []
        with contextlib.suppress(OSError):
            said = subprocess.run(
                argv, capture_output=True, text=True, check=False, env=environment()
            ).stdout.split()
        version = (
            said[word].strip(",").removeprefix("iproute2-") if len(said) > word else "is not here"
        )
        found.append(f"{name} {version}")
    plugins = (
        CACHE / "containernetworking-plugins" / "debian-version"
    )  # they do not know it themselves
    found.append(
        f"CNI plugins {plugins.read_text().strip()}"
        if plugins.exists()
        else "CNI plugins are not here"
    )
    return found


def environment() -> dict[str, str]:
    """With the peers on PATH, and without what would change their or niso's behaviour."""
    peers = [
        path
        for package in ("bin", "sbin", "lib/podman")
        for path in glob.glob(f"{CACHE}/*/usr/{package}")
    ]
    foreign = ("NISO_", "DOCKER_", "NETAVARK_", "CONTAINER", "CNI_", "PODMAN_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    own = os.path.join(sys.prefix, "bin")
    peers.append(str(ROOT / ".cache/etcd/usr/bin"))
    path = ":".join([own, *peers, "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"])
    return kept | {"PATH": path, "BENCH_PEERS": str(CACHE)}


def load() -> str:
    return f"{os.getloadavg()[0]:.2f}"


def say(text: str) -> None:
    print(f"bench [{time.monotonic() - _began:4.0f} s] {text}", file=sys.stderr, flush=True)
