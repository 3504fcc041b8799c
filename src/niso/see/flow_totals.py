"""Count flows by names for metrics: a bounded number of series for any number of addresses."""

from __future__ import annotations

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.see.seen import Ends

if TYPE_CHECKING:
    from niso.plan.known_world import World
    from niso.see.seen import Memory

OUTSIDE = "outside"
"""The name for every address that belongs neither to a service nor to the host."""


class Total(NamedTuple):
    """The flows between two names on one port; ``flows`` is the number that the kernel recorded."""

    source: str
    destination: str
    port: int
    proto: str
    verdict: str  # pass, audit or drop
    flows: int


def totals(world: World, memory: Memory, limit: int) -> tuple[list[Total], int]:
    """Return the ``limit`` most frequent totals, sorted, and how many more there are. Pure."""
    ends = Ends(world)

    def name(address: str) -> str:
        end = ends.of(address)
        return end.name if end.service or end.is_host else OUTSIDE

    counts: dict[tuple[str, str, int, str, str], int] = {}
    for verdict, row in memory.by_verdict():
        key = (name(row.source), name(row.destination), row.port, row.proto, verdict)
        counts[key] = counts.get(key, 0) + row.packets
    # break ties by name, so that two queries of the same flows choose the same totals
    ranked = sorted(counts, key=lambda key: (-counts[key], key))
    return sorted(Total(*key, counts[key]) for key in ranked[:limit]), len(ranked[limit:])
