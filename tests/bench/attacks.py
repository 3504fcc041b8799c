"""Run attacks between services on niso, Podman's bridge and Docker, in labs: ``./dev bench --attacks``.

Prints a table for docs/design/threat-model.md. A party that cannot be started is named with the reason.
"""

from __future__ import annotations

import statistics

from driver import Failed, Lab, say

PARTIES = {
    "attacked-niso": "niso",
    "attacked-unlimited": "niso without its limits",
    "attacked-netavark": "netavark",
    "attacked-podman": "Podman",
    "attacked-docker": "Docker",
}
ATTACKS = {
    "shadow": "port shadowing (CVE-2021-3773): questions to a published port that the attacker gets",
    "address": "datagrams with a neighbour's address that arrive",
    "mac": "a neighbour's MAC: its datagrams that the attacker gets",
    "arp": "ARP for a neighbour's address: its datagrams that the attacker gets",
    "neighbours": "addresses that nobody has, for which the host takes a neighbour entry",
    "broadcasts": "ARP flood: questions that arrive",
    "flows": "flood of new flows: those that take an entry of connection tracking",
    "fragments": "4,000 incomplete packets",
}
ROUNDS = 3


def measure() -> str:
    """Return the table, in Markdown."""
    rows: dict[str, dict[str, str]] = {what: {} for what in ATTACKS}
    absent = []
    for kind, name in PARTIES.items():
        say(f"attacks: {name}")
        lab = Lab(kind)
        try:
            lab.call("set_up")
            for what in ATTACKS:
                try:
                    rows[what][name] = _cell([lab.call("attack", what) for _ in range(ROUNDS)])
                except Failed as error:
                    rows[what][name] = "not measured"
                    absent.append(f"{name}, {what}: {error}")
        except Failed as error:
            absent.append(f"{name}: {error}")
        finally:
            lab.begin_close()
            lab.close()
    names = [name for name in PARTIES.values() if any(name in row for row in rows.values())]
    lines = [f"| attack | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    for what, title in ATTACKS.items():
        lines.append(f"| {title} | {' | '.join(rows[what].get(name, '') for name in names)} |")
    return "\n".join((*lines, *(f"not measured: {each}" for each in absent)))


def _cell(found: list[dict[str, float]]) -> str:
    """Return the medians: what of the attack succeeds, and what the victim still gets."""
    middle = {key.split(": ")[1]: 0.0 for key in found[0]}
    for key in found[0]:
        middle[key.split(": ")[1]] = statistics.median(each[key] for each in found)
    words = [f"{middle['attack']:.0f} %"] if "attack" in middle else []
    if "victim" in middle:
        words.append(f"victim {middle['victim']:.0f} %")
    return ", ".join(words)
