"""Read and write the rows of outside names: which policies name them, and the answers of DNS.

An answer is recorded for all services at once, so that a name has the same addresses everywhere. It
does not belong to a service, so an undo leaves it unchanged.
"""

from __future__ import annotations

import ipaddress
import sqlite3
from collections.abc import Iterable

from niso.plan.answers import FORMER, NOW, PAST, Known, Outside
from niso.store.sqlite import decoded, encoded


class OutsideRows:
    """The queries of the store for outside names."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def of(self, service: str) -> tuple[str, ...]:
        """Return the outside names of a service's policy, sorted."""
        query = "SELECT name FROM outside_peer WHERE service=? ORDER BY name"
        return tuple(row[0] for row in self._db.execute(query, (service,)))

    def named(self, active: bool = False) -> list[str]:
        """Return the outside names of all policies, or only of active services; sorted."""
        rows = self._db.execute(
            "SELECT DISTINCT p.name FROM outside_peer p JOIN service s ON s.name=p.service"
            " WHERE s.active>=? ORDER BY p.name",
            (int(active),),
        )
        return [row[0] for row in rows]

    def naming(self, names: Iterable[str]) -> list[str]:
        """Return the active services whose policies contain one of these names, sorted."""
        query = (
            "SELECT p.service FROM outside_peer p JOIN service s ON s.name=p.service AND s.active=1"
            " WHERE p.name=?"
        )
        return sorted({row[0] for name in names for row in self._db.execute(query, (name,))})

    def answer(self, name: str) -> Outside:
        """Return the record of a name; without addresses if there is none, or if it is damaged."""
        row = self._db.execute("SELECT answer FROM outside_name WHERE name=?", (name,)).fetchone()
        return (row and _answer(name, row[0])) or Outside(name)

    def answers(self) -> list[Outside]:
        """Return the records of all names in policies, sorted by name."""
        return [self.answer(name) for name in self.named()]

    def meant(self, name: str) -> tuple[str, ...]:
        """Return the addresses by which services may reach a name."""
        return self.answer(name).in_state(NOW, FORMER)

    def ever(self, name: str) -> tuple[str, ...]:
        """Return all recorded addresses of a name, including past ones."""
        return self.answer(name).in_state(NOW, FORMER, PAST)

    def hosts(self, service: str) -> list[tuple[str, str]]:
        """Return (name, address) for the hosts file of a service."""
        return [
            (name, address)
            for name in self.of(service)
            for address in self.answer(name).in_state(NOW)
        ]

    # --- writing; inside a transaction ------------------------------------------------------------

    def put(self, answers: Iterable[Outside]) -> None:
        """Replace the records of names."""
        self._db.executemany(
            "INSERT OR REPLACE INTO outside_name VALUES (?, ?)",
            [(answer.name, encoded(answer[1:])) for answer in answers],
        )

    def forget_others(self, before: float) -> None:
        """Delete the records of names in no policy, unless they were resolved after ``before``."""
        rows = self._db.execute(
            "SELECT name FROM outside_name WHERE name NOT IN (SELECT name FROM outside_peer)"
        ).fetchall()
        for (name,) in rows:
            if not self.answer(name).asked_at > before:
                self._db.execute("DELETE FROM outside_name WHERE name=?", (name,))


def _answer(name: str, text: str) -> Outside | None:
    """Decode a row; None if it is damaged, so that the name is resolved again."""
    try:
        asked_at, due_at, problem, settled, addresses = decoded(text)
        known = tuple(
            Known(str(ipaddress.ip_address(address)), str(state), float(until))
            for address, state, until in addresses
        )
        times = float(asked_at), float(due_at)
        return Outside(name, *times, str(problem), settled is True, known)
    except (TypeError, ValueError):
        return None
