"""Many services in one command beside as many commands, in a lab: ``many.py [COUNT] [--profile activate|deactivate]``.

What is measured is all but the processes, which are not started: a process costs the same either way. Nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pathlib
import pstats
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from unittest import mock

ROUNDS = 3
COUNT = 100


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int, nargs="?", default=COUNT)
    parser.add_argument("--profile", choices=("activate", "deactivate"))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        measure(args.count, args.profile)
        return
    own = [sys.executable, "-B", str(pathlib.Path(__file__).resolve()), str(args.count), "--inside"]
    own += ["--profile", args.profile] if args.profile else []
    sys.exit(subprocess.run([sys.executable, "-m", "niso.lab", "--", *own], check=False).returncode)


def package(name: str, number: int) -> str:
    folder = f"/tmp/packages/{name}"
    os.makedirs(folder, exist_ok=True)
    text = f'[package]\nname = "{name}"\nversion = "1"\n[binary]\nentrypoint = "sleep"\nargs = ["1000"]\n'
    text += f'[network]\nnetwork = "backend"\nports = ["{10_000 + number}:80"]\n'
    with open(f"{folder}/manifest.toml", "w") as file:
        file.write(text)
    return folder


def each_of(what: Callable[[list[str]], None], several: list[list[str]]) -> None:
    for each in several:
        what(each)


def timed(what: Callable[[], object]) -> float:
    before = time.perf_counter()
    what()
    return (time.perf_counter() - before) * 1000


def measure(count: int, profile: str | None) -> None:
    from niso.change import activate as change_activate
    from niso.change import deactivate as change_deactivate
    from niso.change import start
    from niso.change.targets import find_targets
    from niso.kernel.real import Kernel
    from niso.runtime import lifecycle, status
    from niso.runtime.machine import Machine
    from niso.runtime.processes import Processes
    from niso.store.store import Store

    nothing = mock.Mock(return_value=None)
    running = mock.Mock(return_value=mock.Mock(state="running", pid=1, error=None))
    asked = mock.Mock(return_value=-1)
    mock.patch.multiple(lifecycle, start=nothing, stop=nothing, terminate=asked).start()
    mock.patch.multiple(status, read=running, runs=mock.Mock(return_value=True)).start()
    mock.patch.object(start, "run", nothing).start()

    names = [f"s{number:03}" for number in range(count)]
    folders = [package(name, number) for number, name in enumerate(names)]
    store = Store.open()
    host = Machine(store, Kernel(), Processes())

    def activate(some: list[str]) -> None:
        change_activate.activate(host, find_targets(store, some), 60)

    def deactivate(some: list[str]) -> None:
        change_deactivate.deactivate(host, some)

    activate(folders)  # packages are copied once
    deactivate(names)
    if profile:
        if profile == "deactivate":
            activate(folders)
        profiler = cProfile.Profile()
        profiler.runcall(
            activate if profile == "activate" else deactivate,
            folders if profile == "activate" else names,
        )
        pstats.Stats(profiler).sort_stats("cumulative").print_stats(45).print_callers("execute")
        return
    figures: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for way, some in (
            ("together", [(folders, names)]),
            ("one by one", [([f], [n]) for f, n in zip(folders, names, strict=True)]),
        ):
            up = timed(partial(each_of, activate, [folders for folders, _ in some]))
            down = timed(partial(each_of, deactivate, [names for _, names in some]))
            figures.setdefault(f"activate {way}", []).append(up)
            figures.setdefault(f"deactivate {way}", []).append(down)
    medians = {name: statistics.median(each) for name, each in figures.items()}
    for name, value in medians.items():
        print(f"{name:<26} {value:8.1f} ms")
    for what in ("activate", "deactivate"):
        print(
            f"{what}: together is {medians[f'{what} together'] / medians[f'{what} one by one']:.2f} of one by one"
        )


if __name__ == "__main__":
    main()
