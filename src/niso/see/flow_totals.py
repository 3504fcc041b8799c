"""Count flows by names, for metrics: a bounded number of series, however many addresses."""

from __future__ import annotations

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.see.seen import Ends

if TYPE_CHECKING:
    from niso.plan.known_world import World
    from niso.see.seen import Memory

OUTSIDE = "outside"
"""The name of every address that is neither a service's nor the host's."""


class Total(NamedTuple):
    """The flows between two names on one port. ``flows`` is what the kernel remembers of them."""

    source: str
    destination: str
    port: int
    proto: str
    verdict: str  # pass, audit or drop
    flows: int


def totals(world: World, memory: Memory, limit: int) -> tuple[list[Total], int]:
    """Return the ``limit`` most frequent ones, sorted, and how many others there are. Pure."""
    ends = Ends(world)

    def name(address: str) -> str:
        end = ends.of(address)
        return end.name if end.service or end.is_host else OUTSIDE

    counts: dict[tuple[str, str, int, str, str], int] = {}
    for verdict, row in memory.by_verdict():
        key = (name(row.source), name(row.destination), row.port, row.proto, verdict)
        counts[key] = counts.get(key, 0) + row.packets
    # ties by name, so that two looks at the same flows choose the same
    ranked = sorted(counts, key=lambda key: (-counts[key], key))
    return sorted(Total(*key, counts[key]) for key in ranked[:limit]), len(ranked[limit:])
