"""Store leases: which service has which address of which network."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator


class LeaseRows:
    """The queries of the store for leases."""

    _db: sqlite3.Connection

    def leases(self, network: str, family: int = 4) -> list[tuple[str, str, bool]]:
        """Return (address, service, service is active) of a network's leases, ascending."""
        rows = self._db.execute(
            "SELECT address, service, active FROM lease JOIN service s ON s.name=lease.service"
            " WHERE network=? AND family=? ORDER BY number",
            (network, family),
        )
        return [(row[0], row[1], bool(row[2])) for row in rows]

    def lease_of(self, service: str, network: str, family: int) -> tuple[str, bool] | None:
        """Return (address, is static) of a service's lease, or None."""
        row = self._db.execute(
            "SELECT address, static FROM lease WHERE service=? AND network=? AND family=?",
            (service, network, family),
        ).fetchone()
        return (row[0], bool(row[1])) if row else None

    def lease_holder(self, address: str) -> str | None:
        """Return the service with this address, or None.

        A service also holds the addresses that undoing its change in progress would restore.
        """
        row = self._db.execute(
            "SELECT service FROM lease WHERE address=?"
            " UNION ALL SELECT service FROM intent, json_each(undo, '$.lease')"
            " WHERE json_extract(value, '$.address')=?",
            (address, address),
        ).fetchone()
        return str(row[0]) if row else None

    def used_numbers(self, network: str, family: int) -> Iterator[int]:
        """Return the host numbers of all leases of a subnet, ascending.

        They include those that undoing a change in progress would restore.
        """
        from heapq import merge

        held = self._db.execute(
            "SELECT unhex(json_extract(value, '$.number.hex'))"
            " FROM intent, json_each(undo, '$.lease')"
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
        """Add a lease; ``number`` is the address's offset in its subnet."""
        self._db.execute(
            "INSERT INTO lease VALUES (?, ?, ?, ?, ?, ?)",
            (network, family, number.to_bytes(16), address, service, int(static)),
        )

    def drop_lease(self, service: str, network: str, family: int) -> None:
        """Delete a service's lease; no-op if there is none."""
        self._db.execute(
            "DELETE FROM lease WHERE service=? AND network=? AND family=?",
            (service, network, family),
        )
