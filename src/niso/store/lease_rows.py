"""The rows of leases: which address of which network is which service's."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from heapq import merge


class LeaseRows:
    """The part of the store that is about leases."""

    _db: sqlite3.Connection

    def leases(self, network: str, family: int = 4) -> list[tuple[str, str, bool]]:
        """(address, service, service is active) of a network, ascending."""
        rows = self._db.execute(
            "SELECT address, service, active FROM lease JOIN service s ON s.name=lease.service"
            " WHERE network=? AND family=? ORDER BY number",
            (network, family),
        )
        return [(row[0], row[1], bool(row[2])) for row in rows]

    def lease_of(self, service: str, network: str, family: int) -> tuple[str, bool] | None:
        row = self._db.execute(
            "SELECT address, static FROM lease WHERE service=? AND network=? AND family=?",
            (service, network, family),
        ).fetchone()
        return (row[0], bool(row[1])) if row else None

    def lease_holder(self, address: str) -> str | None:
        """The service that has this address, or would have it again if its begun change were undone."""
        row = self._db.execute(
            "SELECT service FROM lease WHERE address=? UNION ALL SELECT service FROM intent, json_each(undo, '$.lease')"
            " WHERE json_extract(value, '$.address')=?",
            (address, address),
        ).fetchone()
        return str(row[0]) if row else None

    def used_numbers(self, network: str, family: int) -> Iterator[int]:
        """The numbers of all leases of a subnet, ascending, and of those that a begun change may have to take back."""
        held = self._db.execute(
            "SELECT unhex(json_extract(value, '$.number.hex')) FROM intent, json_each(undo, '$.lease')"
            " WHERE json_extract(value, '$.network')=? AND json_extract(value, '$.family')=?",
            (network, family),
        ).fetchall()
        rows = self._db.execute(
            "SELECT number FROM lease WHERE network=? AND family=? ORDER BY number",
            (network, family),
        )
        return merge(
            (int.from_bytes(row[0]) for row in rows), sorted(int.from_bytes(row[0]) for row in held)
        )

    def add_lease(
        self, service: str, network: str, family: int, number: int, address: str, static: bool
    ) -> None:
        self._db.execute(
            "INSERT INTO lease VALUES (?, ?, ?, ?, ?, ?)",
            (network, family, number.to_bytes(16), address, service, int(static)),
        )

    def drop_lease(self, service: str, network: str, family: int) -> None:
        self._db.execute(
            "DELETE FROM lease WHERE service=? AND network=? AND family=?",
            (service, network, family),
        )
