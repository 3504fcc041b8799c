"""What niso's control path costs, in a lab: ``control.py [--counts 10,100] [--rounds N] [--in-process] [--profile WHAT] [--json]``.

`samples` yields what it measures, in ms; a benchmark that compares calls it inside a lab of its own. Nothing here passes or fails.

- "attach", "detach": one service's network, in this process: from the plan to the kernel being so and read back, its Python code warm,
  on a network that has as many services, with one published port; and the processor time of that, which others' load changes less;
- "activate", "deactivate": the same with all that the command does around it (manifest, copy, store, plan), in this process;
- "niso activate", "niso deactivate", "niso remove", "niso net list": whole commands, the process started or ended with them;
- "niso activate (each of many)", "niso deactivate (each of many)": many services in one command, for each of them.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pathlib
import pstats
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

COUNTS = (10, 100, 500, 1000)
ROUNDS = 15
MANY = 100
NETWORK, SUBNET = "backend", "10.98.0.0/20"
"""One network for all, since a network's cost is what could grow; a bridge takes 1,023 ports."""


class Sample(NamedTuple):
    what: str
    services: int  # that are active beside, on the same network
    ms: float


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--profile", choices=("attach", "detach", "activate", "deactivate"))
    parser.add_argument("--in-process", action="store_true", help="no whole commands")
    parser.add_argument("--json", action="store_true", help="print each sample")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.inside:
        own = [
            sys.executable,
            "-B",
            str(pathlib.Path(__file__).resolve()),
            *sys.argv[1:],
            "--inside",
        ]
        sys.exit(
            subprocess.run([sys.executable, "-m", "niso.lab", "--", *own], check=False).returncode
        )
    counts = [int(word) for word in args.counts.split(",")]
    if args.profile:
        profile(args.profile, counts[0], args.rounds)
        return
    found: dict[tuple[str, int], list[float]] = {}
    for sample in samples(counts, args.rounds, 0 if args.in_process else MANY):
        found.setdefault((sample.what, sample.services), []).append(sample.ms)
        if args.json:
            print(json.dumps(sample._asdict()), flush=True)
    for (what, services), each in found.items():
        spread = f"({min(each):.2f} to {max(each):.2f}, {len(each)})"
        print(f"{what:<34} {services:>5} services {statistics.median(each):8.2f} ms  {spread}")


def samples(counts: list[int], rounds: int, many: int = MANY) -> Iterator[Sample]:
    """All that is measured, ``rounds`` times each; ``counts`` rise. For use inside a lab that has no service yet.

    ``many`` services are in the commands that are about many; without any, no command is run.
    """
    world = World()
    for count in counts:
        world.fill(count)
        for turn in range(rounds + 1):
            for what, ms in world.one():
                if turn:  # the first warms the code up
                    yield Sample(what, count, ms)
        for turn in range(max(1, rounds // 2) if many else 0):
            for what, ms in world.commands(turn):
                yield Sample(what, count, ms)
    world.clear()
    for _ in range(3 if many else 0):
        for what, ms in world.several(many):
            yield Sample(what, 0, ms)


class World:
    """Services without processes, by this process, and single ones with a process, by the command."""

    def __init__(self) -> None:
        from niso.kernel.real import Kernel
        from niso.look.session import joined
        from niso.runtime.machine import Machine
        from niso.runtime.processes import Processes
        from niso.store.store import Store

        self.store = Store.open()
        self.machine = Machine(self.store, Kernel(), Processes(), joined)
        _niso("net", "create", NETWORK, "--subnet", SUBNET)
        self._names: list[str] = []

    def fill(self, count: int) -> None:
        """Have ``count`` services active."""
        names = [f"fill{number:04}" for number in range(len(self._names), count)]
        with _without_processes():
            for at in range(0, len(names), 250):
                self._activate(
                    [package(name, 20_000 + int(name[4:])) for name in names[at : at + 250]]
                )
        self._names += names

    def clear(self) -> None:
        from niso.change import deactivate

        with _without_processes():
            deactivate.remove(self.machine, self._names)
        self._names = []

    def one(self) -> Iterator[tuple[str, float]]:
        """Attach and detach one service."""
        folder = package("extra", 9_000)
        with _without_processes():
            with _watched() as kernel:
                whole = timed(lambda: self._activate([folder]))
            yield "attach", sum(each for each, _ in kernel)
            yield "attach, processor time", sum(each for _, each in kernel)
            yield "activate", whole
            with _watched() as kernel:
                whole = timed(lambda: self._deactivate(["extra"]))
            yield "detach", sum(each for each, _ in kernel)
            yield "detach, processor time", sum(each for _, each in kernel)
            yield "deactivate", whole

    def commands(self, number: int) -> Iterator[tuple[str, float]]:
        """The whole commands of one service with its process."""
        name = f"whole{number}"
        folder = package(name, 9_001)
        yield "niso activate", timed(lambda: _niso("activate", folder))
        yield "niso net list", timed(lambda: _niso("net", "list"))
        yield "niso deactivate", timed(lambda: _niso("deactivate", name))
        yield "niso remove", timed(lambda: _niso("remove", name))

    def several(self, many: int) -> Iterator[tuple[str, float]]:
        """Many services in one command, with their processes."""
        names = [f"many{number:03}" for number in range(many)]
        folders = [package(name, 10_000 + at) for at, name in enumerate(names)]
        yield "niso activate (each of many)", timed(lambda: _niso("activate", *folders)) / many
        yield "niso deactivate (each of many)", timed(lambda: _niso("deactivate", *names)) / many
        _niso("remove", *names)

    def _activate(self, folders: list[str]) -> None:
        from niso.change import activate
        from niso.change.targets import find_targets

        activate.activate(self.machine, find_targets(self.store, folders), 60)

    def _deactivate(self, names: list[str]) -> None:
        from niso.change import deactivate

        deactivate.deactivate(self.machine, names)


def profile(what: str, count: int, rounds: int) -> None:
    """Where the time of one of `World.one` goes."""
    world = World()
    world.fill(count)
    list(world.one())
    profiler = cProfile.Profile()
    with _without_processes():
        folder = package("extra", 9_000)
        for _ in range(rounds):
            for name, do in (
                ("activate", lambda: world._activate([folder])),
                ("deactivate", lambda: world._deactivate(["extra"])),
            ):
                if what == name:
                    profiler.runcall(do)
                elif what in ("attach", "detach"):
                    with _watched(profiler if (what == "attach") == (name == "activate") else None):
                        do()
                else:
                    do()
    stats = pstats.Stats(profiler).strip_dirs()
    stats.sort_stats("tottime").print_stats(25)
    stats.sort_stats("cumtime").print_stats(60)


def package(name: str, port: int) -> str:
    """The folder of a service that sleeps, with one published port."""
    folder = f"/tmp/packages/{name}"
    os.makedirs(folder, exist_ok=True)
    text = f'[package]\nname = "{name}"\nversion = "1"\n[binary]\nentrypoint = "sleep"\nargs = ["1000"]\n'
    text += f'[network]\nnetwork = "{NETWORK}"\nports = ["{port}:80"]\n'
    path = pathlib.Path(folder, "manifest.toml")
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
    return folder


def timed(what: Callable[[], object]) -> float:
    """How long it takes, in ms."""
    before = time.perf_counter()
    what()
    return (time.perf_counter() - before) * 1000


def _niso(*words: str) -> None:
    argv = [os.path.join(os.path.dirname(sys.executable), "niso"), *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr}")


class _without_processes:
    """Within the block services have no process; the store and the kernel's network are as ever."""

    def __enter__(self) -> None:
        from niso.change import start
        from niso.runtime import lifecycle, status

        nothing = mock.Mock(return_value=None)
        running = mock.Mock(return_value=mock.Mock(state="running", pid=1, error=None))
        asked = mock.Mock(return_value=-1)
        self._patches = [
            mock.patch.multiple(lifecycle, start=nothing, stop=nothing, terminate=asked),
            mock.patch.multiple(status, read=running, runs=running),
            mock.patch.object(start, "run", nothing),
        ]
        for patch in self._patches:
            patch.start()

    def __exit__(self, *_: object) -> None:
        for patch in self._patches:
            patch.stop()


class _watched:
    """Within the block the times and processor times, in ms, that `niso.reconcile.change.carry_out` takes: all that changes the kernel goes through it."""

    def __init__(self, profiler: cProfile.Profile | None = None) -> None:
        self._profiler = profiler

    def __enter__(self) -> list[tuple[float, float]]:
        from niso.reconcile import change

        found: list[tuple[float, float]] = []
        real = change.carry_out

        def carry_out(*args: Any, **options: Any) -> Any:
            before, processor = time.perf_counter(), time.process_time()
            try:
                return (
                    self._profiler.runcall(real, *args, **options)
                    if self._profiler
                    else real(*args, **options)
                )
            finally:
                found.append(
                    (
                        (time.perf_counter() - before) * 1000,
                        (time.process_time() - processor) * 1000,
                    )
                )

        self._patches = [mock.patch.object(change, "carry_out", carry_out)]
        for patch in self._patches:
            patch.start()
        return found

    def __exit__(self, *_: object) -> None:
        for patch in self._patches:
            patch.stop()


if __name__ == "__main__":
    main()
