"""A soak in a lab: ``./dev soak [--minutes N] [--services N] [--rate N] [--seed N]``.

Services are churned (activated, changed, forwarded to, restarted, deactivated, removed; networks come and go) while new connections are made, from
another machine and from services, to some that are never touched. Nobody may notice. Prints a short report, exits with 1 where one
of its checks fails, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import churn
import measure
import report
from churn import STEADY, Ran, Worker, churned, niso
from clients import HOST, SHARES, Generator, targets
from load import hurry
from measure import Sample

HERE = pathlib.Path(__file__).resolve().parent
FAULTS = HERE.parent / "faults"
WORKERS = 3
ROUND_S = 60.0
SETTLE_S = 30.0
STOP_S = 2 * churn.COMMAND_S
TOLD = 10
FLOWS = 5
"""So many more may be left for a while: of a connection to a churned service whose end one side has not heard of."""
FORGOTTEN_AFTER = {
    "close": 1,
    "syn_sent": 3,
    "syn_recv": 3,
    "time_wait": 1,
    "close_wait": 3,
    "fin_wait": 3,
    "last_ack": 3,
}
"""Seconds that connection tracking of this lab remembers what has ended: what is left then is what nobody forgets."""


class Soak:
    def __init__(self, seconds: float, count: int, rate: float, seed: int) -> None:
        self._seconds, self._count, self._rate, self._seed = seconds, count, rate, seed
        self.samples: list[Sample] = []
        self.failures: list[str] = []
        self._workers = [
            Worker(f"w{n}", f"{seed} {n}", list(range(n, count, WORKERS)), count)
            for n in range(min(WORKERS, count))
        ]
        self._settled: list[Ran] = []
        self._generators: list[Generator] = []
        self._going_s = 0.0

    def run(self) -> None:
        """All of it. Whatever fails is in ``failures``."""
        before = self._prepare()
        self._must(*self._all_as_base())
        self._loads()
        self._sample()
        left = self._seconds
        while left > 0:
            print(f"soak: {left:.0f} s to go", file=sys.stderr)
            self._round(min(left, ROUND_S))
            left -= ROUND_S
        self._end(before)

    def _prepare(self) -> dict[str, Any]:
        for name, seconds in FORGOTTEN_AFTER.items():
            measure.output(
                "sysctl", "-qw", f"net.netfilter.nf_conntrack_tcp_timeout_{name}={seconds}"
            )
        # another machine that knows the way to what is not published
        measure.output("ip", "-n", "client", "route", "replace", "10.99.0.0/16", "via", HOST)
        # the store, and what is made once, are there before anything is counted
        self._must("activate", churn.package("first", {}))
        self._must("remove", "first")
        before = snapshot()
        self._must("net", "create", "shared")
        self._must("net", "create", "six", "--ipv6")
        self._must("net", "create", "quiet")
        self._must("activate", *(churn.package(name, network) for name, network in STEADY.items()))
        return before

    def _must(self, *argv: str) -> Ran:
        """Run a command; one that fails here ends the soak."""
        ran = niso(*argv)
        if ran.status:
            raise RuntimeError(f"niso {' '.join(argv)[:200]}: exit status {ran.status}: {ran.said}")
        return ran

    def _all_as_base(self) -> list[str]:
        return [
            "activate",
            *(churn.package(churned(number), churn.base(number)) for number in range(self._count)),
        ]

    def _loads(self) -> None:
        for pid in measure.steady_processes():
            hurry(pid)
        at = {row["service"]: row["address"] for row in json.loads(niso("ps", "--json").said)}
        for number, (netns, each) in enumerate(targets(at, self._count).items()):
            self._generators.append(
                Generator(netns, self._rate * SHARES[netns], self._seed + number, each)
            )

    def _round(self, length: float) -> None:
        """Churn for ``length`` seconds, put everything as `churn.base` says, and count."""
        self._tell("go")
        began = time.monotonic()
        stop = threading.Event()
        threads = [
            threading.Thread(target=worker.churn, args=(stop,), daemon=True)
            for worker in self._workers
        ]
        for thread in threads:
            thread.start()
        time.sleep(length)
        stop.set()
        for thread in threads:
            thread.join(STOP_S)
            if thread.is_alive():
                raise RuntimeError(f"a worker has not ended in {STOP_S:g} s")
        self._settled.append(niso(*self._all_as_base()))
        self._going_s += time.monotonic() - began
        self._tell("pause")
        self._sample()

    def _tell(self, word: str) -> None:
        for generator in self._generators:
            generator.tell(word)

    def _sample(self) -> None:
        """Count, once what has ended is forgotten and what goes in its own time is gone."""
        deadline = time.monotonic() + SETTLE_S
        first = self.samples[0] if self.samples else None
        while True:
            found = measure.sample()
            if first is None:
                calm = found.flows <= sum(generator.said["kept"] for generator in self._generators)
            else:
                calm = found.flows <= first.flows + FLOWS and found.exact == first.exact
            if calm or time.monotonic() > deadline:
                break
            time.sleep(0.3)
        self.samples.append(found)
        if first is not None:
            for name in sorted(first.exact.keys() | found.exact.keys()):
                was, now = first.exact.get(name, 0), found.exact.get(name, 0)
                if was != now:
                    self._fail(f"{name}: {was} at first, {now} after round {len(self.samples) - 1}")
            for words, some in (
                ("more", found.files - first.files),
                ("missing", first.files - found.files),
            ):
                if some:
                    self._fail(f"{words}: {', '.join(sorted(some)[:5])}")
            if found.flows > first.flows + FLOWS:
                self._fail(
                    f"flows: {first.flows} at first, {found.flows} after round {len(self.samples) - 1}"
                )
        self._check("after a round")

    def _check(self, when: str) -> None:
        ran = niso("net", "check")
        # a policy may name a service that is removed at the moment: a warning
        if ran.status or ran.said.partition("\n")[0] != "OK: the kernel matches the configuration":
            self._fail(f"niso net check {when}: exit status {ran.status}: {ran.said[:500]}")

    def _fail(self, what: str) -> None:
        self.failures.append(what)

    def _end(self, before: dict[str, Any]) -> None:
        """Remove all, and see that everything is as before."""
        sys.path.append(str(FAULTS))
        from kernel_snapshot import differences

        for generator in self._generators:
            generator.end()
        self._must("remove", *STEADY, *(churned(number) for number in range(self._count)))
        networks = [row["name"] for row in json.loads(self._must("net", "list", "--json").said)]
        self._must("net", "remove", *networks)
        self._check("after all is removed")
        deadline = time.monotonic() + SETTLE_S
        while True:
            left = differences(before, snapshot())
            flows = measure.flows()
            if not (left or flows) or time.monotonic() > deadline:
                break
            time.sleep(0.3)
        for each in left[:TOLD]:
            self._fail(f"after all is removed: {each}")
        if flows:
            self._fail(f"after all is removed: {flows} flows")

    def report(self) -> list[str]:
        """The lines that are printed; what they find goes to ``failures`` too."""
        ran = [each for worker in self._workers for each in worker.ran] + self._settled
        lines = []
        for some, failures in (
            report.commands(ran),
            report.connections(self._generators, ran, self._going_s),
            report.growth(self.samples),
        ):
            lines += some
            self.failures += failures
        return lines


def snapshot() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        measure.output(sys.executable, "-ISB", str(FAULTS / "kernel_snapshot.py"))
    )
    return found


def _too_late(*_: object) -> None:
    raise RuntimeError("it takes more than twice as long as it should: the machine is too busy")


def inside(args: argparse.Namespace) -> int:
    if os.environ.get("NISO_LAB") != "1":
        sys.exit("this changes links and rules, and sends traffic: only in a lab")
    seconds = args.minutes * 60
    signal.signal(signal.SIGALRM, _too_late)
    signal.alarm(int(seconds * 2 + 900))
    print(
        f"soak: seed {args.seed}, {args.services} services, {args.rate:g} connections a second, {args.minutes:g} minutes",
        flush=True,
    )
    soak = Soak(seconds, args.services, args.rate, args.seed)
    try:
        soak.run()
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        print(f"soak: cannot go on: {error}")
        if len(soak.samples) < 2:
            return 1
        soak.failures.append(str(error))
    for line in soak.report():
        print(line)
    for failure in soak.failures:
        print(f"FAILED: {failure}")
    print(f"soak: {len(soak.failures)} failures" if soak.failures else "soak: passed")
    return 1 if soak.failures else 0


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="./dev soak",
        description="Churn services under new connections, in a lab; see that nobody else notices.",
    )
    parser.add_argument(
        "--minutes", type=float, default=10, help="how long services are churned (default: 10)"
    )
    parser.add_argument("--services", type=int, default=200, help="how many (default: 200)")
    parser.add_argument(
        "--rate", type=float, default=1000, help="new connections a second (default: 1000)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=random.randrange(1 << 32),
        help="what is done is drawn from it (default: a new one)",
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not (0 < args.minutes <= 600 and 1 <= args.services <= 1000 and 10 <= args.rate <= 10_000):
        parser.error("at most 600 minutes, 1 to 1000 services, 10 to 10000 connections a second")
    if args.inside:
        sys.exit(inside(args))
    words = [f"--{name}={getattr(args, name)}" for name in ("minutes", "services", "rate", "seed")]
    own = [sys.executable, "-B", str(HERE / "soak.py"), "--inside", *words]
    sys.exit(
        subprocess.run(
            [sys.executable, "-m", "niso.lab", "--", *own], check=False, cwd="/"
        ).returncode
    )


if __name__ == "__main__":
    main()
