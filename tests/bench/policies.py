"""The benchmark of policies: ``policies.py [--quick] [--output FILE]``. How worlds (policy_worlds.py) are driven: driver.py."""

from __future__ import annotations

import argparse
import functools
import sys

from driver import Cases, Driver, Figures, Lab, column, head, rate, ratio, say, spread, store

FEW = 12
INSIDE = {
    "switched": "plain switching: no rule, no connection tracking",
    "tracked": "the same, tracked, with one rule",
    "no-policy": "niso, no policy",
    "policed": f"niso, a policy that allows the client among {10} peers",
}


class Bench(Driver):
    def __init__(self, quick: bool) -> None:
        super().__init__(170 if quick else 290)
        self.quick = quick
        self.many = 300 if quick else 1_000
        self.flow_ms = 150 if quick else 300

    def make(self, kind: str, services: int = 0) -> Lab:
        say(f"{kind}: {services} services" if services else kind)
        lab = self.labs[kind, services] = Lab(kind, self.flows, self.deadline)
        lab.call("fill", 0, services)
        return lab

    def changes(self) -> Figures:
        """Figures of (method, services): [ms to make the change, ms to take it back]."""
        cases: Cases = {}
        labs = {count: self.make("policies", count) for count in (FEW, self.many)}
        for method in ("update", "attach"):
            for count, lab in labs.items():
                cases[method, count] = functools.partial(lab.call, method)
        return self.in_turn("changes", cases, 5 if self.quick else 15, 0.3)

    def inside(self) -> Figures:
        """Figures of (world, protocol): [flows per second]."""
        cases: Cases = {}
        for kind in INSIDE:
            lab = self.make(kind)
            lab.call("serve")
            for proto in ("tcp", "udp"):
                cases[kind, proto] = functools.partial(rate, lab, proto, "", self.flow_ms)
        return self.in_turn("inside a bridge", cases, 4 if self.quick else 20, 0.4)

    def run(self) -> str:
        changes, inside = self.changes(), self.inside()
        command = f"./dev bench policies{' --quick' if self.quick else ''}"
        return "\n".join(
            [
                *head("Policies: what they cost", command, f"a round of flows is {self.flow_ms} ms of each"),
                *self.changes_table(changes),
                *inside_table(inside),
                f"Rounds, and the load of the machine (its 1-minute average) before and after: {'; '.join(self.notes)}."
                " All state folders are on tmpfs: a disk's fsync is in no figure.",
                "",
            ]
        )

    def changes_table(self, found: Figures) -> list[str]:
        lines = [
            "## One change, where others have policies too",
            "",
            f"| ms, median (least to most) | {FEW} services | {self.many:,} services | ratio |",
            "| --- | --- | --- | --- |",
        ]
        words = {
            ("update", 0): "one peer taken out of a policy",
            ("update", 1): "one peer put into it",
            ("attach", 0): "one more service with such a policy",
            ("attach", 1): "taken away",
        }
        for (method, which), text in words.items():
            few, many = ([[row[which]] for row in found[method, count]] for count in (FEW, self.many))
            cells = [text, spread(column(few)), spread(column(many)), f"**{ratio(many, few)}**"]
            lines.append(f"| {' | '.join(cells)} |")
        return [
            *lines,
            "",
            "Each service's policy names 10 others of its network with a port. In process: the store, the kernel and all checks,"
            " without starting Python; services have no process.",
            "",
        ]


def inside_table(found: Figures) -> list[str]:
    lines = [
        "## New flows between two services of one bridge",
        "",
        "| per second, median (least to most) | TCP | to plain switching | UDP | to plain switching |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind, text in INSIDE.items():
        cells = [text]
        for proto in ("tcp", "udp"):
            cells += [spread(column(found[kind, proto])), f"**{ratio(found[kind, proto], found['switched', proto])}**"]
        lines.append(f"| {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "Client and server as in [ports](ports.md): a TCP flow is a connection, one byte and a reset.",
        "",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and services")
    parser.add_argument("--output", help="the markdown file to write (default: docs/bench/policies.md)")
    options = parser.parse_args()
    try:
        with Bench(options.quick) as bench:
            text = bench.run()
    except (RuntimeError, TimeoutError) as error:
        say(str(error))
        return 1
    store(text, options.output, "policies.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
