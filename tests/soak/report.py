"""Report the result of a soak, and judge it."""

from __future__ import annotations

import collections
import statistics
import time

import measure
from churn import Ran
from clients import Generator
from load import SLOW_S
from measure import Sample

KINDS = ("steady", "churned", "denied")
MEMORY_KIB = {**dict.fromkeys(measure.MACHINE, 16 << 10), measure.LAB: 4 << 10}
"""What the kernel may have grown by since the first round."""
CONMON_KIB = 512
ROUNDS = 2
"""Fewer say nothing of memory: the first round warms up."""
OTHERS = 20
"""Network namespaces of others that may come or go before the machine's figures are taken to be theirs."""
MEANWHILE_S = 2.0
BUSY = 0.05
"""The part of the answers that may be late before the machine is taken to be the reason."""
COLUMNS = (
    "nft rules",
    "elements",
    "links",
    "named netns",
    "cgroups",
    "mounts",
    "files",
    "processes",
    "fds of conmons",
)


def commands(ran: list[Ran]) -> tuple[list[str], list[str]]:
    """(lines, failures) of niso's commands."""
    kinds = collections.Counter(
        " ".join(each.argv[: 2 if each.argv[0] == "net" else 1]) for each in ran
    )
    took = statistics.median(each.ended - each.began for each in ran)
    shown = ", ".join(f"{name} {number}" for name, number in kinds.most_common())
    failures = [
        f"{_clock(each.began)} niso {' '.join(each.argv)[:120]}: exit status {each.status}: {each.said}"
        for each in ran
        if each.status
    ]
    return [f"commands     {len(ran):,} ({shown}), median {took * 1000:.0f} ms"], failures


def connections(
    generators: list[Generator], ran: list[Ran], going_s: float
) -> tuple[list[str], list[str]]:
    """(lines, failures) of connections, which were made for ``going_s`` seconds."""
    said = [generator.said for generator in generators]
    total = {
        kind: [sum(each[what][kind] for each in said) for what in ("attempts", "answers")]
        for kind in KINDS
    }
    made = sum(attempts for attempts, _ in total.values())
    kept, echoes, failed, slow, behind = (
        sum(each[what] for each in said) for what in ("kept", "echoes", "failed", "slow", "behind")
    )
    slowest = max(each["slowest"] for each in said)
    late = f"slowest {slowest * 1000:,.0f} ms, {slow:,} over {SLOW_S:g} s"
    lines = [
        f"connections  {made:,} new ones, {made / going_s:,.0f} a second, and {kept} kept open ({echoes:,} bytes came back)",
        *(
            f"  {kind:<10} {total[kind][0]:,}, of which {total[kind][1]:,} were answered"
            for kind in KINDS
        ),
    ]
    lines[1] += f"; {failed:,} failed; {late}"
    if behind:
        lines.append(
            f"  {behind:,} were not made: the machine is too busy, so this run says less than it should"
        )
    if slow > BUSY * total["steady"][0]:
        lines.append(
            "  so many late answers mean a machine that is too busy for this: failures may be that alone"
        )
    failures = []
    for generator in generators:
        told = generator.said["failures"]
        for number, (when, what) in enumerate(told):
            more = "" if number else _meanwhile(ran, when)
            failures.append(f"{_clock(when)} from {generator.whose}: {what}{more}")
        if generator.said["failed"] > len(told):
            failures.append(f"from {generator.whose}: {generator.said['failed'] - len(told)} more")
    return lines, failures


def growth(samples: list[Sample]) -> tuple[list[str], list[str]]:
    """(lines, failures): the table of what there was, and what has grown of the memory of the kernel and of each conmon."""
    memory = [f"{name} MiB" for name in measure.MEMORY]
    lines = ["  ".join(["after round", "flows", *COLUMNS, *memory, "conmon KiB"])]
    for number, each in enumerate(samples):
        exact = {
            **each.exact,
            "elements": sum(n for name, n in each.exact.items() if name.startswith("elements")),
        }
        cells = [
            f"{number:>11}",
            f"{each.flows:>5}",
            *(f"{exact[name]:>{len(name)}}" for name in COLUMNS),
        ]
        cells += [f"{each.memory[name] / 1024:>{len(name) + 4}.1f}" for name in measure.MEMORY]
        lines.append("  ".join([*cells, f"{statistics.median(each.conmons.values()):>10.0f}"]))
    last, warm = samples[-1], samples[min(1, len(samples) - 1)]
    others = last.others - warm.others
    judged = measure.MEMORY
    if len(samples) <= ROUNDS:
        lines.append(
            f"the memory of the kernel is not judged in a run of less than {ROUNDS} rounds"
        )
        judged = ()
    elif abs(others) > OTHERS:
        names = " and ".join(measure.MACHINE)
        lines.append(
            f"{names} are not judged: others here have {others:+d} network namespaces since the first round"
        )
        judged = (measure.LAB,)
    grown = {name: last.memory[name] - warm.memory[name] for name in judged}
    failures = [
        f"{name}: {kib / 1024:.1f} MiB more than after the first round"
        for name, kib in grown.items()
        if kib > MEMORY_KIB[name]
    ]
    for pid in samples[0].conmons.keys() & last.conmons.keys():
        if (kib := last.conmons[pid] - samples[0].conmons[pid]) > CONMON_KIB:
            failures.append(f"conmon {pid} has grown by {kib} KiB")
    return lines, failures


def _clock(when: float) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(when)) + f"{when % 1:.3f}"[1:]


def _meanwhile(ran: list[Ran], when: float) -> str:
    """The commands that ran then, or in the `MEANWHILE_S` before."""
    found = [each for each in ran if each.began <= when and each.ended > when - MEANWHILE_S]
    return "".join(
        f"\n      {_clock(each.began)} to {_clock(each.ended)} niso {' '.join(each.argv)[:100]}"
        for each in found
    )
