"""Hold benchmark results as plain data, with their arithmetic. Pure.

A row is one thing measured (`what`) of one party (`who`) beside so many others (`at`): one value for each round. A party that
could not come as far as was wanted (`wanted`) was measured where it was.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Self


@dataclass
class Row:
    what: str
    who: str
    at: int
    wanted: int
    values: list[float] = field(default_factory=list)


@dataclass
class Absent:
    """What was not measured, and why."""

    what: str
    who: str
    at: int
    why: str


class Found:
    """The rows of a chapter."""

    def __init__(
        self, rows: Iterable[Row] = (), absent: Iterable[Absent] = (), notes: Iterable[str] = ()
    ) -> None:
        self._rows = {(row.what, row.who, row.at): row for row in rows}
        self.absent = list(absent)
        self.notes = list(notes)

    def add(self, what: str, who: str, at: int, wanted: int, value: float) -> None:
        self._rows.setdefault((what, who, at), Row(what, who, at, wanted)).values.append(value)

    def lacks(self, what: str, who: str, at: int, why: str) -> None:
        """Note that it is not measured; the first reason stands."""
        if all((each.what, each.who, each.at) != (what, who, at) for each in self.absent):
            self.absent.append(Absent(what, who, at, why))

    def rows(self, what: str, who: str | None = None) -> list[Row]:
        """By rising ``at``."""
        found = [row for row in self._rows.values() if row.what == what and who in (None, row.who)]
        return sorted(found, key=lambda row: row.at)

    def row(self, what: str, who: str, wanted: int) -> Row | None:
        return next((row for row in self.rows(what, who) if row.wanted == wanted), None)

    def why(self, what: str, who: str, at: int) -> str:
        """Why there is no such row: the narrowest reason that was noted, or ""."""
        keys = [(what, who, at), (what, who, 0), ("", who, at), ("", who, 0)]
        return next(
            (
                each.why
                for key in keys
                for each in self.absent
                if (each.what, each.who, each.at) == key
            ),
            "",
        )

    def whos(self, what: str) -> set[str]:
        return {row.who for row in self.rows(what)}

    def sizes(self, what: str) -> list[int]:
        """The sizes that were wanted."""
        return sorted({row.wanted for row in self.rows(what)})

    def dump(self) -> dict[str, Any]:
        rows = [
            asdict(row) | {"values": [float(f"{value:.6g}") for value in row.values]}
            for row in self._rows.values()
        ]
        return {"rows": rows, "absent": [asdict(each) for each in self.absent], "notes": self.notes}

    @classmethod
    def load(cls, data: dict[str, Any]) -> Self:
        return cls(
            (Row(**row) for row in data["rows"]),
            (Absent(**each) for each in data["absent"]),
            data["notes"],
        )


def ratio(above: Row | None, below: Row | None) -> float | None:
    """How many times ``below`` it is: the median of the rounds' ratios, or of medians where they had not the same rounds."""
    if above is None or below is None:
        return None
    if len(above.values) == len(below.values):
        return statistics.median(a / b for a, b in zip(above.values, below.values, strict=True))
    return statistics.median(above.values) / statistics.median(below.values)


def slope(rows: list[Row]) -> float | None:
    """By how much it grows for each more, from the first row to the last."""
    if len(rows) < 2:
        return None
    first, last = rows[0], rows[-1]
    return (statistics.median(last.values) - statistics.median(first.values)) / (last.at - first.at)


def median(row: Row) -> float:
    return statistics.median(row.values)


def percentile(row: Row, share: float) -> float:
    """The value that so great a share of the values does not exceed: 0.99 of 100 values is the 99th."""
    return sorted(row.values)[max(0, math.ceil(share * len(row.values)) - 1)]


def spread(row: Row) -> str:
    """Median, least and most: ``**3.1** (2.9 to 4.0)``."""
    if len(row.values) == 1:
        return f"{number(row.values[0])} (once)"
    return f"**{number(median(row))}** ({number(min(row.values))} to {number(max(row.values))})"


def number(value: float) -> str:
    """To three digits: ``1,234``, ``98.7``, ``0.12``."""
    size = abs(value)
    return f"{value:,.0f}" if size >= 99.95 else f"{value:.1f}" if size >= 9.995 else f"{value:.2f}"


def times(value: float | None) -> str:
    return "" if value is None else number(value)
