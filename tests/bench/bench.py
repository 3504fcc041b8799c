"""Benchmark niso and its peers in labs, and write docs/bench: a page with tables, charts and figures.

Each chapter is measured by itself and kept as soon as it is done; what the machine did meanwhile is noted. Nothing here passes or
fails: a party that cannot do something is named with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import attacks
import chapter_cluster
import chapter_deploys
import chapter_policies
import chapter_ports
import chapter_services
import chapter_thousand
import page
import page_summary
from driver import CACHE, ROOT, load, machine, say, settle, versions
from figures import Found

CHAPTERS: dict[str, Callable[[bool, frozenset[str]], Found]] = {
    "services": lambda quick, without: chapter_services.measure(
        chapter_services.QUICK if quick else chapter_services.FULL, without
    ),
    "thousand": lambda quick, without: chapter_thousand.measure(
        chapter_thousand.QUICK if quick else chapter_thousand.FULL, without
    ),
    "ports": lambda quick, without: chapter_ports.measure(
        chapter_ports.QUICK if quick else chapter_ports.FULL, without
    ),
    "policies": lambda quick, without: chapter_policies.measure(
        chapter_policies.QUICK if quick else chapter_policies.FULL, without
    ),
    "deploys": lambda quick, without: chapter_deploys.measure(
        chapter_deploys.QUICK if quick else chapter_deploys.FULL, without
    ),
    "cluster": lambda quick, without: chapter_cluster.measure(
        chapter_cluster.QUICK if quick else chapter_cluster.FULL, without
    ),
}
PEERS = ("batch", "netavark", "cni", "podman", "podman-niso", "docker", "docker-proxy")


def main() -> int:
    options = parse()
    if options.attacks:
        print(attacks.measure())
        return 0
    folder = pathlib.Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    failed = False
    store = folder / "figures.json"
    figures = read(store)
    if not options.draw:
        if os.geteuid() != 0:
            sys.exit("bench: labs need root")
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that labs end with this
        try:
            failed = measure(options, figures, store)
        except KeyboardInterrupt:
            say("interrupted: what was measured is kept, and --resume goes on from it")
            return 130
    pictures = draw(store, folder)
    text = page.text(figures, pictures)
    (folder / "README.md").write_text(text, encoding="utf-8")
    print(page_summary.short(figures))
    say(f"all of it is in {folder / 'README.md'}")
    return int(failed)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("chapter", nargs="*", help=f"measure these only: {', '.join(CHAPTERS)}")
    parser.add_argument(
        "--quick", action="store_true", help="under 5 minutes: fewer rounds, services and ports"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep the chapters that this niso was measured in today, as they are",
    )
    parser.add_argument(
        "--without", action="append", default=[], choices=PEERS, help="leave a peer out"
    )
    parser.add_argument(
        "--attacks",
        action="store_true",
        help="attack a service from another, of niso and of its peers, and print what succeeds",
    )
    parser.add_argument(
        "--draw",
        action="store_true",
        help="measure nothing: write page and pictures anew from figures.json",
    )
    parser.add_argument(
        "--output",
        default=str(ROOT / "docs" / "bench"),
        help="the folder to write to (default: docs/bench)",
    )
    options = parser.parse_args()
    for chapter in options.chapter:
        if chapter not in CHAPTERS:
            parser.error(f"no chapter {chapter}: there are {', '.join(CHAPTERS)}")
    return options


def read(store: pathlib.Path) -> dict[str, Any]:
    with contextlib.suppress(FileNotFoundError, ValueError):
        return dict(json.loads(store.read_text(encoding="utf-8")))
    return {}


def measure(options: argparse.Namespace, figures: dict[str, Any], store: pathlib.Path) -> bool:
    """Measure what was asked for into ``figures`` and ``store``. True where a chapter broke: it is left as it was."""
    failed = False
    now = {"machine": machine(), "versions": versions(), "quick": options.quick}
    today = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    for name in options.chapter or CHAPTERS:
        kept = figures.get(name, {})
        if (
            options.resume
            and all(kept.get(key) == now[key] for key in now)
            and kept["date"].startswith(today)
        ):
            say(f"{name}: measured at {kept['date']}, kept")
            continue
        began, before = time.monotonic(), load()
        date = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"
        try:
            found = CHAPTERS[name](options.quick, frozenset(options.without))
        except (
            Exception
        ):  # a defect of the benchmark itself; what the other chapters find is worth as much
            traceback.print_exc()
            say(f"{name}: not measured, because of this")
            failed = True
            continue
        finally:
            settle()
        seconds = round(time.monotonic() - began)
        say(f"{name}: measured in {seconds} s")
        figures[name] = now | {
            "date": date,
            "seconds": seconds,
            "load": [before, load()],
            **found.dump(),
        }
        part = store.with_suffix(".part")
        part.write_text(pretty(figures), encoding="utf-8")
        part.replace(store)
    return failed


def pretty(figures: dict[str, Any]) -> str:
    """JSON with each list of plain values on one line."""
    whole = json.dumps(figures, indent=1)
    return (
        re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", whole)
        + "\n"
    )


def draw(store: pathlib.Path, folder: pathlib.Path) -> list[str]:
    """The pictures' names, without ending. They are drawn by a process of their own, so that a failure costs no table."""
    argv = [
        sys.executable,
        "-B",
        str(pathlib.Path(__file__).with_name("plots.py")),
        str(store),
        str(folder),
    ]
    cache = {
        "MPLCONFIGDIR": str(CACHE / "matplotlib")
    }  # its list of fonts; else it would leave it in a home
    done = subprocess.run(
        argv, stdout=subprocess.PIPE, text=True, check=False, env=os.environ | cache
    )
    if done.returncode:
        say("the pictures could not be drawn (see above); the tables are there")
    return done.stdout.split()


if __name__ == "__main__":
    sys.exit(main())
