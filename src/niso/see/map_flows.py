"""Group flows for a map: by name, with a bounded number of other machines. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from niso.base.lite_typing import TYPE_CHECKING, NamedTuple
from niso.see.seen import HOST, End, Memory, Seen

if TYPE_CHECKING:
    from collections.abc import Callable

    from niso.kernel.flows import Open
    from niso.kernel.sensor import Recorded

OTHERS = "other machines"
MOST_OUTSIDE = 8
"""The most outside addresses shown by themselves, in each direction."""
MOST_PASSED, MOST_REFUSED, MOST_OPEN = 4000, 1000, 1000
"""The most recorded, refused and open flows in one update of the map."""


class Place(NamedTuple):
    """An end of flows on the map. ``kind`` is service, host, outside, others or gone."""

    name: str
    kind: str


class Joint(NamedTuple):
    """The flows between two places on one port; ``last`` is the most recent of them.

    ``fresh`` is the number of new flows since the previous update, ``octets`` the bytes in both
    directions since then. The other figures are as in `Seen`.
    """

    source: Place
    target: Place
    last: Seen
    new: int
    fresh: int
    octets: int
    ago: float | None
    open: int


def bounded(memory: Memory) -> tuple[Memory, int]:
    """Keep the latest flows and the most frequent open ones; return them and the number omitted."""

    def latest(rows: tuple[Recorded, ...], most: int) -> tuple[Recorded, ...]:
        if len(rows) <= most:
            return rows
        return tuple(sorted(rows, key=lambda row: (row.ago, row[:4]))[:most])

    counts: dict[tuple[str, str, str, int], int] = {}
    for flow in memory.opened:
        key = (flow.source, flow.destination, flow.proto, flow.port)
        counts[key] = counts.get(key, 0) + 1
    opened: tuple[Open, ...] = memory.opened
    if len(counts) > MOST_OPEN:
        kept = set(sorted(counts, key=lambda key: (-counts[key], key))[:MOST_OPEN])
        opened = tuple(
            flow
            for flow in opened
            if (flow.source, flow.destination, flow.proto, flow.port) in kept
        )
    passed = latest(memory.passed, MOST_PASSED)
    refused = latest(memory.refused, MOST_REFUSED)
    left_out = len(memory.passed) - len(passed) + len(memory.refused) - len(refused)
    left_out += max(len(counts) - MOST_OPEN, 0)
    return memory._replace(passed=passed, refused=refused, opened=opened), left_out


def joint(
    rows: Iterable[Seen],
    fresh: Callable[[Seen], int],
    octets: Callable[[Seen], int] = lambda _: 0,
) -> list[Joint]:
    """Group flows by places and port, sorted.

    ``fresh`` returns how many of a flow's connections are new since the previous update, ``octets``
    their bytes.
    """
    rows = list(rows)
    sources = _shown(row.source for row in rows)
    targets = _shown(row.destination for row in rows)
    joints: dict[tuple[Place, Place, int, str, str], Joint] = {}
    for row in rows:
        source, target = _place(row.source, sources), _place(row.destination, targets)
        if source == target:
            continue  # omit a service that connects to itself
        key = (source, target, row.port, row.proto, row.verdict)
        new, moved = fresh(row), octets(row)
        before = joints.get(key)
        if before is None:
            joints[key] = Joint(source, target, row, row.new, new, moved, row.ago, row.open)
            continue
        is_later = (row.ago is not None) and (before.ago is None or row.ago < before.ago)
        joints[key] = Joint(
            source,
            target,
            row if is_later else before.last,
            before.new + row.new,
            before.fresh + new,
            before.octets + moved,
            row.ago if is_later else before.ago,
            before.open + row.open,
        )
    return [joints[key] for key in sorted(joints)]


def _shown(ends: Iterable[End]) -> Mapping[str, int]:
    """Choose the outside names and addresses to show: those with most flows, with their counts."""
    counts: dict[str, int] = {}
    for end in ends:
        if not (end.service or end.is_host or end.gone):
            counts[end.name] = counts.get(end.name, 0) + 1
    ranked = sorted(counts, key=lambda name: (-counts[name], name))
    return {name: counts[name] for name in ranked[:MOST_OUTSIDE]}


def _place(end: End, shown: Mapping[str, int]) -> Place:
    if end.service:
        return Place(end.service, "service")
    if end.is_host:
        return Place(HOST, "host")
    if end.gone:
        return Place(end.address, "gone")
    if end.name in shown:
        return Place(end.name, "outside")
    return Place(OTHERS, "others")
