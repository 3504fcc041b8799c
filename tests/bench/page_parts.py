"""Hold what all chapters of the page are made of: names of the parties, prose, tables, charts."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from figures import Found, ratio, spread, times

NAMES = {
    "niso": "niso",
    "niso command": "niso, whole command",
    "niso forward": "niso port-forward, in process",
    "batch": "`ip -batch` and `nft -f`",
    "netavark": "netavark",
    "cni": "CNI plugins",
    "podman": "podman",
    "podman-niso": "podman on a niso network",
    "docker": "docker",
    "start-first": "niso, start-first",
    "replicas": "niso, three instances",
    "stop-first": "niso, stop-first",
    # only in the list of what was not measured
    "niso-whole": "niso, whole services",
    "no-policy": "niso, no policy",
    "policed": "niso, with a policy",
    "unlimited": "niso, with a policy, without limits",
    "no-policy-forgets": "niso, no policy, without recorded flows",
    "policed-forgets": "niso, with a policy, without recorded flows",
    "docker-proxy": "docker with its proxy",
    "cluster": "the cluster",
    "swarm": "Docker Swarm",
}
Rows = Sequence[tuple[str, str, str]]
"""(what, who, the name of the line)"""


def prose(words: str, indent: str = "") -> str:
    """Wrap a paragraph to 100 columns, without a break inside ``code``."""
    joined = re.sub(r"`[^`]+`", lambda code: code.group().replace(" ", "\0"), words)
    lines = textwrap.wrap(
        joined, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(lines).replace("\0", " ")


def table(
    found: Found, head: str, rows: Rows, sizes: Sequence[int], base: tuple[str, str], unit: str
) -> list[str]:
    """Return a line for each row, with two columns for each size: figure, and ratio to ``base``."""
    noun = "ports" if base[0].startswith(("publish", "withdraw")) else "services"
    columns = [
        each
        for size in sizes
        for each in (
            f"with {size:,} {noun if size > 1 else noun[:-1]}" if size else unit,
            "relative to first row"
            if base == rows[0][:2]
            else f"relative to {NAMES.get(base[1], base[1])}",
        )
    ]
    lines = [f"| {head} | {' | '.join(columns)} |", f"| --- |{' --- |' * len(columns)}"]
    for what, who, name in rows:
        if not found.rows(what, who):
            if any(each.who == who for each in found.absent):
                lines.append(f"| {name} | not measured{' |' * len(columns)}")
            continue
        cells = []
        for size in sizes:
            row = found.row(what, who, size)
            below = found.row(base[0], base[1], size)
            at = f" with {row.at:,} {noun}" if row and size and row.at != size else ""
            cells += [f"{spread(row)}{at}" if row else "–", times(ratio(row, below))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def picture(name: str, words: str, drawn: set[str]) -> list[str]:
    return [f"[![{words}]({name}.png)]({name}.svg)", ""] if name in drawn else []
