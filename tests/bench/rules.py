"""Measure what each rule of niso costs: ``rules.py [--seconds N] [--copies N] [CHAIN ...]``.

In a lab, removes one rule at a time from niso's tables, and measures in turn new flows to a
published port, inside a bridge, and inside a bridge with a policy ("path" of flows.c). ``CHAIN`` is
such as "inet/raw" or "bridge/forward"; without it, only all rules together are measured. A rule
without which no flow passes is left out. Prints the median difference to all rules, in microseconds
for one flow.

With ``--copies``, so many copies of the rule precede it, and the difference is that of one copy.
This shows the cost of a rule that most packets pass, also if it is below what removing it shows. A
rule that ends its chain costs more than its copies show.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time

from bridge_worlds import FAST, OTHERS
from driver import environment, flows_program
from niso_world import NisoWorld, package
from worlds import HOST, SERVED, Mapping, run, write

from niso.kernel import ruleset

WAYS = [f"{where} {proto}" for where in ("port", "inside", "policy") for proto in ("tcp", "udp")]
Tables = dict[str, str]
"""What is removed -> the text of both tables."""


class World(NisoWorld):
    """A service with a published port, and two networks of two services, of which one has a policy."""

    def fill(self, ports: int) -> float:
        write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0")
        self.publish_all({"first": [Mapping(SERVED, SERVED), Mapping(SERVED, SERVED, "udp")]})
        policy = f"[network.policy]\nallow_from = {[f'{name}:{SERVED}' for name in OTHERS]}\n"
        self.activate(
            [
                package("server1", [], "inside"),
                package("client1", [], "inside", FAST),
                package("server0", [], "guarded", policy),
                package("client0", [], "guarded", FAST),
            ]
        )
        for name in ("tcp_timeout_close", "udp_timeout"):
            write(f"/proc/sys/net/netfilter/nf_conntrack_{name}", "1")
        run("ip", "-n", "client", "address", "add", "192.0.2.16/24", "dev", "eth0")
        return 0.0

    def path(self, way: str) -> float:
        """Return the microseconds of one flow, of which one thread is client and server."""
        where, proto = way.split()
        client, server, source, to = "client", "niso-first", "192.0.2.16", HOST
        if where != "port":
            number = "1" if where == "inside" else "0"
            client, server = f"niso-client{number}", f"niso-server{number}"
            source, to = (
                run("ip", "-n", each, "-4", "-o", "address", "show", "eth0")
                .split()[3]
                .partition("/")[0]
                for each in (client, server)
            )
        spaces = [f"/run/netns/{name}" for name in (client, server)]
        words = ("path", proto, self.client_cpu, to, str(SERVED), source, *spaces)
        return int(run("timeout", "5", self.flows, *words)) / 1000


def elements() -> str:
    """Return the statements that add all elements again, except those that rules add."""
    found = []
    for table in ruleset.CONTAINERS:
        text = run("nft", "list", "table", *table.split())
        for kind in re.finditer(r"\n\t(?:set|map) (\S+) \{(.*?)\n\t\}", text, re.DOTALL):
            inside = re.search(r"elements = \{(.*)\}", kind[2], re.DOTALL)
            if inside and "dynamic" not in kind[2]:
                found.append(f"add element {table} {kind[1]} {{{inside[1]}}}")
    return "\n".join(found)


def variants(chains: list[str], copies: int = 0) -> Tables:
    found = {"all rules": ruleset.TABLES}
    for each in chains:
        family, _, chain = each.partition("/")
        table = f"{family} niso"
        start = ruleset.TABLES.index(f"table {table} {{")
        start = ruleset.TABLES.index(f"chain {chain} {{\n", start)
        end = ruleset.TABLES.index("\n\t}", start)
        for rule in ruleset.rules_of(table, chain):
            line = f"\n\t\t{rule}"
            body = ruleset.TABLES[start:end].replace(line, line * (copies + 1 if copies else 0), 1)
            changed = ruleset.TABLES[:start] + body + ruleset.TABLES[end:]
            found[f"{each}: {rule.partition(' comment ')[0]}"] = changed
    return found


def measure(flows: str, seconds: float, copies: int, chains: list[str]) -> None:
    world = World(flows)
    world.fill(1)
    tables, again = variants(chains, copies), elements()
    gone = "".join(f"delete table {table}\n" for table in ruleset.CONTAINERS)
    figures: dict[tuple[str, str], list[float]] = {}
    end, turn = time.monotonic() + seconds, 0
    while time.monotonic() < end or turn < 2:
        for name in list(tables) if turn % 2 else list(reversed(tables)):
            rows = {}
            for text in (name, "all rules"):  # next to each other, since the load changes
                run("nft", "-f", "-", input=f"{gone}{tables[text]}\n{again}\n")
                try:
                    rows[text] = {way: world.path(way) for way in WAYS}
                except RuntimeError:  # no flow passes without it
                    del tables[name]
                    break
            for way in WAYS if turn and name in tables else ():
                base, value = rows["all rules"][way], rows[name][way]
                more = value if name == "all rules" else (value - base) / (copies or 1)
                figures.setdefault((name, way), []).append(more)
        turn += 1
    print(f"{turn - 1} rounds; us for one flow: {', '.join(WAYS)}")
    for name in tables:
        each = [statistics.median(figures[name, way]) for way in WAYS]
        print("".join(f"{value:8.3f}" for value in each), name[:110])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--copies", type=int, default=0)
    parser.add_argument("--inside", default="", help=argparse.SUPPRESS)
    parser.add_argument("chains", nargs="*", metavar="CHAIN")
    args = parser.parse_args()
    if args.inside:
        if os.environ.get("NISO_LAB") != "1":
            sys.exit("this changes links and rules: only in a lab")
        measure(args.inside, args.seconds, args.copies, args.chains)
        return
    own = [sys.executable, "-B", str(pathlib.Path(__file__).resolve()), *sys.argv[1:]]
    lab = [sys.executable, "-m", "niso.lab", "--", *own, "--inside", flows_program()]
    sys.exit(subprocess.run(lab, check=False, env=environment()).returncode)


if __name__ == "__main__":
    main()
